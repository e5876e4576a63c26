//! Mesh, `weft.dev`: how one control plane is doing (OPS-133). The operator creates it and writes its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A control plane of one revision. There is nothing to set: the operator writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    category = "weft",
    status = "MeshStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshSpec {}

/// How the control plane is doing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshStatus {
    /// Generation that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, MeshConfigValid, CaValid, WebhookReady, CRDsPresent, Rendered, Propagated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Version of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Pods with a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// Configurations that are delivered, one for each kind of workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// Pod of the operator that writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// End of the authority's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_not_after: Option<Time>,
}

/// Pods with a proxy, by what it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCounts {
    /// All.
    pub total: i64,
    /// With the newest configuration.
    pub synced: i64,
    /// With an older one.
    pub stale: i64,
    /// That refused the newest one.
    pub rejected: i64,
    /// That did not answer.
    pub unknown: i64,
}
