use std::fmt::Write as _;

use weft_bundle::load;
use weft_bundle::pack::Files;

use super::super::Output;
use super::super::stage::{render, render_under};
use super::*;
use crate::world::Settings;

/// Pods of app/echo with what was written where injection records the shards, and their phase.
fn pods(statuses: &[(&str, &str)]) -> String {
    let plain = render("");
    let of = |reference: &&ConfigRef| reference.namespace == "app" && reference.key.starts_with("echo-");
    let key = &plain.configs.keys().find(of).expect("rendered").key;
    let mut documents = String::new();
    for (n, (status, phase)) in statuses.iter().enumerate() {
        let status = serde_json::to_string(status).expect("text");
        let _ = write!(
            documents,
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: echo-5d8f-{n}, namespace: app, labels: {{app: echo, \
             pod-template-hash: 5d8f}}, annotations: {{weft.dev/config-key: {key}, weft.dev/status: {status}}}, \
             ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: echo-5d8f, uid: u, controller: true}}]}}\nspec: \
             {{containers: [{{name: c, image: i}}]}}\nstatus: {{phase: {phase}}}\n"
        );
    }
    documents
}

fn shards(output: &Output, namespace: &str) -> usize {
    let rendered = &output.endpoints[namespace];
    let files: Files = rendered.shards.iter().flat_map(|shard| Files::clone(shard)).collect();
    let mut hosts = 0;
    for n in 0..rendered.shards.len() {
        let loaded = load::endpoints(&files, n).expect("good").expect("there");
        assert_eq!(loaded.manifest.shards as usize, rendered.shards.len());
        hosts += loaded.endpoints.hosts.len();
    }
    assert_eq!(hosts, rendered.hosts.len(), "no host is lost");
    rendered.shards.len()
}

fn configured(endpoint_shards: usize) -> Settings {
    Settings {
        limits: Limits {
            endpoint_shards,
            ..Limits::default()
        },
        ..Settings::default()
    }
}

// spec: DLV-037, DLV-032, DLV-031
#[test]
fn endpoints_are_spread_over_as_many_shards_as_the_narrowest_live_pod_mounts() {
    let running = |n: usize| (format!("{{\"epShards\": {n}}}"), "Running");
    let of = |setting: usize, statuses: &[(String, &str)]| {
        let statuses: Vec<_> = statuses.iter().map(|(text, phase)| (text.as_str(), *phase)).collect();
        let output = render_under(configured(setting), &pods(&statuses));
        assert_eq!(shards(&output, "other"), setting, "nobody is there");
        shards(&output, "app")
    };
    assert_eq!(of(1, &[]), 1);
    assert_eq!(of(2, &[]), 2);
    assert_eq!(of(2, &[running(1)]), 1);
    assert_eq!(of(1, &[running(2)]), 2, "a lowered one holds for new pods");
    assert_eq!(of(8, &[running(8), running(2), running(3)]), 2, "a raised one waits");
    assert_eq!(of(8, &[running(8), running(3)]), 3, "until the last narrow pod is gone");
    let ended = |phase| ("{\"epShards\": 1}".to_owned(), phase);
    assert_eq!(of(8, &[running(8), ended("Succeeded"), ended("Failed")]), 8);
    assert_eq!(of(8, &[running(8), ended("Pending")]), 1, "it mounts them as well");
}

// spec: DLV-037
#[test]
fn a_record_that_injection_does_not_write_counts_as_the_setting_says() {
    let hostile = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "{\"epShards\": 0}",
        "{\"epShards\": 9}",
        "{\"epShards\": -1}",
        "{\"epShards\": 1.5}",
        "{\"epShards\": \"1\"}",
        "{\"epShards\": 18446744073709551616}",
        "{\"epShards\": {\"epShards\": 1}}",
    ];
    for status in hostile {
        let output = render_under(configured(3), &pods(&[(status, "Running")]));
        assert_eq!(shards(&output, "app"), 3, "{status}");
        assert_eq!(output.pods.len(), 1);
    }
    let deep = "[".repeat(100_000);
    assert_eq!(shards(&render(&pods(&[(&deep, "Running")])), "app"), 2);
}

// spec: DLV-032
#[test]
fn numbers_out_of_range_are_none() {
    let read = |text: &str| Mounts::read(serde_json::from_str(text).ok().as_ref());
    let both = |endpoints, credentials| Mounts { endpoints, credentials };
    assert_eq!(read("{\"epShards\": 8, \"tlsShards\": 0}"), both(Some(8), Some(0)));
    assert_eq!(read("{\"epShards\": 0, \"tlsShards\": 9}"), both(None, None));
    assert_eq!(Mounts::read(None), both(None, None));
}
