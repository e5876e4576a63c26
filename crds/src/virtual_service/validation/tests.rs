#![expect(clippy::needless_pass_by_value, reason = "json! gives values")]

use serde_json::{Value, json};

use super::*;

fn report(spec: Value) -> Report {
    let spec: VirtualServiceSpec = serde_json::from_value(spec).expect("spec");
    let mut service = VirtualService::new("x", spec);
    service.metadata.namespace = Some("shop".into());
    service.validate()
}

fn paths(spec: Value) -> Vec<String> {
    report(spec).errors.into_iter().map(|e| e.path).collect()
}

/// Errors of one HTTP route that forwards, without the path of the route.
fn http(fields: Value) -> Vec<String> {
    let mut route = json!({"route": [{"destination": {"host": "a"}}]});
    for (key, value) in fields.as_object().expect("object") {
        route[key] = value.clone();
    }
    let all = paths(json!({"hosts": ["a"], "http": [route]}));
    all.into_iter()
        .map(|p| p.trim_start_matches("spec.http[0]").trim_start_matches('.').to_owned())
        .collect()
}

// spec: VS-001, VS-003, VS-004, SM-056, SM-058, SM-071
#[test]
fn hosts_gateways_and_visibility() {
    let rule = json!([{"route": [{"destination": {"host": "a"}}]}]);
    assert_eq!(paths(json!({"hosts": ["a"]})), ["spec"]);
    for alone in ["http", "tcp"] {
        assert!(paths(json!({"hosts": ["a"], alone: rule})).is_empty(), "{alone}");
    }
    assert_eq!(paths(json!({"hosts": ["a", "a"], "http": rule})), ["spec.hosts[1]"]);
    assert_eq!(
        paths(json!({"hosts": ["a.x.com", "*.x.com"], "http": rule})),
        ["spec.hosts[0]"]
    );
    assert_eq!(paths(json!({"hosts": ["*"], "http": rule})), ["spec.hosts[0]"]);
    assert!(paths(json!({"hosts": ["*"], "gateways": ["gw"], "http": rule})).is_empty());
    assert_eq!(paths(json!({"hosts": ["foo*.com"], "http": rule})), ["spec.hosts[0]"]);
    for wider in ["*.com", "*.x.com", "*"] {
        let hosts = json!({"hosts": ["*.a.x.com", wider], "gateways": ["gw"], "http": rule});
        assert_eq!(paths(hosts), ["spec.hosts[0]"], "{wider}");
    }
    assert_eq!(paths(json!({"gateways": ["gw"], "http": rule})), ["spec.gateways"]);
    assert_eq!(paths(json!({"http": rule, "tcp": rule})), ["spec.tcp"]);
    let tls = json!([{"match": [{"sniHosts": ["a"]}], "route": [{"destination": {"host": "a"}}]}]);
    assert_eq!(
        paths(json!({"http": rule, "tls": tls})),
        ["spec.tls", "spec.tls[0].match[0].sniHosts[0]"]
    );
    let legacy =
        report(json!({"hosts": ["a"], "gateways": ["gw.shop.svc.cluster.local", "shop/gw", "gw"], "http": rule}));
    assert!(legacy.errors.is_empty() && legacy.warnings.len() == 1, "{legacy:?}");
    assert!(legacy.warnings[0].contains("gw.shop.svc.cluster.local"), "{legacy:?}");
    let own = report(json!({"hosts": ["a"], "gateways": ["mesh", "shop/gw", "gw"], "http": rule}));
    assert!(own.errors.is_empty() && own.warnings.is_empty(), "{own:?}");
    for bad in ["./gw", "a/", "/gw", "", "a/b/c", "_", "Shop_/gw", "shop/g_w", "-gw"] {
        assert_eq!(
            paths(json!({"hosts": ["a"], "gateways": [bad], "http": rule})),
            ["spec.gateways[0]"],
            "{bad}"
        );
    }
    assert_eq!(
        paths(json!({"hosts": ["a"], "exportTo": [".", "shop"], "http": rule})),
        ["spec.exportTo[1]"]
    );
}

// spec: VS-002
#[test]
fn hosts_are_names_wildcards_and_addresses() {
    let rule = json!([{"route": [{"destination": {"host": "a"}}]}]);
    for good in ["a", "a.shop", "a.x.com", "*.x.com", "10.1.2.3", "fd00::1"] {
        assert!(paths(json!({"hosts": [good], "http": rule})).is_empty(), "{good}");
    }
    for bad in ["", "a.x.com:80", "10.1.2.0/24", "http://a", "[fd00::1]"] {
        assert_eq!(paths(json!({"hosts": [bad], "http": rule})), ["spec.hosts[0]"], "{bad}");
    }
}

// spec: VS-026
#[test]
fn one_action_for_each_route() {
    let route = |route: Value| paths(json!({"hosts": ["a"], "http": [route]}));
    assert_eq!(route(json!({})), ["spec.http[0]"]);
    let destination = json!([{"destination": {"host": "a"}}]);
    let redirect = json!({"uri": "/x"});
    assert_eq!(
        route(json!({"route": destination, "redirect": redirect})),
        ["spec.http[0].redirect"]
    );
    let fault = json!({"delay": {"fixedDelay": "1s"}});
    assert_eq!(
        route(json!({"redirect": redirect, "fault": fault})),
        ["spec.http[0].redirect"]
    );
    let direct = json!({"status": 200});
    assert_eq!(
        route(json!({"directResponse": direct, "rewrite": {"uri": "/"}})),
        ["spec.http[0].directResponse"]
    );
    for other in ["route", "rewrite", "fault"] {
        let value = match other {
            "route" => destination.clone(),
            "rewrite" => json!({"uri": "/"}),
            _ => fault.clone(),
        };
        let both = json!({"directResponse": direct, other: value});
        assert_eq!(route(both), ["spec.http[0].directResponse"], "{other}");
        let both = json!({"redirect": redirect, other: value});
        assert_eq!(route(both), ["spec.http[0].redirect"], "{other}");
    }
    assert_eq!(
        route(json!({"redirect": redirect, "directResponse": direct})),
        ["spec.http[0].redirect"]
    );
    let delegate = json!({"name": "d"});
    assert_eq!(
        route(json!({"delegate": delegate, "redirect": redirect})),
        ["spec.http[0].delegate"]
    );
    assert_eq!(
        route(json!({"delegate": delegate, "route": destination})),
        ["spec.http[0].delegate"]
    );
    let inherited = json!({"delegate": delegate, "directResponse": direct, "rewrite": {"uri": "/"}, "fault": fault});
    assert!(route(inherited).is_empty());
}

// spec: VS-154
#[test]
fn a_delegate_does_not_delegate() {
    assert_eq!(
        paths(json!({"http": [{"delegate": {"name": "d"}}]})),
        ["spec.http[0].delegate"]
    );
}

// spec: VS-023
#[test]
fn what_is_never_reached_is_a_warning() {
    let rule = json!({"route": [{"destination": {"host": "a"}}]});
    let with = |condition: Value| json!({"match": [condition], "route": [{"destination": {"host": "a"}}]});
    let some = with(json!({"uri": {"prefix": "/a"}}));
    for (first, is_last) in [(&rule, true), (&with(json!({})), true), (&some, false)] {
        let report = report(json!({"hosts": ["a"], "http": [first, rule]}));
        assert!(report.errors.is_empty(), "{report:?}");
        let told: Vec<_> = report.warnings.iter().filter(|w| w.contains("spec.http[1]")).collect();
        assert_eq!(told.len(), usize::from(is_last), "{report:?}");
    }
}

// spec: VS-027, VS-032, VS-036, VS-037, VS-038, VS-039, VS-046, SM-122, SM-123
#[test]
fn matches() {
    let one = |value: Value| http(json!({"match": [value]}));
    assert_eq!(one(json!({"uri": {}})), ["match[0].uri"]);
    assert_eq!(one(json!({"uri": {"exact": "/a", "prefix": "/"}})), ["match[0].uri"]);
    assert!(one(json!({"uri": {"prefix": ""}})).is_empty());
    assert!(one(json!({"uri": {"exact": ""}})).is_empty());
    assert_eq!(one(json!({"method": {"prefix": ""}})), ["match[0].method.prefix"]);
    for field in ["scheme", "method", "authority"] {
        assert_eq!(
            one(json!({field: {"prefix": ""}})),
            [format!("match[0].{field}.prefix")]
        );
        assert!(one(json!({field: {"exact": ""}})).is_empty(), "{field}");
    }
    for field in ["headers", "queryParams", "withoutHeaders"] {
        assert_eq!(
            one(json!({field: {"x": {"prefix": ""}}})),
            [format!("match[0].{field}[x].prefix")]
        );
    }
    for bad in ["", "*", "[a&&b]", "a(?=b)", "(a)\\1", "["] {
        assert_eq!(one(json!({"uri": {"regex": bad}})), ["match[0].uri.regex"], "{bad}");
    }
    assert_eq!(one(json!({"uri": {"regex": "a".repeat(1025)}})), ["match[0].uri.regex"]);
    // Short, and more than a proxy would load.
    assert_eq!(one(json!({"uri": {"regex": "\\pL{900}"}})), ["match[0].uri.regex"]);
    let address = "\\w+([-+.]\\w+)*@\\w+([-.]\\w+)*\\.\\w+([-.]\\w+)*";
    assert!(one(json!({"headers": {"from": {"regex": address}}})).is_empty());
    assert!(one(json!({"headers": {"x": {}}})).is_empty());
    assert_eq!(
        one(json!({"headers": {"x": {"regex": "*"}}})),
        ["match[0].headers[x].regex"]
    );
    assert!(one(json!({"withoutHeaders": {"x": {"regex": "*"}}})).is_empty());
    assert_eq!(one(json!({"headers": {"": {}}})), ["match[0].headers[]"]);
    assert_eq!(one(json!({"headers": {"a b": {}}})), ["match[0].headers[a b]"]);
    assert!(one(json!({"headers": {":path": {"prefix": "/"}}})).is_empty());
    assert_eq!(one(json!({"queryParams": {"": {}}})), ["match[0].queryParams[]"]);
    assert_eq!(
        one(json!({"headers": {"@request.auth.claims.sub": {"exact": "x"}}})).len(),
        1
    );
    assert_eq!(one(json!({"port": 0})), ["match[0].port"]);
    assert_eq!(one(json!({"port": 65536})), ["match[0].port"]);
}

// spec: VS-047, VS-055, VS-053
#[test]
fn destinations_and_weights() {
    let route = |value: Value| http(json!({"route": value}));
    assert_eq!(
        route(json!([{"destination": {"host": ""}}])),
        ["route[0].destination.host"]
    );
    assert_eq!(
        route(json!([{"destination": {"host": "*"}}])),
        ["route[0].destination.host"]
    );
    assert!(route(json!([{"destination": {"host": "*.x"}}])).is_empty());
    assert!(route(json!([{"destination": {"host": "a"}, "weight": 0}])).is_empty());
    assert_eq!(
        route(json!([{"destination": {"host": "a"}, "weight": -1}])),
        ["route[0].weight"]
    );
    let uneven = json!([{"destination": {"host": "a"}, "weight": 3}, {"destination": {"host": "b"}, "weight": 1}]);
    assert!(route(uneven).is_empty(), "they need not total 100");
    let zero = json!([{"destination": {"host": "a"}, "weight": 0}, {"destination": {"host": "b"}}]);
    assert_eq!(route(zero), ["route"]);
    assert_eq!(
        route(json!([{"destination": {"host": "a", "port": {"number": 0}}}])),
        ["route[0].destination.port.number"]
    );
}

// spec: VS-063, VS-064, VS-065
#[test]
fn header_operations() {
    let request = |value: Value| http(json!({"headers": {"request": value}}));
    assert_eq!(
        request(json!({"set": {"Host": "a", ":authority": "b"}})),
        ["headers.request.set"]
    );
    let both = http(json!({"headers": {"request": {"set": {"Host": "a"}}}, "rewrite": {"authority": "b"}}));
    assert_eq!(both, ["headers.request.set"]);
    assert_eq!(request(json!({"remove": ["host"]})), ["headers.request.remove[0]"]);
    assert_eq!(request(json!({"add": {":path": "/"}})), ["headers.request"]);
    assert_eq!(request(json!({"set": {"a b": "1"}})), ["headers.request.set[a b]"]);
    assert_eq!(request(json!({"set": {"a": "x\n"}})), ["headers.request.set[a]"]);
    for bad in ["100%", "%REQ(x", "%REQ(x)", "%NOPE%"] {
        assert_eq!(request(json!({"set": {"a": bad}})), ["headers.request.set[a]"], "{bad}");
    }
    assert!(request(json!({"set": {"a": "%% %REQ(x-y)% %START_TIME%"}})).is_empty());
    assert!(request(json!({"set": {"Host": "a"}})).is_empty());
    for operation in ["set", "add"] {
        for name in [":status", "Host", ":authority"] {
            let response = json!({"headers": {"response": {operation: {name: "1"}}}});
            assert_eq!(http(response), ["headers.response"], "{operation} {name}");
        }
        let other = json!({"headers": {"request": {operation: {":method": "PUT"}}}});
        assert_eq!(http(other), ["headers.request"], "{operation}");
    }
    for name in ["Host", ":status"] {
        assert_eq!(
            http(json!({"headers": {"response": {"remove": [name]}}})),
            ["headers.response.remove[0]"]
        );
    }
}

// spec: VS-068, VS-074
#[test]
fn rewrites() {
    let rewrite = |value: Value| http(json!({"rewrite": value}));
    assert_eq!(rewrite(json!({})), ["rewrite"]);
    assert_eq!(
        rewrite(json!({"uriRegexRewrite": {"match": "a"}})),
        ["rewrite.uriRegexRewrite"]
    );
    let both = json!({"uri": "/", "uriRegexRewrite": {"match": "a", "rewrite": "b"}});
    assert_eq!(rewrite(both), ["rewrite.uriRegexRewrite"]);
    let group = json!({"uriRegexRewrite": {"match": "(a)", "rewrite": "\\2"}});
    assert_eq!(rewrite(group), ["rewrite.uriRegexRewrite.rewrite"]);
    assert!(rewrite(json!({"uriRegexRewrite": {"match": "(a)", "rewrite": "\\1\\0"}})).is_empty());
}

// spec: VS-078, VS-079, VS-080, VS-082, VS-083, VS-086, VS-087, VS-089
#[test]
fn redirects_and_direct_responses() {
    let route = |route: Value| {
        let all = paths(json!({"hosts": ["a"], "http": [route]}));
        all.into_iter()
            .map(|p| p.trim_start_matches("spec.http[0].").to_owned())
            .collect::<Vec<_>>()
    };
    let redirect = |value: Value| route(json!({"redirect": value}));
    assert_eq!(redirect(json!({})), ["redirect"]);
    for enough in [
        json!({"uri": "/"}),
        json!({"prefixRewrite": "/"}),
        json!({"authority": "a"}),
        json!({"port": 81}),
        json!({"derivePort": "FROM_REQUEST_PORT"}),
        json!({"derivePort": "FROM_PROTOCOL_DEFAULT"}),
        json!({"scheme": "http"}),
        json!({"scheme": "https"}),
    ] {
        assert!(redirect(enough.clone()).is_empty(), "{enough}");
    }
    for code in [301, 302, 303, 307, 308] {
        assert!(redirect(json!({"uri": "/", "redirectCode": code})).is_empty(), "{code}");
    }
    for code in [200, 300, 304, 305, 306, 309] {
        assert_eq!(
            redirect(json!({"uri": "/", "redirectCode": code})),
            ["redirect.redirectCode"],
            "{code}"
        );
    }
    assert_eq!(
        redirect(json!({"uri": "/", "prefixRewrite": "/"})),
        ["redirect.prefixRewrite"]
    );
    assert_eq!(redirect(json!({"scheme": "ftp"})), ["redirect.scheme"]);
    assert_eq!(
        redirect(json!({"port": 80, "derivePort": "FROM_REQUEST_PORT"})),
        ["redirect.derivePort"]
    );
    assert_eq!(redirect(json!({"derivePort": "NOPE"})), ["redirect.derivePort"]);
    for (kind, is_fit) in [("exact", false), ("regex", false), ("prefix", true)] {
        let rewritten = json!({"match": [{"uri": {kind: "/a"}}], "redirect": {"prefixRewrite": "/"}});
        let wrong: &[&str] = if is_fit { &[] } else { &["match[0].uri"] };
        assert_eq!(route(rewritten), wrong, "{kind}");
    }
    for bad in [json!({}), json!({"status": 199}), json!({"status": 600})] {
        assert_eq!(route(json!({"directResponse": bad})), ["directResponse.status"]);
    }
    for status in [200, 599] {
        assert!(
            route(json!({"directResponse": {"status": status}})).is_empty(),
            "{status}"
        );
    }
    let sized = |bytes: usize| {
        let direct = json!({"status": 200, "body": {"string": "x".repeat(bytes)}});
        let report = report(json!({"hosts": ["a"], "http": [{"directResponse": direct}]}));
        let is_told = report.warnings.iter().any(|w| w.contains("directResponse.body"));
        (report.errors.len(), is_told)
    };
    assert_eq!(sized(100 << 10), (0, false));
    assert_eq!(sized((100 << 10) + 1), (0, true));
    assert_eq!(sized(1 << 20), (0, true));
    assert_eq!(sized((1 << 20) + 1), (1, false));
}

// spec: VS-094, VS-102, VS-104, VS-115
#[test]
fn timeouts_and_retries() {
    for bad in ["0s", "0.5ms", "x"] {
        assert_eq!(http(json!({"timeout": bad})), ["timeout"], "{bad}");
    }
    assert!(http(json!({"timeout": "1ms"})).is_empty());
    let retries = |value: Value| http(json!({"retries": value}));
    assert!(retries(json!({"attempts": 0})).is_empty());
    for (name, value) in [
        ("retryOn", json!("5xx")),
        ("perTryTimeout", json!("1s")),
        ("retryRemoteLocalities", json!(true)),
    ] {
        let path = [format!("retries.{name}")];
        assert_eq!(retries(json!({"attempts": 0, name: value})), path);
        assert_eq!(retries(json!({name: value})), path);
        assert!(retries(json!({"attempts": 1, name: value})).is_empty(), "{name}");
    }
    assert_eq!(retries(json!({"attempts": -1})), ["retries.attempts"]);
    for bad in [
        "5xx,",
        ",5xx",
        "5xx, reset",
        " reset",
        "599",
        "99",
        "306",
        "nope",
        "4xx",
        "RESET",
    ] {
        assert_eq!(
            retries(json!({"attempts": 1, "retryOn": bad})),
            ["retries.retryOn"],
            "{bad}"
        );
    }
    assert!(retries(json!({"attempts": 1, "retryOn": "5xx,503,connect-failure"})).is_empty());
    for good in [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "envoy-ratelimited",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
        "429",
        "511",
    ] {
        assert!(retries(json!({"attempts": 1, "retryOn": good})).is_empty(), "{good}");
    }
    assert_eq!(
        retries(json!({"attempts": 1, "perTryTimeout": "0s"})),
        ["retries.perTryTimeout"]
    );
}

// spec: VS-126, VS-127, VS-130, VS-134, VS-135, VS-138, SM-127
#[test]
fn faults_and_mirrors() {
    let fault = |value: Value| http(json!({"fault": value}));
    assert_eq!(fault(json!({})), ["fault"]);
    assert_eq!(
        fault(json!({"delay": {"fixedDelay": "0s"}})),
        ["fault.delay.fixedDelay"]
    );
    assert_eq!(
        fault(json!({"delay": {"exponentialDelay": "1s"}})),
        ["fault.delay.exponentialDelay"]
    );
    assert!(fault(json!({"delay": {"fixedDelay": "1ms"}})).is_empty());
    for (status, is_fit) in [(199, false), (200, true), (599, true), (600, false)] {
        let wrong: &[&str] = if is_fit { &[] } else { &["fault.abort.httpStatus"] };
        assert_eq!(fault(json!({"abort": {"httpStatus": status}})), wrong, "{status}");
    }
    assert!(fault(json!({"abort": {"grpcStatus": "UNAVAILABLE"}})).is_empty());
    assert_eq!(
        fault(json!({"abort": {"grpcStatus": "unavailable"}})),
        ["fault.abort.grpcStatus"]
    );
    assert_eq!(fault(json!({"abort": {"http2Error": "x"}})), ["fault.abort.http2Error"]);
    let tiny = json!({"abort": {"httpStatus": 500, "percentage": {"value": 0.00001}}});
    assert_eq!(fault(tiny), ["fault.abort.percentage.value"]);
    let none = report(
        json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}],
        "fault": {"abort": {"percentage": {"value": 5}}}}]}),
    );
    assert!(none.errors.is_empty() && none.warnings.len() == 1);
    let both = json!({"mirror": {"host": "b"}, "mirrors": [{"destination": {"host": "c"}}]});
    assert_eq!(http(both), ["mirrors"]);
    assert_eq!(http(json!({"mirrors": [{}]})), ["mirrors[0].destination"]);
    assert_eq!(
        http(json!({"mirrors": [{"destination": {"host": "b"}, "percentage": {"value": -1}}]})),
        ["mirrors[0].percentage.value"]
    );
    assert_eq!(
        http(json!({"mirror": {"host": "b"}, "mirrorPercent": 101})),
        ["mirrorPercent"]
    );
    assert_eq!(
        fault(json!({"delay": {"fixedDelay": "1s", "percent": 101}})),
        ["fault.delay.percent"]
    );
    assert_eq!(
        http(json!({"mirror": {"host": "b"}, "mirrorPercentage": {"value": 101}})),
        ["mirrorPercentage.value"]
    );
}

// spec: VS-144, VS-146, VS-149
#[test]
fn cors() {
    let cors = |value: Value| http(json!({"corsPolicy": value}));
    assert_eq!(cors(json!({"allowOrigins": [{}]})), ["corsPolicy.allowOrigins[0]"]);
    assert!(cors(json!({"allowOrigins": [{"exact": "*"}]})).is_empty());
    for bad in ["get", "FETCH", ""] {
        assert_eq!(
            cors(json!({"allowMethods": [bad]})),
            ["corsPolicy.allowMethods[0]"],
            "{bad}"
        );
    }
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*",
    ] {
        assert!(cors(json!({"allowMethods": [method]})).is_empty(), "{method}");
    }
    for bad in ["0s", "500ms", "1.5s"] {
        assert_eq!(cors(json!({"maxAge": bad})), ["corsPolicy.maxAge"], "{bad}");
    }
    for good in ["1s", "24h"] {
        assert!(cors(json!({"maxAge": good})).is_empty(), "{good}");
    }
}

// spec: VS-164, VS-169, VS-175
#[test]
fn tls_and_tcp() {
    let destination = json!([{"destination": {"host": "a"}}]);
    assert_eq!(
        paths(json!({"hosts": ["a"], "tls": [{"route": destination}]})),
        ["spec.tls[0].match"]
    );
    let none = json!([{"match": [{}], "route": destination}]);
    assert_eq!(
        paths(json!({"hosts": ["a"], "tls": none})),
        ["spec.tls[0].match[0].sniHosts"]
    );
    let other = json!([{"match": [{"sniHosts": ["b.com"]}], "route": destination}]);
    assert_eq!(
        paths(json!({"hosts": ["a.com"], "tls": other})),
        ["spec.tls[0].match[0].sniHosts[0]"]
    );
    assert!(paths(json!({"hosts": ["*.com"], "tls": other})).is_empty());
    let short = json!([{"match": [{"sniHosts": ["b"]}], "route": destination}]);
    assert_eq!(
        paths(json!({"hosts": ["*.com"], "tls": short})),
        ["spec.tls[0].match[0].sniHosts[0]"]
    );
    let shortened = json!([{"match": [{"sniHosts": ["a"]}], "route": destination}]);
    assert_eq!(
        paths(json!({"hosts": ["a.app.svc.cluster.local"], "tls": shortened})),
        ["spec.tls[0].match[0].sniHosts[0]"],
        "a server name is not completed"
    );
    let nowhere = json!([{"match": [{"sniHosts": ["a.com"]}]}]);
    assert_eq!(
        paths(json!({"hosts": ["a.com"], "tls": nowhere})),
        ["spec.tls[0].route"]
    );
    assert_eq!(paths(json!({"hosts": ["a"], "tcp": [{}]})), ["spec.tcp[0].route"]);
    let subnet = json!([{"match": [{"destinationSubnets": ["10.0.0.0/33"]}], "route": destination}]);
    assert_eq!(
        paths(json!({"hosts": ["a"], "tcp": subnet})),
        ["spec.tcp[0].match[0].destinationSubnets[0]"]
    );
}

// spec: VS-167
#[test]
fn an_element_that_an_earlier_one_leaves_nothing_to_is_a_warning() {
    let warnings = |second: Value| {
        let route = |condition: &Value| json!({"match": [condition], "route": [{"destination": {"host": "a"}}]});
        let first = json!({"sniHosts": ["a.com", "b.com"], "port": 443});
        let report = report(json!({"hosts": ["*.com"], "tls": [route(&first), route(&second)]}));
        assert!(report.errors.is_empty(), "{report:?}");
        report.warnings
    };
    let told = warnings(json!({"sniHosts": ["b.com", "A.com"], "port": 443}));
    assert!(told.len() == 1 && told[0].contains("spec.tls[1].match[0]"), "{told:?}");
    for other in [
        json!({"sniHosts": ["a.com"], "port": 443}),
        json!({"sniHosts": ["a.com", "b.com"], "port": 444}),
        json!({"sniHosts": ["a.com", "b.com"], "port": 443, "destinationSubnets": ["10.0.0.0/8"]}),
        json!({"sniHosts": ["a.com", "b.com"], "port": 443, "sourceNamespace": "x"}),
    ] {
        assert_eq!(warnings(other.clone()), [""; 0], "{other}");
    }
}

// spec: VS-170
#[test]
fn an_address_as_server_name_is_a_warning() {
    let tls = json!([{"match": [{"sniHosts": ["10.0.0.1"]}], "route": [{"destination": {"host": "a"}}]}]);
    let report = report(json!({"hosts": ["10.0.0.1"], "tls": tls}));
    assert!(report.errors.is_empty(), "{report:?}");
    assert!(
        report.warnings.len() == 1 && report.warnings[0].contains("10.0.0.1"),
        "{report:?}"
    );
}

// spec: VS-045
#[test]
fn names_of_alternatives_may_be_the_same() {
    let matches = json!([{"name": "m", "uri": {"exact": "/a"}}, {"name": "m", "uri": {"exact": "/b"}}]);
    assert!(http(json!({"match": matches})).is_empty());
}

// spec: VS-137
#[test]
fn both_spellings_of_the_old_mirror_share_are_read() {
    for name in ["mirrorPercent", "mirror_percent"] {
        let route: HTTPRoute = serde_json::from_value(json!({name: 7})).expect("route");
        assert_eq!(route.mirror_percent, Some(7), "{name}");
    }
}

// spec: SM-124
#[test]
fn no_dry_run() {
    let spec = json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]});
    let mut service = VirtualService::new("x", serde_json::from_value(spec).expect("spec"));
    service.metadata.annotations = Some([("istio.io/dry-run".to_owned(), "true".to_owned())].into());
    let errors = service.validate().errors;
    assert_eq!(errors[0].path, "metadata.annotations[istio.io/dry-run]");
}

// spec: SM-121, SM-122
#[test]
fn every_problem_is_named_at_once_with_what_would_be_accepted() {
    let spec = json!({"hosts": ["a"], "http": [
        {"timeout": "0s", "retries": {"attempts": -1}, "route": [{"destination": {"host": ""}}]},
    ]});
    let report = report(spec);
    assert_eq!(report.errors.len(), 3);
    assert!(
        report
            .message()
            .contains("spec.http[0].timeout: \"0s\": must be at least 1ms"),
        "{}",
        report.message()
    );
}
