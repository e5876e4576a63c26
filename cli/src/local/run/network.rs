//! What controllers and the service proxy of a cluster would write: endpoint slices, names, translations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use weft_operator::world::{Event as WorldEvent, Object, Settings};

use super::Run;
use crate::local::dns::Names;
use crate::local::service::{self, Backend};

impl Run {
    /// Pods, endpoint slices, names and forwards, as controllers would write them.
    pub(super) fn update_services(&mut self) {
        let backends: Vec<Backend> = self
            .pods
            .values()
            .filter(|r| r.outside.is_none())
            .map(|r| Backend {
                pod: r.status(),
                address: r.address,
                ready: r.is_ready(),
                terminating: r.stopping,
                replaced_ports: r
                    .ports
                    .iter()
                    .filter(|port| port.listen != port.declared)
                    .map(|port| (port.declared, port.listen))
                    .collect(),
            })
            .collect();
        for backend in &backends {
            self.store
                .apply(WorldEvent::Apply(Object::Pod(Arc::new(backend.pod.clone()))));
        }
        let services: Vec<Arc<Service>> = self.store.world().services.values().cloned().collect();
        let mut names = Names::new();
        let mut forwards = BTreeSet::new();
        let mut all = BTreeMap::new();
        for service in &services {
            let slices = service::endpoint_slices(service, &backends);
            let domain = Settings::default().cluster_domain;
            service::names(service, &slices, &backends, &domain, &mut names);
            forwards.extend(service::forwards(service, &slices));
            let id = (
                service.metadata.namespace.clone().unwrap_or_default(),
                service.metadata.name.clone().unwrap_or_default(),
            );
            for slice in &slices {
                self.store
                    .apply(WorldEvent::Apply(Object::EndpointSlice(Arc::new(slice.clone()))));
            }
            // A service has as many slices as its pods have sets of ports: those of earlier sets go.
            for gone in self.slices.get(&id).into_iter().flatten() {
                if !slices.iter().any(|s| s.metadata.name == gone.metadata.name) {
                    self.store.apply(WorldEvent::Delete(
                        Object::EndpointSlice(Arc::new(gone.clone())).reference(),
                    ));
                }
            }
            all.insert(id, slices);
        }
        for (id, slices) in &self.slices {
            for slice in slices.iter().filter(|_| !all.contains_key(id)) {
                self.store.apply(WorldEvent::Delete(
                    Object::EndpointSlice(Arc::new(slice.clone())).reference(),
                ));
            }
        }
        self.slices = all;
        let outside = self.pods.values().filter_map(|r| r.outside.as_ref());
        outside.for_each(|outside| outside.resolve(&mut names));
        self.resolver.replace(names);
        if forwards != self.forwards {
            match self.fabric.forward(&self.reach, &forwards) {
                Ok(()) => self.forwards = forwards,
                Err(e) => self
                    .output
                    .note(&format!("addresses of services are not up to date: {e}")),
            }
        }
    }
}
