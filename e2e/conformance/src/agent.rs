//! Talks to the agents of the stage's pods: all through the one that this machine reaches.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::headers::Headers;

/// What an agent tells of one request that it sent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) status: Option<u16>,
    pub(crate) version: Option<String>,
    pub(crate) interim: Vec<u16>,
    pub(crate) headers: Headers,
    pub(crate) body: Value,
    pub(crate) trailers: Headers,
    pub(crate) transfer: Option<String>,
    pub(crate) after: Option<String>,
    pub(crate) closed: Option<bool>,
    pub(crate) error: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) server_certificate: Option<Certificate>,
    pub(crate) alpn: Option<String>,
    pub(crate) ms: f64,
}

/// Who a TLS server said it is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) subject: String,
    pub(crate) names: Vec<String>,
}

/// A request as an echo server saw it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Seen {
    pub(crate) pod: String,
    pub(crate) version: String,
    pub(crate) port: u16,
    pub(crate) proto: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) headers: Headers,
    pub(crate) trailers: Headers,
    pub(crate) transfer: String,
    pub(crate) body: String,
    pub(crate) src: SocketAddr,
    pub(crate) conn: u64,
    pub(crate) tls: Option<Value>,
}

/// The way to all agents.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    /// The agent that hands on.
    pub(crate) gate: SocketAddr,
}

impl Agents {
    /// Has the pod at an address send a job.
    pub(crate) async fn send(&self, pod: &str, job: &Value, limit: Duration) -> Result<Vec<Report>> {
        let answer = self.ask(pod, "POST", "/send", &job.to_string(), limit).await?;
        serde_json::from_slice(&answer).context("reports of an agent")
    }

    /// The requests that the pod at an address has seen since the last such question.
    pub(crate) async fn hits(&self, pod: &str) -> Result<Vec<Seen>> {
        let answer = self.ask(pod, "GET", "/hits", "", Duration::from_secs(10)).await?;
        serde_json::from_slice(&answer).context("hits of an agent")
    }

    async fn ask(&self, pod: &str, method: &str, path: &str, body: &str, limit: Duration) -> Result<Vec<u8>> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: agent\r\nx-relay: {pod}:{PORT}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            body.len()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(self.gate).await?;
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            let mut answer = Vec::new();
            // What forwards the connection may tell of its end a second later.
            while !Answer::of(&answer)?.is_some_and(|answer| answer.is_whole) && stream.read_buf(&mut answer).await? > 0
            {
            }
            anyhow::Ok(answer)
        };
        let answer = timeout(limit, exchange).await;
        let answer = answer
            .with_context(|| format!("the agent of {pod} did not answer within {limit:?}"))?
            .with_context(|| format!("ask the agent of {pod}"))?;
        let Some(answer) = Answer::of(&answer)? else {
            bail!("the agent of {pod} broke off");
        };
        if answer.status != 200 {
            bail!(
                "the agent of {pod} refuses: {}",
                String::from_utf8_lossy(answer.body).trim()
            );
        }
        Ok(answer.body.to_vec())
    }
}

/// What an agent answers, as far as it is there.
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
    /// It is there to the end that its Content-Length says.
    is_whole: bool,
}

impl<'a> Answer<'a> {
    /// `None` before the end of its head.
    fn of(bytes: &'a [u8]) -> Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(head) = response.parse(bytes).context("answer of an agent")? else {
            return Ok(None);
        };
        let body = &bytes[head..];
        let mut fields = response.headers.iter();
        let length = fields.find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
        Ok(Some(Self {
            status: response.code.unwrap_or_default(),
            body,
            is_whole: length.is_some_and(|length| body.len() >= length),
        }))
    }
}

/// The body that so many letters y are.
pub(crate) fn filled(size: usize) -> String {
    "y".repeat(size)
}

/// Bytes of a text as JSON carries them: characters below 256 are bytes, others UTF-8.
pub(crate) fn bytes(text: &str) -> Value {
    let latin: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    let bytes = latin.unwrap_or_else(|| text.as_bytes().to_vec());
    json!(data_encoding::BASE64.encode(&bytes))
}

/// Port of the agents.
pub(crate) const PORT: u16 = 15999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_with_their_last_byte() {
        let is_whole = |bytes: &[u8]| Answer::of(bytes).expect("HTTP").is_some_and(|answer| answer.is_whole);
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]";
        assert!(is_whole(whole));
        for length in 0..whole.len() {
            assert!(!is_whole(&whole[..length]), "{length}");
        }
        // Without a length the end of the connection is the answer's.
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n\r\n[]"));
    }
}
