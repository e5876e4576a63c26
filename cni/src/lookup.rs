//! Asks the API server for the pod of a sandbox.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// The pod of a sandbox, as the runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime tells it.
    pub uid: Option<String>,
}

/// Why the pod of a sandbox is not known.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {source}; the agent of DaemonSet weft-cni writes it", path.display())]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The API server refused, or did not answer.
    #[error("ask the API server for pod {namespace}/{name}: {}{}", said(cause), hint(cause))]
    Api {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        cause: Box<kube::Error>,
    },
    /// It did not answer in time.
    #[error("the API server did not tell of pod {namespace}/{name} within {} s", LIMIT.as_secs())]
    Slow {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// Another pod has that name by now.
    #[error("pod {namespace}/{name} has uid {found}, and its sandbox is for uid {expected}: it was replaced")]
    Replaced {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The one of the API server.
        found: String,
        /// The one of the sandbox.
        expected: String,
    },
}

/// The pod of a sandbox.
///
/// # Errors
/// [`LookupError`]: what the sandbox is for is not known.
pub async fn find(kubeconfig: &Path, pod: &PodName) -> Result<Pod, LookupError> {
    let asked = tokio::time::timeout(LIMIT, get(kubeconfig, pod)).await;
    let found = asked.unwrap_or_else(|_| {
        Err(LookupError::Slow {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        })
    })?;
    match (&pod.uid, &found.metadata.uid) {
        (Some(expected), Some(uid)) if expected != uid && !is_mirror(&found) => Err(LookupError::Replaced {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            found: uid.clone(),
            expected: expected.clone(),
        }),
        _ => Ok(found),
    }
}

async fn get(kubeconfig: &Path, pod: &PodName) -> Result<Pod, LookupError> {
    let unusable = |source| LookupError::Kubeconfig {
        path: kubeconfig.to_owned(),
        source: Box::new(source),
    };
    let refused = |cause| LookupError::Api {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        cause: Box::new(cause),
    };
    let read = Kubeconfig::read_from(kubeconfig).map_err(unusable)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(unusable)?;
    // That of the runtime's environment is for images; the API server is of the cluster.
    config.proxy_url = None;
    let client = Client::try_from(config).map_err(refused)?;
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    pods.get(&pod.name).await.map_err(refused)
}

/// A static pod has an uid of the kubelet's, and its mirror one of the API server's.
fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

/// What an Event has room for: the API server's own words, else what the attempt came to and why.
fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    crate::chain(error)
}

fn hint(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
            "; the agent of DaemonSet weft-cni keeps the token fresh: see whether it runs on this node"
        }
        _ => "",
    }
}

/// The kubelet tries a sandbox again by itself.
const LIMIT: Duration = Duration::from_secs(8);
