//! The program as pods run it: real processes, real sockets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A running server, ended when the test ends.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    fn start(arguments: &[&str], environment: &[(&str, &str)], ports: usize) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let addresses = (0..ports)
            .map(|_| {
                let mut line = String::new();
                stdout.read_line(&mut line).expect("says where it listens");
                let address: SocketAddr = line
                    .split_whitespace()
                    .nth(2)
                    .expect("address")
                    .parse()
                    .expect("parses");
                SocketAddr::from(([127, 0, 0, 1], address.port()))
            })
            .collect();
        Self {
            child,
            stdout,
            addresses,
        }
    }

    fn echo(ports: &[&str]) -> Self {
        let mut arguments = vec!["serve", "--name", "echo-1", "--namespace", "app", "--version", "v7"];
        for port in ports {
            arguments.extend([port, "0"]);
        }
        Self::start(&arguments, &[], ports.len())
    }

    fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://{}{path}", self.addresses[0])
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).expect("connects");
        stream.set_read_timeout(Some(LIMIT)).expect("takes a limit");
        stream
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("is there to be ended");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("ends its output");
        self.child.wait().expect("was started").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env_clear()
        .output()
        .expect("runs")
}

/// What `get` prints, a line for each request.
fn get(arguments: &[&str]) -> Vec<Value> {
    let output = run(&[&["get"], arguments].concat());
    let text = String::from_utf8(output.stdout).expect("is text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!text.is_empty(), "get printed nothing: {errors}");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("is JSON"))
        .collect()
}

fn get_one(arguments: &[&str]) -> Value {
    get(arguments).remove(0)
}

fn pair(list: &Value, name: &str) -> Option<String> {
    let pairs = list.as_array().into_iter().flatten();
    let mut values = pairs
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str().expect("text").to_owned());
    values.next()
}

#[test]
fn answers_say_what_arrived_in_order_and_case() {
    let server = Server::echo(&["--http"]);
    let xfcc = "By=spiffe://c/ns/app/sa/echo;Hash=0;Subject=\"\";URI=spiffe://c/ns/app/sa/client";
    let answer = get_one(&[
        &server.url("http", "/a?b=c"),
        "-X",
        "PUT",
        "-H",
        "X-MiXed: 1",
        "-H",
        "ALL: 2",
        "-H",
        &format!("x-forwarded-client-cert: {xfcc}"),
        "-d",
        "hello",
        "--host",
        "echo.app",
    ]);
    assert_eq!(answer["status"], 200);
    let seen = &answer["body"];
    for (field, expected) in [
        ("pod", json!("echo-1")),
        ("version", json!("v7")),
        ("namespace", json!("app")),
        ("port", json!(server.addresses[0].port())),
        ("proto", json!("HTTP/1.1")),
        ("method", json!("PUT")),
        ("path", json!("/a?b=c")),
        ("host", json!("echo.app")),
        ("transfer", json!("length")),
        ("body", json!("hello")),
        ("body_len", json!(5)),
        ("xfcc", json!(xfcc)),
        ("caller", json!("spiffe://c/ns/app/sa/client")),
        ("conn", json!(1)),
        ("attempt", json!(1)),
        ("tls", Value::Null),
    ] {
        assert_eq!(seen[field], expected, "{field}");
    }
    let headers = json!([
        ["Host", "echo.app"],
        ["X-MiXed", "1"],
        ["ALL", "2"],
        ["x-forwarded-client-cert", xfcc],
        ["Content-Length", "5"]
    ]);
    assert_eq!(seen["headers"], headers);
    assert!(seen["src"].as_str().expect("address").starts_with("127.0.0.1:"));
}

#[test]
fn one_port_takes_both_versions_and_grpc() {
    let server = Server::echo(&["--http"]);
    let url = server.url("http", "/p");
    assert_eq!(get_one(&[&url, "--http10"])["body"]["proto"], "HTTP/1.0");
    let h2 = get_one(&[&url, "--http2", "-H", "x-a: 1"]);
    assert_eq!(
        (&h2["version"], &h2["body"]["proto"]),
        (&json!("HTTP/2"), &json!("HTTP/2"))
    );
    assert_eq!(h2["body"]["host"], server.addresses[0].to_string());
    let grpc = get_one(&[&server.url("grpc", "/a.B/C"), "-d", "message"]);
    assert_eq!(
        (&grpc["body"]["body"], &grpc["body"]["path"]),
        (&json!("message"), &json!("/a.B/C"))
    );
    assert_eq!(pair(&grpc["trailers"], "grpc-status").as_deref(), Some("0"));
    let health = get_one(&[&server.url("grpc", "/grpc.health.v1.Health/Check")]);
    assert_eq!(
        (&health["body"], &health["body_len"]),
        (&json!("\u{8}\u{1}"), &json!(2))
    );
    assert_eq!(get_one(&[&server.url("http", "/healthz")])["body"], "ok\n");
}

#[test]
fn directives_shape_the_answer() {
    let server = Server::echo(&["--http"]);
    for scheme in ["http", "h2c"] {
        let url = server.url(scheme, "/");
        let answer = get_one(&[&url, "-H", "x-ctl: status=418;rh=X-CaMel:1;trailer=x-t:2"]);
        assert_eq!(answer["status"], 418, "{scheme}");
        let name = if scheme == "http" { "X-CaMel" } else { "x-camel" };
        assert_eq!(pair(&answer["headers"], name).as_deref(), Some("1"), "{scheme}");
        assert_eq!(pair(&answer["trailers"], "x-t").as_deref(), Some("2"), "{scheme}");
        let sized = get_one(&[&server.url(scheme, "/?ctl=size=3000000")]);
        assert_eq!(sized["body_len"], 3_000_000, "{scheme}");
        let delayed = get_one(&[&url, "-H", "x-ctl: delay=80"]);
        assert!(delayed["ms"].as_f64().expect("number") >= 80.0, "{scheme}");
        let refused = get_one(&[&url, "-H", "x-ctl: wat=1"]);
        assert_eq!(refused["status"], 400, "{scheme}");
        assert!(refused["body"].as_str().expect("text").contains("wat"), "{scheme}");
    }
    let chunked = get_one(&[
        &server.url("http", "/"),
        "-H",
        "x-ctl: chunked=1",
        "--chunked",
        "-d",
        "abc",
    ]);
    assert_eq!(
        (&chunked["transfer"], &chunked["body"]["transfer"]),
        (&json!("chunked"), &json!("chunked"))
    );
    assert_eq!(chunked["body"]["body"], "abc");
    let grpc = get_one(&[&server.url("grpc", "/a.B/C"), "-H", "x-ctl: grpc=14"]);
    assert_eq!(pair(&grpc["headers"], "grpc-status").as_deref(), Some("14"));
    assert_eq!(grpc["body_len"], 0);
}

#[test]
fn connections_end_as_told() {
    let server = Server::echo(&["--http"]);
    for (scheme, how, error) in [
        ("http", "close", "eof"),
        ("http", "reset", "reset"),
        ("http", "refused", "eof"),
        ("http", "hang", "timeout"),
        ("http", "mid", "eof"),
        // The client may be about to write to what is closed already.
        ("h2c", "close", "eof reset"),
        ("h2c", "reset", "h2-INTERNAL_ERROR"),
        ("h2c", "refused", "h2-REFUSED_STREAM"),
        ("h2c", "hang", "timeout"),
        ("h2c", "mid", "h2-INTERNAL_ERROR"),
    ] {
        let url = server.url(scheme, "/");
        let answer = get_one(&[&url, "-H", &format!("x-ctl: close={how}"), "--timeout-ms", "500"]);
        let word = answer["error"].as_str().unwrap_or("no error");
        assert!(
            error.split(' ').any(|expected| expected == word),
            "{scheme} {how}: {answer}"
        );
        let expected = if how == "mid" {
            (json!(200), json!("0123456789"))
        } else {
            (Value::Null, Value::Null)
        };
        assert_eq!(
            (answer["status"].clone(), answer["body"].clone()),
            expected,
            "{scheme} {how}"
        );
    }
}

#[test]
fn the_first_attempts_with_a_key_fail() {
    let server = Server::echo(&["--http"]);
    let url = server.url("http", "/");
    let answers = get(&[&url, "-H", "x-ctl: fail=2;key=a", "--count", "3", "--reuse"]);
    let statuses: Vec<&Value> = answers.iter().map(|answer| &answer["status"]).collect();
    assert_eq!(statuses, [503, 503, 200]);
    assert_eq!(answers[2]["body"]["attempt"], 3);
    assert_eq!(answers[2]["body"]["conn"], 1, "one connection for all");
    let other = get(&[&url, "-H", "x-ctl: fail=1;key=b;failmode=reset", "--count", "2"]);
    assert_eq!(
        (&other[0]["error"], &other[1]["status"]),
        (&json!("reset"), &json!(200))
    );
    let hits = get_one(&[&server.url("http", "/hits")]);
    assert_eq!(hits["body"].as_array().expect("list").len(), 5);
}

#[test]
fn lines_come_back_with_the_name_of_who_answered() {
    let server = Server::echo(&["--tcp", "--banner"]);
    let answer = get_one(&[&server.url("tcp", ""), "-d", "hello tcp"]);
    let body = answer["body"].as_str().expect("text");
    assert!(
        body.starts_with("v7 echo-1 127.0.0.1:") && body.ends_with(": hello tcp\n"),
        "{body}"
    );
    let banner = get_one(&[&format!("banner://{}", server.addresses[1])]);
    assert_eq!(banner["body"], "banner v7 echo-1\n");
}

#[test]
fn tls_ports_say_what_was_agreed() {
    let folder = tempfile::tempdir().expect("folder");
    let made = rcgen::generate_simple_self_signed(["tls.example.com".to_owned()]).expect("certificate");
    let (cert, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writes");
    let (cert, key) = (cert.to_str().expect("text"), key.to_str().expect("text"));
    let server = Server::start(
        &[
            "serve",
            "--https",
            "0",
            "--tls",
            "0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ],
        &[],
        2,
    );
    for (scheme, alpn) in [("https", "http/1.1"), ("h2", "h2")] {
        let answer = get_one(&[&server.url(scheme, "/"), "--sni", "tls.example.com", "--ca", cert]);
        assert_eq!(answer["body"]["tls"]["sni"], "tls.example.com", "{answer}");
        assert_eq!(answer["body"]["tls"]["alpn"], alpn);
    }
    let untrusted = get_one(&[&server.url("https", "/"), "--sni", "other.example.com", "--ca", cert]);
    assert_eq!(untrusted["error"], "tls");
    let lines = get_one(&[&format!("tls://{}", server.addresses[1]), "-d", "x"]);
    assert!(lines["body"].as_str().expect("text").ends_with(": x\n"));
    assert!(
        lines["server_certificate"]["names"]
            .to_string()
            .contains("tls.example.com")
    );
}

#[test]
fn websockets_echo() {
    let server = Server::echo(&["--http"]);
    let mut stream = server.connect();
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("reads");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{head}"
    );
    // A masked text frame, a ping, a close: RFC 6455, section 5.7.
    stream
        .write_all(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58])
        .expect("writes");
    stream
        .write_all(&[0x89, 0x80, 0, 0, 0, 0, 0x88, 0x80, 0, 0, 0, 0])
        .expect("writes");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("closes");
    assert_eq!(rest, b"\x81\x05Hello\x8a\x00\x88\x00");
}

#[test]
fn what_is_no_request_is_refused() {
    let server = Server::echo(&["--http"]);
    for raw in [r"nonsense\r\n\r\n", r"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
        assert_eq!(
            get_one(&[&server.url("http", "/"), "--raw", raw])["status"],
            400,
            "{raw}"
        );
    }
}

#[test]
fn a_terminated_server_finishes_what_it_accepted() {
    let mut server = Server::echo(&["--http"]);
    let mut busy = server.connect();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nx-ctl: delay=300\r\n\r\n")
        .expect("writes");
    let h2 = Command::new(PROGRAM)
        .args(["get", &server.url("h2c", "/?ctl=delay=600")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut idle = server.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
    let mut first = [0; 15];
    idle.read_exact(&mut first).expect("reads");
    // Once its request shows among the hits, the second client is where the test wants it.
    let deadline = Instant::now() + LIMIT;
    let mut hits = 0;
    while hits < 3 {
        assert!(Instant::now() < deadline, "requests did not arrive");
        hits += get_one(&[&server.url("http", "/hits")])["body"]
            .as_array()
            .expect("list")
            .len();
    }
    server.terminate();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).expect("reads to the end");
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"),
        "{answer}"
    );
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("is closed");
    let h2: Value = serde_json::from_slice(&h2.wait_with_output().expect("ends").stdout).expect("is JSON");
    assert_eq!(h2["status"], 200);
    assert_eq!(server.exit_code(), Some(0));
    assert!(TcpStream::connect(server.addresses[0]).is_err());
}

#[test]
fn an_abrupt_server_does_not() {
    let mut server = Server::start(&["serve", "--http", "0", "--abrupt"], &[], 1);
    let mut busy = server.connect();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nx-ctl: close=hang\r\n\r\n")
        .expect("writes");
    server.terminate();
    assert_eq!(server.exit_code(), Some(0));
    let mut answer = Vec::new();
    assert_eq!(busy.read_to_end(&mut answer).unwrap_or(0), 0);
}

// spec: LOC-061
#[test]
fn the_environment_decides_on_ports_in_loopback_mode() {
    let free = || {
        TcpListener::bind("127.0.0.1:0")
            .expect("binds")
            .local_addr()
            .expect("address")
            .port()
            .to_string()
    };
    let (first, second) = (free(), free());
    let environment = [
        ("PORT", first.as_str()),
        ("PORT_GRPC_API", second.as_str()),
        ("POD_NAME", "p-0"),
    ];
    let arguments = ["serve", "--http", "http=8080", "--grpc", "grpc-api=7070"];
    let server = Server::start(&arguments, &environment, 2);
    let ports: Vec<String> = server
        .addresses
        .iter()
        .map(|address| address.port().to_string())
        .collect();
    assert_eq!(ports, [first, second]);
    assert_eq!(get_one(&[&server.url("http", "/")])["body"]["pod"], "p-0");
    let bad = Command::new(PROGRAM)
        .args(["serve"])
        .env("PORT", "http")
        .output()
        .expect("runs");
    assert!(!bad.status.success());
    assert!(String::from_utf8_lossy(&bad.stderr).contains("PORT is \"http\""));
}

#[test]
fn a_frontend_answers_with_what_its_upstream_answered() {
    let upstream = Server::echo(&["--http"]);
    let url = upstream.url("http", "");
    let frontend = Server::start(
        &["frontend", "--upstream", &url, "--http", "0", "--name", "front-1"],
        &[],
        1,
    );
    let call = [
        "-H",
        "end-user: jason",
        "-H",
        "traceparent: t",
        "-H",
        "cookie: secret",
        "--count",
        "2",
    ];
    let answers = get(&[&[frontend.url("http", "/p?q=1").as_str()], &call[..]].concat());
    for answer in &answers {
        assert_eq!(
            (&answer["status"], &answer["body"]["pod"]),
            (&json!(200), &json!("front-1"))
        );
        let inner = &answer["body"]["upstream"]["answer"];
        assert_eq!((&inner["pod"], &inner["version"]), (&json!("echo-1"), &json!("v7")));
        assert_eq!(inner["path"], "/p?q=1");
        assert_eq!(pair(&inner["headers"], "end-user").as_deref(), Some("jason"));
        assert_eq!(pair(&inner["headers"], "traceparent").as_deref(), Some("t"));
        assert_eq!(pair(&inner["headers"], "cookie"), None);
        assert_eq!(inner["conn"], 1, "the connection is kept");
    }
    let failing = get_one(&[&frontend.url("http", "/"), "-H", "x-upstream-ctl: status=503"]);
    assert_eq!(
        (&failing["status"], &failing["body"]["upstream"]["status"]),
        (&json!(503), &json!(503))
    );
    drop(upstream);
    let dead = get_one(&[&frontend.url("http", "/")]);
    assert_eq!(dead["status"], 502);
    assert!(
        dead["body"]["upstream"]["error"]
            .as_str()
            .expect("text")
            .contains("refused"),
        "{dead}"
    );
}

// spec: LOC-022
#[test]
fn a_frontend_goes_through_the_proxy_of_its_environment() {
    let proxy = Server::echo(&["--http"]);
    let environment = [("http_proxy", &*proxy.url("http", "")), ("no_proxy", "127.0.0.1")];
    let upstream = ["frontend", "--upstream", "http://forecast", "--http", "0"];
    let frontend = Server::start(&upstream, &environment, 1);
    let inner = get_one(&[&frontend.url("http", "/p")])["body"]["upstream"]["answer"].clone();
    assert_eq!(
        (&inner["path"], &inner["host"]),
        (&json!("http://forecast/p"), &json!("forecast"))
    );
}

#[test]
fn load_counts_answers_by_status_version_and_pod() {
    let server = Server::echo(&["--http"]);
    for scheme in ["http", "h2c"] {
        let output = run(&[
            "load",
            "--url",
            &server.url(scheme, "/"),
            "--rate",
            "200",
            "--duration",
            "0.5",
        ]);
        let summary: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
        assert_eq!(
            (&summary["requests"], &summary["succeeded"]),
            (&json!(100), &json!(100)),
            "{summary}"
        );
        assert_eq!(summary["statuses"], json!({"200": 100}));
        assert_eq!(
            (&summary["versions"], &summary["pods"]),
            (&json!({"v7": 100}), &json!({"echo-1": 100}))
        );
        let (p50, p99) = (&summary["latency_ms"]["p50"], &summary["latency_ms"]["p99"]);
        assert!(p50.as_f64() > Some(0.0) && p99.as_f64() >= p50.as_f64());
        assert!(summary["seconds"].as_f64() >= Some(0.49), "open loop keeps its pace");
    }
}

#[test]
fn load_names_failures() {
    let server = Server::echo(&["--http"]);
    let failing = ["--rate", "100", "--duration", "0.1", "--each"];
    let url = server.url("http", "/?ctl=status=503");
    let output = run(&[&["load", "--url", &url], &failing[..]].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text.lines().count(), 11, "a line for each, and the summary");
    let summary: Value = serde_json::from_str(text.lines().last().expect("summary")).expect("is JSON");
    assert_eq!(
        (&summary["failed"], &summary["failures"][0]["status"]),
        (&json!(10), &json!(503))
    );
    let url = server.url("http", "/");
    drop(server);
    let output = run(&[&["load", "--url", &url], &failing[..]].concat());
    let text = String::from_utf8(output.stdout).expect("text");
    let summary: Value = serde_json::from_str(text.lines().last().expect("summary")).expect("is JSON");
    assert_eq!(summary["errors"], json!({"refused": 10}));
    assert!(output.status.success(), "the load ran");
}

#[test]
fn get_fails_when_told_to_and_when_nothing_answers() {
    let server = Server::echo(&["--http"]);
    let url = server.url("http", "/?ctl=status=500");
    assert_eq!(run(&["get", &url]).status.code(), Some(0));
    assert_eq!(run(&["get", "--fail", &url]).status.code(), Some(22));
    drop(server);
    assert_eq!(run(&["get", &url]).status.code(), Some(1));
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-app");
const LIMIT: Duration = Duration::from_secs(20);
