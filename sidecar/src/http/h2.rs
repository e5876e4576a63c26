//! HTTP/2 over the `h2` crate, in both roles.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tokio::time::{Instant, sleep, timeout};
use weft_bundle::wire::Http2Keepalive;

use super::body::{BodyError, Frame};
use super::client::{Guards, Response, ResponseBody, SendError, StreamGuard, is_idempotent};
use super::replay::Replay;
use super::{Body, Field, Headers, RequestHead, ResponseHead, Version, casing};
use crate::io::Io;
use crate::pool::{Http2, Link, Security};

/// Window of a stream: what a slow reader makes its writer keep.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Streams of one connection that are open at a time; each costs a task.
const MAX_STREAMS: u32 = 10_000;

/// Longest header list (SM-135).
const MAX_HEADER_LIST_BYTES: u32 = 60 * 1024;

/// Settings towards clients.
#[must_use]
pub fn server_builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize);
    builder
}

/// Opens HTTP/2 on a connection; a task drives it until it ends, or until its peer leaves a PING without answer (DR-088).
///
/// # Errors
/// That of the handshake.
pub async fn connect(io: Io, link: Rc<Link>, keepalive: Option<&Http2Keepalive>) -> Result<Rc<Http2>, h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .enable_push(false)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize);
    let (sender, mut connection) = builder.handshake::<_, Bytes>(io).await?;
    let closed = Rc::new(Cell::new(false));
    let flag = closed.clone();
    let pings = keepalive.and_then(|keepalive| Some(unanswered(connection.ping_pong()?, keepalive)));
    tokio::task::spawn_local(async move {
        // Streams tell their own errors.
        match pings {
            None => drop(connection.await),
            Some(pings) => tokio::select! {
                _ = connection => {}
                () = pings => {}
            },
        }
        flag.set(true);
    });
    Ok(Rc::new(Http2 {
        sender,
        link,
        streams: Cell::new(0),
        closed,
        idle_since: Cell::new(Instant::now()),
    }))
}

/// Ends when a PING had no answer in time, or could not be sent.
fn unanswered(mut pings: h2::PingPong, keepalive: &Http2Keepalive) -> impl Future<Output = ()> + use<> {
    let interval = Duration::from_millis(keepalive.interval_ms.max(1));
    let limit = Duration::from_millis(keepalive.timeout_ms);
    async move {
        loop {
            sleep(interval).await;
            if !matches!(timeout(limit, pings.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
                return;
            }
        }
    }
}

/// Sends a request and waits for the response's head.
pub(super) async fn send(
    entry: Rc<Http2>,
    head: &RequestHead,
    request: Replay,
    guards: Guards,
) -> Result<Response, (SendError, Replay, Guards)> {
    let repeatable = entry.link.served.get() > 0 && is_idempotent(&head.method);
    let unsent = SendError::Closed {
        race: true,
        before_request: true,
    };
    let mesh = matches!(entry.link.security, Security::Mesh(_));
    let noted = (mesh && head.version != Version::Http2).then(|| {
        let mut head = head.clone();
        casing::note(&mut head.headers);
        head
    });
    let Ok(message) = to_request(noted.as_ref().unwrap_or(head)) else {
        return Err((SendError::Protocol("request has no HTTP/2 form"), request, guards));
    };
    let guard = StreamGuard::new(entry.clone());
    let Ok(mut sender) = entry.sender.clone().ready().await else {
        entry.closed.set(true);
        return Err((unsent, request, guards));
    };
    let empty = request.is_empty();
    let Ok((response, stream)) = sender.send_request(message, empty) else {
        entry.closed.set(true);
        return Err((unsent, request, guards));
    };
    let mut pump = Pump {
        stream,
        request,
        pending: Bytes::new(),
        done: empty,
    };
    let mut response = response;
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(Err(e)) = pump.poll(cx) {
            return Poll::Ready(Err(SendError::RequestBody(e)));
        }
        match ready!(Pin::new(&mut response).poll(cx)) {
            Ok(response) => Poll::Ready(Ok(response)),
            Err(e) => Poll::Ready(Err(classify(&e, repeatable))),
        }
    })
    .await;
    match outcome {
        Ok(response) => {
            let (parts, stream) = response.into_parts();
            let mut headers = from_map(&parts.headers, None);
            let phrase = if noted.is_some() {
                casing::restore_response(&mut headers)
            } else {
                casing::remove(&mut headers);
                None
            };
            let head = ResponseHead {
                // With a phrase it is the application's own answer over HTTP/1.
                version: if phrase.is_some() {
                    Version::Http11
                } else {
                    Version::Http2
                },
                status: parts.status.as_u16(),
                reason: phrase.unwrap_or_default(),
                headers,
            };
            let incoming = Incoming {
                stream,
                pump: Some(pump),
                failed: None,
                _guard: guard,
            };
            Ok(Response {
                head,
                body: Body::Upstream(ResponseBody::http2(incoming, guards)),
            })
        }
        Err(e) => {
            if matches!(e, SendError::Closed { .. }) {
                entry.closed.set(true);
            } else {
                pump.stream.send_reset(Reason::CANCEL);
            }
            Err((e, pump.request, guards))
        }
    }
}

fn classify(error: &h2::Error, repeatable: bool) -> SendError {
    if error.is_go_away() && error.is_remote() {
        // Streams that a GOAWAY fails were not looked at (RFC 9113, section 6.8).
        return SendError::Closed {
            race: true,
            before_request: true,
        };
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => SendError::Refused,
        Some(_) if error.is_reset() => SendError::Reset,
        _ => SendError::Closed {
            race: repeatable,
            before_request: false,
        },
    }
}

/// What is left of a request, on its way into a stream.
struct Pump {
    stream: SendStream<Bytes>,
    request: Replay,
    pending: Bytes,
    done: bool,
}

impl Pump {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while !self.done {
            if self.pending.is_empty() {
                match ready!(self.request.poll_frame(cx)) {
                    Ok(Some(Frame::Data(data))) => self.pending = data,
                    Ok(Some(Frame::Trailers(trailers))) => {
                        self.done = true;
                        // The response tells when the server no longer listens.
                        let _ = self.stream.send_trailers(to_map(&super::trailers::passable(&trailers)));
                        continue;
                    }
                    Ok(None) => {
                        self.done = true;
                        let _ = self.stream.send_data(Bytes::new(), true);
                        continue;
                    }
                    Err(e) => return Poll::Ready(Err(e)),
                }
            }
            match ready!(poll_send(&mut self.stream, &mut self.pending, cx)) {
                true => {}
                // The server wants no more; what it says comes as response or reset.
                false => self.done = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Sends as much of `data` as windows allow, all of it before it is ready; false when the stream is closed.
pub(super) fn poll_send(stream: &mut SendStream<Bytes>, data: &mut Bytes, cx: &mut Context<'_>) -> Poll<bool> {
    while !data.is_empty() {
        if stream.capacity() == 0 {
            stream.reserve_capacity(data.len());
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(0)) => continue,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        let length = stream.capacity().min(data.len());
        if length == 0 {
            continue;
        }
        if stream.send_data(data.split_to(length), false).is_err() {
            return Poll::Ready(false);
        }
    }
    Poll::Ready(true)
}

/// A response on its stream.
pub struct Incoming {
    stream: RecvStream,
    pump: Option<Pump>,
    /// Why the request could not be sent to its end, until it was told.
    failed: Option<BodyError>,
    _guard: StreamGuard,
}

impl Incoming {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        poll_frame(&mut self.stream, cx)
    }

    pub(super) fn poll_progress(&mut self, cx: &mut Context<'_>) {
        if let Some(pump) = &mut self.pump
            && !pump.done
        {
            match pump.poll(cx) {
                Poll::Pending | Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    pump.done = true;
                    pump.stream.send_reset(Reason::CANCEL);
                    self.failed = Some(error);
                }
            }
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(super) fn can_retry(&self) -> bool {
        self.pump.as_ref().is_some_and(|pump| pump.request.can_rewind())
    }

    pub(super) fn into_request(mut self) -> Option<Replay> {
        self.pump.take().map(|pump| pump.request)
    }
}

/// Next frame of a stream; its window opens as the bytes are taken.
pub(super) fn poll_frame(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
    loop {
        match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) if data.is_empty() => {}
            Some(Ok(data)) => {
                // The connection's end shows at the next poll.
                let _ = stream.flow_control().release_capacity(data.len());
                return Poll::Ready(Ok(Some(Frame::Data(data))));
            }
            // A server that wants no more of the request may end it this way after a full response.
            Some(Err(e)) if e.reason() == Some(Reason::NO_ERROR) && e.is_reset() => return Poll::Ready(Ok(None)),
            Some(Err(e)) => return Poll::Ready(Err(e.into())),
            None => {
                let trailers = ready!(stream.poll_trailers(cx))?;
                return Poll::Ready(Ok(trailers.map(|map| Frame::Trailers(from_map(&map, None)))));
            }
        }
    }
}

/// A request's head as HTTP/2 received it.
#[must_use]
pub fn from_request(parts: &http::request::Parts) -> RequestHead {
    let uri = &parts.uri;
    let authority = uri
        .authority()
        .map(|authority| Bytes::copy_from_slice(authority.as_str().as_bytes()));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // `:authority` counts, and a host beside it is dropped (AUTHZ-115).
    let authority = authority
        .or_else(|| {
            parts
                .headers
                .get("host")
                .map(|host| Bytes::copy_from_slice(host.as_bytes()))
        })
        .unwrap_or_default();
    let headers = from_map(&parts.headers, Some(&authority));
    RequestHead {
        version: Version::Http2,
        method: Bytes::copy_from_slice(parts.method.as_str().as_bytes()),
        scheme: Bytes::copy_from_slice(uri.scheme_str().unwrap_or_default().as_bytes()),
        authority,
        path: Bytes::copy_from_slice(path.as_bytes()),
        headers,
        upgrade: false,
    }
}

/// Why a request that HTTP/2 let pass is refused all the same, so that both versions are judged alike (AUTHZ-069,
/// AUTHZ-112, AUTHZ-115, SM-135).
#[must_use]
pub fn refusal(parts: &http::request::Parts, head: &RequestHead) -> Option<u16> {
    let without_authority = parts.uri.authority().is_none();
    let hosts = parts.headers.get_all("host").iter().count();
    let asterisk = *head.path == *b"*" && *head.method == *b"OPTIONS";
    if parts.headers.len() > super::h1::MAX_FIELDS {
        Some(431)
    } else if (without_authority && hosts > 1)
        || !super::h1::is_authority(&head.authority)
        || (head.path.first() != Some(&b'/') && !asterisk)
        || head.path.iter().any(|b| *b <= 0x20 || *b >= 0x7f)
        || parts.headers.values().any(|value| has_edge(value.as_bytes()))
    {
        Some(400)
    } else {
        None
    }
}

/// White space around a value is malformed (RFC 9113, section 8.2.1). Written for HTTP/1 it would be gone, and the value be
/// another one than policies saw.
fn has_edge(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.first()) || is_space(value.last())
}

/// Fields in one buffer. A request's `host` is replaced by its authority, in front, and its cookies are joined
/// (SM-139).
fn from_map(map: &HeaderMap, authority: Option<&Bytes>) -> Headers {
    let is_request = authority.is_some();
    let length: usize = map
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 2)
        .sum();
    let mut buffer = BytesMut::with_capacity(length);
    let mut spans = Vec::with_capacity(map.len());
    let mut cookie = false;
    for (name, value) in map {
        let name = name.as_str();
        if is_request && name == "host" {
            continue;
        }
        if is_request && name == "cookie" {
            if !cookie {
                cookie = true;
                let start = buffer.len();
                buffer.extend_from_slice(b"cookie");
                let middle = buffer.len();
                for (i, crumb) in map.get_all("cookie").iter().enumerate() {
                    if i > 0 {
                        buffer.extend_from_slice(b"; ");
                    }
                    buffer.extend_from_slice(crumb.as_bytes());
                }
                spans.push((start, middle, buffer.len()));
            }
            continue;
        }
        let start = buffer.len();
        buffer.extend_from_slice(name.as_bytes());
        let middle = buffer.len();
        buffer.extend_from_slice(value.as_bytes());
        spans.push((start, middle, buffer.len()));
    }
    let buffer = buffer.freeze();
    let mut headers = Headers::with_capacity(spans.len() + 8);
    if let Some(authority) = authority
        && !authority.is_empty()
    {
        headers.push(Bytes::from_static(b"host"), authority.clone());
    }
    for (start, middle, end) in spans {
        headers.push_field(Field {
            name: buffer.slice(start..middle),
            value: buffer.slice(middle..end),
        });
    }
    headers
}

/// What has no place in HTTP/2 (RFC 9113, section 8.2.2).
fn is_connection_specific(name: &[u8]) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    is("host")
        || is("connection")
        || is("transfer-encoding")
        || is("upgrade")
        || is("keep-alive")
        || is("proxy-connection")
}

/// Fields for HTTP/2. A name or value that it cannot carry is left out; parsers have refused those before.
pub(super) fn to_map(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for field in headers {
        if is_connection_specific(&field.name) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(&field.name),
            HeaderValue::from_maybe_shared(field.value.clone()),
        ) {
            map.append(name, value);
        }
    }
    map
}

fn to_request(head: &RequestHead) -> Result<Request<()>, http::Error> {
    let scheme: &[u8] = if head.scheme.is_empty() { b"http" } else { &head.scheme };
    let authority: &[u8] = if head.authority.is_empty() {
        b"localhost"
    } else {
        &head.authority
    };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(&head.path[..])
        .build()?;
    let mut request = Request::builder()
        .method(Method::from_bytes(&head.method)?)
        .uri(uri)
        .version(http::Version::HTTP_2)
        .body(())?;
    *request.headers_mut() = to_map(&head.headers);
    Ok(request)
}

/// A response's head for HTTP/2.
#[must_use]
pub fn to_response(head: &ResponseHead) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = http::StatusCode::from_u16(head.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = to_map(&head.headers);
    response
}
