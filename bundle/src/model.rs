//! The files, parsed and compiled: what a proxy runs. Whoever holds one of these values checks nothing again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::item::{Item, Unread, Unreadable};
use crate::wire;
use directory::Directory;
use reuse::Part;

mod authorization;
mod directory;
mod endpoints;
mod listener;
mod matching;
mod parse;
mod reuse;
mod route;

pub use authorization::{Authorization, Caller, Denial, Granted, Request};
pub use directory::{Domain, Domains};
pub use endpoints::{Endpoint, EndpointTable, HostEndpoints, derived, is_derived};
pub use listener::{Inside, Listener, Serves, Tls, TlsServer, TlsServing, VirtualHosts};
pub use matching::{AuthorityTest, HeaderName, HeaderTest, Match, PathTest, QueryTest, Text, first_value};
pub use route::{
    Action, Cors, Destination, Destinations, Fault, HeaderOps, Mirror, PathRewrite, Piece, Retry, RetryOn, Rewrite,
    RouteTable, Rule, Share, TcpRule, Template, TlsRule,
};

/// One thing that is wrong with a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {value:?}: {message}")]
pub struct Invalid {
    /// Field, from the root of the bundle.
    pub path: String,
    /// Its value.
    pub value: String,
    /// What is wrong and what would be accepted.
    pub message: String,
}

/// A parsed [`wire::Bundle`]: lookups are hash maps, expressions are compiled, names of destinations are resolved.
#[derive(Debug)]
pub struct Config {
    /// Greater than that of every configuration of the process that was parsed before.
    pub serial: u64,
    /// Who the proxy serves.
    pub workload: Arc<wire::PeerWorkload>,
    /// The workload as written.
    pub owner: wire::Workload,
    /// Settings of the whole mesh.
    pub mesh: wire::Mesh,
    /// How requests to the workload are received.
    pub inbound: Inbound,
    /// Who may reach the workload.
    pub authorization: Authorization,
    /// All hosts, sorted by name.
    pub hosts: Vec<Arc<Host>>,
    /// All destinations, in the order of hosts.
    pub clusters: Vec<Arc<Cluster>>,
    /// Places of destinations by name.
    index: Arc<HashMap<Arc<str>, u32>>,
    /// Greater than each [`Cluster::id`].
    slots: usize,
    /// What names and addresses lead to: ports of hosts in order, then made-up names.
    leads: Vec<Domain>,
    directory: Arc<Directory>,
    /// Ports that a gateway opens, by number.
    pub listeners: BTreeMap<u16, Arc<Listener>>,
    /// Where in the lists what a host has is, for each of [`Self::hosts`].
    parts: Vec<Part<Places>>,
    tables: Vec<Part<Table>>,
    /// What [`Self::directory`] was made with.
    extras: Vec<wire::ExtraDomain>,
}

/// Places of what a host has.
#[derive(Debug, Clone, Default)]
struct Places {
    /// In [`Config::clusters`].
    clusters: Range<usize>,
    /// In [`Config::leads`].
    ports: Range<usize>,
}

/// A route table, with what it depends on and does not tell.
#[derive(Debug, Clone)]
struct Table {
    table: Arc<RouteTable>,
    /// Names of mirrors that no host has: they are left out of it.
    left_out: Box<[Box<str>]>,
}

/// Why a configuration cannot be made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// An item is not of the expected form.
    Unreadable,
    /// Everything else that is wrong.
    Invalid(Vec<Invalid>),
}

impl From<Unreadable> for Refused {
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

impl Config {
    /// Parses and compiles a bundle.
    ///
    /// # Errors
    /// Everything that is wrong with it, not only the first.
    pub fn parse(bundle: wire::Bundle) -> Result<Self, Vec<Invalid>> {
        match Self::make(bundle.map(Item::Value, Item::Value), None) {
            Ok(config) => Ok(config),
            Err(Refused::Invalid(problems)) => Err(problems),
            Err(Refused::Unreadable) => unreachable!("values have been read"),
        }
    }

    /// As [`Self::parse`], of items that have not been read. What items were made of that `before` had is taken over from
    /// it: equal parts of the two are the same object.
    pub(crate) fn make(bundle: Unread<'_>, before: Option<&Self>) -> Result<Self, Refused> {
        parse::config(bundle, before)
    }

    /// Number of route tables.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.tables.len()
    }

    /// A destination by its name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(*self.index.get(name)? as usize)
    }

    /// Greater than [`Cluster::id`] of all destinations.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The port of the host that has this cluster address (SM-038).
    #[must_use]
    pub fn by_address(&self, address: IpAddr, port: u16) -> Option<&Arc<Port>> {
        self.port(*self.directory.addresses.get(&(address, port))?)
    }

    /// The HTTP names of a port number; `None` when nothing there is HTTP or automatic.
    #[must_use]
    pub fn domains(&self, port: u16) -> Option<Domains<'_>> {
        let names = self.directory.domains.get(&port)?;
        Some(Domains::new(names, &self.leads))
    }

    /// Ports of headless hosts with this number.
    pub fn headless(&self, port: u16) -> impl Iterator<Item = &Arc<Port>> {
        self.ports(self.directory.headless.get(&port))
    }

    /// Ports with this number, other than HTTP, that an address leads to without being one host's alone: of hosts with a
    /// range that holds it, then of hosts without address. The name that TLS asks for decides among those of TLS class
    /// (SM-044, SE-022); the first of the others gets what is left (SE-015, SM-045).
    #[must_use]
    pub fn open(&self, address: IpAddr, port: u16) -> Vec<Arc<Port>> {
        let in_range = self.ports(self.directory.ranges.get(&port));
        let in_range = in_range.filter(|port| route::in_any(&port.host.subnets, address));
        let open = self.ports(self.directory.open.get(&port));
        in_range.chain(open).cloned().collect()
    }

    /// The port with this number of a host that has a rule for a subnet with this address (VS-174).
    #[must_use]
    pub fn by_subnet(&self, address: IpAddr, port: u16) -> Option<&Arc<Port>> {
        let names = |subnets: &[wire::Subnet]| !subnets.is_empty() && route::in_any(subnets, address);
        self.ports(self.directory.subnets.get(&port)).find(|port| {
            port.tls.iter().any(|rule| names(&rule.subnets)) || port.tcp.iter().any(|rule| names(&rule.subnets))
        })
    }

    fn ports(&self, places: Option<&Vec<u32>>) -> impl Iterator<Item = &Arc<Port>> {
        let places = places.map_or(&[][..], Vec::as_slice);
        places.iter().filter_map(|place| self.port(*place))
    }

    fn port(&self, place: u32) -> Option<&Arc<Port>> {
        self.leads.get(place as usize)?.port.as_ref()
    }
}

/// How requests to the workload are received.
#[derive(Debug)]
pub struct Inbound {
    /// Mode of ports that are not listed.
    pub mtls: wire::MtlsMode,
    /// Where the application is reached.
    pub destination: wire::InboundDestination,
    /// Ports by number.
    pub ports: HashMap<u16, Arc<InboundPort>>,
}

impl Inbound {
    /// What is known of a port; `None` for one that no Service leads to.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&Arc<InboundPort>> {
        self.ports.get(&number)
    }

    /// Mode of PeerAuthentication for a port.
    #[must_use]
    pub fn mode(&self, number: u16) -> wire::MtlsMode {
        self.ports.get(&number).map_or(self.mtls, |port| port.mtls)
    }
}

/// A target port of the workload.
#[derive(Debug)]
pub struct InboundPort {
    /// Number.
    pub number: u16,
    /// Protocol.
    pub protocol: wire::Protocol,
    /// Requests of gRPC-Web are translated (SM-026).
    pub grpc_web: bool,
    /// Ports of Services that lead here and have another number.
    pub service_ports: Vec<u16>,
    /// Mode.
    pub mtls: wire::MtlsMode,
    /// Host of the Service that telemetry shows (MET-032).
    pub host: Option<Arc<str>>,
    /// Limits of connections to the application (DR-089), where there are any.
    pub policy: Option<Arc<wire::Policy>>,
    /// Where the application listens, where that is said of this port (SE-089).
    pub target: Option<wire::InboundTarget>,
}

/// A host that the workload may call.
#[derive(Debug)]
pub struct Host {
    /// Fully qualified name.
    pub host: Arc<str>,
    /// Short name (MET-030).
    pub name: Arc<str>,
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Cluster addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses that stand for it where its name is answered by the mesh (SE-032).
    pub allocated: Vec<IpAddr>,
    /// Reached at the endpoint that the client dialled (SM-076).
    pub headless: bool,
    /// Only endpoints on the client's own node are used (SM-011).
    pub node_local: bool,
    /// Where it comes from.
    pub kind: wire::HostKind,
    /// How its endpoints are found.
    pub discovery: wire::Discovery,
    /// SPIFFE ids that its servers may have, beside the accounts of its endpoints.
    pub identities: Vec<String>,
    /// Host header values that select it (SM-040).
    pub domains: Vec<Arc<str>>,
    /// Ranges of addresses that select it (SE-022).
    pub subnets: Vec<wire::Subnet>,
}

/// A port of a host, with its rules.
#[derive(Debug)]
pub struct Port {
    /// The host.
    pub host: Arc<Host>,
    /// Service port.
    pub number: u16,
    /// Protocol.
    pub protocol: wire::Protocol,
    /// Requests of gRPC-Web are translated (SM-026).
    pub grpc_web: bool,
    /// HTTP rules.
    pub http: Arc<RouteTable>,
    /// Rules for TLS that passes through, most specific first.
    pub tls: Vec<TlsRule>,
    /// Rules for opaque connections.
    pub tcp: Vec<TcpRule>,
    /// All endpoints of the port.
    pub cluster: Arc<Cluster>,
}

/// A destination: host, port and subset, with the policy that holds for it.
#[derive(Debug)]
pub struct Cluster {
    /// A small number that no other destination of the configuration has. One that a configuration takes over keeps its.
    pub id: usize,
    /// `outbound|<port>|<subset>|<fqdn>` (LOG-023).
    pub name: Arc<str>,
    /// The host.
    pub host: Arc<Host>,
    /// Service port.
    pub port: u16,
    /// Name that finds the port in [`Endpoint::ports`].
    pub port_name: Arc<str>,
    /// Port that connections go to where the address is the one dialled.
    pub target_port: Option<u16>,
    /// Protocol of the port.
    pub protocol: wire::Protocol,
    /// Name of the subset; `None`: all endpoints.
    pub subset: Option<Arc<str>>,
    /// Labels that an endpoint of it has.
    pub labels: std::collections::BTreeMap<String, String>,
    /// How endpoints are chosen and connected to.
    pub policy: Arc<wire::Policy>,
    /// SNI of mesh mTLS (ID-077); `None` when it would be too long.
    pub sni: Option<Arc<str>>,
}

impl Port {
    /// How well a server name fits the host: exactly, or the length of the wildcard that covers it (SM-057).
    #[must_use]
    pub fn fits_name(&self, name: &str) -> Option<usize> {
        match self.host.host.strip_prefix('*') {
            Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
            None => (*self.host.host == *name).then_some(usize::MAX),
        }
    }
}

impl Cluster {
    /// The address that a connection goes to whose client chose it (SM-076, SE-024).
    #[must_use]
    pub fn kept(&self, dialled: std::net::SocketAddr) -> std::net::SocketAddr {
        let port = self.target_port.unwrap_or(dialled.port());
        std::net::SocketAddr::new(dialled.ip(), port)
    }

    /// Whether connections go to the address that the client dialled (DR-037, SE-024).
    #[must_use]
    pub fn keeps_dialled(&self) -> bool {
        self.policy.load_balancer == wire::LoadBalancer::Passthrough || self.host.discovery == wire::Discovery::Dialled
    }

    /// Connect timeout.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.policy.connect_timeout_ms)
    }
}

#[cfg(test)]
mod tests;
