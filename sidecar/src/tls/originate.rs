//! TLS that the proxy originates for a DestinationRule: `SIMPLE` and `MUTUAL` (DR-108 ff.). A name of the server's
//! certificate is always verified (BYD-060).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme,
    SupportedCipherSuite,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use weft_bundle::pem;
use weft_bundle::wire::{OriginateTls, UpstreamCredential};

use super::{CredentialVolume, FromDer, GeneralName, Inner, TlsStream, X509Certificate, provider};
use crate::http::Version;

/// Where Debian, Alpine and Red Hat keep the system's anchors.
const SYSTEM_ANCHORS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Why no TLS was established.
pub(crate) enum OriginateError {
    /// The proxy lacks what it takes.
    Unavailable(String),
    /// The handshake failed.
    Handshake(io::Error),
}

/// Opens TLS over a connection. `host`: the Host of the request, else the host of the destination.
pub(crate) async fn handshake(
    settings: &OriginateTls,
    host: &str,
    inner: Inner,
    volume: &CredentialVolume,
    stream: TcpStream,
) -> Result<TlsStream, OriginateError> {
    if let Some(reason) = &settings.unavailable {
        return Err(OriginateError::Unavailable(reason.clone()));
    }
    let names = Names::of(settings, host, inner);
    if matches!(names, Names::Server) && settings.sni.as_deref().unwrap_or(host).contains('*') {
        let reason =
            format!("{host} is no name that a certificate can be verified against; set sni or subjectAltNames");
        return Err(OriginateError::Unavailable(reason));
    }
    // Opaque connections without `sni` send none (DR-118).
    let sends_name = settings.sni.is_some() || inner != Inner::Tcp;
    let config = cached(settings, &names, sends_name, inner, volume).map_err(OriginateError::Unavailable)?;
    let name = settings.sni.as_deref().unwrap_or(host);
    let name = if name.contains('*') { NO_NAME } else { name };
    let server_name = ServerName::try_from(name.to_owned())
        .map_err(|_| OriginateError::Unavailable(format!("{name:?} is no server name")))?;
    TlsStream::connect(config, server_name, stream)
        .await
        .map_err(OriginateError::Handshake)
}

/// Stands where a name is neither sent nor verified.
const NO_NAME: &str = "unnamed.invalid";

/// What a server's certificate is verified for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Names {
    /// Nothing (DR-119).
    Nothing,
    /// Its issuer alone: upstream's rule (DR-117), where the mesh asks for it.
    Chain,
    /// The server name (BYD-060).
    Server,
    /// One of these (DR-116).
    Listed(Vec<String>),
}

impl Names {
    fn of(settings: &OriginateTls, host: &str, inner: Inner) -> Self {
        let unnamed = settings.sni.is_some() || inner == Inner::Tcp || host.is_empty();
        if settings.insecure_skip_verify {
            Self::Nothing
        } else if !settings.subject_alt_names.is_empty() {
            Self::Listed(settings.subject_alt_names.clone())
        } else if settings.chain_alone && unnamed {
            Self::Chain
        } else {
            Self::Server
        }
    }
}

/// What makes a client configuration.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    settings: String,
    names: Names,
    sends_name: bool,
    inner: Inner,
}

/// A client configuration and what it was made of.
type Made = (Arc<ClientConfig>, Sources);

thread_local! {
    /// Reading anchors takes milliseconds, so each worker keeps what it made.
    static MADE: RefCell<HashMap<Kind, Made>> = RefCell::default();
}

/// Most configurations that a worker keeps.
const MOST_KEPT: usize = 1024;

/// The configuration for some settings; made anew when a file or the credential has changed (DR-115, DR-122).
fn cached(
    settings: &OriginateTls,
    names: &Names,
    sends_name: bool,
    inner: Inner,
    volume: &CredentialVolume,
) -> Result<Arc<ClientConfig>, String> {
    let kind = Kind {
        settings: format!("{settings:?}"),
        names: names.clone(),
        sends_name,
        inner,
    };
    let now = Sources::of(settings, volume)?;
    let known = MADE.with_borrow(|made| {
        made.get(&kind)
            .filter(|(_, sources)| *sources == now)
            .map(|(c, _)| c.clone())
    });
    if let Some(config) = known {
        return Ok(config);
    }
    let mut config = client_config(settings, names, inner, now.credential.as_ref())?;
    config.enable_sni = sends_name;
    let config = Arc::new(config);
    MADE.with_borrow_mut(|made| {
        if made.len() >= MOST_KEPT {
            made.clear();
        }
        made.insert(kind, (config.clone(), now));
    });
    Ok(config)
}

/// What a client configuration is made of.
#[derive(PartialEq, Eq)]
struct Sources {
    /// Time and length of each file that the settings name.
    stamps: Vec<Option<(SystemTime, u64)>>,
    /// The credential that they name.
    credential: Option<Credential>,
}

/// Parts of a credential that the settings ask for, as PEM.
#[derive(PartialEq, Eq)]
struct Credential {
    /// Certificate and key that the client shows.
    pair: Option<(Vec<u8>, Vec<u8>)>,
    authorities: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
}

impl Sources {
    fn of(settings: &OriginateTls, volume: &CredentialVolume) -> Result<Self, String> {
        let files = [&settings.certificate, &settings.key, &settings.ca, &settings.crl];
        let stamp = |file: &String| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        let credential = settings.credential.as_ref().map(|of| Credential::of(of, volume));
        Ok(Self {
            stamps: files.into_iter().flatten().map(stamp).collect(),
            credential: credential.transpose()?,
        })
    }
}

impl Credential {
    /// The error names the object (BYD-061).
    fn of(wanted: &UpstreamCredential, volume: &CredentialVolume) -> Result<Self, String> {
        let (files, stem) = (volume.files(), wanted.stem());
        let part = |ending: &str| files.get(&format!("{stem}.{ending}")).cloned();
        let needed = |ending: &str, what: &str| {
            part(ending).ok_or_else(|| format!("{wanted} has no {what} that can be used, or has not arrived"))
        };
        let pair = || Ok::<_, String>((needed("crt", "certificate")?, needed("key", "certificate")?));
        let authorities = || needed("ca", "authority (ca.crt)");
        Ok(Self {
            pair: wanted.shows_certificate.then(pair).transpose()?,
            authorities: wanted.has_authorities.then(authorities).transpose()?,
            revoked: part("crl"),
        })
    }
}

fn client_config(
    settings: &OriginateTls,
    names: &Names,
    inner: Inner,
    credential: Option<&Credential>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(narrowed(provider(), &settings.cipher_suites, &settings.curves));
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let verifier = match names {
        Names::Nothing => None,
        Names::Chain | Names::Server | Names::Listed(_) => {
            let authorities = credential.and_then(|credential| credential.authorities.as_deref());
            let roots = match authorities {
                Some(pem) => anchors_in(pem)?,
                None => anchors(settings.ca.as_deref())?,
            };
            let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            if let Some(lists) = revoked(settings, credential)? {
                // Of issuers that publish no list nothing is known.
                builder = builder.with_crls(lists).allow_unknown_revocation_status();
            }
            Some(builder.build().map_err(|e| e.to_string())?)
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier {
        inner: verifier,
        names: names.clone(),
        algorithms: provider.signature_verification_algorithms,
    }));
    let mut config = match shown(settings, credential)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match inner {
        Inner::Http(Version::Http2) => vec![b"h2".to_vec()],
        Inner::Http(_) => vec![b"http/1.1".to_vec()],
        Inner::Tcp => Vec::new(),
    };
    Ok(config)
}

/// Lists of certificates that are not to be trusted any more.
fn revoked(
    settings: &OriginateTls,
    credential: Option<&Credential>,
) -> Result<Option<Vec<CertificateRevocationListDer<'static>>>, String> {
    if let Some(pem) = credential.and_then(|credential| credential.revoked.as_deref()) {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        return lists.map(Some).map_err(|e| pem::problem(&e).to_owned());
    }
    let Some(file) = &settings.crl else {
        return Ok(None);
    };
    let lists = CertificateRevocationListDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    lists.map(Some).map_err(|e| format!("{file}: {e}"))
}

/// What the client shows, with its key.
type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn shown(settings: &OriginateTls, credential: Option<&Credential>) -> Result<Option<Shown>, String> {
    if let Some((chain, key)) = credential.and_then(|credential| credential.pair.as_ref()) {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|e| pem::problem(&e).to_owned())?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| pem::problem(&e).to_owned())?;
        return Ok(Some((chain, key)));
    }
    let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| format!("{certificate}: {}", pem::problem(&e)))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{key}: {}", pem::problem(&e)))?;
    Ok(Some((chain, key)))
}

/// The provider with the suites and groups that are left (DR-121). Names that nobody knows are passed over.
pub(crate) fn narrowed(mut provider: CryptoProvider, suites: &[String], curves: &[String]) -> CryptoProvider {
    if !suites.is_empty() {
        let wanted = |suite: &SupportedCipherSuite| match suite {
            SupportedCipherSuite::Tls13(_) => true,
            SupportedCipherSuite::Tls12(_) => {
                let name = openssl_name(suite.suite());
                suites.iter().any(|wanted| Some(wanted.as_str()) == name)
            }
        };
        provider.cipher_suites.retain(wanted);
    }
    if !curves.is_empty() {
        let of = |group: NamedGroup| match group {
            NamedGroup::secp256r1 => "P-256",
            NamedGroup::secp384r1 => "P-384",
            NamedGroup::secp521r1 => "P-521",
            NamedGroup::X25519 => "X25519",
            NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
            _ => "",
        };
        let all = provider.kx_groups.clone();
        provider
            .kx_groups
            .retain(|group| curves.iter().any(|wanted| wanted == of(group.name())));
        if provider.kx_groups.is_empty() {
            provider.kx_groups = all;
        }
    }
    provider
}

fn openssl_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

fn anchors(file: Option<&str>) -> Result<RootCertStore, String> {
    let files: Vec<&str> = file.map_or_else(|| SYSTEM_ANCHORS.to_vec(), |file| vec![file]);
    let mut store = RootCertStore::empty();
    let mut last = String::from("no system trust anchors");
    for file in files {
        match CertificateDer::pem_file_iter(file) {
            Ok(certificates) => {
                store.add_parsable_certificates(certificates.flatten());
                if !store.is_empty() {
                    return Ok(store);
                }
                last = format!("{file}: no usable trust anchor");
            }
            Err(e) => last = format!("{file}: {e}"),
        }
    }
    Err(last)
}

fn anchors_in(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).flatten());
    if store.is_empty() {
        return Err("no usable trust anchor in the credential".to_owned());
    }
    Ok(store)
}

#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate is accepted (DR-119).
    inner: Option<Arc<WebPkiServerVerifier>>,
    names: Names,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.names != Names::Server => ServerCertVerified::assertion(),
            other => other?,
        };
        match &self.names {
            // Chain and time are good; the names that the rule lists replace the server name (DR-116).
            Names::Listed(names) if !carries_one_of(end_entity, names) => {
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
            }
            Names::Listed(_) | Names::Chain | Names::Server | Names::Nothing => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate has one of the names, exactly as written (DR-116).
pub(crate) fn carries_one_of(leaf: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    alternatives.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(found) | GeneralName::URI(found) => names.iter().any(|name| name == found),
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(std::net::IpAddr::from),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(std::net::IpAddr::from),
            };
            address.is_some_and(|address| names.iter().any(|name| name.parse() == Ok(address)))
        }
        _ => false,
    })
}
