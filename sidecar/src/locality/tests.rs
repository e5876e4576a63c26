use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_bundle::model::EndpointTable;
use weft_bundle::wire::{self, ConsistentHash, LoadBalancer};

use super::*;

/// Endpoints 10.0.0.1 ff. in these localities, with labels.
struct List(EndpointTable);

impl List {
    fn new(endpoints: &[(&str, &str)]) -> Self {
        let mut yaml = String::from("ports: [{'': 80}]\nlabels:\n");
        endpoints
            .iter()
            .for_each(|(_, labels)| yaml.push_str(&format!("- {{{labels}}}\n")));
        yaml.push_str("localities:\n");
        endpoints
            .iter()
            .for_each(|(locality, _)| yaml.push_str(&format!("- {locality}\n")));
        yaml.push_str("nodeNames: [here, there]\nhosts:\n- host: a\n  endpoints:\n");
        for i in 0..endpoints.len() {
            let node = usize::from(i > 0);
            yaml.push_str(&format!(
                "  - {{a: 10.0.0.{}, p: 0, l: {i}, z: {i}, o: {node}}}\n",
                i + 1
            ));
        }
        let shard: wire::Endpoints = serde_yaml::from_str(&yaml).expect("the test's endpoints");
        Self(EndpointTable::new(&[shard], None))
    }

    fn groups(&self, policy: &Policy, here: &Here) -> Groups {
        self.groups_with(policy, here, &[])
    }

    /// With the number of own proxies by zone.
    fn groups_with(&self, policy: &Policy, here: &Here, proxies: &[(&str, u32)]) -> Groups {
        let endpoints = &self.0.host("a").expect("listed").endpoints;
        let members = endpoints
            .iter()
            .map(|e| (Peer::bare(SocketAddr::new(e.address, 80)), e));
        let proxies = proxies
            .iter()
            .map(|(zone, count)| ((*zone).to_owned(), *count))
            .collect();
        Groups::new(policy, here, &members.collect::<Vec<_>>(), &proxies)
    }

    /// Last octets of the endpoints, group by group.
    fn order(&self, locality: Option<Locality>, here: &Here) -> Vec<Vec<u8>> {
        let policy = Policy {
            locality,
            ..Policy::default()
        };
        let groups = self.groups(&policy, here);
        groups
            .list
            .iter()
            .map(|group| group.peers().iter().map(|p| octet(p)).collect())
            .collect()
    }
}

fn octet(peer: &Peer) -> u8 {
    match peer.address {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(_) => 0,
    }
}

fn here(locality: &str) -> Here {
    Here {
        locality: locality.into(),
        node: "here".into(),
    }
}

fn failover(labels: Vec<SharedLabel>, regions: Option<&[(&str, &str)]>) -> Option<Locality> {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    Some(Locality::Failover(Failover {
        labels,
        regions: regions.map(pairs),
        zones: None,
    }))
}

// spec: DR-056, DR-058, DR-059
#[test]
fn nearer_endpoints_come_first() {
    let list = List::new(&[
        ("r/z/s", ""),
        ("r/z/t", ""),
        ("r/y/s", ""),
        ("q/z/s", ""),
        ("p/z/s", ""),
    ]);
    assert_eq!(
        list.order(failover(vec![], Some(&[])), &here("r/z/s")),
        [vec![1], vec![2], vec![3], vec![4, 5]]
    );
    // A region that is named comes before the others, which are still there.
    let named = failover(vec![], Some(&[("r", "p"), ("q", "r")]));
    assert_eq!(
        list.order(named.clone(), &here("r/z/s")),
        [vec![1], vec![2], vec![3], vec![5], vec![4]]
    );
    assert_eq!(list.order(named, &here("p/z/s"))[0], [5]);
    // Without subzone on both sides the zone is the nearest.
    let list = List::new(&[("r/z", ""), ("r/y", ""), ("r/z/s", "")]);
    assert_eq!(
        list.order(failover(vec![], Some(&[])), &here("r/z")),
        [vec![1], vec![3], vec![2]]
    );
    assert_eq!(list.order(None, &here("r/z")), [vec![1, 2, 3]]);
    // A client that does not know where it is prefers nobody.
    assert_eq!(list.order(failover(vec![], Some(&[])), &here("")), [vec![1, 2, 3]]);
}

// spec: DR-061, DR-062, SM-006, SM-104
#[test]
fn labels_order_one_after_the_other() {
    let list = List::new(&[
        ("r/z", "a: x, b: y"),
        ("r/y", "a: x"),
        ("q/z", "b: y"),
        ("q/y", "a: w, c: v"),
    ]);
    let equal = |name: &str, value: &str| SharedLabel::Equal(name.into(), value.into());
    // A later label counts only where the earlier ones fit.
    let labels = vec![equal("a", "x"), equal("b", "y")];
    assert_eq!(
        list.order(failover(labels, None), &here("r/z")),
        [vec![1], vec![2], vec![3, 4]]
    );
    // What both sides lack is equal.
    let labels = vec![SharedLabel::Missing("c".into())];
    assert_eq!(
        list.order(failover(labels, None), &here("r/z")),
        [vec![1, 2, 3], vec![4]]
    );
    let own = |name: &str| SharedLabel::Own(name.into());
    let zone = vec![own("topology.kubernetes.io/region"), own("topology.kubernetes.io/zone")];
    assert_eq!(
        list.order(failover(zone, None), &here("r/z")),
        [vec![1], vec![2], vec![3, 4]]
    );
    let node = vec![own("topology.istio.io/network"), own("kubernetes.io/hostname")];
    assert_eq!(list.order(failover(node, None), &here("r/z")), [vec![1], vec![2, 3, 4]]);
    let cluster = vec![equal("topology.istio.io/cluster", "Kubernetes")];
    assert_eq!(list.order(failover(cluster, None), &here("r/z")), [vec![1, 2, 3, 4]]);
    // Within equal labels the region decides.
    let both = failover(vec![equal("a", "x")], Some(&[]));
    assert_eq!(list.order(both, &here("q/z")), [vec![1, 2], vec![3], vec![4]]);
}

fn distribute(entries: &[(&str, &[(&str, u32)])]) -> Policy {
    let entry = |(from, to): &(&str, &[(&str, u32)])| wire::Distribute {
        from: (*from).into(),
        to: to
            .iter()
            .map(|(to, percent)| ((*to).to_owned(), *percent))
            .collect::<BTreeMap<_, _>>(),
    };
    Policy {
        locality: Some(Locality::Distribute(entries.iter().map(entry).collect())),
        ..Policy::default()
    }
}

fn share(groups: &Groups, policy: &Policy, octets: &[u8], healthy: impl Fn(&Peer) -> bool) -> u32 {
    (0..10_000).fold(0, |hits, _| {
        let peer = groups.choose(policy, Key::NONE, 0, &healthy, &healthy).expect("one");
        hits + u32::from(octets.contains(&octet(&peer)))
    })
}

// spec: DR-063, DR-065
#[test]
fn requests_are_distributed_over_localities() {
    let list = List::new(&[("r/z/s", ""), ("r/z/t", ""), ("r/y/s", ""), ("q/z/s", "")]);
    let policy = distribute(&[
        ("q/*", &[("q/*", 100)]),
        ("r/z/*", &[("r/z/*", 80), ("r/y", 20)]),
        ("*", &[("q", 100)]),
    ]);
    let groups = list.groups(&policy, &here("r/z/s"));
    let hits = share(&groups, &policy, &[1, 2], |_| true);
    assert!((7700..=8300).contains(&hits), "{hits}");
    assert_eq!(
        share(&groups, &policy, &[4], |_| true),
        0,
        "what is not listed gets nothing"
    );
    // Without a healthy endpoint the rest takes over, and the unlisted still gets nothing.
    assert_eq!(share(&groups, &policy, &[3], |peer| octet(peer) > 2), 10_000);
    assert!(
        groups
            .choose(&policy, Key::NONE, 0, |p| octet(p) == 4, |p| octet(p) == 4)
            .is_none()
    );
    // The first entry that fits.
    let groups = list.groups(&policy, &here("q/x"));
    assert_eq!(share(&groups, &policy, &[4], |_| true), 10_000);
    // Nobody's entry: everything alike.
    let policy = distribute(&[("q/*", &[("q/*", 100)])]);
    let groups = list.groups(&policy, &here("r/z/s"));
    let hits = share(&groups, &policy, &[4], |_| true);
    assert!((2200..=2800).contains(&hits), "{hits}");
}

// spec: DR-066, SM-107
#[test]
fn a_group_that_loses_endpoints_hands_over_by_and_by() {
    let near = [("r/z", ""); 10];
    let list = List::new(&[&near[..], &[("q/z", ""), ("q/y", "")]].concat());
    let policy = Policy {
        locality: failover(vec![], Some(&[])),
        ..Policy::default()
    };
    let groups = list.groups(&policy, &here("r/z"));
    for (well, least, most) in [
        (10, 10_000, 10_000),
        (8, 10_000, 10_000),
        (5, 6700, 7300),
        (1, 1200, 1600),
        (0, 0, 0),
    ] {
        let healthy = |peer: &Peer| octet(peer) > 10 || octet(peer) <= well;
        let hits = share(&groups, &policy, &(1..=10).collect::<Vec<u8>>(), healthy);
        assert!((least..=most).contains(&hits), "{well} of 10 healthy: {hits}");
    }
}

// spec: DR-050
#[test]
fn a_key_stays_in_its_group() {
    let list = List::new(&[("r/z", ""), ("r/z", ""), ("q/z", ""), ("q/z", "")]);
    let hash = LoadBalancer::ConsistentHash(ConsistentHash {
        key: None,
        minimum_ring_size: None,
        maglev_table_size: None,
    });
    let near = Policy {
        locality: failover(vec![], Some(&[])),
        load_balancer: hash.clone(),
        ..Policy::default()
    };
    let spread = Policy {
        load_balancer: hash,
        ..distribute(&[("*", &[("r", 50), ("q", 50)])])
    };
    for (policy, both) in [(near, false), (spread, true)] {
        let (first, second) = (list.groups(&policy, &here("r/z")), list.groups(&policy, &here("r/z")));
        let mut far = 0;
        for i in 0..200u32 {
            let key = Key::of(&i.to_le_bytes());
            let of = |groups: &Groups| groups.choose(&policy, key, 0, |_| true, |_| true).expect("one").address;
            let chosen = of(&first);
            assert_eq!(chosen, of(&second), "every proxy of a locality agrees");
            assert_eq!(chosen, of(&first));
            far += u32::from(chosen.port() == 80 && chosen.ip() > "10.0.0.2".parse::<std::net::IpAddr>().expect("IP"));
        }
        assert_eq!(far > 0, both, "{far}");
    }
}

fn by_zones(min_cluster_size: u32) -> Policy {
    let labels = vec![SharedLabel::Own("topology.kubernetes.io/region".into())];
    let Some(Locality::Failover(plain)) = failover(labels, Some(&[("r", "p")])) else {
        panic!("no failover")
    };
    Policy {
        load_balancer: LoadBalancer::Random,
        locality: Some(Locality::Failover(Failover {
            zones: Some(ZoneAware { min_cluster_size }),
            ..plain
        })),
        ..Policy::default()
    }
}

/// Percent of 20,000 requests by endpoint, of those that are well.
fn shares(groups: &Groups, policy: &Policy, well: impl Fn(u8) -> bool) -> BTreeMap<u8, u32> {
    let mut hits: BTreeMap<u8, u32> = BTreeMap::new();
    for _ in 0..20_000 {
        let is_well = |peer: &Peer| well(octet(peer));
        let peer = groups
            .choose(policy, Key::NONE, 0, is_well, is_well)
            .expect("some are well");
        *hits.entry(octet(&peer)).or_default() += 1;
    }
    hits.into_iter()
        .map(|(peer, hits)| (peer, (hits + 100) / 200))
        .collect()
}

fn is_near(shares: &BTreeMap<u8, u32>, wanted: &[(u8, u32)]) -> bool {
    let of = |peer: u8| shares.get(&peer).copied().unwrap_or(0);
    wanted.iter().all(|(peer, share)| of(*peer).abs_diff(*share) <= 2)
        && shares
            .keys()
            .all(|peer| wanted.iter().any(|(wanted, _)| wanted == peer))
}

// spec: DR-068, DR-071
#[test]
fn a_zone_keeps_what_its_endpoints_can_take_and_spills_the_rest_within_its_region() {
    // 10 % of the endpoints in zone x, 40 % in y, 50 % in z; others in other regions.
    let mut endpoints = vec![("r/x", "")];
    endpoints.extend([("r/y/s", ""); 4]);
    endpoints.extend([("r/z", ""); 5]);
    endpoints.extend([("q/x", ""), ("p/x", "")]);
    let list = List::new(&endpoints);
    let policy = by_zones(6);
    // Half of the clients are in x: a fifth of what they send stays, the rest goes where endpoints are more than clients.
    let proxies = [("r/x", 5), ("r/y", 2), ("r/z", 3), ("q/x", 90)];
    let groups = list.groups_with(&policy, &here("r/x"), &proxies);
    let seen = shares(&groups, &policy, |_| true);
    let wanted = [
        (1, 20),
        (2, 10),
        (3, 10),
        (4, 10),
        (5, 10),
        (6, 8),
        (7, 8),
        (8, 8),
        (9, 8),
        (10, 8),
    ];
    assert!(is_near(&seen, &wanted), "{seen:?}");
    // A fifth of the clients for two fifths of the endpoints: all of it stays.
    let groups = list.groups_with(&policy, &here("r/y/t"), &proxies);
    let seen = shares(&groups, &policy, |_| true);
    assert!(is_near(&seen, &[(2, 25), (3, 25), (4, 25), (5, 25)]), "{seen:?}");
    // Other regions are lower priorities, the one that is named first.
    let order = list.order(policy.locality.clone(), &here("r/x"));
    assert_eq!(order, [(1..=10).collect::<Vec<u8>>(), vec![12], vec![11]]);
    let seen = shares(&groups, &policy, |peer| peer > 10);
    assert!(is_near(&seen, &[(12, 100)]), "{seen:?}");
}

// spec: DR-069, DR-071
#[test]
fn zones_do_not_count_for_few_endpoints_a_single_zone_or_an_own_zone_that_is_not_well() {
    let list = List::new(&[("r/x", ""), ("r/y", ""), ("r/y", ""), ("q/x", "")]);
    let proxies = [("r/x", 1), ("r/y", 9)];
    let even = [(1, 33), (2, 33), (3, 33)];
    let seen = |list: &List, least: u32, at: &str, proxies: &[(&str, u32)], well: &dyn Fn(u8) -> bool| {
        let policy = by_zones(least);
        shares(&list.groups_with(&policy, &here(at), proxies), &policy, well)
    };
    let all = |_: u8| true;
    assert!(
        is_near(&seen(&list, 3, "r/x", &proxies, &all), &[(1, 100)]),
        "it counts"
    );
    assert!(is_near(&seen(&list, 4, "r/x", &proxies, &all), &even), "too few");
    assert!(
        is_near(&seen(&list, 3, "r/x", &[], &all), &even),
        "nobody knows the clients"
    );
    assert!(
        is_near(&seen(&list, 3, "r/v", &proxies, &all), &even),
        "none in the own zone"
    );
    // The next region helps by what the health of this one lacks (DR-066).
    let rest = |peer: u8| peer != 1;
    assert!(is_near(
        &seen(&list, 3, "r/x", &proxies, &rest),
        &[(2, 47), (3, 47), (4, 7)]
    ));
    let single = List::new(&[("r/x", ""), ("r/x", ""), ("r/x/s", ""), ("q/x", "")]);
    assert!(is_near(&seen(&single, 1, "r/x", &proxies, &all), &even), "one zone");
}

// spec: SM-101, DLV-014
#[test]
fn a_pod_says_where_it_is_by_its_labels() {
    let of = |labels: &str| Here::of_pod(labels, "n").locality;
    assert_eq!(
        of("app=\"x\"\ntopology.istio.io/locality=\"r.z.s\"\nistio-locality=\"q\"\n"),
        "r/z/s"
    );
    assert_eq!(of("istio-locality=\"q.y\"\n"), "q/y");
    assert_eq!(
        of("topology.kubernetes.io/region=\"r\"\ntopology.kubernetes.io/zone=\"z\"\n"),
        "r/z"
    );
    assert_eq!(of("topology.kubernetes.io/zone=\"z\"\n"), "", "its node's is taken");
}
