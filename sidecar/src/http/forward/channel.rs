//! Connections for tries: from a pool, or opened with the protection that the policy asks for.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use weft_bundle::wire::UpstreamTls;

use super::{FAILOVERS, Plan};
use crate::announce::Announce;
use crate::cluster::{ClusterState, Peer, Permit};
use crate::connect::{self, ConnectError, Expected, Opening, Secure};
use crate::http::client::Channel;
use crate::http::route::split_port;
use crate::http::{RequestHead, Version, h1, h2 as http2};
use crate::telemetry::Counter;
use crate::tls::Inner;
use crate::worker::Worker;

/// How often a waiting request looks for a connection that another worker gave back.
const PLACE_LOOK: Duration = Duration::from_millis(2);

/// A connect that lasts longer is joined by one to another endpoint (DLV-160).
const JOIN_AFTER: Duration = Duration::from_secs(1);

/// Why there is no connection.
pub(super) enum Unavailable {
    /// Circuit breaking.
    Overflow,
    /// It failed.
    Connect(ConnectError),
}

impl Unavailable {
    /// Whether it says something about the endpoint.
    fn is_the_peers(&self) -> bool {
        match self {
            Self::Overflow => false,
            Self::Connect(error) => !error.is_local(),
        }
    }
}

/// What a connection is wanted for.
pub(super) struct Ask<'a> {
    /// Request.
    pub(super) head: &'a RequestHead,
    /// HTTP version towards the endpoint.
    pub(super) version: Version,
    /// The client.
    pub(super) client: SocketAddr,
    /// What it dialled.
    pub(super) dialled: SocketAddr,
}

/// How an endpoint of a destination is reached (DR-106 ff., ID-092 ff.).
#[must_use]
pub fn secure(state: &ClusterState, peer: &Peer) -> Secure {
    let cluster = state.cluster();
    let mesh = |sni: Option<&str>, ids: &[String]| Secure::Mesh {
        server_name: sni.map(Into::into).or_else(|| cluster.sni.clone()),
        expected: if ids.is_empty() {
            Expected::Accounts(state.endpoints(), cluster.host.identities.clone())
        } else {
            Expected::Exact(ids.to_vec())
        },
    };
    match &cluster.policy.tls {
        UpstreamTls::Auto if peer.takes_mesh_tls() => mesh(None, &[]),
        UpstreamTls::Auto | UpstreamTls::Disable => Secure::Plain,
        UpstreamTls::Mesh { sni, subject_alt_names } => mesh(sni.as_deref(), subject_alt_names),
        UpstreamTls::Originate(settings) => Secure::Originate {
            settings: settings.clone(),
            host: cluster.host.host.clone(),
        },
    }
}

/// A connection to an endpoint; after each second without one another endpoint joins, and the first to answer is taken
/// (DLV-160).
pub(super) async fn reach(
    worker: &Worker,
    plan: &Plan<'_>,
    peer: Rc<Peer>,
    ask: &Ask<'_>,
    fresh: bool,
    failed: &[SocketAddr],
) -> Result<(Rc<Peer>, Channel), Unavailable> {
    // Waiting for a place says nothing about the endpoint, and no other one has a place either.
    let place = match place(plan, &peer, ask, fresh).await? {
        Place::Taken(channel) => return Ok((peer, channel)),
        Place::Free(place) => place,
    };
    let mut first = pin!(open(worker, plan, &peer, ask, place));
    if let Ok(reached) = timeout(JOIN_AFTER, first.as_mut()).await {
        return reached.map(|channel| (peer.clone(), channel));
    }
    // Silent: no other request is to wait for it as long as there is somebody else.
    peer.set_aside();
    if plan.pinned.is_some() {
        return first.await.map(|channel| (peer.clone(), channel));
    }
    let mut taken: Vec<SocketAddr> = failed.iter().copied().chain([peer.address]).collect();
    let mut running: Vec<(Rc<Peer>, Connecting<'_>)> = vec![(peer.clone(), Box::pin(first))];
    let mut joined = 0;
    loop {
        let next = joining(worker, plan, &taken, joined);
        joined += 1;
        let is_last = next.is_none();
        if let Some(other) = next {
            taken.push(other.address);
            let opened = other.clone();
            running.push((
                other,
                Box::pin(async move { channel(worker, plan, &opened, ask).await }),
            ));
        }
        let raced = race(&mut running);
        let end = if is_last {
            Ok(raced.await)
        } else {
            timeout(JOIN_AFTER, raced).await
        };
        match end {
            Ok((peer, Ok(channel))) => return Ok((peer, channel)),
            Ok((peer, Err(error))) => {
                if error.is_the_peers() {
                    peer.set_aside();
                }
                if running.is_empty() {
                    return Err(error);
                }
            }
            Err(_) => {
                if let Some((silent, _)) = running.last() {
                    silent.set_aside();
                }
            }
        }
    }
}

/// A connection under way.
type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Channel, Unavailable>> + 'a>>;

/// Who is asked beside those that are silent: another endpoint, else the ClusterIP, which knows the living ones (DLV-115).
/// That one is asked again when it is silent itself: Kubernetes learns late, too, and chooses anew each time.
fn joining(worker: &Worker, plan: &Plan<'_>, taken: &[SocketAddr], joined: usize) -> Option<Rc<Peer>> {
    if let Some(peer) = plan.cluster.pick(taken, plan.key) {
        return (joined < FAILOVERS).then_some(peer);
    }
    if joined >= 2 * FAILOVERS || !worker.vip_fallback() {
        return None;
    }
    let fallback = plan.cluster.fallback()?;
    worker.shared.telemetry.count(Counter::VipFallback);
    Some(fallback)
}

/// The first of them to end, taken out.
async fn race(running: &mut Vec<(Rc<Peer>, Connecting<'_>)>) -> (Rc<Peer>, Result<Channel, Unavailable>) {
    poll_fn(|cx| {
        for (index, (_, connecting)) in running.iter_mut().enumerate() {
            if let Poll::Ready(end) = connecting.as_mut().poll(cx) {
                return Poll::Ready((running.swap_remove(index).0, end));
            }
        }
        Poll::Pending
    })
    .await
}

/// A connection to an endpoint: from its pool, else a new one.
async fn channel(worker: &Worker, plan: &Plan<'_>, peer: &Rc<Peer>, ask: &Ask<'_>) -> Result<Channel, Unavailable> {
    match place(plan, peer, ask, false).await? {
        Place::Taken(channel) => Ok(channel),
        Place::Free(place) => open(worker, plan, peer, ask, place).await,
    }
}

/// What a request found that wants a connection.
enum Place {
    /// One that was there.
    Taken(Channel),
    /// Room for a new one.
    Free(Room),
}

/// Room for a new connection.
struct Room {
    secure: Secure,
    announce: Option<Announce>,
    permit: Permit,
    /// The request counts as waiting until it has its connection.
    _pending: Permit,
}

/// A connection of the endpoint's pool, else the room for a new one, for which it waits (DR-074). `fresh`: room in any
/// case.
async fn place(plan: &Plan<'_>, peer: &Rc<Peer>, ask: &Ask<'_>, fresh: bool) -> Result<Place, Unavailable> {
    let version = ask.version;
    let policy = &plan.cluster.cluster().policy;
    let mut secure = secure(plan.cluster, peer);
    if let Secure::Originate { settings, host } = &mut secure
        && settings.sni.is_none()
    {
        // Without SNI the name is that of the request (DR-118).
        let (name, _) = split_port(&ask.head.authority);
        if let Ok(name) = std::str::from_utf8(name)
            && !name.is_empty()
        {
            *host = name.into();
        }
    }
    let announce = policy.proxy_protocol.map(|version| Announce {
        version,
        client: ask.client,
        dialled: ask.dialled,
    });
    let security = secure.security().announcing(announce);
    let oldest = policy.max_connection_duration_ms.map(Duration::from_millis);
    let reuse = || match version {
        Version::Http2 => {
            let most = policy.max_concurrent_streams.unwrap_or(u32::MAX);
            let entry = peer.pool.http2(&security, most, oldest)?;
            Some(Channel::Http2 { entry, reused: true })
        }
        _ => {
            let idle = peer.pool.take(&security, oldest)?;
            Some(Channel::Http1 {
                conn: idle.conn,
                link: idle.link,
                reused: true,
            })
        }
    };
    if !fresh && let Some(channel) = reuse() {
        return Ok(Place::Taken(channel));
    }
    let counters = &plan.cluster.counters;
    let Some(pending) = Permit::take(counters, |c| &c.pending, policy.max_pending_requests) else {
        return Err(Unavailable::Overflow);
    };
    // Waits for a place among the destination's connections, or for one of them.
    let permit = loop {
        if let Some(permit) = Permit::take(counters, |c| &c.connections, policy.max_connections) {
            break permit;
        }
        let waiting = peer.pool.wait();
        sleep(PLACE_LOOK).await;
        drop(waiting);
        if let Some(channel) = reuse() {
            return Ok(Place::Taken(channel));
        }
        plan.cluster.close_other_idle(peer);
    };
    Ok(Place::Free(Room {
        secure,
        announce,
        permit,
        _pending: pending,
    }))
}

/// Opens a connection.
async fn open(
    worker: &Worker,
    plan: &Plan<'_>,
    peer: &Rc<Peer>,
    ask: &Ask<'_>,
    room: Room,
) -> Result<Channel, Unavailable> {
    let version = ask.version;
    let cluster = plan.cluster.cluster();
    let policy = &cluster.policy;
    let (io, link) = connect::connect(
        worker,
        peer.address,
        &room.secure,
        Inner::Http(version),
        Opening {
            dial: worker.dial(),
            limit: cluster.connect_timeout(),
            keepalive: policy.tcp_keepalive.as_ref(),
            announce: room.announce,
        },
        Some(room.permit),
    )
    .await
    .map_err(Unavailable::Connect)?;
    peer.is_reached();
    if version == Version::Http2 {
        let keepalive = policy.http2_keepalive.as_ref();
        let opened = http2::connect(io, link, keepalive).await.map_err(|e| {
            Unavailable::Connect(ConnectError::Tls {
                address: peer.address,
                source: std::io::Error::other(e),
            })
        })?;
        peer.pool.put_http2(opened.clone());
        return Ok(Channel::Http2 {
            entry: opened,
            reused: false,
        });
    }
    Ok(Channel::Http1 {
        conn: Box::new(h1::Conn::new(io)),
        link,
        reused: false,
    })
}
