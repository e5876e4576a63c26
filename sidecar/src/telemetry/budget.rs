//! How many label sets the proxy counts apart from each other, in all of its workers together (CARD-002, CARD-004).

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use tokio::time::{Duration, Instant};

use super::Name;
use super::series::{ConnectionKey, Key};

/// Label sets of each metric that a sidecar counts apart (BYD-035).
pub const OF_SIDECARS: NonZeroUsize = NonZeroUsize::new(500).expect("not zero");
/// The same of a gateway, whose clients are all of the mesh.
pub const OF_GATEWAYS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// Values of `destination_service` that clients choose by their Host headers.
const HOSTS: usize = 50;
/// How often at most it is told that a budget is used up.
const WARNING: Duration = Duration::from_secs(600);

/// Values that have been admitted, up to a number.
#[derive(Debug)]
pub(super) struct Admitted<T> {
    most: usize,
    all: RwLock<HashSet<T>>,
}

impl<T: Eq + Hash> Admitted<T> {
    fn new(most: usize) -> Self {
        Self {
            most,
            all: RwLock::default(),
        }
    }

    /// Whether the value is one of them, or becomes one because there is room.
    pub(super) fn admit<Q: Eq + Hash + ?Sized>(&self, value: &Q, own: impl FnOnce() -> T) -> bool
    where
        T: Borrow<Q>,
    {
        {
            let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
            if all.contains(value) {
                return true;
            }
            if all.len() >= self.most {
                return false;
            }
        }
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        // Another worker may have been faster.
        if all.len() >= self.most && !all.contains(value) {
            return false;
        }
        all.insert(own());
        true
    }

    /// Those that there are.
    pub(super) fn all(&self) -> HashSet<T>
    where
        T: Clone,
    {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes room.
    pub(super) fn forget<'v>(&self, values: impl IntoIterator<Item = &'v T>)
    where
        T: 'v,
    {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        for value in values {
            all.remove(value);
        }
    }

    fn clear(&self) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Metrics that have a budget together, since their label sets are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Requests,
    Messages,
    Opened,
    Closed,
}

impl Family {
    const ALL: [Self; 4] = [Self::Requests, Self::Messages, Self::Opened, Self::Closed];

    fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::Requests => &[
                "istio_requests_total",
                "istio_request_duration_milliseconds",
                "istio_request_bytes",
                "istio_response_bytes",
            ],
            Self::Messages => &["istio_request_messages_total", "istio_response_messages_total"],
            Self::Opened => &["istio_tcp_connections_opened_total"],
            Self::Closed => &[
                "istio_tcp_connections_closed_total",
                "istio_tcp_sent_bytes_total",
                "istio_tcp_received_bytes_total",
            ],
        }
    }
}

/// What the workers of a proxy share: touched when a label set is new to a worker, and not by what a worker has counted before.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    pub(super) requests: Admitted<Key>,
    pub(super) connections: Admitted<ConnectionKey>,
    pub(super) hosts: Admitted<Name>,
    overflow: [AtomicU64; Family::ALL.len()],
    warned: Mutex<Warned>,
}

/// What was told of.
#[derive(Debug, Default)]
struct Warned {
    last: Option<Instant>,
    overflow: [u64; Family::ALL.len()],
}

impl Budget {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        let most = most.get();
        Self {
            most,
            requests: Admitted::new(most),
            connections: Admitted::new(most),
            hosts: Admitted::new(HOSTS),
            overflow: std::array::from_fn(|_| AtomicU64::new(0)),
            warned: Mutex::default(),
        }
    }

    /// Counts a record beyond the budget.
    pub(super) fn exceeded(&self, family: Family) {
        self.overflow[family as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records beyond the budget, by metric.
    pub(super) fn overflow(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Family::ALL.into_iter().flat_map(|family| {
            let count = self.overflow[family as usize].load(Ordering::Relaxed);
            family.metrics().iter().map(move |metric| (*metric, count))
        })
    }

    /// The first metrics of which there is more beyond the budget than was told; once in ten minutes.
    pub(super) fn warning(&self, now: Instant) -> Option<String> {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = Family::ALL.map(|family| self.overflow[family as usize].load(Ordering::Relaxed));
        let grown = Family::ALL.into_iter().filter(|family| {
            let n = *family as usize;
            counts[n] > warned.overflow[n]
        });
        let metrics: Vec<&str> = grown.map(|family| family.metrics()[0]).collect();
        let is_due = warned
            .last
            .is_none_or(|last| now.saturating_duration_since(last) >= WARNING);
        if metrics.is_empty() || !is_due {
            return None;
        }
        *warned = Warned {
            last: Some(now),
            overflow: counts,
        };
        Some(metrics.join(", "))
    }

    /// The setting.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Begins anew.
    pub(super) fn clear(&self) {
        self.requests.clear();
        self.connections.clear();
        self.hosts.clear();
        for count in &self.overflow {
            count.store(0, Ordering::Relaxed);
        }
        self.warned.lock().unwrap_or_else(PoisonError::into_inner).overflow = Default::default();
    }
}
