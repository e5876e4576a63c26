//! Ports of a gateway.

use super::{Destinations, Domains, TlsRule};

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
    Http(Domains),
    /// TLS that passes through by server name, the most specific first.
    Tls(Vec<TlsRule>),
    /// Whatever comes.
    Tcp(Destinations),
}
