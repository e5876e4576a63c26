//! Verification of peers in both roles: chain, time, usage, the form of the SPIFFE id, and that the anchor is one for
//! the peer's trust domain (ID-060, ID-081..ID-086, ID-144).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_bundle::anchors;
use x509_parser::extensions::ParsedExtension;

use super::{FromDer, MeshTrust, X509Certificate, peer, time};

/// A trust anchor and whom it verifies.
#[derive(Debug, Clone)]
pub(super) struct Anchor {
    certificate: CertificateDer<'static>,
    binding: anchors::Anchor,
    /// End of its validity.
    pub(super) not_after: SystemTime,
}

impl Anchor {
    /// `None` for what is no certificate that can be an anchor.
    pub(super) fn parse(binding: &anchors::Anchor) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(binding.pem.as_bytes()).ok()?;
        RootCertStore::empty().add(certificate.clone()).ok()?;
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let not_after = time(parsed.validity().not_after.timestamp());
        Some(Self {
            binding: binding.clone(),
            not_after,
            certificate,
        })
    }

    /// Whether it verifies peers of this domain; `is_own`: one of the mesh itself.
    fn is_for(&self, domain: &str, is_own: bool) -> bool {
        let names = &self.binding.domains;
        names.contains(anchors::ANY) || names.contains(domain) || (is_own && names.contains(anchors::MESH))
    }
}

/// Verifies peers of the mesh.
#[derive(Debug)]
pub(super) struct MeshVerifier {
    anchors: Vec<Anchor>,
    /// By trust domain; the empty name stands for every other one, where the domain is not looked at.
    domains: BTreeMap<String, Trusted>,
    provider: Arc<CryptoProvider>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The anchors for peers of one trust domain.
#[derive(Debug)]
struct Trusted {
    is_own: bool,
    /// When the first of them ends: they must be chosen anew from then on.
    until: SystemTime,
    /// `None`: no anchor verifies peers of the domain.
    roots: Option<Roots>,
}

/// Anchors, ready to verify peers in both roles.
#[derive(Debug)]
struct Roots {
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Roots {
    fn new(
        certificates: Vec<CertificateDer<'_>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Self>, rustls::server::VerifierBuilderError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates);
        if store.is_empty() {
            return Ok(None);
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone()).build()?;
        Ok(Some(Self { store, clients }))
    }
}

/// In which role the peer is.
#[derive(Debug, Clone, Copy)]
enum Role {
    Server,
    Client,
}

impl MeshVerifier {
    pub(super) fn new(
        anchors: Vec<Anchor>,
        trust: &MeshTrust,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        let named = anchors.iter().flat_map(|anchor| &anchor.binding.domains);
        let foreign = named.filter(|name| !matches!(name.as_str(), anchors::MESH | anchors::ANY));
        // Where the domain is not looked at, the mesh's own anchors verify every one.
        let mut all: BTreeMap<String, bool> = foreign.map(|name| (name.clone(), trust.any_domain)).collect();
        all.extend(trust.domains.iter().map(|name| (name.clone(), true)));
        if trust.any_domain {
            all.insert(String::new(), true);
        }
        let mut domains = BTreeMap::new();
        for (domain, is_own) in all {
            let chosen: Vec<&Anchor> = anchors.iter().filter(|a| a.is_for(&domain, is_own)).collect();
            let until = chosen.iter().map(|anchor| anchor.not_after).min();
            let certificates = chosen.iter().map(|anchor| anchor.certificate.clone()).collect();
            let trusted = Trusted {
                is_own,
                until: until.unwrap_or(UNIX_EPOCH),
                roots: Roots::new(certificates, provider)?,
            };
            domains.insert(domain, trusted);
        }
        Ok(Self {
            anchors,
            domains,
            provider: provider.clone(),
            algorithms: provider.signature_verification_algorithms,
        })
    }

    fn verify(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if intermediates.len() >= MAX_DEPTH {
            return Err(unknown());
        }
        let id = id_of(leaf);
        // A chain is judged in any case: an unknown issuer is told as that, whatever the name.
        let own = self
            .domains
            .iter()
            .find(|(_, trusted)| trusted.is_own)
            .map(|(domain, _)| domain.as_str());
        let domain = id.as_deref().map_or(own.unwrap_or_default(), peer::trust_domain);
        let known = self
            .domains
            .get_key_value(domain)
            .or_else(|| self.domains.get_key_value(""));
        let (domain, trusted) = known.ok_or_else(unknown)?;
        let at = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let chosen;
        let roots = if at < trusted.until {
            &trusted.roots
        } else {
            // An anchor has ended since the identity was read: it verifies nobody any more (ID-060).
            chosen = self.roots_at(domain, trusted, at)?;
            &chosen
        };
        let roots = roots.as_ref().ok_or_else(unknown)?;
        match self.verify_to(roots, role, leaf, intermediates, now) {
            Err(_) if intermediates.len() > WEBPKI_DEPTH => {
                let certificates = self.certificates(domain, trusted, at);
                let most = intermediates.len() - WEBPKI_DEPTH;
                let upper = upper_part(intermediates, &certificates, most, at);
                let roots = Roots::new(upper, &self.provider).map_err(general)?;
                self.verify_to(&roots.ok_or_else(unknown)?, role, leaf, intermediates, now)?;
            }
            other => other?,
        }
        match id {
            Some(_) => Ok(()),
            None => Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_to(
        &self,
        roots: &Roots,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verified = match role {
            Role::Client => roots.clients.verify_client_cert(leaf, intermediates, now).map(drop),
            Role::Server => {
                let leaf = ParsedCertificate::try_from(leaf)?;
                let algorithms = self.algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&leaf, &roots.store, intermediates, now, algorithms)
            }
        };
        verified.map_err(|error| match error {
            // Signed by another authority of the same name, which nobody knows either (ID-086).
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => unknown(),
            other => other,
        })
    }

    fn certificates(&self, domain: &str, trusted: &Trusted, at: SystemTime) -> Vec<CertificateDer<'static>> {
        let is_good = |anchor: &&Anchor| anchor.is_for(domain, trusted.is_own) && at < anchor.not_after;
        let chosen = self.anchors.iter().filter(is_good);
        chosen.map(|anchor| anchor.certificate.clone()).collect()
    }

    fn roots_at(&self, domain: &str, trusted: &Trusted, at: SystemTime) -> Result<Option<Roots>, rustls::Error> {
        Roots::new(self.certificates(domain, trusted, at), &self.provider).map_err(general)
    }
}

fn unknown() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
}

fn general(error: impl std::fmt::Display) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// The peer's id, if its leaf is one of a workload (ID-083).
fn id_of(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    peer::spiffe_id(&parsed).ok().filter(|_| !parsed.is_ca())
}

/// The intermediates next to the anchors, themselves verified: from them down the chain is short enough for webpki,
/// which gives up after six. What limits those below it (path length, names) is refused here, not interpreted.
fn upper_part<'c>(
    intermediates: &[CertificateDer<'c>],
    anchors: &[CertificateDer<'c>],
    most: usize,
    at: SystemTime,
) -> Vec<CertificateDer<'c>> {
    let mut verified: Vec<CertificateDer<'c>> = Vec::new();
    for _ in 0..most {
        let next = intermediates.iter().find(|der| {
            let known = anchors.iter().chain(&verified);
            !verified.contains(der) && known.into_iter().any(|issuer| is_issued_by(der, issuer, at))
        });
        match next {
            Some(next) => verified.push(next.clone()),
            None => break,
        }
    }
    verified
}

/// Whether a certificate is an authority that another one signed, valid and without limits on what it signs.
fn is_issued_by(der: &CertificateDer<'_>, issuer: &CertificateDer<'_>, at: SystemTime) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) = (X509Certificate::from_der(der), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    let is_unlimited = |certificate: &X509Certificate<'_>| {
        certificate
            .extensions()
            .iter()
            .all(|extension| match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(limits) => limits.path_len_constraint.is_none(),
                ParsedExtension::KeyUsage(usage) => usage.key_cert_sign(),
                ParsedExtension::NameConstraints(_) => false,
                _ => !extension.critical,
            })
    };
    let validity = certificate.validity();
    certificate.is_ca()
        && time(validity.not_before.timestamp()) <= at
        && at < time(validity.not_after.timestamp())
        && certificate.issuer().as_raw() == issuer.subject().as_raw()
        && is_unlimited(&certificate)
        && is_unlimited(&issuer)
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(Role::Server, end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
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

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Names of roots would only make handshakes longer: a mesh client has one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(Role::Client, end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
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

/// Certificates that a peer may send, the leaf and perhaps the root among them (ID-082).
const MAX_DEPTH: usize = 10;
/// Intermediates that webpki follows.
const WEBPKI_DEPTH: usize = 6;
