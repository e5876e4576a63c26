//! How TLS ends at a server, and what it takes for that (GW-030 ff.).

use weft_bundle::key::credential_stem;
use weft_bundle::wire::{Authorities, Certificate, Clients, TlsSettings, TlsVersion};
use weft_crds::gateway::{OFFERED_SUITES, ServerTLSSettings};
use weft_crds::mesh_config::TlsDefaults;

use crate::render::credential::{Named, secret_name};
use crate::world::ObjectRef;

/// How TLS ends at a server of workloads in a namespace; `None` where it passes through; or why that is not supported.
pub(super) fn termination(
    tls: &ServerTLSSettings,
    defaults: Option<&TlsDefaults>,
    namespace: &str,
) -> Result<Option<TlsSettings>, String> {
    let mode = tls.mode.as_deref().unwrap_or("PASSTHROUGH");
    let (certificates, clients) = match mode {
        "PASSTHROUGH" => return Ok(None),
        "SIMPLE" => (certificates(tls, namespace)?, None),
        "MUTUAL" | "OPTIONAL_MUTUAL" => (certificates(tls, namespace)?, Some(clients(tls, namespace)?)),
        "ISTIO_MUTUAL" => {
            let clients = Clients {
                authorities: Authorities::Mesh,
                optional: false,
                crl: None,
                names: tls.subject_alt_names.clone(),
            };
            (vec![Certificate::Workload], Some(clients))
        }
        mode => return Err(format!("TLS mode {mode} is not supported yet")),
    };
    // What would be less than was asked for is not served.
    if clients.is_some() {
        let is_pinned = !tls.verify_certificate_spki.is_empty() || !tls.verify_certificate_hash.is_empty();
        if is_pinned {
            return Err("verifyCertificateSpki and verifyCertificateHash are not supported yet".into());
        }
        if tls.insecure_skip_verify == Some(true) {
            return Err("insecureSkipVerify is not supported yet".into());
        }
    }
    // The mesh has its own (GW-115).
    let defaults = defaults.filter(|_| mode != "ISTIO_MUTUAL");
    let version = |text: Option<&String>| match text.map(String::as_str) {
        Some("TLSV1_3") => Some(TlsVersion::V1_3),
        Some("TLSV1_0" | "TLSV1_1" | "TLSV1_2") => Some(TlsVersion::V1_2),
        _ => None,
    };
    let default_min = || version(defaults.and_then(|defaults| defaults.min_protocol_version.as_ref()));
    let min = version(tls.min_protocol_version.as_ref()).or_else(default_min);
    let min = min.unwrap_or_default();
    let max = version(tls.max_protocol_version.as_ref()).filter(|max| *max == TlsVersion::V1_2);
    if min == TlsVersion::V1_3 && max.is_some() {
        return Err("maxProtocolVersion is below minProtocolVersion".into());
    }
    let ciphers = offered(&tls.cipher_suites);
    if ciphers.is_empty() && !tls.cipher_suites.is_empty() {
        return Err(format!(
            "none of its cipherSuites is offered: {} are",
            OFFERED_SUITES.join(", ")
        ));
    }
    let own_or = |own: Vec<String>, default: &dyn Fn(&TlsDefaults) -> Vec<String>| match own.is_empty() {
        true => defaults.map(default).unwrap_or_default(),
        false => own,
    };
    Ok(Some(TlsSettings {
        certificates,
        clients,
        min,
        max,
        ciphers: own_or(ciphers, &|defaults| offered(&defaults.cipher_suites)),
        curves: own_or(tls.ecdh_curves.clone(), &|defaults| defaults.ecdh_curves.clone()),
    }))
}

/// The credentials that a server of a Gateway names, as its settings refer to them.
pub(super) fn credentials(
    tls: Option<&ServerTLSSettings>,
    settings: &TlsSettings,
    namespace: &str,
    of: &ObjectRef,
) -> Vec<Named> {
    let Some(tls) = tls else { return Vec::new() };
    let mut out = Vec::new();
    let secret = |name: &str| Some(Named::secret(namespace, secret_name(name).ok()?, of.clone()));
    let is_credential = |certificate: &Certificate| matches!(certificate, Certificate::Credential(_));
    if settings.certificates.iter().any(is_credential) {
        out.extend(names(tls).into_iter().filter_map(secret).map(|named| Named {
            has_pair: true,
            ..named
        }));
    }
    let authorities = settings.clients.as_ref().map(|clients| &clients.authorities);
    if let (Some(Authorities::Credential(_)), Some(named)) = (authorities, authority(tls).and_then(secret)) {
        out.push(Named {
            has_authorities: true,
            has_secret_beside: set(&tls.ca_cert_credential_name).is_none(),
            ..named
        });
    }
    out
}

fn certificates(tls: &ServerTLSSettings, namespace: &str) -> Result<Vec<Certificate>, String> {
    let names = names(tls);
    if !names.is_empty() {
        let credential = |name: &str| Ok(Certificate::Credential(stem(name, namespace)?));
        return names.into_iter().map(credential).collect();
    }
    let files = |chain: &Option<String>, key: &Option<String>| match (set(chain), set(key)) {
        (Some(chain), Some(key)) => Ok(Certificate::Files {
            chain: chain.to_owned(),
            key: key.to_owned(),
        }),
        _ => Err("serverCertificate and privateKey are both needed".to_owned()),
    };
    match tls.tls_certificates.as_slice() {
        [] => Ok(vec![files(&tls.server_certificate, &tls.private_key)?]),
        pairs => pairs
            .iter()
            .map(|pair| files(&pair.server_certificate, &pair.private_key))
            .collect(),
    }
}

fn clients(tls: &ServerTLSSettings, namespace: &str) -> Result<Clients, String> {
    let (authorities, crl) = match (authority(tls), set(&tls.ca_certificates)) {
        (Some(name), _) => (Authorities::Credential(stem(name, namespace)?), None),
        (None, Some(file)) => (
            Authorities::File(file.to_owned()),
            set(&tls.ca_crl).map(ToOwned::to_owned),
        ),
        (None, None) => return Err("caCertificates is needed: the authorities that clients are verified with".into()),
    };
    Ok(Clients {
        authorities,
        optional: tls.mode.as_deref() == Some("OPTIONAL_MUTUAL"),
        crl,
        names: tls.subject_alt_names.clone(),
    })
}

/// Secrets with certificates.
fn names(tls: &ServerTLSSettings) -> Vec<&str> {
    match set(&tls.credential_name) {
        Some(name) => vec![name],
        None => tls.credential_names.iter().map(String::as_str).collect(),
    }
}

/// The Secret with the authorities: one of its own comes first (GW-044).
fn authority(tls: &ServerTLSSettings) -> Option<&str> {
    set(&tls.ca_cert_credential_name).or_else(|| names(tls).first().copied())
}

fn stem(name: &str, namespace: &str) -> Result<String, String> {
    Ok(credential_stem(namespace, secret_name(name)?))
}

fn set(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Those that proxies have, once each.
fn offered(suites: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for suite in suites {
        if OFFERED_SUITES.contains(&suite.as_str()) && !out.contains(suite) {
            out.push(suite.clone());
        }
    }
    out
}
