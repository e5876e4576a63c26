//! The client side: where a URL leads, how to get there, and one exchange over HTTP/1.x or HTTP/2.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use http::Uri;
use tokio::net::TcpStream;
use tokio::net::lookup_host;
use tokio_rustls::TlsConnector;

use crate::http1;
use crate::stream::{Buffered, Stream};

pub(crate) mod http1x;
pub(crate) mod http2;
pub(crate) mod trust;

/// A URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) scheme: Scheme,
    /// Host without port; IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Host and port as in the URL.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
}

/// What is spoken to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    H2c,
    Grpc,
    Https,
    H2,
    /// Lines of TCP.
    Tcp,
    /// Lines of TCP; the server speaks first.
    Banner,
    /// Lines in TLS.
    Tls,
}

impl Scheme {
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::Grpc | Self::H2)
    }

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::H2 | Self::Tls)
    }

    /// The scheme as it is in URLs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
            Self::Https => "https",
            Self::H2 => "h2",
            Self::Tcp => "tcp",
            Self::Banner => "banner",
            Self::Tls => "tls",
        }
    }

    /// The scheme of a request's URI.
    pub(crate) fn of_uri(self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority, self.path)
    }
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri: Uri = text.parse().with_context(|| format!("{text:?} is not a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("h2c") => Scheme::H2c,
            Some("grpc") => Scheme::Grpc,
            Some("https") => Scheme::Https,
            Some("h2") => Scheme::H2,
            Some("tcp") => Scheme::Tcp,
            Some("banner") => Scheme::Banner,
            Some("tls") => Scheme::Tls,
            _ => bail!("{text:?}: a URL with http, h2c, grpc, https, h2, tcp, banner or tls is accepted"),
        };
        let authority = uri.authority().ok_or_else(|| anyhow!("{text:?} names no host"))?;
        let default_port = match scheme {
            Scheme::Http | Scheme::H2c | Scheme::Grpc => Some(80),
            Scheme::Https | Scheme::H2 => Some(443),
            Scheme::Tcp | Scheme::Banner | Scheme::Tls => None,
        };
        let port = authority
            .port_u16()
            .or(default_port)
            .ok_or_else(|| anyhow!("{text:?} names no port"))?;
        Ok(Self {
            scheme,
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

/// Why there was no answer; its name counts in reports.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("resolve {host}")]
    Name { host: String, source: std::io::Error },
    #[error("connect to {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("TLS handshake")]
    Tls { source: std::io::Error },
    #[error("send")]
    Send { source: std::io::Error },
    #[error("receive")]
    Receive { source: http1::Error },
    #[error("HTTP/2")]
    Http2 { source: h2::Error },
    #[error("no answer in time")]
    Timeout,
}

impl Failure {
    /// One word: refused, reset, eof, timeout, unreachable, name, tls, malformed, h2-REASON, io.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Name { .. } => "name".to_owned(),
            Self::Tls { source } => match word(source) {
                "io" => "tls".to_owned(),
                word => word.to_owned(),
            },
            Self::Connect { source, .. } | Self::Send { source } => word(source).to_owned(),
            Self::Receive { source } => match source {
                http1::Error::Io(source) => word(source).to_owned(),
                http1::Error::Eof => "eof".to_owned(),
                http1::Error::Malformed(_) | http1::Error::TooLarge { .. } => "malformed".to_owned(),
            },
            Self::Http2 { source } => match (source.get_io(), source.reason()) {
                (Some(io), _) => word(io).to_owned(),
                (None, Some(reason)) if source.is_reset() => format!("h2-{reason:?}"),
                (None, Some(reason)) => format!("h2-goaway-{reason:?}"),
                (None, None) => "h2".to_owned(),
            },
            Self::Timeout => "timeout".to_owned(),
        }
    }
}

fn word(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    // An alert comes with the first read where the handshake is over before the server has judged it.
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls {
        return "tls";
    }
    match error.kind() {
        Kind::ConnectionRefused => "refused",
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => "reset",
        Kind::UnexpectedEof => "eof",
        Kind::TimedOut => "timeout",
        Kind::HostUnreachable | Kind::NetworkUnreachable => "unreachable",
        _ => "io",
    }
}

/// The TLS side of a dial.
#[derive(Clone)]
pub(crate) struct ClientTls {
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// The name sent and checked; the host by default.
    pub(crate) server_name: Option<String>,
}

/// How a target is reached.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) target: Target,
    /// HOST:PORT dialled instead of the target's.
    pub(crate) connect: Option<String>,
    /// HOST:PORT of the HTTP proxy that requests go through, in absolute form.
    pub(crate) proxy: Option<String>,
    pub(crate) tls: Option<ClientTls>,
}

impl Dial {
    /// Reaches a target directly, or through the proxy of the environment (`http_proxy`, `no_proxy`).
    pub(crate) fn new(target: Target) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let proxy = match target.scheme {
            Scheme::Http => variable("http_proxy").or_else(|| variable("HTTP_PROXY")),
            _ => None,
        };
        let exceptions = variable("no_proxy")
            .or_else(|| variable("NO_PROXY"))
            .unwrap_or_default();
        let proxy = proxy.filter(|_| !excepted(&target.host, &exceptions)).map(|url| {
            let authority = url.strip_prefix("http://").unwrap_or(&url);
            authority.split('/').next().unwrap_or_default().to_owned()
        });
        Self {
            target,
            connect: None,
            proxy,
            tls: None,
        }
    }

    /// Opens a connection.
    pub(crate) async fn open(&self) -> Result<Buffered, Failure> {
        let tcp = self.open_tcp().await?;
        // Without it, small requests wait; a socket that refuses it fails at its first write.
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return Ok(Buffered::new(Stream::Plain(tcp)));
        };
        let name = tls.server_name.clone().unwrap_or_else(|| self.target.host.clone());
        let invalid = |error| Failure::Tls {
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, error),
        };
        let name = rustls_pki_types::ServerName::try_from(name).map_err(invalid)?;
        let stream = TlsConnector::from(tls.config.clone())
            .connect(name, tcp)
            .await
            .map_err(|source| Failure::Tls { source })?;
        Ok(Buffered::new(Stream::Tls(Box::new(stream.into()))))
    }

    async fn open_tcp(&self) -> Result<TcpStream, Failure> {
        let (host, port) = match self.connect.as_ref().or(self.proxy.as_ref()) {
            Some(address) => split_port(address, self.target.port),
            None => (self.target.host.clone(), self.target.port),
        };
        let addresses = lookup_host((host.as_str(), port))
            .await
            .map_err(|source| Failure::Name {
                host: host.clone(),
                source,
            })?;
        let nothing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no address");
        let mut last = Failure::Name {
            host: host.clone(),
            source: nothing(),
        };
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(source) => {
                    last = Failure::Connect {
                        address: address.to_string(),
                        source,
                    }
                }
            }
        }
        Err(last)
    }
}

fn split_port(address: &str, default: u16) -> (String, u16) {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (
            host.trim_matches(['[', ']']).to_owned(),
            port.parse().unwrap_or(default),
        ),
        _ => (address.trim_matches(['[', ']']).to_owned(), default),
    }
}

/// Whether `no_proxy` takes a host out: `*`, names, domains with or without a leading dot, addresses, IPv4 ranges.
fn excepted(host: &str, exceptions: &str) -> bool {
    exceptions
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| {
            let domain = entry.trim_start_matches('.');
            entry == "*"
                || host.eq_ignore_ascii_case(domain)
                || host
                    .to_ascii_lowercase()
                    .ends_with(&format!(".{}", domain.to_ascii_lowercase()))
                || in_range(host, entry)
        })
}

fn in_range(host: &str, range: &str) -> bool {
    let Some((network, bits)) = range.split_once('/') else {
        return false;
    };
    let (Ok(IpAddr::V4(host)), Ok(IpAddr::V4(network)), Ok(bits)) =
        (host.parse(), network.parse(), bits.parse::<u32>())
    else {
        return false;
    };
    let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
    u32::from(host) & mask == u32::from(network) & mask
}

/// A request to send.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// The request target as sent.
    pub(crate) path: String,
    /// In this order; a Host among them replaces the target's.
    pub(crate) headers: Vec<(String, String)>,
    /// `None` sends the target's host, `Some("")` no Host at all.
    pub(crate) host: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) chunked: bool,
    /// The minor version of HTTP/1.
    pub(crate) minor: u8,
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) version: &'static str,
    pub(crate) status: u16,
    /// Statuses of interim responses.
    pub(crate) interim: Vec<u16>,
    pub(crate) headers: http1::Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: http1::Headers,
    pub(crate) transfer: &'static str,
    /// The failure that broke the body off.
    pub(crate) broken: Option<Failure>,
    /// Whether the connection may be used again.
    pub(crate) reusable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_protocol_and_port() {
        let target: Target = "grpc://echo:7070/a.B/C?x=1".parse().expect("parses");
        assert_eq!(
            (target.scheme, target.host.as_str(), target.port),
            (Scheme::Grpc, "echo", 7070)
        );
        assert_eq!(target.path, "/a.B/C?x=1");
        let target: Target = "http://[::1]/".parse().expect("parses");
        assert_eq!(
            (target.host.as_str(), target.port, target.authority.as_str()),
            ("::1", 80, "[::1]")
        );
        assert!(
            "tcp://echo"
                .parse::<Target>()
                .expect_err("no port")
                .to_string()
                .contains("no port")
        );
        assert!("ftp://echo/".parse::<Target>().is_err());
    }

    #[test]
    fn no_proxy_takes_out_names_domains_and_ranges() {
        let exceptions = "localhost, .local,10.1.2.3,127.0.0.0/8";
        for host in ["localhost", "a.localhost", "x.local", "10.1.2.3", "127.9.9.9"] {
            assert!(excepted(host, exceptions), "{host}");
        }
        for host in ["forecast", "notlocal", "10.1.2.4", "128.0.0.1"] {
            assert!(!excepted(host, exceptions), "{host}");
        }
        assert!(excepted("anything", "*"));
        assert!(!excepted("anything", ""));
    }

    #[test]
    fn addresses_are_split_at_their_port() {
        assert_eq!(split_port("[::1]:80", 1), ("::1".to_owned(), 80));
        assert_eq!(split_port("::1", 1), ("::1".to_owned(), 1));
        assert_eq!(split_port("a.b:2", 1), ("a.b".to_owned(), 2));
    }
}
