//! `weft local get`: the objects of a run, those that controllers would have written included (LOC-032).

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Form, control, up};

/// Arguments of `weft local get`.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Kind, in singular or plural: pods, services, endpointslices, virtualservices, ...; all of them: all
    kind: String,
    /// Name
    name: Option<String>,
    /// Namespace; without it, all namespaces
    #[arg(short, long)]
    namespace: Option<String>,
    /// Form of the list
    #[arg(short, long, value_enum)]
    output: Option<Form>,
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
}

impl Get {
    /// Asks the run and prints.
    ///
    /// # Errors
    /// That no run is there, or no such object.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let state = up::state_directory(self.state.as_deref())?;
        let objects = match control::ask(&state, &control::Request::Get)? {
            control::Response::Objects(objects) => objects,
            other => return super::outcome(other),
        };
        let found: Vec<Value> = objects.into_iter().filter(|object| self.fits(object)).collect();
        if found.is_empty() {
            let name = self.name.as_deref().map(|n| format!(" {n}")).unwrap_or_default();
            anyhow::bail!("no {}{name} is there", self.kind);
        }
        match self.output {
            Some(Form::Json) => println!("{}", serde_json::to_string_pretty(&list(self.name.is_some(), found))?),
            Some(Form::Yaml) => print!("{}", serde_yaml::to_string(&list(self.name.is_some(), found))?),
            Some(Form::Wide) | None => print!("{}", table(&found)),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn fits(&self, object: &Value) -> bool {
        let kind = object["kind"].as_str().unwrap_or_default();
        let metadata = &object["metadata"];
        (self.kind == "all" || is_kind(&self.kind, kind))
            && self.name.as_deref().is_none_or(|name| metadata["name"] == name)
            && self.namespace.as_deref().is_none_or(|ns| metadata["namespace"] == ns)
    }
}

/// Whether a word of the command line names a kind.
fn is_kind(word: &str, kind: &str) -> bool {
    let (word, kind) = (word.to_lowercase(), kind.to_lowercase());
    let plural = match kind.strip_suffix('y') {
        Some(stem) if !kind.ends_with("ay") => format!("{stem}ies"),
        _ => format!("{kind}s"),
    };
    let short = SHORT_NAMES.iter().find(|(short, _)| *short == word);
    word == kind || word == plural || short.is_some_and(|(_, long)| *long == kind)
}

fn list(is_one: bool, mut found: Vec<Value>) -> Value {
    if is_one && found.len() == 1 {
        return found.remove(0);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": found})
}

/// Namespace, kind and name, and what matters most of some kinds.
fn table(objects: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = vec![["NAMESPACE", "KIND", "NAME", "ADDRESS"].map(str::to_owned)];
    for object in objects {
        let metadata = &object["metadata"];
        let address = match object["kind"].as_str() {
            Some("Pod") => text(&object["status"]["podIP"]),
            Some("Service") => text(&object["spec"]["clusterIP"]),
            _ => String::new(),
        };
        lines.push([
            text(&metadata["namespace"]),
            text(&object["kind"]),
            text(&metadata["name"]),
            address,
        ]);
    }
    control::align(&lines)
}

const SHORT_NAMES: &[(&str, &str)] = &[
    ("po", "pod"),
    ("svc", "service"),
    ("deploy", "deployment"),
    ("rs", "replicaset"),
    ("sts", "statefulset"),
    ("ds", "daemonset"),
    ("ns", "namespace"),
    ("cm", "configmap"),
    ("sa", "serviceaccount"),
    ("vs", "virtualservice"),
    ("dr", "destinationrule"),
    ("pa", "peerauthentication"),
    ("ap", "authorizationpolicy"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_for_kubectl() {
        for word in ["pod", "pods", "po", "Pod"] {
            assert!(is_kind(word, "Pod"), "{word}");
        }
        assert!(is_kind("gateways", "Gateway") && is_kind("serviceentries", "ServiceEntry"));
        assert!(!is_kind("pods", "Service"));
    }
}
