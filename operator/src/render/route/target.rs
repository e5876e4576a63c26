//! Services that imported rules lead to, and that are not imported themselves (SE-074).

use std::collections::{BTreeMap, BTreeSet};

use weft_bundle::key::KeyInputs;
use weft_bundle::wire::Host;
use weft_crds::validate::host;
use weft_crds::virtual_service::Destination;

use super::precedence::Visible;
use super::{Port, Registered, delegate, namespace_of};
use crate::render::Shared;

/// Ports that rules name; `None`: some rule leaves the port open.
type Ports = Option<BTreeSet<u16>>;

/// Those services, with the ports that are not imported.
pub(super) fn targets<'a>(
    shared: &Shared<'a>,
    inputs: &KeyInputs,
    visible: &Visible<'a>,
    imported: &[Registered<'a>],
) -> Vec<Registered<'a>> {
    let domain = &shared.world.settings.cluster_domain;
    let mut named: BTreeMap<String, Ports> = BTreeMap::new();
    let mut note = |namespace: &str, destination: &Destination| {
        let host = host::expand(&destination.host, namespace, domain);
        let ports = named.entry(host).or_insert_with(|| Some(BTreeSet::new()));
        let number = destination.port.as_ref().and_then(|p| u16::try_from(p.number).ok());
        match (ports.as_mut(), number) {
            (Some(ports), Some(number)) => drop(ports.insert(number)),
            _ => *ports = None,
        }
    };
    for candidate in visible.iter() {
        let namespace = namespace_of(candidate.service);
        for entry in delegate::entries(shared, candidate.service) {
            for routed in &entry.routes {
                let route = &routed.route;
                let mirrors = route.mirrors.iter().filter_map(|m| m.destination.as_ref());
                let all = route
                    .route
                    .iter()
                    .map(|d| &d.destination)
                    .chain(&route.mirror)
                    .chain(mirrors);
                all.for_each(|destination| note(routed.namespace, destination));
            }
        }
        let spec = &candidate.service.spec;
        let connections = spec
            .tls
            .iter()
            .flat_map(|r| &r.route)
            .chain(spec.tcp.iter().flat_map(|r| &r.route));
        connections.for_each(|d| note(namespace, &d.destination));
    }
    let mut out: BTreeMap<String, Registered<'a>> = BTreeMap::new();
    for (host, ports) in named {
        let Some(service) = shared.services.find(&host, &inputs.namespace) else {
            continue;
        };
        let Some(service) = shared.services.definition(&service.host, &inputs.namespace) else {
            continue;
        };
        let known = imported.iter().find(|known| known.host == service.host);
        if known.is_some_and(|known| known.namespace != service.namespace) {
            continue;
        }
        let is_wanted = |port: &&Port| {
            ports.as_ref().is_none_or(|ports| ports.contains(&port.number))
                && known.is_none_or(|known| known.ports.iter().all(|p| p.number != port.number))
        };
        let more = service.ports.iter().filter(is_wanted).map(|port| Port {
            target_only: true,
            ..port.clone()
        });
        let more: Vec<_> = more.collect();
        if more.is_empty() {
            continue;
        }
        let target = out.entry(service.host.clone()).or_insert_with(|| Registered {
            ports: Vec::new(),
            ..service.clone()
        });
        // An alias may name it, too.
        let known: BTreeSet<u16> = target.ports.iter().map(|p| p.number).collect();
        target
            .ports
            .extend(more.into_iter().filter(|port| !known.contains(&port.number)));
        target.ports.sort_by_key(|port| port.number);
    }
    out.into_values().collect()
}

/// Adds them to the hosts that are imported.
pub(super) fn add(hosts: &mut Vec<Host>, targets: Vec<Host>) {
    for target in targets {
        match hosts.iter_mut().find(|host| host.host == target.host) {
            Some(host) => {
                host.ports.extend(target.ports);
                host.ports.sort_by_key(|port| port.port);
                for subset in target.subsets {
                    if let Some(own) = host.subsets.iter_mut().find(|s| s.name == subset.name) {
                        own.policies.extend(subset.policies);
                    }
                }
            }
            None => hosts.push(target),
        }
    }
    hosts.sort_by(|a, b| a.host.cmp(&b.host));
}
