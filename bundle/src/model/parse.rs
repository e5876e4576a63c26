//! From [`crate::wire`] to [`super`]: every problem is reported, with its path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use regex::bytes::{Regex, RegexBuilder};

use super::matching::AuthorityTest;
use super::{
    Action, Cluster, Config, Cors, Destination, Destinations, Domain, Domains, Fault, HeaderName, HeaderOps,
    HeaderTest, Host, Inbound, InboundPort, Invalid, Listener, Match, Mirror, PathRewrite, PathTest, Piece, Port,
    QueryTest, Range, Retry, RetryOn, Rewrite, RouteTable, Rule, Serves, Share, TcpRule, Template, Text, TlsRule,
};
use crate::wire;

/// Memory that one compiled expression may take.
const REGEX_SIZE_BYTES: usize = 1 << 20;

/// Longest regular expression (SM-123).
const REGEX_LENGTH: usize = 1024;

pub(super) fn config(bundle: wire::Bundle) -> Result<Config, Vec<Invalid>> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let mut parser = Parser::default();
    let hosts: Vec<Arc<Host>> = bundle
        .hosts
        .iter()
        .enumerate()
        .map(|(position, host)| {
            Arc::new(Host {
                host: Arc::from(host.host.as_str()),
                name: Arc::from(host.name.as_str()),
                namespace: Arc::from(host.namespace.as_str()),
                addresses: host.addresses.clone(),
                allocated: host.allocated.clone(),
                headless: host.headless,
                node_local: host.node_local,
                kind: host.kind,
                discovery: host.discovery.clone(),
                identities: host.identities.clone(),
                position,
            })
        })
        .collect();
    for (wire, host) in bundle.hosts.iter().zip(&hosts) {
        parser.clusters(wire, host);
    }
    let default_retry = parser.retry("mesh.retry", &bundle.mesh.retry);
    let routes: HashMap<String, Arc<RouteTable>> = bundle
        .routes
        .iter()
        .map(|table| (table.name.clone(), Arc::new(parser.table(table, &default_retry))))
        .collect();
    if routes.len() != bundle.routes.len() {
        parser.problem("routes", "", "names of route tables are not unique");
    }

    let mut addresses = HashMap::new();
    let mut domains: HashMap<u16, Domains> = HashMap::new();
    let mut headless: HashMap<u16, Vec<Arc<Port>>> = HashMap::new();
    let mut open: HashMap<u16, Vec<Arc<Port>>> = HashMap::new();
    let mut ranges: HashMap<u16, Vec<Range>> = HashMap::new();
    let mut subnets: HashMap<u16, Vec<Arc<Port>>> = HashMap::new();
    let mut ports = Vec::new();
    for (wire, host) in bundle.hosts.iter().zip(&hosts) {
        parser.discovery(wire);
        for port in wire.ports.iter().filter(|port| !port.target_only) {
            if let Some(parsed) = parser.port(port, host, &routes, &default_retry) {
                ports.push((wire, Arc::new(parsed)));
            }
        }
    }
    for (wire, port) in &ports {
        for address in wire.addresses.iter().chain(&wire.allocated) {
            addresses.entry((*address, port.number)).or_insert_with(|| port.clone());
        }
        let with_subnets = |subnets: &[wire::Subnet]| !subnets.is_empty();
        if port.tls.iter().any(|rule| with_subnets(&rule.subnets))
            || port.tcp.iter().any(|rule| with_subnets(&rule.subnets))
        {
            subnets.entry(port.number).or_default().push(port.clone());
        }
        if port.host.headless {
            headless.entry(port.number).or_default().push(port.clone());
        } else if !port.protocol.is_http() {
            if !wire.subnets.is_empty() {
                ranges.entry(port.number).or_default().push(Range {
                    subnets: wire.subnets.clone(),
                    port: port.clone(),
                });
            } else if is_open(wire, port.protocol) {
                open.entry(port.number).or_default().push(port.clone());
            }
        }
    }
    // Aliases first, real names last, so that the latter win (SM-042).
    for real in [false, true] {
        for (wire, port) in &ports {
            if !port.protocol.is_http() && port.protocol != wire::Protocol::Auto {
                continue;
            }
            for name in wire.domains.iter().filter(|name| (**name == wire.host) == real) {
                let domain = Domain {
                    http: port.http.clone(),
                    port: Some(port.clone()),
                    shared: port.protocol.is_http() || is_open(wire, port.protocol),
                };
                domains.entry(port.number).or_default().insert(name, domain);
            }
        }
    }
    for (i, extra) in bundle.domains.iter().enumerate() {
        let Some(table) = routes.get(&extra.http) else {
            parser.problem(format!("domains[{i}].http"), &extra.http, "names no route table");
            continue;
        };
        for name in &extra.domains {
            let domain = Domain {
                http: table.clone(),
                port: None,
                shared: true,
            };
            domains.entry(extra.port).or_default().insert(name, domain);
        }
    }
    domains.values_mut().for_each(Domains::sort);

    let listeners = parser.listeners(&bundle.listeners, &routes);
    let inbound = parser.inbound(&bundle.inbound);
    let owner = bundle.workload;
    let workload = Arc::new(wire::PeerWorkload {
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
        service_account: owner.service_account.clone(),
        canonical_name: owner.canonical_name.clone(),
        canonical_revision: owner.canonical_revision.clone(),
        app: owner.app.clone(),
        version: owner.version.clone(),
    });
    if parser.problems.is_empty() {
        Ok(Config {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            workload,
            owner,
            mesh: bundle.mesh,
            inbound,
            hosts,
            clusters: parser.clusters,
            addresses,
            domains,
            headless,
            open,
            ranges,
            subnets,
            listeners,
        })
    } else {
        Err(parser.problems)
    }
}

/// Whether a port is known by its number alone, and by names.
fn is_open(host: &wire::Host, protocol: wire::Protocol) -> bool {
    let is_entry = host.kind == wire::HostKind::Entry;
    // A Service without address is one that has none yet: bytes without a name are not for it.
    let fits = is_entry || matches!(protocol, wire::Protocol::Tls | wire::Protocol::Auto);
    fits && !host.headless && host.addresses.is_empty() && host.subnets.is_empty()
}

#[derive(Default)]
struct Parser {
    problems: Vec<Invalid>,
    clusters: Vec<Arc<Cluster>>,
    index: HashMap<String, Arc<Cluster>>,
}

impl Parser {
    fn problem(&mut self, path: impl Into<String>, value: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Invalid {
            path: path.into(),
            value: value.into(),
            message: message.into(),
        });
    }

    fn discovery(&mut self, host: &wire::Host) {
        let path = format!("hosts[{}]", host.host);
        self.subnets(&path, &host.subnets);
        let wire::Discovery::Dns(dns) = &host.discovery else {
            return;
        };
        for (n, target) in dns.targets.iter().enumerate() {
            let longest = 253;
            if target.name.is_empty() || target.name.len() > longest {
                let message = format!("a name to look up has 1 to {longest} characters");
                self.problem(
                    format!("{path}.discovery.dns.targets[{n}].name"),
                    &*target.name,
                    message,
                );
            }
        }
    }

    /// Makes a cluster for each port of a host, and for each of its subsets.
    fn clusters(&mut self, wire: &wire::Host, host: &Arc<Host>) {
        for port in &wire.ports {
            let path = format!("hosts[{}].ports[{}]", host.host, port.port);
            if port.port == 0 {
                self.problem(path.as_str(), "0", "a port is a number from 1 to 65535");
            }
            self.policy(&path, &port.policy);
            self.cluster(host, port, None);
            for subset in &wire.subsets {
                self.cluster(host, port, Some(subset));
            }
        }
        for subset in &wire.subsets {
            for (number, policy) in &subset.policies {
                let path = format!("hosts[{}].subsets[{}].policies[{number}]", host.host, subset.name);
                if !wire.ports.iter().any(|port| port.port == *number) {
                    self.problem(path.as_str(), number.to_string(), "is no port of the host");
                }
                self.policy(&path, policy);
            }
        }
    }

    fn cluster(&mut self, host: &Arc<Host>, port: &wire::HostPort, subset: Option<&wire::Subset>) {
        let subset_name = subset.map_or("", |subset| subset.name.as_str());
        let name = cluster_name(&host.host, port.port, subset_name);
        let sni = format!("outbound_.{}_.{subset_name}_.{}", port.port, host.host);
        let policy = subset
            .and_then(|subset| subset.policies.get(&port.port))
            .unwrap_or(&port.policy);
        let cluster = Arc::new(Cluster {
            id: self.clusters.len(),
            name: Arc::from(name.as_str()),
            host: host.clone(),
            port: port.port,
            port_name: Arc::from(port.name.as_str()),
            target_port: port.target_port,
            protocol: port.protocol,
            subset: subset.map(|subset| Arc::from(subset.name.as_str())),
            labels: subset.map(|subset| subset.labels.clone()).unwrap_or_default(),
            policy: policy.clone(),
            sni: (sni.len() <= 255).then(|| Arc::from(sni.as_str())),
        });
        self.clusters.push(cluster.clone());
        if self.index.insert(name.clone(), cluster).is_some() {
            self.problem("hosts", name, "host, port and subset are listed twice");
        }
    }

    fn policy(&mut self, path: &str, policy: &wire::Policy) {
        if policy.connect_timeout_ms == 0 {
            self.problem(format!("{path}.policy.connectTimeoutMs"), "0", "must be at least 1");
        }
        if let Some(outlier) = &policy.outlier
            && outlier.max_ejection_percent > 100
        {
            let value = outlier.max_ejection_percent.to_string();
            self.problem(
                format!("{path}.policy.outlier.maxEjectionPercent"),
                value,
                "is 0 to 100",
            );
        }
        if let Some(warmup) = &policy.warmup
            && (warmup.duration_ms == 0 || warmup.aggression_milli == 0 || warmup.minimum_ppm > 1_000_000)
        {
            let value = format!("{warmup:?}");
            self.problem(
                format!("{path}.policy.warmup"),
                value,
                "duration and aggression are above 0, the minimum is at most 1000000",
            );
        }
        if let Some(wire::Locality::Distribute(entries)) = &policy.locality {
            for entry in entries {
                let total: u64 = entry.to.values().map(|percent| u64::from(*percent)).sum();
                if total == 0 {
                    let at = format!("{path}.policy.locality.distribute[{}]", entry.from);
                    self.problem(at, "0", "shares total more than 0");
                }
            }
        }
        if let wire::LoadBalancer::ConsistentHash(hash) = &policy.load_balancer
            && hash.maglev_table_size == Some(0)
        {
            self.problem(
                format!("{path}.policy.loadBalancer"),
                "0",
                "a Maglev table has a prime size",
            );
        }
    }

    fn port(
        &mut self,
        wire: &wire::HostPort,
        host: &Arc<Host>,
        routes: &HashMap<String, Arc<RouteTable>>,
        default_retry: &Retry,
    ) -> Option<Port> {
        let path = format!("hosts[{}].ports[{}]", host.host, wire.port);
        let cluster = self.index.get(&cluster_name(&host.host, wire.port, ""))?.clone();
        let http = match &wire.http {
            None => Arc::new(default_table(&cluster, default_retry)),
            Some(name) => match routes.get(name) {
                Some(table) => table.clone(),
                None => {
                    self.problem(format!("{path}.http"), name, "names no route table");
                    return None;
                }
            },
        };
        let tls = self.tls_rules(&format!("{path}.tls"), &wire.tls);
        let tcp = wire
            .tcp
            .iter()
            .enumerate()
            .map(|(i, rule)| TcpRule {
                subnets: self.subnets(&format!("{path}.tcp[{i}]"), &rule.subnets),
                destinations: self.destinations(&format!("{path}.tcp[{i}]"), &rule.destinations),
            })
            .collect();
        Some(Port {
            host: host.clone(),
            number: wire.port,
            protocol: wire.protocol,
            grpc_web: wire.grpc_web,
            http,
            tls,
            tcp,
            cluster,
        })
    }

    fn tls_rules(&mut self, path: &str, wire: &[wire::TlsRule]) -> Vec<TlsRule> {
        let rule = |(i, rule): (usize, &wire::TlsRule)| TlsRule {
            sni: rule.sni.iter().map(|sni| sni.to_ascii_lowercase().into()).collect(),
            subnets: self.subnets(&format!("{path}[{i}]"), &rule.subnets),
            destinations: self.destinations(&format!("{path}[{i}]"), &rule.destinations),
        };
        wire.iter().enumerate().map(rule).collect()
    }

    fn listeners(
        &mut self,
        wire: &[wire::Listener],
        routes: &HashMap<String, Arc<RouteTable>>,
    ) -> BTreeMap<u16, Arc<Listener>> {
        let mut out = BTreeMap::new();
        for listener in wire {
            let path = format!("listeners[{}]", listener.port);
            if listener.port == 0 || listener.service_port == Some(0) {
                self.problem(path.as_str(), "0", "a port is a number from 1 to 65535");
            }
            let serves = match &listener.serves {
                wire::Serves::Http(hosts) => Serves::Http(self.virtual_hosts(&path, hosts, routes)),
                wire::Serves::Tls(tls) => {
                    Serves::Tls(self.tls_rules(&format!("{path}.tls.passthrough"), &tls.passthrough))
                }
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

    fn virtual_hosts(
        &mut self,
        path: &str,
        wire: &[wire::VirtualHost],
        routes: &HashMap<String, Arc<RouteTable>>,
    ) -> Domains {
        let mut domains = Domains::default();
        let mut names = BTreeSet::new();
        for (i, host) in wire.iter().enumerate() {
            let Some(table) = routes.get(&host.http) else {
                self.problem(format!("{path}.http[{i}].http"), &host.http, "names no route table");
                continue;
            };
            for name in &host.domains {
                if !names.insert(name) {
                    self.problem(format!("{path}.http[{i}].domains"), name, "a name is listed twice");
                }
                let domain = Domain {
                    http: table.clone(),
                    port: None,
                    shared: true,
                };
                domains.insert(name, domain);
            }
        }
        domains.sort();
        domains
    }

    fn inbound(&mut self, wire: &wire::Inbound) -> Inbound {
        let ports = wire.ports.iter().map(|port| {
            let parsed = InboundPort {
                number: port.port,
                protocol: port.protocol,
                grpc_web: port.grpc_web,
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

    fn table(&mut self, wire: &wire::RouteTable, default_retry: &Retry) -> RouteTable {
        let origin = Arc::new(wire.origin.clone());
        let rules = wire
            .rules
            .iter()
            .enumerate()
            .map(|(i, rule)| {
                let path = format!("routes[{}].rules[{i}]", wire.name);
                Arc::new(self.rule(&path, rule, &origin, default_retry))
            })
            .collect();
        RouteTable {
            name: Arc::from(wire.name.as_str()),
            origin: Some(origin),
            rules,
        }
    }

    fn rule(&mut self, path: &str, wire: &wire::Rule, origin: &Arc<wire::Origin>, default_retry: &Retry) -> Rule {
        let matches = wire
            .matches
            .iter()
            .enumerate()
            .map(|(i, m)| self.matching(&format!("{path}.matches[{i}]"), m, wire.name.as_deref()))
            .collect();
        let action = match &wire.action {
            wire::Action::Destinations(list) => Action::Destinations(self.destinations(path, list)),
            wire::Action::Redirect(redirect) => {
                if !matches!(redirect.code, 301 | 302 | 303 | 307 | 308) {
                    let value = redirect.code.to_string();
                    self.problem(format!("{path}.redirect.code"), value, "is 301, 302, 303, 307 or 308");
                }
                Action::Redirect(redirect.clone())
            }
            wire::Action::DirectResponse(direct) => {
                if !(200..=599).contains(&direct.status) {
                    let value = direct.status.to_string();
                    self.problem(format!("{path}.directResponse.status"), value, "is 200 to 599");
                }
                let body = direct.body.as_deref().unwrap_or_default();
                let body = BASE64.decode(body.as_bytes()).unwrap_or_else(|e| {
                    self.problem(format!("{path}.directResponse.body"), "", format!("is not base64: {e}"));
                    Vec::new()
                });
                Action::DirectResponse {
                    status: direct.status,
                    body: body.into(),
                }
            }
        };
        let fault = wire.fault.clone().unwrap_or_default();
        Rule {
            log_name: wire.name.as_deref().map(Arc::from),
            matches,
            action,
            rewrite: self.rewrite(path, &wire.rewrite),
            request_headers: self.header_ops(&format!("{path}.requestHeaders"), &wire.request_headers),
            response_headers: self.header_ops(&format!("{path}.responseHeaders"), &wire.response_headers),
            timeout: wire.timeout_ms.map(Duration::from_millis),
            retry: match &wire.retry {
                Some(retry) => self.retry(&format!("{path}.retry"), retry),
                None => default_retry.clone(),
            },
            fault: Fault {
                delay: fault
                    .delay
                    .map(|delay| (Duration::from_millis(delay.fixed_ms), Share(delay.share_ppm))),
                abort: fault.abort.map(|abort| {
                    let share = Share(abort.share_ppm);
                    (abort, share)
                }),
            },
            mirrors: wire
                .mirrors
                .iter()
                .filter_map(|mirror| {
                    let cluster = self.find(&mirror.destination)?;
                    Some(Mirror {
                        cluster,
                        share: Share(mirror.share_ppm),
                    })
                })
                .collect(),
            cors: wire.cors.as_ref().map(|cors| self.cors(path, cors)),
            origin: Some(wire.origin.clone().map_or_else(|| origin.clone(), Arc::new)),
        }
    }

    fn find(&self, destination: &wire::Destination) -> Option<Arc<Cluster>> {
        let subset = destination.subset.as_deref().unwrap_or_default();
        self.index
            .get(&cluster_name(&destination.host, destination.port, subset))
            .cloned()
    }

    fn destinations(&mut self, path: &str, wire: &[wire::Destination]) -> Destinations {
        let list: Vec<Destination> = wire
            .iter()
            .enumerate()
            .map(|(i, destination)| {
                let path = format!("{path}.destinations[{i}]");
                let subset = destination.subset.as_deref().unwrap_or_default();
                Destination {
                    cluster: self.find(destination),
                    name: cluster_name(&destination.host, destination.port, subset).into(),
                    weight: destination.weight,
                    request_headers: self.header_ops(&format!("{path}.requestHeaders"), &destination.request_headers),
                    response_headers: self
                        .header_ops(&format!("{path}.responseHeaders"), &destination.response_headers),
                }
            })
            .collect();
        let total = list.iter().map(|destination| u64::from(destination.weight)).sum();
        if list.is_empty() {
            self.problem(format!("{path}.destinations"), "", "needs at least one destination");
        } else if list.len() > 1 && total == 0 {
            self.problem(format!("{path}.destinations"), "0", "weights total 0");
        }
        Destinations { list, total }
    }

    fn matching(&mut self, path: &str, wire: &wire::Match, rule: Option<&str>) -> Match {
        let log_name = wire.name.as_deref().map(|name| match rule {
            Some(rule) => Arc::from(format!("{rule}.{name}")),
            None => Arc::from(name),
        });
        Match {
            log_name,
            path: wire.path.as_ref().map(|text| PathTest {
                text: self.text(&format!("{path}.path"), text),
                any_case: wire.ignore_path_case,
            }),
            scheme: wire
                .scheme
                .as_ref()
                .map(|text| self.text(&format!("{path}.scheme"), text)),
            method: wire
                .method
                .as_ref()
                .map(|text| self.text(&format!("{path}.method"), text)),
            authority: wire.authority.as_ref().map(|text| {
                let (wire::StringMatch::Exact(value)
                | wire::StringMatch::Prefix(value)
                | wire::StringMatch::Regex(value)) = text;
                AuthorityTest {
                    text: self.text(&format!("{path}.authority"), text),
                    names_port: value
                        .rsplit_once(':')
                        .is_some_and(|(_, port)| port.bytes().next().is_some_and(|b| b.is_ascii_digit())),
                }
            }),
            headers: wire
                .headers
                .iter()
                .map(|header| HeaderTest {
                    name: header_name(&header.name),
                    value: header
                        .value
                        .as_ref()
                        .map(|text| self.text(&format!("{path}.headers[{}]", header.name), text)),
                    invert: header.invert,
                })
                .collect(),
            query: wire
                .query
                .iter()
                .map(|query| QueryTest {
                    name: query.name.as_bytes().into(),
                    value: query
                        .value
                        .as_ref()
                        .map(|text| self.text(&format!("{path}.query[{}]", query.name), text)),
                })
                .collect(),
        }
    }

    fn text(&mut self, path: &str, wire: &wire::StringMatch) -> Text {
        match wire {
            wire::StringMatch::Exact(text) => Text::Exact(text.as_bytes().into()),
            wire::StringMatch::Prefix(text) => Text::Prefix(text.as_bytes().into()),
            wire::StringMatch::Regex(pattern) => match self.regex(path, &format!("\\A(?:{pattern})\\z"), pattern) {
                Some(regex) => Text::Regex(regex),
                None => Text::Exact([].into()),
            },
        }
    }

    fn regex(&mut self, path: &str, full: &str, pattern: &str) -> Option<Regex> {
        if pattern.is_empty() || pattern.len() > REGEX_LENGTH {
            let message = format!("a regular expression has 1 to {REGEX_LENGTH} bytes");
            self.problem(path, pattern, message);
            return None;
        }
        // The expression must stand on its own, so that no parenthesis of it ends the anchoring group.
        let alone = RegexBuilder::new(pattern).size_limit(REGEX_SIZE_BYTES).build();
        match alone.and_then(|_| RegexBuilder::new(full).size_limit(REGEX_SIZE_BYTES).build()) {
            Ok(regex) => Some(regex),
            Err(e) => {
                self.problem(path, pattern, format!("is no regular expression of RE2 syntax: {e}"));
                None
            }
        }
    }

    fn rewrite(&mut self, path: &str, wire: &wire::Rewrite) -> Rewrite {
        let path_rewrite = match &wire.path {
            None => None,
            Some(wire::PathRewrite::Matched(text)) => Some(PathRewrite::Matched(Arc::from(text.as_str()))),
            Some(wire::PathRewrite::Regex { pattern, substitution }) => self
                .regex(&format!("{path}.rewrite.path.regex.pattern"), pattern, pattern)
                .map(|pattern| PathRewrite::Regex {
                    pattern,
                    substitution: replacement(substitution),
                }),
        };
        Rewrite {
            authority: wire.authority.as_deref().map(Arc::from),
            path: path_rewrite,
        }
    }

    fn header_ops(&mut self, path: &str, wire: &wire::HeaderOps) -> HeaderOps {
        let mut values = |kind: &str, list: &[(String, String)]| {
            list.iter()
                .map(|(name, value)| {
                    let template = template(value).unwrap_or_else(|message| {
                        self.problem(format!("{path}.{kind}[{name}]"), value, message);
                        Template { pieces: Vec::new() }
                    });
                    if !is_field_name(name) {
                        self.problem(format!("{path}.{kind}"), name, "is no header field name");
                    }
                    if value.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f) {
                        self.problem(format!("{path}.{kind}[{name}]"), value, "has control characters");
                    }
                    (Arc::from(name.as_str()), template)
                })
                .collect::<Vec<_>>()
        };
        HeaderOps {
            set: values("set", &wire.set),
            add: values("add", &wire.add),
            remove: wire
                .remove
                .iter()
                .map(|name| Arc::from(name.to_ascii_lowercase()))
                .collect(),
        }
    }

    fn retry(&mut self, path: &str, wire: &wire::RetryPolicy) -> Retry {
        let mut on = RetryOn::default();
        let mut statuses_on = false;
        let mut statuses = Vec::new();
        for word in &wire.on {
            match word.as_str() {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "refused-stream" => on.refused_stream = true,
                "retriable-status-codes" => statuses_on = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "retriable-headers" | "http3-post-connect-failure" => {}
                "cancelled" => on.grpc |= 1 << 1,
                "deadline-exceeded" => on.grpc |= 1 << 4,
                "resource-exhausted" => on.grpc |= 1 << 8,
                "internal" => on.grpc |= 1 << 13,
                "unavailable" => on.grpc |= 1 << 14,
                number => match number.parse::<u16>() {
                    Ok(status) if (100..600).contains(&status) => statuses.push(status),
                    _ => self.problem(
                        format!("{path}.on"),
                        number,
                        "is no condition of VirtualService retries",
                    ),
                },
            }
        }
        if statuses_on {
            statuses.extend(&wire.statuses);
        }
        Retry {
            attempts: wire.attempts,
            on,
            statuses,
            per_try_timeout: wire.per_try_timeout_ms.map(Duration::from_millis),
            backoff: Duration::from_millis(wire.backoff_ms),
            avoid_tried: wire.avoid_tried,
            next_locality: wire.next_locality,
        }
    }

    fn cors(&mut self, path: &str, wire: &wire::Cors) -> Cors {
        let is_any = |origin: &wire::StringMatch| *origin == wire::StringMatch::Exact("*".into());
        Cors {
            any_origin: wire.allow_origins.iter().any(is_any),
            origins: wire
                .allow_origins
                .iter()
                .filter(|origin| !is_any(origin))
                .map(|origin| self.text(&format!("{path}.cors.allowOrigins"), origin))
                .collect(),
            policy: wire.clone(),
        }
    }

    fn subnets(&mut self, path: &str, wire: &[wire::Subnet]) -> Vec<wire::Subnet> {
        for subnet in wire {
            let longest = match subnet.address {
                IpAddr::V4(_) => 32,
                IpAddr::V6(_) => 128,
            };
            if subnet.prefix > longest {
                let value = format!("{}/{}", subnet.address, subnet.prefix);
                self.problem(
                    format!("{path}.subnets"),
                    value,
                    format!("a prefix has 0 to {longest} bits"),
                );
            }
        }
        wire.to_vec()
    }
}

/// Name of a cluster (LOG-023).
fn cluster_name(host: &str, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The rules of a host without VirtualService: all to its own endpoints (SM-048).
fn default_table(cluster: &Arc<Cluster>, retry: &Retry) -> RouteTable {
    let name: Arc<str> = Arc::from("default");
    let destination = Destination {
        cluster: Some(cluster.clone()),
        name: cluster.name.clone(),
        weight: 1,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
    };
    let rule = Rule {
        log_name: Some(name.clone()),
        matches: Vec::new(),
        action: Action::Destinations(Destinations {
            list: vec![destination],
            total: 1,
        }),
        rewrite: Rewrite::default(),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retry: retry.clone(),
        fault: Fault::default(),
        mirrors: Vec::new(),
        cors: None,
        origin: None,
    };
    RouteTable {
        name,
        origin: None,
        rules: vec![Arc::new(rule)],
    }
}

fn header_name(name: &str) -> HeaderName {
    match name {
        ":method" => HeaderName::Method,
        ":scheme" => HeaderName::Scheme,
        ":authority" | "host" => HeaderName::Authority,
        ":path" => HeaderName::Path,
        name => HeaderName::Field(name.to_ascii_lowercase().into()),
    }
}

fn is_field_name(name: &str) -> bool {
    let name = if name == ":authority" { "host" } else { name };
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(is_token)
}

/// Translates `\0`..`\9` into the notation of the `regex` crate.
fn replacement(substitution: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(substitution.len());
    let mut bytes = substitution.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(digit)) if digit.is_ascii_digit() => {
                out.extend_from_slice(&[b'$', b'{', *digit, b'}']);
                bytes.next();
            }
            (b'\\', Some(b'\\')) => {
                out.push(b'\\');
                bytes.next();
            }
            (b'$', _) => out.extend_from_slice(b"$$"),
            (byte, _) => out.push(byte),
        }
    }
    out
}

/// Parses a header value with `%VARIABLES%`; `%%` is a percent sign.
pub(super) fn template(text: &str) -> Result<Template, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let (variable, after) = variable(rest)?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(variable);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(Template { pieces })
}

/// Parses `NAME(argument):limit%` and gives what follows.
fn variable(text: &str) -> Result<(Piece, &str), String> {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .ok_or("has a `%` without its partner; a percent sign is written `%%`")?;
    let name = text[..end].to_owned();
    let mut rest = &text[end..];
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let close = inner.find(')').ok_or("has an open parenthesis")?;
        argument = Some(inner[..close].to_owned());
        rest = &inner[close + 1..];
    }
    let mut limit = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find('%').ok_or("has a `%` without its partner")?;
        limit = Some(digits[..end].parse().map_err(|_| "has a limit that is no number")?);
        rest = &digits[end..];
    }
    let rest = rest
        .strip_prefix('%')
        .ok_or("has a `%` without its partner; a percent sign is written `%%`")?;
    if name.is_empty() {
        return Err("has a variable without name".into());
    }
    Ok((Piece::Variable { name, argument, limit }, rest))
}
