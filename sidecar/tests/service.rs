//! Which rules hold where: declared protocols, the server side, unknown traffic.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use support::rules::{ECHO, client_hello, dialling};
use support::{
    App, Authority, Client, LIMIT, Proxy, address, client_bundle, echo_endpoints, get, pause, virtual_address, workload,
};
use weft_sidecar::shared::Role;

fn server(target: SocketAddr, bundle: &str, authority: Option<&Authority>) -> Proxy {
    let role = Role::Explicit {
        target,
        port: target.port(),
    };
    let identity = authority.map(|authority| authority.identity("app/echo"));
    let bundle = format!("{}{bundle}", workload("app/echo"));
    Proxy::start(
        vec![(SocketAddr::new(address(), 0), role)],
        &bundle,
        "hosts: []",
        identity,
    )
}

/// Sends back each byte.
fn line_app() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    bound
}

/// What comes back for some bytes; nothing when the connection is closed instead.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    let _ = stream.write_all(bytes);
    let mut back = vec![0; bytes.len()];
    match stream.read_exact(&mut back) {
        Ok(()) => back,
        Err(_) => Vec::new(),
    }
}

// spec: SM-020, SM-034
#[test]
fn http_rules_do_not_touch_a_port_declared_tcp() {
    let app = App::echo();
    let rules = format!(
        "routes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: r}}\n  rules:\n  - destinations: [{{host: \
         {ECHO}, port: 80}}]\n    fault: {{abort: {{status: 418, sharePpm: 1000000}}}}\n"
    );
    for (protocol, status) in [
        ("http", 418),
        ("http2", 418),
        ("grpc", 418),
        ("auto", 418),
        ("tcp", 200),
        ("tls", 200),
    ] {
        let port = format!("protocol: {protocol}}}");
        let bundle = client_bundle(protocol, &rules).replace(&port, &format!("protocol: {protocol}, http: t}}"));
        let proxy = Proxy::start(
            dialling(virtual_address()),
            &bundle,
            &echo_endpoints(&[(app.address, false)]),
            None,
        );
        assert_eq!(get(proxy.addresses[0], "/").status(), status, "{protocol}");
    }
    let seen = app.last();
    assert!(
        seen.field("x-request-id").is_none(),
        "bytes pass as they are: {}",
        seen.head
    );
}

// spec: SM-033, SM-060
#[test]
fn bytes_that_are_no_http_go_where_they_were_sent() {
    let line = line_app();
    let app = App::echo();
    let bundle = client_bundle("http", "").replace("port: 80", &format!("port: {}", line.port()));
    let proxy = Proxy::start(dialling(line), &bundle, &echo_endpoints(&[(app.address, false)]), None);
    assert_eq!(
        exchange(proxy.addresses[0], b"hello there\r\n\r\n"),
        b"hello there\r\n\r\n"
    );
    assert_eq!(app.count(), 0);
    // The same port in HTTP is the service's.
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    assert_eq!(app.count(), 1);
}

// spec: SM-108
#[test]
fn a_port_of_no_service_is_served_under_the_mode_of_the_workload() {
    let authority = Authority::new();
    let app = App::echo();
    let open = server(app.address, "inbound: {mtls: PERMISSIVE}\n", Some(&authority));
    let answer = get(open.addresses[0], "/");
    assert_eq!(answer.status(), 200);
    assert!(app.last().field("x-forwarded-proto").is_some(), "detected as HTTP");
    let line = line_app();
    let open = server(line, "inbound: {mtls: PERMISSIVE}\n", Some(&authority));
    assert_eq!(exchange(open.addresses[0], b"\x00\x01raw"), b"\x00\x01raw");
    let strict = server(line, "inbound: {mtls: STRICT}\n", Some(&authority));
    assert_eq!(exchange(strict.addresses[0], b"\x00\x01raw"), b"");
}

// spec: SM-109
#[test]
fn the_application_is_reached_at_the_pods_address_or_on_localhost() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = Vec::new();
            if support::read_head(&mut stream, &mut buffer).is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
    });
    let pod: IpAddr = address();
    let ports = format!("ports: [{{port: {port}, protocol: http}}]");
    let by_pod = server(SocketAddr::new(pod, port), &format!("inbound: {{{ports}}}\n"), None);
    let answer = get(by_pod.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().contains("Connection refused"), "{}", answer.text());
    let local = server(
        SocketAddr::new(pod, port),
        &format!("inbound: {{destination: LOCALHOST, {ports}}}\n"),
        None,
    );
    assert_eq!(get(local.addresses[0], "/").status(), 200);
}

// spec: SM-110, SM-111, SM-113
#[test]
fn the_server_side_knows_no_routes_no_hosts_and_no_timeout() {
    let app = App::answering(|seen| {
        pause(Duration::from_millis(600));
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}",
            seen.head.len(),
            seen.head
        )
    });
    let port = app.address.port();
    let routes = format!(
        "inbound: {{ports: [{{port: {port}, protocol: http, host: {ECHO}}}]}}\nhosts:\n- host: {ECHO}\n  name: echo\n  namespace: \
         app\n  domains: [echo, {ECHO}]\n  addresses: [10.1.0.1]\n  ports: [{{port: {port}, name: main, protocol: http, http: \
         t}}]\nroutes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: r}}\n  rules:\n  - destinations: \
         [{{host: {ECHO}, port: {port}}}]\n    timeoutMs: 100\n    rewrite: {{path: {{matched: /other}}}}\n    fault: {{abort: \
         {{status: 418, sharePpm: 1000000}}}}\n"
    );
    let proxy = server(app.address, &routes, None);
    for host in ["echo", "nobody.example", "10.9.9.9"] {
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(&format!("GET /path HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status(), 200, "{host}");
        assert!(
            answer
                .text()
                .starts_with(&format!("GET /path HTTP/1.1\r\nHost: {host}\r\n")),
            "{}",
            answer.text()
        );
    }
}

// spec: DR-017, BYD-001
#[test]
fn a_new_rule_holds_for_what_is_new_and_closes_nothing() {
    let (line, other) = (line_app(), line_app());
    let bundle = |policy: &str| {
        client_bundle("tcp", "").replace("protocol: tcp}", &format!("protocol: tcp, policy: {policy}}}"))
    };
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &bundle("{}"),
        &echo_endpoints(&[(line, false)]),
        None,
    );
    let mut open = TcpStream::connect(proxy.addresses[0]).expect("connected");
    open.set_read_timeout(Some(LIMIT)).expect("option");
    let mut byte = [0];
    open.write_all(b"a").expect("sent");
    open.read_exact(&mut byte).expect("back");
    proxy.configure(&bundle("{tls: {originate: {unavailable: nothing}}}"));
    assert_eq!(
        exchange(proxy.addresses[0], b"b"),
        b"",
        "new connections follow the new rule"
    );
    open.write_all(b"c").expect("still open");
    open.read_exact(&mut byte).expect("back");
    proxy.configure(&bundle("{}"));
    proxy.endpoints(&echo_endpoints(&[(other, false)]));
    assert_eq!(exchange(proxy.addresses[0], b"d"), b"d");
    open.write_all(b"e").expect("still open");
    open.read_exact(&mut byte).expect("back");
}

// spec: SM-044, SM-034
#[test]
fn tls_to_a_cluster_address_goes_by_address_and_without_one_by_name() {
    // Anything that begins like TLS will do: the server sends it back.
    let line = line_app();
    let start = |bundle: &str| {
        Proxy::start(
            dialling(virtual_address()),
            bundle,
            &echo_endpoints(&[(line, false)]),
            None,
        )
    };
    let by_address = start(&client_bundle("tls", "mesh: {outboundPolicy: REGISTRY_ONLY}\n"));
    for name in ["other.example", ECHO] {
        let sent = client_hello(name);
        assert_eq!(exchange(by_address.addresses[0], &sent), sent, "{name}");
    }
    let bundle = client_bundle("tls", "mesh: {outboundPolicy: REGISTRY_ONLY}\n")
        .replace("addresses: [10.1.0.1]", "addresses: []");
    let by_name = start(&bundle);
    let sent = client_hello(ECHO);
    assert_eq!(exchange(by_name.addresses[0], &sent), sent);
    assert_eq!(exchange(by_name.addresses[0], &client_hello("other.example")), b"");
}

// spec: SM-030
#[test]
fn a_client_that_is_silent_for_too_long_is_one_of_tcp() {
    let app = App::echo();
    let endpoints = echo_endpoints(&[(app.address, false)]);
    let proxies: Vec<Proxy> = [true, false]
        .into_iter()
        .flat_map(|compatible| {
            let mesh = format!("mesh: {{detectionTimeoutMs: 2000, istioCompatibility: {compatible}}}\n");
            let front = client_bundle("auto", &mesh);
            [
                Proxy::start(dialling(virtual_address()), &front, &endpoints, None),
                server(app.address, &mesh, None),
            ]
        })
        .collect();
    let connect = |proxy: &Proxy| Client::connect(proxy.addresses[0]);
    for proxy in &proxies {
        assert_eq!(connect(proxy).get("/", "").status(), 200);
        assert!(app.last().field("x-request-id").is_some(), "detected as HTTP");
    }
    let mut late: Vec<Client> = proxies.iter().map(connect).collect();
    pause(Duration::from_secs(5));
    for client in &mut late {
        assert_eq!(client.get("/", "").status(), 200);
        let seen = app.last();
        assert!(
            seen.field("x-request-id").is_none(),
            "bytes pass as they are: {}",
            seen.head
        );
    }
    // Without a limit it is waited for.
    let patient = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("auto", ""),
        &endpoints,
        None,
    );
    let mut late = connect(&patient);
    pause(Duration::from_secs(3));
    assert_eq!(late.get("/", "").status(), 200);
    assert!(app.last().field("x-request-id").is_some(), "detected as HTTP");
}

// spec: SM-045
#[test]
fn a_port_of_a_service_and_of_pods_is_told_apart_by_what_is_sent() {
    let web = App::echo();
    let start = |pod: SocketAddr| {
        let port = pod.port();
        let bundle = format!(
            "{}mesh: {{outboundPolicy: REGISTRY_ONLY}}\nhosts:\n- host: {ECHO}\n  name: echo\n  namespace: app\n  domains: \
             [echo]\n  addresses: [10.1.0.1]\n  ports: [{{port: {port}, name: main, protocol: http}}]\n- host: \
             raw.app.svc.cluster.local\n  name: raw\n  namespace: app\n  domains: [raw]\n  headless: true\n  ports: [{{port: \
             {port}, name: main, protocol: tcp}}]\n",
            workload("app/client")
        );
        let endpoints = format!(
            "ports: [{{main: {}}}, {{main: {port}}}]\nhosts:\n- host: {ECHO}\n  endpoints: [{{a: {}, p: 0}}]\n- host: \
             raw.app.svc.cluster.local\n  endpoints: [{{a: {}, p: 1}}]\n",
            web.address.port(),
            web.address.ip(),
            pod.ip()
        );
        Proxy::start(dialling(pod), &bundle, &endpoints, None)
    };
    let silent = start(line_app());
    assert_eq!(exchange(silent.addresses[0], b"\x00\x01raw"), b"\x00\x01raw");
    assert_eq!(get(silent.addresses[0], "/").status(), 200);
    assert_eq!(web.count(), 1, "HTTP goes by its Host");
    // A pod that begins is not waited for in vain.
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let first = start(listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
    let mut stream = TcpStream::connect(first.addresses[0]).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    let mut banner = [0; 5];
    stream.read_exact(&mut banner).expect("the pod begins");
    assert_eq!(&banner, b"hello");
}
