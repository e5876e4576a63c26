#![expect(
    clippy::needless_pass_by_value,
    reason = "calls read better that hand over what they made"
)]

use serde_json::{Value, json};

use super::*;

fn policy(spec: Value) -> AuthorizationPolicy {
    AuthorizationPolicy::new("p", serde_json::from_value(spec).expect("spec"))
}

fn errors(spec: Value) -> Vec<String> {
    let report = policy(spec).validate();
    report.errors.into_iter().map(|e| e.path).collect()
}

fn source(source: Value) -> Vec<String> {
    let paths = errors(json!({"rules": [{"from": [{"source": source}]}]}));
    let cut = |path: String| path.trim_start_matches("spec.rules[0].from[0].source").to_owned();
    paths.into_iter().map(cut).collect()
}

fn operation(operation: Value) -> Vec<String> {
    let paths = errors(json!({"rules": [{"to": [{"operation": operation}]}]}));
    let cut = |path: String| path.trim_start_matches("spec.rules[0].to[0].operation").to_owned();
    paths.into_iter().map(cut).collect()
}

fn when(key: &str, values: &[&str]) -> Vec<String> {
    let paths = errors(json!({"rules": [{"when": [{"key": key, "values": values}]}]}));
    let cut = |path: String| path.trim_start_matches("spec.rules[0].when[0]").to_owned();
    paths.into_iter().map(cut).collect()
}

// spec: AUTHZ-006, AUTHZ-005
#[test]
fn a_policy_has_one_scope_and_targets_of_known_kinds() {
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"});
    assert_eq!(errors(json!({"targetRefs": [gateway]})), Vec::<String>::new());
    let both = json!({"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [gateway]});
    assert_eq!(errors(both), ["spec"]);
    let bad = json!({"targetRefs": [{"kind": "Pod", "namespace": "n"}]});
    assert_eq!(
        errors(bad),
        [
            "spec.targetRefs[0].kind",
            "spec.targetRefs[0].name",
            "spec.targetRefs[0].namespace"
        ]
    );
    let many: Vec<_> = (0..17).map(|_| gateway.clone()).collect();
    assert_eq!(errors(json!({"targetRefs": many})), ["spec.targetRefs"]);
    assert_eq!(
        errors(json!({"selector": {"matchLabels": {"a": "*"}}})),
        ["spec.selector.matchLabels[a]"]
    );
}

// spec: AUTHZ-007, AUTHZ-019
#[test]
fn actions_providers_and_numbers_of_rules_are_bounded() {
    assert_eq!(errors(json!({"action": "BLOCK"})), ["spec.action"]);
    assert_eq!(errors(json!({"action": "DENY"})), ["spec.rules"]);
    assert_eq!(errors(json!({"action": "DENY", "rules": []})), ["spec.rules"]);
    assert_eq!(
        errors(json!({"action": "CUSTOM", "rules": [{}]})),
        ["spec.provider.name"]
    );
    assert_eq!(
        errors(json!({"rules": [{}], "provider": {"name": "x"}})),
        ["spec.provider"]
    );
    let audit = policy(json!({"action": "AUDIT"})).validate();
    assert!(audit.errors.is_empty() && audit.warnings[0].contains("spec.rules"));
    let rules: Vec<_> = (0..513).map(|_| json!({})).collect();
    assert_eq!(errors(json!({"rules": rules})), ["spec.rules"]);
    let from: Vec<_> = (0..513).map(|_| json!({"source": {"principals": ["a"]}})).collect();
    assert_eq!(errors(json!({"rules": [{"from": from}]})), ["spec.rules[0].from"]);
}

// spec: AUTHZ-020, AUTHZ-107
#[test]
fn entries_without_content_and_unknown_fields_are_named() {
    assert_eq!(errors(json!({"rules": [{"from": []}]})), ["spec.rules[0].from"]);
    assert_eq!(
        errors(json!({"rules": [{"to": [{}]}]})),
        ["spec.rules[0].to[0].operation"]
    );
    assert_eq!(source(json!({})), [""]);
    assert_eq!(source(json!({"principals": [""]})), [".principals[0]"]);
    assert_eq!(source(json!({"principals": [], "ipBlocks": ["::1"]})), [".principals"]);
    assert_eq!(source(json!({"principals": ["a"], "notJwts": ["x"]})), [".notJwts"]);
    assert_eq!(errors(json!({"rules": [{"until": "noon"}]})), ["spec.rules[0].until"]);
}

// spec: AUTHZ-011
#[test]
fn what_the_reference_takes_is_sound_though_admission_refuses_it() {
    let rule = |rule: Value| serde_json::from_value::<Rule>(rule).expect("rule");
    assert!(is_sound(&rule(json!({"from": []})), "ALLOW"));
    assert!(is_sound(
        &rule(json!({"from": [{"source": {"principals": [], "ipBlocks": ["::1"]}}]})),
        "ALLOW"
    ));
    assert!(!is_sound(
        &rule(json!({"from": [{"source": {"ipBlocks": ["x"]}}]})),
        "ALLOW"
    ));
    assert!(!is_sound(&rule(json!({"until": "noon"})), "DENY"));
    let identity = rule(json!({"from": [{"source": {"namespaces": ["a"]}}]}));
    assert!(is_sound(&identity, "DENY") && !is_sound(&identity, "CUSTOM"));
}

// spec: AUTHZ-037, AUTHZ-038, AUTHZ-041, AUTHZ-035
#[test]
fn values_of_sources_have_their_forms() {
    assert_eq!(source(json!({"serviceAccounts": ["a", "ns/a"]})), Vec::<String>::new());
    for bad in ["a*", "/a", "a/", "a/b/c"] {
        assert_eq!(
            source(json!({"serviceAccounts": [bad]})),
            [".serviceAccounts[0]"],
            "{bad}"
        );
    }
    assert_eq!(
        source(json!({"notServiceAccounts": ["a"], "namespaces": ["b"]})),
        [".serviceAccounts"]
    );
    let many: Vec<_> = (0..17).map(|n| n.to_string()).collect();
    assert_eq!(source(json!({"serviceAccounts": many})), [".serviceAccounts"]);
    assert_eq!(source(json!({"ipBlocks": ["10.0.0.0/33"]})), [".ipBlocks[0]"]);
    assert_eq!(source(json!({"remoteIpBlocks": ["host"]})), [".remoteIpBlocks[0]"]);
    assert_eq!(
        source(json!({"trustDomains": ["a", "*.b", "c*"]})),
        Vec::<String>::new()
    );
    for bad in ["a/b", "a*b", "*a*"] {
        assert_eq!(source(json!({"trustDomains": [bad]})), [".trustDomains[0]"], "{bad}");
    }
    let prefixed = policy(json!({"rules": [{"from": [{"source": {"principals": ["spiffe://a/ns/b/sa/c"]}}]}]}));
    assert!(prefixed.validate().warnings[0].contains("without spiffe://"));
}

// spec: AUTHZ-045, AUTHZ-048
#[test]
fn values_of_operations_have_their_forms() {
    for good in [
        "/foo/{*}",
        "/foo/{**}/",
        "/store/{**}/cart",
        "/{*}/bar/{**}",
        "/a*",
        "*/b",
        "*",
    ] {
        assert_eq!(operation(json!({"paths": [good]})), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "/foo/{*}x",
        "/{**}/foo/{*}",
        "/{**}/{**}",
        "/a*/{*}",
        "/{x}/{*}",
        "/{a}/x",
        "/ä/{*}",
        "{*}/a",
    ] {
        assert_eq!(operation(json!({"paths": [bad]})), [".paths[0]"], "{bad}");
    }
    for bad in ["http", "65536", "-1", "+80"] {
        assert_eq!(operation(json!({"notPorts": [bad]})), [".notPorts[0]"], "{bad}");
    }
    assert_eq!(operation(json!({"ports": ["0", "65535"]})), Vec::<String>::new());
}

// spec: AUTHZ-049, AUTHZ-057
#[test]
fn keys_are_those_that_exist() {
    for good in [
        "request.headers[x-token]",
        "request.auth.claims[a][b]",
        "source.namespace",
        "connection.sni",
        "experimental.envoy.filters.envoy.filters.http.jwt_authn[x]",
    ] {
        assert_eq!(when(good, &["x"]), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "",
        "request.headers",
        "request.headers[]",
        "request.headers[a][b]",
        "request.auth.claims",
        "experimental.envoy.filters.x",
        "destination.labels[a]",
        "source.user",
        "x",
    ] {
        assert_eq!(when(bad, &["x"]), [".key"], "{bad}");
    }
    assert_eq!(when("source.ip", &["x"]), [".values[0]"]);
    assert_eq!(when("destination.port", &["x"]), [".values[0]"]);
    assert_eq!(when("source.serviceAccount", &["a/*"]), [".values[0]"]);
    assert_eq!(when("source.namespace", &[]), [""]);
}

// spec: AUTHZ-075
#[test]
fn custom_rules_cannot_ask_for_identities() {
    let custom = |rule: Value| errors(json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [rule]}));
    assert!(custom(json!({"to": [{"operation": {"paths": ["/a"]}}]})).is_empty());
    for field in UNVERIFIED {
        let found = custom(json!({"from": [{"source": {field: ["a"]}}]}));
        assert_eq!(found, [format!("spec.rules[0].from[0].source.{field}")]);
    }
    for key in ["source.principal", "request.auth.claims[a]"] {
        assert_eq!(
            custom(json!({"when": [{"key": key, "values": ["a"]}]})),
            ["spec.rules[0].when[0].key"]
        );
    }
}

// spec: AUTHZ-088, AUTHZ-081
#[test]
fn a_deny_that_reaches_tcp_ports_is_warned_of() {
    let warnings = |rule: Value| {
        policy(json!({"action": "DENY", "rules": [rule]}))
            .validate()
            .warnings
            .len()
    };
    assert_eq!(warnings(json!({"to": [{"operation": {"methods": ["POST"]}}]})), 1);
    assert_eq!(
        warnings(json!({"to": [{"operation": {"methods": ["POST"], "ports": ["80"]}}]})),
        0
    );
    assert_eq!(warnings(json!({"from": [{"source": {"requestPrincipals": ["*"]}}]})), 1);
    assert_eq!(warnings(json!({"from": [{"source": {"namespaces": ["a"]}}]})), 0);
    assert_eq!(warnings(json!({})), 0);
}

// spec: AUTHZ-084
#[test]
fn the_annotation_of_a_dry_run_has_two_values_and_two_actions() {
    let annotated = |action: &str, value: &str| {
        let mut policy = policy(json!({"action": action, "rules": [{}]}));
        policy.metadata.annotations = Some([(DRY_RUN.to_owned(), value.to_owned())].into());
        policy
    };
    for (value, is_dry) in [("true", true), ("T", true), ("1", true), ("false", false), ("0", false)] {
        let policy = annotated("DENY", value);
        assert!(policy.validate().errors.is_empty());
        assert_eq!(dry_run(&policy), is_dry, "{value}");
    }
    let unclear = annotated("ALLOW", "yes");
    assert_eq!(unclear.validate().errors.len(), 1);
    assert!(!dry_run(&unclear));
    let audit = annotated("AUDIT", "true");
    assert_eq!(audit.validate().errors.len(), 1);
    assert!(!dry_run(&audit));
}
