//! Matches, rewrites and destinations of virtual services.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use support::process::{Process, Volumes};
use support::rules::{
    ECHO, bundle, bundle_with_policies, client, endpoints, named, one, silent, start, status, to_echo, to_subset,
    two_versions, versions,
};
use support::{App, Authority, Client, Proxy, address, client_bundle, get, pause, wait_for, workload};
use weft_sidecar::shared::Role;

/// Rules that answer with the number of the first that fits; without one: 404.
fn table(conditions: &[&str]) -> String {
    let rule = |(n, condition): (usize, &&str)| {
        format!(
            "  - matches: [{condition}]\n    directResponse: {{status: {}}}\n",
            201 + n
        )
    };
    conditions.iter().enumerate().map(rule).collect()
}

/// The rule of a [`table`] that answers a request, from 1.
fn fits(client: &mut Client, request: &str) -> Option<u16> {
    client.send(&format!("{request}\r\n\r\n"));
    match client.receive().expect("an answer").status() {
        404 => None,
        number => Some(number - 200),
    }
}

// spec: VS-027, VS-028, VS-029
#[test]
fn paths_are_compared_without_query_and_fragment() {
    let proxy = client(
        &table(&[
            "{path: {exact: /a}}",
            "{path: {prefix: /foo}}",
            "{path: {regex: '/r[0-9]+|/s'}}",
        ]),
        &endpoints(&[], ""),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |path: &str| fits(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: echo"));
    for (path, rule) in [
        ("/a", Some(1)),
        ("/a?b=c", Some(1)),
        ("/a#b", Some(1)),
        ("/A", None),
        ("/a/", None),
        ("/ab", None),
        ("/?/a", None),
        ("/foo", Some(2)),
        ("/foo/bar", Some(2)),
        ("/foobar", Some(2)),
        ("/fo?/foo", None),
        ("/r12", Some(3)),
        ("/r12?x", Some(3)),
        ("/s", Some(3)),
        ("/r1x", None),
        ("/xr1", None),
        ("/sx", None),
        ("/r?1", None),
    ] {
        assert_eq!(of(path), rule, "{path}");
    }
}

// spec: VS-021, VS-027
#[test]
fn conditions_on_one_request_hold_together_and_with_their_case() {
    let rules = table(&[
        "{method: {exact: GET}, path: {exact: /a}}",
        "{method: {prefix: PU}}",
        "{method: {regex: 'D.*'}, authority: {exact: echo}, headers: [{name: x}], query: [{name: q}]}",
        "{scheme: {exact: HTTP}}",
        "{headers: [{name: x-v, value: {exact: a}}]}",
        "{query: [{name: v, value: {exact: a}}]}",
    ]);
    let proxy = client(&rules, &endpoints(&[], ""));
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |line: &str, fields: &str| fits(&mut client, &format!("{line} HTTP/1.1\r\nHost: echo{fields}"));
    let no_body = "\r\nContent-Length: 0";
    assert_eq!(of("GET /a", ""), Some(1));
    assert_eq!(of("GET /b", ""), None);
    assert_eq!((of("PUT /a", no_body), of("put /a", no_body)), (Some(2), None));
    assert_eq!(of("POST /a", no_body), None, "neither the one nor the other");
    let both = "\r\nX: 1\r\nContent-Length: 0";
    assert_eq!(of("DELETE /a?q", both), Some(3));
    assert_eq!((of("DELETE /a?q", no_body), of("DELETE /a", both)), (None, None));
    assert_eq!(
        (of("GET /c", "\r\nX-V: a"), of("GET /c", "\r\nX-V: A")),
        (Some(5), None)
    );
    assert_eq!((of("GET /c?v=a", ""), of("GET /c?v=A", "")), (Some(6), None));
}

// spec: VS-035, VS-036, VS-037, VS-038
#[test]
fn conditions_on_headers_are_asked_of_fields_and_of_the_request_itself() {
    let header = |name: &str, rest: &str| format!("{{headers: [{{name: '{name}'{rest}}}]}}");
    let rules = [
        header(":path", ", value: {exact: '/p?q'}"),
        header(":method", ", value: {exact: PUT}"),
        header(":authority", ", value: {prefix: 'echo.app'}"),
        header(":scheme", ", value: {exact: https}"),
        header("method", ", value: {exact: GET}"),
        header("uri", ""),
        header("x-there", ""),
        header("x-some", ", value: {regex: 'a*'}, invert: true"),
    ];
    let proxy = client(&table(&rules.each_ref().map(String::as_str)), &endpoints(&[], ""));
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |line: &str, host: &str, fields: &str| {
        fits(
            &mut client,
            &format!("{line} HTTP/1.1\r\nHost: {host}\r\nX-Some: a{fields}"),
        )
    };
    assert_eq!(of("GET /p?q", "echo", ""), Some(1), "with its query");
    assert_eq!(of("GET /p", "echo", ""), None);
    assert_eq!(of("PUT /", "echo", "\r\nContent-Length: 0"), Some(2));
    assert_eq!(of("GET /", "echo.app", ""), Some(3));
    assert_eq!(of("GET /", "echo", "\r\nX-Forwarded-Proto: https"), Some(4));
    // Without a colon these are fields like any other, and the request's own do not count.
    assert_eq!(of("GET /", "echo", "\r\nMethod: GET"), Some(5));
    assert_eq!(of("GET /", "echo", "\r\nURI: /"), Some(6));
    assert_eq!(of("GET /", "echo", ""), None);
    assert_eq!(
        of("GET /", "echo", "\r\nx-THERE: "),
        Some(7),
        "a name has no case, and any value will do"
    );
    // What is absent is compared as empty, which this expression accepts.
    client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 404);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\nX-Some: b\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 208);
}

// spec: VS-030
#[test]
fn paths_are_normalised_before_they_are_compared() {
    let proxy = client(&table(&["{path: {exact: /admin/x}}"]), &endpoints(&[], ""));
    let mut client = Client::connect(proxy.addresses[0]);
    for path in ["/admin/x", "/a/../admin/x", "/admin/./x", "/%61dmin/%78", "/admin\\x"] {
        let found = fits(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: echo"));
        assert_eq!(found, Some(1), "{path}");
    }
}

// spec: VS-031
#[test]
fn the_case_of_paths_counts_unless_it_is_said_not_to() {
    let proxy = client(
        &table(&[
            "{path: {exact: /One}, ignorePathCase: true}",
            "{path: {prefix: /Two/}, ignorePathCase: true}",
            "{path: {regex: '/Three'}, ignorePathCase: true}",
        ]),
        &endpoints(&[], ""),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |path: &str| fits(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: echo"));
    assert_eq!(of("/oNE"), Some(1));
    assert_eq!(of("/tWO/x"), Some(2));
    assert_eq!((of("/Three"), of("/three")), (Some(3), None));
}

// spec: VS-033, BYD-064
#[test]
fn authorities_are_compared_as_sent_but_for_the_port_that_was_dialled() {
    let rules = table(&[
        "{authority: {exact: echo}}",
        "{authority: {exact: 'echo:81'}}",
        "{authority: {prefix: Echo}}",
        "{authority: {regex: 'echo:80'}}",
    ]);
    let proxy = client(&rules, &endpoints(&[], ""));
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |host: &str| fits(&mut client, &format!("GET / HTTP/1.1\r\nHost: {host}"));
    assert_eq!(of("echo"), Some(1));
    assert_eq!(of("echo:80"), Some(1), "the client dialled 80");
    assert_eq!(of("echo:8080"), None);
    assert_eq!(of("echo:81"), Some(2));
    assert_eq!(of("Echo"), Some(3), "names of hosts ignore case, conditions do not");
    assert_eq!(of("ECHO"), None);
    // With the reference mesh's rules a port is a port.
    proxy.configure(&format!("mesh: {{istioCompatibility: true}}\n{}", bundle(&rules)));
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |host: &str| fits(&mut client, &format!("GET / HTTP/1.1\r\nHost: {host}"));
    assert_eq!((of("echo"), of("echo:80"), of("echo:81")), (Some(1), Some(4), Some(2)));
}

// spec: VS-034
#[test]
fn the_scheme_is_what_the_application_says_of_it() {
    let proxy = client(
        &table(&["{scheme: {exact: https}}", "{scheme: {exact: http}}"]),
        &endpoints(&[], ""),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut of = |fields: &str| fits(&mut client, &format!("GET / HTTP/1.1\r\nHost: echo{fields}"));
    assert_eq!(of(""), Some(2));
    assert_eq!(of("\r\nX-Forwarded-Proto: https"), Some(1));
    assert_eq!(of("\r\nX-Forwarded-Proto: http"), Some(2));
}

// spec: VS-025, VS-045
#[test]
fn the_access_log_names_the_route_and_the_alternative() {
    let app = App::echo();
    let rules = format!(
        "  - name: r\n    matches: [{{path: {{exact: /plain}}}}, {{name: m, path: {{exact: /both}}}}]\n    destinations: \
         [{{host: {ECHO}, port: 80}}]\n  - matches: [{{name: m, path: {{exact: /match}}}}, {{path: {{exact: \
         /nothing}}}}]\n    destinations: [{{host: {ECHO}, port: 80}}]\n"
    );
    let log = "mesh: {accessLog: {path: /dev/stdout, format: \"route=%ROUTE_NAME% path=%REQ(:PATH)%\\n\"}}\n";
    let authority = Authority::new();
    let volumes = Volumes::new(&authority, "app/client");
    volumes.configure(&format!("{log}{}", bundle(&rules)));
    volumes.endpoints(&[app.address]);
    let own = address();
    let front = SocketAddr::new(own, 4000);
    let proxy = Process::start(&volumes, own, &["--http-proxy", &front.to_string()], &[]).ready();
    let call = |path: &str| {
        let mut client = Client::connect(front);
        client.send(&format!("GET http://echo{path} HTTP/1.1\r\nHost: echo\r\n\r\n"));
        client.receive().expect("an answer").status()
    };
    let logged = |line: &str| wait_for(line, || proxy.access_log().lines().any(|found| found == line));
    for (path, route) in [("/plain", "r"), ("/both", "r.m"), ("/match", "m"), ("/nothing", "-")] {
        assert_eq!(call(path), 200);
        logged(&format!("route={route} path={path}"));
    }
    let revision = volumes.configure(&format!("{log}{}", client_bundle("http", "")));
    proxy.wait_for_config(&revision);
    assert_eq!(call("/own"), 200);
    logged("route=default path=/own");
}

// spec: SM-060, SM-061
#[test]
fn the_access_log_tells_what_is_let_out_from_what_is_not() {
    let app = App::echo();
    let log =
        "{path: /dev/stdout, format: \"route=%ROUTE_NAME% cluster=%UPSTREAM_CLUSTER_RAW% status=%RESPONSE_CODE%\\n\"}";
    let bundle = |policy: &str| {
        let mesh = format!("mesh: {{outboundPolicy: {policy}, accessLog: {log}}}\n");
        format!("{mesh}{}", client_bundle("http", ""))
    };
    let volumes = Volumes::new(&Authority::new(), "app/client");
    volumes.configure(&bundle("ALLOW_ANY"));
    volumes.endpoints(&[]);
    let own = address();
    let front = SocketAddr::new(own, 4000);
    let proxy = Process::start(&volumes, own, &["--http-proxy", &front.to_string()], &[]).ready();
    let call = || {
        let mut client = Client::connect(front);
        let to = app.address;
        client.send(&format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\n\r\n"));
        client.receive().expect("an answer")
    };
    let logged = |line: &str| wait_for(line, || proxy.access_log().lines().any(|found| found == line));
    assert_eq!(call().status(), 200);
    logged("route=allow_any cluster=PassthroughCluster status=200");
    let revision = volumes.configure(&bundle("REGISTRY_ONLY"));
    proxy.wait_for_config(&revision);
    let answer = call();
    assert_eq!((answer.status(), answer.text()), (502, String::new()));
    logged("route=block_all cluster=BlackHoleCluster status=502");
    assert_eq!(app.count(), 1);
}

// spec: VS-061
#[test]
fn what_is_removed_and_set_is_there_with_the_new_value() {
    let app = App::echo();
    let rule = to_echo("    requestHeaders: {remove: [x-s, x-a], set: [[x-s, new]], add: [[x-a, new]]}\n");
    let proxy = client(&rule, &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    client.get("/", "X-S: old\r\nX-A: old\r\nX-S: older\r\n");
    let head = app.last().head.to_ascii_lowercase();
    assert_eq!(
        (head.matches("x-s: ").count(), head.matches("x-a: ").count()),
        (1, 1),
        "{head}"
    );
    assert!(head.contains("x-s: new") && head.contains("x-a: new"), "{head}");
}

// spec: VS-067
#[test]
fn later_rules_never_see_what_earlier_ones_would_change() {
    let (v1, v2) = (named("v1"), named("v2"));
    let marked = |field: &str| format!("matches: [{{headers: [{{name: {field}, value: {{exact: '1'}}}}]}}]\n    ");
    let rules = format!(
        "  - {}{}  - {}{}",
        marked("x-a"),
        to_subset("v1", "    requestHeaders: {set: [[x-b, '1']], remove: [x-a]}\n").trim_start_matches("  - "),
        marked("x-b"),
        to_subset("v2", "").trim_start_matches("  - "),
    );
    let proxy = client(&rules, &two_versions(&v1, &v2));
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/", "X-A: 1\r\n").text(), "v1");
    let head = v1.last().head;
    assert!(head.contains("x-b: 1") && !head.contains("X-A"), "{head}");
    assert_eq!(client.get("/", "X-B: 1\r\n").text(), "v2");
    assert_eq!(
        client.get("/", "").status(),
        404,
        "a rule that does not fit changes nothing"
    );
}

// spec: VS-068, VS-069, VS-070, VS-071, VS-021
#[test]
fn a_rewrite_replaces_what_the_alternative_matched() {
    let app = App::echo();
    let rule = "matches: [{path: {exact: /exact/path}}, {path: {regex: '/r/.*'}}, {path: {prefix: /pre/}}, {headers: [{name: \
                x-h}]}, {}]";
    let rules = format!(
        "  - {rule}\n{}",
        to_echo("    rewrite: {path: {matched: /new/}}\n").replacen("  - ", "    ", 1)
    );
    let proxy = client(&rules, &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    let mut sent = |path: &str, fields: &str| {
        assert_eq!(client.get(path, fields).status(), 200);
        app.last().head.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(sent("/exact/path?q", ""), "/new/?q");
    assert_eq!(sent("/r/a/b?q", ""), "/new/?q");
    assert_eq!(sent("/pre/a/b?q", ""), "/new/a/b?q");
    assert_eq!(
        sent("/a/b?q", "X-H: 1\r\n"),
        "/new/a/b?q",
        "without a path it is the prefix /"
    );
    assert_eq!(sent("/a/b", ""), "/new/a/b");
    // No slash is added or taken away.
    for (prefix, replacement, path, wanted) in [
        ("/a", "/", "/a/b?q", "//b?q"),
        ("/a/", "/", "/a/b", "/b"),
        ("/a", "/x", "/ab", "/xb"),
        ("/a", "/x/", "/a", "/x/"),
    ] {
        let rules = format!(
            "  - matches: [{{path: {{prefix: {prefix}}}}}]\n{}",
            to_echo(&format!("    rewrite: {{path: {{matched: {replacement}}}}}\n")).replacen("  - ", "    ", 1)
        );
        let proxy = self::client(&rules, &one(&app));
        assert_eq!(get(proxy.addresses[0], path).status(), 200);
        assert!(
            app.last().head.starts_with(&format!("GET {wanted} ")),
            "{}",
            app.last().head
        );
    }
}

// spec: VS-051, VS-076
#[test]
fn the_host_goes_on_as_it_came_whatever_the_destination() {
    let app = App::echo();
    let other = format!(
        "other.elsewhere.svc.cluster.local\n  name: other\n  namespace: elsewhere\n  ports: [{{port: 81, name: main, protocol: http}}]\n- host: {ECHO}"
    );
    let rules = "  - destinations: [{host: other.elsewhere.svc.cluster.local, port: 81}]\n";
    let shard = one(&app).replace(ECHO, "other.elsewhere.svc.cluster.local");
    let proxy = start(&bundle(rules).replacen(ECHO, &other, 1), &shard);
    let mut client = Client::connect(proxy.addresses[0]);
    for host in ["echo", "echo.app:80", "ECHO.app.svc"] {
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.receive().expect("an answer").status(), 200);
        assert_eq!(app.last().field("host").as_deref(), Some(host));
        assert!(app.last().field("x-envoy-original-host").is_none());
    }
}

// spec: VS-090, VS-123
#[test]
fn what_the_proxy_answers_is_neither_forwarded_nor_copied_nor_retried() {
    let (v1, v2) = (named("v1"), named("v2"));
    let beside = format!(
        "    retry: {{attempts: 3, on: ['503', 5xx, retriable-4xx]}}\n    timeoutMs: 1\n    mirrors: [{{destination: {{host: \
         {ECHO}, port: 80, subset: v2}}, sharePpm: 1000000}}]\n    responseHeaders: {{set: [[x-flags, '%RESPONSE_FLAGS%']]}}\n"
    );
    let fault = to_subset("v1", "    fault: {abort: {status: 503, sharePpm: 1000000}}\n");
    for (action, code, flags) in [
        ("  - directResponse: {status: 503}\n", 503, "-"),
        ("  - redirect: {code: 302, path: {full: /x}}\n", 302, "-"),
        (fault.as_str(), 503, "FI"),
    ] {
        let proxy = client(&format!("{action}{beside}"), &two_versions(&v1, &v2));
        let answer = get(proxy.addresses[0], "/");
        assert_eq!(
            (answer.status(), answer.field("x-flags").as_deref()),
            (code, Some(flags)),
            "{action}"
        );
        assert!(retries(&proxy) == 0, "{action}");
    }
    // Nothing is to come.
    pause(std::time::Duration::from_millis(200));
    assert_eq!((v1.count(), v2.count()), (0, 0));
}

/// Retries that a proxy has counted.
fn retries(proxy: &Proxy) -> u64 {
    let text = proxy.shared.telemetry.prometheus();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("weft_upstream_retry_total"));
    let count = line.and_then(|rest| rest.rsplit(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("no count of retries in {text}"))
}

// spec: VS-057
#[test]
fn a_retry_stays_with_the_destination_that_was_chosen() {
    let (v1, v2) = (App::answering(|_| status(503)), named("v2"));
    let rules = format!(
        "  - destinations: [{{host: {ECHO}, port: 80, subset: v1, weight: 1}}, {{host: {ECHO}, port: 80, subset: v2, weight: \
         1}}]\n    retry: {{attempts: 2, on: ['503'], backoffMs: 1}}\n"
    );
    let proxy = client(&rules, &two_versions(&v1, &v2));
    let mut client = Client::connect(proxy.addresses[0]);
    let failed = (0..40).filter(|_| client.get("/", "").status() == 503).count();
    assert!((1..40).contains(&failed), "{failed}");
    assert_eq!((v1.count(), v2.count()), (failed * 3, 40 - failed));
    assert_eq!(retries(&proxy), failed as u64 * 2);
}

// spec: VS-059, VS-186
#[test]
fn keys_of_hashing_count_within_the_chosen_destination_alone() {
    let apps: Vec<App> = ["a", "b", "c", "d"].map(named).into();
    let policy = |field: &str| format!("{{loadBalancer: {{consistentHash: {{key: {{header: {field}}}}}}}}}");
    let rules = format!(
        "  - destinations: [{{host: {ECHO}, port: 80, subset: v1, weight: 1}}, {{host: {ECHO}, port: 80, subset: v2, weight: \
         1}}]\n"
    );
    let proxy = start(
        &bundle_with_policies(&policy("x-one"), &policy("x-two"), &rules),
        &versions(&[apps[0].address, apps[1].address], &[apps[2].address, apps[3].address]),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut reached: BTreeMap<bool, BTreeSet<String>> = BTreeMap::new();
    for n in 0..120 {
        let name = client.get("/", &format!("X-One: same\r\nX-Two: {n}\r\n")).text();
        reached.entry(*name < *"c").or_default().insert(name);
    }
    // The first destination hashes what stays the same, the second what changes; one client reaches both.
    assert_eq!(reached.get(&true).map(BTreeSet::len), Some(1), "{reached:?}");
    assert_eq!(reached.get(&false).map(BTreeSet::len), Some(2), "{reached:?}");
}

// spec: VS-009, SM-110
#[test]
fn a_server_proxy_applies_no_rules() {
    let app = App::echo();
    let port = app.address.port();
    // Its own service has rules, which hold for what its application calls.
    let rules =
        to_echo("    fault: {abort: {status: 418, sharePpm: 1000000}}\n    requestHeaders: {set: [[x-rule, yes]]}\n");
    let bundle = bundle(&rules).replace(&workload("app/client"), &workload("app/echo"))
        + &format!("inbound: {{ports: [{{port: {port}, protocol: http, host: {ECHO}}}]}}\n");
    let inbound = (
        SocketAddr::new(address(), 0),
        Role::Explicit {
            target: app.address,
            port,
        },
    );
    let outbound = (
        SocketAddr::new(address(), 0),
        Role::Fixed {
            destination: support::virtual_address(),
        },
    );
    let proxy = Proxy::start(vec![inbound, outbound], &bundle, &one(&app), None);
    assert_eq!(get(proxy.addresses[1], "/").status(), 418);
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    assert_eq!(app.count(), 1);
    assert!(app.last().field("x-rule").is_none());
}

// spec: VS-141, VS-123
#[test]
fn a_copy_goes_by_the_rules_of_its_own_destination() {
    let v1 = named("v1");
    let held = silent();
    let copies = [App::answering(|_| status(503)), App::answering(|_| status(503))];
    let addresses = [copies[0].address, copies[1].address];
    let to_v1 = to_subset("v1", "");
    let mirror =
        |subset: &str| format!("{{destination: {{host: {ECHO}, port: 80, subset: {subset}}}, sharePpm: 1000000}}");
    // An unknown one is skipped; the others go to the endpoints of their subset, by its balancer and once.
    let rules = format!(
        "{to_v1}    mirrors: [{}, {}]\n    retry: {{attempts: 3, on: ['503'], backoffMs: 1}}\n",
        mirror("undefined"),
        mirror("v2")
    );
    let hash = "{loadBalancer: {consistentHash: {key: {header: x-key}}}}";
    let proxy = start(
        &bundle_with_policies("{}", hash, &rules),
        &versions(&[v1.address], &addresses),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    for n in 1..=20 {
        assert_eq!(client.get("/", "X-Key: same\r\n").text(), "v1");
        wait_for("the copy", || copies[0].count() + copies[1].count() == n);
    }
    assert!(copies.iter().any(|app| app.count() == 20), "one key, one endpoint");
    pause(std::time::Duration::from_millis(200));
    assert_eq!(copies[0].count() + copies[1].count(), 20, "a copy is not sent again");
    assert_eq!(v1.count(), 20);
    // Its limits hold for it alone.
    let rules = format!("{to_v1}    mirrors: [{}]\n", mirror("v2"));
    let bundle = bundle_with_policies("{}", "{maxRequests: 1}", &rules);
    let proxy = start(&bundle, &versions(&[v1.address], &[held.address]));
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/", "").text(), "v1");
    wait_for("the copy", || held.count() == 1);
    for _ in 0..5 {
        assert_eq!(client.get("/", "").text(), "v1");
    }
    pause(std::time::Duration::from_millis(200));
    assert_eq!(held.count(), 1, "the first one takes the only place");
}

// spec: VS-058
#[test]
fn each_request_is_copied_and_delayed_once_whichever_destination_is_chosen() {
    let (v1, v2) = (named("v1"), named("v2"));
    let rules = format!(
        "  - destinations: [{{host: {ECHO}, port: 80, subset: v1, weight: 1}}, {{host: {ECHO}, port: 80, subset: v2, weight: \
         1}}]\n    mirrors: [{{destination: {{host: {ECHO}, port: 80, subset: v2}}, sharePpm: 1000000}}]\n"
    );
    let proxy = client(&rules, &two_versions(&v1, &v2));
    let mut client = Client::connect(proxy.addresses[0]);
    let to_v1 = (0..40).filter(|_| client.get("/", "").text() == "v1").count();
    assert!((1..40).contains(&to_v1), "{to_v1}");
    wait_for("the copies", || v2.count() == 40 - to_v1 + 40);
    assert_eq!(v1.count(), to_v1);
}

const PREFLIGHT: &str = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a,x-b\r\n";

/// The answer to an OPTIONS request with these fields, and whether the application has answered it.
fn options(cors: &str, fields: &str) -> (support::Answer, bool) {
    let app = App::answering(|_| "HTTP/1.1 204 App\r\nX-App: yes\r\n\r\n".into());
    let proxy = client(&to_echo(&format!("    cors: {cors}\n")), &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(&format!("OPTIONS / HTTP/1.1\r\nHost: echo\r\n{fields}\r\n"));
    let answer = client.receive().expect("an answer");
    (answer, app.count() == 1)
}

// spec: VS-143, VS-144, VS-146, VS-147, VS-148
#[test]
fn a_preflight_is_told_methods_and_headers() {
    let from = |origin: &str| format!("Origin: {origin}\r\n{PREFLIGHT}");
    let field = |cors: &str, name: &str| {
        let (answer, forwarded) = options(
            &format!("{{allowOrigins: [{{exact: '*'}}]{cors}}}"),
            &from("https://a.example"),
        );
        assert_eq!((answer.status(), forwarded), (200, false), "{cors}");
        answer.field(name)
    };
    let headers = "access-control-allow-headers";
    assert_eq!(field("", headers), None);
    assert_eq!(field(", allowHeaders: [x-c, x-d]", headers).as_deref(), Some("x-c,x-d"));
    assert_eq!(field(", allowHeaders: ['*']", headers).as_deref(), Some("x-a,x-b"));
    let methods = "access-control-allow-methods";
    assert_eq!(field("", methods), None);
    assert_eq!(
        field(", allowMethods: [GET]", methods).as_deref(),
        Some("GET"),
        "the browser compares"
    );
    assert_eq!(field(", allowMethods: ['*']", methods).as_deref(), Some("PUT"));
    let exposed = "access-control-expose-headers";
    assert_eq!(field("", exposed), None);
    assert_eq!(
        field(", exposeHeaders: [x-e, x-f]", exposed).as_deref(),
        Some("x-e,x-f")
    );
    // Not every OPTIONS request is a preflight.
    for fields in ["Origin: https://a.example\r\n", PREFLIGHT] {
        let (answer, forwarded) = options("{allowOrigins: [{exact: '*'}]}", fields);
        assert_eq!((answer.status(), forwarded), (204, true), "{fields}");
    }
    // Origins are compared whole, with their case.
    let admits = |origin: &str| {
        let cors = "{allowOrigins: [{exact: https://a.example}, {prefix: 'https://b.'}, {regex: 'https://c[0-9]'}]}";
        !options(cors, &from(origin)).1
    };
    assert!(admits("https://a.example") && admits("https://b.example:8080") && admits("https://c1"));
    for other in [
        "https://A.example",
        "https://a.example:80",
        "http://b.example",
        "https://c12",
    ] {
        assert!(!admits(other), "{other}");
    }
}

// spec: VS-148, VS-152, VS-153
#[test]
fn answers_of_the_application_get_what_the_policy_sets() {
    let app = App::answering(|_| {
        "HTTP/1.1 200 OK\r\nAccess-Control-Expose-Headers: x-app\r\nAccess-Control-Allow-Credentials: false\r\nContent-Length: \
         0\r\n\r\n"
            .into()
    });
    let proxy = client(
        &to_echo(
            "    cors: {allowOrigins: [{exact: https://a.example}], exposeHeaders: [x-e], allowCredentials: true}\n",
        ),
        &one(&app),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let mut fields = |origin: &str| {
        let answer = client.get("/", &format!("Origin: {origin}\r\n"));
        assert_eq!(answer.status(), 200, "no request is kept back");
        let value = |name: &str| answer.field(name).unwrap_or_default();
        (
            value("access-control-expose-headers"),
            value("access-control-allow-credentials"),
        )
    };
    assert_eq!(fields("https://a.example"), ("x-e".to_owned(), "true".to_owned()));
    assert_eq!(fields("https://b.example"), ("x-app".to_owned(), "false".to_owned()));
}

// spec: VS-151
#[test]
fn a_preflight_of_another_origin_goes_on_or_is_answered_without_leave() {
    let fields = format!("Origin: https://b.example\r\n{PREFLIGHT}");
    let policy = "allowOrigins: [{exact: https://a.example}], allowMethods: [GET, PUT]";
    let (answer, forwarded) = options(&format!("{{{policy}}}"), &fields);
    assert_eq!((answer.status(), forwarded), (204, true));
    assert_eq!(answer.field("x-app").as_deref(), Some("yes"));
    assert_eq!(answer.field("access-control-allow-methods"), None);
    let (answer, forwarded) = options(&format!("{{{policy}, ignoreUnmatchedPreflights: true}}"), &fields);
    assert_eq!((answer.status(), forwarded), (200, false));
    assert_eq!(answer.field("access-control-allow-origin"), None);
    assert_eq!(answer.field("access-control-allow-methods").as_deref(), Some("GET,PUT"));
}

// spec: VS-071
#[test]
fn a_rewrite_by_an_expression_keeps_the_query() {
    let app = App::echo();
    let rewrite = "    rewrite: {path: {regex: {pattern: '^/old/(.*)', substitution: '/new/\\1'}}}\n";
    let proxy = client(&to_echo(rewrite), &one(&app));
    for (path, sent) in [("/old/a?old=/old/b", "/new/a?old=/old/b"), ("/other?q", "/other?q")] {
        assert_eq!(get(proxy.addresses[0], path).status(), 200);
        let head = app.last().head;
        assert!(head.starts_with(&format!("GET {sent} ")), "{head}");
    }
}

// spec: DR-003
#[test]
fn the_policy_is_that_of_the_destination_and_not_of_the_host_with_the_rules() {
    let app = App::echo();
    let cookie = "{loadBalancer: {consistentHash: {key: {cookie: {name: c, ttlSeconds: 0}}}}}";
    let hosts = |of_echo: &str, of_other: &str| {
        let other = format!(
            "- host: other.app.svc.cluster.local\n  name: other\n  namespace: app\n  domains: [other]\n  addresses: \
             [10.1.0.9]\n  ports:\n  - {{port: 80, name: main, protocol: http, policy: {of_other}}}\nroutes:\n- name: t\n  \
             origin: {{kind: VirtualService, namespace: app, name: rules}}\n  rules:\n  - destinations: [{{host: \
             other.app.svc.cluster.local, port: 80}}]\n"
        );
        let port = format!("protocol: http, http: t, policy: {of_echo}}}");
        client_bundle("http", &other).replacen("protocol: http}", &port, 1)
    };
    let list = one(&app).replace(ECHO, "other.app.svc.cluster.local");
    let sets_cookie = |bundle: &str| {
        let proxy = start(bundle, &list);
        let answer = get(proxy.addresses[0], "/");
        assert_eq!(answer.status(), 200);
        answer.field("set-cookie").is_some()
    };
    assert!(sets_cookie(&hosts("{}", cookie)));
    assert!(!sets_cookie(&hosts(cookie, "{}")));
}

// spec: SM-037
#[test]
fn on_a_port_of_http_the_host_decides_and_not_the_address() {
    let (echo, other) = (named("echo"), named("other"));
    let host = "- host: other.app.svc.cluster.local\n  name: other\n  namespace: app\n  domains: [10.1.0.9, other]\n  \
                addresses: [10.1.0.9]\n  ports:\n  - {port: 80, name: main, protocol: http}\n";
    let list = one(&echo).replace("ports:\n", &format!("ports:\n- {{main: {}}}\n", other.address.port()));
    let list = list.replace("p: 0", "p: 1")
        + &format!(
            "- host: other.app.svc.cluster.local\n  accounts: []\n  endpoints:\n  - {{a: {}, p: 0}}\n",
            other.address.ip()
        );
    // The application has dialled the address of `echo`.
    let proxy = start(&client_bundle("http", host), &list);
    for name in ["echo", "other"] {
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(&format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert_eq!(client.receive().expect("an answer").text(), name);
    }
}
