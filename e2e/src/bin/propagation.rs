//! Measures how long a route change takes from the API call to the last request that still saw the old route, in each
//! of several pods, on a cluster where Weft is installed. Ends in a line of figures.
//!
//! `cargo run -p weft-e2e --bin propagation [CHANGES] [PODS]`

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::json;
use weft_e2e::load::Plan;
use weft_e2e::propagation::{last_within, now};
use weft_e2e::{Cluster, Load, Sample};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| -> Result<usize> {
        let given = arguments
            .next()
            .map(|text| text.parse().with_context(|| format!("{text:?} is no number")));
        given.unwrap_or(Ok(default))
    };
    let (changes, pods) = (number(50)?, number(10)?);
    ensure!(changes > 0 && pods > 0, "changes and pods must be more than 0");
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "measure").await?;
    sample.route_to_v1().await?;
    let plan = Plan {
        rate: RATE,
        pods,
        is_each: true,
        ..Plan::default()
    };
    let load = Load::start(&sample, "load", plan).await?;
    sample.reconciled("virtualservice/forecast").await?;

    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "VirtualService");
    let resource = ApiResource::from_gvk_with_plural(&kind, "virtualservices");
    let routes: Api<DynamicObject> = Api::namespaced_with(cluster.client(), &sample.namespace, &resource);
    let mut begun = Vec::new();
    for change in 0..changes {
        let version = VERSIONS[(change + 1) % 2];
        let destination = json!({"host": "forecast", "subset": version});
        let patch = json!({"spec": {"http": [{"route": [{"destination": destination}]}]}});
        begun.push(now());
        routes
            .patch("forecast", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        sample.reconciled("virtualservice/forecast").await?;
        tokio::time::sleep(SETTLED).await;
    }
    let report = load.end().await?;
    report.nothing_failed()?;

    let mut times = Vec::new();
    for answers in &report.answers {
        for (change, from) in begun.iter().enumerate() {
            let to = begun.get(change + 1).copied().unwrap_or(u64::MAX);
            let old = VERSIONS[change % 2];
            // Where no request saw the old route any more, the change was faster than the pause between requests.
            times.push(last_within(old, answers, *from, to).map_or(0, |at| at - from));
        }
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share).div_ceil(100).max(1) - 1];
    println!(
        "propagation of {changes} route changes to {pods} pods, {} ms between requests: p50 {} ms, p95 {} ms, p99 {} ms, \
         max {} ms",
        1000 / RATE,
        at(50),
        at(95),
        at(99),
        at(100)
    );
    sample.remove().await
}

/// Routes of even and odd changes before they come.
const VERSIONS: [&str; 2] = ["v1", "v2"];
/// Requests per second of each pod.
const RATE: u32 = 25;
/// Between changes, so that a late answer belongs to one of them.
const SETTLED: Duration = Duration::from_millis(1500);
