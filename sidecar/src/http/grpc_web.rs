//! gRPC-Web on ports that are declared to speak it: what browsers can say of gRPC becomes gRPC, and back (SM-026).
//!
//! Messages are framed as in gRPC, so binary bodies pass as they are; only text has to be decoded. What differs is the
//! end: gRPC ends with trailers, gRPC-Web with one more message that holds them. See `doc/PROTOCOL-WEB.md` of gRPC.

use std::rc::Rc;

use bytes::Bytes;

use super::client::Response;
use super::replay::Meter;
use super::{Body, RequestHead, Version};
use crate::exchange::Exchange;

mod request;
mod response;
mod text;

pub use request::Decoded;
pub use response::Encoded;
pub use text::Decoder;

/// `response_code_details` of a request whose text is no base64.
pub const BAD_TEXT: &str = "grpc_base_64_decode_failed";

/// A gRPC-Web request that is translated.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The body of the request is text.
    sends: Coding,
    /// The body of the response is to be text.
    wants: Coding,
    /// What messages are, as the client says: `+proto`, or nothing.
    format: Bytes,
}

/// How a body carries gRPC's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    /// As they are.
    Binary,
    /// In base64: `application/grpc-web-text`.
    Text,
}

impl Call {
    /// What a request asks for; `None` when it is none of gRPC-Web. From here on it is one of gRPC: so it is counted, and
    /// so the proxy answers it.
    pub(super) fn of(head: &RequestHead, exchange: &mut Exchange) -> Option<Self> {
        let (sends, format) = media_type(head.headers.get("content-type")?)?;
        if head.upgrade {
            return None;
        }
        let format = Bytes::copy_from_slice(format);
        let accepted = head.headers.all("accept");
        let mut accepted = accepted
            .flat_map(|value| value.split(|b| *b == b','))
            .filter_map(media_type);
        let wants = accepted.next().map_or(sends, |(coding, _)| coding);
        exchange.grpc = true;
        Some(Self { sends, wants, format })
    }

    /// Makes the request one of gRPC.
    pub(super) fn request(&self, head: &mut RequestHead, body: Body, meter: &Rc<Meter>) -> Body {
        let headers = &mut head.headers;
        headers.set("content-type", [GRPC, &self.format[..]].concat());
        // The length is another one, and gRPC needs none.
        headers.remove("content-length");
        headers.remove("transfer-encoding");
        headers.set("te", "trailers");
        if !headers.contains("grpc-accept-encoding") {
            // Scripts in browsers cannot decompress single messages.
            headers.set("grpc-accept-encoding", "identity");
        }
        // There is no gRPC over anything else.
        head.version = Version::Http2;
        match (self.sends, body) {
            (_, Body::Empty) => Body::Empty,
            (Coding::Binary, body) => body,
            (Coding::Text, body) => Body::Decoded(Box::new(Decoded::new(body, meter.clone()))),
        }
    }

    /// Makes a response one of gRPC-Web. One that is not of gRPC says by its status what is the matter, and stays.
    pub(super) fn response(&self, mut response: Response) -> Response {
        let headers = &mut response.head.headers;
        let Some(format) = headers.get("content-type").and_then(|value| value.strip_prefix(GRPC)) else {
            return response;
        };
        let format = match format.split(|b| *b == b';').next().map(<[u8]>::trim_ascii) {
            Some(own @ [b'+', ..]) => own,
            Some(b"") if !self.format.is_empty() => &self.format,
            Some(b"") => b"+proto",
            _ => return response,
        };
        let base: &[u8] = match self.wants {
            Coding::Binary => WEB,
            Coding::Text => TEXT,
        };
        headers.set("content-type", [base, format].concat());
        // The status is in the head where there is no message; it may stay there.
        if response.body.is_end() {
            return response;
        }
        headers.remove("content-length");
        headers.remove("trailer");
        response.body = Body::Encoded(Box::new(Encoded::new(response.body, self.wants == Coding::Text)));
        response
    }
}

const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"application/grpc-web-text";

/// Coding and format of a media type of gRPC-Web, as of one of those in `Accept`.
fn media_type(value: &[u8]) -> Option<(Coding, &[u8])> {
    let value = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let (start, rest) = value.split_at_checked(WEB.len())?;
    if !start.eq_ignore_ascii_case(WEB) {
        return None;
    }
    let plus = rest.iter().position(|b| *b == b'+').unwrap_or(rest.len());
    let (coding, format) = rest.split_at(plus);
    if coding.is_empty() {
        Some((Coding::Binary, format))
    } else if coding.eq_ignore_ascii_case(b"-text") || coding.eq_ignore_ascii_case(b"-text-base64") {
        Some((Coding::Text, format))
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
