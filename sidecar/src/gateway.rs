//! Connections to the ports of a gateway: by what its configuration says of the port at that moment (GW-024, GW-056,
//! GW-068).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use weft_bundle::model::Serves;

use crate::detect::{self, Among};
use crate::exchange::{Details, Direction, Flags, Session};
use crate::http::server::{self, Handler};
use crate::listen::Incoming;
use crate::outbound::{self, Next, Route};
use crate::telemetry::Counter;
use crate::worker::Worker;

pub mod ports;

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
        Next::Http(incoming) => {
            let downstream = Arc::new(incoming.downstream(&worker, Direction::Outbound));
            let handler = Handler::Gateway(port);
            Box::pin(server::serve(worker, incoming, downstream, handler)).await;
        }
        next => outbound::relay(&worker, next).await,
    }
}

async fn begin(worker: &Rc<Worker>, mut incoming: Incoming, port: &OpenPort) -> Next {
    let Some(snapshot) = port.snapshot(worker) else {
        return Next::Done;
    };
    let Some(listener) = snapshot.config.listeners.get(&port.number) else {
        refuse(worker, &incoming);
        return Next::Done;
    };
    match &listener.serves {
        Serves::Http(_) => {
            drop(snapshot);
            // First bytes tell HTTP/1 from HTTP/2; what is neither gets 400.
            match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await {
                Ok(Some(_)) => Next::Http(incoming),
                Ok(None) | Err(_) => Next::Done,
            }
        }
        Serves::Tls(rules) => {
            let hello = timeout(HANDSHAKE, detect::hello(&mut incoming.io, &mut incoming.buffer)).await;
            let Ok(Ok(hello)) = hello else {
                worker.shared.telemetry.count(Counter::HandshakeFailed);
                return Next::Done;
            };
            let name = hello.server_name.unwrap_or_default();
            match rules.iter().find(|rule| rule.fits(&name, incoming.dialled.ip())) {
                Some(rule) => {
                    let route = Route::Rule(&rule.destinations, Some(&name));
                    outbound::session(worker, &snapshot, incoming, route).await
                }
                None => {
                    refuse(worker, &incoming);
                    Next::Done
                }
            }
        }
        Serves::Tcp(destinations) => {
            outbound::session(worker, &snapshot, incoming, Route::Rule(destinations, None)).await
        }
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
