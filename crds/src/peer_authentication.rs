//! PeerAuthentication, `security.istio.io` (spec: peer-and-request-authn.md).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::destination_rule::WorkloadSelector;
use crate::status::Status;
use crate::validate::{Report, Validate, check};

/// Whether workloads take plaintext, mutual TLS, or both.
#[derive(Debug, Clone, Default, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "PeerAuthentication",
    plural = "peerauthentications",
    shortname = "pa",
    category = "istio-io",
    category = "security-istio-io",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// Workloads of this namespace; all when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// The mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Modes of single ports of the workload, by number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<String, MutualTls>>,
}

/// A mode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// UNSET inherits, DISABLE takes plaintext alone, PERMISSIVE both, STRICT mutual TLS alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]))]
    pub mode: Option<String>,
}

/// Modes that a policy may name (PA-002).
pub const MODES: [&str; 4] = ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"];

impl Validate for PeerAuthentication {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        let PeerAuthenticationSpec {
            selector,
            mtls,
            port_level_mtls,
        } = &self.spec;
        check::no_dry_run(&mut report, &self.metadata);
        let labels = selector.as_ref().map(|s| &s.match_labels);
        if let Some(labels) = labels {
            check::match_labels(&mut report, "spec.selector.matchLabels", labels);
            if labels.is_empty() {
                report.warn("spec.selector: is empty and selects every workload; leave it out to say so");
            }
        }
        if let Some(mode) = mtls.as_ref().and_then(|m| m.mode.as_deref()) {
            check::one_of(&mut report, "spec.mtls.mode", mode, &MODES);
        }
        let Some(ports) = port_level_mtls else { return report };
        if labels.is_none_or(BTreeMap::is_empty) {
            let message = "portLevelMtls requires selector: name the workload that has these ports";
            report.error("spec.portLevelMtls", "", message);
        }
        if ports.is_empty() {
            report.error(
                "spec.portLevelMtls",
                "{}",
                "must name at least one port, or be left out",
            );
        }
        for (port, mtls) in ports {
            let path = format!("spec.portLevelMtls[{port}]");
            if port.parse::<u16>().map_or(true, |number| number == 0) {
                report.error(&path, port, "must be a port of the workload, 1 to 65535");
            }
            if let Some(mode) = mtls.mode.as_deref() {
                check::one_of(&mut report, &format!("{path}.mode"), mode, &MODES);
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: serde_json::Value) -> Vec<String> {
        let spec: PeerAuthenticationSpec = serde_json::from_value(spec).expect("spec");
        PeerAuthentication::new("x", spec)
            .validate()
            .errors
            .into_iter()
            .map(|e| e.path)
            .collect()
    }

    // spec: PA-001, PA-002, PA-009, PA-011
    #[test]
    fn bad_input_is_named() {
        use serde_json::json;
        let selector = json!({"matchLabels": {"app": "a"}});
        assert_eq!(errors(json!({"mtls": {"mode": "strict"}})), ["spec.mtls.mode"]);
        assert_eq!(
            errors(json!({"portLevelMtls": {"80": {"mode": "STRICT"}}})),
            ["spec.portLevelMtls"]
        );
        assert_eq!(
            errors(json!({"selector": selector, "portLevelMtls": {}})),
            ["spec.portLevelMtls"]
        );
        for port in ["0", "65536", "http"] {
            let path = format!("spec.portLevelMtls[{port}]");
            assert_eq!(
                errors(json!({"selector": selector, "portLevelMtls": {port: {"mode": "STRICT"}}})),
                [path]
            );
        }
        let good = json!({"selector": selector, "mtls": {"mode": "UNSET"}, "portLevelMtls": {"8080": {}}});
        assert!(errors(good).is_empty());
    }

    // spec: AUTHN-004, AUTHN-009
    #[test]
    fn labels_are_those_of_pods_and_there_is_no_dry_run() {
        use serde_json::json;
        let long = "x".repeat(64);
        for (key, value) in [("", "a"), ("a*", "b"), ("a", "*"), ("a", &long)] {
            let path = format!("spec.selector.matchLabels[{key}]");
            assert_eq!(errors(json!({"selector": {"matchLabels": {key: value}}})), [path]);
        }
        let many: BTreeMap<String, String> = (0..4097).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(
            errors(json!({"selector": {"matchLabels": many}})),
            ["spec.selector.matchLabels"]
        );
        let mut policy = PeerAuthentication::new("x", PeerAuthenticationSpec::default());
        policy.metadata.annotations = Some([("istio.io/dry-run".to_owned(), "true".to_owned())].into());
        assert_eq!(policy.validate().errors.len(), 1);
    }

    // spec: AUTHN-003
    #[test]
    fn an_empty_selector_is_a_warning() {
        let spec: PeerAuthenticationSpec = serde_json::from_value(serde_json::json!({"selector": {}})).expect("spec");
        let report = PeerAuthentication::new("x", spec).validate();
        assert!(report.errors.is_empty());
        assert!(report.warnings[0].contains("spec.selector"));
    }
}
