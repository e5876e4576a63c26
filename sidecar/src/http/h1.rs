//! HTTP/1 on one connection, in both roles: heads over `httparse`, bodies in place, bounded buffers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::{BodyError, Frame};
use super::{Headers, RequestHead, ResponseHead, Version};
use crate::io::Io;

mod encode;
mod parse;

pub use encode::reason;
pub use parse::{
    Framing, HeadError, ReceivedRequest, ReceivedResponse, Upgrade, chunk_size as parse_chunk_size, is_authority,
    request as parse_request, response as parse_response, trailers as parse_trailers,
};

/// Longest head (SM-135).
pub const MAX_HEAD_BYTES: usize = 60 * 1024;

/// Longest request line; beyond it the connection is closed without an answer (SM-135).
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Most header fields (SM-135).
pub const MAX_FIELDS: usize = 100;

/// What is read at once.
const READ_BYTES: usize = 16 * 1024;

/// What is read at once of a body whose sender is ahead of the proxy.
const BULK_BYTES: usize = 64 * 1024;

/// Longest input whose buffer is kept for the next message.
const KEPT_BYTES: usize = 1024;

thread_local! {
    /// Where heads are read to: connections that await one keep no buffer for it.
    static HEADS: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// Output that is held before a writer must wait.
const HIGH_WATER_BYTES: usize = 64 * 1024;

/// Pieces up to this length are copied together, so that a head and a short body leave in one write.
const COPY_BYTES: usize = 8 * 1024;

/// A connection.
pub struct Conn {
    io: Io,
    input: BytesMut,
    /// Its buffer is larger than what an idle connection may keep.
    is_large: bool,
    /// Position up to which the input was searched for the end of a head.
    searched: usize,
    reading: Reading,
    /// The last read of a body filled the room that it had.
    flows: bool,
    /// The peer will send nothing more.
    ended: bool,
    /// The client waits for 100 before it sends its body.
    awaits_continue: bool,
    output: BytesMut,
    queue: VecDeque<Bytes>,
    queued: usize,
    /// TLS may hold back what was written to it.
    is_held: bool,
    /// All bytes received, to tell a connection that answered nothing.
    received: u64,
}

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// A head, or nothing: the body is at its end.
    Head,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    /// A body broke: where the next message begins is not known.
    Broken,
}

impl Conn {
    /// Takes over a stream.
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            is_large: false,
            flows: false,
            searched: 0,
            reading: Reading::Head,
            ended: false,
            awaits_continue: false,
            output: BytesMut::new(),
            queue: VecDeque::new(),
            queued: 0,
            is_held: false,
            received: 0,
        }
    }

    /// The stream.
    #[must_use]
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Bytes received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Gives the stream back, with what was read ahead in front of it.
    #[must_use]
    pub fn into_io(self) -> Io {
        self.io.with_prefix(self.input.freeze())
    }

    /// Whether input waits that belongs to the next message.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let read = if self.reading == Reading::Head {
            ready!(self.poll_read_head(cx))
        } else {
            self.is_large = true;
            ready!(self.poll_read_body(cx))
        };
        match &read {
            Ok(0) | Err(_) => self.ended = true,
            Ok(n) => self.received += *n as u64,
        }
        Poll::Ready(read)
    }

    /// A peer that fills the room there is has more to send, so that the next step is larger; for one that is slower than
    /// the proxy, less is held.
    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = if self.flows { BULK_BYTES } else { READ_BYTES };
        let before = self.input.len();
        let read = ready!(self.io.poll_read_up_to(cx, &mut self.input, room))?;
        self.flows = read > 0 && before + read == self.input.capacity();
        Poll::Ready(Ok(read))
    }

    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() && self.is_large {
            // Even empty it would keep the buffer of the largest message so far.
            self.input = BytesMut::new();
            self.is_large = false;
        }
        HEADS.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            self.input.extend_from_slice(buffer.filled());
            self.is_large |= self.input.len() > KEPT_BYTES;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Resolves when the peer is gone while it is not its turn to send. Reads ahead what a pipelining client sends.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.reading != Reading::Head {
            return Poll::Pending;
        }
        loop {
            if self.input.len() >= MAX_HEAD_BYTES {
                return Poll::Pending;
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    /// Whether an idle connection is still good: nothing was received and the peer has not closed it.
    pub fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.input.is_empty() && self.poll_fill(&mut cx).is_pending()
    }

    /// Waits for a request's head; `None` when the client closed before its first byte.
    pub fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ReceivedRequest>, HeadError>> {
        if self.reading == Reading::Broken {
            return Poll::Ready(Err(HeadError::Malformed("the body before it broke")));
        }
        loop {
            self.skip_empty_lines();
            if let Some(end) = self.head_end() {
                if end > MAX_HEAD_BYTES {
                    return Poll::Ready(Err(self.too_large()));
                }
                let bytes = self.input.split_to(end).freeze();
                self.searched = 0;
                let request = parse::request(&bytes)?;
                self.begin_body(request.framing);
                self.awaits_continue = request.awaits_continue;
                return Poll::Ready(Ok(Some(request)));
            }
            if self.input.len() > MAX_LINE_BYTES {
                return Poll::Ready(Err(self.too_large()));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(if self.input.is_empty() {
                    Ok(None)
                } else {
                    Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into()))
                });
            }
        }
    }

    /// Waits for a response's head; interim ones too. `to_head` tells that the request's method was HEAD.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to_head: bool) -> Poll<Result<ReceivedResponse, HeadError>> {
        loop {
            if let Some(end) = self.head_end() {
                if end > MAX_HEAD_BYTES {
                    return Poll::Ready(Err(HeadError::TooLarge));
                }
                let bytes = self.input.split_to(end).freeze();
                self.searched = 0;
                let response = parse::response(&bytes, to_head)?;
                self.begin_body(response.framing);
                return Poll::Ready(Ok(response));
            }
            if self.input.len() > MAX_HEAD_BYTES {
                return Poll::Ready(Err(HeadError::TooLarge));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into())));
            }
        }
    }

    /// Empty lines before the request line are harmless (SM-141). CR alone ends none.
    fn skip_empty_lines(&mut self) {
        loop {
            let length = match self.input[..] {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                _ => return,
            };
            self.input.advance(length);
            self.searched = 0;
        }
    }

    fn too_large(&self) -> HeadError {
        let line = memchr::memchr(b'\n', &self.input).unwrap_or(self.input.len());
        if line > MAX_LINE_BYTES {
            HeadError::LineTooLong
        } else {
            HeadError::TooLarge
        }
    }

    fn begin_body(&mut self, framing: Framing) {
        self.reading = match framing {
            Framing::None | Framing::Length(0) => Reading::Head,
            Framing::Length(length) => Reading::Length(length),
            Framing::Chunked => Reading::ChunkSize,
            Framing::UntilClose => Reading::UntilClose,
        };
    }

    /// Position after the empty line that ends a head; each byte is looked at once.
    fn head_end(&mut self) -> Option<usize> {
        let mut at = self.searched;
        while let Some(found) = memchr::memchr(b'\n', &self.input[at..]) {
            let newline = at + found;
            match self.input[newline + 1..] {
                [b'\n', ..] => return Some(newline + 2),
                [b'\r', b'\n', ..] => return Some(newline + 3),
                [] | [b'\r'] => {
                    self.searched = newline;
                    return None;
                }
                _ => at = newline + 1,
            }
        }
        self.searched = self.input.len();
        None
    }

    /// Whether the body being read has ended.
    #[must_use]
    pub fn body_is_end(&self) -> bool {
        self.reading == Reading::Head
    }

    /// Next frame of the body. An error is the last that this connection reads.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        let frame = ready!(self.poll_frame(cx));
        if frame.is_err() {
            self.reading = Reading::Broken;
        }
        Poll::Ready(frame)
    }

    /// Lines of the chunked coding end in CRLF: where LF alone ends one, parsers disagree on where data begins.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        loop {
            match self.reading {
                Reading::Head => return Poll::Ready(Ok(None)),
                Reading::Broken => return Poll::Ready(Err(BodyError::Malformed("it broke before"))),
                Reading::Length(left) => {
                    if self.input.is_empty() && ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Err(unexpected_end()));
                    }
                    let data = self.take(left);
                    let left = left - data.len() as u64;
                    self.reading = if left == 0 {
                        Reading::Head
                    } else {
                        Reading::Length(left)
                    };
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Reading::UntilClose => {
                    if self.input.is_empty() && ready!(self.poll_fill(cx))? == 0 {
                        self.reading = Reading::Head;
                        return Poll::Ready(Ok(None));
                    }
                    let data = self.take(u64::MAX);
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Reading::ChunkSize => {
                    let line = ready!(self.poll_line(cx))?;
                    let size = parse::chunk_size(&line).ok_or(BodyError::Malformed("bad chunk size"))?;
                    self.reading = if size == 0 {
                        Reading::Trailers
                    } else {
                        Reading::Chunk(size)
                    };
                }
                Reading::Chunk(left) => {
                    if self.input.is_empty() && ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Err(unexpected_end()));
                    }
                    let data = self.take(left);
                    let left = left - data.len() as u64;
                    self.reading = if left == 0 {
                        Reading::ChunkEnd
                    } else {
                        Reading::Chunk(left)
                    };
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Reading::ChunkEnd => match self.input[..] {
                    [b'\r', b'\n', ..] => {
                        self.input.advance(2);
                        self.reading = Reading::ChunkSize;
                    }
                    [] | [b'\r'] => {
                        if ready!(self.poll_fill(cx))? == 0 {
                            return Poll::Ready(Err(unexpected_end()));
                        }
                    }
                    _ => return Poll::Ready(Err(BodyError::Malformed("chunk longer than its size"))),
                },
                Reading::Trailers => {
                    // The whole section at once, so that a poll in between keeps no state.
                    let end = match self.input[..] {
                        [b'\r', b'\n', ..] => Some(2),
                        [] | [b'\r'] => None,
                        _ => self.head_end(),
                    };
                    let Some(end) = end else {
                        if self.input.len() > MAX_HEAD_BYTES {
                            return Poll::Ready(Err(BodyError::Malformed("trailers too long")));
                        }
                        if ready!(self.poll_fill(cx))? == 0 {
                            return Poll::Ready(Err(unexpected_end()));
                        }
                        continue;
                    };
                    let bytes = self.input.split_to(end).freeze();
                    self.searched = 0;
                    self.reading = Reading::Head;
                    let trailers = parse::trailers(&bytes).ok_or(BodyError::Malformed("bad trailers"))?;
                    if trailers.is_empty() {
                        return Poll::Ready(Ok(None));
                    }
                    return Poll::Ready(Ok(Some(Frame::Trailers(trailers))));
                }
            }
        }
    }

    fn take(&mut self, most: u64) -> Bytes {
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.len());
        self.input.split_to(length).freeze()
    }

    /// A line without its CRLF; a chunk's size line is short.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BodyError>> {
        const LONGEST: usize = 4096;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line = self.input.split_to(end + 1).freeze();
                return Poll::Ready(match line.strip_suffix(b"\r\n") {
                    Some(content) => Ok(line.slice_ref(content)),
                    None => Err(BodyError::Malformed("chunk size line ends in LF alone")),
                });
            }
            if self.input.len() > LONGEST {
                return Poll::Ready(Err(BodyError::Malformed("chunk size line too long")));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(unexpected_end()));
            }
        }
    }

    /// Answers `Expect: 100-continue`, at most once (SM-138).
    pub fn send_continue(&mut self) {
        if std::mem::take(&mut self.awaits_continue) {
            self.push(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
        }
    }

    /// The final response makes a 100 pointless.
    pub fn cancel_continue(&mut self) -> bool {
        std::mem::take(&mut self.awaits_continue)
    }

    /// Queues the head of a request.
    pub fn push_request(&mut self, head: &RequestHead, chunked: bool) {
        encode::request(&mut self.output, head, chunked);
        self.queued = self.output.len();
    }

    /// Queues the head of a response. `close` says that the connection ends with it.
    pub fn push_response(&mut self, head: &ResponseHead, version: Version, chunked: bool, close: Close) {
        let mut bytes = BytesMut::with_capacity(head.headers.wire_bytes() + 128);
        encode::response(&mut bytes, head, version, chunked, close);
        self.push(bytes.freeze());
    }

    /// Queues a part of a body.
    pub fn push_data(&mut self, data: Bytes, chunked: bool) {
        if chunked {
            let mut size = [0u8; 18];
            self.push(Bytes::copy_from_slice(encode::chunk_head(&mut size, data.len())));
            self.push(data);
            self.push(Bytes::from_static(b"\r\n"));
        } else {
            self.push(data);
        }
    }

    /// Queues the end of a body.
    pub fn push_end(&mut self, chunked: bool, trailers: Option<&Headers>) {
        if !chunked {
            return;
        }
        match trailers
            .map(super::trailers::passable)
            .filter(|trailers| !trailers.is_empty())
        {
            None => self.push(Bytes::from_static(b"0\r\n\r\n")),
            Some(trailers) => {
                let mut bytes = BytesMut::from(&b"0\r\n"[..]);
                encode::fields(&mut bytes, &trailers);
                bytes.extend_from_slice(b"\r\n");
                self.push(bytes.freeze());
            }
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.queued += bytes.len();
        if self.queue.is_empty() && bytes.len() <= COPY_BYTES {
            self.output.extend_from_slice(&bytes);
        } else {
            self.queue.push_back(bytes);
        }
    }

    /// Whether so much is queued that its writer must wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queued >= HIGH_WATER_BYTES
    }

    /// Whether everything queued was written to the stream, which may be TLS and hold it back.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.queued == 0
    }

    /// Whether everything queued has left this process. Until then its writer goes on to poll [`Self::poll_flush`].
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.queued == 0 && !self.is_held
    }

    /// Writes what is queued, and what TLS holds back.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.queued > 0 {
            let written = {
                const SLICES: usize = 16;
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut count = 0;
                if !self.output.is_empty() {
                    slices[0] = IoSlice::new(&self.output);
                    count = 1;
                }
                for piece in self.queue.iter().take(SLICES - count) {
                    slices[count] = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_held = true;
            self.written(written);
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.is_held = false;
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut count: usize) {
        self.queued -= count;
        let from_output = count.min(self.output.len());
        self.output.advance(from_output);
        count -= from_output;
        while count > 0 {
            let Some(piece) = self.queue.front_mut() else { break };
            let part = count.min(piece.len());
            piece.advance(part);
            count -= part;
            if piece.is_empty() {
                self.queue.pop_front();
            }
        }
        if self.queued == 0 {
            self.output.clear();
        }
    }

    /// Ends the writing direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What a response says of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// It stays open, as is the rule for the version.
    Stay,
    /// `Connection: keep-alive`, which HTTP/1.0 needs.
    KeepAlive,
    /// `Connection: close`.
    Close,
}

/// A request's head as it is forwarded.
#[must_use]
pub fn write_request(head: &RequestHead, chunked: bool) -> Bytes {
    let mut out = BytesMut::new();
    encode::request(&mut out, head, chunked);
    out.freeze()
}

fn unexpected_end() -> BodyError {
    BodyError::Io(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests;
