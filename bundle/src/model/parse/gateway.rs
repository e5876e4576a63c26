//! What a proxy receives: ports of a gateway, ports of the workload.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Parser, Routes};
use crate::model::{Domain, Inbound, InboundPort, Inside, Listener, Serves, Tls, TlsServer, TlsServing, VirtualHosts};
use crate::wire;

impl Parser<'_> {
    pub(super) fn listeners(&mut self, wire: &[wire::Listener], routes: &Routes<'_>) -> BTreeMap<u16, Arc<Listener>> {
        let mut out = BTreeMap::new();
        for listener in wire {
            let path = format!("listeners[{}]", listener.port);
            if listener.port == 0 || listener.service_port == Some(0) {
                self.problem(path.as_str(), "0", "a port is a number from 1 to 65535");
            }
            let serves = match &listener.serves {
                wire::Serves::Http(hosts) => Serves::Http(self.virtual_hosts(&path, hosts, routes)),
                wire::Serves::Tls(tls) => Serves::Tls(self.tls_serving(&format!("{path}.tls"), tls, routes)),
                wire::Serves::Tcp(destinations) => Serves::Tcp(self.destinations(&path, destinations)),
            };
            let parsed = Listener {
                port: listener.port,
                service_port: listener.service_port.unwrap_or(listener.port),
                grpc_web: listener.grpc_web,
                serves,
            };
            if out.insert(listener.port, Arc::new(parsed)).is_some() {
                self.problem(path, listener.port.to_string(), "a port is listed twice");
            }
        }
        out
    }

    fn tls_serving(&mut self, path: &str, wire: &wire::TlsServing, routes: &Routes<'_>) -> TlsServing {
        let mut serving = TlsServing::default();
        for (i, server) in wire.terminated.iter().enumerate() {
            let path = format!("{path}.terminated[{i}]");
            if server.tls.certificates.is_empty() {
                self.problem(format!("{path}.tls.certificates"), "", "at least one is needed");
            }
            let inside = match &server.inside {
                wire::Inside::Http(hosts) => Inside::Http(self.virtual_hosts(&path, hosts, routes)),
                wire::Inside::Tcp(destinations) => Inside::Tcp(self.destinations(&path, destinations)),
            };
            let tls = Tls::Ends(Arc::new(TlsServer {
                tls: server.tls.clone(),
                inside,
            }));
            for name in &server.sni {
                if !serving.insert(name, &tls) {
                    self.problem(format!("{path}.sni"), name, "a name is listed twice");
                }
            }
        }
        for (i, rule) in wire.passthrough.iter().enumerate() {
            let path = format!("{path}.passthrough[{i}]");
            if !rule.subnets.is_empty() {
                self.problem(format!("{path}.subnets"), "", "a gateway has none");
            }
            let tls = Tls::PassesThrough(Arc::new(self.destinations(&path, &rule.destinations)));
            for name in &rule.sni {
                if !serving.insert(name, &tls) {
                    self.problem(format!("{path}.sni"), name, "a name is listed twice");
                }
            }
        }
        serving
    }

    fn virtual_hosts(&mut self, path: &str, wire: &[wire::VirtualHost], routes: &Routes<'_>) -> VirtualHosts {
        let mut hosts = VirtualHosts::default();
        let mut names = BTreeSet::new();
        for (i, host) in wire.iter().enumerate() {
            let Some(table) = routes.get(&*host.http) else {
                self.problem(format!("{path}.http[{i}].http"), &host.http, "names no route table");
                continue;
            };
            let domain = Domain::made_up((*table).clone());
            for name in &host.domains {
                if !names.insert(name) {
                    self.problem(format!("{path}.http[{i}].domains"), name, "a name is listed twice");
                }
            }
            hosts.insert(&host.domains, domain);
        }
        hosts.finish();
        hosts
    }

    pub(super) fn inbound(&mut self, wire: &wire::Inbound) -> Inbound {
        let ports = wire.ports.iter().map(|port| {
            let parsed = InboundPort {
                number: port.port,
                protocol: port.protocol,
                grpc_web: port.grpc_web,
                service_ports: port.service_ports.clone(),
                mtls: port.mtls.unwrap_or(wire.mtls),
                host: port.host.as_deref().map(Arc::from),
                policy: (port.policy != wire::Policy::default()).then(|| Arc::new(port.policy.clone())),
                target: port.target,
            };
            (port.port, Arc::new(parsed))
        });
        let ports: HashMap<_, _> = ports.collect();
        for port in &wire.ports {
            self.policy(&format!("inbound.ports[{}]", port.port), &port.policy);
        }
        if ports.contains_key(&0) {
            self.problem("inbound.ports", "0", "a port is a number from 1 to 65535");
        }
        if ports.len() != wire.ports.len() {
            self.problem("inbound.ports", "", "a port is listed twice");
        }
        Inbound {
            mtls: wire.mtls,
            destination: wire.destination,
            ports,
        }
    }
}
