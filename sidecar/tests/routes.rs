//! Rules of virtual services on a client proxy.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::rules::{ECHO, client, dialling, failing, named, one, silent, status, to_echo, two_versions};
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
    client.send("PUT /other HTTP/1.1\r\nHost: echo\r\nContent-Length: 0\r\n\r\n");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status(), 404, "each condition of an alternative must hold");
    proxy.wait_for_flags("NC");
    proxy.wait_for_flags("NR");
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

// spec: VS-060, VS-065
#[test]
fn what_is_set_replaces_and_what_is_added_stands_behind_it() {
    let app = App::echo();
    let operations = "{set: [[x-s, new], [x-none, '%REQ(x-gone)%'], [x-some, 'a%REQ(x-gone)%']], add: [[x-s, more], [x-not, \
                      '%REQ(x-gone)%']]}";
    let rule = to_echo(&format!(
        "    requestHeaders: {operations}\n    responseHeaders: {{set: [[x-app, '%REQ(X-S)% %REQ(:METHOD)%'], [x-none, \
         '%REQ(x-gone)%']]}}\n"
    ));
    let proxy = client(&rule, &one(&app));
    let answer = Client::connect(proxy.addresses[0]).get("/", "X-S: old\r\nX-S: older\r\n");
    let head = app.last().head.to_ascii_lowercase();
    let values: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("x-s: ")).collect();
    assert_eq!(values, ["new", "more"], "{head}");
    // A variable without value sets nothing, unless there is more to the value.
    assert!(!head.contains("x-none") && !head.contains("x-not"), "{head}");
    assert_eq!(app.last().field("x-some").as_deref(), Some("a"));
    // Answers are told what the client said.
    assert_eq!(answer.field("x-app").as_deref(), Some("old GET"));
    assert!(answer.field("x-none").is_none());
}

// spec: VS-062
#[test]
fn of_several_destinations_the_operations_come_before_those_of_the_route() {
    let app = App::echo();
    let of_destination = "{remove: [x-two], set: [[x-both, d], [x-one, d]], add: [[x-d, d]]}";
    let of_route = "{remove: [x-one], set: [[x-both, r], [x-two, r]], add: [[x-r, r]]}";
    for (more, both, one_, two) in [
        // Removals of both come first, and what the destination sets is there.
        ("", "d", Some("d"), Some("r")),
        // The route takes away what the destination has set.
        (", {host: HOST, port: 80, weight: 0}", "r", None, Some("r")),
    ] {
        let more = more.replace("HOST", ECHO);
        let proxy = client(
            &format!(
                "  - destinations: [{{host: {ECHO}, port: 80, weight: 1, requestHeaders: {of_destination}, \
                 responseHeaders: {of_destination}}}{more}]\n    requestHeaders: {of_route}\n    responseHeaders: \
                 {of_route}\n"
            ),
            &one(&app),
        );
        let answer = Client::connect(proxy.addresses[0]).get("/", "X-One: 0\r\nX-Two: 0\r\n");
        let (sent, answered) = (|name: &str| app.last().field(name), |name: &str| answer.field(name));
        for field in [&sent as &dyn Fn(&str) -> Option<String>, &answered] {
            assert_eq!(field("x-both").as_deref(), Some(both), "{more}");
            assert_eq!(field("x-one").as_deref(), one_, "{more}");
            assert_eq!(field("x-two").as_deref(), two, "{more}");
            assert!(field("x-d").is_some() && field("x-r").is_some(), "{more}");
        }
    }
}

// spec: VS-063, VS-073
#[test]
fn a_host_that_is_set_is_the_routes_before_the_destinations() {
    let app = App::echo();
    for (rewrite, route, destination, host) in [
        ("", Some("Host"), None, "r.example"),
        ("", Some(":authority"), None, "r.example"),
        ("", None, Some("host"), "d.example"),
        ("", Some("host"), Some(":authority"), "r.example"),
        ("    rewrite: {authority: w.example}\n", None, Some("Host"), "w.example"),
    ] {
        let set = |name: Option<&str>, value: &str| match name {
            Some(name) => format!("{{set: [['{name}', {value}]]}}"),
            None => "{}".to_owned(),
        };
        let proxy = client(
            &format!(
                "  - destinations: [{{host: {ECHO}, port: 80, requestHeaders: {}}}]\n    requestHeaders: {}\n{rewrite}",
                set(destination, "d.example"),
                set(route, "r.example")
            ),
            &one(&app),
        );
        get(proxy.addresses[0], "/");
        let seen = app.last();
        assert_eq!(seen.field("host").as_deref(), Some(host), "{route:?} {destination:?}");
        assert_eq!(seen.field("x-envoy-original-host").as_deref(), Some("echo"), "{host}");
        assert_eq!(
            seen.head.to_ascii_lowercase().matches("\nhost: ").count(),
            1,
            "{}",
            seen.head
        );
    }
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
    let rule = to_echo("    rewrite: {path: {regex: {pattern: '([a-z])(\\d)', substitution: '\\2\\1-\\0'}}}\n");
    let proxy = client(&rule, &one(&app));
    get(proxy.addresses[0], "/a1/b2");
    assert!(app.last().head.starts_with("GET /1a-a1/2b-b2 "), "{}", app.last().head);
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
    client.send("HEAD / HTTP/1.1\r\nHost: echo\r\n\r\nGET /full HTTP/1.1\r\nHost: echo\r\n\r\n");
    let mut both = String::new();
    while both.matches("\r\n\r\n").count() < 2 {
        assert!(client.read_more(), "{both}");
        both = client.buffered();
    }
    assert!(
        both.starts_with("HTTP/1.1 418 ") && both.contains("content-length: 5\r\n"),
        "{both}"
    );
    assert!(!both.contains("hello"), "HEAD gets the headers alone: {both}");
}

// spec: VS-088
#[test]
fn an_answer_without_body_has_no_type_and_the_rule_may_set_one() {
    let rules = "  - matches: [{path: {exact: /empty}}]\n    directResponse: {status: 200}\n  - directResponse: {status: 200, \
                 body: e30=}\n    responseHeaders: {set: [[content-type, application/json]]}\n";
    let proxy = client(rules, &echo_endpoints(&[]));
    let empty = get(proxy.addresses[0], "/empty");
    assert_eq!((empty.text().as_str(), empty.field("content-type")), ("", None));
    let other = get(proxy.addresses[0], "/");
    assert_eq!(other.text(), "{}");
    assert_eq!(other.field("content-type").as_deref(), Some("application/json"));
    assert_eq!(other.head.to_ascii_lowercase().matches("content-type").count(), 1);
}

// spec: VS-077, VS-080, VS-081, VS-082, VS-083, VS-084, VS-085
#[test]
fn a_redirect_keeps_of_the_request_what_it_does_not_change() {
    // The client dials port 80.
    for (redirect, host, path, location) in [
        ("path: {full: /to}", "echo", "/a?q=1", "http://echo/to?q=1"),
        ("path: {full: '/to?own'}", "echo", "/a?q=1", "http://echo/to?own"),
        ("path: {full: /to}", "echo:8080", "/a", "http://echo:8080/to"),
        ("scheme: https", "echo:8080", "/a/b?q", "https://echo:8080/a/b?q"),
        ("scheme: https", "echo:80", "/a", "https://echo/a"),
        ("authority: new.example", "echo:8080", "/a", "http://new.example/a"),
        (
            "authority: 'new.example:81'",
            "echo:8080",
            "/a",
            "http://new.example:81/a",
        ),
        ("port: {number: 80}", "echo:8080", "/a", "http://echo/a"),
        ("port: {number: 443}", "echo", "/a", "http://echo:443/a"),
        ("scheme: https, port: {number: 443}", "echo", "/a", "https://echo/a"),
        ("port: fromRequest", "echo:8080", "/a", "http://echo/a"),
        ("scheme: https, port: fromRequest", "echo", "/a", "https://echo:80/a"),
        ("port: fromProtocol", "echo:8080", "/a", "http://echo:8080/a"),
        ("scheme: https, port: fromProtocol", "echo:80", "/a", "https://echo/a"),
        (
            "authority: new.example, port: fromProtocol",
            "echo:8080",
            "/a",
            "http://new.example/a",
        ),
        ("path: {prefix: /to}", "echo", "/a/b?q", "http://echo/to/b?q"),
    ] {
        let rules = format!("  - matches: [{{path: {{prefix: /a}}}}]\n    redirect: {{code: 301, {redirect}}}\n");
        let proxy = client(&rules, &echo_endpoints(&[]));
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status(), 301, "{redirect}");
        assert_eq!(answer.field("location").as_deref(), Some(location), "{redirect} {host}");
    }
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
    proxy.wait_for_flags("UT");
    let mut client_ = Client::connect(proxy.addresses[0]);
    let answer = client_.get("/", "Content-Type: application/grpc\r\n");
    assert_eq!(
        (answer.status(), answer.field("grpc-status").as_deref()),
        (200, Some("14"))
    );
    // Without a limit it goes on waiting.
    let proxy = client(&to_echo(""), &one(&app));
    let mut client_ = Client::connect(proxy.addresses[0]);
    client_.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    let limit = Some(Duration::from_millis(600));
    client_.stream.set_read_timeout(limit).expect("option");
    assert!(client_.receive().is_none());
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

// spec: VS-119, VS-121
#[test]
fn when_retries_are_exhausted_the_last_answer_is_passed_on_and_flagged() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let app = App::answering(move |_| {
        let body = format!("try {}", count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1);
        format!(
            "HTTP/1.1 503 Busy\r\nX-App: yes\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    });
    let rule = |attempts: u32| {
        to_echo(&format!(
            "    retry: {{attempts: {attempts}, on: [5xx], backoffMs: 1}}\n"
        ))
    };
    let proxy = client(&rule(2), &one(&app));
    let answer = get(proxy.addresses[0], "/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "try 3"));
    assert_eq!(answer.field("x-app").as_deref(), Some("yes"));
    let counts: Vec<_> = app
        .seen
        .lock()
        .expect("no panic")
        .iter()
        .map(|s| s.field("x-envoy-attempt-count"))
        .collect();
    assert_eq!(counts, ["1", "2", "3"].map(|n| Some(n.to_owned())));
    proxy.wait_for_flags("URX");
    // One that was not retried is not exhausted.
    let proxy = client(&rule(0), &one(&app));
    assert_eq!(get(proxy.addresses[0], "/").text(), "try 4");
    proxy.wait_for_flags("-");
    // Without any answer it is the proxy's own, of the last failure.
    let lost = failing(100, String::new());
    let proxy = client(&rule(1), &one(&lost));
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().contains("retried and the latest reset reason"),
        "{}",
        answer.text()
    );
    proxy.wait_for_flags("UC,URX");
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

    // When none is left the client is told that it took too long.
    let app = silent();
    let proxy = client(
        &to_echo("    retry: {attempts: 1, on: [5xx], perTryTimeoutMs: 100}\n"),
        &one(&app),
    );
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (504, "upstream request timeout")
    );
    assert_eq!(app.count(), 2);
    proxy.wait_for_flags("UT,URX");
    // One that is no shorter than that of the route has no effect.
    let proxy = client(
        &to_echo("    timeoutMs: 200\n    retry: {attempts: 3, on: [5xx], perTryTimeoutMs: 200}\n"),
        &one(&app),
    );
    assert_eq!(get(proxy.addresses[0], "/").status(), 504);
    assert_eq!(app.count(), 3);
    proxy.wait_for_flags("UT");
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
    proxy.wait_for_flags("DI,FI");
    let proxy = client(&to_echo("    fault: {abort: {status: 418, sharePpm: 0}}\n"), &one(&app));
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    let delay = "    fault: {delay: {fixedMs: 120, sharePpm: 1000000}}\n    timeoutMs: 50\n";
    let proxy = client(&to_echo(delay), &one(&app));
    let begin = Instant::now();
    assert_eq!(get(proxy.addresses[0], "/").status(), 200);
    assert!(begin.elapsed() >= Duration::from_millis(120));
    proxy.wait_for_flags("DI");
}

// spec: VS-127, VS-130
#[test]
fn an_abort_is_told_in_the_terms_of_the_caller() {
    let app = App::echo();
    for (abort, plain, grpc) in [
        ("grpcStatus: 14", 200, "14"),
        ("grpcStatus: 5", 200, "5"),
        ("status: 404", 404, "12"),
        ("status: 503", 503, "14"),
    ] {
        let rule = to_echo(&format!("    fault: {{abort: {{{abort}, sharePpm: 1000000}}}}\n"));
        let proxy = client(&rule, &one(&app));
        let mut client_ = Client::connect(proxy.addresses[0]);
        let answer = client_.get("/", "");
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (plain, "fault filter abort"),
            "{abort}"
        );
        assert!(answer.field("grpc-status").is_none(), "{abort}");
        let answer = client_.get("/", "Content-Type: application/grpc\r\n");
        assert_eq!(answer.status(), 200, "{abort}");
        assert_eq!(answer.field("grpc-status").as_deref(), Some(grpc), "{abort}");
        proxy.wait_for_flags("FI");
    }
    assert_eq!(app.count(), 0);
}

// spec: VS-131
#[test]
fn delay_and_abort_are_drawn_one_without_the_other() {
    let app = App::echo();
    let share = "sharePpm: 500000";
    let rule = to_echo(&format!(
        "    fault: {{delay: {{fixedMs: 1, {share}}}, abort: {{status: 418, {share}}}}}\n    responseHeaders: {{set: [[x-flags, \
         '%RESPONSE_FLAGS%']]}}\n"
    ));
    let proxy = client(&rule, &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    let all: std::collections::BTreeSet<_> = (0..100)
        .map(|_| client.get("/", "").field("x-flags").unwrap_or_default())
        .collect();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), ["-", "DI", "DI,FI", "FI"]);
}

// spec: VS-132
#[test]
fn an_abort_comes_before_cors() {
    let app = App::echo();
    let rule = to_echo(
        "    cors: {allowOrigins: [{exact: '*'}], allowMethods: [GET]}\n    fault: {abort: {status: 418, sharePpm: 1000000}}\n",
    );
    let proxy = client(&rule, &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    let origin = "Origin: https://a.example\r\n";
    client.send(&format!(
        "OPTIONS / HTTP/1.1\r\nHost: echo\r\n{origin}Access-Control-Request-Method: GET\r\n\r\n"
    ));
    for answer in [client.receive().expect("an answer"), client.get("/", origin)] {
        assert_eq!((answer.status(), answer.text().as_str()), (418, "fault filter abort"));
        assert!(
            !answer.head.to_ascii_lowercase().contains("access-control"),
            "{}",
            answer.head
        );
    }
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

// spec: VS-136
#[test]
fn nobody_waits_for_a_copy() {
    let (v1, v2) = (named("v1"), silent());
    let rules = format!(
        "  - destinations: [{{host: {ECHO}, port: 80, subset: v1}}]\n    mirrors: [{{destination: {{host: {ECHO}, port: 80, \
         subset: v2}}, sharePpm: 1000000}}]\n"
    );
    let proxy = client(&rules, &two_versions(&v1, &v2));
    let mut client = Client::connect(proxy.addresses[0]);
    for _ in 0..3 {
        assert_eq!(client.get("/", "").text(), "v1");
    }
    wait_for("the copies", || v2.count() == 3);
}

// spec: VS-139, VS-140
#[test]
fn a_copy_is_what_the_request_became() {
    let (v1, v2) = (named("v1"), named("v2"));
    let rules = format!(
        "  - matches: [{{path: {{prefix: /a}}}}]\n    destinations: [{{host: {ECHO}, port: 80, subset: v1}}]\n    rewrite: {{path: \
         {{matched: /b}}, authority: inner.example}}\n    requestHeaders: {{remove: [x-gone], set: [[x-a, b]]}}\n    mirrors: \
         [{{destination: {{host: {ECHO}, port: 80, subset: v2}}, sharePpm: 1000000}}]\n"
    );
    let proxy = client(&rules, &two_versions(&v1, &v2));
    Client::connect(proxy.addresses[0]).get("/a/x?q", "X-Gone: 1\r\nX-Forwarded-For: 10.0.0.1\r\n");
    wait_for("the copy", || v2.count() == 1);
    for seen in [v1.last(), v2.last()] {
        assert!(
            seen.head.starts_with("GET /b/x?q HTTP/1.1\r\nHost: inner.example\r\n"),
            "{}",
            seen.head
        );
        assert_eq!(seen.field("x-envoy-original-path").as_deref(), Some("/a/x?q"));
        assert_eq!(seen.field("x-envoy-original-host").as_deref(), Some("echo"));
        assert_eq!((seen.field("x-gone"), seen.field("x-a").as_deref()), (None, Some("b")));
    }
    assert_eq!(v1.last().field("x-forwarded-for").as_deref(), Some("10.0.0.1"));
    assert_eq!(
        v2.last().field("x-forwarded-for").as_deref(),
        Some("10.0.0.1, 127.0.0.1")
    );
}

// spec: VS-138
#[test]
fn each_mirror_is_drawn_by_itself() {
    let (v1, v2) = (named("v1"), named("v2"));
    let mirror = |share: u32| format!("{{destination: {{host: {ECHO}, port: 80, subset: v2}}, sharePpm: {share}}}");
    let rules = |mirrors: &str| {
        format!("  - destinations: [{{host: {ECHO}, port: 80, subset: v1}}]\n    mirrors: [{mirrors}]\n")
    };
    let proxy = client(
        &rules(&format!("{}, {}", mirror(500_000), mirror(500_000))),
        &two_versions(&v1, &v2),
    );
    let mut client_ = Client::connect(proxy.addresses[0]);
    for n in 0..100 {
        assert_eq!(client_.get("/", &format!("X-N: {n}\r\n")).text(), "v1");
    }
    // None of those that are still to come makes two of one that has come twice.
    wait_for("copies", || v2.count() > 50);
    support::pause(Duration::from_millis(300));
    let mut copies = std::collections::BTreeMap::<_, usize>::new();
    for seen in v2.seen.lock().expect("no panic").iter() {
        *copies.entry(seen.field("x-n")).or_default() += 1;
    }
    let with = |number: usize| copies.values().filter(|count| **count == number).count();
    assert!(with(1) > 20 && with(2) > 5 && copies.len() < 100, "{copies:?}");
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

    // What the policy does not say is not said.
    let app = App::echo();
    let proxy = self::client(&to_echo("    cors: {allowOrigins: [{exact: '*'}]}\n"), &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    let origin = "Origin: https://a.example\r\n";
    client.send(&format!(
        "OPTIONS / HTTP/1.1\r\nHost: echo\r\n{origin}Access-Control-Request-Method: PUT\r\n\r\n"
    ));
    for answer in [client.receive().expect("an answer"), client.get("/", origin)] {
        let said = answer.head.to_ascii_lowercase();
        let named: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("access-control-"))
            .collect();
        assert_eq!(named, ["access-control-allow-origin: https://a.example"]);
    }
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
    let fields = [
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-retry-grpc-on", "unavailable"),
        ("x-envoy-max-retries", "3"),
        ("x-envoy-retriable-status-codes", "503"),
        ("x-envoy-retriable-header-names", "x-app"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms", "1"),
        ("x-envoy-upstream-rq-timeout-alt-response", "204"),
        ("x-envoy-hedge-on-per-try-timeout", "true"),
    ];
    let lines: String = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    assert_eq!(client_.get("/", &lines).status(), 503);
    assert_eq!(app.count(), 1);
    for (name, _) in fields {
        assert!(app.last().field(name).is_none(), "{name}");
    }
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
    let listener = dialling(virtual_address());
    let proxy = Proxy::start(listener, &bundle, &two_versions(&v1, &v2), None);
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
    let reached = |client: &mut Client, path: &dyn Fn(u32) -> String, fields: &str| {
        let all: std::collections::BTreeSet<_> = (0..40).map(|n| client.get(&path(n), fields).text()).collect();
        all.len()
    };
    assert_eq!(
        reached(&mut client, &|n| format!("/?u=same&u={n}"), ""),
        1,
        "the first value counts"
    );
    assert_eq!(
        reached(&mut client, &|_| "/?v=same".to_owned(), ""),
        2,
        "without a key at random"
    );
    // The same by a header.
    proxy.configure(&bundle.replace("{queryParameter: u}", "{header: x-user}"));
    assert_eq!(reached(&mut client, &|n| format!("/?u={n}"), "X-User: same\r\n"), 1);
    assert_eq!(reached(&mut client, &|_| "/?u=same".to_owned(), ""), 2);
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
