use std::num::NonZeroUsize;
use std::sync::OnceLock;

use bytes::Bytes;
use tokio::time::{Duration, Instant};
use weft_bundle::load;
use weft_bundle::model::EndpointTable;
use weft_bundle::pack::{self, EndpointInput, Files, HostInput, Limits, Places};
use weft_bundle::wire::MeshTls;

use super::*;
use crate::http::Version;
use crate::telemetry::Telemetry;

// spec: MET-010
#[test]
fn a_value_on_a_bound_belongs_to_it() {
    let mut histogram = Histogram::default();
    for value in [0.5, 0.6, 1.0, 4_000_000.0] {
        histogram.observe(value);
    }
    assert_eq!((histogram.buckets[0], histogram.buckets[1], histogram.count), (1, 2, 4));
}

fn telemetry(most: usize) -> Arc<Telemetry> {
    let most = NonZeroUsize::new(most).expect("some");
    Arc::new(Telemetry::new(2, "Kubernetes", most))
}

fn downstream(worker: usize, direction: Direction) -> Arc<Downstream> {
    let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80));
    Arc::new(Downstream {
        id: 1,
        worker,
        direction,
        remote: address,
        local: address,
        principal: None,
        local_principal: None,
        ended_by: None,
        server_name: None,
        tls: None,
        certificate_element: OnceLock::new(),
    })
}

fn workload(name: &str) -> PeerWorkload {
    PeerWorkload {
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        app: None,
        version: None,
    }
}

/// Endpoints of one host with these workloads.
fn table(workloads: &[&str]) -> EndpointTable {
    let endpoints = workloads.iter().enumerate().map(|(n, name)| EndpointInput {
        address: std::net::IpAddr::from([10, 1, 0, u8::try_from(n).expect("a few")]),
        ports: [("http".to_owned(), 80)].into(),
        labels: BTreeMap::new(),
        workload: Some(workload(name)),
        locality: None,
        node: None,
        weight: 1,
        health: weft_bundle::wire::Health::Ready,
        tls: MeshTls::None,
    });
    let host = HostInput {
        host: "echo.shop.svc.cluster.local".into(),
        accounts: Vec::new(),
        endpoints: endpoints.collect(),
    };
    let limits = Limits {
        endpoint_shards: 1,
        ..Limits::default()
    };
    let packed = pack::endpoints([&host], &Places::default(), &limits).expect("packed");
    let files: Files = packed.shards.into_iter().flatten().collect();
    let loaded = load::endpoints(&files, 0).expect("good").expect("there");
    EndpointTable::new(&[loaded.endpoints], None)
}

/// An inbound request of a client.
fn called(telemetry: &Arc<Telemetry>, worker: usize, client: Option<&str>, status: u16) {
    let mut exchange = Exchange::new(
        telemetry.clone(),
        downstream(worker, Direction::Inbound),
        Version::Http11,
    );
    exchange.source = client.map(|name| Arc::new(workload(name)));
    exchange.destination = Some(Arc::new(workload("echo")));
    exchange.status = status;
    exchange.finish();
}

/// An outbound request to a host that is not known.
fn passed(telemetry: &Arc<Telemetry>, worker: usize, host: &str) {
    let mut exchange = Exchange::new(
        telemetry.clone(),
        downstream(worker, Direction::Outbound),
        Version::Http11,
    );
    exchange.upstream.target = Target::Passthrough;
    exchange.authority = Bytes::copy_from_slice(host.as_bytes());
    exchange.status = 200;
    exchange.finish();
}

/// A connection of a client, opened and closed.
fn connected(telemetry: &Arc<Telemetry>, worker: usize, client: &str) {
    let mut session = Session::new(telemetry.clone(), downstream(worker, Direction::Inbound));
    session.source = Some(Arc::new(workload(client)));
    session.bytes_sent = 10;
    session.opened();
}

/// Series of a metric with their values.
fn lines(telemetry: &Telemetry, metric: &str) -> Vec<(String, u64)> {
    let text = telemetry.prometheus();
    let of = text
        .lines()
        .filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    of.map(|line| {
        let (labels, value) = line.rsplit_once("} ").expect("a value");
        (labels.to_owned(), value.parse().expect("a number"))
    })
    .collect()
}

fn total(lines: &[(String, u64)]) -> u64 {
    lines.iter().map(|(_, value)| value).sum()
}

fn overflow(telemetry: &Telemetry, metric: &str) -> u64 {
    let found = lines(telemetry, "weft_metric_overflow_total");
    let wanted = format!("metric=\"{metric}\"");
    found.iter().find(|(labels, _)| *labels == wanted).expect("a count").1
}

// spec: BYD-035, CARD-002
#[test]
fn label_sets_beyond_the_budget_of_all_workers_are_one_series_for_each_reporter() {
    let telemetry = telemetry(3);
    for status in 200..210 {
        // What one worker has counted is nothing new for the other.
        called(&telemetry, 0, Some("client"), status);
        called(&telemetry, 1, Some("client"), status);
    }
    passed(&telemetry, 0, "a.example");
    let requests = lines(&telemetry, "istio_requests_total");
    assert_eq!((requests.len(), total(&requests)), (5, 21), "{requests:?}");
    let own: Vec<u64> = (200..203)
        .map(|status| {
            let code = format!("response_code=\"{status}\"");
            requests
                .iter()
                .find(|(labels, _)| labels.contains(&code))
                .expect("counted")
                .1
        })
        .collect();
    assert_eq!(own, [2, 2, 2]);
    for (reporter, count) in [("destination", 14), ("source", 1)] {
        let begin = format!("reporter=\"{reporter}\",");
        let is_other =
            |labels: &&(String, u64)| labels.0.starts_with(&begin) && labels.0.contains("response_code=\"other\"");
        let (labels, value) = requests.iter().find(is_other).expect("the rest");
        assert_eq!(*value, count);
        let rest = labels.split(',').skip(1);
        assert!(
            rest.clone().count() > 20 && rest.clone().all(|label| label.ends_with("=\"other\"")),
            "{labels}"
        );
    }
    for metric in [
        "istio_requests_total",
        "istio_request_duration_milliseconds",
        "istio_request_bytes",
        "istio_response_bytes",
    ] {
        assert_eq!(overflow(&telemetry, metric), 15, "{metric}");
    }
    assert_eq!(overflow(&telemetry, "istio_request_messages_total"), 0);
    assert_eq!(overflow(&telemetry, "istio_tcp_connections_opened_total"), 0);
    assert!(lines(&telemetry, "istio_request_messages_total").is_empty());
    // Begun anew, all of it.
    telemetry.reset();
    assert_eq!(overflow(&telemetry, "istio_requests_total"), 0);
    called(&telemetry, 0, Some("client"), 209);
    let requests = lines(&telemetry, "istio_requests_total");
    assert!(
        requests.len() == 1 && requests[0].0.contains("response_code=\"209\""),
        "{requests:?}"
    );
}

// spec: CARD-002
#[test]
fn messages_and_connections_beyond_the_budget_count_in_totals() {
    let telemetry = telemetry(2);
    for client in ["a", "b", "c", "d"] {
        let mut exchange = Exchange::new(telemetry.clone(), downstream(0, Direction::Inbound), Version::Http2);
        exchange.source = Some(Arc::new(workload(client)));
        (exchange.grpc, exchange.request_messages, exchange.response_messages) = (true, 5, 7);
        exchange.finish();
        connected(&telemetry, 0, client);
        connected(&telemetry, 1, client);
    }
    for (metric, sum, beyond) in [
        ("istio_request_messages_total", 20, 2),
        ("istio_response_messages_total", 28, 2),
        ("istio_tcp_connections_opened_total", 8, 4),
        ("istio_tcp_connections_closed_total", 8, 4),
        ("istio_tcp_sent_bytes_total", 80, 4),
    ] {
        let found = lines(&telemetry, metric);
        assert_eq!((found.len(), total(&found)), (3, sum), "{metric}: {found:?}");
        assert_eq!(overflow(&telemetry, metric), beyond, "{metric}");
        let (other, _) = found
            .iter()
            .find(|(labels, _)| labels.contains("source_workload=\"other\""))
            .expect("the rest");
        assert!(
            other.split(',').skip(1).all(|label| label.ends_with("=\"other\"")),
            "{other}"
        );
    }
}

// spec: BYD-035, CARD-004, MET-031
#[test]
fn hosts_that_are_not_known_have_fifty_values_in_all_workers_and_then_one() {
    let telemetry = telemetry(500);
    for n in 0..80 {
        passed(&telemetry, n % 2, &format!("host{n}.example:8080"));
    }
    passed(&telemetry, 1, "host0.example:8080");
    for odd in ["", "\u{e4}\u{0}", &"x".repeat(256)] {
        passed(&telemetry, 0, odd);
    }
    let requests = lines(&telemetry, "istio_requests_total");
    assert_eq!((requests.len(), total(&requests)), (51, 84));
    let count = |host: &str| {
        let service = format!("destination_service=\"{host}\"");
        requests
            .iter()
            .find(|(labels, _)| labels.contains(&service))
            .map(|(_, value)| *value)
    };
    assert_eq!(count("host0.example:8080"), Some(2), "known to the other worker");
    assert_eq!(
        (count("host49.example:8080"), count("host50.example:8080")),
        (Some(1), None)
    );
    assert_eq!(count("unknown"), Some(33));
    let is_passed = |(labels, _): &(String, u64)| {
        labels.contains("destination_service_name=\"PassthroughCluster\"")
            && labels.contains("destination_service_namespace=\"unknown\"")
    };
    assert!(requests.iter().all(is_passed));
}

// spec: BYD-035, CARD-003
#[test]
fn series_of_peers_that_vanished_end_after_fifteen_minutes_without_traffic() {
    let telemetry = telemetry(3);
    let begun = Instant::now();
    let after = |minutes: u64| begun + Duration::from_secs(minutes * 60 + 1);
    let clients = |metric: &str| {
        let found = lines(&telemetry, metric).into_iter();
        let client = |labels: String| {
            labels
                .split("source_workload=\"")
                .nth(1)
                .expect("a label")
                .split('"')
                .next()
                .map(str::to_owned)
        };
        found
            .map(|(labels, value)| (client(labels).expect("a name"), value))
            .collect::<BTreeMap<_, _>>()
    };
    let of = |all: &[(&str, u64)]| {
        all.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect::<BTreeMap<_, _>>()
    };
    let everybody = table(&["stays", "goes"]);
    called(&telemetry, 0, Some("stays"), 200);
    called(&telemetry, 0, Some("goes"), 200);
    called(&telemetry, 1, Some("goes"), 200);
    called(&telemetry, 0, None, 200);
    called(&telemetry, 0, Some("late"), 200);
    connected(&telemetry, 0, "goes");
    let full = of(&[("stays", 1), ("goes", 2), ("unknown", 1), ("other", 1)]);
    assert_eq!(clients("istio_requests_total"), full);
    telemetry.tend(after(60), &everybody);
    assert_eq!(
        clients("istio_requests_total"),
        full,
        "those that are there stay, however idle"
    );
    // One worker has traffic of it yet: a scrape adds both up.
    called(&telemetry, 1, Some("goes"), 200);
    let rest = table(&["stays"]);
    telemetry.tend(after(75), &rest);
    let busy = of(&[("stays", 1), ("goes", 3), ("unknown", 1), ("other", 1)]);
    assert_eq!(clients("istio_requests_total"), busy);
    assert_eq!(clients("istio_tcp_connections_opened_total"), of(&[]), "longer idle");
    telemetry.tend(after(76), &rest);
    let left = of(&[("stays", 1), ("unknown", 1), ("other", 1)]);
    assert_eq!(clients("istio_requests_total"), left);
    // There is room again, and who returns begins anew, for the worker too that had counted most.
    called(&telemetry, 1, Some("goes"), 200);
    called(&telemetry, 0, Some("stays"), 200);
    let again = of(&[("stays", 2), ("goes", 1), ("unknown", 1), ("other", 1)]);
    assert_eq!(clients("istio_requests_total"), again);
    assert_eq!(overflow(&telemetry, "istio_requests_total"), 1);
}

// spec: CARD-003
#[test]
fn hosts_that_nobody_was_reached_at_vanish_with_their_service() {
    let telemetry = telemetry(100);
    let begun = Instant::now();
    let after = |minutes: u64| begun + Duration::from_secs(minutes * 60 + 1);
    let failed = |host: &str, namespace: &str| {
        let peers = Peers {
            direction: Direction::Outbound,
            source: None,
            destination: None,
            source_principal: None,
            destination_principal: None,
            service: Arc::from(host),
            service_name: Arc::from("name"),
            service_namespace: Arc::from(namespace),
            mutual_tls: false,
            cluster_id: Arc::from("Kubernetes"),
            other: false,
        };
        telemetry
            .series(0)
            .connections
            .entry((peers, Flags::NONE))
            .or_default()
            .opened = 1;
    };
    failed("echo.shop.svc.cluster.local", "shop");
    failed("gone.shop.svc.cluster.local", "shop");
    passed(&telemetry, 0, "outside.example");
    telemetry.tend(after(16), &table(&[]));
    let left = lines(&telemetry, "istio_tcp_connections_opened_total");
    assert!(left.len() == 1 && left[0].0.contains("echo.shop"), "{left:?}");
    assert_eq!(
        lines(&telemetry, "istio_requests_total").len(),
        1,
        "it is no peer of the mesh"
    );
}

// spec: CARD-002
#[test]
fn a_budget_that_is_used_up_is_told_of_once_in_ten_minutes() {
    let budget = Budget::new(NonZeroUsize::MIN);
    let begun = Instant::now();
    let after = |minutes: u64| begun + Duration::from_secs(minutes * 60);
    assert_eq!(budget.warning(begun), None);
    budget.exceeded(Family::Requests);
    assert_eq!(budget.warning(begun).as_deref(), Some("istio_requests_total"));
    budget.exceeded(Family::Requests);
    budget.exceeded(Family::Closed);
    assert_eq!(budget.warning(after(9)), None);
    let both = "istio_requests_total, istio_tcp_connections_closed_total";
    assert_eq!(budget.warning(after(10)).as_deref(), Some(both));
    assert_eq!(budget.warning(after(30)), None, "no more of it");
}
