//! Gateways: ports of their own, and what outside clients are answered there.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use support::process::{Process, Volumes};
use support::rules::{ECHO, client_hello, greeter, greeting, named, two_versions, versions};
use support::{Answer, App, Authority, Client, LIMIT, Proxy, address, echo_endpoints, wait_for, workload};
use weft_sidecar::shared::{Role, Settings};

/// Host `echo` with subsets v1 and v2, which a gateway knows on port 80; and a rule for each of them.
const MESH: &str = "
hosts:
- host: echo.app.svc.cluster.local
  name: echo
  namespace: app
  addresses: [10.1.0.1]
  ports:
  - {port: 80, name: main, protocol: http}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
routes:
- name: all
  origin: {kind: VirtualService, namespace: app, name: all}
  rules:
  - destinations: [{host: echo.app.svc.cluster.local, port: 80}]
- name: v1
  origin: {kind: VirtualService, namespace: app, name: v1}
  rules:
  - destinations: [{host: echo.app.svc.cluster.local, port: 80, subset: v1}]
- name: v2
  origin: {kind: VirtualService, namespace: app, name: v2}
  rules:
  - matches: [{path: {prefix: /two}}]
    destinations: [{host: echo.app.svc.cluster.local, port: 80, subset: v2}]
- name: to-https
  origin: {kind: Gateway, namespace: istio-ingress, name: gw}
  rules:
  - redirect: {code: 301, scheme: https, port: received}
";

/// The bundle of a gateway with these listeners, one a line.
fn bundle(listeners: &[&str]) -> String {
    let listeners: String = listeners.iter().map(|listener| format!("- {listener}\n")).collect();
    format!("{}{MESH}listeners:\n{listeners}", workload("istio-ingress/ingress"))
}

/// HTTP for every name on a port, from and to all of `echo`.
fn for_all(port: u16) -> String {
    format!("{{port: {port}, http: [{{domains: ['*'], http: all}}]}}")
}

/// A gateway on an address of its own.
struct Gateway {
    proxy: Proxy,
    ip: IpAddr,
}

impl Gateway {
    fn start(listeners: &[&str], endpoints: &str) -> Self {
        Self::with(listeners, endpoints, None)
    }

    fn with(listeners: &[&str], endpoints: &str, authority: Option<&Authority>) -> Self {
        let ip = address();
        let settings = Settings {
            gateway: Some(ip),
            ..Settings::default()
        };
        let identity = authority.map(|authority| authority.identity("istio-ingress/ingress"));
        Self {
            proxy: Proxy::with(Vec::new(), &bundle(listeners), endpoints, identity, settings),
            ip,
        }
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    fn connect(&self, port: u16) -> Client {
        Client::connect(self.at(port))
    }

    /// What a GET for a host is answered.
    fn ask(&self, port: u16, host: &str, path: &str) -> Answer {
        let mut client = self.connect(port);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.receive().expect("an answer")
    }

    fn said(&self, port: u16, first: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.at(port)).expect("the gateway listens");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        // A connection that is refused may have ended by now.
        drop(stream.write_all(first));
        greeting(stream)
    }
}

// spec: GW-024, GW-025, GW-027, GW-111
#[test]
fn the_host_of_a_request_decides_whose_rules_hold() {
    let (v1, v2) = (named("v1"), named("v2"));
    let gateway = Gateway::start(
        &[
            "{port: 8080, http: [{domains: [a.com, '*.b.com'], http: v1}, {domains: ['x.b.com', '*.c.b.com'], http: v2}]}",
        ],
        &two_versions(&v1, &v2),
    );
    let of = |host: &str, path: &str| {
        let answer = gateway.ask(8080, host, path);
        if answer.status() == 200 {
            answer.text()
        } else {
            answer.status().to_string()
        }
    };
    for host in [
        "a.com",
        "A.com",
        "a.com:80",
        "a.com:8080",
        "a.com:1",
        "a.com.",
        "y.b.com",
        "y.z.b.com",
    ] {
        assert_eq!(of(host, "/"), "v1", "{host}");
    }
    for host in ["x.b.com", "y.c.b.com"] {
        assert_eq!(of(host, "/two"), "v2", "{host}");
        // The rules of the wildcard above do not stand in.
        assert_eq!(of(host, "/"), "404", "{host}");
    }
    for host in ["b.com", "c.com", "xa.com", "10.1.0.1", "echo"] {
        assert_eq!(of(host, "/"), "404", "{host}");
    }
    let answer = gateway.ask(8080, "c.com", "/");
    assert_eq!(answer.field("x-weft-reason"), None, "nobody outside is told more");
    // Without any VirtualService a port answers, and knows nobody.
    let empty = Gateway::start(&["{port: 8080, http: []}"], "hosts: []");
    assert_eq!(empty.ask(8080, "a.com", "/").status(), 404);
}

// spec: GW-072, GW-076, ID-123, TRC-022, MET-040, AUTHZ-061
#[test]
fn backends_are_told_of_the_client_by_the_gateway_alone() {
    let app = App::echo();
    let gateway = Gateway::start(&[&for_all(8080)], &echo_endpoints(&[(app.address, false)]));
    let mut client = gateway.connect(8080);
    let own = client.stream.local_addr().expect("address").ip().to_string();
    client.get("/", "");
    let seen = app.last();
    assert_eq!(seen.field("x-forwarded-for").as_deref(), Some(&*own));
    assert_eq!(seen.field("x-envoy-external-address").as_deref(), Some(&*own));
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(seen.field("x-request-id").map(|id| id.len()), Some(36));
    client.get(
        "/",
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\nX-Forwarded-Proto: https\r\nX-Request-Id: mine\r\n\
         X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/a/sa/b\r\nX-Envoy-Retry-On: 5xx\r\nX-ENVOY-Anything: 1\r\n\
         X-Envoy-Peer-Metadata: eA==\r\nX-Envoy-Peer-Metadata-Id: router~1.1.1.1~x.y~z\r\nX-Other: kept\r\n",
    );
    let seen = app.last();
    assert_eq!(
        seen.field("x-forwarded-for").as_deref(),
        Some(&*format!("1.2.3.4,5.6.7.8,{own}"))
    );
    assert_eq!(seen.field("x-forwarded-proto").as_deref(), Some("http"));
    assert_ne!(seen.field("x-request-id").as_deref(), Some("mine"));
    for gone in ["x-forwarded-client-cert", "x-envoy-retry-on", "x-envoy-anything"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert_ne!(seen.field("x-envoy-peer-metadata").as_deref(), Some("eA=="));
    assert_eq!(seen.field("x-other").as_deref(), Some("kept"));
}

// spec: GW-071, ID-121
#[test]
fn endpoints_of_the_mesh_are_called_with_mutual_tls() {
    let app = App::echo();
    let authority = Authority::new();
    let server = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Explicit {
                target: app.address,
                port: app.address.port(),
            },
        )],
        &format!("{}inbound: {{mtls: STRICT}}\n", workload("app/echo")),
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let endpoints = echo_endpoints(&[(server.addresses[0], true)]);
    let gateway = Gateway::with(&[&for_all(8080)], &endpoints, Some(&authority));
    assert_eq!(gateway.ask(8080, "a.com", "/").status(), 200);
    let element = app.last().field("x-forwarded-client-cert").expect("of the gateway");
    assert!(
        element.starts_with("By=spiffe://cluster.local/ns/app/sa/echo;")
            && element.ends_with("URI=spiffe://cluster.local/ns/istio-ingress/sa/ingress"),
        "{element}"
    );
}

// spec: GW-029
#[test]
fn a_server_that_redirects_keeps_host_and_path() {
    let gateway = Gateway::start(
        &["{port: 8080, servicePort: 80, http: [{domains: ['*.a.com'], http: to-https}]}"],
        "hosts: []",
    );
    for host in ["x.a.com", "x.a.com:80", "x.a.com:8080", "x.a.com:443", "X.a.com"] {
        let answer = gateway.ask(8080, host, "/p/q?r=s");
        assert_eq!(answer.status(), 301);
        assert_eq!(answer.field("location"), Some(format!("https://{host}/p/q?r=s")));
    }
    assert_eq!(gateway.ask(8080, "b.com", "/").status(), 404);
}

// spec: GW-012, BYD-062, BYD-067
#[test]
fn requests_that_cannot_be_served_are_refused_as_the_clients_fault() {
    let app = App::echo();
    let gateway = Gateway::start(&[&for_all(8080)], &echo_endpoints(&[(app.address, false)]));
    let status = |request: &str| {
        let mut client = gateway.connect(8080);
        client.send(request);
        let answer = client.receive().expect("an answer");
        (answer.status(), client.is_closed())
    };
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), (400, true));
    assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), (400, true));
    let both =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(status(both), (400, true));
    assert_eq!(status("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"), (404, true));
    assert_eq!(status("GET /%2e%2e%00 HTTP/1.1\r\nHost: a\r\n\r\n").0, 400);
    assert_eq!(app.count(), 0);
    // HTTP/1.0 may leave out whom it is for; the backend is told something.
    assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), (200, true));
    assert_eq!(app.last().field("host").as_deref(), Some(ECHO));
    // The authority of the target counts, and what follows is what the path is.
    let mut client = gateway.connect(8080);
    client.send("GET http://shop.example.com/abs HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 200);
    assert_eq!(app.last().field("host").as_deref(), Some("shop.example.com"));
    assert!(app.last().head.starts_with("GET /abs "));
    // HTTP/2 with prior knowledge is taken as well.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut stream = TcpStream::connect(gateway.at(8080)).expect("the gateway listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream.write_all(preface).expect("sent");
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).expect("a frame");
    assert_eq!(frame[3], 4, "SETTINGS");
}

// spec: GW-056, GW-058, VS-163, VS-166
#[test]
fn tls_passes_through_by_its_server_name_and_by_nothing_else() {
    let (v1, v2) = (greeter("v1"), greeter("v2"));
    let rule = |sni: &str, subset: &str| {
        format!("{{sni: ['{sni}'], destinations: [{{host: {ECHO}, port: 80, subset: {subset}}}]}}")
    };
    let listener = |rules: &[String]| format!("{{port: 8443, tls: {{passthrough: [{}]}}}}", rules.join(", "));
    let named = listener(&[rule("a.com", "v1"), rule("*.b.com", "v2")]);
    let gateway = Gateway::start(&[&named], &versions(&[v1], &[v2]));
    assert_eq!(gateway.said(8443, &client_hello("a.com")), "v1");
    assert_eq!(gateway.said(8443, &client_hello("A.com")), "v1");
    assert_eq!(gateway.said(8443, &client_hello("x.b.com")), "v2");
    let nameless = client_hello("127.0.0.1");
    for refused in [
        &client_hello("b.com")[..],
        &client_hello("c.com"),
        &nameless,
        b"no TLS at all",
    ] {
        assert_eq!(gateway.said(8443, refused), "");
    }
    // A connection is counted at its end, after the client has seen it.
    wait_for("what was refused in the metrics", || {
        let metrics = gateway.proxy.shared.telemetry.prometheus();
        metrics.contains("response_flags=\"NR\"")
    });
    // Whoever names nobody is served where any name is.
    gateway
        .proxy
        .configure(&bundle(&[&listener(&[rule("a.com", "v1"), rule("*", "v2")])]));
    assert_eq!(gateway.said(8443, &client_hello("a.com")), "v1");
    assert_eq!(gateway.said(8443, &client_hello("c.com")), "v2");
    assert_eq!(gateway.said(8443, &nameless), "v2");
}

// spec: DR-037
#[test]
fn at_a_gateway_there_is_no_address_that_was_dialled() {
    let app = App::echo();
    let to = format!("{{port: 31400, tcp: [{{host: {ECHO}, port: 80}}]}}");
    let listeners = [for_all(8080), to];
    let listeners = listeners.each_ref().map(String::as_str);
    let gateway = Gateway::start(&listeners, &echo_endpoints(&[(app.address, false)]));
    let bundle = bundle(&listeners);
    gateway.proxy.configure(&bundle.replace(
        "protocol: http}",
        "protocol: http, policy: {loadBalancer: passthrough}}",
    ));
    let answer = gateway.ask(8080, "a.com", "/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
    assert_eq!(gateway.said(31400, b"GET / HTTP/1.1\r\n\r\n"), "");
    gateway.proxy.wait_for_flags("UH");
    assert_eq!(app.count(), 0);
}

// spec: GW-068, VS-173
#[test]
fn other_connections_go_where_the_port_says() {
    let (v1, v2) = (greeter("v1"), greeter("v2"));
    let to = |subset: &str| format!("{{host: {ECHO}, port: 80, subset: {subset}}}");
    let listener = |subset: &str| format!("{{port: 31400, tcp: [{}]}}", to(subset));
    let gateway = Gateway::start(&[&listener("v1")], &versions(&[v1], &[v2]));
    // Also before the client has said anything.
    assert_eq!(gateway.said(31400, b""), "v1");
    gateway.proxy.configure(&bundle(&[&listener("v2")]));
    assert_eq!(gateway.said(31400, b"GET / HTTP/1.1\r\n\r\n"), "v2");
    // A port without listener is closed.
    assert!(TcpStream::connect(gateway.at(8080)).is_err());
}

/// A gateway as a program of its own.
struct Pod {
    volumes: Volumes,
    ip: IpAddr,
}

impl Pod {
    fn new(endpoints: &[SocketAddr], listeners: &[&str]) -> (Self, String) {
        let this = Self {
            volumes: Volumes::new(&Authority::new(), "istio-ingress/ingress"),
            ip: address(),
        };
        this.volumes.endpoints(endpoints);
        let revision = this.volumes.configure(&bundle(listeners));
        (this, revision)
    }

    fn start(&self, flags: &[&str]) -> Process {
        let mut all = vec!["gateway"];
        all.extend(flags);
        Process::start(&self.volumes, self.ip, &all, &[]).ready()
    }

    /// Publishes other listeners and waits until they are said to be in force.
    fn change(&self, proxy: &Process, listeners: &str) {
        let revision = self.volumes.configure(listeners);
        proxy.wait_for_config(&revision);
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    fn is_open(&self, port: u16) -> bool {
        TcpStream::connect(self.at(port)).is_ok()
    }

    fn status(&self, port: u16) -> u16 {
        Client::connect(self.at(port)).get("/", "").status()
    }
}

/// Answers once it is let go.
fn held() -> (App, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let let_go = go.clone();
    let app = App::new(Arc::new(move |seen, stream| {
        if seen.head.starts_with("GET /wait ") {
            wait_for("the word to go on", || let_go.load(Ordering::SeqCst));
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .is_ok()
    }));
    (app, go)
}

// spec: LIFE-006, LIFE-049, GW-079, GW-080
#[test]
fn ports_are_opened_before_their_configuration_is_reported_and_drain_when_they_are_closed() {
    let (app, go) = held();
    let (pod, _) = Pod::new(&[app.address], &[&for_all(8080)]);
    let proxy = pod.start(&[]);
    assert_eq!(pod.status(8080), 200);
    assert!(!pod.is_open(8081) && !pod.is_open(15001) && !pod.is_open(15006));
    let mut other = Client::connect(pod.at(8080));
    other.get("/", "");
    for port in 8081..8085 {
        pod.change(&proxy, &bundle(&[&for_all(8080), &for_all(port)]));
        // At once: whoever is told that it is in force may rely on it.
        assert_eq!(pod.status(port), 200, "{port}");
    }
    // 8081 to 8083 were closed on the way.
    wait_for("the ports to be closed", || (8081..8084).all(|port| !pod.is_open(port)));
    let mut waits = Client::connect(pod.at(8084));
    waits.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut idle = Client::connect(pod.at(8084));
    assert_eq!(idle.get("/", "").field("connection"), None);
    wait_for("the request", || app.count() >= 7);
    pod.change(&proxy, &bundle(&[&for_all(8080)]));
    wait_for("the port to be closed", || !pod.is_open(8084));
    // Who is connected is served as before, and asked to go.
    let answer = idle.get("/", "");
    assert_eq!(
        (answer.status(), answer.field("connection").as_deref()),
        (200, Some("close"))
    );
    assert!(idle.is_closed());
    go.store(true, Ordering::SeqCst);
    let answer = waits.receive().expect("what was in flight is answered");
    assert_eq!(
        (answer.status(), answer.field("connection").as_deref()),
        (200, Some("close"))
    );
    assert_eq!(other.get("/", "").status(), 200, "connections to other ports stay");
    // A port that comes back is served anew.
    pod.change(&proxy, &bundle(&[&for_all(8080), &for_all(8084)]));
    assert_eq!(pod.status(8084), 200);
}

// spec: LIFE-049, LIFE-034
#[test]
fn what_is_left_on_a_closed_port_ends_with_the_drain() {
    let server = TcpListener::bind((address(), 0)).expect("listener");
    let to = server.local_addr().expect("address");
    let listener = format!("{{port: 31400, tcp: [{{host: {ECHO}, port: 80}}]}}");
    let (pod, _) = Pod::new(&[to], &[&listener]);
    let proxy = pod.start(&[]);
    let connect = || {
        let client = TcpStream::connect(pod.at(31400)).expect("the gateway listens");
        client.set_read_timeout(Some(LIMIT)).expect("option");
        let (peer, _) = server.accept().expect("carried on");
        (client, peer)
    };
    let (mut client, mut peer) = connect();
    let with_drain = |ms: u64, rest: &str| {
        format!(
            "{}{rest}mesh: {{drainMs: {ms}}}\n",
            bundle(&[]).replace("listeners:\n", "")
        )
    };
    pod.change(&proxy, &with_drain(600_000, ""));
    wait_for("the port to be closed", || !pod.is_open(31400));
    // What drains is carried on.
    client.write_all(b"x").expect("sent");
    let mut byte = [0];
    peer.read_exact(&mut byte).expect("carried");
    pod.change(&proxy, &with_drain(600_000, &format!("listeners:\n- {listener}\n")));
    let (mut second, _peer) = connect();
    pod.change(&proxy, &with_drain(100, ""));
    assert_eq!(second.read(&mut byte).unwrap_or(0), 0, "its time is over");
    // The one before has the time that it was given when its port was closed.
    client.write_all(b"y").expect("sent");
    peer.read_exact(&mut byte).expect("carried");
    assert_eq!(byte, *b"y");
}

// spec: LIFE-049
#[test]
fn another_protocol_on_a_port_is_for_new_connections() {
    let app = App::echo();
    let (pod, _) = Pod::new(&[app.address], &[&for_all(8080)]);
    let proxy = pod.start(&[]);
    let sockets = || {
        let text = std::fs::read_to_string(format!("/proc/{}/net/tcp", proxy.child.id())).expect("the process lives");
        let IpAddr::V4(ip) = pod.ip else { panic!("IPv4") };
        let listening = format!("{:08X}:{:04X} 00000000:0000 0A", u32::from_le_bytes(ip.octets()), 8080);
        let of = text.lines().filter(|line| line.contains(&listening));
        let inodes = of.filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned));
        inodes.collect::<Vec<_>>()
    };
    let before = sockets();
    assert!(!before.is_empty());
    let mut open = Client::connect(pod.at(8080));
    assert_eq!(open.get("/", "").status(), 200);
    let tls =
        format!("{{port: 8080, tls: {{passthrough: [{{sni: ['*'], destinations: [{{host: {ECHO}, port: 80}}]}}]}}}}");
    pod.change(&proxy, &bundle(&[&tls]));
    let mut new = Client::connect(pod.at(8080));
    new.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(new.receive().is_none(), "no TLS");
    assert_eq!(
        open.get("/", "").status(),
        404,
        "it is answered, though no rule is left"
    );
    assert_eq!(sockets(), before, "the same sockets");
}

// spec: LIFE-049
#[test]
fn a_port_that_somebody_else_has_is_told_and_holds_nothing_else_back() {
    let app = App::echo();
    let (pod, _) = Pod::new(&[app.address], &[&for_all(8080)]);
    let taken = TcpListener::bind(pod.at(8081)).expect("listener");
    let proxy = pod.start(&[]);
    pod.change(&proxy, &bundle(&[&for_all(8081), &for_all(8082)]));
    let listeners = || {
        let status: serde_json::Value = serde_json::from_str(&proxy.get(15020, "/config/status").text()).expect("JSON");
        status["listeners"].clone()
    };
    let of =
        |port: u16, state: &str, errno: Option<&str>| serde_json::json!({"port": port, "state": state, "errno": errno});
    let open = of(8082, "Programmed", None);
    assert_eq!(
        listeners(),
        serde_json::json!([of(8081, "NotProgrammed", Some("EADDRINUSE")), open])
    );
    assert_eq!(pod.status(8082), 200);
    assert!(proxy.is_ready());
    assert!(proxy.log().contains("cannot be opened"), "{}", proxy.log());
    // It is tried again.
    drop(taken);
    wait_for("the port", || pod.is_open(8081));
    assert_eq!(pod.status(8081), 200);
    assert_eq!(listeners(), serde_json::json!([of(8081, "Programmed", None), open]));
}

// spec: LIFE-041, LIFE-049
#[test]
fn changes_of_other_ports_fail_no_request() {
    let app = App::echo();
    let (pod, _) = Pod::new(&[app.address], &[&for_all(8080)]);
    let proxy = pod.start(&["--concurrency", "2"]);
    let stop = Arc::new(AtomicBool::new(false));
    let failed: Arc<Mutex<Vec<String>>> = Arc::default();
    let at = pod.at(8080);
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (stop, failed) = (stop.clone(), failed.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    let stream = TcpStream::connect(at);
                    let answer = stream.ok().and_then(|stream| {
                        let mut client = Client::over(stream);
                        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                        client.receive()
                    });
                    match answer.map(|answer| answer.status()) {
                        Some(200) => count += 1,
                        other => failed
                            .lock()
                            .expect("no panic")
                            .push(format!("{other:?} after {count}")),
                    }
                }
                count
            })
        })
        .collect();
    for n in 0..20 {
        pod.change(&proxy, &bundle(&[&for_all(8080), &for_all(9000 + n)]));
    }
    stop.store(true, Ordering::SeqCst);
    let count: usize = callers.into_iter().map(|caller| caller.join().expect("no panic")).sum();
    assert_eq!(*failed.lock().expect("no panic"), Vec::<String>::new());
    assert!(count > 0);
}

// spec: LIFE-096, LIFE-021, LIFE-026
#[test]
fn a_gateway_that_ends_serves_everybody_until_its_grace_period_is_nearly_over() {
    let app = App::echo();
    let (pod, _) = Pod::new(&[app.address], &[&for_all(8080)]);
    let mut proxy = pod.start(&["--grace-seconds", "3"]);
    let mut open = Client::connect(pod.at(8080));
    assert_eq!(open.get("/", "").field("connection"), None);
    proxy.signal(Signal::SIGTERM);
    wait_for("the drain", || !proxy.is_ready());
    // Load balancers learn late: new connections are served, too, and all are asked to go.
    for answer in [open.get("/", ""), Client::connect(pod.at(8080)).get("/", "")] {
        assert_eq!(
            (answer.status(), answer.field("connection").as_deref()),
            (200, Some("close"))
        );
    }
    assert_eq!(proxy.wait(), Some(0));
}

/// The bundle of a gateway with these listeners and policies.
fn guarded(listeners: &[&str], policies: &str) -> String {
    format!("{}authorization:\n{policies}\n", bundle(listeners))
}

const NOBODY: &str = "- {namespace: istio-ingress, name: nobody, action: DENY, rules: [{}]}";

// spec: AUTHZ-004, AUTHZ-060, AUTHZ-022, BYD-064
#[test]
fn policies_of_a_gateway_judge_what_its_clients_ask_for() {
    let app = App::echo();
    let gateway = Gateway::start(&[&for_all(8080)], &echo_endpoints(&[(app.address, false)]));
    gateway.proxy.configure(&guarded(
        &[&for_all(8080)],
        "- {namespace: istio-ingress, name: p, rules: [{to: [[{key: request.host, values: [h.example]}]]}, {from: [[{key: \
         source.ip, values: [127.0.0.1]}]], to: [[{key: request.path, values: [/ip]}]]}, {from: [[{key: remote.ip, values: \
         [1.2.3.4]}]], to: [[{key: request.path, values: [/rip]}]]}]}",
    ));
    assert_eq!(gateway.ask(8080, "h.example", "/").status(), 200);
    assert_eq!(gateway.ask(8080, "h.example:8080", "/").status(), 200);
    assert_eq!(gateway.ask(8080, "g.example", "/ip").status(), 200);
    let refused = gateway.ask(8080, "g.example", "/");
    assert_eq!(
        (refused.status(), refused.text().as_str()),
        (403, "RBAC: access denied")
    );
    assert_eq!(refused.field("x-weft-reason"), None);
    let mut client = gateway.connect(8080);
    // Whoever reaches a gateway may write anything there.
    client.send("GET /rip HTTP/1.1\r\nHost: g.example\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 403);
}

// spec: AUTHZ-004, AUTHZ-055, AUTHZ-082, BYD-002, BYD-065
#[test]
fn policies_of_a_gateway_judge_connections_too() {
    let (one, two) = ("{port: 8443, tls: {passthrough: [{sni: ['*'], destinations: [", "]}]}}");
    let tls = format!("{one}{{host: {ECHO}, port: 80}}{two}");
    let tcp = format!("{{port: 31400, tcp: [{{host: {ECHO}, port: 80}}]}}");
    let listeners = [tls.as_str(), tcp.as_str()];
    let gateway = Gateway::start(&listeners, &echo_endpoints(&[(greeter("hello"), false)]));
    assert_eq!(gateway.said(8443, &client_hello("a.example")), "hello");
    assert_eq!(gateway.said(31400, b""), "hello");
    let by_name = "- {namespace: istio-ingress, name: p, action: DENY, rules: [{when: [{key: connection.sni, values: \
                   [a.example]}]}]}";
    gateway.proxy.configure(&guarded(&listeners, by_name));
    assert_eq!(gateway.said(8443, &client_hello("a.example")), "");
    assert_eq!(gateway.said(8443, &client_hello("b.example")), "hello");
    assert_eq!(gateway.said(31400, b""), "hello");
    gateway.proxy.configure(&guarded(&listeners, NOBODY));
    assert_eq!(gateway.said(31400, b""), "");

    // What is open goes on under a policy that allows it.
    let server = TcpListener::bind((address(), 0)).expect("listener");
    gateway
        .proxy
        .endpoints(&echo_endpoints(&[(server.local_addr().expect("address"), false)]));
    gateway.proxy.configure(&guarded(&listeners, by_name));
    let mut client = TcpStream::connect(gateway.at(31400)).expect("the gateway listens");
    client.set_read_timeout(Some(LIMIT)).expect("option");
    let (mut peer, _) = server.accept().expect("carried on");
    gateway
        .proxy
        .configure(&guarded(&listeners, &by_name.replace("a.example", "c.example")));
    client.write_all(b"x").expect("sent");
    let mut byte = [0];
    peer.read_exact(&mut byte).expect("carried");
    gateway.proxy.configure(&guarded(&listeners, NOBODY));
    assert_eq!(client.read(&mut byte).unwrap_or(0), 0, "it is refused now");
    let counted = "weft_policy_closed_total{policy=\"AuthorizationPolicy istio-ingress/nobody\"} 1";
    wait_for("the count", || {
        gateway.proxy.shared.telemetry.prometheus().contains(counted)
    });
}

// spec: BYD-002
#[test]
fn an_answer_of_a_gateway_lasts_until_a_policy_refuses_its_request() {
    let app = support::serving(address(), |mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.read(&mut buffer).await;
    });
    let gateway = Gateway::start(&[&for_all(8080)], &echo_endpoints(&[(app, false)]));
    let mut client = gateway.connect(8080);
    client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_for("the beginning", || {
        client.read_more() && client.buffered().contains("abc")
    });
    gateway.proxy.configure(&guarded(
        &[&for_all(8080)],
        "- {namespace: istio-ingress, name: p, action: DENY, rules: [{to: [[{key: request.path, values: [/stream]}]]}]}",
    ));
    wait_for("the end", || !client.read_more());
}
