//! Mends pods that began before the plugin was ready (NET-136): they wait in `weft-validation`, which the kubelet starts
//! again and again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::network::Settings;
use crate::pod::{self, Decision};
use crate::sandbox;

use handled::Handled;

mod handled;

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
        let mut handled = Handled::new(self.mode);
        loop {
            // Begins anew with a list, after a pause, whatever went wrong.
            let pods: Api<Pod> = Api::all(self.client.clone());
            let own = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
            let mut events = watcher(pods, own).default_backoff().boxed();
            let mut listed = BTreeSet::new();
            loop {
                while let Some(pod) = handled.due(Instant::now()) {
                    self.try_to_mend(&pod, &mut handled).await;
                }
                let event = tokio::select! {
                    event = events.try_next() => event,
                    () = until(handled.next()) => continue,
                };
                match event {
                    Ok(Some(watcher::Event::Init)) => listed.clear(),
                    Ok(Some(watcher::Event::InitApply(pod))) => {
                        listed.insert(pod.uid().unwrap_or_default());
                        self.see(pod, &mut handled);
                    }
                    Ok(Some(watcher::Event::InitDone)) => {
                        handled.keep(&listed);
                        self.synced.send_replace(true);
                    }
                    Ok(Some(watcher::Event::Apply(pod))) => self.see(pod, &mut handled),
                    Ok(Some(watcher::Event::Delete(pod))) => handled.forget(&pod),
                    Ok(None) => break,
                    Err(error) => tracing::warn!(%error, "watch the pods of the node"),
                }
            }
        }
    }

    fn see(&self, pod: Pod, handled: &mut Handled) {
        if !self.settings.excludes(&pod.namespace().unwrap_or_default()) {
            handled.see(pod, Instant::now());
        }
    }

    async fn try_to_mend(&self, pod: &Pod, handled: &mut Handled) {
        let outcome = self.mend(pod).await;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let (kind, reason, note) = match outcome {
            Ok(None) => return handled.mended(pod),
            Ok(Some(note)) => {
                handled.mended(pod);
                tracing::info!(namespace, name, note, "a pod began before the plugin was ready");
                (EventType::Normal, "RedirectRepaired", note.to_owned())
            }
            Err(error) => {
                let error = format!("{error:#}");
                if !handled.failed(pod, &error, Instant::now()) {
                    return;
                }
                tracing::warn!(
                    namespace,
                    name,
                    error,
                    "a pod began before the plugin was ready, and could not be mended; it is tried again"
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
            // By the agent before this one.
            Mode::Label if pod.labels().contains_key(UNINITIALIZED) => Ok(None),
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

/// Waits until then; without a time, for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// Label of [`Mode::Label`].
const UNINITIALIZED: &str = "weft.dev/uninitialized";
