use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn inputs(labels: &BTreeMap<String, String>, ports: &[ContainerPort]) -> KeyInputs {
    KeyInputs::new(&PodShape {
        namespace: "default",
        workload: "forecast-v1",
        service_account: "",
        revision: "",
        labels,
        annotations: &map(&[("prometheus.io/scrape", "true")]),
        ports,
        interception: InterceptionMode::Redirect,
        template: Template::Sidecar,
        ignored_labels: &[],
    })
}

// spec: DLV-010, DLV-011, INJ-100
#[test]
fn template_pod_and_injected_pod_have_one_key() {
    let template = map(&[("app", "forecast"), ("version", "v1")]);
    let mut pod = template.clone();
    pod.insert("pod-template-hash".into(), "6d4b75cb6d".into());
    pod.insert("topology.kubernetes.io/zone".into(), "a".into());
    let injected = injected_labels(&pod, "forecast-v1", Template::Sidecar);
    let key = inputs(&template, &[]).key();
    assert_eq!(inputs(&pod, &[]).key(), key);
    assert_eq!(inputs(&injected, &[]).key(), key);
    assert!(
        key.starts_with("forecast-v1-") && key.len() == "forecast-v1-".len() + 10,
        "{key}"
    );
}

// spec: DLV-010
#[test]
fn ports_change_the_key_and_their_order_does_not() {
    let labels = map(&[("app", "a")]);
    let port = |port| ContainerPort {
        name: String::new(),
        port,
        protocol: "TCP".into(),
    };
    let ab = inputs(&labels, &[port(1), port(2)]).key();
    assert_eq!(inputs(&labels, &[port(2), port(1)]).key(), ab);
    assert_ne!(inputs(&labels, &[port(1)]).key(), ab);
}

// spec: DLV-010
#[test]
fn whatever_changes_the_configuration_makes_another_key() {
    let (labels, none) = (map(&[("app", "a")]), map(&[]));
    let config = map(&[("proxy.istio.io/config", "concurrency: 2")]);
    let base = PodShape {
        namespace: "shop",
        workload: "cart",
        service_account: "cart",
        revision: "default",
        labels: &labels,
        annotations: &none,
        ports: &[],
        interception: InterceptionMode::Redirect,
        template: Template::Sidecar,
        ignored_labels: &[],
    };
    let key = |shape: PodShape<'_>| KeyInputs::new(&shape).key();
    let other_labels = map(&[("app", "b")]);
    let others = [
        PodShape {
            namespace: "other",
            ..base
        },
        PodShape {
            workload: "other",
            ..base
        },
        PodShape {
            service_account: "other",
            ..base
        },
        PodShape {
            revision: "canary",
            ..base
        },
        PodShape {
            labels: &other_labels,
            ..base
        },
        PodShape {
            annotations: &config,
            ..base
        },
        PodShape {
            interception: InterceptionMode::Tproxy,
            ..base
        },
        PodShape {
            template: Template::Gateway,
            ..base
        },
    ];
    let mut keys: Vec<String> = others.map(key).into();
    keys.push(key(base));
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 9, "{keys:?}");
    // Other annotations say nothing to a proxy.
    let scraped = map(&[("prometheus.io/scrape", "true")]);
    assert_eq!(
        key(PodShape {
            annotations: &scraped,
            ..base
        }),
        key(base)
    );
}

// spec: DLV-011
#[test]
fn labels_of_one_pod_among_its_like_are_left_out_and_no_others() {
    let ignored = ["team.example/build".to_owned()];
    let key = |labels: &BTreeMap<String, String>| {
        let shape = PodShape {
            namespace: "shop",
            workload: "cart",
            service_account: "",
            revision: "",
            labels,
            annotations: &map(&[]),
            ports: &[],
            interception: InterceptionMode::Redirect,
            template: Template::Sidecar,
            ignored_labels: &ignored,
        };
        KeyInputs::new(&shape).key()
    };
    let labels = map(&[("tier", "web")]);
    let with = |name: &str| {
        let mut all = labels.clone();
        all.insert(name.to_owned(), "x".to_owned());
        key(&all)
    };
    for name in [
        "pod-template-hash",
        "rollouts-pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "job-name",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/anything",
        "team.example/build",
    ] {
        assert_eq!(with(name), key(&labels), "{name}");
    }
    for name in [
        "app",
        "app.kubernetes.io/name",
        "version",
        "team.example/other",
        "topology.example/zone",
        "appliance",
        "job",
    ] {
        assert_ne!(with(name), key(&labels), "{name}");
    }
}

// spec: DLV-010
#[test]
fn a_long_workload_name_is_cut_and_trimmed() {
    let mut inputs = inputs(&map(&[]), &[]);
    inputs.workload = format!("{}-tail", "a".repeat(39));
    let key = inputs.key();
    assert!(key.starts_with(&format!("{}-", "a".repeat(39))), "{key}");
    assert_eq!(key.len(), 39 + 1 + 10);
}

// spec: INJ-071
#[test]
fn workload_names_follow_the_controller() {
    let hash = map(&[("pod-template-hash", "6d4b75cb6d")]);
    let owner = |kind, name| Some(Owner { kind, name });
    let name = |owner, labels: &BTreeMap<String, String>| workload_name(owner, labels, "pod-1", "");
    assert_eq!(
        name(owner("ReplicaSet", "web-6d4b75cb6d"), &hash),
        ("Deployment".into(), "web".into())
    );
    assert_eq!(
        name(owner("ReplicaSet", "web-other"), &hash),
        ("ReplicaSet".into(), "web-other".into())
    );
    assert_eq!(
        name(owner("Job", "tick-29112345"), &map(&[])),
        ("CronJob".into(), "tick".into())
    );
    assert_eq!(name(owner("Job", "tick-1"), &map(&[])), ("Job".into(), "tick-1".into()));
    assert_eq!(
        name(owner("StatefulSet", "db"), &map(&[])),
        ("StatefulSet".into(), "db".into())
    );
    assert_eq!(name(None, &map(&[])), ("Pod".into(), "pod-1".into()));
    assert_eq!(
        workload_name(None, &map(&[]), "", "debug-"),
        ("Pod".into(), "debug".into())
    );
    // The same pod once the API server has made up its name.
    assert_eq!(
        workload_name(None, &map(&[]), "debug-x7k2p", "debug-"),
        ("Pod".into(), "debug".into())
    );
    let rollout = map(&[("rollouts-pod-template-hash", "abc")]);
    assert_eq!(
        name(owner("ReplicaSet", "web-abc"), &rollout),
        ("Rollout".into(), "web".into())
    );
}

// spec: INJ-090, INJ-189
#[test]
fn injection_adds_labels_and_changes_none() {
    let labels = map(&[("app.kubernetes.io/name", "shop"), ("version", "v7")]);
    let out = injected_labels(&labels, "w", Template::Sidecar);
    assert_eq!(out[CANONICAL_NAME_LABEL], "shop");
    assert_eq!(out[CANONICAL_REVISION_LABEL], "v7");
    assert_eq!(out[TLS_MODE_LABEL], "istio");
    assert!(!injected_labels(&labels, "w", Template::Gateway).contains_key(TLS_MODE_LABEL));
    let own = map(&[(TLS_MODE_LABEL, "disabled"), (CANONICAL_NAME_LABEL, "x")]);
    let out = injected_labels(&own, "w", Template::Sidecar);
    assert_eq!(
        (out[TLS_MODE_LABEL].as_str(), out[CANONICAL_NAME_LABEL].as_str()),
        ("disabled", "x")
    );
    assert_eq!(out[CANONICAL_REVISION_LABEL], "latest");
}

// spec: DLV-003, DLV-004, DLV-006, DLV-016, DLV-152, ID-022, ID-023
#[test]
fn object_names() {
    assert_eq!(config_name("web-abc", 0), "weft-cfg-web-abc-0");
    let (a, b) = (endpoints_name("default", "a", 0), endpoints_name("default", "b", 0));
    assert_ne!(a, b);
    assert_eq!(a.len(), "weft-ep-default-".len() + 8 + 2);
    // From SHA-256, so that they are the same everywhere.
    assert_eq!(endpoints_name("canary", "shop", 1), "weft-ep-canary-rwiaduzm-1");
    assert_eq!(credential_stem("shop", "cert"), "41ea69e4cb9e2fb3");
    assert_eq!(identity_name("default"), "weft.default");
    let long = identity_name(&"s".repeat(253));
    assert!(long.len() <= 253 && long.starts_with("weft.sss"), "{long}");
}

// spec: SM-007
#[test]
fn canonical_names_come_from_the_first_label_that_is_there() {
    let all = [
        ("service.istio.io/canonical-name", "own"),
        ("app.kubernetes.io/name", "kube"),
        ("app", "app"),
        ("service.istio.io/canonical-revision", "r1"),
        ("app.kubernetes.io/version", "r2"),
        ("version", "r3"),
    ];
    for (skip, name) in [(0, "own"), (1, "kube"), (2, "app"), (3, "workload")] {
        assert_eq!(canonical_name(&map(&all[skip..3]), "workload"), name);
    }
    for (skip, revision) in [(3, "r1"), (4, "r2"), (5, "r3"), (6, "latest")] {
        assert_eq!(canonical_revision(&map(&all[skip..])), revision);
    }
}
