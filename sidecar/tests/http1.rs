//! HTTP/1.1 through one and two proxies.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use support::net::in_namespace;
use support::rules::dialling;
use support::{
    App, Client, Pair, Proxy, address, client_bundle, echo_endpoints, get, pause, read_head, virtual_address,
};

fn client_to(app: &App, rest: &str) -> Proxy {
    Proxy::start(
        dialling(virtual_address()),
        &client_bundle("http", rest),
        &echo_endpoints(&[(app.address, false)]),
        None,
    )
}

// spec: SM-037, SM-040, SM-048, ID-092
#[test]
fn a_host_is_reached_by_its_name_in_clear_where_no_sidecar_is() {
    let app = App::echo();
    let proxy = client_to(&app, "");
    let answer = get(proxy.addresses[0], "/x?y=1");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(
        app.last().head.starts_with("GET /x?y=1 HTTP/1.1\r\nHost: echo\r\n"),
        "{}",
        app.last().head
    );
}

// spec: ID-073, ID-075, ID-078, ID-081, ID-101, ID-121, ID-147, SM-140, MET-039, MET-040
#[test]
fn two_proxies_speak_mesh_mtls_and_tell_the_application_who_calls() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    for _ in 0..3 {
        let answer = client.get("/", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/x/sa/y\r\n");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(answer.head.starts_with("HTTP/1.1 200 Fine\r\n"), "{}", answer.head);
        assert!(answer.field("x-envoy-peer-metadata").is_none());
    }
    let seen = app.last();
    let xfcc = seen.field("x-forwarded-client-cert").expect("added");
    assert!(
        xfcc.starts_with("By=spiffe://cluster.local/ns/app/sa/echo;Hash="),
        "{xfcc}"
    );
    assert!(
        xfcc.ends_with(";Subject=\"\";URI=spiffe://cluster.local/ns/app/sa/client"),
        "{xfcc}"
    );
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
    assert!(seen.field("x-envoy-peer-metadata").is_none());
    assert_eq!(seen.connection, 1, "upstream connections are used again");
}

// spec: BYD-020, SM-137, SM-139
#[test]
fn names_order_and_phrases_stay_as_they_are() {
    let app = App::answering(|_| {
        "HTTP/1.1 418 I'm  a Teapot!\r\nx-LOWER: 1\r\nX-Upper:  two words \r\nx-LOWER: \r\nContent-Length: 0\r\n\r\n"
            .into()
    });
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nhOST: echo\r\nZ-First: 1\r\na_under: 2\r\nx!#$: 3\r\nZ-First: 4\r\nEmpty:\r\nConnection: keep-alive, x-drop\r\nX-Drop: 1\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert!(
        answer.head.starts_with(
            "HTTP/1.1 418 I'm  a Teapot!\r\nx-LOWER: 1\r\nX-Upper: two words\r\nx-LOWER: \r\nContent-Length: 0"
        ),
        "{}",
        answer.head
    );
    let seen = app.last().head;
    assert!(
        seen.starts_with(
            "GET / HTTP/1.1\r\nhOST: echo\r\nZ-First: 1\r\na_under: 2\r\nx!#$: 3\r\nZ-First: 4\r\nEmpty: \r\n"
        ),
        "{seen}"
    );
    assert!(!seen.to_ascii_lowercase().contains("x-drop"), "{seen}");
}

// spec: SM-138
#[test]
fn bodies_keep_their_framing_and_100_is_sent_once() {
    let app = App::answering(|seen| {
        let body = String::from_utf8_lossy(&seen.body);
        // Some say it a second time.
        let again = seen.field("expect").map_or("", |_| "HTTP/1.1 100 Continue\r\n\r\n");
        format!(
            "{again}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
    });
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    client.send("POST /a HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.receive().expect("an answer").text(), "hello");
    assert_eq!(app.last().field("content-length").as_deref(), Some("5"));
    client.send(
        "POST /b HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n",
    );
    assert_eq!(client.receive().expect("an answer").text(), "abcde");
    assert_eq!(app.last().field("transfer-encoding").as_deref(), Some("chunked"));
    client.send("POST /c HTTP/1.1\r\nHost: echo\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 100);
    client.send("xyz");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status(), answer.text()), (200, "xyz".to_owned()));
}

// spec: AUTHZ-113, AUTHZ-115, AUTHZ-116, BYD-067, SM-141
#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let app = App::echo();
    let proxy = client_to(&app, "");
    for (status, request) in [
        (
            400,
            "POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            400,
            "POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (400, "POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: +3\r\n\r\nabc"),
        (
            400,
            "POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        ),
        (501, "POST / HTTP/1.1\r\nHost: echo\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: echo\r\nHost: echo\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a@echo\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: echo\r\nA: b\r\n c\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : echo\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: echo\r\nA: b\0c\r\n\r\n"),
        (426, "GET / HTTP/1.2\r\nHost: echo\r\n\r\n"),
    ] {
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(request);
        let answer = client.receive().unwrap_or_else(|| panic!("no answer to {request:?}"));
        assert_eq!(answer.status(), status, "{request:?}");
        assert!(client.is_closed(), "{request:?}");
    }
    assert_eq!(app.count(), 0, "nothing was forwarded");
}

// spec: SM-135
#[test]
fn heads_have_limits() {
    let app = App::echo();
    let proxy = client_to(&app, "");
    let fields = |count: usize| (0..count).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let status = |request: &str| {
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(request);
        client.receive().map(|answer| answer.status())
    };
    for (count, expected) in [(99, 200), (100, 431)] {
        let request = format!("GET / HTTP/1.1\r\nHost: echo\r\n{}\r\n", fields(count));
        assert_eq!(status(&request), Some(expected), "{count} fields beside Host");
    }
    for (length, expected) in [(59 * 1024, 200), (61 * 1024, 431)] {
        let long = "a".repeat(length);
        let request = format!("GET / HTTP/1.1\r\nHost: echo\r\nx: {long}\r\n\r\n");
        assert_eq!(status(&request), Some(expected), "{length}");
    }
    for (length, expected) in [(59 * 1024, Some(200)), (62 * 1024, Some(431)), (65 * 1024, None)] {
        let request = format!("GET /{} HTTP/1.1\r\nHost: echo\r\n\r\n", "a".repeat(length));
        assert_eq!(status(&request), expected, "{length}");
    }
    // What the first of two proxies adds counts at the second.
    let pair = Pair::start("http", app.address);
    for (count, expected) in [(90, 200), (96, 431)] {
        let mut client = Client::connect(pair.front);
        assert_eq!(client.get("/", &fields(count)).status(), expected, "{count}");
    }
}

// spec: SM-137
#[test]
fn what_belongs_to_a_hop_stays_there() {
    let app = App::answering(|_| {
        "HTTP/1.1 207 Multi\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authenticate: \
         Basic\r\nVia: 1.1 app\r\nContent-Length: 0\r\n\r\n"
            .into()
    });
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    let fields = "TE: gzip;q=0.5, trailers\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nVia: 1.0 \
                  client\r\nConnection: x-one, X-Two\r\nX-One: 1\r\nx-two: 2\r\nX-Three: 3\r\n";
    let answer = client.get("/", fields);
    assert_eq!(answer.status(), 207);
    for (name, expected) in [
        ("proxy-authenticate", Some("Basic")),
        ("via", Some("1.1 app")),
        ("keep-alive", None),
    ] {
        assert_eq!(answer.field(name).as_deref(), expected, "{}", answer.head);
    }
    assert!(answer.field("proxy-connection").is_none(), "{}", answer.head);
    let seen = app.last();
    for (name, expected) in [
        ("te", Some("trailers")),
        ("via", Some("1.0 client")),
        ("x-three", Some("3")),
    ] {
        assert_eq!(seen.field(name).as_deref(), expected, "{}", seen.head);
    }
    for name in ["keep-alive", "proxy-connection", "connection", "x-one", "x-two"] {
        assert!(seen.field(name).is_none(), "{name}: {}", seen.head);
    }
    assert_eq!(client.get("/", "TE: gzip\r\n").status(), 207);
    assert!(app.last().field("te").is_none(), "{}", app.last().head);
}

// spec: SM-140
#[test]
fn what_proxies_before_said_stays_as_it_is() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    let said = [
        ("X-Forwarded-For", "192.0.2.1, 192.0.2.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outside.example"),
        ("Forwarded", "for=192.0.2.1"),
        ("Via", "1.1 outside"),
        ("X-Real-IP", "192.0.2.1"),
    ];
    let fields: String = said
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    for front in [pair.front, pair.server.addresses[0]] {
        let mut client = Client::connect(front);
        assert_eq!(client.get("/", &fields).status(), 200);
        let head = app.last().head;
        for (name, value) in said {
            let lines: Vec<&str> = head
                .lines()
                .filter(|line| {
                    line.to_ascii_lowercase()
                        .starts_with(&format!("{}:", name.to_ascii_lowercase()))
                })
                .collect();
            assert_eq!(lines, [format!("{name}: {value}")], "{head}");
        }
    }
    // Where nobody said anything nothing is invented but the scheme.
    assert_eq!(client.get("/", "").status(), 200);
    let seen = app.last();
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
    for name in ["x-forwarded-for", "x-forwarded-host", "forwarded", "via", "x-real-ip"] {
        assert!(seen.field(name).is_none(), "{name}: {}", seen.head);
    }
    assert_eq!(get(pair.server.addresses[0], "/").status(), 200);
    assert_eq!(app.last().field("x-forwarded-proto").as_deref(), Some("http"));
    // Carried as TCP, it came to the first proxy that knows it inside TLS.
    pair.client.configure(&client_bundle("tcp", ""));
    assert_eq!(get(pair.front, "/").status(), 200);
    assert_eq!(app.last().field("x-forwarded-proto").as_deref(), Some("https"));
}

// spec: BYD-062, SM-031
#[test]
fn http_1_0_gets_answers_that_it_understands() {
    let app = App::answering(|_| "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into());
    let proxy = client_to(&app, "");
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("GET / HTTP/1.0\r\nHost: echo\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.text(), "abc");
    assert!(answer.field("transfer-encoding").is_none(), "{}", answer.head);
    assert_eq!(answer.field("connection").as_deref(), Some("close"));

    let counted = App::echo();
    proxy.endpoints(&echo_endpoints(&[(counted.address, false)]));
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: echo\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.field("connection").as_deref(), Some("keep-alive"));
    }
}

// spec: SM-136, SM-036, SM-137
#[test]
fn connections_end_where_they_must_and_stay_where_they_can() {
    let app = App::answering(|_| "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into());
    let proxy = client_to(&app, "");
    let mut client = Client::connect(proxy.addresses[0]);
    let answer = client.get(
        "/",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    );
    assert_eq!(answer.status(), 200);
    assert!(answer.field("connection").is_none(), "{}", answer.head);
    assert!(
        !app.last().head.to_ascii_lowercase().contains("upgrade"),
        "{}",
        app.last().head
    );
    assert!(!app.last().head.to_ascii_lowercase().contains("http2-settings"));
    // Whoever forgets to name the settings means the same.
    let answer = client.get(
        "/",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    );
    assert_eq!(answer.status(), 200);
    assert!(app.last().field("http2-settings").is_none() && app.last().field("upgrade").is_none());
    let answer = client.get("/", "Connection: close\r\n");
    assert_eq!(answer.field("connection").as_deref(), Some("close"));
    assert!(client.is_closed());

    let mut client = Client::connect(proxy.addresses[0]);
    let answer = client.get("/", "Connection: Upgrade\r\nUpgrade: other\r\n");
    assert_eq!(answer.status(), 403);
    assert!(client.is_closed());

    let mut client = Client::connect(proxy.addresses[0]);
    client.send("CONNECT echo:80 HTTP/1.1\r\nHost: echo:80\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 404);
    assert!(client.is_closed());
}

// spec: SM-135
#[test]
fn pipelined_requests_are_answered_in_order() {
    let app = App::answering(|seen| {
        let path = seen.head.split(' ').nth(1).unwrap_or_default();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len())
    });
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    client.send("GET /1 HTTP/1.1\r\nHost: echo\r\n\r\nGET /2 HTTP/1.1\r\nHost: echo\r\n\r\nGET /3 HTTP/1.1\r\nHost: echo\r\n\r\n");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.receive().expect("an answer").text(), path);
    }
}

// spec: SM-035
#[test]
fn a_websocket_passes_both_proxies() {
    let app = App::new(std::sync::Arc::new(|_, stream| {
        use std::io::{Read, Write};
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhi";
        stream.write_all(head.as_bytes()).expect("sent");
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).expect("received");
        stream.write_all(&buffer).expect("sent");
        false
    }));
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    let answer = client.get(
        "/",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
    );
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.field("upgrade").as_deref(), Some("websocket"));
    client.send("hello");
    let mut text = String::new();
    while !client.is_closed() {
        text = client.buffered();
        if text == "hihello" {
            break;
        }
        client.read_more();
    }
    assert_eq!(text, "hihello");
}

// spec: SM-050, FLAG-003, VS-187
#[test]
fn a_refused_connection_is_503_with_the_standard_body() {
    let gone = SocketAddr::new(address(), 1);
    let app = App::echo();
    let proxy = client_to(&app, "");
    proxy.endpoints(&echo_endpoints(&[(gone, false)]));
    let bundle = client_bundle("http", "").replace("workload:", "mesh: {vipFallback: false}\nworkload:");
    proxy.configure(&bundle);
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.text(),
        "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
         connection failure, transport failure reason: delayed connect error: Connection refused"
    );
    assert!(answer.field("x-weft-reason").is_some());
    let counted = |proxy: &Proxy, flag: &str| {
        support::wait_for(flag, || {
            let text = proxy.shared.telemetry.prometheus();
            text.contains(&format!("response_flags=\"{flag}")) && text.contains("response_code=\"503\"")
        });
    };
    counted(&proxy, "UF");
    // A server that ends the connection before it answers is another matter.
    let closing = App::new(std::sync::Arc::new(|_, _| false));
    let proxy = client_to(&closing, "");
    assert_eq!(get(proxy.addresses[0], "/").status(), 503);
    counted(&proxy, "UC");
}

// spec: BYD-011, DLV-113
#[test]
fn a_refused_endpoint_costs_nothing() {
    let app = App::echo();
    let proxy = client_to(&app, "");
    let gone = SocketAddr::new(address(), 1);
    proxy.endpoints(&echo_endpoints(&[(app.address, false), (gone, false)]));
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..50 {
        client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.receive().expect("an answer").status(), 200);
    }
    assert_eq!(app.count(), 50);
}

/// Sizes of bodies: whatever the sockets on the way hold, one of these ends just beyond it.
fn sizes() -> impl Iterator<Item = usize> {
    (1..=40).map(|n| n * 24 * 1024)
}

/// Until then nothing more fits: whoever reads begins after this.
const SLOW: Duration = Duration::from_secs(1);

/// Sends a head, then a body that a reader is slow to take, and gives back the status that it gets.
fn upload(front: SocketAddr, size: usize) -> u16 {
    let mut client = Client::connect(front);
    client.send(&format!(
        "PUT / HTTP/1.1\r\nHost: echo\r\nContent-Length: {size}\r\n\r\n"
    ));
    client.stream.write_all(&vec![b'u'; size]).expect("sent");
    client.receive().map_or(0, |answer| answer.status())
}

/// Asks for a body, and begins to read it late. Its length.
fn download(front: SocketAddr, size: usize) -> usize {
    let mut client = Client::connect(front);
    client.send(&format!("GET /{size} HTTP/1.1\r\nHost: echo\r\n\r\n"));
    pause(SLOW);
    client.receive().map_or(0, |answer| answer.body.len())
}

/// Takes bodies late, and answers with as many bytes as the path says.
fn slow_app() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let here = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut buffer = Vec::new();
                while let Some(head) = read_head(&mut stream, &mut buffer) {
                    let number = |text: &str| text.trim().parse::<usize>().ok();
                    let length = head.lines().find_map(|line| {
                        let (name, value) = line.split_once(':')?;
                        name.eq_ignore_ascii_case("content-length").then(|| number(value))?
                    });
                    if let Some(length) = length.filter(|length| *length > 0) {
                        pause(SLOW);
                        let mut rest = vec![0; length.saturating_sub(buffer.len())];
                        stream.read_exact(&mut rest)?;
                        buffer.clear();
                    }
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let size = number(path.trim_start_matches('/')).unwrap_or(0);
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
                    stream.write_all(&vec![b'd'; size])?;
                }
                Ok(())
            });
        }
    });
    here
}

#[test]
fn the_last_bytes_of_a_body_reach_a_slow_reader_through_mutual_tls() {
    in_namespace(|| {
        for buffer in ["tcp_wmem", "tcp_rmem"] {
            let sizes = "4096 16384 65536";
            std::fs::write(format!("/proc/sys/net/ipv4/{buffer}"), sizes).expect("a namespace's own setting");
        }
        let pair = Pair::start("http", slow_app());
        let front = pair.front;
        std::thread::scope(|scope| {
            let sent: Vec<_> = sizes()
                .map(|size| (size, scope.spawn(move || upload(front, size))))
                .collect();
            let got: Vec<_> = sizes()
                .map(|size| (size, scope.spawn(move || download(front, size))))
                .collect();
            for (size, status) in sent {
                assert_eq!(status.join().expect("no panic"), 200, "{size} bytes sent");
            }
            for (size, length) in got {
                assert_eq!(length.join().expect("no panic"), size, "of {size} bytes asked for");
            }
        });
    });
}

// spec: MET-014, SM-050
#[test]
fn a_client_that_leaves_a_quiet_response_ends_it_for_the_application_too() {
    let (told, ended) = std::sync::mpsc::channel();
    let app = App::new(std::sync::Arc::new(move |_, stream| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        // Nothing more is said, so that only the end of the connection can come.
        let end = stream.read(&mut [0]);
        told.send(end.unwrap_or(0)).expect("the test waits");
        false
    }));
    let pair = Pair::start("http", app.address);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    while !client.buffered().contains("hi") {
        assert!(client.read_more(), "{}", client.buffered());
    }
    drop(client);
    assert_eq!(ended.recv_timeout(support::LIMIT), Ok(0));
    for proxy in [&pair.client, &pair.server] {
        support::wait_for("the record", || {
            let text = proxy.shared.telemetry.prometheus();
            text.contains("response_flags=\"DC\"")
        });
    }
}
