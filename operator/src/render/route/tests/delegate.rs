//! Rules that stand in another VirtualService.

use super::*;

/// A root for `echo` with these entries.
fn root(entries: &str) -> String {
    virtual_service("app", "root", 5, &format!("{{hosts: [echo], http: [{entries}]}}"))
}

fn delegate(namespace: &str, name: &str, entries: &str) -> String {
    virtual_service(namespace, name, 1, &format!("{{http: [{entries}]}}"))
}

fn of(documents: &str) -> Vec<String> {
    names(documents, "app/client", ECHO, 80)
}

const LAST: &str = "{name: last, route: [{destination: {host: echo}}]}";

// spec: VS-154, VS-156, VS-162
#[test]
fn the_rules_of_a_delegate_stand_in_the_place_of_the_entry() {
    let route = "route: [{destination: {host: echo}}]";
    let entries = format!("{{name: one, {route}}}, {{name: two, {route}}}");
    let first = format!("{{name: first, {route}}}");
    let documents = root(&format!("{first}, {{delegate: {{name: d}}}}, {LAST}")) + &delegate("app", "d", &entries);
    assert_eq!(of(&documents), ["first", "one", "two", "last"]);
    let named =
        format!("{{name: r, match: [{{uri: {{prefix: /r}}}}], delegate: {{name: d, namespace: other}}}}, {LAST}");
    let elsewhere = root(&named) + &delegate("other", "d", &entries);
    assert_eq!(of(&elsewhere), ["r-one", "r-two", "last"]);
    // Another root has the same delegate for itself.
    let more = service("app/s", "10.0.0.2", "{name: http, port: 80}");
    let other = "{hosts: [s], http: [{name: s, match: [{uri: {prefix: /s}}], delegate: {name: d, namespace: other}}]}";
    let both = more + &elsewhere + &virtual_service("app", "other-root", 4, other);
    assert_eq!(of(&both), ["r-one", "r-two", "last"]);
    let rules = rules(&both, "app/client", "s.app.svc.cluster.local", 80).expect("rules");
    let name = |rule: &Rule| rule.name.clone().expect("both have one");
    assert_eq!(rules.iter().map(name).collect::<Vec<_>>(), ["s-one", "s-two"]);
    let path = rules[1].matches[0].path.clone();
    assert_eq!(path, Some(StringMatch::Prefix("/s".into())));
}

// spec: VS-182
#[test]
fn short_names_of_a_delegate_are_those_of_its_own_namespace() {
    let documents = root("{delegate: {name: d, namespace: other}}")
        + &delegate(
            "other",
            "d",
            "{route: [{destination: {host: echo}}], mirror: {host: mirror}}",
        );
    let rules = rules(&documents, "app/client", ECHO, 80).expect("rules");
    assert_eq!(destinations(&rules[0])[0].0, "echo.other.svc.cluster.local");
    assert_eq!(rules[0].mirrors[0].destination.host, "mirror.other.svc.cluster.local");
}

// spec: VS-155, VS-022
#[test]
fn an_entry_without_delegate_is_no_rule_and_its_root_says_so() {
    let entry = "{match: [{uri: {prefix: /r}}], delegate: {name: d, namespace: other}}";
    let route = "http: [{name: d, route: [{destination: {host: echo}}]}]";
    let private = virtual_service("other", "d", 1, &format!("{{exportTo: ['.'], {route}}}"));
    let hidden = delegate("other", "d", "{name: d, route: [{destination: {host: echo}}]}")
        + &mesh("defaultVirtualServiceExportTo: ['.']");
    let with_hosts = virtual_service("other", "d", 1, &format!("{{hosts: [made.up], {route}}}"));
    let invalid = delegate(
        "other",
        "d",
        "{name: d, timeout: 0s, route: [{destination: {host: echo}}]}",
    );
    for (case, text) in [
        ("", "is not there"),
        (private.as_str(), "is not exported to namespace app"),
        (hidden.as_str(), "is not exported to namespace app"),
        (with_hosts.as_str(), "has hosts of its own"),
        (invalid.as_str(), "is not there, or not valid"),
    ] {
        let output = render(&(root(&format!("{entry}, {LAST}")) + case));
        let reported = output.reports.iter().find(|(reference, _)| reference.name == "root");
        let (reason, message) = reported.expect("a report").1.unresolved.clone().expect("unresolved");
        assert_eq!(reason, "DelegateNotFound", "{case}");
        assert!(
            message.contains("delegate other/d") && message.contains(text),
            "{message}"
        );
        let rules = rules_of(&bundle(&output, "app/client"), ECHO, 80).expect("the other entry stays");
        assert_eq!(rules.len(), 1, "{case}");
        // Where nothing else is left requests find no rule, and not the service itself.
        let alone = rules_of(&bundle(&render(&(root(entry) + case)), "app/client"), ECHO, 80);
        assert_eq!(alone, Some(Vec::new()), "{case}");
    }
    let exported = virtual_service("other", "d", 1, &format!("{{exportTo: [app], {route}}}"));
    let output = render(&(root(entry) + &exported));
    let reported = output.reports.iter().find(|(reference, _)| reference.name == "root");
    assert_eq!(reported.expect("a report").1.unresolved, None);
    // Static conditions still come before.
    let elsewhere = root("{match: [{sourceNamespace: third}], delegate: {name: d}}");
    assert_eq!(rules(&elsewhere, "app/client", ECHO, 80), None);
}

/// The alternatives of a delegate's rule with the match lists of root and delegate; `None`: the rule is dropped.
fn joined(root_matches: &str, own_matches: &str) -> Option<Vec<Match>> {
    let list = |text: &str| {
        if text.is_empty() {
            String::new()
        } else {
            format!("match: [{text}], ")
        }
    };
    let documents = root(&format!("{{{}delegate: {{name: d}}}}, {LAST}", list(root_matches)))
        + &delegate(
            "app",
            "d",
            &format!(
                "{{name: d, {}route: [{{destination: {{host: echo}}}}]}}",
                list(own_matches)
            ),
        );
    let rules = rules(&documents, "app/client", ECHO, 80).expect("rules");
    let found = rules.into_iter().find(|rule| rule.name.as_deref() == Some("d"))?;
    Some(found.matches)
}

fn exact(text: &str) -> Option<StringMatch> {
    Some(StringMatch::Exact(text.into()))
}

// spec: VS-157, VS-159
#[test]
fn conditions_of_both_hold_together() {
    let found = joined(
        "{uri: {prefix: /a}}, {uri: {prefix: /b}}, {method: {exact: GET}}",
        "{uri: {exact: /a/1}}, {headers: {x: {exact: v}}}",
    );
    let found = found.expect("some fit");
    let said: Vec<_> = found
        .iter()
        .map(|m| (m.path.clone(), m.method.clone(), m.headers.len()))
        .collect();
    let prefix = |text: &str| Some(StringMatch::Prefix(text.into()));
    let expected = [
        (exact("/a/1"), None, 0),
        (exact("/a/1"), exact("GET"), 0),
        (prefix("/a"), None, 1),
        (prefix("/b"), None, 1),
        (None, exact("GET"), 1),
    ];
    assert_eq!(said, expected);
    // Of an entry one element may fit; where none does the entry is no rule.
    assert_eq!(
        joined("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}, {uri: {prefix: /c}}").map(|m| m.len()),
        Some(1)
    );
    assert_eq!(joined("{uri: {prefix: /a}}", "{uri: {prefix: /c}}"), None);
    // Without conditions on one side those of the other hold.
    assert_eq!(
        joined("{method: {exact: GET}}", "").expect("fits")[0].method,
        exact("GET")
    );
    assert_eq!(
        joined("", "{method: {exact: GET}}").expect("fits")[0].method,
        exact("GET")
    );
    assert_eq!(joined("", "").expect("fits"), []);
}

// spec: VS-158
#[test]
fn conditions_on_one_property_must_lie_within_each_other() {
    let fit = |root: &str, own: &str| joined(&format!("{{{root}}}"), &format!("{{{own}}}")).is_some();
    for field in ["uri", "scheme", "method", "authority"] {
        let both = |root: &str, own: &str| fit(&format!("{field}: {{{root}}}"), &format!("{field}: {{{own}}}"));
        assert!(
            both("exact: /a", "exact: /a") && !both("exact: /a", "exact: /ab"),
            "{field}"
        );
        assert!(!both("exact: /a", "prefix: /a"), "{field}");
        assert!(
            both("prefix: /a", "prefix: /ab") && both("prefix: /a", "exact: /ab"),
            "{field}"
        );
        assert!(
            !both("prefix: /ab", "prefix: /a") && !both("prefix: /ab", "exact: /a"),
            "{field}"
        );
        for regex in [
            ("regex: /a", "exact: /a"),
            ("prefix: /a", "regex: /a"),
            ("regex: /a", "regex: /a"),
        ] {
            assert!(!both(regex.0, regex.1), "{field} {regex:?}");
        }
        assert!(
            fit(&format!("{field}: {{regex: /a}}"), "port: 80"),
            "{field}: one side alone may be a regex"
        );
    }
    for field in ["headers", "withoutHeaders", "queryParams"] {
        let both = |root: &str, own: &str| fit(&format!("{field}: {{x: {root}}}"), &format!("{field}: {{x: {own}}}"));
        assert!(
            both("{exact: a}", "{exact: a}") && !both("{exact: a}", "{exact: b}"),
            "{field}"
        );
        assert!(
            both("{prefix: a}", "{exact: ab}") && !both("{prefix: a}", "{exact: b}"),
            "{field}"
        );
        assert!(
            !both("{}", "{exact: a}") && !both("{exact: a}", "{}") && !both("{}", "{}"),
            "{field}"
        );
        let other_key = fit(&format!("{field}: {{x: {{}}}}"), &format!("{field}: {{y: {{}}}}"));
        assert!(other_key, "{field}: another key is another property");
    }
    let united = joined("{headers: {x: {exact: a}}}", "{headers: {y: {exact: b}}}").expect("fits");
    assert_eq!(united[0].headers.len(), 2);
    let ignore = "uri: {prefix: /}, ignoreUriCase: true";
    assert!(fit(ignore, ignore) && !fit(ignore, "uri: {prefix: /}") && !fit("uri: {prefix: /}", ignore));
    let filled = joined(
        "{uri: {prefix: /a}, ignoreUriCase: true}",
        "{ignoreUriCase: true, port: 80}",
    )
    .expect("fits");
    assert!(filled[0].ignore_path_case && filled[0].path.is_some());
    assert!(fit("port: 80", "port: 80") && !fit("port: 80", "port: 81") && fit("port: 80", "uri: {prefix: /}"));
    assert!(fit("sourceNamespace: app", "sourceNamespace: app"));
    assert!(
        !fit("sourceNamespace: app", "uri: {prefix: /}"),
        "the delegate must set it as well"
    );
    assert!(fit("uri: {prefix: /}", "sourceNamespace: app"));
    assert!(!fit("uri: {prefix: /}", "sourceNamespace: other"), "and it holds");
    assert!(fit("sourceLabels: {app: client}", "sourceLabels: {tier: web}"));
    assert!(
        !fit("sourceLabels: {app: client}", "sourceLabels: {tier: db}"),
        "united, so both must hold"
    );
    assert!(!fit("sourceLabels: {app: client}", "sourceLabels: {app: echo}"));
    assert!(fit("gateways: [mesh, gw]", "gateways: [mesh]") && !fit("gateways: [mesh]", "gateways: [mesh, gw]"));
    assert!(fit("gateways: [mesh]", "uri: {prefix: /}") && fit("uri: {prefix: /}", "gateways: [mesh]"));
    assert!(
        !fit("gateways: [gw]", "uri: {prefix: /}"),
        "the root's gateways hold for the delegate"
    );
}

// spec: VS-160, VS-161
#[test]
fn settings_of_the_delegate_are_taken_whole_else_those_of_the_root() {
    let all = |n: u32| {
        format!(
            "rewrite: {{authority: a{n}}}, timeout: {n}s, retries: {{attempts: {n}, retryOn: 5xx}}, fault: {{delay: \
             {{fixedDelay: {n}s, percentage: {{value: 100}}}}}}, mirror: {{host: m{n}}}, mirrorPercentage: {{value: {n}}}, \
             corsPolicy: {{allowHeaders: [h{n}]}}, headers: {{request: {{set: {{x{n}: v}}}}}}"
        )
    };
    let combined = |of_root: &str, of_own: &str| {
        let with = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                format!("{text}, ")
            }
        };
        let documents = root(&format!("{{{}delegate: {{name: d}}}}", with(of_root)))
            + &delegate(
                "app",
                "d",
                &format!("{{{}route: [{{destination: {{host: echo}}}}]}}", with(of_own)),
            );
        rules(&documents, "app/client", ECHO, 80).expect("rules").remove(0)
    };
    let plain = |n: u32| one(&format!("{}, {TO_ECHO}", all(n)));
    assert_eq!(combined(&all(1), ""), plain(1));
    assert_eq!(combined("", &all(2)), plain(2));
    assert_eq!(combined(&all(1), &all(2)), plain(2));
    // Whole: what the delegate's block leaves out does not come from the root's.
    let rule = combined(
        "retries: {attempts: 3, retryOn: reset}, headers: {request: {set: {a: b}}, response: {set: {c: d}}}",
        "retries: {attempts: 4}, headers: {request: {add: {e: f}}}",
    );
    assert_eq!(rule.retry.expect("a policy").on.len(), 5);
    assert!(rule.request_headers.set.is_empty() && rule.response_headers == HeaderOps::default());
    // Each setting by itself, the forms of mirrors as well.
    let rule = combined(
        "mirrors: [{destination: {host: a}}, {destination: {host: b}}]",
        "timeout: 1s",
    );
    assert_eq!((rule.mirrors.len(), rule.timeout_ms), (2, Some(1000)));
    let rule = combined(
        "mirrors: [{destination: {host: a}}, {destination: {host: b}}]",
        "mirrors: [{destination: {host: c}}]",
    );
    assert_eq!(rule.mirrors.len(), 1);
    let shares = |root: &str, own: &str| combined(root, own).mirrors[0].share_ppm;
    assert_eq!(shares("mirrorPercent: 30", "mirror: {host: a}"), 300_000);
    assert_eq!(
        shares("mirrorPercent: 30", "mirror: {host: a}, mirrorPercent: 40"),
        400_000
    );
    // An answer of the root stands for the delegate's rules, a redirect is the delegate's own.
    let documents = root("{directResponse: {status: 418}, delegate: {name: d}}")
        + &delegate(
            "app",
            "d",
            "{route: [{destination: {host: echo}}]}, {redirect: {uri: /x}}",
        );
    let actions = rules(&documents, "app/client", ECHO, 80).expect("rules");
    assert!(matches!(actions[0].action, Action::DirectResponse(_)), "{actions:?}");
    assert!(matches!(actions[1].action, Action::Redirect(_)), "{actions:?}");
    let documents =
        root("{name: r, delegate: {name: d}}") + &delegate("app", "d", "{route: [{destination: {host: echo}}]}");
    assert_eq!(of(&documents), ["r"], "one name where the other has none");
}
