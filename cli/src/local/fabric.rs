//! What connects the pods of a run, and how the run itself reaches them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use weft_sidecar::init::{Family, Nat, apply_nat};

use super::loopback::Block;
use super::namespace::Switch;
use super::service::Forward;

/// What connects the pods of a run.
#[derive(Debug)]
pub(super) enum Fabric {
    /// A bridge in a namespace of the run's, where addresses of services are translated.
    Namespaces(Switch),
    /// Loopback addresses that no other run has.
    Loopback(Block),
}

impl Fabric {
    /// Tells where addresses of services lead.
    ///
    /// # Errors
    /// Why the kernel did not take it.
    pub(super) fn forward(&self, reach: &Reach, forwards: &BTreeSet<Forward>) -> Result<(), String> {
        match self {
            Self::Loopback(_) => {
                reach.replace(forwards);
                Ok(())
            }
            Self::Namespaces(switch) => {
                let translation = |forward: &Forward| Nat {
                    address: forward.address,
                    port: forward.port,
                    endpoints: forward.endpoints.iter().copied().collect(),
                };
                let translations: Vec<Nat> = forwards.iter().map(translation).collect();
                let apply = || apply_nat("weft-services", Family::Ip, &translations);
                match switch.namespace().within(apply) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(e)) => Err(e.to_string()),
                    Err(e) => Err(e.to_string()),
                }
            }
        }
    }
}

/// The run's own way to pods and services, that of a client without a sidecar.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    /// Connections of its tasks reach pods.
    pub(super) runtime: tokio::runtime::Handle,
    /// Where addresses of services lead, if nothing else translates them.
    table: Option<Arc<Mutex<Table>>>,
}

#[derive(Debug, Default)]
struct Table {
    forwards: BTreeMap<(Ipv4Addr, u16), Vec<(Ipv4Addr, u16)>>,
    turn: usize,
}

impl Reach {
    /// `translates`: addresses of services exist for this way alone.
    pub(super) fn new(runtime: tokio::runtime::Handle, translates: bool) -> Self {
        let table = translates.then(Arc::default);
        Self { runtime, table }
    }

    fn replace(&self, forwards: &BTreeSet<Forward>) {
        if let Some(table) = &self.table {
            let endpoints = |f: &Forward| ((f.address, f.port), f.endpoints.iter().copied().collect());
            table.lock().unwrap_or_else(PoisonError::into_inner).forwards = forwards.iter().map(endpoints).collect();
        }
    }

    /// What is to be dialled for an address and port: ready endpoints in turn; `None` when a service has none.
    pub(super) fn target(&self, address: Ipv4Addr, port: u16) -> Option<(Ipv4Addr, u16)> {
        let Some(table) = &self.table else {
            return Some((address, port));
        };
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        table.turn = table.turn.wrapping_add(1);
        let turn = table.turn;
        match table.forwards.get(&(address, port)) {
            Some(endpoints) => endpoints.get(turn % endpoints.len().max(1)).copied(),
            None => Some((address, port)),
        }
    }

    /// Opens a connection. The socket is opened where pods can be reached; used it can be anywhere.
    ///
    /// # Errors
    /// Those of connecting; `ConnectionRefused` for a service without ready endpoints.
    pub(super) async fn dial(&self, address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        let target = self.target(address, port).ok_or(io::ErrorKind::ConnectionRefused)?;
        let connect = async move { TcpStream::connect(SocketAddr::from(target)).await?.into_std() };
        let stream = self.runtime.spawn(connect).await.map_err(io::Error::other)??;
        TcpStream::from_std(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOC-023
    #[tokio::test]
    async fn ready_endpoints_take_turns() {
        let reach = Reach::new(tokio::runtime::Handle::current(), true);
        let service = Ipv4Addr::new(10, 98, 0, 1);
        let pods = [Ipv4Addr::new(127, 64, 0, 2), Ipv4Addr::new(127, 64, 0, 3)];
        let forward = |endpoints: &[Ipv4Addr]| Forward {
            address: service,
            port: 80,
            endpoints: endpoints.iter().map(|a| (*a, 8080)).collect(),
        };
        reach.replace(&BTreeSet::from([forward(&pods)]));
        let found: BTreeSet<_> = (0..4).filter_map(|_| reach.target(service, 80)).collect();
        assert_eq!(found, BTreeSet::from(pods.map(|pod| (pod, 8080))));
        assert_eq!(reach.target(pods[0], 8080), Some((pods[0], 8080)), "a pod is itself");
        reach.replace(&BTreeSet::from([forward(&[])]));
        assert_eq!(reach.target(service, 80), None);
    }
}
