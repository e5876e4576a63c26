//! What is not valid is refused with its reason.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, Sample};

// spec: VS-055, OPS-034, OPS-131
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn an_invalid_route_is_refused_naming_the_field_and_traffic_goes_on() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "refusal").await?;
    sample.route_to_v1().await?;

    // By the schema of the kind.
    let said = cluster.apply_refused(&sample.manifest("invalid")?).await?;
    ensure!(said.contains("spec.http[0].route[1].weight"), "{said}");
    // By the validator: no schema knows regular expressions.
    let expression = format!(
        r#"{{"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {{"name": "forecast", "namespace": "{}"}},
            "spec": {{"hosts": ["forecast"], "http": [
                {{"match": [{{"uri": {{"regex": "/a(b"}}}}], "route": [{{"destination": {{"host": "forecast"}}}}]}}]}}}}"#,
        sample.namespace
    );
    let said = cluster.apply_refused(&expression).await?;
    ensure!(said.contains("spec.http[0].match[0].uri.regex"), "{said}");

    let calls = sample.calls(&["--rate", "100", "--duration", "1"]).await?;
    ensure!(calls.failed == 0, "{calls:?}");
    ensure!(calls.versions.get("v1") == Some(&calls.requests), "{calls:?}");
    sample.remove().await
}
