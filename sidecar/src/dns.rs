//! DNS capture: the application's queries, answered here where the mesh knows the name, else by the servers of the pod's
//! resolver (interception.md, section G).
//!
//! The resolver has a thread of its own: neither traffic nor probes wait for it, nor it for them. It answers from the
//! configuration in force, forwards everything while there is none, and ends with the process (NET-095).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use weft_bundle::model::Host;
use weft_bundle::wire::Health;

use crate::shared::Shared;
use crate::telemetry::Counter;
pub use answer::{Decision, decide};
pub use forward::{Forwarder, Transport};
pub use servers::{RESOLV_CONF, servers};

mod answer;
mod forward;
mod servers;

/// Open sockets of the resolver, UDP and TCP for each address.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// Opens them.
    ///
    /// # Errors
    /// That of the kernel, with the address.
    pub fn open(addresses: &[SocketAddr]) -> io::Result<Self> {
        let named = |address: &SocketAddr| {
            let address = *address;
            move |e: io::Error| io::Error::new(e.kind(), format!("listen on {address} for DNS: {e}"))
        };
        let udp = |address: &SocketAddr| -> io::Result<std::net::UdpSocket> {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let tcp = |address: &SocketAddr| -> io::Result<std::net::TcpListener> {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
            // A process that takes the place of another one finds that one's closed connections.
            socket.set_reuse_address(true)?;
            socket.bind(&(*address).into())?;
            socket.listen(128)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        let mut sockets = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
        };
        for address in addresses {
            sockets.udp.push(udp(address).map_err(named(address))?);
            sockets.tcp.push(tcp(address).map_err(named(address))?);
        }
        Ok(sockets)
    }

    /// Addresses over UDP, with the ports that the kernel chose.
    #[must_use]
    pub fn udp_addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Addresses over TCP, with the ports that the kernel chose.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

/// Serves until the process ends; what the mesh does not know is asked of `servers`, in their order.
///
/// # Errors
/// That no thread can be started.
pub fn start(shared: Arc<Shared>, sockets: Sockets, servers: Vec<SocketAddr>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let resolver = Arc::new(Resolver::new(shared, servers));
    let (udp, tcp) = {
        let _entered = runtime.enter();
        let udp: io::Result<Vec<_>> = sockets.udp.into_iter().map(UdpSocket::from_std).collect();
        let tcp: io::Result<Vec<_>> = sockets.tcp.into_iter().map(TcpListener::from_std).collect();
        (udp?, tcp?)
    };
    std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
        runtime.block_on(async {
            for socket in udp {
                tokio::spawn(resolver.clone().serve_datagrams(socket));
            }
            for listener in tcp {
                tokio::spawn(resolver.clone().serve_connections(listener));
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(())
}

/// What the resolver knows and how much it takes on.
struct Resolver {
    shared: Arc<Shared>,
    known: Mutex<Arc<Known>>,
    forwarder: Forwarder,
    /// Places for queries that wait for a server.
    waiting: Arc<Semaphore>,
    /// Places for connections of clients.
    connections: Arc<Semaphore>,
}

/// The hosts of one configuration by name.
#[derive(Default)]
struct Known {
    serial: u64,
    hosts: HashMap<Arc<str>, Arc<Host>>,
    /// Ending of names of the cluster's own services.
    cluster: String,
}

impl Known {
    /// The host that has a name: its own, or the longest wildcard that covers it.
    fn find(&self, name: &str) -> Option<&Arc<Host>> {
        if let Some(host) = self.hosts.get(name) {
            return Some(host);
        }
        let dots = name.match_indices('.').map(|(at, _)| at);
        let wildcards = dots.filter(|at| *at > 0).map(|at| format!("*{}", &name[at..]));
        let mut found = wildcards.filter_map(|wildcard| self.hosts.get(wildcard.as_str()));
        found.next()
    }
}

impl Resolver {
    fn new(shared: Arc<Shared>, servers: Vec<SocketAddr>) -> Self {
        Self {
            forwarder: Forwarder::new(servers, shared.settings.mark),
            shared,
            known: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    async fn serve_datagrams(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; QUERY_LENGTH + 1];
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(e) => {
                    // It tells of an earlier answer that its asker no longer wanted, or of a shortage.
                    if e.kind() != io::ErrorKind::ConnectionRefused {
                        sleep(PAUSE).await;
                    }
                    continue;
                }
            };
            let query = &buffer[..length];
            // Longer than any query is, and cut by the kernel.
            if length > QUERY_LENGTH {
                continue;
            }
            match self.decide(query, Transport::Udp) {
                Decision::Ignore => {}
                Decision::Answer(answer) => {
                    // A client that has gone away hears nothing.
                    let _ = socket.send_to(&answer, client).await;
                }
                Decision::Forward { limit } => {
                    let Ok(place) = self.waiting.clone().try_acquire_owned() else {
                        self.shared.telemetry.count(Counter::DnsFailed);
                        let _ = socket.send_to(&answer::failure(query), client).await;
                        continue;
                    };
                    let (resolver, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    tokio::spawn(async move {
                        let answer = resolver.forward(&query, Transport::Udp, limit).await;
                        let _ = socket.send_to(&answer, client).await;
                        drop(place);
                    });
                }
            }
        }
    }

    async fn serve_connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(place) = self.connections.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let resolver = self.clone();
            tokio::spawn(async move {
                // However it ends, the client asks again if it wants to.
                let _ = resolver.serve_connection(stream).await;
                drop(place);
            });
        }
    }

    /// Queries with their length in front, answered one after the other (RFC 7766).
    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        loop {
            let mut length = [0; 2];
            timeout(IDLE, stream.read_exact(&mut length)).await.map_err(late)??;
            let length = usize::from(u16::from_be_bytes(length));
            if length > QUERY_LENGTH {
                return Ok(());
            }
            let mut query = vec![0; length];
            timeout(IDLE, stream.read_exact(&mut query)).await.map_err(late)??;
            let answer = match self.decide(&query, Transport::Tcp) {
                Decision::Ignore => return Ok(()),
                Decision::Answer(answer) => answer,
                Decision::Forward { limit } => {
                    // Waits its turn: there are no more connections than places.
                    let place = self.waiting.acquire().await.map_err(io::Error::other)?;
                    let answer = self.forward(&query, Transport::Tcp, limit).await;
                    drop(place);
                    answer
                }
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, stream.write_all(&framed)).await.map_err(late)??;
        }
    }

    /// As [`decide`]; the message is foreign, and so what a panic would show.
    fn decide(&self, query: &[u8], transport: Transport) -> Decision {
        let decision = catch_unwind(AssertUnwindSafe(|| {
            decide(query, transport, |name| self.addresses(name))
        }));
        let decision = decision.unwrap_or_else(|_| {
            self.shared.telemetry.count(Counter::TaskPanic);
            Decision::Ignore
        });
        if let Decision::Answer(_) = decision {
            self.shared.telemetry.count(Counter::DnsAnswered);
        }
        decision
    }

    /// The answer of a server, else that there is none.
    async fn forward(&self, query: &[u8], transport: Transport, limit: usize) -> Vec<u8> {
        self.shared.telemetry.count(Counter::DnsForwarded);
        match self.forwarder.ask(query, transport, limit).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%error, "a query for a name was not answered");
                self.shared.telemetry.count(Counter::DnsFailed);
                answer::failure(query)
            }
        }
    }

    /// Addresses of a name of the mesh, of both families; `None`: the servers know more about it.
    ///
    /// Services and entries have theirs in the configuration; entries without any have allocated ones (SE-032). A headless
    /// service has those of its endpoints that take requests; while none is known, the cluster's servers may know one.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let known = self.known()?;
        let host = known.find(name)?;
        if !host.addresses.is_empty() {
            return Some(host.addresses.clone());
        }
        if !host.allocated.is_empty() {
            // Of a family that the pod lacks there is no way to them, and some clients would try that one first.
            let own = &self.shared.settings.addresses;
            let is_usable =
                |address: &IpAddr| own.is_empty() || own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
            return Some(host.allocated.iter().copied().filter(is_usable).collect());
        }
        if !host.headless || !name.ends_with(&known.cluster) {
            return None;
        }
        let table = self.shared.endpoints.load();
        let endpoints = &table.host(&host.host)?.endpoints;
        let ready = endpoints.iter().filter(|endpoint| endpoint.health == Health::Ready);
        let mut addresses: Vec<IpAddr> = ready.map(|endpoint| endpoint.address).collect();
        if addresses.is_empty() {
            return None;
        }
        // Clients that take the first one spread over all.
        let first = fastrand::usize(..addresses.len());
        addresses.rotate_left(first);
        Some(addresses)
    }

    /// Hosts of the configuration in force; `None` until there is one.
    fn known(&self) -> Option<Arc<Known>> {
        let snapshot = self.shared.current.load();
        let config = &snapshot.as_ref()?.config;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.serial != config.serial {
            let hosts = config.hosts.iter().map(|host| (host.host.clone(), host.clone()));
            *known = Arc::new(Known {
                serial: config.serial,
                hosts: hosts.collect(),
                cluster: format!(".svc.{}", config.mesh.cluster_domain),
            });
        }
        Some(known.clone())
    }
}

/// Longest query that is looked at; those of resolvers have a few hundred bytes.
const QUERY_LENGTH: usize = 4096;

/// Queries that wait for a server at once; each has a socket.
const WAITING: usize = 512;

/// Connections of clients at once.
const CONNECTIONS: usize = 64;

/// How long a connection may be idle, and a client take to send or to read.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after a failure of the kernel's.
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
