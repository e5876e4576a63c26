//! Opaque connections: bytes are copied both ways until both sides have ended.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use weft_bundle::model::Destinations;
use weft_bundle::wire::{HashKey, LoadBalancer, Policy};

use crate::announce::Announce;
use crate::balance::Key;
use crate::cluster::{Busy, ClusterState, Peer, Permit};
use crate::connect::{self, ConnectError, Opening, Secure};
use crate::exchange::{Details, Flags, Session, Target};
use crate::http::forward::{report, secure};
use crate::io::Io;
use crate::outlier::Outcome;
use crate::pool::{Link, Security};
use crate::shared::{DrainPhase, Snapshot};
use crate::telemetry::Counter;
use crate::tls::Inner;
use crate::tunnel;
use crate::worker::Worker;

mod splice;

use splice::Pipe;

/// Reads of this length are a sign of more to come, which moves without a copy between two sockets in clear.
const LARGE_BYTES: usize = 16 * 1024;

/// Bytes that are held of one direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// Further endpoints that a connection goes to after failed connects (DLV-113).
const FAILOVERS: usize = 3;

/// Bytes without either direction moving for this long end a connection (DR-078).
pub const IDLE: Duration = Duration::from_secs(3600);

/// An upstream connection of a session.
pub struct Opened {
    /// Stream.
    pub io: Io,
    link: Rc<Link>,
    busy: Busy,
    /// Idle time of the policy.
    pub idle: Duration,
    /// Age at which it is closed.
    pub oldest: Option<Duration>,
}

impl Opened {
    /// Puts bytes that were read ahead back in front.
    pub fn prepend(&mut self, bytes: Bytes) {
        self.io.prepend(bytes);
    }
}

/// Why a session got no upstream connection.
#[derive(Debug)]
pub struct Refused {
    /// Flag (FLAG-005).
    pub flags: Flags,
    /// Details for the log.
    pub details: Details,
}

impl Refused {
    /// A refusal without upstream.
    #[must_use]
    pub fn new(flags: Flags, details: &'static str) -> Self {
        Self {
            flags,
            details: Details::Word(details),
        }
    }
}

/// Chooses a destination by weight and opens a connection to it.
///
/// # Errors
/// Why there is none; the client's connection is then closed without a byte.
pub async fn open(
    worker: &Worker,
    snapshot: &Snapshot,
    destinations: &Destinations,
    dialled: SocketAddr,
    is_tls: bool,
    session: &mut Session,
) -> Result<Opened, Refused> {
    let destination = destinations.choose(|total| fastrand::u64(..total));
    let Some(cluster) = destination.and_then(|destination| destination.cluster.as_ref()) else {
        if let Some(destination) = destination {
            session.upstream.target = Target::Unknown(destination.name.clone());
        }
        return Err(Refused::new(Flags::NC, "cluster_not_found"));
    };
    worker.lookup(snapshot, cluster).await;
    let state = worker.cluster(snapshot, cluster);
    session.upstream.target = Target::Cluster(cluster.clone());
    // Some settings of a rule are those of its first destination, whichever is chosen (VS-178).
    let first = destinations.list.first().and_then(|first| first.cluster.as_ref());
    let lead = &first.unwrap_or(cluster).policy;
    to_cluster(worker, &state, lead, dialled, is_tls, session).await
}

/// Opens a connection to a destination, going on to other endpoints where one fails (DLV-113). `lead`: whose idle time
/// and hash key count. `is_tls`: the client sends TLS, which is not wrapped a second time (BYD-022).
///
/// # Errors
/// See [`open`].
pub async fn to_cluster(
    worker: &Worker,
    state: &Rc<ClusterState>,
    lead: &Policy,
    dialled: SocketAddr,
    is_tls: bool,
    session: &mut Session,
) -> Result<Opened, Refused> {
    let cluster = state.cluster();
    let policy = &cluster.policy;
    let Some(permit) = Permit::take(&state.counters, |c| &c.connections, policy.max_connections) else {
        return Err(Refused::new(Flags::UO, "overflow"));
    };
    let key = match &lead.load_balancer {
        LoadBalancer::ConsistentHash(hash) if hash.key == Some(HashKey::SourceIp) => {
            Key::of(session.downstream.remote.ip().to_string().as_bytes())
        }
        _ => Key::NONE,
    };
    let keeps = cluster.keeps_dialled();
    // Whoever calls a gateway has dialled the gateway, and no endpoint.
    let is_gateway = worker.shared.settings.gateway.is_some();
    if is_gateway && keeps {
        return Err(Refused::new(Flags::UH, "no_healthy_upstream"));
    }
    let pinned = !is_gateway && (cluster.host.headless || keeps);
    let towards = if keeps { cluster.kept(dialled) } else { dialled };
    let idle = Duration::from_millis(lead.tcp_idle_timeout_ms);
    let mut permit = Some(permit);
    let mut failed: Vec<SocketAddr> = Vec::new();
    let mut fell_back = false;
    let mut last: Option<ConnectError> = None;
    loop {
        let mut peer = None;
        if failed.len() <= FAILOVERS + usize::from(fell_back) {
            peer = if pinned {
                state
                    .dialled(towards)
                    .or_else(|| Some(worker.direct(towards)))
                    .filter(|_| failed.is_empty())
            } else {
                state.pick(&failed, key)
            };
            if peer.is_none() && !fell_back && !pinned && worker.vip_fallback() {
                peer = state.fallback();
                if peer.is_some() {
                    fell_back = true;
                    worker.shared.telemetry.count(Counter::VipFallback);
                }
            }
            if peer.is_none() && !pinned {
                peer = state.pick_aside(&failed, key);
            }
        }
        let Some(peer) = peer else {
            return Err(match last {
                None => Refused::new(Flags::UH, "no_healthy_upstream"),
                Some(error) => {
                    session.upstream.failure = error.transport().map(Into::into);
                    let flags = if failed.len() > 1 {
                        Flags::UF | Flags::URX
                    } else {
                        Flags::UF
                    };
                    Refused::new(flags, "upstream_connect_failed")
                }
            });
        };
        let mut how = secure(state, &peer);
        if is_tls && matches!(how, Secure::Originate { .. }) {
            state.tell_twice();
            how = Secure::Plain;
        }
        let opening = Opening {
            dial: worker.dial(),
            limit: cluster.connect_timeout(),
            keepalive: policy.tcp_keepalive.as_ref(),
            announce: policy.proxy_protocol.map(|version| Announce {
                version,
                client: session.downstream.remote,
                dialled,
            }),
        };
        match connect_to(worker, &peer, &how, opening, permit.take(), session).await {
            Ok(mut opened) => {
                opened.idle = idle;
                opened.oldest = policy.tcp_max_connection_duration_ms.map(Duration::from_millis);
                if let Some(tunnel) = &policy.tunnel {
                    let asked = tokio::time::timeout(cluster.connect_timeout(), tunnel::open(&mut opened.io, tunnel));
                    if let Err(error) = asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        session.upstream.failure = Some(error.to_string().into());
                        return Err(Refused::new(Flags::UF, "upstream_connect_failed"));
                    }
                }
                report(worker, state, peer.address, Outcome::Connected);
                return Ok(opened);
            }
            Err(error) => {
                let local = error.is_local();
                if !local {
                    report(worker, state, peer.address, Outcome::Failed);
                    peer.set_aside();
                    worker.shared.telemetry.count(Counter::Failover);
                }
                failed.push(peer.address);
                last = Some(error);
                if local {
                    failed.extend(std::iter::repeat_n(peer.address, FAILOVERS + 1));
                }
            }
        }
        if permit.is_none() {
            permit = Permit::take(&state.counters, |c| &c.connections, None);
        }
    }
}

/// Opens a connection to one address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect_to(
    worker: &Worker,
    peer: &Rc<Peer>,
    how: &Secure,
    opening: Opening<'_>,
    permit: Option<Permit>,
    session: &mut Session,
) -> Result<Opened, ConnectError> {
    session.upstream.host = Some(peer.address);
    session.destination = peer.workload().or_else(|| session.destination.take());
    let (io, link) = connect::connect(worker, peer.address, how, Inner::Tcp, opening, permit).await?;
    peer.is_reached();
    session.upstream.local = link.local;
    session.upstream.connection_id = link.id;
    session.upstream.principal.clone_from(&link.principal);
    session.upstream.tls.clone_from(&link.tls);
    Ok(Opened {
        io,
        link,
        busy: peer.busy(),
        idle: IDLE,
        oldest: None,
    })
}

/// Takes over a connection to the application that was opened before.
#[must_use]
pub fn adopt(worker: &Worker, peer: &Rc<Peer>, stream: TcpStream, session: &mut Session) -> Opened {
    let link = Rc::new(Link {
        id: worker.next_connection(),
        local: stream.local_addr().ok(),
        principal: None,
        tls: None,
        security: Security::Plain,
        since: Instant::now(),
        served: Cell::new(0),
        permit: None,
    });
    session.upstream.host = Some(peer.address);
    session.upstream.local = link.local;
    session.upstream.connection_id = link.id;
    Opened {
        io: Io::from(stream),
        link,
        busy: peer.busy(),
        idle: IDLE,
        oldest: None,
    }
}

/// Copies both ways until both sides have ended, one of them failed, or nothing moved for the idle time.
pub async fn relay(worker: &Worker, downstream: Io, upstream: Opened, session: &mut Session) {
    session.opened();
    let Opened {
        io: upstream_io,
        link: _link,
        busy: _busy,
        idle,
        oldest,
    } = upstream;
    let moved = Moved::default();
    let copied = copy(downstream, upstream_io, idle, &moved, worker.shared.drain.subscribe());
    let end = match oldest {
        None => Some(copied.await),
        // It has reached its age (DR-077).
        Some(oldest) => tokio::time::timeout(oldest, copied).await.ok(),
    };
    session.bytes_received = moved.up.get();
    session.bytes_sent = moved.down.get();
    match end {
        Some(End::Orderly) => {}
        Some(End::Downstream) => session.flags |= Flags::DC,
        Some(End::Upstream) => session.flags |= Flags::UC,
        Some(End::Idle) => {
            session.flags |= Flags::SI;
            session.termination = Some(Details::Word("idle_timeout"));
        }
        None => {
            session.flags |= Flags::DT;
            session.termination = Some(Details::Word("max_connection_duration"));
        }
        Some(End::Closing) => session.termination = Some(Details::Word("process_end")),
    }
}

/// Bytes that were copied.
#[derive(Debug, Default)]
pub struct Moved {
    /// From the client.
    pub up: Cell<u64>,
    /// To the client.
    pub down: Cell<u64>,
}

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides said so.
    Orderly,
    /// The client's connection failed.
    Downstream,
    /// The server's connection failed.
    Upstream,
    /// Nothing moved.
    Idle,
    /// The process ends.
    Closing,
}

/// Copies both ways.
pub async fn copy(
    mut downstream: Io,
    mut upstream: Io,
    idle: Duration,
    moved: &Moved,
    mut drain: watch::Receiver<DrainPhase>,
) -> End {
    let mut up = Half::default();
    let mut down = Half::default();
    let mut timer: Option<Pin<Box<Sleep>>> = (!idle.is_zero()).then(|| Box::pin(sleep(idle)));
    let mut last = Instant::now();
    let closing = async move {
        // A sender lives as long as the process.
        let _ = drain.wait_for(|phase| *phase == DrainPhase::Closing).await;
    };
    let mut closing = pin!(closing);
    let end = poll_fn(|cx| {
        let before = moved.up.get() + moved.down.get();
        let up_state = up.poll(cx, &mut downstream, &mut upstream, &moved.up);
        let down_state = down.poll(cx, &mut upstream, &mut downstream, &moved.down);
        for (state, source, sink) in [
            (&up_state, End::Downstream, End::Upstream),
            (&down_state, End::Upstream, End::Downstream),
        ] {
            match state {
                Poll::Ready(Err(Side::Source)) => return Poll::Ready(source),
                Poll::Ready(Err(Side::Sink)) => return Poll::Ready(sink),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if up_state.is_ready() && down_state.is_ready() {
            return Poll::Ready(End::Orderly);
        }
        if closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Closing);
        }
        if moved.up.get() + moved.down.get() != before {
            last = Instant::now();
        }
        if let Some(timer) = &mut timer {
            while timer.as_mut().poll(cx).is_ready() {
                if last.elapsed() >= idle {
                    return Poll::Ready(End::Idle);
                }
                timer.as_mut().reset(last + idle);
            }
        }
        Poll::Pending
    })
    .await;
    // A failure of one side is passed on as one to the other.
    match end {
        End::Downstream => upstream.reset(),
        End::Upstream => downstream.reset(),
        End::Orderly | End::Idle | End::Closing => {}
    }
    end
}

enum Side {
    Source,
    Sink,
}

/// One direction of a copy.
#[derive(Default)]
struct Half {
    buffer: BytesMut,
    /// With bytes in it; the buffer is empty then.
    pipe: Option<Pipe>,
    /// Much came at once.
    large: bool,
    ended: bool,
    flushed: bool,
    done: bool,
}

impl Half {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Io,
        sink: &mut Io,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Side>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut waits = false;
            if let Some(mut pipe) = self.pipe.take() {
                match pipe.poll_drain(cx, sink.socket()) {
                    Poll::Ready(Ok(count @ 1..)) => {
                        moved.set(moved.get() + count as u64);
                        if pipe.is_empty() {
                            pipe.give_back();
                        } else {
                            self.pipe = Some(pipe);
                        }
                        continue;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Side::Sink)),
                    Poll::Pending => {
                        self.pipe = Some(pipe);
                        return Poll::Pending;
                    }
                }
            }
            if self.large
                && !self.ended
                && self.buffer.is_empty()
                && let (Some(plain), false) = (source.plain(), sink.is_tls())
                && let Ok(mut pipe) = Pipe::take()
            {
                match pipe.poll_fill(cx, plain) {
                    Poll::Ready(Ok(0)) => self.ended = true,
                    Poll::Ready(Ok(count)) => {
                        self.large = count >= LARGE_BYTES;
                        self.pipe = Some(pipe);
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Source)),
                    Poll::Pending => waits = true,
                }
                pipe.give_back();
            } else if !self.ended && self.buffer.len() < BUFFER_BYTES {
                match source.poll_read_into(cx, &mut self.buffer) {
                    Poll::Ready(Ok(0)) => self.ended = true,
                    Poll::Ready(Ok(count)) => self.large = count >= LARGE_BYTES,
                    // A peer that leaves TLS without goodbye has ended all the same.
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => self.ended = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Source)),
                    Poll::Pending => waits = true,
                }
            }
            if !self.buffer.is_empty() {
                match sink.poll_write_once(cx, &self.buffer) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Side::Sink)),
                    Poll::Ready(Ok(count)) => {
                        self.buffer.advance(count);
                        moved.set(moved.get() + count as u64);
                        self.flushed = false;
                        continue;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            if !self.flushed {
                match ready!(Pin::new(&mut *sink).poll_flush(cx)) {
                    Ok(()) => self.flushed = true,
                    Err(_) => return Poll::Ready(Err(Side::Sink)),
                }
            }
            if self.ended {
                // Half-close: the other direction goes on.
                let _ = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }
}
