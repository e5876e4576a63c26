//! What the TLS ports show: a certificate from files, or one that is made at the start.

use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A chain and its private key.
pub(super) type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads PEM files.
pub(super) fn read(chain: &Path, key: &Path) -> Result<Certificate> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read certificates from {}", chain.display()))?;
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("read a private key from {}", key.display()))?;
    Ok((certificates, private))
}

/// Makes one for some names, from an authority that is forgotten at once.
pub(super) fn make(names: &[String]) -> Result<Certificate> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "unknown authority");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names).context("names of --tls-names")?;
    let first = names.first().cloned().unwrap_or_default();
    params.distinguished_name.push(DnType::CommonName, first);
    let leaf = params.signed_by(&key, &authority)?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok((vec![leaf.der().clone(), authority.der().clone()], private))
}
