//! What is checked in below `yaml/` is what the types give, and what the types take never panics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use proptest::prelude::*;
use proptest::test_runner::TestRng;
use serde_json::{Map, Value, json};
use weft_crds::object::KINDS;
use weft_crds::schema::{definitions, to_yaml};
use weft_crds::{MeshObject, Validate, parse_object};

// spec: OPS-030, OPS-133, SM-128, AUTHN-001
#[test]
fn the_definitions_are_up_to_date() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let expected: BTreeMap<String, String> = definitions()
        .into_iter()
        .map(|(name, crd)| (name, to_yaml(&crd).expect("serializes")))
        .collect();
    for (name, yaml) in &expected {
        let found = fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert!(
            found == *yaml,
            "crds/yaml/{name} is not what the types give; run `make crds`"
        );
    }
    let other = fs::read_dir(&dir)
        .expect("yaml")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned());
    // The list of the definitions for kustomize comes from elsewhere.
    let other: Vec<_> = other
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml" && !expected.contains_key(name))
        .collect();
    assert!(other.is_empty(), "crds/yaml holds what no type gives: {other:?}");
}

// spec: SM-128, AUTHN-001
#[test]
fn every_version_is_served_and_one_is_stored() {
    for (name, crd) in definitions() {
        let versions: Vec<_> = crd.spec.versions.iter().map(|v| v.name.as_str()).collect();
        let expected: &[&str] = match crd.spec.group.as_str() {
            "networking.istio.io" => &["v1", "v1beta1", "v1alpha3"],
            "security.istio.io" => &["v1", "v1beta1"],
            _ => &["v1alpha1"],
        };
        assert_eq!(versions, expected, "{name}");
        assert!(crd.spec.versions.iter().all(|v| v.served));
        assert_eq!(crd.spec.versions.iter().filter(|v| v.storage).count(), 1);
        let schema = |n: usize| serde_json::to_value(&crd.spec.versions[n].schema).expect("schema");
        assert!(
            (1..versions.len()).all(|n| schema(n) == schema(0)),
            "{name}: versions differ"
        );
    }
}

// spec: OPS-120, OPS-129, OPS-132
#[test]
fn every_kind_has_status_conditions_and_shows_them() {
    for (name, crd) in definitions() {
        for version in &crd.spec.versions {
            let status = version.subresources.as_ref().and_then(|s| s.status.as_ref());
            assert!(status.is_some(), "{name}: status is no subresource");
            let columns = version.additional_printer_columns.iter().flatten();
            let columns: Vec<_> = columns.map(|c| c.name.as_str()).collect();
            assert!(
                columns.contains(&"Ready") && columns.last() == Some(&"Age"),
                "{name}: {columns:?}"
            );
        }
        let conditions = &schema_of(&crd)["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]), "{name}");
    }
}

// spec: OPS-133
#[test]
fn meshes_are_of_the_cluster_and_have_nothing_to_set() {
    let (_, crd) = definitions()
        .into_iter()
        .find(|(_, crd)| crd.spec.names.plural == "meshes")
        .expect("meshes");
    assert_eq!(
        (crd.spec.group.as_str(), crd.spec.scope.as_str()),
        ("weft.dev", "Cluster")
    );
    let columns = crd.spec.versions[0].additional_printer_columns.iter().flatten();
    let columns: Vec<_> = columns.map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["Ready", "Version", "Pods", "Synced", "Age"]);
    assert_eq!(schema_of(&crd)["properties"]["spec"]["properties"], Value::Null);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    // spec: OPS-191
    #[test]
    fn what_a_schema_admits_is_read_and_judged(object in objects(0)) {
        let parsed = parse_object(&object, true);
        let parsed = parsed.map_err(|e| TestCaseError::fail(format!("{e}: {object}")))?;
        let _ = parsed.validate();
        let again = parse_object(&written(&parsed), true).expect("what is written can be read");
        prop_assert_eq!(again, parsed);
    }

    // spec: OPS-191
    #[test]
    fn what_no_schema_admits_never_panics(object in objects(15)) {
        for strict in [true, false] {
            if let Ok(parsed) = parse_object(&object, strict) {
                let _ = parsed.validate();
            }
        }
    }
}

/// Objects of all kinds that fit their schema, with values of another type at `wrong` percent of the places.
fn objects(wrong: u32) -> impl Strategy<Value = Value> {
    let schemas: Vec<(CustomResourceDefinition, Value)> = definitions()
        .into_iter()
        .map(|(_, crd)| (schema_of(&crd), crd))
        .map(|(schema, crd)| (crd, schema["properties"]["spec"].clone()))
        .filter(|(crd, _)| KINDS.iter().any(|(_, kind, _)| *kind == crd.spec.names.kind))
        .collect();
    (0..schemas.len()).prop_perturb(move |n, mut rng| {
        let (crd, schema) = &schemas[n];
        json!({
            "apiVersion": format!("{}/{}", crd.spec.group, crd.spec.versions[0].name),
            "kind": crd.spec.names.kind,
            "metadata": {"name": text(&mut rng), "namespace": "shop"},
            "spec": arbitrary(schema, wrong, 0, &mut rng),
        })
    })
}

fn arbitrary(schema: &Value, wrong: u32, depth: u32, rng: &mut TestRng) -> Value {
    if wrong > 0 && depth > 0 && rng.random_range(0..100) < wrong {
        let other = [
            json!(null),
            json!(-1),
            json!(1.5),
            json!("x"),
            json!([[]]),
            json!({"": {}}),
            json!(true),
        ];
        return other[rng.random_range(0..other.len())].clone();
    }
    if let Some(allowed) = schema["enum"].as_array() {
        return allowed[rng.random_range(0..allowed.len())].clone();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let mut object = Map::new();
            if let Some(inner) = schema.get("additionalProperties") {
                for _ in 0..rng.random_range(0..3) {
                    object.insert(text(rng), arbitrary(inner, wrong, depth + 1, rng));
                }
            }
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                // Deep inside fewer fields, so that objects end.
                if required.contains(&json!(name)) || rng.random_range(0..depth + 3) < 2 {
                    object.insert(name.clone(), arbitrary(inner, wrong, depth + 1, rng));
                }
            }
            Value::Object(object)
        }
        Some("array") => {
            let length = rng.random_range(0..4);
            (0..length)
                .map(|_| arbitrary(&schema["items"], wrong, depth + 1, rng))
                .collect()
        }
        Some("integer") => {
            let bounds = (
                schema["minimum"].as_f64().unwrap_or(-1e9),
                schema["maximum"].as_f64().unwrap_or(1e18),
            );
            let pool = [
                bounds.0,
                bounds.1,
                0.0_f64.clamp(bounds.0, bounds.1),
                80.0_f64.clamp(bounds.0, bounds.1),
            ];
            #[expect(clippy::cast_possible_truncation, reason = "bounds are whole and fit")]
            let number = pool[rng.random_range(0..pool.len())] as i64;
            json!(number)
        }
        Some("number") => json!([0.0, 0.0001, 33.3, 100.0][rng.random_range(0..4)]),
        Some("boolean") => json!(rng.random_range(0..2) == 0),
        _ if schema["pattern"].is_string() => {
            let durations = [
                "0",
                "0s",
                "1.5s",
                "1h10m",
                "250ms",
                "1ns",
                "...s",
                "99999999999999999999h",
                "0.1s",
            ];
            json!(durations[rng.random_range(0..durations.len())])
        }
        _ => json!(text(rng)),
    }
}

/// A text that some field gives a meaning to.
fn text(rng: &mut TestRng) -> String {
    const TEXTS: [&str; 32] = [
        "",
        "*",
        "*.a.com",
        "a",
        "a.b",
        "mesh",
        ".",
        "~",
        "/",
        "a/b",
        "10.0.0.1",
        "10.0.0.0/33",
        "::1",
        "v1",
        "%",
        "%REQ(x)%",
        "%%",
        "(",
        "(a)",
        "\\9",
        "\\1",
        "5xx,503",
        "UNAVAILABLE",
        "configmap://shop/c",
        "unix://@x",
        "topology.kubernetes.io/zone=a",
        ":authority",
        "@request.auth.claims[a]",
        "STRICT",
        "8080",
        "é\u{0}\u{fffd}",
        "a{1000}{1000}",
    ];
    match rng.random_range(0..40) {
        n if n < TEXTS.len() => TEXTS[n].to_owned(),
        _ => (0..rng.random_range(0..300))
            .map(|_| rng.random_range('\u{0}'..'\u{2ff}'))
            .collect(),
    }
}

fn schema_of(crd: &CustomResourceDefinition) -> Value {
    let schema = crd.spec.versions[0]
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("a schema")).expect("serializes")
}

fn written(object: &MeshObject) -> Value {
    let value = match object {
        MeshObject::VirtualService(o) => serde_json::to_value(o),
        MeshObject::DestinationRule(o) => serde_json::to_value(o),
        MeshObject::Gateway(o) => serde_json::to_value(o),
        MeshObject::ServiceEntry(o) => serde_json::to_value(o),
        MeshObject::WorkloadEntry(o) => serde_json::to_value(o),
        MeshObject::Sidecar(o) => serde_json::to_value(o),
        MeshObject::PeerAuthentication(o) => serde_json::to_value(o),
        MeshObject::AuthorizationPolicy(o) => serde_json::to_value(o),
    };
    value.expect("serializes")
}
