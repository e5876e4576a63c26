//! What a sidecar says of itself, through the API server's way to a pod's port.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::cluster::Cluster;

/// A part of `/config/status`.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Active`, `Rejected`, ...
    pub state: String,
    /// Why, where it is not active.
    #[serde(default)]
    pub error: Option<String>,
    /// Revisions in use.
    pub active: Revisions,
    /// End of the certificate in use.
    #[serde(default)]
    pub cert_not_after: Option<u64>,
}

/// Of configuration and endpoints.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
pub struct Revisions {
    /// Configuration.
    #[serde(default)]
    pub cfg: Option<String>,
    /// Endpoints.
    #[serde(default)]
    pub ep: Option<String>,
}

/// What the sidecar of a pod uses.
///
/// # Errors
/// That it does not answer.
pub async fn status(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Status> {
    let text = page(cluster, namespace, pod, "config/status").await?;
    serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
}

/// A metric's value, by the beginning of its line; 0 where there is none.
///
/// # Errors
/// That the sidecar does not answer.
pub async fn metric(cluster: &Cluster, namespace: &str, pod: &str, beginning: &str) -> Result<f64> {
    let text = page(cluster, namespace, pod, "stats/prometheus").await?;
    let lines = text.lines().filter(|l| l.starts_with(beginning));
    Ok(lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

async fn page(cluster: &Cluster, namespace: &str, pod: &str, path: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:15020/proxy/{path}");
    let request = http::Request::get(&path).body(Vec::new());
    let request = request.context("a request")?;
    cluster
        .client()
        .request_text(request)
        .await
        .with_context(|| format!("ask {namespace}/{pod} for {path}"))
}
