//! One exchange over HTTP/1.x, with nothing added that the caller did not ask for.

use tokio::io::AsyncWriteExt as _;

use super::{Call, Dial, Failure, Reply};
use crate::http1::{BodyReader, Headers, read_response, write_chunk, write_headers};
use crate::stream::Buffered;

/// Sends a request and reads the whole response.
///
/// # Errors
/// What happened before the response's head was complete; later failures are in [`Reply::broken`].
pub(crate) async fn exchange(conn: &mut Buffered, dial: &Dial, call: &Call) -> Result<Reply, Failure> {
    send(conn, dial, call).await?;
    receive(conn, &call.method).await
}

/// Sends a request.
pub(crate) async fn send(conn: &mut Buffered, dial: &Dial, call: &Call) -> Result<(), Failure> {
    let mut headers = Headers(call.headers.clone());
    if headers.first("host").is_none() && call.host.as_deref() != Some("") {
        let host = call.host.as_ref().unwrap_or(&dial.target.authority);
        headers.0.insert(0, ("Host".to_owned(), host.clone()));
    }
    if call.chunked {
        headers.push("Transfer-Encoding", "chunked");
    } else if headers.first("content-length").is_none()
        && (!call.body.is_empty() || matches!(call.method.as_str(), "POST" | "PUT" | "PATCH"))
    {
        headers.push("Content-Length", &call.body.len().to_string());
    }
    let target = match &dial.proxy {
        Some(_) if call.path.starts_with('/') => format!("http://{}{}", dial.target.authority, call.path),
        _ => call.path.clone(),
    };
    let mut out = format!("{} {target} HTTP/1.{}\r\n", call.method, call.minor).into_bytes();
    write_headers(&mut out, &headers.0);
    if call.chunked {
        if !call.body.is_empty() {
            write_chunk(&mut out, &call.body);
        }
        out.extend_from_slice(b"0\r\n\r\n");
    } else {
        out.extend_from_slice(&call.body);
    }
    send_bytes(conn, &out).await
}

/// Sends bytes as they are.
pub(crate) async fn send_bytes(conn: &mut Buffered, bytes: &[u8]) -> Result<(), Failure> {
    let sent = async {
        conn.write_all(bytes).await?;
        conn.flush().await
    };
    sent.await.map_err(|source| Failure::Send { source })
}

/// Reads the response to a request of a method.
pub(crate) async fn receive(conn: &mut Buffered, method: &str) -> Result<Reply, Failure> {
    let mut interim = Vec::new();
    let head = loop {
        let head = read_response(conn)
            .await
            .map_err(|source| Failure::Receive { source })?;
        if !(100..200).contains(&head.status) || head.status == 101 {
            break head;
        }
        interim.push(head.status);
    };
    let framing = head.framing(method).map_err(|source| Failure::Receive { source })?;
    let mut reader = BodyReader::new(framing);
    let mut reply = Reply {
        version: if head.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" },
        status: head.status,
        interim,
        reusable: head.keeps_alive() && framing != crate::http1::Framing::UntilClose && head.status != 101,
        headers: head.headers,
        transfer: framing.name(),
        ..Reply::default()
    };
    loop {
        match reader.next(conn).await {
            Ok(Some(piece)) => reply.body.extend_from_slice(&piece),
            Ok(None) => break,
            Err(source) => {
                reply.broken = Some(Failure::Receive { source });
                reply.reusable = false;
                break;
            }
        }
    }
    reply.trailers = reader.trailers;
    Ok(reply)
}
