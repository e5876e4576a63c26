//! From bytes to values, all or nothing (DLV-023): no part of a set that fails is used.

use std::io::Read;

use serde::de::DeserializeOwned;

use crate::pack::{BUNDLE_FILE, Files, MANIFEST_FILE, MAX_CONTENT, endpoint_files, sha256};
use crate::wire::{Bundle, Endpoints, EndpointsManifest, GATEWAY, GATEWAY_TLS, Manifest, SCHEMA};

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
        return Err(Rejected {
            reason: Reason::Invalid,
            file: MANIFEST_FILE.into(),
            line: None,
            message,
        });
    }
    let mut stored = Vec::new();
    for shard in &manifest.shards {
        let Some(bytes) = files.get(&shard.file) else {
            let message = "is named by manifest.json and absent".to_owned();
            return Err(Rejected {
                reason: Reason::Incomplete,
                file: shard.file.clone(),
                line: None,
                message,
            });
        };
        if bytes.len() as u64 != shard.length || sha256(bytes) != shard.sha256 {
            // With several ConfigMaps the others may be of another version; with one, somebody changed it by hand.
            let reason = if manifest.shards.len() > 1 {
                Reason::Incomplete
            } else {
                Reason::Checksum
            };
            let message = "length or SHA-256 is not that of manifest.json".to_owned();
            return Err(Rejected {
                reason,
                file: shard.file.clone(),
                line: None,
                message,
            });
        }
        stored.extend_from_slice(bytes);
    }
    let is_text = manifest.shards.len() == 1 && manifest.shards[0].file == BUNDLE_FILE;
    let file = manifest
        .shards
        .first()
        .map_or(MANIFEST_FILE, |shard| shard.file.as_str());
    let content = if is_text { stored } else { decompress(file, &stored)? };
    let revision_fits = manifest.sha256.starts_with(&manifest.revision) && manifest.revision.len() == 12;
    if sha256(&content) != manifest.sha256 || !revision_fits {
        let message = "SHA-256 of the content is not that of manifest.json".to_owned();
        return Err(Rejected {
            reason: Reason::Checksum,
            file: file.to_owned(),
            line: None,
            message,
        });
    }
    let bundle = if is_text {
        yaml(file, &content)?
    } else {
        json(file, &content)?
    };
    Ok(Some(LoadedConfig { manifest, bundle }))
}

/// Verifies and parses endpoint shard `n`; `Ok(None)` when it is not there.
///
/// # Errors
/// What is wrong with this shard alone (DLV-027).
pub fn endpoints(files: &Files, n: usize) -> Result<Option<LoadedEndpoints>, Rejected> {
    let (manifest_file, file) = endpoint_files(n);
    let Some(bytes) = files.get(&manifest_file) else {
        return Ok(None);
    };
    let manifest: EndpointsManifest = json(&manifest_file, bytes)?;
    check_schema(&manifest_file, manifest.schema, &manifest.requires)?;
    let reject = |reason, message: &str| Rejected {
        reason,
        file: file.clone(),
        line: None,
        message: message.into(),
    };
    let Some(frame) = files.get(&file) else {
        return Err(reject(Reason::Incomplete, "is named by its manifest and absent"));
    };
    if frame.len() as u64 != manifest.length || sha256(frame) != manifest.sha256 {
        return Err(reject(
            Reason::Checksum,
            "length or SHA-256 is not that of its manifest",
        ));
    }
    let content = decompress(&file, frame)?;
    if sha256(&content) != manifest.content_sha256 {
        return Err(reject(
            Reason::Checksum,
            "SHA-256 of the content is not that of its manifest",
        ));
    }
    let endpoints: Endpoints = json(&file, &content)?;
    let problem = endpoints.hosts.iter().find_map(|host| {
        let bad = host.endpoints.iter().find(|e| !positions_fit(&endpoints, e))?;
        Some(format!(
            "host {}: endpoint {} refers to a table entry that is not there",
            host.host, bad.address
        ))
    });
    match problem {
        Some(message) => Err(reject(Reason::Invalid, &message)),
        None => Ok(Some(LoadedEndpoints { manifest, endpoints })),
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
    let reject = |message| Rejected {
        reason: Reason::Schema,
        file: file.to_owned(),
        line: None,
        message,
    };
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
    let reject = |reason, message: String| Rejected {
        reason,
        file: file.to_owned(),
        line: None,
        message,
    };
    let mut content = Vec::new();
    let decoder =
        zstd::stream::read::Decoder::with_buffer(frame).map_err(|e| reject(Reason::Malformed, e.to_string()))?;
    let mut bounded = decoder.single_frame().take(MAX_CONTENT as u64 + 1);
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

fn position(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

/// Features that this build knows; see [`Manifest::requires`].
const KNOWN_FEATURES: &[&str] = &[GATEWAY, GATEWAY_TLS];

#[cfg(test)]
mod tests;
