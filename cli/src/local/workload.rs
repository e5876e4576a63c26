//! What the controllers of a cluster would do: workloads in, pods out (LOC-010).

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// A pod that should run.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedPod {
    /// Namespace.
    pub namespace: String,
    /// Name; equal for as long as the template is.
    pub name: String,
    /// The workload that it belongs to, `Deployment/forecast`; pods that replace each other share it.
    pub workload: String,
    /// The pod as the controller would create it, before admission.
    pub manifest: Value,
}

/// Kinds that [`plan`] takes.
pub const WORKLOAD_KINDS: &[&str] = &["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "Pod"];

/// The pods of a workload.
///
/// # Errors
/// Which field keeps it from having any.
pub fn plan(workload: &Value) -> Result<Vec<PlannedPod>, String> {
    let kind = text(workload, "/kind");
    let (namespace, name) = (text(workload, "/metadata/namespace"), text(workload, "/metadata/name"));
    if kind == "Pod" {
        return Ok(vec![planned(
            namespace,
            name,
            format!("Pod/{name}"),
            workload.clone(),
            None,
        )]);
    }
    let template = workload.pointer("/spec/template").filter(|t| t.is_object());
    let template = template.ok_or_else(|| format!("spec.template is required: the pods of a {kind}"))?;
    let count = match kind {
        "DaemonSet" => 1,
        "Job" => number(workload, "/spec/parallelism").unwrap_or(1),
        _ => number(workload, "/spec/replicas").unwrap_or(1),
    };
    if count > MAX_REPLICAS {
        return Err(format!(
            "asks for {count} pods; one machine runs at most {MAX_REPLICAS} of a workload"
        ));
    }
    let hash = digits(&[namespace, kind, name, &template.to_string()], 10);
    let (owner_kind, owner) = match kind {
        "Deployment" => ("ReplicaSet", format!("{name}-{hash}")),
        other => (other, name.to_owned()),
    };
    let pod = |ordinal: u64| {
        let suffix = digits(&[namespace, kind, name, &hash, &ordinal.to_string()], 5);
        let pod_name = match kind {
            "StatefulSet" => format!("{name}-{ordinal}"),
            _ => format!("{owner}-{suffix}"),
        };
        let mut labels = Map::new();
        match kind {
            "Deployment" => drop(labels.insert("pod-template-hash".into(), hash.clone().into())),
            "StatefulSet" => {
                labels.insert("statefulset.kubernetes.io/pod-name".into(), pod_name.clone().into());
                labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string().into());
                labels.insert("controller-revision-hash".into(), format!("{name}-{hash}").into());
            }
            "DaemonSet" => drop(labels.insert("controller-revision-hash".into(), hash.clone().into())),
            "Job" => {
                labels.insert("batch.kubernetes.io/job-name".into(), name.into());
                labels.insert("job-name".into(), name.into());
            }
            _ => {}
        }
        let reference = json!({
            "apiVersion": if kind == "Job" { "batch/v1" } else { "apps/v1" },
            "kind": owner_kind, "name": owner, "uid": uid(&[namespace, owner_kind, &owner]), "controller": true,
        });
        let mut manifest = template.clone();
        manifest["apiVersion"] = "v1".into();
        manifest["kind"] = "Pod".into();
        let workload = format!("{kind}/{name}");
        planned(namespace, &pod_name, workload, manifest, Some((labels, reference)))
    };
    Ok((0..count).map(pod).collect())
}

fn planned(
    namespace: &str,
    name: &str,
    workload: String,
    mut manifest: Value,
    owner: Option<(Map<String, Value>, Value)>,
) -> PlannedPod {
    if !manifest.get("metadata").is_some_and(Value::is_object) {
        manifest["metadata"] = json!({});
    }
    if !manifest.get("spec").is_some_and(Value::is_object) {
        manifest["spec"] = json!({});
    }
    let metadata = &mut manifest["metadata"];
    metadata["namespace"] = namespace.into();
    metadata["name"] = name.into();
    metadata["uid"] = uid(&[namespace, "Pod", name]).into();
    if let Some((labels, reference)) = owner {
        if !metadata.get("labels").is_some_and(Value::is_object) {
            metadata["labels"] = json!({});
        }
        for (key, value) in labels {
            metadata["labels"][key] = value;
        }
        metadata["ownerReferences"] = json!([reference]);
    }
    let spec = &mut manifest["spec"];
    if !spec.get("serviceAccountName").is_some_and(Value::is_string) {
        spec["serviceAccountName"] = "default".into();
    }
    PlannedPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        workload,
        manifest,
    }
}

/// A stable identifier of the form that the API server gives.
#[must_use]
pub fn uid(parts: &[&str]) -> String {
    let hex = HEXLOWER.encode(&hash(parts)[..16]);
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Letters as controllers use them in names: no vowels, so that no words come out.
fn digits(parts: &[&str], length: usize) -> String {
    let mut text = BASE32_NOPAD.encode(&hash(parts)).to_lowercase();
    text.truncate(length);
    text.chars()
        .map(|c| ALPHABET[usize::try_from(u32::from(c)).unwrap_or(0) % ALPHABET.len()])
        .collect()
}

fn hash(parts: &[&str]) -> [u8; 32] {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update(part.len().to_be_bytes());
        sum.update(part);
    }
    sum.finalize().into()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, pointer: &str) -> Option<u64> {
    value.pointer(pointer).and_then(Value::as_u64)
}

const ALPHABET: &[char] = &[
    'b', 'c', 'd', 'f', 'g', 'h', 'j', 'k', 'l', 'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w', 'x', 'z', '2', '4', '5',
    '6', '7', '8', '9',
];
const MAX_REPLICAS: u64 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "a", "name": "web"},
            "spec": {"replicas": 2, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]},
            }},
        })
    }

    // spec: LOC-010
    #[test]
    fn a_deployment_gives_pods_with_the_names_and_labels_of_its_replica_set() {
        let pods = plan(&deployment("x")).expect("plan");
        assert_eq!(pods.len(), 2);
        let hash = pods[0].manifest["metadata"]["labels"]["pod-template-hash"]
            .as_str()
            .expect("hash");
        assert!(pods[0].name.starts_with(&format!("web-{hash}-")), "{}", pods[0].name);
        assert_ne!(pods[0].name, pods[1].name);
        assert_eq!(
            pods[0].manifest["metadata"]["ownerReferences"][0]["name"],
            format!("web-{hash}")
        );
        assert_eq!(pods[0].manifest["metadata"]["labels"]["app"], "web");
        assert_eq!(pods[0].manifest["spec"]["serviceAccountName"], "default");
        assert_eq!(
            plan(&deployment("x")).expect("plan"),
            pods,
            "stable for an equal template"
        );
        assert_ne!(
            plan(&deployment("y")).expect("plan")[0].name,
            pods[0].name,
            "another template, other pods"
        );
    }

    // spec: LOC-010
    #[test]
    fn a_stateful_set_gives_ordinal_names() {
        let mut set = deployment("x");
        set["kind"] = "StatefulSet".into();
        let names: Vec<_> = plan(&set).expect("plan").into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["web-0", "web-1"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut none = deployment("x");
        none["spec"]["template"] = Value::Null;
        assert!(plan(&none).expect_err("no template").contains("spec.template"));
        let mut many = deployment("x");
        many["spec"]["replicas"] = 1_000_000.into();
        assert!(plan(&many).expect_err("too many").contains("1000000"));
    }
}
