//! What every way to run must give: identities, interception, names, no rights for applications.

use std::fs;

use super::support::{Run, Way, free_port, is_root, plain_get, route};

fn mesh(way: Way) {
    let port = free_port();
    let publish = format!("sample/frontend:80={port}");
    let run = Run::sample(way, &["--quiet", "--publish", &publish]).ready();
    let log = run.log();
    let first = log.lines().next().expect("a first line");
    let network = if way == Way::Loopback {
        "weft network: loopback (asked for by --network loopback)"
    } else {
        "weft network: namespaces"
    };
    assert_eq!(first, network);
    for pod in run.pods("sample/") {
        assert_eq!((&pod["ready"], &pod["sidecar"]), (&true.into(), &true.into()), "{pod}");
        let row = format!("weft {}", pod["pod"].as_str().expect("name"));
        let row = log
            .lines()
            .find(|line| line.starts_with(&row))
            .expect("a row of the table");
        assert!(
            row.contains("Running") && row.contains(pod["revision"].as_str().expect("revision")),
            "{row}"
        );
    }
    let answer = run.get("frontend", "http://forecast/");
    assert_eq!(answer["status"], 200, "{answer}");
    assert_eq!(
        answer["body"]["caller"], "spiffe://cluster.local/ns/sample/sa/frontend",
        "{answer}"
    );
    assert!(
        plain_get(port).expect("published").starts_with("HTTP/1.1 200"),
        "PERMISSIVE takes plain text"
    );
    run.save("strict.yaml", &route("strict.yaml"));
    run.wait_for_line("in force in 6 sidecars");
    let refused = plain_get(port);
    assert!(refused.is_err(), "STRICT refuses plain text: {refused:?}");
    assert_eq!(run.get("frontend", "http://forecast/")["status"], 200);
    if way == Way::Loopback {
        return;
    }
    rights(&run);
    network_of_pods(&run);
}

/// Applications have no capabilities and cannot get any; the proxy is told by its id where there is one.
fn rights(run: &Run) {
    let status = run.exec("frontend", &["cat", "/proc/self/status"]);
    let status = String::from_utf8(status.stdout).expect("text");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a field");
        line.trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert!(
        !run.exec("frontend", &["ip", "link", "set", "eth0", "down"])
            .status
            .success()
    );
    let low = run.exec("frontend", &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
    assert_eq!(String::from_utf8_lossy(&low.stdout).trim(), "0");
    let proxy = run.weft("exec", &["frontend", "-c", "weft-proxy", "--", "id", "-u"]);
    let id = String::from_utf8_lossy(&proxy.stdout).trim().to_owned();
    let marked = proxies_with_mark(run);
    match run.way {
        Way::Namespaces if is_root() => {
            assert_eq!((id.as_str(), marked), ("1337", 0), "by its id");
        }
        Way::OneId => assert_eq!((id.as_str(), marked), ("0", 6), "by its mark"),
        // Subordinate ids decide.
        _ => assert_eq!(id == "1337", marked == 0, "by its id {id} or by its mark {marked}"),
    }
}

fn proxies_with_mark(run: &Run) -> usize {
    let processes = run.processes();
    let proxies = processes.iter().filter(|p| p.contains("weft-proxy\0run"));
    proxies.filter(|p| p.contains("--proxy-mark\x001339")).count()
}

/// Names, and addresses that lead nowhere.
fn network_of_pods(run: &Run) {
    for name in [
        "forecast",
        "forecast.sample",
        "forecast.sample.svc",
        "forecast.sample.svc.cluster.local",
    ] {
        assert_eq!(run.get("frontend", &format!("http://{name}/"))["status"], 200, "{name}");
    }
    if run.way == Way::Namespaces && is_root() {
        // With the proxy's id, so that the redirect lets it pass: what the bridge answers.
        let dial = "exec 3<>/dev/tcp/203.0.113.9/81";
        let proxy = run.weft("exec", &["frontend", "-c", "weft-proxy", "--", "bash", "-c", dial]);
        let said = String::from_utf8_lossy(&proxy.stderr).into_owned();
        assert!(!proxy.status.success() && said.contains("unreachable"), "{said}");
    }
    let begun = std::time::Instant::now();
    let meshed = run.get("frontend", "http://203.0.113.9:81/");
    assert!(
        begun.elapsed().as_secs() < 9,
        "answered at once, not after the proxy's limit: {meshed}"
    );
    assert!(meshed["status"] != 200, "{meshed}");
    let unknown = run.get("frontend", "http://nowhere.example/");
    assert!(unknown["error"].is_string() || unknown["status"] != 200, "{unknown}");
    // Bridge and links are in namespaces of the run, also as root.
    let links = fs::read_to_string("/proc/net/dev").expect("links");
    assert!(!links.contains("weft0"), "{links}");
}

// spec: LOC-001, LOC-002, LOC-007, LOC-020, LOC-021, LOC-023, LOC-024, LOC-026, LOC-027, LOC-028, LOC-040
#[test]
fn namespaces_with_the_rights_of_this_user() {
    mesh(Way::Namespaces);
}

// spec: LOC-021, LOC-023, LOC-026, LOC-027, LOC-028
#[test]
fn namespaces_with_one_id() {
    mesh(Way::OneId);
}

// spec: LOC-021, LOC-026, LOC-027
#[test]
fn namespaces_without_any_rights() {
    mesh(Way::Unprivileged);
}

// spec: LOC-020, LOC-022, LOC-024, LOC-060, LOC-061
#[test]
fn loopback_addresses() {
    mesh(Way::Loopback);
}

// spec: LOC-022, LOC-051, LOC-060, LOC-061, LOC-063
#[test]
fn two_runs_on_loopback_addresses_have_blocks_of_their_own() {
    let (one, other) = (
        Run::sample(Way::Loopback, &["--quiet"]),
        Run::sample(Way::Loopback, &["--quiet"]),
    );
    let runs = [one.ready(), other.ready()];
    let addresses = runs.each_ref().map(|run| {
        let pods = run.pods("sample/");
        let all: Vec<_> = pods
            .iter()
            .map(|p| p["address"].as_str().expect("address").to_owned())
            .collect();
        all
    });
    assert!(addresses[0].iter().all(|a| !addresses[1].contains(a)), "{addresses:?}");
    assert!(
        addresses.iter().flatten().all(|a| a.starts_with("127.")),
        "{addresses:?}"
    );
    for run in &runs {
        let warning = run.wait_for_line("loopback mode:");
        for limit in ["TCP", "raw addresses", "pods without a sidecar", "other users"] {
            assert!(warning.contains(limit), "{warning}");
        }
        assert_eq!(run.log().matches("loopback mode:").count(), 1, "one warning");
        let environment = run.exec("frontend", &["env"]);
        let environment = String::from_utf8(environment.stdout).expect("text");
        for name in [
            "PORT=",
            "PORT_HTTP=",
            "http_proxy=http://127.",
            "HTTP_PROXY=http://127.",
            "no_proxy=localhost,",
        ] {
            assert!(
                environment.lines().any(|line| line.starts_with(name)),
                "{name} in {environment}"
            );
        }
        assert_eq!(
            run.get("frontend", "http://forecast/")["body"]["caller"],
            "spiffe://cluster.local/ns/sample/sa/frontend"
        );
        let init = run
            .processes()
            .into_iter()
            .filter(|p| p.contains("weft-proxy\0init"))
            .count();
        assert_eq!(init, 0);
    }
}

// spec: LOC-007, LOC-009
#[test]
fn the_trust_domain_is_the_options_else_the_mesh_configs() {
    let config = |domain: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: weft, namespace: weft-system}}\ndata:\n  mesh: |\n    \
             trustDomain: {domain}\n"
        )
    };
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    // A connection keeps the identity that it was made with (ID-115): each request has one of its own here.
    run.save(
        "fresh.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: fresh, namespace: sample}\nspec:\n  \
         host: forecast\n  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}\n",
    );
    let caller = || run.get("frontend", "http://forecast/")["body"]["caller"].clone();
    assert_eq!(caller(), "spiffe://cluster.local/ns/sample/sa/frontend");
    run.save("mesh.yaml", &config("example.org"));
    run.wait_for("a new identity", || {
        (caller() == "spiffe://example.org/ns/sample/sa/frontend").then_some(())
    });
    run.save("mesh.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: weft, namespace: weft-system}\ndata: {mesh: 'trustDomain: [1'}\n");
    run.wait_for_line("ConfigMap weft-system/weft");
    assert_eq!(caller(), "spiffe://example.org/ns/sample/sa/frontend");
    drop(run);
    let run = Run::sample(Way::Namespaces, &["--quiet", "--trust-domain", "other.test"]).ready();
    assert_eq!(
        run.get("frontend", "http://forecast/")["body"]["caller"],
        "spiffe://other.test/ns/sample/sa/frontend"
    );
}
