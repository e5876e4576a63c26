use serde_json::json;

use super::*;

fn facts(annotations: &serde_json::Value) -> Facts {
    let pod = json!({
        "metadata": {"name": "p-0", "namespace": "n", "uid": "u", "labels": {"app": "a"}, "annotations": annotations},
        "spec": {"serviceAccountName": "sa", "containers": []},
    });
    Facts {
        pod: serde_json::from_value(pod).expect("pod"),
        address: "10.99.0.7".parse().expect("address"),
        node: "local".into(),
        host_address: "10.99.0.1".parse().expect("address"),
    }
}

fn container(value: serde_json::Value) -> Container {
    serde_json::from_value(value).expect("container")
}

// spec: LOC-011
#[test]
fn a_program_is_found_in_three_ways_in_order() {
    let commands = Commands::from([("weft-app".to_owned(), vec!["/opt/app".to_owned()])]);
    let pod = facts(&json!({"local.weft.dev/command.c": "sh -c 'echo \"a b\"' x\\ y"})).pod;
    let by_image = container(json!({"name": "c", "image": "reg:5000/x/weft-app:dev", "args": ["serve"]}));
    assert_eq!(
        command(&by_image, &pod, &commands).expect("image"),
        ["/opt/app", "serve"]
    );
    let named = container(json!({"name": "c", "image": "weft-app@sha256:0", "command": ["app", "serve"]}));
    assert_eq!(command(&named, &pod, &commands).expect("image"), ["/opt/app", "serve"]);
    let other = container(json!({"name": "c", "image": "other:1"}));
    assert_eq!(
        command(&other, &pod, &commands).expect("annotation"),
        ["sh", "-c", "echo \"a b\"", "x y"]
    );
    let bare = facts(&json!({})).pod;
    let own = container(json!({"name": "c", "image": "other", "command": ["sh", "-c"], "args": ["true"]}));
    assert_eq!(command(&own, &bare, &commands).expect("own"), ["sh", "-c", "true"]);
    let error = command(&other, &bare, &commands).expect_err("none").to_string();
    for part in ["other:1", "weft-local.yaml", "local.weft.dev/command.c", "command"] {
        assert!(error.contains(part), "{error}");
    }
}

// spec: LOC-012
#[test]
fn the_environment_comes_from_fields_contents_and_earlier_variables() {
    let contents = Contents::from([
        (
            (ContentKind::ConfigMap, "n".into(), "m".into()),
            Files::from([("k".into(), b"v".to_vec())]),
        ),
        (
            (ContentKind::Secret, "n".into(), "s".into()),
            Files::from([("k".into(), b"w".to_vec())]),
        ),
    ]);
    let c = container(json!({"name": "c", "resources": {"limits": {"cpu": "1500m"}}, "env": [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(NONE)-$$(A)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "O", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k", "optional": true}}},
    ], "envFrom": [{"prefix": "X_", "configMapRef": {"name": "m"}}]}));
    let env: BTreeMap<_, _> = environment(&c, &facts(&json!({})), &contents)
        .expect("environment")
        .into_iter()
        .collect();
    let expected = [
        ("A", "1"),
        ("B", "1-$(NONE)-$(A)"),
        ("POD", "p-0"),
        ("IP", "10.99.0.7"),
        ("APP", "a"),
        ("CPU", "2"),
        ("M", "v"),
        ("S", "w"),
        ("X_k", "v"),
    ];
    for (name, value) in expected {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!env.contains_key("O"));
    assert!(!env.contains_key("CARGO"), "the host's environment is not passed on");
    let needs = container(json!({"name": "c", "envFrom": [{"secretRef": {"name": "gone"}}]}));
    let error = environment(&needs, &facts(&json!({})), &contents)
        .expect_err("missing")
        .to_string();
    assert!(
        error.contains("Secret gone") && error.contains("container c"),
        "{error}"
    );
}

// spec: LOC-004
#[test]
fn a_projected_volume_joins_its_sources() {
    let contents = Contents::from([(
        (ContentKind::ConfigMap, "n".into(), "m".into()),
        Files::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]),
    )]);
    let v: Volume = serde_json::from_value(json!({"name": "v", "projected": {"sources": [
        {"configMap": {"name": "m", "items": [{"key": "a", "path": "x"}]}},
        {"configMap": {"name": "gone", "optional": true}},
        {"downwardAPI": {"items": [{"path": "rev", "fieldRef": {"fieldPath": "metadata.annotations['weft.dev/target-rev']"}}]}},
    ]}}))
    .expect("volume");
    let files = volume(&v, &facts(&json!({"weft.dev/target-rev": "t"})), &contents)
        .expect("files")
        .expect("some");
    assert_eq!(
        files,
        Files::from([("x".into(), b"1".to_vec()), ("rev".into(), b"t".to_vec())])
    );
    let v: Volume = serde_json::from_value(json!({"name": "v", "configMap": {"name": "gone"}})).expect("volume");
    assert!(matches!(
        volume(&v, &facts(&json!({})), &contents),
        Err(Pending::Missing { .. })
    ));
}

// spec: LOC-019
#[test]
fn what_no_process_can_have_is_named() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "hostNetwork": true}})).expect("pod");
    assert!(
        check_supported(&pod)
            .expect_err("host")
            .to_string()
            .contains("spec.hostNetwork")
    );
    let pod: Pod = serde_json::from_value(
        json!({"spec": {"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
    )
    .expect("pod");
    assert!(
        check_supported(&pod)
            .expect_err("path")
            .to_string()
            .contains("spec.volumes[0].hostPath")
    );
}

// spec: INJ-054, INJ-156
#[test]
fn the_proxys_program_takes_what_the_injector_writes() {
    use clap::Parser;
    let all = json!({
        "weft.dev/include-inbound-ports": "8080, 9090",
        "weft.dev/exclude-inbound-ports": "9443",
        "weft.dev/include-outbound-cidrs": "10.96.0.1/12,fd00::/108",
        "weft.dev/exclude-outbound-cidrs": "10.96.0.10/32",
        "weft.dev/include-outbound-ports": "25",
        "weft.dev/exclude-outbound-ports": "5432",
        "weft.dev/exclude-interfaces": "eth1, net0",
        "weft.dev/status-port": "19020",
    });
    let none = json!({"weft.dev/include-inbound-ports": "", "weft.dev/include-outbound-cidrs": ""});
    for annotations in [json!({}), json!({"weft.dev/interception-mode": "TPROXY"}), all, none] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "annotations": annotations},
            "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        });
        let context = weft_webhook::Context {
            namespace: "n",
            native_supported: true,
            ..weft_webhook::Context::default()
        };
        let config = weft_webhook::InjectConfig::new("weft-proxy:1");
        let injected = weft_webhook::inject(&pod, &context, &config).expect("injects").pod;
        let containers = injected["spec"]["initContainers"].as_array().expect("the native form");
        assert_eq!(containers.len(), 2, "{injected}");
        for container in containers {
            let texts = |list: &serde_json::Value| -> Vec<String> {
                let items = list.as_array().into_iter().flatten();
                items.filter_map(|item| item.as_str().map(ToOwned::to_owned)).collect()
            };
            let mut line = vec!["weft-proxy".to_owned()];
            line.extend(texts(&container["args"]));
            // The environment is this test's; what names the mode has a flag as well.
            let mode = container["env"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|v| v["name"] == "WEFT_INTERCEPTION_MODE");
            line.extend(mode.map(|mode| format!("--interception-mode={}", mode["value"].as_str().unwrap_or_default())));
            if let Err(problem) = weft_sidecar::arguments::Arguments::try_parse_from(&line) {
                panic!("{annotations}: {line:?}: {problem}");
            }
        }
    }
}
