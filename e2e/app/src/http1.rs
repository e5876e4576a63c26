//! HTTP/1.x for both sides of a connection, with headers in the order and case in which they came.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::stream::Buffered;

/// Header fields in order, names in the case in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value of a header, whatever the case of its name.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// Whether a comma separated header contains a token, in any case.
    pub(crate) fn has_token(&self, name: &str, token: &str) -> bool {
        self.0
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .flat_map(|(_, v)| v.split(','))
            .any(|t| t.trim().eq_ignore_ascii_case(token))
    }

    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }
}

/// A list of pairs, so that order and repetition show.
impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for pair in &self.0 {
            list.serialize_element(pair)?;
        }
        list.end()
    }
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) method: String,
    pub(crate) target: String,
    /// The minor version: 0 or 1.
    pub(crate) minor: u8,
    pub(crate) headers: Headers,
}

impl RequestHead {
    /// How the body is delimited (RFC 9112, section 6.3).
    ///
    /// # Errors
    /// [`Error::Malformed`] when the length is not a number.
    pub(crate) fn framing(&self) -> Result<Framing, Error> {
        if self.headers.has_token("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        Ok(content_length(&self.headers)?.map_or(Framing::None, Framing::Length))
    }

    /// Whether the client wants to use the connection again.
    pub(crate) fn keeps_alive(&self) -> bool {
        match self.minor {
            0 => self.headers.has_token("connection", "keep-alive"),
            _ => !self.headers.has_token("connection", "close"),
        }
    }
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) minor: u8,
    pub(crate) status: u16,
    pub(crate) headers: Headers,
}

impl ResponseHead {
    /// How the body is delimited, given the method of the request.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the length is not a number.
    pub(crate) fn framing(&self, method: &str) -> Result<Framing, Error> {
        if method == "HEAD" || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::None);
        }
        if self.headers.has_token("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        Ok(content_length(&self.headers)?.map_or(Framing::UntilClose, Framing::Length))
    }

    /// Whether another request may follow on the connection.
    pub(crate) fn keeps_alive(&self) -> bool {
        match self.minor {
            0 => self.headers.has_token("connection", "keep-alive"),
            _ => !self.headers.has_token("connection", "close"),
        }
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

impl Framing {
    /// The word for it in answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Length(_) => "length",
            Self::Chunked => "chunked",
            Self::UntilClose => "close",
        }
    }
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read")]
    Io(#[from] io::Error),
    #[error("connection closed within a message")]
    Eof,
    #[error("malformed message: {0}")]
    Malformed(String),
    #[error("{what} of more than {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
}

/// Reads the head of a request; `None` when the peer closes before its first byte.
///
/// Cancel safe: what was read stays in the buffer.
pub(crate) async fn read_request(conn: &mut Buffered) -> Result<Option<RequestHead>, Error> {
    loop {
        if let Some(head) = parse_request(&mut conn.buffer)? {
            return Ok(Some(head));
        }
        if conn.buffer.len() > HEAD_LIMIT {
            return Err(Error::TooLarge {
                what: "request head",
                limit: HEAD_LIMIT,
            });
        }
        if conn.fill().await? == 0 {
            return if conn.buffer.is_empty() {
                Ok(None)
            } else {
                Err(Error::Eof)
            };
        }
    }
}

/// Reads the head of a response.
///
/// # Errors
/// [`Error::Eof`] when the peer closes before the head is complete.
pub(crate) async fn read_response(conn: &mut Buffered) -> Result<ResponseHead, Error> {
    loop {
        if let Some(head) = parse_response(&mut conn.buffer)? {
            return Ok(head);
        }
        if conn.buffer.len() > HEAD_LIMIT {
            return Err(Error::TooLarge {
                what: "response head",
                limit: HEAD_LIMIT,
            });
        }
        if conn.fill().await? == 0 {
            return Err(Error::Eof);
        }
    }
}

/// Reads a body piece by piece.
#[derive(Debug)]
pub(crate) struct BodyReader {
    framing: Framing,
    /// What is left of a body with a length, or of the current chunk.
    left: u64,
    /// Inside of a chunk, so that the line end behind it is still to come.
    in_chunk: bool,
    done: bool,
    /// The trailer section of a chunked body, complete when the body is.
    pub(crate) trailers: Headers,
}

impl BodyReader {
    pub(crate) fn new(framing: Framing) -> Self {
        let left = if let Framing::Length(length) = framing {
            length
        } else {
            0
        };
        let done = matches!(framing, Framing::None | Framing::Length(0));
        Self {
            framing,
            left,
            in_chunk: false,
            done,
            trailers: Headers::default(),
        }
    }

    /// The next piece, `None` at the end of the body.
    ///
    /// # Errors
    /// [`Error::Eof`] when the connection ends first.
    pub(crate) async fn next(&mut self, conn: &mut Buffered) -> Result<Option<Bytes>, Error> {
        if self.done {
            return Ok(None);
        }
        match self.framing {
            Framing::None => Ok(None),
            Framing::Length(_) => {
                let piece = self.take(conn).await?;
                self.done = self.left == 0;
                Ok(Some(piece))
            }
            Framing::UntilClose => {
                if conn.buffer.is_empty() && conn.fill().await? == 0 {
                    self.done = true;
                    return Ok(None);
                }
                Ok(Some(conn.buffer.split().freeze()))
            }
            Framing::Chunked => self.next_of_chunks(conn).await,
        }
    }

    /// Reads what is left, keeping at most `limit` bytes; returns them and the whole length.
    pub(crate) async fn collect(&mut self, conn: &mut Buffered, limit: usize) -> Result<(Vec<u8>, u64), Error> {
        let (mut kept, mut length) = (Vec::new(), 0_u64);
        while let Some(piece) = self.next(conn).await? {
            length += piece.len() as u64;
            let room = limit.saturating_sub(kept.len()).min(piece.len());
            kept.extend_from_slice(&piece[..room]);
        }
        Ok((kept, length))
    }

    async fn next_of_chunks(&mut self, conn: &mut Buffered) -> Result<Option<Bytes>, Error> {
        if self.left == 0 {
            if self.in_chunk && !line(conn).await?.is_empty() {
                return Err(Error::Malformed("chunk longer than its size".to_owned()));
            }
            let size = line(conn).await?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            self.left = u64::from_str_radix(digits, 16)
                .map_err(|_| Error::Malformed(format!("chunk size {digits:?} is not a hexadecimal number")))?;
            self.in_chunk = true;
            if self.left == 0 {
                self.read_trailers(conn).await?;
                self.done = true;
                return Ok(None);
            }
        }
        self.take(conn).await.map(Some)
    }

    async fn take(&mut self, conn: &mut Buffered) -> Result<Bytes, Error> {
        if conn.buffer.is_empty() && conn.fill().await? == 0 {
            return Err(Error::Eof);
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(conn.buffer.len());
        self.left -= length as u64;
        Ok(conn.buffer.split_to(length).freeze())
    }

    async fn read_trailers(&mut self, conn: &mut Buffered) -> Result<(), Error> {
        let mut length = 0;
        loop {
            let field = line(conn).await?;
            if field.is_empty() {
                return Ok(());
            }
            length += field.len();
            if length > HEAD_LIMIT {
                return Err(Error::TooLarge {
                    what: "trailers",
                    limit: HEAD_LIMIT,
                });
            }
            let (name, value) = field
                .split_once(':')
                .ok_or_else(|| Error::Malformed(format!("trailer {field:?} has no colon")))?;
            self.trailers.push(name, value.trim());
        }
    }
}

/// Appends header lines and the empty line behind them.
pub(crate) fn write_headers(out: &mut Vec<u8>, headers: &[(String, String)]) {
    for (name, value) in headers {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one chunk.
pub(crate) fn write_chunk(out: &mut Vec<u8>, piece: &[u8]) {
    out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
    out.extend_from_slice(piece);
    out.extend_from_slice(b"\r\n");
}

fn parse_request(buffer: &mut BytesMut) -> Result<Option<RequestHead>, Error> {
    let mut fields = vec![httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request
        .parse(buffer)
        .map_err(|error| Error::Malformed(error.to_string()))?;
    let httparse::Status::Complete(length) = parsed else {
        return Ok(None);
    };
    let head = RequestHead {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        minor: request.version.unwrap_or(1),
        headers: headers(request.headers),
    };
    buffer.advance(length);
    Ok(Some(head))
}

fn parse_response(buffer: &mut BytesMut) -> Result<Option<ResponseHead>, Error> {
    let mut fields = vec![httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response
        .parse(buffer)
        .map_err(|error| Error::Malformed(error.to_string()))?;
    let httparse::Status::Complete(length) = parsed else {
        return Ok(None);
    };
    let head = ResponseHead {
        minor: response.version.unwrap_or(1),
        status: response.code.unwrap_or_default(),
        headers: headers(response.headers),
    };
    buffer.advance(length);
    Ok(Some(head))
}

fn headers(fields: &[httparse::Header<'_>]) -> Headers {
    Headers(
        fields
            .iter()
            .map(|f| (f.name.to_owned(), String::from_utf8_lossy(f.value).into_owned()))
            .collect(),
    )
}

fn content_length(headers: &Headers) -> Result<Option<u64>, Error> {
    let Some(value) = headers.first("content-length") else {
        return Ok(None);
    };
    let length = value.trim().parse();
    length
        .map(Some)
        .map_err(|_| Error::Malformed(format!("content-length {value:?} is not a number")))
}

/// One line without its end.
async fn line(conn: &mut Buffered) -> Result<String, Error> {
    loop {
        if let Some(end) = conn.buffer.iter().position(|&byte| byte == b'\n') {
            let bytes = conn.buffer.split_to(end + 1);
            return Ok(String::from_utf8_lossy(&bytes)
                .trim_end_matches(['\r', '\n'])
                .to_owned());
        }
        if conn.buffer.len() > HEAD_LIMIT {
            return Err(Error::TooLarge {
                what: "line",
                limit: HEAD_LIMIT,
            });
        }
        if conn.fill().await? == 0 {
            return Err(Error::Eof);
        }
    }
}

/// More than any proxy lets through, so that the proxy's limit is the one that shows.
const HEAD_LIMIT: usize = 1024 * 1024;
const HEADER_COUNT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_keep_order_case_and_repetition() {
        let mut buffer =
            BytesMut::from("GET /a?b HTTP/1.1\r\nHost: x\r\nX-MiXed: 1\r\nALL: 2\r\nx-mixed: 3\r\n\r\nrest");
        let head = parse_request(&mut buffer).expect("parses").expect("complete");
        let names: Vec<&str> = head.headers.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["Host", "X-MiXed", "ALL", "x-mixed"]);
        assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "/a?b"));
        assert_eq!(&buffer[..], b"rest");
        assert_eq!(head.headers.first("X-MIXED"), Some("1"));
    }

    #[test]
    fn incomplete_heads_wait_for_more() {
        let mut buffer = BytesMut::from("GET / HTTP/1.1\r\nHost: x\r\n");
        assert!(parse_request(&mut buffer).expect("no error").is_none());
    }

    #[test]
    fn framing_follows_status_and_method() {
        let head = |status, headers: &[(&str, &str)]| ResponseHead {
            minor: 1,
            status,
            headers: Headers(
                headers
                    .iter()
                    .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
        };
        let length = [("Content-Length", "5")];
        assert_eq!(head(200, &length).framing("GET").expect("length"), Framing::Length(5));
        assert_eq!(head(200, &length).framing("HEAD").expect("head"), Framing::None);
        assert_eq!(head(304, &length).framing("GET").expect("304"), Framing::None);
        assert_eq!(head(200, &[]).framing("GET").expect("close"), Framing::UntilClose);
        let both = [("Content-Length", "5"), ("Transfer-Encoding", "gzip, Chunked")];
        assert_eq!(head(200, &both).framing("GET").expect("chunked"), Framing::Chunked);
        assert!(head(200, &[("content-length", "-1")]).framing("GET").is_err());
    }
}
