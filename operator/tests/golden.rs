//! Manifests in, rendered bundles out, reviewed as text: `UPDATE_GOLDEN=1` rewrites.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use weft_bundle::load;
use weft_bundle::pack::Files;
use weft_operator::render::{Output, Renderer, Work};
use weft_operator::world::read::{Read, object};
use weft_operator::world::{Event, Settings, Store};

fn documents(text: &str) -> Vec<Value> {
    let parts = text
        .split("\n---\n")
        .map(|part| serde_yaml::from_str(part).expect("YAML"));
    parts.collect()
}

fn events(documents: &[Value]) -> Vec<Event> {
    documents
        .iter()
        .map(|document| match object(document, "weft-system").expect("readable") {
            Read::Object(object) => Event::Apply(object),
            Read::Other => panic!("a golden case holds a kind that rendering has no use for: {document}"),
        })
        .collect()
}

fn render(events: impl IntoIterator<Item = Event>) -> Output {
    let mut store = Store::new(Settings::default());
    events.into_iter().for_each(|event| {
        store.apply(event);
    });
    Renderer::new().render(&store.world())
}

/// Everything that was rendered, as text.
fn print(output: &Output) -> String {
    let mut out = String::new();
    for (reference, config) in &output.configs {
        let files: Files = config.shards.iter().flat_map(|shard| Files::clone(shard)).collect();
        let loaded = load::config(&files).expect("loads").expect("present");
        assert_eq!(loaded.bundle, config.bundle(), "what was packed is what was rendered");
        writeln!(out, "# config {}/{}", reference.namespace, reference.key).expect("text");
        out.push_str(&serde_yaml::to_string(&config.bundle()).expect("YAML"));
    }
    for (namespace, endpoints) in &output.endpoints {
        let files: Files = endpoints.shards.iter().flat_map(|shard| Files::clone(shard)).collect();
        for n in 0..endpoints.shards.len() {
            let loaded = load::endpoints(&files, n).expect("loads").expect("present");
            writeln!(out, "# endpoints {namespace} {n}").expect("text");
            out.push_str(&serde_yaml::to_string(&loaded.endpoints).expect("YAML"));
        }
    }
    for identity in &output.identities {
        writeln!(out, "# identity {}/{}", identity.namespace, identity.service_account).expect("text");
    }
    for (reference, report) in &output.reports {
        writeln!(out, "# report {reference}: {report:?}").expect("text");
    }
    assert!(output.failures.is_empty(), "{:?}", output.failures);
    out
}

// The statements that each case proves are named in its in.yaml.
#[test]
fn golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differing = BTreeMap::new();
    let mut cases = 0;
    for entry in fs::read_dir(&root).expect("cases") {
        let dir = entry.expect("entry").path();
        let input = fs::read_to_string(dir.join("in.yaml")).expect("in.yaml");
        let found = print(&render(events(&documents(&input))));
        let path = dir.join("out.yaml");
        if update {
            fs::write(&path, &found).expect("write");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        if expected != found {
            let line = expected
                .lines()
                .zip(found.lines())
                .position(|(a, b)| a != b)
                .map_or(0, |n| n + 1);
            let text = found.lines().nth(line.saturating_sub(1)).unwrap_or_default().to_owned();
            differing.insert(dir, (line, text));
        }
        cases += 1;
    }
    assert!(cases > 0, "no cases below {}", root.display());
    assert!(
        differing.is_empty(),
        "differs from out.yaml (UPDATE_GOLDEN=1 rewrites it): {differing:#?}"
    );
}

// spec: DLV-002
#[test]
fn the_order_of_events_changes_nothing() {
    let input = include_str!("golden/forecast/in.yaml");
    let documents = documents(input);
    let expected = print(&render(events(&documents)));
    for shift in 1..documents.len() {
        let mut order = documents.clone();
        order.rotate_left(shift);
        if shift % 2 == 0 {
            order.reverse();
        }
        assert_eq!(print(&render(events(&order))), expected, "rotated by {shift}");
    }
}

// spec: DLV-002, DLV-071
#[test]
fn what_did_not_change_is_not_rendered_again() {
    let mut store = Store::new(Settings::default());
    let mut documents = documents(include_str!("golden/forecast/in.yaml"));
    events(&documents).into_iter().for_each(|event| {
        store.apply(event);
    });
    let mut renderer = Renderer::new();
    let before = renderer.render(&store.world());
    let again = renderer.render(&store.world());
    for (reference, config) in &before.configs {
        assert!(std::sync::Arc::ptr_eq(config, &again.configs[reference]));
    }
    let slice = documents
        .iter_mut()
        .find(|d| d["kind"] == "EndpointSlice")
        .expect("slice");
    slice["endpoints"][1]["conditions"]["ready"] = true.into();
    let changed = slice.clone();
    events(&[changed]).into_iter().for_each(|event| {
        store.apply(event);
    });
    let after = renderer.render(&store.world());
    for (reference, config) in &before.configs {
        assert!(
            std::sync::Arc::ptr_eq(config, &after.configs[reference]),
            "endpoints touch no configuration"
        );
    }
    assert_ne!(before.endpoints["sample"].revision, after.endpoints["sample"].revision);
}

// spec: DLV-071, DLV-110, OPS-086, PA-021
#[test]
fn a_change_does_the_work_of_its_dependants_alone() {
    let mut store = Store::new(Settings::default());
    let mut manifests = documents(include_str!("golden/forecast/in.yaml"));
    let elsewhere = include_str!("golden/forecast/in.yaml")
        .replace("sample", "elsewhere")
        .replace("10.96.0.", "10.96.1.")
        .replace("10.244.0.", "10.244.1.");
    manifests.extend(documents(&elsewhere));
    let apply = |store: &mut Store, documents: &[Value]| {
        events(documents).into_iter().for_each(|event| {
            store.apply(event);
        });
    };
    apply(&mut store, &manifests);
    let mut renderer = Renderer::new();
    let all = renderer.render(&store.world());
    assert_eq!(all.work.configs, all.configs.len());
    let again = renderer.render(&store.world());
    assert_eq!(again.work, Work::default());
    let keys = |namespace: &str| all.configs.keys().filter(|key| key.namespace == namespace).count();
    assert!(keys("sample") > 1 && keys("elsewhere") > 1);

    let route = |export_to: &str| {
        let text = format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: new, namespace: sample}}, \
             spec: {{hosts: [frontend], exportTo: ['{export_to}'], \
             http: [{{timeout: 3s, route: [{{destination: {{host: frontend}}}}]}}]}}}}"
        );
        documents(&text)
    };
    apply(&mut store, &route("."));
    let private = renderer.render(&store.world()).work;
    let expected = Work {
        verdicts: 1,
        views: 1,
        configs: keys("sample"),
        ..Work::default()
    };
    assert_eq!(private, expected, "a route for one namespace");
    apply(&mut store, &route("*"));
    let public = renderer.render(&store.world()).work;
    assert_eq!(
        (public.views, public.configs),
        (2, keys("elsewhere")),
        "a view that is as before packs nothing"
    );

    let slice = manifests
        .iter_mut()
        .find(|d| d["kind"] == "EndpointSlice")
        .expect("slice");
    slice["endpoints"][1]["conditions"]["ready"] = true.into();
    let mut more = slice["endpoints"][1].clone();
    more["addresses"] = json!(["10.244.0.99"]);
    slice["endpoints"].as_array_mut().expect("endpoints").push(more);
    let changed = slice.clone();
    apply(&mut store, &[changed]);
    let endpoint = renderer.render(&store.world()).work;
    let expected = Work {
        hosts: 1,
        namespaces: all.endpoints.len(),
        ..Work::default()
    };
    assert_eq!(endpoint, expected, "one write for each namespace, none for a key");

    let policy = documents(
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: forecast, namespace: sample}, \
         spec: {selector: {matchLabels: {version: v2}}, mtls: {mode: DISABLE}}}",
    );
    apply(&mut store, &policy);
    let disabled = renderer.render(&store.world()).work;
    assert_eq!(
        (disabled.views, disabled.configs),
        (0, 1),
        "the workload that it selects"
    );
    store.apply(match &events(&policy)[0] {
        Event::Apply(object) => Event::Delete(object.reference()),
        Event::Delete(_) => unreachable!("it was applied"),
    });
    let after = renderer.render(&store.world());
    assert_eq!((after.work.views, after.work.configs), (0, 1));
    let mode = |output: &Output| -> Vec<_> { output.configs.values().map(|c| c.bundle().inbound.mtls).collect() };
    assert_eq!(mode(&after), mode(&all), "the mode of the namespace is back");
}
