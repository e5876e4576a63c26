//! Sidecar, `networking.istio.io` (spec: service-entry.md).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::destination_rule::ConnectionPoolSettings;
use crate::gateway::ServerTLSSettings;
use crate::service_entry::LabelSelector;
use crate::status::Status;
use crate::virtual_service::Destination;

mod validation;

/// What proxies beside workloads know of the mesh, and how they receive.
#[derive(Debug, Clone, Default, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "Sidecar",
    plural = "sidecars",
    category = "istio-io",
    category = "networking-istio-io",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarSpec {
    /// Workloads of this namespace; all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelSelector>,
    /// Ports of the workload, in place of those that Services name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ingress: Vec<IstioIngressListener>,
    /// Hosts that the workload may call; everything visible when left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub egress: Vec<IstioEgressListener>,
    /// Limits of connections to the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<ConnectionPoolSettings>,
    /// What happens to traffic of no known host; as the mesh config says when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// What happens to traffic of no known host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY (default: it is refused) or ALLOW_ANY.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["REGISTRY_ONLY", "ALLOW_ANY"]))]
    pub mode: Option<String>,
    /// Where such traffic goes, with ALLOW_ANY.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<Destination>,
}

/// Hosts that the workload may call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["hosts"]))]
pub struct IstioEgressListener {
    /// The only port that the entry is for; all others when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    /// Address to listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub bind: Option<String>,
    /// DEFAULT, IPTABLES or NONE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["DEFAULT", "IPTABLES", "NONE"]))]
    pub capture_mode: Option<String>,
    /// `namespace/name`: a namespace, `*`, `.` or `~`, and a name, `*.x` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// A port of the workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["port"]))]
pub struct IstioIngressListener {
    /// Port that traffic arrives on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<SidecarPort>,
    /// Address to listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub bind: Option<String>,
    /// DEFAULT, IPTABLES or NONE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["DEFAULT", "IPTABLES", "NONE"]))]
    pub capture_mode: Option<String>,
    /// Where the application listens; the pod's address and the same port when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub default_endpoint: Option<String>,
    /// TLS that the sidecar ends for the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTLSSettings>,
    /// Limits of connections to the application on this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPoolSettings>,
}

/// A port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// 1 to 65535; 0 where `bind` is a Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub number: Option<i64>,
    /// Protocol; left out, it is detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub protocol: Option<String>,
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub name: Option<String>,
    /// Without effect; deprecated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<i64>,
}

/// What an entry of [`IstioEgressListener::hosts`] says (SE-071, SE-073).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEntry<'a> {
    /// It excludes what it names.
    pub excludes: bool,
    /// Namespace, `*` or `.`.
    pub namespace: &'a str,
    /// Name, `*.x` or `*`.
    pub name: &'a str,
}

impl<'a> HostEntry<'a> {
    /// Reads `namespace/name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        validation::host_entry(text)
    }
}

/// Where the application listens (SE-089).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultEndpoint<'a> {
    /// The pod's address and the port that traffic arrives on.
    Same,
    /// The pod's address and this port.
    Pod(u16),
    /// A loopback address and this port.
    Loopback(std::net::IpAddr, u16),
    /// A Unix socket.
    Socket(&'a str),
}

impl<'a> DefaultEndpoint<'a> {
    /// Reads a [`IstioIngressListener::default_endpoint`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        validation::default_endpoint(text)
    }
}
