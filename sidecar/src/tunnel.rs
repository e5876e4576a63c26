//! Opaque connections through an HTTP proxy (DR-125 ff.).

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use weft_bundle::wire::Tunnel;

use crate::io::Io;

/// Longest head of the HTTP proxy's answer.
const LONGEST_HEAD: usize = 16 * 1024;

/// Asks the HTTP proxy for the target. What it sent after its answer is in front of the stream afterwards.
///
/// # Errors
/// The connection failed, or the proxy answered other than 2xx (DR-127).
pub async fn open(stream: &mut Io, tunnel: &Tunnel) -> io::Result<()> {
    let host = if tunnel.host.contains(':') && !tunnel.host.starts_with('[') {
        format!("[{}]", tunnel.host)
    } else {
        tunnel.host.clone()
    };
    let target = format!("{host}:{}", tunnel.port);
    let request = if tunnel.post {
        // The body is the stream and ends with it.
        format!("POST / HTTP/1.1\r\nHost: {target}\r\nTransfer-Encoding: identity\r\n\r\n")
    } else {
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
    };
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = BytesMut::new();
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if buffer.len() > LONGEST_HEAD {
            return Err(io::Error::other("the answer of the tunnel has no end"));
        }
        if std::future::poll_fn(|cx| stream.poll_read_into(cx, &mut buffer)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head: Vec<u8> = buffer.split_to(end).to_vec();
    if !buffer.is_empty() {
        stream.prepend(buffer.freeze());
    }
    let status = head
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| head.strip_prefix(b"HTTP/1.0 "));
    match status {
        Some([b'2', b'0'..=b'9', b'0'..=b'9', b' ' | b'\r', ..]) => Ok(()),
        _ => {
            let line = String::from_utf8_lossy(head.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
            Err(io::Error::other(format!("the tunnel was refused: {line}")))
        }
    }
}
