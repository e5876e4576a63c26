//! Rules, compiled: destinations are resolved, expressions and templates parsed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;

use super::{Cluster, Match, Text};
use crate::wire;

/// The HTTP rules of one host on one port.
#[derive(Debug)]
pub struct RouteTable {
    /// Name in the bundle; `default` for the rule that a host without VirtualService has.
    pub name: Arc<str>,
    /// The object that it comes from; `None`: the host itself.
    pub origin: Option<Arc<wire::Origin>>,
    /// Evaluated in order.
    pub rules: Vec<Arc<Rule>>,
}

/// One HTTP rule.
#[derive(Debug)]
pub struct Rule {
    /// Name for the access log (VS-025).
    pub log_name: Option<Arc<str>>,
    /// Alternatives; empty: every request.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
    /// Changes of authority and path.
    pub rewrite: Rewrite,
    /// Changes of request header fields.
    pub request_headers: HeaderOps,
    /// Changes of response header fields.
    pub response_headers: HeaderOps,
    /// Limit for all tries together.
    pub timeout: Option<Duration>,
    /// Retries.
    pub retry: Retry,
    /// Injected faults.
    pub fault: Fault,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// CORS.
    pub cors: Option<Cors>,
    /// The object that it comes from, for `x-weft-reason`.
    pub origin: Option<Arc<wire::Origin>>,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Action {
    /// Forwarded.
    Destinations(Destinations),
    /// Answered with a redirect.
    Redirect(wire::Redirect),
    /// Answered as stated.
    DirectResponse {
        /// Status.
        status: u16,
        /// Body, decoded.
        body: Arc<[u8]>,
    },
}

/// Weighted destinations.
#[derive(Debug, Clone)]
pub struct Destinations {
    /// In the order of the rule.
    pub list: Vec<Destination>,
    /// Sum of the weights.
    pub total: u64,
}

impl Destinations {
    /// Chooses by weight; `draw` is uniform in `0..total` (VS-053..VS-056). A single one gets everything.
    #[must_use]
    pub fn choose(&self, draw: impl FnOnce(u64) -> u64) -> Option<&Destination> {
        if self.list.len() < 2 || self.total == 0 {
            return self.list.first();
        }
        let mut left = draw(self.total);
        self.list.iter().find(|destination| {
            let weight = u64::from(destination.weight);
            let chosen = left < weight;
            left = left.saturating_sub(weight);
            chosen
        })
    }
}

/// A weighted destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// `None`: host, port or subset are not known (VS-048).
    pub cluster: Option<Arc<Cluster>>,
    /// What was asked for, in the form of a cluster name.
    pub name: Arc<str>,
    /// Weight.
    pub weight: u32,
    /// Changes of request header fields.
    pub request_headers: HeaderOps,
    /// Changes of response header fields.
    pub response_headers: HeaderOps,
}

/// Changes of authority and path.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// Replaces the authority.
    pub authority: Option<Arc<str>>,
    /// Replaces the path or part of it.
    pub path: Option<PathRewrite>,
}

/// A change of the path.
#[derive(Debug)]
pub enum PathRewrite {
    /// Replaces what the rule matched.
    Matched(Arc<str>),
    /// Replaces every part that fits.
    Regex {
        /// Expression.
        pattern: Regex,
        /// In the notation of the `regex` crate.
        substitution: Vec<u8>,
    },
}

/// Changes of header fields: remove, set, add (VS-060).
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    /// Names, lower case.
    pub remove: Vec<Arc<str>>,
    /// Name as written and value.
    pub set: Vec<(Arc<str>, Template)>,
    /// Name as written and value.
    pub add: Vec<(Arc<str>, Template)>,
}

impl HeaderOps {
    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// A header value with variables (VS-065).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// In order.
    pub pieces: Vec<Piece>,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Literal(String),
    /// `%NAME(argument):limit%`.
    Variable {
        /// Name, as written.
        name: String,
        /// Argument.
        argument: Option<String>,
        /// Longest value, characters.
        limit: Option<usize>,
    },
}

impl Template {
    /// The text, when it has no variable.
    #[must_use]
    pub fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }
}

/// Retries of a request.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Retries after the first try.
    pub attempts: u32,
    /// Conditions.
    pub on: RetryOn,
    /// Statuses that are retried.
    pub statuses: Vec<u16>,
    /// Limit of one try.
    pub per_try_timeout: Option<Duration>,
    /// Base of the back-off.
    pub backoff: Duration,
    /// A retry avoids endpoints that were tried.
    pub avoid_tried: bool,
    /// Every second retry goes on to the next priority of localities.
    pub next_locality: bool,
}

/// Conditions of a retry (VS-104 ff.).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the policy, any combination is legal"
)]
pub struct RetryOn {
    /// `5xx`.
    pub server_error: bool,
    /// `gateway-error`.
    pub gateway_error: bool,
    /// `reset`.
    pub reset: bool,
    /// `reset-before-request`.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `retriable-4xx`.
    pub retriable_4xx: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `envoy-ratelimited`.
    pub rate_limited: bool,
    /// gRPC statuses, a bit for each.
    pub grpc: u32,
}

/// A share of requests, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(pub u32);

/// Injected faults.
#[derive(Debug, Default)]
pub struct Fault {
    /// Delay before the request is forwarded.
    pub delay: Option<(Duration, Share)>,
    /// Answer instead of forwarding.
    pub abort: Option<(wire::Abort, Share)>,
}

/// A copy of a request.
#[derive(Debug)]
pub struct Mirror {
    /// Where it goes.
    pub cluster: Arc<Cluster>,
    /// Of how many requests.
    pub share: Share,
}

/// CORS policy.
#[derive(Debug)]
pub struct Cors {
    /// Any origin.
    pub any_origin: bool,
    /// Origins.
    pub origins: Vec<Text>,
    /// As written.
    pub policy: wire::Cors,
}

/// A rule for TLS that passes through.
#[derive(Debug, Clone)]
pub struct TlsRule {
    /// SNI values, lower case; `*.x` stands for any name that ends in `.x`, `*` for any and none.
    pub sni: Vec<Box<str>>,
    /// Dialled addresses; empty: any.
    pub subnets: Vec<wire::Subnet>,
    /// Chosen by weight.
    pub destinations: Destinations,
}

impl TlsRule {
    /// Whether a connection fits.
    #[must_use]
    pub fn fits(&self, sni: &str, dialled: IpAddr) -> bool {
        let named = self.sni.iter().any(|pattern| match pattern.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => sni.len() > suffix.len() && sni.ends_with(suffix),
            None => &**pattern == sni,
        });
        named && in_any(&self.subnets, dialled)
    }
}

/// A rule for opaque connections.
#[derive(Debug, Clone)]
pub struct TcpRule {
    /// Dialled addresses; empty: any.
    pub subnets: Vec<wire::Subnet>,
    /// Chosen by weight.
    pub destinations: Destinations,
}

impl TcpRule {
    /// Whether a connection fits.
    #[must_use]
    pub fn fits(&self, dialled: IpAddr) -> bool {
        in_any(&self.subnets, dialled)
    }
}

pub(super) fn in_any(subnets: &[wire::Subnet], address: IpAddr) -> bool {
    subnets.is_empty() || subnets.iter().any(|subnet| contains(*subnet, address))
}

fn contains(subnet: wire::Subnet, address: IpAddr) -> bool {
    match (subnet.address, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(subnet.prefix)).unwrap_or(0);
            u32::from(net) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(subnet.prefix)).unwrap_or(0);
            u128::from(net) & mask == u128::from(address) & mask
        }
        _ => false,
    }
}
