//! What a process takes from the mesh config at its start alone (LIFE-050): a configuration that says something else is
//! in force without that, and the status tells.

use std::path::Path;

use weft_bundle::wire::{Mesh, Process};

use crate::arguments::{Interception, Run};

/// What the process was started with, as far as the mesh config decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    process: Process,
    /// Settings of [`NAMES`] that the pod's own annotations decided.
    own: Vec<&'static str>,
}

impl Started {
    /// `None` where a runner, not the injector, chose ports and modes.
    #[must_use]
    pub fn of(arguments: &Run) -> Option<Self> {
        if !arguments.is_redirected() {
            return None;
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let annotations = read(&arguments.podinfo_dir.join("annotations"));
        Some(Self {
            process: Process {
                outbound_port: Some(arguments.outbound_port),
                inbound_port: Some(arguments.inbound_port),
                admin_port: Some(arguments.admin_port),
                status_port: Some(arguments.status_port),
                // Flags are the runner's; the injector writes variables.
                concurrency: variable("WEFT_CONCURRENCY").and_then(|text| text.parse().ok()),
                interception_mode: Some(
                    match arguments.interception_mode {
                        Interception::Redirect => "REDIRECT",
                        Interception::Tproxy => "TPROXY",
                        Interception::None => "NONE",
                    }
                    .to_owned(),
                ),
                dns_capture: Some(arguments.dns_capture),
            },
            own: NAMES.into_iter().filter(|name| is_own(name, &annotations)).collect(),
        })
    }

    /// Names of the settings that hold only after a restart of the pod, as the mesh config has them.
    #[must_use]
    pub fn outdated(&self, mesh: &Mesh, http_proxy: Option<u16>) -> Vec<&'static str> {
        let (is, wanted) = (&self.process, &mesh.process);
        let port = |is: Option<u16>, wanted: Option<u16>, default| is != Some(wanted.unwrap_or(default));
        let mode = wanted.interception_mode.as_deref().unwrap_or("REDIRECT");
        let differs = [
            port(is.outbound_port, wanted.outbound_port, 15001),
            port(is.inbound_port, wanted.inbound_port, 15006),
            port(is.admin_port, wanted.admin_port, 15000),
            port(is.status_port, wanted.status_port, 15020),
            is.concurrency != wanted.concurrency,
            is.interception_mode.as_deref() != Some(mode),
            wanted.dns_capture.is_some() && is.dns_capture != wanted.dns_capture,
            http_proxy != mesh.http_proxy_port,
        ];
        let named = NAMES.into_iter().zip(differs);
        let outdated = named.filter(|(name, differs)| *differs && !self.own.contains(name));
        outdated.map(|(name, _)| name).collect()
    }
}

/// Names of the mesh config, in the order of [`Started::outdated`].
const NAMES: [&str; 8] = [
    "proxyListenPort",
    "proxyInboundListenPort",
    "proxyAdminPort",
    "statusPort",
    "concurrency",
    "interceptionMode",
    "ISTIO_META_DNS_CAPTURE",
    "proxyHttpPort",
];

/// Whether the pod's annotations speak about a setting; what they say was in force at injection.
fn is_own(name: &str, annotations: &[(String, String)]) -> bool {
    let keys: &[&str] = match name {
        "statusPort" => &["weft.dev/status-port", "status.sidecar.istio.io/port"],
        "interceptionMode" => &["weft.dev/interception-mode", "sidecar.istio.io/interceptionMode"],
        _ => &[],
    };
    annotations
        .iter()
        .any(|(key, value)| keys.contains(&key.as_str()) || (key == "proxy.istio.io/config" && value.contains(name)))
}

/// Lines `key="value"`, as the kubelet writes them; values stay quoted.
fn read(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(annotations: &[(&str, &str)]) -> Started {
        let annotations: Vec<(String, String)> = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Started {
            process: Process {
                outbound_port: Some(15001),
                inbound_port: Some(15006),
                admin_port: Some(15000),
                status_port: Some(15020),
                concurrency: Some(2),
                interception_mode: Some("REDIRECT".into()),
                dns_capture: Some(false),
            },
            own: NAMES.into_iter().filter(|name| is_own(name, &annotations)).collect(),
        }
    }

    // spec: LIFE-050
    #[test]
    fn what_the_mesh_config_changed_is_named_and_what_the_pod_decided_is_not() {
        let with = |process| Mesh {
            process,
            ..Mesh::default()
        };
        let same = Process {
            concurrency: Some(2),
            ..Process::default()
        };
        assert!(
            started(&[]).outdated(&with(same.clone()), None).is_empty(),
            "defaults need not be written"
        );
        assert_eq!(started(&[]).outdated(&with(Process::default()), None), ["concurrency"]);
        let mut by_chart = started(&[]);
        by_chart.process.dns_capture = Some(true);
        assert!(
            by_chart.outdated(&with(same.clone()), None).is_empty(),
            "what the chart's values turned on"
        );
        assert_eq!(
            started(&[]).outdated(&with(same.clone()), Some(15080)),
            ["proxyHttpPort"]
        );
        let all = Process {
            outbound_port: Some(16001),
            inbound_port: Some(16006),
            admin_port: Some(16000),
            status_port: Some(16020),
            concurrency: Some(4),
            interception_mode: Some("TPROXY".into()),
            dns_capture: Some(true),
        };
        assert_eq!(started(&[]).outdated(&with(all.clone()), None), NAMES[..7]);
        let own = [
            (
                "proxy.istio.io/config",
                "\"concurrency: 2\\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false'}\"",
            ),
            ("weft.dev/status-port", "\"15020\""),
            ("sidecar.istio.io/interceptionMode", "\"REDIRECT\""),
        ];
        assert_eq!(
            started(&own).outdated(&with(all), None),
            ["proxyListenPort", "proxyInboundListenPort", "proxyAdminPort"]
        );
    }
}
