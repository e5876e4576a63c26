//! A pod of the run, as the run keeps it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use weft_bundle::key::pod::template;
use weft_bundle::key::{TARGET_REV_ANNOTATION, Template};
use weft_bundle::pack::Files;
use weft_bundle::volume;

use crate::local::NODE;
use crate::local::container::{self, Contents, Facts, Pending};
use crate::local::control::Row;
use crate::local::loopback::Port;
use crate::local::outside::Outside;
use crate::local::pod::{Handle, Phase, Sandbox};
use crate::local::workload::PlannedPod;

/// A pod of the run.
pub(super) struct Running {
    pub(super) plan: PlannedPod,
    /// After admission.
    pub(super) pod: Pod,
    pub(super) address: Ipv4Addr,
    /// It stands for a server outside of the cluster.
    pub(super) outside: Option<Outside>,
    /// In loopback mode: where its containers listen.
    pub(super) ports: Vec<Port>,
    pub(super) key: Option<String>,
    pub(super) warnings: Vec<String>,
    pub(super) sandbox: Option<Arc<Sandbox>>,
    pub(super) handle: Option<Handle>,
    pub(super) phase: Phase,
    pub(super) stopping: bool,
    pub(super) volumes: BTreeMap<String, Files>,
    pub(super) directory: PathBuf,
    pub(super) pending: Option<Pending>,
    pub(super) target: Option<(String, String)>,
    pub(super) begun: Instant,
}

impl Running {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Running { ready: true, .. })
    }

    /// What the proxy is in it.
    pub(super) fn template(&self) -> Template {
        let none = BTreeMap::new();
        template(self.pod.metadata.annotations.as_ref().unwrap_or(&none))
    }

    /// Whether it is a gateway that a Service leads to.
    pub(super) fn is_gateway_of(&self, namespace: &str, selector: Option<&BTreeMap<String, String>>) -> bool {
        let labels = self.pod.metadata.labels.as_ref();
        let has = |(name, value): (&String, &String)| labels.and_then(|l| l.get(name)) == Some(value);
        self.template() == Template::Gateway
            && self.plan.namespace == namespace
            && selector.is_some_and(|s| s.iter().all(has))
    }

    fn reason(&self) -> String {
        if let Some(pending) = &self.pending {
            return format!("Pending: {pending}");
        }
        match &self.phase {
            Phase::Starting(what) => format!("Starting: {what}"),
            Phase::Running { ready: true, .. } => "Running".to_owned(),
            Phase::Running { reason, .. } => format!("Running, not ready: {reason}"),
            Phase::BackOff(why) => format!("BackOff: {why}"),
            Phase::Ended => "Ended".to_owned(),
        }
    }

    /// For `ps`.
    pub(super) fn row(&self, id: &str) -> Row {
        Row {
            pod: id.to_owned(),
            ready: self.is_ready(),
            state: if self.stopping {
                "Terminating".to_owned()
            } else {
                self.reason()
            },
            address: self.address.to_string(),
            sidecar: self.key.is_some(),
            revision: self.target.as_ref().map(|(cfg, _)| cfg.clone()),
            key: self.key.clone(),
            age_seconds: self.begun.elapsed().as_secs(),
            warnings: self.warnings.clone(),
        }
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
        if let Some(handle) = &self.handle {
            handle.stop();
        }
    }

    pub(super) fn facts(&self, gateway: Ipv4Addr) -> Facts {
        Facts {
            pod: self.pod.clone(),
            address: IpAddr::V4(self.address),
            node: NODE.to_owned(),
            host_address: IpAddr::V4(gateway),
        }
    }

    /// The pod as the API server would show it.
    pub(super) fn status(&self) -> Pod {
        let mut pod = self.pod.clone();
        // A target tells of a delivery and is no input of rendering.
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.remove(TARGET_REV_ANNOTATION);
        }
        if self.stopping {
            let time = serde_json::from_value(json!("2000-01-01T00:00:00Z"));
            pod.metadata.deletion_timestamp = time.ok();
        }
        let spec = pod.spec.get_or_insert_default();
        spec.node_name = Some(NODE.to_owned());
        let status = pod.status.get_or_insert_default();
        status.pod_ip = Some(self.address.to_string());
        status.phase = Some("Running".to_owned());
        pod
    }

    /// Where a volume's files are.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.directory.join("volumes").join(name)
    }

    /// Publishes the volumes whose content changed, as a kubelet does (LOC-004).
    pub(super) fn write_volumes(&mut self, facts: &Facts, contents: &Contents) -> anyhow::Result<()> {
        let volumes = self
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.volumes.clone())
            .unwrap_or_default();
        for volume in volumes {
            let directory = self.volume(&volume.name);
            match container::volume(&volume, facts, contents) {
                Ok(Some(files)) => {
                    if self.volumes.get(&volume.name) != Some(&files) {
                        volume::publish(&directory, &files).with_context(|| format!("volume {}", volume.name))?;
                        self.volumes.insert(volume.name.clone(), files);
                    }
                }
                Ok(None) => std::fs::create_dir_all(&directory)?,
                Err(pending) => {
                    self.pending = Some(pending.clone());
                    return Ok(());
                }
            }
        }
        if matches!(self.pending, Some(Pending::Missing { .. })) {
            self.pending = None;
        }
        Ok(())
    }
}
