//! Checks that several kinds share (SM-121 ff.).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use regex::bytes::RegexBuilder;

use super::{Report, host, re2};
use crate::duration::Duration;
use crate::virtual_service::{Percent, StringMatch};

/// A port number (SM-122).
pub fn port(report: &mut Report, path: &str, number: i64) {
    if !(1..=65535).contains(&number) {
        report.error(path, &number.to_string(), "must be a port, 1 to 65535");
    }
}

/// A number that may not be negative.
pub fn not_negative(report: &mut Report, path: &str, number: Option<i64>) {
    if let Some(number) = number.filter(|n| *n < 0) {
        report.error(path, &number.to_string(), "must be 0 or more");
    }
}

/// A number of a range.
pub fn within(report: &mut Report, path: &str, number: Option<i64>, range: std::ops::RangeInclusive<i64>) {
    if let Some(number) = number.filter(|n| !range.contains(n)) {
        report.error(
            path,
            &number.to_string(),
            &format!("must be {} to {}", range.start(), range.end()),
        );
    }
}

/// A duration of at least 1 ms in whole milliseconds (SM-121); `zero` allows 0s too.
pub fn duration(report: &mut Report, path: &str, value: &Duration, zero: bool) {
    let text = value.to_string();
    match value.value() {
        None => report.error(path, &text, "must be a duration such as 500ms, 1.5s or 1h10m"),
        Some(d) if d.is_zero() && zero => {}
        Some(d) if d < std::time::Duration::from_millis(1) => report.error(path, &text, "must be at least 1ms"),
        Some(d) if d.subsec_nanos() % 1_000_000 != 0 => {
            report.error(path, &text, "must be a whole number of milliseconds");
        }
        Some(_) => {}
    }
}

/// [`duration`], where the field is set.
pub fn optional_duration(report: &mut Report, path: &str, value: Option<&Duration>, zero: bool) {
    if let Some(value) = value {
        duration(report, path, value, zero);
    }
}

/// One of the texts of a list.
pub fn one_of(report: &mut Report, path: &str, value: &str, allowed: &[&str]) {
    if !allowed.contains(&value) {
        report.error(path, value, &format!("must be one of {}", allowed.join(", ")));
    }
}

/// A share of 0 to 100 (SM-127).
pub fn percent(report: &mut Report, path: &str, percent: Option<Percent>, fault: bool) {
    let Some(Percent { value }) = percent else { return };
    let ok = if fault {
        value == 0.0 || (0.0001..=100.0).contains(&value)
    } else {
        (0.0..=100.0).contains(&value)
    };
    if !ok {
        let message = if fault {
            "must be 0, or 0.0001 to 100"
        } else {
            "must be 0 to 100"
        };
        report.error(path, &value.to_string(), message);
    }
}

/// A regular expression in RE2 syntax (SM-123).
pub fn regex(report: &mut Report, path: &str, expression: &str) {
    if expression.is_empty() {
        report.error(path, "", "must not be empty");
        return;
    }
    if expression.len() > 1024 {
        report.error(path, expression, "must have at most 1024 bytes");
        return;
    }
    if let Some(problem) = re2::problem(expression) {
        report.error(path, expression, &format!("must be an RE2 expression: it {problem}"));
        return;
    }
    let compile = |expression: &str| RegexBuilder::new(expression).size_limit(REGEX_SIZE_BYTES).build();
    // As proxies do: by itself, so that no parenthesis of it closes the anchoring group, then anchored.
    if let Err(e) = compile(expression).and_then(|_| compile(&format!("\\A(?:{expression})\\z"))) {
        let reason = match e {
            regex::Error::CompiledTooBig(_) => "is too large once compiled; use a shorter expression".to_owned(),
            other => {
                let text = other.to_string();
                let last = text
                    .lines()
                    .next_back()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                format!("must be an RE2 expression: {last}")
            }
        };
        report.error(path, expression, &reason);
    }
}

/// A condition: exactly one of exact, prefix and regex (VS-027, VS-032). `empty_prefix` allows an empty prefix,
/// `presence` no condition at all.
pub fn string_match(report: &mut Report, path: &str, condition: &StringMatch, empty_prefix: bool, presence: bool) {
    let StringMatch {
        exact,
        prefix,
        regex: expression,
    } = condition;
    let count = usize::from(exact.is_some()) + usize::from(prefix.is_some()) + usize::from(expression.is_some());
    if count > 1 || (count == 0 && !presence) {
        report.error(path, "", "must have exactly one of exact, prefix and regex");
    }
    if prefix.as_deref() == Some("") && !empty_prefix {
        report.error(
            &format!("{path}.prefix"),
            "",
            "must not be empty; leave the condition out to match everything",
        );
    }
    if let Some(expression) = expression {
        regex(report, &format!("{path}.regex"), expression);
    }
}

/// `exportTo` (SM-069, SM-071).
pub fn export_to(report: &mut Report, path: &str, entries: &[String], namespace: &str) {
    for (n, entry) in entries.iter().enumerate() {
        let path = format!("{path}[{n}]");
        if entries[..n].contains(entry) {
            report.error(&path, entry, "is there twice");
        } else if entry == "*" && entries.len() > 1 {
            report.error(&path, entry, "stands for all namespaces and must be the only entry");
        } else if entry == "~" {
            report.error(
                &path,
                entry,
                "is for ServiceEntry alone; leave exportTo out, or name namespaces",
            );
        } else if entry == namespace && entries.iter().any(|e| e == ".") {
            report.error(&path, entry, "is this namespace, which `.` names already");
        } else if !matches!(entry.as_str(), "." | "*") && !is_namespace(entry) {
            report.error(&path, entry, "must be a namespace, `.` for the own one, or `*` for all");
        }
    }
}

/// The annotation that asks for a policy without effect is on no kind of these (SM-124, AUTHN-009).
pub fn no_dry_run(report: &mut Report, metadata: &ObjectMeta) {
    let value = metadata.annotations.as_ref().and_then(|a| a.get("istio.io/dry-run"));
    if let Some(value) = value {
        let message = "is not supported on this kind; remove the annotation";
        report.error("metadata.annotations[istio.io/dry-run]", value, message);
    }
}

/// Labels that a selector asks for (AUTHN-004, DR-015).
pub fn match_labels(report: &mut Report, path: &str, labels: &BTreeMap<String, String>) {
    if labels.len() > MAX_LABELS {
        let message = format!("must have at most {MAX_LABELS} entries");
        report.error(path, &labels.len().to_string(), &message);
        return;
    }
    for (key, value) in labels {
        let entry = format!("{path}[{key}]");
        if key.is_empty() {
            report.error(&entry, value, "must have a key");
        }
        if key.contains('*') || value.contains('*') {
            report.error(
                &entry,
                value,
                "must be a label as pods carry it; wildcards are not supported",
            );
        } else if value.len() > 63 {
            report.error(&entry, value, "must have at most 63 characters, as labels of pods do");
        }
    }
}

/// A name of a header field (RFC 9110, section 5.1).
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

/// A namespace's name.
#[must_use]
pub fn is_namespace(name: &str) -> bool {
    host::is_label(name) && !name.bytes().any(|b| b.is_ascii_uppercase())
}

/// An address or a range of addresses.
#[must_use]
pub fn subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(longest), |p| p.parse().ok().filter(|p| *p <= longest))?;
    Some((address, prefix))
}

const MAX_LABELS: usize = 4096;
/// What a proxy spends on one compiled expression at most: it refuses to load a larger one.
const REGEX_SIZE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_fine(check: impl FnOnce(&mut Report)) -> bool {
        let mut report = Report::default();
        check(&mut report);
        report.errors.is_empty()
    }

    // spec: SM-122
    #[test]
    fn ports_are_1_to_65535() {
        let fine = |number| is_fine(|report| port(report, "p", number));
        assert!(fine(1) && fine(65535));
        assert!(!fine(0) && !fine(-1) && !fine(65536));
    }

    // spec: SM-121
    #[test]
    fn durations_are_whole_milliseconds_and_zero_where_that_is_said() {
        let fine = |text: &str, zero| is_fine(|report| duration(report, "d", &Duration::parse(text), zero));
        for zero in [true, false] {
            assert!(fine("1ms", zero) && fine("1.5s", zero) && fine("1h10m", zero));
            assert!(!fine("999us", zero) && !fine("1500us", zero) && !fine("1.0005s", zero) && !fine("10ns", zero));
            assert!(!fine("soon", zero));
            assert_eq!(fine("0s", zero), zero);
        }
    }

    // spec: SM-127
    #[test]
    fn shares_of_faults_are_not_too_small_and_none_is_more_than_all() {
        let fine = |value, fault| is_fine(|report| percent(report, "p", Some(Percent { value }), fault));
        for value in [0.0, 0.0001, 0.5, 100.0] {
            assert!(fine(value, true) && fine(value, false), "{value}");
        }
        assert!(fine(0.00009, false) && !fine(0.00009, true));
        for value in [-0.1, 100.1, f64::NAN] {
            assert!(!fine(value, true) && !fine(value, false), "{value}");
        }
    }

    // spec: SM-123
    #[test]
    fn expressions_are_of_re2_and_not_longer_than_a_kibibyte() {
        let fine = |expression: &str| is_fine(|report| regex(report, "r", expression));
        assert!(fine("a") && fine("a|b") && fine("(?i)a[^/]+") && fine(&"a".repeat(1024)));
        assert!(!fine("") && !fine(&"a".repeat(1025)));
        for bad in ["(?=a)", "(?!a)", "(?<=a)", r"(a)\1", "(", "a)(b"] {
            assert!(!fine(bad), "{bad}");
        }
    }

    // spec: SM-071
    #[test]
    fn visibility_is_a_list_of_namespaces_without_repetition() {
        let fine = |entries: &[&str]| {
            let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
            is_fine(|report| export_to(report, "e", &entries, "own"))
        };
        for good in [&[][..], &["."], &["*"], &["own"], &[".", "a", "b-1"]] {
            assert!(fine(good), "{good:?}");
        }
        for bad in [
            &["a", "a"][..],
            &[".", "."],
            &[".", "own"],
            &["*", "a"],
            &["a", "*"],
            &["~"],
            &["A"],
            &["a.b"],
        ] {
            assert!(!fine(bad), "{bad:?}");
        }
    }

    // spec: SM-124
    #[test]
    fn a_dry_run_is_refused_whatever_it_says() {
        for value in ["true", "false", ""] {
            let metadata = ObjectMeta {
                annotations: Some([("istio.io/dry-run".to_owned(), value.to_owned())].into()),
                ..ObjectMeta::default()
            };
            assert!(!is_fine(|report| no_dry_run(report, &metadata)), "{value:?}");
        }
        assert!(is_fine(|report| no_dry_run(report, &ObjectMeta::default())));
    }
}
