//! Who may call.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_e2e::sample::{get, namespace, pod, ready, remove_namespace};
use weft_e2e::{Cluster, Sample, until};

// spec: AUTHZ-002, AUTHZ-009, AUTHZ-013, AUTHZ-022, AUTHZ-037
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_policy_lets_one_account_in_and_its_end_everybody() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "callers").await?;
    let outside = namespace(&cluster, "callers-outside", false).await?;
    cluster.apply(&pod(&outside, "plain").to_string()).await?;
    ready(&cluster, &outside, "plain").await?;
    let url = format!("http://forecast.{}/", sample.namespace);
    let plain = async || get(&cluster, &outside, "plain", "app", &[&url]).await;
    // Endpoints of the Service are on several proxies: all of them, by ten calls in a row.
    let everywhere = async |status: u16| {
        for _ in 0..10 {
            if plain().await?["status"] != status {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    ensure!(plain().await?["status"] == 200, "before there is a policy");

    sample.apply("callers").await?;
    sample.reconciled("authorizationpolicy/callers").await?;
    let limit = Duration::from_secs(120);
    until("others are refused", limit, async || everywhere(403).await).await?;
    let answer = plain().await?;
    ensure!(answer.to_string().contains("RBAC: access denied"), "{answer}");
    let answer = sample.get(&[&url]).await?;
    ensure!(
        answer["status"] == 200 && answer["body"]["caller"].is_string(),
        "{answer}"
    );

    let namespace = ["-n", &sample.namespace];
    cluster
        .kubectl(&[&namespace[..], &["delete", "authorizationpolicy", "callers"]].concat())
        .await?;
    until("everybody is let in", limit, async || everywhere(200).await).await?;
    sample.remove().await?;
    remove_namespace(&cluster, &outside).await
}
