//! The agent's life on a node.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Answer, Api, refusal};

const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

/// A node with an agent.
struct Node {
    folder: TempDir,
    api: Api,
    agent: Child,
    listen: SocketAddr,
}

impl Node {
    fn new(answer: impl FnMut(&str) -> Answer + Send + 'static) -> Self {
        Self::with("off", &[], answer)
    }

    fn with(repair_mode: &str, others: &[&str], answer: impl FnMut(&str) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let api = Api::new(answer);
        let below = |name: &str| folder.path().join(name);
        for name in ["bin", "conf", "account"] {
            fs::create_dir(below(name)).expect("makes");
        }
        fs::write(below("conf/10-pods.conflist"), CONFLIST).expect("writes");
        fs::write(below("account/ca.crt"), &api.authority).expect("writes");
        fs::write(below("account/token"), "secret").expect("writes");
        api.write_kubeconfig(&below("kubeconfig"));
        let listen = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port");
        let agent = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .env_clear()
            .env("KUBECONFIG", below("kubeconfig"))
            .env("NODE_NAME", "node-1")
            .args([
                "agent",
                "--repair-mode",
                repair_mode,
                "--node-conf-dir",
                "/etc/cni/net.d",
            ])
            .args(["--listen", &listen.to_string(), "--server", &api.server()])
            .args(others)
            .arg("--bin-dir")
            .arg(below("bin"))
            .arg("--conf-dir")
            .arg(below("conf"))
            .arg("--account-dir")
            .arg(below("account"))
            .spawn()
            .expect("runs");
        Self {
            folder,
            api,
            agent,
            listen,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_conflist(&self) {
        let beside = self.path("conf/new");
        fs::write(&beside, CONFLIST).expect("writes");
        fs::rename(beside, self.path("conf/10-pods.conflist")).expect("renames");
    }

    fn is_chained(&self) -> bool {
        let text = fs::read_to_string(self.path("conf/10-pods.conflist")).expect("reads");
        let object: Value = serde_json::from_str(&text).expect("is JSON");
        object["plugins"]
            .as_array()
            .is_some_and(|all| all.iter().any(|plugin| plugin["type"] == "weft-cni"))
    }

    fn is_installed(&self) -> bool {
        self.is_chained() && self.path("bin/weft-cni").exists() && self.path("conf/weft-cni.kubeconfig").exists()
    }

    fn is_absent(&self) -> bool {
        !self.is_chained() && !self.path("bin/weft-cni").exists() && !self.path("conf/weft-cni.kubeconfig").exists()
    }

    /// What readiness says.
    fn ready(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.listen).ok()?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    }

    fn is_ready(&self) -> bool {
        self.ready().is_some_and(|said| said.starts_with("HTTP/1.1 200"))
    }

    /// Ends the agent as a kubelet does.
    fn end(&mut self) -> ExitStatus {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.agent.id()).expect("an id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("is there");
        self.agent.wait().expect("ends")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn daemon_set() -> Answer {
    let meta = json!({"name": "weft-cni", "namespace": "weft-system"});
    (
        200,
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": meta}),
    )
}

// spec: NET-132
#[test]
fn the_agent_installs_the_plugin_and_puts_it_back() {
    let mut node = Node::new(|_| daemon_set());
    until("ready", || node.is_ready());
    assert!(node.is_installed());
    let installed = fs::read(node.path("bin/weft-cni")).expect("reads");
    assert_eq!(installed, fs::read(env!("CARGO_BIN_EXE_weft-cni")).expect("reads"));
    let text = fs::read_to_string(node.path("conf/10-pods.conflist")).expect("reads");
    assert!(
        text.contains("/etc/cni/net.d/weft-cni.kubeconfig"),
        "the path on the node: {text}"
    );
    // Another agent writes its own configuration again.
    for _ in 0..3 {
        node.write_conflist();
        until("the entry is back", || node.is_chained());
    }
    fs::write(node.path("account/token"), "renewed").expect("writes");
    until("the token is renewed", || {
        let text = fs::read_to_string(node.path("conf/weft-cni.kubeconfig")).expect("reads");
        text.contains("renewed")
    });
    // The configuration goes: not ready, and the reason is told.
    fs::remove_file(node.path("conf/10-pods.conflist")).expect("removes");
    until("not ready", || {
        node.ready()
            .is_some_and(|said| said.contains("holds no network configuration"))
    });
    node.write_conflist();
    until("ready again", || node.is_ready());
    assert!(node.end().success());
}

// spec: NET-132
#[test]
fn the_plugin_stays_where_another_agent_follows_and_goes_where_none_does() {
    let mut deleting = daemon_set();
    deleting.1["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (answer, stays) in [
        (daemon_set(), true),
        (refusal(500, "InternalError"), true),
        (deleting, false),
        (refusal(404, "NotFound"), false),
        (refusal(401, "Unauthorized"), false),
        (refusal(403, "Forbidden"), false),
    ] {
        let (answered, shown) = answer.clone();
        // Only who does not tell is asked again.
        let limit = if answered == 500 {
            &["--leave-limit", "1"][..]
        } else {
            &[]
        };
        let mut node = Node::with("off", limit, move |_| answer.clone());
        until("installed", || node.is_ready());
        assert!(node.end().success());
        assert!(
            if stays { node.is_installed() } else { node.is_absent() },
            "stays: {stays}, {shown}"
        );
        let asked = "GET /apis/apps/v1/namespaces/weft-system/daemonsets/weft-cni secret";
        let requests = node.api.requests();
        assert!(requests.iter().all(|request| request == asked), "{requests:#?}");
        assert!(requests.len() == 1 || answered == 500, "{requests:#?}");
    }
}

// spec: NET-132
#[test]
fn an_api_server_that_does_not_tell_is_asked_again() {
    let mut troubles = 2;
    let mut node = Node::new(move |_| {
        if troubles == 0 {
            return refusal(404, "NotFound");
        }
        troubles -= 1;
        refusal(500, "InternalError")
    });
    until("installed", || node.is_ready());
    assert!(node.end().success() && node.is_absent());
    assert_eq!(node.api.requests().len(), 3);
}

// spec: NET-132
#[test]
fn what_an_agent_left_behind_can_be_removed_by_hand() {
    let mut node = Node::with("off", &["--leave-limit", "1"], |_| refusal(500, "InternalError"));
    until("installed", || node.is_ready());
    assert!(node.end().success() && node.is_installed());
    let removed = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .arg("uninstall")
        .arg("--bin-dir")
        .arg(node.path("bin"))
        .arg("--conf-dir")
        .arg(node.path("conf"))
        .status()
        .expect("runs");
    assert!(removed.success() && node.is_absent());
}

/// A pod whose `weft-validation` found no redirect.
fn waiting(namespace: &str) -> Value {
    json!({
        "metadata": {"name": "cart", "namespace": namespace, "uid": "u-1", "resourceVersion": "7", "annotations": {
            "weft.dev/status": "{}",
        }},
        "spec": {
            "nodeName": "node-1",
            "initContainers": [{"name": "weft-validation"}, {"name": "weft-proxy"}],
            "containers": [{"name": "app"}],
        },
        "status": {"phase": "Pending", "podIPs": [{"ip": "10.99.0.2"}], "initContainerStatuses": [{
            "name": "weft-validation", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 126, "containerID": "c1"}},
        }]},
    })
}

/// The API server with such a pod in a namespace of users', and one in the control plane's.
fn with_waiting_pods(path: &str) -> Answer {
    let pods = [waiting("shop"), waiting("weft-system")];
    match path {
        _ if path.contains("watch=true") => refusal(500, "InternalError"),
        _ if path.starts_with("/api/v1/pods?") => (
            200,
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": pods}),
        ),
        _ if path.contains("/pods/") => (200, waiting("shop")),
        _ if path.contains("/events") => (
            201,
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {}}),
        ),
        _ => daemon_set(),
    }
}

// spec: NET-136
#[test]
fn pods_that_began_too_early_are_dealt_with_as_the_mode_says() {
    let pod = "/api/v1/namespaces/shop/pods/cart";
    for (mode, change, sent, reason) in [
        (
            "delete",
            format!("DELETE {pod}?"),
            &["\"uid\":\"u-1\"", "\"resourceVersion\":\"7\""][..],
            "RedirectRepaired",
        ),
        (
            "label",
            format!("PATCH {pod}/status?"),
            &[
                "\"weft.dev/uninitialized\":\"true\"",
                "\"uid\":\"u-1\"",
                "\"resourceVersion\":\"7\"",
            ],
            "RedirectRepaired",
        ),
        // Nothing of that pod runs here.
        ("repair", String::new(), &[], "RedirectNotRepaired"),
    ] {
        let mut node = Node::with(mode, &[], with_waiting_pods);
        until("an Event is written", || {
            let requests = node.api.requests();
            requests
                .iter()
                .any(|request| request.starts_with("POST /apis/events.k8s.io/v1/namespaces/shop/events"))
        });
        until("ready", || node.is_ready());
        assert!(node.end().success());
        let requests = node.api.requests();
        let own = "GET /api/v1/pods?&fieldSelector=spec.nodeName%3Dnode-1";
        assert!(
            requests.iter().any(|request| request.starts_with(own)),
            "{mode}: {requests:#?}"
        );
        let is_change = |request: &&String| !request.starts_with("GET ");
        let changes: Vec<&String> = requests.iter().filter(is_change).collect();
        let (events, others): (Vec<&String>, Vec<&String>) =
            changes.iter().partition(|request| request.contains("/events"));
        assert!(events.len() == 1 && events[0].contains(reason), "{mode}: {changes:#?}");
        assert_eq!(others.len(), usize::from(!sent.is_empty()), "{mode}: {changes:#?}");
        for request in others {
            assert!(request.starts_with(&change), "{mode}: {request}");
            assert!(sent.iter().all(|part| request.contains(part)), "{mode}: {request}");
        }
    }
    let mut node = Node::with("off", &[], with_waiting_pods);
    until("ready", || node.is_ready());
    assert!(node.end().success());
    assert!(
        node.api
            .requests()
            .iter()
            .all(|request| request.contains("/daemonsets/"))
    );
}

// spec: NET-136
#[test]
fn a_pod_that_could_not_be_dealt_with_is_tried_again() {
    let mut is_refused = true;
    let mut node = Node::with("delete", &[], move |path| {
        if path.contains("/pods/") && std::mem::take(&mut is_refused) {
            return refusal(500, "InternalError");
        }
        let (code, mut object) = with_waiting_pods(path);
        // One that starts no container again.
        for pod in object["items"].as_array_mut().into_iter().flatten() {
            pod["status"]["phase"] = json!("Failed");
        }
        (code, object)
    });
    let count = |requests: &[String], parts: [&str; 2]| {
        let fits = |request: &&String| request.starts_with(parts[0]) && request.contains(parts[1]);
        requests.iter().filter(fits).count()
    };
    until("it is deleted", || {
        count(&node.api.requests(), ["POST ", "RedirectRepaired"]) == 1
    });
    assert!(node.end().success());
    let requests = node.api.requests();
    assert_eq!(count(&requests, ["DELETE ", "/pods/cart"]), 2, "{requests:#?}");
    assert_eq!(count(&requests, ["POST ", "RedirectNotRepaired"]), 1, "{requests:#?}");
}
