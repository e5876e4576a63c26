//! What a pod says about its own sidecar (section J): annotations, parsed and checked.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use weft_bundle::key::{InterceptionMode, Template, pod};

use crate::config::InjectConfig;
use crate::quantity::Quantity;

pub(crate) use self::proxy_config::ProxyConfig;
use self::reader::Reader;
pub use self::reader::Violation;

pub(crate) mod cidrs;
pub(crate) mod known;
pub(crate) mod ports;
mod proxy_config;
mod reader;

/// Ports that the data plane binds, whatever the pod says; an application target or a status port may not be one.
pub(crate) const RESERVED_PORTS: &[u16] = &[15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090];

/// The settings of one pod: its annotations over the mesh-wide defaults.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Overrides {
    pub(crate) image: Option<String>,
    /// `None` when no resource annotation is there; then the defaults hold (INJ-170).
    pub(crate) resources: Option<Value>,
    pub(crate) capture: Capture,
    pub(crate) interception: InterceptionMode,
    pub(crate) log_level: Option<String>,
    pub(crate) readiness: Readiness,
    /// 0 switches rewriting and the sidecar's own probes off (INJ-140).
    pub(crate) status_port: u16,
    pub(crate) proxy_config: ProxyConfig,
    pub(crate) user_volumes: Map<String, Value>,
    pub(crate) user_volume_mounts: Map<String, Value>,
    pub(crate) rewrite_probes: bool,
    /// Container names of `weft.dev/skip-probe-rewrite` (INJ-139).
    pub(crate) skip_probe_rewrite: Vec<String>,
    pub(crate) native: Option<bool>,
    pub(crate) template: Template,
    pub(crate) preserve_qos: bool,
    pub(crate) bind_low_ports: bool,
    pub(crate) start_without_config: bool,
    /// `prometheus.istio.io/merge-metrics`, else the mesh's word.
    pub(crate) merge_metrics: bool,
    pub(crate) scrape_targets: Option<String>,
}

/// What is redirected (INJ-153 to INJ-158), in normalised annotation syntax where it is passed on as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capture {
    pub(crate) include_inbound: ports::Selected,
    pub(crate) exclude_inbound: Vec<u16>,
    pub(crate) include_outbound: Vec<u16>,
    pub(crate) exclude_outbound: Vec<u16>,
    pub(crate) include_cidrs: cidrs::Selected,
    pub(crate) exclude_cidrs: Vec<String>,
    pub(crate) exclude_interfaces: Vec<String>,
}

/// Timing of the sidecar's readiness probe (INJ-067, INJ-161).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) initial_delay_seconds: u32,
    pub(crate) period_seconds: u32,
    pub(crate) failure_threshold: u32,
}

impl Overrides {
    /// Reads every annotation that injection knows. Warnings are for the user, violations refuse the pod: all of them
    /// at once (INJ-172).
    pub(crate) fn parse(
        annotations: &BTreeMap<String, String>,
        config: &InjectConfig,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Vec<Violation>> {
        let mut reader = Reader::new(annotations);
        let parsed = Self::read(&mut reader, config);
        known::report(annotations, config.istio_labels, &mut reader.warnings);
        warnings.append(&mut reader.warnings);
        reader.finish().map(|()| parsed)
    }

    fn read(reader: &mut Reader<'_>, config: &InjectConfig) -> Self {
        let proxy_config = ProxyConfig::read(reader);
        let status_port = status_port(reader, proxy_config.status_port.unwrap_or(config.mesh.status_port));
        let merge_metrics = reader.flag("", &["prometheus.istio.io/merge-metrics"]);
        Self {
            image: reader.parsed("weft.dev/proxy-image", &[], |text| {
                let usable = !text.is_empty() && !text.contains(char::is_whitespace);
                usable
                    .then(|| text.to_owned())
                    .ok_or_else(|| format!("{text:?}; must be an image reference without spaces"))
            }),
            resources: resources(reader),
            capture: capture(reader, config),
            interception: reader
                .parsed(
                    "weft.dev/interception-mode",
                    &["sidecar.istio.io/interceptionMode"],
                    |text| pod::mode(text).ok_or_else(|| format!("{text:?}; must be REDIRECT, TPROXY or NONE")),
                )
                .or(proxy_config.interception)
                .unwrap_or(config.interception()),
            log_level: reader
                .parsed("weft.dev/log-level", &["sidecar.istio.io/logLevel"], log_level)
                .or_else(|| config.log_level.clone()),
            readiness: readiness(reader),
            status_port,
            user_volumes: json_object(reader, "weft.dev/user-volume", "sidecar.istio.io/userVolume"),
            user_volume_mounts: json_object(reader, "weft.dev/user-volume-mount", "sidecar.istio.io/userVolumeMount"),
            rewrite_probes: reader
                .flag("weft.dev/rewrite-probes", &["sidecar.istio.io/rewriteAppHTTPProbers"])
                .unwrap_or(config.rewrite_probes)
                && status_port != 0,
            skip_probe_rewrite: reader
                .parsed("weft.dev/skip-probe-rewrite", &[], |text| {
                    Ok(elements(text).map(str::to_owned).collect())
                })
                .unwrap_or_default(),
            native: reader.flag("weft.dev/native-sidecar", &["sidecar.istio.io/nativeSidecar"]),
            template: reader
                .parsed(
                    "weft.dev/templates",
                    &["inject.istio.io/templates"],
                    |text| match text.trim() {
                        "sidecar" | "" => Ok(Template::Sidecar),
                        "gateway" => Ok(Template::Gateway),
                        other => Err(format!("{other:?} is not a template; must be sidecar or gateway")),
                    },
                )
                .unwrap_or_default(),
            preserve_qos: reader.flag("weft.dev/preserve-qos", &[]).unwrap_or(false),
            bind_low_ports: reader
                .flag("", &["sidecar.istio.io/capNetBindService"])
                .unwrap_or(false),
            start_without_config: reader.flag("weft.dev/start-without-config", &[]).unwrap_or(false),
            merge_metrics: merge_metrics.unwrap_or(config.mesh.prometheus_merge),
            scrape_targets: scrape_targets(reader, status_port),
            proxy_config,
        }
    }
}

impl Capture {
    /// The status port and the proxy's own are never captured (INJ-171).
    pub(crate) fn exclude_inbound_with(&self, status_port: u16) -> Vec<u16> {
        let status_port = if status_port == 0 { 15020 } else { status_port };
        let mut ports = self.exclude_inbound.clone();
        for port in [status_port, 15021, 15090] {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        ports
    }
}

fn capture(reader: &mut Reader<'_>, config: &InjectConfig) -> Capture {
    let defaults = &config.capture;
    // The defaults were checked with the same functions when the settings were loaded.
    let mut selected = |name: &str, istio: &str, default: &str| {
        let key = format!("weft.dev/{name}");
        let istio = format!("traffic.sidecar.istio.io/{istio}");
        reader
            .parsed(&key, &[&istio], ports::Selected::parse)
            .or_else(|| ports::Selected::parse(default).ok())
            .unwrap_or(ports::Selected::All)
    };
    let include_inbound = selected(
        "include-inbound-ports",
        "includeInboundPorts",
        &defaults.include_inbound_ports,
    );
    let mut list = |name: &str, istio: &str, default: &str| {
        let key = format!("weft.dev/{name}");
        let istio = format!("traffic.sidecar.istio.io/{istio}");
        reader
            .parsed(&key, &[&istio], ports::list)
            .unwrap_or_else(|| ports::list(default).unwrap_or_default())
    };
    let exclude_inbound = list(
        "exclude-inbound-ports",
        "excludeInboundPorts",
        &defaults.exclude_inbound_ports,
    );
    let include_outbound = list(
        "include-outbound-ports",
        "includeOutboundPorts",
        &defaults.include_outbound_ports,
    );
    let exclude_outbound = list(
        "exclude-outbound-ports",
        "excludeOutboundPorts",
        &defaults.exclude_outbound_ports,
    );
    Capture {
        include_inbound,
        exclude_inbound,
        include_outbound,
        exclude_outbound,
        include_cidrs: reader
            .parsed(
                "weft.dev/include-outbound-cidrs",
                &["traffic.sidecar.istio.io/includeOutboundIPRanges"],
                cidrs::Selected::parse,
            )
            .or_else(|| cidrs::Selected::parse(&defaults.include_cidrs).ok())
            .unwrap_or(cidrs::Selected::All),
        exclude_cidrs: reader
            .parsed(
                "weft.dev/exclude-outbound-cidrs",
                &["traffic.sidecar.istio.io/excludeOutboundIPRanges"],
                cidrs::list,
            )
            .unwrap_or_else(|| cidrs::list(&defaults.exclude_cidrs).unwrap_or_default()),
        exclude_interfaces: reader
            .parsed(
                "weft.dev/exclude-interfaces",
                &["traffic.sidecar.istio.io/excludeInterfaces"],
                interfaces,
            )
            .unwrap_or_default(),
    }
}

fn interfaces(text: &str) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for element in elements(text) {
        let fits = element.len() <= 15 && !element.contains(['/', ' ']);
        if !fits {
            return Err(format!(
                "{element:?} is not an interface name; must be 1 to 15 characters without / and spaces"
            ));
        }
        if !names.iter().any(|name| name == element) {
            names.push(element.to_owned());
        }
    }
    Ok(names)
}

fn status_port(reader: &mut Reader<'_>, default: u16) -> u16 {
    reader
        .parsed("weft.dev/status-port", &["status.sidecar.istio.io/port"], |text| {
            if text == "0" {
                return Ok(0);
            }
            let port = ports::parse(text).ok_or_else(|| format!("{text:?}; must be a number from 0 to 65535"))?;
            if port != 15020 && RESERVED_PORTS.contains(&port) {
                return Err(format!("{port} is a port of the data plane; must be another"));
            }
            Ok(port)
        })
        .unwrap_or(default)
}

fn readiness(reader: &mut Reader<'_>) -> Readiness {
    let mut seconds = |name: &str, istio: &str, least: u32, default: u32| {
        let key = format!("weft.dev/readiness-{name}");
        let istio = format!("readiness.status.sidecar.istio.io/{istio}");
        reader
            .parsed(&key, &[&istio], |text| {
                let number = text.parse::<u32>().ok().filter(|number| *number >= least);
                number.ok_or_else(|| format!("{text:?}; must be a whole number of at least {least}"))
            })
            .unwrap_or(default)
    };
    Readiness {
        initial_delay_seconds: seconds("initial-delay-seconds", "initialDelaySeconds", 0, 0),
        period_seconds: seconds("period-seconds", "periodSeconds", 1, 15),
        failure_threshold: seconds("failure-threshold", "failureThreshold", 1, 4),
    }
}

fn resources(reader: &mut Reader<'_>) -> Option<Value> {
    const ROWS: [(&str, &str, &str, &str); 4] = [
        ("weft.dev/proxy-cpu", "sidecar.istio.io/proxyCPU", "requests", "cpu"),
        (
            "weft.dev/proxy-memory",
            "sidecar.istio.io/proxyMemory",
            "requests",
            "memory",
        ),
        (
            "weft.dev/proxy-cpu-limit",
            "sidecar.istio.io/proxyCPULimit",
            "limits",
            "cpu",
        ),
        (
            "weft.dev/proxy-memory-limit",
            "sidecar.istio.io/proxyMemoryLimit",
            "limits",
            "memory",
        ),
    ];
    let mut resources = Map::new();
    let mut sizes = BTreeMap::new();
    for (key, istio, kind, resource) in ROWS {
        let Some(present) = reader.key(key, &[istio]) else {
            continue;
        };
        let parsed = reader.parsed(key, &[istio], |text| match Quantity::parse(text) {
            Some(quantity) if !quantity.is_negative() => Ok((text.to_owned(), quantity)),
            _ => Err(format!("{text:?} is not a quantity; must be for example 100m or 128Mi")),
        });
        let Some((text, quantity)) = parsed else { continue };
        sizes.insert((kind, resource), (present, quantity, text.clone()));
        let of_kind = resources.entry(kind).or_insert_with(|| Value::Object(Map::new()));
        of_kind[resource] = Value::String(text);
    }
    for resource in ["cpu", "memory"] {
        let (Some((key, request, text)), Some((_, limit, most))) =
            (sizes.get(&("requests", resource)), sizes.get(&("limits", resource)))
        else {
            continue;
        };
        if request > limit {
            reader.violation(key, &format!("{text} is above the limit; must be at most {most}"));
        }
    }
    (!resources.is_empty()).then_some(Value::Object(resources))
}

/// Levels of LIFE-090, alone or as `level,scope:level`.
fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: &[&str] = &["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];
    for element in elements(text) {
        let level = element.rsplit_once(':').map_or(element, |(_, level)| level);
        if !LEVELS.contains(&level) {
            return Err(format!(
                "{level:?} is not a level; must be one of {}",
                LEVELS.join(", ")
            ));
        }
    }
    Ok(elements(text).collect::<Vec<_>>().join(","))
}

fn json_object(reader: &mut Reader<'_>, key: &str, istio: &str) -> Map<String, Value> {
    let object = reader.text(key, &[istio], |text| match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(map)) if map.values().all(Value::is_object) => Ok(map),
        _ => Err("must be a JSON object of name to object".to_owned()),
    });
    object.unwrap_or_default()
}

/// `port:path` pairs (PROM-006); a path is optional.
fn scrape_targets(reader: &mut Reader<'_>, status_port: u16) -> Option<String> {
    reader.parsed("", &["prometheus.istio.io/scrape-targets"], |text| {
        for element in elements(text) {
            let port = element.split_once(':').map_or(element, |(port, _)| port);
            scrape_port(port, Some(status_port))?;
        }
        Ok(elements(text).collect::<Vec<_>>().join(","))
    })
}

/// A port that the proxy may scrape in the application: none of the data plane's (INJ-092).
pub(crate) fn scrape_port(text: &str, status_port: Option<u16>) -> Result<u16, String> {
    let port = ports::parse(text).ok_or_else(|| format!("{text:?} is not a port; must be a number from 1 to 65535"))?;
    if RESERVED_PORTS.contains(&port) || Some(port) == status_port {
        return Err(format!(
            "{port} is a port of the data plane; must be a port of the application"
        ));
    }
    Ok(port)
}

/// The elements of a comma list: trimmed, without empty ones (INJ-169).
pub(crate) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests;
