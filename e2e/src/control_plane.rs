//! Weft's control plane, taken away and brought back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;

use crate::cluster::Cluster;
use crate::wait::until;

/// Operator and injector of the default revision.
pub struct ControlPlane {
    cluster: Cluster,
    namespace: String,
}

impl ControlPlane {
    /// The one in `weft-system`, or in WEFT_NAMESPACE.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.clone(),
            namespace: std::env::var("WEFT_NAMESPACE").unwrap_or_else(|_| "weft-system".to_owned()),
        }
    }

    /// Does something while the operator is away, and brings it back whatever comes of it.
    ///
    /// # Errors
    /// What became of the work, or that the operator does not come back.
    pub async fn without_operator<T>(&self, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let replicas = self.replicas(OPERATOR).await?;
        self.scale(OPERATOR, 0).await?;
        let result = match self.gone(OPERATOR).await {
            Ok(()) => work().await,
            Err(error) => Err(error),
        };
        self.scale(OPERATOR, replicas).await?;
        self.cluster.rolled_out(&self.namespace, OPERATOR).await?;
        result
    }

    /// Does something while the operator runs with an argument more, and takes it away again whatever comes of it.
    ///
    /// # Errors
    /// What became of the work, or that the operator does not come back.
    pub async fn with_operator_argument<T>(&self, argument: &str, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let add = format!(r#"[{{"op":"add","path":"{ARGUMENTS}/-","value":"{argument}"}}]"#);
        self.patch(&add).await?;
        let result = match self.cluster.rolled_out(&self.namespace, OPERATOR).await {
            Ok(()) => work().await,
            Err(error) => Err(error),
        };
        let list = self.arguments().await?;
        let index = list
            .iter()
            .position(|a| a == argument)
            .context("the argument is gone")?;
        let remove = format!(r#"[{{"op":"remove","path":"{ARGUMENTS}/{index}"}}]"#);
        self.patch(&remove).await?;
        self.cluster.rolled_out(&self.namespace, OPERATOR).await?;
        result
    }

    /// Kills all of its processes without notice, and waits until others have taken over.
    ///
    /// # Errors
    /// That none does.
    pub async fn kill(&self) -> Result<()> {
        let selector = "app.kubernetes.io/name in (weft-operator,weft-injector)";
        let old: Vec<String> = self
            .cluster
            .pods(&self.namespace, selector)
            .await?
            .iter()
            .map(|p| p.name_any())
            .collect();
        ensure!(!old.is_empty(), "no control plane in {}", self.namespace);
        let arguments = [
            "-n",
            &self.namespace,
            "delete",
            "pod",
            "-l",
            selector,
            "--grace-period=0",
            "--force",
        ];
        self.cluster.kubectl(&arguments).await?;
        for deployment in [OPERATOR, INJECTOR] {
            self.cluster.rolled_out(&self.namespace, deployment).await?;
        }
        Ok(())
    }

    async fn replicas(&self, deployment: &str) -> Result<usize> {
        let arguments = [
            "-n",
            &self.namespace,
            "get",
            "deployment",
            deployment,
            "-o",
            "jsonpath={.spec.replicas}",
        ];
        let text = self.cluster.kubectl(&arguments).await?;
        text.trim()
            .parse()
            .with_context(|| format!("replicas of {deployment}: {text}"))
    }

    async fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let arguments = ["-n", &self.namespace, "scale", "deployment", deployment, &replicas];
        self.cluster.kubectl(&arguments).await.map(drop)
    }

    async fn gone(&self, deployment: &str) -> Result<()> {
        let selector = format!("app.kubernetes.io/name={deployment}");
        let pods = self.cluster.api::<k8s_openapi::api::core::v1::Pod>(&self.namespace);
        let list = kube::api::ListParams::default().labels(&selector);
        let what = format!("{deployment} is away");
        until(&what, Duration::from_secs(60), async || {
            Ok(pods.list(&list).await?.items.is_empty().then_some(()))
        })
        .await
    }

    async fn patch(&self, patch: &str) -> Result<()> {
        let arguments = [
            "-n",
            &self.namespace,
            "patch",
            "deployment",
            OPERATOR,
            "--type=json",
            "-p",
            patch,
        ];
        self.cluster.kubectl(&arguments).await.map(drop)
    }

    async fn arguments(&self) -> Result<Vec<String>> {
        let path = "jsonpath={.spec.template.spec.containers[0].args}";
        let arguments = ["-n", &self.namespace, "get", "deployment", OPERATOR, "-o", path];
        let text = self.cluster.kubectl(&arguments).await?;
        serde_json::from_str(&text).with_context(|| format!("arguments of the operator: {text}"))
    }
}

const OPERATOR: &str = "weft-operator";
const INJECTOR: &str = "weft-injector";
const ARGUMENTS: &str = "/spec/template/spec/containers/0/args";
