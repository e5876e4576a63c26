//! Which rule handles a request, and what it changes (VS-020 ff.).

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use weft_bundle::model::{HeaderName, HeaderOps, Match, PathRewrite, Piece, RouteTable, Rule, Template};

use super::{Headers, RequestHead};
use crate::exchange::Exchange;

/// What rules look at.
pub struct View<'r> {
    /// Head, after normalisation and before any change of it (VS-067).
    pub head: &'r RequestHead,
    /// `http` or `https` as VS-034 has it.
    pub scheme: &'r [u8],
    /// Port that an authority may name and be the same without; `None`: authorities count as sent (BYD-064).
    pub port: Option<u16>,
}

/// The rule that handles a request, with the alternative that fits.
pub struct Found<'t> {
    /// Rule.
    pub rule: &'t Arc<Rule>,
    /// Alternative; `None` when the rule has none.
    pub matched: Option<&'t Match>,
}

impl Found<'_> {
    /// Name for the access log (VS-025).
    #[must_use]
    pub fn log_name(&self) -> Option<Arc<str>> {
        self.matched
            .and_then(|matched| matched.log_name.clone())
            .or_else(|| self.rule.log_name.clone())
    }
}

/// The first rule that fits; `None`: 404.
#[must_use]
pub fn find<'t>(table: &'t RouteTable, view: &View<'_>) -> Option<Found<'t>> {
    table.rules.iter().find_map(|rule| {
        if rule.matches.is_empty() {
            return Some(Found { rule, matched: None });
        }
        let matched = rule.matches.iter().find(|m| fits(m, view))?;
        Some(Found {
            rule,
            matched: Some(matched),
        })
    })
}

fn fits(m: &Match, view: &View<'_>) -> bool {
    let head = view.head;
    let bare = || {
        view.port
            .map_or(&*head.authority, |port| without_port(&head.authority, port))
    };
    m.path.as_ref().is_none_or(|path| path.fits(head.path_only()))
        && m.method.as_ref().is_none_or(|method| method.fits(&head.method))
        && m.scheme.as_ref().is_none_or(|scheme| scheme.fits(view.scheme))
        && m.authority
            .as_ref()
            .is_none_or(|test| test.fits(&head.authority, bare()))
        && m.query.iter().all(|query| query.holds(head.query()))
        && m.headers.iter().all(|header| match &header.name {
            HeaderName::Field(name) => header.holds(head.headers.all(name).map(|value| &value[..])),
            HeaderName::Method => header.holds(std::iter::once(&head.method[..])),
            HeaderName::Scheme => header.holds(std::iter::once(view.scheme)),
            HeaderName::Authority => header.holds(std::iter::once(&head.authority[..])),
            HeaderName::Path => header.holds(std::iter::once(&head.path[..])),
        })
}

/// An authority without its port, where that equals `port` (BYD-064).
#[must_use]
pub fn without_port(authority: &[u8], port: u16) -> &[u8] {
    let (name, found) = split_port(authority);
    if found.is_none_or(|found| found == port) {
        name
    } else {
        authority
    }
}

/// Name and port of an authority. Brackets of IPv6 addresses stay; an empty port is none (RFC 3986, section 3.2.3).
#[must_use]
pub fn split_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let Some(colon) = memchr::memrchr(b':', authority) else {
        return (authority, None);
    };
    let digits = &authority[colon + 1..];
    let name = &authority[..colon];
    // The last colon of a bare IPv6 address is no port's.
    if name.contains(&b':') && name.last() != Some(&b']') {
        return (authority, None);
    }
    if digits.is_empty() {
        return (name, None);
    }
    let is_number = digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_number);
    match number.and_then(|digits| digits.parse().ok()) {
        Some(port) => (name, Some(port)),
        None => (authority, None),
    }
}

/// Rewrites the path of a request as the rule says; the query is kept (VS-068..VS-075).
pub fn rewrite_path(head: &mut RequestHead, found: &Found<'_>, exchange: &mut Exchange) {
    let Some(rewrite) = &found.rule.rewrite.path else {
        return;
    };
    let path = head.path_only();
    let rest = &head.path[path.len()..];
    let changed: Cow<'_, [u8]> = match rewrite {
        PathRewrite::Matched(replacement) => {
            // An alternative without path acts as prefix `/` (VS-070).
            let length = found
                .matched
                .and_then(|matched| matched.path.as_ref())
                .map_or(1.min(path.len()), |test| test.matched(path));
            Cow::Owned([replacement.as_bytes(), &path[length..]].concat())
        }
        PathRewrite::Regex { pattern, substitution } => pattern.replace_all(path, &substitution[..]),
    };
    if *changed == *path {
        return;
    }
    let mut joined = changed.into_owned();
    if joined.first() != Some(&b'/') {
        joined.insert(0, b'/');
    }
    joined.extend_from_slice(rest);
    let original = std::mem::replace(&mut head.path, Bytes::from(joined));
    head.headers.set(Bytes::from_static(b"x-envoy-original-path"), original);
    exchange.sent_path = Some(head.path.clone());
}

/// Replaces the authority, and tells the received one (VS-073).
pub fn rewrite_authority(head: &mut RequestHead, authority: Bytes) {
    if head.authority == authority || authority.is_empty() {
        return;
    }
    let original = std::mem::replace(&mut head.authority, authority.clone());
    if head.headers.contains("host") {
        head.headers.set(Bytes::from_static(b"host"), authority);
    } else {
        head.headers.push_front(Bytes::from_static(b"host"), authority);
    }
    head.headers.set(Bytes::from_static(b"x-envoy-original-host"), original);
}

/// Changes request header fields: operations of destination and route in the order of VS-062. Gives the authority that
/// they set, if any (VS-063).
#[must_use]
pub fn change_request(
    head: &mut RequestHead,
    route: &HeaderOps,
    destination: &HeaderOps,
    several: bool,
    exchange: &Exchange,
) -> Option<Bytes> {
    if route.is_empty() && destination.is_empty() {
        return None;
    }
    let received = head.headers.clone();
    let evaluate = |template: &Template| evaluate(template, exchange, &received);
    let mut by_route = None;
    let mut by_destination = None;
    change(
        &mut head.headers,
        route,
        destination,
        several,
        evaluate,
        |value, of_route| {
            *(if of_route { &mut by_route } else { &mut by_destination }) = Some(value);
        },
    );
    by_route.or(by_destination)
}

/// Changes response header fields, as [`change_request`]. `received`: those of the request.
pub fn change_response(
    headers: &mut Headers,
    route: &HeaderOps,
    destination: &HeaderOps,
    several: bool,
    exchange: &Exchange,
    received: &Headers,
) {
    if route.is_empty() && destination.is_empty() {
        return;
    }
    let evaluate = |template: &Template| evaluate(template, exchange, received);
    change(headers, route, destination, several, evaluate, |_, _| {});
}

fn change(
    headers: &mut Headers,
    route: &HeaderOps,
    destination: &HeaderOps,
    several: bool,
    evaluate: impl Fn(&Template) -> Bytes,
    mut authority: impl FnMut(Bytes, bool),
) {
    let remove = |headers: &mut Headers, ops: &HeaderOps| {
        for name in &ops.remove {
            headers.remove(name);
        }
    };
    let mut put = |headers: &mut Headers, ops: &HeaderOps, of_route: bool| {
        for (name, template) in &ops.set {
            let value = evaluate(template);
            if name.eq_ignore_ascii_case("host") || &**name == ":authority" {
                authority(value, of_route);
            } else if !value.is_empty() || template.literal().is_some() {
                headers.set(Bytes::copy_from_slice(name.as_bytes()), value);
            }
        }
        for (name, template) in &ops.add {
            let value = evaluate(template);
            if !value.is_empty() || template.literal().is_some() {
                headers.push(Bytes::copy_from_slice(name.as_bytes()), value);
            }
        }
    };
    if several {
        remove(headers, destination);
        put(headers, destination, false);
        remove(headers, route);
        put(headers, route, true);
    } else {
        remove(headers, route);
        remove(headers, destination);
        put(headers, route, true);
        put(headers, destination, false);
    }
}

/// Value of a template; a variable without value is empty.
fn evaluate(template: &Template, exchange: &Exchange, received: &Headers) -> Bytes {
    if let Some(text) = template.literal() {
        return Bytes::copy_from_slice(text.as_bytes());
    }
    let mut out = Vec::new();
    for piece in &template.pieces {
        match piece {
            Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Variable { name, argument, limit } => {
                let value = variable(name, argument.as_deref(), exchange, received);
                let length = limit.map_or(value.len(), |limit| limit.min(value.len()));
                out.extend_from_slice(&value[..length]);
            }
        }
    }
    // A value from the request never breaks a line.
    out.retain(|b| *b >= 0x20 && *b != 0x7f || *b == b'\t');
    out.into()
}

fn variable(name: &str, argument: Option<&str>, exchange: &Exchange, received: &Headers) -> Bytes {
    let downstream = &exchange.downstream;
    let text = |value: &dyn std::fmt::Display| {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = write!(out, "{value}");
        Bytes::from(out)
    };
    match name {
        "REQ" => {
            let (first, second) = argument
                .unwrap_or_default()
                .split_once('?')
                .unwrap_or((argument.unwrap_or_default(), ""));
            [first, second]
                .into_iter()
                .filter(|name| !name.is_empty())
                .find_map(|name| match &*name.to_ascii_lowercase() {
                    ":method" => Some(exchange.method.clone()),
                    ":path" => Some(exchange.path.clone()),
                    ":authority" | "host" => Some(exchange.authority.clone()),
                    name => received.get(name).cloned(),
                })
                .unwrap_or_default()
        }
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => text(&downstream.remote),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            text(&downstream.remote.ip())
        }
        "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT" => text(&downstream.remote.port()),
        "DOWNSTREAM_LOCAL_ADDRESS" => text(&downstream.local),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => text(&downstream.local.ip()),
        "DOWNSTREAM_LOCAL_PORT" => text(&downstream.local.port()),
        "PROTOCOL" => Bytes::from_static(exchange.protocol.as_str().as_bytes()),
        "UPSTREAM_HOST" => exchange.upstream.host.map(|host| text(&host)).unwrap_or_default(),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => text(&exchange.upstream.target),
        "RESPONSE_CODE" => text(&exchange.status),
        "RESPONSE_FLAGS" => text(&exchange.flags),
        "ROUTE_NAME" => exchange.route.as_ref().map(text_of).unwrap_or_default(),
        "REQUESTED_SERVER_NAME" => downstream.server_name.as_ref().map(text_of).unwrap_or_default(),
        "DOWNSTREAM_PEER_URI_SAN" => downstream.principal.as_ref().map(text_of).unwrap_or_default(),
        "DOWNSTREAM_LOCAL_URI_SAN" => downstream.local_principal.as_ref().map(text_of).unwrap_or_default(),
        "START_TIME" => text(&crate::clock::Rfc3339(exchange.start_time)),
        _ => Bytes::new(),
    }
}

fn text_of(value: &Arc<str>) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}
