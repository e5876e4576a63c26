//! How many shards pods mount: fixed when a pod is injected, because volumes of a running pod are immutable (DLV-032), so
//! that what is delivered follows the pods and not the settings (DLV-037, DLV-151).

use std::collections::BTreeMap;

use serde_json::Value;
use weft_bundle::pack::{Limits, MAX_SHARDS};

use super::{ConfigRef, PodFacts};

/// How many shards a pod mounts, as its injection recorded it; `None` where the record is none that injection writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mounts {
    /// ConfigMaps with endpoints.
    pub endpoints: Option<usize>,
    /// Secrets with credentials; 0: there is no volume for them.
    pub credentials: Option<usize>,
}

impl Mounts {
    /// Reads annotation `weft.dev/status`, which anybody may have written who can write the pod.
    pub(super) fn read(status: Option<&Value>) -> Self {
        let number = |name: &str, least: usize| {
            let number = status?.get(name)?.as_u64()?;
            let number = usize::try_from(number).ok()?;
            (least..=MAX_SHARDS).contains(&number).then_some(number)
        };
        Self {
            endpoints: number("epShards", 1),
            credentials: number("tlsShards", 0),
        }
    }
}

/// The narrowest pods of each namespace, and the widths of each key's.
#[derive(Debug, Default)]
pub(super) struct Narrowest {
    endpoints: BTreeMap<String, usize>,
    credentials: BTreeMap<ConfigRef, Volumes>,
}

/// What the pods of a key mount for credentials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Volumes {
    /// Smallest number of Secrets of those that mount any; `None`: no pod does.
    pub(super) smallest: Option<usize>,
    /// Some mount none.
    pub(super) some_without: bool,
}

impl Narrowest {
    /// Of pods that have not ended. One whose record is unreadable counts as the settings say.
    pub(super) fn of(pods: &BTreeMap<(String, String), PodFacts>, limits: &Limits) -> Self {
        let mut this = Self::default();
        for ((namespace, _), pod) in pods.iter().filter(|(_, pod)| !pod.ended) {
            let own = pod.mounts.endpoints.unwrap_or(limits.endpoint_shards);
            match this.endpoints.get_mut(namespace) {
                Some(least) => *least = own.min(*least),
                None => drop(this.endpoints.insert(namespace.clone(), own)),
            }
            let reference = ConfigRef {
                namespace: namespace.clone(),
                key: pod.key.clone(),
            };
            let volumes = this.credentials.entry(reference).or_default();
            match pod.mounts.credentials {
                Some(0) => volumes.some_without = true,
                Some(own) => volumes.smallest = Some(volumes.smallest.map_or(own, |least| least.min(own))),
                None => {}
            }
        }
        this
    }

    /// Shards for the endpoints of a namespace: so many that each of its pods mounts all of them.
    pub(super) fn endpoints(&self, namespace: &str, limits: &Limits) -> usize {
        self.endpoints.get(namespace).copied().unwrap_or(limits.endpoint_shards)
    }

    /// What the pods of a key mount for credentials.
    pub(super) fn credentials(&self, reference: &ConfigRef) -> Volumes {
        self.credentials.get(reference).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
