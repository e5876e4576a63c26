//! Requests of clients outside to a gateway: what they may not say is taken out, what backends are told is added, and the
//! Host decides whose rules hold (GW-024, GW-072, GW-076).

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use weft_bundle::model::{Config, Denial, Granted, Inside, Listener, Serves, Tls, VirtualHosts};

use super::client::Response;
use super::inbound::element;
use super::outbound::{Caller, follow, is_removed, name_of, strip_outside, uuid};
use super::replay::Meter;
use super::rescue::{Audience, Failure, rescue};
use super::route::split_port;
use super::{Body, RequestHead, path};
use crate::authorize::{self, Asked, Dialled, Since};
use crate::exchange::{Downstream, Exchange};
use crate::gateway::OpenPort;
use crate::shared::Snapshot;
use crate::worker::Worker;

/// Handles a request to a port of the gateway.
pub(super) async fn handle(
    worker: &Rc<Worker>,
    port: &OpenPort,
    head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Response {
    let since = worker.changes.now();
    let Some(snapshot) = port.snapshot(worker) else {
        return rescue(Failure::no_route(), exchange, Audience::Outside);
    };
    exchange.source = Some(snapshot.config.workload.clone());
    let outcome = serve(worker, (&snapshot, since), port.number, head, body, meter, exchange).await;
    let mut response = outcome.unwrap_or_else(|failure| rescue(failure, exchange, Audience::Outside));
    strip_outside(&mut response.head);
    response
}

async fn serve(
    worker: &Rc<Worker>,
    (snapshot, since): (&Snapshot, Since),
    number: u16,
    mut head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let config = &snapshot.config;
    let listener = config.listeners.get(&number).ok_or_else(elsewhere)?;
    let domains = domains(listener, &exchange.downstream)?;
    path::admit(&mut head, config.mesh.path_normalization)?;
    let is_tls = exchange.downstream.ended_by.is_some();
    prepare(&mut head, exchange, if is_tls { "https" } else { "http" });
    let granted = judge(config, listener, &exchange.downstream, &head);
    exchange.audited = granted.map_err(|denial| Failure::denied(&denial))?.audited;
    let domain = domains.find(&name_of(&head.authority)).ok_or_else(Failure::no_route)?;
    // A port in the Host may be that of the Service or of the pod (BYD-064).
    let is_own = split_port(&head.authority).1 == Some(listener.port);
    let port = if is_own { listener.port } else { listener.service_port };
    let caller = Caller {
        pod: None,
        dialled: None,
        port,
        grpc_web: listener.grpc_web,
        audience: Audience::Outside,
    };
    // Rules change it on its way.
    let asked = head.clone();
    let downstream = exchange.downstream.clone();
    let forward = follow(worker, snapshot, &domain.http, caller, head, body, meter, exchange);
    let judge = |config: &Config| again(config, number, &downstream, &asked);
    let outcome = authorize::while_granted(worker, since, forward, judge).await;
    exchange.asked = Some((asked, since));
    outcome.unwrap_or_else(|denial| Err(Failure::denied(&denial)))
}

/// Decides on a request (AUTHZ-004). Addresses that its client tells of prove nothing (AUTHZ-060).
fn judge(
    config: &Config,
    listener: &Listener,
    downstream: &Downstream,
    head: &RequestHead,
) -> Result<Granted, Arc<Denial>> {
    let asked = Asked {
        head,
        dialled: Dialled {
            port: listener.port,
            services: &[listener.service_port],
        },
        believes_proxies: false,
    };
    authorize::request(config, downstream, &asked)
}

/// Decides again on a request that goes on (BYD-002).
///
/// # Errors
/// What refuses it now.
pub(super) fn again(
    config: &Config,
    number: u16,
    downstream: &Downstream,
    head: &RequestHead,
) -> Result<(), Arc<Denial>> {
    let listener = config.listeners.get(&number);
    listener.map_or(Ok(()), |listener| judge(config, listener, downstream, head).map(drop))
}

/// The names of a port; behind TLS those of the server that the client's server name chose, and of no other (GW-057). The port
/// may serve something else since the client connected.
fn domains<'l>(listener: &'l Listener, downstream: &Downstream) -> Result<&'l VirtualHosts, Failure> {
    match (&listener.serves, &downstream.ended_by) {
        (Serves::Http(domains), None) => Ok(domains),
        (Serves::Tls(tls), Some(before)) => {
            let name = downstream.server_name.as_deref().unwrap_or_default();
            let Some(Tls::Ends(server)) = tls.find(name) else {
                return Err(elsewhere());
            };
            let Inside::Http(domains) = &server.inside else {
                return Err(elsewhere());
            };
            if server.tls.clients != before.tls.clients {
                // What the server asks of its clients was not asked of this one (GW-031).
                return Err(Failure {
                    close: true,
                    ..Failure::plain(421, "Misdirected Request", "misdirected_request")
                });
            }
            Ok(domains)
        }
        (Serves::Http(_) | Serves::Tls(_) | Serves::Tcp(_), _) => Err(elsewhere()),
    }
}

/// Nothing is served to such a connection any more.
fn elsewhere() -> Failure {
    Failure {
        close: true,
        ..Failure::no_route()
    }
}

/// Takes out what only proxies may say, and adds what every forwarded request carries (GW-072, GW-076, ID-123, TRC-022).
fn prepare(head: &mut RequestHead, exchange: &mut Exchange, scheme: &'static str) {
    let headers = &mut head.headers;
    headers.retain(|field| !is_removed(&field.name) && !is_control(&field.name));
    let before = headers.remove_all("x-forwarded-for");
    let client = exchange.downstream.remote.ip();
    let forwarded = forwarded_for(before.as_ref(), client);
    headers.push("x-forwarded-for", forwarded.clone());
    // In place of what the client said of itself (AUTHZ-061).
    headers.push("x-envoy-external-address", client.to_string());
    exchange.forwarded_for = Some(forwarded);
    // What the client's own connection has shown, and nothing that it says (ID-123).
    let downstream = exchange.downstream.clone();
    let element = downstream
        .certificate_element
        .get_or_init(|| element(&downstream, true));
    if let Some(element) = element {
        headers.push("x-forwarded-client-cert", element.clone());
    }
    headers.remove_all("x-forwarded-proto");
    headers.push("x-forwarded-proto", scheme);
    headers.remove_all("x-request-id");
    let id = uuid();
    headers.push("x-request-id", id.clone());
    exchange.request_id = Some(id);
}

/// The addresses that a request has come from, the last one being the client's own.
fn forwarded_for(before: Option<&Bytes>, client: IpAddr) -> Bytes {
    let client = client.to_string();
    match before {
        Some(before) if !before.is_empty() => [before, &b","[..], client.as_bytes()].concat().into(),
        _ => client.into(),
    }
}

/// Fields that control other proxies.
fn is_control(name: &[u8]) -> bool {
    let prefix = b"x-envoy-";
    name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix)
}
