//! Ports of a gateway: Gateways and the VirtualServices bound to them, merged (GW-059 ff.).

use serde::{Deserialize, Serialize};

use super::{Destination, TlsRule, TlsVersion, is_default};

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
    /// Connections whose TLS ends at the gateway, by server; a name is there once on a port (GW-061).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub terminated: Vec<TlsServer>,
}

/// A server at which TLS ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsServer {
    /// SNI values that select it; `*.x` stands for any name that ends in `.x`, `*` for any and none.
    pub sni: Vec<String>,
    /// How.
    pub tls: TlsSettings,
    /// What is inside.
    #[serde(flatten)]
    pub inside: Inside,
}

/// What is inside of TLS that ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inside {
    /// HTTP, by Host; as [`Serves::Http`].
    Http(Vec<VirtualHost>),
    /// Whatever comes; as [`Serves::Tcp`].
    Tcp(Vec<Destination>),
}

/// How TLS ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsSettings {
    /// What is shown to clients: one, or two of different kinds of keys (GW-039).
    pub certificates: Vec<Certificate>,
    /// How clients are verified; absent: they show no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Clients>,
    /// Lowest version; default 1.2 (GW-049).
    #[serde(default, skip_serializing_if = "is_default")]
    pub min: TlsVersion,
    /// Highest version; absent: 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<TlsVersion>,
    /// Suites of TLS 1.2 by OpenSSL's names; empty: all (GW-050).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ciphers: Vec<String>,
    /// Groups of the key exchange; empty: all (GW-052).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<String>,
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Certificate {
    /// Files in the proxy's container, as PEM.
    Files {
        /// The certificate with its intermediates.
        chain: String,
        /// The key.
        key: String,
    },
    /// A credential of the volume, by the name of its files without ending (DLV-152).
    Credential(String),
    /// The identity of the workload.
    Workload,
}

/// How certificates of clients are verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clients {
    /// With what.
    pub authorities: Authorities,
    /// Clients without certificate are served as well (GW-032); default false.
    #[serde(default, skip_serializing_if = "is_default")]
    pub optional: bool,
    /// File with revoked certificates; with a credential they are a part of it (GW-046).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<String>,
    /// Names of which a certificate must carry one; empty: any (GW-047).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// Where the authorities of clients are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Authorities {
    /// A file in the proxy's container, as PEM.
    File(String),
    /// A credential of the volume, as [`Certificate::Credential`].
    Credential(String),
    /// Those of the mesh: clients are its workloads.
    Mesh,
}
