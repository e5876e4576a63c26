//! Rules for TLS that passes through and for other connections (VS-163..VS-178).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use weft_bundle::wire::{Protocol, Subnet, TcpRule, TlsRule};
use weft_crds::validate::check;

use super::condition::is_port;
use super::{Client, namespace_of};

impl Client<'_> {
    /// Rules for TLS on a port of TLS class, most specific first: by subnet, then by name (VS-163, VS-167, VS-183).
    pub(super) fn tls(&self, host: &str, port: u16, protocol: Protocol) -> Vec<TlsRule> {
        if protocol != Protocol::Tls {
            return Vec::new();
        }
        let mut out: Vec<((Option<u8>, usize), TlsRule)> = Vec::new();
        for service in self.visible.covering(host) {
            for route in &service.spec.tls {
                let destinations = self.connections(namespace_of(service), &route.route, port);
                for condition in &route.matches {
                    let is_here = is_port(condition.port, port)
                        && self.is_here(&condition.gateways, namespace_of(service))
                        && self.is_source(&condition.source_labels, condition.source_namespace.as_deref());
                    if !is_here {
                        continue;
                    }
                    // Names and subnets of one element may differ in how specific they are, so each kind is a rule.
                    let names = by_rank(condition.sni_hosts.iter().map(|s| s.to_ascii_lowercase()), rank);
                    for (prefix, subnets) in subnets(&condition.destination_subnets) {
                        for (rank, sni) in &names {
                            let rule = TlsRule {
                                sni: sni.clone(),
                                subnets: subnets.clone(),
                                destinations: destinations.clone(),
                            };
                            out.push(((prefix, *rank), rule));
                        }
                    }
                }
            }
        }
        out.sort_by_key(|(rank, _)| Reverse(*rank));
        out.into_iter().map(|(_, rule)| rule).collect()
    }

    /// Rules for opaque connections (VS-171 ff., VS-183).
    pub(super) fn tcp(&self, host: &str, port: u16, protocol: Protocol) -> Vec<TcpRule> {
        if protocol != Protocol::Tcp && protocol != Protocol::Auto {
            return Vec::new();
        }
        let mut out: Vec<TcpRule> = Vec::new();
        for service in self.visible.covering(host) {
            for route in &service.spec.tcp {
                let destinations = self.connections(namespace_of(service), &route.route, port);
                if route.matches.is_empty() {
                    out.push(TcpRule {
                        subnets: Vec::new(),
                        destinations,
                    });
                    return out;
                }
                for condition in &route.matches {
                    let is_here = is_port(condition.port, port)
                        && self.is_here(&condition.gateways, namespace_of(service))
                        && self.is_source(&condition.source_labels, condition.source_namespace.as_deref());
                    if !is_here {
                        continue;
                    }
                    let subnets: Vec<Subnet> = condition.destination_subnets.iter().filter_map(|s| subnet(s)).collect();
                    let is_last = subnets.is_empty();
                    out.push(TcpRule {
                        subnets,
                        destinations: destinations.clone(),
                    });
                    if is_last {
                        return out;
                    }
                }
            }
        }
        out
    }
}

/// How specific a name is (VS-167, GW-058).
#[expect(clippy::ptr_arg, reason = "by_rank gives references to what it groups")]
pub(super) fn rank(name: &String) -> usize {
    if name.starts_with('*') { name.len() } else { usize::MAX }
}

/// Subnets by the length of their prefix; a rule without any has one group, the least specific.
fn subnets(texts: &[String]) -> Vec<(Option<u8>, Vec<Subnet>)> {
    if texts.is_empty() {
        return vec![(None, Vec::new())];
    }
    by_rank(texts.iter().filter_map(|s| subnet(s)), |subnet| Some(subnet.prefix))
}

/// Values in groups of equal rank, the lowest first.
pub(super) fn by_rank<T, R: Ord>(values: impl Iterator<Item = T>, rank: impl Fn(&T) -> R) -> Vec<(R, Vec<T>)> {
    let mut groups: BTreeMap<R, Vec<T>> = BTreeMap::new();
    for value in values {
        groups.entry(rank(&value)).or_default().push(value);
    }
    groups.into_iter().collect()
}

fn subnet(text: &str) -> Option<Subnet> {
    check::subnet(text).map(|(address, prefix)| Subnet { address, prefix })
}
