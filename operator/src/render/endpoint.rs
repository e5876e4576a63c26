//! Endpoints as seen from a namespace (DLV-110 ff., SM-090 ff., ID-093).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use weft_bundle::key::{TLS_MODE_LABEL, canonical_name, canonical_revision};
use weft_bundle::pack::{EndpointInput, HostInput};
use weft_bundle::wire::{Health, MeshTls, MtlsMode, PeerWorkload};

use super::service::Registered;
use super::{Shared, inbound};
use crate::world::{World, pod};

/// The pods and templates of one namespace.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) templates: Vec<Arc<PodTemplateSpec>>,
}

impl Members {
    /// Service accounts of those that a service selects (DLV-112).
    pub(super) fn accounts(&self, service: &Registered<'_>) -> Vec<String> {
        let spec = service.service.spec.as_ref();
        let Some(selector) = spec.and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) else {
            return Vec::new();
        };
        let pods = self.pods.iter().map(|p| (p.metadata.labels.as_ref(), p.spec.as_ref()));
        let templates = self.templates.iter();
        let templates = templates.map(|t| (t.metadata.as_ref().and_then(|m| m.labels.as_ref()), t.spec.as_ref()));
        let selected = pods
            .chain(templates)
            .filter(|(labels, _)| labels.is_some_and(|l| selector.iter().all(|(k, v)| l.get(k) == Some(v))));
        let accounts: BTreeSet<&str> = selected.map(|(_, spec)| pod::service_account(spec)).collect();
        let full = accounts
            .into_iter()
            .map(|account| format!("{}/{account}", service.namespace));
        full.collect()
    }

    /// Localities of the nodes that run its pods (DLV-014).
    pub(super) fn nodes(&self, localities: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let nodes: BTreeSet<&String> = self
            .pods
            .iter()
            .filter_map(|p| p.spec.as_ref()?.node_name.as_ref())
            .collect();
        let known = nodes
            .into_iter()
            .filter_map(|node| Some((node.clone(), localities.get(node)?.clone())));
        known.collect()
    }

    /// Number of proxies of each workload by zone (DR-071).
    pub(super) fn proxies(&self, localities: &BTreeMap<String, String>) -> BTreeMap<String, BTreeMap<String, u32>> {
        let mut out: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for pod in &self.pods {
            let has_proxy = pod
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(TLS_MODE_LABEL))
                .is_some();
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            let has_ended = matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some();
            let Some(locality) = locality(localities, pod).filter(|_| has_proxy && !has_ended) else {
                continue;
            };
            let zone = zone(&locality);
            *out.entry(pod::workload(pod)).or_default().entry(zone).or_default() += 1;
        }
        out
    }
}

/// The pods that have the addresses, as endpoints know them.
pub(super) type Pods<'a> = HashMap<IpAddr, &'a Arc<Pod>>;

/// Pods by address; those on the network of their node have none of their own.
pub(super) fn by_address(world: &World) -> Pods<'_> {
    let own = world
        .pods
        .values()
        .filter(|p| p.spec.as_ref().is_none_or(|s| s.host_network != Some(true)));
    own.filter_map(|p| Some((super::keys::address(p)?, p))).collect()
}

/// One host with its endpoints.
pub(super) fn host(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    members: &Members,
    pods: &Pods<'_>,
    localities: &BTreeMap<String, String>,
) -> HostInput {
    HostInput {
        host: service.host.clone(),
        accounts: members.accounts(service),
        endpoints: endpoints(shared, service, pods, localities),
    }
}

fn endpoints(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    pods: &Pods<'_>,
    localities: &BTreeMap<String, String>,
) -> Vec<EndpointInput> {
    let id = (service.namespace.to_owned(), service.name.to_owned());
    // An address in several slices counts once (SM-096); its ports are those of all.
    let mut out: BTreeMap<IpAddr, EndpointInput> = BTreeMap::new();
    for slice in shared.world.slices.get(&id).into_iter().flatten() {
        let tcp = |protocol: Option<&str>| protocol.is_none_or(|p| p == "TCP");
        let ports: BTreeMap<String, u16> = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| tcp(p.protocol.as_deref()))
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), u16::try_from(p.port?).ok()?)))
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let pod = pods
                    .get(&address)
                    .map(|p| p.as_ref())
                    .filter(|p| is_target(p, endpoint.target_ref.as_ref()));
                let is_draining = pod
                    .and_then(|p| p.metadata.labels.as_ref())
                    .is_some_and(|l| l.get("istio.io/draining").is_some_and(|v| !v.is_empty()));
                let health = match (ready, terminating, is_draining) {
                    (true, _, true) => Health::Draining,
                    (true, _, false) => Health::Ready,
                    (false, true, _) => Health::Draining,
                    (false, false, _) if service.headless => Health::Unready,
                    // Not ready: nobody's, until it is (SM-091).
                    (false, false, _) => continue,
                };
                let known = out
                    .entry(address)
                    .or_insert_with(|| describe(shared, address, pod, health, localities));
                known
                    .ports
                    .extend(ports.iter().map(|(name, port)| (name.clone(), *port)));
            }
        }
    }
    out.into_values().collect()
}

/// The pod that a slice means: an address may have gone to another one since.
fn is_target(pod: &Pod, target: Option<&k8s_openapi::api::core::v1::ObjectReference>) -> bool {
    let named = target.filter(|t| t.kind.as_deref() == Some("Pod"));
    named.is_none_or(|t| t.name == pod.metadata.name && t.namespace == pod.metadata.namespace)
}

fn describe(
    shared: &Shared<'_>,
    address: IpAddr,
    pod: Option<&Pod>,
    health: Health,
    localities: &BTreeMap<String, String>,
) -> EndpointInput {
    let none = BTreeMap::new();
    let labels = pod.and_then(|p| p.metadata.labels.as_ref()).unwrap_or(&none);
    EndpointInput {
        address,
        ports: BTreeMap::new(),
        labels: labels
            .iter()
            .filter(|(k, _)| !is_volatile(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        workload: pod.map(|p| peer(p, labels)),
        locality: pod.and_then(|p| locality(localities, p)),
        node: pod.and_then(|p| p.spec.as_ref()?.node_name.clone()),
        weight: 1,
        health,
        tls: pod.map_or(MeshTls::None, |p| mesh_tls(shared, p, labels)),
    }
}

/// Labels that differ from pod to pod and that a subset could use only to name one pod.
fn is_volatile(label: &str) -> bool {
    matches!(
        label,
        "pod-template-hash" | "controller-revision-hash" | "pod-template-generation"
    )
}

fn peer(pod: &Pod, labels: &BTreeMap<String, String>) -> PeerWorkload {
    let name = labels
        .get("service.istio.io/workload-name")
        .cloned()
        .unwrap_or_else(|| pod::workload(pod));
    let label = |names: [&str; 2]| names.iter().find_map(|n| labels.get(*n)).cloned();
    PeerWorkload {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        service_account: pod::service_account(pod.spec.as_ref()).to_owned(),
        canonical_name: canonical_name(labels, &name),
        canonical_revision: canonical_revision(labels),
        app: label(["app.kubernetes.io/name", "app"]),
        version: label(["app.kubernetes.io/version", "version"]),
        name,
    }
}

/// Whether an endpoint can take mesh mTLS (ID-093).
fn mesh_tls(shared: &Shared<'_>, pod: &Pod, labels: &BTreeMap<String, String>) -> MeshTls {
    let enabled = shared.world.mesh.enable_auto_mtls.unwrap_or(true);
    if !enabled || labels.get(TLS_MODE_LABEL).map(String::as_str) != Some("istio") {
        return MeshTls::None;
    }
    let modes = inbound::modes(shared, pod.metadata.namespace.as_deref().unwrap_or_default(), labels);
    if modes.default == MtlsMode::Disable && modes.ports.values().all(|m| *m == MtlsMode::Disable) {
        return MeshTls::None;
    }
    let mut plain: BTreeSet<u16> = modes.ports.keys().copied().collect();
    if modes.default == MtlsMode::Disable {
        // Ports are known by what the pod declares; of others nobody says anything.
        let spec = pod.spec.as_ref();
        let containers = spec
            .into_iter()
            .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        plain.extend(
            containers
                .flat_map(|c| c.ports.iter().flatten())
                .filter_map(|p| u16::try_from(p.container_port).ok()),
        );
    }
    plain.retain(|port| modes.of(*port) == MtlsMode::Disable);
    if plain.is_empty() {
        MeshTls::All
    } else {
        MeshTls::Except(plain.into_iter().collect())
    }
}

/// `region/zone/subzone` of a pod (SM-101).
fn locality(localities: &BTreeMap<String, String>, pod: &Pod) -> Option<String> {
    let labels = pod.metadata.labels.as_ref();
    let own = labels.and_then(|l| l.get("topology.istio.io/locality").or_else(|| l.get("istio-locality")));
    if let Some(own) = own.filter(|l| !l.is_empty()) {
        return Some(if own.contains('/') {
            own.clone()
        } else {
            own.replace('.', "/")
        });
    }
    localities.get(pod.spec.as_ref()?.node_name.as_deref()?).cloned()
}

/// `region/zone` of a locality.
fn zone(locality: &str) -> String {
    locality.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

/// Localities by the names of nodes.
pub(super) fn localities(world: &World) -> BTreeMap<String, String> {
    let all = world.nodes.iter();
    all.filter_map(|(name, node)| Some((name.clone(), node_locality(node)?)))
        .collect()
}

fn node_locality(node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref()?;
    let first = |names: &[&str]| names.iter().find_map(|n| labels.get(*n)).cloned();
    let region = first(&[
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ])?;
    let zone = first(&["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    let subzone = first(&["topology.istio.io/subzone"]);
    Some(
        [Some(region), zone, subzone]
            .into_iter()
            .map_while(|part| part)
            .collect::<Vec<_>>()
            .join("/"),
    )
}

#[cfg(test)]
mod tests;
