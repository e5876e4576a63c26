//! Which pods run: what workloads ask for, after admission.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Container, Pod};
use weft_operator::world::{Event as WorldEvent, Kind, ObjectRef};
use weft_webhook::{Context as InjectContext, Decision, Namespace as NamespaceFacts, decide, inject};

use super::Run;
use super::running::Running;
use crate::local::container;
use crate::local::fabric::Fabric;
use crate::local::outside::Outside;
use crate::local::pod::Phase;
use crate::local::service;
use crate::local::workload::{self, PlannedPod, WORKLOAD_KINDS};

impl Run {
    /// Starts and stops pods, so that those run that workloads ask for.
    pub(super) fn plan_pods(&mut self) {
        let mut planned: BTreeMap<String, PlannedPod> = BTreeMap::new();
        for (id, found) in &self.desired.objects {
            if !WORKLOAD_KINDS.contains(&id.0.as_str()) {
                continue;
            }
            match workload::plan(&found.value) {
                Ok(pods) => planned.extend(pods.into_iter().map(|p| (format!("{}/{}", p.namespace, p.name), p))),
                Err(problem) => self
                    .output
                    .note(&format!("{}: {} {}: {problem}", found.place, id.0, id.2)),
            }
        }
        for (id, plan) in &planned {
            let is_same = self.pods.get(id).is_some_and(|r| r.stopping || r.plan == *plan);
            if is_same {
                continue;
            }
            match self.pods.get_mut(id) {
                // A bare pod or one of a StatefulSet that changed keeps its name: the old one ends first.
                Some(running) => running.stop(),
                None => {
                    if let Err(e) = self.admit(id, plan.clone()) {
                        self.output.note(&format!("pod {id}: {e:#}"));
                    }
                }
            }
        }
        let ready: BTreeMap<(String, String), bool> = planned.iter().fold(BTreeMap::new(), |mut all, (id, plan)| {
            let is_ready = self.pods.get(id).is_some_and(Running::is_ready);
            let entry = all
                .entry((plan.namespace.clone(), plan.workload.clone()))
                .or_insert(true);
            *entry &= is_ready;
            all
        });
        for (id, running) in &mut self.pods {
            if planned.contains_key(id) || running.stopping {
                continue;
            }
            // Those that replace it must be ready first.
            let workload = (running.plan.namespace.clone(), running.plan.workload.clone());
            if ready.get(&workload).copied().unwrap_or(true) {
                running.stop();
            }
        }
        let unstarted: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, r)| r.stopping && r.handle.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        unstarted.iter().for_each(|id| self.remove(id));
    }

    /// Admission of a pod as the webhook does it (LOC-005, LOC-018), an address, and a place in the world.
    fn admit(&mut self, id: &str, plan: PlannedPod) -> anyhow::Result<()> {
        let labels = self
            .desired
            .objects
            .get(&("Namespace".into(), String::new(), plan.namespace.clone()));
        let labels: BTreeMap<String, String> = labels
            .and_then(|o| serde_json::from_value(o.value["metadata"]["labels"].clone()).ok())
            .unwrap_or_default();
        let namespace = NamespaceFacts {
            name: &plan.namespace,
            labels: Some(&labels),
        };
        let mut manifest = plan.manifest.clone();
        if matches!(self.fabric, Fabric::Loopback(_)) {
            // No redirect, so no init container for it.
            manifest["metadata"]["annotations"]["sidecar.istio.io/interceptionMode"] = "NONE".into();
        }
        let (value, key, warnings) = match decide(namespace, &manifest, &self.inject) {
            Decision::Inject { warnings } => {
                let context = InjectContext {
                    namespace: &plan.namespace,
                    native_supported: true,
                    workload: None,
                    warnings,
                };
                let injected = inject(&manifest, &context, &self.inject).context("is refused")?;
                (injected.pod, Some(injected.key), injected.warnings)
            }
            Decision::Skip { warnings, .. } => (manifest, None, warnings),
        };
        let pod: Pod = serde_json::from_value(value).context("is no pod")?;
        for field in container::ignored_fields(&plan.manifest) {
            if self.told_once.insert(field.to_owned()) {
                let text = "is ignored in local mode: what runs here are processes of this machine";
                self.output.note(&format!("{field} {text} (pod {id}, and others)"));
            }
        }
        let outside = Outside::of(&pod, self.options.outside_cidr)?;
        let address = match &outside {
            Some(outside) => outside.address,
            None => self
                .pod_addresses
                .take()
                .context("no address is left; use a larger --pod-cidr")?,
        };
        let directory = self.state.join("pods").join(id.replace('/', "_"));
        for warning in &warnings {
            self.output.note(&format!("pod {id}: warning: {warning}"));
        }
        let pending = container::check_supported(&pod).err();
        if let Some(pending) = &pending {
            self.output.note(&format!("pod {id} is Pending: {pending}"));
        }
        let ports = match &self.fabric {
            Fabric::Namespaces(_) => Vec::new(),
            Fabric::Loopback(block) => {
                let volumes = pod.spec.iter().flat_map(|s| &s.containers);
                let has_volumes = |c: &Container| c.name != "weft-proxy" && c.volume_mounts.is_some();
                if volumes.into_iter().any(has_volumes) && self.told_once.insert("volumes".to_owned()) {
                    let text = "volumes cannot be mounted in loopback mode: containers find them below $WEFT_VOLUMES";
                    self.output.note(text);
                }
                let services = self.store.world().services.values().cloned().collect::<Vec<_>>();
                let targets = service::target_ports(&services, &pod);
                block.ports(&pod, address, &targets, &mut self.local_ports)?
            }
        };
        let running = Running {
            plan,
            pod,
            address,
            outside,
            ports,
            key,
            warnings,
            sandbox: None,
            handle: None,
            phase: Phase::Starting("waits for its configuration".into()),
            stopping: false,
            volumes: BTreeMap::new(),
            directory,
            pending,
            target: None,
            begun: Instant::now(),
        };
        self.pods.insert(id.to_owned(), running);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(running) = self.pods.remove(id) else { return };
        if running.outside.is_none() {
            self.pod_addresses.release(running.address);
        }
        for port in &running.ports {
            self.local_ports.remove(&port.local);
        }
        let reference = ObjectRef {
            kind: Kind::Pod,
            namespace: running.plan.namespace.clone(),
            name: running.plan.name.clone(),
        };
        self.known.remove(&reference);
        self.store.apply(WorldEvent::Delete(reference));
        let _ = std::fs::remove_dir_all(&running.directory);
    }
}
