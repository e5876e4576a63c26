//! Ports of a gateway: Gateways and the VirtualServices bound to them, merged (GW-059 ff.).

use serde::{Deserialize, Serialize};

use super::{Destination, TlsRule, is_default};

/// A port that a gateway opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Port of the pod, 1..65535.
    pub port: u16,
    /// Port of the Service in front of the pod, by which Gateways and rules call it (GW-013); absent: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    /// Requests of gRPC-Web are translated to gRPC (SM-026); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub grpc_web: bool,
    /// What is served there.
    #[serde(flatten)]
    pub serves: Serves,
}

/// What a port of a gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Serves {
    /// HTTP in clear, by Host; none fits: 404, flag NR (GW-024).
    Http(Vec<VirtualHost>),
    /// TLS, by server name; none fits: closed, flag NR (GW-056).
    Tls(TlsServing),
    /// Whatever comes; chosen by weight for each connection (GW-068).
    Tcp(Vec<Destination>),
}

/// Names with the same rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualHost {
    /// Host header values without port, lower case: a name, `*.x` for any that ends in `.x`, `*` for all others. A name is
    /// there once on a port.
    pub domains: Vec<String>,
    /// Name of the [`RouteTable`](super::RouteTable).
    pub http: String,
}

/// What becomes of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsServing {
    /// Connections that pass through unopened, the most specific name first (GW-058).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passthrough: Vec<TlsRule>,
}
