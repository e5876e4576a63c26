//! Whether a pod gets a sidecar (sections B, C and D).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::config::InjectConfig;
use crate::pod::{annotations, at, labels, list_at, name, str_at};

/// What is known of the pod's namespace.
#[derive(Debug, Clone, Copy)]
pub struct Namespace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels. `None` in the webhook: there the API server has judged them by the webhook's selectors before it
    /// asked, and the handler reads no Namespace (INJ-202).
    pub labels: Option<&'a BTreeMap<String, String>>,
}

/// The answer for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It gets a sidecar of this injector's revision.
    Inject {
        /// What the labels say that is not understood (INJ-010).
        warnings: Vec<String>,
    },
    /// It is left as it is.
    Skip {
        /// Why.
        reason: Skip,
        /// What the labels say that is not understood.
        warnings: Vec<String>,
    },
}

/// Why a pod is not injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skip {
    /// A namespace of INJ-040.
    ExcludedNamespace(String),
    /// INJ-041.
    HostNetwork,
    /// INJ-042.
    Windows,
    /// INJ-043.
    MirrorPod,
    /// INJ-044; what was found.
    OtherMesh(String),
    /// INJ-021; key and value.
    PodSaysNo(String),
    /// INJ-022; key and value.
    NamespaceSaysNo(String),
    /// INJ-026.
    NeverSelector,
    /// INJ-031, INJ-032: the labels name a revision that another injector serves, or none.
    OtherRevision(String),
    /// INJ-029.
    NotSelected,
}

impl Skip {
    /// The metric label and the audit annotation's word (INJ-211, INJ-213).
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ExcludedNamespace(_) => "excluded_namespace",
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
            Self::MirrorPod => "mirror_pod",
            Self::OtherMesh(_) => "other_mesh",
            Self::PodSaysNo(_) => "pod_says_no",
            Self::NamespaceSaysNo(_) => "namespace_says_no",
            Self::NeverSelector => "never_selector",
            Self::OtherRevision(_) => "other_revision",
            Self::NotSelected => "not_selected",
        }
    }

    /// Whether the user asked for a sidecar and should be told (INJ-041, INJ-044).
    #[must_use]
    pub fn is_surprising(&self) -> bool {
        matches!(self, Self::HostNetwork | Self::Windows | Self::OtherMesh(_))
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExcludedNamespace(namespace) => write!(f, "namespace {namespace} is never injected"),
            Self::HostNetwork => f.write_str("the pod uses the node's network (hostNetwork: true)"),
            Self::Windows => f.write_str("the pod runs on Windows"),
            Self::MirrorPod => f.write_str("the pod is a mirror of a static pod"),
            Self::OtherMesh(marker) => write!(f, "the pod carries another mesh's proxy: {marker}"),
            Self::PodSaysNo(key) => write!(f, "pod {key}"),
            Self::NamespaceSaysNo(key) => write!(f, "namespace {key}"),
            Self::NeverSelector => f.write_str("injection.neverInjectSelector matches"),
            Self::OtherRevision(revision) => write!(
                f,
                "revision {revision} is asked for, which this injector does not serve"
            ),
            Self::NotSelected => f.write_str("no label asks for a sidecar"),
        }
    }
}

/// Applies sections B to D to a pod.
#[must_use]
pub fn decide(namespace: Namespace<'_>, pod: &Value, config: &InjectConfig) -> Decision {
    let mut warnings = Vec::new();
    match judge(namespace, pod, config, &mut warnings) {
        Ok(()) => Decision::Inject { warnings },
        Err(reason) => Decision::Skip { reason, warnings },
    }
}

fn judge(namespace: Namespace<'_>, pod: &Value, config: &InjectConfig, warnings: &mut Vec<String>) -> Result<(), Skip> {
    never(namespace.name, pod, config)?;
    let pod_labels = labels(pod);
    let pod_word = pod_inject(&pod_labels, pod, config, warnings);
    if let Some(Word { yes: false, key }) = pod_word {
        return Err(Skip::PodSaysNo(key));
    }
    let Some(ns_labels) = namespace.labels else {
        // The webhook's selectors stand for every row but this one.
        if pod_word.is_none() && config.never_inject.iter().any(|selector| selector.matches(&pod_labels)) {
            return Err(Skip::NeverSelector);
        }
        return Ok(());
    };
    let ns_word = namespace_inject(ns_labels, config, warnings);
    if let Some(Word { yes: false, key }) = ns_word {
        return Err(Skip::NamespaceSaysNo(key));
    }
    let by_istio_injection = ns_word
        .as_ref()
        .is_some_and(|word| word.key.starts_with("istio-injection"));
    let ns_revision = revision(ns_labels, config, by_istio_injection);
    let pod_revision = revision(&pod_labels, config, by_istio_injection);
    if pod_word.is_none() && config.never_inject.iter().any(|selector| selector.matches(&pod_labels)) {
        return Err(Skip::NeverSelector);
    }
    let selected = pod_word.is_some()
        || ns_word.is_some()
        || ns_revision.is_some()
        || pod_revision.is_some()
        || config
            .always_inject
            .iter()
            .any(|selector| selector.matches(&pod_labels))
        || config.enabled_by_default;
    if !selected {
        return Err(Skip::NotSelected);
    }
    let wanted = ns_revision.or(pod_revision).unwrap_or("default");
    if config.serves(wanted) {
        Ok(())
    } else {
        Err(Skip::OtherRevision(wanted.to_owned()))
    }
}

/// Section D: pods that no label can bring into the mesh.
fn never(namespace: &str, pod: &Value, config: &InjectConfig) -> Result<(), Skip> {
    let excluded = EXCLUDED_NAMESPACES.contains(&namespace)
        || namespace == config.control_plane_namespace
        || config.excluded_namespaces.iter().any(|excluded| excluded == namespace);
    if excluded {
        return Err(Skip::ExcludedNamespace(namespace.to_owned()));
    }
    if at(pod, "spec.hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Err(Skip::HostNetwork);
    }
    let node_os = at(pod, "spec.nodeSelector")
        .and_then(|selector| selector.get("kubernetes.io/os"))
        .and_then(Value::as_str);
    if str_at(pod, "spec.os.name") == Some("windows") || node_os == Some("windows") {
        return Err(Skip::Windows);
    }
    let annotations = annotations(pod);
    if annotations.contains_key("kubernetes.io/config.mirror") {
        return Err(Skip::MirrorPod);
    }
    for kind in ["containers", "initContainers"] {
        for container in list_at(pod, &format!("spec.{kind}")) {
            let other = match name(container) {
                "linkerd-proxy" => true,
                "istio-proxy" => str_at(container, "image") != Some("auto"),
                _ => false,
            };
            if other {
                return Err(Skip::OtherMesh(format!("container {}", name(container))));
            }
        }
    }
    let ours = annotations.contains_key(weft_bundle::key::STATUS_ANNOTATION);
    for marker in ["sidecar.istio.io/status", "linkerd.io/proxy-version"] {
        if annotations.contains_key(marker) && !(ours && marker == "sidecar.istio.io/status") {
            return Err(Skip::OtherMesh(format!("annotation {marker}")));
        }
    }
    Ok(())
}

/// A level's explicit yes or no, and the key that says it.
struct Word {
    yes: bool,
    key: String,
}

fn namespace_inject(
    labels: &BTreeMap<String, String>,
    config: &InjectConfig,
    warnings: &mut Vec<String>,
) -> Option<Word> {
    if let Some(value) = labels.get("weft.dev/inject") {
        let key = format!("weft.dev/inject={value}");
        match value.as_str() {
            "enabled" | "true" => return Some(Word { yes: true, key }),
            "disabled" | "false" => return Some(Word { yes: false, key }),
            _ => warnings.push(format!(
                "namespace label weft.dev/inject: {value:?} ignored; must be enabled or disabled"
            )),
        }
    }
    let value = labels.get("istio-injection").filter(|_| config.istio_labels)?;
    Some(Word {
        yes: value == "enabled",
        key: format!("istio-injection={value}"),
    })
}

fn pod_inject(
    labels: &BTreeMap<String, String>,
    pod: &Value,
    config: &InjectConfig,
    warnings: &mut Vec<String>,
) -> Option<Word> {
    const ISTIO: &str = "sidecar.istio.io/inject";
    let keys = std::iter::once("weft.dev/inject").chain(config.istio_labels.then_some(ISTIO));
    for key in keys {
        let Some(value) = labels.get(key) else { continue };
        match value.as_str() {
            "true" | "false" => {
                return Some(Word {
                    yes: value == "true",
                    key: format!("{key}={value}"),
                });
            }
            _ => warnings.push(format!("pod label {key}: {value:?} ignored; must be true or false")),
        }
    }
    // No selector sees an annotation, so it can only take the pod out (INJ-013).
    let annotation = annotations(pod).get(ISTIO).cloned().filter(|_| config.istio_labels)?;
    (annotation == "false").then(|| Word {
        yes: false,
        key: format!("annotation {ISTIO}=false"),
    })
}

/// The revision that a level names. Next to `istio-injection=enabled` an `istio.io/rev` does not count (INJ-031).
fn revision<'a>(
    labels: &'a BTreeMap<String, String>,
    config: &InjectConfig,
    by_istio_injection: bool,
) -> Option<&'a str> {
    let istio = || {
        labels
            .get("istio.io/rev")
            .filter(|_| config.istio_labels && !by_istio_injection)
    };
    labels.get("weft.dev/rev").or_else(istio).map(String::as_str)
}

/// Namespaces that are never injected, besides the control plane's and those of the settings (INJ-040).
pub const EXCLUDED_NAMESPACES: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

#[cfg(test)]
mod tests;
