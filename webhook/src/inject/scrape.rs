//! Prometheus finds one port, the proxy's, behind which the application's metrics are as well (INJ-092).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Refusal;
use crate::annotations::{Overrides, Violation, scrape_port};
use crate::pod::{annotations, canonical_text, object_mut};

/// The variable that tells the proxy what the application's annotations said.
pub(super) const ENVIRONMENT: &str = "WEFT_PROMETHEUS_SCRAPE";

/// The annotations that move, behind `prometheus.io/`.
const NAMES: [&str; 4] = ["scrape", "path", "port", "scheme"];

/// Moves the annotations to the proxy. Returns the variable's value: the original values by name, and `targets` with
/// the value of `prometheus.istio.io/scrape-targets`; `None` when there is nothing to scrape or merging is off.
pub(super) fn merge(pod: &mut Value, overrides: &Overrides) -> Result<Option<String>, Refusal> {
    let found = originals(&annotations(pod));
    let value_of = |name: &str| found.get(name).map(|(_, value)| value.as_str());
    if !overrides.merge_metrics || value_of("scrape") == Some("false") {
        return Ok(None);
    }
    let status_port = if overrides.status_port == 0 {
        15020
    } else {
        overrides.status_port
    };
    if let Some((key, port)) = found.get("port") {
        if *port == status_port.to_string() {
            return Ok(None);
        }
        scrape_port(port, None).map_err(|problem| {
            Refusal::Annotations(vec![Violation {
                key: key.clone(),
                problem,
            }])
        })?;
    }
    let mut scraped = Map::new();
    for (name, (_, value)) in &found {
        scraped.insert((*name).to_owned(), Value::from(value.as_str()));
    }
    if let Some(targets) = &overrides.scrape_targets {
        scraped.insert("targets".to_owned(), Value::from(targets.as_str()));
    }
    let all = object_mut(pod, "metadata.annotations");
    all.retain(|key, _| variant(key).is_none());
    all.insert("prometheus.io/scrape".to_owned(), json!("true"));
    all.insert("prometheus.io/port".to_owned(), json!(status_port.to_string()));
    all.insert("prometheus.io/path".to_owned(), json!("/stats/prometheus"));
    Ok((!scraped.is_empty()).then(|| canonical_text(&Value::Object(scraped))))
}

/// Gives the pod its own annotations back.
pub(super) fn restore(pod: &mut Value, scraped: &str) {
    let Ok(scraped) = serde_json::from_str::<BTreeMap<String, String>>(scraped) else {
        return;
    };
    let all = object_mut(pod, "metadata.annotations");
    for name in NAMES {
        let key = format!("prometheus.io/{name}");
        match scraped.get(name) {
            Some(value) => {
                all.insert(key, Value::from(value.as_str()));
            }
            None => {
                all.remove(&key);
            }
        }
    }
}

/// The pod's annotations by name, with the key they were found under; the canonical spelling wins.
fn originals(annotations: &BTreeMap<String, String>) -> BTreeMap<&'static str, (String, String)> {
    let mut found = BTreeMap::new();
    for (key, value) in annotations {
        let Some(name) = variant(key) else { continue };
        if key == &format!("prometheus.io/{name}") || !found.contains_key(name) {
            found.insert(name, (key.clone(), value.clone()));
        }
    }
    found
}

/// The name behind `prometheus.io/`, in every spelling that Prometheus maps to the same label (PROM-010).
fn variant(key: &str) -> Option<&'static str> {
    let normal: String = key
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let name = normal.strip_prefix("prometheus_io_")?;
    NAMES.into_iter().find(|known| *known == name)
}
