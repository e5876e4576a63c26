//! Routes by weight and by header.

use anyhow::{Result, ensure};
use weft_e2e::{Cluster, Sample};

// spec: VS-035, VS-053, VS-055, DR-076
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn weights_hold_and_a_header_takes_one_user_to_another_version() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "split").await?;
    sample.route_to_v1().await?;

    sample.apply("split-90-10").await?;
    sample.reconciled("virtualservice/forecast").await?;
    let calls = sample.calls(&["--rate", "400", "--duration", "5"]).await?;
    ensure!(calls.requests == 2000 && calls.failed == 0, "{calls:?}");
    let v2 = calls.versions.get("v2").copied().unwrap_or_default();
    // A tenth of 2,000 within 4.5 standard deviations, which are 13.4.
    ensure!((140..=260).contains(&v2), "{v2} of 2000 calls went to v2");

    sample.apply("by-user").await?;
    sample.reconciled("virtualservice/forecast").await?;
    for (user, expected) in [("jason", "v2"), ("Jason", "v1"), ("mary", "v1")] {
        let header = format!("end-user: {user}");
        let calls = sample
            .calls(&["--rate", "100", "--duration", "1", "--header", &header])
            .await?;
        ensure!(calls.failed == 0, "{calls:?}");
        let all = calls.versions.get(expected).copied().unwrap_or_default();
        ensure!(
            all == calls.requests,
            "{user} must see {expected} alone: {:?}",
            calls.versions
        );
    }
    // The name of a header is the same in any case, and the frontend passes it on.
    let answer = sample.get(&["http://frontend/", "-H", "End-User: jason"]).await?;
    ensure!(answer["body"]["upstream"]["answer"]["version"] == "v2", "{answer}");
    sample.remove().await
}
