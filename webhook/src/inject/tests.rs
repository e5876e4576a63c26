use serde_json::json;

use super::*;
use crate::config::Redirect;

fn config() -> InjectConfig {
    InjectConfig::new("registry.example/weft-proxy:1")
}

fn context() -> Context<'static> {
    Context {
        namespace: "shop",
        native_supported: true,
        ..Context::default()
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "forecast-v1-7d9f-",
            "labels": {"app": "forecast", "version": "v1", "pod-template-hash": "7d9f"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "forecast-v1-7d9f", "uid": "1", "controller": true},
            ],
        },
        "spec": {
            "futureField": {"kept": 1.5},
            "serviceAccountName": "forecast",
            "containers": [{
                "name": "app",
                "image": "forecast:1",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}, "timeoutSeconds": 2},
            }],
            "initContainers": [{"name": "migrate", "image": "migrate:1"}],
        },
    })
}

fn done(pod: &Value) -> Injected {
    inject(pod, &context(), &config()).expect("injects")
}

fn names_of(pod: &Value, list: &str) -> Vec<String> {
    list_at(pod, list).iter().map(|item| name(item).to_owned()).collect()
}

// spec: INJ-050, INJ-002, INJ-003, INJ-124
#[test]
fn native_form_puts_weft_before_the_users_init_containers() {
    let injected = done(&pod());
    assert_eq!(
        names_of(&injected.pod, "spec.initContainers"),
        ["weft-init", "weft-proxy", "migrate"]
    );
    assert_eq!(names_of(&injected.pod, "spec.containers"), ["app"]);
    assert_eq!(injected.pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
    assert_eq!(injected.pod["spec"]["futureField"], json!({"kept": 1.5}));
    let mut patched = pod();
    json_patch::patch(&mut patched, &injected.patch).unwrap();
    assert_eq!(patched, injected.pod);
}

// spec: INJ-120
#[test]
fn injecting_twice_is_injecting_once() {
    let once = done(&pod());
    let twice = done(&once.pod);
    assert_eq!(
        serde_json::to_string(&once.pod).unwrap(),
        serde_json::to_string(&twice.pod).unwrap()
    );
    assert!(twice.patch.0.is_empty());
    assert_eq!(once.key, twice.key);
}

fn with(path: &str, value: Value) -> Value {
    let mut pod = pod();
    let (parent, field) = path.rsplit_once('.').expect("a path");
    object_mut(&mut pod, parent).insert(field.to_owned(), value);
    pod
}

fn annotated(key: &str, value: &str) -> Value {
    with("metadata.annotations", json!({ key: value }))
}

fn proxy(pod: &Value) -> Value {
    let all = list_at(pod, "spec.initContainers")
        .iter()
        .chain(list_at(pod, "spec.containers"));
    all.into_iter()
        .find(|container| name(container) == "weft-proxy")
        .expect("a sidecar")
        .clone()
}

fn variable(pod: &Value, wanted: &str) -> Option<String> {
    let proxy = proxy(pod);
    let found = list_at(&proxy, "env")
        .iter()
        .find(|variable| name(variable) == wanted)?;
    str_at(found, "value").map(str::to_owned)
}

fn volume(pod: &Value, wanted: &str) -> Option<Value> {
    list_at(pod, "spec.volumes")
        .iter()
        .find(|volume| name(volume) == wanted)
        .cloned()
}

fn refusal(pod: &Value) -> String {
    inject(pod, &context(), &config()).expect_err("is refused").to_string()
}

// spec: INJ-063, INJ-066, INJ-067, INJ-068, INJ-080, INJ-095
#[test]
fn what_injection_adds_are_fields_that_kubernetes_knows() {
    let injected = done(&pod()).pod;
    let mut known = pod();
    object_mut(&mut known, "spec").remove("futureField");
    let known = done(&known).pod;
    let typed: k8s_openapi::api::core::v1::Pod = serde_json::from_value(known.clone()).expect("a pod");
    let mut back = serde_json::to_value(typed).expect("serializes");
    for field in ["apiVersion", "kind"] {
        back[field] = known[field].clone();
    }
    // Owner references have required fields that the sample leaves out.
    object_mut(&mut back, "metadata").remove("ownerReferences");
    let mut expected = known;
    object_mut(&mut expected, "metadata").remove("ownerReferences");
    assert_eq!(back, expected);
    assert_eq!(injected["spec"]["futureField"], json!({"kept": 1.5}));
}

// spec: INJ-100, INJ-101, DLV-010, DLV-049, DLV-151
#[test]
fn the_volumes_have_the_names_that_the_operator_will_write() {
    let injected = done(&pod());
    let sources = volume(&injected.pod, "weft-config").expect("configuration")["projected"]["sources"].clone();
    let names: Vec<_> = sources
        .as_array()
        .expect("sources")
        .iter()
        .filter_map(|s| str_at(s, "configMap.name"))
        .collect();
    assert_eq!(
        names,
        [
            key::config_name(&injected.key, 0),
            key::config_name(&injected.key, 1),
            key::endpoints_name("default", "shop", 0),
            key::endpoints_name("default", "shop", 1),
        ]
    );
    let optional =
        |source: &Value| at(source, "configMap.optional") == Some(&json!(true)) || at(source, "downwardAPI").is_some();
    assert!(sources.as_array().expect("sources").iter().all(optional), "{sources}");
    let identity = volume(&injected.pod, "weft-identity").expect("identity");
    assert_eq!(
        identity["secret"],
        json!({"secretName": key::identity_name("forecast"), "defaultMode": 0o444})
    );
    let credentials = volume(&injected.pod, "weft-credentials").expect("credentials");
    assert_eq!(credentials["projected"]["sources"].as_array().map(Vec::len), Some(1));
    assert_eq!(injected.inputs.key(), injected.key);

    let none = InjectConfig {
        tls_shards: Some(0),
        ..config()
    };
    let injected = inject(&pod(), &context(), &none).expect("injects").pod;
    assert_eq!(volume(&injected, "weft-credentials"), None);
    assert!(
        !proxy(&injected)["volumeMounts"]
            .to_string()
            .contains("weft-credentials")
    );
    let gateway = done(&annotated("inject.istio.io/templates", "gateway"));
    let credentials = volume(&gateway.pod, "weft-credentials").expect("credentials");
    let sources = (0..4).map(|n| json!({"secret": {"name": key::credentials_name(&gateway.key, n), "optional": true}}));
    assert_eq!(credentials["projected"]["sources"], sources.collect::<Value>());
    let mounts = &proxy(&gateway.pod)["volumeMounts"];
    let mount =
        json!({"name": "weft-credentials", "mountPath": "/var/run/secrets/weft.dev/credentials", "readOnly": true});
    assert!(
        mounts.as_array().is_some_and(|mounts| mounts.contains(&mount)),
        "{mounts}"
    );
}

// spec: ID-126, INJ-085, INJ-084, INJ-086, INJ-089
#[test]
fn the_users_containers_gain_no_mount_and_wefts_have_no_token() {
    let injected = done(&pod()).pod;
    for container in list_at(&injected, "spec.containers")
        .iter()
        .chain(&list_at(&injected, "spec.initContainers")[2..])
    {
        assert_eq!(container.get("volumeMounts"), None, "{container}");
    }
    for container in &list_at(&injected, "spec.initContainers")[..2] {
        let mounts = list_at(container, "volumeMounts");
        let token = mounts
            .iter()
            .filter(|mount| str_at(mount, "mountPath") == Some(volumes::NO_TOKEN_PATH));
        assert_eq!(token.map(name).collect::<Vec<_>>(), ["weft-no-token"]);
        assert!(mounts.iter().all(|mount| mount.get("subPath").is_none()));
    }
}

// spec: ID-128, INJ-088
#[test]
fn secrets_are_readable_by_the_group_where_the_pod_has_one() {
    let injected = done(&with("spec.securityContext", json!({"fsGroup": 2000}))).pod;
    for name in ["weft-identity", "weft-credentials"] {
        let volume = volume(&injected, name).expect("a volume");
        let mode = at(&volume, "secret.defaultMode").or(at(&volume, "projected.defaultMode"));
        assert_eq!(mode, Some(&json!(0o440)), "{volume}");
    }
    assert_eq!(injected["spec"]["securityContext"], json!({"fsGroup": 2000}));
    assert_eq!(done(&pod()).pod["spec"].get("securityContext"), None);
}

// spec: INJ-061, INJ-054, ID-127
#[test]
fn the_sidecar_fits_pod_security_restricted_and_only_init_is_root() {
    let injected = done(&pod()).pod;
    let init = &list_at(&injected, "spec.initContainers")[0];
    assert_eq!(
        init["securityContext"]["capabilities"],
        json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})
    );
    assert_eq!(
        (
            &init["securityContext"]["runAsUser"],
            &init["securityContext"]["runAsNonRoot"]
        ),
        (&json!(0), &json!(false))
    );
    assert_eq!(
        proxy(&injected)["securityContext"],
        json!({
            "runAsUser": 1337,
            "runAsGroup": 1337,
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        })
    );
    let arguments = init["args"].to_string();
    assert!(
        !arguments.contains("--backend") && !arguments.contains("--reconcile"),
        "{arguments}"
    );
    let legacy = InjectConfig {
        redirect: Redirect {
            backend: "iptables".into(),
            iptables_binary: Some("legacy".into()),
            reconcile: false,
        },
        init_image: Some("registry.example/weft-init-iptables:1".into()),
        ..config()
    };
    let injected = inject(&pod(), &context(), &legacy).expect("injects").pod;
    let init = &list_at(&injected, "spec.initContainers")[0];
    assert_eq!(
        init["securityContext"]["capabilities"]["add"],
        json!(["NET_ADMIN", "NET_RAW"])
    );
    assert!(
        list_at(init, "volumeMounts")
            .iter()
            .any(|mount| name(mount) == "weft-state")
    );
    assert_eq!(init["image"], "registry.example/weft-init-iptables:1");
    let arguments = init["args"].to_string();
    for flags in [
        "\"--backend\",\"iptables\"",
        "\"--iptables-binary\",\"legacy\"",
        "\"--reconcile\",\"false\"",
    ] {
        assert!(arguments.contains(flags), "{flags}: {arguments}");
    }
    assert_eq!(proxy(&injected)["image"], "registry.example/weft-proxy:1");
    let unused = Redirect {
        backend: "nftables".into(),
        ..legacy.redirect.clone()
    };
    let nftables = InjectConfig {
        redirect: unused,
        ..legacy
    };
    let injected = inject(&pod(), &context(), &nftables).expect("injects").pod;
    let init = &list_at(&injected, "spec.initContainers")[0];
    assert_eq!(init["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    let low = done(&annotated("sidecar.istio.io/capNetBindService", "true")).pod;
    assert_eq!(
        proxy(&low)["securityContext"]["capabilities"]["add"],
        json!(["NET_BIND_SERVICE"])
    );
    assert_eq!(proxy(&low)["securityContext"]["runAsUser"], 0);
}

// spec: INJ-052, INJ-058
#[test]
fn the_form_follows_setting_annotation_and_nodes() {
    let form = |pod: &Value, native: NativeSidecar, supported: bool| {
        let context = Context {
            native_supported: supported,
            ..context()
        };
        let injected = inject(
            pod,
            &context,
            &InjectConfig {
                native_sidecar: native,
                ..config()
            },
        )
        .expect("injects");
        proxy(&injected.pod).get("restartPolicy").is_some()
    };
    assert!(form(&pod(), NativeSidecar::Auto, true));
    assert!(!form(&pod(), NativeSidecar::Auto, false));
    assert!(form(&pod(), NativeSidecar::Always, false));
    assert!(!form(&pod(), NativeSidecar::Never, true));
    assert!(form(
        &annotated("weft.dev/native-sidecar", "true"),
        NativeSidecar::Never,
        false
    ));
    assert!(!form(
        &annotated("sidecar.istio.io/nativeSidecar", "false"),
        NativeSidecar::Always,
        true
    ));
    let strange = annotated("weft.dev/native-sidecar", "perhaps");
    assert!(form(&strange, NativeSidecar::Always, true));
    assert!(done(&strange).warnings[0].contains("weft.dev/native-sidecar"));
    let alone = with("spec.containers", json!([{"name": "istio-proxy", "image": "auto"}]));
    assert!(!form(&alone, NativeSidecar::Always, true));
}

// spec: INJ-051, INJ-110, INJ-113, INJ-123
#[test]
fn an_init_container_that_came_after_the_redirect_is_moved_before_it() {
    let container_form = InjectConfig {
        native_sidecar: NativeSidecar::Never,
        hold_application: true,
        ..config()
    };
    let mut pod = inject(&pod(), &context(), &container_form).expect("injects").pod;
    assert_eq!(names_of(&pod, "spec.initContainers"), ["migrate", "weft-init"]);
    list_mut(&mut pod, "spec.initContainers").push(json!({"name": "late", "image": "late:1"}));
    list_mut(&mut pod, "spec.containers").insert(0, json!({"name": "first", "image": "first:1"}));
    let again = inject(&pod, &context(), &container_form).expect("injects").pod;
    assert_eq!(
        names_of(&again, "spec.initContainers"),
        ["migrate", "late", "weft-init"]
    );
    assert_eq!(names_of(&again, "spec.containers"), ["weft-proxy", "first", "app"]);
    let mut native = done(&self::pod()).pod;
    list_mut(&mut native, "spec.initContainers").insert(0, json!({"name": "early", "image": "early:1"}));
    let again = done(&native).pod;
    assert_eq!(
        names_of(&again, "spec.initContainers"),
        ["weft-init", "weft-proxy", "early", "migrate"]
    );
}

// spec: LIFE-009, INJ-110, LIFE-056
#[test]
fn the_application_waits_for_its_proxy_if_asked_to_and_always_in_the_native_form() {
    let of = |native_sidecar, hold_application| {
        let config = InjectConfig {
            native_sidecar,
            hold_application,
            ..config()
        };
        inject(&pod(), &context(), &config).expect("injects").pod
    };
    let waits = json!(["weft-proxy", "wait"]);
    let held = of(NativeSidecar::Never, true);
    assert_eq!(names_of(&held, "spec.containers"), ["weft-proxy", "app"]);
    assert_eq!(proxy(&held)["lifecycle"]["postStart"]["exec"]["command"], waits);
    let free = of(NativeSidecar::Never, false);
    assert_eq!(names_of(&free, "spec.containers"), ["app", "weft-proxy"]);
    assert_eq!(proxy(&free)["lifecycle"]["postStart"], Value::Null);
    assert_eq!(variable(&free, "WEFT_NATIVE_SIDECAR"), None);
    for hold in [true, false] {
        let native = of(NativeSidecar::Always, hold);
        assert_eq!(
            names_of(&native, "spec.initContainers"),
            ["weft-init", "weft-proxy", "migrate"]
        );
        let proxy = proxy(&native);
        assert_eq!(proxy["startupProbe"]["httpGet"]["path"], "/healthz/ready");
        assert_eq!(proxy["lifecycle"]["postStart"], Value::Null);
        assert_eq!(variable(&native, "WEFT_NATIVE_SIDECAR").as_deref(), Some("true"));
    }
}

// spec: LIFE-085
#[test]
fn the_proxy_is_told_whether_the_limit_of_its_processors_is_its_own() {
    let limit_set = |pod: &Value| variable(pod, "WEFT_CPU_LIMIT_SET");
    assert_eq!(limit_set(&done(&pod()).pod).as_deref(), Some("true"));
    // A request alone: what the kubelet gives as the limit is then the node's.
    let unlimited = done(&annotated("weft.dev/proxy-cpu", "100m")).pod;
    assert_eq!(proxy(&unlimited)["resources"], json!({"requests": {"cpu": "100m"}}));
    assert_eq!(limit_set(&unlimited).as_deref(), Some("false"));
    let unlimited = proxy(&unlimited);
    let mut variables = list_at(&unlimited, "env").iter();
    let given = variables.find(|v| name(v) == "WEFT_CPU_LIMIT");
    assert_eq!(
        given.expect("set")["valueFrom"]["resourceFieldRef"]["resource"],
        "limits.cpu"
    );
}

// spec: INJ-065
#[test]
fn preserving_the_qos_class_makes_requests_equal_to_limits() {
    let injected = done(&annotated("weft.dev/preserve-qos", "true")).pod;
    for container in &list_at(&injected, "spec.initContainers")[..2] {
        assert_eq!(container["resources"]["requests"], container["resources"]["limits"]);
    }
}

// spec: INJ-093, INJ-069, INJ-071
#[test]
fn the_proxy_is_told_about_its_pod() {
    let mut named = with("spec.terminationGracePeriodSeconds", json!(45));
    named["metadata"]["labels"]["service.istio.io/workload-name"] = json!("renamed");
    let injected = done(&named);
    assert_eq!(
        variable(&injected.pod, "WEFT_WORKLOAD_NAME").as_deref(),
        Some("renamed")
    );
    let owner = "kubernetes://apis/apps/v1/namespaces/shop/deployments/forecast-v1";
    assert_eq!(variable(&injected.pod, "WEFT_OWNER").as_deref(), Some(owner));
    assert!(injected.key.starts_with("forecast-v1-"), "{}", injected.key);
    assert_eq!(
        variable(&injected.pod, "WEFT_TERMINATION_GRACE_SECONDS").as_deref(),
        Some("45")
    );
    assert_eq!(variable(&injected.pod, "WEFT_CONFIG_KEY"), Some(injected.key));
}

// spec: NET-011, INJ-163, INJ-164, LIFE-084, SM-114
#[test]
fn ports_and_threads_that_are_not_the_defaults_reach_the_proxy() {
    let names = [
        "WEFT_STATUS_PORT",
        "WEFT_OUTBOUND_PORT",
        "WEFT_INBOUND_PORT",
        "WEFT_ADMIN_PORT",
        "WEFT_CONCURRENCY",
    ];
    let of = |pod: &Value, config: &InjectConfig| {
        let injected = inject(pod, &context(), config).expect("injects").pod;
        names.map(|name| variable(&injected, name).unwrap_or_default())
    };
    assert_eq!(of(&pod(), &config()), ["", "", "", "", ""]);
    let arguments = list_at(&done(&pod()).pod, "spec.initContainers")[0]["args"].to_string();
    assert!(
        arguments.contains("\"--outbound-port\",\"15001\",\"--inbound-port\",\"15006\""),
        "{arguments}"
    );
    let mesh = "{proxyListenPort: 16001, proxyInboundListenPort: 16006, defaultConfig: {proxyAdminPort: 16000, concurrency: 3}}";
    let other = InjectConfig::parse("", "proxy: {image: i}", mesh).expect("settings");
    assert_eq!(of(&pod(), &other), ["", "16001", "16006", "16000", "3"]);
    let own = annotated(
        "proxy.istio.io/config",
        "{proxyAdminPort: 17000, concurrency: 0, statusPort: 17020}",
    );
    assert_eq!(of(&own, &other), ["17020", "16001", "16006", "17000", "0"]);
    let injected = inject(&own, &context(), &other).expect("injects").pod;
    let arguments = list_at(&injected, "spec.initContainers")[0]["args"].to_string();
    assert!(
        arguments.contains("\"--outbound-port\",\"16001\",\"--inbound-port\",\"16006\""),
        "{arguments}"
    );
}

// spec: CARD-002
#[test]
fn the_budget_of_label_sets_reaches_the_proxy_where_it_is_set() {
    let of = |values: &str| {
        let config = InjectConfig::parse("proxy: {image: i}", values, "").expect("settings");
        let injected = inject(&pod(), &context(), &config).expect("injects").pod;
        variable(&injected, "WEFT_MAX_SERIES_PER_METRIC")
    };
    assert_eq!(of(""), None, "sidecars and gateways have defaults of their own");
    assert_eq!(of("telemetry: {maxSeriesPerMetric: 70}").as_deref(), Some("70"));
}

// spec: NET-090, NET-091, INJ-070, INJ-173
#[test]
fn dns_capture_is_the_pods_word_else_the_meshs_else_the_charts() {
    let names = ["ISTIO_META_DNS_CAPTURE", "CAPTURE_ALL_DNS"];
    let settings = |values: &str, mesh: &str| InjectConfig::parse("proxy: {image: i}", values, mesh).expect("settings");
    // Both containers are told the same.
    let of = |pod: &Value, config: &InjectConfig| {
        let injected = inject(pod, &context(), config).expect("injects").pod;
        let of_init = |name: &str| {
            let init = list_at(&injected, "spec.initContainers")[0].clone();
            let found = list_at(&init, "env").iter().find(|variable| variable["name"] == name);
            found.and_then(|variable| variable["value"].as_str().map(ToOwned::to_owned))
        };
        names.map(|name| {
            let value = variable(&injected, name);
            assert_eq!(of_init(name), value, "{name}");
            value.unwrap_or_default()
        })
    };
    assert_eq!(of(&pod(), &settings("", "")), ["", ""]);
    let chart = settings("proxy: {dnsCapture: true, captureAllDNS: true}", "");
    assert_eq!(of(&pod(), &chart), ["true", "true"]);
    let on = "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}";
    assert_eq!(of(&pod(), &settings("", on)), ["true", ""]);
    let off = "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false'}}";
    assert_eq!(of(&pod(), &settings("proxy: {dnsCapture: true}", off)), ["false", ""]);
    let own = annotated(
        "proxy.istio.io/config",
        "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}",
    );
    assert_eq!(of(&own, &settings("", off)), ["true", ""]);
}

// spec: INJ-090, INJ-189
#[test]
fn labels_of_the_user_stay() {
    let mut own = pod();
    own["metadata"]["labels"] =
        json!({"service.istio.io/canonical-name": "mine", "security.istio.io/tlsMode": "disabled"});
    let labels = done(&own).pod["metadata"]["labels"].clone();
    assert_eq!(labels["service.istio.io/canonical-name"], "mine");
    assert_eq!(labels["security.istio.io/tlsMode"], "disabled");
    assert_eq!(labels["service.istio.io/canonical-revision"], "latest");
    let gateway = done(&annotated("weft.dev/templates", "gateway")).pod;
    assert_eq!(gateway["metadata"]["labels"].get("security.istio.io/tlsMode"), None);
}

// spec: INJ-122
#[test]
fn probes_of_the_first_pass_are_kept_and_new_ones_added() {
    let once = done(&pod()).pod;
    let before = variable(&once, "WEFT_KUBE_APP_PROBERS").expect("probes");
    assert_eq!(
        serde_json::from_str::<Value>(&before).expect("JSON"),
        json!({"/app-health/app/livez": {"httpGet": {"path": "/live", "port": 8080}, "timeoutSeconds": 2}})
    );
    let mut more = once.clone();
    list_mut(&mut more, "spec.containers").push(json!({"name": "late", "readinessProbe": {"tcpSocket": {"port": 9}}}));
    let after = variable(&done(&more).pod, "WEFT_KUBE_APP_PROBERS").expect("probes");
    assert_eq!(
        serde_json::from_str::<Value>(&after).expect("JSON"),
        json!({
            "/app-health/app/livez": {"httpGet": {"path": "/live", "port": 8080}, "timeoutSeconds": 2},
            "/app-health/late/readyz": {"tcpSocket": {"port": 9}, "timeoutSeconds": 1},
        })
    );
}

// spec: INJ-133, INJ-140, INJ-187
#[test]
fn rewriting_can_be_switched_off() {
    let original = pod()["spec"]["containers"][0]["livenessProbe"].clone();
    for (key, value) in [
        ("weft.dev/rewrite-probes", "false"),
        ("sidecar.istio.io/rewriteAppHTTPProbers", "false"),
        ("status.sidecar.istio.io/port", "0"),
        ("inject.istio.io/templates", "gateway"),
    ] {
        let injected = done(&annotated(key, value)).pod;
        let app = list_at(&injected, "spec.containers")
            .iter()
            .find(|container| name(container) == "app");
        assert_eq!(app.expect("the application")["livenessProbe"], original, "{key}");
        assert_eq!(variable(&injected, "WEFT_KUBE_APP_PROBERS"), None, "{key}");
    }
    let silent = proxy(&done(&annotated("weft.dev/status-port", "0")).pod);
    assert_eq!((silent.get("startupProbe"), silent.get("readinessProbe")), (None, None));
    let config = InjectConfig {
        rewrite_probes: false,
        ..config()
    };
    let on = inject(&annotated("weft.dev/rewrite-probes", "true"), &context(), &config)
        .expect("injects")
        .pod;
    assert_eq!(on["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 15020);
}

// spec: PROM-003, PROM-007, PROM-010, INJ-092
#[test]
fn scrape_annotations_move_unless_told_otherwise() {
    let scraped = |annotations: Value, config: &InjectConfig| {
        let injected = inject(&with("metadata.annotations", annotations), &context(), config)
            .expect("injects")
            .pod;
        let port = injected["metadata"]["annotations"]
            .get("prometheus.io/port")
            .and_then(Value::as_str)
            .map(str::to_owned);
        (port, variable(&injected, "WEFT_PROMETHEUS_SCRAPE"))
    };
    let mut off = config();
    off.mesh.prometheus_merge = false;
    let own = json!({"prometheus.io/port": "9102"});
    let moved = (Some("15020".to_owned()), Some("{\"port\":\"9102\"}".to_owned()));
    assert_eq!(scraped(own.clone(), &config()), moved);
    assert_eq!(scraped(json!({"prometheus_io_port": "9102"}), &config()), moved);
    assert_eq!(scraped(own.clone(), &off), (Some("9102".to_owned()), None));
    let forced = json!({"prometheus.io/port": "9102", "prometheus.istio.io/merge-metrics": "true"});
    assert_eq!(scraped(forced, &off), moved);
    let refused = json!({"prometheus.io/port": "9102", "prometheus.istio.io/merge-metrics": "false"});
    assert_eq!(scraped(refused, &config()), (Some("9102".to_owned()), None));
    let already = json!({"prometheus.io/port": "15020", "prometheus.io/path": "/mine"});
    assert_eq!(scraped(already, &config()), (Some("15020".to_owned()), None));
    assert!(refusal(&annotated("prometheus.io/port", "15090")).starts_with("annotation prometheus.io/port: "));
    assert!(refusal(&annotated("prometheus.io/port", "0")).starts_with("annotation prometheus.io/port: "));
}

// spec: INJ-180, INJ-183, INJ-185, LIFE-028
#[test]
fn overlays_are_merged_with_the_users_values_winning() {
    let overlay = json!([
        {"name": "app", "image": "app:1"},
        {
            "name": "weft-proxy",
            "image": "mine:1",
            "args": ["run", "sidecar", "--verbose"],
            "env": [{"name": "WEFT_CLUSTER_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
            "ports": [{"containerPort": 15090, "name": "metrics"}, {"containerPort": 9}],
            "envFrom": [{"configMapRef": {"name": "more"}}],
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}},
            "restartPolicy": "Never",
        },
    ]);
    let injected = done(&with("spec.containers", overlay)).pod;
    let proxy = proxy(&injected);
    assert_eq!(
        (&proxy["image"], &proxy["restartPolicy"]),
        (&json!("mine:1"), &json!("Always"))
    );
    assert_eq!(proxy["args"], json!(["run", "sidecar", "--verbose"]));
    assert_eq!(
        proxy["lifecycle"],
        json!({"preStop": {"exec": {"command": ["sleep", "1"]}}})
    );
    assert_eq!(proxy["envFrom"], json!([{"configMapRef": {"name": "more"}}]));
    let cluster = list_at(&proxy, "env")
        .iter()
        .find(|variable| name(variable) == "WEFT_CLUSTER_ID");
    assert_eq!(cluster.expect("there").get("value"), None);
    assert_eq!(
        proxy["ports"],
        json!([{"containerPort": 15090, "name": "metrics", "protocol": "TCP"}, {"containerPort": 9}])
    );

    let init = json!([{"name": "weft-init", "image": "auto", "resources": {"limits": {"cpu": "9"}}}]);
    let injected = done(&with("spec.initContainers", init)).pod;
    let init = &list_at(&injected, "spec.initContainers")[0];
    assert_eq!(init["image"], "registry.example/weft-proxy:1");
    assert_eq!(init["resources"]["limits"], json!({"cpu": "9", "memory": "512Mi"}));

    let user =
        json!([{"name": "app"}, {"name": "weft-proxy", "image": "auto", "securityContext": {"runAsUser": 3000}}]);
    let mut tproxy = with("spec.containers", user.clone());
    assert!(
        list_at(&done(&tproxy).pod, "spec.initContainers")[0]["args"]
            .to_string()
            .contains("\"--proxy-uid\",\"3000\"")
    );
    tproxy["metadata"]["annotations"] = json!({"weft.dev/interception-mode": "TPROXY"});
    let injected = done(&tproxy).pod;
    assert_eq!(self::proxy(&injected)["securityContext"]["runAsUser"], 0);
    assert!(
        list_at(&injected, "spec.initContainers")[0]["args"]
            .to_string()
            .contains("\"--proxy-uid\",\"1337\"")
    );
}

// spec: INJ-003, INJ-056, INJ-183, NET-011, NET-131
#[test]
fn with_the_plugin_a_test_of_the_redirect_stands_in_place_of_init() {
    let mut config = config();
    config.cni = true;
    let validation = |pod: &Value, config: &InjectConfig| {
        let injected = inject(pod, &context(), config).expect("injects").pod;
        assert!(!injected.to_string().contains("weft-init"));
        let first = list_at(&injected, "spec.initContainers")[0].clone();
        assert_eq!(first["name"], "weft-validation");
        first
    };
    let plain = validation(&pod(), &config);
    assert_eq!(plain["args"], json!(["validate"]));
    let security = &plain["securityContext"];
    assert_eq!(
        (&security["runAsUser"], &security["runAsGroup"]),
        (&json!(1337), &json!(1337))
    );
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    // In the container form, too, it is in front of the user's.
    let mut form = config.clone();
    form.native_sidecar = NativeSidecar::Never;
    validation(
        &with("spec.initContainers", json!([{"name": "prepare", "image": "a"}])),
        &form,
    );
    // It listens where the proxy would, with the proxy's user.
    let mut moved = config.clone();
    (moved.mesh.outbound_port, moved.mesh.inbound_port) = (16001, 16006);
    assert_eq!(
        validation(&pod(), &moved)["args"],
        json!(["validate", "--outbound-port", "16001", "--inbound-port", "16006"])
    );
    let overlay = json!([{"name": "app"}, {"name": "weft-proxy", "securityContext": {"runAsUser": 3000}}]);
    assert_eq!(
        validation(&with("spec.containers", overlay), &config)["securityContext"]["runAsUser"],
        3000
    );
    let tproxy = validation(&annotated("weft.dev/interception-mode", "TPROXY"), &config);
    assert_eq!(tproxy["args"], json!(["validate", "--interception-mode", "TPROXY"]));
    assert_eq!(tproxy["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    let none = annotated("weft.dev/interception-mode", "NONE");
    let injected = inject(&none, &context(), &config).expect("injects").pod;
    assert_eq!(names_of(&injected, "spec.initContainers"), ["weft-proxy", "migrate"]);
}

// spec: NET-046, INJ-062
#[test]
fn a_proxy_that_runs_as_superuser_is_told_by_its_group_alone() {
    let uid = |annotations: Value| {
        let injected = done(&with("metadata.annotations", annotations)).pod;
        let arguments = list_at(&injected, "spec.initContainers")[0]["args"].clone();
        let arguments = arguments.as_array().expect("a list").clone();
        let flag = arguments.iter().position(|argument| argument == "--proxy-uid");
        arguments[flag.expect("is there") + 1].clone()
    };
    let low = json!({"sidecar.istio.io/capNetBindService": "true"});
    assert_eq!(uid(low), "0");
    let both = json!({"sidecar.istio.io/capNetBindService": "true", "weft.dev/interception-mode": "TPROXY"});
    assert_eq!(uid(both), "1337");
}

// spec: INJ-184, ID-141, INJ-165
#[test]
fn what_would_take_from_the_proxy_is_refused() {
    for path in [
        "/",
        "/etc",
        "/etc/weft/config",
        "/etc/weft/config/x",
        "/run/secrets/weft.dev",
        "/var/../etc//weft/",
        "/var/lib",
    ] {
        let overlay = json!([{"name": "weft-proxy", "volumeMounts": [{"name": "x", "mountPath": path}]}]);
        let message = refusal(&with("spec.containers", overlay));
        assert!(
            message.contains("weft-proxy") && message.contains(path),
            "{path}: {message}"
        );
        let annotation = json!({"x": {"mountPath": path}}).to_string();
        assert!(refusal(&annotated("weft.dev/user-volume-mount", &annotation)).contains(path));
    }
    for name in [
        "weft-identity",
        "weft-credentials",
        "weft-config",
        "weft-state",
        "weft-podinfo",
        "weft-no-token",
    ] {
        let app = json!([{"name": "app", "volumeMounts": [{"name": name, "mountPath": "/x"}]}]);
        let message = refusal(&with("spec.containers", app));
        assert!(message.contains("app") && message.contains(name), "{message}");
        let message = refusal(&with("spec.volumes", json!([{"name": name, "emptyDir": {}}])));
        assert!(message.contains(name), "{message}");
    }
    let twice = with("spec.volumes", json!([{"name": "x", "emptyDir": {}}]));
    let mut twice = twice;
    twice["metadata"]["annotations"] = json!({"weft.dev/user-volume": "{\"x\":{\"emptyDir\":{}}}"});
    assert!(refusal(&twice).starts_with("annotation weft.dev/user-volume: "));
    let once = annotated("weft.dev/user-volume", "{\"x\":{\"emptyDir\":{}}}");
    assert_eq!(
        volume(&done(&once).pod, "x"),
        Some(json!({"name": "x", "emptyDir": {}}))
    );
}

// spec: INJ-188, ID-129, NET-012
#[test]
fn containers_with_the_proxys_user_are_warned_about_or_refused() {
    let app =
        |context: Value| json!([{"name": "app", "securityContext": context, "ports": [{"containerPort": 15001}]}]);
    let warnings = done(&with("spec.containers", app(json!({"runAsUser": 1337})))).warnings;
    assert!(
        warnings[0].contains("container app") && warnings[0].contains("1337"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("15001"), "{warnings:?}");
    let by_pod = with(
        "spec.securityContext",
        json!({"runAsGroup": 1337, "fsGroup": 1337, "supplementalGroups": [1337]}),
    );
    assert_eq!(done(&by_pod).warnings.len(), 2, "one for each container of the pod");
    let strict = InjectConfig {
        strict_isolation: true,
        ..config()
    };
    let refused = |pod: &Value| {
        inject(pod, &context(), &strict)
            .map(|_| ())
            .map_err(|refusal| refusal.to_string())
    };
    let message = refused(&with("spec.containers", app(json!({"runAsUser": 1337})))).expect_err("is refused");
    assert!(
        message.contains("container app") && message.contains("runAsUser: 1337"),
        "{message}"
    );
    let mut shared = with("spec.containers", app(json!({"runAsUser": 0})));
    assert_eq!(refused(&shared), Ok(()));
    shared["spec"]["shareProcessNamespace"] = json!(true);
    assert!(
        refused(&shared)
            .expect_err("is refused")
            .contains("shareProcessNamespace")
    );
}

// spec: INJ-084, INJ-223
#[test]
fn a_pod_without_a_token_is_injected_all_the_same() {
    let injected = done(&with("spec.automountServiceAccountToken", json!(false))).pod;
    assert_eq!(injected["spec"]["automountServiceAccountToken"], false);
    assert!(volume(&injected, "weft-no-token").is_some());
}

// spec: INJ-007, DLV-032, PROM-020
#[test]
fn the_status_names_what_was_added() {
    let pulls = InjectConfig {
        image_pull_secrets: vec!["pull".to_owned()],
        cfg_shards: 3,
        ..config()
    };
    let injected = inject(&pod(), &context(), &pulls).expect("injects");
    let text = injected.pod["metadata"]["annotations"]["weft.dev/status"]
        .as_str()
        .expect("text")
        .to_owned();
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        status,
        json!({
            "initContainers": ["weft-init", "weft-proxy"],
            "containers": [],
            "volumes": ["weft-config", "weft-identity", "weft-credentials", "weft-state", "weft-podinfo", "weft-no-token"],
            "imagePullSecrets": ["pull"],
            "revision": "default",
            "configKey": injected.key,
            "version": env!("CARGO_PKG_VERSION"),
            "statusPort": 15020,
            "cfgShards": 3,
            "epShards": 2,
            "tlsShards": 1,
        })
    );
    assert_eq!(
        injected.pod["metadata"]["annotations"]["sidecar.istio.io/status"].as_str(),
        Some(text.as_str())
    );
    let plain = InjectConfig {
        kiali_annotation: false,
        ..config()
    };
    let plain = inject(&pod(), &context(), &plain).expect("injects").pod;
    assert_eq!(plain["metadata"]["annotations"].get("sidecar.istio.io/status"), None);
}

// spec: INJ-120, INJ-182, INJ-222
#[test]
fn a_copy_of_an_injected_pod_becomes_a_normally_injected_pod() {
    let mut overlaid = pod();
    list_mut(&mut overlaid, "spec.containers").push(json!({"name": "istio-proxy", "image": "auto", "args": ["mine"]}));
    let once = done(&overlaid).pod;
    let mut copy = once.clone();
    copy["metadata"] = json!({"name": "copy", "annotations": once["metadata"]["annotations"].clone()});
    let again = done(&copy);
    assert!(again.key.starts_with("copy-"));
    assert_eq!(proxy(&again.pod)["args"], json!(["mine"]));
    assert_eq!(
        names_of(&again.pod, "spec.initContainers"),
        ["weft-init", "weft-proxy", "migrate"]
    );
    assert_eq!(names_of(&again.pod, "spec.volumes").len(), 6);
}

// spec: INJ-194
#[test]
fn uninject_gives_the_pod_back() {
    let mut original = pod();
    original["metadata"]["annotations"] = json!({"prometheus.io/port": "9102", "example.com/mine": "x"});
    list_mut(&mut original, "spec.containers").push(json!({"name": "weft-proxy", "image": "auto"}));
    let bare = uninject(&done(&original).pod).expect("a pod");
    // A named port comes back as its number: the same probe.
    let mut expected = original["spec"].clone();
    expected["containers"][0]["livenessProbe"]["httpGet"]["port"] = json!(8080);
    assert_eq!(bare["spec"], expected);
    for key in ["prometheus.io/port", "example.com/mine"] {
        assert_eq!(
            bare["metadata"]["annotations"][key],
            original["metadata"]["annotations"][key]
        );
    }
    assert!(
        !bare["metadata"]["annotations"].to_string().contains("weft.dev/"),
        "{bare}"
    );
    assert_eq!(uninject(&pod()).expect("a pod"), pod());
}

// spec: DLV-054
#[test]
fn a_target_that_comes_with_a_copied_manifest_is_dropped() {
    let key = "weft.dev/target-rev";
    let copied = with("metadata.annotations", json!({key: "1,2,3", "kept": "yes"}));
    let injected = done(&copied).pod;
    let annotations = &injected["metadata"]["annotations"];
    assert_eq!((annotations.get(key), &annotations["kept"]), (None, &json!("yes")));
    let config = volume(&injected, "weft-config").expect("a volume");
    let sources = config["projected"]["sources"].to_string();
    assert!(
        sources.contains("metadata.annotations['weft.dev/target-rev']"),
        "{sources}"
    );
}

// spec: ID-032, ID-143
#[test]
fn the_identity_is_a_read_only_directory_of_the_sidecar_and_no_other_anchors_are_mounted() {
    for native in [true, false] {
        let context = Context {
            native_supported: native,
            ..context()
        };
        let injected = inject(&pod(), &context, &config()).expect("injects").pod;
        let mut found = Vec::new();
        for list in ["spec.initContainers", "spec.containers"] {
            for container in list_at(&injected, list) {
                let mounts = list_at(container, "volumeMounts").iter();
                found.extend(
                    mounts
                        .filter(|m| name(m) == "weft-identity")
                        .map(|m| (name(container), m.clone())),
                );
            }
        }
        let mount = json!({"name": "weft-identity", "mountPath": "/var/run/secrets/weft.dev/tls", "readOnly": true});
        assert_eq!(found, [("weft-proxy", mount)]);
        let volumes = injected["spec"]["volumes"].to_string();
        assert!(!volumes.contains("weft-ca-root-cert"), "{volumes}");
    }
}

// spec: INJ-103
#[test]
fn the_native_form_holds_every_later_container_by_the_startup_probe_and_the_other_form_none() {
    let native = done(&pod()).pod;
    assert_eq!(
        names_of(&native, "spec.initContainers"),
        ["weft-init", "weft-proxy", "migrate"],
        "in front of all that the user has"
    );
    let proxy = &list_at(&native, "spec.initContainers")[1];
    // The kubelet starts the next one when this one's startup probe has passed.
    assert_eq!(proxy["restartPolicy"], "Always");
    let probe = json!({"path": "/healthz/ready", "port": 15021});
    for (field, value) in probe.as_object().expect("fields") {
        assert_eq!(proxy["startupProbe"]["httpGet"][field], *value);
    }
    let context = Context {
        native_supported: false,
        ..context()
    };
    let ordinary = inject(&pod(), &context, &config()).expect("injects").pod;
    assert_eq!(names_of(&ordinary, "spec.containers"), ["app", "weft-proxy"]);
    assert_eq!(
        at(&list_at(&ordinary, "spec.containers")[1], "lifecycle.postStart"),
        None
    );
    let hold = InjectConfig {
        hold_application: true,
        ..config()
    };
    let held = inject(&pod(), &context, &hold).expect("injects").pod;
    assert_eq!(names_of(&held, "spec.containers"), ["weft-proxy", "app"]);
    assert!(at(&list_at(&held, "spec.containers")[0], "lifecycle.postStart.exec").is_some());
}
