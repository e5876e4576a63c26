//! The cluster that KUBECONFIG names.

use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A cluster, through its API and through kubectl.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// The one that KUBECONFIG names.
    ///
    /// # Errors
    /// That there is none, or that it does not answer.
    pub async fn connect() -> Result<Self> {
        // An error says that one is installed already, which is what is wanted.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::try_default().await.context("KUBECONFIG names a cluster")?;
        client.apiserver_version().await.context("ask the API server")?;
        Ok(Self { client })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A namespaced kind.
    #[must_use]
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Pods that are not on their way out, by label selector.
    ///
    /// # Errors
    /// The API server's.
    pub async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let list = ListParams::default().labels(selector);
        let all = self.api::<Pod>(namespace).list(&list).await.context("list pods")?;
        Ok(all
            .into_iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .collect())
    }

    /// What a container has written.
    ///
    /// # Errors
    /// The API server's.
    pub async fn logs(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        let parameters = LogParams {
            container: Some(container.to_owned()),
            ..LogParams::default()
        };
        let logs = self.api::<Pod>(namespace).logs(pod, &parameters).await;
        logs.with_context(|| format!("logs of {container} in {namespace}/{pod}"))
    }

    /// kubectl's output.
    ///
    /// # Errors
    /// What kubectl wrote to its standard error, when it failed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        checked(arguments, &self.try_kubectl(arguments, None).await?)
    }

    /// Runs kubectl to its end, successful or not.
    ///
    /// # Errors
    /// That it could not be run.
    pub async fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("run kubectl")?;
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            // A kubectl that ends before it has read everything says itself why.
            drop(pipe.write_all(input.as_bytes()).await);
        }
        child.wait_with_output().await.context("wait for kubectl")
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        let arguments = ["apply", "-f", "-"];
        checked(&arguments, &self.try_kubectl(&arguments, Some(manifests)).await?)
    }

    /// `kubectl apply --server-side -f -`.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply_server_side(&self, manifests: &str) -> Result<String> {
        let arguments = ["apply", "--server-side", "-f", "-"];
        checked(&arguments, &self.try_kubectl(&arguments, Some(manifests)).await?)
    }

    /// Applies manifests that must be refused; what kubectl says.
    ///
    /// # Errors
    /// That they were accepted.
    pub async fn apply_refused(&self, manifests: &str) -> Result<String> {
        let output = self.try_kubectl(&["apply", "-f", "-"], Some(manifests)).await?;
        ensure!(!output.status.success(), "accepted, but must be refused:\n{manifests}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a command in a container; its standard output, whatever its exit code.
    ///
    /// # Errors
    /// That it wrote nothing.
    pub async fn exec(&self, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["-n", namespace, "exec", pod, "-c", container, "--"];
        arguments.extend(command);
        let output = self.try_kubectl(&arguments, None).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() || !text.is_empty(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Waits until a Deployment is rolled out.
    ///
    /// # Errors
    /// That it is not after two minutes.
    pub async fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        let name = format!("deployment/{deployment}");
        let arguments = ["-n", namespace, "rollout", "status", &name, "--timeout", "120s"];
        if let Err(error) = self.kubectl(&arguments).await {
            let pods = self.kubectl(&["-n", namespace, "get", "pods", "-o", "wide"]).await?;
            let events = self
                .kubectl(&["-n", namespace, "get", "events", "--sort-by", ".lastTimestamp"])
                .await?;
            let last: Vec<&str> = events.lines().rev().take(15).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            return Err(error.context(format!("pods:\n{pods}last events:\n{}", last.join("\n"))));
        }
        Ok(())
    }

    /// The only ready pod, or one of them.
    ///
    /// # Errors
    /// That there is none.
    pub async fn ready_pod(&self, namespace: &str, selector: &str) -> Result<String> {
        let pods = self.pods(namespace, selector).await?;
        let ready = pods.iter().find(|p| is_ready(p));
        Ok(ready
            .with_context(|| format!("no pod of {selector} in {namespace} is ready"))?
            .name_any())
    }
}

/// Whether a pod's condition Ready is true.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn checked(arguments: &[&str], output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
