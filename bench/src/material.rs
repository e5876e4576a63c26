//! Certificates of one authority, and volumes as a kubelet keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use weft_bundle::key::{InterceptionMode, KeyInputs, PodShape, Template};
use weft_bundle::pack::{self, EndpointInput, HostInput, Limits};
use weft_bundle::volume;
use weft_bundle::wire::{Bundle, Health, MeshTls};

/// DNS name in each certificate, for peers that verify one.
pub(crate) const NAME: &str = "echo.bench";

/// Writes `cert-chain.pem`, `key.pem` and `root-cert.pem` for each account, and `both.pem` with chain and key.
pub(crate) fn identities(directory: &Path, accounts: &[String]) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "benchmark authority");
    let root = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    for account in accounts {
        let (namespace, name) = account.split_once('/').context("an account is NAMESPACE/NAME")?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
        params.subject_alt_names.push(SanType::URI(id.as_str().try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (leaf, key) = (params.signed_by(&key, &issuer)?.pem(), key.serialize_pem());
        let place = directory.join(name);
        fs::create_dir_all(&place)?;
        fs::write(place.join("both.pem"), format!("{leaf}{key}"))?;
        fs::write(place.join("cert-chain.pem"), leaf)?;
        fs::write(place.join("key.pem"), key)?;
        fs::write(place.join("root-cert.pem"), &root)?;
    }
    Ok(())
}

fn roots(directory: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("root-cert.pem"))?)?;
    Ok(roots)
}

fn pair(directory: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    Ok((
        vec![CertificateDer::from_pem_file(directory.join("cert-chain.pem"))?],
        PrivateKeyDer::from_pem_file(directory.join("key.pem"))?,
    ))
}

/// A client with the identity of a directory.
pub(crate) fn client(directory: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let (chain, key) = pair(directory)?;
    Ok(rustls::ClientConfig::builder()
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?)
}

/// A server with the identity of a directory, which asks clients for theirs.
pub(crate) fn server(directory: &Path) -> anyhow::Result<rustls::ServerConfig> {
    let (chain, key) = pair(directory)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(directory)?)).build()?;
    Ok(rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?)
}

/// A host of the file with endpoints.
#[derive(Debug, Deserialize)]
struct HostFile {
    host: String,
    accounts: Vec<String>,
    address: std::net::IpAddr,
    port: u16,
    mesh: bool,
}

/// Replaces what the volume holds by one rename.
pub(crate) fn publish(directory: &Path, bundle: &Path, endpoints: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let bundle: Bundle = serde_yaml::from_str(&read(bundle)?).context("the bundle")?;
    let hosts: Vec<HostFile> = serde_yaml::from_str(&read(endpoints)?).context("the endpoints")?;
    let hosts: Vec<HostInput> = hosts
        .into_iter()
        .map(|host| HostInput {
            host: host.host,
            accounts: host.accounts,
            endpoints: vec![EndpointInput {
                address: host.address,
                ports: BTreeMap::from([("main".to_owned(), host.port)]),
                labels: BTreeMap::new(),
                workload: None,
                locality: None,
                node: None,
                weight: 1,
                health: Health::Ready,
                tls: if host.mesh { MeshTls::All } else { MeshTls::None },
            }],
        })
        .collect();
    let inputs = KeyInputs::new(&PodShape {
        namespace: &bundle.workload.namespace,
        labels: &BTreeMap::new(),
        annotations: &BTreeMap::new(),
        service_account: &bundle.workload.service_account,
        workload: &bundle.workload.name,
        ports: &[],
        interception: InterceptionMode::None,
        revision: "",
        template: Template::Sidecar,
        ignored_labels: &[],
    });
    let limits = Limits::default();
    let mut files = pack::Files::new();
    for part in pack::config(&bundle, &inputs, &limits)?.shards {
        files.extend(part);
    }
    for part in pack::endpoints(&hosts, &pack::Places::default(), &limits)?.shards {
        files.extend(part);
    }
    volume::publish(directory, &files).with_context(|| format!("publish {}", directory.display()))
}
