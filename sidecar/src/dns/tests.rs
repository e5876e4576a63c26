use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;

use super::*;
use crate::shared::{Settings, Snapshot};
use crate::telemetry::Telemetry;

const WEB: &str = "web.app.svc.cluster.local.";

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    query
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("message")
}

/// The mesh knows `web` with an address of each family, and `many` with a thousand.
fn addresses(name: &str) -> Option<Vec<IpAddr>> {
    match name {
        "web.app.svc.cluster.local" => Some(vec![
            Ipv4Addr::new(10, 96, 0, 7).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).into(),
        ]),
        "four.app.svc.cluster.local" => Some(vec![Ipv4Addr::new(10, 96, 0, 8).into()]),
        "many.app.svc.cluster.local" => Some(
            (0..1000u16)
                .map(|n| Ipv4Addr::from(0x0a60_0000 + u32::from(n)).into())
                .collect(),
        ),
        _ => None,
    }
}

fn answered(query: &Message, transport: Transport) -> Message {
    match decide(&bytes(query), transport, addresses) {
        Decision::Answer(answer) => Message::from_vec(&answer).expect("message"),
        other => panic!("{other:?}"),
    }
}

fn forwarded(query: &Message) -> bool {
    matches!(
        decide(&bytes(query), Transport::Udp, addresses),
        Decision::Forward { .. }
    )
}

// spec: NET-094
#[test]
fn names_of_the_mesh_have_their_addresses_of_the_family_asked_for() {
    let answer = answered(&query(WEB, RecordType::A), Transport::Udp);
    assert_eq!(answer.metadata.id, 7);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available && answer.metadata.recursion_desired);
    assert_eq!(answer.queries, query(WEB, RecordType::A).queries);
    let data: Vec<&RData> = answer.answers.iter().map(|record| &record.data).collect();
    assert_eq!(data, [&RData::A(A(Ipv4Addr::new(10, 96, 0, 7)))]);
    let answer = answered(&query(WEB, RecordType::AAAA), Transport::Tcp);
    let data: Vec<&RData> = answer.answers.iter().map(|record| &record.data).collect();
    assert_eq!(data, [&RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7)))]);
    assert_eq!(answered(&query(WEB, RecordType::ANY), Transport::Udp).answers.len(), 2);
}

// spec: NET-094
#[test]
fn a_known_name_without_that_family_is_no_error_and_has_no_records() {
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        let answer = answered(&query("four.app.svc.cluster.local.", kind), Transport::Udp);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(answer.answers.is_empty(), "{kind}");
    }
}

// spec: NET-094
#[test]
fn names_match_whatever_their_case_and_are_given_back_as_asked() {
    let name = "WeB.aPP.svc.Cluster.Local.";
    let answer = answered(&query(name, RecordType::A), Transport::Udp);
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(answer.queries[0].name().to_ascii(), name);
    assert_eq!(answer.answers[0].name.to_ascii(), name);
}

// spec: NET-094
#[test]
fn what_the_mesh_does_not_know_is_forwarded() {
    // Short names are names of their own: the application's resolver expands them.
    for name in [
        "example.com.",
        "web.",
        "web.app.",
        "web.app.svc.",
        "x.web.app.svc.cluster.local.",
    ] {
        assert!(forwarded(&query(name, RecordType::A)), "{name}");
    }
    for kind in [RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::PTR] {
        assert!(forwarded(&query(WEB, kind)), "{kind}");
    }
    let mut chaos = query(WEB, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert!(forwarded(&chaos));
    let mut two = query(WEB, RecordType::A);
    two.add_query(Query::query(Name::from_ascii(WEB).expect("name"), RecordType::AAAA));
    assert!(forwarded(&two));
    let mut notify = query(WEB, RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    assert!(forwarded(&notify));
    let mut newer = query(WEB, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    assert!(forwarded(&newer));
}

#[test]
fn a_long_answer_is_cut_to_what_the_client_takes() {
    let name = "many.app.svc.cluster.local.";
    let cut = answered(&query(name, RecordType::A), Transport::Udp);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut able = query(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX);
    able.set_edns(edns);
    let whole = answered(&able, Transport::Udp);
    assert!(!whole.metadata.truncation && whole.answers.len() == 1000);
    assert!(whole.edns.is_some(), "who states what it takes is told the same");
    let whole = answered(&query(name, RecordType::A), Transport::Tcp);
    assert_eq!(whole.answers.len(), 1000);
    assert_eq!(Transport::Udp.limit(None), 512);
    assert_eq!(Transport::Udp.limit(Some(100)), 512);
    assert_eq!(Transport::Udp.limit(Some(1232)), 1232);
}

#[test]
fn what_is_no_query_is_ignored() {
    for noise in [&b""[..], b"noise", &[0; 11]] {
        assert_eq!(decide(noise, Transport::Udp, addresses), Decision::Ignore);
    }
    let mut response = bytes(&query(WEB, RecordType::A));
    response[2] |= answer::RESPONSE;
    assert_eq!(decide(&response, Transport::Udp, addresses), Decision::Ignore);
}

#[test]
fn a_failure_repeats_id_and_question_and_nothing_else() {
    let mut asked = query(WEB, RecordType::A);
    asked.set_edns(Edns::new());
    let failure = Message::from_vec(&answer::failure(&bytes(&asked))).expect("message");
    assert_eq!(failure.metadata.id, 7);
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(failure.queries, asked.queries);
    assert!(failure.edns.is_none() && failure.metadata.recursion_desired);
    let cut = Message::from_vec(&answer::too_long(&bytes(&asked))).expect("message");
    assert!(cut.metadata.truncation && cut.metadata.response_code == ResponseCode::NoError);
    // Whatever it answers.
    assert_eq!(answer::failure(b"x").len(), 12);
    assert!(Message::from_vec(&answer::failure(&[0xff; 300])).is_ok());
}

proptest! {
    // spec: NET-094
    #[test]
    fn no_message_makes_the_resolver_panic(
        mut message in proptest::collection::vec(any::<u8>(), 0..600),
        begin in 0usize..4,
        flips in proptest::collection::vec((0usize..60, any::<u8>()), 0..6),
    ) {
        // Noise alone seldom gets past the header.
        if begin > 0 {
            let mut known = bytes(&query(WEB, RecordType::A));
            known.append(&mut message);
            message = known;
            for (at, value) in flips {
                message[at % 40] = value;
            }
        }
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Decision::Answer(answer) = decide(&message, transport, addresses) {
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
        let failure = answer::failure(&message);
        prop_assert!(failure.len() >= 12 && failure.len() <= message.len().max(12));
        prop_assert!(answer::too_long(&message).len() == failure.len());
    }
}

fn resolver(hosts: &str, endpoints: &str) -> Resolver {
    resolver_of(Settings::default(), hosts, endpoints)
}

fn resolver_of(settings: Settings, hosts: &str, endpoints: &str) -> Resolver {
    let shared = Shared::new(settings, Arc::new(Telemetry::default()));
    let resolver = Resolver::new(Arc::new(shared), Vec::new());
    configure(&resolver, hosts);
    let endpoints: weft_bundle::wire::Endpoints = serde_yaml::from_str(endpoints).expect("endpoints");
    let table = weft_bundle::model::EndpointTable::new(&[endpoints], None);
    resolver.shared.endpoints.store(Arc::new(table));
    resolver
}

fn configure(resolver: &Resolver, hosts: &str) {
    let text = format!(
        "workload: {{namespace: app, name: a, serviceAccount: a, canonicalName: a, canonicalRevision: latest}}\n\
         hosts:\n{hosts}"
    );
    let bundle = serde_yaml::from_str(&text).expect("bundle");
    let config = weft_bundle::model::Config::parse(bundle).expect("config");
    resolver.shared.current.store(Some(Arc::new(Snapshot {
        config: Arc::new(config),
        revision: String::new(),
    })));
}

fn host(host: &str, rest: &str) -> String {
    format!("- {{host: {host:?}, name: x, namespace: app, ports: [{{port: 80}}]{rest}}}\n")
}

// spec: NET-094
#[test]
fn services_entries_and_wildcards_are_known_by_their_addresses() {
    let hosts = [
        host("*.example.com", ", addresses: [240.240.0.1]"),
        host("*.deep.example.com", ", addresses: [240.240.0.2]"),
        host("api.example.com", ", addresses: [240.240.0.3]"),
        host("unaddressed.example.org", ""),
        host("web.app.svc.cluster.local", ", addresses: [10.96.0.7, 'fd00::7']"),
    ];
    let resolver = resolver(&hosts.concat(), "{}");
    let of = |name: &str| {
        resolver
            .addresses(name)
            .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of("web.app.svc.cluster.local").as_deref(), Some("10.96.0.7 fd00::7"));
    assert_eq!(of("api.example.com").as_deref(), Some("240.240.0.3"));
    assert_eq!(of("other.example.com").as_deref(), Some("240.240.0.1"));
    assert_eq!(of("a.b.example.com").as_deref(), Some("240.240.0.1"));
    assert_eq!(of("x.deep.example.com").as_deref(), Some("240.240.0.2"));
    for unknown in [
        "example.com",
        "unaddressed.example.org",
        "web",
        "",
        ".",
        "*.example.org",
    ] {
        assert_eq!(of(unknown), None, "{unknown}");
    }
    // What is in force counts, at once.
    configure(&resolver, &host("api.example.com", ", addresses: [240.240.0.9]"));
    assert_eq!(resolver.addresses("web.app.svc.cluster.local"), None);
    assert_eq!(
        resolver.addresses("api.example.com"),
        Some(vec![Ipv4Addr::new(240, 240, 0, 9).into()])
    );
}

// spec: SE-032, NET-094
#[test]
fn entries_without_addresses_have_allocated_ones_of_the_pods_families() {
    let hosts = [
        host("a.example", ", kind: entry, allocated: [240.240.0.1, '2001:2::1']"),
        host("*.example", ", kind: entry, allocated: [240.240.0.2, '2001:2::2']"),
        host(
            "c.example",
            ", kind: entry, addresses: [10.0.0.3], allocated: [240.240.0.3]",
        ),
    ];
    let of = |own: &[IpAddr], name: &str| {
        let settings = Settings {
            addresses: own.to_vec(),
            ..Settings::default()
        };
        let found = resolver_of(settings, &hosts.concat(), "{}").addresses(name)?;
        Some(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let (four, six) = (IpAddr::from([10, 0, 0, 9]), IpAddr::from(Ipv6Addr::LOCALHOST));
    assert_eq!(of(&[four, six], "a.example").as_deref(), Some("240.240.0.1 2001:2::1"));
    assert_eq!(of(&[four], "a.example").as_deref(), Some("240.240.0.1"));
    assert_eq!(of(&[six], "a.example").as_deref(), Some("2001:2::1"));
    assert_eq!(of(&[four], "b.example").as_deref(), Some("240.240.0.2"));
    assert_eq!(of(&[four], "c.example").as_deref(), Some("10.0.0.3"));
}

// spec: NET-094
#[test]
fn a_headless_service_has_the_addresses_of_endpoints_that_take_requests() {
    let hosts = [
        host("db.app.svc.cluster.local", ", headless: true"),
        host("elsewhere.example.com", ", headless: true"),
        host("empty.app.svc.cluster.local", ", headless: true"),
        host("late.app.svc.cluster.local", ", headless: true"),
    ];
    let endpoints = "ports: [{'': 80}]\nhosts:\n- host: db.app.svc.cluster.local\n  endpoints: [{a: 10.0.0.1, p: 0}, \
                     {a: 10.0.0.2, p: 0}, {a: 10.0.0.3, p: 0, h: unready}, {a: 10.0.0.4, p: 0, h: draining}]\n\
                     - host: empty.app.svc.cluster.local\n- host: elsewhere.example.com\n  endpoints: [{a: 10.0.0.9, p: 0}]\n";
    let resolver = resolver(&hosts.concat(), endpoints);
    let mut found = resolver.addresses("db.app.svc.cluster.local").expect("known");
    found.sort();
    assert_eq!(found, [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
    // The cluster's servers may know more: endpoints that no file names yet, and names of single pods.
    for unknown in [
        "empty.app.svc.cluster.local",
        "late.app.svc.cluster.local",
        "db-0.db.app.svc.cluster.local",
        "elsewhere.example.com",
    ] {
        assert_eq!(resolver.addresses(unknown), None, "{unknown}");
    }
}

// spec: NET-095
#[test]
fn without_a_configuration_nothing_is_known() {
    let shared = Shared::new(Settings::default(), Arc::new(Telemetry::default()));
    let resolver = Resolver::new(Arc::new(shared), Vec::new());
    let query = bytes(&query(WEB, RecordType::A));
    assert_eq!(
        resolver.decide(&query, Transport::Udp),
        Decision::Forward { limit: 512 }
    );
}
