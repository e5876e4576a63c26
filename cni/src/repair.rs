//! Mends pods that began before the plugin was ready (NET-136): they wait in `weft-validation`, which the kubelet starts
//! again and again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use weft_bundle::key::pod::VALIDATION_CONTAINER;

use crate::network::Settings;
use crate::pod::{self, Decision};
use crate::sandbox;

/// `cni.repair.mode`: what becomes of such a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The redirect is set in its sandbox.
    Repair,
    /// It is deleted, so that its controller makes another.
    Delete,
    /// It gets the label `weft.dev/uninitialized=true`.
    Label,
    /// Nothing.
    Off,
}

/// Mends the pods of a node.
pub struct Controller {
    /// The API server.
    pub client: Client,
    /// The node.
    pub node: String,
    /// What is done.
    pub mode: Mode,
    /// The plugin's settings.
    pub settings: Settings,
    /// Says true once the pods of the node are known.
    pub synced: watch::Sender<bool>,
}

impl Controller {
    /// Watches the pods of the node. Never returns.
    pub async fn run(self) {
        let mut done = Handled::default();
        loop {
            // Begins anew with a list, after a pause, whatever went wrong.
            let pods: Api<Pod> = Api::all(self.client.clone());
            let own = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
            let mut events = watcher(pods, own).default_backoff().boxed();
            loop {
                match events.try_next().await {
                    Ok(Some(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                        self.look_at(&pod, &mut done).await;
                    }
                    Ok(Some(watcher::Event::Delete(pod))) => done.forget(&pod),
                    Ok(Some(watcher::Event::InitDone)) => {
                        self.synced.send_replace(true);
                    }
                    Ok(Some(watcher::Event::Init)) => {}
                    Ok(None) => break,
                    Err(error) => tracing::warn!(%error, "watch the pods of the node"),
                }
            }
        }
    }

    async fn look_at(&self, pod: &Pod, done: &mut Handled) {
        if self.settings.excludes(&pod.namespace().unwrap_or_default()) || !done.is_due(pod) {
            return;
        }
        let outcome = self.mend(pod).await;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let (kind, reason, note) = match outcome {
            Ok(None) => return,
            Ok(Some(note)) => {
                tracing::info!(namespace, name, note, "a pod began before the plugin was ready");
                (EventType::Normal, "RedirectRepaired", note.to_owned())
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    namespace,
                    name,
                    error,
                    "a pod began before the plugin was ready, and could not be mended"
                );
                (EventType::Warning, "RedirectNotRepaired", error)
            }
        };
        let recorder = Recorder::new(
            self.client.clone(),
            Reporter {
                controller: "weft-cni".into(),
                instance: Some(self.node.clone()),
            },
        );
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            // The API server takes no more.
            note: Some(note.chars().take(1024).collect()),
            action: "Repair".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &pod.object_ref(&())).await {
            tracing::warn!(%error, "write an Event");
        }
    }

    /// What was done; `None` where nothing was to be done.
    async fn mend(&self, pod: &Pod) -> anyhow::Result<Option<&'static str>> {
        let Decision::Redirect(mut arguments) = pod::decide(pod)? else {
            return Ok(None);
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        match self.mode {
            Mode::Off => Ok(None),
            Mode::Repair => {
                self.settings
                    .choose_backend(&mut arguments)
                    .map_err(anyhow::Error::msg)?;
                let (uid, addresses) = (pod.uid().unwrap_or_default(), addresses(pod));
                let task = move || sandbox::redirect(Path::new("/proc"), &uid, &addresses, &arguments);
                tokio::task::spawn_blocking(task).await??;
                Ok(Some(
                    "the redirect was set in the running sandbox, which began before the CNI plugin was ready",
                ))
            }
            Mode::Delete => {
                let exactly = Preconditions {
                    uid: pod.uid(),
                    resource_version: pod.resource_version(),
                };
                let parameters = DeleteParams {
                    preconditions: Some(exactly),
                    ..DeleteParams::default()
                };
                pods.delete(&pod.name_any(), &parameters).await?;
                Ok(Some("deleted: its sandbox began before the CNI plugin was ready"))
            }
            Mode::Label => {
                let patch = json!({"metadata": {
                    "uid": pod.uid(), "resourceVersion": pod.resource_version(), "labels": {UNINITIALIZED: "true"},
                }});
                pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                Ok(Some("labelled: its sandbox began before the CNI plugin was ready"))
            }
        }
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// Which failures were dealt with: by the pod's uid, the container that ended. The same failure is seen many times.
#[derive(Debug, Default)]
struct Handled(BTreeMap<String, String>);

impl Handled {
    /// Whether a failure is a new one; it is not any more when this was asked.
    fn is_due(&mut self, pod: &Pod) -> bool {
        let Some(failure) = failure(pod) else { return false };
        let last = self.0.insert(pod.uid().unwrap_or_default(), failure.clone());
        last != Some(failure)
    }

    fn forget(&mut self, pod: &Pod) {
        self.0.remove(&pod.uid().unwrap_or_default());
    }
}

/// The last run of `weft-validation` of a pod, where it found no redirect and the pod still waits for it.
fn failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    // A pod that may not start a container again has failed by now.
    if pod.metadata.deletion_timestamp.is_some() || status.phase.as_deref() != Some("Pending") {
        return None;
    }
    let mut statuses = status.init_container_statuses.iter().flatten();
    let container = statuses.find(|container| container.name == VALIDATION_CONTAINER)?;
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    // The one before counts while there is no later end.
    let last = ended(&container.state).or_else(|| ended(&container.last_state))?;
    let began = last.started_at.as_ref().map(|time| time.0.to_string());
    (last.exit_code == NOT_IN_PLACE).then(|| last.container_id.or(began).unwrap_or_default())
}

/// Exit code of `weft-validation` without a redirect (INJ-056).
const NOT_IN_PLACE: i32 = 126;
/// Label of [`Mode::Label`].
const UNINITIALIZED: &str = "weft.dev/uninitialized";

#[cfg(test)]
mod tests;
