//! Hosts of ServiceEntries.

use weft_bundle::pack::EndpointInput;
use weft_bundle::wire::{
    Bundle, Discovery, Dns, DnsTarget, Health, Host, HostKind, MeshTls, Protocol, Subnet, UpstreamTls,
};

use super::super::Output;
use super::super::stage::{bundle, render, rule, service, service_entry, sidecar};

const EXTERNAL: &str = "{hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}";

fn find<'b>(bundle: &'b Bundle, host: &str) -> &'b Host {
    bundle
        .hosts
        .iter()
        .find(|h| h.host == host)
        .unwrap_or_else(|| panic!("no {host}"))
}

fn host(documents: &str, name: &str) -> Host {
    find(&bundle(&render(documents), "app/client"), name).clone()
}

fn endpoints(output: &Output, namespace: &str, host: &str) -> Vec<EndpointInput> {
    let found = output.endpoints[namespace].hosts.iter().find(|h| h.host == host);
    found.unwrap_or_else(|| panic!("no {host}")).endpoints.clone()
}

fn workload_entry(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: app{metadata}}}\nspec: {spec}\n"
    )
}

// spec: SE-002, SE-004, SE-005, SE-007, SE-027, SM-043, DR-123, MET-030
#[test]
fn each_host_is_a_service_that_is_known_by_its_name() {
    let spec = "{hosts: [A.example., b.example], ports: [{number: 80, name: tcp-x, protocol: HTTP}, {number: 443, name: s, protocol: HTTPS}], resolution: DNS}";
    let documents = service_entry("app", "e", 1, spec);
    let a = host(&documents, "a.example");
    assert_eq!(
        (a.name.as_str(), a.namespace.as_str(), a.kind),
        ("a.example", "app", HostKind::Entry)
    );
    assert_eq!(a.domains, ["a.example"]);
    assert!(a.addresses.is_empty() && !a.headless);
    let ports: Vec<_> = a.ports.iter().map(|p| (p.port, p.protocol)).collect();
    assert_eq!(ports, [(80, Protocol::Http), (443, Protocol::Tls)]);
    assert!(a.ports.iter().all(|port| port.policy.tls == UpstreamTls::Disable));
    let Discovery::Dns(Dns { first_alone, targets }) = &host(&documents, "b.example").discovery else {
        panic!("not looked up");
    };
    assert!(!first_alone);
    let ports = [("s".to_owned(), 443), ("tcp-x".to_owned(), 80)].into();
    let expected = DnsTarget {
        name: "b.example".into(),
        ports,
        labels: Default::default(),
        locality: None,
        weight: 1,
        tls: MeshTls::None,
    };
    assert_eq!(targets, &[expected]);
}

// spec: SE-009, SE-021, SE-022, SE-023, SE-032, SM-043
#[test]
fn addresses_ranges_and_allocated_ones_stand_beside_each_other() {
    let spec = "{hosts: [a.example], addresses: [10.9.0.1, 10.8.0.0/16], ports: [{number: 5000, name: t, protocol: TCP}], resolution: STATIC}";
    let found = host(&service_entry("app", "e", 1, spec), "a.example");
    assert_eq!(
        found.addresses,
        ["10.9.0.1".parse::<std::net::IpAddr>().expect("address")]
    );
    let range = Subnet {
        address: "10.8.0.0".parse().expect("address"),
        prefix: 16,
    };
    assert_eq!(found.subnets, [range]);
    assert_eq!(found.domains, ["10.9.0.1", "a.example"]);
    assert!(found.allocated.is_empty());
    let output = render(&service_entry("app", "e", 1, EXTERNAL));
    let found = find(&bundle(&output, "app/client"), "a.example").clone();
    assert_eq!(found.allocated.len(), 2);
    assert!(found.allocated[0].to_string().starts_with("240.240."));
    let report = output
        .reports
        .values()
        .find(|report| !report.addresses.is_empty())
        .expect("addresses in the status");
    assert_eq!(
        (report.addresses[0].value.clone(), report.addresses[0].host.as_str()),
        (found.allocated[0].to_string(), "a.example")
    );
}

// spec: SE-008, SE-024, SE-028, SE-034
#[test]
fn resolutions_and_target_ports() {
    let with = |resolution: &str| {
        let spec = format!(
            "{{hosts: [a.example], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], resolution: {resolution}}}"
        );
        host(&service_entry("app", "e", 1, &spec), "a.example")
    };
    let none = with("NONE");
    assert_eq!(
        (none.discovery, none.ports[0].target_port),
        (Discovery::Dialled, Some(8080))
    );
    assert!(none.allocated.is_empty());
    let Discovery::Dns(dns) = with("DNS_ROUND_ROBIN").discovery else {
        panic!("not looked up");
    };
    assert!(dns.first_alone);
    assert_eq!(dns.targets[0].ports["http"], 8080);
    assert_eq!(with("STATIC").discovery, Discovery::Listed);
}

// spec: SE-026, SE-034, SE-050, SE-049, SE-052, ID-096
#[test]
fn endpoints_have_ports_weights_and_places_of_their_own() {
    let spec = |location: &str| {
        format!("{{hosts: [a.example], location: {location}, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}, {{number: 81, name: other, protocol: HTTP}}], resolution: STATIC, endpoints: [
        {{address: 10.1.0.1, ports: {{http: 9000}}, weight: 90, locality: r/z, serviceAccount: vm}},
        {{address: 10.1.0.2, labels: {{security.istio.io/tlsMode: istio, istio-locality: r.z.s}}}},
        {{address: 10.1.0.2, ports: {{http: 9001}}, labels: {{version: v2}}, serviceAccount: ''}}]}}")
    };
    let output = render(&service_entry("app", "e", 1, &spec("MESH_INTERNAL")));
    let found = endpoints(&output, "app", "a.example");
    let facts: Vec<_> = found
        .iter()
        .map(|e| {
            (
                e.address.to_string(),
                e.ports["http"],
                e.ports["other"],
                e.weight,
                e.locality.as_deref(),
                e.tls.clone(),
            )
        })
        .collect();
    assert_eq!(
        facts,
        [
            ("10.1.0.1".to_owned(), 9000, 81, 90, Some("r/z"), MeshTls::All),
            ("10.1.0.2".to_owned(), 8080, 81, 1, Some("r/z/s"), MeshTls::All),
            ("10.1.0.2".to_owned(), 9001, 81, 1, None, MeshTls::None),
        ]
    );
    let accounts = &output.endpoints["app"]
        .hosts
        .iter()
        .find(|h| h.host == "a.example")
        .expect("listed")
        .accounts;
    assert_eq!(accounts, &["app/vm"]);
    let output = render(&service_entry("app", "e", 1, &spec("MESH_EXTERNAL")));
    assert!(
        endpoints(&output, "app", "a.example")
            .iter()
            .all(|e| e.tls == MeshTls::None)
    );
}

// spec: SE-040, SE-042, SE-044, SE-048, SE-051
#[test]
fn a_selector_takes_workload_entries_and_ready_pods_of_the_namespace() {
    let pod = |name: &str, address: &str, ready: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: app, labels: {{app: vm}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\nstatus: {{podIP: {address}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
        )
    };
    let workloads = workload_entry(
        "one",
        ", labels: {app: vm}",
        "{address: 10.1.0.1, serviceAccount: sa, labels: {app: other}}",
    ) + &workload_entry("two", "", "{address: 10.1.0.2, labels: {app: no}}")
        + &pod("p", "10.1.0.3", "True")
        + &pod("q", "10.1.0.4", "False");
    let spec = |location: &str| {
        format!(
            "{{hosts: [a.example], location: {location}, ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}], resolution: STATIC, workloadSelector: {{labels: {{app: vm}}}}}}"
        )
    };
    let output = render(&(workloads.clone() + &service_entry("app", "e", 1, &spec("MESH_INTERNAL"))));
    let found = endpoints(&output, "app", "a.example");
    let facts: Vec<_> = found
        .iter()
        .map(|e| (e.address.to_string(), e.ports["http"], e.health))
        .collect();
    assert_eq!(
        facts,
        [
            ("10.1.0.1".to_owned(), 8080, Health::Ready),
            ("10.1.0.3".to_owned(), 8080, Health::Ready)
        ]
    );
    assert_eq!(found[0].workload.as_ref().expect("a workload").service_account, "sa");
    let output = render(&(workloads + &service_entry("app", "e", 1, &spec("MESH_EXTERNAL"))));
    assert_eq!(endpoints(&output, "app", "a.example").len(), 1);
    let report = output
        .reports
        .iter()
        .find(|(reference, _)| reference.name == "e")
        .expect("a report")
        .1;
    assert!(
        report.warnings.iter().any(|w| w.contains("MESH_INTERNAL")),
        "{report:?}"
    );
}

// spec: SE-043, SE-098
#[test]
fn a_service_takes_workload_entries_that_it_selects() {
    let ports = "{name: http, port: 80, targetPort: 8080}, {name: named, port: 81, targetPort: admin}";
    let documents = service("app/vm", "10.0.0.9", ports)
        + &workload_entry("one", "", "{address: 10.1.0.1, labels: {app: vm}, ports: {http: 9000}}")
        + &workload_entry(
            "two",
            "",
            "{address: 10.1.0.2, labels: {app: vm}, ports: {admin: 9001}}",
        );
    let found = endpoints(&render(&documents), "app", "vm.app.svc.cluster.local");
    let ports: Vec<_> = found
        .iter()
        .map(|e| (e.ports.get("http").copied(), e.ports.get("named").copied()))
        .collect();
    assert_eq!(ports, [(Some(9000), None), (Some(8080), Some(9001))]);
}

// spec: SE-017
#[test]
fn entries_of_one_host_and_namespace_are_one() {
    let one = |name: &str, age: u32, port: u16, more: &str| {
        let spec = format!(
            "{{hosts: [a.example], ports: [{{number: {port}, name: p{port}, protocol: HTTP}}], resolution: STATIC, endpoints: [{{address: 10.1.0.{port}}}]{more}}}"
        );
        service_entry("app", name, age, &spec)
    };
    let output = render(&(one("a", 2, 80, "") + &one("b", 1, 81, "")));
    let found = find(&bundle(&output, "app/client"), "a.example").clone();
    assert_eq!(found.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80, 81]);
    let of: Vec<_> = endpoints(&output, "app", "a.example")
        .iter()
        .map(|e| e.ports.clone())
        .collect();
    assert_eq!(of, [[("p80".to_owned(), 80)].into(), [("p81".to_owned(), 81)].into()]);
    // Also where both name their port alike: each has its own endpoints.
    let alike = |name: &str, age: u32, port: u16| one(name, age, port, "").replace(&format!("p{port}"), "http");
    let output = render(&(alike("a", 2, 80) + &alike("b", 1, 81)));
    let found = find(&bundle(&output, "app/client"), "a.example").clone();
    let names: Vec<_> = found.ports.iter().map(|p| (p.port, p.name.as_str())).collect();
    assert_eq!(names, [(80, "http"), (81, "http:81")]);
    let of: Vec<_> = endpoints(&output, "app", "a.example")
        .iter()
        .map(|e| e.ports.clone())
        .collect();
    assert_eq!(
        of,
        [[("http".to_owned(), 80)].into(), [("http:81".to_owned(), 81)].into()]
    );
    // Those that differ in what they export add endpoints, and no port.
    let output = render(&(one("a", 2, 80, "") + &one("b", 1, 81, ", exportTo: [.]")));
    let found = find(&bundle(&output, "app/client"), "a.example").clone();
    assert_eq!(found.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80]);
}

// spec: SM-073
#[test]
fn of_entries_that_do_not_agree_the_oldest_decides_then_the_first_by_name() {
    let one = |name: &str, age: u32, resolution: &str| {
        let spec = format!(
            "{{hosts: [a.example], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: {resolution}}}"
        );
        service_entry("app", name, age, &spec)
    };
    let is_dialled = |documents: &str| host(documents, "a.example").discovery == Discovery::Dialled;
    assert!(is_dialled(&(one("a", 1, "DNS") + &one("b", 2, "NONE"))));
    assert!(!is_dialled(&(one("a", 2, "DNS") + &one("b", 1, "NONE"))));
    assert!(!is_dialled(&(one("b", 1, "NONE") + &one("a", 1, "DNS"))));
    assert!(is_dialled(&(one("b", 1, "DNS") + &one("a", 1, "NONE"))));
}

// spec: SE-018, SM-073
#[test]
fn an_entry_for_a_service_of_its_namespace_adds_to_it() {
    let spec = "{hosts: [echo.app.svc.cluster.local], location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.1.0.1, ports: {http: 9000}}], subjectAltNames: ['spiffe://x/ns/a/sa/b']}";
    let output = render(&service_entry("app", "e", 1, spec));
    let found = find(&bundle(&output, "app/client"), "echo.app.svc.cluster.local").clone();
    assert_eq!(
        (found.kind, found.ports[1].protocol),
        (HostKind::Service, Protocol::Http)
    );
    assert_eq!(found.identities, ["spiffe://x/ns/a/sa/b"]);
    let added = endpoints(&output, "app", "echo.app.svc.cluster.local");
    assert_eq!(added.iter().map(|e| e.ports["http"]).collect::<Vec<_>>(), [9000]);
}

// spec: SM-074, SM-043, SE-016
#[test]
fn of_several_definitions_the_own_namespaces_comes_first() {
    let entry = |namespace: &str, name: &str, age: u32, host: &str, more: &str| {
        let spec = format!(
            "{{hosts: [{host}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: [{{address: 10.1.0.{age}}}]{more}}}"
        );
        service_entry(namespace, name, age, &spec)
    };
    let of = |documents: &str, workload: &str, host: &str| find(&bundle(&render(documents), workload), host).clone();
    // A Service of another namespace gives way to the own entry, and to no other.
    let echo = "echo.app.svc.cluster.local";
    let documents = entry("other", "e", 1, echo, "");
    assert_eq!(of(&documents, "other/client", echo).kind, HostKind::Entry);
    assert!(
        of(&documents, "other/client", echo)
            .domains
            .contains(&"echo.app".to_owned())
    );
    assert_eq!(of(&documents, "app/client", echo).kind, HostKind::Service);
    let output = render(&documents);
    assert_eq!(endpoints(&output, "other", echo).len(), 1);
    assert!(endpoints(&output, "app", echo).is_empty());
    // Exported by list before public ones; among equals the older.
    let namespaces = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: third}\n";
    let two = entry("other", "a", 2, "a.example", "") + &entry("third", "b", 1, "a.example", "") + namespaces;
    assert_eq!(of(&two, "app/client", "a.example").namespace, "other");
    let listed = entry("other", "a", 2, "a.example", "")
        + &entry("third", "b", 1, "a.example", ", exportTo: [app]")
        + namespaces;
    assert_eq!(of(&listed, "app/client", "a.example").namespace, "third");
    assert_eq!(of(&listed, "other/client", "a.example").namespace, "other");
    // A Service of another namespace before an entry of a third one, however old that is and however it is exported.
    let both = service("other/b", "10.0.0.2", "{name: http, port: 80}")
        + &entry("third", "e", 9, "b.other.svc.cluster.local", ", exportTo: [app]")
        + namespaces;
    let found = of(&both, "app/client", "b.other.svc.cluster.local");
    assert_eq!((found.kind, found.namespace.as_str()), (HostKind::Service, "other"));
    let hidden = bundle(
        &render(&entry("app", "a", 1, "a.example", ", exportTo: ['~']")),
        "app/client",
    );
    assert!(hidden.hosts.iter().all(|h| h.host != "a.example"));
    // A Sidecar imports the entry of the namespace that it names.
    let narrowed = two + &sidecar("app", "s", 1, "{egress: [{hosts: [third/a.example]}]}");
    assert_eq!(of(&narrowed, "app/client", "a.example").namespace, "third");
}

// spec: SE-019, DR-116, DR-124, DR-130, SE-036
#[test]
fn rules_for_a_host_hold_and_its_names_are_verified() {
    let spec = "{hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], resolution: DNS, subjectAltNames: [b.example]}";
    let entry = service_entry("app", "e", 1, spec);
    let tls = |documents: &str| host(documents, "a.example").ports[0].policy.tls.clone();
    let of_rule = |more: &str| {
        rule(
            "app",
            "d",
            1,
            &format!("{{host: a.example, trafficPolicy: {{tls: {{mode: SIMPLE{more}}}}}}}"),
        )
    };
    let UpstreamTls::Originate(settings) = tls(&(entry.clone() + &of_rule(""))) else {
        panic!("no TLS");
    };
    assert_eq!(settings.subject_alt_names, ["b.example"]);
    let UpstreamTls::Originate(settings) = tls(&(entry + &of_rule(", subjectAltNames: [c.example]"))) else {
        panic!("no TLS");
    };
    assert_eq!(settings.subject_alt_names, ["c.example"]);
    // A wildcard is matched by itself and by wider ones, and by no name that it covers.
    let wild = service_entry(
        "app",
        "e",
        1,
        "{hosts: ['*.wild.example'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
    );
    let rule_for = |host: &str| {
        rule(
            "app",
            "d",
            1,
            &format!("{{host: '{host}', trafficPolicy: {{tls: {{mode: SIMPLE}}}}}}"),
        )
    };
    let is_ruled = |pattern: &str| {
        matches!(
            host(&(wild.clone() + &rule_for(pattern)), "*.wild.example").ports[0]
                .policy
                .tls,
            UpstreamTls::Originate(_)
        )
    };
    assert!(is_ruled("*.wild.example") && is_ruled("*.example") && !is_ruled("a.wild.example"));
}
