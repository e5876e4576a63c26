//! Endpoints of each namespace, rendered again where one of their objects is another one (DLV-110).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use weft_bundle::pack::{self, HostInput, Places};
use weft_crds::destination_rule::{TrafficPolicy, ZoneAwareLoadBalancerSetting};
use weft_crds::{PeerAuthentication, ServiceEntry, WorkloadEntry};

use super::endpoint::{self, Members, Pods};
use super::mounts::Narrowest;
use super::scope::Imports;
use super::service::Registered;
use super::{Output, RenderFailure, RenderedEndpoints, Shared, View, same};
use crate::world::World;

/// What was rendered.
#[derive(Debug, Default)]
pub(super) struct Presence {
    localities: Arc<BTreeMap<String, String>>,
    members: HashMap<String, Arc<Members>>,
    hosts: HashMap<HostRef, SeenHost>,
    namespaces: HashMap<String, SeenNamespace>,
}

/// A host, and the namespace that defines it.
type HostRef = (String, String);

#[derive(Debug)]
struct SeenHost {
    from: HostSources,
    input: Arc<HostInput>,
}

/// Everything that a host's endpoints are read from.
#[derive(Debug)]
struct HostSources {
    service: Option<Arc<Service>>,
    entries: Vec<Arc<ServiceEntry>>,
    slices: Vec<Arc<EndpointSlice>>,
    /// The pods that have the slices' addresses.
    targets: Vec<Arc<Pod>>,
    members: Arc<Members>,
    localities: Arc<BTreeMap<String, String>>,
    policies: Arc<Vec<Arc<PeerAuthentication>>>,
}

impl PartialEq for HostSources {
    fn eq(&self, other: &Self) -> bool {
        self.service.as_ref().map(Arc::as_ptr) == other.service.as_ref().map(Arc::as_ptr)
            && same(&self.entries, &other.entries)
            && same(&self.slices, &other.slices)
            && same(&self.targets, &other.targets)
            && Arc::ptr_eq(&self.members, &other.members)
            && Arc::ptr_eq(&self.localities, &other.localities)
            && Arc::ptr_eq(&self.policies, &other.policies)
    }
}

#[derive(Debug)]
struct SeenNamespace {
    hosts: Vec<Arc<HostInput>>,
    places: Places,
    limits: pack::Limits,
    result: Result<Arc<RenderedEndpoints>, String>,
}

impl Presence {
    /// The mesh config is another one: hosts are read again. What compares by value stays.
    pub(super) fn forget_hosts(&mut self) {
        for seen in self.hosts.values_mut() {
            seen.from.localities = Arc::default();
        }
    }

    /// Renders the endpoints of all meshed namespaces.
    pub(super) fn render(&mut self, shared: &Shared<'_>, narrowest: &Narrowest, output: &mut Output) {
        let world = shared.world;
        let localities = endpoint::localities(world);
        if localities != *self.localities {
            self.localities = Arc::new(localities);
        }
        self.take_members(world, shared.sound.sources.workload_entries);
        let pods = endpoint::by_address(world);
        let counts_proxies = is_zone_aware(shared);
        let views = views(output);
        let mut hosts: HashMap<HostRef, SeenHost> = HashMap::new();
        for namespace in &output.meshed_namespaces {
            let called = called(shared, namespace, views.get(namespace.as_str()).map(Vec::as_slice));
            let inputs = called.into_values().map(|service| {
                let id = (service.host.clone(), service.namespace.to_owned());
                match hosts.get(&id) {
                    Some(seen) => seen.input.clone(),
                    None => {
                        let seen = self.host(shared, service, &pods, &mut output.work.hosts);
                        let input = seen.input.clone();
                        hosts.insert(id, seen);
                        input
                    }
                }
            });
            let inputs = inputs.collect();
            let work = &mut output.work.namespaces;
            let limits = pack::Limits {
                endpoint_shards: narrowest.endpoints(namespace, &world.settings.limits),
                ..world.settings.limits
            };
            match self.namespace(namespace, inputs, counts_proxies, &limits, work) {
                Ok(rendered) => drop(output.endpoints.insert(namespace.clone(), rendered)),
                Err(message) => output.failures.push(RenderFailure {
                    namespace: namespace.clone(),
                    key: None,
                    message,
                }),
            }
        }
        self.hosts = hosts;
        self.namespaces
            .retain(|namespace, _| output.meshed_namespaces.contains(namespace));
    }

    fn take_members(&mut self, world: &World, entries: &[Arc<WorkloadEntry>]) {
        let mut members: HashMap<&str, Members> = HashMap::new();
        for ((namespace, _), pod) in &world.pods {
            members.entry(namespace).or_default().pods.push(pod.clone());
        }
        for template in world.templates.values() {
            let of = members.entry(&template.namespace).or_default();
            of.templates.push(template.pod.clone());
        }
        for entry in entries {
            let of = members
                .entry(entry.metadata.namespace.as_deref().unwrap_or_default())
                .or_default();
            of.workload_entries.push(entry.clone());
        }
        let mut before = std::mem::take(&mut self.members);
        for (namespace, members) in members {
            let is_same = |seen: &Arc<Members>| {
                same(&seen.pods, &members.pods)
                    && same(&seen.templates, &members.templates)
                    && same(&seen.workload_entries, &members.workload_entries)
            };
            let kept = before.remove(namespace).filter(is_same);
            let members = kept.unwrap_or_else(|| Arc::new(members));
            self.members.insert(namespace.to_owned(), members);
        }
    }

    fn host(&mut self, shared: &Shared<'_>, service: &Registered<'_>, pods: &Pods<'_>, read: &mut usize) -> SeenHost {
        let world = shared.world;
        let id = (service.namespace.to_owned(), service.name.clone());
        let slices = world.slices.get(&id).filter(|_| service.service.is_some());
        let slices = slices.cloned().unwrap_or_default();
        let addresses: BTreeSet<_> = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|address| address.parse().ok())
            .collect();
        let from = HostSources {
            service: service.service.and_then(|_| world.services.get(&id).cloned()),
            entries: service.entries.iter().map(|entry| Arc::clone(entry)).collect(),
            targets: addresses.iter().filter_map(|a| pods.get(a).copied().cloned()).collect(),
            slices,
            members: self.members.get(service.namespace).cloned().unwrap_or_default(),
            localities: self.localities.clone(),
            policies: shared.sound.sources.peer_authentications.clone(),
        };
        let before = self.hosts.remove(&(service.host.clone(), service.namespace.to_owned()));
        if let Some(seen) = before.as_ref().filter(|seen| seen.from == from) {
            let input = seen.input.clone();
            return SeenHost { from, input };
        }
        *read += 1;
        let input = endpoint::host(shared, service, &from.members, pods, &self.localities);
        let kept = before.map(|seen| seen.input).filter(|before| **before == input);
        let input = kept.unwrap_or_else(|| Arc::new(input));
        SeenHost { from, input }
    }

    fn namespace(
        &mut self,
        namespace: &str,
        hosts: Vec<Arc<HostInput>>,
        counts_proxies: bool,
        limits: &pack::Limits,
        done: &mut usize,
    ) -> Result<Arc<RenderedEndpoints>, String> {
        let members = self.members.get(namespace);
        let places = members.map(|members| Places {
            nodes: members.nodes(&self.localities),
            proxies: if counts_proxies {
                members.proxies(&self.localities)
            } else {
                BTreeMap::new()
            },
        });
        let places = places.unwrap_or_default();
        if let Some(seen) = self.namespaces.get(namespace)
            && same(&seen.hosts, &hosts)
            && seen.places == places
            && seen.limits == *limits
        {
            return seen.result.clone();
        }
        *done += 1;
        let packed = pack::endpoints(hosts.iter().map(Arc::as_ref), &places, limits);
        let result = packed.map_err(|e| e.to_string()).map(|packed| {
            Arc::new(RenderedEndpoints {
                revision: packed.revision,
                shards: packed.shards.into_iter().map(Arc::new).collect(),
                hosts: hosts.clone(),
                places: places.clone(),
            })
        });
        let seen = SeenNamespace {
            hosts,
            places,
            limits: *limits,
            result: result.clone(),
        };
        self.namespaces.insert(namespace.to_owned(), seen);
        result
    }
}

/// What workloads of each namespace see of the mesh.
fn views(output: &Output) -> HashMap<String, Vec<Arc<View>>> {
    let mut out: HashMap<String, Vec<Arc<View>>> = HashMap::new();
    for (reference, config) in &output.configs {
        let of = out.entry(reference.namespace.clone()).or_default();
        if !of.iter().any(|view| Arc::ptr_eq(view, &config.view)) {
            of.push(config.view.clone());
        }
    }
    out
}

/// Hosts that workloads of a namespace may call (DLV-111); where there are none yet, what they would see.
fn called<'s>(
    shared: &Shared<'s>,
    namespace: &str,
    views: Option<&[Arc<View>]>,
) -> BTreeMap<String, &'s Registered<'s>> {
    let mut out: BTreeMap<String, &Registered<'_>> = BTreeMap::new();
    let mut add = |host: &str, by: &str| {
        // Of several definitions of one host the one that the namespace itself would use.
        let found = shared
            .services
            .definition(host, namespace)
            .filter(|s| s.namespace == by || out.contains_key(host));
        if let Some(service) = found.or_else(|| shared.services.defined(host, by)) {
            out.insert(host.to_owned(), service);
        }
    };
    match views {
        Some(views) => {
            for host in views.iter().flat_map(|view| &view.hosts) {
                add(&host.host, &host.namespace);
            }
        }
        None => {
            for service in shared.services.imported(&Imports::everything(namespace)) {
                add(&service.host, service.namespace);
            }
        }
    }
    out
}

/// Whether some destination is balanced by zones, for which the clients of each zone are counted (DR-071).
fn is_zone_aware(shared: &Shared<'_>) -> bool {
    let is_on = |setting: &ZoneAwareLoadBalancerSetting| setting.enabled != Some(false);
    let of_policy = |policy: &TrafficPolicy| {
        let of_ports = policy.port_level_settings.iter().map(|p| p.load_balancer.as_ref());
        let mut balancers = of_ports.chain([policy.load_balancer.as_ref()]).flatten();
        balancers.any(|b| b.zone_aware_lb_setting.as_ref().is_some_and(is_on))
    };
    let mut rules = shared.sound.destination_rules.iter();
    shared.world.mesh.zone_aware_lb_setting.as_ref().is_some_and(is_on)
        || rules.any(|rule| {
            let of_subsets = rule.spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref());
            rule.spec.traffic_policy.iter().chain(of_subsets).any(of_policy)
        })
}
