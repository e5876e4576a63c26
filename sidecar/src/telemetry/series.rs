//! The mesh's standard metrics, by label set (spec: telemetry.md, MET).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

use weft_bundle::wire::PeerWorkload;

use super::Name;
use super::budget::{Budget, Family};
use crate::exchange::{Direction, Downstream, Exchange, Flags, Session, Target, Upstream};

pub(super) use vanished::{Aged, Present, Vanished};

mod vanished;

/// Upper bounds of the histograms (MET-010).
const BOUNDS: [(f64, &str); 19] = [
    (0.5, "0.5"),
    (1.0, "1"),
    (5.0, "5"),
    (10.0, "10"),
    (25.0, "25"),
    (50.0, "50"),
    (100.0, "100"),
    (250.0, "250"),
    (500.0, "500"),
    (1000.0, "1000"),
    (2500.0, "2500"),
    (5000.0, "5000"),
    (10_000.0, "10000"),
    (30_000.0, "30000"),
    (60_000.0, "60000"),
    (300_000.0, "300000"),
    (600_000.0, "600000"),
    (1_800_000.0, "1800000"),
    (3_600_000.0, "3600000"),
];

/// What tells one series of requests from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    peers: Peers,
    grpc: bool,
    status: u16,
    grpc_status: Option<u16>,
    flags: Flags,
}

/// What tells one series of connections from another.
pub(super) type ConnectionKey = (Peers, Flags);

/// Who called whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Peers {
    direction: Direction,
    source: Option<Arc<PeerWorkload>>,
    destination: Option<Arc<PeerWorkload>>,
    source_principal: Option<Name>,
    destination_principal: Option<Name>,
    service: Name,
    service_name: Name,
    service_namespace: Name,
    mutual_tls: bool,
    cluster_id: Name,
    /// What is beyond the budget.
    other: bool,
}

/// Series of one worker.
#[derive(Debug)]
pub(super) struct Series {
    budget: Arc<Budget>,
    /// What was recorded now is as old as that, in minutes.
    minute: u32,
    requests: Vec<(Key, Requests)>,
    /// Positions in `requests`.
    positions: HashMap<Key, usize>,
    /// Where series were found last, by the addresses of what tells them apart: requests between the same peers share
    /// those, so that none of their names is hashed or compared.
    recent: [usize; RECENT],
    connections: HashMap<ConnectionKey, Connections>,
    names: HashMap<String, Name>,
    /// Values of `destination_service` from Host headers.
    hosts: HashSet<Name>,
    /// There will be no more of them.
    has_all_hosts: bool,
}

#[derive(Debug, Clone, Default)]
struct Requests {
    /// Minute of the last record.
    last: u32,
    count: u64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: u64,
    response_messages: u64,
}

#[derive(Debug, Clone, Default)]
struct Connections {
    /// Minute of the last record.
    last: u32,
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

#[derive(Debug, Clone, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        if let Some(bucket) = BOUNDS.iter().position(|(bound, _)| value <= *bound) {
            self.buckets[bucket] += 1;
        }
        self.sum += value;
        self.count += 1;
    }

    fn add(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.sum += other.sum;
        self.count += other.count;
    }
}

impl Series {
    /// Without any, for one of the workers that share a budget.
    pub(super) fn new(budget: Arc<Budget>, minute: u32) -> Self {
        Self {
            budget,
            minute,
            requests: Vec::new(),
            positions: HashMap::new(),
            recent: [0; RECENT],
            connections: HashMap::new(),
            names: HashMap::new(),
            hosts: HashSet::new(),
            has_all_hosts: false,
        }
    }

    pub(super) fn request(&mut self, exchange: &Exchange, cluster_id: &str) {
        let position = self.position(exchange, cluster_id);
        let (_, entry) = &mut self.requests[position];
        entry.last = self.minute;
        entry.count += 1;
        entry.duration.observe(exchange.duration().as_secs_f64() * 1000.0);
        #[expect(clippy::cast_precision_loss, reason = "sizes of requests are far below 2^52")]
        let bytes = |body: u64, head: u64| (body + head) as f64;
        entry
            .request_bytes
            .observe(bytes(exchange.bytes_received, exchange.request_header_bytes));
        entry
            .response_bytes
            .observe(bytes(exchange.bytes_sent, exchange.response_header_bytes));
        entry.request_messages += exchange.request_messages;
        entry.response_messages += exchange.response_messages;
    }

    /// Position of the series that a request belongs to.
    fn position(&mut self, exchange: &Exchange, cluster_id: &str) -> usize {
        let slot = slot(exchange);
        let recent = self.recent[slot];
        if self.requests.get(recent).is_some_and(|(key, _)| key.is_of(exchange)) {
            return recent;
        }
        let peers = self.peers(
            &exchange.downstream,
            &exchange.upstream,
            (exchange.source.as_ref(), exchange.destination.as_ref()),
            &exchange.authority,
            cluster_id,
        );
        let mut key = Key {
            peers,
            grpc: exchange.grpc,
            status: exchange.status,
            grpc_status: grpc_status(exchange),
            flags: exchange.flags,
        };
        if !self.positions.contains_key(&key) && !self.budget.requests.admit(&key, || key.clone()) {
            self.budget.exceeded(Family::Requests);
            if key.grpc {
                self.budget.exceeded(Family::Messages);
            }
            key = Key {
                peers: key.peers.beyond_budget(),
                grpc: false,
                status: 0,
                grpc_status: None,
                flags: Flags::NONE,
            };
        }
        let position = self.at(&key);
        // The names of a newer configuration, where the same text is elsewhere.
        self.requests[position].0 = key;
        self.recent[slot] = position;
        position
    }

    fn at(&mut self, key: &Key) -> usize {
        if let Some(position) = self.positions.get(key) {
            return *position;
        }
        let position = self.requests.len();
        self.requests.push((key.clone(), Requests::default()));
        self.positions.insert(key.clone(), position);
        position
    }

    pub(super) fn opened(&mut self, session: &Session, cluster_id: &str) {
        self.session(session, cluster_id, Family::Opened).opened += 1;
    }

    pub(super) fn closed(&mut self, session: &Session, cluster_id: &str) {
        let entry = self.session(session, cluster_id, Family::Closed);
        entry.closed += 1;
        entry.sent += session.bytes_sent;
        entry.received += session.bytes_received;
    }

    fn session(&mut self, session: &Session, cluster_id: &str, family: Family) -> &mut Connections {
        let workloads = (session.source.as_ref(), session.destination.as_ref());
        let peers = self.peers(&session.downstream, &session.upstream, workloads, b"", cluster_id);
        let mut key = (peers, session.flags);
        if !self.connections.contains_key(&key) && !self.budget.connections.admit(&key, || key.clone()) {
            self.budget.exceeded(family);
            key = (key.0.beyond_budget(), Flags::NONE);
        }
        let entry = self.connections.entry(key).or_default();
        entry.last = self.minute;
        entry
    }

    fn peers(
        &mut self,
        downstream: &Downstream,
        upstream: &Upstream,
        (source, destination): (Option<&Arc<PeerWorkload>>, Option<&Arc<PeerWorkload>>),
        authority: &[u8],
        cluster_id: &str,
    ) -> Peers {
        let unknown = self.name("unknown");
        let outbound = downstream.direction == Direction::Outbound;
        let (service, service_name, service_namespace) = match &upstream.target {
            Target::Cluster(cluster) => (
                cluster.host.host.clone(),
                cluster.host.name.clone(),
                cluster.host.namespace.clone(),
            ),
            Target::Inbound { host: Some(host), .. } => {
                let mut parts = host.splitn(3, '.');
                let name = self.name(parts.next().unwrap_or_default());
                let namespace = self.name(parts.next().unwrap_or_default());
                (host.clone(), name, namespace)
            }
            Target::Inbound { host: None, .. } | Target::InboundPassthrough { .. } => {
                let canonical = destination.map_or("unknown", |d| d.canonical_name.as_str());
                let namespace = destination.map_or("unknown", |d| d.namespace.as_str());
                (
                    self.name(canonical),
                    self.name("InboundPassthroughCluster"),
                    self.name(namespace),
                )
            }
            Target::Passthrough | Target::BlackHole => {
                let name = upstream.target.to_string();
                // Host headers of unknown destinations are the client's to choose (CARD-004).
                let host = std::str::from_utf8(authority)
                    .ok()
                    .filter(|h| !h.is_empty() && h.len() <= 255);
                let host = host.filter(|h| self.is_admitted_host(h));
                (self.name(host.unwrap_or("unknown")), self.name(&name), unknown.clone())
            }
            Target::Unknown(host) => (host.clone(), host.clone(), unknown.clone()),
            Target::None => (unknown.clone(), unknown.clone(), unknown.clone()),
        };
        let (source_principal, destination_principal) = if outbound {
            let own = upstream.principal.as_ref().and(downstream.local_principal.clone());
            (own, upstream.principal.clone())
        } else {
            let own = downstream.principal.as_ref().and(downstream.local_principal.clone());
            (downstream.principal.clone(), own)
        };
        Peers {
            direction: downstream.direction,
            source: source.cloned(),
            destination: destination.cloned(),
            mutual_tls: !outbound && source_principal.is_some() && destination_principal.is_some(),
            source_principal,
            destination_principal,
            service,
            service_name,
            service_namespace,
            cluster_id: self.name(cluster_id),
            other: false,
        }
    }

    /// Whether a Host header has a value of its own. Without a lock where the worker knows it.
    fn is_admitted_host(&mut self, host: &str) -> bool {
        if self.has_all_hosts || self.hosts.contains(host) {
            return self.hosts.contains(host);
        }
        let is_admitted = self.budget.hosts.admit(host, || Arc::from(host));
        if is_admitted {
            self.hosts.insert(Arc::from(host));
        } else {
            // Those that there are will be all, since none leaves.
            self.hosts = self.budget.hosts.all();
            self.has_all_hosts = true;
        }
        is_admitted
    }

    /// The same text once.
    fn name(&mut self, text: &str) -> Name {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        let name: Name = Arc::from(text);
        self.names.insert(text.to_owned(), name.clone());
        name
    }

    /// Adds the series of another worker.
    pub(super) fn add(&mut self, other: &Self) {
        for (key, more) in &other.requests {
            let position = self.at(key);
            let (_, own) = &mut self.requests[position];
            own.count += more.count;
            own.duration.add(&more.duration);
            own.request_bytes.add(&more.request_bytes);
            own.response_bytes.add(&more.response_bytes);
            own.request_messages += more.request_messages;
            own.response_messages += more.response_messages;
        }
        for (key, more) in &other.connections {
            let own = self.connections.entry(key.clone()).or_default();
            own.opened += more.opened;
            own.closed += more.closed;
            own.sent += more.sent;
            own.received += more.received;
        }
    }

    /// What was recorded from now on is of that minute.
    pub(super) fn begin(&mut self, minute: u32) {
        self.minute = minute;
    }

    /// Series that have been idle for that long, or not.
    pub(super) fn aged(&self, minutes: u32) -> Aged<'_> {
        let is_idle = |last: u32| self.minute.saturating_sub(last) > minutes;
        let requests = self.requests.iter().map(move |(key, value)| (key, is_idle(value.last)));
        let connections = self
            .connections
            .iter()
            .map(move |(key, value)| (key, is_idle(value.last)));
        Aged {
            requests: requests.collect(),
            connections: connections.collect(),
        }
    }

    /// Drops series, and names that nothing uses any more.
    pub(super) fn remove(&mut self, vanished: &Vanished) {
        self.requests.retain(|(key, _)| !vanished.requests.contains(key));
        let positions = self.requests.iter().enumerate();
        self.positions = positions.map(|(n, (key, _))| (key.clone(), n)).collect();
        self.connections.retain(|key, _| !vanished.connections.contains(key));
        self.names.retain(|_, name| Arc::strong_count(name) > 1);
    }

    /// Prometheus' text format, in a stable order.
    pub(super) fn print(&self) -> String {
        let requests: BTreeMap<String, (&Key, &Requests)> = self
            .requests
            .iter()
            .map(|(key, value)| (key.labels(), (key, value)))
            .collect();
        let connections: BTreeMap<String, &Connections> = self
            .connections
            .iter()
            .map(|((peers, flags), c)| (tcp_labels(peers, *flags), c))
            .collect();
        let mut out = String::new();
        let mut counter = |name: &str, help: &str, values: &mut dyn Iterator<Item = (String, u64)>| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, value) in values {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        };
        let all = || requests.iter().map(|(labels, (_, r))| (labels.clone(), *r));
        counter(
            "istio_requests_total",
            "Requests.",
            &mut all().map(|(l, r)| (l, r.count)),
        );
        let tcp = || connections.iter().map(|(labels, c)| (labels.clone(), *c));
        counter(
            "istio_tcp_connections_opened_total",
            "Opened connections.",
            &mut tcp().map(|(l, c)| (l, c.opened)),
        );
        counter(
            "istio_tcp_connections_closed_total",
            "Closed connections.",
            &mut tcp().map(|(l, c)| (l, c.closed)),
        );
        counter(
            "istio_tcp_sent_bytes_total",
            "Bytes to the client.",
            &mut tcp().map(|(l, c)| (l, c.sent)),
        );
        counter(
            "istio_tcp_received_bytes_total",
            "Bytes from the client.",
            &mut tcp().map(|(l, c)| (l, c.received)),
        );
        let messages = || {
            // Beyond the budget there is no telling: what has messages is gRPC.
            let has_messages = |(_, r): &&(&Key, &Requests)| r.request_messages + r.response_messages > 0;
            let grpc = requests.values();
            let grpc = grpc.filter(|each| each.0.grpc || (each.0.peers.other && has_messages(each)));
            // Several statuses of one pair of peers are one series here (MET-017).
            let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
            for (key, r) in grpc {
                let sum = sums.entry(key.message_labels()).or_default();
                sum.0 += r.request_messages;
                sum.1 += r.response_messages;
            }
            sums
        };
        counter(
            "istio_request_messages_total",
            "Messages to the server.",
            &mut messages().into_iter().map(|(l, s)| (l, s.0)),
        );
        counter(
            "istio_response_messages_total",
            "Messages to the client.",
            &mut messages().into_iter().map(|(l, s)| (l, s.1)),
        );
        counter(
            "weft_metric_overflow_total",
            "Records beyond the budget of label sets.",
            &mut self
                .budget
                .overflow()
                .map(|(metric, n)| (format!("metric=\"{metric}\""), n)),
        );
        type Pick = fn(&Requests) -> &Histogram;
        let histograms: [(&str, &str, Pick); 3] = [
            ("istio_request_duration_milliseconds", "Duration of requests.", |r| {
                &r.duration
            }),
            ("istio_request_bytes", "Size of requests.", |r| &r.request_bytes),
            ("istio_response_bytes", "Size of responses.", |r| &r.response_bytes),
        ];
        for (name, help, pick) in histograms {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            for (labels, requests) in all() {
                let histogram = pick(requests);
                let mut sum = 0;
                for ((_, bound), count) in BOUNDS.iter().zip(&histogram.buckets) {
                    sum += count;
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}");
                }
                let Histogram { sum, count, .. } = histogram;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
                let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
            }
        }
        out
    }
}

/// A place in [`Series::recent`].
fn slot(exchange: &Exchange) -> usize {
    let address = |workload: &Option<Arc<PeerWorkload>>| workload.as_ref().map_or(0, |w| Arc::as_ptr(w) as usize);
    let service = match &exchange.upstream.target {
        Target::Cluster(cluster) => Arc::as_ptr(&cluster.host.host).cast::<u8>() as usize,
        _ => 0,
    };
    let parts = [
        address(&exchange.source),
        address(&exchange.destination),
        service,
        usize::from(exchange.status),
    ];
    let mixed = parts.iter().fold(0usize, |sum, part| {
        (sum.rotate_left(5) ^ part).wrapping_mul(0x517c_c1b7_2722_0a95)
    });
    // The upper bits are the well mixed ones.
    (mixed >> 32) % RECENT
}

fn grpc_status(exchange: &Exchange) -> Option<u16> {
    exchange.grpc.then_some(exchange.grpc_status).flatten()
}

/// Whether two are the same object, or both none.
fn same<T: ?Sized>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

impl Key {
    /// Whether a request certainly belongs to the series; false where only a comparison of texts would tell.
    fn is_of(&self, exchange: &Exchange) -> bool {
        let peers = &self.peers;
        let (downstream, upstream) = (&exchange.downstream, &exchange.upstream);
        let service = match &upstream.target {
            Target::Cluster(cluster) => Some(&cluster.host.host),
            Target::Inbound { host, .. } => host.as_ref(),
            _ => None,
        };
        let principals = match peers.direction {
            Direction::Outbound => (
                upstream.principal.as_ref().and(downstream.local_principal.as_ref()),
                upstream.principal.as_ref(),
            ),
            Direction::Inbound => (
                downstream.principal.as_ref(),
                downstream.principal.as_ref().and(downstream.local_principal.as_ref()),
            ),
        };
        self.status == exchange.status
            && self.flags == exchange.flags
            && self.grpc == exchange.grpc
            && self.grpc_status == grpc_status(exchange)
            && !peers.other
            && peers.direction == downstream.direction
            && service.is_some_and(|service| Arc::ptr_eq(service, &peers.service))
            && same(exchange.source.as_ref(), peers.source.as_ref())
            && same(exchange.destination.as_ref(), peers.destination.as_ref())
            && same(principals.0, peers.source_principal.as_ref())
            && same(principals.1, peers.destination_principal.as_ref())
    }
}

impl Peers {
    fn beyond_budget(self) -> Self {
        let other: Name = Arc::from("other");
        Self {
            source: None,
            destination: None,
            source_principal: None,
            destination_principal: None,
            service: other.clone(),
            service_name: other.clone(),
            service_namespace: other,
            mutual_tls: false,
            other: true,
            ..self
        }
    }

    fn labels(&self, out: &mut String) {
        let none = if self.other { "other" } else { "unknown" };
        let revision = if self.other { "other" } else { "latest" };
        let mut label = |name: &str, value: &str| {
            if !out.is_empty() {
                out.push(',');
            }
            let _ = write!(out, "{name}=\"");
            for c in value.chars() {
                match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    '\n' => out.push_str("\\n"),
                    c => out.push(c),
                }
            }
            out.push('"');
        };
        label(
            "reporter",
            if self.direction == Direction::Outbound {
                "source"
            } else {
                "destination"
            },
        );
        let sides = [
            ("source", self.source.as_deref(), self.source_principal.as_deref()),
            (
                "destination",
                self.destination.as_deref(),
                self.destination_principal.as_deref(),
            ),
        ];
        for (side, workload, principal) in sides {
            let of = |pick: fn(&PeerWorkload) -> &str| workload.map_or(none, pick);
            label(&format!("{side}_workload"), of(|w| &w.name));
            label(&format!("{side}_canonical_service"), of(|w| &w.canonical_name));
            label(
                &format!("{side}_canonical_revision"),
                workload.map_or(revision, |w| &w.canonical_revision),
            );
            label(&format!("{side}_workload_namespace"), of(|w| &w.namespace));
            label(&format!("{side}_principal"), principal.unwrap_or(none));
            label(
                &format!("{side}_app"),
                workload.and_then(|w| w.app.as_deref()).unwrap_or(none),
            );
            label(
                &format!("{side}_version"),
                workload.and_then(|w| w.version.as_deref()).unwrap_or(none),
            );
            label(
                &format!("{side}_cluster"),
                if workload.is_some() { &self.cluster_id } else { none },
            );
        }
        label("destination_service", &self.service);
        label("destination_service_name", &self.service_name);
        label("destination_service_namespace", &self.service_namespace);
    }

    fn security(&self) -> &'static str {
        match (self.direction, self.mutual_tls) {
            (Direction::Outbound, _) => "unknown",
            (Direction::Inbound, true) => "mutual_tls",
            (Direction::Inbound, false) => "none",
        }
    }
}

impl Key {
    fn labels(&self) -> String {
        let mut out = String::with_capacity(900);
        self.peers.labels(&mut out);
        if self.peers.other {
            out.push_str(
                ",request_protocol=\"other\",response_code=\"other\",grpc_response_status=\"other\",\
                 response_flags=\"other\",connection_security_policy=\"other\"",
            );
            return out;
        }
        let protocol = if self.grpc { "grpc" } else { "http" };
        let grpc_status = self.grpc_status.map(|s| s.to_string()).unwrap_or_default();
        let _ = write!(
            out,
            ",request_protocol=\"{protocol}\",response_code=\"{}\",grpc_response_status=\"{grpc_status}\",\
             response_flags=\"{}\",connection_security_policy=\"{}\"",
            self.status,
            self.flags,
            self.peers.security()
        );
        out
    }

    fn message_labels(&self) -> String {
        let mut out = String::with_capacity(900);
        self.peers.labels(&mut out);
        out
    }
}

fn tcp_labels(peers: &Peers, flags: Flags) -> String {
    let mut out = String::with_capacity(900);
    peers.labels(&mut out);
    if peers.other {
        out.push_str(",request_protocol=\"other\",response_flags=\"other\",connection_security_policy=\"other\"");
        return out;
    }
    let security = peers.security();
    let _ = write!(
        out,
        ",request_protocol=\"tcp\",response_flags=\"{flags}\",connection_security_policy=\"{security}\""
    );
    out
}

/// Series that are found without a comparison of names.
const RECENT: usize = 32;

#[cfg(test)]
mod tests;
