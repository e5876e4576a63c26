use super::*;
use serde_json::{Value, json};
use weft_sidecar::init::Cidr;

/// As the injector leaves it.
fn injected() -> Value {
    json!({
        "metadata": {"name": "cart", "namespace": "shop", "annotations": {
            STATUS_ANNOTATION: "{}",
            "weft.dev/include-inbound-ports": "*",
            "weft.dev/exclude-inbound-ports": "15020,15021,15090",
            "weft.dev/include-outbound-ports": "",
            "weft.dev/exclude-outbound-ports": "",
            "weft.dev/include-outbound-cidrs": "*",
            "weft.dev/exclude-outbound-cidrs": "",
            "weft.dev/exclude-interfaces": "",
            "weft.dev/interception-mode": "REDIRECT",
        }},
        "spec": {
            "initContainers": [
                {"name": "weft-validation"},
                {"name": "weft-proxy", "env": [], "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            ],
            "containers": [{"name": "app"}],
        },
    })
}

fn of(change: impl FnOnce(&mut Value)) -> Result<Decision, Invalid> {
    let mut pod = injected();
    change(&mut pod);
    decide(&serde_json::from_value(pod).expect("a pod"))
}

fn arguments(change: impl FnOnce(&mut Value)) -> Arguments {
    match of(change) {
        Ok(Decision::Redirect(arguments)) => *arguments,
        other => panic!("no redirect: {other:?}"),
    }
}

fn annotate(pod: &mut Value, key: &str, value: &str) {
    pod["metadata"]["annotations"][key] = json!(value);
}

fn variable(pod: &mut Value, name: &str, value: &str) {
    let all = pod["spec"]["initContainers"][1]["env"].as_array_mut().expect("a list");
    all.push(json!({"name": name, "value": value}));
}

fn ports<const N: usize>(ports: [u16; N]) -> Ports {
    Ports::Listed(ports.into())
}

// spec: NET-133
#[test]
fn only_sidecars_without_an_init_of_their_own_are_redirected() {
    arguments(|_| {});
    // In the container form, too.
    arguments(|pod| {
        let proxy = pod["spec"]["initContainers"].as_array_mut().expect("a list").pop();
        pod["spec"]["containers"].as_array_mut().expect("a list").extend(proxy);
    });
    arguments(|pod| pod["metadata"]["labels"] = json!({"weft.dev/inject": "true", "app": "cart"}));
    type Change = fn(&mut Value);
    let left: [(&str, Change); 7] = [
        ("not injected", |pod| {
            pod["metadata"]["annotations"]
                .as_object_mut()
                .expect("a map")
                .remove(STATUS_ANNOTATION);
        }),
        ("no annotations", |pod| pod["metadata"]["annotations"] = Value::Null),
        ("no proxy", |pod| pod["spec"]["initContainers"] = Value::Null),
        ("a gateway", |pod| annotate(pod, "inject.istio.io/templates", "gateway")),
        ("weft-init", |pod| {
            pod["spec"]["initContainers"][0]["name"] = json!("weft-init")
        }),
        ("mode", |pod| annotate(pod, "weft.dev/interception-mode", "NONE")),
        ("node's network", |pod| pod["spec"]["hostNetwork"] = json!(true)),
    ];
    for (what, change) in left {
        let decided = of(change).expect("decided");
        assert!(matches!(decided, Decision::Leave(_)), "{what}: {decided:?}");
    }
}

// spec: NET-133
#[test]
fn inject_keys_count_as_for_the_injector_and_not_where_the_pod_waits_for_a_redirect() {
    let (weft, istio) = ("weft.dev/inject", "sidecar.istio.io/inject");
    for (labels, annotations, is_left) in [
        (&[(weft, "false")][..], &[][..], true),
        (&[(istio, "false")], &[], true),
        (&[], &[(istio, "false")], true),
        (&[(weft, "perhaps")], &[(istio, "false")], true),
        (&[(weft, "false"), (istio, "true")], &[], true),
        (&[(weft, "true"), (istio, "false")], &[], false),
        (&[(weft, "true")], &[(istio, "false")], false),
        (&[(istio, "true")], &[(istio, "false")], false),
        // Neither is a key of pods.
        (&[(weft, "disabled")], &[], false),
        (&[], &[(weft, "false")], false),
    ] {
        let marked = |pod: &mut Value| {
            for (key, value) in labels {
                pod["metadata"]["labels"][key] = json!(value);
            }
            for (key, value) in annotations {
                annotate(pod, key, value);
            }
        };
        arguments(marked);
        let decided = of(|pod| {
            marked(pod);
            pod["spec"]["initContainers"][0]["name"] = json!("other");
        });
        let decided = decided.expect("decided");
        assert_eq!(
            matches!(decided, Decision::Leave(_)),
            is_left,
            "{labels:?} {annotations:?}"
        );
    }
}

// spec: NET-133, NET-134
#[test]
fn without_its_annotation_the_mode_is_the_one_in_the_proxy_s_environment() {
    let of_mode = |value: &str| {
        of(|pod| {
            let annotations = pod["metadata"]["annotations"].as_object_mut().expect("a map");
            annotations.remove("weft.dev/interception-mode");
            annotations.insert("sidecar.istio.io/interceptionMode".to_owned(), json!("REDIRECT"));
            variable(pod, "WEFT_INTERCEPTION_MODE", value);
        })
    };
    assert!(matches!(of_mode("NONE"), Ok(Decision::Leave(_))));
    let mode = |decided: Result<Decision, Invalid>| match decided {
        Ok(Decision::Redirect(arguments)) => arguments.interception_mode,
        other => panic!("no redirect: {other:?}"),
    };
    assert_eq!(mode(of_mode("TPROXY")), Mode::Tproxy);
    assert_eq!(mode(of_mode("REDIRECT")), Mode::Redirect);
    let said = of_mode("none").expect_err("is refused").to_string();
    assert!(
        said.contains("WEFT_INTERCEPTION_MODE: \"none\"; must be REDIRECT"),
        "{said}"
    );
    // The annotation is the injector's word, too.
    let read = arguments(|pod| variable(pod, "WEFT_INTERCEPTION_MODE", "TPROXY"));
    assert_eq!(read.interception_mode, Mode::Redirect);
}

// spec: NET-134
#[test]
fn a_variable_whose_value_the_api_server_dropped_is_empty() {
    let empty = |pod: &mut Value, name: &str| {
        let all = pod["spec"]["initContainers"][1]["env"].as_array_mut().expect("a list");
        all.push(json!({"name": name}));
    };
    let read = arguments(|pod| {
        variable(pod, "ISTIO_META_DNS_CAPTURE", "true");
        empty(pod, "ISTIO_META_DNS_CAPTURE");
        empty(pod, "INVALID_DROP");
    });
    assert!(!read.dns_capture && !read.drop_invalid);
    let said = of(|pod| empty(pod, "WEFT_INBOUND_PORT"))
        .expect_err("is no port")
        .to_string();
    assert!(said.contains("WEFT_INBOUND_PORT: \"\"; must be a number"), "{said}");
}

// spec: NET-134, INJ-094
#[test]
fn what_is_captured_is_what_the_injector_wrote() {
    let read = arguments(|pod| {
        annotate(pod, "weft.dev/include-inbound-ports", "80, 443");
        annotate(pod, "weft.dev/exclude-inbound-ports", "22,15020");
        annotate(pod, "weft.dev/include-outbound-ports", "9000");
        annotate(pod, "weft.dev/exclude-outbound-ports", "3306");
        annotate(pod, "weft.dev/include-outbound-cidrs", "10.0.0.0/8,fd00::/8");
        annotate(pod, "weft.dev/exclude-outbound-cidrs", "10.1.0.0/16");
        annotate(pod, "weft.dev/exclude-interfaces", "net1, net2");
    });
    assert_eq!(read.inbound_ports, ports([80, 443]));
    assert_eq!(read.exclude_inbound_ports, ports([22, 15020]));
    assert_eq!(read.outbound_ports, ports([9000]));
    assert_eq!(read.exclude_outbound_ports, ports([3306]));
    let cidr = |address: &str, prefix| Cidr {
        address: address.parse().expect("an address"),
        prefix,
    };
    assert_eq!(
        read.outbound_cidrs,
        Cidrs::Listed([cidr("10.0.0.0", 8), cidr("fd00::", 8)].into())
    );
    assert_eq!(
        read.exclude_outbound_cidrs,
        Cidrs::Listed([cidr("10.1.0.0", 16)].into())
    );
    assert_eq!(read.exclude_interfaces, ["net1", "net2"]);
    let read = arguments(|_| {});
    assert_eq!((read.inbound_ports, read.outbound_cidrs), (Ports::All, Cidrs::All));
    assert_eq!(read.interception_mode, Mode::Redirect);
    let read = arguments(|pod| annotate(pod, "weft.dev/interception-mode", "TPROXY"));
    assert_eq!(read.interception_mode, Mode::Tproxy);
}

// spec: NET-134, NET-140, NET-110
#[test]
fn the_proxy_s_environment_is_read_too() {
    let read = arguments(|_| {});
    assert!(!read.dns_capture && !read.drop_invalid);
    let read = arguments(|pod| {
        variable(pod, "ISTIO_META_DNS_CAPTURE", "false");
        variable(pod, "ISTIO_META_DNS_CAPTURE", "true");
        variable(pod, "CAPTURE_ALL_DNS", "false");
        variable(pod, "INVALID_DROP", "true");
        variable(pod, "WEFT_STATUS_PORT", "16020");
        variable(pod, "WEFT_OUTBOUND_PORT", "16001");
        variable(pod, "WEFT_INBOUND_PORT", "16006");
    });
    // The pod's resolver is not to be seen from the node.
    assert!(read.dns_capture && read.capture_all_dns && read.drop_invalid);
    assert_eq!(
        (read.status_port, read.outbound_port, read.inbound_port),
        (16020, 16001, 16006)
    );
}

// spec: NET-134, NET-046
#[test]
fn the_proxy_is_told_by_its_own_ids_and_root_counts_as_the_default() {
    let ids = |change: &dyn Fn(&mut Value)| {
        let read = arguments(change);
        (read.proxy_uid, read.proxy_gid)
    };
    let context = |pod: &mut Value, context: Value| pod["spec"]["initContainers"][1]["securityContext"] = context;
    assert_eq!(ids(&|_| {}), (1337, 1337));
    assert_eq!(ids(&|pod| context(pod, Value::Null)), (1337, 1337));
    assert_eq!(
        ids(&|pod| context(pod, json!({"runAsUser": 2000, "runAsGroup": 3000}))),
        (2000, 3000)
    );
    // The pod's word where the container has none.
    let shared = |pod: &mut Value| {
        context(pod, json!({"runAsUser": 2000}));
        pod["spec"]["securityContext"] = json!({"runAsUser": 5, "runAsGroup": 4000});
    };
    assert_eq!(ids(&shared), (2000, 4000));
    let root = |pod: &mut Value| {
        context(pod, json!({"runAsUser": 0, "runAsGroup": 0}));
        annotate(pod, "weft.dev/interception-mode", "TPROXY");
    };
    assert_eq!(ids(&root), (1337, 1337));
    // Without TPROXY the steps for its user would let its self-calls go: its group alone.
    assert_eq!(
        ids(&|pod| context(pod, json!({"runAsUser": 0, "runAsGroup": 1337}))),
        (0, 1337)
    );
}

// spec: NET-134, INJ-153, INJ-154, INJ-155, INJ-156, INJ-157, INJ-172
#[test]
fn every_bad_value_is_named_at_once() {
    let bad = [
        ("weft.dev/exclude-inbound-ports", "*"),
        ("weft.dev/exclude-interfaces", "a/b"),
        ("weft.dev/exclude-outbound-cidrs", "*"),
        ("weft.dev/exclude-outbound-ports", "80-90"),
        ("weft.dev/include-inbound-ports", "0"),
        ("weft.dev/include-outbound-cidrs", "10.0.0.1"),
        ("weft.dev/include-outbound-ports", "65536"),
        ("weft.dev/interception-mode", "redirect"),
    ];
    for (key, value) in bad {
        let said = of(|pod| annotate(pod, key, value)).expect_err("is refused").to_string();
        assert!(said.starts_with(&format!("annotation {key}: ")), "{said}");
    }
    let refused = of(|pod| {
        for (key, value) in bad {
            annotate(pod, key, value);
        }
        variable(pod, "ISTIO_META_DNS_CAPTURE", "perhaps");
        variable(pod, "INVALID_DROP", "perhaps");
        variable(pod, "WEFT_INBOUND_PORT", "0");
    });
    let Invalid(said) = refused.expect_err("is refused");
    assert_eq!(said.len(), bad.len() + 3, "{said:#?}");
    assert!(said.is_sorted());
    for (key, _) in bad {
        assert!(said.iter().any(|line| line.contains(key)), "{key}: {said:#?}");
    }
    let unseen = of(|pod| {
        let all = pod["spec"]["initContainers"][1]["env"].as_array_mut().expect("a list");
        all.push(json!({"name": "INVALID_DROP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}));
    });
    assert!(unseen.expect_err("is refused").to_string().contains("INVALID_DROP"));
}
