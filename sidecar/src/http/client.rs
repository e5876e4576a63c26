//! One request on one upstream connection, and the body of its response.
//!
//! There is no task per request: whoever polls the response's head or body drives what is left of the request.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::body::{BodyError, Frame};
use super::h1::{self, Framing, HeadError};
use super::replay::{Limit, Replay};
use super::{Body, Headers, RequestHead, ResponseHead, Version, h2 as http2};
use crate::cluster::{Busy, Permit};
use crate::io::Io;
use crate::pool::{Http2, Link};

/// A connection in hand for one request.
pub enum Channel {
    /// HTTP/1.1.
    Http1 {
        /// Connection.
        conn: Box<h1::Conn>,
        /// Its facts.
        link: Rc<Link>,
        /// It carried a request before.
        reused: bool,
    },
    /// HTTP/2.
    Http2 {
        /// Connection.
        entry: Rc<Http2>,
        /// It carried a request before.
        reused: bool,
    },
}

impl Channel {
    /// Facts of the connection.
    #[must_use]
    pub fn link(&self) -> &Rc<Link> {
        match self {
            Self::Http1 { link, .. } => link,
            Self::Http2 { entry, .. } => &entry.link,
        }
    }

    /// Protocol of the connection.
    #[must_use]
    pub fn version(&self) -> Version {
        match self {
            Self::Http1 { .. } => Version::Http11,
            Self::Http2 { .. } => Version::Http2,
        }
    }
}

/// Why a request got no response. The request's body comes back with it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection ended.
    #[error("connection termination")]
    Closed {
        /// A reused connection that did not answer one byte, and whose request may be sent again (BYD-014).
        race: bool,
        /// The head of the request was not written.
        before_request: bool,
    },
    /// HTTP/2 reset.
    #[error("remote reset")]
    Reset,
    /// HTTP/2 reset that says that nothing was done.
    #[error("remote refused stream reset")]
    Refused,
    /// The response is no HTTP.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The client's body failed; the client is gone or broke the protocol.
    #[error("request body")]
    RequestBody(BodyError),
}

/// A response.
pub struct Response {
    /// Head.
    pub head: ResponseHead,
    /// Body.
    pub body: Body,
}

/// What a response holds until its end.
#[derive(Default)]
pub struct Guards {
    /// Counts the request at its endpoint, whose pool gets the connection back.
    pub busy: Option<Busy>,
    /// Permits of circuit breaking.
    pub permits: Vec<Permit>,
    /// Limit of the route.
    pub limit: Option<Limit>,
    /// Requests after which a connection is closed.
    pub most_requests: Option<u32>,
    /// Age at which a connection is closed.
    pub oldest: Option<Duration>,
}

/// Sends a request and waits for the response's head.
///
/// # Errors
/// [`SendError`], with the request's body for another try.
pub async fn send(
    channel: Channel,
    head: &RequestHead,
    request: Replay,
    guards: Guards,
) -> Result<Response, (SendError, Replay, Guards)> {
    match channel {
        Channel::Http1 { conn, link, reused } => send_http1(conn, link, reused, head, request, guards).await,
        Channel::Http2 { entry, .. } => http2::send(entry, head, request, guards).await,
    }
}

/// Methods that may be repeated without asking (RFC 9110, section 9.2.2).
pub(super) fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE")
}

async fn send_http1(
    mut conn: Box<h1::Conn>,
    link: Rc<Link>,
    reused: bool,
    head: &RequestHead,
    request: Replay,
    guards: Guards,
) -> Result<Response, (SendError, Replay, Guards)> {
    link.served.set(link.served.get() + 1);
    let idempotent = is_idempotent(&head.method);
    let acked = (reused && !idempotent).then(|| crate::tcp_info::bytes_acked(conn.io().socket()));
    let received = conn.received();
    let chunked = !request.is_empty() && !head.headers.contains("content-length");
    conn.push_request(head, chunked);
    let mut pump = Pump {
        request,
        chunked,
        passes_trailers: head.version == Version::Http2 || head.headers.has_token("te", "trailers"),
        trailers: None,
        done: false,
    };
    let to_head = *head.method == *b"HEAD";
    let mut written = false;
    let outcome = poll_fn(|cx| {
        loop {
            if let Poll::Ready(Err(e)) = pump.poll(cx, &mut conn) {
                match e {
                    PumpError::Source(e) => return Poll::Ready(Err(SendError::RequestBody(e))),
                    // The server may have answered before it stopped reading.
                    PumpError::Sink => pump.done = true,
                }
            }
            written |= conn.is_written();
            match ready!(conn.poll_response(cx, to_head)) {
                Ok(response) if response.head.status == 100 => pump.request.send_continue(),
                // Other interim responses are for this hop.
                Ok(response) if response.head.status < 200 && response.head.status != 101 => {}
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(HeadError::Io(error)) => {
                    let silent = conn.received() == received;
                    // A reset acknowledges nothing, also when the peer has read what it resets: then silence is no
                    // proof. A peer that had closed before says so first, and what follows is not a reset here.
                    let is_reset = error.kind() == std::io::ErrorKind::ConnectionReset;
                    let unseen = || {
                        idempotent
                            || !is_reset
                                && acked.flatten().is_some_and(|before| {
                                    crate::tcp_info::bytes_acked(conn.io().socket()) == Some(before)
                                })
                    };
                    let race = reused && silent && unseen();
                    return Poll::Ready(Err(SendError::Closed {
                        race,
                        before_request: !written,
                    }));
                }
                Err(_) => return Poll::Ready(Err(SendError::Protocol("malformed response"))),
            }
        }
    })
    .await;
    match outcome {
        Ok(response) => {
            let end = response.framing == Framing::None && response.head.status != 101;
            let body = ResponseBody {
                kind: Kind::Http1 {
                    conn: Some(conn),
                    link,
                    keep_alive: response.keep_alive,
                    pump,
                },
                guards,
                ended: false,
            };
            let mut body = Box::new(body);
            if end {
                body.finish();
            }
            Ok(Response {
                head: response.head,
                body: Body::Upstream(body),
            })
        }
        Err(e) => Err((e, pump.request, guards)),
    }
}

/// What is left of a request, on its way into a connection.
pub struct Pump {
    request: Replay,
    chunked: bool,
    /// The client speaks of trailers, so the server may, too (BYD-070).
    passes_trailers: bool,
    trailers: Option<Headers>,
    done: bool,
}

enum PumpError {
    /// The client's side failed.
    Source(BodyError),
    /// The server's side failed.
    Sink,
}

impl Pump {
    /// Moves on as far as possible; ready when everything was written.
    fn poll(&mut self, cx: &mut Context<'_>, conn: &mut h1::Conn) -> Poll<Result<(), PumpError>> {
        loop {
            while !self.done && !conn.is_full() {
                match self.request.poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Some(Frame::Data(data)))) => conn.push_data(data, self.chunked),
                    // Of a client that does not, they end here (SM-138).
                    Poll::Ready(Ok(Some(Frame::Trailers(trailers)))) => {
                        self.trailers = self.passes_trailers.then_some(trailers);
                    }
                    Poll::Ready(Ok(None)) => {
                        conn.push_end(self.chunked, self.trailers.take().as_ref());
                        self.done = true;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(PumpError::Source(e))),
                }
            }
            if conn.is_flushed() {
                return if self.done { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            if ready!(conn.poll_flush(cx)).is_err() {
                return Poll::Ready(Err(PumpError::Sink));
            }
        }
    }
}

/// The body of a response, with the connection that it comes on.
pub struct ResponseBody {
    kind: Kind,
    guards: Guards,
    ended: bool,
}

enum Kind {
    Http1 {
        conn: Option<Box<h1::Conn>>,
        link: Rc<Link>,
        keep_alive: bool,
        pump: Pump,
    },
    Http2(http2::Incoming),
}

impl ResponseBody {
    pub(super) fn http2(incoming: http2::Incoming, guards: Guards) -> Box<Self> {
        Box::new(Self {
            kind: Kind::Http2(incoming),
            guards,
            ended: false,
        })
    }

    /// Next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        if let Some(limit) = &mut self.guards.limit
            && limit.poll(cx).is_ready()
        {
            self.ended = true;
            return Poll::Ready(Err(BodyError::Timeout));
        }
        self.poll_progress(cx);
        let frame = match &mut self.kind {
            Kind::Http1 { conn: Some(conn), .. } => ready!(conn.poll_body(cx)),
            Kind::Http1 { conn: None, .. } => Ok(None),
            Kind::Http2(incoming) => ready!(incoming.poll_frame(cx)),
        };
        if matches!(frame, Ok(None)) {
            self.finish();
        }
        Poll::Ready(frame)
    }

    /// Goes on with the request.
    pub fn poll_progress(&mut self, cx: &mut Context<'_>) {
        match &mut self.kind {
            Kind::Http1 {
                conn: Some(conn),
                pump,
                keep_alive,
                ..
            } if !pump.done || !conn.is_flushed() => {
                // A request that cannot be sent to its end only costs the connection its next one.
                if let Poll::Ready(Err(_)) = pump.poll(cx, conn) {
                    pump.done = true;
                    *keep_alive = false;
                }
            }
            Kind::Http1 { .. } => {}
            Kind::Http2(incoming) => incoming.poll_progress(cx),
        }
    }

    /// Whether nothing is to come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.ended
            || match &self.kind {
                Kind::Http1 { conn, .. } => conn.as_ref().is_none_or(|conn| conn.body_is_end()),
                Kind::Http2(incoming) => incoming.is_end(),
            }
    }

    /// The body was read to its end: the connection goes back to its pool.
    fn finish(&mut self) {
        self.ended = true;
        if let Kind::Http1 {
            conn,
            link,
            keep_alive,
            pump,
        } = &mut self.kind
            && let Some(conn) = conn.take()
            && *keep_alive
            && (pump.done || pump.request.is_ended())
            && conn.is_flushed()
            && self.guards.most_requests.is_none_or(|most| link.served.get() < most)
            && self.guards.oldest.is_none_or(|oldest| link.since.elapsed() < oldest)
            && let Some(busy) = &self.guards.busy
        {
            busy.peer().pool.put(conn, link.clone());
        }
        self.guards.permits.clear();
        self.guards.busy = None;
    }

    /// Gives the response what it holds until its end.
    pub fn hold(&mut self, limit: Option<Limit>, permit: Permit) {
        if self.ended {
            return;
        }
        self.guards.limit = limit;
        self.guards.permits.push(permit);
    }

    /// Whether the request's body can go out again.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        match &self.kind {
            Kind::Http1 { pump, .. } => pump.request.can_rewind(),
            Kind::Http2(incoming) => incoming.can_retry(),
        }
    }

    /// The request's body and the guards back, for another try; the response is dropped.
    #[must_use]
    pub fn into_request(self) -> Option<(Replay, Guards)> {
        match self.kind {
            Kind::Http1 { pump, .. } => Some((pump.request, self.guards)),
            Kind::Http2(incoming) => incoming.into_request().map(|request| (request, self.guards)),
        }
    }

    /// The stream after a 101 response.
    #[must_use]
    pub fn into_upgraded(mut self) -> Option<(Io, Guards)> {
        match &mut self.kind {
            Kind::Http1 { conn, .. } => {
                let conn = conn.take()?;
                Some((conn.into_io(), self.guards))
            }
            Kind::Http2(_) => None,
        }
    }
}

/// Counts a stream while it lives.
pub struct StreamGuard(Rc<Http2>);

impl StreamGuard {
    pub(super) fn new(entry: Rc<Http2>) -> Self {
        entry.streams.set(entry.streams.get() + 1);
        entry.link.served.set(entry.link.served.get() + 1);
        Self(entry)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let streams: &Cell<u32> = &self.0.streams;
        streams.set(streams.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}
