//! The application's connections: which destination, which protocol.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use std::future::poll_fn;
use weft_bundle::model::{Cluster, Config, Destinations, Port};
use weft_bundle::wire::{HostKind, OutboundPolicy, Protocol, UpstreamTls};

use crate::authorize::{self, Since};
use crate::connect::{Opening, Secure};
use crate::detect::{self, Among, Verdict};
use crate::exchange::{Details, Direction, Flags, Session, Target};
use crate::http::server::{self, Handler};
use crate::io::Io;
use crate::listen::Incoming;
use crate::shared::Snapshot;
use crate::tcp::{self, Opened, Refused};
use crate::worker::Worker;

/// What an address and port lead to.
pub enum Known {
    /// A port of a host, by its address or by an address that its rules name (VS-174).
    Port(Arc<Port>),
    /// A pod of a headless host, dialled by its own address (SM-076).
    Pod(Arc<Port>),
    /// Such a pod, on a port number that is HTTP-class for another host: HTTP goes by its Host (SM-045).
    SharedPod(Arc<Port>),
    /// An HTTP-class port number: the Host decides (SM-037).
    Shared,
    /// Ports of hosts that share the address, or have none: what the client sends decides (SE-022, SE-023, SM-045).
    Open {
        /// In the order in which they count.
        ports: Vec<Arc<Port>>,
        /// The port number is HTTP-class, too.
        is_shared: bool,
    },
    /// Nothing known (SM-059).
    Unknown,
}

/// Finds what a client dialled.
#[must_use]
pub fn find(worker: &Worker, snapshot: &Snapshot, dialled: SocketAddr) -> Known {
    let config = &snapshot.config;
    if let Some(port) = config.by_address(dialled.ip(), dialled.port())
        && !port.protocol.is_http()
    {
        return Known::Port(port.clone());
    }
    let is_shared = config.domains(dialled.port()).is_some_and(|domains| domains.shared);
    let mut headless = config.headless(dialled.port()).peekable();
    // The own pod is no endpoint of its headless service (SM-080).
    if headless.peek().is_some() && !worker.shared.settings.addresses.contains(&dialled.ip()) {
        let table = worker.shared.endpoints.load();
        // Bytes that are no HTTP are not for a host that speaks it (SM-033).
        let mut fits = headless.filter(|port| !(is_shared && port.protocol.is_http()));
        let pod = fits.find(|port| {
            table
                .host(&port.host.host)
                .is_some_and(|host| host.by_address(dialled.ip()).is_some())
        });
        match pod {
            Some(port) if is_shared => return Known::SharedPod(port.clone()),
            Some(port) => return Known::Pod(port.clone()),
            None => {}
        }
    }
    match config.by_subnet(dialled.ip(), dialled.port()) {
        Some(port) if !is_shared => return Known::Port(port.clone()),
        _ => {}
    }
    let mut ports = config.open(dialled.ip(), dialled.port());
    if !worker.shared.settings.dns.is_empty() {
        // Names are answered here, so that allocated addresses tell these hosts from others (SE-022, SE-023).
        ports.retain(|port| port.host.allocated.is_empty());
    }
    match ports.is_empty() {
        false => Known::Open { ports, is_shared },
        true if is_shared => Known::Shared,
        true => Known::Unknown,
    }
}

/// The service that a connection to one of its endpoints was meant for, where the nodes translate services when a pod
/// connects (NET-066). Of several services with that endpoint the first by name.
fn untranslated(worker: &Worker, snapshot: &Snapshot, dialled: SocketAddr) -> Option<SocketAddr> {
    let config = &snapshot.config;
    if config.by_address(dialled.ip(), dialled.port()).is_some() {
        return None;
    }
    let table = worker.shared.endpoints.load();
    config.clusters.iter().find_map(|cluster| {
        if cluster.host.kind != HostKind::Service {
            return None;
        }
        let family = |address: &&std::net::IpAddr| address.is_ipv4() == dialled.is_ipv4();
        let address = cluster.host.addresses.iter().find(family)?;
        let endpoint = table.host(&cluster.host.host)?.by_address(dialled.ip())?;
        let port = endpoint.ports.get(&*cluster.port_name)?;
        (*port == dialled.port()).then(|| SocketAddr::new(*address, cluster.port))
    })
}

/// What a connection turned out to be. No configuration is kept alive by it (LIFE-052).
pub(crate) enum Next {
    /// HTTP, whose requests each ask for the newest configuration.
    Http(Incoming),
    /// Opaque.
    Relay(Box<Relay>),
    /// Served or refused.
    Done,
}

/// An opaque connection that has both ends.
pub(crate) struct Relay {
    io: Io,
    opened: Opened,
    record: Session,
}

/// Serves a connection of the application.
pub async fn serve(worker: Rc<Worker>, incoming: Incoming) {
    match Box::pin(begin(&worker, incoming)).await {
        Next::Http(incoming) => {
            let downstream = Arc::new(incoming.downstream(&worker, Direction::Outbound));
            let handler = Handler::Outbound {
                dialled: incoming.dialled,
                proxy: false,
            };
            Box::pin(server::serve(worker, incoming, downstream, handler)).await;
        }
        next => relay(&worker, next, None).await,
    }
}

/// Carries an opaque connection to its end. `guarded`: the port of a gateway whose policies have allowed it, and when; newer
/// ones must too (BYD-002).
pub(crate) async fn relay(worker: &Worker, next: Next, guarded: Option<(u16, Since)>) {
    if let Next::Relay(relay) = next {
        let Relay { io, opened, mut record } = *relay;
        let downstream = record.downstream.clone();
        let relay = Box::pin(tcp::relay(worker, io, opened, &mut record));
        let Some((port, since)) = guarded else {
            return relay.await;
        };
        let judge = |config: &Config| authorize::gateway_tcp(config, &downstream, port);
        if let Err(denial) = authorize::while_granted(worker, since, relay, judge).await {
            record.termination = Some(Details::Denied(denial.details.clone()));
        }
    }
}

async fn begin(worker: &Rc<Worker>, mut incoming: Incoming) -> Next {
    let Some(snapshot) = worker.snapshot() else {
        return Next::Done;
    };
    if snapshot.config.mesh.endpoint_lookup
        && let Some(service) = untranslated(worker, &snapshot, incoming.dialled)
    {
        incoming.dialled = service;
    }
    match find(worker, &snapshot, incoming.dialled) {
        Known::Shared => shared(worker, &snapshot, incoming).await,
        Known::SharedPod(port) => automatic(worker, &snapshot, &port, incoming).await,
        Known::Port(port) | Known::Pod(port) => match port.protocol {
            Protocol::Auto => automatic(worker, &snapshot, &port, incoming).await,
            Protocol::Tls => tls(worker, &snapshot, &port, incoming).await,
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => shared(worker, &snapshot, incoming).await,
            Protocol::Tcp => session(worker, &snapshot, incoming, Route::Port(&port)).await,
        },
        Known::Open { ports, is_shared } => open(worker, &snapshot, &ports, is_shared, incoming).await,
        Known::Unknown => session(worker, &snapshot, incoming, Route::Unknown).await,
    }
}

/// Serves the explicit HTTP proxy (SM-052).
pub async fn proxy(worker: Rc<Worker>, incoming: Incoming) {
    let downstream = Arc::new(incoming.downstream(&worker, Direction::Outbound));
    let handler = Handler::Outbound {
        dialled: incoming.dialled,
        proxy: true,
    };
    server::http1(worker, incoming.into_io(), downstream, handler).await;
}

/// A declared HTTP port: HTTP by Host, anything else is unknown traffic (SM-033).
async fn shared(worker: &Rc<Worker>, snapshot: &Snapshot, mut incoming: Incoming) -> Next {
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::ClientTlsOrHttp).await {
        Ok(Some(Verdict::Http1 | Verdict::Http2)) => Next::Http(incoming),
        Ok(Some(_)) => session(worker, snapshot, incoming, Route::Unknown).await,
        Ok(None) | Err(_) => Next::Done,
    }
}

/// An automatic port: detected, waiting for both directions at once (SM-028, BYD-021).
async fn automatic(worker: &Rc<Worker>, snapshot: &Snapshot, port: &Arc<Port>, incoming: Incoming) -> Next {
    let mut incoming = match first_bytes(worker, snapshot, port, incoming).await {
        Ok(incoming) => incoming,
        Err(next) => return next,
    };
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::ClientTlsOrHttp).await {
        Ok(Some(Verdict::Http1 | Verdict::Http2)) => Next::Http(incoming),
        Ok(Some(Verdict::Tls)) => tls(worker, snapshot, port, incoming).await,
        Ok(Some(_)) => session(worker, snapshot, incoming, Route::Port(port)).await,
        Ok(None) | Err(_) => Next::Done,
    }
}

/// Waits for the client's first bytes, and for those of the server that an opaque connection would have; where the
/// server begins, or nobody does in time, that is what comes of the connection.
async fn first_bytes(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    port: &Arc<Port>,
    mut incoming: Incoming,
) -> Result<Incoming, Next> {
    let waits = snapshot.config.mesh.istio_compatibility;
    let limit = Duration::from_millis(snapshot.config.mesh.detection_timeout_ms);
    if !waits && !incoming.speaks().await {
        // The server may be the one to begin: its bytes decide for an opaque connection, the client's for detection.
        let downstream = Arc::new(incoming.downstream(worker, Direction::Outbound));
        let mut record = Session::new(worker.shared.telemetry.clone(), downstream);
        match open_port(worker, snapshot, port, incoming.dialled, false, &mut record).await {
            Err(_) => record.discard(),
            Ok(mut opened) => {
                let first = within(limit, first_to_speak(&mut incoming, &mut opened)).await;
                match first {
                    Some(First::Client) => {}
                    // Its policies may refuse TCP, and yet take the request that is on its way (AUTHZ-082).
                    Some(First::Refused) if speaks_later(&mut incoming).await => {}
                    // Neither side within the limit: nothing is detected any more (SM-030).
                    Some(First::Server | First::Refused) | None => {
                        return Err(Next::Relay(Box::new(Relay {
                            io: incoming.into_io(),
                            opened,
                            record,
                        })));
                    }
                }
                record.discard();
            }
        }
    }
    let least = if waits { detect::UPSTREAM_LEAST_BYTES } else { 1 };
    if incoming.buffer.len() < least {
        match within(limit, read_at_least(&mut incoming, least)).await {
            Some(Ok(true)) => {}
            Some(_) => return Err(Next::Done),
            None => return Err(session(worker, snapshot, incoming, Route::Port(port)).await),
        }
    }
    Ok(incoming)
}

/// Ports of several hosts: HTTP goes by its Host, TLS by the name that it asks for, the rest to the first that takes
/// opaque connections (SE-022, SE-023, SM-045).
async fn open(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    ports: &[Arc<Port>],
    is_shared: bool,
    mut incoming: Incoming,
) -> Next {
    let opaque = ports.iter().find(|port| port.protocol != Protocol::Tls);
    let is_http = is_shared || ports.iter().any(|port| port.protocol == Protocol::Auto);
    let is_tls = ports
        .iter()
        .any(|port| matches!(port.protocol, Protocol::Tls | Protocol::Auto));
    let rest = || opaque.map_or(Route::Unknown, Route::Port);
    if !is_http && !is_tls {
        return session(worker, snapshot, incoming, rest()).await;
    }
    if let Some(port) = opaque {
        incoming = match first_bytes(worker, snapshot, port, incoming).await {
            Ok(incoming) => incoming,
            Err(next) => return next,
        };
    }
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::ClientTlsOrHttp).await {
        Ok(Some(Verdict::Http1 | Verdict::Http2)) if is_http => Next::Http(incoming),
        Ok(Some(Verdict::Tls)) if is_tls => {
            let hello = detect::hello(&mut incoming.io, &mut incoming.buffer).await;
            let sni = hello.ok().and_then(|hello| hello.server_name).unwrap_or_default();
            let sni = sni.strip_suffix('.').unwrap_or(&sni);
            let named = ports.iter().filter(|port| port.protocol != Protocol::Tcp);
            let ruled = named.clone().find_map(|port| {
                let rule = port.tls.iter().find(|rule| rule.fits(sni, incoming.dialled.ip()))?;
                Some(Route::Rule(&rule.destinations, Some(sni)))
            });
            let by_name = || {
                let best = named.filter_map(|port| Some((port.fits_name(sni)?, port)));
                best.max_by_key(|(rank, _)| *rank).map(|(_, port)| Route::Port(port))
            };
            let declared = || {
                ports
                    .iter()
                    .find(|port| port.protocol == Protocol::Tcp)
                    .map(Route::Port)
            };
            let route = ruled.or_else(by_name).or_else(declared).unwrap_or(Route::Unknown);
            session(worker, snapshot, incoming, route).await
        }
        Ok(Some(_)) => session(worker, snapshot, incoming, rest()).await,
        Ok(None) | Err(_) => Next::Done,
    }
}

/// What comes of something within a limit; without limit if that is zero (SM-029, SM-030).
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    if limit.is_zero() {
        Some(future.await)
    } else {
        tokio::time::timeout(limit, future).await.ok()
    }
}

/// Reads once; false at the client's end.
pub async fn read_some(incoming: &mut Incoming) -> std::io::Result<bool> {
    let Incoming { io, buffer, .. } = incoming;
    Ok(poll_fn(|cx| io.poll_read_into(cx, buffer)).await? > 0)
}

/// Reads until there are so many bytes; false when the client ends before.
pub async fn read_at_least(incoming: &mut Incoming, bytes: usize) -> std::io::Result<bool> {
    while incoming.buffer.len() < bytes {
        if !read_some(incoming).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Who was the first to say something on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// The client: bytes, or its end.
    Client,
    /// The server: bytes, which are in front of its stream now, or its end.
    Server,
    /// Nobody: the server's connection was reset.
    Refused,
}

/// Waits for the first bytes of either side.
pub async fn first_to_speak(incoming: &mut Incoming, opened: &mut Opened) -> First {
    let mut banner = bytes::BytesMut::new();
    let Incoming { io, buffer, .. } = incoming;
    let first = poll_fn(|cx| match opened.io.poll_read_into(cx, &mut banner) {
        // Its end is passed on like its bytes.
        Poll::Ready(Ok(_)) => Poll::Ready(First::Server),
        Poll::Ready(Err(_)) => Poll::Ready(First::Refused),
        Poll::Pending => io.poll_read_into(cx, buffer).map(|_| First::Client),
    })
    .await;
    if first == First::Server {
        opened.prepend(banner.freeze());
    }
    first
}

/// Waits for a client that was silent so far, as long as for one that began (BYD-068); false when it stays so.
async fn speaks_later(incoming: &mut Incoming) -> bool {
    const LONGEST: Duration = Duration::from_secs(5);
    matches!(tokio::time::timeout(LONGEST, read_some(incoming)).await, Ok(Ok(true)))
}

/// TLS of the application passes through: by SNI rules, else by address (SM-044, VS-163 ff.).
async fn tls(worker: &Rc<Worker>, snapshot: &Snapshot, port: &Arc<Port>, mut incoming: Incoming) -> Next {
    if port.tls.is_empty() {
        return session(worker, snapshot, incoming, Route::Port(port)).await;
    }
    // What is no TLS has no name.
    let hello = detect::hello(&mut incoming.io, &mut incoming.buffer).await;
    let sni = hello.ok().and_then(|hello| hello.server_name).unwrap_or_default();
    let rule = port.tls.iter().find(|rule| rule.fits(&sni, incoming.dialled.ip()));
    let route = match rule {
        Some(rule) => Route::Rule(&rule.destinations, Some(&sni)),
        // VS-168: rules that do not fit make it unknown traffic.
        None => Route::Unknown,
    };
    session(worker, snapshot, incoming, route).await
}

/// Where an opaque connection goes.
pub(crate) enum Route<'r> {
    Port(&'r Arc<Port>),
    Rule(&'r Destinations, Option<&'r str>),
    Unknown,
}

impl Route<'_> {
    /// Whether some destination gets TLS that the proxy adds.
    fn originates(&self) -> bool {
        let adds = |cluster: &Arc<Cluster>| matches!(cluster.policy.tls, UpstreamTls::Originate(_));
        let any = |destinations: &Destinations| {
            let clusters = destinations.list.iter().filter_map(|d| d.cluster.as_ref());
            clusters.into_iter().any(adds)
        };
        match self {
            Self::Port(port) => adds(&port.cluster) || port.tcp.iter().any(|rule| any(&rule.destinations)),
            Self::Rule(destinations, _) => any(destinations),
            Self::Unknown => false,
        }
    }
}

/// Opens the other end of an opaque connection.
pub(crate) async fn session(worker: &Rc<Worker>, snapshot: &Snapshot, incoming: Incoming, route: Route<'_>) -> Next {
    let mut downstream = incoming.downstream(worker, Direction::Outbound);
    if let Route::Rule(_, Some(sni)) = route {
        downstream.server_name = Some(sni.into());
    }
    let mut record = Session::new(worker.shared.telemetry.clone(), Arc::new(downstream));
    record.source = Some(snapshot.config.workload.clone());
    session_of(worker, snapshot, incoming, record, route).await
}

/// As [`session`], with a record that has begun.
pub(crate) async fn session_of(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    mut incoming: Incoming,
    mut record: Session,
    route: Route<'_>,
) -> Next {
    let dialled = incoming.dialled;
    // Where TLS is added the client's first bytes tell whether it is there already (BYD-022); a client that waits for
    // the server gets what it waits for.
    let mut early = None;
    let mut is_tls = false;
    if route.originates() {
        if incoming.buffer.is_empty() && !incoming.speaks().await {
            let mut opened = open_route(worker, snapshot, &route, dialled, false, &mut record).await;
            let begins = match &mut opened {
                Ok(opened) => first_to_speak(&mut incoming, opened).await != First::Client,
                Err(_) => !matches!(read_some(&mut incoming).await, Ok(true)),
            };
            if begins {
                return relay_or_refuse(incoming, opened, record);
            }
            early = Some(opened);
        }
        let verdict = detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Tls).await;
        is_tls = matches!(verdict, Ok(Some(Verdict::Tls)));
    }
    let opened = match early.filter(|_| !is_tls) {
        Some(opened) => opened,
        None => open_route(worker, snapshot, &route, dialled, is_tls, &mut record).await,
    };
    relay_or_refuse(incoming, opened, record)
}

fn relay_or_refuse(incoming: Incoming, opened: Result<Opened, Refused>, mut record: Session) -> Next {
    match opened {
        Ok(opened) => Next::Relay(Box::new(Relay {
            io: incoming.into_io(),
            opened,
            record,
        })),
        Err(refused) => {
            record.flags |= refused.flags;
            record.details = Some(refused.details);
            incoming.io.reset();
            Next::Done
        }
    }
}

async fn open_route(
    worker: &Worker,
    snapshot: &Snapshot,
    route: &Route<'_>,
    dialled: SocketAddr,
    is_tls: bool,
    record: &mut Session,
) -> Result<Opened, Refused> {
    match route {
        Route::Port(port) => open_port(worker, snapshot, port, dialled, is_tls, record).await,
        Route::Rule(destinations, _) => tcp::open(worker, snapshot, destinations, dialled, is_tls, record).await,
        Route::Unknown => unknown(worker, snapshot, dialled, record).await,
    }
}

async fn open_port(
    worker: &Worker,
    snapshot: &Snapshot,
    port: &Arc<Port>,
    dialled: SocketAddr,
    is_tls: bool,
    record: &mut Session,
) -> Result<Opened, Refused> {
    record.source = Some(snapshot.config.workload.clone());
    match port.tcp.iter().find(|rule| rule.fits(dialled.ip())) {
        Some(rule) => tcp::open(worker, snapshot, &rule.destinations, dialled, is_tls, record).await,
        None => {
            worker.lookup(snapshot, &port.cluster).await;
            let state = worker.cluster(snapshot, &port.cluster);
            record.upstream.target = Target::Cluster(port.cluster.clone());
            tcp::to_cluster(worker, &state, &port.cluster.policy, dialled, is_tls, record).await
        }
    }
}

/// Unknown traffic goes where it was sent, or nowhere (SM-060, SM-062).
async fn unknown(
    worker: &Worker,
    snapshot: &Snapshot,
    dialled: SocketAddr,
    record: &mut Session,
) -> Result<Opened, Refused> {
    if snapshot.config.mesh.outbound_policy == OutboundPolicy::RegistryOnly {
        record.upstream.target = Target::BlackHole;
        return Err(Refused::new(Flags::UH, "direct_response"));
    }
    record.upstream.target = Target::Passthrough;
    let peer = worker.direct(dialled);
    let opening = Opening::bare(worker.dial(), worker.connect_timeout());
    match tcp::connect_to(worker, &peer, &Secure::Plain, opening, None, record).await {
        Ok(opened) => Ok(opened),
        Err(error) => {
            record.upstream.failure = error.transport().map(Into::into);
            Err(Refused::new(Flags::UF, "upstream_connect_failed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: SM-029
    #[tokio::test(start_paused = true)]
    async fn a_limit_of_zero_is_none() {
        let in_a_day = || tokio::time::sleep(Duration::from_secs(86_400));
        assert!(within(Duration::ZERO, in_a_day()).await.is_some());
        assert!(within(Duration::from_secs(5), in_a_day()).await.is_none());
    }
}
