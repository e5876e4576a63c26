//! The files as they are written: serde types, laid out for people (DLV-020, DLV-022).
//!
//! Names are resolved (no short host names), merge rules are applied, and what is left out has the default that the
//! field's comment states. Unknown fields are ignored, so that an older proxy reads a newer bundle; what changes the
//! meaning of a bundle is a name in `requires` (DLV-024).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::key::{KeyInputs, Template};

mod authorization;
mod endpoints;
mod listener;
mod locality;
mod manifest;
mod policy;
mod route;

pub use authorization::{AccessCondition, AccessRule, AuthorizationPolicy, Authorize};
pub use endpoints::{Endpoint, Endpoints, Health, HostEndpoints, MeshTls, PeerWorkload};
pub use listener::{
    Authorities, Certificate, Clients, Inside, Listener, Serves, TlsServer, TlsServing, TlsSettings, VirtualHost,
};
pub use locality::{Distribute, Failover, Locality, SharedLabel, ZoneAware};
pub use manifest::{
    AUTHORIZATION, EndpointsManifest, GATEWAY, GATEWAY_TLS, Manifest, ShardDigest, Target, UPSTREAM_CREDENTIALS,
};
pub use policy::{
    ConsistentHash, CredentialKind, HashKey, Http2Keepalive, HttpVersion, LoadBalancer, OriginateTls, Outlier, Policy,
    ProxyProtocol, RetryBudget, TcpKeepalive, Tunnel, UpstreamCredential, UpstreamTls, Warmup,
};
pub use route::{
    Abort, Action, Cors, DEFAULT_RETRY_ON, Delay, Destination, DirectResponse, Fault, HeaderMatch, HeaderOps, Match,
    Mirror, Origin, PathRewrite, QueryMatch, Redirect, RedirectPath, RedirectPort, RetryPolicy, Rewrite, RouteTable,
    Rule, StringMatch, Subnet, TcpRule, TlsRule,
};

/// The schema that this build writes; it reads this one and none before it yet.
pub const SCHEMA: u32 = 1;

/// Everything that one workload's proxies need apart from endpoint addresses: content of `bundle.yaml`.
///
/// `H` and `T` are what the long lists are made of: the items themselves, or their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    bound(deserialize = "H: Deserialize<'de>, T: Deserialize<'de>")
)]
pub struct Bundle<H = Host, T = RouteTable> {
    /// Who the proxy serves.
    pub workload: Workload,
    /// Settings of the whole mesh that a proxy needs.
    #[serde(default)]
    pub mesh: Mesh,
    /// How requests to the workload are received.
    #[serde(default)]
    pub inbound: Inbound,
    /// Who may reach the workload, sorted by namespace and name. None: everybody whom [`Bundle::inbound`] takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization: Vec<AuthorizationPolicy>,
    /// Every host that the workload may call, sorted by name. `/config/status` reports positions in it (DLV-165).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<H>,
    /// HTTP domains that no host of [`Bundle::hosts`] has: made-up names of virtual services (VS-011).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<ExtraDomain>,
    /// HTTP route tables that ports of hosts, extra domains and listeners refer to by name, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<T>,
    /// Ports that a gateway opens, sorted by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
}

impl<H, T> Bundle<H, T> {
    /// The same with other forms of the items of its lists.
    pub(crate) fn map<I, U>(self, host: impl FnMut(H) -> I, table: impl FnMut(T) -> U) -> Bundle<I, U> {
        let Self {
            workload,
            mesh,
            inbound,
            authorization,
            hosts,
            domains,
            routes,
            listeners,
        } = self;
        Bundle {
            workload,
            mesh,
            inbound,
            authorization,
            hosts: hosts.into_iter().map(host).collect(),
            domains,
            routes: routes.into_iter().map(table).collect(),
            listeners,
        }
    }
}

/// The workload that a bundle is for. Facts of one pod (name, addresses, node) are never in it (DLV-014).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Namespace.
    pub namespace: String,
    /// Workload name as telemetry shows it (MET-020).
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Sidecar (default) or gateway.
    #[serde(default, skip_serializing_if = "is_default")]
    pub template: Template,
    /// Canonical service (SM-007).
    pub canonical_name: String,
    /// Canonical revision (SM-007).
    pub canonical_revision: String,
    /// Telemetry's `app` (MET-022); absent: `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Telemetry's `version` (MET-022); absent: `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Settings of the whole mesh that a proxy needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mesh {
    /// DNS suffix of the cluster; default `cluster.local`.
    #[serde(skip_serializing_if = "is_cluster_local")]
    pub cluster_domain: String,
    /// Trust domain of the mesh; default `cluster.local` (ID-002).
    #[serde(skip_serializing_if = "is_cluster_local")]
    pub trust_domain: String,
    /// Further trust domains that count as this mesh (ID-006).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domain_aliases: Vec<String>,
    /// Servers do not look at a peer's trust domain; default false (ID-084).
    #[serde(skip_serializing_if = "is_default")]
    pub skip_validate_trust_domain: bool,
    /// What happens to traffic of no known host; default `ALLOW_ANY` (SM-060).
    #[serde(skip_serializing_if = "is_default")]
    pub outbound_policy: OutboundPolicy,
    /// Connect timeout of pass-through connections and of the local application; default 10 000 ms (SM-115).
    #[serde(skip_serializing_if = "is_ten_seconds")]
    pub connect_timeout_ms: u64,
    /// Rules of the reference mesh where Weft's own differ; default false (`weft.compatibility: istio`).
    #[serde(skip_serializing_if = "is_default")]
    pub istio_compatibility: bool,
    /// How long detection waits for first bytes before a connection is one of TCP; 0 without limit (SM-029, SM-030).
    #[serde(skip_serializing_if = "is_default")]
    pub detection_timeout_ms: u64,
    /// Normalisation of request paths before they are matched; default `BASE` (SM-116).
    #[serde(skip_serializing_if = "is_default")]
    pub path_normalization: PathNormalization,
    /// Lowest TLS version of mesh connections; default 1.2 (ID-069).
    #[serde(skip_serializing_if = "is_default")]
    pub min_tls: TlsVersion,
    /// Access log; absent: the sampled default (BYD-034).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Retries of routes that state none; default VS-099.
    #[serde(skip_serializing_if = "is_default")]
    pub retry: RetryPolicy,
    /// A service whose endpoints are all gone is tried by its ClusterIP (DLV-115); default true.
    #[serde(skip_serializing_if = "is_true")]
    pub vip_fallback: bool,
    /// Longest pause after a name could not be looked up; default 60 000 ms (SM-115).
    #[serde(skip_serializing_if = "is_one_minute")]
    pub dns_refresh_ms: u64,
    /// How long connections of a port that a gateway has closed may go on; default 45 000 ms (LIFE-034).
    #[serde(skip_serializing_if = "is_drain_time")]
    pub drain_ms: u64,
    /// Loopback port of the explicit HTTP proxy (SM-052); absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_proxy_port: Option<u16>,
    /// A dialled address of an endpoint stands for its service, because the nodes translate services when a pod
    /// connects; default false (NET-066).
    #[serde(skip_serializing_if = "is_default")]
    pub endpoint_lookup: bool,
    /// What a proxy takes at its start alone (LIFE-050).
    #[serde(skip_serializing_if = "is_default")]
    pub process: Process,
}

/// What the mesh config says about the process of a proxy. It is in force since the start of the process or not at all;
/// annotations of a pod come before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Default 15001.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_port: Option<u16>,
    /// Default 15006.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_port: Option<u16>,
    /// Default 15000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_port: Option<u16>,
    /// Default 15020.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_port: Option<u16>,
    /// Worker threads; absent: by the limit of CPU (LIFE-084).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u16>,
    /// REDIRECT (default), TPROXY or NONE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interception_mode: Option<String>,
    /// Names are captured; absent: the mesh config leaves it to the chart's values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_capture: Option<bool>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            skip_validate_trust_domain: false,
            outbound_policy: OutboundPolicy::default(),
            connect_timeout_ms: 10_000,
            istio_compatibility: false,
            detection_timeout_ms: 0,
            path_normalization: PathNormalization::default(),
            min_tls: TlsVersion::default(),
            access_log: None,
            retry: RetryPolicy::default(),
            vip_fallback: true,
            dns_refresh_ms: 60_000,
            drain_ms: 45_000,
            http_proxy_port: None,
            endpoint_lookup: false,
            process: Process::default(),
        }
    }
}

/// What happens to traffic of no known host (SM-059 ff.).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundPolicy {
    /// Goes to the address that the application dialled.
    #[default]
    AllowAny,
    /// Refused: 502 for HTTP, closed otherwise.
    RegistryOnly,
}

/// Normalisation of request paths (SM-116).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// As received.
    None,
    /// Dot segments and percent-encoding (RFC 3986).
    #[default]
    Base,
    /// And repeated slashes.
    MergeSlashes,
    /// And encoded slashes.
    DecodeAndMergeSlashes,
}

/// A TLS version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// An access log (LOG-001 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// File in the proxy's container; empty: nothing is logged.
    pub path: String,
    /// Text or JSON.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encoding: LogEncoding,
    /// Format string, or for JSON an object of key to format; absent: LOG-004, LOG-005.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// Encoding of an access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogEncoding {
    /// One line of text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How requests to the workload are received.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inbound {
    /// Mode of ports that are not listed; default `PERMISSIVE` (PA-003).
    #[serde(skip_serializing_if = "is_default")]
    pub mtls: MtlsMode,
    /// Where the application is reached; default its pod address (SM-109).
    #[serde(skip_serializing_if = "is_default")]
    pub destination: InboundDestination,
    /// Ports of which something is known, sorted by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<InboundPort>,
}

/// Where the proxy connects to its application (SM-109).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InboundDestination {
    /// The address that the client dialled.
    #[default]
    Passthrough,
    /// 127.0.0.1 or ::1.
    Localhost,
}

/// What a port of the workload speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InboundPort {
    /// Target port, 1..65535.
    pub port: u16,
    /// Protocol of the oldest Service that leads here (SM-027).
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Requests of gRPC-Web are translated to gRPC (SM-026); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grpc_web: bool,
    /// Ports of Services that lead here and have another number, sorted (BYD-064).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_ports: Vec<u16>,
    /// Mode of this port; absent: [`Inbound::mtls`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsMode>,
    /// Host of the Service that telemetry shows (MET-032); absent: none leads here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Limits of connections to the application, and their HTTP version (DR-089).
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Policy,
    /// Where the application listens (SE-089); absent: at [`Inbound::destination`], on this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<InboundTarget>,
}

/// Where an application listens for a port of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InboundTarget {
    /// The address that the client dialled, on this port.
    Pod(u16),
    /// A loopback address.
    Loopback(std::net::SocketAddr),
}

/// Mode of PeerAuthentication (PA-002).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Plaintext only.
    Disable,
    /// mTLS and plaintext.
    #[default]
    Permissive,
    /// mTLS only.
    Strict,
}

/// Protocol of a port (SM-015 ff.).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Not declared: detected from the first bytes (SM-028).
    #[default]
    Auto,
    /// HTTP/1.1 upstream.
    Http,
    /// HTTP/2 upstream.
    Http2,
    /// HTTP/2 upstream, gRPC.
    Grpc,
    /// TLS of the application, routed by SNI.
    Tls,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// Whether HTTP routes apply without detection (SM-020).
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

/// A host that the workload may call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Fully qualified name, lower case: the key of [`HostEndpoints`].
    pub host: String,
    /// Short name for telemetry (MET-030).
    pub name: String,
    /// Namespace of the Service.
    pub namespace: String,
    /// Host header values that select it, without port, lower case, sorted (SM-040). `*.x` stands for any name that
    /// ends in `.x` (SM-077). The host itself is one of them only when it is listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Cluster addresses (SM-038); empty for headless services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Connections go to the endpoint that the client dialled (SM-076, SM-077); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub headless: bool,
    /// Only endpoints on the client's own node are used (SM-011); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_local: bool,
    /// Where it comes from; default a Service of Kubernetes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: HostKind,
    /// Ranges of addresses that select it, for connections other than HTTP (SE-022, SE-023).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Addresses that were made up for it, for the resolver to answer with (SE-032). They select it as
    /// [`Host::addresses`] do, and so does what selects a host without address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocated: Vec<IpAddr>,
    /// How its endpoints are found; default in the endpoint shards.
    #[serde(default, skip_serializing_if = "is_default")]
    pub discovery: Discovery,
    /// SPIFFE ids that its servers may have, beside the accounts of its endpoints (SE-018, SE-019).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// Ports, sorted by number. UDP ports are not listed (SM-022).
    pub ports: Vec<HostPort>,
    /// Named parts of the endpoints (DR-026), sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
}

impl Host {
    /// The policies of its ports, and those of subsets that differ.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        let of_ports = self.ports.iter().map(|port| &port.policy);
        of_ports.chain(self.subsets.iter().flat_map(|subset| subset.policies.values()))
    }

    /// Credentials that its policies name (DR-114).
    pub fn credentials(&self) -> impl Iterator<Item = &UpstreamCredential> {
        self.policies().filter_map(Policy::credential)
    }
}

/// A port of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// Service port, 1..65535.
    pub port: u16,
    /// Name that finds the port in [`Endpoint::ports`]; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Protocol.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Requests of gRPC-Web are translated to gRPC (SM-026); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grpc_web: bool,
    /// Name of the [`RouteTable`] of HTTP requests; absent: all go to this host under [`Mesh::retry`] (SM-048).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Rules for TLS that passes through, most specific first; none fits: unknown traffic (VS-168); no rule: SM-044.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsRule>,
    /// Rules for opaque connections, first match; none fits: this host (VS-184).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRule>,
    /// How endpoints are chosen and connected to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Policy,
    /// Port that connections go to where [`Discovery::Dialled`] keeps the address; absent: the one dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Reached by rules of other hosts alone: what an application asks for never selects it (SE-074); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub target_only: bool,
}

/// Where a host comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostKind {
    /// A Service of Kubernetes, which serves its addresses too (DLV-115).
    #[default]
    Service,
    /// A ServiceEntry: nobody else serves its addresses.
    Entry,
}

/// How the endpoints of a host are found (SE-008).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Discovery {
    /// The endpoint shards list them.
    #[default]
    Listed,
    /// The address that the client dialled is the only one (SE-024).
    Dialled,
    /// The proxy looks names up (SE-027, SE-028).
    Dns(Dns),
}

/// Names that a proxy looks up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Dns {
    /// A new connection goes to the first address of the latest answer (SE-028); default: to any.
    #[serde(skip_serializing_if = "is_default")]
    pub first_alone: bool,
    /// Names and addresses, in order.
    pub targets: Vec<DnsTarget>,
}

/// A name, with what is known of the endpoints that it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsTarget {
    /// Fully qualified name without final dot, or an address, which is not looked up.
    pub name: String,
    /// Target port by name of the host's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Labels, for subsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Load-balancing weight of each address; default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Which ports take mesh mTLS; default none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tls: MeshTls,
}

/// A named part of a host's endpoints (DR-026 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Name.
    pub name: String,
    /// An endpoint belongs to it when its labels contain all of these (DR-027).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The subset's policy for each port where it differs from [`HostPort::policy`], resolved (DR-022, DR-023).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<u16, Policy>,
}

/// HTTP names on a port that belong to no known host (VS-011).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtraDomain {
    /// Port that the client dialled.
    pub port: u16,
    /// Host header values, as [`Host::domains`].
    pub domains: Vec<String>,
    /// Name of the [`RouteTable`].
    pub http: String,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_true(value: &bool) -> bool {
    *value
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_ten_seconds(value: &u64) -> bool {
    *value == 10_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one_minute(value: &u64) -> bool {
    *value == 60_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_drain_time(value: &u64) -> bool {
    *value == 45_000
}

fn is_cluster_local(value: &String) -> bool {
    value == "cluster.local"
}

/// Inputs of a key, for [`Manifest::inputs`].
pub type Inputs = KeyInputs;
