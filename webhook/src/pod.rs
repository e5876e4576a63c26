//! Read access to a pod as it came: raw JSON, so that nothing that a newer Kubernetes added is lost (INJ-124).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What is wrong with the outline of a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: must be {expected}")]
pub struct Malformed {
    path: String,
    expected: &'static str,
}

/// Checks the outline that injection relies on, so that nothing behind it meets a list where an object belongs.
///
/// # Errors
/// Names the first path whose type no API server would have let through.
pub(crate) fn check_outline(pod: &Value) -> Result<(), Malformed> {
    let wrong = |path: &str, expected| Malformed {
        path: path.to_owned(),
        expected,
    };
    if !pod.is_object() {
        return Err(wrong("pod", "an object"));
    }
    for path in ["metadata", "spec", "spec.securityContext", "spec.nodeSelector"] {
        if !at(pod, path).is_none_or(Value::is_object) {
            return Err(wrong(path, "an object"));
        }
    }
    if at(pod, "spec").is_none() {
        return Err(wrong("spec", "an object"));
    }
    for path in ["metadata.labels", "metadata.annotations"] {
        match at(pod, path) {
            None => {}
            Some(Value::Object(map)) => {
                if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
                    return Err(wrong(&format!("{path}[{key}]"), "a string"));
                }
            }
            Some(_) => return Err(wrong(path, "an object")),
        }
    }
    for path in [
        "spec.containers",
        "spec.initContainers",
        "spec.volumes",
        "spec.imagePullSecrets",
        "metadata.ownerReferences",
    ] {
        let items = match at(pod, path) {
            None => continue,
            Some(Value::Array(items)) => items,
            Some(_) => return Err(wrong(path, "a list")),
        };
        for (n, item) in items.iter().enumerate() {
            let Value::Object(fields) = item else {
                return Err(wrong(&format!("{path}[{n}]"), "an object"));
            };
            if path.ends_with("ontainers") {
                check_container(&format!("{path}[{n}]"), fields)?;
            }
        }
    }
    Ok(())
}

fn check_container(path: &str, container: &Map<String, Value>) -> Result<(), Malformed> {
    let wrong = |field: &str, expected| Malformed {
        path: format!("{path}.{field}"),
        expected,
    };
    if !container.get("name").is_some_and(Value::is_string) {
        return Err(wrong("name", "a string"));
    }
    for field in ["ports", "env", "volumeMounts", "envFrom"] {
        match container.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) if items.iter().all(Value::is_object) => {}
            Some(_) => return Err(wrong(field, "a list of objects")),
        }
    }
    for field in [
        "resources",
        "securityContext",
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        match container.get(field) {
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(_) => return Err(wrong(field, "an object")),
        }
    }
    Ok(())
}

/// The value at a dotted path; absent and null are the same.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(value, |value, field| value.get(field))
        .filter(|value| !value.is_null())
}

/// The string at a dotted path.
pub(crate) fn str_at<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    at(value, path).and_then(Value::as_str)
}

/// The list at a dotted path, empty when it is absent.
pub(crate) fn list_at<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map of strings at a dotted path, empty when it is absent.
pub(crate) fn strings_at(value: &Value, path: &str) -> BTreeMap<String, String> {
    let map = at(value, path).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// `metadata.labels`.
pub(crate) fn labels(pod: &Value) -> BTreeMap<String, String> {
    strings_at(pod, "metadata.labels")
}

/// `metadata.annotations`.
pub(crate) fn annotations(pod: &Value) -> BTreeMap<String, String> {
    strings_at(pod, "metadata.annotations")
}

/// `name` of a container, volume or reference; empty when there is none.
pub(crate) fn name(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The object at a dotted path, made where it is missing. What stands there and is no object is replaced.
pub(crate) fn object_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut here = value;
    for field in path.split('.') {
        here = as_object_mut(here).entry(field).or_insert(Value::Null);
    }
    as_object_mut(here)
}

/// The list at a dotted path, made where it is missing.
pub(crate) fn list_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut Vec<Value> {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = if parent.is_empty() {
        as_object_mut(value)
    } else {
        object_mut(value, parent)
    };
    let here = parent.entry(field).or_insert(Value::Null);
    if !here.is_array() {
        *here = Value::Array(Vec::new());
    }
    here.as_array_mut().expect("made a list above")
}

/// JSON text with sorted fields: the same from every build, whether its maps keep their order or not.
pub(crate) fn canonical_text(value: &Value) -> String {
    sorted(value).to_string()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<_, _> = fields
                .iter()
                .map(|(name, value)| (name.clone(), sorted(value)))
                .collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// Removes the field at a dotted path if it is an empty list or an empty object.
pub(crate) fn drop_empty(value: &mut Value, path: &str) {
    let empty = match at(value, path) {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        _ => false,
    };
    if empty {
        remove(value, path);
    }
}

/// Removes the field at a dotted path.
pub(crate) fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = if parent.is_empty() {
        Some(value)
    } else {
        parent.split('.').try_fold(value, |value, field| value.get_mut(field))
    };
    parent?.as_object_mut()?.remove(field)
}

fn as_object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}
