//! Connections to the ports of a gateway: by what its configuration says of the port at that moment (GW-024, GW-056,
//! GW-068).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::StartHandshake;
use weft_bundle::model::{Serves, Tls, TlsServer};

use crate::detect::{self, Among, Hello};
use crate::exchange::{Details, Direction, Downstream, Flags, Session};
use crate::http::server::{self, Handler};
use crate::io::Io;
use crate::listen::Incoming;
use crate::outbound::{self, Next, Route};
use crate::shared::Snapshot;
use crate::telemetry::Counter;
use crate::tls::PeerTls;
use crate::worker::Worker;

pub mod credentials;
pub mod ports;

pub use credentials::Credentials;
pub use ports::{OpenPort, Ports};

/// A client's handshake must be complete after this (GW-055); here its first message.
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
        Begun::Http { incoming, downstream } => {
            let is_tls = downstream.is_some();
            let downstream = downstream.unwrap_or_else(|| incoming.downstream(&worker, Direction::Outbound));
            let handler = Handler::Gateway { port, is_tls };
            Box::pin(server::serve(worker, incoming, Arc::new(downstream), handler)).await;
        }
        Begun::Other(next) => outbound::relay(&worker, next).await,
    }
}

/// What a connection turned out to be.
enum Begun {
    Http {
        incoming: Incoming,
        /// Of one whose TLS ended here.
        downstream: Option<Downstream>,
    },
    /// Opaque, or refused.
    Other(Next),
}

const DONE: Begun = Begun::Other(Next::Done);

async fn begin(worker: &Rc<Worker>, mut incoming: Incoming, port: &OpenPort) -> Begun {
    let Some(snapshot) = port.snapshot(worker) else {
        return DONE;
    };
    let Some(listener) = snapshot.config.listeners.get(&port.number) else {
        refuse(worker, &incoming);
        return DONE;
    };
    match &listener.serves {
        Serves::Http(_) => {
            drop(snapshot);
            http(incoming, None).await
        }
        Serves::Tls(tls) => {
            let hello = timeout(HANDSHAKE, detect::hello(&mut incoming.io, &mut incoming.buffer)).await;
            let Ok(Ok(hello)) = hello else {
                worker.shared.telemetry.count(Counter::HandshakeFailed);
                return DONE;
            };
            let name = hello.server_name.clone().unwrap_or_default();
            match tls.find(&name) {
                Some(Tls::PassesThrough(destinations)) => {
                    let route = Route::Rule(destinations, Some(&name));
                    Begun::Other(outbound::session(worker, &snapshot, incoming, route).await)
                }
                Some(Tls::Ends(server)) => terminate(worker, &snapshot, incoming, hello, server).await,
                None => {
                    refuse(worker, &incoming);
                    DONE
                }
            }
        }
        Serves::Tcp(destinations) => {
            Begun::Other(outbound::session(worker, &snapshot, incoming, Route::Rule(destinations, None)).await)
        }
    }
}

/// First bytes tell HTTP/1 from HTTP/2; what is neither gets 400.
async fn http(mut incoming: Incoming, downstream: Option<Downstream>) -> Begun {
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await {
        Ok(Some(_)) => Begun::Http { incoming, downstream },
        Ok(None) | Err(_) => DONE,
    }
}

/// Ends TLS with the certificate of a server (GW-031, GW-042).
async fn terminate(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    incoming: Incoming,
    hello: Hello,
    server: &Arc<TlsServer>,
) -> Begun {
    let Some(config) = worker.shared.ports.credentials.server(&server.tls, &hello.alpn) else {
        worker.shared.telemetry.count(Counter::HandshakeFailed);
        return DONE;
    };
    let mut downstream = incoming.downstream(worker, Direction::Outbound);
    let (remote, dialled) = (incoming.remote, incoming.dialled);
    let io = incoming.io.with_prefix(hello.rest);
    let handshake = StartHandshake::from_parts(hello.accepted, io).into_stream(config);
    let stream = match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(client = %remote, %error, "handshake at the gateway");
            worker.shared.telemetry.count(Counter::HandshakeFailed);
            return DONE;
        }
        Err(_) => {
            worker.shared.telemetry.count(Counter::HandshakeFailed);
            return DONE;
        }
    };
    downstream.tls = PeerTls::of(stream.get_ref().1);
    downstream.server_name = hello.server_name.map(Into::into);
    let incoming = Incoming {
        io: Io::from(stream),
        buffer: bytes::BytesMut::new(),
        remote,
        dialled,
    };
    match &server.serves {
        Serves::Http(_) => http(incoming, Some(downstream)).await,
        Serves::Tcp(destinations) => {
            let name = downstream.server_name.as_deref();
            Begun::Other(outbound::session(worker, snapshot, incoming, Route::Rule(destinations, name)).await)
        }
        // Checked by parse.
        Serves::Tls(_) => DONE,
    }
}

/// Closes a connection that no rule of the port is for, without a byte.
fn refuse(worker: &Worker, incoming: &Incoming) {
    let downstream = Arc::new(incoming.downstream(worker, Direction::Outbound));
    let mut record = Session::new(worker.shared.telemetry.clone(), downstream);
    record.flags |= Flags::NR;
    record.details = Some(Details::Word("filter_chain_not_found"));
    incoming.io.reset();
}
