use super::*;

fn review(kind: &Value, operation: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "u-1", "kind": kind, "operation": operation, "namespace": "shop", "object": object},
    })
}

fn pod() -> Value {
    json!({"metadata": {"name": "app"}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}})
}

fn inject(object: &Value) -> Answer {
    let review = review(&json!({"group": "", "version": "v1", "kind": "Pod"}), "CREATE", object);
    Request::new(&review)
        .expect("a review")
        .inject(&InjectConfig::new("weft-proxy:1"), true)
}

// spec: INJ-017, INJ-046, INJ-125
#[test]
fn only_new_pods_are_touched() {
    let pods = json!({"group": "", "version": "v1", "kind": "Pod"});
    let others = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    for (kind, operation) in [(&pods, "UPDATE"), (&pods, "DELETE"), (&others, "CREATE")] {
        let review = review(kind, operation, &pod());
        let answer = Request::new(&review)
            .expect("a review")
            .inject(&InjectConfig::new("i"), true);
        assert_eq!(answer.review["response"]["allowed"], true, "{kind} {operation}");
        assert_eq!(answer.review["response"].get("patch"), None, "{kind} {operation}");
        assert_eq!(answer.review["response"]["uid"], "u-1");
    }
    let mut review = review(&pods, "CREATE", &pod());
    review["request"]["subResource"] = json!("ephemeralcontainers");
    let answer = Request::new(&review)
        .expect("a review")
        .inject(&InjectConfig::new("i"), true);
    assert_eq!(answer.outcome, Outcome::Skipped("not_a_new_pod"));
}

// spec: INJ-126
#[test]
fn a_dry_run_gets_the_same_patch() {
    let mut dry = review(&json!({"version": "v1", "kind": "Pod"}), "CREATE", &pod());
    dry["request"]["dryRun"] = json!(true);
    let dry = Request::new(&dry)
        .expect("a review")
        .inject(&InjectConfig::new("weft-proxy:1"), true);
    assert_eq!(dry, inject(&pod()));
    assert!(patch_of(&dry.review).expect("a patch").is_some());
}

// spec: INJ-195, INJ-126
#[test]
fn a_dry_run_of_a_deployment_shows_it_as_it_is() {
    let deployment =
        json!({"metadata": {"name": "app"}, "spec": {"template": {"metadata": {}, "spec": pod()["spec"]}}});
    let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    let dry = |kind: &Value, object: &Value| {
        let mut review = review(kind, "CREATE", object);
        review["request"]["dryRun"] = json!(true);
        let request = Request::new(&review).expect("a review");
        request.inject(&InjectConfig::new("weft-proxy:1"), true)
    };
    let answer = dry(&kind, &deployment);
    assert_eq!(answer.review["response"]["allowed"], true);
    assert_eq!(answer.review["response"].get("patch"), None);
    let answer = dry(&json!({"group": "", "version": "v1", "kind": "Pod"}), &pod());
    assert!(patch_of(&answer.review).expect("a patch").is_some());
    // The API server asks about new pods alone, and about dry runs since there are no side effects.
    let service = crate::entries::Service {
        name: "weft-injector",
        namespace: "weft-system",
    };
    let config = InjectConfig::new("weft-proxy:1");
    let asked = crate::entries::configuration(&config, service, crate::entries::FailurePolicy::Fail);
    for webhook in asked["webhooks"].as_array().expect("webhooks") {
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["rules"][0]["resources"], json!(["pods"]));
        assert_eq!(webhook["rules"].as_array().map(Vec::len), Some(1));
    }
}

// spec: INJ-150, INJ-172
#[test]
fn a_refusal_says_why_with_code_400() {
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({"weft.dev/proxy-cpu": "lots"});
    let answer = inject(&wrong);
    let response = &answer.review["response"];
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(400))
    );
    let message = response["status"]["message"].as_str().expect("text");
    assert!(
        message.starts_with("annotation weft.dev/proxy-cpu: \"lots\" is not a quantity"),
        "{message}"
    );
    assert_eq!(answer.outcome, Outcome::Failed("annotations"));
}

// spec: INJ-041, INJ-128
#[test]
fn warnings_are_few_and_short() {
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let warnings = inject(&host).review["response"]["warnings"].clone();
    assert_eq!(
        warnings,
        json!(["no sidecar: the pod uses the node's network (hostNetwork: true)"])
    );

    let mut noisy = pod();
    let annotations = (0..20).map(|n| (format!("weft.dev/unheard-of-{n:02}-{}", "x".repeat(150)), json!("x")));
    noisy["metadata"]["annotations"] = Value::Object(annotations.collect());
    let answer = inject(&noisy);
    let warnings = answer.review["response"]["warnings"]
        .as_array()
        .expect("warnings")
        .clone();
    assert_eq!(warnings.len(), 10);
    assert_eq!(warnings[9], "11 more");
    assert!(
        warnings
            .iter()
            .all(|line| line.as_str().is_some_and(|line| line.chars().count() <= 120))
    );
    let patch = patch_of(&answer.review).expect("a patch").expect("one");
    let mut patched = noisy;
    json_patch::patch(&mut patched, &patch).expect("it fits");
    let kept = patched["metadata"]["annotations"]["weft.dev/injection-warnings"]
        .as_str()
        .expect("the same text")
        .to_owned();
    assert_eq!(
        kept.lines().collect::<Vec<_>>(),
        warnings.iter().filter_map(Value::as_str).collect::<Vec<_>>()
    );
}

// spec: INJ-210
#[test]
fn an_internal_error_answers_with_the_uid() {
    let review = review(&json!({}), "CREATE", &pod());
    let response = Request::new(&review).expect("a review").internal_error().review["response"].clone();
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(500))
    );
    assert_eq!(response["uid"], "u-1");
}

fn validate(object: &Value) -> Value {
    let review = review(&json!({}), "CREATE", object);
    Request::new(&review).expect("a review").validate().review["response"].clone()
}

fn virtual_service(route: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "forecast", "namespace": "shop"},
        "spec": {"hosts": ["forecast"], "http": [{"route": route}]},
    })
}

// spec: OPS-034
#[test]
fn a_refused_resource_is_told_field_and_fix() {
    let route = json!([{"destination": {"host": "forecast"}, "weight": 50}, {"destination": {"host": "forecast"}, "weight": -1}]);
    let response = validate(&virtual_service(&route));
    assert_eq!(
        (&response["allowed"], &response["status"]["code"]),
        (&json!(false), &json!(422))
    );
    let message = response["status"]["message"].as_str().expect("text");
    assert!(message.contains("spec.http[0].route[1].weight"), "{message}");

    let response = validate(&virtual_service(&json!([{"destination": {"host": 5}}])));
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().expect("text");
    assert!(message.contains("spec.http[0].route[0].destination.host"), "{message}");
}

// spec: OPS-034, OPS-174
#[test]
fn valid_resources_unknown_kinds_and_deletions_pass() {
    assert_eq!(
        validate(&virtual_service(&json!([{"destination": {"host": "forecast"}}])))["allowed"],
        true
    );
    assert_eq!(
        validate(&json!({"apiVersion": "v1", "kind": "Secret"}))["allowed"],
        true
    );
    assert_eq!(validate(&json!([1, 2]))["allowed"], true);
    let mut leaving = virtual_service(&json!([{"destination": {"host": 5}}]));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(validate(&leaving)["allowed"], true);
    let mut surplus = virtual_service(&json!([{"destination": {"host": "forecast"}}]));
    surplus["spec"]["htttp"] = json!([]);
    let response = validate(&surplus);
    assert_eq!(response["allowed"], true);
    assert!(
        response["warnings"][0]
            .as_str()
            .expect("a warning")
            .contains("spec.htttp"),
        "{response}"
    );
}

// spec: OPS-023, NET-011
#[test]
fn the_mesh_config_is_validated_where_it_is_stored() {
    let config_map = |name: &str, mesh: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"mesh": mesh}});
    assert_eq!(
        validate(&config_map("weft", "trustDomain: example.org"))["allowed"],
        true
    );
    let response = validate(&config_map("weft-canary", "proxyListenPort: 15006"));
    assert_eq!(response["allowed"], false);
    assert!(
        response["status"]["message"]
            .as_str()
            .expect("text")
            .starts_with("data.mesh: "),
        "{response}"
    );
    assert_eq!(validate(&config_map("weft", "a: ["))["allowed"], false);
    assert_eq!(
        validate(&config_map("other", "proxyListenPort: 15006"))["allowed"],
        true
    );
}
