//! What a change costs in a large mesh: time of a rendering and the steps that it did again.
//!
//! `cargo bench -p weft-operator --bench render -- [SERVICES PODS]`; by default 1,000 services and 5,000 pods.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_operator::render::{Renderer, Work};
use weft_operator::world::read::{Read, object};
use weft_operator::world::{Event, Settings, Store};

fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let services = numbers.first().copied().unwrap_or(1000);
    let pods = numbers.get(1).copied().unwrap_or(services * 5);
    let mut store = Store::new(Settings::default());
    for namespace in 0..(services / SERVICES_IN_NAMESPACE).max(1) {
        apply(&mut store, &self::namespace(namespace));
    }
    for n in 0..services {
        for value in service(n, pods / services) {
            apply(&mut store, &value);
        }
    }
    let mut renderer = Renderer::new();
    println!("{services} services, {pods} pods, a workload and a VirtualService for each service");
    measure("everything", &mut store, &mut renderer, None);
    measure("nothing", &mut store, &mut renderer, None);
    measure(
        "VirtualService for its namespace",
        &mut store,
        &mut renderer,
        Some(&route(0, ".", "5s")),
    );
    measure("the same again", &mut store, &mut renderer, Some(&route(0, ".", "6s")));
    measure(
        "VirtualService for all",
        &mut store,
        &mut renderer,
        Some(&route(0, "*", "7s")),
    );
    measure(
        "one endpoint",
        &mut store,
        &mut renderer,
        Some(&slice(0, pods / services, false)),
    );
    measure("one pod", &mut store, &mut renderer, Some(&pod(0, 0, "2")));
    measure("policy of one workload", &mut store, &mut renderer, Some(&policy()));
    measure("DestinationRule for all", &mut store, &mut renderer, Some(&rule()));
}

fn measure(what: &str, store: &mut Store, renderer: &mut Renderer, change: Option<&Value>) {
    if let Some(change) = change {
        apply(store, change);
    }
    let begun = Instant::now();
    let output = renderer.render(&store.world());
    let elapsed = begun.elapsed();
    assert!(output.failures.is_empty(), "{:?}", output.failures);
    let Work {
        verdicts,
        views,
        configs,
        hosts,
        namespaces,
    } = output.work;
    let bytes: usize = output
        .configs
        .values()
        .flat_map(|c| &c.shards)
        .flat_map(|shard| shard.values())
        .map(Vec::len)
        .sum();
    println!(
        "{what:<34} {:>10.1} ms  {verdicts} verdicts, {views} views, {configs} configurations, {hosts} hosts, \
         {namespaces} namespaces; {} keys, {} KiB",
        millis(elapsed),
        output.configs.len(),
        bytes >> 10
    );
    // It stays as long as somebody delivers it.
    drop(Arc::new(output));
}

fn millis(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

fn apply(store: &mut Store, value: &Value) {
    match object(value, "weft-system").expect("an object") {
        Read::Object(object) => store.apply(Event::Apply(object)),
        Read::Other => panic!("{value} is nothing to render"),
    };
}

fn place(n: usize) -> String {
    format!("ns-{}", n / SERVICES_IN_NAMESPACE)
}

fn namespace(n: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": format!("ns-{n}"), "labels": {"weft.dev/inject": "enabled"}}})
}

fn service(n: usize, pods: usize) -> Vec<Value> {
    let (name, namespace) = (format!("svc-{n}"), place(n));
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": format!("10.96.{}.{}", n / 250, n % 250 + 1), "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "grpc", "port": 9000}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": name, "version": "v1"}},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]}}}}),
        route(n, "*", "1s"),
        slice(n, pods, true),
    ];
    all.extend((0..pods).map(|m| pod(n, m, "1")));
    all
}

fn route(n: usize, export_to: &str, timeout: &str) -> Value {
    let name = format!("svc-{n}");
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": place(n), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"hosts": [name], "exportTo": [export_to], "http": [
            {"match": [{"uri": {"prefix": "/api"}, "headers": {"x-user": {"exact": "a"}}}],
                "timeout": timeout, "retries": {"attempts": 3}, "route": [{"destination": {"host": name, "port": {"number": 80}}}]},
            {"route": [{"destination": {"host": name, "port": {"number": 80}}}]}]}})
}

fn address(n: usize, m: usize) -> String {
    let number = n * 10 + m;
    format!(
        "10.{}.{}.{}",
        128 + number / 62_500,
        number / 250 % 250,
        number % 250 + 1
    )
}

fn slice(n: usize, pods: usize, ready: bool) -> Value {
    let name = format!("svc-{n}");
    let endpoint = |m: usize| json!({"addresses": [address(n, m)], "conditions": {"ready": ready || m > 0}});
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": place(n), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9000}],
        "endpoints": (0..pods).map(endpoint).collect::<Vec<_>>()})
}

fn pod(n: usize, m: usize, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("svc-{n}-{m}"), "namespace": place(n), "labels": {
            "app": format!("svc-{n}"), "version": format!("v{version}"), "security.istio.io/tlsMode": "istio"}},
        "spec": {"nodeName": format!("node-{}", (n + m) % 100), "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
        "status": {"podIP": address(n, m), "phase": "Running"}})
}

fn policy() -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "one", "namespace": place(0)},
        "spec": {"selector": {"matchLabels": {"app": "svc-0"}}, "mtls": {"mode": "STRICT"}}})
}

fn rule() -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "one", "namespace": place(0)},
        "spec": {"host": "svc-0", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 7}}}}})
}

const SERVICES_IN_NAMESPACE: usize = 20;
