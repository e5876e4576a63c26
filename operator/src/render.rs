//! From a snapshot of the cluster to the files of its proxies: pure, without I/O, clock and randomness (DLV-002).
//!
//! A [`Renderer`] remembers what it rendered, and from which objects: each step is done again when one of its inputs
//! is another object than before, and what comes out equal to the time before is the same value as before, so that
//! the steps behind it are not done again. Objects never change: another one has another address, and an address that
//! is remembered is not given to another one. What a renderer with a past renders is what one without would render.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_bundle::key::{KeyInputs, Template};
use weft_bundle::pack::{Files, HostInput, Places};
use weft_bundle::wire::Bundle;

use crate::world::{ObjectRef, Settings, World, pod};

mod allocate;
mod authorization;
mod config;
mod credential;
mod endpoint;
mod gateway;
mod inbound;
mod keys;
mod mounts;
mod policy;
mod presence;
mod route;
mod scope;
mod service;
mod sound;
#[cfg(test)]
mod stage;
mod view;

pub use credential::RenderedCredentials;
pub use mounts::Mounts;
use sound::Sound;
pub use view::View;

/// A key in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigRef {
    /// Namespace.
    pub namespace: String,
    /// Key (DLV-010).
    pub key: String,
}

/// A service account that needs an identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityRef {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
}

/// The configuration of one key.
#[derive(Debug, PartialEq, Eq)]
pub struct RenderedConfig {
    own: config::Own,
    view: Arc<View>,
    /// What its key was computed from.
    pub inputs: Arc<KeyInputs>,
    /// Revision (DLV-021).
    pub revision: String,
    /// Contents of its ConfigMaps.
    pub shards: Vec<Arc<Files>>,
}

impl RenderedConfig {
    /// Its content.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        self.own.bundle(&self.view)
    }
}

/// The endpoints of one namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct RenderedEndpoints {
    /// Revision (DLV-021).
    pub revision: String,
    /// Contents of its ConfigMaps.
    pub shards: Vec<Arc<Files>>,
    /// What was packed.
    pub hosts: Vec<Arc<HostInput>>,
    /// Places of the nodes, and of the proxies where that matters (DLV-014).
    pub places: Places,
}

/// An injected pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// The key it mounts.
    pub key: String,
    /// Address, once it has one.
    pub address: Option<std::net::IpAddr>,
    /// Port of its proxy's status (DLV-090).
    pub status_port: u16,
    /// It is on its way out.
    pub terminating: bool,
    /// It is bound to a node and has not ended (DLV-059).
    pub running: bool,
    /// All its containers have ended for good.
    pub ended: bool,
    /// Shards that it mounts (DLV-032).
    pub mounts: Mounts,
}

/// What became of a mesh object (OPS-120).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectReport {
    /// Generation that was looked at.
    pub generation: Option<i64>,
    /// Why it is ignored; `None` when it is accepted. Reason and message.
    pub refused: Option<(&'static str, String)>,
    /// What it refers to and is not there. Reason and message.
    pub unresolved: Option<(&'static str, String)>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Addresses that were allocated to its hosts (SE-032).
    pub addresses: Vec<weft_crds::service_entry::AllocatedAddress>,
}

/// Something that could not be rendered; its last version stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderFailure {
    /// Namespace.
    pub namespace: String,
    /// Key; `None` for endpoints.
    pub key: Option<String>,
    /// Why.
    pub message: String,
}

/// Everything that follows from a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Configuration by key.
    pub configs: BTreeMap<ConfigRef, Arc<RenderedConfig>>,
    /// Endpoints by namespace.
    pub endpoints: BTreeMap<String, Arc<RenderedEndpoints>>,
    /// Credentials by key, of those that name any.
    pub credentials: BTreeMap<ConfigRef, RenderedCredentials>,
    /// Secrets and ConfigMaps that they are copied from.
    pub named_credentials: BTreeSet<ObjectRef>,
    /// Service accounts that need an identity.
    pub identities: BTreeSet<IdentityRef>,
    /// Namespaces with injection or injected pods.
    pub meshed_namespaces: BTreeSet<String>,
    /// Injected pods by namespace and name.
    pub pods: BTreeMap<(String, String), PodFacts>,
    /// Pods with a key that no inputs explain, and that key (DLV-017).
    pub unexplained: BTreeMap<(String, String), String>,
    /// What became of mesh objects.
    pub reports: BTreeMap<ObjectRef, ObjectReport>,
    /// What could not be rendered.
    pub failures: Vec<RenderFailure>,
    /// What had to be done for it.
    pub work: Work,
}

/// Steps that were done, and not remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Objects validated.
    pub verdicts: usize,
    /// Views of the mesh rendered.
    pub views: usize,
    /// Configurations of keys packed.
    pub configs: usize,
    /// Hosts whose endpoints were read.
    pub hosts: usize,
    /// Namespaces whose endpoints were packed.
    pub namespaces: usize,
}

/// Renders snapshots.
#[derive(Debug, Default)]
pub struct Renderer {
    globals: Option<(Arc<Settings>, Arc<weft_crds::MeshConfig>)>,
    verdicts: sound::Verdicts,
    keys: keys::Keys,
    views: view::Views,
    configs: config::Configs,
    presence: presence::Presence,
    credentials: credential::Credentials,
}

impl Renderer {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Renders a snapshot.
    pub fn render(&mut self, world: &World) -> Output {
        let is_same = |(settings, mesh): &(Arc<Settings>, Arc<weft_crds::MeshConfig>)| {
            Arc::ptr_eq(settings, &world.settings) && Arc::ptr_eq(mesh, &world.mesh)
        };
        if !self.globals.as_ref().is_some_and(is_same) {
            // Everything reads them: only what compares by value may stay.
            self.globals = Some((world.settings.clone(), world.mesh.clone()));
            (self.keys, self.views) = Default::default();
            self.presence.forget_hosts();
        }
        let mut output = Output::default();
        let keys = self.keys.collect(world, &mut output);
        let injected = |ns: &&String| pod::namespace_is_injected(ns, world);
        output.meshed_namespaces = world.namespaces.keys().filter(injected).cloned().collect();
        let namespaces = keys.keys().map(|key| key.namespace.clone());
        output.meshed_namespaces.extend(namespaces);
        let namespaces = output.pods.keys().map(|(namespace, _)| namespace.clone());
        output.meshed_namespaces.extend(namespaces);
        for (namespace, name) in world.accounts.keys() {
            if output.meshed_namespaces.contains(namespace) {
                let identity = IdentityRef {
                    namespace: namespace.clone(),
                    service_account: name.clone(),
                };
                output.identities.insert(identity);
            }
        }
        output.work.verdicts = self.verdicts.judge(world);
        self.verdicts.report(world, &mut output.reports);
        let sound = self.verdicts.sound();
        let services = service::Services::new(world, sound.sources);
        let shared = Shared {
            world,
            sound: &sound,
            services: &services,
        };
        self.views.begin(&shared);
        let gateways: Vec<_> = keys
            .values()
            .filter(|k| k.template == Template::Gateway)
            .cloned()
            .collect();
        self.configs.render(&shared, &mut self.views, keys, &mut output);
        output.work.views = self.views.rendered();
        let narrowest = mounts::Narrowest::of(&output.pods, &world.settings.limits);
        self.presence.render(&shared, &narrowest, &mut output);
        route::resolve(&shared, &mut output.reports);
        scope::report(world, sound.sources.sidecars, &mut output.reports);
        service::report(&shared, &mut output.reports);
        authorization::report(&shared, &mut output.reports);
        gateway::report(&shared, &gateways, &mut output.reports);
        self.credentials
            .render(&shared, self.configs.views(), &narrowest, &mut output);
        output
    }
}

/// What all keys of one snapshot share.
#[derive(Clone, Copy)]
struct Shared<'a> {
    world: &'a World,
    sound: &'a Sound<'a>,
    services: &'a service::Services<'a>,
}

/// Whether two lists hold the same objects.
fn same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| Arc::ptr_eq(a, b))
}
