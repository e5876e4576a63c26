//! From [`crate::wire`] to the bytes of ConfigMaps: text or compressed, in shards, with checksums (DLV-020 ff.).
//!
//! Deterministic: equal values give equal bytes (DLV-002).

use std::collections::BTreeMap;
use std::net::IpAddr;

use data_encoding::HEXLOWER;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::key::{KeyInputs, Template};
use crate::pace;
use crate::wire::{
    AUTHORIZATION, Bundle, Endpoint, Endpoints, EndpointsManifest, GATEWAY, GATEWAY_TLS, Health, HostEndpoints,
    Listener, Manifest, MeshTls, PeerWorkload, SCHEMA, Serves, ShardDigest, UPSTREAM_CREDENTIALS,
};

/// Contents of one ConfigMap: bytes by file name. Text is what is valid UTF-8 and does not end in `.zst`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// File with the manifest of a key's configuration.
pub const MANIFEST_FILE: &str = "manifest.json";
/// File with a configuration that is text.
pub const BUNDLE_FILE: &str = "bundle.yaml";
/// File with the target of the last nudge (DLV-054).
pub const TARGET_FILE: &str = "target-rev";
/// Largest content that a proxy decompresses (DLV-023).
pub const MAX_CONTENT: usize = 64 << 20;

/// Most shards that a set is spread over (DLV-031).
pub const MAX_SHARDS: usize = 8;

/// Name of shard `n` of a compressed configuration.
#[must_use]
pub fn config_file(n: usize) -> String {
    format!("cfg-{n}.zst")
}

/// Names of manifest and content of endpoint shard `n`.
#[must_use]
pub fn endpoint_files(n: usize) -> (String, String) {
    (format!("ep-{n}.json"), format!("ep-{n}.zst"))
}

/// Sizes that decide how things are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest configuration that stays text, in bytes; default 256 KiB (DLV-022).
    pub text: usize,
    /// Fill of one ConfigMap, in bytes; default 921 600 (DLV-030).
    pub shard: usize,
    /// Number of ConfigMaps that the pods of the key mount; default 2 (DLV-031).
    pub config_shards: usize,
    /// Number of ConfigMaps that endpoints are spread over where no pod mounts fewer; default 2.
    pub endpoint_shards: usize,
    /// Number of Secrets that credentials of a gateway are in where no pod mounts fewer; default 4 (DLV-151).
    pub credential_shards: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            text: 256 << 10,
            shard: 921_600,
            config_shards: 2,
            endpoint_shards: 2,
            credential_shards: credential_shards(Template::Gateway),
        }
    }
}

/// Number of Secrets with credentials that a pod mounts unless `delivery.tlsShards` says otherwise (DLV-151).
#[must_use]
pub const fn credential_shards(template: Template) -> usize {
    match template {
        Template::Gateway => 4,
        Template::Sidecar => 1,
    }
}

/// Why something cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It does not serialize: an invariant of the renderer is broken.
    #[error("serialize {what}: {message}")]
    Serialize {
        /// What.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// The compressor failed.
    #[error("compress {what}")]
    Compress {
        /// What.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// It does not fit the shards that the pods mount (DLV-033, DLV-117).
    #[error("{what} needs {needed} bytes, but its {shards} ConfigMaps hold {available}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Compressed size.
        needed: usize,
        /// Number of shards.
        shards: usize,
        /// What they hold together.
        available: usize,
    },
}

/// A packed configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedConfig {
    /// First 12 hex digits of the SHA-256 of the content (DLV-021).
    pub revision: String,
    /// Contents of `weft-cfg-<key>-<n>`, by n.
    pub shards: Vec<Files>,
}

/// Packs the configuration of a key.
///
/// # Errors
/// [`PackError::TooLarge`] when it does not fit into `limits.config_shards` ConfigMaps.
pub fn config(bundle: &Bundle, inputs: &KeyInputs, limits: &Limits) -> Result<PackedConfig, PackError> {
    let text = serde_yaml::to_string(bundle).map_err(|e| PackError::Serialize {
        what: "the configuration",
        message: e.to_string(),
    })?;
    let (content, stored) = if text.len() <= limits.text {
        let bytes = text.into_bytes();
        (sha256(&bytes), vec![(BUNDLE_FILE.to_owned(), bytes)])
    } else {
        let json = json("the configuration", bundle)?;
        let frame = compress("the configuration", &json)?;
        let available = limits.shard * limits.config_shards;
        if frame.len() > available {
            let (needed, shards) = (frame.len(), limits.config_shards);
            return Err(PackError::TooLarge {
                what: "the configuration",
                needed,
                shards,
                available,
            });
        }
        let parts = frame
            .chunks(limits.shard)
            .enumerate()
            .map(|(n, part)| (config_file(n), part.to_vec()));
        (sha256(&json), parts.collect())
    };
    let manifest = Manifest {
        schema: SCHEMA,
        requires: required(bundle),
        key: inputs.key(),
        inputs: inputs.clone(),
        revision: content[..12].to_owned(),
        shards: stored.iter().map(|(file, bytes)| digest(file, bytes)).collect(),
        sha256: content,
    };
    let manifest_json = json("the manifest", &manifest)?;
    let mut shards: Vec<Files> = stored.into_iter().map(|file| Files::from([file])).collect();
    shards[0].insert(MANIFEST_FILE.to_owned(), manifest_json);
    Ok(PackedConfig {
        revision: manifest.revision,
        shards,
    })
}

/// What a proxy must know to run a configuration; one that does not would serve less than is asked for (DLV-024).
fn required(bundle: &Bundle) -> Vec<String> {
    let ends_tls = |listener: &Listener| matches!(&listener.serves, Serves::Tls(tls) if !tls.terminated.is_empty());
    let features = [
        (AUTHORIZATION, !bundle.authorization.is_empty()),
        (GATEWAY, !bundle.listeners.is_empty()),
        (GATEWAY_TLS, bundle.listeners.iter().any(ends_tls)),
        (
            UPSTREAM_CREDENTIALS,
            bundle.hosts.iter().any(|host| host.credentials().next().is_some()),
        ),
    ];
    let needed = features.iter().filter(|(_, is_needed)| *is_needed);
    needed.map(|(name, _)| (*name).to_owned()).collect()
}

/// Tells one set of credentials from another: the first 12 hex digits of a SHA-256 of all their files but the keys, which
/// belong to certificates that are among them.
#[must_use]
pub fn credentials_revision<'f>(files: impl IntoIterator<Item = (&'f String, &'f Vec<u8>)>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in files {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        if extension != Some("key") {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(Sha256::digest(bytes));
        }
    }
    let mut hex = HEXLOWER.encode(&hash.finalize());
    hex.truncate(12);
    hex
}

/// One host to pack, with everything spelled out; [`endpoints`] puts it into tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostInput {
    /// Fully qualified name.
    pub host: String,
    /// See [`HostEndpoints::accounts`].
    pub accounts: Vec<String>,
    /// Endpoints; packed in the order of their addresses.
    pub endpoints: Vec<EndpointInput>,
}

/// One endpoint to pack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointInput {
    /// Address.
    pub address: IpAddr,
    /// Target port by name of the Service port.
    pub ports: BTreeMap<String, u16>,
    /// Labels that subsets need.
    pub labels: BTreeMap<String, String>,
    /// Workload, if known.
    pub workload: Option<PeerWorkload>,
    /// `region/zone/subzone`, if known.
    pub locality: Option<String>,
    /// Node, if known.
    pub node: Option<String>,
    /// Weight, 1 for pods.
    pub weight: u32,
    /// Health.
    pub health: Health,
    /// Ports that take mesh mTLS.
    pub tls: MeshTls,
}

/// Packed endpoints of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedEndpoints {
    /// First 12 hex digits of the SHA-256 of the shards' content hashes in order (DLV-021).
    pub revision: String,
    /// Contents of `weft-ep-<rev>-<h>-<n>`, by n.
    pub shards: Vec<Files>,
}

/// Where the pods of a namespace run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// See [`Endpoints::nodes`].
    pub nodes: BTreeMap<String, String>,
    /// See [`Endpoints::proxies`].
    pub proxies: BTreeMap<String, BTreeMap<String, u32>>,
}

/// Packs the endpoints of a namespace. A host is in the shard that a hash of its name chooses, so that one host's
/// change rewrites one shard (DLV-111).
///
/// # Errors
/// [`PackError::TooLarge`] when a shard does not fit into one ConfigMap.
pub fn endpoints<'a>(
    hosts: impl IntoIterator<Item = &'a HostInput>,
    places: &Places,
    limits: &Limits,
) -> Result<PackedEndpoints, PackError> {
    let count = limits.endpoint_shards.max(1);
    let mut spread: Vec<BTreeMap<&str, &HostInput>> = vec![BTreeMap::new(); count];
    for host in hosts {
        spread[shard_of(&host.host, count)].insert(&host.host, host);
    }
    let mut shards = Vec::with_capacity(count);
    let mut hashes = Sha256::new();
    for (n, hosts) in spread.iter().enumerate() {
        let mut tables = Tables::default();
        for host in hosts.values() {
            tables.push(host);
        }
        if n == 0 {
            tables.out.nodes.clone_from(&places.nodes);
            tables.out.proxies.clone_from(&places.proxies);
        }
        let content = json("endpoints", &tables.out)?;
        let frame = compress("endpoints", &content)?;
        if frame.len() > limits.shard {
            let (needed, available) = (frame.len(), limits.shard);
            return Err(PackError::TooLarge {
                what: "an endpoint shard",
                needed,
                shards: 1,
                available,
            });
        }
        let manifest = EndpointsManifest {
            schema: SCHEMA,
            requires: Vec::new(),
            shards: u32::try_from(count).expect("a handful of shards"),
            length: frame.len() as u64,
            sha256: sha256(&frame),
            content_sha256: sha256(&content),
        };
        hashes.update(manifest.content_sha256.as_bytes());
        let (manifest_file, content_file) = endpoint_files(n);
        shards.push(Files::from([
            (manifest_file, json("the manifest", &manifest)?),
            (content_file, frame),
        ]));
    }
    let mut revision = HEXLOWER.encode(&hashes.finalize());
    revision.truncate(12);
    Ok(PackedEndpoints { revision, shards })
}

/// The shard that holds a host.
#[must_use]
pub fn shard_of(host: &str, shards: usize) -> usize {
    let hash = Sha256::digest(host.as_bytes());
    let number = u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"));
    usize::try_from(number % shards.max(1) as u64).expect("less than the number of shards")
}

/// Lower-case hex SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&pace::sha256(bytes))
}

/// Puts what endpoints share into tables, each value once, in order of appearance.
#[derive(Default)]
struct Tables {
    out: Endpoints,
    labels: BTreeMap<BTreeMap<String, String>, u32>,
    ports: BTreeMap<BTreeMap<String, u16>, u32>,
    workloads: BTreeMap<PeerWorkload, u32>,
    localities: BTreeMap<String, u32>,
    nodes: BTreeMap<String, u32>,
}

impl Tables {
    fn push(&mut self, host: &HostInput) {
        let mut accounts = host.accounts.clone();
        accounts.sort();
        accounts.dedup();
        let mut endpoints: Vec<Endpoint> = host.endpoints.iter().map(|e| self.endpoint(e)).collect();
        endpoints.sort_by_key(|e| e.address);
        self.out.hosts.push(HostEndpoints {
            host: host.host.clone(),
            accounts,
            endpoints,
        });
    }

    fn endpoint(&mut self, input: &EndpointInput) -> Endpoint {
        Endpoint {
            address: input.address,
            ports: intern(&mut self.ports, &mut self.out.ports, &input.ports),
            labels: (!input.labels.is_empty()).then(|| intern(&mut self.labels, &mut self.out.labels, &input.labels)),
            workload: input
                .workload
                .as_ref()
                .map(|w| intern(&mut self.workloads, &mut self.out.workloads, w)),
            locality: input
                .locality
                .as_ref()
                .map(|l| intern(&mut self.localities, &mut self.out.localities, l)),
            node: input
                .node
                .as_ref()
                .map(|n| intern(&mut self.nodes, &mut self.out.node_names, n)),
            weight: input.weight,
            health: input.health,
            tls: input.tls.clone(),
        }
    }
}

fn intern<T: Ord + Clone>(known: &mut BTreeMap<T, u32>, table: &mut Vec<T>, value: &T) -> u32 {
    if let Some(&position) = known.get(value) {
        return position;
    }
    let position = u32::try_from(table.len()).expect("fewer distinct values than endpoints");
    table.push(value.clone());
    known.insert(value.clone(), position);
    position
}

fn json<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, PackError> {
    serde_json::to_vec(value).map_err(|e| PackError::Serialize {
        what,
        message: e.to_string(),
    })
}

/// One zstd frame with content size and checksum (DLV-022).
pub(crate) fn compress(what: &'static str, bytes: &[u8]) -> Result<Vec<u8>, PackError> {
    let frame = || {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.include_contentsize(true)?;
        compressor.compress(bytes)
    };
    frame().map_err(|source| PackError::Compress { what, source })
}

fn digest(file: &str, bytes: &[u8]) -> ShardDigest {
    ShardDigest {
        file: file.to_owned(),
        length: bytes.len() as u64,
        sha256: sha256(bytes),
    }
}

/// Level 6 packs a namespace of 5,000 endpoints in a few milliseconds; higher ones gain little on such JSON.
const LEVEL: i32 = 6;
