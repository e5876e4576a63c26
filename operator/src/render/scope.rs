//! Which Sidecar a workload has, and what of the mesh it imports (SE-063 ff.).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_bundle::key::{KeyInputs, Template};
use weft_crds::Sidecar;
use weft_crds::sidecar::HostEntry;
use weft_crds::validate::host;

use super::service::{Port, Registered, Spoken};
use super::{ObjectReport, Shared};
use crate::world::{Kind, ObjectRef, World};

/// The Sidecar of a workload: one of its namespace that selects it, else the namespace's, else the mesh's, each the
/// oldest of its kind (SE-064..SE-066). Gateways have none (SE-069).
pub(super) fn sidecar<'a>(shared: &Shared<'a>, inputs: &KeyInputs) -> Option<&'a Arc<Sidecar>> {
    if inputs.template == Template::Gateway {
        return None;
    }
    let all = shared.sound.sources.sidecars;
    let own = || of_namespace(all, &inputs.namespace);
    let selecting = own().find(|sidecar| {
        let selector = sidecar.spec.workload_selector.as_ref();
        selector.is_some_and(|selector| selector.selects(&inputs.labels))
    });
    let wide = |namespace: &str| of_namespace(all, namespace).find(|sidecar| sidecar.spec.workload_selector.is_none());
    selecting
        .or_else(|| wide(&inputs.namespace))
        .or_else(|| wide(shared.world.root_namespace()))
}

fn of_namespace<'a>(all: &'a [Arc<Sidecar>], namespace: &str) -> impl Iterator<Item = &'a Arc<Sidecar>> {
    all.iter()
        .filter(move |sidecar| sidecar.metadata.namespace.as_deref() == Some(namespace))
}

/// What a workload imports.
#[derive(Debug)]
pub(super) struct Imports<'a> {
    /// Namespace of the workload.
    namespace: &'a str,
    /// None: everything that is visible.
    listeners: Vec<Listener>,
}

/// Hosts that are imported for one port, or for the ports that no other names.
#[derive(Debug)]
struct Listener {
    port: Option<(u16, Option<Spoken>)>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    excludes: bool,
    namespace: String,
    name: String,
}

impl<'a> Imports<'a> {
    pub(super) fn new(sidecar: Option<&Sidecar>, namespace: &'a str) -> Self {
        let listeners = sidecar
            .into_iter()
            .flat_map(|sidecar| &sidecar.spec.egress)
            .map(|listener| {
                let port = listener.port.as_ref().and_then(|port| {
                    let number = u16::try_from(port.number?).ok()?;
                    Some((number, super::service::entry_protocol(port.protocol.as_deref())))
                });
                let entries = listener.hosts.iter().filter_map(|text| HostEntry::parse(text).ok());
                let entries = entries.map(|entry| Entry {
                    excludes: entry.excludes,
                    namespace: entry.namespace.replace('.', namespace),
                    name: host::canonical(entry.name),
                });
                Listener {
                    port,
                    entries: entries.collect(),
                }
            });
        Self {
            namespace,
            listeners: listeners.collect(),
        }
    }

    /// Everything that is visible.
    pub(super) fn everything(namespace: &'a str) -> Self {
        Self::new(None, namespace)
    }

    /// Whether nothing is left out.
    pub(super) fn is_everything(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Namespace of the workload.
    pub(super) fn namespace(&self) -> &'a str {
        self.namespace
    }

    /// The ports of a service that are imported; none: the service is not (SE-072, SE-078).
    pub(super) fn ports(&self, service: &Registered<'_>) -> Vec<Port> {
        if self.is_everything() {
            return service.ports.clone();
        }
        let imports = |listener: &Listener| listener.imports(service.namespace, &service.host);
        let of_port = |number: u16| {
            let named = self
                .listeners
                .iter()
                .find(|l| l.port.is_some_and(|(port, _)| port == number));
            named.or_else(|| self.listeners.iter().find(|l| l.port.is_none()))
        };
        let ports = service.ports.iter().filter_map(|port| {
            let listener = of_port(port.number).filter(|listener| imports(listener))?;
            let own = Spoken {
                protocol: port.protocol,
                grpc_web: port.grpc_web,
            };
            let stated = listener.port.and_then(|(_, spoken)| spoken);
            let Spoken { protocol, grpc_web } = stated.unwrap_or(own);
            Some(Port {
                protocol,
                grpc_web,
                ..port.clone()
            })
        });
        ports.collect()
    }

    /// Whether a VirtualService is imported: its namespace and one of its hosts are (SE-074, SE-075).
    pub(super) fn has_rules(&self, namespace: &str, hosts: &[String]) -> bool {
        self.is_everything()
            || self.listeners.iter().any(|listener| {
                let overlaps =
                    |entry: &Entry, name: &str| host::covers(&entry.name, name) || host::covers(name, &entry.name);
                hosts.iter().any(|name| {
                    listener.any(
                        namespace,
                        |entry| overlaps(entry, name),
                        |entry| host::covers(&entry.name, name),
                    )
                })
            })
    }
}

impl Listener {
    fn imports(&self, namespace: &str, name: &str) -> bool {
        self.any(
            namespace,
            |entry| host::covers(&entry.name, name),
            |entry| host::covers(&entry.name, name),
        )
    }

    /// Some entry includes it, and none excludes it (SE-073).
    fn any(&self, namespace: &str, included: impl Fn(&Entry) -> bool, excluded: impl Fn(&Entry) -> bool) -> bool {
        let of_namespace = |entry: &&Entry| entry.namespace == "*" || entry.namespace == namespace;
        let mut of = self.entries.iter().filter(of_namespace);
        let is_included = of.clone().any(|entry| !entry.excludes && included(entry));
        is_included && !of.any(|entry| entry.excludes && excluded(entry))
    }
}

/// Sidecars that an older one keeps from having an effect (SE-066, SE-067), and what is not in force yet.
pub(super) fn report(world: &World, sidecars: &[Arc<Sidecar>], reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
    let mut seen: BTreeSet<(String, Option<BTreeMap<String, String>>)> = BTreeSet::new();
    for sidecar in sidecars {
        let namespace = sidecar.metadata.namespace.clone().unwrap_or_default();
        let reference = ObjectRef {
            kind: Kind::Sidecar,
            namespace: namespace.clone(),
            name: sidecar.metadata.name.clone().unwrap_or_default(),
        };
        let Some(report) = reports.get_mut(&reference) else {
            continue;
        };
        let spec = &sidecar.spec;
        let labels = spec.workload_selector.as_ref().map(|selector| selector.labels.clone());
        let is_root = namespace == world.root_namespace();
        if labels.is_some() && is_root {
            let text =
                "with workloadSelector it is for workloads of its own namespace alone, also in the root namespace";
            report.warnings.push(text.to_owned());
        }
        if !seen.insert((namespace, labels)) {
            let text = "an older Sidecar for the same workloads decides; delete one of them".to_owned();
            report.refused.get_or_insert(("Conflicted", text));
        }
        let sockets = spec
            .egress
            .iter()
            .filter_map(|l| l.bind.as_deref())
            .chain(spec.ingress.iter().filter_map(|l| l.default_endpoint.as_deref()));
        let mut missing = Vec::new();
        if sockets.into_iter().any(|text| text.starts_with("unix://")) {
            missing.push("Unix sockets");
        }
        let modes = spec.egress.iter().map(|l| l.capture_mode.as_deref());
        let modes = modes.chain(spec.ingress.iter().map(|l| l.capture_mode.as_deref()));
        if modes.flatten().any(|mode| mode == "NONE") {
            missing.push("captureMode NONE");
        }
        let is_bound = |bind: &Option<String>| {
            bind.as_deref()
                .is_some_and(|b| !b.is_empty() && !b.starts_with("unix://"))
        };
        if spec.egress.iter().any(|l| is_bound(&l.bind)) || spec.ingress.iter().any(|l| is_bound(&l.bind)) {
            missing.push("bind");
        }
        let protocols = spec.egress.iter().filter_map(|l| l.port.as_ref()?.protocol.as_deref());
        if protocols.into_iter().any(|p| p.eq_ignore_ascii_case("HTTP_PROXY")) {
            missing.push("protocol HTTP_PROXY");
        }
        if spec
            .outbound_traffic_policy
            .as_ref()
            .is_some_and(|p| p.egress_proxy.is_some())
        {
            missing.push("egressProxy");
        }
        if !missing.is_empty() {
            let text = format!("not in force yet, and without effect: {}", missing.join(", "));
            report.unresolved.get_or_insert(("Unsupported", text));
        }
    }
}

#[cfg(test)]
mod tests;
