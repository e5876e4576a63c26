//! The pod with its sidecar (sections E to K): a pure function from a pod to a pod.
//!
//! Injection first takes everything out that an earlier injection put in, then puts it in anew, so that injecting
//! twice is injecting once, whatever other webhooks did in between (INJ-120).

use json_patch::Patch;
use serde_json::Value;
use weft_bundle::key::{
    self, CONFIG_KEY_ANNOTATION, ContainerPort, InterceptionMode, KeyInputs, Owner, PodShape, STATUS_ANNOTATION,
    Template,
};
use weft_bundle::pack::credential_shards;

use crate::annotations::{Overrides, Violation};
use crate::config::{InjectConfig, NativeSidecar};
use crate::patch;
use crate::pod::{
    self, Malformed, annotations, at, check_outline, labels, list_at, list_mut, name, object_mut, str_at,
};

pub use self::status::Status;
pub(crate) use self::status::limit as limit_warnings;

mod checks;
mod container;
mod environment;
mod overlay;
mod probes;
mod scrape;
mod status;
mod strip;
mod volumes;

/// What the pod itself does not say.
#[derive(Debug, Clone, Default)]
pub struct Context<'a> {
    /// Namespace that the pod will be in.
    pub namespace: &'a str,
    /// The nodes can run native sidecars; asked with `nativeSidecar: auto` alone (INJ-052).
    pub native_supported: bool,
    /// The controller, for a pod template that is injected before a controller made a pod of it (INJ-190). `None`
    /// takes it from `metadata.ownerReferences`.
    pub workload: Option<Workload>,
    /// Warnings of the decision, kept with those of injection.
    pub warnings: Vec<String>,
}

/// The workload that a pod belongs to (INJ-071).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// For example `apps/v1`.
    pub api_version: String,
    /// For example `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A pod with a sidecar.
#[derive(Debug, Clone)]
pub struct Injected {
    /// The whole pod.
    pub pod: Value,
    /// What leads from the pod as it came to [`Injected::pod`].
    pub patch: Patch,
    /// For the user, at most ten, each of at most 120 characters (INJ-128).
    pub warnings: Vec<String>,
    /// The key of the pod's configuration (DLV-010).
    pub key: String,
    /// What the key is the hash of.
    pub inputs: KeyInputs,
}

/// Why a pod that should be injected is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no pod.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Annotations that cannot be honoured: all of them, sorted by key (INJ-172).
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Annotations(Vec<Violation>),
    /// A user's container mounts a volume of Weft's (ID-141).
    #[error("container {container}: mounts volume {volume}, which is for Weft's containers alone; remove the mount")]
    ForeignMount {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// The pod has a volume of its own with a name of Weft's.
    #[error("volume {0}: the name is reserved for Weft; use another name")]
    ReservedVolume(String),
    /// An overlay mounts something over what the proxy needs (INJ-184).
    #[error("container {container}: a mount at {path} hides the proxy's own files; mount it elsewhere")]
    HiddenFiles {
        /// The overlay.
        container: String,
        /// The mount's path.
        path: String,
    },
    /// `identity.strictIsolation` (ID-129).
    #[error("container {container}: {field} gives it access to the proxy's key; use another user")]
    KeyExposure {
        /// The container.
        container: String,
        /// The field and its value.
        field: String,
    },
}

impl Refusal {
    /// The metric label (INJ-211).
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Annotations(_) => "annotations",
            Self::ForeignMount { .. } => "foreign_mount",
            Self::ReservedVolume(_) => "reserved_volume",
            Self::HiddenFiles { .. } => "hidden_files",
            Self::KeyExposure { .. } => "key_exposure",
        }
    }
}

/// Injects the sidecar. Whether the pod should get one is [`decide`](crate::decide::decide)'s business.
///
/// # Errors
/// [`Refusal`]: the pod must not start as it is.
pub fn inject(raw: &Value, context: &Context<'_>, config: &InjectConfig) -> Result<Injected, Refusal> {
    check_outline(raw)?;
    let mut pod = raw.clone();
    strip::strip(&mut pod);
    checks::reserved_volumes(&pod)?;

    let mut warnings = context.warnings.clone();
    let overrides = Overrides::parse(&annotations(&pod), config, &mut warnings).map_err(Refusal::Annotations)?;
    let overlays = overlay::take(&mut pod);
    checks::foreign_mounts(&pod)?;
    if config.strict_isolation {
        checks::isolation(&pod)?;
    }
    checks::warn(&pod, &mut warnings);

    let workload = context.workload.clone().unwrap_or_else(|| workload(&pod));
    let plan = Plan::new(&pod, context, config, overrides, workload);
    overlay::check(&overlays, &plan)?;
    volumes::check_user_volumes(&pod, &plan)?;

    let probers = if plan.rewrites_probes() {
        probes::rewrite(&mut pod, &plan.overrides, &mut warnings)
    } else {
        probes::Probers::new()
    };
    let scraped = scrape::merge(&mut pod, &plan.overrides)?;
    let proxy = container::proxy(&plan, &pod, &overlays, &probers, scraped.as_deref(), &mut warnings);
    let redirect = container::redirect(&plan, &overlays);
    let mut status = Status::new(&plan);
    place(&mut pod, &plan, proxy, redirect, &mut status);
    volumes::add(&mut pod, &plan, &mut status);
    add_pull_secrets(&mut pod, config, &mut status);
    if plan.template() == Template::Gateway {
        allow_low_ports(&mut pod, config);
    }
    status::write(&mut pod, &plan, &status, &overlays, &mut warnings);

    // Equal as JSON is equal byte for byte: fields keep the order they came in.
    let pod = if pod == *raw { raw.clone() } else { pod };
    let patch = patch::diff(raw, &pod);
    Ok(Injected {
        pod,
        patch,
        warnings,
        key: plan.key,
        inputs: plan.inputs,
    })
}

/// Takes out what injection put in, and gives the probes and scrape annotations back (INJ-194). A pod that was not
/// injected stays as it is.
///
/// # Errors
/// [`Refusal::Malformed`] when it is no pod.
pub fn uninject(raw: &Value) -> Result<Value, Refusal> {
    check_outline(raw)?;
    let mut pod = raw.clone();
    strip::strip(&mut pod);
    for annotation in [CONFIG_KEY_ANNOTATION, status::INJECTED_REV_ANNOTATION] {
        if at(raw, "metadata.annotations").is_some_and(|all| all.get(STATUS_ANNOTATION).is_some()) {
            object_mut(&mut pod, "metadata.annotations").remove(annotation);
        }
    }
    pod::drop_empty(&mut pod, "metadata.annotations");
    Ok(pod)
}

/// Everything that is settled before the first change.
pub(crate) struct Plan<'a> {
    config: &'a InjectConfig,
    overrides: Overrides,
    namespace: &'a str,
    workload: Workload,
    native: bool,
    service_account: String,
    grace_seconds: u64,
    fs_group: bool,
    pod_level_resources: bool,
    user_containers: Vec<String>,
    inputs: KeyInputs,
    key: String,
}

impl<'a> Plan<'a> {
    fn new(
        pod: &Value,
        context: &Context<'a>,
        config: &'a InjectConfig,
        overrides: Overrides,
        workload: Workload,
    ) -> Self {
        let service_account = str_at(pod, "spec.serviceAccountName")
            .filter(|name| !name.is_empty())
            .unwrap_or("default");
        let user_containers: Vec<_> = list_at(pod, "spec.containers")
            .iter()
            .map(|container| name(container).to_owned())
            .collect();
        let inputs = KeyInputs::new(&PodShape {
            namespace: context.namespace,
            workload: &workload.name,
            service_account,
            revision: &config.revision,
            labels: &labels(pod),
            annotations: &annotations(pod),
            ports: &container_ports(pod),
            interception: overrides.interception,
            template: overrides.template,
            ignored_labels: &config.ignored_labels,
        });
        let form = overrides.native.unwrap_or(match config.native_sidecar {
            NativeSidecar::Auto => context.native_supported,
            NativeSidecar::Always => true,
            NativeSidecar::Never => false,
        });
        Self {
            config,
            namespace: context.namespace,
            // An API server refuses a pod without ordinary containers (INJ-058); a gateway's is one (INJ-187).
            native: form && overrides.template == Template::Sidecar && !user_containers.is_empty(),
            service_account: service_account.to_owned(),
            grace_seconds: at(pod, "spec.terminationGracePeriodSeconds")
                .and_then(Value::as_u64)
                .unwrap_or(30),
            fs_group: at(pod, "spec.securityContext.fsGroup").is_some(),
            pod_level_resources: ["requests", "limits"].iter().any(|kind| {
                at(pod, &format!("spec.resources.{kind}"))
                    .and_then(Value::as_object)
                    .is_some_and(|map| !map.is_empty())
            }),
            user_containers,
            key: inputs.key(),
            inputs,
            overrides,
            workload,
        }
    }

    fn template(&self) -> Template {
        self.overrides.template
    }

    /// A gateway has no probes but its own (INJ-187).
    fn rewrites_probes(&self) -> bool {
        self.overrides.rewrite_probes && self.template() == Template::Sidecar
    }

    /// Secrets of credentials that the pod mounts (DLV-151).
    fn tls_shards(&self) -> usize {
        let default = || credential_shards(self.template());
        self.config.tls_shards.unwrap_or_else(default)
    }

    /// Whether an init container sets or checks the redirect (INJ-055, INJ-187).
    fn redirects(&self) -> bool {
        self.template() == Template::Sidecar && self.overrides.interception != InterceptionMode::None
    }

    /// The container form holds the application back (INJ-110).
    fn holds_application(&self) -> bool {
        let asked = self
            .overrides
            .proxy_config
            .hold_application
            .unwrap_or(self.config.hold_application || self.config.mesh.hold_application);
        asked && !self.native && self.template() == Template::Sidecar
    }
}

/// Puts the containers where their form wants them (INJ-050, INJ-051). The user's keep their order.
fn place(pod: &mut Value, plan: &Plan<'_>, proxy: Value, redirect: Option<Value>, status: &mut Status) {
    if plan.native {
        let init = list_mut(pod, "spec.initContainers");
        status
            .init_containers
            .extend(redirect.iter().map(|container| name(container).to_owned()));
        status.init_containers.push(name(&proxy).to_owned());
        init.splice(0..0, redirect.into_iter().chain([proxy]));
        return;
    }
    if let Some(redirect) = redirect {
        let init = list_mut(pod, "spec.initContainers");
        status.init_containers.push(name(&redirect).to_owned());
        let end = if plan.config.cni { 0 } else { init.len() };
        init.insert(end, redirect);
    }
    let containers = list_mut(pod, "spec.containers");
    status.containers.push(name(&proxy).to_owned());
    let end = if plan.holds_application() { 0 } else { containers.len() };
    containers.insert(end, proxy);
}

fn add_pull_secrets(pod: &mut Value, config: &InjectConfig, status: &mut Status) {
    for secret in &config.image_pull_secrets {
        let present = list_at(pod, "spec.imagePullSecrets")
            .iter()
            .any(|reference| name(reference) == secret);
        if !present {
            list_mut(pod, "spec.imagePullSecrets").push(serde_json::json!({ "name": secret }));
            status.image_pull_secrets.push(secret.clone());
        }
    }
}

/// A gateway's ports are what its Gateway says, 80 and 443 among them (INJ-187).
fn allow_low_ports(pod: &mut Value, config: &InjectConfig) {
    const SYSCTL: &str = "net.ipv4.ip_unprivileged_port_start";
    let present = list_at(pod, "spec.securityContext.sysctls")
        .iter()
        .any(|sysctl| name(sysctl) == SYSCTL);
    if !present && !config.gateway_security_context {
        list_mut(pod, "spec.securityContext.sysctls").push(serde_json::json!({ "name": SYSCTL, "value": "0" }));
    }
}

/// The workload of a pod, from the pod alone.
fn workload(pod: &Value) -> Workload {
    let controller = list_at(pod, "metadata.ownerReferences")
        .iter()
        .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true));
    let owner = controller.and_then(|owner| {
        Some(Owner {
            kind: str_at(owner, "kind")?,
            name: str_at(owner, "name")?,
        })
    });
    let (kind, name) = key::workload_name(
        owner,
        &labels(pod),
        str_at(pod, "metadata.name").unwrap_or_default(),
        str_at(pod, "metadata.generateName").unwrap_or_default(),
    );
    let api_version = match kind.as_str() {
        "Pod" => "v1",
        "Deployment" => "apps/v1",
        "CronJob" => "batch/v1",
        "Rollout" => "argoproj.io/v1alpha1",
        "DeploymentConfig" => "apps.openshift.io/v1",
        _ => controller.and_then(|owner| str_at(owner, "apiVersion")).unwrap_or("v1"),
    };
    Workload {
        api_version: api_version.to_owned(),
        kind,
        name,
    }
}

/// Ports of the user's containers, of both lists.
fn container_ports(pod: &Value) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    for list in ["spec.containers", "spec.initContainers"] {
        for port in list_at(pod, list)
            .iter()
            .flat_map(|container| list_at(container, "ports"))
        {
            let number = at(port, "containerPort")
                .and_then(Value::as_u64)
                .and_then(|port| u16::try_from(port).ok());
            let Some(number) = number else { continue };
            ports.push(ContainerPort {
                name: name(port).to_owned(),
                port: number,
                protocol: str_at(port, "protocol").unwrap_or("TCP").to_owned(),
            });
        }
    }
    ports.sort();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests;
