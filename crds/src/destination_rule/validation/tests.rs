#![expect(clippy::needless_pass_by_value, reason = "json! gives values")]

use serde_json::{Value, json};

use super::*;

fn report(spec: Value) -> Report {
    let spec: DestinationRuleSpec = serde_json::from_value(spec).expect("spec");
    let mut rule = DestinationRule::new("x", spec);
    rule.metadata.namespace = Some("shop".into());
    rule.validate()
}

fn paths(spec: Value) -> Vec<String> {
    report(spec).errors.into_iter().map(|e| e.path).collect()
}

fn policy(policy: Value) -> Vec<String> {
    let all = paths(json!({"host": "a", "trafficPolicy": policy}));
    all.into_iter()
        .map(|p| p.trim_start_matches("spec.trafficPolicy.").to_owned())
        .collect()
}

// spec: DR-001, DR-015, DR-018, DR-020, DR-026
#[test]
fn structure() {
    assert_eq!(paths(json!({})), ["spec.host"]);
    assert_eq!(paths(json!({"host": "http://x"})), ["spec.host"]);
    assert_eq!(paths(json!({"host": "a", "trafficPolicy": {}})), ["spec.trafficPolicy"]);
    assert_eq!(
        policy(json!({"portLevelSettings": [{"tls": {"mode": "DISABLE"}}]})),
        ["portLevelSettings[0].port"]
    );
    assert_eq!(
        policy(json!({"portLevelSettings": [{"port": {"number": 80}}]})),
        ["portLevelSettings[0]"]
    );
    let subsets = json!([{"name": "v1"}, {"name": "v1"}, {"name": "V_2"}]);
    assert_eq!(
        paths(json!({"host": "a", "subsets": subsets})),
        ["spec.subsets[1].name", "spec.subsets[2].name"]
    );
    for bad in ["", "V2", "v.2", "-v", &"v".repeat(64)] {
        let subsets = json!([{"name": bad}]);
        assert_eq!(
            paths(json!({"host": "a", "subsets": subsets})),
            ["spec.subsets[0].name"],
            "{bad}"
        );
    }
    let selector = json!({"matchLabels": {"app": "*"}});
    let errors = paths(json!({"host": "a", "workloadSelector": selector, "exportTo": ["*"]}));
    assert_eq!(errors, ["spec.workloadSelector.matchLabels[app]", "spec.exportTo[0]"]);
    for (to, is_own) in [(".", true), ("shop", true), ("other", false), ("*", false)] {
        let selector = json!({"matchLabels": {"app": "a"}});
        let errors = paths(json!({"host": "a", "workloadSelector": selector, "exportTo": [to]}));
        assert_eq!(errors.is_empty(), is_own, "{to}");
    }
    for (key, value) in [("", "a"), ("a*", "b"), ("a", "b*")] {
        let selector = json!({"matchLabels": {key: value}});
        assert_eq!(
            paths(json!({"host": "a", "workloadSelector": selector})).len(),
            1,
            "{key}={value}"
        );
    }
    assert!(paths(json!({"host": "*.shop.svc.cluster.local", "exportTo": ["."]})).is_empty());
}

// spec: SM-071, SM-124
#[test]
fn visibility_and_dry_run() {
    for bad in [
        json!(["a", "a"]),
        json!([".", "shop"]),
        json!(["*", "a"]),
        json!(["~"]),
        json!(["A/b"]),
    ] {
        assert_eq!(paths(json!({"host": "a", "exportTo": bad.clone()})).len(), 1, "{bad}");
    }
    let spec: DestinationRuleSpec = serde_json::from_value(json!({"host": "a"})).expect("spec");
    let mut rule = DestinationRule::new("x", spec);
    rule.metadata.annotations = Some([("istio.io/dry-run".to_owned(), "true".to_owned())].into());
    assert_eq!(rule.validate().errors.len(), 1);
}

// spec: DR-033, DR-034, DR-040, DR-044, DR-047, DR-051
#[test]
fn load_balancers() {
    let balancer = |value| policy(json!({"loadBalancer": value}));
    assert_eq!(balancer(json!({"simple": "FASTEST"})), ["loadBalancer.simple"]);
    for simple in [
        "UNSPECIFIED",
        "LEAST_CONN",
        "RANDOM",
        "PASSTHROUGH",
        "ROUND_ROBIN",
        "LEAST_REQUEST",
    ] {
        assert!(balancer(json!({"simple": simple})).is_empty(), "{simple}");
    }
    let both = json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}});
    assert_eq!(balancer(both), ["loadBalancer.consistentHash"]);
    let hash = |value| balancer(json!({"consistentHash": value}));
    assert_eq!(
        hash(json!({"useSourceIp": true, "httpHeaderName": "x"})),
        ["loadBalancer.consistentHash"]
    );
    assert!(hash(json!({"useSourceIp": false, "httpHeaderName": "x"})).is_empty());
    assert_eq!(
        hash(json!({"httpQueryParameterName": "x", "httpCookie": {"name": "c"}})),
        ["loadBalancer.consistentHash"]
    );
    assert_eq!(
        hash(json!({"httpCookie": {"ttl": "0s"}})),
        ["loadBalancer.consistentHash.httpCookie.name"]
    );
    let twice = json!({"httpCookie": {"name": "c", "attributes": [{"name": "a"}, {"name": "a"}]}});
    assert_eq!(
        hash(twice),
        ["loadBalancer.consistentHash.httpCookie.attributes[1].name"]
    );
    let size = "loadBalancer.consistentHash.maglev.tableSize";
    for bad in [
        json!({}),
        json!({"tableSize": 0}),
        json!({"tableSize": 1024}),
        json!({"tableSize": 5_000_011}),
    ] {
        assert_eq!(hash(json!({"useSourceIp": true, "maglev": bad})), [size]);
    }
    assert!(hash(json!({"useSourceIp": true, "maglev": {"tableSize": 65537}})).is_empty());
    for other in [
        json!({"minimumRingSize": 5, "ringHash": {}}),
        json!({"minimumRingSize": 5, "maglev": {"tableSize": 7}}),
    ] {
        assert_eq!(hash(other), ["loadBalancer.consistentHash.minimumRingSize"]);
    }
    let warmup = json!({"warmup": {"minimumPercent": 101, "aggression": 0}});
    assert_eq!(balancer(warmup).len(), 3);
}

// spec: DR-060, DR-062, DR-064
#[test]
fn localities() {
    let locality = |value: Value| policy(json!({"loadBalancer": {"localityLbSetting": value}, "outlierDetection": {}}));
    assert_eq!(locality(json!({"failover": [{"from": "a", "to": "a"}]})).len(), 1);
    assert_eq!(locality(json!({"failover": [{"from": "a/b", "to": "c"}]})).len(), 1);
    for bad in [
        json!({"from": "a", "to": "b/c"}),
        json!({"from": "*", "to": "b"}),
        json!({"from": "a", "to": "b*"}),
    ] {
        assert_eq!(locality(json!({"failover": [bad]})).len(), 1, "{bad}");
    }
    for (label, is_place) in [
        ("topology.kubernetes.io/region", true),
        ("topology.kubernetes.io/zone", true),
        ("topology.istio.io/subzone", true),
        ("topology.kubernetes.io/zone=z", true),
        ("version", false),
    ] {
        let both = json!({"failover": [{"from": "a", "to": "b"}], "failoverPriority": [label]});
        assert_eq!(locality(both).len(), usize::from(is_place), "{label}");
        assert!(locality(json!({"failoverPriority": [label]})).is_empty(), "{label}");
    }
    assert_eq!(
        locality(json!({"distribute": [{"from": "a", "to": {"a": 60, "b": 30}}]})).len(),
        1
    );
    assert_eq!(
        locality(json!({"distribute": [{"from": "a", "to": {"a": 0, "b": 100}}]})).len(),
        1
    );
    assert_eq!(
        locality(json!({"distribute": [{"from": "*/b", "to": {"a": 100}}]})).len(),
        1
    );
    let apart = json!({"distribute": [{"from": "us-east/*", "to": {"us-east": 40, "us-east1": 60}},
        {"from": "us-east1/*", "to": {"us-east/a": 40, "us-east/ab": 60}}]});
    assert!(locality(apart).is_empty());
    let within = json!({"distribute": [{"from": "a", "to": {"a": 50, "a/b": 50}}]});
    assert_eq!(locality(within), ["loadBalancer.localityLbSetting.distribute[0].to[1]"]);
    let overlap = json!({"distribute": [{"from": "a/*", "to": {"a": 100}}, {"from": "a/b", "to": {"a": 100}}]});
    assert_eq!(locality(overlap).len(), 1);
    let both = json!({"distribute": [{"from": "a", "to": {"a": 100}}], "failover": [{"from": "a", "to": "b"}]});
    assert_eq!(locality(both).len(), 1);
    let with_labels = json!({"distribute": [{"from": "a", "to": {"a": 100}}], "failoverPriority": ["version"]});
    assert!(locality(with_labels).is_empty());
    let above = json!({"distribute": [{"from": "a", "to": {"a": 101}}]});
    assert_eq!(locality(above).len(), 1);
    for alone in [
        json!({"failover": [{"from": "a", "to": "b"}]}),
        json!({"failoverPriority": ["version"]}),
    ] {
        let warned = |more: Value| {
            let mut policy = json!({"loadBalancer": {"localityLbSetting": alone}});
            policy["outlierDetection"] = more;
            let report = report(json!({"host": "a", "trafficPolicy": policy}));
            assert!(report.errors.is_empty(), "{report:?}");
            report.warnings.len()
        };
        assert_eq!((warned(Value::Null), warned(json!({}))), (1, 0), "{alone}");
    }
}

// spec: DR-068, DR-070
#[test]
fn zones() {
    let balancer = |value: Value| policy(json!({"loadBalancer": value}));
    let zones = "loadBalancer.zoneAwareLbSetting";
    assert_eq!(
        balancer(json!({"zoneAwareLbSetting": {}, "localityLbSetting": {}})),
        [zones]
    );
    let labels = json!({"zoneAwareLbSetting": {"failoverPriority": ["version", "topology.istio.io/subzone=a"]}});
    assert_eq!(balancer(labels), [format!("{zones}.failoverPriority[1]")]);
    let region = json!({"zoneAwareLbSetting": {"failover": [{"from": "a", "to": "b/*"}], "minClusterSize": 0}});
    assert_eq!(
        balancer(region),
        [format!("{zones}.failover[0].to"), format!("{zones}.minClusterSize")]
    );
    assert!(balancer(json!({"zoneAwareLbSetting": {"enabled": false, "minClusterSize": 1}})).is_empty());
}

// spec: DR-020, DR-021, DR-125, DR-128, DR-129
#[test]
fn tunnel_proxy_protocol_and_retry_budget() {
    let target = json!({"targetHost": "a.com", "targetPort": 443});
    assert!(policy(json!({"tunnel": target})).is_empty());
    assert_eq!(
        policy(json!({"tunnel": {}})),
        ["tunnel.targetHost", "tunnel.targetPort"]
    );
    let other = json!({"tunnel": {"targetHost": "*.a.com", "targetPort": 443, "protocol": "GET"}});
    assert_eq!(policy(other), ["tunnel.targetHost", "tunnel.protocol"]);
    assert_eq!(policy(json!({"tunnel": target, "proxyProtocol": {}})), ["tunnel"]);
    assert_eq!(
        policy(json!({"proxyProtocol": {"version": "V3"}})),
        ["proxyProtocol.version"]
    );
    let budget = json!({"retryBudget": {"percent": {"value": 101}, "minRetryConcurrency": -1, "budgetInterval": "x"}});
    assert_eq!(
        policy(budget),
        [
            "retryBudget.percent",
            "retryBudget.minRetryConcurrency",
            "retryBudget.budgetInterval"
        ]
    );
    let port = json!({"port": {"number": 80}, "tls": {"mode": "DISABLE"}});
    let mut many = vec![port; 4097];
    assert_eq!(policy(json!({"portLevelSettings": many})), ["portLevelSettings"]);
    many.pop();
    assert!(policy(json!({"portLevelSettings": many})).is_empty());
}

// spec: DR-072, DR-086, DR-088, SM-121
#[test]
fn connection_pools() {
    let pool = |value| policy(json!({"connectionPool": value}));
    assert_eq!(pool(json!({})), ["connectionPool"]);
    for (part, name) in [
        ("tcp", "maxConnections"),
        ("http", "http1MaxPendingRequests"),
        ("http", "http2MaxRequests"),
        ("http", "maxRequestsPerConnection"),
        ("http", "maxRetries"),
        ("http", "maxConcurrentStreams"),
    ] {
        assert_eq!(
            pool(json!({part: {name: -1}})),
            [format!("connectionPool.{part}.{name}")]
        );
        assert!(pool(json!({part: {name: 0}})).is_empty(), "{name}");
    }
    for bad in ["0s", "1us", "soon", "1.5ms"] {
        assert_eq!(
            pool(json!({"tcp": {"connectTimeout": bad}})),
            ["connectionPool.tcp.connectTimeout"],
            "{bad}"
        );
    }
    assert!(pool(json!({"tcp": {"idleTimeout": "0s"}})).is_empty());
    assert_eq!(
        pool(json!({"http": {"h2UpgradePolicy": "yes"}})),
        ["connectionPool.http.h2UpgradePolicy"]
    );
    let both = json!({"http": {"h2UpgradePolicy": "UPGRADE", "useClientProtocol": true}});
    assert_eq!(pool(both), ["connectionPool.http.useClientProtocol"]);
    let one = json!({"http": {"http2KeepAlive": {"interval": "1s"}}});
    assert_eq!(pool(one), ["connectionPool.http.http2KeepAlive.timeout"]);
}

// spec: DR-094, DR-101, DR-104
#[test]
fn outlier_detection() {
    let outlier = |value| policy(json!({"outlierDetection": value}));
    assert!(outlier(json!({})).is_empty());
    assert_eq!(
        outlier(json!({"maxEjectionPercent": 101})),
        ["outlierDetection.maxEjectionPercent"]
    );
    assert_eq!(
        outlier(json!({"minHealthPercent": -1})),
        ["outlierDetection.minHealthPercent"]
    );
    for name in ["interval", "baseEjectionTime"] {
        for bad in ["0s", "0.5ms"] {
            assert_eq!(
                outlier(json!({name: bad})),
                [format!("outlierDetection.{name}")],
                "{bad}"
            );
        }
        assert!(outlier(json!({name: "1ms"})).is_empty(), "{name}");
    }
    for name in ["maxEjectionPercent", "minHealthPercent"] {
        for (percent, is_fit) in [(-1, false), (0, true), (100, true), (101, false)] {
            let errors = outlier(json!({name: percent}));
            assert_eq!(errors.is_empty(), is_fit, "{name} {percent}");
        }
    }
    let codes = outlier(json!({"outlierDetectionHttpErrorCodes": [500, 99, 100, 599, 600]}));
    let code = |n: usize| format!("outlierDetection.outlierDetectionHttpErrorCodes[{n}]");
    assert_eq!(codes, [code(1), code(4)]);
    let local = outlier(json!({"consecutiveLocalOriginFailures": 2}));
    assert_eq!(local, ["outlierDetection.consecutiveLocalOriginFailures"]);
    let old = report(json!({"host": "a", "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 1}}}));
    assert!(old.errors.is_empty() && old.warnings[0].contains("consecutiveErrors"));
}

// spec: DR-107, DR-110, DR-112, DR-114, DR-119
#[test]
fn tls() {
    let tls = |value| policy(json!({"tls": value}));
    assert_eq!(tls(json!({"mode": "ON"})), ["tls.mode"]);
    assert_eq!(
        tls(json!({"mode": "MUTUAL"})),
        ["tls.clientCertificate", "tls.privateKey"]
    );
    assert!(tls(json!({"mode": "MUTUAL", "credentialName": "c"})).is_empty());
    assert!(tls(json!({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k"})).is_empty());
    assert_eq!(
        tls(json!({"mode": "MUTUAL", "clientCertificate": "/c"})),
        ["tls.privateKey"]
    );
    for file in ["clientCertificate", "privateKey", "caCertificates", "caCrl"] {
        for mode in ["SIMPLE", "MUTUAL"] {
            let both = json!({"mode": mode, "credentialName": "c", file: "/f"});
            assert_eq!(tls(both), [format!("tls.{file}")], "{mode}");
        }
    }
    let elsewhere = json!({"mode": "SIMPLE", "credentialName": "configmap://other/c"});
    assert_eq!(tls(elsewhere), ["tls.credentialName"]);
    assert!(tls(json!({"mode": "SIMPLE", "credentialName": "configmap://shop/c"})).is_empty());
    let mutual = json!({"mode": "MUTUAL", "insecureSkipVerify": true, "clientCertificate": "/c", "privateKey": "/k",
        "caCertificates": "/a", "subjectAltNames": ["a"]});
    assert_eq!(tls(mutual), ["tls.caCertificates", "tls.subjectAltNames"]);
    assert!(tls(json!({"mode": "MUTUAL", "insecureSkipVerify": true, "credentialName": "c"})).is_empty());
    assert!(tls(json!({"mode": "ISTIO_MUTUAL", "insecureSkipVerify": true, "subjectAltNames": ["a"]})).is_empty());
    let skip = json!({"mode": "SIMPLE", "insecureSkipVerify": true, "subjectAltNames": ["a"], "credentialName": "c"});
    assert_eq!(tls(skip), ["tls.credentialName", "tls.subjectAltNames"]);
    let skip = json!({"mode": "SIMPLE", "insecureSkipVerify": true, "caCertificates": "/f"});
    assert_eq!(tls(skip), ["tls.caCertificates"]);
    assert!(tls(json!({"mode": "SIMPLE", "insecureSkipVerify": true})).is_empty());
    let silent = report(json!({"host": "a", "trafficPolicy": {"tls": {"sni": "x"}}}));
    assert!(silent.errors.is_empty() && silent.warnings[0].contains("turns TLS off"));
    for ignored in [
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "caCrl",
    ] {
        let tls = json!({"mode": "ISTIO_MUTUAL", ignored: "/f"});
        let mesh = report(json!({"host": "a", "trafficPolicy": {"tls": tls}}));
        assert!(
            mesh.errors.is_empty() && mesh.warnings.len() == 1 && mesh.warnings[0].contains(ignored),
            "{mesh:?}"
        );
    }
}
