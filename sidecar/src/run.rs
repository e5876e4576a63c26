//! `run`: from arguments to a serving process, and to its end (spec: lifecycle.md A, B, C).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::arguments::{Form, Interception, Run};
use crate::dns;
use crate::io;
use crate::locality::Here;
use crate::log::LogControl;
use crate::overload;
use crate::probe::Probes;
use crate::reload::{Reload, Volumes};
use crate::restart::Started;
use crate::shared::{DrainPhase, Listener, Pod, Role, Settings, Shared};
use crate::status::{Port, Status};
use crate::telemetry::Telemetry;
use crate::worker;

/// Serves until told to stop.
///
/// # Errors
/// What keeps the proxy from starting.
pub fn run(arguments: &Run, log: LogControl) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit();
    for name in crate::arguments::unknown_variables() {
        warn!(name, "unknown environment variable");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(arguments, log))
}

async fn serve(arguments: &Run, log: LogControl) -> anyhow::Result<ExitCode> {
    if arguments.is_transparent() {
        crate::io::try_transparent().context("interception mode TPROXY needs the capability NET_ADMIN")?;
    }
    let settings = settings(arguments);
    let telemetry = Telemetry::new(settings.workers, &arguments.cluster_id, arguments.most_series());
    let telemetry = Arc::new(telemetry);
    let shared = Arc::new(Shared::new(settings, telemetry.clone()));
    let volumes = Volumes {
        config: arguments.config_dir.clone(),
        identity: arguments.identity_dir.clone(),
        credentials: arguments.credentials_dir.clone(),
        state: arguments.state_dir.clone(),
        key: arguments.config_key.clone(),
    };
    let reload = Arc::new(Reload::new(shared.clone(), volumes));
    let scrape = std::env::var("WEFT_PROMETHEUS_SCRAPE").unwrap_or_default();
    let application = if arguments.is_redirected() {
        arguments.pod_ips.first().copied()
    } else {
        None
    };
    let from_proxy = arguments.is_redirected() && arguments.interception_mode != Interception::None;
    let (quit, mut quitting) = tokio::sync::watch::channel(false);
    let status = Arc::new(Status {
        shared: shared.clone(),
        reload: reload.clone(),
        probes: Probes::new(
            &arguments.probes,
            &scrape,
            application,
            from_proxy,
            arguments.proxy_mark,
        ),
        listening: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        quit,
        started: Started::of(arguments),
        native: arguments.native_sidecar,
        begin: Instant::now(),
        workers: std::sync::OnceLock::new(),
        log,
        admin_requests: Arc::new(tokio::sync::Semaphore::new(crate::status::ADMIN_REQUESTS)),
    });
    let at = |port| SocketAddr::new(bind(arguments), port);
    status.serve(Port::Status, at(arguments.status_port)).await?;
    status.serve(Port::Health, at(arguments.health_port)).await?;
    for address in arguments.admin_bind.map_or_else(io::loopbacks, |address| vec![address]) {
        status
            .serve(Port::Admin, SocketAddr::new(address, arguments.admin_port))
            .await?;
    }
    let names = tokio::spawn(serve_names(arguments.resolv_conf.clone(), shared.clone()));
    let watched = reload.clone();
    std::thread::Builder::new()
        .name("reload".to_owned())
        .spawn(move || watched.watch())?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // As first process of a container the default, to end, does not hold.
    let mut abort = signal(SignalKind::quit())?;
    let begun = Instant::now();
    let mut told = None;
    let complete = async {
        loop {
            if reload.is_complete() {
                return;
            }
            if told.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(10)) {
                info!(
                    key = arguments.config_key,
                    missing = status.unready().join("; "),
                    "waiting for configuration"
                );
                told = Some(Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = complete => {}
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        _ = quitting.wait_for(|q| *q) => return Ok(ExitCode::SUCCESS),
        _ = abort.recv() => return Ok(ExitCode::from(128 + 3)),
    }
    if arguments.is_redirected()
        && let Some(port) = shared
            .current
            .load()
            .as_ref()
            .and_then(|s| s.config.mesh.http_proxy_port)
    {
        let _ = shared.http_proxy.set(port);
    }
    let opened = async {
        names.await??;
        loop {
            // It makes a runtime of its own for a moment, which must not be dropped on this one's thread.
            let starting = shared.clone();
            let workers = tokio::task::spawn_blocking(move || worker::start(&starting)).await?;
            match workers {
                // Whoever holds the port may leave it; until then the pod is not ready (NET-012).
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                    tracing::error!(error = %e, "address in use");
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                workers => return workers.context("open the listeners"),
            }
        }
    };
    let workers = tokio::select! {
        workers = opened => workers?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        _ = abort.recv() => return Ok(ExitCode::from(128 + 3)),
    };
    let _ = status.workers.set(workers);
    status.serve(Port::Metrics, at(arguments.metrics_port)).await?;
    overload::forget_executed();
    status.listening.store(true, Ordering::Release);
    let watching = tokio::spawn(watch_readiness(status.clone(), begun));
    let configured = tokio::spawn(follow_configuration(shared.clone()));
    let tended = tokio::spawn(tend_telemetry(shared.clone()));

    let stop = loop {
        tokio::select! {
            _ = terminate.recv() => break Stop::Signal(15),
            _ = interrupt.recv() => break Stop::Signal(2),
            _ = hangup.recv() => reload.read_all(),
            _ = quitting.wait_for(|q| *q) => break Stop::Quit,
            _ = abort.recv() => return Ok(ExitCode::from(128 + 3)),
            () = shared.lost.notified() => {
                status.listening.store(false, Ordering::Release);
                return Ok(ExitCode::from(LOST_LISTENER));
            }
        }
    };
    let told = Instant::now();
    let was_draining = *shared.drain.borrow() != DrainPhase::Serving;
    status.drain();
    let end = wait_for_application(arguments, &shared, was_draining, stop == Stop::Quit);
    let second = tokio::select! {
        () = end => None,
        _ = terminate.recv() => Some(15),
        _ = interrupt.recv() => Some(2),
        _ = abort.recv() => Some(3),
    };
    configured.abort();
    tended.abort();
    watching.abort();
    shared.drain.send_replace(DrainPhase::Closing);
    if second.is_none() && stop != Stop::Quit {
        let served = async {
            while shared.connections.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let most = linger(arguments, was_draining, told.elapsed());
        drop(tokio::time::timeout(most, served).await);
    }
    telemetry.flush();
    if let Some(signal) = second {
        warn!("told to stop a second time");
        return Ok(ExitCode::from(128 + signal));
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Begins to answer queries for names, where they are captured. Until the configuration is there all are forwarded
/// (NET-095).
async fn serve_names(resolv_conf: PathBuf, shared: Arc<Shared>) -> anyhow::Result<()> {
    let addresses = &shared.settings.dns;
    if addresses.is_empty() {
        return Ok(());
    }
    let servers = dns::servers(&resolv_conf).unwrap_or_else(|e| {
        warn!(file = %resolv_conf.display(), error = %e, "no server for names outside of the mesh");
        Vec::new()
    });
    loop {
        match dns::Sockets::open(addresses) {
            // As with the other ports of NET-012.
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                tracing::error!(error = %e, "address in use");
                tokio::time::sleep(PORT_PAUSE).await;
            }
            sockets => {
                info!(?addresses, ?servers, "DNS capture");
                return dns::start(shared.clone(), sockets?, servers).context("start the resolver");
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Signal(u8),
    Quit,
}

/// Memory that activations freed is given back this long after the last one: in a busy time it would only be asked for again,
/// and a configuration that was replaced is freed a moment later.
const REST: Duration = Duration::from_secs(5);

/// Ends series of peers that are gone, and warns of budgets that are used up (CARD-002, CARD-003).
async fn tend_telemetry(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(TEND).await;
        let endpoints = shared.endpoints.load_full();
        shared.telemetry.tend(tokio::time::Instant::now(), &endpoints);
    }
}

/// Hands the access log's settings of each configuration to telemetry, and looks at memory. Parsing takes several times the
/// memory of what it results in.
async fn follow_configuration(shared: Arc<Shared>) {
    let mut revision = None;
    let mut endpoints = None;
    let mut rest = None;
    let mut starting = true;
    let mut looked = Instant::now();
    shared.overload.look();
    loop {
        if let Some(snapshot) = shared.current.load_full()
            && revision.as_ref() != Some(&snapshot.revision)
        {
            shared.telemetry.configure(snapshot.config.mesh.access_log.as_ref());
            revision = Some(snapshot.revision.clone());
            rest = Some(Instant::now() + REST);
        }
        let serial = shared.endpoints.load().serial();
        if endpoints.replace(serial) != Some(serial) {
            rest = Some(Instant::now() + REST);
        }
        if rest.take_if(|rest| *rest <= Instant::now()).is_some() {
            overload::give_back();
            if std::mem::take(&mut starting) {
                overload::forget_executed();
            }
        }
        if looked.elapsed() >= Duration::from_secs(1) {
            looked = Instant::now();
            shared.overload.look();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Tells each change of readiness once (LIFE-016).
async fn watch_readiness(status: Arc<Status>, begun: Instant) {
    let mut known: Option<Vec<&'static str>> = None;
    loop {
        let unready = status.unready();
        if known.as_ref() != Some(&unready) {
            if unready.is_empty() {
                info!(elapsed_ms = begun.elapsed().as_millis() as u64, "ready");
            } else {
                warn!(reason = unready.join("; "), "not ready");
            }
            known = Some(unready);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// After a drain the application has left already (LIFE-023). Without one it may still be at work: the proxy stays
/// until its ports refuse connections and none is open (LIFE-024), or for the time that is set, in any case at most for
/// the grace period less a second (LIFE-026).
async fn wait_for_application(arguments: &Run, shared: &Shared, was_draining: bool, quit: bool) {
    if quit || was_draining {
        return;
    }
    let begin = tokio::time::Instant::now();
    let most = Duration::from_secs(arguments.grace_seconds.saturating_sub(1));
    let cut = |wanted: Duration| {
        if wanted > most {
            warn!(?wanted, ?most, "the drain ends a second before the pod's grace period");
        }
        wanted.min(most)
    };
    let is_idle = || shared.connections.load(Ordering::Relaxed) == 0;
    if arguments.exit_on_zero_connections {
        tokio::time::sleep(cut(arguments.minimum_drain)).await;
        // Its end is that of the last connection, or the kubelet's (LIFE-025).
        while !is_idle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        return;
    }
    if let Some(seconds) = arguments.termination_drain_seconds {
        return tokio::time::sleep(cut(Duration::from_secs(seconds))).await;
    }
    let ports = application_ports(arguments);
    loop {
        let mut open = false;
        for port in &ports {
            // As its own connections to the application, so that the redirect does not bring them back here.
            open |= crate::io::dial(*port, shared.settings.dial_application()).await.is_ok();
        }
        let is_over = !open && is_idle() && !ports.is_empty();
        if is_over || begin.elapsed() >= most {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How long what was accepted may go on at the end. After a drain the application has left, and two seconds are all that
/// there may be before SIGKILL (LIFE-023, LIFE-029); without one it comes at the end of the grace period (LIFE-026).
fn linger(arguments: &Run, was_draining: bool, waited: Duration) -> Duration {
    if was_draining {
        return LAST_SECOND;
    }
    let left = Duration::from_secs(arguments.grace_seconds).saturating_sub(waited);
    worker::LINGER.min(left.saturating_sub(LAST_SECOND / 2))
}

/// Where the application listens, by what the pod declares.
fn application_ports(arguments: &Run) -> Vec<SocketAddr> {
    if !arguments.inbound.is_empty() {
        return arguments.inbound.iter().map(|explicit| explicit.target).collect();
    }
    let declared: Vec<serde_json::Value> = serde_json::from_str(&arguments.pod_ports).unwrap_or_default();
    let address = arguments
        .pod_ips
        .first()
        .copied()
        .unwrap_or(std::net::IpAddr::from([127, 0, 0, 1]));
    let number = |port: &serde_json::Value| port.get("containerPort").or_else(|| port.get("port"))?.as_u64();
    let own = [arguments.status_port, arguments.health_port, arguments.metrics_port];
    declared
        .iter()
        .filter_map(number)
        .filter_map(|n| u16::try_from(n).ok())
        .filter(|n| !own.contains(n))
        .map(|n| SocketAddr::new(address, n))
        .collect()
}

fn settings(arguments: &Run) -> Settings {
    let mut listeners = Vec::new();
    if arguments.is_redirected() {
        listeners.extend(io::loopbacks().into_iter().map(|loopback| Listener {
            address: SocketAddr::new(loopback, arguments.outbound_port),
            role: Role::Outbound,
        }));
        let inbound = SocketAddr::new(bind(arguments), arguments.inbound_port);
        listeners.push(Listener {
            address: inbound,
            role: Role::Inbound,
        });
    }
    for explicit in &arguments.inbound {
        let role = Role::Explicit {
            target: explicit.target,
            port: explicit.port,
        };
        listeners.push(Listener {
            address: explicit.listen,
            role,
        });
    }
    for fixed in &arguments.outbound {
        let role = Role::Fixed {
            destination: fixed.dialled,
        };
        listeners.push(Listener {
            address: fixed.listen,
            role,
        });
    }
    if let Some(address) = arguments.http_proxy {
        listeners.push(Listener {
            address,
            role: Role::HttpProxy,
        });
    }
    Settings {
        workers: arguments.workers(),
        listeners,
        dns: if arguments.captures_names() {
            let at = |address| SocketAddr::new(address, arguments.dns_port);
            io::loopbacks().into_iter().map(at).collect()
        } else {
            Vec::new()
        },
        addresses: if arguments.is_redirected() {
            arguments.pod_ips.clone()
        } else {
            Vec::new()
        },
        mark: arguments.proxy_mark,
        inbound_source: arguments.is_redirected(),
        transparent: arguments.is_transparent().then_some(arguments.tproxy_mark),
        memory_limit: arguments.memory_limit.filter(|limit| *limit > 0),
        gateway: (arguments.form == Form::Gateway).then(|| bind(arguments)),
        pod: Pod {
            name: arguments.pod_name.clone(),
            namespace: arguments.pod_namespace.clone(),
            address: arguments.pod_ips.first().map(ToString::to_string).unwrap_or_default(),
            cluster_id: arguments.cluster_id.clone(),
        },
        here: {
            let labels = std::fs::read_to_string(arguments.podinfo_dir.join("labels")).unwrap_or_default();
            Here::of_pod(&labels, &arguments.node_name)
        },
    }
}

/// All addresses of both families that the pod has (NET-124).
fn bind(arguments: &Run) -> IpAddr {
    let all = || {
        if io::has_ipv6() {
            IpAddr::from(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        }
    };
    arguments.bind.unwrap_or_else(all)
}

/// Exit code of a process that lost a listener (LIFE-037).
const LOST_LISTENER: u8 = 3;

/// What a process has left that is told to end after a drain.
const LAST_SECOND: Duration = Duration::from_secs(1);

/// How often series are looked after.
const TEND: Duration = Duration::from_secs(5);
/// Pause before a port that somebody else holds is tried again.
const PORT_PAUSE: Duration = Duration::from_secs(1);

/// Connections need two descriptors each (LIFE-087).
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
