//! Policies of access.

use std::sync::Arc;

use super::Parser;
use crate::model::authorization::{
    Attribute, Authorization, Condition, Denial, Form, Policy, Refusing, Rule, Template, Value,
};
use crate::wire::{self, Authorize};

impl Parser<'_> {
    pub(super) fn authorization(&mut self, wire: &[wire::AuthorizationPolicy]) -> Authorization {
        let (mut custom, mut deny, mut allow, mut audit) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (n, policy) in wire.iter().enumerate() {
            let parse = |(i, rule)| self.access_rule(&format!("authorization[{n}].rules[{i}]"), rule);
            let rules: Vec<Rule> = policy.rules.iter().enumerate().map(parse).collect();
            let refusing = |(i, rule)| Refusing {
                rule,
                denial: Arc::new(denial(policy, i)),
            };
            let policy_of = |rules: Vec<Rule>, grants| Policy {
                rules: rules.into(),
                grants,
            };
            match policy.action {
                Authorize::Custom => custom.extend(rules.into_iter().enumerate().map(refusing)),
                Authorize::Deny => deny.extend(rules.into_iter().enumerate().map(refusing)),
                Authorize::Allow => allow.push(policy_of(rules, true)),
                Authorize::Audit => audit.push(policy_of(rules, false)),
            }
        }
        for refusing in [&mut custom, &mut deny] {
            refusing.sort_by(|a: &Refusing, b| a.denial.details.cmp(&b.denial.details));
        }
        let nothing_allows = (!allow.is_empty()).then(|| {
            Arc::new(Denial {
                details: details("none"),
                origin: None,
            })
        });
        Authorization {
            custom: custom.into(),
            deny: deny.into(),
            allow: allow.into(),
            audit: audit.into(),
            nothing_allows,
        }
    }

    fn access_rule(&mut self, path: &str, rule: &wire::AccessRule) -> Rule {
        let mut entries = |name: &str, entries: &[Vec<wire::AccessCondition>]| -> Box<[_]> {
            let conditions = |(i, all): (usize, &Vec<wire::AccessCondition>)| -> Box<[_]> {
                let parse = |(j, condition)| self.access_condition(&format!("{path}.{name}[{i}][{j}]"), condition);
                all.iter().enumerate().map(parse).collect()
            };
            entries.iter().enumerate().map(conditions).collect()
        };
        let (from, to) = (entries("from", &rule.from), entries("to", &rule.to));
        let parse = |(j, condition)| self.access_condition(&format!("{path}.when[{j}]"), condition);
        let when: Box<[_]> = rule.when.iter().enumerate().map(parse).collect();
        let all = from.iter().chain(&to).flatten().chain(&when);
        Rule {
            asks_http: all
                .into_iter()
                .any(|condition: &Condition| condition.attribute.is_http()),
            from,
            to,
            when,
            never: rule.never,
        }
    }

    fn access_condition(&mut self, path: &str, condition: &wire::AccessCondition) -> Condition {
        let attribute = attribute(&condition.key).unwrap_or_else(|| {
            self.problem(format!("{path}.key"), &condition.key, "names no attribute of a request");
            Attribute::Metadata
        });
        let mut parse = |name: &str, values: &[String]| -> Box<[Value]> {
            let parse = |(i, text): (usize, &String)| match value(&attribute, text) {
                Ok(value) => Some(value),
                Err(message) => {
                    self.problem(format!("{path}.{name}[{i}]"), text, message);
                    None
                }
            };
            values.iter().enumerate().filter_map(parse).collect()
        };
        let (values, not_values) = (
            parse("values", &condition.values),
            parse("notValues", &condition.not_values),
        );
        Condition {
            attribute,
            values,
            not_values,
        }
    }
}

/// What a request is refused for that fits a rule (AUTHZ-024).
fn denial(policy: &wire::AuthorizationPolicy, rule: usize) -> Denial {
    let id = format!("ns[{}]-policy[{}]-rule[{rule}]", policy.namespace, policy.name);
    let details = match (policy.action, &policy.provider) {
        // No provider can be asked yet (AUTHZ-073).
        (Authorize::Custom, provider) => {
            let provider = provider.as_deref().unwrap_or_default();
            details(&format!(
                "istio-ext-authz-{provider}-{id}-deny-due-to-bad-CUSTOM-action"
            ))
        }
        _ => details(&id),
    };
    Denial {
        details,
        origin: Some(Arc::new(wire::Origin {
            kind: "AuthorizationPolicy".to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
        })),
    }
}

fn details(id: &str) -> Arc<str> {
    format!("rbac_access_denied_matched_policy[{id}]").into()
}

fn attribute(key: &str) -> Option<Attribute> {
    Some(match key {
        "source.principal" => Attribute::Principal,
        "source.namespace" => Attribute::Namespace,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "source.trustDomain" => Attribute::TrustDomain,
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::ServerName,
        "request.host" => Attribute::Host,
        "request.method" => Attribute::Method,
        "request.path" => Attribute::Path,
        _ if key.starts_with("request.auth.") => Attribute::Token,
        _ if key.starts_with("experimental.envoy.filters.") => Attribute::Metadata,
        _ => {
            let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
            Attribute::Header(name.to_ascii_lowercase().into())
        }
    })
}

fn value(attribute: &Attribute, text: &str) -> Result<Value, &'static str> {
    Ok(match attribute {
        Attribute::Principal
        | Attribute::TrustDomain
        | Attribute::ServerName
        | Attribute::Token
        | Attribute::Metadata => Value::Text(form(text, false)),
        Attribute::Method | Attribute::Header(_) => Value::Text(form(text, true)),
        Attribute::Namespace => Value::Glob(text.split('*').map(|part| part.as_bytes().into()).collect()),
        Attribute::ServiceAccount => {
            let (namespace, account) = text.split_once('/').ok_or("must be <namespace>/<service account>")?;
            Value::Account(namespace.into(), account.into())
        }
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            Value::Range(range(text).ok_or("must be an address or a range")?)
        }
        Attribute::DestinationPort => Value::Port(text.parse().map_err(|_| "must be a port, 0 to 65535")?),
        Attribute::Host => Value::Host(form(text, true), names_port(text)),
        Attribute::Path if text.contains("{*}") || text.contains("{**}") => {
            Value::Path(template(text).ok_or("must have no operator after {**}")?)
        }
        Attribute::Path => Value::Text(form(text, false)),
    })
}

/// AUTHZ-030: a `*` at the beginning is looked at first, any other but one at the end is a character.
fn form(text: &str, may_be_empty: bool) -> Form {
    let bytes = |text: &str| text.as_bytes().into();
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Form::Present(may_be_empty),
        (Some(suffix), _) => Form::Suffix(bytes(suffix)),
        (None, Some(prefix)) => Form::Prefix(bytes(prefix)),
        (None, None) => Form::Exact(bytes(text)),
    }
}

/// Whether a host is meant with its port: its last part is digits, or stands for any.
fn names_port(host: &str) -> bool {
    let after = host
        .rsplit_once(':')
        .filter(|(name, _)| !name.contains(':') || name.ends_with(']'));
    after.is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit() || b == b'*'))
}

fn range(text: &str) -> Option<wire::Subnet> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: std::net::IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |p| p.parse().ok().filter(|p| *p <= longest))?;
    Some(wire::Subnet { address, prefix })
}

/// AUTHZ-048. `None`: an operator follows `{**}`.
fn template(text: &str) -> Option<Template> {
    let (text, rest) = match text.split_once("{**}") {
        Some((text, rest)) => (text, Some(rest)),
        None => (text, None),
    };
    if rest.is_some_and(|rest| rest.contains("{*}") || rest.contains("{**}")) {
        return None;
    }
    Some(Template {
        literals: text.split("{*}").map(|literal| literal.as_bytes().into()).collect(),
        rest: rest.map(|rest| rest.as_bytes().into()),
    })
}
