//! What the workers share: each value is immutable and replaced by a pointer swap.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;
use weft_bundle::model::{Config, EndpointTable};

use crate::cluster::Counters;
use crate::gateway::Ports;
use crate::io::{self, Dial, Source};
use crate::locality::Here;
use crate::lookup::{Asker, Lookups};
use crate::overload::Overload;
use crate::telemetry::Telemetry;
use crate::tls::{CredentialVolume, Identity};

/// Everything that workers, reload and status servers share.
#[derive(Debug)]
pub struct Shared {
    /// What the data path needs of the process's settings.
    pub settings: Settings,
    /// The configuration in force; `None` until the first one is activated.
    pub current: ArcSwapOption<Snapshot>,
    /// The endpoints in force.
    pub endpoints: ArcSwap<EndpointTable>,
    /// The identity in force; `None` until one is loaded: nothing is then served in clear in place of mTLS (ID-118).
    pub identity: ArcSwapOption<Identity>,
    /// Ends of [`DrainPhase`]; receivers are made with [`watch::Sender::subscribe`].
    pub drain: watch::Sender<DrainPhase>,
    /// Metrics and access log.
    pub telemetry: Arc<Telemetry>,
    /// Open downstream connections, all workers together.
    pub connections: AtomicU64,
    /// Clients of open connections that keep their addresses (NET-081); empty without TPROXY.
    pub clients: Mutex<HashSet<SocketAddr>>,
    /// Numbers given to connections so far.
    pub connection_ids: AtomicU64,
    /// Pressure on memory and descriptors.
    pub overload: Overload,
    /// Loopback port of the explicit HTTP proxy that the configuration asked for at the start (SM-052).
    pub http_proxy: std::sync::OnceLock<u16>,
    /// Certificates that the configuration names, as the operator copied them.
    pub credentials: CredentialVolume,
    /// Ports that a gateway has open; none in a sidecar.
    pub ports: Ports,
    /// Told when a listener no longer accepts.
    pub lost: tokio::sync::Notify,
    /// Names that the proxy looks up.
    pub lookups: Arc<Lookups>,
    /// What all workers together know of destinations, by name (DR-073). Looked up when a worker first uses a destination.
    pub counters: Mutex<HashMap<Arc<str>, Arc<Counters>>>,
}

impl Shared {
    /// Begins without configuration, endpoints and identity.
    #[must_use]
    pub fn new(settings: Settings, telemetry: Arc<Telemetry>) -> Self {
        Self {
            overload: Overload::new(settings.memory_limit),
            http_proxy: std::sync::OnceLock::new(),
            ports: Ports::new(settings.gateway, settings.workers),
            credentials: CredentialVolume::default(),
            lost: tokio::sync::Notify::new(),
            lookups: Lookups::new(Asker {
                mark: settings.mark,
                ipv6: settings.addresses.iter().any(IpAddr::is_ipv6),
                ..Asker::default()
            }),
            settings,
            current: ArcSwapOption::empty(),
            endpoints: ArcSwap::default(),
            identity: ArcSwapOption::empty(),
            drain: watch::Sender::new(DrainPhase::Serving),
            telemetry,
            connections: AtomicU64::new(0),
            clients: Mutex::default(),
            connection_ids: AtomicU64::new(0),
            counters: Mutex::default(),
        }
    }

    /// All listeners of the data path: those of the settings, and the explicit HTTP proxy of the configuration.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        let mut listeners = self.settings.listeners.clone();
        if let Some(port) = self.http_proxy.get() {
            listeners.extend(io::loopbacks().into_iter().map(|loopback| Listener {
                address: SocketAddr::new(loopback, *port),
                role: Role::HttpProxy,
            }));
        }
        listeners
    }
}

/// One configuration, activated as a whole (LIFE-040).
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its revision (DLV-021).
    pub revision: String,
}

/// Where the process is on its way to its end (LIFE-021 ff.).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainPhase {
    /// Not ending.
    Serving,
    /// Peers are asked to leave; everything is still served.
    Draining,
    /// Nobody is accepted any more; what was accepted ends with its answer, and workers with it.
    Closing,
}

/// What the data path needs of the process's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Listeners, opened by every worker.
    pub listeners: Vec<Listener>,
    /// Where queries for names are answered (NET-007); empty: they are not captured.
    pub dns: Vec<SocketAddr>,
    /// The pod's own addresses (NET-014). Empty: no inbound destination is refused as foreign.
    pub addresses: Vec<IpAddr>,
    /// Mark of the proxy's own sockets where the redirect tells it by mark, not owner (NET-112).
    pub mark: Option<u32>,
    /// Connections to the application come from 127.0.0.6 or ::6 (NET-029); only with a redirect.
    pub inbound_source: bool,
    /// TPROXY: connections to the application come from the client's address, with this mark (NET-081).
    pub transparent: Option<u32>,
    /// Memory that the pod states as its limit, in bytes.
    pub memory_limit: Option<u64>,
    /// The process is a gateway, whose ports are on this address.
    pub gateway: Option<IpAddr>,
    /// The pod, for metadata of peers (MET-039).
    pub pod: Pod,
    /// Where the pod runs, as far as its labels and environment tell; its node's locality is in the endpoint table.
    pub here: Here,
}

impl Settings {
    /// How the proxy calls the application on its own account (NET-029).
    #[must_use]
    pub fn dial_application(&self) -> Dial {
        let source = if self.inbound_source {
            Source::Proxy
        } else {
            Source::Any
        };
        Dial {
            mark: self.mark,
            source,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            listeners: Vec::new(),
            dns: Vec::new(),
            addresses: Vec::new(),
            mark: None,
            inbound_source: false,
            transparent: None,
            memory_limit: None,
            gateway: None,
            pod: Pod::default(),
            here: Here::default(),
        }
    }
}

/// Facts of the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Primary address; empty when unknown.
    pub address: String,
    /// Id of the cluster, `Kubernetes` by default.
    pub cluster_id: String,
}

/// A listener of the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Address that it is bound to.
    pub address: SocketAddr,
    /// What arrives there.
    pub role: Role,
}

/// What arrives at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The application's redirected connections (15001).
    Outbound,
    /// Redirected connections to the pod (15006).
    Inbound,
    /// The application's requests to an explicit HTTP proxy (SM-052).
    HttpProxy,
    /// Connections to a port of the pod that are not redirected (LOC-060).
    Explicit {
        /// Where the application listens.
        target: SocketAddr,
        /// Target port whose rules hold; usually that of the listener.
        port: u16,
    },
    /// Connections that are taken as outbound to a fixed destination: tests and published ports.
    Fixed {
        /// What the client counts as having dialled.
        destination: SocketAddr,
    },
}
