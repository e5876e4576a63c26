//! Bodies of the proxy's own answers: in one piece, or written while they are read (LIFE-081).

use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes that are handed over at once.
const PIECE: usize = 64 * 1024;

/// Pieces that wait for their reader.
const PIECES: usize = 4;

/// A body.
#[derive(Debug)]
pub enum Content {
    /// In one piece.
    Full(Option<Bytes>),
    /// From a thread that waits for its reader.
    Stream {
        /// What it has written.
        pieces: mpsc::Receiver<Bytes>,
        /// Its place among the requests that are answered at once.
        place: Option<OwnedSemaphorePermit>,
    },
}

impl Default for Content {
    fn default() -> Self {
        Self::Full(None)
    }
}

impl Content {
    /// In one piece.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }

    /// What `write` writes, in a thread of its own and never far ahead of the reader.
    #[must_use]
    pub fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let (pieces, content) = mpsc::channel(PIECES);
        tokio::task::spawn_blocking(move || {
            let mut out = Pieces {
                pieces,
                buffer: BytesMut::new(),
            };
            // A reader that has gone ends the writing.
            let _ = write(&mut out).and_then(|()| out.flush());
        });
        Self::Stream {
            pieces: content,
            place: None,
        }
    }

    /// Gives a place back at the end of the body: what is in one piece has been made already.
    pub fn hold(&mut self, taken: OwnedSemaphorePermit) {
        if let Self::Stream { place, .. } = self {
            *place = Some(taken);
        }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { pieces, .. } => pieces
                .poll_recv(cx)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { .. } => SizeHint::default(),
        }
    }
}

struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.pieces
            .blocking_send(piece)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
