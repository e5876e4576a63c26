//! Rules in the API server's expression language (CEL): what it refuses by itself, with no webhook at hand.
//!
//! They repeat the part of validation that fits into one expression each, and refuse nothing that validation admits.
//! The API server estimates their cost before it takes a definition, so none sits below two unbounded lists.

/// A rule at a pointer of the schema.
pub(super) struct Rule {
    pub(super) at: String,
    pub(super) rule: &'static str,
    pub(super) message: &'static str,
}

/// Rules of a kind.
pub(super) fn of(kind: &str) -> Vec<Rule> {
    match kind {
        "VirtualService" => virtual_service(),
        "DestinationRule" => destination_rule(),
        "Gateway" => gateway(),
        "ServiceEntry" => service_entry(),
        "WorkloadEntry" => at("/properties/spec", &ENDPOINT),
        "Sidecar" => sidecar(),
        "PeerAuthentication" => peer_authentication(),
        "AuthorizationPolicy" => at("/properties/spec", &AUTHORIZATION_POLICY),
        _ => vec![],
    }
}

/// Rules at a pointer, as pairs of expression and message.
fn at(pointer: &str, rules: &[(&'static str, &'static str)]) -> Vec<Rule> {
    let rule = |(rule, message): &(&'static str, &'static str)| Rule {
        at: pointer.to_owned(),
        rule,
        message,
    };
    rules.iter().map(rule).collect()
}

fn virtual_service() -> Vec<Rule> {
    let http = "/properties/spec/properties/http/items";
    let field = |name: &str| format!("{http}/properties/{name}");
    let tls = "/properties/spec/properties/tls/items";
    let tcp = "/properties/spec/properties/tcp/items";
    [
        at(
            "/properties/spec",
            &[
                (
                    "(has(self.http) && self.http.size() > 0) || (has(self.tls) && self.tls.size() > 0) || (has(self.tcp) && self.tcp.size() > 0)",
                    "must have at least one of http, tls and tcp",
                ),
                (
                    "(has(self.hosts) && self.hosts.size() > 0) || !((has(self.gateways) && self.gateways.size() > 0) || (has(self.tls) && self.tls.size() > 0) || (has(self.tcp) && self.tcp.size() > 0))",
                    "without hosts it is a delegate, which has http alone: no gateways, tls and tcp",
                ),
            ],
        ),
        at(
            http,
            &[
                (
                    "(has(self.route) && self.route.size() > 0) || has(self.redirect) || has(self.directResponse) || has(self.delegate)",
                    "must have one of route, redirect, directResponse and delegate",
                ),
                (
                    "!has(self.redirect) || !((has(self.route) && self.route.size() > 0) || has(self.directResponse) || has(self.rewrite) || has(self.fault))",
                    "redirect cannot stand beside route, directResponse, rewrite and fault",
                ),
                (
                    "!has(self.directResponse) || has(self.delegate) || !((has(self.route) && self.route.size() > 0) || has(self.rewrite) || has(self.fault))",
                    "directResponse cannot stand beside route, rewrite and fault",
                ),
                (
                    "!has(self.delegate) || !((has(self.route) && self.route.size() > 0) || has(self.redirect))",
                    "delegate cannot stand beside route and redirect",
                ),
                (
                    "!has(self.mirror) || !has(self.mirrors) || self.mirrors.size() == 0",
                    "mirror cannot stand beside mirrors; move it into the list",
                ),
            ],
        ),
        at(
            &field("redirect"),
            &[
                (
                    "has(self.uri) || has(self.prefixRewrite) || has(self.authority) || has(self.port) || has(self.derivePort) || has(self.scheme)",
                    "must have at least one of uri, prefixRewrite, authority, port, derivePort and scheme",
                ),
                (
                    "!(has(self.uri) && has(self.prefixRewrite))",
                    "must have at most one of uri and prefixRewrite",
                ),
                (
                    "!(has(self.port) && has(self.derivePort))",
                    "must have at most one of port and derivePort",
                ),
            ],
        ),
        at(
            &field("rewrite"),
            &[
                (
                    "has(self.uri) || has(self.authority) || has(self.uriRegexRewrite)",
                    "must have at least one of uri, uriRegexRewrite and authority",
                ),
                (
                    "!(has(self.uri) && has(self.uriRegexRewrite))",
                    "must have at most one of uri and uriRegexRewrite",
                ),
            ],
        ),
        at(&field("timeout"), &[AT_LEAST_1MS]),
        at(&field("retries/properties/perTryTimeout"), &[AT_LEAST_1MS]),
        at(
            &field("retries"),
            &[(
                "(has(self.attempts) && self.attempts > 0) || !(has(self.perTryTimeout) || (has(self.retryOn) && self.retryOn != '') || has(self.retryRemoteLocalities))",
                "perTryTimeout, retryOn and retryRemoteLocalities need attempts of 1 or more",
            )],
        ),
        at(
            &field("fault"),
            &[("has(self.delay) || has(self.abort)", "must have at least one of delay and abort")],
        ),
        at(&field("fault/properties/delay/properties/fixedDelay"), &[AT_LEAST_1MS]),
        at(
            &field("fault/properties/delay"),
            &[("!has(self.exponentialDelay)", "exponentialDelay is not supported; use fixedDelay")],
        ),
        at(
            &field("fault/properties/abort"),
            &[
                ("!has(self.http2Error)", "http2Error is not supported; use httpStatus or grpcStatus"),
                (
                    "!(has(self.httpStatus) && has(self.grpcStatus))",
                    "must have at most one of httpStatus and grpcStatus",
                ),
            ],
        ),
        at(
            &field("directResponse/properties/body"),
            &[("!(has(self.string) && has(self.bytes))", "must have at most one of string and bytes")],
        ),
        at(
            tls,
            &[
                ("self.match.size() > 0", "must have match: the server names of the rule"),
                ("self.route.size() > 0", "must have route: at least one destination"),
            ],
        ),
        at(tcp, &[("self.route.size() > 0", "must have route: at least one destination")]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn destination_rule() -> Vec<Rule> {
    let top = "/properties/spec/properties/trafficPolicy";
    let subset = "/properties/spec/properties/subsets/items/properties/trafficPolicy";
    let port = format!("{top}/properties/portLevelSettings/items");
    let mut rules = at(
        "/properties/spec",
        &[(
            "!has(self.workloadSelector) || !has(self.exportTo) || !self.exportTo.exists(e, e == '*')",
            "a rule with workloadSelector is private to its namespace: exportTo must be `.`",
        )],
    );
    for policy in [top, subset] {
        rules.extend(at(
            policy,
            &[
                (
                    "has(self.loadBalancer) || has(self.connectionPool) || has(self.outlierDetection) || has(self.tls) || (has(self.portLevelSettings) && self.portLevelSettings.size() > 0) || has(self.tunnel) || has(self.proxyProtocol) || has(self.retryBudget)",
                    "must have at least one field, or be left out",
                ),
                (
                    "!(has(self.tunnel) && has(self.proxyProtocol))",
                    "must have at most one of tunnel and proxyProtocol",
                ),
            ],
        ));
    }
    rules.extend(at(
        &port,
        &[(
            "has(self.loadBalancer) || has(self.connectionPool) || has(self.outlierDetection) || has(self.tls)",
            "must have one of loadBalancer, connectionPool, outlierDetection and tls",
        )],
    ));
    for policy in [top, subset, &port] {
        rules.extend(blocks(policy));
    }
    rules
}

/// Rules of the four blocks that policies and entries for ports have in common.
fn blocks(policy: &str) -> Vec<Rule> {
    let field = |name: &str| format!("{policy}/properties/{name}");
    [
        at(
            &field("loadBalancer"),
            &[
                (
                    "!(has(self.simple) && has(self.consistentHash))",
                    "must have at most one of simple and consistentHash",
                ),
                (
                    "!(has(self.localityLbSetting) && has(self.zoneAwareLbSetting))",
                    "must have at most one of localityLbSetting and zoneAwareLbSetting",
                ),
            ],
        ),
        at(
            &field("loadBalancer/properties/consistentHash"),
            &[
                (
                    "[has(self.httpHeaderName), has(self.httpCookie), has(self.useSourceIp) && self.useSourceIp, has(self.httpQueryParameterName)].filter(key, key).size() <= 1",
                    "must have one key: httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName",
                ),
                (
                    "!has(self.minimumRingSize) || !(has(self.ringHash) || has(self.maglev))",
                    "minimumRingSize cannot stand beside ringHash and maglev",
                ),
            ],
        ),
        at(
            &field("connectionPool"),
            &[("has(self.tcp) || has(self.http)", "must have at least one of tcp and http")],
        ),
        at(&field("connectionPool/properties/tcp/properties/connectTimeout"), &[AT_LEAST_1MS]),
        at(
            &field("connectionPool/properties/http"),
            &[(
                "!(has(self.h2UpgradePolicy) && self.h2UpgradePolicy == 'UPGRADE' && has(self.useClientProtocol) && self.useClientProtocol)",
                "must have at most one of h2UpgradePolicy: UPGRADE and useClientProtocol",
            )],
        ),
        at(
            &field("outlierDetection"),
            &[(
                "!has(self.consecutiveLocalOriginFailures) || self.consecutiveLocalOriginFailures == 0 || (has(self.splitExternalLocalOriginErrors) && self.splitExternalLocalOriginErrors)",
                "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true",
            )],
        ),
        at(&field("outlierDetection/properties/interval"), &[AT_LEAST_1MS]),
        at(&field("outlierDetection/properties/baseEjectionTime"), &[AT_LEAST_1MS]),
        at(
            &field("tls"),
            &[
                (
                    "!has(self.mode) || self.mode != 'MUTUAL' || (has(self.credentialName) && self.credentialName != '') || (has(self.clientCertificate) && has(self.privateKey))",
                    "MUTUAL needs credentialName, or clientCertificate and privateKey",
                ),
                (
                    "(has(self.mode) && self.mode == 'ISTIO_MUTUAL') || !has(self.credentialName) || self.credentialName == '' || !(has(self.clientCertificate) || has(self.privateKey) || has(self.caCertificates) || has(self.caCrl))",
                    "credentialName cannot stand beside clientCertificate, privateKey, caCertificates and caCrl",
                ),
            ],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn gateway() -> Vec<Rule> {
    let server = "/properties/spec/properties/servers/items";
    [
        at(
            "/properties/spec",
            &[("self.servers.size() > 0", "must have at least one server")],
        ),
        at(
            server,
            &[
                ("self.hosts.size() > 0", "must name at least one host"),
                (
                    "has(self.bind) && self.bind.startsWith('unix://') ? self.port.number == 0 : self.port.number > 0",
                    "port.number must be 1 to 65535, or 0 where bind is a Unix socket",
                ),
                (
                    "has(self.tls) || !(self.port.protocol.upperAscii() in ['HTTPS', 'TLS'])",
                    "tls is required with protocols HTTPS and TLS",
                ),
            ],
        ),
        at(
            &format!("{server}/properties/port"),
            &[(
                "!has(self.targetPort) || self.targetPort <= 0",
                "targetPort has no meaning on a gateway; the Service in front of it translates ports",
            )],
        ),
        at(
            &format!("{server}/properties/tls"),
            &[(
                "!has(self.mode) || self.mode != 'ISTIO_MUTUAL' || !((has(self.credentialName) && self.credentialName != '') || (has(self.serverCertificate) && self.serverCertificate != '') || (has(self.privateKey) && self.privateKey != '') || (has(self.caCertificates) && self.caCertificates != ''))",
                "ISTIO_MUTUAL uses the workload's certificate: no other may be named",
            )],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn service_entry() -> Vec<Rule> {
    let mut rules = at(
        "/properties/spec",
        &[
            (
                "!has(self.hosts) || !self.hosts.exists(host, host == '*')",
                "hosts must be names or wildcards such as `*.example.com`, not all names",
            ),
            (
                "!(has(self.workloadSelector) && has(self.endpoints) && self.endpoints.size() > 0)",
                "must have at most one of workloadSelector and endpoints",
            ),
            (
                "(has(self.resolution) && self.resolution != 'NONE') || !has(self.endpoints) || self.endpoints.size() == 0",
                "endpoints have no place with resolution NONE",
            ),
            (
                "!has(self.resolution) || self.resolution != 'DNS_ROUND_ROBIN' || !has(self.endpoints) || self.endpoints.size() <= 1",
                "endpoints must be at most one with DNS_ROUND_ROBIN",
            ),
            (
                "!has(self.addresses) || !has(self.resolution) || !(self.resolution in ['DNS', 'DNS_ROUND_ROBIN', 'DYNAMIC_DNS']) || !self.addresses.exists(address, address.contains('/'))",
                "addresses may be ranges with resolution NONE and STATIC alone",
            ),
            (
                "!has(self.ports) || self.ports.all(port, self.ports.exists_one(other, other.number == port.number))",
                "numbers of ports must differ",
            ),
        ],
    );
    rules.extend(at("/properties/spec/properties/endpoints/items", &ENDPOINT));
    rules
}

fn sidecar() -> Vec<Rule> {
    let listener = "/properties/spec/properties/egress/items";
    [
        at(
            "/properties/spec",
            &[
                (
                    "(has(self.ingress) && self.ingress.size() > 0) || (has(self.egress) && self.egress.size() > 0) || has(self.inboundConnectionPool) || has(self.outboundTrafficPolicy)",
                    "must have one of egress, ingress, outboundTrafficPolicy and inboundConnectionPool",
                ),
                (
                    "!has(self.egress) || self.egress.filter(listener, !has(listener.port)).size() <= 1",
                    "at most one entry of egress may have no port",
                ),
            ],
        ),
        at(listener, &[("self.hosts.size() > 0", "must name at least one `namespace/name`")]),
        at(
            "/properties/spec/properties/outboundTrafficPolicy",
            &[(
                "!has(self.egressProxy) || (has(self.mode) && self.mode == 'ALLOW_ANY')",
                "egressProxy needs mode ALLOW_ANY",
            )],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Rules of an endpoint, wherever it is written.
const ENDPOINT: [(&str, &str); 2] = [
    (
        "(has(self.address) && self.address != '') || (has(self.network) && self.network != '')",
        "must have an address",
    ),
    (
        "!has(self.address) || !self.address.startsWith('unix://') || !has(self.ports) || self.ports.size() == 0",
        "ports have no place beside a Unix socket",
    ),
];

const AUTHORIZATION_POLICY: [(&str, &str); 4] = [
    (
        "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
        "only one of targetRefs or selector can be set",
    ),
    (
        "!has(self.action) || !(self.action in ['DENY', 'CUSTOM']) || (has(self.rules) && self.rules.size() > 0)",
        "rules must not be empty with DENY and CUSTOM: without rules the policy fits no request",
    ),
    (
        "(has(self.action) && self.action == 'CUSTOM') == has(self.provider)",
        "provider is required with CUSTOM, and must be left out otherwise",
    ),
    (
        "!has(self.rules) || self.rules.size() <= 512",
        "must have at most 512 rules",
    ),
];

fn peer_authentication() -> Vec<Rule> {
    let mut rules = at(
        "/properties/spec",
        &[(
            "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0)",
            "portLevelMtls requires selector",
        )],
    );
    rules.extend(at(
        "/properties/spec/properties/portLevelMtls",
        &[(
            "self.size() > 0 && self.all(port, port.matches('^[0-9]{1,5}$') && int(port) > 0 && int(port) < 65536)",
            "must name ports of the workload, 1 to 65535",
        )],
    ));
    rules
}

const AT_LEAST_1MS: (&str, &str) = (
    "duration(self) >= duration('1ms')",
    "must be a duration of at least 1ms",
);
