use weft_bundle::load;
use weft_bundle::model::EndpointTable;
use weft_bundle::wire::{LoadBalancer, Policy, Protocol};

use super::*;
use crate::render::Output;
use crate::render::stage::{bundle, mesh, render};
use crate::world::read::{Read, object};

const ECHO: &str = "echo.app.svc.cluster.local";

/// The endpoints that clients of namespace `app` have, as their proxies see them.
fn table(output: &Output) -> EndpointTable {
    let rendered = &output.endpoints["app"];
    let files = rendered.shards.iter().flat_map(|shard| (**shard).clone()).collect();
    let shards =
        (0..rendered.shards.len()).map(|n| load::endpoints(&files, n).expect("loads").expect("present").endpoints);
    EndpointTable::new(&shards.collect::<Vec<_>>(), None)
}

/// Address, ports by name and health of each endpoint of a host.
fn endpoints(output: &Output, host: &str) -> Vec<String> {
    let table = table(output);
    let host = table.host(host).unwrap_or_else(|| panic!("{host} is not listed"));
    let all = host.endpoints.iter().map(|e| {
        let ports: Vec<String> = e.ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
        format!("{} {} {:?}", e.address, ports.join(","), e.health)
    });
    all.collect()
}

/// A slice of a Service of namespace `app`; `rest` continues the object.
fn slice(name: &str, service: &str, rest: &str) -> String {
    format!(
        "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: app, labels: \
         {{kubernetes.io/service-name: {service}}}}}\n{rest}\n"
    )
}

fn of_echo(endpoints: &str) -> String {
    let rest = format!("addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: {endpoints}");
    slice("echo-1", "echo", &rest)
}

// spec: SM-003, SM-008, SM-095, SM-096, SM-097
#[test]
fn the_slices_of_a_service_are_its_endpoints_and_nothing_else_is() {
    let documents = of_echo("[{addresses: [10.4.0.1]}]")
        // The same port by name has another number on other pods; an address in two slices counts once.
        + &slice(
            "echo-2",
            "echo",
            "addressType: IPv4\nports: [{name: http, port: 9090}, {name: tcp, port: 90}, {name: u, port: 53, protocol: \
             UDP}]\nendpoints: [{addresses: [10.4.0.2]}]",
        )
        + &slice(
            "echo-3",
            "echo",
            "addressType: IPv4\nports: [{name: tcp, port: 91}]\nendpoints: [{addresses: [10.4.0.1]}]",
        )
        + &slice("echo-4", "echo", "addressType: FQDN\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [a.example]}]")
        // Of names, even if they read like addresses.
        + &slice("echo-6", "echo", "addressType: FQDN\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.4.0.6]}]")
        + &slice("echo-5", "echo", "addressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.4.0.5]}]")
            .replace("kubernetes.io/service-name", "example.com/service-name")
        // A Service without selector has the slices that its owner keeps.
        + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: app}\nspec: {clusterIPs: [10.0.0.9], ports: \
           [{name: http, port: 80}]}\n"
        + &slice(
            "by-hand",
            "outside",
            "addressType: IPv4\nports: [{name: http, port: 3128}]\nendpoints: [{addresses: [192.0.2.7]}]",
        );
    let output = render(&documents);
    assert_eq!(
        endpoints(&output, ECHO),
        ["10.4.0.1 http=8080,tcp=91 Ready", "10.4.0.2 http=9090,tcp=90 Ready"]
    );
    assert_eq!(
        endpoints(&output, "outside.app.svc.cluster.local"),
        ["192.0.2.7 http=3128 Ready"]
    );
    let host = bundle(&output, "app/client")
        .hosts
        .into_iter()
        .find(|h| h.name == "outside");
    assert_eq!(host.expect("a host like any other").ports[0].protocol, Protocol::Http);
    // The older kind of object is not even read.
    let older = serde_json::json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "echo", "namespace": "app"},
        "subsets": [{"addresses": [{"ip": "10.4.0.9"}], "ports": [{"name": "http", "port": 8080}]}],
    });
    assert!(matches!(object(&older, "weft-system"), Ok(Read::Other)));
}

// spec: SM-090, SM-091, SM-092, SM-094
#[test]
fn only_ready_endpoints_are_used_even_if_none_is() {
    let conditions = "[{addresses: [10.4.0.1]}, {addresses: [10.4.0.2], conditions: {ready: true}}, {addresses: [10.4.0.3], \
                      conditions: {ready: false}}, {addresses: [10.4.0.4], conditions: {ready: false, serving: true, \
                      terminating: true}}, {addresses: [10.4.0.5], conditions: {ready: true, terminating: true}}]";
    assert_eq!(
        endpoints(&render(&of_echo(conditions)), ECHO),
        [
            "10.4.0.1 http=8080 Ready",
            "10.4.0.2 http=8080 Ready",
            "10.4.0.4 http=8080 Draining",
            // As Kubernetes tells it where not ready addresses are to be published.
            "10.4.0.5 http=8080 Ready",
        ]
    );
    let none =
        "[{addresses: [10.4.0.1], conditions: {ready: false}}, {addresses: [10.4.0.2], conditions: {ready: false}}]";
    assert_eq!(endpoints(&render(&of_echo(none)), ECHO), [""; 0]);
}

// spec: SM-076
#[test]
fn each_address_of_a_headless_service_is_known_whether_ready_or_not() {
    let documents = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: app}\nspec: {clusterIP: None, clusterIPs: \
                     [None], selector: {app: db}, ports: [{name: tcp, port: 5432}]}\n"
        .to_owned()
        + &slice(
            "db-1",
            "db",
            "addressType: IPv4\nports: [{name: tcp, port: 5432}]\nendpoints: [{addresses: [10.4.0.1]}, {addresses: \
             [10.4.0.2], conditions: {ready: false}}]",
        );
    assert_eq!(
        endpoints(&render(&documents), "db.app.svc.cluster.local"),
        ["10.4.0.1 tcp=5432 Ready", "10.4.0.2 tcp=5432 Unready"]
    );
}

// spec: SM-005
#[test]
fn subsets_choose_by_all_labels_of_the_pod_and_none_of_the_service() {
    let labels =
        "{app: echo, version: v1, app.kubernetes.io/version: '2', example.com/tier: gold, pod-template-hash: abc}";
    let documents = format!(
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: one, namespace: app, labels: {labels}}}\nspec: {{containers: \
         [{{name: c, image: i}}]}}\nstatus: {{podIP: 10.4.0.1, podIPs: [{{ip: 10.4.0.1}}]}}\n"
    ) + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: app, labels: {of: service}}\nspec: {clusterIPs: \
         [10.0.0.1], selector: {app: echo}, ports: [{name: http, port: 80}]}\n"
        + &of_echo("[{addresses: [10.4.0.1], targetRef: {kind: Pod, name: one, namespace: app}}]");
    let output = render(&documents);
    let table = table(&output);
    let found = &table.host(ECHO).expect("listed").endpoints[0].labels;
    let found: Vec<String> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
    // What differs from pod to pod is left out.
    assert_eq!(
        found,
        [
            "app=echo",
            "app.kubernetes.io/version=2",
            "example.com/tier=gold",
            "version=v1"
        ]
    );
}

// spec: SM-101, SM-102
#[test]
fn locality_is_that_of_the_pods_node_whatever_hints_say() {
    let node = |name: &str, zone: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/region: r, \
             topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let pod = |name: &str, node: &str, address: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: app, labels: {{app: echo}}}}\nspec: {{nodeName: \
             {node}, containers: [{{name: c, image: i}}]}}\nstatus: {{podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
        )
    };
    let endpoint = |address: &str, pod: &str, zone: &str| {
        format!(
            "{{addresses: [{address}], zone: {zone}, hints: {{forZones: [{{name: hinted}}]}}, targetRef: {{kind: Pod, name: \
             {pod}, namespace: app}}}}"
        )
    };
    let documents = node("n1", "z1")
        + &node("n2", "z2")
        + &pod("echo-1", "n1", "10.4.0.1")
        + &pod("echo-2", "n2", "10.4.0.2")
        + &of_echo(&format!(
            "[{}, {}]",
            endpoint("10.4.0.1", "echo-1", "elsewhere"),
            endpoint("10.4.0.2", "echo-2", "elsewhere")
        ));
    let table = table(&render(&documents));
    let localities: Vec<Option<&str>> = table
        .host(ECHO)
        .expect("listed")
        .endpoints
        .iter()
        .map(|e| e.locality.as_deref())
        .collect();
    assert_eq!(localities, [Some("r/z1"), Some("r/z2")]);
}

// spec: SM-101
#[test]
fn labels_of_a_pod_say_where_it_is_before_those_of_its_node_and_older_ones_will_do() {
    let object = |labels: &[(&str, &str)]| k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        labels: Some(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
        ..Default::default()
    };
    let node = |labels: &[(&str, &str)]| {
        let node = Node {
            metadata: object(labels),
            ..Node::default()
        };
        node_locality(&node)
    };
    let (region, zone) = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone");
    let (old_region, old_zone) = (
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
    );
    let subzone = "topology.istio.io/subzone";
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(node(&[(region, "r"), (zone, "z"), (subzone, "s")]), some("r/z/s"));
    assert_eq!(node(&[(old_region, "r"), (old_zone, "z")]), some("r/z"));
    assert_eq!(
        node(&[(region, "r"), (old_region, "x"), (zone, "z"), (old_zone, "y")]),
        some("r/z")
    );
    assert_eq!(
        node(&[(region, "r"), (subzone, "s")]),
        some("r"),
        "a subzone of no zone is none"
    );
    assert_eq!(node(&[(zone, "z")]), None);
    let pod = |labels: &[(&str, &str)]| {
        let pod = Pod {
            metadata: object(labels),
            spec: Some(k8s_openapi::api::core::v1::PodSpec {
                node_name: some("n"),
                ..Default::default()
            }),
            ..Pod::default()
        };
        locality(&BTreeMap::from([("n".to_owned(), "of/node".to_owned())]), &pod)
    };
    assert_eq!(pod(&[]), some("of/node"));
    assert_eq!(pod(&[("istio-locality", "r.z.s")]), some("r/z/s"));
    assert_eq!(
        pod(&[("topology.istio.io/locality", "r/z.1"), ("istio-locality", "x")]),
        some("r/z.1")
    );
    assert_eq!(pod(&[("topology.istio.io/locality", "")]), some("of/node"));
}

// spec: SM-091, SM-092, SM-096, SM-097
#[test]
fn an_address_in_two_slices_has_the_ports_of_both() {
    let with = |name: &str, port: &str| {
        let rest = format!("addressType: IPv4\nports: [{port}]\nendpoints: [{{addresses: [10.4.0.1]}}]");
        slice(name, "echo", &rest)
    };
    let both = with("echo-1", "{name: http, port: 8080}") + &with("echo-2", "{port: 90}");
    assert_eq!(
        endpoints(&render(&both), ECHO),
        ["10.4.0.1 =90,http=8080 Ready"],
        "a port without a name is known, too"
    );
}

// spec: SM-009, SM-010
#[test]
fn a_service_is_its_cluster_addresses_whatever_its_type() {
    let service = |name: &str, address: &str, more: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app}}\nspec: {{clusterIPs: [{address}], \
             ports: [{{name: http, port: 80, nodePort: 30080}}]{more}}}\nstatus: {{loadBalancer: {{ingress: [{{ip: \
             203.0.113.1}}]}}}}\n"
        )
    };
    let documents = service("inside", "10.0.0.2", "")
        + &service("node", "10.0.0.3", ", type: NodePort, externalIPs: [198.51.100.1]")
        + &service(
            "balanced",
            "10.0.0.4",
            ", type: LoadBalancer, externalIPs: [198.51.100.1], externalTrafficPolicy: Local, sessionAffinity: ClientIP, \
             sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
        );
    let bundle = bundle(&render(&documents), "app/client");
    for (name, address) in [("inside", "10.0.0.2"), ("node", "10.0.0.3"), ("balanced", "10.0.0.4")] {
        let host = bundle.hosts.iter().find(|h| h.name == name).expect("seen");
        assert_eq!(host.addresses, [address.parse::<IpAddr>().expect("address")], "{name}");
        assert_eq!(host.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80], "{name}");
        assert!(
            !host
                .domains
                .iter()
                .any(|d| d.contains("203.0.113") || d.contains("198.51.100")),
            "{name}: {:?}",
            host.domains
        );
        assert_eq!(host.ports[0].policy, Policy::default(), "{name}: no stickiness");
        assert_eq!(host.ports[0].policy.load_balancer, LoadBalancer::LeastRequest);
    }
}

// spec: SM-027
#[test]
fn the_older_service_decides_what_a_port_of_the_workload_speaks() {
    let service = |name: &str, hour: u32, port: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app, creationTimestamp: \
             '2026-01-01T{hour:02}:00:00Z'}}\nspec: {{clusterIPs: [10.0.1.{hour}], selector: {{app: echo}}, ports: [{port}]}}\n"
        )
    };
    let speaks = |documents: &str| {
        let inbound = bundle(&render(documents), "app/echo").inbound;
        let port = inbound.ports.into_iter().find(|p| p.port == 7000).expect("declared");
        (port.protocol, port.host.expect("a service leads there"))
    };
    let (http, tcp) = (
        "{name: http, port: 81, targetPort: 7000}",
        "{name: tcp, port: 82, targetPort: 7000}",
    );
    let (a, z) = ("a.app.svc.cluster.local", "z.app.svc.cluster.local");
    assert_eq!(
        speaks(&(service("a", 9, http) + &service("z", 8, tcp))),
        (Protocol::Tcp, z.to_owned())
    );
    assert_eq!(
        speaks(&(service("a", 8, http) + &service("z", 9, tcp))),
        (Protocol::Http, a.to_owned())
    );
    // Both at once: the name decides (SM-129).
    assert_eq!(
        speaks(&(service("z", 8, tcp) + &service("a", 8, http))),
        (Protocol::Http, a.to_owned())
    );
}

// spec: SM-114
#[test]
fn the_root_namespace_is_the_control_planes_unless_another_one_is_named() {
    let policy = |namespace: &str| {
        format!(
            "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: \
             {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        )
    };
    let mode = |documents: &str| bundle(&render(documents), "app/echo").inbound.mtls;
    assert_eq!(mode(&policy("weft-system")), MtlsMode::Strict);
    assert_eq!(mode(&policy("istio-system")), MtlsMode::Permissive);
    let moved = mesh("rootNamespace: istio-system");
    assert_eq!(mode(&(moved.clone() + &policy("istio-system"))), MtlsMode::Strict);
    assert_eq!(mode(&(moved + &policy("weft-system"))), MtlsMode::Permissive);
}
