//! Metrics of the webhook (INJ-211, INJ-212, OPS-161).

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::admission::Outcome;

/// Every series of the webhook.
#[derive(Debug)]
pub struct Metrics {
    injections: Counter,
    injected: Counter,
    skipped: Family<Reason, Counter>,
    failed: Family<Reason, Counter>,
    failures: Counter,
    injection_seconds: Histogram,
    validations: Family<ResultLabel, Counter>,
    validation_seconds: Histogram,
    config_rejected: Counter,
    cert_expiry: Gauge<i64, AtomicI64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// Makes the series and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        // 0.1 ms to 1.6 s
        let histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 15));
        let metrics = Self {
            injections: Counter::default(),
            injected: Counter::default(),
            skipped: Family::default(),
            failed: Family::default(),
            failures: Counter::default(),
            injection_seconds: histogram(),
            validations: Family::default(),
            validation_seconds: histogram(),
            config_rejected: Counter::default(),
            cert_expiry: Gauge::default(),
        };
        registry.register(
            "weft_injection_requests",
            "Requests to inject",
            metrics.injections.clone(),
        );
        registry.register("weft_injection_success", "Pods injected", metrics.injected.clone());
        registry.register(
            "weft_injection_skipped",
            "Pods left as they are, by reason",
            metrics.skipped.clone(),
        );
        registry.register(
            "weft_injection_failed",
            "Pods refused, by reason",
            metrics.failed.clone(),
        );
        // The names that upstream's dashboards and alerts read (PROM-015).
        registry.register(
            "sidecar_injection_requests",
            "Requests to inject",
            metrics.injections.clone(),
        );
        registry.register("sidecar_injection_success", "Pods injected", metrics.injected.clone());
        registry.register("sidecar_injection_failure", "Pods refused", metrics.failures.clone());
        registry.register(
            "weft_injection_seconds",
            "Time to answer a request to inject",
            metrics.injection_seconds.clone(),
        );
        registry.register(
            "weft_validation",
            "Objects validated, by result",
            metrics.validations.clone(),
        );
        registry.register(
            "weft_validation_seconds",
            "Time to answer a request to validate",
            metrics.validation_seconds.clone(),
        );
        registry.register(
            "weft_injector_config_rejected",
            "Versions of the settings that were not taken",
            metrics.config_rejected.clone(),
        );
        registry.register(
            "weft_injector_cert_expiry_timestamp_seconds",
            "End of the serving certificate's validity",
            metrics.cert_expiry.clone(),
        );
        metrics
    }

    /// Counts an answer of the injector.
    pub fn injection(&self, outcome: Outcome, seconds: f64) {
        self.injections.inc();
        self.injection_seconds.observe(seconds);
        match outcome {
            Outcome::Success(_) => {
                self.injected.inc();
            }
            Outcome::Skipped(reason) => {
                self.skipped.get_or_create(&Reason { reason }).inc();
            }
            Outcome::Failed(reason) => {
                self.failures.inc();
                self.failed.get_or_create(&Reason { reason }).inc();
            }
        }
    }

    /// Counts an answer of the validator.
    pub fn validation(&self, outcome: Outcome, seconds: f64) {
        let result = match outcome {
            Outcome::Success(_) => "valid",
            Outcome::Skipped(_) => "skipped",
            Outcome::Failed(reason) => reason,
        };
        self.validations.get_or_create(&ResultLabel { result }).inc();
        self.validation_seconds.observe(seconds);
    }

    /// Counts a version of the settings that was not taken.
    pub fn config_rejected(&self) {
        self.config_rejected.inc();
    }

    /// Shows the end of the served certificate's validity.
    pub fn certificate(&self, not_after: i64) {
        self.cert_expiry.set(not_after);
    }
}
