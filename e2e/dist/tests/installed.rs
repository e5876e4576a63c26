//! What `config/base` installs: who may do what, and how the injector runs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

/// All objects of the base.
fn objects() -> Vec<Value> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/base");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(base).expect("reads") {
        let text = std::fs::read_to_string(entry.expect("reads").path()).expect("reads");
        for document in text.split("\n---\n") {
            let object: Value = serde_yaml::from_str(document).expect("is YAML");
            if object["metadata"].is_object() {
                all.push(object);
            }
        }
    }
    assert!(all.len() > 20);
    all
}

fn find<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let is_it = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("{kind} {name}"))
}

/// One permission: verb on resource, as `group/resource`; where only some names are meant, `group/resource:name`.
type Right = (String, String);

/// What the roles that are bound to a service account of the control plane grant: in the whole cluster, and in the
/// control plane's namespace alone.
fn rights(objects: &[Value], account: &str) -> [BTreeSet<Right>; 2] {
    [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")].map(|(binding, role)| {
        let mut all = BTreeSet::new();
        for bound in objects.iter().filter(|o| o["kind"] == binding && binds(o, account)) {
            assert_eq!(bound["roleRef"]["kind"], role, "{bound}");
            if role == "Role" {
                assert_eq!(bound["metadata"]["namespace"], "weft-system");
            }
            let role = find(objects, role, text(&bound["roleRef"]["name"]));
            for rule in list(&role["rules"]) {
                assert_eq!(rule.get("nonResourceURLs"), None);
                let names = list(&rule["resourceNames"]);
                for (group, resource) in product(&rule["apiGroups"], &rule["resources"]) {
                    let whole = format!("{group}/{resource}");
                    let what: Vec<String> = if names.is_empty() {
                        vec![whole]
                    } else {
                        names.iter().map(|name| format!("{whole}:{}", text(name))).collect()
                    };
                    for verb in list(&rule["verbs"]) {
                        all.extend(what.iter().map(|what| (text(verb).to_owned(), what.clone())));
                    }
                }
            }
        }
        all
    })
}

fn binds(binding: &Value, account: &str) -> bool {
    list(&binding["subjects"])
        .iter()
        .any(|subject| subject["name"] == account)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn product<'v>(groups: &'v Value, resources: &'v Value) -> impl Iterator<Item = (&'v str, &'v str)> {
    let resources = list(resources);
    list(groups)
        .iter()
        .flat_map(move |group| resources.iter().map(move |resource| (text(group), text(resource))))
}

const READ: [&str; 3] = ["get", "list", "watch"];

fn is_read(right: &Right) -> bool {
    READ.contains(&right.0.as_str())
}

// spec: DLV-140
#[test]
fn nothing_is_granted_to_anybody_but_the_control_plane() {
    let objects = objects();
    let mut bindings = 0;
    for binding in objects.iter().filter(|o| text(&o["kind"]).ends_with("RoleBinding")) {
        bindings += 1;
        for subject in list(&binding["subjects"]) {
            // No group: neither all service accounts nor everybody.
            assert_eq!(
                (&subject["kind"], &subject["namespace"]),
                (&json!("ServiceAccount"), &json!("weft-system")),
                "{binding}"
            );
            assert!(
                ["weft-operator", "weft-injector"].contains(&text(&subject["name"])),
                "{binding}"
            );
        }
    }
    assert!(bindings >= 3);
    // A role that adds itself to one that everybody has would grant as much.
    for role in objects.iter().filter(|o| o["kind"] == "ClusterRole") {
        for (label, _) in role["metadata"]["labels"].as_object().into_iter().flatten() {
            let aggregated = label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-");
            assert!(
                aggregated.is_none_or(|to| ["view", "edit", "admin"].contains(&to)),
                "{label}"
            );
        }
    }
}

// spec: DLV-141
#[test]
fn the_injector_reads_what_injection_needs_and_writes_nothing() {
    let [cluster, own] = rights(&objects(), "weft-injector");
    let reads = |what: &str| READ.map(|verb| (verb.to_owned(), what.to_owned()));
    let expected: BTreeSet<Right> = ["networking.istio.io/proxyconfigs", "/nodes"]
        .into_iter()
        .flat_map(reads)
        .collect();
    assert_eq!(cluster, expected);
    let allowed = [
        "/configmaps:weft-injector",
        "/configmaps:weft",
        "/secrets:weft-injector-tls",
    ];
    for right in own {
        assert!(is_read(&right) && allowed.contains(&right.1.as_str()), "{right:?}");
    }
}

// spec: DLV-142
#[test]
fn the_operator_reads_what_bundles_are_made_of_and_nothing_of_containers() {
    let [cluster, _] = rights(&objects(), "weft-operator");
    for (group, resources) in [
        ("", "namespaces nodes pods services serviceaccounts configmaps secrets"),
        ("discovery.k8s.io", "endpointslices"),
        ("apps", "deployments replicasets statefulsets daemonsets"),
        ("batch", "jobs cronjobs"),
        ("networking.k8s.io", "ingresses ingressclasses"),
        (
            "networking.istio.io",
            "virtualservices destinationrules gateways serviceentries sidecars workloadentries workloadgroups proxyconfigs",
        ),
        (
            "security.istio.io",
            "peerauthentications requestauthentications authorizationpolicies",
        ),
        ("telemetry.istio.io", "telemetries"),
        (
            "gateway.networking.k8s.io",
            "gatewayclasses gateways httproutes grpcroutes tlsroutes tcproutes referencegrants backendtlspolicies",
        ),
        ("weft.dev", "meshes"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations validatingwebhookconfigurations",
        ),
    ] {
        for resource in resources.split(' ') {
            for verb in READ {
                let right = (verb.to_owned(), format!("{group}/{resource}"));
                assert!(cluster.contains(&right), "{right:?}");
            }
        }
    }
    for (verb, what) in &cluster {
        let is_of_containers = [
            "exec",
            "attach",
            "log",
            "portforward",
            "proxy",
            "token",
            "ephemeralcontainers",
        ]
        .iter()
        .any(|sub| what.ends_with(&format!("/{sub}")));
        assert!(!is_of_containers && !what.contains('*'), "{verb} {what}");
    }
}

// spec: DLV-143
#[test]
fn the_operator_writes_what_it_renders_status_and_trust_and_nothing_else() {
    let [cluster, own] = rights(&objects(), "weft-operator");
    let may_write = |(verb, what): &Right| {
        let verbs: &[&str] = match what.as_str() {
            "/configmaps" | "/secrets" => &["create", "patch", "delete"],
            "/events" | "events.k8s.io/events" => &["create", "patch"],
            "weft.dev/meshes" => &["create"],
            "admissionregistration.k8s.io/mutatingwebhookconfigurations:weft-injector"
            | "admissionregistration.k8s.io/validatingwebhookconfigurations:weft-validator"
            | "/pods/status"
            | "networking.k8s.io/ingresses/status" => &["patch"],
            other => {
                let group = other.split('/').next().unwrap_or_default();
                let mesh = ["istio.io", "weft.dev", "gateway.networking.k8s.io"];
                let is_mesh = mesh.iter().any(|suffix| group.ends_with(suffix));
                if is_mesh && other.ends_with("/status") {
                    &["patch"]
                } else {
                    &[]
                }
            }
        };
        verbs.contains(&verb.as_str())
    };
    let writes: BTreeSet<&Right> = cluster.iter().filter(|right| !is_read(right)).collect();
    for right in &writes {
        assert!(may_write(right), "{right:?}");
    }
    for (verb, what) in [
        ("create", "/configmaps"),
        ("patch", "/secrets"),
        ("delete", "/configmaps"),
        ("patch", "/pods/status"),
        ("patch", "networking.istio.io/virtualservices/status"),
        ("patch", "security.istio.io/peerauthentications/status"),
        ("patch", "networking.k8s.io/ingresses/status"),
        ("create", "/events"),
        ("create", "weft.dev/meshes"),
    ] {
        assert!(writes.contains(&(verb.to_owned(), what.to_owned())), "{verb} {what}");
    }
    // Leases of its own namespace, those that exist by name.
    let names = ["weft-operator", "weft-ca", "weft-status"];
    for (verb, what) in &own {
        let is_named = names
            .iter()
            .any(|name| *what == format!("coordination.k8s.io/leases:{name}"));
        assert!(
            is_named || (verb == "create" && what == "coordination.k8s.io/leases"),
            "{verb} {what}"
        );
    }
    assert!(own.contains(&(
        "update".to_owned(),
        "coordination.k8s.io/leases:weft-operator".to_owned()
    )));
}

// spec: INJ-203
#[test]
fn two_injectors_run_on_different_nodes_and_one_always_stays() {
    let objects = objects();
    let deployment = &find(&objects, "Deployment", "weft-injector")["spec"];
    let labels = json!({"app.kubernetes.io/name": "weft-injector", "weft.dev/rev": "default"});
    assert_eq!(deployment["replicas"], 2);
    let pod = &deployment["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    let apart = &pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(
        apart["podAffinityTerm"],
        json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}})
    );
    let budget = &find(&objects, "PodDisruptionBudget", "weft-injector")["spec"];
    assert_eq!(
        (&budget["minAvailable"], &budget["selector"]["matchLabels"]),
        (&json!(1), &labels)
    );
    // The Service leads to all of them: nobody is elected.
    let service = &find(&objects, "Service", "weft-injector")["spec"];
    assert_eq!(service["selector"], labels);
    let pod_labels = deployment["template"]["metadata"]["labels"]
        .as_object()
        .expect("labels");
    assert!(
        labels
            .as_object()
            .into_iter()
            .flatten()
            .all(|(k, v)| pod_labels.get(k) == Some(v))
    );
    let [cluster, own] = rights(&objects, "weft-injector");
    assert!(cluster.iter().chain(&own).all(|(_, what)| !what.contains("leases")));
}
