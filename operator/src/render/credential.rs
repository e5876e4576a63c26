//! Credentials that gateways name: Secrets of the gateway's own namespace, checked, and copied into Secrets that its pods
//! mount (DLV-150 ff.). What is missing or malformed is left out, so that it holds back its own server alone (GW-042).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use weft_bundle::key::{KeyInputs, credential_stem, credentials_index};
use weft_bundle::pack::{self, Files, Limits};
use weft_bundle::pem;

use super::{ConfigRef, Output, Shared, gateway};
use crate::world::{Credential, ObjectRef, World};

/// A Secret that servers of a gateway name.
#[derive(Debug, Clone, Default)]
pub(super) struct Named {
    /// Name, in the namespace of the gateway.
    pub(super) name: String,
    /// A certificate with its key is wanted of it.
    pub(super) has_pair: bool,
    /// Authorities of clients are wanted of it.
    pub(super) has_authorities: bool,
    /// The Secret beside it counts for them.
    pub(super) has_secret_beside: bool,
    /// The Gateways that name it.
    pub(super) of: Vec<ObjectRef>,
}

/// The credentials of one key.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedCredentials {
    /// Contents of `weft-tls-<key>-<n>`, by n (DLV-015).
    pub shards: Vec<Arc<Files>>,
    /// Of all Secrets that are named it is known what they hold, or that they are not there.
    pub is_complete: bool,
    /// Tells one set from another (see [`pack::credentials_revision`]).
    pub revision: String,
}

/// Without the bytes: some are keys.
impl fmt::Debug for RenderedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<_> = self.shards.iter().flat_map(|shard| shard.keys()).collect();
        f.debug_struct("RenderedCredentials")
            .field("files", &files)
            .field("is_complete", &self.is_complete)
            .finish_non_exhaustive()
    }
}

/// What was found in Secrets, so that it is looked for once.
#[derive(Default)]
pub(super) struct Credentials {
    seen: HashMap<(String, String), (Arc<Credential>, Arc<Checked>)>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What a Secret is good for.
struct Checked {
    /// Bytes by ending, or what is wrong.
    pair: Result<Parts, String>,
    /// The same of authorities.
    authorities: Result<Parts, String>,
}

type Parts = Vec<(&'static str, Vec<u8>)>;

impl Credentials {
    /// Renders the credentials of gateways, and reports what is missing to those who name it.
    pub(super) fn render(&mut self, shared: &Shared<'_>, gateways: &[Arc<KeyInputs>], output: &mut Output) {
        let mut in_use = BTreeSet::new();
        for inputs in gateways {
            let named = gateway::credentials(shared, inputs);
            if named.is_empty() {
                continue;
            }
            let rendered = self.copy(shared.world, inputs, &named, output, &mut in_use);
            let reference = ConfigRef {
                namespace: inputs.namespace.clone(),
                key: inputs.key(),
            };
            output.credentials.insert(reference, rendered);
        }
        self.seen.retain(|id, _| in_use.contains(id));
        output.named_secrets = in_use;
    }

    fn copy(
        &mut self,
        world: &World,
        inputs: &KeyInputs,
        all: &[Named],
        output: &mut Output,
        in_use: &mut BTreeSet<(String, String)>,
    ) -> RenderedCredentials {
        let mut shards = Shards::new(&world.settings.limits);
        let mut is_complete = true;
        for named in all {
            let mut look = |name: String| {
                let id = (inputs.namespace.clone(), name);
                let found = self.look(world, &id);
                is_complete &= !matches!(found, Found::Unknown);
                in_use.insert(id);
                found
            };
            let stem = credential_stem(&inputs.namespace, &named.name);
            let own = look(named.name.clone());
            let mut parts = Parts::new();
            let mut problem = None;
            if named.has_pair {
                match own.part(|checked| &checked.pair) {
                    Ok(found) => parts.extend(found),
                    Err(why) => problem = Some(why),
                }
            }
            if named.has_authorities {
                // The Secret beside it comes first (GW-041).
                let beside = named.has_secret_beside.then(|| look(format!("{}-cacert", named.name)));
                let beside = beside.filter(|beside| matches!(beside, Found::There(_)));
                let found = beside.as_ref().unwrap_or(&own).part(|checked| &checked.authorities);
                match found {
                    Ok(found) => parts.extend(found),
                    Err(why) => problem = problem.or(Some(why)),
                }
            }
            let size = parts.iter().map(|(_, bytes)| bytes.len()).sum();
            if !shards.add(&stem, size, parts) {
                problem = Some(Some((
                    "BundleTooLarge",
                    "does not fit beside those of older Gateways".to_owned(),
                )));
            }
            let Some((reason, why)) = problem.flatten() else {
                continue;
            };
            let message = format!(
                "Secret {}/{}, which servers name, {why}: their handshakes fail",
                inputs.namespace, named.name
            );
            for of in &named.of {
                if let Some(report) = output.reports.get_mut(of) {
                    report.unresolved.get_or_insert((reason, message.clone()));
                }
            }
        }
        shards.finish(is_complete)
    }

    fn look(&mut self, world: &World, id: &(String, String)) -> Found {
        let credential = match world.secrets.get(id) {
            None => return Found::Unknown,
            Some(None) => return Found::Missing,
            Some(Some(credential)) => credential,
        };
        let known = self.seen.get(id).filter(|(of, _)| Arc::ptr_eq(of, credential));
        let checked = match known {
            Some((_, checked)) => checked.clone(),
            None => {
                let checked = Arc::new(Checked::of(credential));
                self.seen.insert(id.clone(), (credential.clone(), checked.clone()));
                checked
            }
        };
        Found::There(checked)
    }
}

enum Found {
    There(Arc<Checked>),
    Missing,
    /// Not heard of yet.
    Unknown,
}

/// Reason and message; `None` for what is not known yet.
type Problem = Option<(&'static str, String)>;

impl Found {
    fn part(&self, of: impl Fn(&Checked) -> &Result<Parts, String>) -> Result<Parts, Problem> {
        match self {
            Self::Unknown => Err(None),
            Self::Missing => Err(Some(("SecretNotFound", "is not there".to_owned()))),
            Self::There(checked) => match of(checked) {
                Ok(parts) => Ok(parts.clone()),
                Err(why) => Err(Some(("SecretInvalid", why.clone()))),
            },
        }
    }
}

impl Checked {
    fn of(credential: &Credential) -> Self {
        let files = &credential.files;
        Self {
            pair: pair(files),
            authorities: authorities(files),
        }
    }
}

/// The certificate with its key (GW-041). Errors say what is wrong and nothing of the content.
fn pair(files: &Files) -> Result<Parts, String> {
    let names = [("cert", "key", None), ("tls.crt", "tls.key", Some("tls.ocsp-staple"))];
    let found = names
        .into_iter()
        .find_map(|(chain, key, staple)| Some(((chain, files.get(chain)?), (key, files.get(key)?), staple)));
    let ((chain_name, chain), (key_name, key), staple) =
        found.ok_or("has neither tls.crt with tls.key nor cert with key")?;
    let certificates = certificates(chain).map_err(|why| format!("has no good {chain_name}: {why}"))?;
    let private =
        PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("has no good {key_name}: {}", pem::problem(&e)))?;
    CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider()).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => format!("has a {key_name} that is not that of {chain_name}"),
        e => format!("has no good {key_name}: {e}"),
    })?;
    let mut parts = vec![("crt", chain.clone()), ("key", key.clone())];
    parts.extend(staple.and_then(|name| Some(("ocsp", files.get(name)?.clone()))));
    Ok(parts)
}

/// Authorities of clients with the list of what they have revoked (GW-041).
fn authorities(files: &Files) -> Result<Parts, String> {
    let names = [("cacert", "crl"), ("ca.crt", "ca.crl")];
    let found = names
        .into_iter()
        .find_map(|(name, list)| Some((name, files.get(name)?, list)));
    let (name, authorities, list) = found.ok_or("has neither ca.crt nor cacert")?;
    certificates(authorities).map_err(|why| format!("has no good {name}: {why}"))?;
    let mut parts = vec![("ca", authorities.clone())];
    if let Some(bytes) = files.get(list) {
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
        lists.map_err(|e| format!("has no good {list}: {}", pem::problem(&e)))?;
        parts.push(("crl", bytes.clone()));
    }
    Ok(parts)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| pem::problem(&e).to_owned())?;
    if all.is_empty() {
        return Err("holds no certificate".into());
    }
    for certificate in &all {
        x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
    }
    Ok(all)
}

/// Secrets that fill up one after the other; a credential is within one of them.
struct Shards {
    most: usize,
    room: usize,
    all: Vec<(usize, Files, String)>,
}

impl Shards {
    fn new(limits: &Limits) -> Self {
        Self {
            most: limits.credential_shards.max(1),
            room: limits.shard,
            all: vec![Default::default()],
        }
    }

    /// Whether there was room.
    fn add(&mut self, stem: &str, size: usize, parts: Parts) -> bool {
        // Names count as well.
        let size = size + (parts.len() + 1) * (stem.len() + 8);
        let last = self.all.len() - 1;
        if self.all[last].0 + size > self.room {
            if self.all.len() >= self.most || size > self.room {
                return false;
            }
            self.all.push(Default::default());
        }
        let (used, files, index) = self.all.last_mut().expect("begins with one");
        *used += size;
        index.push_str(stem);
        index.push('\n');
        let named = parts
            .into_iter()
            .map(|(ending, bytes)| (format!("{stem}.{ending}"), bytes));
        files.extend(named);
        true
    }

    fn finish(self, is_complete: bool) -> RenderedCredentials {
        let shards: Vec<Arc<Files>> = self
            .all
            .into_iter()
            .enumerate()
            .map(|(n, (_, mut files, index))| {
                files.insert(credentials_index(n), index.into_bytes());
                Arc::new(files)
            })
            .collect();
        let all: BTreeMap<&String, &Vec<u8>> = shards.iter().flat_map(|shard| shard.iter()).collect();
        RenderedCredentials {
            revision: pack::credentials_revision(all),
            shards,
            is_complete,
        }
    }
}

#[cfg(test)]
mod tests;
