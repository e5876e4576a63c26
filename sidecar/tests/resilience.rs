//! Endpoints that are late, connections that race, limits that are reached.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::rules::dialling;
use support::{App, Client, Pair, Proxy, address, client_bundle, echo_endpoints, get, virtual_address, wait_for};
use weft_sidecar::shared::Role;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn client_with_policy(policy: &str, endpoints: &[(SocketAddr, bool)]) -> Proxy {
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"));
    let listener = dialling(virtual_address());
    Proxy::start(listener, &bundle, &echo_endpoints(endpoints), None)
}

/// Serves one request on each connection and closes it as soon as the next one arrives, without reading it.
fn racing_app() -> App {
    let served = Arc::new(AtomicUsize::new(0));
    App::new(Arc::new(move |seen, stream| {
        let _ = served.fetch_add(1, Ordering::SeqCst);
        if seen.head.contains("X-Turn: 2") && seen.connection == 1 {
            return false;
        }
        stream.write_all(OK).is_ok()
    }))
}

// spec: BYD-014
#[test]
fn an_idempotent_request_that_a_reused_connection_lost_is_sent_again_once() {
    let app = racing_app();
    let proxy = client_with_policy("{}", &[(app.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/", "X-Turn: 1\r\n").status(), 200);
    assert_eq!(client.get("/", "X-Turn: 2\r\n").status(), 200);
    assert_eq!(app.count(), 3);
    assert_eq!(app.last().connection, 2);
}

// spec: BYD-014
#[test]
fn a_post_that_the_peer_acknowledged_is_not_sent_again() {
    let app = racing_app();
    let proxy = client_with_policy("{}", &[(app.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/", "X-Turn: 1\r\n").status(), 200);
    client.send("POST / HTTP/1.1\r\nHost: echo\r\nX-Turn: 2\r\nContent-Length: 0\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().ends_with("reset reason: connection termination"),
        "{}",
        answer.text()
    );
    assert_eq!(app.count(), 2);
}

// spec: BYD-014
#[test]
fn a_connection_that_the_server_closed_while_idle_is_not_used() {
    let closed = Arc::new(AtomicUsize::new(0));
    let closing = closed.clone();
    let app = App::new(Arc::new(move |_, stream| {
        let _ = stream.write_all(OK);
        let _ = stream.shutdown(std::net::Shutdown::Both);
        closing.fetch_add(1, Ordering::SeqCst);
        false
    }));
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    for request in 1..=20 {
        client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.receive().expect("an answer").status(), 200);
        // A request that meets the end under way may be lost, and a POST is not sent again.
        wait_for("the end of the connection", || closed.load(Ordering::SeqCst) == request);
    }
    assert_eq!(app.count(), 20);
}

// spec: DLV-118, LIFE-030, BYD-010
#[test]
fn a_server_proxy_without_application_is_a_failed_connect() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    // A second pod whose application has closed its port.
    let gone = SocketAddr::new(address(), 1);
    let server = Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Explicit { target: gone, port: 1 })],
        &support::workload("app/echo"),
        "hosts: []",
        Some(pair.authority.identity("app/echo")),
    );
    pair.client.endpoints(&echo_endpoints(&[
        (pair.server.addresses[0], true),
        (server.addresses[0], true),
    ]));
    let mut client = Client::connect(pair.front);
    for _ in 0..30 {
        client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(answer.field("x-weft-undelivered").is_none());
    }
    assert_eq!(app.count(), 30);

    pair.client.endpoints(&echo_endpoints(&[(server.addresses[0], true)]));
    let answer = client.get("/", "");
    assert_eq!(answer.status(), 503);
    assert!(answer.field("x-weft-undelivered").is_none());
    // Plaintext callers are not told.
    let answer = get(server.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(answer.field("x-weft-undelivered").is_none());
}

// spec: DLV-118
#[test]
fn an_application_cannot_speak_for_a_proxy() {
    let app = App::answering(|_| {
        "HTTP/1.1 503 X\r\nx-weft-undelivered: true\r\nx-weft-draining: true\r\nContent-Length: 3\r\n\r\napp".into()
    });
    let pair = Pair::start("http", app.address);
    let answer = get(pair.front, "/");
    assert_eq!((answer.status(), answer.text()), (503, "app".to_owned()));
    assert!(answer.field("x-weft-undelivered").is_none() && answer.field("x-weft-draining").is_none());
    assert_eq!(app.count(), 1);
    let direct = get(pair.server.addresses[0], "/");
    assert!(direct.field("x-weft-undelivered").is_none() && direct.field("x-weft-draining").is_none());
    // Nor can somebody whom the mesh does not know.
    let destination = app.address;
    let known = client_bundle("http", "").replace("port: 80", &format!("port: {}", destination.port()));
    let listener = vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })];
    let outside = Proxy::start(listener, &known, &echo_endpoints(&[]), None);
    let mut client = Client::connect(outside.addresses[0]);
    client.send("GET / HTTP/1.1\r\nHost: who.knows\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status(), answer.text()), (503, "app".to_owned()));
    assert!(answer.field("x-weft-undelivered").is_none() && answer.field("x-weft-draining").is_none());
}

// spec: DLV-113, BYD-011
#[test]
fn a_request_goes_on_to_three_further_endpoints_whatever_the_retry_policy() {
    let app = App::echo();
    let bundle = format!(
        "mesh: {{vipFallback: false, retry: {{attempts: 0, on: []}}}}\n{}",
        client_bundle("http", "")
    );
    let listener = dialling(virtual_address());
    let proxy = Proxy::start(listener, &bundle, &echo_endpoints(&[]), None);
    let mut all = vec![(app.address, false)];
    all.extend((0..3).map(|_| (SocketAddr::new(address(), 1), false)));
    let mut client = Client::connect(proxy.addresses[0]);
    for n in 0..24 {
        // A newer list forgets what failed; whose turn it is, chance decides.
        all.rotate_left(1);
        proxy.endpoints(&echo_endpoints(&all));
        client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.receive().expect("an answer").status(), 200, "{n}");
    }
    assert_eq!(app.count(), 24);
}

// spec: BYD-011
#[test]
fn a_request_goes_on_from_an_address_where_somebody_else_is() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let server = |identity| {
        let (target, port) = (app.address, app.address.port());
        Proxy::start(
            vec![(SocketAddr::new(address(), 0), Role::Explicit { target, port })],
            &support::workload("app/other"),
            "hosts: []",
            Some(identity),
        )
    };
    // Another workload of the mesh, one of another mesh, and an application that knows no TLS.
    let other = server(pair.authority.identity("app/other"));
    let stranger = server(support::Authority::new().identity("app/echo"));
    let plain = App::new(Arc::new(|_, _| false));
    let wrong = [other.addresses[0], stranger.addresses[0], plain.address];
    for wrong in wrong {
        let before = app.count();
        let mut client = Client::connect(pair.front);
        for n in 0..10 {
            // A newer list forgets what failed.
            let mut all = [(pair.server.addresses[0], true), (wrong, true)];
            all.rotate_left(n % 2);
            pair.client.endpoints(&echo_endpoints(&all[..1]));
            pair.client.endpoints(&echo_endpoints(&all));
            client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.receive().expect("an answer").status(), 200, "{n}");
        }
        assert_eq!(app.count(), before + 10);
    }
}

// spec: DLV-119
#[test]
fn idle_connections_to_a_server_that_leaves_are_closed() {
    let app = App::new(Arc::new(|seen, stream| {
        if seen.head.contains("/slow") {
            support::pause(std::time::Duration::from_millis(300));
        }
        stream.write_all(OK).is_ok()
    }));
    let pair = Pair::start("http", app.address);
    let front = pair.front;
    let callers: Vec<_> = (0..3)
        .map(|_| std::thread::spawn(move || get(front, "/slow").status()))
        .collect();
    for caller in callers {
        assert_eq!(caller.join().expect("an answer"), 200);
    }
    let open = || pair.server.shared.connections.load(Ordering::SeqCst);
    assert_eq!(open(), 3, "each had one of its own");
    pair.server.drain(weft_sidecar::shared::DrainPhase::Draining);
    assert_eq!(get(front, "/").status(), 200);
    wait_for("the end of all of them", || open() == 0);
}

// spec: BYD-013
#[test]
fn whoever_answers_at_the_cluster_address_must_be_of_the_service() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let server = pair.server.addresses[0];
    // The known endpoint is gone, and had a sidecar; the server's proxy is where the cluster address leads.
    let bundle = client_bundle("http", "")
        .replace("10.1.0.1", &server.ip().to_string())
        .replace("port: 80", &format!("port: {}", server.port()));
    let gone = SocketAddr::new(address(), 1);
    let ask = || {
        let proxy = Proxy::start(
            dialling(server),
            &bundle,
            &echo_endpoints(&[(gone, true)]),
            Some(pair.authority.identity("app/client")),
        );
        get(proxy.addresses[0], "/")
    };
    assert_eq!(ask().status(), 200);
    let shown = app.last().field("x-forwarded-client-cert");
    assert!(shown.is_some_and(|shown| shown.contains("app/sa/client")), "mesh mTLS");
    let other = pair.authority.identity("app/other");
    pair.server.shared.identity.store(Some(Arc::new(other)));
    let answer = ask();
    assert_eq!((answer.status(), app.count()), (503, 1), "{}", answer.text());
}

// spec: DLV-115, BYD-013
#[test]
fn the_cluster_address_finds_what_no_list_names() {
    let app = App::echo();
    let bundle = client_bundle("http", "")
        .replace("10.1.0.1", &app.address.ip().to_string())
        .replace("port: 80", &format!("port: {}", app.address.port()));
    let listener = (
        SocketAddr::new(address(), 0),
        Role::Fixed {
            destination: app.address,
        },
    );
    let gone = SocketAddr::new(address(), 1);
    let proxy = Proxy::start(vec![listener], &bundle, &echo_endpoints(&[(gone, false)]), None);
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 200, "{answer:?}");
    proxy.configure(&format!("mesh: {{vipFallback: false}}\n{bundle}"));
    assert_eq!(get(proxy.addresses[0], "/").status(), 503);
}

// spec: DR-091, DR-095, DR-096, DR-097, DR-099
#[test]
fn an_endpoint_that_keeps_failing_is_ejected() {
    let bad = App::answering(|_| "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into());
    let good = App::echo();
    let policy = "{loadBalancer: roundRobin, outlier: {consecutive5xx: 3, maxEjectionPercent: 50}}";
    let proxy = client_with_policy(policy, &[(bad.address, false), (good.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..40 {
        client.get("/", "");
    }
    assert_eq!(bad.count(), 3);
    assert_eq!(good.count(), 37);

    // With the default of 10 percent one of two endpoints is never ejected.
    let bad = App::answering(|_| "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into());
    let policy = "{loadBalancer: roundRobin, outlier: {consecutive5xx: 3}}";
    let proxy = client_with_policy(policy, &[(bad.address, false), (good.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..40 {
        client.get("/", "");
    }
    assert_eq!(bad.count(), 20);
}

// spec: DR-091
#[test]
fn an_endpoint_that_gives_no_answer_is_ejected_too() {
    let policy = "{loadBalancer: roundRobin, outlier: {consecutive5xx: 3, maxEjectionPercent: 50}}";
    let closing = App::new(Arc::new(|_, _| false));
    let silent = App::new(Arc::new(|_, stream| {
        // Until the proxy has given up.
        let _ = std::io::Read::read(stream, &mut [0]);
        false
    }));
    for (bad, tries) in [(closing, ""), (silent, ", perTryTimeoutMs: 100")] {
        let good = App::echo();
        let bundle = client_bundle("http", "")
            .replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"))
            + &format!("mesh: {{retry: {{attempts: 0{tries}}}}}\n");
        let both = echo_endpoints(&[(bad.address, false), (good.address, false)]);
        let proxy = Proxy::start(dialling(virtual_address()), &bundle, &both, None);
        let mut client = Client::connect(proxy.addresses[0]);
        for _ in 0..20 {
            client.get("/", "");
        }
        assert_eq!((bad.count(), good.count()), (3, 17), "{tries}");
    }
}

// spec: DR-036, DR-038
#[test]
fn round_robin_takes_turns() {
    let apps: Vec<App> = (0..3).map(|_| App::echo()).collect();
    let endpoints: Vec<_> = apps.iter().map(|app| (app.address, false)).collect();
    let proxy = client_with_policy("{loadBalancer: roundRobin}", &endpoints);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..30 {
        client.get("/", "");
    }
    assert!(apps.iter().all(|app| app.count() == 10));
}

// spec: DR-080, DR-081
#[test]
fn requests_beyond_the_limit_get_503_at_once() {
    let app = App::new(Arc::new(|seen, stream| {
        if seen.head.contains("/slow") {
            let mut byte = [0];
            let _ = std::io::Read::read(stream, &mut byte);
            return false;
        }
        stream.write_all(OK).is_ok()
    }));
    let proxy = client_with_policy("{maxRequests: 1}", &[(app.address, false)]);
    let mut slow = Client::connect(proxy.addresses[0]);
    slow.send("GET /slow HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the first request", || app.count() == 1);
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().ends_with("reset reason: overflow"), "{}", answer.text());
    assert_eq!(answer.field("x-envoy-overloaded").as_deref(), Some("true"));
    proxy.wait_for_flags("UO");
    drop(slow);
    wait_for("the place to be free", || get(proxy.addresses[0], "/").status() == 200);
}

// spec: DR-080
#[test]
fn a_request_is_active_until_its_answer_has_ended() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let app = App::new(Arc::new(move |seen, stream| {
        if !seen.head.contains("/long") {
            return stream.write_all(OK).is_ok();
        }
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbeg";
        let begun = stream.write_all(head).is_ok();
        let _ = wait.lock().expect("no panic").recv();
        begun && stream.write_all(b"un").is_ok()
    }));
    let proxy = client_with_policy("{maxRequests: 1}", &[(app.address, false)]);
    let mut long = Client::connect(proxy.addresses[0]);
    long.send("GET /long HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the beginning", || long.buffered().contains("beg") || !long.read_more());
    assert_eq!(get(proxy.addresses[0], "/").status(), 503);
    release.send(()).expect("the application waits");
    assert_eq!(long.receive().expect("an answer").text(), "begun");
    wait_for("the place to be free", || get(proxy.addresses[0], "/").status() == 200);
}

// spec: DR-074
#[test]
fn requests_wait_for_one_of_the_allowed_connections() {
    let app = App::echo();
    let proxy = client_with_policy("{maxConnections: 1}", &[(app.address, false)]);
    let front = proxy.addresses[0];
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || get(front, "/").status()))
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("an answer"), 200);
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 1);
}

// spec: DR-074, DLV-115
#[test]
fn a_wait_for_a_connection_is_no_fault_of_the_endpoint() {
    let slow = App::new(Arc::new(|_, stream| {
        support::pause(std::time::Duration::from_millis(700));
        stream.write_all(OK).is_ok()
    }));
    // What answers at the cluster's address: nobody is to be sent there.
    let other = App::echo();
    let bundle = client_bundle("http", "")
        .replace("protocol: http}", "protocol: http, policy: {maxConnections: 1}}")
        .replace("10.1.0.1", &other.address.ip().to_string())
        .replace("port: 80", &format!("port: {}", other.address.port()));
    let destination = other.address;
    let listener = (SocketAddr::new(address(), 0), Role::Fixed { destination });
    let endpoints = echo_endpoints(&[(slow.address, false)]);
    let proxy = Proxy::start(vec![listener], &bundle, &endpoints, None);
    let front = proxy.addresses[0];
    // The last of them waits for far more than the second after which a silent connect is joined by another.
    let callers: Vec<_> = (0..5)
        .map(|_| std::thread::spawn(move || get(front, "/").status()))
        .collect();
    for caller in callers {
        assert_eq!(caller.join().expect("an answer"), 200);
    }
    assert_eq!(other.count(), 0);
    assert_eq!(slow.connections.load(Ordering::SeqCst), 1);
}

// spec: DR-082
#[test]
fn a_connection_ends_after_its_number_of_requests() {
    let app = App::echo();
    let proxy = client_with_policy("{maxRequestsPerConnection: 2}", &[(app.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..6 {
        client.get("/", "");
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 3);
}

// spec: SM-099
#[test]
fn connections_to_the_endpoints_that_stay_are_used_again() {
    let (stays, other) = (App::echo(), App::echo());
    let proxy = client_with_policy("{loadBalancer: roundRobin}", &[(stays.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    let mut calls = |count: usize| (0..count).for_each(|_| assert_eq!(client.get("/", "").status(), 200));
    calls(2);
    proxy.endpoints(&echo_endpoints(&[(stays.address, false), (other.address, false)]));
    calls(4);
    proxy.endpoints(&echo_endpoints(&[(stays.address, false)]));
    calls(4);
    assert_eq!((stays.count(), other.count()), (8, 2));
    assert_eq!(stays.connections.load(Ordering::SeqCst), 1);
}

// spec: SM-099, LIFE-040, LIFE-046
#[test]
fn a_removed_endpoint_finishes_what_it_began() {
    let (gate, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let old = App::new(Arc::new(move |_, stream| {
        let _ = wait.lock().expect("no panic").recv();
        stream.write_all(OK).is_ok()
    }));
    let new = App::echo();
    let proxy = client_with_policy("{}", &[(old.address, false)]);
    let mut slow = Client::connect(proxy.addresses[0]);
    slow.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the request", || old.count() == 1);
    proxy.endpoints(&echo_endpoints(&[(new.address, false)]));
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    assert_eq!(new.count(), 1);
    gate.send(()).expect("the application waits");
    assert_eq!(slow.receive().expect("an answer").status(), 200);
}

// spec: SM-050, VS-095
#[test]
fn a_body_that_breaks_off_breaks_off_for_the_client_too() {
    let app = App::new(Arc::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789");
        false
    }));
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert!(client.receive().is_none(), "90 bytes are missing");
    assert_eq!(app.count(), 1);
}

// spec: DLV-160
#[test]
fn a_connect_that_nobody_answers_is_joined_by_another() {
    use std::net::TcpListener;
    // A listener whose queue is full answers no SYN.
    let silent = TcpListener::bind((address(), 0)).expect("listener");
    let target = silent.local_addr().expect("address");
    nix::sys::socket::listen(&silent, nix::sys::socket::Backlog::new(0).expect("backlog")).expect("listening");
    let mut fillers = Vec::new();
    let limit = std::time::Duration::from_millis(300);
    while let Ok(filler) = std::net::TcpStream::connect_timeout(&target, limit) {
        fillers.push(filler);
    }
    let app = App::echo();
    let proxy = client_with_policy("{loadBalancer: roundRobin}", &[(target, false), (app.address, false)]);
    let begin = std::time::Instant::now();
    for _ in 0..4 {
        assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    }
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(app.count(), 4);
}

// spec: DLV-115, DLV-160, BYD-011, BYD-013
#[test]
fn the_cluster_address_is_found_though_all_endpoints_are_silent() {
    use std::net::TcpListener;
    // Listeners whose queues are full answer no SYN, as addresses of pods that are gone do not.
    let mut fillers = Vec::new();
    let silent: Vec<(TcpListener, SocketAddr)> = (0..5)
        .map(|_| {
            let listener = TcpListener::bind((address(), 0)).expect("listener");
            let target = listener.local_addr().expect("address");
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("backlog"))
                .expect("listening");
            let limit = std::time::Duration::from_millis(300);
            while let Ok(filler) = TcpStream::connect_timeout(&target, limit) {
                fillers.push(filler);
            }
            (listener, target)
        })
        .collect();
    let app = App::echo();
    let bundle = client_bundle("http", "")
        .replace("10.1.0.1", &app.address.ip().to_string())
        .replace("port: 80", &format!("port: {}", app.address.port()));
    let listener = (
        SocketAddr::new(address(), 0),
        Role::Fixed {
            destination: app.address,
        },
    );
    let endpoints: Vec<_> = silent.iter().map(|(_, target)| (*target, false)).collect();
    let proxy = Proxy::start(vec![listener], &bundle, &echo_endpoints(&endpoints), None);
    // Together they find out sooner than the connect timeout of ten seconds.
    let begin = std::time::Instant::now();
    let front = proxy.addresses[0];
    let callers: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || get(front, "/").status()))
        .collect();
    for caller in callers {
        assert_eq!(caller.join().expect("an answer"), 200);
    }
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(app.count(), 8);
}

// spec: BYD-010, BYD-012, DLV-119, LIFE-022, LIFE-035
#[test]
fn a_server_that_drains_and_ends_costs_no_request() {
    use std::sync::atomic::AtomicBool;
    use weft_sidecar::shared::DrainPhase;
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let second = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Explicit {
                target: app.address,
                port: app.address.port(),
            },
        )],
        &support::workload("app/echo"),
        "hosts: []",
        Some(pair.authority.identity("app/echo")),
    );
    pair.client.endpoints(&echo_endpoints(&[
        (pair.server.addresses[0], true),
        (second.addresses[0], true),
    ]));
    let front = pair.front;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(front);
                while !stop.load(Ordering::SeqCst) {
                    client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
                    let answer = client.receive().expect("an answer");
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let progress = |count: usize| {
        let begin = sent.load(Ordering::SeqCst);
        wait_for("requests", || sent.load(Ordering::SeqCst) >= begin + count);
    };
    progress(100);
    second.drain(DrainPhase::Draining);
    progress(100);
    drop(second);
    progress(100);
    stop.store(true, Ordering::SeqCst);
    callers
        .into_iter()
        .for_each(|caller| caller.join().expect("no failed request"));
    assert_eq!(app.count(), sent.load(Ordering::SeqCst), "none was executed twice");
}

// spec: LIFE-023, BYD-010
#[test]
fn a_server_that_ends_answers_what_it_accepted() {
    use weft_sidecar::shared::DrainPhase;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let app = App::answering(move |seen| {
        if seen.head.starts_with("GET /held") {
            // Until the test says so, or is gone.
            let _ = held.lock().expect("one request waits").recv();
        }
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()
    });
    let pair = Pair::start("http", app.address);
    let server = pair.server.addresses[0];
    let mut idle = Client::connect(server);
    assert_eq!(idle.get("/", "").status(), 200);
    let mut begun = Client::connect(server);
    begun.send("GET /begun HTTP/1.1\r\nHost: echo\r\n");
    let mut waiting = Client::connect(server);
    waiting.send("GET /held HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the request at the application", || app.count() == 2);

    pair.server.drain(DrainPhase::Closing);
    wait_for("nobody is accepted", || TcpStream::connect(server).is_err());
    assert!(idle.is_closed(), "an idle connection ends");
    begun.send("\r\n");
    assert_eq!(begun.receive().expect("an answer").status(), 200);
    release.send(()).expect("the application waits");
    assert_eq!(waiting.receive().expect("an answer").status(), 200);
}

// spec: VS-122, DR-083
#[test]
fn a_retry_over_the_limit_gives_back_the_first_answer() {
    let app = App::answering(|_| "HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\napp".into());
    let policy = "{maxRetries: 0}";
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"));
    let bundle = format!("mesh: {{retry: {{attempts: 2, on: ['503']}}}}\n{bundle}");
    let listener = dialling(virtual_address());
    let proxy = Proxy::start(listener, &bundle, &echo_endpoints(&[(app.address, false)]), None);
    let answer = get(proxy.addresses[0], "/");
    assert_eq!((answer.status(), answer.text()), (503, "app".to_owned()));
    assert_eq!(app.count(), 1);
    proxy.wait_for_flags("UO");
    // The same where there is no answer to give back.
    let lost = App::new(Arc::new(|_, _| false));
    let bundle = bundle.replace("'503'", "reset");
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &bundle,
        &echo_endpoints(&[(lost.address, false)]),
        None,
    );
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().ends_with("reset reason: connection termination"),
        "{}",
        answer.text()
    );
    assert_eq!(lost.count(), 1);
    proxy.wait_for_flags("UC,UO");
}

// spec: DR-099
#[test]
fn with_too_few_healthy_endpoints_all_are_used_where_a_rule_says_so() {
    let bad = App::answering(|_| "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into());
    let outlier = "consecutive5xx: 1, maxEjectionPercent: 100";
    for (more, calls) in [("", 1), (", minHealthPercent: 50", 10)] {
        let proxy = client_with_policy(&format!("{{outlier: {{{outlier}{more}}}}}"), &[(bad.address, false)]);
        let before = bad.count();
        let mut client = Client::connect(proxy.addresses[0]);
        assert_eq!(client.get("/", "").status(), 500);
        for _ in 0..9 {
            let answer = client.get("/", "");
            let status = if more.is_empty() { 503 } else { 500 };
            assert_eq!(answer.status(), status, "{more}");
            assert_eq!(answer.text() == "no healthy upstream", more.is_empty());
        }
        assert_eq!(bad.count() - before, calls, "{more}");
    }
}
