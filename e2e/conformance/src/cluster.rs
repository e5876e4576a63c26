//! The mesh of the cluster that KUBECONFIG names, where Weft is installed: the stage is deployed into it, scenarios are
//! objects that come and go through its API.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod as ApiPod, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use weft_e2e::cluster::is_ready;
use weft_e2e::sample::{TEST_LABEL, remove_namespace};
use weft_e2e::{Cluster, until};

use crate::agent::{Agents, PORT};
use crate::mesh::Applied;
use crate::stage::{self, Places, Pod};

/// The stage in a cluster.
pub(crate) struct Mesh {
    cluster: Cluster,
    /// Ends with the mesh.
    _forward: Child,
    kinds: HashMap<GroupVersionKind, Option<(ApiResource, Scope)>>,
    /// Objects of the scenario in force.
    present: Vec<Value>,
    marks: u32,
    pub(crate) agents: Agents,
    pub(crate) places: Places,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Deploys the stage and waits until all of it is ready.
    pub(crate) async fn start() -> Result<Self> {
        let cluster = Cluster::connect().await?;
        eprintln!("the stage, in namespaces {}", stage::namespaces().join(", "));
        remove_stage(&cluster).await?;
        let mut objects = stage::objects();
        objects.push(stage::external_on_node());
        for object in objects.iter_mut().filter(|object| object["kind"] == "Namespace") {
            object["metadata"]["labels"][TEST_LABEL] = "true".into();
        }
        let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
        cluster.apply_server_side(&documents.join("\n---\n")).await?;
        for object in objects.iter().filter(|object| object["kind"] == "Deployment") {
            let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
            cluster.rolled_out(part("namespace"), part("name")).await?;
        }
        let places = look_around(&cluster).await?;
        let (forward, gate) = forward().await?;
        Ok(Self {
            cluster,
            _forward: forward,
            kinds: HashMap::new(),
            present: Vec::new(),
            marks: 0,
            agents: Agents { gate },
            places,
        })
    }

    /// Puts objects in the place of the last scenario's and waits until every proxy has what follows from them.
    pub(crate) async fn replace(&mut self, objects: &[Value]) -> Result<Applied> {
        for object in std::mem::take(&mut self.present) {
            self.delete(&object).await?;
        }
        let mut applied = Applied::default();
        for object in objects {
            if let Some(reason) = self.apply(object).await? {
                applied.refused.insert(word(object), reason);
            } else {
                self.present.push(object.clone());
            }
        }
        self.settle().await?;
        // Endpoints of a new Service come from another controller than Weft's.
        if objects.iter().any(|object| object["kind"] == "Service") {
            sleep(ENDPOINTS).await;
            self.settle().await?;
        }
        Ok(applied)
    }

    /// Waits until every proxy has what was rendered from all that was said before: a mark that concerns them all is
    /// reconciled then.
    async fn settle(&mut self) -> Result<()> {
        // Kinds are watched apart from each other, so the mark could overtake.
        sleep(OVERTAKING).await;
        self.marks += 1;
        let mark = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"namespace": stage::OUTSIDE_NAMESPACE, "name": "mark"},
            "spec": {
                "hosts": [format!("mark-{}.invalid", self.marks)],
                "http": [{"directResponse": {"status": 404}}],
            },
        });
        let api = self
            .api(&mark)
            .await?
            .context("the cluster has no VirtualServices: install Weft")?;
        let parameters = PatchParams::apply(MANAGER).force();
        let generation = api
            .patch("mark", &parameters, &Patch::Apply(&mark))
            .await?
            .metadata
            .generation;
        until("all proxies have the objects", SETTLED, async || {
            let status = api.get("mark").await?.data["status"].clone();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let is_reconciled = conditions.iter().any(|condition| {
                condition["type"] == "Reconciled"
                    && condition["status"] == "True"
                    && condition["observedGeneration"].as_i64() == generation
            });
            Ok(is_reconciled.then_some(()))
        })
        .await
    }

    /// Why the API server refuses an object; `None` where it takes it, or does not know its kind.
    async fn apply(&mut self, object: &Value) -> Result<Option<String>> {
        let Some(api) = self.api(object).await? else {
            eprintln!("{} is of no kind that the cluster knows, and not used", word(object));
            return Ok(None);
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let parameters = PatchParams::apply(MANAGER).force();
        match api.patch(name, &parameters, &Patch::Apply(object)).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => Ok(Some(status.message.clone())),
            Err(error) => Err(error).with_context(|| format!("apply {}", word(object))),
        }
    }

    async fn delete(&mut self, object: &Value) -> Result<()> {
        let Some(api) = self.api(object).await? else {
            return Ok(());
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete {}", word(object))),
        }
    }

    /// The API of an object's kind in its namespace; `None` where the cluster does not know it.
    async fn api(&mut self, object: &Value) -> Result<Option<Api<DynamicObject>>> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (group, version) = text("/apiVersion")
            .rsplit_once('/')
            .unwrap_or(("", text("/apiVersion")));
        let kind = GroupVersionKind::gvk(group, version, text("/kind"));
        let client = self.cluster.client();
        if !self.kinds.contains_key(&kind) {
            let known = match pinned_kind(&client, &kind).await {
                Ok((resource, abilities)) => Some((resource, abilities.scope)),
                Err(kube::Error::Discovery(_)) => None,
                Err(kube::Error::Api(status)) if status.code == 404 => None,
                Err(error) => return Err(error).with_context(|| format!("look for kind {}", kind.kind)),
            };
            self.kinds.insert(kind.clone(), known);
        }
        let known = self.kinds.get(&kind).and_then(Option::as_ref);
        Ok(known.map(|(resource, scope)| match scope {
            Scope::Namespaced => Api::namespaced_with(client, text("/metadata/namespace"), resource),
            Scope::Cluster => Api::all_with(client, resource),
        }))
    }

    /// Takes the stage away.
    pub(crate) async fn stop(self) -> Result<()> {
        remove_stage(&self.cluster).await
    }
}

/// Where pods and services are.
async fn look_around(cluster: &Cluster) -> Result<Places> {
    let outside = cluster.api::<ApiPod>(stage::OUTSIDE_NAMESPACE);
    let external = until("the server outside is ready", READY, async || {
        Ok(outside.get_opt("external").await?.filter(is_ready))
    })
    .await?;
    let external = external.status.and_then(|status| status.host_ip);
    let mut pods = Vec::new();
    for namespace in stage::namespaces() {
        for pod in cluster.pods(namespace, "").await? {
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
            pods.push(Pod {
                name: pod.name_any(),
                namespace: namespace.to_owned(),
                address: address.with_context(|| format!("{namespace}/{} has no address", pod.name_any()))?,
            });
        }
    }
    let mut services = BTreeMap::new();
    for (namespace, name) in stage::addressed() {
        let service = cluster.api::<Service>(namespace).get(name).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip);
        services.insert(
            format!("{namespace}/{name}"),
            address.with_context(|| format!("{namespace}/{name} has no address"))?,
        );
    }
    let nodes: Api<Node> = Api::all(cluster.client());
    let nodes = nodes.list(&ListParams::default()).await.context("list nodes")?;
    let range = nodes.items.into_iter().find_map(|node| node.spec?.pod_cidr);
    Ok(Places::new(
        pods,
        services,
        external.context("the server outside has no address")?,
        range.context("no node tells the range of its pods")?,
    ))
}

/// A way from here to the agent that hands on.
async fn forward() -> Result<(Child, SocketAddr)> {
    let gate = format!("service/{}", stage::GATE);
    let mut child = Command::new("kubectl")
        .args(["-n", stage::GATE_NAMESPACE, "port-forward", &gate, &format!(":{PORT}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("run kubectl")?;
    let mut lines = BufReader::new(child.stdout.take().context("standard output of kubectl")?).lines();
    let line = timeout(READY, lines.next_line())
        .await
        .context("kubectl port-forward")??;
    let line = line.context("kubectl port-forward ended")?;
    // `Forwarding from 127.0.0.1:PORT -> 15999`
    let port = line.split(" -> ").next().and_then(|before| before.rsplit(':').next());
    let port = port.and_then(|port| port.parse().ok());
    let port: u16 = port.with_context(|| format!("kubectl port-forward says {line:?}"))?;
    // It says a line for each connection, and must find somebody who reads it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

async fn remove_stage(cluster: &Cluster) -> Result<()> {
    for namespace in stage::namespaces() {
        let all = ["get", "namespace", namespace, "--ignore-not-found", "-o", "json"];
        let found = cluster.kubectl(&all).await?;
        if found.is_empty() {
            continue;
        }
        let found: Value = serde_json::from_str(&found).context("a namespace as JSON")?;
        ensure!(
            found["metadata"]["labels"][TEST_LABEL] == "true",
            "the cluster has a namespace {namespace} that is not of these tests: the stage needs the name"
        );
        remove_namespace(cluster, namespace).await?;
        cluster
            .kubectl(&[
                "wait",
                "--for=delete",
                &format!("namespace/{namespace}"),
                "--timeout=120s",
            ])
            .await?;
    }
    Ok(())
}

/// `Kind/name`.
fn word(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}

const MANAGER: &str = "weft-conformance";
const READY: Duration = Duration::from_secs(60);
const SETTLED: Duration = Duration::from_secs(60);
const OVERTAKING: Duration = Duration::from_millis(200);
const ENDPOINTS: Duration = Duration::from_secs(1);
