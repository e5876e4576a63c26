//! The body of a response: gRPC's messages, and its trailers as the last of them.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use data_encoding::BASE64;

use crate::http::Headers;
use crate::http::body::{Body, BodyError, Frame};
use crate::http::replay::Messages;
use crate::http::trailers::passable;

/// First byte of the frame that holds the trailers.
const TRAILERS: u8 = 0x80;

/// A response of gRPC, for a client of gRPC-Web.
pub struct Encoded {
    source: Body,
    text: bool,
    ended: bool,
    messages: Messages,
    status: Option<Bytes>,
}

impl Encoded {
    pub(super) fn new(source: Body, text: bool) -> Self {
        Self {
            source,
            text,
            ended: false,
            messages: Messages::default(),
            status: None,
        }
    }

    /// Next frame; there are no trailers among them.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let data = match ready!(self.source.poll_frame(cx))? {
            Some(Frame::Data(data)) => {
                self.messages.see(&data);
                data
            }
            Some(Frame::Trailers(trailers)) => {
                self.ended = true;
                self.status = trailers.get("grpc-status").cloned();
                frame(&passable(&trailers))?
            }
            None => {
                self.ended = true;
                return Poll::Ready(Ok(None));
            }
        };
        // Each piece is padded on its own, so that no byte of a message waits for the next one.
        let data = if self.text { BASE64.encode(&data).into() } else { data };
        Poll::Ready(Ok(Some(Frame::Data(data))))
    }

    /// Goes on with the request.
    pub fn poll_progress(&mut self, cx: &mut Context<'_>) {
        self.source.poll_progress(cx);
    }

    /// Whether there is nothing to come.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.ended || self.source.is_end()
    }

    /// gRPC messages so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.count()
    }

    /// `grpc-status` of the trailers, once they were there.
    #[must_use]
    pub fn status(&self) -> Option<&Bytes> {
        self.status.as_ref()
    }
}

/// The message that holds trailers: names in lower case, as lines.
pub(super) fn frame(trailers: &Headers) -> Result<Bytes, BodyError> {
    let mut out = vec![TRAILERS, 0, 0, 0, 0];
    for field in trailers {
        out.extend(field.name.iter().map(u8::to_ascii_lowercase));
        out.push(b':');
        out.extend_from_slice(&field.value);
        out.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(out.len() - PREFIX).map_err(|_| BodyError::Malformed("trailers too long"))?;
    out[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(out.into())
}

/// Bytes in front of each message.
const PREFIX: usize = 5;
