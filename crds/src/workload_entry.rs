//! WorkloadEntry, `networking.istio.io` (spec: service-entry.md).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Status;
use crate::validate::{Report, Validate, check, host};

/// An endpoint that is no pod: a machine, or a server outside of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "WorkloadEntry",
    plural = "workloadentries",
    shortname = "we",
    category = "istio-io",
    category = "networking-istio-io",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// IP address, name (with resolution DNS), or `unix://` path.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub address: String,
    /// Ports by the names of the ServiceEntry's ports.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    pub ports: BTreeMap<String, i64>,
    /// Labels for selectors and subsets.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub labels: BTreeMap<String, String>,
    /// Network that the address is in; without effect where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub network: Option<String>,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub locality: Option<String>,
    /// Share of the load; 0 counts as 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4_294_967_295_i64))]
    pub weight: Option<i64>,
    /// Service account whose identity the endpoint has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service_account: Option<String>,
}

impl Validate for WorkloadEntry {
    fn validate(&self) -> Report {
        let mut report = Report::default();
        check::no_dry_run(&mut report, &self.metadata);
        check_endpoint(&mut report, "spec", &self.spec);
        report
    }
}

/// What holds for an endpoint wherever it is written (SE-046 ff.).
pub(crate) fn check_endpoint(report: &mut Report, path: &str, entry: &WorkloadEntrySpec) {
    let WorkloadEntrySpec {
        address,
        ports,
        labels,
        network,
        locality,
        weight,
        service_account: _,
    } = entry;
    let at = |field: &str| format!("{path}.{field}");
    let is_socket = address.starts_with(UNIX);
    if address.is_empty() && network.as_deref().unwrap_or_default().is_empty() {
        report.error(
            &at("address"),
            "",
            "is required: an IP address, a host name, or unix://<path>",
        );
    } else if address.len() > 256 {
        report.error(&at("address"), address, "must have at most 256 characters");
    } else if let Some(socket) = address.strip_prefix(UNIX) {
        let is_path = socket.starts_with('/') && !socket.ends_with('/');
        let is_name = socket.starts_with('@') && socket.len() > 1;
        if !is_path && !is_name {
            let message = "must be unix:///<absolute path of a socket> or unix://@<name>";
            report.error(&at("address"), address, message);
        }
        if !ports.is_empty() {
            report.error(
                &at("ports"),
                "",
                "has no place beside a Unix socket, which has no ports",
            );
        }
    } else if address.contains('*') {
        report.error(&at("address"), address, "must be one address or name, not a wildcard");
    } else if let Some(problem) = host::problem(address).filter(|_| !address.is_empty()) {
        report.error(&at("address"), address, problem);
    }
    if ports.len() > 128 {
        report.error(&at("ports"), &ports.len().to_string(), "must have at most 128 entries");
    }
    for (name, number) in ports.iter().filter(|_| !is_socket) {
        let path = format!("{path}.ports[{name}]");
        let is_name = !name.is_empty()
            && name.len() < 63
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && name.bytes().any(|b| b.is_ascii_alphanumeric());
        if !is_name {
            let message = "must be a name of letters, digits and `-`, at most 62 characters";
            report.error(&path, name, message);
        }
        check::port(report, &path, *number);
    }
    if labels.len() > 256 {
        report.error(
            &at("labels"),
            &labels.len().to_string(),
            "must have at most 256 entries",
        );
    }
    for (name, text) in [("locality", locality), ("network", network)] {
        if let Some(text) = text.as_deref().filter(|text| text.len() > 2048) {
            report.error(&at(name), text, "must have at most 2048 characters");
        }
    }
    check::within(report, &at("weight"), *weight, 0..=i64::from(u32::MAX));
}

/// Scheme of sockets.
pub const UNIX: &str = "unix://";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let spec: WorkloadEntrySpec = serde_json::from_value(spec).expect("spec");
        let report = WorkloadEntry::new("x", spec).validate();
        report.errors.into_iter().map(|e| e.path).collect()
    }

    // spec: SE-045, SE-046, SE-047, SE-049
    #[test]
    fn bad_input_is_named() {
        for good in [
            json!({"address": "10.0.0.1", "ports": {"http": 8080}, "weight": 0}),
            json!({"address": "fd00::1"}),
            json!({"address": "vm.example.com", "labels": {"app": "a"}, "locality": "r/z/s"}),
            json!({"address": "unix:///run/a.sock"}),
            json!({"address": "unix://@name"}),
            json!({"network": "other"}),
        ] {
            assert_eq!(errors(good.clone()), Vec::<String>::new(), "{good}");
        }
        for address in ["", "*.example.com", "a_b", "unix://a.sock", "unix:///run/", "unix://@"] {
            assert_eq!(errors(json!({"address": address})), ["spec.address"], "{address}");
        }
        let long = "a.".repeat(128) + "x";
        assert_eq!(errors(json!({"address": long})), ["spec.address"]);
        assert_eq!(
            errors(json!({"address": "unix:///run/a.sock", "ports": {"http": 1}})),
            ["spec.ports"]
        );
        for (name, port) in [
            ("a_b", 80),
            ("", 80),
            ("http", 0),
            ("http", 65536),
            (&"a".repeat(63), 80),
        ] {
            let ports = json!({"address": "10.0.0.1", "ports": {name: port}});
            assert_eq!(errors(ports), [format!("spec.ports[{name}]")]);
        }
        let locality = "r".repeat(2049);
        assert_eq!(
            errors(json!({"address": "10.0.0.1", "locality": locality})),
            ["spec.locality"]
        );
        assert_eq!(errors(json!({"address": "10.0.0.1", "weight": -1})), ["spec.weight"]);
    }
}
