//! Endpoints by host, tables resolved.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::breathe;
use crate::wire::{self, Health, MeshTls, PeerWorkload};

/// Everything known of endpoints: all shards of the namespace together.
#[derive(Debug, Default)]
pub struct EndpointTable {
    serial: u64,
    hosts: HashMap<Arc<str>, Arc<HostEndpoints>>,
    nodes: BTreeMap<String, String>,
    proxies: BTreeMap<String, Arc<BTreeMap<String, u32>>>,
    peers: HashMap<IpAddr, Arc<PeerWorkload>>,
}

/// The endpoints of one host.
#[derive(Debug, PartialEq, Eq)]
pub struct HostEndpoints {
    /// Fully qualified name.
    pub host: Arc<str>,
    /// Service accounts, `namespace/name`.
    pub accounts: Vec<String>,
    /// Endpoints, sorted by address.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Target port by name of the Service port.
    pub ports: Arc<BTreeMap<String, u16>>,
    /// Labels, for subsets.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Workload, for telemetry.
    pub workload: Option<Arc<PeerWorkload>>,
    /// `region/zone/subzone`.
    pub locality: Option<Arc<str>>,
    /// Node that it runs on.
    pub node: Option<Arc<str>>,
    /// Load-balancing weight, at least 1.
    pub weight: u32,
    /// Health as Kubernetes sees it.
    pub health: Health,
    /// Which ports take mesh mTLS.
    pub tls: MeshTls,
}

impl Endpoint {
    /// Value of a label: derived from where it runs (SM-006), else its own.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        derived(name, self.locality.as_deref(), self.node.as_deref())
            .or_else(|| self.labels.get(name).map(String::as_str))
    }

    /// Whether a target port takes mesh mTLS (ID-093).
    #[must_use]
    pub fn takes_mesh_tls(&self, port: u16) -> bool {
        match &self.tls {
            MeshTls::None => false,
            MeshTls::All => true,
            MeshTls::Except(ports) => !ports.contains(&port),
        }
    }
}

impl HostEndpoints {
    /// The endpoint with this address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Endpoint> {
        let position = self.endpoints.binary_search_by(|e| e.address.cmp(&address)).ok()?;
        self.endpoints.get(position)
    }
}

impl EndpointTable {
    /// Resolves the tables of all shards. Hosts that did not change keep their value of `previous`, so that holders
    /// see by pointer what changed. Positions without table entry, which loading refuses, count as absent.
    #[must_use]
    pub fn new(shards: &[wire::Endpoints], previous: Option<&Self>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut table = Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            ..Self::default()
        };
        for shard in shards {
            let labels: Vec<_> = shard.labels.iter().cloned().map(Arc::new).collect();
            let ports: Vec<_> = shard.ports.iter().cloned().map(Arc::new).collect();
            let workloads: Vec<_> = shard.workloads.iter().cloned().map(Arc::new).collect();
            let localities: Vec<Arc<str>> = shard.localities.iter().map(|l| Arc::from(l.as_str())).collect();
            let nodes: Vec<Arc<str>> = shard.node_names.iter().map(|n| Arc::from(n.as_str())).collect();
            for host in &shard.hosts {
                breathe();
                let mut endpoints: Vec<Endpoint> = host
                    .endpoints
                    .iter()
                    .map(|e| Endpoint {
                        address: e.address,
                        ports: at(&ports, Some(e.ports)).unwrap_or_default(),
                        labels: at(&labels, e.labels).unwrap_or_default(),
                        workload: at(&workloads, e.workload),
                        locality: at(&localities, e.locality),
                        node: at(&nodes, e.node),
                        weight: e.weight.max(1),
                        health: e.health,
                        tls: e.tls.clone(),
                    })
                    .collect();
                endpoints.sort_by_key(|e| e.address);
                for endpoint in &endpoints {
                    if let Some(workload) = &endpoint.workload {
                        table.peers.insert(endpoint.address, workload.clone());
                    }
                }
                let mut parsed = Arc::new(HostEndpoints {
                    host: Arc::from(host.host.as_str()),
                    accounts: host.accounts.clone(),
                    endpoints,
                });
                if let Some(old) = previous.and_then(|p| p.host(&host.host)).filter(|old| **old == parsed) {
                    parsed = old.clone();
                }
                table.hosts.insert(parsed.host.clone(), parsed);
            }
            table.nodes.extend(shard.nodes.clone());
            for (workload, zones) in &shard.proxies {
                table.proxies.insert(workload.clone(), Arc::new(zones.clone()));
            }
        }
        table
    }

    /// Tells this table from every other one of the process.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The endpoints of a host; `None`: its shard names none, so it is not known whether there are any (DLV-116).
    #[must_use]
    pub fn host(&self, host: &str) -> Option<&Arc<HostEndpoints>> {
        self.hosts.get(host)
    }

    /// All hosts, in no order.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<HostEndpoints>> {
        self.hosts.values()
    }

    /// Locality of a node (DLV-014).
    #[must_use]
    pub fn locality(&self, node: &str) -> Option<&str> {
        self.nodes.get(node).map(String::as_str)
    }

    /// Number of proxies of a workload by zone, `region/zone` (DR-071).
    #[must_use]
    pub fn proxies(&self, workload: &str) -> Option<&Arc<BTreeMap<String, u32>>> {
        self.proxies.get(workload)
    }

    /// The workloads of all endpoints, as often as they have addresses.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<PeerWorkload>> {
        self.peers.values()
    }

    /// The workload that has an address, for telemetry (MET-034).
    #[must_use]
    pub fn peer(&self, address: IpAddr) -> Option<&Arc<PeerWorkload>> {
        self.peers.get(&address)
    }
}

/// Value of a label that follows from where something runs; `None` for labels of its own, and where it is not known.
#[must_use]
pub fn derived<'l>(name: &str, locality: Option<&'l str>, node: Option<&'l str>) -> Option<&'l str> {
    let part = |n| {
        locality
            .and_then(|l| l.split('/').nth(n))
            .filter(|part| !part.is_empty())
    };
    match name {
        "topology.kubernetes.io/region" => part(0),
        "topology.kubernetes.io/zone" => part(1),
        "topology.istio.io/subzone" => part(2),
        "topology.istio.io/cluster" => Some(CLUSTER),
        "kubernetes.io/hostname" => node,
        _ => None,
    }
}

/// Whether a label follows from where something runs (SM-006).
#[must_use]
pub fn is_derived(name: &str) -> bool {
    matches!(
        name,
        "topology.kubernetes.io/region"
            | "topology.kubernetes.io/zone"
            | "topology.istio.io/subzone"
            | "topology.istio.io/cluster"
            | "topology.istio.io/network"
            | "kubernetes.io/hostname"
    )
}

/// Name of the only cluster of an installation.
const CLUSTER: &str = "Kubernetes";

fn at<T: Clone>(table: &[T], position: Option<u32>) -> Option<T> {
    table.get(usize::try_from(position?).ok()?).cloned()
}
