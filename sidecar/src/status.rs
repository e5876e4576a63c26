//! The proxy's own ports: status and probes, readiness, metrics, admin (spec: lifecycle.md G).
//!
//! They are served by a thread of their own, so that probes and drain work while workers are busy (LIFE-015).

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use weft_bundle::wire::InboundDestination;

use crate::log::LogControl;
use crate::probe::Probes;
use crate::reload::{Reload, State};
use crate::restart::Started;
use crate::shared::{DrainPhase, Shared};
use crate::worker::Workers;

mod admin;
mod content;
mod exposition;
mod metrics;

pub use content::Content;
use exposition::Format;

/// Admin requests that are answered at once (LIFE-081).
pub const ADMIN_REQUESTS: usize = 4;

/// Connections to one of the proxy's own ports.
const CONNECTIONS: usize = 64;

/// How long 15021 waits for the workers.
const WORKER_ANSWER: Duration = Duration::from_secs(2);

/// What the ports tell of, and what they can change.
pub struct Status {
    /// What workers share.
    pub shared: Arc<Shared>,
    /// Delivery.
    pub reload: Arc<Reload>,
    /// Probes of the application.
    pub probes: Probes,
    /// The capture listeners are open.
    pub listening: AtomicBool,
    /// `POST /healthcheck/fail` was the last of its kind.
    pub failed: AtomicBool,
    /// The process was asked to end (LIFE-055).
    pub quit: tokio::sync::watch::Sender<bool>,
    /// What the process takes of the mesh config at its start (LIFE-050).
    pub started: Option<Started>,
    /// Whether the kubelet would start this container again.
    pub native: bool,
    /// Start of the process.
    pub begin: Instant,
    /// Workers, once they run.
    pub workers: OnceLock<Workers>,
    /// Changes the log's levels.
    pub log: LogControl,
    /// Places for admin requests (LIFE-081).
    pub admin_requests: Arc<Semaphore>,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("unready", &self.unready())
            .finish_non_exhaustive()
    }
}

/// A port of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 15020.
    Status,
    /// 15021.
    Health,
    /// 15090.
    Metrics,
    /// 15000.
    Admin,
}

impl Status {
    /// Why the proxy is not ready; empty when it is (LIFE-010).
    #[must_use]
    pub fn unready(&self) -> Vec<&'static str> {
        let report = self.reload.report();
        let mut reasons = Vec::new();
        if self.shared.current.load().is_none() {
            reasons.push(match report.state {
                State::Held => "held: a shard of the configuration is missing",
                State::Rejected => "the configuration was refused",
                _ => "no configuration",
            });
        }
        if report.endpoints.is_none() {
            reasons.push("no endpoints");
        }
        match self.shared.identity.load().as_ref() {
            None => reasons.push("no identity"),
            Some(identity) if !identity.is_valid() => reasons.push("certificate expired"),
            Some(_) => {}
        }
        if !self.listening.load(Ordering::Acquire) {
            reasons.push("listeners are not open");
        }
        if *self.shared.drain.borrow() != DrainPhase::Serving {
            reasons.push("draining");
        }
        if self.failed.load(Ordering::Relaxed) {
            reasons.push("healthcheck/fail");
        }
        reasons
    }

    /// Opens a port and serves it on the current runtime.
    ///
    /// # Errors
    /// That the port cannot be opened, with its address.
    pub async fn serve(self: &Arc<Self>, port: Port, address: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|e| io::Error::new(e.kind(), format!("listen on {address}: {e}")))?;
        let status = self.clone();
        // Bounded: whoever can reach the port must not fill the process (LIFE-089).
        let limit = Arc::new(Semaphore::new(CONNECTIONS));
        tokio::spawn(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(permit) = limit.clone().try_acquire_owned() else {
                    continue;
                };
                let status = status.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let status = status.clone();
                        async move { Ok::<_, Infallible>(status.answer(port, peer, request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(10))
                        .serve_connection(TokioIo::new(stream), service);
                    let _ = connection.await;
                    drop(permit);
                });
            }
        });
        Ok(())
    }

    async fn answer(&self, port: Port, peer: SocketAddr, request: Request<Incoming>) -> Response<Content> {
        let path = request.uri().path().to_owned();
        tracing::debug!(?port, %peer, method = %request.method(), path, "request");
        let is_post = request.method() == Method::POST;
        if port == Port::Admin && !is_local_name(request.headers().get(HOST), &self.shared.settings.pod.name) {
            return text(
                StatusCode::FORBIDDEN,
                "the Host of an admin request must be localhost or an address\n",
            );
        }
        if MUTATING.contains(&path.as_str()) && matches!(port, Port::Status | Port::Admin) {
            if !is_post {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                return response;
            }
            if !peer.ip().to_canonical().is_loopback() {
                return text(StatusCode::FORBIDDEN, "only from the pod itself\n");
            }
        }
        let place = if port == Port::Admin {
            match self.admin_requests.clone().try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => return text(StatusCode::SERVICE_UNAVAILABLE, "too many admin requests at once\n"),
            }
        } else {
            None
        };
        let (head, _body) = request.into_parts();
        let mut response = self.answer_path(port, &path, &head).await;
        if let Some(place) = place {
            response.body_mut().hold(place);
        }
        response
    }

    async fn answer_path(&self, port: Port, path: &str, request: &Parts) -> Response<Content> {
        let asked = request.uri.query();
        let query = asked.unwrap_or_default();
        match (port, path) {
            (Port::Health, "/healthz/ready") => self.ready_with_workers().await,
            (Port::Status, "/healthz/ready") | (Port::Admin, "/ready") => self.ready(),
            (Port::Status, "/healthz/live") => self.live(),
            (Port::Status, "/config/status") => json_text(&self.config_status()),
            (Port::Status, "/stats/prometheus" | "/metrics") => {
                let wait = request.headers.get("x-prometheus-scrape-timeout-seconds");
                let wait = wait
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(10.0);
                let limit = Duration::try_from_secs_f64(wait).unwrap_or(Duration::from_secs(10));
                let accepted = exposition::passed_on(&request.headers);
                let application = self.probes.scrape(limit, accepted).await;
                let own = self.metrics() + &self.probes.scrape_failures();
                let wanted = Format::wanted(&request.headers);
                metrics(exposition::merged(own, application, wanted))
            }
            (Port::Metrics | Port::Admin, "/stats/prometheus") => {
                metrics(exposition::document(self.metrics(), Format::wanted(&request.headers)))
            }
            (Port::Status, path) if path.starts_with("/app-health/") || path.starts_with("/app-lifecycle/") => {
                let current = self.shared.current.load_full();
                let is_local = current.is_some_and(|s| s.config.inbound.destination == InboundDestination::Localhost);
                let (status, body) = self.probes.check(path, &request.headers, is_local).await;
                Response::builder()
                    .status(status)
                    .body(Content::full(body))
                    .unwrap_or_default()
            }
            (Port::Status | Port::Admin, "/drain" | "/drain_listeners") => {
                self.drain();
                text(StatusCode::OK, "OK")
            }
            (Port::Status | Port::Admin, "/quitquitquit") => {
                if self.native {
                    // Ended, it would only be started again; the end of the pod's own containers ends it (LIFE-056).
                    self.drain();
                } else {
                    self.quit.send_replace(true);
                }
                text(StatusCode::OK, "OK")
            }
            (Port::Admin, "/healthcheck/fail") => self.set_failed(true),
            (Port::Admin, "/healthcheck/ok") => self.set_failed(false),
            (Port::Admin, "/reload") => {
                self.reload.read_all();
                json_text(&self.config_status())
            }
            (Port::Admin, "/server_info") => json_text(&self.server_info()),
            (Port::Admin, "/config_dump") => self.config_dump(query),
            (Port::Admin, "/clusters") => self.clusters(query).await,
            (Port::Admin, "/listeners") => self.listeners(query),
            (Port::Admin, "/certs") => json_text(&self.certificates()),
            (Port::Admin, "/memory") => json_text(&self.memory()),
            (Port::Admin, "/stats") => self.stats(query),
            (Port::Admin, "/reset_counters") => {
                self.shared.telemetry.reset();
                text(StatusCode::OK, "OK")
            }
            (Port::Admin, "/debug/pprof/profile" | "/debug/pprof/heap") => {
                text(StatusCode::NOT_IMPLEMENTED, "profiles are not compiled in\n")
            }
            (Port::Admin, "/logging") => self.logging(asked),
            (Port::Admin, "/" | "/help") => text(StatusCode::OK, HELP),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Begins to drain (LIFE-021); doing so again changes nothing.
    pub fn drain(&self) {
        self.shared.drain.send_if_modified(|phase| {
            let begins = *phase == DrainPhase::Serving;
            if begins {
                *phase = DrainPhase::Draining;
            }
            begins
        });
    }

    fn set_failed(&self, failed: bool) -> Response<Content> {
        self.failed.store(failed, Ordering::Relaxed);
        text(StatusCode::OK, "OK")
    }

    /// As [`Self::ready`], when all workers have answered: behind traffic, as the next request would be (LIFE-015).
    async fn ready_with_workers(&self) -> Response<Content> {
        if let Some(workers) = self.workers.get()
            && !workers.answer(WORKER_ANSWER).await
        {
            return text(StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n");
        }
        self.ready()
    }

    fn ready(&self) -> Response<Content> {
        let reasons = self.unready();
        if reasons.is_empty() {
            return text(StatusCode::OK, "LIVE\n");
        }
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", reasons.join("; ")))
    }

    fn live(&self) -> Response<Content> {
        match self.workers.get().map(Workers::silence) {
            Some(silence) if silence > WORKER_LIMIT => {
                let problem = format!("a worker made no progress for {} s\n", silence.as_secs());
                text(StatusCode::SERVICE_UNAVAILABLE, &problem)
            }
            _ => text(StatusCode::OK, "OK\n"),
        }
    }

    /// `/config/status` (DLV-090): no names of hosts, policies or peers.
    fn config_status(&self) -> serde_json::Value {
        let report = self.reload.report();
        let not_after = self.shared.identity.load().as_ref().map(|i| seconds(i.not_after));
        let state = match report.behind_since {
            Some(_) if report.state == State::Active => "Behind",
            _ => report.state.as_str(),
        };
        let current = self.shared.current.load();
        let outdated = match (&self.started, current.as_ref()) {
            (Some(started), Some(snapshot)) => {
                started.outdated(&snapshot.config.mesh, self.shared.http_proxy.get().copied())
            }
            _ => Vec::new(),
        };
        // Of a gateway alone; ports by number, with the error that keeps one closed (LIFE-049).
        let listeners: Vec<_> = self
            .shared
            .ports
            .states()
            .into_iter()
            .map(|(port, errno)| {
                let state = if errno.is_none() { "Programmed" } else { "NotProgrammed" };
                json!({"port": port, "state": state, "errno": errno})
            })
            .collect();
        json!({
            "key": report.key,
            "listeners": listeners,
            "restartRequired": outdated,
            "proxyVersion": env!("CARGO_PKG_VERSION"),
            "schema": [weft_bundle::wire::SCHEMA, weft_bundle::wire::SCHEMA],
            "active": {"cfg": report.config, "ep": report.endpoints},
            "target": report.target.map(|t| json!({"cfg": t.config, "ep": t.endpoints})),
            "trust": report.trust,
            "credentials": report.credentials,
            "state": state,
            "error": report.error_position,
            "since": report.since,
            "certNotAfter": not_after,
            "draining": *self.shared.drain.borrow() != DrainPhase::Serving,
            "used": [],
        })
    }

    fn server_info(&self) -> serde_json::Value {
        let report = self.reload.report();
        let state = match *self.shared.drain.borrow() {
            DrainPhase::Serving if self.unready().is_empty() => "LIVE",
            DrainPhase::Serving => "INITIALIZING",
            DrainPhase::Draining | DrainPhase::Closing => "DRAINING",
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("WEFT_COMMIT").unwrap_or("unknown"),
            "uptimeSeconds": self.begin.elapsed().as_secs(),
            "state": state,
            "fips": false,
            "revisions": {"cfg": report.config, "ep": report.endpoints},
        })
    }

    fn logging(&self, query: Option<&str>) -> Response<Content> {
        match self.log.change(query.unwrap_or_default()) {
            Ok(levels) => text(StatusCode::OK, &levels),
            Err(problem) => text(StatusCode::BAD_REQUEST, &format!("{problem}\n")),
        }
    }
}

/// Whether a query has a word, alone or with a value.
fn asks(query: &str, word: &str) -> bool {
    query.split('&').any(|part| part.split('=').next() == Some(word))
}

/// The value of a word of a query.
fn value_of<'q>(query: &'q str, word: &str) -> Option<&'q str> {
    query
        .split('&')
        .find_map(|part| part.strip_prefix(word)?.strip_prefix('='))
}

/// Names that no foreign page can have resolved to this machine (LIFE-079).
fn is_local_name(host: Option<&HeaderValue>, pod: &str) -> bool {
    let Some(host) = host.and_then(|h| h.to_str().ok()) else {
        return true;
    };
    let name = host.parse::<SocketAddr>().map_or_else(
        |_| host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned(),
        |address| address.ip().to_string(),
    );
    name == "localhost" || (name == pod && !pod.is_empty()) || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, text: &str) -> Response<Content> {
    let mut response = Response::new(Content::full(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn metrics((kind, document): (HeaderValue, String)) -> Response<Content> {
    let mut response = Response::new(Content::full(document.into()));
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn json_text(value: &serde_json::Value) -> Response<Content> {
    let mut response = text(StatusCode::OK, &format!("{value:#}\n"));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

const MUTATING: &[&str] = &[
    "/drain",
    "/drain_listeners",
    "/quitquitquit",
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/reload",
    "/logging",
    "/reset_counters",
];
const HELP: &str = "/certs\n/clusters (?format=json)\n/config_dump (?section=NAMES, ?format=summary)\n/debug/pprof/heap\n\
                    /debug/pprof/profile\n/drain_listeners (POST)\n/healthcheck/fail (POST)\n/healthcheck/ok (POST)\n\
                    /listeners (?format=json)\n/logging (POST)\n/memory\n/quitquitquit (POST)\n/ready\n/reload (POST)\n\
                    /reset_counters (POST)\n/server_info\n/stats (?filter=REGEX, ?usedonly, ?format=json)\n\
                    /stats/prometheus\n";
const WORKER_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LIFE-079
    #[test]
    fn admin_answers_to_local_names_alone() {
        let is_local = |host: &'static str| is_local_name(Some(&HeaderValue::from_static(host)), "echo-1");
        for good in [
            "localhost",
            "localhost:15000",
            "127.0.0.1:15000",
            "[::1]:15000",
            "10.0.0.1",
            "echo-1:15000",
        ] {
            assert!(is_local(good), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:15000",
            "echo-10",
            "localhost.evil.example",
        ] {
            assert!(!is_local(bad), "{bad}");
        }
        // Nobody's name is no name, and who says nothing is no browser.
        assert!(!is_local_name(Some(&HeaderValue::from_static("")), ""));
        assert!(is_local_name(None, ""));
    }
}
