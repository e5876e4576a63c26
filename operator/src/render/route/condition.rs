//! Conditions of HTTP rules: those that are known beforehand, and those on requests (VS-027..VS-046).

use std::collections::BTreeMap;

use weft_bundle::wire::{HeaderMatch, Match, QueryMatch, StringMatch};
use weft_crds::virtual_service as api;

use super::Client;
use super::precedence::{gateway_id, is_for_mesh};
use crate::world::has_labels;

impl Client<'_> {
    /// Conditions that are known before any request.
    pub(super) fn holds(&self, condition: &api::HTTPMatchRequest, namespace: &str, port: u16) -> bool {
        if !is_port(condition.port, port) {
            return false;
        }
        if !condition.gateways.is_empty() {
            // It selects among the names above, which name this place already (VS-042); sources do not count then (VS-043).
            return self.is_here(&condition.gateways, namespace);
        }
        self.is_source(&condition.source_labels, condition.source_namespace.as_deref())
    }

    /// Whether names of Gateways, in a namespace, name the place whose rules are asked for; none leaves it to the names
    /// above.
    pub(super) fn is_here(&self, gateways: &[String], namespace: &str) -> bool {
        let Some(id) = &self.gateway else {
            return is_for_mesh(gateways);
        };
        let is_it = |name: &String| gateway_id(name, namespace).as_ref() == Some(id);
        gateways.is_empty() || gateways.iter().any(is_it)
    }

    /// Whether this client is one of those that a rule names (VS-041).
    pub(super) fn is_source(&self, labels: &BTreeMap<String, String>, namespace: Option<&str>) -> bool {
        has_labels(&self.inputs.labels, labels) && namespace.is_none_or(|n| n.is_empty() || n == self.inputs.namespace)
    }
}

/// Whether a rule is for a service port (VS-040).
pub(super) fn is_port(wanted: Option<i64>, port: u16) -> bool {
    wanted.is_none_or(|wanted| wanted == 0 || wanted == i64::from(port))
}

/// Alternatives on requests, up to the first that asks for nothing: what comes behind it never decides.
pub(super) fn alternatives(conditions: &[&api::HTTPMatchRequest]) -> Vec<Match> {
    let mut matches: Vec<Match> = conditions.iter().map(|m| condition(m)).collect();
    match matches.iter().position(|m| *m == Match::default()) {
        Some(0) => matches.clear(),
        // Those before it stay for what they say of rewrites and of names in the log.
        Some(n) => matches.truncate(n + 1),
        None => {}
    }
    matches
}

fn condition(condition: &api::HTTPMatchRequest) -> Match {
    let invert = |headers: &BTreeMap<String, api::StringMatch>, invert: bool| {
        let one = |(name, value): (&String, &api::StringMatch)| HeaderMatch {
            name: match name.to_ascii_lowercase() {
                host if host == "host" => ":authority".into(),
                other => other,
            },
            // Absence has a second spelling (VS-038).
            value: string_match(value).filter(|v| !(invert && *v == StringMatch::Regex("*".into()))),
            invert,
        };
        headers.iter().map(one).collect::<Vec<_>>()
    };
    let headers = [
        invert(&condition.headers, false),
        invert(&condition.without_headers, true),
    ]
    .concat();
    Match {
        name: condition.name.clone().filter(|n| !n.is_empty()),
        path: condition.uri.as_ref().and_then(string_match),
        ignore_path_case: condition.ignore_uri_case == Some(true) && condition.uri.is_some(),
        scheme: condition.scheme.as_ref().and_then(string_match),
        method: condition.method.as_ref().and_then(string_match),
        authority: condition.authority.as_ref().and_then(string_match),
        headers,
        query: condition
            .query_params
            .iter()
            .map(|(name, value)| QueryMatch {
                name: name.clone(),
                value: string_match(value),
            })
            .collect(),
    }
}

/// `None` where presence is meant.
pub(super) fn string_match(value: &api::StringMatch) -> Option<StringMatch> {
    if let Some(exact) = &value.exact {
        return Some(StringMatch::Exact(exact.clone()));
    }
    if let Some(prefix) = &value.prefix {
        return Some(StringMatch::Prefix(prefix.clone()));
    }
    value.regex.clone().map(StringMatch::Regex)
}
