//! How endpoints of a destination are chosen and connected to: a DestinationRule, resolved (DR-018 ff.).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::is_default;
use super::locality::Locality;
use crate::key::{config_map_stem, upstream_stem};

/// How endpoints of a destination are chosen and connected to. All limits are per proxy and destination (DR-073).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// `namespace/name` of the DestinationRule that it comes from; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Load balancer; default least request (DR-035).
    #[serde(skip_serializing_if = "is_default")]
    pub load_balancer: LoadBalancer,
    /// Which localities are preferred; absent: all share the traffic by their endpoints (DR-057).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// A new endpoint's share grows (DR-051); absent: at once in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// Connect timeout; default 10 000 ms (DR-075).
    #[serde(skip_serializing_if = "is_ten_seconds")]
    pub connect_timeout_ms: u64,
    /// Most connections (DR-074); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Most requests that wait for a connection (DR-079); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Most active requests (DR-080); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Most concurrent retries (DR-083); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Most concurrent retries as a share of the requests, in place of [`Policy::max_retries`] (DR-129).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// Requests on one connection before it is closed (DR-082); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
    /// Streams of one HTTP/2 connection (DR-087); absent: 2147483647.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_streams: Option<u32>,
    /// Age at which an upstream connection is closed (DR-077); absent: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration_ms: Option<u64>,
    /// The same for opaque connections (DR-132).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_max_connection_duration_ms: Option<u64>,
    /// Idle upstream HTTP connections are closed after this (DR-084); default 3 600 000 ms, 0: never.
    #[serde(skip_serializing_if = "is_one_hour")]
    pub http_idle_timeout_ms: u64,
    /// TCP connections without a byte in either direction are closed after this (DR-078); default 3 600 000 ms,
    /// 0: never.
    #[serde(skip_serializing_if = "is_one_hour")]
    pub tcp_idle_timeout_ms: u64,
    /// Keepalive of upstream connections (DR-076); absent: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// HTTP version upstream; absent: by the port's protocol, the client's on automatic ports (SM-023).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_version: Option<HttpVersion>,
    /// Liveness of upstream HTTP/2 connections (DR-088); absent: not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_keepalive: Option<Http2Keepalive>,
    /// Outlier detection; absent: off (DR-090).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier: Option<Outlier>,
    /// TLS; default decided for each endpoint (DR-106).
    #[serde(skip_serializing_if = "is_default")]
    pub tls: UpstreamTls,
    /// Header that opens each upstream connection (DR-128); absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// HTTP proxy through which opaque connections go (DR-125); absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rule: None,
            load_balancer: LoadBalancer::default(),
            locality: None,
            warmup: None,
            connect_timeout_ms: 10_000,
            max_connections: None,
            max_pending_requests: None,
            max_requests: None,
            max_retries: None,
            retry_budget: None,
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            max_connection_duration_ms: None,
            tcp_max_connection_duration_ms: None,
            http_idle_timeout_ms: 3_600_000,
            tcp_idle_timeout_ms: 3_600_000,
            tcp_keepalive: None,
            http_version: None,
            http2_keepalive: None,
            outlier: None,
            tls: UpstreamTls::default(),
            proxy_protocol: None,
            tunnel: None,
        }
    }
}

/// A load balancer (DR-033 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancer {
    /// The less busy of two picked at random (DR-035).
    #[default]
    LeastRequest,
    /// In turn (DR-036).
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// The address that the client dialled (DR-037).
    Passthrough,
    /// By a key of the request (DR-040 ff.).
    ConsistentHash(ConsistentHash),
}

/// Consistent hashing (DR-040 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsistentHash {
    /// What is hashed; absent: every request at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<HashKey>,
    /// Smallest ring; absent: 1024 (DR-047).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_ring_size: Option<u64>,
    /// Maglev table size, a prime; absent: ring hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maglev_table_size: Option<u64>,
}

/// What consistent hashing hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashKey {
    /// Value of a request header.
    Header(String),
    /// Value of a cookie (DR-043).
    #[serde(rename_all = "camelCase")]
    Cookie {
        /// Name.
        name: String,
        /// `Path` of a generated cookie.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// `Max-Age` of a generated cookie; 0: session cookie; absent: none is generated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_seconds: Option<u64>,
        /// Further attributes of a generated cookie, each a name and perhaps a value (DR-044).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attributes: Vec<(String, Option<String>)>,
    },
    /// Address of the client.
    SourceIp,
    /// First value of a query parameter.
    QueryParameter(String),
}

/// Warm-up of new endpoints (DR-051): after time t the share is the larger of the minimum and (t / duration) ^ (1 /
/// aggression).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// Time until the share is whole, at least 1.
    pub duration_ms: u64,
    /// Share at the beginning, in millionths; default 100 000.
    #[serde(default = "tenth", skip_serializing_if = "is_tenth")]
    pub minimum_ppm: u32,
    /// Aggression in thousandths, above 0; default 1 000: linear.
    #[serde(default = "thousand", skip_serializing_if = "is_thousand")]
    pub aggression_milli: u32,
}

/// Retries as a share of the requests (DR-129).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Share of active and waiting requests, in millionths.
    pub share_ppm: u32,
    /// Retries that are allowed whatever the share.
    pub min_concurrency: u32,
    /// Period whose requests count; default 0: those of the moment.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interval_ms: u64,
}

/// HTTP/2 PING (DR-088).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http2Keepalive {
    /// Time between two.
    pub interval_ms: u64,
    /// Time for the answer; after it the connection is closed.
    pub timeout_ms: u64,
}

/// Version of the PROXY header (DR-128).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// A tunnel through an HTTP proxy (DR-125).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// `POST` instead of `CONNECT`; default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub post: bool,
    /// Name or address of the target.
    pub host: String,
    /// Port of the target.
    pub port: u16,
}

/// TCP keepalive (DR-076); absent values are the system's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection counts as dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_seconds: Option<u64>,
    /// Time between probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u64>,
}

/// An HTTP version towards the destination (SM-023, DR-085, DR-086).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// The one that the client used.
    Client,
}

/// Passive outlier detection (DR-090 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outlier {
    /// Errors in a row that eject; default 5, 0: off (DR-091).
    #[serde(skip_serializing_if = "is_five")]
    pub consecutive_5xx: u32,
    /// 502, 503, 504 in a row that eject; default 0: off (DR-092).
    #[serde(skip_serializing_if = "is_default")]
    pub consecutive_gateway_errors: u32,
    /// Failures without response in a row that eject, counted apart (DR-094); absent: counted with the two above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Period of the check for return; default 10 000 ms (DR-095).
    #[serde(skip_serializing_if = "is_ten_seconds")]
    pub interval_ms: u64,
    /// Base of the ejection time; default 30 000 ms (DR-096).
    #[serde(skip_serializing_if = "is_thirty_seconds")]
    pub base_ejection_time_ms: u64,
    /// Most ejected, percent; default 10 (DR-097).
    #[serde(skip_serializing_if = "is_ten")]
    pub max_ejection_percent: u32,
    /// Healthy share below which all are used, percent; default 0: off (DR-099).
    #[serde(skip_serializing_if = "is_default")]
    pub min_health_percent: u32,
    /// Statuses that count as errors; empty: 5xx (DR-100).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub error_codes: Vec<u16>,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: None,
            interval_ms: 10_000,
            base_ejection_time_ms: 30_000,
            max_ejection_percent: 10,
            min_health_percent: 0,
            error_codes: Vec::new(),
        }
    }
}

impl Policy {
    /// The credential that its TLS takes certificates from (DR-114).
    #[must_use]
    pub fn credential(&self) -> Option<&UpstreamCredential> {
        match &self.tls {
            UpstreamTls::Originate(settings) => settings.credential.as_ref(),
            UpstreamTls::Auto | UpstreamTls::Disable | UpstreamTls::Mesh { .. } => None,
        }
    }
}

/// TLS towards endpoints (DR-106 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamTls {
    /// Mesh mTLS to endpoints that can take it, else plaintext (ID-092).
    #[default]
    Auto,
    /// Plaintext.
    Disable,
    /// Mesh mTLS to all; endpoints without sidecar fail (DR-110).
    #[serde(rename_all = "camelCase")]
    Mesh {
        /// SNI; absent: the mesh-internal name (ID-077).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sni: Option<String>,
        /// Identities that replace those of the service (DR-116).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        subject_alt_names: Vec<String>,
    },
    /// TLS that the proxy originates (DR-111 ff.).
    Originate(Box<OriginateTls>),
}

/// TLS that the proxy originates: `SIMPLE` or, with a client certificate, `MUTUAL` (DR-108).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OriginateTls {
    /// SNI (DR-118); absent: the Host of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Names of which the certificate must carry one (DR-116); empty: BYD-060.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// File with the client's certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// File with its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// File with the anchors; absent: the system's (DR-113).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// File with revocation lists, used with [`OriginateTls::ca`] (DR-113).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl: Option<String>,
    /// Cipher suites below TLS 1.3, OpenSSL's names; empty: all that are safe (DR-121).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
    /// Groups of the key exchange; empty: all that are safe (DR-121).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<String>,
    /// With `sni`, or for opaque connections, no name is verified where none is listed (`weft.compatibility: istio`,
    /// DR-117); default false.
    #[serde(skip_serializing_if = "is_default")]
    pub chain_alone: bool,
    /// Any certificate is accepted (DR-119); default false.
    #[serde(skip_serializing_if = "is_default")]
    pub insecure_skip_verify: bool,
    /// What the files above would hold, from the volume of credentials instead (DR-114).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<UpstreamCredential>,
    /// What the proxy lacks to provide this TLS, with the object that asked for it: requests fail with it (BYD-061).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// Certificates of an object of the cluster, which the proxy finds in its volume of credentials (DLV-150).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamCredential {
    /// Kind of the object.
    pub kind: CredentialKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The client shows the certificate in it (`MUTUAL`); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shows_certificate: bool,
    /// The server is verified with the authorities in it; default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub has_authorities: bool,
}

impl UpstreamCredential {
    /// Name of its files without their ending (DLV-152).
    #[must_use]
    pub fn stem(&self) -> String {
        match self.kind {
            CredentialKind::Secret => upstream_stem(&self.namespace, &self.name),
            CredentialKind::ConfigMap => config_map_stem(&self.namespace, &self.name),
        }
    }
}

impl fmt::Display for UpstreamCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What a credential is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialKind {
    /// A Secret, of the proxy's own namespace.
    Secret,
    /// A ConfigMap with authorities, of the rule's namespace.
    ConfigMap,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_ten_seconds(value: &u64) -> bool {
    *value == 10_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_thirty_seconds(value: &u64) -> bool {
    *value == 30_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one_hour(value: &u64) -> bool {
    *value == 3_600_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_five(value: &u32) -> bool {
    *value == 5
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_ten(value: &u32) -> bool {
    *value == 10
}

fn tenth() -> u32 {
    100_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_tenth(value: &u32) -> bool {
    *value == tenth()
}

fn thousand() -> u32 {
    1_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_thousand(value: &u32) -> bool {
    *value == thousand()
}
