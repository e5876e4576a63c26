//! A user's own `weft-proxy`, `weft-init` or `weft-validation` container: merged over Weft's (INJ-180 to INJ-185).

use serde_json::{Map, Value};
use weft_bundle::key::pod::{INIT_CONTAINER, PROXY_CONTAINER, VALIDATION_CONTAINER, is_user_container};

use super::volumes::{NO_TOKEN_PATH, hides_proxy_files};
use super::{Plan, Refusal};
use crate::pod::{at, drop_empty, list_at, list_mut, name, str_at};

/// What the user wrote, by the list it stood in: the content of `weft.dev/overrides` (INJ-008, INJ-182).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Overlays {
    pub(super) containers: Vec<Value>,
    pub(super) init_containers: Vec<Value>,
}

impl Overlays {
    /// The overlay for one of Weft's containers.
    pub(super) fn find(&self, wanted: &str) -> Option<&Value> {
        self.containers
            .iter()
            .chain(&self.init_containers)
            .find(|overlay| name(overlay) == wanted)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.init_containers.is_empty()
    }

    /// The annotation's value.
    pub(super) fn to_json(&self) -> Value {
        serde_json::json!({ "containers": self.containers, "initContainers": self.init_containers })
    }
}

/// Takes the overlays out of the pod.
pub(super) fn take(pod: &mut Value) -> Overlays {
    let mut overlays = Overlays::default();
    for (list, into) in [
        ("spec.containers", &mut overlays.containers),
        ("spec.initContainers", &mut overlays.init_containers),
    ] {
        if at(pod, list).is_none() {
            continue;
        }
        let (users, taken): (Vec<_>, Vec<_>) = std::mem::take(list_mut(pod, list))
            .into_iter()
            .partition(|container| is_user_container(name(container), str_at(container, "image").unwrap_or_default()));
        *list_mut(pod, list) = users;
        into.extend(taken.into_iter().map(clean));
        if list == "spec.initContainers" {
            drop_empty(pod, list);
        }
    }
    overlays
}

/// What the API server and its admission filled in before the webhook was asked is not the user's word: the mount of
/// the API token, whose volume has a random name, and the pull policy that goes with the image `auto`.
fn clean(mut overlay: Value) -> Value {
    if name(&overlay) == "istio-proxy" {
        overlay["name"] = Value::from(PROXY_CONTAINER);
    }
    if at(&overlay, "volumeMounts").is_some() {
        list_mut(&mut overlay, "volumeMounts").retain(|mount| str_at(mount, "mountPath") != Some(NO_TOKEN_PATH));
        drop_empty(&mut overlay, "volumeMounts");
    }
    if str_at(&overlay, "image").is_none_or(|image| image == "auto")
        && let Some(fields) = overlay.as_object_mut()
    {
        fields.remove("imagePullPolicy");
    }
    overlay
}

/// Refuses overlays that would take from the proxy what it needs (INJ-184).
pub(super) fn check(overlays: &Overlays, plan: &Plan<'_>) -> Result<(), Refusal> {
    let mounts = overlays
        .containers
        .iter()
        .chain(&overlays.init_containers)
        .flat_map(|overlay| {
            list_at(overlay, "volumeMounts")
                .iter()
                .filter_map(|mount| Some((name(overlay), str_at(mount, "mountPath")?)))
        });
    let annotated = plan
        .overrides
        .user_volume_mounts
        .values()
        .filter_map(|mount| Some((PROXY_CONTAINER, str_at(mount, "mountPath")?)));
    for (container, path) in mounts.chain(annotated) {
        if hides_proxy_files(path) {
            return Err(Refusal::HiddenFiles {
                container: container.to_owned(),
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

/// Merges an overlay into one of Weft's containers; the user's values win.
pub(super) fn apply(container: &mut Value, overlay: &Value) {
    let Some(fields) = overlay.as_object() else { return };
    for (field, value) in fields {
        match (field.as_str(), value) {
            (_, Value::Null) | ("name" | "restartPolicy", _) => {}
            ("image", Value::String(image)) if image.is_empty() || image == "auto" => {}
            // One hook runs: the user's (LIFE-028).
            ("lifecycle", _) => container["lifecycle"] = value.clone(),
            (list, Value::Array(items)) => merge_list(list_mut(container, list), list, items),
            (field, value) => merge(&mut container[field], value),
        }
    }
}

/// Merges maps by key; everything else is replaced. A null says nothing.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Merges lists by the key that strategic merge gives them; lists without a key are replaced, `envFrom` appended.
fn merge_list(base: &mut Vec<Value>, list: &str, over: &[Value]) {
    let key: fn(&Value) -> String = match list {
        "env" => |item| field(item, "name"),
        "volumeMounts" => |item| field(item, "mountPath"),
        "volumeDevices" => |item| field(item, "devicePath"),
        "ports" => |item| {
            let protocol = str_at(item, "protocol").unwrap_or("TCP");
            format!("{}/{protocol}", field(item, "containerPort"))
        },
        "envFrom" => {
            base.extend_from_slice(over);
            return;
        }
        _ => {
            *base = over.to_vec();
            return;
        }
    };
    for item in over {
        match base.iter_mut().find(|existing| key(existing) == key(item)) {
            // A variable with `valueFrom` must not keep the `value` of the one it replaces.
            Some(existing) if list == "env" => *existing = item.clone(),
            Some(existing) => merge(existing, item),
            None => base.push(item.clone()),
        }
    }
}

fn field(item: &Value, name: &str) -> String {
    match item.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Puts the parts back that an overlay may add to but not take away (INJ-184): the form's restart policy, and the
/// handler of the sidecar's probes.
pub(super) fn protect(container: &mut Value, before: &Value) {
    let Some(fields) = container.as_object_mut() else {
        return;
    };
    for probe in ["startupProbe", "readinessProbe"] {
        let (Some(ours), Some(merged)) = (before.get(probe), fields.get_mut(probe).and_then(Value::as_object_mut))
        else {
            continue;
        };
        protect_probe(ours, merged);
    }
}

fn protect_probe(ours: &Value, merged: &mut Map<String, Value>) {
    for handler in ["exec", "tcpSocket", "grpc"] {
        merged.remove(handler);
    }
    let Some(http) = ours.get("httpGet") else { return };
    merged.insert("httpGet".to_owned(), http.clone());
}

/// The user that the overlay gives the proxy: exempt from the redirect as well (INJ-183).
pub(super) fn proxy_user(overlays: &Overlays) -> Option<u64> {
    let user = at(overlays.find(PROXY_CONTAINER)?, "securityContext.runAsUser")?.as_u64()?;
    (user != 0).then_some(user)
}

/// The overlay of the init container, whichever of the two names it has.
pub(super) fn of_redirect<'a>(overlays: &'a Overlays, container: &str) -> Option<&'a Value> {
    overlays
        .find(container)
        .filter(|_| [INIT_CONTAINER, VALIDATION_CONTAINER].contains(&container))
}
