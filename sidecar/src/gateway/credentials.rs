//! Certificates that a gateway shows, and what it verifies its clients with: made ready when a configuration names them and
//! again when they change. Without one that can be used the handshakes of the servers that name it fail, and nothing else
//! does (GW-042, GW-043, BYD-066).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use weft_bundle::model::{Config, Serves};
use weft_bundle::pack::{Files, sha256};
use weft_bundle::pem;
use weft_bundle::wire::{Authorities, Certificate, Clients, TlsSettings, TlsVersion};

use crate::tls::{carries_one_of, narrowed};

/// What the configuration in force names, ready for handshakes.
#[derive(Default)]
pub struct Credentials {
    ready: ArcSwap<HashMap<TlsSettings, Entry>>,
    /// Some server names files outside of the volume, of which nothing tells when they change.
    has_files: AtomicBool,
}

/// Shows no key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What there is for a server.
struct Entry {
    made: Arc<Made>,
    /// The configuration in force names it; else the one before did, under which a handshake may have begun.
    is_current: bool,
}

/// What was made for a server.
struct Made {
    /// Of the bytes that it was made of; `None` when some were not there.
    digest: Option<String>,
    result: Result<Ready, String>,
}

/// One configuration for each protocol that ALPN can select: a list without overlap must not raise an alert (GW-116), so
/// the choice is made before the handshake begins.
#[derive(Clone)]
struct Ready {
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    none: Arc<ServerConfig>,
}

impl Credentials {
    /// Makes ready what a configuration names, and tells of what changed. What is still the same stays as it is.
    pub fn make(&self, config: &Config, volume: &Files) {
        let before = self.ready.load();
        let mut next: HashMap<TlsSettings, Entry> = HashMap::new();
        let current = |made| Entry { made, is_current: true };
        let mut leaving = Vec::new();
        let mut changed = false;
        let mut has_files = false;
        for settings in named(config) {
            if next.contains_key(settings) {
                continue;
            }
            has_files |= names_files(settings);
            let known = before.get(settings).map(|entry| &entry.made);
            let sources = Sources::read(settings, volume);
            let digest = sources.as_ref().ok().map(Sources::digest);
            if let Some(known) = known.filter(|known| known.digest.is_some() && known.digest == digest) {
                changed |= !before[settings].is_current;
                next.insert(settings.clone(), current(known.clone()));
                continue;
            }
            let is_there = sources.is_ok();
            let result = sources.and_then(|sources| ready(settings, &sources));
            let place = place(settings);
            let told = known.and_then(|known| known.result.as_ref().err());
            match &result {
                Ok(_) => tracing::info!(target: "tls", place, "certificate of the gateway in use"),
                Err(problem) if told == Some(problem) => {}
                Err(problem) => {
                    tracing::warn!(target: "tls", place, problem, "certificate of the gateway cannot be used");
                }
            }
            changed = true;
            // What is being written, or was written wrong, does not replace what works; what is gone is.
            let last = known.and_then(|known| known.result.as_ref().ok()).filter(|_| is_there);
            let result = match (result, last) {
                (Err(_), Some(last)) => Ok(last.clone()),
                (result, _) => result,
            };
            next.insert(settings.clone(), current(Arc::new(Made { digest, result })));
        }
        for (settings, entry) in before.iter().filter(|(settings, _)| !next.contains_key(*settings)) {
            changed = true;
            if entry.is_current {
                let made = entry.made.clone();
                leaving.push((
                    settings.clone(),
                    Entry {
                        made,
                        is_current: false,
                    },
                ));
            }
        }
        next.extend(leaving);
        self.has_files.store(has_files, Ordering::Relaxed);
        if changed {
            self.ready.store(Arc::new(next));
        }
    }

    /// Whether files have to be looked at now and then.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.has_files.load(Ordering::Relaxed)
    }

    /// For a handshake with a client that offers these protocols: one without anything in common goes on without (GW-054,
    /// GW-116). `None` where there is nothing that can be used.
    #[must_use]
    pub fn server(&self, settings: &TlsSettings, alpn: &[Vec<u8>]) -> Option<Arc<ServerConfig>> {
        let made = self.ready.load();
        let ready = made.get(settings)?.made.result.as_ref().ok()?;
        let offers = |name: &[u8]| alpn.iter().any(|offered| offered == name);
        let config = if offers(b"h2") {
            &ready.http2
        } else if offers(b"http/1.1") {
            &ready.http1
        } else {
            &ready.none
        };
        Some(config.clone())
    }
}

/// The settings of all servers of a configuration at which TLS ends with something else than the identity.
fn named(config: &Config) -> impl Iterator<Item = &TlsSettings> {
    let listeners = config.listeners.values();
    let serving = listeners.filter_map(|listener| match &listener.serves {
        Serves::Tls(tls) => Some(tls),
        Serves::Http(_) | Serves::Tcp(_) => None,
    });
    let all = serving.flat_map(|tls| tls.servers().map(|server| &server.tls));
    all.filter(|settings| !settings.certificates.contains(&Certificate::Workload))
}

/// The credentials that servers of a configuration name, by the names of their files without ending.
pub(crate) fn stems(config: &Config) -> impl Iterator<Item = &str> {
    named(config).flat_map(stems_of)
}

fn stems_of(settings: &TlsSettings) -> impl Iterator<Item = &str> {
    let certificates = settings
        .certificates
        .iter()
        .filter_map(|certificate| match certificate {
            Certificate::Credential(stem) => Some(stem.as_str()),
            Certificate::Files { .. } | Certificate::Workload => None,
        });
    let authorities = settings
        .clients
        .iter()
        .filter_map(|clients| match &clients.authorities {
            Authorities::Credential(stem) => Some(stem.as_str()),
            Authorities::File(_) | Authorities::Mesh => None,
        });
    certificates.chain(authorities)
}

fn names_files(settings: &TlsSettings) -> bool {
    let is_file = |certificate: &Certificate| matches!(certificate, Certificate::Files { .. });
    let authorities = settings.clients.as_ref().map(|clients| &clients.authorities);
    settings.certificates.iter().any(is_file) || matches!(authorities, Some(Authorities::File(_)))
}

/// For logs: where the first certificate is.
fn place(settings: &TlsSettings) -> &str {
    match settings.certificates.first() {
        Some(Certificate::Files { chain, .. }) => chain,
        Some(Certificate::Credential(stem)) => stem,
        Some(Certificate::Workload) | None => "",
    }
}

/// The bytes that a server's TLS is made of.
struct Sources {
    pairs: Vec<Pair>,
    authorities: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
}

struct Pair {
    chain: Vec<u8>,
    key: Vec<u8>,
    staple: Option<Vec<u8>>,
}

impl Sources {
    fn read(settings: &TlsSettings, volume: &Files) -> Result<Self, String> {
        let of = |stem: &str, ending: &str| {
            let name = format!("{stem}.{ending}");
            let bytes = volume.get(&name).cloned();
            bytes.ok_or_else(|| format!("{name} is not in the volume of credentials"))
        };
        let pair = |certificate: &Certificate| match certificate {
            Certificate::Files { chain, key } => Ok(Pair {
                chain: read(chain)?,
                key: read(key)?,
                staple: None,
            }),
            Certificate::Credential(stem) => Ok(Pair {
                chain: of(stem, "crt")?,
                key: of(stem, "key")?,
                staple: of(stem, "ocsp").ok(),
            }),
            Certificate::Workload => Err("the identity is no credential".to_owned()),
        };
        let pairs = settings.certificates.iter().map(pair).collect::<Result<_, _>>()?;
        let (authorities, revoked) = match &settings.clients {
            None => (None, None),
            Some(Clients { authorities, crl, .. }) => match authorities {
                Authorities::File(file) => (Some(read(file)?), crl.as_deref().map(read).transpose()?),
                Authorities::Credential(stem) => (Some(of(stem, "ca")?), of(stem, "crl").ok()),
                Authorities::Mesh => return Err("clients of the mesh are verified by the identity".to_owned()),
            },
        };
        Ok(Self {
            pairs,
            authorities,
            revoked,
        })
    }

    fn digest(&self) -> String {
        let pairs = self.pairs.iter();
        let of_pairs = pairs.flat_map(|pair| [Some(&pair.chain), Some(&pair.key), pair.staple.as_ref()]);
        let all = of_pairs.chain([self.authorities.as_ref(), self.revoked.as_ref()]);
        all.map(|bytes| bytes.map_or_else(|| "-".to_owned(), |bytes| sha256(bytes)))
            .collect()
    }
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|e| format!("{path}: {e}"))?;
    if metadata.len() > MAX_BYTES {
        return Err(format!("{path}: is larger than {MAX_BYTES} bytes"));
    }
    std::fs::read(path).map_err(|e| format!("{path}: {e}"))
}

/// Errors name what is wrong and nothing of the content.
fn ready(settings: &TlsSettings, sources: &Sources) -> Result<Ready, String> {
    let provider = aws_lc_rs::default_provider();
    let provider = Arc::new(narrowed(provider, &settings.ciphers, &settings.curves));
    let pairs = sources.pairs.iter().map(|pair| certified(pair, &provider));
    let own = Arc::new(Shown(pairs.collect::<Result<_, _>>()?));
    let clients = settings.clients.as_ref();
    let verifier = clients
        .map(|clients| verifier(clients, sources, &provider))
        .transpose()?;
    let allows_12 = settings.min == TlsVersion::V1_2;
    let allows_13 = settings.max != Some(TlsVersion::V1_2);
    let versions: &[_] = match (allows_12, allows_13) {
        (true, false) => &[&rustls::version::TLS12],
        (true, true) => &[&rustls::version::TLS13, &rustls::version::TLS12],
        (false, _) => &[&rustls::version::TLS13],
    };
    // Clients that are verified are so each time; others come back without a signature. A new certificate makes new
    // tickets, so that nobody comes back to an old one.
    let ticketer = match &verifier {
        None => Some(aws_lc_rs::Ticketer::new().map_err(|e| e.to_string())?),
        Some(_) => None,
    };
    let server = |alpn: &[&[u8]]| {
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(own.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match &ticketer {
            Some(ticketer) => config.ticketer = ticketer.clone(),
            None => config.send_tls13_tickets = 0,
        }
        Ok::<_, String>(Arc::new(config))
    };
    Ok(Ready {
        http2: server(&[b"h2"])?,
        http1: server(&[b"http/1.1"])?,
        none: server(&[])?,
    })
}

fn certified(pair: &Pair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(&pair.chain)?;
    let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(|e| format!("the key: {}", pem::problem(&e)))?;
    let mut certified = CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
        e => e.to_string(),
    })?;
    certified.ocsp.clone_from(&pair.staple);
    Ok(Arc::new(certified))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| format!("a certificate: {}", pem::problem(&e)))?;
    if all.is_empty() {
        return Err("holds no certificate".into());
    }
    Ok(all)
}

fn verifier(
    clients: &Clients,
    sources: &Sources,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let authorities = sources.authorities.as_deref().unwrap_or_default();
    roots.add_parsable_certificates(certificates(authorities)?);
    if roots.is_empty() {
        return Err("holds no authority that can verify clients".into());
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Some(revoked) = &sources.revoked {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(revoked).collect();
        let lists = lists.map_err(|e| format!("the list of revoked certificates: {}", pem::problem(&e)))?;
        // Of issuers that publish no list nothing is known.
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    if clients.optional {
        builder = builder.allow_unauthenticated();
    }
    let inner = builder.build().map_err(|e| e.to_string())?;
    Ok(match clients.names.is_empty() {
        true => inner,
        false => Arc::new(Named {
            inner,
            names: clients.names.clone(),
        }),
    })
}

/// The certificates of a server; of several the first whose kind of key the client takes (GW-039).
#[derive(Debug)]
struct Shown(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let takes = |shown: &&Arc<CertifiedKey>| shown.key.choose_scheme(hello.signature_schemes()).is_some();
        self.0.iter().find(takes).or_else(|| self.0.first()).cloned()
    }
}

/// Verifies clients, and that they carry one of some names (GW-047).
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(leaf, intermediates, now)?;
        if carries_one_of(leaf, &self.names) {
            Ok(verified)
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Larger files are no certificates.
const MAX_BYTES: u64 = 1 << 20;
