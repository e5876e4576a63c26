//! `config/base`, `config/crds`, `config/overlays/cni` and `config/charts`, written from one source.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::template::{Form, NAMESPACE, default_image, render};
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
    let mut base = manifests(&source, "", &values, &mut out)?;
    let name = "injector-webhook.yaml".to_owned();
    for form in [Form::Plain, Form::Template] {
        out.insert(
            path_of("", form, &name),
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

    let cni_text = read("cni/values.yaml")?;
    let cni: Value = serde_yaml::from_str(&cni_text).context("config/source/cni/values.yaml")?;
    let added = manifests(&source, "cni", &cni, &mut out)?;
    out.insert(
        PathBuf::from("overlays/cni/kustomization.yaml"),
        cni_overlay(&added, &values)?,
    );
    out.insert(PathBuf::from("charts/weft-cni/values.yaml"), cni_text);
    let schema = read("cni/values.schema.json")?;
    out.insert(PathBuf::from("charts/weft-cni/values.schema.json"), schema);
    out.insert(PathBuf::from("charts/weft-cni/templates/_names.tpl"), NAMES.to_owned());
    Ok(out)
}

/// Renders the manifests of a part of the source in both forms; their names.
fn manifests(source: &Path, part: &str, values: &Value, out: &mut BTreeMap<PathBuf, String>) -> Result<Vec<String>> {
    let folder = source.join(part);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry.with_context(|| format!("read {}", folder.display()))?.file_name();
        let name = name.to_str().unwrap_or_default();
        names.extend((name.ends_with(".yaml") && name != "values.yaml").then(|| name.to_owned()));
    }
    names.sort();
    ensure!(!names.is_empty(), "{} holds no manifests", folder.display());
    for name in &names {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for form in [Form::Plain, Form::Template] {
            if let Some(rendered) = render(&text, values, form).with_context(|| path.display().to_string())? {
                out.insert(path_of(part, form, name), format!("{GENERATED}{rendered}"));
            }
        }
    }
    Ok(names)
}

fn path_of(part: &str, form: Form, name: &str) -> PathBuf {
    let folder = match (part, form) {
        ("", Form::Plain) => PathBuf::from("base"),
        ("", Form::Template) => PathBuf::from("charts/weft/templates"),
        (part, Form::Plain) => Path::new("overlays").join(part),
        (part, Form::Template) => PathBuf::from(format!("charts/weft-{part}/templates")),
    };
    folder.join(name)
}

/// The base with the plugin: the injector is told of it, and its namespace lets it in (OPS-005).
fn cni_overlay(manifests: &[String], values: &Value) -> Result<String> {
    let image = default_image("weft-proxy", values)?;
    let resources = std::iter::once("../../base".to_owned()).chain(manifests.iter().cloned());
    let resources: Vec<String> = resources.collect();
    Ok(format!(
        "{}patches:\n  \
         # The plugin enters the network namespaces of pods: {NAMESPACE} cannot be restricted to less.\n  \
         - patch: |\n      \
         apiVersion: v1\n      kind: Namespace\n      metadata:\n        name: {NAMESPACE}\n        labels:\n          \
         pod-security.kubernetes.io/enforce: privileged\n  \
         - patch: |\n      \
         apiVersion: v1\n      kind: ConfigMap\n      metadata:\n        name: weft-injector\n        \
         namespace: {NAMESPACE}\n      data:\n        config: |\n          proxy:\n            image: {image}\n          \
         cni:\n            enabled: true\n",
        kustomization(&resources)
    ))
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
const FOLDERS: [&str; 4] = ["base", "crds", "overlays/cni", "charts"];
const KUSTOMIZATION: &str = "kustomization.yaml";
const GENERATED: &str = "# Generated by `make config`; edit config/source instead.\n";
const CHARTS: [(&str, &str); 3] = [
    ("weft", "Weft, a service mesh whose configuration is files"),
    (
        "weft-cni",
        "The plugin that sets the redirect of Weft's pods from their nodes",
    ),
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

    // spec: DLV-145
    #[test]
    fn the_plugin_reads_pods_and_writes_what_its_repair_mode_needs() {
        let read = |name: &str| std::fs::read_to_string(root().join("config/source/cni").join(name)).expect("reads");
        let values: Value = serde_yaml::from_str(&read("values.yaml")).expect("is YAML");
        for (mode, expected) in [
            ("repair", None),
            ("off", None),
            ("label", Some(("pods/status", "patch"))),
            ("delete", Some(("pods", "delete"))),
        ] {
            let mut values = values.clone();
            values["cni"]["repair"]["mode"] = Value::from(mode);
            let source = read("weft-cni.yaml").replace("value: repair #=", &format!("value: \"{mode}\" #="));
            let text = render(&source, &values, Form::Plain)
                .expect("renders")
                .expect("is for it");
            let mut rights = Vec::new();
            for document in text.split("\n---\n") {
                let object: Value = serde_yaml::from_str(document).expect("is YAML");
                for rule in object["rules"].as_array().into_iter().flatten() {
                    let list = |field: &str| rule[field].as_array().cloned().unwrap_or_default();
                    for (resource, verb) in list("resources")
                        .iter()
                        .flat_map(|r| list("verbs").into_iter().map(move |v| (r.clone(), v)))
                    {
                        let of = |value: &Value| value.as_str().expect("text").to_owned();
                        rights.push((of(&object["kind"]), of(&resource), of(&verb)));
                    }
                }
            }
            let right =
                |kind: &str, resource: &str, verb: &str| (kind.to_owned(), resource.to_owned(), verb.to_owned());
            let mut all = ["get", "list", "watch"]
                .map(|verb| right("ClusterRole", "pods", verb))
                .to_vec();
            all.extend(["create", "patch"].map(|verb| right("ClusterRole", "events", verb)));
            all.extend(expected.map(|(resource, verb)| right("ClusterRole", resource, verb)));
            all.push(right("Role", "daemonsets", "get"));
            assert_eq!(rights, all, "{mode}");
        }
    }

    // spec: OPS-005, OPS-008, NET-131
    #[test]
    fn the_overlay_tells_the_injector_and_lets_the_plugin_in() {
        let generated = generate(&root()).expect("generates");
        let overlay = &generated[Path::new("overlays/cni/kustomization.yaml")];
        let overlay: Value = serde_yaml::from_str(overlay).expect("is YAML");
        assert_eq!(overlay["resources"], serde_json::json!(["../../base", "weft-cni.yaml"]));
        let patches = overlay["patches"].as_array().expect("a list");
        let patches: Vec<Value> = patches
            .iter()
            .map(|patch| serde_yaml::from_str(patch["patch"].as_str().expect("text")).expect("is YAML"))
            .collect();
        let level = "pod-security.kubernetes.io/enforce";
        assert_eq!(patches[0]["metadata"]["labels"][level], "privileged");
        let config = patches[1]["data"]["config"].as_str().expect("text");
        let values = &generated[Path::new("charts/weft/values.yaml")];
        let with = injected_settings(config, values);
        assert!(with.cni && with.image == "weft-proxy:dev");
        assert!(!injected_settings("proxy: {image: weft-proxy:dev}", values).cni);
        let chart = &generated[Path::new("charts/weft-cni/templates/weft-cni.yaml")];
        assert!(!chart.contains(NAMESPACE) && chart.contains("namespace: {{ .Release.Namespace }}"));
    }

    fn injected_settings(config: &str, values: &str) -> weft_webhook::InjectConfig {
        weft_webhook::InjectConfig::parse(config, values, "").expect("valid settings")
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
