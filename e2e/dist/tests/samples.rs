//! The samples are what they say: accepted, but for the one that shows a refusal.

use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_webhook::validate::{Verdict, validate};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples")
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("reads");
    let documents = text
        .split("\n---\n")
        .map(|document| serde_yaml::from_str(document).expect("is YAML"));
    documents.collect()
}

fn manifests(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(samples().join(folder))
        .expect("reads")
        .map(|entry| entry.expect("reads").path());
    let paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    assert!(!paths.is_empty());
    paths
}

#[test]
fn routes_are_accepted_without_warnings_but_for_the_invalid_one() {
    for path in manifests("routes") {
        for object in documents(&path) {
            let verdict = validate(&object);
            if path.ends_with("invalid.yaml") {
                let Verdict::Invalid { errors, .. } = verdict else {
                    panic!("{}: {verdict:?}", path.display())
                };
                assert!(
                    errors
                        .iter()
                        .any(|error| error.contains("weight") && error.contains("-10")),
                    "{errors:?}"
                );
            } else {
                assert_eq!(verdict, Verdict::Valid { warnings: Vec::new() }, "{}", path.display());
            }
        }
    }
}

#[test]
fn every_object_of_a_sample_names_the_sample_s_namespace() {
    for path in manifests("forecast").into_iter().chain(manifests("routes")) {
        if matches!(
            path.file_name().and_then(|name| name.to_str()),
            Some("kustomization.yaml" | "weft-local.yaml" | "forecast.weft-test.yaml")
        ) {
            continue;
        }
        for object in documents(&path) {
            let namespaced = object["kind"] != "Namespace";
            let namespace = if namespaced {
                &object["metadata"]["namespace"]
            } else {
                &object["metadata"]["name"]
            };
            assert_eq!(namespace, "sample", "{}", path.display());
        }
    }
}
