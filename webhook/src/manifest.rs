//! Manifests with pod templates: what `weft inject` and `weft uninject` do to a document (INJ-190 to INJ-194).

use serde_json::Value;
use weft_bundle::key::{Owner, workload_name};

use crate::config::InjectConfig;
use crate::decide::{Decision, Namespace, Skip, decide};
use crate::inject::{Context, Refusal, Workload, inject, uninject};
use crate::pod::{labels, str_at};

/// What became of one object.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has no pod template: pass it through as it is.
    Other,
    /// It was left as it is, for this reason.
    Skipped(Skip),
    /// The whole object with its injected template.
    Injected {
        /// The object.
        object: Box<Value>,
        /// For the user.
        warnings: Vec<String>,
    },
}

/// Path from an object of a kind to its pod template; `None` for kinds without one. A Pod is its own.
#[must_use]
pub fn template_pointer(object: &Value) -> Option<&'static str> {
    match str_at(object, "kind")? {
        "Pod" => Some(""),
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicationController"
        | "Job"
        | "DeploymentConfig" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Injects the pod template of an object, as the webhook would inject its pods. `context.workload` is taken from the
/// object itself. A `List` is the caller's to take apart.
///
/// # Errors
/// [`Refusal`] of the template.
pub fn inject_object(
    object: &Value,
    namespace: Namespace<'_>,
    context: &Context<'_>,
    config: &InjectConfig,
) -> Result<Outcome, Refusal> {
    let Some((pointer, template)) = template_of(object) else {
        return Ok(Outcome::Other);
    };
    let mut warnings = match decide(namespace, template, config) {
        Decision::Skip { reason, .. } => return Ok(Outcome::Skipped(reason)),
        Decision::Inject { warnings } => warnings,
    };
    warnings.splice(0..0, context.warnings.iter().cloned());
    let context = Context {
        workload: workload(object, template),
        warnings,
        ..context.clone()
    };
    let injected = inject(template, &context, config)?;
    let mut object = object.clone();
    if let Some(template) = object.pointer_mut(pointer) {
        *template = injected.pod;
    }
    Ok(Outcome::Injected {
        object: Box::new(object),
        warnings: injected.warnings,
    })
}

/// Takes the sidecar out of an object's pod template; `None` for kinds without one.
///
/// # Errors
/// [`Refusal`] of the template.
pub fn uninject_object(object: &Value) -> Result<Option<Value>, Refusal> {
    let Some((pointer, template)) = template_of(object) else {
        return Ok(None);
    };
    let bare = uninject(template)?;
    let mut object = object.clone();
    if let Some(template) = object.pointer_mut(pointer) {
        *template = bare;
    }
    Ok(Some(object))
}

fn template_of(object: &Value) -> Option<(&'static str, &Value)> {
    let pointer = template_pointer(object)?;
    Some((pointer, object.pointer(pointer)?))
}

/// The workload of the pods that a controller will make of the template. `None` for a Pod, which says it itself.
fn workload(object: &Value, template: &Value) -> Option<Workload> {
    let kind = str_at(object, "kind").filter(|kind| *kind != "Pod")?;
    let name = str_at(object, "metadata.name").unwrap_or_default();
    let api_version = str_at(object, "apiVersion").unwrap_or_default();
    let (kind, name, api_version) = match kind {
        // The controllers of these make other controllers, which own the pods.
        "Deployment" | "CronJob" | "DeploymentConfig" => (kind.to_owned(), name.to_owned(), api_version),
        _ => {
            let (owner, name) = workload_name(Some(Owner { kind, name }), &labels(template), "", "");
            let api_version = match owner.as_str() {
                "CronJob" => "batch/v1",
                "DeploymentConfig" => "apps.openshift.io/v1",
                _ => api_version,
            };
            (owner, name, api_version)
        }
    };
    Some(Workload {
        api_version: api_version.to_owned(),
        kind,
        name,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "forecast", "namespace": "shop"},
            "spec": {"replicas": 2, "template": {
                "metadata": {"labels": {"app": "forecast"}},
                "spec": {"containers": [{"name": "app", "image": "app:1", "livenessProbe": {"tcpSocket": {"port": 80}}}]},
            }},
        })
    }

    fn run(object: &Value) -> Outcome {
        let context = Context {
            namespace: "shop",
            native_supported: true,
            ..Context::default()
        };
        inject_object(
            object,
            Namespace {
                name: "shop",
                labels: None,
            },
            &context,
            &InjectConfig::new("i"),
        )
        .expect("injects")
    }

    fn injected(object: &Value) -> Value {
        match run(object) {
            Outcome::Injected { object, .. } => *object,
            other => panic!("{other:?}"),
        }
    }

    // spec: INJ-190, INJ-193
    #[test]
    fn a_template_that_meets_the_webhook_comes_out_as_if_the_webhook_alone_had_injected_it() {
        let manual = injected(&deployment());
        assert_eq!(injected(&manual), manual);
        let pod_of = |deployment: &Value| {
            let mut pod = deployment["spec"]["template"].clone();
            pod["metadata"]["labels"]["pod-template-hash"] = json!("abc");
            pod["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "forecast-abc", "controller": true}]);
            pod
        };
        let context = Context {
            namespace: "shop",
            native_supported: true,
            ..Context::default()
        };
        let by_webhook = inject(&pod_of(&deployment()), &context, &InjectConfig::new("i")).expect("injects");
        let after_manual = inject(&pod_of(&manual), &context, &InjectConfig::new("i")).expect("injects");
        assert_eq!(after_manual.pod, by_webhook.pod);
        assert!(after_manual.patch.0.is_empty());
    }

    // spec: INJ-190, INJ-192
    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(run(&json!({"kind": "Service", "spec": {}})), Outcome::Other);
        let mut host = deployment();
        host["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
        assert_eq!(run(&host), Outcome::Skipped(Skip::HostNetwork));
        let template = deployment()["spec"]["template"].clone();
        let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "report"},
            "spec": {"jobTemplate": {"spec": {"template": template}}}});
        let cron = injected(&cron);
        let owner = cron
            .pointer("/spec/jobTemplate/spec/template/spec/initContainers/1/env")
            .expect("environment");
        assert!(
            owner
                .to_string()
                .contains("kubernetes://apis/batch/v1/namespaces/shop/cronjobs/report"),
            "{owner}"
        );
    }

    // spec: INJ-194
    #[test]
    fn uninject_gives_the_probes_back() {
        let bare = uninject_object(&injected(&deployment()))
            .expect("a template")
            .expect("of a Deployment");
        let spec = &bare["spec"]["template"]["spec"];
        assert_eq!(spec, &deployment()["spec"]["template"]["spec"]);
        assert_eq!(uninject_object(&json!({"kind": "Service"})), Ok(None));
    }
}
