//! Mesh config: key `mesh` of ConfigMap `weft` in the control-plane namespace (OPS-023). Not a kind of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::destination_rule::{
    ConnectionPoolSettings, LocalityLoadBalancerSetting, OutlierDetection, TcpKeepalive, ZoneAwareLoadBalancerSetting,
};
use crate::duration::Duration;
use crate::object::brackets;
use crate::virtual_service::HTTPRetry;

mod validation;

/// Settings of the mesh. Fields that this version does not know are kept aside and warned about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Namespace of mesh-wide resources; default the control-plane namespace (SM-114).
    pub root_namespace: Option<String>,
    /// Default `cluster.local` (ID-002).
    pub trust_domain: Option<String>,
    /// Further trust domains of this mesh (ID-006).
    pub trust_domain_aliases: Vec<String>,
    /// Trust anchors beside the roots of the mesh's own authority (ID-057, ID-059).
    pub ca_certificates: Vec<CaCertificate>,
    /// What becomes of traffic to unknown destinations (SM-060).
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Where proxies reach their application (SM-109).
    pub inbound_traffic_policy: Option<InboundTrafficPolicy>,
    /// Default 10s (SM-115).
    pub connect_timeout: Option<Duration>,
    /// Longest pause after a name could not be looked up; default 60s (SM-115).
    pub dns_refresh_rate: Option<Duration>,
    /// Default true (ID-092).
    pub enable_auto_mtls: Option<bool>,
    /// Default 0s (SM-029).
    pub protocol_detection_timeout: Option<Duration>,
    /// Replaces VS-099.
    pub default_http_retry_policy: Option<HTTPRetry>,
    /// Blocks for services whose rules set none (SM-118).
    pub default_traffic_policy: Option<DefaultTrafficPolicy>,
    /// Keepalive of upstream connections (SM-119).
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// File of the access log; empty: off (LOG-001).
    pub access_log_file: Option<String>,
    /// TEXT or JSON.
    pub access_log_encoding: Option<String>,
    /// Format (LOG-002).
    pub access_log_format: Option<String>,
    /// Normalisation of paths (SM-116).
    pub path_normalization: Option<PathNormalization>,
    /// Default DO_NOT_UPGRADE (DR-085).
    pub h2_upgrade_policy: Option<String>,
    /// Preference by place where no rule and no service states one (SM-103).
    pub locality_lb_setting: Option<LocalityLoadBalancerSetting>,
    /// Preference of the client's zone, which comes before it (SM-106).
    pub zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
    /// TLS other than that of the mesh (DR-121).
    pub tls_defaults: Option<TlsDefaults>,
    /// Settings of proxies.
    pub default_config: Option<ProxyConfig>,
    /// Default 15001 (NET-011).
    pub proxy_listen_port: Option<i64>,
    /// Default 15006 (NET-011).
    pub proxy_inbound_listen_port: Option<i64>,
    /// Port of the explicit HTTP proxy; 0: none (SM-052).
    pub proxy_http_port: Option<i64>,
    /// TLS of mesh connections (ID-069).
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<MeshTls>,
    /// Default of Services (SM-069).
    pub default_service_export_to: Vec<String>,
    /// Default of VirtualServices.
    pub default_virtual_service_export_to: Vec<String>,
    /// Default of DestinationRules.
    pub default_destination_rule_export_to: Vec<String>,
    /// Metrics of applications are merged with the proxy's; default true (PROM-002).
    pub enable_prometheus_merge: Option<bool>,
    /// Settings that upstream does not have.
    pub weft: WeftSettings,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
    /// Paths of what this version does not know inside of fields that it knows.
    #[serde(skip)]
    pub ignored: Vec<String>,
}

/// Settings that upstream does not have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeftSettings {
    /// `istio`: upstream's rules where Weft's differ.
    pub compatibility: Option<String>,
    /// The nodes translate services when a pod connects, so that proxies see endpoints dialled (NET-066).
    pub socket_load_balancing: bool,
}

/// Trust anchors of others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaCertificate {
    /// Certificates in PEM.
    pub pem: Option<String>,
    /// Where they are fetched.
    pub spiffe_bundle_url: Option<String>,
    /// Trust domains whose peers they verify, and that servers accept; empty: they verify all that are accepted
    /// (ID-144).
    pub trust_domains: Vec<String>,
    /// Kept, without effect.
    pub cert_signers: Vec<String>,
}

/// What becomes of traffic to unknown destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// ALLOW_ANY or REGISTRY_ONLY.
    pub mode: Option<String>,
}

/// Where proxies reach their application.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InboundTrafficPolicy {
    /// PASSTHROUGH or LOCALHOST.
    pub mode: Option<String>,
}

/// Blocks for services whose rules set none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultTrafficPolicy {
    /// Limits.
    pub connection_pool: Option<ConnectionPoolSettings>,
    /// Outlier detection.
    pub outlier_detection: Option<OutlierDetection>,
}

/// Normalisation of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// DEFAULT, NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES.
    pub normalization: Option<String>,
}

/// TLS of mesh connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTls {
    /// TLS_AUTO, TLSV1_2 or TLSV1_3.
    pub min_protocol_version: Option<String>,
}

/// TLS other than that of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsDefaults {
    /// Lowest version of servers: TLS_AUTO, TLSV1_2 or TLSV1_3.
    pub min_protocol_version: Option<String>,
    /// Cipher suites below TLS 1.3, OpenSSL's names.
    pub cipher_suites: Vec<String>,
    /// Groups of the key exchange.
    pub ecdh_curves: Vec<String>,
}

/// Settings of proxies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Worker threads (LIFE-084).
    pub concurrency: Option<i64>,
    /// Default 15020 (NET-011).
    pub status_port: Option<i64>,
    /// Default 15000 (NET-011).
    pub proxy_admin_port: Option<i64>,
    /// Applications wait for their proxy (INJ-110).
    pub hold_application_until_proxy_starts: Option<bool>,
    /// Default 45s (LIFE-034).
    pub drain_duration: Option<Duration>,
    /// LIFE-024.
    pub termination_drain_duration: Option<Duration>,
    /// REDIRECT, TPROXY or NONE.
    pub interception_mode: Option<String>,
    /// Environment of proxies (INJ-070).
    pub proxy_metadata: BTreeMap<String, String>,
    /// Mesh id of telemetry.
    pub mesh_id: Option<String>,
}

impl MeshConfig {
    /// Parses the YAML of key `mesh`; an empty text is all defaults.
    ///
    /// # Errors
    /// Where the text is no mesh config.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Option<Self> = serde_yaml::from_str(text).map_err(|e| e.without_snippet().to_string())?;
        let mut mesh = value.unwrap_or_default();
        mesh.ignored = ignored(text);
        Ok(mesh)
    }
}

/// Fields inside of known ones that no type has, as paths.
fn ignored(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| paths.push(brackets(&path.to_string()));
    let value: Option<serde_json::Value> = serde_yaml::from_str(text).unwrap_or_default();
    if let Some(value) = &value {
        // The same text was read before, so this gives its paths alone.
        let _: Result<MeshConfig, _> = serde_ignored::deserialize(value, &mut note);
    }
    paths
}
