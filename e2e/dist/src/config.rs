//! `config/base`, `config/crds` and `config/charts`, written from one source.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::template::{Form, render};
use crate::{crds, injector};

/// Writes every generated file, and removes those that nothing generates any more.
///
/// # Errors
/// Names the file that cannot be read, rendered or written.
pub(crate) fn write(root: &Path) -> Result<()> {
    let generated = generate(root)?;
    let config = root.join("config");
    for folder in FOLDERS {
        let folder = config.join(folder);
        for path in files_below(&folder)? {
            let name = path.strip_prefix(&config).context("is below config")?.to_path_buf();
            if !generated.contains_key(&name) {
                std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    for (name, text) in generated {
        let path = config.join(name);
        let folder = path.parent().context("is in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    // The one generated file outside of config: kustomize reads no file above a base, but another base.
    let path = root.join("crds/yaml/kustomization.yaml");
    let names: Vec<String> = crds::read(root)?
        .into_iter()
        .map(|(name, _)| name)
        .filter(|n| n != KUSTOMIZATION)
        .collect();
    std::fs::write(&path, kustomization(&names)).with_context(|| format!("write {}", path.display()))
}

/// Names below `config/` and contents of the generated files.
pub(crate) fn generate(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let source = root.join("config/source");
    let read = |name: &str| -> Result<String> {
        let path = source.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let values_text = read("values.yaml")?;
    let values: Value = serde_yaml::from_str(&values_text).context("config/source/values.yaml")?;
    let mut out = BTreeMap::new();
    let mut base = Vec::new();
    let mut manifests: Vec<String> = files_below(&source)?
        .iter()
        .filter_map(|path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned))
        .filter(|name| name.ends_with(".yaml") && name != "values.yaml")
        .collect();
    manifests.sort();
    ensure!(!manifests.is_empty(), "{} holds no manifests", source.display());
    for name in manifests {
        let text = read(&name)?;
        for form in [Form::Plain, Form::Template] {
            let rendered = render(&text, &values, form).with_context(|| format!("config/source/{name}"))?;
            if let Some(rendered) = rendered {
                out.insert(path_of(form, &name), format!("{GENERATED}{rendered}"));
            }
        }
        base.push(name);
    }
    let name = "injector-webhook.yaml".to_owned();
    for form in [Form::Plain, Form::Template] {
        out.insert(
            path_of(form, &name),
            format!("{GENERATED}{}", injector::render(&values, form)?),
        );
    }
    base.push(name);
    base.sort();
    out.insert(PathBuf::from("base/kustomization.yaml"), kustomization(&base));
    out.insert(
        PathBuf::from("crds/kustomization.yaml"),
        kustomization(&["../../crds/yaml".to_owned()]),
    );
    for (name, text) in crds::read(root)? {
        if name != KUSTOMIZATION {
            let template = crds::template(&text).with_context(|| format!("crds/yaml/{name}"))?;
            out.insert(
                Path::new("charts/weft-crds/templates").join(name),
                format!("{GENERATED}{template}"),
            );
        }
    }
    for (chart, about) in CHARTS {
        let folder = Path::new("charts").join(chart);
        out.insert(folder.join("Chart.yaml"), chart_yaml(chart, about));
    }
    out.insert(PathBuf::from("charts/weft-crds/values.yaml"), CRD_VALUES.to_owned());
    out.insert(
        PathBuf::from("charts/weft-crds/values.schema.json"),
        CRD_SCHEMA.to_owned(),
    );
    out.insert(PathBuf::from("charts/weft/values.yaml"), values_text);
    out.insert(
        PathBuf::from("charts/weft/values.schema.json"),
        read("values.schema.json")?,
    );
    out.insert(PathBuf::from("charts/weft/templates/_names.tpl"), NAMES.to_owned());
    Ok(out)
}

fn path_of(form: Form, name: &str) -> PathBuf {
    match form {
        Form::Plain => Path::new("base").join(name),
        Form::Template => Path::new("charts/weft/templates").join(name),
    }
}

fn kustomization(resources: &[String]) -> String {
    let mut out = format!("{GENERATED}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n");
    for name in resources {
        let _ = writeln!(out, "  - {name}");
    }
    out
}

fn chart_yaml(name: &str, about: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{GENERATED}apiVersion: v2\nname: {name}\ndescription: {about}\ntype: application\nversion: {version}\n\
         appVersion: {version}\nkubeVersion: \">=1.32.0-0\"\n"
    )
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push(path)
            }
        }
    }
    Ok(files)
}

/// Folders below `config/` that hold generated files only.
const FOLDERS: [&str; 3] = ["base", "crds", "charts"];
const KUSTOMIZATION: &str = "kustomization.yaml";
const GENERATED: &str = "# Generated by `make config`; edit config/source instead.\n";
const CHARTS: [(&str, &str); 2] = [
    ("weft", "Weft, a service mesh whose configuration is files"),
    ("weft-crds", "The kinds that Weft implements"),
];
const CRD_VALUES: &str = "crds:\n  # Names of definitions that something else installs.\n  exclude: []\n";
const CRD_SCHEMA: &str = r#"{
  "$schema": "http://json-schema.org/draft-07/schema#",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "global": {"type": "object"},
    "crds": {
      "type": "object",
      "additionalProperties": false,
      "properties": {"exclude": {"type": "array", "items": {"type": "string"}}}
    }
  }
}
"#;
const NAMES: &str = r#"{{/* Generated by `make config`. */}}
{{- define "weft.image" -}}
{{- with .root.Values.global.hub }}{{ . | trimSuffix "/" }}/{{ end }}{{ .name }}:{{ .root.Values.global.tag }}
{{- end }}

{{- define "weft.labels" -}}
app.kubernetes.io/component: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .root.Values.global.tag | quote }}
weft.dev/rev: default
{{- end }}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn what_is_checked_in_is_what_the_source_gives() {
        for (name, expected) in generate(&root()).expect("generates") {
            let path = root().join("config").join(&name);
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == expected,
                "config/{} is not what the source gives; run `make config`",
                name.display()
            );
        }
    }

    // spec: INJ-200, OPS-170
    #[test]
    fn run_time_fields_are_not_in_manifests() {
        let generated = generate(&root()).expect("generates");
        for (name, text) in generated
            .iter()
            .filter(|(name, _)| !name.starts_with("charts/weft-crds"))
        {
            for field in ["caBundle:", "ownerReferences:"] {
                assert!(!text.contains(field), "{} holds {field}", name.display());
            }
        }
        let webhook = &generated[Path::new("base/injector-webhook.yaml")];
        let object: Value = serde_yaml::from_str(webhook).expect("is YAML");
        for entry in object["webhooks"].as_array().expect("list") {
            assert_eq!(entry["failurePolicy"], "Fail");
            assert_eq!(entry["timeoutSeconds"], 5);
            assert_eq!(entry["matchPolicy"], "Equivalent");
            assert_eq!(entry["sideEffects"], "None");
            assert_eq!(entry["admissionReviewVersions"], serde_json::json!(["v1"]));
        }
    }

    #[test]
    fn every_manifest_is_yaml_with_a_kind() {
        let generated = generate(&root()).expect("generates");
        let mut kinds = 0;
        for (name, text) in generated.iter().filter(|(name, _)| name.starts_with("base")) {
            for document in text
                .split("\n---\n")
                .filter(|d| d.lines().any(|l| !l.starts_with('#') && !l.is_empty()))
            {
                let object: Value =
                    serde_yaml::from_str(document).unwrap_or_else(|error| panic!("{}: {error}", name.display()));
                assert!(
                    object["kind"].is_string() && object["apiVersion"].is_string(),
                    "{}",
                    name.display()
                );
                kinds += 1;
            }
        }
        assert!(kinds > 20);
    }
}
