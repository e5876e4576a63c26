//! From bytes to values, all or nothing (DLV-023): no part of a set that fails is used.

use std::borrow::Cow;
use std::io::Read;

use serde::de::DeserializeOwned;

use crate::item::{self, Unread};
use crate::model::{Config, Invalid, Refused};
use crate::pace::{Breathing, breathe};
use crate::pack::{BUNDLE_FILE, Files, MANIFEST_FILE, MAX_CONTENT, MAX_SHARDS, endpoint_files, sha256};
use crate::wire::{
    AUTHORIZATION, Bundle, Endpoints, EndpointsManifest, GATEWAY, GATEWAY_TLS, Manifest, SCHEMA, UPSTREAM_CREDENTIALS,
};

/// Why a set of files is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {message}", position(*.line))]
pub struct Rejected {
    /// Kind of failure, for metrics and `/config/status`.
    pub reason: Reason,
    /// The file.
    pub file: String,
    /// Line, where the text tells.
    pub line: Option<usize>,
    /// What is wrong and what would be accepted.
    pub message: String,
}

/// Kinds of [`Rejected`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A file that the manifest names is not there, or not yet the one that it means: shards of a volume are not
    /// replaced together (DLV-048). Held until the next swap.
    Incomplete,
    /// Not JSON, YAML or zstd, or not of the expected form.
    Malformed,
    /// A checksum or length does not fit although all files are there.
    Checksum,
    /// Written for a newer or much older proxy.
    Schema,
    /// More than 64 MiB.
    TooLarge,
    /// The content contradicts itself.
    Invalid,
}

impl Reason {
    /// Label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Schema => "schema",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }
}

/// A verified configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedConfig {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its content.
    pub bundle: Bundle,
}

/// A configuration whose files are those that its manifest names, not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its manifest.
    pub manifest: Manifest,
    /// First of its files.
    file: String,
    bytes: Vec<u8>,
}

/// A verified endpoint shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedEndpoints {
    /// Its manifest.
    pub manifest: EndpointsManifest,
    /// Its content.
    pub endpoints: Endpoints,
}

/// Verifies and parses the configuration among `files`; `Ok(None)` when there is no manifest (DLV-081).
///
/// # Errors
/// The first thing that is wrong; [`Reason::Incomplete`] when files of different versions are mixed.
pub fn config(files: &Files) -> Result<Option<LoadedConfig>, Rejected> {
    let Some(stored) = stored(files)? else {
        return Ok(None);
    };
    let bundle = stored.content()?.bundle()?;
    let manifest = stored.manifest;
    Ok(Some(LoadedConfig { manifest, bundle }))
}

/// Looks whether the files of a configuration are those of its manifest, which the content of two with one manifest follows
/// from; `Ok(None)` when there is no manifest.
///
/// # Errors
/// As [`config`].
pub fn stored(files: &Files) -> Result<Option<Stored>, Rejected> {
    let Some(bytes) = files.get(MANIFEST_FILE) else {
        return Ok(None);
    };
    let manifest: Manifest = json(MANIFEST_FILE, bytes)?;
    check_schema(MANIFEST_FILE, manifest.schema, &manifest.requires)?;
    if manifest.key != manifest.inputs.key() {
        let message = format!(
            "key {} is not that of its inputs, {}",
            manifest.key,
            manifest.inputs.key()
        );
        return Err(reject(MANIFEST_FILE, Reason::Invalid, message));
    }
    let mut stored = Vec::new();
    for shard in &manifest.shards {
        let Some(bytes) = files.get(&shard.file) else {
            let message = "is named by manifest.json and absent";
            return Err(reject(&shard.file, Reason::Incomplete, message));
        };
        if bytes.len() as u64 != shard.length || sha256(bytes) != shard.sha256 {
            // With several ConfigMaps the others may be of another version; with one, somebody changed it by hand.
            let reason = if manifest.shards.len() > 1 {
                Reason::Incomplete
            } else {
                Reason::Checksum
            };
            let message = "length or SHA-256 is not that of manifest.json";
            return Err(reject(&shard.file, reason, message));
        }
        stored.extend_from_slice(bytes);
    }
    let file = manifest.shards.first().map_or(MANIFEST_FILE, |shard| &shard.file);
    Ok(Some(Stored {
        file: file.to_owned(),
        bytes: stored,
        manifest,
    }))
}

impl Stored {
    /// The content, verified.
    ///
    /// # Errors
    /// [`Reason::Malformed`], [`Reason::TooLarge`], [`Reason::Checksum`].
    pub fn content(&self) -> Result<Content<'_>, Rejected> {
        let Self { manifest, file, bytes } = self;
        let is_text = manifest.shards.len() == 1 && file == BUNDLE_FILE;
        let bytes = if is_text {
            Cow::Borrowed(bytes.as_slice())
        } else {
            Cow::Owned(decompress(file, bytes)?)
        };
        let revision_fits = manifest.sha256.starts_with(&manifest.revision) && manifest.revision.len() == 12;
        if sha256(&bytes) != manifest.sha256 || !revision_fits {
            let message = "SHA-256 of the content is not that of manifest.json";
            return Err(reject(file, Reason::Checksum, message));
        }
        Ok(Content { file, is_text, bytes })
    }
}

/// The content of a configuration, as YAML or JSON.
#[derive(Debug)]
pub struct Content<'s> {
    file: &'s str,
    is_text: bool,
    bytes: Cow<'s, [u8]>,
}

impl Content<'_> {
    #[cfg(test)]
    pub(crate) fn of(is_text: bool, text: &str) -> Content<'_> {
        Content {
            file: if is_text { BUNDLE_FILE } else { "cfg-0.zst" },
            is_text,
            bytes: Cow::Borrowed(text.as_bytes()),
        }
    }

    /// Parses it.
    ///
    /// # Errors
    /// [`Reason::Malformed`].
    pub fn bundle(&self) -> Result<Bundle, Rejected> {
        if self.is_text {
            yaml(self.file, &self.bytes)
        } else {
            json(self.file, &self.bytes)
        }
    }

    /// Parses and compiles it. Parts that are as they were in the configuration `before` are taken over from there.
    ///
    /// # Errors
    /// [`Reason::Malformed`]; [`Reason::Invalid`] with everything that is wrong, each with its place in the bundle.
    pub fn config(&self, before: Option<&Config>) -> Result<Config, Rejected> {
        match self.items().map(|items| Config::make(items, before)) {
            Some(Ok(config)) => return Ok(config),
            Some(Err(Refused::Invalid(problems))) => return Err(invalid(&problems)),
            Some(Err(Refused::Unreadable)) | None => {}
        }
        // As a whole, for the place where it is wrong.
        Config::parse(self.bundle()?).map_err(|problems| invalid(&problems))
    }

    /// The bundle, its long lists as text; `None` where it is not of the expected form.
    fn items(&self) -> Option<Unread<'_>> {
        if self.is_text {
            item::yaml(str::from_utf8(&self.bytes).ok()?)
        } else {
            item::json(&self.bytes)
        }
    }
}

fn invalid(problems: &[Invalid]) -> Rejected {
    let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    reject(BUNDLE_FILE, Reason::Invalid, message.join("; "))
}

/// Verifies and parses endpoint shard `n`; `Ok(None)` when it is not there.
///
/// # Errors
/// What is wrong with this shard alone (DLV-027).
pub fn endpoints(files: &Files, n: usize) -> Result<Option<LoadedEndpoints>, Rejected> {
    let stored = stored_endpoints(files, n)?;
    stored.map(StoredEndpoints::read).transpose()
}

/// An endpoint shard whose file is the one that its manifest names, not read yet.
#[derive(Debug)]
pub struct StoredEndpoints<'f> {
    /// Its manifest.
    pub manifest: EndpointsManifest,
    file: String,
    frame: &'f [u8],
}

/// Looks whether the file of endpoint shard `n` is that of its manifest, which the content of two with one manifest follows
/// from; `Ok(None)` when it is not there.
///
/// # Errors
/// As [`endpoints`].
pub fn stored_endpoints(files: &Files, n: usize) -> Result<Option<StoredEndpoints<'_>>, Rejected> {
    let (manifest_file, file) = endpoint_files(n);
    let Some(bytes) = files.get(&manifest_file) else {
        return Ok(None);
    };
    let manifest: EndpointsManifest = json(&manifest_file, bytes)?;
    check_schema(&manifest_file, manifest.schema, &manifest.requires)?;
    let number = manifest.shards as usize;
    if !(n + 1..=MAX_SHARDS).contains(&number) {
        let message = format!(
            "is shard {n} of {number}; the number of shards must be {} to {MAX_SHARDS}",
            n + 1
        );
        return Err(reject(&manifest_file, Reason::Invalid, message));
    }
    let Some(frame) = files.get(&file) else {
        let message = "is named by its manifest and absent";
        return Err(reject(&file, Reason::Incomplete, message));
    };
    if frame.len() as u64 != manifest.length || sha256(frame) != manifest.sha256 {
        let message = "length or SHA-256 is not that of its manifest";
        return Err(reject(&file, Reason::Checksum, message));
    }
    Ok(Some(StoredEndpoints { manifest, file, frame }))
}

impl StoredEndpoints<'_> {
    /// Verifies the content and parses it.
    ///
    /// # Errors
    /// What is wrong with this shard alone (DLV-027).
    pub fn read(self) -> Result<LoadedEndpoints, Rejected> {
        let Self { manifest, file, frame } = self;
        let content = decompress(&file, frame)?;
        if sha256(&content) != manifest.content_sha256 {
            let message = "SHA-256 of the content is not that of its manifest";
            return Err(reject(&file, Reason::Checksum, message));
        }
        let endpoints: Endpoints = json(&file, &content)?;
        let problem = endpoints.hosts.iter().find_map(|host| {
            breathe();
            let bad = host.endpoints.iter().find(|e| !positions_fit(&endpoints, e))?;
            Some(format!(
                "host {}: endpoint {} refers to a table entry that is not there",
                host.host, bad.address
            ))
        });
        match problem {
            Some(message) => Err(reject(&file, Reason::Invalid, message)),
            None => Ok(LoadedEndpoints { manifest, endpoints }),
        }
    }
}

/// Revision of a namespace's endpoints from the manifests of all its shards, in order (DLV-021).
#[must_use]
pub fn endpoints_revision<'a>(manifests: impl IntoIterator<Item = &'a EndpointsManifest>) -> String {
    let hashes: String = manifests.into_iter().map(|m| m.content_sha256.as_str()).collect();
    let mut revision = sha256(hashes.as_bytes());
    revision.truncate(12);
    revision
}

fn positions_fit(tables: &Endpoints, endpoint: &crate::wire::Endpoint) -> bool {
    let fits = |position: Option<u32>, length: usize| position.is_none_or(|p| (p as usize) < length);
    fits(Some(endpoint.ports), tables.ports.len())
        && fits(endpoint.labels, tables.labels.len())
        && fits(endpoint.workload, tables.workloads.len())
        && fits(endpoint.locality, tables.localities.len())
}

fn check_schema(file: &str, schema: u32, requires: &[String]) -> Result<(), Rejected> {
    let reject = |message| reject(file, Reason::Schema, message);
    if schema != SCHEMA {
        return Err(reject(format!(
            "schema {schema} is not supported, this proxy reads {SCHEMA}"
        )));
    }
    match requires
        .iter()
        .find(|feature| !KNOWN_FEATURES.contains(&feature.as_str()))
    {
        Some(feature) => Err(reject(format!(
            "feature {feature:?} is required and not known to this proxy"
        ))),
        None => Ok(()),
    }
}

fn decompress(file: &str, frame: &[u8]) -> Result<Vec<u8>, Rejected> {
    let reject = |reason, message: String| reject(file, reason, message);
    let mut content = Vec::new();
    let decoder =
        zstd::stream::read::Decoder::with_buffer(frame).map_err(|e| reject(Reason::Malformed, e.to_string()))?;
    let mut bounded = Breathing(decoder.single_frame()).take(MAX_CONTENT as u64 + 1);
    bounded
        .read_to_end(&mut content)
        .map_err(|e| reject(Reason::Malformed, e.to_string()))?;
    if content.len() > MAX_CONTENT {
        return Err(reject(Reason::TooLarge, format!("content exceeds {MAX_CONTENT} bytes")));
    }
    Ok(content)
}

fn json<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, Rejected> {
    serde_json::from_slice(bytes).map_err(|e| Rejected {
        reason: Reason::Malformed,
        file: file.to_owned(),
        line: (e.line() > 0).then(|| e.line()),
        message: e.to_string(),
    })
}

fn yaml<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, Rejected> {
    let reject = |line, message| Rejected {
        reason: Reason::Malformed,
        file: file.to_owned(),
        line,
        message,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| reject(None, e.to_string()))?;
    serde_yaml::from_str(text).map_err(|e| {
        let line = e.location().and_then(|l| usize::try_from(l.line()).ok());
        reject(line, e.without_snippet().to_string())
    })
}

fn reject(file: &str, reason: Reason, message: impl Into<String>) -> Rejected {
    Rejected {
        reason,
        file: file.to_owned(),
        line: None,
        message: message.into(),
    }
}

fn position(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

/// Features that this build knows; see [`Manifest::requires`].
const KNOWN_FEATURES: &[&str] = &[AUTHORIZATION, GATEWAY, GATEWAY_TLS, UPSTREAM_CREDENTIALS];

#[cfg(test)]
mod tests;
