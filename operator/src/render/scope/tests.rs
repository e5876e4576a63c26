use weft_bundle::wire::{Bundle, InboundTarget, OutboundPolicy, Protocol};

use super::super::stage::{bundle, mesh, render, render_under, rule, service, sidecar, virtual_service};

/// A service `b` in `other` with ports 80 (http) and 81 (tcp), and another one `c` there.
fn others() -> String {
    service("other/b", "10.0.0.2", "{name: http, port: 80}, {name: tcp, port: 81}")
        + &service("other/c", "10.0.0.3", "{name: http, port: 80}")
}

/// Hosts with the ports that an application can select.
fn known(bundle: &Bundle) -> Vec<String> {
    let ports = bundle.hosts.iter().flat_map(|host| {
        let own = host.ports.iter().filter(|port| !port.target_only);
        own.map(|port| format!("{}:{}", host.host.trim_end_matches(".svc.cluster.local"), port.port))
    });
    ports.collect()
}

fn client(documents: &str) -> Bundle {
    bundle(&render(&(others() + documents)), "app/client")
}

fn egress(hosts: &str) -> Vec<String> {
    known(&client(&sidecar(
        "app",
        "s",
        1,
        &format!("{{egress: [{{hosts: [{hosts}]}}]}}"),
    )))
}

const OWN: [&str; 3] = ["echo.app:70", "echo.app:80", "echo.app:90"];

// spec: SE-071, SE-072, SE-073, SM-002, SM-068
#[test]
fn hosts_are_imported_by_namespace_and_name() {
    assert_eq!(known(&client("")).len(), 6);
    assert_eq!(egress("'./*'"), OWN);
    assert_eq!(egress("'*/*'").len(), 6);
    assert_eq!(egress("other/*"), ["b.other:80", "b.other:81", "c.other:80"]);
    assert_eq!(egress("'*/c.other.svc.cluster.local'"), ["c.other:80"]);
    assert_eq!(egress("'app/c.other.svc.cluster.local'"), [""; 0]);
    assert_eq!(egress("'other/*.svc.cluster.local'").len(), 3);
    assert_eq!(egress("'~/*'"), [""; 0]);
    // What is excluded is excluded wherever the entry stands.
    assert_eq!(egress("'~/b.other.svc.cluster.local', '*/*'").len(), 4);
    assert_eq!(egress("'*/*', '~other/*'"), OWN);
    assert_eq!(egress("'*/*', '~./*'").len(), 3);
}

// spec: SE-078
#[test]
fn a_listener_with_a_port_imports_that_port_alone_and_the_last_the_rest() {
    let spec =
        "{egress: [{port: {number: 80, protocol: HTTP}, hosts: [other/b.other.svc.cluster.local]}, {hosts: ['*/*']}]}";
    let found = known(&client(&sidecar("app", "s", 1, spec)));
    assert_eq!(found, ["b.other:80", "b.other:81", "echo.app:70", "echo.app:90"]);
    let alone = "{egress: [{port: {number: 81}, hosts: ['*/*']}]}";
    assert_eq!(known(&client(&sidecar("app", "s", 1, alone))), ["b.other:81"]);
}

// spec: SE-064, SE-065, SE-066, SE-067, SM-129
#[test]
fn one_sidecar_applies_and_nothing_is_merged() {
    let policy = |mode: &str| format!("{{outboundTrafficPolicy: {{mode: {mode}}}}}");
    let of = |documents: &str, workload: &str| bundle(&render(documents), workload).mesh.outbound_policy;
    let root = sidecar("weft-system", "root", 1, &policy("REGISTRY_ONLY"));
    assert_eq!(of("", "app/client"), OutboundPolicy::AllowAny);
    assert_eq!(of(&root, "app/client"), OutboundPolicy::RegistryOnly);
    let wide = root.clone() + &sidecar("app", "wide", 1, "{egress: [{hosts: ['./*']}]}");
    // The namespace's replaces the root's, also what it does not say.
    assert_eq!(of(&wide, "app/client"), OutboundPolicy::AllowAny);
    assert_eq!(of(&wide, "other/client"), OutboundPolicy::RegistryOnly);
    let select = "{workloadSelector: {labels: {app: client, tier: web}}, outboundTrafficPolicy: {}}";
    let own = wide.clone() + &sidecar("app", "own", 0, select);
    assert_eq!(of(&own, "app/client"), OutboundPolicy::RegistryOnly);
    assert_eq!(of(&own, "app/echo"), OutboundPolicy::AllowAny);
    // With a selector in the root namespace it is nobody else's.
    let rooted = sidecar("weft-system", "root", 1, select);
    assert_eq!(of(&rooted, "app/client"), OutboundPolicy::AllowAny);
    // Of two of a kind the older one; the younger one says so.
    let two = sidecar("app", "young", 1, &policy("ALLOW_ANY")) + &sidecar("app", "old", 2, &policy("REGISTRY_ONLY"));
    let output = render(&two);
    assert_eq!(
        bundle(&output, "app/client").mesh.outbound_policy,
        OutboundPolicy::RegistryOnly
    );
    let report = output
        .reports
        .iter()
        .find(|(reference, _)| reference.name == "young")
        .expect("a report")
        .1;
    assert_eq!(report.refused.as_ref().expect("refused").0, "Conflicted");
}

// spec: SM-126
#[test]
fn an_invalid_sidecar_is_as_if_it_were_not_there() {
    let of = |hosts: &str| {
        let spec = format!("{{egress: [{{hosts: [{hosts}]}}], outboundTrafficPolicy: {{}}}}");
        let output = render(&sidecar("app", "s", 1, &spec));
        let refused = output.reports.values().find_map(|report| report.refused.clone());
        let client = bundle(&output, "app/client");
        (client.mesh.outbound_policy, client.hosts.len(), refused.map(|r| r.0))
    };
    assert_eq!(of("'~/*'"), (OutboundPolicy::RegistryOnly, 0, None));
    assert_eq!(of("'~/*', nonsense"), (OutboundPolicy::AllowAny, 1, Some("Invalid")));
}

// spec: SM-001
#[test]
fn hosts_end_in_the_domain_of_the_cluster() {
    let settings = crate::world::Settings {
        cluster_domain: "corp.example".into(),
        ..Default::default()
    };
    let output = render_under(settings, "");
    let client = bundle(&output, "app/client");
    assert_eq!(client.hosts[0].host, "echo.app.svc.corp.example");
    let domains = &client.hosts[0].domains;
    assert!(domains.contains(&"echo.app.svc.corp.example".to_owned()), "{domains:?}");
    assert!(!domains.iter().any(|d| d.contains("cluster.local")), "{domains:?}");
}

// spec: SE-069
#[test]
fn gateways_have_no_sidecar() {
    let gateway = "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: gw, namespace: app}\nspec: {selector: \
                   {matchLabels: {app: gw}}, template: {metadata: {labels: {app: gw}, annotations: \
                   {inject.istio.io/templates: gateway}}, spec: {containers: [{name: istio-proxy, image: auto}]}}}\n";
    let narrow = sidecar("app", "s", 1, "{egress: [{hosts: ['~/*']}], outboundTrafficPolicy: {}}");
    let output = render(&(others() + gateway + &narrow));
    let policy_and_hosts = |workload: &str| {
        let bundle = bundle(&output, workload);
        (bundle.mesh.outbound_policy, known(&bundle).len())
    };
    assert_eq!(policy_and_hosts("app/client"), (OutboundPolicy::RegistryOnly, 0));
    assert_eq!(policy_and_hosts("app/gw"), (OutboundPolicy::AllowAny, 6));
}

// spec: SM-064, SM-065, SE-083
#[test]
fn a_block_takes_the_place_of_the_meshs_and_without_a_mode_refuses() {
    let of = |mesh_mode: &str, spec: &str| {
        let documents = mesh(&format!("outboundTrafficPolicy: {{mode: {mesh_mode}}}")) + &sidecar("app", "s", 1, spec);
        bundle(&render(&documents), "app/client").mesh.outbound_policy
    };
    let egress = "{egress: [{hosts: ['./*']}]}";
    assert_eq!(of("REGISTRY_ONLY", egress), OutboundPolicy::RegistryOnly);
    assert_eq!(of("ALLOW_ANY", egress), OutboundPolicy::AllowAny);
    assert_eq!(
        of("ALLOW_ANY", "{outboundTrafficPolicy: {}}"),
        OutboundPolicy::RegistryOnly
    );
    assert_eq!(
        of("REGISTRY_ONLY", "{outboundTrafficPolicy: {mode: ALLOW_ANY}}"),
        OutboundPolicy::AllowAny
    );
    // In the mesh config it is the other way round.
    let documents = mesh("outboundTrafficPolicy: {}");
    assert_eq!(
        bundle(&render(&documents), "app/client").mesh.outbound_policy,
        OutboundPolicy::AllowAny
    );
}

// spec: SE-074, SE-075
#[test]
fn rules_are_imported_by_their_hosts_and_lead_to_what_is_not_imported() {
    let narrow = sidecar("app", "s", 1, "{egress: [{hosts: ['./*']}]}");
    let to_b = |port: &str| {
        let spec = format!(
            "{{hosts: [echo], http: [{{route: [{{destination: {{host: b.other.svc.cluster.local{port}}}}}]}}]}}"
        );
        virtual_service("app", "v", 1, &spec)
    };
    let seen = client(&(narrow.clone() + &to_b("")));
    assert_eq!(known(&seen), OWN);
    let target = seen.hosts.iter().find(|host| host.name == "b").expect("the target");
    let ports: Vec<_> = target.ports.iter().map(|port| (port.port, port.target_only)).collect();
    assert_eq!(ports, [(80, true), (81, true)]);
    let seen = client(&(narrow.clone() + &to_b(", port: {number: 80}")));
    let target = seen.hosts.iter().find(|host| host.name == "b").expect("the target");
    assert_eq!(target.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80]);
    assert!(seen.hosts.iter().all(|host| host.name != "c"));
    // Rules of a host that is not imported are not applied, nor are those of other namespaces.
    let hidden = virtual_service(
        "app",
        "v",
        1,
        "{hosts: [b.other.svc.cluster.local], http: [{redirect: {uri: /}}]}",
    );
    let one = sidecar("app", "s", 1, "{egress: [{hosts: ['./echo.app.svc.cluster.local']}]}");
    assert!(client(&(one + &hidden)).routes.is_empty());
    let foreign = virtual_service(
        "other",
        "v",
        1,
        "{hosts: [echo.app.svc.cluster.local], http: [{redirect: {uri: /}}]}",
    );
    assert!(client(&(narrow + &foreign)).routes.is_empty());
    assert_eq!(client(&foreign).routes.len(), 1);
}

// spec: SE-076
#[test]
fn rules_for_destinations_need_no_import() {
    let documents = sidecar("app", "s", 1, "{egress: [{hosts: ['other/*']}]}")
        + &rule(
            "weft-system",
            "all",
            1,
            "{host: '*.svc.cluster.local', trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}",
        );
    let seen = client(&documents);
    assert!(
        seen.hosts
            .iter()
            .all(|host| host.ports[0].policy.max_connections == Some(7))
    );
}

// spec: DLV-111, SE-072
#[test]
fn endpoints_of_a_namespace_are_those_that_some_workload_of_it_may_call() {
    let documents = others()
        + &sidecar(
            "other",
            "s",
            1,
            "{egress: [{hosts: ['other/c.other.svc.cluster.local']}]}",
        );
    let output = render(&documents);
    let hosts = |namespace: &str| {
        let all = output.endpoints[namespace].hosts.iter().map(|host| host.host.clone());
        all.collect::<Vec<_>>()
    };
    assert_eq!(hosts("other"), ["c.other.svc.cluster.local"]);
    assert_eq!(hosts("app").len(), 3);
}

// spec: SE-086, SE-088, SE-089, SE-090, SE-094, SE-095
#[test]
fn ingress_takes_the_place_of_what_services_say() {
    let spec = "{workloadSelector: {labels: {app: echo}}, inboundConnectionPool: {tcp: {maxConnections: 5}}, ingress: [
        {port: {number: 8080, protocol: TCP, name: a}, defaultEndpoint: '127.0.0.1:9000'},
        {port: {number: 8081, protocol: HTTP}, defaultEndpoint: '0.0.0.0:9001', connectionPool: {tcp: {maxConnections: 3}}},
        {port: {number: 8082}}]}";
    let output = render(&sidecar("app", "s", 1, spec));
    let ports = bundle(&output, "app/echo").inbound.ports;
    let facts: Vec<_> = ports
        .iter()
        .map(|p| (p.port, p.protocol, p.target, p.policy.max_connections))
        .collect();
    let loopback = InboundTarget::Loopback(([127, 0, 0, 1], 9000).into());
    assert_eq!(
        facts,
        [
            (8080, Protocol::Tcp, Some(loopback), Some(5)),
            (8081, Protocol::Http, Some(InboundTarget::Pod(9001)), Some(3)),
            (8082, Protocol::Auto, Some(InboundTarget::Pod(8082)), Some(5)),
        ]
    );
    assert_eq!(ports[0].host.as_deref(), Some("echo.app.svc.cluster.local"));
    // Without ingress the pool is that of all ports that Services name.
    let output = render(&sidecar(
        "app",
        "s",
        1,
        "{inboundConnectionPool: {tcp: {maxConnections: 5}}}",
    ));
    let ports = bundle(&output, "app/echo").inbound.ports;
    assert!(
        !ports.is_empty()
            && ports
                .iter()
                .all(|p| p.policy.max_connections == Some(5) && p.target.is_none())
    );
}
