//! Rules and what they are made of.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use regex::bytes::{Regex, RegexBuilder};

use super::template::{replacement, template};
use super::{Parser, cluster_name};
use crate::model::matching::AuthorityTest;
use crate::model::{
    Action, Cluster, Cors, Destination, Destinations, Fault, HeaderName, HeaderOps, HeaderTest, Match, Mirror,
    PathRewrite, PathTest, QueryTest, Retry, RetryOn, Rewrite, RouteTable, Rule, Share, Template, Text, TlsRule,
};
use crate::wire;

/// Memory that one compiled expression may take.
const REGEX_SIZE_BYTES: usize = 1 << 20;

/// Longest regular expression (SM-123).
const REGEX_LENGTH: usize = 1024;

impl Parser<'_> {
    pub(super) fn table(&mut self, wire: &wire::RouteTable, default_retry: &Retry) -> RouteTable {
        let origin = Arc::new(wire.origin.clone());
        let rules = wire
            .rules
            .iter()
            .enumerate()
            .map(|(i, rule)| {
                let path = format!("routes[{}].rules[{i}]", wire.name);
                Arc::new(self.rule(&path, rule, &origin, default_retry))
            })
            .collect();
        RouteTable {
            name: Arc::from(wire.name.as_str()),
            origin: Some(origin),
            rules,
        }
    }

    fn rule(&mut self, path: &str, wire: &wire::Rule, origin: &Arc<wire::Origin>, default_retry: &Retry) -> Rule {
        let matches = wire
            .matches
            .iter()
            .enumerate()
            .map(|(i, m)| self.matching(&format!("{path}.matches[{i}]"), m, wire.name.as_deref()))
            .collect();
        let action = match &wire.action {
            wire::Action::Destinations(list) => Action::Destinations(self.destinations(path, list)),
            wire::Action::Redirect(redirect) => {
                if !matches!(redirect.code, 301 | 302 | 303 | 307 | 308) {
                    let value = redirect.code.to_string();
                    self.problem(format!("{path}.redirect.code"), value, "is 301, 302, 303, 307 or 308");
                }
                Action::Redirect(redirect.clone())
            }
            wire::Action::DirectResponse(direct) => {
                if !(200..=599).contains(&direct.status) {
                    let value = direct.status.to_string();
                    self.problem(format!("{path}.directResponse.status"), value, "is 200 to 599");
                }
                let body = direct.body.as_deref().unwrap_or_default();
                let body = BASE64.decode(body.as_bytes()).unwrap_or_else(|e| {
                    self.problem(format!("{path}.directResponse.body"), "", format!("is not base64: {e}"));
                    Vec::new()
                });
                Action::DirectResponse {
                    status: direct.status,
                    body: body.into(),
                }
            }
        };
        let fault = wire.fault.clone().unwrap_or_default();
        Rule {
            log_name: wire.name.as_deref().map(Arc::from),
            matches,
            action,
            rewrite: self.rewrite(path, &wire.rewrite),
            request_headers: self.header_ops(&format!("{path}.requestHeaders"), &wire.request_headers),
            response_headers: self.header_ops(&format!("{path}.responseHeaders"), &wire.response_headers),
            timeout: wire.timeout_ms.map(Duration::from_millis),
            retry: match &wire.retry {
                Some(retry) => self.retry(&format!("{path}.retry"), retry),
                None => default_retry.clone(),
            },
            fault: Fault {
                delay: fault
                    .delay
                    .map(|delay| (Duration::from_millis(delay.fixed_ms), Share(delay.share_ppm))),
                abort: fault.abort.map(|abort| {
                    let share = Share(abort.share_ppm);
                    (abort, share)
                }),
            },
            mirrors: wire.mirrors.iter().filter_map(|mirror| self.mirror(mirror)).collect(),
            cors: wire.cors.as_ref().map(|cors| self.cors(path, cors)),
            origin: Some(wire.origin.clone().map_or_else(|| origin.clone(), Arc::new)),
        }
    }

    fn mirror(&mut self, wire: &wire::Mirror) -> Option<Mirror> {
        let name = name_of(&wire.destination);
        let Some(cluster) = self.by_name(&name).cloned() else {
            self.left_out.push(name.into());
            return None;
        };
        Some(Mirror {
            cluster,
            share: Share(wire.share_ppm),
        })
    }

    /// Whether a rule of before has the same destinations now.
    pub(super) fn holds_for(&self, rule: &Rule) -> bool {
        let is_same = |mirror: &Mirror| {
            let found = self.by_name(&mirror.cluster.name);
            found.is_some_and(|found| Arc::ptr_eq(found, &mirror.cluster))
        };
        rule.mirrors.iter().all(is_same)
            && match &rule.action {
                Action::Destinations(destinations) => self.are_same(destinations),
                Action::Redirect(_) | Action::DirectResponse { .. } => true,
            }
    }

    pub(super) fn destinations(&mut self, path: &str, wire: &[wire::Destination]) -> Destinations {
        let list: Vec<Destination> = wire
            .iter()
            .enumerate()
            .map(|(i, destination)| {
                let path = format!("{path}.destinations[{i}]");
                let name = name_of(destination);
                let cluster = self.by_name(&name).cloned();
                Destination {
                    // Of equal names one is enough.
                    name: cluster
                        .as_ref()
                        .map_or_else(|| name.into(), |cluster| cluster.name.clone()),
                    cluster,
                    weight: destination.weight,
                    request_headers: self.header_ops(&format!("{path}.requestHeaders"), &destination.request_headers),
                    response_headers: self
                        .header_ops(&format!("{path}.responseHeaders"), &destination.response_headers),
                }
            })
            .collect();
        let total = list.iter().map(|destination| u64::from(destination.weight)).sum();
        if list.is_empty() {
            self.problem(format!("{path}.destinations"), "", "needs at least one destination");
        } else if list.len() > 1 && total == 0 {
            self.problem(format!("{path}.destinations"), "0", "weights total 0");
        }
        Destinations { list, total }
    }

    pub(super) fn tls_rules(&mut self, path: &str, wire: &[wire::TlsRule]) -> Vec<TlsRule> {
        let rule = |(i, rule): (usize, &wire::TlsRule)| TlsRule {
            sni: rule.sni.iter().map(|sni| sni.to_ascii_lowercase().into()).collect(),
            subnets: self.subnets(&format!("{path}[{i}]"), &rule.subnets),
            destinations: self.destinations(&format!("{path}[{i}]"), &rule.destinations),
        };
        wire.iter().enumerate().map(rule).collect()
    }

    fn matching(&mut self, path: &str, wire: &wire::Match, rule: Option<&str>) -> Match {
        let log_name = wire.name.as_deref().map(|name| match rule {
            Some(rule) => Arc::from(format!("{rule}.{name}")),
            None => Arc::from(name),
        });
        Match {
            log_name,
            path: wire.path.as_ref().map(|text| PathTest {
                text: self.text(&format!("{path}.path"), text),
                any_case: wire.ignore_path_case,
            }),
            scheme: wire
                .scheme
                .as_ref()
                .map(|text| self.text(&format!("{path}.scheme"), text)),
            method: wire
                .method
                .as_ref()
                .map(|text| self.text(&format!("{path}.method"), text)),
            authority: wire.authority.as_ref().map(|text| {
                let (wire::StringMatch::Exact(value)
                | wire::StringMatch::Prefix(value)
                | wire::StringMatch::Regex(value)) = text;
                AuthorityTest {
                    text: self.text(&format!("{path}.authority"), text),
                    names_port: value
                        .rsplit_once(':')
                        .is_some_and(|(_, port)| port.bytes().next().is_some_and(|b| b.is_ascii_digit())),
                }
            }),
            headers: wire
                .headers
                .iter()
                .map(|header| HeaderTest {
                    name: header_name(&header.name),
                    value: header
                        .value
                        .as_ref()
                        .map(|text| self.text(&format!("{path}.headers[{}]", header.name), text)),
                    invert: header.invert,
                })
                .collect(),
            query: wire
                .query
                .iter()
                .map(|query| QueryTest {
                    name: query.name.as_bytes().into(),
                    value: query
                        .value
                        .as_ref()
                        .map(|text| self.text(&format!("{path}.query[{}]", query.name), text)),
                })
                .collect(),
        }
    }

    fn text(&mut self, path: &str, wire: &wire::StringMatch) -> Text {
        match wire {
            wire::StringMatch::Exact(text) => Text::Exact(text.as_bytes().into()),
            wire::StringMatch::Prefix(text) => Text::Prefix(text.as_bytes().into()),
            wire::StringMatch::Regex(pattern) => match self.regex(path, &format!("\\A(?:{pattern})\\z"), pattern) {
                Some(regex) => Text::Regex(regex),
                None => Text::Exact([].into()),
            },
        }
    }

    fn regex(&mut self, path: &str, full: &str, pattern: &str) -> Option<Regex> {
        if pattern.is_empty() || pattern.len() > REGEX_LENGTH {
            let message = format!("a regular expression has 1 to {REGEX_LENGTH} bytes");
            self.problem(path, pattern, message);
            return None;
        }
        // The expression must stand on its own, so that no parenthesis of it ends the anchoring group.
        let alone = RegexBuilder::new(pattern).size_limit(REGEX_SIZE_BYTES).build();
        match alone.and_then(|_| RegexBuilder::new(full).size_limit(REGEX_SIZE_BYTES).build()) {
            Ok(regex) => Some(regex),
            Err(e) => {
                self.problem(path, pattern, format!("is no regular expression of RE2 syntax: {e}"));
                None
            }
        }
    }

    fn rewrite(&mut self, path: &str, wire: &wire::Rewrite) -> Rewrite {
        let path_rewrite = match &wire.path {
            None => None,
            Some(wire::PathRewrite::Matched(text)) => Some(PathRewrite::Matched(Arc::from(text.as_str()))),
            Some(wire::PathRewrite::Regex { pattern, substitution }) => self
                .regex(&format!("{path}.rewrite.path.regex.pattern"), pattern, pattern)
                .map(|pattern| PathRewrite::Regex {
                    pattern,
                    substitution: replacement(substitution),
                }),
        };
        Rewrite {
            authority: wire.authority.as_deref().map(Arc::from),
            path: path_rewrite,
        }
    }

    fn header_ops(&mut self, path: &str, wire: &wire::HeaderOps) -> HeaderOps {
        let mut values = |kind: &str, list: &[(String, String)]| {
            list.iter()
                .map(|(name, value)| {
                    let template = template(value).unwrap_or_else(|message| {
                        self.problem(format!("{path}.{kind}[{name}]"), value, message);
                        Template { pieces: Vec::new() }
                    });
                    if !is_field_name(name) {
                        self.problem(format!("{path}.{kind}"), name, "is no header field name");
                    }
                    if value.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f) {
                        self.problem(format!("{path}.{kind}[{name}]"), value, "has control characters");
                    }
                    (Arc::from(name.as_str()), template)
                })
                .collect::<Vec<_>>()
        };
        HeaderOps {
            set: values("set", &wire.set),
            add: values("add", &wire.add),
            remove: wire
                .remove
                .iter()
                .map(|name| Arc::from(name.to_ascii_lowercase()))
                .collect(),
        }
    }

    pub(super) fn retry(&mut self, path: &str, wire: &wire::RetryPolicy) -> Retry {
        let mut on = RetryOn::default();
        let mut statuses_on = false;
        let mut statuses = Vec::new();
        for word in &wire.on {
            match word.as_str() {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "refused-stream" => on.refused_stream = true,
                "retriable-status-codes" => statuses_on = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "retriable-headers" | "http3-post-connect-failure" => {}
                "cancelled" => on.grpc |= 1 << 1,
                "deadline-exceeded" => on.grpc |= 1 << 4,
                "resource-exhausted" => on.grpc |= 1 << 8,
                "internal" => on.grpc |= 1 << 13,
                "unavailable" => on.grpc |= 1 << 14,
                number => match number.parse::<u16>() {
                    Ok(status) if (100..600).contains(&status) => statuses.push(status),
                    _ => self.problem(
                        format!("{path}.on"),
                        number,
                        "is no condition of VirtualService retries",
                    ),
                },
            }
        }
        if statuses_on {
            statuses.extend(&wire.statuses);
        }
        Retry {
            attempts: wire.attempts,
            on,
            statuses,
            per_try_timeout: wire.per_try_timeout_ms.map(Duration::from_millis),
            backoff: Duration::from_millis(wire.backoff_ms),
            avoid_tried: wire.avoid_tried,
            next_locality: wire.next_locality,
        }
    }

    fn cors(&mut self, path: &str, wire: &wire::Cors) -> Cors {
        let is_any = |origin: &wire::StringMatch| *origin == wire::StringMatch::Exact("*".into());
        Cors {
            any_origin: wire.allow_origins.iter().any(is_any),
            origins: wire
                .allow_origins
                .iter()
                .filter(|origin| !is_any(origin))
                .map(|origin| self.text(&format!("{path}.cors.allowOrigins"), origin))
                .collect(),
            policy: wire.clone(),
        }
    }

    pub(super) fn subnets(&mut self, path: &str, wire: &[wire::Subnet]) -> Vec<wire::Subnet> {
        for subnet in wire {
            let longest = match subnet.address {
                IpAddr::V4(_) => 32,
                IpAddr::V6(_) => 128,
            };
            if subnet.prefix > longest {
                let value = format!("{}/{}", subnet.address, subnet.prefix);
                self.problem(
                    format!("{path}.subnets"),
                    value,
                    format!("a prefix has 0 to {longest} bits"),
                );
            }
        }
        wire.to_vec()
    }
}

fn name_of(destination: &wire::Destination) -> String {
    let subset = destination.subset.as_deref().unwrap_or_default();
    cluster_name(&destination.host, destination.port, subset)
}

/// The rules of a host without VirtualService: all to its own endpoints (SM-048).
pub(super) fn default_table(cluster: &Arc<Cluster>, retry: &Retry) -> RouteTable {
    let name: Arc<str> = Arc::from("default");
    let destination = Destination {
        cluster: Some(cluster.clone()),
        name: cluster.name.clone(),
        weight: 1,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    };
    let rule = Rule {
        log_name: Some(name.clone()),
        matches: Vec::new(),
        action: Action::Destinations(Destinations {
            list: vec![destination],
            total: 1,
        }),
        rewrite: Rewrite::default(),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retry: retry.clone(),
        fault: Fault::default(),
        mirrors: Vec::new(),
        cors: None,
        origin: None,
    };
    RouteTable {
        name,
        origin: None,
        rules: vec![Arc::new(rule)],
    }
}

fn header_name(name: &str) -> HeaderName {
    match name {
        ":method" => HeaderName::Method,
        ":scheme" => HeaderName::Scheme,
        ":authority" | "host" => HeaderName::Authority,
        ":path" => HeaderName::Path,
        name => HeaderName::Field(name.to_ascii_lowercase().into()),
    }
}

fn is_field_name(name: &str) -> bool {
    let name = if name == ":authority" { "host" } else { name };
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(is_token)
}
