//! Configuration that changes and changes: no request fails, no connection is cut, nothing grows.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::process::{Process, Volumes};
use support::rules::dialling;
use support::{
    App, Authority, Client, LIMIT, Pair, Proxy, address, client_bundle, echo_endpoints, get, virtual_address, wait_for,
    workload,
};
use weft_bundle::pack::HostInput;

/// An application that answers requests, and sends bytes back after an upgrade.
fn app() -> App {
    App::new(Arc::new(|seen, stream| {
        if seen.field("upgrade").is_none() {
            return stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .is_ok();
        }
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        if stream.write_all(head).is_err() {
            return false;
        }
        echo(stream);
        false
    }))
}

fn echo(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn echo_app() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(&mut stream));
        }
    });
    bound
}

fn bounce(stream: &mut TcpStream) {
    stream.write_all(b"ping").expect("sent");
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).expect("the connection goes on");
    assert_eq!(&buffer, b"ping");
}

/// A configuration of a serving pod; each number gives another one.
fn bundle(number: usize, http: u16, tcp: u16) -> String {
    format!(
        "{}mesh: {{connectTimeoutMs: {}}}\ninbound:\n  ports: [{{port: {http}, protocol: http}}, {{port: {tcp}, protocol: \
         tcp}}]\nhosts:\n- host: s.app.svc.cluster.local\n  name: s\n  namespace: app\n  domains: \
         [s, s{number}]\n  addresses: [10.3.0.1]\n  ports: [{{port: 80, name: main, protocol: http}}]\n",
        workload("app/echo"),
        5000 + number
    )
}

/// A host without endpoints: one that no endpoints name at all would hold the configuration back for a while.
fn nobody(name: &str) -> HostInput {
    HostInput {
        host: format!("{name}.app.svc.cluster.local"),
        accounts: Vec::new(),
        endpoints: Vec::new(),
    }
}

struct Server {
    volumes: Volumes,
    proxy: Process,
    http: SocketAddr,
    tcp: SocketAddr,
    ports: (u16, u16),
}

fn server(http_app: SocketAddr, tcp_app: SocketAddr) -> Server {
    let volumes = Volumes::new(&Authority::new(), "app/echo");
    let address = address();
    let (http, tcp) = (
        SocketAddr::new(address, http_app.port()),
        SocketAddr::new(address, tcp_app.port()),
    );
    volumes.configure(&bundle(0, http.port(), tcp.port()));
    volumes.endpoints_of(&[nobody("s")]);
    let flags = [format!("{http}={http_app}"), format!("{tcp}={tcp_app}")];
    let proxy = Process::start(
        &volumes,
        address,
        &["--inbound", &flags[0], "--inbound", &flags[1]],
        &[],
    )
    .ready();
    Server {
        volumes,
        proxy,
        http,
        tcp,
        ports: (http_app.port(), tcp_app.port()),
    }
}

/// Requests over one HTTP/2 connection until told to stop, and one stream that stays open all the time.
async fn http2_load(front: SocketAddr, stop: Arc<AtomicBool>, sent: Arc<AtomicUsize>) {
    let stream = tokio::net::TcpStream::connect(front).await.expect("the proxy listens");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request = || http::Request::post("http://echo/").body(()).expect("a request");
    client = client.ready().await.expect("open");
    let (kept, mut body) = client.send_request(request(), false).expect("sent");
    while !stop.load(Ordering::SeqCst) {
        client = client.ready().await.expect("open");
        let (response, _) = client.send_request(request(), true).expect("sent");
        assert_eq!(response.await.expect("an answer").status(), 200);
        body.reserve_capacity(1);
        body.send_data(bytes::Bytes::from_static(b"x"), false)
            .expect("the stream is open");
        sent.fetch_add(1, Ordering::SeqCst);
    }
    body.send_data(bytes::Bytes::new(), true).expect("the stream is open");
    assert_eq!(kept.await.expect("an answer").status(), 200);
    drop(client);
    connection.abort();
}

// spec: LIFE-041, LIFE-046, LIFE-051, BYD-001, BYD-003
#[test]
fn no_request_fails_and_no_connection_ends_in_100_activations_under_load() {
    let http_app = app();
    let server = server(http_app.address, echo_app());
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let mut threads: Vec<std::thread::JoinHandle<()>> = (0..3)
        .map(|_| {
            let (stop, sent, front) = (stop.clone(), sent.clone(), server.http);
            std::thread::spawn(move || {
                let mut client = Client::connect(front);
                while !stop.load(Ordering::SeqCst) {
                    client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
                    assert_eq!(client.receive().expect("an answer").status(), 200);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let h2_sent = Arc::new(AtomicUsize::new(0));
    let (h2_stop, h2_count, front) = (stop.clone(), h2_sent.clone(), server.http);
    threads.push(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(http2_load(front, h2_stop, h2_count));
    }));
    let mut sessions = vec![TcpStream::connect(server.tcp).expect("the proxy listens")];
    let mut upgrade = Client::connect(server.http);
    assert_eq!(
        upgrade
            .get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
            .status(),
        101
    );
    sessions.push(upgrade.stream.try_clone().expect("clone"));
    sessions
        .iter()
        .for_each(|stream| stream.set_read_timeout(Some(LIMIT)).expect("option"));
    for number in 1..=100 {
        let revision = server
            .volumes
            .configure(&bundle(number, server.ports.0, server.ports.1));
        server.proxy.wait_for_config(&revision);
        sessions.iter_mut().for_each(bounce);
    }
    let (before, h2_before) = (sent.load(Ordering::SeqCst), h2_sent.load(Ordering::SeqCst));
    wait_for("requests after the last change", || {
        sent.load(Ordering::SeqCst) > before && h2_sent.load(Ordering::SeqCst) > h2_before
    });
    stop.store(true, Ordering::SeqCst);
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("no failed request"));
    sessions.iter_mut().for_each(bounce);
    let metrics = server.proxy.get(15090, "/stats/prometheus").text();
    assert!(metrics.contains("weft_config_activated_total 101\n"), "{metrics}");
    assert!(
        !metrics.contains("response_code=\"5") && !metrics.contains("response_code=\"0"),
        "{metrics}"
    );
}

// spec: BYD-003, BYD-001, LIFE-052, LIFE-041
#[test]
fn a_thousand_changes_of_all_kinds_leave_nothing_behind() {
    const CHANGES: usize = 1000;
    const SESSIONS: usize = 20;
    let http_app = app();
    let server = server(http_app.address, echo_app());
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut upgrade = Client::connect(server.http);
        let asked = upgrade.get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
        assert_eq!(asked.status(), 101);
        sessions.push(upgrade.stream);
        let opaque = TcpStream::connect(server.tcp).expect("the proxy listens");
        opaque.set_read_timeout(Some(LIMIT)).expect("option");
        sessions.push(opaque);
    }
    let authority = Authority::new();
    let mut client = Client::connect(server.http);
    let mut change = |number: usize| {
        if number.is_multiple_of(10) {
            server.volumes.identify(&authority, "app/echo");
        }
        if number.is_multiple_of(5) {
            let hosts = [nobody("s"), nobody(&format!("t{number}"))];
            let revision = server.volumes.endpoints_of(&hosts);
            server.proxy.wait_for_endpoints(&revision);
        }
        let revision = server
            .volumes
            .configure(&bundle(number, server.ports.0, server.ports.1));
        server.proxy.wait_for_config(&revision);
        // The workers take it up, and let go of the one before.
        assert_eq!(client.get("/", "").status(), 200);
        bounce(&mut sessions[number % (2 * SESSIONS)]);
    };
    // What is allocated once is allocated by then.
    (1..=CHANGES / 5).for_each(&mut change);
    let state = || {
        let proxy = &server.proxy;
        (proxy.descriptors(), proxy.status("Threads"), proxy.status("RssAnon"))
    };
    // A while after a change, what it freed is given back.
    support::pause(std::time::Duration::from_secs(7));
    let (descriptors, threads, memory) = state();
    (CHANGES / 5 + 1..=CHANGES).for_each(&mut change);
    sessions.iter_mut().for_each(bounce);
    // What asked for the state has its connections closed a moment later.
    wait_for("as many descriptors as before", || state().0 <= descriptors);
    // A few KiB that each change left would be as much again; the allocator's own coming and going is less.
    wait_for("no more memory than before", || state().2 < memory + memory / 10 + 1024);
    let (_, threads_now, memory_now) = state();
    println!(
        "{memory} KiB after {}, {memory_now} KiB after {CHANGES} changes",
        CHANGES / 5
    );
    assert!(threads_now <= threads, "{threads_now} threads, {threads} before");
    let metrics = server.proxy.get(15090, "/stats/prometheus").text();
    assert!(
        metrics.contains(&format!("weft_config_activated_total {}\n", CHANGES + 1)),
        "{metrics}"
    );
}

// spec: LIFE-042
#[test]
fn a_large_configuration_costs_the_workers_nothing() {
    const ROUNDS: u32 = 4;
    const HOSTS: usize = 5500;
    let app = app();
    let Server {
        volumes,
        proxy,
        http,
        tcp: _,
        ports,
    } = server(app.address, echo_app());
    let large = |number: usize| {
        let hosts = (0..HOSTS).map(|n| {
            format!(
                "- host: h{n}.app.svc.cluster.local\n  name: h{n}\n  namespace: app\n  domains: [h{n}, h{n}.app, h{n}.app.svc, \
                 h{n}.app.svc.cluster.local]\n  addresses: [10.4.{}.{}]\n  ports: [{{port: 80, name: main, protocol: http}}]\n",
                n / 250,
                n % 250
            )
        });
        bundle(number, ports.0, ports.1) + &hosts.collect::<String>()
    };
    assert!(large(0).len() > 1 << 20, "{}", large(0).len());
    // Endpoints name all hosts, else the configuration would be held back for a while.
    let all: Vec<HostInput> = ["s".to_owned()]
        .into_iter()
        .chain((0..HOSTS).map(|n| format!("h{n}")))
        .map(|h| nobody(&h))
        .collect();
    let revision = volumes.endpoints_of(&all);
    proxy.wait_for_endpoints(&revision);
    let mut client = Client::connect(http);
    let mut round = |number: usize| {
        let revision = volumes.configure(&large(number));
        proxy.wait_for_config(&revision);
        // The workers take it up, and let go of the one before.
        assert_eq!(client.get("/", "").status(), 200);
    };
    round(1);
    let begun = (proxy.cpu_of("worker-"), proxy.cpu_of("reload"));
    (2..).take(ROUNDS as usize).for_each(&mut round);
    let workers = (proxy.cpu_of("worker-") - begun.0) / ROUNDS;
    let reload = (proxy.cpu_of("reload") - begun.1) / ROUNDS;
    println!("1 MiB in force: {reload:?} in the background, {workers:?} in the workers, a request included");
    // Whatever the build and the machine: a worker's part is that of a request, not that of a configuration.
    assert!(
        workers * 10 < reload,
        "{workers:?} of the workers, {reload:?} in the background"
    );
    assert!(reload < LIMIT, "{reload:?}");
}

fn client_proxy(bundle: &str, endpoints: &[(SocketAddr, bool)]) -> Proxy {
    let listener = dialling(virtual_address());
    Proxy::start(listener, bundle, &echo_endpoints(endpoints), None)
}

// spec: LIFE-052, BYD-001
#[test]
fn a_replaced_configuration_is_freed_while_its_connections_go_on() {
    let app = echo_app();
    let proxy = client_proxy(&client_bundle("tcp", ""), &[(app, false)]);
    let mut session = TcpStream::connect(proxy.addresses[0]).expect("the proxy listens");
    session.set_read_timeout(Some(LIMIT)).expect("option");
    bounce(&mut session);
    let old = Arc::downgrade(&proxy.shared.current.load_full().expect("configured").config);
    proxy.configure(&client_bundle("tcp", "").replace("echo.app,", "echo.app, echo.x,"));
    // The next use of a destination takes it from the new configuration.
    bounce(&mut TcpStream::connect(proxy.addresses[0]).expect("the proxy listens"));
    wait_for("the old configuration to be freed", || old.upgrade().is_none());
    bounce(&mut session);
}

// spec: LIFE-040, VS-179, VS-187
#[test]
fn a_request_keeps_its_configuration_to_its_last_retry() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (tell, wait) = (std::sync::Mutex::new(tell), std::sync::Mutex::new(wait));
    let app = App::new(Arc::new(move |seen, stream| {
        if seen.head.contains("/held") && seen.field("x-envoy-attempt-count").as_deref() == Some("1") {
            let _ = tell.lock().expect("no panic").send(());
            let _ = wait.lock().expect("no panic").recv();
            return stream
                .write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                .is_ok();
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .is_ok()
    }));
    let with_retry = |attempts: usize| {
        format!(
            "mesh: {{retry: {{attempts: {attempts}, on: ['503']}}}}\n{}",
            client_bundle("http", "")
        )
    };
    let proxy = client_proxy(&with_retry(2), &[(app.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("GET /held HTTP/1.1\r\nHost: echo\r\n\r\n");
    told.recv().expect("the first try");
    // Without retries, and without endpoint: neither concerns a request that has begun... the list of endpoints does.
    proxy.configure(&with_retry(0));
    go.send(()).expect("the application waits");
    assert_eq!(
        client.receive().map(|answer| answer.status()),
        Some(200),
        "the retry of the old configuration"
    );
    client.send("GET /held HTTP/1.1\r\nHost: echo\r\n\r\n");
    told.recv().expect("the first try");
    go.send(()).expect("the application waits");
    assert_eq!(
        client.receive().map(|answer| answer.status()),
        Some(503),
        "none in the new one"
    );
}

// spec: LIFE-043, LIFE-044, BYD-001
#[test]
fn pools_and_ejections_survive_a_change_beside_them() {
    let bad = App::answering(|_| "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into());
    let good = App::echo();
    let policy = "{loadBalancer: roundRobin, outlier: {consecutive5xx: 2, maxEjectionPercent: 50}}";
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"));
    let proxy = client_proxy(&bundle, &[(bad.address, false), (good.address, false)]);
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..10 {
        client.get("/", "");
    }
    assert_eq!(bad.count(), 2);
    for number in 0..10 {
        proxy.configure(&bundle.replace("echo.app,", &format!("echo.app, echo.x{number},")));
        assert_eq!(client.get("/", "").status(), 200);
    }
    assert_eq!(bad.count(), 2, "it is still ejected");
    assert_eq!(
        good.connections.load(Ordering::SeqCst),
        1,
        "and its neighbour's connection still used"
    );
}

// spec: LIFE-047, BYD-002, BYD-001, AUTHN-008
#[test]
fn a_new_strict_holds_for_the_next_request_and_for_open_streams() {
    let app = app();
    let port = app.address.port();
    let pair = Pair::start("http", app.address);
    let plain = pair.server.addresses[0];
    let mut client = Client::connect(plain);
    assert_eq!(client.get("/", "").status(), 200);
    let mut upgraded = Client::connect(plain);
    assert_eq!(
        upgraded
            .get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
            .status(),
        101
    );
    bounce(&mut upgraded.stream);
    let mut meshed = Client::connect(pair.front);
    assert_eq!(
        meshed
            .get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
            .status(),
        101
    );
    pair.server.configure(&format!(
        "{}inbound: {{mtls: STRICT, ports: [{{port: {port}, protocol: http}}]}}\n",
        workload("app/echo")
    ));
    assert_eq!(client.get("/", "").status(), 403);
    assert!(client.is_closed());
    assert!(upgraded.is_closed(), "an open stream in clear ends");
    bounce(&mut meshed.stream);
    assert_eq!(get(pair.front, "/").status(), 200);
}

// spec: LIFE-048, ID-111
#[test]
fn a_new_certificate_is_shown_to_new_peers_and_cuts_nobody() {
    let app = app();
    let pair = Pair::start("http", app.address);
    let mut meshed = Client::connect(pair.front);
    assert_eq!(
        meshed
            .get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
            .status(),
        101
    );
    let mut client = Client::connect(pair.front);
    assert_eq!(client.get("/", "").status(), 200);
    let connections = app.connections.load(Ordering::SeqCst);
    pair.server
        .shared
        .identity
        .store(Some(Arc::new(pair.authority.identity("app/echo"))));
    pair.client
        .shared
        .identity
        .store(Some(Arc::new(pair.authority.identity("app/client"))));
    assert_eq!(client.get("/", "").status(), 200);
    bounce(&mut meshed.stream);
    assert_eq!(
        app.connections.load(Ordering::SeqCst),
        connections,
        "the connection was used again"
    );
}
