use std::net::SocketAddr;

use super::*;

fn peers(count: u8) -> Vec<Rc<Peer>> {
    (0..count)
        .map(|i| Peer::bare(SocketAddr::from(([10, 0, 0, i], 80))))
        .inspect(|peer| peer.watch(Some(Arc::default())))
        .collect()
}

/// The endpoints as one worker has them.
fn worker(ejections: &Ejections, table: u64, peers: Vec<Rc<Peer>>) -> Vec<Rc<Peer>> {
    configured(ejections, AsOf { config: 1, table }, peers)
}

fn configured(ejections: &Ejections, as_of: AsOf, peers: Vec<Rc<Peer>>) -> Vec<Rc<Peer>> {
    let addresses: Vec<_> = peers.iter().map(|peer| peer.address).collect();
    for (peer, ejection) in peers.iter().zip(ejections.follow(as_of, &addresses)) {
        peer.watch(Some(ejection));
    }
    peers
}

fn fails(policy: &Outlier, peers: &[Rc<Peer>], peer: &Peer, times: u32, outcome: Outcome) -> bool {
    (0..times).any(|_| report(policy, peers, peer, outcome))
}

// spec: DR-091, DR-092, DR-093
#[tokio::test(start_paused = true)]
async fn errors_in_a_row_eject_and_a_success_forgives() {
    let peers = peers(2);
    let policy = Outlier {
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    assert!(!fails(&policy, &peers, &peers[0], 4, Outcome::Status(500)));
    assert!(!fails(&policy, &peers, &peers[0], 1, Outcome::Status(404)));
    assert!(!fails(&policy, &peers, &peers[0], 4, Outcome::Failed));
    assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
    assert!(peers[0].is_ejected(Instant::now()));
    let gateway = Outlier {
        consecutive_5xx: 0,
        consecutive_gateway_errors: 2,
        ..policy
    };
    assert!(!fails(&gateway, &peers, &peers[1], 5, Outcome::Status(500)));
    assert!(fails(&gateway, &peers, &peers[1], 2, Outcome::Status(503)));
    // Which statuses are errors of either kind, and what neither counts.
    let reaches = |policy: &Outlier, outcome| {
        let peers = self::peers(1);
        fails(policy, &peers, &peers[0], 2, outcome)
    };
    let any = Outlier {
        consecutive_5xx: 2,
        consecutive_gateway_errors: 0,
        ..gateway.clone()
    };
    for (outcome, is_gateway, is_any) in [
        (Outcome::Status(499), false, false),
        (Outcome::Status(500), false, true),
        (Outcome::Status(501), false, true),
        (Outcome::Status(502), true, true),
        (Outcome::Status(503), true, true),
        (Outcome::Status(504), true, true),
        (Outcome::Status(505), false, true),
        (Outcome::Status(599), false, true),
        (Outcome::Connected, false, false),
        (Outcome::Failed, true, true),
    ] {
        assert_eq!(reaches(&gateway, outcome), is_gateway, "{outcome:?}");
        assert_eq!(reaches(&any, outcome), is_any, "{outcome:?}");
    }
    let off = Outlier {
        consecutive_5xx: 0,
        ..any
    };
    assert!(!reaches(&off, Outcome::Failed));
}

// spec: DR-095
#[tokio::test(start_paused = true)]
async fn returns_are_looked_for_at_the_end_of_each_interval() {
    for (base_ms, lasts_ms) in [(5000, 10_000), (10_000, 10_000), (11_000, 20_000)] {
        let peers = peers(1);
        let policy = Outlier {
            consecutive_5xx: 1,
            max_ejection_percent: 100,
            interval_ms: 10_000,
            base_ejection_time_ms: base_ms,
            ..Outlier::default()
        };
        assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
        tokio::time::advance(Duration::from_millis(lasts_ms - 1)).await;
        assert!(peers[0].is_ejected(Instant::now()), "{base_ms}");
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(!peers[0].is_ejected(Instant::now()), "{base_ms}");
    }
}

// spec: DR-096
#[tokio::test(start_paused = true)]
async fn no_ejection_lasts_longer_than_five_minutes_or_the_base() {
    for (base_seconds, lasts) in [(120, [120, 240, 300, 300]), (400, [400, 400, 400, 400])] {
        let peers = peers(1);
        let policy = Outlier {
            consecutive_5xx: 1,
            max_ejection_percent: 100,
            base_ejection_time_ms: base_seconds * 1000,
            ..Outlier::default()
        };
        for seconds in lasts {
            assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(peers[0].is_ejected(Instant::now()), "{seconds}");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(!peers[0].is_ejected(Instant::now()), "{seconds}");
        }
    }
}

// spec: DR-094
#[tokio::test(start_paused = true)]
async fn failures_without_response_can_be_counted_apart() {
    let peers = peers(1);
    let policy = Outlier {
        consecutive_5xx: 2,
        consecutive_local_origin_failures: Some(3),
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    assert!(!fails(&policy, &peers, &peers[0], 2, Outcome::Failed));
    assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
}

// spec: DR-096, DR-095
#[tokio::test(start_paused = true)]
async fn each_ejection_lasts_longer_and_the_count_decays() {
    let peers = peers(1);
    let policy = Outlier {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    for lasts in [30, 60, 90] {
        assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
        tokio::time::advance(Duration::from_secs(lasts) - Duration::from_millis(1)).await;
        assert!(peers[0].is_ejected(Instant::now()), "{lasts}");
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(!peers[0].is_ejected(Instant::now()), "{lasts}");
    }
    for _ in 0..4 {
        tokio::time::advance(Duration::from_secs(10)).await;
        peers[0].ejection().unwrap().tick(&policy, Instant::now());
    }
    assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(!peers[0].is_ejected(Instant::now()));
}

// spec: DR-090, DR-091, DR-092
#[tokio::test(start_paused = true)]
async fn errors_of_all_workers_count_together_and_so_does_a_success() {
    let ejections = Ejections::default();
    let (one, other) = (worker(&ejections, 1, peers(2)), worker(&ejections, 1, peers(2)));
    let policy = Outlier {
        consecutive_5xx: 4,
        max_ejection_percent: 50,
        ..Outlier::default()
    };
    assert!(!fails(&policy, &one, &one[0], 3, Outcome::Failed));
    assert!(!report(&policy, &other, &other[0], Outcome::Status(200)));
    assert!(!fails(&policy, &one, &one[0], 2, Outcome::Failed));
    assert!(!fails(&policy, &other, &other[0], 1, Outcome::Status(500)));
    assert!(report(&policy, &one, &one[0], Outcome::Status(503)));
    let now = Instant::now();
    assert!(one[0].is_ejected(now) && other[0].is_ejected(now));
    // The share that may be out is that of all workers, too.
    assert!(!fails(&policy, &other, &other[1], 9, Outcome::Failed));
}

// spec: DR-095, DR-096
#[tokio::test(start_paused = true)]
async fn ejections_decay_once_however_many_workers_look() {
    let ejections = Ejections::default();
    let (one, other) = (worker(&ejections, 1, peers(1)), worker(&ejections, 1, peers(1)));
    let policy = Outlier {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    for lasts in [31, 61] {
        assert!(report(&policy, &one, &one[0], Outcome::Failed));
        tokio::time::advance(Duration::from_secs(lasts)).await;
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    for peers in [&one, &other] {
        peers[0].ejection().unwrap().tick(&policy, Instant::now());
    }
    // One of two is forgotten, so the next is the second again.
    assert!(report(&policy, &one, &one[0], Outcome::Failed));
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(other[0].is_ejected(Instant::now()));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(!other[0].is_ejected(Instant::now()));
}

// spec: DR-103
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_returns_begins_anew_for_all_workers() {
    let ejections = Ejections::default();
    let (one, other) = (worker(&ejections, 1, peers(2)), worker(&ejections, 1, peers(2)));
    let policy = Outlier {
        consecutive_5xx: 1,
        max_ejection_percent: 50,
        ..Outlier::default()
    };
    assert!(report(&policy, &one, &one[1], Outcome::Failed));
    // One worker sees it go and come back; the other one, which was idle, its return alone.
    let one = worker(&ejections, 2, one[..1].to_vec());
    let one = worker(&ejections, 3, vec![one[0].clone(), peers(2).remove(1)]);
    let other = worker(&ejections, 3, other);
    let now = Instant::now();
    assert!(!one[1].is_ejected(now) && !other[1].is_ejected(now));
    assert!(report(&policy, &other, &other[1], Outcome::Failed));
    assert!(one[1].is_ejected(now));
    ejections.note();
    ejections.look(now);
    assert!(ejections.any());
    tokio::time::advance(Duration::from_secs(40)).await;
    ejections.look(Instant::now());
    assert!(!ejections.any());
}

// spec: DR-090, LIFE-044
#[tokio::test(start_paused = true)]
async fn a_configuration_without_outlier_detection_forgets_what_was_counted() {
    let ejections = Ejections::default();
    let as_of = |config| AsOf { config, table: 1 };
    let policy = Outlier {
        consecutive_5xx: 2,
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    let one = configured(&ejections, as_of(1), peers(1));
    assert!(!report(&policy, &one, &one[0], Outcome::Failed));
    // Another configuration with it goes on counting.
    let one = configured(&ejections, as_of(2), one);
    assert!(report(&policy, &one, &one[0], Outcome::Failed));
    ejections.forget(as_of(3));
    let one = configured(&ejections, as_of(4), one);
    assert!(!one[0].is_ejected(Instant::now()));
    assert!(!report(&policy, &one, &one[0], Outcome::Failed));
    // A worker that comes late to the one without does not part them again.
    ejections.forget(as_of(3));
    let other = configured(&ejections, as_of(4), peers(1));
    assert!(report(&policy, &other, &other[0], Outcome::Failed));
    assert!(one[0].is_ejected(Instant::now()));
}

// spec: DR-097, DR-099, SM-100
#[tokio::test(start_paused = true)]
async fn a_share_of_endpoints_stays() {
    let peers = peers(10);
    let policy = Outlier {
        consecutive_5xx: 1,
        min_health_percent: 95,
        ..Outlier::default()
    };
    assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Failed));
    assert!(!fails(&policy, &peers, &peers[1], 9, Outcome::Failed));
    assert!(panics(&policy, &peers, Instant::now()));
    assert!(!panics(&Outlier::default(), &peers, Instant::now()));
    // Nine of ten are well: enough where that is what is asked for.
    let at_least = |min_health_percent| Outlier {
        min_health_percent,
        ..Outlier::default()
    };
    assert!(!panics(&at_least(90), &peers, Instant::now()));
    assert!(panics(&at_least(91), &peers, Instant::now()));
}

// spec: DR-100
#[tokio::test(start_paused = true)]
async fn listed_statuses_replace_5xx() {
    let peers = peers(1);
    let policy = Outlier {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        error_codes: vec![429],
        ..Outlier::default()
    };
    assert!(!fails(&policy, &peers, &peers[0], 3, Outcome::Status(500)));
    assert!(fails(&policy, &peers, &peers[0], 1, Outcome::Status(429)));
    // They do so for both thresholds, and what had no response counts all the same.
    let gateway = Outlier {
        consecutive_5xx: 0,
        consecutive_gateway_errors: 1,
        ..policy.clone()
    };
    for policy in [&policy, &gateway] {
        for (outcome, ejects) in [
            (Outcome::Status(503), false),
            (Outcome::Status(429), true),
            (Outcome::Failed, true),
        ] {
            let peers = self::peers(1);
            assert_eq!(fails(policy, &peers, &peers[0], 1, outcome), ejects, "{outcome:?}");
        }
    }
}

// spec: DR-102
#[tokio::test(start_paused = true)]
async fn a_poor_success_rate_alone_ejects_nobody() {
    let peers = peers(10);
    let policy = Outlier {
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    for n in 0..1000 {
        let outcome = if n % 5 == 0 {
            Outcome::Status(200)
        } else {
            Outcome::Failed
        };
        assert!(
            !report(&policy, &peers, &peers[0], outcome),
            "four of five fail, never five in a row"
        );
    }
}
