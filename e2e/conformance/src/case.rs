//! Recorded scenarios, as the files of a folder hold them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The scenarios of one file.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    /// The file's name without its ending.
    pub(crate) name: String,
    pub(crate) scenarios: Vec<Scenario>,
}

/// Manifests, requests and what came of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub(crate) id: String,
    pub(crate) about: String,
    #[serde(default)]
    pub(crate) manifests: Vec<Value>,
    /// `Kind/name` of objects that the API refused.
    #[serde(default)]
    pub(crate) admission: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) requests: Vec<Request>,
    pub(crate) note: Option<String>,
    /// Two runs differed in what matters; `other_run` counts as well.
    #[serde(default)]
    pub(crate) flaky: bool,
    /// Runs differ in the choice of endpoints, counts, or the way of closing.
    #[serde(default)]
    pub(crate) varies: bool,
    #[serde(default)]
    pub(crate) other_run: Vec<Value>,
}

/// One request, or several alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) from: String,
    pub(crate) to: String,
    #[serde(rename = "about")]
    _about: Option<String>,
    pub(crate) method: Option<String>,
    #[serde(default, deserialize_with = "headers")]
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
    pub(crate) body_size: Option<usize>,
    pub(crate) host: Option<String>,
    pub(crate) connect: Option<String>,
    pub(crate) via: Option<String>,
    pub(crate) via_port: Option<u16>,
    pub(crate) sni: Option<String>,
    #[serde(default)]
    pub(crate) alpn: Vec<String>,
    pub(crate) client_cert: Option<String>,
    pub(crate) raw: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) version: Option<String>,
    #[serde(default)]
    pub(crate) chunked: bool,
    pub(crate) after: Option<String>,
    pub(crate) count: Option<u64>,
    pub(crate) parallel: Option<u64>,
    #[serde(default)]
    pub(crate) reuse: bool,
    #[serde(default)]
    pub(crate) gap_ms: u64,
    /// Seconds before the request.
    pub(crate) wait: Option<f64>,
    pub(crate) timeout_ms: Option<u64>,
    #[serde(deserialize_with = "observed")]
    pub(crate) observed: Value,
}

/// Reads all areas of a folder, in the order of their names.
pub(crate) fn read(folder: &Path) -> Result<Vec<Area>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        // Tokens are not scenarios: scenarios refer to them.
        let is_tokens = path.file_stem().is_some_and(|stem| stem == "tokens");
        if path.extension().is_some_and(|e| e == "yaml") && !is_tokens {
            paths.push(path);
        }
    }
    paths.sort();
    let mut areas = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let scenarios: Vec<Scenario> =
            serde_yaml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.without_snippet()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        areas.push(Area { name, scenarios });
    }
    Ok(areas)
}

/// Fields as they are, but texts that look like numbers stay texts where the field is one.
fn observed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Observed::deserialize(deserializer).map(|observed| observed.0)
}

struct Observed(Value);

impl<'de> Deserialize<'de> for Observed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Observed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Observed, A::Error> {
                let mut map = serde_json::Map::new();
                while let Some(field) = access.next_key::<String>()? {
                    let value = match field.as_str() {
                        "body" | "path" | "host" => access.next_value::<String>()?.into(),
                        "headers" | "response_headers" | "trailers" => {
                            let pairs = access.next_value::<Vec<(String, String)>>()?;
                            serde_json::to_value(pairs).map_err(A::Error::custom)?
                        }
                        "backend_saw" => access.next_value::<Observed>()?.0,
                        _ => access.next_value()?,
                    };
                    map.insert(field, value);
                }
                Ok(Observed(Value::Object(map)))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A map, or a list of pairs where order or repetition matters.
fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Pairs(Vec<(String, String)>),
        Map(BTreeMap<String, String>),
    }
    Ok(match Option::<Form>::deserialize(deserializer)? {
        Some(Form::Pairs(pairs)) => pairs,
        Some(Form::Map(map)) => map.into_iter().collect(),
        None => Vec::new(),
    })
}
