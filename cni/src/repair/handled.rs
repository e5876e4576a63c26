//! Which failures were dealt with, and which are to be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt as _;
use tokio::time::Instant;
use weft_bundle::key::pod::VALIDATION_CONTAINER;

use super::Mode;

/// The failures of the node's pods, by the pod's uid. The same failure is seen many times.
#[derive(Debug)]
pub(super) struct Handled {
    mode: Mode,
    cases: BTreeMap<String, Case>,
}

#[derive(Debug)]
struct Case {
    /// The container that ended.
    failure: String,
    /// What was told of it last.
    told: Option<String>,
    /// `None` once it was dealt with.
    again: Option<Again>,
}

#[derive(Debug)]
struct Again {
    /// As it was seen last.
    pod: Pod,
    at: Instant,
    /// After another attempt in vain.
    pause: Duration,
}

impl Handled {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            cases: BTreeMap::new(),
        }
    }

    /// Takes note of a pod: a new failure is due at once, and one that is over is not any more.
    pub(super) fn see(&mut self, pod: Pod, now: Instant) {
        let uid = pod.uid().unwrap_or_default();
        let Some(failure) = failure(&pod, self.mode) else {
            self.cases.retain(|key, case| *key != uid || case.again.is_none());
            return;
        };
        match self.cases.get_mut(&uid).filter(|case| case.failure == failure) {
            Some(case) => {
                if let Some(again) = &mut case.again {
                    again.pod = pod;
                }
            }
            None => {
                let again = Again {
                    pod,
                    at: now,
                    pause: FIRST_PAUSE,
                };
                let case = Case {
                    failure,
                    told: None,
                    again: Some(again),
                };
                self.cases.insert(uid, case);
            }
        }
    }

    /// A pod whose time has come.
    pub(super) fn due(&self, now: Instant) -> Option<Pod> {
        let mut waiting = self.cases.values().filter_map(|case| case.again.as_ref());
        waiting.find(|again| again.at <= now).map(|again| again.pod.clone())
    }

    /// When the next one's time comes.
    pub(super) fn next(&self) -> Option<Instant> {
        let waiting = self.cases.values().filter_map(|case| case.again.as_ref());
        waiting.map(|again| again.at).min()
    }

    /// A pod was mended.
    pub(super) fn mended(&mut self, pod: &Pod) {
        if let Some(case) = self.cases.get_mut(&pod.uid().unwrap_or_default()) {
            case.again = None;
        }
    }

    /// A pod could not be mended, and is tried again later. True when this was not the problem of the attempt before.
    pub(super) fn failed(&mut self, pod: &Pod, problem: &str, now: Instant) -> bool {
        let Some(case) = self.cases.get_mut(&pod.uid().unwrap_or_default()) else {
            return false;
        };
        if let Some(again) = &mut case.again {
            again.at = now + again.pause;
            again.pause = (again.pause * 2).min(LAST_PAUSE);
        }
        let is_new = case.told.as_deref() != Some(problem);
        case.told = Some(problem.to_owned());
        is_new
    }

    pub(super) fn forget(&mut self, pod: &Pod) {
        self.cases.remove(&pod.uid().unwrap_or_default());
    }

    /// Forgets all pods but these.
    pub(super) fn keep(&mut self, uids: &BTreeSet<String>) {
        self.cases.retain(|uid, _| uids.contains(uid));
    }
}

/// The last run of `weft-validation` of a pod, where it found no redirect and something can be done about it.
fn failure(pod: &Pod, mode: Mode) -> Option<String> {
    let status = pod.status.as_ref()?;
    let is_open = match status.phase.as_deref() {
        Some("Pending") => true,
        // A pod that may not start a container again: a redirect would help it no more.
        Some("Failed") => matches!(mode, Mode::Delete | Mode::Label),
        _ => false,
    };
    if pod.metadata.deletion_timestamp.is_some() || !is_open {
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
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
