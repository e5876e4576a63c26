//! Pods without namespaces: loopback addresses, applications on ports that they are told, sidecars as explicit
//! proxies (LOC-022, LOC-060..LOC-063).

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

use super::address::Range;

/// Loopback addresses that belong to a run, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Block {
    /// The addresses.
    pub(super) range: Range,
    /// First port that is given to applications; those of two runs differ.
    first_port: u16,
    /// Held by a socket, so that the kernel gives the block back however the run ends (LOC-063).
    _held: TcpListener,
}

impl Block {
    /// Takes the first block that no run of this machine holds.
    ///
    /// # Errors
    /// That all are held, or that loopback addresses cannot be bound.
    pub(super) fn take() -> anyhow::Result<Self> {
        for number in 0..BLOCKS {
            let base = u32::from(FIRST) + number * (1 << (32 - u32::from(BLOCK_PREFIX)));
            let range = Range {
                base: Ipv4Addr::from(base),
                prefix: BLOCK_PREFIX,
            };
            match TcpListener::bind(SocketAddrV4::new(range.at(1), HELD_PORT)) {
                Ok(held) => {
                    let step = u16::try_from(number % u32::from(PORT_STEPS)).unwrap_or(0);
                    return Ok(Self {
                        range,
                        first_port: FIRST_PORT + step * PORTS_PER_BLOCK,
                        _held: held,
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(e).with_context(|| format!("listen on {}", range.at(1))),
            }
        }
        anyhow::bail!("all {BLOCKS} blocks of loopback addresses are held by other runs")
    }

    /// The one warning (LOC-022).
    pub(super) fn warning(&self) -> String {
        format!(
            "loopback mode: only HTTP through http_proxy passes the mesh; TCP and raw addresses are not intercepted, \
             pods without a sidecar are reached by nobody, and other users of this machine can reach the addresses \
             of {}",
            self.range
        )
    }

    /// Ports for the containers of a pod; `extra`: target ports of services that no container declares.
    ///
    /// # Errors
    /// That no port is free.
    pub(super) fn ports(
        &self,
        pod: &Pod,
        address: Ipv4Addr,
        extra: &BTreeSet<u16>,
        taken: &mut BTreeSet<u16>,
    ) -> anyhow::Result<Vec<Port>> {
        let mut out: Vec<Port> = Vec::new();
        let containers = pod.spec.iter().flat_map(|s| &s.containers);
        for container in containers.filter(|c| !is_own(c)) {
            for port in container.ports.iter().flatten() {
                let is_tcp = port.protocol.as_deref().is_none_or(|p| p == "TCP");
                let Ok(declared) = u16::try_from(port.container_port) else {
                    continue;
                };
                if !is_tcp || out.iter().any(|p| p.declared == declared) {
                    continue;
                }
                out.push(Port {
                    declared,
                    name: port.name.clone(),
                    container: container.name.clone(),
                    listen: listenable(address, declared)?,
                    local: self.free_port(taken)?,
                });
            }
        }
        for declared in extra {
            if !out.iter().any(|p| p.declared == *declared) {
                out.push(Port {
                    declared: *declared,
                    name: None,
                    container: String::new(),
                    listen: listenable(address, *declared)?,
                    local: *declared,
                });
            }
        }
        Ok(out)
    }

    fn free_port(&self, taken: &mut BTreeSet<u16>) -> anyhow::Result<u16> {
        // Its own ports first, then those of other blocks.
        let all = (self.first_port..END_PORT).chain(FIRST_PORT..self.first_port);
        for port in all {
            if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                taken.insert(port);
                return Ok(port);
            }
        }
        anyhow::bail!("no port of 127.0.0.1 from {FIRST_PORT} to {END_PORT} is free")
    }
}

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// The one that manifests name.
    pub(super) declared: u16,
    name: Option<String>,
    container: String,
    /// Port of the pod's address that the sidecar listens on (LOC-062).
    pub(super) listen: u16,
    /// Port of 127.0.0.1 that the application listens on (LOC-061).
    pub(super) local: u16,
}

/// Where the application sends its requests.
fn http_proxy(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, HTTP_PROXY_PORT))
}

/// What a user's container is told beside its own environment; a value of its own counts.
pub(super) fn environment(container: &Container, ports: &[Port], sidecar: Option<Ipv4Addr>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let own = ports.iter().filter(|port| port.container == container.name);
    for (n, port) in own.enumerate() {
        if n == 0 {
            out.push(("PORT".to_owned(), port.local.to_string()));
        }
        if let Some(name) = &port.name {
            let name = format!("PORT_{}", name.to_uppercase().replace('-', "_"));
            out.push((name, port.local.to_string()));
        }
    }
    if let Some(address) = sidecar {
        let proxy = format!("http://{}", http_proxy(address));
        out.push(("http_proxy".to_owned(), proxy.clone()));
        out.push(("HTTP_PROXY".to_owned(), proxy));
        out.push(("no_proxy".to_owned(), NO_PROXY.to_owned()));
        out.push(("NO_PROXY".to_owned(), NO_PROXY.to_owned()));
    }
    out
}

/// What the sidecar is told: where to listen, and where the application does (LOC-060).
pub(super) fn sidecar_arguments(address: Ipv4Addr, ports: &[Port]) -> Vec<String> {
    let mut out = Vec::new();
    let mut add = |name: &str, value: String| out.extend([name.to_owned(), value]);
    add("--bind", address.to_string());
    add("--admin-bind", address.to_string());
    add("--http-proxy", http_proxy(address).to_string());
    for port in ports {
        let (listen, local, declared) = (port.listen, port.local, port.declared);
        add("--inbound", format!("{address}:{listen}=127.0.0.1:{local}@{declared}"));
    }
    out
}

/// Flags of a gateway: its ports are on the pod's address, as its Gateways say.
pub(super) fn gateway_arguments(address: Ipv4Addr) -> Vec<String> {
    let flags = [("--bind", address), ("--admin-bind", address)];
    flags
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.to_string()])
        .collect()
}

/// The port that a probe of the application means on 127.0.0.1.
pub(super) fn local_port(ports: &[Port], declared: u16) -> u16 {
    let found = ports.iter().find(|port| port.declared == declared);
    found.map_or(declared, |port| port.local)
}

/// Rewrites the ports of the sidecar's list of probes, and of its scrape, to those of 127.0.0.1.
pub(super) fn rewrite_ports(environment: &mut [(String, String)], ports: &[Port]) {
    for (name, text) in environment {
        if !["WEFT_KUBE_APP_PROBERS", "WEFT_PROMETHEUS_SCRAPE"].contains(&name.as_str()) {
            continue;
        }
        if let Ok(mut value) = serde_json::from_str::<Value>(text) {
            rewrite(&mut value, ports);
            *text = value.to_string();
        }
    }
}

fn rewrite(value: &mut Value, ports: &[Port]) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let number = match field {
                    Value::Number(n) => n.as_u64().and_then(|n| u16::try_from(n).ok()),
                    Value::String(text) => text.parse().ok(),
                    _ => None,
                };
                match number.filter(|_| name == "port") {
                    Some(declared) if field.is_string() => *field = local_port(ports, declared).to_string().into(),
                    Some(declared) => *field = local_port(ports, declared).into(),
                    None => rewrite(field, ports),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, ports)),
        _ => {}
    }
}

/// The port itself, or a free one where this user may not bind it (LOC-062).
fn listenable(address: Ipv4Addr, port: u16) -> anyhow::Result<u16> {
    match TcpListener::bind((address, port)) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let free = TcpListener::bind((address, 0)).with_context(|| format!("listen on {address}"))?;
            Ok(free.local_addr()?.port())
        }
        // Whatever else is wrong, the sidecar says when it listens.
        _ => Ok(port),
    }
}

fn is_own(container: &Container) -> bool {
    ["weft-proxy", "weft-init"].contains(&container.name.as_str())
}

const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
/// 127.64.0.0/10 in blocks of 4,096 addresses.
const BLOCK_PREFIX: u8 = 20;
const BLOCKS: u32 = 1 << (BLOCK_PREFIX - 10);
/// The port that marks a block as held.
const HELD_PORT: u16 = 15099;
const HTTP_PROXY_PORT: u16 = 15080;
/// Below the ports that systems give to outgoing connections.
const FIRST_PORT: u16 = 20_000;
const END_PORT: u16 = 32_000;
const PORTS_PER_BLOCK: u16 = 600;
const PORT_STEPS: u16 = (END_PORT - FIRST_PORT) / PORTS_PER_BLOCK;
const NO_PROXY: &str = "localhost,127.0.0.0/8,127.0.0.1,::1";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [
            {"name": "web", "ports": [{"name": "http", "containerPort": 8080}, {"name": "grpc-web", "containerPort": 9090},
                {"containerPort": 53, "protocol": "UDP"}]},
            {"name": "weft-proxy", "ports": [{"containerPort": 15090}]},
        ]}}))
        .expect("pod")
    }

    // spec: LOC-063
    #[test]
    fn two_runs_hold_different_blocks() {
        let (one, other) = (Block::take().expect("block"), Block::take().expect("block"));
        assert_ne!(one.range, other.range);
        assert!(
            u32::from(one.range.base) >> 22 == u32::from(FIRST) >> 22,
            "{}",
            one.range
        );
        let range = one.range;
        drop(one);
        assert!(TcpListener::bind((range.at(1), HELD_PORT)).is_ok(), "given back");
    }

    // spec: LOC-060, LOC-061
    #[test]
    fn each_declared_port_is_told_to_application_and_sidecar() {
        let block = Block::take().expect("block");
        let mut taken = BTreeSet::new();
        let address = block.range.at(2);
        let ports = block
            .ports(&pod(), address, &BTreeSet::from([8080, 7000]), &mut taken)
            .expect("ports");
        let declared: Vec<_> = ports.iter().map(|p| p.declared).collect();
        assert_eq!(declared, [8080, 9090, 7000], "TCP ports of the user's containers");
        assert_ne!(ports[0].local, ports[1].local);
        let container = &pod().spec.expect("spec").containers[0];
        let told = environment(container, &ports, Some(address));
        let value = |name: &str| told.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        assert_eq!(value("PORT"), Some(ports[0].local.to_string()));
        assert_eq!(value("PORT_HTTP"), value("PORT"));
        assert_eq!(value("PORT_GRPC_WEB"), Some(ports[1].local.to_string()));
        assert_eq!(value("http_proxy"), Some(format!("http://{address}:15080")));
        assert_eq!(value("HTTP_PROXY"), value("http_proxy"));
        assert!(value("no_proxy").is_some_and(|list| list.contains("localhost")));
        let arguments = sidecar_arguments(address, &ports);
        let inbound = format!("{address}:8080=127.0.0.1:{}@8080", ports[0].local);
        assert!(arguments.contains(&inbound), "{arguments:?}");
        assert!(
            environment(container, &ports, None)
                .iter()
                .all(|(n, _)| n != "http_proxy")
        );
    }

    // spec: LOC-060
    #[test]
    fn probes_are_made_where_the_application_listens() {
        let block = Block::take().expect("block");
        let mut taken = BTreeSet::new();
        let ports = block
            .ports(&pod(), block.range.at(2), &BTreeSet::new(), &mut taken)
            .expect("ports");
        let probers = json!({"/app-health/web/readyz": {"httpGet": {"path": "/", "port": 8080}, "timeoutSeconds": 1}});
        let mut environment = vec![
            ("WEFT_KUBE_APP_PROBERS".to_owned(), probers.to_string()),
            ("WEFT_PROMETHEUS_SCRAPE".to_owned(), json!({"port": "9090"}).to_string()),
            ("OTHER".to_owned(), json!({"port": 8080}).to_string()),
        ];
        rewrite_ports(&mut environment, &ports);
        let parsed: Value = serde_json::from_str(&environment[0].1).expect("JSON");
        assert_eq!(parsed["/app-health/web/readyz"]["httpGet"]["port"], ports[0].local);
        assert!(environment[1].1.contains(&ports[1].local.to_string()));
        assert!(environment[2].1.contains("8080"));
    }
}
