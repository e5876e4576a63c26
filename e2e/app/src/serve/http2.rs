//! HTTP/2 connections, gRPC among them.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response as HttpResponse};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Draining;
use super::http1::{FILL, KEPT_BODY_BYTES};
use crate::answer::{App, Body, Outcome, Peer, Request, Response};
use crate::directive::Close;
use crate::http1::Headers;
use crate::stream::Buffered;

/// Serves a connection until its client closes it, or until a draining server has answered what it accepted.
pub(super) async fn serve(conn: Buffered, app: Arc<App>, peer: Peer, mut draining: Draining) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 21)
        .max_header_list_size(1 << 20);
    let mut connection = timeout(HANDSHAKE, builder.handshake::<_, Bytes>(conn)).await??;
    // A stream that is told to close its connection says so here.
    let closing = Arc::new(Notify::new());
    let mut streams = JoinSet::new();
    let mut drained = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { break };
                let (request, respond) = accepted?;
                streams.spawn(stream(request, respond, app.clone(), peer.clone(), closing.clone()));
            }
            Some(_) = streams.join_next() => {}
            () = closing.notified() => return Ok(()),
            () = draining.started(), if !drained => {
                drained = true;
                connection.graceful_shutdown();
            }
        }
    }
    Ok(())
}

async fn stream(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    app: Arc<App>,
    peer: Peer,
    closing: Arc<Notify>,
) {
    // A client that resets its stream has nobody left to tell.
    let _ = exchange(request, &mut respond, &app, &peer, &closing).await;
}

async fn exchange(
    request: http::Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    app: &App,
    peer: &Peer,
    closing: &Notify,
) -> Result<()> {
    let (parts, mut receive) = request.into_parts();
    let (body, body_len, trailers) = read_body(&mut receive).await?;
    let headers = Headers(pairs(&parts.headers));
    let grpc = headers
        .first("content-type")
        .is_some_and(|kind| kind.starts_with("application/grpc"));
    if grpc && parts.uri.path() == "/grpc.health.v1.Health/Check" {
        // HealthCheckResponse with field 1, status, SERVING.
        return send_message(respond, &[8, 1], 0).await;
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str().to_owned(),
        None => parts.uri.to_string(),
    };
    let (body, body_len) = if grpc { unframed(&body) } else { (body, body_len) };
    let request = Request {
        proto: "HTTP/2",
        host: authority
            .or_else(|| headers.first("host").map(str::to_owned))
            .unwrap_or_default(),
        method: parts.method.to_string(),
        path: target,
        transfer: match headers.first("content-length") {
            Some(_) => "length",
            None => "none",
        },
        headers,
        trailers,
        body,
        body_len,
    };
    let head_only = request.method == "HEAD";
    match app.answer(request, peer).await {
        Outcome::Close(Close::Fin) => {
            closing.notify_one();
            // A stream that is dropped before its connection would be reset, and its client see that instead.
            std::future::pending::<()>().await;
        }
        Outcome::Close(Close::Reset) => respond.send_reset(Reason::INTERNAL_ERROR),
        Outcome::Close(Close::Refused) => respond.send_reset(Reason::REFUSED_STREAM),
        Outcome::Close(Close::Hang) => {
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
        }
        Outcome::Close(Close::Mid) => {
            let head = HttpResponse::builder()
                .status(200)
                .header("content-length", "100")
                .body(())?;
            let mut send = respond.send_response(head, false)?;
            send_all(&mut send, b"0123456789").await?;
            // A reset drops what is queued: half of the body leaves first.
            tokio::time::sleep(HALF_WAY).await;
            send.send_reset(Reason::INTERNAL_ERROR);
        }
        Outcome::Respond(response) if grpc => send_grpc(respond, response).await?,
        Outcome::Respond(response) => send(respond, response, head_only).await?,
    }
    Ok(())
}

async fn send(respond: &mut SendResponse<Bytes>, response: Response, head_only: bool) -> Result<()> {
    let mut head = HttpResponse::builder().status(response.status).body(())?;
    head.headers_mut()
        .insert("content-type", HeaderValue::from_static("application/json"));
    if !response.chunked && !matches!(response.status, 204 | 304) {
        head.headers_mut()
            .insert("content-length", HeaderValue::from(response.body.length()));
    }
    add(head.headers_mut(), &response.headers)?;
    if head_only || matches!(response.status, 204 | 304) {
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut send = respond.send_response(head, false)?;
    match response.body {
        Body::Bytes(bytes) => send_all(&mut send, &bytes).await?,
        Body::Fill(mut left) => {
            while left > 0 {
                let piece = left.min(FILL.len() as u64);
                send_all(&mut send, &FILL[..piece as usize]).await?;
                left -= piece;
            }
        }
    }
    if response.trailers.is_empty() {
        send.send_data(Bytes::new(), true)?;
    } else {
        let mut trailers = HeaderMap::new();
        add(&mut trailers, &response.trailers)?;
        send.send_trailers(trailers)?;
    }
    Ok(())
}

async fn send_grpc(respond: &mut SendResponse<Bytes>, response: Response) -> Result<()> {
    let mut head = HttpResponse::builder()
        .status(response.status)
        .header("content-type", "application/grpc")
        .body(())?;
    add(head.headers_mut(), &response.headers)?;
    if let Some(status) = response.grpc {
        head.headers_mut().insert("grpc-status", HeaderValue::from(status));
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut send = respond.send_response(head, false)?;
    match response.body {
        Body::Bytes(bytes) => send_framed(&mut send, &bytes).await?,
        Body::Fill(length) => send_framed(&mut send, &vec![b'x'; length as usize]).await?,
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(0));
    add(&mut trailers, &response.trailers)?;
    Ok(send.send_trailers(trailers)?)
}

async fn send_message(respond: &mut SendResponse<Bytes>, message: &[u8], status: u32) -> Result<()> {
    let head = HttpResponse::builder()
        .status(200)
        .header("content-type", "application/grpc")
        .body(())?;
    let mut send = respond.send_response(head, false)?;
    send_framed(&mut send, message).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    Ok(send.send_trailers(trailers)?)
}

/// Sends one gRPC message: not compressed, its length, its bytes.
async fn send_framed(send: &mut SendStream<Bytes>, message: &[u8]) -> Result<()> {
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    send_all(send, &framed).await
}

/// Sends bytes as the receiver's window allows.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let Some(capacity) = poll_fn(|cx| send.poll_capacity(cx)).await else {
            anyhow::bail!("stream closed")
        };
        let capacity = capacity?.min(bytes.len());
        send.send_data(Bytes::copy_from_slice(&bytes[..capacity]), false)?;
        bytes = &bytes[capacity..];
    }
    Ok(())
}

async fn read_body(receive: &mut RecvStream) -> Result<(Vec<u8>, u64, Headers)> {
    let (mut kept, mut length) = (Vec::new(), 0_u64);
    while let Some(piece) = receive.data().await {
        let piece = piece?;
        receive.flow_control().release_capacity(piece.len())?;
        length += piece.len() as u64;
        let room = KEPT_BODY_BYTES.saturating_sub(kept.len()).min(piece.len());
        kept.extend_from_slice(&piece[..room]);
    }
    let trailers = receive
        .trailers()
        .await?
        .map(|map| Headers(pairs(&map)))
        .unwrap_or_default();
    Ok((kept, length, trailers))
}

/// The messages of a gRPC body, one after the other, without their frames.
pub(crate) fn unframed(mut body: &[u8]) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    while let Some((prefix, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let end = length.min(rest.len());
        out.extend_from_slice(&rest[..end]);
        body = &rest[end..];
    }
    let length = out.len() as u64;
    (out, length)
}

/// Header fields as pairs, in the order in which their names first came.
pub(crate) fn pairs(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(n, v)| {
            (
                n.as_str().to_owned(),
                String::from_utf8_lossy(v.as_bytes()).into_owned(),
            )
        })
        .collect()
}

fn add(map: &mut HeaderMap, pairs: &[(String, String)]) -> Result<()> {
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes())?;
        if matches!(name.as_str(), "content-type" | "content-length") {
            map.insert(name, HeaderValue::from_str(value)?);
        } else {
            map.append(name, HeaderValue::from_str(value)?);
        }
    }
    Ok(())
}

const HALF_WAY: Duration = Duration::from_millis(50);
const HANDSHAKE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_their_frames_and_broken_ones_no_more_than_that() {
        assert_eq!(unframed(b"\0\0\0\0\x02hi\0\0\0\0\x01!").0, b"hi!");
        assert_eq!(unframed(b"\0\xff\xff\xff\xffx").0, b"x");
        assert_eq!(unframed(b"\0\0").0, b"");
    }
}
