//! What a worker keeps of each destination: endpoints with their health, connections and counters.
//!
//! It outlives configurations: a reload replaces policies and lists, and keeps what stays (LIFE-043, LIFE-044).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_bundle::model::{self, Cluster, EndpointTable, HostEndpoints};
use weft_bundle::wire::{Discovery, Health, HostKind, Locality, PeerWorkload, Policy};

use crate::balance::Key;
use crate::locality::{Groups, Here};
use crate::lookup::Lookups;
use crate::outlier::{self, AsOf, Ejection, Ejections, Outcome};
use crate::pool::Pool;

/// First time that an endpoint is set aside for (DLV-113).
const ASIDE_FIRST: Duration = Duration::from_secs(10);

/// Longest time that an endpoint is set aside for.
const ASIDE_LONGEST: Duration = Duration::from_secs(120);

/// How long an empty list stands before the ClusterIP is tried (DLV-115).
const EMPTY_GRACE: Duration = Duration::from_secs(5);

/// An address that requests are sent to.
pub struct Peer {
    /// Address and target port.
    pub address: SocketAddr,
    /// Requests and connections in progress of this worker.
    pub active: Cell<u32>,
    /// Connections.
    pub pool: Pool,
    /// Since when it has been known (DR-054).
    pub learned: Instant,
    /// What the endpoint table says of it.
    facts: RefCell<Facts>,
    aside: Cell<Option<Aside>>,
    leaving: Cell<Option<Instant>>,
    ejection: RefCell<Option<Arc<Ejection>>>,
}

#[derive(Debug, Clone, Default)]
struct Facts {
    weight: u32,
    mesh_tls: bool,
    workload: Option<Arc<PeerWorkload>>,
}

#[derive(Debug, Clone, Copy)]
struct Aside {
    until: Instant,
    lasts: Duration,
}

impl Peer {
    /// An address outside of any endpoint list: the application, a ClusterIP, an unknown destination.
    #[must_use]
    pub fn bare(address: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            address,
            active: Cell::new(0),
            pool: Pool::default(),
            learned: Instant::now(),
            facts: RefCell::new(Facts {
                weight: 1,
                ..Facts::default()
            }),
            aside: Cell::new(None),
            leaving: Cell::new(None),
            ejection: RefCell::default(),
        })
    }

    /// Whether it takes mesh mTLS (ID-093).
    #[must_use]
    pub fn takes_mesh_tls(&self) -> bool {
        self.facts.borrow().mesh_tls
    }

    /// Its workload.
    #[must_use]
    pub fn workload(&self) -> Option<Arc<PeerWorkload>> {
        self.facts.borrow().workload.clone()
    }

    /// Its load-balancing weight.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.facts.borrow().weight
    }

    /// Sets its load-balancing weight.
    #[cfg(test)]
    pub(crate) fn weigh(&self, weight: u32) {
        self.facts.borrow_mut().weight = weight;
    }

    /// State of outlier detection, where it is on.
    #[must_use]
    pub fn ejection(&self) -> Option<Arc<Ejection>> {
        self.ejection.borrow().clone()
    }

    /// Whether outlier detection keeps it out.
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection
            .borrow()
            .as_ref()
            .is_some_and(|ejection| ejection.is_ejected(now))
    }

    /// Gives it the state that it shares with the same endpoint of other workers.
    pub(crate) fn watch(&self, ejection: Option<Arc<Ejection>>) {
        *self.ejection.borrow_mut() = ejection;
    }

    /// A connect failed: it is set aside, longer each time (DLV-113). Requests that failed together count once.
    pub fn set_aside(&self) {
        let now = Instant::now();
        let lasts = match self.aside.get() {
            Some(aside) if now < aside.until => return,
            Some(aside) => (aside.lasts * 2).min(ASIDE_LONGEST),
            None => ASIDE_FIRST,
        };
        self.aside.set(Some(Aside {
            until: now + lasts,
            lasts,
        }));
    }

    /// A connect succeeded.
    pub fn is_reached(&self) {
        if self.aside.get().is_some() {
            self.aside.set(None);
        }
    }

    /// It says that it is leaving (DLV-119): no new request, idle connections are closed.
    pub fn leaves(&self) {
        self.leaving.set(Some(Instant::now() + ASIDE_LONGEST));
        self.pool.close_idle();
    }

    /// Whether it is set aside or leaving.
    #[must_use]
    pub fn is_aside(&self, now: Instant) -> bool {
        self.aside.get().is_some_and(|aside| now < aside.until) || self.leaving.get().is_some_and(|until| now < until)
    }

    /// Counts a request or connection while the guard lives.
    #[must_use]
    pub fn busy(self: &Rc<Self>) -> Busy {
        self.active.set(self.active.get() + 1);
        Busy(self.clone())
    }
}

/// A request or connection in progress.
pub struct Busy(Rc<Peer>);

impl Busy {
    /// The endpoint.
    #[must_use]
    pub fn peer(&self) -> &Rc<Peer> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
    }
}

/// What all workers together know of a destination: counters of circuit breaking (DR-073), ejected endpoints.
#[derive(Debug, Default)]
pub struct Counters {
    /// Open connections.
    pub connections: AtomicU32,
    /// Requests in progress.
    pub requests: AtomicU32,
    /// Requests that wait for a connection.
    pub pending: AtomicU32,
    /// Retries in progress.
    pub retries: AtomicU32,
    /// Endpoints that outlier detection keeps out.
    pub ejections: Ejections,
    /// Requests of the current and the last period of a retry budget.
    period: Mutex<Period>,
}

#[derive(Debug, Default)]
struct Period {
    since: Option<Instant>,
    requests: u32,
    before: u32,
}

impl Counters {
    /// Most retries at a time: those of the budget, else of the limit (DR-083, DR-129).
    #[must_use]
    pub fn most_retries(&self, policy: &Policy) -> Option<u32> {
        let Some(budget) = &policy.retry_budget else {
            return policy.max_retries;
        };
        let now = self.requests.load(Ordering::Relaxed) + self.pending.load(Ordering::Relaxed);
        let counted = if budget.interval_ms == 0 {
            now
        } else {
            let period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            now.max(period.requests + period.before)
        };
        let share = u64::from(counted) * u64::from(budget.share_ppm) / 1_000_000;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Some(share.max(budget.min_concurrency))
    }

    /// Notes a request for a budget that looks at a period.
    pub fn note_request(&self, policy: &Policy) {
        let Some(budget) = policy.retry_budget.as_ref().filter(|budget| budget.interval_ms > 0) else {
            return;
        };
        let lasts = Duration::from_millis(budget.interval_ms);
        let now = Instant::now();
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let age = period.since.map(|since| now.duration_since(since));
        if age.is_none_or(|age| age >= lasts) {
            period.before = if age.is_some_and(|age| age < lasts * 2) {
                period.requests
            } else {
                0
            };
            period.requests = 0;
            period.since = Some(now);
        }
        period.requests = period.requests.saturating_add(1);
    }
}

/// A counted unit; given back on drop.
pub struct Permit {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU32,
    limited: bool,
}

impl Permit {
    /// Takes one of `limit`; `None` when none is left. Without limit nothing is refused, but counted all the same, so
    /// that a limit that comes with a reload finds the truth.
    #[must_use]
    pub fn take(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU32, limit: Option<u32>) -> Option<Self> {
        let before = which(counters).fetch_add(1, Ordering::Relaxed);
        let permit = Self {
            counters: counters.clone(),
            which,
            limited: limit.is_some(),
        };
        (limit.is_none_or(|limit| before < limit)).then_some(permit)
    }

    /// Whether it is one of a limited number, and requests wait.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.limited && self.counters.pending.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker keeps of a destination.
pub struct ClusterState {
    /// Its counters.
    pub counters: Arc<Counters>,
    cluster: RefCell<Arc<Cluster>>,
    members: RefCell<Members>,
    /// It was told that applications send TLS to where TLS would be originated (BYD-022).
    told_twice: Cell<bool>,
}

#[derive(Default)]
struct Members {
    source: Option<Arc<HostEndpoints>>,
    peers: Vec<Rc<Peer>>,
    groups: Option<Groups>,
    /// Serial number of the table that was looked at last; 0: none.
    table: u64,
    here: Here,
    /// Proxies of the own workload by zone (DR-071).
    proxies: Arc<BTreeMap<String, u32>>,
    /// Since when the list has been empty.
    empty_since: Option<Instant>,
    /// All endpoints last known were with sidecar, or all without.
    meshed: usize,
    unmeshed: usize,
    /// Peers by ClusterIP, kept for their connections.
    fallbacks: HashMap<SocketAddr, Rc<Peer>>,
    /// Addresses of a headless service that were dialled.
    dialled: HashMap<SocketAddr, Rc<Peer>>,
}

impl ClusterState {
    fn new(cluster: Arc<Cluster>, counters: Arc<Counters>) -> Self {
        Self {
            counters,
            cluster: RefCell::new(cluster),
            members: RefCell::default(),
            told_twice: Cell::new(false),
        }
    }

    /// Reports, once, that an application's own TLS passes where a rule would have wrapped it a second time (BYD-022).
    pub fn tell_twice(&self) {
        if !self.told_twice.replace(true) {
            let cluster = self.cluster();
            let rule = cluster.policy.rule.as_deref().unwrap_or_default();
            tracing::warn!(
                destination_rule = rule,
                cluster = &*cluster.name,
                "the application sends TLS; it passes as it is and the rule's TLS is not added"
            );
        }
    }

    /// The destination as the newest configuration has it.
    #[must_use]
    pub fn cluster(&self) -> Arc<Cluster> {
        self.cluster.borrow().clone()
    }

    /// Takes over a newer endpoint list, keeping what is known of addresses that stay.
    fn refresh(&self, config: &model::Config, table: &EndpointTable, lookups: &Lookups, own: &Here) {
        let mut members = self.members.borrow_mut();
        let found = {
            let cluster = self.cluster.borrow();
            let is_named = matches!(cluster.host.discovery, Discovery::Dns(_));
            is_named
                .then(|| lookups.endpoints(&cluster.host, table.host(&cluster.host.host)))
                .flatten()
        };
        let is_found = match (&found, &members.source) {
            (Some(found), Some(known)) => Arc::ptr_eq(found, known),
            (None, _) => true,
            (Some(_), None) => false,
        };
        if members.table == table.serial() && members.groups.is_some() && is_found {
            return;
        }
        let cluster = self.cluster.borrow();
        let here = if own.locality.is_empty() {
            Here {
                locality: table.locality(&own.node).unwrap_or_default().to_owned(),
                node: own.node.clone(),
            }
        } else {
            own.clone()
        };
        let source = found.as_ref().or_else(|| table.host(&cluster.host.host));
        let same = match (&members.source, source) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => members.empty_since.is_some(),
            _ => false,
        };
        if !same {
            members.take(&cluster, source, &here);
        }
        if !same || members.groups.is_none() {
            let as_of = AsOf {
                config: config.serial,
                table: table.serial(),
            };
            members.watch(&cluster, &self.counters.ejections, as_of);
        }
        let proxies = table.proxies(&config.workload.name).cloned().unwrap_or_default();
        if !same || members.groups.is_none() || members.here != here || members.proxies != proxies {
            members.group(&cluster, &here, &proxies);
        }
        members.here = here;
        members.proxies = proxies;
        members.table = table.serial();
    }

    /// The identities that servers may have, `namespace/account` (ID-078).
    #[must_use]
    pub fn endpoints(&self) -> Option<Arc<HostEndpoints>> {
        self.members.borrow().source.clone()
    }

    /// Chooses an endpoint that is neither set aside nor ejected nor in `tried`.
    #[must_use]
    pub fn pick(&self, tried: &[SocketAddr], key: Key) -> Option<Rc<Peer>> {
        self.pick_beyond(0, tried, key)
    }

    /// As [`Self::pick`], so many priorities of localities behind the one whose turn it is (VS-118).
    #[must_use]
    pub fn pick_beyond(&self, steps: usize, tried: &[SocketAddr], key: Key) -> Option<Rc<Peer>> {
        let members = self.members.borrow();
        let now = Instant::now();
        let cluster = self.cluster.borrow();
        let policy = &cluster.policy;
        let ejecting = self.counters.ejections.any();
        let healthy = |peer: &Peer| !ejecting || !peer.is_ejected(now);
        let panic = ejecting
            && policy
                .outlier
                .as_ref()
                .is_some_and(|o| outlier::panics(o, &members.peers, now));
        members.groups.as_ref()?.choose(policy, key, steps, healthy, |peer| {
            (panic || healthy(peer)) && !peer.is_aside(now) && !tried.contains(&peer.address)
        })
    }

    /// Chooses among endpoints that were set aside: nothing else is left.
    #[must_use]
    pub fn pick_aside(&self, tried: &[SocketAddr], key: Key) -> Option<Rc<Peer>> {
        let members = self.members.borrow();
        let now = Instant::now();
        let cluster = self.cluster.borrow();
        let healthy = |peer: &Peer| !peer.is_ejected(now);
        let groups = members.groups.as_ref()?;
        groups.choose(&cluster.policy, key, 0, healthy, |peer| {
            healthy(peer) && !tried.contains(&peer.address)
        })
    }

    /// Tells outlier detection how a try ended; true when that ejected the endpoint.
    #[must_use]
    pub fn report(&self, address: SocketAddr, outcome: Outcome) -> bool {
        let cluster = self.cluster();
        let Some(policy) = &cluster.policy.outlier else {
            return false;
        };
        let members = self.members.borrow();
        let peer = members.peers.iter().find(|peer| peer.address == address);
        let ejected = peer.is_some_and(|peer| outlier::report(policy, &members.peers, peer, outcome));
        if ejected {
            self.counters.ejections.note();
        }
        ejected
    }

    /// The ClusterIP, when every endpoint failed or the list has been empty for long enough (DLV-115).
    #[must_use]
    pub fn fallback(&self) -> Option<Rc<Peer>> {
        let mut members = self.members.borrow_mut();
        let now = Instant::now();
        let cluster = self.cluster.borrow();
        let address = *cluster.host.addresses.first()?;
        let is_shared_out = matches!(cluster.policy.locality, Some(Locality::Distribute(_)));
        // Nobody but the mesh serves the addresses of a ServiceEntry.
        let is_entry = cluster.host.kind == HostKind::Entry;
        if is_shared_out || is_entry || cluster.host.node_local || cluster.host.headless {
            return None;
        }
        if cluster.subset.is_some() || (members.meshed > 0 && members.unmeshed > 0) {
            return None;
        }
        let empty = members.peers.is_empty();
        if empty && members.empty_since.is_none_or(|since| now < since + EMPTY_GRACE) {
            return None;
        }
        // Ejection is no reason (DR-099): some endpoint must have failed to connect.
        if !empty
            && members
                .peers
                .iter()
                .any(|peer| peer.is_ejected(now) && !peer.is_aside(now))
        {
            return None;
        }
        let address = SocketAddr::new(address, cluster.port);
        let mesh_tls = members.unmeshed == 0;
        let peer = members.fallbacks.entry(address).or_insert_with(|| Peer::bare(address));
        peer.facts.borrow_mut().mesh_tls = mesh_tls;
        Some(peer.clone())
    }

    /// What a client dialled, where that is where it goes: an endpoint, ready or not, or an address of the service
    /// (SM-076, SM-082, DR-037).
    #[must_use]
    pub fn dialled(&self, address: SocketAddr) -> Option<Rc<Peer>> {
        let mut members = self.members.borrow_mut();
        if let Some(peer) = members.peers.iter().find(|peer| peer.address == address) {
            return Some(peer.clone());
        }
        if let Some(peer) = members.dialled.get(&address) {
            return Some(peer.clone());
        }
        let cluster = self.cluster.borrow();
        let source = members.source.as_ref()?;
        let facts = if cluster.host.addresses.contains(&address.ip()) {
            // Any of them may answer there, of whatever subset.
            let takes_mesh_tls = |endpoint: &model::Endpoint| {
                let port = endpoint.ports.get(&*cluster.port_name);
                port.is_some_and(|port| endpoint.takes_mesh_tls(*port))
            };
            Facts {
                weight: 1,
                mesh_tls: !source.endpoints.is_empty() && source.endpoints.iter().all(takes_mesh_tls),
                workload: None,
            }
        } else {
            // A subset does not choose among pods that are dialled (SM-081).
            unlabelled(&cluster, source.by_address(address.ip())?)?.1
        };
        let peer = Peer::bare(address);
        *peer.facts.borrow_mut() = facts;
        members.dialled.insert(address, peer.clone());
        Some(peer)
    }

    /// All endpoints, for outlier detection and status.
    pub fn with_peers<T>(&self, f: impl FnOnce(&[Rc<Peer>]) -> T) -> T {
        f(&self.members.borrow().peers)
    }

    /// Closes idle connections to other endpoints, so that a request gets a place (DR-074).
    pub fn close_other_idle(&self, but: &Peer) {
        for peer in &self.members.borrow().peers {
            if peer.address != but.address {
                peer.pool.close_idle();
            }
        }
    }

    /// Closes connections that were idle for too long, and counts ejections down.
    pub fn sweep(&self, now: Instant) {
        let members = self.members.borrow();
        let policy = &self.cluster.borrow().policy;
        let oldest = policy.max_connection_duration_ms.map(Duration::from_millis);
        let mut idle = Duration::from_millis(policy.http_idle_timeout_ms);
        if policy.max_connections.is_some() && self.counters.pending.load(Ordering::Relaxed) > 0 {
            // A request of another worker waits for a place that an idle connection holds.
            idle = Duration::from_nanos(1);
        }
        for peer in members
            .peers
            .iter()
            .chain(members.fallbacks.values())
            .chain(members.dialled.values())
        {
            peer.pool.sweep(now, idle, oldest);
            if let (Some(outlier), Some(ejection)) = (&policy.outlier, peer.ejection()) {
                ejection.tick(outlier, now);
            }
        }
        self.counters.ejections.look(now);
    }
}

impl Members {
    /// Takes over a list; addresses that stay keep their connections and state.
    fn take(&mut self, cluster: &Cluster, source: Option<&Arc<HostEndpoints>>, here: &Here) {
        let mut known: HashMap<SocketAddr, Rc<Peer>> = self.peers.drain(..).map(|peer| (peer.address, peer)).collect();
        let (mut meshed, mut unmeshed) = (0, 0);
        for (address, facts, endpoint) in belonging(cluster, source, here) {
            if facts.mesh_tls {
                meshed += 1;
            } else {
                unmeshed += 1;
            }
            if endpoint.health != Health::Ready {
                continue;
            }
            let peer = known.remove(&address).unwrap_or_else(|| Peer::bare(address));
            *peer.facts.borrow_mut() = facts;
            // A newer list is newer knowledge (DLV-113, DLV-119).
            peer.aside.set(None);
            peer.leaving.set(None);
            self.peers.push(peer);
        }
        for gone in known.into_values() {
            gone.pool.close_idle();
        }
        self.dialled.clear();
        if meshed + unmeshed > 0 {
            (self.meshed, self.unmeshed) = (meshed, unmeshed);
        }
        self.empty_since = self.peers.is_empty().then(Instant::now);
        self.source = source.cloned();
    }

    /// What failed to connect may do so no longer.
    fn give_another_chance(&self) {
        let others = self.fallbacks.values().chain(self.dialled.values());
        self.peers.iter().chain(others).for_each(|peer| peer.aside.set(None));
    }

    /// Shares the state of outlier detection of what was taken over with other workers.
    fn watch(&self, cluster: &Cluster, ejections: &Ejections, as_of: AsOf) {
        if cluster.policy.outlier.is_none() {
            ejections.forget(as_of);
            self.peers.iter().for_each(|peer| peer.watch(None));
            return;
        }
        let addresses: Vec<_> = self.peers.iter().map(|peer| peer.address).collect();
        for (peer, ejection) in self.peers.iter().zip(ejections.follow(as_of, &addresses)) {
            peer.watch(Some(ejection));
        }
    }

    /// Groups what was taken over.
    fn group(&mut self, cluster: &Cluster, here: &Here, proxies: &BTreeMap<String, u32>) {
        let ready =
            belonging(cluster, self.source.as_ref(), here).filter(|(_, _, endpoint)| endpoint.health == Health::Ready);
        let members: Vec<_> = ready
            .zip(&self.peers)
            .map(|((_, _, endpoint), peer)| (peer.clone(), endpoint))
            .collect();
        let groups = Groups::new(&cluster.policy, here, &members, proxies);
        self.groups = Some(groups);
    }
}

/// The endpoints of a list that belong to a destination, with their addresses and facts.
fn belonging<'s>(
    cluster: &'s Cluster,
    source: Option<&'s Arc<HostEndpoints>>,
    here: &'s Here,
) -> impl Iterator<Item = (SocketAddr, Facts, &'s model::Endpoint)> {
    let is_near = move |endpoint: &&model::Endpoint| {
        !cluster.host.node_local || endpoint.node.as_deref().is_some_and(|node| node == here.node)
    };
    source
        .map_or(&[][..], |source| &source.endpoints)
        .iter()
        .filter(is_near)
        .filter_map(|endpoint| facts(cluster, endpoint).map(|(address, facts)| (address, facts, endpoint)))
}

/// Address and facts of an endpoint for a destination; `None` when it does not belong to it.
fn facts(cluster: &Cluster, endpoint: &model::Endpoint) -> Option<(SocketAddr, Facts)> {
    let mut labels = cluster.labels.iter();
    let belongs = labels.all(|(name, value)| endpoint.label(name) == Some(value));
    belongs.then(|| unlabelled(cluster, endpoint))?
}

/// Address and facts of an endpoint of the host, whatever its labels; `None` when it lacks the port.
fn unlabelled(cluster: &Cluster, endpoint: &model::Endpoint) -> Option<(SocketAddr, Facts)> {
    let port = *endpoint.ports.get(&*cluster.port_name)?;
    let facts = Facts {
        weight: endpoint.weight,
        mesh_tls: endpoint.takes_mesh_tls(port),
        workload: endpoint.workload.clone(),
    };
    Some((SocketAddr::new(endpoint.address, port), facts))
}

/// The destinations of a worker. A configuration finds its own by number, also those that it took over from the one before;
/// others by name, so that state stays.
#[derive(Default)]
pub struct Clusters {
    by_name: HashMap<Arc<str>, Rc<ClusterState>>,
    by_id: Vec<Option<Rc<ClusterState>>>,
    /// The last one that was asked for.
    config: Option<Arc<model::Config>>,
}

impl Clusters {
    /// The state of a destination, with the newest endpoints.
    pub fn get(
        &mut self,
        config: &Arc<model::Config>,
        cluster: &Arc<Cluster>,
        table: &EndpointTable,
        lookups: &Lookups,
        here: &Here,
        counters: impl FnOnce() -> Arc<Counters>,
    ) -> Rc<ClusterState> {
        if !self.config.as_ref().is_some_and(|current| Arc::ptr_eq(current, config)) {
            self.config = Some(config.clone());
            lookups.retain(&config.hosts);
            // What no configuration names any more goes with its last request. These are the destinations in use: few.
            self.by_name.retain(|name, _| config.cluster(name).is_some());
            let by_name = &self.by_name;
            let is_known = |state: &Rc<ClusterState>| by_name.contains_key(&state.cluster.borrow().name);
            self.by_id.resize(config.slots(), None);
            for slot in &mut self.by_id {
                slot.take_if(|state| !is_known(state));
            }
        }
        let slot = self.by_id.get_mut(cluster.id);
        let is_as_before = |state: &&Rc<ClusterState>| Arc::ptr_eq(&state.cluster.borrow(), cluster);
        let state = match slot.as_deref().and_then(Option::as_ref).filter(is_as_before) {
            Some(state) => state.clone(),
            None => {
                let state = self
                    .by_name
                    .entry(cluster.name.clone())
                    .or_insert_with(|| Rc::new(ClusterState::new(cluster.clone(), counters())))
                    .clone();
                let (is_other, is_reached_otherwise) = {
                    let old = state.cluster.borrow();
                    let is_other = old.labels != cluster.labels || old.port_name != cluster.port_name;
                    (is_other, old.policy != cluster.policy)
                };
                if is_other {
                    state.members.borrow_mut().source = None;
                    state.members.borrow_mut().empty_since = None;
                }
                if is_reached_otherwise {
                    state.members.borrow().give_another_chance();
                }
                // The policy may group otherwise.
                state.members.borrow_mut().groups = None;
                *state.cluster.borrow_mut() = cluster.clone();
                if let Some(slot) = self.by_id.get_mut(cluster.id) {
                    *slot = Some(state.clone());
                }
                state
            }
        };
        state.refresh(config, table, lookups, here);
        state
    }

    /// All destinations in use.
    pub fn all(&self) -> impl Iterator<Item = &Rc<ClusterState>> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests;
