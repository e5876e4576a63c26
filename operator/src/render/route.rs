//! VirtualServices, resolved for one client: which one supplies the rules of a host and port, and what they say
//! (VS-005 ff.).

use std::collections::{BTreeMap, BTreeSet};

use weft_bundle::key::KeyInputs;
use weft_bundle::wire::{
    Discovery, ExtraDomain, Fault, Host, HostKind, HostPort, Listener, LoadBalancer, Origin, Policy, Protocol,
    RouteTable, Rule,
};
use weft_crds::validate::host;
use weft_crds::virtual_service as api;
use weft_crds::{Sidecar, VirtualService};

use super::Shared;
use super::endpoint;
use super::policy::{Chosen, Client as PolicyClient};
use super::scope::Imports;
use super::service::{Port, Registered, Resolution};

mod action;
mod answer;
mod change;
mod condition;
mod connection;
mod delegate;
mod listener;
mod precedence;
mod report;
mod resilience;
mod target;
#[cfg(test)]
mod tests;

use delegate::Routed;
use precedence::Visible;
pub(super) use precedence::export_to;
pub(super) use report::resolve;
pub(super) use resilience::default_retry;

/// Hosts, route tables and extra domains of one client, and the ports of a gateway.
pub(super) fn hosts(
    shared: &Shared<'_>,
    inputs: &KeyInputs,
    sidecar: Option<&Sidecar>,
) -> (Vec<Host>, Vec<RouteTable>, Vec<ExtraDomain>, Vec<Listener>) {
    let imports = Imports::new(sidecar, &inputs.namespace);
    let services: Vec<_> = shared.services.imported(&imports).collect();
    let visible = Visible::new(shared, inputs, &imports);
    let mut hosts: Vec<Host> = services.iter().map(|service| bare(shared, inputs, service)).collect();
    let targets = if imports.is_everything() {
        Vec::new()
    } else {
        target::targets(shared, inputs, &visible, &services)
    };
    let targets: Vec<Host> = targets.iter().map(|service| bare(shared, inputs, service)).collect();
    let client = Client {
        shared,
        inputs,
        visible,
        hashed: hashed(hosts.iter().chain(&targets)),
        gateway: None,
    };
    let mut tables = Tables::default();
    for host in &mut hosts {
        for port in &mut host.ports {
            port.http = client.http(&host.host, port.port, port.protocol, &mut tables);
            port.tls = client.tls(&host.host, port.port, port.protocol);
            port.tcp = client.tcp(&host.host, port.port, port.protocol);
        }
    }
    let domains = client.extra_domains(&hosts, &mut tables);
    target::add(&mut hosts, targets);
    let listeners = listener::listeners(client, &mut tables);
    (hosts, tables.0.into_values().collect(), domains, listeners)
}

/// A host without rules.
fn bare(shared: &Shared<'_>, inputs: &KeyInputs, service: &Registered<'_>) -> Host {
    let chosen = Chosen::new(shared, service, PolicyClient::new(inputs));
    let ports = service.ports.iter().map(|port| HostPort {
        port: port.number,
        name: port.name.clone(),
        protocol: port.protocol,
        grpc_web: port.grpc_web,
        http: None,
        tls: Vec::new(),
        tcp: Vec::new(),
        policy: chosen.port(shared, service, port),
        target_port: port.kept_target,
        target_only: port.target_only,
    });
    Host {
        host: service.host.clone(),
        name: service.name.clone(),
        namespace: service.namespace.to_owned(),
        domains: shared
            .services
            .domains(service, &inputs.namespace, &shared.world.settings.cluster_domain),
        addresses: service.addresses.clone(),
        headless: service.headless,
        node_local: service.node_local,
        kind: if service.service.is_some() {
            HostKind::Service
        } else {
            HostKind::Entry
        },
        subnets: service.subnets.clone(),
        allocated: service.allocated.clone(),
        discovery: match service.resolution {
            Resolution::None => Discovery::Dialled,
            _ => endpoint::dns(shared, service).map_or(Discovery::Listed, Discovery::Dns),
        },
        identities: if service.external {
            Vec::new()
        } else {
            service.subject_alt_names()
        },
        ports: ports.collect(),
        subsets: chosen.render_subsets(shared, service),
    }
}

/// Destinations whose endpoints are chosen by a key: host, port, subset.
fn hashed<'h>(hosts: impl Iterator<Item = &'h Host>) -> BTreeSet<(String, u16, Option<String>)> {
    let has_key =
        |policy: &Policy| matches!(&policy.load_balancer, LoadBalancer::ConsistentHash(hash) if hash.key.is_some());
    let mut out = BTreeSet::new();
    for host in hosts {
        for port in &host.ports {
            if has_key(&port.policy) {
                out.insert((host.host.clone(), port.port, None));
            }
            for subset in &host.subsets {
                if has_key(subset.policies.get(&port.port).unwrap_or(&port.policy)) {
                    out.insert((host.host.clone(), port.port, Some(subset.name.clone())));
                }
            }
        }
    }
    out
}

/// The view of one client.
struct Client<'a> {
    shared: &'a Shared<'a>,
    inputs: &'a KeyInputs,
    visible: Visible<'a>,
    hashed: BTreeSet<(String, u16, Option<String>)>,
    /// `namespace/name` of the Gateway whose rules are asked for; `None`: those of the mesh.
    gateway: Option<String>,
}

impl Client<'_> {
    /// The route table of a host and port: that of the first VirtualService whose rules apply to this client and port
    /// (VS-010, VS-013, VS-015, VS-024).
    fn http(&self, host: &str, port: u16, protocol: Protocol, tables: &mut Tables) -> Option<String> {
        if !protocol.is_http() && protocol != Protocol::Auto {
            return None;
        }
        let candidates = self.visible.for_http(host);
        candidates.into_iter().find_map(|v| self.table(v, port, tables))
    }

    /// Renders the rules that hold for this client on a port, and names the table; `None` when none holds.
    fn table(&self, service: &VirtualService, port: u16, tables: &mut Tables) -> Option<String> {
        let rules = self.rules(service, port)?;
        let origin = origin(service);
        let base = format!("{}/{}", origin.namespace, origin.name);
        let by_port = format!("{base}:{port}");
        tables.add(origin, &[base, by_port], rules)
    }

    /// The rules that hold for this client on a port; `None` when none holds.
    fn rules(&self, service: &VirtualService, port: u16) -> Option<Vec<Rule>> {
        let own = namespace_of(service);
        let mut rules = Vec::new();
        let mut lacks_delegate = false;
        for entry in delegate::entries(self.shared, service) {
            // Requests that only such an entry would have matched find no rule (VS-155).
            lacks_delegate |= entry.routes.is_empty() && self.alternatives(entry.root, own, port).is_some();
            let of = |routed: &Routed<'_>| self.rule(routed, port);
            rules.extend(entry.routes.iter().filter_map(of));
        }
        (!rules.is_empty() || lacks_delegate).then_some(rules)
    }

    /// Alternatives of an entry whose static conditions hold; `None` when it has some and none holds.
    fn alternatives<'r>(
        &self,
        route: &'r api::HTTPRoute,
        namespace: &str,
        port: u16,
    ) -> Option<Vec<&'r api::HTTPMatchRequest>> {
        let holds: Vec<_> = route
            .matches
            .iter()
            .filter(|m| self.holds(m, namespace, port))
            .collect();
        (route.matches.is_empty() || !holds.is_empty()).then_some(holds)
    }

    /// One rule; `None` when its static conditions exclude this client and port (VS-024, VS-040..VS-043).
    fn rule(&self, routed: &Routed<'_>, port: u16) -> Option<Rule> {
        let Routed { namespace, route } = routed;
        let alternatives = self.alternatives(route, namespace, port)?;
        let action = self.action(namespace, route, port);
        let (request_headers, response_headers) = change::headers(route.headers.as_ref());
        let fault = route.fault.as_ref().map(resilience::fault);
        Some(Rule {
            name: route.name.clone().filter(|n| !n.is_empty()),
            matches: condition::alternatives(&alternatives),
            retry: self.retries(route, &action),
            action,
            rewrite: route.rewrite.as_ref().map(change::rewrite).unwrap_or_default(),
            request_headers,
            response_headers,
            timeout_ms: route.timeout.as_ref().and_then(|d| d.millis()),
            fault: fault.filter(|f| *f != Fault::default()),
            mirrors: self.mirrors(namespace, route, port),
            cors: route.cors_policy.as_ref().map(answer::cors),
            origin: None,
        })
    }

    /// Hosts that name no known service get a domain on port 80 and on the HTTP ports of the other hosts (VS-011).
    fn extra_domains(&self, hosts: &[Host], tables: &mut Tables) -> Vec<ExtraDomain> {
        let mut out: BTreeMap<(u16, String), String> = BTreeMap::new();
        for candidate in self.visible.iter().filter(|c| !c.service.spec.http.is_empty()) {
            let known = |pattern: &String| {
                let covered = hosts.iter().filter(|h| host::covers(pattern, &h.host));
                covered.collect::<Vec<_>>()
            };
            let mut ports = BTreeSet::from([80]);
            for host in candidate.hosts.iter().flat_map(known) {
                ports.extend(host.ports.iter().filter(|p| p.protocol.is_http()).map(|p| p.port));
            }
            for pattern in candidate.hosts.iter().filter(|p| known(p).is_empty()) {
                let domain = &self.shared.world.settings.cluster_domain;
                let alias = self.shared.services.alias(pattern, &self.inputs.namespace, domain);
                let (names, ports) = alias.unwrap_or_else(|| (vec![pattern.clone()], ports.clone()));
                for (port, name) in ports
                    .iter()
                    .flat_map(|port| names.iter().map(|name| (*port, name.clone())))
                {
                    if out.contains_key(&(port, name.clone())) {
                        continue;
                    }
                    if let Some(table) = self.table(candidate.service, port, tables) {
                        out.insert((port, name), table);
                    }
                }
            }
        }
        out.into_iter()
            .map(|((port, domain), http)| ExtraDomain {
                port,
                domains: vec![domain],
                http,
            })
            .collect()
    }
}

/// Route tables by name.
#[derive(Default)]
struct Tables(BTreeMap<String, RouteTable>);

impl Tables {
    /// Adds rules under the first name that is free or means the same already, and tells it. Equal rules share one table.
    fn add(&mut self, origin: Origin, names: &[String], rules: Vec<Rule>) -> Option<String> {
        let is_free = |name: &&String| self.0.get(*name).is_none_or(|table| table.rules == rules);
        let chosen = names.iter().find(is_free)?.clone();
        self.0.entry(chosen.clone()).or_insert_with(|| RouteTable {
            name: chosen.clone(),
            origin,
            rules,
        });
        Some(chosen)
    }
}

fn origin(service: &VirtualService) -> Origin {
    Origin {
        kind: "VirtualService".into(),
        namespace: namespace_of(service).to_owned(),
        name: service.metadata.name.clone().unwrap_or_default(),
    }
}

fn namespace_of(service: &VirtualService) -> &str {
    service.metadata.namespace.as_deref().unwrap_or_default()
}
