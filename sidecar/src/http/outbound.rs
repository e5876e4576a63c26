//! The application's requests: route, policy, forward.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::sleep;
use weft_bundle::model::{
    Action, Config, Destination, Domain, Fault, HeaderOps, Host, Port, RouteTable, Rule, Share, first_value,
};
use weft_bundle::wire::{HashKey, LoadBalancer, OutboundPolicy, Protocol};

use super::client::Response;
use super::direct::{self, Direct};
use super::forward::{self, Plan};
use super::replay::Meter;
use super::rescue::{Audience, Failure, local_reply, rescue};
use super::route::{self, Found, View, split_port};
use super::{Body, Headers, RequestHead, ResponseHead, Version, answer, grpc_web, metadata, path};
use crate::balance::Key;
use crate::exchange::{Details, Exchange, Flags, Target};
use crate::shared::Snapshot;
use crate::worker::Worker;

/// Fields that control other proxies and nothing here (VS-097), and those that applications cannot set (ID-147).
const REMOVED: [&str; 15] = [
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-attempt-count",
    "x-envoy-expected-rq-timeout-ms",
    "x-forwarded-client-cert",
    "x-envoy-decorator-operation",
    "x-weft-names",
    "x-weft-phrase",
];

/// Handles a request of the application.
pub(super) async fn handle(
    worker: &Rc<Worker>,
    dialled: SocketAddr,
    proxy: bool,
    head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Response {
    let Some(snapshot) = worker.snapshot() else {
        return rescue(Failure::no_route(), exchange, Audience::Own);
    };
    exchange.source = Some(snapshot.config.workload.clone());
    // One snapshot serves the request from beginning to end (LIFE-040).
    let outcome = serve(worker, &snapshot, dialled, proxy, head, body, meter, exchange).await;
    outcome.unwrap_or_else(|failure| rescue(failure, exchange, Audience::Own))
}

#[expect(clippy::too_many_arguments, reason = "the facts of one request, each used")]
async fn serve(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    dialled: SocketAddr,
    proxy: bool,
    mut head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let config = &snapshot.config;
    path::admit(&mut head, config.mesh.path_normalization)?;
    head.headers.retain(|field| !is_removed(&field.name));
    prepare(&mut head, exchange);

    let port = if proxy {
        split_port(&head.authority).1.unwrap_or(80)
    } else {
        dialled.port()
    };
    let Some(place) = find(worker, config, dialled, proxy, port, &name_of(&head.authority)) else {
        return unknown(worker, config, dialled, proxy, &head, body, meter, exchange).await;
    };
    let Place { table, pod, grpc_web } = place;
    let caller = Caller {
        pod,
        grpc_web,
        dialled: (!proxy).then_some(dialled),
        port,
        audience: Audience::Own,
    };
    follow(worker, snapshot, &table, caller, head, body, meter, exchange).await
}

/// The name of an authority as hosts are looked up by it: lower case, without port, final dot and brackets.
pub(super) fn name_of(authority: &[u8]) -> Cow<'_, str> {
    let (name, _) = split_port(authority);
    let name = name.strip_suffix(b".").unwrap_or(name);
    let bare = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
    let mut name = String::from_utf8_lossy(bare.unwrap_or(name));
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_mut().make_ascii_lowercase();
    }
    name
}

/// Where a request comes from.
pub(super) struct Caller {
    /// The pod that was dialled.
    pub(super) pod: Option<Pod>,
    /// What was dialled, where that may be where it goes.
    pub(super) dialled: Option<SocketAddr>,
    /// The port that the client counts as having called.
    pub(super) port: u16,
    /// That port is declared to speak gRPC-Web.
    pub(super) grpc_web: bool,
    /// Who is answered.
    pub(super) audience: Audience,
}

/// Does what the rules say of a request.
#[expect(clippy::too_many_arguments, reason = "the facts of one request, each used")]
pub(super) async fn follow(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    table: &RouteTable,
    caller: Caller,
    mut head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let config = &snapshot.config;
    let Caller {
        pod,
        dialled,
        port,
        grpc_web,
        audience,
    } = caller;
    let web = if grpc_web {
        grpc_web::Call::of(&head, exchange)
    } else {
        None
    };
    let scheme = head.headers.get("x-forwarded-proto").cloned().unwrap_or_default();
    let scheme_seen: &[u8] = if scheme.is_empty() { b"http" } else { &scheme };
    let view = View {
        head: &head,
        scheme: scheme_seen,
        port: (!config.mesh.istio_compatibility).then_some(port),
    };
    let Some(found) = route::find(table, &view) else {
        let failure = Failure {
            origin: table.origin.clone(),
            ..Failure::no_route()
        };
        return match web {
            None => Err(failure),
            Some(web) => Ok(web.response(rescue(failure, exchange, audience))),
        };
    };
    exchange.route = found.log_name();
    let rule = found.rule.clone();
    // What responses are told of the request is what was received (VS-065).
    let received = if response_asks(&rule) {
        head.headers.clone()
    } else {
        Headers::default()
    };
    // Rules are asked what the client said; whatever comes next has to do with gRPC.
    let body = match &web {
        None => body,
        Some(web) => web.request(&mut head, body, meter),
    };

    // Faults come first, CORS next (VS-132).
    let answered = match inject(&rule.fault, exchange).await {
        Some(failure) => Err(failure),
        None => match answer::preflight(rule.cors.as_ref(), &head) {
            Some(response) => {
                exchange.details = Some(Details::Word("direct_response"));
                Ok(Answer::Local(response))
            }
            None => {
                dispatch(
                    worker,
                    snapshot,
                    &found,
                    pod,
                    dialled,
                    &mut head,
                    port,
                    scheme_seen,
                    body,
                    meter,
                    exchange,
                )
                .await
            }
        },
    };
    let none = HeaderOps::default();
    let (mut response, destination, several) = match answered {
        Ok(Answer::Local(response)) => (response, None, false),
        Ok(Answer::Upstream(response, destination, several)) => (response, Some(destination), several),
        Err(mut failure) => {
            failure.origin = rule.origin.clone();
            (rescue(failure, exchange, audience), None, false)
        }
    };
    answer::cors(rule.cors.as_ref(), exchange, &head.headers, &mut response.head.headers);
    let of_destination = destination
        .as_ref()
        .and_then(|index| destinations_of(&rule.action).get(*index))
        .map_or(&none, |destination| &destination.response_headers);
    // Values of response headers may name it (VS-065).
    exchange.status = response.head.status;
    route::change_response(
        &mut response.head.headers,
        &rule.response_headers,
        of_destination,
        several,
        exchange,
        &received,
    );
    Ok(match web {
        None => response,
        Some(web) => web.response(response),
    })
}

/// Whether values of response headers may name fields of the request.
fn response_asks(rule: &Rule) -> bool {
    let asks = |ops: &HeaderOps| {
        let mut all = ops.set.iter().chain(&ops.add);
        all.any(|(_, value)| value.literal().is_none())
    };
    let mut destinations = destinations_of(&rule.action).iter();
    asks(&rule.response_headers) || destinations.any(|destination| asks(&destination.response_headers))
}

pub(super) fn is_removed(name: &[u8]) -> bool {
    name.first().is_some_and(|first| first | 0x20 == b'x')
        && REMOVED
            .iter()
            .any(|removed| name.eq_ignore_ascii_case(removed.as_bytes()))
}

/// Adds what every forwarded request carries (SM-140, TRC-022).
fn prepare(head: &mut RequestHead, exchange: &mut Exchange) {
    if !head.headers.contains("x-forwarded-proto") {
        head.headers.push("x-forwarded-proto", "http");
    }
    if !head.headers.contains("x-request-id") {
        let id = uuid();
        head.headers.push("x-request-id", id.clone());
        exchange.request_id = Some(id);
    }
}

/// A random UUID, version 4.
pub(super) fn uuid() -> Bytes {
    let bits = fastrand::u128(..);
    let bits = bits & !(0xf << 76) | 0x4 << 76;
    let bits = bits & !(0x3 << 62) | 0x2 << 62;
    let mut text = [b'-'; 36];
    let places = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (nibble, place) in places.enumerate() {
        text[place] = b"0123456789abcdef"[(bits >> (124 - 4 * nibble)) as usize & 0xf];
    }
    Bytes::copy_from_slice(&text)
}

/// A pod of a headless service, dialled by its own address: the only endpoint of that service (SM-076, SM-077).
pub(super) struct Pod {
    address: SocketAddr,
    service: Arc<Host>,
}

/// What a request asks for.
struct Place {
    /// Its rules.
    table: Arc<RouteTable>,
    /// The pod that was dialled.
    pod: Option<Pod>,
    /// On a port that is declared to speak gRPC-Web.
    grpc_web: bool,
}

/// What a request asks for; `None`: nothing that is known.
fn find(worker: &Worker, config: &Config, dialled: SocketAddr, proxy: bool, port: u16, name: &str) -> Option<Place> {
    let automatic = |table: &Arc<RouteTable>, pod| Place {
        table: table.clone(),
        pod,
        grpc_web: false,
    };
    let dialled_pod = |port: &Port| Pod {
        address: dialled,
        service: port.host.clone(),
    };
    if !proxy {
        // On an automatic port the address decides, whatever the Host (SM-039).
        if let Some(known) = config.by_address(dialled.ip(), port)
            && !known.protocol.is_http()
        {
            return Some(automatic(&known.http, None));
        }
        let table = worker.shared.endpoints.load();
        let pod = config.headless(port).find(|known| {
            known.protocol == Protocol::Auto
                && table
                    .host(&known.host.host)
                    .is_some_and(|host| host.by_address(dialled.ip()).is_some())
        });
        if let Some(pod) = pod {
            return Some(automatic(&pod.http, Some(dialled_pod(pod))));
        }
    }
    let domain: &Domain = config.domains(port)?.find(name)?;
    if !proxy && !domain.shared {
        return None;
    }
    let headless = domain.port.as_ref().filter(|port| port.host.headless && !proxy);
    Some(Place {
        table: domain.http.clone(),
        pod: headless.map(|port| dialled_pod(port)),
        grpc_web: domain.port.as_ref().is_some_and(|port| port.grpc_web),
    })
}

enum Answer {
    Local(Response),
    /// With the position of the destination, and whether there were several.
    Upstream(Response, usize, bool),
}

fn destinations_of(action: &Action) -> &[Destination] {
    match action {
        Action::Destinations(destinations) => &destinations.list,
        Action::Redirect(_) | Action::DirectResponse { .. } => &[],
    }
}

async fn inject(fault: &Fault, exchange: &mut Exchange) -> Option<Failure> {
    let hit = |share: Share| share.0 > 0 && fastrand::u32(..1_000_000) < share.0;
    if let Some((delay, share)) = fault.delay
        && hit(share)
    {
        exchange.flags |= Flags::DI;
        sleep(delay).await;
    }
    let (abort, share) = fault.abort.as_ref()?;
    if !hit(*share) {
        return None;
    }
    exchange.flags |= Flags::FI;
    let body = "fault filter abort";
    if let Some(code) = abort.grpc_status {
        if exchange.grpc {
            exchange.grpc_status = Some(code);
        }
        let failure = Failure::plain(200, body, "fault_filter_abort");
        return Some(Failure {
            grpc_code: Some(code),
            ..failure
        });
    }
    let status = abort.status?;
    Some(Failure::plain(status, body, "fault_filter_abort"))
}

#[expect(clippy::too_many_arguments, reason = "the facts of one request, each used")]
async fn dispatch(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    found: &Found<'_>,
    pod: Option<Pod>,
    dialled: Option<SocketAddr>,
    head: &mut RequestHead,
    port: u16,
    scheme: &[u8],
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Answer, Failure> {
    let rule = found.rule;
    let destinations = match &rule.action {
        Action::Destinations(destinations) => destinations,
        Action::Redirect(redirect) => {
            exchange.details = Some(Details::Word("direct_response"));
            return Ok(Answer::Local(answer::redirect(redirect, found, head, port, scheme)));
        }
        Action::DirectResponse { status, body } => {
            exchange.details = Some(Details::Word("direct_response"));
            return Ok(Answer::Local(answer::direct(*status, body, head)));
        }
    };
    let several = destinations.list.len() > 1;
    let chosen = destinations
        .choose(|total| fastrand::u64(..total))
        .ok_or_else(Failure::no_cluster)?;
    let index = destinations
        .list
        .iter()
        .position(|destination| std::ptr::eq(destination, chosen))
        .unwrap_or(0);
    let Some(cluster) = &chosen.cluster else {
        exchange.upstream.target = Target::Unknown(chosen.name.clone());
        return Err(Failure::no_cluster());
    };
    exchange.upstream.target = Target::Cluster(cluster.clone());
    worker.lookup(snapshot, cluster).await;
    let state = worker.cluster(snapshot, cluster);
    let (key, cookie) = hash_key(&cluster.policy.load_balancer, head, exchange);

    let set = route::change_request(head, &rule.request_headers, &chosen.request_headers, several, exchange);
    let authority = rule
        .rewrite
        .authority
        .as_ref()
        .map(|a| Bytes::copy_from_slice(a.as_bytes()));
    if let Some(authority) = authority.or(set) {
        route::rewrite_authority(head, authority);
    }
    if head.authority.is_empty() && dialled.is_none() {
        // Of HTTP/1.0 nobody has to say whom it is for; of what it is forwarded as, somebody has (BYD-062).
        head.authority = Bytes::copy_from_slice(cluster.host.host.as_bytes());
        head.headers
            .push_front(Bytes::from_static(b"host"), head.authority.clone());
    }
    route::rewrite_path(head, found, exchange);
    let carries_metadata = metadata::attach(worker, &snapshot.config, &mut head.headers);

    let mut mirrors = Vec::new();
    for mirror in &rule.mirrors {
        if fastrand::u32(..1_000_000) < mirror.share.0 {
            let (key, _) = hash_key(&mirror.cluster.policy.load_balancer, head, exchange);
            worker.lookup(snapshot, &mirror.cluster).await;
            mirrors.push((worker.cluster(snapshot, &mirror.cluster), key));
        }
    }
    let copied = (!mirrors.is_empty()).then(|| {
        *meter.copy.borrow_mut() = Some(Vec::new());
        head.clone()
    });

    let pinned = if cluster.keeps_dialled() {
        // Without a dialled address there is none to keep (SE-097).
        Some(cluster.kept(dialled.ok_or_else(Failure::no_endpoint)?))
    } else {
        // Rules may lead away from the service that was dialled.
        pod.filter(|pod| pod.service.host == cluster.host.host)
            .map(|pod| pod.address)
    };
    let plan = Plan {
        cluster: &state,
        retry: &rule.retry,
        timeout: answer::limit(rule.timeout, head),
        key,
        pinned,
    };
    let outcome = forward::forward(worker, &plan, head, body, meter, exchange).await;
    if let Some(copied) = copied {
        answer::mirror(worker, mirrors, copied, meter, exchange);
    }
    let mut response = outcome?;
    metadata::take(worker, &mut response.head.headers, exchange, carries_metadata);
    if let Some(cookie) = cookie {
        response.head.headers.push("set-cookie", cookie);
    }
    Ok(Answer::Upstream(response, index, several))
}

/// Key of consistent hashing, and the cookie that makes it last (DR-043).
fn hash_key(policy: &LoadBalancer, head: &RequestHead, exchange: &Exchange) -> (Key, Option<String>) {
    let LoadBalancer::ConsistentHash(hash) = policy else {
        return (Key::NONE, None);
    };
    let key = match &hash.key {
        None => Key::NONE,
        Some(HashKey::Header(name)) => head.headers.get(name).map_or(Key::NONE, |value| Key::of(value)),
        Some(HashKey::SourceIp) => Key::of(exchange.downstream.remote.ip().to_string().as_bytes()),
        Some(HashKey::QueryParameter(name)) => head
            .query()
            .and_then(|query| first_value(query, name.as_bytes()))
            .map_or(Key::NONE, Key::of),
        Some(HashKey::Cookie {
            name,
            path,
            ttl_seconds,
            attributes,
        }) => {
            if let Some(value) = cookie(&head.headers, name) {
                return (Key::of(value), None);
            }
            let Some(ttl) = ttl_seconds else {
                return (Key::NONE, None);
            };
            let value = format!("{:016x}", fastrand::u64(..));
            let mut text = format!("{name}=\"{value}\"");
            if *ttl > 0 {
                text.push_str(&format!("; Max-Age={ttl}"));
            }
            if let Some(path) = path {
                text.push_str(&format!("; Path={path}"));
            }
            text.push_str("; HttpOnly");
            for (name, value) in attributes {
                text.push_str("; ");
                text.push_str(name);
                if let Some(value) = value {
                    text.push('=');
                    text.push_str(value);
                }
            }
            return (Key::of(value.as_bytes()), Some(text));
        }
    };
    (key, None)
}

/// Value of a cookie, without quotes.
fn cookie<'h>(headers: &'h Headers, name: &str) -> Option<&'h [u8]> {
    headers.all("cookie").find_map(|line| {
        line.split(|b| *b == b';').find_map(|pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            Some(unquoted.unwrap_or(value))
        })
    })
}

/// Unknown traffic goes where it was sent, or nowhere (SM-060, SM-061, SM-063).
#[expect(clippy::too_many_arguments, reason = "the facts of one request, each used")]
async fn unknown(
    worker: &Rc<Worker>,
    config: &Config,
    dialled: SocketAddr,
    proxy: bool,
    head: &RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    if config.mesh.outbound_policy == OutboundPolicy::RegistryOnly {
        exchange.upstream.target = Target::BlackHole;
        exchange.route = Some("block_all".into());
        let mut head = local_reply(502, "", exchange.grpc);
        exchange.details = Some(Details::Word("direct_response"));
        head.headers.push("x-weft-reason", "unknown_destination");
        return Ok(Response {
            head,
            body: Body::Empty,
        });
    }
    exchange.upstream.target = Target::Passthrough;
    exchange.route = Some("allow_any".into());
    let address = if proxy {
        let authority = String::from_utf8_lossy(&head.authority).into_owned();
        let authority = if split_port(&head.authority).1.is_some() {
            authority
        } else {
            format!("{authority}:80")
        };
        let mut found = tokio::net::lookup_host(&authority).await.map_err(|_| Failure {
            flags: Flags::DF,
            ..Failure::plain(503, "no healthy upstream", "dns_resolution_failure")
        })?;
        found.next().ok_or_else(Failure::no_endpoint)?
    } else {
        dialled
    };
    let direct = Direct {
        peer: worker.direct(address),
        version: if head.version == Version::Http2 {
            Version::Http2
        } else {
            Version::Http11
        },
        dial: worker.dial(),
        limit: worker.connect_timeout(),
        limits: None,
    };
    let mut response = direct::forward(worker, &direct, head, body, meter, exchange).await?;
    strip_outside(&mut response.head);
    Ok(response)
}

/// Removes what only peers of the mesh may say (DLV-118).
pub(super) fn strip_outside(head: &mut ResponseHead) {
    head.headers.remove("x-weft-undelivered");
    head.headers.remove("x-weft-draining");
}
