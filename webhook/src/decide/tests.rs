use serde_json::json;

use super::*;

/// Labels as a test writes them.
type Labels = &'static [(&'static str, &'static str)];

fn config() -> InjectConfig {
    InjectConfig::new("weft-proxy:1")
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn pod(labels: &[(&str, &str)]) -> Value {
    json!({"metadata": {"labels": map(labels)}, "spec": {"containers": [{"name": "app"}]}})
}

/// The decision's word for labels of a namespace and of a pod.
fn word(ns: &[(&str, &str)], labels: &[(&str, &str)], config: &InjectConfig) -> String {
    let ns = map(ns);
    verdict(&decide(
        Namespace {
            name: "shop",
            labels: Some(&ns),
        },
        &pod(labels),
        config,
    ))
}

fn verdict(decision: &Decision) -> String {
    match decision {
        Decision::Inject { .. } => "injected".to_owned(),
        Decision::Skip { reason, .. } => reason.reason().to_owned(),
    }
}

// spec: INJ-045, INJ-047
// spec: INJ-010, INJ-011, INJ-021, INJ-022, INJ-023, INJ-024, INJ-025, INJ-029, INJ-030, INJ-035
#[test]
fn precedence_follows_the_table() {
    const YES: &str = "injected";
    const POD: &str = "pod_says_no";
    const NS: &str = "namespace_says_no";
    const NONE: &str = "not_selected";
    let rows: &[(Labels, Labels, &str)] = &[
        (&[], &[], NONE),
        (&[("weft.dev/inject", "enabled")], &[], YES),
        (&[("weft.dev/inject", "true")], &[], YES),
        (&[("weft.dev/inject", "disabled")], &[], NS),
        (&[("weft.dev/inject", "false")], &[], NS),
        (&[("istio-injection", "enabled")], &[], YES),
        (&[("istio-injection", "disabled")], &[], NS),
        (&[("istio-injection", "true")], &[], NS),
        (&[("istio-injection", "Enabled")], &[], NS),
        (&[("istio-injection", "")], &[], NS),
        // The pod's word, within what the namespace allows.
        (&[("weft.dev/inject", "enabled")], &[("weft.dev/inject", "false")], POD),
        (
            &[("weft.dev/inject", "enabled")],
            &[("sidecar.istio.io/inject", "false")],
            POD,
        ),
        (&[("weft.dev/inject", "disabled")], &[("weft.dev/inject", "true")], NS),
        (&[("weft.dev/inject", "disabled")], &[("weft.dev/rev", "default")], NS),
        (&[], &[("weft.dev/inject", "true")], YES),
        (&[], &[("sidecar.istio.io/inject", "true")], YES),
        (&[], &[("weft.dev/inject", "false"), ("weft.dev/rev", "default")], POD),
        // The worked values of INJ-030.
        (
            &[("weft.dev/inject", "enabled"), ("istio-injection", "disabled")],
            &[],
            YES,
        ),
        (
            &[],
            &[("weft.dev/inject", "false"), ("sidecar.istio.io/inject", "true")],
            POD,
        ),
        (
            &[("istio-injection", "disabled")],
            &[("sidecar.istio.io/inject", "true")],
            NS,
        ),
        (
            &[("istio-injection", "true")],
            &[("sidecar.istio.io/inject", "true")],
            NS,
        ),
        // A revision key alone is an opt-in.
        (&[("weft.dev/rev", "default")], &[], YES),
        (&[("istio.io/rev", "default")], &[], YES),
        (&[], &[("weft.dev/rev", "default")], YES),
        (&[], &[("istio.io/rev", "default")], YES),
        // Invalid values count as unset at their level.
        (&[("weft.dev/inject", "yes")], &[], NONE),
        (&[("weft.dev/inject", "yes"), ("istio-injection", "enabled")], &[], YES),
        (&[], &[("weft.dev/inject", "enabled")], NONE),
        (&[], &[("sidecar.istio.io/inject", "True")], NONE),
        (
            &[],
            &[("weft.dev/inject", "maybe"), ("sidecar.istio.io/inject", "true")],
            YES,
        ),
    ];
    for (ns, labels, expected) in rows {
        assert_eq!(
            word(ns, labels, &config()),
            *expected,
            "namespace {ns:?}, pod {labels:?}"
        );
    }
}

// spec: INJ-010, INJ-035
#[test]
fn values_that_count_as_unset_are_named() {
    let ns = map(&[("weft.dev/inject", "yes"), ("istio-injection", "enabled")]);
    let pod = pod(&[("sidecar.istio.io/inject", "True")]);
    let Decision::Inject { warnings } = decide(
        Namespace {
            name: "shop",
            labels: Some(&ns),
        },
        &pod,
        &config(),
    ) else {
        panic!("istio-injection opts in");
    };
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("weft.dev/inject") && w.contains("\"yes\"")),
        "{warnings:?}"
    );
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("sidecar.istio.io/inject") && w.contains("\"True\"")),
        "{warnings:?}"
    );
}

// spec: INJ-011
#[test]
fn istio_keys_can_be_switched_off() {
    let config = InjectConfig {
        istio_labels: false,
        ..config()
    };
    assert_eq!(word(&[("istio-injection", "enabled")], &[], &config), "not_selected");
    assert_eq!(word(&[("istio.io/rev", "default")], &[], &config), "not_selected");
    assert_eq!(
        word(
            &[("weft.dev/inject", "enabled")],
            &[("sidecar.istio.io/inject", "false")],
            &config
        ),
        "injected"
    );
    assert_eq!(
        word(
            &[("weft.dev/inject", "enabled"), ("istio-injection", "disabled")],
            &[],
            &config
        ),
        "injected"
    );
}

// spec: INJ-012
#[test]
fn only_the_pods_own_labels_count() {
    let ns = map(&[]);
    let deployment_label = json!({"metadata": {}, "spec": {"containers": []}, "labels": {"weft.dev/inject": "true"}});
    let decision = decide(
        Namespace {
            name: "shop",
            labels: Some(&ns),
        },
        &deployment_label,
        &config(),
    );
    assert_eq!(verdict(&decision), "not_selected");
}

// spec: INJ-013
#[test]
fn the_annotation_can_only_opt_out() {
    let annotated = |value: &str, labels: &[(&str, &str)]| {
        let mut pod = pod(labels);
        pod["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": value});
        pod
    };
    let judge = |ns: &[(&str, &str)], pod: &Value| {
        let ns = map(ns);
        verdict(&decide(
            Namespace {
                name: "shop",
                labels: Some(&ns),
            },
            pod,
            &config(),
        ))
    };
    assert_eq!(judge(&[], &annotated("true", &[])), "not_selected");
    assert_eq!(
        judge(&[("istio-injection", "enabled")], &annotated("false", &[])),
        "pod_says_no"
    );
    let label_wins = annotated("false", &[("sidecar.istio.io/inject", "true")]);
    assert_eq!(judge(&[("istio-injection", "enabled")], &label_wins), "injected");
    let label_wins = annotated("true", &[("sidecar.istio.io/inject", "false")]);
    assert_eq!(judge(&[("istio-injection", "enabled")], &label_wins), "pod_says_no");
}

// spec: INJ-014, INJ-031, INJ-032
#[test]
fn revisions_choose_the_injector() {
    let canary = InjectConfig {
        revision: "canary".to_owned(),
        revision_tags: vec!["prod".to_owned()],
        ..config()
    };
    let unnamed = InjectConfig {
        revision_tags: vec!["default".to_owned()],
        ..config()
    };
    let cases: &[(Labels, Labels, &str, &str)] = &[
        (&[("weft.dev/rev", "canary")], &[], "injected", "other_revision"),
        (&[("weft.dev/rev", "prod")], &[], "injected", "other_revision"),
        (&[("weft.dev/rev", "gone")], &[], "other_revision", "other_revision"),
        (&[("weft.dev/inject", "enabled")], &[], "other_revision", "injected"),
        (
            &[("weft.dev/rev", "canary"), ("istio.io/rev", "default")],
            &[],
            "injected",
            "other_revision",
        ),
        (
            &[("weft.dev/rev", "canary")],
            &[("weft.dev/rev", "default")],
            "injected",
            "other_revision",
        ),
        (
            &[("weft.dev/inject", "enabled")],
            &[("weft.dev/rev", "canary")],
            "injected",
            "other_revision",
        ),
        (
            &[("istio-injection", "enabled"), ("istio.io/rev", "canary")],
            &[],
            "other_revision",
            "injected",
        ),
        (
            &[("istio-injection", "enabled")],
            &[("istio.io/rev", "canary")],
            "other_revision",
            "injected",
        ),
    ];
    for (ns, labels, by_canary, by_default) in cases {
        assert_eq!(word(ns, labels, &canary), *by_canary, "canary: {ns:?} {labels:?}");
        assert_eq!(word(ns, labels, &unnamed), *by_default, "default: {ns:?} {labels:?}");
    }
}

// spec: INJ-015, INJ-016, INJ-026, INJ-027, INJ-028
#[test]
fn selectors_and_the_default_come_after_explicit_keys() {
    let selector = |text: &str| serde_yaml::from_str::<crate::selector::LabelSelector>(text).unwrap();
    let config = InjectConfig {
        never_inject: vec![selector("matchLabels: {job: batch}")],
        always_inject: vec![selector(
            "matchExpressions: [{key: team, operator: In, values: [a, b]}]",
        )],
        ..config()
    };
    let enabled: &[(&str, &str)] = &[("weft.dev/inject", "enabled")];
    assert_eq!(word(enabled, &[("job", "batch")], &config), "never_selector");
    assert_eq!(
        word(enabled, &[("job", "batch"), ("weft.dev/inject", "true")], &config),
        "injected"
    );
    assert_eq!(word(&[], &[("team", "a")], &config), "injected");
    assert_eq!(word(&[], &[("team", "a"), ("job", "batch")], &config), "never_selector");
    assert_eq!(word(&[], &[("team", "c")], &config), "not_selected");
    let by_default = InjectConfig {
        enabled_by_default: true,
        ..config
    };
    assert_eq!(word(&[], &[("team", "c")], &by_default), "injected");
    assert_eq!(word(&[], &[("weft.dev/inject", "false")], &by_default), "pod_says_no");
    let nothing = InjectConfig {
        always_inject: vec![selector("{}")],
        ..InjectConfig::new("i")
    };
    assert_eq!(word(&[], &[("team", "a")], &nothing), "not_selected");
}

// spec: INJ-001, INJ-020, INJ-040, INJ-041, INJ-042, INJ-043, INJ-044
#[test]
fn some_pods_are_never_injected_whatever_they_say() {
    let config = InjectConfig {
        excluded_namespaces: vec!["legacy".to_owned()],
        ..config()
    };
    let yes = map(&[("weft.dev/inject", "enabled")]);
    let judge = |namespace: &str, pod: &Value| {
        verdict(&decide(
            Namespace {
                name: namespace,
                labels: Some(&yes),
            },
            pod,
            &config,
        ))
    };
    let willing = pod(&[("weft.dev/inject", "true")]);
    for namespace in [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "local-path-storage",
        "weft-system",
        "legacy",
    ] {
        assert_eq!(judge(namespace, &willing), "excluded_namespace", "{namespace}");
    }
    let with = |path: &str, value: Value| {
        let mut pod = willing.clone();
        *pod.pointer_mut(path).expect("there") = value;
        pod
    };
    let spec = |extra: Value| {
        let mut spec = json!({"containers": [{"name": "app"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with("/spec", spec)
    };
    let annotated = |key: &str| {
        let mut pod = willing.clone();
        pod["metadata"]["annotations"] = json!({key: "x"});
        pod
    };
    let rows = [
        (spec(json!({"hostNetwork": true})), "host_network"),
        (spec(json!({"hostNetwork": false})), "injected"),
        (spec(json!({"os": {"name": "windows"}})), "windows"),
        (
            spec(json!({"nodeSelector": {"kubernetes.io/os": "windows"}})),
            "windows",
        ),
        (annotated("kubernetes.io/config.mirror"), "mirror_pod"),
        (annotated("sidecar.istio.io/status"), "other_mesh"),
        (annotated("linkerd.io/proxy-version"), "other_mesh"),
        (
            spec(json!({"containers": [{"name": "istio-proxy", "image": "other/proxyv2:1"}]})),
            "other_mesh",
        ),
        (
            spec(json!({"containers": [{"name": "istio-proxy", "image": "auto"}]})),
            "injected",
        ),
        (
            spec(json!({"initContainers": [{"name": "linkerd-proxy", "image": "x"}]})),
            "other_mesh",
        ),
    ];
    for (pod, expected) in rows {
        assert_eq!(judge("shop", &pod), expected, "{pod}");
    }
    let mut ours = annotated("sidecar.istio.io/status");
    ours["metadata"]["annotations"]["weft.dev/status"] = json!("{}");
    assert_eq!(judge("shop", &ours), "injected");
}

// spec: INJ-020, INJ-021, INJ-026, INJ-040
#[test]
fn without_the_namespaces_labels_the_webhooks_selectors_stand_for_them() {
    let config = InjectConfig {
        never_inject: vec![serde_yaml::from_str("matchLabels: {job: batch}").unwrap()],
        ..config()
    };
    let judge = |namespace: &str, labels: &[(&str, &str)]| {
        verdict(&decide(
            Namespace {
                name: namespace,
                labels: None,
            },
            &pod(labels),
            &config,
        ))
    };
    assert_eq!(judge("shop", &[]), "injected");
    assert_eq!(judge("shop", &[("weft.dev/inject", "false")]), "pod_says_no");
    assert_eq!(judge("shop", &[("job", "batch")]), "never_selector");
    assert_eq!(
        judge("kube-system", &[("weft.dev/inject", "true")]),
        "excluded_namespace"
    );
}
