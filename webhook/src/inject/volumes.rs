//! The volumes through which configuration, identity and credentials arrive (INJ-080 to INJ-089, INJ-095).

use serde_json::{Value, json};
use weft_bundle::key::{TARGET_REV_ANNOTATION, config_name, credentials_name, endpoints_name, identity_name};

use super::{Plan, Refusal, Status};
use crate::annotations::Violation;
use crate::pod::{list_at, list_mut, name};

/// Every volume that Weft adds: no container of the user's may mount one (ID-141).
pub(super) const VOLUMES: [&str; 6] = [CONFIG, IDENTITY, CREDENTIALS, STATE, POD_INFO, NO_TOKEN];

const CONFIG: &str = "weft-config";
const IDENTITY: &str = "weft-identity";
const CREDENTIALS: &str = "weft-credentials";
const STATE: &str = "weft-state";
const POD_INFO: &str = "weft-podinfo";
const NO_TOKEN: &str = "weft-no-token";

const CONFIG_PATH: &str = "/etc/weft/config";
const POD_INFO_PATH: &str = "/etc/weft/pod";
const IDENTITY_PATH: &str = "/var/run/secrets/weft.dev/tls";
const CREDENTIALS_PATH: &str = "/var/run/secrets/weft.dev/credentials";
const STATE_PATH: &str = "/var/lib/weft";
/// Where the API server's admission would mount the API token (INJ-086).
pub(super) const NO_TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The sidecar's mounts, the user's of INJ-165 last.
pub(super) fn proxy_mounts(plan: &Plan<'_>) -> Vec<Value> {
    let mut mounts = vec![read_only(CONFIG, CONFIG_PATH), read_only(IDENTITY, IDENTITY_PATH)];
    if plan.tls_shards() > 0 {
        mounts.push(read_only(CREDENTIALS, CREDENTIALS_PATH));
    }
    mounts.push(json!({ "name": STATE, "mountPath": STATE_PATH }));
    mounts.push(read_only(POD_INFO, POD_INFO_PATH));
    mounts.push(read_only(NO_TOKEN, NO_TOKEN_PATH));
    for (volume, mount) in &plan.overrides.user_volume_mounts {
        let mut mount = mount.clone();
        mount["name"] = json!(volume);
        mounts.push(mount);
    }
    mounts
}

/// The init container's mounts: no token, and with iptables-legacy a place for its lock file (INJ-054, INJ-084).
pub(super) fn redirect_mounts(plan: &Plan<'_>) -> Vec<Value> {
    let mut mounts = vec![read_only(NO_TOKEN, NO_TOKEN_PATH)];
    if plan.config.redirect.is_legacy() && !plan.config.cni {
        mounts.push(json!({ "name": STATE, "mountPath": STATE_PATH }));
    }
    mounts
}

/// Adds the volumes behind the user's.
pub(super) fn add(pod: &mut Value, plan: &Plan<'_>, status: &mut Status) {
    // Files belong to root; the group can read where the pod has one for its files (ID-128).
    let secret_mode = if plan.fs_group { 0o440 } else { 0o444 };
    let mut volumes = vec![
        json!({ "name": CONFIG, "projected": { "defaultMode": 0o444, "sources": config_sources(plan) } }),
        json!({
            "name": IDENTITY,
            "secret": { "defaultMode": secret_mode, "secretName": identity_name(&plan.service_account) },
        }),
    ];
    if plan.tls_shards() > 0 {
        let sources: Vec<_> = (0..plan.tls_shards())
            .map(|n| json!({ "secret": { "name": credentials_name(&plan.key, n), "optional": true } }))
            .collect();
        volumes.push(json!({ "name": CREDENTIALS, "projected": { "defaultMode": secret_mode, "sources": sources } }));
    }
    volumes.push(memory(STATE, "32Mi"));
    volumes.push(json!({
        "name": POD_INFO,
        "downwardAPI": {
            "defaultMode": 0o444,
            "items": [item("labels", "metadata.labels"), item("annotations", "metadata.annotations")],
        },
    }));
    volumes.push(memory(NO_TOKEN, "4Ki"));
    for (volume, source) in &plan.overrides.user_volumes {
        let mut source = source.clone();
        source["name"] = json!(volume);
        volumes.push(source);
    }
    status
        .volumes
        .extend(volumes.iter().map(|volume| name(volume).to_owned()));
    list_mut(pod, "spec.volumes").extend(volumes);
}

/// Configuration first, then endpoints, and the revision that the operator asks for (DLV-003, DLV-004, DLV-051).
/// Every ConfigMap is optional, so that a pod is never held by one that is not rendered yet (INJ-101).
fn config_sources(plan: &Plan<'_>) -> Vec<Value> {
    let config_map = |name: String| json!({ "configMap": { "name": name, "optional": true } });
    let config = (0..plan.config.cfg_shards).map(|n| config_name(&plan.key, n));
    let endpoints = (0..plan.config.ep_shards).map(|n| endpoints_name(&plan.config.revision, plan.namespace, n));
    let mut sources: Vec<_> = config.chain(endpoints).map(config_map).collect();
    let target = item(
        "target-rev",
        &format!("metadata.annotations['{TARGET_REV_ANNOTATION}']"),
    );
    sources.push(json!({ "downwardAPI": { "items": [target] } }));
    sources
}

fn item(path: &str, field: &str) -> Value {
    json!({ "path": path, "fieldRef": { "apiVersion": "v1", "fieldPath": field } })
}

/// In memory, because a volume on disk keeps the cluster autoscaler from removing the node (INJ-087).
fn memory(name: &str, limit: &str) -> Value {
    json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": limit } })
}

fn read_only(name: &str, path: &str) -> Value {
    json!({ "name": name, "mountPath": path, "readOnly": true })
}

/// Whether a mount there would hide what the proxy reads or writes (INJ-184).
pub(super) fn hides_proxy_files(path: &str) -> bool {
    const ROOTS: [&str; 4] = ["/etc/weft", "/var/run/secrets/weft.dev", STATE_PATH, NO_TOKEN_PATH];
    let clean = |path: &str| {
        let mut parts = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part.to_owned()),
            }
        }
        // `/var/run` is a link to `/run` in most images.
        if parts.first().is_some_and(|first| first == "run") {
            parts.insert(0, "var".to_owned());
        }
        parts
    };
    let mount = clean(path);
    ROOTS.iter().any(|root| {
        let root = clean(root);
        root.starts_with(&mount) || mount.starts_with(&root)
    })
}

/// INJ-165: a volume's name is used once.
pub(super) fn check_user_volumes(pod: &Value, plan: &Plan<'_>) -> Result<(), Refusal> {
    let taken = |volume: &str| {
        VOLUMES.contains(&volume)
            || list_at(pod, "spec.volumes")
                .iter()
                .any(|existing| name(existing) == volume)
    };
    let user_volumes = &plan.overrides.user_volumes;
    let Some(volume) = user_volumes.keys().find(|volume| taken(volume)) else {
        return Ok(());
    };
    Err(Refusal::Annotations(vec![Violation {
        key: "weft.dev/user-volume".to_owned(),
        problem: format!("volume {volume:?} is there already; must be a new name"),
    }]))
}

/// Whether a container mounts a volume of Weft's.
pub(super) fn foreign_mount(container: &Value) -> Option<&str> {
    list_at(container, "volumeMounts")
        .iter()
        .map(name)
        .find(|volume| VOLUMES.contains(volume))
}

/// A volume that has a name of Weft's.
pub(super) fn reserved(pod: &Value) -> Option<&str> {
    list_at(pod, "spec.volumes")
        .iter()
        .map(name)
        .find(|volume| VOLUMES.contains(volume))
}
