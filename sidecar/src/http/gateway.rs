//! Requests of clients outside to a gateway: what they may not say is taken out, what backends are told is added, and the
//! Host decides whose rules hold (GW-024, GW-072, GW-076).

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use weft_bundle::model::{Domains, Listener, Serves, Tls};

use super::client::Response;
use super::outbound::{follow, is_removed, name_of, strip_outside, uuid};
use super::replay::Meter;
use super::rescue::{Audience, Failure, rescue};
use super::route::split_port;
use super::{Body, RequestHead, path};
use crate::exchange::Exchange;
use crate::gateway::OpenPort;
use crate::shared::Snapshot;
use crate::worker::Worker;

/// Handles a request to a port of the gateway.
pub(super) async fn handle(
    worker: &Rc<Worker>,
    port: &OpenPort,
    is_tls: bool,
    head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Response {
    let Some(snapshot) = port.snapshot(worker) else {
        return rescue(Failure::no_route(), exchange, Audience::Outside);
    };
    exchange.source = Some(snapshot.config.workload.clone());
    let outcome = serve(worker, &snapshot, (port.number, is_tls), head, body, meter, exchange).await;
    let mut response = outcome.unwrap_or_else(|failure| rescue(failure, exchange, Audience::Outside));
    strip_outside(&mut response.head);
    response
}

async fn serve(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    (number, is_tls): (u16, bool),
    mut head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Result<Response, Failure> {
    let config = &snapshot.config;
    // The port may serve something else since the client connected.
    let name = exchange.downstream.server_name.clone();
    let found = config.listeners.get(&number).and_then(|listener| {
        let domains = domains(listener, is_tls, name.as_deref())?;
        Some((listener, domains))
    });
    let Some((listener, domains)) = found else {
        return Err(Failure {
            close: true,
            ..Failure::no_route()
        });
    };
    if *head.method == *b"CONNECT" || *head.path == *b"*" {
        return Err(Failure::no_route());
    }
    head.path = path::normalize(&head.path, config.mesh.path_normalization)
        .map_err(|_| Failure::bad_request(400, "path_normalization_failed"))?;
    prepare(&mut head, exchange, if is_tls { "https" } else { "http" });
    let domain = domains.find(&name_of(&head.authority)).ok_or_else(Failure::no_route)?;
    // A port in the Host may be that of the Service or of the pod (BYD-064).
    let is_own = split_port(&head.authority).1 == Some(listener.port);
    let port = if is_own { listener.port } else { listener.service_port };
    let table = domain.http.clone();
    let caller = super::outbound::Caller {
        pod: None,
        dialled: None,
        port,
        audience: Audience::Outside,
    };
    follow(worker, snapshot, &table, caller, head, body, meter, exchange).await
}

/// The names of a port; behind TLS those of the server that the client's server name chose, and of no other (GW-057).
fn domains<'l>(listener: &'l Listener, is_tls: bool, server_name: Option<&str>) -> Option<&'l Domains> {
    match &listener.serves {
        Serves::Http(domains) if !is_tls => Some(domains),
        Serves::Tls(tls) if is_tls => match tls.find(server_name.unwrap_or_default())? {
            Tls::Ends(server) => match &server.serves {
                Serves::Http(domains) => Some(domains),
                Serves::Tcp(_) | Serves::Tls(_) => None,
            },
            Tls::PassesThrough(_) => None,
        },
        Serves::Http(_) | Serves::Tls(_) | Serves::Tcp(_) => None,
    }
}

/// Takes out what only proxies may say, and adds what every forwarded request carries (GW-072, GW-076, ID-123, TRC-022).
fn prepare(head: &mut RequestHead, exchange: &mut Exchange, scheme: &'static str) {
    let headers = &mut head.headers;
    headers.retain(|field| !is_removed(&field.name) && !is_control(&field.name));
    let before = headers.remove_all("x-forwarded-for");
    let forwarded = forwarded_for(before.as_ref(), exchange.downstream.remote.ip());
    headers.push("x-forwarded-for", forwarded.clone());
    exchange.forwarded_for = Some(forwarded);
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
