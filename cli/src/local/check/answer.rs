//! Answers, and what is wrong with them.

use std::collections::BTreeMap;

use super::Expected;

/// An answer as `curl --include` prints it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// `None`: the connection was closed without one.
    pub(super) status: Option<u16>,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    pub(super) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let first = lines.next().filter(|line| line.starts_with("HTTP/"));
        let status = first.and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let fields = lines.filter_map(|line| line.split_once(':'));
        Self {
            status,
            headers: fields
                .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    /// In what it differs.
    pub(super) fn problems(&self, expected: &Expected) -> Vec<String> {
        let mut out = Vec::new();
        let found = self.status.map_or("no answer".to_owned(), |status| status.to_string());
        if let Some(status) = expected.status.filter(|status| Some(*status) != self.status) {
            out.push(format!("expected status {status}, got {found}"));
        }
        let denied = self.status.is_none_or(|status| status == 403);
        match expected.denied {
            Some(true) if !denied => out.push(format!("expected to be denied, got {found}")),
            Some(false) if denied => out.push(format!("expected not to be denied, got {found}")),
            _ => {}
        }
        for (name, value) in &expected.headers {
            let own: Vec<_> = self
                .headers
                .iter()
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .collect();
            if !own.iter().any(|(_, v)| v == value) {
                let found = own.first().map_or("none".to_owned(), |(_, v)| format!("{v:?}"));
                out.push(format!("expected header {name}: {value:?}, got {found}"));
            }
        }
        for (what, part) in [("body", &expected.body), ("identity", &expected.identity)] {
            if let Some(part) = part.as_ref().filter(|part| !self.body.contains(*part)) {
                let shown: String = self.body.chars().take(200).collect();
                out.push(format!("expected {what} {part:?} in the answer, got {shown:?}"));
            }
        }
        out
    }
}

/// Requests by version of their destination, of a sidecar's metrics.
pub(super) fn destinations(metrics: &str) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("istio_requests_total{") else {
            continue;
        };
        let Some((labels, value)) = rest.rsplit_once('}') else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let count = value
            .split_whitespace()
            .next()
            .and_then(|count| count.parse::<usize>().ok());
        if let (Some("source"), Some(version), Some(count)) = (label("reporter"), label("destination_version"), count) {
            *out.entry(version.to_owned()).or_default() += count;
        }
    }
    out
}

/// Shares that are too far from what is expected.
pub(super) fn share_problems(counts: &BTreeMap<String, usize>, expected: &Expected) -> Vec<String> {
    let total: usize = counts.values().sum();
    let names = counts.keys().chain(expected.destinations.keys());
    let names: std::collections::BTreeSet<_> = names.collect();
    let mut out = Vec::new();
    for name in names {
        let count = counts.get(name).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred requests")]
        let share = count as f64 / total as f64;
        let wanted = expected.destinations.get(name).copied().unwrap_or(0.0);
        if (share - wanted).abs() > expected.tolerance {
            let tolerance = expected.tolerance;
            out.push(format!(
                "expected a share of {wanted} ± {tolerance} for {name}, got {share:.2} ({count} of {total})"
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(text: &str) -> Expected {
        serde_yaml::from_str(text).expect("expectation")
    }

    // spec: LOC-043
    #[test]
    fn an_answer_is_compared_field_by_field() {
        let answer = Answer::parse("HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n{\"caller\":\"spiffe://d/ns/a/sa/b\"}");
        let fits = "{status: 200, headers: {x-a: '1'}, body: caller, identity: 'spiffe://d/ns/a/sa/b', denied: false}";
        assert_eq!(answer.problems(&expected(fits)), Vec::<String>::new());
        for wrong in [
            "{status: 201}",
            "{headers: {x-a: '2'}}",
            "{headers: {x-b: '1'}}",
            "{body: other}",
            "{identity: 'spiffe://d/ns/a/sa/c'}",
            "{denied: true}",
        ] {
            assert_eq!(answer.problems(&expected(wrong)).len(), 1, "{wrong}");
        }
        let none = Answer::parse("");
        assert!(none.problems(&expected("{denied: true}")).is_empty());
        assert_eq!(none.problems(&expected("{status: 200}")).len(), 1);
    }

    // spec: LOC-043
    #[test]
    fn destinations_are_the_callers_counts_by_version() {
        let text = "# TYPE istio_requests_total counter\n\
                    istio_requests_total{reporter=\"source\",destination_version=\"v1\",response_code=\"200\"} 3\n\
                    istio_requests_total{reporter=\"source\",destination_version=\"v1\",response_code=\"503\"} 2\n\
                    istio_requests_total{reporter=\"destination\",destination_version=\"v2\"} 9\nother{} 1\n";
        assert_eq!(destinations(text), BTreeMap::from([("v1".to_owned(), 5)]));
    }

    // spec: LOC-043
    #[test]
    fn shares_are_within_their_tolerance_or_a_problem() {
        let counts = BTreeMap::from([("v1".to_owned(), 90), ("v2".to_owned(), 10)]);
        let problems = |text: &str| share_problems(&counts, &expected(text)).len();
        assert_eq!(problems("{destinations: {v1: 0.85, v2: 0.15}}"), 0);
        assert_eq!(problems("{destinations: {v1: 0.85, v2: 0.15}, tolerance: 0.01}"), 2);
        assert_eq!(
            problems("{destinations: {v3: 1}}"),
            2,
            "what is missing, and what was not expected"
        );
    }
}
