//! The mesh's certificate authority and the leaves that it issues: pure functions of their inputs and the time
//! (spec: identity.md, sections 1 to 5).

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub mod held;
mod profile;

pub use profile::{BadSetting, KeyAlgorithm, Profile};

/// The identity of a workload (ID-001).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// Why there is no authority, or no leaf.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key could not be made or used.
    #[error("{what}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: rcgen::Error,
    },
    /// Material of an authority that cannot be used (ID-046).
    #[error("{field}: {problem}")]
    Material {
        /// Key of the Secret, for example `ca-cert.pem`.
        field: &'static str,
        /// What is wrong and what would be accepted.
        problem: String,
    },
    /// A leaf that was issued is not what was asked for (ID-021).
    #[error("the issued certificate is refused: {0}")]
    Rejected(&'static str),
    /// The signing certificate has expired (ID-020).
    #[error("the signing certificate has expired; renew the authority")]
    Expired,
}

/// A key in PEM. Its text is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPem(String);

impl KeyPem {
    /// The text, to be written to a Secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(..)")
    }
}

impl Drop for KeyPem {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        // Without a use the compiler may leave the writes out.
        std::hint::black_box(&bytes);
    }
}

/// A certificate of a workload with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Leaf first, then intermediates (ID-024).
    pub chain_pem: String,
    /// PKCS#8 (ID-018).
    pub key_pem: KeyPem,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    key_pem: KeyPem,
    cert_pem: String,
    chain_pem: String,
    roots_pem: String,
    not_after: SystemTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a self-signed root (ID-040, ID-041): ten years, ECDSA P-256.
    ///
    /// # Errors
    /// That no key could be made.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<Self, IdentityError> {
        let crypto = |what| move |source| IdentityError::Crypto { what, source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto("make the root's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        let cert = params.self_signed(&key).map_err(crypto("sign the root"))?;
        let pem = cert.pem();
        Self::from_pem(&pem, &key.serialize_pem(), &pem, &pem, now)
    }

    /// Takes the material of Secret `cacerts` or `weft-ca-secret` (ID-044).
    ///
    /// # Errors
    /// What makes it unusable (ID-046).
    pub fn from_pem(
        cert_pem: &str,
        key_pem: &str,
        chain_pem: &str,
        roots_pem: &str,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let bad = |field, problem: String| IdentityError::Material { field, problem };
        let key = KeyPair::from_pem(key_pem).map_err(|_| {
            bad(
                "ca-key.pem",
                "must be a private key in PEM: PKCS#8, PKCS#1 or SEC1".to_owned(),
            )
        })?;
        let ders = parse_pem("ca-cert.pem", cert_pem)?;
        let cert = first("ca-cert.pem", &ders)?;
        if cert.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(bad("ca-key.pem", "is not the key of ca-cert.pem".to_owned()));
        }
        if !cert.is_ca() {
            return Err(bad(
                "ca-cert.pem",
                "must be a certificate authority: CA=true".to_owned(),
            ));
        }
        let usage = cert.key_usage().ok().flatten();
        if usage.is_some_and(|u| !u.value.key_cert_sign()) {
            return Err(bad("ca-cert.pem", "must have key usage keyCertSign".to_owned()));
        }
        let not_after = time(cert.validity().not_after.timestamp());
        if not_after <= now {
            return Err(bad("ca-cert.pem", "has expired".to_owned()));
        }
        verify_chain(cert_pem, chain_pem, roots_pem, now)?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(|source| IdentityError::Crypto {
            what: "use the signing certificate",
            source,
        })?;
        // A root that signs leaves itself is in the chain of no leaf: peers have it already.
        let chain_pem = if is_self_signed(&cert) {
            String::new()
        } else {
            without_roots(chain_pem)
        };
        Ok(Self {
            issuer,
            key_pem: KeyPem(key_pem.to_owned()),
            cert_pem: cert_pem.to_owned(),
            chain_pem,
            roots_pem: roots_pem.to_owned(),
            not_after,
        })
    }

    /// The signing certificate.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its key.
    #[must_use]
    pub fn key_pem(&self) -> &KeyPem {
        &self.key_pem
    }

    /// The roots that verify its leaves (ID-057).
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it has signed the leaf of a Secret.
    #[must_use]
    pub fn has_signed(&self, files: &weft_bundle::pack::Files) -> bool {
        let is_signed = || {
            let chain = std::str::from_utf8(files.get("cert-chain.pem")?).ok()?;
            let (leaf, own) = (parse_pem("leaf", chain).ok()?, parse_pem("own", &self.cert_pem).ok()?);
            let (leaf, own) = (first("leaf", &leaf).ok()?, first("own", &own).ok()?);
            leaf.verify_signature(Some(own.public_key())).ok()
        };
        is_signed().is_some()
    }

    /// Issues a leaf with a new key (ID-012..ID-016, ID-034), cut to the validity of the authority (ID-020).
    ///
    /// # Errors
    /// [`IdentityError::Expired`], or that the leaf is not what was asked for (ID-021).
    pub fn issue(&self, id: &SpiffeId, profile: &Profile, now: SystemTime) -> Result<Leaf, IdentityError> {
        if self.not_after <= now {
            return Err(IdentityError::Expired);
        }
        let crypto = |what| move |source| IdentityError::Crypto { what, source };
        let key = profile.algorithm.generate().map_err(crypto("make a leaf's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = id
            .to_string()
            .try_into()
            .map_err(crypto("write the identity as a URI"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if profile.algorithm.is_rsa() {
            params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let (not_before, not_after) = (now - CLOCK_SKEW, (now + profile.ttl).min(self.not_after));
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let cert = params.signed_by(&key, &self.issuer).map_err(crypto("sign a leaf"))?;
        let leaf = Leaf {
            chain_pem: format!("{}{}", cert.pem(), self.chain_pem),
            key_pem: KeyPem(key.serialize_pem()),
            not_before,
            not_after,
        };
        check(cert.der(), id, &self.cert_pem, now)?;
        Ok(leaf)
    }
}

/// Contents of an identity Secret (ID-024).
#[must_use]
pub fn secret(leaf: &Leaf, roots_pem: &str) -> weft_bundle::pack::Files {
    [
        ("cert-chain.pem", leaf.chain_pem.as_bytes()),
        ("key.pem", leaf.key_pem.expose().as_bytes()),
        ("root-cert.pem", roots_pem.as_bytes()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
    .into()
}

/// When a leaf is renewed: after a share of its lifetime, moved by a random number of -1 to 1 times the jitter
/// (ID-033).
#[must_use]
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, ratio: f64, jitter: f64, random: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let share = (ratio + jitter * random.clamp(-1.0, 1.0)).clamp(0.0, 1.0);
    not_before + lifetime.mul_f64(share)
}

/// A leaf is checked before anybody gets it (ID-021).
fn check(der: &[u8], id: &SpiffeId, ca_pem: &str, now: SystemTime) -> Result<(), IdentityError> {
    let reject = IdentityError::Rejected;
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| reject("it does not parse"))?;
    let ders = parse_pem("ca-cert.pem", ca_pem)?;
    let ca = first("ca-cert.pem", &ders)?;
    cert.verify_signature(Some(ca.public_key()))
        .map_err(|_| reject("its signature does not verify"))?;
    let names = cert
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or(reject("it has no subject alternative name"))?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] if *uri == id.to_string() => {}
        _ => return Err(reject("its only name is not the identity that was asked for")),
    }
    if cert.is_ca() {
        return Err(reject("it is a certificate authority"));
    }
    if time(cert.validity().not_after.timestamp()) <= now {
        return Err(reject("it has expired"));
    }
    let usage = cert.extended_key_usage().ok().flatten();
    if !usage.is_some_and(|u| u.value.server_auth && u.value.client_auth) {
        return Err(reject("it is not for both serverAuth and clientAuth"));
    }
    Ok(())
}

/// The signing certificate must verify to one of the roots, through the chain (ID-046).
fn verify_chain(cert: &str, chain: &str, roots: &str, now: SystemTime) -> Result<(), IdentityError> {
    let bad = |field, problem: &str| IdentityError::Material {
        field,
        problem: problem.to_owned(),
    };
    let (cert_ders, chain_ders) = (parse_pem("ca-cert.pem", cert)?, parse_pem("cert-chain.pem", chain)?);
    let root_ders = parse_pem("root-cert.pem", roots)?;
    let parse = |field, ders: &'_ [Pem]| -> Result<Vec<Vec<u8>>, IdentityError> {
        ders.iter()
            .map(|p| first(field, std::slice::from_ref(p)).map(|_| p.contents.clone()))
            .collect()
    };
    let (chain, roots) = (
        parse("cert-chain.pem", &chain_ders)?,
        parse("root-cert.pem", &root_ders)?,
    );
    let mut current = cert_ders.first().map(|p| p.contents.clone()).unwrap_or_default();
    for _ in 0..MAX_DEPTH {
        let (_, cert) = X509Certificate::from_der(&current).map_err(|_| bad("cert-chain.pem", "does not parse"))?;
        if time(cert.validity().not_after.timestamp()) <= now {
            return Err(bad("cert-chain.pem", "holds an expired certificate"));
        }
        let signed_by = |der: &&Vec<u8>| {
            X509Certificate::from_der(der).is_ok_and(|(_, issuer)| {
                issuer.subject() == cert.issuer() && cert.verify_signature(Some(issuer.public_key())).is_ok()
            })
        };
        if roots.iter().any(|root| *root == current || signed_by(&root)) {
            return Ok(());
        }
        match chain.iter().find(|der| **der != current && signed_by(der)) {
            Some(next) => current = next.clone(),
            None => {
                return Err(bad(
                    "cert-chain.pem",
                    "does not lead from ca-cert.pem to a certificate of root-cert.pem",
                ));
            }
        }
    }
    Err(bad("cert-chain.pem", "is longer than 10 certificates"))
}

fn parse_pem(field: &'static str, text: &str) -> Result<Vec<Pem>, IdentityError> {
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(text.as_bytes()).collect();
    match blocks {
        Ok(blocks) if !blocks.is_empty() => Ok(blocks),
        _ => Err(IdentityError::Material {
            field,
            problem: "must hold certificates in PEM".to_owned(),
        }),
    }
}

fn first<'a>(field: &'static str, ders: &'a [Pem]) -> Result<X509Certificate<'a>, IdentityError> {
    let problem = || IdentityError::Material {
        field,
        problem: "must hold certificates in PEM".to_owned(),
    };
    ders.first().and_then(|p| p.parse_x509().ok()).ok_or_else(problem)
}

fn is_self_signed(cert: &X509Certificate<'_>) -> bool {
    cert.subject() == cert.issuer()
}

/// Intermediates alone.
fn without_roots(chain: &str) -> String {
    let mut out = String::new();
    for block in Pem::iter_from_buffer(chain.as_bytes()).flatten() {
        if block.parse_x509().is_ok_and(|cert| !is_self_signed(&cert)) {
            let text = data_encoding::BASE64.encode(&block.contents);
            out.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in text.as_bytes().chunks(64) {
                out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
                out.push('\n');
            }
            out.push_str("-----END CERTIFICATE-----\n");
        }
    }
    out
}

/// 128 random bits, positive (ID-016).
fn serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = [0; 16];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Rejected("no random serial number"))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

const CLOCK_SKEW: Duration = Duration::from_secs(120);
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
const MAX_DEPTH: usize = 10;

/// Lifetime of leaves unless a setting says otherwise (ID-019).
pub const DEFAULT_TTL: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SpiffeId {
        SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
        }
    }

    fn leaf_of(authority: &Authority, ttl: Duration, now: SystemTime) -> (Leaf, Vec<u8>) {
        let profile = Profile {
            ttl,
            ..Profile::default()
        };
        let leaf = authority.issue(&id(), &profile, now).expect("leaf");
        let der = parse_pem("leaf", &leaf.chain_pem).expect("pem")[0].contents.clone();
        (leaf, der)
    }

    // spec: ID-001, ID-012, ID-013, ID-014, ID-015, ID-016, ID-018, ID-024
    #[test]
    fn a_leaf_has_the_profile_of_the_mesh() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now).expect("authority");
        let (leaf, der) = leaf_of(&authority, DEFAULT_TTL, now);
        let (_, cert) = X509Certificate::from_der(&der).expect("certificate");
        assert_eq!(cert.subject().iter().count(), 0);
        let names = cert.subject_alternative_name().expect("one").expect("present");
        assert!(names.critical);
        assert_eq!(
            names.value.general_names,
            [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]
        );
        let usage = cert.key_usage().expect("one").expect("present");
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        assert!(!cert.is_ca() && cert.basic_constraints().expect("one").is_some());
        assert!(cert.raw_serial().len() == 16 && cert.raw_serial()[0] < 0x80);
        let authority_key = cert.extensions().iter().any(|e| e.oid.to_id_string() == "2.5.29.35");
        assert!(authority_key, "authority key identifier");
        let (from, to) = (
            cert.validity().not_before.timestamp(),
            cert.validity().not_after.timestamp(),
        );
        assert_eq!(to - from, 86_400 + 120);
        assert!(leaf.key_pem.expose().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(!format!("{leaf:?}").contains("PRIVATE KEY"), "keys are never printed");
        let files = secret(&leaf, authority.roots_pem());
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["cert-chain.pem", "key.pem", "root-cert.pem"]
        );
    }

    // spec: ID-014, ID-017, ID-018
    #[test]
    fn keys_are_of_the_algorithm_that_is_set() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now).expect("authority");
        // Larger RSA keys take seconds to find and differ in nothing else.
        for (name, bits, is_rsa) in [
            ("ECDSA-P256", 256, false),
            ("ECDSA-P384", 384, false),
            ("RSA-2048", 2048, true),
        ] {
            let profile = Profile::new(name, DEFAULT_TTL, 0.5, 0.01).expect("accepted");
            let leaf = authority.issue(&id(), &profile, now).expect("leaf");
            let blocks = parse_pem("leaf", &leaf.chain_pem).expect("PEM");
            let cert = first("leaf", &blocks).expect("a certificate");
            let key = cert.public_key().parsed().expect("a key");
            assert_eq!(key.key_size(), bits, "{name}");
            let usage = cert.key_usage().expect("one").expect("present").value;
            assert_eq!(
                (usage.digital_signature(), usage.key_encipherment()),
                (true, is_rsa),
                "{name}"
            );
            assert!(
                leaf.key_pem.expose().starts_with("-----BEGIN PRIVATE KEY-----"),
                "{name}"
            );
        }
    }

    /// A leaf as an issuer might return it.
    fn returned(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id().to_string().try_into().expect("ASCII"))];
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = (SystemTime::now() + DEFAULT_TTL).into();
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        params
            .signed_by(&key, &authority.issuer)
            .expect("signed")
            .der()
            .to_vec()
    }

    // spec: ID-012, ID-021
    #[test]
    fn a_leaf_that_is_not_what_was_asked_for_is_refused() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now).expect("authority");
        let other = Authority::generate("cluster.local", now).expect("authority");
        let verdict = |der: &[u8]| check(der, &id(), &authority.cert_pem, now).map_err(|e| e.to_string());
        assert_eq!(verdict(&returned(&authority, |_| {})), Ok(()));
        let uri = |text: &str| SanType::URI(text.to_owned().try_into().expect("ASCII"));
        let dns = || SanType::DnsName("a.example".to_owned().try_into().expect("ASCII"));
        let refused = [
            ("signature", returned(&other, |_| {})),
            (
                "name",
                returned(&authority, |p| {
                    p.subject_alt_names = vec![uri("spiffe://cluster.local/ns/x/sa/y")]
                }),
            ),
            ("name", returned(&authority, |p| p.subject_alt_names.push(dns()))),
            ("name", returned(&authority, |p| p.subject_alt_names.clear())),
            (
                "authority",
                returned(&authority, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            ),
            (
                "expired",
                returned(&authority, |p| p.not_after = (now - DEFAULT_TTL).into()),
            ),
            (
                "clientAuth",
                returned(&authority, |p| drop(p.extended_key_usages.pop())),
            ),
            ("parse", b"nothing".to_vec()),
        ];
        for (word, der) in refused {
            let text = verdict(&der).expect_err(word);
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    // spec: ID-020
    #[test]
    fn a_leaf_ends_with_its_authority() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now).expect("authority");
        let (leaf, _) = leaf_of(&authority, Duration::from_secs(20 * 365 * 86_400), now);
        assert_eq!(leaf.not_after, authority.not_after());
        let late = now + Duration::from_secs(3651 * 86_400);
        assert!(matches!(
            authority.issue(&id(), &Profile::default(), late),
            Err(IdentityError::Expired)
        ));
    }

    // spec: ID-044, ID-046
    #[test]
    fn bad_material_is_refused_with_the_key_of_the_secret() {
        let now = SystemTime::now();
        let (one, other) = (
            Authority::generate("cluster.local", now).expect("authority"),
            Authority::generate("cluster.local", now).expect("authority"),
        );
        let (cert, key) = (one.cert_pem(), one.key_pem().expose());
        let (leaf, _) = leaf_of(&one, DEFAULT_TTL, now);
        let refused = |cert: &str, key: &str, chain: &str, roots: &str, now| {
            let error = Authority::from_pem(cert, key, chain, roots, now)
                .expect_err("refused")
                .to_string();
            error.split(':').next().unwrap_or_default().to_owned()
        };
        assert_eq!(refused(cert, other.key_pem().expose(), cert, cert, now), "ca-key.pem");
        assert_eq!(refused("nothing", key, cert, cert, now), "ca-cert.pem");
        assert_eq!(
            refused(&leaf.chain_pem, leaf.key_pem.expose(), cert, cert, now),
            "ca-cert.pem"
        );
        assert_eq!(refused(cert, key, cert, other.cert_pem(), now), "cert-chain.pem");
        assert_eq!(refused(cert, key, cert, "", now), "root-cert.pem");
        let late = now + Duration::from_secs(3651 * 86_400);
        assert_eq!(refused(cert, key, cert, cert, late), "ca-cert.pem");
        assert!(Authority::from_pem(cert, key, cert, cert, now).is_ok());
    }

    // spec: ID-033
    #[test]
    fn renewal_is_at_half_of_the_lifetime_moved_a_little() {
        let start = SystemTime::UNIX_EPOCH;
        let end = start + Duration::from_secs(1000);
        let at = |random| {
            renew_at(start, end, 0.5, 0.01, random)
                .duration_since(start)
                .expect("later")
                .as_secs()
        };
        assert_eq!((at(0.0), at(1.0), at(-1.0), at(9.0)), (500, 510, 490, 510));
    }
}
