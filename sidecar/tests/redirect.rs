//! The real redirect in a network namespace of its own: both captures, one after the other, by a call of a pod to its
//! own service.

mod support;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::net::{
    Backend, FAR, NEIGHBOUR, NEIGHBOUR6, POD, POD6, PROXY, in_namespace, in_pod, init, ip, with_each_backend,
};
use support::process::{Process, Volumes, ask};
use support::{App, Authority, Client, LIMIT, Proxy, echo_endpoints, virtual_address, wait_for, workload};
use weft_sidecar::shared::{Role, Settings};

/// Mark of the proxy's own sockets.
const MARK: u32 = 1339;

fn pod_address() -> IpAddr {
    Ipv4Addr::new(10, 99, 0, 2).into()
}

fn proxy(authority: &Authority, app: SocketAddr, inbound: &str) -> Proxy {
    // Every pod has a default route, else a dial ends before the redirect sees it (LOC-028).
    ip("link add eth0 type veth peer name eth1");
    ip("link set eth0 up");
    ip("link set eth1 up");
    ip("address add 10.99.0.3/24 dev eth0");
    ip("route add default dev eth0");
    let (code, said) = init(&["--proxy-mark", &MARK.to_string()]);
    assert_eq!(code, 0, "{said}");
    let bundle = format!(
        "{}\ninbound: {inbound}\nhosts:\n- host: echo.app.svc.cluster.local\n  name: echo\n  namespace: app\n  domains: \
         [echo]\n  addresses: [{}]\n  ports: [{{port: 80, name: main, protocol: auto}}]\n",
        workload("app/echo"),
        virtual_address().ip()
    );
    Proxy::with(
        vec![
            ("127.0.0.1:15001".parse().expect("address"), Role::Outbound),
            ("0.0.0.0:15006".parse().expect("address"), Role::Inbound),
        ],
        &bundle,
        &echo_endpoints(&[(app, true)]),
        Some(authority.identity("app/echo")),
        Settings {
            addresses: vec![pod_address()],
            mark: Some(MARK),
            inbound_source: true,
            ..Settings::default()
        },
    )
}

// spec: NET-061, NET-070, NET-029, NET-112, LOC-026, SM-038, SM-051, ID-101
#[test]
fn a_call_to_the_own_service_passes_both_captures() {
    in_namespace(|| {
        ip("address add 10.99.0.2/32 dev lo");
        let app = App::bound((pod_address(), 0), || {});
        let authority = Authority::new();
        let _proxy = proxy(&authority, app.address, "{mtls: STRICT}");
        let mut client = Client::connect(virtual_address());
        for _ in 0..3 {
            assert_eq!(client.get("/", "").status(), 200);
        }
        let seen = app.last();
        let xfcc = seen.field("x-forwarded-client-cert").expect("mesh mTLS with itself");
        assert!(xfcc.contains("URI=spiffe://cluster.local/ns/app/sa/echo"), "{xfcc}");
        assert_eq!(
            app.peers().last().map(|peer| peer.ip()),
            Some(Ipv4Addr::new(127, 0, 0, 6).into())
        );
    });
}

// spec: NET-013, NET-063, NET-062
#[test]
fn a_direct_connection_to_a_capture_port_is_closed() {
    in_namespace(|| {
        ip("address add 10.99.0.2/32 dev lo");
        let authority = Authority::new();
        let app: SocketAddr = (pod_address(), 8080).into();
        let _proxy = proxy(&authority, app, "{}");
        for port in [15001, 15006] {
            let target = SocketAddr::new(
                if port == 15001 {
                    Ipv4Addr::LOCALHOST.into()
                } else {
                    pod_address()
                },
                port,
            );
            let stream = TcpStream::connect(target).expect("the proxy listens");
            stream.set_read_timeout(Some(LIMIT)).expect("option");
            let mut client = Client::over(stream);
            assert!(client.is_closed(), "{target}");
        }
    });
}

// spec: NET-071, SM-051, ID-109
#[test]
fn the_own_address_is_not_captured() {
    in_namespace(|| {
        ip("address add 10.99.0.2/32 dev lo");
        let authority = Authority::new();
        let app: SocketAddr = (pod_address(), 8080).into();
        let _proxy = proxy(&authority, app, "{mtls: STRICT}");
        let listener = TcpListener::bind(app).expect("listener");
        let stream = TcpStream::connect(app).expect("not captured");
        let (_, peer) = listener.accept().expect("accepted");
        assert_eq!(peer, stream.local_addr().expect("address"));
    });
}

/// The program as user of the proxy, behind the redirect of a pod with addresses of both families.
fn pod_proxy(bundle: &str, endpoints: &[SocketAddr]) -> (Volumes, Process) {
    let (code, said) = init(&[]);
    assert_eq!(code, 0, "{said}");
    pod_process(bundle, endpoints, "REDIRECT", (PROXY, PROXY))
}

/// As [`pod_proxy`], with inbound connections that keep their addresses; for that the proxy is superuser in its group.
fn transparent_proxy(bundle: &str, endpoints: &[SocketAddr]) -> (Volumes, Process) {
    let (code, said) = init(&["--interception-mode", "TPROXY"]);
    assert_eq!(code, 0, "{said}");
    pod_process(bundle, endpoints, "TPROXY", (0, PROXY))
}

fn pod_process(bundle: &str, endpoints: &[SocketAddr], mode: &str, user: (u32, u32)) -> (Volumes, Process) {
    let volumes = Volumes::new(&Authority::new(), "app/echo");
    volumes.configure(bundle);
    volumes.endpoints(endpoints);
    let addresses = format!("{POD},{POD6}");
    let local = Ipv4Addr::LOCALHOST.into();
    let environment = [("WEFT_INTERCEPTION_MODE", mode)];
    let flags = ["--pod-ips", &addresses, "--concurrency", "1"];
    let proxy = Process::spawn(&volumes, local, local, &flags, &environment, Some(user)).ready();
    (volumes, proxy)
}

fn status_of(address: impl Into<IpAddr>, port: u16, path: &str) -> Option<u16> {
    ask(SocketAddr::new(address.into(), port), "GET", path, "").map(|answer| answer.status())
}

/// What a plain client gets for a request: a status, or the end of the connection.
fn plain_call(address: SocketAddr) -> Result<u16, &'static str> {
    let stream = TcpStream::connect_timeout(&address, LIMIT).map_err(|_| "refused")?;
    let mut client = Client::over(stream);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n");
    client.receive().map(|answer| answer.status()).ok_or("closed")
}

// spec: NET-001..NET-006, NET-008, NET-009, NET-010, NET-124, LIFE-078
#[test]
fn each_port_is_open_where_it_should_be_and_nowhere_else() {
    in_pod(|neighbour| {
        let (_volumes, _proxy) = pod_proxy(&workload("app/echo"), &[]);
        let open = |address: IpAddr, port| TcpStream::connect((address, port)).is_ok();
        let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let own: [IpAddr; 2] = [POD.into(), POD6.into()];
        for address in loopbacks {
            assert_eq!(status_of(address, 15000, "/ready"), Some(200), "{address}");
            assert!(open(address, 15001), "{address}");
        }
        for address in own {
            assert!(!open(address, 15000) && !open(address, 15001), "{address}");
            assert!(open(address, 15006), "{address}");
            assert_eq!(status_of(address, 15020, "/healthz/ready"), Some(200), "{address}");
            assert_eq!(status_of(address, 15021, "/healthz/ready"), Some(200), "{address}");
            assert_eq!(status_of(address, 15090, "/stats/prometheus"), Some(200), "{address}");
        }
        for port in [15002, 15004, 15008, 15053] {
            assert!(
                loopbacks.iter().chain(&own).all(|address| !open(*address, port)),
                "{port}"
            );
        }
        neighbour.run(move || {
            for address in own {
                assert_eq!(status_of(address, 15020, "/healthz/ready"), Some(200), "{address}");
                assert_eq!(status_of(address, 15021, "/healthz/ready"), Some(200), "{address}");
                assert_eq!(status_of(address, 15090, "/stats/prometheus"), Some(200), "{address}");
                assert_eq!(status_of(address, 15020, "/drain"), Some(405), "{address}");
                // Exempt from capture: nobody is there.
                assert!(TcpStream::connect((address, 15008)).is_err(), "{address}");
            }
        });
    });
}

// spec: NET-013, NET-014, NET-028, NET-029, NET-030, NET-031, NET-061, NET-075..NET-077, NET-124, SM-108, SM-109, LIFE-079
#[test]
fn inbound_traffic_reaches_the_application_and_nobody_else() {
    with_each_backend(|neighbour, _| {
        let app = App::bound((POD.into(), 8080), || {});
        let app6 = App::bound((POD6.into(), 8080), || {});
        let local = App::bound((Ipv4Addr::LOCALHOST.into(), 8082), || {});
        let local6 = App::bound((Ipv6Addr::LOCALHOST.into(), 8082), || {});
        let bundle = |inbound: &str| {
            format!(
                "{}inbound: {{ports: [{{port: 8082, protocol: http}}]{inbound}}}\n",
                workload("app/echo")
            )
        };
        let (volumes, proxy) = pod_proxy(&bundle(""), &[]);
        let call = |address: IpAddr, port| {
            let target = SocketAddr::new(address, port);
            neighbour.run(move || plain_call(target))
        };
        // A port that nobody declares.
        assert_eq!(call(POD.into(), 8080), Ok(200));
        assert_eq!(call(POD6.into(), 8080), Ok(200));
        assert_eq!(
            app.peers().last().map(|peer| peer.ip()),
            Some(Ipv4Addr::new(127, 0, 0, 6).into())
        );
        let source6: IpAddr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into();
        assert_eq!(app6.peers().last().map(|peer| peer.ip()), Some(source6));
        // An application on loopback alone, and a port where nobody listens.
        let begin = Instant::now();
        assert_eq!(call(POD.into(), 8082), Ok(503));
        assert_eq!(call(POD.into(), 8083), Ok(503));
        let target = SocketAddr::new(POD.into(), 8083);
        let ended = neighbour.run(move || {
            let mut stream = TcpStream::connect(target).expect("captured");
            stream.set_read_timeout(Some(LIMIT)).expect("option");
            std::io::Write::write_all(&mut stream, b"\0\0\0\0").expect("sent");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            rest.is_empty()
        });
        assert!(
            ended && begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        let revision = volumes.configure(&bundle(", destination: LOCALHOST"));
        proxy.wait_for_config(&revision);
        assert_eq!(call(POD.into(), 8082), Ok(200));
        assert_eq!(local.count(), 1);
        assert_eq!(call(POD6.into(), 8082), Ok(200));
        assert_eq!((local.count(), local6.count()), (1, 1));
        let revision = volumes.configure(&bundle(", mtls: STRICT"));
        proxy.wait_for_config(&revision);
        let before = app.count();
        assert_eq!(call(POD.into(), 8080), Err("closed"));
        assert_eq!(app.count(), before);
        // Somebody else's address, and the capture ports themselves.
        neighbour.run(|| ip(&format!("route add 10.98.0.0/16 via {POD}")));
        assert_eq!(call(Ipv4Addr::new(10, 98, 0, 1).into(), 8080), Err("closed"));
        assert_eq!(call(POD.into(), 15006), Err("closed"));
        assert_eq!(call(POD.into(), 15001), Err("closed"));
        let metrics = proxy.get(15090, "/stats/prometheus").text();
        assert!(
            metrics.contains("weft_inbound_foreign_destination_total 1\n"),
            "{metrics}"
        );
        assert!(
            metrics.contains("weft_inbound_self_port_rejected_total 2\n"),
            "{metrics}"
        );
        // What changes something is for the pod itself.
        let foreign = neighbour.run(|| ask((POD, 15020).into(), "POST", "/drain", "").map(|answer| answer.status()));
        assert_eq!(foreign, Some(403));
        assert!(proxy.is_ready());
    });
}

// spec: NET-059, NET-072, SM-076, SM-078, SM-130, NET-045
#[test]
fn outbound_traffic_passes_and_a_dialled_pod_is_the_one_that_is_reached() {
    with_each_backend(|neighbour, _| {
        let apps = neighbour
            .run(|| [(NEIGHBOUR, 9000), (FAR, 9000), (NEIGHBOUR, 6443)].map(|(a, p)| App::bound((a.into(), p), || {})));
        let bundle = format!(
            "{}hosts:\n- host: echo.app.svc.cluster.local\n  name: echo\n  namespace: app\n  domains: [echo]\n  headless: \
             true\n  ports: [{{port: 9000, name: main, protocol: tcp}}]\n",
            workload("app/echo")
        );
        let (_volumes, proxy) = pod_proxy(&bundle, &[(NEIGHBOUR, 9000).into(), (FAR, 9000).into()]);
        for _ in 0..4 {
            assert_eq!(plain_call((FAR, 9000).into()), Ok(200));
        }
        assert_eq!(
            (
                apps[0].connections.load(Ordering::SeqCst),
                apps[1].connections.load(Ordering::SeqCst)
            ),
            (0, 4)
        );
        // Nothing of the mesh: passed through.
        assert_eq!(plain_call((NEIGHBOUR, 6443).into()), Ok(200));
        let metrics = proxy.get(15090, "/stats/prometheus").text();
        assert!(
            metrics.contains("destination_service=\"echo.app.svc.cluster.local\""),
            "{metrics}"
        );
        assert!(metrics.contains("PassthroughCluster"), "{metrics}");
    });
}

// spec: NET-066, SM-130
#[test]
fn an_endpoint_stands_for_its_service_where_nodes_translate_services_before_the_redirect() {
    in_pod(|neighbour| {
        let apps = neighbour.run(|| [(NEIGHBOUR, 9000), (FAR, 9001)].map(|(a, p)| App::bound((a.into(), p), || {})));
        let bundle = |mesh: &str, protocol: &str| {
            let host = |name: &str, address: &str| {
                format!(
                    "- host: {name}.app.svc.cluster.local\n  name: {name}\n  namespace: app\n  domains: [{name}]\n  \
                     addresses: [{address}]\n  ports: [{{port: 80, name: main, protocol: {protocol}}}]\n"
                )
            };
            let hosts = [host("echo", "10.96.0.1"), host("other", "10.96.0.2")].concat();
            format!("{}{mesh}hosts:\n{hosts}", workload("app/echo"))
        };
        let lookup = "mesh: {endpointLookup: true}\n";
        let (volumes, proxy) = pod_proxy(&bundle("", "http"), &[]);
        let of = |name: &str, address: SocketAddr| weft_bundle::pack::HostInput {
            host: format!("{name}.app.svc.cluster.local"),
            accounts: vec!["app/echo".into()],
            endpoints: vec![support::process::endpoint(address)],
        };
        let revision = volumes.endpoints_of(&[of("echo", (NEIGHBOUR, 9000).into()), of("other", (FAR, 9001).into())]);
        proxy.wait_for_endpoints(&revision);
        let counted = || apps.each_ref().map(App::count);
        let seen = |text: &str| proxy.get(15090, "/stats/prometheus").text().contains(text);
        let call = |name: &str| {
            let mut client = Client::connect((NEIGHBOUR, 9000).into());
            client.send(&format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"));
            client.receive().map(|answer| answer.status())
        };
        // Else who dials a pod means the pod.
        assert_eq!((call("other"), counted()), (Some(200), [1, 0]));
        assert!(seen("PassthroughCluster") && !seen("destination_service=\"other.app.svc.cluster.local\""));
        // HTTP goes by its Host, not to the endpoint.
        let revision = volumes.configure(&bundle(lookup, "http"));
        proxy.wait_for_config(&revision);
        assert_eq!((call("other"), counted()), (Some(200), [1, 1]));
        assert_eq!((call("echo"), counted()), (Some(200), [2, 1]));
        wait_for("the calls", || {
            ["echo", "other"]
                .iter()
                .all(|name| seen(&format!("destination_service=\"{name}.app.svc.cluster.local\"")))
        });
        // What is no HTTP goes by the endpoint, and one that nobody has is passed through as ever.
        let revision = volumes.configure(&bundle(lookup, "tcp"));
        proxy.wait_for_config(&revision);
        assert_eq!((call("echo"), counted()), (Some(200), [3, 1]));
        wait_for("the connection", || {
            let metrics = proxy.get(15090, "/stats/prometheus").text();
            metrics.lines().any(|line| {
                line.contains("tcp_connections_opened_total")
                    && line.contains("destination_service=\"echo.app.svc.cluster.local\"")
            })
        });
        let stranger = neighbour.run(|| App::bound((NEIGHBOUR.into(), 9002), || {}));
        assert_eq!(plain_call((NEIGHBOUR, 9002).into()), Ok(200));
        assert_eq!(stranger.count(), 1);
    });
}

// spec: NET-138, SM-052
#[test]
fn without_a_redirect_the_application_asks_the_loopback_proxy() {
    in_pod(|neighbour| {
        let app = neighbour.run(|| App::bound((NEIGHBOUR.into(), 9000), || {}));
        let bundle = format!(
            "{}mesh: {{httpProxyPort: 15080}}\nhosts:\n- host: echo.app.svc.cluster.local\n  name: echo\n  namespace: \
             app\n  domains: [echo]\n  addresses: [{}]\n  ports: [{{port: 80, name: main, protocol: http}}]\n",
            workload("app/echo"),
            virtual_address().ip()
        );
        let (_volumes, proxy) = pod_process(&bundle, &[(NEIGHBOUR, 9000).into()], "NONE", (PROXY, PROXY));
        let seen = |text: &str| proxy.get(15090, "/stats/prometheus").text().contains(text);
        // By itself nothing passes the proxy.
        assert_eq!(plain_call((NEIGHBOUR, 9000).into()), Ok(200));
        assert!(!seen("PassthroughCluster") && !seen("echo.app.svc.cluster.local"));
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let mut client = Client::connect(SocketAddr::new(loopback, 15080));
            client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
            assert_eq!(client.receive().map(|answer| answer.status()), Some(200), "{loopback}");
        }
        assert_eq!(app.count(), 3);
        wait_for("the calls", || {
            seen("destination_service=\"echo.app.svc.cluster.local\"")
        });
        assert!(TcpStream::connect((POD, 15080)).is_err(), "for the pod alone");
        // And inbound the application is reached past the proxy.
        let own = App::bound((POD.into(), 8080), || {});
        assert_eq!(neighbour.run(|| plain_call((POD, 8080).into())), Ok(200));
        assert_eq!(own.peers().last().map(|peer| peer.ip()), Some(NEIGHBOUR.into()));
    });
}

// spec: LIFE-050
#[test]
fn settings_of_the_process_wait_for_its_restart_and_the_rest_does_not() {
    in_pod(|neighbour| {
        let app = App::bound((POD.into(), 8080), || {});
        let bundle =
            |mesh: &str, mtls: &str| format!("{}mesh: {{{mesh}}}\ninbound: {{mtls: {mtls}}}\n", workload("app/echo"));
        let (volumes, proxy) = pod_proxy(&bundle("", "PERMISSIVE"), &[]);
        let required = || {
            let answer = proxy.get(15020, "/config/status").text();
            let status: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
            status["restartRequired"].clone()
        };
        let call = || neighbour.run(|| plain_call((POD, 8080).into()));
        assert_eq!((required(), call()), (serde_json::json!([]), Ok(200)));
        let changed = "process: {inboundPort: 16006, interceptionMode: TPROXY, concurrency: 4, dnsCapture: true}, \
                       httpProxyPort: 15080";
        let revision = volumes.configure(&bundle(changed, "STRICT"));
        proxy.wait_for_config(&revision);
        let names = [
            "proxyInboundListenPort",
            "concurrency",
            "interceptionMode",
            "ISTIO_META_DNS_CAPTURE",
            "proxyHttpPort",
        ];
        assert_eq!(required(), serde_json::json!(names));
        // The rest of it holds, on the port that is open.
        assert_eq!(call(), Err("closed"));
        assert_eq!(app.count(), 1);
        assert!(proxy.is_ready() && TcpStream::connect((Ipv4Addr::LOCALHOST, 15080)).is_err());
        let revision = volumes.configure(&bundle("", "PERMISSIVE"));
        proxy.wait_for_config(&revision);
        assert_eq!((required(), call()), (serde_json::json!([]), Ok(200)));
    });
}

// spec: NET-073
#[test]
fn peers_find_each_other_before_they_are_ready() {
    in_pod(|neighbour| {
        let peer = neighbour.run(|| App::bound((NEIGHBOUR.into(), 9000), || {}));
        let app = App::bound((POD.into(), 9000), || {});
        let bundle = format!(
            "{}hosts:\n- host: echo.app.svc.cluster.local\n  name: echo\n  namespace: app\n  domains: [echo]\n  headless: \
             true\n  ports: [{{port: 9000, name: main, protocol: tcp}}]\n",
            workload("app/echo")
        );
        let (volumes, proxy) = pod_proxy(&bundle, &[]);
        let unready = weft_bundle::pack::EndpointInput {
            health: weft_bundle::wire::Health::Unready,
            ..support::process::endpoint((NEIGHBOUR, 9000).into())
        };
        let revision = volumes.endpoints_of(&[weft_bundle::pack::HostInput {
            host: "echo.app.svc.cluster.local".into(),
            accounts: vec!["app/echo".into()],
            endpoints: vec![unready],
        }]);
        proxy.wait_for_endpoints(&revision);
        // Nor is this pod.
        assert_eq!(proxy.post(15000, "/healthcheck/fail").status(), 200);
        assert!(!proxy.is_ready());
        assert_eq!(plain_call((NEIGHBOUR, 9000).into()), Ok(200));
        assert_eq!(neighbour.run(|| plain_call((POD, 9000).into())), Ok(200));
        assert_eq!((peer.count(), app.count()), (1, 1));
        wait_for("the call in the metrics", || {
            let metrics = proxy.get(15090, "/stats/prometheus").text();
            metrics.contains("destination_service=\"echo.app.svc.cluster.local\"")
        });
    });
}

// spec: NET-151
#[test]
fn unreachable_destinations_make_no_loop() {
    const CLIENTS: usize = 1000;
    in_pod(|_| {
        let (_volumes, proxy) = pod_proxy(&workload("app/echo"), &[]);
        let before = proxy.descriptors();
        // An address of the wire that nobody has.
        let clients: Vec<TcpStream> = (0..CLIENTS)
            .map(|_| TcpStream::connect((Ipv4Addr::new(10, 99, 0, 77), 80)).expect("captured"))
            .collect();
        let mut most = 0;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            most = most.max(proxy.descriptors());
            support::pause(Duration::from_millis(50));
        }
        assert!(most > before + CLIENTS / 2, "{most}: the proxy has the connections");
        assert!(most <= before + 2 * CLIENTS + 50, "{most}");
        drop(clients);
        wait_for("the end", || proxy.descriptors() <= before + 20);
    });
}

/// A connection from an address of the caller's namespace.
fn connect_from(source: IpAddr, target: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::new(source, 0).into()).expect("bound");
    socket.connect_timeout(&target.into(), LIMIT).expect("captured");
    socket.into()
}

// spec: NET-064, NET-065, NET-080, NET-081, NET-100, NET-153
#[test]
fn under_tproxy_the_application_sees_the_client() {
    with_each_backend(|neighbour, backend| {
        let app = App::bound((POD.into(), 8080), || {});
        let app6 = App::bound((POD6.into(), 8080), || {});
        let bundle = |inbound: &str| {
            format!(
                "{}inbound: {{ports: [{{port: 8080, protocol: http}}]{inbound}}}\n",
                workload("app/echo")
            )
        };
        let (volumes, mut proxy) = transparent_proxy(&bundle(""), &[]);
        let sources: [(IpAddr, SocketAddr); 3] = [
            (NEIGHBOUR.into(), (POD, 8080).into()),
            (FAR.into(), (POD, 8080).into()),
            (NEIGHBOUR6.into(), (POD6, 8080).into()),
        ];
        for (source, target) in sources {
            let ports = neighbour.run(move || {
                let mut clients = [(); 2].map(|()| Client::over(connect_from(source, target)));
                for client in &mut clients {
                    assert_eq!(client.get("/", "").status(), 200, "{source}");
                }
                clients.map(|client| client.stream.local_addr().expect("address").port())
            });
            let app = if target.is_ipv4() { &app } else { &app6 };
            let peer = *app.peers().last().expect("a connection");
            assert_eq!(peer.ip(), source);
            assert!(
                !ports.contains(&peer.port()),
                "the proxy's connection, not the client's: {peer}"
            );
        }
        // One worker, so that what is idle would be there for all.
        let of = |client: IpAddr| app.peers().iter().filter(|peer| peer.ip() == client).count();
        assert_eq!((of(NEIGHBOUR.into()), of(FAR.into())), (1, 1));
        // More than one packet in both directions, on a port that nobody declares, with an application that begins.
        let listener = TcpListener::bind((POD, 9090)).expect("listener");
        std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().expect("a connection");
            let _ = std::io::Write::write_all(&mut stream, peer.ip().to_string().as_bytes());
            let mut all = vec![0; 1 << 20];
            stream.read_exact(&mut all).expect("all of it");
            std::io::Write::write_all(&mut stream, &all).expect("sent");
        });
        let echoed = neighbour.run(|| {
            let mut stream = TcpStream::connect((POD, 9090)).expect("captured");
            stream.set_read_timeout(Some(LIMIT)).expect("option");
            let mut banner = vec![0; NEIGHBOUR.to_string().len()];
            stream.read_exact(&mut banner).expect("the application begins");
            let mut writer = stream.try_clone().expect("clone");
            let sending = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &vec![7; 1 << 20]));
            let mut all = vec![0; 1 << 20];
            stream.read_exact(&mut all).expect("all of it");
            sending.join().expect("no panic").expect("sent");
            (String::from_utf8(banner), all.iter().all(|byte| *byte == 7))
        });
        assert_eq!(echoed, (Ok(NEIGHBOUR.to_string()), true));
        // What comes in clear under STRICT is refused: it passed the proxy.
        let revision = volumes.configure(&bundle(", mtls: STRICT"));
        proxy.wait_for_config(&revision);
        let call = |address: IpAddr, port| {
            let target = SocketAddr::new(address, port);
            neighbour.run(move || plain_call(target))
        };
        assert_eq!(call(POD.into(), 8080), Err("closed"));
        assert_eq!(call(POD6.into(), 8080), Err("closed"));
        // Somebody else's address, and the capture ports themselves.
        neighbour.run(|| ip(&format!("route add 10.98.0.0/16 via {POD}")));
        assert_eq!(call(Ipv4Addr::new(10, 98, 0, 1).into(), 8080), Err("closed"));
        assert_eq!(call(POD.into(), 15006), Err("closed"));
        assert_eq!(call(POD.into(), 15001), Err("closed"));
        let metrics = proxy.get(15090, "/stats/prometheus").text();
        assert!(
            metrics.contains("weft_inbound_foreign_destination_total 1\n")
                && metrics.contains("weft_inbound_self_port_rejected_total 2\n"),
            "{metrics}"
        );
        // What is exempt arrives without it.
        let ready = neighbour.run(|| status_of(POD, 15021, "/healthz/ready"));
        assert_eq!(ready, Some(200));
        // Without a proxy nobody reaches the application.
        proxy.child.kill().expect("the process lives");
        proxy.wait();
        if backend == Backend::Nftables {
            assert_eq!(call(POD.into(), 8080), Err("refused"));
            assert_eq!(call(POD6.into(), 8080), Err("refused"));
        } else {
            // The target of iptables drops what nobody listens for.
            let connects = |address: IpAddr| {
                neighbour
                    .run(move || TcpStream::connect_timeout(&(address, 8080).into(), Duration::from_secs(1)).is_ok())
            };
            assert!(!connects(POD.into()) && !connects(POD6.into()));
        }
    });
}

// spec: NET-081
#[test]
fn under_tproxy_many_connections_of_one_client_do_not_meet() {
    const CLIENTS: usize = 400;
    in_pod(|neighbour| {
        let (_volumes, _proxy) = transparent_proxy(&workload("app/echo"), &[]);
        let listener = TcpListener::bind((POD, 9090)).expect("listener");
        std::thread::spawn(move || {
            // All are kept: each takes one of the ports that are drawn from.
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, b"hello");
                kept.push(stream);
            }
        });
        let greeted = neighbour.run(|| {
            let clients: Vec<TcpStream> = (0..CLIENTS)
                .map(|_| TcpStream::connect((POD, 9090)).expect("captured"))
                .collect();
            let greets = |mut client: &TcpStream| {
                let mut banner = [0; 5];
                let _ = client.set_read_timeout(Some(LIMIT));
                client.read_exact(&mut banner).is_ok()
            };
            clients.iter().filter(|client| greets(client)).count()
        });
        assert_eq!(greeted, CLIENTS);
    });
}

// spec: NET-065, NET-081, NET-082
#[test]
fn under_tproxy_calls_of_the_pod_to_itself_are_told_apart() {
    with_each_backend(|neighbour, _| {
        let outside = neighbour.run(|| App::bound((NEIGHBOUR.into(), 9000), || {}));
        let app = App::bound((POD.into(), 8080), || {});
        let bundle = format!(
            "{}inbound: {{mtls: STRICT}}\nhosts:\n- host: echo.app.svc.cluster.local\n  name: echo\n  namespace: app\n  \
             domains: [echo]\n  addresses: [{}]\n  ports: [{{port: 80, name: main, protocol: http}}]\n",
            workload("app/echo"),
            virtual_address().ip()
        );
        let (volumes, proxy) = transparent_proxy(&bundle, &[]);
        let endpoint = weft_bundle::pack::EndpointInput {
            tls: weft_bundle::wire::MeshTls::All,
            ..support::process::endpoint(app.address)
        };
        let revision = volumes.endpoints_of(&[weft_bundle::pack::HostInput {
            host: "echo.app.svc.cluster.local".into(),
            accounts: vec!["app/echo".into()],
            endpoints: vec![endpoint],
        }]);
        proxy.wait_for_endpoints(&revision);
        // By its service: both captures, and mTLS between them.
        let mut client = Client::connect(virtual_address());
        for _ in 0..3 {
            assert_eq!(client.get("/", "").status(), 200);
        }
        let xfcc = app
            .last()
            .field("x-forwarded-client-cert")
            .expect("mesh mTLS with itself");
        assert!(xfcc.contains("URI=spiffe://cluster.local/ns/app/sa/echo"), "{xfcc}");
        assert_eq!(app.peers().last().map(|peer| peer.ip()), Some(POD.into()));
        // By its address: nobody stands between, else STRICT would refuse it.
        let own = TcpStream::connect(app.address).expect("not captured");
        let local = own.local_addr().expect("address");
        assert_eq!(Client::over(own).get("/", "").status(), 200);
        assert_eq!(app.peers().last(), Some(&local));
        // As the kubelet's probes are made: past the capture.
        let probe = connect_from(Ipv4Addr::new(127, 0, 0, 6).into(), app.address);
        assert_eq!(Client::over(probe).get("/", "").status(), 200);
        // And what leaves the pod is redirected as ever.
        assert_eq!(plain_call((NEIGHBOUR, 9000).into()), Ok(200));
        assert_eq!(outside.count(), 1);
        let metrics = proxy.get(15090, "/stats/prometheus").text();
        assert!(metrics.contains("PassthroughCluster"), "{metrics}");
    });
}

// spec: NET-083
#[test]
fn tproxy_without_the_capability_ends_with_its_name() {
    let volumes = Volumes::new(&Authority::new(), "app/echo");
    let local = Ipv4Addr::LOCALHOST.into();
    let flags = ["--interception-mode", "TPROXY"];
    let mut proxy = Process::spawn(&volumes, local, local, &flags, &[], Some((PROXY, PROXY)));
    assert_eq!(proxy.wait(), Some(1));
    wait_for("its last word", || proxy.log().contains("NET_ADMIN"));
}
