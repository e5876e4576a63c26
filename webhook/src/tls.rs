//! The serving certificate: read from a mounted Secret and exchanged while serving (INJ-204).

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use weft_bundle::{pem, volume};

/// A certificate that can be served.
#[derive(Debug, Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// End of the leaf's validity, in seconds since 1970.
    pub not_after: i64,
}

/// Why the files of a certificate cannot be used; names the file.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The directory cannot be read.
    #[error("read the certificate's directory")]
    Read(#[from] std::io::Error),
    /// A file is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A file has another content than its name says.
    #[error("{file}: {problem}")]
    Content {
        /// The file.
        file: &'static str,
        /// What is wrong; never the content.
        problem: String,
    },
    /// `tls.crt` is not what callers that trust `ca.crt` would accept under the service's name (INJ-208).
    #[error("tls.crt does not verify against ca.crt as {name}: {problem}")]
    Untrusted {
        /// The name that the API server asks for.
        name: String,
        /// The verifier's word.
        problem: String,
    },
}

impl Certificate {
    /// Reads `tls.crt`, `tls.key` and, where it is there, `ca.crt` as one set. With a `ca.crt` the chain is verified
    /// under `name`; a certificate of the user's own may come without one (INJ-207).
    ///
    /// # Errors
    /// [`CertificateError`] names the file.
    pub fn load(dir: &Path, name: &str, now: UnixTime) -> Result<Self, CertificateError> {
        let files = volume::read(dir)?.files;
        let file = |name: &'static str| {
            files
                .get(name)
                .map(|bytes| &bytes[..])
                .ok_or(CertificateError::Missing(name))
        };
        let chain = certificates("tls.crt", file("tls.crt")?)?;
        let leaf = chain.first().ok_or(CertificateError::Missing("tls.crt"))?;
        let private = PrivateKeyDer::from_pem_slice(file("tls.key")?).map_err(|error| CertificateError::Content {
            file: "tls.key",
            problem: pem::problem(&error).to_owned(),
        })?;
        let not_after = not_after(leaf)?;
        if let Ok(anchors) = file("ca.crt") {
            verify(&chain, &certificates("ca.crt", anchors)?, name, now)?;
        }
        let key = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|error| {
            CertificateError::Content {
                file: "tls.key",
                problem: error.to_string(),
            }
        })?;
        Ok(Self {
            key: Arc::new(key),
            not_after,
        })
    }
}

fn certificates(file: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let wrong = |problem: String| CertificateError::Content { file, problem };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(pem::problem(&error).to_owned()))?;
    if chain.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(chain)
}

fn not_after(leaf: &CertificateDer<'_>) -> Result<i64, CertificateError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| CertificateError::Content {
        file: "tls.crt",
        problem: error.to_string(),
    })?;
    Ok(parsed.validity().not_after.timestamp())
}

fn verify(
    chain: &[CertificateDer<'static>],
    anchors: &[CertificateDer<'static>],
    name: &str,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let untrusted = |problem: String| CertificateError::Untrusted {
        name: name.to_owned(),
        problem,
    };
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor.clone()).map_err(|error| CertificateError::Content {
            file: "ca.crt",
            problem: error.to_string(),
        })?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| untrusted(error.to_string()))?;
    let server = ServerName::try_from(name).map_err(|error| untrusted(error.to_string()))?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(CertificateError::Missing("tls.crt"));
    };
    verifier
        .verify_server_cert(leaf, intermediates, &server, &[], now)
        .map(|_| ())
        .map_err(|error| untrusted(error.to_string()))
}

/// The certificate in use: connections that begin after an exchange get the new one.
#[derive(Default)]
pub struct Serving {
    current: ArcSwapOption<Certificate>,
}

impl Serving {
    /// Exchanges the certificate.
    pub fn set(&self, certificate: Certificate) {
        self.current.store(Some(Arc::new(certificate)));
    }

    /// The certificate in use, if one was loaded.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Certificate>> {
        self.current.load_full()
    }

    /// A server configuration that looks the certificate up for each handshake. HTTP/2 and HTTP/1.1 are offered.
    ///
    /// # Errors
    /// When the TLS library refuses its own defaults.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not_after = self.current().map(|certificate| certificate.not_after);
        f.debug_struct("Serving").field("not_after", &not_after).finish()
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current().map(|certificate| Arc::clone(&certificate.key))
    }
}
