//! The injector's serving certificate: an authority of its own, a leaf for the Service's names, and the authority in
//! the webhook configurations that the API server trusts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use weft_bundle::pack::Files;
use x509_parser::pem::Pem;

use crate::deliver::{self, Content, Place, Plan, Present, Resource, Writer};
use crate::run::Chain;
use crate::source::{INJECTOR, VALIDATOR, of_revision};
use crate::world::Settings;

/// Keeps the certificate and what trusts it.
pub struct Keeper {
    client: Client,
    writer: Writer,
    namespace: String,
    revision: String,
}

impl Keeper {
    /// For the installation of the settings.
    #[must_use]
    pub fn new(client: Client, settings: &Settings) -> Self {
        Self {
            writer: Writer::new(client.clone()),
            client,
            namespace: settings.namespace.clone(),
            revision: settings.revision.clone(),
        }
    }

    /// Issues what is missing or runs out, and tells the API server; whether all of it is done.
    pub async fn settle(&self, present: &mut Present) -> bool {
        let injector = of_revision(INJECTOR, &self.revision);
        let place = Place {
            resource: Resource::Secret,
            namespace: self.namespace.clone(),
            name: format!("{injector}-tls"),
        };
        let now = SystemTime::now();
        let names = service_names(&injector, &self.namespace);
        let held = present.get(&place).filter(|c| is_good(&c.files, &names, now));
        let files = match held {
            Some(content) => content.files.clone(),
            None => match issue(&names, now) {
                Ok(files) => Arc::new(files),
                Err(error) => {
                    tracing::error!(%error, "no certificate for the injector");
                    return false;
                }
            },
        };
        let content = Content {
            files: files.clone(),
            labels: deliver::labels(&self.revision),
            annotations: BTreeMap::new(),
            owners: Vec::new(),
            secret_type: Some("kubernetes.io/tls".to_owned()),
        };
        let plan = Plan::new([(place, content)].into(), present);
        let (written, failed) = self.writer.write(plan.first).await;
        // Settling again before the watch shows it must not issue another one.
        present.extend(written);
        for error in &failed {
            tracing::warn!(error = %Chain(error), "not written");
        }
        if !failed.is_empty() {
            return false;
        }
        let bundle = files
            .get("ca.crt")
            .map(|pem| data_encoding::BASE64.encode(pem))
            .unwrap_or_default();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        self.trust(&mutating, &injector, &bundle).await
            & self
                .trust(&validating, &of_revision(VALIDATOR, &self.revision), &bundle)
                .await
    }

    /// Puts the authority into every webhook of a configuration that has another one, and makes the configuration go
    /// with the namespace, whose pods alone can answer it (INJ-214); whether nothing is left to do.
    async fn trust<K>(&self, api: &Api<K>, name: &str, bundle: &str) -> bool
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        let found = match api.get_opt(name).await {
            Ok(Some(found)) => serde_json::to_value(found).unwrap_or_default(),
            // Without one there is nobody to trust; the next settling looks again.
            Ok(None) => return true,
            Err(error) => {
                tracing::warn!(%error, name, "webhook configuration not read");
                return false;
            }
        };
        let webhooks = found
            .get("webhooks")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let trusts = |w: &Value| w.pointer("/clientConfig/caBundle").and_then(Value::as_str) == Some(bundle);
        let owner = match self.owner_of(&found).await {
            Ok(owner) => owner,
            Err(error) => {
                tracing::warn!(%error, namespace = self.namespace, "namespace not read");
                return false;
            }
        };
        if webhooks.iter().all(trusts) && owner.is_none() {
            return true;
        }
        // A strategic merge, by the names of webhooks: whoever installed them keeps every other field.
        let patches: Vec<Value> = webhooks
            .iter()
            .map(|w| json!({"name": w["name"], "clientConfig": {"caBundle": bundle}}))
            .collect();
        let mut patch = json!({"webhooks": patches});
        if let Some(owner) = owner {
            patch["metadata"] = json!({"ownerReferences": [owner]});
        }
        let parameters = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match api.patch(name, &parameters, &Patch::Strategic(patch)).await {
            Ok(_) => {
                tracing::info!(name, "the API server trusts the injector");
                true
            }
            Err(error) => {
                tracing::warn!(%error, name, "webhook configuration not changed");
                false
            }
        }
    }

    /// The namespace as an owner, unless it owns the object already.
    async fn owner_of(&self, object: &Value) -> Result<Option<Value>, kube::Error> {
        let is_it = |o: &Value| o["kind"] == "Namespace" && o["name"] == self.namespace.as_str();
        let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        if owners.is_some_and(|all| all.iter().any(is_it)) {
            return Ok(None);
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let uid = namespaces.get_metadata(&self.namespace).await?.metadata.uid;
        Ok(Some(
            json!({"apiVersion": "v1", "kind": "Namespace", "name": self.namespace, "uid": uid}),
        ))
    }
}

fn service_names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

fn issue(names: &[String], now: SystemTime) -> Result<Files, rcgen::Error> {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "weft webhook CA");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.not_before = (now - SKEW).into();
    root.not_after = (now + LIFETIME).into();
    let root_key = KeyPair::generate()?;
    let root_cert = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);
    let mut leaf = CertificateParams::new(names.to_vec())?;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    leaf.not_before = (now - SKEW).into();
    leaf.not_after = (now + LIFETIME).into();
    let key = KeyPair::generate()?;
    let cert = leaf.signed_by(&key, &issuer)?;
    let files = [
        ("tls.crt", cert.pem()),
        ("tls.key", key.serialize_pem()),
        ("ca.crt", root_cert.pem()),
    ];
    Ok(files.map(|(name, text)| (name.to_owned(), text.into_bytes())).into())
}

/// Whether the Secret serves: key and leaf belong together, the authority signed it for these names, and a third of
/// its life is left.
fn is_good(files: &Files, names: &[String], now: SystemTime) -> bool {
    let pem = |name: &str| Pem::iter_from_buffer(files.get(name)?).next()?.ok();
    let (Some(leaf), Some(root)) = (pem("tls.crt"), pem("ca.crt")) else {
        return false;
    };
    let (Ok(leaf), Ok(root)) = (leaf.parse_x509(), root.parse_x509()) else {
        return false;
    };
    let key = files
        .get("tls.key")
        .and_then(|k| std::str::from_utf8(k).ok())
        .and_then(|k| KeyPair::from_pem(k).ok());
    let is_key = key.is_some_and(|k| rcgen::PublicKeyData::subject_public_key_info(&k) == leaf.public_key().raw);
    let san = leaf.subject_alternative_name().ok().flatten();
    let has = |name: &String| {
        san.as_ref().is_some_and(|s| {
            s.value
                .general_names
                .iter()
                .any(|n| matches!(n, x509_parser::prelude::GeneralName::DNSName(d) if d == name))
        })
    };
    let ends = u64::try_from(
        leaf.validity()
            .not_after
            .timestamp()
            .min(root.validity().not_after.timestamp()),
    );
    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends.unwrap_or_default());
    is_key
        && names.iter().all(has)
        && leaf.verify_signature(Some(root.public_key())).is_ok()
        && ends > now + LIFETIME / 3
}

const MANAGER: &str = "weft-ca";
const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
const SKEW: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_certificate_is_good_until_its_last_third_and_only_with_its_own_key() {
        let now = SystemTime::now();
        let names = service_names("weft-injector", "weft-system");
        let files = issue(&names, now).expect("issued");
        assert!(is_good(&files, &names, now));
        assert!(
            !is_good(&files, &names, now + LIFETIME * 2 / 3 + Duration::from_secs(1)),
            "late"
        );
        assert!(
            !is_good(&files, &service_names("weft-injector", "elsewhere"), now),
            "another namespace"
        );
        let mut mixed = files.clone();
        let other = issue(&names, now).expect("issued");
        mixed.insert("tls.key".into(), other["tls.key"].clone());
        assert!(!is_good(&mixed, &names, now), "another key");
        let mut foreign = files;
        foreign.insert("ca.crt".into(), other["ca.crt"].clone());
        assert!(!is_good(&foreign, &names, now), "another authority");
    }
}
