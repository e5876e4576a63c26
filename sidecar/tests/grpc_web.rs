//! gRPC-Web: clients that know no trailers, in front of applications that know nothing else.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, Request, Response};
use support::grpc::{self, Got};
use support::process::{Process, Volumes};
use support::rules::{ECHO, dialling};
use support::{
    Answer, Authority, Client, Pair, Proxy, address, client_bundle, echo_endpoints, serving, virtual_address, wait_for,
    workload,
};
use weft_sidecar::shared::Settings;

/// A port that speaks gRPC-Web, in the bundles of the tests.
const WEB: &str = "grpc, grpcWeb: true";

/// A request of gRPC with one byte, and a response with two.
const ASKED: &[u8] = b"\0\0\0\0\x01x";
const SAID: &[u8] = b"\0\0\0\0\x02hi";

/// What the application got.
#[derive(Debug, Clone)]
struct Seen {
    head: HeaderMap,
    body: Vec<u8>,
}

impl Seen {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// A gRPC application; what it does is in the path.
struct App {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Goes on with streams that wait.
    go_on: Arc<tokio::sync::Notify>,
}

impl App {
    fn start() -> Self {
        let seen = Arc::default();
        let go_on = Arc::default();
        let (all, waits): (Arc<Mutex<Vec<Seen>>>, Arc<tokio::sync::Notify>) = (Arc::clone(&seen), Arc::clone(&go_on));
        let address = serving(address(), move |stream| {
            let (all, waits) = (all.clone(), waits.clone());
            async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond, all.clone(), waits.clone()));
                }
            }
        });
        Self { address, seen, go_on }
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }

    fn last(&self) -> Seen {
        self.seen.lock().expect("no panic").last().expect("a request").clone()
    }
}

async fn serve(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    all: Arc<Mutex<Vec<Seen>>>,
    go_on: Arc<tokio::sync::Notify>,
) {
    let (parts, mut stream) = request.into_parts();
    let grpc = || Response::builder().header("content-type", "application/grpc");
    let only = |head: http::response::Builder| head.body(()).expect("head");
    let mut early = (parts.uri.path() == "/a.B/Early").then(|| {
        let mut early = respond.send_response(only(grpc()), false).expect("sent");
        early.send_data(Bytes::from_static(SAID), false).expect("sent");
        early
    });
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        // The proxy gave up.
        let Ok(data) = data else { return };
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let head = parts.headers;
    all.lock().expect("no panic").push(Seen { head, body });
    if let Some(early) = &mut early {
        early.send_data(Bytes::new(), true).expect("sent");
        return;
    }
    match parts.uri.path() {
        "/a.B/Unavailable" => {
            let head = only(grpc().header("grpc-status", "14"));
            respond.send_response(head, true).expect("sent");
        }
        "/a.B/Silent" => go_on.notified().await,
        "/a.B/Other" => {
            let head = only(Response::builder().status(418).header("content-type", "text/plain"));
            let mut stream = respond.send_response(head, false).expect("sent");
            stream.send_data(Bytes::from_static(b"a teapot"), true).expect("sent");
        }
        path => {
            let mut stream = respond.send_response(only(grpc()), false).expect("sent");
            stream.send_data(Bytes::from_static(SAID), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().expect("value"));
            match path {
                "/a.B/Stream" => {
                    go_on.notified().await;
                    stream.send_data(Bytes::from_static(SAID), false).expect("sent");
                }
                "/a.B/Huge" => {
                    for n in 0..8 {
                        let name: http::HeaderName = format!("x-{n}").parse().expect("name");
                        trailers.insert(name, "y".repeat(12_000).parse().expect("value"));
                    }
                }
                _ => {
                    trailers.insert("grpc-message", "not%20there".parse().expect("value"));
                }
            }
            stream.send_trailers(trailers).expect("sent");
        }
    }
}

/// A message that holds trailers.
fn trailers(lines: &str) -> Vec<u8> {
    let length = u32::try_from(lines.len()).expect("short");
    [&[0x80], &length.to_be_bytes()[..], lines.as_bytes()].concat()
}

/// Everything that [`App`] says of most paths.
fn whole() -> Vec<u8> {
    [SAID, &trailers("grpc-status:5\r\ngrpc-message:not%20there\r\n")].concat()
}

/// The bytes that a text stands for, each piece of which is padded on its own.
fn decode(text: &[u8]) -> Vec<u8> {
    BASE64.decode(text).expect("base64")
}

/// A call over HTTP/1.1, with a length.
fn post(front: SocketAddr, path: &str, fields: &str, body: &[u8]) -> Answer {
    let mut client = Client::connect(front);
    ask(&mut client, path, fields, body);
    client.receive().expect("an answer")
}

fn ask(client: &mut Client, path: &str, fields: &str, body: &[u8]) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: echo\r\nContent-Length: {}\r\n{fields}\r\n",
        body.len()
    );
    client.send(&head);
    client.send(std::str::from_utf8(body).expect("text"));
}

const BINARY: &str = "Content-Type: application/grpc-web+proto\r\n";
const TEXT: &str = "Content-Type: application/grpc-web-text\r\n";

/// A server proxy alone, which its callers reach in clear.
fn server(app: &App, protocol: &str) -> Proxy {
    let port = app.address.port();
    let bundle = format!(
        "{}inbound:\n  ports:\n  - {{port: {port}, protocol: {protocol}, host: {ECHO}}}\n",
        workload("app/echo")
    );
    let role = weft_sidecar::shared::Role::Explicit {
        target: app.address,
        port,
    };
    let listeners = vec![(SocketAddr::new(address(), 0), role)];
    Proxy::start(listeners, &bundle, "hosts: []", None)
}

fn metrics(proxy: &Proxy) -> String {
    proxy.shared.telemetry.prometheus()
}

// spec: SM-020, SM-023, SM-026, MET-026, MET-028
#[test]
fn a_binary_call_reaches_the_application_as_grpc_and_its_trailers_end_the_body() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    let server = server(&app, WEB);
    for front in [pair.front, server.addresses[0]] {
        let answer = post(front, "/a.B/C", BINARY, ASKED);
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.field("content-type").as_deref(),
            Some("application/grpc-web+proto")
        );
        assert_eq!(answer.field("content-length"), None);
        assert_eq!(answer.body, whole());
        let seen = app.last();
        assert_eq!(seen.body, ASKED);
        assert_eq!(seen.field("content-type"), Some("application/grpc+proto"));
        assert_eq!(seen.field("te"), Some("trailers"));
        assert_eq!(seen.field("grpc-accept-encoding"), Some("identity"));
        assert_eq!(seen.field("content-length"), None);
    }
    // Both sides of the pair tell what the application said.
    for proxy in [&pair.client, &pair.server, &server] {
        wait_for("the record", || {
            metrics(proxy).lines().any(|line| {
                line.starts_with("istio_requests_total")
                    && line.contains("request_protocol=\"grpc\"")
                    && line.contains("grpc_response_status=\"5\"")
                    && line.contains("response_flags=\"-\"")
            })
        });
        let text = metrics(proxy);
        for counted in ["istio_request_messages_total", "istio_response_messages_total"] {
            let line = text.lines().find(|line| line.starts_with(counted)).expect(counted);
            assert!(line.ends_with(" 1"), "{line}");
        }
    }
}

// spec: SM-026
#[test]
fn a_text_call_may_be_cut_anywhere_and_is_answered_in_text() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    // Two messages, each padded on its own.
    let message = b"\0\0\0\0\x02yz";
    let text = BASE64.encode(message).repeat(2);
    for cut in [1, 2, 3, 5, 7, text.len()] {
        let mut client = Client::connect(pair.front);
        client.send(&format!(
            "POST /a.B/C HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n{TEXT}\r\n"
        ));
        for piece in text.as_bytes().chunks(cut) {
            client.send(&format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)));
        }
        client.send("0\r\n\r\n");
        let answer = client.receive().expect("an answer");
        assert_eq!(
            answer.field("content-type").as_deref(),
            Some("application/grpc-web-text+proto")
        );
        assert_eq!(decode(&answer.body), whole(), "{cut}");
        assert_eq!(app.last().body, [&message[..], message].concat(), "{cut}");
        assert_eq!(app.last().field("content-type"), Some("application/grpc"));
        // The connection serves the next call, too.
        ask(&mut client, "/a.B/C", BINARY, ASKED);
        assert_eq!(client.receive().expect("an answer").body, whole());
    }
}

// spec: SM-026
#[test]
fn the_client_says_whether_it_wants_text() {
    let app = App::start();
    let server = server(&app, WEB);
    let front = server.addresses[0];
    let text = BASE64.encode(ASKED);
    for (fields, body, is_text) in [
        ("Accept: application/grpc-web-text\r\n", ASKED, true),
        ("Accept: */*\r\n", ASKED, false),
    ] {
        let answer = post(front, "/a.B/C", &format!("{BINARY}{fields}"), body);
        let said = if is_text { decode(&answer.body) } else { answer.body };
        assert_eq!(said, whole(), "{fields}");
    }
    let fields = format!("{TEXT}Accept: application/grpc-web+proto, */*\r\nGrpc-Accept-Encoding: gzip\r\n");
    let answer = post(front, "/a.B/C", &fields, text.as_bytes());
    assert_eq!(answer.body, whole());
    assert_eq!(app.last().body, ASKED);
    assert_eq!(app.last().field("grpc-accept-encoding"), Some("gzip"));
}

fn call(front: SocketAddr, content_type: &str, body: &'static [u8]) -> Got {
    grpc::call(front, &[("content-type", content_type)], body)
}

// spec: SM-026
#[test]
fn clients_of_http_2_are_served_alike_and_grpc_beside_them_is_left_alone() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    let server = server(&app, WEB);
    for front in [pair.front, server.addresses[0]] {
        let Got {
            head, data, trailers, ..
        } = call(front, "application/grpc-web", ASKED);
        assert_eq!(head["content-type"], "application/grpc-web+proto");
        assert_eq!((data, trailers), (whole(), None));
        let Got { head, data, .. } = call(front, "application/grpc-web-text", b"AAAAAAF4");
        assert_eq!(head["content-type"], "application/grpc-web-text+proto");
        assert_eq!(decode(&data), whole());
        assert_eq!(app.last().body, ASKED);
        let Got {
            head, data, trailers, ..
        } = call(front, "application/grpc", ASKED);
        assert_eq!(head["content-type"], "application/grpc");
        assert_eq!(data, SAID);
        assert_eq!(trailers.expect("trailers")["grpc-status"], "5");
        assert_eq!(app.last().field("grpc-accept-encoding"), None);
    }
}

// spec: SM-026
#[test]
fn on_a_port_that_does_not_declare_it_nothing_is_translated() {
    let app = App::start();
    let pair = Pair::start("grpc", app.address);
    let Got {
        head, data, trailers, ..
    } = call(pair.front, "application/grpc-web", ASKED);
    assert_eq!(head["content-type"], "application/grpc");
    assert_eq!((data, trailers.is_some()), (SAID.to_vec(), true));
    assert_eq!(app.last().field("content-type"), Some("application/grpc-web"));
}

// spec: SM-026, SM-027
#[test]
fn a_client_proxy_that_does_not_know_leaves_it_to_the_server() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    pair.client.configure(&client_bundle("http", ""));
    assert_eq!(post(pair.front, "/a.B/C", BINARY, ASKED).body, whole());
    assert_eq!(app.last().field("content-type"), Some("application/grpc+proto"));
}

// spec: SM-026
#[test]
fn a_message_does_not_wait_for_the_next_one() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    for (fields, asked) in [(BINARY, ASKED), (TEXT, &b"AAAAAAF4"[..])] {
        let mut client = Client::connect(pair.front);
        ask(&mut client, "/a.B/Stream", fields, asked);
        let first = if fields == TEXT {
            "AAAAAAJoaQ=="
        } else {
            "\0\0\0\0\x02hi"
        };
        while !client.buffered().contains(first) {
            assert!(client.read_more(), "{}", client.buffered());
        }
        assert!(!client.buffered().contains("0\r\n\r\n"));
        app.go_on.notify_one();
        let body = client.receive().expect("an answer").body;
        let body = if fields == TEXT { decode(&body) } else { body };
        assert_eq!(body, [SAID, SAID, &trailers("grpc-status:5\r\n")].concat());
    }
}

// spec: SM-026, VS-099, VS-100, VS-114, MET-028
#[test]
fn a_status_in_the_head_stays_there_and_is_what_retries_and_metrics_see() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    let answer = post(pair.front, "/a.B/Unavailable", TEXT, b"AAAAAAF4");
    assert_eq!((answer.status(), answer.body.len()), (200, 0));
    assert_eq!(answer.field("grpc-status").as_deref(), Some("14"));
    assert_eq!(
        answer.field("content-type").as_deref(),
        Some("application/grpc-web-text+proto")
    );
    assert_eq!(app.count(), 3);
    // The text was decoded once, and sent each time.
    assert_eq!(app.last().body, ASKED);
    wait_for("the record", || {
        let text = metrics(&pair.client);
        text.contains("grpc_response_status=\"14\"") && text.contains("response_flags=\"URX\"")
    });
}

// spec: SM-026
#[test]
fn what_is_no_answer_of_grpc_stays_what_it_is() {
    let app = App::start();
    let server = server(&app, WEB);
    let answer = post(server.addresses[0], "/a.B/Other", BINARY, ASKED);
    assert_eq!((answer.status(), answer.text().as_str()), (418, "a teapot"));
    assert_eq!(answer.field("content-type").as_deref(), Some("text/plain"));
}

/// A client proxy alone, with these rules for `echo`.
fn client(rules: &str, endpoints: &[SocketAddr]) -> Proxy {
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, false)).collect();
    let rest = format!(
        "routes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: rules}}\n  rules:\n{rules}"
    );
    let bundle = client_bundle(&format!("{WEB}, http: t"), &rest);
    Proxy::start(dialling(virtual_address()), &bundle, &echo_endpoints(&endpoints), None)
}

/// A rule for everything, with further fields.
fn rule(fields: &str) -> String {
    format!("  - destinations: [{{host: {ECHO}, port: 80}}]\n{fields}")
}

fn status_of(answer: &Answer) -> (u16, Option<String>, Option<String>, Option<String>) {
    (
        answer.status(),
        answer.field("content-type"),
        answer.field("grpc-status"),
        answer.field("grpc-message"),
    )
}

// spec: SM-026, FLAG-006, VS-127
#[test]
fn failures_of_the_proxy_are_told_as_statuses_of_grpc() {
    let web = |status: &str, message: &str| {
        let message = Some(message.to_owned()).filter(|message| !message.is_empty());
        let content_type = Some("application/grpc-web+proto".to_owned());
        (200, content_type, Some(status.to_owned()), message)
    };
    let app = App::start();
    let proxy = client(&rule(""), &[]);
    let answer = post(proxy.addresses[0], "/a.B/C", BINARY, ASKED);
    assert_eq!(status_of(&answer), web("14", "no healthy upstream"));
    let proxy = client(
        &rule("    fault: {abort: {status: 404, sharePpm: 1000000}}\n"),
        &[app.address],
    );
    let answer = post(proxy.addresses[0], "/a.B/C", BINARY, ASKED);
    assert_eq!(status_of(&answer), web("12", "fault filter abort"));
    // No rule fits.
    let rules = format!(
        "  - matches: [{{path: {{exact: /x}}}}]\n{}",
        rule("").replace("  - ", "    ")
    );
    let proxy = client(&rules, &[app.address]);
    let answer = post(proxy.addresses[0], "/a.B/C", BINARY, ASKED);
    assert_eq!(status_of(&answer), web("12", ""));
    let proxy = client(&rule(""), &[app.address]);
    let fields = format!("{BINARY}grpc-timeout: 50m\r\n");
    let answer = post(proxy.addresses[0], "/a.B/Silent", &fields, ASKED);
    assert_eq!(status_of(&answer), web("14", "upstream request timeout"));
    wait_for("the record", || metrics(&proxy).contains("response_flags=\"UT\""));
}

// spec: SM-026, VS-143, VS-152, VS-153
#[test]
fn rules_ask_for_what_the_client_said_and_cors_is_as_ever() {
    let app = App::start();
    let cors =
        "    cors: {allowOrigins: [{exact: https://a.example}], allowMethods: [POST], exposeHeaders: [grpc-status]}\n";
    let matches = "  - matches: [{headers: [{name: content-type, value: {prefix: application/grpc-web-text}}]}]\n";
    let rules = format!("{matches}{}{cors}", &rule("").replace("  - ", "    "));
    let proxy = client(&rules, &[app.address]);
    let front = proxy.addresses[0];
    let fields = format!("{TEXT}Origin: https://a.example\r\n");
    let answer = post(front, "/a.B/C", &fields, b"AAAAAAF4");
    assert_eq!(decode(&answer.body), whole());
    assert_eq!(
        answer.field("access-control-allow-origin").as_deref(),
        Some("https://a.example")
    );
    assert_eq!(
        answer.field("access-control-expose-headers").as_deref(),
        Some("grpc-status")
    );
    assert_eq!(
        post(front, "/a.B/C", BINARY, ASKED).field("grpc-status").as_deref(),
        Some("12")
    );
    let proxy = client(&rule(cors), &[app.address]);
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(
        "OPTIONS /a.B/C HTTP/1.1\r\nHost: echo\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: \
         POST\r\nAccess-Control-Request-Headers: content-type,x-grpc-web\r\n\r\n",
    );
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.field("access-control-allow-methods").as_deref(), Some("POST"));
    assert_eq!(answer.field("content-type"), None);
}

// spec: SM-026, BYD-030, FLAG-006
#[test]
fn a_text_that_is_none_is_told_and_logged() {
    let app = App::start();
    let log = "mesh: {accessLog: {path: /dev/stdout, format: \"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
               %GRPC_STATUS_NUMBER% %BYTES_RECEIVED%\\n\"}}\n";
    let authority = Authority::new();
    let volumes = Volumes::new(&authority, "app/client");
    volumes.configure(&format!("{log}{}", client_bundle(WEB, "")));
    volumes.endpoints(&[app.address]);
    let own = address();
    let front = SocketAddr::new(own, 4000);
    let proxy = Process::start(&volumes, own, &["--http-proxy", &front.to_string()], &[]).ready();
    let call = |body: &str| {
        let mut client = Client::connect(front);
        client.send(&format!(
            "POST http://echo/a.B/C HTTP/1.1\r\nHost: echo\r\n{TEXT}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        (client.receive().expect("an answer"), client)
    };
    let logged = |line: &str| wait_for(line, || proxy.access_log().lines().any(|found| found == line));
    for (bad, length) in [("AAAAAA!4", 0), ("AAAAAAF", 7), ("AA=AAAF4", 0), ("{\"a\": 1}", 0)] {
        let (answer, mut client) = call(bad);
        assert_eq!(
            (answer.status(), answer.field("grpc-status").as_deref()),
            (200, Some("13")),
            "{bad}"
        );
        assert_eq!(
            answer.field("content-type").as_deref(),
            Some("application/grpc-web-text+proto")
        );
        assert_eq!(
            answer.field("x-weft-reason").as_deref(),
            Some("grpc_base_64_decode_failed")
        );
        assert!(client.is_closed(), "{bad}");
        logged(&format!("DPE grpc_base_64_decode_failed 13 {length}"));
    }
    assert_eq!(app.count(), 0);
    // Eight characters were received, of six bytes.
    assert_eq!(decode(&call("AAAAAAF4").0.body), whole());
    logged("- via_upstream 5 8");
}

// spec: SM-026
#[test]
fn a_text_that_breaks_late_ends_the_call() {
    let app = App::start();
    let pair = Pair::start(WEB, app.address);
    let mut client = Client::connect(pair.front);
    client.send(&format!(
        "POST /a.B/C HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n{TEXT}\r\n"
    ));
    for _ in 0..100 {
        client.send(&format!("400\r\n{}\r\n", "A".repeat(1024)));
    }
    client.send("4\r\n!!!!\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.field("grpc-status").as_deref(), Some("13"));
    assert!(client.is_closed());
    assert_eq!(app.count(), 0);
    // The proxies and their connections go on.
    assert_eq!(post(pair.front, "/a.B/C", BINARY, ASKED).body, whole());
}

// spec: SM-026, BYD-030
#[test]
fn a_text_that_breaks_while_it_is_answered_ends_the_answer() {
    let app = App::start();
    let server = server(&app, WEB);
    let front = server.addresses[0];
    let mut client = Client::connect(front);
    client.send(&format!(
        "POST /a.B/Early HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n{TEXT}\r\n8\r\nAAAAAAF4\r\n"
    ));
    while !client.buffered().contains("AAAAAAJoaQ==") {
        assert!(client.read_more(), "{}", client.buffered());
    }
    client.send("4\r\n!!!!\r\n");
    assert!(client.receive().is_none(), "it breaks off");
    wait_for("the record", || metrics(&server).contains("response_flags=\"DPE\""));
    assert_eq!(app.count(), 0);
    assert_eq!(post(front, "/a.B/C", BINARY, ASKED).body, whole());
}

// spec: SM-026, SM-135
#[test]
fn trailers_are_no_longer_than_any_head_may_be() {
    let app = App::start();
    let server = server(&app, WEB);
    let front = server.addresses[0];
    let answer = post(front, "/a.B/Huge", BINARY, ASKED);
    // What HTTP/2 reads of trailers ends at its limit.
    let frame = answer.body.strip_prefix(SAID).expect("the message");
    assert!((12_000..60 * 1024).contains(&frame.len()), "{}", frame.len());
    assert_eq!(
        frame[1..5],
        u32::try_from(frame.len() - 5).expect("short").to_be_bytes()
    );
    assert!(frame[5..].starts_with(b"grpc-status:5\r\n") && frame.ends_with(b"y\r\n"));
    assert_eq!(post(front, "/a.B/C", BINARY, ASKED).body, whole());
}

// spec: SM-026, GW-012
#[test]
fn a_gateway_translates_on_ports_that_declare_it() {
    let app = App::start();
    let ip = address();
    let settings = Settings {
        gateway: Some(ip),
        ..Settings::default()
    };
    let bundle = format!(
        "{}
hosts:
- host: {ECHO}
  name: echo
  namespace: app
  addresses: [10.1.0.1]
  ports:
  - {{port: 80, name: main, protocol: grpc}}
routes:
- name: all
  origin: {{kind: VirtualService, namespace: app, name: all}}
  rules:
  - destinations: [{{host: {ECHO}, port: 80}}]
listeners:
- {{port: 8080, grpcWeb: true, http: [{{domains: ['*'], http: all}}]}}
- {{port: 8081, http: [{{domains: ['*'], http: all}}]}}
",
        workload("istio-ingress/ingress")
    );
    let proxy = Proxy::with(
        Vec::new(),
        &bundle,
        &echo_endpoints(&[(app.address, false)]),
        None,
        settings,
    );
    assert_eq!(post(SocketAddr::new(ip, 8080), "/a.B/C", BINARY, ASKED).body, whole());
    let answer = post(SocketAddr::new(ip, 8081), "/a.B/C", BINARY, ASKED);
    assert_eq!(answer.body, SAID);
    assert_eq!(app.last().field("content-type"), Some("application/grpc-web+proto"));
    drop(proxy);
}
