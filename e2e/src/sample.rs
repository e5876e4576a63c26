//! The sample of `samples/forecast` in a namespace of a test's own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, is_ready};
use crate::wait::until;

/// `frontend`, and `forecast` as v1 and v2.
pub struct Sample {
    /// Where it is.
    pub cluster: Cluster,
    /// Its own.
    pub namespace: String,
}

/// A namespace that tests delete: with an opt-in to injection, or without.
///
/// # Errors
/// The API server's.
pub async fn namespace(cluster: &Cluster, name: &str, is_meshed: bool) -> Result<String> {
    let name = format!("e2e-{name}-{}", std::process::id());
    let mut labels = json!({TEST_LABEL: "true"});
    if is_meshed {
        labels["weft.dev/inject"] = json!("enabled");
    }
    let object = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
    let all: Api<Namespace> = Api::all(cluster.client());
    all.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("create namespace {name}"))?;
    // Pods need it, and whoever makes it may be slower than this test.
    until("the namespace's service account", Duration::from_secs(30), async || {
        let accounts = cluster.api::<k8s_openapi::api::core::v1::ServiceAccount>(&name);
        Ok(accounts.get_opt("default").await?)
    })
    .await?;
    Ok(name)
}

/// Deletes a namespace, and waits until its pods are gone, so that they do not disturb the next test.
///
/// # Errors
/// That they are still there after two minutes.
pub async fn remove_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    // First, so that nobody makes pods anew.
    let all: Api<Namespace> = Api::all(cluster.client());
    all.delete(name, &DeleteParams::background())
        .await
        .context("delete the namespace")?;
    // The tests' own pods have nothing to lose; their grace would be waited out.
    let pods = cluster.api::<Pod>(name);
    let at_once = DeleteParams::default().grace_period(1);
    let everything = kube::api::ListParams::default();
    until("the namespace's pods are gone", Duration::from_secs(120), async || {
        pods.delete_collection(&at_once, &everything)
            .await
            .context("delete pods")?;
        Ok(pods.list(&everything).await?.items.is_empty().then_some(()))
    })
    .await
}

impl Sample {
    /// Deploys all of it and waits until it is ready.
    ///
    /// # Errors
    /// That it does not become ready.
    pub async fn deploy(cluster: &Cluster, name: &str) -> Result<Self> {
        let namespace = namespace(cluster, name, true).await?;
        let sample = Self {
            cluster: cluster.clone(),
            namespace,
        };
        let objects: Vec<Value> = sample
            .objects("forecast/forecast.yaml")?
            .into_iter()
            .chain(sample.objects("forecast/frontend.yaml")?)
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        cluster.apply(&list.to_string()).await?;
        for deployment in ["forecast-v1", "forecast-v2", "frontend"] {
            cluster.rolled_out(&sample.namespace, deployment).await?;
        }
        // A pod is ready before others are told of it.
        for host in ["forecast", "frontend"] {
            let url = format!("http://{host}/");
            until(&format!("an answer of {host}"), Duration::from_secs(60), async || {
                let answer = sample.get(&[&url]).await?;
                ensure!(answer["status"] == 200, "{answer}");
                Ok(Some(()))
            })
            .await?;
        }
        Ok(sample)
    }

    /// The sample with one version of forecast, in so many pods, behind its Service.
    ///
    /// # Errors
    /// That it does not become ready.
    pub async fn deploy_one_version(cluster: &Cluster, name: &str, replicas: usize) -> Result<Self> {
        let sample = Self::deploy(cluster, name).await?;
        sample.scale("forecast-v2", 0).await?;
        sample.scale("forecast-v1", replicas).await?;
        Ok(sample)
    }

    /// Applies a manifest of `samples/routes`.
    ///
    /// # Errors
    /// What kubectl says.
    pub async fn apply(&self, file: &str) -> Result<()> {
        self.cluster.apply(&self.manifest(file)?).await.map(drop)
    }

    /// A manifest of `samples/routes`, for this namespace.
    ///
    /// # Errors
    /// That there is none.
    pub fn manifest(&self, file: &str) -> Result<String> {
        let objects = self.objects(&format!("routes/{file}.yaml"))?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        Ok(list.to_string())
    }

    /// Waits until all proxies use what was rendered from a mesh object.
    ///
    /// # Errors
    /// That they do not within a minute.
    pub async fn reconciled(&self, object: &str) -> Result<()> {
        let arguments = [
            "-n",
            &self.namespace,
            "wait",
            "--for=condition=Reconciled",
            "--timeout=60s",
            object,
        ];
        self.cluster.kubectl(&arguments).await.map(drop)
    }

    /// The versions by subset, and all calls to v1.
    ///
    /// # Errors
    /// That it is not in force within a minute.
    pub async fn route_to_v1(&self) -> Result<()> {
        self.apply("subsets").await?;
        self.apply("v1-only").await?;
        self.reconciled("destinationrule/forecast").await?;
        self.reconciled("virtualservice/forecast").await
    }

    /// Sets the number of pods of a Deployment, and waits until they are ready.
    ///
    /// # Errors
    /// That they are not.
    pub async fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let arguments = ["-n", &self.namespace, "scale", "deployment", deployment, &replicas];
        self.cluster.kubectl(&arguments).await?;
        self.cluster.rolled_out(&self.namespace, deployment).await
    }

    /// `kubectl rollout restart`, and waits until all pods are new ones and the old ones are gone.
    ///
    /// # Errors
    /// That they are not within two minutes.
    pub async fn restart(&self, deployment: &str) -> Result<()> {
        let old = self.pods_of(deployment).await?;
        let name = format!("deployment/{deployment}");
        let arguments = ["-n", &self.namespace, "rollout", "restart", &name];
        self.cluster.kubectl(&arguments).await?;
        self.cluster.rolled_out(&self.namespace, deployment).await?;
        let all = self.cluster.api::<Pod>(&self.namespace);
        until("the old pods are gone", Duration::from_secs(60), async || {
            for name in &old {
                if all.get_opt(name).await?.is_some() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    /// Names of the pods of a Deployment of the sample.
    ///
    /// # Errors
    /// The API server's.
    pub async fn pods_of(&self, deployment: &str) -> Result<Vec<String>> {
        let selector = match deployment.split_once('-') {
            Some((app, version)) => format!("app={app},version={version}"),
            None => format!("app={deployment}"),
        };
        let pods = self.cluster.pods(&self.namespace, &selector).await?;
        Ok(pods.iter().map(ResourceExt::name_any).collect())
    }

    /// A request by `weft-app get` from the frontend's pod, through its sidecar.
    ///
    /// # Errors
    /// That the pod is not there.
    pub async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let pod = self.cluster.ready_pod(&self.namespace, "app=frontend").await?;
        get(&self.cluster, &self.namespace, &pod, "frontend", arguments).await
    }

    /// Many requests by `weft-app load` from the frontend's pod: its summary.
    ///
    /// # Errors
    /// That the pod is not there.
    pub async fn calls(&self, arguments: &[&str]) -> Result<crate::load::Summary> {
        let pod = self.cluster.ready_pod(&self.namespace, "app=frontend").await?;
        let mut command = vec!["weft-app", "load", "--url", FORECAST];
        command.extend(arguments);
        let text = self.cluster.exec(&self.namespace, &pod, "frontend", &command).await?;
        serde_json::from_str(&text).with_context(|| format!("not a summary: {text}"))
    }

    /// Takes it away.
    ///
    /// # Errors
    /// That it is still there after a while.
    pub async fn remove(self) -> Result<()> {
        remove_namespace(&self.cluster, &self.namespace).await
    }

    /// The objects of a file of the samples, in this namespace, with requests that let several samples share a node.
    fn objects(&self, file: &str) -> Result<Vec<Value>> {
        let path = repository().join("samples").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut objects = Vec::new();
        for part in text.split("\n---\n") {
            let mut object: Value = serde_yaml::from_str(part).with_context(|| format!("{}", path.display()))?;
            ensure!(object.is_object(), "{}: an object is missing", path.display());
            object["metadata"]["namespace"] = json!(self.namespace);
            if object["kind"] == "Deployment" {
                frugal(&mut object["spec"]["template"]);
            }
            objects.push(object);
        }
        Ok(objects)
    }
}

/// One request by `weft-app get`, from a container: its report.
///
/// # Errors
/// That the container is not there.
pub async fn get(cluster: &Cluster, namespace: &str, pod: &str, container: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = vec!["weft-app", "get"];
    command.extend(arguments);
    let text = cluster.exec(namespace, pod, container, &command).await?;
    serde_json::from_str(&text).with_context(|| format!("not a report: {text}"))
}

/// A pod that serves HTTP on a port that nobody else has, for what no sample has.
#[must_use]
pub fn pod(namespace: &str, name: &str) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app",
                "image": image(),
                "imagePullPolicy": "IfNotPresent",
                "command": ["weft-app", "serve", "--http", "0"],
            }],
        },
    });
    frugal(&mut pod);
    pod
}

/// Waits until a pod is ready.
///
/// # Errors
/// That it is not within a minute.
pub async fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<Pod> {
    let api = cluster.api::<Pod>(namespace);
    let what = format!("{namespace}/{name} is ready");
    until(&what, Duration::from_secs(60), async || {
        Ok(api.get_opt(name).await?.filter(is_ready))
    })
    .await
}

/// What a sidecar asks for by default is too much for many on a small node.
pub(crate) fn frugal(template: &mut Value) {
    template["metadata"]["annotations"]["sidecar.istio.io/proxyCPU"] = json!("10m");
    template["metadata"]["annotations"]["sidecar.istio.io/proxyMemory"] = json!("16Mi");
}

/// The image of the sample's program; clusters with a registry name theirs.
#[must_use]
pub fn image() -> String {
    std::env::var("WEFT_APP_IMAGE").unwrap_or_else(|_| "weft-app:dev".to_owned())
}

/// The checkout.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Service of the sample.
pub const FORECAST: &str = "http://forecast/";
/// Label of all namespaces of tests.
pub const TEST_LABEL: &str = "weft.dev/e2e";
