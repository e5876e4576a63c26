//! Gateways: which workloads serve them, on which ports, and which of their servers give way to others (GW-001 ff.).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_bundle::key::KeyInputs;
use weft_bundle::wire::TlsSettings;
use weft_crds::Gateway;
use weft_crds::gateway as api;
use weft_crds::validate::host::canonical;

use super::{ObjectReport, Shared, credential, inbound};
use crate::world::{Kind, ObjectRef, age, has_labels};

mod tls;

/// What is served on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// HTTP in clear.
    Http,
    /// TLS that passes through, or ends here.
    Tls,
    /// Anything else.
    Tcp,
}

/// A server of a Gateway that has its place on a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) spec: &'a api::Server,
    /// The port's number, by which rules call it.
    pub(super) number: u16,
}

impl<'a> Server<'a> {
    /// Names that VirtualServices of a namespace may bind to, lower case (GW-020).
    pub(super) fn hosts_for(&self, namespace: &str) -> Vec<String> {
        let own = self.gateway.metadata.namespace.as_deref().unwrap_or_default();
        let allowed = |host: &&String| match host.split_once('/') {
            None | Some(("*", _)) => true,
            Some((".", _)) => namespace == own,
            Some((only, _)) => namespace == only,
        };
        let hosts = self.spec.hosts.iter().filter(allowed);
        hosts.map(|host| bare(host)).collect()
    }

    /// All names, whoever may bind to them.
    pub(super) fn hosts(&self) -> impl Iterator<Item = String> + use<'a> {
        self.spec.hosts.iter().map(|host| bare(host))
    }

    /// Requests are answered with a redirect to HTTPS: those in clear alone (GW-029).
    pub(super) fn redirects(&self) -> bool {
        let tls = self.spec.tls.as_ref();
        !self.is_https() && tls.is_some_and(|tls| tls.https_redirect == Some(true))
    }

    /// How its TLS ends at workloads of a namespace; `None` for a server whose TLS passes through, or that has none.
    pub(super) fn termination(&self, shared: &Shared<'_>, namespace: &str) -> Option<TlsSettings> {
        let tls = self.spec.tls.as_ref()?;
        let defaults = shared.world.mesh.tls_defaults.as_ref();
        tls::termination(tls, defaults, namespace).ok().flatten()
    }

    /// HTTP is inside of its TLS (GW-012, GW-069).
    pub(super) fn is_https(&self) -> bool {
        let port = self.spec.port.as_ref();
        port.is_some_and(|port| port.protocol.eq_ignore_ascii_case("HTTPS"))
    }

    /// Declared to speak gRPC-Web (SM-026).
    pub(super) fn is_grpc_web(&self) -> bool {
        let port = self.spec.port.as_ref();
        port.is_some_and(|port| port.protocol.eq_ignore_ascii_case("GRPC-WEB"))
    }

    /// The Gateway, as `namespace/name`.
    pub(super) fn id(&self) -> String {
        let metadata = &self.gateway.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
    }
}

/// A port of a gateway workload with its servers, in the order in which they count.
#[derive(Debug)]
pub(super) struct Port<'a> {
    pub(super) number: u16,
    pub(super) class: Class,
    pub(super) servers: Vec<Server<'a>>,
}

/// A server that gives way to an older one, and why.
#[derive(Debug)]
struct Skipped<'a> {
    gateway: &'a Gateway,
    message: String,
}

/// The ports of a workload: the servers of all Gateways that select it, merged by age (GW-059 ff.).
pub(super) fn ports<'a>(shared: &Shared<'a>, inputs: &KeyInputs) -> Vec<Port<'a>> {
    merge(shared, inputs).0
}

fn merge<'a>(shared: &Shared<'a>, inputs: &KeyInputs) -> (Vec<Port<'a>>, Vec<Skipped<'a>>) {
    let translate = Translation::new(shared, inputs);
    let mut ports: BTreeMap<u16, Port<'a>> = BTreeMap::new();
    let mut skipped = Vec::new();
    for gateway in shared.sound.gateways.iter().copied().filter(|g| selects(g, inputs)) {
        for (n, spec) in gateway.spec.servers.iter().enumerate() {
            let Some(number) = spec.port.as_ref().and_then(|p| u16::try_from(p.number).ok()) else {
                continue;
            };
            let Ok(class) = class(shared, spec) else {
                // Told by whether any workload serves it, not by each of them.
                continue;
            };
            let server = Server { gateway, spec, number };
            for target in translate.of(number) {
                let problem = match ports.entry(target) {
                    Entry::Vacant(free) => {
                        let servers = vec![server];
                        free.insert(Port {
                            number: target,
                            class,
                            servers,
                        });
                        None
                    }
                    Entry::Occupied(mut taken) => take_place(taken.get_mut(), server, class),
                };
                if let Some(problem) = problem {
                    skipped.push(Skipped {
                        gateway,
                        message: format!("spec.servers[{n}] is not served on port {number}: {problem}"),
                    });
                }
            }
        }
    }
    (ports.into_values().collect(), skipped)
}

/// Adds a server to a port that others have already, or says why it cannot stand beside them.
fn take_place<'a>(port: &mut Port<'a>, server: Server<'a>, class: Class) -> Option<String> {
    let first = port.servers[0].id();
    if port.class != class {
        return Some(format!("the older {first} has it for another protocol"));
    }
    match class {
        Class::Http => {}
        // Nothing tells their connections apart (GW-063).
        Class::Tcp => return Some(format!("the older {first} has it")),
        Class::Tls => {
            // By names alone: a server name does not tell for which namespace it is meant (GW-061, GW-117).
            let taken = |name: &String| {
                port.servers
                    .iter()
                    .find(|other| other.hosts().any(|host| host == *name))
            };
            let conflict = server.hosts().find_map(|name| Some((taken(&name)?.id(), name)));
            if let Some((owner, name)) = conflict {
                return Some(format!("the older {owner} has its host {name}"));
            }
        }
    }
    port.servers.push(server);
    None
}

/// What a server is, or why it is not served.
fn class(shared: &Shared<'_>, server: &api::Server) -> Result<Class, String> {
    if server.bind.as_deref().is_some_and(|bind| !bind.is_empty()) {
        return Err("bind is not supported: servers listen on all addresses of the pod".into());
    }
    let protocol = server.port.as_ref().map(|p| p.protocol.to_ascii_uppercase());
    match protocol.as_deref().unwrap_or_default() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => Ok(Class::Http),
        "HTTPS" | "TLS" => {
            if let Some(tls) = &server.tls {
                tls::termination(tls, shared.world.mesh.tls_defaults.as_ref(), "")?;
            }
            Ok(Class::Tls)
        }
        _ => Ok(Class::Tcp),
    }
}

/// Whether a workload serves a Gateway (GW-002, GW-004).
fn selects(gateway: &Gateway, inputs: &KeyInputs) -> bool {
    has_labels(&inputs.labels, &gateway.spec.selector)
}

/// The credentials that the servers of a workload name, those of the oldest Gateways first (DLV-155).
pub(super) fn credentials(shared: &Shared<'_>, inputs: &KeyInputs) -> Vec<credential::Named> {
    let mut servers: Vec<Server<'_>> = ports(shared, inputs)
        .into_iter()
        .flat_map(|port| port.servers)
        .collect();
    servers.sort_by_cached_key(|server| age(&server.gateway.metadata));
    let mut out: Vec<credential::Named> = Vec::new();
    for server in servers {
        let Some(settings) = server.termination(shared, &inputs.namespace) else {
            continue;
        };
        let of = reference(server.gateway);
        for named in tls::credentials(server.spec.tls.as_ref(), &settings, &inputs.namespace, &of) {
            named.join(&mut out);
        }
    }
    out
}

fn reference(gateway: &Gateway) -> ObjectRef {
    ObjectRef {
        kind: Kind::Gateway,
        namespace: gateway.metadata.namespace.clone().unwrap_or_default(),
        name: gateway.metadata.name.clone().unwrap_or_default(),
    }
}

/// From ports of the Services in front of a workload to its own (GW-013, GW-014).
struct Translation {
    targets: BTreeMap<u16, BTreeSet<u16>>,
}

impl Translation {
    fn new(shared: &Shared<'_>, inputs: &KeyInputs) -> Self {
        let mut targets: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
        let own = shared.world.services.iter();
        let mut services: Vec<_> = own.filter(|((ns, _), _)| *ns == inputs.namespace).collect();
        services.sort_by_cached_key(|(_, service)| age(&service.metadata));
        for (_, service) in services {
            let Some(spec) = &service.spec else { continue };
            let selector = spec.selector.as_ref().filter(|s| !s.is_empty());
            if !selector.is_some_and(|selector| has_labels(&inputs.labels, selector)) {
                continue;
            }
            let labels = service.metadata.labels.as_ref();
            let keeps =
                labels.is_some_and(|l| l.contains_key("experimental.istio.io/disable-gateway-port-translation"));
            let tcp = |protocol: Option<&str>| protocol.is_none_or(|p| p == "TCP");
            for port in spec.ports.iter().flatten().filter(|p| tcp(p.protocol.as_deref())) {
                let Ok(number) = u16::try_from(port.port) else { continue };
                let target = if keeps {
                    Some(number)
                } else {
                    inbound::target_port(port.target_port.as_ref(), port.port, inputs)
                };
                targets.entry(number).or_default().extend(target);
            }
        }
        Self { targets }
    }

    /// Ports of the pod; the same where no Service has it.
    fn of(&self, number: u16) -> BTreeSet<u16> {
        match self.targets.get(&number) {
            Some(targets) if !targets.is_empty() => targets.clone(),
            _ => BTreeSet::from([number]),
        }
    }
}

/// A host without the namespace in front, lower case (GW-111).
fn bare(host: &str) -> String {
    canonical(host.split_once('/').map_or(host, |(_, name)| name))
}

/// Reports servers that give way to others or are not supported, and Gateways that no workload serves (GW-005, GW-061,
/// GW-062).
pub(super) fn report(
    shared: &Shared<'_>,
    workloads: &[Arc<KeyInputs>],
    reports: &mut BTreeMap<ObjectRef, ObjectReport>,
) {
    for gateway in &shared.sound.gateways {
        let Some(report) = reports.get_mut(&reference(gateway)) else {
            continue;
        };
        for (n, server) in gateway.spec.servers.iter().enumerate() {
            if let Err(problem) = class(shared, server) {
                let message = format!("spec.servers[{n}] is not served: {problem}");
                report.refused.get_or_insert(("Unsupported", message));
            }
        }
        if !workloads.iter().any(|inputs| selects(gateway, inputs)) {
            let message = "no gateway has the labels of spec.selector: none of its servers is served".to_owned();
            report.unresolved.get_or_insert(("TargetNotFound", message));
        }
    }
    for inputs in workloads {
        for skipped in merge(shared, inputs).1 {
            if let Some(report) = reports.get_mut(&reference(skipped.gateway)) {
                report.refused.get_or_insert(("Conflicted", skipped.message));
            }
        }
    }
}

#[cfg(test)]
mod tests;
