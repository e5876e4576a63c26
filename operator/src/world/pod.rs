//! Pods and pod templates: their keys, and whether they get a sidecar.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_bundle::key::pod::{interception_mode, is_user_container, mode, template as template_of};
use weft_bundle::key::{
    CONFIG_KEY_ANNOTATION, ContainerPort, InterceptionMode, KeyInputs, Owner, PodShape, workload_name,
};

use super::{Object, World};

/// The pods that a workload makes.
#[derive(Debug, Clone)]
pub struct Template {
    /// Namespace.
    pub namespace: String,
    /// Name of the workload.
    pub workload: String,
    /// Labels, annotations and the rest of the pods.
    pub pod: Arc<PodTemplateSpec>,
}

/// The template of a workload; `None` for other objects, and for those whose controller has one itself.
#[must_use]
pub(super) fn template(object: &Object) -> Option<Template> {
    let (metadata, pod): (&ObjectMeta, Option<&PodTemplateSpec>) = match object {
        Object::Deployment(o) => (&o.metadata, o.spec.as_ref().map(|s| &s.template)),
        Object::ReplicaSet(o) => (&o.metadata, o.spec.as_ref().and_then(|s| s.template.as_ref())),
        Object::StatefulSet(o) => (&o.metadata, o.spec.as_ref().map(|s| &s.template)),
        Object::DaemonSet(o) => (&o.metadata, o.spec.as_ref().map(|s| &s.template)),
        Object::Job(o) => (&o.metadata, o.spec.as_ref().map(|s| &s.template)),
        Object::CronJob(o) => (&o.metadata, o.spec.job_template.spec.as_ref().map(|s| &s.template)),
        _ => return None,
    };
    let is_owned = metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true));
    if is_owned {
        return None;
    }
    Some(Template {
        namespace: metadata.namespace.clone()?,
        workload: metadata.name.clone()?,
        pod: Arc::new(pod?.clone()),
    })
}

/// Inputs of the key of a template's pods.
#[must_use]
pub fn template_inputs(template: &Template, world: &World) -> KeyInputs {
    let metadata = template.pod.metadata.clone().unwrap_or_default();
    inputs(
        &template.namespace,
        &template.workload,
        &metadata,
        template.pod.spec.as_ref(),
        world,
    )
}

/// Inputs of the key of a pod, as it was created.
#[must_use]
pub fn pod_inputs(pod: &Pod, world: &World) -> KeyInputs {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    inputs(namespace, &workload(pod), &pod.metadata, pod.spec.as_ref(), world)
}

/// Name of the workload of a pod (INJ-071).
#[must_use]
pub fn workload(pod: &Pod) -> String {
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true));
    let owner = owner.map(|o| Owner {
        kind: &o.kind,
        name: &o.name,
    });
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    workload_name(
        owner,
        labels,
        name,
        pod.metadata.generate_name.as_deref().unwrap_or_default(),
    )
    .1
}

fn inputs(namespace: &str, workload: &str, metadata: &ObjectMeta, spec: Option<&PodSpec>, world: &World) -> KeyInputs {
    let none = BTreeMap::new();
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    let default = world
        .mesh
        .default_config
        .as_ref()
        .and_then(|c| c.interception_mode.as_deref())
        .and_then(mode);
    KeyInputs::new(&PodShape {
        namespace,
        workload,
        service_account: spec.and_then(|s| s.service_account_name.as_deref()).unwrap_or_default(),
        revision: &world.settings.revision,
        labels: metadata.labels.as_ref().unwrap_or(&none),
        annotations,
        ports: &spec.map(ports).unwrap_or_default(),
        interception: interception_mode(annotations, default.unwrap_or(InterceptionMode::Redirect)),
        template: template_of(annotations),
        ignored_labels: &world.settings.ignored_labels,
    })
}

/// Ports of the user's containers.
fn ports(spec: &PodSpec) -> Vec<ContainerPort> {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let user = all.filter(|c| is_user_container(&c.name, c.image.as_deref().unwrap_or_default()));
    user.flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some(ContainerPort {
                name: p.name.clone().unwrap_or_default(),
                port: u16::try_from(p.container_port).ok()?,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

/// Service account of a pod or template.
#[must_use]
pub fn service_account(spec: Option<&PodSpec>) -> &str {
    spec.and_then(|s| s.service_account_name.as_deref())
        .filter(|a| !a.is_empty())
        .unwrap_or("default")
}

/// The key that a pod was injected with; `None` without a sidecar of this mesh.
#[must_use]
pub fn config_key(pod: &Pod) -> Option<&str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(CONFIG_KEY_ANNOTATION)
        .map(String::as_str)
}

/// Whether pods of a template will be injected by this revision (INJ-020 ff.).
#[must_use]
pub fn is_injected(template: &Template, world: &World) -> bool {
    let metadata = template.pod.metadata.as_ref();
    let labels = metadata.and_then(|m| m.labels.as_ref());
    let host_network = template.pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    if host_network || is_excluded(&template.namespace, world) {
        return false;
    }
    let pod = choice(labels, &[("weft.dev/inject", true), ("sidecar.istio.io/inject", false)]);
    let annotation = metadata
        .and_then(|m| m.annotations.as_ref())
        .and_then(|a| a.get("sidecar.istio.io/inject"));
    if pod == Some(false) || (pod.is_none() && annotation.is_some_and(|a| a == "false")) {
        return false;
    }
    let namespace = world.namespace_labels(&template.namespace);
    let own = choice(namespace, &[("weft.dev/inject", true)]);
    let istio = namespace.and_then(|l| l.get("istio-injection")).map(|v| v == "enabled");
    let revision = |l: Option<&BTreeMap<String, String>>| {
        l.and_then(|l| l.get("weft.dev/rev").or_else(|| l.get("istio.io/rev")))
            .cloned()
    };
    let by_namespace = own.or(istio);
    if by_namespace == Some(false) {
        return false;
    }
    // Beside `istio-injection: enabled` a revision is ignored (INJ-031).
    let named = if istio == Some(true) && own.is_none() {
        None
    } else {
        revision(namespace).or_else(|| revision(labels))
    };
    let is_ours = named
        .as_ref()
        .is_none_or(|revision| *revision == world.settings.revision);
    let wanted =
        pod == Some(true) || by_namespace == Some(true) || named.is_some() || world.settings.enabled_by_default;
    wanted && is_ours
}

/// Namespaces without injection (INJ-040).
#[must_use]
pub fn is_excluded(namespace: &str, world: &World) -> bool {
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"].contains(&namespace)
        || namespace == world.settings.namespace
        || world.settings.excluded_namespaces.iter().any(|n| n == namespace)
}

/// What labels say, the first valid key deciding; `enabled` and `disabled` count where `words`.
fn choice(labels: Option<&BTreeMap<String, String>>, keys: &[(&str, bool)]) -> Option<bool> {
    keys.iter()
        .find_map(|(key, words)| match (labels?.get(*key)?.as_str(), words) {
            ("true", _) | ("enabled", true) => Some(true),
            ("false", _) | ("disabled", true) => Some(false),
            _ => None,
        })
}

/// Whether a namespace asks for injection by this revision by itself.
#[must_use]
pub fn namespace_is_injected(namespace: &str, world: &World) -> bool {
    let pod = Arc::new(PodTemplateSpec::default());
    let bare = Template {
        namespace: namespace.to_owned(),
        workload: String::new(),
        pod,
    };
    is_injected(&bare, world)
}
