//! TLS to the destination (DR-106..DR-124).

use crate::destination_rule::ClientTLSSettings;
use crate::validate::{Report, check};

pub(super) fn check_tls(report: &mut Report, path: &str, tls: &ClientTLSSettings, namespace: &str) {
    let mode = tls.mode.as_deref().unwrap_or("DISABLE");
    check::one_of(
        report,
        &format!("{path}.mode"),
        mode,
        &["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"],
    );
    if tls.mode.is_none() {
        report.warn(&format!(
            "{path}: a tls block without mode turns TLS off, mesh mTLS too; set mode"
        ));
    }
    let files = [
        ("clientCertificate", tls.client_certificate.is_some()),
        ("privateKey", tls.private_key.is_some()),
        ("caCertificates", tls.ca_certificates.is_some()),
        ("caCrl", tls.ca_crl.is_some()),
    ];
    let credential = tls.credential_name.as_deref().filter(|c| !c.is_empty());
    if mode == "ISTIO_MUTUAL" {
        for (name, _) in files
            .iter()
            .filter(|(_, is_set)| *is_set)
            .chain(credential.map(|_| &("credentialName", true)))
        {
            report.warn(&format!(
                "{path}.{name}: is ignored with ISTIO_MUTUAL, which uses the workload's certificate"
            ));
        }
    } else if credential.is_some() {
        for (name, _) in files.iter().filter(|(_, is_set)| *is_set) {
            report.error(
                &format!("{path}.{name}"),
                "",
                "cannot stand beside credentialName; remove one of them",
            );
        }
    }
    if mode == "MUTUAL" && credential.is_none() {
        for (name, is_set) in &files[..2] {
            if !is_set {
                report.error(
                    &format!("{path}.{name}"),
                    "",
                    "is required with MUTUAL, or credentialName instead",
                );
            }
        }
    }
    if let Some(reference) = credential.and_then(|c| c.strip_prefix("configmap://")) {
        let parts: Vec<_> = reference.split('/').collect();
        let is_ok = parts.len() == 2 && parts[0] == namespace && !parts[1].is_empty();
        if !is_ok {
            let message = format!("must be configmap://{namespace}/<name>: a ConfigMap of the rule's own namespace");
            report.error(&format!("{path}.credentialName"), reference, &message);
        }
    }
    if tls.insecure_skip_verify == Some(true) && matches!(mode, "SIMPLE" | "MUTUAL") {
        let verifies = [
            ("caCertificates", tls.ca_certificates.is_some()),
            ("credentialName", credential.is_some() && mode == "SIMPLE"),
            ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        ];
        for (name, _) in verifies.iter().filter(|(_, is_set)| *is_set) {
            report.error(
                &format!("{path}.{name}"),
                "",
                "cannot stand beside insecureSkipVerify, which verifies nothing",
            );
        }
    }
}
