//! Without nudges, changes come with the kubelet's own rounds.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::load::Plan;
use weft_e2e::propagation::{last_of, now};
use weft_e2e::{Cluster, ControlPlane, Load, Sample, until};

// spec: DLV-050, DLV-055
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_route_change_is_live_in_all_pods_within_two_minutes_without_nudges() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "nudging-off").await?;
    sample.route_to_v1().await?;
    let control_plane = ControlPlane::new(&cluster);
    let plan = Plan {
        rate: 10,
        pods: 5,
        is_each: true,
        ..Plan::default()
    };
    let load = Load::start(&sample, "load", plan).await?;
    sample.reconciled("virtualservice/forecast").await?;
    let applied = control_plane
        .with_operator_argument("--nudge-qps=0", async || {
            let applied = now();
            sample.apply("split-0-100").await?;
            until("all proxies have it", LIMIT, async || {
                let all = sample.reconciled("virtualservice/forecast").await;
                Ok(all.is_ok().then_some(()))
            })
            .await?;
            Ok(applied)
        })
        .await?;
    let report = load.end().await?;
    report.nothing_failed()?;
    let mut slowest = 0;
    for answers in &report.answers {
        let late = last_of("v1", answers).unwrap_or_default().saturating_sub(applied);
        ensure!(
            u128::from(late) <= LIMIT.as_millis(),
            "an answer of v1 {late} ms after apply began"
        );
        slowest = slowest.max(late);
    }
    eprintln!("without nudges the last pod followed after {slowest} ms");
    sample.remove().await
}

const LIMIT: Duration = Duration::from_secs(120);
