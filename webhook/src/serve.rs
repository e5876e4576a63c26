//! The servers: admission over HTTPS, health and metrics over HTTP (section M).

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::admission::{Answer, Request};
use crate::metrics::Metrics;
use crate::nodes::Versions;
use crate::reload::Loaded;

use self::body::Bodies;

mod body;

/// Connections at a time; an API server needs a handful.
const MAX_CONNECTIONS: usize = 1024;
/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of an HTTP/1.1 request; idle connections end with it too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent HTTP/2 peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 250;
/// After SIGTERM requests are served on, until every API server knows that this replica leaves (INJ-208).
pub const LAME_DUCK: Duration = Duration::from_secs(10);
/// Connections that are still busy after GOAWAY are cut.
const DRAIN: Duration = Duration::from_secs(5);

/// What the servers share.
pub struct Webhook {
    /// Certificate and settings.
    pub loaded: Arc<Loaded>,
    /// Node versions.
    pub versions: Arc<ArcSwap<Versions>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// All series, for `/metrics`.
    pub registry: Registry,
    bodies: Bodies,
    leaving: AtomicBool,
    /// Node versions are still awaited.
    awaiting_nodes: AtomicBool,
}

impl Webhook {
    /// A webhook that reads what it is given.
    #[must_use]
    pub fn new(
        loaded: Arc<Loaded>,
        versions: Arc<ArcSwap<Versions>>,
        metrics: Arc<Metrics>,
        registry: Registry,
    ) -> Arc<Self> {
        Arc::new(Self {
            loaded,
            versions,
            metrics,
            registry,
            bodies: Bodies::default(),
            leaving: AtomicBool::new(false),
            awaiting_nodes: AtomicBool::new(false),
        })
    }

    /// Fails readiness from now on.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Fails readiness until the node versions are known, so that the first pods of a starting replica get the same
    /// form as all others; at most for `limit`, since without them it can serve as well (INJ-053).
    pub fn await_nodes(self: &Arc<Self>, first: oneshot::Receiver<()>, limit: Duration) {
        self.awaiting_nodes.store(true, Ordering::Relaxed);
        let webhook = Arc::clone(self);
        tokio::spawn(async move {
            if tokio::time::timeout(limit, first).await.is_err() {
                tracing::warn!("node versions are unknown; sidecars are ordinary containers until they are");
            }
            webhook.awaiting_nodes.store(false, Ordering::Relaxed);
        });
    }

    /// Why it is not ready; `None` when it is (INJ-208).
    #[must_use]
    pub fn unready(&self) -> Option<&'static str> {
        if self.leaving.load(Ordering::Relaxed) {
            Some("draining")
        } else if self.loaded.certificate.current().is_none() {
            Some("no serving certificate")
        } else if self.loaded.config.load().is_none() {
            Some("no settings")
        } else if self.awaiting_nodes.load(Ordering::Relaxed) {
            Some("no node versions")
        } else {
            None
        }
    }
}

/// Routes of the HTTPS port.
pub fn admission_routes(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/inject", any(inject))
        .route("/validate", any(validate))
        .with_state(webhook)
}

/// Routes of the ports for kubelets and Prometheus.
pub fn health_routes(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(webhook)
}

/// Serves admission on `listener` until `stop` resolves, then sends GOAWAY and returns when connections have ended.
///
/// # Errors
/// When the TLS library refuses its own defaults; errors of single connections are logged.
pub async fn serve_admission(
    webhook: Arc<Webhook>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), rustls::Error> {
    let acceptor = TlsAcceptor::from(webhook.loaded.certificate.server_config()?);
    let routes = admission_routes(webhook);
    let connections = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = std::pin::pin!(stop);
    loop {
        let slot = Arc::clone(&slots);
        let accepted = async {
            let slot = slot.acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, stream) = tokio::select! {
            () = &mut stop => break,
            (slot, accepted) = accepted => match accepted {
                Ok((stream, _)) => (slot, stream),
                Err(error) => {
                    back_off(&error).await;
                    continue;
                }
            },
        };
        let watcher = connections.watcher();
        let acceptor = acceptor.clone();
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let Some(stream) = handshake(&acceptor, stream).await else {
                return;
            };
            let mut server = auto::Builder::new(TokioExecutor::new());
            server
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT);
            server
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEP_ALIVE)
                .max_concurrent_streams(MAX_STREAMS);
            let connection = server.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(%error, "connection of an API server ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        tracing::warn!("connections cut that were still busy after the drain");
    }
    Ok(())
}

/// Serves health and metrics on `listener` until `stop` resolves.
///
/// # Errors
/// Those of the listener.
pub async fn serve_health(
    webhook: Arc<Webhook>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, health_routes(webhook))
        .with_graceful_shutdown(stop)
        .await
}

async fn handshake(acceptor: &TlsAcceptor, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake timed out");
            None
        }
    }
}

/// A process without file descriptors waits for one instead of spinning.
async fn back_off(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn inject(State(webhook): State<Arc<Webhook>>, request: axum::extract::Request) -> Response {
    let began = Instant::now();
    let review = match webhook.bodies.review(request).await {
        Ok(review) => review,
        Err(refused) => return *refused,
    };
    let request = match Request::new(&review) {
        Ok(request) => request,
        Err(bad) => return plain(StatusCode::BAD_REQUEST, bad.to_string()),
    };
    let answer = guarded(&request, || {
        // Readiness waits for settings, so this is a request that was sent around it.
        let Some(config) = webhook.loaded.config.load_full() else {
            return request.internal_error();
        };
        request.inject(&config, webhook.versions.load().native(request.node_name()))
    });
    webhook.metrics.injection(answer.outcome, began.elapsed().as_secs_f64());
    json(&answer)
}

async fn validate(State(webhook): State<Arc<Webhook>>, request: axum::extract::Request) -> Response {
    let began = Instant::now();
    let review = match webhook.bodies.review(request).await {
        Ok(review) => review,
        Err(refused) => return *refused,
    };
    let request = match Request::new(&review) {
        Ok(request) => request,
        Err(bad) => return plain(StatusCode::BAD_REQUEST, bad.to_string()),
    };
    let answer = guarded(&request, || request.validate());
    webhook
        .metrics
        .validation(answer.outcome, began.elapsed().as_secs_f64());
    json(&answer)
}

/// A panic is answered like any other failure: the connection stays, and the request gets its uid back (INJ-210).
fn guarded(request: &Request<'_>, answer: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
        tracing::error!(uid = request.uid(), "admission panicked");
        request.internal_error()
    })
}

fn json(answer: &Answer) -> Response {
    let body = answer.review.to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn plain(status: StatusCode, message: String) -> Response {
    (status, message + "\n").into_response()
}

async fn ready(State(webhook): State<Arc<Webhook>>) -> Response {
    match webhook.unready() {
        None => plain(StatusCode::OK, "ok".to_owned()),
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()),
    }
}

async fn metrics(State(webhook): State<Arc<Webhook>>) -> Result<Response, Infallible> {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &webhook.registry);
    Ok(match encoded {
        Ok(()) => {
            let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, media)], Body::from(text)).into_response()
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review() -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "u-1"},
        })
    }

    // spec: INJ-210
    #[test]
    fn a_panic_is_answered_with_the_requests_uid() {
        let review = review();
        let request = Request::new(&review).unwrap();
        let answer = guarded(&request, || panic!("on purpose"));
        assert_eq!(answer.review["response"]["uid"], "u-1");
        assert_eq!(answer.review["response"]["allowed"], false);
        assert_eq!(answer.review["response"]["status"]["code"], 500);
    }

    // spec: INJ-053
    #[tokio::test(start_paused = true)]
    async fn readiness_waits_for_the_nodes_but_not_for_ever() {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let loaded = Arc::new(Loaded::new());
        loaded
            .config
            .store(Some(Arc::new(crate::InjectConfig::new("weft-proxy:1"))));
        let webhook = Webhook::new(loaded, Arc::default(), metrics, registry);
        let waits = || webhook.awaiting_nodes.load(Ordering::Relaxed);
        let (told, first) = oneshot::channel();
        webhook.await_nodes(first, Duration::from_secs(10));
        assert!(waits());
        told.send(()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waits());
        let (silent, first) = oneshot::channel::<()>();
        webhook.await_nodes(first, Duration::from_secs(10));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(waits());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!waits());
        drop(silent);
    }
}
