//! Facts of workloads that proxies tell each other in headers (MET-039 ff.).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE64;
use weft_bundle::model::Config;
use weft_bundle::wire::PeerWorkload;

use super::Headers;
use crate::exchange::Exchange;
use crate::worker::Worker;

const ID: &str = "x-envoy-peer-metadata-id";
const METADATA: &str = "x-envoy-peer-metadata";

/// Longest header that is read (MET-041).
const MAX_BYTES: usize = 8 * 1024;

/// Peers that are remembered; then all are forgotten.
const MAX_PEERS: usize = 256;

/// Deepest nesting of a struct that is read.
const MAX_DEPTH: u32 = 4;

/// Adds the own facts to a request or response.
pub(super) fn attach(worker: &Worker, config: &Arc<Config>, headers: &mut Headers) -> bool {
    let (id, metadata) = worker.metadata(config);
    headers.set(ID, id);
    headers.set(METADATA, metadata);
    true
}

/// Takes the server's facts out of a response.
pub(super) fn take(worker: &Worker, headers: &mut Headers, exchange: &mut Exchange, asked: bool) {
    let metadata = remove(headers);
    if let Some(metadata) = metadata.filter(|_| asked && exchange.destination.is_none()) {
        exchange.destination = worker.peers.get(&metadata, exchange.upstream.principal.as_ref());
    }
}

/// Removes both fields; the value of that with the facts.
pub(super) fn remove(headers: &mut Headers) -> Option<Bytes> {
    let metadata = headers.remove(METADATA);
    headers.remove(ID);
    metadata
}

/// What peers said of themselves, by what they said and the verified id that it was judged with. A peer says the same
/// with each request, so it is decoded once.
#[derive(Default)]
pub struct Peers(RefCell<HashMap<Said, Option<Arc<PeerWorkload>>>>);

type Said = (Bytes, Option<Arc<str>>);

impl Peers {
    /// The workload that a field describes, as far as the peer's verified id bears it out; `None` if it cannot be
    /// read.
    pub fn get(&self, metadata: &Bytes, principal: Option<&Arc<str>>) -> Option<Arc<PeerWorkload>> {
        if metadata.len() > MAX_BYTES {
            return None;
        }
        let mut peers = self.0.borrow_mut();
        let mut said = (metadata.clone(), principal.cloned());
        if let Some(found) = peers.get(&said) {
            return found.clone();
        }
        if peers.len() >= MAX_PEERS {
            peers.clear();
        }
        let found = decode(metadata).map(|mut peer| {
            own_namespace(&mut peer, principal.map(|id| &**id));
            Arc::new(peer)
        });
        // A copy, so that the buffer that it came in is not held.
        said.0 = Bytes::copy_from_slice(metadata);
        peers.insert(said, found.clone());
        found
    }
}

/// The namespace of a verified id wins over what the header says (MET-034, MET-042).
fn own_namespace(peer: &mut PeerWorkload, principal: Option<&str>) {
    if let Some((namespace, account)) = principal.and_then(crate::tls::account) {
        if peer.namespace != namespace {
            *peer = PeerWorkload {
                namespace: namespace.to_owned(),
                name: "unknown".into(),
                service_account: account.to_owned(),
                canonical_name: "unknown".into(),
                canonical_revision: "latest".into(),
                app: None,
                version: None,
            };
        } else {
            account.clone_into(&mut peer.service_account);
        }
    }
}

/// The two values that this proxy sends.
#[must_use]
pub fn own(config: &Config, settings: &crate::shared::Settings) -> (Bytes, Bytes) {
    let workload = &config.workload;
    let pod = &settings.pod;
    let kind = match config.owner.template {
        weft_bundle::key::Template::Sidecar => "sidecar",
        weft_bundle::key::Template::Gateway => "router",
    };
    let namespace = &workload.namespace;
    let domain = &config.mesh.cluster_domain;
    let id = format!(
        "{kind}~{}~{}.{namespace}~{namespace}.svc.{domain}",
        pod.address, pod.name
    );
    let mut labels = BTreeMap::new();
    if let Some(app) = &workload.app {
        labels.insert("app", app.as_str());
    }
    if let Some(version) = &workload.version {
        labels.insert("version", version.as_str());
    }
    labels.insert("service.istio.io/canonical-name", &workload.canonical_name);
    labels.insert("service.istio.io/canonical-revision", &workload.canonical_revision);
    let owner = format!(
        "kubernetes://apis/apps/v1/namespaces/{namespace}/deployments/{}",
        workload.name
    );
    let cluster_id = if pod.cluster_id.is_empty() {
        "Kubernetes"
    } else {
        &pod.cluster_id
    };
    let mut out = Vec::new();
    for (key, value) in [
        ("NAME", pod.name.as_str()),
        ("NAMESPACE", namespace),
        ("WORKLOAD_NAME", &workload.name),
        ("OWNER", &owner),
        ("CLUSTER_ID", cluster_id),
    ] {
        field(&mut out, key, &text(value));
    }
    let mut inner = Vec::new();
    for (key, value) in &labels {
        field(&mut inner, key, &text(value));
    }
    // Value.struct_value is field 5.
    let mut value = Vec::new();
    bytes_field(&mut value, 5, &inner);
    field(&mut out, "LABELS", &value);
    (Bytes::from(id), Bytes::from(BASE64.encode(&out)))
}

/// `google.protobuf.Value` with a string, which is field 3.
fn text(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    bytes_field(&mut out, 3, value.as_bytes());
    out
}

/// An entry of `google.protobuf.Struct.fields`, a map: field 1 of messages with key 1 and value 2.
fn field(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let mut entry = Vec::new();
    bytes_field(&mut entry, 1, key.as_bytes());
    bytes_field(&mut entry, 2, value);
    bytes_field(out, 1, &entry);
}

fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or(0));
    out.extend_from_slice(bytes);
}

fn decode(header: &[u8]) -> Option<PeerWorkload> {
    if header.len() > MAX_BYTES {
        return None;
    }
    let bytes = BASE64.decode(header).ok()?;
    let mut found = BTreeMap::new();
    read_struct(&bytes, "", &mut found, MAX_DEPTH)?;
    let get = |key: &str| found.get(key).cloned();
    let app = get("LABELS/app");
    let version = get("LABELS/version");
    let name = get("WORKLOAD_NAME").unwrap_or_else(|| "unknown".into());
    Some(PeerWorkload {
        namespace: get("NAMESPACE").unwrap_or_else(|| "unknown".into()),
        service_account: String::new(),
        canonical_name: get("LABELS/service.istio.io/canonical-name")
            .or_else(|| app.clone())
            .unwrap_or_else(|| name.clone()),
        canonical_revision: get("LABELS/service.istio.io/canonical-revision")
            .or_else(|| version.clone())
            .unwrap_or_else(|| "latest".into()),
        name,
        app,
        version,
    })
}

/// Collects string values by path; anything else is passed over.
fn read_struct(bytes: &[u8], prefix: &str, found: &mut BTreeMap<String, String>, depth: u32) -> Option<()> {
    if depth == 0 {
        return Some(());
    }
    each_field(bytes, |number, entry| {
        if number != 1 {
            return Some(());
        }
        let (mut key, mut value) = (None, None);
        each_field(entry, |number, bytes| {
            match number {
                1 => key = std::str::from_utf8(bytes).ok(),
                2 => value = Some(bytes),
                _ => {}
            }
            Some(())
        })?;
        let (Some(key), Some(value)) = (key, value) else {
            return Some(());
        };
        let path = format!("{prefix}{key}");
        each_field(value, |number, bytes| {
            match number {
                3 => {
                    if let Ok(text) = std::str::from_utf8(bytes) {
                        found.insert(path.clone(), text.to_owned());
                    }
                }
                5 => read_struct(bytes, &format!("{path}/"), found, depth - 1)?,
                _ => {}
            }
            Some(())
        })
    })
}

/// Calls `f` with each length-delimited field; other wire types are skipped. `None`: malformed.
fn each_field<'b>(mut bytes: &'b [u8], mut f: impl FnMut(u64, &'b [u8]) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match tag & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let content = bytes.get(..length)?;
                bytes = &bytes[length..];
                f(tag >> 3, content)?;
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // spec: MET-041
    #[test]
    fn facts_survive_the_way_to_a_peer() {
        let mut inner = Vec::new();
        field(&mut inner, "app", &text("reviews"));
        let mut labels = Vec::new();
        bytes_field(&mut labels, 5, &inner);
        let mut out = Vec::new();
        field(&mut out, "NAMESPACE", &text("default"));
        field(&mut out, "WORKLOAD_NAME", &text(&"w".repeat(200)));
        field(&mut out, "LABELS", &labels);
        let found = decode(BASE64.encode(&out).as_bytes()).expect("readable");
        assert_eq!(found.namespace, "default");
        assert_eq!(found.name, "w".repeat(200));
        assert_eq!(found.canonical_name, "reviews");
        assert_eq!(found.canonical_revision, "latest");
    }

    // spec: MET-034, MET-042
    #[test]
    fn facts_are_judged_by_the_id_that_came_with_them() {
        let mut out = Vec::new();
        field(&mut out, "NAMESPACE", &text("default"));
        field(&mut out, "WORKLOAD_NAME", &text("reviews"));
        let said = Bytes::from(BASE64.encode(&out));
        let peers = Peers::default();
        let id = |namespace: &str| Arc::from(format!("spiffe://cluster.local/ns/{namespace}/sa/a"));
        let (own, foreign): (Arc<str>, Arc<str>) = (id("default"), id("other"));
        for _ in 0..2 {
            let found = |id| peers.get(&said, id).expect("readable");
            let of = |id| (found(id).namespace.clone(), found(id).name.clone());
            assert_eq!(of(None), ("default".into(), "reviews".into()));
            assert_eq!(of(Some(&own)), ("default".into(), "reviews".into()));
            assert_eq!(of(Some(&foreign)), ("other".into(), "unknown".into()));
        }
        let first = peers.get(&said, Some(&own)).expect("readable");
        assert!(Arc::ptr_eq(&first, &peers.get(&said, Some(&own)).expect("readable")));
        assert!(peers.get(&Bytes::from_static(b"!"), None).is_none());
        for n in 0..3 * MAX_PEERS {
            peers.get(&Bytes::from(n.to_string()), None);
            peers.get(&said, Some(&id(&n.to_string())));
        }
        assert!(peers.0.borrow().len() <= MAX_PEERS);
    }

    proptest! {
        // spec: MET-042
        #[test]
        fn malformed_facts_are_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(BASE64.encode(&bytes).as_bytes());
            let _ = decode(&bytes);
        }
    }
}
