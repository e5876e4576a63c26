//! AuthorizationPolicy, `security.istio.io` (spec: authorization.md).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::destination_rule::WorkloadSelector;
use crate::status::Status;

mod validation;

pub use validation::{dry_run, is_sound};

/// Who may ask what of workloads.
#[derive(Debug, Clone, Default, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "ap",
    category = "istio-io",
    category = "security-istio-io",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// Workloads of this namespace, in the root namespace of the mesh; all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// What it is attached to, in place of a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_refs: Option<Vec<PolicyTargetReference>>,
    /// The same, one alone; deprecated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<PolicyTargetReference>,
    /// ALLOW (the default), DENY, AUDIT or CUSTOM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["ALLOW", "DENY", "AUDIT", "CUSTOM"]))]
    pub action: Option<String>,
    /// Who is asked, for CUSTOM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<ExtensionProvider>,
    /// A request that fits one of them fits the policy; without any no request fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
}

/// Actions of a policy (AUTHZ-007).
pub const ACTIONS: [&str; 4] = ["ALLOW", "DENY", "AUDIT", "CUSTOM"];

/// An object that a policy is attached to (AUTHZ-005).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyTargetReference {
    /// Group of the API; empty for the core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Must be left out: targets are in the policy's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// An entry of the mesh configuration's `extensionProviders`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// Its name.
    pub name: String,
}

/// Fields that this version does not know. They are kept, because one of them may be what narrows the rule (AUTHZ-107).
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// Conditions on where a request comes from, what it asks for, and the rest; all that are given must hold (AUTHZ-015).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Sources, one of which must fit; all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub from: Option<Vec<RuleFrom>>,
    /// Operations, one of which must fit; all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<RuleTo>>,
    /// Further conditions, all of which must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<Condition>>,
    /// See [`Unknown`].
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// An entry of `from`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleFrom {
    /// The source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// See [`Unknown`].
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

/// An entry of `to`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleTo {
    /// The operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// See [`Unknown`].
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

macro_rules! fields {
    ($(#[$doc:meta])* $type:ident { $($(#[$field_doc:meta])* $field:ident $key:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $type {
            $(
                $(#[$field_doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<Vec<String>>,
            )*
            /// See [`Unknown`].
            #[serde(flatten)]
            #[schemars(skip)]
            pub unknown: Unknown,
        }

        impl $type {
            /// The fields that are set, by name.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &[String])> {
                let all = [$(($key, self.$field.as_deref())),*];
                all.into_iter().filter_map(|(key, values)| Some((key, values?)))
            }
        }
    };
}

fields! {
    /// Where a request comes from. All fields that are set must fit; of a field one value, of a `not` field none.
    Source {
        /// Identities of mutual TLS, `<trust domain>/ns/<namespace>/sa/<account>`.
        principals "principals";
        /// Identities that are left out.
        not_principals "notPrincipals";
        /// `<issuer>/<subject>` of the token.
        request_principals "requestPrincipals";
        /// Tokens that are left out.
        not_request_principals "notRequestPrincipals";
        /// Namespaces of identities.
        namespaces "namespaces";
        /// Namespaces that are left out.
        not_namespaces "notNamespaces";
        /// Service accounts of identities, `<namespace>/<account>` or an account of this namespace.
        service_accounts "serviceAccounts";
        /// Service accounts that are left out.
        not_service_accounts "notServiceAccounts";
        /// Addresses and ranges that packets come from.
        ip_blocks "ipBlocks";
        /// Addresses and ranges that are left out.
        not_ip_blocks "notIpBlocks";
        /// Addresses and ranges of the client, as proxies on the way tell it.
        remote_ip_blocks "remoteIpBlocks";
        /// Such addresses that are left out.
        not_remote_ip_blocks "notRemoteIpBlocks";
        /// Trust domains of identities.
        trust_domains "trustDomains";
        /// Trust domains that are left out.
        not_trust_domains "notTrustDomains";
    }
}

fields! {
    /// What a request asks for. All fields that are set must fit; of a field one value, of a `not` field none.
    Operation {
        /// Values of the Host header.
        hosts "hosts";
        /// Hosts that are left out.
        not_hosts "notHosts";
        /// Ports of the workload.
        ports "ports";
        /// Ports that are left out.
        not_ports "notPorts";
        /// Methods.
        methods "methods";
        /// Methods that are left out.
        not_methods "notMethods";
        /// Paths without query.
        paths "paths";
        /// Paths that are left out.
        not_paths "notPaths";
    }
}

/// A further condition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// What it is about, for example `request.headers[x-token]`.
    pub key: String,
    /// Values, one of which must fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
    /// Values, none of which may fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_values: Option<Vec<String>>,
    /// See [`Unknown`].
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Unknown,
}

impl AuthorizationPolicySpec {
    /// What it does (AUTHZ-008).
    #[must_use]
    pub fn action(&self) -> &str {
        self.action.as_deref().unwrap_or("ALLOW")
    }
}
