//! HTTP, TLS and TCP rules: VirtualServices, resolved (VS-020 ff.).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{is_default, is_true};

/// The HTTP rules of one host on one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// Unique in the bundle.
    pub name: String,
    /// The object that it comes from.
    pub origin: Origin,
    /// Evaluated in order, the first match decides (VS-020); none: 404, flag NR (VS-022).
    pub rules: Vec<Rule>,
}

/// The object that something comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Kind, for example `VirtualService`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// One HTTP rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name for the access log; absent: none (VS-025).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Alternatives; empty: every request (VS-021).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// What is done with the request.
    #[serde(flatten)]
    pub action: Action,
    /// Changes of authority and path before it is forwarded (VS-068 ff.).
    #[serde(default, skip_serializing_if = "is_default")]
    pub rewrite: Rewrite,
    /// Changes of request header fields (VS-060).
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderOps,
    /// Changes of response header fields.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderOps,
    /// Limit for all tries together (VS-091); absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Retries; absent: [`super::Mesh::retry`] (VS-099).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Injected faults (VS-126 ff.).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Copies (VS-136 ff.).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// CORS (VS-143 ff.).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// The object that it comes from, where that is not the table's: gateways merge the rules of several (VS-017).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Forwarded to one of these, chosen by weight (VS-053).
    Destinations(Vec<Destination>),
    /// Answered with a redirect (VS-077).
    Redirect(Redirect),
    /// Answered as stated (VS-087).
    DirectResponse(DirectResponse),
}

/// A weighted destination. One whose host, port or subset the bundle does not list answers 503, flag NC (VS-048).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Fully qualified host.
    pub host: String,
    /// Service port. 0 where the service has several ports, the rule names none and the arrival port is none of
    /// them; no host lists it.
    pub port: u16,
    /// Subset; absent: all endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// Relative weight; default 1. A single destination gets everything whatever its weight (VS-054).
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Changes of request header fields for this destination alone (VS-062).
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderOps,
    /// Changes of response header fields for this destination alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderOps,
}

/// A comparison with a string. Case-sensitive unless the match says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// RE2 expression that fits the whole value.
    Regex(String),
}

/// Conditions that must all hold (VS-021). Those that do not depend on a request (port, source, gateway) are gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// Name for the access log (VS-025).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Path without query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<StringMatch>,
    /// Exact and prefix of [`Match::path`] ignore case (VS-031).
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_path_case: bool,
    /// `http` or `https` (VS-034).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<StringMatch>,
    /// Method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// Host or `:authority` (VS-033, BYD-064).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
    /// Header fields (VS-035 ff.).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters (VS-039).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
}

/// A condition on a header field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Field name, lower case; `:method`, `:scheme`, `:authority`, `:path` are the request's own (VS-037).
    pub name: String,
    /// Comparison; absent: present with any value (VS-036).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<StringMatch>,
    /// The condition must not hold (VS-038).
    #[serde(default, skip_serializing_if = "is_default")]
    pub invert: bool,
}

/// A condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// Name, case-sensitive.
    pub name: String,
    /// Comparison; absent: present with any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<StringMatch>,
}

/// Changes of header fields, in this order: remove, set, add (VS-060).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOps {
    /// All fields of these names go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Replaces all fields of the name; name and value, which may hold `%VARIABLES%` (VS-065).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(String, String)>,
    /// Appends a field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<(String, String)>,
}

/// Changes of authority and path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// Replaces Host or `:authority` (VS-073).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Replaces the path, or part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// A change of the path; the query is kept (VS-071).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// Replaces the prefix that the rule matched, `/` when it matched none; the whole path when it matched exactly
    /// or by regex (VS-068..VS-070).
    Matched(String),
    /// Replaces every part that fits (VS-074).
    #[serde(rename_all = "camelCase")]
    Regex {
        /// RE2 expression.
        pattern: String,
        /// `\0`..`\9` stand for the groups.
        substitution: String,
    },
}

/// A redirect; what is absent keeps the request's value (VS-077).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// Scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Host, which also drops a port of the request's (VS-081).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Port (VS-083).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<RedirectPort>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<RedirectPath>,
}

/// Path of a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPath {
    /// The whole path (VS-079).
    Full(String),
    /// The matched prefix (VS-080).
    Prefix(String),
}

/// Port of a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPort {
    /// This one.
    Number(u16),
    /// The one on which the request arrived.
    FromRequest,
    /// The default one of the scheme.
    FromProtocol,
    /// The one that the request's Host names, even where it is a default one (GW-029).
    Received,
}

/// An answer that the proxy gives by itself (VS-087).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// 200..599.
    pub status: u16,
    /// Body, base64 (standard alphabet, padded); absent: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// Retries of a request (VS-099 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryPolicy {
    /// Retries after the first try; default 2, 0: none.
    #[serde(skip_serializing_if = "is_two")]
    pub attempts: u32,
    /// Conditions, upstream's names; default VS-099.
    #[serde(skip_serializing_if = "is_default_retry_on")]
    pub on: Vec<String>,
    /// Statuses of `retriable-status-codes` (VS-111).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// Limit of one try (VS-115); absent: that of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout_ms: Option<u64>,
    /// Base of the back-off; default 25 ms (VS-116).
    #[serde(skip_serializing_if = "is_default_backoff")]
    pub backoff_ms: u64,
    /// A retry avoids endpoints that were tried; default true (VS-117).
    #[serde(skip_serializing_if = "is_true")]
    pub avoid_tried: bool,
    /// Every second retry goes on to the next priority of localities (VS-118); default false.
    #[serde(skip_serializing_if = "is_default")]
    pub next_locality: bool,
}

/// Conditions of the default retry policy (VS-099).
pub const DEFAULT_RETRY_ON: [&str; 5] = [
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
    "retriable-status-codes",
];

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: DEFAULT_RETRY_ON.map(str::to_owned).to_vec(),
            statuses: Vec::new(),
            per_try_timeout_ms: None,
            backoff_ms: 25,
            avoid_tried: true,
            next_locality: false,
        }
    }
}

/// Injected faults, drawn independently (VS-131). Shares are in millionths.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Delay before the request is forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Answer instead of forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// An injected delay (VS-126).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// Milliseconds.
    pub fixed_ms: u64,
    /// Share of the requests, in millionths.
    pub share_ppm: u32,
}

/// An injected answer (VS-127, VS-130): exactly one of status and gRPC status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// HTTP status, 200..599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// gRPC status, 0..16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// Share of the requests, in millionths.
    pub share_ppm: u32,
}

/// A copy of a request to another destination (VS-136 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where the copy goes. One that the bundle does not list is skipped (VS-141).
    pub destination: Destination,
    /// Share of the requests, in millionths.
    pub share_ppm: u32,
}

/// CORS policy (VS-143 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// Origins; `exact: "*"` is any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_origins: Vec<StringMatch>,
    /// Methods; `*`: the one asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_methods: Vec<String>,
    /// Header names; `*`: those asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_headers: Vec<String>,
    /// Header names that the browser may show.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<String>,
    /// `Access-Control-Max-Age`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// `Access-Control-Allow-Credentials: true`.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_credentials: bool,
    /// A preflight of another origin is answered instead of forwarded (VS-151).
    #[serde(skip_serializing_if = "is_default")]
    pub ignore_unmatched_preflights: bool,
}

/// A rule for TLS that passes through (VS-163 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRule {
    /// SNI values; `*.x` stands for any name that ends in `.x`, `*` for any and none.
    pub sni: Vec<String>,
    /// Dialled addresses; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Chosen by weight for each connection.
    pub destinations: Vec<Destination>,
}

/// A rule for opaque connections (VS-171 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRule {
    /// Dialled addresses; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// Chosen by weight for each connection.
    pub destinations: Vec<Destination>,
}

/// An address range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// Any address of it.
    pub address: IpAddr,
    /// Length of the prefix, 0..32 or 0..128.
    pub prefix: u8,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_two(value: &u32) -> bool {
    *value == 2
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_default_backoff(value: &u64) -> bool {
    *value == 25
}

fn is_default_retry_on(value: &[String]) -> bool {
    value.iter().map(String::as_str).eq(DEFAULT_RETRY_ON)
}
