use serde_json::{Value, json};

use super::*;

fn report(spec: Value) -> Report {
    let spec: ServiceEntrySpec = serde_json::from_value(spec).expect("spec");
    let mut entry = ServiceEntry::new("x", spec);
    entry.metadata.namespace = Some("app".into());
    entry.validate()
}

fn errors(spec: Value) -> Vec<String> {
    report(spec).errors.into_iter().map(|e| e.path).collect()
}

/// An entry of one HTTP port, with other fields in place of its own.
fn entry(fields: Value) -> Value {
    let mut spec = json!({
        "hosts": ["a.example"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    });
    let Value::Object(fields) = fields else {
        panic!("no fields: {fields}");
    };
    for (name, value) in fields {
        spec[name] = value;
    }
    spec
}

fn is_good(fields: Value) {
    let spec = entry(fields);
    assert_eq!(errors(spec.clone()), Vec::<String>::new(), "{spec}");
}

// spec: SE-001, SE-002
#[test]
fn hosts_are_names_and_wildcards() {
    for name in ["a.example", "foo", "a.b.example.", "A.example"] {
        is_good(json!({"hosts": [name]}));
    }
    is_good(json!({"hosts": ["*.example"], "resolution": "NONE"}));
    for name in ["*", "a.*.example", "http://a.example", "a.example:80", "10.0.0.1", ""] {
        assert_eq!(
            errors(entry(json!({"hosts": [name], "resolution": "NONE"}))),
            ["spec.hosts[0]"],
            "{name}"
        );
    }
    assert_eq!(errors(entry(json!({"hosts": []}))), ["spec.hosts"]);
    let many: Vec<String> = (0..257).map(|n| format!("a{n}.example")).collect();
    assert_eq!(errors(entry(json!({"hosts": many}))), ["spec.hosts"]);
}

// spec: SE-003
#[test]
fn a_wildcard_that_is_no_whole_label_is_a_warning() {
    let report = report(entry(json!({"hosts": ["*foo.example"], "resolution": "NONE"})));
    assert!(
        report.errors.is_empty() && report.warnings[0].starts_with("spec.hosts[0]"),
        "{report:?}"
    );
}

// spec: SE-004
#[test]
fn ports_have_number_and_name_each_once() {
    is_good(json!({"ports": []}));
    is_good(json!({"ports": [{"number": 1, "name": "a"}, {"number": 65535, "name": "b", "protocol": "grpc-web"}]}));
    let port = |number: i64, name: &str, protocol: &str| json!({"number": number, "name": name, "protocol": protocol});
    for (ports, path) in [
        (json!([port(0, "a", "HTTP")]), "spec.ports[0].number"),
        (json!([port(65536, "a", "HTTP")]), "spec.ports[0].number"),
        (json!([port(80, "", "HTTP")]), "spec.ports[0].name"),
        (json!([port(80, "a", "WHAT")]), "spec.ports[0].protocol"),
        (
            json!([port(80, "a", "HTTP"), port(80, "b", "HTTP")]),
            "spec.ports[1].number",
        ),
        (
            json!([port(80, "a", "HTTP"), port(81, "a", "HTTP")]),
            "spec.ports[1].name",
        ),
        (
            json!([{"number": 80, "name": "a", "targetPort": 70000}]),
            "spec.ports[0].targetPort",
        ),
    ] {
        assert_eq!(errors(entry(json!({"ports": ports}))), [path], "{ports}");
    }
}

// spec: SE-007, SE-008
#[test]
fn location_and_resolution_are_words_of_a_list() {
    is_good(json!({"location": "MESH_INTERNAL"}));
    assert_eq!(errors(entry(json!({"location": "INSIDE"}))), ["spec.location"]);
    assert_eq!(errors(entry(json!({"resolution": "dns"}))), ["spec.resolution"]);
}

// spec: SE-009
#[test]
fn addresses_are_addresses_or_ranges_where_nothing_is_looked_up() {
    is_good(json!({"addresses": ["10.0.0.1", "fd00::1"]}));
    is_good(json!({"addresses": ["10.0.0.0/8"], "resolution": "NONE"}));
    is_good(json!({"addresses": ["10.0.0.0/8"], "resolution": "STATIC"}));
    for address in ["x", "10.0.0.0/33", "10.0.0.0/8"] {
        assert_eq!(
            errors(entry(json!({"addresses": [address]}))),
            ["spec.addresses[0]"],
            "{address}"
        );
    }
}

// spec: SE-010, SE-011, SE-055
#[test]
fn endpoints_fit_the_resolution_and_the_ports() {
    let one = |address: &str| json!([{"address": address}]);
    is_good(json!({"resolution": "STATIC", "endpoints": one("10.0.0.1")}));
    is_good(json!({"resolution": "STATIC", "endpoints": one("unix:///run/a.sock")}));
    is_good(json!({"endpoints": [{"address": "b.example", "ports": {"http": 8080}}]}));
    let two_ports =
        json!([{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 81, "name": "b", "protocol": "HTTP"}]);
    for (fields, path) in [
        (
            json!({"resolution": "NONE", "endpoints": one("10.0.0.1")}),
            "spec.endpoints",
        ),
        (
            json!({"endpoints": one("10.0.0.1"), "workloadSelector": {"labels": {"a": "b"}}}),
            "spec.endpoints",
        ),
        (
            json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.example"}, {"address": "b.example"}]}),
            "spec.endpoints",
        ),
        (
            json!({"endpoints": [{"address": "b.example", "ports": {"https": 1}}]}),
            "spec.endpoints[0].ports[https]",
        ),
        (
            json!({"resolution": "STATIC", "endpoints": one("name.example")}),
            "spec.endpoints[0].address",
        ),
        (
            json!({"resolution": "STATIC", "endpoints": one("unix:///run/a.sock"), "ports": two_ports}),
            "spec.endpoints[0].address",
        ),
        (
            json!({"endpoints": one("unix:///run/a.sock")}),
            "spec.endpoints[0].address",
        ),
        (json!({"endpoints": one("a_b")}), "spec.endpoints[0].address"),
    ] {
        assert_eq!(errors(entry(fields.clone())), [path], "{fields}");
    }
    let report = report(entry(json!({"resolution": "STATIC"})));
    assert!(
        report.errors.is_empty() && report.warnings[0].contains("503"),
        "{report:?}"
    );
}

// spec: SE-012, SE-013, SE-015
#[test]
fn what_cannot_be_told_apart_or_looked_up_is_refused() {
    for resolution in ["DNS", "DNS_ROUND_ROBIN"] {
        let fields = json!({"hosts": ["*.example"], "resolution": resolution});
        assert_eq!(errors(entry(fields)), ["spec.hosts[0]"]);
    }
    is_good(json!({"hosts": ["*.example"], "endpoints": [{"address": "b.example"}]}));
    for protocol in [json!("TCP"), Value::Null] {
        let ports = json!([{"number": 80, "name": "a", "protocol": protocol}]);
        let fields = json!({"hosts": ["a.example", "b.example"], "ports": ports});
        assert_eq!(errors(entry(fields.clone())), ["spec.ports[0].protocol"], "{fields}");
        let mut with_none = fields;
        with_none["resolution"] = "NONE".into();
        is_good(with_none);
    }
    let ports = json!([{"number": 5000, "name": "a", "protocol": "TCP"}]);
    let report = report(entry(json!({"ports": ports})));
    assert!(
        report.errors.is_empty() && report.warnings[0].contains("5000"),
        "{report:?}"
    );
}

// spec: SE-014
#[test]
fn names_looked_up_for_each_request_are_wildcards_on_ports_that_tell_names() {
    is_good(json!({"hosts": ["*.example"], "resolution": "DYNAMIC_DNS"}));
    for (fields, path) in [
        (json!({"hosts": ["a.example"]}), "spec.hosts[0]"),
        (
            json!({"hosts": ["*.example"], "addresses": ["10.0.0.1"]}),
            "spec.addresses",
        ),
        (
            json!({"hosts": ["*.example"], "endpoints": [{"address": "10.0.0.1"}]}),
            "spec.endpoints",
        ),
        (
            json!({"hosts": ["*.example"], "ports": [{"number": 443, "name": "a", "protocol": "HTTPS"}]}),
            "spec.ports[0].protocol",
        ),
        (
            json!({"hosts": ["*.example"], "ports": [{"number": 443, "name": "a"}]}),
            "spec.ports[0].protocol",
        ),
    ] {
        let mut fields = fields;
        fields["resolution"] = "DYNAMIC_DNS".into();
        assert_eq!(errors(entry(fields.clone())), [path], "{fields}");
    }
}

// spec: SE-016, SM-071
#[test]
fn visibility_is_of_namespaces_or_of_nobody() {
    for list in [json!(["~"]), json!(["*"]), json!([".", "other"])] {
        is_good(json!({"exportTo": list}));
    }
    for list in [
        json!(["~", "."]),
        json!(["*", "."]),
        json!([".", "app"]),
        json!(["a", "a"]),
        json!(["A_"]),
    ] {
        assert!(
            errors(entry(json!({"exportTo": list})))[0].starts_with("spec.exportTo["),
            "{list}"
        );
    }
}

// spec: SE-040, SE-041
#[test]
fn selectors_ask_for_labels_as_workloads_carry_them() {
    let selector = |labels: Value| entry(json!({"resolution": "STATIC", "workloadSelector": {"labels": labels}}));
    assert!(errors(selector(json!({"app": "a"}))).is_empty());
    let long = "x".repeat(64);
    for (key, value) in [("app", "*"), ("", "a"), ("app", &long)] {
        assert_eq!(
            errors(selector(json!({key: value}))),
            [format!("spec.workloadSelector.labels[{key}]")]
        );
    }
    let many: Value = (0..257)
        .map(|n| (n.to_string(), json!("a")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(errors(selector(many)), ["spec.workloadSelector.labels"]);
    assert!(report(selector(json!({}))).warnings[0].starts_with("spec.workloadSelector.labels"));
    let none = entry(json!({"resolution": "NONE", "workloadSelector": {"labels": {"a": "b"}}}));
    assert!(report(none).warnings[0].starts_with("spec.workloadSelector"));
}
