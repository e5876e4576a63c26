//! Services as clients see them: visibility, protocols, names (SM-001 ff.), and hosts of ServiceEntries beside them
//! (SE-001 ff.).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_bundle::wire::{Protocol, Subnet};
use weft_crds::ServiceEntry;
use weft_crds::validate::check;
use weft_crds::validate::host::canonical;

use super::allocate::Allocated;
use super::scope::Imports;
use super::sound::Sources;
use super::{ObjectReport, Shared};
use crate::world::{Kind, ObjectRef, World, age};

/// A service of the registry.
#[derive(Debug, Clone)]
pub(super) struct Registered<'a> {
    pub(super) host: String,
    pub(super) namespace: &'a str,
    /// Short name of a Service; of another host its full one (MET-030).
    pub(super) name: String,
    /// `None`: of ServiceEntries alone.
    pub(super) service: Option<&'a Service>,
    /// Entries that make it up, or add endpoints to the Service, in the order of age (SE-017, SE-018).
    pub(super) entries: Vec<&'a Arc<ServiceEntry>>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) subnets: Vec<Subnet>,
    pub(super) allocated: Vec<IpAddr>,
    pub(super) headless: bool,
    pub(super) resolution: Resolution,
    /// It is no part of the mesh (SE-007).
    pub(super) external: bool,
    pub(super) ports: Vec<Port>,
    /// `internalTrafficPolicy: Local` (SM-011).
    pub(super) node_local: bool,
    /// Preference that the service itself states (SM-104).
    pub(super) distribution: Option<Distribution>,
    /// `None`: everybody.
    pub(super) export_to: Option<BTreeSet<String>>,
    pub(super) age: (Option<String>, String, String),
}

/// How endpoints are found (SE-008).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Resolution {
    /// They are known.
    #[default]
    Listed,
    /// As dialled.
    None,
    /// By names.
    Dns { first_alone: bool },
    /// By the name of each request, which is not served yet (SE-029).
    Dynamic,
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
    /// gRPC-Web is translated there (SM-026).
    pub(super) grpc_web: bool,
    /// Where connections go whose address is the one dialled (SE-024).
    pub(super) kept_target: Option<u16>,
    /// Rules of other hosts reach it, and nothing else (SE-074).
    pub(super) target_only: bool,
}

/// What a port is declared to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Spoken {
    pub(super) protocol: Protocol,
    /// gRPC-Web beside gRPC.
    pub(super) grpc_web: bool,
}

impl From<Protocol> for Spoken {
    fn from(protocol: Protocol) -> Self {
        let grpc_web = false;
        Self { protocol, grpc_web }
    }
}

/// All services by host, and what is exported where.
#[derive(Debug)]
pub(super) struct Services<'a> {
    /// Several where namespaces define the same host (SM-074).
    by_host: BTreeMap<String, Vec<Registered<'a>>>,
    /// Hosts of ExternalName services, with what they stand for (SM-084).
    aliases: BTreeMap<String, Alias<'a>>,
    pub(super) allocated: Allocated,
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

impl<'a> Registered<'a> {
    fn of_service(world: &World, namespace: &'a str, name: &'a str, service: &'a Service, host: String) -> Self {
        let spec = service.spec.as_ref();
        let ips = spec.and_then(|spec| {
            let single = spec.cluster_ip.clone().map(|ip| vec![ip]);
            spec.cluster_ips.clone().or(single)
        });
        let ips = ips.unwrap_or_default();
        let mut ports: Vec<Port> = spec
            .iter()
            .flat_map(|s| s.ports.iter().flatten())
            .filter_map(port)
            .collect();
        ports.sort_by_key(|p| p.number);
        ports.dedup_by_key(|p| p.number);
        Registered {
            host,
            namespace,
            name: name.to_owned(),
            service: Some(service),
            entries: Vec::new(),
            addresses: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            subnets: Vec::new(),
            allocated: Vec::new(),
            headless: ips.iter().any(|ip| ip == "None"),
            resolution: Resolution::Listed,
            external: false,
            ports,
            node_local: spec.and_then(|s| s.internal_traffic_policy.as_deref()) == Some("Local"),
            distribution: distribution(
                world,
                namespace,
                spec.and_then(|s| s.traffic_distribution.as_deref()),
                &service.metadata,
            ),
            export_to: export_to(service, namespace, &world.mesh.default_service_export_to),
            age: age(&service.metadata),
        }
    }

    fn of_entry(world: &World, namespace: &'a str, entry: &'a Arc<ServiceEntry>, host: String) -> Self {
        let spec = &entry.spec;
        let resolution = match spec.resolution.as_deref() {
            Some("STATIC") => Resolution::Listed,
            Some("DNS") => Resolution::Dns { first_alone: false },
            Some("DNS_ROUND_ROBIN") => Resolution::Dns { first_alone: true },
            Some("DYNAMIC_DNS") => Resolution::Dynamic,
            // With a selector its addresses are known, and no others are it (SE-041).
            _ if spec.workload_selector.is_some() => Resolution::Listed,
            _ => Resolution::None,
        };
        let is_range = |text: &&String| text.contains('/');
        let ranges = spec
            .addresses
            .iter()
            .filter(is_range)
            .filter_map(|text| check::subnet(text));
        Registered {
            name: host.clone(),
            host,
            namespace,
            service: None,
            entries: vec![entry],
            addresses: spec
                .addresses
                .iter()
                .filter_map(|address| address.parse().ok())
                .collect(),
            subnets: ranges.map(|(address, prefix)| Subnet { address, prefix }).collect(),
            allocated: Vec::new(),
            headless: spec.resolution.as_deref().unwrap_or("NONE") == "NONE" && spec.workload_selector.is_some(),
            resolution,
            external: spec.location.as_deref() != Some("MESH_INTERNAL"),
            ports: entry_ports(entry, resolution),
            node_local: false,
            distribution: distribution(world, namespace, None, &entry.metadata),
            export_to: visibility_of_entry(world, entry, namespace),
            age: age(&entry.metadata),
        }
    }

    /// Another entry for the same host in the same namespace (SE-017, SE-018).
    fn join(&mut self, entry: &'a Arc<ServiceEntry>) {
        let is_like = self.service.is_none()
            && self.entries.first().is_some_and(|first| {
                let spec = |entry: &ServiceEntry| {
                    let ServiceEntry { metadata, spec, .. } = entry;
                    let selector = spec.workload_selector.clone();
                    (
                        spec.resolution.clone(),
                        spec.export_to.clone(),
                        metadata.labels.clone(),
                        selector,
                    )
                };
                spec(first) == spec(entry)
            });
        if is_like {
            for mut port in entry_ports(entry, self.resolution) {
                if self.ports.iter().any(|p| p.name == port.name) {
                    // Two ports may have one name in two entries; endpoints are told apart by it.
                    port.name = apart(&port.name, port.number);
                }
                let is_new = |p: &Port| p.number != port.number && p.name != port.name;
                if self.ports.iter().all(is_new) {
                    self.ports.push(port);
                }
            }
            self.ports.sort_by_key(|p| p.number);
        }
        self.entries.push(entry);
    }

    /// The name by which endpoints of an entry have a port of this name and number.
    pub(super) fn port_name(&self, name: &str, number: u16) -> String {
        let apart = apart(name, number);
        let is_apart = self.service.is_none() && self.ports.iter().any(|p| p.name == apart);
        if is_apart { apart } else { name.to_owned() }
    }

    /// Names of which a server's certificate must carry one (SE-018, SE-019).
    pub(super) fn subject_alt_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .entries
            .iter()
            .flat_map(|e| e.spec.subject_alt_names.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn is_visible(&self, namespace: &str) -> bool {
        self.export_to.as_ref().is_none_or(|to| to.contains(namespace))
    }

    /// Order in which the definitions of one host count for a namespace (SM-074).
    fn rank(&self, namespace: &str) -> impl Ord + use<> {
        (
            self.namespace != namespace,
            self.service.is_none(),
            self.export_to.is_none(),
            self.age.clone(),
        )
    }
}

impl<'a> Services<'a> {
    pub(super) fn new(world: &'a World, sources: Sources<'a>) -> Self {
        let mut by_host: BTreeMap<String, Vec<Registered<'a>>> = BTreeMap::new();
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
            let registered = Registered::of_service(world, namespace, name, service, host.clone());
            by_host.insert(host, vec![registered]);
        }
        let allocated = Allocated::new(sources.service_entries);
        for entry in sources.service_entries {
            let namespace = entry.metadata.namespace.as_deref().unwrap_or_default();
            for host in &entry.spec.hosts {
                let host = canonical(host);
                let known = by_host.entry(host.clone()).or_default();
                match known.iter_mut().find(|known| known.namespace == namespace) {
                    // A host may be listed twice.
                    Some(known) if known.entries.last().is_some_and(|last| Arc::ptr_eq(last, entry)) => {}
                    Some(known) => known.join(entry),
                    None => known.push(Registered {
                        allocated: allocated.of(namespace, &host),
                        ..Registered::of_entry(world, namespace, entry, host)
                    }),
                }
            }
        }
        Self {
            by_host,
            aliases,
            allocated,
        }
    }

    /// Services that a workload knows, with the ports that it knows, in the order of their hosts.
    pub(super) fn imported(&self, imports: &Imports<'_>) -> impl Iterator<Item = Registered<'a>> {
        let namespace = imports.namespace();
        self.by_host.values().filter_map(move |definitions| {
            let visible = definitions.iter().filter(|service| service.is_visible(namespace));
            let imported = visible.filter_map(|service| {
                let ports = imports.ports(service);
                // One without any port is known by its addresses and its name all the same.
                let is_imported = !ports.is_empty() || (imports.is_everything() && service.ports.is_empty());
                is_imported.then_some((service, ports))
            });
            let (service, ports) = imported.min_by_key(|(service, _)| service.rank(namespace))?;
            Some(Registered {
                ports,
                ..service.clone()
            })
        })
    }

    /// The definition of a host that a namespace uses.
    pub(super) fn definition(&self, host: &str, namespace: &str) -> Option<&Registered<'a>> {
        let visible = self
            .by_host
            .get(host)?
            .iter()
            .filter(|service| service.is_visible(namespace));
        visible.min_by_key(|service| service.rank(namespace))
    }

    /// The definition of a host by a namespace.
    pub(super) fn defined(&self, host: &str, by: &str) -> Option<&Registered<'a>> {
        self.by_host.get(host)?.iter().find(|service| service.namespace == by)
    }

    /// The service of a host as a namespace knows it, else as somebody does; an alias stands for its target (SM-087).
    pub(super) fn find(&self, host: &str, namespace: &str) -> Option<&Registered<'a>> {
        let mut host = host;
        for _ in 0..MAX_ALIASES {
            match self.aliases.get(host) {
                Some(alias) => host = &alias.target,
                None => break,
            }
        }
        self.definition(host, namespace).or_else(|| {
            let all = self.by_host.get(host)?.iter();
            all.min_by_key(|service| service.rank(namespace))
        })
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
        if !is_seen || self.find(host, namespace).is_none() {
            return None;
        }
        Some(if alias.ports.is_empty() {
            (vec![host.to_owned()], BTreeSet::from([80]))
        } else {
            let names = names(alias.name, alias.namespace, namespace, cluster_domain);
            (names, alias.ports.clone())
        })
    }

    /// Host header values that select a service for clients of a namespace (SM-040, SM-043, SM-077, SM-084).
    pub(super) fn domains(&self, service: &Registered<'a>, namespace: &str, cluster_domain: &str) -> Vec<String> {
        let suffix = format!(".svc.{cluster_domain}");
        // A ServiceEntry for a name of a Service has its short forms, too (SM-043).
        let of_service = service.host.strip_suffix(&suffix).and_then(|rest| rest.split_once('.'));
        let mut names = match of_service.filter(|(name, own)| !name.starts_with('*') && !own.contains('.')) {
            Some((name, own)) => names(name, own, namespace, cluster_domain),
            None => vec![service.host.clone()],
        };
        if service.headless && service.service.is_some() {
            names = names.iter().flat_map(|n| [n.clone(), format!("*.{n}")]).collect();
        }
        for alias in self
            .aliases
            .values()
            .filter(|a| a.export_to.as_ref().is_none_or(|to| to.contains(namespace)))
            .filter(|a| self.find(&a.target, namespace).is_some_and(|s| s.host == service.host))
        {
            names.extend(self::names(alias.name, alias.namespace, namespace, cluster_domain));
        }
        if !service.headless || service.service.is_none() {
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

/// Addresses that were allocated (SE-020), endpoints that are left out (SE-042), and what is not served yet.
pub(super) fn report(shared: &Shared<'_>, reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
    for entry in shared.sound.sources.service_entries {
        let namespace = entry.metadata.namespace.clone().unwrap_or_default();
        let reference = ObjectRef {
            kind: Kind::ServiceEntry,
            namespace: namespace.clone(),
            name: entry.metadata.name.clone().unwrap_or_default(),
        };
        let Some(report) = reports.get_mut(&reference) else {
            continue;
        };
        let spec = &entry.spec;
        report.addresses = shared.services.allocated.status(entry);
        if spec.resolution.as_deref() == Some("DYNAMIC_DNS") {
            let text = "resolution DYNAMIC_DNS is not served yet; requests get 503".to_owned();
            report.unresolved.get_or_insert(("Unsupported", text));
        }
        if spec
            .endpoints
            .iter()
            .any(|endpoint| endpoint.address.starts_with("unix://"))
        {
            let text = "endpoints that are Unix sockets are not served yet, and left out".to_owned();
            report.unresolved.get_or_insert(("Unsupported", text));
        }
        let Some(selector) = spec
            .workload_selector
            .as_ref()
            .filter(|_| spec.location.as_deref() != Some("MESH_INTERNAL"))
        else {
            continue;
        };
        let mut pods = shared.world.pods.iter().filter(|((own, _), _)| *own == namespace);
        let none = BTreeMap::new();
        if pods.any(|(_, pod)| selector.selects(pod.metadata.labels.as_ref().unwrap_or(&none))) {
            let text = "workloadSelector selects pods, which are endpoints with location MESH_INTERNAL alone";
            report.warnings.push(text.to_owned());
        }
    }
}

/// TCP ports of an entry (SE-004..SE-006).
fn entry_ports(entry: &ServiceEntry, resolution: Resolution) -> Vec<Port> {
    let is_tcp = |protocol: Option<&str>| !protocol.is_some_and(|p| p.eq_ignore_ascii_case("UDP"));
    let ports = entry.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
    let mut ports: Vec<Port> = ports
        .filter_map(|port| {
            let target = port.target_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
            let Spoken { protocol, grpc_web } = entry_protocol(port.protocol.as_deref()).unwrap_or_default();
            Some(Port {
                number: u16::try_from(port.number).ok().filter(|n| *n > 0)?,
                name: port.name.clone(),
                protocol,
                grpc_web,
                kept_target: target.filter(|_| resolution == Resolution::None),
                target_only: false,
            })
        })
        .collect();
    ports.sort_by_key(|p| p.number);
    ports
}

/// Name of a port whose own one is another port's already.
fn apart(name: &str, number: u16) -> String {
    format!("{name}:{number}")
}

/// Protocol that a field states (SE-005); `None`: it is detected.
pub(super) fn entry_protocol(text: Option<&str>) -> Option<Spoken> {
    let text = text?.to_ascii_lowercase();
    token(&text).filter(|_| !text.contains('-') || text == GRPC_WEB)
}

/// Namespaces that may see an entry (SE-016).
fn visibility_of_entry(world: &World, entry: &ServiceEntry, namespace: &str) -> Option<BTreeSet<String>> {
    if entry.spec.export_to.is_empty() {
        visibility(&world.mesh.default_service_export_to, namespace)
    } else {
        visibility(&entry.spec.export_to, namespace)
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
    let Spoken { protocol, grpc_web } = protocol(&name, port.app_protocol.as_deref(), number);
    Some(Port {
        number,
        protocol,
        grpc_web,
        name,
        kept_target: None,
        target_only: false,
    })
}

/// Protocol of a port (SM-015..SM-021).
pub(super) fn protocol(name: &str, app_protocol: Option<&str>, number: u16) -> Spoken {
    let declared = match app_protocol {
        Some("kubernetes.io/h2c") => Some(Protocol::Http2.into()),
        Some("kubernetes.io/ws") => Some(Protocol::Http.into()),
        Some("kubernetes.io/wss") => Some(Protocol::Tls.into()),
        Some(text) => token(text),
        None => token(name),
    };
    let well_known = matches!(number, 25 | 53 | 3306 | 27017).then(|| Protocol::Tcp.into());
    declared.or(well_known).unwrap_or_default()
}

/// `<protocol>` or `<protocol>-<suffix>` (SM-016, SM-017).
fn token(text: &str) -> Option<Spoken> {
    let text = text.to_ascii_lowercase();
    let rest = text.strip_prefix(GRPC_WEB);
    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
        return Some(Spoken {
            protocol: Protocol::Grpc,
            grpc_web: true,
        });
    }
    let protocol = match text.split('-').next().unwrap_or_default() {
        "http" | "http_proxy" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        _ => return None,
    };
    Some(protocol.into())
}

/// The field of the Service, else its annotation, else that of its namespace (SM-104, SM-105, SE-099).
fn distribution(world: &World, namespace: &str, field: Option<&str>, metadata: &ObjectMeta) -> Option<Distribution> {
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    let annotation = || metadata.annotations.as_ref()?.get(ANNOTATION);
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

/// The one protocol with a hyphen in its name.
const GRPC_WEB: &str = "grpc-web";

#[cfg(test)]
mod entries;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: SM-016, SM-017, SM-026
    #[test]
    fn grpc_web_is_told_from_grpc() {
        let of_service = |name, app_protocol| protocol(name, app_protocol, 80).grpc_web;
        assert!(of_service("grpc-web", None) && of_service("GRPC-Web-x", None) && of_service("tcp", Some("grpc-web")));
        assert!(!of_service("grpc", None) && !of_service("grpc-webx", None) && !of_service("grpc-web", Some("grpc")));
        let of_entry = |text| entry_protocol(Some(text)).map(|spoken| spoken.grpc_web);
        assert_eq!(of_entry("GRPC-WEB"), Some(true));
        assert_eq!((of_entry("GRPC"), of_entry("grpc-web-x")), (Some(false), None));
    }

    // spec: SM-015, SM-016, SM-017, SM-018, SM-019, SM-021, SM-020
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
            ("tcp", Some("kubernetes.io/ws"), 80, Protocol::Http),
            ("http", Some("kubernetes.io/wss"), 80, Protocol::Tls),
            ("tcp", Some("GRPC-x"), 80, Protocol::Grpc),
            ("http", Some("foo"), 53, Protocol::Tcp),
            ("http_proxy", None, 80, Protocol::Http),
            ("Tls-x", None, 80, Protocol::Tls),
            ("tcp-http", None, 80, Protocol::Tcp),
            ("mongo", None, 80, Protocol::Tcp),
            ("redis-main", None, 80, Protocol::Tcp),
            // A protocol that is declared counts on every port.
            ("http", None, 3306, Protocol::Http),
            ("web", None, 25, Protocol::Tcp),
            ("", None, 53, Protocol::Tcp),
            ("", None, 27017, Protocol::Tcp),
            ("", None, 26, Protocol::Auto),
        ];
        for (name, app_protocol, number, expected) in cases {
            assert_eq!(
                protocol(name, app_protocol, number).protocol,
                expected,
                "{name} {app_protocol:?} {number}"
            );
        }
    }

    // spec: SM-040
    #[test]
    fn the_bare_name_is_the_own_namespaces_alone() {
        let anywhere = ["s.a", "s.a.svc", "s.a.svc.example.local"];
        assert_eq!(names("s", "a", "b", "example.local"), anywhere);
        assert_eq!(names("s", "a", "a", "example.local"), [&anywhere[..], &["s"]].concat());
    }

    // spec: SM-069, SM-070
    #[test]
    fn visibility_of_lists() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(visibility(&list(&["a", "*"]), "x"), None);
        assert_eq!(visibility(&list(&["."]), "x"), Some(BTreeSet::from(["x".to_owned()])));
        assert_eq!(visibility(&list(&["~"]), "x"), Some(BTreeSet::new()));
        let both = BTreeSet::from(["a".to_owned(), "x".to_owned()]);
        assert_eq!(visibility(&list(&["a", "."]), "x"), Some(both));
        assert_eq!(visibility(&[], "x"), None);
    }
}
