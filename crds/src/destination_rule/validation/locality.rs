//! Preference by place (DR-055..DR-071).

use crate::destination_rule::{LocalityFailover, LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting};
use crate::validate::Report;

pub(crate) fn check_locality(
    report: &mut Report,
    path: &str,
    locality: &LocalityLoadBalancerSetting,
    has_outlier: bool,
) {
    let LocalityLoadBalancerSetting {
        enabled: _,
        distribute,
        failover,
        failover_priority,
    } = locality;
    if !distribute.is_empty() && !failover.is_empty() {
        report.error(
            &format!("{path}.distribute"),
            "",
            "cannot stand beside failover; remove one of them",
        );
    }
    if (!failover.is_empty() || !failover_priority.is_empty()) && !has_outlier {
        report.warn(&format!(
            "{path}: failover has no effect without outlierDetection in the same policy"
        ));
    }
    check_failover(report, path, failover);
    for (n, key) in failover_priority.iter().enumerate() {
        let key = key.split('=').next().unwrap_or_default();
        if !failover.is_empty() && TOPOLOGY.contains(&key) {
            report.error(
                &format!("{path}.failoverPriority[{n}]"),
                key,
                "cannot stand beside failover",
            );
        }
    }
    for (n, entry) in distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{n}]");
        let is_bad = |l: &str| l.is_empty() || l.trim_end_matches('*').contains('*');
        for name in std::iter::once(&entry.from)
            .chain(entry.to.keys())
            .filter(|l| is_bad(l))
        {
            report.error(
                &path,
                name,
                "must be a locality region/zone/subzone, with `*` at its end alone",
            );
        }
        if distribute[..n]
            .iter()
            .any(|earlier| overlaps(&earlier.from, &entry.from))
        {
            report.error(&format!("{path}.from"), &entry.from, "overlaps an earlier entry");
        }
        let targets: Vec<&String> = entry.to.keys().collect();
        for (n, target) in targets
            .iter()
            .enumerate()
            .filter(|(n, t)| targets[..*n].iter().any(|e| overlaps(e, t)))
        {
            report.error(&format!("{path}.to[{n}]"), target, "overlaps another entry");
        }
        let in_range = entry.to.values().all(|share| (1..=100).contains(share));
        if !in_range || entry.to.values().sum::<i64>() != 100 {
            report.error(
                &format!("{path}.to"),
                "",
                "must be percentages of 1 to 100 that are 100 in sum",
            );
        }
    }
}

/// Zone-aware balancing (DR-068, DR-070).
pub(crate) fn check_zones(report: &mut Report, path: &str, zones: &ZoneAwareLoadBalancerSetting) {
    let ZoneAwareLoadBalancerSetting {
        enabled: _,
        failover,
        failover_priority,
        min_cluster_size,
    } = zones;
    check_failover(report, path, failover);
    for (n, entry) in failover_priority.iter().enumerate() {
        if TOPOLOGY.contains(&entry.split('=').next().unwrap_or_default()) {
            let message = "must be a label of pods; places are what zone-aware balancing orders already";
            report.error(&format!("{path}.failoverPriority[{n}]"), entry, message);
        }
    }
    if let Some(size) = min_cluster_size.filter(|s| *s < 1) {
        report.error(
            &format!("{path}.minClusterSize"),
            &size.to_string(),
            "must be 1 or more",
        );
    }
}

/// Regions that stand in for others (DR-060).
fn check_failover(report: &mut Report, path: &str, failover: &[LocalityFailover]) {
    for (n, entry) in failover.iter().enumerate() {
        let path = format!("{path}.failover[{n}]");
        if entry.from == entry.to {
            report.error(&path, &entry.from, "must name two different regions");
        }
        for (name, region) in [("from", &entry.from), ("to", &entry.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                report.error(
                    &format!("{path}.{name}"),
                    region,
                    "must be a region, without zone and wildcard",
                );
            }
        }
    }
}

/// Whether some locality fits both: part by part, each of which may end in `*`, and a shorter one holds the longer.
fn overlaps(one: &str, other: &str) -> bool {
    let covers = |a: &str, b: &str| {
        let prefix = a.strip_suffix('*');
        prefix.is_some_and(|prefix| b.trim_end_matches('*').starts_with(prefix))
    };
    for (a, b) in one.split('/').zip(other.split('/')) {
        if covers(a, b) || covers(b, a) {
            return true;
        }
        if a != b {
            return false;
        }
    }
    true
}

/// Labels that say where an endpoint is.
const TOPOLOGY: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];
