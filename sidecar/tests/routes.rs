//! Rules of virtual services on a client proxy.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::rules::{ECHO, client, failing, named, one, silent, status, to_echo, two_versions};
use support::{App, Client, Proxy, address, client_bundle, echo_endpoints, get, virtual_address, wait_for};
use weft_sidecar::shared::Role;

// spec: VS-020, VS-021, VS-022, VS-028, VS-035, VS-048, BYD-030
#[test]
fn the_first_rule_that_fits_decides() {
    let (v1, v2) = (named("v1"), named("v2"));
    let proxy = client(
        &format!(
            "  - matches: [{{headers: [{{name: user, value: {{exact: jason}}}}]}}, {{path: {{prefix: /new}}}}]\n    \
             destinations: [{{host: {ECHO}, port: 80, subset: v2}}]\n  - matches: [{{path: {{exact: /gone}}}}]\n    \
             destinations: [{{host: {ECHO}, port: 80, subset: v3}}]\n  - matches: [{{method: {{exact: GET}}, path: \
             {{regex: '/o.*'}}}}]\n    destinations: [{{host: {ECHO}, port: 80, subset: v1}}]\n"
        ),
        &two_versions(&v1, &v2),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    assert_eq!(client.get("/other", "").text(), "v1");
    assert_eq!(client.get("/other", "User: jason\r\n").text(), "v2");
    assert_eq!(client.get("/newer?x", "").text(), "v2");
    let missing = client.get("/gone", "");
    assert_eq!((missing.status(), missing.text()), (503, String::new()));
    let reason = missing.field("x-weft-reason").expect("the application is told");
    assert_eq!(reason, "cluster_not_found; VirtualService app/rules");
    assert_eq!(client.get("/none", "").status(), 404);
}

// spec: VS-053, VS-055
#[test]
fn weights_split_requests() {
    let (v1, v2) = (named("v1"), named("v2"));
    let proxy = client(
        &format!(
            "  - destinations:\n    - {{host: {ECHO}, port: 80, subset: v1, weight: 90}}\n    - {{host: {ECHO}, port: \
             80, subset: v2, weight: 10}}\n"
        ),
        &two_versions(&v1, &v2),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let hits = (0..2000).filter(|_| client.get("/", "").text() == "v2").count();
    // Six standard deviations around 200.
    assert!((120..=280).contains(&hits), "{hits}");
}

// spec: VS-060, VS-062, VS-063, VS-065, VS-068, VS-071, VS-072, VS-073
#[test]
fn rewrites_and_header_operations_change_what_is_sent() {
    let app = App::echo();
    let proxy = client(
        &format!(
            "  - matches: [{{path: {{prefix: /a/}}}}]\n    destinations:\n    - {{host: {ECHO}, port: 80, \
             responseHeaders: {{set: [[x-d, dest]]}}}}\n    rewrite: {{path: {{matched: /}}, authority: \
             inner.example}}\n    requestHeaders:\n      remove: [x-gone]\n      set: [[x-set, 'one %REQ(x-in)%']]\n      \
             add: [[x-add, '100%%']]\n    responseHeaders: {{remove: [x-app], set: [[x-d, route]], add: [[x-e, e]]}}\n"
        ),
        &one(&app),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let answer = client.get("/a/b?q=1", "X-Gone: 1\r\nX-In: in\r\nX-Set: old\r\nX-Add: 0\r\n");
    assert_eq!(answer.status(), 200);
    let seen = app.last();
    assert!(
        seen.head.starts_with("GET /b?q=1 HTTP/1.1\r\nHost: inner.example\r\n"),
        "{}",
        seen.head
    );
    assert!(seen.field("x-gone").is_none());
    assert_eq!(seen.field("x-set").as_deref(), Some("one in"));
    assert!(
        seen.head.contains("X-Add: 0\r\n") && seen.head.contains("x-add: 100%\r\n"),
        "{}",
        seen.head
    );
    assert_eq!(seen.field("x-envoy-original-path").as_deref(), Some("/a/b?q=1"));
    assert_eq!(seen.field("x-envoy-original-host").as_deref(), Some("echo"));
    assert!(answer.field("x-app").is_none());
    assert_eq!(
        answer.field("x-d").as_deref(),
        Some("dest"),
        "with one destination its set wins"
    );
    assert_eq!(answer.field("x-e").as_deref(), Some("e"));
}

// spec: VS-074
#[test]
fn a_regex_rewrites_every_part_that_fits() {
    let app = App::echo();
    let rule = to_echo("    rewrite: {path: {regex: {pattern: '/v(\\d+)', substitution: '/version-\\1'}}}\n");
    let proxy = client(&rule, &one(&app));
    get(proxy.addresses[0], "/v1/x/v22?v3");
    assert!(
        app.last().head.starts_with("GET /version-1/x/version-22?v3 "),
        "{}",
        app.last().head
    );
}

// spec: VS-075
#[test]
fn a_regex_sees_the_normalised_path_alone() {
    let app = App::echo();
    let rule = to_echo("    rewrite: {path: {regex: {pattern: '^/b/x$', substitution: /ok}}}\n");
    let proxy = client(&rule, &one(&app));
    get(proxy.addresses[0], "/a/../b/%78?y=/b/x");
    assert!(app.last().head.starts_with("GET /ok?y=/b/x "), "{}", app.last().head);
}

// spec: VS-066
#[test]
fn answers_of_the_proxy_are_changed_once_a_rule_is_found() {
    let rule = "  - matches: [{path: {prefix: /a}}]\n".to_owned()
        + &to_echo("    responseHeaders: {set: [[x-r, r]]}\n").replacen("  - ", "    ", 1);
    let proxy = client(&rule, &echo_endpoints(&[]));
    let mut client = Client::connect(proxy.addresses[0]);
    let answer = client.get("/a", "");
    assert_eq!((answer.status(), answer.field("x-r").as_deref()), (503, Some("r")));
    let answer = client.get("/b", "");
    assert_eq!((answer.status(), answer.field("x-r")), (404, None));
}

// spec: VS-077, VS-079, VS-081, VS-083, VS-084, VS-085, VS-087, VS-088
#[test]
fn redirects_and_direct_responses_need_no_upstream() {
    let proxy = client(
        "  - matches: [{path: {exact: /full}}]\n    redirect: {code: 302, scheme: https, authority: new.example, path: \
         {full: /to}}\n  - matches: [{path: {prefix: /pre/}}]\n    redirect: {code: 308, port: {number: 8080}, path: \
         {prefix: /post/}}\n  - directResponse: {status: 418, body: aGVsbG8=}\n",
        &echo_endpoints(&[]),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    let answer = client.get("/full?q", "");
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.field("location").as_deref(), Some("https://new.example/to?q"));
    let answer = client.get("/pre/x", "");
    assert_eq!(answer.status(), 308);
    assert_eq!(answer.field("location").as_deref(), Some("http://echo:8080/post/x"));
    let answer = client.get("/", "");
    assert_eq!((answer.status(), answer.text()), (418, "hello".to_owned()));
    assert_eq!(answer.field("content-type").as_deref(), Some("text/plain"));
}

// spec: VS-091, VS-092
#[test]
fn a_timeout_answers_504() {
    let app = silent();
    let proxy = client(&to_echo("    timeoutMs: 100\n"), &one(&app));
    let begin = Instant::now();
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(
        (answer.status(), answer.text()),
        (504, "upstream request timeout".to_owned())
    );
    assert!(begin.elapsed() >= Duration::from_millis(100));
}

// spec: VS-101, VS-105, VS-119, VS-121, VS-125
#[test]
fn a_retry_policy_counts_tries_and_repeats_the_body() {
    let app = failing(3, status(503));
    let proxy = client(&to_echo("    retry: {attempts: 3, on: [5xx]}\n"), &one(&app));
    let mut client_ = Client::connect(proxy.addresses[0]);
    client_.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
    let answer = client_.receive().expect("an answer");
    assert_eq!((answer.status(), answer.text()), (200, "ok".to_owned()));
    assert_eq!(app.count(), 4);
    assert_eq!(app.last().body, b"hello");
    assert_eq!(app.last().field("x-envoy-attempt-count").as_deref(), Some("4"));

    let app = failing(100, status(503));
    let proxy = client(&to_echo("    retry: {attempts: 2, on: ['503']}\n"), &one(&app));
    assert_eq!(get(proxy.addresses[0], "/").status(), 503);
    assert_eq!(app.count(), 3);
}

// spec: VS-099, VS-100, VS-102, VS-107, SM-050, BYD-014
#[test]
fn what_the_default_policy_does_not_name_is_not_retried() {
    for (failure, rule, calls, status) in [
        (status(503), "", 1, 503),
        (String::new(), "", 1, 503),
        (String::new(), "    retry: {attempts: 2, on: [reset]}\n", 3, 503),
        (status(503), "    retry: {attempts: 2, on: [reset]}\n", 1, 503),
        (String::new(), "    retry: {attempts: 0, on: []}\n", 1, 503),
    ] {
        let app = failing(100, failure.as_str());
        let proxy = client(&to_echo(rule), &one(&app));
        assert_eq!(get(proxy.addresses[0], "/").status(), status);
        assert_eq!(app.count(), calls, "{failure:?} {rule:?}");
    }
}

// spec: VS-115
#[test]
fn a_slow_try_is_given_up_for_the_next_one() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let app = App::new(std::sync::Arc::new(move |_, stream| {
        if count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            let mut byte = [0];
            let _ = std::io::Read::read(stream, &mut byte);
            return false;
        }
        std::io::Write::write_all(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_ok()
    }));
    let proxy = client(
        &to_echo("    retry: {attempts: 1, on: [5xx], perTryTimeoutMs: 100}\n"),
        &one(&app),
    );
    let mut client_ = Client::connect(proxy.addresses[0]);
    client_.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client_.receive().expect("an answer").status(), 200);
    assert_eq!(app.count(), 2);
    assert_eq!(app.last().body, b"hello");
}

// spec: VS-126, VS-127, VS-131, VS-132
#[test]
fn faults_delay_and_answer() {
    let app = App::echo();
    let rule = to_echo(
        "    timeoutMs: 50\n    fault: {delay: {fixedMs: 120, sharePpm: 1000000}, abort: {status: 418, sharePpm: \
         1000000}}\n    responseHeaders: {set: [[x-r, r]]}\n",
    );
    let proxy = client(&rule, &one(&app));
    let begin = Instant::now();
    let answer = get(proxy.addresses[0], "/");
    assert!(begin.elapsed() >= Duration::from_millis(120));
    assert_eq!((answer.status(), answer.text()), (418, "fault filter abort".to_owned()));
    assert_eq!(answer.field("x-r").as_deref(), Some("r"));
    assert_eq!(app.count(), 0);
    let proxy = client(&to_echo("    fault: {abort: {status: 418, sharePpm: 0}}\n"), &one(&app));
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
}

// spec: VS-136, VS-139, VS-140
#[test]
fn a_mirror_gets_a_copy_and_changes_nothing() {
    let (v1, v2) = (
        named("v1"),
        App::answering(|_| "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into()),
    );
    let proxy = client(
        &format!(
            "  - destinations: [{{host: {ECHO}, port: 80, subset: v1}}]\n    mirrors:\n    - destination: {{host: \
             {ECHO}, port: 80, subset: v2}}\n      sharePpm: 1000000\n    requestHeaders: {{set: [[x-a, b]]}}\n"
        ),
        &two_versions(&v1, &v2),
    );
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("POST /p HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.receive().expect("an answer").text(), "v1");
    wait_for("the copy", || v2.count() == 1);
    let seen = v2.last();
    assert_eq!(
        (seen.body.as_slice(), seen.field("host").as_deref()),
        (&b"hello"[..], Some("echo"))
    );
    assert_eq!(seen.field("x-a").as_deref(), Some("b"));
    assert_eq!(seen.field("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert!(v1.last().field("x-forwarded-for").is_none());
}

// spec: VS-143, VS-145, VS-146, VS-149, VS-150, VS-152, VS-153
#[test]
fn cors_is_answered_and_added() {
    let app =
        App::answering(|_| "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n".into());
    let rule = to_echo(
        "    cors: {allowOrigins: [{exact: https://a.example}], allowMethods: [GET, PUT], allowHeaders: ['*'], \
         maxAgeSeconds: 60, allowCredentials: true, exposeHeaders: [x-e]}\n",
    );
    let proxy = client(&rule, &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(
        "OPTIONS / HTTP/1.1\r\nHost: echo\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: \
         PUT\r\nAccess-Control-Request-Headers: x-a,x-b\r\n\r\n",
    );
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status(), app.count()), (200, 0));
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-a,x-b"),
        ("access-control-max-age", "60"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(answer.field(name).as_deref(), Some(value), "{}", answer.head);
    }
    let answer = client.get("/", "Origin: https://a.example\r\n");
    assert_eq!(
        answer.field("access-control-allow-origin").as_deref(),
        Some("https://a.example")
    );
    let answer = client.get("/", "Origin: https://b.example\r\n");
    assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
}

// spec: VS-179, LIFE-041, LIFE-043, BYD-001
#[test]
fn a_change_holds_from_the_next_request_on_the_same_connections() {
    let app = App::echo();
    let proxy = client(&to_echo(""), &one(&app));
    let mut client_ = Client::connect(proxy.addresses[0]);
    assert_eq!(client_.get("/1", "").status(), 200);
    let rest = "routes:\n- name: t\n  origin: {kind: VirtualService, namespace: app, name: rules}\n  rules:\n  - \
                destinations: [{host: echo.app.svc.cluster.local, port: 80}]\n    requestHeaders: {set: [[x-new, n]]}\n";
    let bundle = client_bundle("http", rest).replace("protocol: http}", "protocol: http, http: t}");
    proxy.configure(&bundle);
    assert_eq!(client_.get("/2", "").status(), 200);
    let seen = app.last();
    assert_eq!(seen.field("x-new").as_deref(), Some("n"));
    assert_eq!(seen.connection, 1, "the upstream connection is kept as well");
}

// spec: VS-097, VS-124
#[test]
fn headers_of_the_application_control_no_retry() {
    let app = failing(100, status(503));
    let proxy = client(&to_echo(""), &one(&app));
    let mut client_ = Client::connect(proxy.addresses[0]);
    let fields = "x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 3\r\nx-envoy-upstream-rq-timeout-ms: 1\r\n";
    assert_eq!(client_.get("/", fields).status(), 503);
    assert_eq!(app.count(), 1);
    assert!(app.last().field("x-envoy-retry-on").is_none());
}

// spec: DR-041, DR-042, DR-046
#[test]
fn a_hash_key_stays_with_its_endpoint() {
    let (v1, v2) = (named("v1"), named("v2"));
    let rest = "";
    let bundle = client_bundle("http", rest).replace(
        "protocol: http}",
        "protocol: http, policy: {loadBalancer: {consistentHash: {key: {queryParameter: u}}}}}",
    );
    let listener = (
        SocketAddr::new(address(), 0),
        Role::Fixed {
            destination: virtual_address(),
        },
    );
    let proxy = Proxy::start(vec![listener], &bundle, &two_versions(&v1, &v2), None);
    let mut client = Client::connect(proxy.addresses[0]);
    let mut both = std::collections::BTreeSet::new();
    for user in 0..40 {
        let first = client.get(&format!("/?u={user}"), "").text();
        for _ in 0..3 {
            assert_eq!(client.get(&format!("/?u={user}"), "").text(), first, "{user}");
        }
        both.insert(first);
    }
    assert_eq!(both.len(), 2, "keys are spread");
}

// spec: SM-052, LOC-022
#[test]
fn an_explicit_proxy_routes_by_the_authority_of_the_request() {
    let app = App::echo();
    for protocol in ["http", "auto"] {
        let listener = (SocketAddr::new(address(), 0), Role::HttpProxy);
        let proxy = Proxy::start(vec![listener], &client_bundle(protocol, ""), &one(&app), None);
        let url = "http://echo.app/p?q";
        let front = format!("http://{}", proxy.addresses[0]);
        let said = support::run("curl", "curl", &["-sS", "-x", &front, "-i", url]);
        assert!(said.starts_with("HTTP/1.1 200 Fine"), "{protocol}: {said}");
        let head = app.last().head;
        assert!(head.starts_with("GET /p?q HTTP/1.1\r\nHost: echo.app\r\n"), "{head}");
        // What no host of the mesh is goes where its name leads.
        let direct = format!("http://{}/d", app.address);
        let said = support::run("curl", "curl", &["-sS", "-x", &front, "-i", &direct]);
        assert!(said.starts_with("HTTP/1.1 200 Fine"), "{protocol}: {said}");
    }
}
