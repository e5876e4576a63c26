//! Calls of the runtime.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_cni::sandbox::{self, SandboxError};
use weft_sidecar::init::{Arguments, set_redirect};

use crate::api::{Api, refusal};
use crate::space::Space;

/// A node: its way to the API server, and a sandbox.
struct Node {
    folder: TempDir,
    api: Api,
    space: Space,
}

impl Node {
    fn new(pod: Value) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let api = Api::new(move |_| (200, pod.clone()));
        api.write_kubeconfig(&folder.path().join("kubeconfig"));
        Self {
            folder,
            api,
            space: Space::new(),
        }
    }

    fn network(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "weft-cni", "namespace": "weft-system",
            "excludedNamespaces": ["kube-system"], "kubeconfig": self.folder.path().join("kubeconfig"),
            "prevResult": previous(), "runtimeConfig": {"portMappings": []},
        })
    }

    /// Exit code and standard output.
    fn call(&self, command: &str) -> (i32, String) {
        self.call_for(command, "shop", &self.space.path)
    }

    fn call_for(&self, command: &str, namespace: &str, space: &Path) -> (i32, String) {
        self.call_with(&self.network(), command, namespace, space, &[])
    }

    fn call_with(
        &self,
        network: &Value,
        command: &str,
        namespace: &str,
        space: &Path,
        environment: &[(&str, &str)],
    ) -> (i32, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
            .env_clear()
            .envs(environment.iter().copied())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_NETNS", space)
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=cart;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("runs");
        let input = network.to_string();
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("is read");
        let output = child.wait_with_output().expect("ends");
        (
            output.status.code().expect("ends by itself"),
            String::from_utf8(output.stdout).expect("text"),
        )
    }

    /// The error of a call that must fail: its code and its message.
    fn failure(&self, command: &str) -> (u64, String) {
        let (code, said) = self.call(command);
        assert_eq!(code, 1, "{said}");
        let error: Value = serde_json::from_str(&said).expect("is JSON");
        assert_eq!(error["cniVersion"], "1.0.0");
        (
            error["code"].as_u64().expect("a number"),
            error["msg"].as_str().expect("text").to_owned(),
        )
    }
}

/// Field order and members that the plugin does not know must stay.
fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0", "zeta": {"b": 1, "a": [2]}, "interfaces": [{"name": "eth0", "sandbox": "/ns"}],
        "ips": [{"address": "10.99.0.2/24", "gateway": "10.99.0.1", "interface": 0}], "dns": {},
    })
}

fn pod(annotations: &Value, environment: &[(&str, &str)]) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cart", "namespace": "shop", "uid": "u", "annotations": {
            "weft.dev/status": "{}", "weft.dev/interception-mode": "REDIRECT", "weft.dev/include-inbound-ports": "*",
            "weft.dev/exclude-inbound-ports": "15020,15021,15090", "weft.dev/include-outbound-cidrs": "*",
        }},
        "spec": {
            "initContainers": [
                {"name": "weft-validation"},
                {"name": "weft-proxy", "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            ],
            "containers": [{"name": "app"}],
        },
    });
    for (key, value) in annotations.as_object().expect("a map") {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    let environment = environment
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}));
    pod["spec"]["initContainers"][1]["env"] = environment.collect();
    pod
}

/// The rules that `weft-proxy init` writes with these parameters.
fn rules_of_init(arguments: Arguments) -> String {
    let space = Space::new();
    space
        .run(move || set_redirect(&arguments).map(drop))
        .expect("writes the rules");
    let rules = space.rules();
    assert!(rules.contains("table inet weft-nat"), "{rules}");
    rules
}

// spec: NET-131, NET-104
#[test]
fn a_new_sandbox_gets_the_rules_of_init_and_the_result_before_is_passed_on() {
    let node = Node::new(pod(&json!({}), &[]));
    let (code, said) = node.call("ADD");
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.trim(), previous().to_string());
    assert_eq!(node.space.rules(), rules_of_init(Arguments::default()));
    assert_eq!(node.api.requests(), ["GET /api/v1/namespaces/shop/pods/cart secret"]);
    // A runtime may call again.
    assert_eq!(node.call("ADD").0, 0);
    assert_eq!(node.space.rules(), rules_of_init(Arguments::default()));
    // And what an application dials comes to the proxy.
    node.space.run(|| {
        let proxy = TcpListener::bind("0.0.0.0:15001").expect("listens");
        let address: SocketAddr = "10.97.0.1:80".parse().expect("an address");
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("is captured");
        proxy.accept().expect("arrives");
    });
}

// spec: NET-131
#[test]
fn a_configuration_of_an_early_version_gets_the_rules_too() {
    let node = Node::new(pod(&json!({}), &[]));
    let mut network = node.network();
    network["cniVersion"] = json!("0.3.0");
    network["prevResult"]["cniVersion"] = json!("0.3.0");
    let (code, said) = node.call_with(&network, "ADD", "shop", &node.space.path, &[]);
    assert_eq!((code, said.trim()), (0, network["prevResult"].to_string().as_str()));
    assert_eq!(node.space.rules(), rules_of_init(Arguments::default()));
}

// spec: NET-135
#[test]
fn the_runtime_s_proxy_for_images_is_not_asked_for_pods() {
    let node = Node::new(pod(&json!({}), &[]));
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        let environment = [(name, "http://127.0.0.1:1")];
        let (code, said) = node.call_with(&node.network(), "ADD", "shop", &node.space.path, &environment);
        assert_eq!(code, 0, "{name}: {said}");
    }
    assert_eq!(node.space.rules(), rules_of_init(Arguments::default()));
}

// spec: NET-134, NET-140
#[test]
fn the_rules_follow_annotations_environment_and_ids_of_the_pod() {
    let annotations = json!({
        "weft.dev/include-inbound-ports": "80,443",
        "weft.dev/include-outbound-cidrs": "10.0.0.0/8,fd00::/8",
        "weft.dev/exclude-outbound-cidrs": "10.1.0.0/16",
        "weft.dev/exclude-outbound-ports": "3306",
        "weft.dev/include-outbound-ports": "9000",
        "weft.dev/exclude-interfaces": "net1",
    });
    let environment = [
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("INVALID_DROP", "true"),
        ("WEFT_INBOUND_PORT", "16006"),
    ];
    let mut asked = pod(&annotations, &environment);
    asked["spec"]["initContainers"][1]["securityContext"] = json!({"runAsUser": 2000, "runAsGroup": 3000});
    let node = Node::new(asked);
    let (code, said) = node.call("ADD");
    assert_eq!(code, 0, "{said}");
    let rules = node.space.rules();
    let expected = rules_of_init(Arguments {
        inbound_ports: "80,443".parse().expect("ports"),
        exclude_inbound_ports: "15020,15021,15090".parse().expect("ports"),
        outbound_cidrs: "10.0.0.0/8,fd00::/8".parse().expect("ranges"),
        exclude_outbound_cidrs: "10.1.0.0/16".parse().expect("ranges"),
        exclude_outbound_ports: "3306".parse().expect("ports"),
        outbound_ports: "9000".parse().expect("ports"),
        exclude_interfaces: vec!["net1".to_owned()],
        inbound_port: 16006,
        proxy_uid: 2000,
        proxy_gid: 3000,
        drop_invalid: true,
        dns_capture: true,
        capture_all_dns: true,
        ..Arguments::default()
    });
    assert_eq!(rules, expected);
    // Without a word about DNS there is no capture of it.
    let plain = Node::new(pod(&json!({}), &[]));
    plain.call("ADD");
    assert!(!plain.space.rules().contains("15053"));
    // With one, queries to any server, whatever the pod says of all servers and its node of its own.
    let node = Node::new(pod(
        &json!({}),
        &[("ISTIO_META_DNS_CAPTURE", "true"), ("CAPTURE_ALL_DNS", "false")],
    ));
    node.call("ADD");
    let all = rules_of_init(Arguments {
        dns_capture: true,
        capture_all_dns: true,
        ..Arguments::default()
    });
    assert_eq!(node.space.rules(), all);
}

// spec: NET-133
#[test]
fn other_pods_pass_untouched() {
    let mut plain = pod(&json!({}), &[]);
    plain["metadata"]["annotations"] = Value::Null;
    let mut with_init = pod(&json!({}), &[]);
    with_init["spec"]["initContainers"][0]["name"] = json!("weft-init");
    let gateway = pod(&json!({"inject.istio.io/templates": "gateway"}), &[]);
    let none = pod(&json!({"weft.dev/interception-mode": "NONE"}), &[]);
    for pod in [plain, with_init, gateway, none] {
        let node = Node::new(pod.clone());
        let (code, said) = node.call("ADD");
        assert_eq!((code, said.trim()), (0, previous().to_string().as_str()), "{pod}");
        assert_eq!(node.space.rules(), "", "{pod}");
    }
    // Nobody is asked about those of the control plane and of excluded namespaces.
    let node = Node::new(pod(&json!({}), &[]));
    for namespace in ["weft-system", "kube-system"] {
        let (code, _) = node.call_for("ADD", namespace, &node.space.path);
        assert_eq!((code, node.space.rules()), (0, String::new()));
    }
    assert!(node.api.requests().is_empty());
}

// spec: NET-134, INJ-172
#[test]
fn a_value_that_cannot_be_honoured_fails_the_sandbox_with_its_text() {
    let bad = json!({"weft.dev/exclude-outbound-ports": "80-90", "weft.dev/include-outbound-cidrs": "10.0.0.1"});
    let node = Node::new(pod(&bad, &[("INVALID_DROP", "perhaps")]));
    let (code, said) = node.failure("ADD");
    assert_eq!(code, 100);
    for part in [
        "weft.dev/exclude-outbound-ports: \"80-90\"",
        "weft.dev/include-outbound-cidrs: \"10.0.0.1\"",
        "INVALID_DROP: \"perhaps\"",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(node.space.rules(), "");
    // One that only the writer of the rules knows.
    let node = Node::new(pod(&json!({"weft.dev/exclude-interfaces": "a*"}), &[]));
    let (code, said) = node.failure("ADD");
    assert!(code == 100 && said.contains("a*"), "{said}");
    let node = Node::new(pod(
        &json!({}),
        &[("ISTIO_META_DNS_CAPTURE", "true"), ("WEFT_INBOUND_PORT", "15053")],
    ));
    assert_eq!(node.failure("ADD").0, 100);
    assert_eq!(node.space.rules(), "");
}

// spec: NET-135
#[test]
fn without_the_api_server_no_sandbox_begins_but_those_of_the_control_plane() {
    let node = Node::new(Value::Null);
    let is_closed = |part: &str| {
        let (code, said) = node.failure("ADD");
        assert!(
            code == 11 && said.contains(part) && said.contains("shop/cart"),
            "{said}"
        );
        assert_eq!(node.space.rules(), "");
        let (code, said) = node.call_for("ADD", "weft-system", &node.space.path);
        assert_eq!((code, said.trim()), (0, previous().to_string().as_str()));
    };
    for (code, reason) in [(401, "Unauthorized"), (403, "Forbidden")] {
        node.api.answer(move |_| refusal(code, reason));
        is_closed("the agent of DaemonSet weft-cni");
    }
    node.api.answer(|_| refusal(404, "NotFound"));
    is_closed("NotFound");
    node.api.answer(|_| refusal(500, "InternalError"));
    is_closed("InternalError");
    node.api.answer(|_| (200, json!("no pod")));
    is_closed("ask the API server");
    // Another pod has its name.
    node.api.answer(|_| {
        let mut other = pod(&json!({}), &[]);
        other["metadata"]["uid"] = json!("v");
        (200, other)
    });
    is_closed("it was replaced");
    // Nobody listens.
    let kubeconfig = node.folder.path().join("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).expect("reads");
    let unused = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    std::fs::write(
        &kubeconfig,
        text.replace(&node.api.address.to_string(), &unused.to_string()),
    )
    .expect("writes");
    is_closed("ask the API server");
}

// spec: NET-131
#[test]
fn the_rules_of_the_node_are_never_touched() {
    let node = Node::new(pod(&json!({}), &[]));
    let (code, said) = node.call_for("ADD", "shop", Path::new("/proc/self/ns/net"));
    assert_eq!(code, 1);
    assert!(said.contains("the node's own network namespace"), "{said}");
    let (code, said) = node.call_for("ADD", "shop", Path::new("/nonexistent"));
    assert!(code == 1 && said.contains("/nonexistent"), "{said}");
}

// spec: NET-131
#[test]
fn a_check_finds_out_that_the_rules_are_gone_and_a_removal_needs_nothing() {
    let node = Node::new(pod(&json!({}), &[]));
    assert_eq!(node.failure("CHECK").0, 101);
    assert_eq!(node.call("ADD").0, 0);
    assert_eq!(node.call("CHECK"), (0, String::new()));
    // The namespace may be gone, the API server too.
    node.api.answer(|_| refusal(500, "InternalError"));
    assert_eq!(
        node.call_for("DEL", "shop", Path::new("/nonexistent")),
        (0, String::new())
    );
    let (code, said) = node.call("VERSION");
    assert!(code == 0 && said.contains("1.1.0"), "{said}");
}

// spec: NET-136
#[test]
fn the_rules_are_set_in_a_sandbox_that_runs_and_in_no_other() {
    let processes = tempfile::tempdir().expect("a directory");
    let space = Space::new();
    let process = processes.path().join("400");
    std::fs::create_dir_all(process.join("ns")).expect("makes");
    std::fs::write(process.join("cgroup"), "0::/kubepods/podu-1/c\n").expect("writes");
    std::fs::write(process.join("stat"), format!("400 (pause) S{} 70 0\n", " 1".repeat(18))).expect("writes");
    std::os::unix::fs::symlink(&space.path, process.join("ns/net")).expect("links");
    let node = Space::new();
    let first = processes.path().join("1/ns");
    std::fs::create_dir_all(&first).expect("makes");
    std::os::unix::fs::symlink(&node.path, first.join("net")).expect("links");
    let redirect = |addresses: &[&str]| {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|address| address.parse().expect("an address"))
            .collect();
        sandbox::redirect(processes.path(), "u-1", &addresses, &Arguments::default())
    };
    // With it any address can be bound.
    space.run(|| std::fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1").expect("writes"));
    // A process of the pod's that has left for another network, or is still in the node's.
    for addresses in [&["10.99.0.3", "fd99::3"][..], &[]] {
        let refused = redirect(addresses).expect_err("has other addresses");
        assert!(matches!(refused, SandboxError::Foreign(_)), "{refused}");
    }
    assert_eq!(space.rules(), "");
    redirect(&["fd99::2", "10.99.0.2"]).expect("sets the rules");
    assert_eq!(space.rules(), rules_of_init(Arguments::default()));
    let added = space.run(|| {
        Command::new("ip")
            .args("address add fd99::2/64 dev eth0".split(' '))
            .status()
    });
    assert!(added.expect("runs").success());
    redirect(&["fd99::2"]).expect("is known by its IPv6 address alone");
}

// spec: NET-136
#[test]
fn a_process_of_the_pod_s_in_the_node_s_network_gets_no_rules_there() {
    let processes = tempfile::tempdir().expect("a directory");
    let node = Space::new();
    for (pid, cgroup) in [("1", "0::/init.scope\n"), ("400", "0::/kubepods/podu-1/c\n")] {
        let process = processes.path().join(pid);
        std::fs::create_dir_all(process.join("ns")).expect("makes");
        std::fs::write(process.join("cgroup"), cgroup).expect("writes");
        std::fs::write(process.join("stat"), format!("{pid} (a) S{} 70 0\n", " 1".repeat(18))).expect("writes");
        std::os::unix::fs::symlink(&node.path, process.join("ns/net")).expect("links");
    }
    let addresses = ["10.99.0.2".parse().expect("an address")];
    let redirect = || sandbox::redirect(processes.path(), "u-1", &addresses, &Arguments::default());
    let refused = redirect().expect_err("is the node's");
    assert!(
        refused.to_string().contains("the node's own network namespace"),
        "{refused}"
    );
    // Nor where it cannot be told.
    std::fs::remove_file(processes.path().join("1/ns/net")).expect("removes");
    let untold = redirect().expect_err("is not known");
    assert!(untold.to_string().contains("1/ns/net"), "{untold}");
    // The kernel's threads tell it where the first process does not.
    let kernel = processes.path().join("2");
    std::fs::create_dir_all(kernel.join("ns")).expect("makes");
    std::fs::write(kernel.join("comm"), "kthreadd\n").expect("writes");
    std::os::unix::fs::symlink(&node.path, kernel.join("ns/net")).expect("links");
    let refused = redirect().expect_err("is the node's");
    assert!(
        refused.to_string().contains("the node's own network namespace"),
        "{refused}"
    );
    assert_eq!(node.rules(), "");
}
