//! Which pods share one configuration, and the names of the objects that carry it.
//!
//! Webhook and operator call the same functions, so that the webhook can mount what the operator is about to write
//! and neither asks the other (DLV-010, INJ-100).

use std::collections::BTreeMap;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub mod pod;

/// Label that marks a pod whose sidecar accepts mesh mTLS (ID-093).
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";
/// Label that overrides the canonical service name (SM-007, INJ-090).
pub const CANONICAL_NAME_LABEL: &str = "service.istio.io/canonical-name";
/// Label that overrides the canonical revision (SM-007, INJ-090).
pub const CANONICAL_REVISION_LABEL: &str = "service.istio.io/canonical-revision";
/// Annotation of an injected pod: the key of its configuration (INJ-091).
pub const CONFIG_KEY_ANNOTATION: &str = "weft.dev/config-key";
/// Annotation of an injected pod: what injection added, as JSON (INJ-007).
pub const STATUS_ANNOTATION: &str = "weft.dev/status";
/// Annotation that the operator patches to make the kubelet refresh the volumes at once (DLV-051).
pub const TARGET_REV_ANNOTATION: &str = "weft.dev/target-rev";
/// Label of every object that the operator renders (DLV-007).
pub const MANAGED_LABEL: &str = "weft.dev/managed";
/// Label of every object that the operator renders: the revision that owns it (DLV-007).
pub const REVISION_LABEL: &str = "weft.dev/rev";
/// Name of the unnamed revision.
pub const DEFAULT_REVISION: &str = "default";

/// What a sidecar is injected as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// Beside an application, with a redirect.
    #[default]
    Sidecar,
    /// A gateway: listeners of its own, no redirect (INJ-187).
    Gateway,
}

/// How traffic reaches the proxy (INJ-156).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InterceptionMode {
    /// Netfilter REDIRECT.
    #[default]
    Redirect,
    /// Netfilter TPROXY inbound, REDIRECT outbound.
    Tproxy,
    /// No redirect: explicit listeners (LOC-022, NET-138).
    None,
}

/// A port that a user's container declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// Empty when the port has no name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// 1..65535.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Everything that decides the configuration of a pod: pods with equal inputs share one key (DLV-010).
///
/// Stored in `manifest.json` as `inputs` (DLV-017), so that a key can be rendered again from itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInputs {
    /// Those of [`CONFIG_ANNOTATIONS`] that the pod carries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Interception mode.
    pub interception: InterceptionMode,
    /// Labels as injection leaves them, without [`is_ignored_label`]: see [`KeyInputs::new`].
    pub labels: BTreeMap<String, String>,
    /// Namespace of the pod.
    pub namespace: String,
    /// Ports of the user's containers alone, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ContainerPort>,
    /// Revision that injects; [`DEFAULT_REVISION`] for the unnamed one.
    pub revision: String,
    /// Service account; `default` when the pod names none.
    pub service_account: String,
    /// Sidecar or gateway.
    pub template: Template,
    /// Workload name (INJ-071).
    pub workload: String,
}

impl KeyInputs {
    /// Takes labels and ports as they stand on a pod or a pod template, before or after injection: labels that
    /// injection adds are added, labels that differ from pod to pod are left out, annotations without a bearing on
    /// the configuration are dropped, ports are sorted. So a template, a pod before injection and the pod after it
    /// have equal inputs.
    #[must_use]
    pub fn new(pod: &PodShape<'_>) -> Self {
        let mut labels = injected_labels(pod.labels, pod.workload, pod.template);
        labels.retain(|name, _| !is_ignored_label(name) && !pod.ignored_labels.iter().any(|i| i == name));
        let annotations = pod
            .annotations
            .iter()
            .filter(|(name, _)| CONFIG_ANNOTATIONS.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut ports = pod.ports.to_vec();
        ports.sort();
        ports.dedup();
        let or_default = |s: &str| {
            if s.is_empty() {
                "default".to_owned()
            } else {
                s.to_owned()
            }
        };
        Self {
            annotations,
            interception: pod.interception,
            labels,
            namespace: pod.namespace.to_owned(),
            ports,
            revision: or_default(pod.revision),
            service_account: or_default(pod.service_account),
            template: pod.template,
            workload: pod.workload.to_owned(),
        }
    }

    /// The key: the workload name cut to 40 characters, `-`, and 10 characters of a hash of the inputs (DLV-010).
    #[must_use]
    pub fn key(&self) -> String {
        // Field order is alphabetical and maps are sorted, so this is canonical JSON.
        let json = serde_json::to_vec(self).expect("strings, maps with string keys and integers always serialize");
        let mut name: String = self.workload.chars().take(40).collect();
        name.truncate(name.trim_end_matches(['-', '.']).len());
        format!("{name}-{}", short_hash(&json, 10))
    }
}

/// A pod or a pod template, as [`KeyInputs::new`] wants it.
#[derive(Debug, Clone, Copy)]
pub struct PodShape<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Workload name (INJ-071, [`workload_name`]).
    pub workload: &'a str,
    /// `spec.serviceAccountName`, may be empty.
    pub service_account: &'a str,
    /// Revision that injects, may be empty.
    pub revision: &'a str,
    /// Labels of the pod or template.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the pod or template.
    pub annotations: &'a BTreeMap<String, String>,
    /// Ports of the user's containers, without Weft's own.
    pub ports: &'a [ContainerPort],
    /// Interception mode.
    pub interception: InterceptionMode,
    /// Sidecar or gateway.
    pub template: Template,
    /// Further labels to leave out: setting `delivery.ignoredLabels`.
    pub ignored_labels: &'a [String],
}

/// Annotations of a pod that change what is rendered for it.
pub const CONFIG_ANNOTATIONS: &[&str] = &["proxy.istio.io/config"];

/// Labels that controllers or the scheduler add and that differ between the pods of one workload (DLV-011).
#[must_use]
pub fn is_ignored_label(name: &str) -> bool {
    const IGNORED: &[&str] = &[
        "pod-template-hash",
        "rollouts-pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "job-name",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
    ];
    IGNORED.contains(&name) || name.starts_with("topology.kubernetes.io/")
}

/// The labels of a pod as injection leaves them: what is missing of the canonical labels is added, nothing that the
/// user set is changed (INJ-090, INJ-189).
#[must_use]
pub fn injected_labels(
    labels: &BTreeMap<String, String>,
    workload: &str,
    template: Template,
) -> BTreeMap<String, String> {
    let mut out = labels.clone();
    if template == Template::Sidecar {
        out.entry(TLS_MODE_LABEL.to_owned())
            .or_insert_with(|| "istio".to_owned());
    }
    let name = canonical_name(labels, workload);
    out.entry(CANONICAL_NAME_LABEL.to_owned()).or_insert(name);
    let revision = canonical_revision(labels);
    out.entry(CANONICAL_REVISION_LABEL.to_owned()).or_insert(revision);
    out
}

/// Canonical service name of a pod (SM-007), cut to what fits into a label value.
#[must_use]
pub fn canonical_name(labels: &BTreeMap<String, String>, workload: &str) -> String {
    let name = first(labels, &[CANONICAL_NAME_LABEL, "app.kubernetes.io/name", "app"]).unwrap_or(workload);
    let cut: String = name.chars().take(63).collect();
    cut.trim_matches(['-', '_', '.']).to_owned()
}

/// Canonical revision of a pod (SM-007).
#[must_use]
pub fn canonical_revision(labels: &BTreeMap<String, String>) -> String {
    first(
        labels,
        &[CANONICAL_REVISION_LABEL, "app.kubernetes.io/version", "version"],
    )
    .unwrap_or("latest")
    .to_owned()
}

/// The controller of a pod, from its ownerReferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Kind of the controller, for example `ReplicaSet`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Kind and name of the workload that a pod belongs to, derived without asking anybody (INJ-071).
///
/// `pod_name` may be empty at admission, when only `generate_name` is set.
#[must_use]
pub fn workload_name(
    owner: Option<Owner<'_>>,
    labels: &BTreeMap<String, String>,
    pod_name: &str,
    generate_name: &str,
) -> (String, String) {
    let Some(Owner { kind, name }) = owner else {
        // At admission a generated name is not there yet, afterwards it is: both must give one workload.
        let is_generated = !generate_name.is_empty() && pod_name.starts_with(generate_name);
        let name = if pod_name.is_empty() || is_generated {
            generate_name.trim_end_matches('-')
        } else {
            pod_name
        };
        return ("Pod".to_owned(), name.to_owned());
    };
    let without = |label: &str| {
        let hash = labels.get(label)?;
        name.strip_suffix(hash.as_str())?
            .strip_suffix('-')
            .filter(|rest| !rest.is_empty())
    };
    match kind {
        "ReplicaSet" => {
            if let Some(rollout) = without("rollouts-pod-template-hash") {
                return ("Rollout".to_owned(), rollout.to_owned());
            }
            if let Some(deployment) = without("pod-template-hash") {
                return ("Deployment".to_owned(), deployment.to_owned());
            }
        }
        "Job" => {
            if let Some((cron, digits)) = name.rsplit_once('-') {
                let is_schedule = (8..=10).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                if is_schedule && !cron.is_empty() {
                    return ("CronJob".to_owned(), cron.to_owned());
                }
            }
        }
        "ReplicationController" => {
            if let Some(config) = labels.get("deploymentconfig") {
                return ("DeploymentConfig".to_owned(), config.clone());
            }
        }
        _ => {}
    }
    (kind.to_owned(), name.to_owned())
}

/// Name of the ConfigMap that holds shard `n` of a key's configuration (DLV-003).
#[must_use]
pub fn config_name(key: &str, n: usize) -> String {
    format!("weft-cfg-{key}-{n}")
}

/// Name of the ConfigMap that holds endpoint shard `n` of a namespace (DLV-004, DLV-016).
#[must_use]
pub fn endpoints_name(revision: &str, namespace: &str, n: usize) -> String {
    format!("weft-ep-{revision}-{}-{n}", short_hash(namespace.as_bytes(), 8))
}

/// Name of the Secret that holds shard `n` of a key's credentials (DLV-015).
#[must_use]
pub fn credentials_name(key: &str, n: usize) -> String {
    format!("weft-tls-{key}-{n}")
}

/// Name of the files of a credential without their ending: the Secret that it is copied from, whatever is in it (DLV-152).
#[must_use]
pub fn credential_stem(namespace: &str, name: &str) -> String {
    let mut hex = data_encoding::HEXLOWER.encode(&Sha256::digest(format!("{namespace}/{name}")));
    hex.truncate(16);
    hex
}

/// The same of a Secret that a DestinationRule names (DR-114). A Gateway may use the Secret for clients, with other
/// authorities: who writes a rule must not choose those.
#[must_use]
pub fn upstream_stem(namespace: &str, name: &str) -> String {
    credential_stem("upstream:", &format!("{namespace}/{name}"))
}

/// The same of a ConfigMap (DR-114); a Secret of its name has other files.
#[must_use]
pub fn config_map_stem(namespace: &str, name: &str) -> String {
    credential_stem("configmap:", &format!("{namespace}/{name}"))
}

/// File of a shard of credentials that lists, a line each, the stems of what the configuration names, whether it is there
/// or not: a proxy tells from it what has left the copy from what the next configuration names no more.
#[must_use]
pub fn credentials_index(n: usize) -> String {
    format!("index-{n}")
}

/// Whether a file of the volume of credentials is a [`credentials_index`].
#[must_use]
pub fn is_credentials_index(file: &str) -> bool {
    file.strip_prefix("index-").is_some_and(|n| n.parse::<usize>().is_ok())
}

/// Name of the Secret that holds the identity of a service account (ID-022, ID-023).
#[must_use]
pub fn identity_name(service_account: &str) -> String {
    let name = format!("weft.{service_account}");
    if name.len() <= 253 {
        return name;
    }
    let cut: String = service_account.chars().take(230).collect();
    let digest = Sha256::digest(service_account.as_bytes());
    let hex = data_encoding::HEXLOWER.encode(&digest);
    format!("weft.{}-{}", cut.trim_end_matches(['-', '.']), &hex[..10])
}

fn first<'a>(labels: &'a BTreeMap<String, String>, names: &[&str]) -> Option<&'a str> {
    names
        .iter()
        .find_map(|name| labels.get(*name))
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

/// The first `length` characters of lower-case base32 (RFC 4648, no padding) of SHA-256.
fn short_hash(bytes: &[u8], length: usize) -> String {
    let mut hash = BASE32_NOPAD.encode(&Sha256::digest(bytes)).to_lowercase();
    hash.truncate(length);
    hash
}

#[cfg(test)]
mod tests;
