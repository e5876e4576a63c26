//! A steady load from pods of the mesh: it does not depend on kubectl or the API server while it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::sample::{FORECAST, Sample, frugal, image};
use crate::wait::until;

/// A load that runs.
pub struct Load {
    cluster: Cluster,
    namespace: String,
    pods: Vec<String>,
    rate: f64,
}

/// What to send.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Requests per second of each pod.
    pub rate: u32,
    /// Number of pods.
    pub pods: usize,
    /// Whether each answer is kept.
    pub is_each: bool,
    /// Further arguments of `weft-app load`.
    pub arguments: Vec<&'static str>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rate: 200,
            pods: 1,
            is_each: false,
            arguments: Vec::new(),
        }
    }
}

/// What `weft-app load` prints at its end.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Summary {
    /// Requests that were sent.
    pub requests: u64,
    /// Those without an answer that is a success.
    pub failed: u64,
    /// How long it took.
    pub seconds: f64,
    /// Requests per second that were sent.
    pub rate: f64,
    /// Answers by version.
    pub versions: BTreeMap<String, u64>,
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
    /// Milliseconds.
    pub latency_ms: BTreeMap<String, f64>,
    /// The first failures.
    pub failures: Vec<Value>,
}

/// One answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// Milliseconds since 1970.
    pub at: u64,
    /// Who answered.
    pub version: Option<String>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Report {
    /// Of each pod.
    pub summaries: Vec<Summary>,
    /// Of each pod, where they were kept.
    pub answers: Vec<Vec<Answer>>,
    /// What the proxies on both sides wrote down of failures.
    pub access_log: String,
}

impl Load {
    /// Starts it and waits until all its pods send.
    ///
    /// # Errors
    /// That they do not start.
    pub async fn start(sample: &Sample, name: &str, plan: Plan) -> Result<Self> {
        let rate = plan.rate.to_string();
        let mut command = vec!["weft-app", "load", "--url", FORECAST, "--rate", &rate];
        // Longer than any test: the load is ended. More connections than are needed, so that one slow answer delays no
        // other request.
        command.extend(["--duration", "900", "--connections", "32"]);
        if plan.is_each {
            command.push("--each");
        }
        command.extend(&plan.arguments);
        let mut job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": sample.namespace},
            "spec": {
                "parallelism": plan.pods,
                "completions": plan.pods,
                "backoffLimit": 0,
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "restartPolicy": "Never",
                        "serviceAccountName": "frontend",
                        "containers": [{
                            "name": "load",
                            "image": image(),
                            "imagePullPolicy": "IfNotPresent",
                            "command": command,
                        }],
                    },
                },
            },
        });
        frugal(&mut job["spec"]["template"]);
        let cluster = sample.cluster.clone();
        cluster.apply(&job.to_string()).await?;
        let selector = format!("app={name}");
        let namespace = sample.namespace.clone();
        let started = until("the load runs", Duration::from_secs(90), async || {
            let pods = cluster.pods(&namespace, &selector).await?;
            let sending: Vec<String> = pods.iter().filter(|p| is_sending(p)).map(|p| p.name_any()).collect();
            Ok((sending.len() == plan.pods).then_some(sending))
        });
        let pods = started.await?;
        Ok(Self {
            cluster,
            namespace,
            pods,
            rate: f64::from(plan.rate),
        })
    }

    /// Ends it; what came of it.
    ///
    /// # Errors
    /// That it does not end, or has ended before.
    pub async fn end(self) -> Result<Report> {
        for pod in &self.pods {
            let arguments = [
                "-n",
                &self.namespace,
                "exec",
                pod,
                "-c",
                "load",
                "--",
                "weft-app",
                "end",
            ];
            self.cluster.kubectl(&arguments).await?;
        }
        let mut report = Report::default();
        for pod in &self.pods {
            self.ended(pod).await?;
            let log = self.cluster.logs(&self.namespace, pod, "load").await?;
            let (answers, summary) = log.trim_end().rsplit_once('\n').unwrap_or(("", log.trim_end()));
            let summary: Summary =
                serde_json::from_str(summary).with_context(|| format!("not a summary: {summary}"))?;
            eprintln!(
                "{}: {} requests, {} failed, {:.0}/s of {}/s, latency {:?} ms",
                self.namespace, summary.requests, summary.failed, summary.rate, self.rate, summary.latency_ms,
            );
            if summary.failed > 0 {
                report.access_log += &self.failures_in_logs(pod).await?;
            }
            report.summaries.push(summary);
            let answers = answers
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<Vec<Answer>, _>>();
            report.answers.push(answers.context("answers")?);
        }
        Ok(report)
    }

    async fn ended(&self, pod: &str) -> Result<()> {
        let api = self.cluster.api::<Pod>(&self.namespace);
        until("the load has ended", Duration::from_secs(30), async || {
            let pod = api.get(pod).await?;
            let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
            let ended = statuses
                .iter()
                .any(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
            Ok(ended.then_some(()))
        })
        .await
    }

    /// Why: what the sidecars on both sides have written down that is not a success.
    async fn failures_in_logs(&self, pod: &str) -> Result<String> {
        let mut text = String::new();
        let servers = self.cluster.pods(&self.namespace, "app=forecast").await?;
        let servers = servers.iter().map(|p| p.name_any());
        for name in [pod.to_owned()].into_iter().chain(servers) {
            let log = self
                .cluster
                .logs(&self.namespace, &name, "weft-proxy")
                .await
                .unwrap_or_default();
            let suspicious = log.lines().filter(|l| !l.contains("\" 200 ")).take(40);
            text += &format!("== {name}\n");
            suspicious.for_each(|line| text += &format!("{line}\n"));
        }
        Ok(text)
    }
}

impl Report {
    /// The promise that nothing was lost.
    ///
    /// # Errors
    /// What failed, and what the sidecars know of it.
    pub fn nothing_failed(&self) -> Result<()> {
        let failed: u64 = self.summaries.iter().map(|s| s.failed).sum();
        let requests: u64 = self.summaries.iter().map(|s| s.requests).sum();
        let failures: Vec<String> = self
            .summaries
            .iter()
            .flat_map(|s| &s.failures)
            .map(ToString::to_string)
            .collect();
        ensure!(requests > 0, "no request was sent");
        ensure!(
            failed == 0,
            "{failed} of {requests} requests failed; the first:\n{}\nthe proxies say:\n{}",
            failures.join("\n"),
            self.access_log
        );
        Ok(())
    }
}

fn is_sending(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.is_some_and(|all| {
        all.iter()
            .any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()))
    })
}
