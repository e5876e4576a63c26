//! The MutatingWebhookConfiguration, from the injector's own selectors: for each pair of the settings that change them.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weft_webhook::config::InjectConfig;
use weft_webhook::entries::{FailurePolicy, Service, configuration};

use crate::template::{Form, NAMESPACE, indented, labels};

/// Renders the configuration in a form.
pub(crate) fn render(values: &Value, form: Form) -> Result<String> {
    match form {
        Form::Plain => {
            let object = object(values)?;
            indented(&object, 0)
        }
        Form::Template => template(values),
    }
}

/// A block for each pair of `injection.istioLabels` and `injection.enabledByDefault`.
fn template(values: &Value) -> Result<String> {
    let mut out = String::from(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata:\n  \
         name: weft-injector\n  labels:\n    \
         {{- include \"weft.labels\" (dict \"name\" \"weft-injector\" \"root\" $) | nindent 4 }}\n",
    );
    for (word, istio, by_default) in [
        ("if", true, false),
        ("else if", true, true),
        ("else if", false, false),
        ("else if", false, true),
    ] {
        let mut values = values.clone();
        values["injection"]["istioLabels"] = json!(istio);
        values["injection"]["enabledByDefault"] = json!(by_default);
        let not = |set: bool| if set { "" } else { "not " };
        writeln!(
            out,
            "{{{{- {word} and ({}.Values.injection.istioLabels) ({}.Values.injection.enabledByDefault) }}}}",
            not(istio),
            not(by_default)
        )?;
        let webhooks = indented(&object(&values)?["webhooks"], 0)?;
        out.push_str("webhooks:\n");
        for line in webhooks.lines() {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            if trimmed == format!("- {NAMESPACE}") {
                writeln!(out, "{}- {{{{ .Release.Namespace }}}}", " ".repeat(indent))?;
                writeln!(out, "{{{{- with .Values.injection.excludedNamespaces }}}}")?;
                writeln!(out, "{{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}")?;
            } else if trimmed == "failurePolicy: Fail" {
                writeln!(
                    out,
                    "{}failurePolicy: {{{{ .Values.injection.failurePolicy }}}}",
                    " ".repeat(indent)
                )?;
            } else {
                writeln!(out, "{}", line.replace(NAMESPACE, "{{ .Release.Namespace }}"))?;
            }
        }
    }
    out.push_str("{{- end }}\n");
    Ok(out)
}

fn object(values: &Value) -> Result<Value> {
    let text = serde_yaml::to_string(values).context("write YAML")?;
    // The image has no part in the selectors, so that settings without one will do.
    let mut config = InjectConfig::parse(&text, "proxy: {image: weft-proxy}", "")
        .map_err(|error| anyhow::anyhow!("values for the injector: {error}"))?;
    NAMESPACE.clone_into(&mut config.control_plane_namespace);
    let service = Service {
        name: "weft-injector",
        namespace: NAMESPACE,
    };
    let mut object = configuration(&config, service, FailurePolicy::Fail);
    object["metadata"]["labels"] = labels("weft-injector", values)?;
    Ok(object)
}
