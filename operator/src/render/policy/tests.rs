use std::collections::BTreeSet;

use weft_bundle::load;
use weft_bundle::wire::{Distribute, Failover, Host, Locality, SharedLabel, ZoneAware};

use super::*;
use crate::render::ObjectReport;
use crate::render::stage::{bundle, mesh, render, rule, service};

fn echo(documents: &str, client: &str) -> Host {
    let bundle = bundle(&render(documents), client);
    let host = bundle.hosts.into_iter().find(|h| h.name == "echo");
    host.expect("everybody sees echo")
}

fn policy(documents: &str, client: &str) -> Policy {
    echo(documents, client).ports[1].policy.clone()
}

const RANDOM: &str = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
const TURNS: &str = "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}";

fn used(documents: &str, client: &str) -> LoadBalancer {
    policy(documents, client).load_balancer
}

// spec: DR-002, DR-005, DR-010, SM-053
#[test]
fn the_first_level_with_a_rule_decides_whole() {
    let owner = rule(
        "app",
        "o",
        1,
        &format!("{{host: echo, {RANDOM}, subsets: [{{name: v1}}]}}"),
    );
    let host = "host: echo.app.svc.cluster.local";
    let root = rule("weft-system", "r", 1, &format!("{{{host}, {TURNS}}}"));
    let client = rule(
        "other",
        "c",
        1,
        &format!("{{{host}, trafficPolicy: {{loadBalancer: {{simple: PASSTHROUGH}}}}}}"),
    );
    let third = rule("third", "t", 1, &format!("{{{host}, {RANDOM}}}"));
    assert_eq!(used("", "other/client"), LoadBalancer::LeastRequest);
    assert_eq!(
        used(&third, "other/client"),
        LoadBalancer::LeastRequest,
        "another namespace's is nobody's"
    );
    assert_eq!(used(&root, "other/client"), LoadBalancer::RoundRobin);
    assert_eq!(used(&(root.clone() + &owner), "other/client"), LoadBalancer::Random);
    let all = root + &owner + &client;
    assert_eq!(used(&all, "other/client"), LoadBalancer::Passthrough);
    assert_eq!(
        echo(&all, "other/client").subsets,
        [],
        "nothing is merged across levels"
    );
    assert_eq!(echo(&all, "app/client").subsets.len(), 1);
    // Its short name is the rule's own namespace's.
    let elsewhere = rule("other", "c", 1, &format!("{{host: echo, {TURNS}}}"));
    assert_eq!(used(&elsewhere, "other/client"), LoadBalancer::LeastRequest);
}

// spec: DR-008, DR-009, SM-057, DR-002
#[test]
fn within_a_level_the_most_specific_host_wins_and_a_wildcard_hides_other_levels() {
    let wide = rule("app", "w", 3, &format!("{{host: '*.local', {RANDOM}}}"));
    let wider = rule("app", "a", 4, &format!("{{host: '*', {RANDOM}}}"));
    let narrow = rule("app", "n", 2, &format!("{{host: '*.app.svc.cluster.local', {TURNS}}}"));
    assert_eq!(used(&(wider + &wide + &narrow), "app/client"), LoadBalancer::RoundRobin);
    let exact = rule(
        "app",
        "e",
        1,
        "{host: echo, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}, subsets: [{name: v1}]}",
    );
    assert_eq!(
        used(&(narrow.clone() + &exact), "app/client"),
        LoadBalancer::Passthrough
    );
    // Also where both have the same length.
    let short = service("app/s", "10.0.0.2", "{name: http, port: 80}")
        + &narrow
        + &rule("app", "z", 1, &format!("{{host: s, {RANDOM}}}"));
    let of_short = bundle(&render(&short), "app/client").hosts;
    let of_short = of_short.iter().find(|host| host.name == "s").expect("known");
    assert_eq!(of_short.ports[0].policy.load_balancer, LoadBalancer::Random);
    let own = rule("other", "w", 1, &format!("{{host: '*.local', {RANDOM}}}"));
    let host = echo(&(exact + &own), "other/client");
    assert_eq!(host.ports[1].policy.load_balancer, LoadBalancer::Random);
    assert_eq!(host.subsets, [], "the owner's subsets are gone for this client");
}

// spec: DR-006, DR-007, DR-013
#[test]
fn visibility_decides_per_level() {
    let at_home = rule("app", "x", 1, &format!("{{host: echo, exportTo: [other], {RANDOM}}}"));
    assert_eq!(
        used(&at_home, "app/client"),
        LoadBalancer::LeastRequest,
        "exported elsewhere only"
    );
    assert_eq!(used(&at_home, "other/client"), LoadBalancer::Random);
    let private = rule("app", "x", 1, &format!("{{host: echo, exportTo: ['.'], {RANDOM}}}"));
    let root = rule("weft-system", "r", 1, &format!("{{host: '*', {TURNS}}}"));
    assert_eq!(used(&(private.clone() + &root), "app/client"), LoadBalancer::Random);
    assert_eq!(
        used(&(private.clone() + &root), "other/client"),
        LoadBalancer::RoundRobin
    );
    // The most specific host is chosen before its visibility, and hides the wider rule of its namespace.
    let wide = rule("app", "w", 2, &format!("{{host: '*.app.svc.cluster.local', {RANDOM}}}"));
    assert_eq!(
        used(&(private + &wide + &root), "other/client"),
        LoadBalancer::RoundRobin
    );
    // The mesh's default is one of `.` and `*`.
    let plain = rule("app", "x", 1, &format!("{{host: echo, {RANDOM}}}"));
    let default = mesh("defaultDestinationRuleExportTo: ['.']");
    assert_eq!(
        used(&(plain.clone() + &default), "other/client"),
        LoadBalancer::LeastRequest
    );
    assert_eq!(used(&(plain.clone() + &default), "app/client"), LoadBalancer::Random);
    for other in ["['*']", "[app]", "[third]"] {
        let default = mesh(&format!("defaultDestinationRuleExportTo: {other}"));
        for client in ["other/client", "app/client"] {
            let found = used(&(plain.clone() + &default), client);
            assert_eq!(found, LoadBalancer::Random, "{other} {client}");
        }
    }
}

// spec: DR-006
#[test]
fn in_the_root_namespace_only_private_rules_count_first() {
    let client = "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: c, namespace: weft-root}\nspec: \
                  {template: {metadata: {labels: {sidecar.istio.io/inject: 'true'}}, spec: {containers: [{name: c, \
                  image: i}]}}}\n"
        .to_owned()
        + &mesh("rootNamespace: weft-root");
    let host = "host: echo.app.svc.cluster.local";
    let public = rule("weft-root", "p", 1, &format!("{{{host}, {RANDOM}}}"));
    let owner = rule("app", "o", 1, &format!("{{host: echo, {TURNS}}}"));
    let all = client.clone() + &public + &owner;
    assert_eq!(
        used(&all, "weft-root/c"),
        LoadBalancer::RoundRobin,
        "public: only on level 3"
    );
    let private = rule("weft-root", "q", 1, &format!("{{{host}, exportTo: ['.'], {RANDOM}}}"));
    assert_eq!(used(&(all + &private), "weft-root/c"), LoadBalancer::Random);
}

// spec: DR-011, DR-012, SM-129
#[test]
fn rules_of_one_host_are_merged_oldest_first() {
    let old = rule("app", "z", 3, "{host: echo, subsets: [{name: a, labels: {v: old}}]}");
    let mid = rule(
        "app",
        "m",
        2,
        &format!("{{host: echo, {RANDOM}, subsets: [{{name: a, labels: {{v: mid}}}}, {{name: b}}]}}"),
    );
    let new = rule("app", "a", 1, &format!("{{host: echo, {TURNS}}}"));
    let host = echo(&(new.clone() + &mid + &old), "app/client");
    let labels: Vec<_> = host
        .subsets
        .iter()
        .map(|s| (s.name.as_str(), s.labels.get("v").map(String::as_str)))
        .collect();
    assert_eq!(labels, [("a", Some("old")), ("b", None)]);
    assert_eq!(
        host.ports[1].policy.load_balancer,
        LoadBalancer::Random,
        "the first policy is used whole"
    );
    // Different visibility: not merged, and the newest alone is used by a client that sees both.
    let public = rule("app", "p", 3, "{host: echo, subsets: [{name: a}]}");
    let private = rule("app", "q", 1, &format!("{{host: echo, exportTo: ['.'], {TURNS}}}"));
    let host = echo(&(public.clone() + &private), "app/client");
    assert_eq!(
        (host.subsets.len(), &host.ports[1].policy.load_balancer),
        (0, &LoadBalancer::RoundRobin)
    );
    assert_eq!(echo(&(public + &private), "other/client").subsets.len(), 1);
    // The older one's visibility is within the newer one's: merged, and as visible as the older.
    let private = rule("app", "q", 3, "{host: echo, exportTo: ['.'], subsets: [{name: a}]}");
    let host = echo(&(private.clone() + &new), "app/client");
    assert_eq!(
        (host.subsets.len(), &host.ports[1].policy.load_balancer),
        (1, &LoadBalancer::RoundRobin)
    );
    assert_eq!(used(&(private + &new), "other/client"), LoadBalancer::LeastRequest);
}

// spec: DR-014, DR-015, DR-016, DR-131
#[test]
fn a_selector_limits_a_rule_to_some_clients() {
    let selected =
        |labels: &str, lb: &str| format!("{{host: echo, workloadSelector: {{matchLabels: {labels}}}, {lb}}}");
    let plain = rule("app", "p", 1, &format!("{{host: echo, {RANDOM}}}"));
    let some = rule("app", "s", 2, &selected("{app: client, tier: web}", TURNS));
    assert_eq!(used(&(plain.clone() + &some), "app/client"), LoadBalancer::RoundRobin);
    assert_eq!(used(&(plain.clone() + &some), "app/echo"), LoadBalancer::Random);
    assert_eq!(
        used(&some, "other/client"),
        LoadBalancer::LeastRequest,
        "private to its namespace"
    );
    // Neighbours look no further.
    let root = rule(
        "weft-system",
        "r",
        1,
        "{host: '*', trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
    );
    assert_eq!(used(&(some.clone() + &root), "app/echo"), LoadBalancer::LeastRequest);
    assert_eq!(used(&(some.clone() + &root), "other/client"), LoadBalancer::Passthrough);
    // Equal selectors merge, and do not with the rule for everybody.
    let more = rule(
        "app",
        "t",
        1,
        "{host: echo, workloadSelector: {matchLabels: {tier: web, app: client}}, subsets: [{name: a}]}",
    );
    let host = echo(&(plain + &some + &more), "app/client");
    assert_eq!(
        (host.subsets.len(), &host.ports[1].policy.load_balancer),
        (1, &LoadBalancer::RoundRobin)
    );
    // The server side of its own service does not look at it.
    let limits = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}";
    let server = |spec: &str| {
        bundle(&render(&rule("app", "s", 1, spec)), "app/echo").inbound.ports[0]
            .policy
            .max_connections
    };
    assert_eq!(server(&selected("{app: echo}", limits)), None);
    assert_eq!(server(&format!("{{host: echo, {limits}}}")), Some(7));
}

// spec: DR-019, DR-021, DR-022, DR-023, DR-048, DR-084, DR-126, DR-132
#[test]
fn ports_and_subsets_override_block_by_block() {
    let spec = "
  host: echo
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {maxConnections: 1, idleTimeout: 1s, maxConnectionDuration: 2s}}
    outlierDetection: {}
    tls: {mode: DISABLE}
    proxyProtocol: {version: V2}
    retryBudget: {percent: {value: 50}}
    portLevelSettings:
    - port: {number: 90}
      loadBalancer: {consistentHash: {httpHeaderName: X-Top-Port}}
      connectionPool: {tcp: {idleTimeout: 3s, maxConnectionDuration: 4s}}
  subsets:
  - name: inherits
  - name: replaces
    trafficPolicy:
      loadBalancer: {consistentHash: {httpHeaderName: X-Subset}}
      connectionPool: {tcp: {idleTimeout: 5s}}
  - name: by-port
    trafficPolicy:
      loadBalancer: {consistentHash: {httpHeaderName: X-Subset}}
      portLevelSettings:
      - port: {number: 80}
        loadBalancer: {consistentHash: {httpHeaderName: X-Subset-Port}}
";
    let host = echo(&rule("app", "d", 1, spec), "app/client");
    let port = |number: u16| &host.ports.iter().find(|p| p.port == number).expect("port").policy;
    let subset = |name: &str, number: u16| {
        let subset = host.subsets.iter().find(|s| s.name == name).expect("subset");
        subset.policies.get(&number).unwrap_or_else(|| port(number))
    };
    let key = |policy: &Policy| match &policy.load_balancer {
        LoadBalancer::ConsistentHash(hash) => hash.key.clone(),
        _ => None,
    };
    let header = |name: &str| Some(HashKey::Header(name.to_owned()));
    let whole = port(80);
    assert_eq!(whole.load_balancer, LoadBalancer::Random);
    assert_eq!((whole.max_connections, whole.outlier.is_some()), (Some(1), true));
    assert_eq!(whole.proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(
        whole.retry_budget.as_ref().map(|b| (b.share_ppm, b.min_concurrency)),
        Some((500_000, 3))
    );
    // What an entry for a port leaves out is the default, not that of the service.
    let entry = port(90);
    assert_eq!(key(entry), header("x-top-port"));
    assert_eq!(
        (entry.max_connections, entry.outlier.is_some(), &entry.tls),
        (None, false, &UpstreamTls::Auto)
    );
    assert_eq!((entry.proxy_protocol, entry.retry_budget.is_some()), (None, false));
    // The age of opaque connections is that of the service.
    assert_eq!(
        (entry.tcp_idle_timeout_ms, entry.tcp_max_connection_duration_ms),
        (1000, Some(2000))
    );
    assert_eq!(
        (entry.http_idle_timeout_ms, entry.max_connection_duration_ms),
        (3000, Some(4000))
    );
    // Subsets.
    assert_eq!(subset("inherits", 80), whole);
    assert_eq!(subset("inherits", 90), entry);
    let replaced = subset("replaces", 80);
    assert_eq!((key(replaced), replaced.max_connections), (header("x-subset"), None));
    assert_eq!(
        (replaced.outlier.is_some(), &replaced.tls),
        (true, &UpstreamTls::Disable)
    );
    assert_eq!(
        (replaced.tcp_idle_timeout_ms, replaced.http_idle_timeout_ms),
        (1000, 5000)
    );
    assert_eq!(key(subset("replaces", 90)), header("x-subset"));
    let by_port = subset("by-port", 80);
    assert_eq!(
        (key(by_port), by_port.outlier.is_some(), &by_port.tls),
        (header("x-subset-port"), false, &UpstreamTls::Auto)
    );
    assert_eq!(key(subset("by-port", 90)), header("x-subset"));
}

// spec: DR-021, DR-125, DR-126
#[test]
fn a_tunnel_is_that_of_the_service_or_the_subset() {
    let spec = "
  host: echo
  trafficPolicy:
    tunnel: {targetHost: target.example, targetPort: 443}
    portLevelSettings: [{port: {number: 90}, outlierDetection: {}}]
  subsets:
  - {name: none, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
  - {name: own, trafficPolicy: {tunnel: {protocol: POST, targetHost: own.example, targetPort: 1}}}
";
    let host = echo(&rule("app", "d", 1, spec), "app/client");
    let of = |policy: &Policy| policy.tunnel.as_ref().map(|t| (t.host.clone(), t.port, t.post));
    for port in &host.ports {
        assert_eq!(of(&port.policy), Some(("target.example".into(), 443, false)));
    }
    let subset = |name: &str| &host.subsets.iter().find(|s| s.name == name).expect("subset").policies[&90];
    assert_eq!(of(subset("none")), None);
    assert_eq!(of(subset("own")), Some(("own.example".into(), 1, true)));
}

// spec: DR-072, DR-074, DR-079, DR-080, DR-082, DR-083, DR-084
#[test]
fn limits_are_what_is_stated_and_zero_is_none() {
    let of = |pool: &str| {
        let spec = format!("{{host: echo, trafficPolicy: {{connectionPool: {pool}}}}}");
        let policy = policy(&rule("app", "d", 1, &spec), "app/client");
        assert_eq!(policy.rule.as_deref(), Some("app/d"), "{pool}");
        policy
    };
    let limits = |n: u32| {
        let policy = of(&format!(
            "{{tcp: {{maxConnections: {n}}}, http: {{http1MaxPendingRequests: {n}, http2MaxRequests: {n}, maxRetries: {n}, \
             maxRequestsPerConnection: {n}, maxConcurrentStreams: {n}}}}}"
        ));
        [
            policy.max_connections,
            policy.max_pending_requests,
            policy.max_requests,
            policy.max_retries,
            policy.max_requests_per_connection,
            policy.max_concurrent_streams,
        ]
    };
    assert_eq!(limits(7), [Some(7); 6]);
    assert_eq!(limits(0), [None; 6]);
    // Idle time of HTTP: its own, else that of TCP, else an hour.
    for (pool, http, tcp) in [
        ("{http: {maxRetries: 1}}", 3_600_000, 3_600_000),
        ("{tcp: {idleTimeout: 5s}}", 5000, 5000),
        ("{http: {idleTimeout: 6s}}", 6000, 3_600_000),
        ("{tcp: {idleTimeout: 5s}, http: {idleTimeout: 6s}}", 6000, 5000),
        ("{tcp: {idleTimeout: 0s}}", 0, 0),
    ] {
        let policy = of(pool);
        assert_eq!(
            (policy.http_idle_timeout_ms, policy.tcp_idle_timeout_ms),
            (http, tcp),
            "{pool}"
        );
    }
}

// spec: DR-024, DR-025, DR-075, SM-115, SM-118, SM-119
#[test]
fn the_mesh_fills_in_what_no_rule_sets() {
    let none = policy("", "app/client");
    assert_eq!(none, Policy::default());
    assert_eq!(
        (none.connect_timeout_ms, none.max_connections, none.outlier),
        (10_000, None, None)
    );
    let defaults = mesh(
        "connectTimeout: 3s\ntcpKeepalive: {probes: 4, time: 5s}\ndefaultTrafficPolicy: {connectionPool: {tcp: \
         {maxConnections: 9}}, outlierDetection: {baseEjectionTime: 7s}}\nenableAutoMtls: false",
    );
    let filled = policy(&defaults, "app/client");
    assert_eq!((filled.connect_timeout_ms, filled.max_connections), (3000, Some(9)));
    assert_eq!(filled.outlier.map(|o| o.base_ejection_time_ms), Some(7000));
    assert_eq!(filled.tls, UpstreamTls::Disable);
    let spec = "
  host: echo
  trafficPolicy:
    connectionPool: {tcp: {tcpKeepalive: {probes: 8, interval: 6s}, connectTimeout: 1s}}
  subsets:
  - {name: s, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}}
";
    let host = echo(&(defaults + &rule("app", "d", 1, spec)), "app/client");
    let own = &host.ports[1].policy;
    assert_eq!((own.connect_timeout_ms, own.max_connections), (1000, None), "per block");
    assert_eq!(own.outlier.as_ref().map(|o| o.base_ejection_time_ms), Some(7000));
    let keepalive = own.tcp_keepalive.clone().expect("on");
    assert_eq!(
        (keepalive.probes, keepalive.time_seconds, keepalive.interval_seconds),
        (Some(8), Some(5), Some(6))
    );
    let built_in = &host.subsets[0].policies[&80];
    assert_eq!((built_in.max_connections, built_in.outlier.is_some()), (None, false));
}

fn failover(labels: &[SharedLabel], regions: Option<&[(&str, &str)]>) -> Option<Locality> {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    Some(Locality::Failover(Failover {
        labels: labels.to_vec(),
        regions: regions.map(pairs),
        zones: None,
    }))
}

// spec: DR-055, DR-056, DR-057, DR-059, DR-061, DR-062, DR-063, DR-067, SM-103, SM-104, SM-105, SM-106
#[test]
fn preference_by_place_is_the_rules_the_services_or_the_meshes() {
    let of = |spec: &str| {
        policy(
            &rule("app", "d", 1, &format!("{{host: echo, trafficPolicy: {spec}}}")),
            "app/client",
        )
        .locality
    };
    assert_eq!(policy("", "app/client").locality, None);
    assert_eq!(of("{outlierDetection: {}}"), failover(&[], Some(&[])));
    let setting = |setting: &str, more: &str| of(&format!("{{loadBalancer: {{localityLbSetting: {setting}}}{more}}}"));
    let outlier = ", outlierDetection: {}";
    assert_eq!(setting("{enabled: false}", outlier), None);
    let pairs = "{failover: [{from: a, to: b}, {from: a, to: c}]}";
    assert_eq!(setting(pairs, ""), None, "nothing says who is well");
    assert_eq!(setting(pairs, outlier), failover(&[], Some(&[("a", "b")])));
    let labels = setting(
        "{failoverPriority: [tier, none, 'x=y', topology.kubernetes.io/zone]}",
        outlier,
    );
    let tier = SharedLabel::Equal("tier".into(), "web".into());
    let wanted = [
        tier.clone(),
        SharedLabel::Missing("none".into()),
        SharedLabel::Equal("x".into(), "y".into()),
        SharedLabel::Own("topology.kubernetes.io/zone".into()),
    ];
    assert_eq!(labels, failover(&wanted, None));
    let both = setting("{failoverPriority: [tier], failover: [{from: a, to: b}]}", outlier);
    assert_eq!(both, failover(&[tier], Some(&[("a", "b")])));
    let shares = "{distribute: [{from: 'a/*', to: {'a/*': 90, b: 10}}], failoverPriority: [tier]}";
    let distribute = Some(Locality::Distribute(vec![Distribute {
        from: "a/*".into(),
        to: BTreeMap::from([("a/*".into(), 90), ("b".into(), 10)]),
    }]));
    assert_eq!(setting(shares, ""), distribute, "works without outlier detection");

    // A service's own distribution, which a rule's setting replaces and the mesh's does not.
    let service = |metadata: &str, spec: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: echo, namespace: app{metadata}}}\nspec: {{clusterIPs: \
             [10.0.0.1], ports: [{{name: auto, port: 70}}, {{name: http, port: 80}}]{spec}}}\n"
        )
    };
    let names = |locality: Option<Locality>| match locality {
        Some(Locality::Failover(Failover {
            labels,
            regions: None,
            zones: None,
        })) => labels.len(),
        other => panic!("{other:?}"),
    };
    let annotation = |value: &str| format!(", annotations: {{networking.istio.io/traffic-distribution: {value}}}");
    let close = service("", ", trafficDistribution: PreferClose");
    assert_eq!(names(policy(&close, "app/client").locality), 3);
    let node = service(&annotation("PREFERSAMENODE"), "");
    assert_eq!(names(policy(&node, "app/client").locality), 5);
    let field = service(&annotation("PreferSameNode"), ", trafficDistribution: PreferSameZone");
    assert_eq!(names(policy(&field, "app/client").locality), 3, "the field comes first");
    assert_eq!(
        policy(&service(&annotation("Elsewhere"), ""), "app/client").locality,
        None
    );
    let namespace = "\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio-injection: enabled}, \
                     annotations: {networking.istio.io/traffic-distribution: prefersamenode}}\n";
    assert_eq!(names(policy(namespace, "app/client").locality), 5);
    assert_eq!(
        names(policy(&(namespace.to_owned() + &close), "app/client").locality),
        3
    );
    let everywhere = mesh("localityLbSetting: {distribute: [{from: 'a/*', to: {'a/*': 90, b: 10}}]}");
    assert_eq!(policy(&everywhere, "app/client").locality, distribute);
    assert_eq!(names(policy(&(everywhere.clone() + &close), "app/client").locality), 3);
    let off = rule(
        "app",
        "d",
        1,
        "{host: echo, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}",
    );
    assert_eq!(policy(&(everywhere + &close + &off), "app/client").locality, None);
    let off = mesh("localityLbSetting: {enabled: false}")
        + &rule("app", "d", 1, "{host: echo, trafficPolicy: {outlierDetection: {}}}");
    assert_eq!(policy(&off, "app/client").locality, None);
}

// spec: DR-067, DR-068, DR-069, SM-106
#[test]
fn zones_come_from_the_rule_else_from_the_mesh_before_its_other_preference() {
    let zones = |labels: &[SharedLabel], pairs: &[(&str, &str)], min_cluster_size| {
        let Some(Locality::Failover(failover)) = failover(labels, Some(pairs)) else {
            panic!("no failover")
        };
        Some(Locality::Failover(Failover {
            zones: Some(ZoneAware { min_cluster_size }),
            ..failover
        }))
    };
    let region = SharedLabel::Own("topology.kubernetes.io/region".into());
    let of = |setting: &str| {
        let spec = format!("{{host: echo, trafficPolicy: {{loadBalancer: {{zoneAwareLbSetting: {setting}}}}}}}");
        rule("app", "d", 1, &spec)
    };
    let locality = |documents: &str| policy(documents, "app/client").locality;
    assert_eq!(locality(&of("{}")), zones(std::slice::from_ref(&region), &[], 6));
    let tier = SharedLabel::Equal("tier".into(), "web".into());
    assert_eq!(
        locality(&of(
            "{failover: [{from: a, to: b}], failoverPriority: [tier], minClusterSize: 2}"
        )),
        zones(&[region.clone(), tier], &[("a", "b")], 2)
    );
    let everywhere =
        mesh("zoneAwareLbSetting: {minClusterSize: 3}\nlocalityLbSetting: {distribute: [{from: 'a/*', to: {b: 100}}]}");
    assert_eq!(locality(&everywhere), zones(&[region], &[], 3));
    // What the service itself says comes before both of the mesh's.
    let close = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: app}\nspec: {clusterIPs: [10.0.0.1], ports: \
                 [{name: auto, port: 70}, {name: http, port: 80}], trafficDistribution: PreferClose}\n";
    let Some(Locality::Failover(own)) = locality(&(everywhere.clone() + close)) else {
        panic!("no preference")
    };
    assert_eq!((own.labels.len(), own.zones), (3, None));
    let off =
        mesh("zoneAwareLbSetting: {enabled: false}\nlocalityLbSetting: {distribute: [{from: 'a/*', to: {b: 100}}]}");
    assert_eq!(locality(&off), None, "nor the level below");
    assert_eq!(locality(&(everywhere + &of("{enabled: false}"))), None);
}

// spec: DR-071
#[test]
fn the_proxies_of_each_zone_are_counted_where_some_rule_is_by_zones() {
    let mut documents = String::new();
    for zone in ["za", "zb"] {
        documents.push_str(&format!(
            "\n---\napiVersion: v1\nkind: Node\nmetadata: {{name: {zone}, labels: {{topology.kubernetes.io/region: r, \
             topology.kubernetes.io/zone: {zone}, topology.istio.io/subzone: s}}}}\n"
        ));
    }
    for (name, node, more) in [
        ("one", "za", ""),
        ("two", "zb", ""),
        ("three", "zb", ""),
        ("ended", "za", "status: {phase: Succeeded}"),
        ("nowhere", "unknown", ""),
    ] {
        documents.push_str(&format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: app, labels: {{security.istio.io/tlsMode: \
             istio}}, ownerReferences: [{{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: \
             true}}]}}\nspec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n{more}\n"
        ));
    }
    // No proxy, so no client.
    documents.push_str(
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: app, ownerReferences: [{apiVersion: apps/v1, \
         kind: StatefulSet, name: web, uid: u, controller: true}]}\nspec: {nodeName: za, containers: [{name: c, image: i}]}\n",
    );
    let count = |documents: &str| {
        let output = render(documents);
        let files = output.endpoints["app"]
            .shards
            .iter()
            .flat_map(|shard| (**shard).clone());
        let files: weft_bundle::pack::Files = files.collect();
        let loaded = load::endpoints(&files, 0).expect("valid").expect("there");
        loaded.endpoints.proxies
    };
    assert_eq!(count(&documents), BTreeMap::new());
    let on = rule(
        "other",
        "d",
        1,
        "{host: echo.app.svc.cluster.local, subsets: [{name: s, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {}}}}]}",
    );
    let zones = BTreeMap::from([("r/za".to_owned(), 1), ("r/zb".to_owned(), 2)]);
    let counted = BTreeMap::from([("web".to_owned(), zones)]);
    assert_eq!(count(&(documents.clone() + &on)), counted);
    assert_eq!(count(&(documents + &mesh("zoneAwareLbSetting: {}"))), counted);
}

// spec: DR-085, DR-086, DR-089, SE-095
#[test]
fn versions_are_upgraded_on_declared_ports_and_by_the_client_everywhere() {
    let of = |http: &str, more: &str| {
        let spec = format!("{{host: echo, trafficPolicy: {{connectionPool: {{http: {http}}}}}}}");
        let output = render(&(rule("app", "d", 1, &spec) + more));
        let host = bundle(&output, "app/client")
            .hosts
            .into_iter()
            .find(|h| h.name == "echo");
        let versions: Vec<_> = host
            .expect("echo")
            .ports
            .iter()
            .map(|p| p.policy.http_version)
            .collect();
        let inbound = bundle(&output, "app/echo").inbound.ports;
        (
            versions,
            inbound.iter().map(|p| p.policy.http_version).collect::<Vec<_>>(),
        )
    };
    let (two, client) = (Some(HttpVersion::Http2), Some(HttpVersion::Client));
    // Ports 70 (automatic), 80 (http), 90 (tcp).
    assert_eq!(
        of("{h2UpgradePolicy: UPGRADE}", ""),
        (vec![None, two, None], vec![None; 3])
    );
    assert_eq!(of("{useClientProtocol: true}", ""), (vec![client; 3], vec![client; 3]));
    let everywhere = mesh("h2UpgradePolicy: UPGRADE");
    assert_eq!(of("{maxRetries: 1}", &everywhere).0, [None, two, None]);
    assert_eq!(of("{h2UpgradePolicy: DO_NOT_UPGRADE}", &everywhere).0, [None; 3]);
    assert_eq!(of("{h2UpgradePolicy: DEFAULT}", &everywhere).0, [None, two, None]);
}

// spec: DR-033, DR-034, DR-043, DR-044, DR-047, DR-051, DR-052, DR-053, DR-035
#[test]
fn load_balancers_are_resolved() {
    let of = |settings: &str| {
        policy(
            &rule(
                "app",
                "d",
                1,
                &format!("{{host: echo, trafficPolicy: {{loadBalancer: {settings}}}}}"),
            ),
            "app/client",
        )
    };
    for (simple, wanted) in [
        ("UNSPECIFIED", LoadBalancer::LeastRequest),
        ("LEAST_CONN", LoadBalancer::LeastRequest),
        ("LEAST_REQUEST", LoadBalancer::LeastRequest),
        ("RANDOM", LoadBalancer::Random),
        ("ROUND_ROBIN", LoadBalancer::RoundRobin),
        ("PASSTHROUGH", LoadBalancer::Passthrough),
    ] {
        let policy = of(&format!("{{simple: {simple}}}"));
        assert_eq!((policy.load_balancer, policy.rule.as_deref()), (wanted, Some("app/d")));
    }
    let hash = |hash: &str| match of(&format!("{{consistentHash: {hash}}}")).load_balancer {
        LoadBalancer::ConsistentHash(hash) => hash,
        other => panic!("{other:?}"),
    };
    let cookie =
        hash("{httpCookie: {name: c, path: /p, ttl: 60s, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}");
    assert_eq!(
        cookie.key,
        Some(HashKey::Cookie {
            name: "c".into(),
            path: Some("/p".into()),
            ttl_seconds: Some(60),
            attributes: vec![("SameSite".into(), Some("Lax".into())), ("Secure".into(), None)],
        })
    );
    assert_eq!(hash("{}").key, None);
    assert_eq!(
        hash("{useSourceIp: true, minimumRingSize: 5}").minimum_ring_size,
        Some(5)
    );
    assert_eq!(
        hash("{useSourceIp: true, ringHash: {minimumRingSize: 6}}").minimum_ring_size,
        Some(6)
    );
    assert_eq!(
        hash("{useSourceIp: true, maglev: {tableSize: 7}}").maglev_table_size,
        Some(7)
    );

    let warm = |settings: &str| {
        of(settings)
            .warmup
            .map(|w| (w.duration_ms, w.minimum_ppm, w.aggression_milli))
    };
    assert_eq!(warm("{warmup: {duration: 30s}}"), Some((30_000, 100_000, 1000)));
    assert_eq!(
        warm("{simple: ROUND_ROBIN, warmup: {duration: 1s, minimumPercent: 0.5, aggression: 2.5}}"),
        Some((1000, 5000, 2500))
    );
    assert_eq!(warm("{simple: RANDOM, warmup: {duration: 30s}}"), None);
    assert_eq!(warm("{warmupDurationSecs: 20s}"), Some((20_000, 100_000, 1000)));
    assert_eq!(
        warm("{warmupDurationSecs: 20s, warmup: {duration: 5s}}"),
        Some((5000, 100_000, 1000))
    );
}

// spec: DR-090, DR-091, DR-092, DR-094, DR-095, DR-096, DR-097, DR-099, DR-100, DR-101
#[test]
fn outlier_detection_is_resolved() {
    let of = |settings: &str| {
        policy(
            &rule(
                "app",
                "d",
                1,
                &format!("{{host: echo, trafficPolicy: {{outlierDetection: {settings}}}}}"),
            ),
            "app/client",
        )
        .outlier
    };
    let defaults = Outlier {
        consecutive_5xx: 5,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: None,
        interval_ms: 10_000,
        base_ejection_time_ms: 30_000,
        max_ejection_percent: 10,
        min_health_percent: 0,
        error_codes: Vec::new(),
    };
    assert_eq!(of("{}"), Some(defaults));
    let stated = of(
        "{consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, interval: 1s, baseEjectionTime: 2s, \
         maxEjectionPercent: 40, minHealthPercent: 60, outlierDetectionHttpErrorCodes: [429, 500]}",
    );
    let wanted = Outlier {
        consecutive_5xx: 0,
        consecutive_gateway_errors: 3,
        consecutive_local_origin_failures: None,
        interval_ms: 1000,
        base_ejection_time_ms: 2000,
        max_ejection_percent: 40,
        min_health_percent: 60,
        error_codes: vec![429, 500],
    };
    assert_eq!(stated, Some(wanted));
    assert_eq!(
        of("{consecutiveErrors: 1}"),
        Some(Outlier::default()),
        "deprecated, without effect"
    );
    assert_eq!(of("{maxEjectionPercent: 0}").map(|o| o.max_ejection_percent), Some(10));
    let local = |settings: &str| of(settings).and_then(|o| o.consecutive_local_origin_failures);
    assert_eq!(local("{splitExternalLocalOriginErrors: true}"), Some(5));
    assert_eq!(
        local("{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 0}"),
        Some(5)
    );
    assert_eq!(
        local("{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2}"),
        Some(2)
    );
    assert_eq!(local("{}"), None);
}

// spec: DR-107, DR-108, DR-109, DR-110, DR-112, DR-113, DR-114, DR-121, BYD-061
#[test]
fn upstream_tls_is_resolved() {
    let of = |settings: &str| {
        let tls = mesh("tlsDefaults: {minProtocolVersion: TLSV1_3, cipherSuites: [A], ecdhCurves: [P-256]}");
        policy(
            &(tls
                + &rule(
                    "app",
                    "d",
                    1,
                    &format!("{{host: echo, trafficPolicy: {{tls: {settings}}}}}"),
                )),
            "app/client",
        )
        .tls
    };
    let originate = |settings: &str| match of(settings) {
        UpstreamTls::Originate(originate) => originate,
        other => panic!("{other:?}"),
    };
    assert_eq!(of("{sni: x}"), UpstreamTls::Disable);
    assert_eq!(of("{mode: DISABLE}"), UpstreamTls::Disable);
    let mesh =
        of("{mode: ISTIO_MUTUAL, sni: x, subjectAltNames: [spiffe://a], caCertificates: /ca, clientCertificate: /c}");
    assert_eq!(
        mesh,
        UpstreamTls::Mesh {
            sni: Some("x".into()),
            subject_alt_names: vec!["spiffe://a".into()]
        }
    );
    let simple = originate("{mode: SIMPLE, clientCertificate: /c, privateKey: /k, caCertificates: system, caCrl: /r}");
    assert_eq!(
        (&simple.certificate, &simple.key, &simple.ca, &simple.crl),
        (&None, &None, &None, &None)
    );
    assert_eq!(
        (simple.cipher_suites, simple.curves),
        (vec!["A".to_owned()], vec!["P-256".to_owned()])
    );
    let mutual =
        originate("{mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /ca, caCrl: /r, sni: s}");
    assert_eq!(
        (mutual.certificate.as_deref(), mutual.key.as_deref()),
        (Some("/c"), Some("/k"))
    );
    assert_eq!(
        (mutual.ca.as_deref(), mutual.crl.as_deref(), mutual.sni.as_deref()),
        (Some("/ca"), Some("/r"), Some("s"))
    );
    assert!(mutual.unavailable.is_none());
    let secret = originate("{mode: SIMPLE, credentialName: cred}");
    assert!(secret.unavailable.expect("a sidecar has no Secret").contains("cred"));
}

// spec: DR-001, DR-004, SM-126
#[test]
fn a_rule_for_nobody_is_accepted_and_an_invalid_one_is_left_out() {
    let nobody = rule("app", "n", 1, &format!("{{host: nobody.example.com, {RANDOM}}}"));
    let invalid = rule("app", "i", 1, &format!("{{host: 'a b', {RANDOM}}}"));
    let output = render(&(nobody + &invalid));
    let report = |name: &str| -> ObjectReport {
        let found = output
            .reports
            .iter()
            .find(|(r, _)| r.name == name && r.namespace == "app");
        found.expect("reported").1.clone()
    };
    assert_eq!(report("n").refused, None);
    let (reason, message) = report("i").refused.expect("refused");
    assert!(reason == "Invalid" && message.contains("spec.host"), "{message}");
    let host = bundle(&output, "app/client")
        .hosts
        .into_iter()
        .find(|h| h.name == "echo");
    assert_eq!(host.expect("echo").ports[1].policy, Policy::default());
}

// spec: SM-002, SM-068, SM-069, SM-070, SM-072, SM-075, SM-011, SM-013, SM-022
#[test]
fn services_are_seen_by_whom_they_are_exported_to() {
    let service = |annotation: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: priv, namespace: app, annotations: \
             {{networking.istio.io/exportTo: '{annotation}'}}}}\nspec: {{clusterIPs: [10.0.0.2, 'fd00::2'], \
             internalTrafficPolicy: Local, ports: [{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}]}}\n"
        )
    };
    let sees = |annotation: &str, client: &str| {
        let bundle = bundle(&render(&service(annotation)), client);
        bundle.hosts.into_iter().find(|h| h.name == "priv")
    };
    for (annotation, app, other) in [
        ("*", true, true),
        (".", true, false),
        ("other", false, true),
        (" app , other ", true, true),
        ("~", false, false),
        ("., *", true, true),
    ] {
        assert_eq!(sees(annotation, "app/client").is_some(), app, "{annotation}");
        assert_eq!(sees(annotation, "other/client").is_some(), other, "{annotation}");
    }
    // Without a word of its own the mesh's counts.
    let own_alone = mesh("defaultServiceExportTo: ['.']");
    let names = |documents: &str, client: &str| -> Vec<String> {
        let hosts = bundle(&render(documents), client).hosts;
        hosts.into_iter().map(|host| host.name).collect()
    };
    assert_eq!(names("", "other/client"), ["echo"]);
    assert_eq!(names(&own_alone, "other/client"), [""; 0]);
    assert_eq!(names(&own_alone, "app/client"), ["echo"]);
    assert_eq!(names(&(own_alone + &service("*")), "other/client"), ["priv"]);
    let host = sees("*", "other/client").expect("seen");
    assert!(host.node_local);
    assert_eq!(host.addresses.len(), 2, "dual stack: every address");
    assert!(host.domains.contains(&"[fd00::2]".to_owned()) && host.domains.contains(&"10.0.0.2".to_owned()));
    assert_eq!(
        host.ports.iter().map(|p| p.port).collect::<Vec<_>>(),
        [80],
        "UDP is not proxied"
    );
}

// spec: SM-084, SM-085, SM-086, SM-087, SM-088, SM-089
#[test]
fn an_external_name_is_a_further_name_of_its_target() {
    let alias = |name: &str, namespace: &str, target: &str, more: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\nspec: {{type: \
             ExternalName, externalName: {target}, ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    let routes = |name: &str| {
        let spec =
            format!("{{hosts: [{name}.app.svc.cluster.local], http: [{{route: [{{destination: {{host: echo}}}}]}}]}}");
        rule("app", name, 1, &spec).replace("DestinationRule", "VirtualService")
    };
    let documents = alias("alias", "app", "Echo.app.svc.cluster.local.", "")
        + &alias("chain", "app", "alias.app.svc.cluster.local", "")
        + &alias("loop", "app", "loop.app.svc.cluster.local", "")
        + &alias("out", "app", "ext.example.com", "")
        + &alias(
            "mine",
            "app",
            "echo.app.svc.cluster.local",
            ", annotations: {networking.istio.io/exportTo: .}",
        )
        + &rule("app", "a", 1, &format!("{{host: alias, {RANDOM}}}"))
        + "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: other}\nspec: \
           {hosts: [made.up], http: [{route: [{destination: {host: alias.app.svc.cluster.local, port: {number: 80}}}]}]}\n"
        // Without ports an alias has routes of its own under its full name on port 80 alone.
        + &alias("bare", "app", "echo.app.svc.cluster.local", "").replace(", ports: [{name: http, port: 80}]", "")
        + &["bare", "mine", "out"].map(routes).concat();
    let output = render(&documents);
    let own = bundle(&output, "app/client");
    let host = own.hosts.iter().find(|h| h.name == "echo").expect("echo");
    for name in [
        "alias",
        "alias.app",
        "alias.app.svc.cluster.local",
        "chain.app.svc",
        "mine",
    ] {
        assert!(host.domains.contains(&name.to_owned()), "{name}");
    }
    assert!(
        !host
            .domains
            .iter()
            .any(|d| d.starts_with("loop") || d.starts_with("out"))
    );
    assert!(
        own.hosts
            .iter()
            .all(|h| !["alias", "out", "loop"].contains(&h.name.as_str()))
    );
    assert_eq!(
        host.ports[1].policy.load_balancer,
        LoadBalancer::LeastRequest,
        "rules are those of the target"
    );
    let of_routes = |table: &str| {
        let own = own.domains.iter().filter(|d| d.http == format!("app/{table}"));
        own.map(|d| (d.port, d.domains.join(" "))).collect::<BTreeSet<_>>()
    };
    let on_80 = |names: &[&str]| {
        names
            .iter()
            .map(|name| (80, (*name).to_owned()))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(of_routes("bare"), on_80(&["bare.app.svc.cluster.local"]));
    assert_eq!(
        of_routes("mine"),
        on_80(&["mine", "mine.app", "mine.app.svc", "mine.app.svc.cluster.local"])
    );
    // The mesh does not know what it stands for: a name like any other that no service has.
    let out = of_routes("out");
    assert!(
        out.iter().all(|(_, names)| names == "out.app.svc.cluster.local"),
        "{out:?}"
    );
    let other = bundle(&output, "other/client");
    let host = other.hosts.iter().find(|h| h.name == "echo").expect("echo");
    assert!(host.domains.contains(&"alias.app".to_owned()) && !host.domains.contains(&"alias".to_owned()));
    assert!(!host.domains.iter().any(|d| d.starts_with("mine")), "not exported");
    let table = other.routes.iter().find(|t| t.name == "other/v").expect("routes");
    let weft_bundle::wire::Action::Destinations(to) = &table.rules[0].action else {
        panic!("{table:?}")
    };
    assert_eq!((to[0].host.as_str(), to[0].port), ("echo.app.svc.cluster.local", 80));
}
