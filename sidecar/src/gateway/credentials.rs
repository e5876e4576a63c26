//! Certificates that a gateway shows: read when a configuration names them and again when their files change. Without one
//! that can be used the handshakes of the servers that name it fail, and nothing else does (GW-042, GW-043, BYD-066).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::cipher_suite as suite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedCipherSuite};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_bundle::model::{Config, Serves};
use weft_bundle::pack::sha256;
use weft_bundle::wire::{Certificate, TlsSettings, TlsVersion};

/// What the configuration in force names, ready for handshakes.
#[derive(Debug, Default)]
pub struct Credentials(ArcSwap<HashMap<TlsSettings, Arc<Loaded>>>);

#[derive(Debug)]
struct Loaded {
    /// Of the files, as they were read.
    digest: Option<String>,
    ready: Result<Ready, String>,
}

#[derive(Clone)]
struct Ready {
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    none: Arc<ServerConfig>,
}

/// Shows no key.
impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl Credentials {
    /// Reads what a configuration names, and tells of what changed. What still is the same stays as it is.
    pub fn read(&self, config: &Config) {
        let before = self.0.load();
        let mut next = HashMap::new();
        let mut changed = false;
        for settings in named(config) {
            let known = before.get(settings);
            let (digest, files) = files(&settings.certificate);
            if let Some(known) = known.filter(|known| known.digest == digest) {
                next.insert(settings.clone(), known.clone());
                continue;
            }
            changed = true;
            let is_there = files.is_ok();
            let ready = files.and_then(|(chain, key)| ready(settings, &chain, &key));
            let place = place(&settings.certificate);
            match &ready {
                Ok(_) => tracing::info!(target: "tls", place, "certificate of the gateway in use"),
                Err(problem) => {
                    tracing::warn!(target: "tls", place, problem, "certificate of the gateway cannot be used");
                }
            }
            // What is being written, or was written wrong, does not replace what works; what is gone is.
            let last = known.and_then(|known| known.ready.as_ref().ok()).filter(|_| is_there);
            let ready = match (ready, last) {
                (Err(_), Some(last)) => Ok(last.clone()),
                (ready, _) => ready,
            };
            next.insert(settings.clone(), Arc::new(Loaded { digest, ready }));
        }
        if changed || next.len() != before.len() {
            self.0.store(Arc::new(next));
        }
    }

    /// Whether some file has to be looked at now and then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_empty()
    }

    /// For a handshake with a client that offers these protocols: one without anything in common goes on without (GW-054,
    /// GW-116). `None` where the certificate cannot be used.
    #[must_use]
    pub fn server(&self, settings: &TlsSettings, alpn: &[Vec<u8>]) -> Option<Arc<ServerConfig>> {
        let loaded = self.0.load();
        let ready = loaded.get(settings)?.ready.as_ref().ok()?;
        let offers = |name: &[u8]| alpn.iter().any(|offered| offered == name);
        Some(if offers(b"h2") {
            ready.http2.clone()
        } else if offers(b"http/1.1") {
            ready.http1.clone()
        } else {
            ready.none.clone()
        })
    }
}

/// The settings of all servers of a configuration at which TLS ends.
fn named(config: &Config) -> impl Iterator<Item = &TlsSettings> {
    let servers = config.listeners.values().flat_map(|listener| match &listener.serves {
        Serves::Tls(tls) => tls.terminated.as_slice(),
        Serves::Http(_) | Serves::Tcp(_) => &[],
    });
    servers.map(|server| &server.tls)
}

type Pem = (Vec<u8>, Vec<u8>);

/// Chain and key, and a digest of both; `None` where they cannot be read.
fn files(certificate: &Certificate) -> (Option<String>, Result<Pem, String>) {
    let Certificate::Files { chain, key } = certificate;
    let read = |path: &str| {
        let metadata = std::fs::metadata(path).map_err(|e| format!("{path}: {e}"))?;
        if metadata.len() > MAX_BYTES {
            return Err(format!("{path}: is larger than {MAX_BYTES} bytes"));
        }
        std::fs::read(path).map_err(|e| format!("{path}: {e}"))
    };
    match read(chain).and_then(|chain| Ok((chain, read(key)?))) {
        Ok((chain, key)) => {
            let digest = format!("{}{}", sha256(&chain), sha256(&key));
            (Some(digest), Ok((chain, key)))
        }
        Err(problem) => (None, Err(problem)),
    }
}

fn place(certificate: &Certificate) -> &str {
    let Certificate::Files { chain, .. } = certificate;
    chain
}

/// Errors name what is wrong and nothing of the content.
fn ready(settings: &TlsSettings, chain: &[u8], key: &[u8]) -> Result<Ready, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("the certificate is not PEM: {e}"))?;
    if chain.is_empty() {
        return Err("holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key is not PEM: {e}"))?;
    let provider = Arc::new(provider(&settings.ciphers));
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
        e => e.to_string(),
    })?;
    let own = Arc::new(SingleCertAndKey::from(certified));
    let allows_12 = settings.min == TlsVersion::V1_2;
    let allows_13 = settings.max != Some(TlsVersion::V1_2);
    let versions: &[_] = match (allows_12, allows_13) {
        (true, false) => &[&rustls::version::TLS12],
        (true, true) => &[&rustls::version::TLS13, &rustls::version::TLS12],
        (false, _) => &[&rustls::version::TLS13],
    };
    let server = |alpn: &[&[u8]]| {
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(own.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok::<_, String>(Arc::new(config))
    };
    Ok(Ready {
        http2: server(&[b"h2"])?,
        http1: server(&[b"http/1.1"])?,
        none: server(&[])?,
    })
}

/// All suites of TLS 1.3, and those of TLS 1.2 that are named (GW-050).
fn provider(ciphers: &[String]) -> CryptoProvider {
    let all: [(&str, SupportedCipherSuite); 6] = [
        (
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ),
        (
            "ECDHE-RSA-AES256-GCM-SHA384",
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ),
        (
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ),
        (
            "ECDHE-RSA-AES128-GCM-SHA256",
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ),
        (
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
        (
            "ECDHE-RSA-CHACHA20-POLY1305",
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ];
    let is_wanted = |name: &str| ciphers.is_empty() || ciphers.iter().any(|wanted| wanted == name);
    let mut cipher_suites = vec![
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    cipher_suites.extend(
        all.into_iter()
            .filter(|(name, _)| is_wanted(name))
            .map(|(_, suite)| suite),
    );
    CryptoProvider {
        cipher_suites,
        ..aws_lc_rs::default_provider()
    }
}

/// Larger files are no certificates.
const MAX_BYTES: u64 = 1 << 20;
