//! What a pod may not do beside a sidecar, and what it should know.

use serde_json::Value;

use super::container::PROXY_ID;
use super::{Refusal, volumes};
use crate::annotations::RESERVED_PORTS;
use crate::pod::{at, list_at, name};

/// No volume of the user's has a name of Weft's.
pub(super) fn reserved_volumes(pod: &Value) -> Result<(), Refusal> {
    volumes::reserved(pod).map_or(Ok(()), |volume| Err(Refusal::ReservedVolume(volume.to_owned())))
}

/// No container of the user's mounts a volume of Weft's (ID-141).
pub(super) fn foreign_mounts(pod: &Value) -> Result<(), Refusal> {
    for container in user_containers(pod) {
        if let Some(volume) = volumes::foreign_mount(container) {
            return Err(Refusal::ForeignMount {
                container: name(container).to_owned(),
                volume: volume.to_owned(),
            });
        }
    }
    Ok(())
}

/// No container of the user's can read the proxy's memory or files as its user (ID-129).
pub(super) fn isolation(pod: &Value) -> Result<(), Refusal> {
    let shared = at(pod, "spec.shareProcessNamespace").and_then(Value::as_bool) == Some(true);
    for container in user_containers(pod) {
        let Some(user) = effective(pod, container, "runAsUser") else {
            continue;
        };
        let exposed = user == PROXY_ID || (shared && user == 0);
        if exposed {
            let field = if shared {
                "shareProcessNamespace: true with runAsUser"
            } else {
                "runAsUser"
            };
            return Err(Refusal::KeyExposure {
                container: name(container).to_owned(),
                field: format!("{field}: {user}"),
            });
        }
    }
    Ok(())
}

/// Warnings about containers that bypass the redirect (INJ-188) or want the proxy's ports (NET-012).
pub(super) fn warn(pod: &Value, warnings: &mut Vec<String>) {
    for container in user_containers(pod) {
        for field in ["runAsUser", "runAsGroup"] {
            if effective(pod, container, field) == Some(PROXY_ID) {
                warnings.push(format!(
                    "container {}: {field} {PROXY_ID} is the proxy's; its traffic bypasses the mesh",
                    name(container)
                ));
            }
        }
        for port in list_at(container, "ports") {
            let number = port
                .get("containerPort")
                .and_then(Value::as_u64)
                .and_then(|port| u16::try_from(port).ok());
            if let Some(port) = number.filter(|port| RESERVED_PORTS.contains(port)) {
                warnings.push(format!(
                    "container {}: port {port} is a port of the proxy",
                    name(container)
                ));
            }
        }
    }
}

fn user_containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list_at(pod, "spec.containers")
        .iter()
        .chain(list_at(pod, "spec.initContainers"))
}

/// A field of the security context: the container's, else the pod's.
fn effective(pod: &Value, container: &Value, field: &str) -> Option<u64> {
    let of = |value: &Value, path: &str| at(value, &format!("{path}.{field}")).and_then(Value::as_u64);
    of(container, "securityContext").or_else(|| of(pod, "spec.securityContext"))
}
