//! Runs the containers of one pod as processes: init containers, native sidecars, probes, restarts, the end
//! (LOC-014..LOC-016).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::dns::Serving;
use super::mount::Mount;
use super::namespace::Namespace;
use super::output::Output;
use super::probe;
use super::process::{command_in, copy_lines, describe, kill_group, spawn_in, terminate};

/// Everything that a pod's processes need; made when the pod is admitted, constant for its life.
#[derive(Debug)]
pub struct Sandbox {
    /// Pod after admission.
    pub pod: Pod,
    /// `namespace/name`.
    pub id: String,
    /// Address.
    pub address: IpAddr,
    /// Ports of 127.0.0.1 that probes are made at, where nothing listens on the pod's address.
    pub probed: Option<BTreeMap<u16, u16>>,
    /// Network namespace; `None` in loopback mode.
    pub network: Option<Namespace>,
    /// Its resolver.
    pub names: Option<Serving>,
    /// Directory with the pod's resolver files; `None` in loopback mode.
    pub etc: Option<PathBuf>,
    /// Where probes are made from: a runtime that reaches the pod.
    pub reach: tokio::runtime::Handle,
    /// Program, arguments and environment of each container.
    pub programs: BTreeMap<String, Program>,
    /// First wait after an exit (LOC-014).
    pub restart_backoff: Duration,
    /// Longest wait for the end of a pod.
    pub grace_limit: Duration,
}

/// What a container runs.
#[derive(Debug, Clone)]
pub struct Program {
    /// Command line.
    pub command: Vec<String>,
    /// Environment, complete.
    pub environment: Vec<(String, String)>,
    /// It is Weft's own and keeps the right to administer the pod's network.
    pub net_admin: bool,
    /// User and group, instead of the run's.
    pub user: Option<u32>,
    /// Volumes, where the pod has mounts of its own.
    pub mounts: Vec<Mount>,
}

/// What the run is told about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Init containers are at work, or a sidecar is not ready.
    Starting(String),
    /// All containers run; ready or not, and why not.
    Running {
        /// Every readiness probe succeeds.
        ready: bool,
        /// What is not ready.
        reason: String,
    },
    /// A container ended and waits for its restart.
    BackOff(String),
    /// All its processes have ended.
    Ended,
}

/// A running pod.
#[derive(Debug)]
pub struct Handle {
    stop: watch::Sender<bool>,
}

impl Handle {
    /// Ends the pod: hooks, SIGTERM, and SIGKILL after its grace period. [`Phase::Ended`] follows.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Starts a pod. Its phases are sent with its id.
pub fn start(sandbox: Arc<Sandbox>, output: Output, tell: mpsc::UnboundedSender<(String, Phase)>) -> Handle {
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let id = sandbox.id.clone();
        let run = Run {
            sandbox,
            output,
            tell: tell.clone(),
            stopping,
        };
        run.live().await;
        let _ = tell.send((id, Phase::Ended));
    });
    Handle { stop }
}

#[derive(Clone)]
struct Run {
    sandbox: Arc<Sandbox>,
    output: Output,
    tell: mpsc::UnboundedSender<(String, Phase)>,
    stopping: watch::Receiver<bool>,
}

/// State of one long-running container, as its task reports it.
#[derive(Debug, Clone, Default)]
struct State {
    running: bool,
    restarting: bool,
    started: bool,
    ready: bool,
    reason: String,
}

impl Run {
    async fn live(self) {
        let spec = self.sandbox.pod.spec.clone().unwrap_or_default();
        let mut sidecars: Vec<Lasting> = Vec::new();
        let mut stopping = self.stopping.clone();
        for container in spec.init_containers.iter().flatten() {
            self.tell(Phase::Starting(format!("init container {}", container.name)));
            let is_sidecar = container.restart_policy.as_deref() == Some("Always");
            let go = async {
                if is_sidecar {
                    let lasting = self.keep(container.clone());
                    let mut state = lasting.state.clone();
                    // The receiver lives as long as the task, which outlasts this wait.
                    let _ = state.wait_for(|s| s.started).await;
                    Some(lasting)
                } else {
                    self.once(container).await;
                    None
                }
            };
            tokio::select! {
                lasting = go => sidecars.extend(lasting),
                _ = stopping.wait_for(|s| *s) => break,
            }
        }
        let mut containers: Vec<Lasting> = Vec::new();
        if !*stopping.borrow() {
            containers = spec.containers.iter().map(|c| self.keep(c.clone())).collect();
            self.report(&sidecars, &containers, &mut stopping).await;
        }
        self.end(sidecars, containers).await;
    }

    /// Tells every change of readiness until the pod is to stop.
    async fn report(&self, sidecars: &[Lasting], containers: &[Lasting], stopping: &mut watch::Receiver<bool>) {
        let mut changes = JoinSet::new();
        let watch_for_change = |mut state: watch::Receiver<State>| async move {
            let alive = state.changed().await.is_ok();
            (alive, state)
        };
        for lasting in sidecars.iter().chain(containers) {
            changes.spawn(watch_for_change(lasting.state.clone()));
        }
        let mut last = None;
        loop {
            let states = sidecars
                .iter()
                .chain(containers)
                .map(|l| (l.name.clone(), l.state.borrow().clone()));
            let states: Vec<_> = states.collect();
            let waiting = states.iter().find(|(_, s)| !s.running);
            let phase = match waiting {
                Some((name, state)) if state.restarting => {
                    Phase::BackOff(format!("container {name}: {}", state.reason))
                }
                Some((name, _)) => Phase::Starting(format!("container {name}")),
                None => {
                    let unready = states.iter().find(|(_, s)| !s.ready);
                    let reason = unready
                        .map(|(n, s)| format!("container {n}: {}", s.reason))
                        .unwrap_or_default();
                    Phase::Running {
                        ready: unready.is_none(),
                        reason,
                    }
                }
            };
            if last.as_ref() != Some(&phase) {
                self.tell(phase.clone());
                last = Some(phase);
            }
            tokio::select! {
                changed = changes.join_next() => match changed {
                    Some(Ok((true, state))) => drop(changes.spawn(watch_for_change(state))),
                    Some(_) => {}
                    None => break,
                },
                _ = stopping.wait_for(|s| *s) => break,
            }
        }
    }

    /// Hooks and SIGTERM for the application, then for the sidecars in reverse, SIGKILL for what is left when the
    /// grace period ends; the last two seconds are the sidecars' at least (LIFE-020, LIFE-029, LOC-015).
    async fn end(&self, mut sidecars: Vec<Lasting>, containers: Vec<Lasting>) {
        let spec = self.sandbox.pod.spec.as_ref();
        let seconds = spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(30)).min(self.sandbox.grace_limit);
        let deadline = Instant::now() + grace;
        let hooks = sidecars.iter().chain(&containers).map(|l| self.pre_stop(l, deadline));
        futures::future::join_all(hooks).await;
        futures::future::join_all(containers.into_iter().map(|l| l.end(deadline))).await;
        let deadline = deadline.max(Instant::now() + LAST_GRACE);
        while let Some(sidecar) = sidecars.pop() {
            sidecar.end(deadline).await;
        }
    }

    async fn pre_stop(&self, lasting: &Lasting, deadline: Instant) {
        let hook = lasting
            .container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.as_ref())
            .and_then(|h| h.exec.as_ref());
        let Some(command) = hook.and_then(|exec| exec.command.clone()).filter(|c| !c.is_empty()) else {
            return;
        };
        let Some(mut program) = self.sandbox.programs.get(&lasting.name).cloned() else {
            return;
        };
        program.command = own_program(&program.command, command);
        if self.sandbox.network.is_none() && lasting.name == "weft-proxy" {
            // Many proxies share a network there; this pod's has its address.
            program
                .command
                .extend(["--address".to_owned(), self.sandbox.address.to_string()]);
        }
        if let Err(e) = self.run_to_end(&lasting.name, &program, deadline).await {
            self.output
                .note(&format!("{}: preStop hook of {}: {e}", self.sandbox.id, lasting.name));
        }
    }

    /// Runs an init container until it succeeds.
    async fn once(&self, container: &Container) {
        let Some(program) = self.sandbox.programs.get(&container.name) else {
            return;
        };
        let mut backoff = Backoff::new(self.sandbox.restart_backoff);
        loop {
            let problem = match self.spawn(&container.name, program) {
                Ok(mut child) => match child.wait().await {
                    Ok(status) if status.success() => return,
                    Ok(status) => describe(status),
                    Err(e) => e.to_string(),
                },
                Err(e) => format!("{e:#}"),
            };
            self.tell(Phase::BackOff(format!("init container {}: {problem}", container.name)));
            self.output.note(&format!(
                "{}: init container {}: {problem}",
                self.sandbox.id, container.name
            ));
            sleep(backoff.next()).await;
        }
    }

    /// Keeps a container running from now on.
    fn keep(&self, container: Container) -> Lasting {
        let (tell, state) = watch::channel(State {
            reason: "starting".into(),
            ..State::default()
        });
        let (stop, stopping) = watch::channel(None);
        let name = container.name.clone();
        let run = self.clone();
        let kept = container.clone();
        let task = tokio::spawn(async move { run.keep_running(&kept, &tell, stopping).await });
        Lasting {
            name,
            container,
            state,
            stop,
            task,
        }
    }

    async fn keep_running(
        &self,
        container: &Container,
        tell: &watch::Sender<State>,
        mut stopping: watch::Receiver<Option<Instant>>,
    ) {
        let Some(program) = self.sandbox.programs.get(&container.name) else {
            return;
        };
        let restarts = self
            .sandbox
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.restart_policy.as_deref())
            .unwrap_or("Always");
        let always = container.restart_policy.as_deref() == Some("Always") || restarts == "Always";
        let mut backoff = Backoff::new(self.sandbox.restart_backoff);
        loop {
            let begun = Instant::now();
            let problem = match self.spawn(&container.name, program) {
                Ok(mut child) => {
                    tell.send_modify(|s| (s.running, s.restarting) = (true, false));
                    let ended = tokio::select! {
                        status = child.wait() => Ended::Itself(status),
                        // Probes end only by a failed liveness or startup probe.
                        reason = self.watch_health(container, program, tell) => Ended::Unhealthy(reason),
                        deadline = stopping.wait_for(Option::is_some) => Ended::Stopped(deadline.ok().and_then(|d| *d)),
                    };
                    match ended {
                        Ended::Itself(Ok(status)) if status.success() && !always => {
                            tell.send_modify(|s| (s.ready, s.started, s.reason) = (false, true, "completed".into()));
                            let _ = stopping.wait_for(Option::is_some).await;
                            return;
                        }
                        Ended::Itself(Ok(status)) => describe(status),
                        Ended::Itself(Err(e)) => e.to_string(),
                        Ended::Unhealthy(reason) => {
                            terminate(&mut child, Instant::now() + self.sandbox.grace_limit).await;
                            reason
                        }
                        Ended::Stopped(deadline) => {
                            terminate(&mut child, deadline.unwrap_or_else(Instant::now)).await;
                            return;
                        }
                    }
                }
                Err(e) => format!("{e:#}"),
            };
            // The kubelet forgets earlier failures of a container that ran for ten minutes.
            if begun.elapsed() > Duration::from_secs(600) {
                backoff = Backoff::new(self.sandbox.restart_backoff);
            }
            let wait = backoff.next();
            let text = format!("{problem}; starts again in {} s", wait.as_secs());
            self.output
                .note(&format!("{}: container {}: {text}", self.sandbox.id, container.name));
            tell.send_modify(|s| {
                *s = State {
                    started: s.started,
                    restarting: true,
                    reason: text,
                    ..State::default()
                }
            });
            tokio::select! {
                () = sleep(wait) => {}
                _ = stopping.wait_for(Option::is_some) => return,
            }
        }
    }

    /// Probes a running container: returns only when it must be restarted, with the reason.
    async fn watch_health(&self, container: &Container, program: &Program, tell: &watch::Sender<State>) -> String {
        if let Some(startup) = &container.startup_probe {
            let mut failures = 0;
            sleep(seconds(startup.initial_delay_seconds, 0)).await;
            while let Err(reason) = self.probe(startup, container, program).await {
                failures += 1;
                if failures >= startup.failure_threshold.unwrap_or(3) {
                    return format!("startup probe failed {failures} times: {reason}");
                }
                tell.send_if_modified(|s| std::mem::replace(&mut s.reason, reason.clone()) != reason);
                // A local run may be asked far more often than a kubelet asks.
                sleep(seconds(startup.period_seconds, 10).min(STARTUP_PERIOD)).await;
            }
        }
        let is_ready = container.readiness_probe.is_none();
        tell.send_modify(|s| {
            s.started = true;
            s.ready = is_ready;
            s.reason = if is_ready {
                String::new()
            } else {
                "not probed yet".into()
            };
        });
        tokio::select! {
            () = self.watch_readiness(container, program, tell) => unreachable!("readiness is watched for good"),
            reason = self.watch_liveness(container, program) => reason,
        }
    }

    async fn watch_readiness(&self, container: &Container, program: &Program, tell: &watch::Sender<State>) {
        let Some(readiness) = &container.readiness_probe else {
            return std::future::pending().await;
        };
        let (mut good, mut bad) = (0, 0);
        sleep(seconds(readiness.initial_delay_seconds, 0)).await;
        loop {
            match self.probe(readiness, container, program).await {
                Ok(()) => (good, bad) = (good + 1, 0),
                Err(reason) => {
                    (good, bad) = (0, bad + 1);
                    tell.send_if_modified(|s| !s.ready && std::mem::replace(&mut s.reason, reason.clone()) != reason);
                }
            }
            tell.send_if_modified(|s| {
                let ready = if s.ready {
                    bad < readiness.failure_threshold.unwrap_or(3)
                } else {
                    good >= readiness.success_threshold.unwrap_or(1)
                };
                if ready {
                    s.reason.clear();
                }
                std::mem::replace(&mut s.ready, ready) != ready
            });
            // Until it is ready, asking is cheap and waiting is not.
            let period = seconds(readiness.period_seconds, 10);
            sleep(if tell.borrow().ready {
                period
            } else {
                period.min(STARTUP_PERIOD)
            })
            .await;
        }
    }

    async fn watch_liveness(&self, container: &Container, program: &Program) -> String {
        let Some(liveness) = &container.liveness_probe else {
            return std::future::pending().await;
        };
        sleep(seconds(liveness.initial_delay_seconds, 0)).await;
        let mut failures = 0;
        loop {
            match self.probe(liveness, container, program).await {
                Ok(()) => failures = 0,
                Err(reason) => {
                    failures += 1;
                    if failures >= liveness.failure_threshold.unwrap_or(3) {
                        return format!("liveness probe failed {failures} times: {reason}");
                    }
                }
            }
            sleep(seconds(liveness.period_seconds, 10)).await;
        }
    }

    async fn probe(&self, probe: &Probe, container: &Container, program: &Program) -> Result<(), String> {
        if let Some(command) = probe
            .exec
            .as_ref()
            .and_then(|e| e.command.clone())
            .filter(|c| !c.is_empty())
        {
            let limit = Instant::now() + seconds(probe.timeout_seconds, 1);
            let program = Program {
                command,
                ..program.clone()
            };
            return self.run_to_end(&container.name, &program, limit).await;
        }
        let (probe, container) = (probe.clone(), container.clone());
        let (address, ports) = match &self.sandbox.probed {
            Some(ports) => (IpAddr::from([127, 0, 0, 1]), ports.clone()),
            None => (self.sandbox.address, BTreeMap::new()),
        };
        let check = async move { probe::check(&probe, &container, address, &ports).await };
        let task = self.sandbox.reach.spawn(check);
        task.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// Runs a program to its end, or kills it at the deadline.
    async fn run_to_end(&self, container: &str, program: &Program, deadline: Instant) -> Result<(), String> {
        let mut child = self.spawn(container, program).map_err(|e| format!("{e:#}"))?;
        match timeout_at(deadline, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(describe(status)),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => {
                kill_group(&child);
                Err("took too long".to_owned())
            }
        }
    }

    /// Starts a process of the pod; its lines go to the output.
    fn spawn(&self, container: &str, program: &Program) -> anyhow::Result<Child> {
        let mut command = command_in(&self.sandbox, program)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = spawn_in(&self.sandbox, &mut command)?;
        let prefix = format!("{} {container}", self.sandbox.id);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(copy_lines(stdout, self.output.clone(), prefix.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(copy_lines(stderr, self.output.clone(), prefix));
        }
        Ok(child)
    }

    fn tell(&self, phase: Phase) {
        let _ = self.tell.send((self.sandbox.id.clone(), phase));
    }
}

enum Ended {
    Itself(std::io::Result<ExitStatus>),
    Unhealthy(String),
    Stopped(Option<Instant>),
}

/// A container that is kept running.
struct Lasting {
    name: String,
    container: Container,
    state: watch::Receiver<State>,
    stop: watch::Sender<Option<Instant>>,
    task: tokio::task::JoinHandle<()>,
}

impl Lasting {
    /// SIGTERM, SIGKILL at the deadline.
    async fn end(self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        let _ = self.task.await;
    }
}

/// A hook's program by name is the container's own, where both are the same file name.
fn own_program(container: &[String], mut hook: Vec<String>) -> Vec<String> {
    let name = |p: &str| std::path::Path::new(p).file_name().map(ToOwned::to_owned);
    if let (Some(own), Some(first)) = (container.first(), hook.first_mut())
        && name(own) == name(first)
    {
        first.clone_from(own);
    }
    hook
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

/// The kubelet's: doubles up to five minutes.
struct Backoff(Duration);

impl Backoff {
    fn new(first: Duration) -> Self {
        Self(first)
    }

    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Duration::from_secs(300));
        wait
    }
}

const LAST_GRACE: Duration = Duration::from_secs(2);
const STARTUP_PERIOD: Duration = Duration::from_millis(100);
