//! What came of a request, in the terms of the recordings.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::agent::{Report, Seen};
use crate::headers::Headers;
use crate::stage::Places;

/// What came of one request, or of several alike.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How often each outcome occurred.
    pub(crate) statuses: BTreeMap<String, u64>,
    /// How often each workload answered.
    pub(crate) answered: BTreeMap<String, u64>,
    pub(crate) pods: BTreeSet<String>,
    /// What the application saw of the first request that it answered.
    pub(crate) saw: Option<Seen>,
    /// The first report.
    pub(crate) first: Report,
    /// Whether the application made the first answer.
    pub(crate) is_from_application: bool,
    pub(crate) backend_connections: BTreeSet<(String, u64)>,
    pub(crate) backend_ports: BTreeMap<String, u64>,
    pub(crate) milliseconds: (f64, f64),
    /// Address that a TCP server saw as its peer.
    pub(crate) peer: Option<String>,
    pub(crate) hits: Vec<(String, Seen)>,
}

impl Outcome {
    /// Sums up reports of requests of a scheme.
    pub(crate) fn of(scheme: &str, reports: Vec<Report>, places: &Places) -> Self {
        let mut out = Self::default();
        let mut times: Vec<f64> = reports.iter().map(|r| r.ms).collect();
        times.sort_by(f64::total_cmp);
        if let (Some(first), Some(last)) = (times.first(), times.last()) {
            out.milliseconds = (*first, *last);
        }
        let is_lines = matches!(scheme, "tcp" | "banner" | "tls");
        for report in &reports {
            *out.statuses.entry(status(report, is_lines)).or_default() += 1;
            if is_lines {
                out.take_line(report, places);
            } else if let Some(seen) = seen(report) {
                let word = places.word_of(&seen.pod, &seen.version);
                *out.answered.entry(word).or_default() += 1;
                out.pods.insert(seen.pod.clone());
                out.backend_connections.insert((seen.pod.clone(), seen.conn));
                *out.backend_ports.entry(seen.port.to_string()).or_default() += 1;
                out.saw.get_or_insert(seen);
            }
        }
        if let Some(first) = reports.into_iter().next() {
            out.is_from_application = seen(&first).is_some();
            out.first = first;
        }
        out
    }

    /// `<version> <pod> <peer address>: <line>`, the banner's first.
    fn take_line(&mut self, report: &Report, places: &Places) {
        let Some(text) = report.body.as_str() else { return };
        let (mut pod, mut version) = (None, None);
        for line in text.lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("banner"), Some(v), Some(p)) => (version, pod) = (Some(v), Some(p)),
                (Some(v), Some(p), Some(peer)) => {
                    (version, pod) = (Some(v), Some(p));
                    let address = peer.trim_end_matches(':').rsplit_once(':').map(|(a, _)| a.to_owned());
                    self.peer = self.peer.take().or(address);
                }
                _ => {}
            }
        }
        if let (Some(pod), Some(version)) = (pod, version) {
            *self.answered.entry(places.word_of(pod, version)).or_default() += 1;
            self.pods.insert(pod.to_owned());
        }
    }

    /// How many requests each workload saw.
    pub(crate) fn hit_counts(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for (word, _) in &self.hits {
            *out.entry(word.clone()).or_default() += 1;
        }
        out
    }

    /// Headers of the first answer that a recording would name: without those that depend on the application or the
    /// moment.
    pub(crate) fn response_headers(&self) -> Headers {
        let own = self.first.headers.iter().filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            let of_application = matches!(
                name.as_str(),
                "content-type" | "content-length" | "transfer-encoding" | "trailer"
            );
            name != "date" && !(self.is_from_application && of_application)
        });
        own.cloned().collect()
    }

    /// The whole in a line, for people.
    pub(crate) fn summary(&self) -> String {
        let mut out = format!("{:?} by {:?}", self.statuses, self.answered);
        if let Some(detail) = &self.first.detail {
            out.push_str(&format!(" ({detail})"));
        }
        let body = self.first.body.as_str().unwrap_or_default();
        if !self.is_from_application && !body.is_empty() {
            let begin: String = body.chars().take(200).collect();
            out.push_str(&format!(" body {begin:?}"));
        }
        out.push_str(&format!(" headers {:?}", self.first.headers));
        out
    }
}

fn status(report: &Report, is_lines: bool) -> String {
    match (report.status, &report.error) {
        (Some(status), None) => status.to_string(),
        (Some(status), Some(error)) => format!("{status} then error: {error}"),
        (None, Some(error)) => format!("error: {error}"),
        (None, None) if is_lines => "ok".to_owned(),
        (None, None) => "error: nothing".to_owned(),
    }
}

/// The application's answer: JSON that names its pod.
fn seen(report: &Report) -> Option<Seen> {
    match &report.body {
        Value::Object(map) if map.contains_key("pod") => serde_json::from_value(report.body.clone()).ok(),
        _ => None,
    }
}
