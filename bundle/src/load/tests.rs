use std::collections::BTreeMap;

use super::*;
use crate::key::{InterceptionMode, KeyInputs, PodShape, Template};
use crate::model::EndpointTable;
use crate::pack::{self, EndpointInput, HostInput, Limits, Places};
use crate::wire::*;

fn inputs() -> KeyInputs {
    KeyInputs::new(&PodShape {
        namespace: "sample",
        workload: "frontend",
        service_account: "frontend",
        revision: "",
        labels: &BTreeMap::from([("app".to_owned(), "frontend".to_owned())]),
        annotations: &BTreeMap::new(),
        ports: &[],
        interception: InterceptionMode::Redirect,
        template: Template::Sidecar,
        ignored_labels: &[],
    })
}

fn bundle(hosts: usize) -> Bundle {
    let destination = |subset: &str, weight| Destination {
        host: "h0.sample.svc.cluster.local".into(),
        port: 80,
        subset: Some(subset.into()),
        weight,
        request_headers: HeaderOps {
            set: vec![("x-a".into(), "y: %REQ(x)% #1".into())],
            ..HeaderOps::default()
        },
        response_headers: HeaderOps::default(),
    };
    let rule = |matches, action| Rule {
        name: Some("true".into()),
        matches,
        action,
        rewrite: Rewrite {
            authority: None,
            path: Some(PathRewrite::Matched("/".into())),
        },
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout_ms: Some(1500),
        retry: Some(RetryPolicy {
            attempts: 0,
            ..RetryPolicy::default()
        }),
        fault: None,
        mirrors: Vec::new(),
        cors: Some(Cors {
            allow_origins: vec![StringMatch::Regex(".*".into())],
            ..Cors::default()
        }),
        origin: None,
    };
    let header = HeaderMatch {
        name: "end-user".into(),
        value: Some(StringMatch::Exact("null".into())),
        invert: true,
    };
    let matches = vec![Match {
        path: Some(StringMatch::Prefix("/a".into())),
        headers: vec![header],
        ..Match::default()
    }];
    let rules = vec![
        rule(
            matches,
            Action::Destinations(vec![destination("v1", 90), destination("v2", 10)]),
        ),
        rule(
            Vec::new(),
            Action::Redirect(Redirect {
                code: 301,
                port: Some(RedirectPort::FromRequest),
                ..Redirect::default()
            }),
        ),
        rule(
            Vec::new(),
            Action::DirectResponse(DirectResponse {
                status: 503,
                body: None,
            }),
        ),
    ];
    let host = |n: usize| Host {
        host: format!("h{n}.sample.svc.cluster.local"),
        name: format!("h{n}"),
        namespace: "sample".into(),
        domains: vec![format!("h{n}"), format!("h{n}.sample")],
        addresses: vec!["10.98.0.1".parse().expect("address")],
        headless: false,
        node_local: n % 2 == 1,
        kind: HostKind::Entry,
        subnets: vec![Subnet {
            address: "10.1.0.0".parse().expect("address"),
            prefix: 16,
        }],
        allocated: vec!["240.240.0.1".parse().expect("address")],
        discovery: Discovery::Dns(Dns {
            first_alone: true,
            targets: vec![DnsTarget {
                name: "a.example".into(),
                ports: BTreeMap::from([("http".into(), 8080)]),
                labels: BTreeMap::from([("version".into(), "v1".into())]),
                locality: Some("r/z".into()),
                weight: 3,
                tls: MeshTls::All,
            }],
        }),
        identities: vec!["spiffe://cluster.local/ns/a/sa/b".into()],
        ports: vec![HostPort {
            port: 80,
            name: "http".into(),
            protocol: Protocol::Http,
            grpc_web: true,
            http: Some("sample/routes".into()),
            tls: vec![TlsRule {
                sni: vec!["*.x".into()],
                subnets: vec![],
                destinations: vec![destination("v1", 1)],
            }],
            tcp: Vec::new(),
            target_port: Some(8443),
            target_only: true,
            policy: Policy {
                load_balancer: LoadBalancer::ConsistentHash(ConsistentHash {
                    key: Some(HashKey::Cookie {
                        name: "c".into(),
                        path: None,
                        ttl_seconds: Some(0),
                        attributes: vec![("SameSite".into(), Some("Lax".into())), ("Secure".into(), None)],
                    }),
                    minimum_ring_size: None,
                    maglev_table_size: None,
                }),
                tls: UpstreamTls::Mesh {
                    sni: None,
                    subject_alt_names: vec![],
                },
                outlier: Some(Outlier::default()),
                locality: Some(Locality::Failover(Failover {
                    labels: vec![
                        SharedLabel::Equal("a".into(), "b".into()),
                        SharedLabel::Missing("c".into()),
                        SharedLabel::Own("topology.kubernetes.io/zone".into()),
                    ],
                    regions: Some(BTreeMap::from([("eu".into(), "us".into())])),
                    zones: Some(ZoneAware { min_cluster_size: 6 }),
                })),
                warmup: Some(Warmup {
                    duration_ms: 30_000,
                    minimum_ppm: 100_000,
                    aggression_milli: 1500,
                }),
                retry_budget: Some(RetryBudget {
                    share_ppm: 200_000,
                    min_concurrency: 3,
                    interval_ms: 0,
                }),
                http2_keepalive: Some(Http2Keepalive {
                    interval_ms: 1000,
                    timeout_ms: 500,
                }),
                proxy_protocol: Some(ProxyProtocol::V2),
                tunnel: Some(Tunnel {
                    post: true,
                    host: "target.example".into(),
                    port: 443,
                }),
                ..Policy::default()
            },
        }],
        subsets: vec![Subset {
            name: "v1".into(),
            labels: BTreeMap::from([("version".into(), "1".into())]),
            policies: BTreeMap::from([(
                80,
                Policy {
                    tls: UpstreamTls::Disable,
                    locality: Some(Locality::Distribute(vec![Distribute {
                        from: "eu/*".into(),
                        to: BTreeMap::from([("eu/a/*".into(), 80), ("us/*".into(), 20)]),
                    }])),
                    ..Policy::default()
                },
            )]),
        }],
    };
    Bundle {
        workload: Workload {
            namespace: "sample".into(),
            name: "frontend".into(),
            service_account: "frontend".into(),
            template: Template::Sidecar,
            canonical_name: "frontend".into(),
            canonical_revision: "latest".into(),
            app: Some("frontend".into()),
            version: None,
        },
        mesh: Mesh::default(),
        inbound: Inbound {
            mtls: MtlsMode::Strict,
            destination: InboundDestination::Passthrough,
            ports: vec![InboundPort {
                port: 8080,
                protocol: Protocol::Auto,
                grpc_web: true,
                service_ports: vec![80],
                mtls: None,
                host: None,
                target: Some(InboundTarget::Loopback(([127, 0, 0, 1], 81).into())),
                policy: Policy {
                    max_connections: Some(7),
                    ..Policy::default()
                },
            }],
        },
        authorization: vec![AuthorizationPolicy {
            namespace: "sample".into(),
            name: "callers".into(),
            action: Authorize::Deny,
            provider: None,
            rules: vec![AccessRule::default()],
        }],
        hosts: (0..hosts).map(host).collect(),
        domains: vec![ExtraDomain {
            port: 80,
            domains: vec!["made.up".into()],
            http: "sample/routes".into(),
        }],
        routes: vec![RouteTable {
            name: "sample/routes".into(),
            origin: Origin {
                kind: "VirtualService".into(),
                namespace: "sample".into(),
                name: "routes".into(),
            },
            rules,
        }],
        listeners: Vec::new(),
    }
}

fn merged(shards: &[Files]) -> Files {
    shards.iter().flat_map(|shard| shard.clone()).collect()
}

// spec: DLV-020, DLV-021, DLV-022
#[test]
fn text_and_compressed_forms_give_the_same_value() {
    let bundle = bundle(3);
    let text = pack::config(&bundle, &inputs(), &Limits::default()).expect("pack");
    assert_eq!(text.shards.len(), 1);
    assert_eq!(text.revision.len(), 12);
    let loaded = config(&merged(&text.shards)).expect("load").expect("present");
    assert_eq!(loaded.bundle, bundle);
    assert_eq!(loaded.manifest.key, inputs().key());

    let limits = Limits {
        text: 100,
        shard: 300,
        config_shards: 8,
        ..Limits::default()
    };
    let packed = pack::config(&bundle, &inputs(), &limits).expect("pack");
    assert!(packed.shards.len() > 1, "{} shard", packed.shards.len());
    assert!(packed.shards.iter().all(|s| !s.contains_key(BUNDLE_FILE)));
    assert_eq!(
        config(&merged(&packed.shards)).expect("load").expect("present").bundle,
        bundle
    );
    // One frame, which says how long its content is and ends with a checksum (RFC 8878, section 3.1.1.1).
    let frame = packed
        .shards
        .iter()
        .enumerate()
        .flat_map(|(n, shard)| shard[&pack::config_file(n)].clone());
    let frame: Vec<u8> = frame.collect();
    assert_eq!(frame[..4], 0xfd2f_b528u32.to_le_bytes());
    let (has_size, has_checksum) = (frame[4] >> 6 != 0 || frame[4] & 0x20 != 0, frame[4] & 4 != 0);
    assert!(has_size && has_checksum, "{:08b}", frame[4]);
}

// spec: DLV-022
#[test]
fn text_is_for_people_as_long_as_it_is_short() {
    let bundle = bundle(3);
    let length = serde_yaml::to_string(&bundle).expect("text").len();
    let is_text = |text: usize| {
        let limits = Limits {
            text,
            ..Limits::default()
        };
        let packed = pack::config(&bundle, &inputs(), &limits).expect("pack");
        packed.shards[0].contains_key(BUNDLE_FILE)
    };
    assert!(is_text(length) && !is_text(length - 1));
    assert_eq!(Limits::default().text, 262_144);
}

// spec: DLV-002
#[test]
fn packing_is_deterministic() {
    let pack = || pack::config(&bundle(5), &inputs(), &Limits::default()).expect("pack");
    assert_eq!(pack(), pack());
    let mut one = host("a", "10.0.0.1");
    one.endpoints.extend(host("a", "10.0.0.2").endpoints);
    let mut other = one.clone();
    other.endpoints.reverse();
    other.accounts.reverse();
    let pack = |host: &HostInput| pack::endpoints([host], &Places::default(), &Limits::default()).expect("pack");
    assert_eq!(pack(&one), pack(&other), "the order of endpoints is their addresses'");
}

// spec: DLV-033
#[test]
fn what_does_not_fit_is_refused() {
    let limits = Limits {
        text: 100,
        shard: 100,
        config_shards: 1,
        ..Limits::default()
    };
    let error = pack::config(&bundle(3), &inputs(), &limits).expect_err("too large");
    assert!(matches!(error, pack::PackError::TooLarge { .. }), "{error}");
}

// spec: DLV-023, DLV-024, DLV-048, DLV-080
#[test]
fn anything_that_does_not_agree_is_rejected_by_file() {
    let files = merged(
        &pack::config(&bundle(2), &inputs(), &Limits::default())
            .expect("pack")
            .shards,
    );
    let reject = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        config(&files).expect_err("rejected")
    };
    let edited = reject(&|f| f.get_mut(BUNDLE_FILE).expect("text").extend(b"# by hand\n"));
    assert_eq!((edited.reason, edited.file.as_str()), (Reason::Checksum, BUNDLE_FILE));
    let gone = reject(&|f| drop(f.remove(BUNDLE_FILE)));
    assert_eq!((gone.reason, gone.file.as_str()), (Reason::Incomplete, BUNDLE_FILE));
    let truncated = reject(&|f| f.get_mut(MANIFEST_FILE).expect("manifest").truncate(40));
    assert_eq!(
        (truncated.reason, truncated.file.as_str()),
        (Reason::Malformed, MANIFEST_FILE)
    );
    assert_eq!(truncated.line, Some(1));
    let newer = reject(&|f| {
        let manifest = String::from_utf8(f[MANIFEST_FILE].clone())
            .expect("text")
            .replace("\"schema\":1", "\"schema\":9");
        f.insert(MANIFEST_FILE.into(), manifest.into_bytes());
    });
    assert_eq!(newer.reason, Reason::Schema);
    let feature = reject(&|f| {
        let manifest = String::from_utf8(f[MANIFEST_FILE].clone()).expect("text").replace(
            "\"requires\":[\"authorization\"]",
            "\"requires\":[\"authorization\",\"x\"]",
        );
        f.insert(MANIFEST_FILE.into(), manifest.into_bytes());
    });
    assert!(feature.message.contains("\"x\""), "{feature}");

    let limits = Limits {
        text: 100,
        shard: 200,
        config_shards: 8,
        ..Limits::default()
    };
    let one = merged(&pack::config(&bundle(2), &inputs(), &limits).expect("pack").shards);
    let other = merged(&pack::config(&bundle(3), &inputs(), &limits).expect("pack").shards);
    let mut mixed = one.clone();
    // Where their texts begin alike, so may their first shards.
    let differs = |name: &&String| name.ends_with(".zst") && other.get(*name).is_some_and(|o| *o != one[*name]);
    let shard = one.keys().find(differs).expect("a shard of both");
    mixed.insert(shard.clone(), other[shard].clone());
    assert_eq!(config(&mixed).expect_err("mixed").reason, Reason::Incomplete);
    assert_eq!(config(&Files::new()), Ok(None));
}

// spec: DLV-023
#[test]
fn a_frame_must_hold_what_its_manifest_says_and_no_more_than_64_mib() {
    let packed = |content: &[u8], stated: &[u8]| {
        let frame = pack::compress("endpoints", content).expect("compressed");
        let manifest = EndpointsManifest {
            schema: SCHEMA,
            requires: Vec::new(),
            shards: 1,
            length: frame.len() as u64,
            sha256: pack::sha256(&frame),
            content_sha256: pack::sha256(stated),
        };
        let (manifest_file, content_file) = pack::endpoint_files(0);
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        endpoints(&Files::from([(manifest_file, manifest), (content_file, frame)]), 0)
    };
    let content = b"{\"hosts\":[]}";
    assert!(packed(content, content).expect("loads").is_some());
    let other = packed(content, b"{\"hosts\": []}").expect_err("rejected");
    assert_eq!(other.reason, Reason::Checksum);
    let filled = |size: usize| {
        let frame = pack::compress("endpoints", &vec![b' '; size]).expect("compressed");
        decompress("ep", &frame).map(|content| content.len())
    };
    assert_eq!(filled(64 << 20), Ok(64 << 20));
    let more = filled((64 << 20) + 1).expect_err("rejected");
    assert_eq!(more.reason, Reason::TooLarge);
}

fn host(name: &str, address: &str) -> HostInput {
    let endpoint = EndpointInput {
        address: address.parse().expect("address"),
        ports: BTreeMap::from([("http".into(), 8080)]),
        labels: BTreeMap::from([("version".into(), "v1".into())]),
        workload: None,
        locality: Some("r/z".into()),
        node: Some("node-1".into()),
        weight: 1,
        health: Health::Ready,
        tls: MeshTls::Except(vec![9090]),
    };
    HostInput {
        host: name.into(),
        accounts: vec!["sample/b".into(), "sample/a".into()],
        endpoints: vec![endpoint],
    }
}

// spec: DLV-020, DLV-021, DLV-111
#[test]
fn one_hosts_change_rewrites_one_shard() {
    let limits = Limits {
        endpoint_shards: 4,
        ..Limits::default()
    };
    let hosts: Vec<_> = (0..20).map(|n| host(&format!("h{n}"), "10.0.0.1")).collect();
    let mut changed = hosts.clone();
    changed[7] = host("h7", "10.0.0.2");
    let zones = BTreeMap::from([("r/z".to_owned(), 3)]);
    let places = Places {
        nodes: BTreeMap::from([("node".to_owned(), "r/z".to_owned())]),
        proxies: BTreeMap::from([("w".to_owned(), zones.clone())]),
    };
    let before = pack::endpoints(&hosts, &places, &limits).expect("pack");
    let after = pack::endpoints(&changed, &places, &limits).expect("pack");
    let differing: Vec<_> = (0..4).filter(|&n| before.shards[n] != after.shards[n]).collect();
    assert_eq!(differing, [pack::shard_of("h7", 4)]);
    assert_ne!(before.revision, after.revision);

    let files = merged(&after.shards);
    let loaded: Vec<_> = (0..4)
        .map(|n| endpoints(&files, n).expect("load").expect("present"))
        .collect();
    assert_eq!(endpoints_revision(loaded.iter().map(|l| &l.manifest)), after.revision);
    for (n, shard) in loaded.iter().enumerate() {
        let frame = &files[&pack::endpoint_files(n).1];
        assert_eq!((shard.manifest.shards, shard.manifest.length), (4, frame.len() as u64));
    }
    let h7 = loaded
        .iter()
        .flat_map(|l| &l.endpoints.hosts)
        .find(|h| h.host == "h7")
        .expect("h7");
    assert_eq!(h7.endpoints[0].address.to_string(), "10.0.0.2");
    assert_eq!(h7.accounts, ["sample/a", "sample/b"]);
    assert_eq!(endpoints(&files, 4), Ok(None));
    let shards: Vec<_> = loaded.into_iter().map(|l| l.endpoints).collect();
    let table = EndpointTable::new(&shards, None);
    assert_eq!(table.locality("node"), Some("r/z"));
    assert_eq!(table.proxies("w").map(|w| &**w), Some(&zones));
}

// spec: DLV-026
#[test]
fn no_two_sources_of_the_volume_have_a_file_of_the_same_name() {
    let hosts = [host("a.app.svc.cluster.local", "10.0.0.1")];
    let endpoints = pack::endpoints(&hosts, &Places::default(), &Limits::default()).expect("packed");
    let mut large = bundle(1);
    large.hosts[0].name = noise(1_500_000);
    for bundle in [bundle(3), large] {
        let config = pack::config(&bundle, &inputs(), &Limits::default()).expect("packed");
        let sources = config.shards.iter().chain(&endpoints.shards);
        let mut names: Vec<&str> = sources.flat_map(BTreeMap::keys).map(String::as_str).collect();
        names.push(pack::TARGET_FILE);
        let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}

/// Text that no compressor makes much shorter.
fn noise(bytes: usize) -> String {
    let mut text = String::new();
    let mut seed = pack::sha256(b"noise");
    while text.len() < bytes {
        seed = pack::sha256(seed.as_bytes());
        let digest = data_encoding::HEXLOWER.decode(seed.as_bytes()).expect("hex");
        text.push_str(&data_encoding::BASE64.encode(&digest));
    }
    text
}

// spec: DLV-030
#[test]
fn no_config_map_grows_beyond_what_the_api_server_takes() {
    let most = |shards: &[Files]| {
        for files in shards {
            let contents = files.iter().filter(|(name, _)| name.ends_with(".zst"));
            assert!(contents.into_iter().all(|(_, bytes)| bytes.len() <= 921_600));
        }
        shards
            .iter()
            .map(|files| files.values().map(Vec::len).sum::<usize>())
            .max()
    };
    // The API server's limit on the values of one object.
    let limit = 1_048_576;
    let mut large = bundle(1);
    large.hosts[0].name = noise(2_200_000);
    let packed = pack::config(&large, &inputs(), &Limits::default()).expect("fits two");
    assert_eq!(packed.shards.len(), 2);
    let fullest = most(&packed.shards).expect("shards");
    assert!((921_600..limit).contains(&fullest), "{fullest}");
    let endpoints = |bytes: usize| {
        let mut host = host("a.app.svc.cluster.local", "10.0.0.1");
        host.endpoints[0].labels.insert("text".into(), noise(bytes));
        pack::endpoints([&host], &Places::default(), &Limits::default())
    };
    let packed = endpoints(1_100_000).expect("fits");
    assert!(most(&packed.shards).expect("shards") < limit);
    assert!(matches!(endpoints(1_400_000), Err(pack::PackError::TooLarge { .. })));
}

// spec: DLV-023, DLV-027
#[test]
fn a_broken_endpoint_shard_is_rejected_alone() {
    let mut files = merged(
        &pack::endpoints(&[host("a", "10.0.0.1")], &Places::default(), &Limits::default())
            .expect("pack")
            .shards,
    );
    let n = pack::shard_of("a", 2);
    files.get_mut(&format!("ep-{n}.zst")).expect("shard")[3] ^= 1;
    assert_eq!(endpoints(&files, n).expect_err("broken").reason, Reason::Checksum);
    assert!(endpoints(&files, 1 - n).expect("the other one").is_some());
}

// spec: DLV-028
#[test]
fn a_shard_beyond_the_number_that_it_states_is_none() {
    let packed = pack::endpoints(&[host("a", "10.0.0.1")], &Places::default(), &Limits::default()).expect("pack");
    let stating = |number: u32| {
        let mut files = merged(&packed.shards);
        let text = String::from_utf8(files["ep-1.json"].clone()).expect("JSON");
        let stated = text.replace("\"shards\":2", &format!("\"shards\":{number}"));
        files.insert("ep-1.json".to_owned(), stated.into_bytes());
        endpoints(&files, 1)
    };
    for number in [0, 1, 9, u32::MAX] {
        let error = stating(number).expect_err("no such shard");
        assert_eq!((error.reason, error.file.as_str()), (Reason::Invalid, "ep-1.json"));
        assert!(error.message.contains(&number.to_string()), "{error}");
    }
    assert!(stating(2).expect("good").is_some() && stating(8).expect("good").is_some());
}

proptest::proptest! {
    // spec: DLV-023
    #[test]
    fn arbitrary_bytes_never_panic(manifest: Vec<u8>, text: Vec<u8>) {
        let files = Files::from([
            (MANIFEST_FILE.to_owned(), manifest.clone()), (BUNDLE_FILE.to_owned(), text.clone()),
            ("ep-0.json".to_owned(), manifest), ("ep-0.zst".to_owned(), text),
        ]);
        let _ = config(&files);
        let _ = endpoints(&files, 0);
    }
}

// spec: DLV-020, DLV-024
#[test]
fn what_opens_ports_or_guards_them_is_for_proxies_that_know_how() {
    let with = |listeners, authorization| {
        let bundle = Bundle {
            listeners,
            authorization,
            ..bundle(1)
        };
        let packed = pack::config(&bundle, &inputs(), &Limits::default()).expect("pack");
        let files = merged(&packed.shards);
        let loaded = config(&files).expect("valid").expect("there");
        assert_eq!(loaded.bundle, bundle);
        loaded.manifest.requires
    };
    assert_eq!(with(Vec::new(), Vec::new()), [""; 0]);
    let listener = crate::wire::Listener {
        port: 8080,
        service_port: Some(80),
        grpc_web: true,
        serves: crate::wire::Serves::Tcp(Vec::new()),
    };
    // One that does not know a feature refuses the whole: it would open nothing, or keep nobody out.
    assert_eq!(
        with(vec![listener.clone()], bundle(1).authorization),
        ["authorization", "gateway"]
    );
    let server = crate::wire::TlsServer {
        sni: vec!["*".into()],
        tls: crate::wire::TlsSettings {
            certificates: vec![crate::wire::Certificate::Credential("0123456789abcdef".into())],
            clients: Some(crate::wire::Clients {
                authorities: crate::wire::Authorities::File("/ca".into()),
                optional: true,
                crl: None,
                names: vec!["a".into()],
            }),
            min: crate::wire::TlsVersion::V1_3,
            max: None,
            ciphers: vec!["ECDHE-RSA-AES128-GCM-SHA256".into()],
            curves: Vec::new(),
        },
        inside: crate::wire::Inside::Http(Vec::new()),
    };
    let tls = crate::wire::Listener {
        serves: crate::wire::Serves::Tls(crate::wire::TlsServing {
            passthrough: Vec::new(),
            terminated: vec![server],
        }),
        ..listener
    };
    assert_eq!(with(vec![tls], Vec::new()), ["gateway", "gatewayTls"]);
}
