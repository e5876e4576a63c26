//! The server: listeners, protocol by the first bytes, and an orderly end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::answer::{App, Identity, Peer, Tls};
use crate::frontend::Frontend;
use crate::stream::{Buffered, Stream, canonical};

mod agent;
mod certificate;
mod http1;
pub(crate) mod http2;
mod lines;
mod websocket;

/// Ports and identity of a server.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Port for HTTP/1.x and HTTP/2 (prior knowledge), told apart by the first bytes; may be repeated.
    ///
    /// A name before the port stands for the container port's: env PORT_<NAME> then decides, and PORT for the first
    /// listener of all, both on 127.0.0.1. Port 0 takes a free one.
    #[arg(long, value_name = "[NAME=]PORT")]
    http: Vec<Port>,
    /// Same as --http: the protocols are told apart on every HTTP port
    #[arg(long, value_name = "[NAME=]PORT")]
    http2: Vec<Port>,
    /// Same as --http: the protocols are told apart on every HTTP port
    #[arg(long, value_name = "[NAME=]PORT")]
    grpc: Vec<Port>,
    /// Port for HTTP in TLS; may be repeated
    #[arg(long, value_name = "[NAME=]PORT", requires = "certificate")]
    https: Vec<Port>,
    /// Port that answers each line of TCP; may be repeated
    #[arg(long, value_name = "[NAME=]PORT")]
    tcp: Vec<Port>,
    /// Port that speaks first, then answers each line; may be repeated
    #[arg(long, value_name = "[NAME=]PORT")]
    banner: Vec<Port>,
    /// Port that answers each line in TLS; may be repeated
    #[arg(long, value_name = "[NAME=]PORT", requires = "certificate")]
    tls: Vec<Port>,
    /// Certificate chain of the TLS ports, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", group = "certificate")]
    tls_cert: Option<PathBuf>,
    /// Private key of the TLS ports, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Names of a certificate for the TLS ports that is made at the start, by an authority that nobody knows
    #[arg(long, value_name = "NAME", value_delimiter = ',', group = "certificate")]
    tls_names: Vec<String>,
    /// Port by which tests have the pod send requests; for test networks alone
    #[arg(long, value_name = "[NAME=]PORT")]
    agent: Vec<Port>,
    /// Address to listen on; that of ports by name is 127.0.0.1
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Milliseconds between the first half of a body and the end of its connection (directive close=mid)
    #[arg(long, default_value_t = 0, value_name = "MS")]
    half_way: u64,
    /// Pod name in answers
    #[arg(long, env = "POD_NAME", default_value = "unknown")]
    name: String,
    /// Namespace in answers
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Version in answers
    #[arg(long, env = "VERSION", default_value = "v1")]
    version: String,
    /// On SIGTERM, exit at once instead of finishing what was accepted
    #[arg(long)]
    abrupt: bool,
    /// Seconds that accepted requests have to finish after SIGTERM
    #[arg(long, default_value_t = 25, value_name = "SECONDS")]
    grace: u64,
}

/// `8080` or `http=8080`.
#[derive(Debug, Clone)]
struct Port {
    name: Option<String>,
    number: u16,
}

impl std::str::FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once('=') {
            Some((name, number)) => (Some(name.to_owned()), number),
            None => (None, text),
        };
        let number = number
            .parse()
            .map_err(|_| format!("{number:?} is not a port: 0 to 65535 is accepted"))?;
        Ok(Self { name, number })
    }
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Https,
    Lines,
    Banner,
    TlsLines,
    Agent,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Lines => "tcp",
            Self::Banner => "banner",
            Self::TlsLines => "tls",
            Self::Agent => "agent",
        }
    }
}

/// Serves until SIGTERM or SIGINT; with a frontend, answers contain its upstream's.
///
/// Prints one line `listening PROTOCOL ADDRESS` for each port to standard output.
pub(crate) async fn serve(args: ServeArgs, frontend: Option<Frontend>) -> Result<()> {
    let acceptor = args.acceptor()?;
    let identity = Identity {
        pod: args.name.clone(),
        version: args.version.clone(),
        namespace: args.namespace.clone(),
    };
    let app = Arc::new(App::new(identity, Duration::from_millis(args.half_way), frontend));
    let (drain, draining) = watch::channel(false);
    let draining = Draining(draining);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    let mut listeners = JoinSet::new();
    for (protocol, port) in args.ports() {
        let at = address(&port, listeners.is_empty(), args.address)?;
        let listener = bind(at).with_context(|| format!("listen on {at}"))?;
        let bound = listener.local_addr().context("ask for the bound address")?;
        println!("listening {} {}", protocol.name(), canonical(bound));
        let accept = Accept {
            protocol,
            port: bound.port(),
            app: app.clone(),
            acceptor: acceptor.clone(),
        };
        listeners.spawn(accept.run(listener, draining.clone()));
    }

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if args.abrupt {
        std::process::exit(0);
    }
    drain.send_replace(true);
    let deadline = Instant::now() + Duration::from_secs(args.grace);
    // Leaving the set behind aborts what has not finished by then.
    let _ = timeout_at(deadline, async { while listeners.join_next().await.is_some() {} }).await;
    Ok(())
}

impl ServeArgs {
    fn ports(&self) -> Vec<(Protocol, Port)> {
        let groups = [
            (Protocol::Http, &self.http),
            (Protocol::Http, &self.http2),
            (Protocol::Http, &self.grpc),
            (Protocol::Https, &self.https),
            (Protocol::Lines, &self.tcp),
            (Protocol::Banner, &self.banner),
            (Protocol::TlsLines, &self.tls),
            (Protocol::Agent, &self.agent),
        ];
        let mut ports: Vec<(Protocol, Port)> = groups
            .iter()
            .flat_map(|(protocol, ports)| ports.iter().map(|port| (*protocol, port.clone())))
            .collect();
        if ports.is_empty() {
            ports.push((
                Protocol::Http,
                Port {
                    name: Some("http".to_owned()),
                    number: 8080,
                },
            ));
        }
        ports
    }

    fn acceptor(&self) -> Result<Option<TlsAcceptor>> {
        let (chain, private) = match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => certificate::read(chain, key)?,
            _ if !self.tls_names.is_empty() => certificate::make(&self.tls_names)?,
            _ => return Ok(None),
        };
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .context("use the certificate")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Where a port listens: what the environment says, on loopback, else the general address, which is all by default.
fn address(port: &Port, first: bool, general_address: Option<IpAddr>) -> Result<SocketAddr> {
    let named = port
        .name
        .as_ref()
        .map(|name| format!("PORT_{}", name.to_uppercase().replace('-', "_")));
    let general = first.then(|| "PORT".to_owned());
    for variable in named.into_iter().chain(general) {
        if let Ok(value) = std::env::var(&variable) {
            let Ok(number) = value.parse::<u16>() else {
                bail!("environment variable {variable} is {value:?}: a port from 0 to 65535 is accepted");
            };
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, number)));
        }
    }
    let all = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    Ok(SocketAddr::new(general_address.unwrap_or(all), port.number))
}

/// Binds; without IPv6 on this machine, all addresses are the IPv4 ones.
fn bind(at: SocketAddr) -> Result<TcpListener> {
    let socket = |domain, at: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if domain == socket2::Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&at.into())?;
        socket.listen(4096)?;
        TcpListener::from_std(socket.into())
    };
    if at.is_ipv4() {
        return Ok(socket(socket2::Domain::IPV4, at)?);
    }
    match socket(socket2::Domain::IPV6, at) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error.into()),
        Err(_) => Ok(socket(
            socket2::Domain::IPV4,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port())),
        )?),
    }
}

/// Tells connections that the server ends.
#[derive(Debug, Clone)]
struct Draining(watch::Receiver<bool>);

impl Draining {
    /// Returns once the server ends.
    async fn started(&mut self) {
        // An error means that the sender has gone, and the server with it.
        drop(self.0.wait_for(|&draining| draining).await);
    }

    fn has_started(&self) -> bool {
        *self.0.borrow()
    }
}

/// What one listener does with its connections.
#[derive(Clone)]
struct Accept {
    protocol: Protocol,
    port: u16,
    app: Arc<App>,
    acceptor: Option<TlsAcceptor>,
}

impl Accept {
    async fn run(self, listener: TcpListener, mut draining: Draining) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = draining.started() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((tcp, src)) => { connections.spawn(self.clone().connection(tcp, src, draining.clone())); }
                    // Out of descriptors, or a client that has gone: neither ends the server.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
        // The kernel has completed handshakes that were never handed over: their clients count as accepted.
        while let Some(Ok((tcp, src))) = listener.accept().now_or_never() {
            connections.spawn(self.clone().connection(tcp, src, draining.clone()));
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(self, tcp: TcpStream, src: SocketAddr, draining: Draining) {
        // Without it answers wait for the client's acknowledgement; a socket that refuses it is closed already.
        let _ = tcp.set_nodelay(true);
        let mut peer = Peer {
            port: self.port,
            src: canonical(src),
            conn: self.app.next_connection(),
            tls: None,
        };
        let stream = match (self.protocol, &self.acceptor) {
            (Protocol::Https | Protocol::TlsLines, Some(acceptor)) => {
                let Ok(tls) = acceptor.accept(tcp).await else { return };
                let session = tls.get_ref().1;
                peer.tls = Some(Tls {
                    sni: session.server_name().map(str::to_owned),
                    alpn: session
                        .alpn_protocol()
                        .map(|name| String::from_utf8_lossy(name).into_owned()),
                    version: session
                        .protocol_version()
                        .and_then(|version| version.as_str())
                        .map(str::to_owned),
                });
                Stream::Tls(Box::new(tls.into()))
            }
            _ => Stream::Plain(tcp),
        };
        let conn = Buffered::new(stream);
        // What a client does to its connection is the client's to report.
        let _ = match self.protocol {
            Protocol::Http | Protocol::Https => http1::detect(conn, self.app, peer, draining).await,
            Protocol::Lines | Protocol::TlsLines => {
                lines::serve(conn, &self.app.identity, &peer, false, draining).await
            }
            Protocol::Agent => agent::serve(conn, &self.app).await,
            Protocol::Banner => lines::serve(conn, &self.app.identity, &peer, true, draining).await,
        };
    }
}
