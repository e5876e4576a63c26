//! Upstream connections that can be used again.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::announce::Announce;
use crate::cluster::Permit;
use crate::http::h1;
use crate::tls::PeerTls;

/// Facts of an upstream connection.
pub struct Link {
    /// Number of the connection in this process.
    pub id: u64,
    /// Own address.
    pub local: Option<SocketAddr>,
    /// The server's SPIFFE id.
    pub principal: Option<Arc<str>>,
    /// The server's certificate and the session.
    pub tls: Option<Arc<PeerTls>>,
    /// How it is protected; a changed policy does not use connections of the old one (LIFE-043).
    pub security: Security,
    /// Established.
    pub since: Instant,
    /// Requests that it carried.
    pub served: Cell<u32>,
    /// Its place among the destination's connections.
    pub permit: Option<Permit>,
}

/// How a connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plain,
    /// Mesh mTLS, with this server name.
    Mesh(Option<Arc<str>>),
    /// TLS of a DestinationRule: a digest of its settings and the name that was verified.
    Originated(Arc<str>),
    /// One of the others, announced as one client's: nobody else's requests go there (DR-128).
    Announced(Box<Security>, Announce),
}

impl Security {
    /// The same on a connection that announces a client.
    #[must_use]
    pub fn announcing(self, announce: Option<Announce>) -> Self {
        match announce {
            Some(announce) => Self::Announced(Box::new(self), announce),
            None => self,
        }
    }
}

/// Connections to one address.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Http2>>>,
    waiting: Cell<u32>,
}

/// A request that waits for a connection.
pub struct Waiting<'p>(&'p Pool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}

/// An idle HTTP/1.1 connection.
pub struct Idle {
    /// Connection.
    pub conn: Box<h1::Conn>,
    /// Its facts.
    pub link: Rc<Link>,
    since: Instant,
}

/// An HTTP/2 connection.
pub struct Http2 {
    /// Opens streams.
    pub sender: h2::client::SendRequest<Bytes>,
    /// Its facts.
    pub link: Rc<Link>,
    /// Streams in progress.
    pub streams: Cell<u32>,
    /// No new stream: the peer goes away, or the connection failed.
    pub closed: Rc<Cell<bool>>,
    /// Last end of a stream.
    pub idle_since: Cell<Instant>,
}

impl Pool {
    /// The idle HTTP/1.1 connection that was used last, if it is still good.
    pub fn take(&self, security: &Security, oldest: Option<Duration>) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        while let Some(mut entry) = idle.pop() {
            let young = oldest.is_none_or(|limit| entry.link.since.elapsed() < limit);
            if young && entry.link.security == *security && entry.conn.is_quiet() {
                return Some(entry);
            }
        }
        None
    }

    /// Counts a request that waits for a connection while the guard lives.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.set(self.waiting.get() + 1);
        Waiting(self)
    }

    /// Keeps a connection for the next request, unless one of another endpoint or worker waits for its place.
    pub fn put(&self, conn: Box<h1::Conn>, link: Rc<Link>) {
        if self.waiting.get() == 0 && link.permit.as_ref().is_some_and(Permit::is_wanted) {
            return;
        }
        self.idle.borrow_mut().push(Idle {
            conn,
            link,
            since: Instant::now(),
        });
    }

    /// An HTTP/2 connection with room for a stream.
    pub fn http2(&self, security: &Security, most_streams: u32, oldest: Option<Duration>) -> Option<Rc<Http2>> {
        let mut list = self.http2.borrow_mut();
        list.retain(|entry| !entry.closed.get());
        let fits = |entry: &&Rc<Http2>| {
            entry.link.security == *security
                && entry.streams.get() < most_streams
                // Beyond the server's own limit a stream would wait for another one's end.
                && (entry.streams.get() as usize) < entry.sender.current_max_send_streams()
                && oldest.is_none_or(|limit| entry.link.since.elapsed() < limit)
        };
        list.iter().find(fits).cloned()
    }

    /// Keeps an HTTP/2 connection.
    pub fn put_http2(&self, entry: Rc<Http2>) {
        self.http2.borrow_mut().push(entry);
    }

    /// Stops using an HTTP/2 connection for new streams; its streams go on.
    pub fn retire(&self, entry: &Rc<Http2>) {
        entry.closed.set(true);
        self.http2.borrow_mut().retain(|other| !Rc::ptr_eq(other, entry));
    }

    /// Closes what is idle; what is in use is not used again.
    pub fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        for entry in self.http2.borrow_mut().drain(..) {
            entry.closed.set(true);
        }
    }

    /// Closes what was idle for longer than `limit` (zero: no limit), is older than `oldest`, or was closed by its
    /// peer. Streams in progress end first.
    pub fn sweep(&self, now: Instant, limit: Duration, oldest: Option<Duration>) {
        let expired = |since: Instant| !limit.is_zero() && now.duration_since(since) >= limit;
        let old = |link: &Link| oldest.is_some_and(|oldest| now.duration_since(link.since) >= oldest);
        self.idle
            .borrow_mut()
            .retain_mut(|entry| !expired(entry.since) && !old(&entry.link) && entry.conn.is_quiet());
        self.http2.borrow_mut().retain(|entry| {
            let free = entry.streams.get() == 0;
            !entry.closed.get() && !(free && (expired(entry.idle_since.get()) || old(&entry.link)))
        });
    }

    /// Number of idle and of HTTP/2 connections, for status.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.http2.borrow().len())
    }

    /// Whether it holds no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }
}
