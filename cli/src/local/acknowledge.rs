//! Asks sidecars for their revisions until they have the ones that were written (LOC-030).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::probe;
use super::run::Event;

/// Waits, at most ten seconds, in the background; then tells how long it took the last of them.
pub(super) fn wait(
    sidecars: Vec<(SocketAddr, String, String)>,
    begun: Instant,
    reach: &tokio::runtime::Handle,
    tell: UnboundedSender<Event>,
) {
    reach.spawn(async move {
        let outcomes = ask(sidecars).await;
        let sidecars = outcomes.iter().filter(|has| **has).count();
        // A newer change may have taken its place; then that one is told.
        if sidecars == outcomes.len() {
            let _ = tell.send(Event::Acknowledged {
                sidecars,
                elapsed: begun.elapsed(),
            });
        }
    });
}

/// Whether each of the sidecars, within ten seconds, has its revisions of configuration and endpoints.
pub(super) async fn ask(sidecars: Vec<(SocketAddr, String, String)>) -> Vec<bool> {
    let waits = sidecars.into_iter().map(|(address, cfg, ep)| async move {
        let has_it = async {
            loop {
                if let Ok((200, body)) = probe::get(address, "/config/status", &[]).await {
                    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
                    if status["active"]["cfg"] == *cfg && status["active"]["ep"] == *ep {
                        return;
                    }
                }
                tokio::time::sleep(PERIOD).await;
            }
        };
        tokio::time::timeout(LIMIT, has_it).await.is_ok()
    });
    futures::future::join_all(waits).await
}

const PERIOD: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(10);
