//! The body of a request in text.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::{BAD_TEXT, Decoder};
use crate::http::body::{Body, BodyError, Frame};
use crate::http::replay::Meter;

/// A body of base64, decoded.
pub struct Decoded {
    source: Body,
    /// Counts what the coding adds, as whoever reads counts what is left.
    meter: Rc<Meter>,
    decoder: Decoder,
    /// It was no base64.
    broken: bool,
}

impl Decoded {
    pub(super) fn new(source: Body, meter: Rc<Meter>) -> Self {
        Self {
            source,
            meter,
            decoder: Decoder::default(),
            broken: false,
        }
    }

    /// Next frame; gRPC has no trailers of requests.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        while !self.broken {
            match ready!(self.source.poll_frame(cx))? {
                Some(Frame::Data(text)) => {
                    let Ok(data) = self.decoder.decode(&text) else { break };
                    // What is held of a text counts until it is decoded.
                    let coding = self.meter.coding.get() + text.len() as u64 - data.len() as u64;
                    self.meter.coding.set(coding);
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::Data(data.into()))));
                    }
                }
                Some(Frame::Trailers(_)) => {}
                None if self.decoder.is_complete() => return Poll::Ready(Ok(None)),
                None => break,
            }
        }
        self.broken = true;
        Poll::Ready(Err(BodyError::Coding(BAD_TEXT)))
    }

    /// Whether there is nothing to come; not while an error is.
    #[must_use]
    pub fn is_end(&self) -> bool {
        !self.broken && self.decoder.is_complete() && self.source.is_end()
    }

    /// The body as received.
    #[must_use]
    pub fn source(&self) -> &Body {
        &self.source
    }
}
