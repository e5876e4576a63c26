//! The program from its start to its end: readiness, signals, its own ports, what it takes of the machine.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::process::{Process, Volumes, Wrapped, ask};
use support::{App, Authority, Client, LIMIT, address, client_bundle, wait_for, workload};

/// A client's pod in loopback mode: its application asks an explicit HTTP proxy for `echo`.
struct Pod {
    volumes: Volumes,
    authority: Authority,
    address: std::net::IpAddr,
    front: SocketAddr,
}

impl Pod {
    /// With configuration and an endpoint.
    fn new(app: &App) -> Self {
        let this = Self::empty();
        this.volumes.configure(&client_bundle("http", ""));
        this.volumes.endpoints(&[app.address]);
        this
    }

    fn empty() -> Self {
        let authority = Authority::new();
        let address = address();
        Self {
            volumes: Volumes::new(&authority, "app/client"),
            authority,
            address,
            front: SocketAddr::new(address, 4000),
        }
    }

    fn start(&self, flags: &[&str], environment: &[(&str, &str)]) -> Process {
        let front = self.front.to_string();
        let mut all = vec!["--http-proxy", &front];
        all.extend(flags);
        Process::start(&self.volumes, self.address, &all, environment)
    }

    fn call(&self) -> Option<u16> {
        let mut client = Client::over(TcpStream::connect(self.front).ok()?);
        client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
        client.receive().map(|answer| answer.status())
    }
}

// spec: LIFE-001, LIFE-003, LIFE-010, LIFE-004, DLV-081
#[test]
fn status_ports_open_first_and_traffic_waits_for_configuration() {
    let app = App::echo();
    let pod = Pod::empty();
    let proxy = pod.start(&[], &[]);
    for port in [15020, 15021] {
        wait_for("the status ports", || {
            proxy.ask("GET", port, "/healthz/ready").is_some()
        });
        let answer = proxy.get(port, "/healthz/ready");
        assert_eq!(answer.status(), 503);
        assert!(answer.text().contains("no configuration"), "{}", answer.text());
    }
    wait_for("the admin port", || proxy.ask("GET", 15000, "/ready").is_some());
    assert!(TcpStream::connect(pod.front).is_err(), "no listener of traffic yet");
    assert!(proxy.ask("GET", 15090, "/stats/prometheus").is_none());
    pod.volumes.configure(&client_bundle("http", ""));
    wait_for("a reason", || {
        proxy.get(15021, "/healthz/ready").text().contains("no endpoints")
    });
    pod.volumes.endpoints(&[app.address]);
    let proxy = proxy.ready();
    assert_eq!(proxy.get(15020, "/healthz/ready").text(), "LIVE\n");
    assert_eq!(pod.call(), Some(200));
    assert_eq!(proxy.get(15090, "/stats/prometheus").status(), 200);
}

// spec: LIFE-010, LIFE-011, LIFE-012, LIFE-013, LIFE-070, LIFE-068, LIFE-016, DLV-080, DLV-081
#[test]
fn readiness_survives_what_is_broken_elsewhere_and_follows_what_it_names() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    let revision = pod
        .volumes
        .configure(&client_bundle("http", "").replace("echo.app,", "echo.app, echo.x,"));
    proxy.wait_for_config(&revision);
    assert!(proxy.is_ready());
    pod.volumes.spoil("bundle.yaml", b"workload: {");
    wait_for("a refusal", || {
        proxy.get(15020, "/config/status").text().contains("Rejected")
    });
    assert!(proxy.is_ready() && pod.call() == Some(200));
    pod.volumes.clear();
    wait_for("the loss", || {
        proxy.get(15020, "/config/status").text().contains("Missing")
    });
    assert!(proxy.is_ready() && pod.call() == Some(200));
    let configured = pod
        .volumes
        .configure(&format!("mesh: {{vipFallback: false}}\n{}", client_bundle("http", "")));
    // An endpoint that nobody serves is no reason.
    let gone = SocketAddr::new(address(), 1);
    let revision = pod.volumes.endpoints(&[gone]);
    proxy.wait_for_endpoints(&revision);
    // Endpoints are in force a moment before the configuration that is read with them.
    proxy.wait_for_config(&configured);
    assert_eq!(pod.call(), Some(503));
    assert!(proxy.is_ready());

    // However often it is asked, and whatever of that is not logged, a transition is.
    for _ in 0..30 {
        assert_eq!(proxy.get(15000, "/ready").status(), 200);
    }
    assert_eq!(proxy.post(15000, "/healthcheck/fail").status(), 200);
    assert!(!proxy.is_ready());
    assert_eq!(proxy.get(15000, "/ready").status(), 503);
    wait_for("the first transition in the log", || {
        proxy.log().contains("reason=\"healthcheck/fail\"")
    });
    let log = proxy.log();
    let line = log
        .lines()
        .find(|line| line.contains("healthcheck/fail"))
        .expect("the line");
    assert!(line.contains(" WARN "), "{line}");
    assert_eq!(proxy.post(15000, "/healthcheck/ok").status(), 200);
    assert!(proxy.is_ready());
    assert_eq!(proxy.get(15000, "/ready").text(), "LIVE\n");
    assert_eq!(proxy.post(15020, "/drain").status(), 200);
    let answer = proxy.get(15021, "/healthz/ready");
    assert!(
        answer.status() == 503 && answer.text().contains("draining"),
        "{answer:?}"
    );
    wait_for("the second", || proxy.log().contains("reason=\"draining\""));
    assert!(proxy.log().contains("elapsed_ms"), "{}", proxy.log());
}

#[test]
fn program_pages_of_the_start_do_not_stay_resident() {
    let pod = Pod::new(&App::echo());
    let proxy = pod.start(&[], &[]).ready();
    let [most, now, own] = ["VmHWM", "VmRSS", "RssAnon"].map(|field| proxy.status(field));
    println!("{most} KiB at most, {now} KiB when ready, {own} KiB of these its own");
    assert!(now - own < (most - own) * 3 / 4, "{now} of {most} KiB, {own} its own");
    assert_eq!(pod.call(), Some(200));
}

/// Hosts beside `echo`, without endpoints.
fn many_hosts(count: usize) -> String {
    let host = |i: usize| {
        let address = format!("10.2.{}.{}", i / 250, i % 250);
        format!(
            "- host: s{i}.app.svc.cluster.local\n  name: s{i}\n  namespace: app\n  domains: [s{i}, s{i}.app, s{i}.app.svc, \
             s{i}.app.svc.cluster.local, {address}]\n  addresses: [{address}]\n  ports: [{{port: 80, name: main, protocol: \
             http}}, {{port: 9000, name: tcp, protocol: tcp}}]\n"
        )
    };
    (0..count).map(host).collect()
}

// spec: LIFE-081
#[test]
fn dumps_are_written_as_they_are_read_and_no_more_than_four_at_once() {
    let pod = Pod::new(&App::echo());
    pod.volumes
        .configure(&(client_bundle("http", "").trim_end().to_owned() + "\n" + &many_hosts(6000)));
    let proxy = pod.start(&[], &[]).ready();
    let admin = SocketAddr::new(pod.address, 15000);
    let path = "/config_dump?section=clusters";
    // The first makes what stays, whoever asks.
    let size = proxy.get(15000, path).body.len() as u64 >> 10;
    assert!(size > 1 << 10, "{size} KiB");
    // From here on the peak is that of dumps.
    let clear = format!("/proc/{}/clear_refs", proxy.child.id());
    std::fs::write(clear, "5").expect("the peak is forgotten");
    let before = proxy.status("VmRSS");
    assert_eq!(proxy.get(15000, path).body.len() as u64 >> 10, size);
    let peak = proxy.status("VmHWM").saturating_sub(before);
    println!("{peak} KiB for a dump of {size} KiB");
    assert!(peak < size / 2, "{peak} KiB for a dump of {size} KiB");

    // Readers that have begun and take no more than their kernels hold.
    let slow = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("option");
        socket.connect(&admin.into()).expect("the admin port");
        let mut client = Client::over(socket.into());
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert!(client.read_more(), "it begins");
        client
    };
    let mut readers: Vec<Client> = (0..4).map(|_| slow()).collect();
    for asked in ["/ready", path] {
        let answer = proxy.get(15000, asked);
        assert!(
            answer.status() == 503 && answer.text().contains("too many"),
            "{answer:?}"
        );
    }
    assert!(proxy.is_ready(), "other ports have places of their own");
    readers.pop();
    wait_for("a place", || proxy.get(15000, "/ready").status() == 200);
}

// spec: LIFE-089
#[test]
fn the_own_ports_hold_64_connections_each_and_no_more() {
    let pod = Pod::new(&App::echo());
    let proxy = pod.start(&[], &[]).ready();
    let target = SocketAddr::new(pod.address, 15021);
    // The one that asked whether it is ready may not have been noticed as gone.
    support::pause(Duration::from_millis(200));
    let mut open: Vec<Client> = (0..64).map(|_| Client::connect(target)).collect();
    for client in open.iter_mut().rev() {
        client.send("GET /healthz/ready HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.receive().map(|answer| answer.status()), Some(200));
    }
    let begin = Instant::now();
    assert!(Client::connect(target).is_closed());
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "one that is silent is closed later"
    );
    assert_eq!(proxy.get(15020, "/healthz/ready").status(), 200, "another port");
    drop(open);
    wait_for("room", || proxy.ask("GET", 15021, "/healthz/ready").is_some());
}

// spec: LIFE-002, LIFE-005, LIFE-088
#[test]
fn a_start_with_configuration_is_quick_silent_and_small() {
    let app = App::echo();
    let pod = Pod::empty();
    let bundle = client_bundle("http", "").trim_end().to_owned() + "\n" + &many_hosts(2000);
    assert!(bundle.len() > 500_000, "{}", bundle.len());
    pod.volumes.configure(&bundle);
    pod.volumes.endpoints(&[app.address]);
    let begin = Instant::now();
    let proxy = pod.start(&[], &[]);
    // Unoptimised code is more than ten times slower, and the machine may be busy: there the CPU that it took counts.
    let limit = if cfg!(debug_assertions) { 60_000 } else { 200 };
    while !proxy.is_ready() {
        assert!(begin.elapsed() < Duration::from_millis(limit), "{:?}", begin.elapsed());
        support::pause(Duration::from_millis(5));
    }
    let elapsed = begin.elapsed();
    assert!(proxy.cpu() < Duration::from_secs(5), "{:?}", proxy.cpu());
    assert_eq!(
        app.connections.load(std::sync::atomic::Ordering::SeqCst),
        0,
        "no warm-up"
    );
    let resident = proxy.status("VmRSS");
    println!(
        "ready after {elapsed:?}; resident with {} KiB of configuration: {resident} KiB",
        bundle.len() >> 10
    );
    // The unstripped program of a test is larger than the one of an image.
    assert!(
        resident < if cfg!(debug_assertions) { 60 << 10 } else { 30 << 10 },
        "{resident} KiB"
    );
    let before = proxy.cpu();
    support::pause(Duration::from_secs(3));
    let used = proxy.cpu() - before;
    assert!(
        used <= Duration::from_millis(if cfg!(debug_assertions) { 90 } else { 10 }),
        "{used:?} in 3 s"
    );
}

// spec: LIFE-006, LIFE-007
#[test]
fn bad_parameters_end_with_2_and_name_variable_and_value() {
    let run = |flags: &[&str], environment: &[(&str, &str)]| {
        let output = std::process::Command::new(support::process::program())
            .args(flags)
            .env_clear()
            .envs(environment.iter().copied())
            .output()
            .expect("the binary of this crate");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = run(&["run", "--nonsense"], &[]);
    assert!(code == Some(2) && said.contains("--nonsense"), "{code:?} {said}");
    for (name, value) in [
        ("WEFT_STATUS_PORT", "99999"),
        ("WEFT_TERMINATION_GRACE_SECONDS", "soon"),
        ("MINIMUM_DRAIN_DURATION", "5 lightyears"),
    ] {
        let (code, said) = run(&["run"], &[(name, value)]);
        assert!(
            code == Some(2) && said.contains(name) && said.contains(value),
            "{code:?} {said}"
        );
    }
    let pod = Pod::empty();
    let proxy = pod.start(&[], &[("WEFT_FLUX", "1")]);
    wait_for("the warning", || proxy.log().contains("WEFT_FLUX"));
    assert_eq!(proxy.log().matches("WEFT_FLUX").count(), 1);
}

// spec: LIFE-023, LIFE-020, LIFE-057, LIFE-031
#[test]
fn after_a_drain_sigterm_ends_at_once_with_the_log_written() {
    let app = App::echo();
    let pod = Pod::new(&app);
    pod.volumes.configure(&format!(
        "mesh: {{accessLog: {{path: /dev/stdout}}}}\n{}",
        client_bundle("http", "")
    ));
    let mut proxy = pod.start(&[], &[]).ready();
    let begin = Instant::now();
    let drained = std::process::Command::new(support::process::program())
        .args(["drain", "--address", &pod.address.to_string()])
        .env_clear()
        .status()
        .expect("the binary of this crate");
    assert!(drained.success() && begin.elapsed() < Duration::from_secs(1) * if cfg!(debug_assertions) { 3 } else { 1 });
    assert_eq!(proxy.post(15020, "/drain").status(), 200, "again changes nothing");
    wait_for("the log's settings", || {
        pod.call() == Some(200) && proxy.access_log().contains("GET")
    });
    // Outbound works until the end.
    assert_eq!(pod.call(), Some(200));
    let calls = app.count();
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait(), Some(0));
    let begin = Instant::now();
    wait_for("all lines", || {
        proxy.access_log().matches("GET").count() >= calls.min(2)
    });
    assert!(begin.elapsed() < LIMIT);
}

/// A pod that serves: a port for others in front of an application.
fn serving_pod(target: SocketAddr) -> (Pod, String, SocketAddr) {
    let pod = Pod::empty();
    pod.volumes.identify(&pod.authority, "app/echo");
    let port = target.port();
    pod.volumes.configure(&format!(
        "{}inbound:\n  ports: [{{port: {port}, protocol: http}}]\n",
        workload("app/echo")
    ));
    pod.volumes.endpoints(&[]);
    let listen = SocketAddr::new(pod.address, port);
    (pod, format!("{listen}={target}"), listen)
}

fn get_once(address: SocketAddr) -> Option<u16> {
    let mut client = Client::over(TcpStream::connect(address).ok()?);
    client.send("GET / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n");
    client.receive().map(|answer| answer.status())
}

/// An application that can be stopped: it serves until the flag is cleared, then refuses connections.
fn stoppable() -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicBool>) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let runs = std::sync::Arc::new(AtomicBool::new(true));
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    let flag = runs.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if !flag.load(Ordering::SeqCst) {
                return;
            }
            std::thread::spawn(move || {
                use std::io::Write;
                let mut stream = stream;
                let mut buffer = Vec::new();
                while support::read_head(&mut stream, &mut buffer).is_some() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
        }
    });
    (bound, runs)
}

// spec: LIFE-024, LIFE-022, LIFE-027, LIFE-032, BYD-016, LIFE-030
#[test]
fn without_a_drain_the_proxy_stays_until_its_application_has_left() {
    use std::sync::atomic::Ordering;
    let (target, runs) = stoppable();
    let (pod, flag, listen) = serving_pod(target);
    let mut proxy = Process::start(
        &pod.volumes,
        pod.address,
        &["--inbound", &flag],
        &[("WEFT_TERMINATION_GRACE_SECONDS", "60")],
    )
    .ready();
    let mut kept = Client::over(TcpStream::connect(listen).expect("the proxy listens"));
    kept.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(kept.receive().map(|answer| answer.status()), Some(200));
    proxy.signal(Signal::SIGTERM);
    wait_for("the drain", || !proxy.is_ready());
    for _ in 0..10 {
        assert_eq!(get_once(listen), Some(200), "new connections are served");
        support::pause(Duration::from_millis(50));
    }
    assert!(proxy.runs());
    runs.store(false, Ordering::SeqCst);
    let _ = TcpStream::connect(target);
    wait_for("the application's end", || TcpStream::connect(target).is_err());
    support::pause(Duration::from_secs(1));
    assert!(proxy.runs(), "a connection is open");
    kept.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    let _ = kept.receive();
    drop(kept);
    assert_eq!(proxy.wait(), Some(0));
}

/// Signals SIGTERM, and how long the process takes to end in order.
fn time_to_end(proxy: &mut Process) -> Duration {
    let begin = Instant::now();
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait(), Some(0));
    begin.elapsed()
}

// spec: LIFE-026, LIFE-024
#[test]
fn all_waits_end_a_second_before_the_grace_period() {
    let (target, _runs) = stoppable();
    let waits = Duration::from_millis(3900)..Duration::from_secs(5);
    let (pod, flag, _) = serving_pod(target);
    let grace = ("WEFT_TERMINATION_GRACE_SECONDS", "5");
    for (name, value) in [
        ("TERMINATION_DRAIN_DURATION_SECONDS", "100"),
        ("MINIMUM_DRAIN_DURATION", "100s"),
    ] {
        let on_zero = (
            "EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
            if name.starts_with("MIN") { "true" } else { "false" },
        );
        let environment = [grace, on_zero, (name, value)];
        let mut proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &environment).ready();
        let elapsed = time_to_end(&mut proxy);
        assert!(waits.contains(&elapsed), "{name}: {elapsed:?}");
        wait_for("the message", || proxy.log().contains("grace period"));
    }
    // Nothing tells when the application has ended: no port is declared.
    let pod = Pod::new(&App::echo());
    let elapsed = time_to_end(&mut pod.start(&[], &[grace]).ready());
    assert!(waits.contains(&elapsed), "{elapsed:?}");
}

// spec: LIFE-026, LIFE-023, LIFE-029
#[test]
fn a_request_that_nobody_answers_does_not_hold_it_beyond_the_grace_period() {
    let silent = App::new(std::sync::Arc::new(|_, stream| {
        let _ = std::io::Read::read(stream, &mut [0]);
        false
    }));
    let pod = Pod::new(&silent);
    let held = || {
        let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
        let before = silent.count();
        client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
        wait_for("the request", || silent.count() > before);
        client
    };
    let mut proxy = pod.start(&[], &[("WEFT_TERMINATION_GRACE_SECONDS", "4")]).ready();
    let _held = held();
    let elapsed = time_to_end(&mut proxy);
    assert!(elapsed < Duration::from_secs(4), "SIGKILL comes then: {elapsed:?}");
    drop(proxy);
    // After a drain the application has left, and two seconds are all that there may be.
    let mut proxy = pod.start(&[], &[]).ready();
    assert_eq!(proxy.post(15020, "/drain").status(), 200);
    let _held = held();
    let elapsed = time_to_end(&mut proxy);
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}

// spec: LIFE-024
#[test]
fn a_drain_duration_that_is_set_is_the_wait_whatever_the_application_does() {
    let (target, _runs) = stoppable();
    let (pod, flag, listen) = serving_pod(target);
    let environment = [
        ("WEFT_TERMINATION_GRACE_SECONDS", "60"),
        ("TERMINATION_DRAIN_DURATION_SECONDS", "1"),
    ];
    let mut proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &environment).ready();
    // Nor does it wait for a client that could ask again.
    let mut kept = Client::over(TcpStream::connect(listen).expect("the proxy listens"));
    kept.send("GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(kept.receive().map(|answer| answer.status()), Some(200));
    let elapsed = time_to_end(&mut proxy);
    let expected = Duration::from_millis(950)..Duration::from_secs(4);
    assert!(expected.contains(&elapsed), "{elapsed:?}");
    assert!(!proxy.log().contains("grace period"), "{}", proxy.log());
}

// spec: LIFE-025
#[test]
fn a_proxy_told_so_ends_with_its_last_connection() {
    let (target, _runs) = stoppable();
    let (pod, flag, listen) = serving_pod(target);
    let environment = [
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
        ("MINIMUM_DRAIN_DURATION", "1s"),
    ];
    let mut proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &environment).ready();
    let kept = TcpStream::connect(listen).expect("the proxy listens");
    wait_for("the connection", || {
        proxy
            .get(15020, "/stats/prometheus")
            .text()
            .contains("weft_downstream_connections 1\n")
    });
    proxy.signal(Signal::SIGTERM);
    support::pause(Duration::from_millis(2500));
    assert!(proxy.runs(), "a connection is open");
    drop(kept);
    assert_eq!(proxy.wait(), Some(0));
    // Without any it still drains for as long as is said, and connections to its own ports are none.
    let mut proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &environment).ready();
    let _own = [15000, 15020, 15021, 15090].map(|port| TcpStream::connect((pod.address, port)).expect("its own"));
    let elapsed = time_to_end(&mut proxy);
    let expected = Duration::from_millis(950)..Duration::from_millis(2900);
    assert!(expected.contains(&elapsed), "{elapsed:?}");
}

// spec: LIFE-031, LIFE-055, LIFE-061, LIFE-037, LIFE-073
#[test]
fn signals_and_requests_to_quit() {
    let (target, _runs) = stoppable();
    let start = || {
        let (pod, flag, _) = serving_pod(target);
        let proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &[]).ready();
        (pod, proxy)
    };
    let (_pod, mut proxy) = start();
    proxy.signal(Signal::SIGTERM);
    wait_for("the drain", || !proxy.is_ready());
    proxy.signal(Signal::SIGINT);
    assert_eq!(proxy.wait(), Some(130));

    let (_pod, mut proxy) = start();
    proxy.signal(Signal::SIGQUIT);
    assert_eq!(proxy.wait(), Some(131));

    let (pod, mut proxy) = start();
    proxy.signal(Signal::SIGPIPE);
    let reloads = |count: u8| {
        let metrics = proxy.get(15020, "/stats/prometheus").text();
        metrics.contains(&format!("weft_cert_reload_total{{result=\"ok\"}} {count}"))
    };
    assert!(reloads(1));
    // Files that change where they are: no link is swapped, and nothing tells of it but the signal.
    let (leaf, private) = pod.authority.pem_pair(&support::spiffe_id("app/echo"));
    for (name, text) in [("cert-chain.pem", leaf), ("key.pem", private)] {
        std::fs::write(pod.volumes.path("identity").join(name), text).expect("written");
    }
    support::pause(Duration::from_millis(500));
    assert!(reloads(1));
    proxy.signal(Signal::SIGHUP);
    wait_for("the new certificate", || reloads(2));
    // Asked for, it is there when the answer is.
    let (leaf, private) = pod.authority.pem_pair(&support::spiffe_id("app/echo"));
    for (name, text) in [("cert-chain.pem", leaf), ("key.pem", private)] {
        std::fs::write(pod.volumes.path("identity").join(name), text).expect("written");
    }
    support::pause(Duration::from_millis(500));
    assert!(reloads(2));
    assert!(proxy.post(15000, "/reload").text().contains("\"state\": \"Active\""));
    assert!(reloads(3));
    assert_eq!(proxy.get(15020, "/quitquitquit").status(), 405);
    assert!(proxy.runs());
    assert_eq!(proxy.post(15020, "/quitquitquit").text(), "OK");
    assert_eq!(proxy.wait(), Some(0));

    let (_pod, mut proxy) = start();
    assert_eq!(proxy.post(15000, "/quitquitquit").text(), "OK");
    assert_eq!(proxy.wait(), Some(0));
}

// spec: LIFE-029, LIFE-020, LIFE-023
#[test]
fn a_native_sidecar_outlives_a_slow_application_and_ends_within_the_last_two_seconds() {
    let app = App::echo();
    let pod = Pod::new(&app);
    // The application takes all of the grace period and more: the kubelet counts, not the proxy.
    let environment = [("WEFT_NATIVE_SIDECAR", "true"), ("WEFT_TERMINATION_GRACE_SECONDS", "2")];
    let mut proxy = pod.start(&[], &environment).ready();
    assert_eq!(proxy.post(15020, "/drain").status(), 200);
    support::pause(Duration::from_millis(2500));
    assert!(proxy.runs());
    assert_eq!(pod.call(), Some(200), "outbound works until the end");
    // What is open does not hold it: at the end of the grace period all that is left has two seconds.
    let mut open = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    open.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(open.receive().map(|answer| answer.status()), Some(200));
    let begin = Instant::now();
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

/// A memory cgroup below this process's own, of either version.
struct Cgroup {
    path: std::path::PathBuf,
    second: bool,
}

impl Cgroup {
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("weft-test-{}", std::process::id());
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let second = controllers.is_empty();
            let root = match controllers {
                "" => "/sys/fs/cgroup",
                "memory" => "/sys/fs/cgroup/memory",
                _ => return None,
            };
            let path = std::path::Path::new(root).join(path).join(&name);
            std::fs::create_dir(&path).ok()?;
            let this = Self { path, second };
            // Without the controller it has no such file.
            this.path.join(this.limit_file()).is_file().then_some(this)
        })
    }

    fn limit_file(&self) -> &'static str {
        if self.second {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        }
    }

    fn write(&self, file: &str, text: &str) -> bool {
        std::fs::write(self.path.join(file), text).is_ok()
    }

    fn usage(&self) -> u64 {
        let file = if self.second {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let text = std::fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn kills(&self) -> u64 {
        let file = if self.second {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = std::fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

// spec: LIFE-038, LIFE-036
#[test]
fn out_of_memory_it_is_the_proxy_that_is_killed_and_the_next_one_serves() {
    use std::os::unix::process::ExitStatusExt;
    let Some(cgroup) = Cgroup::new() else {
        println!("skipped: no memory cgroup can be made here; run the tests as root");
        return;
    };
    let app = App::echo();
    let pod = Pod::new(&app);
    // It does not know of this limit, so that it does not give way before (LIFE-083).
    let mut proxy = pod.start(&[], &[("WEFT_MEMORY_LIMIT", "17179869184")]).ready();
    assert!(cgroup.write("cgroup.procs", &proxy.child.id().to_string()), "joined");
    assert_eq!(pod.call(), Some(200));
    assert!(cgroup.write(cgroup.limit_file(), &(cgroup.usage() + (1 << 20)).to_string()));
    // Each connection takes memory for its buffers, and none is answered to its end.
    let mut held = Vec::new();
    wait_for("the kernel's verdict", || {
        for _ in 0..50 {
            let Ok(stream) = TcpStream::connect(pod.front) else {
                break;
            };
            let _ = stream.set_nonblocking(true);
            let mut head = b"POST http://echo/ HTTP/1.1\r\nHost: echo\r\nContent-Length: 1000000\r\n\r\n".to_vec();
            head.resize(64 * 1024, b'x');
            let _ = std::io::Write::write(&mut &stream, &head);
            held.push(stream);
        }
        cgroup.kills() > 0
    });
    // The container's first process is the one that ended, by SIGKILL: what the kubelet calls OOMKilled (137).
    let status = proxy.child.wait().expect("status");
    assert_eq!(status.signal(), Some(9), "{status}");
    drop(held);
    drop(cgroup);
    let _again = pod.start(&[], &[]).ready();
    assert_eq!(pod.call(), Some(200));
}

// spec: LIFE-036, DLV-082
#[test]
fn a_killed_proxy_serves_again_with_what_it_had() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let mut proxy = pod.start(&[], &[]).ready();
    wait_for("the stored copy", || {
        pod.volumes.path("state").join("lkg/manifest.json").exists()
    });
    proxy.child.kill().expect("the process lives");
    proxy.wait();
    assert_eq!(pod.call(), None);
    drop(proxy);
    // The operator and its volume are away: what was stored is used.
    pod.volumes.clear();
    let proxy = pod.start(&[], &[]).ready();
    assert_eq!(pod.call(), Some(200));
    drop(proxy);
    // Or the volume has something that is of no use.
    pod.volumes.spoil("manifest.json", b"{");
    let proxy = pod.start(&[], &[]).ready();
    assert_eq!(pod.call(), Some(200));
    assert!(proxy.get(15020, "/config/status").text().contains("\"cfg\": \""));
}

// spec: LIFE-008
#[test]
fn a_folder_for_copies_is_not_needed() {
    let app = App::echo();
    let pod = Pod::new(&app);
    std::fs::remove_dir(pod.volumes.path("state")).expect("empty");
    let _proxy = pod.start(&[], &[]).ready();
    assert_eq!(pod.call(), Some(200));
    assert!(!pod.volumes.path("state").exists());
}

// spec: LIFE-060, LIFE-062, LIFE-065, LIFE-066, LIFE-067, LIFE-077, LIFE-082, LIFE-074, LIFE-073, ID-132
#[test]
fn the_admin_port_tells_what_is_in_force_and_no_secret() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    assert_eq!(pod.call(), Some(200));
    let dump = proxy.get(15000, "/config_dump");
    assert_eq!(dump.field("content-type").as_deref(), Some("application/json"));
    for part in [
        "\"bootstrap\"",
        "\"listeners\"",
        "\"routes\"",
        "\"clusters\"",
        "\"endpoints\"",
        "\"secrets\"",
        "\"spiffeId\": \"spiffe://cluster.local/ns/app/sa/client\"",
        "echo.app.svc.cluster.local",
        &app.address.ip().to_string(),
        "\"cfg\"",
    ] {
        assert!(dump.text().contains(part), "{part}: {}", dump.text());
    }
    let _: serde_json::Value = serde_json::from_slice(&dump.body).expect("JSON");
    let key = std::fs::read_to_string(pod.volumes.path("identity").join("key.pem")).expect("the key");
    let secret = key.lines().nth(1).expect("base64");
    for path in [
        "/config_dump",
        "/certs",
        "/server_info",
        "/clusters",
        "/stats",
        "/listeners",
        "/memory",
    ] {
        let answer = proxy.get(15000, path);
        assert_eq!(answer.status(), 200, "{path}");
        assert!(
            !answer.text().contains(secret) && !answer.text().contains("PRIVATE"),
            "{path}"
        );
    }
    let part = proxy.get(15000, "/config_dump?section=secrets").text();
    assert!(part.contains("\"secrets\"") && !part.contains("\"clusters\""), "{part}");
    assert_eq!(proxy.get(15000, "/config_dump?section=everything").status(), 400);
    let summary = proxy.get(15000, "/config_dump?format=summary").text();
    assert!(
        summary.contains("\"hosts\": 1") && summary.contains("\"endpoints\": 1"),
        "{summary}"
    );

    let clusters = proxy.get(15000, "/clusters").text();
    let row = format!("{}::health=Ready::weight=1::rq_active=0::cx_idle=1", app.address);
    assert!(clusters.contains(&row), "{clusters}");
    assert!(
        proxy
            .get(15000, "/clusters?format=json")
            .text()
            .contains("\"idleConnections\": 1")
    );
    assert!(proxy.get(15000, "/listeners").text().contains(&pod.front.to_string()));
    assert!(proxy.get(15000, "/certs").text().contains("\"serial\""));
    assert!(proxy.get(15000, "/memory").text().contains("\"residentBytes\""));
    let info = proxy.get(15000, "/server_info").text();
    assert!(
        info.contains("\"state\": \"LIVE\"") && info.contains("\"version\"") && info.contains("\"fips\": false"),
        "{info}"
    );
    assert!(
        proxy
            .get(15020, "/config/status")
            .text()
            .contains("\"state\": \"Active\"")
    );
    let help = proxy.get(15000, "/help").text();
    assert!(help.contains("/config_dump") && proxy.get(15000, "/").text() == help);
    assert_eq!(proxy.get(15000, "/debug/pprof/heap").status(), 501);
    assert!(proxy.post(15000, "/reload").text().contains("\"state\": \"Active\""));
    assert_eq!(proxy.get(15000, "/nothing").status(), 404);
    assert!(
        !proxy.log().contains("config_dump"),
        "access to the admin port is told at debug alone"
    );
}

// spec: LIFE-067, LIFE-068
#[test]
fn the_state_is_told_from_the_beginning_to_the_end() {
    let app = App::echo();
    let pod = Pod::empty();
    let proxy = pod.start(&[], &[]);
    wait_for("the admin port", || proxy.ask("GET", 15000, "/ready").is_some());
    let state = |state: &str| {
        let info = proxy.get(15000, "/server_info").text();
        assert!(info.contains(&format!("\"state\": \"{state}\"")), "{info}");
    };
    state("INITIALIZING");
    assert_eq!(proxy.get(15000, "/ready").status(), 503);
    pod.volumes.configure(&client_bundle("http", ""));
    pod.volumes.endpoints(&[app.address]);
    let proxy = proxy.ready();
    let state = |state: &str| {
        let info = proxy.get(15000, "/server_info").text();
        assert!(info.contains(&format!("\"state\": \"{state}\"")), "{info}");
    };
    state("LIVE");
    assert_eq!(proxy.post(15020, "/drain").status(), 200);
    state("DRAINING");
    let answer = proxy.get(15000, "/ready");
    assert!(
        answer.status() == 503 && answer.text().contains("draining"),
        "{answer:?}"
    );
}

// spec: LIFE-014, LIFE-015, LIFE-010
#[test]
fn a_worker_that_makes_no_progress_is_told_by_liveness_and_readiness() {
    let app = App::echo();
    let pod = Pod::new(&app);
    // Anchors in a pipe that nobody writes to: whoever opens it waits.
    let pipe = pod.volumes.path("state").join("anchors");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let policy = format!("policy: {{tls: {{originate: {{ca: {}}}}}}}}}", pipe.display());
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, {policy}"));
    pod.volumes.configure(&bundle);
    let proxy = pod.start(&["--concurrency", "1"], &[]).ready();
    assert_eq!(proxy.get(15020, "/healthz/live").text(), "OK\n");
    let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
    let begin = Instant::now();
    // The workers' own port knows it at once, the other one of its own thread does not.
    wait_for("the worker", || {
        proxy.get(15021, "/healthz/ready").text().contains("a worker")
    });
    assert_eq!(proxy.get(15021, "/healthz/ready").status(), 503);
    assert_eq!(proxy.get(15020, "/healthz/ready").status(), 200);
    assert_eq!(proxy.get(15020, "/healthz/live").status(), 200, "{:?}", begin.elapsed());
    support::pause(Duration::from_secs(11).saturating_sub(begin.elapsed()));
    wait_for("the verdict", || proxy.get(15020, "/healthz/live").status() == 503);
    assert!(begin.elapsed() < Duration::from_secs(16), "{:?}", begin.elapsed());
    // Somebody writes: no anchors, and so no connection, but the worker goes on.
    drop(
        std::fs::OpenOptions::new()
            .write(true)
            .open(&pipe)
            .expect("somebody reads"),
    );
    assert_eq!(client.receive().map(|answer| answer.status()), Some(503));
    wait_for("recovery", || {
        proxy.get(15020, "/healthz/live").status() == 200 && proxy.get(15021, "/healthz/ready").status() == 200
    });
}

// spec: DLV-090, DLV-080, LIFE-062, LIFE-077
#[test]
fn the_status_tells_where_something_is_wrong_and_names_nobody() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    let status =
        || -> serde_json::Value { serde_json::from_str(&proxy.get(15020, "/config/status").text()).expect("JSON") };
    let good = status();
    assert_eq!(
        (&good["state"], &good["error"]),
        (&"Active".into(), &serde_json::Value::Null)
    );
    let trust = weft_bundle::pack::sha256(pod.authority.pem.as_bytes());
    assert_eq!(good["trust"], trust[..12]);
    let schema = weft_bundle::wire::SCHEMA;
    assert_eq!(good["schema"], serde_json::json!([schema, schema]));
    assert_eq!(
        (&good["draining"], &good["target"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert!(
        good["certNotAfter"]
            .as_u64()
            .is_some_and(|at| at > good["since"].as_u64().expect("a time"))
    );
    let now = weft_sidecar::reload::now();
    let since = good["since"].as_u64().expect("a time");
    assert!((now - 3600..=now).contains(&since), "{since} at {now}");
    pod.volumes.target("000000000000,000000000000,9");
    wait_for("the target", || status()["state"] == "Behind");
    assert!(
        good["key"].as_str().is_some_and(|key| key.starts_with("echo-")),
        "{good}"
    );
    assert!(
        good["active"]["cfg"]
            .as_str()
            .is_some_and(|revision| revision.len() == 12)
    );

    let wrong = client_bundle("http", "").replace("protocol: http}", "protocol: http, http: hidden-table}");
    pod.volumes.configure(&wrong);
    wait_for("the refusal", || status()["state"] == "Rejected");
    let bad = status();
    assert_eq!(bad["error"], "invalid bundle.yaml");
    assert_eq!(bad["active"], good["active"], "the last good one stays");
    let dump = proxy.get(15000, "/config_dump?section=bootstrap").text();
    assert!(dump.contains("hidden-table"), "the admin port tells in full: {dump}");
    let rejected = || {
        let metrics = proxy.get(15020, "/stats/prometheus").text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("weft_config_rejected_total{reason=\"invalid\"}"));
        line.map(|line| line.rsplit(' ').next().unwrap_or_default().to_owned())
    };
    assert_eq!(rejected().as_deref(), Some("1"));
    // The same again, in a new directory.
    for n in 0..3 {
        pod.volumes.configure(&wrong);
        pod.volumes.target(&format!("000000000000,000000000000,{n}"));
        wait_for("the target", || status()["target"]["cfg"] == "000000000000");
    }
    support::pause(Duration::from_millis(300));
    assert_eq!(rejected().as_deref(), Some("1"));
    assert_eq!(proxy.log().matches("configuration refused").count(), 1);
    assert_eq!(pod.call(), Some(200));
    assert_eq!(proxy.post(15000, "/drain_listeners").status(), 200);
    assert_eq!(status()["draining"], true);
}

// spec: LIFE-065
#[test]
fn the_admin_port_tells_what_workers_know_of_each_endpoint() {
    let app = App::new(std::sync::Arc::new(|seen, stream| {
        if seen.head.contains("/held") {
            let _ = std::io::Read::read(stream, &mut [0]);
            return false;
        }
        std::io::Write::write_all(stream, b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").is_ok()
    }));
    let pod = Pod::new(&app);
    let policy = "policy: {outlier: {consecutive5xx: 1, maxEjectionPercent: 100}}}";
    let bundle = client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, {policy}"));
    pod.volumes.configure(&bundle);
    let proxy = pod.start(&[], &[]).ready();
    let row = || -> serde_json::Value {
        let text = proxy.get(15000, "/clusters?format=json").text();
        let rows: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        rows[0].clone()
    };
    let expected = |busy: u8, ejected: bool| {
        let row = row();
        let line = format!("::rq_active={busy}::");
        let text = proxy.get(15000, "/clusters").text();
        row["activeRequests"] == busy
            && row["ejected"] == ejected
            && text.contains(&line)
            && text.contains(&format!("::ejected={ejected}\n"))
    };
    assert_eq!((&row()["health"], &row()["weight"]), (&"ready".into(), &1.into()));
    assert_eq!(row()["address"], app.address.to_string());
    assert!(expected(0, false), "{}", row());
    let mut held = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    held.send("GET http://echo/held HTTP/1.1\r\nHost: echo\r\n\r\n");
    wait_for("the request", || expected(1, false));
    assert_eq!(pod.call(), Some(500));
    wait_for("the ejection", || expected(1, true));
    drop(held);
    wait_for("its end", || expected(0, true));
}

// spec: LIFE-010, LIFE-012
#[test]
fn an_expired_certificate_is_a_reason_not_to_be_ready_and_none_to_leave_a_valid_one() {
    let pod = Pod::new(&App::echo());
    let now = std::time::SystemTime::now;
    let valid = |from: std::time::SystemTime, to: std::time::SystemTime| {
        let mut params = support::leaf(&support::spiffe_id("app/client"));
        (params.not_before, params.not_after) = (from.into(), to.into());
        let (leaf, key) = pod.authority.sign(&params);
        pod.volumes.identify_with(&leaf, &key, &pod.authority.pem);
    };
    let hour = Duration::from_secs(3600);
    valid(now() - hour, now() + Duration::from_secs(5));
    let proxy = pod.start(&[], &[]).ready();
    for port in [15020, 15021] {
        wait_for("its end", || {
            let answer = proxy.get(port, "/healthz/ready");
            answer.status() == 503 && answer.text() == "certificate expired\n"
        });
    }
    pod.volumes.identify(&pod.authority, "app/client");
    wait_for("another one", || proxy.is_ready());
    let refused = |count: u8| {
        let line = format!("weft_cert_reload_total{{result=\"expired\"}} {count}\n");
        wait_for("the refusal", || {
            proxy.get(15020, "/stats/prometheus").text().contains(&line)
        });
        assert!(proxy.is_ready());
    };
    valid(now() - hour, now() - Duration::from_secs(60));
    refused(1);
    // One that will be valid later is no better.
    valid(now() + hour, now() + hour * 2);
    refused(2);
}

// spec: LIFE-037, LIFE-012
#[test]
fn a_proxy_that_loses_a_listener_ends_with_3() {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pod = Pod::new(&App::echo());
    let mut proxy = pod.start(&["--concurrency", "1"], &[]).ready();
    let id = i32::try_from(proxy.child.id()).expect("an id");
    let process = pidfd_open(Pid::from_raw(id).expect("an id"), PidfdFlags::empty()).expect("the process lives");
    // Its own listener, shut down from outside: the kernel accepts nothing there any more.
    let listener = (0..256).find_map(|number| {
        let descriptor = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        let socket = socket2::Socket::from(descriptor);
        let is_it = socket.is_listener().ok()? && socket.local_addr().ok()?.as_socket() == Some(pod.front);
        is_it.then_some(socket)
    });
    listener
        .expect("a listener")
        .shutdown(std::net::Shutdown::Both)
        .expect("shut down");
    assert_eq!(proxy.wait(), Some(3));
}

// spec: LIFE-061, LIFE-071, LIFE-079, LIFE-078
#[test]
fn what_changes_something_needs_post_and_a_local_peer() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    for path in ["/drain", "/quitquitquit"] {
        let answer = proxy.get(15020, path);
        assert_eq!(
            (answer.status(), answer.field("allow").as_deref()),
            (405, Some("POST")),
            "{path}"
        );
    }
    for path in [
        "/drain_listeners",
        "/healthcheck/fail",
        "/reload",
        "/logging",
        "/reset_counters",
        "/quitquitquit",
    ] {
        assert_eq!(proxy.get(15000, path).status(), 405, "{path}");
    }
    let mut foreign = Client::connect(SocketAddr::new(pod.address, 15000));
    foreign.send("GET /ready HTTP/1.1\r\nHost: evil.example:15000\r\n\r\n");
    assert_eq!(foreign.receive().map(|answer| answer.status()), Some(403));
    assert_eq!(proxy.get(15021, "/stats/prometheus").status(), 404);
    assert_eq!(proxy.get(15021, "/healthz/live").status(), 404);
    assert!(proxy.is_ready());
    assert_eq!(proxy.post(15000, "/drain_listeners?graceful").status(), 200);
    assert!(!proxy.is_ready());
}

// spec: LIFE-063, LIFE-064, LIFE-072, LIFE-075, LIFE-014, LIFE-015, LIFE-080, PROM-001
#[test]
fn metrics_are_served_merged_and_filtered() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let scraped = App::answering(|_| "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\napp_things 42".into());
    let scrape = format!("{{\"scrape\": \"true\", \"port\": \"{}\"}}", scraped.address.port());
    // The application's port is asked on loopback, where nobody listens: a broken one.
    let proxy = pod.start(&[], &[("WEFT_PROMETHEUS_SCRAPE", &scrape)]).ready();
    assert_eq!(pod.call(), Some(200));
    // A request is recorded when its last byte has been sent: its answer may be read before that.
    wait_for("the request's record", || {
        proxy
            .get(15090, "/stats/prometheus")
            .text()
            .contains("istio_requests_total{")
    });
    for (port, path) in [
        (15000, "/stats/prometheus"),
        (15020, "/stats/prometheus"),
        (15020, "/metrics"),
        (15090, "/stats/prometheus"),
    ] {
        let answer = proxy.get(port, path);
        assert_eq!(answer.status(), 200);
        assert!(
            answer
                .field("content-type")
                .is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
        );
        // A request is counted when it is over, which its client may know first.
        wait_for("the request", || {
            proxy.get(port, path).text().contains("istio_requests_total{")
        });
    }
    let merged = proxy.get(15020, "/stats/prometheus").text();
    assert!(merged.contains("weft_scrape_errors_total{target=\"app\"} "), "{merged}");
    assert!(
        !proxy
            .get(15090, "/stats/prometheus")
            .text()
            .contains("weft_scrape_errors_total")
    );

    let stats = proxy.get(15000, "/stats?filter=%5Eistio_requests").text();
    assert!(
        !stats.is_empty()
            && stats
                .lines()
                .all(|line| line.starts_with("istio_requests") && line.ends_with(": 1")),
        "{stats}"
    );
    assert!(proxy.get(15000, "/stats").text().contains("weft_task_panics_total: 0"));
    assert!(
        !proxy
            .get(15000, "/stats?usedonly")
            .text()
            .contains("weft_task_panics_total")
    );
    assert!(
        proxy
            .get(15000, "/stats?format=json&filter=connections")
            .text()
            .contains("\"name\": \"weft_downstream_connections\"")
    );
    assert_eq!(proxy.get(15000, "/stats?filter=(").status(), 400);
    assert_eq!(proxy.post(15000, "/reset_counters").status(), 200);
    let after = proxy.get(15000, "/stats/prometheus").text();
    assert!(
        !after.contains("istio_requests_total{") && after.contains("weft_memory_bytes"),
        "{after}"
    );
    assert_eq!(proxy.get(15020, "/healthz/live").text(), "OK\n");
}

/// What is wrong with a document of OpenMetrics 1.0.0; empty when nothing is.
fn flaws(document: &str) -> Vec<String> {
    let mut flaws = Vec::new();
    let (mut families, mut family, mut kind) = (std::collections::BTreeSet::new(), "", "");
    let Some(lines) = document.strip_suffix("# EOF\n") else {
        return vec!["it has no end".to_owned()];
    };
    for line in lines.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word @ ("TYPE" | "HELP")), Some(name), Some(what)) => {
                if name != family {
                    (family, kind) = (name, "unknown");
                    if !families.insert(name) {
                        flaws.push(format!("{name} is there twice"));
                    }
                }
                if word == "TYPE" {
                    kind = what;
                }
            }
            (Some("#"), ..) => flaws.push(format!("no such comment: {line}")),
            _ => {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                let suffixes: &[&str] = match kind {
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_count", "_sum"],
                    _ => &[""],
                };
                if !suffixes.iter().any(|suffix| name == format!("{family}{suffix}")) {
                    flaws.push(format!("no sample of {kind} {family}: {line}"));
                }
                let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
                if bound.is_some_and(|bound| bound != "+Inf" && !bound.contains('.')) {
                    flaws.push(format!("a bound that is no float: {line}"));
                }
            }
        }
    }
    flaws
}

// spec: LIFE-063, PROM-009
#[test]
fn who_asks_for_open_metrics_gets_it_with_what_the_application_answers() {
    const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const WISH: &str = "Accept: application/vnd.google.protobuf;q=0.9,application/openmetrics-text;version=1.0.0;q=0.8,\
                        text/plain;version=0.0.4;q=0.5\r\n";
    let local = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 0);
    let at = TcpListener::bind(local)
        .expect("listener")
        .local_addr()
        .expect("address");
    let answer = std::sync::Arc::new(std::sync::Mutex::new((OPEN, "")));
    let told = answer.clone();
    let application = App::answering_at(at, move |_| {
        let (kind, body) = *told.lock().expect("no panic");
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
    });
    let app = App::echo();
    let pod = Pod::new(&app);
    let scrape = format!("{{\"scrape\": \"true\", \"port\": \"{}\"}}", at.port());
    let proxy = pod.start(&[], &[("WEFT_PROMETHEUS_SCRAPE", &scrape)]).ready();
    assert_eq!(pod.call(), Some(200));
    wait_for("the request's record", || {
        let text = proxy.get(15090, "/stats/prometheus").text();
        text.contains("istio_requests_total{")
    });
    let fetch = |port: u16, fields: &str| {
        let host = if port == 15000 { proxy.admin } else { pod.address };
        let answer = ask(SocketAddr::new(host, port), "GET", "/stats/prometheus", fields).expect("an answer");
        assert_eq!(answer.status(), 200);
        (
            answer.field("content-type").unwrap_or_default().to_owned(),
            answer.text(),
        )
    };
    // Of the proxy alone.
    for port in [15000, 15090] {
        let (kind, text) = fetch(port, WISH);
        assert_eq!(kind, OPEN, "{port}");
        assert_eq!(flaws(&text), Vec::<String>::new(), "{port}");
        assert!(
            text.contains("\n# TYPE istio_requests counter\nistio_requests_total{"),
            "{text}"
        );
        assert!(text.contains(",le=\"1.0\"}"), "{text}");
        let (kind, text) = fetch(port, "");
        assert!(kind.starts_with("text/plain; version=0.0.4") && !text.contains("# EOF"));
    }
    // The application's is the end of one document, whoever asked.
    *answer.lock().expect("no panic") = (OPEN, "# TYPE app counter\napp_total 1 # {a=\"b\"} 1\n# EOF\n");
    for fields in [WISH, ""] {
        let (kind, text) = fetch(15020, fields);
        assert_eq!(kind, OPEN);
        assert!(text.ends_with("\napp_total 1 # {a=\"b\"} 1\n# EOF\n"), "{text}");
        assert_eq!((flaws(&text), text.matches("# EOF").count()), (Vec::new(), 1));
    }
    let asked = |head: String| {
        let accept = head
            .lines()
            .find_map(|line| line.strip_prefix("accept: ").map(str::to_owned));
        accept.unwrap_or_default()
    };
    assert_eq!(asked(application.last().head), "");
    fetch(15020, WISH);
    let accepted = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
    assert_eq!(asked(application.last().head), accepted);
    // One that has but text makes all of it text.
    *answer.lock().expect("no panic") = ("text/plain; version=0.0.4", "# TYPE app_total counter\napp_total 1\n");
    let (kind, text) = fetch(15020, WISH);
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    assert!(text.contains("# TYPE istio_requests_total counter\n") && text.ends_with("\napp_total 1\n"));
    assert!(!text.contains("# EOF") && !text.contains("weft_scrape_errors_total"));
    // What is not whole, or cannot be merged, is left out and counted.
    for (kind, body) in [(OPEN, "app 1\n"), ("application/vnd.google.protobuf", "\n\u{3}app")] {
        *answer.lock().expect("no panic") = (kind, body);
        let (kind, text) = fetch(15020, WISH);
        assert_eq!(kind, OPEN);
        assert_eq!(flaws(&text), Vec::<String>::new());
        assert!(!text.contains("app 1") && text.contains("\nweft_scrape_errors_total{target=\"app\"} "));
    }
}

/// Serves metrics as the pod's application does, at its only address.
fn scraped(answer: impl Fn() -> Option<String> + Send + Sync + 'static) -> (App, String) {
    let local = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 0);
    let listener = TcpListener::bind(local).expect("listener");
    let at = listener.local_addr().expect("address");
    drop(listener);
    let app = App::answering_at(at, move |_| match answer() {
        Some(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        None => {
            support::pause(Duration::from_secs(8));
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
    });
    let scrape = format!("{{\"scrape\": \"true\", \"port\": \"{}\"}}", at.port());
    (app, scrape)
}

// spec: LIFE-080, PROM-008, PROM-009
#[test]
fn metrics_of_the_application_are_merged_unless_they_are_late_or_too_many() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let size = std::sync::Arc::new(AtomicUsize::new(0));
    let wanted = size.clone();
    let line = "app_things{a=\"0123456789\"} 42\n";
    let (_app, scrape) = scraped(move || match wanted.load(Ordering::SeqCst) {
        usize::MAX => None,
        lines => Some(line.repeat(lines)),
    });
    let pod = Pod::new(&App::echo());
    let _proxy = pod.start(&[], &[("WEFT_PROMETHEUS_SCRAPE", &scrape)]).ready();
    let own = SocketAddr::new(pod.address, 15020);
    let fetch = |fields: &str| {
        let answer = ask(own, "GET", "/stats/prometheus", fields).expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.text()
    };
    let errors = |text: &str| {
        let found = text
            .lines()
            .find_map(|l| l.strip_prefix("weft_scrape_errors_total{target=\"app\"} "));
        found.map(str::to_owned)
    };
    size.store(3, Ordering::SeqCst);
    let text = fetch("");
    assert_eq!((text.matches(line).count(), errors(&text)), (3, None));
    // All of 10 MiB, and nothing of more.
    let most = (10 << 20) / line.len();
    size.store(most, Ordering::SeqCst);
    assert_eq!(fetch("").matches(line).count(), most);
    size.store(most + 1, Ordering::SeqCst);
    let text = fetch("");
    assert!(!text.contains("app_things") && text.contains("weft_memory_bytes"));
    assert_eq!(errors(&text).as_deref(), Some("1"));
    // No longer than its scraper waits.
    size.store(usize::MAX, Ordering::SeqCst);
    let begin = Instant::now();
    let text = fetch("X-Prometheus-Scrape-Timeout-Seconds: 1\r\n");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(errors(&text).as_deref(), Some("2"), "each is counted");
    assert!(
        text.contains("istio_agent_scrape_failures_total{type=\"application\"} 2\n"),
        "{text}"
    );
    assert!(text.contains("weft_memory_bytes"));
}

// spec: BYD-015, DLV-097, DLV-054, ID-120
#[test]
fn the_age_of_what_is_served_is_told_and_not_of_what_is_stored() {
    const PARTS: [&str; 4] = ["cfg", "ep", "cert", "trust"];
    let seconds = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_secs_f64()
    };
    let app = App::echo();
    let pod = Pod::new(&app);
    let begin = seconds();
    let proxy = pod.start(&[], &[]).ready();
    let value = |name: &str| -> f64 {
        let text = proxy.get(15020, "/stats/prometheus").text();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{name} in {text}"))
    };
    let since = |part: &str| value(&format!("weft_served_since_timestamp_seconds{{part=\"{part}\"}}"));
    let ends = || value("weft_served_not_after_timestamp_seconds");
    let next_second = || {
        let now = seconds();
        wait_for("another second", || seconds() > now + 1.0);
    };
    let first = PARTS.map(since);
    assert!(
        first.iter().all(|at| (begin.floor()..=seconds()).contains(at)),
        "{begin} {first:?}"
    );
    let not_after = ends();
    let left = value("istio_agent_cert_expiry_seconds{resource_name=\"default\"}");
    assert!((not_after - left - seconds()).abs() < 30.0, "{not_after} {left}");
    assert_eq!(value("weft_config_behind_seconds"), 0.0);

    // What is stored and refused has no age: a configuration that is none, a certificate with a key that is not its own.
    next_second();
    pod.volumes.spoil("bundle.yaml", b"workload: {");
    let id = "spiffe://cluster.local/ns/app/sa/client";
    let (leaf, key) = pod.authority.pem_pair(id);
    let (_, other) = pod.authority.pem_pair(id);
    pod.volumes.identify_with(&leaf, &other, &pod.authority.pem);
    wait_for("both refusals", || {
        proxy.get(15020, "/config/status").text().contains("Rejected") && proxy.log().contains("identity refused")
    });
    assert_eq!(PARTS.map(since), first);
    assert_eq!(ends(), not_after);

    // What is taken over is as old as that, each part by itself.
    let newer = |part: &'static str, change: &dyn Fn()| {
        let before = PARTS.map(since);
        next_second();
        change();
        wait_for(part, || {
            since(part) > before[PARTS.iter().position(|p| *p == part).expect("a part")]
        });
        for (other, at) in PARTS.iter().zip(before) {
            assert!(*other == part || since(other) == at, "{other} with {part}");
        }
    };
    newer("cert", &|| pod.volumes.identify_with(&leaf, &key, &pod.authority.pem));
    newer("cfg", &|| {
        // Other names of the trust domain make another identity of the same certificate, which is as old as before.
        let aliases = format!(
            "mesh: {{trustDomainAliases: [old.example]}}\n{}",
            client_bundle("http", "")
        );
        let activated = || proxy.log().matches("identity activated").count();
        let before = activated();
        pod.volumes.configure(&aliases);
        wait_for("the identity under other names", || activated() > before);
    });
    newer("ep", &|| {
        drop(pod.volumes.endpoints(&[app.address, SocketAddr::new(address(), 1)]))
    });
    newer("trust", &|| {
        let roots = format!("{}{}", pod.authority.pem, Authority::new().pem);
        pod.volumes.identify_with(&leaf, &key, &roots);
    });

    // Behind what the operator wrote last, longer with each second.
    pod.volumes.spoil("target-rev", b"0123456789abcdef,0123456789abcdef,1");
    wait_for("the time behind", || value("weft_config_behind_seconds") >= 2.0);
}

// spec: LIFE-069, LIFE-091, LIFE-093
#[test]
fn log_levels_change_at_run_time_and_bad_ones_change_nothing() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod
        .start(
            &[],
            &[("WEFT_LOG_LEVEL", "error,admin:info"), ("WEFT_LOG_FORMAT", "json")],
        )
        .ready();
    let listed = proxy.post(15000, "/logging").text();
    assert!(
        listed.contains("admin: info\n") && listed.contains("http: error\n"),
        "{listed}"
    );
    let answer = proxy.post(15000, "/logging?level=loud");
    assert!(
        answer.status() == 400 && answer.text().contains("critical"),
        "{}",
        answer.text()
    );
    let answer = proxy.post(15000, "/logging?nothing=debug");
    assert!(
        answer.status() == 400 && answer.text().contains("outlier"),
        "{}",
        answer.text()
    );
    assert_eq!(proxy.post(15000, "/logging").text(), listed);
    let lines = proxy.log().len();
    assert_eq!(proxy.post(15000, "/logging?admin=debug").status(), 200);
    wait_for("a line", || {
        proxy.get(15000, "/ready");
        proxy.log().len() > lines
    });
    let log = proxy.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("\"timestamp\""))
        .expect("a line");
    let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    let time = line["timestamp"].as_str().expect("a time");
    assert!(
        time.ends_with('Z') && time.split('.').nth(1).is_some_and(|part| part.len() == 7),
        "{time}"
    );
    assert!(
        proxy
            .post(15000, "/logging?paths=http:trace,tcp:off")
            .text()
            .contains("tcp: off\n")
    );
    assert_eq!(proxy.post(15000, "/logging?reset").text(), listed);
}

// spec: LIFE-095, LIFE-051, DLV-165
#[test]
fn every_activation_and_every_refusal_is_one_line() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    let revision = pod
        .volumes
        .configure(&client_bundle("http", "").replace("protocol: http}", "protocol: http, policy: {maxRequests: 3}}"));
    proxy.wait_for_config(&revision);
    wait_for("the line", || proxy.log().contains(&revision));
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains(&revision)).expect("a line");
    for part in [
        "configuration activated",
        "listeners=1",
        "hosts=1",
        "routes=0",
        "clusters=1",
        "changed_clusters=1",
        "endpoints=1",
        "elapsed_us=",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // What touches no destination changes none.
    let revision = pod.volumes.configure(
        &client_bundle("http", "")
            .replace("protocol: http}", "protocol: http, policy: {maxRequests: 3}}")
            .replace("echo.app,", "echo.app, echo.x,"),
    );
    wait_for("the next line", || proxy.log().contains(&revision));
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains(&revision)).expect("a line");
    assert!(line.contains(" changed_clusters=0 "), "{line}");
    pod.volumes.spoil("bundle.yaml", b"{}");
    wait_for("the refusal", || proxy.log().contains("configuration refused"));
    support::pause(Duration::from_millis(300));
    assert_eq!(proxy.log().matches("configuration refused").count(), 1);
}

// spec: BYD-034
#[test]
fn by_default_every_error_is_logged_and_one_of_a_hundred_of_the_rest_with_the_rate() {
    let app = App::answering(|seen| {
        let status = if seen.head.contains("/fail") {
            "500 No"
        } else {
            "200 OK"
        };
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
    });
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[]).ready();
    let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    for n in 0..220 {
        let path = if n % 20 == 10 { "fail" } else { "fine" };
        client.send(&format!("GET http://echo/{path} HTTP/1.1\r\nHost: echo\r\n\r\n"));
        assert!(client.receive().is_some(), "{n}");
    }
    let lines = |path: &str| -> Vec<String> {
        let log = proxy.access_log();
        log.lines()
            .filter(|line| line.contains(path))
            .map(str::to_owned)
            .collect()
    };
    wait_for("the errors", || lines("/fail").len() == 11);
    wait_for("the sample", || lines("/fine").len() == 3);
    assert!(
        lines("/fine").iter().all(|line| line.ends_with(" sample=1/100")),
        "{:?}",
        lines("/fine")
    );
    assert!(
        !lines("/fail").iter().any(|line| line.contains("sample=")),
        "{:?}",
        lines("/fail")
    );
}

// spec: LIFE-083, FLAG-001
#[test]
fn near_its_memory_limit_the_proxy_refuses_requests_and_says_so() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let proxy = pod.start(&[], &[("WEFT_MEMORY_LIMIT", "1048576")]).ready();
    wait_for("the pressure", || pod.call() == Some(503));
    let metrics = proxy.get(15090, "/stats/prometheus").text();
    assert!(
        metrics.contains("weft_overload_active{action=\"refuse_requests\"} 1"),
        "{metrics}"
    );
    // Counted when it is over, which its client may know first.
    wait_for("the refused request", || {
        proxy
            .get(15090, "/stats/prometheus")
            .text()
            .contains("response_flags=\"UO\"")
    });
    assert!(proxy.is_ready(), "its own ports answer");
    drop(proxy);
    let proxy = pod.start(&[], &[("WEFT_MEMORY_LIMIT", "1073741824")]).ready();
    assert_eq!(pod.call(), Some(200));
    assert!(
        proxy
            .get(15090, "/stats/prometheus")
            .text()
            .contains("weft_overload_active{action=\"refuse_requests\"} 0")
    );
}

// spec: LIFE-087
#[test]
fn nearly_all_descriptors_used_refuses_new_connections_and_keeps_the_others() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let _proxy = Wrapped::start(
        &["bash", "-c", "ulimit -n 200 && exec \"$@\"", "bash"],
        &pod.volumes,
        pod.address,
        &["--http-proxy", &pod.front.to_string()],
    );
    let ready = || {
        ask(SocketAddr::new(pod.address, 15021), "GET", "/healthz/ready", "")
            .is_some_and(|answer| answer.status() == 200)
    };
    wait_for("readiness", ready);
    let mut first = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    first.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(first.receive().map(|answer| answer.status()), Some(200));
    let held: Vec<TcpStream> = (0..250).filter_map(|_| TcpStream::connect(pod.front).ok()).collect();
    wait_for("a refusal", || pod.call().is_none());
    first.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert_eq!(
        first.receive().map(|answer| answer.status()),
        Some(200),
        "existing connections go on"
    );
    assert!(ready(), "its own ports answer");
    drop(held);
    wait_for("recovery", || pod.call() == Some(200));
}

// spec: LIFE-087
#[test]
fn the_limit_of_descriptors_is_raised_as_far_as_it_may_be() {
    use nix::sys::resource::{Resource, getrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let pod = Pod::new(&App::echo());
    let proxy = Wrapped::start(
        &["bash", "-c", "ulimit -Sn 128 && exec \"$@\"", "bash"],
        &pod.volumes,
        pod.address,
        &["--http-proxy", &pod.front.to_string()],
    );
    let own = SocketAddr::new(pod.address, 15021);
    wait_for("readiness", || {
        ask(own, "GET", "/healthz/ready", "").is_some_and(|answer| answer.status() == 200)
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.id())).expect("the limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("a limit");
    let soft = line.split_whitespace().nth(3).expect("a number");
    assert_eq!(soft, hard.to_string(), "{line}");
}

// spec: LIFE-087, BYD-011
#[test]
fn a_proxy_without_descriptors_holds_nothing_against_who_it_cannot_call() {
    // Each answer ends its connection, so that each request needs a new one.
    let app = App::new(std::sync::Arc::new(|_, stream| {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = std::io::Write::write_all(stream, answer);
        false
    }));
    let pod = Pod::new(&app);
    let policy = "{outlier: {consecutive5xx: 1, consecutiveGatewayErrors: 1, maxEjectionPercent: 100}}";
    pod.volumes.configure(&format!(
        "mesh: {{vipFallback: false}}\n{}",
        client_bundle("http", "").replace("protocol: http}", &format!("protocol: http, policy: {policy}}}"))
    ));
    let proxy = pod.start(&[], &[]).ready();
    let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
    let mut call = || {
        client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
        client.receive().expect("an answer")
    };
    assert_eq!(call().status(), 200);
    let limit = |soft: &str| {
        let id = proxy.child.id().to_string();
        let said = support::run("prlimit", "util-linux", &["--pid", &id, &format!("--nofile={soft}:")]);
        assert!(said.is_empty(), "{said}");
    };
    // Fewer than it has open: there is none for a new connection.
    limit("4");
    for _ in 0..3 {
        let answer = call();
        assert!(
            answer.status() == 503 && answer.text().contains("local connection failure"),
            "{}",
            answer.text()
        );
    }
    limit("1024");
    assert_eq!(
        call().status(),
        200,
        "at once: the endpoint was neither set aside nor ejected"
    );
}

// spec: LIFE-053
#[test]
fn replicas_agree_on_what_follows_from_the_request_and_not_on_what_is_random() {
    const CALLS: usize = 24;
    let apps = ["one", "two"].map(|name| {
        App::answering(move |_| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
    });
    let pods = [Pod::empty(), Pod::empty()];
    let chosen = |policy: &str| {
        pods.each_ref().map(|pod| {
            let port = format!("protocol: http, policy: {policy}}}");
            let bundle = client_bundle("http", "").replace("protocol: http}", &port);
            pod.volumes.configure(&bundle);
            pod.volumes.endpoints(&apps.each_ref().map(|app| app.address));
            let _proxy = pod.start(&["--concurrency", "1"], &[]).ready();
            let mut client = Client::over(TcpStream::connect(pod.front).expect("the proxy listens"));
            let answers = (0..CALLS).map(|n| {
                client.send(&format!(
                    "GET http://echo/ HTTP/1.1\r\nHost: echo\r\nX-Key: {n}\r\n\r\n"
                ));
                client.receive().expect("an answer").text()
            });
            answers.collect::<Vec<_>>()
        })
    };
    let [first, second] = chosen("{loadBalancer: {consistentHash: {key: {header: x-key}}}}");
    assert_eq!(first, second);
    assert!(first.iter().any(|name| name == "one") && first.iter().any(|name| name == "two"));
    let [first, second] = chosen("{loadBalancer: random}");
    assert_ne!(first, second, "each process draws for itself");
}

// spec: LIFE-056
#[test]
fn a_native_sidecar_that_is_told_to_quit_drains_and_stays() {
    let (target, _runs) = stoppable();
    let (pod, flag, _) = serving_pod(target);
    let environment = [("WEFT_NATIVE_SIDECAR", "true")];
    let mut proxy = Process::start(&pod.volumes, pod.address, &["--inbound", &flag], &environment).ready();
    for port in [15020, 15000] {
        let answer = proxy.post(port, "/quitquitquit");
        assert!(answer.status() == 200 && answer.text() == "OK", "{}", answer.text());
    }
    assert!(proxy.get(15021, "/healthz/ready").text().contains("draining"));
    // It has been asked for the end twice, and would have ended at once.
    support::pause(Duration::from_secs(2));
    assert!(proxy.runs());
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait(), Some(0));
}

// spec: NET-012
#[test]
fn a_port_that_somebody_else_holds_is_told_and_waited_for() {
    let app = App::echo();
    let pod = Pod::new(&app);
    let holder = TcpListener::bind(pod.front).expect("listener");
    let proxy = pod.start(&[], &[]);
    wait_for("the message", || {
        proxy.log().contains("address in use") && proxy.log().contains(":4000")
    });
    assert!(!proxy.is_ready());
    drop(holder);
    let _proxy = proxy.ready();
    assert_eq!(pod.call(), Some(200));
}

// spec: LIFE-076, INJ-130, INJ-142
#[test]
fn probes_of_the_application_are_made_on_its_behalf() {
    let app = App::echo();
    let local = App::bound((std::net::Ipv4Addr::LOCALHOST.into(), 0), || {});
    let pod = Pod::new(&app);
    let port = local.address.port();
    let probes = format!(
        "{{\"/app-health/web/readyz\": {{\"httpGet\": {{\"port\": {port}, \"path\": \"/fine\", \"httpHeaders\": \
         [{{\"name\": \"X-Probe\", \"value\": \"1\"}}]}}, \"timeoutSeconds\": 8}}, \"/app-health/web/livez\": \
         {{\"tcpSocket\": {{\"port\": 1}}, \"timeoutSeconds\": 8}}, \"/app-lifecycle/web/prestopz\": {{\"httpGet\": \
         {{\"port\": {port}, \"path\": \"/stop\"}}, \"timeoutSeconds\": 8}}}}"
    );
    let proxy = pod.start(&[], &[("WEFT_KUBE_APP_PROBERS", &probes)]);
    wait_for("the status port", || {
        proxy.ask("GET", 15020, "/healthz/ready").is_some()
    });
    assert_eq!(proxy.get(15020, "/app-health/web/readyz").status(), 200);
    let seen = local.last();
    assert!(
        seen.head.starts_with("GET /fine HTTP/1.1") && seen.field("x-probe").as_deref() == Some("1"),
        "{}",
        seen.head
    );
    assert_eq!(
        proxy.get(15020, "/app-health/web/livez").status(),
        500,
        "nobody listens on port 1"
    );
    assert_eq!(proxy.get(15020, "/app-health/other/readyz").status(), 400);
    assert_eq!(proxy.get(15020, "/app-lifecycle/web/prestopz").status(), 200);
    assert!(
        local.last().head.starts_with("GET /stop HTTP/1.1"),
        "{}",
        local.last().head
    );
    assert_eq!(proxy.get(15021, "/app-health/web/readyz").status(), 404);
}
