//! What the operator knows of the cluster: a store that takes events in any order, and the immutable snapshot that
//! is rendered from.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_bundle::key::KeyInputs;
use weft_bundle::pack::Limits;
use weft_crds::{
    AuthorizationPolicy, DestinationRule, Gateway, MeshConfig, PeerAuthentication, ServiceEntry, Sidecar,
    VirtualService, WorkloadEntry,
};

use crate::identity::Profile;

mod credential;
pub mod pod;
pub mod read;

pub use credential::Credential;

/// Whether labels hold all that a selector asks for.
#[must_use]
pub fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Kinds that rendering depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds")]
pub enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Pod,
    Node,
    ServiceAccount,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
    CronJob,
    VirtualService,
    DestinationRule,
    Gateway,
    ServiceEntry,
    WorkloadEntry,
    Sidecar,
    PeerAuthentication,
    AuthorizationPolicy,
    /// A Secret with certificates that a mesh object names.
    Secret,
    /// A ConfigMap with authorities that a mesh object names.
    ConfigMap,
    /// ConfigMap `weft` with the mesh config.
    MeshConfig,
    /// ConfigMap `weft-cfg-<key>-0` for the inputs in its manifest (DLV-017).
    ConfigManifest,
}

/// An object by kind, namespace (empty where there is none) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// An object that rendering depends on.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds")]
pub enum Object {
    Namespace(Arc<Namespace>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    ServiceAccount(Arc<ServiceAccount>),
    Deployment(Arc<Deployment>),
    ReplicaSet(Arc<ReplicaSet>),
    StatefulSet(Arc<StatefulSet>),
    DaemonSet(Arc<DaemonSet>),
    Job(Arc<Job>),
    CronJob(Arc<CronJob>),
    VirtualService(Arc<VirtualService>),
    DestinationRule(Arc<DestinationRule>),
    Gateway(Arc<Gateway>),
    ServiceEntry(Arc<ServiceEntry>),
    WorkloadEntry(Arc<WorkloadEntry>),
    Sidecar(Arc<Sidecar>),
    PeerAuthentication(Arc<PeerAuthentication>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    /// A Secret or ConfigMap. Without content: it is known not to be there.
    Credential {
        reference: ObjectRef,
        content: Option<Arc<Credential>>,
    },
    MeshConfig(Arc<ConfigMap>),
    ConfigManifest {
        namespace: String,
        name: String,
        inputs: Arc<KeyInputs>,
    },
    /// An object of a mesh kind whose fields could not be read.
    Malformed {
        reference: ObjectRef,
        error: String,
    },
}

impl Object {
    /// What it is called.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        let of = |kind, metadata: &ObjectMeta| ObjectRef {
            kind,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        };
        match self {
            Self::Namespace(o) => of(Kind::Namespace, &o.metadata),
            Self::Service(o) => of(Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => of(Kind::EndpointSlice, &o.metadata),
            Self::Pod(o) => of(Kind::Pod, &o.metadata),
            Self::Node(o) => of(Kind::Node, &o.metadata),
            Self::ServiceAccount(o) => of(Kind::ServiceAccount, &o.metadata),
            Self::Deployment(o) => of(Kind::Deployment, &o.metadata),
            Self::ReplicaSet(o) => of(Kind::ReplicaSet, &o.metadata),
            Self::StatefulSet(o) => of(Kind::StatefulSet, &o.metadata),
            Self::DaemonSet(o) => of(Kind::DaemonSet, &o.metadata),
            Self::Job(o) => of(Kind::Job, &o.metadata),
            Self::CronJob(o) => of(Kind::CronJob, &o.metadata),
            Self::VirtualService(o) => of(Kind::VirtualService, &o.metadata),
            Self::DestinationRule(o) => of(Kind::DestinationRule, &o.metadata),
            Self::Gateway(o) => of(Kind::Gateway, &o.metadata),
            Self::ServiceEntry(o) => of(Kind::ServiceEntry, &o.metadata),
            Self::WorkloadEntry(o) => of(Kind::WorkloadEntry, &o.metadata),
            Self::Sidecar(o) => of(Kind::Sidecar, &o.metadata),
            Self::PeerAuthentication(o) => of(Kind::PeerAuthentication, &o.metadata),
            Self::AuthorizationPolicy(o) => of(Kind::AuthorizationPolicy, &o.metadata),
            Self::MeshConfig(o) => of(Kind::MeshConfig, &o.metadata),
            Self::ConfigManifest { namespace, name, .. } => ObjectRef {
                kind: Kind::ConfigManifest,
                namespace: namespace.clone(),
                name: name.clone(),
            },
            Self::Credential { reference, .. } | Self::Malformed { reference, .. } => reference.clone(),
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone)]
pub enum Event {
    /// It is as given.
    Apply(Object),
    /// It is gone.
    Delete(ObjectRef),
}

/// Settings of the installation.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Revision; `default` for the unnamed one.
    pub revision: String,
    /// DNS suffix of the cluster.
    pub cluster_domain: String,
    /// Namespaces that are never injected, beside those of INJ-040.
    pub excluded_namespaces: Vec<String>,
    /// Setting `injection.enabledByDefault` (INJ-015).
    pub enabled_by_default: bool,
    /// Setting `delivery.ignoredLabels` (DLV-011).
    pub ignored_labels: Vec<String>,
    /// Trust domain that replaces the mesh config's (LOC-007).
    pub trust_domain: Option<String>,
    /// Loopback port of the explicit HTTP proxy, where pods are not redirected (LOC-022).
    pub http_proxy_port: Option<u16>,
    /// Servers do not look at a peer's trust domain: `identity.skipValidateTrustDomain` (ID-084).
    pub skip_validate_trust_domain: bool,
    /// Sizes.
    pub limits: Limits,
    /// How identities are issued.
    pub identity: Profile,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "weft-system".into(),
            revision: weft_bundle::key::DEFAULT_REVISION.into(),
            cluster_domain: "cluster.local".into(),
            excluded_namespaces: Vec::new(),
            enabled_by_default: false,
            ignored_labels: Vec::new(),
            trust_domain: None,
            http_proxy_port: None,
            skip_validate_trust_domain: false,
            limits: Limits::default(),
            identity: Profile::default(),
        }
    }
}

/// What has been applied and not deleted, kept as a snapshot that each event brings up to date.
#[derive(Debug)]
pub struct Store {
    world: Arc<World>,
    mesh_error: Option<String>,
}

impl Store {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let world = World {
            settings: Arc::new(settings),
            ..World::default()
        };
        Self {
            world: Arc::new(world),
            mesh_error: None,
        }
    }

    /// Takes an event; `false` when it tells nothing new.
    pub fn apply(&mut self, event: Event) -> bool {
        // Copied only while somebody holds the snapshot before.
        let world = Arc::make_mut(&mut self.world);
        match event {
            Event::Apply(object) => {
                let reference = object.reference();
                if let Object::MeshConfig(map) = &object {
                    self.mesh_error = world.take_mesh_config(Some(map)).err();
                }
                world.remove(&reference);
                world.insert(reference, object);
                true
            }
            Event::Delete(reference) => {
                if reference.kind == Kind::MeshConfig {
                    self.mesh_error = world.take_mesh_config(None).err();
                }
                world.remove(&reference)
            }
        }
    }

    /// Whether a workload has pods of its own making and was not there before.
    #[must_use]
    pub fn is_new_template(&self, object: &Object) -> bool {
        !self.world.templates.contains_key(&object.reference()) && pod::template(object).is_some()
    }

    /// Why the mesh config that is stored is not the one in force.
    #[must_use]
    pub fn mesh_error(&self) -> Option<&str> {
        self.mesh_error.as_deref()
    }

    /// A snapshot of everything.
    #[must_use]
    pub fn world(&self) -> Arc<World> {
        self.world.clone()
    }
}

type Id = (String, String);

/// An immutable snapshot; objects are shared with the store.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Settings of the installation.
    pub settings: Arc<Settings>,
    /// Mesh config in force.
    pub mesh: Arc<MeshConfig>,
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By namespace and name.
    pub services: BTreeMap<Id, Arc<Service>>,
    /// By namespace and name of their Service, each in the order of their names.
    pub slices: BTreeMap<Id, Vec<Arc<EndpointSlice>>>,
    /// The Service of each slice.
    owners: BTreeMap<Id, String>,
    /// By namespace and name.
    pub pods: BTreeMap<Id, Arc<Pod>>,
    /// By name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By namespace and name.
    pub accounts: BTreeMap<Id, Arc<ServiceAccount>>,
    /// Templates of workloads.
    pub templates: BTreeMap<ObjectRef, pod::Template>,
    /// By namespace and name.
    pub virtual_services: BTreeMap<Id, Arc<VirtualService>>,
    /// By namespace and name.
    pub destination_rules: BTreeMap<Id, Arc<DestinationRule>>,
    /// By namespace and name.
    pub gateways: BTreeMap<Id, Arc<Gateway>>,
    /// By namespace and name.
    pub service_entries: BTreeMap<Id, Arc<ServiceEntry>>,
    /// By namespace and name.
    pub workload_entries: BTreeMap<Id, Arc<WorkloadEntry>>,
    /// By namespace and name.
    pub sidecars: BTreeMap<Id, Arc<Sidecar>>,
    /// By namespace and name.
    pub peer_authentications: BTreeMap<Id, Arc<PeerAuthentication>>,
    /// By namespace and name.
    pub authorization_policies: BTreeMap<Id, Arc<AuthorizationPolicy>>,
    /// Secrets and ConfigMaps that mesh objects name; `None` for one that is not there.
    pub credentials: BTreeMap<ObjectRef, Option<Arc<Credential>>>,
    /// Inputs of keys that were rendered before, by namespace and name of the ConfigMap.
    pub manifests: BTreeMap<Id, Arc<KeyInputs>>,
    /// Objects that could not be read, with the reason.
    pub malformed: BTreeMap<ObjectRef, String>,
    has_mesh_config: bool,
}

impl World {
    fn insert(&mut self, reference: ObjectRef, object: Object) {
        let id = (reference.namespace.clone(), reference.name.clone());
        match object {
            Object::Namespace(o) => drop(self.namespaces.insert(reference.name, o)),
            Object::Service(o) => drop(self.services.insert(id, o)),
            Object::EndpointSlice(o) => {
                let labels = o.metadata.labels.as_ref();
                let service = labels.and_then(|l| l.get("kubernetes.io/service-name"));
                // Slices without the label, and of names instead of addresses, are nobody's (SM-095).
                if let Some(service) = service.filter(|_| o.address_type != "FQDN").cloned() {
                    let slices = self.slices.entry((reference.namespace, service.clone())).or_default();
                    let position = slices.partition_point(|other| other.metadata.name < o.metadata.name);
                    slices.insert(position, o);
                    self.owners.insert(id, service);
                }
            }
            Object::Pod(o) => drop(self.pods.insert(id, o)),
            Object::Node(o) => drop(self.nodes.insert(reference.name, o)),
            Object::ServiceAccount(o) => drop(self.accounts.insert(id, o)),
            Object::VirtualService(o) => drop(self.virtual_services.insert(id, o)),
            Object::DestinationRule(o) => drop(self.destination_rules.insert(id, o)),
            Object::Gateway(o) => drop(self.gateways.insert(id, o)),
            Object::ServiceEntry(o) => drop(self.service_entries.insert(id, o)),
            Object::WorkloadEntry(o) => drop(self.workload_entries.insert(id, o)),
            Object::Sidecar(o) => drop(self.sidecars.insert(id, o)),
            Object::PeerAuthentication(o) => drop(self.peer_authentications.insert(id, o)),
            Object::AuthorizationPolicy(o) => drop(self.authorization_policies.insert(id, o)),
            Object::Credential { content, .. } => drop(self.credentials.insert(reference, content)),
            Object::ConfigManifest { inputs, .. } => drop(self.manifests.insert(id, inputs)),
            Object::Malformed { reference, error } => drop(self.malformed.insert(reference, error)),
            Object::MeshConfig(_) => self.has_mesh_config = true,
            workload => {
                if let Some(template) = pod::template(&workload) {
                    self.templates.insert(reference, template);
                }
            }
        }
    }

    /// Whether there was such an object.
    fn remove(&mut self, reference: &ObjectRef) -> bool {
        let id = (reference.namespace.clone(), reference.name.clone());
        let was_malformed = self.malformed.remove(reference).is_some();
        let was_there = match reference.kind {
            Kind::Namespace => self.namespaces.remove(&reference.name).is_some(),
            Kind::Service => self.services.remove(&id).is_some(),
            Kind::EndpointSlice => self.remove_slice(&id),
            Kind::Pod => self.pods.remove(&id).is_some(),
            Kind::Node => self.nodes.remove(&reference.name).is_some(),
            Kind::ServiceAccount => self.accounts.remove(&id).is_some(),
            Kind::VirtualService => self.virtual_services.remove(&id).is_some(),
            Kind::DestinationRule => self.destination_rules.remove(&id).is_some(),
            Kind::Gateway => self.gateways.remove(&id).is_some(),
            Kind::ServiceEntry => self.service_entries.remove(&id).is_some(),
            Kind::WorkloadEntry => self.workload_entries.remove(&id).is_some(),
            Kind::Sidecar => self.sidecars.remove(&id).is_some(),
            Kind::PeerAuthentication => self.peer_authentications.remove(&id).is_some(),
            Kind::AuthorizationPolicy => self.authorization_policies.remove(&id).is_some(),
            Kind::Secret | Kind::ConfigMap => self.credentials.remove(reference).is_some(),
            Kind::ConfigManifest => self.manifests.remove(&id).is_some(),
            Kind::MeshConfig => std::mem::take(&mut self.has_mesh_config),
            Kind::Deployment | Kind::ReplicaSet | Kind::StatefulSet | Kind::DaemonSet | Kind::Job | Kind::CronJob => {
                self.templates.remove(reference).is_some()
            }
        };
        was_there || was_malformed
    }

    fn remove_slice(&mut self, id: &Id) -> bool {
        let Some(service) = self.owners.remove(id) else {
            return false;
        };
        let service = (id.0.clone(), service);
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.retain(|slice| slice.metadata.name.as_deref() != Some(&id.1));
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        true
    }

    /// An invalid mesh config leaves the last valid one in force (DLV-085).
    ///
    /// # Errors
    /// Why it is invalid.
    fn take_mesh_config(&mut self, map: Option<&ConfigMap>) -> Result<(), String> {
        let text = map
            .and_then(|m| m.data.as_ref()?.get("mesh"))
            .map_or("", String::as_str);
        let mesh = MeshConfig::parse(text)?;
        let report = mesh.validate();
        if !report.errors.is_empty() {
            return Err(report.message());
        }
        crate::trust::check(&mesh)?;
        self.mesh = Arc::new(mesh);
        Ok(())
    }

    /// Namespace of mesh-wide resources (SM-114).
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        self.mesh
            .root_namespace
            .as_deref()
            .filter(|n| !n.is_empty())
            .unwrap_or(&self.settings.namespace)
    }

    /// Trust domain in force, in the form that identities have (ID-002, ID-003).
    #[must_use]
    pub fn trust_domain(&self) -> String {
        let configured = self
            .settings
            .trust_domain
            .as_deref()
            .or(self.mesh.trust_domain.as_deref());
        configured
            .filter(|d| !d.is_empty())
            .unwrap_or("cluster.local")
            .replace('@', ".")
    }

    /// Further trust domains of the mesh, in the same form (ID-006).
    #[must_use]
    pub fn trust_domain_aliases(&self) -> Vec<String> {
        let aliases = self.mesh.trust_domain_aliases.iter();
        aliases.map(|alias| alias.replace('@', ".")).collect()
    }

    /// Labels of a namespace; none where it is not known.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)?.metadata.labels.as_ref()
    }
}

/// Order of age: creation time, then name, then namespace (SM-129).
#[must_use]
pub fn age(metadata: &ObjectMeta) -> (Option<String>, String, String) {
    (
        metadata.creation_timestamp.as_ref().map(|t| t.0.to_string()),
        metadata.name.clone().unwrap_or_default(),
        metadata.namespace.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: SM-129
    #[test]
    fn the_oldest_is_the_first_made_then_the_first_by_name_then_by_namespace() {
        let of = |time: &str, namespace: &str, name: &str| {
            let object = serde_json::json!({"creationTimestamp": time, "namespace": namespace, "name": name});
            age(&serde_json::from_value(object).expect("metadata"))
        };
        let (early, late) = ("2026-01-01T09:00:00Z", "2026-01-01T10:00:00Z");
        assert!(of(early, "z", "z") < of(late, "a", "a"));
        assert!(of(early, "z", "a") < of(early, "a", "z"));
        assert!(of(early, "a", "a") < of(early, "b", "a"));
    }
}
