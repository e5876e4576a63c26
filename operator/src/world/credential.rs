//! Secrets and ConfigMaps that mesh objects name.

use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use weft_bundle::pack::Files;

/// What a Secret or ConfigMap holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Bytes by key.
    pub files: Files,
}

impl Credential {
    /// Of a ConfigMap.
    #[must_use]
    pub fn of_config_map(map: &ConfigMap) -> Self {
        let bytes = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
        let text = map.data.iter().flatten();
        let text = text.map(|(k, v)| (k.clone(), v.clone().into_bytes()));
        Self {
            files: bytes.chain(text).collect(),
        }
    }

    /// Of a Secret as the API has it, or as a manifest writes it.
    #[must_use]
    pub fn of(secret: &Secret) -> Self {
        let bytes = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
        let text = secret.string_data.iter().flatten();
        let text = text.map(|(k, v)| (k.clone(), v.clone().into_bytes()));
        Self {
            files: bytes.chain(text).collect(),
        }
    }
}

/// Without the bytes: some are keys.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("files", &self.files.keys())
            .finish_non_exhaustive()
    }
}
