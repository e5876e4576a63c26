//! Endpoints as seen from a namespace (DLV-110 ff., SM-090 ff., ID-093).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_bundle::key::{TLS_MODE_LABEL, canonical_name, canonical_revision};
use weft_bundle::pack::{EndpointInput, HostInput};
use weft_bundle::wire::{Dns, DnsTarget, Health, MeshTls, MtlsMode, PeerWorkload};
use weft_crds::service_entry::LabelSelector;
use weft_crds::validate::host::canonical;
use weft_crds::{ServiceEntry, WorkloadEntry, WorkloadEntrySpec};

use super::service::{Registered, Resolution};
use super::{Shared, inbound};
use crate::world::{World, has_labels, pod};

/// The pods and templates of one namespace.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) templates: Vec<Arc<PodTemplateSpec>>,
    pub(super) workload_entries: Vec<Arc<WorkloadEntry>>,
}

impl Members {
    /// Service accounts of what a service has as endpoints, or will have (DLV-112).
    pub(super) fn accounts(&self, service: &Registered<'_>) -> Vec<String> {
        let mut out = BTreeSet::new();
        let spec = service.service.and_then(|s| s.spec.as_ref());
        if let Some(selector) = spec.and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) {
            out.extend(self.selected(service.namespace, selector));
        }
        if service.external {
            return out.into_iter().collect();
        }
        for entry in &service.entries {
            // What the entry lists takes the place of what its endpoints have (SE-019, ID-079).
            if service.service.is_none() && !entry.spec.subject_alt_names.is_empty() {
                return Vec::new();
            }
            if let Some(selector) = &entry.spec.workload_selector {
                out.extend(self.selected(service.namespace, &selector.labels));
            }
            let inline = entry.spec.endpoints.iter().filter_map(|e| e.service_account.as_deref());
            let accounts = inline.filter(|account| !account.is_empty());
            out.extend(accounts.map(|account| format!("{}/{account}", service.namespace)));
        }
        out.into_iter().collect()
    }

    /// Service accounts of pods, templates and WorkloadEntries with these labels.
    fn selected(&self, namespace: &str, selector: &BTreeMap<String, String>) -> Vec<String> {
        let pods = self.pods.iter().map(|p| (p.metadata.labels.as_ref(), p.spec.as_ref()));
        let templates = self.templates.iter();
        let templates = templates.map(|t| (t.metadata.as_ref().and_then(|m| m.labels.as_ref()), t.spec.as_ref()));
        let selected = pods
            .chain(templates)
            .filter(|(labels, _)| labels.is_some_and(|labels| has_labels(labels, selector)));
        let of_pods = selected.map(|(_, spec)| pod::service_account(spec).to_owned());
        let entries = self
            .workload_entries
            .iter()
            .filter(|entry| has_labels(&labels(&entry.spec, entry.metadata.labels.as_ref()), selector));
        let of_entries = entries.filter_map(|entry| entry.spec.service_account.clone());
        let accounts: BTreeSet<String> = of_pods.chain(of_entries).filter(|a| !a.is_empty()).collect();
        let full = accounts.into_iter().map(|account| format!("{namespace}/{account}"));
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
        endpoints: endpoints(shared, service, members, pods, localities),
    }
}

/// The names that proxies look up for a host; `None` where its endpoints are known (SE-027, SE-028).
pub(super) fn dns(shared: &Shared<'_>, service: &Registered<'_>) -> Option<Dns> {
    let Resolution::Dns { first_alone } = service.resolution else {
        return None;
    };
    let mut targets = Vec::new();
    for entry in &service.entries {
        let mut add = |spec: &WorkloadEntrySpec, own: Option<&BTreeMap<String, String>>| {
            let labels = labels(spec, own);
            let name = canonical(&spec.address);
            if name.is_empty() || name.starts_with(UNIX) {
                return;
            }
            targets.push(DnsTarget {
                name,
                ports: ports(service, entry, spec),
                locality: written_locality(spec, &labels),
                weight: weight(spec),
                tls: tls(shared, service, spec, &labels),
                labels,
            });
        };
        for spec in &entry.spec.endpoints {
            add(spec, None);
        }
        if let Some(selector) = &entry.spec.workload_selector {
            for selected in workload_entries(shared, service.namespace, selector) {
                add(&selected.spec, selected.metadata.labels.as_ref());
            }
        } else if entry.spec.endpoints.is_empty() {
            let host = WorkloadEntrySpec {
                address: service.host.clone(),
                ..WorkloadEntrySpec::default()
            };
            add(&host, None);
        }
    }
    Some(Dns { first_alone, targets })
}

fn workload_entries<'a>(
    shared: &Shared<'a>,
    namespace: &'a str,
    selector: &'a LabelSelector,
) -> impl Iterator<Item = &'a WorkloadEntry> {
    let all = shared.sound.sources.workload_entries.iter();
    let own = all.filter(move |entry| entry.metadata.namespace.as_deref() == Some(namespace));
    let selected = own.filter(|entry| selector.selects(&labels(&entry.spec, entry.metadata.labels.as_ref())));
    selected.map(Arc::as_ref)
}

/// Labels of an endpoint; those of the object win (SE-048).
fn labels(spec: &WorkloadEntrySpec, own: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    labels.extend(own.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    labels
}

/// Ports of an endpoint by the names of the entry's ports (SE-034).
fn ports(service: &Registered<'_>, entry: &ServiceEntry, endpoint: &WorkloadEntrySpec) -> BTreeMap<String, u16> {
    let number = |number: i64| u16::try_from(number).ok().filter(|n| *n > 0);
    let ports = entry.spec.ports.iter();
    ports
        .filter_map(|port| {
            let own = endpoint.ports.get(&port.name).copied();
            let target = port.target_port.filter(|p| *p > 0);
            let name = service.port_name(&port.name, number(port.number)?);
            Some((name, number(own.or(target).unwrap_or(port.number))?))
        })
        .collect()
}

fn weight(spec: &WorkloadEntrySpec) -> u32 {
    spec.weight
        .and_then(|w| u32::try_from(w).ok())
        .filter(|w| *w > 0)
        .unwrap_or(1)
}

/// What it says, else a label (SE-049).
fn written_locality(spec: &WorkloadEntrySpec, labels: &BTreeMap<String, String>) -> Option<String> {
    let own = spec.locality.clone().filter(|l| !l.is_empty());
    own.or_else(|| label_locality(Some(labels)))
}

/// Whether an endpoint that is no pod takes mesh mTLS (SE-052, ID-096).
fn tls(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    spec: &WorkloadEntrySpec,
    labels: &BTreeMap<String, String>,
) -> MeshTls {
    let is_on = shared.world.mesh.enable_auto_mtls.unwrap_or(true) && !service.external;
    let has_identity = spec.service_account.as_deref().is_some_and(|a| !a.is_empty());
    match labels.get(TLS_MODE_LABEL).map(String::as_str) {
        Some("istio") if is_on => MeshTls::All,
        None if is_on && has_identity => MeshTls::All,
        _ => MeshTls::None,
    }
}

/// An endpoint that is no pod; `None` where its address is none that is connected to.
fn written(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    ports: BTreeMap<String, u16>,
    spec: &WorkloadEntrySpec,
    own: Option<(&str, Option<&BTreeMap<String, String>>)>,
) -> Option<EndpointInput> {
    let address = spec.address.parse().ok()?;
    let labels = labels(spec, own.and_then(|(_, labels)| labels));
    let label = |names: [&str; 2]| names.iter().find_map(|n| labels.get(*n)).cloned();
    let workload = own.map(|(name, _)| PeerWorkload {
        namespace: service.namespace.to_owned(),
        name: name.to_owned(),
        service_account: spec.service_account.clone().unwrap_or_default(),
        canonical_name: canonical_name(&labels, name),
        canonical_revision: canonical_revision(&labels),
        app: label(["app.kubernetes.io/name", "app"]),
        version: label(["app.kubernetes.io/version", "version"]),
    });
    let is_draining = labels.get("istio.io/draining").is_some_and(|v| !v.is_empty());
    Some(EndpointInput {
        address,
        ports,
        workload,
        locality: written_locality(spec, &labels),
        node: None,
        weight: weight(spec),
        health: if is_draining { Health::Draining } else { Health::Ready },
        tls: tls(shared, service, spec, &labels),
        labels,
    })
}

/// Endpoints that ServiceEntries add (SE-018, SE-026, SE-040..SE-042).
fn of_entries(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    members: &Members,
    localities: &BTreeMap<String, String>,
) -> Vec<EndpointInput> {
    let mut out = Vec::new();
    let listed =
        |entry: &&&Arc<ServiceEntry>| !matches!(entry.spec.resolution.as_deref(), Some("DNS" | "DNS_ROUND_ROBIN"));
    for entry in service.entries.iter().filter(listed) {
        let inline = entry.spec.endpoints.iter();
        out.extend(inline.filter_map(|spec| written(shared, service, ports(service, entry, spec), spec, None)));
        let Some(selector) = &entry.spec.workload_selector else {
            continue;
        };
        for selected in workload_entries(shared, service.namespace, selector) {
            let name = selected.metadata.name.as_deref().unwrap_or_default();
            let own = Some((name, selected.metadata.labels.as_ref()));
            out.extend(written(
                shared,
                service,
                ports(service, entry, &selected.spec),
                &selected.spec,
                own,
            ));
        }
        if service.external {
            continue;
        }
        let none = BTreeMap::new();
        let selects = |pod: &&Arc<Pod>| selector.selects(pod.metadata.labels.as_ref().unwrap_or(&none));
        for pod in members.pods.iter().filter(selects).filter(|pod| is_ready(pod)) {
            if let Some(address) = super::keys::address(pod) {
                let described = describe(shared, address, Some(pod), Health::Ready, localities);
                out.push(EndpointInput {
                    ports: ports(service, entry, &WorkloadEntrySpec::default()),
                    ..described
                });
            }
        }
    }
    out
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none() && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// WorkloadEntries that a Service of Kubernetes selects (SE-043, SE-098).
fn of_selector(shared: &Shared<'_>, service: &Registered<'_>) -> Vec<EndpointInput> {
    let spec = service.service.and_then(|s| s.spec.as_ref());
    let Some(spec) = spec.filter(|_| !service.headless) else {
        return Vec::new();
    };
    let Some(selector) = spec.selector.clone().filter(|s| !s.is_empty()) else {
        return Vec::new();
    };
    let selector = LabelSelector { labels: selector };
    let port_of = |endpoint: &WorkloadEntrySpec, port: &k8s_openapi::api::core::v1::ServicePort| {
        let name = port.name.clone().unwrap_or_default();
        let number = match &port.target_port {
            Some(IntOrString::String(target)) => *endpoint.ports.get(target)?,
            Some(IntOrString::Int(number)) if *number > 0 => {
                endpoint.ports.get(&name).copied().unwrap_or_else(|| i64::from(*number))
            }
            _ => endpoint
                .ports
                .get(&name)
                .copied()
                .unwrap_or_else(|| i64::from(port.port)),
        };
        Some((name, u16::try_from(number).ok().filter(|n| *n > 0)?))
    };
    let input = |entry: &WorkloadEntry| {
        let tcp = spec
            .ports
            .iter()
            .flatten()
            .filter(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"));
        let ports: BTreeMap<_, _> = tcp.filter_map(|port| port_of(&entry.spec, port)).collect();
        let own = Some((
            entry.metadata.name.as_deref().unwrap_or_default(),
            entry.metadata.labels.as_ref(),
        ));
        written(shared, service, ports, &entry.spec, own)
    };
    workload_entries(shared, service.namespace, &selector)
        .filter_map(input)
        .collect()
}

fn endpoints(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    members: &Members,
    pods: &Pods<'_>,
    localities: &BTreeMap<String, String>,
) -> Vec<EndpointInput> {
    let id = (service.namespace.to_owned(), service.name.clone());
    let slices = shared.world.slices.get(&id).filter(|_| service.service.is_some());
    // An address in several slices counts once (SM-096); its ports are those of all.
    let mut out: BTreeMap<IpAddr, EndpointInput> = BTreeMap::new();
    for slice in slices.into_iter().flatten() {
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
    let mut added = of_selector(shared, service);
    added.extend(of_entries(shared, service, members, localities));
    let mut all: Vec<_> = out.into_values().collect();
    for endpoint in added {
        // The same address and ports count once.
        if !all
            .iter()
            .any(|known| known.address == endpoint.address && known.ports == endpoint.ports)
        {
            all.push(endpoint);
        }
    }
    all.sort_by(|a, b| (a.address, &a.ports).cmp(&(b.address, &b.ports)));
    all
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
    if let Some(own) = label_locality(pod.metadata.labels.as_ref()) {
        return Some(own);
    }
    localities.get(pod.spec.as_ref()?.node_name.as_deref()?).cloned()
}

/// What labels say; `.` may stand for `/`.
fn label_locality(labels: Option<&BTreeMap<String, String>>) -> Option<String> {
    let own = labels.and_then(|l| l.get("topology.istio.io/locality").or_else(|| l.get("istio-locality")));
    let own = own.filter(|l| !l.is_empty())?;
    Some(if own.contains('/') {
        own.clone()
    } else {
        own.replace('.', "/")
    })
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

const UNIX: &str = "unix://";

#[cfg(test)]
mod tests;
