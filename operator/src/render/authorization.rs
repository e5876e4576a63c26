//! Policies of access to a workload (AUTHZ-001 ff.): which apply to it, and their rules with every name resolved.

use std::collections::BTreeMap;

use weft_bundle::key::KeyInputs;
use weft_bundle::wire::{self, AccessCondition, AccessRule, Authorize};
use weft_crds::AuthorizationPolicy;
use weft_crds::authorization_policy::{self, Condition, Rule};

use super::{ObjectReport, Shared};
use crate::world::{Kind, ObjectRef, World, has_labels};

/// The policies of a workload, by namespace and name (AUTHZ-002, AUTHZ-003).
pub(super) fn policies(shared: &Shared<'_>, inputs: &KeyInputs) -> Vec<wire::AuthorizationPolicy> {
    let root = shared.world.root_namespace();
    let domains = Domains::of(shared.world);
    let policies = shared.sound.sources.authorization_policies.iter();
    let applies = policies.filter(|policy| {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        (namespace == root || namespace == inputs.namespace)
            && !is_attached(policy)
            // A dry run changes nothing, and nobody counts what it would have done yet (AUTHZ-084).
            && !authorization_policy::dry_run(policy)
            && selects(policy, &inputs.labels)
    });
    let mut out: Vec<_> = applies.map(|policy| rendered(policy, &domains)).collect();
    out.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    out
}

fn selects(policy: &AuthorizationPolicy, labels: &BTreeMap<String, String>) -> bool {
    let wanted = policy.spec.selector.as_ref().map(|selector| &selector.match_labels);
    wanted.is_none_or(|wanted| has_labels(labels, wanted))
}

/// It names targets in place of workloads: sidecars and gateways of Gateway take no notice of it (AUTHZ-005).
fn is_attached(policy: &AuthorizationPolicy) -> bool {
    let spec = &policy.spec;
    spec.selector.is_none() && (spec.target_ref.is_some() || spec.target_refs.as_ref().is_some_and(|t| !t.is_empty()))
}

fn rendered(policy: &AuthorizationPolicy, domains: &Domains) -> wire::AuthorizationPolicy {
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let spec = &policy.spec;
    let action = match spec.action() {
        "DENY" => Authorize::Deny,
        "AUDIT" => Authorize::Audit,
        "CUSTOM" => Authorize::Custom,
        _ => Authorize::Allow,
    };
    // What is no action may have been meant to refuse: it grants nothing.
    let is_known = authorization_policy::ACTIONS.contains(&spec.action());
    let refuses = matches!(action, Authorize::Deny | Authorize::Custom);
    let rule = |rule: &Rule| match authorization_policy::is_sound(rule, spec.action()) && is_known {
        true => access_rule(rule, &namespace, domains),
        // Everything fits a rule that refuses and cannot be read, nothing one that grants or marks (AUTHZ-011).
        false => AccessRule {
            never: !refuses,
            ..AccessRule::default()
        },
    };
    wire::AuthorizationPolicy {
        name: policy.metadata.name.clone().unwrap_or_default(),
        action,
        provider: (action == Authorize::Custom)
            .then(|| spec.provider.as_ref().map(|p| p.name.clone()).unwrap_or_default()),
        rules: spec.rules.iter().flatten().map(rule).collect(),
        namespace,
    }
}

fn access_rule(rule: &Rule, namespace: &str, domains: &Domains) -> AccessRule {
    let resolve = Resolve { namespace, domains };
    let sources = rule.from.iter().flatten().filter_map(|from| from.source.as_ref());
    let operations = rule.to.iter().flatten().filter_map(|to| to.operation.as_ref());
    AccessRule {
        from: sources.map(|source| resolve.entry(source.fields())).collect(),
        to: operations.map(|operation| resolve.entry(operation.fields())).collect(),
        when: rule.when.iter().flatten().map(|c| resolve.condition(c)).collect(),
        never: false,
    }
}

struct Resolve<'r> {
    namespace: &'r str,
    domains: &'r Domains,
}

impl Resolve<'_> {
    /// A source or an operation: a condition for each attribute of which a field speaks.
    fn entry<'f>(&self, fields: impl Iterator<Item = (&'static str, &'f [String])>) -> Vec<AccessCondition> {
        let mut conditions: Vec<AccessCondition> = Vec::new();
        for (field, values) in fields.filter(|(_, values)| !values.is_empty()) {
            let Some((key, is_not)) = key(field) else { continue };
            let values = self.values(key, values);
            let at = conditions.iter().position(|c| c.key == key).unwrap_or_else(|| {
                conditions.push(AccessCondition {
                    key: key.to_owned(),
                    ..AccessCondition::default()
                });
                conditions.len() - 1
            });
            match is_not {
                true => conditions[at].not_values = values,
                false => conditions[at].values = values,
            }
        }
        conditions
    }

    fn condition(&self, condition: &Condition) -> AccessCondition {
        let values = |list: Option<&Vec<String>>| self.values(&condition.key, list.map_or(&[], Vec::as_slice));
        AccessCondition {
            key: condition.key.clone(),
            values: values(condition.values.as_ref()),
            not_values: values(condition.not_values.as_ref()),
        }
    }

    fn values(&self, key: &str, values: &[String]) -> Vec<String> {
        let mut out: Vec<String> = Vec::with_capacity(values.len());
        for value in values {
            match key {
                "source.serviceAccount" if !value.contains('/') => out.push(format!("{}/{value}", self.namespace)),
                "source.principal" => out.extend(self.domains.of_principal(value)),
                "source.trustDomain" => out.extend(self.domains.of_domain(value)),
                _ => out.push(value.clone()),
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        out.retain(|value| seen.insert(value.clone()));
        out
    }
}

/// The attribute of a field, and whether its values are what must not fit.
fn key(field: &str) -> Option<(&'static str, bool)> {
    let (name, is_not) = match field.strip_prefix("not") {
        Some(rest) => (rest, true),
        None => (field, false),
    };
    let mut name = name.to_owned();
    name[..1].make_ascii_lowercase();
    let key = match name.as_str() {
        "principals" => "source.principal",
        "requestPrincipals" => "request.auth.principal",
        "namespaces" => "source.namespace",
        "serviceAccounts" => "source.serviceAccount",
        "ipBlocks" => "source.ip",
        "remoteIpBlocks" => "remote.ip",
        "trustDomains" => "source.trustDomain",
        "hosts" => "request.host",
        "ports" => "destination.port",
        "methods" => "request.method",
        "paths" => "request.path",
        _ => return None,
    };
    Some((key, is_not))
}

/// Trust domains that count as this mesh, its own first (AUTHZ-062, AUTHZ-063, AUTHZ-110).
struct Domains(Vec<String>);

impl Domains {
    fn of(world: &World) -> Self {
        let own = std::iter::once(world.trust_domain());
        Self(own.chain(world.trust_domain_aliases()).collect())
    }

    fn has(&self, domain: &str) -> bool {
        self.0.iter().any(|known| known == domain)
    }

    /// An identity under each trust domain of the mesh, where it is written under one of them.
    fn of_principal(&self, value: &str) -> Vec<String> {
        let Some((domain, rest)) = parts(value) else {
            return vec![value.to_owned()];
        };
        let by_name = |known: &String| format!("{known}/{rest}");
        if self.has(domain) || domain == "cluster.local" {
            return self.0.iter().map(by_name).collect();
        }
        let (prefix, suffix) = match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) | (None, None) => return vec![value.to_owned()],
            (Some(suffix), _) => ("", suffix),
            (None, Some(prefix)) => (prefix, ""),
        };
        // A `*` within a value is a character: the names that it stands for are written out.
        let keeps = prefix.is_empty();
        let fits = |known: &String| known.starts_with(prefix) && known.ends_with(suffix);
        if !self.0.iter().any(fits) {
            return vec![value.to_owned()];
        }
        let kept = keeps.then(|| value.to_owned());
        let named = self.0.iter().filter(|known| !keeps || !fits(known)).map(by_name);
        kept.into_iter().chain(named).collect()
    }

    fn of_domain(&self, value: &str) -> Vec<String> {
        if self.has(value) {
            return self.0.clone();
        }
        vec![value.to_owned()]
    }
}

/// Trust domain of an identity and what follows it; `None` for what has not five parts.
fn parts(value: &str) -> Option<(&str, &str)> {
    (value.split('/').count() == 5).then(|| value.split_once('/')).flatten()
}

/// What a policy refers to and has no effect, for its status (AUTHZ-005, AUTHZ-063, AUTHZ-073, AUTHZ-084).
pub(super) fn report(shared: &Shared<'_>, reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
    let domains = Domains::of(shared.world);
    for policy in shared.sound.sources.authorization_policies.iter() {
        let reference = ObjectRef {
            kind: Kind::AuthorizationPolicy,
            namespace: policy.metadata.namespace.clone().unwrap_or_default(),
            name: policy.metadata.name.clone().unwrap_or_default(),
        };
        let Some(report) = reports.get_mut(&reference) else {
            continue;
        };
        if is_attached(policy) {
            let text = "no proxy takes policies by targetRefs; select workloads by their labels".to_owned();
            report.refused.get_or_insert(("UnsupportedTarget", text));
        }
        if authorization_policy::dry_run(policy) {
            let text = "it is a dry run: requests are not judged by it, and what it would refuse is not counted yet";
            report.warnings.push(text.to_owned());
        }
        if policy.spec.action() == "CUSTOM" {
            let name = policy.spec.provider.as_ref().map_or("", |provider| &provider.name);
            report.unresolved = Some(provider(shared.world, name));
        }
        let foreign = |value: &&String| {
            parts(value)
                .is_some_and(|(domain, _)| !domain.contains('*') && domain != "cluster.local" && !domains.has(domain))
        };
        let rules = || policy.spec.rules.iter().flatten();
        let sources = rules().flat_map(|rule| rule.from.iter().flatten().filter_map(|from| from.source.as_ref()));
        let of_sources = sources.flat_map(|source| source.principals.iter().chain(&source.not_principals).flatten());
        let keys = rules().flat_map(|rule| rule.when.iter().flatten().filter(|c| c.key == "source.principal"));
        let of_keys = keys.flat_map(|condition| condition.values.iter().chain(&condition.not_values).flatten());
        for value in of_sources.chain(of_keys).filter(foreign) {
            report.warnings.push(format!(
                "{value:?} is of a trust domain that is neither the mesh's nor an alias of it"
            ));
        }
    }
}

fn provider(world: &World, name: &str) -> (&'static str, String) {
    let all = world.mesh.unknown.get("extensionProviders");
    let is_it = |provider: &serde_json::Value| provider.get("name").and_then(serde_json::Value::as_str) == Some(name);
    let is_there = all
        .and_then(|all| all.as_array())
        .is_some_and(|all| all.iter().any(is_it));
    let what = match is_there {
        true => format!("provider {name:?} cannot be asked yet"),
        false => format!("the mesh configuration has no extensionProvider {name:?}"),
    };
    let reason = if is_there {
        "ProviderNotSupported"
    } else {
        "ProviderNotFound"
    };
    (reason, format!("{what}: requests that fit the policy are refused"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(all: &[&str]) -> Domains {
        Domains(all.iter().map(|domain| (*domain).to_owned()).collect())
    }

    // spec: AUTHZ-062, AUTHZ-063, AUTHZ-064
    #[test]
    fn identities_hold_under_every_trust_domain_of_the_mesh() {
        let of = domains(&["new-td", "old-td"]);
        let both = ["new-td/ns/a/sa/b", "old-td/ns/a/sa/b"];
        for value in [
            "new-td/ns/a/sa/b",
            "old-td/ns/a/sa/b",
            "cluster.local/ns/a/sa/b",
            "new*/ns/a/sa/b",
        ] {
            assert_eq!(of.of_principal(value), both, "{value}");
        }
        assert_eq!(of.of_principal("*-td/ns/a/sa/b"), ["*-td/ns/a/sa/b"]);
        assert_eq!(
            domains(&["new-td", "x"]).of_principal("*-td/ns/a/sa/b"),
            ["*-td/ns/a/sa/b", "x/ns/a/sa/b"]
        );
        for value in [
            "*/ns/a/sa/b",
            "other/ns/a/sa/b",
            "other*/ns/a/sa/b",
            "new-td/ns/a",
            "*",
            "new-td/ns/*",
        ] {
            assert_eq!(of.of_principal(value), [value]);
        }
    }

    // spec: AUTHZ-110
    #[test]
    fn a_trust_domain_of_the_mesh_stands_for_all_of_them() {
        let of = domains(&["new-td", "old-td"]);
        assert_eq!(of.of_domain("old-td"), ["new-td", "old-td"]);
        assert_eq!(of.of_domain("cluster.local"), ["cluster.local"]);
        assert_eq!(of.of_domain("old*"), ["old*"]);
    }
}
