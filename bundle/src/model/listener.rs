//! Ports of a gateway.

use std::sync::Arc;

use super::directory::{Domain, Domains, Names};
use super::{Destinations, TlsRule};

/// A port that a gateway opens.
#[derive(Debug)]
pub struct Listener {
    /// Port of the pod.
    pub port: u16,
    /// Port of the Service in front of it, by which rules call it.
    pub service_port: u16,
    /// Requests of gRPC-Web are translated (SM-026).
    pub grpc_web: bool,
    /// What is served there.
    pub serves: Serves,
}

/// What a port of a gateway serves.
#[derive(Debug)]
pub enum Serves {
    /// HTTP in clear, by Host.
    Http(VirtualHosts),
    /// TLS that passes through by server name, the most specific first.
    Tls(Vec<TlsRule>),
    /// Whatever comes.
    Tcp(Destinations),
}

/// Names that a port of a gateway serves.
#[derive(Debug, Default)]
pub struct VirtualHosts {
    pub(super) names: Names,
    pub(super) leads: Vec<Domain>,
}

impl VirtualHosts {
    pub(super) fn insert(&mut self, names: &[String], domain: Domain) {
        let place = u32::try_from(self.leads.len()).expect("a bundle is smaller than 64 MiB");
        for name in names {
            self.names.insert(&Arc::from(name.as_str()), place, &domain);
        }
        self.leads.push(domain);
    }

    /// To be called when all names are there.
    pub(super) fn finish(&mut self) {
        self.names.finish();
    }

    /// Finds a name without port, in lower case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Domain> {
        Domains::new(&self.names, &self.leads).find(name)
    }
}
