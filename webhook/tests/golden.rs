//! Pods in, pods out: `tests/golden/<case>/in.yaml` gives `out.yaml`. `values.yaml` and `mesh.yaml` beside it change
//! the settings. `UPDATE_GOLDEN=1` rewrites the results; the diff is what is reviewed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft_webhook::{Context, InjectConfig, inject};

const VALUES: &str = "global: {hub: registry.example, tag: 1.2.3}";

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(root)
        .expect("the folder of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(cases.len() >= 15, "only {} cases found", cases.len());
    cases
}

fn settings(case: &Path) -> InjectConfig {
    let text = |name: &str| fs::read_to_string(case.join(name)).unwrap_or_default();
    InjectConfig::parse(&text("values.yaml"), VALUES, &text("mesh.yaml")).expect("settings of the case")
}

fn pod(case: &Path) -> Value {
    let text = fs::read_to_string(case.join("in.yaml")).expect("in.yaml");
    serde_yaml::from_str(&text).expect("YAML of a pod")
}

fn context() -> Context<'static> {
    Context {
        namespace: "shop",
        native_supported: true,
        ..Context::default()
    }
}

fn render(case: &Path) -> String {
    let value = match inject(&pod(case), &context(), &settings(case)) {
        Ok(injected) => injected.pod,
        Err(refusal) => json!({ "refused": refusal.to_string() }),
    };
    serde_yaml::to_string(&sorted(&value)).expect("JSON is YAML")
}

/// With sorted fields: whether maps keep their order depends on which crates are built together.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: std::collections::BTreeMap<_, _> = fields.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

// spec: INJ-050, INJ-051, INJ-054, INJ-055, INJ-058, INJ-060, INJ-061, INJ-062, INJ-063, INJ-066, INJ-067, INJ-068
// spec: INJ-069, INJ-070, INJ-071, INJ-080, INJ-081, INJ-082, INJ-083, INJ-084, INJ-095, INJ-090, INJ-091, INJ-092
// spec: INJ-004, INJ-008, INJ-009, INJ-056, INJ-057, INJ-087, INJ-094, INJ-139
// spec: NET-090, NET-091
// spec: INJ-110, INJ-130, INJ-131, INJ-132, INJ-180, INJ-181, INJ-187, INJ-189, LIFE-020, LIFE-096
#[test]
fn pods_come_out_as_reviewed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differing = Vec::new();
    for case in cases() {
        let rendered = render(&case);
        let path = case.join("out.yaml");
        if update {
            fs::write(&path, &rendered).expect("out.yaml is writable");
        } else if fs::read_to_string(&path).ok().as_deref() != Some(rendered.as_str()) {
            differing.push(format!("{}:\n{rendered}", path.display()));
        }
    }
    assert!(
        differing.is_empty(),
        "UPDATE_GOLDEN=1 rewrites these:\n{}",
        differing.join("\n")
    );
}

// spec: INJ-120, INJ-122, INJ-124, INJ-182, INJ-100
#[test]
fn every_case_is_injected_once_however_often_it_is_asked() {
    for case in cases() {
        let (raw, config) = (pod(&case), settings(&case));
        let Ok(once) = inject(&raw, &context(), &config) else {
            continue;
        };
        let mut patched = raw;
        json_patch::patch(&mut patched, &once.patch).expect("the patch fits");
        assert_eq!(patched, once.pod, "{}", case.display());
        let twice = inject(&once.pod, &context(), &config).expect("injects again");
        let text = |pod: &Value| serde_json::to_string(pod).expect("serializes");
        assert_eq!(text(&once.pod), text(&twice.pod), "{}", case.display());
        assert_eq!((once.key, once.inputs), (twice.key, twice.inputs), "{}", case.display());
    }
}
