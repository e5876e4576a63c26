//! Opaque connections, detection and modes of PeerAuthentication.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use support::rules::dialling;
use support::{
    App, Client, LIMIT, Pair, Proxy, address, caller, client_bundle, echo_endpoints, get, virtual_address, wait_for,
    workload,
};
use weft_sidecar::shared::{DrainPhase, Role};

/// A line server: optional banner, then each byte back until the client's end, then `bye`.
fn line_app(banner: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(banner.as_bytes());
                let mut buffer = [0; 65536];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => break,
                        Ok(count) => {
                            if stream.write_all(&buffer[..count]).is_err() {
                                return;
                            }
                        }
                    }
                }
                let _ = stream.write_all(b"bye");
            });
        }
    });
    bound
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream
}

/// Waits until the proxy has counted something whose series says all this.
fn wait_for_series(proxy: &Proxy, parts: &[&str]) {
    wait_for(&parts.join(" "), || {
        let metrics = proxy.shared.telemetry.prometheus();
        metrics.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    });
}

/// Whether nothing comes for a while.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(700)))
        .expect("option");
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

fn read_exactly(stream: &mut TcpStream, length: usize) -> String {
    let mut buffer = vec![0; length];
    stream.read_exact(&mut buffer).expect("bytes");
    String::from_utf8(buffer).expect("text")
}

// spec: SM-038, ID-074, ID-103
#[test]
fn bytes_pass_two_proxies_both_ways_and_half_close_is_passed_on() {
    for protocol in ["tcp", "auto"] {
        let pair = Pair::start(protocol, line_app(""));
        let mut stream = connect(pair.front);
        stream.write_all(b"hello\n").expect("sent");
        assert_eq!(read_exactly(&mut stream, 6), "hello\n", "{protocol}");
        stream.shutdown(Shutdown::Write).expect("half-closed");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the other half");
        assert_eq!(rest, "bye", "{protocol}");
    }
}

// spec: SM-038
#[test]
fn large_transfers_arrive_whole() {
    let pair = Pair::start("tcp", line_app(""));
    let mut stream = connect(pair.front);
    let data: Vec<u8> = (0..4_000_000u32)
        .map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
        .collect();
    let mut writer = stream.try_clone().expect("clone");
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(Shutdown::Write).expect("half-closed");
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("received");
    writing.join().expect("sent");
    assert_eq!(received.len(), data.len() + 3);
    assert!(received.starts_with(&data));
}

// spec: BYD-021, SM-029
#[test]
fn a_server_that_speaks_first_is_heard_on_an_automatic_port() {
    for protocol in ["auto", "tcp"] {
        let pair = Pair::start(protocol, line_app("220 ready\n"));
        let begin = Instant::now();
        let mut stream = connect(pair.front);
        assert_eq!(read_exactly(&mut stream, 10), "220 ready\n", "{protocol}");
        assert!(
            begin.elapsed() < Duration::from_secs(4),
            "{protocol}: {:?}",
            begin.elapsed()
        );
        stream.write_all(b"x").expect("sent");
        assert_eq!(read_exactly(&mut stream, 1), "x");
    }
}

// spec: BYD-021
#[test]
fn a_banner_is_hardly_later_than_without_a_proxy() {
    let endpoints = echo_endpoints(&[(line_app("220 ready\n"), false)]);
    let listener = dialling(virtual_address());
    let proxy = Proxy::start(listener, &client_bundle("auto", ""), &endpoints, None);
    // The machine may be busy now and then: the quickest counts.
    let quickest = (0..20).map(|_| {
        let begin = Instant::now();
        assert_eq!(read_exactly(&mut connect(proxy.addresses[0]), 10), "220 ready\n");
        begin.elapsed()
    });
    let quickest = quickest.min().expect("some");
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");
}

// spec: SM-029, SM-032, BYD-021, BYD-068
#[test]
fn with_the_compatibility_of_istio_it_is_the_client_that_is_waited_for() {
    let compatible = "mesh: {istioCompatibility: true}\n";
    let app = line_app("220 ready\n");
    let pair = Pair::with("auto", "PERMISSIVE", app, compatible);
    let mut stream = connect(pair.front);
    assert!(is_silent(&mut stream), "nobody is asked before the client has spoken");
    stream.write_all(b"four").expect("sent");
    assert!(is_silent(&mut stream), "fewer than five bytes are held");
    stream.write_all(b"5").expect("sent");
    assert_eq!(read_exactly(&mut stream, 15), "220 ready\nfour5");
    // A port that is declared needs nothing of the client.
    pair.client.configure(&client_bundle("tcp", compatible));
    assert_eq!(read_exactly(&mut connect(pair.front), 10), "220 ready\n");
    // At a server that expects TLS and plaintext it does, declared or not; a mesh caller begins by itself.
    let port = app.port();
    for protocol in ["tcp", "auto"] {
        let inbound = format!("inbound: {{ports: [{{port: {port}, protocol: {protocol}}}]}}\n");
        pair.server
            .configure(&format!("{}{compatible}{inbound}", workload("app/echo")));
        let mut stream = connect(pair.server.addresses[0]);
        assert!(is_silent(&mut stream), "{protocol}");
        stream.write_all(b"hi").expect("sent");
        assert!(is_silent(&mut stream), "{protocol}: fewer than five bytes are held");
        stream.write_all(b"you").expect("sent");
        assert_eq!(read_exactly(&mut stream, 15), "220 ready\nhiyou", "{protocol}");
        assert_eq!(read_exactly(&mut connect(pair.front), 10), "220 ready\n", "{protocol}");
    }
}

// spec: BYD-068, SM-030
#[test]
fn with_the_compatibility_of_istio_few_bytes_are_held_until_the_limit_or_the_end() {
    let app = line_app("");
    let pair = Pair::start("tcp", app);
    let begin = |mesh: &str| {
        let inbound = format!("inbound: {{ports: [{{port: {}, protocol: tcp}}]}}\n", app.port());
        pair.server
            .configure(&format!("{}{mesh}{inbound}", workload("app/echo")));
        let mut stream = connect(pair.server.addresses[0]);
        stream.write_all(b"hi").expect("sent");
        assert!(is_silent(&mut stream), "held");
        stream
    };
    let mut stream = begin("mesh: {istioCompatibility: true, detectionTimeoutMs: 1500}\n");
    assert_eq!(read_exactly(&mut stream, 2), "hi", "passed when the limit is over");
    let mut stream = begin("mesh: {istioCompatibility: true}\n");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    let _reset_counts_too = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"", "a client that ends before is not served");
}

// spec: BYD-021
#[test]
fn a_banner_in_the_place_of_a_handshake_is_no_failure() {
    let pair = Pair::start("tcp", line_app("220 ready\n"));
    // A port that had given up waiting for the first handshake, and is in time for the others.
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let late = listener.local_addr().expect("address");
    let server = pair.server.addresses[0];
    std::thread::spawn(move || {
        let mut late = None;
        for mut from in listener.incoming().flatten() {
            if late.is_none() {
                from.write_all(b"220 ready\n").expect("the banner");
                late = Some(from);
                continue;
            }
            let mut to = TcpStream::connect(server).expect("the server's proxy listens");
            let (mut back, mut answers) = (from.try_clone().expect("clone"), to.try_clone().expect("clone"));
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    let client = caller(
        &client_bundle("tcp", ""),
        (late, true),
        pair.authority.identity("app/client"),
    );
    let mut stream = connect(client.addresses[0]);
    assert_eq!(read_exactly(&mut stream, 10), "220 ready\n");
}

// spec: BYD-021, SM-032
#[test]
fn a_plaintext_caller_hears_the_banner_of_a_permissive_port() {
    let pair = Pair::start("tcp", line_app("220 ready\n"));
    let mut stream = connect(pair.server.addresses[0]);
    assert_eq!(read_exactly(&mut stream, 10), "220 ready\n");
}

// spec: BYD-068
#[test]
fn two_bytes_of_a_plain_client_are_not_held() {
    let pair = Pair::start("tcp", line_app(""));
    for front in [pair.front, pair.server.addresses[0]] {
        let mut stream = connect(front);
        stream.write_all(b"hi").expect("sent");
        assert_eq!(read_exactly(&mut stream, 2), "hi");
    }
}

// spec: BYD-068
#[test]
fn a_beginning_that_may_become_something_is_held_for_five_seconds() {
    let tcp = Pair::start("tcp", line_app(""));
    let auto = Pair::start("auto", line_app(""));
    // Of TLS to a server that serves both, of HTTP to an automatic port.
    let held = [
        (tcp.server.addresses[0], "\x16"),
        (auto.front, "GE"),
        (auto.server.addresses[0], "PRI * HT"),
    ];
    let begin = Instant::now();
    let mut streams = held.map(|(front, bytes)| {
        let mut stream = connect(front);
        stream.write_all(bytes.as_bytes()).expect("sent");
        (stream, bytes)
    });
    for (stream, bytes) in &mut streams {
        assert_eq!(read_exactly(stream, bytes.len()), *bytes);
        let elapsed = begin.elapsed();
        assert!(
            elapsed > Duration::from_millis(4500) && elapsed < Duration::from_secs(8),
            "{bytes:?}: {elapsed:?}"
        );
    }
}

// spec: DLV-161, DLV-113
#[test]
fn a_draining_server_whose_application_has_gone_is_a_failed_connect() {
    let pair = Pair::start("tcp", line_app(""));
    let gone = SocketAddr::new(address(), 1);
    let leaving = Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Explicit { target: gone, port: 1 })],
        &format!(
            "{}inbound: {{ports: [{{port: 1, protocol: tcp}}]}}\n",
            workload("app/echo")
        ),
        "hosts: []",
        Some(pair.authority.identity("app/echo")),
    );
    leaving.drain(DrainPhase::Draining);
    let (here, there) = ((pair.server.addresses[0], true), (leaving.addresses[0], true));
    for n in 0..20 {
        // A newer list forgets what failed.
        pair.client
            .endpoints(&echo_endpoints(&if n % 2 == 0 { [here, there] } else { [there, here] }));
        let mut stream = connect(pair.front);
        stream.write_all(b"hi").expect("sent");
        assert_eq!(read_exactly(&mut stream, 2), "hi", "{n}");
    }
}

// spec: DLV-113
#[test]
fn a_connection_goes_on_to_three_further_endpoints() {
    let bundle = format!("mesh: {{vipFallback: false}}\n{}", client_bundle("tcp", ""));
    let listener = dialling(virtual_address());
    let proxy = Proxy::start(listener, &bundle, &echo_endpoints(&[]), None);
    let mut all = vec![(line_app(""), false)];
    all.extend((0..3).map(|_| (SocketAddr::new(address(), 1), false)));
    for n in 0..24 {
        // A newer list forgets what failed; whose turn it is, chance decides.
        all.rotate_left(1);
        proxy.endpoints(&echo_endpoints(&all));
        let mut stream = connect(proxy.addresses[0]);
        stream.write_all(b"hi").expect("sent");
        assert_eq!(read_exactly(&mut stream, 2), "hi", "{n}");
    }
}

// spec: SM-050
#[test]
fn a_client_that_breaks_off_and_a_server_that_does_are_told_apart() {
    let pair = Pair::start("tcp", line_app(""));
    let mut stream = connect(pair.front);
    stream.write_all(b"hi").expect("sent");
    assert_eq!(read_exactly(&mut stream, 2), "hi");
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("option");
    drop(stream);
    wait_for_series(&pair.client, &["connections_closed", "response_flags=\"DC\""]);
}

// spec: SM-028, SM-039, ID-101
#[test]
fn http_on_an_automatic_port_is_http_whatever_its_host() {
    let app = App::echo();
    let pair = Pair::start("auto", app.address);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nHost: anything.else\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 200);
    assert!(app.last().field("x-forwarded-client-cert").is_some());
}

// spec: ID-104, ID-145
#[test]
fn strict_closes_plaintext_without_a_byte_and_serves_the_mesh() {
    let app = App::echo();
    let pair = Pair::with("http", "STRICT", app.address, "");
    assert_eq!(get(pair.front, "/").status(), 200);
    let mut stream = connect(pair.server.addresses[0]);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n").expect("sent");
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);
    assert!(received.is_empty(), "{ended:?}");
    assert_eq!(app.count(), 1);
}

// spec: ID-102, ID-122
#[test]
fn permissive_serves_plaintext_and_drops_what_it_claims_of_certificates() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.server.addresses[0]);
    let answer = client.get("/", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/x/sa/y\r\n");
    assert_eq!(answer.status(), 200);
    assert!(app.last().field("x-forwarded-client-cert").is_none());
}

// spec: BYD-001, BYD-002
#[test]
fn a_new_strict_ends_an_open_plaintext_connection() {
    let app = line_app("");
    let pair = Pair::start("tcp", app);
    let mut stream = connect(pair.server.addresses[0]);
    stream.write_all(b"hi").expect("sent");
    assert_eq!(read_exactly(&mut stream, 2), "hi");
    let port = app.port();
    pair.server.configure(&format!(
        "{}inbound: {{mtls: STRICT, ports: [{{port: {port}, protocol: tcp}}]}}\n",
        support::workload("app/echo")
    ));
    let begin = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(
        rest.is_empty() && begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    // The mesh goes on.
    let mut stream = connect(pair.front);
    stream.write_all(b"x").expect("sent");
    assert_eq!(read_exactly(&mut stream, 1), "x");
}

// spec: ID-078, ID-145, DLV-113
#[test]
fn a_server_with_another_identity_gets_no_byte() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    pair.server
        .shared
        .identity
        .store(Some(std::sync::Arc::new(pair.authority.identity("app/other"))));
    let mut client = Client::connect(pair.front);
    let answer = client.get("/", "");
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().contains("TLS_error: verify SAN list"),
        "{}",
        answer.text()
    );
    assert_eq!(app.count(), 0);
}

// spec: ID-084, ID-086
#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let other = support::Authority::new();
    pair.client
        .shared
        .identity
        .store(Some(std::sync::Arc::new(other.identity("app/client"))));
    assert_eq!(get(pair.front, "/").status(), 503);
    assert_eq!(app.count(), 0);
}

// spec: SM-060, SM-062
#[test]
fn unknown_addresses_are_let_out_or_closed() {
    let app = line_app("");
    let proxy = Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Fixed { destination: app })],
        &client_bundle("http", ""),
        "hosts: []",
        None,
    );
    let mut stream = connect(proxy.addresses[0]);
    stream.write_all(b"hi").expect("sent");
    assert_eq!(read_exactly(&mut stream, 2), "hi");
    wait_for_series(&proxy, &["connections_opened", "PassthroughCluster"]);
    let closed = format!("mesh: {{outboundPolicy: REGISTRY_ONLY}}\n{}", client_bundle("http", ""));
    proxy.configure(&closed);
    let mut stream = connect(proxy.addresses[0]);
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.is_empty());
    wait_for_series(&proxy, &["BlackHoleCluster", "response_flags=\"UH\""]);
}

// spec: SM-060, SM-061, SM-063
#[test]
fn an_unknown_host_goes_to_the_dialled_address_or_gets_502() {
    let app = App::echo();
    let known = client_bundle("http", "").replace("port: 80", &format!("port: {}", app.address.port()));
    let proxy = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Fixed {
                destination: app.address,
            },
        )],
        &known,
        &echo_endpoints(&[]),
        None,
    );
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("GET / HTTP/1.1\r\nHost: who.knows\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 200);
    wait_for_series(
        &proxy,
        &["requests_total", "PassthroughCluster", "response_code=\"200\""],
    );
    proxy.configure(&format!("mesh: {{outboundPolicy: REGISTRY_ONLY}}\n{known}"));
    client.send("GET / HTTP/1.1\r\nHost: who.knows\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status(), answer.text()), (502, String::new()));
    wait_for_series(&proxy, &["requests_total", "BlackHoleCluster", "response_code=\"502\""]);
}

// spec: SM-049, VS-176
#[test]
fn a_destination_without_endpoint_closes_the_connection() {
    let start = |protocol: &str| {
        Proxy::start(
            dialling(virtual_address()),
            &client_bundle(protocol, ""),
            &echo_endpoints(&[]),
            None,
        )
    };
    let proxy = start("tcp");
    let mut stream = connect(proxy.addresses[0]);
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.is_empty());
    wait_for_series(&proxy, &["connections_closed", "response_flags=\"UH\""]);
    // In HTTP it is an answer.
    let proxy = start("http");
    let answer = get(proxy.addresses[0], "/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
    wait_for_series(
        &proxy,
        &["requests_total", "response_code=\"503\"", "response_flags=\"UH\""],
    );
}
