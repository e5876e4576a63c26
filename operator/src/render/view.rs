//! What clients see of the mesh: hosts, routes and domains; and what gateways open for those outside of it. Clients of one
//! namespace see the same, but for labels that some object asks for; each gateway has a view of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use weft_bundle::key::{ContainerPort, InterceptionMode, KeyInputs, Template};
use weft_bundle::wire::{ExtraDomain, Host, Listener, RouteTable};
use weft_crds::{DestinationRule, Gateway, MeshConfig, ServiceEntry, Sidecar, VirtualService, WorkloadEntry};

use super::credential::{self, Named};
use super::service::visibility;
use super::sound::Sound;
use super::{Shared, route, same, scope};
use crate::world::ObjectRef;

/// The outbound part of a bundle.
#[derive(Debug, PartialEq, Eq)]
pub struct View {
    /// See [`weft_bundle::wire::Bundle::hosts`].
    pub hosts: Vec<Host>,
    /// See [`weft_bundle::wire::Bundle::routes`].
    pub routes: Vec<RouteTable>,
    /// See [`weft_bundle::wire::Bundle::domains`].
    pub domains: Vec<ExtraDomain>,
    /// See [`weft_bundle::wire::Bundle::listeners`].
    pub listeners: Vec<Listener>,
    /// Objects that policies of the hosts take certificates from.
    pub(super) credentials: Vec<Named>,
    /// TLS that they ask for and that cannot be provided, by rule.
    pub(super) unavailable: BTreeMap<ObjectRef, String>,
}

impl View {
    fn new(shared: &Shared<'_>, inputs: &KeyInputs, sidecar: Option<&Sidecar>) -> Self {
        let (hosts, routes, domains, listeners) = route::hosts(shared, inputs, sidecar);
        Self {
            credentials: credential::of_hosts(&hosts),
            unavailable: credential::unavailable(&hosts),
            hosts,
            routes,
            domains,
            listeners,
        }
    }
}

/// Views by client.
#[derive(Debug, Default)]
pub(super) struct Views {
    common: Arc<Common>,
    /// Labels that some object asks of clients.
    asked: BTreeSet<String>,
    /// VirtualServices by the namespace of the client.
    visible: HashMap<String, Arc<Vec<Arc<VirtualService>>>>,
    seen: HashMap<Client, Seen>,
    round: u64,
    rendered: usize,
}

/// What all views depend on.
#[derive(Debug, Default)]
pub(super) struct Common {
    services: Vec<Arc<Service>>,
    namespaces: Vec<Arc<Namespace>>,
    destination_rules: Vec<Arc<DestinationRule>>,
    service_entries: Vec<Arc<ServiceEntry>>,
    workload_entries: Vec<Arc<WorkloadEntry>>,
}

/// All that a view depends on, of the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Client {
    namespace: String,
    template: Template,
    labels: BTreeMap<String, String>,
    /// Namespace and name of its Sidecar.
    sidecar: Option<(String, String)>,
    /// Of gateways alone: Services may lead to them by name.
    ports: Vec<ContainerPort>,
}

#[derive(Debug)]
struct Seen {
    sidecar: Option<Arc<Sidecar>>,
    common: Arc<Common>,
    /// None for sidecars, which do not depend on any.
    gateways: Option<Arc<Vec<Arc<Gateway>>>>,
    virtual_services: Arc<Vec<Arc<VirtualService>>>,
    view: Arc<View>,
    /// When it was asked for last.
    round: u64,
}

impl Views {
    /// Takes a snapshot.
    pub(super) fn begin(&mut self, shared: &Shared<'_>) {
        let world = shared.world;
        let common = Common {
            services: world.services.values().cloned().collect(),
            namespaces: world.namespaces.values().cloned().collect(),
            destination_rules: shared.sound.sources.destination_rules.to_vec(),
            service_entries: shared.sound.sources.service_entries.to_vec(),
            workload_entries: shared.sound.sources.workload_entries.to_vec(),
        };
        let is_same = same(&common.services, &self.common.services)
            && same(&common.namespaces, &self.common.namespaces)
            && same(&common.destination_rules, &self.common.destination_rules)
            && same(&common.service_entries, &self.common.service_entries)
            && same(&common.workload_entries, &self.common.workload_entries);
        if !is_same {
            self.common = Arc::new(common);
        }
        self.asked = asked(shared.sound, &world.mesh);
        self.visible.clear();
        // What was not asked for in the round before is nobody's any more.
        self.seen.retain(|_, seen| seen.round == self.round);
        self.round += 1;
        self.rendered = 0;
    }

    /// How many views were rendered since the snapshot was taken.
    pub(super) fn rendered(&self) -> usize {
        self.rendered
    }

    /// What the views of this snapshot depend on; another one when any of it is another object.
    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// The view of a workload.
    pub(super) fn of(&mut self, shared: &Shared<'_>, inputs: &KeyInputs) -> Arc<View> {
        let sidecar = scope::sidecar(shared, inputs);
        let is_gateway = inputs.template == Template::Gateway;
        // Services and Gateways select a gateway by any of its labels.
        let asked = inputs
            .labels
            .iter()
            .filter(|(name, _)| is_gateway || self.asked.contains(*name));
        let client = Client {
            namespace: inputs.namespace.clone(),
            template: inputs.template,
            labels: asked.map(|(name, value)| (name.clone(), value.clone())).collect(),
            sidecar: sidecar.map(|sidecar| {
                let metadata = &sidecar.metadata;
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                (text(&metadata.namespace), text(&metadata.name))
            }),
            ports: if is_gateway { inputs.ports.clone() } else { Vec::new() },
        };
        let gateways = is_gateway.then(|| shared.sound.sources.gateways.clone());
        let virtual_services = self
            .visible
            .entry(client.namespace.clone())
            .or_insert_with(|| Arc::new(visible(shared, &client.namespace)))
            .clone();
        let round = self.round;
        if let Some(seen) = self.seen.get_mut(&client)
            && Arc::ptr_eq(&seen.common, &self.common)
            && seen.sidecar.as_ref().map(Arc::as_ptr) == sidecar.map(Arc::as_ptr)
            && seen.gateways.as_ref().map(Arc::as_ptr) == gateways.as_ref().map(Arc::as_ptr)
            && same(&seen.virtual_services, &virtual_services)
        {
            seen.round = round;
            return seen.view.clone();
        }
        // Nothing else is within reach, so that nothing else can be depended on.
        let sound = Sound {
            virtual_services: virtual_services.iter().map(Arc::as_ref).collect(),
            destination_rules: shared.sound.destination_rules.clone(),
            gateways: gateways.iter().flat_map(|list| list.iter().map(Arc::as_ref)).collect(),
            peer_authentications: Vec::new(),
            sources: shared.sound.sources,
        };
        let scope = Shared {
            sound: &sound,
            ..*shared
        };
        let view = View::new(&scope, &client.inputs(), sidecar.map(Arc::as_ref));
        self.rendered += 1;
        debug_assert_eq!(
            view,
            View::new(shared, inputs, sidecar.map(Arc::as_ref)),
            "a view that depends on more than it says"
        );
        let before = self.seen.get(&client).filter(|seen| *seen.view == view);
        let view = before.map_or_else(|| Arc::new(view), |seen| seen.view.clone());
        let seen = Seen {
            sidecar: sidecar.cloned(),
            common: self.common.clone(),
            gateways,
            virtual_services,
            view: view.clone(),
            round,
        };
        self.seen.insert(client, seen);
        view
    }
}

impl Client {
    fn inputs(&self) -> KeyInputs {
        KeyInputs {
            annotations: BTreeMap::new(),
            interception: InterceptionMode::default(),
            labels: self.labels.clone(),
            namespace: self.namespace.clone(),
            ports: self.ports.clone(),
            revision: String::new(),
            service_account: String::new(),
            template: self.template,
            workload: String::new(),
        }
    }
}

/// VirtualServices that clients of a namespace see, and those without hosts, which others delegate to.
fn visible(shared: &Shared<'_>, namespace: &str) -> Vec<Arc<VirtualService>> {
    let is_visible = |service: &&Arc<VirtualService>| {
        let own = service.metadata.namespace.as_deref().unwrap_or_default();
        let list = route::export_to(shared, service);
        service.spec.hosts.is_empty() || visibility(list, own).is_none_or(|to| to.contains(namespace))
    };
    let all = shared.sound.sources.virtual_services.iter();
    all.filter(is_visible).cloned().collect()
}

/// Names of labels that rules ask of the client.
fn asked(sound: &Sound<'_>, mesh: &MeshConfig) -> BTreeSet<String> {
    let of_rules = sound
        .destination_rules
        .iter()
        .filter_map(|rule| rule.spec.workload_selector.as_ref())
        .flat_map(|selector| selector.match_labels.keys());
    let of_routes = sound.virtual_services.iter().flat_map(|service| {
        let http = service.spec.http.iter().flat_map(|r| &r.matches);
        let tls = service.spec.tls.iter().flat_map(|r| &r.matches);
        let tcp = service.spec.tcp.iter().flat_map(|r| &r.matches);
        let http = http.flat_map(|m| m.source_labels.keys());
        let tls = tls.flat_map(|m| m.source_labels.keys());
        http.chain(tls).chain(tcp.flat_map(|m| m.source_labels.keys()))
    });
    let policies = sound.destination_rules.iter().flat_map(|rule| {
        let of_subsets = rule.spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref());
        rule.spec.traffic_policy.iter().chain(of_subsets)
    });
    let of_policies = policies.flat_map(|policy| {
        let of_ports = policy.port_level_settings.iter().map(|p| p.load_balancer.as_ref());
        of_ports.chain([policy.load_balancer.as_ref()]).flatten()
    });
    // What endpoints are compared with by `failoverPriority` (DR-061).
    let of_localities = of_policies.flat_map(|balancer| {
        let localities = balancer.locality_lb_setting.iter().flat_map(|l| &l.failover_priority);
        let zones = balancer.zone_aware_lb_setting.iter().flat_map(|z| &z.failover_priority);
        localities.chain(zones)
    });
    let of_mesh = mesh.locality_lb_setting.iter().flat_map(|l| &l.failover_priority);
    let of_mesh = of_mesh.chain(mesh.zone_aware_lb_setting.iter().flat_map(|z| &z.failover_priority));
    let named = of_localities.chain(of_mesh).filter(|entry| !entry.contains('='));
    of_rules.chain(of_routes).chain(named).cloned().collect()
}
