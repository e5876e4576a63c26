use serde_json::{Value, json};

use super::*;

fn report(spec: Value) -> Report {
    let spec: SidecarSpec = serde_json::from_value(spec).expect("spec");
    Sidecar::new("x", spec).validate()
}

fn errors(spec: &Value) -> Vec<String> {
    report(spec.clone()).errors.into_iter().map(|e| e.path).collect()
}

fn egress(hosts: &[&str]) -> Value {
    json!({"egress": [{"hosts": hosts}]})
}

// spec: SE-063
#[test]
fn something_is_configured() {
    assert_eq!(errors(&json!({})), ["spec"]);
    assert_eq!(errors(&json!({"workloadSelector": {"labels": {"a": "b"}}})), ["spec"]);
    for good in [json!({"outboundTrafficPolicy": {}}), egress(&["./*"])] {
        assert!(errors(&good).is_empty(), "{good}");
    }
}

// spec: SE-068
#[test]
fn selectors_ask_for_labels_as_pods_carry_them() {
    let selector = |labels: Value| json!({"workloadSelector": {"labels": labels}, "outboundTrafficPolicy": {}});
    assert!(errors(&selector(json!({"a": "b"}))).is_empty());
    assert_eq!(
        errors(&selector(json!({"a": "*"}))),
        ["spec.workloadSelector.labels[a]"]
    );
    assert_eq!(
        errors(&selector(json!({"a": "x".repeat(64)}))),
        ["spec.workloadSelector.labels[a]"]
    );
    assert!(report(selector(json!({}))).warnings[0].starts_with("spec.workloadSelector"));
}

// spec: SE-071, SE-073
#[test]
fn hosts_are_namespaces_and_full_names() {
    for good in [
        "./*",
        "*/*",
        "~/*",
        "a/*.svc.cluster.local",
        "*/api.example.com",
        "~a/b.example",
        "~./*",
        "~*/*.x.y",
    ] {
        assert!(errors(&egress(&[good])).is_empty(), "{good}");
    }
    for bad in [
        "nohost",
        "a/",
        "/a.b",
        "a/short",
        "./*foo.x",
        "A_/a.b",
        "~~/a.b",
        "a/*.",
        "a/http://x",
    ] {
        assert_eq!(errors(&egress(&[bad])), ["spec.egress[0].hosts[0]"], "{bad}");
    }
    assert_eq!(errors(&egress(&[])), ["spec.egress[0].hosts"]);
    for hosts in [["./*", "./*"], ["*/*", "./*"]] {
        let report = report(egress(&hosts));
        assert!(report.errors.is_empty() && report.warnings.len() == 1, "{report:?}");
    }
}

// spec: SE-079, SE-080, SE-081
#[test]
fn ports_of_egress_are_there_once_and_the_rest_comes_last() {
    let listener = |fields: Value| {
        let mut listener = fields;
        listener["hosts"] = json!(["./*"]);
        listener
    };
    let port = |number: i64| listener(json!({"port": {"number": number}}));
    let rest = || listener(json!({}));
    let of = |list: Vec<Value>| errors(&json!({"egress": list}));
    assert!(of(vec![port(80), port(81), rest()]).is_empty());
    assert_eq!(of(vec![rest(), port(80)]), ["spec.egress[0].port"]);
    assert_eq!(of(vec![rest(), rest()]), ["spec.egress[0].port"]);
    assert_eq!(of(vec![port(80), port(80)]), ["spec.egress[1].port.number"]);
    assert_eq!(of(vec![port(0)]), ["spec.egress[0].port.number"]);
    let socket = |fields: Value| {
        let mut fields = fields;
        fields["bind"] = "unix:///run/a".into();
        listener(fields)
    };
    assert!(of(vec![socket(json!({"port": {"number": 0, "protocol": "HTTP"}}))]).is_empty());
    for (listener, path) in [
        (socket(json!({"port": {"number": 80}})), "spec.egress[0].port.number"),
        (socket(json!({})), "spec.egress[0].port"),
        (
            socket(json!({"port": {"number": 0}, "captureMode": "IPTABLES"})),
            "spec.egress[0].captureMode",
        ),
        (
            listener(json!({"port": {"number": 80, "targetPort": 81}})),
            "spec.egress[0].port.targetPort",
        ),
        (
            listener(json!({"port": {"number": 80, "protocol": "WHAT"}})),
            "spec.egress[0].port.protocol",
        ),
        (listener(json!({"bind": "x"})), "spec.egress[0].bind"),
        (listener(json!({"captureMode": "x"})), "spec.egress[0].captureMode"),
    ] {
        assert_eq!(of(vec![listener.clone()]), [path], "{listener}");
    }
    let twice = || socket(json!({"port": {"number": 0}}));
    assert_eq!(of(vec![twice(), twice()]), ["spec.egress[1].bind"]);
}

// spec: SE-083, SE-085, SM-067
#[test]
fn the_policy_for_unknown_traffic_has_two_modes() {
    let of = |policy: Value| errors(&json!({"outboundTrafficPolicy": policy}));
    assert!(of(json!({"mode": "ALLOW_ANY"})).is_empty());
    assert_eq!(
        of(json!({"mode": "ALLOW_ANY_DYNAMIC_DNS"})),
        ["spec.outboundTrafficPolicy.mode"]
    );
    let proxy = |host: &str| json!({"host": host, "port": {"number": 80}});
    assert!(of(json!({"mode": "ALLOW_ANY", "egressProxy": proxy("a.example")})).is_empty());
    let at = "spec.outboundTrafficPolicy.egressProxy";
    assert_eq!(of(json!({"egressProxy": proxy("a.example")})), [at]);
    for host in ["*", "*.example", "short"] {
        assert_eq!(
            of(json!({"mode": "ALLOW_ANY", "egressProxy": proxy(host)})),
            [format!("{at}.host")]
        );
    }
    assert_eq!(
        of(json!({"mode": "ALLOW_ANY", "egressProxy": {"host": "a.example"}})),
        [format!("{at}.port")]
    );
}

// spec: SE-087, SE-089, SE-091, SE-092, SE-095
#[test]
fn ingress_names_a_port_and_where_the_application_listens() {
    let of = |fields: Value| {
        let mut listener = json!({"port": {"number": 8080, "protocol": "HTTP"}});
        for (name, value) in fields.as_object().expect("fields") {
            listener[name] = value.clone();
        }
        errors(&json!({"ingress": [listener]}))
    };
    let good = [
        "",
        "127.0.0.1:80",
        "[::1]:80",
        "0.0.0.0:80",
        "[::]:80",
        ":80",
        "unix:///run/a.sock",
        "unix://@a",
    ];
    for endpoint in good {
        assert!(of(json!({"defaultEndpoint": endpoint})).is_empty(), "{endpoint}");
    }
    for endpoint in [
        "10.0.0.1:80",
        "127.0.0.1",
        "127.0.0.1:http",
        "127.0.0.1:0",
        ":",
        "unix://a",
        "localhost:80",
    ] {
        assert_eq!(
            of(json!({"defaultEndpoint": endpoint})),
            ["spec.ingress[0].defaultEndpoint"],
            "{endpoint}"
        );
    }
    let port = json!({"number": 80, "targetPort": 1});
    assert_eq!(of(json!({"port": port})), ["spec.ingress[0].port.targetPort"]);
    assert_eq!(of(json!({"port": null})), ["spec.ingress[0].port"]);
    assert_eq!(of(json!({"bind": "unix:///a"})), ["spec.ingress[0].bind"]);
    assert_eq!(of(json!({"connectionPool": {}})), ["spec.ingress[0].connectionPool"]);
    assert_eq!(
        errors(&json!({"inboundConnectionPool": {}})),
        ["spec.inboundConnectionPool"]
    );
    let twice = json!({"ingress": [{"port": {"number": 80}}, {"port": {"number": 80}}]});
    assert_eq!(errors(&twice), ["spec.ingress[1].port.number"]);
    let tls = |tls: Value| of(json!({"port": {"number": 443, "protocol": "HTTPS"}, "tls": tls}));
    assert!(tls(json!({"mode": "SIMPLE", "serverCertificate": "/a", "privateKey": "/b"})).is_empty());
    assert_eq!(tls(json!({"mode": "ISTIO_MUTUAL"})), ["spec.ingress[0].tls.mode"]);
    assert_eq!(
        tls(json!({"mode": "SIMPLE", "credentialName": "a"})),
        ["spec.ingress[0].tls.credentialName"]
    );
    assert_eq!(of(json!({"tls": {"mode": "SIMPLE"}})), ["spec.ingress[0].tls"]);
}
