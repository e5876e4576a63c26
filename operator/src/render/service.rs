//! Services as clients see them: visibility, protocols, names (SM-001 ff.).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use weft_bundle::wire::Protocol;

use crate::world::World;

/// A service of the registry.
#[derive(Debug, Clone)]
pub(super) struct Registered<'a> {
    pub(super) host: String,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) service: &'a Service,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) headless: bool,
    pub(super) ports: Vec<Port>,
    /// `internalTrafficPolicy: Local` (SM-011).
    pub(super) node_local: bool,
    /// Preference that the service itself states (SM-104).
    pub(super) distribution: Option<Distribution>,
    /// `None`: everybody.
    export_to: Option<BTreeSet<String>>,
}

/// Where a service wants its clients to look first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distribution {
    /// In the zone.
    SameZone,
    /// On the node.
    SameNode,
}

/// A TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) protocol: Protocol,
}

/// All services by host, and what is exported where.
#[derive(Debug)]
pub(super) struct Services<'a> {
    by_host: BTreeMap<String, Registered<'a>>,
    /// Hosts of ExternalName services, with what they stand for (SM-084).
    aliases: BTreeMap<String, Alias<'a>>,
}

#[derive(Debug)]
struct Alias<'a> {
    namespace: &'a str,
    name: &'a str,
    target: String,
    /// Numbers of its ports.
    ports: BTreeSet<u16>,
    export_to: Option<BTreeSet<String>>,
}

impl<'a> Services<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let mut by_host = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        for ((namespace, name), service) in &world.services {
            let host = format!("{name}.{namespace}.svc.{}", world.settings.cluster_domain);
            let Some(spec) = &service.spec else { continue };
            if spec.type_.as_deref() == Some("ExternalName") {
                if let Some(target) = &spec.external_name {
                    let target = target.trim_end_matches('.').to_ascii_lowercase();
                    aliases.insert(
                        host,
                        Alias {
                            namespace,
                            name,
                            target,
                            ports: spec.ports.iter().flatten().filter_map(port).map(|p| p.number).collect(),
                            export_to: export_to(service, namespace, &world.mesh.default_service_export_to),
                        },
                    );
                }
                continue;
            }
            let ips = spec
                .cluster_ips
                .clone()
                .or_else(|| spec.cluster_ip.clone().map(|ip| vec![ip]))
                .unwrap_or_default();
            let headless = ips.iter().any(|ip| ip == "None");
            let mut ports: Vec<Port> = spec.ports.iter().flatten().filter_map(port).collect();
            ports.sort_by_key(|p| p.number);
            ports.dedup_by_key(|p| p.number);
            let registered = Registered {
                host: host.clone(),
                namespace,
                name,
                service,
                addresses: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
                headless,
                ports,
                node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                distribution: distribution(world, namespace, service),
                export_to: export_to(service, namespace, &world.mesh.default_service_export_to),
            };
            by_host.insert(host, registered);
        }
        Self { by_host, aliases }
    }

    /// Services that clients of a namespace know, in the order of their hosts.
    pub(super) fn visible(&self, namespace: &str) -> impl Iterator<Item = &Registered<'a>> {
        self.by_host
            .values()
            .filter(move |s| s.export_to.as_ref().is_none_or(|to| to.contains(namespace)))
    }

    /// The service of a host; an alias stands for its target (SM-087).
    pub(super) fn find(&self, host: &str) -> Option<&Registered<'a>> {
        let mut host = host;
        for _ in 0..MAX_ALIASES {
            match self.aliases.get(host) {
                Some(alias) => host = &alias.target,
                None => break,
            }
        }
        self.by_host.get(host)
    }

    /// Names and ports under which rules for an alias alone hold: its own port numbers, or without any its full name on
    /// port 80 (SM-086). `None` where the name is no alias of a service that the namespace knows.
    pub(super) fn alias(
        &self,
        host: &str,
        namespace: &str,
        cluster_domain: &str,
    ) -> Option<(Vec<String>, BTreeSet<u16>)> {
        let alias = self.aliases.get(host)?;
        let is_seen = alias.export_to.as_ref().is_none_or(|to| to.contains(namespace));
        if !is_seen || self.find(host).is_none() {
            return None;
        }
        Some(if alias.ports.is_empty() {
            (vec![host.to_owned()], BTreeSet::from([80]))
        } else {
            let names = names(alias.name, alias.namespace, namespace, cluster_domain);
            (names, alias.ports.clone())
        })
    }

    /// Host header values that select a service for clients of a namespace (SM-040, SM-077, SM-084).
    pub(super) fn domains(&self, service: &Registered<'a>, namespace: &str, cluster_domain: &str) -> Vec<String> {
        let mut names = names(service.name, service.namespace, namespace, cluster_domain);
        if service.headless {
            names = names.iter().flat_map(|n| [n.clone(), format!("*.{n}")]).collect();
        }
        for alias in self
            .aliases
            .values()
            .filter(|a| a.export_to.as_ref().is_none_or(|to| to.contains(namespace)))
            .filter(|a| self.find(&a.target).is_some_and(|s| s.host == service.host))
        {
            names.extend(self::names(alias.name, alias.namespace, namespace, cluster_domain));
        }
        if !service.headless {
            names.extend(service.addresses.iter().map(|address| match address {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("[{v6}]"),
            }));
        }
        names.sort();
        names.dedup();
        names
    }
}

/// The forms of a service's name, short ones where they fit the client's namespace.
fn names(name: &str, namespace: &str, client: &str, cluster_domain: &str) -> Vec<String> {
    let mut out = vec![
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.{cluster_domain}"),
    ];
    if namespace == client {
        out.push(name.to_owned());
    }
    out
}

/// A TCP port; UDP and SCTP are not proxied (SM-022).
fn port(port: &ServicePort) -> Option<Port> {
    if port.protocol.as_deref().is_some_and(|p| p != "TCP") {
        return None;
    }
    let number = u16::try_from(port.port).ok().filter(|n| *n > 0)?;
    let name = port.name.clone().unwrap_or_default();
    Some(Port {
        number,
        protocol: protocol(&name, port.app_protocol.as_deref(), number),
        name,
    })
}

/// Protocol of a port (SM-015..SM-021).
pub(super) fn protocol(name: &str, app_protocol: Option<&str>, number: u16) -> Protocol {
    let declared = match app_protocol {
        Some("kubernetes.io/h2c") => Some(Protocol::Http2),
        Some("kubernetes.io/ws") => Some(Protocol::Http),
        Some("kubernetes.io/wss") => Some(Protocol::Tls),
        Some(text) => token(text),
        None => token(name),
    };
    let well_known = matches!(number, 25 | 53 | 3306 | 27017).then_some(Protocol::Tcp);
    declared.or(well_known).unwrap_or_default()
}

/// `<protocol>` or `<protocol>-<suffix>` (SM-016, SM-017).
fn token(text: &str) -> Option<Protocol> {
    let text = text.to_ascii_lowercase();
    if text == "grpc-web" || text.starts_with("grpc-web-") {
        return Some(Protocol::Grpc);
    }
    Some(match text.split('-').next().unwrap_or_default() {
        "http" | "http_proxy" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        _ => return None,
    })
}

/// The field of the Service, else its annotation, else that of its namespace (SM-104, SM-105).
fn distribution(world: &World, namespace: &str, service: &Service) -> Option<Distribution> {
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    let field = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref());
    let annotation = || service.metadata.annotations.as_ref()?.get(ANNOTATION);
    let of_namespace = || {
        let annotations = world.namespaces.get(namespace)?.metadata.annotations.as_ref();
        annotations?.get(ANNOTATION)
    };
    let value = field.or_else(|| annotation().or_else(of_namespace).map(String::as_str))?;
    match value.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(Distribution::SameZone),
        "prefersamenode" => Some(Distribution::SameNode),
        _ => None,
    }
}

/// Namespaces that may see a service (SM-069, SM-070).
fn export_to(service: &Service, namespace: &str, default: &[String]) -> Option<BTreeSet<String>> {
    let annotation = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get("networking.istio.io/exportTo"));
    let listed: Vec<String> = match annotation {
        Some(text) => text
            .split(',')
            .map(|n| n.trim().to_owned())
            .filter(|n| !n.is_empty())
            .collect(),
        None => default.to_vec(),
    };
    visibility(&listed, namespace)
}

/// `None` for all namespaces.
pub(super) fn visibility(export_to: &[String], namespace: &str) -> Option<BTreeSet<String>> {
    if export_to.is_empty() || export_to.iter().any(|n| n == "*") {
        return None;
    }
    let own = |n: &String| if n == "." { namespace.to_owned() } else { n.clone() };
    Some(export_to.iter().filter(|n| *n != "~").map(own).collect())
}

const MAX_ALIASES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: SM-015, SM-016, SM-017, SM-018, SM-019, SM-021
    #[test]
    fn the_protocol_comes_from_the_app_protocol_else_the_name_else_the_port() {
        let cases = [
            ("http-foo", None, 80, Protocol::Http),
            ("HTTP", None, 80, Protocol::Http),
            ("httpfoo", None, 80, Protocol::Auto),
            ("web", None, 80, Protocol::Auto),
            ("grpc-web-x", None, 80, Protocol::Grpc),
            ("grpc", None, 80, Protocol::Grpc),
            ("http2", None, 80, Protocol::Http2),
            ("https-x", None, 443, Protocol::Tls),
            ("mysql", None, 1, Protocol::Tcp),
            ("", None, 3306, Protocol::Tcp),
            ("", None, 8080, Protocol::Auto),
            ("http", Some("foo"), 80, Protocol::Auto),
            ("tcp", Some("http"), 80, Protocol::Http),
            ("tcp", Some("kubernetes.io/h2c"), 80, Protocol::Http2),
        ];
        for (name, app_protocol, number, expected) in cases {
            assert_eq!(
                protocol(name, app_protocol, number),
                expected,
                "{name} {app_protocol:?} {number}"
            );
        }
    }

    // spec: SM-040
    #[test]
    fn the_bare_name_is_the_own_namespaces_alone() {
        assert!(names("s", "a", "a", "cluster.local").contains(&"s".to_owned()));
        assert!(!names("s", "a", "b", "cluster.local").contains(&"s".to_owned()));
    }

    // spec: SM-069, SM-070
    #[test]
    fn visibility_of_lists() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(visibility(&list(&["a", "*"]), "x"), None);
        assert_eq!(visibility(&list(&["."]), "x"), Some(BTreeSet::from(["x".to_owned()])));
        assert_eq!(visibility(&list(&["~"]), "x"), Some(BTreeSet::new()));
    }
}
