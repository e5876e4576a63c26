//! Compares an outcome with what was observed, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::agent::Seen;
use crate::case::{Request, Scenario};
use crate::headers::{Headers, difference};
use crate::outcome::Outcome;
use crate::pattern;
use crate::stage::Places;

/// One field that is not as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Number of the request, from 1; 0 for the scenario as a whole.
    pub(crate) request: usize,
    pub(crate) field: String,
    pub(crate) expected: String,
    pub(crate) got: String,
}

/// What a comparison needs to know.
pub(crate) struct Judge<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) places: &'a Places,
    /// Milliseconds that the machine may add.
    pub(crate) slack_ms: f64,
    /// Whether a manifest names a subset: else the choice among versions is nobody's promise.
    names_versions: bool,
    /// All manifests as text.
    manifests: String,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(scenario: &'a Scenario, places: &'a Places, slack_ms: u64) -> Self {
        let manifests = serde_json::to_string(&scenario.manifests).unwrap_or_default();
        // A hash keeps to one endpoint; which one follows from addresses.
        let names_versions = manifests.contains("\"subset\"") && !manifests.contains("\"consistentHash\"");
        Self {
            scenario,
            places,
            slack_ms: slack_ms as f64,
            names_versions: names_versions && !scenario.varies,
            manifests,
        }
    }

    /// The differences of one request.
    pub(crate) fn request(&self, number: usize, request: &Request, outcome: &Outcome) -> Vec<Difference> {
        let mut all = self.against(number, request, &request.observed, outcome);
        if self.scenario.flaky
            && !all.is_empty()
            && let Some(other) = self.scenario.other_run.get(number - 1)
        {
            let others = self.against(number, request, other, outcome);
            if others.len() < all.len() {
                all = others;
            }
        }
        all
    }

    fn against(&self, number: usize, request: &Request, observed: &Value, outcome: &Outcome) -> Vec<Difference> {
        let mut comparison = Comparison {
            judge: self,
            request,
            outcome,
            number,
            found: Vec::new(),
        };
        let Some(fields) = observed.as_object() else {
            comparison.differ("observed", "a map of fields", observed);
            return comparison.found;
        };
        for (field, value) in fields {
            comparison.field(field, value, observed);
        }
        comparison.absent(observed);
        comparison.found
    }

    fn address(&self, word: &str) -> Option<String> {
        self.places.client(word)
    }

    fn matches(&self, recorded: &str, value: &str) -> bool {
        pattern::matches(recorded, value, &|word| self.address(word))
    }
}

struct Comparison<'a, 'b> {
    judge: &'a Judge<'b>,
    request: &'a Request,
    outcome: &'a Outcome,
    number: usize,
    found: Vec<Difference>,
}

impl Comparison<'_, '_> {
    fn differ(&mut self, field: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) {
        self.found.push(Difference {
            request: self.number,
            field: field.to_owned(),
            expected: short(&expected.to_string()),
            got: short(&got.to_string()),
        });
    }

    fn equal(&mut self, field: &str, expected: &str, got: &str) {
        if !self.judge.matches(expected, got) {
            self.differ(field, expected, got);
        }
    }

    fn field(&mut self, field: &str, value: &Value, observed: &Value) {
        match field {
            "status" => self.status(value),
            "answered_by" => self.answered_by(value),
            "backend_saw" => self.backend_saw(value),
            "response_headers" => {}
            "body" => self.body(value),
            "trailers" => self.header_list("trailers", value, &self.outcome.first.trailers.clone()),
            "interim" => {
                let got = serde_json::json!(self.outcome.first.interim);
                if got != *value {
                    self.differ(field, value, got);
                }
            }
            "ms" => self.milliseconds(value),
            "backend_hits" => self.backend_hits(value),
            "hit_detail" => self.hit_detail(value),
            "closed_after_answer" => self.closed(value),
            "version" => {
                let got = self.outcome.first.version.clone().unwrap_or_default();
                self.equal(field, value.as_str().unwrap_or_default(), &got);
            }
            "transfer" => self.transfer(value, observed),
            "server_certificate" => self.certificate(value),
            "alpn" => {
                let got = self.outcome.first.alpn.clone().unwrap_or_default();
                self.equal(field, value.as_str().unwrap_or_default(), &got);
            }
            "notes" => self.notes(value),
            "distinct_pods" => self.distinct_pods(value),
            "distinct_backend_connections" => {
                let got = self.outcome.backend_connections.len() as u64;
                if value.as_u64() != Some(got) {
                    self.differ(field, value, got);
                }
            }
            "backend_ports" => self.shares(field, value, &self.outcome.backend_ports.clone()),
            "after_upgrade" => {
                let got = self.outcome.first.after.clone().unwrap_or_default();
                self.equal(field, value.as_str().unwrap_or_default(), &got);
            }
            // What depends on the proxy's product.
            "envoy_only" => {}
            _ => self.differ(field, "a field that this program knows", value),
        }
    }

    /// What was not observed must not be there either.
    fn absent(&mut self, observed: &Value) {
        if observed.get("answered_by").is_none() && !self.outcome.answered.is_empty() {
            self.differ("answered_by", "nobody", words(&self.outcome.answered));
        }
        if observed.get("status").is_none_or(is_about_http) && self.outcome.first.status.is_some() {
            let recorded = observed
                .get("response_headers")
                .cloned()
                .unwrap_or(Value::Array(Vec::new()));
            self.response_headers(&recorded, observed);
        }
        if observed.get("interim").is_none() && !self.outcome.first.interim.is_empty() {
            let got = format!("{:?}", self.outcome.first.interim);
            self.differ("interim", "none", got);
        }
        if observed.get("trailers").is_none() && !self.outcome.first.trailers.is_empty() {
            let got = format!("{:?}", self.outcome.first.trailers);
            self.differ("trailers", "none", got);
        }
    }

    fn status(&mut self, value: &Value) {
        let recorded = counts(value);
        let got = folded(&self.outcome.statuses);
        let expected = folded(&recorded);
        let is_rough = self.judge.scenario.varies || self.judge.scenario.note.is_some();
        let fits = if expected.len() > 1 && is_rough {
            self.are_close(&expected, &got)
        } else {
            expected == got
        };
        if !fits {
            self.differ("status", words(&expected), words(&self.outcome.statuses));
        }
    }

    fn answered_by(&mut self, value: &Value) {
        let recorded = match value {
            Value::String(word) => BTreeMap::from([(word.clone(), 1)]),
            other => counts(other),
        };
        let (expected, got) = if self.judge.names_versions {
            (recorded, self.outcome.answered.clone())
        } else {
            (workloads(&recorded), workloads(&self.outcome.answered))
        };
        let is_rough = self.judge.scenario.varies || self.judge.scenario.note.is_some() || expected.len() > 1;
        let fits = if is_rough {
            self.are_close(&expected, &got)
        } else {
            expected == got
        };
        if !fits {
            self.differ("answered_by", words(&expected), words(&got));
        }
    }

    /// The same names, and shares within the tolerance that the note states.
    fn are_close(&self, expected: &BTreeMap<String, u64>, got: &BTreeMap<String, u64>) -> bool {
        let stated = self.judge.scenario.note.as_deref().and_then(|note| {
            let (before, _) = note.split_once(" points")?;
            before.rsplit(' ').next()?.parse::<f64>().ok()
        });
        let tolerance = stated.unwrap_or(UNSTATED_POINTS) / 100.0;
        let sum = |map: &BTreeMap<String, u64>| map.values().sum::<u64>().max(1) as f64;
        let (all, all_got) = (sum(expected), sum(got));
        if expected.keys().ne(got.keys()) {
            return false;
        }
        expected.iter().all(|(name, count)| {
            let share = got.get(name).copied().unwrap_or_default() as f64 / all_got;
            (*count as f64 / all - share).abs() <= tolerance
        })
    }

    fn shares(&mut self, field: &str, value: &Value, got: &BTreeMap<String, u64>) {
        let expected = counts(value);
        if !self.are_close(&expected, got) {
            self.differ(field, words(&expected), words(got));
        }
    }

    fn distinct_pods(&mut self, value: &Value) {
        let got = self.outcome.pods.len() as u64;
        let expected = value.as_u64().unwrap_or_default();
        // One is a promise; how many more than one is chance.
        let fits = if expected == 1 { got == 1 } else { got > 1 };
        let is_chance = self.judge.scenario.varies && !self.judge.manifests.contains("consistentHash");
        if !fits && !is_chance {
            self.differ("distinct_pods", expected, got);
        }
    }

    fn backend_saw(&mut self, value: &Value) {
        let Some(seen) = self.outcome.saw.clone() else {
            self.differ("backend_saw", "a request", "none");
            return;
        };
        self.seen("backend_saw", value, &seen);
    }

    fn seen(&mut self, prefix: &str, value: &Value, seen: &Seen) {
        let Some(fields) = value.as_object() else { return };
        for (field, value) in fields {
            let name = format!("{prefix}.{field}");
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            match field.as_str() {
                "method" => self.equal(&name, &text, &seen.method),
                "path" => self.equal(&name, &text, &seen.path),
                "host" => self.equal(&name, &text, &seen.host),
                "proto" => self.equal(&name, &text, &seen.proto),
                "port" => self.equal(&name, &text, &seen.port.to_string()),
                "transfer" => self.equal(&name, &text, &seen.transfer),
                // Of a long body the beginning was recorded.
                "body" if text.len() == RECORDED_BODY && seen.body.starts_with(&text) => {}
                "body" => self.equal(&name, &text, &seen.body),
                "peer" => self.equal(&name, &text, &seen.src.ip().to_string()),
                "headers" => self.seen_headers(&name, value, seen),
                "tls" => {
                    let got = seen.tls.as_ref().map(ToString::to_string).unwrap_or_default();
                    let is_tls = !matches!(value, Value::Null | Value::Bool(false));
                    if is_tls != seen.tls.is_some() {
                        self.differ(&name, value, got);
                    }
                }
                "by" => {}
                _ => self.differ(&name, "a field that this program knows", value),
            }
        }
        if !seen.trailers.is_empty() {
            let got = format!("{:?}", seen.trailers);
            self.differ(&format!("{prefix}.trailers"), "none", got);
        }
    }

    fn seen_headers(&mut self, name: &str, value: &Value, seen: &Seen) {
        let recorded = pairs(value);
        let mut got = seen.headers.clone();
        let is_certificate = |(name, _): &(String, String)| name.eq_ignore_ascii_case("x-forwarded-client-cert");
        // Recorded without the filter by which a server knows what mutual TLS carries on ports without a protocol.
        if UNDECLARED_PORTS.contains(&seen.port) && !recorded.iter().any(is_certificate) {
            got.retain(|pair| !is_certificate(pair));
        }
        let address = |word: &str| self.judge.address(word);
        if let Some(text) = difference(&recorded, &got, &address) {
            self.differ(name, "the recorded list", text);
        }
    }

    fn header_list(&mut self, name: &str, value: &Value, got: &Headers) {
        let address = |word: &str| self.judge.address(word);
        if let Some(text) = difference(&pairs(value), got, &address) {
            self.differ(name, "the recorded list", text);
        }
    }

    /// Type and length say nothing new of a body that is not compared, nor those of the application's own.
    fn response_headers(&mut self, recorded: &Value, observed: &Value) {
        let is_body_free = !self.is_body_promised(observed);
        let mut expected = pairs(recorded);
        let mut got = self.outcome.response_headers();
        let of_body = |name: &str| {
            ["content-length", "content-type", "transfer-encoding"]
                .iter()
                .any(|own| name.eq_ignore_ascii_case(own))
        };
        let is_grpc = |(name, value): &(String, String)| {
            name.eq_ignore_ascii_case("content-type") && value.starts_with("application/grpc")
        };
        if is_body_free || self.outcome.is_from_application {
            expected.retain(|pair| !of_body(&pair.0) || (is_grpc(pair) && !self.outcome.is_from_application));
            got.retain(|pair| !of_body(&pair.0) || (is_grpc(pair) && !self.outcome.is_from_application));
        }
        // The texts of a proxy are its own.
        expected.retain(|(name, _)| !name.eq_ignore_ascii_case("grpc-message"));
        got.retain(|(name, _)| !name.eq_ignore_ascii_case("grpc-message"));
        let address = |word: &str| self.judge.address(word);
        if let Some(text) = difference(&expected, &got, &address) {
            self.differ("response_headers", "the recorded list", text);
        }
    }

    /// A body is promised where the application or a manifest gives it; the texts of refusals are the proxy's own.
    fn is_body_promised(&self, observed: &Value) -> bool {
        let body = observed.get("body").and_then(Value::as_str).unwrap_or_default();
        !body.is_empty() && (body.starts_with('<') || self.judge.manifests.contains(&quoted(body)))
    }

    fn body(&mut self, value: &Value) {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let got = match &self.outcome.first.body {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let is_partial = self.outcome.statuses.keys().any(|status| status.contains("then error"));
        let promised = text.starts_with('<') || is_partial || self.judge.manifests.contains(&quoted(&text));
        if promised && !text.is_empty() {
            self.equal("body", &text, &got);
        }
    }

    fn milliseconds(&mut self, value: &Value) {
        let number = |name: &str| value.get(name).and_then(Value::as_f64).unwrap_or_default();
        let (min, max) = (number("min"), number("max"));
        // The wait between tries is random.
        if self.judge.manifests.contains("\"backoff\"") {
            return;
        }
        let tolerance = |ms: f64| (ms * 0.25).max(60.0);
        let (got_min, got_max) = self.outcome.milliseconds;
        let too_soon =
            got_min < min - tolerance(min) || (self.request.count.is_none() && got_max < max - tolerance(max));
        let too_late = got_max > max + tolerance(max) + self.judge.slack_ms;
        if too_soon || too_late {
            self.differ("ms", format!("{min} to {max}"), format!("{got_min:.0} to {got_max:.0}"));
        }
    }

    fn backend_hits(&mut self, value: &Value) {
        let recorded = counts(value);
        let hits = self.outcome.hit_counts();
        let (expected, got) = if self.judge.names_versions {
            (recorded, hits)
        } else {
            (workloads(&recorded), workloads(&hits))
        };
        let is_rough = self.judge.scenario.varies || self.judge.scenario.note.is_some();
        let fits = if is_rough && self.request.count.is_some() {
            let sum = |map: &BTreeMap<String, u64>| map.values().sum::<u64>() as f64;
            expected.keys().eq(got.keys()) && (sum(&expected) - sum(&got)).abs() <= 0.15 * sum(&expected) + 1.0
        } else {
            expected == got
        };
        if !fits {
            self.differ("backend_hits", words(&expected), words(&got));
        }
    }

    fn hit_detail(&mut self, value: &Value) {
        let empty = Vec::new();
        let recorded = value.as_array().unwrap_or(&empty);
        let mut left: Vec<&(String, Seen)> = self.outcome.hits.iter().collect();
        let mut pairs = Vec::new();
        for hit in recorded {
            let by = hit.get("by").and_then(Value::as_str).unwrap_or_default();
            let same = |(word, _): &&(String, Seen)| {
                if self.judge.names_versions {
                    word == by
                } else {
                    workload(word) == workload(by)
                }
            };
            match left.iter().position(same) {
                Some(at) => pairs.push((hit.clone(), left.remove(at).1.clone())),
                None => self.differ("hit_detail", format!("a request at {by}"), "none"),
            }
        }
        for (hit, seen) in pairs {
            self.seen("hit_detail", &hit, &seen);
        }
    }

    fn closed(&mut self, value: &Value) {
        // After an upgrade the end of the connection is the other protocol's.
        if self.outcome.first.status == Some(101) {
            return;
        }
        let got = self.outcome.first.closed.unwrap_or(false);
        if value.as_bool() != Some(got) {
            self.differ("closed_after_answer", value, got);
        }
    }

    fn transfer(&mut self, value: &Value, observed: &Value) {
        let Some(text) = value.as_str() else { return };
        let got = self.outcome.first.transfer.clone().unwrap_or_default();
        // A proxy may frame a text of its own as it likes.
        if self.outcome.is_from_application || self.is_body_promised(observed) {
            self.equal("transfer", text, &got);
        }
    }

    /// Subject and names, as `name name,name`.
    fn certificate(&mut self, value: &Value) {
        let recorded = value.as_str().unwrap_or_default();
        let (_, names) = recorded
            .trim_start()
            .split_once(' ')
            .unwrap_or(("", recorded.trim_start()));
        let expected: BTreeSet<&str> = names.trim().split(',').collect();
        let got = self.outcome.first.server_certificate.as_ref();
        let found: Vec<String> = got
            .into_iter()
            .flat_map(|c| c.names.iter())
            .map(|n| plain_name(n))
            .collect();
        let shown: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        if expected != shown {
            let subject = got.map(|c| c.subject.clone()).unwrap_or_default();
            self.differ("server_certificate", recorded, format!("{subject} {}", found.join(",")));
        }
    }

    fn notes(&mut self, value: &Value) {
        for note in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            match note.strip_prefix("peer address seen by backend: ") {
                Some(peer) => {
                    let got = self.outcome.peer.clone().unwrap_or_default();
                    self.equal("peer", peer, &got);
                }
                None => self.differ("notes", "a note that this program knows", note),
            }
        }
    }
}

/// What people can still read.
fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

/// `DNSName(a)` and `URI(a)` of the certificate's reader.
fn plain_name(name: &str) -> String {
    name.rsplit_once('(')
        .map_or(name, |(_, rest)| rest.trim_end_matches(')'))
        .trim_matches('"')
        .to_owned()
}

fn is_about_http(status: &Value) -> bool {
    match status {
        Value::String(text) => text.starts_with(|c: char| c.is_ascii_digit()),
        _ => true,
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Counts by word: a map of them, or one word.
fn counts(value: &Value) -> BTreeMap<String, u64> {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(word, count)| (word.clone(), count.as_u64().unwrap_or_default()))
            .collect(),
        Value::String(word) => BTreeMap::from([(word.clone(), 1)]),
        other => BTreeMap::from([(other.to_string(), 1)]),
    }
}

/// Ways of closing without an answer are one outcome.
fn folded(statuses: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (status, count) in statuses {
        let word = match status.split_once("error: ") {
            Some((before, kind)) => {
                let closed = ["reset", "eof"].contains(&kind) || kind.contains("tls");
                format!("{before}error: {}", if closed { "closed" } else { kind })
            }
            None => status.clone(),
        };
        *out.entry(word).or_default() += count;
    }
    out
}

fn workload(word: &str) -> &str {
    word.split('/').next().unwrap_or(word)
}

fn workloads(counts: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (word, count) in counts {
        *out.entry(workload(word).to_owned()).or_default() += count;
    }
    out
}

fn words(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let each = counts.iter().map(|(word, count)| match count {
        1 if counts.len() == 1 => word.clone(),
        _ => format!("{word}: {count}"),
    });
    each.collect::<Vec<_>>().join(", ")
}

fn pairs(value: &Value) -> Headers {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

/// Bytes of a body that recordings keep.
const RECORDED_BODY: usize = 200;
/// Characters of a value that are printed.
const LONGEST: usize = 300;
/// Target ports of the stage whose service port declares no protocol.
const UNDECLARED_PORTS: &[u16] = &[8082];
/// Points by which a share may differ where no note says how many.
const UNSTATED_POINTS: f64 = 25.0;
