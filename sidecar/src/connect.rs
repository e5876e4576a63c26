//! Opens connections to endpoints and to the application, with the protection that the policy asks for.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use weft_bundle::model::HostEndpoints;
use weft_bundle::wire;

use crate::announce::Announce;
use crate::cluster::Permit;
use crate::io::{self as net, Dial, Io};
use crate::pool::{Link, Security};
use crate::tls::{Inner, PeerTls, TlsStream, account, originate};
use crate::worker::Worker;

/// Why no connection to an endpoint could be opened. All count as a failed connect (BYD-011).
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kernel said no.
    #[error("connect to {address}")]
    Io {
        /// Address.
        address: SocketAddr,
        /// Its reason.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("connect to {address}: no answer within {limit:?}")]
    Timeout {
        /// Address.
        address: SocketAddr,
        /// Limit of the policy.
        limit: Duration,
    },
    /// The handshake failed.
    #[error("TLS handshake with {address}")]
    Tls {
        /// Address.
        address: SocketAddr,
        /// Its reason.
        source: io::Error,
    },
    /// The server is not one of those expected (ID-078).
    #[error("{address} is {found}, which is none of the destination's identities")]
    Identity {
        /// Address.
        address: SocketAddr,
        /// Its SPIFFE id.
        found: Arc<str>,
    },
    /// The proxy has no identity to show (ID-145).
    #[error("no valid identity for mesh mTLS")]
    NoIdentity,
    /// TLS was asked for and cannot be provided (BYD-061).
    #[error("TLS to the destination is not available: {0}")]
    Unavailable(String),
}

impl ConnectError {
    /// Reset reason of FLAG-003.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "connection timeout",
            _ if self.is_local() => "local connection failure",
            _ => "remote connection failure",
        }
    }

    /// Transport failure reason (LOG-020).
    #[must_use]
    pub fn transport(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => Some(format!("delayed connect error: {}", describe(source))),
            Self::Timeout { .. } => None,
            Self::Tls { source, .. } => Some(format!("TLS_error: {}", describe(source))),
            Self::Identity { .. } => Some("TLS_error: verify SAN list".to_owned()),
            Self::NoIdentity | Self::Unavailable(_) => Some(self.to_string()),
        }
    }

    /// Whether the fault lies with this proxy, so that another endpoint would not help.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::NoIdentity | Self::Unavailable(_) => true,
            // No descriptor for a socket says nothing about who would have been called.
            Self::Io { source, .. } => net::is_shortage(source),
            Self::Timeout { .. } | Self::Tls { .. } | Self::Identity { .. } => false,
        }
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "Connection refused".into(),
        io::ErrorKind::ConnectionReset => "Connection reset by peer".into(),
        io::ErrorKind::HostUnreachable => "No route to host".into(),
        io::ErrorKind::NetworkUnreachable => "Network is unreachable".into(),
        _ => error.to_string(),
    }
}

/// How an endpoint is reached.
pub enum Secure {
    /// In clear.
    Plain,
    /// Mesh mTLS.
    Mesh {
        /// SNI; `None`: none is sent.
        server_name: Option<Arc<str>>,
        /// Who the server may be.
        expected: Expected,
    },
    /// TLS of a DestinationRule.
    Originate {
        /// Its settings.
        settings: Box<wire::OriginateTls>,
        /// Host, where the settings name no SNI.
        host: Arc<str>,
    },
}

/// Who a mesh server may be.
pub enum Expected {
    /// The accounts of the destination, and further ids; neither: anybody of the mesh (ID-079).
    Accounts(Option<Arc<HostEndpoints>>, Vec<String>),
    /// These ids.
    Exact(Vec<String>),
}

impl Expected {
    /// Whether a server's id is one of them, under any domain of the mesh (ID-078).
    #[must_use]
    pub fn admits(&self, id: &str, domains: &[String]) -> bool {
        match self {
            Self::Exact(ids) => ids.iter().any(|expected| expected == id),
            Self::Accounts(_, ids) if ids.iter().any(|expected| expected == id) => true,
            Self::Accounts(None, ids) => ids.is_empty(),
            Self::Accounts(Some(host), ids) if host.accounts.is_empty() => ids.is_empty(),
            Self::Accounts(Some(host), _) => {
                let domain = id.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
                let Some((namespace, name)) = account(id) else {
                    return false;
                };
                domain.is_some_and(|domain| domains.iter().any(|known| known == domain))
                    && host
                        .accounts
                        .iter()
                        .any(|expected| expected.split_once('/') == Some((namespace, name)))
            }
        }
    }
}

impl Secure {
    /// What tells connections of this kind from others.
    #[must_use]
    pub fn security(&self) -> Security {
        match self {
            Self::Plain => Security::Plain,
            Self::Mesh { server_name, .. } => Security::Mesh(server_name.clone()),
            Self::Originate { settings, host } => Security::Originated(Arc::from(format!("{host}|{settings:?}"))),
        }
    }
}

/// How a socket is opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// Options of the socket.
    pub dial: Dial,
    /// Limit for socket and handshake.
    pub limit: Duration,
    /// Keepalive of the socket.
    pub keepalive: Option<&'a wire::TcpKeepalive>,
    /// The client that is announced to the server (DR-128).
    pub announce: Option<Announce>,
}

impl Opening<'_> {
    /// Towards an address of no destination: the application, or one that nobody knows.
    #[must_use]
    pub fn bare(dial: Dial, limit: Duration) -> Self {
        Self {
            dial,
            limit,
            keepalive: None,
            announce: None,
        }
    }
}

/// Opens a connection.
///
/// # Errors
/// See [`ConnectError`]; nothing of the application was sent.
pub async fn connect(
    worker: &Worker,
    address: SocketAddr,
    secure: &Secure,
    inner: Inner,
    opening: Opening<'_>,
    permit: Option<Permit>,
) -> Result<(Io, Rc<Link>), ConnectError> {
    let limit = opening.limit;
    let open = async {
        let opened = match open(worker, address, secure, inner, opening).await {
            Err(ConnectError::Tls { source, .. }) if is_banner(secure, &source) => {
                open(worker, address, secure, inner, opening).await
            }
            first => first,
        };
        let Opened {
            io,
            local,
            principal,
            tls,
        } = opened?;
        let link = Rc::new(Link {
            id: worker.next_connection(),
            local,
            principal,
            tls,
            security: secure.security().announcing(opening.announce),
            since: Instant::now(),
            served: Cell::new(0),
            permit,
        });
        Ok((io, link))
    };
    timeout(limit, open)
        .await
        .unwrap_or(Err(ConnectError::Timeout { address, limit }))
}

/// Whether a mesh peer answered the handshake with something else: a port that takes both had given up waiting for it,
/// and the application spoke first (BYD-021). Asked again, it knows at once.
fn is_banner(secure: &Secure, error: &io::Error) -> bool {
    let reason = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(secure, Secure::Mesh { .. }) && matches!(reason, Some(rustls::Error::InvalidMessage(_)))
}

/// A connection, and what its handshake told.
struct Opened {
    io: Io,
    local: Option<SocketAddr>,
    principal: Option<Arc<str>>,
    tls: Option<Arc<PeerTls>>,
}

async fn open(
    worker: &Worker,
    address: SocketAddr,
    secure: &Secure,
    inner: Inner,
    opening: Opening<'_>,
) -> Result<Opened, ConnectError> {
    let Opening {
        dial,
        keepalive,
        announce,
        ..
    } = opening;
    let mut stream = net::dial(address, dial)
        .await
        .map_err(|source| ConnectError::Io { address, source })?;
    if let Some(wanted) = keepalive {
        net::keepalive(&stream, wanted);
    }
    if let Some(announce) = &announce {
        stream
            .write_all(&announce.header())
            .await
            .map_err(|source| ConnectError::Io { address, source })?;
    }
    let local = stream.local_addr().ok();
    let mut principal = None;
    let mut tls = None;
    let io = match secure {
        Secure::Plain => Io::from(stream),
        Secure::Mesh { server_name, expected } => {
            let identity = worker.shared.identity.load_full().ok_or(ConnectError::NoIdentity)?;
            if !identity.is_valid() {
                return Err(ConnectError::NoIdentity);
            }
            let name = match server_name {
                Some(name) => ServerName::try_from(name.to_string())
                    .map_err(|_| ConnectError::Unavailable(format!("{name:?} is no server name")))?,
                None => ServerName::IpAddress(address.ip().into()),
            };
            let stream = TlsStream::connect(identity.client(inner), name, stream)
                .await
                .map_err(|source| ConnectError::Tls { address, source })?;
            tls = PeerTls::of(stream.state());
            let found = tls.as_ref().and_then(|tls| tls.spiffe_id()).unwrap_or_default();
            let domains = worker.trust_domains();
            if !expected.admits(&found, &domains) {
                return Err(ConnectError::Identity { address, found });
            }
            principal = Some(found);
            Io::from(stream)
        }
        Secure::Originate { settings, host } => {
            let stream = originate::handshake(settings, host, inner, &worker.shared.credentials, stream)
                .await
                .map_err(|e| match e {
                    originate::OriginateError::Unavailable(reason) => ConnectError::Unavailable(reason),
                    originate::OriginateError::Handshake(source) => ConnectError::Tls { address, source },
                })?;
            tls = PeerTls::of(stream.state());
            Io::from(stream)
        }
    };
    Ok(Opened {
        io,
        local,
        principal,
        tls,
    })
}
