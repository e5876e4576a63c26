//! The operator against an API server that is slow, refuses or fails as no real one does on request: a small one of
//! our own, on a real socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use weft_bundle::anchors;
use weft_bundle::key::{InterceptionMode, KeyInputs, PodShape, Template};
use weft_operator::acknowledge::{Acknowledged, Bucket, Holdouts, Target, Targets, Tracker};
use weft_operator::identity::Authority;
use weft_operator::metrics::Metrics;
use weft_operator::run::{Health, Operator, Wires};
use weft_operator::source::{self, Event};
use weft_operator::status;
use weft_operator::world::Settings;

/// A request that the API server got.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    path: String,
    query: String,
    content_type: String,
    body: Value,
    at: Instant,
}

impl Seen {
    fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    fn is_list(&self, plural: &str) -> bool {
        self.method == Method::GET && self.path.ends_with(plural) && !self.query.contains("watch=")
    }
}

/// What it answers, where that is not what an empty cluster would.
type Answer = Arc<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

#[derive(Clone)]
struct Api {
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Answer,
}

impl Api {
    async fn start(answer: impl Fn(&Seen) -> Option<Response> + Send + Sync + 'static) -> (Self, SocketAddr) {
        let api = Self {
            seen: Arc::default(),
            answer: Arc::new(answer),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (api, address)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test panics with it").clone()
    }

    fn writes(&self) -> Vec<Seen> {
        self.seen().into_iter().filter(Seen::is_write).collect()
    }
}

async fn serve(State(api): State<Api>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let seen = Seen {
        method,
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        content_type: text(header::CONTENT_TYPE),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        at: Instant::now(),
    };
    api.seen.lock().expect("no test panics with it").push(seen.clone());
    if let Some(answer) = (api.answer)(&seen) {
        return answer;
    }
    if seen.is_write() {
        // As it would be stored.
        return json_response(StatusCode::OK, &seen.body);
    }
    if seen.query.contains("watch=") {
        if seen.query.contains("weft-ca-secret") {
            return Response::new(Body::from_stream(created(api)));
        }
        return Response::new(Body::from_stream(futures::stream::pending::<
            Result<Bytes, std::io::Error>,
        >()));
    }
    let is_list = seen.query.contains("limit=") || seen.query.contains("resourceVersion=");
    if is_list {
        list(&[])
    } else {
        refused(StatusCode::NOT_FOUND, "NotFound")
    }
}

/// What a watch of the root's Secret tells: that it was created, once it is.
fn created(api: Api) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
    let first = futures::stream::once(async move {
        loop {
            let posted = api
                .writes()
                .into_iter()
                .find(|s| s.method == Method::POST && s.path.ends_with("/secrets"));
            if let Some(mut secret) = posted.map(|s| s.body) {
                secret["metadata"]["namespace"] = "weft-system".into();
                return Ok(event("ADDED", &secret));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    first.chain(futures::stream::pending())
}

/// One line of a watch.
fn event(kind: &str, object: &Value) -> Bytes {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = "2".into();
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn list(items: &[Value]) -> Response {
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    json_response(StatusCode::OK, &list)
}

fn refused(code: StatusCode, reason: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16()});
    json_response(code, &status)
}

fn client(address: SocketAddr) -> Client {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let uri = format!("http://{address}").parse().expect("a URI");
    Client::try_from(Config::new(uri)).expect("a client")
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// spec: DLV-147, OPS-032
#[tokio::test]
async fn secrets_are_watched_by_label_or_name_and_a_missing_kind_stops_nothing() {
    let (api, address) = Api::start(|seen| {
        let is_mesh_kind = seen.path.starts_with("/apis/networking.istio.io");
        is_mesh_kind.then(|| refused(StatusCode::NOT_FOUND, "NotFound"))
    })
    .await;
    let (tell, mut told) = mpsc::channel(64);
    let mut waiting: Vec<&str> = source::start(&client(address), &Settings::default(), &tell);
    assert!(waiting.contains(&"VirtualService"));
    while !waiting.is_empty() {
        let event = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
        if let Event::Synced(name) = event.expect("within a minute").expect("the watches go on") {
            waiting.retain(|other| *other != name);
        }
    }
    let secrets: Vec<Seen> = api
        .seen()
        .into_iter()
        .filter(|s| s.path.ends_with("/secrets"))
        .collect();
    assert!(secrets.iter().any(|s| s.path == "/api/v1/secrets"));
    for seen in secrets {
        let query = seen.query.replace("%3D", "=").replace("%2F", "/");
        let own = "/api/v1/namespaces/weft-system/secrets";
        let is_narrow = match seen.path.as_str() {
            "/api/v1/secrets" => query.contains("labelSelector=weft.dev/managed=true"),
            path => {
                path == own
                    && ["cacerts", "weft-ca-secret"]
                        .iter()
                        .any(|n| query.contains(&format!("fieldSelector=metadata.name={n}")))
            }
        };
        assert!(is_narrow, "{} {query}", seen.path);
    }
}

fn shop(path: &str) -> Option<Response> {
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "uid": "u1"});
    Some(match path {
        "/api/v1/namespaces" => {
            list(&[json!({"metadata": {"name": "shop", "labels": {"weft.dev/inject": "enabled"}}})])
        }
        "/api/v1/serviceaccounts" => list(&[json!({"metadata": metadata("default")})]),
        "/apis/apps/v1/deployments" => list(&[json!({"metadata": metadata("cart"), "spec": {"selector": {},
            "template": {"metadata": {"labels": {"app": "cart"}, "annotations": {"argocd.argoproj.io/sync-wave": "1"}},
                "spec": {"containers": [{"name": "app"}]}}}})]),
        "/apis/rbac.authorization.k8s.io/v1/clusterroles" => list(&[role("anchor-1")]),
        _ => return None,
    })
}

fn role(uid: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "weft-anchor", "uid": uid}})
}

/// An operator that leads.
fn operator(address: SocketAddr) -> tokio::task::JoinHandle<()> {
    operator_with(address, watch::Sender::new(Targets::new()))
}

/// One that tells there what its pods are to have.
fn operator_with(address: SocketAddr, targets: watch::Sender<Targets>) -> tokio::task::JoinHandle<()> {
    let client = client(address);
    let metrics = Arc::new(Metrics::default());
    let (health, health_seen) = watch::channel(Health::default());
    let (lead, leads) = watch::channel(true);
    let targets_seen = targets.subscribe();
    let (tell, acknowledged) = watch::channel(Acknowledged::new());
    let followed = (targets.subscribe(), targets.subscribe());
    let (_writer, conditions) =
        status::Writer::new(client.clone(), metrics.clone(), "weft-system", acknowledged, followed);
    let (hold, holdouts) = watch::channel(Holdouts::new());
    let wires = Wires {
        health,
        leads,
        followed: targets.subscribe(),
        holdouts,
        targets,
        conditions,
    };
    let operator = Operator::new(Settings::default(), client, metrics, wires);
    tokio::spawn(async move {
        // The other ends are open for as long as it runs.
        let _open = (health_seen, lead, targets_seen, tell, hold);
        operator.run().await;
    })
}

// spec: ID-057, DLV-005, DLV-017
#[tokio::test]
async fn the_trust_bundle_is_in_every_secret_and_namespace_and_a_made_up_key_is_told_of() {
    let partner = Authority::generate("partner.example", std::time::SystemTime::now()).expect("authority");
    let anchor = json!({"pem": partner.roots_pem(), "trustDomains": ["partner.example"]});
    let mesh = json!({"caCertificates": [anchor]}).to_string();
    let (api, address) = Api::start(move |seen| {
        if seen.is_write() || seen.query.contains("watch=") {
            return None;
        }
        Some(match seen.path.as_str() {
            "/api/v1/namespaces/weft-system/configmaps" => {
                list(&[json!({"metadata": {"name": "weft", "namespace": "weft-system"}, "data": {"mesh": mesh}})])
            }
            "/api/v1/pods" => list(&[json!({
                "metadata": {"name": "forged", "namespace": "shop", "uid": "p1", "labels": {"app": "cart"},
                    "annotations": {"weft.dev/config-key": "cart-aaaaaaaaaa"}},
                "spec": {"containers": [{"name": "app"}]},
            })]),
            path => return shop(path),
        })
    })
    .await;
    let operator = operator(address);
    let written = |path: &str| api.writes().into_iter().find(|s| s.path.ends_with(path));
    let (secret, map) = (
        "/namespaces/shop/secrets/weft.default",
        "/namespaces/shop/configmaps/weft-ca-root-cert",
    );
    eventually("both are written, and the event", || {
        [secret, map, "/namespaces/shop/events"]
            .into_iter()
            .all(|path| written(path).is_some())
    })
    .await;
    operator.abort();
    let text = |path: &str| written(path).expect("written").body["data"]["root-cert.pem"].clone();
    let bundle = text(map).as_str().expect("text").to_owned();
    let encoded = text(secret);
    let decoded = data_encoding::BASE64.decode(encoded.as_str().expect("text").as_bytes());
    assert_eq!(decoded.expect("base64"), bundle.as_bytes());
    let found = anchors::parse(&bundle);
    let domains: Vec<Vec<&str>> = found
        .iter()
        .map(|anchor| anchor.domains.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(domains, [["@mesh"], ["partner.example"]]);
    assert_eq!(found[1].pem, partner.roots_pem());
    let event = written("/namespaces/shop/events").expect("written").body;
    assert_eq!(
        (&event["reason"], &event["regarding"]["name"]),
        (&json!("KeyMismatch"), &json!("forged"))
    );
    let is_forged = |s: &Seen| s.path.contains("cart-aaaaaaaaaa");
    assert!(!api.writes().iter().any(is_forged), "nothing is rendered for it");
}

// spec: DLV-003, DLV-004, DLV-006, DLV-007, DLV-108, PA-022, DLV-009, DLV-101, DLV-130, DLV-132, DLV-134, ID-133
#[tokio::test]
async fn nothing_is_written_until_every_kind_is_listed_and_then_in_order() {
    let (release, released) = watch::channel(false);
    let (install, anew) = watch::channel(false);
    let (api, address) = Api::start(move |seen| {
        if seen.path.ends_with("/peerauthentications") && !*released.borrow() {
            // Without the policies a STRICT workload would be rendered as a PERMISSIVE one.
            return Some(refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        if seen.path.ends_with("/clusterroles") && seen.query.contains("watch=") {
            let mut anew = anew.clone();
            let first = futures::stream::once(async move {
                let _ = anew.wait_for(|anew| *anew).await;
                Ok::<_, std::io::Error>(event("MODIFIED", &role("anchor-2")))
            });
            return Some(Response::new(Body::from_stream(
                first.chain(futures::stream::pending()),
            )));
        }
        if seen.is_write() || seen.query.contains("watch=") {
            None
        } else {
            shop(&seen.path)
        }
    })
    .await;
    let operator = operator(address);
    eventually("every kind is asked for, the policies again and again", || {
        let seen = api.seen();
        let plurals = ["/pods", "/deployments", "/virtualservices", "/secrets", "/configmaps"];
        plurals.iter().all(|p| seen.iter().any(|s| s.is_list(p)))
            && seen.iter().filter(|s| s.is_list("/peerauthentications")).count() > 2
    })
    .await;
    let early: Vec<String> = api.writes().into_iter().map(|s| s.path).collect();
    assert!(early.is_empty(), "written from half a snapshot: {early:?}");
    release.send_replace(true);
    let maps = "/api/v1/namespaces/shop/configmaps/";
    eventually("the configuration is written", || {
        api.writes()
            .iter()
            .any(|s| s.path.starts_with(&format!("{maps}weft-cfg-cart-")))
    })
    .await;
    let writes = api.writes();
    // The anchor was made anew: what it owns must not go with the old one.
    install.send_replace(true);
    eventually("the owner is corrected", || {
        let has_new = |s: &Seen| s.path.contains("/weft-cfg-cart-") && s.body.to_string().contains("anchor-2");
        api.writes().iter().any(has_new)
    })
    .await;
    operator.abort();
    let at = |prefix: &str| {
        writes
            .iter()
            .position(|s| s.path.starts_with(&format!("{maps}{prefix}")))
    };
    assert!(at("weft-ep-").expect("endpoints") < at("weft-cfg-").expect("configuration"));
    for seen in writes.iter().filter(|s| s.path.starts_with("/api/v1/namespaces/shop/")) {
        assert_eq!(
            (&seen.method, seen.content_type.as_str()),
            (&Method::PATCH, "application/apply-patch+yaml")
        );
        assert!(seen.query.contains("fieldManager=weft-operator"), "{}", seen.query);
        assert!(seen.body["immutable"].is_null(), "{}", seen.path);
        let labels = json!({"weft.dev/managed": "true", "weft.dev/rev": "default",
            "app.kubernetes.io/managed-by": "weft-operator"});
        assert_eq!(seen.body["metadata"]["labels"], labels, "{}", seen.path);
        let annotations = seen.body.pointer("/metadata/annotations").cloned().unwrap_or_default();
        assert!(
            annotations
                .get("kubectl.kubernetes.io/last-applied-configuration")
                .is_none()
        );
        assert!(
            seen.body.pointer("/data/ca-key.pem").is_none(),
            "the authority's key stays at home"
        );
        let owners = seen
            .body
            .pointer("/metadata/ownerReferences")
            .cloned()
            .unwrap_or_default();
        let kinds: Vec<&str> = owners
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|o| o["kind"].as_str())
            .collect();
        let expected = if seen.path.contains("/secrets/") {
            "ServiceAccount"
        } else {
            "ClusterRole"
        };
        assert_eq!(kinds, [expected], "{}", seen.path);
    }
    let body = |path: &str| {
        let seen = writes.iter().find(|s| s.path.ends_with(path));
        seen.unwrap_or_else(|| panic!("no {path}")).body.clone()
    };
    let files = |body: &Value, part: &str| -> Vec<String> {
        let files = body[part].as_object();
        files.into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let secret = body("/namespaces/shop/secrets/weft.default");
    assert_eq!(secret["type"], "weft.dev/key-and-cert");
    assert_eq!(files(&secret, "data"), ["cert-chain.pem", "key.pem", "root-cert.pem"]);
    for n in 0..2 {
        // The first characters of base32 of SHA-256 of the namespace's name.
        let endpoints = body(&format!("/namespaces/shop/configmaps/weft-ep-default-rwiaduzm-{n}"));
        assert_eq!(files(&endpoints, "data"), [format!("ep-{n}.json")]);
        assert_eq!(files(&endpoints, "binaryData"), [format!("ep-{n}.zst")]);
    }
    let first = writes
        .iter()
        .find(|s| s.path.contains("/weft-cfg-cart-"))
        .expect("written");
    assert!(first.path.ends_with("-0"), "{}", first.path);
    assert_eq!(files(&first.body, "data"), ["bundle.yaml", "manifest.json"]);
    // The root itself is created, not applied: whoever was first wins.
    assert!(writes.iter().any(|s| s.body.to_string().contains("anchor-1")));
    let root: Vec<&Seen> = writes.iter().filter(|s| s.method == Method::POST).collect();
    assert_eq!(root.len(), 1);
    assert_eq!(root[0].path, "/api/v1/namespaces/weft-system/secrets");
}

/// The key of the shop's workload.
fn cart_key() -> String {
    let shape = PodShape {
        namespace: "shop",
        workload: "cart",
        service_account: "default",
        revision: "default",
        labels: &BTreeMap::from([("app".to_owned(), "cart".to_owned())]),
        annotations: &BTreeMap::new(),
        ports: &[],
        interception: InterceptionMode::Redirect,
        template: Template::Sidecar,
        ignored_labels: &[],
    };
    KeyInputs::new(&shape).key()
}

// spec: DLV-037, DLV-028
#[tokio::test]
async fn a_pod_with_fewer_shards_has_the_endpoints_in_these_and_the_others_go_before_it_is_told() {
    let names = [0, 1].map(|n| weft_bundle::key::endpoints_name("default", "shop", n));
    let labels = json!({"weft.dev/managed": "true", "weft.dev/rev": "default"});
    let two = names.clone().map(|name| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "shop", "labels": labels}, "data": {"ep-0.json": "of two"}})
    });
    let running = json!({
        "metadata": {"name": "cart-1", "namespace": "shop", "uid": "p1", "labels": {"app": "cart"},
            "annotations": {"weft.dev/config-key": cart_key(), "weft.dev/status": "{\"epShards\": 1}"}},
        "spec": {"nodeName": "n", "containers": [{"name": "app"}]},
        "status": {"podIP": "10.0.0.1", "phase": "Running"},
    });
    let (accept, accepting) = watch::channel(false);
    let (api, address) = Api::start(move |seen| {
        if seen.method == Method::DELETE && !*accepting.borrow() {
            return Some(refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        if seen.is_write() || seen.query.contains("watch=") {
            return None;
        }
        match seen.path.as_str() {
            "/api/v1/configmaps" => Some(list(&two)),
            "/api/v1/pods" => Some(list(std::slice::from_ref(&running))),
            path => shop(path),
        }
    })
    .await;
    let targets = watch::Sender::new(Targets::new());
    let told = targets.subscribe();
    let operator = operator_with(address, targets);
    let path = |n: usize| format!("/api/v1/namespaces/shop/configmaps/{}", names[n]);
    let deletions = || {
        let writes = api.writes().into_iter();
        let deleted = writes.filter(|s| s.method == Method::DELETE);
        deleted.map(|s| s.path).collect::<Vec<_>>()
    };
    eventually("the deletion is tried again", || deletions().len() > 1).await;
    assert!(told.borrow().is_empty(), "the pod would hold what is new");
    accept.send_replace(true);
    eventually("the pod is told", || told.borrow().contains_key(&pod("cart-1"))).await;
    operator.abort();
    assert!(
        deletions().iter().all(|deleted| *deleted == path(1)),
        "{:?}",
        deletions()
    );
    let writes = api.writes();
    let written: Vec<_> = writes.iter().filter(|s| s.method == Method::PATCH).collect();
    assert!(
        written.iter().all(|s| s.path != path(1)),
        "nothing is in the second one"
    );
    let first = writes
        .iter()
        .position(|s| s.method == Method::PATCH && s.path == path(0));
    let deleted = writes.iter().position(|s| s.method == Method::DELETE);
    assert!(first.expect("written") < deleted.expect("deleted"));
    let applied = written.iter().rfind(|s| s.path == path(0)).expect("written");
    let manifest = applied.body["data"]["ep-0.json"].as_str().expect("a manifest");
    assert!(manifest.contains("\"shards\":1"), "{manifest}");
}

// spec: DLV-053, DLV-101
#[tokio::test]
async fn pods_are_told_of_nothing_that_is_not_written() {
    let key = cart_key();
    let written = format!("/weft-cfg-{key}-0");
    let running = json!({
        "metadata": {"name": "cart-1", "namespace": "shop", "uid": "p1", "labels": {"app": "cart"},
            "annotations": {"weft.dev/config-key": key}},
        "spec": {"nodeName": "n", "containers": [{"name": "app"}]},
        "status": {"podIP": "10.0.0.1", "phase": "Running"},
    });
    let (accept, accepting) = watch::channel(false);
    let (api, address) = Api::start({
        let written = written.clone();
        move |seen| {
            if seen.is_write() && seen.path.ends_with(&written) && !*accepting.borrow() {
                return Some(refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
            if seen.is_write() || seen.query.contains("watch=") {
                return None;
            }
            match seen.path.as_str() {
                "/api/v1/pods" => Some(list(std::slice::from_ref(&running))),
                path => shop(path),
            }
        }
    })
    .await;
    let targets = watch::Sender::new(Targets::new());
    let told = targets.subscribe();
    let operator = operator_with(address, targets);
    let tries = || api.writes().iter().filter(|s| s.path.ends_with(&written)).count();
    eventually("the write is tried again", || tries() > 1).await;
    assert!(told.borrow().is_empty(), "told of what is not there");
    accept.send_replace(true);
    eventually("the pod is told", || told.borrow().contains_key(&pod("cart-1"))).await;
    operator.abort();
}

/// A gateway in a namespace, whose Gateway names a Secret.
fn ingress(path: &str) -> Option<Response> {
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "uid": "u1"});
    Some(match path {
        "/apis/apps/v1/deployments" => list(&[json!({"metadata": metadata("ingress"), "spec": {"selector": {},
            "template": {"metadata": {
                "labels": {"istio": "in", "weft.dev/inject": "true"},
                "annotations": {"inject.istio.io/templates": "gateway"},
            }, "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]}}}})]),
        "/apis/networking.istio.io/v1/gateways" => list(&[json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": metadata("gw"),
            "spec": {"selector": {"istio": "in"}, "servers": [{
                "port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["a.com"],
                "tls": {"mode": "SIMPLE", "credentialName": "cert"},
            }]},
        })]),
        path => return shop(path),
    })
}

/// A Secret with a certificate, made anew, and the certificate as the API writes it.
fn certificate() -> (Value, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["a.com".to_owned()]).expect("parameters");
    let encoded = |text: String| data_encoding::BASE64.encode(text.as_bytes());
    let chain = encoded(params.self_signed(&key).expect("signed").pem());
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cert", "namespace": "shop"},
        "data": {"tls.crt": chain, "tls.key": encoded(key.serialize_pem())}});
    (secret, chain)
}

// spec: DLV-007, DLV-015, DLV-147, DLV-150, DLV-153, GW-042
#[tokio::test]
async fn a_secret_that_a_gateway_names_is_watched_by_name_and_copied_once_it_is_known() {
    let ((first, first_chain), (second, second_chain)) = (certificate(), certificate());
    let (tell, told) = watch::channel(0);
    let (api, address) = Api::start(move |seen| {
        let is_named = seen.path == "/api/v1/namespaces/shop/secrets" && seen.query.contains("metadata.name%3Dcert");
        if is_named && seen.query.contains("watch=") {
            let told = told.clone();
            let (second, gone) = (event("MODIFIED", &second), event("DELETED", &second));
            let when = move |step: i32, line: Bytes| {
                let mut told = told.clone();
                futures::stream::once(async move {
                    let _ = told.wait_for(|now| *now >= step).await;
                    Ok::<_, std::io::Error>(line)
                })
            };
            let events = when(2, second).chain(when(3, gone)).chain(futures::stream::pending());
            return Some(Response::new(Body::from_stream(events)));
        }
        if is_named {
            return Some(match *told.borrow() {
                0 => refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
                _ => list(std::slice::from_ref(&first)),
            });
        }
        if seen.is_write() || seen.query.contains("watch=") {
            None
        } else {
            ingress(&seen.path)
        }
    })
    .await;
    let operator = operator(address);
    let copies = || -> Vec<Seen> {
        let is_copy = |s: &Seen| s.path.starts_with("/api/v1/namespaces/shop/secrets/weft-tls-ingress-");
        api.writes().into_iter().filter(is_copy).collect()
    };
    eventually("the configuration is written, and the Secret asked for in vain", || {
        let is_config = |s: &Seen| s.path.contains("/configmaps/weft-cfg-ingress-");
        let asked = api
            .seen()
            .into_iter()
            .filter(|s| s.query.contains("metadata.name%3Dcert"));
        api.writes().iter().any(is_config) && asked.count() > 1
    })
    .await;
    // A copy of an operator before this one stays as it is.
    assert!(copies().is_empty());
    for (step, chain) in [(1, &first_chain), (2, &second_chain)] {
        tell.send_replace(step);
        eventually("the certificate is copied", || {
            copies().iter().any(|s| s.body.to_string().contains(chain))
        })
        .await;
    }
    tell.send_replace(3);
    eventually("what is gone leaves the copy", || {
        let applied = |s: &Seen| s.content_type.contains("apply-patch");
        let last = copies().into_iter().rfind(applied);
        last.is_some_and(|s| !s.body.to_string().contains(&second_chain))
    })
    .await;
    operator.abort();
    for seen in copies().into_iter().filter(|s| s.content_type.contains("apply-patch")) {
        assert_eq!(seen.method, Method::PATCH);
        assert_eq!(seen.body["type"], "weft.dev/credentials");
        assert_eq!(
            seen.body["metadata"]["labels"],
            json!({"weft.dev/managed": "true", "weft.dev/rev": "default", "app.kubernetes.io/managed-by": "weft-operator"})
        );
        assert!(seen.path.ends_with("-0"), "{}", seen.path);
    }
    let key = data_encoding::BASE64.encode(b"-----BEGIN PRIVATE KEY-----");
    let has_key = |s: &Seen| s.body.to_string().contains(&key[..24]);
    assert!(copies().iter().any(has_key));
    let elsewhere = api.writes().into_iter().filter(|s| !s.path.contains("/secrets"));
    assert_eq!(elsewhere.filter(has_key).count(), 0, "keys are in Secrets alone");
}

/// A proxy's status port.
async fn proxy(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().fallback(move || std::future::ready(answer()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

// spec: DLV-104
#[tokio::test]
async fn a_pod_that_says_it_has_another_trust_bundle_holds_out() {
    let (_, address) = Api::start(|_| None).await;
    let trust: Arc<Mutex<String>> = Arc::new(Mutex::new("0".repeat(12)));
    let told = trust.clone();
    let answering = proxy(move || {
        let trust = told.lock().expect("no test panics with it").clone();
        json_response(
            StatusCode::OK,
            &json!({"active": {"cfg": "cfg1", "ep": "ep1"}, "trust": trust}),
        )
    })
    .await;
    let older = proxy(|| active("cfg1", "ep1")).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address");
    let (set, targets) = watch::channel(Targets::new());
    let (tell, told) = watch::channel(Acknowledged::new());
    let tracker = Tracker::new(client(address), Arc::default(), None, tell);
    let (mut holdouts, followed) = (tracker.holdouts(), tracker.followed());
    let tracker = tokio::spawn(tracker.run(targets));
    let all: Targets = [("answers", answering), ("older", older), ("silent", closed)]
        .map(|(name, at)| (pod(name), target(at, "cfg1")))
        .into();
    set.send_replace(all.clone());
    eventually("the answers", || {
        let is_known = *followed.borrow() == all;
        is_known && *holdouts.borrow_and_update() == Holdouts::from([pod("answers"), pod("silent")])
    })
    .await;
    assert_eq!(told.borrow().get(&pod("answers")), Some(&false));
    *trust.lock().expect("no test panics with it") = "7".repeat(12);
    eventually("the new bundle", || {
        *holdouts.borrow_and_update() == Holdouts::from([pod("silent")])
    })
    .await;
    tracker.abort();
}

fn active(config: &str, endpoints: &str) -> Response {
    json_response(
        StatusCode::OK,
        &json!({"active": {"cfg": config, "ep": endpoints}, "state": "Active"}),
    )
}

fn target(address: SocketAddr, config: &str) -> Target {
    Target {
        address,
        config: config.to_owned(),
        endpoints: "ep1".to_owned(),
        trust: "7".repeat(12),
        credentials: None,
    }
}

fn pod(name: &str) -> (String, String) {
    ("shop".to_owned(), name.to_owned())
}

// spec: DLV-051, DLV-052, DLV-053, DLV-091, DLV-092
#[tokio::test]
async fn a_pod_is_nudged_until_it_has_what_was_written() {
    let (api, address) = Api::start(|_| None).await;
    let polls: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let asked = polls.clone();
    let nudged = api.clone();
    // Its kubelet misses the first nudge.
    let status = proxy(move || {
        asked.lock().expect("no test panics with it").push(Instant::now());
        let has_new = nudged.writes().len() > 1;
        active(if has_new { "cfg2" } else { "cfg1" }, "ep1")
    })
    .await;
    let metrics = Arc::new(Metrics::default());
    let (set, targets) = watch::channel(Targets::from([(pod("a-1"), target(status, "cfg1"))]));
    let (tell, told) = watch::channel(Acknowledged::new());
    let bucket = Bucket::new(50, 100, tokio::time::Instant::now());
    let client = client(address);
    set.send_modify(|_| {});
    let tracker = tokio::spawn(Tracker::new(client, metrics.clone(), bucket, tell).run(targets));
    set.send_modify(|_| {});
    eventually("what it has already is acknowledged", || {
        told.borrow().get(&pod("a-1")) == Some(&true)
    })
    .await;
    assert!(api.writes().is_empty(), "a pod that has it is not nudged");
    let before = polls.lock().expect("no test panics with it").len();

    set.send_replace(Targets::from([(pod("a-1"), target(status, "cfg2"))]));
    eventually("the new revision is acknowledged", || {
        api.writes().len() == 2 && told.borrow().get(&pod("a-1")) == Some(&true)
    })
    .await;
    tracker.abort();
    let nudges = api.writes();
    let mut values = Vec::new();
    for nudge in &nudges {
        assert_eq!(
            (&nudge.method, nudge.path.as_str()),
            (&Method::PATCH, "/api/v1/namespaces/shop/pods/a-1/status")
        );
        assert_eq!(nudge.content_type, "application/merge-patch+json");
        assert!(nudge.query.contains("fieldManager=weft-nudge"));
        let value = nudge.body["metadata"]["annotations"]["weft.dev/target-rev"]
            .as_str()
            .expect("a value");
        assert!(value.starts_with("cfg2,ep1,"), "{value}");
        assert_eq!(
            nudge.body.as_object().map(serde_json::Map::len),
            Some(1),
            "metadata alone"
        );
        values.push(value.to_owned());
    }
    assert_ne!(values[0], values[1], "an equal value wakes no kubelet");
    let polls = polls.lock().expect("no test panics with it")[before..].to_vec();
    assert!(
        polls[0].duration_since(nudges[0].at) >= Duration::from_millis(450),
        "the kubelet gets its time"
    );
    assert!(
        nudges[1].at >= polls[0],
        "the second nudge follows an answer that is too old"
    );
    assert!(
        polls[1].duration_since(nudges[1].at) >= Duration::from_millis(950),
        "and more of it each time"
    );
    let text = metrics.text().expect("text");
    assert!(text.contains("weft_nudge_total{result=\"ok\"} 2"), "{text}");
    assert!(text.contains("weft_config_propagation_seconds_count 1"), "{text}");
}

// spec: ID-148
#[tokio::test]
async fn what_a_pod_answers_is_neither_followed_nor_read_without_end() {
    let (_api, address) = Api::start(|_| None).await;
    let good = proxy(|| active("cfg1", "ep1")).await;
    let redirects = proxy(move || {
        (
            StatusCode::FOUND,
            [(header::LOCATION, format!("http://{good}/config/status"))],
        )
            .into_response()
    })
    .await;
    let huge = proxy(|| {
        let padding = "x".repeat(17 << 10);
        json_response(
            StatusCode::OK,
            &json!({"active": {"cfg": "cfg1", "ep": "ep1"}, "error": padding}),
        )
    })
    .await;
    let endless = proxy(|| {
        let stream = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"          ")));
        Response::new(Body::from_stream(stream))
    })
    .await;
    let pods = BTreeMap::from([
        ("good", good),
        ("redirects", redirects),
        ("huge", huge),
        ("endless", endless),
    ]);
    let all: Targets = pods.iter().map(|(name, at)| (pod(name), target(*at, "cfg1"))).collect();
    let (set, targets) = watch::channel(Targets::new());
    let (tell, mut told) = watch::channel(Acknowledged::new());
    let tracker = tokio::spawn(Tracker::new(client(address), Arc::default(), None, tell).run(targets));
    set.send_replace(all);
    told.wait_for(|known| known.get(&pod("good")) == Some(&true))
        .await
        .expect("told");
    // Long enough for the others' answers and a second question.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let known = told.borrow().clone();
    tracker.abort();
    let expected = ["endless", "huge", "redirects"].map(|name| (pod(name), false));
    assert_eq!(known.into_iter().filter(|(_, has)| !has).collect::<Vec<_>>(), expected);
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

// spec: OPS-081
#[tokio::test]
async fn a_leader_that_cannot_renew_ends_before_another_one_may_start() {
    let (fail, failing) = watch::channel(false);
    let (api, address) = Api::start(move |seen| {
        if seen.path.contains("/leases") && *failing.borrow() {
            return Some(refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        if seen.is_write() || seen.query.contains("watch=") {
            None
        } else {
            shop(&seen.path)
        }
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(&config, text.to_string()).expect("written");
    let child = Command::new(env!("CARGO_BIN_EXE_weft-operator"))
        .args(["run", "--metrics-port", "0", "--bind", "127.0.0.1", "--identity", "one"])
        .env("KUBECONFIG", &config)
        .spawn()
        .expect("the operator starts");
    let mut process = Process(child);
    eventually("it leads and writes", || {
        api.writes().iter().any(|s| s.path.contains("/configmaps/weft-cfg-"))
    })
    .await;
    fail.send_replace(true);
    let failed_at = Instant::now();
    let mut status = None;
    eventually("it ends", || {
        status = process.0.try_wait().expect("waited for");
        status.is_some()
    })
    .await;
    let code = status.and_then(|s| s.code());
    assert_eq!(code, Some(1), "a failure, so that it is started again");
    // The Lease lasts 15 s from its last renewal, which was before it failed.
    assert!(
        failed_at.elapsed() < Duration::from_secs(15),
        "{:?}",
        failed_at.elapsed()
    );
}
