//! Capture of the application's queries for names (interception.md, section G).
//!
//! Queries over UDP have no connection that the kernel could tell apart by more than addresses and ports, and the
//! proxy's own queries may have those of the application: each kind has a tracking zone of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Arguments, Condition, Owner, Rule, Verdict, Zones, leave, owners, single, to};

/// Which servers' queries are captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Names {
    /// Nobody's.
    #[default]
    Off,
    /// Those of these servers.
    Servers(BTreeSet<IpAddr>),
    /// Everybody's.
    All,
}

impl Names {
    /// What the parameters and the pod's resolver ask for. A resolver without servers turns capture off, with a warning
    /// (NET-091).
    #[must_use]
    pub fn read(arguments: &Arguments) -> Self {
        // Exempt from all capture, and so from tracking apart (NET-092).
        let is_excluded = arguments
            .exclude_outbound_ports
            .listed()
            .any(|port| port == SERVER_PORT);
        if !arguments.dns_capture || is_excluded {
            return Self::Off;
        }
        if arguments.capture_all_dns {
            return Self::All;
        }
        let path = &arguments.resolv_conf;
        let servers: BTreeSet<IpAddr> = match crate::dns::servers(path) {
            Ok(servers) => servers.iter().map(|server| server.ip()).collect(),
            Err(e) => {
                eprintln!("weft-proxy init: warning: read {}: {e}", path.display());
                BTreeSet::new()
            }
        };
        if servers.is_empty() {
            eprintln!(
                "weft-proxy init: warning: {} names no nameserver, so that DNS capture is off; CAPTURE_ALL_DNS=true \
                 captures queries to any server",
                path.display()
            );
            return Self::Off;
        }
        Self::Servers(servers)
    }

    /// What stands beside NET-043 and NET-044: any port but that of servers.
    pub(super) fn other_port(&self) -> Option<Condition> {
        (*self != Self::Off).then_some(Condition::Port {
            port: SERVER_PORT,
            other: true,
        })
    }

    /// NET-048.
    pub(super) fn capture(&self, port: u16) -> Vec<Rule> {
        [Condition::Tcp, Condition::Udp]
            .into_iter()
            .flat_map(|protocol| self.queries(protocol))
            .map(|conditions| to(conditions, port))
            .collect()
    }

    /// NET-093.
    pub(super) fn zones(&self, arguments: &Arguments) -> Option<Zones> {
        if *self == Self::Off {
            return None;
        }
        let interfaces = || arguments.exclude_interfaces.iter().filter(|name| !name.is_empty());
        let mut arriving: Vec<Rule> = interfaces()
            .map(|name| leave(vec![Condition::Input(name.clone())]))
            .collect();
        arriving.extend(self.replies().map(|conditions| zone(conditions, UPSTREAM)));
        let mut leaving: Vec<Rule> = interfaces()
            .map(|name| leave(vec![Condition::Output(name.clone())]))
            .collect();
        for owner in owners(arguments) {
            leaving.extend(self.queries(Condition::Udp).map(|mut conditions| {
                conditions.push(by(owner));
                zone(conditions, UPSTREAM)
            }));
        }
        let answers = vec![Condition::Udp, Condition::SourcePort(arguments.dns_port)];
        leaving.push(zone(answers, DOWNSTREAM));
        leaving.extend(
            self.queries(Condition::Udp)
                .map(|conditions| zone(conditions, DOWNSTREAM)),
        );
        // A server of the pod's own, whose replies pass here and no interface before.
        leaving.extend(self.replies().map(|mut conditions| {
            conditions.insert(0, Condition::Output("lo".to_owned()));
            zone(conditions, UPSTREAM)
        }));
        Some(Zones { arriving, leaving })
    }

    /// Packets to the servers.
    fn queries(&self, protocol: Condition) -> impl Iterator<Item = Vec<Condition>> {
        let port = Condition::Port {
            port: SERVER_PORT,
            other: false,
        };
        let to = |address| Condition::Destination {
            range: single(address),
            other: false,
        };
        self.addresses(to).map(move |address| {
            let mut conditions = vec![protocol.clone(), port.clone()];
            conditions.extend(address);
            conditions
        })
    }

    /// Packets from the servers, over UDP.
    fn replies(&self) -> impl Iterator<Item = Vec<Condition>> {
        self.addresses(|address| Condition::Source(single(address)))
            .map(|address| {
                let mut conditions = vec![Condition::Udp, Condition::SourcePort(SERVER_PORT)];
                conditions.extend(address);
                conditions
            })
    }

    /// A condition for each server; a single `None` for all.
    fn addresses(&self, condition: impl Fn(IpAddr) -> Condition) -> impl Iterator<Item = Option<Condition>> {
        let (servers, all) = match self {
            Self::Off => (None, None),
            Self::Servers(servers) => (Some(servers.iter().copied()), None),
            Self::All => (None, Some(None)),
        };
        servers
            .into_iter()
            .flatten()
            .map(move |address| Some(condition(address)))
            .chain(all)
    }
}

fn by(owner: Owner) -> Condition {
    Condition::Owner { owner, other: false }
}

fn zone(conditions: Vec<Condition>, zone: u16) -> Rule {
    Rule {
        conditions,
        verdict: Verdict::Zone(zone),
    }
}

/// Port of the proxy's resolver (NET-007).
pub const PORT: u16 = 15053;
/// Table of the zones (NET-101).
pub(super) const ZONES: &str = "weft-raw";
/// Port of servers.
const SERVER_PORT: u16 = 53;
/// Between the proxy and servers.
const UPSTREAM: u16 = 1;
/// Between the application and the proxy.
const DOWNSTREAM: u16 = 2;
