//! Ports of a gateway.

use std::collections::HashMap;
use std::sync::Arc;

use super::Destinations;
use super::directory::{Domain, Domains, Names};
use crate::wire;

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
    /// TLS, by server name.
    Tls(TlsServing),
    /// Whatever comes.
    Tcp(Destinations),
}

/// What becomes of TLS, by server name.
#[derive(Debug, Default)]
pub struct TlsServing {
    /// By name in lower case: a whole one, `.x` for all that end so, empty for any and none.
    pub(super) by_name: HashMap<Box<str>, Tls>,
}

/// What becomes of a connection of TLS.
#[derive(Debug, Clone)]
pub enum Tls {
    /// It goes on as it is.
    PassesThrough(Arc<Destinations>),
    /// It ends here.
    Ends(Arc<TlsServer>),
}

/// A server at which TLS ends.
#[derive(Debug)]
pub struct TlsServer {
    /// How.
    pub tls: wire::TlsSettings,
    /// What is inside.
    pub inside: Inside,
}

/// What is inside of TLS that ends.
#[derive(Debug)]
pub enum Inside {
    /// HTTP, by Host.
    Http(VirtualHosts),
    /// Whatever comes.
    Tcp(Destinations),
}

impl TlsServing {
    /// Adds what a pattern of server names leads to, unless something does already.
    pub(super) fn insert(&mut self, pattern: &str, tls: &Tls) -> bool {
        let pattern = pattern.to_ascii_lowercase();
        let name = pattern.strip_prefix('*').unwrap_or(&pattern);
        match self.by_name.entry(name.into()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(tls.clone());
                true
            }
        }
    }

    /// Finds by server name in lower case, which is empty for a client that tells none: the most specific (GW-056, GW-058).
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Tls> {
        let is_whole = !name.is_empty() && !name.starts_with('.');
        if is_whole && let Some(found) = self.by_name.get(name) {
            return Some(found);
        }
        let ends = name.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'.');
        let mut found = ends.filter_map(|(at, _)| self.by_name.get(&name[at..]));
        found.next().or_else(|| self.by_name.get(""))
    }

    /// All servers at which TLS ends, one for each of its names.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<TlsServer>> {
        self.by_name.values().filter_map(|tls| match tls {
            Tls::Ends(server) => Some(server),
            Tls::PassesThrough(_) => None,
        })
    }
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
