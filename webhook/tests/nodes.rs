//! Node versions, from a stand-in for an API server that lists and watches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};
use weft_webhook::nodes::{self, Versions};

/// Where the next event of the open watch goes.
type Watch = Arc<Mutex<Option<UnboundedSender<Result<String, std::io::Error>>>>>;

fn node(name: &str, version: &str, resource_version: &str) -> Value {
    let info = json!({
        "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
        "kubeletVersion": version, "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
    });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "resourceVersion": resource_version},
        "status": {"nodeInfo": info},
    })
}

async fn list_or_watch(State(watch): State<Watch>, Query(query): Query<HashMap<String, String>>) -> Response {
    if query.get("watch").is_some_and(|watch| watch == "true") {
        let (sender, events) = unbounded();
        *watch.lock().await = Some(sender);
        return Body::from_stream(events.map(|line| line.map(|line| line + "\n"))).into_response();
    }
    let items = json!([node("a", "v1.36.3", "1"), node("b", "v1.35.0", "2")]);
    Json(json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "10"}, "items": items}))
        .into_response()
}

async fn version() -> Json<Value> {
    Json(json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": "",
    }))
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"));
}

// spec: INJ-052, INJ-053
#[tokio::test(flavor = "multi_thread")]
async fn versions_follow_the_cluster() {
    let watch = Watch::default();
    let routes = Router::new()
        .route("/version", get(version))
        .route("/api/v1/nodes", get(list_or_watch))
        .with_state(Arc::clone(&watch));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("is bound");
    tokio::spawn(async { axum::serve(listener, routes).await });

    let config = kube::Config::new(format!("http://{address}").parse().expect("a URL"));
    let client = kube::Client::try_from(config).expect("a client");
    let versions = Arc::new(ArcSwap::from_pointee(Versions::default()));
    let (told, first) = oneshot::channel();
    tokio::spawn(nodes::follow(client, Arc::clone(&versions), told));
    tokio::time::timeout(Duration::from_secs(20), first)
        .await
        .expect("a first list")
        .expect("is told");
    assert!(versions.load().native(None), "{:?}", versions.load());

    until("a watch is open", async || watch.lock().await.is_some()).await;
    let send = async |kind: &str, node: Value| {
        let line = json!({"type": kind, "object": node}).to_string();
        watch
            .lock()
            .await
            .as_ref()
            .expect("is open")
            .unbounded_send(Ok(line))
            .expect("is read");
    };
    send("ADDED", node("c", "v1.30.1", "11")).await;
    until("an old node is noticed", async || !versions.load().native(None)).await;
    assert!(versions.load().native(Some("a")));
    send("DELETED", node("c", "v1.30.1", "12")).await;
    until("its end is noticed", async || versions.load().native(None)).await;
    send("MODIFIED", node("a", "v1.32.0", "13")).await;
    until("a change is noticed", async || !versions.load().native(Some("a"))).await;
}
