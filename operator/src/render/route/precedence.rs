//! Which VirtualServices a client uses, and in which order they count (VS-005, VS-006, VS-012..VS-016, VS-183).

use std::cmp::Reverse;

use weft_bundle::key::{KeyInputs, Template};
use weft_crds::VirtualService;
use weft_crds::validate::host;

use super::super::Shared;
use super::super::service::visibility;
use super::namespace_of;

/// A VirtualService with the full names of its hosts.
pub(super) struct Candidate<'a> {
    pub(super) service: &'a VirtualService,
    pub(super) hosts: Vec<String>,
}

/// The VirtualServices of one client: first those private to its namespace, then those exported to it by name, then the
/// public ones, each by age (VS-014).
pub(super) struct Visible<'a>(Vec<Candidate<'a>>);

impl<'a> Visible<'a> {
    pub(super) fn new(shared: &Shared<'a>, inputs: &KeyInputs) -> Self {
        if inputs.template == Template::Gateway {
            // Rules for the mesh are for sidecars alone (VS-005).
            return Self(Vec::new());
        }
        Self::ranked(shared, inputs, |service| is_for_mesh(&service.spec.gateways))
    }

    /// Those that name some Gateway (VS-006).
    pub(super) fn of_gateways(shared: &Shared<'a>, inputs: &KeyInputs) -> Self {
        Self::ranked(shared, inputs, |service| {
            service.spec.gateways.iter().any(|gateway| gateway != "mesh")
        })
    }

    fn ranked(shared: &Shared<'a>, inputs: &KeyInputs, applies: impl Fn(&VirtualService) -> bool) -> Self {
        let domain = &shared.world.settings.cluster_domain;
        let mut ranked: Vec<(u8, Candidate<'a>)> = Vec::new();
        for service in shared.sound.virtual_services.iter().copied() {
            if !applies(service) || service.spec.hosts.is_empty() {
                continue;
            }
            let own = namespace_of(service);
            let rank = match visibility(export_to(shared, service), own) {
                None => 2,
                Some(to) if !to.contains(&inputs.namespace) => continue,
                Some(to) if to.len() == 1 && own == inputs.namespace => 0,
                Some(_) => 1,
            };
            let hosts = service.spec.hosts.iter().map(|h| host::expand(h, own, domain));
            let hosts = hosts.collect();
            ranked.push((rank, Candidate { service, hosts }));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        Self(ranked.into_iter().map(|(_, candidate)| candidate).collect())
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Candidate<'a>> {
        self.0.iter()
    }

    /// Those that cover a host, whatever the form of the name that does (VS-183).
    pub(super) fn covering(&self, host: &str) -> impl Iterator<Item = &'a VirtualService> {
        let covers = move |candidate: &&Candidate<'a>| candidate.hosts.iter().any(|name| host::covers(name, host));
        self.0.iter().filter(covers).map(|candidate| candidate.service)
    }

    /// Those whose HTTP rules may be a host's: an exact name before wildcards, the longer before the shorter (VS-015).
    pub(super) fn for_http(&self, host: &str) -> Vec<&'a VirtualService> {
        let mut found: Vec<((bool, usize), &VirtualService)> = Vec::new();
        for candidate in self
            .0
            .iter()
            .filter(|candidate| !candidate.service.spec.http.is_empty())
        {
            let covering = candidate.hosts.iter().filter(|name| host::covers(name, host));
            if let Some(rank) = covering.map(|name| (!name.starts_with('*'), name.len())).max() {
                found.push((rank, candidate.service));
            }
        }
        // Stable: among equals the earlier one stays first.
        found.sort_by_key(|(rank, _)| Reverse(*rank));
        found.into_iter().map(|(_, service)| service).collect()
    }
}

/// Whether a list of gateways, empty or not, names all sidecars.
pub(super) fn is_for_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|g| g == "mesh")
}

/// The Gateway that a name means, as `namespace/name` (SM-056); `mesh` is none.
pub(super) fn gateway_id(name: &str, namespace: &str) -> Option<String> {
    if name == "mesh" {
        return None;
    }
    if name.contains('/') {
        return Some(name.to_owned());
    }
    // The form of a service's name is an old one.
    let mut labels = name.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(first), Some(second), Some("svc")) => Some(format!("{second}/{first}")),
        _ => Some(format!("{namespace}/{name}")),
    }
}

/// Where a VirtualService is visible: what it says, else what the mesh config says (SM-069).
pub(in crate::render) fn export_to<'r>(shared: &'r Shared<'_>, service: &'r VirtualService) -> &'r [String] {
    if service.spec.export_to.is_empty() {
        &shared.world.mesh.default_virtual_service_export_to
    } else {
        &service.spec.export_to
    }
}
