//! What the controllers and the service proxy of a cluster know of services: names, addresses, endpoints
//! (LOC-014, LOC-023).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::dns::{Answer, Names};

/// A pod as services see it.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The pod.
    pub pod: Pod,
    /// Address.
    pub address: Ipv4Addr,
    /// Its readiness probes succeed.
    pub ready: bool,
    /// It is on its way out.
    pub terminating: bool,
    /// Ports that another stands in for (LOC-062).
    pub replaced_ports: BTreeMap<u16, u16>,
}

/// The pods that a service selects.
fn selected<'a>(service: &Service, backends: &'a [Backend]) -> Vec<&'a Backend> {
    let Some(selector) = service
        .spec
        .as_ref()
        .and_then(|s| s.selector.as_ref())
        .filter(|s| !s.is_empty())
    else {
        return Vec::new();
    };
    let matches = |backend: &&Backend| {
        let labels = backend.pod.metadata.labels.as_ref();
        backend.pod.metadata.namespace == service.metadata.namespace
            && selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
    };
    backends.iter().filter(matches).collect()
}

/// Name, number and protocol.
type TargetPort = (String, i32, String);

/// The EndpointSlice of a service, as the cluster's controller writes it; one for each set of target ports.
#[must_use]
pub fn endpoint_slices(service: &Service, backends: &[Backend]) -> Vec<EndpointSlice> {
    let name = service.metadata.name.clone().unwrap_or_default();
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        return Vec::new();
    }
    let mut by_ports: BTreeMap<Vec<TargetPort>, Vec<Endpoint>> = BTreeMap::new();
    for backend in selected(service, backends) {
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let number = target_port(port.target_port.as_ref(), port.port, &backend.pod)?;
            let number = u16::try_from(number)
                .ok()
                .and_then(|n| backend.replaced_ports.get(&n))
                .map_or(number, |n| i32::from(*n));
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((port.name.clone().unwrap_or_default(), number, protocol))
        });
        let publish = spec.publish_not_ready_addresses == Some(true);
        let ready = publish || (backend.ready && !backend.terminating);
        by_ports.entry(ports.collect()).or_default().push(Endpoint {
            addresses: vec![backend.address.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                serving: Some(backend.ready || publish),
                terminating: Some(backend.terminating),
            }),
            node_name: Some(super::NODE.to_owned()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                name: backend.pod.metadata.name.clone(),
                namespace: backend.pod.metadata.namespace.clone(),
                uid: backend.pod.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        });
    }
    if by_ports.is_empty() {
        by_ports.insert(Vec::new(), Vec::new());
    }
    let slice = |(n, (ports, mut endpoints)): (usize, (Vec<TargetPort>, Vec<Endpoint>))| {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: Some(endpoints),
            metadata: ObjectMeta {
                name: Some(format!("{name}-{n}")),
                namespace: service.metadata.namespace.clone(),
                labels: Some(BTreeMap::from([(
                    "kubernetes.io/service-name".to_owned(),
                    name.clone(),
                )])),
                ..ObjectMeta::default()
            },
            ports: Some(
                ports
                    .into_iter()
                    .map(|(name, port, protocol)| EndpointPort {
                        name: Some(name),
                        port: Some(port),
                        protocol: Some(protocol),
                        ..EndpointPort::default()
                    })
                    .collect(),
            ),
        }
    };
    by_ports.into_iter().enumerate().map(slice).collect()
}

/// TCP ports of a pod that services lead to.
#[must_use]
pub fn target_ports(services: &[Arc<Service>], pod: &Pod) -> BTreeSet<u16> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let selects = |service: &&Arc<Service>| {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        service.metadata.namespace == pod.metadata.namespace
            && selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.get(k) == Some(v)))
    };
    let ports = services.iter().filter(selects).flat_map(|service| {
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        ports.filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"))
    });
    ports
        .filter_map(|port| target_port(port.target_port.as_ref(), port.port, pod))
        .filter_map(|number| u16::try_from(number).ok())
        .collect()
}

/// The port of a pod that a service port leads to.
fn target_port(target: Option<&IntOrString>, port: i32, pod: &Pod) -> Option<i32> {
    match target {
        None => Some(port),
        Some(IntOrString::Int(0)) => Some(port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
            ports
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.container_port)
        }
    }
}

/// Where a connection to a service address may go: what the cluster's service proxy is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// Address of the service.
    pub address: Ipv4Addr,
    /// Port of the service.
    pub port: u16,
    /// Ready endpoints; empty: refused.
    pub endpoints: BTreeSet<(Ipv4Addr, u16)>,
}

/// The forwards of a service: TCP ports of its cluster address, and the ready endpoints of its slices.
#[must_use]
pub fn forwards(service: &Service, slices: &[EndpointSlice]) -> Vec<Forward> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(address) = spec.cluster_ip.as_deref().and_then(|a| a.parse().ok()) else {
        return Vec::new();
    };
    let tcp = |protocol: &Option<String>| protocol.as_deref().is_none_or(|p| p == "TCP");
    let ports = spec.ports.iter().flatten().filter(|p| tcp(&p.protocol));
    let forward = |port: &k8s_openapi::api::core::v1::ServicePort| {
        let name = port.name.clone().unwrap_or_default();
        let mut endpoints = BTreeSet::new();
        for slice in slices {
            let target = slice
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref().unwrap_or_default() == name);
            let Some(target) = target.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else {
                continue;
            };
            let ready = |e: &&Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            let addresses = slice
                .endpoints
                .iter()
                .flatten()
                .filter(ready)
                .flat_map(|e| &e.addresses);
            endpoints.extend(addresses.filter_map(|a| a.parse().ok()).map(|a: Ipv4Addr| (a, target)));
        }
        Some(Forward {
            address,
            port: u16::try_from(port.port).ok()?,
            endpoints,
        })
    };
    ports.filter_map(forward).collect()
}

/// Adds the names of a service: its own, and for a headless one those of its endpoints.
pub fn names(service: &Service, slices: &[EndpointSlice], pods: &[Backend], domain: &str, out: &mut Names) {
    let (Some(name), Some(namespace), Some(spec)) =
        (&service.metadata.name, &service.metadata.namespace, &service.spec)
    else {
        return;
    };
    let host = format!("{name}.{namespace}.svc.{domain}");
    if spec.type_.as_deref() == Some("ExternalName") {
        if let Some(target) = &spec.external_name {
            out.insert(host, Answer::Alias(target.trim_end_matches('.').to_ascii_lowercase()));
        }
        return;
    }
    if let Some(address) = spec.cluster_ip.as_deref().and_then(|a| a.parse().ok()) {
        out.insert(host, Answer::Addresses(vec![address]));
        return;
    }
    let ready = |e: &&Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let mut all = Vec::new();
    for endpoint in slices.iter().flat_map(|s| s.endpoints.iter().flatten()).filter(ready) {
        let addresses: Vec<Ipv4Addr> = endpoint.addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let pod = pods.iter().find(|b| addresses.contains(&b.address)).map(|b| &b.pod);
        let spec = pod.and_then(|p| p.spec.as_ref());
        // A pod has a name of its own when it says that it belongs to this service, as those of a StatefulSet do.
        let belongs = spec.and_then(|s| s.subdomain.as_ref()) == Some(name) || is_of_set(pod);
        let own = spec
            .and_then(|s| s.hostname.clone())
            .or_else(|| pod.and_then(|p| p.metadata.name.clone()));
        if let (true, Some(own)) = (belongs, own) {
            out.insert(format!("{own}.{host}"), Answer::Addresses(addresses.clone()));
        }
        all.extend(addresses);
    }
    out.insert(host, Answer::Addresses(all));
}

fn is_of_set(pod: Option<&Pod>) -> bool {
    let owners = pod.and_then(|p| p.metadata.owner_references.as_ref());
    owners.is_some_and(|owners| owners.iter().any(|o| o.kind == "StatefulSet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: &serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a"}, "spec": spec})).expect("service")
    }

    fn backend(name: &str, address: [u8; 4], ready: bool) -> Backend {
        let pod = json!({
            "metadata": {"name": name, "namespace": "a", "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u"}]},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "main", "containerPort": 8080}]}]},
        });
        let pod = serde_json::from_value(pod).expect("pod");
        Backend {
            pod,
            address: address.into(),
            ready,
            terminating: false,
            replaced_ports: BTreeMap::new(),
        }
    }

    // spec: LOC-014, LOC-023
    #[test]
    fn only_ready_pods_are_dialled_and_named() {
        let spec = json!({"clusterIP": "10.98.0.9", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "main"}]});
        let backends = [
            backend("web-0", [10, 99, 0, 2], true),
            backend("web-1", [10, 99, 0, 3], false),
        ];
        let service = service(&spec);
        let slices = endpoint_slices(&service, &backends);
        assert_eq!(
            slices[0].endpoints.as_ref().map(Vec::len),
            Some(2),
            "an unready pod is listed, as not ready"
        );
        let forwards = forwards(&service, &slices);
        assert_eq!(
            forwards[0].endpoints,
            BTreeSet::from([(Ipv4Addr::new(10, 99, 0, 2), 8080)])
        );
        let mut out = Names::new();
        names(&service, &slices, &backends, "cluster.local", &mut out);
        assert_eq!(
            out["web.a.svc.cluster.local"],
            Answer::Addresses(vec![Ipv4Addr::new(10, 98, 0, 9)])
        );
    }

    // spec: LOC-023
    #[test]
    fn a_headless_service_is_its_pods() {
        let spec = json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]});
        let backends = [
            backend("web-0", [10, 99, 0, 2], true),
            backend("web-1", [10, 99, 0, 3], true),
        ];
        let service = service(&spec);
        let slices = endpoint_slices(&service, &backends);
        let mut out = Names::new();
        names(&service, &slices, &backends, "cluster.local", &mut out);
        assert_eq!(
            out["web-1.web.a.svc.cluster.local"],
            Answer::Addresses(vec![Ipv4Addr::new(10, 99, 0, 3)])
        );
        assert!(matches!(&out["web.a.svc.cluster.local"], Answer::Addresses(all) if all.len() == 2));
        assert!(forwards(&service, &slices).is_empty());
    }
}
