//! A steady open-loop load: requests start when they are due, whether or not earlier ones have been answered.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::{Call, Dial, Failure, Reply, Scheme, Target, http1x, http2, trust};
use crate::get::header;
use crate::stream::Buffered;

/// What to send, how fast, for how long.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Where to: http, h2c, grpc, https or h2
    #[arg(long)]
    url: Target,
    /// Requests per second
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Seconds
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Connections, each with one request at a time; a request that finds none free waits, and its wait counts
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Header, `Name: value`; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    #[arg(long, default_value = "GET")]
    method: String,
    /// Request body
    #[arg(long, default_value = "")]
    body: String,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    h2: bool,
    /// Milliseconds until an answer must be complete
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
    /// A connection of its own for each request
    #[arg(long)]
    no_reuse: bool,
    /// Print a line of JSON for each answer as it comes; `at` is in milliseconds since 1970
    #[arg(long)]
    each: bool,
}

/// The report.
#[derive(Debug, Default, Serialize)]
struct Summary {
    url: String,
    requests: u64,
    /// Answers with a status from 200 to 399, and for gRPC a grpc-status of 0.
    succeeded: u64,
    failed: u64,
    seconds: f64,
    rate: f64,
    statuses: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    /// Answers by the version, and by the pod, that gave them.
    versions: BTreeMap<String, u64>,
    pods: BTreeMap<String, u64>,
    latency_ms: Latency,
    /// The first failures, with the milliseconds since the start.
    failures: Vec<Value>,
}

/// From the moment a request was due to the end of its answer, answers only.
#[derive(Debug, Default, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// One request's end.
struct Outcome {
    due: Instant,
    end: Instant,
    result: Result<Reply, Failure>,
}

/// Runs the load and prints its summary; SIGINT and SIGTERM end it early.
pub(crate) async fn load(mut args: LoadArgs) -> Result<()> {
    if args.h2 {
        args.url.scheme = match args.url.scheme {
            Scheme::Http => Scheme::H2c,
            Scheme::Https => Scheme::H2,
            other => other,
        };
    }
    if matches!(args.url.scheme, Scheme::Tcp | Scheme::Banner | Scheme::Tls) {
        bail!("load speaks HTTP: a URL with http, h2c, grpc, https or h2 is accepted");
    }
    if !(args.rate > 0.0 && args.duration > 0.0 && args.connections > 0) {
        bail!("rate, duration and connections must be more than 0");
    }
    let url = args.url.to_string();
    let mut dial = Dial::new(args.url.clone());
    if args.url.scheme.is_tls() {
        let alpn = if args.url.scheme.is_http2() { "h2" } else { "http/1.1" };
        dial.tls = Some(crate::client::ClientTls {
            config: trust::config(None, None, &[alpn.to_owned()])?,
            server_name: None,
        });
    }
    let call = Call {
        method: args.method.clone(),
        path: args.url.path.clone(),
        headers: args.header.clone(),
        body: args.body.clone().into_bytes(),
        minor: 1,
        ..Call::default()
    };
    let start = Instant::now();
    let plan = Arc::new(Plan {
        start,
        interval: Duration::from_secs_f64(1.0 / args.rate),
        total: (args.rate * args.duration).ceil() as u64,
        next: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        dial,
        call,
        limit: Duration::from_millis(args.timeout_ms),
        reuse: !args.no_reuse,
    });
    let (report, mut outcomes) = tokio::sync::mpsc::channel(1024);
    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(plan.clone().work(report.clone()));
    }
    drop(report);

    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut tally = Tally::default();
    let stop = || plan.stopped.store(true, Ordering::Relaxed);
    loop {
        tokio::select! {
            outcome = outcomes.recv() => {
                let Some(outcome) = outcome else { break };
                tally.count(&outcome, start, args.each)?;
            }
            _ = terminate.recv() => stop(),
            _ = interrupt.recv() => stop(),
        }
    }
    let mut summary = tally.finish();
    summary.url = url;
    summary.seconds = start.elapsed().as_secs_f64();
    summary.rate = summary.requests as f64 / summary.seconds;
    println!("{}", serde_json::to_string(&summary).context("write the summary")?);
    Ok(())
}

struct Plan {
    start: Instant,
    interval: Duration,
    total: u64,
    next: AtomicU64,
    stopped: AtomicBool,
    dial: Dial,
    call: Call,
    limit: Duration,
    reuse: bool,
}

/// A worker's connection.
#[derive(Default)]
enum Held {
    #[default]
    None,
    Http1(Buffered),
    Http2(http2::Connection),
}

impl Plan {
    async fn work(self: Arc<Self>, report: tokio::sync::mpsc::Sender<Outcome>) {
        let mut held = Held::None;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.total || self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let due = self.start + self.interval.mul_f64(number as f64);
            sleep_until(due).await;
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let result = timeout(self.limit, self.exchange(&mut held))
                .await
                .unwrap_or(Err(Failure::Timeout));
            if !self.reuse || !matches!(&result, Ok(reply) if reply.reusable && reply.broken.is_none()) {
                held = Held::None;
            }
            if report
                .send(Outcome {
                    due,
                    end: Instant::now(),
                    result,
                })
                .await
                .is_err()
            {
                return;
            }
        }
    }

    async fn exchange(&self, held: &mut Held) -> Result<Reply, Failure> {
        if matches!(held, Held::Http1(conn) if conn.stream.is_stale()) {
            *held = Held::None;
        }
        if matches!(held, Held::None) {
            *held = if self.dial.target.scheme.is_http2() {
                Held::Http2(http2::Connection::open(&self.dial).await?)
            } else {
                Held::Http1(self.dial.open().await?)
            };
        }
        // What fails or times out from here leaves a connection that is not used again.
        match std::mem::take(held) {
            Held::Http1(mut conn) => {
                let reply = http1x::exchange(&mut conn, &self.dial, &self.call).await?;
                *held = Held::Http1(conn);
                Ok(reply)
            }
            Held::Http2(connection) => {
                let reply = connection.exchange(&self.dial, &self.call).await?;
                *held = Held::Http2(connection);
                Ok(reply)
            }
            Held::None => unreachable!("opened above"),
        }
    }
}

/// Counts outcomes.
#[derive(Default)]
struct Tally {
    summary: Summary,
    latencies: Vec<f64>,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome, start: Instant, each: bool) -> Result<()> {
        let at = (outcome.end - start).as_secs_f64() * 1000.0;
        let latency = (outcome.end - outcome.due).as_secs_f64() * 1000.0;
        let summary = &mut self.summary;
        summary.requests += 1;
        let (word, answered) = match &outcome.result {
            Err(failure) => (Err(failure.kind()), (None, None)),
            Ok(Reply {
                broken: Some(failure),
                status,
                ..
            }) => (Err(format!("{status} then {}", failure.kind())), (None, None)),
            Ok(reply) => (Ok(status_word(reply)), answered_by(&reply.body)),
        };
        let failed = match &word {
            Ok((word, ok)) => {
                *summary.statuses.entry(word.clone()).or_default() += 1;
                self.latencies.push(latency);
                !ok
            }
            Err(word) => {
                *summary.errors.entry(word.clone()).or_default() += 1;
                true
            }
        };
        if failed {
            summary.failed += 1;
            if summary.failures.len() < FAILURES_SHOWN {
                summary.failures.push(failure(at, &outcome.result));
            }
        } else {
            summary.succeeded += 1;
        }
        let (version, pod) = answered;
        if each {
            let word = match &word {
                Ok((word, _)) | Err(word) => word,
            };
            let since_1970 = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            let line = json!({
                "at": since_1970.as_millis() as u64,
                "ms": at,
                "latency_ms": latency,
                "outcome": word,
                "version": version,
                "pod": pod,
            });
            let mut out = std::io::stdout().lock();
            writeln!(out, "{line}")
                .and_then(|()| out.flush())
                .context("write to standard output")?;
        }
        if let Some(version) = version {
            *summary.versions.entry(version).or_default() += 1;
        }
        if let Some(pod) = pod {
            *summary.pods.entry(pod).or_default() += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Summary {
        self.latencies.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = self.latencies.len().saturating_sub(1);
            let rank = (self.latencies.len() as f64 * share).ceil() as usize;
            self.latencies
                .get(rank.saturating_sub(1).min(last))
                .copied()
                .unwrap_or_default()
        };
        self.summary.latency_ms = Latency {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        };
        self.summary
    }
}

/// The status as counted, and whether it is a success; for gRPC the grpc-status decides.
fn status_word(reply: &Reply) -> (String, bool) {
    let ok = (200..400).contains(&reply.status);
    match reply
        .trailers
        .first("grpc-status")
        .or_else(|| reply.headers.first("grpc-status"))
    {
        Some("0") | None => (reply.status.to_string(), ok),
        Some(status) => (format!("grpc {status}"), false),
    }
}

/// Version and pod of the last server in a chain of frontends.
fn answered_by(body: &[u8]) -> (Option<String>, Option<String>) {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return (None, None);
    };
    let mut server = &answer;
    while let Some(upstream) = server.pointer("/upstream/answer").filter(|answer| answer.is_object()) {
        server = upstream;
    }
    let text = |name: &str| server.get(name).and_then(Value::as_str).map(str::to_owned);
    (text("version"), text("pod"))
}

fn failure(at: f64, result: &Result<Reply, Failure>) -> Value {
    match result {
        Ok(Reply {
            broken: Some(failure),
            status,
            ..
        }) => {
            json!({"ms": at, "status": status, "error": failure.kind()})
        }
        Ok(reply) => {
            let text: String = String::from_utf8_lossy(&reply.body).chars().take(300).collect();
            json!({"ms": at, "status": reply.status, "headers": reply.headers, "body": text})
        }
        Err(failure) => {
            let source = std::error::Error::source(failure).map(ToString::to_string);
            json!({"ms": at, "error": failure.kind(), "detail": failure.to_string(), "cause": source})
        }
    }
}

const FAILURES_SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_server_of_a_chain_answered() {
        let direct = br#"{"version": "v1", "pod": "a"}"#;
        assert_eq!(answered_by(direct), (Some("v1".to_owned()), Some("a".to_owned())));
        let chain = br#"{"version": "f", "pod": "f", "upstream": {"answer": {"version": "v2", "pod": "b"}}}"#;
        assert_eq!(answered_by(chain), (Some("v2".to_owned()), Some("b".to_owned())));
        assert_eq!(answered_by(b"no healthy upstream"), (None, None));
    }

    #[test]
    fn percentiles_are_answers() {
        let mut tally = Tally {
            latencies: (1..=100).map(f64::from).rev().collect(),
            ..Tally::default()
        };
        let latency = std::mem::take(&mut tally).finish().latency_ms;
        assert_eq!((latency.p50, latency.p99, latency.max), (50.0, 99.0, 100.0));
        assert_eq!(Tally::default().finish().latency_ms.max, 0.0);
    }
}
