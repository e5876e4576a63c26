use std::collections::BTreeMap;

use weft_bundle::wire::{
    Action, Authorities, Bundle, Certificate, Destination, HttpVersion, Inside, Listener, RedirectPort, Rule, Serves,
    StringMatch, TlsVersion,
};

use crate::render::stage::{bundle, mesh, render, rule, service, virtual_service};
use crate::render::{ObjectReport, Output};

const ECHO: &str = "echo.app.svc.cluster.local";

/// A workload of template gateway, as `namespace/name`, with further labels.
fn workload(id: &str, labels: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    format!(
        "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{template: \
         {{metadata: {{labels: {{app: {name}, sidecar.istio.io/inject: 'true', {labels}}}, annotations: \
         {{inject.istio.io/templates: gateway}}}}, spec: {{containers: [{{name: istio-proxy, image: auto}}]}}}}}}\n"
    )
}

/// The gateway `edge/ingress`.
fn ingress() -> String {
    "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: edge}\n".to_owned()
        + &workload("edge/ingress", "istio: in")
}

/// A Gateway that selects it, of servers; age as [`rule`].
fn gateway(id: &str, age: u32, servers: &[&str]) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    let spec = format!("{{selector: {{istio: in}}, servers: [{}]}}", servers.join(", "));
    rule(namespace, name, age, &spec).replace("DestinationRule", "Gateway")
}

fn server(protocol: &str, port: u16, hosts: &str) -> String {
    let tls = if protocol == "TLS" {
        ", tls: {mode: PASSTHROUGH}"
    } else {
        ""
    };
    let name = protocol.to_ascii_lowercase();
    format!("{{port: {{number: {port}, name: {name}-{port}, protocol: {protocol}}}, hosts: [{hosts}]{tls}}}")
}

/// A VirtualService with one HTTP rule that bears its name.
fn named(namespace: &str, name: &str, age: u32, fields: &str) -> String {
    let spec = format!(
        "{{{fields}, http: [{{name: {name}, route: [{{destination: {{host: {ECHO}, port: {{number: 80}}}}}}]}}]}}"
    );
    virtual_service(namespace, name, age, &spec)
}

fn edge(documents: &str) -> Bundle {
    bundle(&render(&(ingress() + documents)), "edge/ingress")
}

fn ports(bundle: &Bundle) -> Vec<u16> {
    bundle.listeners.iter().map(|listener| listener.port).collect()
}

fn listener(bundle: &Bundle, port: u16) -> &Listener {
    let found = bundle.listeners.iter().find(|listener| listener.port == port);
    found.expect("a listener")
}

/// Rules by name, as they are on a port.
fn rules(bundle: &Bundle, port: u16) -> BTreeMap<String, Vec<Rule>> {
    let Serves::Http(hosts) = &listener(bundle, port).serves else {
        panic!("no HTTP on {port}");
    };
    let mut out = BTreeMap::new();
    for host in hosts {
        let table = bundle.routes.iter().find(|table| table.name == host.http);
        let table = table.expect("in the same bundle");
        for domain in &host.domains {
            assert!(
                out.insert(domain.clone(), table.rules.clone()).is_none(),
                "{domain} twice"
            );
        }
    }
    out
}

/// Names of the rules of each name.
fn names(bundle: &Bundle, port: u16) -> BTreeMap<String, Vec<String>> {
    let names = |rules: Vec<Rule>| rules.into_iter().filter_map(|rule| rule.name).collect();
    rules(bundle, port)
        .into_iter()
        .map(|(name, rules)| (name, names(rules)))
        .collect()
}

fn expected(pairs: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    pairs
        .iter()
        .map(|(name, list)| ((*name).to_owned(), own(list)))
        .collect()
}

fn report(output: &Output, name: &str) -> ObjectReport {
    let found = output
        .reports
        .iter()
        .find(|(reference, _)| reference.to_string() == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.clone()
}

fn refused(output: &Output, name: &str) -> (&'static str, String) {
    report(output, name).refused.expect("refused")
}

// spec: GW-002, GW-003, GW-004, GW-005
#[test]
fn labels_choose_the_workloads_of_all_namespaces_that_are_gateways() {
    let documents = ingress()
        + &workload("edge/other", "istio: out")
        + &workload("app/own", "istio: in, more: label")
        + &gateway("app/gw", 1, &[&server("HTTP", 80, "'*'")])
        + &gateway("other/all", 2, &[&server("HTTP", 81, "'*'")]).replace("selector: {istio: in}, ", "")
        + &gateway("app/nobodys", 3, &[&server("HTTP", 82, "'*'")]).replace("istio: in", "istio: nobody")
        + &gateway("app/clients", 4, &[&server("HTTP", 83, "'*'")]).replace("istio: in", "app: client");
    let output = render(&documents);
    let of = |workload: &str| ports(&bundle(&output, workload));
    assert_eq!(of("edge/ingress"), [80, 81]);
    assert_eq!(of("app/own"), [80, 81]);
    assert_eq!(of("edge/other"), [81]);
    // Sidecars never are, whatever their labels.
    assert_eq!(of("app/client"), [0; 0]);
    for nobodys in ["Gateway app/nobodys", "Gateway app/clients"] {
        let report = report(&output, nobodys);
        assert_eq!(report.refused, None);
        assert_eq!(report.unresolved.map(|(reason, _)| reason), Some("TargetNotFound"));
    }
    assert_eq!(report(&output, "Gateway app/gw").unresolved, None);
}

// spec: GW-013, GW-014
#[test]
fn ports_are_those_of_the_service_in_front() {
    let front = |namespace: &str, more: &str, ports: &str| {
        service(&format!("{namespace}/front"), "10.0.0.9", ports)
            .replace("{app: front}", &format!("{{app: ingress{more}}}"))
    };
    let servers = [80, 443, 31400].map(|port| server("HTTP", port, "'*'"));
    let documents = gateway("app/gw", 1, &servers.each_ref().map(String::as_str));
    let of = |services: &str| {
        let bundle = edge(&(documents.clone() + services));
        let pairs = bundle.listeners.iter().map(|l| (l.port, l.service_port));
        pairs.collect::<Vec<_>>()
    };
    let ports = "{name: http, port: 80, targetPort: 8080}, {name: https, port: 443}";
    assert_eq!(of(""), [(80, None), (443, None), (31400, None)]);
    let translated = [(443, None), (8080, Some(80)), (31400, None)];
    assert_eq!(of(&front("edge", "", ports)), translated);
    // One that leads elsewhere, or is of another namespace, says nothing.
    assert_eq!(
        of(&front("edge", ", more: label", ports)),
        [(80, None), (443, None), (31400, None)]
    );
    assert_eq!(of(&front("app", "", ports)), [(80, None), (443, None), (31400, None)]);
    let kept = front("edge", "", ports).replace(
        "namespace: edge}",
        "namespace: edge, labels: {experimental.istio.io/disable-gateway-port-translation: ''}}",
    );
    assert_eq!(of(&kept), [(80, None), (443, None), (31400, None)]);
}

// spec: GW-020, GW-021, GW-022, VS-019, VS-006
#[test]
fn a_virtual_service_serves_the_names_that_it_shares_with_a_server() {
    let documents = gateway(
        "app/gw",
        1,
        &[&server(
            "HTTP",
            80,
            "'./own.com', 'other/their.com', '*/*.a.com', 'B.com'",
        )],
    ) + &named(
        "app",
        "one",
        1,
        "hosts: [own.com, their.com, x.a.com, a.com, b.org], gateways: [gw]",
    ) + &named("other", "two", 2, "hosts: ['*.com'], gateways: [app/gw, mesh]")
        + &named("other", "three", 3, "hosts: [b.com], gateways: [gw]")
        + &named("app", "four", 4, "hosts: [y.a.com]")
        + &named(
            "other",
            "five",
            5,
            "hosts: ['*'], gateways: [gw.app.svc.cluster.local], exportTo: [app]",
        )
        + &named(
            "other",
            "six",
            6,
            "hosts: [z.a.com], gateways: [app/gw], exportTo: [edge]",
        );
    assert_eq!(
        names(&edge(&documents), 80),
        expected(&[
            ("own.com", &["one"]),
            ("their.com", &["two"]),
            ("x.a.com", &["one"]),
            ("*.a.com", &["two"]),
            ("b.com", &["two"]),
            ("z.a.com", &["six"]),
        ])
    );
}

// spec: GW-023
#[test]
fn what_is_exported_to_the_gateway_counts_whatever_the_namespace_of_its_gateway() {
    let documents = |to: &str| {
        gateway("app/gw", 1, &[&server("HTTP", 80, "'*'")])
            + &named(
                "app",
                "v",
                1,
                &format!("hosts: [a.com], gateways: [gw], exportTo: ['{to}']"),
            )
    };
    for seen in ["*", "edge"] {
        assert_eq!(
            names(&edge(&documents(seen)), 80),
            expected(&[("a.com", &["v"])]),
            "{seen}"
        );
    }
    assert_eq!(names(&edge(&documents(".")), 80), expected(&[]));
}

// spec: VS-017, VS-014, GW-060
#[test]
fn rules_for_one_name_stand_behind_each_other() {
    let documents = gateway("app/gw", 3, &[&server("HTTP", 80, "'*.com'")])
        + &gateway("edge/gw", 2, &[&server("HTTP2", 80, "a.com")])
        + &named("app", "young", 1, "hosts: [a.com], gateways: [gw, mesh]")
            .replace("http: [{", "http: [{match: [{method: {exact: PUT}}], ")
        + &named("app", "old", 3, "hosts: [a.com, b.com], gateways: [gw]")
            .replace("http: [{", "http: [{match: [{uri: {exact: /}}], ")
        + &named(
            "other",
            "listed",
            2,
            "hosts: [a.com], gateways: [app/gw], exportTo: [edge]",
        )
        .replace("http: [{", "http: [{match: [{uri: {exact: /}}], ")
        + &named(
            "edge",
            "private",
            1,
            "hosts: [a.com], gateways: [app/gw], exportTo: ['.']",
        )
        .replace("http: [{", "http: [{match: [{uri: {exact: /}}], ")
        + &named("edge", "second", 4, "hosts: [a.com], gateways: [gw]")
            .replace("http: [{", "http: [{match: [{uri: {exact: /}}], ");
    let bundle = edge(&documents);
    assert_eq!(
        names(&bundle, 80),
        expected(&[
            ("a.com", &["private", "listed", "old", "young", "second"]),
            ("b.com", &["old"])
        ])
    );
    let of = rules(&bundle, 80);
    let origins: Vec<Option<String>> = of["a.com"]
        .iter()
        .map(|rule| rule.origin.as_ref().map(|o| o.name.clone()))
        .collect();
    assert_eq!(origins[0], None, "that of the table");
    assert_eq!(origins[2].as_deref(), Some("old"));
    // Sidecars have the rules of one alone, and only of those that name the mesh.
    let echo = bundle.hosts.iter().find(|host| host.host == ECHO).expect("known");
    assert!(echo.ports.iter().all(|port| port.http.is_none()));
}

// spec: VS-018
#[test]
fn what_fits_everything_stands_behind_all_the_rest() {
    let of = |conditions: [&str; 3]| {
        let mut documents = gateway("app/gw", 1, &[&server("HTTP", 80, "a.com")]);
        for ((name, age), condition) in [("a", 3), ("b", 2), ("c", 1)].into_iter().zip(conditions) {
            let one = named("app", name, age, "hosts: [a.com], gateways: [gw]");
            documents += &one.replace("http: [{", &format!("http: [{{match: [{condition}], "));
        }
        let of = rules(&edge(&documents), 80).remove("a.com").expect("served");
        let name = |rule: Rule| rule.name.unwrap_or_default() + &"*".repeat(rule.matches.len());
        of.into_iter().map(name).collect::<Vec<_>>().join(" ")
    };
    let some = "{uri: {prefix: /x}}";
    assert_eq!(of([some, some, some]), "a* b* c*");
    assert_eq!(of(["{uri: {prefix: /}}", some, some]), "b* c* a*");
    assert_eq!(of(["", some, "{uri: {regex: '.*'}}"]), "b* a c*");
    // A header, a query, a method is a condition.
    for condition in [
        "headers: {x: {exact: v}}",
        "queryParams: {x: {exact: v}}",
        "method: {exact: GET}",
        "authority: {exact: a.com}",
    ] {
        assert_eq!(
            of([&format!("{{uri: {{prefix: /}}, {condition}}}"), some, some]),
            "a* b* c*",
            "{condition}"
        );
    }
    assert_eq!(of(["{uri: {exact: /}}", some, some]), "a* b* c*");
    // Of several alternatives the one that fits everything goes alone, and what comes behind it decides nothing.
    let several = "{uri: {prefix: /x}}, {uri: {prefix: /}}, {uri: {prefix: /y}}";
    assert_eq!(of([several, some, some]), "a* b* c* a*");
}

// spec: GW-029, GW-112
#[test]
fn a_server_that_redirects_does_it_for_its_names_on_the_port() {
    let redirects = server("HTTP", 80, "'*.a.com', b.com").replace("]}", "], tls: {httpsRedirect: true}}");
    let documents = gateway("app/gw", 2, &[&redirects])
        + &gateway(
            "app/more",
            1,
            &[&server("HTTP", 80, "b.com, c.com"), &server("HTTP", 81, "b.com")],
        )
        + &named("app", "v", 1, "hosts: [x.a.com, b.com, c.com], gateways: [gw, more]");
    let bundle = edge(&documents);
    let of = rules(&bundle, 80);
    for name in ["*.a.com", "x.a.com", "b.com"] {
        let [rule] = of[name].as_slice() else { panic!("{name}") };
        let Action::Redirect(redirect) = &rule.action else {
            panic!("{name}")
        };
        assert_eq!((redirect.code, redirect.scheme.as_deref()), (301, Some("https")));
        assert_eq!(
            (&redirect.port, &redirect.path, &redirect.authority),
            (&Some(RedirectPort::Received), &None, &None)
        );
    }
    assert_eq!(names(&bundle, 80)["c.com"], ["v"]);
    assert_eq!(names(&bundle, 81)["b.com"], ["v"], "on another port it is served");
}

// spec: GW-059, GW-061, GW-062, GW-063, GW-066, GW-117
#[test]
fn the_older_server_stays_as_it_is_and_the_other_is_reported() {
    let tls = |hosts: &str, name: &str| {
        let spec = format!(
            "{{hosts: ['*.com'], gateways: [{name}], tls: [{{match: [{{sniHosts: [{hosts}]}}], route: [{{destination: {{host: {ECHO}, \
             port: {{number: 80}}}}}}]}}], tcp: [{{route: [{{destination: {{host: {ECHO}, port: {{number: 90}}}}}}]}}]}}"
        );
        virtual_service("app", name, 1, &spec)
    };
    let old = gateway(
        "app/old",
        9,
        &[
            &server("TLS", 443, "app/a.com, b.com"),
            &server("HTTP", 80, "a.com"),
            &server("TCP", 90, "'*'"),
        ],
    ) + &tls("a.com", "old");
    let young = gateway(
        "app/young",
        1,
        &[
            &server("TLS", 443, "c.com, edge/a.com"),
            &server("TCP", 80, "'*'"),
            &server("MONGO", 90, "'*'"),
            &server("TLS", 90, "x.com"),
        ],
    ) + &tls("c.com", "young");
    let before = edge(&old);
    let output = render(&(ingress() + &old + &young));
    assert_eq!(bundle(&output, "edge/ingress").listeners, before.listeners);
    assert_eq!(ports(&before), [80, 90, 443]);
    let (reason, message) = refused(&output, "Gateway app/young");
    assert_eq!(reason, "Conflicted");
    assert!(
        message.contains("spec.servers[0]") && message.contains("app/old") && message.contains("a.com"),
        "{message}"
    );
    assert_eq!(report(&output, "Gateway app/old").refused, None);
    // Without a name in common both are served, and of TCP the first alone.
    let beside = gateway("app/young", 1, &[&server("TLS", 443, "c.com")]) + &tls("c.com", "young");
    let both = render(&(ingress() + &old + &beside));
    assert_eq!(report(&both, "Gateway app/young").refused, None);
    let Serves::Tls(serving) = listener(&bundle(&both, "edge/ingress"), 443).serves.clone() else {
        panic!("no TLS");
    };
    let names: Vec<_> = serving.passthrough.iter().flat_map(|rule| rule.sni.clone()).collect();
    assert_eq!(names, ["a.com", "c.com"]);
    let tcp = gateway("app/young", 1, &[&server("REDIS", 90, "'*'")]);
    assert_eq!(
        refused(&render(&(ingress() + &old + &tcp)), "Gateway app/young").0,
        "Conflicted"
    );
}

fn destinations(serves: &Serves) -> Vec<(u16, u32)> {
    let Serves::Tcp(list) = serves else {
        panic!("{serves:?}")
    };
    list.iter()
        .map(|Destination { port, weight, .. }| (*port, *weight))
        .collect()
}

// spec: VS-173, GW-068, VS-171
#[test]
fn a_tcp_server_has_the_first_rule_of_its_port_and_is_closed_without_one() {
    let of = |rules: &str| {
        let rules = rules.replace(
            "TO90",
            &format!("route: [{{destination: {{host: {ECHO}, port: {{number: 90}}}}}}]"),
        );
        let rules = rules.replace(
            "TO80",
            &format!("route: [{{destination: {{host: {ECHO}, port: {{number: 80}}}}}}]"),
        );
        let documents = gateway("app/gw", 1, &[&server("TCP", 31400, "a.com")])
            + &virtual_service(
                "app",
                "v",
                1,
                &format!("{{hosts: [a.com], gateways: [gw, mesh], tcp: [{rules}]}}"),
            );
        let bundle = edge(&documents);
        bundle.listeners.first().map(|l| destinations(&l.serves))
    };
    let first = Some(vec![(90, 1)]);
    assert_eq!(of("{TO90}, {TO80}"), first);
    assert_eq!(
        of(
            "{match: [{port: 1}], TO80}, {match: [{gateways: [mesh]}], TO80}, {match: [{port: 31400, gateways: [gw]}], TO90}"
        ),
        first
    );
    // Sources and addresses do not count.
    assert_eq!(
        of("{match: [{sourceLabels: {x: v}, sourceNamespace: there, destinationSubnets: [1.2.3.4]}], TO90}, {TO80}"),
        first
    );
    assert_eq!(of("{match: [{port: 1}], TO80}"), None);
    let unbound = gateway(
        "app/gw",
        1,
        &[&server("TCP", 31400, "b.com"), &server("TLS", 443, "'*'")],
    );
    assert_eq!(
        ports(&edge(&unbound)),
        [0; 0],
        "nothing but TLS that passes through, and no rule: closed as well"
    );
}

// spec: VS-166, VS-167, GW-058, GW-068
#[test]
fn tls_rules_go_by_name_port_and_gateway_alone() {
    let to = |port: u16| format!("route: [{{destination: {{host: {ECHO}, port: {{number: {port}}}}}}}]");
    let rules = format!(
        "{{match: [{{sniHosts: ['*.a.com'], sourceLabels: {{x: v}}, sourceNamespace: there, destinationSubnets: [1.2.3.4]}}], {}}}, \
         {{match: [{{sniHosts: [x.a.com]}}], {}}}, {{match: [{{sniHosts: [y.a.com], port: 1}}, {{sniHosts: [y.a.com], gateways: \
         [mesh]}}], {}}}, {{match: [{{sniHosts: [x.a.com, z.a.com]}}], {}}}, {{match: [{{sniHosts: [b.com], gateways: [gw], port: \
         443}}], {}}}",
        to(80),
        to(90),
        to(70),
        to(70),
        to(70)
    );
    let spec = format!("{{hosts: ['*.a.com', b.com], gateways: [gw, mesh], tls: [{rules}]}}");
    let documents = gateway("app/gw", 1, &[&server("TLS", 443, "'*.com'")]) + &virtual_service("app", "v", 1, &spec);
    let bundle = edge(&documents);
    let Serves::Tls(serving) = &listener(&bundle, 443).serves else {
        panic!("no TLS")
    };
    let rules: Vec<_> = serving
        .passthrough
        .iter()
        .map(|rule| (rule.sni.join(" "), rule.destinations[0].port))
        .collect();
    let own = |name: &str, port: u16| (name.to_owned(), port);
    assert_eq!(rules, [own("x.a.com", 90), own("b.com", 70), own("*.a.com", 80)]);
    assert!(serving.passthrough.iter().all(|rule| rule.subnets.is_empty()));
    // A name outside of the server's is not served.
    let narrow = documents.replace("'*.com'", "b.com");
    let narrow = edge(&narrow);
    let Serves::Tls(serving) = &listener(&narrow, 443).serves else {
        panic!("no TLS")
    };
    assert_eq!(
        serving
            .passthrough
            .iter()
            .flat_map(|rule| &rule.sni)
            .collect::<Vec<_>>(),
        ["b.com"]
    );
}

// spec: VS-042, VS-040, GW-083
#[test]
fn rules_differ_by_gateway_and_port() {
    let route = |name: &str, condition: &str| {
        format!(
            "{{name: {name}, match: [{{{condition}}}], route: [{{destination: {{host: {ECHO}, port: {{number: 80}}}}}}]}}"
        )
    };
    let list = [
        route("mesh", "gateways: [mesh]"),
        route("one", "uri: {prefix: /1}, gateways: [one]"),
        route("two", "uri: {prefix: /2}, gateways: [app/two, mesh]"),
        route("port", "uri: {prefix: /3}, port: 81"),
        route("never", "port: 8080"),
        route("labels", "uri: {prefix: /4}, sourceLabels: {app: ingress}"),
        route("others", "sourceLabels: {app: client}"),
    ];
    let spec = format!(
        "{{hosts: [a.com, echo], gateways: [one, two, mesh], http: [{}]}}",
        list.join(", ")
    );
    let documents = ingress()
        + &gateway("app/one", 2, &[&server("HTTP", 80, "'*'"), &server("HTTP", 81, "'*'")])
        + &gateway("app/two", 1, &[&server("HTTP", 82, "'*'")])
        + &virtual_service("app", "v", 1, &spec)
        + &service("edge/front", "10.0.0.9", "{name: http, port: 81, targetPort: 8080}")
            .replace("app: front", "app: ingress");
    let output = render(&documents);
    let edge = bundle(&output, "edge/ingress");
    assert_eq!(names(&edge, 80)["a.com"], ["one", "labels"]);
    assert_eq!(
        names(&edge, 8080)["a.com"],
        ["one", "port", "labels"],
        "by the port of the Service"
    );
    assert_eq!(names(&edge, 82)["a.com"], ["two", "labels"]);
    assert!(bundle(&output, "app/client").listeners.is_empty());
}

// spec: VS-154, GW-006, VS-024
#[test]
fn delegates_and_rules_that_do_not_hold() {
    let delegate = named("other", "d", 1, "hosts: []");
    let root = |condition: &str| {
        virtual_service(
            "app",
            "v",
            1,
            &format!(
                "{{hosts: [a.com], gateways: [gw], http: [{{match: [{condition}], delegate: {{name: d, namespace: other}}}}]}}"
            ),
        )
    };
    let own = gateway("app/gw", 1, &[&server("HTTP", 80, "'*'")]);
    // A Gateway alone opens the port and serves nobody.
    assert_eq!(names(&edge(&own), 80), expected(&[]));
    // The short name is that of the root's namespace.
    let of = |condition: &str| names(&edge(&(own.clone() + &delegate + &root(condition))), 80);
    assert_eq!(
        of("{uri: {prefix: /x}, gateways: [gw]}"),
        expected(&[("a.com", &["d"])])
    );
    assert_eq!(of("{uri: {prefix: /x}, port: 81}"), expected(&[]));
}

// spec: VS-007, OPS-122
#[test]
fn a_gateway_that_is_not_there_is_reported() {
    let documents = ingress()
        + &gateway("app/gw", 1, &[&server("HTTP", 80, "'*'")])
        + &named("app", "good", 1, "hosts: [a.com], gateways: [gw, mesh]")
        + &named("app", "bad", 1, "hosts: [b.com], gateways: [gw, other/gw]");
    let output = render(&documents);
    assert_eq!(report(&output, "VirtualService app/good").unresolved, None);
    let bad = report(&output, "VirtualService app/bad");
    assert_eq!(
        (bad.refused, bad.unresolved.map(|(reason, _)| reason)),
        (None, Some("GatewayNotFound"))
    );
    assert_eq!(names(&bundle(&output, "edge/ingress"), 80)["b.com"], ["bad"]);
}

// spec: DLV-084, OPS-121
#[test]
fn what_is_not_supported_is_said_and_the_rest_is_served() {
    let tls = |settings: &str| server("TLS", 443, "a.com").replace("PASSTHROUGH", settings);
    let automatic = tls("AUTO_PASSTHROUGH");
    let elsewhere = tls("SIMPLE, credentialName: 'kubernetes-gateway://app/x'");
    let chosen = tls("SIMPLE, credentialName: 'x,metadata.namespace=y'");
    let weak = tls("SIMPLE, serverCertificate: /a, privateKey: /b, cipherSuites: [AES128-SHA]");
    let crossed = tls("SIMPLE, credentialName: x, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2");
    let pinned = tls("MUTUAL, credentialName: x, verifyCertificateHash: [aa]");
    let lax = tls("MUTUAL, credentialName: x, insecureSkipVerify: true");
    let bind = server("HTTP", 81, "a.com").replace("hosts:", "bind: 10.0.0.1, hosts:");
    for (unsupported, word) in [
        (&automatic, "AUTO_PASSTHROUGH"),
        (&elsewhere, "is no name of a Secret"),
        (&chosen, "is no name of a Secret"),
        (&weak, "cipherSuites"),
        (&crossed, "maxProtocolVersion"),
        (&pinned, "verifyCertificateHash"),
        (&lax, "insecureSkipVerify"),
        (&bind, "bind"),
    ] {
        let documents = ingress() + &gateway("app/gw", 1, &[&server("HTTP", 80, "'*'"), unsupported]);
        let output = render(&documents);
        let (reason, message) = refused(&output, "Gateway app/gw");
        assert_eq!(reason, "Unsupported");
        assert!(
            message.contains("spec.servers[1]") && message.contains(word),
            "{message}"
        );
        assert_eq!(ports(&bundle(&output, "edge/ingress")), [80]);
    }
}

// spec: GW-078, GW-008, LIFE-034, DR-085
#[test]
fn what_a_gateway_does_not_know_of_a_port_is_http_1() {
    let documents = gateway("app/gw", 1, &[&server("HTTP", 80, "'*'")]);
    let version = |documents: &str, port: u16| {
        let edge = edge(documents);
        let echo = edge.hosts.iter().find(|host| host.host == ECHO).expect("known").clone();
        echo.ports
            .into_iter()
            .find(|p| p.port == port)
            .expect("a port")
            .policy
            .http_version
    };
    assert_eq!(version(&documents, 70), Some(HttpVersion::Http1));
    assert_eq!(version(&documents, 80), None);
    let upgrade =
        "{host: echo.app.svc.cluster.local, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}";
    let of_edge = documents.clone() + &rule("edge", "r", 1, upgrade);
    assert_eq!(
        version(&of_edge, 70),
        Some(HttpVersion::Http2),
        "rules of the gateway's own namespace count"
    );
    assert_eq!(edge(&documents).mesh.drain_ms, 45_000);
    assert_eq!(
        edge(&(documents + &mesh("defaultConfig: {drainDuration: 7s}")))
            .mesh
            .drain_ms,
        7_000
    );
}

// spec: VS-018
#[test]
fn alternatives_keep_what_they_match() {
    let documents = gateway("app/gw", 1, &[&server("HTTP", 80, "a.com")])
        + &named("app", "v", 1, "hosts: [a.com], gateways: [gw]")
            .replace("http: [{", "http: [{match: [{uri: {prefix: /x}}, {uri: {prefix: /}}], ");
    let of = rules(&edge(&documents), 80).remove("a.com").expect("served");
    let paths: Vec<_> = of
        .iter()
        .flat_map(|rule| &rule.matches)
        .filter_map(|m| m.path.clone())
        .collect();
    assert_eq!(
        paths,
        [StringMatch::Prefix("/x".into()), StringMatch::Prefix("/".into())]
    );
}

// spec: SM-026, GW-012
#[test]
fn the_oldest_server_of_a_port_says_whether_it_speaks_grpc_web() {
    let web = server("GRPC-Web", 80, "a.com");
    let plain = server("HTTP", 80, "b.com");
    let of = |first: &str, second: &str| {
        let documents = gateway("edge/old", 3, &[first]) + &gateway("edge/young", 1, &[second]);
        listener(&edge(&documents), 80).grpc_web
    };
    assert!(of(&web, &plain));
    assert!(!of(&plain, &web));
    assert!(!of(&server("GRPC", 80, "a.com"), &web));
}

/// A server at which TLS ends, with a name and settings.
fn ending(protocol: &str, hosts: &str, name: &str, settings: &str) -> String {
    server("TLS", 443, hosts)
        .replace("protocol: TLS", &format!("protocol: {protocol}"))
        .replace("tls-443", &format!("tls-{name}"))
        .replace("PASSTHROUGH", settings)
}

fn files(name: &str, more: &str) -> String {
    format!("SIMPLE, serverCertificate: /etc/{name}.crt, privateKey: /etc/{name}.key{more}")
}

// spec: GW-031, GW-036, GW-049, GW-050, GW-057, GW-061, GW-065, GW-069
#[test]
fn servers_at_which_tls_ends_have_names_and_rules_of_their_own() {
    let more = ", minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_3, cipherSuites: [AES128-SHA, \
                ECDHE-RSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-GCM-SHA256]";
    let servers = [
        ending("HTTPS", "'*.a.com'", "one", &files("one", more)),
        ending(
            "https",
            "x.a.com, b.com",
            "two",
            &files("two", ", maxProtocolVersion: TLSV1_2"),
        ),
        ending("TLS", "c.com", "three", &files("three", "")),
        ending("TLS", "d.com", "none", &files("none", "")),
        server("TLS", 443, "e.com"),
    ];
    let to = |port: u16| format!("route: [{{destination: {{host: {ECHO}, port: {{number: {port}}}}}}}]");
    let l4 = format!(
        "{{hosts: [c.com, e.com], gateways: [gw], tcp: [{{{}}}], tls: [{{match: [{{sniHosts: [c.com, e.com]}}], {}}}]}}",
        to(90),
        to(70)
    );
    let documents = ingress()
        + &gateway("app/gw", 2, &servers.each_ref().map(String::as_str))
        + &gateway(
            "app/late",
            1,
            &[&ending("HTTPS", "f.com, b.com", "late", &files("late", ""))],
        )
        + &named("app", "v", 2, "hosts: [x.a.com, y.a.com, b.com], gateways: [gw]")
        + &virtual_service("app", "l4", 1, &l4);
    let output = render(&documents);
    let bundle = bundle(&output, "edge/ingress");
    let Serves::Tls(serving) = &listener(&bundle, 443).serves else {
        panic!("no TLS")
    };
    let of = |n: usize| {
        let server = &serving.terminated[n];
        let [Certificate::Files { chain, .. }] = server.tls.certificates.as_slice() else {
            panic!("no files")
        };
        let names = match &server.inside {
            Inside::Http(hosts) => {
                let mut names: Vec<_> = hosts.iter().flat_map(|host| host.domains.clone()).collect();
                names.sort();
                names.join(" ")
            }
            Inside::Tcp(list) => format!("{:?}", list.iter().map(|d| d.port).collect::<Vec<_>>()),
        };
        format!("{} {chain} {names}", server.sni.join(","))
    };
    assert_eq!(serving.terminated.len(), 3, "one of TCP without a rule is not served");
    assert_eq!(of(0), "*.a.com /etc/one.crt x.a.com y.a.com");
    assert_eq!(of(1), "b.com,x.a.com /etc/two.crt b.com x.a.com");
    assert_eq!(of(2), "c.com /etc/three.crt [90]");
    let tls = |n: usize| &serving.terminated[n].tls;
    assert_eq!((tls(0).min, tls(0).max), (TlsVersion::V1_3, None));
    assert_eq!(tls(0).ciphers, ["ECDHE-RSA-AES128-GCM-SHA256"]);
    assert_eq!((tls(1).min, tls(1).max), (TlsVersion::V1_2, Some(TlsVersion::V1_2)));
    let passing: Vec<_> = serving.passthrough.iter().flat_map(|rule| rule.sni.clone()).collect();
    assert_eq!(passing, ["e.com"]);
    let (reason, message) = refused(&output, "Gateway app/late");
    assert_eq!(reason, "Conflicted");
    assert!(message.contains("b.com"), "{message}");
    assert!(output.credentials.is_empty() && output.named_credentials.is_empty());
}

// spec: GW-058
#[test]
fn names_pass_through_where_their_own_server_says_so_alone() {
    let servers = [
        server("TLS", 443, "'*.a.com'"),
        ending("HTTPS", "x.a.com, '*.y.a.com'", "one", &files("one", "")),
    ];
    let l4 = format!(
        "{{hosts: ['*.a.com'], gateways: [gw], tls: [{{match: [{{sniHosts: [x.a.com, z.y.a.com, '*.y.a.com', z.a.com, \
         '*.a.com']}}], route: [{{destination: {{host: {ECHO}, port: {{number: 70}}}}}}]}}]}}"
    );
    let documents =
        gateway("app/gw", 1, &servers.each_ref().map(String::as_str)) + &virtual_service("app", "v", 1, &l4);
    let bundle = edge(&documents);
    let Serves::Tls(serving) = &listener(&bundle, 443).serves else {
        panic!("no TLS")
    };
    let mut passing: Vec<_> = serving.passthrough.iter().flat_map(|rule| rule.sni.clone()).collect();
    passing.sort();
    assert_eq!(passing, ["*.a.com", "z.a.com"]);
}

// spec: GW-024, GW-029
#[test]
fn https_without_rules_is_open_and_redirects_nobody() {
    let redirecting = ending("HTTPS", "a.com", "one", &files("one", ", httpsRedirect: true"));
    let bundle = edge(&gateway("app/gw", 1, &[&redirecting]));
    let Serves::Tls(serving) = &listener(&bundle, 443).serves else {
        panic!("no TLS")
    };
    assert!(matches!(&serving.terminated[0].inside, Inside::Http(hosts) if hosts.is_empty()));
}

// spec: GW-032, GW-035, GW-037, GW-044, GW-047, GW-115
#[test]
fn clients_are_verified_as_the_mode_says() {
    let own = ", subjectAltNames: [one, two]";
    let servers = [
        ending(
            "HTTPS",
            "a.com",
            "a",
            &files("a", ", caCertificates: /ca, caCrl: /crl").replace("SIMPLE", "MUTUAL"),
        ),
        ending(
            "HTTPS",
            "b.com",
            "b",
            &format!("OPTIONAL_MUTUAL, credentialName: x{own}"),
        ),
        ending(
            "HTTPS",
            "c.com",
            "c",
            "MUTUAL, credentialName: x, caCertCredentialName: ca, minProtocolVersion: TLSV1_2",
        ),
        ending("HTTPS", "d.com", "d", &format!("ISTIO_MUTUAL{own}")),
    ];
    let defaults = "tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]}";
    let documents = ingress() + &mesh(defaults) + &gateway("app/gw", 1, &servers.each_ref().map(String::as_str));
    let output = render(&documents);
    let bundle = bundle(&output, "edge/ingress");
    let Serves::Tls(serving) = &listener(&bundle, 443).serves else {
        panic!("no TLS")
    };
    let tls = |n: usize| &serving.terminated[n].tls;
    let clients = |n: usize| tls(n).clients.clone().expect("verified");
    let stem = |name: &str| weft_bundle::key::credential_stem("edge", name);
    assert_eq!(clients(0).authorities, Authorities::File("/ca".into()));
    assert_eq!((clients(0).crl.as_deref(), clients(0).optional), (Some("/crl"), false));
    assert_eq!(clients(1).authorities, Authorities::Credential(stem("x")));
    assert_eq!((clients(1).optional, clients(1).names.len()), (true, 2));
    assert_eq!(clients(2).authorities, Authorities::Credential(stem("ca")));
    assert_eq!((clients(3).authorities, clients(3).names.len()), (Authorities::Mesh, 2));
    assert_eq!(tls(3).certificates, [Certificate::Workload]);
    // What the mesh config says holds where a server says nothing, and not within the mesh.
    let of = |n: usize| (tls(n).min, tls(n).ciphers.len());
    assert_eq!(of(0), (TlsVersion::V1_3, 1));
    assert_eq!(of(2), (TlsVersion::V1_2, 1));
    assert_eq!(of(3), (TlsVersion::V1_2, 0));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    // spec: GW-058, GW-061, DLV-025
    #[test]
    fn whatever_servers_share_a_port_of_tls_a_proxy_can_load_it(
        gateways in proptest::collection::vec(proptest::collection::vec((0usize..6, 0usize..4, 0usize..6), 1..4), 1..4),
        names in proptest::collection::vec(0usize..6, 1..5),
    ) {
        const HOSTS: [&str; 6] = ["'*'", "'*.a.com'", "x.a.com", "'*.x.a.com'", "y.x.a.com", "b.com"];
        const MODES: [(&str, &str); 4] = [
            ("TLS", "PASSTHROUGH"),
            ("HTTPS", "SIMPLE, credentialName: one"),
            ("TLS", "MUTUAL, credentialName: two"),
            ("HTTPS", "ISTIO_MUTUAL"),
        ];
        let mut documents = ingress();
        for (g, servers) in gateways.iter().enumerate() {
            let server = |(n, (host, mode, other)): (usize, &(usize, usize, usize))| {
                let (protocol, settings) = MODES[*mode];
                let hosts = format!("{}, {}", HOSTS[*host], HOSTS[*other]);
                ending(protocol, &hosts, &n.to_string(), settings)
            };
            let servers: Vec<String> = servers.iter().enumerate().map(server).collect();
            let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
            documents += &gateway(&format!("app/gw{g}"), 1, &servers);
        }
        let names: Vec<&str> = names.iter().map(|n| HOSTS[*n]).collect();
        let to = format!("route: [{{destination: {{host: {ECHO}, port: {{number: 70}}}}}}]");
        let rules = format!(
            "{{hosts: [{0}], gateways: [gw0, gw1, gw2], http: [{{{to}}}], tcp: [{{{to}}}], tls: [{{match: [{{sniHosts: [{0}]}}], {to}}}]}}",
            names.join(", ")
        );
        documents += &virtual_service("app", "v", 1, &rules);
        // Panics where something cannot be rendered, or loaded once it is.
        let output = render(&documents);
        let bundle = bundle(&output, "edge/ingress");
        for listener in &bundle.listeners {
            let Serves::Tls(serving) = &listener.serves else { continue };
            let own = serving.terminated.iter().flat_map(|server| server.sni.clone());
            let mut all: Vec<String> = own.chain(serving.passthrough.iter().flat_map(|rule| rule.sni.clone())).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            proptest::prop_assert_eq!(all.len(), count);
        }
    }
}
