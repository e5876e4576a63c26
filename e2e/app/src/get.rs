//! One request, or a few, and what came back as JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::client::{Scheme, Target};
use crate::job::{Job, Report};

/// What to send, and how.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// http, h2c, grpc, https, h2, tcp (one line), banner (the server speaks first) or tls (one line)
    url: Target,
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// Header, `Name: value`, sent in this order and case; may be repeated
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Another Host or :authority; `-` sends no Host
    #[arg(long)]
    host: Option<String>,
    /// Body, gRPC message, or line
    #[arg(long, short = 'd', default_value = "")]
    body: String,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    http2: bool,
    /// gRPC: the body is one message
    #[arg(long)]
    grpc: bool,
    /// HTTP/1.0
    #[arg(long)]
    http10: bool,
    /// Send the body in chunks
    #[arg(long)]
    chunked: bool,
    /// The request target as sent, instead of the URL's path
    #[arg(long)]
    target: Option<String>,
    /// HOST:PORT dialled instead of the URL's
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// Bytes sent as they are instead of a request; \r, \n, \t, \0, \\ and \xHH are escapes
    #[arg(long)]
    raw: Option<String>,
    /// Server name of TLS; the host by default
    #[arg(long)]
    sni: Option<String>,
    /// ALPN protocols of TLS; may be repeated
    #[arg(long)]
    alpn: Vec<String>,
    /// Certificates to trust, PEM; without them any certificate is accepted
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Client private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Milliseconds until the answer must be complete
    #[arg(long, default_value_t = 20_000, value_name = "MS")]
    timeout_ms: u64,
    /// Send so many requests, one after the other, and print a line for each
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Milliseconds between requests
    #[arg(long, default_value_t = 0, value_name = "MS")]
    gap_ms: u64,
    /// One connection for all requests
    #[arg(long)]
    reuse: bool,
    /// Exit with 22 when a status is 400 or more, or an error came instead
    #[arg(long)]
    fail: bool,
}

/// `Name: value`, for arguments.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?}: `Name: value` is accepted"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Sends, prints, and exits with 1 when no answer came.
pub(crate) async fn get(args: GetArgs) -> Result<ExitCode> {
    let fail = args.fail;
    let mut outcome = Ok(ExitCode::SUCCESS);
    let each = |report: Report| {
        let refused = report.status.is_some_and(|status| status >= 400);
        let code = if fail && (refused || report.error.is_some()) {
            Some(ExitCode::from(22))
        } else if report.error.is_some() && report.status.is_none() {
            Some(ExitCode::FAILURE)
        } else {
            None
        };
        match serde_json::to_string(&report).context("write the report") {
            Ok(line) => println!("{line}"),
            Err(error) => outcome = Err(error),
        }
        if let (Some(code), Ok(kept)) = (code, &mut outcome) {
            *kept = code;
        }
    };
    args.job()?.run(each).await?;
    outcome
}

impl GetArgs {
    fn job(self) -> Result<Job> {
        let mut url = self.url;
        url.scheme = match (url.scheme, self.grpc, self.http2) {
            (Scheme::Http, true, _) => Scheme::Grpc,
            (Scheme::Http, _, true) => Scheme::H2c,
            (Scheme::Https, _, true) => Scheme::H2,
            (scheme, ..) => scheme,
        };
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let identity = match (&self.cert, &self.key) {
            (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
            _ => None,
        };
        Ok(Job {
            url,
            method: self.method,
            headers: self.header,
            host: self.host,
            body: self.body,
            http10: self.http10,
            chunked: self.chunked,
            target: self.target,
            connect: self.connect,
            raw: self.raw.as_deref().map(unescaped),
            after: None,
            sni: self.sni,
            alpn: self.alpn,
            ca: self.ca.as_ref().map(read).transpose()?,
            identity,
            timeout_ms: self.timeout_ms,
            first: 1,
            count: self.count,
            parallel: 1,
            gap_ms: self.gap_ms,
            reuse: self.reuse,
            watch_ms: 0,
        })
    }
}

/// Bytes for text with `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH`; other backslashes stay.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || bytes.get(at + 2..at + 4).and_then(|h| std::str::from_utf8(h).ok());
        let (byte, length) = match (bytes[at], bytes.get(at + 1)) {
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'0')) => (0, 2),
            (b'\\', Some(b'\\')) => (b'\\', 2),
            (b'\\', Some(b'x')) => match hex().and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => (byte, 4),
                None => (b'\\', 1),
            },
            (byte, _) => (byte, 1),
        };
        out.push(byte);
        at += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_bytes() {
        assert_eq!(unescaped(r"GET /\r\n\x00\xff\\\q\x4"), b"GET /\r\n\0\xff\\\\q\\x4");
    }

    #[test]
    fn headers_are_split_at_the_first_colon() {
        assert_eq!(header("X-A: b:c").expect("valid"), ("X-A".to_owned(), "b:c".to_owned()));
        assert!(header("none").is_err());
    }
}
