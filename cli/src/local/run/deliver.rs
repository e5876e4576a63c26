//! What the operator would write as ConfigMaps and Secrets, into the volumes of pods.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use weft_bundle::key::{TARGET_REV_ANNOTATION, config_name, credentials_name, endpoints_name, identity_name};
use weft_bundle::pack::Files;
use weft_operator::identity::{self, SpiffeId};
use weft_operator::render::ConfigRef;
use weft_operator::trust;
use weft_operator::world::{Event as WorldEvent, Object};

use super::Run;
use crate::local::acknowledge;
use crate::local::container::ContentKind;

impl Run {
    /// Tells what became of mesh objects, when it changes.
    pub(super) fn report(&mut self) {
        for (reference, report) in &self.rendered.reports {
            let problem = report.refused.as_ref().or(report.unresolved.as_ref());
            let text = problem
                .map(|(reason, message)| format!("{reference}: {reason}: {message}"))
                .unwrap_or_default();
            if self.told.get(reference).map(String::as_str).unwrap_or_default() != text {
                if !text.is_empty() {
                    self.output.note(&text);
                }
                self.told.insert(reference.clone(), text);
            }
        }
        for failure in &self.rendered.failures {
            let key = failure.key.as_deref().unwrap_or("endpoints");
            self.output.note(&format!(
                "{}/{key} could not be rendered: {}",
                failure.namespace, failure.message
            ));
        }
    }

    /// Issues and renews identities (LOC-007, ID-033).
    pub(super) fn issue(&mut self) {
        let now = SystemTime::now();
        let trust_domain = self.store.world().trust_domain();
        for identity in &self.rendered.identities {
            let id = SpiffeId {
                trust_domain: trust_domain.clone(),
                namespace: identity.namespace.clone(),
                service_account: identity.service_account.clone(),
            };
            let is_fresh = self.leaves.get(identity).is_some_and(|(of, leaf)| {
                *of == id && now < identity::renew_at(leaf.not_before, leaf.not_after, 0.5, 0.0, 0.0)
            });
            if is_fresh {
                continue;
            }
            match self.authority.issue(&id, &identity::Profile::default(), now) {
                Ok(leaf) => drop(self.leaves.insert(identity.clone(), (id, leaf))),
                Err(e) => self.output.note(&format!("no certificate for {id}: {e}")),
            }
        }
        self.leaves
            .retain(|identity, _| self.rendered.identities.contains(identity));
    }

    /// Tells the world which Secrets and ConfigMaps that mesh objects name are not there; whether that is news.
    pub(super) fn learn_absent_credentials(&mut self) -> bool {
        let world = self.store.world();
        let named = self.rendered.named_credentials.iter();
        let absent: Vec<_> = named
            .filter(|id| !world.credentials.contains_key(*id))
            .cloned()
            .collect();
        for reference in &absent {
            let object = Object::Credential {
                reference: reference.clone(),
                content: None,
            };
            self.store.apply(WorldEvent::Apply(object));
        }
        !absent.is_empty()
    }

    /// What the operator would write as ConfigMaps and Secrets.
    pub(super) fn fill_contents(&mut self) {
        // Sets of shards are as large as their pods make them.
        let is_spread = |kind: ContentKind, name: &str| match kind {
            ContentKind::Secret => name.starts_with("weft-tls-"),
            ContentKind::ConfigMap => name.starts_with("weft-ep-"),
        };
        self.contents.retain(|(kind, _, name), _| !is_spread(*kind, name));
        let mut put = |kind, namespace: &str, name: String, files: Files| {
            self.contents.insert((kind, namespace.to_owned(), name), files);
        };
        for (ConfigRef { namespace, key }, config) in &self.rendered.configs {
            for (n, files) in config.shards.iter().enumerate() {
                put(
                    ContentKind::ConfigMap,
                    namespace,
                    config_name(key, n),
                    Files::clone(files),
                );
            }
        }
        for (namespace, endpoints) in &self.rendered.endpoints {
            for (n, files) in endpoints.shards.iter().enumerate() {
                let name = endpoints_name(&self.inject.revision, namespace, n);
                put(ContentKind::ConfigMap, namespace, name, Files::clone(files));
            }
        }
        for (ConfigRef { namespace, key }, credentials) in &self.rendered.credentials {
            for (n, files) in credentials.shards.iter().enumerate() {
                put(
                    ContentKind::Secret,
                    namespace,
                    credentials_name(key, n),
                    Files::clone(files),
                );
            }
        }
        let roots = trust::bundle(self.authority.roots_pem(), &self.store.world().mesh);
        for (identity, (_, leaf)) in &self.leaves {
            let files = identity::secret(leaf, &roots);
            put(
                ContentKind::Secret,
                &identity.namespace,
                identity_name(&identity.service_account),
                files,
            );
        }
    }

    /// Writes volumes that changed, starts pods whose volumes are there, and asks sidecars until they have what is new.
    pub(super) fn publish(&mut self, begun: Instant, tell: bool) {
        let mut expected = Vec::new();
        let mut rendered = BTreeSet::new();
        let ids: Vec<String> = self.pods.keys().cloned().collect();
        self.sequence += 1;
        for id in ids {
            let Some(running) = self.pods.get_mut(&id) else {
                continue;
            };
            let namespace = running.plan.namespace.clone();
            let config = running.key.as_ref().and_then(|key| {
                let reference = ConfigRef {
                    namespace: namespace.clone(),
                    key: key.clone(),
                };
                Some((
                    self.rendered.configs.get(&reference)?.revision.clone(),
                    self.rendered.endpoints.get(&namespace)?.revision.clone(),
                ))
            });
            if let Some((cfg, ep)) = &config
                && running.target.as_ref() != Some(&(cfg.clone(), ep.clone()))
            {
                if running.target.as_ref().is_none_or(|(before, _)| before != cfg) {
                    rendered.insert(format!("{namespace}/{}", running.plan.workload));
                }
                let value = format!("{cfg},{ep},{}", self.sequence);
                running
                    .pod
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(TARGET_REV_ANNOTATION.into(), value);
                let is_started = running.handle.is_some() && !running.stopping;
                if is_started && running.is_ready() {
                    expected.push((
                        SocketAddr::from((running.address, STATUS_PORT)),
                        cfg.clone(),
                        ep.clone(),
                    ));
                }
                running.target = Some((cfg.clone(), ep.clone()));
            }
            let facts = running.facts(self.gateway);
            match running.write_volumes(&facts, &self.contents) {
                Ok(()) if running.handle.is_none() && !running.stopping => {
                    // A sidecar without its configuration would only wait; it is rendered in the same step.
                    if running.key.is_some() && config.is_none() {
                        continue;
                    }
                    self.start(&id, &facts);
                }
                Ok(()) => {}
                Err(e) => self
                    .output
                    .note(&format!("pod {id}: volumes could not be written: {e:#}")),
            }
        }
        if tell && !rendered.is_empty() {
            let list: Vec<_> = rendered.into_iter().collect();
            self.output.note(&format!("rendered {}", list.join(", ")));
        }
        if tell && !expected.is_empty() {
            acknowledge::wait(expected, begun, &self.reach.runtime, self.tell.clone());
        }
    }
}

pub(super) const STATUS_PORT: u16 = 15020;
