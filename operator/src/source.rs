//! Watches of the API server: what the cluster holds becomes events of one channel, kind after kind complete.
//!
//! A watch never ends. What is not there after a new list is reported as deleted; a kind whose CRD is missing counts
//! as empty and is asked for again every [`MISSING_KIND`] (OPS-032).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use weft_bundle::key::{DEFAULT_REVISION, MANAGED_LABEL, TARGET_REV_ANNOTATION};
use weft_crds::object::KINDS;

use crate::world::read::mesh_object;
use crate::world::{self, Credential, Kind, Object, ObjectRef, Settings};

/// What the operator is told of the cluster.
#[derive(Debug)]
pub enum Event {
    /// Something that rendering depends on.
    World(world::Event),
    /// A ConfigMap with the managed label; without an object it is gone.
    ConfigMap(Id, Option<Arc<ConfigMap>>),
    /// A Secret with the managed label; without an object it is gone.
    Secret(Id, Option<Arc<Secret>>),
    /// A Secret of the control plane that is watched by name; without an object it is gone.
    Authority(&'static str, Option<Arc<Secret>>),
    /// The status that a mesh object has, and its API version; without a status it is gone.
    Status(ObjectRef, Option<Observed>),
    /// The uid of the ClusterRole that owns everything rendered (DLV-134); without one it is gone.
    Anchor(Option<String>),
    /// A configuration of the installation's webhooks is there, changed or gone.
    Webhooks,
    /// The kind was listed once, or does not exist.
    Synced(&'static str),
}

/// Namespace and name.
pub type Id = (String, String);

/// The status of a mesh object as the API server has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `status`, null where there is none.
    pub status: Value,
}

/// Secret of a plugged-in authority (ID-039).
pub const PLUGGED_IN: &str = "cacerts";
/// Secret of the authority that the operator made (ID-040).
pub const SELF_SIGNED: &str = "weft-ca-secret";

/// ClusterRole that owns everything rendered, so that it goes with the installation.
pub const ANCHOR: &str = "weft-anchor";
/// Service of the injector and its MutatingWebhookConfiguration.
pub const INJECTOR: &str = "weft-injector";
/// ValidatingWebhookConfiguration of the injector.
pub const VALIDATOR: &str = "weft-validator";

/// Starts all watches; the names that [`Event::Synced`] will tell.
pub fn start(client: &Client, settings: &Settings, tell: &mpsc::Sender<Event>) -> Vec<&'static str> {
    let mut started = Started {
        client,
        tell,
        names: Vec::new(),
    };
    started.all("namespaces", Object::Namespace);
    started.all("services", Object::Service);
    started.all("endpointslices", Object::EndpointSlice);
    started.all("pods", Object::Pod);
    started.all("nodes", Object::Node);
    started.all("serviceaccounts", Object::ServiceAccount);
    started.all("deployments", Object::Deployment);
    started.all("replicasets", Object::ReplicaSet);
    started.all("statefulsets", Object::StatefulSet);
    started.all("daemonsets", Object::DaemonSet);
    started.all("jobs", Object::Job);
    started.all("cronjobs", Object::CronJob);
    let own: Api<ConfigMap> = Api::namespaced(client.clone(), &settings.namespace);
    let name = of_revision("weft", &settings.revision);
    started.watch(
        "mesh config",
        own,
        watcher::Config::default().fields(&format!("metadata.name={name}")),
        |id, object| {
            vec![match object {
                Some(map) => Event::World(world::Event::Apply(Object::MeshConfig(map))),
                None => gone(world::Kind::MeshConfig, id),
            }]
        },
    );
    let managed = watcher::Config::default().labels(&format!("{MANAGED_LABEL}=true"));
    started.watch(
        "configmaps",
        Api::<ConfigMap>::all(client.clone()),
        managed.clone(),
        |id, object| vec![Event::ConfigMap(id, object)],
    );
    started.watch("secrets", Api::<Secret>::all(client.clone()), managed, |id, object| {
        vec![Event::Secret(id, object)]
    });
    for name in [PLUGGED_IN, SELF_SIGNED] {
        let own: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        started.watch(name, own, config, move |_, object| vec![Event::Authority(name, object)]);
    }
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", of_revision(ANCHOR, &settings.revision)));
    started.watch(
        "anchor",
        Api::<ClusterRole>::all(client.clone()),
        config,
        |_, object| vec![Event::Anchor(object.and_then(|o| o.metadata.uid.clone()))],
    );
    for (name, base) in [("injector webhook", INJECTOR), ("validator webhook", VALIDATOR)] {
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", of_revision(base, &settings.revision)));
        if base == INJECTOR {
            let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
            started.watch(name, api, config, |_, _| vec![Event::Webhooks]);
        } else {
            let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
            started.watch(name, api, config, |_, _| vec![Event::Webhooks]);
        }
    }
    for (group, kind, versions) in KINDS {
        started.mesh(group, kind, versions[0]);
    }
    started.names
}

/// Watches of Secrets and ConfigMaps that mesh objects name: one by one, because no others are of interest (DLV-147).
#[derive(Debug, Default)]
pub struct NamedCredentials(BTreeMap<ObjectRef, tokio::task::JoinHandle<()>>);

impl NamedCredentials {
    /// Watches these and no others; those that are watched no more.
    pub fn follow(
        &mut self,
        client: &Client,
        named: &BTreeSet<ObjectRef>,
        tell: &mpsc::Sender<Event>,
    ) -> Vec<ObjectRef> {
        let gone: Vec<ObjectRef> = self.0.keys().filter(|id| !named.contains(*id)).cloned().collect();
        for id in &gone {
            if let Some(task) = self.0.remove(id) {
                task.abort();
            }
        }
        for id in named {
            if !self.0.contains_key(id) {
                let (client, reference, tell) = (client.clone(), id.clone(), tell.clone());
                let task = match reference.kind {
                    Kind::ConfigMap => {
                        tokio::spawn(follow_credential(client, reference, Credential::of_config_map, tell))
                    }
                    _ => tokio::spawn(follow_credential(client, reference, Credential::of, tell)),
                };
                self.0.insert(id.clone(), task);
            }
        }
        gone
    }

    /// Whether an object is watched.
    #[must_use]
    pub fn has(&self, reference: &ObjectRef) -> bool {
        self.0.contains_key(reference)
    }
}

/// Tells what an object holds, and when it is not there.
async fn follow_credential<K>(
    client: Client,
    reference: ObjectRef,
    read: fn(&K) -> Credential,
    tell: mpsc::Sender<Event>,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &reference.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", reference.name));
    let mut stream = watcher(api, config).boxed();
    let mut pause = FIRST_PAUSE;
    // What was told last; nothing yet.
    let mut told: Option<Option<Arc<Credential>>> = None;
    let mut listed = None;
    while let Some(event) = stream.next().await {
        let content = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = Some(Arc::new(read(&object)));
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(object)) => Some(Arc::new(read(&object))),
            Ok(watcher::Event::Delete(_)) => None,
            Err(error) => {
                tracing::warn!(object = %reference, %error, "watch of a credential failed; it starts again");
                pause = (pause * 2).min(LONGEST_PAUSE);
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        pause = FIRST_PAUSE;
        if told.as_ref() == Some(&content) {
            continue;
        }
        told = Some(content.clone());
        let object = Object::Credential {
            reference: reference.clone(),
            content,
        };
        if tell.send(Event::World(world::Event::Apply(object))).await.is_err() {
            return;
        }
    }
}

/// Name of an object of the installation: with the revision as a suffix unless that is the unnamed one.
#[must_use]
pub fn of_revision(base: &str, revision: &str) -> String {
    match revision {
        DEFAULT_REVISION => base.to_owned(),
        revision => format!("{base}-{revision}"),
    }
}

struct Started<'a> {
    client: &'a Client,
    tell: &'a mpsc::Sender<Event>,
    names: Vec<&'static str>,
}

impl Started<'_> {
    /// A kind of Kubernetes in all namespaces.
    fn all<K>(&mut self, name: &'static str, wrap: fn(Arc<K>) -> Object)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Default + DeserializeOwned + PartialEq + Send + Sync + 'static,
    {
        let empty = wrap(Arc::new(K::default())).reference().kind;
        let api = Api::<K>::all(self.client.clone());
        self.watch(name, api, watcher::Config::default(), move |id, object| {
            vec![match object {
                Some(object) => Event::World(world::Event::Apply(wrap(object))),
                None => gone(empty, id),
            }]
        });
    }

    /// A mesh kind, whatever its objects hold: one that does not fit is told of as malformed.
    fn mesh(&mut self, group: &str, kind: &'static str, version: &str) {
        let resource = mesh_resource(group, kind, version);
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut seen: BTreeMap<Id, (Value, Observed)> = BTreeMap::new();
        self.watch(kind, api, watcher::Config::default(), move |id, object| {
            let Some(object) = object else {
                seen.remove(&id);
                let reference = mesh_object(&Value::Null, kind, &id.0, &id.1).reference();
                return vec![
                    Event::World(world::Event::Delete(reference.clone())),
                    Event::Status(reference, None),
                ];
            };
            let mut value = serde_json::to_value(&*object).unwrap_or_default();
            let status = value
                .as_object_mut()
                .and_then(|o| o.remove("status"))
                .unwrap_or_default();
            // What was allocated before is allocated again (SE-032).
            if kind == "ServiceEntry"
                && let Some(addresses) = status.get("addresses")
            {
                value["status"] = serde_json::json!({ "addresses": addresses });
            }
            let observed = Observed {
                generation: object.metadata.generation,
                status,
            };
            let (before, status_before) = seen.get(&id).map_or((None, None), |(v, o)| (Some(v), Some(o)));
            let mut events = Vec::new();
            let reference = ObjectRef {
                namespace: id.0.clone(),
                name: id.1.clone(),
                ..kind_reference(kind)
            };
            if before != Some(&value) {
                let object = mesh_object(&value, kind, &id.0, &id.1);
                events.push(Event::World(world::Event::Apply(object)));
            }
            if status_before != Some(&observed) {
                events.push(Event::Status(reference, Some(observed.clone())));
            }
            seen.insert(id, (value, observed));
            events
        });
    }

    /// Events are made of what differs from what was seen before.
    fn watch<K, F>(&mut self, name: &'static str, api: Api<K>, config: watcher::Config, events: F)
    where
        K: Resource + Clone + Debug + DeserializeOwned + PartialEq + Send + Sync + 'static,
        F: FnMut(Id, Option<Arc<K>>) -> Vec<Event> + Send + 'static,
    {
        self.names.push(name);
        tokio::spawn(follow(name, api, config, events, self.tell.clone()));
    }
}

async fn follow<K, F>(
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut events: F,
    tell: mpsc::Sender<Event>,
) where
    K: Resource + Clone + Debug + DeserializeOwned + PartialEq + Send + Sync + 'static,
    F: FnMut(Id, Option<Arc<K>>) -> Vec<Event> + Send + 'static,
{
    let mut seen: BTreeMap<Id, Arc<K>> = BTreeMap::new();
    let mut listed: BTreeMap<Id, Arc<K>> = BTreeMap::new();
    let mut stream = watcher(api, config).boxed();
    let mut pause = FIRST_PAUSE;
    let mut synced = false;
    while let Some(event) = stream.next().await {
        let mut out = Vec::new();
        let mut is_complete = false;
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                let (id, object) = slim(object);
                listed.insert(id, object);
            }
            Ok(watcher::Event::InitDone) => {
                let fresh = std::mem::take(&mut listed);
                for id in seen.keys().filter(|id| !fresh.contains_key(*id)) {
                    out.extend(events(id.clone(), None));
                }
                for (id, object) in &fresh {
                    if seen.get(id) != Some(object) {
                        out.extend(events(id.clone(), Some(object.clone())));
                    }
                }
                seen = fresh;
                is_complete = true;
                pause = FIRST_PAUSE;
            }
            Ok(watcher::Event::Apply(object)) => {
                let (id, object) = slim(object);
                if seen.get(&id) != Some(&object) {
                    out.extend(events(id.clone(), Some(object.clone())));
                    seen.insert(id, object);
                }
                pause = FIRST_PAUSE;
            }
            Ok(watcher::Event::Delete(object)) => {
                let (id, _) = slim(object);
                if seen.remove(&id).is_some() {
                    out.extend(events(id, None));
                }
            }
            Err(error) => {
                let wait = if is_missing(&error) {
                    // Without the kind there is nothing to wait for.
                    is_complete = true;
                    tracing::debug!(kind = name, "the kind does not exist");
                    MISSING_KIND
                } else {
                    tracing::warn!(kind = name, %error, "watch failed; it starts again");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                };
                if is_complete && !synced {
                    synced = true;
                    if tell.send(Event::Synced(name)).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(wait).await;
                continue;
            }
        }
        if is_complete && !synced {
            synced = true;
            out.push(Event::Synced(name));
        }
        for event in out {
            if tell.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Without what changes without meaning, so that equal objects compare equal: a nudge is not news (DLV-051).
fn slim<K: Resource>(mut object: K) -> (Id, Arc<K>) {
    let id = (object.namespace().unwrap_or_default(), object.name_any());
    let metadata = object.meta_mut();
    metadata.managed_fields = None;
    metadata.resource_version = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(TARGET_REV_ANNOTATION);
    }
    (id, Arc::new(object))
}

fn is_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

fn gone(kind: world::Kind, (namespace, name): Id) -> Event {
    Event::World(world::Event::Delete(ObjectRef { kind, namespace, name }))
}

fn kind_reference(kind: &str) -> ObjectRef {
    mesh_object(&Value::Null, kind, "", "").reference()
}

/// The API of a mesh kind.
#[must_use]
pub fn mesh_resource(group: &str, kind: &str, version: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// How long a kind may be there unnoticed: OPS-032 allows 30 s.
pub const MISSING_KIND: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// An API server that is back has its control plane back soon after.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use weft_crds::object::KINDS;

    use super::*;

    // spec: SM-128, AUTHN-001
    #[test]
    fn kinds_are_asked_for_by_the_names_of_their_definitions() {
        let definitions = weft_crds::schema::definitions();
        for (group, kind, versions) in KINDS {
            let mut all = definitions.iter().map(|(_, definition)| &definition.spec.names);
            let names = all.find(|names| names.kind == kind).expect("a definition");
            assert_eq!(mesh_resource(group, kind, versions[0]).plural, names.plural);
        }
    }
}
