//! Any mesh object from JSON, with the field that does not fit.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::validate::{Report, Validate};
use crate::{
    AuthorizationPolicy, DestinationRule, Gateway, PeerAuthentication, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry,
};

/// An object of a kind that Weft serves.
#[derive(Debug, Clone, PartialEq)]
pub enum MeshObject {
    /// VirtualService.
    VirtualService(Box<VirtualService>),
    /// DestinationRule.
    DestinationRule(Box<DestinationRule>),
    /// Gateway.
    Gateway(Box<Gateway>),
    /// ServiceEntry.
    ServiceEntry(Box<ServiceEntry>),
    /// WorkloadEntry.
    WorkloadEntry(Box<WorkloadEntry>),
    /// Sidecar.
    Sidecar(Box<Sidecar>),
    /// PeerAuthentication.
    PeerAuthentication(Box<PeerAuthentication>),
    /// AuthorizationPolicy.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
}

impl Validate for MeshObject {
    fn validate(&self) -> Report {
        match self {
            Self::VirtualService(object) => object.validate(),
            Self::DestinationRule(object) => object.validate(),
            Self::Gateway(object) => object.validate(),
            Self::ServiceEntry(object) => object.validate(),
            Self::WorkloadEntry(object) => object.validate(),
            Self::Sidecar(object) => object.validate(),
            Self::PeerAuthentication(object) => object.validate(),
            Self::AuthorizationPolicy(object) => object.validate(),
        }
    }
}

/// Why JSON is no mesh object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a kind of [`KINDS`]: somebody else's object.
    #[error("{api_version} {kind} is no kind of the mesh")]
    OtherKind {
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// A version of the group that is not served.
    #[error("apiVersion: {version:?}: {kind} is served in {}", served.join(", "))]
    Version {
        /// Kind.
        kind: String,
        /// Version asked for.
        version: String,
        /// Versions served.
        served: Vec<String>,
    },
    /// A field of the wrong type.
    #[error("{path}: {message}")]
    Field {
        /// Path of the field.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// Fields that the kind does not have (SM-125).
    #[error("unknown {}: {}", if paths.len() == 1 { "field" } else { "fields" }, paths.join(", "))]
    Unknown {
        /// Their paths.
        paths: Vec<String>,
    },
}

/// Group, kind and served versions, the storage version first (SM-128, AUTHN-001).
pub const KINDS: [(&str, &str, &[&str]); 8] = [
    ("networking.istio.io", "VirtualService", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "DestinationRule", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "Gateway", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "ServiceEntry", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "WorkloadEntry", &["v1", "v1beta1", "v1alpha3"]),
    ("networking.istio.io", "Sidecar", &["v1", "v1beta1", "v1alpha3"]),
    ("security.istio.io", "PeerAuthentication", &["v1", "v1beta1"]),
    ("security.istio.io", "AuthorizationPolicy", &["v1", "v1beta1"]),
];

/// Parses an object; unknown fields are an error when `strict` (SM-125), else ignored.
///
/// # Errors
/// See [`ParseError`].
pub fn parse_object(value: &Value, strict: bool) -> Result<MeshObject, ParseError> {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some((_, _, served)) = KINDS.iter().find(|(g, k, _)| *g == group && *k == kind) else {
        return Err(ParseError::OtherKind { api_version, kind });
    };
    if !served.contains(&version) {
        let served = served.iter().map(|v| format!("{group}/{v}")).collect();
        return Err(ParseError::Version {
            kind,
            version: api_version.clone(),
            served,
        });
    }
    Ok(match kind.as_str() {
        "VirtualService" => MeshObject::VirtualService(Box::new(read(value, strict)?)),
        "DestinationRule" => MeshObject::DestinationRule(Box::new(read(value, strict)?)),
        "Gateway" => MeshObject::Gateway(Box::new(read(value, strict)?)),
        "ServiceEntry" => MeshObject::ServiceEntry(Box::new(read(value, strict)?)),
        "WorkloadEntry" => MeshObject::WorkloadEntry(Box::new(read(value, strict)?)),
        "Sidecar" => MeshObject::Sidecar(Box::new(read(value, strict)?)),
        "AuthorizationPolicy" => MeshObject::AuthorizationPolicy(Box::new(read(value, strict)?)),
        _ => MeshObject::PeerAuthentication(Box::new(read(value, strict)?)),
    })
}

/// Reads one kind, whatever its version says.
///
/// # Errors
/// [`ParseError::Field`], and [`ParseError::Unknown`] when `strict`.
pub fn read<T: DeserializeOwned>(value: &Value, strict: bool) -> Result<T, ParseError> {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        let path = path.to_string();
        // Metadata is the API server's business.
        if !path.starts_with("metadata.") && !matches!(path.as_str(), "apiVersion" | "kind") {
            unknown.push(brackets(&path));
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let parsed = serde_ignored::deserialize(tracked, &mut note);
    let object = parsed.map_err(|e: serde_json::Error| {
        let path = track.path().to_string();
        ParseError::Field {
            path: if path == "." { "object".to_owned() } else { path },
            message: e.to_string(),
        }
    })?;
    if strict && !unknown.is_empty() {
        return Err(ParseError::Unknown { paths: unknown });
    }
    Ok(object)
}

/// `spec.http.0.x` as people write it: `spec.http[0].x`. Optional fields show as `?` in between.
pub(crate) fn brackets(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('.').filter(|p| !p.is_empty()) {
        let part = part.trim_matches('?');
        if part.is_empty() {
            continue;
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(part);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // spec: SM-125, SM-128, VS-036
    #[test]
    fn versions_fields_and_types_are_checked_with_their_path() {
        let object = |version: &str, spec: Value| {
            json!({"apiVersion": format!("networking.istio.io/{version}"), "kind": "VirtualService",
                "metadata": {"name": "x", "namespace": "n", "labels": {"a": "b"}}, "spec": spec})
        };
        let route = json!([{"route": [{"destination": {"host": "a"}}]}]);
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let parsed = parse_object(&object(version, json!({"hosts": ["a"], "http": route})), true);
            assert!(
                matches!(parsed, Ok(MeshObject::VirtualService(_))),
                "{version}: {parsed:?}"
            );
        }
        for (group, kind, served) in KINDS {
            let wanted: &[&str] = match group {
                "security.istio.io" => &["v1", "v1beta1"],
                _ => &["v1", "v1beta1", "v1alpha3"],
            };
            assert_eq!(served, wanted, "{kind}");
            let read = |version: &str| {
                let value = json!({"apiVersion": format!("{group}/{version}"), "kind": kind,
                    "metadata": {"name": "x", "namespace": "n"}, "spec": {"host": "a", "hosts": ["a"], "address": "a",
                    "servers": []}});
                parse_object(&value, false)
            };
            let first = read("v1").expect("readable");
            for version in served {
                assert_eq!(read(version).as_ref(), Ok(&first), "{kind} {version}");
            }
        }
        let error = parse_object(&object("v2", json!({})), true)
            .expect_err("version")
            .to_string();
        assert!(error.contains("networking.istio.io/v1beta1"), "{error}");
        let error = parse_object(&object("v1", json!({"http": [{"timeout": 5}]})), true)
            .expect_err("type")
            .to_string();
        assert!(error.starts_with("spec.http[0].timeout"), "{error}");
        let unknown = object("v1", json!({"http": [{"rout": [], "retries": {"attempt": 1}}]}));
        let error = parse_object(&unknown, true).expect_err("unknown").to_string();
        assert_eq!(error, "unknown fields: spec.http[0].rout, spec.http[0].retries.attempt");
        assert!(parse_object(&unknown, false).is_ok());
        let null = object("v1", json!({"http": [{"match": [{"headers": {"x": null}}]}]}));
        let error = parse_object(&null, true).expect_err("null").to_string();
        assert!(error.starts_with("spec.http[0].match[0].headers.x"), "{error}");
        let other = parse_object(&json!({"apiVersion": "v1", "kind": "Pod"}), true);
        assert!(matches!(other, Err(ParseError::OtherKind { .. })));
    }
}
