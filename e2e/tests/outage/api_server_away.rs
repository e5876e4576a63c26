//! The API server stops for a minute.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::load::Plan;
use weft_e2e::{ApiServer, Cluster, Load, Sample, until};

// spec: DLV-121, LIFE-011, ID-036
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_minute_without_the_api_server_loses_no_request() -> Result<()> {
    let Some(api_server) = ApiServer::of_test_cluster() else {
        eprintln!("LEFT OUT: the API server of somebody else's cluster is not stopped; the test cluster's is");
        return Ok(());
    };
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "api").await?;
    sample.route_to_v1().await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    api_server
        .away(async || {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        })
        .await?;
    // Whatever a control plane that wakes up does, it does to running traffic as well.
    sample.apply("split-0-100").await?;
    until("all proxies have the new route", SETTLED, async || {
        Ok(sample.reconciled("virtualservice/forecast").await.is_ok().then_some(()))
    })
    .await?;
    let report = load.end().await?;
    report.nothing_failed()?;
    ensure!(report.summaries[0].seconds > 60.0, "{:?}", report.summaries[0]);
    ensure!(
        report.summaries[0].versions.contains_key("v2"),
        "{:?}",
        report.summaries[0]
    );
    new_names_are_served(&sample).await?;
    sample.remove().await
}

/// What comes next begins with Services of its own, and the name service looks again as late as the kubelet does.
async fn new_names_are_served(sample: &Sample) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "late", "namespace": sample.namespace},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    });
    sample.cluster.apply(&service.to_string()).await?;
    let pod = sample.cluster.ready_pod(&sample.namespace, "app=frontend").await?;
    until("the name of a new Service is known", SETTLED, async || {
        let get = ["weft-app", "get", "http://late/"];
        let answer = sample.cluster.exec(&sample.namespace, &pod, "frontend", &get).await?;
        Ok((!answer.contains("\"name\"")).then_some(()))
    })
    .await
}

/// Clients of an API server that was away wait for up to a minute before they ask it again, and a kubelet that missed the
/// nudges refreshes volumes in its own rounds, every 60 to 90 s (DLV-050).
const SETTLED: Duration = Duration::from_secs(180);
