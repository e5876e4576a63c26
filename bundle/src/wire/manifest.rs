//! Manifests: what a set of files must consist of (DLV-020), and the target of a nudge (DLV-051).

use serde::{Deserialize, Serialize};

use super::Inputs;

/// Feature of [`Manifest::requires`]: ports that the proxy opens by itself ([`super::Bundle::listeners`]).
pub const GATEWAY: &str = "gateway";

/// Feature of [`Manifest::requires`]: policies of access, which a proxy that ignored them would fail to enforce.
pub const AUTHORIZATION: &str = "authorization";

/// Feature of [`Manifest::requires`]: TLS that ends at those ports ([`super::TlsServing::terminated`]).
pub const GATEWAY_TLS: &str = "gatewayTls";

/// Feature of [`Manifest::requires`]: certificates for TLS to others from the volume of credentials
/// ([`super::OriginateTls::credential`]).
pub const UPSTREAM_CREDENTIALS: &str = "upstreamCredentials";

/// `manifest.json` of a key's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Schema of the content, see [`super::SCHEMA`].
    pub schema: u32,
    /// Features that a proxy must know to run it.
    #[serde(default)]
    pub requires: Vec<String>,
    /// The key (DLV-010).
    pub key: String,
    /// What the key was computed from (DLV-017).
    pub inputs: Inputs,
    /// First 12 hex digits of [`Manifest::sha256`] (DLV-021).
    pub revision: String,
    /// The files, in order.
    pub shards: Vec<ShardDigest>,
    /// SHA-256 of the uncompressed bundle, lower-case hex.
    pub sha256: String,
}

/// One stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardDigest {
    /// File name.
    pub file: String,
    /// Length of the stored bytes.
    pub length: u64,
    /// SHA-256 of the stored bytes, lower-case hex.
    pub sha256: String,
}

/// `ep-<n>.json`: the manifest of one endpoint shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointsManifest {
    /// Schema of the content, see [`super::SCHEMA`].
    pub schema: u32,
    /// Features that a proxy must know to use it.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Number of shards that the namespace's endpoints are spread over.
    pub shards: u32,
    /// Length of `ep-<n>.zst`.
    pub length: u64,
    /// SHA-256 of `ep-<n>.zst`, lower-case hex.
    pub sha256: String,
    /// SHA-256 of its content, lower-case hex.
    pub content_sha256: String,
}

/// File `target-rev`: what the operator last wrote for this pod (DLV-051, DLV-054).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Configuration revision.
    pub config: String,
    /// Endpoint revision.
    pub endpoints: String,
    /// Makes a repetition differ.
    pub seq: u64,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{}", self.config, self.endpoints, self.seq)
    }
}

impl Target {
    /// Parses `<config>,<endpoints>,<seq>`; `None` for an empty or malformed text, which is no target.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split(',');
        let (config, endpoints, seq) = (parts.next()?, parts.next()?, parts.next()?);
        let is_revision = |s: &str| s.len() <= 64 && s.bytes().all(|b| b.is_ascii_alphanumeric());
        if parts.next().is_some() || !is_revision(config) || !is_revision(endpoints) {
            return None;
        }
        Some(Self {
            config: config.to_owned(),
            endpoints: endpoints.to_owned(),
            seq: seq.parse().ok()?,
        })
    }
}
