//! The plugin as the container runtime calls it (CNI, versions 0.3.0 to 1.1.0).
//!
//! It is chained behind the plugin that makes the pod's interfaces: what that one returned is passed on as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use weft_sidecar::init::{self, Arguments};

use crate::chain;
use crate::lookup::{self, PodName};
use crate::namespace::Namespace;
use crate::network::{NAME, Settings};
use crate::pod::{self, Decision};

/// Versions of CNI that the plugin speaks.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A call that failed, as CNI has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    message: String,
    details: String,
}

impl Failure {
    fn new(code: u32, message: &str, details: impl Into<String>) -> Self {
        Self {
            code,
            message: format!("{NAME}: {message}"),
            details: details.into(),
        }
    }

    /// The error object for standard output. `version` is the one that the caller speaks, as far as it is known.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        // Runtimes show the message and often nothing else.
        let message = match self.details.as_str() {
            "" => self.message.clone(),
            details => format!("{}: {details}", self.message),
        };
        json!({ "cniVersion": version, "code": self.code, "msg": message, "details": self.details })
    }
}

/// Answers a call; `Some` is for standard output.
///
/// # Errors
/// [`Failure`], for standard output as well.
pub async fn answer(environment: &BTreeMap<String, String>, input: &[u8]) -> Result<Option<Value>, (String, Failure)> {
    let version = version_of(input);
    let spoken = version.clone().unwrap_or_else(|| UNTOLD.to_owned());
    let command = environment.get("CNI_COMMAND").map(String::as_str).unwrap_or_default();
    if command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": spoken, "supportedVersions": VERSIONS })));
    }
    obey(command, version.as_deref(), environment, input)
        .await
        .map_err(|failure| (spoken, failure))
}

async fn obey(
    command: &str,
    version: Option<&str>,
    environment: &BTreeMap<String, String>,
    input: &[u8],
) -> Result<Option<Value>, Failure> {
    if !["ADD", "DEL", "CHECK", "GC", "STATUS"].contains(&command) {
        let accepted = "must be ADD, CHECK, DEL, GC, STATUS or VERSION";
        return Err(Failure::new(
            INVALID_ENVIRONMENT,
            "CNI_COMMAND",
            format!("{command:?}; {accepted}"),
        ));
    }
    if matches!(command, "DEL" | "GC") {
        // The rules go with the namespace, and the plugin keeps nothing of its own: whatever the configuration says, and in
        // whichever version, a sandbox can be taken down.
        return Ok(None);
    }
    let wire: Wire = serde_json::from_slice(input)
        .map_err(|error| Failure::new(UNREADABLE, "read the network configuration", error.to_string()))?;
    let version = version.unwrap_or_default();
    if !VERSIONS.contains(&version) {
        let accepted = format!("cniVersion {version:?}; must be one of {}", VERSIONS.join(", "));
        return Err(Failure::new(INCOMPATIBLE, "incompatible CNI version", accepted));
    }
    match command {
        "ADD" => {
            let previous = wire.previous.clone().ok_or_else(|| {
                let fix = "prevResult is missing; the entry must stand behind the plugin that makes the interfaces";
                Failure::new(INVALID_CONFIGURATION, "not chained", fix)
            })?;
            if let Some((arguments, namespace)) = redirect_of(&wire, environment).await? {
                set(&arguments, &namespace)?;
            }
            Ok(Some(previous))
        }
        "CHECK" => {
            if version.starts_with("0.3.") {
                return Err(Failure::new(
                    INCOMPATIBLE,
                    "incompatible CNI version",
                    "CHECK needs 0.4.0 or later",
                ));
            }
            if let Some((arguments, namespace)) = redirect_of(&wire, environment).await? {
                check(&arguments, &namespace)?;
            }
            Ok(None)
        }
        // STATUS.
        _ => match std::fs::metadata(&wire.settings()?.kubeconfig) {
            Ok(_) => Ok(None),
            Err(error) => Err(Failure::new(
                UNAVAILABLE,
                "the agent of DaemonSet weft-cni is not ready on this node",
                error.to_string(),
            )),
        },
    }
}

/// The redirect that the sandbox's pod asks for, and where; `None` where the plugin has nothing to do.
async fn redirect_of(
    wire: &Wire,
    environment: &BTreeMap<String, String>,
) -> Result<Option<(Arguments, PathBuf)>, Failure> {
    let settings = wire.settings()?;
    let Some(pod) = pod_name(environment.get("CNI_ARGS").map(String::as_str).unwrap_or_default()) else {
        // Not a pod's.
        return Ok(None);
    };
    if settings.excludes(&pod.namespace) {
        return Ok(None);
    }
    let found = lookup::find(&settings.kubeconfig, &pod)
        .await
        .map_err(|error| Failure::new(TRY_AGAIN, "what the pod asks for is not known", chain(&error)))?;
    let decision = pod::decide(&found)
        .map_err(|problem| Failure::new(INVALID_POD, "the pod cannot be redirected", problem.to_string()))?;
    let Decision::Redirect(mut arguments) = decision else {
        return Ok(None);
    };
    settings
        .choose_backend(&mut arguments)
        .map_err(|problem| Failure::new(INVALID_CONFIGURATION, "invalid network configuration", problem))?;
    let namespace = environment
        .get("CNI_NETNS")
        .filter(|path| !path.is_empty())
        .ok_or_else(|| {
            Failure::new(
                INVALID_ENVIRONMENT,
                "CNI_NETNS",
                "must name the network namespace of the sandbox",
            )
        })?;
    Ok(Some((*arguments, PathBuf::from(namespace))))
}

fn set(arguments: &Arguments, namespace: &Path) -> Result<(), Failure> {
    let entered = Namespace::open(namespace).and_then(|space| space.run(|| init::set_redirect(arguments)));
    match entered {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error @ init::SetError::Parameter(_))) => {
            Err(Failure::new(INVALID_POD, "the pod cannot be redirected", chain(&error)))
        }
        Ok(Err(error)) => Err(Failure::new(NOT_SET, "set the redirect", chain(&error))),
        Err(error) => Err(Failure::new(NOT_SET, "set the redirect", chain(&error))),
    }
}

fn check(arguments: &Arguments, namespace: &Path) -> Result<(), Failure> {
    let entered = Namespace::open(namespace).and_then(|space| space.run(|| init::is_redirected(arguments)));
    match entered {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(Failure::new(NOT_SET, "the redirect of the pod is gone", "")),
        Ok(Err(error)) => Err(Failure::new(NOT_SET, "look at the redirect", chain(&error))),
        Err(error) => Err(Failure::new(NOT_SET, "look at the redirect", chain(&error))),
    }
}

/// The network configuration.
#[derive(Debug, Deserialize)]
struct Wire {
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

impl Wire {
    fn settings(&self) -> Result<Settings, Failure> {
        let invalid = |problem: String| Failure::new(INVALID_CONFIGURATION, "invalid network configuration", problem);
        let rest = Value::Object(self.rest.clone());
        let settings: Settings = serde_json::from_value(rest).map_err(|error| invalid(error.to_string()))?;
        if !settings.kubeconfig.is_absolute() {
            return Err(invalid("kubeconfig: must be an absolute path on the node".to_owned()));
        }
        if settings.namespace.is_empty() {
            return Err(invalid(
                "namespace: must name the namespace of the control plane".to_owned(),
            ));
        }
        Ok(settings)
    }
}

fn version_of(input: &[u8]) -> Option<String> {
    let object: Value = serde_json::from_slice(input).ok()?;
    Some(object.get("cniVersion")?.as_str()?.to_owned())
}

/// `K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;...`
fn pod_name(arguments: &str) -> Option<PodName> {
    let value = |wanted: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let mut found = pairs.filter(|(key, value)| *key == wanted && !value.is_empty());
        found.next().map(|(_, value)| value.to_owned())
    };
    Some(PodName {
        namespace: value("K8S_POD_NAMESPACE")?,
        name: value("K8S_POD_NAME")?,
        uid: value("K8S_POD_UID"),
    })
}

/// The version of an error where the caller tells none.
const UNTOLD: &str = "0.3.1";

// Codes of CNI.
const INCOMPATIBLE: u32 = 1;
const INVALID_ENVIRONMENT: u32 = 4;
const UNREADABLE: u32 = 6;
const INVALID_CONFIGURATION: u32 = 7;
const TRY_AGAIN: u32 = 11;
const UNAVAILABLE: u32 = 50;
// The plugin's own.
const INVALID_POD: u32 = 100;
const NOT_SET: u32 = 101;

#[cfg(test)]
mod tests;
