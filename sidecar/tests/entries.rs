//! Hosts of service entries: without an address of their own, by ranges, as dialled, by names.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use support::rules::{client_hello, dialling, greeter, greeting, named};
use support::{Client, LIMIT, Proxy, address, workload};
use weft_sidecar::shared::Role;

const REGISTRY_ONLY: &str = "mesh: {outboundPolicy: REGISTRY_ONLY}\n";

/// A client proxy on connections to `dialled`, with hosts of service entries, each a name, fields, and fields of its port.
fn proxy(dialled: SocketAddr, hosts: &[(&str, &str, &str)], endpoints: &str, more: &str) -> Proxy {
    let mut bundle = workload("app/client") + "hosts:\n";
    for (host, fields, of_port) in hosts {
        bundle.push_str(&format!(
            "- {{host: '{host}', name: '{host}', namespace: app, kind: entry, domains: ['{host}'], {fields}ports: [{{port: \
             {}, name: main, {of_port}}}]}}\n",
            dialled.port()
        ));
    }
    Proxy::start(dialling(dialled), &(bundle + more), endpoints, None)
}

/// Endpoints of one host.
fn endpoints(host: &str, list: &[SocketAddr]) -> String {
    let mut out = String::from("ports:\n");
    list.iter()
        .for_each(|a| out.push_str(&format!("- {{main: {}}}\n", a.port())));
    out.push_str(&format!("hosts:\n- host: '{host}'\n  endpoints:\n"));
    for (n, a) in list.iter().enumerate() {
        out.push_str(&format!("  - {{a: {}, p: {n}}}\n", a.ip()));
    }
    out
}

/// What comes back on a connection that says something first.
fn said(proxy: &Proxy, first: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.addresses[0]).expect("the proxy listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream.write_all(first).expect("sent");
    greeting(stream)
}

fn get(proxy: &Proxy, host: &str) -> (u16, String) {
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let answer = client.receive().expect("an answer");
    (answer.status(), answer.text())
}

// spec: SE-022, SE-024, SE-025, SE-035, SM-044, SM-062
#[test]
fn tls_without_an_address_goes_by_the_name_that_it_asks_for() {
    let dialled = greeter("dialled");
    let hosts = [
        ("a.example", "discovery: dialled, ", "protocol: tls"),
        ("*.wild.example", "discovery: dialled, ", "protocol: tls"),
    ];
    let closed = proxy(dialled, &hosts, "hosts: []\n", REGISTRY_ONLY);
    for known in ["a.example", "A.example", "x.wild.example", "x.y.wild.example"] {
        assert_eq!(said(&closed, &client_hello(known)), "dialled", "{known}");
    }
    for other in [
        &client_hello("b.example")[..],
        &client_hello("wild.example"),
        b"no TLS at all",
    ] {
        assert_eq!(said(&closed, other), "");
    }
    let open = proxy(dialled, &hosts, "hosts: []\n", "");
    assert_eq!(said(&open, &client_hello("b.example")), "dialled");
    // The most specific name decides.
    let (v1, dialled) = (greeter("v1"), greeter("dialled"));
    let hosts = [
        ("*.example", "discovery: dialled, ", "protocol: tls"),
        ("a.example", "", "protocol: tls"),
    ];
    let both = proxy(dialled, &hosts, &endpoints("a.example", &[v1]), "");
    assert_eq!(said(&both, &client_hello("a.example")), "v1");
    assert_eq!(said(&both, &client_hello("b.example")), "dialled");
}

// spec: SE-015, SE-023, SE-026
#[test]
fn tcp_goes_by_address_range_or_port_alone() {
    let (v1, dialled) = (greeter("v1"), greeter("dialled"));
    let of = |fields: &str| {
        let hosts = [("a.example", fields, "protocol: tcp")];
        proxy(dialled, &hosts, &endpoints("a.example", &[v1]), "")
    };
    let range = |prefix: u8, of: &str| format!("subnets: [{{address: {of}, prefix: {prefix}}}], ");
    let own = dialled.ip().to_string();
    assert_eq!(said(&of(""), b""), "v1", "any address");
    assert_eq!(said(&of(&range(8, &own)), b""), "v1", "an address of the range");
    assert_eq!(said(&of(&range(16, "10.99.0.0")), b""), "dialled", "none of the range");
    assert_eq!(said(&of(&format!("addresses: [{own}], ")), b""), "v1", "its address");
    assert_eq!(
        said(&of(&format!("allocated: [{own}], ")), b""),
        "v1",
        "an allocated address"
    );
    assert_eq!(said(&of("addresses: [10.99.0.1], "), b""), "dialled", "another address");
}

// spec: SE-022
#[test]
fn tls_in_a_range_goes_by_range_and_name() {
    let (v1, dialled) = (greeter("v1"), greeter("dialled"));
    let of = |range: &str| {
        let fields = format!("subnets: [{{address: {range}, prefix: 8}}], ");
        let hosts = [("a.example", fields.as_str(), "protocol: tls")];
        proxy(dialled, &hosts, &endpoints("a.example", &[v1]), "")
    };
    let own = dialled.ip().to_string();
    assert_eq!(said(&of(&own), &client_hello("a.example")), "v1");
    assert_eq!(said(&of(&own), &client_hello("b.example")), "dialled");
    assert_eq!(said(&of("10.0.0.0"), &client_hello("a.example")), "dialled");
}

// spec: SM-043, SM-045, SE-021
#[test]
fn http_and_tcp_share_a_port_number_by_what_is_sent() {
    let (app, tcp, dialled) = (named("app"), greeter("tcp"), greeter("dialled"));
    let hosts = [("a.example", "", "protocol: http"), ("b.example", "", "protocol: tcp")];
    let listed = endpoints("a.example", &[app.address]);
    let port = format!(
        "hosts:\n- host: b.example\n  endpoints:\n  - {{a: {}, p: 1}}\n- host",
        tcp.ip()
    );
    let listed = listed.replacen("hosts:\n- host", &format!("- {{main: {}}}\n{port}", tcp.port()), 1);
    let both = proxy(dialled, &hosts, &listed, "");
    for written in ["a.example", "a.example.", "A.Example:1", "a.example.:80"] {
        assert_eq!(get(&both, written), (200, "app".to_owned()), "{written}");
    }
    assert_eq!(said(&both, b""), "tcp", "a server that speaks first");
    assert_eq!(said(&both, b"\x01\x02 no HTTP"), "tcp");
    let closed = proxy(dialled, &hosts, &listed, REGISTRY_ONLY);
    assert_eq!(get(&closed, "c.example").0, 502);
}

// spec: SE-024, SE-006, SE-097
#[test]
fn without_resolution_http_goes_where_it_was_dialled_on_the_target_port() {
    let app = named("app");
    let dialled = SocketAddr::new(address(), 9);
    let at_app = SocketAddr::new(app.address.ip(), dialled.port());
    let port = format!("protocol: http, targetPort: {}", app.address.port());
    let hosts = [("*.example", "discovery: dialled, ", port.as_str())];
    let proxy = proxy(at_app, &hosts, "hosts: []\n", REGISTRY_ONLY);
    assert_eq!(get(&proxy, "a.example"), (200, "app".to_owned()));
    assert_eq!(get(&proxy, "example").0, 502);
}

// spec: SE-021, SE-027, SE-030, SM-061
#[test]
fn http_goes_by_its_host_to_what_the_names_stand_for() {
    let app = named("app");
    let dialled = greeter("dialled");
    let target = |name: &str| {
        format!(
            "discovery: {{dns: {{targets: [{{name: {name}, ports: {{main: {}}}}}]}}}}, ",
            app.address.port()
        )
    };
    let known = target(&app.address.ip().to_string());
    // A name that no resolver knows (RFC 6761).
    let unknown = target("nobody.invalid");
    let hosts = [
        ("a.example", known.as_str(), "protocol: http"),
        ("b.example", unknown.as_str(), "protocol: http"),
    ];
    let proxy = proxy(dialled, &hosts, "hosts: []\n", REGISTRY_ONLY);
    assert_eq!(get(&proxy, "a.example"), (200, "app".to_owned()));
    assert_eq!(get(&proxy, "b.example"), (503, "no healthy upstream".to_owned()));
    assert_eq!(get(&proxy, "c.example"), (502, String::new()));
}

// spec: SE-070, SE-086, SE-089, SE-090
#[test]
fn a_sidecar_says_where_the_application_listens_for_connections_that_are_there_too() {
    let (app, first, second) = (named("app"), named("first"), named("second"));
    let bundle = |target: &str| {
        format!(
            "{}inbound: {{ports: [{{port: {}, protocol: http{target}}}]}}\n",
            workload("app/echo"),
            app.address.port()
        )
    };
    let to = |address: SocketAddr| bundle(&format!(", target: {{loopback: '{address}'}}"));
    let listener = SocketAddr::new(address(), 0);
    let role = Role::Explicit {
        target: app.address,
        port: app.address.port(),
    };
    let proxy = Proxy::start(vec![(listener, role)], &bundle(""), "hosts: []\n", None);
    let mut client = Client::connect(proxy.addresses[0]);
    let mut ask = || client.get("/", "").text();
    assert_eq!(ask(), "app");
    proxy.configure(&to(first.address));
    assert_eq!(ask(), "first");
    proxy.configure(&to(second.address));
    assert_eq!(ask(), "second");
    proxy.configure(&bundle(&format!(", target: {{pod: {}}}", app.address.port())));
    assert_eq!(ask(), "app");
    proxy.configure(&to(first.address));
    assert_eq!(get(&proxy, "echo"), (200, "first".to_owned()));
}
