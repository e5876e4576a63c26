//! From an accepted connection to what serves it: original destination, TLS, protocol.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::exchange::{Direction, Downstream};
use crate::gateway::OpenPort;
use crate::io::{Io, canonical, original_destination};
use crate::shared::{Listener, Role};
use crate::telemetry::Counter;
use crate::worker::Worker;
use crate::{gateway, inbound, outbound};

/// How long a silent client is waited for before the other side is asked as well (BYD-021).
pub const SILENCE: Duration = Duration::from_millis(3);

/// A connection on its way to its protocol.
pub struct Incoming {
    /// Stream.
    pub io: Io,
    /// What was read of it.
    pub buffer: BytesMut,
    /// The client.
    pub remote: SocketAddr,
    /// What the client dialled.
    pub dialled: SocketAddr,
}

impl Incoming {
    /// Facts of the connection, before TLS.
    #[must_use]
    pub fn downstream(&self, worker: &Worker, direction: Direction) -> Downstream {
        Downstream {
            id: worker.next_connection(),
            worker: worker.index,
            direction,
            remote: self.remote,
            local: self.dialled,
            principal: None,
            local_principal: None,
            ended_by: None,
            server_name: None,
            tls: None,
            certificate_element: std::sync::OnceLock::new(),
        }
    }

    /// Waits a moment for the client's first bytes; false when it stays silent. A client that closes counts as having
    /// spoken.
    pub async fn speaks(&mut self) -> bool {
        let Self { io, buffer, .. } = self;
        timeout(SILENCE, poll_fn(|cx| io.poll_read_into(cx, buffer)))
            .await
            .is_ok()
    }

    /// The stream, with what was read in front.
    #[must_use]
    pub fn into_io(self) -> Io {
        self.io.with_prefix(self.buffer.freeze())
    }
}

/// Takes an accepted connection over. The original destination is read before anything else, because the kernel forgets
/// it when the client resets (NET-062).
pub fn accepted(worker: &Rc<Worker>, stream: TcpStream, remote: SocketAddr, listener: Listener) {
    let remote = canonical(remote);
    let local = stream.local_addr().map(canonical).unwrap_or(listener.address);
    let original = match listener.role {
        // What is not redirected keeps the address that was dialled (NET-064).
        Role::Inbound if worker.shared.settings.transparent.is_some() => Some(local),
        Role::Outbound | Role::Inbound => original_destination(&stream).filter(|dialled| *dialled != local),
        Role::HttpProxy | Role::Explicit { .. } | Role::Fixed { .. } => None,
    };
    // A connection without it works, only slower.
    let _ = stream.set_nodelay(true);
    let incoming = |dialled| Incoming {
        io: Io::from(stream),
        buffer: BytesMut::new(),
        remote,
        dialled,
    };
    match listener.role {
        Role::HttpProxy => {
            let incoming = incoming(local);
            worker.spawn(outbound::proxy(worker.clone(), incoming));
        }
        Role::Fixed { destination } => {
            let incoming = incoming(destination);
            worker.spawn(outbound::serve(worker.clone(), incoming));
        }
        Role::Explicit { target, port } => {
            let dialled = SocketAddr::new(local.ip(), port);
            let incoming = incoming(dialled);
            worker.spawn(inbound::serve(worker.clone(), incoming, target));
        }
        Role::Outbound => {
            let Some(dialled) = original.filter(|dialled| !is_own(worker, *dialled, local)) else {
                worker.shared.telemetry.count(Counter::InboundSelfPort);
                return;
            };
            let incoming = incoming(dialled);
            worker.spawn(outbound::serve(worker.clone(), incoming));
        }
        Role::Inbound => {
            let Some(dialled) = original.filter(|dialled| !is_own(worker, *dialled, local)) else {
                worker.shared.telemetry.count(Counter::InboundSelfPort);
                return;
            };
            let addresses = &worker.shared.settings.addresses;
            if !addresses.is_empty() && !addresses.contains(&dialled.ip()) {
                worker.shared.telemetry.count(Counter::InboundForeignDestination);
                return;
            }
            let incoming = incoming(dialled);
            worker.spawn_inbound(remote, inbound::serve(worker.clone(), incoming, dialled));
        }
    }
}

/// Takes over a connection to a port of a gateway: what it dialled is the port itself.
pub fn at_gateway(worker: &Rc<Worker>, stream: TcpStream, remote: SocketAddr, port: &Arc<OpenPort>) {
    let Ok(dialled) = stream.local_addr().map(canonical) else {
        return;
    };
    // A connection without it works, only slower.
    let _ = stream.set_nodelay(true);
    let incoming = Incoming {
        io: Io::from(stream),
        buffer: BytesMut::new(),
        remote: canonical(remote),
        dialled,
    };
    worker.spawn(gateway::serve(worker.clone(), incoming, port.clone()));
}

/// Whether a connection dials a capture port of this proxy: forwarding it would loop (NET-013, NET-063).
fn is_own(worker: &Worker, dialled: SocketAddr, local: SocketAddr) -> bool {
    let addresses = &worker.shared.settings.addresses;
    let own_address = dialled.ip() == local.ip() || dialled.ip().is_loopback() || addresses.contains(&dialled.ip());
    let captures = worker.shared.settings.listeners.iter().any(|listener| {
        matches!(listener.role, Role::Outbound | Role::Inbound) && listener.address.port() == dialled.port()
    });
    own_address && captures
}
