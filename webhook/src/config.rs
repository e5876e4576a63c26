//! The settings of injection: ConfigMap `weft-injector`, keys `values` and `config` (INJ-212).
//!
//! Both keys hold YAML with the layout of the chart's values (OPS-021); `config` is merged over `values`, so that an
//! installation may put the chart's values into one and what it computed into the other. Keys that belong to other
//! components are ignored; what injection reads is checked, and every problem is reported at once.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_bundle::key::{DEFAULT_REVISION, InterceptionMode};

use crate::selector::LabelSelector;

pub use self::mesh::MeshDefaults;
use self::wire::Wire;

mod mesh;
mod wire;

/// Settings of injection, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectConfig {
    /// Image of `weft-proxy` and `weft-init` (INJ-060).
    pub image: String,
    /// `global.imagePullPolicy`; unset by default.
    pub image_pull_policy: Option<String>,
    /// Names of `global.imagePullSecrets`.
    pub image_pull_secrets: Vec<String>,
    /// `resources` of `weft-proxy` and `weft-init` without annotations (INJ-063).
    pub resources: Value,
    /// Revision that this injector serves; `default` for the unnamed one.
    pub revision: String,
    /// Revision tags that lead here, besides the revision's own name.
    pub revision_tags: Vec<String>,
    /// Which form the sidecar takes (INJ-052).
    pub native_sidecar: NativeSidecar,
    /// Namespaces of `injection.excludedNamespaces` (INJ-040).
    pub excluded_namespaces: Vec<String>,
    /// Namespace of the control plane (INJ-001).
    pub control_plane_namespace: String,
    /// `injection.neverInjectSelector` (INJ-016).
    pub never_inject: Vec<LabelSelector>,
    /// `injection.alwaysInjectSelector` (INJ-016).
    pub always_inject: Vec<LabelSelector>,
    /// `injection.enabledByDefault` (INJ-015).
    pub enabled_by_default: bool,
    /// `injection.istioLabels` (INJ-011).
    pub istio_labels: bool,
    /// `injection.rewriteProbes` (INJ-133).
    pub rewrite_probes: bool,
    /// Redirect defaults (INJ-175), as checked text: the annotations' syntax.
    pub capture: CaptureDefaults,
    /// `proxy.logLevel` (LIFE-090).
    pub log_level: Option<String>,
    /// `proxy.lifecycle` (LIFE-028).
    pub lifecycle: Option<Value>,
    /// `proxy.holdApplicationUntilProxyStarts`, before the mesh config's and the pod's word (INJ-110).
    pub hold_application: bool,
    /// `proxy.dnsCapture`, before the mesh config's and the pod's word (NET-090).
    pub dns_capture: bool,
    /// `proxy.captureAllDNS`, before the mesh config's and the pod's word (NET-091).
    pub capture_all_dns: bool,
    /// ConfigMap shards of a configuration (DLV-031).
    pub cfg_shards: usize,
    /// ConfigMap shards of the endpoints (DLV-031).
    pub ep_shards: usize,
    /// Secret shards of credentials; unset is 4 for gateways and 1 for sidecars (DLV-151).
    pub tls_shards: Option<usize>,
    /// `delivery.ignoredLabels` (DLV-011).
    pub ignored_labels: Vec<String>,
    /// `gateway.securityContext` is set, so that no sysctl is added (INJ-187).
    pub gateway_security_context: bool,
    /// The redirect is set by the CNI plugin (INJ-056, INJ-094).
    pub cni: bool,
    /// `interception`: who writes the redirect.
    pub redirect: Redirect,
    /// `proxyInit.image`: the image of `weft-init` alone, where it needs the programs of iptables.
    pub init_image: Option<String>,
    /// `identity.strictIsolation` (ID-129).
    pub strict_isolation: bool,
    /// `telemetry.kialiAnnotation` (PROM-020).
    pub kiali_annotation: bool,
    /// `telemetry.maxSeriesPerMetric` (CARD-002); unset is the proxy's own default.
    pub max_series: Option<u32>,
    /// `global.logAsJson` (LIFE-093).
    pub log_as_json: bool,
    /// Name of the cluster in telemetry.
    pub cluster_id: String,
    /// Id of the mesh; the trust domain unless set.
    pub mesh_id: Option<String>,
    /// What injection reads of the mesh config.
    pub mesh: MeshDefaults,
}

/// What `weft-init` is told about its back end (NET-100, NET-103, NET-105).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `interception.backend`: auto, nftables or iptables.
    pub backend: String,
    /// `interception.iptablesBinary`: nft or legacy; `None`: the one that is in use.
    pub iptables_binary: Option<String>,
    /// `interception.reconcile`.
    pub reconcile: bool,
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            backend: "auto".to_owned(),
            iptables_binary: None,
            reconcile: true,
        }
    }
}

impl Redirect {
    /// Whether iptables-legacy is configured, which needs `NET_RAW` and a place for its lock (INJ-054).
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.backend != "nftables" && self.iptables_binary.as_deref() == Some("legacy")
    }
}

/// Values of `injection.nativeSidecar`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecar {
    /// Native where all nodes can (INJ-052).
    #[default]
    Auto,
    /// Always an init container with `restartPolicy: Always`.
    Always,
    /// Always an ordinary container.
    Never,
}

/// Mesh-wide defaults of INJ-153 to INJ-155, in the annotations' syntax (INJ-175).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureDefaults {
    /// `proxy.includeIPRanges`.
    pub include_cidrs: String,
    /// `proxy.excludeIPRanges`.
    pub exclude_cidrs: String,
    /// `proxy.includeInboundPorts`.
    pub include_inbound_ports: String,
    /// `proxy.excludeInboundPorts`.
    pub exclude_inbound_ports: String,
    /// `proxy.includeOutboundPorts`.
    pub include_outbound_ports: String,
    /// `proxy.excludeOutboundPorts`.
    pub exclude_outbound_ports: String,
}

impl Default for CaptureDefaults {
    fn default() -> Self {
        Self {
            include_cidrs: "*".to_owned(),
            exclude_cidrs: String::new(),
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
        }
    }
}

/// Why a version of the settings cannot be used: every problem of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("; "))]
pub struct InvalidConfig {
    /// One line each: the path, the value, what would be accepted.
    pub problems: Vec<String>,
}

impl InjectConfig {
    /// The chart's defaults with this proxy image.
    #[must_use]
    pub fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            resources: json!({
                "limits": {"cpu": "2000m", "memory": "512Mi"},
                "requests": {"cpu": "50m", "memory": "64Mi"},
            }),
            revision: DEFAULT_REVISION.to_owned(),
            revision_tags: Vec::new(),
            native_sidecar: NativeSidecar::Auto,
            excluded_namespaces: Vec::new(),
            control_plane_namespace: "weft-system".to_owned(),
            never_inject: Vec::new(),
            always_inject: Vec::new(),
            enabled_by_default: false,
            istio_labels: true,
            rewrite_probes: true,
            capture: CaptureDefaults::default(),
            log_level: None,
            lifecycle: None,
            hold_application: false,
            dns_capture: false,
            capture_all_dns: false,
            cfg_shards: 2,
            ep_shards: 2,
            tls_shards: None,
            ignored_labels: Vec::new(),
            gateway_security_context: false,
            cni: false,
            redirect: Redirect::default(),
            init_image: None,
            strict_isolation: false,
            kiali_annotation: true,
            max_series: None,
            log_as_json: false,
            cluster_id: "Kubernetes".to_owned(),
            mesh_id: None,
            mesh: MeshDefaults::default(),
        }
    }

    /// Parses the two keys of the ConfigMap and the mesh config. Empty text is an empty document.
    ///
    /// # Errors
    /// [`InvalidConfig`] with every problem found; nothing of a bad version is used (INJ-212).
    pub fn parse(config: &str, values: &str, mesh: &str) -> Result<Self, InvalidConfig> {
        let mut problems = Vec::new();
        let mut merged = yaml("values", values, &mut problems);
        merge(&mut merged, yaml("config", config, &mut problems));
        let mesh = MeshDefaults::parse(mesh, &mut problems);
        let wire = match serde_json::from_value::<Wire>(merged) {
            Ok(wire) => wire,
            Err(error) => {
                problems.push(format!("values: {error}"));
                return Err(InvalidConfig { problems });
            }
        };
        let parsed = wire.check(mesh, &mut problems);
        match parsed {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(InvalidConfig { problems }),
        }
    }

    /// Whether a pod or namespace that names this revision or tag is served here (INJ-014).
    #[must_use]
    pub fn serves(&self, revision: &str) -> bool {
        revision == self.revision || self.revision_tags.iter().any(|tag| tag == revision)
    }

    /// The interception mode of a pod that says nothing.
    #[must_use]
    pub fn interception(&self) -> InterceptionMode {
        self.mesh.interception
    }
}

fn yaml(name: &str, text: &str, problems: &mut Vec<String>) -> Value {
    if text.trim().is_empty() {
        return Value::Object(serde_json::Map::new());
    }
    match serde_yaml::from_str::<Value>(text) {
        Ok(Value::Null) => Value::Object(serde_json::Map::new()),
        Ok(value @ Value::Object(_)) => value,
        Ok(_) => {
            problems.push(format!("{name}: must be a YAML mapping"));
            Value::Object(serde_json::Map::new())
        }
        Err(error) => {
            problems.push(format!("{name}: {}", first_line(&error.to_string())));
            Value::Object(serde_json::Map::new())
        }
    }
}

/// The first line of a parser's message: the rest draws a picture of the input.
pub(crate) fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// Merges `over` into `base`: maps by key, everything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Environment variables that `proxyMetadata` gives, by name.
pub type ProxyMetadata = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
