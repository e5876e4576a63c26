//! Downstream connections: reads requests, hands them to the request path, writes what comes back, records it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep, timeout};
use weft_bundle::model::Config;

use super::body::{BodyError, Frame};
use super::client::Response;
use super::h1::{Close, Conn, Framing, HeadError, ReceivedRequest, Upgrade};
use super::replay::{Messages, Meter};
use super::rescue::{Audience, Failure, rescue};
use super::{Body, RequestHead, ResponseHead, Version, gateway, inbound, outbound};
use crate::authorize::{self, Since};
use crate::detect::{self, Among, Verdict};
use crate::exchange::{Details, Downstream, Exchange, Flags};
use crate::gateway::OpenPort;
use crate::listen::Incoming;
use crate::overload::Pressure;
use crate::shared::DrainPhase;
use crate::tcp;
use crate::worker::Worker;

mod streams;

pub use streams::http2;

/// Idle downstream connections are closed after this.
const IDLE: Duration = Duration::from_secs(3600);

/// A head that has begun must be complete after this.
const HEAD_LIMIT: Duration = Duration::from_secs(60);

/// How long a process that ends waits for the first request of a connection.
const NEW: Duration = Duration::from_secs(1);

/// What is read of a request's body after its answer, before the connection is closed.
const LINGER_BYTES: u64 = 256 * 1024;

/// How long that may take.
const LINGER: Duration = Duration::from_secs(1);

/// What handles the requests of a connection.
#[derive(Debug, Clone)]
pub enum Handler {
    /// The application's requests.
    Outbound {
        /// What it dialled.
        dialled: SocketAddr,
        /// It asked an explicit proxy: the authority of the request counts.
        proxy: bool,
    },
    /// Requests to the application.
    Inbound {
        /// Port of the pod.
        port: u16,
        /// Where its connection was to go.
        dialled: SocketAddr,
    },
    /// Requests of clients outside.
    Gateway(Arc<OpenPort>),
}

impl Handler {
    async fn handle(
        &self,
        worker: &Rc<Worker>,
        head: RequestHead,
        body: Body,
        meter: &Rc<Meter>,
        exchange: &mut Exchange,
    ) -> Response {
        match self {
            &Self::Outbound { dialled, proxy } => {
                outbound::handle(worker, dialled, proxy, head, body, meter, exchange).await
            }
            &Self::Inbound { port, dialled } => {
                inbound::handle(worker, port, dialled, head, body, meter, exchange).await
            }
            Self::Gateway(port) => gateway::handle(worker, port, head, body, meter, exchange).await,
        }
    }

    /// Whether clients are to leave (LIFE-021, LIFE-049).
    fn is_leaving(&self, worker: &Worker) -> bool {
        match self {
            Self::Outbound { .. } => false,
            Self::Inbound { .. } => worker.phase() >= DrainPhase::Draining,
            Self::Gateway(port) => worker.phase() >= DrainPhase::Draining || port.is_closed(),
        }
    }

    /// Waits until clients are to be told that they must go elsewhere.
    async fn leaving(&self, worker: &Worker) {
        let mut drain = worker.shared.drain.subscribe();
        let wanted = match self {
            Self::Outbound { .. } => DrainPhase::Closing,
            Self::Inbound { .. } | Self::Gateway(_) => DrainPhase::Draining,
        };
        // A sender lives as long as the process.
        let process = async { drop(drain.wait_for(|phase| *phase >= wanted).await) };
        match self {
            Self::Outbound { .. } | Self::Inbound { .. } => process.await,
            Self::Gateway(port) => tokio::select! {
                () = process => {}
                () = port.closed() => {}
            },
        }
    }

    fn audience(&self, downstream: &Downstream) -> Audience {
        match self {
            Self::Outbound { .. } => Audience::Own,
            Self::Gateway(_) => Audience::Outside,
            Self::Inbound { .. } if downstream.principal.is_some() => Audience::Mesh,
            Self::Inbound { .. } => Audience::Outside,
        }
    }
}

/// Serves a connection whose first bytes are HTTP.
pub async fn serve(worker: Rc<Worker>, incoming: Incoming, downstream: Arc<Downstream>, handler: Handler) {
    match detect::judge(&incoming.buffer, Among::Http) {
        Verdict::Http2 => http2(worker, incoming.into_io(), downstream, handler).await,
        _ => http1(worker, incoming.into_io(), downstream, handler).await,
    }
}

/// Begins the record of a request.
fn begin(worker: &Worker, downstream: &Arc<Downstream>, head: &RequestHead, bytes: usize) -> Exchange {
    let mut exchange = Exchange::new(worker.shared.telemetry.clone(), downstream.clone(), head.version);
    exchange.method = head.method.clone();
    exchange.path = head.path.clone();
    exchange.authority = head.authority.clone();
    exchange.user_agent = head.headers.get("user-agent").cloned();
    exchange.forwarded_for = head.headers.get("x-forwarded-for").cloned();
    exchange.request_id = head.headers.get("x-request-id").cloned();
    exchange.grpc = head.is_grpc();
    exchange.request_header_bytes = bytes as u64;
    if worker.shared.telemetry.keeps_headers() {
        exchange.request_headers = head.headers.clone();
    }
    exchange
}

/// Serves an HTTP/1 connection.
pub async fn http1(worker: Rc<Worker>, io: crate::io::Io, downstream: Arc<Downstream>, handler: Handler) {
    let conn = Rc::new(RefCell::new(Conn::new(io)));
    let mut drain = worker.shared.drain.subscribe();
    let is_new = Cell::new(true);
    // These last as long as the connection, so that a request registers nothing.
    let mut is_closing = false;
    let mut closing = pin!(async {
        drop(drain.wait_for(|phase| *phase == DrainPhase::Closing).await);
        if is_new.get() {
            // Its first request is on the way.
            sleep(NEW).await;
        }
    });
    let timer = pin!(sleep(IDLE));
    let mut patience = Patience::new(timer);
    loop {
        patience.begin();
        let received = poll_fn(|cx| {
            let next = conn.borrow_mut().poll_request(cx);
            if next.is_ready() {
                return next;
            }
            // An idle connection ends with the process; one with a request goes on.
            is_closing = is_closing || closing.as_mut().poll(cx).is_ready();
            let has_input = conn.borrow().has_input();
            if (is_closing && !has_input) || patience.poll(cx, has_input).is_ready() {
                return Poll::Ready(Ok(None));
            }
            Poll::Pending
        })
        .await;
        is_new.set(false);
        let request = match received {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                refuse(&worker, &conn, &downstream, &error).await;
                return;
            }
        };
        // In a box of its own, so that a connection without a request is small.
        match Box::pin(exchange_http1(&worker, conn.clone(), &downstream, &handler, request)).await {
            After::Again => {}
            After::Close => return,
            After::Upgraded(mut exchange, upstream) => {
                if let Some(conn) = Rc::into_inner(conn) {
                    let io = conn.into_inner().into_io();
                    let moved = tcp::Moved::default();
                    let drain = worker.shared.drain.subscribe();
                    let copy = Box::pin(tcp::copy(io, upstream.0, tcp::IDLE, &moved, drain));
                    let asked = exchange.asked.take();
                    let end = while_granted(&worker, &downstream, &handler, asked.as_ref(), copy).await;
                    exchange.bytes_received += moved.up.get();
                    exchange.bytes_sent += moved.down.get();
                    match end {
                        Ok(tcp::End::Downstream) => exchange.flags |= Flags::DC,
                        Ok(tcp::End::Upstream) => exchange.flags |= Flags::UC,
                        Ok(tcp::End::Idle) => exchange.flags |= Flags::SI,
                        Ok(tcp::End::Orderly | tcp::End::Closing) => {}
                        Err(denied) => exchange.details = Some(denied),
                    }
                }
                exchange.finish();
                return;
            }
        }
    }
}

/// Waits for the end of what follows the beginning of an answer, as long as policies allow it (BYD-002).
///
/// # Errors
/// What refuses it; the record has it.
async fn while_granted<F: Future>(
    worker: &Worker,
    downstream: &Downstream,
    handler: &Handler,
    asked: Option<&(RequestHead, Since)>,
    what: F,
) -> Result<F::Output, Details> {
    let (Handler::Inbound { .. } | Handler::Gateway(_), Some((head, since))) = (handler, asked) else {
        return Ok(what.await);
    };
    let judge = |config: &Config| match handler {
        Handler::Outbound { .. } => Ok(()),
        Handler::Inbound { port, .. } => authorize::stands(config, downstream, *port, Some(head)),
        Handler::Gateway(port) => gateway::again(config, port.number, downstream, head),
    };
    let end = authorize::while_granted(worker, *since, what, judge).await;
    end.map_err(|denial| Details::Denied(denial.details.clone()))
}

/// How long a client may take for its next head: long for its first byte, not so long for the rest. The timer is moved
/// when it fires and not with each request.
struct Patience<'t> {
    timer: Pin<&'t mut Sleep>,
    /// Since when the head is awaited.
    since: Instant,
    /// Its first bytes are there.
    begun: bool,
}

impl<'t> Patience<'t> {
    fn new(timer: Pin<&'t mut Sleep>) -> Self {
        Self {
            timer,
            since: Instant::now(),
            begun: false,
        }
    }

    /// A head is awaited from now on.
    fn begin(&mut self) {
        (self.since, self.begun) = (Instant::now(), false);
    }

    /// Ready when the client took too long.
    fn poll(&mut self, cx: &mut Context<'_>, has_input: bool) -> Poll<()> {
        if has_input && !self.begun {
            (self.since, self.begun) = (Instant::now(), true);
        }
        let deadline = self.since + if self.begun { HEAD_LIMIT } else { IDLE };
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

enum After {
    Again,
    Close,
    Upgraded(Box<Exchange>, Box<(crate::io::Io, super::client::Guards)>),
}

async fn exchange_http1(
    worker: &Rc<Worker>,
    conn: Rc<RefCell<Conn>>,
    downstream: &Arc<Downstream>,
    handler: &Handler,
    request: ReceivedRequest,
) -> After {
    let mut exchange = Box::new(begin(worker, downstream, &request.head, request.bytes));
    let version = request.head.version;
    let to_head = *request.head.method == *b"HEAD";
    let takes_trailers = request.head.headers.has_token("te", "trailers");
    let wants_upgrade = request.upgrade == Upgrade::WebSocket;
    let meter = Rc::new(Meter::default());
    let body = if matches!(request.framing, Framing::None | Framing::Length(0)) {
        Body::Empty
    } else {
        Body::H1(conn.clone())
    };
    let audience = handler.audience(downstream);
    let response = if worker.shared.overload.pressure() == Pressure::Critical {
        Some(rescue(Failure::overflow(), &mut exchange, audience))
    } else if request.upgrade == Upgrade::Other {
        Some(rescue(
            Failure::plain(403, "", "upgrade_failed"),
            &mut exchange,
            audience,
        ))
    } else {
        let handled = handler.handle(worker, request.head, body, &meter, &mut exchange);
        let mut handled = pin!(handled);
        poll_fn(|cx| {
            if let Poll::Ready(response) = handled.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            // 100 may be waiting, and the client may have gone.
            let mut conn = conn.borrow_mut();
            if !conn.is_flushed() && matches!(conn.poll_flush(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(None);
            }
            conn.poll_gone(cx).map(|()| None)
        })
        .await
    };
    let Some(mut response) = response else {
        // Dropping the record notes that the client gave up.
        return After::Close;
    };
    if response.head.status == 101 && wants_upgrade {
        return upgrade(worker, &conn, response, exchange).await;
    }
    let unread = !conn.borrow().body_is_end() && matches!(response.body, Body::Empty | Body::Full(_));
    if unread {
        discard_ready(&conn);
    }
    let draining = handler.is_leaving(worker);
    let refused = exchange.closes || request.upgrade == Upgrade::Other;
    let is_connect = *exchange.method == *b"CONNECT";
    let unread = !conn.borrow().body_is_end() && matches!(response.body, Body::Empty | Body::Full(_));
    let mut shape = Shape::of(&mut response, version, to_head);
    shape.trailers = takes_trailers && shape.chunked;
    let mut stays = request.keep_alive && !draining && !refused && !is_connect && !unread;
    if version == Version::Http10 && shape.until_close {
        stays = false;
    }
    let close = match (stays, version) {
        (true, Version::Http10) => Close::KeepAlive,
        (true, _) => Close::Stay,
        (false, _) => Close::Close,
    };
    {
        let mut conn = conn.borrow_mut();
        conn.cancel_continue();
        conn.push_response(&response.head, version, shape.chunked, close);
    }
    note_response(worker, &mut exchange, &response.head);
    let asked = exchange.asked.take();
    let written = write_body(&conn, &mut response.body, &shape, &mut exchange);
    let written = while_granted(worker, downstream, handler, asked.as_ref(), written).await;
    note_meter(&mut exchange, &meter);
    let written = written.unwrap_or_else(|denied| {
        exchange.details = Some(denied);
        Err(Broken::Refused)
    });
    match written {
        Ok(()) if exchange.grpc => {
            exchange
                .grpc_status
                .get_or_insert(super::rescue::grpc_status(exchange.status));
        }
        Ok(()) => {}
        Err(Broken::Upstream) => {
            if exchange.flags.is_empty() {
                exchange.flags |= Flags::UC;
            }
            exchange.finish();
            conn.borrow().io().reset();
            return After::Close;
        }
        Err(Broken::Timeout) => {
            exchange.flags |= Flags::UT;
            exchange.finish();
            conn.borrow().io().reset();
            return After::Close;
        }
        Err(Broken::Refused) => {
            exchange.finish();
            conn.borrow().io().reset();
            return After::Close;
        }
        Err(Broken::Downstream) => return After::Close,
    }
    exchange.finish();
    drop(response);
    if stays && conn.borrow().body_is_end() {
        After::Again
    } else {
        linger(&conn).await;
        After::Close
    }
}

fn note_response(worker: &Worker, exchange: &mut Exchange, head: &ResponseHead) {
    exchange.status = head.status;
    exchange.response_header_bytes = head.headers.wire_bytes() as u64 + 15 + head.reason.len() as u64;
    if exchange.details.is_none() {
        exchange.details = Some(Details::Word("via_upstream"));
    }
    if exchange.grpc {
        exchange.grpc_status = grpc_status(head.headers.get("grpc-status"));
    }
    if worker.shared.telemetry.keeps_headers() {
        exchange.response_headers = head.headers.clone();
    }
}

fn note_meter(exchange: &mut Exchange, meter: &Meter) {
    exchange.bytes_received = meter.bytes.get() + meter.coding.get();
    exchange.request_messages = meter.messages.count();
    if let Some(at) = meter.ended_at.get() {
        exchange.times.request_end = at.saturating_duration_since(exchange.start);
    }
}

/// Notes that the client broke the coding of its request while it was answered.
fn note_coding(exchange: &mut Exchange, error: &BodyError) {
    if let BodyError::Coding(word) = error {
        exchange.flags |= Flags::DPE;
        exchange.details = Some(Details::Word(word));
    }
}

/// Notes what gRPC said in a body that was passed on: to a client of gRPC-Web its messages are others.
fn note_grpc(exchange: &mut Exchange, body: &Body, messages: &Messages) {
    exchange.response_messages = messages.count();
    if let Body::Encoded(body) = body {
        exchange.response_messages = body.messages();
        exchange.grpc_status = grpc_status(body.status()).or(exchange.grpc_status);
    }
}

fn grpc_status(value: Option<&Bytes>) -> Option<u16> {
    std::str::from_utf8(value?)
        .ok()?
        .parse()
        .ok()
        .filter(|code| *code <= 16)
}

/// How a response's body is written to an HTTP/1 client.
#[derive(Default)]
struct Shape {
    chunked: bool,
    until_close: bool,
    none: bool,
    /// The client takes trailers (BYD-070).
    trailers: bool,
}

impl Shape {
    fn of(response: &mut Response, version: Version, to_head: bool) -> Self {
        let head = &mut response.head;
        let bodiless = matches!(head.status, 100..=199 | 204 | 304);
        let none = to_head || bodiless;
        if none {
            return Self {
                none,
                ..Self::default()
            };
        }
        if head.headers.contains("content-length") {
            return Self::default();
        }
        if response.body.is_end() && !head.headers.contains("transfer-encoding") {
            head.headers.push("content-length", "0");
            return Self::default();
        }
        if version == Version::Http10 {
            head.headers.remove("transfer-encoding");
            return Self {
                until_close: true,
                ..Self::default()
            };
        }
        Self {
            chunked: true,
            ..Self::default()
        }
    }
}

/// Why a response was not written to its end.
enum Broken {
    Upstream,
    Downstream,
    Timeout,
    /// A policy that is new refuses it.
    Refused,
}

async fn write_body(
    conn: &Rc<RefCell<Conn>>,
    body: &mut Body,
    shape: &Shape,
    exchange: &mut Exchange,
) -> Result<(), Broken> {
    let mut ended = shape.none && body.is_end();
    let mut last = None;
    let messages = Messages::default();
    let outcome = poll_fn(|cx| {
        loop {
            while !ended && !conn.borrow().is_full() {
                match body.poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Some(Frame::Data(data)))) => {
                        if shape.none {
                            continue;
                        }
                        exchange.bytes_sent += data.len() as u64;
                        if exchange.grpc {
                            messages.see(&data);
                        }
                        conn.borrow_mut().push_data(data, shape.chunked);
                    }
                    Poll::Ready(Ok(Some(Frame::Trailers(trailers)))) => {
                        if exchange.grpc {
                            exchange.grpc_status = grpc_status(trailers.get("grpc-status")).or(exchange.grpc_status);
                        }
                        last = Some(trailers).filter(|_| shape.trailers);
                    }
                    Poll::Ready(Ok(None)) => {
                        ended = true;
                        if !shape.none {
                            conn.borrow_mut().push_end(shape.chunked, last.as_ref());
                        }
                    }
                    Poll::Ready(Err(BodyError::Timeout)) => return Poll::Ready(Err(Broken::Timeout)),
                    Poll::Ready(Err(error)) => {
                        note_coding(exchange, &error);
                        // What came before the failure goes out first.
                        let _ = conn.borrow_mut().poll_flush(cx);
                        return Poll::Ready(Err(Broken::Upstream));
                    }
                }
            }
            let mut conn = conn.borrow_mut();
            if conn.is_flushed() {
                if ended {
                    return Poll::Ready(Ok(()));
                }
                // While there is nothing to write, no failed write tells that the client has gone.
                return conn.poll_gone(cx).map(|()| Err(Broken::Downstream));
            }
            match conn.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Downstream)),
                Poll::Pending => {
                    drop(conn);
                    body.poll_progress(cx);
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
    note_grpc(exchange, body, &messages);
    outcome
}

/// Drops what has already arrived of a body that nobody reads.
fn discard_ready(conn: &Rc<RefCell<Conn>>) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut left = LINGER_BYTES;
    while let Poll::Ready(Ok(Some(Frame::Data(data)))) = conn.borrow_mut().poll_body(&mut cx) {
        left = left.saturating_sub(data.len() as u64);
        if left == 0 {
            return;
        }
    }
}

/// Ends a connection so that the client reads the answer before it sees a reset: its input is read for a moment.
async fn linger(conn: &Rc<RefCell<Conn>>) {
    let closed = async {
        if poll_fn(|cx| conn.borrow_mut().poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        loop {
            let read = poll_fn(|cx| {
                let mut conn = conn.borrow_mut();
                if conn.body_is_end() {
                    return conn.poll_gone(cx).map(|()| None);
                }
                match ready!(conn.poll_body(cx)) {
                    Ok(Some(Frame::Data(data))) => Poll::Ready(Some(data.len() as u64)),
                    Ok(_) => Poll::Ready(Some(0)),
                    Err(_) => Poll::Ready(None),
                }
            })
            .await;
            match read {
                Some(count) if count < left => left -= count,
                _ => return,
            }
        }
    };
    // Whoever keeps sending is cut off.
    let _ = timeout(LINGER, closed).await;
}

/// Answers a head that cannot be served, and closes.
async fn refuse(worker: &Worker, conn: &Rc<RefCell<Conn>>, downstream: &Arc<Downstream>, error: &HeadError) {
    let (status, details) = match error {
        HeadError::Io(_) | HeadError::LineTooLong => return,
        HeadError::TooLarge => (431, "request_headers_too_large"),
        HeadError::Malformed(_) => (400, "http1.codec_error"),
        HeadError::Version => (426, "low_version"),
        HeadError::TransferCoding => (501, "http1.invalid_transfer_encoding"),
    };
    let mut exchange = Exchange::new(worker.shared.telemetry.clone(), downstream.clone(), Version::Http11);
    let response = rescue(Failure::bad_request(status, details), &mut exchange, Audience::Outside);
    exchange.status = status;
    {
        let mut conn = conn.borrow_mut();
        conn.push_response(&response.head, Version::Http11, false, Close::Close);
        if let Body::Full(bytes) = response.body {
            exchange.bytes_sent = bytes.len() as u64;
            conn.push_data(bytes, false);
        }
    }
    let flushed = poll_fn(|cx| conn.borrow_mut().poll_flush(cx)).await;
    exchange.finish();
    if flushed.is_ok() {
        linger(conn).await;
    }
}

async fn upgrade(worker: &Worker, conn: &Rc<RefCell<Conn>>, response: Response, mut exchange: Box<Exchange>) -> After {
    conn.borrow_mut()
        .push_response(&response.head, Version::Http11, false, Close::Stay);
    note_response(worker, &mut exchange, &response.head);
    if poll_fn(|cx| conn.borrow_mut().poll_flush(cx)).await.is_err() {
        return After::Close;
    }
    match response.body {
        Body::Upstream(body) => match body.into_upgraded() {
            Some(upstream) => After::Upgraded(exchange, Box::new(upstream)),
            None => After::Close,
        },
        _ => After::Close,
    }
}
