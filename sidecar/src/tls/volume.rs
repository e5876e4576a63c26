//! The volume of credentials: certificates that the operator copied for this proxy (DLV-150 ff.), kept in memory, so that
//! what is in use stays when a Secret is deleted by hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use weft_bundle::key::is_credentials_index;
use weft_bundle::model::Config;
use weft_bundle::pack::Files;

use crate::gateway;

/// What the volume holds, and what has left it and may be in use. Written by the thread that reads volumes, and by no
/// other.
#[derive(Default)]
pub struct CredentialVolume {
    files: ArcSwap<Files>,
}

/// Shows no key.
impl std::fmt::Debug for CredentialVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialVolume").finish_non_exhaustive()
    }
}

impl CredentialVolume {
    /// Its files now.
    #[must_use]
    pub fn files(&self) -> Arc<Files> {
        self.files.load_full()
    }

    /// Takes the volume as it is now; whether it differs. A credential that the volume says is not there is gone. One that
    /// it says nothing of stays: the configuration that names it no more is on its way, or a Secret was deleted as a whole
    /// (DLV-153).
    pub fn take(&self, mut files: Files) -> bool {
        let before = self.files.load();
        let listed = listed(&files);
        let is_unlisted = |name: &str| stem(name).is_some_and(|stem| !listed.contains(stem));
        let kept = before.iter().filter(|(name, _)| is_unlisted(name));
        let kept: Files = kept.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        for (name, bytes) in kept {
            files.entry(name).or_insert(bytes);
        }
        let changed = **before != files;
        if changed {
            self.files.store(Arc::new(files));
        }
        changed
    }

    /// Forgets what has left the volume and no configuration names.
    pub fn forget(&self, config: &Config) {
        let files = self.files.load();
        let listed = listed(&files);
        let in_use = named(config);
        let is_of_use = |name: &String| stem(name).is_none_or(|stem| listed.contains(stem) || in_use.contains(stem));
        if files.keys().all(is_of_use) {
            return;
        }
        let kept = files.iter().filter(|(name, _)| is_of_use(name));
        let kept: Files = kept.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        self.files.store(Arc::new(kept));
    }

    /// Whether a configuration names a credential of which the volume says nothing yet, and which the one before it does
    /// not name: what has been missing for long is no reason to wait again.
    #[must_use]
    pub fn lacks(&self, config: &Config, before: Option<&Config>) -> bool {
        let files = self.files.load();
        let listed = listed(&files);
        let is_known = |of: &str| listed.contains(of) || files.keys().any(|name| stem(name) == Some(of));
        let missing: BTreeSet<String> = named(config).into_iter().filter(|stem| !is_known(stem)).collect();
        !missing.is_empty() && !missing.is_subset(&before.map(named).unwrap_or_default())
    }
}

/// Credentials that a configuration names, by the names of their files without ending: those of a gateway's servers, and
/// those of TLS to others.
fn named(config: &Config) -> BTreeSet<String> {
    let upstream = config.clusters.iter().filter_map(|cluster| cluster.policy.credential());
    let servers = gateway::credentials::stems(config).map(ToOwned::to_owned);
    upstream.map(|credential| credential.stem()).chain(servers).collect()
}

/// Credentials that the volume says are there, or are not.
fn listed(files: &Files) -> BTreeSet<&str> {
    let indices = files.iter().filter(|(name, _)| is_credentials_index(name));
    indices
        .flat_map(|(_, bytes)| std::str::from_utf8(bytes).unwrap_or_default().lines())
        .collect()
}

/// The credential that a file of the volume is a part of.
fn stem(file: &str) -> Option<&str> {
    file.split_once('.')
        .map(|(stem, _)| stem)
        .filter(|stem| !stem.is_empty())
}
