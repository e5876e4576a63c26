//! What an AuthorizationPolicy may say. Checks that the reference mesh does not have are told from the others: a stored
//! rule that fails nothing else is read as the reference reads it (AUTHZ-011).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    ACTIONS, AuthorizationPolicy, AuthorizationPolicySpec, Condition, Operation, PolicyTargetReference, Rule, Source,
    Unknown,
};
use crate::validate::{Report, Validate, check};

/// Rules of a policy at most, and sources of a rule (AUTHZ-007).
const MOST: usize = 512;

/// Targets of a policy at most (AUTHZ-005).
const MOST_TARGETS: usize = 16;

/// Service accounts of a source at most, and how long each may be (AUTHZ-037).
const MOST_ACCOUNTS: usize = 16;
const LONGEST_ACCOUNT: usize = 320;

const DRY_RUN: &str = "istio.io/dry-run";

/// What can be attached to, as group and kind (AUTHZ-005).
const TARGETS: [(&str, &str); 4] = [
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
];

/// Fields and keys that a CUSTOM policy cannot use, since the provider is asked before any token is read (AUTHZ-075).
const UNVERIFIED: [&str; 10] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
];

impl Validate for AuthorizationPolicy {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let AuthorizationPolicySpec {
            selector,
            target_refs,
            target_ref,
            action,
            provider,
            rules,
        } = &self.spec;
        let scopes = [selector.is_some(), target_refs.is_some(), target_ref.is_some()];
        if scopes.iter().filter(|is_set| **is_set).count() > 1 {
            report.error("spec", "", "only one of targetRefs or selector can be set");
        }
        if let Some(selector) = selector {
            check::match_labels(&mut report, "spec.selector.matchLabels", &selector.match_labels);
            if selector.match_labels.is_empty() {
                report.warn("spec.selector: is empty and selects every workload; leave it out to say so");
            }
        }
        targets(&mut report, target_refs.as_deref(), target_ref.as_ref());
        if let Some(action) = action {
            check::one_of(&mut report, "spec.action", action, &ACTIONS);
        }
        let action = self.spec.action();
        match (action, provider.as_ref().map(|p| p.name.as_str())) {
            ("CUSTOM", None | Some("")) => {
                let message = "is required with CUSTOM: name an entry of the mesh configuration's extensionProviders";
                report.error("spec.provider.name", "", message);
            }
            ("CUSTOM", Some(_)) | (_, None) => {}
            (_, Some(name)) => report.error("spec.provider", name, "must be left out unless action is CUSTOM"),
        }
        dry_run_form(&mut report, &self.metadata, action);
        let rules = rules.as_deref().unwrap_or_default();
        match action {
            "DENY" | "CUSTOM" if rules.is_empty() => {
                let message = "must not be empty: without rules the policy fits no request; `- {}` fits all";
                report.error("spec.rules", "", message);
            }
            "AUDIT" if rules.is_empty() => report.warn("spec.rules: is empty, so that the policy fits no request"),
            _ => {}
        }
        if rules.len() > MOST {
            let message = format!("must have at most {MOST} entries");
            report.error("spec.rules", &rules.len().to_string(), &message);
            return report;
        }
        let mut checks = Checks {
            report,
            action,
            all: true,
        };
        for (n, rule) in rules.iter().enumerate() {
            checks.rule(&format!("spec.rules[{n}]"), rule);
            if action == "DENY" && reaches_tcp(rule) {
                checks.report.warn(&format!(
                    "spec.rules[{n}]: configured AuthorizationPolicy will deny all traffic to TCP ports under its scope, \
                     because what it asks of HTTP is left out there; add ports to keep it from them"
                ));
            }
        }
        checks.report
    }
}

/// Whether a stored rule can be enforced as it is (AUTHZ-011). `action`: that of its policy.
#[must_use]
pub fn is_sound(rule: &Rule, action: &str) -> bool {
    let mut checks = Checks {
        report: Report::default(),
        action,
        all: false,
    };
    checks.rule("", rule);
    checks.report.errors.is_empty()
}

/// Whether a policy is to be judged without effect (AUTHZ-084). A value that is no truth value leaves it enforced, and so
/// do actions that have no such mode.
#[must_use]
pub fn dry_run(policy: &AuthorizationPolicy) -> bool {
    let annotations = policy.metadata.annotations.as_ref();
    let value = annotations.and_then(|all| all.get(DRY_RUN));
    matches!(policy.spec.action(), "ALLOW" | "DENY") && value.and_then(|value| truth(value)) == Some(true)
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn dry_run_form(report: &mut Report, metadata: &ObjectMeta, action: &str) {
    let Some(value) = metadata.annotations.as_ref().and_then(|all| all.get(DRY_RUN)) else {
        return;
    };
    let path = format!("metadata.annotations[{DRY_RUN}]");
    if truth(value).is_none() {
        report.error(&path, value, "must be true or false");
    } else if !matches!(action, "ALLOW" | "DENY") {
        report.error(&path, value, "is for ALLOW and DENY alone; remove the annotation");
    }
}

fn targets(report: &mut Report, list: Option<&[PolicyTargetReference]>, single: Option<&PolicyTargetReference>) {
    let list = list.unwrap_or_default();
    if list.len() > MOST_TARGETS {
        let message = format!("must have at most {MOST_TARGETS} entries");
        report.error("spec.targetRefs", &list.len().to_string(), &message);
    }
    let single = single.map(|target| ("spec.targetRef".to_owned(), target));
    let list = list.iter().enumerate();
    let all = list
        .map(|(n, target)| (format!("spec.targetRefs[{n}]"), target))
        .chain(single);
    for (path, target) in all {
        let group = target.group.as_deref().unwrap_or_default();
        if !TARGETS.contains(&(group, target.kind.as_str())) {
            let message = "must be Gateway or GatewayClass of gateway.networking.k8s.io, Service, or ServiceEntry of \
                           networking.istio.io";
            report.error(&format!("{path}.kind"), &format!("{group}/{}", target.kind), message);
        }
        if target.name.is_empty() {
            report.error(&format!("{path}.name"), "", "is required");
        }
        if let Some(namespace) = target.namespace.as_deref().filter(|n| !n.is_empty()) {
            let message = "must be left out: a target is in the namespace of its policy";
            report.error(&format!("{path}.namespace"), namespace, message);
        }
    }
}

/// Whether a DENY rule refuses connections of TCP that its author may not have meant (AUTHZ-088).
fn reaches_tcp(rule: &Rule) -> bool {
    let sources = || rule.from.iter().flatten().filter_map(|from| from.source.as_ref());
    match &rule.to {
        Some(list) => !list
            .iter()
            .filter_map(|to| to.operation.as_ref())
            .any(|operation| operation.ports.is_some() || operation.not_ports.is_some()),
        None => {
            rule.from.is_some()
                && sources().all(|source| {
                    source
                        .fields()
                        .all(|(field, _)| matches!(field, "requestPrincipals" | "notRequestPrincipals"))
                })
        }
    }
}

struct Checks<'p> {
    report: Report,
    /// Of the policy.
    action: &'p str,
    /// Checks that the reference mesh does not have are made too.
    all: bool,
}

impl Checks<'_> {
    fn rule(&mut self, path: &str, rule: &Rule) {
        self.unknown(path, &rule.unknown);
        if let Some(list) = &rule.from {
            self.not_empty(&format!("{path}.from"), list);
            if list.len() > MOST {
                let message = format!("must have at most {MOST} entries");
                self.report
                    .error(&format!("{path}.from"), &list.len().to_string(), &message);
            }
            for (n, from) in list.iter().enumerate().take(MOST) {
                let path = format!("{path}.from[{n}]");
                self.unknown(&path, &from.unknown);
                self.source(&format!("{path}.source"), from.source.as_ref());
            }
        }
        if let Some(list) = &rule.to {
            self.not_empty(&format!("{path}.to"), list);
            for (n, to) in list.iter().enumerate() {
                let path = format!("{path}.to[{n}]");
                self.unknown(&path, &to.unknown);
                self.operation(&format!("{path}.operation"), to.operation.as_ref());
            }
        }
        for (n, condition) in rule.when.iter().flatten().enumerate() {
            self.condition(&format!("{path}.when[{n}]"), condition);
        }
    }

    fn unknown(&mut self, path: &str, unknown: &Unknown) {
        for name in unknown.keys() {
            self.report.error(
                &format!("{path}.{name}"),
                "",
                "is no field that this version knows; remove it, or upgrade first",
            );
        }
    }

    fn not_empty<T>(&mut self, path: &str, list: &[T]) {
        if list.is_empty() && self.all {
            self.report.error(path, "[]", "must have an entry, or be left out");
        }
    }

    /// One or more fields, none of them without a value; an empty value is none (AUTHZ-020).
    fn fields<'f>(&mut self, path: &str, fields: impl Iterator<Item = (&'static str, &'f [String])>) {
        let mut count = 0;
        for (field, values) in fields {
            // The reference mesh reads an empty list as absent.
            count += usize::from(self.all || !values.is_empty());
            self.not_empty(&format!("{path}.{field}"), values);
            self.not_empty_values(&format!("{path}.{field}"), values);
            if self.action == "CUSTOM" && UNVERIFIED.contains(&field) {
                let message = "cannot be used with CUSTOM: the provider is asked before identities are";
                self.report.error(&format!("{path}.{field}"), "", message);
            }
        }
        if count == 0 {
            self.report.error(path, "{}", "must set at least one field");
        }
    }

    fn not_empty_values(&mut self, path: &str, values: &[String]) {
        for (n, _) in values.iter().enumerate().filter(|(_, value)| value.is_empty()) {
            self.report.error(&format!("{path}[{n}]"), "", "must not be empty");
        }
    }

    fn source(&mut self, path: &str, source: Option<&Source>) {
        let Some(source) = source else {
            return self.report.error(path, "", "is required");
        };
        self.unknown(path, &source.unknown);
        self.fields(path, source.fields());
        let identities: BTreeMap<_, _> = source.fields().collect();
        let has = |names: &[&str]| {
            names
                .iter()
                .any(|name| identities.get(name).is_some_and(|list| !list.is_empty()))
        };
        if has(&["serviceAccounts", "notServiceAccounts"])
            && has(&["principals", "notPrincipals", "namespaces", "notNamespaces"])
        {
            let message = "Cannot set serviceAccounts with namespaces or principals";
            self.report.error(&format!("{path}.serviceAccounts"), "", message);
        }
        for (field, values) in source.fields() {
            let path = format!("{path}.{field}");
            match field {
                "serviceAccounts" | "notServiceAccounts" => self.accounts(&path, values),
                "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks" => self.blocks(&path, values),
                "trustDomains" | "notTrustDomains" => self.trust_domains(&path, values),
                "principals" | "notPrincipals" => self.principals(&path, values),
                _ => {}
            }
        }
    }

    fn principals(&mut self, path: &str, values: &[String]) {
        for (n, value) in values.iter().enumerate().filter(|(_, v)| v.starts_with("spiffe://")) {
            self.report.warn(&format!(
                "{path}[{n}]: {value:?} matches nothing; identities are written without spiffe://"
            ));
        }
    }

    fn operation(&mut self, path: &str, operation: Option<&Operation>) {
        let Some(operation) = operation else {
            return self.report.error(path, "", "is required");
        };
        self.unknown(path, &operation.unknown);
        self.fields(path, operation.fields());
        for (field, values) in operation.fields() {
            let path = format!("{path}.{field}");
            match field {
                "ports" | "notPorts" => self.ports(&path, values),
                "paths" | "notPaths" => self.paths(&path, values),
                _ => {}
            }
        }
    }

    fn condition(&mut self, path: &str, condition: &Condition) {
        self.unknown(path, &condition.unknown);
        let values = condition.values.as_deref().unwrap_or_default();
        let not_values = condition.not_values.as_deref().unwrap_or_default();
        if values.is_empty() && not_values.is_empty() {
            self.report.error(path, "", "must have values, notValues or both");
        }
        let lists = [("values", values), ("notValues", not_values)];
        for (field, values) in lists {
            self.not_empty_values(&format!("{path}.{field}"), values);
        }
        let key = condition.key.as_str();
        if let Some(problem) = key_problem(key) {
            return self.report.error(&format!("{path}.key"), key, problem);
        }
        let is_unverified = matches!(
            key,
            "source.principal" | "source.namespace" | "source.serviceAccount" | "source.trustDomain"
        ) || key.starts_with("request.auth.");
        if self.action == "CUSTOM" && is_unverified {
            let message = "cannot be used with CUSTOM: the provider is asked before identities are";
            self.report.error(&format!("{path}.key"), key, message);
        }
        if key.starts_with("experimental.envoy.filters.") && !KNOWN_METADATA.iter().any(|known| key.starts_with(known))
        {
            self.report.warn(&format!(
                "{path}.key: {key:?} is metadata that Weft does not fill, and never fits"
            ));
        }
        for (field, values) in lists {
            let path = format!("{path}.{field}");
            match key {
                "source.ip" | "remote.ip" | "destination.ip" => self.blocks(&path, values),
                "destination.port" => self.ports(&path, values),
                "source.serviceAccount" => self.accounts(&path, values),
                "source.trustDomain" => self.trust_domains(&path, values),
                "source.principal" => self.principals(&path, values),
                _ => {}
            }
        }
    }

    fn accounts(&mut self, path: &str, values: &[String]) {
        if values.len() > MOST_ACCOUNTS {
            let message = format!("must have at most {MOST_ACCOUNTS} entries");
            self.report.error(path, &values.len().to_string(), &message);
        }
        for (n, value) in values.iter().enumerate() {
            let mut parts = value.split('/');
            let is_account = parts.clone().count() <= 2 && parts.all(|part| !part.is_empty());
            if value.contains('*') || !is_account || value.chars().count() > LONGEST_ACCOUNT {
                let message =
                    "must be <namespace>/<service account>, or a service account of this namespace, without `*`";
                self.report.error(&format!("{path}[{n}]"), value, message);
            }
        }
    }

    fn blocks(&mut self, path: &str, values: &[String]) {
        for (n, value) in values.iter().enumerate() {
            if check::subnet(value).is_none() {
                let message = "must be an address or a range, such as 10.1.2.3 or 2001:db8::/32";
                self.report.error(&format!("{path}[{n}]"), value, message);
            }
        }
    }

    fn trust_domains(&mut self, path: &str, values: &[String]) {
        for (n, value) in values.iter().enumerate() {
            let inner = value.strip_prefix('*').unwrap_or(value);
            let inner = if inner.len() < value.len() {
                inner
            } else {
                inner.strip_suffix('*').unwrap_or(inner)
            };
            if value.contains('/') || inner.contains('*') {
                let message = "must be a trust domain, which may begin or end with `*`";
                self.report.error(&format!("{path}[{n}]"), value, message);
            }
        }
    }

    fn ports(&mut self, path: &str, values: &[String]) {
        for (n, value) in values.iter().enumerate() {
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            if !digits || value.parse::<u16>().is_err() {
                self.report.error(
                    &format!("{path}[{n}]"),
                    value,
                    "must be a port of the workload, 0 to 65535",
                );
            }
        }
    }

    fn paths(&mut self, path: &str, values: &[String]) {
        for (n, value) in values.iter().enumerate() {
            if let Some(problem) = template_problem(value) {
                self.report.error(&format!("{path}[{n}]"), value, problem);
            }
        }
    }
}

const KNOWN_METADATA: [&str; 2] = [
    "experimental.envoy.filters.envoy.filters.http.jwt_authn[",
    "experimental.envoy.filters.envoy.filters.http.ext_authz[",
];

/// Keys without brackets (AUTHZ-050..055).
const KEYS: [&str; 12] = [
    "source.ip",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "connection.sni",
];

/// What is wrong with a key of `when` (AUTHZ-049, AUTHZ-057).
fn key_problem(key: &str) -> Option<&'static str> {
    const REMOVED: [&str; 5] = [
        "destination.labels",
        "destination.name",
        "destination.namespace",
        "destination.user",
        "source.user",
    ];
    if key.is_empty() {
        return Some("is required");
    }
    if KEYS.contains(&key) {
        return None;
    }
    if REMOVED.iter().any(|removed| key.starts_with(removed)) {
        return Some("is not served any more; use selector, or identities of the source");
    }
    let names = |prefix: &str| key.strip_prefix(prefix).map(bracketed);
    match names("request.headers") {
        Some(Some(names)) if names.len() == 1 && check::is_header_name(names[0]) => return None,
        Some(_) => return Some("must name one header in brackets, as in request.headers[x-token]"),
        None => {}
    }
    match names("request.auth.claims") {
        Some(Some(_)) => return None,
        Some(None) => return Some("must name a claim in brackets, as in request.auth.claims[groups]"),
        None => {}
    }
    if let Some(rest) = key.strip_prefix("experimental.envoy.filters.") {
        let is_named = rest
            .find('[')
            .is_some_and(|at| at > 0 && bracketed(&rest[at..]).is_some());
        return (!is_named).then_some("must name a filter, and a key in brackets");
    }
    Some("is no key; see request.headers[NAME], source.namespace, source.principal, destination.port and others")
}

/// The names of `[a][b]`.
fn bracketed(text: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.strip_prefix('[')?.split_once(']')?;
        if name.is_empty() {
            return None;
        }
        names.push(name);
        rest = tail;
    }
    (!names.is_empty()).then_some(names)
}

/// What is wrong with a path that has operators; paths without are of the four forms (AUTHZ-048).
fn template_problem(path: &str) -> Option<&'static str> {
    if !path.contains(['{', '}']) {
        return None;
    }
    let mut any = false;
    for segment in path.split('/') {
        match segment {
            "{*}" | "{**}" if any => return Some("must have no operator after {**}"),
            "{*}" => {}
            "{**}" => any = true,
            literal if literal.contains(['{', '}', '*']) => {
                return Some("must have {*} and {**} as whole segments, and no other braces or `*` beside them");
            }
            literal if !literal.bytes().all(is_pchar) => {
                return Some("must have characters of paths alone beside its operators (RFC 3986)");
            }
            _ => {}
        }
    }
    (!path.starts_with('/')).then_some("must begin with /")
}

/// RFC 3986, section 3.3; `%` as the beginning of an escape.
fn is_pchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%".contains(&byte)
}

#[cfg(test)]
mod tests;
