//! The operator against a real API server, named by KUBECONFIG. Each test has namespaces and a revision of its own, so
//! that tests and installations do not meet.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

struct Mesh {
    client: Client,
    control: String,
    shop: String,
    revision: String,
    operator: Option<Child>,
}

impl Mesh {
    async fn new(name: &str) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::try_default().await.expect("KUBECONFIG names a cluster");
        let id = format!("{name}-{}", std::process::id());
        let (control, shop) = (format!("weft-{id}"), format!("shop-{id}"));
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for (namespace, labels) in [(&control, json!({})), (&shop, json!({"weft.dev/rev": id}))] {
            let object = json!({"metadata": {"name": namespace, "labels": labels}});
            let object = serde_json::from_value(object).expect("a namespace");
            namespaces
                .create(&PostParams::default(), &object)
                .await
                .expect("a fresh namespace");
        }
        let mesh = Self {
            client,
            control,
            shop,
            revision: id,
            operator: None,
        };
        let deployment = json!({
            "metadata": {"name": "cart"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "cart"}},
                "template": {
                    "metadata": {"labels": {"app": "cart"}},
                    "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}]},
                },
            },
        });
        let api: Api<Deployment> = Api::namespaced(mesh.client.clone(), &mesh.shop);
        api.create(
            &PostParams::default(),
            &serde_json::from_value(deployment).expect("a deployment"),
        )
        .await
        .expect("created");
        let service = json!({
            // Other tests' configuration must not change with this one.
            "metadata": {"name": "cart", "annotations": {"networking.istio.io/exportTo": "."}},
            "spec": {"selector": {"app": "cart"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        let api: Api<Service> = Api::namespaced(mesh.client.clone(), &mesh.shop);
        api.create(
            &PostParams::default(),
            &serde_json::from_value(service).expect("a service"),
        )
        .await
        .expect("created");
        mesh
    }

    fn start(&mut self) {
        let program = env!("CARGO_BIN_EXE_weft-operator");
        let arguments = [
            "run",
            "--namespace",
            &self.control,
            "--revision",
            &self.revision,
            "--metrics-port",
            "0",
            "--bind",
            "127.0.0.1",
        ];
        self.operator = Some(
            Command::new(program)
                .args(arguments)
                .spawn()
                .expect("the operator starts"),
        );
    }

    /// As the kubelet ends it: SIGTERM, so that the Lease is released.
    async fn stop(&mut self) {
        let mut child = self.operator.take().expect("it runs");
        let ended = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(ended.success());
        eventually("the operator ends", Duration::from_secs(10), async || {
            child.try_wait().expect("waited for").map(drop)
        })
        .await;
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.shop)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.shop)
    }

    /// Resource versions of everything rendered, once the sample's objects are all there.
    async fn versions(&self) -> Option<BTreeMap<String, String>> {
        let managed = ListParams::default().labels(&format!("weft.dev/managed=true,weft.dev/rev={}", self.revision));
        let maps = self.maps().list(&managed).await.expect("listed");
        let secrets = self.secrets().list(&managed).await.expect("listed");
        let version = |name: String, version: Option<String>| (name, version.unwrap_or_default());
        let all: BTreeMap<String, String> = maps
            .iter()
            .map(|o| version(o.name_any(), o.resource_version()))
            .chain(secrets.iter().map(|o| version(o.name_any(), o.resource_version())))
            .collect();
        let has = |prefix: &str| all.keys().any(|name| name.starts_with(prefix));
        (has("weft-cfg-cart-") && has("weft-ep-") && has("weft-ca-root-cert") && has("weft.default")).then_some(all)
    }

    async fn config(&self) -> ConfigMap {
        let all = self.maps().list(&ListParams::default()).await.expect("listed");
        all.into_iter()
            .find(|m| m.name_any().starts_with("weft-cfg-cart-"))
            .expect("the key's ConfigMap is there")
    }

    /// Until the operator has settled: its watches have shown it its own writes.
    async fn settled(&self) -> BTreeMap<String, String> {
        eventually("the sample is rendered", Duration::from_secs(30), async || {
            self.versions().await
        })
        .await
    }

    async fn remove(mut self) {
        self.stop().await;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in [&self.control, &self.shop] {
            namespaces
                .delete(namespace, &DeleteParams::background())
                .await
                .expect("deleted");
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // A test that failed leaves no process behind.
        if let Some(child) = &mut self.operator {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Asks until there is an answer.
async fn eventually<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// spec: DLV-002, DLV-003, DLV-004, DLV-005, DLV-006, DLV-007, ID-042
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn what_is_rendered_appears_and_a_restart_writes_nothing() {
    let mut mesh = Mesh::new("restart").await;
    mesh.start();
    let before = mesh.settled().await;
    let labels = mesh.config().await.metadata.labels.expect("labels");
    assert_eq!(labels["app.kubernetes.io/managed-by"], "weft-operator");
    mesh.stop().await;
    mesh.start();
    // The second process leads, and something that it must write shows that it has compared everything before.
    let lease: Api<Lease> = Api::namespaced(mesh.client.clone(), &mesh.control);
    let holder = format!("process-{}", mesh.operator.as_ref().expect("it runs").id());
    eventually("the second process leads", Duration::from_secs(30), async || {
        let spec = lease
            .get(&format!("weft-operator-{}", mesh.revision))
            .await
            .ok()?
            .spec?;
        (spec.holder_identity.as_deref() == Some(&holder)).then_some(())
    })
    .await;
    mesh.maps()
        .delete("weft-ca-root-cert", &DeleteParams::default())
        .await
        .expect("deleted");
    let mut after = eventually("it writes what is missing", Duration::from_secs(10), async || {
        mesh.versions().await
    })
    .await;
    let rewritten = after.insert("weft-ca-root-cert".into(), before["weft-ca-root-cert"].clone());
    assert_ne!(rewritten, Some(before["weft-ca-root-cert"].clone()));
    assert_eq!(after, before, "a restart changes no object");
    mesh.remove().await;
}

// spec: DLV-081, DLV-086, ID-029, ID-030
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn what_is_deleted_comes_back_and_what_is_edited_is_reverted() {
    let mut mesh = Mesh::new("repair").await;
    mesh.start();
    mesh.settled().await;
    let limit = Duration::from_secs(5);
    let original = mesh.config().await;
    let name = original.name_any();

    mesh.maps()
        .delete(&name, &DeleteParams::default())
        .await
        .expect("deleted");
    let again = eventually("the deleted ConfigMap is back", limit, async || {
        mesh.maps().get_opt(&name).await.expect("read")
    })
    .await;
    assert_eq!(again.data, original.data);

    let edit = json!({"data": {"bundle.yaml": "forged", "extra": "by hand"}});
    mesh.maps()
        .patch(&name, &PatchParams::default(), &Patch::Merge(edit))
        .await
        .expect("edited");
    eventually("the edit is reverted", limit, async || {
        (mesh.maps().get(&name).await.ok()?.data == original.data).then_some(())
    })
    .await;

    let identity = mesh.secrets().get("weft.default").await.expect("the identity");
    let edit = json!({"data": {"key.pem": null}});
    mesh.secrets()
        .patch("weft.default", &PatchParams::default(), &Patch::Merge(edit))
        .await
        .expect("edited");
    let fresh = eventually("the identity is issued anew", limit, async || {
        let secret = mesh.secrets().get("weft.default").await.ok()?;
        secret.data.as_ref()?.contains_key("key.pem").then_some(secret)
    })
    .await;
    assert_ne!(fresh.data, identity.data, "a new key");
    assert_eq!(fresh.owner_references()[0].kind, "ServiceAccount");

    mesh.secrets()
        .delete("weft.default", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("the deleted identity is back", limit, async || {
        mesh.secrets().get_opt("weft.default").await.expect("read")
    })
    .await;
    mesh.remove().await;
}

// spec: DLV-008
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn an_object_of_somebody_else_is_not_taken_over() {
    let mut mesh = Mesh::new("foreign").await;
    let foreign = ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some("weft-ca-root-cert".into()),
            ..Default::default()
        },
        data: Some([("theirs".to_owned(), "kept".to_owned())].into()),
        ..ConfigMap::default()
    };
    mesh.maps()
        .create(&PostParams::default(), &foreign)
        .await
        .expect("created");
    mesh.start();
    // The configuration is written after everything else, the conflict included.
    eventually("the rest is written", Duration::from_secs(30), async || {
        let all = mesh.maps().list(&ListParams::default()).await.expect("listed");
        all.into_iter().find(|m| m.name_any().starts_with("weft-cfg-cart-"))
    })
    .await;
    let kept = mesh.maps().get("weft-ca-root-cert").await.expect("still there");
    assert_eq!(kept.data, foreign.data);
    assert_eq!(kept.labels().get("weft.dev/managed"), None);
    mesh.remove().await;
}
