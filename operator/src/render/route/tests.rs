use weft_bundle::wire::{Action, Bundle, HeaderOps, Match, RedirectPath, RedirectPort, StringMatch};

use super::*;
use crate::render::stage::{bundle, mesh, render, rule, service, virtual_service};

mod connection;
mod delegate;
mod precedence;

const ECHO: &str = "echo.app.svc.cluster.local";

/// The rules that a workload has for a port of a host; `None`: no VirtualService's.
fn rules(documents: &str, workload: &str, host: &str, port: u16) -> Option<Vec<Rule>> {
    rules_of(&bundle(&render(documents), workload), host, port)
}

fn rules_of(bundle: &Bundle, host: &str, port: u16) -> Option<Vec<Rule>> {
    let name = port_of(bundle, host, port).http?;
    let table = bundle.routes.iter().find(|table| table.name == name);
    Some(table.expect("in the same bundle").rules.clone())
}

fn port_of(bundle: &Bundle, host: &str, port: u16) -> HostPort {
    let host = bundle.hosts.iter().find(|h| h.host == host).expect("a known host");
    let port = host.ports.iter().find(|p| p.port == port);
    port.expect("one of its ports").clone()
}

/// Names of those rules; empty where none is a VirtualService's.
fn names(documents: &str, workload: &str, host: &str, port: u16) -> Vec<String> {
    let rules = rules(documents, workload, host, port).unwrap_or_default();
    rules.into_iter().filter_map(|rule| rule.name).collect()
}

/// A VirtualService of one rule that bears its name, with further fields.
fn named(namespace: &str, name: &str, age: u32, fields: &str) -> String {
    let spec = format!("{{{fields}, http: [{{name: {name}, route: [{{destination: {{host: {ECHO}}}}}]}}]}}");
    virtual_service(namespace, name, age, &spec)
}

/// The one rule of `echo` on port 80 with these fields, for `app/client`.
fn one(fields: &str) -> Rule {
    one_beside("", fields)
}

fn one_beside(documents: &str, fields: &str) -> Rule {
    let spec = format!("{{hosts: [echo], http: [{{{fields}}}]}}");
    let documents = documents.to_owned() + &virtual_service("app", "v", 1, &spec);
    let rules = rules(&documents, "app/client", ECHO, 80).expect("rules");
    assert_eq!(rules.len(), 1);
    rules.into_iter().next().expect("one")
}

fn destinations(rule: &Rule) -> Vec<(String, u16, Option<String>, u32)> {
    let Action::Destinations(list) = &rule.action else {
        panic!("{rule:?}");
    };
    let parts = list
        .iter()
        .map(|d| (d.host.clone(), d.port, d.subset.clone(), d.weight));
    parts.collect()
}

const TO_ECHO: &str = "route: [{destination: {host: echo}}]";

// spec: VS-040, VS-024
#[test]
fn a_port_is_the_one_that_was_dialled() {
    let documents = service(
        "app/s",
        "10.0.0.2",
        "{name: http, port: 80, targetPort: 8080}, {name: http-b, port: 8080}",
    ) + &virtual_service(
        "app",
        "v",
        1,
        &format!(
            "{{hosts: [s], http: [{{name: a, match: [{{port: 80}}], {TO_ECHO}}}, {{name: b, match: [{{port: 81}}, \
                 {{port: 8080}}], {TO_ECHO}}}]}}"
        ),
    );
    let of = |port| names(&documents, "app/client", "s.app.svc.cluster.local", port);
    assert_eq!(of(80), ["a"]);
    assert_eq!(of(8080), ["b"]);
    let never = format!("{{hosts: [echo], http: [{{match: [{{port: 81}}], {TO_ECHO}}}]}}");
    assert_eq!(
        rules(&virtual_service("app", "v", 1, &never), "app/client", ECHO, 80),
        None
    );
}

// spec: VS-041
#[test]
fn sources_are_chosen_when_rules_are_rendered() {
    let rule = |name: &str, fields: &str| format!("{{name: {name}, match: [{{{fields}}}], {TO_ECHO}}}");
    let list = [
        rule("labels", "sourceLabels: {app: client, tier: web}"),
        rule("namespace", "sourceNamespace: other"),
        rule("both", "sourceNamespace: app, sourceLabels: {app: echo}"),
        format!(
            "{{name: either, match: [{{sourceNamespace: third}}, {{sourceLabels: {{app: client}}, uri: {{exact: /x}}}}], {TO_ECHO}}}"
        ),
        rule("all", "uri: {prefix: /}"),
    ];
    let spec = format!("{{hosts: [{ECHO}], http: [{}]}}", list.join(", "));
    let documents = virtual_service("app", "v", 1, &spec);
    assert_eq!(names(&documents, "app/client", ECHO, 80), ["labels", "either", "all"]);
    assert_eq!(
        names(&documents, "other/client", ECHO, 80),
        ["namespace", "either", "all"]
    );
    assert_eq!(names(&documents, "app/echo", ECHO, 80), ["both", "all"]);
    // Nothing of it is left for the proxy to look at, and no alternative that does not hold.
    let rules = rules(&documents, "app/client", ECHO, 80).expect("rules");
    assert!(rules[0].matches.is_empty());
    let path = Some(StringMatch::Exact("/x".into()));
    assert_eq!(
        rules[1].matches,
        [Match {
            path,
            ..Match::default()
        }]
    );
}

// spec: VS-042, VS-043
#[test]
fn gateways_of_a_match_choose_among_those_above() {
    let spec = |gateways: &str, fields: &str| {
        let spec = format!("{{hosts: [echo], gateways: [{gateways}], http: [{{match: [{{{fields}}}], {TO_ECHO}}}]}}");
        rules(&virtual_service("app", "v", 1, &spec), "app/client", ECHO, 80).is_some()
    };
    assert!(spec("gw, mesh", "gateways: [mesh]"));
    assert!(spec("", "gateways: [mesh]"), "mesh is the default above");
    assert!(!spec("gw, mesh", "gateways: [gw]"));
    assert!(!spec("gw", "gateways: [mesh]"), "what is missing above cannot be added");
    // Sources do not count beside gateways.
    assert!(spec(
        "gw, mesh",
        "gateways: [mesh], sourceNamespace: third, sourceLabels: {app: nobody}"
    ));
    assert!(!spec("gw, mesh", "sourceNamespace: third"));
}

// spec: VS-021
#[test]
fn alternatives_before_one_that_asks_for_nothing_keep_what_they_say_of_the_rewrite() {
    let path = |text: &str| Match {
        path: Some(StringMatch::Prefix(text.into())),
        ..Match::default()
    };
    let fields =
        format!("match: [{{uri: {{prefix: /a}}}}, {{}}, {{uri: {{prefix: /b}}}}], rewrite: {{uri: /}}, {TO_ECHO}");
    assert_eq!(one(&fields).matches, [path("/a"), Match::default()]);
    let fields = format!("match: [{{}}, {{uri: {{prefix: /b}}}}], {TO_ECHO}");
    assert_eq!(one(&fields).matches, []);
}

// spec: VS-035, VS-036, VS-037, VS-038
#[test]
fn names_of_headers_have_no_case_and_absence_has_two_spellings() {
    let conditions = |text: &str| {
        let rule = one(&format!("match: [{{{text}}}], {TO_ECHO}"));
        let of = |h: &weft_bundle::wire::HeaderMatch| (h.name.clone(), h.value.clone(), h.invert);
        rule.matches[0].headers.iter().map(of).collect::<Vec<_>>()
    };
    let named = |name: &str, value: Option<StringMatch>, invert| vec![(name.to_owned(), value, invert)];
    let a = || Some(StringMatch::Exact("A".into()));
    assert_eq!(conditions("headers: {X-User: {exact: A}}"), named("x-user", a(), false));
    assert_eq!(conditions("headers: {X-User: {}}"), named("x-user", None, false));
    for host in ["Host", "host", "':authority'"] {
        let found = conditions(&format!("headers: {{{host}: {{exact: A}}}}"));
        assert_eq!(found, named(":authority", a(), false), "{host}");
    }
    for plain in ["method", "uri", "scheme", "authority", ":path", ":method"] {
        let found = conditions(&format!("headers: {{'{plain}': {{exact: A}}}}"));
        assert_eq!(found, named(plain, a(), false), "{plain}");
    }
    assert_eq!(
        conditions("withoutHeaders: {X-User: {exact: A}}"),
        named("x-user", a(), true)
    );
    for absent in ["{}", "{regex: '*'}"] {
        let found = conditions(&format!("withoutHeaders: {{X-User: {absent}}}"));
        assert_eq!(found, named("x-user", None, true), "{absent}");
    }
}

// spec: VS-078, VS-079, VS-080, VS-082, VS-083
#[test]
fn a_redirect_says_what_it_changes_and_is_permanent_unless_it_says_otherwise() {
    let redirect = |fields: &str| match one(&format!("redirect: {{{fields}}}")).action {
        Action::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let plain = redirect("uri: /x");
    assert_eq!((plain.code, plain.path), (301, Some(RedirectPath::Full("/x".into()))));
    assert_eq!((plain.scheme, plain.authority, plain.port), (None, None, None));
    for code in [301, 302, 303, 307, 308] {
        assert_eq!(redirect(&format!("uri: /x, redirectCode: {code}")).code, code);
    }
    assert_eq!(
        redirect("prefixRewrite: /y").path,
        Some(RedirectPath::Prefix("/y".into()))
    );
    let more = redirect("scheme: https, authority: a.example");
    assert_eq!(
        (more.scheme.as_deref(), more.authority.as_deref(), more.path),
        (Some("https"), Some("a.example"), None)
    );
    for (text, port) in [
        ("port: 8080", RedirectPort::Number(8080)),
        ("derivePort: FROM_REQUEST_PORT", RedirectPort::FromRequest),
        ("derivePort: FROM_PROTOCOL_DEFAULT", RedirectPort::FromProtocol),
    ] {
        assert_eq!(redirect(text).port, Some(port), "{text}");
    }
}

// spec: VS-144, VS-146, VS-149, VS-150, VS-151
#[test]
fn a_cors_policy_is_rendered_with_the_defaults_of_what_it_leaves_out() {
    let cors = |text: &str| {
        let rule = one(&format!("corsPolicy: {{{text}}}, {TO_ECHO}"));
        rule.cors.expect("a policy")
    };
    let exact = |text: &str| StringMatch::Exact(text.into());
    let origins = |text: &str| cors(text).allow_origins;
    assert_eq!(
        origins("allowOrigin: ['*', https://a]"),
        [exact("*"), exact("https://a")]
    );
    // The old list counts only where the new one is empty.
    assert_eq!(
        origins("allowOrigin: ['*'], allowOrigins: [{prefix: https://b}]"),
        [StringMatch::Prefix("https://b".into())]
    );
    let all = cors("allowMethods: [GET, '*'], maxAge: 2m, allowCredentials: true, unmatchedPreflights: IGNORE");
    assert_eq!(all.allow_methods, ["GET", "*"]);
    assert_eq!(
        (
            all.max_age_seconds,
            all.allow_credentials,
            all.ignore_unmatched_preflights
        ),
        (Some(120), true, true)
    );
    for other in ["", "unmatchedPreflights: UNSPECIFIED", "unmatchedPreflights: FORWARD"] {
        let policy = cors(&format!(
            "{other}{}allowCredentials: false",
            if other.is_empty() { "" } else { ", " }
        ));
        assert_eq!(
            (
                policy.max_age_seconds,
                policy.allow_credentials,
                policy.ignore_unmatched_preflights
            ),
            (None, false, false),
            "{other}"
        );
    }
}

// spec: VS-136, VS-137, VS-138
#[test]
fn copies_are_of_all_requests_unless_a_share_is_given() {
    let shares = |text: &str| -> Vec<u32> {
        let rule = one(&format!("{text}, {TO_ECHO}"));
        rule.mirrors.iter().map(|mirror| mirror.share_ppm).collect()
    };
    let old = |text: &str| shares(&format!("mirror: {{host: echo}}{text}"));
    assert_eq!(old(""), [1_000_000]);
    assert_eq!(old(", mirrorPercentage: {value: 0.5}"), [5000]);
    assert_eq!(old(", mirrorPercent: 30"), [300_000]);
    assert_eq!(old(", mirror_percent: 30"), [300_000]);
    assert_eq!(old(", mirrorPercent: 30, mirrorPercentage: {value: 20}"), [200_000]);
    // 0 is none.
    for none in [
        "mirrorPercentage: {value: 0}",
        "mirrorPercent: 0",
        "mirrorPercent: 30, mirrorPercentage: {value: 0}",
    ] {
        assert_eq!(old(&format!(", {none}")), [0; 0], "{none}");
    }
    let list = "mirrors: [{destination: {host: echo}}, {destination: {host: echo}, percentage: {value: 10}}, {destination: \
                {host: echo}, percentage: {value: 0}}]";
    assert_eq!(shares(list), [1_000_000, 100_000]);
}

// spec: VS-050
#[test]
fn a_port_that_is_not_named_is_the_only_one_else_that_of_arrival() {
    let documents = service("app/single", "10.0.0.2", "{name: http, port: 8080}")
        + &service(
            "app/several",
            "10.0.0.3",
            "{name: http, port: 80}, {name: http-b, port: 81}",
        )
        + &service(
            "app/others",
            "10.0.0.4",
            "{name: http, port: 82}, {name: http-b, port: 83}",
        );
    let port = |destination: &str| {
        let rule = one_beside(&documents, &format!("route: [{{destination: {{{destination}}}}}]"));
        destinations(&rule)[0].1
    };
    assert_eq!(port("host: single"), 8080);
    assert_eq!(port("host: several"), 80);
    assert_eq!(port("host: several, port: {number: 81}"), 81);
    assert_eq!(
        port("host: single, port: {number: 81}"),
        81,
        "as it is written, known or not"
    );
    assert_eq!(port("host: others"), 0, "no host lists it: 503, flag NC");
}

// spec: VS-051, VS-052, SM-087
#[test]
fn destinations_are_services_of_any_namespace_and_what_aliases_stand_for() {
    let documents = service("other/s", "10.0.0.2", "{name: http, port: 80}")
        + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: app}\nspec: {type: ExternalName, \
           externalName: s.other.svc.cluster.local}\n";
    let of = |destination: &str| {
        let rule = one_beside(&documents, &format!("route: [{{destination: {{{destination}}}}}]"));
        let (host, port, ..) = destinations(&rule).remove(0);
        (host, port)
    };
    let expected = |port| ("s.other.svc.cluster.local".to_owned(), port);
    assert_eq!(of("host: s.other.svc.cluster.local"), expected(80));
    assert_eq!(of("host: alias"), expected(80));
    assert_eq!(
        of("host: alias, port: {number: 81}"),
        expected(81),
        "the port that is given stays"
    );
}

// spec: VS-054, VS-055, VS-056
#[test]
fn weights_are_written_as_they_are_but_for_a_single_destination() {
    let weights = |route: &str| -> Vec<u32> {
        let rule = one(&format!("route: [{route}]"));
        destinations(&rule).into_iter().map(|d| d.3).collect()
    };
    assert_eq!(weights("{destination: {host: echo}, weight: 0}"), [1]);
    assert_eq!(weights("{destination: {host: echo}, weight: 7}"), [1]);
    let several =
        "{destination: {host: echo}, weight: 3}, {destination: {host: echo}}, {destination: {host: echo}, weight: 4}";
    assert_eq!(
        weights(several),
        [3, 0, 4],
        "left out is 0, and one that is there twice stays there twice"
    );
}

// spec: VS-101, VS-103, VS-111, VS-099
#[test]
fn retries_without_conditions_have_those_of_the_default() {
    let retry = |text: &str| one(&format!("retries: {text}, {TO_ECHO}")).retry.expect("a policy");
    let default = [
        "connect-failure",
        "refused-stream",
        "unavailable",
        "cancelled",
        "retriable-status-codes",
    ];
    let stated = retry("{attempts: 5}");
    assert_eq!((stated.attempts, stated.backoff_ms), (5, 25));
    assert_eq!(stated.on, default);
    let empty = retry("{attempts: 1, retryOn: ''}");
    assert_eq!(empty.on, default);
    let stated = retry("{attempts: 1, retryOn: 'reset,503,429', backoff: 1s}");
    assert_eq!(stated.on, ["reset", "retriable-status-codes"]);
    assert_eq!((stated.statuses, stated.backoff_ms), (vec![503, 429], 1000));
    assert_eq!(one(TO_ECHO).retry, None, "the mesh's");
    // What the mesh says replaces the default where nothing is stated, and not its conditions where they are left out.
    let config = mesh("defaultHttpRetryPolicy: {attempts: 1, retryOn: reset}");
    let rule = one_beside(&config, &format!("retries: {{attempts: 5}}, {TO_ECHO}"));
    assert_eq!(rule.retry.expect("a policy").on, default);
}

// spec: VS-117, DR-049
#[test]
fn endpoints_of_one_destination_by_key_are_asked_again() {
    let hash = "trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}}";
    let by_key = rule("app", "r", 1, &format!("{{host: echo, {hash}}}"));
    let by_key_in_a_subset = rule(
        "app",
        "r",
        1,
        &format!("{{host: echo, subsets: [{{name: v1, {hash}}}, {{name: v2}}]}}"),
    );
    let avoids = |documents: &str, fields: &str| {
        one_beside(documents, fields)
            .retry
            .is_none_or(|retry| retry.avoid_tried)
    };
    assert!(avoids("", TO_ECHO) && !avoids(&by_key, TO_ECHO));
    let stated = |more: &str| format!("retries: {{attempts: 3{more}}}, {TO_ECHO}");
    assert!(!avoids(&by_key, &stated("")));
    assert!(avoids(&by_key, &stated(", retryIgnorePreviousHosts: true")));
    assert!(avoids("", &stated("")) && !avoids("", &stated(", retryIgnorePreviousHosts: false")));
    let subset = |name: &str| format!("route: [{{destination: {{host: echo, subset: {name}}}}}]");
    assert!(!avoids(&by_key_in_a_subset, &subset("v1")) && avoids(&by_key_in_a_subset, &subset("v2")));
    let several = "route: [{destination: {host: echo}, weight: 1}, {destination: {host: echo}, weight: 1}]";
    assert!(avoids(&by_key, several));
    // Nothing else of the mesh's default changes.
    let config = mesh("defaultHttpRetryPolicy: {attempts: 7, retryOn: reset}") + &by_key;
    let retry = one_beside(&config, TO_ECHO).retry.expect("a policy of its own");
    assert_eq!((retry.attempts, retry.on), (7, vec!["reset".to_owned()]));
}

// spec: VS-118
#[test]
fn leaving_the_locality_is_asked_for() {
    let leaves = |more: &str| {
        one(&format!("retries: {{attempts: 3{more}}}, {TO_ECHO}"))
            .retry
            .expect("a policy")
            .next_locality
    };
    assert!(leaves(", retryRemoteLocalities: true"));
    assert!(!leaves(", retryRemoteLocalities: false") && !leaves(""));
}

// spec: VS-126, VS-128, VS-129, VS-130, VS-134
#[test]
fn shares_of_faults_that_are_left_out_are_none() {
    let delay = |text: &str| one(&format!("fault: {{delay: {{fixedDelay: 2s{text}}}}}, {TO_ECHO}")).fault;
    assert_eq!(delay(""), None);
    assert_eq!(
        one(&format!("fault: {{abort: {{httpStatus: 503}}}}, {TO_ECHO}")).fault,
        None
    );
    let share = |text: &str| {
        delay(text)
            .and_then(|fault| fault.delay)
            .map(|delay| (delay.fixed_ms, delay.share_ppm))
    };
    assert_eq!(share(", percentage: {value: 0.5}"), Some((2000, 5000)));
    assert_eq!(share(", percent: 7"), Some((2000, 70_000)));
    assert_eq!(share(", percent: 7, percentage: {value: 20}"), Some((2000, 200_000)));
    assert_eq!(
        share(", percent: 7, percentage: {}"),
        None,
        "an empty percentage is 0, and it is there"
    );
    let abort = |text: &str| {
        let text = format!("fault: {{abort: {{{text}percentage: {{value: 100}}}}}}, {TO_ECHO}");
        let abort = one(&text).fault.and_then(|fault| fault.abort);
        abort.map(|abort| (abort.status, abort.grpc_status, abort.share_ppm))
    };
    assert_eq!(abort("httpStatus: 503, "), Some((Some(503), None, 1_000_000)));
    for (name, number) in [
        ("OK", 0),
        ("CANCELLED", 1),
        ("NOT_FOUND", 5),
        ("UNAVAILABLE", 14),
        ("UNAUTHENTICATED", 16),
    ] {
        let found = abort(&format!("grpcStatus: {name}, "));
        assert_eq!(found, Some((None, Some(number), 1_000_000)), "{name}");
    }
    // Without what is to be done nothing is.
    assert_eq!(abort(""), None);
    assert_eq!(
        one(&format!("fault: {{delay: {{percentage: {{value: 100}}}}}}, {TO_ECHO}")).fault,
        None
    );
}

// spec: VS-087, VS-088
#[test]
fn a_direct_response_has_the_bytes_of_its_body() {
    let direct = |text: &str| match one(&format!("directResponse: {{{text}}}")).action {
        Action::DirectResponse(direct) => (direct.status, direct.body),
        other => panic!("{other:?}"),
    };
    let hello = Some("aGVsbG8=".to_owned());
    assert_eq!(direct("status: 418, body: {string: hello}"), (418, hello.clone()));
    assert_eq!(direct("status: 200, body: {bytes: aGVsbG8=}"), (200, hello));
    assert_eq!(direct("status: 599"), (599, None));
    assert_eq!(direct("status: 200, body: {string: ''}"), (200, None));
}

// spec: VS-058
#[test]
fn what_a_rule_says_of_a_request_is_said_once_for_all_its_destinations() {
    let rule = one(
        "route: [{destination: {host: echo}, weight: 1}, {destination: {host: echo, port: {number: 70}}, weight: 1}], \
         timeout: 1s, retries: {attempts: 4, retryOn: 5xx}, mirror: {host: echo}, fault: {delay: {fixedDelay: 1s, \
         percentage: {value: 1}}}",
    );
    assert_eq!(destinations(&rule).len(), 2);
    assert_eq!((rule.timeout_ms, rule.mirrors.len()), (Some(1000), 1));
    assert_eq!(rule.retry.map(|retry| retry.attempts), Some(4));
    assert!(rule.fault.is_some());
}

// spec: SM-016, SM-026, SM-027
#[test]
fn ports_of_grpc_web_are_told_to_both_sides() {
    let ports = "{name: grpc-web, port: 80, targetPort: 8080}, {name: grpc, port: 81, targetPort: 8081}, \
                 {name: x, port: 82, targetPort: 8082, appProtocol: grpc-web}";
    let output = render(&service("app/echo", "10.0.0.1", ports));
    let (client, server) = (bundle(&output, "app/client"), bundle(&output, "app/echo"));
    for (port, grpc_web) in [(80, true), (81, false), (82, true)] {
        let of_host = port_of(&client, ECHO, port);
        assert_eq!(
            (of_host.protocol, of_host.grpc_web),
            (Protocol::Grpc, grpc_web),
            "{port}"
        );
        let mut inbound = server.inbound.ports.iter();
        let inbound = inbound.find(|p| p.port == 8000 + port).expect("a port of the Service");
        assert_eq!(
            (inbound.protocol, inbound.grpc_web),
            (Protocol::Grpc, grpc_web),
            "{port}"
        );
    }
}
