//! Credentials that Gateways and DestinationRules name: Secrets of the proxy's own namespace and ConfigMaps, checked, and
//! copied into Secrets that its pods mount (DLV-150 ff.). What is missing or malformed is left out, so that it holds back
//! its own server or destination alone (GW-042, DR-115).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use weft_bundle::key::{KeyInputs, Template, config_map_stem, credential_stem, credentials_index, upstream_stem};
use weft_bundle::pack::{self, Files, Limits};
use weft_bundle::pem;
use weft_bundle::wire::{CredentialKind, Host, UpstreamCredential, UpstreamTls};

use super::mounts::{Narrowest, Volumes};
use super::{ConfigRef, Output, Shared, View, gateway};
use crate::world::{Credential, Kind, ObjectRef, World};

/// A Secret or ConfigMap that the configuration of a key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// The object.
    pub(super) source: ObjectRef,
    /// A certificate with its key is wanted of it.
    pub(super) has_pair: bool,
    /// Authorities are wanted of it.
    pub(super) has_authorities: bool,
    /// The Secret beside it counts for them.
    pub(super) has_secret_beside: bool,
    /// The Gateways and DestinationRules that name it.
    pub(super) of: Vec<ObjectRef>,
}

impl Named {
    /// A Secret of which nothing is wanted yet.
    pub(super) fn secret(namespace: &str, name: &str, of: ObjectRef) -> Self {
        Self {
            source: ObjectRef {
                kind: Kind::Secret,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            has_pair: false,
            has_authorities: false,
            has_secret_beside: false,
            of: vec![of],
        }
    }

    /// Puts it with others, of which one may be the same object for the same purpose.
    pub(super) fn join(self, all: &mut Vec<Self>) {
        let is_same =
            |other: &&mut Self| other.source == self.source && other.is_of_gateways() == self.is_of_gateways();
        let Some(other) = all.iter_mut().find(is_same) else {
            return all.push(self);
        };
        other.has_pair |= self.has_pair;
        other.has_authorities |= self.has_authorities;
        other.has_secret_beside |= self.has_secret_beside;
        for of in self.of {
            if !other.of.contains(&of) {
                other.of.push(of);
            }
        }
    }

    /// Tells those who name it why it is of no use.
    fn report(&self, reason: &'static str, why: &str, output: &mut Output) {
        for of in &self.of {
            let (namers, fail) = match of.kind {
                Kind::Gateway => ("servers name", "their handshakes fail"),
                _ => ("trafficPolicy.tls names", "its requests fail"),
            };
            if let Some(report) = output.reports.get_mut(of) {
                let message = format!("{}, which {namers}, {why}: {fail}", self.source);
                report.unresolved.get_or_insert((reason, message));
            }
        }
    }

    fn is_of_gateways(&self) -> bool {
        self.of.iter().any(|of| of.kind == Kind::Gateway)
    }

    fn stem(&self) -> String {
        let ObjectRef { namespace, name, .. } = &self.source;
        match self.source.kind {
            Kind::ConfigMap => config_map_stem(namespace, name),
            _ if self.is_of_gateways() => credential_stem(namespace, name),
            _ => upstream_stem(namespace, name),
        }
    }
}

/// The credentials that policies of hosts name (DR-114).
pub(super) fn of_hosts(hosts: &[Host]) -> Vec<Named> {
    let mut all = Vec::new();
    for policy in hosts.iter().flat_map(Host::policies) {
        let (Some(credential), Some(rule)) = (policy.credential(), policy.rule.as_deref().and_then(rule)) else {
            continue;
        };
        let is_secret = credential.kind == CredentialKind::Secret;
        let mut named = Named::secret(&credential.namespace, &credential.name, rule);
        if !is_secret {
            named.source.kind = Kind::ConfigMap;
        }
        named.has_pair = credential.shows_certificate;
        named.has_authorities = credential.has_authorities;
        named.has_secret_beside = is_secret;
        named.join(&mut all);
    }
    all
}

/// TLS that policies of hosts ask for and the workload cannot provide, by rule (BYD-061).
pub(super) fn unavailable(hosts: &[Host]) -> BTreeMap<ObjectRef, String> {
    let policies = hosts.iter().flat_map(Host::policies);
    let of = policies.filter_map(|policy| match &policy.tls {
        UpstreamTls::Originate(settings) => Some((rule(policy.rule.as_deref()?)?, settings.unavailable.clone()?)),
        UpstreamTls::Auto | UpstreamTls::Disable | UpstreamTls::Mesh { .. } => None,
    });
    of.collect()
}

/// A DestinationRule by `namespace/name`.
fn rule(id: &str) -> Option<ObjectRef> {
    let (namespace, name) = id.split_once('/')?;
    Some(ObjectRef {
        kind: Kind::DestinationRule,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// What a `credentialName` of a DestinationRule leads to for a proxy of a namespace; nothing is wanted of it yet.
///
/// # Errors
/// Why it cannot be provided.
pub(super) fn upstream(name: &str, namespace: &str, reads_secrets: bool) -> Result<UpstreamCredential, String> {
    let credential = |kind, namespace: &str, name: &str| UpstreamCredential {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        shows_certificate: false,
        has_authorities: false,
    };
    if let Some(reference) = name.strip_prefix("configmap://") {
        let parts = reference.split_once('/');
        return match parts.filter(|(of, name)| is_name(of) && is_name(name)) {
            Some((of, name)) => Ok(credential(CredentialKind::ConfigMap, of, name)),
            None => Err(format!("credentialName {name} is not configmap://NAMESPACE/NAME")),
        };
    }
    let name = secret_name(name)?;
    if !reads_secrets {
        return Err(format!(
            "credentialName {name} is not available to a sidecar unless the rule has a workloadSelector"
        ));
    }
    Ok(credential(CredentialKind::Secret, namespace, name))
}

/// The name of a Secret without the scheme that says what holds anyway (GW-045).
///
/// # Errors
/// It is none.
pub(super) fn secret_name(name: &str) -> Result<&str, String> {
    let plain = name.strip_prefix("kubernetes://").unwrap_or(name);
    if plain.starts_with("weft.") || plain.starts_with("weft-tls-") {
        return Err(format!(
            "{plain:?} is a Secret of the mesh itself; one of your own is needed"
        ));
    }
    if is_name(plain) {
        return Ok(plain);
    }
    Err(format!(
        "{plain:?} is no name of a Secret; one of the namespace of the proxy's pods is needed"
    ))
}

fn is_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    !name.is_empty() && name.len() <= 253 && name.bytes().all(letter)
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

/// What was found in Secrets and ConfigMaps, so that it is looked for once.
#[derive(Default)]
pub(super) struct Credentials {
    seen: HashMap<ObjectRef, (Arc<Credential>, Arc<Checked>)>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What an object is good for.
struct Checked {
    /// Bytes by ending, or what is wrong.
    pair: Result<Parts, String>,
    /// The same of authorities.
    authorities: Result<Parts, String>,
}

type Parts = Vec<(&'static str, Vec<u8>)>;

impl Credentials {
    /// Renders the credentials of keys, each with its view, and reports what is missing to those who name it.
    pub(super) fn render<'a>(
        &mut self,
        shared: &Shared<'_>,
        keys: impl Iterator<Item = (&'a Arc<KeyInputs>, &'a View)>,
        narrowest: &Narrowest,
        output: &mut Output,
    ) {
        let mut in_use = BTreeSet::new();
        for (inputs, view) in keys {
            let mut named = match inputs.template {
                Template::Gateway => gateway::credentials(shared, inputs),
                Template::Sidecar => Vec::new(),
            };
            let own = |of_rules: &&Named| of_rules.of.iter().any(|rule| rule.namespace == inputs.namespace);
            // Rules of others must not take the room of those of the workload's own namespace.
            let (first, others): (Vec<_>, Vec<_>) = view.credentials.iter().partition(own);
            for of_rules in first.into_iter().chain(others) {
                of_rules.clone().join(&mut named);
            }
            for (rule, why) in &view.unavailable {
                if let Some(report) = output.reports.get_mut(rule) {
                    let text = format!("spec.trafficPolicy.tls: {why}; their requests fail");
                    if !report.warnings.contains(&text) {
                        report.warnings.push(text);
                    }
                }
            }
            if named.is_empty() {
                continue;
            }
            let reference = ConfigRef {
                namespace: inputs.namespace.clone(),
                key: inputs.key(),
            };
            let volumes = narrowest.credentials(&reference);
            if volumes.some_without {
                report_without(&named, inputs, volumes, output);
            }
            // A copy that no pod mounts is of no use, and holds keys.
            if volumes.some_without && volumes.smallest.is_none() {
                continue;
            }
            let rendered = self.copy(shared.world, inputs, &named, volumes, output, &mut in_use);
            output.credentials.insert(reference, rendered);
        }
        self.seen.retain(|id, _| in_use.contains(id));
        output.named_credentials = in_use;
    }

    fn copy(
        &mut self,
        world: &World,
        inputs: &KeyInputs,
        all: &[Named],
        volumes: Volumes,
        output: &mut Output,
        in_use: &mut BTreeSet<ObjectRef>,
    ) -> RenderedCredentials {
        let mut shards = Shards::new(&world.settings.limits, inputs.template, volumes);
        let mut is_complete = true;
        for (n, named) in all.iter().enumerate() {
            if n >= MOST_NAMED {
                shards.list(&named.stem());
                report_too_many(named, output);
                continue;
            }
            let mut look = |id: ObjectRef| {
                let found = self.look(world, &id);
                is_complete &= !matches!(found, Found::Unknown);
                in_use.insert(id);
                found
            };
            let own = look(named.source.clone());
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
                let beside = named.has_secret_beside.then(|| {
                    let name = format!("{}-cacert", named.source.name);
                    look(ObjectRef {
                        name,
                        ..named.source.clone()
                    })
                });
                let beside = beside.filter(|beside| matches!(beside, Found::There(_)));
                let found = beside.as_ref().unwrap_or(&own).part(|checked| &checked.authorities);
                match found {
                    Ok(found) => parts.extend(found),
                    Err(why) => problem = problem.or(Some(why)),
                }
            }
            let size: usize = parts.iter().map(|(_, bytes)| bytes.len()).sum();
            if size > LARGEST {
                let why = format!("holds {size} bytes, of at most {LARGEST}");
                problem = Some(Some(("SecretInvalid", why)));
                parts.clear();
            }
            let size = if parts.is_empty() { 0 } else { size };
            if !shards.add(&named.stem(), size, parts) {
                problem = Some(Some((
                    "BundleTooLarge",
                    "does not fit beside those of older Gateways and other rules".to_owned(),
                )));
            }
            let Some((reason, why)) = problem.flatten() else {
                continue;
            };
            named.report(reason, &why, output);
        }
        shards.finish(is_complete)
    }

    fn look(&mut self, world: &World, id: &ObjectRef) -> Found {
        let credential = match world.credentials.get(id) {
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

/// Pods that were created with `delivery.tlsShards: 0` have no volume for what is named (BYD-061).
fn report_without(all: &[Named], inputs: &KeyInputs, volumes: Volumes, output: &mut Output) {
    let which = match volumes.smallest {
        Some(_) => "some pods",
        None => "the pods",
    };
    let why = format!(
        "is out of reach of {which} of {}/{}, which were created with delivery.tlsShards: 0 and mount no credentials \
         (set it to 1 or more and create them anew)",
        inputs.namespace, inputs.workload
    );
    all.iter().for_each(|named| named.report("NotMounted", &why, output));
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

/// Authorities with the list of what they have revoked (GW-041, DR-114).
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
        for one in lists.map_err(|e| format!("has no good {list}: {}", pem::problem(&e)))? {
            x509_parser::parse_x509_crl(&one).map_err(|e| format!("has no good {list}: {e}"))?;
        }
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

/// Most credentials of one key that are watched and copied; about four shards' worth (DLV-155).
const MOST_NAMED: usize = 600;
/// Most bytes of one credential: more than the authorities of an operating system, and no more than a fraction of a shard,
/// so that none takes the room of all others.
const LARGEST: usize = 256 * 1024;

fn report_too_many(named: &Named, output: &mut Output) {
    let why = format!(
        "{} is not copied: proxies can have {MOST_NAMED} credentials, and others come first",
        named.source
    );
    for of in &named.of {
        if let Some(report) = output.reports.get_mut(of) {
            report.unresolved.get_or_insert(("BundleTooLarge", why.clone()));
        }
    }
}

/// Secrets that fill up one after the other; a credential is within one of them.
struct Shards {
    most: usize,
    room: usize,
    all: Vec<(usize, Files, String)>,
}

impl Shards {
    /// As many as each pod mounts that mounts any (DLV-151).
    fn new(limits: &Limits, template: Template, volumes: Volumes) -> Self {
        let without_pods = || match template {
            Template::Gateway => limits.credential_shards.max(1),
            Template::Sidecar => pack::credential_shards(template),
        };
        Self {
            most: volumes.smallest.unwrap_or_else(without_pods),
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
                self.list(stem);
                return false;
            }
            self.all.push(Default::default());
        }
        self.list(stem);
        let (used, files, _) = self.all.last_mut().expect("begins with one");
        *used += size;
        let named = parts
            .into_iter()
            .map(|(ending, bytes)| (format!("{stem}.{ending}"), bytes));
        files.extend(named);
        true
    }

    /// Has proxies know that all that there is of it has come.
    fn list(&mut self, stem: &str) {
        let (_, _, index) = self.all.last_mut().expect("begins with one");
        index.push_str(stem);
        index.push('\n');
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
