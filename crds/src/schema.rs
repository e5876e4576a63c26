//! CustomResourceDefinitions, generated from the types: structural schemas, all served versions alike (SM-128).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::object::KINDS;
use crate::{
    AuthorizationPolicy, DestinationRule, Gateway, Mesh, PeerAuthentication, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry,
};

mod rules;

use rules::Rule;

/// All definitions, by file name.
#[must_use]
pub fn definitions() -> Vec<(String, CustomResourceDefinition)> {
    let all = [
        (
            VirtualService::crd(),
            with_state(vec![
                column("Gateways", "string", ".spec.gateways", "Gateways that apply the rules"),
                column("Hosts", "string", ".spec.hosts", "Names that the rules are for"),
            ]),
        ),
        (
            DestinationRule::crd(),
            with_state(vec![column("Host", "string", ".spec.host", "Host of the service")]),
        ),
        (
            Gateway::crd(),
            with_state(vec![column(
                "Selector",
                "string",
                ".spec.selector",
                "Labels of the gateway's pods",
            )]),
        ),
        (
            ServiceEntry::crd(),
            with_state(vec![
                column("Hosts", "string", ".spec.hosts", "Names that it adds to the mesh"),
                column(
                    "Location",
                    "string",
                    ".spec.location",
                    "Whether the hosts are part of the mesh",
                ),
                column("Resolution", "string", ".spec.resolution", "How addresses are found"),
            ]),
        ),
        (
            WorkloadEntry::crd(),
            with_state(vec![column(
                "Address",
                "string",
                ".spec.address",
                "Address of the endpoint",
            )]),
        ),
        (Sidecar::crd(), with_state(Vec::new())),
        (
            PeerAuthentication::crd(),
            with_state(vec![column(
                "Mode",
                "string",
                ".spec.mtls.mode",
                "Mode of the workloads",
            )]),
        ),
        (
            AuthorizationPolicy::crd(),
            with_state(vec![column(
                "Action",
                "string",
                ".spec.action",
                "What it does; ALLOW when empty",
            )]),
        ),
        (
            Mesh::crd(),
            vec![
                ready(),
                column("Version", "string", ".status.version", "Version of the operator"),
                column("Pods", "integer", ".status.pods.total", "Pods with a proxy"),
                column(
                    "Synced",
                    "integer",
                    ".status.pods.synced",
                    "Of these, with the newest configuration",
                ),
                age(),
            ],
        ),
    ];
    all.into_iter()
        .map(|(crd, columns)| (file_name(&crd), complete(crd, columns)))
        .collect()
}

/// YAML of a definition, as it is checked in.
///
/// # Errors
/// That it does not serialize, which would be a fault of the types.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::ser::Error> {
    Ok(format!(
        "# Generated from the types of crates weft-crds: `make crds`.\n{}",
        serde_yaml::to_string(crd)?
    ))
}

fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

/// Columns of a kind, then those that all kinds have (OPS-132).
fn with_state(mut columns: Vec<CustomResourceColumnDefinition>) -> Vec<CustomResourceColumnDefinition> {
    columns.extend([ready(), age()]);
    columns
}

fn ready() -> CustomResourceColumnDefinition {
    let path = ".status.conditions[?(@.type==\"Ready\")].status";
    column("Ready", "string", path, "Whether it is in force")
}

fn age() -> CustomResourceColumnDefinition {
    column("Age", "date", ".metadata.creationTimestamp", "Age")
}

fn column(name: &str, kind: &str, path: &str, description: &str) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: name.into(),
        type_: kind.into(),
        json_path: path.into(),
        description: Some(description.into()),
        ..CustomResourceColumnDefinition::default()
    }
}

/// Columns, rules and bounds; then one entry for each served version.
fn complete(
    mut crd: CustomResourceDefinition,
    columns: Vec<CustomResourceColumnDefinition>,
) -> CustomResourceDefinition {
    let Some(mut version) = crd.spec.versions.pop() else {
        return crd;
    };
    version.additional_printer_columns = Some(columns);
    if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
        let mut value = serde_json::to_value(&*schema).unwrap_or_default();
        bound(&mut value);
        if let Some(description) = value.pointer("/properties/spec/description").cloned() {
            value["description"] = description;
        }
        // Conditions of several writers live side by side (OPS-129).
        if let Some(conditions) = value.pointer_mut("/properties/status/properties/conditions") {
            conditions["x-kubernetes-list-type"] = json!("map");
            conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
            conditions["maxItems"] = json!(64);
        }
        for Rule { at, rule, message } in rules::of(&crd.spec.names.kind) {
            let target = value.pointer_mut(&at).and_then(Value::as_object_mut);
            let target = target.unwrap_or_else(|| panic!("{} has no {at}", crd.spec.names.kind));
            let list = target.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.push(json!({"rule": rule, "message": message}));
            }
        }
        *schema = serde_json::from_value(value).expect("a schema with more fields is one");
    }
    let only = [version.name.as_str()];
    let served = KINDS
        .iter()
        .find(|(_, kind, _)| *kind == crd.spec.names.kind)
        .map_or(&only[..], |(_, _, v)| v);
    crd.spec.versions = served
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let mut version = version.clone();
            version.name = (*name).to_owned();
            version.storage = n == 0;
            version
        })
        .collect();
    crd
}

/// What schemars leaves open and the API server needs closed: bounds, so that the cost of rules can be estimated, and
/// no format that it does not know.
fn bound(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    let unknown_format = |format: &str| !matches!(format, "int32" | "int64" | "date-time" | "float" | "double");
    if object.get("format").and_then(Value::as_str).is_some_and(unknown_format) {
        object.remove("format");
    }
    if object.get("type").and_then(Value::as_str) == Some("array") {
        object.entry("maxItems").or_insert(json!(4096));
    }
    // A value that is left out and one that is stated as its default are the same: no defaults in the schema, so that
    // what is stored is what was written.
    object.remove("default");
    // The API server prunes a null where null is no value, so it is as if the field were left out.
    object.remove("nullable");
    if let Some(Value::Array(allowed)) = object.get_mut("enum") {
        allowed.retain(|value| !value.is_null());
    }
    if object.contains_key("additionalProperties") {
        object.entry("maxProperties").or_insert(json!(1024));
    }
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(properties)) = object.get_mut(key) {
            properties.values_mut().for_each(bound);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            bound(inner);
        }
    }
}
