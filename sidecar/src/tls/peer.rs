//! Facts of a peer's certificate.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::{CommonState, ProtocolVersion};
use rustls_pki_types::CertificateDer;

use super::{FromDer, GeneralName, X509Certificate, time};

/// The peer's certificate and the session, for logs and `X-Forwarded-Client-Cert`.
#[derive(Debug)]
pub struct PeerTls {
    /// The peer's leaf, DER.
    pub leaf: CertificateDer<'static>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Name of the cipher suite.
    pub cipher: String,
    facts: OnceLock<Facts>,
}

/// What the leaf says.
#[derive(Debug, Default)]
pub struct Facts {
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
    /// Subject (RFC 2253); may be empty.
    pub subject: String,
    /// Issuer (RFC 2253).
    pub issuer: String,
    /// Serial number, hex.
    pub serial: String,
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// Begin and end of its validity.
    pub validity: Option<(SystemTime, SystemTime)>,
}

impl PeerTls {
    /// Facts of an established connection; `None` when the peer showed no certificate.
    #[must_use]
    pub fn of(connection: &CommonState) -> Option<Arc<Self>> {
        let leaf = connection.peer_certificates()?.first()?.clone().into_owned();
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let cipher = connection
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()))
            .unwrap_or_default();
        Some(Arc::new(Self {
            leaf,
            version,
            cipher,
            facts: OnceLock::new(),
        }))
    }

    /// What the leaf says, parsed once.
    pub fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| Facts::of(&self.leaf))
    }

    /// The leaf's SPIFFE id.
    #[must_use]
    pub fn spiffe_id(&self) -> Option<Arc<str>> {
        let (_, parsed) = X509Certificate::from_der(&self.leaf).ok()?;
        spiffe_id(&parsed).ok().map(Arc::from)
    }
}

impl Facts {
    fn of(leaf: &CertificateDer<'_>) -> Self {
        let digest = aws_digest(leaf);
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
            return Self {
                sha256: digest,
                ..Self::default()
            };
        };
        let mut uris = Vec::new();
        let mut dns = Vec::new();
        if let Ok(Some(names)) = parsed.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        Self {
            sha256: digest,
            subject: rfc2253(parsed.subject()),
            issuer: rfc2253(parsed.issuer()),
            serial: parsed.raw_serial_as_string().replace(':', ""),
            uris,
            dns,
            validity: Some((
                time(parsed.validity().not_before.timestamp()),
                time(parsed.validity().not_after.timestamp()),
            )),
        }
    }
}

/// RFC 2253 writes the relative names in reverse order, joined by commas.
fn rfc2253(name: &x509_parser::x509::X509Name<'_>) -> String {
    let text = name.to_string();
    let mut parts: Vec<&str> = text.split(", ").filter(|part| !part.is_empty()).collect();
    parts.reverse();
    parts.join(",")
}

fn aws_digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let provider = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = match provider {
        rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
        rustls::SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider,
    };
    let mut hex = String::with_capacity(64);
    for byte in hash.hash(bytes).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The one URI SAN of a leaf, if it is a SPIFFE id (ID-083).
///
/// # Errors
/// What the leaf has instead.
pub fn spiffe_id(leaf: &X509Certificate<'_>) -> Result<String, &'static str> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| "has a malformed subject alternative name")?
        .ok_or("has no subject alternative name")?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or("has no URI name")?;
    if uris.next().is_some() {
        return Err("has more than one URI name");
    }
    let (domain, path) = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or("has a URI name that is no SPIFFE id")?;
    let is_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if domain.is_empty() || path.is_empty() || !domain.bytes().all(is_domain) || path.split('/').any(str::is_empty) {
        return Err("has a URI name that is no SPIFFE id");
    }
    Ok(uri.to_owned())
}

/// Trust domain of a SPIFFE id that [`spiffe_id`] accepted.
pub(super) fn trust_domain(id: &str) -> &str {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    rest.split('/').next().unwrap_or_default()
}

/// Namespace and service account of a SPIFFE id in the form of the mesh (ID-005).
#[must_use]
pub fn account(id: &str) -> Option<(&str, &str)> {
    let (_, path) = id.strip_prefix("spiffe://")?.split_once('/')?;
    let rest = path.strip_prefix("ns/")?;
    let (namespace, rest) = rest.split_once('/')?;
    let account = rest.strip_prefix("sa/")?;
    (!account.contains('/')).then_some((namespace, account))
}
