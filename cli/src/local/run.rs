//! The run itself: manifests in, pods with sidecars out, until told to stop.
//!
//! One task owns all state and reads one channel. World, rendering, injection and validation are the cluster's; what
//! differs is where objects come from (files), where they go (directories) and who runs pods (this process).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use weft_operator::identity::{Authority, Leaf, SpiffeId};
use weft_operator::render::{IdentityRef, Output as Rendered, Renderer};
use weft_operator::world::{ObjectRef, Settings, Store};
use weft_webhook::InjectConfig;

use self::running::Running;
use super::address::{Pods, Services};
use super::container::{Commands, Contents};
use super::desired::{Desired, Id};
use super::dns::Resolver;
use super::fabric::{Fabric, Reach};
use super::loopback::Block;
use super::namespace::Switch;
use super::output::Output;
use super::pod::{Phase, Sandbox};
use super::service::Forward;
use super::up::{self, Network, Up};
use super::watch::Watch;
use super::{NODE, UNREADABLE, commands, control, publish, user};

mod deliver;
mod launch;
mod network;
mod objects;
mod running;
mod schedule;

/// What the task that owns the run is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A file may have changed.
    Files,
    /// A pod's phase.
    Phase(String, Phase),
    /// All sidecars that were to adopt a change have.
    Acknowledged {
        /// How many.
        sidecars: usize,
        /// Since the change was noticed.
        elapsed: Duration,
    },
    /// A command of another process.
    Asked(control::Asked),
    /// End the run.
    Stop,
}

/// Runs `weft local run`, the child of `up`.
///
/// # Errors
/// What keeps the run from starting.
pub(super) fn run(options: Up) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (tell, told) = mpsc::unbounded_channel();
    let stop = tell.clone();
    up::end_with_parent(move || drop(stop.send(Event::Stop)))?;
    runtime.block_on(async move { Run::new(options, tell)?.live(told).await })
}

pub(super) struct Run {
    options: Up,
    state: PathBuf,
    output: Output,
    tell: mpsc::UnboundedSender<Event>,
    fabric: Fabric,
    reach: Reach,
    /// The proxy has an id of its own (LOC-026).
    has_proxy_id: bool,
    resolver: Resolver,
    commands: Commands,
    inject: InjectConfig,
    desired: Desired,
    store: Store,
    renderer: Renderer,
    rendered: Rendered,
    authority: Authority,
    /// Who each certificate is for, and the certificate: another trust domain asks for another one.
    leaves: BTreeMap<IdentityRef, (SpiffeId, Leaf)>,
    contents: Contents,
    pod_addresses: Pods,
    service_addresses: Services,
    gateway: Ipv4Addr,
    /// Ports of 127.0.0.1 that were given to applications, in loopback mode.
    local_ports: BTreeSet<u16>,
    pods: BTreeMap<String, Running>,
    slices: BTreeMap<(String, String), Vec<EndpointSlice>>,
    forwards: BTreeSet<Forward>,
    known: BTreeSet<ObjectRef>,
    /// Objects of the manifests as they were taken, with what the API server adds.
    applied: BTreeMap<Id, serde_json::Value>,
    sequence: u64,
    told: BTreeMap<ObjectRef, String>,
    /// What is told once in a run.
    told_once: BTreeSet<String>,
    /// Ports of gateways that listen on this machine.
    published: BTreeSet<(String, String, u16)>,
    watch: Watch,
    begun: Instant,
    is_up: bool,
}

impl Run {
    fn new(options: Up, tell: mpsc::UnboundedSender<Event>) -> anyhow::Result<Self> {
        let state = up::state_directory(options.state.as_deref())?;
        let output = Output::new(options.quiet, options.no_color);
        let (fabric, reach, range) = if options.network == Network::Loopback {
            let block = Block::take()?;
            output.note(&block.warning());
            let range = block.range;
            let reach = Reach::new(tokio::runtime::Handle::current(), true);
            (Fabric::Loopback(block), reach, range)
        } else {
            let services = (options.service_cidr.base, options.service_cidr.prefix);
            let switch = Switch::create(Pods::gateway(options.pod_cidr), options.pod_cidr.prefix, services)?;
            if let Some(range) = options.outside_cidr {
                switch.silence(range)?;
            }
            let reach = Reach::new(switch.namespace().runtime("switch")?, false);
            (Fabric::Namespaces(switch), reach, options.pod_cidr)
        };
        let commands = commands::read(&options.paths)?;
        let mut inject = InjectConfig::new("weft-proxy");
        if let Some(domain) = &options.trust_domain {
            inject.mesh.trust_domain.clone_from(domain);
        }
        let now = SystemTime::now();
        let settings = Settings {
            trust_domain: options.trust_domain.clone(),
            ..Settings::default()
        };
        let trust_domain = options.trust_domain.clone().unwrap_or_else(|| "cluster.local".into());
        Ok(Self {
            state,
            output,
            fabric,
            reach,
            has_proxy_id: user::has_proxy_id(),
            resolver: Resolver::new(&settings.cluster_domain),
            commands,
            inject,
            desired: Desired::new(&options.namespace),
            store: Store::new(settings),
            renderer: Renderer::new(),
            rendered: Rendered::default(),
            authority: Authority::generate(&trust_domain, now)?,
            leaves: BTreeMap::new(),
            contents: Contents::new(),
            pod_addresses: Pods::new(range),
            gateway: Pods::gateway(range),
            local_ports: BTreeSet::new(),
            service_addresses: Services::new(options.service_cidr),
            pods: BTreeMap::new(),
            slices: BTreeMap::new(),
            forwards: BTreeSet::new(),
            known: BTreeSet::new(),
            applied: BTreeMap::new(),
            sequence: 0,
            told: BTreeMap::new(),
            told_once: BTreeSet::new(),
            published: BTreeSet::new(),
            watch: Watch::new(tell.clone())?,
            begun: Instant::now(),
            is_up: false,
            tell,
            options,
        })
    }

    async fn live(mut self, mut told: mpsc::UnboundedReceiver<Event>) -> anyhow::Result<ExitCode> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        self.apply(&node);
        self.applied.insert(("Node".into(), String::new(), NODE.into()), node);
        control::serve(&self.state, self.tell.clone(), &self.output)?;
        for publish in &self.options.publish {
            publish::listen(publish.clone(), self.resolver.clone(), self.reach.clone(), &self.output).await?;
        }
        if let Err(problem) = self.read_first() {
            self.output.note(&problem);
            return Ok(ExitCode::from(UNREADABLE));
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut renew = tokio::time::interval(Duration::from_secs(60));
        loop {
            let event = tokio::select! {
                event = told.recv() => event.unwrap_or(Event::Stop),
                _ = terminate.recv() => Event::Stop,
                _ = interrupt.recv() => Event::Stop,
                _ = hangup.recv() => Event::Stop,
                _ = renew.tick() => {
                    self.settle(Instant::now(), false);
                    continue;
                }
            };
            match event {
                Event::Stop => break,
                Event::Files => {
                    // One save is several events; what follows at once belongs to it.
                    tokio::time::sleep(QUIET).await;
                    let mut others = Vec::new();
                    while let Ok(event) = told.try_recv() {
                        if !matches!(event, Event::Files) {
                            others.push(event);
                        }
                    }
                    // Only now: sent any earlier, they would be received above again and again.
                    for event in others {
                        drop(self.tell.send(event));
                    }
                    self.read_again().await;
                }
                Event::Phase(id, phase) => self.phase(&id, phase),
                Event::Acknowledged { sidecars, elapsed } => {
                    let text = format!("in force in {sidecars} sidecars after {} ms", elapsed.as_millis());
                    self.output.note(&text);
                }
                Event::Asked(asked) => {
                    if asked.is_about_files() {
                        self.read_again().await;
                    }
                    control::answer(&self, asked);
                }
            }
            self.announce();
            self.publish_gateways().await;
        }
        self.end(terminate, interrupt, told).await;
        Ok(ExitCode::SUCCESS)
    }

    /// Ends all pods in order, at most within [`up::END_LIMIT`]; a second signal kills at once (LOC-050).
    async fn end(&mut self, mut terminate: Signal, mut interrupt: Signal, mut told: mpsc::UnboundedReceiver<Event>) {
        self.output.note("stopping; a second signal kills at once");
        for running in self.pods.values_mut() {
            running.stop();
        }
        self.pods.retain(|_, running| running.handle.is_some());
        let deadline = tokio::time::sleep(up::END_LIMIT);
        tokio::pin!(deadline);
        while !self.pods.is_empty() {
            tokio::select! {
                event = told.recv() => if let Some(Event::Phase(id, Phase::Ended)) = event {
                    self.pods.remove(&id);
                },
                () = &mut deadline => break,
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
    }

    /// Brings everything in line with what is desired: pods, endpoints, names, rendered files. `tell`: when all
    /// sidecars have it, the run says so.
    fn settle(&mut self, begun: Instant, tell: bool) {
        self.plan_pods();
        self.update_services();
        self.rendered = self.renderer.render(&self.store.world());
        if self.learn_absent_credentials() {
            self.rendered = self.renderer.render(&self.store.world());
        }
        self.report();
        self.issue();
        self.fill_contents();
        self.publish(begun, tell);
    }

    fn phase(&mut self, id: &str, phase: Phase) {
        let Some(running) = self.pods.get_mut(id) else { return };
        if let (Phase::BackOff(why), false) = (&phase, matches!(running.phase, Phase::BackOff(_))) {
            self.output.note(&format!("pod {id}: {why}"));
        }
        let was_ready = running.is_ready();
        let is_end = phase == Phase::Ended;
        running.phase = phase;
        let is_ready = running.is_ready();
        let changed = was_ready != is_ready;
        if is_ready && changed && !self.is_up {
            let ready = self.pods.values().filter(|r| r.is_ready()).count();
            self.output
                .note(&format!("pod {id} is ready, {ready} of {}", self.pods.len()));
        }
        if is_end {
            self.remove(id);
        }
        if changed || is_end {
            self.settle(Instant::now(), false);
        }
    }

    /// Prints the table once all pods are ready (LOC-040).
    fn announce(&mut self) {
        if self.is_up || self.pods.is_empty() || !self.pods.values().all(Running::is_ready) {
            return;
        }
        self.is_up = true;
        let seconds = self.begun.elapsed().as_secs_f64();
        self.output
            .note(&format!("{} pods ready after {seconds:.1} s", self.pods.len()));
        for line in control::table(&self.rows(), false).lines() {
            self.output.note(line);
        }
    }

    /// Publishes the Services of type LoadBalancer in front of gateways (LOC-024).
    async fn publish_gateways(&mut self) {
        let world = self.store.world();
        for ((namespace, service), object) in &world.services {
            let Some(spec) = object
                .spec
                .as_ref()
                .filter(|s| s.type_.as_deref() == Some("LoadBalancer"))
            else {
                continue;
            };
            let selector = spec.selector.as_ref().filter(|s| !s.is_empty());
            if !self
                .pods
                .values()
                .any(|running| running.is_gateway_of(namespace, selector))
            {
                continue;
            }
            let tcp = |protocol: Option<&str>| protocol.is_none_or(|p| p == "TCP");
            let ports = spec.ports.iter().flatten().filter(|p| tcp(p.protocol.as_deref()));
            for port in ports.filter_map(|p| u16::try_from(p.port).ok()) {
                if !self.published.insert((namespace.clone(), service.clone(), port)) {
                    continue;
                }
                let publish = up::Publish {
                    namespace: namespace.clone(),
                    service: service.clone(),
                    port,
                    local: port,
                };
                let (resolver, reach) = (self.resolver.clone(), self.reach.clone());
                if let Err(problem) = publish::listen_somewhere(publish, resolver, reach, &self.output).await {
                    self.output.note(&format!("{problem:#}"));
                }
            }
        }
    }

    /// A row for each pod, for `ps`.
    pub(super) fn rows(&self) -> Vec<control::Row> {
        self.pods.iter().map(|(id, running)| running.row(id)).collect()
    }

    /// Everything that the world is made of, as an API server would show it.
    pub(super) fn objects(&self) -> Vec<serde_json::Value> {
        let pods = self.pods.values().map(|running| serde_json::to_value(running.status()));
        let slices = self.slices.values().flatten().map(serde_json::to_value);
        let written = pods.chain(slices).filter_map(Result::ok);
        self.applied.values().cloned().chain(written).collect()
    }

    /// The sandbox of a pod, by `namespace/name` or by a name of any namespace.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Sandbox>> {
        let exact = self
            .pods
            .get(name)
            .or_else(|| self.pods.get(&format!("{}/{name}", self.options.namespace)));
        let by_name = || self.pods.values().find(|r| r.plan.name == name);
        // A workload's name stands for its first ready pod (OPS-110).
        let by_workload = || {
            let of = |r: &&Running| r.plan.workload == name || r.plan.workload.split('/').nth(1) == Some(name);
            let mut all: Vec<&Running> = self.pods.values().filter(of).filter(|r| !r.stopping).collect();
            all.sort_by_key(|r| !r.is_ready());
            all.first().copied()
        };
        exact.or_else(by_name).or_else(by_workload)?.sandbox.clone()
    }

    /// Status port of each sidecar that takes requests, with the revisions that it is to have.
    pub(super) fn targets(&self) -> Vec<(SocketAddr, String, String)> {
        let ready = self.pods.values().filter(|r| r.is_ready() && !r.stopping);
        ready
            .filter_map(|r| {
                let (cfg, ep) = r.target.clone()?;
                Some((SocketAddr::from((r.address, deliver::STATUS_PORT)), cfg, ep))
            })
            .collect()
    }

    /// What is not as the manifests say.
    pub(super) fn notes(&self) -> &[String] {
        self.desired.notes()
    }

    pub(super) fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    pub(super) fn reach(&self) -> &Reach {
        &self.reach
    }

    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }
}

const QUIET: Duration = Duration::from_millis(10);
