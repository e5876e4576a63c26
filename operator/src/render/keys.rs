//! Which keys are in use: of templates, of pods, and of what was rendered before (DLV-010, DLV-017).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec};
use weft_bundle::key::{KeyInputs, STATUS_ANNOTATION};

use super::{ConfigRef, IdentityRef, Mounts, Output, PodFacts};
use crate::world::{ObjectRef, World, pod};

type Id = (String, String);

/// What was found of each object.
#[derive(Debug, Default)]
pub(super) struct Keys {
    templates: HashMap<ObjectRef, SeenTemplate>,
    pods: HashMap<Id, SeenPod>,
    manifests: HashMap<Id, (Arc<KeyInputs>, Keyed)>,
}

#[derive(Debug)]
struct SeenTemplate {
    template: Arc<PodTemplateSpec>,
    namespace: Option<Arc<Namespace>>,
    /// `None`: its pods get no sidecar.
    found: Option<(IdentityRef, Keyed)>,
}

#[derive(Debug)]
struct SeenPod {
    pod: Arc<Pod>,
    /// `None`: it has no sidecar.
    found: Option<InjectedPod>,
}

#[derive(Debug)]
struct InjectedPod {
    identity: IdentityRef,
    facts: PodFacts,
    /// `None`: its labels were changed since it was created (DLV-013).
    keyed: Option<Keyed>,
}

#[derive(Debug, Clone)]
struct Keyed {
    reference: ConfigRef,
    inputs: Arc<KeyInputs>,
}

impl Keyed {
    fn new(inputs: Arc<KeyInputs>) -> Self {
        let reference = ConfigRef {
            namespace: inputs.namespace.clone(),
            key: inputs.key(),
        };
        Self { reference, inputs }
    }
}

impl Keys {
    /// The keys with their inputs; pods and identities go to the output.
    pub(super) fn collect(&mut self, world: &World, output: &mut Output) -> BTreeMap<ConfigRef, Arc<KeyInputs>> {
        let mut keys = BTreeMap::new();
        let mut add = |keyed: &Keyed| drop(keys.insert(keyed.reference.clone(), keyed.inputs.clone()));
        self.templates
            .retain(|reference, _| world.templates.contains_key(reference));
        for (reference, template) in &world.templates {
            let namespace = world.namespaces.get(&template.namespace);
            let is_same = |seen: &SeenTemplate| {
                Arc::ptr_eq(&seen.template, &template.pod)
                    && seen.namespace.as_ref().map(Arc::as_ptr) == namespace.map(Arc::as_ptr)
            };
            if !self.templates.get(reference).is_some_and(is_same) {
                let seen = SeenTemplate::new(template, world);
                self.templates.insert(reference.clone(), seen);
            }
            if let Some((identity, keyed)) = &self.templates[reference].found {
                output.identities.insert(identity.clone());
                add(keyed);
            }
        }
        self.pods.retain(|id, _| world.pods.contains_key(id));
        for (id, pod) in &world.pods {
            if !self.pods.get(id).is_some_and(|seen| Arc::ptr_eq(&seen.pod, pod)) {
                self.pods.insert(id.clone(), SeenPod::new(pod, id, world));
            }
            if let Some(found) = &self.pods[id].found {
                output.identities.insert(found.identity.clone());
                output.pods.insert(id.clone(), found.facts.clone());
                found.keyed.iter().for_each(&mut add);
            }
        }
        let in_use: BTreeSet<_> = output
            .pods
            .iter()
            .map(|((ns, _), p)| (ns.as_str(), p.key.as_str()))
            .collect();
        self.manifests.retain(|id, _| world.manifests.contains_key(id));
        for (id, inputs) in &world.manifests {
            if !self
                .manifests
                .get(id)
                .is_some_and(|(seen, _)| Arc::ptr_eq(seen, inputs))
            {
                let seen = (inputs.clone(), Keyed::new(inputs.clone()));
                self.manifests.insert(id.clone(), seen);
            }
            let keyed = &self.manifests[id].1;
            if in_use.contains(&(keyed.reference.namespace.as_str(), keyed.reference.key.as_str())) {
                add(keyed);
            }
        }
        // A key that no inputs explain is none: whoever wrote it on the pod is not its user (DLV-017).
        let is_explained = |(namespace, _): &Id, key: &str| {
            let reference = ConfigRef {
                namespace: namespace.clone(),
                key: key.to_owned(),
            };
            keys.contains_key(&reference)
        };
        let unexplained = output.pods.iter().filter(|(id, pod)| !is_explained(id, &pod.key));
        output.unexplained = unexplained.map(|(id, pod)| (id.clone(), pod.key.clone())).collect();
        output.pods.retain(|id, pod| is_explained(id, &pod.key));
        keys
    }
}

impl SeenTemplate {
    fn new(template: &pod::Template, world: &World) -> Self {
        let found = pod::is_injected(template, world).then(|| {
            let identity = IdentityRef {
                namespace: template.namespace.clone(),
                service_account: pod::service_account(template.pod.spec.as_ref()).to_owned(),
            };
            (identity, Keyed::new(Arc::new(pod::template_inputs(template, world))))
        });
        Self {
            template: template.pod.clone(),
            namespace: world.namespaces.get(&template.namespace).cloned(),
            found,
        }
    }
}

impl SeenPod {
    fn new(pod: &Arc<Pod>, (namespace, _): &Id, world: &World) -> Self {
        let found = pod::config_key(pod).map(|key| {
            let identity = IdentityRef {
                namespace: namespace.clone(),
                service_account: pod::service_account(pod.spec.as_ref()).to_owned(),
            };
            // Labels may have been changed since it was created (DLV-013): then its key's manifest knows.
            let keyed = Keyed::new(Arc::new(pod::pod_inputs(pod, world)));
            InjectedPod {
                identity,
                facts: facts(pod, key),
                keyed: Some(keyed).filter(|keyed| keyed.reference.key == key),
            }
        });
        Self {
            pod: pod.clone(),
            found,
        }
    }
}

fn facts(pod: &Pod, key: &str) -> PodFacts {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let annotations = pod.metadata.annotations.as_ref();
    let injected = annotations.and_then(|a| a.get(STATUS_ANNOTATION));
    let injected: Option<serde_json::Value> = injected.and_then(|text| serde_json::from_str(text).ok());
    let port = injected
        .as_ref()
        .and_then(|s| s.get("statusPort"))
        .and_then(serde_json::Value::as_u64);
    let ended = matches!(phase, "Succeeded" | "Failed");
    PodFacts {
        key: key.to_owned(),
        address: address(pod),
        status_port: port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p > 0)
            .unwrap_or(15020),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        running: pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) && !ended,
        ended,
        mounts: Mounts::read(injected.as_ref()),
    }
}

/// Address of a pod, once it has one.
pub(super) fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::super::stage::{bundle, render};
    use super::*;

    const POD: &str = "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: NAME, namespace: app, labels: LABELS, \
                       annotations: {weft.dev/config-key: KEY}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, \
                       name: WORKLOAD-5d8f, uid: u, controller: true}]}\nspec: {containers: [{name: c, image: i}]}\n";

    fn pod(name: &str, workload: &str, key: &str, labels: &str) -> String {
        let labels = format!("{{pod-template-hash: 5d8f, {labels}}}");
        POD.replace("NAME", name)
            .replace("WORKLOAD", workload)
            .replace("KEY", key)
            .replace("LABELS", &labels)
    }

    // spec: DLV-131
    #[test]
    fn a_pod_that_terminates_uses_its_key_though_no_template_makes_it() {
        let inputs = |pod: &str| {
            let pod: Pod = serde_yaml::from_str(pod.trim().trim_start_matches("---")).expect("a pod");
            pod::pod_inputs(
                &pod,
                &crate::world::Store::new(crate::world::Settings::default()).world(),
            )
        };
        let key = inputs(&pod("gone-1", "gone", "unknown", "app: gone")).key();
        let living = pod("gone-1", "gone", &key, "app: gone");
        let leaving = living.replace(
            "metadata: {name: gone-1,",
            "metadata: {name: gone-1, deletionTimestamp: '2026-01-01T00:00:00Z',",
        );
        assert_ne!(leaving, living);
        for text in [living, leaving] {
            let output = render(&text);
            let reference = ConfigRef {
                namespace: "app".to_owned(),
                key: key.clone(),
            };
            assert!(output.configs.contains_key(&reference), "{text}");
            assert_eq!(output.pods.len(), 1);
        }
        let wanted = |output: &Output| output.configs.keys().any(|reference| reference.key == key);
        assert!(!wanted(&render("")), "nor is it there without the pod");
    }

    // spec: DLV-017, DLV-013
    #[test]
    fn a_key_is_rendered_from_inputs_whose_hash_it_is_and_from_no_others() {
        let plain = render("");
        let key = |workload: &str| {
            let of = |reference: &&ConfigRef| reference.namespace == "app" && reference.key.starts_with(workload);
            plain.configs.keys().find(of).expect("rendered").key.clone()
        };
        let echo = key("echo-");
        let mut documents = String::new();
        for (name, workload, key, labels) in [
            ("echo-created", "echo", echo.as_str(), "app: echo"),
            // Relabelled since: the template's inputs explain its key.
            ("echo-moved", "echo", echo.as_str(), "app: client, tier: web"),
            // A key that somebody made up, on a pod that would have another one.
            ("echo-forged", "echo", "echo-aaaaaaaaaa", "app: echo"),
            // What its labels have become is not what the key stands for.
            ("lone-moved", "lone", "lone-bbbbbbbbbb", "app: other"),
        ] {
            let _ = write!(documents, "{}", pod(name, workload, key, labels));
        }
        let output = render(&documents);
        let id = |name: &str| ("app".to_owned(), name.to_owned());
        let users: Vec<&str> = output.pods.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(users, ["echo-created", "echo-moved"]);
        assert_eq!(
            output.unexplained,
            BTreeMap::from([
                (id("echo-forged"), "echo-aaaaaaaaaa".to_owned()),
                (id("lone-moved"), "lone-bbbbbbbbbb".to_owned()),
            ])
        );
        assert_eq!(bundle(&output, "app/echo"), bundle(&plain, "app/echo"));
        for (reference, config) in &output.configs {
            let manifest = &config.shards[0]["manifest.json"];
            let mut manifest: serde_json::Value = serde_json::from_slice(manifest).expect("JSON");
            assert_eq!(manifest["key"], reference.key.as_str());
            let inputs: KeyInputs = serde_json::from_value(manifest["inputs"].take()).expect("inputs");
            assert_eq!(inputs.key(), reference.key);
        }
        assert!(
            !output
                .configs
                .keys()
                .any(|reference| reference.key.ends_with("-bbbbbbbbbb"))
        );
    }
}
