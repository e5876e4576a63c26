//! Formats of lines, compiled once, and rendered without a value in between.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;

use crate::clock::Rfc3339;
use crate::exchange::{Downstream, Exchange, Flags, Session, Target, Upstream};
use crate::http::Headers;

/// The default line (LOG-004).
const DEFAULT_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// The default object (LOG-005).
const DEFAULT_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
];

/// How a line is written.
#[derive(Debug, Clone)]
pub(super) enum Format {
    /// The line with its end.
    Text(Vec<Part>),
    /// What stands before each value, and the value.
    Json(Vec<(Vec<u8>, Vec<Part>)>),
}

/// A part of a format (LOG-016).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Operator {
        operator: Operator,
        /// Characters of the value at most.
        limit: Option<usize>,
    },
}

/// What is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operator {
    StartTime,
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    GrpcStatusNumber,
    UpstreamRequestAttemptCount,
    UpstreamHost,
    UpstreamCluster,
    UpstreamLocalAddress,
    UpstreamConnectionId,
    DownstreamRemoteAddress,
    DownstreamRemoteIp,
    DownstreamRemotePort,
    DownstreamLocalAddress,
    DownstreamLocalIp,
    DownstreamLocalPort,
    DownstreamPeerUriSan,
    DownstreamLocalUriSan,
    RequestedServerName,
    ConnectionId,
    RouteName,
    /// A policy asked for a mark (AUTHZ-021).
    Audited,
    AccessLogType,
    /// The first of these fields that is there.
    Request {
        fields: Vec<RequestField>,
        without_query: bool,
    },
    Response(Vec<ResponseField>),
    /// A variable, which does not change.
    Fixed(String),
    /// Not known, or unset for good.
    None,
}

/// A field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RequestField {
    Method,
    Path,
    OriginalPath,
    Authority,
    UserAgent,
    RequestId,
    ForwardedFor,
    Other(String),
}

/// A field of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ResponseField {
    UpstreamServiceTime,
    Other(String),
}

impl Format {
    /// Text; a line that has no end gets one.
    pub(super) fn text(format: Option<&str>) -> Self {
        let mut parts = parse(format.unwrap_or(DEFAULT_TEXT));
        if !matches!(parts.last(), Some(Part::Text(text)) if text.ends_with('\n')) {
            parts.push(Part::Text("\n".into()));
        }
        Self::Text(parts)
    }

    /// JSON, its keys in order; a format that is no object of strings gives way to the default one.
    pub(super) fn json(format: Option<&str>) -> Self {
        let own: Option<BTreeMap<String, String>> = format.and_then(|format| serde_json::from_str(format).ok());
        let fields = own.unwrap_or_else(|| {
            let owned = |(key, format): &(&str, &str)| ((*key).to_owned(), (*format).to_owned());
            DEFAULT_JSON.iter().map(owned).collect()
        });
        let mut before = vec![b'{'];
        let compiled = fields.into_iter().map(|(key, format)| {
            let mut lead = std::mem::replace(&mut before, vec![b',']);
            quote(&mut lead, |out| out.escaped(&key));
            lead.push(b':');
            (lead, parse(&format))
        });
        Self::Json(compiled.collect())
    }

    /// Whether it names header fields that an exchange does not keep by itself.
    pub(super) fn keeps_headers(&self) -> bool {
        let custom = |part: &Part| match part {
            Part::Operator {
                operator: Operator::Request { fields, .. },
                ..
            } => fields.iter().any(|field| matches!(field, RequestField::Other(_))),
            Part::Operator {
                operator: Operator::Response(fields),
                ..
            } => fields.iter().any(|field| matches!(field, ResponseField::Other(_))),
            Part::Operator { .. } | Part::Text(_) => false,
        };
        match self {
            Self::Text(parts) => parts.iter().any(custom),
            Self::Json(fields) => fields.iter().flat_map(|(_, parts)| parts).any(custom),
        }
    }

    /// Appends the line of a record.
    pub(super) fn render(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Text(parts) => {
                for part in parts {
                    match part {
                        Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                        Part::Operator { operator, limit } => {
                            record.write(operator, &mut Sink::new(out, Form::Text, *limit))
                        }
                    }
                }
            }
            Self::Json(fields) => {
                if fields.is_empty() {
                    out.push(b'{');
                }
                for (lead, parts) in fields {
                    out.extend_from_slice(lead);
                    match parts.as_slice() {
                        [Part::Operator { operator, limit }] => {
                            record.write(operator, &mut Sink::new(out, Form::Json, *limit))
                        }
                        parts => quote(out, |mixed| {
                            for part in parts {
                                match part {
                                    Part::Text(text) => mixed.escaped(text),
                                    Part::Operator { operator, limit } => {
                                        record.write(operator, &mut Sink::new(mixed.out, Form::InJson, *limit));
                                    }
                                }
                            }
                        }),
                    }
                }
                out.extend_from_slice(b"}\n");
            }
        }
    }
}

/// What a line is about.
pub(super) enum Record<'a> {
    Request(&'a Exchange),
    Session(&'a Session),
}

impl Record<'_> {
    fn downstream(&self) -> &Downstream {
        match self {
            Self::Request(e) => &e.downstream,
            Self::Session(s) => &s.downstream,
        }
    }

    fn upstream(&self) -> &Upstream {
        match self {
            Self::Request(e) => &e.upstream,
            Self::Session(s) => &s.upstream,
        }
    }

    fn exchange(&self) -> Option<&Exchange> {
        match self {
            Self::Request(e) => Some(e),
            Self::Session(_) => None,
        }
    }

    /// Writes the value of an operator, once, or that it is unset (LOG-007).
    fn write(&self, operator: &Operator, out: &mut Sink<'_>) {
        let (downstream, upstream) = (self.downstream(), self.upstream());
        let exchange = self.exchange();
        match operator {
            Operator::StartTime => out.show(&Rfc3339(match self {
                Self::Request(e) => e.start_time,
                Self::Session(s) => s.start_time,
            })),
            Operator::Protocol => out.text(exchange.map(|e| e.protocol.as_str())),
            Operator::UpstreamProtocol => out.text(exchange.and_then(|e| e.upstream_protocol).map(|p| p.as_str())),
            Operator::ResponseCode => out.number(exchange.map_or(0, |e| e.status)),
            Operator::ResponseFlags => {
                let flags = match self {
                    Self::Request(e) => e.flags,
                    Self::Session(s) => s.flags,
                };
                out.optional((flags != Flags::NONE).then_some(flags));
            }
            Operator::ResponseCodeDetails => {
                let details = match self {
                    Self::Request(e) => e.details.as_ref(),
                    Self::Session(s) => s.details.as_ref(),
                };
                out.optional(details.map(Underscored));
            }
            Operator::ConnectionTerminationDetails => out.optional(match self {
                Self::Session(s) => s.termination.as_ref(),
                Self::Request(_) => None,
            }),
            Operator::UpstreamTransportFailureReason => out.text(upstream.failure.as_deref()),
            Operator::BytesReceived => out.number(match self {
                Self::Request(e) => e.bytes_received,
                Self::Session(s) => s.bytes_received,
            }),
            Operator::BytesSent => out.number(match self {
                Self::Request(e) => e.bytes_sent,
                Self::Session(s) => s.bytes_sent,
            }),
            Operator::Duration => {
                let elapsed = match self {
                    Self::Request(e) => e.duration(),
                    Self::Session(s) => s.start.elapsed(),
                };
                out.number(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            }
            Operator::GrpcStatusNumber => match exchange.and_then(|e| e.grpc_status) {
                Some(status) => out.number(status),
                None => out.unset(),
            },
            Operator::UpstreamRequestAttemptCount => match exchange {
                Some(e) => out.number(e.attempts),
                None => out.unset(),
            },
            Operator::UpstreamHost => out.optional(upstream.host),
            Operator::UpstreamCluster => match &upstream.target {
                Target::None => out.unset(),
                target => out.show(target),
            },
            Operator::UpstreamLocalAddress => out.optional(upstream.local),
            Operator::UpstreamConnectionId => out.number(upstream.connection_id),
            Operator::DownstreamRemoteAddress => out.show(&downstream.remote),
            Operator::DownstreamRemoteIp => out.show::<IpAddr>(&downstream.remote.ip()),
            Operator::DownstreamRemotePort => out.number(downstream.remote.port()),
            Operator::DownstreamLocalAddress => out.show(&downstream.local),
            Operator::DownstreamLocalIp => out.show::<IpAddr>(&downstream.local.ip()),
            Operator::DownstreamLocalPort => out.number(downstream.local.port()),
            Operator::DownstreamPeerUriSan => out.text(downstream.principal.as_deref()),
            Operator::DownstreamLocalUriSan => out.text(downstream.local_principal.as_deref()),
            Operator::RequestedServerName => out.text(downstream.server_name.as_deref()),
            Operator::ConnectionId => out.number(downstream.id),
            Operator::Audited => out.text(exchange.and_then(|e| e.audited.then_some("true"))),
            Operator::RouteName => out.text(match self {
                Self::Request(e) => e.route.as_deref(),
                Self::Session(s) => s.route.as_deref(),
            }),
            Operator::AccessLogType => out.text(Some(match self {
                Self::Request(_) => "DownstreamEnd",
                Self::Session(_) => "TcpConnectionEnd",
            })),
            Operator::Request { fields, without_query } => {
                let value = exchange.and_then(|e| fields.iter().find_map(|field| request_field(e, field)));
                let cut = |value: &[u8]| {
                    value
                        .iter()
                        .position(|b| *without_query && *b == b'?')
                        .unwrap_or(value.len())
                };
                out.bytes(value.map(|value| &value[..cut(value)]));
            }
            Operator::Response(fields) => match exchange {
                Some(e) => write_response_field(e, fields, out),
                None => out.unset(),
            },
            Operator::Fixed(text) => out.text(Some(text.as_str())),
            Operator::None => out.unset(),
        }
    }
}

fn request_field<'e>(e: &'e Exchange, field: &RequestField) -> Option<&'e [u8]> {
    let some = |bytes: &'e [u8]| (!bytes.is_empty()).then_some(bytes);
    match field {
        RequestField::Method => some(&e.method),
        RequestField::Path => some(e.sent_path.as_ref().unwrap_or(&e.path)),
        RequestField::OriginalPath => e.sent_path.as_ref().map(|_| &e.path[..]),
        RequestField::Authority => some(&e.authority),
        RequestField::UserAgent => e.user_agent.as_deref(),
        RequestField::RequestId => e.request_id.as_deref(),
        RequestField::ForwardedFor => e.forwarded_for.as_deref(),
        RequestField::Other(name) => header(&e.request_headers, name),
    }
}

fn write_response_field(e: &Exchange, fields: &[ResponseField], out: &mut Sink<'_>) {
    for field in fields {
        match field {
            ResponseField::UpstreamServiceTime if !e.times.response_begin.is_zero() => {
                let waited = e.times.response_begin.saturating_sub(e.times.request_sent);
                return out.show(&waited.as_millis());
            }
            ResponseField::UpstreamServiceTime => {}
            ResponseField::Other(name) => {
                if let Some(value) = header(&e.response_headers, name) {
                    return out.bytes(Some(value));
                }
            }
        }
    }
    out.unset();
}

fn header<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    headers.get(name).map(|value| &value[..])
}

/// With `_` for each space.
struct Underscored<D>(D);

impl<D: Display> Display for Underscored<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Replace<'f, 'b>(&'f mut fmt::Formatter<'b>);
        impl fmt::Write for Replace<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for (n, piece) in text.split(' ').enumerate() {
                    if n > 0 {
                        self.0.write_str("_")?;
                    }
                    self.0.write_str(piece)?;
                }
                Ok(())
            }
        }
        write!(Replace(f), "{}", self.0)
    }
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In a line of text.
    Text,
    /// A JSON value.
    Json,
    /// Inside of a JSON string.
    InJson,
}

/// Takes one value.
struct Sink<'o> {
    out: &'o mut Vec<u8>,
    form: Form,
    /// Characters that may still come.
    left: usize,
}

impl<'o> Sink<'o> {
    fn new(out: &'o mut Vec<u8>, form: Form, limit: Option<usize>) -> Self {
        Self {
            out,
            form,
            left: limit.unwrap_or(usize::MAX),
        }
    }

    fn unset(&mut self) {
        self.out.extend_from_slice(match self.form {
            Form::Text | Form::InJson => b"-",
            Form::Json => b"null",
        });
    }

    fn number(&mut self, number: impl Into<u64>) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut left = number.into();
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[at..]);
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            None => self.unset(),
            Some(text) => self.whole(|sink| sink.escaped(text)),
        }
    }

    fn bytes(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.unset(),
            Some(bytes) => self.whole(|sink| {
                for chunk in bytes.utf8_chunks() {
                    sink.escaped(chunk.valid());
                    if !chunk.invalid().is_empty() {
                        sink.escaped("\u{fffd}");
                    }
                }
            }),
        }
    }

    fn show<D: Display + ?Sized>(&mut self, value: &D) {
        self.whole(|sink| {
            let _ = write!(sink, "{value}");
        });
    }

    fn optional(&mut self, value: Option<impl Display>) {
        match value {
            None => self.unset(),
            Some(value) => self.show(&value),
        }
    }

    fn whole(&mut self, write: impl FnOnce(&mut Self)) {
        if self.form == Form::Json {
            self.out.push(b'"');
        }
        write(self);
        if self.form == Form::Json {
            self.out.push(b'"');
        }
    }

    /// Appends text so that it stays on its line and inside of its quotes.
    fn escaped(&mut self, text: &str) {
        let plain = |c: char| !c.is_control() && c != '"' && (self.form == Form::Text || c != '\\');
        if text.len() <= self.left && text.chars().all(plain) {
            if self.left != usize::MAX {
                self.left -= text.chars().count();
            }
            self.out.extend_from_slice(text.as_bytes());
            return;
        }
        for c in text.chars().take(self.left) {
            self.left -= 1;
            let mut utf8 = [0; 4];
            match (c, self.form) {
                (c, Form::Text) if c.is_control() || c == '"' => {
                    self.out.extend(c.escape_default().map(|c| c as u8));
                }
                ('"' | '\\', _) if self.form != Form::Text => self.out.extend_from_slice(&[b'\\', c as u8]),
                (c, _) if c.is_control() => {
                    let mut hex = String::new();
                    let _ = write!(hex, "\\u{:04x}", u32::from(c));
                    self.out.extend_from_slice(hex.as_bytes());
                }
                (c, _) => self.out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
            }
        }
    }
}

impl fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.escaped(text);
        Ok(())
    }
}

/// Appends a JSON string.
fn quote(out: &mut Vec<u8>, write: impl FnOnce(&mut Sink<'_>)) {
    out.push(b'"');
    write(&mut Sink::new(out, Form::InJson, None));
    out.push(b'"');
}

fn parse(format: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        match parse_operator(rest) {
            Some((part, after)) => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(part);
                rest = after;
            }
            None => text.push('%'),
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    parts
}

fn parse_operator(text: &str) -> Option<(Part, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_')
        .filter(|e| *e > 0)?;
    let (name, mut rest) = text.split_at(end);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let close = inner.find(')')?;
        argument = Some(&inner[..close]);
        rest = &inner[close + 1..];
    }
    let mut limit = None;
    if let Some(after) = rest.strip_prefix(':') {
        let end = after.find('%')?;
        limit = Some(after[..end].parse().ok()?);
        rest = &after[end..];
    }
    let rest = rest.strip_prefix('%')?;
    let operator = operator(name, argument);
    Some((Part::Operator { operator, limit }, rest))
}

fn operator(name: &str, argument: Option<&str>) -> Operator {
    let names = || argument.unwrap_or_default().split('?').map(str::to_ascii_lowercase);
    match name {
        "START_TIME" => Operator::StartTime,
        "PROTOCOL" => Operator::Protocol,
        "UPSTREAM_PROTOCOL" => Operator::UpstreamProtocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Operator::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatusNumber,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::UpstreamRequestAttemptCount,
        "UPSTREAM_HOST" => Operator::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "UPSTREAM_LOCAL_ADDRESS" => Operator::UpstreamLocalAddress,
        "UPSTREAM_CONNECTION_ID" => Operator::UpstreamConnectionId,
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Operator::DownstreamRemoteIp,
        "DOWNSTREAM_REMOTE_PORT" => Operator::DownstreamRemotePort,
        "DOWNSTREAM_LOCAL_ADDRESS" => Operator::DownstreamLocalAddress,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Operator::DownstreamLocalIp,
        "DOWNSTREAM_LOCAL_PORT" => Operator::DownstreamLocalPort,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Operator::DownstreamLocalUriSan,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "CONNECTION_ID" => Operator::ConnectionId,
        "ROUTE_NAME" => Operator::RouteName,
        "DYNAMIC_METADATA" if argument == Some("envoy.common:access_log_hint") => Operator::Audited,
        "FILTER_STATE" if argument.is_some_and(|key| key.split(':').next() == Some("audited")) => Operator::Audited,
        "ACCESS_LOG_TYPE" => Operator::AccessLogType,
        "REQ" | "REQ_WITHOUT_QUERY" => Operator::Request {
            fields: names().map(parse_request_field).collect(),
            without_query: name == "REQ_WITHOUT_QUERY",
        },
        "RESP" => Operator::Response(names().map(parse_response_field).collect()),
        "ENVIRONMENT" => argument
            .and_then(|name| std::env::var(name).ok())
            .map_or(Operator::None, Operator::Fixed),
        _ => Operator::None,
    }
}

fn parse_request_field(name: String) -> RequestField {
    match name.as_str() {
        ":method" => RequestField::Method,
        ":path" => RequestField::Path,
        "x-envoy-original-path" => RequestField::OriginalPath,
        ":authority" | "host" => RequestField::Authority,
        "user-agent" => RequestField::UserAgent,
        "x-request-id" => RequestField::RequestId,
        "x-forwarded-for" => RequestField::ForwardedFor,
        _ => RequestField::Other(name),
    }
}

fn parse_response_field(name: String) -> ResponseField {
    match name.as_str() {
        "x-envoy-upstream-service-time" => ResponseField::UpstreamServiceTime,
        _ => ResponseField::Other(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOG-016
    #[test]
    fn formats_are_parsed() {
        let part = |operator, limit| Part::Operator { operator, limit };
        let expected = [
            Part::Text("a%".into()),
            part(
                Operator::Request {
                    fields: vec![RequestField::Other("x".into()), RequestField::Method],
                    without_query: false,
                },
                Some(3),
            ),
            Part::Text("b".into()),
            part(Operator::Duration, None),
            Part::Text("100%".into()),
        ];
        assert_eq!(parse("a%%%REQ(X?:METHOD):3%b%DURATION%100%"), expected);
    }

    fn written(form: Form, limit: Option<usize>, write: impl FnOnce(&mut Sink<'_>)) -> String {
        let mut out = Vec::new();
        write(&mut Sink::new(&mut out, form, limit));
        String::from_utf8(out).expect("text")
    }

    // spec: LOG-007
    #[test]
    fn what_a_client_sent_stays_on_its_line() {
        let sent: &[u8] = b"a\nb\"\\\xff\x00";
        assert_eq!(
            written(Form::Text, None, |out| out.bytes(Some(sent))),
            "a\\nb\\\"\\\u{fffd}\\u{0}"
        );
        let json = written(Form::Json, None, |out| out.bytes(Some(sent)));
        let read: String = serde_json::from_str(&json).expect("a JSON string");
        assert_eq!(read, "a\nb\"\\\u{fffd}\u{0}");
    }

    // spec: LOG-007
    #[test]
    fn values_keep_their_type_in_json_and_unset_ones_are_null() {
        assert_eq!(written(Form::Json, None, |out| out.number(200_u16)), "200");
        assert_eq!(
            written(Form::Json, None, |out| out.number(u64::MAX)),
            u64::MAX.to_string()
        );
        assert_eq!(written(Form::Json, None, |out| out.text(None)), "null");
        assert_eq!(written(Form::Text, None, |out| out.text(None)), "-");
        assert_eq!(written(Form::InJson, None, |out| out.text(None)), "-");
        assert_eq!(written(Form::Json, None, |out| out.text(Some(""))), "\"\"");
    }

    // spec: LOG-016
    #[test]
    fn a_limit_counts_characters() {
        let cut = |limit| written(Form::Text, Some(limit), |out| out.text(Some("äöü\"x")));
        assert_eq!(
            (cut(2), cut(4), cut(9)),
            ("äö".into(), "äöü\\\"".into(), "äöü\\\"x".into())
        );
        let both = written(Form::Text, Some(3), |out| {
            out.escaped("ab");
            out.escaped("cd");
        });
        assert_eq!(both, "abc");
    }

    // spec: LOG-006
    #[test]
    fn keys_of_an_object_are_sorted_and_escaped() {
        let Format::Json(fields) = Format::json(Some(r#"{"b": "%DURATION%", "a\"": "x"}"#)) else {
            panic!("JSON");
        };
        let leads: Vec<&[u8]> = fields.iter().map(|(lead, _)| &lead[..]).collect();
        assert_eq!(leads, [&b"{\"a\\\"\":"[..], &b",\"b\":"[..]]);
    }
}
