//! What the client's proxy answers by itself, and what it adds to answers: redirects, direct responses, CORS, mirrors.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_bundle::model::{Cors, Retry, RetryOn};
use weft_bundle::wire::{Redirect, RedirectPath, RedirectPort};

use super::client::Response;
use super::forward::{self, Plan};
use super::replay::Meter;
use super::route::{Found, split_port};
use super::{Body, Headers, RequestHead, ResponseHead, h1};
use crate::balance::Key;
use crate::cluster::ClusterState;
use crate::exchange::{Direction, Downstream, Exchange};
use crate::worker::Worker;

/// Answers with a redirect (VS-077..VS-086).
pub(super) fn redirect(
    redirect: &Redirect,
    found: &Found<'_>,
    head: &RequestHead,
    port: u16,
    scheme: &[u8],
) -> Response {
    let received_scheme = if scheme == b"https" { "https" } else { "http" };
    let scheme = redirect.scheme.as_deref().unwrap_or(received_scheme);
    let authority = String::from_utf8_lossy(&head.authority);
    let (host, received_port) = split_port(authority.as_bytes());
    let host = String::from_utf8_lossy(host);
    let default = |scheme: &str| if scheme == "https" { 443 } else { 80 };
    let (host, kept_port): (&str, Option<u16>) = match &redirect.authority {
        Some(authority) => (authority, None),
        // A port that was the default of the old scheme goes with it.
        None if scheme != received_scheme && received_port == Some(default(received_scheme)) => (&host, None),
        None => (&host, received_port),
    };
    let wanted = match redirect.port {
        Some(RedirectPort::Number(number)) => Some(number),
        Some(RedirectPort::FromRequest) => Some(port),
        Some(RedirectPort::FromProtocol) | None => kept_port,
        Some(RedirectPort::Received) => received_port,
    };
    let wanted = wanted.filter(|port| redirect.port == Some(RedirectPort::Received) || *port != default(scheme));
    let path = head.path_only();
    let query = head.query();
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = wanted {
        location.push_str(&format!(":{port}"));
    }
    let mut location = location.into_bytes();
    let mut with_query = true;
    match &redirect.path {
        None => location.extend_from_slice(path),
        Some(RedirectPath::Full(full)) => {
            with_query = !full.contains('?');
            location.extend_from_slice(full.as_bytes());
        }
        Some(RedirectPath::Prefix(prefix)) => {
            let length = found
                .matched
                .and_then(|matched| matched.path.as_ref())
                .map_or(1.min(path.len()), |test| test.matched(path));
            location.extend_from_slice(prefix.as_bytes());
            location.extend_from_slice(&path[length..]);
        }
    }
    if let Some(query) = query.filter(|_| with_query) {
        location.push(b'?');
        location.extend_from_slice(query);
    }
    let mut head = ResponseHead::new(redirect.code);
    head.reason = Bytes::from_static(h1::reason(redirect.code).as_bytes());
    head.headers.push("location", location);
    head.headers.push("content-length", "0");
    Response {
        head,
        body: Body::Empty,
    }
}

/// Answers as the rule states (VS-087, VS-088).
pub(super) fn direct(status: u16, body: &Arc<[u8]>, _request: &RequestHead) -> Response {
    let mut head = ResponseHead::new(status);
    head.reason = Bytes::from_static(h1::reason(status).as_bytes());
    if status != 204 && status != 304 {
        head.headers.push("content-length", body.len().to_string());
    }
    if body.is_empty() {
        return Response {
            head,
            body: Body::Empty,
        };
    }
    head.headers.push("content-type", "text/plain");
    Response {
        head,
        body: Body::Full(Bytes::copy_from_slice(body)),
    }
}

/// The limit of a request: that of the route, shortened by `grpc-timeout` (VS-096).
pub(super) fn limit(route: Option<Duration>, head: &RequestHead) -> Option<Duration> {
    let asked = head.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value));
    match (route, asked) {
        (Some(route), Some(asked)) => Some(route.min(asked)),
        (limit, None) | (None, limit) => limit,
    }
}

/// `<up to 8 digits><unit>`.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn admits(cors: &Cors, origin: &[u8]) -> bool {
    cors.any_origin || cors.origins.iter().any(|text| text.fits(origin))
}

/// Answers a CORS preflight (VS-143..VS-151).
pub(super) fn preflight(cors: Option<&Cors>, head: &RequestHead) -> Option<Response> {
    let cors = cors?;
    if *head.method != *b"OPTIONS" {
        return None;
    }
    let origin = head.headers.get("origin")?;
    let method = head.headers.get("access-control-request-method")?;
    let admitted = admits(cors, origin);
    if !admitted && !cors.policy.ignore_unmatched_preflights {
        return None;
    }
    let mut answer = ResponseHead::new(200);
    answer.reason = Bytes::from_static(b"OK");
    let headers = &mut answer.headers;
    // The origin and what goes with it are added to all answers alike.
    let list = |wanted: &[String], asked: Option<&Bytes>| {
        if wanted.iter().any(|value| value == "*") {
            asked.cloned()
        } else if wanted.is_empty() {
            None
        } else {
            Some(Bytes::from(wanted.join(",")))
        }
    };
    if let Some(methods) = list(&cors.policy.allow_methods, Some(method)) {
        headers.push("access-control-allow-methods", methods);
    }
    let asked = head.headers.get("access-control-request-headers");
    if let Some(names) = list(&cors.policy.allow_headers, asked) {
        headers.push("access-control-allow-headers", names);
    }
    if let Some(age) = cors.policy.max_age_seconds {
        headers.push("access-control-max-age", age.to_string());
    }
    headers.push("content-length", "0");
    Some(Response {
        head: answer,
        body: Body::Empty,
    })
}

/// Adds CORS fields to an answer, unless a fault gave it (VS-132, VS-145, VS-152, VS-153).
pub(super) fn cors(cors: Option<&Cors>, exchange: &Exchange, request: &Headers, response: &mut Headers) {
    let Some(cors) = cors else { return };
    let Some(origin) = request.get("origin") else { return };
    if !admits(cors, origin) || exchange.flags.contains(crate::exchange::Flags::FI) {
        return;
    }
    response.set("access-control-allow-origin", origin.clone());
    if cors.policy.allow_credentials {
        response.set("access-control-allow-credentials", "true");
    }
    if !cors.policy.expose_headers.is_empty() {
        response.set("access-control-expose-headers", cors.policy.expose_headers.join(","));
    }
}

/// Sends copies of a request once its body is there; nobody waits for them (VS-136..VS-141).
pub(super) fn mirror(
    worker: &Rc<Worker>,
    destinations: Vec<(Rc<ClusterState>, Key)>,
    mut head: RequestHead,
    meter: &Rc<Meter>,
    exchange: &Exchange,
) {
    let Some(pieces) = meter.copy.borrow_mut().take() else {
        return;
    };
    if !meter.ended.get() || head.upgrade {
        return;
    }
    let body = Bytes::from(pieces.concat());
    if head.headers.contains("transfer-encoding") {
        head.headers.remove("transfer-encoding");
        head.headers.set("content-length", body.len().to_string());
    }
    let caller = exchange.downstream.remote.ip().to_string();
    let forwarded = match head.headers.get("x-forwarded-for") {
        Some(before) => format!("{}, {caller}", String::from_utf8_lossy(before)),
        None => caller,
    };
    head.headers.set("x-forwarded-for", forwarded);
    for (cluster, key) in destinations {
        let mut head = head.clone();
        let body = if body.is_empty() {
            Body::Empty
        } else {
            Body::Full(body.clone())
        };
        let worker = worker.clone();
        let protocol = exchange.protocol;
        let downstream = Arc::new(Downstream {
            direction: Direction::Outbound,
            ..(*exchange.downstream).clone()
        });
        tokio::task::spawn_local(async move {
            let mut record = Exchange::new(worker.shared.telemetry.clone(), downstream, protocol);
            record.discard();
            let retry = Retry {
                attempts: 0,
                on: RetryOn::default(),
                statuses: Vec::new(),
                per_try_timeout: None,
                backoff: Duration::ZERO,
                avoid_tried: false,
                next_locality: false,
            };
            let plan = Plan {
                cluster: &cluster,
                retry: &retry,
                timeout: None,
                key,
                pinned: None,
            };
            let meter = Rc::new(Meter::default());
            if let Ok(mut response) = forward::forward(&worker, &plan, &mut head, body, &meter, &mut record).await {
                while let Ok(Some(_)) = std::future::poll_fn(|cx| response.body.poll_frame(cx)).await {}
            }
        });
    }
}
