//! What runs goes on without the operator, whatever happens to it meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use weft_e2e::load::Plan;
use weft_e2e::proxy::{metric, status};
use weft_e2e::sample::{image, ready};
use weft_e2e::{Cluster, ControlPlane, Load, Sample, until};

// spec: BYD-010..BYD-013, DLV-113..DLV-115, DLV-119, DLV-120, INJ-106, LIFE-004, LIFE-036, DLV-023, DLV-080,
// spec: DLV-082, DLV-086
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn without_the_operator_pods_restart_roll_and_refuse_what_is_broken() -> Result<()> {
    let cluster = Cluster::connect().await?;
    // They need the same outage and nothing else of each other.
    let (rolling, other) = tokio::try_join!(
        Sample::deploy(&cluster, "held-back"),
        Sample::deploy(&cluster, "without-operator"),
    )?;
    other.route_to_v1().await?;
    let load = Load::start(&rolling, "load", Plan::default()).await?;
    let hurt = ControlPlane::new(&cluster)
        .without_operator(async || {
            let began = Instant::now();
            let one_after_the_other = async {
                restart_of_a_sidecar(&other).await?;
                a_broken_bundle(&other).await
            };
            let (_, hurt) = tokio::try_join!(roll(&rolling), one_after_the_other)?;
            // Endpoints are held back for two minutes in all.
            tokio::time::sleep(HELD_BACK.saturating_sub(began.elapsed())).await;
            Ok(hurt)
        })
        .await?;
    load.end().await?.nothing_failed()?;
    repaired(&other, hurt).await?;
    rolling.remove().await?;
    other.remove().await
}

/// Every endpoint that the client knows goes, and no file tells it of the new ones.
async fn roll(sample: &Sample) -> Result<()> {
    let old = sample.pods_of("forecast").await?;
    for deployment in ["forecast-v1", "forecast-v2"] {
        sample.restart(deployment).await?;
    }
    let new = sample.pods_of("forecast").await?;
    ensure!(
        new.len() == old.len() && new.iter().all(|p| !old.contains(p)),
        "{old:?} {new:?}"
    );
    Ok(())
}

/// The kubelet starts the container again, on the files that it finds.
async fn restart_of_a_sidecar(sample: &Sample) -> Result<()> {
    let pod = sample.cluster.ready_pod(&sample.namespace, "app=frontend").await?;
    let before = status(&sample.cluster, &sample.namespace, &pod).await?;
    let count = restarts(sample, &pod).await?;
    // From a container beside it, as the same user, since its own image has nothing but the proxy.
    let quit = json!({"spec": {"ephemeralContainers": [{
        "name": "quit",
        "image": image(),
        "imagePullPolicy": "IfNotPresent",
        "targetContainerName": "weft-proxy",
        "command": ["weft-app", "end", "--now"],
        "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
    }]}});
    let pods = sample.cluster.api::<Pod>(&sample.namespace);
    let parameters = PatchParams::default();
    pods.patch_subresource("ephemeralcontainers", &pod, &parameters, &Patch::Strategic(quit))
        .await
        .context("a container beside the sidecar")?;
    until(
        "the sidecar has been started again",
        Duration::from_secs(90),
        async || Ok((restarts(sample, &pod).await? > count).then_some(())),
    )
    .await?;
    let after = until(
        "the sidecar is back with its configuration",
        Duration::from_secs(60),
        async || {
            let status = status(&sample.cluster, &sample.namespace, &pod).await?;
            Ok((status.state == "Active").then_some(status))
        },
    )
    .await?;
    ensure!(after.active == before.active, "{before:?} {after:?}");
    ready(&sample.cluster, &sample.namespace, &pod).await?;
    let calls = sample.calls(&["--rate", "100", "--duration", "1"]).await?;
    ensure!(calls.failed == 0, "{calls:?}");
    ensure!(
        calls.versions.get("v1") == Some(&calls.requests),
        "its route is in force: {calls:?}"
    );
    Ok(())
}

async fn restarts(sample: &Sample, pod: &str) -> Result<i32> {
    let pod = sample.cluster.api::<Pod>(&sample.namespace).get(pod).await?;
    let statuses = pod.status.and_then(|s| s.init_container_statuses).unwrap_or_default();
    let proxy = statuses.iter().find(|s| s.name == "weft-proxy");
    Ok(proxy.context("no sidecar")?.restart_count)
}

/// What was broken by hand, and what it was before.
struct Hurt {
    name: String,
    before: ConfigMap,
    pod: String,
}

/// Somebody with every right writes rubbish into what the frontend's sidecar reads.
async fn a_broken_bundle(sample: &Sample) -> Result<Hurt> {
    let pod = sample.cluster.ready_pod(&sample.namespace, "app=frontend").await?;
    let before = status(&sample.cluster, &sample.namespace, &pod).await?;
    let maps = sample.cluster.api::<ConfigMap>(&sample.namespace);
    let all = maps.list(&ListParams::default()).await?;
    let map = all.into_iter().find(|m| m.name_any().starts_with("weft-cfg-frontend-"));
    let map = map.context("no configuration of the frontend")?;
    let name = map.name_any();
    let edit = json!({"data": {"bundle.yaml": "listeners: [broken\n"}}).to_string();
    let as_master = ["--as=e2e", "--as-group=system:masters", "-n", &sample.namespace];
    let patch = ["patch", "configmap", &name, "--type=merge", "-p", &edit];
    sample.cluster.kubectl(&[&as_master[..], &patch[..]].concat()).await?;
    // The kubelet looks at once when the pod changes.
    let nudge = json!({"metadata": {"annotations": {"e2e": "look"}}});
    let pods = sample.cluster.api::<Pod>(&sample.namespace);
    let rejected = until("the sidecar has refused it", Duration::from_secs(120), async || {
        pods.patch(&pod, &PatchParams::default(), &Patch::Merge(&nudge)).await?;
        let status = status(&sample.cluster, &sample.namespace, &pod).await?;
        Ok((status.state == "Rejected").then_some(status))
    })
    .await?;
    ensure!(rejected.active == before.active, "{before:?} {rejected:?}");
    ensure!(rejected.error.is_some(), "no word of what is wrong: {rejected:?}");
    let counted = metric(&sample.cluster, &sample.namespace, &pod, "weft_config_rejected_total").await?;
    ensure!(counted >= 1.0, "weft_config_rejected_total is {counted}");
    let log = sample.cluster.logs(&sample.namespace, &pod, "weft-proxy").await?;
    ensure!(log.contains("bundle.yaml"), "the log does not name the file:\n{log}");
    let calls = sample.calls(&["--rate", "100", "--duration", "1"]).await?;
    ensure!(calls.failed == 0, "{calls:?}");
    ensure!(calls.versions.get("v1") == Some(&calls.requests), "{calls:?}");
    Ok(Hurt { name, before: map, pod })
}

/// An operator that is back puts right what it finds.
async fn repaired(sample: &Sample, hurt: Hurt) -> Result<()> {
    let maps = sample.cluster.api::<ConfigMap>(&sample.namespace);
    until("the operator has repaired it", Duration::from_secs(30), async || {
        Ok((maps.get(&hurt.name).await?.data == hurt.before.data).then_some(()))
    })
    .await?;
    until("the sidecar says so", Duration::from_secs(120), async || {
        let status = status(&sample.cluster, &sample.namespace, &hurt.pod).await?;
        Ok((status.state == "Active" && status.error.is_none()).then_some(()))
    })
    .await
}

const HELD_BACK: Duration = Duration::from_secs(120);
