//! Metrics and access log: the data path's way out.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};
use weft_bundle::model::{Denial, EndpointTable};
use weft_bundle::wire::AccessLog;

use crate::exchange::{Exchange, Session};

pub mod access_log;
pub mod budget;
mod series;

use access_log::Log;
use budget::Budget;
use series::{Present, Series, Vanished};

/// Takes what was recorded. All methods are called from worker threads and must not block.
#[derive(Debug)]
pub struct Telemetry {
    /// One set of series for each worker, so that none waits for another; a scrape adds them up.
    workers: Vec<Mutex<Series>>,
    budget: Arc<Budget>,
    begun: Instant,
    /// Minutes since then, as of the last [`Telemetry::tend`].
    minute: AtomicU32,
    counters: [AtomicU64; Counter::ALL.len()],
    /// Connections and streams that a new configuration refused, by what refused them.
    cut_off: Mutex<BTreeMap<String, u64>>,
    log: Log,
    cluster_id: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new(1, "Kubernetes", budget::OF_SIDECARS)
    }
}

impl Telemetry {
    /// For a number of workers, in the cluster of that id, with so many label sets of each metric.
    #[must_use]
    pub fn new(workers: usize, cluster_id: &str, most_series: NonZeroUsize) -> Self {
        let budget = Arc::new(Budget::new(most_series));
        let series = |_| Mutex::new(Series::new(budget.clone(), 0));
        Self {
            workers: (0..workers.max(1)).map(series).collect(),
            budget,
            begun: Instant::now(),
            minute: AtomicU32::new(0),
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            cut_off: Mutex::default(),
            log: Log::start(workers),
            cluster_id: cluster_id.to_owned(),
        }
    }

    /// Takes the access log's settings of a new configuration.
    pub fn configure(&self, log: Option<&AccessLog>) {
        self.log.configure(log);
    }

    /// Records a request at its end.
    pub fn record(&self, exchange: &Exchange) {
        self.series(exchange.downstream.worker)
            .request(exchange, &self.cluster_id);
        self.log.request(exchange);
    }

    /// Counts a TCP connection as opened.
    pub fn opened_tcp(&self, session: &Session) {
        self.series(session.downstream.worker).opened(session, &self.cluster_id);
    }

    /// Records a TCP connection at its end.
    pub fn record_tcp(&self, session: &Session) {
        self.series(session.downstream.worker).closed(session, &self.cluster_id);
        self.log.session(session);
    }

    /// Whether log formats or filters name header fields beyond the default ones.
    #[must_use]
    pub fn keeps_headers(&self) -> bool {
        self.log.keeps_headers()
    }

    /// Counts an event of the data path by the name of its counter.
    pub fn count(&self, counter: Counter) {
        self.counters[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a connection or a stream that a new configuration refuses (BYD-002).
    pub fn cut_off(&self, denial: &Denial) {
        let policy = match &denial.origin {
            Some(origin) => format!("{} {}/{}", origin.kind, origin.namespace, origin.name),
            None => denial.details.to_string(),
        };
        tracing::info!(policy, "connection or stream closed: the new configuration refuses it");
        let mut all = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(policy).or_default() += 1;
    }

    /// Begins to count anew (LIFE-072).
    pub fn reset(&self) {
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // All at once, so that none counts what the budget does not know.
        let mut workers = self.all_series();
        self.budget.clear();
        for series in &mut workers {
            **series = self.no_series();
        }
        drop(workers);
        for counter in &self.counters {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// Looks after the series, called every few seconds: drops those of peers that do not exist any more once they were idle
    /// for 15 minutes, so that there is room for others, and tells when there is none (BYD-035, CARD-002, CARD-003).
    pub fn tend(&self, now: Instant, endpoints: &EndpointTable) {
        if let Some(metrics) = self.budget.warning(now) {
            tracing::warn!(
                metrics,
                budget = self.budget.most(),
                "metrics have more label sets than telemetry.maxSeriesPerMetric, further ones are counted as other"
            );
        }
        let minute = now.saturating_duration_since(self.begun).as_secs() / MINUTE.as_secs();
        let minute = u32::try_from(minute).unwrap_or(u32::MAX);
        if self.minute.swap(minute, Ordering::Relaxed) == minute {
            return;
        }
        // Workers wait for it, so all of them at once only where something is to be dropped.
        let present = Present::of(endpoints);
        let mut is_any = false;
        for worker in &self.workers {
            let mut series = worker.lock().unwrap_or_else(PoisonError::into_inner);
            series.begin(minute);
            is_any |= !Vanished::of(&[series.aged(IDLE_MINUTES)], &present).is_empty();
        }
        if !is_any {
            return;
        }
        let mut workers = self.all_series();
        let aged: Vec<_> = workers.iter().map(|series| series.aged(IDLE_MINUTES)).collect();
        let vanished = Vanished::of(&aged, &present);
        drop(aged);
        for series in &mut workers {
            series.remove(&vanished);
        }
        self.budget.requests.forget(&vanished.requests);
        self.budget.connections.forget(&vanished.connections);
    }

    /// Waits until lines that were logged so far are written, for a second at most (LIFE-023).
    pub fn flush(&self) {
        self.log.flush();
    }

    /// All series in Prometheus' text format 0.0.4 (LIFE-063).
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut all = self.no_series();
        for worker in &self.workers {
            all.add(&worker.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let mut out = all.print();
        for (counter, value) in Counter::ALL.iter().zip(&self.counters) {
            let (name, help) = counter.describe();
            let value = value.load(Ordering::Relaxed);
            out.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n"
            ));
        }
        let cut_off = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.push_str(
            "# HELP weft_policy_closed_total Open connections and streams that a new policy refused.\n\
             # TYPE weft_policy_closed_total counter\n",
        );
        for (policy, count) in cut_off {
            out.push_str(&format!("weft_policy_closed_total{{policy=\"{policy}\"}} {count}\n"));
        }
        let dropped = self.log.dropped();
        out.push_str(&format!(
            "# HELP weft_accesslog_dropped_total Lines that the log could not take in time.\n\
             # TYPE weft_accesslog_dropped_total counter\nweft_accesslog_dropped_total {dropped}\n"
        ));
        out
    }

    fn no_series(&self) -> Series {
        Series::new(self.budget.clone(), self.minute.load(Ordering::Relaxed))
    }

    /// Of all workers, which wait meanwhile.
    fn all_series(&self) -> Vec<MutexGuard<'_, Series>> {
        let lock = |worker| Mutex::lock(worker).unwrap_or_else(PoisonError::into_inner);
        self.workers.iter().map(lock).collect()
    }

    fn series(&self, worker: usize) -> MutexGuard<'_, Series> {
        // Held by its worker alone, but for a scrape.
        let slot = worker % self.workers.len();
        self.workers[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long series of peers that vanished stay (CARD-003).
const IDLE_MINUTES: u32 = 15;
const MINUTE: Duration = Duration::from_secs(60);

/// A name that many series share.
type Name = Arc<str>;

/// Counters of the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// `weft_inbound_self_port_rejected_total` (NET-013).
    InboundSelfPort,
    /// `weft_inbound_foreign_destination_total` (NET-014).
    InboundForeignDestination,
    /// `weft_upstream_vip_fallback_total` (DLV-115).
    VipFallback,
    /// `weft_upstream_failover_total`: connects that went to another endpoint (DLV-113).
    Failover,
    /// `weft_upstream_replay_total`: requests sent again after a keep-alive race (BYD-014).
    Replay,
    /// `weft_upstream_retry_total`: retries of the policy.
    Retry,
    /// `weft_outlier_ejections_total`.
    Ejection,
    /// `weft_tls_handshake_failed_total`, server side.
    HandshakeFailed,
    /// `weft_task_panics_total` (LIFE-037).
    TaskPanic,
    /// `weft_accept_failed_total`.
    AcceptFailed,
    /// `weft_descriptors_refused_total` (LIFE-087).
    DescriptorsUsed,
    /// `weft_dns_answered_total` (NET-094).
    DnsAnswered,
    /// `weft_dns_forwarded_total` (NET-094).
    DnsForwarded,
    /// `weft_dns_failed_total` (NET-094).
    DnsFailed,
}

impl Counter {
    const ALL: [Self; 14] = [
        Self::InboundSelfPort,
        Self::InboundForeignDestination,
        Self::VipFallback,
        Self::Failover,
        Self::Replay,
        Self::Retry,
        Self::Ejection,
        Self::HandshakeFailed,
        Self::TaskPanic,
        Self::AcceptFailed,
        Self::DescriptorsUsed,
        Self::DnsAnswered,
        Self::DnsForwarded,
        Self::DnsFailed,
    ];

    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::InboundSelfPort => (
                "weft_inbound_self_port_rejected_total",
                "Connections to the proxy's own ports.",
            ),
            Self::InboundForeignDestination => (
                "weft_inbound_foreign_destination_total",
                "Inbound connections to addresses that are not the pod's.",
            ),
            Self::VipFallback => (
                "weft_upstream_vip_fallback_total",
                "Connections by the address of the service.",
            ),
            Self::Failover => (
                "weft_upstream_failover_total",
                "Failed connects that went to another endpoint.",
            ),
            Self::Replay => (
                "weft_upstream_replay_total",
                "Requests sent again after a keep-alive race.",
            ),
            Self::Retry => ("weft_upstream_retry_total", "Retries by policy."),
            Self::Ejection => ("weft_outlier_ejections_total", "Ejections by outlier detection."),
            Self::HandshakeFailed => ("weft_tls_handshake_failed_total", "Failed TLS handshakes as a server."),
            Self::TaskPanic => ("weft_task_panics_total", "Connections that ended by a panic."),
            Self::AcceptFailed => ("weft_accept_failed_total", "Connections that could not be accepted."),
            Self::DescriptorsUsed => (
                "weft_descriptors_refused_total",
                "Connections refused because descriptors were nearly used up.",
            ),
            Self::DnsAnswered => ("weft_dns_answered_total", "Captured DNS queries for names of the mesh."),
            Self::DnsForwarded => (
                "weft_dns_forwarded_total",
                "Captured DNS queries that servers were asked.",
            ),
            Self::DnsFailed => ("weft_dns_failed_total", "Captured DNS queries without an answer."),
        }
    }
}
