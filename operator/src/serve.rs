//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::run::Health;

#[derive(Clone)]
struct Served {
    metrics: Arc<Metrics>,
    health: watch::Receiver<Health>,
}

/// Opens the port and serves in the background.
///
/// # Errors
/// That the port cannot be opened.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: watch::Receiver<Health>,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Served { metrics, health });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics port closed");
        }
    });
    Ok(address)
}

async fn text(State(served): State<Served>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match served.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(served): State<Served>) -> impl IntoResponse {
    match &*served.health.borrow() {
        Health {
            problem: Some(problem), ..
        } => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        Health { synced: false, .. } => (StatusCode::SERVICE_UNAVAILABLE, "not synced\n".to_owned()),
        Health { .. } => (StatusCode::OK, "ok\n".to_owned()),
    }
}
