//! Who gets a sidecar.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::json;
use weft_e2e::sample::{namespace, pod, ready, remove_namespace};
use weft_e2e::{Cluster, until};

// spec: INJ-010, INJ-011, INJ-020, INJ-021, INJ-023, INJ-024, INJ-029, INJ-041, OPS-174
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_namespace_label_injects_a_pod_label_opts_out_and_the_hosts_network_is_left_alone() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let meshed = namespace(&cluster, "injected", true).await?;
    let plain = namespace(&cluster, "plain", false).await?;

    let mut all = vec![
        (pod(&meshed, "by-namespace"), true),
        (pod(&plain, "nobody-asked"), false),
    ];
    for label in ["weft.dev/inject", "sidecar.istio.io/inject"] {
        let name = label.replace(['.', '/'], "-");
        let mut opts_out = pod(&meshed, &format!("out-{name}"));
        opts_out["metadata"]["labels"][label] = json!("false");
        all.push((opts_out, false));
        let mut opts_in = pod(&plain, &format!("in-{name}"));
        opts_in["metadata"]["labels"][label] = json!("true");
        all.push((opts_in, true));
    }
    let mut host = pod(&meshed, "host-network");
    host["spec"]["hostNetwork"] = json!(true);
    all.push((host, false));
    let mut insists = pod(&meshed, "host-network-insists");
    insists["spec"]["hostNetwork"] = json!(true);
    insists["metadata"]["labels"]["weft.dev/inject"] = json!("true");
    all.push((insists, false));

    let items: Vec<_> = all.iter().map(|(pod, _)| pod).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    // A dry run is answered alike and makes nothing.
    let dry = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = cluster.try_kubectl(&dry, Some(&list)).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answered: serde_json::Value = serde_json::from_slice(&output.stdout).context("a list")?;
    cluster.apply(&list).await?;
    for (index, (pod, is_expected)) in all.iter().enumerate() {
        let name = pod["metadata"]["name"].as_str().context("a name")?;
        let namespace = pod["metadata"]["namespace"].as_str().context("a namespace")?;
        let dry: Pod = serde_json::from_value(answered["items"][index].clone())?;
        let real = ready(&cluster, namespace, name).await?;
        for (which, pod) in [("dry run", &dry), ("real", &real)] {
            ensure!(
                has_sidecar(pod) == *is_expected,
                "{name} ({which}): a sidecar is {}",
                if *is_expected { "missing" } else { "there" }
            );
        }
    }
    remove_namespace(&cluster, &meshed).await?;
    remove_namespace(&cluster, &plain).await
}

// spec: INJ-111, INJ-195, LIFE-054
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_job_completes_beside_its_sidecar_and_a_workload_is_stored_as_it_is() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let meshed = namespace(&cluster, "job", true).await?;
    let mut template = pod(&meshed, "once");
    template["spec"]["restartPolicy"] = json!("Never");
    // Its own readiness page: the call passes through its own sidecar's network and ends.
    template["spec"]["containers"][0]["command"] = json!(["weft-app", "get", "http://localhost:15021/healthz/ready"]);
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once", "namespace": meshed},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": "once"}}, "spec": template["spec"]},
        },
    });
    let dry = ["apply", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = cluster.try_kubectl(&dry, Some(&job.to_string())).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answered: serde_json::Value = serde_json::from_slice(&output.stdout).context("a Job")?;
    let containers = &answered["spec"]["template"]["spec"];
    ensure!(
        containers["initContainers"].is_null() && containers["containers"].as_array().map(Vec::len) == Some(1),
        "{answered}"
    );
    cluster.apply(&job.to_string()).await?;
    let jobs = cluster.api::<Job>(&meshed);
    until("the Job is complete", Duration::from_secs(120), async || {
        let status = jobs.get("once").await?.status.unwrap_or_default();
        ensure!(status.failed.unwrap_or(0) == 0, "it failed: {status:?}");
        Ok((status.succeeded == Some(1)).then_some(()))
    })
    .await?;
    let pods = cluster.api::<Pod>(&meshed);
    let of_job = ListParams::default().labels("app=once");
    let pod = pods.list(&of_job).await?.items.pop().context("its pod")?;
    ensure!(has_sidecar(&pod), "without a sidecar");
    remove_namespace(&cluster, &meshed).await
}

fn has_sidecar(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    init.iter()
        .any(|c| c.name == "weft-proxy" && c.restart_policy.as_deref() == Some("Always"))
}
