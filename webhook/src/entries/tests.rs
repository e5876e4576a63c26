use std::collections::BTreeMap;

use super::*;
use crate::decide::{Decision, Namespace, decide};

/// Every value that a key may have, for one side.
type Choices = Vec<(&'static str, Vec<Option<&'static str>>)>;

fn combinations(choices: &Choices) -> Vec<BTreeMap<String, String>> {
    let mut all = vec![BTreeMap::new()];
    for (key, values) in choices {
        all = all
            .into_iter()
            .flat_map(|labels| {
                values.iter().map(move |value| {
                    let mut labels = labels.clone();
                    labels.extend(value.map(|value| ((*key).to_owned(), value.to_owned())));
                    labels
                })
            })
            .collect();
    }
    all
}

fn namespaces() -> Choices {
    vec![
        (
            "weft.dev/inject",
            vec![
                None,
                Some("enabled"),
                Some("true"),
                Some("disabled"),
                Some("false"),
                Some("yes"),
            ],
        ),
        (
            "istio-injection",
            vec![None, Some("enabled"), Some("disabled"), Some("true"), Some("")],
        ),
        ("weft.dev/rev", vec![None, Some("default"), Some("prod"), Some("gone")]),
        ("istio.io/rev", vec![None, Some("canary"), Some("gone")]),
        ("kubernetes.io/metadata.name", vec![Some("shop")]),
    ]
}

fn pods() -> Choices {
    let revisions = || vec![None, Some("default"), Some("canary"), Some("gone")];
    vec![
        (
            "weft.dev/inject",
            vec![None, Some("true"), Some("false"), Some("maybe")],
        ),
        (
            "sidecar.istio.io/inject",
            vec![None, Some("true"), Some("false"), Some("True")],
        ),
        ("weft.dev/rev", revisions()),
        ("istio.io/rev", vec![None, Some("default"), Some("canary")]),
        ("team", vec![None, Some("a")]),
    ]
}

/// The selectors of several injectors, judged for all combinations of labels against the decision that knows both
/// sides. Returns how many combinations are injected.
fn compare(injectors: &[InjectConfig]) -> usize {
    let all: Vec<_> = injectors.iter().map(|config| (config, entries(config))).collect();
    let mut injected = 0;
    for namespace in combinations(&namespaces()) {
        let open: Vec<_> = all
            .iter()
            .map(|(config, entries)| {
                let open: Vec<_> = entries
                    .iter()
                    .filter(|entry| entry.namespace.matches(&namespace))
                    .collect();
                (*config, open)
            })
            .collect();
        for labels in combinations(&pods()) {
            let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
            let mut matches = 0;
            for (config, entries) in &open {
                let matched = entries.iter().filter(|entry| entry.pod.matches(&labels)).count();
                let known = Namespace {
                    name: "shop",
                    labels: Some(&namespace),
                };
                let wanted = matches!(decide(known, &pod, config), Decision::Inject { .. });
                assert_eq!(
                    matched > 0,
                    wanted,
                    "{}: namespace {namespace:?}, pod {labels:?}",
                    config.revision
                );
                if wanted {
                    // What is sent is injected: the handler does not see the namespace.
                    let unknown = Namespace {
                        name: "shop",
                        labels: None,
                    };
                    assert!(matches!(decide(unknown, &pod, config), Decision::Inject { .. }));
                    injected += 1;
                }
                matches += matched;
            }
            assert!(
                matches <= 1,
                "namespace {namespace:?}, pod {labels:?} match {matches} entries"
            );
        }
    }
    injected
}

fn unnamed() -> InjectConfig {
    InjectConfig {
        revision_tags: vec!["default".to_owned()],
        ..InjectConfig::new("i")
    }
}

fn canary() -> InjectConfig {
    InjectConfig {
        revision: "canary".to_owned(),
        revision_tags: vec!["prod".to_owned()],
        ..InjectConfig::new("i")
    }
}

// spec: INJ-006, INJ-014, INJ-020..INJ-032, INJ-033, INJ-035
#[test]
fn the_selectors_say_what_the_table_says_and_never_twice() {
    assert!(compare(&[unnamed(), canary()]) > 10_000);
}

// spec: INJ-011, INJ-015, INJ-027, INJ-028, INJ-033
#[test]
fn settings_change_the_selectors_as_they_change_the_table() {
    let by_default = InjectConfig {
        enabled_by_default: true,
        ..unnamed()
    };
    assert!(compare(&[by_default.clone(), canary()]) > 10_000);
    let own_labels = InjectConfig {
        istio_labels: false,
        ..by_default
    };
    assert!(compare(&[own_labels]) > 1000);
    let always = serde_yaml::from_str("matchLabels: {team: a}").unwrap();
    let always = InjectConfig {
        always_inject: vec![always, LabelSelector::default()],
        ..unnamed()
    };
    assert!(compare(&[always, canary()]) > 10_000);
}

// spec: INJ-040
#[test]
fn excluded_namespaces_match_no_entry() {
    let config = InjectConfig {
        excluded_namespaces: vec!["legacy".to_owned()],
        ..unnamed()
    };
    for name in [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "local-path-storage",
        "weft-system",
        "legacy",
        "shop",
    ] {
        let labels = BTreeMap::from([
            ("kubernetes.io/metadata.name".to_owned(), name.to_owned()),
            ("weft.dev/inject".to_owned(), "enabled".to_owned()),
        ]);
        let matched = entries(&config).iter().any(|entry| entry.namespace.matches(&labels));
        assert_eq!(matched, name == "shop", "{name}");
    }
}

// spec: INJ-005, INJ-006, INJ-046, INJ-121, INJ-200, INJ-206
#[test]
fn the_configuration_asks_about_new_pods_and_fails_closed() {
    let service = Service {
        name: "weft-injector-canary",
        namespace: "weft-system",
    };
    let configuration = configuration(&canary(), service, FailurePolicy::Fail);
    let typed: k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration =
        serde_json::from_value(configuration.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), configuration);
    assert_eq!(typed.metadata.name.as_deref(), Some("weft-injector-canary"));
    let webhooks = typed.webhooks.unwrap();
    assert_eq!(webhooks.len(), entries(&canary()).len());
    let names: std::collections::BTreeSet<_> = webhooks.iter().map(|webhook| webhook.name.clone()).collect();
    assert_eq!(names.len(), webhooks.len());
    for webhook in webhooks {
        assert_eq!(webhook.failure_policy.as_deref(), Some("Fail"));
        assert_eq!(webhook.reinvocation_policy.as_deref(), Some("IfNeeded"));
        assert_eq!(webhook.match_policy.as_deref(), Some("Equivalent"));
        assert_eq!(
            (webhook.timeout_seconds, webhook.side_effects.as_str()),
            (Some(5), "None")
        );
        assert_eq!(webhook.admission_review_versions, ["v1"]);
        assert_eq!(webhook.client_config.ca_bundle, None);
        let service = webhook.client_config.service.unwrap();
        assert_eq!(
            (service.name.as_str(), service.path.as_deref()),
            ("weft-injector-canary", Some("/inject"))
        );
        let rules = serde_json::to_value(webhook.rules.unwrap()).unwrap();
        assert_eq!(
            rules,
            json!([{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                "scope": "Namespaced",
            }])
        );
    }
}

#[test]
fn selectors_are_written_as_kubernetes_reads_them() {
    for entry in entries(&unnamed()) {
        for selector in ["namespaceSelector", "objectSelector"] {
            let json = entry.to_json()[selector].clone();
            let typed: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
                serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::to_value(typed).unwrap(), json);
        }
    }
}
