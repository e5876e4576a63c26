//! A WebSocket that sends back what it gets (RFC 6455).

use anyhow::{Result, bail};
use bytes::Buf as _;
use sha1::{Digest as _, Sha1};
use tokio::io::AsyncWriteExt as _;

use super::Draining;
use crate::http1::RequestHead;
use crate::stream::Buffered;

/// Whether a request asks to become a WebSocket.
pub(super) fn wanted(head: &RequestHead) -> bool {
    head.headers.has_token("connection", "upgrade")
        && head.headers.has_token("upgrade", "websocket")
        && head.headers.first("sec-websocket-key").is_some()
}

/// Accepts, then echoes data frames, answers pings, and closes when the client or the server does.
pub(super) async fn serve(mut conn: Buffered, head: &RequestHead, mut draining: Draining) -> Result<()> {
    let accept = accept(head.headers.first("sec-websocket-key").unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    );
    conn.write_all(answer.as_bytes()).await?;
    conn.flush().await?;
    let mut is_known = false;
    loop {
        if !is_known && let Some(first) = conn.buffer.first() {
            // Without an extension the reserved bits are 0: other bytes are no frame.
            if first & 0x70 != 0 {
                return echo(conn).await;
            }
            is_known = true;
        }
        while let Some(frame) = Frame::take(&mut conn)? {
            let reply = match frame.opcode {
                PING => PONG,
                PONG => continue,
                other => other,
            };
            conn.write_all(&written(frame.last, reply, &frame.payload)).await?;
            conn.flush().await?;
            if frame.opcode == CLOSE {
                return Ok(conn.shutdown().await?);
            }
        }
        let read = tokio::select! {
            biased;
            read = conn.fill() => read?,
            () = draining.started() => {
                conn.write_all(&written(true, CLOSE, &GOING_AWAY.to_be_bytes())).await?;
                return Ok(conn.shutdown().await?);
            }
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Sends back what comes: for clients that look at the bytes of an upgraded connection and no more.
async fn echo(mut conn: Buffered) -> Result<()> {
    loop {
        let bytes = conn.buffer.split();
        conn.write_all(&bytes).await?;
        conn.flush().await?;
        if conn.fill().await? == 0 {
            return Ok(conn.shutdown().await?);
        }
    }
}

struct Frame {
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// Takes a whole frame from the buffer; `None` when there is none yet.
    fn take(conn: &mut Buffered) -> Result<Option<Self>> {
        let buffer = &mut conn.buffer;
        let (Some(&first), Some(&second)) = (buffer.first(), buffer.get(1)) else {
            return Ok(None);
        };
        let (length_bytes, short) = match second & 0x7f {
            126 => (2, None),
            127 => (8, None),
            short => (0, Some(usize::from(short))),
        };
        let masked = second & 0x80 != 0;
        let head = 2 + length_bytes + if masked { 4 } else { 0 };
        if buffer.len() < head {
            return Ok(None);
        }
        let length = match short {
            Some(length) => length,
            None => {
                let bytes = &buffer[2..2 + length_bytes];
                let length = bytes.iter().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
                usize::try_from(length).unwrap_or(usize::MAX)
            }
        };
        if length > FRAME_LIMIT {
            bail!("frame of {length} bytes: at most {FRAME_LIMIT} are accepted");
        }
        if buffer.len() < head + length {
            return Ok(None);
        }
        let mask: [u8; 4] = if masked {
            [0, 1, 2, 3].map(|i| buffer[head - 4 + i])
        } else {
            [0; 4]
        };
        let payload = buffer[head..head + length]
            .iter()
            .enumerate()
            .map(|(i, byte)| byte ^ mask[i % 4])
            .collect();
        buffer.advance(head + length);
        Ok(Some(Self {
            last: first & 0x80 != 0,
            opcode: first & 0x0f,
            payload,
        }))
    }
}

/// A frame of a server: never masked.
fn written(last: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![if last { 0x80 } else { 0 } | opcode];
    match payload.len() {
        length @ 0..=125 => out.push(length as u8),
        length @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.trim().as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    data_encoding::BASE64.encode(&hash.finalize())
}

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const GOING_AWAY: u16 = 1001;
const FRAME_LIMIT: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_standard() {
        // RFC 6455, section 1.3
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
