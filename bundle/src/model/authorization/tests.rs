#![expect(
    clippy::needless_pass_by_value,
    reason = "calls read better that hand over what they made"
)]

use serde_json::{Value as Json, json};

use super::*;
use crate::model::Config;

#[derive(Default, Clone)]
struct Asked {
    method: &'static str,
    path: &'static str,
    authority: &'static str,
    bare: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    remote: Option<IpAddr>,
}

impl Request for Asked {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn authority(&self) -> (&[u8], &[u8]) {
        (self.authority.as_bytes(), self.bare.as_bytes())
    }
    fn header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers
            .iter()
            .any(|(n, value)| *n == name && fits(value.as_bytes()))
    }
    fn remote(&self, peer: IpAddr) -> IpAddr {
        self.remote.unwrap_or(peer)
    }
}

fn get(path: &'static str) -> Asked {
    Asked {
        method: "GET",
        path,
        authority: "a.example:8080",
        bare: "a.example",
        ..Asked::default()
    }
}

fn caller(principal: Option<&'static str>) -> Caller<'static> {
    Caller {
        principal,
        is_verified: principal.is_some(),
        address: [10, 0, 0, 9].into(),
        destination: [10, 0, 0, 1].into(),
        port: 8080,
        server_name: None,
    }
}

const SLEEP: Option<&str> = Some("spiffe://cluster.local/ns/foo/sa/sleep");

fn policies(policies: Json) -> Authorization {
    let bundle = json!({
        "workload": {"namespace": "n", "name": "w", "serviceAccount": "a", "canonicalName": "w",
            "canonicalRevision": "latest"},
        "authorization": policies,
    });
    let bundle = serde_json::from_value(bundle).expect("bundle");
    Config::parse(bundle).expect("valid").authorization
}

fn policy(name: &str, action: &str, rules: Json) -> Json {
    json!({"namespace": "foo", "name": name, "action": action, "rules": rules})
}

fn passes(authorization: &Authorization, caller: Caller<'_>, request: &Asked) -> bool {
    authorization.judge(caller, request, true).is_ok()
}

/// Whether a condition holds for a request.
fn holds(key: &str, values: &[&str], not_values: &[&str], caller: Caller<'_>, request: &Asked) -> bool {
    let condition = json!({"key": key, "values": values, "notValues": not_values});
    let allow = policies(json!([policy("p", "ALLOW", json!([{"when": [condition]}]))]));
    allow.judge(caller, request, false).is_ok()
}

// spec: AUTHZ-013, AUTHZ-014, AUTHZ-017, AUTHZ-018, AUTHZ-093, AUTHZ-003
#[test]
fn deny_comes_before_allow_and_nothing_allowed_is_refused() {
    let sleeps = json!([{"from": [[{"key": "source.principal", "values": ["cluster.local/ns/foo/sa/sleep"]}]]}]);
    let of = |list: Json| policies(list);
    let everything = of(json!([]));
    assert!(passes(&everything, caller(None), &get("/")));
    let nothing = of(json!([policy("none", "ALLOW", json!([]))]));
    assert!(!passes(&nothing, caller(SLEEP), &get("/")));
    let allow = of(json!([
        policy("none", "ALLOW", json!([])),
        policy("sleep", "ALLOW", sleeps.clone())
    ]));
    assert!(passes(&allow, caller(SLEEP), &get("/")));
    assert!(!passes(&allow, caller(None), &get("/")));
    let deny = of(json!([
        policy("sleep", "ALLOW", sleeps.clone()),
        policy("not-sleep", "DENY", sleeps)
    ]));
    let denial = deny.judge(caller(SLEEP), &get("/"), true).expect_err("denied");
    assert_eq!(
        &*denial.details,
        "rbac_access_denied_matched_policy[ns[foo]-policy[not-sleep]-rule[0]]"
    );
    let denial = deny.judge(caller(None), &get("/"), true).expect_err("denied");
    assert_eq!(&*denial.details, "rbac_access_denied_matched_policy[none]");
    let custom = of(
        json!([{"namespace": "foo", "name": "c", "action": "CUSTOM", "provider": "x",
        "rules": [{"to": [[{"key": "request.path", "values": ["/x"]}]]}]}]),
    );
    assert!(passes(&custom, caller(None), &get("/")));
    let denial = custom.judge(caller(None), &get("/x"), true).expect_err("denied");
    assert_eq!(
        &*denial.details,
        "rbac_access_denied_matched_policy[istio-ext-authz-x-ns[foo]-policy[c]-rule[0]-deny-due-to-bad-CUSTOM-action]"
    );
    for (action, is_allowed) in [("ALLOW", true), ("DENY", false), ("AUDIT", true)] {
        let any = of(json!([policy("any", action, json!([{}]))]));
        assert_eq!(passes(&any, caller(None), &get("/")), is_allowed, "{action}");
    }
}

// spec: AUTHZ-024
#[test]
fn of_several_rules_that_refuse_the_smallest_id_is_told() {
    let rules = |count: usize| json!(vec![json!({}); count]);
    let deny = policies(json!([policy("b", "DENY", rules(1)), policy("a", "DENY", rules(1))]));
    let denial = deny.judge(caller(None), &get("/"), true).expect_err("denied");
    assert!(denial.details.contains("policy[a]-rule[0]"), "{}", denial.details);
    let origin = denial.origin.as_ref().expect("a policy");
    assert_eq!((&*origin.kind, &*origin.name), ("AuthorizationPolicy", "a"));
}

// spec: AUTHZ-015, AUTHZ-016, AUTHZ-101, AUTHZ-034
#[test]
fn entries_are_alternatives_and_fields_are_not() {
    let rules = json!([
        {"from": [[{"key": "source.namespace", "values": ["foo"]}], [{"key": "source.namespace", "values": ["bar"]}]],
         "to": [[{"key": "request.method", "values": ["GET", "HEAD"]}, {"key": "request.path", "values": ["/a*"],
            "notValues": ["/a/b"]}]]},
        {"from": [[{"key": "source.namespace", "values": ["baz"]}]]},
    ]);
    let allow = policies(json!([policy("p", "ALLOW", rules)]));
    let of = |namespace: &str| match namespace {
        "foo" => SLEEP,
        "bar" => Some("spiffe://cluster.local/ns/bar/sa/x"),
        _ => Some("spiffe://cluster.local/ns/baz/sa/x"),
    };
    for namespace in ["foo", "bar"] {
        assert!(passes(&allow, caller(of(namespace)), &get("/a")));
        assert!(!passes(&allow, caller(of(namespace)), &get("/a/b")));
        assert!(!passes(&allow, caller(of(namespace)), &get("/b")));
        let post = Asked {
            method: "POST",
            ..get("/a")
        };
        assert!(!passes(&allow, caller(of(namespace)), &post));
    }
    assert!(passes(&allow, caller(of("baz")), &get("/b")));
}

// spec: AUTHZ-030, AUTHZ-031, AUTHZ-046
#[test]
fn values_have_four_forms() {
    let path = |value: &str, path: &'static str| holds("request.path", &[value], &[], caller(None), &get(path));
    assert!(path("/a", "/a") && !path("/a", "/A") && !path("/a", "/a/"));
    assert!(path("/a*", "/abc") && !path("/a*", "/b"));
    assert!(path("*c", "/abc") && !path("*c", "/abcd"));
    assert!(path("*", "/") && path("*/b*", "/a/b*") && !path("*/b*", "/a/bc"));
    let method = |value: &str| holds("request.method", &[value], &[], caller(None), &get("/"));
    assert!(method("GET") && method("G*") && method("*T") && method("*") && !method("get"));
}

// spec: AUTHZ-032, AUTHZ-033, AUTHZ-094, AUTHZ-095, AUTHZ-035
#[test]
fn what_is_absent_fits_no_value_and_every_exclusion() {
    let plain = caller(None);
    for key in [
        "source.principal",
        "source.namespace",
        "source.trustDomain",
        "request.auth.principal",
        "connection.sni",
        "request.headers[x]",
    ] {
        assert!(!holds(key, &["*"], &[], plain, &get("/")), "{key}");
        assert!(holds(key, &[], &["*"], plain, &get("/")), "{key}");
    }
    assert!(holds("source.principal", &["*"], &[], caller(SLEEP), &get("/")));
    assert!(!holds("source.principal", &[], &["*"], caller(SLEEP), &get("/")));
    assert!(!holds(
        "source.principal",
        &["spiffe://cluster.local/ns/foo/sa/sleep"],
        &[],
        caller(SLEEP),
        &get("/")
    ));
}

// spec: AUTHZ-036, AUTHZ-037, AUTHZ-041, AUTHZ-042, AUTHZ-052
#[test]
fn identities_are_never_wider_than_their_text() {
    let of = |id| caller(Some(id));
    let namespace = |value: &str, id| holds("source.namespace", &[value], &[], of(id), &get("/"));
    let foo = "spiffe://td/ns/foo/sa/a.b";
    assert!(namespace("foo", foo) && namespace("f*o", foo) && namespace("*", foo) && namespace("*oo", foo));
    assert!(!namespace("foo", "spiffe://td/ns/foobar/sa/x"));
    assert!(!namespace("foo", "spiffe://td/ns/x/sa/ns/foo"));
    assert!(!namespace("f*b", foo) && !namespace("f.o", foo));
    let account = |value: &str, id| holds("source.serviceAccount", &[value], &[], of(id), &get("/"));
    assert!(account("foo/a.b", foo) && account("foo/a.b", "spiffe://other/ns/foo/sa/a.b"));
    assert!(!account("foo/a.b", "spiffe://td/ns/foo/sa/axb") && !account("foo/a", foo));
    let domain = |value: &str| holds("source.trustDomain", &[value], &[], of(foo), &get("/"));
    assert!(domain("td") && domain("t*") && domain("*d") && !domain("t"));
    let principal = |value: &str| holds("source.principal", &[value], &[], of(foo), &get("/"));
    assert!(principal("td/ns/foo/*") && principal("*/sa/a.b") && !principal("td/ns/foo/sa/a"));
}

// spec: AUTHZ-038, AUTHZ-039, AUTHZ-051, AUTHZ-045
#[test]
fn addresses_and_ports_are_those_of_the_connection() {
    let asked = Asked {
        remote: Some([1, 2, 3, 4].into()),
        ..get("/")
    };
    let fits = |key: &str, value: &str| holds(key, &[value], &[], caller(None), &asked);
    assert!(fits("source.ip", "10.0.0.0/8") && fits("source.ip", "10.0.0.9") && !fits("source.ip", "10.0.0.8"));
    assert!(!fits("source.ip", "1.2.3.4") && fits("remote.ip", "1.2.3.0/24") && !fits("remote.ip", "10.0.0.9"));
    assert!(fits("destination.ip", "10.0.0.1") && !fits("destination.ip", "::/0"));
    assert!(fits("destination.port", "8080") && !fits("destination.port", "80"));
    let mapped = Caller {
        address: "::ffff:10.0.0.9".parse().expect("address"),
        ..caller(None)
    };
    assert!(holds("source.ip", &["10.0.0.9"], &[], mapped, &asked));
}

// spec: AUTHZ-044, BYD-064
#[test]
fn hosts_ignore_case_and_the_port_that_was_dialled() {
    let fits = |value: &str| holds("request.host", &[value], &[], caller(None), &get("/"));
    assert!(fits("A.Example") && fits("*.example") && fits("a.*") && fits("*"));
    assert!(fits("a.example:8080") && fits("a.example:*") && !fits("a.example:80") && !fits("a.example."));
    let other = Asked {
        authority: "a.example:99",
        bare: "a.example:99",
        ..get("/")
    };
    let fits = |value: &str| holds("request.host", &[value], &[], caller(None), &other);
    assert!(!fits("a.example") && fits("a.example:99") && fits("a.example:*"));
}

// spec: AUTHZ-048
#[test]
fn templates_stand_for_segments_and_runs() {
    let fits = |value: &str, path: &'static str| holds("request.path", &[value], &[], caller(None), &get(path));
    for (template, yes, no) in [
        ("/foo/{*}", &["/foo/bar"][..], &["/foo/bar/baz", "/foo/", "/foo"][..]),
        ("/foo/{**}", &["/foo/", "/foo/a/b"], &["/foo", "/bar/"]),
        ("/foo/{**}/", &["/foo/bar/baz/", "/foo//"], &["/foo/", "/foo/bar"]),
        (
            "/store/{**}/cart",
            &["/store//cart", "/store/a/b/cart"],
            &["/store/cart"],
        ),
        ("/{*}/bar/{**}", &["/a/bar/", "/a/bar/b/c"], &["//bar/", "/a/baz/"]),
        ("/{*}/b/{*}", &["/a/b/c"], &["/a/b/", "/a/b/c/d"]),
    ] {
        for path in yes {
            assert!(fits(template, path), "{template} {path}");
        }
        for path in no {
            assert!(!fits(template, path), "{template} {path}");
        }
    }
}

// spec: AUTHZ-050
#[test]
fn header_fields_are_looked_at_one_by_one() {
    let asked = Asked {
        headers: vec![("x", "a"), ("x", "b,c"), ("empty", "")],
        ..get("/")
    };
    let fits = |values: &[&str], not: &[&str]| holds("request.headers[X]", values, not, caller(None), &asked);
    assert!(fits(&["a"], &[]) && fits(&["b,c"], &[]) && !fits(&["b"], &[]));
    assert!(!fits(&[], &["a"]) && fits(&[], &["b"]) && !fits(&["a"], &["b*"]));
    assert!(holds("request.headers[empty]", &["*"], &[], caller(None), &asked));
}

// spec: BYD-063, AUTHZ-068
#[test]
fn repeated_slashes_hide_nothing() {
    let path =
        |values: &[&str], not: &[&str]| json!({"to": [[{"key": "request.path", "values": values, "notValues": not}]]});
    let of = |action: &str, rule: Json| policies(json!([policy("p", action, json!([rule]))]));
    let deny = of("DENY", path(&["/admin"], &[]));
    assert!(!passes(&deny, caller(None), &get("//admin")) && passes(&deny, caller(None), &get("/adm//in")));
    let deny = of("DENY", path(&["//admin"], &[]));
    assert!(!passes(&deny, caller(None), &get("//admin")));
    let allow = of("ALLOW", path(&[], &["/admin"]));
    assert!(!passes(&allow, caller(None), &get("//admin")) && passes(&allow, caller(None), &get("//other")));
    let allow = of("ALLOW", path(&["/a/b"], &[]));
    assert!(!passes(&allow, caller(None), &get("/a//b")) && passes(&allow, caller(None), &get("/a/b")));
    assert!(deny.judge(caller(None), &get("///admin"), false).is_ok());
}

// spec: AUTHZ-078, AUTHZ-079, AUTHZ-080, AUTHZ-081, AUTHZ-083, AUTHZ-098
#[test]
fn on_tcp_what_only_requests_have_narrows_no_denial_and_widens_no_grant() {
    let post = |port: &str| json!([{"to": [[{"key": "request.method", "values": ["POST"]}, {"key": "destination.port", "values": [port]}]]}]);
    let of = |action: &str, rules: Json| policies(json!([policy("p", action, rules)]));
    let judge = |authorization: &Authorization, caller| authorization.judge_tcp(caller).is_ok();
    assert!(!judge(&of("DENY", post("8080")), caller(None)));
    assert!(judge(&of("DENY", post("80")), caller(None)));
    assert!(!judge(&of("ALLOW", post("8080")), caller(None)));
    let port = json!([{"to": [[{"key": "destination.port", "values": ["8080"]}]]}]);
    assert!(judge(&of("ALLOW", port), caller(None)));
    let mixed = json!([{"from": [[{"key": "source.namespace", "values": ["foo"]}]],
        "when": [{"key": "request.headers[x]", "notValues": ["y"]}]}]);
    assert!(!judge(&of("DENY", mixed.clone()), caller(SLEEP)) && judge(&of("DENY", mixed.clone()), caller(None)));
    assert!(!judge(&of("ALLOW", mixed), caller(SLEEP)));
}

// spec: AUTHZ-021
#[test]
fn an_audit_marks_and_changes_nothing() {
    let rule = json!([{"to": [[{"key": "request.path", "values": ["/a"]}]]}]);
    let audit = policies(json!([policy("p", "AUDIT", rule)]));
    let judge = |path| audit.judge(caller(None), &get(path), true).expect("allowed").audited;
    assert!(judge("/a") && !judge("/b"));
}

// spec: AUTHZ-011
#[test]
fn a_rule_that_nothing_fits_grants_nothing() {
    let allow = policies(json!([policy("p", "ALLOW", json!([{"never": true}]))]));
    assert!(!passes(&allow, caller(SLEEP), &get("/")));
    assert!(allow.judge_tcp(caller(SLEEP)).is_err());
}

// spec: DLV-025
#[test]
fn what_cannot_be_read_is_refused_with_its_path() {
    let bundle = json!({
        "workload": {"namespace": "n", "name": "w", "serviceAccount": "a", "canonicalName": "w",
            "canonicalRevision": "latest"},
        "authorization": [policy("p", "ALLOW", json!([
            {"when": [{"key": "source.ip", "values": ["x"]}, {"key": "nonsense", "values": ["x"]}]},
            {"to": [[{"key": "request.path", "values": ["/{**}/{*}"]}]]},
        ]))],
    });
    let bundle = serde_json::from_value(bundle).expect("bundle");
    let problems = Config::parse(bundle).expect_err("invalid");
    let paths: Vec<_> = problems.iter().map(|problem| &*problem.path).collect();
    assert_eq!(
        paths,
        [
            "authorization[0].rules[0].when[0].values[0]",
            "authorization[0].rules[0].when[1].key",
            "authorization[0].rules[1].to[0][0].values[0]"
        ]
    );
}
