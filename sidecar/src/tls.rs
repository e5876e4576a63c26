//! Mesh mTLS: the proxy's identity and the verification of its peers (ID-069 ff.).
//!
//! Expected server identities differ from host to host, so the handshake verifies the chain and the form of the SPIFFE
//! id, and [`Identity::check_server`] compares it before a byte of the application is sent.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_bundle::pem;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::http::Version;
use verify::MeshVerifier;

pub(crate) mod originate;
mod peer;
mod stream;
mod verify;
mod volume;

pub(crate) use originate::{carries_one_of, narrowed};
pub use peer::{Facts, PeerTls, account, spiffe_id};
pub use stream::TlsStream;
pub use volume::CredentialVolume;

/// What a mesh trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshTrust {
    /// Trust domain and its aliases (ID-084).
    pub domains: Vec<String>,
    /// A peer's trust domain is not looked at (ID-084).
    pub any_domain: bool,
    /// TLS 1.2 is refused (ID-069).
    pub tls13_only: bool,
}

impl MeshTrust {
    /// What a configuration says of trust.
    #[must_use]
    pub fn of(mesh: &weft_bundle::wire::Mesh) -> Self {
        let mut domains = vec![mesh.trust_domain.clone()];
        domains.extend(mesh.trust_domain_aliases.iter().cloned());
        Self {
            domains,
            any_domain: mesh.skip_validate_trust_domain,
            tls13_only: mesh.min_tls == weft_bundle::wire::TlsVersion::V1_3,
        }
    }
}

/// Why a set of identity files is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file is not PEM of the expected kind.
    #[error("parse {file}: {message}")]
    Parse {
        /// Which of the three.
        file: &'static str,
        /// What is wrong, without content of the file.
        message: String,
    },
    /// The key is not that of the certificate: files of two versions (ID-112).
    #[error("private key does not belong to the certificate")]
    Mismatch,
    /// The certificate is past its end.
    #[error("certificate expired at {not_after}")]
    Expired {
        /// Unix time.
        not_after: i64,
    },
}

impl IdentityError {
    /// Label of `weft_cert_reload_total`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Parse { .. } => "parse",
            Self::Mismatch => "mismatch",
            Self::Expired { .. } => "expired",
        }
    }
}

/// The proxy's certificate, key and anchors, ready for handshakes in both roles.
pub struct Identity {
    /// Own SPIFFE id.
    pub spiffe_id: Arc<str>,
    /// Serial number of the leaf, hex.
    pub serial: String,
    /// Begin of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// End of the validity of each anchor in use.
    pub anchors_not_after: Vec<SystemTime>,
    /// Anchors that had ended when the files were read.
    dropped_anchors: usize,
    servers: Servers,
    clients: Clients,
}

/// Never shows the key (ID-132).
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// One server configuration for each protocol that ALPN can select: a list without overlap must not raise an alert
/// (ID-076), so the choice is made before the handshake begins.
struct Servers {
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    none: Arc<ServerConfig>,
}

/// One client configuration for each list that is offered (ID-073, ID-074).
struct Clients {
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http10: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

/// What the client speaks inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inner {
    /// HTTP.
    Http(Version),
    /// Anything else.
    Tcp,
}

impl Identity {
    /// Builds an identity from PEM files: leaf with its intermediates, key, and trust anchors.
    ///
    /// # Errors
    /// What is wrong with the files; none of their content is in it.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8], trust: &MeshTrust) -> Result<Self, IdentityError> {
        let parse = |file| move |message: String| IdentityError::Parse { file, message };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|e| parse("tls.crt")(pem::problem(&e).into()))?;
        let leaf = chain
            .first()
            .ok_or_else(|| parse("tls.crt")("holds no certificate".into()))?;
        // The signing key takes over the bytes; the DER copy is wiped when rustls drops it.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| parse("tls.key")(pem::problem(&e).into()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| parse("tls.crt")(e.to_string()))?;
        let id = spiffe_id(&parsed).map_err(|message| parse("tls.crt")(message.into()))?;
        let serial = parsed.raw_serial_as_string();
        let not_before = time(parsed.validity().not_before.timestamp());
        let not_after = time(parsed.validity().not_after.timestamp());
        let now = SystemTime::now();
        if not_after <= now {
            let not_after = parsed.validity().not_after.timestamp();
            return Err(IdentityError::Expired { not_after });
        }

        let mut anchors = Vec::new();
        let mut dropped_anchors = 0;
        for anchor in weft_bundle::anchors::parse(&String::from_utf8_lossy(roots)) {
            // One block that does not parse is passed over (ID-061).
            match verify::Anchor::parse(&anchor) {
                Some(anchor) if anchor.not_after <= now => dropped_anchors += 1,
                Some(anchor) => anchors.push(anchor),
                None => {}
            }
        }
        if anchors.is_empty() {
            return Err(parse("root-cert.pem")("holds no usable trust anchor".into()));
        }
        let anchors_not_after = anchors.iter().map(|anchor| anchor.not_after).collect();

        let provider = Arc::new(provider());
        let verifier = MeshVerifier::new(anchors, trust, &provider);
        let verifier = Arc::new(verifier.map_err(|e| parse("root-cert.pem")(e.to_string()))?);
        let credentials = rustls::sign::CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch,
            e => parse("tls.key")(e.to_string()),
        })?;
        let credentials = Arc::new(credentials);
        let versions: &[&'static SupportedProtocolVersion] = if trust.tls13_only {
            &[&rustls::version::TLS13]
        } else {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        };
        let own = Arc::new(rustls::sign::SingleCertAndKey::from(credentials));
        let server = |alpn: &[&str]| -> Result<Arc<ServerConfig>, rustls::Error> {
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)?
                .with_client_cert_verifier(verifier.clone())
                .with_cert_resolver(own.clone());
            config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
            // Every connection verifies a current certificate (ID-089).
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        };
        let client = |alpn: &[&str]| -> Result<Arc<ClientConfig>, rustls::Error> {
            let mut config = ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)?
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_client_cert_resolver(own.clone());
            config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
            config.resumption = Resumption::disabled();
            Ok(Arc::new(config))
        };
        let build = || -> Result<(Servers, Clients), rustls::Error> {
            let servers = Servers {
                http2: server(&["h2"])?,
                http1: server(&["http/1.1"])?,
                none: server(&[])?,
            };
            let clients = Clients {
                http2: client(&["istio-h2", "istio", "h2"])?,
                http1: client(&["istio-http/1.1", "istio", "http/1.1"])?,
                http10: client(&["istio-http/1.0", "istio", "http/1.0"])?,
                tcp: client(&["istio"])?,
            };
            Ok((servers, clients))
        };
        let (servers, clients) = build().map_err(|e| parse("tls.crt")(e.to_string()))?;
        Ok(Self {
            spiffe_id: id.into(),
            serial,
            not_before,
            not_after,
            anchors_not_after,
            dropped_anchors,
            servers,
            clients,
        })
    }

    /// The configuration for a client that offers these protocols (ID-075, ID-076).
    #[must_use]
    pub fn server<'a>(&self, alpn: impl Iterator<Item = &'a [u8]>) -> Arc<ServerConfig> {
        let mut chosen = &self.servers.none;
        for protocol in alpn {
            match protocol {
                b"h2" => return self.servers.http2.clone(),
                b"http/1.1" => chosen = &self.servers.http1,
                _ => {}
            }
        }
        chosen.clone()
    }

    /// The configuration for a connection to a peer.
    #[must_use]
    pub fn client(&self, inner: Inner) -> Arc<ClientConfig> {
        match inner {
            Inner::Http(Version::Http2) => self.clients.http2.clone(),
            Inner::Http(Version::Http11) => self.clients.http1.clone(),
            Inner::Http(Version::Http10) => self.clients.http10.clone(),
            Inner::Tcp => self.clients.tcp.clone(),
        }
    }

    /// Anchors that have ended, and verify nobody any more (ID-060).
    #[must_use]
    pub fn expired_anchors(&self) -> usize {
        let now = SystemTime::now();
        self.dropped_anchors + self.anchors_not_after.iter().filter(|end| **end <= now).count()
    }

    /// When the next anchor ends.
    #[must_use]
    pub fn next_anchor_end(&self) -> Option<SystemTime> {
        let now = SystemTime::now();
        self.anchors_not_after.iter().copied().filter(|end| *end > now).min()
    }

    /// Whether the leaf is within its validity.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let now = SystemTime::now();
        self.not_before <= now + Duration::from_secs(120) && now < self.not_after
    }
}

/// The suites and groups of ID-070 and ID-072.
fn provider() -> CryptoProvider {
    use aws_lc_rs::{cipher_suite as suite, kx_group};
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

fn time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}

#[cfg(test)]
mod tests;
