//! Status of mesh objects (OPS-120).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of the object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Generation that the conditions speak of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Standard conditions: Accepted, ResolvedRefs, Reconciled, Ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Findings of the analysis (OPS-130).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation_messages: Vec<ValidationMessage>,
}

/// A finding of the analysis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ValidationMessage {
    /// Which finding.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ValidationMessageType>,
    /// ERROR, WARNING or INFO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Page that explains it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
}

/// A finding by name and code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ValidationMessageType {
    /// Name.
    pub name: String,
    /// Code, for example IST0101.
    pub code: String,
}
