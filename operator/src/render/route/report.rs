//! What becomes of VirtualServices, for their status.

use std::collections::BTreeMap;

use weft_crds::validate::host;

use super::super::policy::{Chosen, Client as PolicyClient};
use super::super::service::visibility;
use super::super::{ObjectReport, Shared};
use super::delegate;
use super::precedence::{export_to, gateway_id, is_for_mesh};
use crate::world::{Kind, ObjectRef};

/// Reports delegates that are not there, destinations that no service or subset answers to, and VirtualServices that an
/// older one of the same host keeps from having an effect (VS-013, VS-048, VS-049, VS-155, OPS-122).
pub(in crate::render) fn resolve(shared: &Shared<'_>, reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
    let domain = &shared.world.settings.cluster_domain;
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for service in &shared.sound.virtual_services {
        let namespace = service.metadata.namespace.clone().unwrap_or_default();
        let name = service.metadata.name.clone().unwrap_or_default();
        let reference = ObjectRef {
            kind: Kind::VirtualService,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let Some(report) = reports.get_mut(&reference) else {
            continue;
        };
        let public = visibility(export_to(shared, service), &namespace).is_none();
        if is_for_mesh(&service.spec.gateways) && public && !service.spec.http.is_empty() {
            for host in service.spec.hosts.iter().map(|h| host::expand(h, &namespace, domain)) {
                let owner = format!("{namespace}/{name}");
                let first = taken.entry(host.clone()).or_insert_with(|| owner.clone());
                if *first != owner {
                    let text = format!(
                        "host {host} is routed by the older VirtualService {first}; its rules here have no effect"
                    );
                    report.refused.get_or_insert(("Conflicted", text));
                }
            }
        }
        for id in service
            .spec
            .gateways
            .iter()
            .filter_map(|name| gateway_id(name, &namespace))
        {
            let (of, name) = id.split_once('/').unwrap_or_default();
            if !shared.world.gateways.contains_key(&(of.to_owned(), name.to_owned())) {
                report
                    .unresolved
                    .get_or_insert(("GatewayNotFound", format!("Gateway {id} is not there")));
            }
        }
        for delegate in service.spec.http.iter().filter_map(|route| route.delegate.as_ref()) {
            if let Err(text) = delegate::find(shared, service, delegate) {
                report.unresolved.get_or_insert(("DelegateNotFound", text));
            }
        }
        let http = service
            .spec
            .http
            .iter()
            .flat_map(|r| r.route.iter().map(|d| &d.destination).chain(r.mirror.as_ref()));
        let l4 = service
            .spec
            .tls
            .iter()
            .flat_map(|r| &r.route)
            .chain(service.spec.tcp.iter().flat_map(|r| &r.route));
        for destination in http.chain(l4.map(|d| &d.destination)) {
            let host = host::expand(&destination.host, &namespace, domain);
            let Some(target) = shared.services.find(&host) else {
                let text = format!("destination {host} is no known service; requests for it get 503");
                report.unresolved.get_or_insert(("HostNotFound", text));
                continue;
            };
            let Some(subset) = destination.subset.as_deref().filter(|s| !s.is_empty()) else {
                continue;
            };
            let chosen = Chosen::new(shared, target, PolicyClient::anybody(&namespace));
            if !chosen.has_subset(subset) {
                let text =
                    format!("subset {subset} of {host} is defined by no DestinationRule; requests for it get 503");
                report.unresolved.get_or_insert(("SubsetNotFound", text));
            }
        }
    }
}
