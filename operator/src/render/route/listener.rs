//! What the ports of a gateway serve: the rules of the VirtualServices that are bound to their servers (GW-019 ff.).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use weft_bundle::key::Template;
use weft_bundle::wire::{
    Action, Destination, HeaderOps, Inside, Listener, Match, Origin, Redirect, RedirectPort, Rewrite, Rule, Serves,
    StringMatch, TlsRule, TlsServer, TlsServing, VirtualHost,
};
use weft_crds::validate::host;

use super::super::gateway::{self, Class, Port, Server};
use super::condition::is_port;
use super::connection::{by_rank, rank};
use super::precedence::{Candidate, Visible, gateway_id};
use super::{Client, Tables, namespace_of, origin};

/// The ports that a workload opens; none for a sidecar.
pub(super) fn listeners(client: Client<'_>, tables: &mut Tables) -> Vec<Listener> {
    if client.inputs.template == Template::Sidecar {
        return Vec::new();
    }
    let bound = Visible::of_gateways(client.shared, client.inputs);
    let ports = gateway::ports(client.shared, client.inputs);
    let mut place = Place { client, bound };
    let listener = |port: &Port<'_>| {
        let number = port.servers[0].number;
        Some(Listener {
            port: port.number,
            service_port: (number != port.number).then_some(number),
            // As with what else is the port's and no name's, the oldest server decides.
            grpc_web: port.class == Class::Http && port.servers[0].is_grpc_web(),
            serves: place.serves(port, tables)?,
        })
    };
    ports.iter().filter_map(listener).collect()
}

/// Where rules are asked for.
struct Place<'a> {
    client: Client<'a>,
    bound: Visible<'a>,
}

impl Place<'_> {
    /// `None` where nothing is to be served, so that the port stays closed (GW-068).
    fn serves(&mut self, port: &Port<'_>, tables: &mut Tables) -> Option<Serves> {
        match port.class {
            Class::Http => {
                let place = port.number.to_string();
                Some(Serves::Http(self.virtual_hosts(&port.servers, &place, tables)))
            }
            Class::Tls => {
                let serving = TlsServing {
                    passthrough: self.server_names(port),
                    terminated: self.terminated(port, tables),
                };
                (serving != TlsServing::default()).then_some(Serves::Tls(serving))
            }
            Class::Tcp => self.opaque(&port.servers[0]).map(Serves::Tcp),
        }
    }

    /// The VirtualServices that are bound to a server, each with the names that it serves there (GW-020, GW-021, VS-019).
    fn bound(&self, server: &Server<'_>) -> Vec<(&Candidate<'_>, Vec<String>)> {
        let id = server.id();
        let mut out = Vec::new();
        for candidate in self.bound.iter() {
            let own = namespace_of(candidate.service);
            let names_it = |name: &String| gateway_id(name, own).as_ref() == Some(&id);
            if candidate.service.spec.gateways.iter().any(names_it) {
                let served = intersection(&server.hosts_for(own), &candidate.hosts);
                if !served.is_empty() {
                    out.push((candidate, served));
                }
            }
        }
        out
    }

    /// Names with their rules: those of all VirtualServices that serve a name, one behind the other (VS-017, GW-060).
    fn virtual_hosts(&mut self, servers: &[Server<'_>], place: &str, tables: &mut Tables) -> Vec<VirtualHost> {
        let mut names: BTreeMap<String, Named> = BTreeMap::new();
        for server in servers {
            self.client.gateway = Some(server.id());
            for (candidate, served) in self.bound(server) {
                let Some(rules) = self.client.rules(candidate.service, server.number) else {
                    continue;
                };
                let (rules, origin) = (reachable(rules), origin(candidate.service));
                for name in served {
                    let named = names.entry(name).or_default();
                    named.add(&origin, &rules);
                    named.redirected_by(server);
                }
            }
            if server.redirects() {
                // Without a VirtualService, too (GW-029); one such server is enough for a name (GW-112).
                for name in server.hosts() {
                    names.entry(name).or_default().redirected_by(server);
                }
            }
        }
        let mut by_table: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, named) in names {
            if let Some(table) = named.table(place, &name, tables) {
                by_table.entry(table).or_default().push(name);
            }
        }
        let host = |(http, domains)| VirtualHost { domains, http };
        by_table.into_iter().map(host).collect()
    }

    /// Servers at which TLS ends: each with its own names and rules (GW-057, GW-065, GW-069).
    fn terminated(&mut self, port: &Port<'_>, tables: &mut Tables) -> Vec<TlsServer> {
        let mut out = Vec::new();
        for (n, server) in port.servers.iter().enumerate() {
            let Some(tls) = server.termination(self.client.shared, &self.client.inputs.namespace) else {
                continue;
            };
            let inside = if server.is_https() {
                let place = format!("{}:{n}", port.number);
                let hosts = self.virtual_hosts(std::slice::from_ref(server), &place, tables);
                Some(Inside::Http(hosts))
            } else {
                self.opaque(server).map(Inside::Tcp)
            };
            let names: BTreeSet<String> = server.hosts().collect();
            out.extend(inside.map(|inside| TlsServer {
                sni: names.into_iter().collect(),
                tls,
                inside,
            }));
        }
        out
    }

    /// Rules for TLS that passes through, the most specific name first (VS-163, VS-166, VS-167, GW-058).
    fn server_names(&mut self, port: &Port<'_>) -> Vec<TlsRule> {
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut out: Vec<(usize, TlsRule)> = Vec::new();
        let (shared, namespace) = (self.client.shared, &self.client.inputs.namespace);
        let passes = |server: &&Server<'_>| server.termination(shared, namespace).is_none();
        for server in port.servers.iter().filter(passes) {
            self.client.gateway = Some(server.id());
            for (Candidate { service, .. }, _) in self.bound(server) {
                let own = namespace_of(service);
                let allowed = server.hosts_for(own);
                for route in &service.spec.tls {
                    let destinations = self.client.connections(own, &route.route, server.number);
                    for condition in &route.matches {
                        if !is_port(condition.port, server.number) || !self.client.is_here(&condition.gateways, own) {
                            continue;
                        }
                        let wanted: Vec<String> = condition.sni_hosts.iter().map(|s| s.to_ascii_lowercase()).collect();
                        let mut sni = intersection(&allowed, &wanted);
                        sni.retain(|name| is_chosen(port, server, name));
                        // One name that is taken makes the whole element void.
                        if sni.iter().any(|name| taken.contains(name)) {
                            continue;
                        }
                        taken.extend(sni.iter().cloned());
                        out.extend(by_rank(sni.into_iter(), rank).into_iter().map(|(rank, sni)| {
                            let rule = TlsRule {
                                sni,
                                subnets: Vec::new(),
                                destinations: destinations.clone(),
                            };
                            (rank, rule)
                        }));
                    }
                }
            }
        }
        out.sort_by_key(|(rank, _)| Reverse(*rank));
        out.into_iter().map(|(_, rule)| rule).collect()
    }

    /// The first rule that fits (VS-173).
    fn opaque(&mut self, server: &Server<'_>) -> Option<Vec<Destination>> {
        self.client.gateway = Some(server.id());
        self.bound(server)
            .into_iter()
            .find_map(|(Candidate { service, .. }, _)| {
                let own = namespace_of(service);
                let fits = |route: &&weft_crds::virtual_service::TCPRoute| {
                    let is_here = |condition: &weft_crds::virtual_service::L4MatchAttributes| {
                        is_port(condition.port, server.number) && self.client.is_here(&condition.gateways, own)
                    };
                    route.matches.is_empty() || route.matches.iter().any(is_here)
                };
                let route = service.spec.tcp.iter().find(fits)?;
                Some(self.client.connections(own, &route.route, server.number))
            })
    }
}

/// Whether a server name chooses a server of the port, by the most specific of the hosts that cover it (GW-058).
fn is_chosen(port: &Port<'_>, server: &Server<'_>, name: &str) -> bool {
    let best = |server: &Server<'_>| {
        let covering = server.hosts().filter(|host| host::covers(host, name));
        covering.map(|host| rank(&host)).max()
    };
    let own = best(server);
    port.servers.iter().all(|other| best(other) <= own)
}

/// What a name leads to.
#[derive(Default)]
struct Named {
    /// The rules of each VirtualService, in the order in which they count.
    parts: Vec<(Origin, Vec<Rule>)>,
    redirect: Option<Origin>,
}

impl Named {
    /// Adds rules, unless another server of the port has brought the same.
    fn add(&mut self, origin: &Origin, rules: &[Rule]) {
        if !self.parts.iter().any(|(of, there)| of == origin && there == rules) {
            self.parts.push((origin.clone(), rules.to_vec()));
        }
    }

    fn redirected_by(&mut self, server: &Server<'_>) {
        if server.redirects() {
            self.redirect.get_or_insert_with(|| Origin {
                kind: "Gateway".into(),
                namespace: server.gateway.metadata.namespace.clone().unwrap_or_default(),
                name: server.gateway.metadata.name.clone().unwrap_or_default(),
            });
        }
    }

    /// Names the table of it all.
    fn table(self, place: &str, name: &str, tables: &mut Tables) -> Option<String> {
        if let Some(origin) = self.redirect {
            let base = format!("{}/{}:redirect", origin.namespace, origin.name);
            let here = format!("{base}:{place}");
            return tables.add(origin, &[base, here], vec![to_https()]);
        }
        let origin = self.parts.first()?.0.clone();
        let with_origin = |(of, rules): (Origin, Vec<Rule>)| {
            let other = (of != origin).then_some(of);
            rules.into_iter().map(move |rule| Rule {
                origin: other.clone(),
                ..rule
            })
        };
        // What fits everything comes last, in the same order (VS-018).
        let all = self.parts.into_iter().flat_map(with_origin);
        let (last, mut rules): (Vec<Rule>, Vec<Rule>) = all.partition(is_catch_all);
        rules.extend(last);
        let base = format!("{}/{}", origin.namespace, origin.name);
        let by_port = format!("{base}:{place}");
        let by_name = format!("{by_port}:{name}");
        tables.add(origin, &[base, by_port, by_name], rules)
    }
}

/// Rules up to the first that fits everything; what fits everything among the alternatives of a rule becomes a rule of its
/// own, so that it can be moved.
fn reachable(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out = Vec::new();
    for mut rule in rules {
        match rule.matches.iter().position(fits_all) {
            _ if rule.matches.is_empty() => {
                out.push(rule);
                return out;
            }
            Some(n) => {
                let all = rule.matches.swap_remove(n);
                rule.matches.truncate(n);
                let last = Rule {
                    matches: if all == Match::default() { Vec::new() } else { vec![all] },
                    ..rule.clone()
                };
                if n > 0 {
                    out.push(rule);
                }
                out.push(last);
                return out;
            }
            None => out.push(rule),
        }
    }
    out
}

fn is_catch_all(rule: &Rule) -> bool {
    rule.matches.is_empty() || rule.matches.iter().all(fits_all)
}

/// Whether an alternative asks for nothing but a path, and that for any.
fn fits_all(condition: &Match) -> bool {
    let any = match &condition.path {
        None => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(regex)) => regex == ".*",
        Some(StringMatch::Exact(_)) => false,
    };
    let rest = Match {
        name: None,
        path: None,
        ignore_path_case: false,
        ..condition.clone()
    };
    any && rest == Match::default()
}

/// The answer of a server with `httpsRedirect` (GW-029).
fn to_https() -> Rule {
    Rule {
        name: None,
        matches: Vec::new(),
        action: Action::Redirect(Redirect {
            code: 301,
            scheme: Some("https".into()),
            port: Some(RedirectPort::Received),
            ..Redirect::default()
        }),
        rewrite: Rewrite::default(),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout_ms: None,
        retry: None,
        fault: None,
        mirrors: Vec::new(),
        cors: None,
        origin: None,
    }
}

/// Names that both lists cover, as the narrower one writes them (GW-021, GW-022).
fn intersection(one: &[String], other: &[String]) -> Vec<String> {
    let narrower = |one: &String, other: &String| {
        if host::covers(one, other) {
            Some(other.clone())
        } else {
            host::covers(other, one).then(|| one.clone())
        }
    };
    let all: BTreeSet<String> = one
        .iter()
        .flat_map(|one| other.iter().filter_map(|other| narrower(one, other)))
        .collect();
    all.into_iter().collect()
}
