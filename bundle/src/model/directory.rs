//! What addresses and names lead to. It depends on the hosts alone and not on their rules, so that a configuration with
//! the hosts of the one before shares it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Host, Port, RouteTable};
use crate::pace::breathe;
use crate::wire;

/// What an HTTP name leads to.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Rules.
    pub http: Arc<RouteTable>,
    /// Port of the host that has the name; `None` for made-up names (VS-011).
    pub port: Option<Arc<Port>>,
    /// HTTP by Host reaches it from any address: the port is HTTP-class, or an automatic one of a host without address.
    pub shared: bool,
}

impl Domain {
    /// What the names of a host lead to on one of its ports.
    pub(super) fn of(port: Arc<Port>) -> Self {
        Self {
            http: port.http.clone(),
            shared: port.protocol.is_http() || is_open(&port.host, port.protocol),
            port: Some(port),
        }
    }

    /// What a name without host leads to.
    pub(super) fn made_up(http: Arc<RouteTable>) -> Self {
        Self {
            http,
            port: None,
            shared: true,
        }
    }
}

/// The HTTP names of one port number.
#[derive(Debug, Clone, Copy)]
pub struct Domains<'c> {
    /// A visible service has it as an HTTP-class port, so HTTP there goes by Host alone (SM-037).
    pub shared: bool,
    pub(super) names: &'c Names,
    pub(super) leads: &'c [Domain],
}

impl<'c> Domains<'c> {
    pub(super) fn new(names: &'c Names, leads: &'c [Domain]) -> Self {
        Self {
            shared: names.shared,
            names,
            leads,
        }
    }

    /// Finds a host by name without port, in lower case (SM-040, SM-041, SM-057).
    #[must_use]
    pub fn find(self, name: &str) -> Option<&'c Domain> {
        self.names.find(name).and_then(|place| self.leads.get(place as usize))
    }
}

/// Places by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    shared: bool,
    pub(super) exact: HashMap<Arc<str>, u32>,
    /// Suffix with its dot; longest first.
    pub(super) suffixes: Vec<(Box<str>, u32)>,
}

impl Names {
    fn find(&self, name: &str) -> Option<u32> {
        if let Some(place) = self.exact.get(name) {
            return Some(*place);
        }
        self.suffixes
            .iter()
            .find(|(suffix, _)| (name.len() > suffix.len() || suffix.is_empty()) && name.ends_with(&**suffix))
            .map(|(_, place)| *place)
    }

    pub(super) fn insert(&mut self, name: &Arc<str>, place: u32, domain: &Domain) {
        self.shared |= domain.port.as_ref().is_none_or(|port| port.protocol.is_http());
        // Addresses of IPv6 are looked up without the brackets that they have in a Host.
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let name = bare.map_or_else(|| name.clone(), Arc::from);
        if let Some(suffix) = name.strip_prefix('*') {
            self.suffixes.push((suffix.into(), place));
        } else {
            // A short alias never hides a real name, so hosts whose own name it is are inserted last (SM-042).
            self.exact.insert(name, place);
        }
    }

    /// To be called when all names are there.
    pub(super) fn finish(&mut self) {
        self.suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
    }
}

/// Places of what addresses and names lead to, in [`super::Config::leads`].
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Ports of hosts by cluster address and number.
    pub(super) addresses: HashMap<(IpAddr, u16), u32>,
    /// HTTP names by number of the port dialled.
    pub(super) domains: HashMap<u16, Names>,
    /// Ports of headless hosts by number.
    pub(super) headless: HashMap<u16, Vec<u32>>,
    /// Ports by number of hosts that no address of their own tells from others.
    pub(super) open: HashMap<u16, Vec<u32>>,
    /// Ports by number of hosts that have ranges of addresses.
    pub(super) ranges: HashMap<u16, Vec<u32>>,
    /// Ports with rules for subnets by number.
    pub(super) subnets: HashMap<u16, Vec<u32>>,
}

impl Directory {
    /// `leads` are the ports of all hosts, and then an entry for each of `extras`.
    pub(super) fn new(leads: &[Domain], extras: &[wire::ExtraDomain]) -> Self {
        let mut directory = Self::default();
        let places = || (0u32..).zip(leads).inspect(|_| breathe());
        let ports = || places().filter_map(|(place, lead)| Some((place, lead, lead.port.as_ref()?)));
        for (place, _, port) in ports() {
            directory.by_address(place, port);
        }
        // Aliases first, real names last, so that the latter win (SM-042).
        for real in [false, true] {
            for (place, lead, port) in ports() {
                if !port.protocol.is_http() && port.protocol != wire::Protocol::Auto {
                    continue;
                }
                for name in port
                    .host
                    .domains
                    .iter()
                    .filter(|name| (**name == port.host.host) == real)
                {
                    directory
                        .domains
                        .entry(port.number)
                        .or_default()
                        .insert(name, place, lead);
                }
            }
        }
        let made_up = places().filter(|(_, lead)| lead.port.is_none());
        for ((place, lead), extra) in made_up.zip(extras) {
            for name in &extra.domains {
                let names = directory.domains.entry(extra.port).or_default();
                names.insert(&Arc::from(name.as_str()), place, lead);
            }
        }
        directory.domains.values_mut().for_each(Names::finish);
        directory
    }

    fn by_address(&mut self, place: u32, port: &Port) {
        let host = &port.host;
        for address in host.addresses.iter().chain(&host.allocated) {
            self.addresses.entry((*address, port.number)).or_insert(place);
        }
        let with_subnets = |subnets: &[wire::Subnet]| !subnets.is_empty();
        if port.tls.iter().any(|rule| with_subnets(&rule.subnets))
            || port.tcp.iter().any(|rule| with_subnets(&rule.subnets))
        {
            self.subnets.entry(port.number).or_default().push(place);
        }
        if host.headless {
            self.headless.entry(port.number).or_default().push(place);
        } else if !port.protocol.is_http() {
            if !host.subnets.is_empty() {
                self.ranges.entry(port.number).or_default().push(place);
            } else if is_open(host, port.protocol) {
                self.open.entry(port.number).or_default().push(place);
            }
        }
    }
}

/// Whether a port is known by its number alone, and by names.
fn is_open(host: &Host, protocol: wire::Protocol) -> bool {
    let is_entry = host.kind == wire::HostKind::Entry;
    // A Service without address is one that has none yet: bytes without a name are not for it.
    let fits = is_entry || matches!(protocol, wire::Protocol::Tls | wire::Protocol::Auto);
    fits && !host.headless && host.addresses.is_empty() && host.subnets.is_empty()
}
