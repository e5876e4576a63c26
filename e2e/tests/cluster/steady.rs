//! Change anything, drop nothing: a steady 200 requests per second, and not one of them fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use weft_e2e::load::Plan;
use weft_e2e::proxy::status;
use weft_e2e::{Cluster, Load, Sample, until};

// spec: BYD-001, LIFE-040, LIFE-041, DLV-050
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn twenty_route_changes_lose_no_request() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "changes").await?;
    sample.route_to_v1().await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    for change in 0..20 {
        sample
            .apply(["split-90-10", "by-user", "split-0-100", "v1-only"][change % 4])
            .await?;
        sample.reconciled("virtualservice/forecast").await?;
    }
    let report = load.end().await?;
    report.nothing_failed()?;
    // The changes were in force: without them all answers are v1's.
    let v2 = report.summaries[0].versions.get("v2").copied().unwrap_or_default();
    ensure!(v2 > 0, "{:?}", report.summaries[0].versions);
    sample.remove().await
}

// spec: DLV-114, LIFE-035, BYD-010, BYD-012, DLV-119
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_rolling_restart_loses_no_request() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "restart").await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    for deployment in ["forecast-v1", "forecast-v2"] {
        sample.restart(deployment).await?;
    }
    let report = load.end().await?;
    report.nothing_failed()?;
    // All five old pods and all five new ones have answered.
    ensure!(report.summaries[0].pods.len() == 10, "{:?}", report.summaries[0].pods);
    sample.remove().await
}

// spec: BYD-010, LIFE-032, DLV-103
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn scaling_from_five_to_one_to_five_loses_no_request() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy_one_version(&cluster, "scale", 5).await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    for replicas in [1, 5] {
        sample.scale("forecast-v1", replicas).await?;
        until("no other pod is left", Duration::from_secs(60), async || {
            let all = cluster.pods(&sample.namespace, "app=forecast").await?;
            Ok((all.len() == replicas).then_some(()))
        })
        .await?;
    }
    // The new pods are found: endpoints reach the client.
    let new = sample.pods_of("forecast-v1").await?;
    until("the client knows all endpoints", Duration::from_secs(120), async || {
        let pods = sample.calls(&["--rate", "50", "--duration", "1"]).await?.pods;
        Ok(new.iter().all(|p| pods.contains_key(p)).then_some(()))
    })
    .await?;
    load.end().await?.nothing_failed()?;
    sample.remove().await
}

// spec: ID-029, ID-034, BYD-001
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_rotation_of_all_certificates_loses_no_request() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "rotation").await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    let mut pods = Vec::new();
    for selector in ["app=forecast", "app=frontend", "app=load"] {
        pods.extend(cluster.pods(&sample.namespace, selector).await?);
    }
    let mut before = Vec::new();
    for pod in &pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let end = status(&cluster, &sample.namespace, &name).await?.cert_not_after;
        before.push((name, end));
    }
    // A deleted identity is issued anew, with another key.
    let secrets = cluster.api::<Secret>(&sample.namespace);
    for account in ["frontend", "forecast"] {
        secrets
            .delete(&format!("weft.{account}"), &DeleteParams::default())
            .await?;
    }
    until(
        "all proxies use another certificate",
        Duration::from_secs(150),
        async || {
            for (name, end) in &before {
                if status(&cluster, &sample.namespace, name).await?.cert_not_after <= *end {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        },
    )
    .await?;
    let calls = sample.calls(&["--rate", "50", "--duration", "1", "--no-reuse"]).await?;
    ensure!(calls.failed == 0, "{calls:?}");
    load.end().await?.nothing_failed()?;
    sample.remove().await
}
