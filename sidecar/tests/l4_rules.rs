//! Rules of virtual services for TLS that passes through and for other connections.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use support::rules::{ECHO, client_hello, dialling, greeter, greeting, named, versions};
use support::{Client, LIMIT, Proxy, address, pause, workload};

/// A bundle of a client that dials `dialled`: host `echo`, which has `own` as address, with the fields of its port.
fn bundle(dialled: SocketAddr, own: IpAddr, fields: &str) -> String {
    let port = dialled.port();
    format!(
        "{}hosts:\n- host: {ECHO}\n  name: echo\n  namespace: app\n  domains: [echo]\n  addresses: [{own}]\n  ports:\n  - \
         {{port: {port}, name: main, {fields}}}\n  subsets:\n  - {{name: v1, labels: {{version: v1}}}}\n  - {{name: v2, \
         labels: {{version: v2}}}}\n",
        workload("app/client"),
    )
}

/// A client proxy on a connection to `dialled`, with a [`bundle`]; endpoints of `echo` are of version v1 and v2.
fn proxy(dialled: SocketAddr, own: IpAddr, fields: &str, more: &str, v1: &[SocketAddr], v2: &[SocketAddr]) -> Proxy {
    let bundle = bundle(dialled, own, fields) + more;
    Proxy::start(dialling(dialled), &bundle, &versions(v1, v2), None)
}

/// What comes back on a connection that says something first.
fn said(proxy: &Proxy, first: &[u8]) -> String {
    let mut stream = connect(proxy);
    stream.write_all(first).expect("sent");
    greeting(stream)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addresses[0]).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream
}

/// A destination of rules: a subset on the port that was dialled.
fn subset(name: &str, dialled: SocketAddr) -> String {
    format!("{{host: {ECHO}, port: {}, subset: {name}}}", dialled.port())
}

fn subnet(prefix: u8, of: IpAddr) -> String {
    format!("subnets: [{{address: {of}, prefix: {prefix}}}]")
}

/// An address that is nobody's.
fn nobody() -> IpAddr {
    "10.99.0.1".parse().expect("address")
}

// spec: VS-163, VS-165, VS-167, VS-168
#[test]
fn tls_goes_by_its_server_name_where_there_are_rules() {
    let (v1, v2, dialled) = (greeter("v1"), greeter("v2"), greeter("dialled"));
    let rules = |list: &str| format!("protocol: tls, tls: [{list}]");
    let to = |name: &str| format!("destinations: [{}]", subset(name, dialled));
    let start = |fields: &str| proxy(dialled, dialled.ip(), fields, "", &[v1], &[v2]);
    let by_name = start(&rules(&format!(
        "{{sni: [a.com], {}}}, {{sni: ['*.b.com'], {}}}",
        to("v1"),
        to("v2")
    )));
    assert_eq!(said(&by_name, &client_hello("a.com")), "v1");
    assert_eq!(said(&by_name, &client_hello("A.com")), "v1");
    assert_eq!(said(&by_name, &client_hello("x.b.com")), "v2");
    // What no rule names is unknown traffic, which goes where it was sent, and not to the service.
    for other in [&client_hello("b.com")[..], &client_hello("c.com"), b"no TLS at all"] {
        assert_eq!(said(&by_name, other), "dialled");
    }
    let closed = proxy(
        dialled,
        dialled.ip(),
        &rules(&format!("{{sni: [a.com], {}}}", to("v1"))),
        "mesh: {outboundPolicy: REGISTRY_ONLY}\n",
        &[v1],
        &[v2],
    );
    assert_eq!(said(&closed, &client_hello("a.com")), "v1");
    assert_eq!(said(&closed, &client_hello("c.com")), "");
    // Without rules the address decides, whatever the name.
    let by_address = proxy(dialled, dialled.ip(), "protocol: tls", "", &[v1], &[]);
    assert_eq!(said(&by_address, &client_hello("c.com")), "v1");
    // Subnets are those of the address that was dialled.
    let by_subnet = start(&rules(&format!(
        "{{sni: [a.com], {}, {}}}, {{sni: [a.com], {}, {}}}",
        subnet(16, nobody()),
        to("v1"),
        subnet(8, dialled.ip()),
        to("v2")
    )));
    assert_eq!(said(&by_subnet, &client_hello("a.com")), "v2");
    let elsewhere = start(&rules(&format!(
        "{{sni: [a.com], {}, {}}}",
        subnet(16, nobody()),
        to("v1")
    )));
    assert_eq!(said(&elsewhere, &client_hello("a.com")), "dialled");
}

// spec: VS-171, VS-172, VS-174, VS-184
#[test]
fn connections_go_by_rules_else_to_the_service_itself() {
    let (v1, v2, dialled) = (greeter("v1"), greeter("v2"), greeter("dialled"));
    let rule = |conditions: &str| format!("tcp: [{{{conditions}destinations: [{}]}}]", subset("v2", dialled));
    for protocol in ["tcp", "auto"] {
        let start = |own: IpAddr, rule: &str| {
            // All endpoints of the service are of version v1, but for the one of the rule.
            let fields = format!("protocol: {protocol}, {rule}");
            proxy(dialled, own, &fields, "", &[v1], &[v2])
        };
        let ruled = start(dialled.ip(), &rule(""));
        for _ in 0..10 {
            assert_eq!(said(&ruled, b""), "v2", "{protocol}");
        }
        let within = start(dialled.ip(), &rule(&format!("{}, ", subnet(8, dialled.ip()))));
        for _ in 0..10 {
            assert_eq!(said(&within, b""), "v2", "{protocol}");
        }
        // The subnet stands for the address of the service, which is another one here.
        let replaced = start(nobody(), &rule(&format!("{}, ", subnet(8, dialled.ip()))));
        assert_eq!(said(&replaced, b""), "v2", "{protocol}");
        let outside = proxy(
            dialled,
            dialled.ip(),
            &format!("protocol: {protocol}, {}", rule(&format!("{}, ", subnet(16, nobody())))),
            "",
            &[v1],
            &[],
        );
        assert_eq!(said(&outside, b""), "v1", "{protocol}: the service itself");
        let unknown = start(nobody(), &rule(&format!("{}, ", subnet(16, nobody()))));
        assert_eq!(
            said(&unknown, b""),
            "dialled",
            "{protocol}: neither its address nor the subnet"
        );
    }
}

// spec: VS-053, VS-169, VS-175
#[test]
fn connections_are_shared_out_by_weight() {
    let (v1, v2, dialled) = (greeter("v1"), greeter("v2"), greeter("dialled"));
    let weighted = |name: &str, weight: u32| subset(name, dialled).replace('}', &format!(", weight: {weight}}}"));
    let list = format!("destinations: [{}, {}]", weighted("v1", 3), weighted("v2", 1));
    for (fields, first) in [
        (format!("protocol: tcp, tcp: [{{{list}}}]"), Vec::new()),
        (
            format!("protocol: tls, tls: [{{sni: [a.com], {list}}}]"),
            client_hello("a.com"),
        ),
    ] {
        let proxy = proxy(dialled, dialled.ip(), &fields, "", &[v1], &[v2]);
        let hits = (0..400).filter(|_| said(&proxy, &first) == "v2").count();
        // Five standard deviations around 100.
        assert!((56..=144).contains(&hits), "{fields}: {hits}");
    }
}

// spec: VS-176
#[test]
fn a_destination_that_nobody_serves_is_told_by_its_flag() {
    let (v1, dialled) = (greeter("v1"), greeter("dialled"));
    for (to, flags) in [(subset("v2", dialled), "UH"), (subset("v3", dialled), "NC")] {
        let fields = format!("protocol: tcp, tcp: [{{destinations: [{to}]}}]");
        let proxy = proxy(dialled, dialled.ip(), &fields, "", &[v1], &[]);
        assert_eq!(said(&proxy, b""), "", "{flags}");
        proxy.wait_for_flags(flags);
    }
    let other = subset("v1", dialled).replace(ECHO, "nobody.app.svc.cluster.local");
    let fields = format!("protocol: tcp, tcp: [{{destinations: [{other}]}}]");
    let proxy = proxy(dialled, dialled.ip(), &fields, "", &[v1], &[]);
    assert_eq!(said(&proxy, b""), "");
    proxy.wait_for_flags("NC");
}

// spec: VS-177
#[test]
fn on_an_automatic_port_http_goes_by_http_rules_and_the_rest_by_those_for_tcp() {
    let (v1, v2, dialled) = (named("v1"), greeter("v2"), greeter("dialled"));
    let fields = format!(
        "protocol: auto, http: t, tcp: [{{destinations: [{}]}}]",
        subset("v2", dialled)
    );
    let routes = format!(
        "routes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: rules}}\n  rules:\n  - destinations: [{}]\n",
        subset("v1", dialled)
    );
    let proxy = proxy(dialled, dialled.ip(), &fields, &routes, &[v1.address], &[v2]);
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/", "").text(), "v1");
    assert_eq!(said(&proxy, b"something else\n"), "v2");
    assert_eq!(said(&proxy, &client_hello("a.com")), "v2");
    assert_eq!(
        said(&proxy, b""),
        "v2",
        "nor does a client speak HTTP that says nothing"
    );
}

/// Sends back what it gets, for as long as the connection lasts.
fn line_app() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|count| count > 0) {
                    if stream.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
    bound
}

// spec: VS-178
#[test]
fn idle_time_and_hash_key_are_those_of_the_first_destination() {
    let dialled = SocketAddr::new(nobody(), 9000);
    let start = |first: &str, second: &str, v2: &[SocketAddr]| {
        let weighted = |name: &str, weight: u32| subset(name, dialled).replace('}', &format!(", weight: {weight}}}"));
        let list = format!("[{}, {}]", weighted("v1", 0), weighted("v2", 1));
        let fields = format!("protocol: tcp, tcp: [{{destinations: {list}}}]");
        let mut bundle = bundle(dialled, dialled.ip(), &fields);
        for (name, policy) in [("v1", first), ("v2", second)] {
            let plain = format!("{{version: {name}}}");
            bundle = bundle.replace(&plain, &format!("{plain}, policies: {{9000: {policy}}}"));
        }
        Proxy::start(dialling(dialled), &bundle, &versions(&[], v2), None)
    };
    let line = line_app();
    let short = "{tcpIdleTimeoutMs: 300}";
    let is_open_after_a_while = |proxy: &Proxy| {
        let mut stream = connect(proxy);
        let mut byte = [0];
        stream.write_all(b"a").expect("sent");
        stream.read_exact(&mut byte).expect("sent back");
        pause(Duration::from_millis(900));
        let _ = stream.write_all(b"b");
        stream.read_exact(&mut byte).is_ok()
    };
    // All go to the second one.
    assert!(!is_open_after_a_while(&start(short, "{}", &[line])));
    assert!(is_open_after_a_while(&start("{}", short, &[line])));

    let by_source = "{loadBalancer: {consistentHash: {key: sourceIp}}}";
    let many = [greeter("a"), greeter("b"), greeter("c")];
    let reached = |proxy: &Proxy| {
        let all = (0..40).map(|_| greeting(connect(proxy)));
        all.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(reached(&start(by_source, by_source, &many)), 1);
    assert_eq!(reached(&start("{}", by_source, &many)), 3, "without a key any of them");
    let by_another = "{loadBalancer: {consistentHash: {key: {header: x}}}}";
    assert_eq!(
        reached(&start(by_source, by_another, &many)),
        1,
        "with the key of the first"
    );
}
