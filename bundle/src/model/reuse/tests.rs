use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::load::{Content, Rejected};
use crate::model::directory::Names;
use crate::model::{Config, Serves};

fn parse(bundle: &Value, before: Option<&Config>) -> Result<Config, Rejected> {
    Content::of(false, &bundle.to_string()).config(before)
}

/// As [`parse`], of the bundle as text.
fn parse_text(bundle: &Value, before: Option<&Config>) -> Result<Config, Rejected> {
    Content::of(true, &serde_yaml::to_string(bundle).expect("YAML")).config(before)
}

fn host(name: &str, http: Option<&str>) -> Value {
    let mut port = json!({"port": 80, "name": "http", "protocol": "http"});
    if let Some(http) = http {
        port["http"] = json!(http);
    }
    json!({"host": name, "name": name, "namespace": "app", "domains": [name], "ports": [port]})
}

fn table(name: &str, to: &str) -> Value {
    json!({
        "name": name,
        "origin": {"kind": "VirtualService", "namespace": "app", "name": name},
        "rules": [{"destinations": [{"host": to, "port": 80}]}],
    })
}

fn bundle() -> Value {
    json!({
        "workload": {"namespace": "app", "name": "client", "serviceAccount": "client", "canonicalName": "client",
            "canonicalRevision": "latest"},
        "hosts": [host("a", Some("a")), host("b", Some("b")), host("c", None)],
        "routes": [table("a", "a"), table("b", "b")],
    })
}

fn same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> Vec<bool> {
    one.iter()
        .zip(other)
        .map(|(one, other)| Arc::ptr_eq(one, other))
        .collect()
}

fn same_tables(one: &Config, other: &Config) -> Vec<bool> {
    let of = |config: &Config| -> Vec<_> { config.tables.iter().map(|part| part.made.table.clone()).collect() };
    same(&of(one), &of(other))
}

fn same_ports(one: &Config, other: &Config) -> Vec<bool> {
    let of = |config: &Config| -> Vec<_> { config.leads.iter().filter_map(|lead| lead.port.clone()).collect() };
    same(&of(one), &of(other))
}

// spec: LIFE-040
#[test]
fn a_changed_rule_makes_a_new_table_and_port_and_leaves_the_rest_as_it_is() {
    let mut text = bundle();
    let one = parse(&text, None).expect("valid");
    text["routes"][0]["rules"][0]["timeoutMs"] = json!(7);
    let other = parse(&text, Some(&one)).expect("valid");
    assert_eq!(same(&one.hosts, &other.hosts), [true; 3]);
    assert_eq!(same(&one.clusters, &other.clusters), [true; 3]);
    assert_eq!(same_tables(&one, &other), [false, true]);
    assert_eq!(same_ports(&one, &other), [false, true, true]);
    assert!(Arc::ptr_eq(&one.directory, &other.directory) && Arc::ptr_eq(&one.index, &other.index));
    let found = other.domains(80).and_then(|domains| domains.find("a")).expect("a name");
    assert_eq!(found.http.rules[0].timeout, Some(std::time::Duration::from_millis(7)));
    assert!(other.serial > one.serial);
}

// spec: LIFE-040
#[test]
fn a_changed_host_makes_everything_new_that_leads_to_it() {
    let mut text = bundle();
    text["routes"][1] = table("b", "c");
    let one = parse(&text, None).expect("valid");
    text["hosts"][2]["ports"][0]["policy"] = json!({"connectTimeoutMs": 7});
    let other = parse(&text, Some(&one)).expect("valid");
    assert_eq!(same(&one.hosts, &other.hosts), [true, true, false]);
    assert_eq!(same(&one.clusters, &other.clusters), [true, true, false]);
    assert_eq!(same_tables(&one, &other), [true, false]);
    assert_eq!(same_ports(&one, &other), [true, false, false]);
}

// spec: VS-048, VS-141
#[test]
fn a_host_that_comes_or_goes_is_noticed_by_rules_that_name_it() {
    let mut text = bundle();
    text["routes"][0] = table("a", "new");
    text["routes"][1]["rules"][0]["mirrors"] = json!([{"destination": {"host": "new", "port": 80}, "sharePpm": 9}]);
    let without = parse(&text, None).expect("valid");
    text["hosts"].as_array_mut().expect("a list").push(host("new", None));
    let with = parse(&text, Some(&without)).expect("valid");
    assert_eq!(same(&without.hosts, &with.hosts), [true; 3]);
    assert_eq!(same_tables(&without, &with), [false, false]);
    assert_eq!(described(&with), described(&parse(&text, None).expect("valid")));
    text["hosts"].as_array_mut().expect("a list").pop();
    let again = parse(&text, Some(&with)).expect("valid");
    assert_eq!(same_tables(&with, &again), [false, false]);
    assert_eq!(described(&again), described(&without));
}

// spec: VS-099
#[test]
fn retries_of_the_mesh_are_noticed_by_rules_without_their_own() {
    let mut text = bundle();
    let one = parse(&text, None).expect("valid");
    text["mesh"] = json!({"retry": {"attempts": 7}});
    let other = parse(&text, Some(&one)).expect("valid");
    assert_eq!(same(&one.clusters, &other.clusters), [true; 3]);
    assert!(
        other
            .leads
            .iter()
            .all(|lead| lead.http.rules.iter().all(|rule| rule.retry.attempts == 7))
    );
}

// spec: DLV-023, DLV-080
#[test]
fn what_is_taken_over_is_of_the_configuration_in_force_and_of_none_that_was_refused() {
    let mut text = bundle();
    let one = parse(&text, None).expect("valid");
    // The second host comes to have a table that is not there; the first table changes within the same bundle.
    text["routes"][0]["rules"][0]["timeoutMs"] = json!(7);
    text["hosts"][1]["ports"][0]["http"] = json!("absent");
    let refused = parse(&text, Some(&one)).expect_err("no such table");
    assert_eq!(
        refused.message,
        "hosts[b].ports[80].http: \"absent\": names no route table"
    );
    // One that stayed is judged by what it needs as well.
    let mut gone = bundle();
    gone["routes"].as_array_mut().expect("a list").remove(0);
    let refused = parse(&gone, Some(&one)).expect_err("no table");
    assert_eq!(refused.message, "hosts[a].ports[80].http: \"a\": names no route table");
    let again = parse(&bundle(), Some(&one)).expect("valid");
    assert_eq!(same_tables(&one, &again), [true, true]);
    assert_eq!(same_ports(&one, &again), [true; 3]);
}

// spec: DLV-080
#[test]
fn an_item_that_cannot_be_read_is_told_with_its_line() {
    let mut text = bundle();
    let one = parse(&text, None).expect("valid");
    text["routes"][1]["rules"][0]["timeoutMs"] = json!("soon");
    let text = serde_json::to_string_pretty(&text).expect("JSON");
    let line = 1 + text.lines().position(|line| line.contains("soon")).expect("is there");
    let refused = Content::of(false, &text).config(Some(&one)).expect_err("no number");
    assert_eq!(refused.line, Some(line));
    let whole = Content::of(false, &text).bundle().expect_err("no number");
    assert_eq!(refused, whole);
}

// spec: LIFE-040
#[test]
fn destinations_that_stay_keep_their_number_and_new_ones_take_what_is_free() {
    let mut text = bundle();
    let one = parse(&text, None).expect("valid");
    text["hosts"] = json!([host("0", None), host("b", Some("b")), host("c", None), host("d", None)]);
    text["routes"] = json!([table("b", "b")]);
    let other = parse(&text, Some(&one)).expect("valid");
    let ids: Vec<usize> = other.clusters.iter().map(|cluster| cluster.id).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert!(Arc::ptr_eq(&one.clusters[1], &other.clusters[1]));
    assert_eq!(other.slots(), 4);
}

/// Everything that a configuration says, apart from numbers that only tell one from another.
fn described(config: &Config) -> String {
    let mut out = String::new();
    let ids: BTreeSet<usize> = config.clusters.iter().map(|cluster| cluster.id).collect();
    assert_eq!(ids.len(), config.clusters.len(), "each has its own number");
    assert!(ids.iter().all(|id| *id < config.slots()));
    let names = |names: &Names| {
        let exact: BTreeMap<_, _> = names.exact.iter().collect();
        format!("{exact:#?} {:#?}", names.suffixes)
    };
    let all = (
        &config.workload,
        &config.owner,
        &config.mesh,
        &config.hosts,
        &config.clusters,
    );
    write!(out, "{all:#?} {:#?} {:#?}", config.leads, config.extras).expect("text");
    let ports: BTreeMap<_, _> = config.inbound.ports.iter().collect();
    write!(out, "{:#?} {ports:#?}", config.index.iter().collect::<BTreeMap<_, _>>()).expect("text");
    for part in &config.tables {
        write!(out, "{:#?}", part.made).expect("text");
    }
    for part in &config.parts {
        write!(out, "{:#?}", part.made).expect("text");
    }
    let directory = &config.directory;
    for (number, of_number) in directory.domains.iter().collect::<BTreeMap<_, _>>() {
        let shared = config.domains(*number).expect("is there").shared;
        write!(out, "{number} {shared} {}", names(of_number)).expect("text");
    }
    write!(out, "{:#?}", directory.addresses.iter().collect::<BTreeMap<_, _>>()).expect("text");
    for places in [
        &directory.headless,
        &directory.open,
        &directory.ranges,
        &directory.subnets,
    ] {
        write!(out, "{:#?}", places.iter().collect::<BTreeMap<_, _>>()).expect("text");
    }
    for (number, listener) in &config.listeners {
        write!(out, "{number} {}", listener.service_port).expect("text");
        match &listener.serves {
            Serves::Http(hosts) => write!(out, "{} {:#?}", names(&hosts.names), hosts.leads),
            Serves::Tls(tls) => write!(out, "{:#?}", tls.by_name.iter().collect::<BTreeMap<_, _>>()),
            Serves::Tcp(destinations) => write!(out, "{destinations:#?}"),
        }
        .expect("text");
    }
    let is_id = |line: &str| line.trim_start().starts_with("id: ");
    out.lines()
        .filter(|line| !is_id(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Forms of the host with a number; none: it is not there.
fn hosts(number: usize) -> Vec<Vec<Value>> {
    let name = format!("h{number}");
    let plain = host(&name, None);
    let routed = host(&name, Some(&format!("t{}", number % TABLES)));
    let mut aliased = routed.clone();
    aliased["domains"] = json!([name, "h0", "*.wide", "[fd00::1]"]);
    aliased["addresses"] = json!(["10.0.0.1"]);
    let mut split = routed.clone();
    split["subsets"] = json!([{"name": "v1", "labels": {"version": "v1"}}]);
    let mut opaque = plain.clone();
    opaque["kind"] = json!("entry");
    opaque["subnets"] = json!([{"address": "10.9.0.0", "prefix": 16}]);
    let to = |number: usize| json!([{"host": format!("h{number}"), "port": 80}]);
    opaque["ports"] = json!([
        {"port": 80, "protocol": "tcp", "tcp": [{"subnets": [{"address": "10.8.0.0", "prefix": 16}], "destinations": to(0)}]},
        {"port": 443, "protocol": "tls", "tls": [{"sni": ["a"], "destinations": to(1)}]},
    ]);
    let mut headless = plain.clone();
    headless["headless"] = json!(true);
    headless["ports"][0]["protocol"] = json!("auto");
    let mut wrong = plain.clone();
    wrong["ports"][0]["port"] = json!(0);
    let mut unreadable = plain.clone();
    unreadable["ports"] = json!("none");
    let mut forms: Vec<_> = [plain.clone(), routed, aliased, split, opaque, headless]
        .map(|form| vec![form])
        .into();
    forms.extend([vec![], vec![plain.clone(), plain], vec![wrong], vec![unreadable]]);
    forms
}

/// Forms of the route table with a number.
fn tables(number: usize) -> Vec<Vec<Value>> {
    let name = format!("t{number}");
    let plain = table(&name, "h0");
    let mut split = table(&name, "h1");
    split["rules"][0]["destinations"][0]["subset"] = json!("v1");
    let mut mirrored = table(&name, "h2");
    mirrored["rules"][0]["mirrors"] = json!([
        {"destination": {"host": "h3", "port": 80}, "sharePpm": 1},
        {"destination": {"host": "h1", "port": 443}, "sharePpm": 2},
    ]);
    let mut own_retry = table(&name, "h3");
    own_retry["rules"][0]["retry"] = json!({"attempts": 5});
    own_retry["rules"][0]["matches"] = json!([{"path": {"regex": "/a.*"}}]);
    let mut wrong = plain.clone();
    wrong["rules"][0]["matches"] = json!([{"path": {"regex": "("}}]);
    let mut unreadable = plain.clone();
    unreadable["rules"] = json!({});
    let mut forms: Vec<_> = [plain.clone(), split, mirrored, own_retry]
        .map(|form| vec![form])
        .into();
    forms.extend([vec![], vec![plain.clone(), plain], vec![wrong], vec![unreadable]]);
    forms
}

const HOSTS: usize = 4;
const TABLES: usize = 2;

/// The rest of a bundle: retries of the mesh, a made-up name, a port of a gateway.
fn composed(forms: &[usize]) -> Value {
    let mut all = bundle();
    let pick = |slot: usize, of: Vec<Vec<Value>>| of[forms[slot] % of.len()].clone();
    all["hosts"] = (0..HOSTS).flat_map(|n| pick(n, hosts(n))).collect();
    all["routes"] = (0..TABLES).flat_map(|n| pick(HOSTS + n, tables(n))).collect();
    match forms[HOSTS + TABLES] % 5 {
        0 => all["mesh"] = json!({"retry": {"attempts": 1}}),
        1 => all["domains"] = json!([{"port": 80, "domains": ["made.up", "h1"], "http": "t0"}]),
        2 => all["listeners"] = json!([{"port": 8080, "http": [{"domains": ["a", "*"], "http": "t1"}]}]),
        3 => all["listeners"] = json!([{"port": 8443, "tcp": [{"host": "h2", "port": 80}]}]),
        _ => {}
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// In both forms of a bundle. Each step changes a few things, among them to what is not valid; what is valid is the next one's past.
    // spec: LIFE-040, DLV-023, DLV-080
    #[test]
    fn a_configuration_with_a_past_is_the_one_without(
        steps in prop::collection::vec(prop::collection::vec((0..=HOSTS + TABLES, 0_usize..60), 1..4), 1..16),
    ) {
        let mut forms = vec![0; HOSTS + TABLES + 1];
        forms[HOSTS + TABLES] = 4;
        for parse in [parse, parse_text] {
            let mut forms = forms.clone();
            let mut before = parse(&composed(&forms), None).ok();
            for step in &steps {
                let earlier = forms.clone();
                step.iter().for_each(|(slot, form)| forms[*slot] = *form);
                let text = composed(&forms);
                match (parse(&text, before.as_ref()), parse(&text, None)) {
                    (Ok(with), Ok(without)) => {
                        prop_assert_eq!(described(&with), described(&without));
                        before = Some(with);
                    }
                    (Err(with), Err(without)) => {
                        prop_assert_eq!(with, without);
                        // Most steps begin at what is valid.
                        forms = earlier;
                    }
                    (with, without) => prop_assert!(false, "{:?} {:?}", with.err(), without.err()),
                }
            }
        }
    }
}
