//! Tells protocols apart by the first bytes of a connection (SM-028, ID-100, BYD-068).

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::Acceptor;
use std::future::poll_fn;
use tokio::time::{Instant, timeout_at};

use crate::io::Io;

/// How long a beginning that may become TLS or HTTP waits for more (BYD-068).
const UNDECIDED: Duration = Duration::from_secs(5);

/// With `weft.compatibility: istio` fewer bytes than these are held, whatever they are: the header of a TLS record, which
/// the inspection there waits for (BYD-068).
pub const UPSTREAM_LEAST_BYTES: usize = 5;

/// Longest ClientHello with its records (ID-108).
const MAX_HELLO_BYTES: usize = 64 * 1024;

/// A request line this long without an end is taken for HTTP, whose limits then hold.
const LONG_LINE_BYTES: usize = 8 * 1024;

/// What HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What first bytes can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A TLS record with a handshake.
    Tls,
    /// A request line.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// None of these.
    Opaque,
    /// May still become one of them.
    Undecided,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// TLS.
    Tls,
    /// HTTP at a server, which skips empty lines before a request (SM-141).
    Http,
    /// Either, from an application. Empty lines are no HTTP here, so what follows goes on as it is (SM-028, SM-033).
    ClientTlsOrHttp,
}

/// Judges first bytes. Bytes that begin nothing known are opaque at once.
#[must_use]
pub fn judge(bytes: &[u8], among: Among) -> Verdict {
    let Some(first) = bytes.first() else {
        return Verdict::Undecided;
    };
    if among != Among::Http && *first == 0x16 {
        return match bytes.get(1) {
            None => Verdict::Undecided,
            Some(0x03) => Verdict::Tls,
            Some(_) => Verdict::Opaque,
        };
    }
    let begins_empty = matches!(first, b'\r' | b'\n');
    if among == Among::Tls || (among == Among::ClientTlsOrHttp && begins_empty) {
        return Verdict::Opaque;
    }
    if bytes.starts_with(PREFACE) {
        return Verdict::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::Undecided;
    }
    judge_line(bytes)
}

/// `method SP target SP HTTP/x.y`, as far as it is there. Empty lines before it are harmless (SM-141).
fn judge_line(bytes: &[u8]) -> Verdict {
    /// Longest method that is believed.
    const METHOD_BYTES: usize = 64;
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'));
    let Some(start) = start.filter(|start| *start <= 8) else {
        return if bytes.len() <= 8 {
            Verdict::Undecided
        } else {
            Verdict::Opaque
        };
    };
    let line = &bytes[start..];
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let method = line.iter().take_while(|b| is_token(b)).count();
    if method > METHOD_BYTES {
        return Verdict::Opaque;
    }
    match line.get(method) {
        None => return Verdict::Undecided,
        Some(b' ') if method > 0 => {}
        Some(_) => return Verdict::Opaque,
    }
    let rest = &line[method + 1..];
    let rest = &rest[rest.iter().take_while(|b| **b == b' ').count()..];
    let Some(first) = rest.first() else {
        return Verdict::Undecided;
    };
    let absolute = |prefix: &[u8]| {
        let length = rest.len().min(prefix.len());
        rest[..length].eq_ignore_ascii_case(&prefix[..length])
    };
    let targets = matches!(first, b'/' | b'*') || absolute(b"http") || line[..method] == *b"CONNECT";
    if !targets {
        return Verdict::Opaque;
    }
    match memchr::memchr(b'\n', rest) {
        None if line.len() >= LONG_LINE_BYTES => Verdict::Http1,
        None => Verdict::Undecided,
        Some(end) => {
            let line = rest[..end].trim_ascii_end();
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            if version.len() < line.len() && version.starts_with(b"HTTP/") {
                Verdict::Http1
            } else {
                Verdict::Opaque
            }
        }
    }
}

/// Reads until the first bytes are judged; what was read is in `buffer`. A client that closes before it sends anything
/// is `None`.
///
/// # Errors
/// That of the read.
pub async fn detect(io: &mut Io, buffer: &mut BytesMut, among: Among) -> io::Result<Option<Verdict>> {
    let mut deadline = None;
    loop {
        match judge(buffer, among) {
            Verdict::Undecided => {}
            verdict => return Ok(Some(verdict)),
        }
        let silent = buffer.is_empty();
        let read = poll_fn(|cx| io.poll_read_into(cx, buffer));
        let count = if silent {
            read.await?
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + UNDECIDED);
            match timeout_at(deadline, read).await {
                Ok(count) => count?,
                Err(_) => return Ok(Some(Verdict::Opaque)),
            }
        };
        if count == 0 {
            return Ok((!buffer.is_empty()).then_some(Verdict::Opaque));
        }
    }
}

/// What a ClientHello says.
pub struct Hello {
    /// SNI, lower case.
    pub server_name: Option<String>,
    /// ALPN list.
    pub alpn: Vec<Vec<u8>>,
}

/// Reads a whole ClientHello, in however many segments and records (ID-108). `buffer` keeps all that was read.
///
/// # Errors
/// That of the read; `InvalidData` for what is no ClientHello or too long.
pub async fn hello(io: &mut Io, buffer: &mut BytesMut) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        while fed < buffer.len() {
            let mut unread = &buffer[fed..];
            let taken = acceptor.read_tls(&mut unread)?;
            fed += taken;
            if taken == 0 {
                break;
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let server_name = hello.server_name().map(str::to_ascii_lowercase);
                    let alpn = hello
                        .alpn()
                        .map(|list| list.map(<[u8]>::to_vec).collect())
                        .unwrap_or_default();
                    return Ok(Hello { server_name, alpn });
                }
                Err((e, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
        if buffer.len() > MAX_HELLO_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "ClientHello too long"));
        }
        if poll_fn(|cx| io.poll_read_into(cx, buffer)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // spec: SM-028, SM-031, BYD-068
    #[test]
    fn first_bytes_are_judged_as_soon_as_they_decide() {
        let all = |bytes: &[u8]| judge(bytes, Among::ClientTlsOrHttp);
        assert_eq!(all(b"\x16\x03\x01"), Verdict::Tls);
        assert_eq!(all(b"\x16"), Verdict::Undecided);
        assert_eq!(all(b"\x16\x04"), Verdict::Opaque);
        assert_eq!(all(b"GET / HTTP/1.1\r\n"), Verdict::Http1);
        assert_eq!(all(b"GET  /  HTTP/1.0\n"), Verdict::Http1);
        assert_eq!(all(b"OPTIONS * HTTP/1.1\r\n"), Verdict::Http1);
        assert_eq!(all(b"GET http://a/ HTTP/1.1\r\n"), Verdict::Http1);
        assert_eq!(all(b"GE"), Verdict::Undecided);
        assert_eq!(all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Verdict::Http2);
        assert_eq!(all(b"PRI * HT"), Verdict::Undecided);
        assert_eq!(all(b"hello world"), Verdict::Opaque);
        assert_eq!(all(b"\x00\x01"), Verdict::Opaque);
        assert_eq!(all(b"GET /\r\n"), Verdict::Opaque);
        assert_eq!(judge(b"GET / HTTP/1.1\r\n", Among::Tls), Verdict::Opaque);
        assert_eq!(judge(b"\x16\x03\x01", Among::Http), Verdict::Opaque);
    }

    // spec: SM-028, SM-033, SM-141
    #[test]
    fn a_server_skips_empty_lines_that_no_client_begins_http_with() {
        let late = b"\r\n\nGET / HTTP/1.1\r\n";
        assert_eq!(judge(late, Among::Http), Verdict::Http1);
        assert_eq!(judge(&late[..3], Among::Http), Verdict::Undecided);
        assert_eq!(judge(&late[..1], Among::ClientTlsOrHttp), Verdict::Opaque);
    }

    proptest! {
        // spec: SM-028
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0usize..40) {
            for among in [Among::Tls, Among::Http, Among::ClientTlsOrHttp] {
                let before = judge(&bytes[..cut.min(bytes.len())], among);
                if before != Verdict::Undecided {
                    prop_assert_eq!(judge(&bytes, among), before);
                }
            }
        }
    }
}
