//! Connection pools, circuit breaking, outlier detection, and what opens a connection.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{
    App, Authority, Client, LIMIT, Proxy, address, client_bundle, echo_endpoints, get, virtual_address, wait_for,
    workload,
};
use weft_sidecar::shared::{Role, Settings};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn listener() -> Vec<(SocketAddr, Role)> {
    let destination = virtual_address();
    vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })]
}

fn client(protocol: &str, policy: &str, endpoints: &[SocketAddr]) -> Proxy {
    let port = format!("protocol: {protocol}}}");
    // The cluster address leads nowhere here, or anywhere.
    let mesh = "mesh: {vipFallback: false}\n";
    let bundle = client_bundle(protocol, mesh).replace(&port, &format!("protocol: {protocol}, policy: {policy}}}"));
    let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, false)).collect();
    Proxy::start(listener(), &bundle, &echo_endpoints(&endpoints), None)
}

/// Holds requests with field `X-Wait` until their connection ends, and answers others.
fn patient() -> App {
    App::new(Arc::new(|seen, stream| {
        if seen.head.contains("X-Wait") {
            let mut byte = [0];
            let _ = stream.read(&mut byte);
            return false;
        }
        stream.write_all(OK).is_ok()
    }))
}

fn hold(proxy: &Proxy, app: &App, path: &str) -> Client {
    let before = app.count();
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: echo\r\nX-Wait: 1\r\n\r\n"));
    wait_for("the request that waits", || app.count() == before + 1);
    client
}

/// Echoes bytes.
fn line_app() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let heard = heard.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    heard.lock().expect("no panic").extend_from_slice(&buffer[..count]);
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (bound, seen)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addresses[0]).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && matches!(stream.read(&mut byte), Ok(1))
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(count) => count == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

// spec: DR-073, DR-074
#[test]
fn opaque_connections_beyond_the_limit_are_closed_and_limits_are_each_proxys() {
    let (app, _) = line_app();
    let (one, two) = (
        client("tcp", "{maxConnections: 1}", &[app]),
        client("tcp", "{maxConnections: 1}", &[app]),
    );
    let mut first = connect(&one);
    assert!(echoes(&mut first));
    assert!(is_closed(&mut connect(&one)));
    one.wait_for_flags("UO");
    assert!(echoes(&mut connect(&two)), "another proxy has its own");
    drop(first);
    wait_for("the place to be free", || echoes(&mut connect(&one)));
}

// spec: DR-073, DR-080
#[test]
fn a_limit_is_that_of_all_workers_together_and_of_one_port() {
    let app = patient();
    let policy =
        |port: u16, name: &str| format!("{{port: {port}, name: {name}, protocol: http, policy: {{maxRequests: 1}}}}");
    let ports = format!("{}\n  - {}", policy(80, "main"), policy(81, "other"));
    let bundle = client_bundle("http", "mesh: {vipFallback: false}\n");
    let bundle = bundle.replace("{port: 80, name: main, protocol: http}", &ports);
    let number = app.address.port();
    let both = format!("{{main: {number}, other: {number}}}");
    let endpoints = echo_endpoints(&[(app.address, false)]).replace(&format!("{{main: {number}}}"), &both);
    let settings = Settings {
        workers: 3,
        ..Settings::default()
    };
    let dialled = [80, 81].map(|port| SocketAddr::new(virtual_address().ip(), port));
    let listeners = dialled.map(|destination| (SocketAddr::new(address(), 0), Role::Fixed { destination }));
    let proxy = Proxy::with(listeners.into(), &bundle, &endpoints, None, settings);
    let held = hold(&proxy, &app, "/");
    // A connection each, which the kernel gives to one worker or another.
    for _ in 0..20 {
        assert_eq!(get(proxy.addresses[0], "/").status(), 503);
    }
    assert_eq!(get(proxy.addresses[1], "/").status(), 200, "another port has its own");
    drop(held);
    wait_for("the place to be free", || get(proxy.addresses[0], "/").status() == 200);
}

// spec: DR-079, DR-081, DR-074
#[test]
fn requests_beyond_the_queue_get_503() {
    let app = patient();
    let proxy = client("http", "{maxConnections: 1, maxPendingRequests: 1}", &[app.address]);
    let first = hold(&proxy, &app, "/");
    // One may wait for the only connection.
    let mut second = Client::connect(proxy.addresses[0]);
    second.send("GET /second HTTP/1.1\r\nHost: echo\r\n\r\n");
    let counters = || proxy.shared.counters.lock().expect("no panic").values().next().cloned();
    wait_for("the second to wait", || {
        counters().is_some_and(|c| c.pending.load(Ordering::Relaxed) == 1)
    });
    let answer = get(proxy.addresses[0], "/third");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().ends_with("reset reason: overflow"), "{}", answer.text());
    assert_eq!(answer.field("x-envoy-overloaded").as_deref(), Some("true"));
    proxy.wait_for_flags("UO");
    drop(first);
    assert_eq!(second.receive().expect("an answer").status(), 200);
}

/// An address that answers no SYN, as long as the guard lives.
fn silent() -> (SocketAddr, impl Sized) {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let target = listener.local_addr().expect("address");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("backlog")).expect("listening");
    let mut fillers = Vec::new();
    while let Ok(filler) = TcpStream::connect_timeout(&target, Duration::from_millis(300)) {
        fillers.push(filler);
    }
    (target, (listener, fillers))
}

// spec: DR-075, SM-050
#[test]
fn a_connect_that_nobody_answers_ends_at_its_limit() {
    let (target, _guard) = silent();
    let proxy = client("http", "{connectTimeoutMs: 400}", &[target]);
    let begin = Instant::now();
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert!(answer.text().contains("connection timeout"), "{}", answer.text());
    assert!(begin.elapsed() >= Duration::from_millis(400));
    proxy.wait_for_flags("UF,URX");
    let proxy = client("tcp", "{connectTimeoutMs: 400}", &[target]);
    assert!(is_closed(&mut connect(&proxy)));
    proxy.wait_for_flags("UF");
}

// spec: DR-076
#[test]
fn keepalive_has_what_a_rule_says_and_the_rest_from_the_system() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let (target, _) = line_app();
    runtime.block_on(async {
        for (time, interval, probes) in [(Some(321), Some(7), Some(3)), (None, Some(7), None), (None, None, None)] {
            let stream = tokio::net::TcpStream::connect(target).await.expect("connected");
            let socket = socket2::SockRef::from(&stream);
            let state = || {
                let seconds = |time: std::io::Result<Duration>| time.expect("an option").as_secs();
                (
                    seconds(socket.tcp_keepalive_time()),
                    seconds(socket.tcp_keepalive_interval()),
                    socket.tcp_keepalive_retries().expect("an option"),
                )
            };
            let before = state();
            let wanted = weft_bundle::wire::TcpKeepalive {
                time_seconds: time,
                interval_seconds: interval,
                probes,
            };
            weft_sidecar::io::keepalive(&stream, &wanted);
            assert!(socket.keepalive().expect("an option"));
            let expected = (
                time.unwrap_or(before.0),
                interval.unwrap_or(before.1),
                probes.unwrap_or(before.2),
            );
            assert_eq!(state(), expected);
        }
    });
}

/// Seconds until the keepalive timer of a connection to a peer, from the kernel's table.
fn keepalive_of(peer: SocketAddr) -> Option<u64> {
    let SocketAddr::V4(peer) = peer else { return None };
    let octets: Vec<String> = peer.ip().octets().iter().rev().map(|o| format!("{o:02X}")).collect();
    let wanted = format!("{}:{:04X}", octets.concat(), peer.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (timer, when) = fields.get(5)?.split_once(':')?;
        (fields.get(2) == Some(&wanted.as_str()) && timer == "02")
            .then(|| u64::from_str_radix(when, 16).ok())
            .flatten()
            .map(|jiffies| jiffies / 100)
    })
}

// spec: DR-076
#[test]
fn keepalive_is_on_upstream_where_a_rule_says_so() {
    for protocol in ["http", "tcp"] {
        for (policy, on) in [
            (
                "{tcpKeepalive: {timeSeconds: 321, probes: 3, intervalSeconds: 7}}",
                true,
            ),
            ("{}", false),
        ] {
            let (address, _guard): (SocketAddr, Box<dyn std::any::Any>) = if protocol == "http" {
                let app = App::echo();
                (app.address, Box::new(app))
            } else {
                (line_app().0, Box::new(()))
            };
            let proxy = client(protocol, policy, &[address]);
            let _open: Box<dyn std::any::Any> = if protocol == "http" {
                let mut client = Client::connect(proxy.addresses[0]);
                assert_eq!(client.get("/", "").status(), 200);
                Box::new(client)
            } else {
                let mut stream = connect(&proxy);
                assert!(echoes(&mut stream));
                Box::new(stream)
            };
            let timer = keepalive_of(address);
            assert_eq!(
                timer.is_some_and(|seconds| (300..=321).contains(&seconds)),
                on,
                "{protocol} {timer:?}"
            );
        }
    }
}

// spec: DR-077, DR-132
#[test]
fn connections_are_closed_at_their_age() {
    let app = App::echo();
    let proxy = client(
        "http",
        "{maxConnectionDurationMs: 300, tcpMaxConnectionDurationMs: 1}",
        &[app.address],
    );
    let mut client = Client::connect(proxy.addresses[0]);
    client.get("/", "");
    support::pause(Duration::from_millis(350));
    client.get("/", "");
    assert_eq!(app.last().connection, 2);

    let (line, _) = line_app();
    let proxy = self::client("tcp", "{tcpMaxConnectionDurationMs: 300}", &[line]);
    let begin = Instant::now();
    let mut stream = connect(&proxy);
    while begin.elapsed() < LIMIT && echoes(&mut stream) {
        support::pause(Duration::from_millis(20));
    }
    let lasted = begin.elapsed();
    assert!(lasted >= Duration::from_millis(300) && lasted < LIMIT, "{lasted:?}");
}

// spec: DR-078
#[test]
fn a_silent_opaque_connection_is_closed() {
    let (app, _) = line_app();
    let proxy = client("tcp", "{tcpIdleTimeoutMs: 400}", &[app]);
    let mut stream = connect(&proxy);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        assert!(echoes(&mut stream), "bytes keep it open");
        support::pause(Duration::from_millis(20));
    }
    assert!(is_closed(&mut stream));
    // Zero: for ever.
    let proxy = client("tcp", "{tcpIdleTimeoutMs: 0}", &[app]);
    let mut stream = connect(&proxy);
    assert!(echoes(&mut stream));
    stream
        .set_read_timeout(Some(Duration::from_millis(600)))
        .expect("option");
    assert!(!is_closed(&mut stream));
    assert!(echoes(&mut stream));
}

// spec: DR-084
#[test]
fn an_idle_http_connection_is_closed() {
    let app = App::echo();
    for (policy, connections) in [
        ("{httpIdleTimeoutMs: 200}", 2),
        ("{httpIdleTimeoutMs: 0}", 3),
        ("{}", 4),
    ] {
        let proxy = client("http", policy, &[app.address]);
        let mut client = Client::connect(proxy.addresses[0]);
        client.get("/", "");
        // Idle connections are looked at every second.
        support::pause(Duration::from_millis(2300));
        client.get("/", "");
        assert_eq!(app.last().connection, connections, "{policy}");
    }
}

/// A proxy that takes HTTP/2 in clear and speaks HTTP/1.1 to an application.
fn http2_server(app: &App, port: &str) -> Proxy {
    let number = app.address.port();
    let bundle = format!(
        "{}inbound: {{ports: [{{port: {number}, protocol: http{port}}}]}}\n",
        workload("app/echo")
    );
    let role = Role::Explicit {
        target: app.address,
        port: number,
    };
    Proxy::start(vec![(SocketAddr::new(address(), 0), role)], &bundle, "hosts: []", None)
}

// spec: DR-089, SE-095
#[test]
fn the_server_proxy_limits_its_application_by_the_same_rule() {
    let app = patient();
    let server = http2_server(&app, ", policy: {maxRequests: 1}");
    let held = hold(&server, &app, "/");
    let answer = get(server.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().ends_with("reset reason: overflow"), "{}", answer.text());
    drop(held);
    wait_for("the place to be free", || get(server.addresses[0], "/").status() == 200);

    let server = http2_server(&app, ", policy: {maxConnections: 1, maxPendingRequests: 1}");
    let held = hold(&server, &app, "/");
    let mut waits = Client::connect(server.addresses[0]);
    waits.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("overflow", || get(server.addresses[0], "/").status() == 503);
    drop(held);
    assert_eq!(waits.receive().expect("an answer").status(), 200);

    let (line, _) = line_app();
    let role = Role::Explicit {
        target: line,
        port: line.port(),
    };
    let bundle = format!(
        "{}inbound: {{ports: [{{port: {}, protocol: tcp, policy: {{maxConnections: 1}}}}]}}\n",
        workload("app/echo"),
        line.port()
    );
    let server = Proxy::start(vec![(SocketAddr::new(address(), 0), role)], &bundle, "hosts: []", None);
    let mut first = connect(&server);
    assert!(echoes(&mut first));
    assert!(!echoes(&mut connect(&server)));
}

fn failing() -> App {
    App::answering(|seen| {
        let status = if seen.head.contains("X-Fail") {
            "503 No"
        } else {
            "200 OK"
        };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    })
}

// spec: DR-090, DR-092, DR-103, DR-105, SM-100
#[test]
fn ejection_is_a_destinations_own_and_ends_with_the_endpoint() {
    let app = failing();
    let policy = "{outlier: {consecutive5xx: 0, consecutiveGatewayErrors: 2, maxEjectionPercent: 100}}";
    let rest = format!(
        "  subsets:\n  - {{name: s, policies: {{80: {policy}}}}}\nroutes:\n- name: t\n  origin: {{kind: VirtualService, \
         namespace: app, name: r}}\n  rules:\n  - matches: [{{path: {{exact: /subset}}}}]\n    destinations: [{{host: \
         echo.app.svc.cluster.local, port: 80, subset: s}}]\n  - destinations: [{{host: echo.app.svc.cluster.local, port: \
         80}}]\n"
    );
    let bundle = client_bundle("http", &rest).replace(
        "protocol: http}",
        &format!("protocol: http, http: t, policy: {policy}}}"),
    );
    let endpoints = echo_endpoints(&[(app.address, false)]);
    let proxy = Proxy::start(listener(), &bundle, &endpoints, None);
    let other = Proxy::start(listener(), &bundle, &endpoints, None);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..2 {
        assert_eq!(client.get("/subset", "X-Fail: 1\r\n").status(), 503);
    }
    let answer = client.get("/subset", "");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
    assert_eq!(client.get("/", "").status(), 200, "the whole service has its own state");
    assert_eq!(
        get(other.addresses[0], "/subset").status(),
        200,
        "and so has another proxy"
    );
    // Gone and back again, it is new.
    proxy.endpoints(&echo_endpoints(&[]));
    assert_eq!(client.get("/subset", "").status(), 503);
    proxy.endpoints(&endpoints);
    assert_eq!(client.get("/subset", "").status(), 200);
}

// spec: DR-090, DR-092, DR-095
#[test]
fn errors_count_whichever_worker_they_come_to() {
    let app = failing();
    let policy = "{outlier: {consecutive5xx: 0, consecutiveGatewayErrors: 5, maxEjectionPercent: 100}}";
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"));
    let settings = Settings {
        workers: 3,
        ..Settings::default()
    };
    let proxy = Proxy::with(
        listener(),
        &bundle,
        &echo_endpoints(&[(app.address, false)]),
        None,
        settings,
    );
    // A connection each, which the kernel gives to one worker or another.
    for _ in 0..40 {
        let answer = Client::connect(proxy.addresses[0]).get("/", "X-Fail: 1\r\n");
        assert_eq!(answer.status(), 503);
    }
    assert_eq!(app.count(), 5);
}

// spec: DR-090, DR-096
#[test]
fn workers_that_have_not_used_a_destination_for_long_do_not_end_its_ejections() {
    let app = failing();
    let policy = "{outlier: {consecutive5xx: 1, maxEjectionPercent: 100}}";
    let settings = Settings {
        workers: 3,
        ..Settings::default()
    };
    let endpoints = echo_endpoints(&[(app.address, false)]);
    let proxy = Proxy::with(listener(), &client_bundle("http", ""), &endpoints, None, settings);
    for _ in 0..20 {
        assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    }
    let policy = format!("protocol: http, policy: {policy}}}");
    proxy.configure(&client_bundle("http", "").replace("protocol: http}", &policy));
    let answer = Client::connect(proxy.addresses[0]).get("/", "X-Fail: 1\r\n");
    assert_eq!(answer.status(), 503);
    // All of them look at what is idle or over, one having seen the new policy.
    support::pause(Duration::from_secs(3));
    for _ in 0..20 {
        assert_eq!(get(proxy.addresses[0], "/").status(), 503);
    }
    assert_eq!(app.count(), 21);
}

// spec: DR-093, DR-094
#[test]
fn a_refused_opaque_connection_ejects() {
    for (policy, ejects) in [
        ("{outlier: {consecutive5xx: 1, maxEjectionPercent: 100}}", true),
        (
            "{outlier: {consecutive5xx: 0, consecutiveGatewayErrors: 1, maxEjectionPercent: 100}}",
            true,
        ),
        (
            "{outlier: {consecutive5xx: 1, consecutiveLocalOriginFailures: 1, maxEjectionPercent: 100}}",
            true,
        ),
        (
            "{outlier: {consecutive5xx: 1, consecutiveLocalOriginFailures: 9, maxEjectionPercent: 100}}",
            false,
        ),
    ] {
        let late = TcpListener::bind((address(), 0)).expect("listener");
        let refused = late.local_addr().expect("address");
        drop(late);
        let proxy = client("tcp", policy, &[refused]);
        assert!(is_closed(&mut connect(&proxy)));
        // Somebody listens there now, and a newer list forgets that the address was set aside, not that it was ejected.
        let revived = TcpListener::bind(refused).expect("listener");
        let (app, _) = line_app();
        proxy.endpoints(&echo_endpoints(&[(refused, false), (app, false)]));
        revived.set_nonblocking(true).expect("option");
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = connect(&proxy);
            stream
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("option");
            let _ = echoes(&mut stream);
            streams.push(stream);
        }
        assert_eq!(revived.accept().is_err(), ejects, "{policy}");
    }
}

// spec: DR-128
#[test]
fn the_proxy_header_names_the_client_of_each_connection() {
    let (line, heard) = line_app();
    let proxy = client("tcp", "{proxyProtocol: v1}", &[line]);
    let mut stream = connect(&proxy);
    let own = stream.local_addr().expect("address");
    stream.write_all(b"hello").expect("sent");
    let wanted = format!("PROXY TCP4 {} 10.1.0.1 {} 80\r\nhello", own.ip(), own.port());
    wait_for("the header", || *heard.lock().expect("no panic") == wanted.as_bytes());

    // In HTTP nobody's requests go over a connection that announces another client.
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let target = listener.local_addr().expect("address");
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || {
                let mut buffer = Vec::new();
                while let Some(head) = support::read_head(&mut stream, &mut buffer) {
                    seen.lock().expect("no panic").push(head);
                    if stream.write_all(OK).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let proxy = client("http", "{proxyProtocol: v1}", &[target]);
    let (mut one, mut two) = (Client::connect(proxy.addresses[0]), Client::connect(proxy.addresses[0]));
    for client in [&mut one, &mut two] {
        client.get("/first", "");
        client.get("/second", "");
    }
    let heads = heads.lock().expect("no panic");
    let announced: Vec<_> = heads.iter().map(|head| head.starts_with("PROXY TCP4 ")).collect();
    assert_eq!(announced, [true, false, true, false]);
    let port = two.stream.local_addr().expect("address").port();
    assert!(
        heads[2]
            .lines()
            .next()
            .is_some_and(|line| line.ends_with(&format!(" {port} 80"))),
        "{}",
        heads[2]
    );
}

// spec: DR-125, DR-127
#[test]
fn a_tunnel_is_asked_for_its_target() {
    for (post, answer) in [
        (false, "HTTP/1.1 200 OK\r\n\r\nbanner"),
        (true, "HTTP/1.1 204 Fine\r\nX: y\r\n\r\nbanner"),
        (false, "HTTP/1.1 403 No\r\n\r\n"),
    ] {
        let listener = TcpListener::bind((address(), 0)).expect("listener");
        let target = listener.local_addr().expect("address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = Vec::new();
            let head = support::read_head(&mut stream, &mut buffer).expect("a request");
            stream.write_all(answer.as_bytes()).expect("sent");
            let mut byte = [0];
            let got = stream.read(&mut byte).is_ok_and(|count| count == 1);
            (head, got)
        });
        let proxy = client(
            "tcp",
            &format!("{{tunnel: {{post: {post}, host: target.example, port: 443}}}}"),
            &[target],
        );
        let mut stream = connect(&proxy);
        if answer.contains("403") {
            assert!(is_closed(&mut stream));
        } else {
            let mut banner = [0; 6];
            stream.read_exact(&mut banner).expect("what follows the answer");
            assert_eq!(&banner, b"banner");
            stream.write_all(b"x").expect("sent");
        }
        let (head, got) = server.join().expect("no panic");
        let first = if post {
            "POST / HTTP/1.1"
        } else {
            "CONNECT target.example:443 HTTP/1.1"
        };
        assert!(
            head.starts_with(&format!("{first}\r\nHost: target.example:443")),
            "{head}"
        );
        assert_eq!(got, !answer.contains("403"));
    }
}

// spec: DR-110, DR-118
#[test]
fn the_server_name_of_the_mesh_is_the_rules_else_an_internal_one() {
    let authority = Authority::new();
    for (tls, wanted) in [
        ("{mesh: {}}", "outbound_.80_._.echo.app.svc.cluster.local"),
        ("auto", "outbound_.80_._.echo.app.svc.cluster.local"),
        ("{mesh: {sni: own.example}}", "own.example"),
    ] {
        let server = TcpListener::bind((address(), 0)).expect("listener");
        let target = server.local_addr().expect("address");
        let policy = format!("protocol: http, policy: {{tls: {tls}}}}}");
        let bundle = client_bundle("http", "mesh: {vipFallback: false, retry: {attempts: 0}}\n");
        let proxy = Proxy::start(
            listener(),
            &bundle.replace("protocol: http}", &policy),
            &echo_endpoints(&[(target, true)]),
            Some(authority.identity("app/client")),
        );
        let mut client = Client::connect(proxy.addresses[0]);
        client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
        let (mut stream, _) = server.accept().expect("a connection");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        // The name stands in the first message as it is.
        let mut hello = Vec::new();
        let mut chunk = [0; 4096];
        while !hello.windows(wanted.len()).any(|part| part == wanted.as_bytes()) {
            let count = stream.read(&mut chunk).expect("a ClientHello");
            assert!(count > 0, "{tls}: no {wanted} in {}", String::from_utf8_lossy(&hello));
            hello.extend_from_slice(&chunk[..count]);
        }
    }
}

// spec: DR-106, DR-107, DR-109, DR-110, SM-082
#[test]
fn tls_of_the_mesh_is_decided_by_the_rule_else_by_the_endpoint() {
    let authority = Authority::new();
    let app = App::echo();
    let port = app.address.port();
    let role = Role::Explicit {
        target: app.address,
        port,
    };
    let bundle = format!(
        "{}inbound: {{ports: [{{port: {port}, protocol: http}}]}}\n",
        workload("app/echo")
    );
    let server = Proxy::start(
        vec![(SocketAddr::new(address(), 0), role)],
        &bundle,
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let bare = App::echo();
    let ask = |tls: &str, endpoint: SocketAddr, meshed: bool| {
        let policy = format!("protocol: http, policy: {{connectTimeoutMs: 1000, tls: {tls}}}}}");
        let bundle = client_bundle("http", "mesh: {vipFallback: false}\n").replace("protocol: http}", &policy);
        let proxy = Proxy::start(
            listener(),
            &bundle,
            &echo_endpoints(&[(endpoint, meshed)]),
            Some(authority.identity("app/client")),
        );
        get(proxy.addresses[0], "/")
    };
    let has_identity =
        |answer: &support::Answer| answer.text().to_ascii_lowercase().contains("x-forwarded-client-cert");
    let (meshed, plain) = (server.addresses[0], bare.address);
    assert!(has_identity(&ask("auto", meshed, true)));
    let answer = ask("auto", plain, false);
    assert_eq!((answer.status(), has_identity(&answer)), (200, false));
    let answer = ask("disable", meshed, true);
    assert_eq!((answer.status(), has_identity(&answer)), (200, false));
    assert!(
        has_identity(&ask("{mesh: {}}", meshed, false)),
        "whatever is known of the endpoint"
    );
    let answer = ask("{mesh: {}}", plain, false);
    assert_eq!(answer.status(), 503, "no sidecar there");
    assert_eq!(
        ask(
            "{mesh: {subjectAltNames: ['spiffe://cluster.local/ns/app/sa/echo']}}",
            meshed,
            true
        )
        .status(),
        200
    );
    assert_eq!(
        ask(
            "{mesh: {subjectAltNames: ['spiffe://cluster.local/ns/app/sa/other']}}",
            meshed,
            true
        )
        .status(),
        503
    );
    // STRICT answers plaintext with a reset.
    server.configure(&bundle.replace("inbound: {", "inbound: {mtls: STRICT, "));
    assert_eq!(ask("disable", meshed, true).status(), 503);
}
