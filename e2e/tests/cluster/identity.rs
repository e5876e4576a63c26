//! A request through two sidecars.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, Sample};

// spec: ID-001, ID-004, ID-012, ID-092, ID-121, ID-147
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn the_server_sees_the_identity_of_the_client_and_nobody_makes_one_up() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "identity").await?;
    let expected = format!("spiffe://cluster.local/ns/{}/sa/frontend", sample.namespace);

    // From the frontend's process, as its own call to its upstream.
    let answer = sample.get(&["http://frontend/"]).await?;
    let forecast = &answer["body"]["upstream"]["answer"];
    ensure!(answer["status"] == 200, "{answer}");
    ensure!(forecast["caller"] == expected.as_str(), "{forecast}");
    let xfcc = forecast["xfcc"].as_str().unwrap_or_default();
    let by = format!("By=spiffe://cluster.local/ns/{}/sa/forecast", sample.namespace);
    ensure!(xfcc.contains(&by), "{xfcc}");

    // A caller that claims to be somebody else.
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/kube-system/sa/admin";
    let answer = sample.get(&["http://forecast/", "-H", forged]).await?;
    ensure!(answer["body"]["caller"] == expected.as_str(), "{answer}");
    ensure!(!answer["body"]["xfcc"].to_string().contains("admin"), "{answer}");
    sample.remove().await
}
