//! Annotation `proxy.istio.io/config` (INJ-164).

use serde_json::Value;
use weft_bundle::key::{InterceptionMode, pod};

use super::reader::Reader;
use crate::config::{ProxyMetadata, first_line};
use crate::pod::strings_at;

/// The fields of a ProxyConfig that injection itself acts on; the operator reads the rest from the same annotation,
/// which is among the inputs of the key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProxyConfig {
    pub(crate) hold_application: Option<bool>,
    pub(crate) interception: Option<InterceptionMode>,
    pub(crate) status_port: Option<u16>,
    pub(crate) admin_port: Option<u16>,
    pub(crate) concurrency: Option<u16>,
    pub(crate) proxy_metadata: ProxyMetadata,
}

const KEY: &str = "proxy.istio.io/config";

impl ProxyConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let parsed = reader.text("", &[KEY], |text| {
            if text.trim().is_empty() {
                return Ok(Value::Null);
            }
            match serde_yaml::from_str::<Value>(text) {
                Ok(value @ (Value::Object(_) | Value::Null)) => Ok(value),
                Ok(_) => Err("must be a YAML mapping of ProxyConfig fields".to_owned()),
                Err(error) => Err(format!("not YAML: {}", first_line(&error.to_string()))),
            }
        });
        let Some(Value::Object(fields)) = parsed else {
            return Self::default();
        };
        let mut config = Self::default();
        for (field, value) in &fields {
            if let Err(accepted) = config.take(field, value) {
                reader.violation(KEY, &format!("{field}: {value}; must be {accepted}"));
            } else if UNSUPPORTED.contains(&field.as_str()) {
                reader
                    .warnings
                    .push(format!("annotation {KEY}: field {field} has no effect in Weft"));
            } else if !HONOURED.contains(&field.as_str()) {
                reader
                    .warnings
                    .push(format!("annotation {KEY}: unknown field {field:?} ignored"));
            }
        }
        config
    }

    /// Checks one field, and keeps what injection uses. The error says what would be accepted.
    fn take(&mut self, field: &str, value: &Value) -> Result<(), &'static str> {
        match field {
            "concurrency" => {
                let threads = value.as_u64().and_then(|threads| u16::try_from(threads).ok());
                let threads = threads.filter(|threads| *threads <= 1024);
                self.concurrency = Some(threads.ok_or("a whole number from 0 to 1024")?);
                Ok(())
            }
            "holdApplicationUntilProxyStarts" => {
                self.hold_application = Some(value.as_bool().ok_or("true or false")?);
                Ok(())
            }
            "interceptionMode" => {
                let mode = value.as_str().and_then(pod::mode);
                self.interception = Some(mode.ok_or("REDIRECT, TPROXY or NONE")?);
                Ok(())
            }
            "statusPort" | "proxyAdminPort" => {
                let port = value
                    .as_u64()
                    .and_then(|port| u16::try_from(port).ok())
                    .filter(|port| *port > 0);
                let port = port.ok_or("a port from 1 to 65535")?;
                if field == "statusPort" {
                    self.status_port = Some(port);
                } else {
                    self.admin_port = Some(port);
                }
                Ok(())
            }
            "drainDuration" => {
                let whole = value
                    .as_str()
                    .and_then(seconds)
                    .filter(|s| *s >= 1.0 && s.fract() == 0.0);
                whole.map(|_| ()).ok_or("whole seconds of at least 1s")
            }
            "terminationDrainDuration" => value
                .as_str()
                .and_then(seconds)
                .map(|_| ())
                .ok_or("a duration such as 5s"),
            "proxyMetadata" => {
                let strings = value.as_object().is_some_and(|map| map.values().all(Value::is_string));
                if !strings {
                    return Err("a map of strings");
                }
                self.proxy_metadata = strings_at(&serde_json::json!({"m": value}), "m");
                Ok(())
            }
            "tracing" | "proxyStatsMatcher" | "proxyHeaders" | "gatewayTopology" | "connectionSettings" => {
                value.is_object().then_some(()).ok_or("a mapping")
            }
            "tracingServiceName" => value.is_string().then_some(()).ok_or("a string"),
            _ => Ok(()),
        }
    }
}

const HONOURED: &[&str] = &[
    "concurrency",
    "connectionSettings",
    "drainDuration",
    "gatewayTopology",
    "holdApplicationUntilProxyStarts",
    "interceptionMode",
    "proxyAdminPort",
    "proxyHeaders",
    "proxyMetadata",
    "proxyStatsMatcher",
    "statusPort",
    "terminationDrainDuration",
    "tracing",
    "tracingServiceName",
];

/// Fields of the upstream API that name parts of another proxy.
const UNSUPPORTED: &[&str] = &[
    "availabilityZone",
    "binaryPath",
    "caCertificatesPem",
    "configPath",
    "controlPlaneAuthPolicy",
    "customConfigFile",
    "discoveryAddress",
    "discoveryRefreshDelay",
    "envoyAccessLogService",
    "envoyMetricsService",
    "envoyMetricsServiceAddress",
    "extraStatTags",
    "fileFlushInterval",
    "fileFlushMinSizeKb",
    "image",
    "meshId",
    "parentShutdownDuration",
    "privateKeyProvider",
    "proxyBootstrapTemplatePath",
    "readinessProbe",
    "runtimeValues",
    "sds",
    "serviceCluster",
    "statNameLength",
    "statsdUdpAddress",
    "zipkinAddress",
];

/// Seconds of a duration in Go's notation (`1m30s`, `500ms`), as the mesh config has them.
fn seconds(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = tail;
    }
    Some(total)
}
