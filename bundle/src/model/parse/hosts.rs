//! Hosts, and the clusters and ports that they have.

use std::collections::HashSet;
use std::sync::Arc;

use super::rules::default_table;
use super::{Parser, Routes, Source, cluster_name};
use crate::item::Item;
use crate::model::reuse::{Known, Part};
use crate::model::{Cluster, Destinations, Domain, Host, Places, Port, Refused, Retry, RouteTable, TcpRule, TlsRule};
use crate::pace::breathe;
use crate::wire;

impl Parser<'_> {
    /// Makes hosts and their clusters, apart from those that are what they were.
    pub(super) fn hosts<'i>(&mut self, items: &'i [Item<'_, wire::Host>]) -> Result<Vec<Source<'i>>, Refused> {
        let earlier = self.before.map_or(&[][..], |before| &before.parts);
        let mut known = Known::new(earlier);
        let mut sources = Vec::with_capacity(items.len());
        for item in items {
            breathe();
            sources.push(match known.find(item.digest()) {
                Some(place) => Source::Kept(place),
                None => Source::New(item.read()?),
            });
        }
        let kept = || sources.iter().map(Source::kept);
        if let Some(before) = self.before.filter(|_| kept().eq((0..earlier.len()).map(Some))) {
            self.has_same_hosts = true;
            self.hosts.clone_from(&before.hosts);
            self.clusters.clone_from(&before.clusters);
            self.parts.clone_from(&before.parts);
            self.index = before.index.clone();
            return Ok(sources);
        }
        let clusters = self.before.map_or(&[][..], |before| &before.clusters);
        let clusters_at = |place: usize| &clusters[earlier[place].made.clusters.clone()];
        let mut ids = Ids::beside(kept().flatten().flat_map(clusters_at));
        for (source, item) in sources.iter().zip(items) {
            breathe();
            let first = self.clusters.len();
            match source {
                Source::Kept(place) => {
                    self.hosts
                        .extend(self.before.map(|before| before.hosts[*place].clone()));
                    clusters_at(*place)
                        .iter()
                        .for_each(|cluster| self.list(cluster.clone()));
                }
                Source::New(wire) => self.host(wire, &mut ids),
            }
            let clusters = first..self.clusters.len();
            self.parts.push(Part {
                digest: item.digest(),
                made: Places { clusters, ports: 0..0 },
            });
        }
        Ok(sources)
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

    fn host(&mut self, wire: &wire::Host, ids: &mut Ids) {
        let host = Arc::new(Host {
            host: Arc::from(wire.host.as_str()),
            name: Arc::from(wire.name.as_str()),
            namespace: Arc::from(wire.namespace.as_str()),
            addresses: wire.addresses.clone(),
            allocated: wire.allocated.clone(),
            headless: wire.headless,
            node_local: wire.node_local,
            kind: wire.kind,
            discovery: wire.discovery.clone(),
            identities: wire.identities.clone(),
            domains: wire.domains.iter().map(|name| Arc::from(name.as_str())).collect(),
            subnets: wire.subnets.clone(),
        });
        self.clusters(wire, &host, ids);
        self.hosts.push(host);
    }

    /// Makes a cluster for each port of a host, and for each of its subsets.
    fn clusters(&mut self, wire: &wire::Host, host: &Arc<Host>, ids: &mut Ids) {
        for port in &wire.ports {
            let path = format!("hosts[{}].ports[{}]", host.host, port.port);
            if port.port == 0 {
                self.problem(path.as_str(), "0", "a port is a number from 1 to 65535");
            }
            self.policy(&path, &port.policy);
            self.cluster(host, port, None, ids);
            for subset in &wire.subsets {
                self.cluster(host, port, Some(subset), ids);
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

    fn cluster(&mut self, host: &Arc<Host>, port: &wire::HostPort, subset: Option<&wire::Subset>, ids: &mut Ids) {
        let subset_name = subset.map_or("", |subset| subset.name.as_str());
        let name = cluster_name(&host.host, port.port, subset_name);
        let sni = format!("outbound_.{}_.{subset_name}_.{}", port.port, host.host);
        let policy = subset
            .and_then(|subset| subset.policies.get(&port.port))
            .unwrap_or(&port.policy);
        let cluster = Cluster {
            id: ids.next(),
            name: Arc::from(name),
            host: host.clone(),
            port: port.port,
            port_name: Arc::from(port.name.as_str()),
            target_port: port.target_port,
            protocol: port.protocol,
            subset: subset.map(|subset| Arc::from(subset.name.as_str())),
            labels: subset.map(|subset| subset.labels.clone()).unwrap_or_default(),
            policy: self.shared(policy),
            sni: (sni.len() <= 255).then(|| Arc::from(sni.as_str())),
        };
        self.list(Arc::new(cluster));
    }

    fn shared(&mut self, policy: &wire::Policy) -> Arc<wire::Policy> {
        let last = self.policy.take().filter(|last| **last == *policy);
        let shared = last.unwrap_or_else(|| Arc::new(policy.clone()));
        self.policy.insert(shared).clone()
    }

    fn list(&mut self, cluster: Arc<Cluster>) {
        let place = u32::try_from(self.clusters.len()).expect("a bundle is smaller than 64 MiB");
        let name = cluster.name.clone();
        self.clusters.push(cluster);
        if Arc::make_mut(&mut self.index).insert(name.clone(), place).is_some() {
            self.problem("hosts", &*name, "host, port and subset are listed twice");
        }
    }

    pub(super) fn policy(&mut self, path: &str, policy: &wire::Policy) {
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

    /// Makes the ports of hosts, apart from those that are what they were: what names and addresses lead to.
    pub(super) fn ports(
        &mut self,
        sources: &[Source<'_>],
        routes: &Routes<'_>,
        default_retry: &Retry,
        has_same_retry: bool,
    ) -> Vec<Domain> {
        let mut leads = Vec::with_capacity(sources.len());
        for (i, source) in sources.iter().enumerate() {
            breathe();
            let first = leads.len();
            match source {
                Source::Kept(place) => {
                    let before = self
                        .before
                        .map_or(&[][..], |b| &b.leads[b.parts[*place].made.ports.clone()]);
                    let retry = (!has_same_retry).then_some(default_retry);
                    leads.extend(before.iter().filter_map(|lead| self.kept_port(lead, routes, retry)));
                }
                Source::New(wire) => {
                    let host = self.hosts[i].clone();
                    self.discovery(wire);
                    for port in wire.ports.iter().filter(|port| !port.target_only) {
                        let port = self.new_port(port, &host, routes, default_retry);
                        leads.extend(port.map(|port| Domain::of(Arc::new(port))));
                    }
                }
            }
            self.parts[i].made.ports = first..leads.len();
        }
        leads
    }

    /// The port of a host that is what it was; `retry` is what rules without their own have, where that is not what it was.
    fn kept_port(&mut self, lead: &Domain, routes: &Routes<'_>, retry: Option<&Retry>) -> Option<Domain> {
        let port = lead.port.as_ref()?;
        let http = match (&port.http.origin, retry) {
            (Some(_), _) => self.table_of(&port.host, port.number, &port.http.name, routes)?,
            (None, None) => port.http.clone(),
            (None, Some(retry)) => Arc::new(default_table(&port.cluster, retry)),
        };
        let tls = port.tls.iter().map(|rule| &rule.destinations);
        let mut destinations = tls.chain(port.tcp.iter().map(|rule| &rule.destinations));
        if Arc::ptr_eq(&http, &port.http) && destinations.all(|destinations| self.are_same(destinations)) {
            return Some(lead.clone());
        }
        let tls = port.tls.iter().map(|rule| TlsRule {
            destinations: self.found_again(&rule.destinations),
            ..rule.clone()
        });
        let tcp = port.tcp.iter().map(|rule| TcpRule {
            destinations: self.found_again(&rule.destinations),
            ..rule.clone()
        });
        Some(Domain::of(Arc::new(Port {
            host: port.host.clone(),
            number: port.number,
            protocol: port.protocol,
            grpc_web: port.grpc_web,
            http,
            tls: tls.collect(),
            tcp: tcp.collect(),
            cluster: port.cluster.clone(),
        })))
    }

    /// Destinations of before, as they are now.
    fn found_again(&self, destinations: &Destinations) -> Destinations {
        let mut again = destinations.clone();
        for destination in &mut again.list {
            destination.cluster = self.by_name(&destination.name).cloned();
        }
        again
    }

    fn table_of(&mut self, host: &Host, port: u16, name: &str, routes: &Routes<'_>) -> Option<Arc<RouteTable>> {
        let table = routes.get(name).map(|table| (*table).clone());
        if table.is_none() {
            let path = format!("hosts[{}].ports[{port}].http", host.host);
            self.problem(path, name, "names no route table");
        }
        table
    }

    fn new_port(
        &mut self,
        wire: &wire::HostPort,
        host: &Arc<Host>,
        routes: &Routes<'_>,
        default_retry: &Retry,
    ) -> Option<Port> {
        let cluster = self.by_name(&cluster_name(&host.host, wire.port, ""))?.clone();
        let http = match &wire.http {
            None => Arc::new(default_table(&cluster, default_retry)),
            Some(name) => self.table_of(host, wire.port, name, routes)?,
        };
        let path = format!("hosts[{}].ports[{}]", host.host, wire.port);
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
}

/// Numbers for clusters that none has of those that stay.
struct Ids {
    taken: HashSet<usize>,
    next: usize,
}

impl Ids {
    fn beside<'c>(kept: impl Iterator<Item = &'c Arc<Cluster>>) -> Self {
        Self {
            taken: kept.map(|cluster| cluster.id).collect(),
            next: 0,
        }
    }

    fn next(&mut self) -> usize {
        while self.taken.contains(&self.next) {
            self.next += 1;
        }
        self.next += 1;
        self.next - 1
    }
}
