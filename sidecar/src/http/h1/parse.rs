//! Bytes to heads. What two parsers could read differently is refused (AUTHZ-113..AUTHZ-116, BYD-067).

use std::io;
use std::mem::MaybeUninit;

use bytes::Bytes;
use httparse::{Header, ParserConfig, Request, Response, Status};

use super::MAX_FIELDS;
use crate::http::{Field, Headers, RequestHead, ResponseHead, Version};

/// Why a head is not served.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The connection failed, or ended within the head.
    #[error("read a head")]
    Io(#[from] io::Error),
    /// More than 60 KiB or 100 fields: 431.
    #[error("head too large")]
    TooLarge,
    /// A request line above 64 KiB: closed without an answer.
    #[error("request line too long")]
    LineTooLong,
    /// 400.
    #[error("malformed head: {0}")]
    Malformed(&'static str),
    /// Neither HTTP/1.0 nor HTTP/1.1: 426.
    #[error("unsupported HTTP version")]
    Version,
    /// A transfer coding that is not known: 501.
    #[error("unknown transfer coding")]
    TransferCoding,
}

/// How the length of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Ends with the connection; responses only.
    UntilClose,
}

/// What a request asks its connection to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// Nothing, or h2c, which is removed (SM-136).
    None,
    /// WebSocket (SM-035).
    WebSocket,
    /// Anything else: 403 (SM-136).
    Other,
}

/// A request's head, without what belongs to its hop.
#[derive(Debug)]
pub struct ReceivedRequest {
    /// Head.
    pub head: RequestHead,
    /// Body.
    pub framing: Framing,
    /// The client wants the connection to stay open.
    pub keep_alive: bool,
    /// Upgrade asked for.
    pub upgrade: Upgrade,
    /// `Expect: 100-continue`.
    pub awaits_continue: bool,
    /// Bytes of the head.
    pub bytes: usize,
    /// The target was in absolute form: a request to a proxy.
    pub absolute: bool,
}

/// A response's head, without what belongs to its hop.
#[derive(Debug)]
pub struct ReceivedResponse {
    /// Head.
    pub head: ResponseHead,
    /// Body.
    pub framing: Framing,
    /// The server keeps the connection open.
    pub keep_alive: bool,
}

/// Reads the head of a request, up to and with the empty line.
///
/// # Errors
/// Why it is not served.
pub fn request(bytes: &Bytes) -> Result<ReceivedRequest, HeadError> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = Request::new(&mut []);
    let mut config = ParserConfig::default();
    config.allow_multiple_spaces_in_request_line_delimiters(true);
    match config.parse_request_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(HeadError::Malformed("incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) if names_version(bytes) => return Err(HeadError::Version),
        Err(_) => return Err(HeadError::Malformed("no HTTP request")),
    }
    let version = if parsed.version == Some(0) {
        Version::Http10
    } else {
        Version::Http11
    };
    let slice = |part: &[u8]| bytes.slice_ref(part);
    let method = slice(parsed.method.unwrap_or_default().as_bytes());
    let target = slice(parsed.path.unwrap_or_default().as_bytes());
    let mut headers = collect(bytes, parsed.headers);

    let mut hosts = headers.all("host");
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return Err(HeadError::Malformed("more than one Host"));
    }
    drop(hosts);
    if host.is_none() && version == Version::Http11 {
        return Err(HeadError::Malformed("no Host"));
    }
    let target = Target::parse(&method, target)?;
    let (absolute, scheme) = (target.authority.is_some() && target.absolute, target.scheme);
    let authority = match target.authority {
        Some(authority) => {
            // The authority of an absolute target replaces Host (AUTHZ-115).
            if host.is_some() {
                headers.set(Bytes::from_static(b"Host"), authority.clone());
            } else {
                headers.push_front(Bytes::from_static(b"Host"), authority.clone());
            }
            authority
        }
        None => host.unwrap_or_default(),
    };
    if !is_authority(&authority) {
        return Err(HeadError::Malformed("Host is no authority"));
    }

    let framing = request_framing(&headers, version)?;
    let awaits_continue =
        version == Version::Http11 && framing != Framing::None && headers.has_token("expect", "100-continue");
    let hop = strip_hop(&mut headers, true);
    let keep_alive = match version {
        Version::Http10 => hop.keep_alive && !hop.close,
        _ => !hop.close,
    };
    Ok(ReceivedRequest {
        head: RequestHead {
            version,
            method,
            scheme,
            authority,
            path: target.path,
            headers,
            upgrade: hop.upgrade == Upgrade::WebSocket,
        },
        framing,
        keep_alive,
        upgrade: hop.upgrade,
        awaits_continue,
        bytes: bytes.len(),
        absolute,
    })
}

/// Reads the head of a response, up to and with the empty line. `to_head`: the request's method was HEAD.
///
/// # Errors
/// Why it is not passed on.
pub fn response(bytes: &Bytes, to_head: bool) -> Result<ReceivedResponse, HeadError> {
    let mut fields = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = Response::new(&mut []);
    let config = ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(HeadError::Malformed("incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        Err(_) => return Err(HeadError::Malformed("no HTTP response")),
    }
    let version = if parsed.version == Some(0) {
        Version::Http10
    } else {
        Version::Http11
    };
    let status = parsed.code.filter(|code| *code >= 100);
    let status = status.ok_or(HeadError::Malformed("status below 100"))?;
    let reason = match parsed.reason {
        // httparse gives an empty phrase for one with bytes above 0x7F; the bytes themselves are kept (BYD-020).
        Some("") | None => raw_reason(bytes),
        Some(reason) => bytes.slice_ref(reason.as_bytes()),
    };
    let mut headers = collect(bytes, parsed.headers);
    let framing = response_framing(&headers, version, status, to_head)?;
    let hop = strip_hop(&mut headers, status == 101);
    let keep_alive = framing != Framing::UntilClose
        && match version {
            Version::Http10 => hop.keep_alive && !hop.close,
            _ => !hop.close,
        };
    Ok(ReceivedResponse {
        head: ResponseHead {
            version,
            status,
            reason,
            headers,
        },
        framing,
        keep_alive,
    })
}

/// Trailers, up to and with the empty line; `None` when malformed. Their lines end in CRLF: as part of a chunked body
/// they end where every parser ends them.
#[must_use]
pub fn trailers(bytes: &Bytes) -> Option<Headers> {
    if memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return None;
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(Status::Complete((length, fields))) if length == bytes.len() => Some(collect(bytes, fields)),
        _ => None,
    }
}

/// Size of a chunk from its line; extensions are dropped. At most 16 hex digits, nothing before them.
#[must_use]
pub fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line
        .iter()
        .position(|b| matches!(b, b';' | b' ' | b'\t'))
        .unwrap_or(line.len());
    let (digits, rest) = line.split_at(end);
    let rest = rest.trim_ascii_start();
    if digits.is_empty() || digits.len() > 15 || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    if rest.iter().any(|b| *b < 0x20 && *b != b'\t') {
        return None;
    }
    digits.iter().try_fold(0u64, |size, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(size << 4 | u64::from(value))
    })
}

fn collect(bytes: &Bytes, fields: &[Header<'_>]) -> Headers {
    // Room for what the proxy adds.
    let mut headers = Headers::with_capacity(fields.len() + 8);
    for field in fields {
        headers.push_field(Field {
            name: bytes.slice_ref(field.name.as_bytes()),
            value: if field.value.is_empty() {
                Bytes::new()
            } else {
                bytes.slice_ref(field.value)
            },
        });
    }
    headers
}

/// Whether a request line has its three parts, the last of which is some version of HTTP.
fn names_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut parts = line.split(|b| *b == b' ').filter(|part| !part.is_empty()).skip(2);
    match (
        parts.next().and_then(|version| version.strip_prefix(b"HTTP/")),
        parts.next(),
    ) {
        (Some([major, b'.', minor]), None) => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

/// The phrase of a status line as sent.
fn raw_reason(bytes: &Bytes) -> Bytes {
    let line_end = memchr::memchr(b'\n', bytes).unwrap_or(0);
    let line = bytes[..line_end].strip_suffix(b"\r").unwrap_or(&bytes[..line_end]);
    let mut parts = line.splitn(3, |b| *b == b' ');
    match parts.nth(2) {
        Some(phrase) if !phrase.is_empty() => bytes.slice_ref(phrase),
        _ => Bytes::new(),
    }
}

/// Whether a value can be the authority of a request: no user information, white space or path (AUTHZ-115). Empty is no
/// known host, not an error.
#[must_use]
pub fn is_authority(value: &[u8]) -> bool {
    let forbidden = |b: &u8| matches!(b, b'@' | b' ' | b'\t' | b'/' | b'?' | b'#' | b',' | b'\\') || *b >= 0x7f;
    !value.iter().any(forbidden)
}

struct Target {
    authority: Option<Bytes>,
    absolute: bool,
    scheme: Bytes,
    path: Bytes,
}

impl Target {
    /// Reads a request target (AUTHZ-116). A fragment is cut off (AUTHZ-069).
    fn parse(method: &Bytes, target: Bytes) -> Result<Self, HeadError> {
        if target.iter().any(|b| *b <= 0x20 || *b >= 0x7f) {
            return Err(HeadError::Malformed("target has bytes that no URI has"));
        }
        let target = match memchr::memchr(b'#', &target) {
            Some(end) => target.slice(..end),
            None => target,
        };
        let bare = |path: Bytes| Self {
            authority: None,
            absolute: false,
            scheme: Bytes::new(),
            path,
        };
        match target.first() {
            Some(b'/') => return Ok(bare(target)),
            Some(b'*') if target.len() == 1 && **method == *b"OPTIONS" => return Ok(bare(target)),
            _ => {}
        }
        if **method == *b"CONNECT" {
            return Ok(Self {
                authority: Some(target.clone()),
                absolute: false,
                scheme: Bytes::new(),
                path: Bytes::new(),
            });
        }
        let scheme_end = target
            .windows(3)
            .position(|w| w == b"://")
            .ok_or(HeadError::Malformed("target is neither path nor absolute"))?;
        let scheme = target.slice(..scheme_end);
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(HeadError::Malformed("target has an unknown scheme"));
        }
        let rest = target.slice(scheme_end + 3..);
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        if end == 0 {
            return Err(HeadError::Malformed("target has no authority"));
        }
        let path = match rest.get(end) {
            Some(b'/') => rest.slice(end..),
            Some(_) => [b"/", &rest[end..]].concat().into(),
            None => Bytes::from_static(b"/"),
        };
        Ok(Self {
            authority: Some(rest.slice(..end)),
            absolute: true,
            scheme,
            path,
        })
    }
}

fn request_framing(headers: &Headers, version: Version) -> Result<Framing, HeadError> {
    let length = content_length(headers)?;
    let mut codings = headers.all("transfer-encoding");
    let Some(coding) = codings.next() else {
        return Ok(length.map_or(Framing::None, Framing::Length));
    };
    if length.is_some() {
        return Err(HeadError::Malformed("Content-Length beside Transfer-Encoding"));
    }
    if version == Version::Http10 {
        return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    if codings.next().is_some() {
        return Err(HeadError::Malformed("more than one Transfer-Encoding"));
    }
    chunked(coding)
}

/// The only coding that is served is one final `chunked`; what repeats it or follows it is malformed, what is not known
/// is not implemented.
fn chunked(coding: &[u8]) -> Result<Framing, HeadError> {
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let is_chunked = |part: &[u8]| part.trim_ascii().eq_ignore_ascii_case(b"chunked");
    let parts: Vec<&[u8]> = coding.split(|b| *b == b',').collect();
    let others = parts.iter().filter(|part| !is_chunked(part)).count();
    let last = parts.last().is_some_and(|part| is_chunked(part));
    if others == 0 || (others < parts.len() && !last) || parts.iter().any(|part| part.trim_ascii().is_empty()) {
        Err(HeadError::Malformed("transfer coding is not one final chunked"))
    } else {
        Err(HeadError::TransferCoding)
    }
}

fn content_length(headers: &Headers) -> Result<Option<u64>, HeadError> {
    let mut lengths = headers.all("content-length");
    let Some(length) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(HeadError::Malformed("more than one Content-Length"));
    }
    if length.is_empty() || length.len() > 19 || !length.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Malformed("Content-Length is no number"));
    }
    let value = length.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Ok(Some(value))
}

fn response_framing(headers: &Headers, version: Version, status: u16, to_head: bool) -> Result<Framing, HeadError> {
    if to_head || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::None);
    }
    let length = content_length(headers)?;
    let mut codings = headers.all("transfer-encoding");
    let Some(coding) = codings.next() else {
        return Ok(length.map_or(Framing::UntilClose, Framing::Length));
    };
    if length.is_some() || codings.next().is_some() {
        return Err(HeadError::Malformed("two framings"));
    }
    // Whoever passed it on may not have known the coding (RFC 9112, section 6.1).
    if version == Version::Http10 {
        return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    chunked(coding)
}

struct Hop {
    close: bool,
    keep_alive: bool,
    upgrade: Upgrade,
}

/// Removes what belongs to the hop alone (SM-137, AUTHZ-117) and says what it asked for. An accepted upgrade keeps its
/// two fields.
fn strip_hop(headers: &mut Headers, may_upgrade: bool) -> Hop {
    let mut hop = Hop {
        close: false,
        keep_alive: false,
        upgrade: Upgrade::None,
    };
    let mut named: Vec<Bytes> = Vec::new();
    let mut asks_upgrade = false;
    let mut interesting = false;
    for field in &*headers {
        // Most heads have none of these; a look at length and first letter spares the rest the comparisons.
        match (field.name.len(), field.name[0] | 0x20) {
            (10, b'c') if field.name.eq_ignore_ascii_case(b"connection") => {
                interesting = true;
                for part in field.value.split(|b| *b == b',') {
                    let part = part.trim_ascii();
                    if part.eq_ignore_ascii_case(b"close") {
                        hop.close = true;
                    } else if part.eq_ignore_ascii_case(b"keep-alive") {
                        hop.keep_alive = true;
                    } else if part.eq_ignore_ascii_case(b"upgrade") {
                        asks_upgrade = true;
                    } else if !part.is_empty() {
                        named.push(field.value.slice_ref(part));
                    }
                }
            }
            (2, b't') | (7, b'u') | (10, b'k') | (14, b'h') | (16, b'p') => interesting = true,
            _ => {}
        }
    }
    if !interesting {
        return hop;
    }
    if may_upgrade && asks_upgrade && headers.contains("upgrade") {
        hop.upgrade = if headers.has_token("upgrade", "websocket") {
            Upgrade::WebSocket
        } else if headers.has_token("upgrade", "h2c") {
            Upgrade::None
        } else {
            Upgrade::Other
        };
    }
    let websocket = hop.upgrade == Upgrade::WebSocket;
    if websocket {
        // Others that the client would take are not offered: what they carry nobody would judge.
        headers.set(Bytes::from_static(b"upgrade"), Bytes::from_static(b"websocket"));
    }
    let trailers = headers.has_token("te", "trailers");
    if trailers {
        headers.set(Bytes::from_static(b"te"), Bytes::from_static(b"trailers"));
    }
    headers.retain(|field| {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name.as_bytes());
        if is("connection") || is("upgrade") {
            return websocket;
        }
        if is("te") {
            return trailers;
        }
        if is("keep-alive") || is("proxy-connection") || is("http2-settings") {
            return false;
        }
        let framing = is("host") || is("content-length") || is("transfer-encoding");
        framing || !named.iter().any(|name| name.eq_ignore_ascii_case(&field.name))
    });
    if websocket {
        headers.set(Bytes::from_static(b"Connection"), Bytes::from_static(b"Upgrade"));
    }
    hop
}
