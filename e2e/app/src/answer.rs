//! What the server answers: who it is and what it saw.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::directive::{Close, Directives, FailMode};
use crate::frontend::Frontend;
use crate::http1::Headers;

/// Who answers: the pod's facts, from arguments or the downward API.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Identity {
    pub(crate) pod: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
}

/// A request as the server saw it, and who the server is: the JSON of an answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Seen {
    #[serde(flatten)]
    pub(crate) server: Identity,
    /// The port that the server listens on.
    pub(crate) port: u16,
    pub(crate) proto: &'static str,
    pub(crate) method: String,
    /// The request target as received.
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) headers: Headers,
    pub(crate) trailers: Headers,
    /// How the body was delimited: chunked, length, none.
    pub(crate) transfer: &'static str,
    pub(crate) body: String,
    pub(crate) body_len: u64,
    /// `X-Forwarded-Client-Cert`, all values.
    pub(crate) xfcc: Option<String>,
    /// The SPIFFE id of the caller, as the last element of `xfcc` names it.
    pub(crate) caller: Option<String>,
    pub(crate) src: SocketAddr,
    /// Serial number of the connection.
    pub(crate) conn: u64,
    /// Serial number among the requests with the same `key`.
    pub(crate) attempt: u64,
    pub(crate) tls: Option<Tls>,
}

/// What the handshake of a TLS connection agreed on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tls {
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Option<String>,
    pub(crate) version: Option<String>,
}

/// What a listener knows of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) port: u16,
    pub(crate) src: SocketAddr,
    pub(crate) conn: u64,
    pub(crate) tls: Option<Tls>,
}

/// A request, complete, of either protocol.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) proto: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) headers: Headers,
    pub(crate) trailers: Headers,
    pub(crate) transfer: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) body_len: u64,
}

/// What happens to a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Respond(Response),
    Close(Close),
}

/// A response of either protocol.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) chunked: bool,
    pub(crate) trailers: Vec<(String, String)>,
    /// An answer of trailers only, with this grpc-status.
    pub(crate) grpc: Option<u32>,
}

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// So many letters.
    Fill(u64),
}

impl Default for Body {
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

impl Body {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Fill(length) => *length,
        }
    }
}

/// The server's state: shared by all connections.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) identity: Identity,
    /// How long half of a body is all of it (`close=mid`).
    pub(crate) half_way: Duration,
    frontend: Option<Frontend>,
    connections: AtomicU64,
    attempts: Mutex<HashMap<String, u64>>,
    hits: Mutex<VecDeque<Seen>>,
}

impl App {
    /// A server that answers itself, or for an upstream.
    pub(crate) fn new(identity: Identity, half_way: Duration, frontend: Option<Frontend>) -> Self {
        Self {
            identity,
            half_way,
            frontend,
            connections: AtomicU64::new(0),
            attempts: Mutex::new(HashMap::new()),
            hits: Mutex::new(VecDeque::new()),
        }
    }

    /// The next serial number of a connection, from 1.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request, peer: &Peer) -> Outcome {
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        match path.as_str() {
            "/healthz" => return Outcome::Respond(text(200, "ok\n")),
            "/hits" => return Outcome::Respond(self.take_hits()),
            _ => {}
        }
        let directives = match Directives::of(&request.headers, &request.path) {
            Ok(directives) => directives,
            Err(message) => return Outcome::Respond(text(400, &format!("{message}\n"))),
        };
        let attempt = directives.key.as_deref().map_or(1, |key| self.count(key));
        let seen = self.see(request, peer, attempt);
        self.record(&seen);
        if !directives.delay.is_zero() {
            tokio::time::sleep(directives.delay).await;
        }
        if let Some(fail) = directives.fail.as_ref().filter(|fail| attempt <= fail.attempts) {
            return match fail.mode {
                FailMode::Close(close) => Outcome::Close(close),
                FailMode::Status(status) => Outcome::Respond(self.respond(&seen, status, &directives).await),
            };
        }
        if let Some(close) = directives.close {
            return Outcome::Close(close);
        }
        Outcome::Respond(self.respond(&seen, directives.status.unwrap_or(200), &directives).await)
    }

    async fn respond(&self, seen: &Seen, status: u16, directives: &Directives) -> Response {
        let (status, body) = match (directives.size, &self.frontend) {
            (Some(size), _) => (status, Body::Fill(size)),
            (None, Some(frontend)) if directives.status.is_none() && status == 200 => {
                let (status, answer) = frontend.answer(seen).await;
                (status, Body::Bytes(json(&answer)))
            }
            (None, _) => (status, Body::Bytes(json(seen))),
        };
        Response {
            status,
            headers: directives.headers.clone(),
            body,
            chunked: directives.chunked || !directives.trailers.is_empty(),
            trailers: directives.trailers.clone(),
            grpc: directives.grpc,
        }
    }

    fn see(&self, request: Request, peer: &Peer, attempt: u64) -> Seen {
        let xfcc: Vec<&str> = request
            .headers
            .0
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-client-cert"))
            .map(|(_, value)| value.as_str())
            .collect();
        let xfcc = (!xfcc.is_empty()).then(|| xfcc.join(","));
        Seen {
            server: self.identity.clone(),
            port: peer.port,
            proto: request.proto,
            method: request.method,
            path: request.path,
            host: request.host,
            headers: request.headers,
            trailers: request.trailers,
            transfer: request.transfer,
            body: String::from_utf8_lossy(&request.body).into_owned(),
            body_len: request.body_len,
            caller: xfcc.as_deref().and_then(caller),
            xfcc,
            src: peer.src,
            conn: peer.conn,
            attempt,
            tls: peer.tls.clone(),
        }
    }

    /// Counts the attempts with a key. Keys that nobody has used for long make room for new ones.
    fn count(&self, key: &str) -> u64 {
        let mut attempts = lock(&self.attempts);
        if attempts.len() >= KEY_LIMIT && !attempts.contains_key(key) {
            attempts.clear();
        }
        let count = attempts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn record(&self, seen: &Seen) {
        let mut hits = lock(&self.hits);
        if hits.len() == HIT_LIMIT {
            hits.pop_front();
        }
        hits.push_back(seen.clone());
    }

    /// The requests since the last call, oldest first.
    pub(crate) fn take_hits(&self) -> Response {
        let hits: Vec<Seen> = lock(&self.hits).drain(..).collect();
        document(&hits)
    }
}

/// A response of JSON.
pub(crate) fn document<T: Serialize>(value: &T) -> Response {
    Response {
        status: 200,
        body: Body::Bytes(json(value)),
        ..Response::default()
    }
}

/// A response of text, for people.
pub(crate) fn text(status: u16, text: &str) -> Response {
    Response {
        status,
        headers: vec![("content-type".to_owned(), "text/plain; charset=utf-8".to_owned())],
        body: Body::Bytes(text.as_bytes().to_vec()),
        ..Response::default()
    }
}

/// The SPIFFE id in the last element of an `X-Forwarded-Client-Cert`: the hop next to the server.
fn caller(xfcc: &str) -> Option<String> {
    let last = xfcc.rsplit(',').next()?;
    let uri = last.split(';').find_map(|pair| pair.trim().strip_prefix("URI="))?;
    Some(uri.trim_matches('"').to_owned())
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("strings, numbers and lists of them are JSON");
    bytes.push(b'\n');
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const KEY_LIMIT: usize = 65_536;
const HIT_LIMIT: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_who_stands_next_to_the_server() {
        let xfcc = "By=spiffe://c/ns/a/sa/x;Hash=1;URI=spiffe://c/ns/a/sa/first,\
                    By=spiffe://c/ns/a/sa/y;Hash=2;Subject=\"\";URI=spiffe://c/ns/b/sa/last";
        assert_eq!(caller(xfcc).as_deref(), Some("spiffe://c/ns/b/sa/last"));
        assert_eq!(caller("By=x;Hash=1"), None);
    }
}
