//! What injection leaves on the pod's metadata (INJ-007 to INJ-009, INJ-090, INJ-091, INJ-094).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_bundle::key::{CONFIG_KEY_ANNOTATION, STATUS_ANNOTATION, TARGET_REV_ANNOTATION, Template, injected_labels};

use super::overlay::Overlays;
use super::{Plan, environment};
use crate::annotations::ports;
use crate::pod::{canonical_text, labels, object_mut};

/// Stored user overrides (INJ-008).
pub(super) const OVERRIDES_ANNOTATION: &str = "weft.dev/overrides";
/// Warnings, one per line (INJ-009).
pub(super) const INJECTION_WARNINGS_ANNOTATION: &str = "weft.dev/injection-warnings";
/// The resolved revision (INJ-091).
pub(super) const INJECTED_REV_ANNOTATION: &str = "weft.dev/injected-rev";
/// The one that Kiali looks for (PROM-020).
pub(super) const KIALI_ANNOTATION: &str = "sidecar.istio.io/status";

/// Content of annotation `weft.dev/status` (INJ-007): what injection added, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Init containers.
    #[serde(default)]
    pub init_containers: Vec<String>,
    /// Ordinary containers.
    #[serde(default)]
    pub containers: Vec<String>,
    /// Volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Pull secrets that the pod did not have.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// Revision that injected.
    #[serde(default)]
    pub revision: String,
    /// Key of the configuration.
    #[serde(default)]
    pub config_key: String,
    /// Version of the injector.
    #[serde(default)]
    pub version: String,
    /// Where the proxy answers the operator (DLV-090).
    #[serde(default = "default_status_port")]
    pub status_port: u16,
    /// ConfigMap shards that the pod mounts (DLV-032).
    #[serde(default)]
    pub cfg_shards: usize,
    /// Endpoint shards that the pod mounts.
    #[serde(default)]
    pub ep_shards: usize,
    /// Credential shards that the pod mounts (DLV-151).
    #[serde(default)]
    pub tls_shards: usize,
}

fn default_status_port() -> u16 {
    15020
}

impl Status {
    pub(super) fn new(plan: &Plan<'_>) -> Self {
        Self {
            init_containers: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            image_pull_secrets: Vec::new(),
            revision: plan.config.revision.clone(),
            config_key: plan.key.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status_port: if plan.overrides.status_port == 0 {
                15020
            } else {
                plan.overrides.status_port
            },
            cfg_shards: plan.config.cfg_shards,
            ep_shards: plan.config.ep_shards,
            tls_shards: plan.tls_shards(),
        }
    }
}

/// Writes labels and annotations.
pub(super) fn write(
    pod: &mut Value,
    plan: &Plan<'_>,
    status: &Status,
    overlays: &Overlays,
    warnings: &mut Vec<String>,
) {
    let mut added = injected_labels(&labels(pod), &plan.workload.name, plan.template());
    let existing = object_mut(pod, "metadata.labels");
    added.retain(|key, _| !existing.contains_key(key));
    existing.extend(added.into_iter().map(|(key, value)| (key, Value::from(value))));

    limit(warnings);
    let status = serde_json::to_string(status).expect("strings and numbers always serialize");
    let all = object_mut(pod, "metadata.annotations");
    // A copied manifest may bring what was asked of another pod (DLV-054).
    all.remove(TARGET_REV_ANNOTATION);
    if plan.config.kiali_annotation {
        all.insert(KIALI_ANNOTATION.to_owned(), json!(status));
    }
    all.insert(STATUS_ANNOTATION.to_owned(), json!(status));
    all.insert(CONFIG_KEY_ANNOTATION.to_owned(), json!(plan.key));
    all.insert(INJECTED_REV_ANNOTATION.to_owned(), json!(plan.config.revision));
    if !overlays.is_empty() {
        all.insert(
            OVERRIDES_ANNOTATION.to_owned(),
            json!(canonical_text(&overlays.to_json())),
        );
    }
    if !warnings.is_empty() {
        all.insert(INJECTION_WARNINGS_ANNOTATION.to_owned(), json!(warnings.join("\n")));
    }
    if let Some(first) = plan.user_containers.first() {
        for key in [
            "kubectl.kubernetes.io/default-container",
            "kubectl.kubernetes.io/default-logs-container",
        ] {
            all.entry(key).or_insert_with(|| json!(first));
        }
    }
    if plan.config.cni && plan.template() == Template::Sidecar {
        for (key, value) in for_the_plugin(plan) {
            all.insert(key.to_owned(), json!(value));
        }
    }
}

/// The effective redirect settings: the CNI plugin sees nothing but the pod (INJ-094).
fn for_the_plugin(plan: &Plan<'_>) -> Vec<(&'static str, String)> {
    let capture = &plan.overrides.capture;
    vec![
        ("weft.dev/include-inbound-ports", capture.include_inbound.text()),
        (
            "weft.dev/exclude-inbound-ports",
            ports::join(&capture.exclude_inbound_with(plan.overrides.status_port)),
        ),
        (
            "weft.dev/include-outbound-ports",
            ports::join(&capture.include_outbound),
        ),
        (
            "weft.dev/exclude-outbound-ports",
            ports::join(&capture.exclude_outbound),
        ),
        ("weft.dev/include-outbound-cidrs", capture.include_cidrs.text()),
        ("weft.dev/exclude-outbound-cidrs", capture.exclude_cidrs.join(",")),
        ("weft.dev/exclude-interfaces", capture.exclude_interfaces.join(",")),
        (
            "weft.dev/interception-mode",
            environment::interception(plan.overrides.interception).to_owned(),
        ),
    ]
}

/// At most ten warnings of at most 120 characters, on one line each (INJ-128).
pub(crate) fn limit(warnings: &mut Vec<String>) {
    const MOST: usize = 10;
    const LENGTH: usize = 120;
    let mut seen = std::collections::BTreeSet::new();
    warnings.retain(|warning| seen.insert(warning.clone()));
    if warnings.len() > MOST {
        let rest = warnings.len() - (MOST - 1);
        warnings.truncate(MOST - 1);
        warnings.push(format!("{rest} more"));
    }
    for warning in warnings {
        *warning = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if warning.chars().count() > LENGTH {
            *warning = warning.chars().take(LENGTH - 3).collect::<String>() + "...";
        }
    }
}
