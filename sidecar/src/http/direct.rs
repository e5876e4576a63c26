//! Requests to one fixed address: the application, or an unknown destination.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use weft_bundle::wire::Policy;

use super::client::{self, Channel, Guards, Response, SendError};
use super::replay::{Meter, Replay};
use super::rescue::Failure;
use super::{Body, RequestHead, Version, h1, h2 as http2};
use crate::cluster::{Counters, Peer, Permit};
use crate::connect::{self, ConnectError, Opening, Secure};
use crate::exchange::Exchange;
use crate::io::Dial;
use crate::pool::Security;
use crate::telemetry::Counter;
use crate::tls::Inner;
use crate::worker::Worker;

/// How often a waiting request looks for a connection that another one gave back.
const PLACE_LOOK: Duration = Duration::from_millis(2);

/// How a fixed address is reached.
pub struct Direct {
    /// Address.
    pub peer: Rc<Peer>,
    /// Protocol.
    pub version: Version,
    /// Sockets.
    pub dial: Dial,
    /// Connect timeout.
    pub limit: Duration,
    /// What a rule says of connections there (DR-089).
    pub limits: Option<Limits>,
}

/// Limits of connections to the application.
pub struct Limits {
    /// Of a rule.
    pub policy: Arc<Policy>,
    /// What is in use, of all workers together.
    pub counters: Arc<Counters>,
}

/// Sends a request; one that a reused connection lost goes to a new one, once (BYD-014).
///
/// # Errors
/// The failure that the client gets.
pub async fn forward(
    worker: &Worker,
    direct: &Direct,
    head: &RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let address: SocketAddr = direct.peer.address;
    exchange.upstream.host = Some(address);
    exchange.attempts = 1;
    let in_flight = match &direct.limits {
        None => None,
        Some(Limits { policy, counters }) => {
            let permit = Permit::take(counters, |c| &c.requests, policy.max_requests);
            Some(permit.ok_or_else(Failure::overflow)?)
        }
    };
    let policy = direct.limits.as_ref().map(|limits| &limits.policy);
    let mut request = Replay::new(body, meter.clone(), exchange.grpc, true);
    let mut fresh = false;
    loop {
        let channel = open(worker, direct, head, fresh).await.map_err(|e| {
            let Some(e) = e else { return Failure::overflow() };
            exchange.upstream.failure = e.transport().map(Into::into);
            Failure {
                undelivered: true,
                ..Failure::connect(&e)
            }
        })?;
        let link = channel.link();
        exchange.times.pool_ready = exchange.start.elapsed();
        exchange.upstream.local = link.local;
        exchange.upstream.connection_id = link.id;
        exchange.upstream_protocol = Some(channel.version());
        let guards = Guards {
            busy: Some(direct.peer.busy()),
            most_requests: policy.and_then(|p| p.max_requests_per_connection),
            oldest: policy
                .and_then(|p| p.max_connection_duration_ms)
                .map(Duration::from_millis),
            ..Guards::default()
        };
        match client::send(channel, head, request, guards).await {
            Ok(mut response) => {
                if let (Body::Upstream(body), Some(permit)) = (&mut response.body, in_flight) {
                    body.hold(None, permit);
                }
                exchange.times.response_begin = exchange.start.elapsed();
                return Ok(response);
            }
            Err((e, mut back, _)) => {
                if fresh || !matches!(e, SendError::Closed { race: true, .. }) || !back.rewind() {
                    return Err(Failure::send(&e));
                }
                worker.shared.telemetry.count(Counter::Replay);
                fresh = true;
                request = back;
            }
        }
    }
}

/// A connection; `None` in place of an error when the limits allow none.
async fn open(
    worker: &Worker,
    direct: &Direct,
    head: &RequestHead,
    fresh: bool,
) -> Result<Channel, Option<ConnectError>> {
    let version = if head.upgrade || direct.version == Version::Http10 {
        Version::Http11
    } else {
        direct.version
    };
    let peer = &direct.peer;
    let policy = direct.limits.as_ref().map(|limits| &limits.policy);
    let oldest = policy
        .and_then(|p| p.max_connection_duration_ms)
        .map(Duration::from_millis);
    let streams = policy.and_then(|p| p.max_concurrent_streams).unwrap_or(u32::MAX);
    let reuse = || {
        if version == Version::Http2 {
            let entry = peer.pool.http2(&Security::Plain, streams, oldest)?;
            return Some(Channel::Http2 { entry, reused: true });
        }
        let idle = peer.pool.take(&Security::Plain, oldest)?;
        Some(Channel::Http1 {
            conn: idle.conn,
            link: idle.link,
            reused: true,
        })
    };
    if !fresh && let Some(channel) = reuse() {
        return Ok(channel);
    }
    let mut permit = None;
    if let Some(Limits { policy, counters }) = &direct.limits {
        let _pending = Permit::take(counters, |c| &c.pending, policy.max_pending_requests).ok_or(None)?;
        permit = loop {
            if let Some(permit) = Permit::take(counters, |c| &c.connections, policy.max_connections) {
                break Some(permit);
            }
            let waiting = peer.pool.wait();
            sleep(PLACE_LOOK).await;
            drop(waiting);
            if let Some(channel) = reuse() {
                return Ok(channel);
            }
        };
    }
    let inner = Inner::Http(version);
    let (io, link) = connect::connect(
        worker,
        peer.address,
        &Secure::Plain,
        inner,
        Opening {
            dial: direct.dial,
            limit: policy.map_or(direct.limit, |p| Duration::from_millis(p.connect_timeout_ms)),
            keepalive: policy.and_then(|p| p.tcp_keepalive.as_ref()),
            announce: None,
        },
        permit,
    )
    .await?;
    if version == Version::Http2 {
        let keepalive = policy.and_then(|p| p.http2_keepalive.as_ref());
        let entry = http2::connect(io, link, keepalive).await.map_err(|e| ConnectError::Io {
            address: peer.address,
            source: std::io::Error::other(e),
        });
        let entry = entry?;
        peer.pool.put_http2(entry.clone());
        return Ok(Channel::Http2 { entry, reused: false });
    }
    Ok(Channel::Http1 {
        conn: Box::new(h1::Conn::new(io)),
        link,
        reused: false,
    })
}
