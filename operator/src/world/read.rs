//! Objects from JSON: what manifests, local runs and golden tests hold.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_crds::object::{KINDS, ParseError, read};

use super::{Credential, Kind, Object, ObjectRef};

/// What a JSON object is to rendering.
#[derive(Debug, Clone)]
pub enum Read {
    /// Something that rendering depends on.
    Object(Object),
    /// A kind that rendering has no use for.
    Other,
}

/// Reads an object. One of a mesh kind that does not fit becomes [`Object::Malformed`], so that it can be reported.
///
/// # Errors
/// Why an object of a Kubernetes kind cannot be read, with the field.
pub fn object(value: &Value, control_plane: &str) -> Result<Read, ParseError> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
    if KINDS.iter().any(|(g, k, _)| *g == group && *k == kind) {
        return Ok(Read::Object(mesh_object(
            value,
            kind,
            text("/metadata/namespace"),
            text("/metadata/name"),
        )));
    }
    let credential = |kind, content| Object::Credential {
        reference: ObjectRef {
            kind,
            namespace: text("/metadata/namespace").to_owned(),
            name: text("/metadata/name").to_owned(),
        },
        content: Some(Arc::new(content)),
    };
    let object = match (group, kind) {
        ("", "Namespace") => Object::Namespace(fit(value)?),
        ("", "Service") => Object::Service(fit(value)?),
        ("", "Pod") => Object::Pod(fit(value)?),
        ("", "Node") => Object::Node(fit(value)?),
        ("", "ServiceAccount") => Object::ServiceAccount(fit(value)?),
        ("", "ConfigMap") if text("/metadata/name") == "weft" && text("/metadata/namespace") == control_plane => {
            Object::MeshConfig(fit(value)?)
        }
        ("", "Secret") => {
            let secret: Arc<Secret> = fit(value)?;
            credential(Kind::Secret, Credential::of(&secret))
        }
        ("", "ConfigMap") => {
            let map: Arc<ConfigMap> = fit(value)?;
            credential(Kind::ConfigMap, Credential::of_config_map(&map))
        }
        ("discovery.k8s.io", "EndpointSlice") => Object::EndpointSlice(fit(value)?),
        ("apps", "Deployment") => Object::Deployment(fit(value)?),
        ("apps", "ReplicaSet") => Object::ReplicaSet(fit(value)?),
        ("apps", "StatefulSet") => Object::StatefulSet(fit(value)?),
        ("apps", "DaemonSet") => Object::DaemonSet(fit(value)?),
        ("batch", "Job") => Object::Job(fit(value)?),
        ("batch", "CronJob") => Object::CronJob(fit(value)?),
        _ => return Ok(Read::Other),
    };
    Ok(Read::Object(object))
}

/// Reads an object of a mesh kind, whatever its version says.
#[must_use]
pub fn mesh_object(value: &Value, kind: &str, namespace: &str, name: &str) -> Object {
    let (kind, object) = match kind {
        "VirtualService" => (Kind::VirtualService, fit(value).map(Object::VirtualService)),
        "DestinationRule" => (Kind::DestinationRule, fit(value).map(Object::DestinationRule)),
        "Gateway" => (Kind::Gateway, fit(value).map(Object::Gateway)),
        "ServiceEntry" => (Kind::ServiceEntry, fit(value).map(Object::ServiceEntry)),
        "WorkloadEntry" => (Kind::WorkloadEntry, fit(value).map(Object::WorkloadEntry)),
        "Sidecar" => (Kind::Sidecar, fit(value).map(Object::Sidecar)),
        "AuthorizationPolicy" => (Kind::AuthorizationPolicy, fit(value).map(Object::AuthorizationPolicy)),
        _ => (Kind::PeerAuthentication, fit(value).map(Object::PeerAuthentication)),
    };
    object.unwrap_or_else(|error| Object::Malformed {
        reference: ObjectRef {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        error: error.to_string(),
    })
}

fn fit<T: DeserializeOwned>(value: &Value) -> Result<Arc<T>, ParseError> {
    read(value, false).map(Arc::new)
}
