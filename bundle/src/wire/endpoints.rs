//! Endpoint addresses as seen from one namespace: content of `ep-<n>.zst`, JSON (DLV-112).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::is_default;

/// One shard of a namespace's endpoints. It stands alone: positions refer to tables of the same shard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// Label sets, each sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<BTreeMap<String, String>>,
    /// Port sets: target port by name of the Service port, which may be empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<BTreeMap<String, u16>>,
    /// Workloads that endpoints belong to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<PeerWorkload>,
    /// Localities, `region/zone/subzone`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub localities: Vec<String>,
    /// Nodes that endpoints run on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_names: Vec<String>,
    /// Hosts of this shard, sorted by name. A host without endpoints is listed (DLV-116).
    pub hosts: Vec<HostEndpoints>,
    /// Locality of each node that runs pods of this namespace (DLV-014).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, String>,
    /// Proxies of each workload of this namespace by zone, `region/zone`, where some rule asks for them (DR-071).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub proxies: BTreeMap<String, BTreeMap<String, u32>>,
}

/// The endpoints of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEndpoints {
    /// Fully qualified name.
    pub host: String,
    /// Service accounts of all pods and templates that it selects, `namespace/name`, sorted (DLV-112, ID-078).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// Usable endpoints, sorted by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address.
    #[serde(rename = "a")]
    pub address: IpAddr,
    /// Position in [`Endpoints::ports`].
    #[serde(rename = "p")]
    pub ports: u32,
    /// Position in [`Endpoints::labels`].
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<u32>,
    /// Position in [`Endpoints::workloads`].
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<u32>,
    /// Position in [`Endpoints::localities`].
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<u32>,
    /// Position in [`Endpoints::node_names`].
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// Load-balancing weight; default 1.
    #[serde(rename = "n", default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Health; default ready.
    #[serde(rename = "h", default, skip_serializing_if = "is_default")]
    pub health: Health,
    /// Which of its ports take mesh mTLS; default none.
    #[serde(rename = "m", default, skip_serializing_if = "is_default")]
    pub tls: MeshTls,
}

/// Health of an endpoint as Kubernetes sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Takes requests.
    #[default]
    Ready,
    /// Takes no new ones (SM-092, SM-098); listed so that what is in flight keeps its facts.
    Draining,
    /// Not ready: reached only by dialling its address, where the service is headless (SM-076).
    Unready,
}

/// Which ports of an endpoint take mesh mTLS (ID-093).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshTls {
    /// None: no sidecar.
    #[default]
    None,
    /// All.
    All,
    /// All but these target ports, whose mode is `DISABLE`.
    Except(Vec<u16>),
}

/// The workload of an endpoint, for telemetry (MET-020 ff.).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerWorkload {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Canonical service.
    pub canonical_name: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// `app`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// `version`, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(value: &u32) -> bool {
    *value == 1
}
