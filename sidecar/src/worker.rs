//! Workers: each is a thread with a runtime of its own, its own listeners, connections and load-balancer state.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::{Instant, interval, sleep, timeout};
use weft_bundle::model::{Cluster, Config};
use weft_bundle::wire::Discovery;

use crate::authorize::Changes;
use crate::cluster::{ClusterState, Clusters, Counters, Peer};
use crate::gateway::OpenPort;
use crate::http::metadata::Peers;
use crate::io::{CLIENT_PORTS, Dial, Source, is_shortage, listen};
use crate::listen;
use crate::overload::Pressure;
use crate::shared::{DrainPhase, Listener, Role, Shared, Snapshot};
use crate::telemetry::Counter;

/// How often idle connections and ejections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Pause after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a process that ends goes on with what it has accepted (LIFE-023).
pub const LINGER: Duration = Duration::from_secs(5);

/// Pause between looks at what is still open.
const LINGER_PAUSE: Duration = Duration::from_millis(5);

/// How many ports are drawn in search of one that a client does not use.
const DRAWS: usize = 16;

/// Failed accepts in a row after which a listener counts as lost.
const ACCEPT_FAILURES: u32 = 20;

/// Questions to a worker that wait for it.
const QUESTIONS: usize = 64;

/// Idle time of connections to the application and to unknown destinations.
const DIRECT_IDLE: Duration = Duration::from_secs(300);

/// State of one worker thread.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Number of the worker.
    pub index: usize,
    /// What peers said of themselves.
    pub peers: Peers,
    /// Told of each new configuration.
    pub changes: Changes,
    clusters: RefCell<Clusters>,
    direct: RefCell<HashMap<(SocketAddr, Towards), Rc<Peer>>>,
    inbound: RefCell<HashMap<u16, Arc<Counters>>>,
    metadata: RefCell<Option<(Arc<Config>, Bytes, Bytes)>>,
    open: Cell<usize>,
}

impl Worker {
    fn new(shared: Arc<Shared>, index: usize) -> Rc<Self> {
        Rc::new(Self {
            shared,
            index,
            peers: Peers::default(),
            changes: Changes::default(),
            clusters: RefCell::default(),
            direct: RefCell::default(),
            inbound: RefCell::default(),
            metadata: RefCell::default(),
            open: Cell::new(0),
        })
    }

    /// The configuration in force. A request asks once and keeps what it got.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shared.current.load_full()
    }

    /// Waits until the names of a destination were looked up; at once where it has none (SE-027).
    pub async fn lookup(&self, snapshot: &Snapshot, cluster: &Cluster) {
        if matches!(cluster.host.discovery, Discovery::Dns(_)) {
            let rate = Duration::from_millis(snapshot.config.mesh.dns_refresh_ms);
            Box::pin(self.shared.lookups.ready(&cluster.host, rate)).await;
        }
    }

    /// State of a destination of a configuration, with the newest endpoints.
    #[must_use]
    pub fn cluster(&self, snapshot: &Snapshot, cluster: &Arc<Cluster>) -> Rc<ClusterState> {
        let table = self.shared.endpoints.load();
        let here = &self.shared.settings.here;
        self.clusters
            .borrow_mut()
            .get(&snapshot.config, cluster, &table, &self.shared.lookups, here, || {
                self.counters(&cluster.name)
            })
    }

    fn counters(&self, name: &Arc<str>) -> Arc<Counters> {
        let all = &self.shared.counters;
        let mut all = all.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.entry(name.clone()).or_default().clone()
    }

    /// Counters of connections to a port of the application (DR-089).
    #[must_use]
    pub fn inbound_counters(&self, port: u16) -> Arc<Counters> {
        let mut known = self.inbound.borrow_mut();
        let counters = known.entry(port);
        counters
            .or_insert_with(|| self.counters(&format!("inbound|{port}||").into()))
            .clone()
    }

    /// An address outside of any endpoint list, with its connections.
    #[must_use]
    pub fn direct(&self, address: SocketAddr) -> Rc<Peer> {
        self.towards(address, Towards::Unknown)
    }

    /// Where the application listens, with its connections; those in one client's name serve no other.
    #[must_use]
    pub fn application(&self, address: SocketAddr, client: IpAddr) -> Rc<Peer> {
        let client = self.shared.settings.transparent.map(|_| client);
        self.towards(address, Towards::Application(client))
    }

    fn towards(&self, address: SocketAddr, towards: Towards) -> Rc<Peer> {
        self.direct
            .borrow_mut()
            .entry((address, towards))
            .or_insert_with(|| Peer::bare(address))
            .clone()
    }

    /// How connections to others are opened.
    #[must_use]
    pub fn dial(&self) -> Dial {
        Dial {
            mark: self.shared.settings.mark,
            source: Source::Any,
        }
    }

    /// How connections to the application are opened for a client (NET-029, NET-081).
    #[must_use]
    pub fn dial_application(&self, client: IpAddr) -> Dial {
        let settings = &self.shared.settings;
        match settings.transparent {
            Some(mark) => Dial {
                mark: Some(mark),
                source: Source::Client(self.stand_in(client)),
            },
            None => settings.dial_application(),
        }
    }

    /// An address for a connection in a client's name from which the client has none itself: to the kernel the two would
    /// be one.
    fn stand_in(&self, client: IpAddr) -> SocketAddr {
        let clients = self.clients();
        let draw = || SocketAddr::new(client, fastrand::u16(CLIENT_PORTS));
        let mut drawn = std::iter::repeat_with(draw).take(DRAWS);
        drawn.find(|address| !clients.contains(address)).unwrap_or_else(draw)
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashSet<SocketAddr>> {
        let clients = self.shared.clients.lock();
        clients.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A number for a connection, unique in the process.
    #[must_use]
    pub fn next_connection(&self) -> u64 {
        self.shared.connection_ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The facts that this proxy tells its peers (MET-039), encoded once for each configuration.
    #[must_use]
    pub fn metadata(&self, config: &Arc<Config>) -> (Bytes, Bytes) {
        let mut cached = self.metadata.borrow_mut();
        match &*cached {
            Some((of, id, metadata)) if Arc::ptr_eq(of, config) => (id.clone(), metadata.clone()),
            _ => {
                let (id, metadata) = crate::http::metadata::own(config, &self.shared.settings);
                *cached = Some((config.clone(), id.clone(), metadata.clone()));
                (id, metadata)
            }
        }
    }

    /// Trust domain and its aliases.
    #[must_use]
    pub fn trust_domains(&self) -> Vec<String> {
        let Some(snapshot) = self.snapshot() else {
            return Vec::new();
        };
        let mesh = &snapshot.config.mesh;
        let mut domains = vec![mesh.trust_domain.clone()];
        domains.extend(mesh.trust_domain_aliases.iter().cloned());
        domains
    }

    /// Whether a service without reachable endpoint is tried by its ClusterIP (DLV-115).
    #[must_use]
    pub fn vip_fallback(&self) -> bool {
        self.snapshot()
            .is_some_and(|snapshot| snapshot.config.mesh.vip_fallback)
    }

    /// Connect timeout of the mesh (SM-115).
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.snapshot().map_or(Duration::from_secs(10), |snapshot| {
            Duration::from_millis(snapshot.config.mesh.connect_timeout_ms)
        })
    }

    /// Where the process is on its way to its end.
    #[must_use]
    pub fn phase(&self) -> DrainPhase {
        *self.shared.drain.borrow()
    }

    /// Runs a connection in a task of its own; a panic ends that connection alone (LIFE-037).
    pub fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        self.run(Open::new(self, None), future);
    }

    /// As [`Self::spawn`], for a connection that keeps its addresses under TPROXY.
    pub fn spawn_inbound(self: &Rc<Self>, client: SocketAddr, future: impl Future<Output = ()> + 'static) {
        let client = self.shared.settings.transparent.map(|_| client);
        self.run(Open::new(self, client), future);
    }

    fn run(self: &Rc<Self>, open: Open, future: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(async move {
            let _open = open;
            future.await;
        });
    }

    /// Takes its sockets of the ports that are open now.
    fn open_ports(self: &Rc<Self>, ports: &BTreeMap<u16, Arc<OpenPort>>) {
        for port in ports.values() {
            let Some(socket) = port.take(self.index) else { continue };
            match TcpListener::from_std(socket) {
                Ok(listener) => drop(tokio::task::spawn_local(accept_at(
                    self.clone(),
                    listener,
                    port.clone(),
                ))),
                Err(error) => {
                    tracing::error!(port = port.number, %error, "listener lost");
                    self.shared.lost.notify_one();
                }
            }
        }
    }

    fn endpoint_states(&self) -> EndpointStates {
        let now = Instant::now();
        let clusters = self.clusters.borrow();
        let rows = clusters.all().map(|cluster| {
            let name = cluster.cluster().name.clone();
            cluster.with_peers(|peers| {
                let row = |peer: &Rc<Peer>| {
                    let (idle, http2) = peer.pool.len();
                    let state = EndpointState {
                        busy: peer.active.get(),
                        idle,
                        http2,
                        ejected: peer.is_ejected(now),
                    };
                    ((name.clone(), peer.address), state)
                };
                peers.iter().map(row).collect::<Vec<_>>()
            })
        });
        rows.flatten().collect()
    }

    fn sweep(&self) {
        let now = Instant::now();
        let presses = self.shared.overload.pressure() >= Pressure::High;
        for cluster in self.clusters.borrow().all() {
            cluster.sweep(now);
            if presses {
                cluster.with_peers(|peers| peers.iter().for_each(|peer| peer.pool.close_idle()));
            }
        }
        let snapshot = self.snapshot();
        self.direct.borrow_mut().retain(|(address, towards), peer| {
            let port = snapshot.as_ref().filter(|_| *towards != Towards::Unknown);
            let port = port.and_then(|snapshot| snapshot.config.inbound.port(address.port()));
            let policy = port.and_then(|port| port.policy.as_ref());
            let idle = policy.map_or(DIRECT_IDLE, |p| Duration::from_millis(p.http_idle_timeout_ms));
            let oldest = policy
                .and_then(|p| p.max_connection_duration_ms)
                .map(Duration::from_millis);
            peer.pool.sweep(now, idle, oldest);
            // Unknown destinations come and go without limit, so they are forgotten with their last connection.
            Rc::strong_count(peer) > 1 || !peer.pool.is_empty()
        });
    }
}

/// What an address outside of any endpoint list stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Towards {
    /// A destination that nobody knows.
    Unknown,
    /// The application, called in a client's name or not.
    Application(Option<IpAddr>),
}

/// What is asked of a worker from outside.
#[derive(Debug)]
enum Question {
    /// Nothing but an answer.
    Alive(oneshot::Sender<()>),
    /// The state of its endpoints.
    Endpoints(oneshot::Sender<EndpointStates>),
}

type EndpointStates = Vec<((Arc<str>, SocketAddr), EndpointState)>;

/// What a worker knows of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointState {
    /// Requests and connections in progress.
    pub busy: u32,
    /// Idle connections.
    pub idle: usize,
    /// HTTP/2 connections.
    pub http2: usize,
    /// Ejected by outlier detection.
    pub ejected: bool,
}

/// Counts a connection while it lives, and keeps its client's port from being used in the client's name.
struct Open {
    worker: Rc<Worker>,
    client: Option<SocketAddr>,
}

impl Open {
    fn new(worker: &Rc<Worker>, client: Option<SocketAddr>) -> Self {
        worker.open.set(worker.open.get() + 1);
        worker.shared.connections.fetch_add(1, Ordering::Relaxed);
        if let Some(client) = client {
            worker.clients().insert(client);
        }
        let worker = worker.clone();
        Self { worker, client }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Self { worker, client } = self;
        worker.open.set(worker.open.get().saturating_sub(1));
        worker.shared.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = client {
            worker.clients().remove(client);
        }
        if std::thread::panicking() {
            worker.shared.telemetry.count(Counter::TaskPanic);
        }
    }
}

/// Running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Addresses of the listeners, in the order of the settings; ports that were 0 are the ones chosen.
    pub addresses: Vec<SocketAddr>,
    heartbeats: Arc<Vec<AtomicU64>>,
    begin: std::time::Instant,
    questions: Vec<mpsc::Sender<Question>>,
}

impl Workers {
    /// Whether every worker answers within the limit: what waits in front of the question is traffic (LIFE-015).
    pub async fn answer(&self, limit: Duration) -> bool {
        let all = async {
            for question in &self.questions {
                let (tell, told) = oneshot::channel();
                if question.send(Question::Alive(tell)).await.is_err() || told.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(limit, all).await.unwrap_or(false)
    }

    /// What the workers know of endpoints, added up, by destination and address. A worker that does not answer in time
    /// is left out.
    pub async fn endpoints(&self, limit: Duration) -> HashMap<(Arc<str>, SocketAddr), EndpointState> {
        let mut all: HashMap<_, EndpointState> = HashMap::new();
        for question in &self.questions {
            let (tell, told) = oneshot::channel();
            if question.try_send(Question::Endpoints(tell)).is_err() {
                continue;
            }
            let Ok(Ok(rows)) = tokio::time::timeout(limit, told).await else {
                continue;
            };
            for (key, state) in rows {
                let sum = all.entry(key).or_default();
                sum.busy += state.busy;
                sum.idle += state.idle;
                sum.http2 += state.http2;
                sum.ejected |= state.ejected;
            }
        }
        all
    }

    /// Number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Time since the slowest worker last made progress (LIFE-014).
    #[must_use]
    pub fn silence(&self) -> Duration {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let oldest = self.heartbeats.iter().map(|beat| beat.load(Ordering::Relaxed)).min();
        Duration::from_millis(now.saturating_sub(oldest.unwrap_or(now)))
    }

    /// Waits for the end of all workers; they end at [`DrainPhase::Closing`].
    ///
    /// # Errors
    /// A worker panicked outside of a connection.
    pub fn join(self) -> io::Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| io::Error::other("a worker panicked"))?;
        }
        Ok(())
    }
}

/// Opens the listeners and starts the workers.
///
/// # Errors
/// A listener that cannot be opened, named in the message; nothing runs then.
pub fn start(shared: &Arc<Shared>) -> io::Result<Workers> {
    let count = shared.settings.workers.max(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begin = std::time::Instant::now();
    let heartbeats: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let mut addresses = Vec::new();
    let mut sockets: Vec<Vec<(std::net::TcpListener, Listener)>> = (0..count).map(|_| Vec::new()).collect();
    {
        let _entered = runtime.enter();
        for listener in &shared.listeners() {
            let mut address = listener.address;
            for (number, sockets) in sockets.iter_mut().enumerate() {
                let any = listener.role == Role::Inbound && shared.settings.transparent.is_some();
                let socket =
                    listen(address, any).map_err(|e| io::Error::new(e.kind(), format!("listen on {address}: {e}")))?;
                if number == 0 {
                    // All workers share the port that the kernel chose for the first.
                    address = socket.local_addr()?;
                    addresses.push(address);
                }
                sockets.push((socket.into_std()?, Listener { address, ..*listener }));
            }
        }
    }
    let mut threads = Vec::new();
    let mut questions = Vec::new();
    for (index, sockets) in sockets.into_iter().enumerate() {
        let shared = shared.clone();
        let heartbeats = heartbeats.clone();
        let (question, asked) = mpsc::channel(QUESTIONS);
        questions.push(question);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || run(shared, index, sockets, &heartbeats, begin, asked))?;
        threads.push(thread);
    }
    Ok(Workers {
        threads,
        addresses,
        heartbeats,
        begin,
        questions,
    })
}

fn run(
    shared: Arc<Shared>,
    index: usize,
    sockets: Vec<(std::net::TcpListener, Listener)>,
    heartbeats: &[AtomicU64],
    begin: std::time::Instant,
    mut asked: mpsc::Receiver<Question>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime was built before the threads started");
    let local = LocalSet::new();
    let worker = Worker::new(shared, index);
    local.block_on(&runtime, async {
        for (socket, listener) in sockets {
            let listening = TcpListener::from_std(socket).expect("opened as a non-blocking listener");
            tokio::task::spawn_local(accept(worker.clone(), listening, listener));
        }
        let mut drain = worker.shared.drain.subscribe();
        let mut ports = worker.shared.ports.subscribe();
        ports.mark_changed();
        let mut ticks = interval(SWEEP);
        loop {
            tokio::select! {
                // The sender is a part of what the worker holds.
                // Told of each activation.
                Ok(()) = ports.changed() => {
                    worker.open_ports(&ports.borrow_and_update());
                    worker.changes.announce();
                }
                _ = ticks.tick() => {
                    let now = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                    if let Some(beat) = heartbeats.get(index) {
                        beat.store(now, Ordering::Relaxed);
                    }
                    worker.sweep();
                }
                _ = drain.wait_for(|phase| *phase == DrainPhase::Closing) => break,
                // Whoever asked may have given up.
                Some(question) = asked.recv() => match question {
                    Question::Alive(tell) => drop(tell.send(())),
                    Question::Endpoints(tell) => drop(tell.send(worker.endpoint_states())),
                },
            }
        }
        // Who was accepted gets an answer, if only that the application is gone (DLV-118): a new connection that ends
        // without one is a failed request for its client.
        let served = async {
            while worker.open.get() > 0 {
                sleep(LINGER_PAUSE).await;
            }
        };
        drop(timeout(LINGER, served).await);
    });
    // Dropping the set closes the connections that are left.
    drop(local);
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, settings: Listener) {
    accept_each(&worker, &listener, settings.address, |stream, remote| {
        listen::accepted(&worker, stream, remote, settings);
    })
    .await;
}

/// Accepts on a port of a gateway until it is closed; who has come by then is served.
async fn accept_at(worker: Rc<Worker>, listener: TcpListener, port: Arc<OpenPort>) {
    let address = worker
        .shared
        .ports
        .address(port.number)
        .unwrap_or_else(|| SocketAddr::from(([0; 4], port.number)));
    let take = |stream, remote| listen::at_gateway(&worker, stream, remote, &port);
    tokio::select! {
        () = accept_each(&worker, &listener, address, take) => return,
        () = port.closed() => {}
    }
    while let Some(Ok((stream, remote))) = waiting(&listener) {
        listen::at_gateway(&worker, stream, remote, &port);
    }
    drop(listener);
    port.drain().await;
}

/// A connection that waits to be accepted.
fn waiting(listener: &TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    let mut cx = Context::from_waker(Waker::noop());
    match listener.poll_accept(&mut cx) {
        Poll::Ready(accepted) => Some(accepted),
        Poll::Pending => None,
    }
}

async fn accept_each(
    worker: &Worker,
    listener: &TcpListener,
    address: SocketAddr,
    take: impl Fn(TcpStream, SocketAddr),
) {
    let overload = &worker.shared.overload;
    let mut failures = 0;
    let mut drain = worker.shared.drain.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Whoever comes now is refused, and goes elsewhere.
            _ = drain.wait_for(|phase| *phase == DrainPhase::Closing) => return,
        };
        match accepted {
            Ok((stream, _)) if !overload.admits(stream.as_raw_fd()) => {
                worker.shared.telemetry.count(Counter::DescriptorsUsed);
                tracing::warn!(%address, "connection refused: 95 % of all descriptors are in use");
            }
            Ok(_) if worker.shared.settings.gateway.is_some() && overload.pressure() >= Pressure::High => {
                worker.shared.telemetry.count(Counter::AcceptFailed);
            }
            Ok((stream, remote)) => {
                failures = 0;
                take(stream, remote);
            }
            Err(e) if is_shortage(&e) => {
                worker.shared.telemetry.count(Counter::AcceptFailed);
                sleep(ACCEPT_PAUSE).await;
            }
            // The client was gone before it was accepted.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) if failures < ACCEPT_FAILURES => {
                failures += 1;
                tracing::warn!(%address, error = %e, "accept");
                sleep(ACCEPT_PAUSE).await;
            }
            Err(e) => {
                tracing::error!(%address, error = %e, "listener lost");
                worker.shared.lost.notify_one();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Settings;
    use crate::telemetry::Telemetry;

    // spec: LIFE-037
    #[tokio::test]
    async fn a_panic_ends_one_connection_and_is_counted() {
        LocalSet::new()
            .run_until(async {
                let shared = Arc::new(Shared::new(Settings::default(), Arc::new(Telemetry::default())));
                let worker = Worker::new(shared.clone(), 0);
                let (tell, told) = oneshot::channel();
                worker.spawn(async { panic!("of a test") });
                worker.spawn(async { tell.send(()).expect("the test waits") });
                told.await.expect("the other one goes on");
                assert_eq!(shared.connections.load(Ordering::Relaxed), 0);
                let metrics = shared.telemetry.prometheus();
                assert!(metrics.contains("weft_task_panics_total 1\n"), "{metrics}");
            })
            .await;
    }
}
