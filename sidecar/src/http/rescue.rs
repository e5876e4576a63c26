//! The one place where a failure becomes a response (FLAG-001, FLAG-003, FLAG-006, BYD-030).

use std::sync::Arc;

use bytes::Bytes;
use weft_bundle::model::Denial;
use weft_bundle::wire::Origin;

use super::body::BodyError;
use super::client::{Response, SendError};
use super::{Body, ResponseHead, h1};
use crate::connect::ConnectError;
use crate::exchange::{Details, Exchange, Flags};

/// Why a request is answered by the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Status.
    pub status: u16,
    /// Flag.
    pub flags: Flags,
    /// Body.
    pub body: String,
    /// `response_code_details`.
    pub details: Details,
    /// What a retry policy sees.
    pub class: Class,
    /// Circuit breaking: `x-envoy-overloaded` (DR-081).
    pub overloaded: bool,
    /// The connection is closed afterwards.
    pub close: bool,
    /// Nothing reached the application: `x-weft-undelivered` towards mesh peers (DLV-118).
    pub undelivered: bool,
    /// The object that caused it.
    pub origin: Option<Arc<Origin>>,
    /// gRPC status, where it is not that of [`Failure::status`].
    pub grpc_code: Option<u16>,
}

/// What a retry policy sees in a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// No connection could be made.
    Connect,
    /// No response.
    Reset {
        /// The head of the request was not written.
        before_request: bool,
    },
    /// HTTP/2 REFUSED_STREAM.
    Refused,
    /// The limit of one try.
    PerTry,
    /// Nothing that a retry could help.
    Final,
}

impl Failure {
    fn new(status: u16, flags: Flags, body: impl Into<String>, details: &'static str) -> Self {
        Self {
            status,
            flags,
            body: body.into(),
            details: Details::Word(details),
            class: Class::Final,
            overloaded: false,
            close: false,
            undelivered: false,
            origin: None,
            grpc_code: None,
        }
    }

    /// No rule fits (VS-022).
    #[must_use]
    pub fn no_route() -> Self {
        Self::new(404, Flags::NR, "", "route_not_found")
    }

    /// A destination that does not exist (VS-048).
    #[must_use]
    pub fn no_cluster() -> Self {
        Self::new(503, Flags::NC, "", "cluster_not_found")
    }

    /// No endpoint to choose (SM-049).
    #[must_use]
    pub fn no_endpoint() -> Self {
        Self::new(503, Flags::UH, "no healthy upstream", "no_healthy_upstream")
    }

    /// Unknown traffic that is not let out (FLAG-007).
    #[must_use]
    pub fn black_hole() -> Self {
        Self::new(502, Flags::NONE, "", "direct_response")
    }

    /// The route's limit ran out (VS-092).
    #[must_use]
    pub fn timeout() -> Self {
        Self::new(504, Flags::UT, "upstream request timeout", "response_timeout")
    }

    /// The limit of one try ran out (VS-115).
    #[must_use]
    pub fn per_try_timeout() -> Self {
        Self {
            class: Class::PerTry,
            ..Self::new(504, Flags::UT, "upstream request timeout", "upstream_per_try_timeout")
        }
    }

    /// An answer without upstream and flag, by its details.
    #[must_use]
    pub fn plain(status: u16, body: &str, details: &'static str) -> Self {
        Self::new(status, Flags::NONE, body, details)
    }

    /// A policy refuses it (AUTHZ-022, AUTHZ-023).
    #[must_use]
    pub fn denied(denial: &Denial) -> Self {
        Self {
            details: Details::Denied(denial.details.clone()),
            origin: denial.origin.clone(),
            ..Self::new(403, Flags::NONE, "RBAC: access denied", "")
        }
    }

    /// The client broke the protocol; its connection is closed.
    #[must_use]
    pub fn bad_request(status: u16, details: &'static str) -> Self {
        Self {
            close: true,
            ..Self::new(status, Flags::DPE, h1::reason(status), details)
        }
    }

    /// Circuit breaking.
    #[must_use]
    pub fn overflow() -> Self {
        Self {
            overloaded: true,
            ..Self::reset(503, Flags::UO, "overflow", None)
        }
    }

    /// No response, for a reason of FLAG-003.
    fn reset(status: u16, flags: Flags, reason: &str, transport: Option<&str>) -> Self {
        let mut body = format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
        let mut inner = reason.to_owned();
        if let Some(transport) = transport {
            body.push_str(", transport failure reason: ");
            body.push_str(transport);
            inner.push('|');
            inner.push_str(transport);
        }
        let details = format!("upstream_reset_before_response_started{{{}}}", inner.replace(' ', "_"));
        Self {
            details: Details::Text(details.into()),
            ..Self::new(status, flags, body, "")
        }
    }

    /// No connection.
    #[must_use]
    pub fn connect(error: &ConnectError) -> Self {
        let reset = |transport: Option<&str>| Self::reset(503, Flags::UF, error.reason(), transport);
        let failure = reset(error.transport().as_deref());
        Self {
            class: if error.is_local() { Class::Final } else { Class::Connect },
            // Names of objects are for the log and x-weft-reason: anybody reads bodies (BYD-030).
            body: match error {
                ConnectError::Unavailable(_) => reset(Some("TLS to the destination is not available")).body,
                _ => failure.body,
            },
            ..failure
        }
    }

    /// No response on a connection.
    #[must_use]
    pub fn send(error: &SendError) -> Self {
        match error {
            SendError::Closed { before_request, .. } => Self {
                class: Class::Reset {
                    before_request: *before_request,
                },
                ..Self::reset(503, Flags::UC, "connection termination", None)
            },
            SendError::Reset => Self {
                class: Class::Reset { before_request: false },
                ..Self::reset(503, Flags::UR, "remote reset", None)
            },
            SendError::Refused => Self {
                class: Class::Refused,
                ..Self::reset(503, Flags::UR, "remote refused stream reset", None)
            },
            SendError::Protocol(_) => Self {
                class: Class::Reset { before_request: false },
                ..Self::reset(502, Flags::UPE, "protocol error", None)
            },
            SendError::RequestBody(BodyError::Coding(word)) => Self {
                close: true,
                ..Self::new(400, Flags::DPE, "the body of the request cannot be decoded", word)
            },
            SendError::RequestBody(_) => Self {
                close: true,
                ..Self::new(400, Flags::DPE, "Bad Request", "downstream_body_error")
            },
        }
    }

    /// The same after retries: text and flag say so (VS-119, FLAG-003).
    #[must_use]
    pub fn after_retries(mut self) -> Self {
        self.flags |= Flags::URX;
        self.body = self.body.replacen(
            "before headers. reset reason:",
            "before headers. retried and the latest reset reason:",
            1,
        );
        self
    }
}

/// Who asked, as far as `x-weft-reason` is concerned (BYD-030).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The pod's own application, or a caller of the proxy's own namespace that mTLS verified: gets the object's name.
    Own,
    /// A caller of the same trust domain that mTLS verified.
    Mesh,
    /// Anybody else: gets no reason.
    Outside,
}

/// Makes a response of a failure and notes it.
#[must_use]
pub fn rescue(failure: Failure, exchange: &mut Exchange, audience: Audience) -> Response {
    exchange.flags |= failure.flags;
    exchange.closes |= failure.close;
    let mut head = local_reply(failure.status, &failure.body, exchange.grpc);
    if let Some(code) = failure.grpc_code.filter(|_| exchange.grpc) {
        head.headers.set("grpc-status", code.to_string());
    }
    if failure.overloaded {
        head.headers.push("x-envoy-overloaded", "true");
    }
    if failure.undelivered && audience != Audience::Outside && exchange.downstream.principal.is_some() {
        head.headers.push("x-weft-undelivered", "true");
    }
    let is_failure = !failure.flags.is_empty() || matches!(failure.status, 400..);
    if audience != Audience::Outside && is_failure {
        let mut reason = failure.details.reason();
        if let Some(origin) = &failure.origin {
            reason.push_str("; ");
            reason.push_str(&origin.kind);
            if audience == Audience::Own {
                reason.push_str(&format!(" {}/{}", origin.namespace, origin.name));
            }
        }
        reason.retain(|c| c.is_ascii() && !c.is_ascii_control());
        head.headers.push("x-weft-reason", reason);
    }
    exchange.details = Some(failure.details);
    let body = if exchange.grpc || failure.body.is_empty() {
        Body::Empty
    } else {
        Body::Full(failure.body.into())
    };
    Response { head, body }
}

/// Head of an answer of the proxy; for gRPC the status it stands for (FLAG-006).
#[must_use]
pub fn local_reply(status: u16, body: &str, grpc: bool) -> ResponseHead {
    if grpc {
        let mut head = ResponseHead::new(200);
        head.reason = Bytes::from_static(b"OK");
        head.headers.push("content-type", "application/grpc");
        head.headers.push("grpc-status", grpc_status(status).to_string());
        if !body.is_empty() {
            head.headers.push("grpc-message", percent(body));
        }
        head.headers.push("content-length", "0");
        return head;
    }
    let mut head = ResponseHead::new(status);
    head.reason = Bytes::from_static(h1::reason(status).as_bytes());
    if status != 204 && status != 304 {
        head.headers.push("content-length", body.len().to_string());
    }
    if !body.is_empty() {
        head.headers.push("content-type", "text/plain");
    }
    head
}

/// gRPC status that stands for an HTTP status.
#[must_use]
pub fn grpc_status(status: u16) -> u16 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// `grpc-message` is percent-encoded.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
