use std::collections::HashMap;
use std::net::SocketAddr;

use proptest::prelude::*;
use weft_bundle::model::EndpointTable;
use weft_bundle::wire;

use super::*;

fn peers(count: u8) -> Vec<Rc<Peer>> {
    (0..count)
        .map(|i| Peer::bare(SocketAddr::from(([10, 0, 0, i], 80))))
        .collect()
}

fn with(load_balancer: LoadBalancer) -> Policy {
    Policy {
        load_balancer,
        ..Policy::default()
    }
}

fn ring(maglev_table_size: Option<u64>) -> Policy {
    with(LoadBalancer::ConsistentHash(ConsistentHash {
        key: None,
        minimum_ring_size: None,
        maglev_table_size,
    }))
}

fn pick(group: &Group, policy: &Policy, key: Key) -> SocketAddr {
    let peer = group.choose(policy, key, |_| true);
    peer.expect("all may be used").address
}

fn counts(group: &Group, policy: &Policy, picks: u32) -> HashMap<SocketAddr, u32> {
    let mut counts = HashMap::new();
    for _ in 0..picks {
        *counts.entry(pick(group, policy, Key::NONE)).or_default() += 1;
    }
    counts
}

// spec: DR-035
#[test]
fn least_request_avoids_the_busy_one() {
    let peers = peers(2);
    peers[0].active.set(50);
    let chosen = counts(&Group::new(peers.clone()), &with(LoadBalancer::LeastRequest), 100);
    assert_eq!(chosen, HashMap::from([(peers[1].address, 100)]));
}

// spec: DR-041
#[test]
fn every_proxy_computes_the_same_hash() {
    // Of another process, version and machine, too: keys must not move when a client is replaced.
    assert_eq!(Key::of(b"alice"), Key(Some(0x3507_d047_a67c_08f4)));
}

// spec: DR-041, LIFE-045
#[test]
fn keys_stay_and_few_move_when_an_endpoint_goes() {
    for policy in [ring(None), ring(Some(1009))] {
        let all = peers(10);
        let group = Group::new(all.clone());
        let other = Group::new(all.clone());
        let keys: Vec<Key> = (0..1000u32).map(|i| Key::of(&i.to_le_bytes())).collect();
        let before: Vec<_> = keys.iter().map(|key| pick(&group, &policy, *key)).collect();
        assert!(
            keys.iter()
                .zip(&before)
                .all(|(key, chosen)| pick(&other, &policy, *key) == *chosen)
        );
        let gone = all[3].address;
        let rest = Group::new(all.iter().filter(|peer| peer.address != gone).cloned().collect());
        let moved = keys
            .iter()
            .zip(&before)
            .filter(|(key, chosen)| **chosen != gone && pick(&rest, &policy, **key) != **chosen)
            .count();
        // A ring moves none but those of the endpoint that went, Maglev a few more.
        assert!(moved <= 100, "{moved} of 1000");
        let mut shares: HashMap<SocketAddr, u32> = HashMap::new();
        before
            .iter()
            .for_each(|chosen| *shares.entry(*chosen).or_default() += 1);
        assert_eq!(shares.len(), 10);
        assert!(shares.values().all(|share| (30..=250).contains(share)), "{shares:?}");
    }
}

/// Endpoints 10.0.0.1 ff. with these weights, as a proxy takes them over from a list.
fn weighted(weights: &[u32]) -> Group {
    let list = weights
        .iter()
        .enumerate()
        .map(|(i, weight)| format!("  - {{a: 10.0.0.{}, p: 0, n: {weight}}}\n", i + 1));
    let yaml = format!(
        "ports: [{{'': 80}}]\nhosts:\n- host: a\n  endpoints:\n{}",
        list.collect::<String>()
    );
    let shard: wire::Endpoints = serde_yaml::from_str(&yaml).expect("the test's endpoints");
    let table = EndpointTable::new(&[shard], None);
    let host = table.host("a").expect("listed");
    let peers = host.endpoints.iter().map(|e| {
        let peer = Peer::bare(SocketAddr::new(e.address, 80));
        peer.weigh(e.weight);
        peer
    });
    Group::new(peers.collect())
}

// spec: DR-035, DR-039
#[test]
fn weights_divide_the_requests_whatever_the_balancer() {
    let heavy: SocketAddr = "10.0.0.1:80".parse().expect("address");
    let group = weighted(&[3, 1]);
    let in_turn = counts(&group, &with(LoadBalancer::RoundRobin), 400);
    assert_eq!(in_turn[&heavy], 300, "{in_turn:?}");
    for policy in [LoadBalancer::LeastRequest, LoadBalancer::Random] {
        let shares = counts(&weighted(&[3, 1]), &with(policy.clone()), 4000);
        assert!((2600..=4000).contains(&shares[&heavy]), "{policy:?}: {shares:?}");
        assert!(shares.len() == 2, "{policy:?}: {shares:?}");
    }
    let group = weighted(&[3, 1]);
    let hashed = (0..4000u32).filter(|i| pick(&group, &ring(None), Key::of(&i.to_le_bytes())) == heavy);
    let hashed = hashed.count();
    assert!((2600..=3400).contains(&hashed), "{hashed} of 4000");
}

// spec: DR-051, DR-052, DR-054
#[tokio::test(start_paused = true)]
async fn a_new_endpoint_warms_up() {
    let warm = |load_balancer| Policy {
        warmup: Some(Warmup {
            duration_ms: 100_000,
            minimum_ppm: 100_000,
            aggression_milli: 1000,
        }),
        ..with(load_balancer)
    };
    let turns = warm(LoadBalancer::RoundRobin);
    let mut all = peers(1);
    // Alone, and equally new, nothing is to be seen of it.
    assert_eq!(
        counts(&Group::new(peers(2)), &turns, 100)
            .into_values()
            .collect::<Vec<_>>(),
        [50, 50]
    );
    tokio::time::advance(Duration::from_secs(200)).await;
    all.push(Peer::bare("10.0.0.9:80".parse().expect("address")));
    let new = all[1].address;
    let share = |policy: &Policy| counts(&Group::new(all.clone()), policy, 1100)[&new];
    assert_eq!(share(&turns), 100, "a tenth of the other's");
    tokio::time::advance(Duration::from_secs(50)).await;
    let half = share(&turns);
    assert!((360..=372).contains(&half), "half of the other's: {half}");
    let least = share(&warm(LoadBalancer::LeastRequest));
    assert!((250..=480).contains(&least), "{least}");
    let slow = Policy {
        warmup: Some(Warmup {
            duration_ms: 100_000,
            minimum_ppm: 100_000,
            aggression_milli: 500,
        }),
        ..with(LoadBalancer::RoundRobin)
    };
    let quarter = share(&slow);
    assert!((215..=225).contains(&quarter), "a quarter of the other's: {quarter}");
    tokio::time::advance(Duration::from_secs(51)).await;
    assert_eq!(share(&turns), 550);
}

// spec: DR-047
#[test]
fn a_ring_has_the_size_that_was_asked_for() {
    let sized = |minimum_ring_size, maglev_table_size| {
        let hash = ConsistentHash {
            key: None,
            minimum_ring_size,
            maglev_table_size,
        };
        let group = Group::new(peers(3));
        group.hashed(&hash, 1, |_| true).expect("one");
        group.ring.take().points.len()
    };
    assert!((1024..1030).contains(&sized(None, None)));
    assert!((4096..4100).contains(&sized(Some(4096), None)));
    assert_eq!(sized(None, Some(1009)), 1009);
}

proptest! {
    // spec: DR-036, DR-042, DR-049
    #[test]
    fn only_usable_endpoints_are_chosen(count in 1u8..12, mask in any::<u16>(), key in any::<u64>()) {
        let peers = peers(count);
        let usable = |peer: &Peer| match peer.address {
            SocketAddr::V4(address) => mask & 1 << address.ip().octets()[3] != 0,
            SocketAddr::V6(_) => false,
        };
        let any = peers.iter().any(|peer| usable(peer));
        let group = Group::new(peers);
        let simple = [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random].map(with);
        for policy in simple.iter().chain(&[ring(None), ring(Some(101))]) {
            let chosen = group.choose(policy, Key(Some(key)), usable);
            prop_assert_eq!(chosen.is_some(), any);
            prop_assert!(chosen.is_none_or(|peer| usable(&peer)));
        }
    }
}
