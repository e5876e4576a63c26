//! Time limits and retries of virtual services.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::rules::{bundle, client, dialling, endpoints, failing, named, one, silent, start, status, to_echo};
use support::{App, Client, Pair, Proxy, address, echo_endpoints, get, pause, virtual_address};
use weft_sidecar::locality::Here;
use weft_sidecar::shared::Settings;

// spec: VS-093, VS-092
#[test]
fn a_time_limit_begins_when_the_request_is_there_and_counts_all_tries() {
    let app = App::echo();
    let proxy = client(&to_echo("    timeoutMs: 300\n"), &one(&app));
    let mut client_ = Client::connect(proxy.addresses[0]);
    client_.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 10\r\n\r\nhello");
    pause(Duration::from_millis(700));
    client_.send("world");
    assert_eq!(client_.receive().expect("an answer").status(), 200);

    // Each try is quick, all of them and what lies between are not.
    let app = App::answering(|_| status(503));
    let retry = "    timeoutMs: 300\n    retry: {attempts: 1000000, on: ['503'], backoffMs: 10}\n";
    let proxy = client(&to_echo(retry), &one(&app));
    let begin = Instant::now();
    let answer = get(proxy.addresses[0], "/");
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (504, "upstream request timeout")
    );
    assert!(begin.elapsed() >= Duration::from_millis(300) && app.count() > 1);
}

// spec: VS-093, VS-095
#[test]
fn a_time_limit_ends_with_the_last_byte_of_the_answer() {
    let app = App::new(Arc::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789");
        let mut byte = [0];
        let _ = stream.read(&mut byte);
        false
    }));
    let proxy = client(&to_echo("    timeoutMs: 200\n"), &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    let begin = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert!(client.receive().is_none(), "90 bytes are missing");
    assert!(client.buffered().starts_with("0123456789"), "what had begun is no 504");
    assert!(begin.elapsed() >= Duration::from_millis(200) && begin.elapsed() < support::LIMIT);
}

// spec: VS-096
#[test]
fn a_grpc_timeout_shortens_the_limit_and_never_lengthens_it() {
    let app = silent();
    for (rule, asked) in [
        ("", "200m"),
        ("    timeoutMs: 60000\n", "200m"),
        ("    timeoutMs: 200\n", "1H"),
    ] {
        let proxy = client(&to_echo(rule), &one(&app));
        let mut client = Client::connect(proxy.addresses[0]);
        let begin = Instant::now();
        let answer = client.get("/", &format!("grpc-timeout: {asked}\r\n"));
        assert_eq!(answer.status(), 504, "{rule:?} {asked}");
        assert!(begin.elapsed() >= Duration::from_millis(200), "{rule:?} {asked}");
    }
}

// spec: VS-098
#[test]
fn an_upgraded_connection_outlives_the_time_limit() {
    let app = App::new(Arc::new(|_, stream| {
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let _ = stream.write_all(switch);
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|count| count > 0) {
            let _ = stream.write_all(&byte);
        }
        false
    }));
    let proxy = client(&to_echo("    timeoutMs: 200\n"), &one(&app));
    let mut client = Client::connect(proxy.addresses[0]);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.receive().expect("an answer").status(), 101);
    for text in ["a", "b"] {
        client.send(text);
        let mut byte = [0];
        client.stream.read_exact(&mut byte).expect("it is open");
        assert_eq!(byte, text.as_bytes());
        pause(Duration::from_millis(600));
    }
}

/// Calls that an application gets for one request that it fails, with two retries on a condition.
fn calls(on: &str, failure: &str) -> usize {
    let app = failing(100, failure);
    let proxy = client(
        &to_echo(&format!("    retry: {{attempts: 2, {on}, backoffMs: 1}}\n")),
        &one(&app),
    );
    get(proxy.addresses[0], "/");
    app.count()
}

// spec: VS-105, VS-106, VS-107, VS-108, VS-109, VS-110, VS-111, VS-112, VS-113
#[test]
fn conditions_name_what_is_retried() {
    let lost = "";
    let cases: [(&str, &[u16], &[u16]); 7] = [
        ("on: [5xx]", &[500, 501, 503, 504, 599], &[200, 404, 409, 429]),
        ("on: [gateway-error]", &[502, 503, 504], &[500, 501, 505, 409]),
        ("on: [retriable-4xx]", &[409], &[400, 404, 408, 429, 503]),
        ("on: [reset]", &[], &[500, 503, 409]),
        ("on: ['503', '429']", &[503, 429], &[500, 502, 504, 409]),
        ("on: [retriable-status-codes], statuses: [404]", &[404], &[503, 409]),
        ("on: [retriable-status-codes]", &[], &[404, 503]),
    ];
    for (on, retried, left) in cases {
        for code in retried {
            assert_eq!(calls(on, &status(*code)), 3, "{on} {code}");
        }
        for code in left {
            assert_eq!(calls(on, &status(*code)), 1, "{on} {code}");
        }
    }
    for on in ["5xx", "gateway-error", "reset"] {
        assert_eq!(calls(&format!("on: [{on}]"), lost), 3, "{on}");
    }
    // Conditions of which nothing is configured never hold.
    for on in ["retriable-headers", "http3-post-connect-failure"] {
        assert_eq!(calls(&format!("on: [{on}]"), &status(503)), 1, "{on}");
        assert_eq!(calls(&format!("on: [{on}]"), lost), 1, "{on}");
    }
    let limited = "HTTP/1.1 200 OK\r\nX-Envoy-RateLimited: true\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(calls("on: [envoy-ratelimited]", limited), 3);
    assert_eq!(calls("on: [envoy-ratelimited]", &status(429)), 1);
    // The request had been sent; and what the proxy itself answers is no status of the destination.
    for on in [
        "reset-before-request",
        "connect-failure",
        "refused-stream",
        "retriable-4xx",
        "'503'",
    ] {
        assert_eq!(calls(&format!("on: [{on}]"), lost), 1, "{on}");
    }
}

// spec: VS-105, VS-106, VS-108, VS-109, VS-112
#[test]
fn conditions_name_whether_a_connection_that_failed_is_retried() {
    let gone = SocketAddr::new(address(), 1);
    for (on, is_retried) in [
        ("connect-failure", true),
        ("5xx", true),
        ("gateway-error", true),
        ("reset", true),
        ("reset-before-request", true),
        ("'503'", false),
        ("retriable-4xx", false),
        ("refused-stream", false),
    ] {
        let rules = to_echo(&format!("    retry: {{attempts: 2, on: [{on}], backoffMs: 1}}\n"));
        let bundle = format!("mesh: {{vipFallback: false}}\n{}", bundle(&rules));
        let proxy = start(&bundle, &echo_endpoints(&[(gone, false)]));
        let answer = get(proxy.addresses[0], "/");
        assert_eq!(answer.status(), 503);
        let text = answer.text();
        assert_eq!(
            text.contains("retried and the latest reset reason"),
            is_retried,
            "{on}: {text}"
        );
    }
}

// spec: VS-112, VS-189
#[test]
fn what_a_server_proxy_makes_an_answer_is_retried_as_a_status() {
    for (on, tries) in [
        ("'503'", 3),
        ("5xx", 3),
        ("gateway-error", 3),
        ("reset", 1),
        ("connect-failure", 1),
    ] {
        let app = failing(100, "");
        let pair = Pair::start("http", app.address);
        pair.client.configure(&bundle(&to_echo(&format!(
            "    retry: {{attempts: 2, on: [{on}], backoffMs: 1}}\n"
        ))));
        // A POST, which is not sent again for other reasons.
        let mut client = Client::connect(pair.front);
        client.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.receive().expect("an answer").status(), 503, "{on}");
        assert_eq!(app.count(), tries, "{on}");
    }
}

// spec: VS-102, VS-187
#[test]
fn an_endpoint_that_cannot_be_reached_is_no_retry() {
    let gone = SocketAddr::new(address(), 1);
    let app = App::echo();
    let rules = to_echo("    retry: {attempts: 0, on: []}\n");
    let proxy = client(&rules, &echo_endpoints(&[(gone, false), (app.address, false)]));
    let mut client_ = Client::connect(proxy.addresses[0]);
    // Chance takes the one that is gone first in one of the first few.
    for _ in 0..30 {
        client_.send("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client_.receive().expect("an answer").status(), 200);
        assert_eq!(app.last().field("x-envoy-attempt-count").as_deref(), Some("1"));
    }
}

// spec: VS-117
#[test]
fn a_retry_avoids_what_was_tried_as_long_as_there_is_more() {
    let apps: Vec<App> = (0..3).map(|_| App::answering(|_| status(503))).collect();
    let list: Vec<_> = apps.iter().map(|app| (app.address, false)).collect();
    let rule = |more: &str| {
        to_echo(&format!(
            "    retry: {{attempts: 2, on: ['503'], backoffMs: 1{more}}}\n"
        ))
    };
    let counts = || apps.iter().map(App::count).collect::<Vec<_>>();
    let proxy = client(&rule(""), &echo_endpoints(&list));
    for n in 1..=20 {
        assert_eq!(get(proxy.addresses[0], "/").status(), 503);
        assert_eq!(counts(), [n; 3], "each once for each request");
    }
    let proxy = client(&rule(", avoidTried: false"), &echo_endpoints(&list));
    let again = (0..60).any(|_| {
        let before = counts();
        get(proxy.addresses[0], "/");
        counts().iter().zip(before).any(|(now, before)| now - before > 1)
    });
    assert!(again, "without the rule chance decides");
    // More tries than endpoints are made all the same.
    let proxy = client(&rule(""), &echo_endpoints(&list[..1]));
    let before = apps[0].count();
    get(proxy.addresses[0], "/");
    assert_eq!(apps[0].count(), before + 3);
}

// spec: VS-118
#[test]
fn every_second_retry_may_go_on_to_the_next_locality() {
    let (near, middle) = (App::answering(|_| status(503)), App::answering(|_| status(503)));
    let far = named("far");
    let shard = endpoints(
        &[
            (near.address, ", z: 0"),
            (middle.address, ", z: 1"),
            (far.address, ", z: 2"),
        ],
        "localities: [r/z, r/y, q/x]\n",
    );
    let calls = |more: &str| {
        let rules = to_echo(&format!(
            "    retry: {{attempts: 4, on: ['503'], backoffMs: 1, avoidTried: false{more}}}\n"
        ));
        let bundle = bundle(&rules).replace("http: t}", "http: t, policy: {locality: {failover: {regions: {}}}}}");
        let here = Here {
            locality: "r/z".into(),
            node: String::new(),
        };
        let settings = Settings {
            here,
            ..Settings::default()
        };
        let before = [near.count(), middle.count(), far.count()];
        let proxy = Proxy::with(dialling(virtual_address()), &bundle, &shard, None, settings);
        let status = get(proxy.addresses[0], "/").status();
        let after = [near.count(), middle.count(), far.count()];
        (status, std::array::from_fn(|n| after[n] - before[n]))
    };
    assert_eq!(calls(""), (503, [5, 0, 0]));
    assert_eq!(calls(", nextLocality: true"), (200, [2, 2, 1]));
}

// spec: VS-120
#[test]
fn a_body_that_is_not_held_any_more_is_not_sent_again() {
    for (length, tries) in [(1 << 19, 2), (1 << 20, 2), ((1 << 20) + 1, 1), (1 << 21, 1)] {
        let app = App::answering(|_| status(503));
        let proxy = client(
            &to_echo("    retry: {attempts: 1, on: ['503'], backoffMs: 1}\n"),
            &one(&app),
        );
        let mut client = Client::connect(proxy.addresses[0]);
        client.send(&format!(
            "POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send(&"x".repeat(length));
        assert_eq!(client.receive().expect("an answer").status(), 503);
        assert_eq!(app.count(), tries, "{length}");
        assert!(
            app.seen
                .lock()
                .expect("no panic")
                .iter()
                .all(|seen| seen.body.len() == length)
        );
    }
}

// spec: VS-133
#[test]
fn the_time_limit_of_an_earlier_hop_sees_an_injected_delay() {
    let app = App::echo();
    let delayed = client(
        &to_echo("    fault: {delay: {fixedMs: 1500, sharePpm: 1000000}}\n    timeoutMs: 100\n"),
        &one(&app),
    );
    let begin = Instant::now();
    assert_eq!(get(delayed.addresses[0], "/").status(), 200, "its own limit does not");
    assert!(begin.elapsed() >= Duration::from_millis(1500));
    let earlier = client(
        &to_echo("    timeoutMs: 200\n"),
        &echo_endpoints(&[(delayed.addresses[0], false)]),
    );
    assert_eq!(get(earlier.addresses[0], "/").status(), 504);
    // One without limit waits.
    let patient = client(&to_echo(""), &echo_endpoints(&[(delayed.addresses[0], false)]));
    assert_eq!(get(patient.addresses[0], "/").status(), 200);
    // A silent application is given up like a delayed one.
    let quiet = silent();
    let proxy = client(&to_echo("    timeoutMs: 200\n"), &one(&quiet));
    assert_eq!(get(proxy.addresses[0], "/").status(), 504);
}
