//! The plugin's entry in the runtime's network configuration, as the agent writes it and the plugin reads it.

use std::path::PathBuf;

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};
use weft_sidecar::init::{Arguments, Backend, Variant};

/// Type of the entry, and name of the program.
pub const NAME: &str = "weft-cni";

/// What the entry says beside what CNI asks of every entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Where the API server is, and who asks; a path on the node.
    pub kubeconfig: PathBuf,
    /// Namespace of the control plane; its pods are left alone.
    pub namespace: String,
    /// Other namespaces whose pods are left alone.
    #[serde(default)]
    pub excluded_namespaces: Vec<String>,
    /// Who writes the rules: auto, nftables or iptables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The variant of iptables: nft or legacy; unset, the one that is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iptables_binary: Option<String>,
}

impl Settings {
    /// The entry for a conflist.
    #[must_use]
    pub fn entry(&self) -> serde_json::Value {
        let mut entry = serde_json::json!({ "type": NAME });
        let own = serde_json::to_value(self).expect("texts and lists always serialize");
        if let (Some(entry), serde_json::Value::Object(own)) = (entry.as_object_mut(), own) {
            entry.extend(own);
        }
        entry
    }

    /// Whether pods of a namespace are left alone, whoever they are (NET-133).
    #[must_use]
    pub fn excludes(&self, namespace: &str) -> bool {
        namespace == self.namespace || self.excluded_namespaces.iter().any(|excluded| excluded == namespace)
    }

    /// Adds what the installation says about the back end of a redirect.
    ///
    /// # Errors
    /// The field, its value and what would be accepted.
    pub fn choose_backend(&self, arguments: &mut Arguments) -> Result<(), String> {
        if let Some(name) = self.backend.as_deref().filter(|name| !name.is_empty()) {
            arguments.backend = Backend::from_str(name, false)
                .map_err(|_| format!("backend: {name:?}; must be auto, nftables or iptables"))?;
        }
        if let Some(name) = self.iptables_binary.as_deref().filter(|name| !name.is_empty()) {
            let variant = Variant::from_str(name, false);
            arguments.iptables_binary =
                Some(variant.map_err(|_| format!("iptablesBinary: {name:?}; must be nft or legacy"))?);
        }
        Ok(())
    }
}
