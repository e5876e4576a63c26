#![expect(clippy::needless_pass_by_value, reason = "json! gives values")]

use serde_json::{Value, json};

use super::*;

fn report(spec: Value) -> Report {
    let spec: GatewaySpec = serde_json::from_value(spec).expect("spec");
    Gateway::new("x", spec).validate()
}

/// Errors of one server, without its path.
fn server(fields: Value) -> Vec<String> {
    let mut server = json!({"port": {"number": 80, "protocol": "HTTP", "name": "http"}, "hosts": ["*"]});
    for (key, value) in fields.as_object().expect("object") {
        server[key] = value.clone();
    }
    let all = report(json!({"servers": [server]})).errors.into_iter();
    all.map(|e| e.path.trim_start_matches("spec.servers[0].").to_owned())
        .collect()
}

/// Errors and warnings of the TLS block of an HTTPS server.
fn tls(tls: Value) -> (Vec<String>, Vec<String>) {
    let port = json!({"number": 443, "protocol": "https", "name": "https"});
    let report = report(json!({"servers": [{"port": port, "hosts": ["*"], "tls": tls}]}));
    let path = |p: String| p.trim_start_matches("spec.servers[0].").to_owned();
    let errors = report.errors.into_iter().map(|e| path(e.path)).collect();
    (errors, report.warnings.into_iter().map(path).collect())
}

// spec: GW-001
#[test]
fn a_gateway_has_servers_and_a_plain_name() {
    let errors = report(json!({})).errors;
    assert_eq!(errors[0].path, "spec.servers");
    let null: Result<GatewaySpec, _> = serde_json::from_value(json!({"servers": [null]}));
    assert!(null.is_err());
    let spec = json!({"servers": [{"port": {"number": 80, "protocol": "HTTP", "name": "http"}, "hosts": ["*"]}]});
    let spec: GatewaySpec = serde_json::from_value(spec).expect("spec");
    let errors = Gateway::new("a.b", spec.clone()).validate().errors;
    assert_eq!(errors.first().map(|e| e.path.as_str()), Some("metadata.name"));
    assert!(Gateway::new("a-b", spec).validate().errors.is_empty());
}

// spec: GW-009, GW-010, GW-011, GW-016
#[test]
fn ports() {
    let port = |value: Value| server(json!({"port": value}));
    assert_eq!(port(json!({})), ["port.number", "port.protocol", "port.name"]);
    assert_eq!(server(json!({"port": null})), ["port"]);
    assert_eq!(
        port(json!({"number": 80, "protocol": "UDP", "name": "a"})),
        ["port.protocol"]
    );
    assert!(port(json!({"number": 80, "protocol": "grpc-web", "name": "a"})).is_empty());
    assert_eq!(
        port(json!({"number": 80, "protocol": "HTTP", "name": "a", "targetPort": 8080})),
        ["port.targetPort"]
    );
    let one = json!({"port": {"number": 80, "protocol": "HTTP", "name": "a"}, "hosts": ["*"]});
    let errors = report(json!({"servers": [one, one]})).errors;
    assert_eq!(errors[0].path, "spec.servers[1].port.name");
    assert!(server(json!({"bind": "10.0.0.1"})).is_empty());
    assert_eq!(server(json!({"bind": "eth0"})), ["bind"]);
    assert_eq!(server(json!({"bind": "unix:///run/x"})), ["port.number"]);
    let socket = json!({"bind": "unix://@x", "port": {"number": 0, "protocol": "HTTP", "name": "a"}});
    assert!(server(socket).is_empty());
}

// spec: GW-019, SM-058
#[test]
fn hosts() {
    for good in ["*", "*.a.com", "a.com", "ns/a.com", "./a.com", "*/*.a.com", "10.0.0.1"] {
        assert!(server(json!({"hosts": [good]})).is_empty(), "{good}");
    }
    for bad in [
        "a", "foo*.com", "*foo.com", "a b", "N/a.com", "/a.com", "~/a.com", "ns/", "",
    ] {
        assert_eq!(server(json!({"hosts": [bad]})), ["hosts[0]"], "{bad}");
    }
    assert_eq!(server(json!({"hosts": []})), ["hosts"]);
}

// spec: GW-028, GW-029
#[test]
fn where_a_tls_block_may_be() {
    let port = |protocol: &str| json!({"number": 443, "protocol": protocol, "name": "a"});
    assert_eq!(server(json!({"port": port("HTTPS")})), ["tls"]);
    assert_eq!(server(json!({"port": port("TLS")})), ["tls"]);
    assert!(server(json!({"tls": {"httpsRedirect": true}})).is_empty());
    assert_eq!(
        server(json!({"tls": {"httpsRedirect": true, "mode": "SIMPLE"}})),
        ["tls"]
    );
    assert_eq!(
        server(json!({"port": port("TCP"), "tls": {"mode": "SIMPLE", "credentialName": "c"}})),
        ["tls"]
    );
    let (errors, warnings) = tls(json!({"mode": "SIMPLE", "credentialName": "c", "httpsRedirect": true}));
    assert!(errors.is_empty() && warnings[0].starts_with("tls.httpsRedirect"));
}

// spec: GW-030, GW-033, GW-035, GW-036, GW-037, GW-046
#[test]
fn certificates_have_one_source() {
    assert_eq!(tls(json!({"mode": "ON"})).0, ["tls.mode"]);
    let (errors, warnings) = tls(json!({"credentialName": "c"}));
    assert!(errors.is_empty() && warnings[0].contains("credentialName"));
    assert_eq!(
        tls(json!({"mode": "ISTIO_MUTUAL", "credentialName": "c", "privateKey": "/k"})).0,
        ["tls.privateKey", "tls.credentialName"]
    );
    for mode in ["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"] {
        assert_eq!(tls(json!({"mode": mode})).0, ["tls"], "{mode}");
        assert!(tls(json!({"mode": mode, "credentialName": "c"})).0.is_empty(), "{mode}");
    }
    let files = json!({"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k"});
    assert_eq!(tls(files).0, ["tls.caCertificates"]);
    let both = json!({"mode": "SIMPLE", "credentialName": "c", "credentialNames": ["d"]});
    assert_eq!(tls(both).0, ["tls"]);
    let both = json!({"mode": "SIMPLE", "credentialName": "c", "serverCertificate": "/c", "privateKey": "/k"});
    assert_eq!(tls(both).0, ["tls"]);
    let (errors, warnings) = tls(json!({"mode": "SIMPLE", "credentialName": "c", "privateKey": "/k"}));
    assert!(errors.is_empty() && warnings[0].contains("privateKey"));
    assert_eq!(
        tls(json!({"mode": "SIMPLE", "serverCertificate": "/c"})).0,
        ["tls.privateKey"]
    );
    assert_eq!(
        tls(json!({"mode": "SIMPLE", "credentialNames": ["a", "b", "c"]})).0,
        ["tls.credentialNames"]
    );
    let crl = json!({"mode": "SIMPLE", "serverCertificate": "/c", "privateKey": "/k", "caCrl": "/l"});
    assert_eq!(tls(crl).0, ["tls.caCrl"]);
    let (errors, warnings) = tls(json!({"mode": "MUTUAL", "credentialName": "c", "caCrl": "/l"}));
    assert!(errors.is_empty() && warnings[0].contains("caCrl"));
}

// spec: GW-049, GW-050, GW-051
#[test]
fn what_is_not_offered_is_a_warning() {
    let simple = |more: Value| {
        let mut block = json!({"mode": "SIMPLE", "credentialName": "c"});
        for (key, value) in more.as_object().expect("object") {
            block[key] = value.clone();
        }
        tls(block)
    };
    let (errors, warnings) = simple(json!({"minProtocolVersion": "TLSV1_0"}));
    assert!(errors.is_empty() && warnings[0].contains("TLSV1_2"));
    assert_eq!(
        simple(json!({"maxProtocolVersion": "SSL3"})).0,
        ["tls.maxProtocolVersion"]
    );
    let suites = ["ECDHE-RSA-AES128-GCM-SHA256", "DES-CBC3-SHA", "NOPE", "NOPE"];
    let (errors, warnings) = simple(json!({"cipherSuites": suites}));
    assert!(errors.is_empty());
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}
