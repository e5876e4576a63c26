//! Changed manifests become objects of the world, and contents that pods mount.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use weft_bundle::pack::Files;
use weft_operator::world::Event as WorldEvent;
use weft_operator::world::read::{Read, object};
use weft_webhook::InjectConfig;

use super::Run;
use crate::local::container::ContentKind;
use crate::local::desired::{Changes, Id};
use crate::local::workload::WORKLOAD_KINDS;
use crate::local::{commands, manifest};

impl Run {
    /// Reads the manifests for the first time.
    ///
    /// # Errors
    /// That they cannot be read or hold nothing to start, and what to do next (LOC-053).
    pub(super) fn read_first(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        let contents = manifest::read(&self.options.paths).map_err(|problem| problem.to_string())?;
        self.watch.follow(&manifest::directories(&self.options.paths));
        let changes = self.desired.update(contents);
        changes.told.iter().for_each(|line| self.output.note(line));
        let has_workload = |(kind, _, _): &Id| WORKLOAD_KINDS.contains(&kind.as_str());
        if !self.desired.objects.keys().any(has_workload) {
            let paths: Vec<_> = self.options.paths.iter().map(|p| p.display().to_string()).collect();
            return Err(format!(
                "nothing can start from {}: no Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or Pod is there; \
                 name manifests with -f",
                paths.join(", ")
            ));
        }
        self.take(&changes);
        self.settle(begun, false);
        Ok(())
    }

    /// Reads the manifests because they may have changed.
    pub(super) async fn read_again(&mut self) {
        let begun = Instant::now();
        self.read_commands();
        let mut contents = manifest::read(&self.options.paths);
        if contents.as_ref().map_or(true, |now| self.desired.misses(now)) {
            // Some editors take a file away before they put the new one there: that is no deletion.
            tokio::time::sleep(REPLACED).await;
            contents = manifest::read(&self.options.paths);
        }
        let contents = match contents {
            Ok(contents) => contents,
            Err(problem) => return self.output.note(&problem.to_string()),
        };
        self.watch.follow(&manifest::directories(&self.options.paths));
        let changes = self.desired.update(contents);
        changes.told.iter().for_each(|line| self.output.note(line));
        if changes.is_empty() {
            return;
        }
        let list = |ids: &[Id]| {
            let texts: Vec<_> = ids.iter().map(|(kind, ns, n)| format!("{kind} {ns}/{n}")).collect();
            texts.join(", ")
        };
        if !changes.applied.is_empty() {
            self.output.note(&format!("applied {}", list(&changes.applied)));
        }
        if !changes.deleted.is_empty() {
            self.output.note(&format!("deleted {}", list(&changes.deleted)));
        }
        self.take(&changes);
        self.settle(begun, true);
    }

    /// A pod that waits for its program may have one now.
    fn read_commands(&mut self) {
        match commands::read(&self.options.paths) {
            Ok(commands) if commands != self.commands => {
                self.commands = commands;
                self.settle(Instant::now(), false);
            }
            Ok(_) => {}
            Err(e) => self.output.note(&format!("{e:#}; its last good content counts")),
        }
    }

    /// Injection follows the mesh config as the webhook does; one that is not valid changes nothing (LOC-009).
    fn configure_injection(&mut self) {
        let text = |map: &str, key: &str| {
            let id = (ContentKind::ConfigMap, "weft-system".to_owned(), map.to_owned());
            let bytes = self.contents.get(&id).and_then(|files| files.get(key));
            bytes
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                .unwrap_or_default()
        };
        let image = format!("proxy: {{image: {}}}", self.inject.image);
        // Of the settings of an installation, those count that have a meaning here.
        let shards = match InjectConfig::parse(&image, &text("weft-injector", "values"), "") {
            Ok(values) => (values.cfg_shards, values.ep_shards, values.tls_shards),
            Err(e) => {
                self.output.note(&format!(
                    "ConfigMap weft-system/weft-injector, key values: {e}; the last good one counts"
                ));
                (self.inject.cfg_shards, self.inject.ep_shards, self.inject.tls_shards)
            }
        };
        match InjectConfig::parse("", &image, &text("weft", "mesh")) {
            Ok(mut config) => {
                (config.cfg_shards, config.ep_shards, config.tls_shards) = shards;
                if let Some(domain) = &self.options.trust_domain {
                    config.mesh.trust_domain.clone_from(domain);
                }
                self.inject = config;
            }
            Err(e) => self.output.note(&format!(
                "ConfigMap weft-system/weft, key mesh: {e}; the last good one counts"
            )),
        }
    }

    /// Hands changed objects to the world, and to the contents that pods mount.
    fn take(&mut self, changes: &Changes) {
        for id in &changes.deleted {
            let (kind, namespace, name) = id;
            match kind.as_str() {
                "ConfigMap" | "Secret" => drop(self.contents.remove(&(
                    content_kind(kind),
                    namespace.clone(),
                    name.clone(),
                ))),
                "Service" => self.service_addresses.release(namespace, name),
                _ => {}
            }
            self.applied.remove(id);
            self.withdraw(kind, namespace, name);
        }
        for id in &changes.applied {
            let Some(found) = self.desired.objects.get(id) else {
                continue;
            };
            let mut value = found.value.clone();
            let (kind, namespace, name) = id;
            match kind.as_str() {
                "Service" => self.give_address(&mut value, namespace, name),
                "ConfigMap" | "Secret" => {
                    if let Some(files) = files_of(kind, &value) {
                        self.contents
                            .insert((content_kind(kind), namespace.clone(), name.clone()), files);
                    }
                }
                _ => {}
            }
            value["metadata"]["creationTimestamp"] = self.created(id).into();
            if kind != "Pod" {
                self.apply(&value);
                self.applied.insert(id.clone(), value);
            }
        }
        let is_mesh_config = |(kind, namespace, name): &&Id| {
            kind == "ConfigMap" && namespace == "weft-system" && ["weft", "weft-injector"].contains(&name.as_str())
        };
        if changes
            .applied
            .iter()
            .chain(&changes.deleted)
            .any(|id| is_mesh_config(&id))
        {
            self.configure_injection();
        }
    }

    /// The order of the files is the order of age, so that which of two objects is older does not change by chance.
    fn created(&self, id: &Id) -> String {
        let mut places: Vec<_> = self.desired.objects.iter().map(|(id, o)| (&o.place, id)).collect();
        places.sort();
        let position = places.iter().position(|(_, other)| *other == id).unwrap_or(0);
        format!(
            "2000-01-01T{:02}:{:02}:{:02}Z",
            position / 3600 % 24,
            position / 60 % 60,
            position % 60
        )
    }

    fn give_address(&mut self, value: &mut Value, namespace: &str, name: &str) {
        let spec = &mut value["spec"];
        let is_headless = spec["clusterIP"] == "None";
        let is_external = spec["type"] == "ExternalName";
        if is_headless || is_external {
            return;
        }
        match self.service_addresses.of(namespace, name) {
            Some(address) => {
                spec["clusterIP"] = address.to_string().into();
                spec["clusterIPs"] = json!([address.to_string()]);
            }
            None => self.output.note(&format!(
                "no address is left for service {namespace}/{name}; use a larger --service-cidr"
            )),
        }
    }

    pub(super) fn apply(&mut self, value: &Value) {
        match object(value, "weft-system") {
            Ok(Read::Object(object)) => {
                self.known.insert(object.reference());
                self.store.apply(WorldEvent::Apply(object));
            }
            Ok(Read::Other) => {}
            Err(e) => {
                let name = value
                    .pointer("/metadata/name")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let text = format!("{} {name}: {e}", value["kind"].as_str().unwrap_or_default());
                self.output.note(&text);
            }
        }
    }

    fn withdraw(&mut self, kind: &str, namespace: &str, name: &str) {
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|r| r.namespace == namespace && r.name == name && format!("{:?}", r.kind) == kind)
            .cloned()
            .collect();
        for reference in gone {
            self.known.remove(&reference);
            self.store.apply(WorldEvent::Delete(reference));
        }
    }
}

fn content_kind(kind: &str) -> ContentKind {
    if kind == "Secret" {
        ContentKind::Secret
    } else {
        ContentKind::ConfigMap
    }
}

/// Bytes of a ConfigMap or Secret by key.
fn files_of(kind: &str, value: &Value) -> Option<Files> {
    let mut files = Files::new();
    if kind == "Secret" {
        let secret: Secret = serde_json::from_value(value.clone()).ok()?;
        files.extend(secret.data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)));
        files.extend(
            secret
                .string_data
                .into_iter()
                .flatten()
                .map(|(key, text)| (key, text.into_bytes())),
        );
    } else {
        let map: ConfigMap = serde_json::from_value(value.clone()).ok()?;
        files.extend(
            map.data
                .into_iter()
                .flatten()
                .map(|(key, text)| (key, text.into_bytes())),
        );
        files.extend(map.binary_data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)));
    }
    Some(files)
}

/// How long a file may be gone while an editor replaces it.
const REPLACED: Duration = Duration::from_millis(100);
