//! HTTP/2 and gRPC, and the translation between versions.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use support::grpc::{self, Got};
use support::rules::dialling;
use support::{
    App, Client, Pair, Proxy, address, client_bundle, echo_endpoints, run, serving, virtual_address, wait_for, workload,
};
use weft_sidecar::shared::{DrainPhase, Role};

/// What a gRPC application does with a stream.
#[derive(Clone)]
enum Answer {
    /// One message and trailers with this status.
    Message(&'static str),
    /// The status in the head alone, as long as fewer than so many calls were made; then a message.
    HeadOnly(&'static str, usize),
    /// Refused by reset, as often; then a message.
    Refuse(usize),
}

/// A gRPC application; counts its calls.
fn grpc_app(answer: Answer) -> (SocketAddr, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let bound = serving(address(), move |stream| {
        let (answer, counter) = (answer.clone(), counter.clone());
        async move {
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(serve(request, respond, answer.clone(), counter.clone()));
            }
        }
    });
    (bound, calls)
}

async fn serve(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    answer: Answer,
    calls: Arc<AtomicUsize>,
) {
    let number = calls.fetch_add(1, Ordering::SeqCst);
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let head = Response::builder().header("content-type", "application/grpc");
    match answer {
        Answer::Refuse(times) if number < times => return respond.send_reset(h2::Reason::REFUSED_STREAM),
        Answer::HeadOnly(status, times) if number < times => {
            let head = head.header("grpc-status", status).body(()).expect("head");
            respond.send_response(head, true).expect("sent");
            return;
        }
        Answer::Message(_) | Answer::HeadOnly(..) | Answer::Refuse(_) => {}
    }
    let status = if let Answer::Message(status) = answer {
        status
    } else {
        "0"
    };
    let mut stream = respond
        .send_response(head.body(()).expect("head"), false)
        .expect("sent");
    stream
        .send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false)
        .expect("sent");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().expect("value"));
    stream.send_trailers(trailers).expect("sent");
}

fn call(front: SocketAddr) -> Got {
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    grpc::call(front, &fields, b"\0\0\0\0\x01x")
}

// spec: SM-023, SM-138, ID-073
#[test]
fn grpc_passes_two_proxies_with_its_trailers() {
    let (app, _) = grpc_app(Answer::Message("5"));
    let pair = Pair::start("grpc", app);
    let got = call(pair.front);
    assert_eq!(got.status, 200);
    assert_eq!(got.data, b"\0\0\0\0\x02hi");
    let trailers = got.trailers.expect("trailers");
    assert_eq!(trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"5"[..]));
    assert!(got.head.get("x-envoy-peer-metadata").is_none());
}

// spec: VS-099, VS-100, VS-114
#[test]
fn unavailable_in_the_head_is_retried_by_default_and_other_statuses_are_not() {
    for (status, calls) in [("14", 3), ("1", 3), ("4", 1), ("13", 1)] {
        let (app, count) = grpc_app(Answer::HeadOnly(status, 100));
        let pair = Pair::start("grpc", app);
        let got = call(pair.front);
        assert_eq!(
            got.head.get("grpc-status").map(|v| v.as_bytes()),
            Some(status.as_bytes())
        );
        assert_eq!(count.load(Ordering::SeqCst), calls, "{status}");
    }
    let (app, _) = grpc_app(Answer::HeadOnly("14", 2));
    let pair = Pair::start("grpc", app);
    assert_eq!(call(pair.front).data, b"\0\0\0\0\x02hi");
}

// spec: VS-114
#[test]
fn conditions_of_grpc_name_one_status_each() {
    let words = [
        ("cancelled", "1"),
        ("deadline-exceeded", "4"),
        ("resource-exhausted", "8"),
        ("internal", "13"),
        ("unavailable", "14"),
    ];
    let calls = |word: &str, answer: Answer| {
        let (app, count) = grpc_app(answer);
        let mesh = format!("mesh: {{retry: {{attempts: 2, on: [{word}], backoffMs: 1}}}}\n");
        let proxy = Proxy::start(
            dialling(virtual_address()),
            &client_bundle("grpc", &mesh),
            &echo_endpoints(&[(app, false)]),
            None,
        );
        call(proxy.addresses[0]);
        count.load(Ordering::SeqCst)
    };
    for (word, status) in words {
        for other in ["1", "2", "3", "4", "5", "8", "13", "14"] {
            let wanted = if other == status { 3 } else { 1 };
            assert_eq!(calls(word, Answer::HeadOnly(other, 100)), wanted, "{word} {other}");
        }
        // Behind a message it is too late.
        assert_eq!(calls(word, Answer::Message(status)), 1, "{word}");
    }
}

// spec: VS-109, VS-189, FLAG-006
#[test]
fn a_refused_stream_of_the_application_reaches_the_client_as_unavailable_and_is_retried() {
    let (app, count) = grpc_app(Answer::Refuse(2));
    let pair = Pair::start("grpc", app);
    assert_eq!(call(pair.front).data, b"\0\0\0\0\x02hi");
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let (app, _) = grpc_app(Answer::Refuse(100));
    let pair = Pair::start("grpc", app);
    let got = call(pair.front);
    assert_eq!(got.status, 200);
    assert_eq!(got.head.get("grpc-status").map(|v| v.as_bytes()), Some(&b"14"[..]));
    let message = got
        .head
        .get("grpc-message")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    assert!(
        message.ends_with("reset reason: remote refused stream reset"),
        "{message}"
    );
}

// spec: FLAG-006
#[test]
fn grpc_callers_get_failures_as_grpc_statuses() {
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("grpc", ""),
        &echo_endpoints(&[]),
        None,
    );
    let got = call(proxy.addresses[0]);
    assert_eq!((got.status, got.data.len()), (200, 0));
    assert_eq!(got.head.get("grpc-status").map(|v| v.as_bytes()), Some(&b"14"[..]));
    assert_eq!(
        got.head.get("grpc-message").map(|v| v.as_bytes()),
        Some(&b"no healthy upstream"[..])
    );
}

// spec: SM-024, SM-023
#[test]
fn an_http2_client_reaches_an_http_1_application_and_the_reverse() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let url = format!("http://{}/p", pair.front);
    let out = run(
        "curl",
        "curl",
        &[
            "-sS",
            "--http2-prior-knowledge",
            "-i",
            "-H",
            "Host: echo",
            "-b",
            "a=1",
            &url,
        ],
    );
    assert!(out.starts_with("HTTP/2 200"), "{out}");
    assert!(out.contains("GET /p HTTP/1.1"), "{out}");
    assert!(
        app.last().head.to_ascii_lowercase().contains("\r\nhost: echo\r\n"),
        "{}",
        app.last().head
    );

    // The port's own version towards an application without sidecar as well.
    let bare = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("http", ""),
        &echo_endpoints(&[(app.address, false)]),
        None,
    );
    let url = format!("http://{}/bare", bare.addresses[0]);
    let out = run(
        "curl",
        "curl",
        &["-sS", "--http2-prior-knowledge", "-i", "-H", "Host: echo", &url],
    );
    assert!(
        out.starts_with("HTTP/2 200") && out.contains("GET /bare HTTP/1.1"),
        "{out}"
    );

    let (app, _) = grpc_app(Answer::Message("0"));
    let pair = Pair::start("http2", app);
    let mut client = Client::connect(pair.front);
    client.send("POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status(), answer.body), (200, b"\0\0\0\0\x02hi".to_vec()));
    assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.head);
}

// spec: SM-135, DR-038
#[test]
fn many_streams_share_a_connection() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let url = format!("http://{}/", pair.front);
    let out = run(
        "h2load",
        "nghttp2-client",
        &[
            "-n",
            "2000",
            "-c",
            "4",
            "-m",
            "20",
            "-H",
            "host: echo",
            "-H",
            ":authority: echo",
            &url,
        ],
    );
    assert!(out.contains("2000 succeeded, 0 failed"), "{out}");
    assert!(out.contains("status codes: 2000 2xx"), "{out}");
}

// spec: LIFE-021, BYD-012, DLV-119
#[test]
fn a_draining_server_says_so_on_every_connection() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    assert_eq!(client.get("/", "").status(), 200);
    pair.server.drain(DrainPhase::Draining);
    let answer = client.get("/", "");
    assert_eq!(answer.status(), 200);
    assert!(
        answer.field("connection").is_none(),
        "never to the application's own calls: {}",
        answer.head
    );
    assert!(answer.field("x-weft-draining").is_none(), "{}", answer.head);
    // The only endpoint is leaving, and is used all the same.
    assert_eq!(client.get("/", "").status(), 200);

    let mut outside = Client::connect(pair.server.addresses[0]);
    let answer = outside.get("/", "");
    assert_eq!(answer.field("connection").as_deref(), Some("close"));
    assert!(
        answer.field("x-weft-draining").is_none(),
        "not to plaintext callers: {}",
        answer.head
    );
    assert!(outside.is_closed());
}

// spec: LIFE-021, BYD-012
#[test]
fn the_applications_own_calls_are_not_told_of_a_drain() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    pair.client.drain(DrainPhase::Draining);
    for _ in 0..2 {
        let answer = client.get("/", "");
        assert_eq!((answer.status(), answer.field("connection")), (200, None));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let pair = Pair::start("http", app.address);
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(pair.front)
            .await
            .expect("the proxy listens");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        for n in 0..5 {
            // A connection that is told to leave takes no further stream a moment later.
            client = client.ready().await.expect("open");
            let request = Request::get("http://echo/").body(()).expect("request");
            let (answer, _) = client.send_request(request, true).expect("sent");
            assert_eq!(answer.await.expect("an answer").status(), 200, "{n}");
            pair.client.drain(DrainPhase::Draining);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(!connection.is_finished());
    });
}

// spec: DR-080
#[test]
fn a_limit_of_requests_counts_streams_too() {
    let app = Holding::start();
    let pair = Pair::start("http2", app.address);
    let limited = "protocol: http2, policy: {maxRequests: 1}}";
    pair.client
        .configure(&client_bundle("http2", "").replace("protocol: http2}", limited));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(pair.front)
            .await
            .expect("the proxy listens");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = |path: &str| Request::get(format!("http://echo{path}")).body(()).expect("request");
        let mut client = client.ready().await.expect("open");
        let (held, _) = client.send_request(request("/held"), true).expect("sent");
        while app.held.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let mut client = client.ready().await.expect("open");
        let (over, _) = client.send_request(request("/now"), true).expect("sent");
        assert_eq!(over.await.expect("an answer").status(), 503);
        app.gate.send(true).expect("the application waits");
        assert_eq!(held.await.expect("an answer").status(), 200);
        let mut client = client.ready().await.expect("open");
        let (now, _) = client.send_request(request("/now"), true).expect("sent");
        assert_eq!(now.await.expect("an answer").status(), 200);
    });
}

// spec: LIFE-021, BYD-012
#[test]
fn a_draining_server_sends_goaway_and_ends_with_the_last_stream() {
    let app = Holding::start();
    let pair = Pair::start("http2", app.address);
    let server = pair.server.addresses[0];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server).await.expect("the proxy listens");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let mut ended = tokio::spawn(connection);
        let request = |path: &str| Request::get(format!("http://echo{path}")).body(()).expect("request");
        let mut client = client.ready().await.expect("open");
        let (held, _) = client.send_request(request("/held"), true).expect("sent");
        let mut client = client.ready().await.expect("open");
        let (now, _) = client.send_request(request("/now"), true).expect("sent");
        assert_eq!(now.await.expect("an answer").status(), 200);
        pair.server.drain(DrainPhase::Draining);
        let refused = async {
            // Until then what is sent is served.
            while let Ok(ready) = client.clone().ready().await {
                client = ready;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, refused).await.expect("GOAWAY");
        assert!(!ended.is_finished(), "a stream is open");
        app.gate.send(true).expect("the application waits");
        assert_eq!(held.await.expect("an answer").status(), 200);
        let end = tokio::time::timeout(limit, &mut ended)
            .await
            .expect("the end of the connection");
        end.expect("no panic").expect("in order");
    });
}

// spec: SM-023, SM-024
#[test]
fn each_side_speaks_what_its_port_declares_and_an_automatic_one_what_its_client_does() {
    // A caller of HTTP/2 at the server of an application of HTTP/1.1.
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    assert_eq!(grpc::call(pair.server.addresses[0], &[], b"x").status, 200);
    assert!(
        app.last().head.starts_with("POST /a.B/C HTTP/1.1\r\n"),
        "{}",
        app.last().head
    );
    // Nothing is declared: both versions pass two proxies as they are.
    let pair = Pair::start("auto", app.address);
    assert_eq!(Client::connect(pair.front).get("/", "").status(), 200);
    let (app, count) = grpc_app(Answer::Message("0"));
    let pair = Pair::start("auto", app);
    assert_eq!(call(pair.front).data, b"\0\0\0\0\x02hi");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

// spec: DR-085, DR-086
#[test]
fn the_version_upstream_is_the_ports_the_rules_or_the_clients() {
    let seen = Arc::new(std::sync::Mutex::new(String::new()));
    let told = seen.clone();
    let app = serving(address(), move |stream| {
        let told = told.clone();
        async move {
            let mut first = [0; 3];
            while stream.peek(&mut first).await.is_ok_and(|count| (1..3).contains(&count)) {}
            *told.lock().expect("no panic") = String::from_utf8_lossy(&first).into_owned();
        }
    });
    let asked = |port: &str, policy: &str, by_http2: bool| {
        let proxy = Proxy::start(
            dialling(virtual_address()),
            &client_bundle(
                &format!("{port}, policy: {{{policy}}}"),
                "mesh: {vipFallback: false, retry: {attempts: 0}}\n",
            ),
            &echo_endpoints(&[(app, false)]),
            None,
        );
        seen.lock().expect("no panic").clear();
        if by_http2 {
            grpc::call(proxy.addresses[0], &[], b"x");
        } else {
            Client::connect(proxy.addresses[0]).get("/", "");
        }
        seen.lock().expect("no panic").clone()
    };
    let (one, two) = ("GET", "PRI");
    for (port, policy, of_one, of_two) in [
        ("http", "", one, "POS"),
        ("http2", "", two, two),
        ("auto", "", one, two),
        ("http", "httpVersion: http2", two, two),
        ("http", "httpVersion: client", one, two),
        ("http2", "httpVersion: client", one, two),
    ] {
        assert_eq!(asked(port, policy, false), of_one, "{port} {policy}");
        assert_eq!(asked(port, policy, true), of_two, "{port} {policy}");
    }
}

// spec: BYD-020, DR-085
#[test]
fn names_and_phrases_survive_an_http2_hop() {
    let app = App::answering(|_| {
        "HTTP/1.1 200 All  Fine\r\nX-Two: 2\r\nx-one: 1\r\nX-Two: 3\r\nContent-Length: 0\r\n\r\n".into()
    });
    let pair = Pair::start("http", app.address);
    let bundle = client_bundle("http", "").replace("protocol: http}", "protocol: http, policy: {httpVersion: http2}}");
    pair.client.configure(&bundle);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nX-B: 1\r\nHOST: echo\r\na: 2\r\nX-B: 3\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert!(
        answer
            .head
            .starts_with("HTTP/1.1 200 All  Fine\r\nX-Two: 2\r\nx-one: 1\r\nX-Two: 3\r\nContent-Length: 0"),
        "{}",
        answer.head
    );
    let seen = app.last().head;
    assert!(
        seen.starts_with("GET / HTTP/1.1\r\nX-B: 1\r\nHOST: echo\r\na: 2\r\nX-B: 3\r\n"),
        "{seen}"
    );
    assert!(
        !seen.contains("x-weft") && !answer.head.contains("x-weft"),
        "{seen}\n{}",
        answer.head
    );
}

// spec: SM-139
#[test]
fn crumbs_of_cookies_are_one_field_for_an_application_of_http1_and_others_stay_apart() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let fields = [
        ("cookie", "a=1"),
        ("x-two", "1"),
        ("cookie", "b=2"),
        ("x-two", ""),
        ("cookie", "c=3"),
    ];
    assert_eq!(support::grpc::call(pair.front, &fields, b"hi").status, 200);
    let head = app.last().head.to_ascii_lowercase();
    let of = |name: &str| {
        let lines = head
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        lines.map(str::trim).collect::<Vec<_>>()
    };
    assert_eq!(
        (of("cookie"), of("x-two")),
        (vec!["a=1; b=2; c=3"], vec!["1", ""]),
        "{head}"
    );
}

// spec: LIFE-083
#[test]
fn requests_are_refused_from_95_percent_of_the_memory_limit_on_and_not_before() {
    use weft_sidecar::overload::Pressure;
    use weft_sidecar::shared::Settings;
    let app = App::echo();
    let start = |limit: u64| {
        let listener = dialling(virtual_address());
        let settings = Settings {
            memory_limit: Some(limit),
            ..Settings::default()
        };
        let endpoints = echo_endpoints(&[(app.address, false)]);
        let proxy = Proxy::with(listener, &client_bundle("http", ""), &endpoints, None, settings);
        proxy.shared.overload.look();
        proxy
    };
    let statuses = |proxy: &Proxy| {
        let http2 = support::grpc::call(proxy.addresses[0], &[], b"hi").status;
        (Client::connect(proxy.addresses[0]).get("/", "").status(), http2)
    };
    let critical = start(1 << 20);
    assert_eq!(critical.shared.overload.pressure(), Pressure::Critical);
    assert_eq!(statuses(&critical), (503, 503));
    assert_eq!(app.count(), 0);
    // What is in use changes under the test's hands.
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("read");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    let mut high = start(resident() * 1000 / 925);
    for _ in 0..50 {
        if high.shared.overload.pressure() == Pressure::High {
            break;
        }
        high = start(resident() * 1000 / 925);
    }
    assert_eq!(high.shared.overload.pressure(), Pressure::High);
    assert_eq!(statuses(&high), (200, 200));
}

// spec: LIFE-021, BYD-012, LIFE-041
#[test]
fn goaway_loses_no_call() {
    let (app, count) = grpc_app(Answer::Message("0"));
    let pair = Pair::start("grpc", app);
    for i in 0..30 {
        if i == 10 {
            pair.server.drain(DrainPhase::Draining);
        }
        assert_eq!(call(pair.front).data, b"\0\0\0\0\x02hi", "{i}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 30);
}

/// An HTTP/2 application that answers `/now` at once and everything else when told so.
struct Holding {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
    gate: tokio::sync::watch::Sender<bool>,
}

impl Holding {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind((address(), 0)).expect("listener");
        let address = listener.local_addr().expect("address");
        listener.set_nonblocking(true).expect("option");
        let (gate, opened) = tokio::sync::watch::channel(false);
        let (connections, held) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (connections.clone(), held.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
                loop {
                    let (stream, _) = listener.accept().await.expect("accepted");
                    counters.0.fetch_add(1, Ordering::SeqCst);
                    let (held, opened) = (counters.1.clone(), opened.clone());
                    tokio::spawn(async move {
                        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                        while let Some(Ok((request, mut respond))) = connection.accept().await {
                            let (held, mut opened) = (held.clone(), opened.clone());
                            tokio::spawn(async move {
                                if request.uri().path() != "/now" {
                                    held.fetch_add(1, Ordering::SeqCst);
                                    let _ = opened.wait_for(|open| *open).await;
                                }
                                let _ = respond.send_response(Response::new(()), true);
                            });
                        }
                    });
                }
            });
        });
        Self {
            address,
            connections,
            held,
            gate,
        }
    }
}

// spec: DR-087
#[test]
fn a_limit_of_streams_spreads_requests_over_connections() {
    for (policy, connections) in [
        ("{}", 1),
        ("{maxConcurrentStreams: 2}", 2),
        ("{maxConcurrentStreams: 1}", 3),
    ] {
        let app = Holding::start();
        let bundle =
            client_bundle("http2", "").replace("protocol: http2}", &format!("protocol: http2, policy: {policy}}}"));
        let proxy = Proxy::start(
            dialling(virtual_address()),
            &bundle,
            &echo_endpoints(&[(app.address, false)]),
            None,
        );
        assert_eq!(Client::connect(proxy.addresses[0]).get("/now", "").status(), 200);
        let mut clients: Vec<_> = (0..3).map(|_| Client::connect(proxy.addresses[0])).collect();
        for (i, client) in clients.iter_mut().enumerate() {
            client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
            wait_for("the request", || app.held.load(Ordering::SeqCst) == i + 1);
        }
        assert_eq!(app.connections.load(Ordering::SeqCst), connections, "{policy}");
        app.gate.send(true).expect("the application waits");
        for client in &mut clients {
            assert_eq!(client.receive().expect("an answer").status(), 200, "{policy}");
        }
        // What is free again is used again.
        for client in &mut clients {
            assert_eq!(client.get("/now", "").status(), 200, "{policy}");
        }
        assert_eq!(app.connections.load(Ordering::SeqCst), connections, "{policy}");
    }
}

// spec: DR-087, DR-089
#[test]
fn a_limit_of_streams_holds_for_the_server_proxy_too() {
    let app = Holding::start();
    let port = app.address.port();
    let proxy = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Explicit {
                target: app.address,
                port,
            },
        )],
        &format!(
            "{}inbound: {{mtls: PERMISSIVE, ports: [{{port: {port}, protocol: http2, policy: {{maxConcurrentStreams: \
             1}}}}]}}\n",
            workload("app/echo")
        ),
        "hosts: []",
        None,
    );
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(proxy.addresses[0])).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
        wait_for("the request", || app.held.load(Ordering::SeqCst) == i + 1);
    }
    assert_eq!(app.connections.load(Ordering::SeqCst), 3);
}

// spec: DR-088
#[test]
fn a_connection_whose_peer_leaves_a_ping_without_answer_is_closed() {
    let listener = std::net::TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    listener.set_nonblocking(true).expect("option");
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = accepted.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            let mut dead = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                counter.fetch_add(1, Ordering::SeqCst);
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                if dead.is_empty() {
                    // It takes the request, and nobody looks at it any more.
                    dead.push((connection.accept().await, connection));
                    continue;
                }
                tokio::spawn(async move {
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let _ = respond.send_response(Response::new(()), true);
                    }
                });
            }
        });
    });
    let policy = "{http2Keepalive: {intervalMs: 50, timeoutMs: 500}}";
    let bundle =
        client_bundle("http2", "").replace("protocol: http2}", &format!("protocol: http2, policy: {policy}}}"));
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &bundle,
        &echo_endpoints(&[(bound, false)]),
        None,
    );
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 0\r\n\r\n");
    let begin = std::time::Instant::now();
    assert_eq!(client.receive().expect("an answer").status(), 503);
    assert!(begin.elapsed() >= std::time::Duration::from_millis(500));
    assert_eq!(client.get("/", "").status(), 200);
    // Its PINGs are answered, so this one stays.
    support::pause(std::time::Duration::from_millis(1200));
    assert_eq!(client.get("/", "").status(), 200);
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}
