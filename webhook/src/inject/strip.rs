//! Takes an earlier injection out of a pod (INJ-120, INJ-194).

use serde_json::{Map, Value};
use weft_bundle::key::{STATUS_ANNOTATION, pod::PROXY_CONTAINER};

use super::status::{INJECTION_WARNINGS_ANNOTATION, KIALI_ANNOTATION, OVERRIDES_ANNOTATION, Status};
use super::{probes, scrape};
use crate::pod::{at, drop_empty, list_at, list_mut, name, object_mut, remove, str_at};

/// Removes what `weft.dev/status` names, puts stored overlays back, and restores probes and scrape annotations. A pod
/// without a readable status annotation stays as it is.
pub(super) fn strip(pod: &mut Value) {
    let annotation = |pod: &Value, key: &str| {
        at(pod, "metadata.annotations")
            .and_then(|all| all.get(key))
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let Some(status) = annotation(pod, STATUS_ANNOTATION).and_then(|text| serde_json::from_str::<Status>(&text).ok())
    else {
        return;
    };
    let environment = proxy_environment(pod);
    for (list, names) in [
        ("spec.initContainers", &status.init_containers),
        ("spec.containers", &status.containers),
        ("spec.volumes", &status.volumes),
        ("spec.imagePullSecrets", &status.image_pull_secrets),
    ] {
        if at(pod, list).is_some() {
            list_mut(pod, list).retain(|item| !names.iter().any(|named| named == name(item)));
            if list != "spec.containers" {
                drop_empty(pod, list);
            }
        }
    }
    if let Some(probers) = environment.get(probes::ENVIRONMENT).and_then(Value::as_str) {
        probes::restore(pod, probers, status.status_port);
    }
    if let Some(scraped) = environment.get(scrape::ENVIRONMENT).and_then(Value::as_str) {
        scrape::restore(pod, scraped);
    }
    if let Some(overlays) = annotation(pod, OVERRIDES_ANNOTATION) {
        restore_overlays(pod, &overlays);
    }
    let annotations = object_mut(pod, "metadata.annotations");
    for key in [
        STATUS_ANNOTATION,
        OVERRIDES_ANNOTATION,
        INJECTION_WARNINGS_ANNOTATION,
        KIALI_ANNOTATION,
    ] {
        annotations.remove(key);
    }
}

/// The literal environment of the sidecar that is there.
fn proxy_environment(pod: &Value) -> Map<String, Value> {
    ["spec.initContainers", "spec.containers"]
        .into_iter()
        .flat_map(|list| list_at(pod, list))
        .filter(|container| name(container) == PROXY_CONTAINER)
        .flat_map(|container| list_at(container, "env"))
        .filter_map(|variable| Some((name(variable).to_owned(), variable.get("value")?.clone())))
        .collect()
}

fn restore_overlays(pod: &mut Value, text: &str) {
    let Ok(mut stored) = serde_json::from_str::<Value>(text) else {
        return;
    };
    for kind in ["containers", "initContainers"] {
        let Some(Value::Array(items)) = remove(&mut stored, kind) else {
            continue;
        };
        let overlays = items
            .into_iter()
            .filter(|item| str_at(item, "name").is_some_and(|name| !name.is_empty()));
        list_mut(pod, &format!("spec.{kind}")).extend(overlays);
    }
}
