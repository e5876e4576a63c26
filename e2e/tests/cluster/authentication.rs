//! PERMISSIVE and STRICT.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use weft_e2e::sample::{get, namespace, pod, ready, remove_namespace};
use weft_e2e::{Cluster, Sample, until};

// spec: AUTHN-006, PA-003, PA-013, ID-081, ID-094
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn permissive_takes_plain_text_and_strict_refuses_it() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "strict").await?;
    let outside = namespace(&cluster, "outside", false).await?;
    cluster.apply(&pod(&outside, "plain").to_string()).await?;
    ready(&cluster, &outside, "plain").await?;
    let url = format!("http://forecast.{}/", sample.namespace);
    let plain = async || get(&cluster, &outside, "plain", "app", &[&url]).await;

    let answer = plain().await?;
    ensure!(
        answer["status"] == 200 && answer["body"]["caller"] == Value::Null,
        "{answer}"
    );
    let answer = sample.get(&[&url]).await?;
    ensure!(
        answer["status"] == 200 && answer["body"]["caller"].is_string(),
        "{answer}"
    );

    sample.apply("strict").await?;
    sample.reconciled("peerauthentication/default").await?;
    // Endpoints of the Service are on several proxies: all of them, by ten calls in a row.
    until("plain text is refused", Duration::from_secs(120), async || {
        for _ in 0..10 {
            let answer = plain().await?;
            if answer["status"].is_number() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    let answer = sample.get(&[&url]).await?;
    ensure!(
        answer["status"] == 200 && answer["body"]["caller"].is_string(),
        "{answer}"
    );
    sample.remove().await?;
    remove_namespace(&cluster, &outside).await
}
