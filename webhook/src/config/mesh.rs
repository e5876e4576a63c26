//! What injection reads of the mesh config.

use weft_bundle::key::{InterceptionMode, pod};
use weft_crds::MeshConfig;

use super::ProxyMetadata;

/// The fields of MeshConfig that decide about a pod. Everything else of it is the operator's business; both read the
/// same ConfigMap, and refuse the same versions of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDefaults {
    /// `trustDomain`.
    pub trust_domain: String,
    /// `enablePrometheusMerge` (INJ-092).
    pub prometheus_merge: bool,
    /// `proxyListenPort` (NET-011).
    pub outbound_port: u16,
    /// `proxyInboundListenPort` (NET-011).
    pub inbound_port: u16,
    /// `defaultConfig.statusPort`.
    pub status_port: u16,
    /// `defaultConfig.proxyAdminPort` (NET-011).
    pub admin_port: u16,
    /// `defaultConfig.concurrency` (LIFE-084).
    pub concurrency: Option<u16>,
    /// `defaultConfig.holdApplicationUntilProxyStarts` (INJ-110).
    pub hold_application: bool,
    /// `defaultConfig.interceptionMode`.
    pub interception: InterceptionMode,
    /// `defaultConfig.proxyMetadata` (INJ-070).
    pub proxy_metadata: ProxyMetadata,
    /// `defaultConfig.meshId`.
    pub mesh_id: Option<String>,
}

impl Default for MeshDefaults {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            prometheus_merge: true,
            outbound_port: 15001,
            inbound_port: 15006,
            status_port: 15020,
            admin_port: 15000,
            concurrency: None,
            hold_application: false,
            interception: InterceptionMode::Redirect,
            proxy_metadata: ProxyMetadata::new(),
            mesh_id: None,
        }
    }
}

impl MeshDefaults {
    /// Reads a MeshConfig, and reports everything that is wrong with it.
    pub(super) fn parse(text: &str, problems: &mut Vec<String>) -> Self {
        let mesh = match MeshConfig::parse(text) {
            Ok(mesh) => mesh,
            Err(problem) => {
                problems.push(format!("mesh: {}", super::first_line(&problem)));
                return Self::default();
            }
        };
        problems.extend(mesh.validate().errors.iter().map(|error| format!("mesh.{error}")));
        Self::from(mesh)
    }
}

impl From<MeshConfig> for MeshDefaults {
    /// Takes a validated mesh config; what validation would have refused counts as unset.
    fn from(mesh: MeshConfig) -> Self {
        let defaults = Self::default();
        let port = |port: Option<i64>, default: u16| {
            port.and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0)
                .unwrap_or(default)
        };
        let proxy = mesh.default_config.unwrap_or_default();
        Self {
            trust_domain: mesh
                .trust_domain
                .filter(|domain| !domain.is_empty())
                .unwrap_or(defaults.trust_domain),
            prometheus_merge: mesh.enable_prometheus_merge.unwrap_or(true),
            outbound_port: port(mesh.proxy_listen_port, defaults.outbound_port),
            inbound_port: port(mesh.proxy_inbound_listen_port, defaults.inbound_port),
            status_port: port(proxy.status_port, defaults.status_port),
            admin_port: port(proxy.proxy_admin_port, defaults.admin_port),
            concurrency: proxy.concurrency.and_then(|threads| u16::try_from(threads).ok()),
            hold_application: proxy.hold_application_until_proxy_starts.unwrap_or(false),
            interception: proxy
                .interception_mode
                .as_deref()
                .and_then(pod::mode)
                .unwrap_or(defaults.interception),
            proxy_metadata: proxy.proxy_metadata,
            mesh_id: proxy.mesh_id.filter(|id| !id.is_empty()),
        }
    }
}
