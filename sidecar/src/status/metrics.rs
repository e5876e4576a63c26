//! Series of the process, beside those of traffic.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{Status, seconds};
use crate::overload::Pressure;

impl Status {
    /// Series of the process, beside those of traffic.
    pub(super) fn metrics(&self) -> String {
        let report = self.reload.report();
        let mut out = self.shared.telemetry.prometheus();
        let mut gauge = |name: &str, help: &str, values: &[(String, f64)]| {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
            for (labels, value) in values {
                out.push_str(&format!("{name}{labels} {value}\n"));
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "times and sizes are far below 2^52")]
        let number = |n: u64| n as f64;
        let build = format!("{{version=\"{}\",component=\"proxy\"}}", env!("CARGO_PKG_VERSION"));
        gauge("weft_build_info", "Version.", &[(build, 1.0)]);
        let since: Vec<_> = report
            .served_since
            .iter()
            .map(|(part, at)| (format!("{{part=\"{part}\"}}"), number(*at)))
            .collect();
        gauge(
            "weft_served_since_timestamp_seconds",
            "Activation of what is in use.",
            &since,
        );
        if let Some(identity) = self.shared.identity.load().as_ref() {
            let left = identity
                .not_after
                .duration_since(SystemTime::now())
                .map_or(0.0, |d| d.as_secs_f64());
            let at = number(seconds(identity.not_after));
            gauge(
                "weft_served_not_after_timestamp_seconds",
                "End of the certificate in use.",
                &[(String::new(), at)],
            );
            let mut expiry = vec![("{resource_name=\"default\"}".to_owned(), left)];
            if let Some(root) = identity.anchors_not_after.iter().min() {
                let left = root.duration_since(SystemTime::now()).map_or(0.0, |d| d.as_secs_f64());
                expiry.push(("{resource_name=\"ROOTCA\"}".to_owned(), left));
            }
            gauge(
                "istio_agent_cert_expiry_seconds",
                "Time left of certificates in use.",
                &expiry,
            );
            let expired = u64::try_from(identity.expired_anchors()).unwrap_or(u64::MAX);
            gauge(
                "weft_trust_anchor_expired",
                "Anchors past their end.",
                &[(String::new(), number(expired))],
            );
        }
        let behind = report
            .behind_since
            .map_or(0, |since| crate::reload::now().saturating_sub(since));
        gauge(
            "weft_config_behind_seconds",
            "Time behind the target.",
            &[(String::new(), number(behind))],
        );
        let mode = format!("{{mode=\"{}\"}}", self.reload.watch_mode());
        gauge("weft_config_watch_mode", "How changes are noticed.", &[(mode, 1.0)]);
        let open = self.shared.connections.load(Ordering::Relaxed);
        gauge(
            "weft_downstream_connections",
            "Open downstream connections.",
            &[(String::new(), number(open))],
        );
        gauge(
            "weft_memory_bytes",
            "Resident memory.",
            &[(String::new(), number(crate::overload::resident()))],
        );
        let pressure = self.shared.overload.pressure();
        let active = |action: &str, least| {
            (
                format!("{{action=\"{action}\"}}"),
                f64::from(u8::from(pressure >= least)),
            )
        };
        gauge(
            "weft_overload_active",
            "What gives way to memory pressure.",
            &[
                active("close_idle_upstreams", Pressure::High),
                active("stop_accepting", Pressure::High),
                active("refuse_requests", Pressure::Critical),
            ],
        );
        let counters = self.reload.counters();
        out.push_str(&format!(
            "# HELP weft_config_activated_total Activated configurations.\n# TYPE weft_config_activated_total counter\n\
             weft_config_activated_total {}\n",
            counters.activated.load(Ordering::Relaxed)
        ));
        out.push_str(&format!(
            "# HELP weft_log_dropped_total Lines of the process log that were not written in time.\n\
             # TYPE weft_log_dropped_total counter\nweft_log_dropped_total {}\n",
            crate::log::dropped()
        ));
        let mut labelled = |name: &str, label: &str, counts: &std::sync::Mutex<BTreeMap<&'static str, u64>>| {
            out.push_str(&format!("# HELP {name} Outcomes.\n# TYPE {name} counter\n"));
            for (value, count) in counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
                out.push_str(&format!("{name}{{{label}=\"{value}\"}} {count}\n"));
            }
        };
        labelled("weft_config_rejected_total", "reason", &counters.rejected);
        labelled("weft_cert_reload_total", "result", &counters.identity);
        out
    }
}
