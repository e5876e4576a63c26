//! A small mesh for tests of rendering.

use weft_bundle::wire::Bundle;

use super::{Output, Renderer};
use crate::world::read::{Read, object};
use crate::world::{Event, Settings, Store};

/// A mesh: namespaces `app` (client, `echo` with ports 80 http and 90 tcp), `other` and the root namespace.
pub(super) const STAGE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: app, labels: {app: client, tier: web}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: app}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client, tier: web}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: other}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: app}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: app}
spec:
  clusterIPs: [10.0.0.1]
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90}, {name: auto, port: 70}]
";

pub(super) fn render(documents: &str) -> Output {
    render_under(Settings::default(), documents)
}

/// As [`render`], where the operator is set up in another way.
pub(super) fn render_under(settings: Settings, documents: &str) -> Output {
    let mut store = Store::new(settings);
    for document in STAGE.split("\n---\n").chain(documents.split("\n---\n")) {
        if document.trim().is_empty() {
            continue;
        }
        let value: serde_json::Value = serde_yaml::from_str(document).expect("YAML");
        let Read::Object(object) = object(&value, "weft-system").expect("readable") else {
            panic!("of no use: {document}");
        };
        store.apply(Event::Apply(object));
    }
    let output = Renderer::new().render(&store.world());
    assert!(output.failures.is_empty(), "{:?}", output.failures);
    output
}

/// The bundle of workload `namespace/name`.
pub(super) fn bundle(output: &Output, workload: &str) -> Bundle {
    let (namespace, name) = workload.split_once('/').expect("namespace/name");
    let of = |bundle: &Bundle| bundle.workload.namespace == namespace && bundle.workload.name == name;
    let found = output.configs.values().map(|config| config.bundle()).find(of);
    found.unwrap_or_else(|| panic!("no {workload}"))
}

/// A DestinationRule: namespace, name, age in hours before noon, spec.
pub(super) fn rule(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: '{name}', namespace: \
         {namespace}, creationTimestamp: '2026-01-01T{:02}:00:00Z'}}\nspec: {spec}\n",
        12 - age
    )
}

/// A VirtualService, as [`rule`].
pub(super) fn virtual_service(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    rule(namespace, name, age, spec).replace("DestinationRule", "VirtualService")
}

/// A ServiceEntry, as [`rule`].
pub(super) fn service_entry(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    rule(namespace, name, age, spec).replace("DestinationRule", "ServiceEntry")
}

/// A Sidecar, as [`rule`].
pub(super) fn sidecar(namespace: &str, name: &str, age: u32, spec: &str) -> String {
    rule(namespace, name, age, spec).replace("DestinationRule", "Sidecar")
}

/// A Service `namespace/name` on a cluster address.
pub(super) fn service(id: &str, address: &str, ports: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    format!(
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIPs: \
         [{address}], selector: {{app: {name}}}, ports: [{ports}]}}\n"
    )
}

pub(super) fn mesh(text: &str) -> String {
    let config = serde_json::to_string(text).expect("text");
    format!(
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: weft, namespace: weft-system}}\ndata: {{mesh: {config}}}\n"
    )
}
