//! Operator and webhook die and come back.

use anyhow::{Result, ensure};
use weft_e2e::load::Plan;
use weft_e2e::sample::{pod, ready};
use weft_e2e::{Cluster, ControlPlane, Load, Sample};

// spec: OPS-190, DLV-120, BYD-001
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_killed_control_plane_loses_no_request_and_its_successor_goes_on() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "killed").await?;
    sample.route_to_v1().await?;
    let load = Load::start(&sample, "load", Plan::default()).await?;
    ControlPlane::new(&cluster).kill().await?;
    // Another one renders, ...
    sample.apply("split-0-100").await?;
    sample.reconciled("virtualservice/forecast").await?;
    // ... injects, ...
    cluster.apply(&pod(&sample.namespace, "later").to_string()).await?;
    ready(&cluster, &sample.namespace, "later").await?;
    let calls = sample.calls(&["--rate", "100", "--duration", "1"]).await?;
    ensure!(calls.versions.get("v2") == Some(&calls.requests), "{calls:?}");
    // ... and refuses.
    cluster.apply_refused(&sample.manifest("invalid")?).await?;
    load.end().await?.nothing_failed()?;
    sample.remove().await
}
