//! Which series belong to peers that do not exist any more (CARD-003).

use std::collections::HashSet;

use weft_bundle::model::EndpointTable;
use weft_bundle::wire::PeerWorkload;

use super::{ConnectionKey, Key, Peers};
use crate::exchange::Direction;

/// Series of one worker, and whether each is idle.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Aged<'s> {
    pub(super) requests: Vec<(&'s Key, bool)>,
    pub(super) connections: Vec<(&'s ConnectionKey, bool)>,
}

/// Series of peers that do not exist any more.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Vanished {
    pub(in crate::telemetry) requests: HashSet<Key>,
    pub(in crate::telemetry) connections: HashSet<ConnectionKey>,
}

impl Vanished {
    /// Those that are idle in all workers that have them, since a scrape adds these up.
    pub(in crate::telemetry) fn of(workers: &[Aged<'_>], present: &Present<'_>) -> Self {
        let requests = workers.iter().flat_map(|aged| &aged.requests);
        let connections = workers.iter().flat_map(|aged| &aged.connections);
        let mut this = Self::default();
        for (key, is_idle) in requests.clone() {
            if *is_idle && key.peers.has_vanished(present) {
                this.requests.insert((*key).clone());
            }
        }
        for (key, is_idle) in connections.clone() {
            if *is_idle && key.0.has_vanished(present) {
                this.connections.insert((*key).clone());
            }
        }
        // Some worker may have traffic of them.
        for (key, _) in requests.filter(|(_, is_idle)| !is_idle) {
            this.requests.remove(*key);
        }
        for (key, _) in connections.filter(|(_, is_idle)| !is_idle) {
            this.connections.remove(*key);
        }
        this
    }

    pub(in crate::telemetry) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.connections.is_empty()
    }
}

/// What exists.
pub(in crate::telemetry) struct Present<'t> {
    table: &'t EndpointTable,
    /// Namespace and name.
    workloads: HashSet<(&'t str, &'t str)>,
}

impl<'t> Present<'t> {
    pub(in crate::telemetry) fn of(table: &'t EndpointTable) -> Self {
        let workloads = table.peers().map(|peer| (peer.namespace.as_str(), peer.name.as_str()));
        Self {
            table,
            workloads: workloads.collect(),
        }
    }

    fn has(&self, peer: &PeerWorkload) -> bool {
        self.workloads.contains(&(peer.namespace.as_str(), peer.name.as_str()))
    }
}

impl Peers {
    /// Whether the other side does not exist any more: the endpoints name neither a workload nor, where none was reached,
    /// the host.
    fn has_vanished(&self, present: &Present<'_>) -> bool {
        if self.other {
            return false;
        }
        match (self.direction, &self.source, &self.destination) {
            (Direction::Inbound, Some(peer), _) | (Direction::Outbound, _, Some(peer)) => !present.has(peer),
            (Direction::Inbound, None, _) => false,
            // What is passed through belongs to no namespace, and its names are few (CARD-004).
            (Direction::Outbound, _, None) => {
                &*self.service_namespace != "unknown" && present.table.host(&self.service).is_none()
            }
        }
    }
}
