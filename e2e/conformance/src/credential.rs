//! Certificates of the stage. Recordings tell of Secrets without what they hold, so it is made here, once for a run.

use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// Puts into a Secret what its name promises: `shop-...` is for `shop.example.com`, and what ends in `-mutual` holds the
/// authority of clients as well.
pub(crate) fn fill(object: &mut Value) -> Result<()> {
    let is_empty = |field: &str| object.get(field).is_none_or(Value::is_null);
    if object["kind"] != "Secret" || !is_empty("data") || !is_empty("stringData") {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let Some((host, _)) = name.split_once('-') else {
        return Ok(());
    };
    let (chain, key) = AUTHORITIES.good.sign(&format!("{host}.example.com"))?;
    let mut held = json!({"tls.crt": chain, "tls.key": key});
    if name.ends_with("-mutual") {
        held["ca.crt"] = AUTHORITIES.good.pem.clone().into();
    }
    object["stringData"] = held;
    Ok(())
}

/// Certificate and key of a client, by the word that requests have for it.
pub(crate) fn client(word: &str) -> Result<(String, String)> {
    match word {
        "cl" => AUTHORITIES.good.sign("client.example.com"),
        "badcl" => AUTHORITIES.other.sign("client.example.com"),
        other => anyhow::bail!("the stage has no client certificate {other:?}"),
    }
}

struct Authorities {
    good: Authority,
    /// Nobody trusts it.
    other: Authority,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

static AUTHORITIES: LazyLock<Authorities> = LazyLock::new(|| Authorities {
    good: Authority::new("good").expect("an authority"),
    other: Authority::new("other").expect("an authority"),
});

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { pem, issuer })
    }

    fn sign(&self, host: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        let leaf = params.signed_by(&key, &self.issuer);
        let leaf = leaf.with_context(|| format!("sign a certificate for {host}"))?;
        Ok((leaf.pem(), key.serialize_pem()))
    }
}
