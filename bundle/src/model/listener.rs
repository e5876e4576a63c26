//! Ports of a gateway.

use std::sync::Arc;

use super::{Destinations, Domains, TlsRule};
use crate::wire;

/// A port that a gateway opens.
#[derive(Debug)]
pub struct Listener {
    /// Port of the pod.
    pub port: u16,
    /// Port of the Service in front of it, by which rules call it.
    pub service_port: u16,
    /// What is served there.
    pub serves: Serves,
}

/// What a port of a gateway serves.
#[derive(Debug)]
pub enum Serves {
    /// HTTP, by Host.
    Http(Domains),
    /// TLS, by server name.
    Tls(TlsServing),
    /// Whatever comes.
    Tcp(Destinations),
}

/// What becomes of TLS.
#[derive(Debug, Default)]
pub struct TlsServing {
    /// What passes through.
    pub passthrough: Vec<TlsRule>,
    /// What ends here.
    pub terminated: Vec<Arc<TlsServer>>,
}

/// A server at which TLS ends.
#[derive(Debug)]
pub struct TlsServer {
    /// SNI values, lower case.
    pub sni: Vec<Box<str>>,
    /// How.
    pub tls: wire::TlsSettings,
    /// What is inside.
    pub serves: Serves,
}

/// What becomes of a connection of TLS.
#[derive(Debug)]
pub enum Tls<'s> {
    /// It goes on as it is.
    PassesThrough(&'s Destinations),
    /// It ends here.
    Ends(&'s Arc<TlsServer>),
}

impl TlsServing {
    /// Finds by server name in lower case, which is empty for a client that tells none: the most specific (GW-056, GW-058).
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Tls<'_>> {
        let best = |sni: &[Box<str>]| sni.iter().filter_map(|pattern| rank(pattern, name)).max();
        let passing = self.passthrough.iter();
        let passing = passing.filter_map(|rule| Some((best(&rule.sni)?, Tls::PassesThrough(&rule.destinations))));
        let ending = self.terminated.iter();
        let ending = ending.filter_map(|server| Some((best(&server.sni)?, Tls::Ends(server))));
        // The first of equal ones.
        let found = passing.chain(ending).reduce(|a, b| if b.0 > a.0 { b } else { a });
        found.map(|(_, tls)| tls)
    }
}

/// How specific a pattern is that fits a name.
fn rank(pattern: &str, name: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        None => (pattern == name).then_some(usize::MAX),
        Some("") => Some(0),
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
    }
}
