//! Rules for TLS that passes through and for other connections.

use weft_bundle::wire::{TcpRule, TlsRule};

use super::*;

const PORTS: &str = "{name: tls, port: 443}, {name: tcp, port: 9000}, {name: tcp-b, port: 9001}";

const S: &str = "s.app.svc.cluster.local";

/// Port of `s.app` as `app/client` sees it beside VirtualServices.
fn port(documents: &str, number: u16) -> HostPort {
    let documents = service("app/s", "10.0.0.2", PORTS) + &service("app/t", "10.0.0.3", PORTS) + documents;
    port_of(&bundle(&render(&documents), "app/client"), S, number)
}

/// A VirtualService for `s.app` and more names.
fn rules_for(name: &str, age: u32, rest: &str) -> String {
    virtual_service(
        "app",
        name,
        age,
        &format!("{{hosts: [{S}, '*.com'], gateways: [mesh, gw], {rest}}}"),
    )
}

fn tls(name: &str, age: u32, elements: &[&str]) -> String {
    let route = |element: &&str| format!("{{match: [{{{element}}}], route: [{{destination: {{host: {name}}}}}]}}");
    let routes: Vec<String> = elements.iter().map(route).collect();
    rules_for(name, age, &format!("tls: [{}]", routes.join(", ")))
}

fn tcp(name: &str, age: u32, elements: &[&str]) -> String {
    let route = |element: &&str| format!("{{match: [{{{element}}}], route: [{{destination: {{host: {name}}}}}]}}");
    let routes: Vec<String> = elements.iter().map(route).collect();
    rules_for(name, age, &format!("tcp: [{}]", routes.join(", ")))
}

/// Rules as names, subnets and the first label of the destination.
fn said(rules: &[TlsRule]) -> Vec<(String, String, String)> {
    let one = |rule: &TlsRule| (rule.sni.join(" "), subnets(&rule.subnets), to(&rule.destinations));
    rules.iter().map(one).collect()
}

fn said_tcp(rules: &[TcpRule]) -> Vec<(String, String)> {
    rules
        .iter()
        .map(|rule| (subnets(&rule.subnets), to(&rule.destinations)))
        .collect()
}

fn subnets(list: &[weft_bundle::wire::Subnet]) -> String {
    let text: Vec<String> = list.iter().map(|s| format!("{}/{}", s.address, s.prefix)).collect();
    text.join(" ")
}

fn to(destinations: &[weft_bundle::wire::Destination]) -> String {
    let first = |d: &weft_bundle::wire::Destination| d.host.split('.').next().unwrap_or_default().to_owned();
    destinations.iter().map(first).collect::<Vec<_>>().join(" ")
}

fn texts<const N: usize>(rows: [(&str, &str, &str); N]) -> Vec<(String, String, String)> {
    rows.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())).into()
}

// spec: VS-163, VS-165
#[test]
fn all_conditions_of_tls_hold_together() {
    let names = "sniHosts: [A.com, b.com], destinationSubnets: [10.1.0.0/16, 'fd00::/16', 10.2.3.4]";
    let of = |element: &str| said(&port(&tls("t", 1, &[element]), 443).tls);
    let rule = texts([
        ("a.com b.com", "10.2.3.4/32", "t"),
        ("a.com b.com", "10.1.0.0/16 fd00::/16", "t"),
    ]);
    assert_eq!(of(names), rule);
    for holds in [
        "port: 443",
        "sourceLabels: {app: client}",
        "sourceNamespace: app",
        "gateways: [mesh]",
    ] {
        assert_eq!(of(&format!("{names}, {holds}")), rule, "{holds}");
    }
    for fails in [
        "port: 444",
        "sourceLabels: {app: x}",
        "sourceNamespace: other",
        "gateways: [gw]",
    ] {
        assert_eq!(of(&format!("{names}, {fails}")), [], "{fails}");
    }
}

// spec: VS-167
#[test]
fn the_most_specific_rule_for_tls_comes_first() {
    let documents = tls(
        "t",
        1,
        &[
            "sniHosts: ['*.com']",
            "sniHosts: ['*.x.com', b.com]",
            "sniHosts: [a.com]",
            "sniHosts: ['*.com'], destinationSubnets: [10.0.0.0/8]",
            "sniHosts: [a.com], destinationSubnets: [10.0.0.0/8]",
            "sniHosts: ['*.com'], destinationSubnets: [10.1.0.0/16]",
        ],
    );
    let expected = texts([
        ("*.com", "10.1.0.0/16", "t"),
        ("a.com", "10.0.0.0/8", "t"),
        ("*.com", "10.0.0.0/8", "t"),
        ("b.com", "", "t"),
        ("a.com", "", "t"),
        ("*.x.com", "", "t"),
        ("*.com", "", "t"),
    ]);
    assert_eq!(said(&port(&documents, 443).tls), expected);
}

// spec: VS-183
#[test]
fn all_virtual_services_of_a_host_are_asked_in_turn() {
    // Of equal elements the older one's is first, and an exact host is no more than a wildcard.
    let older = tls("s", 2, &["sniHosts: [a.com]"]).replace(&format!("{S}, '*.com'"), "'*.svc.cluster.local', '*.com'");
    let newer = tls("t", 1, &["sniHosts: [a.com]", "sniHosts: [b.com]"]);
    let expected = texts([("a.com", "", "s"), ("a.com", "", "t"), ("b.com", "", "t")]);
    assert_eq!(said(&port(&(newer.clone() + &older), 443).tls), expected);
    let older = tcp("s", 2, &["destinationSubnets: [10.1.0.0/16]"])
        .replace(&format!("{S}, '*.com'"), "'*.svc.cluster.local', '*.com'");
    let newer = tcp("t", 1, &["port: 9000", "destinationSubnets: [10.2.0.0/16]"]);
    let rules = said_tcp(&port(&(newer.clone() + &older), 9000).tcp);
    let row = |subnets: &str, to: &str| (subnets.to_owned(), to.to_owned());
    assert_eq!(
        rules,
        [row("10.1.0.0/16", "s"), row("", "t")],
        "one that needs no subnet ends the search"
    );
    let wide = tcp("s", 2, &["gateways: [mesh]"]).replace(&format!("{S}, '*.com'"), "'*.svc.cluster.local', '*.com'");
    assert_eq!(said_tcp(&port(&(newer + &wide), 9000).tcp), [row("", "s")]);
    // A private one is asked first, whatever its age.
    let private = tcp("t", 1, &["port: 9000"]).replace("gateways: [mesh, gw]", "exportTo: ['.']");
    assert_eq!(said_tcp(&port(&(private + &wide), 9000).tcp), [row("", "t")]);
}

// spec: VS-171, VS-172
#[test]
fn all_conditions_of_tcp_hold_together() {
    let of = |element: &str| said_tcp(&port(&tcp("t", 1, &[element]), 9000).tcp);
    let row = |subnets: &str| (subnets.to_owned(), "t".to_owned());
    let subnets = "destinationSubnets: [10.1.0.0/16, 10.2.3.4]";
    assert_eq!(of(subnets), [row("10.1.0.0/16 10.2.3.4/32")]);
    for holds in [
        "port: 9000",
        "sourceLabels: {app: client}",
        "sourceNamespace: app",
        "gateways: [mesh]",
    ] {
        assert_eq!(of(holds), [row("")], "{holds}");
    }
    for fails in [
        "port: 9001",
        "sourceLabels: {app: x}",
        "sourceNamespace: other",
        "gateways: [gw]",
    ] {
        assert_eq!(of(fails), [], "{fails}");
        assert_eq!(of(&format!("{subnets}, {fails}")), [], "{fails}");
    }
    // Without match a rule is for every port that TCP rules can serve.
    let all = rules_for("t", 1, "tcp: [{route: [{destination: {host: t}}]}]");
    assert_eq!(said_tcp(&port(&all, 9000).tcp), [row("")]);
    assert_eq!(said_tcp(&port(&all, 9001).tcp), [row("")]);
    assert_eq!(said_tcp(&port(&all, 443).tcp), []);
}

// spec: VS-050, VS-175
#[test]
fn destinations_of_connections_have_weights_and_the_port_of_arrival() {
    let spec = "tcp: [{route: [{destination: {host: s}, weight: 1}, {destination: {host: t, port: {number: 9001}}, weight: 3}]}]";
    let rules = port(&rules_for("v", 1, spec), 9000).tcp;
    let parts: Vec<_> = rules[0].destinations.iter().map(|d| (d.port, d.weight)).collect();
    assert_eq!(parts, [(9000, 1), (9001, 3)]);
}
