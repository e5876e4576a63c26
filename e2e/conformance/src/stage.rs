//! The stage that scenarios play on: namespaces, services, pods, and a server outside of the cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::agent::PORT;

/// A workload of the stage.
struct Workload {
    namespace: &'static str,
    /// Name of the Deployment.
    name: &'static str,
    /// Label `app`, which answers go by.
    app: &'static str,
    version: &'static str,
    account: &'static str,
    replicas: u8,
    /// Word for it in `from`.
    word: Option<&'static str>,
    labels: &'static [(&'static str, &'static str)],
    /// Whether its containers declare their ports.
    declares: bool,
}

const fn server(namespace: &'static str, name: &'static str, app: &'static str, version: &'static str) -> Workload {
    Workload {
        namespace,
        name,
        app,
        version,
        account: app,
        replicas: 1,
        word: None,
        labels: &[],
        declares: true,
    }
}

const WORKLOADS: &[Workload] = &[
    Workload {
        replicas: 2,
        ..server("app", "echo-v1", "echo", "v1")
    },
    server("app", "echo-v2", "echo", "v2"),
    Workload {
        word: Some("solo"),
        ..server("app", "solo", "solo", "v1")
    },
    server("second", "other", "other", "o1"),
    server("plain", "legacy", "legacy", "p1"),
    Workload {
        word: Some("client"),
        labels: &[("role", "tester")],
        declares: false,
        ..server("app", "client", "client", "c1")
    },
    Workload {
        word: Some("client2"),
        declares: false,
        ..server("second", "client", "client", "c2")
    },
    Workload {
        word: Some("plain"),
        declares: false,
        ..server("plain", "client-plain", "client-plain", "p1")
    },
];

/// Name, port and target port of what each ordinary service offers.
const SERVICE_PORTS: &[(&str, u16, u16)] = &[
    ("http", 80, 8080),
    ("http-alt", 8081, 8081),
    ("grpc", 7070, 7070),
    ("http2", 7071, 7071),
    ("tcp", 9000, 9000),
    ("tcp-banner", 9001, 9001),
    ("plainname", 8082, 8082),
    ("unnamed", 9002, 9002),
    ("byproto", 8085, 8085),
    ("ghost", 8099, 8099),
    ("http-ghost", 8098, 8098),
];
const SERVICES: &[(&str, &str)] = &[
    ("app", "echo"),
    ("app", "solo"),
    ("second", "other"),
    ("plain", "legacy"),
];
/// Namespaces, and whether pods in them get sidecars.
const NAMESPACES: &[(&str, bool)] = &[
    ("app", true),
    ("second", true),
    (GATE_NAMESPACE, false),
    (OUTSIDE_NAMESPACE, false),
    (INGRESS, false),
    // Where the recorded mesh had its control plane.
    ("istio-system", false),
];
/// Namespace of the server outside.
pub(crate) const OUTSIDE_NAMESPACE: &str = "outside";
/// Namespace of the gateway.
const INGRESS: &str = "istio-ingress";
/// Name of the gateway: of its Deployment, service account and Service.
const GATEWAY: &str = "ingress";
/// Service port and target port of the gateway.
const GATEWAY_PORTS: &[(&str, u16, u16)] = &[
    ("http", 80, 8080),
    ("https", 443, 8443),
    ("tcp", 31400, 31400),
    ("tls", 15443, 15443),
];
/// Service of the agent that hands on to the others.
pub(crate) const GATE: &str = "gate";
/// Its namespace.
pub(crate) const GATE_NAMESPACE: &str = "plain";
/// Address of the server outside in local mode.
const EXTERNAL: &str = "10.244.0.1";
/// Range around it, whose other addresses nobody has.
pub(crate) const OUTSIDE: &str = "10.244.0.0/16";
/// Where pods of local mode are.
const PODS: &str = "10.99.0.0/24";
const EXTERNAL_NAMES: &str = "ext.example.com,tls.example.com,a.wild.example.com,b.wild.example.com";
const CERTIFICATE_NAMES: &str = "ext.example.com,tls.example.com,*.wild.example.com";

/// Names of all namespaces.
pub(crate) fn namespaces() -> Vec<&'static str> {
    NAMESPACES.iter().map(|(name, _)| *name).collect()
}

/// All objects but the server outside.
pub(crate) fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for (name, is_meshed) in NAMESPACES {
        let labels = if *is_meshed {
            json!({"istio-injection": "enabled"})
        } else {
            json!({})
        };
        out.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    }
    let mut accounts: Vec<_> = WORKLOADS.iter().map(|w| (w.namespace, w.account)).collect();
    accounts.push((INGRESS, GATEWAY));
    accounts.sort_unstable();
    accounts.dedup();
    for (namespace, name) in accounts {
        let metadata = json!({"namespace": namespace, "name": name});
        out.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
    }
    out.extend(WORKLOADS.iter().map(deployment));
    let ports: Vec<Value> = SERVICE_PORTS.iter().map(|port| service_port(*port)).collect();
    for (namespace, name) in SERVICES {
        out.push(service(
            namespace,
            name,
            &json!({"selector": {"app": name}, "ports": ports}),
        ));
    }
    let few = [("http", 80, 8080), ("tcp", 9000, 9000), ("grpc", 7070, 7070)].map(service_port);
    let headless = json!({"clusterIP": "None", "selector": {"app": "echo"}, "ports": few});
    out.push(service("app", "echo-headless", &headless));
    let empty = json!({"selector": {"app": "nobody"}, "ports": [service_port(("http", 80, 8080)), service_port(("tcp", 9000, 9000))]});
    out.push(service("app", "empty", &empty));
    for (name, target, port) in [
        ("alias", "echo.app.svc.cluster.local", 80),
        ("extname", "ext.example.com", 18080),
    ] {
        let spec = json!({"type": "ExternalName", "externalName": target, "ports": [{"name": "http", "port": port}]});
        out.push(service("app", name, &spec));
    }
    let gate = json!({"selector": {"app": "client-plain"}, "ports": [{"name": "tcp-agent", "port": PORT}]});
    out.push(service(GATE_NAMESPACE, GATE, &gate));
    out.push(gateway());
    let ports: Vec<Value> = GATEWAY_PORTS.iter().map(|port| service_port(*port)).collect();
    let front = json!({"selector": {"istio": "ingressgateway"}, "ports": ports});
    out.push(service(INGRESS, GATEWAY, &front));
    out
}

/// Services with an address of their own.
pub(crate) fn addressed() -> impl Iterator<Item = (&'static str, &'static str)> {
    SERVICES.iter().copied().chain([("app", "empty"), (INGRESS, GATEWAY)])
}

fn deployment(workload: &Workload) -> Value {
    let mut labels = json!({"app": workload.app, "version": workload.version});
    for (name, value) in workload.labels {
        labels[*name] = (*value).into();
    }
    let mut container = json!({
        "name": "app",
        "image": "weft-app:dev",
        "imagePullPolicy": "IfNotPresent",
        "command": [
            "weft-app", "serve", "--version", workload.version, "--half-way", "2000", "--agent", PORT.to_string(),
            "--http", "8080", "--http", "8081", "--http", "8082", "--http", "8085", "--http", "7070", "--http", "7071",
            "--tcp", "9000", "--tcp", "9002", "--banner", "9001",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 2},
    });
    if workload.declares {
        let ports = [8080, 8081, 8082, 8085, 7070, 7071, 9000, 9001, 9002].map(|n| json!({"containerPort": n}));
        container["ports"] = ports.to_vec().into();
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": workload.namespace, "name": workload.name},
        "spec": {
            "replicas": workload.replicas,
            "selector": {"matchLabels": {"app": workload.app, "version": workload.version}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "traffic.sidecar.istio.io/excludeInboundPorts": PORT.to_string(),
                        // By default it asks for more than a small node has for so many.
                        "sidecar.istio.io/proxyCPU": "10m",
                    },
                },
                "spec": {"serviceAccountName": workload.account, "containers": [container]},
            },
        },
    })
}

/// The server outside in local mode, at an address beside those of pods.
pub(crate) fn external_beside() -> Value {
    let mut pod = external(&[]);
    pod["metadata"]["annotations"] = json!({
        "local.weft.dev/outside-address": EXTERNAL,
        "local.weft.dev/outside-names": EXTERNAL_NAMES,
    });
    pod
}

/// The server outside on a node of a cluster, at the node's address.
pub(crate) fn external_on_node() -> Value {
    let mut pod = external(&["--address", "$(HOST)"]);
    pod["spec"]["hostNetwork"] = true.into();
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]);
    pod
}

fn external(further: &[&str]) -> Value {
    let ports = [
        "--http", "18080", "--http", "18081", "--tcp", "19000", "--banner", "19001", "--https", "18443",
    ];
    let names = [
        "--name",
        "external",
        "--version",
        "external",
        "--tls-names",
        CERTIFICATE_NAMES,
    ];
    let agent = PORT.to_string();
    let command = [&["weft-app", "serve", "--agent", &agent], &ports[..], &names, further].concat();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": OUTSIDE_NAMESPACE, "name": "external"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "app",
            "image": "weft-app:dev",
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 18080}, "periodSeconds": 2},
        }]},
    })
}

/// A pod that is a proxy and nothing else.
fn gateway() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": INGRESS, "name": GATEWAY},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"istio": "ingressgateway"}},
            "template": {
                "metadata": {
                    "labels": {"istio": "ingressgateway", "sidecar.istio.io/inject": "true"},
                    "annotations": {"inject.istio.io/templates": "gateway", "sidecar.istio.io/proxyCPU": "10m"},
                },
                "spec": {"serviceAccountName": GATEWAY, "containers": [{"name": "istio-proxy", "image": "auto"}]},
            },
        },
    })
}

fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

fn service_port((name, port, target): (&str, u16, u16)) -> Value {
    let mut out = json!({"name": name, "port": port, "targetPort": target});
    if name == "byproto" {
        out["appProtocol"] = "http".into();
    }
    out
}

/// What a pod of the stage is, by the name that answers give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) address: String,
}

/// Where everything is once the stage stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pods: Vec<Pod>,
    /// By `namespace/name`.
    services: BTreeMap<String, String>,
    external: String,
    range: String,
}

impl Places {
    /// `external` is the address of the server outside, `range` where the addresses of pods are.
    pub(crate) fn new(pods: Vec<Pod>, services: BTreeMap<String, String>, external: String, range: String) -> Self {
        Self {
            pods,
            services,
            external,
            range,
        }
    }

    /// Those of local mode.
    pub(crate) fn beside(pods: Vec<Pod>, services: BTreeMap<String, String>) -> Self {
        Self::new(pods, services, EXTERNAL.to_owned(), PODS.to_owned())
    }

    /// Address of the first pod of `namespace/app` or `namespace/app/version`.
    pub(crate) fn pod_address(&self, place: &str) -> Option<String> {
        let mut parts = place.split('/');
        let (namespace, app, version) = (parts.next()?, parts.next()?, parts.next());
        let fits = |w: &&Workload| {
            w.namespace == namespace && w.app == app && version.is_none_or(|version| w.version == version)
        };
        self.first(WORKLOADS.iter().find(fits)?)
    }

    /// Address of the client that a word of `from` names.
    pub(crate) fn client(&self, word: &str) -> Option<String> {
        if word == "external" {
            return Some(self.external.clone());
        }
        self.first(WORKLOADS.iter().find(|w| w.word == Some(word))?)
    }

    fn first(&self, workload: &Workload) -> Option<String> {
        let pod = self.pods.iter().find(|pod| is_of(pod, workload))?;
        Some(pod.address.clone())
    }

    pub(crate) fn service_address(&self, place: &str) -> Option<String> {
        self.services.get(place).cloned()
    }

    pub(crate) fn external(&self) -> &str {
        &self.external
    }

    /// Where the addresses of pods are.
    pub(crate) fn range(&self) -> &str {
        &self.range
    }

    /// Addresses of all echo servers.
    pub(crate) fn servers(&self) -> Vec<String> {
        let own = self
            .pods
            .iter()
            .filter(|pod| pod.namespace != INGRESS && pod.namespace != OUTSIDE_NAMESPACE);
        let own = own.map(|pod| pod.address.clone());
        own.chain([self.external.clone()]).collect()
    }

    /// `workload/version` for what an answer says of its server.
    pub(crate) fn word_of(&self, pod: &str, version: &str) -> String {
        if pod == "external" {
            return "external".to_owned();
        }
        let found = self.pods.iter().find(|p| p.name == pod);
        let workload = found.and_then(|p| WORKLOADS.iter().find(|w| is_of(p, w)));
        workload.map_or_else(|| format!("{pod}/{version}"), |w| format!("{}/{version}", w.app))
    }
}

/// By the names that a ReplicaSet gives its pods: two parts behind the Deployment's.
fn is_of(pod: &Pod, workload: &Workload) -> bool {
    let name = pod.name.rsplitn(3, '-').nth(2);
    pod.namespace == workload.namespace && name == Some(workload.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_deployment() {
        let pod = |namespace: &str, name: &str, address: &str| Pod {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            address: address.to_owned(),
        };
        let places = Places::beside(
            vec![
                pod("app", "echo-v2-5d9-abc", "10.99.0.4"),
                pod("second", "client-6f-xyz", "10.99.0.6"),
                pod("plain", "client-plain-6f-xyz", "10.99.0.7"),
            ],
            BTreeMap::new(),
        );
        assert_eq!(places.pod_address("app/echo/v2").as_deref(), Some("10.99.0.4"));
        assert_eq!(places.pod_address("app/echo/v1"), None);
        assert_eq!(places.client("client2").as_deref(), Some("10.99.0.6"));
        assert_eq!(places.client("plain").as_deref(), Some("10.99.0.7"));
        assert_eq!(places.word_of("echo-v2-5d9-abc", "v2"), "echo/v2");
        assert_eq!(places.word_of("external", "external"), "external");
    }
}
