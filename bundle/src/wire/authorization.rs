//! Who may reach the workload (AUTHZ-001 ff.).

use serde::{Deserialize, Serialize};

use super::is_default;

/// A policy that applies to the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// What it does; default `ALLOW`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub action: Authorize,
    /// Who is asked, for `CUSTOM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// A request that fits one of them fits the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRule>,
}

/// What a policy does to requests that fit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Authorize {
    /// Lets them through. Where there is such a policy, nothing else passes.
    #[default]
    Allow,
    /// Refuses them.
    Deny,
    /// Marks them in the access log.
    Audit,
    /// Asks somebody else first.
    Custom,
}

/// A rule: one entry of `from`, one of `to` and all of `when` must fit; a list that is empty says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessRule {
    /// Sources: conditions that must all hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Vec<AccessCondition>>,
    /// Operations: conditions that must all hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Vec<AccessCondition>>,
    /// Further conditions that must all hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<AccessCondition>,
    /// Nothing fits it: it could not be read, and its policy grants something (AUTHZ-011); default false.
    #[serde(skip_serializing_if = "is_default")]
    pub never: bool,
}

/// A condition on one attribute of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessCondition {
    /// A key of `when`, or `request.host`, `request.method` and `request.path`.
    pub key: String,
    /// One of these must fit, unless there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these may fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}
