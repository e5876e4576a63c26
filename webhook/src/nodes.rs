//! Whether nodes can run native sidecars (INJ-052, INJ-053).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::oneshot;

/// First Kubernetes version whose native sidecars are stable.
const NATIVE: (u32, u32) = (1, 33);

/// Versions of the API server and of the nodes' kubelets, as last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// `major.minor` of the API server; `None` until it was asked.
    pub server: Option<(u32, u32)>,
    /// The same of the kubelets, by node.
    pub kubelets: BTreeMap<String, Option<(u32, u32)>>,
}

impl Versions {
    /// Whether a pod can have a native sidecar: on its node where it has one already, else on every node. With
    /// nothing known the answer is no, and the pod gets the form that every version runs (INJ-053).
    #[must_use]
    pub fn native(&self, node: Option<&str>) -> bool {
        let recent = |version: &Option<(u32, u32)>| version.is_some_and(|version| version >= NATIVE);
        if !recent(&self.server) {
            return false;
        }
        match node.filter(|node| !node.is_empty()) {
            Some(node) => self.kubelets.get(node).is_some_and(recent),
            None => !self.kubelets.is_empty() && self.kubelets.values().all(recent),
        }
    }
}

/// `major.minor` of a version such as `v1.36.3` or `v1.33.1-gke.100`.
#[must_use]
pub fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let digits: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, digits.parse().ok()?))
}

/// Follows the nodes for ever. `first` is told once a first complete list was seen. What a failing watch showed last
/// stays; the API server's version is asked again with every list, so that an upgrade is noticed.
pub async fn follow(client: Client, versions: Arc<ArcSwap<Versions>>, first: oneshot::Sender<()>) {
    let nodes = Api::<Node>::all(client.clone());
    let mut events = watcher(nodes, watcher::Config::default()).default_backoff().boxed();
    let mut known = Versions::default();
    let mut listed = BTreeMap::new();
    let mut first = Some(first);
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => {
                listed = BTreeMap::new();
                continue;
            }
            Ok(Some(watcher::Event::InitApply(node))) => {
                listed.insert(node.name_any(), kubelet(&node));
                continue;
            }
            Ok(Some(watcher::Event::InitDone)) => {
                known = Versions {
                    server: server(&client).await,
                    kubelets: std::mem::take(&mut listed),
                };
            }
            Ok(Some(watcher::Event::Apply(node))) => {
                known.kubelets.insert(node.name_any(), kubelet(&node));
            }
            Ok(Some(watcher::Event::Delete(node))) => {
                known.kubelets.remove(&node.name_any());
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "nodes cannot be watched");
                continue;
            }
        }
        if **versions.load() != known {
            versions.store(Arc::new(known.clone()));
        }
        if let Some(first) = first.take() {
            tracing::info!(
                nodes = known.kubelets.len(),
                native = known.native(None),
                "node versions known"
            );
            let _ = first.send(());
        }
    }
}

/// The API server's version; asked until it answers.
async fn server(client: &Client) -> Option<(u32, u32)> {
    loop {
        match client.apiserver_version().await {
            Ok(info) => return parse(&info.git_version),
            Err(error) => tracing::warn!(%error, "the API server's version is unknown"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn kubelet(node: &Node) -> Option<(u32, u32)> {
    parse(&node.status.as_ref()?.node_info.as_ref()?.kubelet_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(server: &str, kubelets: &[(&str, &str)]) -> Versions {
        let kubelets = kubelets
            .iter()
            .map(|(node, version)| ((*node).to_owned(), parse(version)))
            .collect();
        Versions {
            server: parse(server),
            kubelets,
        }
    }

    // spec: INJ-052, INJ-053
    #[test]
    fn native_needs_the_server_and_every_node_or_the_pods_own() {
        assert!(versions("v1.36.3", &[("a", "v1.33.0"), ("b", "v1.36.3-gke.1")]).native(None));
        assert!(!versions("v1.36.3", &[("a", "v1.32.9"), ("b", "v1.36.3")]).native(None));
        assert!(versions("v1.36.3", &[("a", "v1.32.9"), ("b", "v1.36.3")]).native(Some("b")));
        assert!(!versions("v1.36.3", &[("a", "v1.32.9"), ("b", "v1.36.3")]).native(Some("a")));
        assert!(!versions("v1.36.3", &[("a", "v1.36.3")]).native(Some("unknown")));
        assert!(!versions("v1.32.0", &[("a", "v1.36.3")]).native(None));
        assert!(!versions("v1.36.3", &[]).native(None));
        assert!(!versions("v1.36.3", &[("a", "strange")]).native(None));
        assert!(!Versions::default().native(None));
        assert_eq!(parse("v1.33+"), Some((1, 33)));
    }
}
