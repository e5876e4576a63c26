//! Tries: picks an endpoint, takes a connection, sends, and judges what came of it.
//!
//! Three layers, from inside: a connect that fails goes to another endpoint (DLV-113), a request that a reused
//! connection lost goes to a new one (BYD-014), and only then the retry policy judges (VS-187).

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};
use weft_bundle::model::Retry;
use weft_bundle::wire::{HttpVersion, Protocol};

use super::client::{self, Channel, Guards, Response, SendError};
use super::replay::{Home, Limit, Meter, Replay};
use super::rescue::{Class, Failure};
use super::{Body, RequestHead, Version};
use crate::balance::Key;
use crate::cluster::{ClusterState, Peer, Permit};
use crate::connect::ConnectError;
use crate::exchange::{Exchange, Flags};
use crate::outlier::Outcome;
use crate::telemetry::Counter;
use crate::worker::Worker;

mod channel;

pub use channel::secure;
use channel::{Ask, Unavailable, reach};

/// Further endpoints that one try goes to after failed connects (DLV-113).
const FAILOVERS: usize = 3;

/// Retries that pick an endpoint anew before they accept one that was tried (VS-117).
const CONNECT_PATIENCE: usize = FAILOVERS + 1;

/// Where and how a request goes.
pub struct Plan<'p> {
    /// Destination.
    pub cluster: &'p Rc<ClusterState>,
    /// Retry policy.
    pub retry: &'p Retry,
    /// Limit of all tries.
    pub timeout: Option<Duration>,
    /// Key of consistent hashing.
    pub key: Key,
    /// The endpoint that the client dialled, where it is the only one (SM-076).
    pub pinned: Option<SocketAddr>,
}

/// Sends a request until there is an answer to pass on.
///
/// # Errors
/// The failure that the client gets.
pub async fn forward(
    worker: &Worker,
    plan: &Plan<'_>,
    head: &mut RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let cluster = plan.cluster.cluster();
    let policy = &cluster.policy;
    let counters = &plan.cluster.counters;
    let Some(request_permit) = Permit::take(counters, |c| &c.requests, policy.max_requests) else {
        return Err(Failure::overflow());
    };
    counters.note_request(policy);
    let mut limit = plan.timeout.map(|lasts| Limit::new(lasts, meter.clone()));
    let tries = tries(worker, plan, head, body, meter, exchange);
    let mut tries = pin!(tries);
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(outcome) = tries.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        match limit.as_mut().map(|limit| limit.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    })
    .await;
    match outcome {
        None => Err(Failure::timeout()),
        Some(Err(failure)) => Err(failure),
        Some(Ok(mut response)) => {
            if let Body::Upstream(body) = &mut response.body {
                body.hold(limit, request_permit);
            }
            Ok(response)
        }
    }
}

/// All tries of the retry policy.
async fn tries(
    worker: &Worker,
    plan: &Plan<'_>,
    head: &mut RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let cluster = plan.cluster.cluster();
    let keep = true;
    let mut request = Replay::new(body, meter.clone(), exchange.grpc, keep);
    let mut tried: Vec<SocketAddr> = Vec::new();
    let counters = &plan.cluster.counters;
    let most_retries = || counters.most_retries(&cluster.policy);
    let mut retry_permit: Option<Permit> = None;
    let mut number = 1;
    let home = Home::default();
    loop {
        exchange.attempts = number;
        let count = match number {
            1 => Bytes::from_static(b"1"),
            more => Bytes::from(more.to_string()),
        };
        head.headers.set(Bytes::from_static(b"x-envoy-attempt-count"), count);
        let last = number > plan.retry.attempts;
        let avoided: &[SocketAddr] = if plan.retry.avoid_tried { &tried } else { &[] };
        let per_try = plan
            .retry
            .per_try_timeout
            .filter(|per_try| plan.timeout.is_none_or(|all| *per_try < all));
        if per_try.is_some() {
            request.lend(&home);
        }
        let wish = Wish {
            avoided,
            // Two tries for each priority (VS-118).
            steps: if plan.retry.next_locality {
                (number as usize - 1) / 2
            } else {
                0
            },
        };
        let one = one_try(worker, plan, head, request, wish, exchange);
        let result = match per_try {
            None => one.await,
            Some(limit) => match timeout(limit, one).await {
                Ok(result) => result,
                Err(_) => {
                    if let Some(peer) = exchange.upstream.host {
                        tried.push(peer);
                        report(worker, plan.cluster, peer, Outcome::Failed);
                    }
                    Err((Failure::per_try_timeout(), Replay::recover(&home)))
                }
            },
        };
        let wanted = !last && result.as_ref().is_ok_and(|response| wants_status(plan.retry, response));
        if let Some(host) = exchange.upstream.host
            && (wanted || result.is_err())
            && !tried.contains(&host)
        {
            tried.push(host);
        }
        let (failure, back) = match result {
            Ok(response) => {
                let exhausted = number > 1 && last && wants_status(plan.retry, &response);
                if exhausted {
                    exchange.flags |= Flags::URX;
                }
                if !wanted {
                    return Ok(response);
                }
                let Body::Upstream(body) = response.body else {
                    return Ok(response);
                };
                if !body.can_retry() {
                    return Ok(Response {
                        head: response.head,
                        body: Body::Upstream(body),
                    });
                }
                if retry_permit.is_none() {
                    retry_permit = Permit::take(counters, |c| &c.retries, most_retries());
                }
                if retry_permit.is_none() {
                    // Over the limit the client gets what there is (VS-122).
                    exchange.flags |= Flags::UO;
                    return Ok(Response {
                        head: response.head,
                        body: Body::Upstream(body),
                    });
                }
                match body.into_request() {
                    Some((request, _)) => (None, Some(request)),
                    None => return Err(Failure::overflow()),
                }
            }
            Err((failure, back)) => (Some(failure), back),
        };
        let wanted = failure
            .as_ref()
            .is_none_or(|failure| wants_failure(plan.retry, failure.class));
        let failure = failure.unwrap_or_else(Failure::no_endpoint);
        if !wanted || last {
            return Err(if number > 1 && wanted {
                failure.after_retries()
            } else {
                failure
            });
        }
        let Some(mut back) = back else { return Err(failure) };
        if !back.rewind() {
            return Err(failure);
        }
        if retry_permit.is_none() {
            retry_permit = Permit::take(counters, |c| &c.retries, most_retries());
        }
        if retry_permit.is_none() {
            return Err(Failure {
                flags: failure.flags | Flags::UO,
                ..failure
            });
        }
        request = back;
        worker.shared.telemetry.count(Counter::Retry);
        sleep(back_off(plan.retry.backoff, number)).await;
        number += 1;
    }
}

/// A random time in [0, (2^n - 1) base), at most ten times the base (VS-116).
fn back_off(base: Duration, number: u32) -> Duration {
    let factor = (1u32 << number.min(5)).saturating_sub(1).min(10);
    base.saturating_mul(factor).mul_f64(fastrand::f64())
}

fn wants_failure(retry: &Retry, class: Class) -> bool {
    let on = retry.on;
    match class {
        Class::Connect => {
            on.connect_failure || on.server_error || on.gateway_error || on.reset || on.reset_before_request
        }
        Class::Reset { before_request } => {
            on.server_error || on.gateway_error || on.reset || (before_request && on.reset_before_request)
        }
        Class::Refused => on.refused_stream || on.server_error || on.reset,
        Class::PerTry => on.server_error || on.gateway_error || on.reset,
        Class::Final => false,
    }
}

fn wants_status(retry: &Retry, response: &Response) -> bool {
    let on = retry.on;
    let status = response.head.status;
    let grpc = || {
        let code: u32 = response
            .head
            .headers
            .get("grpc-status")
            .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
            .unwrap_or(0);
        code < 32 && on.grpc & (1 << code) != 0
    };
    (on.server_error && (500..600).contains(&status))
        || (on.gateway_error && matches!(status, 502..=504))
        || (on.retriable_4xx && status == 409)
        || retry.statuses.contains(&status)
        || (on.rate_limited && response.head.headers.contains("x-envoy-ratelimited"))
        || (on.grpc != 0 && grpc())
}

/// Which endpoint a retry would have.
#[derive(Clone, Copy)]
struct Wish<'a> {
    /// None of these, as long as there are others.
    avoided: &'a [SocketAddr],
    /// So many priorities of localities further on.
    steps: usize,
}

/// One try: with failover of connects and the repeat after a keep-alive race.
async fn one_try(
    worker: &Worker,
    plan: &Plan<'_>,
    head: &RequestHead,
    mut request: Replay,
    wish: Wish<'_>,
    exchange: &mut Exchange,
) -> Result<Response, (Failure, Option<Replay>)> {
    let mut raced = false;
    let mut failed: Vec<SocketAddr> = Vec::new();
    let mut fell_back = false;
    let mut last: Option<Failure> = None;
    loop {
        let picked = pick(worker, plan, wish, &failed, fell_back);
        let Some((peer, is_fallback)) = picked.filter(|_| failed.len() < CONNECT_PATIENCE + usize::from(fell_back))
        else {
            return Err((last.unwrap_or_else(Failure::no_endpoint), Some(request)));
        };
        if is_fallback {
            fell_back = true;
            worker.shared.telemetry.count(Counter::VipFallback);
        }
        exchange.upstream.host = Some(peer.address);
        exchange.destination = peer.workload();
        let ask = Ask {
            head,
            version: upstream_version(plan, head),
            client: exchange.downstream.remote,
            dialled: exchange.downstream.local,
        };
        let (peer, channel) = match reach(worker, plan, peer.clone(), &ask, raced, &failed).await {
            Ok(reached) => reached,
            Err(Unavailable::Overflow) => return Err((Failure::overflow(), Some(request))),
            Err(Unavailable::Connect(e)) => {
                exchange.upstream.failure = e.transport().map(Into::into);
                let failure = Failure::connect(&e);
                if e.is_local() {
                    return Err((failure, Some(request)));
                }
                peer.set_aside();
                failed.push(peer.address);
                report(worker, plan.cluster, peer.address, Outcome::Failed);
                worker.shared.telemetry.count(Counter::Failover);
                last = Some(failure);
                if plan.pinned.is_some() {
                    return Err((last.unwrap_or_else(Failure::no_endpoint), Some(request)));
                }
                continue;
            }
        };
        exchange.upstream.host = Some(peer.address);
        exchange.destination = peer.workload();
        note(exchange, &channel);
        let cluster = plan.cluster.cluster();
        let guards = Guards {
            busy: Some(peer.busy()),
            most_requests: cluster.policy.max_requests_per_connection.filter(|most| *most > 0),
            oldest: cluster.policy.max_connection_duration_ms.map(Duration::from_millis),
            ..Guards::default()
        };
        match client::send(channel, head, request, guards).await {
            Ok(mut response) => {
                exchange.times.response_begin = exchange.start.elapsed();
                peer.is_reached();
                let headers = &mut response.head.headers;
                let mesh = exchange.upstream.principal.is_some();
                let leaving = headers.remove("x-weft-draining").is_some();
                let undelivered = headers.remove("x-weft-undelivered").is_some();
                if mesh && leaving {
                    peer.leaves();
                }
                if mesh && undelivered && response.head.status == 503 {
                    peer.set_aside();
                    failed.push(peer.address);
                    report(worker, plan.cluster, peer.address, Outcome::Failed);
                    worker.shared.telemetry.count(Counter::Failover);
                    exchange.upstream.failure = Some("delayed connect error: Connection refused".into());
                    let error = ConnectError::Io {
                        address: peer.address,
                        source: std::io::ErrorKind::ConnectionRefused.into(),
                    };
                    last = Some(Failure::connect(&error));
                    // Nothing reached the application, so the body goes out again as long as it is held.
                    match take_back(response) {
                        Ok(mut back) => {
                            if back.rewind() {
                                request = back;
                                continue;
                            }
                            return Err((last.unwrap_or_else(Failure::no_endpoint), Some(back)));
                        }
                        Err(response) => return Ok(response),
                    }
                }
                report(
                    worker,
                    plan.cluster,
                    peer.address,
                    Outcome::Status(judged_status(&response)),
                );
                return Ok(response);
            }
            Err((e, mut back, _)) => {
                if matches!(e, SendError::Closed { race: true, .. }) && !raced && back.rewind() {
                    raced = true;
                    worker.shared.telemetry.count(Counter::Replay);
                    request = back;
                    last = Some(Failure::send(&e));
                    continue;
                }
                if !matches!(e, SendError::RequestBody(_)) {
                    report(worker, plan.cluster, peer.address, Outcome::Failed);
                }
                return Err((Failure::send(&e), Some(back)));
            }
        }
    }
}

/// gRPC tells in a header what HTTP tells by status.
fn judged_status(response: &Response) -> u16 {
    let grpc = response.head.headers.get("grpc-status").map(|value| &value[..]);
    match grpc {
        Some(b"14") => 503,
        Some(b"2" | b"13" | b"15") => 500,
        _ => response.head.status,
    }
}

fn take_back(response: Response) -> Result<Replay, Response> {
    match response.body {
        Body::Upstream(body) if body.can_retry() => match body.into_request() {
            Some((request, _)) => Ok(request),
            None => Err(Response {
                head: response.head,
                body: Body::Empty,
            }),
        },
        body => Err(Response {
            head: response.head,
            body,
        }),
    }
}

fn pick(
    worker: &Worker,
    plan: &Plan<'_>,
    wish: Wish<'_>,
    failed: &[SocketAddr],
    fell_back: bool,
) -> Option<(Rc<Peer>, bool)> {
    if let Some(address) = plan.pinned {
        let peer = plan.cluster.dialled(address);
        // An address of no list is reached as it was dialled (DR-037, SM-077).
        return Some((peer.unwrap_or_else(|| worker.direct(address)), false));
    }
    let cluster = plan.cluster;
    if !wish.avoided.is_empty() {
        let both: Vec<SocketAddr> = wish.avoided.iter().chain(failed).copied().collect();
        if let Some(peer) = cluster.pick_beyond(wish.steps, &both, plan.key) {
            return Some((peer, false));
        }
    }
    if let Some(peer) = cluster.pick_beyond(wish.steps, failed, plan.key) {
        return Some((peer, false));
    }
    if !fell_back
        && worker.vip_fallback()
        && let Some(peer) = cluster.fallback()
    {
        return Some((peer, true));
    }
    cluster.pick_aside(failed, plan.key).map(|peer| (peer, false))
}

/// HTTP version towards the destination (SM-023, DR-085, DR-086). WebSocket needs HTTP/1.1.
fn upstream_version(plan: &Plan<'_>, head: &RequestHead) -> Version {
    if head.upgrade {
        return Version::Http11;
    }
    let client = if head.version == Version::Http2 {
        Version::Http2
    } else {
        Version::Http11
    };
    let cluster = plan.cluster.cluster();
    match cluster.policy.http_version {
        Some(HttpVersion::Http1) => Version::Http11,
        Some(HttpVersion::Http2) => Version::Http2,
        Some(HttpVersion::Client) => client,
        None => match cluster.protocol {
            Protocol::Http2 | Protocol::Grpc => Version::Http2,
            Protocol::Http => Version::Http11,
            Protocol::Auto | Protocol::Tls | Protocol::Tcp => client,
        },
    }
}

fn note(exchange: &mut Exchange, channel: &Channel) {
    let link = channel.link();
    exchange.times.pool_ready = exchange.start.elapsed();
    exchange.upstream.local = link.local;
    exchange.upstream.connection_id = link.id;
    exchange.upstream.principal.clone_from(&link.principal);
    exchange.upstream.tls.clone_from(&link.tls);
    exchange.upstream_protocol = Some(channel.version());
}

/// Tells outlier detection how a try ended.
pub fn report(worker: &Worker, cluster: &ClusterState, address: SocketAddr, outcome: Outcome) {
    if cluster.report(address, outcome) {
        worker.shared.telemetry.count(Counter::Ejection);
    }
}

#[cfg(test)]
mod tests {
    use weft_bundle::model::RetryOn;

    use super::*;
    use crate::http::{Headers, ResponseHead};

    fn policy(on: RetryOn, statuses: &[u16]) -> Retry {
        Retry {
            attempts: 1,
            on,
            statuses: statuses.to_vec(),
            per_try_timeout: None,
            backoff: Duration::ZERO,
            avoid_tried: true,
            next_locality: false,
        }
    }

    fn response(status: u16, grpc: Option<&'static str>) -> Response {
        let mut head = ResponseHead::new(status);
        head.headers = Headers::default();
        if let Some(code) = grpc {
            head.headers.push("grpc-status", code);
        }
        Response {
            head,
            body: Body::Empty,
        }
    }

    // spec: VS-105, VS-112
    #[test]
    fn any_failure_is_one_of_5xx_and_of_a_status_none_is() {
        let classes = [
            Class::Connect,
            Class::Reset { before_request: true },
            Class::Reset { before_request: false },
            Class::Refused,
            Class::PerTry,
        ];
        let server_error = policy(
            RetryOn {
                server_error: true,
                ..RetryOn::default()
            },
            &[],
        );
        let status = policy(RetryOn::default(), &[503]);
        for class in classes {
            assert!(wants_failure(&server_error, class), "{class:?}");
            assert!(!wants_failure(&status, class), "{class:?}");
        }
        assert!(!wants_failure(&server_error, Class::Final));
        for code in [499, 500, 503, 599] {
            let is_wanted = wants_status(&server_error, &response(code, None));
            assert_eq!(is_wanted, code >= 500, "{code}");
        }
        assert!(wants_status(&status, &response(503, None)) && !wants_status(&status, &response(504, None)));
    }

    // spec: VS-189
    #[test]
    fn a_call_that_failed_counts_as_the_status_that_it_stands_for() {
        for (status, grpc, judged) in [
            (200, None, 200),
            (502, None, 502),
            (200, Some("0"), 200),
            (200, Some("5"), 200),
            (200, Some("14"), 503),
            (200, Some("13"), 500),
        ] {
            assert_eq!(judged_status(&response(status, grpc)), judged, "{grpc:?}");
        }
    }

    // spec: VS-116
    #[test]
    fn back_off_is_random_below_a_limit_that_doubles_and_is_capped() {
        let base = Duration::from_millis(25);
        for (number, factor) in [(1, 1), (2, 3), (3, 7), (4, 10), (5, 10), (40, 10)] {
            let limit = base * factor;
            let drawn: Vec<Duration> = (0..2000).map(|_| back_off(base, number)).collect();
            assert!(drawn.iter().all(|wait| *wait < limit), "{number}");
            // Of 2000 draws some are in the last and some in the first tenth.
            assert!(drawn.iter().any(|wait| *wait > limit * 9 / 10), "{number}");
            assert!(drawn.iter().any(|wait| *wait < limit / 10), "{number}");
        }
    }
}
