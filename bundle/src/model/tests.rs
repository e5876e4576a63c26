use super::*;

fn bundle(yaml: &str) -> wire::Bundle {
    serde_yaml::from_str(yaml).expect("the test's own text")
}

const BASE: &str = r"
workload: {namespace: app, name: client, serviceAccount: client, canonicalName: client, canonicalRevision: latest}
hosts:
- host: echo.app.svc.cluster.local
  name: echo
  namespace: app
  domains: [10.0.0.1, echo, echo.app, echo.app.svc, echo.app.svc.cluster.local]
  addresses: [10.0.0.1]
  ports:
  - {port: 80, name: http, protocol: http, http: echo}
  - {port: 9000, name: tcp, protocol: tcp}
  subsets:
  - {name: v1, labels: {version: v1}}
routes:
- name: echo
  origin: {kind: VirtualService, namespace: app, name: echo}
  rules:
  - matches: [{path: {prefix: /a}}]
    destinations:
    - {host: echo.app.svc.cluster.local, port: 80, subset: v1, weight: 90}
    - {host: echo.app.svc.cluster.local, port: 80, subset: missing, weight: 10}
";

// spec: SM-038, SM-040, LOG-023, ID-077
#[test]
fn hosts_are_found_by_address_and_name_and_clusters_carry_their_names() {
    let config = Config::parse(bundle(BASE)).expect("valid");
    let address = "10.0.0.1".parse().expect("address");
    let port = config.by_address(address, 80).expect("known");
    assert_eq!(&*port.cluster.name, "outbound|80||echo.app.svc.cluster.local");
    assert!(config.by_address(address, 81).is_none());
    let domains = config.domains(80).expect("HTTP port");
    for name in [
        "echo",
        "echo.app",
        "echo.app.svc",
        "echo.app.svc.cluster.local",
        "10.0.0.1",
    ] {
        assert!(domains.find(name).is_some(), "{name}");
    }
    assert!(domains.find("other").is_none());
    assert!(config.domains(9000).is_none());
    let v1 = config
        .clusters
        .iter()
        .find(|c| c.subset.is_some() && c.port == 80)
        .expect("subset");
    assert_eq!(v1.sni.as_deref(), Some("outbound_.80_.v1_.echo.app.svc.cluster.local"));
}

// spec: VS-048, VS-049, VS-053
#[test]
fn an_undefined_subset_stays_a_destination_without_cluster() {
    let config = Config::parse(bundle(BASE)).expect("valid");
    let domain = config.domains(80).and_then(|d| d.find("echo")).expect("known");
    let Action::Destinations(destinations) = &domain.http.rules[0].action else {
        panic!("forwards");
    };
    assert_eq!(destinations.total, 100);
    assert!(destinations.choose(|_| 89).is_some_and(|d| d.cluster.is_some()));
    assert!(destinations.choose(|_| 90).is_some_and(|d| d.cluster.is_none()));
}

// spec: DLV-080
#[test]
fn all_problems_are_reported_with_their_paths() {
    let mut broken = bundle(BASE);
    broken.routes[0].rules[0].matches[0].path = Some(wire::StringMatch::Regex("(".into()));
    broken.routes[0].rules[0].request_headers.set = vec![("x".into(), "%REQ(".into())];
    broken.hosts[0].ports[0].http = Some("absent".into());
    let problems = Config::parse(broken).expect_err("three problems");
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "routes[echo].rules[0].matches[0].path",
            "routes[echo].rules[0].requestHeaders.set[x]",
            "hosts[echo.app.svc.cluster.local].ports[80].http"
        ]
    );
}

// spec: SM-057
#[test]
fn the_longest_suffix_wins_and_never_the_bare_name() {
    let mut config = bundle(BASE);
    config.hosts[0].domains = vec!["*.b.c".into(), "*.a.b.c".into()];
    let config = Config::parse(config).expect("valid");
    let domains = config.domains(80).expect("HTTP port");
    assert!(domains.find("b.c").is_none());
    assert!(domains.find("x.b.c").is_some());
    assert_eq!(&*domains.names.suffixes[0].0, ".a.b.c");
}

// spec: VS-065
#[test]
fn templates_have_literals_and_variables() {
    let parsed = parse::template("a%%b%REQ(x-y):3%c%START_TIME%").expect("valid");
    assert_eq!(
        parsed.pieces,
        [
            Piece::Literal("a%b".into()),
            Piece::Variable {
                name: "REQ".into(),
                argument: Some("x-y".into()),
                limit: Some(3)
            },
            Piece::Literal("c".into()),
            Piece::Variable {
                name: "START_TIME".into(),
                argument: None,
                limit: None
            },
        ]
    );
    assert!(parse::template("50%").is_err());
}

// spec: VS-035, VS-036, VS-038
#[test]
fn header_conditions_look_at_each_field() {
    let test = |value: Option<&str>, invert| HeaderTest {
        name: HeaderName::Field("x".into()),
        value: value.map(|v| Text::Exact(v.as_bytes().into())),
        invert,
    };
    let values = |list: &'static [&'static str]| list.iter().map(|v| v.as_bytes());
    assert!(test(Some("a"), false).holds(values(&["b", "a"])));
    assert!(!test(Some("a"), false).holds(values(&["a,b"])));
    assert!(test(None, false).holds(values(&[""])));
    assert!(test(None, true).holds(values(&[])));
    assert!(test(Some("a"), true).holds(values(&[])));
    assert!(!test(Some("a"), true).holds(values(&["b", "a"])));
    // One that is absent is compared as an empty value, where it must not fit.
    let accepts_nothing = |invert| HeaderTest {
        value: Some(Text::Regex(regex::bytes::Regex::new("\\A(?:a*)\\z").expect("valid"))),
        ..test(None, invert)
    };
    assert!(!accepts_nothing(true).holds(values(&[])));
    assert!(accepts_nothing(true).holds(values(&["b"])));
    assert!(
        !accepts_nothing(false).holds(values(&[])),
        "what must fit must be there"
    );
}

// spec: VS-039
#[test]
fn query_conditions_read_the_first_value_as_sent() {
    let test = QueryTest {
        name: b"a"[..].into(),
        value: Some(Text::Exact(b"%20"[..].into())),
    };
    assert!(test.holds(Some(b"b=1&a=%20&a=2")));
    assert!(!test.holds(Some(b"a")));
    assert!(!test.holds(None));
    assert!(!test.holds(Some(b"a=2&a=%20")), "the second one does not count");
    assert!(!test.holds(Some(b"A=%20")), "a name has its case");
    assert!(!test.holds(Some(b"a=+")), "as sent");
    let with = |value: Option<&[u8]>| QueryTest {
        name: b"a"[..].into(),
        value: value.map(|value| Text::Exact(value.into())),
    };
    for query in [&b"a"[..], b"b&a", b"a=", b"a=1"] {
        assert!(with(None).holds(Some(query)), "{query:?}");
    }
    assert!(!with(None).holds(Some(b"b=a&aa=1")));
    assert!(with(Some(b"")).holds(Some(b"a&a=1")) && !with(Some(b"")).holds(Some(b"b")));
}

// spec: SM-040
#[test]
fn an_address_of_ipv6_is_found_with_and_without_its_brackets() {
    let mut config = bundle(BASE);
    config.hosts[0].domains = vec!["[fd00::1]".into()];
    let config = Config::parse(config).expect("valid");
    assert!(config.domains(80).expect("HTTP port").find("fd00::1").is_some());
}

// spec: VS-053, VS-055, VS-056
#[test]
fn weights_of_equal_destinations_add_up_and_zero_gets_nothing() {
    let weights = [("v1", 30), ("missing", 40), ("v1", 30), ("v1", 0)];
    let list: Vec<String> = weights
        .iter()
        .map(|(subset, weight)| {
            format!("{{host: echo.app.svc.cluster.local, port: 80, subset: {subset}, weight: {weight}}}")
        })
        .collect();
    let mut config = bundle(BASE);
    config.routes[0].rules[0].action =
        serde_yaml::from_str(&format!("destinations: [{}]", list.join(", "))).expect("an action");
    let config = Config::parse(config).expect("valid");
    let domain = config.domains(80).and_then(|d| d.find("echo")).expect("known");
    let Action::Destinations(destinations) = &domain.http.rules[0].action else {
        panic!("forwards");
    };
    let drawn = (0..destinations.total).filter_map(|draw| destinations.choose(|_| draw));
    let positions = drawn.map(|found| {
        destinations
            .list
            .iter()
            .position(|d| std::ptr::eq(d, found))
            .expect("of the list")
    });
    let mut counts = [0; 4];
    positions.for_each(|position| counts[position] += 1);
    assert_eq!(counts, [30, 40, 30, 0]);
    let to_v1 = |position: &usize| destinations.list[*position].cluster.is_some();
    assert_eq!((0..4).filter(to_v1).map(|position| counts[position]).sum::<i32>(), 60);
}

// spec: VS-165, VS-172
#[test]
fn a_rule_holds_within_its_subnets() {
    let rule = |subnets: &[(&str, u8)]| TcpRule {
        subnets: subnets
            .iter()
            .map(|(address, prefix)| wire::Subnet {
                address: address.parse().expect("address"),
                prefix: *prefix,
            })
            .collect(),
        destinations: Destinations {
            list: Vec::new(),
            total: 0,
        },
    };
    for (subnets, address, holds) in [
        (&[][..], "10.0.0.1", true),
        (&[("10.1.0.0", 16)][..], "10.1.255.255", true),
        (&[("10.1.0.0", 16)], "10.2.0.0", false),
        (&[("10.1.0.0", 16), ("10.2.0.1", 32)], "10.2.0.1", true),
        (&[("10.2.0.1", 32)], "10.2.0.2", false),
        (&[("0.0.0.0", 0)], "10.0.0.1", true),
        (&[("0.0.0.0", 0)], "fd00::1", false),
        (&[("fd00::", 16)], "fd00:ffff::1", true),
        (&[("fd00::", 16)], "fd01::1", false),
        (&[("fd00::1", 128)], "fd00::1", true),
        (&[("fd00::1", 128)], "fd00::2", false),
        (&[("::", 0)], "fd00::1", true),
        (&[("::", 0)], "10.0.0.1", false),
    ] {
        let address = address.parse().expect("address");
        let rule = rule(subnets);
        assert_eq!(rule.fits(address), holds, "{address} {subnets:?}");
        let tls = TlsRule {
            sni: vec!["a.com".into()],
            subnets: rule.subnets,
            destinations: rule.destinations,
        };
        assert_eq!(tls.fits("a.com", address), holds, "{address} {subnets:?}");
        assert!(!tls.fits("b.com", address));
    }
}

// spec: VS-174
#[test]
fn an_address_is_found_by_the_subnets_of_rules() {
    let mut config = bundle(BASE);
    let rule =
        "{subnets: [{address: 10.9.0.0, prefix: 16}], destinations: [{host: echo.app.svc.cluster.local, port: 9000}]}";
    config.hosts[0].ports[1].tcp = vec![serde_yaml::from_str(rule).expect("a rule")];
    let config = Config::parse(config).expect("valid");
    let found = |address: &str, port| {
        config
            .by_subnet(address.parse().expect("address"), port)
            .map(|p| p.number)
    };
    assert_eq!(found("10.9.1.1", 9000), Some(9000));
    assert_eq!(found("10.9.1.1", 80), None);
    assert_eq!(found("10.10.1.1", 9000), None);
}

const LISTENERS: &str = r"
listeners:
- port: 8080
  servicePort: 80
  http:
  - {domains: [a.com, '*.b.com'], http: echo}
  - {domains: ['*'], http: echo}
- port: 8443
  tls:
    passthrough:
    - {sni: ['A.com'], destinations: [{host: echo.app.svc.cluster.local, port: 80}]}
    terminated:
    - sni: ['*.b.com']
      tls: {certificates: [{files: {chain: /a, key: /b}}], min: '1.3'}
      http: [{domains: ['*'], http: echo}]
    - sni: ['*.x.b.com', Y.b.com]
      tls: {certificates: [{credential: 0123456789abcdef}], max: '1.2'}
      tcp: [{host: echo.app.svc.cluster.local, port: 9000}]
- {port: 31400, tcp: [{host: echo.app.svc.cluster.local, port: 9000}]}
";

// spec: GW-013, GW-027, GW-056
#[test]
fn ports_of_a_gateway_are_found_by_number_and_names_by_how_specific_they_are() {
    let config = Config::parse(bundle(&format!("{BASE}{LISTENERS}"))).expect("valid");
    let by_number: Vec<_> = config.listeners.values().map(|l| (l.port, l.service_port)).collect();
    assert_eq!(by_number, [(8080, 80), (8443, 8443), (31400, 31400)]);
    let Serves::Http(domains) = &config.listeners[&8080].serves else {
        panic!("HTTP");
    };
    for name in ["a.com", "x.b.com", "b.com", "anything", ""] {
        assert!(domains.find(name).is_some(), "{name}");
    }
    let Serves::Tls(tls) = &config.listeners[&8443].serves else {
        panic!("TLS");
    };
    let found = |name: &str| match tls.find(name)? {
        Tls::PassesThrough(_) => Some("passes through"),
        Tls::Ends(server) => Some(match &server.inside {
            Inside::Http(_) => "http",
            Inside::Tcp(_) => "tcp",
        }),
    };
    for (name, expected) in [
        ("a.com", Some("passes through")),
        ("x.b.com", Some("http")),
        ("z.y.b.com", Some("http")),
        ("y.x.b.com", Some("tcp")),
        ("y.b.com", Some("tcp")),
        ("b.com", None),
        (".b.com", None),
        ("x.a.com", None),
        ("", None),
    ] {
        assert_eq!(found(name), expected, "{name}");
    }
    let any = format!("{BASE}{LISTENERS}").replace("sni: ['*.b.com']", "sni: ['*']");
    let config = Config::parse(bundle(&any)).expect("valid");
    let Serves::Tls(tls) = &config.listeners[&8443].serves else {
        panic!("TLS");
    };
    for name in ["", "c.com", ".com"] {
        assert!(matches!(tls.find(name), Some(Tls::Ends(_))), "{name:?}");
    }
    let Serves::Tcp(destinations) = &config.listeners[&31400].serves else {
        panic!("TCP");
    };
    assert!(destinations.list[0].cluster.is_some());
}

// spec: DLV-023
#[test]
fn ports_of_a_gateway_that_cannot_be_are_told_with_their_place() {
    let problems = |from: &str, to: &str| -> Vec<String> {
        let text = format!("{BASE}{LISTENERS}").replacen(from, to, 1);
        let problems = Config::parse(bundle(&text)).err().unwrap_or_default();
        problems.iter().map(|problem| problem.path.clone()).collect()
    };
    assert_eq!(problems("x", "x"), [""; 0]);
    assert_eq!(problems("port: 31400", "port: 8080"), ["listeners[8080]"]);
    assert_eq!(problems("port: 8080", "port: 0"), ["listeners[0]"]);
    assert_eq!(problems("servicePort: 80", "servicePort: 0"), ["listeners[8080]"]);
    assert_eq!(
        problems("['*'], http: echo", "['*'], http: other"),
        ["listeners[8080].http[1].http"]
    );
    assert_eq!(
        problems("['*'], http: echo", "[a.com], http: echo"),
        ["listeners[8080].http[1].domains"]
    );
    let (first, second) = (
        "listeners[8443].tls.terminated[1].sni",
        "listeners[8443].tls.passthrough[0].sni",
    );
    assert_eq!(problems("'*.x.b.com'", "'*.B.com'"), [first]);
    assert_eq!(problems("'A.com'", "'*.b.com'"), [second]);
    assert_eq!(
        problems("[{credential: 0123456789abcdef}]", "[]"),
        ["listeners[8443].tls.terminated[1].tls.certificates"]
    );
}

// spec: SM-037, SM-038, SM-059
#[test]
fn address_and_port_together_or_the_whole_name_lead_to_a_host() {
    let host = |name: &str, address: &str, domains: &str, ports: &str| {
        format!(
            "- {{host: {name}, name: n, namespace: app, domains: [{domains}], addresses: [{address}], ports: [{ports}]}}\n"
        )
    };
    let tcp = "{port: 9000, name: tcp, protocol: tcp}";
    let hosts = [
        host(
            "a.app.svc",
            "10.0.0.1",
            "a, '*.a'",
            &format!("{tcp}, {{port: 80, name: http, protocol: http}}"),
        ),
        host("b.app.svc", "10.0.0.2", "b", tcp),
    ];
    let head = BASE.lines().take(3).collect::<Vec<_>>().join("\n");
    let config = Config::parse(bundle(&format!("{head}\n{}", hosts.concat()))).expect("valid");
    let found = |address: &str, port: u16| {
        let port = config.by_address(address.parse().expect("address"), port);
        port.map(|port| port.host.host.to_string())
    };
    assert_eq!(found("10.0.0.1", 9000).as_deref(), Some("a.app.svc"));
    assert_eq!(found("10.0.0.2", 9000).as_deref(), Some("b.app.svc"));
    assert_eq!((found("10.0.0.1", 9001), found("10.0.0.3", 9000)), (None, None));
    let domains = config.domains(80).expect("HTTP port");
    for (name, is_known) in [("a", true), ("x.a", true), (".a", false), ("b.b", false), ("xa", false)] {
        assert_eq!(domains.find(name).is_some(), is_known, "{name}");
    }
}

// spec: SM-048, VS-091, VS-099
#[test]
fn without_rules_there_is_no_time_limit_and_the_retries_of_the_mesh() {
    let mut wire = bundle(BASE);
    wire.hosts[0].ports[0].http = None;
    let rule = |config: &Config| {
        config
            .domains(80)
            .and_then(|d| d.find("echo"))
            .expect("known")
            .http
            .rules[0]
            .clone()
    };
    let bare = rule(&Config::parse(wire.clone()).expect("valid"));
    assert_eq!((bare.timeout, bare.retry.attempts), (None, 2));
    let on = RetryOn {
        connect_failure: true,
        refused_stream: true,
        grpc: 1 << 1 | 1 << 14,
        ..RetryOn::default()
    };
    assert_eq!((bare.retry.on, &bare.retry.statuses[..]), (on, &[][..]));
    wire.mesh.retry.attempts = 7;
    assert_eq!(rule(&Config::parse(wire).expect("valid")).retry.attempts, 7);
    // Nor has a rule that states none.
    let ruled = rule(&Config::parse(bundle(BASE)).expect("valid"));
    assert_eq!((ruled.timeout, ruled.retry.attempts, ruled.retry.on), (None, 2, on));
}

// spec: VS-054, VS-055
#[test]
fn a_weight_of_zero_is_nothing_among_several_and_everything_alone() {
    let destinations = |weights: &[u32]| {
        let one = |weight: &u32| format!("{{host: echo.app.svc.cluster.local, port: 80, weight: {weight}}}");
        let list: Vec<String> = weights.iter().map(one).collect();
        let mut config = bundle(BASE);
        config.routes[0].rules[0].action =
            serde_yaml::from_str(&format!("destinations: [{}]", list.join(", "))).expect("an action");
        let config = Config::parse(config).expect("valid");
        let rule = &config
            .domains(80)
            .and_then(|d| d.find("echo"))
            .expect("known")
            .http
            .rules[0];
        match &rule.action {
            Action::Destinations(destinations) => destinations.clone(),
            _ => panic!("forwards"),
        }
    };
    let several = destinations(&[0, 1, 0]);
    assert_eq!(several.choose(|_| 0).map(|d| d.weight), Some(1));
    assert!(destinations(&[0]).choose(|_| 0).is_some());
}
