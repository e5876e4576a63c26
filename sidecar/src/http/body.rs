//! Bodies: frames that are polled from where they come, with no task in between.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::Headers;
use super::client::ResponseBody;
use super::{grpc_web, h1};

/// A part of a body.
#[derive(Debug)]
pub enum Frame {
    /// Bytes, never empty.
    Data(Bytes),
    /// Trailers, always last.
    Trailers(Headers),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed or was closed.
    #[error("read a body")]
    Io(#[from] io::Error),
    /// The other side broke the protocol.
    #[error("read a body: {0}")]
    Malformed(&'static str),
    /// HTTP/2 reset or connection error.
    #[error("read a body")]
    Http2(#[from] h2::Error),
    /// The client's coding of it was broken, for this reason of `response_code_details`.
    #[error("decode a body: {0}")]
    Coding(&'static str),
    /// The route's limit ran out.
    #[error("time limit of the route")]
    Timeout,
}

/// A body.
pub enum Body {
    /// None.
    Empty,
    /// In one piece.
    Full(Bytes),
    /// Of a request on an HTTP/1 connection.
    H1(Rc<RefCell<h1::Conn>>),
    /// Of a request on an HTTP/2 stream.
    H2(Box<h2::RecvStream>),
    /// Of a response; drives what is left of the request.
    Upstream(Box<ResponseBody>),
    /// Of a request of gRPC-Web, as gRPC.
    Decoded(Box<grpc_web::Decoded>),
    /// Of a response of gRPC, as gRPC-Web.
    Encoded(Box<grpc_web::Encoded>),
}

impl Body {
    /// Next frame; `None` is the end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        match self {
            Self::Empty => Poll::Ready(Ok(None)),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Ok((!bytes.is_empty()).then_some(Frame::Data(bytes))))
            }
            Self::H1(conn) => conn.borrow_mut().poll_body(cx),
            Self::H2(stream) => super::h2::poll_frame(stream, cx),
            Self::Upstream(body) => body.poll_frame(cx),
            Self::Decoded(body) => body.poll_frame(cx),
            Self::Encoded(body) => body.poll_frame(cx),
        }
    }

    /// Goes on with the other direction while this one cannot be written.
    pub fn poll_progress(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Upstream(body) => body.poll_progress(cx),
            Self::Encoded(body) => body.poll_progress(cx),
            Self::Empty | Self::Full(_) | Self::H1(_) | Self::H2(_) | Self::Decoded(_) => {}
        }
    }

    /// Whether there is nothing to come, without asking the connection.
    #[must_use]
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::H1(conn) => conn.borrow().body_is_end(),
            Self::H2(stream) => stream.is_end_stream(),
            Self::Upstream(body) => body.is_end(),
            Self::Decoded(body) => body.is_end(),
            Self::Encoded(body) => body.is_end(),
        }
    }

    /// Lets the client send its body (RFC 9110, section 10.1.1).
    pub fn send_continue(&self) {
        match self {
            Self::H1(conn) => conn.borrow_mut().send_continue(),
            Self::Decoded(body) => body.source().send_continue(),
            Self::Empty | Self::Full(_) | Self::H2(_) | Self::Upstream(_) | Self::Encoded(_) => {}
        }
    }
}
