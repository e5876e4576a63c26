//! AuthorizationPolicy at a server's proxy: requests, connections of TCP, and what is open when policies change.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::process::{Process, Volumes};
use support::rules::client_hello;
use support::{
    App, Authority, Client, LIMIT, Pair, address, caller, client_bundle, get, grpc, serving, wait_for, workload,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bundle of the server in front of `app`, with policies.
fn guarded(app: SocketAddr, protocol: &str, policies: &str) -> String {
    let port = app.port();
    format!(
        "{}inbound:\n  ports:\n  - {{port: {port}, protocol: {protocol}, servicePorts: [80], host: \
         echo.app.svc.cluster.local}}\nauthorization:\n{policies}\n",
        workload("app/echo")
    )
}

/// A client and a server whose port has these policies.
fn pair(app: SocketAddr, protocol: &str, policies: &str) -> Pair {
    let pair = Pair::start(protocol, app);
    pair.server.configure(&guarded(app, protocol, policies));
    pair
}

const NOBODY: &str = "- {namespace: app, name: nobody, action: DENY, rules: [{}]}";

const CLIENT_ALONE: &str = "- {namespace: app, name: client, rules: [{from: [[{key: source.serviceAccount, values: \
                            [app/client]}]]}]}";

/// The number of connections and streams that a policy closed.
fn closed(pair: &Pair, policy: &str) -> bool {
    let metrics = pair.server.shared.telemetry.prometheus();
    metrics.contains(&format!("weft_policy_closed_total{{policy=\"{policy}\"}} 1"))
}

// spec: AUTHZ-013, AUTHZ-022, AUTHZ-025, AUTHZ-094, BYD-030
#[test]
fn a_request_that_no_policy_allows_gets_403_and_reaches_nobody() {
    let app = App::echo();
    let pair = pair(app.address, "http", CLIENT_ALONE);
    assert_eq!(get(pair.front, "/").status(), 200);
    assert_eq!(app.count(), 1);
    let plain = get(pair.server.addresses[0], "/");
    assert_eq!((plain.status(), plain.text().as_str()), (403, "RBAC: access denied"));
    assert_eq!(plain.field("content-type").as_deref(), Some("text/plain"));
    assert_eq!(plain.field("content-length").as_deref(), Some("19"));
    assert_eq!(plain.field("x-weft-reason"), None);
    assert_eq!(app.count(), 1);
    // A request is counted when its answer was sent.
    wait_for("the count", || {
        let metrics = pair.server.shared.telemetry.prometheus();
        let mut requests = metrics.lines().filter(|line| line.starts_with("istio_requests_total"));
        requests.any(|line| line.contains("response_code=\"403\"") && line.contains("reporter=\"destination\""))
    });
}

// spec: AUTHZ-024, BYD-030
#[test]
fn callers_learn_what_refused_them_as_far_as_it_is_their_business() {
    let app = App::echo();
    let pair = pair(app.address, "http", NOBODY);
    let answer = get(pair.front, "/");
    assert_eq!(answer.status(), 403);
    let reason = answer.field("x-weft-reason").expect("a caller of the mesh");
    assert_eq!(
        reason,
        "rbac_access_denied_matched_policy; AuthorizationPolicy app/nobody"
    );
    let elsewhere = pair.authority.identity("elsewhere/client");
    let elsewhere = caller(&client_bundle("http", ""), (pair.server.addresses[0], true), elsewhere);
    let answer = get(elsewhere.addresses[0], "/");
    let reason = answer.field("x-weft-reason").expect("a caller of the mesh");
    assert_eq!(
        (answer.status(), &*reason),
        (403, "rbac_access_denied_matched_policy; AuthorizationPolicy")
    );
    assert_eq!(app.count(), 0);
}

// spec: AUTHZ-023
#[test]
fn a_call_of_grpc_is_refused_in_its_own_terms() {
    let app = App::echo();
    let pair = pair(app.address, "grpc", NOBODY);
    let got = grpc::call(
        pair.front,
        &[("content-type", "application/grpc"), ("te", "trailers")],
        b"",
    );
    assert_eq!(got.status, 200);
    assert_eq!(got.head.get("grpc-status").map(|v| v.as_bytes()), Some(&b"7"[..]));
    let message = got.head.get("grpc-message").map(|v| v.as_bytes());
    assert_eq!(message, Some(&b"RBAC: access denied"[..]));
}

// spec: AUTHZ-009, AUTHZ-027, AUTHZ-010
#[test]
fn each_request_of_a_connection_is_judged_by_the_newest_policies() {
    let app = App::echo();
    let pair = pair(app.address, "http", CLIENT_ALONE);
    let mut client = Client::connect(pair.front);
    assert_eq!(client.get("/", "").status(), 200);
    pair.server.configure(&guarded(app.address, "http", NOBODY));
    assert_eq!(client.get("/", "").status(), 403);
    pair.server.configure(&guarded(app.address, "http", CLIENT_ALONE));
    assert_eq!(client.get("/", "").status(), 200);
}

// spec: BYD-063, AUTHZ-068, AUTHZ-112, AUTHZ-047
#[test]
fn slashes_hide_no_path_and_the_path_is_forwarded_as_it_is() {
    let app = App::echo();
    let rule = |action: &str, values: &str| {
        format!("- {{namespace: app, name: p, action: {action}, rules: [{{to: [[{{key: request.path, {values}}}]]}}]}}")
    };
    let pair = pair(app.address, "http", &rule("DENY", "values: [/admin]"));
    for path in [
        "/admin",
        "//admin",
        "/\\admin",
        "/x/../admin",
        "/%61dmin",
        "/admin?x=y",
        "///admin",
    ] {
        assert_eq!(get(pair.front, path).status(), 403, "{path}");
    }
    for path in ["/Admin", "/admin/", "/a//b"] {
        assert_eq!(get(pair.front, path).status(), 200, "{path}");
    }
    assert!(app.last().head.starts_with("GET /a//b HTTP/1.1"), "{}", app.last().head);
    pair.server
        .configure(&guarded(app.address, "http", &rule("ALLOW", "notValues: [/admin]")));
    assert_eq!(get(pair.front, "//admin").status(), 403);
    assert_eq!(get(pair.front, "//other").status(), 200);
    pair.server
        .configure(&guarded(app.address, "http", &rule("ALLOW", "values: [/a/b]")));
    assert_eq!(get(pair.front, "/a//b").status(), 403);
    assert_eq!(get(pair.front, "/a/b").status(), 200);
    let compatible = guarded(app.address, "http", &rule("DENY", "values: [/admin]"));
    let compatible = format!("mesh: {{istioCompatibility: true}}\n{compatible}");
    pair.server.configure(&compatible);
    assert_eq!(get(pair.front, "//admin").status(), 200);
}

// spec: BYD-064, AUTHZ-044
#[test]
fn a_host_is_compared_without_the_port_that_leads_here() {
    let app = App::echo();
    let rule =
        "- {namespace: app, name: p, action: DENY, rules: [{to: [[{key: request.host, values: [bad.example]}]]}]}";
    let pair = pair(app.address, "http", rule);
    let with = |host: &str| {
        let mut client = Client::connect(pair.server.addresses[0]);
        client.send(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        client.receive().expect("an answer").status()
    };
    let own = format!("bad.example:{}", app.address.port());
    for host in ["bad.example", "BAD.example", "bad.example:80", "bad.example:", &own] {
        assert_eq!(with(host), 403, "{host}");
    }
    for host in ["bad.example:81", "bad.example:+80", "bad.example.", "good.example"] {
        assert_eq!(with(host), 200, "{host}");
    }
}

// spec: AUTHZ-050, AUTHZ-059, AUTHZ-109, AUTHZ-117
#[test]
fn headers_are_judged_as_they_are_forwarded() {
    let app = App::echo();
    let rules = "- {namespace: app, name: p, action: DENY, rules: [{when: [{key: 'request.headers[x-a]', values: \
                 [b]}]}, {when: [{key: remote.ip, values: [1.2.3.0/24]}]}]}";
    let pair = pair(app.address, "http", rules);
    let with = |fields: &str| Client::connect(pair.server.addresses[0]).get("/", fields).status();
    assert_eq!(with("X-A: b\r\n"), 403);
    assert_eq!(with("x-a: c\r\nx-a: b\r\n"), 403);
    assert_eq!(with("x-a: c, b\r\n"), 200);
    assert_eq!(with("x-a: b\r\nconnection: x-a\r\n"), 200);
    assert_eq!(with("x-forwarded-for: 9.9.9.9, 1.2.3.4\r\n"), 403);
    assert_eq!(with("x-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 9.9.9.9\r\n"), 200);
    assert_eq!(with("x-forwarded-for: 1.2.3.4, unknown\r\n"), 200);
}

/// An application whose connections end when their clients have gone, whatever it was doing.
fn application<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    serving(address(), move |stream| {
        let served = serve(stream);
        async move { drop(served.await) }
    })
}

/// A server that says `220 ready` first, then sends back what it gets.
fn banner() -> SocketAddr {
    application(|mut stream| async move {
        stream.write_all(b"220 ready\n").await?;
        let mut buffer = [0; 1024];
        loop {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(&buffer[..count]).await?;
        }
    })
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream
}

/// What comes until the end of a connection, which comes in time.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return rest,
            Ok(count) => rest.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return rest,
            Err(error) => panic!("the connection is still open: {error}"),
        }
    }
}

// spec: BYD-065, AUTHZ-027, AUTHZ-120, AUTHZ-023
#[test]
fn a_refused_caller_gets_no_byte_of_a_server_that_speaks_first() {
    for protocol in ["auto", "tcp"] {
        let app = banner();
        let pair = pair(app, protocol, NOBODY);
        for front in [pair.front, pair.server.addresses[0]] {
            let mut stream = connect(front);
            assert_eq!(rest(&mut stream), b"", "{protocol}");
            let mut stream = connect(front);
            let _ = stream.write_all(b"hello\n");
            assert_eq!(rest(&mut stream), b"", "{protocol}");
        }
        pair.server.configure(&guarded(app, protocol, CLIENT_ALONE));
        let mut stream = connect(pair.front);
        let mut line = [0; 10];
        stream.read_exact(&mut line).expect("the banner");
        assert_eq!(&line, b"220 ready\n", "{protocol}");
        assert_eq!(
            rest(&mut connect(pair.server.addresses[0])),
            b"",
            "{protocol}: in clear"
        );
    }
}

// spec: AUTHZ-078, AUTHZ-080, AUTHZ-081, AUTHZ-082, AUTHZ-098
#[test]
fn on_a_port_of_both_kinds_each_connection_is_judged_as_what_it_is() {
    let app = App::echo();
    let rule = |port: u16| {
        format!(
            "- {{namespace: app, name: p, action: DENY, rules: [{{to: [[{{key: request.method, values: [POST]}}, {{key: \
             destination.port, values: ['{port}']}}]]}}]}}"
        )
    };
    let pair = pair(app.address, "auto", &rule(app.address.port()));
    assert_eq!(get(pair.front, "/").status(), 200);
    let mut stream = connect(pair.front);
    stream.write_all(b"\x00\x01\x02 no protocol").expect("sent");
    assert_eq!(rest(&mut stream), b"");
    pair.server.configure(&guarded(app.address, "auto", &rule(9)));
    let seen = app.peers().len();
    let mut stream = connect(pair.front);
    stream.write_all(b"\x00\x01\x02 no protocol").expect("sent");
    wait_for("the application's connection", || app.peers().len() > seen);
}

// spec: BYD-002, BYD-001, AUTHZ-009
#[test]
fn an_open_connection_lasts_until_a_policy_refuses_it() {
    let app = banner();
    let pair = pair(app, "tcp", CLIENT_ALONE);
    let mut stream = connect(pair.front);
    let mut line = [0; 10];
    stream.read_exact(&mut line).expect("the banner");
    pair.server.configure(&guarded(
        app,
        "tcp",
        &format!("{CLIENT_ALONE}\n- {{namespace: app, name: other, rules: [{{}}]}}"),
    ));
    stream.write_all(b"still").expect("sent");
    stream.read_exact(&mut line[..5]).expect("an echo");
    pair.server.configure(&guarded(app, "tcp", NOBODY));
    assert_eq!(rest(&mut stream), b"");
    wait_for("the count", || closed(&pair, "AuthorizationPolicy app/nobody"));
}

// spec: BYD-002, AUTHZ-009
#[test]
fn a_connection_that_was_silent_is_judged_by_what_holds_when_it_speaks() {
    for protocol in ["tcp", "auto"] {
        let app = application(|mut stream| async move {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await?;
            stream.write_all(&buffer[..count]).await
        });
        let pair = pair(app, protocol, " []");
        let connect = || {
            let stream = connect(pair.server.addresses[0]);
            let open = || pair.server.shared.connections.load(Ordering::Relaxed);
            wait_for("the connection", || open() > 0);
            support::pause(Duration::from_millis(100));
            stream
        };
        let mut stream = connect();
        let strict = guarded(app, protocol, " []").replace("inbound:\n", "inbound:\n  mtls: STRICT\n");
        pair.server.configure(&strict);
        let _ = stream.write_all(b"\x00 hello");
        assert_eq!(rest(&mut stream), b"", "{protocol}");
        pair.server.configure(&guarded(app, protocol, " []"));
        let mut stream = connect();
        pair.server.configure(&guarded(app, protocol, NOBODY));
        let _ = stream.write_all(b"\x00 hello");
        assert_eq!(rest(&mut stream), b"", "{protocol}");
    }
}

// spec: AUTHZ-055
#[test]
fn the_name_that_passing_tls_asks_for_is_seen_in_every_mode() {
    let by_name = "- {namespace: app, name: p, action: DENY, rules: [{when: [{key: connection.sni, values: \
                   [admin.example]}]}]}";
    for mode in ["PERMISSIVE", "DISABLE"] {
        let app = application(|mut stream| async move {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await?;
            stream.write_all(b"hello").await?;
            // Closed with bytes unread it would be reset, and the greeting lost.
            stream.shutdown().await?;
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        });
        let pair = pair(app, "tcp", " []");
        let with = guarded(app, "tcp", by_name).replace("inbound:\n", &format!("inbound:\n  mtls: {mode}\n"));
        pair.server.configure(&with);
        for (name, delay, said) in [
            ("admin.example", 0, &b""[..]),
            ("admin.example", 50, b""),
            ("other.example", 0, b"hello"),
            ("other.example", 50, b"hello"),
        ] {
            let mut stream = connect(pair.server.addresses[0]);
            support::pause(Duration::from_millis(delay));
            stream.write_all(&client_hello(name)).expect("sent");
            assert_eq!(rest(&mut stream), said, "{mode} {name} {delay}");
        }
    }
}

// spec: AUTHZ-112, AUTHZ-114
#[test]
fn white_space_around_a_value_of_http2_hides_nothing() {
    let app = App::echo();
    let rule = "- {namespace: app, name: p, action: DENY, rules: [{when: [{key: 'request.headers[x-role]', values: \
                [admin]}]}]}";
    let pair = pair(app.address, "http", rule);
    let status = |value: &str| grpc::call(pair.server.addresses[0], &[("x-role", value)], b"").status;
    assert_eq!(status("admin"), 403);
    for value in ["admin ", " admin", "admin\t", "\tadmin"] {
        assert_eq!(status(value), 400, "{value:?}");
    }
    assert_eq!(app.count(), 0);
    assert_eq!(status("ad min"), 200);
}

/// An application that begins an answer, and ends it only with its connection.
fn endless() -> SocketAddr {
    application(|mut stream| async move {
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await?;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        stream.write_all(head.as_bytes()).await?;
        let _ = stream.read(&mut buffer).await?;
        Ok(())
    })
}

// spec: BYD-002, LIFE-047
#[test]
fn an_answer_that_goes_on_lasts_until_a_policy_refuses_its_request() {
    let app = endless();
    let path = |path: &str| {
        format!(
            "- {{namespace: app, name: p, action: DENY, rules: [{{to: [[{{key: request.path, values: [{path}]}}]]}}]}}"
        )
    };
    for front in ["mesh", "clear"] {
        let pair = pair(app, "http", &path("/other"));
        let front = if front == "mesh" {
            pair.front
        } else {
            pair.server.addresses[0]
        };
        let mut client = Client::connect(front);
        client.send("GET /stream HTTP/1.1\r\nhost: echo\r\n\r\n");
        wait_for("the beginning", || {
            client.read_more() && client.buffered().contains("abc")
        });
        pair.server.configure(&guarded(app, "http", &path("/another")));
        pair.server.configure(&guarded(app, "http", &path("/stream")));
        wait_for("the end", || !client.read_more());
        wait_for("the count", || closed(&pair, "AuthorizationPolicy app/p"));
    }
}

// spec: BYD-002
#[test]
fn a_request_that_waits_for_its_answer_is_refused_by_a_new_policy() {
    let app = application(|mut stream| async move {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await? > 0 {}
        Ok(())
    });
    let pair = pair(app, "http", CLIENT_ALONE);
    let mut client = Client::connect(pair.front);
    client.send("GET / HTTP/1.1\r\nhost: echo\r\n\r\n");
    wait_for("the request", || {
        pair.server.shared.connections.load(Ordering::Relaxed) > 0
    });
    support::pause(Duration::from_millis(100));
    pair.server.configure(&guarded(app, "http", NOBODY));
    assert_eq!(client.receive().expect("an answer").status(), 403);
    wait_for("the count", || closed(&pair, "AuthorizationPolicy app/nobody"));
}

// spec: AUTHZ-029, BYD-002
#[test]
fn an_upgraded_connection_is_judged_by_its_request() {
    let app = application(|mut stream| async move {
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await?;
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        loop {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(&buffer[..count]).await?;
        }
    });
    let rule = |path: &str| {
        format!(
            "- {{namespace: app, name: p, action: DENY, rules: [{{to: [[{{key: request.path, values: [{path}]}}]]}}]}}"
        )
    };
    let pair = pair(app, "http", &rule("/other"));
    let mut client = Client::connect(pair.front);
    client.send("GET /ws HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    wait_for("the upgrade", || {
        client.read_more() && client.buffered().contains("101")
    });
    client.send("ping");
    wait_for("the echo", || client.buffered().ends_with("ping") || client.read_more());
    pair.server.configure(&guarded(app, "http", &rule("/another")));
    client.send("pong");
    wait_for("the echo", || client.buffered().ends_with("pong") || client.read_more());
    pair.server.configure(&guarded(app, "http", &rule("/ws")));
    wait_for("the end", || !client.read_more());
    wait_for("the count", || closed(&pair, "AuthorizationPolicy app/p"));
}

// spec: BYD-002
#[test]
fn the_log_names_the_policy_that_closed_a_connection() {
    let app = banner();
    let own = address();
    let listen = SocketAddr::new(own, 4000);
    let volumes = Volumes::new(&Authority::new(), "app/echo");
    let log = "mesh: {accessLog: {path: /dev/stdout, format: \"closed=%CONNECTION_TERMINATION_DETAILS%\\n\"}}\n";
    let configure = |policies: &str| volumes.configure(&format!("{log}{}", guarded(app, "tcp", policies)));
    configure("- {namespace: app, name: all, rules: [{}]}");
    volumes.endpoints(&[]);
    let inbound = format!("{listen}={app}");
    let proxy = Process::start(&volumes, own, &["--inbound", &inbound], &[]).ready();
    let mut stream = connect(listen);
    stream.read_exact(&mut [0; 10]).expect("the banner");
    configure(NOBODY);
    assert_eq!(rest(&mut stream), b"");
    let line = "closed=rbac_access_denied_matched_policy[ns[app]-policy[nobody]-rule[0]]";
    wait_for("the line", || proxy.access_log().lines().any(|found| found == line));
}
