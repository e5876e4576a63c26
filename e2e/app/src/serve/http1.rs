//! HTTP/1.x connections, and the look at the first bytes that tells HTTP/2 from them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::{Draining, http2, websocket};
use crate::answer::{self, App, Body, Outcome, Peer, Request, Response};
use crate::directive::Close;
use crate::http1::{BodyReader, Error, RequestHead, read_request, write_chunk, write_headers};
use crate::stream::Buffered;

/// Serves a connection in the protocol of its first bytes.
pub(super) async fn detect(mut conn: Buffered, app: Arc<App>, peer: Peer, draining: Draining) -> Result<()> {
    loop {
        let seen = conn.buffer.len().min(PREFACE.len());
        if conn.buffer[..seen] != PREFACE[..seen] {
            return serve(conn, &app, &peer, draining).await;
        }
        if seen == PREFACE.len() {
            return http2::serve(conn, app, peer, draining).await;
        }
        if !more_before_drain(&mut conn, draining.clone()).await? {
            return Ok(());
        }
    }
}

async fn serve(mut conn: Buffered, app: &App, peer: &Peer, mut draining: Draining) -> Result<()> {
    loop {
        let head = tokio::select! {
            biased;
            head = read_request(&mut conn) => head,
            // Between requests nothing is owed; within a head the rest of it is on its way.
            () = draining.started() => {
                if conn.buffer.is_empty() {
                    return Ok(conn.shutdown().await?);
                }
                timeout(LAST_HEAD, read_request(&mut conn)).await.unwrap_or(Ok(None))
            }
        };
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(conn.shutdown().await?),
            Err(error @ (Error::Malformed(_) | Error::TooLarge { .. })) => {
                let status = if matches!(error, Error::TooLarge { .. }) {
                    431
                } else {
                    400
                };
                write_response(&mut conn, answer::text(status, &format!("{error}\n")), "GET", 1, true).await?;
                return Ok(conn.shutdown().await?);
            }
            Err(error) => return Err(error.into()),
        };
        if websocket::wanted(&head) {
            return websocket::serve(conn, &head, draining).await;
        }
        if !exchange(&mut conn, head, app, peer, &draining).await? {
            return Ok(());
        }
    }
}

/// Reads the rest of one request and answers it; `false` when the connection is over.
async fn exchange(conn: &mut Buffered, head: RequestHead, app: &App, peer: &Peer, draining: &Draining) -> Result<bool> {
    let framing = match head.framing() {
        Ok(framing) => framing,
        Err(error) => {
            write_response(conn, answer::text(400, &format!("{error}\n")), "GET", 1, true).await?;
            conn.shutdown().await?;
            return Ok(false);
        }
    };
    if head.headers.has_token("expect", "100-continue") {
        conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let mut reader = BodyReader::new(framing);
    let (body, body_len) = reader.collect(conn, KEPT_BODY_BYTES).await?;
    let keeps_alive = head.keeps_alive();
    let method = head.method.clone();
    let request = Request {
        proto: if head.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" },
        host: head.headers.first("host").unwrap_or_default().to_owned(),
        method: head.method,
        path: head.target,
        headers: head.headers,
        trailers: std::mem::take(&mut reader.trailers),
        transfer: framing.name(),
        body,
        body_len,
    };
    let last = match app.answer(request, peer).await {
        Outcome::Close(Close::Hang) => {
            // Until the client gives up, or the server's grace ends.
            while conn.fill().await? > 0 {
                conn.buffer.clear();
            }
            true
        }
        Outcome::Close(Close::Reset) => {
            conn.set_resets();
            return Ok(false);
        }
        Outcome::Close(Close::Mid) => {
            conn.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n0123456789",
            )
            .await?;
            conn.flush().await?;
            tokio::time::sleep(app.half_way).await;
            true
        }
        Outcome::Close(Close::Fin | Close::Refused) => true,
        Outcome::Respond(response) => {
            let last = !keeps_alive || draining.has_started();
            write_response(conn, response, &method, head.minor, last).await?;
            last
        }
    };
    if last {
        conn.shutdown().await?;
    }
    Ok(!last)
}

pub(super) async fn write_response(
    conn: &mut Buffered,
    response: Response,
    method: &str,
    minor: u8,
    last: bool,
) -> Result<()> {
    let mut headers = response.headers;
    let has = |headers: &[(String, String)], name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has(&headers, "content-type") {
        headers.insert(0, ("content-type".to_owned(), "application/json".to_owned()));
    }
    let bodiless = matches!(response.status, 204 | 304);
    let chunked = response.chunked && minor > 0 && !bodiless;
    if chunked {
        headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
        if !response.trailers.is_empty() {
            let names: Vec<&str> = response.trailers.iter().map(|(name, _)| name.as_str()).collect();
            headers.push(("trailer".to_owned(), names.join(", ")));
        }
    } else if !bodiless {
        headers.push(("content-length".to_owned(), response.body.length().to_string()));
    }
    if last && !has(&headers, "connection") {
        headers.push(("connection".to_owned(), "close".to_owned()));
    }
    let reason = http::StatusCode::from_u16(response.status)
        .ok()
        .and_then(|s| s.canonical_reason());
    let mut out = format!("HTTP/1.1 {} {}\r\n", response.status, reason.unwrap_or("Unknown")).into_bytes();
    write_headers(&mut out, &headers);
    if method == "HEAD" || bodiless {
        conn.write_all(&out).await?;
        return Ok(conn.flush().await?);
    }
    match response.body {
        Body::Bytes(bytes) if chunked => write_chunk(&mut out, &bytes),
        Body::Bytes(bytes) => out.extend_from_slice(&bytes),
        Body::Fill(mut left) => {
            while left > 0 {
                let piece = &FILL[..left.min(FILL.len() as u64) as usize];
                if chunked {
                    write_chunk(&mut out, piece);
                } else {
                    out.extend_from_slice(piece);
                }
                left -= piece.len() as u64;
                conn.write_all(&out).await?;
                out.clear();
            }
        }
    }
    if chunked {
        out.extend_from_slice(b"0\r\n");
        write_headers(&mut out, &response.trailers);
    }
    conn.write_all(&out).await?;
    Ok(conn.flush().await?)
}

/// Reads more; `false` at the end of the stream, or when the server drains and nothing comes.
async fn more_before_drain(conn: &mut Buffered, mut draining: Draining) -> Result<bool> {
    let drained = async {
        // The receiver fails only when the server has gone.
        let () = draining.started().await;
        tokio::time::sleep(LAST_HEAD).await;
    };
    tokio::select! {
        read = conn.fill() => Ok(read? > 0),
        () = drained => Ok(false),
    }
}

pub(super) const FILL: [u8; 16 * 1024] = [b'x'; 16 * 1024];
/// What of a request's body is kept for the answer; the rest is counted.
pub(super) const KEPT_BODY_BYTES: usize = 64 * 1024;
/// How long a draining server waits for the first request of a connection that it accepted.
const LAST_HEAD: Duration = Duration::from_secs(1);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
