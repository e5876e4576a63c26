//! Connections to the ports of a gateway: by what its configuration says of the port at that moment (GW-024, GW-056,
//! GW-068).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ProtocolVersion, ServerConfig};
use tokio::time::{Instant, timeout_at};
use weft_bundle::model::{Inside, Serves, Tls, TlsServer};
use weft_bundle::wire::{Certificate, TlsSettings, TlsVersion};

use crate::authorize::{self, Since};
use crate::detect::{self, Among, Hello};
use crate::exchange::{Details, Direction, Downstream, Flags, Session};
use crate::http::server::{self, Handler};
use crate::io::Io;
use crate::listen::Incoming;
use crate::outbound::{self, Next, Route};
use crate::shared::Snapshot;
use crate::telemetry::Counter;
use crate::tls::{PeerTls, TlsStream, carries_one_of};
use crate::worker::Worker;

pub mod credentials;
pub mod ports;

pub use credentials::Credentials;
pub use ports::{OpenPort, Ports};

/// A client's handshake must be complete after this (GW-055).
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Serves a connection until it ends, or the port was closed and the time for that is over.
pub async fn serve(worker: Rc<Worker>, incoming: Incoming, port: Arc<OpenPort>) {
    let over = port.clone();
    tokio::select! {
        () = go_on(worker, incoming, port) => {}
        () = over.over() => {}
    }
}

async fn go_on(worker: Rc<Worker>, incoming: Incoming, port: Arc<OpenPort>) {
    match Box::pin(begin(&worker, incoming, &port)).await {
        Begun::Http(http) => {
            let Http { incoming, downstream } = *http;
            let handler = Handler::Gateway(port);
            Box::pin(server::serve(worker, incoming, Arc::new(downstream), handler)).await;
        }
        Begun::Other(next, since) => outbound::relay(&worker, next, Some((port.number, since))).await,
        Begun::Done => {}
    }
}

/// What a connection turned out to be.
enum Begun {
    Http(Box<Http>),
    /// Opaque; allowed by the policies of that time.
    Other(Next, Since),
    /// Refused, or gone.
    Done,
}

struct Http {
    incoming: Incoming,
    downstream: Downstream,
}

async fn begin(worker: &Rc<Worker>, mut incoming: Incoming, port: &OpenPort) -> Begun {
    let Some(snapshot) = port.snapshot(worker) else {
        return Begun::Done;
    };
    let Some(listener) = snapshot.config.listeners.get(&port.number) else {
        refuse(worker, &incoming);
        return Begun::Done;
    };
    match &listener.serves {
        Serves::Http(_) => {
            drop(snapshot);
            let downstream = incoming.downstream(worker, Direction::Outbound);
            http(incoming, downstream).await
        }
        Serves::Tls(tls) => {
            let deadline = Instant::now() + HANDSHAKE;
            let hello = timeout_at(deadline, detect::hello(&mut incoming.io, &mut incoming.buffer)).await;
            let Ok(Ok(hello)) = hello else {
                worker.shared.telemetry.count(Counter::HandshakeFailed);
                return Begun::Done;
            };
            let name = hello.server_name.as_deref().unwrap_or_default();
            match tls.find(name) {
                Some(Tls::PassesThrough(destinations)) => {
                    let mut downstream = incoming.downstream(worker, Direction::Outbound);
                    downstream.server_name = Some(name.into());
                    let route = Route::Rule(destinations, Some(name));
                    opaque(worker, &snapshot, incoming, downstream, port, route).await
                }
                Some(Tls::Ends(server)) => {
                    let server = server.clone();
                    drop(snapshot);
                    Box::pin(end(worker, incoming, hello, &server, port, deadline)).await
                }
                None => {
                    refuse(worker, &incoming);
                    Begun::Done
                }
            }
        }
        Serves::Tcp(destinations) => {
            let downstream = incoming.downstream(worker, Direction::Outbound);
            opaque(
                worker,
                &snapshot,
                incoming,
                downstream,
                port,
                Route::Rule(destinations, None),
            )
            .await
        }
    }
}

/// Opens the other end of an opaque connection that policies allow (AUTHZ-004).
async fn opaque(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    incoming: Incoming,
    downstream: Downstream,
    port: &OpenPort,
    route: Route<'_>,
) -> Begun {
    let since = worker.changes.now();
    let mut record = Session::new(worker.shared.telemetry.clone(), Arc::new(downstream));
    record.source = Some(snapshot.config.workload.clone());
    // The newest policies, whenever the rules of the port were looked up.
    let newest = worker.snapshot();
    let config = newest.as_ref().map_or(&snapshot.config, |newest| &newest.config);
    let judged = authorize::gateway_tcp(config, &record.downstream, port.number);
    if !authorize::admits(judged, &mut record) {
        incoming.io.reset();
        return Begun::Done;
    }
    Begun::Other(
        outbound::session_of(worker, snapshot, incoming, record, route).await,
        since,
    )
}

/// First bytes tell HTTP/1 from HTTP/2; what is neither gets 400.
async fn http(mut incoming: Incoming, downstream: Downstream) -> Begun {
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await {
        Ok(Some(_)) => Begun::Http(Box::new(Http { incoming, downstream })),
        Ok(None) | Err(_) => Begun::Done,
    }
}

/// Ends TLS as a server says, and serves what is inside (GW-031, GW-042).
async fn end(
    worker: &Rc<Worker>,
    incoming: Incoming,
    hello: Hello,
    server: &Arc<TlsServer>,
    port: &OpenPort,
    deadline: Instant,
) -> Begun {
    let mut downstream = incoming.downstream(worker, Direction::Outbound);
    let (remote, dialled) = (incoming.remote, incoming.dialled);
    let Some(stream) = handshake(worker, incoming, &hello, &server.tls, deadline).await else {
        worker.shared.telemetry.count(Counter::HandshakeFailed);
        return Begun::Done;
    };
    downstream.ended_by = Some(server.clone());
    downstream.tls = PeerTls::of(stream.state());
    if is_of_mesh(&server.tls) {
        let identity = worker.shared.identity.load();
        downstream.principal = downstream.tls.as_ref().and_then(|tls| tls.spiffe_id());
        downstream.local_principal = identity.as_ref().map(|identity| identity.spiffe_id.clone());
    }
    downstream.server_name = hello.server_name.map(Into::into);
    let incoming = Incoming {
        io: Io::from(stream),
        buffer: bytes::BytesMut::new(),
        remote,
        dialled,
    };
    match &server.inside {
        Inside::Http(_) => http(incoming, downstream).await,
        Inside::Tcp(destinations) => {
            let Some(snapshot) = port.snapshot(worker) else {
                return Begun::Done;
            };
            let route = Route::Rule(destinations, None);
            opaque(worker, &snapshot, incoming, downstream, port, route).await
        }
    }
}

async fn handshake(
    worker: &Worker,
    incoming: Incoming,
    hello: &Hello,
    settings: &TlsSettings,
    deadline: Instant,
) -> Option<TlsStream> {
    let remote = incoming.remote;
    let Some(config) = server_config(worker, settings, hello) else {
        tracing::debug!(client = %remote, "no certificate for a client of the gateway");
        return None;
    };
    let (socket, ahead) = incoming.io.into_plain()?;
    let mut begun = incoming.buffer;
    begun.extend_from_slice(&ahead);
    let stream = match timeout_at(deadline, TlsStream::accept(config, socket, begun)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(client = %remote, %error, "handshake at the gateway");
            return None;
        }
        Err(_) => return None,
    };
    let is_good = !is_of_mesh(settings) || is_admitted(&stream, settings);
    is_good.then_some(stream)
}

/// `None` where there is no certificate that can be used.
fn server_config(worker: &Worker, settings: &TlsSettings, hello: &Hello) -> Option<Arc<ServerConfig>> {
    if is_of_mesh(settings) {
        let identity = worker.shared.identity.load();
        return Some(identity.as_ref()?.server(hello.alpn.iter().map(Vec::as_slice)));
    }
    worker.shared.ports.credentials.server(settings, &hello.alpn)
}

fn is_of_mesh(settings: &TlsSettings) -> bool {
    settings.certificates.contains(&Certificate::Workload)
}

/// What the server asks for beyond what all connections of the mesh have.
fn is_admitted(stream: &TlsStream, settings: &TlsSettings) -> bool {
    let state = stream.state();
    let is_old = settings.min == TlsVersion::V1_3 && state.protocol_version() != Some(ProtocolVersion::TLSv1_3);
    let names = settings.clients.as_ref().map(|clients| clients.names.as_slice());
    let names = names.filter(|names| !names.is_empty());
    let leaf = state.peer_certificates().and_then(<[_]>::first);
    !is_old && names.is_none_or(|names| leaf.is_some_and(|leaf| carries_one_of(leaf, names)))
}

/// Closes a connection that no rule of the port is for, without a byte.
fn refuse(worker: &Worker, incoming: &Incoming) {
    let downstream = Arc::new(incoming.downstream(worker, Direction::Outbound));
    let mut record = Session::new(worker.shared.telemetry.clone(), downstream);
    record.flags |= Flags::NR;
    record.details = Some(Details::Word("filter_chain_not_found"));
    incoming.io.reset();
}
