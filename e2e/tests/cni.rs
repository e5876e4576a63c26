//! The CNI plugin, on a node with a kubelet and a container runtime: on a cluster where Weft is installed without it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};
use weft_e2e::sample::{get, namespace, pod, ready, remove_namespace, repository};
use weft_e2e::{Cluster, until};

// spec: NET-131, NET-132, NET-136, INJ-003, INJ-056, INJ-057, OPS-005
#[tokio::test]
#[ignore = "needs a cluster with Weft: make e2e"]
async fn restricted_pods_are_in_the_mesh_those_that_began_too_early_too_and_removal_gives_the_node_back() -> Result<()>
{
    let cluster = Cluster::connect().await?;
    let objects = overlay(&cluster).await?;
    let strict = namespace(&cluster, "restricted", true).await?;
    let label = [
        "label",
        "namespace",
        &strict,
        "pod-security.kubernetes.io/enforce=restricted",
    ];
    cluster.kubectl(&label).await?;

    // Without the plugin the redirect needs a capability that the namespace does not give.
    let refused = cluster.apply_refused(&restricted(&strict, "early").to_string()).await?;
    ensure!(
        refused.contains("PodSecurity") && refused.contains("weft-init"),
        "{refused}"
    );

    // The injector knows of the plugin before the node has it.
    let settings = |object: &Value| object["kind"] == "ConfigMap";
    apply(&cluster, objects.iter().filter(|object| settings(object))).await?;
    injects(&cluster, &strict, "weft-validation").await?;
    cluster.apply(&restricted(&strict, "early").to_string()).await?;
    until("a pod finds no redirect", Duration::from_secs(60), async || {
        let pod = cluster.api::<Pod>(&strict).get("early").await?;
        Ok(validation(&pod).and_then(exit_code).filter(|code| *code == 126))
    })
    .await?;

    apply(&cluster, objects.iter()).await?;
    let rollout = [
        "-n",
        "weft-system",
        "rollout",
        "status",
        "daemonset",
        "weft-cni",
        "--timeout",
        "60s",
    ];
    cluster.kubectl(&rollout).await?;
    ensure!(
        plugins()?.is_none_or(|all| all.last().is_some_and(|last| last == "weft-cni")),
        "not chained"
    );
    ready(&cluster, &strict, "early").await?;
    let events = [
        "-n",
        &strict,
        "get",
        "events.events.k8s.io",
        "-o",
        "jsonpath={.items[*].reason}",
    ];
    let reasons = cluster.kubectl(&events).await?;
    ensure!(reasons.contains("RedirectRepaired"), "{reasons}");

    // One that begins now needs no second try, ...
    cluster.apply(&service(&strict, "late").to_string()).await?;
    cluster.apply(&restricted(&strict, "late").to_string()).await?;
    let late = ready(&cluster, &strict, "late").await?;
    let status = validation(&late).context("weft-validation ran")?;
    ensure!(
        status.restart_count == 0,
        "it was tried {} times more",
        status.restart_count
    );
    // ... and both are in the mesh: with STRICT, a call that either side's proxy had not captured would be refused.
    cluster.apply(&service(&strict, "early").to_string()).await?;
    cluster.apply(&mutual_tls(&strict).to_string()).await?;
    let plain = namespace(&cluster, "outside", false).await?;
    cluster.apply(&pod(&plain, "outside").to_string()).await?;
    ready(&cluster, &plain, "outside").await?;
    for (from, to) in [("early", "late"), ("late", "early")] {
        let url = format!("http://{to}.{strict}/");
        until(
            &format!("{to} refuses plain text"),
            Duration::from_secs(60),
            async || {
                let answer = get(&cluster, &plain, "outside", "app", &[&url]).await?;
                Ok((answer["status"] != 200).then_some(()))
            },
        )
        .await?;
        until(&format!("{from} calls {to}"), Duration::from_secs(60), async || {
            let answer = get(&cluster, &strict, from, "app", &[&url]).await?;
            ensure!(answer["status"] == 200, "{answer}");
            Ok(Some(()))
        })
        .await?;
    }

    // Taken away, it leaves a node on which pods begin.
    let own: Vec<&Value> = objects
        .iter()
        .filter(|object| object["metadata"]["name"] == "weft-cni")
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": own}).to_string();
    let delete = ["delete", "-f", "-", "--timeout=60s"];
    let output = cluster.try_kubectl(&delete, Some(&list)).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until("the agent has ended", Duration::from_secs(60), async || {
        let agents = cluster.api::<Pod>("weft-system");
        let of = kube::api::ListParams::default().labels("app.kubernetes.io/name=weft-cni");
        Ok(agents.list(&of).await?.items.is_empty().then_some(()))
    })
    .await?;
    ensure!(
        plugins()?.is_none_or(|all| all.iter().all(|plugin| plugin != "weft-cni")),
        "still chained"
    );
    cluster.apply(&pod(&plain, "after").to_string()).await?;
    ready(&cluster, &plain, "after").await?;

    let overlay = repository().join(std::env::var("OVERLAY").unwrap_or_else(|_| "config/overlays/minimal".to_owned()));
    let before = cluster.kubectl(&["kustomize", &overlay.display().to_string()]).await?;
    cluster.apply_server_side(&before).await?;
    remove_namespace(&cluster, &plain).await?;
    remove_namespace(&cluster, &strict).await
}

/// The objects of overlay `cni`, with one replica of each part and the node's own directories.
async fn overlay(cluster: &Cluster) -> Result<Vec<Value>> {
    let folder = repository().join("config/overlays/cni").display().to_string();
    let text = cluster.kubectl(&["kustomize", &folder]).await?;
    let mut objects = Vec::new();
    for document in text.split("\n---\n") {
        let mut object: Value = serde_yaml::from_str(document).context("the overlay")?;
        match object["kind"].as_str() {
            // A budget of a single replica keeps nodes from being drained.
            Some("PodDisruptionBudget") => continue,
            Some("Deployment") => object["spec"]["replicas"] = json!(1),
            Some("DaemonSet") => {
                let text = object.to_string();
                let text = text.replace("/opt/cni/bin", &directory("BIN")?.display().to_string());
                let text = text.replace("/etc/cni/net.d", &directory("CONF")?.display().to_string());
                object = serde_json::from_str(&text).context("the DaemonSet")?;
            }
            _ => {}
        }
        objects.push(object);
    }
    Ok(objects)
}

async fn apply<'o>(cluster: &Cluster, objects: impl Iterator<Item = &'o Value>) -> Result<()> {
    let items: Vec<&Value> = objects.collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.apply_server_side(&list.to_string()).await.map(drop)
}

/// Waits until the injector gives pods this container. Its kubelet looks after its settings as soon as its pod changes.
async fn injects(cluster: &Cluster, namespace: &str, container: &str) -> Result<()> {
    let injector = "app.kubernetes.io/name=weft-injector";
    let nudge = [
        "-n",
        "weft-system",
        "annotate",
        "pods",
        "-l",
        injector,
        "e2e/settings=changed",
        "--overwrite",
    ];
    cluster.kubectl(&nudge).await?;
    until(&format!("pods get {container}"), Duration::from_secs(120), async || {
        let dry = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
        let answer = cluster
            .try_kubectl(&dry, Some(&restricted(namespace, "dry").to_string()))
            .await?;
        Ok(String::from_utf8_lossy(&answer.stdout)
            .contains(container)
            .then_some(()))
    })
    .await
}

/// A pod that keeps to Pod Security `restricted`.
fn restricted(namespace: &str, name: &str) -> Value {
    let mut pod = pod(namespace, name);
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    let container = &mut pod["spec"]["containers"][0];
    container["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    container["command"] = json!(["weft-app", "serve", "--http", "8080"]);
    container["ports"] = json!([{"containerPort": 8080}]);
    pod
}

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn mutual_tls(namespace: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": namespace}, "spec": {"mtls": {"mode": "STRICT"}},
    })
}

fn validation(pod: &Pod) -> Option<&ContainerStatus> {
    let mut statuses = pod.status.as_ref()?.init_container_statuses.iter().flatten();
    statuses.find(|status| status.name == "weft-validation")
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        Some(state.as_ref()?.terminated.as_ref()?.exit_code)
    };
    ended(&status.state).or_else(|| ended(&status.last_state))
}

/// Types of the plugins that the runtime calls, in order; `None` where the node is not this machine.
fn plugins() -> Result<Option<Vec<String>>> {
    if std::env::var("CLUSTER").as_deref() == Ok("current") {
        return Ok(None);
    }
    let folder = directory("CONF")?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        names.extend(
            path.extension()
                .is_some_and(|ending| ending == "conflist")
                .then_some(path),
        );
    }
    let first = names.iter().min().context("no network configuration")?;
    let conflist: Value = serde_json::from_str(&std::fs::read_to_string(first)?)?;
    let plugins = conflist["plugins"].as_array().context("no list of plugins")?;
    Ok(Some(
        plugins
            .iter()
            .filter_map(|plugin| plugin["type"].as_str())
            .map(str::to_owned)
            .collect(),
    ))
}

/// The node's directories of CNI: `WEFT_CNI_BIN_DIR` and `WEFT_CNI_CONF_DIR`, where they are not the usual ones.
fn directory(which: &str) -> Result<PathBuf> {
    let usual = match which {
        "BIN" => "/opt/cni/bin",
        _ => "/etc/cni/net.d",
    };
    let path = PathBuf::from(std::env::var(format!("WEFT_CNI_{which}_DIR")).unwrap_or_else(|_| usual.to_owned()));
    ensure!(path.is_absolute(), "WEFT_CNI_{which}_DIR: must be an absolute path");
    Ok(path)
}
