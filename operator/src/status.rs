//! Conditions of mesh objects (OPS-120): computed from reports and acknowledgements, written on change alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_crds::object::KINDS;
use weft_crds::service_entry::AllocatedAddress;

use crate::acknowledge::{Acknowledged, Targets};
use crate::metrics::Metrics;
use crate::render::{ObjectReport, Output};
use crate::source::{Observed, mesh_resource};
use crate::world::{Kind, ObjectRef};

/// Tells the task that writes.
#[derive(Debug, Clone)]
pub struct Handle {
    tell: mpsc::UnboundedSender<Message>,
}

#[derive(Debug)]
enum Message {
    Observe(ObjectRef, Option<Observed>),
    Want(Arc<Output>, bool),
}

impl Handle {
    /// What the API server has.
    pub fn observe(&self, reference: ObjectRef, observed: Option<Observed>) {
        // The receiver lives as long as the process.
        let _ = self.tell.send(Message::Observe(reference, observed));
    }

    /// What was rendered and written, and whether this replica may write.
    pub fn want(&self, output: Arc<Output>, leads: bool) {
        let _ = self.tell.send(Message::Want(output, leads));
    }
}

/// Writes status.
pub struct Writer {
    client: Client,
    metrics: Arc<Metrics>,
    root_namespace: String,
    told: mpsc::UnboundedReceiver<Message>,
    acknowledged: watch::Receiver<Acknowledged>,
    targets: watch::Receiver<Targets>,
    followed: watch::Receiver<Targets>,
    observed: BTreeMap<ObjectRef, Observed>,
    written: BTreeMap<ObjectRef, Instant>,
    output: Arc<Output>,
    leads: bool,
}

impl Writer {
    /// The task and its handle. Objects of the root namespace concern all proxies. Acknowledgements count once they are
    /// about the targets that are wanted, so `followed` is compared with `targets`.
    #[must_use]
    pub fn new(
        client: Client,
        metrics: Arc<Metrics>,
        root: &str,
        acknowledged: watch::Receiver<Acknowledged>,
        (targets, followed): (watch::Receiver<Targets>, watch::Receiver<Targets>),
    ) -> (Self, Handle) {
        let (tell, told) = mpsc::unbounded_channel();
        let writer = Self {
            client,
            metrics,
            root_namespace: root.to_owned(),
            told,
            acknowledged,
            targets,
            followed,
            observed: BTreeMap::new(),
            written: BTreeMap::new(),
            output: Arc::default(),
            leads: false,
        };
        (writer, Handle { tell })
    }

    /// Runs until nobody tells anything.
    pub async fn run(mut self) {
        let mut due: Option<Instant> = None;
        loop {
            let wait = due.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                message = self.told.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                changed = self.acknowledged.changed() => if changed.is_err() {
                    return;
                },
                changed = self.followed.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(wait) => {}
            }
            while let Ok(message) = self.told.try_recv() {
                self.take(message);
            }
            due = self.settle().await;
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Observe(reference, Some(observed)) => drop(self.observed.insert(reference, observed)),
            Message::Observe(reference, None) => {
                self.observed.remove(&reference);
                self.written.remove(&reference);
            }
            Message::Want(output, leads) => (self.output, self.leads) = (output, leads),
        }
    }

    /// Writes what differs; when to look again because a count may not change yet (OPS-128).
    async fn settle(&mut self) -> Option<Instant> {
        // Newer targets first: what is acknowledged of older ones must not pass for them.
        let is_current = *self.targets.borrow() == *self.followed.borrow_and_update();
        let acknowledged = self.acknowledged.borrow_and_update().clone();
        self.metrics
            .pods(acknowledged.values().filter(|a| **a).count(), acknowledged.len());
        if !self.leads {
            return None;
        }
        let output = self.output.clone();
        let mut due: Option<Instant> = None;
        for (reference, report) in &output.reports {
            let Some(observed) = self.observed.get(reference) else {
                continue;
            };
            let proxies = if is_current {
                self.proxies(reference, &acknowledged)
            } else {
                (0, self.targets.borrow().len().max(1))
            };
            let is_failed = output.failures.iter().any(|f| f.namespace == reference.namespace);
            let generation = report.generation.or(observed.generation);
            let wanted = conditions(report, generation, proxies, is_failed);
            let conditions = match changed(&wanted, &observed.status) {
                Some(conditions) => conditions,
                None if addresses(&observed.status) != report.addresses => present(&observed.status)
                    .into_iter()
                    .filter(|c| OWN.contains(&c.type_.as_str()))
                    .collect(),
                None => continue,
            };
            let is_final = proxies.0 == proxies.1;
            if let Some(at) = self
                .written
                .get(reference)
                .filter(|_| !is_final && is_count_alone(&wanted, &observed.status))
            {
                let next = *at + COUNT_PAUSE;
                if next > Instant::now() {
                    due = Some(due.map_or(next, |d| d.min(next)));
                    continue;
                }
            }
            match self.write(reference, generation, &conditions, &report.addresses).await {
                Ok(status) => {
                    self.observed.insert(
                        reference.clone(),
                        Observed {
                            generation: observed.generation,
                            status,
                        },
                    );
                    self.written.insert(reference.clone(), Instant::now());
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(object = %reference, %error, "status not written");
                    let next = Instant::now() + COUNT_PAUSE;
                    due = Some(due.map_or(next, |d| d.min(next)));
                }
            }
            tokio::time::sleep(BETWEEN_WRITES).await;
        }
        due
    }

    /// How many of the proxies that the object concerns have what was rendered from it.
    fn proxies(&self, reference: &ObjectRef, acknowledged: &Acknowledged) -> (usize, usize) {
        let is_of_namespace = matches!(reference.kind, Kind::PeerAuthentication | Kind::AuthorizationPolicy);
        let is_local = is_of_namespace && reference.namespace != self.root_namespace;
        let concerned = acknowledged
            .iter()
            .filter(|((namespace, _), _)| !is_local || *namespace == reference.namespace);
        concerned.fold((0, 0), |(m, n), (_, acknowledged)| {
            (m + usize::from(*acknowledged), n + 1)
        })
    }

    async fn write(
        &self,
        reference: &ObjectRef,
        generation: Option<i64>,
        conditions: &[Condition],
        addresses: &[AllocatedAddress],
    ) -> Result<Value, kube::Error> {
        let kind = format!("{:?}", reference.kind);
        let (group, _, versions) = KINDS.iter().find(|(_, k, _)| *k == kind).copied().unwrap_or(KINDS[0]);
        let resource = mesh_resource(group, &kind, versions[0]);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &reference.namespace, &resource);
        let mut status = json!({"observedGeneration": generation, "conditions": conditions});
        if !addresses.is_empty() {
            status["addresses"] = json!(addresses);
        }
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": reference.name, "namespace": reference.namespace},
            "status": status,
        });
        let written = api
            .patch_status(
                &reference.name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(patch),
            )
            .await?;
        Ok(written.data.get("status").cloned().unwrap_or(status))
    }
}

/// Conditions in the order of OPS-121 to OPS-125, without times.
fn conditions(
    report: &ObjectReport,
    generation: Option<i64>,
    (m, n): (usize, usize),
    is_failed: bool,
) -> Vec<Condition> {
    let condition = |type_: &str, status: &str, reason: &str, message: String| Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(message),
        observed_generation: generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    let accepted = match &report.refused {
        Some((reason, message)) => condition("Accepted", "False", reason, message.clone()),
        None => condition("Accepted", "True", "Accepted", report.warnings.join("; ")),
    };
    let resolved = match &report.unresolved {
        Some((reason, message)) => condition("ResolvedRefs", "False", reason, message.clone()),
        None => condition("ResolvedRefs", "True", "ResolvedRefs", String::new()),
    };
    let count = format!("{m} of {n} proxies");
    let reconciled = match () {
        () if is_failed => condition("Reconciled", "False", "RenderFailed", count),
        () if m < n => condition("Reconciled", "Unknown", "Propagating", count),
        () => condition("Reconciled", "True", "Applied", count),
    };
    let failing = [&accepted, &resolved].into_iter().find(|c| c.status != "True");
    let failing = failing.or(Some(&reconciled).filter(|_| is_failed));
    let ready = match failing {
        Some(c) => condition("Ready", "False", &c.reason, c.message.clone()),
        None => condition("Ready", "True", "Ready", String::new()),
    };
    let stalled = report
        .refused
        .as_ref()
        .filter(|(reason, _)| matches!(*reason, "Invalid" | "Conflicted" | "Unsupported"));
    let stalled = stalled.map(|(reason, message)| condition("Stalled", "True", reason, message.clone()));
    [accepted, resolved, reconciled, ready]
        .into_iter()
        .chain(stalled)
        .collect()
}

/// With times, when anything differs from what is there: a time moves with its status alone.
fn changed(wanted: &[Condition], status: &Value) -> Option<Vec<Condition>> {
    let present = present(status);
    let find = |c: &Condition| present.iter().find(|p| p.type_ == c.type_);
    let is_equal = |c: &Condition| {
        find(c).is_some_and(|p| {
            (&p.status, &p.reason, &p.message, p.observed_generation)
                == (&c.status, &c.reason, &c.message, c.observed_generation)
        })
    };
    let is_stale = |p: &Condition| OWN.contains(&p.type_.as_str()) && !wanted.iter().any(|c| c.type_ == p.type_);
    if wanted.iter().all(is_equal) && !present.iter().any(is_stale) {
        return None;
    }
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    let dated = wanted.iter().map(|c| {
        let before = find(c)
            .filter(|p| p.status == c.status)
            .map(|p| p.last_transition_time.clone());
        Condition {
            last_transition_time: before.unwrap_or(Time(now)),
            ..c.clone()
        }
    });
    Some(dated.collect())
}

/// Addresses that a status has.
fn addresses(status: &Value) -> Vec<AllocatedAddress> {
    let list = status.get("addresses").cloned().unwrap_or_default();
    serde_json::from_value(list).unwrap_or_default()
}

/// Whether nothing but the number of proxies differs.
fn is_count_alone(wanted: &[Condition], status: &Value) -> bool {
    let present = present(status);
    wanted.iter().all(|c| {
        present.iter().find(|p| p.type_ == c.type_).is_some_and(|p| {
            (&p.status, &p.reason, p.observed_generation) == (&c.status, &c.reason, c.observed_generation)
                && (c.type_ == "Reconciled" || p.message == c.message)
        })
    })
}

fn present(status: &Value) -> Vec<Condition> {
    let list = status.get("conditions").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|c| serde_json::from_value(c.clone()).ok())
        .collect()
}

/// The API server takes 32768 characters of a message.
fn cut(message: String) -> String {
    if message.len() <= LONGEST_MESSAGE {
        message
    } else {
        message.chars().take(LONGEST_MESSAGE / 4).collect()
    }
}

const MANAGER: &str = "weft-operator-status";
const OWN: [&str; 5] = ["Accepted", "ResolvedRefs", "Reconciled", "Ready", "Stalled"];
const BETWEEN_WRITES: Duration = Duration::from_millis(100);
const COUNT_PAUSE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(600);
const LONGEST_MESSAGE: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: OPS-121, OPS-123, OPS-124, OPS-125
    #[test]
    fn the_first_failing_condition_decides_readiness() {
        let report = ObjectReport::default();
        let by_type = |list: Vec<Condition>| -> BTreeMap<String, (String, String, String)> {
            list.into_iter()
                .map(|c| (c.type_, (c.status, c.reason, c.message)))
                .collect()
        };
        let text = |s: &str, r: &str, m: &str| (s.to_owned(), r.to_owned(), m.to_owned());
        let good = by_type(conditions(&report, Some(3), (1, 2), false));
        assert_eq!(good["Reconciled"], text("Unknown", "Propagating", "1 of 2 proxies"));
        assert_eq!(good["Ready"], text("True", "Ready", ""));
        assert!(!good.contains_key("Stalled"));
        let done = by_type(conditions(&report, Some(3), (2, 2), false));
        assert_eq!(done["Reconciled"], text("True", "Applied", "2 of 2 proxies"));
        let report = ObjectReport {
            refused: Some(("Invalid", "spec.host: is missing".into())),
            ..report
        };
        let bad = by_type(conditions(&report, Some(3), (2, 2), false));
        assert_eq!(bad["Ready"], text("False", "Invalid", "spec.host: is missing"));
        assert_eq!(bad["Stalled"].0, "True");
    }

    // spec: OPS-128
    #[test]
    fn equal_conditions_are_not_written_and_times_move_with_the_status_alone() {
        let report = ObjectReport::default();
        let wanted = conditions(&report, Some(1), (0, 1), false);
        let first = changed(&wanted, &Value::Null).expect("nothing is there");
        let mut old = first.clone();
        old.iter_mut()
            .for_each(|c| c.last_transition_time = Time(Timestamp::from_second(1000).expect("a time")));
        let status = json!({"conditions": old});
        assert!(changed(&wanted, &status).is_none(), "an unchanged object sees no write");
        let wanted = conditions(&report, Some(2), (1, 1), false);
        let second = changed(&wanted, &status).expect("the generation differs");
        let time = |type_: &str| {
            second
                .iter()
                .find(|c| c.type_ == type_)
                .map(|c| c.last_transition_time.0.as_second())
        };
        assert_eq!(time("Accepted"), Some(1000));
        assert_ne!(time("Reconciled"), Some(1000), "Unknown became True");
        assert!(is_count_alone(&conditions(&report, Some(1), (0, 2), false), &status));
    }
}
