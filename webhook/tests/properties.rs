//! Properties that hold for every pod.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use weft_bundle::key::{self, ContainerPort, InterceptionMode, KeyInputs, Owner, PodShape, Template};
use weft_webhook::{Context, InjectConfig, Namespace, decide, inject, uninject};

fn config(native: bool) -> InjectConfig {
    let values = format!("proxy: {{image: \"registry.example/weft-proxy:1\"}}\ninjection: {{nativeSidecar: {native}}}");
    InjectConfig::parse("", &values, "").expect("valid settings")
}

fn context() -> Context<'static> {
    Context {
        namespace: "shop",
        native_supported: true,
        ..Context::default()
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9-]{0,8}",
        Just("auto".to_owned()),
        Just("true".to_owned()),
        Just("weft-proxy".to_owned()),
        Just("istio-proxy".to_owned()),
        Just("weft-identity".to_owned()),
        Just("8080".to_owned()),
        Just("{\"containers\":[{\"name\":\"x\"}],\"volumes\":[\"v\"],\"statusPort\":15020}".to_owned()),
        "\\PC{0,12}",
    ]
}

/// Any JSON, with the field names that injection looks at.
fn anything() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("labels"),
        Just("annotations"),
        Just("containers"),
        Just("initContainers"),
        Just("volumes"),
        Just("name"),
        Just("image"),
        Just("env"),
        Just("ports"),
        Just("containerPort"),
        Just("volumeMounts"),
        Just("livenessProbe"),
        Just("httpGet"),
        Just("lifecycle"),
        Just("securityContext"),
        Just("weft.dev/status"),
        Just("weft.dev/overrides"),
        Just("proxy.istio.io/config"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((field.clone(), inner), 0..5).prop_map(|fields| {
                Value::Object(
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

fn probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        Just(json!("web")),
        Just(json!("other")),
        (1_u16..).prop_map(|port| json!(port))
    ];
    (port, 0..4).prop_map(|(port, kind)| match kind {
        0 => json!({"httpGet": {"path": "/", "port": port}, "timeoutSeconds": 3}),
        1 => json!({"tcpSocket": {"port": port}}),
        2 => json!({"grpc": {"port": 9, "service": "s"}}),
        _ => json!({"exec": {"command": ["true"]}}),
    })
}

fn container(name: String) -> impl Strategy<Value = Value> {
    (
        prop::option::of(probe()),
        prop::option::of(probe()),
        prop::option::of(1_u16..),
        prop::bool::ANY,
    )
        .prop_map(move |(live, hook, port, image)| {
            let mut container = Map::from_iter([("name".to_owned(), json!(name))]);
            container.insert("image".to_owned(), json!(if image { "auto" } else { "app:1" }));
            container.insert("unknownField".to_owned(), json!({"nested": [1, 2.5, null]}));
            container.extend(live.map(|probe| ("livenessProbe".to_owned(), probe)));
            container.extend(hook.map(|probe| ("lifecycle".to_owned(), json!({"preStop": probe}))));
            container.extend(port.map(|port| ("ports".to_owned(), json!([{"name": "web", "containerPort": port}]))));
            Value::Object(container)
        })
}

/// Pods as an API server lets them through.
fn pod() -> impl Strategy<Value = Value> {
    let annotation = prop_oneof![
        Just(("prometheus.io/port".to_owned(), "9102".to_owned())),
        Just(("prometheus_io_scrape".to_owned(), "true".to_owned())),
        Just(("prometheus.io/scrape".to_owned(), "false".to_owned())),
        Just(("weft.dev/native-sidecar".to_owned(), "false".to_owned())),
        Just(("weft.dev/skip-probe-rewrite".to_owned(), "a".to_owned())),
        Just(("weft.dev/status-port".to_owned(), "0".to_owned())),
        Just(("weft.dev/status-port".to_owned(), "19020".to_owned())),
        Just(("weft.dev/exclude-inbound-ports".to_owned(), "8080".to_owned())),
        Just(("inject.istio.io/templates".to_owned(), "gateway".to_owned())),
        Just(("proxy.istio.io/config".to_owned(), "interceptionMode: NONE".to_owned())),
        Just((
            "weft.dev/user-volume".to_owned(),
            "{\"extra\":{\"emptyDir\":{}}}".to_owned()
        )),
        ("example.com/[a-z]{1,5}", "[a-z]{0,5}"),
    ];
    let label = prop_oneof![
        Just(("app".to_owned(), "shop".to_owned())),
        Just(("version".to_owned(), "v1".to_owned())),
        Just(("pod-template-hash".to_owned(), "abc".to_owned())),
        ("[a-z]{1,5}", "[a-z]{0,5}"),
    ];
    const NAMES: &[&str] = &["a", "b", "weft-proxy", "istio-proxy", "weft-init"];
    let containers = prop::sample::subsequence(NAMES, 0..=3).prop_flat_map(|names| {
        names
            .into_iter()
            .map(|name| container(name.to_owned()))
            .collect::<Vec<_>>()
    });
    let init = prop::sample::subsequence(&["c", "d"][..], 0..=2).prop_flat_map(|names| {
        names
            .into_iter()
            .map(|name| container(name.to_owned()))
            .collect::<Vec<_>>()
    });
    (
        prop::collection::vec(annotation, 0..4),
        prop::collection::vec(label, 0..4),
        containers,
        init,
        prop::bool::ANY,
    )
        .prop_map(|(annotations, labels, containers, init, owned)| {
            let annotations: BTreeMap<_, _> = annotations.into_iter().collect();
            let labels: BTreeMap<_, _> = labels.into_iter().collect();
            let mut pod = json!({
                "metadata": {"generateName": "shop-abc-", "annotations": annotations, "labels": labels},
                "spec": {"containers": containers, "initContainers": init, "futureField": [{"kept": 1}]},
            });
            if owned {
                pod["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-abc", "controller": true}]);
            }
            pod
        })
}

/// Replaces the `n`th value of a pod, counted from the outside in.
fn replace(pod: &mut Value, n: &mut usize, with: &Value) {
    if *n == 0 {
        *pod = with.clone();
    }
    *n = n.wrapping_sub(1);
    match pod {
        Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| replace(value, n, with)),
        Value::Array(items) => items.iter_mut().for_each(|value| replace(value, n, with)),
        _ => {}
    }
}

/// The key as the operator computes it: from the template, without the webhook's code.
fn key_of_template(pod: &Value) -> String {
    let strings = |path: &str| -> BTreeMap<String, String> {
        pod.pointer(path)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect()
    };
    let (labels, annotations) = (strings("/metadata/labels"), strings("/metadata/annotations"));
    let owner = pod.pointer("/metadata/ownerReferences/0").map(|_| Owner {
        kind: "ReplicaSet",
        name: "shop-abc",
    });
    let (_, workload) = key::workload_name(owner, &labels, "", "shop-abc-");
    let mut ports = Vec::new();
    for list in ["/spec/containers", "/spec/initContainers"] {
        for container in pod.pointer(list).and_then(Value::as_array).into_iter().flatten() {
            let of = |field: &str| container[field].as_str().unwrap_or_default();
            if !key::pod::is_user_container(of("name"), of("image")) {
                continue;
            }
            for port in container["ports"].as_array().into_iter().flatten() {
                ports.push(ContainerPort {
                    name: port["name"].as_str().unwrap_or_default().to_owned(),
                    port: u16::try_from(port["containerPort"].as_u64().unwrap_or_default()).unwrap_or_default(),
                    protocol: "TCP".to_owned(),
                });
            }
        }
    }
    let template: Template = key::pod::template(&annotations);
    KeyInputs::new(&PodShape {
        namespace: "shop",
        workload: &workload,
        service_account: "",
        revision: "",
        labels: &labels,
        annotations: &annotations,
        ports: &ports,
        interception: key::pod::interception_mode(&annotations, InterceptionMode::Redirect),
        template,
        ignored_labels: &[],
    })
    .key()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    // spec: OPS-191
    #[test]
    fn no_json_makes_injection_panic(raw in anything(), native in any::<bool>()) {
        let labels = BTreeMap::new();
        let _ = decide(Namespace { name: "shop", labels: Some(&labels) }, &raw, &config(native));
        let _ = uninject(&raw);
        if let Ok(injected) = inject(&raw, &context(), &config(native)) {
            let mut patched = raw;
            json_patch::patch(&mut patched, &injected.patch).expect("the patch fits");
            prop_assert_eq!(patched, injected.pod);
        }
    }

    // spec: OPS-191, INJ-120
    #[test]
    fn no_value_anywhere_in_a_pod_makes_injection_panic(raw in pod(), other in anything(), n in 0_usize..80, native in any::<bool>()) {
        let config = config(native);
        let mut broken = raw.clone();
        replace(&mut broken, &mut n.clone(), &other);
        let _ = decide(Namespace { name: "shop", labels: None }, &broken, &config);
        // The same within a pod that was injected: status, stored overrides, rewritten probes.
        let mut injected = inject(&raw, &context(), &config).map_or(raw, |injected| injected.pod);
        replace(&mut injected, &mut (n * 4), &other);
        for pod in [broken, injected] {
            let _ = uninject(&pod);
            let Ok(once) = inject(&pod, &context(), &config) else { continue };
            let mut patched = pod;
            json_patch::patch(&mut patched, &once.patch).expect("the patch fits");
            prop_assert_eq!(&patched, &once.pod);
        }
    }

    // spec: INJ-120, INJ-122, INJ-124, INJ-100, DLV-010
    #[test]
    fn injecting_twice_is_injecting_once_and_the_key_is_the_templates(raw in pod(), native in any::<bool>()) {
        let config = config(native);
        let once = match inject(&raw, &context(), &config) {
            Ok(injected) => injected,
            Err(refusal) => return Err(TestCaseError::reject(refusal.to_string())),
        };
        let twice = inject(&once.pod, &context(), &config).expect("injects again");
        prop_assert_eq!(serde_json::to_string(&once.pod).unwrap(), serde_json::to_string(&twice.pod).unwrap());
        prop_assert!(twice.patch.0.is_empty());
        let mut patched = raw.clone();
        json_patch::patch(&mut patched, &once.patch).expect("the patch fits");
        prop_assert_eq!(&patched, &once.pod);
        prop_assert_eq!(&once.pod["spec"]["futureField"], &raw["spec"]["futureField"]);
        prop_assert_eq!(&once.key, &key_of_template(&raw));
        prop_assert_eq!(once.key, key_of_template(&once.pod));
    }

    // spec: OPS-191, INJ-210
    #[test]
    fn every_review_is_answered_with_its_uid(object in anything(), kind in 0_usize..6, other in anything(), n in 0_usize..40) {
        let kinds = ["Pod", "VirtualService", "DestinationRule", "Gateway", "PeerAuthentication", "ConfigMap"];
        let group = ["v1", "networking.istio.io/v1", "networking.istio.io/v1", "networking.istio.io/v1", "security.istio.io/v1", "v1"];
        let mut object = json!({
            "apiVersion": group[kind],
            "kind": kinds[kind],
            "metadata": {"name": "weft", "namespace": "shop"},
            "spec": {
                "hosts": ["a"],
                "host": "a",
                "http": [{"route": [{"destination": {"host": "a"}, "weight": 1}], "timeout": "1s", "match": [{"uri": {"prefix": "/"}}]}],
                "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}, "outlierDetection": {"interval": "1s"}},
                "servers": [{"port": {"number": 80, "protocol": "HTTP", "name": "http"}, "hosts": ["*"]}],
                "mtls": {"mode": "STRICT"},
                "selector": {"matchLabels": {"a": "b"}},
                "more": object,
            },
            "data": {"mesh": "trustDomain: example.org"},
        });
        replace(&mut object, &mut n.clone(), &other);
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "u", "kind": {"kind": kinds[kind]}, "operation": "CREATE", "object": object},
        });
        let request = weft_webhook::admission::Request::new(&review).expect("a review");
        for answer in [request.inject(&config(true), true), request.validate()] {
            prop_assert_eq!(&answer.review["response"]["uid"], "u");
            prop_assert!(answer.review["response"]["allowed"].is_boolean());
        }
    }

    // spec: OPS-191
    #[test]
    fn no_json_makes_reading_a_review_panic(raw in anything()) {
        let wrapped = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": raw});
        for review in [raw, wrapped] {
            if let Ok(request) = weft_webhook::admission::Request::new(&review) {
                let _ = (request.inject(&config(false), false), request.validate(), request.node_name());
            }
        }
    }

    // spec: INJ-123, INJ-120
    #[test]
    fn a_container_that_another_webhook_adds_in_between_is_as_if_it_had_been_there(raw in pod(), native in any::<bool>()) {
        let config = config(native);
        let Ok(once) = inject(&raw, &context(), &config) else { return Err(TestCaseError::reject("refused")) };
        let added = json!({"name": "late", "image": "late:1", "livenessProbe": {"httpGet": {"path": "/", "port": 80}}});
        let add = |pod: &Value| {
            let mut pod = pod.clone();
            pod["spec"]["containers"].as_array_mut().expect("a list").push(added.clone());
            pod
        };
        let after = inject(&add(&once.pod), &context(), &config).expect("injects again");
        let before = inject(&add(&raw), &context(), &config).expect("injects");
        prop_assert_eq!(&after.pod["spec"], &before.pod["spec"]);
    }
}
