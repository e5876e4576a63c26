//! TCP ports that answer each line, with or without speaking first.

use anyhow::Result;
use tokio::io::AsyncWriteExt as _;

use super::Draining;
use crate::answer::{Identity, Peer};
use crate::stream::Buffered;

/// Answers each line with `<version> <pod> <peer address>: <line>` until the client has no more.
///
/// A draining server answers what has arrived and closes.
pub(super) async fn serve(
    mut conn: Buffered,
    server: &Identity,
    peer: &Peer,
    banner: bool,
    mut draining: Draining,
) -> Result<()> {
    if banner {
        conn.write_all(format!("banner {} {}\n", server.version, server.pod).as_bytes())
            .await?;
        conn.flush().await?;
    }
    loop {
        while let Some(end) = conn.buffer.iter().position(|&byte| byte == b'\n') {
            let line = conn.buffer.split_to(end + 1);
            answer(&mut conn, server, peer, &line).await?;
        }
        if conn.buffer.len() > LINE_LIMIT {
            return Ok(());
        }
        let read = tokio::select! {
            biased;
            read = conn.fill() => read?,
            () = draining.started() => 0,
        };
        if read == 0 {
            if !conn.buffer.is_empty() {
                let rest = conn.buffer.split();
                answer(&mut conn, server, peer, &rest).await?;
            }
            return Ok(conn.shutdown().await?);
        }
    }
}

async fn answer(conn: &mut Buffered, server: &Identity, peer: &Peer, line: &[u8]) -> Result<()> {
    let mut out = format!("{} {} {}: ", server.version, server.pod, peer.src).into_bytes();
    out.extend_from_slice(line.trim_ascii_end());
    out.push(b'\n');
    conn.write_all(&out).await?;
    Ok(conn.flush().await?)
}

const LINE_LIMIT: usize = 1024 * 1024;
