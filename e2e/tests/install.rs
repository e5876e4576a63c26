//! Installing, and taking away again: on a cluster where Weft is not installed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, Client};
use weft_e2e::cluster::is_ready;
use weft_e2e::sample::{namespace, pod, ready, remove_namespace, repository};
use weft_e2e::{Cluster, until};

// spec: OPS-003, OPS-009, OPS-061, OPS-062, OPS-065, OPS-170, DLV-132..DLV-135, ID-028, INJ-104, INJ-201
#[tokio::test]
#[ignore = "needs a cluster without Weft: make e2e"]
async fn one_apply_brings_weft_and_meshed_pods_and_its_removal_leaves_nothing_behind() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let present = objects_at_rest(&cluster.client()).await?;
    let weft: Vec<&String> = present.iter().filter(|o| is_of_weft(o)).collect();
    ensure!(
        weft.is_empty(),
        "Weft is installed already, or left something behind: {weft:?}"
    );

    let crds = install_kinds(&cluster).await?;
    let shop = namespace(&cluster, "first", true).await?;
    let all = [rendered(&cluster, &overlay()).await?, workload(&shop)].join("\n---\n");
    cluster.apply_server_side(&all).await?;
    // Refused until the injector answers, held until it is configured: nobody has to do anything.
    let pods = cluster.api::<Pod>(&shop);
    until(
        "a pod of the same apply is ready",
        Duration::from_secs(180),
        async || {
            let list = pods.list(&ListParams::default()).await?;
            Ok(list.iter().find(|p| is_ready(p)).map(drop))
        },
    )
    .await?;
    for pod in pods.list(&ListParams::default()).await? {
        let containers = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref());
        let is_meshed = containers.unwrap_or_default().iter().any(|c| c.name == "weft-proxy");
        ensure!(is_meshed, "{} has no sidecar", pod.name_any());
    }

    // Once more changes nothing, ...
    for deployment in ["weft-operator", "weft-injector"] {
        cluster.rolled_out("weft-system", deployment).await?;
    }
    let before = versions(&cluster).await?;
    let said = cluster.apply_server_side(&all).await?;
    ensure!(said.lines().all(|l| l.ends_with("serverside-applied")), "{said}");
    let after = versions(&cluster).await?;
    let changed: Vec<&String> = after.symmetric_difference(&before).collect();
    ensure!(changed.is_empty(), "a second apply changed something: {changed:#?}");
    // ... and what the operator filled in is no difference to what was applied.
    let diff = ["diff", "--server-side", "-f", "-"];
    let diff = cluster.try_kubectl(&diff, Some(&all)).await?;
    ensure!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));

    // Taken away as documented, with the meshed namespace still there, and no finalizer holds anything up.
    take_away(&cluster, &crds).await?;
    // Kubernetes collects what belonged to the installation.
    nothing_is_left(&cluster, &present, &shop).await?;
    // What runs goes on.
    let list = pods.list(&ListParams::default()).await?;
    ensure!(list.iter().any(is_ready), "the meshed pod went with the installation");
    remove_namespace(&cluster, &shop).await?;
    nothing_is_left(&cluster, &present, &shop).await
}

// spec: OPS-063, INJ-214
#[tokio::test]
#[ignore = "needs a cluster without Weft: make e2e"]
async fn removing_the_namespace_of_the_control_plane_alone_keeps_no_pod_from_starting() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let present = objects_at_rest(&cluster.client()).await?;
    let crds = install_kinds(&cluster).await?;
    cluster
        .apply_server_side(&rendered(&cluster, &overlay()).await?)
        .await?;
    let shop = namespace(&cluster, "orphaned", true).await?;
    let webhooks = "mutatingwebhookconfiguration/weft-injector";
    until(
        "the webhooks belong to the namespace",
        Duration::from_secs(120),
        async || {
            let owner = ["get", webhooks, "-o", "jsonpath={.metadata.ownerReferences[*].name}"];
            Ok((cluster.kubectl(&owner).await? == "weft-system").then_some(()))
        },
    )
    .await?;
    cluster
        .kubectl(&["delete", "namespace", "weft-system", "--timeout=90s"])
        .await?;
    until("a pod is admitted", Duration::from_secs(60), async || {
        cluster.apply(&pod(&shop, "plain").to_string()).await.map(Some)
    })
    .await?;
    ready(&cluster, &shop, "plain").await?;
    take_away(&cluster, &crds).await?;
    remove_namespace(&cluster, &shop).await?;
    nothing_is_left(&cluster, &present, &shop).await
}

/// Installs the kinds; the folder that they come from.
async fn install_kinds(cluster: &Cluster) -> Result<String> {
    let crds = path("config/crds");
    cluster.kubectl(&["apply", "--server-side", "-k", &crds]).await?;
    let kinds = rendered(cluster, &crds).await?;
    let established = ["wait", "--for=condition=Established", "--timeout=30s", "-f", "-"];
    let waited = cluster.try_kubectl(&established, Some(&kinds)).await?;
    ensure!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    Ok(crds)
}

/// As docs/install.md says.
async fn take_away(cluster: &Cluster, crds: &str) -> Result<()> {
    let installation = ["delete", "-k", &overlay(), "--ignore-not-found", "--timeout=90s"];
    cluster.kubectl(&installation).await?;
    let secrets = ["delete", "secret", "-A", "-l", "weft.dev/managed=true"];
    cluster.kubectl(&secrets).await?;
    cluster
        .kubectl(&["delete", "-k", crds, "--timeout=60s"])
        .await
        .map(drop)
}

async fn nothing_is_left(cluster: &Cluster, before: &BTreeSet<String>, shop: &str) -> Result<()> {
    until(
        "nothing is left but what is not Weft's",
        Duration::from_secs(120),
        async || {
            let left = left_behind(cluster, before, shop).await?;
            ensure!(left.is_empty(), "left behind: {left:#?}");
            Ok(Some(()))
        },
    )
    .await
}

/// What is there and was not, but for a namespace and what Kubernetes and this test put into it.
async fn left_behind(cluster: &Cluster, before: &BTreeSet<String>, shop: &str) -> Result<Vec<String>> {
    let now = objects(&cluster.client()).await?;
    let of_shop = format!(" {shop}/");
    let is_expected = |o: &String| (o.contains(&of_shop) || o.ends_with(&format!(" {shop}"))) && !is_of_weft(o);
    Ok(now.difference(before).filter(|o| !is_expected(o)).cloned().collect())
}

/// By name or group: `Kind.group namespace/name`. The test cluster's own roles are called `weft-cluster:...`.
fn is_of_weft(object: &str) -> bool {
    let (kind, name) = object.split_once(' ').unwrap_or((object, ""));
    let name = name.rsplit('/').next().unwrap_or(name);
    let by_name = name.starts_with("weft-") && !name.starts_with("weft-cluster:");
    by_name || kind.ends_with("weft.dev") || kind.ends_with("istio.io") || name.ends_with("istio.io")
}

/// All objects, once they have been the same for a while: in a new cluster the last service accounts and leases appear
/// after its node is ready, and what belonged to something that went is collected a little later.
async fn objects_at_rest(client: &Client) -> Result<BTreeSet<String>> {
    let mut last = objects(client).await?;
    let mut since = Instant::now();
    until("the cluster is at rest", Duration::from_secs(120), async || {
        let now = objects(client).await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= Duration::from_secs(10)).then(|| last.clone()))
    })
    .await
}

/// All objects of the cluster, but those that come and go by themselves.
async fn objects(client: &Client) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let discovery = Discovery::new(client.clone())
        .run()
        .await
        .context("discover the kinds")?;
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) || is_passing(&resource) {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let list = match api.list_metadata(&ListParams::default()).await {
                Ok(list) => list,
                // A kind that went after it was discovered.
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(error).with_context(|| format!("list {}", resource.kind)),
            };
            for object in list {
                let place = match (&capabilities.scope, object.namespace()) {
                    (Scope::Namespaced, Some(namespace)) => format!("{namespace}/"),
                    _ => String::new(),
                };
                let name = object.name_any();
                all.insert(format!("{}.{} {place}{name}", resource.kind, resource.group));
            }
        }
    }
    Ok(all)
}

fn is_passing(resource: &ApiResource) -> bool {
    matches!(resource.kind.as_str(), "Event" | "ComponentStatus")
}

/// Versions of what was applied and of what follows from it. Of Deployments it is the generation, as their status goes
/// on changing by itself, and of admission policies, as an API server writes them anew with each apply, same as they were.
async fn versions(cluster: &Cluster) -> Result<BTreeSet<String>> {
    const ANYWHERE: &str =
        "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,flowschemas";
    let mut all = BTreeSet::new();
    for (namespace, kinds, version) in [
        ("default", ANYWHERE, "resourceVersion"),
        (
            "weft-system",
            "services,serviceaccounts,roles,rolebindings",
            "resourceVersion",
        ),
        ("weft-system", "deployments", "generation"),
        ("default", "validatingadmissionpolicies", "generation"),
    ] {
        let columns = format!("custom-columns=K:.kind,N:.metadata.name,V:.metadata.{version}");
        let get = [
            "-n",
            namespace,
            "get",
            kinds,
            "-l",
            "app.kubernetes.io/part-of=weft",
            "-o",
            &columns,
        ];
        all.extend(cluster.kubectl(&get).await?.lines().map(str::to_owned));
    }
    Ok(all)
}

async fn rendered(cluster: &Cluster, folder: &str) -> Result<String> {
    cluster.kubectl(&["kustomize", folder]).await
}

fn workload(namespace: &str) -> String {
    let pod = pod(namespace, "first");
    let (labels, annotations) = (&pod["metadata"]["labels"], &pod["metadata"]["annotations"]);
    serde_json::json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "first", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "first"}},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod["spec"]},
        },
    })
    .to_string()
}

fn overlay() -> String {
    path(&std::env::var("OVERLAY").unwrap_or_else(|_| "config/overlays/minimal".to_owned()))
}

fn path(folder: &str) -> String {
    repository().join(folder).display().to_string()
}
