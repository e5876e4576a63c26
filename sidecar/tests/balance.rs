//! Which endpoint a request goes to: balancers, subsets, localities, headless services.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use support::rules::{ECHO, dialling, endpoints, greeter, greeting, named};
use support::{
    App, Authority, Client, LIMIT, Pair, Proxy, address, client_bundle, echo_endpoints, get, virtual_address, wait_for,
    workload,
};
use weft_sidecar::locality::Here;
use weft_sidecar::shared::{Role, Settings};

fn plain(apps: &[&App]) -> String {
    endpoints(&apps.iter().map(|app| (app.address, "")).collect::<Vec<_>>(), "")
}

fn with_policy(protocol: &str, policy: &str) -> String {
    let port = format!("protocol: {protocol}}}");
    client_bundle(protocol, "").replace(&port, &format!("protocol: {protocol}, policy: {policy}}}"))
}

/// A connection from an address of its own.
fn from(source: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::new(source, 0).into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream
}

// spec: DR-041, DR-042, DR-043, DR-044
#[test]
fn a_cookie_is_made_where_none_is_and_keeps_its_endpoint() {
    let (one, two) = (named("one"), named("two"));
    let policy = |cookie: &str| format!("{{loadBalancer: {{consistentHash: {{key: {{cookie: {cookie}}}}}}}}}");
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &with_policy(
            "http",
            &policy("{name: c, path: /p, ttlSeconds: 60, attributes: [[SameSite, Lax], [Secure, null]]}"),
        ),
        &plain(&[&one, &two]),
        None,
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut both = BTreeSet::new();
    for _ in 0..20 {
        let answer = client.get("/", "Cookie: other=1\r\n");
        let set = answer.field("set-cookie").expect("made");
        let (value, attributes) = set.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Max-Age=60; Path=/p; HttpOnly; SameSite=Lax; Secure");
        let value = value
            .strip_prefix("c=\"")
            .and_then(|v| v.strip_suffix('"'))
            .expect("quoted");
        assert!(
            value.len() == 16 && value.bytes().all(|b| b.is_ascii_hexdigit()),
            "{value}"
        );
        // With the cookie the request goes where the one went that made it.
        for form in [format!("c={value}"), format!("a=b; c=\"{value}\"")] {
            let again = client.get("/", &format!("Cookie: {form}\r\n"));
            assert_eq!(again.text(), answer.text());
            assert!(again.field("set-cookie").is_none());
        }
        both.insert(answer.text());
    }
    assert_eq!(both.len(), 2);
    proxy.configure(&with_policy("http", &policy("{name: c, ttlSeconds: 0}")));
    let set = client.get("/", "").field("set-cookie").expect("made");
    assert!(
        !set.contains("Max-Age") && !set.contains("Path") && set.ends_with("; HttpOnly"),
        "{set}"
    );
    proxy.configure(&with_policy("http", &policy("{name: c}")));
    let answers: Vec<_> = (0..40).map(|_| client.get("/", "")).collect();
    assert!(answers.iter().all(|a| a.field("set-cookie").is_none()));
    assert_eq!(
        answers.iter().map(support::Answer::text).collect::<BTreeSet<_>>().len(),
        2,
        "at random"
    );
}

// spec: DR-045, DR-041
#[test]
fn a_source_address_keeps_its_endpoint_in_http_and_tcp() {
    let policy = "{loadBalancer: {consistentHash: {key: sourceIp}}}";
    let sources: Vec<IpAddr> = (0..24).map(|_| address()).collect();
    let (one, two) = (named("one"), named("two"));
    let http = Proxy::start(
        dialling(virtual_address()),
        &with_policy("http", policy),
        &plain(&[&one, &two]),
        None,
    );
    let lines = [(greeter("one"), ""), (greeter("two"), "")];
    let tcp = |policy: &str| {
        Proxy::start(
            dialling(virtual_address()),
            &with_policy("tcp", policy),
            &endpoints(&lines, ""),
            None,
        )
    };
    let opaque = tcp(policy);
    let (mut by_http, mut by_tcp) = (BTreeSet::new(), BTreeSet::new());
    for source in sources {
        let first = Client::over(from(source, http.addresses[0])).get("/", "").text();
        let second = Client::over(from(source, http.addresses[0])).get("/", "").text();
        assert_eq!(first, second, "{source}");
        by_http.insert(first);
        let first = greeting(from(source, opaque.addresses[0]));
        assert_eq!(first, greeting(from(source, opaque.addresses[0])), "{source}");
        by_tcp.insert(first);
    }
    assert_eq!((by_http.len(), by_tcp.len()), (2, 2), "addresses are spread");
    // No other key is known of opaque bytes.
    let random = tcp("{loadBalancer: {consistentHash: {key: {header: x}}}}");
    let seen: BTreeSet<_> = (0..40)
        .map(|_| greeting(from(address_of(&random), random.addresses[0])))
        .collect();
    assert_eq!(seen.len(), 2);
}

fn address_of(proxy: &Proxy) -> IpAddr {
    proxy.addresses[0].ip()
}

// spec: DR-037
#[test]
fn passthrough_goes_where_the_client_dialled() {
    let (listed, dialled) = (named("listed"), named("dialled"));
    let proxy = Proxy::start(
        dialling(dialled.address),
        &with_policy("http", "{loadBalancer: passthrough}")
            .replace("port: 80", &format!("port: {}", dialled.address.port())),
        &plain(&[&listed]),
        None,
    );
    for _ in 0..10 {
        assert_eq!(get(proxy.addresses[0], "/").text(), "dialled");
    }
    let (listed, dialled) = (greeter("listed"), greeter("dialled"));
    let bundle = with_policy("tcp", "{loadBalancer: passthrough}")
        .replace("port: 80", &format!("port: {}", dialled.port()))
        .replace("addresses: [10.1.0.1]", &format!("addresses: [{}]", dialled.ip()));
    let proxy = Proxy::start(dialling(dialled), &bundle, &endpoints(&[(listed, "")], ""), None);
    assert_eq!(
        greeting(TcpStream::connect(proxy.addresses[0]).expect("connected")),
        "dialled"
    );
}

// spec: DR-037, SM-082
#[test]
fn passthrough_to_a_cluster_address_takes_mutual_tls_when_all_behind_it_can() {
    let authority = Authority::new();
    let app = App::echo();
    let port = app.address.port();
    let bundle = format!(
        "{}inbound: {{mtls: PERMISSIVE, ports: [{{port: {port}, protocol: http}}]}}\n",
        workload("app/echo")
    );
    // It stands for the address of the service, behind which Kubernetes chooses.
    let server = Proxy::start(
        vec![(
            SocketAddr::new(address(), 0),
            Role::Explicit {
                target: app.address,
                port,
            },
        )],
        &bundle,
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let dialled = server.addresses[0];
    let (one, two) = (greeter("one"), greeter("two"));
    for (list, is_mesh) in [
        (vec![(one, ", m: all"), (two, ", m: all")], true),
        (vec![(one, ", m: all"), (two, "")], false),
    ] {
        let bundle = with_policy("http", "{loadBalancer: passthrough}")
            .replace("port: 80", &format!("port: {}", dialled.port()))
            .replace("addresses: [10.1.0.1]", &format!("addresses: [{}]", dialled.ip()));
        let identity = Some(authority.identity("app/client"));
        let proxy = Proxy::start(dialling(dialled), &bundle, &endpoints(&list, ""), identity);
        for _ in 0..2 {
            assert_eq!(get(proxy.addresses[0], "/").status(), 200);
        }
        let told = app.last().field("x-forwarded-client-cert");
        assert_eq!(told.is_some(), is_mesh, "{list:?}");
    }
}

// spec: DLV-113, LIFE-043
#[test]
fn an_endpoint_that_failed_under_another_policy_is_not_set_aside_any_more() {
    let (listed, vip) = (named("listed"), named("vip"));
    let bundle = |policy: &str| {
        with_policy("http", policy)
            .replace("port: 80", &format!("port: {}", vip.address.port()))
            .replace("addresses: [10.1.0.1]", &format!("addresses: [{}]", vip.address.ip()))
    };
    let unfit = bundle("{connectTimeoutMs: 200, tls: {originate: {insecureSkipVerify: true}}}");
    let proxy = Proxy::start(dialling(vip.address), &unfit, &plain(&[&listed]), None);
    assert_eq!(get(proxy.addresses[0], "/").status(), 503, "neither of them speaks TLS");
    proxy.configure(&bundle("{}"));
    for _ in 0..3 {
        assert_eq!(get(proxy.addresses[0], "/").text(), "listed");
    }
}

/// A client proxy with rules and subsets v1, v2, all (no labels) and none.
fn with_subsets(rules: &str, apps: &str) -> Proxy {
    let bundle = client_bundle(
        "http",
        &format!(
            "  subsets:\n  - {{name: all}}\n  - {{name: none, labels: {{version: v9}}}}\n  - {{name: v1, labels: {{version: \
             v1}}, policies: {{80: {{maxRequests: 1}}}}}}\n  - {{name: v2, labels: {{version: v2, app: echo}}}}\nroutes:\n- \
             name: t\n  origin: {{kind: VirtualService, namespace: app, name: rules}}\n  rules:\n{rules}"
        ),
    );
    let bundle = if rules.is_empty() {
        bundle.split("routes:").next().expect("head").to_owned()
    } else {
        bundle.replace("protocol: http}", "protocol: http, http: t}")
    };
    Proxy::start(dialling(virtual_address()), &bundle, apps, None)
}

fn to_subset(path: &str, subset: &str) -> String {
    format!(
        "  - matches: [{{path: {{exact: {path}}}}}]\n    destinations: [{{host: {ECHO}, port: 80, subset: {subset}}}]\n"
    )
}

// spec: DR-003, DR-027, DR-029, DR-030, DR-031, DR-032, SM-004, SM-005, SM-131
#[test]
fn subsets_are_chosen_by_labels_and_never_spill() {
    let (v1, v2) = (named("v1"), named("v2"));
    let rules: String = [
        ("/1", "v1"),
        ("/2", "v2"),
        ("/all", "all"),
        ("/none", "none"),
        ("/undefined", "v3"),
    ]
    .map(|(path, subset)| to_subset(path, subset))
    .concat();
    let labelled = |first: &str| {
        endpoints(
            &[(v1.address, ", l: 0, z: 0"), (v2.address, ", l: 1")],
            &format!("labels: [{{{first}}}, {{version: v2, app: echo}}]\nlocalities: [r/z]\n"),
        )
    };
    let proxy = with_subsets(&rules, &labelled("version: v1"));
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..10 {
        assert_eq!(client.get("/1", "").text(), "v1");
        assert_eq!(client.get("/2", "").text(), "v2");
    }
    let all: BTreeSet<_> = (0..40).map(|_| client.get("/all", "").text()).collect();
    assert_eq!(all.len(), 2, "no labels: everybody");
    let answer = client.get("/none", "");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
    let answer = client.get("/undefined", "");
    assert_eq!(answer.status(), 503);
    let reason = answer.field("x-weft-reason").unwrap_or_default();
    assert!(reason.starts_with("cluster_not_found"), "{reason}");
    // Labels move endpoints between subsets of a running proxy.
    proxy.endpoints(&labelled("version: v9"));
    assert_eq!(client.get("/none", "").text(), "v1");
    assert_eq!(client.get("/1", "").text(), "no healthy upstream");
    // Where an endpoint runs is a label of it too.
    let bundle = "topology.kubernetes.io/zone: z";
    let rest = format!(
        "  subsets:\n  - {{name: zone, labels: {{{bundle}}}}}\nroutes:\n- name: t\n  origin: {{kind: \
                        VirtualService, namespace: app, name: rules}}\n  rules:\n{}",
        to_subset("/", "zone")
    );
    proxy.configure(&client_bundle("http", &rest).replace("protocol: http}", "protocol: http, http: t}"));
    for _ in 0..10 {
        assert_eq!(client.get("/", "").text(), "v1");
    }
}

// spec: DR-028, DR-073
#[test]
fn the_policy_of_a_subset_holds_for_requests_routed_to_it() {
    let slow = App::new(std::sync::Arc::new(|seen, stream| {
        if seen.head.contains("X-Wait") {
            let mut byte = [0];
            let _ = stream.read(&mut byte);
            return false;
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .is_ok()
    }));
    let shard = endpoints(&[(slow.address, ", l: 0")], "labels: [{version: v1}]\n");
    // Without route to the subset its limit of one request is nobody's.
    let proxy = with_subsets("", &shard);
    let mut held = Client::connect(proxy.addresses[0]);
    held.send("GET / HTTP/1.1\r\nHost: echo\r\nX-Wait: 1\r\n\r\n");
    wait_for("the first request", || slow.count() == 1);
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    let rules = to_subset("/1", "v1") + &to_subset("/all", "all");
    let proxy = with_subsets(&rules, &shard);
    let mut held = Client::connect(proxy.addresses[0]);
    held.send("GET /1 HTTP/1.1\r\nHost: echo\r\nX-Wait: 1\r\n\r\n");
    wait_for("the first request", || slow.count() == 3);
    assert_eq!(get(proxy.addresses[0], "/1").status(), 503);
    assert_eq!(
        get(proxy.addresses[0], "/all").status(),
        200,
        "its limit is the subset's own"
    );
}

fn placed(here: Here, policy: &str, shard: &str, host: &str) -> Proxy {
    let settings = Settings {
        here,
        ..Settings::default()
    };
    let bundle = with_policy("http", policy).replace("  ports:", &format!("{host}  ports:"));
    Proxy::with(dialling(virtual_address()), &bundle, shard, None, settings)
}

// spec: DR-056, DR-057, DR-066, DR-098, DLV-014
#[test]
fn the_nearest_endpoints_are_used_while_they_are_well() {
    let (near, far) = (
        App::answering(|seen| {
            let status = if seen.head.contains("/fail") {
                "500 No"
            } else {
                "200 OK"
            };
            format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nnear")
        }),
        named("far"),
    );
    let shard = endpoints(
        &[(near.address, ", z: 0"), (far.address, ", z: 1")],
        "localities: [r/z, r/y]\nnodes: {n: r/z}\n",
    );
    let at = |locality: &str, node: &str| Here {
        locality: locality.into(),
        node: node.into(),
    };
    let policy = "{outlier: {consecutive5xx: 1, maxEjectionPercent: 50}, locality: {failover: {regions: {}}}}";
    // Told by the pod's labels, or by the table of nodes.
    for here in [at("r/z", ""), at("", "n")] {
        let proxy = placed(here, policy, &shard, "");
        let mut client = Client::connect(proxy.addresses[0]);
        for _ in 0..20 {
            assert_eq!(client.get("/", "").text(), "near");
        }
        assert_eq!(client.get("/fail", "").status(), 500);
        for _ in 0..20 {
            assert_eq!(client.get("/", "").text(), "far");
        }
    }
    // Without it all share.
    let proxy = placed(at("r/z", ""), "{}", &shard, "");
    let mut client = Client::connect(proxy.addresses[0]);
    let both: BTreeSet<_> = (0..40).map(|_| client.get("/", "").text()).collect();
    assert_eq!(both.len(), 2);
}

// spec: DR-063, DR-065, DLV-115
#[test]
fn requests_are_distributed_and_the_cluster_address_is_not_asked() {
    let (one, two) = (named("one"), named("two"));
    let shard = endpoints(
        &[(one.address, ", z: 0"), (two.address, ", z: 1")],
        "localities: [r/z, q/z]\n",
    );
    let here = Here {
        locality: "r/z".into(),
        node: String::new(),
    };
    let policy = "{locality: {distribute: [{from: '*', to: {r: 75, q: 25}}]}}";
    let proxy = placed(here.clone(), policy, &shard, "");
    let mut client = Client::connect(proxy.addresses[0]);
    let hits = (0..400).filter(|_| client.get("/", "").text() == "one").count();
    assert!((240..=360).contains(&hits), "{hits} of 400");
    let nobody = "{locality: {distribute: [{from: '*', to: {s: 100}}]}}";
    let proxy = placed(here, nobody, &shard, "");
    let answer = get(proxy.addresses[0], "/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
}

// spec: SM-011
#[test]
fn a_node_local_service_stays_on_the_node() {
    let (near, far) = (named("near"), named("far"));
    let shard = endpoints(
        &[(near.address, ", o: 0"), (far.address, ", o: 1")],
        "nodeNames: [n, m]\n",
    );
    let at = |node: &str| Here {
        locality: String::new(),
        node: node.into(),
    };
    let proxy = placed(at("n"), "{}", &shard, "  nodeLocal: true\n");
    for _ in 0..20 {
        assert_eq!(get(proxy.addresses[0], "/").text(), "near");
    }
    let proxy = placed(at("other"), "{}", &shard, "  nodeLocal: true\n");
    let answer = get(proxy.addresses[0], "/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
}

// spec: SM-090, SM-092, SM-096, SM-098
#[test]
fn a_draining_endpoint_gets_nothing_new_and_ends_what_it_has() {
    let (gate, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let old = App::new(std::sync::Arc::new(move |_, stream| {
        let _ = wait.lock().expect("no panic").recv();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .is_ok()
    }));
    let new = named("new");
    let shard = |health: &str| endpoints(&[(old.address, health), (new.address, ", h: draining")], "");
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("http", ""),
        &shard(", h: ready"),
        None,
    );
    let mut held = Client::connect(proxy.addresses[0]);
    held.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the request", || old.count() == 1);
    proxy.endpoints(&endpoints(&[(old.address, ", h: draining"), (new.address, "")], ""));
    for _ in 0..20 {
        assert_eq!(get(proxy.addresses[0], "/").text(), "new");
    }
    gate.send(()).expect("the application waits");
    assert_eq!(held.receive().expect("an answer").status(), 200);
}

/// A client of headless `echo`, whose ports are `http` or `tcp` and equal the dialled one.
fn headless(protocol: &str, dialled: SocketAddr, shard: &str, policy: &str, authority: &Authority) -> Proxy {
    let bundle = with_policy(protocol, policy)
        .replace("addresses: [10.1.0.1]", "headless: true")
        .replace("domains: [10.1.0.1, echo,", "domains: ['*.echo.app', echo,")
        .replace("port: 80", &format!("port: {}", dialled.port()));
    Proxy::start(
        dialling(dialled),
        &bundle,
        shard,
        Some(authority.identity("app/client")),
    )
}

// spec: SM-076, SM-077, SM-078, SM-081, SM-082, DR-037, SM-130, NET-072
#[test]
fn a_headless_service_is_reached_at_the_address_that_was_dialled() {
    let authority = Authority::new();
    let (meshed, bare, stranger) = (named("meshed"), named("bare"), named("stranger"));
    // A server proxy on the application's own port, at another address: a pod with sidecar.
    let port = meshed.address.port();
    let server = Proxy::start(
        vec![(
            SocketAddr::new(address(), port),
            Role::Explicit {
                target: meshed.address,
                port,
            },
        )],
        &format!(
            "{}inbound: {{mtls: STRICT, ports: [{{port: {port}, protocol: http}}]}}\n",
            workload("app/echo")
        ),
        "hosts: []",
        Some(authority.identity("app/echo")),
    );
    let shard = endpoints(&[(server.addresses[0], ", m: all, h: unready"), (bare.address, "")], "");
    // A hash would choose one of them; a pod that is not ready is reached all the same.
    let policy = "{loadBalancer: {consistentHash: {key: {header: x}}}}";
    let proxy = headless("http", server.addresses[0], &shard, policy, &authority);
    for host in ["echo", "pod-0.echo.app", "ECHO.app.svc:81"] {
        let mut client = Client::connect(proxy.addresses[0]);
        for _ in 0..5 {
            client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: 1\r\n\r\n"));
            assert_eq!(client.receive().expect("an answer").text(), "meshed", "{host}");
        }
    }
    assert!(meshed.last().field("x-forwarded-client-cert").is_some(), "mesh mTLS");
    let proxy = headless("http", bare.address, &shard, policy, &authority);
    assert_eq!(
        get(proxy.addresses[0], "/").text(),
        "bare",
        "in clear to a pod without sidecar"
    );
    // The address itself is no Host of the service, and a pod of nobody's list is passed through.
    let proxy = headless("http", stranger.address, &shard, policy, &authority);
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(&format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", stranger.address.ip()));
    assert_eq!(client.receive().expect("an answer").text(), "stranger");
    assert_eq!(stranger.last().field("x-forwarded-client-cert"), None);

    // The same for opaque bytes, where only listed addresses are the service.
    let (one, two) = (greeter("one"), greeter("two"));
    let shard = endpoints(&[(one, ""), (two, "")], "");
    for (dialled, name) in [(one, "one"), (two, "two"), (greeter("stranger"), "stranger")] {
        let proxy = headless(
            "tcp",
            dialled,
            &shard,
            "{loadBalancer: {consistentHash: {key: sourceIp}}}",
            &authority,
        );
        for _ in 0..3 {
            assert_eq!(
                greeting(TcpStream::connect(proxy.addresses[0]).expect("connected")),
                name
            );
        }
    }
}

// spec: SM-077, SM-081, VS-051
#[test]
fn rules_of_a_headless_service_lead_elsewhere_by_balancing_and_to_itself_by_the_address_dialled() {
    let (pod, neighbour, solo) = (named("pod"), named("neighbour"), named("solo"));
    let rest = format!(
        "  subsets: [{{name: v9, labels: {{version: v9}}}}]\n- host: solo.app.svc.cluster.local\n  name: solo\n  namespace: \
         app\n  domains: [solo]\n  addresses: [10.1.0.2]\n  ports: [{{port: 80, name: main, protocol: http}}]\nroutes:\n- \
         name: t\n  origin: {{kind: VirtualService, namespace: app, name: r}}\n  rules:\n  - matches: [{{path: {{prefix: \
         /solo}}}}]\n    destinations: [{{host: solo.app.svc.cluster.local, port: 80}}]\n  - destinations: [{{host: {ECHO}, \
         port: {}, subset: v9}}]\n",
        pod.address.port()
    );
    let bundle = client_bundle("http", &rest)
        .replacen("addresses: [10.1.0.1]", "headless: true", 1)
        .replacen("domains: [10.1.0.1, echo,", "domains: [echo,", 1)
        .replacen("port: 80", &format!("port: {}", pod.address.port()), 1)
        .replacen("protocol: http}", "protocol: http, http: t}", 1);
    let shard = endpoints(&[(pod.address, ""), (neighbour.address, "")], "").replacen(
        "hosts:",
        &format!("- {{main: {}}}\nhosts:", solo.address.port()),
        1,
    );
    let shard = format!(
        "{shard}- host: solo.app.svc.cluster.local\n  endpoints: [{{a: {}, p: 2}}]\n",
        solo.address.ip()
    );
    let proxy = Proxy::start(dialling(pod.address), &bundle, &shard, None);
    for _ in 0..3 {
        assert_eq!(get(proxy.addresses[0], "/solo").text(), "solo");
        assert_eq!(get(proxy.addresses[0], "/").text(), "pod");
    }
}

// spec: SM-081
#[test]
fn a_pod_that_is_dialled_gets_mesh_tls_whatever_the_labels_of_the_subset() {
    let app = App::echo();
    let pair = Pair::with("http", "STRICT", app.address, "");
    let pod = pair.server.addresses[0];
    let rest = format!(
        "  subsets: [{{name: v9, labels: {{version: v9}}}}]\nroutes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, \
         name: r}}\n  rules:\n  - destinations: [{{host: {ECHO}, port: {}, subset: v9}}]\n",
        pod.port()
    );
    let bundle = client_bundle("http", &rest)
        .replacen("addresses: [10.1.0.1]", "headless: true", 1)
        .replacen("domains: [10.1.0.1, echo,", "domains: [echo,", 1)
        .replacen("port: 80", &format!("port: {}", pod.port()), 1)
        .replacen("protocol: http}", "protocol: http, http: t}", 1);
    let identity = Some(pair.authority.identity("app/client"));
    let proxy = Proxy::start(dialling(pod), &bundle, &echo_endpoints(&[(pod, true)]), identity);
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    let peer = app.last().field("x-forwarded-client-cert");
    assert!(peer.is_some_and(|peer| peer.contains("/sa/client")));
}

// spec: SM-079, SM-080, SM-132
#[test]
fn what_is_no_endpoint_of_a_headless_service_is_unknown_traffic() {
    let authority = Authority::new();
    let target = greeter("target");
    let bundle = |port: u16| {
        client_bundle("tcp", "mesh: {outboundPolicy: REGISTRY_ONLY}\n")
            .replace("addresses: [10.1.0.1]", "headless: true")
            .replace("port: 80", &format!("port: {port}"))
    };
    let start = |bundle: &str, shard: &str, own: &[IpAddr]| {
        let settings = Settings {
            addresses: own.to_vec(),
            ..Settings::default()
        };
        let identity = Some(authority.identity("app/client"));
        Proxy::with(dialling(target), bundle, shard, identity, settings)
    };
    let said = |proxy: &Proxy| greeting(TcpStream::connect(proxy.addresses[0]).expect("connected"));
    let listed = endpoints(&[(target, "")], "");
    assert_eq!(said(&start(&bundle(target.port()), &listed, &[])), "target");
    assert_eq!(
        said(&start(
            &bundle(target.port()),
            &endpoints(&[], "")
                .replace("endpoints:\n", "endpoints: []\n")
                .replace("ports:\n", ""),
            &[]
        )),
        ""
    );
    assert_eq!(
        said(&start(&bundle(target.port()), &listed, &[target.ip()])),
        "",
        "the own pod"
    );
    // The port that the Service leads to is not the Service's.
    assert_eq!(said(&start(&bundle(1), &listed, &[])), "");
}

// spec: SM-040, SM-041, SM-042, SM-059
#[test]
fn names_ignore_case_and_port_and_real_ones_are_never_hidden() {
    let (echo, other) = (named("echo"), named("other"));
    let second = "- host: echo.app\n  name: odd\n  namespace: ext\n  domains: [echo.app]\n  ports:\n  - {port: 80, name: main, \
                  protocol: http}\n";
    let shard = plain(&[&echo]).replace(
        "hosts:\n",
        &format!(
            "hosts:\n- host: echo.app\n  endpoints:\n  - {{a: {}, p: 1}}\n",
            other.address.ip()
        ),
    );
    let shard = shard.replacen("ports:\n", &format!("ports:\n- {{main: {}}}\n", echo.address.port()), 1);
    let shard = shard.replacen(
        &format!("- {{main: {}}}\nhosts", echo.address.port()),
        &format!("- {{main: {}}}\nhosts", other.address.port()),
        1,
    );
    let proxy = Proxy::start(
        dialling(virtual_address()),
        &client_bundle("http", second),
        &shard,
        None,
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut ask = |host: &str| {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.receive().expect("an answer").text()
    };
    for host in [
        "ECHO",
        "echo:80",
        "Echo.App.svc:9999",
        "echo.app.svc.cluster.local.",
        "10.1.0.1:80",
    ] {
        assert_eq!(ask(host), "echo", "{host}");
    }
    assert_eq!(ask("echo.app"), "other", "a host's own name beats another's alias");
}
