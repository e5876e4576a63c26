//! Requests to the application.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use weft_bundle::model::Config;
use weft_bundle::wire::{HttpVersion, MtlsMode, PeerWorkload, Protocol};

use super::client::Response;
use super::direct::{self, Direct, Limits};
use super::replay::Meter;
use super::rescue::{Audience, Failure, rescue};
use super::{Body, RequestHead, Version, casing, grpc_web, metadata, outbound, path};
use crate::authorize;
use crate::exchange::{Downstream, Exchange, Flags};
use crate::shared::DrainPhase;
use crate::worker::Worker;

/// Handles a request to a port of the pod.
pub(super) async fn handle(
    worker: &Rc<Worker>,
    port: u16,
    dialled: SocketAddr,
    mut head: RequestHead,
    body: Body,
    meter: &Rc<Meter>,
    exchange: &mut Exchange,
) -> Response {
    let since = worker.changes.now();
    let Some(snapshot) = worker.snapshot() else {
        return rescue(Failure::no_route(), exchange, Audience::Outside);
    };
    let downstream = exchange.downstream.clone();
    exchange.upstream.target = crate::inbound::target(&snapshot, port);
    exchange.destination = Some(snapshot.config.workload.clone());
    exchange.route = Some("default".into());
    let told = metadata::remove(&mut head.headers);
    let told = told.and_then(|told| worker.peers.get(&told, downstream.principal.as_ref()));
    let asked = told.is_some();
    exchange.source = told.or_else(|| source(worker, &downstream));
    let audience = match downstream.principal.as_deref() {
        None => Audience::Outside,
        Some(id) => match crate::tls::account(id) {
            Some((namespace, _)) if namespace == snapshot.config.workload.namespace => Audience::Own,
            _ => Audience::Mesh,
        },
    };
    let plaintext = downstream.principal.is_none();
    let spells = if plaintext || head.version != Version::Http2 {
        casing::remove(&mut head.headers);
        false
    } else {
        casing::restore(&mut head.headers)
    };
    let known = snapshot.config.inbound.port(port);
    let web = if known.is_some_and(|port| port.grpc_web) {
        grpc_web::Call::of(&head, exchange)
    } else {
        None
    };
    let outcome = if let Err(failure) = admit(&snapshot.config, port, &mut head, exchange, &downstream) {
        Err(failure)
    } else {
        // Policies see what the client said.
        let said = web.is_some().then(|| head.clone());
        let body = match &web {
            None => body,
            Some(web) => web.request(&mut head, body, meter),
        };
        let policy = known.and_then(|port| port.policy.clone());
        let by_client = policy
            .as_ref()
            .is_some_and(|policy| policy.http_version == Some(HttpVersion::Client));
        let protocol = known
            .filter(|_| !by_client)
            .map_or(Protocol::Auto, |port| port.protocol);
        let client = downstream.remote.ip();
        // The newest configuration holds for connections that were there before it (SE-070).
        let target = crate::inbound::application(&snapshot.config, port, dialled);
        let direct = Direct {
            peer: worker.application(target, client),
            version: version(protocol, head.version),
            dial: worker.dial_application(client),
            limit: worker.connect_timeout(),
            limits: policy.map(|policy| Limits {
                policy,
                counters: worker.inbound_counters(port),
            }),
        };
        let forward = direct::forward(worker, &direct, &head, body, meter, exchange);
        let judge = |config: &Config| authorize::stands(config, &downstream, port, said.as_ref().or(Some(&head)));
        let outcome = match authorize::while_granted(worker, since, forward, judge).await {
            Ok(outcome) => outcome,
            Err(denial) => Err(Failure::denied(&denial)),
        };
        exchange.asked = said.or(Some(head)).map(|head| (head, since));
        outcome
    };
    let mut response = match outcome {
        Ok(mut response) => {
            // Only a proxy says these (DLV-118).
            response.head.headers.remove("x-weft-undelivered");
            response.head.headers.remove("x-weft-draining");
            metadata::remove(&mut response.head.headers);
            casing::remove(&mut response.head.headers);
            if spells && response.head.version != Version::Http2 {
                casing::note_response(&mut response.head.headers, &response.head.reason);
            }
            response
        }
        Err(failure) => rescue(failure, exchange, audience),
    };
    if let Some(web) = web {
        response = web.response(response);
    }
    if asked {
        metadata::attach(worker, &snapshot.config, &mut response.head.headers);
    }
    if !plaintext && worker.phase() >= DrainPhase::Draining {
        response.head.headers.push("x-weft-draining", "true");
    }
    response
}

/// Lets a request in whose path may be forwarded, with what its application is told, if policies allow it (AUTHZ-026).
fn admit(
    config: &Config,
    port: u16,
    head: &mut RequestHead,
    exchange: &mut Exchange,
    downstream: &Downstream,
) -> Result<(), Failure> {
    if downstream.principal.is_none() && config.inbound.mode(port) == MtlsMode::Strict {
        // The mode changed while the connection was open (BYD-002).
        return Err(Failure {
            close: true,
            flags: Flags::NR,
            ..Failure::bad_request(403, "strict_mtls_required")
        });
    }
    path::admit(head, config.mesh.path_normalization)?;
    prepare(head, exchange, downstream);
    let granted = authorize::inbound(config, downstream, port, head).map_err(|denial| Failure::denied(&denial))?;
    exchange.audited = granted.audited;
    Ok(())
}

fn prepare(head: &mut RequestHead, exchange: &mut Exchange, downstream: &Downstream) {
    if !head.headers.contains("x-forwarded-proto") {
        let scheme = if downstream.tls.is_some() { "https" } else { "http" };
        head.headers.push("x-forwarded-proto", scheme);
    }
    if !head.headers.contains("x-request-id") {
        let id = outbound::uuid();
        head.headers.push("x-request-id", id.clone());
        exchange.request_id = Some(id);
    }
    let before = head.headers.remove_all("x-forwarded-client-cert");
    if let Some(element) = downstream
        .certificate_element
        .get_or_init(|| element(downstream, false))
    {
        let value = match before {
            None => element.clone(),
            Some(before) => [&before[..], b",", &element[..]].concat().into(),
        };
        head.headers.push("x-forwarded-client-cert", value);
    }
}

/// The peer's element of `X-Forwarded-Client-Cert` (ID-121), with the certificate itself at gateways (ID-123).
pub(super) fn element(downstream: &Downstream, with_certificate: bool) -> Option<Bytes> {
    let tls = downstream.tls.as_ref()?;
    let facts = tls.facts();
    let mut out = String::new();
    if let Some(own) = &downstream.local_principal {
        out.push_str(&format!("By={};", quoted(own)));
    }
    out.push_str(&format!("Hash={}", facts.sha256));
    if with_certificate {
        out.push_str(&format!(";Cert=\"{}\"", encoded(&tls.leaf)));
    }
    out.push_str(&format!(";Subject=\"{}\"", escaped(&facts.subject)));
    for uri in &facts.uris {
        out.push_str(&format!(";URI={}", quoted(uri)));
    }
    for dns in &facts.dns {
        out.push_str(&format!(";DNS={}", quoted(dns)));
    }
    Some(out.into())
}

/// A certificate as PEM, with what is not harmless in a header field percent-encoded.
fn encoded(der: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for line in base64.as_bytes().chunks(64) {
        for byte in line {
            match byte {
                b'+' => out.push_str("%2B"),
                b'/' => out.push_str("%2F"),
                b'=' => out.push_str("%3D"),
                byte => out.push(char::from(*byte)),
            }
        }
        out.push_str("%0A");
    }
    out.push_str("-----END%20CERTIFICATE-----%0A");
    out
}

/// Values with separators stand in quotes (ID-124).
fn quoted(value: &str) -> String {
    let is_plain = |c: char| !matches!(c, ',' | ';' | '=' | '"' | '\\') && (' '..='~').contains(&c);
    if value.chars().all(is_plain) {
        value.to_owned()
    } else {
        format!("\"{}\"", escaped(value))
    }
}

/// What stands between quotes. Whoever signs certificates may write anything into them: nothing of it ends the quotes, or the
/// header field.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => c
                .encode_utf8(&mut [0; 4])
                .bytes()
                .for_each(|byte| out.push_str(&format!("%{byte:02X}"))),
        }
    }
    out
}

/// HTTP version towards the application: that of its port, the caller's on automatic ones (SM-023, SE-095).
fn version(protocol: Protocol, received: Version) -> Version {
    match protocol {
        Protocol::Http2 | Protocol::Grpc => Version::Http2,
        Protocol::Http => Version::Http11,
        Protocol::Auto | Protocol::Tls | Protocol::Tcp if received == Version::Http2 => Version::Http2,
        Protocol::Auto | Protocol::Tls | Protocol::Tcp => Version::Http11,
    }
}

/// The caller's workload, by its address or verified id (MET-034).
#[must_use]
pub fn source(worker: &Worker, downstream: &Downstream) -> Option<Arc<PeerWorkload>> {
    let table = worker.shared.endpoints.load();
    let by_address = table.peer(downstream.remote.ip());
    let Some(principal) = downstream.principal.as_deref() else {
        return by_address.cloned();
    };
    let (namespace, account) = crate::tls::account(principal)?;
    if let Some(peer) = by_address.filter(|peer| peer.namespace == namespace && peer.service_account == account) {
        return Some(peer.clone());
    }
    Some(Arc::new(PeerWorkload {
        namespace: namespace.to_owned(),
        name: "unknown".into(),
        service_account: account.to_owned(),
        canonical_name: "unknown".into(),
        canonical_revision: "latest".into(),
        app: None,
        version: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: ID-121, ID-124
    #[test]
    fn nothing_that_a_certificate_says_ends_its_quotes_or_its_field() {
        assert_eq!(quoted("spiffe://a/b"), "spiffe://a/b");
        assert_eq!(quoted("a;b"), "\"a;b\"");
        assert_eq!(quoted("a\\\";URI=x"), "\"a\\\\\\\";URI=x\"");
        assert_eq!(quoted("a\r\nb"), "\"a%0D%0Ab\"");
        assert_eq!(escaped("CN=\u{e4}\0"), "CN=%C3%A4%00");
    }
}
