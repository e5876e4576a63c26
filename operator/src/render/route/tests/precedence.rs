//! Which VirtualService supplies the rules of a host.

use crate::render::Renderer;
use crate::world::read::{Read, object};
use crate::world::{Event, Settings, Store};

use super::*;

fn served(documents: &str, workload: &str) -> Vec<String> {
    names(documents, workload, ECHO, 80)
}

// spec: VS-005, VS-006
#[test]
fn rules_are_for_sidecars_where_mesh_is_named_or_nothing_is() {
    let with = |gateways: &str| named("app", "v", 1, &format!("hosts: [echo]{gateways}"));
    for mesh in [
        "",
        ", gateways: []",
        ", gateways: [mesh]",
        ", gateways: [other/gw, mesh]",
    ] {
        assert_eq!(served(&with(mesh), "app/client"), ["v"], "{mesh}");
        assert_eq!(served(&with(mesh), "other/client"), ["v"], "{mesh}");
    }
    for gateway in [", gateways: [gw]", ", gateways: [other/gw]"] {
        assert_eq!(served(&with(gateway), "app/client"), [""; 0], "{gateway}");
    }
    let gateway = "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: gw, namespace: app}\nspec: {template: \
                   {metadata: {labels: {app: gw}, annotations: {inject.istio.io/templates: gateway}}, spec: {containers: \
                   [{name: istio-proxy, image: auto}]}}}\n";
    assert_eq!(served(&(with("") + gateway), "app/gw"), [""; 0]);
}

// spec: VS-185
#[test]
fn rules_reach_hosts_of_other_namespaces() {
    let elsewhere = named("other", "v", 1, &format!("hosts: [{ECHO}]"));
    assert_eq!(served(&elsewhere, "app/client"), ["v"]);
    assert_eq!(served(&elsewhere, "other/client"), ["v"]);
    // A short name is the one of its own namespace.
    let short = named("other", "v", 1, "hosts: [echo]");
    assert_eq!(served(&short, "app/client"), [""; 0]);
}

// spec: VS-008, SM-069
#[test]
fn rules_are_seen_where_they_are_exported_to() {
    let to = |list: &str| named("app", "v", 1, &format!("hosts: [{ECHO}], exportTo: [{list}]"));
    let seen = |documents: &str| {
        (
            !served(documents, "app/client").is_empty(),
            !served(documents, "other/client").is_empty(),
        )
    };
    assert_eq!(seen(&to("")), (true, true));
    assert_eq!(seen(&to("'*'")), (true, true));
    assert_eq!(seen(&to("'.'")), (true, false));
    assert_eq!(seen(&to("other")), (false, true));
    assert_eq!(seen(&to("'.', other")), (true, true));
    let private = mesh("defaultVirtualServiceExportTo: ['.']");
    assert_eq!(seen(&(private.clone() + &to(""))), (true, false));
    assert_eq!(
        seen(&(private + &to("'*'"))),
        (true, true),
        "what is said counts before the default"
    );
}

// spec: VS-010, SM-020
#[test]
fn each_list_of_rules_is_for_the_ports_that_it_can_serve() {
    let route = "route: [{destination: {host: echo}}]";
    let ports = "{name: http, port: 80}, {name: grpc, port: 81}, {name: tcp, port: 90}, {name: web, port: 70}, {name: https, \
                 port: 443}, {name: tls-x, port: 444}";
    let documents = service("app/s", "10.0.0.2", ports)
        + &virtual_service(
            "app",
            "v",
            1,
            &format!(
                "{{hosts: [s.app.svc.cluster.local], http: [{{{route}}}], tls: [{{match: [{{sniHosts: [s.app.svc.cluster.local]}}], {route}}}], \
                 tcp: [{{{route}}}]}}"
            ),
        );
    let bundle = bundle(&render(&documents), "app/client");
    let kinds = |port| {
        let port = port_of(&bundle, "s.app.svc.cluster.local", port);
        (port.http.is_some(), !port.tls.is_empty(), !port.tcp.is_empty())
    };
    assert_eq!(kinds(80), (true, false, false));
    assert_eq!(kinds(81), (true, false, false));
    assert_eq!(kinds(90), (false, false, true));
    assert_eq!(kinds(70), (true, false, true));
    assert_eq!(kinds(443), (false, true, false));
    assert_eq!(kinds(444), (false, true, false));
}

// spec: VS-012, VS-015
#[test]
fn the_most_specific_host_wins_whatever_its_age() {
    let all = named("app", "all", 9, "hosts: ['*.local']");
    let namespace = named("app", "namespace", 5, "hosts: ['*.app.svc.cluster.local']");
    let exact = named("app", "exact", 1, "hosts: [echo]");
    let more = service("app/s", "10.0.0.2", "{name: http, port: 80}")
        + &service("other/o", "10.0.0.3", "{name: http, port: 80}");
    let documents = more + &all + &namespace + &exact;
    let of = |host: &str| names(&documents, "app/client", host, 80);
    assert_eq!(of(ECHO), ["exact"]);
    assert_eq!(of("s.app.svc.cluster.local"), ["namespace"]);
    assert_eq!(of("o.other.svc.cluster.local"), ["all"]);
    // Also where both have the same length.
    let short = documents.clone() + &named("app", "short", 1, "hosts: [s]");
    assert_eq!(names(&short, "app/client", "s.app.svc.cluster.local", 80), ["short"]);
    // One that is not for the port leaves it to the next.
    let elsewhere = documents.replace("http: [{name: exact,", "http: [{name: exact, match: [{port: 81}],");
    assert_eq!(names(&elsewhere, "app/client", ECHO, 80), ["namespace"]);
}

// spec: VS-013, VS-014
#[test]
fn private_rules_count_before_listed_ones_before_public_ones_and_then_age() {
    let host = format!("hosts: [{ECHO}]");
    let public = named("third", "public", 9, &host);
    let listed = named("third", "listed", 7, &format!("{host}, exportTo: [app, x]"));
    let listed_alone = named("third", "alone", 8, &format!("{host}, exportTo: [app]"));
    let private = named("app", "private", 1, &format!("{host}, exportTo: ['.']"));
    let by_name = named("app", "by-name", 2, &format!("{host}, exportTo: [app]"));
    let of = |list: &[&String]| served(&list.iter().map(|s| s.as_str()).collect::<String>(), "app/client");
    assert_eq!(of(&[&public, &listed, &private]), ["private"]);
    assert_eq!(of(&[&public, &listed]), ["listed"]);
    assert_eq!(of(&[&listed, &listed_alone]), ["alone"], "of one group the oldest");
    assert_eq!(
        of(&[&public, &listed_alone, &by_name]),
        ["by-name"],
        "the own namespace by its name is private, too"
    );
    assert_eq!(
        served(&(public.clone() + &listed + &private), "other/client"),
        ["public"]
    );
    // Of one age the name decides, then the namespace.
    let (a, b) = (named("third", "a", 3, &host), named("app", "b", 3, &host));
    assert_eq!(of(&[&a, &b]), ["a"]);
    let (one, other) = (
        named("app", "a", 3, &host),
        named("third", "a", 3, &format!("{host}, exportTo: ['*']")),
    );
    let origin = |documents: &str| {
        bundle(&render(documents), "app/client").routes[0]
            .origin
            .namespace
            .clone()
    };
    assert_eq!(origin(&(other + &one)), "app");
}

// spec: VS-016
#[test]
fn losing_one_host_loses_no_other() {
    let more = service("app/s", "10.0.0.2", "{name: http, port: 80}");
    let documents = more + &named("app", "old", 2, "hosts: [echo]") + &named("app", "new", 1, "hosts: [echo, s]");
    assert_eq!(served(&documents, "app/client"), ["old"]);
    assert_eq!(names(&documents, "app/client", "s.app.svc.cluster.local", 80), ["new"]);
}

// spec: VS-024
#[test]
fn rules_that_hold_nowhere_are_as_if_their_service_did_not_name_the_host() {
    let only = |name: &str, age, condition: &str| {
        let spec = format!(
            "{{hosts: [echo], gateways: [gw, mesh], http: [{{name: {name}, match: [{condition}], {TO_ECHO}}}]}}"
        );
        virtual_service("app", name, age, &spec)
    };
    for condition in [
        "{sourceNamespace: other}",
        "{sourceLabels: {app: nobody}}",
        "{gateways: [gw]}",
        "{port: 81}",
        "{sourceNamespace: other}, {port: 81}",
    ] {
        let older = only("older", 2, condition);
        assert_eq!(rules(&older, "app/client", ECHO, 80), None, "{condition}");
        let next = older + &only("next", 1, "{uri: {prefix: /}}");
        assert_eq!(served(&next, "app/client"), ["next"], "{condition}");
    }
}

/// Extra domains as port and name with the name of their first rule.
fn domains(documents: &str, workload: &str) -> Vec<(u16, String, String)> {
    let bundle = bundle(&render(documents), workload);
    let name = |table: &str| {
        let table = bundle
            .routes
            .iter()
            .find(|t| t.name == table)
            .expect("in the same bundle");
        table.rules[0].name.clone().unwrap_or_default()
    };
    let all = bundle.domains.iter();
    all.flat_map(|d| d.domains.iter().map(|domain| (d.port, domain.clone(), name(&d.http))))
        .collect()
}

// spec: VS-002, VS-011
#[test]
fn hosts_that_name_no_service_are_domains() {
    let made_up = named("app", "v", 1, "hosts: [made.up]");
    let is = |port, domain: &str, rule: &str| (port, domain.to_owned(), rule.to_owned());
    assert_eq!(domains(&made_up, "app/client"), [is(80, "made.up", "v")]);
    // On the HTTP ports of the other hosts, too; automatic and TCP ports are none.
    let more = service(
        "app/s",
        "10.0.0.2",
        "{name: http, port: 8080}, {name: grpc, port: 7070}, {name: web, port: 8081}",
    );
    let beside = more + &named("app", "v", 1, "hosts: [made.up, s]");
    let expected = [
        is(80, "made.up", "v"),
        is(7070, "made.up", "v"),
        is(8080, "made.up", "v"),
    ];
    assert_eq!(domains(&beside, "app/client"), expected);
    // Short names are completed; wildcards and addresses stay as they are.
    let forms = named("app", "v", 1, "hosts: [nobody, '*.made.up', 10.9.9.9, 'fd00::9']");
    let expected = [
        is(80, "*.made.up", "v"),
        is(80, "10.9.9.9", "v"),
        is(80, "fd00::9", "v"),
        is(80, "nobody.app.svc.cluster.local", "v"),
    ];
    assert_eq!(domains(&forms, "app/client"), expected);
    // The oldest one has the domain; a wildcard that covers a service is none.
    let both = named("app", "older", 2, "hosts: [made.up]")
        + &named("app", "newer", 1, "hosts: [made.up, '*.app.svc.cluster.local']");
    assert_eq!(domains(&both, "app/client"), [is(80, "made.up", "older")]);
    assert_eq!(domains(&named("app", "v", 1, "hosts: [echo]"), "app/client"), []);
}

// spec: VS-180, VS-181, SM-126, DLV-084
#[test]
fn what_became_invalid_or_was_deleted_leaves_the_host_as_if_it_had_never_been() {
    let mut store = Store::new(Settings::default());
    let mut apply = |text: &str| {
        let documents = text.split("\n---\n").filter(|d| !d.trim().is_empty());
        for document in documents {
            let value: serde_json::Value = serde_yaml::from_str(document).expect("YAML");
            let Read::Object(object) = object(&value, "weft-system").expect("readable") else {
                panic!("of no use: {document}");
            };
            store.apply(Event::Apply(object));
        }
        store.world()
    };
    let mut renderer = Renderer::new();
    let without = bundle(&renderer.render(&apply(crate::render::stage::STAGE)), "app/client");
    let good = named("app", "v", 1, "hosts: [echo]");
    let with = bundle(&renderer.render(&apply(&good)), "app/client");
    assert!(rules_of(&with, ECHO, 80).is_some());
    // The wrong field alone is not what is left out, and the version before does not come back.
    let bad = good.replace("name: v, route", "name: v, timeout: 0s, route");
    assert_ne!(bad, good);
    let output = renderer.render(&apply(&bad));
    assert_eq!(bundle(&output, "app/client"), without);
    assert!(output.reports.values().any(|report| report.refused.is_some()));
    assert!(rules_of(&bundle(&renderer.render(&apply(&good)), "app/client"), ECHO, 80).is_some());

    let value: serde_json::Value = serde_yaml::from_str(good.trim().trim_start_matches("---")).expect("YAML");
    let Read::Object(object) = object(&value, "weft-system").expect("readable") else {
        panic!("a VirtualService");
    };
    store.apply(Event::Delete(object.reference()));
    let after = bundle(&renderer.render(&store.world()), "app/client");
    assert_eq!(
        after, without,
        "with the default retries, which rules state by stating none"
    );
    assert!(after.mesh.retry == Default::default() && after.routes.is_empty());
}
