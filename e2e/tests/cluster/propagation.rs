//! How long a change takes from `apply` to the traffic.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::load::Plan;
use weft_e2e::propagation::{last_of, now};
use weft_e2e::{Cluster, Load, Sample};

// spec: DLV-050..DLV-053, DLV-073, BYD-001
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_route_change_is_live_in_all_pods_within_two_seconds() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "propagation").await?;
    sample.route_to_v1().await?;
    let plan = Plan {
        rate: 20,
        pods: 5,
        is_each: true,
        ..Plan::default()
    };
    let load = Load::start(&sample, "load", plan).await?;
    sample.reconciled("virtualservice/forecast").await?;
    let applied = now();
    sample.apply("split-0-100").await?;
    sample.reconciled("virtualservice/forecast").await?;
    // What came late would still come.
    tokio::time::sleep(LIMIT).await;
    let report = load.end().await?;
    report.nothing_failed()?;
    for answers in &report.answers {
        let last = last_of("v1", answers).unwrap_or_default();
        ensure!(last > 0, "no answer of v1 before the change");
        let late = last.saturating_sub(applied);
        ensure!(
            u128::from(late) <= LIMIT.as_millis(),
            "an answer of v1 {late} ms after apply began"
        );
    }
    sample.remove().await
}

const LIMIT: Duration = Duration::from_secs(2);
