//! Whatever mesh objects a schema admits, rendering does not panic, and what it renders can be loaded.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestRng, TestRunner};
use serde_json::{Map, Value, json};
use weft_bundle::pack::Files;
use weft_bundle::{load, model};
use weft_crds::object::KINDS;
use weft_crds::schema::definitions;
use weft_crds::{Validate, parse_object};
use weft_operator::render::{Output, Renderer};
use weft_operator::world::read::{Read, object};
use weft_operator::world::{Event, Settings, Store};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    // spec: OPS-191, DLV-025
    #[test]
    fn what_is_rendered_from_any_objects_can_be_loaded(objects in meshes()) {
        let output = render(&objects);
        prop_assert!(output.failures.is_empty(), "{:?}", output.failures);
        prop_assert_eq!(output.configs.len(), 2);
        for config in output.configs.values() {
            let files: Files = config.shards.iter().flat_map(|shard| Files::clone(shard)).collect();
            let loaded = load::config(&files).expect("loads").expect("is there");
            prop_assert_eq!(&loaded.bundle, &config.bundle());
            let parsed = model::Config::parse(loaded.bundle);
            prop_assert!(parsed.is_ok(), "{:?}", parsed.err());
        }
        for endpoints in output.endpoints.values() {
            let files: Files = endpoints.shards.iter().flat_map(|shard| Files::clone(shard)).collect();
            for n in 0..endpoints.shards.len() {
                let loaded = load::endpoints(&files, n);
                prop_assert!(matches!(&loaded, Ok(Some(_))), "{:?}", loaded.err());
            }
        }
    }

    // spec: DLV-002
    #[test]
    fn the_order_of_any_objects_changes_nothing((objects, shuffled) in meshes().prop_flat_map(|objects| {
        (Just(objects.clone()), Just(objects).prop_shuffle())
    })) {
        let (one, other) = (render(&objects), render(&shuffled));
        prop_assert_eq!(one.configs, other.configs);
        prop_assert_eq!(one.endpoints, other.endpoints);
        prop_assert_eq!(one.reports, other.reports);
    }

    // spec: DLV-071, DLV-002
    #[test]
    fn a_renderer_with_a_past_renders_what_one_without_does(
        first in meshes(),
        second in meshes(),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..4), 1..12),
    ) {
        let pool: Vec<Value> = stage().into_iter().chain(others()).chain(first).chain(second).collect();
        let mut store = staged();
        let mut renderer = Renderer::new();
        renderer.render(&store.world());
        for (index, action) in steps {
            let Ok(Read::Object(object)) = object(index.get(&pool), "weft-system") else {
                panic!("{:?} is nothing to render", index.get(&pool))
            };
            match action {
                0 => store.apply(Event::Delete(object.reference())),
                _ => store.apply(Event::Apply(object)),
            };
            let (with, without) = (renderer.render(&store.world()), Renderer::new().render(&store.world()));
            prop_assert_eq!(with.configs, without.configs);
            prop_assert_eq!(with.endpoints, without.endpoints);
            prop_assert_eq!(with.reports, without.reports);
            prop_assert_eq!(with.pods, without.pods);
            prop_assert_eq!(with.identities, without.identities);
            prop_assert_eq!(with.meshed_namespaces, without.meshed_namespaces);
            prop_assert_eq!(with.failures, without.failures);
        }
    }
}

/// The properties above say nothing of objects that validation keeps from the renderer.
#[test]
fn most_of_these_objects_are_valid() {
    let mut runner = TestRunner::deterministic();
    let mut missing = vec![
        "retry",
        "fault",
        "mirrors",
        "cors",
        "timeoutMs",
        "redirect",
        "directResponse",
        "rewrite",
        "requestHeaders",
        "matches",
        "query",
        "regex",
        "sni",
        "subnets",
        "subsets",
        "outlier",
        "consistentHash",
        "originate",
        "mesh",
        "tcpKeepalive",
        "mtls",
        "domains",
        "discovery",
        "target",
        "allocated",
    ];
    let (mut valid, mut all) = (0, 0);
    // As many as it takes to see each part, and enough to count by.
    for n in 0..400 {
        if n >= 80 && missing.is_empty() {
            break;
        }
        let objects = meshes().new_tree(&mut runner).expect("objects").current();
        for value in &objects {
            all += 1;
            valid += usize::from(is_valid(value));
        }
        let output = render(&objects);
        for config in output.configs.values() {
            let seen = serde_json::to_string(&config.bundle()).expect("JSON");
            missing.retain(|part| !seen.contains(&format!("\"{part}\"")));
        }
    }
    assert!(valid * 2 > all, "{valid} of {all} objects are valid");
    assert!(missing.is_empty(), "none of these objects leads to {missing:?}");
}

fn render(objects: &[Value]) -> Output {
    let mut store = staged();
    apply(&mut store, objects);
    Renderer::new().render(&store.world())
}

fn staged() -> Store {
    let mut store = Store::new(Settings::default());
    apply(&mut store, &stage());
    store
}

fn apply(store: &mut Store, objects: &[Value]) {
    for value in objects {
        match object(value, "weft-system").expect("an object") {
            Read::Object(object) => store.apply(Event::Apply(object)),
            Read::Other => panic!("{value} is nothing to render"),
        };
    }
}

/// Objects that stand in the place of those of the stage, or beside them.
fn others() -> Vec<Value> {
    let slice = |name: &str, service: &str, address: &str, conditions: Value| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [address], "conditions": conditions}]})
    };
    let pod = |name: &str, labels: Value, annotations: Value, address: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels, "annotations": annotations},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [{"name": "c"}]},
            "status": {"podIP": address, "phase": "Running"}})
    };
    let mesh = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "weft", "namespace": "weft-system"}, "data": {"mesh": text}})
    };
    let meshed = json!({"app": "a", "version": "v1", "security.istio.io/tlsMode": "istio"});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "third", "labels": {"istio-injection": "enabled"}}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {
            "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z"}}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.1.1", "selector": {"version": "v1"}, "ports": [{"name": "grpc", "port": 81}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias", "namespace": "other"},
            "spec": {"type": "ExternalName", "externalName": "a.shop.svc.cluster.local"}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "b", "version": "v2"}},
                "spec": {"containers": [{"name": "c"}]}}}}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "b", "namespace": "other"},
            "spec": {"selector": {}, "serviceName": "b", "template": {"metadata": {"labels": {"app": "a"}},
                "spec": {"serviceAccountName": "sa", "containers": [{"name": "c"}]}}}}),
        slice("a", "a", "10.244.1.1", json!({"ready": false, "terminating": true})),
        slice("a", "headless", "10.244.1.1", json!({"ready": true})),
        slice("a-2", "a", "10.244.1.2", json!({"ready": true})),
        slice("a-2", "a", "10.244.2.1", json!({"ready": true})),
        pod(
            "a-1",
            meshed.clone(),
            json!({"weft.dev/config-key": "unknown"}),
            "10.244.1.1",
        ),
        pod("a-1", json!({"app": "a"}), json!({}), "10.244.1.1"),
        pod("a-2", meshed, json!({}), "10.244.1.2"),
        mesh("accessLogFile: /dev/stdout\nenableAutoMtls: false\n"),
        mesh("defaultVirtualServiceExportTo: ['.']\nrootNamespace: other\n"),
        mesh("outboundTrafficPolicy: {mode: NONSENSE}\n"),
    ]
}

/// Two meshed workloads in two namespaces, with services of all sorts.
fn stage() -> Vec<Value> {
    let mut out = Vec::new();
    for (namespace, third) in [("shop", 1), ("other", 2)] {
        out.push(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"weft.dev/inject": "enabled"}}}));
        out.push(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "namespace": namespace},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "a", "version": "v1"}},
                "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]}}}}));
        let ports = json!([
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "tls", "port": 443},
            {"name": "tcp", "port": 9000},
            {"name": "any", "port": 8000, "targetPort": "web"},
        ]);
        for (name, address) in [("a", format!("10.96.{third}.1")), ("headless", "None".into())] {
            out.push(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": address, "selector": {"app": "a"}, "ports": ports}}));
            out.push(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "http", "port": 8080}],
                "endpoints": [{"addresses": [format!("10.244.{third}.1")], "conditions": {"ready": true}}]}),
            );
        }
        out.push(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a-1", "namespace": namespace,
                "labels": {"app": "a", "version": "v1", "security.istio.io/tlsMode": "istio"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIP": format!("10.244.{third}.1"), "phase": "Running"}}));
    }
    out
}

/// Up to eight mesh objects; names repeat, so that later ones are conflicts and not replacements.
fn meshes() -> impl Strategy<Value = Vec<Value>> {
    let schemas: Vec<(String, Value)> = definitions()
        .into_iter()
        .map(|(_, crd)| {
            let schema = crd.spec.versions[0]
                .schema
                .as_ref()
                .and_then(|s| s.open_api_v3_schema.as_ref());
            let schema = serde_json::to_value(schema.expect("a schema")).expect("serializes");
            (crd.spec.names.kind, schema["properties"]["spec"].clone())
        })
        .collect();
    (1_usize..=8).prop_perturb(move |count, mut rng| {
        (0..count)
            .map(|n| {
                // Half of them VirtualServices, which say most.
                let (group, kind, _) = KINDS[rng.random_range(0..2 * KINDS.len()).saturating_sub(KINDS.len())];
                let (_, schema) = schemas
                    .iter()
                    .find(|(of, _)| of == kind)
                    .expect("a schema for each kind");
                Generator { rng: &mut rng }.object(group, kind, schema, n)
            })
            .collect()
    })
}

struct Generator<'a> {
    rng: &'a mut TestRng,
}

impl Generator<'_> {
    /// One in four at random, the others grown from a valid one by changes that leave it valid.
    fn object(&mut self, group: &str, kind: &str, schema: &Value, n: usize) -> Value {
        let namespace = self.of(&["shop", "other", "weft-system"]);
        let whole = |spec: &Value| {
            json!({"apiVersion": format!("{group}/v1"), "kind": kind,
                "metadata": {"name": format!("o{n}"), "namespace": namespace,
                    "creationTimestamp": format!("2026-01-0{}T00:00:00Z", n % 3 + 1)},
                "spec": spec})
        };
        let host = self.of(HOSTS);
        let to = json!({"host": self.of(HOSTS), "port": {"number": 80}});
        let mut spec = match (kind, self.rng.random_range(0..8)) {
            (_, 0 | 1) => return whole(&self.value(schema, "spec")),
            ("VirtualService", 2) => json!({"hosts": [host], "http": [{"redirect": {"uri": "/"}}]}),
            ("VirtualService", 3) => json!({"hosts": [host], "http": [{"directResponse": {"status": 200}}]}),
            ("VirtualService", 4) => json!({"hosts": [host],
                "tls": [{"match": [{"sniHosts": [host]}], "route": [{"destination": to}]}],
                "tcp": [{"match": [{"port": 9000}], "route": [{"destination": to}]}]}),
            ("VirtualService", _) => json!({"hosts": [host], "http": [
                {"match": [{"uri": {"prefix": "/"}}, {"queryParams": {"v": {"exact": "1"}}}], "route": [{"destination": to, "weight": 1}]},
                {"route": [{"destination": to, "weight": 1}, {"destination": to, "weight": 2}]}]}),
            ("DestinationRule", 2..=4) => json!({"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
            ("DestinationRule", _) => json!({"host": host,
                "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 1}}},
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2"}]}),
            ("PeerAuthentication", 2..=4) => json!({"mtls": {"mode": "STRICT"}}),
            ("PeerAuthentication", _) => json!({"selector": {"matchLabels": {"app": "a"}},
                "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
            ("AuthorizationPolicy", 2..=4) => json!({"selector": {"matchLabels": {"app": "a"}}, "action": "DENY",
                "rules": [{"to": [{"operation": {"paths": ["/a"], "ports": ["80"]}}]}]}),
            ("AuthorizationPolicy", _) => json!({"rules": [
                {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/a"]}}],
                    "when": [{"key": "request.headers[x-a]", "values": ["b*"]}]},
                {"from": [{"source": {"serviceAccounts": ["a"], "ipBlocks": ["10.0.0.0/8"]}}]}]}),
            ("ServiceEntry", n) => {
                json!({"hosts": [self.of(&["out.example", "a.shop.svc.cluster.local", "*.wild.example"])],
                "location": self.of(&["MESH_INTERNAL", "MESH_EXTERNAL"]),
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 9000, "name": "tcp", "protocol": "TCP"}],
                "resolution": if n < 5 { "STATIC" } else { "NONE" },
                "endpoints": if n < 5 { json!([{"address": "10.7.0.1", "ports": {"http": 8080}}]) } else { json!([]) }})
            }
            ("WorkloadEntry", _) => json!({"address": "10.7.0.2", "labels": {"app": "a"}, "serviceAccount": "vm"}),
            ("Sidecar", 2..=4) => {
                json!({"outboundTrafficPolicy": {}, "egress": [{"hosts": ["./*", "shop/a.shop.svc.cluster.local"]}]})
            }
            ("Sidecar", _) => {
                json!({"workloadSelector": {"labels": {"app": "a"}}, "egress": [{"hosts": ["*/*", "~shop/*"]}],
                "ingress": [{"port": {"number": 8080, "protocol": "HTTP"}, "defaultEndpoint": "127.0.0.1:9000"}]})
            }
            _ => return whole(&self.value(schema, "spec")),
        };
        for _ in 0..CHANGES {
            let mut next = spec.clone();
            self.change(&mut next, schema, "spec");
            if is_valid(&whole(&next)) {
                spec = next;
            }
        }
        whole(&spec)
    }

    /// Replaces something at a random place.
    fn change(&mut self, value: &mut Value, schema: &Value, field: &str) {
        match (value, schema["properties"].as_object()) {
            (Value::Object(object), Some(properties)) if !properties.is_empty() => {
                let n = self.rng.random_range(0..properties.len());
                let (name, inner) = properties.iter().nth(n).expect("within the length");
                match object.get_mut(name) {
                    Some(old) if self.rng.random_range(0..4) > 0 => self.change(old, inner, name),
                    _ => drop(object.insert(name.clone(), self.value(inner, name))),
                }
            }
            (Value::Array(items), _) if !items.is_empty() && self.rng.random_range(0..4) > 0 => {
                let n = self.rng.random_range(0..items.len());
                self.change(&mut items[n], &schema["items"], field);
            }
            (Value::Array(items), _) => items.push(self.value(&schema["items"], field)),
            (other, _) => *other = self.value(schema, field),
        }
    }

    fn of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.rng.random_range(0..texts.len())]
    }

    fn value(&mut self, schema: &Value, field: &str) -> Value {
        if let Some(allowed) = schema["enum"].as_array() {
            return allowed[self.rng.random_range(0..allowed.len())].clone();
        }
        match schema["type"].as_str() {
            Some("object") => {
                let mut object = Map::new();
                if let Some(inner) = schema.get("additionalProperties") {
                    for _ in 0..self.rng.random_range(0..3) {
                        object.insert(self.key(field).to_owned(), self.value(inner, field));
                    }
                }
                let required = schema["required"].as_array().cloned().unwrap_or_default();
                let properties = schema["properties"].as_object();
                // One or two of them, so that objects end.
                let few = self.rng.random_range(1..=2);
                let of = properties.map_or(1, Map::len);
                for (name, inner) in properties.into_iter().flatten() {
                    if required.contains(&json!(name)) || self.rng.random_range(0..of) < few {
                        object.insert(name.clone(), self.value(inner, name));
                    }
                }
                Value::Object(object)
            }
            Some("array") => (0..self.rng.random_range(0..3))
                .map(|_| self.value(&schema["items"], field))
                .collect(),
            Some("integer") => {
                let low = schema["minimum"].as_i64().unwrap_or(0);
                let high = schema["maximum"].as_f64().map_or(i64::MAX, saturating);
                let pool = [low, high, 0, 1, 2, 80, 100, 443, 503, 9000];
                json!(pool[self.rng.random_range(0..pool.len())].clamp(low, high))
            }
            Some("number") => json!([0.0, 0.0001, 33.3, 100.0][self.rng.random_range(0..4)]),
            Some("boolean") => json!(self.rng.random_range(0..2) == 0),
            _ if schema["pattern"].is_string() => json!(self.of(&["1ms", "1.5s", "1h10m", "87600h", "0s"])),
            _ => json!(self.text(field)),
        }
    }

    fn key(&mut self, field: &str) -> &'static str {
        match field {
            "portLevelMtls" => self.of(&["8080", "80", "65535"]),
            "labels" | "matchLabels" | "sourceLabels" => self.of(&["app", "version", "topology.kubernetes.io/zone"]),
            _ => self.of(&["x-a", "x-a", "x-b", "Host", ":path", "cookie"]),
        }
    }

    fn text(&mut self, field: &str) -> String {
        let pool: &[&str] = match field {
            "host" | "hosts" | "sniHosts" | "authority" | "sni" => HOSTS,
            "subset" | "name" => &["v1", "v2", "none"],
            "labels" | "matchLabels" | "sourceLabels" => &["a", "v1", "v2", ""],
            "exportTo" => &["*", "*", "*", ".", "shop"],
            "paths" | "notPaths" => &["/a", "/a*", "*b", "*", "/a/{*}/b", "/a/{**}", "/{**}/{*}"],
            "ports" | "notPorts" => &["80", "0", "65535", "http"],
            "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks" => &["10.1.2.3", "::/0", "10.0.0.0/8"],
            "serviceAccounts" | "notServiceAccounts" => &["a", "shop/a", "a/b/c"],
            "principals" | "notPrincipals" => &["*", "cluster.local/ns/shop/sa/a", "*/ns/shop/sa/a", "td*/ns/a/sa/b"],
            "trustDomains" | "notTrustDomains" => &["cluster.local", "*.local", "td*"],
            "key" => &[
                "request.headers[x-a]",
                "source.ip",
                "destination.port",
                "source.principal",
                "source.serviceAccount",
                "request.auth.claims[a]",
                "connection.sni",
            ],
            "values" | "notValues" => &["80", "10.0.0.0/8", "a", "*", "shop/a"],
            "gateways" => &["mesh", "mesh", "mesh", "mesh", "shop/gateway"],
            "sourceNamespace" | "namespace" => &["shop", "other"],
            "regex" | "match" => &["a.*", "(a)(b)?", "[^/]+", "\\d+"],
            "mode" => &[
                "STRICT",
                "PERMISSIVE",
                "DISABLE",
                "UNSET",
                "SIMPLE",
                "MUTUAL",
                "ISTIO_MUTUAL",
            ],
            "simple" => &["ROUND_ROBIN", "RANDOM", "PASSTHROUGH", "LEAST_CONN", "UNSPECIFIED"],
            "grpcStatus" => &["UNAVAILABLE", "OK"],
            "httpStatus" | "retryOn" => &["5xx,503", "connect-failure", "retriable-status-codes,404", ""],
            "allowMethods" | "method" => &["GET", "POST"],
            "destinationSubnets" => &["10.0.0.0/8", "10.96.1.1", "fd00::/64"],
            "scheme" => &["http", "https"],
            "set" | "add" | "remove" => &["x-a", "x-b", "%REQ(x)%", "'\"{}[]#&*!|>%%@`", "a\nb"],
            _ => &[
                "/",
                "/a/b",
                "a",
                "x-b",
                "é",
                "",
                "%REQ(x)%",
                "v:1",
                "a\nb",
                "\u{0}",
                "'\"{}[]#&*!|>%@`",
            ],
        };
        self.of(pool).to_owned()
    }
}

fn is_valid(value: &Value) -> bool {
    parse_object(value, true).is_ok_and(|object| object.validate().errors.is_empty())
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, as the name says")]
fn saturating(number: f64) -> i64 {
    number as i64
}

const HOSTS: &[&str] = &[
    "a",
    "a",
    "a.shop.svc.cluster.local",
    "headless",
    "a.other.svc.cluster.local",
    "*.local",
    "*.other.svc.cluster.local",
    "made.up.example",
    "10.96.1.1",
];

/// Enough to find what is wrong within days of runs, and few enough to run at each change.
const CASES: u32 = 24;
const CHANGES: usize = 60;
