//! Requests that two parsers could read differently: what the backend saw is what the proxy accounted for, and what it
//! cannot account for never leaves.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::rules::dialling;
use support::{
    App, Authority, Client, LIMIT, Proxy, address, client_bundle, echo_endpoints, virtual_address, wait_for, workload,
};
use weft_sidecar::shared::Role;

/// What a client sends on one connection, and the statuses that it must get.
struct Case {
    sent: Vec<u8>,
    statuses: &'static [u16],
    /// A request that began well and broke off: the backend may have seen its head.
    breaks: bool,
}

fn case(sent: &str, statuses: &'static [u16]) -> Case {
    Case {
        sent: sent.as_bytes().to_vec(),
        statuses,
        breaks: false,
    }
}

fn broken(sent: &str, statuses: &'static [u16]) -> Case {
    Case {
        breaks: true,
        ..case(sent, statuses)
    }
}

/// A second request that nobody may take for one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: echo\r\n\r\n";

fn cases() -> Vec<Case> {
    let post = |fields: &str, body: &str| format!("POST /r HTTP/1.1\r\nHost: echo\r\n{fields}\r\n{body}");
    let smuggling = |fields: &str| post(fields, SMUGGLED);
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let get = |fields: &str| format!("GET /r HTTP/1.1\r\nHost: echo\r\n{fields}\r\n");
    let length = SMUGGLED.len();
    let mut all = Vec::new();
    // Lengths.
    for fields in [
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}, {length}\r\n"),
        format!("Content-Length: 0, {length}\r\n"),
        format!("Content-Length: +{length}\r\n"),
        format!("Content-Length: -{length}\r\n"),
        "Content-Length: 0x10\r\n".into(),
        "Content-Length: 1 0\r\n".into(),
        "Content-Length:\r\n".into(),
        "Content-Length: ten\r\n".into(),
        "Content-Length: 5;q=1\r\n".into(),
        "Content-Length: 18446744073709551616\r\n".into(),
        "Content-Length: 99999999999999999999999999\r\n".into(),
        format!("Content-Length : {length}\r\n"),
        format!("Content-Length\t: {length}\r\n"),
        format!(" Content-Length: {length}\r\n"),
        format!("X: y\r\n Content-Length: {length}\r\n"),
        format!("X: y\r\n\tContent-Length: {length}\r\n"),
        format!("X: y\rContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: identity\r\n"),
        // Codings.
        "Transfer-Encoding: chunked, chunked\r\n".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".into(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".into(),
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n".into(),
        "Transfer-Encoding: chunked, identity\r\n".into(),
        "Transfer-Encoding: chunked,\r\n".into(),
        "Transfer-Encoding: ,chunked\r\n".into(),
        "Transfer-Encoding : chunked\r\n".into(),
        "Transfer-Encoding: \u{b}chunked\r\n".into(),
        "Transfer-Encoding: chun\0ked\r\n".into(),
        "Transfer-Encoding\r\n : chunked\r\n".into(),
        "Transfer-Encoding:\r\n chunked\r\n".into(),
        "Transfer-Encoding: chunked\r\n folded\r\n".into(),
        // Fields.
        "Host: other\r\n".into(),
        "Host: echo\r\n".into(),
        "no colon\r\n".into(),
        ": empty\r\n".into(),
        "Bad Name: 1\r\n".into(),
        "Bad\u{b}Name: 1\r\n".into(),
        "X: a\0b\r\n".into(),
        "X: a\rb\r\n".into(),
    ] {
        all.push(case(&smuggling(&fields), &[400]));
    }
    for fields in [
        "gzip",
        "identity",
        "xchunked",
        "gzip, chunked",
        "chunked;q=1",
        "\"chunked\"",
    ] {
        all.push(case(&smuggling(&format!("Transfer-Encoding: {fields}\r\n")), &[501]));
    }
    let version10 = format!("POST /r HTTP/1.0\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}");
    all.push(case(&version10, &[400]));
    // Request lines.
    for line in [
        "GET /r\r HTTP/1.1",
        "GET /r HTTP/1.1\rX: y",
        "GET  HTTP/1.1",
        "GET relative HTTP/1.1",
        "GET /r x HTTP/1.1",
        "GET /r\tx HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET ftp://echo/r HTTP/1.1",
        "GET http:///r HTTP/1.1",
        "GET http://user@echo/r HTTP/1.1",
        "GET /r http/1.1",
        "GET /r HTTP/1.1 x",
        "\rGET /r HTTP/1.1",
        "\r\rGET /r HTTP/1.1",
        "G(T /r HTTP/1.1",
    ] {
        all.push(case(
            &format!("GET /r HTTP/1.1\r\nHost: echo\r\n\r\n{line}\r\nHost: echo\r\n\r\n"),
            &[200, 400],
        ));
    }
    all.push(case(
        "GET /r HTTP/1.1\r\nHost: echo\r\n\r\nGET /r HTTP/3.0\r\nHost: echo\r\n\r\n",
        &[200, 426],
    ));
    all.push(case("GET /r HTTP/1.1\r\nHost: so lo\r\n\r\n", &[400]));
    all.push(case("GET /r HTTP/1.1\r\n\r\n", &[400]));
    all.push(case(
        &format!("GET /r HTTP/1.1\r\nHost: echo\r\nX: {}\r\n\r\n", "a".repeat(62_000)),
        &[431],
    ));
    all.push(case(
        &format!("GET /r HTTP/1.1\r\nHost: echo\r\nX: {}", "a".repeat(70_000)),
        &[431],
    ));
    all.push(case(
        &format!("GET /{} HTTP/1.1\r\nHost: echo\r\n\r\n", "a".repeat(70_000)),
        &[],
    ));
    // Harmless forms, which leave in one form alone.
    all.push(case(&get(""), &[200]));
    all.push(case(
        "GET   /r HTTP/1.1\nHost: echo\n\n\r\n\r\nGET /r HTTP/1.1\r\nHost: echo\r\n\r\n",
        &[200, 200],
    ));
    all.push(case("GET http://echo/r HTTP/1.1\r\nHost: other\r\n\r\n", &[200]));
    all.push(case(
        &format!("{}{}", post("Content-Length: 5\r\n", "hello"), get("")),
        &[200, 200],
    ));
    all.push(case(&smuggling(&format!("Content-Length: {length}\r\n")), &[200]));
    all.push(case(&smuggling(&format!("CONTENT-LENGTH: \t{length} \r\n")), &[200]));
    all.push(case(&(chunked("5\r\nhello\r\n0\r\n\r\n") + &get("")), &[200, 200]));
    all.push(case(
        &(chunked("5;a=\"b\" \r\nhello\r\n0;last\r\nX-T: 1\r\n\r\n") + &get("")),
        &[200, 200],
    ));
    all.push(case(&(chunked("05\r\nhello\r\n00\r\n\r\n") + &get("")), &[200, 200]));
    all.push(case(
        &(post("TRANSFER-encoding:\tCHUNKED \r\n", "5\r\nhello\r\n0\r\n\r\n") + &get("")),
        &[200, 200],
    ));
    all.push(case(
        &(chunked(&format!("{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n")) + &get("")),
        &[200, 200],
    ));
    // A field that only looks like framing.
    all.push(case(
        &(post("Transfer_Encoding: chunked\r\n", "") + "0\r\n\r\n" + SMUGGLED),
        &[200, 400],
    ));
    // Bodies that break.
    for body in [
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "five\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5 x\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nA: b\n\r\n",
        "5\r\nhello\r\n0\r\nA: b\r\n\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nBad Trailer: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
    ] {
        all.push(broken(&(chunked(body) + SMUGGLED), &[400]));
    }
    // Early ends: no answer is owed.
    for sent in [
        "GET /r HTT".to_owned(),
        "GET /r HTTP/1.1\r\nHost: echo\r\nX: ".to_owned(),
        "GET /r HTTP/1.1\r\nHost: echo\r\n".to_owned(),
    ] {
        all.push(case(&sent, &[]));
    }
    for sent in [
        post("Content-Length: 10\r\n", "hello"),
        chunked("5\r\nhel"),
        chunked("5\r\nhello\r\n"),
        chunked("5\r\nhello\r\n0\r\n"),
    ] {
        all.push(broken(&sent, &[400]));
    }
    all
}

/// Sends a case and ends the writing side; the statuses that came back until the proxy closed.
fn send(front: SocketAddr, sent: &[u8], expected: usize) -> Vec<u16> {
    let mut stream = TcpStream::connect(front).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    // The proxy may have closed before it read everything.
    let _ = stream.write_all(sent);
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    let begin = Instant::now();
    let mut ended = false;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
        }
        assert!(begin.elapsed() < LIMIT * 2, "the proxy does not close");
        // A client that half-closes before its last answer counts as gone.
        if !ended && statuses(&received).len() >= expected {
            ended = true;
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
    statuses(&received)
}

/// As [`send`], for what gets no answer before its end.
fn send_and_end(front: SocketAddr, sent: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(front).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    let _ = stream.write_all(sent);
    let _ = stream.shutdown(Shutdown::Write);
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    statuses(&received)
}

fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    let status = |part: &str| part.get(..3).and_then(|digits| digits.parse().ok());
    text.split("HTTP/1.1 ").skip(1).filter_map(status).collect()
}

fn client_of(backend: SocketAddr) -> Proxy {
    let listener = dialling(virtual_address());
    Proxy::start(
        listener,
        &client_bundle("http", ""),
        &echo_endpoints(&[(backend, false)]),
        None,
    )
}

/// Requests that the proxy has in its books as answered 200.
fn accounted(proxy: &Proxy) -> u64 {
    let metrics = proxy.shared.telemetry.prometheus();
    let rows = metrics
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{") && line.contains("response_code=\"200\""));
    rows.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// A backend that reads nothing but the one canonical form and keeps every byte.
struct Strict {
    address: SocketAddr,
    /// Requests that were whole, and connections that ended within one.
    seen: Arc<Mutex<(Vec<String>, usize)>>,
}

impl Strict {
    fn start() -> Self {
        let listener = TcpListener::bind((address(), 0)).expect("listener");
        let this = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
        };
        let seen = this.seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = seen.clone();
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        this
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<(Vec<String>, usize)>) {
    let mut buffer = Vec::new();
    loop {
        let begun = buffer.len();
        match request(&mut stream, &mut buffer) {
            Some(request) => {
                seen.lock().expect("no panic").0.push(request);
                if stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .is_err()
                {
                    return;
                }
            }
            None => {
                if begun > 0 || !buffer.is_empty() {
                    seen.lock().expect("no panic").1 += 1;
                }
                return;
            }
        }
    }
}

/// One request in canonical form; everything else is a panic, which fails the test by a request that is missing.
fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8(buffer[..end].to_vec()).expect("text");
    assert!(
        !head.replace("\r\n", "").contains(['\r', '\n', '\0']),
        "bare line ends: {head:?}"
    );
    let line = head.lines().next().expect("a line");
    assert_eq!(line.split(' ').count(), 3, "{line:?}");
    assert!(
        head.lines()
            .skip(1)
            .all(|line| line.contains(": ") || line.ends_with(':')),
        "{head:?}"
    );
    let values = |name: &str| -> Vec<String> {
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim().to_owned())
            .collect()
    };
    assert_eq!(values("host").len(), 1, "{head:?}");
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings: {head:?}");
    buffer.drain(..end + 4);
    if let Some(length) = lengths.first() {
        let length: usize = length.parse().expect("a number");
        while buffer.len() < length {
            fill(stream, buffer)?;
        }
        buffer.drain(..length);
    } else if let Some(coding) = codings.first() {
        assert_eq!(coding.to_ascii_lowercase(), "chunked");
        loop {
            let end = loop {
                match buffer.windows(2).position(|w| w == b"\r\n") {
                    Some(end) => break end,
                    None => fill(stream, buffer)?,
                }
            };
            let size = std::str::from_utf8(&buffer[..end]).expect("text").to_owned();
            assert!(size.bytes().all(|b| b.is_ascii_hexdigit()), "{size:?}");
            let size = usize::from_str_radix(&size, 16).expect("a size");
            while buffer.len() < end + 2 + size + 2 {
                fill(stream, buffer)?;
            }
            assert_eq!(
                &buffer[end + 2 + size..end + 4 + size],
                b"\r\n",
                "no trailers were asked for"
            );
            buffer.drain(..end + 4 + size);
            if size == 0 {
                break;
            }
        }
    }
    Some(head)
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk) {
        Ok(0) | Err(_) => None,
        Ok(count) => {
            buffer.extend_from_slice(&chunk[..count]);
            Some(())
        }
    }
}

// spec: AUTHZ-113, AUTHZ-114, AUTHZ-115, AUTHZ-116, AUTHZ-069, BYD-067, SM-135, SM-141, SM-138
#[test]
fn a_strict_backend_sees_what_was_accounted_for_and_nothing_else() {
    let backend = Strict::start();
    let proxy = client_of(backend.address);
    let mut expected = 0;
    let mut breaks = 0;
    for case in cases() {
        let sent = String::from_utf8_lossy(&case.sent)
            .chars()
            .take(200)
            .collect::<String>();
        let answers = if case.statuses.is_empty() || case.breaks {
            send_and_end(proxy.addresses[0], &case.sent)
        } else {
            send(proxy.addresses[0], &case.sent, case.statuses.len())
        };
        if case.breaks {
            // The server's own answer, or the proxy's, or none when the client left first: never more than one.
            assert!(
                answers.len() <= 1 && answers.iter().all(|status| *status == 400),
                "{sent:?}: {answers:?}"
            );
            breaks += 1;
        } else {
            assert_eq!(answers, case.statuses, "{sent:?}");
        }
        expected += case.statuses.iter().filter(|status| **status == 200).count();
        let seen = backend.seen.lock().expect("no panic");
        assert_eq!(seen.0.len(), expected, "after {sent:?}: {:?}", seen.0.last());
        assert!(!seen.0.iter().any(|head| head.contains("/smuggled")), "{sent:?}");
        assert_eq!(accounted(&proxy), expected as u64, "{sent:?}");
    }
    assert!(backend.seen.lock().expect("no panic").1 <= breaks);
}

/// nginx with its log.
struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Nginx {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let probe = TcpListener::bind((address(), 0)).expect("listener");
        let address = probe.local_addr().expect("address");
        drop(probe);
        let path = folder.path().display();
        // The inner server makes the outer one read each body to its end before it answers.
        let config = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log; user root;\n\
             events {{ worker_connections 256; }}\n\
             http {{ log_format seen '$status $request_method $request_uri'; client_body_temp_path {path}/body; \
             proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
             server {{ listen {address}; access_log {path}/seen.log seen; client_max_body_size 0; \
             location / {{ proxy_pass http://unix:{path}/inner; }} }}\n\
             server {{ listen unix:{path}/inner; access_log off; location / {{ return 200 ok; }} }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).expect("written");
        let child = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx; install it: apt-get install nginx-light");
        let this = Self { child, folder, address };
        wait_for("nginx", || TcpStream::connect(address).is_ok());
        this
    }

    /// Lines of the log: status, method, target.
    fn seen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("seen.log")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker.
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("an id"));
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

// spec: AUTHZ-113, AUTHZ-116, BYD-067, SM-141
#[test]
fn nginx_sees_what_was_accounted_for_and_nothing_else() {
    let nginx = Nginx::start();
    let proxy = client_of(nginx.address);
    let mut expected = 0;
    for case in cases() {
        let sent = String::from_utf8_lossy(&case.sent)
            .chars()
            .take(200)
            .collect::<String>();
        let answers = if case.statuses.is_empty() || case.breaks {
            send_and_end(proxy.addresses[0], &case.sent)
        } else {
            send(proxy.addresses[0], &case.sent, case.statuses.len())
        };
        if case.breaks {
            assert!(
                answers.len() <= 1 && answers.iter().all(|status| *status == 400),
                "{sent:?}: {answers:?}"
            );
        } else {
            assert_eq!(answers, case.statuses, "{sent:?}");
        }
        expected += case.statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(accounted(&proxy), expected as u64, "{sent:?}");
        let served = || nginx.seen().iter().filter(|line| line.starts_with("200 ")).count();
        wait_for("nginx' log", || served() >= expected);
        assert_eq!(served(), expected, "{sent:?}");
    }
    support::pause(Duration::from_millis(200));
    let seen = nginx.seen();
    assert_eq!(seen.iter().filter(|line| line.starts_with("200 ")).count(), expected);
    assert!(!seen.iter().any(|line| line.contains("/smuggled")), "{seen:?}");
    // What was not served is a body that its client broke off.
    let others: Vec<_> = seen.iter().filter(|line| !line.starts_with("200 ")).collect();
    assert!(others.iter().all(|line| line.ends_with(" POST /r")), "{others:?}");
}

/// A response that nobody asked for, behind each of the others.
const UNASKED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nunasked";

/// A server's bytes, and the status and body that its client must get; without body: the answer breaks off.
fn responses() -> Vec<(String, u16, Option<&'static str>)> {
    let mut all = Vec::new();
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 45\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0, 45\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 45\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n",
        "HTTP/1.1 099 Early\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n",
        "HTTP/3.0 200 OK\r\nContent-Length: 0\r\n",
        "HTTP/1.1 200 OK\rContent-Length: 0\r\n",
    ] {
        all.push((format!("{head}\r\n{UNASKED}"), 502, Some("")));
    }
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}{UNASKED}");
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n+0\r\n\r\n",
        "5\r\nhello\r\n0x0\r\n\r\n",
        "5\r\nhello\r\n10000000000000000\r\n\r\n",
        "5\r\nhello\r\n0\r\nBad Trailer: 1\r\n\r\n",
    ] {
        all.push((chunked(body), 200, None));
    }
    let whole = |head: &str, body: &str| format!("{head}\r\n\r\n{body}{UNASKED}");
    for (sent, status, body) in [
        (whole("HTTP/1.1 200 OK\r\nContent-Length: 0", ""), 200, ""),
        (whole("\r\nHTTP/1.1 200 OK\r\nContent-Length: 0", ""), 200, ""),
        (whole("HTTP/1.1 200 OK\r\nContent-Length: 5", "hello"), 200, "hello"),
        (whole("HTTP/1.1 200 OK\nContent-Length: 5", "hello"), 200, "hello"),
        (whole("HTTP/1.1 204 None\r\nContent-Length: 45", ""), 204, ""),
        (whole("HTTP/1.1 204 None\r\nTransfer-Encoding: chunked", ""), 204, ""),
        (whole("HTTP/1.1 304 Same\r\nContent-Length: 45", ""), 304, ""),
        (chunked("5;a=b\r\nhello\r\n000\r\nT: 1\r\n\r\n"), 200, "hello"),
        (
            whole(
                "HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2",
                "ok",
            ),
            200,
            "ok",
        ),
    ] {
        all.push((sent, status, Some(body)));
    }
    all
}

/// A server that answers `/N` with the bytes of that case, and everything else with `good`.
fn ambiguous() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                while let Some(head) = support::read_head(&mut stream, &mut buffer) {
                    let path = head.split([' ', '/']).nth(2).unwrap_or_default();
                    let good = || "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood".to_owned();
                    let case = path
                        .parse::<usize>()
                        .ok()
                        .and_then(|number| responses().into_iter().nth(number));
                    let sent = case.map_or_else(good, |(sent, ..)| sent);
                    if stream.write_all(sent.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    bound
}

// spec: AUTHZ-113, SM-138
#[test]
fn responses_that_two_parsers_could_read_differently_answer_no_other_request() {
    let proxy = client_of(ambiguous());
    let front = proxy.addresses[0];
    let mut client = Client::connect(front);
    for (number, (sent, status, body)) in responses().into_iter().enumerate() {
        client.send(&format!("GET /{number} HTTP/1.1\r\nHost: echo\r\n\r\n"));
        match (body, client.receive()) {
            (Some(_), None) => panic!("no answer: {sent:?}"),
            (None, Some(answer)) => panic!("{sent:?}: {answer:?}"),
            (None, None) => client = Client::connect(front),
            (Some(body), Some(answer)) => {
                assert_eq!(answer.status(), status, "{sent:?}");
                if status != 502 {
                    assert_eq!(answer.text(), body, "{sent:?}");
                }
            }
        }
        // What came behind it is nobody's answer.
        let next = client.get("/next", "");
        assert_eq!((next.status(), next.text().as_str()), (200, "good"), "after {sent:?}");
    }
}

// spec: BYD-069, AUTHZ-071
#[test]
fn any_token_is_a_method() {
    let backend = Strict::start();
    let proxy = client_of(backend.address);
    for method in ["QUERY", "PROPFIND", "M-SEARCH", "x!#$%&'*+-.^_`|~9", "get"] {
        let answers = send(
            proxy.addresses[0],
            format!("{method} /r HTTP/1.1\r\nHost: echo\r\n\r\n").as_bytes(),
            1,
        );
        assert_eq!(answers, [200], "{method}");
        let seen = backend.seen.lock().expect("no panic");
        assert!(
            seen.0
                .last()
                .is_some_and(|head| head.starts_with(&format!("{method} /r HTTP/1.1"))),
            "{method}"
        );
    }
}

/// A backend that answers each request with trailers and keeps what it got.
fn trailing() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let into = into.clone();
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                let ended = |buffer: &[u8]| {
                    let last = buffer.windows(5).position(|w| w == b"\r\n0\r\n");
                    last.is_some_and(|at| buffer[at + 3..].windows(4).any(|w| w == b"\r\n\r\n"))
                };
                while !ended(&buffer) {
                    if fill(&mut stream, &mut buffer).is_none() {
                        return;
                    }
                }
                into.lock().expect("no panic").extend_from_slice(&buffer);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nContent-Length: 3\r\n\r\n",
                );
            });
        }
    });
    (bound, seen)
}

// spec: BYD-070, SM-138
#[test]
fn trailers_pass_where_they_were_asked_for() {
    let (backend, seen) = trailing();
    let authority = support::Authority::new();
    let port = backend.port();
    let server = Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Explicit { target: backend, port })],
        &support::workload("app/echo"),
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let client = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("http", ""),
        &echo_endpoints(&[(server.addresses[0], true)]),
        Some(authority.identity("app/client")),
    );
    let ask = |fields: &str| {
        seen.lock().expect("no panic").clear();
        let mut stream = TcpStream::connect(client.addresses[0]).expect("the proxy listens");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{fields}\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        (
            answer,
            String::from_utf8_lossy(&seen.lock().expect("no panic")).into_owned(),
        )
    };
    let (answer, request) = ask("Trailer: X-T\r\n");
    assert!(answer.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{answer}");
    assert!(answer.contains("Trailer: X-Sum"), "{answer}");
    assert!(
        request.contains("Trailer: X-T") && !request.contains("X-T: 1"),
        "{request}"
    );
    let (answer, request) = ask("TE: trailers\r\n");
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"), "{answer}");
    assert!(request.ends_with("0\r\nX-T: 1\r\n\r\n"), "{request}");
}

// spec: SM-033, SM-141
#[test]
fn empty_lines_that_come_first_pass_the_client_proxy_as_they_are_and_are_skipped_by_the_server_proxy() {
    let authority = Authority::new();
    let app = App::echo();
    let port = app.address.port();
    let server = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Explicit {
                target: app.address,
                port,
            },
        )],
        &format!(
            "{}inbound: {{mtls: PERMISSIVE, ports: [{{port: {port}, protocol: http}}]}}\n",
            workload("app/echo")
        ),
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let dialled = server.addresses[0];
    let client = Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Fixed { destination: dialled })],
        &client_bundle("http", "").replace("port: 80", &format!("port: {}", dialled.port())),
        &echo_endpoints(&[(dialled, true)]),
        Some(authority.identity("app/client")),
    );
    for (lines, is_mesh) in [("", true), ("\r\n\r\n", false), ("\n", false)] {
        let mut connection = Client::connect(client.addresses[0]);
        connection.send(&format!("{lines}GET /r HTTP/1.1\r\nHost: echo\r\n\r\n"));
        assert_eq!(connection.receive().expect("an answer").status(), 200, "{lines:?}");
        let seen = app.last();
        assert!(seen.head.starts_with("GET /r HTTP/1.1\r\n"), "{:?}", seen.head);
        assert_eq!(
            seen.field("x-forwarded-client-cert").is_some(),
            is_mesh,
            "{lines:?}: {:?}",
            seen.head
        );
    }
}
