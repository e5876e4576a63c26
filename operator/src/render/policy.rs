//! Which DestinationRule a client uses for a service, and what it says for a port or subset (DR-005 ff.).

use std::collections::BTreeMap;

use weft_bundle::key::{KeyInputs, Template};
use weft_bundle::wire::{
    ConsistentHash, CredentialKind, HashKey, Http2Keepalive, HttpVersion, LoadBalancer, OriginateTls, Outlier, Policy,
    Protocol, ProxyProtocol, RetryBudget, Subset, TcpKeepalive, Tunnel, UpstreamCredential, UpstreamTls, Warmup,
};
use weft_crds::DestinationRule;
use weft_crds::destination_rule::{
    self as api, ClientTLSSettings, ConnectionPoolSettings, ConsistentHashLB, LoadBalancerSettings, OutlierDetection,
    PortTrafficPolicy, Subset as RuleSubset, TrafficPolicy,
};
use weft_crds::duration::Duration;
use weft_crds::validate::host;

use super::service::{Port, Registered, visibility};
use super::{Shared, credential};

mod locality;

/// Whose policy is rendered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client<'a> {
    namespace: &'a str,
    /// `None`: the server side of its own service, for which rules with a selector do not count (DR-016).
    labels: Option<&'a BTreeMap<String, String>>,
    is_gateway: bool,
}

impl<'a> Client<'a> {
    /// A workload as client.
    pub(super) fn new(inputs: &'a KeyInputs) -> Self {
        Self {
            labels: Some(&inputs.labels),
            is_gateway: inputs.template == Template::Gateway,
            ..Self::anybody(&inputs.namespace)
        }
    }

    /// Nobody in particular of a namespace.
    pub(super) fn anybody(namespace: &'a str) -> Self {
        Self {
            namespace,
            labels: None,
            is_gateway: false,
        }
    }
}

/// The rules that one client uses for one service, merged: the first that sets something decides (DR-011).
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    rules: Vec<&'a DestinationRule>,
    client: Client<'a>,
}

impl<'a> Chosen<'a> {
    /// Looks on three levels; the first with a rule decides alone (DR-005).
    pub(super) fn new(shared: &Shared<'a>, service: &Registered<'_>, client: Client<'a>) -> Self {
        Self {
            rules: rules(shared, service, client),
            client,
        }
    }
    /// `namespace/name` of the oldest.
    fn name(&self) -> Option<String> {
        let metadata = &self.rules.first()?.metadata;
        Some(format!(
            "{}/{}",
            metadata.namespace.as_deref()?,
            metadata.name.as_deref()?
        ))
    }

    fn policy(&self) -> Option<&'a TrafficPolicy> {
        self.rules.iter().find_map(|r| r.spec.traffic_policy.as_ref())
    }

    /// Subsets of all rules; of a repeated name the oldest (DR-011).
    fn subsets(&self) -> BTreeMap<&'a str, &'a RuleSubset> {
        let mut out = BTreeMap::new();
        for subset in self.rules.iter().flat_map(|r| &r.spec.subsets) {
            out.entry(subset.name.as_str()).or_insert(subset);
        }
        out
    }

    /// Whether a subset is defined.
    pub(super) fn has_subset(&self, name: &str) -> bool {
        self.subsets().contains_key(name)
    }

    /// The policy of a port.
    pub(super) fn port(&self, shared: &Shared<'_>, service: &Registered<'_>, port: &Port) -> Policy {
        let blocks = self.policy().map(|p| Blocks::of(p, port.number)).unwrap_or_default();
        self.resolve(shared, service, port, blocks)
    }

    /// What the policy of a port says of connections from the server proxy to its application (DR-089). `pool` takes the
    /// place of the rule's (SE-094).
    pub(super) fn inbound(&self, shared: &Shared<'_>, port: u16, pool: Option<&ConnectionPoolSettings>) -> Policy {
        if let Some(settings) = pool {
            return self::pool(shared, settings);
        }
        let blocks = self.policy().map(|p| Blocks::of(p, port)).unwrap_or_default();
        let pool = Pool::of(shared, blocks, self.policy());
        let by_client = pool.http.and_then(|h| h.use_client_protocol) == Some(true);
        Policy {
            http_version: by_client.then_some(HttpVersion::Client),
            ..pool.policy(shared)
        }
    }

    /// The subsets, each with the policies of ports where they differ from that of the service (DR-022, DR-023).
    pub(super) fn render_subsets(&self, shared: &Shared<'_>, service: &Registered<'_>) -> Vec<Subset> {
        let top = self.policy();
        let render = |(name, subset): (&str, &RuleSubset)| {
            let mut policies = BTreeMap::new();
            for port in &service.ports {
                let blocks = subset_blocks(top, subset.traffic_policy.as_ref(), port.number);
                let policy = self.resolve(shared, service, port, blocks);
                if policy != self.port(shared, service, port) {
                    policies.insert(port.number, policy);
                }
            }
            Subset {
                name: name.to_owned(),
                labels: subset.labels.clone(),
                policies,
            }
        };
        self.subsets().into_iter().map(render).collect()
    }
}

/// The rules of the level that decides, of the most specific host, merged or the newest alone (DR-005..DR-014).
fn rules<'a>(shared: &Shared<'a>, service: &Registered<'_>, client: Client<'_>) -> Vec<&'a DestinationRule> {
    let root = shared.world.root_namespace();
    let domain = &shared.world.settings.cluster_domain;
    let covering = |namespace: &str| -> Vec<(&'a DestinationRule, String)> {
        let of = shared
            .sound
            .destination_rules
            .iter()
            .filter(|r| r.metadata.namespace.as_deref() == Some(namespace));
        of.map(|r| (*r, host::expand(&r.spec.host, namespace, domain)))
            .filter(|(_, pattern)| host::covers(pattern, &service.host))
            .collect()
    };
    let exported = |rule: &DestinationRule| {
        let namespace = rule.metadata.namespace.as_deref().unwrap_or_default();
        if rule.spec.workload_selector.is_some() {
            // Private to its namespace whatever `exportTo` says (DR-015).
            return namespace == client.namespace;
        }
        visibility(export_to(shared, rule), namespace).is_none_or(|to| to.contains(client.namespace))
    };
    let private = |rule: &DestinationRule| {
        let to = export_to(shared, rule);
        to.iter().any(|n| n == "." || *n == client.namespace)
    };
    // Level 1: the client's own namespace (DR-006); a rule with a selector is preferred by the pods that it selects,
    // and keeps the others from looking further (DR-014, DR-131).
    let mut own: Vec<_> = covering(client.namespace)
        .into_iter()
        .filter(|(r, _)| exported(r))
        .collect();
    if client.namespace == root {
        own.retain(|(r, _)| private(r) || r.spec.workload_selector.is_some());
    }
    if client.labels.is_none() {
        own.retain(|(r, _)| r.spec.workload_selector.is_none());
    }
    if !own.is_empty() {
        let (plain, selective): (Vec<_>, Vec<_>) = most_specific(own)
            .into_iter()
            .partition(|r| r.spec.workload_selector.is_none());
        let selects = |rule: &DestinationRule| {
            let wanted = rule.spec.workload_selector.as_ref().map(|s| &s.match_labels);
            let has = |(k, v): (&String, &String)| client.labels.is_some_and(|labels| labels.get(k) == Some(v));
            wanted.is_some_and(|labels| labels.iter().all(has))
        };
        let Some(first) = selective.iter().find(|r| selects(r)) else {
            return newest(shared, plain);
        };
        // Those with equal selectors are one (DR-014).
        let selector = first.spec.workload_selector.clone();
        return selective
            .into_iter()
            .filter(|r| r.spec.workload_selector == selector)
            .collect();
    }
    // Levels 2 and 3: the most specific host is chosen before its visibility is looked at (DR-007).
    for namespace in [service.namespace, root] {
        if namespace == client.namespace && namespace != root {
            continue;
        }
        let candidates = covering(namespace)
            .into_iter()
            .filter(|(r, _)| r.spec.workload_selector.is_none());
        let found = most_specific(candidates.collect());
        let visible: Vec<_> = merge_groups(shared, found)
            .into_iter()
            .filter(|group| group.first().is_some_and(|oldest| exported(oldest)))
            .collect();
        if let Some(newest) = visible.into_iter().next_back() {
            return newest;
        }
    }
    Vec::new()
}

/// Where a rule is visible: what it says, else what the mesh config says, of which `.` alone limits it (DR-013).
fn export_to<'r>(shared: &'r Shared<'_>, rule: &'r DestinationRule) -> &'r [String] {
    if !rule.spec.export_to.is_empty() {
        return &rule.spec.export_to;
    }
    let default = &shared.world.mesh.default_destination_rule_export_to;
    default.iter().find(|n| *n == ".").map_or(&[], std::slice::from_ref)
}

/// Of rules of one namespace and host those that a client uses: the newest group, where not all are one (DR-012).
fn newest<'a>(shared: &Shared<'a>, rules: Vec<&'a DestinationRule>) -> Vec<&'a DestinationRule> {
    merge_groups(shared, rules).pop().unwrap_or_default()
}

/// Rules of one namespace and host, oldest first, in groups that are one rule each: a younger one joins when its
/// `exportTo` equals that of the oldest of a group, or contains it and that one is set (DR-011, DR-012).
fn merge_groups<'a>(shared: &Shared<'a>, rules: Vec<&'a DestinationRule>) -> Vec<Vec<&'a DestinationRule>> {
    let mut groups: Vec<Vec<&'a DestinationRule>> = Vec::new();
    for rule in rules {
        let namespace = rule.metadata.namespace.as_deref().unwrap_or_default();
        let of = |r: &DestinationRule| visibility(export_to(shared, r), namespace);
        let joins = |group: &&mut Vec<&DestinationRule>| {
            let Some(oldest) = group.first() else { return false };
            match (of(oldest), of(rule)) {
                (older, younger) if older == younger => true,
                (Some(older), Some(younger)) => older.is_subset(&younger),
                (Some(_), None) => true,
                (None, _) => false,
            }
        };
        match groups.iter_mut().find(joins) {
            Some(group) => group.push(rule),
            None => groups.push(vec![rule]),
        }
    }
    groups
}

/// Of rules that cover a host those with the most specific pattern: exact, else the longest suffix (DR-008).
fn most_specific(rules: Vec<(&DestinationRule, String)>) -> Vec<&DestinationRule> {
    let rank = |pattern: &str| (!pattern.starts_with('*'), pattern.len());
    let Some(best) = rules.iter().map(|(_, p)| rank(p)).max() else {
        return Vec::new();
    };
    rules
        .into_iter()
        .filter(|(_, p)| rank(p) == best)
        .map(|(r, _)| r)
        .collect()
}

/// The four blocks in force.
#[derive(Debug, Clone, Copy, Default)]
struct Blocks<'a> {
    load_balancer: Option<&'a LoadBalancerSettings>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTLSSettings>,
    proxy_protocol: Option<&'a api::ProxyProtocol>,
    retry_budget: Option<&'a api::RetryBudget>,
    tunnel: Option<&'a api::TunnelSettings>,
    /// They come from an entry for the port of a subset: what it leaves out is the built-in default (DR-024).
    built_in: bool,
}

impl<'a> Blocks<'a> {
    /// An entry for the port replaces all four (DR-019), and leaves of the rest the tunnel alone (DR-021).
    fn of(policy: &'a TrafficPolicy, port: u16) -> Self {
        match entry(policy, port) {
            Some(entry) => Self {
                tunnel: policy.tunnel.as_ref(),
                ..Self::from_entry(entry)
            },
            None => Self {
                proxy_protocol: policy.proxy_protocol.as_ref(),
                retry_budget: policy.retry_budget.as_ref(),
                tunnel: policy.tunnel.as_ref(),
                load_balancer: policy.load_balancer.as_ref(),
                connection_pool: policy.connection_pool.as_ref(),
                outlier_detection: policy.outlier_detection.as_ref(),
                tls: policy.tls.as_ref(),
                built_in: false,
            },
        }
    }

    fn from_entry(entry: &'a PortTrafficPolicy) -> Self {
        Self {
            load_balancer: entry.load_balancer.as_ref(),
            connection_pool: entry.connection_pool.as_ref(),
            outlier_detection: entry.outlier_detection.as_ref(),
            tls: entry.tls.as_ref(),
            ..Self::default()
        }
    }
}

fn entry(policy: &TrafficPolicy, port: u16) -> Option<&PortTrafficPolicy> {
    policy
        .port_level_settings
        .iter()
        .find(|e| e.port.as_ref().is_some_and(|p| p.number == i64::from(port)))
}

/// A block that the subset sets replaces the one of the service; an entry for the port replaces all (DR-022, DR-023).
fn subset_blocks<'a>(top: Option<&'a TrafficPolicy>, own: Option<&'a TrafficPolicy>, port: u16) -> Blocks<'a> {
    // A tunnel is not inherited (DR-126).
    let inherited = Blocks {
        tunnel: None,
        ..top.map(|p| Blocks::of(p, port)).unwrap_or_default()
    };
    let Some(own) = own else { return inherited };
    if let Some(entry) = entry(own, port) {
        return Blocks {
            built_in: true,
            tunnel: own.tunnel.as_ref(),
            ..Blocks::from_entry(entry)
        };
    }
    Blocks {
        load_balancer: own.load_balancer.as_ref().or(inherited.load_balancer),
        connection_pool: own.connection_pool.as_ref().or(inherited.connection_pool),
        outlier_detection: own.outlier_detection.as_ref().or(inherited.outlier_detection),
        tls: own.tls.as_ref().or(inherited.tls),
        proxy_protocol: own.proxy_protocol.as_ref().or(inherited.proxy_protocol),
        retry_budget: own.retry_budget.as_ref().or(inherited.retry_budget),
        tunnel: own.tunnel.as_ref(),
        built_in: false,
    }
}

impl Chosen<'_> {
    fn resolve(&self, shared: &Shared<'_>, service: &Registered<'_>, port: &Port, blocks: Blocks<'_>) -> Policy {
        let mesh = &shared.world.mesh;
        let defaults = mesh.default_traffic_policy.as_ref().filter(|_| !blocks.built_in);
        let outlier = blocks
            .outlier_detection
            .or_else(|| defaults.and_then(|d| d.outlier_detection.as_ref()));
        let pool = Pool::of(shared, blocks, self.policy());
        let settings = blocks.load_balancer;
        let version = http_version(
            pool.http.and_then(|h| h.h2_upgrade_policy.as_deref()),
            pool.http.and_then(|h| h.use_client_protocol),
            mesh.h2_upgrade_policy.as_deref(),
        );
        // Sidecars keep the client's version where none is declared (DR-085).
        let is_upgraded = port.protocol.is_http() || self.client.is_gateway;
        // Gateways have another client's (GW-078).
        let undeclared = (self.client.is_gateway && port.protocol == Protocol::Auto).then_some(HttpVersion::Http1);
        Policy {
            rule: self.name(),
            load_balancer: settings.map(load_balancer).unwrap_or_default(),
            locality: locality::locality(shared, service, self.client, settings, outlier.is_some()),
            warmup: settings.and_then(warmup),
            retry_budget: blocks.retry_budget.map(retry_budget),
            http_version: version
                .filter(|v| is_upgraded || *v == HttpVersion::Client)
                .or(undeclared),
            outlier: outlier.map(outlier_detection),
            tls: blocks
                .tls
                .map(|settings| self.tls(shared, service, settings))
                .unwrap_or_else(|| {
                    // What is outside takes no mesh mTLS (DR-123).
                    if mesh.enable_auto_mtls == Some(false) || service.external {
                        UpstreamTls::Disable
                    } else {
                        UpstreamTls::Auto
                    }
                }),
            proxy_protocol: blocks.proxy_protocol.map(|p| match p.version.as_deref() {
                Some("V2") => ProxyProtocol::V2,
                _ => ProxyProtocol::V1,
            }),
            tunnel: blocks.tunnel.and_then(|tunnel| {
                Some(Tunnel {
                    post: tunnel.protocol.as_deref() == Some("POST"),
                    host: tunnel.target_host.clone(),
                    port: u16::try_from(tunnel.target_port).ok()?,
                })
            }),
            ..pool.policy(shared)
        }
    }

    /// A block without a mode turns TLS off (DR-107).
    fn tls(&self, shared: &Shared<'_>, service: &Registered<'_>, settings: &ClientTLSSettings) -> UpstreamTls {
        // A rule's names take the place of those of a ServiceEntry (SE-019, DR-116).
        let names = || match settings.subject_alt_names.as_slice() {
            [] => service.subject_alt_names(),
            own => own.to_vec(),
        };
        match settings.mode.as_deref() {
            Some("ISTIO_MUTUAL") => UpstreamTls::Mesh {
                sni: settings.sni.clone().filter(|s| !s.is_empty()),
                subject_alt_names: settings.subject_alt_names.clone(),
            },
            Some(mode @ ("SIMPLE" | "MUTUAL")) => {
                let is_mutual = mode == "MUTUAL";
                // Where it cannot be provided, requests fail instead of going out in clear (BYD-061).
                let (credential, unavailable) = match self.credential(settings, is_mutual).transpose() {
                    Ok(credential) => (credential, None),
                    Err(why) => (None, Some(why)),
                };
                let defaults = shared.world.mesh.tls_defaults.as_ref();
                let ca = settings
                    .ca_certificates
                    .clone()
                    .filter(|ca| !ca.is_empty() && ca != "system");
                UpstreamTls::Originate(Box::new(OriginateTls {
                    sni: settings.sni.clone().filter(|s| !s.is_empty()),
                    // They are not verified where nothing is (DR-119).
                    subject_alt_names: if settings.insecure_skip_verify == Some(true) {
                        Vec::new()
                    } else {
                        names()
                    },
                    certificate: settings.client_certificate.clone().filter(|_| is_mutual),
                    key: settings.private_key.clone().filter(|_| is_mutual),
                    crl: settings.ca_crl.clone().filter(|crl| !crl.is_empty() && ca.is_some()),
                    ca,
                    cipher_suites: defaults.map(|d| d.cipher_suites.clone()).unwrap_or_default(),
                    curves: defaults.map(|d| d.ecdh_curves.clone()).unwrap_or_default(),
                    chain_alone: shared.world.mesh.weft.compatibility.as_deref() == Some("istio"),
                    insecure_skip_verify: settings.insecure_skip_verify == Some(true),
                    credential,
                    unavailable,
                }))
            }
            _ => UpstreamTls::Disable,
        }
    }

    /// What takes the place of files (DR-114).
    fn credential(&self, settings: &ClientTLSSettings, is_mutual: bool) -> Option<Result<UpstreamCredential, String>> {
        let name = settings.credential_name.as_deref().filter(|name| !name.is_empty())?;
        let has_selector = |rule: &&DestinationRule| rule.spec.workload_selector.is_some();
        let reads_secrets = self.client.is_gateway || self.rules.first().is_some_and(has_selector);
        let found = credential::upstream(name, self.client.namespace, reads_secrets);
        Some(found.and_then(|found| {
            if is_mutual && found.kind == CredentialKind::ConfigMap {
                return Err(format!("MUTUAL needs a Secret, and {found} has no key"));
            }
            Ok(UpstreamCredential {
                shows_certificate: is_mutual,
                has_authorities: settings.insecure_skip_verify != Some(true),
                ..found
            })
        }))
    }
}

/// Settings of connections to the application that a Sidecar states (SE-095).
pub(super) fn pool(shared: &Shared<'_>, settings: &ConnectionPoolSettings) -> Policy {
    let pool = Pool {
        tcp: settings.tcp.as_ref(),
        http: settings.http.as_ref(),
        top: settings.tcp.as_ref(),
    };
    let by_client = settings.http.as_ref().and_then(|h| h.use_client_protocol) == Some(true);
    Policy {
        http_version: by_client.then_some(HttpVersion::Client),
        ..pool.policy(shared)
    }
}

/// Settings of connections in force.
struct Pool<'a> {
    tcp: Option<&'a api::TCPSettings>,
    http: Option<&'a api::HTTPSettings>,
    /// Those of the whole service, which alone count for the age of opaque connections (DR-132).
    top: Option<&'a api::TCPSettings>,
}

impl<'a> Pool<'a> {
    fn of(shared: &'a Shared<'_>, blocks: Blocks<'a>, top: Option<&'a TrafficPolicy>) -> Self {
        let defaults = shared.world.mesh.default_traffic_policy.as_ref();
        let default = defaults.and_then(|d| d.connection_pool.as_ref());
        let pool = blocks.connection_pool.or(default.filter(|_| !blocks.built_in));
        let top = top.and_then(|p| p.connection_pool.as_ref()).or(default);
        Self {
            tcp: pool.and_then(|p| p.tcp.as_ref()),
            http: pool.and_then(|p| p.http.as_ref()),
            top: top.and_then(|p| p.tcp.as_ref()),
        }
    }

    fn policy(&self, shared: &Shared<'_>) -> Policy {
        let mesh = &shared.world.mesh;
        let Self { tcp, http, top } = *self;
        let limit = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let hour = 3_600_000;
        let connect = tcp
            .and_then(|t| millis(t.connect_timeout.as_ref()))
            .or_else(|| millis(mesh.connect_timeout.as_ref()));
        let idle = tcp.and_then(|t| millis(t.idle_timeout.as_ref()));
        let keepalive = [tcp.and_then(|t| t.tcp_keepalive.as_ref()), mesh.tcp_keepalive.as_ref()];
        let ping = http.and_then(|h| h.http2_keep_alive.as_ref());
        Policy {
            connect_timeout_ms: connect.unwrap_or(10_000),
            max_connections: tcp.and_then(|t| limit(t.max_connections)),
            max_pending_requests: http.and_then(|h| limit(h.http1_max_pending_requests)),
            max_requests: http.and_then(|h| limit(h.http2_max_requests)),
            max_retries: http.and_then(|h| limit(h.max_retries)),
            max_requests_per_connection: http.and_then(|h| limit(h.max_requests_per_connection)),
            max_concurrent_streams: http.and_then(|h| limit(h.max_concurrent_streams)),
            max_connection_duration_ms: tcp.and_then(|t| millis(t.max_connection_duration.as_ref())),
            tcp_max_connection_duration_ms: top.and_then(|t| millis(t.max_connection_duration.as_ref())),
            http_idle_timeout_ms: http
                .and_then(|h| millis(h.idle_timeout.as_ref()))
                .or(idle)
                .unwrap_or(hour),
            tcp_idle_timeout_ms: top.and_then(|t| millis(t.idle_timeout.as_ref())).unwrap_or(hour),
            tcp_keepalive: merge_keepalive(keepalive),
            http2_keepalive: ping.and_then(|p| {
                Some(Http2Keepalive {
                    interval_ms: millis(p.interval.as_ref())?,
                    timeout_ms: millis(p.timeout.as_ref())?,
                })
            }),
            ..Policy::default()
        }
    }
}

fn millis(duration: Option<&Duration>) -> Option<u64> {
    duration.and_then(Duration::millis)
}

/// Acts with two load balancers only (DR-052); the deprecated field has the defaults of the other (DR-053).
fn warmup(settings: &LoadBalancerSettings) -> Option<Warmup> {
    let acts = matches!(
        load_balancer(settings),
        LoadBalancer::LeastRequest | LoadBalancer::RoundRobin
    );
    let (duration, minimum, aggression) = match &settings.warmup {
        Some(warmup) => (warmup.duration.as_ref(), warmup.minimum_percent, warmup.aggression),
        None => (settings.warmup_duration_secs.as_ref(), None, None),
    };
    let duration_ms = millis(duration).filter(|ms| acts && *ms > 0)?;
    Some(Warmup {
        duration_ms,
        minimum_ppm: scaled(minimum.unwrap_or(10.0), 10_000.0),
        aggression_milli: scaled(aggression.unwrap_or(1.0), 1_000.0).max(1),
    })
}

/// A number in units of a fraction of it; validation keeps it within range.
fn scaled(value: f64, units: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and numbers are small and not negative"
    )]
    let scaled = (value * units).round() as u32;
    scaled
}

fn retry_budget(budget: &api::RetryBudget) -> RetryBudget {
    RetryBudget {
        share_ppm: scaled(budget.percent.map_or(20.0, |p| p.value), 10_000.0),
        min_concurrency: budget
            .min_retry_concurrency
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(3),
        interval_ms: millis(budget.budget_interval.as_ref()).unwrap_or(0),
    }
}

/// The mesh config fills attributes that the rule leaves out (SM-119).
fn merge_keepalive(from: [Option<&weft_crds::destination_rule::TcpKeepalive>; 2]) -> Option<TcpKeepalive> {
    if from.iter().all(Option::is_none) {
        return None;
    }
    let mut out = TcpKeepalive::default();
    for keepalive in from.into_iter().flatten() {
        let seconds = |d: Option<&Duration>| d.and_then(Duration::value).map(|d| d.as_secs().max(1));
        out.probes = out
            .probes
            .or_else(|| keepalive.probes.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0));
        out.time_seconds = out.time_seconds.or_else(|| seconds(keepalive.time.as_ref()));
        out.interval_seconds = out.interval_seconds.or_else(|| seconds(keepalive.interval.as_ref()));
    }
    Some(out)
}

/// HTTP version upstream where it is not the port's own (DR-085, DR-086).
fn http_version(rule: Option<&str>, client: Option<bool>, mesh: Option<&str>) -> Option<HttpVersion> {
    if client == Some(true) {
        return Some(HttpVersion::Client);
    }
    let policy = match rule {
        Some("UPGRADE" | "DO_NOT_UPGRADE") => rule,
        _ => mesh,
    };
    (policy == Some("UPGRADE")).then_some(HttpVersion::Http2)
}

fn load_balancer(settings: &LoadBalancerSettings) -> LoadBalancer {
    if let Some(hash) = &settings.consistent_hash {
        return LoadBalancer::ConsistentHash(consistent_hash(hash));
    }
    match settings.simple.as_deref() {
        Some("ROUND_ROBIN") => LoadBalancer::RoundRobin,
        Some("RANDOM") => LoadBalancer::Random,
        Some("PASSTHROUGH") => LoadBalancer::Passthrough,
        _ => LoadBalancer::LeastRequest,
    }
}

fn consistent_hash(hash: &ConsistentHashLB) -> ConsistentHash {
    let key = if let Some(name) = &hash.http_header_name {
        Some(HashKey::Header(name.to_ascii_lowercase()))
    } else if let Some(cookie) = &hash.http_cookie {
        Some(HashKey::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl_seconds: cookie.ttl.as_ref().and_then(Duration::value).map(|d| d.as_secs()),
            attributes: cookie
                .attributes
                .iter()
                .map(|a| (a.name.clone(), a.value.clone().filter(|v| !v.is_empty())))
                .collect(),
        })
    } else if hash.use_source_ip == Some(true) {
        Some(HashKey::SourceIp)
    } else {
        hash.http_query_parameter_name.clone().map(HashKey::QueryParameter)
    };
    let ring = hash
        .ring_hash
        .as_ref()
        .and_then(|r| r.minimum_ring_size)
        .or(hash.minimum_ring_size);
    ConsistentHash {
        key,
        minimum_ring_size: ring.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
        maglev_table_size: hash
            .maglev
            .as_ref()
            .and_then(|m| m.table_size)
            .and_then(|n| u64::try_from(n).ok()),
    }
}

fn outlier_detection(detection: &OutlierDetection) -> Outlier {
    let defaults = Outlier::default();
    let count = |number: Option<i64>| number.and_then(|n| u32::try_from(n).ok());
    let split = detection.split_external_local_origin_errors == Some(true);
    let local = count(detection.consecutive_local_origin_failures)
        .filter(|n| *n > 0)
        .unwrap_or(5);
    Outlier {
        consecutive_5xx: count(detection.consecutive_5xx_errors).unwrap_or(defaults.consecutive_5xx),
        consecutive_gateway_errors: count(detection.consecutive_gateway_errors).unwrap_or(0),
        consecutive_local_origin_failures: split.then_some(local),
        interval_ms: millis(detection.interval.as_ref()).unwrap_or(defaults.interval_ms),
        base_ejection_time_ms: millis(detection.base_ejection_time.as_ref()).unwrap_or(defaults.base_ejection_time_ms),
        max_ejection_percent: count(detection.max_ejection_percent).filter(|p| *p > 0).unwrap_or(10),
        min_health_percent: count(detection.min_health_percent).unwrap_or(0),
        error_codes: detection
            .outlier_detection_http_error_codes
            .iter()
            .filter_map(|code| u16::try_from(*code).ok())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
