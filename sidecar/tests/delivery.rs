//! Files in volumes, as a kubelet keeps them, and what the program makes of them.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::process::{Process, Volumes, endpoint};
use support::{App, Authority, Client, Pair, address, client_bundle, pause, serving, wait_for, workload};
use weft_bundle::pack::{self, Files, HostInput, Limits};

/// A client's pod in loopback mode: its application asks an explicit HTTP proxy for `echo`.
struct Pod {
    volumes: Volumes,
    address: IpAddr,
    front: SocketAddr,
}

impl Pod {
    /// With configuration and an endpoint.
    fn new(app: &App) -> Self {
        let this = Self::empty();
        this.volumes.configure(&limited(1));
        this.volumes.endpoints(&[app.address]);
        this
    }

    fn empty() -> Self {
        let address = address();
        Self {
            volumes: Volumes::new(&Authority::new(), "app/client"),
            address,
            front: SocketAddr::new(address, 4000),
        }
    }

    fn start(&self, environment: &[(&str, &str)]) -> Process {
        let front = self.front.to_string();
        Process::start(&self.volumes, self.address, &["--http-proxy", &front], environment)
    }

    fn call(&self) -> Option<u16> {
        let mut client = Client::over(TcpStream::connect(self.front).ok()?);
        client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
        client.receive().map(|answer| answer.status())
    }
}

/// A configuration that differs by a number.
fn limited(n: usize) -> String {
    let policy = format!("protocol: http, policy: {{maxRequests: {n}}}}}");
    client_bundle("http", "").replace("protocol: http}", &policy)
}

fn metric(proxy: &Process, line: &str) -> Option<String> {
    let metrics = proxy.get(15020, "/stats/prometheus").text();
    metrics
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(' ').map(str::to_owned))
}

fn activated(proxy: &Process) -> u64 {
    let count = metric(proxy, "weft_config_activated_total").expect("the counter");
    count.parse().expect("a number")
}

// spec: DLV-001
#[test]
fn the_proxy_opens_no_connection_but_those_of_its_traffic() {
    let app = App::echo();
    let server = TcpListener::bind((address(), 0)).expect("listener");
    server.set_nonblocking(true).expect("option");
    let api = server.local_addr().expect("address");
    let pod = Pod::new(&app);
    // Where a client of the API server would look for it.
    let (host, port) = (api.ip().to_string(), api.port().to_string());
    let environment = [("KUBERNETES_SERVICE_HOST", &*host), ("KUBERNETES_SERVICE_PORT", &*port)];
    let proxy = pod.start(&environment).ready();
    for n in 2..6 {
        let revision = pod.volumes.configure(&limited(n));
        let endpoints = pod.volumes.endpoints(&vec![app.address; n]);
        proxy.wait_for_config(&revision);
        proxy.wait_for_endpoints(&endpoints);
        assert!(
            sockets(proxy.child.id()).iter().all(|state| state == "0A"),
            "before any call"
        );
    }
    assert_eq!(pod.call(), Some(200));
    assert!(
        sockets(proxy.child.id()).iter().any(|state| state == "01"),
        "connections are seen"
    );
    pod.volumes.clear();
    pod.volumes.unidentify();
    wait_for("the empty volume", || {
        proxy.get(15020, "/config/status").text().contains("Missing")
    });
    assert_eq!(pod.call(), Some(200));
    assert!(server.accept().is_err(), "nobody asked the API server");
}

/// States of the TCP sockets of a process, without connections to its own ports.
fn sockets(process: u32) -> Vec<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process lives");
    let own: Vec<String> = descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let own_ports = [15000, 15020, 15021, 15090].map(|port| format!(":{port:04X}"));
    let mut states = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Questions of this test to ports of the proxy's own.
            let is_question = own_ports.iter().any(|port| fields[1].ends_with(port)) && fields[3] != "0A";
            if own.iter().any(|inode| inode == fields[9]) && !is_question {
                states.push(fields[3].to_owned());
            }
        }
    }
    states
}

// spec: DLV-041, DLV-042
#[test]
fn the_rename_of_the_link_is_what_activates_and_every_one_does() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[]).ready();
    assert_eq!(
        metric(&proxy, "weft_config_watch_mode{mode=\"inotify\"}").as_deref(),
        Some("1")
    );
    // By hand what the kubelet does, up to the rename.
    let directory = pod.volumes.path("config");
    let staged = Volumes::new(&Authority::new(), "app/client");
    staged.endpoints(&[app.address]);
    let revision = staged.configure(&limited(2));
    let fresh = directory.join("..by-hand");
    std::fs::create_dir(&fresh).expect("created");
    for entry in std::fs::read_dir(staged.path("config").join("..data")).expect("read") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, fresh.join(path.file_name().expect("a name"))).expect("copied");
    }
    std::os::unix::fs::symlink("..by-hand", directory.join("..data_tmp")).expect("linked");
    pause(Duration::from_millis(500));
    assert_eq!(activated(&proxy), 1, "nothing is committed yet");
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("renamed");
    proxy.wait_for_config(&revision);
    // Each of many, within far less than the minute after which the link is looked at anyhow.
    for n in 3..8 {
        let revision = pod.volumes.configure(&limited(n));
        proxy.wait_for_config(&revision);
    }
}

// spec: DLV-044
#[test]
fn a_lost_directory_is_watched_again_and_a_silent_change_is_seen_within_a_minute() {
    let app = App::echo();
    let pod = Pod::new(&app);
    // The watch is on the directory behind this link, the reads go through it.
    let (first, second) = (Pod::new(&app), Pod::new(&app));
    let revision = second.volumes.configure(&limited(7));
    let config = pod.volumes.path("config");
    std::fs::remove_dir_all(&config).expect("removed");
    std::os::unix::fs::symlink(first.volumes.path("config"), &config).expect("linked");
    let silent = pod.start(&[]).ready();
    let next = config.with_extension("next");
    std::os::unix::fs::symlink(second.volumes.path("config"), &next).expect("linked");
    std::fs::rename(&next, &config).expect("renamed");

    // Meanwhile a directory that is removed and made again, its link named as before.
    let lost = Pod::new(&app);
    let proxy = lost.start(&[]).ready();
    for n in 3..5 {
        let directory = lost.volumes.path("config");
        let aside = directory.with_extension("aside");
        if n == 3 {
            std::fs::remove_dir_all(&directory).expect("removed");
        } else {
            std::fs::rename(&directory, &aside).expect("moved away");
        }
        let revision = lost.volumes.configure(&limited(n));
        proxy.wait_for_config(&revision);
        let revision = lost.volumes.configure(&limited(n + 10));
        proxy.wait_for_config(&revision);
    }
    // Another one with a link of the same name comes in its place.
    let directory = |pod: &Pod| pod.volumes.path("config");
    let name = |pod: &Pod| std::fs::read_link(directory(pod).join("..data")).expect("a link");
    let other = Pod::new(&app);
    let newer = other.volumes.configure(&limited(20));
    for n in 21..30 {
        if name(&lost) == name(&other) {
            break;
        }
        proxy.wait_for_config(&lost.volumes.configure(&limited(n)));
    }
    assert_eq!(name(&lost), name(&other));
    std::fs::rename(directory(&lost), directory(&lost).with_extension("older")).expect("moved away");
    std::fs::rename(directory(&other), directory(&lost)).expect("moved");
    proxy.wait_for_config(&newer);
    assert_eq!(activated(&silent), 1, "no event has told of it");
    for _ in 0..8 {
        if silent.get(15020, "/config/status").text().contains(&revision) {
            break;
        }
        pause(Duration::from_secs(10));
    }
    silent.wait_for_config(&revision);
}

// spec: DLV-047, DLV-052, DLV-054
#[test]
fn a_target_alone_activates_nothing_and_one_that_is_not_met_is_behind() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let config = pod.volumes.configure(&limited(2));
    let endpoints = pod.volumes.endpoints(&[app.address]);
    let proxy = pod.start(&[]).ready();
    let state = |state: &str| {
        wait_for(state, || {
            let status = proxy.get(15020, "/config/status").text();
            status.contains(&format!("\"state\": \"{state}\""))
        });
    };
    let behind = || metric(&proxy, "weft_config_behind_seconds").expect("the gauge");
    let activations = || (proxy.log().matches(" activated").count(), activated(&proxy));
    let before = activations();
    state("Active");
    for n in 0..3 {
        pod.volumes.target(&format!("{config},{endpoints},{n}"));
        wait_for("the target", || {
            proxy.get(15020, "/config/status").text().contains("\"target\": {")
        });
        state("Active");
        assert_eq!(behind(), "0");
    }
    pod.volumes.target(&format!("000000000000,{endpoints},4"));
    state("Behind");
    wait_for("some time behind", || behind() != "0");
    pod.volumes.target(&format!("{config},000000000000,5"));
    state("Behind");
    // An empty file asks for nothing.
    pod.volumes.target("");
    state("Active");
    assert_eq!(behind(), "0");
    assert_eq!(activations(), before, "nothing was activated by any of them");
    assert!(proxy.is_ready());
}

// spec: DLV-048, DLV-023, LIFE-010
#[test]
fn shards_of_two_versions_are_held_until_they_agree() {
    let app = App::echo();
    let pod = Pod::empty();
    pod.volumes.endpoints(&[app.address]);
    let limits = Limits {
        text: 0,
        shard: 200,
        config_shards: 8,
        ..Limits::default()
    };
    let last = |files: &std::path::Path| {
        let shard = |n: usize| std::fs::read(files.join("config/..data").join(pack::config_file(n))).ok();
        (0..8).map_while(shard).enumerate().last().expect("shards")
    };
    let folder = || pod.volumes.path("config").parent().expect("the folder").to_owned();
    pod.volumes.configure_within(&limited(1), &limits);
    let (n, old) = last(&folder());
    assert!(n > 0, "more than one");
    pod.volumes.remove(&pack::config_file(n));
    let proxy = pod.start(&[]);
    wait_for("the reason", || {
        proxy
            .ask("GET", 15021, "/healthz/ready")
            .is_some_and(|answer| answer.text().starts_with("held: a shard"))
    });
    pod.volumes.spoil(&pack::config_file(n), &old);
    let proxy = proxy.ready();
    // A newer one, of which the last part has not come.
    let revision = pod.volumes.configure_within(&limited(2), &limits);
    proxy.wait_for_config(&revision);
    let (n, old) = last(&folder());
    let mixed = pod.volumes.configure_within(&limited(3), &limits);
    let (_, new) = last(&folder());
    proxy.wait_for_config(&mixed);
    pod.volumes.spoil(&pack::config_file(n), &old);
    let status = || proxy.get(15020, "/config/status").text();
    wait_for("the hold", || status().contains("\"state\": \"Held\""));
    assert!(status().contains(&mixed), "what was there is in force: {}", status());
    assert!(proxy.is_ready() && pod.call() == Some(200));
    pod.volumes.spoil(&pack::config_file(n), &new);
    wait_for("the rest", || status().contains("\"state\": \"Active\""));
}

// spec: DLV-101
#[test]
fn a_host_whose_endpoints_are_on_their_way_is_waited_for_but_not_for_ever() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[]).ready();
    let state = |state: &str| {
        let status = proxy.get(15020, "/config/status").text();
        status.contains(&format!("\"state\": \"{state}\""))
    };
    let with = |name: &str| {
        let host = format!(
            "- host: {name}.app.svc.cluster.local\n  name: {name}\n  namespace: app\n  domains: [{name}]\n  addresses: \
             [10.1.0.2]\n  ports: [{{port: 80, name: main, protocol: http}}]\n"
        );
        limited(2).trim_end().to_owned() + "\n" + &host
    };
    let call = |name: &str| {
        let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
        client.send(&format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        let answer = client.receive().expect("an answer");
        (answer.status(), answer.text())
    };
    let known = |name: &str| HostInput {
        host: format!("{name}.app.svc.cluster.local"),
        accounts: vec!["app/echo".into()],
        endpoints: vec![endpoint(app.address)],
    };
    // Endpoints come in time: no request of the new host is without them.
    let revision = pod.volumes.configure(&with("second"));
    wait_for("the hold", || state("Held"));
    assert_eq!(activated(&proxy), 1);
    pod.volumes.endpoints_of(&[known("echo"), known("second")]);
    proxy.wait_for_config(&revision);
    assert_eq!(call("second").0, 200);
    // They do not: after five seconds the rest of the configuration does not wait any more.
    let begin = std::time::Instant::now();
    let revision = pod.volumes.configure(&with("third"));
    wait_for("the hold", || state("Held"));
    assert_eq!(call("echo").0, 200);
    proxy.wait_for_config(&revision);
    let elapsed = begin.elapsed();
    assert!(
        elapsed > Duration::from_millis(4500) && elapsed < Duration::from_secs(9),
        "{elapsed:?}"
    );
    assert!(state("Active"));
    assert_eq!(call("third"), (503, "no healthy upstream".to_owned()));
}

// spec: DLV-045
#[test]
fn without_inotify_it_looks_every_two_seconds_and_says_so() {
    let app = App::echo();
    let pod = Pod::new(&app);
    // A user namespace may have a limit of its own.
    let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let _proxy = support::process::Wrapped::start(
        &["unshare", "--user", "--map-root-user", "bash", "-c", script, "bash"],
        &pod.volumes,
        pod.address,
        &["--http-proxy", &pod.front.to_string()],
    );
    let get = |port: u16, path: &str| {
        support::process::ask(SocketAddr::new(pod.address, port), "GET", path, "").map(|answer| answer.text())
    };
    wait_for("readiness", || {
        get(15020, "/healthz/ready").as_deref() == Some("LIVE\n")
    });
    let metrics = get(15020, "/stats/prometheus").expect("metrics");
    assert!(metrics.contains("weft_config_watch_mode{mode=\"poll\"} 1"), "{metrics}");
    let begin = std::time::Instant::now();
    for n in 2..5 {
        let revision = pod.volumes.configure(&limited(n));
        wait_for("the configuration", || {
            get(15020, "/config/status").is_some_and(|text| text.contains(&revision))
        });
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

// spec: DLV-046
#[test]
fn in_a_plain_directory_every_change_counts() {
    let app = App::echo();
    let pod = Pod::empty();
    // What a test or a person keeps: files, and no links.
    let kept = Volumes::new(&Authority::new(), "app/client");
    kept.endpoints(&[app.address]);
    let put = |n: usize| {
        let revision = kept.configure(&limited(n));
        for entry in std::fs::read_dir(kept.path("config").join("..data")).expect("read") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("a name");
            std::fs::copy(&path, pod.volumes.path("config").join(name)).expect("copied");
        }
        revision
    };
    put(1);
    let proxy = pod.start(&[]).ready();
    assert_eq!(pod.call(), Some(200));
    for n in 2..5 {
        proxy.wait_for_config(&put(n));
    }
    assert_eq!(pod.call(), Some(200));
}

// spec: DLV-100, LIFE-040
#[test]
fn a_request_sees_one_configuration_from_beginning_to_end() {
    let app = App::echo();
    let pair = Pair::start("http", app.address);
    let bundle = |n: usize| {
        let headers =
            format!("requestHeaders: {{set: [[x-sent, '{n}']]}}\n    responseHeaders: {{set: [[x-got, '{n}']]}}");
        let rest = format!(
            "routes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: r}}\n  rules:\n  - destinations: \
             [{{host: echo.app.svc.cluster.local, port: 80}}]\n    {headers}\n"
        );
        client_bundle("http", &rest).replace("protocol: http}", "protocol: http, http: t}")
    };
    pair.client.configure(&bundle(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = std::collections::BTreeSet::new();
                    let mut client = Client::connect(pair.front);
                    while !done.load(Ordering::Relaxed) {
                        let answer = client.get("/", "");
                        assert_eq!(answer.status(), 200);
                        let text = answer.text();
                        let sent = text
                            .lines()
                            .find_map(|line| line.to_ascii_lowercase().strip_prefix("x-sent: ").map(str::to_owned));
                        assert!(
                            sent.is_some() && sent == answer.field("x-got"),
                            "{text}: {}",
                            answer.head
                        );
                        seen.extend(sent);
                    }
                    seen.len()
                })
            })
            .collect();
        for n in 1..200 {
            pair.client.configure(&bundle(n));
            pause(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        for caller in callers {
            assert!(caller.join().expect("no panic") > 5, "changes are met");
        }
    });
}

// spec: DLV-082, DLV-083
#[test]
fn a_stored_copy_is_used_for_its_own_key_and_schema_alone() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[]).ready();
    let status: serde_json::Value = serde_json::from_str(&proxy.get(15020, "/config/status").text()).expect("JSON");
    let key = status["key"].as_str().expect("a key").to_owned();
    let manifest = pod.volumes.path("state").join("lkg/manifest.json");
    wait_for("the copy", || manifest.exists());
    drop(proxy);
    pod.volumes.clear();
    let refused = |key: &str| {
        let proxy = pod.start(&[("WEFT_CONFIG_KEY", key)]);
        wait_for("the log", || proxy.log().contains("waiting for configuration"));
        pause(Duration::from_millis(500));
        assert!(!proxy.is_ready(), "{}", proxy.log());
        assert!(!proxy.log().contains("stored copy"), "{}", proxy.log());
    };
    refused("another-key");
    let proxy = pod.start(&[("WEFT_CONFIG_KEY", &key)]).ready();
    assert_eq!(pod.call(), Some(200));
    drop(proxy);
    let text = std::fs::read_to_string(&manifest).expect("the copy");
    let newer = text.replace(&format!("\"schema\":{}", weft_bundle::wire::SCHEMA), "\"schema\":99");
    assert_ne!(newer, text);
    std::fs::write(&manifest, newer).expect("written");
    refused(&key);
}

/// Endpoints with `echo` alone, in so many shards.
fn packed(app: &App, shards: usize) -> Vec<Files> {
    let host = HostInput {
        host: "echo.app.svc.cluster.local".into(),
        accounts: vec!["app/echo".into()],
        endpoints: vec![endpoint(app.address)],
    };
    let limits = Limits {
        endpoint_shards: shards,
        ..Limits::default()
    };
    pack::endpoints([&host], &Default::default(), &limits)
        .expect("packed")
        .shards
}

// spec: DLV-028, DLV-027
#[test]
fn endpoints_are_complete_at_start_and_keep_what_vanishes_or_disagrees() {
    let (app, other) = (
        App::echo(),
        App::answering(|_| "HTTP/1.1 203 Other\r\nContent-Length: 0\r\n\r\n".into()),
    );
    let pod = Pod::empty();
    let put = |shard: &Files| shard.iter().for_each(|(name, bytes)| pod.volumes.spoil(name, bytes));
    pod.volumes.configure(&limited(1));
    let two = packed(&app, 2);
    put(&two[0]);
    let proxy = pod.start(&[]);
    wait_for("half of them", || {
        proxy
            .ask("GET", 15021, "/healthz/ready")
            .is_some_and(|answer| answer.text().starts_with("no endpoints"))
    });
    put(&two[1]);
    let proxy = proxy.ready();
    assert_eq!(pod.call(), Some(200));
    // The one with the host vanishes; what it said stays.
    let holder = pack::shard_of("echo.app.svc.cluster.local", 2);
    two[holder].keys().for_each(|name| pod.volumes.remove(name));
    let revision = pod.volumes.configure(&limited(2));
    proxy.wait_for_config(&revision);
    assert_eq!(pod.call(), Some(200));
    // Three of another kind, one after the other: nothing is used until all agree.
    let three = packed(&other, 3);
    let endpoints = || {
        let status: serde_json::Value = serde_json::from_str(&proxy.get(15020, "/config/status").text()).expect("JSON");
        status["active"]["ep"].clone()
    };
    let before = endpoints();
    assert!(before.is_string(), "{before}");
    // The last comes first: then each place has a shard, but not all of them of one kind.
    for (n, shard) in [&three[2], &three[0], &three[1]].into_iter().enumerate() {
        assert_eq!((pod.call(), endpoints()), (Some(200), before.clone()), "{n} of 3");
        put(shard);
        let revision = pod.volumes.configure(&limited(3 + n));
        proxy.wait_for_config(&revision);
    }
    wait_for("the other application", || pod.call() == Some(203));
}

// spec: DLV-037, DLV-028, DLV-081
#[test]
fn endpoints_of_one_shard_are_enough_and_the_number_grows_and_shrinks() {
    let answering = |status: u16| App::answering(move |_| format!("HTTP/1.1 {status} Of\r\nContent-Length: 0\r\n\r\n"));
    let apps = [201, 202, 203, 204].map(answering);
    let pod = Pod::empty();
    let put = |shard: &Files| shard.iter().for_each(|(name, bytes)| pod.volumes.spoil(name, bytes));
    let remove = |shard: &Files| shard.keys().for_each(|name| pod.volumes.remove(name));
    pod.volumes.configure(&limited(1));
    let one = packed(&apps[0], 1);
    put(&one[0]);
    let proxy = pod.start(&[]).ready();
    assert_eq!(pod.call(), Some(201));
    // Volumes are read: the next configuration is in force.
    let turns = std::cell::Cell::new(1);
    let read = || {
        turns.set(turns.get() + 1);
        proxy.wait_for_config(&pod.volumes.configure(&limited(turns.get())));
    };
    // Two of them: both have to be there.
    let two = packed(&apps[1], 2);
    for shard in [&two[1], &two[0]] {
        read();
        assert_eq!(pod.call(), Some(201));
        put(shard);
    }
    wait_for("both shards", || pod.call() == Some(202));
    // One again: it counts once the other is gone.
    let one = packed(&apps[2], 1);
    put(&one[0]);
    read();
    assert_eq!(pod.call(), Some(202), "the second shard still says two");
    remove(&two[1]);
    wait_for("one shard", || pod.call() == Some(203));
    // What was dropped does not complete another set.
    let two = packed(&apps[3], 2);
    put(&two[0]);
    read();
    assert_eq!(pod.call(), Some(203));
    put(&two[1]);
    wait_for("both shards again", || pod.call() == Some(204));
    // Nothing at all: what was there stays.
    two.iter().for_each(remove);
    read();
    assert_eq!(pod.call(), Some(204));
    drop(proxy);
    // Nor does a new proxy begin with what is left of two.
    put(&one[0]);
    put(&two[1]);
    std::fs::remove_dir_all(pod.volumes.path("state").join("lkg")).ok();
    let proxy = pod.start(&[]);
    wait_for("what is missing", || {
        proxy
            .ask("GET", 15021, "/healthz/ready")
            .is_some_and(|answer| answer.text().starts_with("no endpoints"))
    });
    remove(&two[1]);
    let _proxy = proxy.ready();
    assert_eq!(pod.call(), Some(203));
}

// spec: INJ-102, LIFE-010
#[test]
fn without_configuration_it_says_so_now_and_then_and_opens_no_listener() {
    let pod = Pod::empty();
    let proxy = pod.start(&[("WEFT_CONFIG_KEY", "client-abcdefghij")]);
    let lines = || {
        proxy
            .log()
            .lines()
            .filter(|line| line.contains("waiting for configuration"))
            .count()
    };
    wait_for("the first line", || lines() == 1);
    assert!(proxy.log().contains("client-abcdefghij"), "{}", proxy.log());
    pause(Duration::from_secs(5));
    assert_eq!(lines(), 1, "not before ten seconds have passed");
    for port in [15020, 15021] {
        assert_eq!(proxy.get(port, "/healthz/ready").status(), 503);
    }
    assert!(TcpStream::connect(pod.front).is_err());
    wait_for("the second line", || lines() == 2);
    // A bundle that is not complete opens nothing either.
    pod.volumes.configure(&limited(1));
    wait_for("the rest", || {
        proxy.get(15021, "/healthz/ready").text().contains("no endpoints")
    });
    assert!(TcpStream::connect(pod.front).is_err());
}

const PROBE: &str = "/app-health/web/readyz";

// spec: INJ-138, LIFE-003
#[test]
fn probes_are_answered_from_start_to_end_whatever_the_proxy_lacks() {
    let local = App::bound((std::net::Ipv4Addr::LOCALHOST.into(), 0), || {});
    let probes = format!(
        "{{\"{PROBE}\": {{\"httpGet\": {{\"port\": {}}}}}}}",
        local.address.port()
    );
    let app = App::echo();
    let pod = Pod::empty();
    pod.volumes.unidentify();
    let environment = [("WEFT_KUBE_APP_PROBERS", &*probes)];
    let proxy = pod.start(&environment);
    let status = |proxy: &Process| proxy.ask("GET", 15020, PROBE).map(|answer| answer.status());
    wait_for("the probe without configuration", || status(&proxy) == Some(200));
    assert_eq!(proxy.get(15021, "/healthz/ready").status(), 503);
    pod.volumes.configure(&limited(1));
    pod.volumes.endpoints(&[app.address]);
    wait_for("an identity is missing", || {
        proxy.get(15021, "/healthz/ready").text().starts_with("no identity")
    });
    assert_eq!(status(&proxy), Some(200));
    pod.volumes.identify(&Authority::new(), "app/client");
    wait_for("readiness", || proxy.is_ready());
    // A connection keeps it from ending while it drains.
    let mut open = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    open.send("POST http://echo/ HTTP/1.1\r\nHost: echo\r\nContent-Length: 2\r\n\r\n1");
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    wait_for("draining", || !proxy.is_ready());
    assert_eq!(status(&proxy), Some(200), "while draining");
    open.send("2");
    assert_eq!(open.receive().map(|answer| answer.status()), Some(200));
}

// spec: INJ-134
#[test]
fn a_probe_goes_to_the_pod_s_address_and_brings_back_status_and_the_beginning_of_the_body() {
    use support::net::{POD, PROXY, in_pod, init};
    in_pod(|_| {
        let (code, said) = init(&[]);
        assert_eq!(code, 0, "{said}");
        let answer = |status: &'static str| {
            move |_: &support::Seen| {
                let body = "x".repeat(20_000);
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
        };
        let app = App::answering_at(SocketAddr::new(POD.into(), 8080), answer("418 Short"));
        let local = App::answering_at("127.0.0.1:8081".parse().expect("address"), answer("200 OK"));
        let probe = |port: u16| format!("{{\"httpGet\": {{\"port\": {port}}}, \"timeoutSeconds\": 9}}");
        let probes = format!(
            "{{\"{PROBE}\": {}, \"/app-health/web/livez\": {}}}",
            probe(8080),
            probe(8081)
        );
        let authority = Authority::new();
        let volumes = Volumes::new(&authority, "app/web");
        let flags = ["--admin-bind", "127.0.0.1"];
        let environment = [("WEFT_KUBE_APP_PROBERS", &*probes), ("POD_IPS", "10.99.0.2")];
        let own = IpAddr::from(POD);
        let proxy = Process::spawn(
            &volumes,
            own,
            [127, 0, 0, 1].into(),
            &flags,
            &environment,
            Some((PROXY, PROXY)),
        );
        wait_for("the status port", || {
            proxy.ask("GET", 15020, "/healthz/ready").is_some()
        });
        let got = proxy.get(15020, PROBE);
        assert_eq!((got.status(), got.body.len()), (418, 10 << 10));
        let peer = app.peers().last().copied().expect("a connection");
        assert_eq!(
            peer.ip(),
            IpAddr::from([127, 0, 0, 6]),
            "which the redirect leaves alone"
        );
        assert_eq!(
            proxy.get(15020, "/app-health/web/livez").status(),
            500,
            "nobody on the pod's address"
        );
        // The application is reached on localhost, if the mesh says so.
        volumes.configure(&format!("{}inbound: {{destination: LOCALHOST}}\n", workload("app/web")));
        volumes.endpoints_of(&[]);
        wait_for("the new way", || {
            proxy.get(15020, "/app-health/web/livez").status() == 200
        });
        assert_eq!(local.last().field("host").as_deref(), Some("127.0.0.1:8081"));
        assert_eq!(proxy.get(15020, PROBE).status(), 500);
        drop(proxy);
        // Without redirect there is nothing to pass by.
        let environment = [environment[0], environment[1], ("WEFT_INTERCEPTION_MODE", "NONE")];
        let proxy = Process::spawn(&volumes, own, [127, 0, 0, 1].into(), &flags, &environment, None);
        volumes.configure(&workload("app/web"));
        wait_for("the pod's address", || {
            proxy
                .ask("GET", 15020, PROBE)
                .is_some_and(|answer| answer.status() == 418)
        });
        let peer = app.peers().last().copied().expect("a connection");
        assert_eq!(peer.ip(), IpAddr::from(POD));
    });
}

// spec: INJ-136
#[test]
fn a_grpc_probe_passes_with_serving_alone_and_a_tcp_probe_with_a_connection() {
    let server = health_server();
    let probe = |service: &str| {
        format!(
            "{{\"grpc\": {{\"port\": {}, \"service\": \"{service}\"}}, \"timeoutSeconds\": 2}}",
            server.port()
        )
    };
    let closed = TcpListener::bind(("127.0.0.1", 0))
        .expect("listener")
        .local_addr()
        .expect("address");
    let named: Vec<String> = ["up", "down", "unknown", "missing", "silent"]
        .iter()
        .map(|name| format!("\"/app-health/web/{name}\": {}", probe(name)))
        .collect();
    let probes = format!(
        "{{{}, \"/app-health/web/unset\": {{\"grpc\": {{\"port\": {}}}, \"timeoutSeconds\": 9}}, \
         \"/app-health/web/tcp\": {{\"tcpSocket\": {{\"port\": {}}}}}, \
         \"/app-health/web/closed\": {{\"tcpSocket\": {{\"port\": {}}}}}}}",
        named.join(", "),
        server.port(),
        server.port(),
        closed.port()
    );
    let pod = Pod::empty();
    let proxy = pod.start(&[("WEFT_KUBE_APP_PROBERS", &probes)]);
    wait_for("the status port", || {
        proxy.ask("GET", 15020, "/healthz/ready").is_some()
    });
    for (name, status) in [
        ("unset", 200),
        ("up", 200),
        ("down", 500),
        ("unknown", 500),
        ("missing", 500),
        ("silent", 500),
        ("tcp", 200),
        ("closed", 500),
    ] {
        let answer = proxy.get(15020, &format!("/app-health/web/{name}"));
        assert_eq!(answer.status(), status, "{name}: {}", answer.text());
    }
}

/// A gRPC application on plaintext HTTP/2 that knows services by name.
fn health_server() -> SocketAddr {
    serving(Ipv4Addr::LOCALHOST.into(), serve_health)
}

async fn serve_health(stream: tokio::net::TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let mut message = Vec::new();
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                message.extend_from_slice(&data);
            }
            // Field 1, the service, behind five bytes of frame; absent when it is empty.
            let service = message.get(7..).map(|name| String::from_utf8_lossy(name).into_owned());
            let status: Option<u8> = match service.as_deref() {
                None | Some("up") => Some(1),
                Some("down") => Some(2),
                Some("unknown") => Some(3),
                Some("silent") => return std::future::pending().await,
                _ => None,
            };
            let response = http::Response::builder().header("content-type", "application/grpc");
            let response = response.body(()).expect("a response");
            let Ok(mut send) = respond.send_response(response, false) else {
                return;
            };
            let mut trailers = http::HeaderMap::new();
            match status {
                Some(status) => {
                    let _ = send.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false);
                    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                }
                // UNIMPLEMENTED, as an application without that service says.
                None => drop(trailers.insert("grpc-status", http::HeaderValue::from_static("12"))),
            }
            let _ = send.send_trailers(trailers);
        });
    }
}

// spec: DLV-027
#[test]
fn a_broken_file_holds_back_no_other() {
    let (app, other) = (
        App::echo(),
        App::answering(|_| "HTTP/1.1 203 Other\r\nContent-Length: 0\r\n\r\n".into()),
    );
    let host = |name: &str, app: &App| HostInput {
        host: format!("{name}.app.svc.cluster.local"),
        accounts: Vec::new(),
        endpoints: vec![endpoint(app.address)],
    };
    let shard_of = |name: &str| pack::shard_of(&format!("{name}.app.svc.cluster.local"), 2);
    let beside = ["a", "b", "c", "d", "e", "f"]
        .into_iter()
        .find(|name| shard_of(name) != shard_of("echo"));
    let beside = beside.expect("one of them is in the other shard");
    let packed = |app: &App| {
        let hosts = [host("echo", app), host(beside, app)];
        pack::endpoints(&hosts, &Default::default(), &Limits::default())
            .expect("packed")
            .shards
    };
    let pod = Pod::empty();
    let put = |shard: &Files| shard.iter().for_each(|(name, bytes)| pod.volumes.spoil(name, bytes));
    packed(&app).iter().for_each(put);
    pod.volumes.configure(&limited(1));
    let proxy = pod.start(&[]).ready();
    assert_eq!(pod.call(), Some(200));
    // One shard of the endpoints is broken: the configuration and the other shard go on.
    pod.volumes.spoil(&format!("ep-{}.zst", shard_of(beside)), b"broken");
    wait_for("the refusal", || proxy.log().contains("configuration refused"));
    let revision = pod.volumes.configure(&limited(2));
    proxy.wait_for_config(&revision);
    put(&packed(&other)[shard_of("echo")]);
    wait_for("the other application", || pod.call() == Some(203));
    // The configuration is broken: endpoints go on.
    pod.volumes.spoil("bundle.yaml", b"{");
    wait_for("the refusal", || {
        proxy.get(15020, "/config/status").text().contains("Rejected")
    });
    put(&packed(&app)[shard_of("echo")]);
    wait_for("the application", || pod.call() == Some(200));
}

// spec: CARD-002, BYD-035
#[test]
fn statuses_beyond_the_budget_are_counted_together_and_told_of_once() {
    let statuses = std::sync::atomic::AtomicU16::new(200);
    let app = App::answering(move |_| {
        let status = statuses.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        format!("HTTP/1.1 {status} Of\r\nContent-Length: 0\r\n\r\n")
    });
    let pod = Pod::empty();
    pod.volumes.configure(&limited(1));
    pod.volumes.endpoints(&[app.address]);
    let proxy = pod.start(&[("WEFT_MAX_SERIES_PER_METRIC", "2")]).ready();
    for n in 0..6 {
        assert_eq!(pod.call(), Some(200 + n));
    }
    let values = |begin: &str, part: &str| {
        let text = proxy.get(15020, "/metrics").text();
        let of = text
            .lines()
            .filter(|line| line.starts_with(begin) && line.contains(part));
        of.map(|line| line.rsplit(' ').next().expect("a value").to_owned())
            .collect::<Vec<_>>()
    };
    wait_for("all of them", || {
        values("istio_requests_total{", "response_code=\"other\"") == ["4"]
    });
    assert_eq!(values("istio_requests_total{", "response_code=\"20"), ["1", "1"]);
    assert_eq!(values("weft_metric_overflow_total{", "\"istio_requests_total\""), ["4"]);
    let told = || {
        proxy
            .log()
            .lines()
            .filter(|line| line.contains("telemetry.maxSeriesPerMetric"))
            .count()
    };
    wait_for("the warning", || told() == 1);
    assert!(proxy.log().contains("budget=2"), "{}", proxy.log());
    pod.call();
    pause(Duration::from_secs(6));
    assert_eq!(told(), 1, "not again for ten minutes");
}
