//! How requests to a workload are received: protocols of its ports, mode of mutual TLS (SM-027, PA-001 ff.).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_bundle::key::KeyInputs;
use weft_bundle::wire::{Inbound, InboundDestination, InboundPort, InboundTarget, MtlsMode};
use weft_crds::destination_rule::ConnectionPoolSettings;
use weft_crds::sidecar::{DefaultEndpoint, IstioIngressListener};
use weft_crds::{PeerAuthentication, Sidecar};

use super::policy::{Chosen, Client};
use super::service::Spoken;
use super::{ObjectReport, Shared};
use crate::world::{Kind, ObjectRef, World, age, has_labels};

/// Modes of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modes {
    /// Of ports that are not listed.
    pub(super) default: MtlsMode,
    /// Of single ports.
    pub(super) ports: BTreeMap<u16, MtlsMode>,
}

impl Modes {
    pub(super) fn of(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

pub(super) fn inbound(shared: &Shared<'_>, inputs: &KeyInputs, sidecar: Option<&Sidecar>) -> Inbound {
    let modes = modes(shared, &inputs.namespace, &inputs.labels);
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    // The oldest Service decides what a port speaks (SM-027).
    let mut services: Vec<_> = shared
        .world
        .services
        .iter()
        .filter(|((ns, _), _)| *ns == inputs.namespace)
        .collect();
    services.sort_by_cached_key(|(_, service)| age(&service.metadata));
    for ((namespace, name), service) in services {
        let Some(spec) = &service.spec else { continue };
        let selector = spec.selector.as_ref().filter(|s| !s.is_empty());
        if !selector.is_some_and(|selector| has_labels(&inputs.labels, selector)) {
            continue;
        }
        for port in spec
            .ports
            .iter()
            .flatten()
            .filter(|p| p.protocol.as_deref().is_none_or(|p| p == "TCP"))
        {
            let Some(target) = target_port(port.target_port.as_ref(), port.port, inputs) else {
                continue;
            };
            let number = u16::try_from(port.port).unwrap_or(0);
            let Spoken { protocol, grpc_web } = super::service::protocol(
                port.name.as_deref().unwrap_or_default(),
                port.app_protocol.as_deref(),
                number,
            );
            let host = format!("{name}.{namespace}.svc.{}", shared.world.settings.cluster_domain);
            let pool = sidecar.and_then(|s| s.spec.inbound_connection_pool.as_ref());
            let policy = || {
                let service = shared.services.defined(&host, namespace);
                let chosen = service.map(|s| Chosen::new(shared, s, Client::anybody(&inputs.namespace)));
                chosen.map(|c| c.inbound(shared, number, pool)).unwrap_or_default()
            };
            let known = ports.entry(target).or_insert_with(|| InboundPort {
                port: target,
                protocol,
                grpc_web,
                service_ports: Vec::new(),
                mtls: None,
                policy: policy(),
                host: Some(host.clone()),
                target: None,
            });
            if number != target && !known.service_ports.contains(&number) {
                known.service_ports.push(number);
                known.service_ports.sort_unstable();
            }
        }
    }
    if let Some(sidecar) = sidecar.filter(|sidecar| !sidecar.spec.ingress.is_empty()) {
        ports = ingress(shared, sidecar, &ports);
    }
    for (&port, &mode) in &modes.ports {
        let unknown = InboundPort {
            port,
            protocol: weft_bundle::wire::Protocol::Auto,
            grpc_web: false,
            service_ports: Vec::new(),
            mtls: None,
            host: None,
            target: None,
            policy: weft_bundle::wire::Policy::default(),
        };
        ports.entry(port).or_insert(unknown).mtls = (mode != modes.default).then_some(mode);
    }
    let local = shared
        .world
        .mesh
        .inbound_traffic_policy
        .as_ref()
        .and_then(|p| p.mode.as_deref());
    Inbound {
        mtls: modes.default,
        destination: match local {
            Some("LOCALHOST") => InboundDestination::Localhost,
            _ => InboundDestination::Passthrough,
        },
        ports: ports.into_values().collect(),
    }
}

/// The ports that a Sidecar names, in place of those that Services lead to (SE-086..SE-090, SE-094).
fn ingress(
    shared: &Shared<'_>,
    sidecar: &Sidecar,
    of_services: &BTreeMap<u16, InboundPort>,
) -> BTreeMap<u16, InboundPort> {
    let port = |listener: &IstioIngressListener| {
        let stated = listener.port.as_ref()?;
        let port = u16::try_from(stated.number?).ok().filter(|port| *port > 0)?;
        let known = of_services.get(&port);
        let own: Option<&ConnectionPoolSettings> = listener.connection_pool.as_ref();
        let pool = own.or(sidecar.spec.inbound_connection_pool.as_ref());
        let target = match DefaultEndpoint::parse(listener.default_endpoint.as_deref().unwrap_or_default()) {
            Ok(DefaultEndpoint::Loopback(address, port)) => InboundTarget::Loopback((address, port).into()),
            Ok(DefaultEndpoint::Pod(port)) => InboundTarget::Pod(port),
            Ok(DefaultEndpoint::Same | DefaultEndpoint::Socket(_)) | Err(_) => InboundTarget::Pod(port),
        };
        let spoken = super::service::entry_protocol(stated.protocol.as_deref()).unwrap_or_default();
        Some(InboundPort {
            port,
            protocol: spoken.protocol,
            grpc_web: spoken.grpc_web,
            service_ports: known.map(|known| known.service_ports.clone()).unwrap_or_default(),
            mtls: None,
            host: known.and_then(|known| known.host.clone()),
            policy: match pool {
                Some(pool) => super::policy::pool(shared, pool),
                None => known.map(|known| known.policy.clone()).unwrap_or_default(),
            },
            target: Some(target),
        })
    };
    let ports = sidecar.spec.ingress.iter().filter_map(port);
    ports.map(|port| (port.port, port)).collect()
}

/// The port of the workload that a service port leads to.
pub(super) fn target_port(target: Option<&IntOrString>, port: i32, inputs: &KeyInputs) -> Option<u16> {
    match target {
        None | Some(IntOrString::Int(0)) => u16::try_from(port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => inputs.ports.iter().find(|p| p.name == *name).map(|p| p.port),
    }
    .filter(|port| *port > 0)
}

/// Modes of the workload with these labels (PA-003..PA-006).
pub(super) fn modes(shared: &Shared<'_>, namespace: &str, labels: &BTreeMap<String, String>) -> Modes {
    let policies = &shared.sound.peer_authentications;
    let root = shared.world.root_namespace();
    let in_namespace = |ns: &str| {
        let ns = ns.to_owned();
        policies
            .iter()
            .filter(move |(p, _)| p.metadata.namespace.as_deref() == Some(ns.as_str()))
    };
    let mesh = in_namespace(root).find(|(p, _)| selector(p).is_none());
    let wide = if namespace == root {
        None
    } else {
        in_namespace(namespace).find(|(p, _)| selector(p).is_none())
    };
    // With a selector in the root namespace a policy is nobody's (PA-008).
    let selected = |p: &PeerAuthentication| selector(p).is_some_and(|selector| has_labels(labels, selector));
    let own = if namespace == root {
        None
    } else {
        in_namespace(namespace).find(|(p, _)| selected(p))
    };
    let mesh_mode = mesh.and_then(mode).unwrap_or_default();
    let namespace_mode = wide.and_then(mode).unwrap_or(mesh_mode);
    let default = own.and_then(mode).unwrap_or(namespace_mode);
    let ports = own
        .filter(|(_, valid)| *valid)
        .and_then(|(p, _)| p.spec.port_level_mtls.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|(port, mtls)| Some((port.parse().ok()?, parse(mtls.mode.as_deref()).unwrap_or(default))))
        .collect();
    Modes { default, ports }
}

/// What a policy sets; an invalid one counts as STRICT (AUTHN-007).
fn mode((policy, valid): &(&PeerAuthentication, bool)) -> Option<MtlsMode> {
    if !valid {
        return Some(MtlsMode::Strict);
    }
    parse(policy.spec.mtls.as_ref().and_then(|m| m.mode.as_deref()))
}

/// `UNSET` and nothing inherit (PA-005).
fn parse(mode: Option<&str>) -> Option<MtlsMode> {
    match mode {
        Some("DISABLE") => Some(MtlsMode::Disable),
        Some("PERMISSIVE") => Some(MtlsMode::Permissive),
        Some("STRICT") => Some(MtlsMode::Strict),
        _ => None,
    }
}

/// Labels that a policy asks for; `None` when it is for all (AUTHN-003).
fn selector(policy: &PeerAuthentication) -> Option<&BTreeMap<String, String>> {
    policy
        .spec
        .selector
        .as_ref()
        .map(|s| &s.match_labels)
        .filter(|labels| !labels.is_empty())
}

/// Policies that an older one of the same scope keeps from having an effect (PA-006), and those that have none where
/// they are (PA-008).
pub(super) fn report_conflicts(
    world: &World,
    policies: &[(&PeerAuthentication, bool)],
    reports: &mut BTreeMap<ObjectRef, ObjectReport>,
) {
    let mut seen: BTreeSet<(String, Option<BTreeMap<String, String>>)> = BTreeSet::new();
    for (policy, _) in policies {
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let name = policy.metadata.name.clone().unwrap_or_default();
        let reference = ObjectRef {
            kind: Kind::PeerAuthentication,
            namespace: namespace.clone(),
            name,
        };
        let Some(report) = reports.get_mut(&reference) else {
            continue;
        };
        let labels = selector(policy).cloned();
        if labels.is_some() && namespace == world.root_namespace() {
            let text = "a selector in the root namespace selects no workload; put the policy into theirs".to_owned();
            report.refused.get_or_insert(("Unsupported", text));
        } else if !seen.insert((namespace, labels)) {
            let text = "an older policy of the same scope decides; delete one of them".to_owned();
            report.refused.get_or_insert(("Conflicted", text));
        }
    }
}
