//! Connections to the pod: mTLS or plaintext, which protocol (ID-100 ff., PeerAuthentication).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_bundle::model::Config;
use weft_bundle::wire::{InboundDestination, InboundTarget, MtlsMode, Policy, Protocol};

use crate::authorize::{self, Since};
use crate::cluster::{Peer, Permit};
use crate::connect::{ConnectError, Opening, Secure};
use crate::detect::{self, Among, Hello, Verdict};
use crate::exchange::{Details, Direction, Downstream, Flags, Session, Target};
use crate::http::server::{self, Handler};
use crate::io::Io;
use crate::listen::Incoming;
use crate::outbound::{First, first_to_speak, read_at_least, within};
use crate::shared::{DrainPhase, Snapshot};
use crate::tcp::{self, Opened};
use crate::telemetry::Counter;
use crate::tls::{PeerTls, TlsStream};
use crate::worker::Worker;

/// A server's handshake must be complete after this (ID-090).
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Protocols that say that HTTP is inside (ID-100).
const MESH_HTTP: [&[u8]; 3] = [b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"];

/// Protocols that say that anything else is inside.
const MESH_TCP: [&[u8]; 2] = [b"istio-peer-exchange", b"istio"];

/// What the rules of a port say.
struct Rules {
    port: u16,
    protocol: Protocol,
    mode: MtlsMode,
    /// Where the connection was to go.
    dialled: SocketAddr,
    /// Where the application listens.
    target: SocketAddr,
    compatible: bool,
    /// How long a silent client is waited for before its connection is one of TCP; zero: without limit (SM-030).
    detection: Duration,
}

/// A connection that turned out to be HTTP; all others are served on the way.
struct Http {
    incoming: Incoming,
    downstream: Arc<Downstream>,
    handler: Handler,
}

impl Http {
    fn new(incoming: Incoming, downstream: Downstream, rules: &Rules) -> Self {
        Self {
            incoming,
            downstream: Arc::new(downstream),
            handler: Handler::Inbound {
                port: rules.port,
                dialled: rules.dialled,
            },
        }
    }
}

/// Serves a connection to a port of the pod. `target`: where the application listens, unless the mesh says localhost.
pub async fn serve(worker: Rc<Worker>, incoming: Incoming, target: SocketAddr) {
    // What leads there is gone by the time that requests are awaited, for as long as a client may stay.
    if let Some(http) = Box::pin(begin(&worker, incoming, target)).await {
        let Http {
            incoming,
            downstream,
            handler,
        } = http;
        Box::pin(server::serve(worker, incoming, downstream, handler)).await;
    }
}

async fn begin(worker: &Rc<Worker>, mut incoming: Incoming, target: SocketAddr) -> Option<Http> {
    let snapshot = worker.snapshot()?;
    let number = incoming.dialled.port();
    let config = &snapshot.config;
    let known = config.inbound.port(number);
    let rules = Rules {
        port: number,
        protocol: known.map_or(Protocol::Auto, |port| port.protocol),
        mode: config.inbound.mode(number),
        dialled: target,
        target: application(config, number, target),
        compatible: config.mesh.istio_compatibility,
        detection: Duration::from_millis(config.mesh.detection_timeout_ms),
    };
    drop(snapshot);
    match rules.mode {
        MtlsMode::Disable => plain(worker, incoming, rules).await,
        MtlsMode::Strict => match timeout(HANDSHAKE, first_hello(&mut incoming)).await {
            Ok(Ok(Some(hello))) => mesh(worker, incoming, rules, hello).await,
            Ok(Ok(None)) => {
                refuse(worker, &incoming);
                None
            }
            Ok(Err(_)) | Err(_) => {
                worker.shared.telemetry.count(Counter::HandshakeFailed);
                None
            }
        },
        MtlsMode::Permissive => permissive(worker, incoming, rules).await,
    }
}

/// Where the application listens for a port that a connection arrived for: as a Sidecar says (SE-089), else as the mesh.
#[must_use]
pub fn application(config: &Config, port: u16, dialled: SocketAddr) -> SocketAddr {
    let target = config.inbound.port(port).and_then(|port| port.target);
    match (target, config.inbound.destination) {
        (Some(InboundTarget::Pod(port)), _) => SocketAddr::new(dialled.ip(), port),
        (Some(InboundTarget::Loopback(address)), _) => address,
        (None, InboundDestination::Passthrough) => dialled,
        (None, InboundDestination::Localhost) => {
            let ip: IpAddr = if dialled.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            SocketAddr::new(ip, dialled.port())
        }
    }
}

/// Waits for a ClientHello; `None` for a client that sends anything else.
async fn first_hello(incoming: &mut Incoming) -> io::Result<Option<Hello>> {
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Tls).await? {
        Some(Verdict::Tls) => Ok(Some(detect::hello(&mut incoming.io, &mut incoming.buffer).await?)),
        Some(_) => Ok(None),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Closes a connection that no rule of the port admits, without a byte (ID-104).
fn refuse(worker: &Worker, incoming: &Incoming) {
    let downstream = Arc::new(incoming.downstream(worker, Direction::Inbound));
    let mut record = Session::new(worker.shared.telemetry.clone(), downstream);
    record.flags |= Flags::NR;
    record.details = Some(Details::Word("filter_chain_not_found"));
    incoming.io.reset();
}

async fn permissive(worker: &Rc<Worker>, mut incoming: Incoming, rules: Rules) -> Option<Http> {
    if rules.compatible && !rules.protocol.is_http() {
        match speaks_in_time(&mut incoming, &rules).await {
            Some(true) => {}
            Some(false) => return None,
            None => {
                session(worker, incoming, &rules, None, None).await;
                return None;
            }
        }
    }
    if !rules.compatible && !incoming.speaks().await {
        // Nothing yet: the application may be the one to begin, which only plaintext callers wait for (BYD-021).
        if !rules.protocol.is_http() {
            incoming = server_first(worker, incoming, &rules).await?;
        }
    }
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Tls).await {
        Ok(Some(Verdict::Tls)) => {}
        Ok(Some(_)) => return plain(worker, incoming, rules).await,
        Ok(None) | Err(_) => return None,
    }
    let hello = timeout(HANDSHAKE, detect::hello(&mut incoming.io, &mut incoming.buffer)).await;
    let Ok(hello) = hello else {
        worker.shared.telemetry.count(Counter::HandshakeFailed);
        return None;
    };
    let Ok(hello) = hello else {
        // It began like TLS and is none: the rules for plaintext decide.
        return plain(worker, incoming, rules).await;
    };
    let any = |set: &[&[u8]]| hello.alpn.iter().any(|offered| set.contains(&&**offered));
    if any(&MESH_HTTP) || any(&MESH_TCP) {
        return mesh(worker, incoming, rules, hello).await;
    }
    if rules.protocol.is_http() {
        refuse(worker, &incoming);
    } else {
        // TLS of the application passes through (ID-101, ID-103).
        let mut downstream = incoming.downstream(worker, Direction::Inbound);
        downstream.server_name = hello.server_name.map(Into::into);
        session(worker, incoming, &rules, Some(downstream), None).await;
    }
    None
}

/// Waits for as many bytes as upstream does; false when the client ends before, `None` when the limit for that is over
/// (SM-029, SM-030).
async fn speaks_in_time(incoming: &mut Incoming, rules: &Rules) -> Option<bool> {
    let spoken = read_at_least(incoming, detect::UPSTREAM_LEAST_BYTES);
    within(rules.detection, spoken).await.map(|read| read.unwrap_or(false))
}

/// Lets the application begin. `None` when it did, and the connection was served; else the client has spoken.
async fn server_first(worker: &Rc<Worker>, mut incoming: Incoming, rules: &Rules) -> Option<Incoming> {
    let downstream = Arc::new(incoming.downstream(worker, Direction::Inbound));
    let mut record = record(worker, downstream, rules);
    let peer = worker.application(rules.target, incoming.remote.ip());
    let Some(allowed) = Allowed::new(worker, rules, &mut record) else {
        incoming.io.reset();
        return None;
    };
    let Ok(mut opened) = allowed.open(worker, &peer, &mut record).await else {
        // The client's bytes decide what it is told.
        record.discard();
        return Some(incoming);
    };
    let first = within(rules.detection, first_to_speak(&mut incoming, &mut opened)).await;
    if first == Some(First::Client) {
        record.discard();
        return Some(incoming);
    }
    // It is plaintext TCP now, of a caller without identity: not a byte before it is allowed (AUTHZ-120, BYD-065).
    match admits(worker, rules, &mut record) {
        Some(since) => go_on(worker, rules, since, incoming, opened, record).await,
        None => incoming.io.reset(),
    }
    None
}

/// Plaintext under PERMISSIVE or DISABLE.
async fn plain(worker: &Rc<Worker>, mut incoming: Incoming, rules: Rules) -> Option<Http> {
    match rules.protocol {
        Protocol::Tcp | Protocol::Tls => {}
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            let downstream = incoming.downstream(worker, Direction::Inbound);
            // First bytes tell HTTP/1 from HTTP/2; what is neither gets 400 (SM-033).
            let verdict = detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await;
            return matches!(verdict, Ok(Some(_))).then(|| Http::new(incoming, downstream, &rules));
        }
        Protocol::Auto => {
            let spoken = if rules.compatible {
                speaks_in_time(&mut incoming, &rules).await
            } else {
                if incoming.buffer.is_empty() && !incoming.speaks().await {
                    incoming = server_first(worker, incoming, &rules).await?;
                }
                Some(true)
            };
            if !spoken.unwrap_or(true) {
                return None;
            }
            if spoken.is_some() {
                match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await {
                    Ok(Some(Verdict::Http1 | Verdict::Http2)) => {
                        let downstream = incoming.downstream(worker, Direction::Inbound);
                        return Some(Http::new(incoming, downstream, &rules));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return None,
                }
            }
        }
    }
    let mut downstream = None;
    if rules.mode == MtlsMode::Disable && asks_server_name(worker) {
        if incoming.buffer.is_empty() && !incoming.speaks().await {
            incoming = server_first(worker, incoming, &rules).await?;
        }
        let mut known = incoming.downstream(worker, Direction::Inbound);
        known.server_name = passing_name(&mut incoming).await.ok()?.map(Into::into);
        downstream = Some(known);
    }
    session(worker, incoming, &rules, downstream, None).await;
    None
}

fn asks_server_name(worker: &Worker) -> bool {
    let snapshot = worker.snapshot();
    snapshot.is_some_and(|snapshot| snapshot.config.authorization.asks_server_name())
}

/// The name that TLS of the application asks for (AUTHZ-055); `None`: there is none, or no TLS.
async fn passing_name(incoming: &mut Incoming) -> io::Result<Option<String>> {
    match detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Tls).await? {
        Some(Verdict::Tls) => {
            let hello = timeout(HANDSHAKE, detect::hello(&mut incoming.io, &mut incoming.buffer)).await;
            // What began like TLS and is none has no name.
            Ok(hello.ok().and_then(Result::ok).and_then(|hello| hello.server_name))
        }
        Some(_) => Ok(None),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Terminates mesh mTLS and serves what is inside (ID-101..ID-104).
async fn mesh(worker: &Rc<Worker>, incoming: Incoming, rules: Rules, hello: Hello) -> Option<Http> {
    let Some(identity) = worker.shared.identity.load_full() else {
        worker.shared.telemetry.count(Counter::HandshakeFailed);
        return None;
    };
    let offers_http = hello.alpn.iter().any(|offered| MESH_HTTP.contains(&&**offered));
    let is_tcp = match rules.protocol {
        Protocol::Tcp | Protocol::Tls => true,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => false,
        Protocol::Auto => !offers_http,
    };
    let early = if is_tcp && worker.phase() >= DrainPhase::Draining {
        // An application that has closed its port is told by a failed connect, before the peer sends a byte (DLV-161).
        match crate::io::dial(rules.target, worker.dial_application(incoming.remote.ip())).await {
            Ok(stream) => Some(stream),
            Err(_) => {
                incoming.io.reset();
                return None;
            }
        }
    } else {
        None
    };
    let mut downstream = incoming.downstream(worker, Direction::Inbound);
    let (remote, dialled) = (incoming.remote, incoming.dialled);
    let config = identity.server(hello.alpn.iter().map(Vec::as_slice));
    let (socket, ahead) = incoming.io.into_plain()?;
    let mut begun = incoming.buffer;
    begun.extend_from_slice(&ahead);
    let stream = match timeout(HANDSHAKE, TlsStream::accept(config, socket, begun)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(client = %remote, %error, "mesh handshake");
            worker.shared.telemetry.count(Counter::HandshakeFailed);
            return None;
        }
        Err(_) => {
            worker.shared.telemetry.count(Counter::HandshakeFailed);
            return None;
        }
    };
    downstream.tls = PeerTls::of(stream.state());
    downstream.principal = downstream.tls.as_ref().and_then(|tls| tls.spiffe_id());
    downstream.local_principal = Some(identity.spiffe_id.clone());
    downstream.server_name = hello.server_name.map(Into::into);
    let mut incoming = Incoming {
        io: Io::from(stream),
        buffer: bytes::BytesMut::new(),
        remote,
        dialled,
    };
    if is_tcp {
        session(worker, incoming, &rules, Some(downstream), early).await;
        return None;
    }
    let verdict = detect::detect(&mut incoming.io, &mut incoming.buffer, Among::Http).await;
    matches!(verdict, Ok(Some(_))).then(|| Http::new(incoming, downstream, &rules))
}

/// Decides by the newest policies on a connection of TCP; `None`, noted, when they refuse it (AUTHZ-023, AUTHZ-027).
fn admits(worker: &Worker, rules: &Rules, record: &mut Session) -> Option<Since> {
    let since = worker.changes.now();
    let snapshot = worker.snapshot()?;
    let judged = authorize::stands(&snapshot.config, &record.downstream, rules.port, None);
    authorize::admits(judged, record).then_some(since)
}

/// Begins the record of an opaque connection.
fn record(worker: &Worker, downstream: Arc<Downstream>, rules: &Rules) -> Session {
    let mut record = Session::new(worker.shared.telemetry.clone(), downstream);
    if let Some(snapshot) = worker.snapshot() {
        record.upstream.target = target(&snapshot, rules.port);
        record.destination = Some(snapshot.config.workload.clone());
    }
    record.source = crate::http::inbound::source(worker, &record.downstream);
    record
}

/// What logs and metrics call a port of the pod (MET-032).
#[must_use]
pub fn target(snapshot: &Snapshot, port: u16) -> Target {
    match snapshot.config.inbound.port(port) {
        Some(known) => Target::Inbound {
            port,
            host: known.host.clone(),
        },
        None => Target::InboundPassthrough { port },
    }
}

/// An opaque connection to the application that the limits of its port allow (DR-089).
struct Allowed {
    policy: Option<Arc<Policy>>,
    permit: Option<Permit>,
}

impl Allowed {
    /// `None`, noted, when there are as many as are allowed.
    fn new(worker: &Worker, rules: &Rules, record: &mut Session) -> Option<Self> {
        let snapshot = worker.snapshot()?;
        let Some(policy) = snapshot
            .config
            .inbound
            .port(rules.port)
            .and_then(|port| port.policy.clone())
        else {
            return Some(Self {
                policy: None,
                permit: None,
            });
        };
        let counters = worker.inbound_counters(rules.port);
        let permit = Permit::take(&counters, |c| &c.connections, policy.max_connections);
        if permit.is_none() {
            record.flags |= Flags::UO;
            record.details = Some(Details::Word("overflow"));
            return None;
        }
        Some(Self {
            policy: Some(policy),
            permit,
        })
    }

    async fn open(self, worker: &Worker, peer: &Rc<Peer>, record: &mut Session) -> Result<Opened, ConnectError> {
        let Self { policy, permit } = self;
        let mut opening = Opening::bare(
            worker.dial_application(record.downstream.remote.ip()),
            worker.connect_timeout(),
        );
        if let Some(policy) = &policy {
            opening.limit = Duration::from_millis(policy.connect_timeout_ms);
            opening.keepalive = policy.tcp_keepalive.as_ref();
        }
        let mut opened = tcp::connect_to(worker, peer, &Secure::Plain, opening, permit, record).await?;
        if let Some(policy) = &policy {
            opened.idle = Duration::from_millis(policy.tcp_idle_timeout_ms);
            opened.oldest = policy.tcp_max_connection_duration_ms.map(Duration::from_millis);
        }
        Ok(opened)
    }
}

async fn session(
    worker: &Rc<Worker>,
    incoming: Incoming,
    rules: &Rules,
    downstream: Option<Downstream>,
    early: Option<TcpStream>,
) {
    let downstream = downstream.unwrap_or_else(|| incoming.downstream(worker, Direction::Inbound));
    let mut record = record(worker, Arc::new(downstream), rules);
    let Some(since) = admits(worker, rules, &mut record) else {
        return incoming.io.reset();
    };
    let peer = worker.application(rules.target, incoming.remote.ip());
    let Some(allowed) = Allowed::new(worker, rules, &mut record) else {
        return incoming.io.reset();
    };
    let opened = match early {
        Some(stream) => Ok(tcp::adopt(worker, &peer, stream, &mut record)),
        None => allowed.open(worker, &peer, &mut record).await,
    };
    match opened {
        Ok(opened) => go_on(worker, rules, since, incoming, opened, record).await,
        Err(error) => {
            record.upstream.failure = error.transport().map(Into::into);
            record.flags |= Flags::UF;
            record.details = Some(Details::Word("upstream_connect_failed"));
            incoming.io.reset();
        }
    }
}

/// Copies both ways, as long as policies allow it (BYD-002).
async fn go_on(worker: &Worker, rules: &Rules, since: Since, incoming: Incoming, opened: Opened, mut record: Session) {
    let downstream = record.downstream.clone();
    let relay = Box::pin(tcp::relay(worker, incoming.into_io(), opened, &mut record));
    let judge = |config: &Config| authorize::stands(config, &downstream, rules.port, None);
    let end = authorize::while_granted(worker, since, relay, judge).await;
    if let Err(denial) = end {
        record.termination = Some(Details::Denied(denial.details.clone()));
    }
}
