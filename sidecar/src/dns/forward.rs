//! Queries for other names: asked of the servers as they came, answered as they are answered.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{HEADER, RESPONSE, TRUNCATED, UDP_MOST, too_long};
use crate::io::{Dial, Source, dial};

/// How a client came, and its query goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

impl Transport {
    /// Longest answer for a client that states how much it takes in a datagram, or does not (RFC 6891, section 6.2.3).
    #[must_use]
    pub fn limit(self, stated: Option<u16>) -> usize {
        match self {
            Self::Udp => stated.map_or(512, |stated| usize::from(stated.max(512))),
            Self::Tcp => usize::from(u16::MAX),
        }
    }
}

/// Asks servers.
#[derive(Debug, Clone)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    /// Mark of the proxy's own packets (NET-112).
    mark: Option<u32>,
    limit: Duration,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is nobody.
    #[error("resolv.conf names no server")]
    NoServer,
    /// Nobody did in time.
    #[error("no answer of {servers:?} within {limit:?}")]
    Timeout {
        /// Who was asked.
        servers: Vec<SocketAddr>,
        /// How long.
        limit: Duration,
    },
    /// The last of them could not be asked.
    #[error("ask {server}")]
    Io {
        /// Who.
        server: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Forwarder {
    /// Asks `servers` in their order, for five seconds together (NET-094).
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, mark: Option<u32>) -> Self {
        Self {
            servers,
            mark,
            limit: LIMIT,
        }
    }

    /// The answer of the first server that has one. A server that is late or fails does not keep the next one from being
    /// asked; one that was late may still be the first to answer.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn ask(&self, query: &[u8], transport: Transport, limit: usize) -> Result<Vec<u8>, ForwardError> {
        let begin = Instant::now();
        let count = u32::try_from(self.servers.len()).unwrap_or(u32::MAX).max(1);
        let turn = self.limit / count;
        let mut servers = self.servers.iter().copied();
        let mut asked = FuturesUnordered::new();
        let mut next = begin;
        let mut refusal = None;
        let mut failure = ForwardError::NoServer;
        let end = sleep_until(begin + self.limit);
        tokio::pin!(end);
        loop {
            if (asked.is_empty() || Instant::now() >= next)
                && let Some(server) = servers.next()
            {
                next = Instant::now() + turn;
                asked.push(async move { (server, self.ask_one(server, query, transport, limit).await) });
            }
            if asked.is_empty() {
                return refusal.ok_or(failure);
            }
            tokio::select! {
                Some((server, answer)) = asked.next() => {
                    match answer {
                        Ok(answer) if is_refusal(&answer) => refusal = Some(answer),
                        Ok(answer) => return Ok(answer),
                        Err(source) => failure = ForwardError::Io { server, source },
                    }
                    next = Instant::now();
                }
                () = sleep_until(next), if servers.len() > 0 => {}
                () = &mut end => {
                    let servers = self.servers.clone();
                    let limit = self.limit;
                    return refusal.ok_or(ForwardError::Timeout { servers, limit });
                }
            }
        }
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        query: &[u8],
        transport: Transport,
        limit: usize,
    ) -> io::Result<Vec<u8>> {
        if transport == Transport::Tcp {
            return self.ask_connection(server, query).await;
        }
        let is_cut = |answer: &[u8]| answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
        let short = match self.ask_datagram(server, query).await? {
            Some(answer) if !is_cut(&answer) => {
                let fits = answer.len() <= limit;
                return Ok(if fits { answer } else { too_long(query) });
            }
            short => short,
        };
        // A server that is not there over TCP leaves the client with what came.
        let whole = timeout(WHOLE_LIMIT, self.ask_connection(server, query)).await;
        let whole = whole.ok().and_then(Result::ok).filter(|answer| answer.len() <= limit);
        let short = short.filter(|answer| answer.len() <= limit);
        Ok(whole.or(short).unwrap_or_else(|| too_long(query)))
    }

    /// `None`: an answer came that is longer than what is taken.
    async fn ask_datagram(&self, server: SocketAddr, query: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        // A port of the kernel's choice for each query, and no other sender's datagrams.
        socket.connect(&server.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(UDP_MOST) + 1];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let Some(answer) = buffer.get(..length).filter(|answer| is_answer(query, answer)) else {
                continue;
            };
            return Ok((length <= usize::from(UDP_MOST)).then(|| answer.to_vec()));
        }
    }

    async fn ask_connection(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        let how = Dial {
            mark: self.mark,
            source: Source::Any,
        };
        let mut stream = dial(server, how).await?;
        stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
        let length = stream.read_u16().await?;
        // As it comes: who states a length need not keep to it.
        let mut answer = Vec::new();
        let read = (&mut stream).take(length.into()).read_to_end(&mut answer).await?;
        if read == usize::from(length) && is_answer(query, &answer) {
            Ok(answer)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not an answer to the query"))
        }
    }
}

/// A response with the id and the question of the query; some servers leave the question out of failures.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let is_response = answer.len() >= HEADER && answer[2] & RESPONSE != 0 && query.get(..2) == answer.get(..2);
    let question = |message: &[u8]| Some(message.get(HEADER..question_end(message)?)?.to_ascii_lowercase());
    let asked = question(query);
    let has_none = answer.get(4..6) == Some(&[0, 0]);
    is_response && (has_none || asked.is_none() || question(answer) == asked)
}

/// Whether the next server may know better, as the C library sees it: SERVFAIL, NOTIMP, REFUSED.
fn is_refusal(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0x0f, 2 | 4 | 5))
}

/// Where the only question of a message ends (RFC 1035, section 4.1.2); `None` where there is not exactly one, or its
/// name is none.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6) != Some(&[0, 1]) {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            // Pointers have nothing to point to yet.
            1..64 => at += length,
            _ => return None,
        }
        if at > HEADER + 255 {
            return None;
        }
    }
    let end = at + 4;
    (end <= message.len()).then_some(end)
}

/// For all servers together.
const LIMIT: Duration = Duration::from_secs(5);

/// For what did not fit a datagram.
const WHOLE_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
