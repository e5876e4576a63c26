//! Which endpoints are preferred by where they are (DR-055 ff., SM-104).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Preference among endpoints. What depends on where the proxy runs is decided by the proxy (DLV-014).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Locality {
    /// Groups in order; a lower one takes what higher ones cannot (DR-058, DR-066).
    Failover(Failover),
    /// Shares by locality (DR-063): the first entry that fits the client.
    Distribute(Vec<Distribute>),
}

/// Order of endpoints: by labels, within that by locality.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Failover {
    /// Labels that endpoint and client share, most important first; each counts only when all before it do (DR-061).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<SharedLabel>,
    /// Region that comes before other ones, by region of the client (DR-059). Absent: localities do not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeMap<String, String>>,
    /// Among the endpoints that come first, those of the client's zone take what is theirs (DR-068). Absent: zones do not
    /// matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zones: Option<ZoneAware>,
}

/// Zone-aware balancing; it needs [`Endpoints::proxies`](super::Endpoints::proxies).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ZoneAware {
    /// Fewest endpoints for which zones count (DR-069), at least 1.
    pub min_cluster_size: u32,
}

/// What an endpoint's label must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SharedLabel {
    /// This value.
    Equal(String, String),
    /// Missing, as the client lacks it.
    Missing(String),
    /// That of the client: a label derived from where it runs (SM-006).
    Own(String),
}

/// Shares of the localities for clients of some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribute {
    /// Locality of the client: `region`, `region/zone` or `region/zone/subzone`; `*` stands for what is left.
    pub from: String,
    /// Percent by locality of the endpoint, written likewise.
    pub to: BTreeMap<String, u32>,
}
