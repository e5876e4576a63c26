//! Metrics of the operator, in the text format of Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::render::Output;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    kind: &'static str,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    render: Histogram,
    rendered: Family<Part, Gauge>,
    failures: Gauge,
    writes: Family<Outcome, Counter>,
    nudges: Family<Outcome, Counter>,
    issued: Counter,
    propagation: Histogram,
    leader: Gauge<i64>,
    pods: Family<Outcome, Gauge<u64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::default(),
            render: seconds(),
            rendered: Family::default(),
            failures: Gauge::default(),
            writes: Family::default(),
            nudges: Family::default(),
            issued: Counter::default(),
            propagation: Histogram::new(exponential_buckets(0.125, 2.0, 12)),
            leader: Gauge::default(),
            pods: Family::default(),
        };
        let r = &mut metrics.registry;
        r.register(
            "weft_render_seconds",
            "Time of one rendering of everything",
            metrics.render.clone(),
        );
        r.register(
            "weft_rendered_objects",
            "Rendered bundles by kind",
            metrics.rendered.clone(),
        );
        r.register(
            "weft_render_failures",
            "Bundles whose last version stays",
            metrics.failures.clone(),
        );
        r.register("weft_writes", "Rendered objects written", metrics.writes.clone());
        r.register("weft_nudge", "Nudges of pods", metrics.nudges.clone());
        r.register("weft_ca_issued", "Certificates issued", metrics.issued.clone());
        let help = "From a changed object to the pod's acknowledgement";
        r.register("weft_config_propagation_seconds", help, metrics.propagation.clone());
        r.register("weft_leader", "1 while this replica leads", metrics.leader.clone());
        r.register(
            "weft_pods",
            "Running pods with a sidecar, by acknowledgement",
            metrics.pods.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Everything in the text format.
    ///
    /// # Errors
    /// That a metric could not be written.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    pub(crate) fn rendered(&self, elapsed: Duration, output: &Output) {
        self.render.observe(elapsed.as_secs_f64());
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.rendered
            .get_or_create(&Part { kind: "cfg" })
            .set(count(output.configs.len()));
        self.rendered
            .get_or_create(&Part { kind: "ep" })
            .set(count(output.endpoints.len()));
        self.failures.set(count(output.failures.len()));
    }

    pub(crate) fn written(&self) {
        self.writes.get_or_create(&Outcome { result: "ok" }).inc();
    }

    pub(crate) fn refused(&self) {
        self.writes.get_or_create(&Outcome { result: "error" }).inc();
    }

    pub(crate) fn nudged(&self, is_ok: bool) {
        self.nudges
            .get_or_create(&Outcome {
                result: if is_ok { "ok" } else { "error" },
            })
            .inc();
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn propagated(&self, elapsed: Duration) {
        self.propagation.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(crate) fn pods(&self, acknowledged: usize, all: usize) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.pods
            .get_or_create(&Outcome { result: "acknowledged" })
            .set(count(acknowledged));
        self.pods
            .get_or_create(&Outcome { result: "pending" })
            .set(count(all.saturating_sub(acknowledged)));
    }
}
