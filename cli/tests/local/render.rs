//! What a run writes is, byte by byte, what the operator writes for the same objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use weft_bundle::pack::Files;
use weft_bundle::volume;
use weft_operator::render::{Output, Renderer};
use weft_operator::source::{self, Event};
use weft_operator::world::{Settings, Store};

use super::support::{Run, Way, route};

/// An API server that has these objects, with everything that a real one adds, and never has news.
async fn api_server(objects: Vec<Value>) -> kube::Client {
    let objects = Arc::new(objects);
    let answer = move |request: Request| {
        let objects = objects.clone();
        async move {
            let query = request.uri().query().unwrap_or_default();
            if query.contains("watch=") {
                return std::future::pending::<Response>().await;
            }
            let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let fits = |object: &&Value| {
                plural_of(object) == plural && !query.contains("labelSelector") && named(object, query)
            };
            let items: Vec<Value> = objects
                .iter()
                .filter(fits)
                .map(|object| noise(object.clone()))
                .collect();
            let list =
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            Json(list).into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let config = kube::Config::new(format!("http://{address}").parse().expect("URI"));
    kube::Client::try_from(config).expect("client")
}

fn plural_of(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    match kind.as_str() {
        "peerauthentication" => "peerauthentications".to_owned(),
        kind => format!("{kind}s"),
    }
}

/// Whether a field selector for a name takes the object.
fn named(object: &Value, query: &str) -> bool {
    match query
        .split("fieldSelector=metadata.name%3D")
        .nth(1)
        .or(query.split("fieldSelector=metadata.name=").nth(1))
    {
        Some(rest) => object["metadata"]["name"] == rest.split('&').next().unwrap_or_default(),
        None => true,
    }
}

fn noise(mut object: Value) -> Value {
    let metadata = &mut object["metadata"];
    metadata["resourceVersion"] = "4711".into();
    metadata["generation"] = 3.into();
    metadata["managedFields"] = json!([{"manager": "kubectl", "operation": "Apply", "apiVersion": "v1"}]);
    if metadata["uid"].is_null() {
        metadata["uid"] = "0f0f0f0f-0000-0000-0000-000000000000".into();
    }
    if object["kind"] == "Pod" {
        object["metadata"]["annotations"]["weft.dev/target-rev"] = "older,older".into();
    }
    object
}

/// What the operator renders from what its watches tell.
async fn rendered(objects: Vec<Value>) -> Output {
    let client = api_server(objects).await;
    let settings = Settings::default();
    let (tell, mut told) = mpsc::channel(1024);
    let mut missing = source::start(&client, &settings, &tell);
    let mut store = Store::new(settings);
    while !missing.is_empty() {
        let event = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
        match event
            .unwrap_or_else(|_| panic!("no answer for {missing:?}"))
            .expect("open")
        {
            Event::World(event) => drop(store.apply(event)),
            Event::Synced(name) => missing.retain(|other| *other != name),
            _ => {}
        }
    }
    Renderer::new().render(&store.world())
}

// spec: LOC-003, LOC-004
#[tokio::test]
async fn files_and_watches_render_the_same_bytes() {
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    for name in ["subsets.yaml", "strict.yaml", "by-user.yaml"] {
        run.save(name, &route(name));
        run.wait_for_line(&format!("applied {}", kind_of(name)));
    }
    run.wait_for("the last sidecar", || {
        (run.log().matches("in force in").count() >= 3).then_some(())
    });
    let list: Value = serde_json::from_str(&run.say("get", &["all", "-o", "json"])).expect("JSON");
    let objects = list["items"].as_array().expect("items").clone();
    let output = rendered(objects).await;
    assert!(output.failures.is_empty(), "{:?}", output.failures);
    let mut compared = 0;
    for pod in run.pods("sample/") {
        let id = pod["pod"].as_str().expect("name");
        let folder = run
            .state()
            .join("pods")
            .join(id.replace('/', "_"))
            .join("volumes/weft-config");
        assert!(
            volume::target(&folder).expect("readable").is_some(),
            "a kubelet's layout"
        );
        let mut found = volume::read(&folder).expect("volume").files;
        found.remove("target-rev");
        let key = pod["key"].as_str().expect("key");
        let config = output.configs.iter().find(|(reference, _)| reference.key == key);
        let (_, config) = config.unwrap_or_else(|| panic!("{id}: the operator has no {key}"));
        let shards = config.shards.iter().chain(&output.endpoints["sample"].shards);
        let expected: Files = shards.flat_map(|files| Files::clone(files)).collect();
        let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{id}");
        for (name, bytes) in &expected {
            assert!(
                found[name] == *bytes,
                "{id}: {name} differs:\n{}\n{}",
                text(&found[name]),
                text(bytes)
            );
        }
        compared += expected.values().map(Vec::len).sum::<usize>();
    }
    assert!(compared > 1000, "something was compared: {compared} bytes");
    let accounts: BTreeMap<_, _> = output
        .identities
        .iter()
        .map(|i| (i.service_account.clone(), ()))
        .collect();
    assert_eq!(accounts.into_keys().collect::<Vec<_>>(), ["forecast", "frontend"]);
}

fn kind_of(name: &str) -> &'static str {
    match name {
        "subsets.yaml" => "DestinationRule",
        "strict.yaml" => "PeerAuthentication",
        "callers.yaml" => "AuthorizationPolicy",
        _ => "VirtualService",
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
