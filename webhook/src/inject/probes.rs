//! The application's probes and hooks go through the proxy (section I).

use serde_json::{Map, Value, json};

use crate::annotations::Overrides;
use crate::pod::{at, list_at, name, str_at};

/// The variable that tells the proxy what was rewritten (INJ-132).
pub(super) const ENVIRONMENT: &str = "WEFT_KUBE_APP_PROBERS";

/// Original handlers by their new path.
pub(super) type Probers = Map<String, Value>;

/// Where a handler may stand in a container, the end of its new path, and which handlers are rewritten.
const PLACES: [(&[&str], &str, &str, &[&str]); 5] = [
    (
        &["livenessProbe"],
        "app-health",
        "livez",
        &["httpGet", "tcpSocket", "grpc"],
    ),
    (
        &["readinessProbe"],
        "app-health",
        "readyz",
        &["httpGet", "tcpSocket", "grpc"],
    ),
    (
        &["startupProbe"],
        "app-health",
        "startupz",
        &["httpGet", "tcpSocket", "grpc"],
    ),
    (
        &["lifecycle", "preStop"],
        "app-lifecycle",
        "prestopz",
        &["httpGet", "tcpSocket"],
    ),
    (
        &["lifecycle", "postStart"],
        "app-lifecycle",
        "poststartz",
        &["httpGet", "tcpSocket"],
    ),
];

/// Points every handler of the user's containers at the status port and returns the originals (INJ-130 to INJ-132).
pub(super) fn rewrite(pod: &mut Value, overrides: &Overrides, warnings: &mut Vec<String>) -> Probers {
    let mut probers = Probers::new();
    for container in containers_mut(pod) {
        let owner = name(container).to_owned();
        if overrides.skip_probe_rewrite.contains(&owner) {
            continue;
        }
        let ports = list_at(container, "ports").to_vec();
        for (place, prefix, end, kinds) in PLACES {
            let Some(holder) = holder_mut(container, place) else {
                continue;
            };
            let Some(kind) = kinds
                .iter()
                .copied()
                .find(|kind| holder.get(*kind).is_some_and(Value::is_object))
            else {
                continue;
            };
            let Some(mut handler) = holder.get(kind).cloned() else {
                continue;
            };
            let path = format!("/{prefix}/{owner}/{end}");
            if is_elsewhere(&handler) || is_rewritten(&handler, overrides.status_port) {
                continue;
            }
            if let Err(unknown) = resolve_port(&mut handler, &ports) {
                warnings.push(format!(
                    "container {owner}: {} port {unknown:?} is not declared; not rewritten",
                    place.join(".")
                ));
                continue;
            }
            let mut entry = Map::new();
            entry.insert(kind.to_owned(), handler);
            if prefix == "app-health" {
                let timeout = holder.get("timeoutSeconds").cloned().unwrap_or_else(|| json!(1));
                entry.insert("timeoutSeconds".to_owned(), timeout);
            }
            probers.insert(path.clone(), Value::Object(entry));
            holder.remove(kind);
            holder.insert(
                "httpGet".to_owned(),
                json!({ "path": path, "port": overrides.status_port, "scheme": "HTTP" }),
            );
        }
    }
    probers
}

/// Gives the original handlers back to containers that still point at the status port (INJ-122).
pub(super) fn restore(pod: &mut Value, probers: &str, status_port: u16) {
    let Ok(probers) = serde_json::from_str::<Probers>(probers) else {
        return;
    };
    for container in containers_mut(pod) {
        let owner = name(container).to_owned();
        for (place, prefix, end, kinds) in PLACES {
            let path = format!("/{prefix}/{owner}/{end}");
            let Some(holder) = holder_mut(container, place) else {
                continue;
            };
            let ours = holder.get("httpGet").is_some_and(|handler| {
                str_at(handler, "path") == Some(&path) && port_of(handler) == Some(u64::from(status_port))
            });
            let Some(entry) = probers.get(&path).filter(|_| ours) else {
                continue;
            };
            let Some((kind, handler)) = kinds.iter().find_map(|kind| Some((*kind, entry.get(*kind)?))) else {
                continue;
            };
            holder.remove("httpGet");
            holder.insert(kind.to_owned(), handler.clone());
        }
    }
}

/// The containers of both lists, the ordinary ones first, whatever the order of the fields.
fn containers_mut(pod: &mut Value) -> Vec<&mut Value> {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Vec::new();
    };
    let (mut containers, mut init) = (Vec::new(), Vec::new());
    for (field, value) in spec.iter_mut() {
        match field.as_str() {
            "containers" => containers.extend(value.as_array_mut().into_iter().flatten()),
            "initContainers" => init.extend(value.as_array_mut().into_iter().flatten()),
            _ => {}
        }
    }
    containers.append(&mut init);
    containers
}

fn holder_mut<'a>(container: &'a mut Value, place: &[&str]) -> Option<&'a mut Map<String, Value>> {
    place
        .iter()
        .try_fold(container, |here, field| here.get_mut(*field))?
        .as_object_mut()
}

/// A probe of another host is the user's own affair (INJ-139).
fn is_elsewhere(handler: &Value) -> bool {
    str_at(handler, "host").is_some_and(|host| !host.is_empty())
}

/// Rewritten by a proxy that is gone, its originals with it: left as it is (INJ-122).
fn is_rewritten(handler: &Value, status_port: u16) -> bool {
    let path = str_at(handler, "path").unwrap_or_default();
    port_of(handler) == Some(u64::from(status_port))
        && (path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/"))
}

fn port_of(handler: &Value) -> Option<u64> {
    let port = at(handler, "port")?;
    port.as_u64().or_else(|| port.as_str()?.parse().ok())
}

/// Replaces a port name by its number among the container's ports.
fn resolve_port(handler: &mut Value, ports: &[Value]) -> Result<(), String> {
    let Some(Value::String(wanted)) = handler.get("port") else {
        return Ok(());
    };
    let number = wanted.parse::<u16>().ok().map(Value::from).or_else(|| {
        let declared = ports.iter().find(|port| name(port) == wanted)?;
        declared.get("containerPort").filter(|port| port.is_u64()).cloned()
    });
    match number {
        Some(number) => {
            handler["port"] = number;
            Ok(())
        }
        None => Err(wanted.clone()),
    }
}
