//! What the steps of a request cost on their own: finding the rule, changing header fields, choosing an endpoint, recording.
//! `make micro` runs them; whole requests are measured in `bench/`.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use weft_bundle::model::{Config, HeaderOps};
use weft_bundle::wire::{self, AccessLog, ConsistentHash, LoadBalancer, LogEncoding, Policy};
use weft_sidecar::balance::{Group, Key};
use weft_sidecar::cluster::Peer;
use weft_sidecar::exchange::{Direction, Downstream, Exchange};
use weft_sidecar::http::route::{self, View};
use weft_sidecar::http::{Headers, RequestHead, Version};
use weft_sidecar::telemetry::Telemetry;

const HOSTS: usize = 100;

/// A mesh of [`HOSTS`] hosts, each with ten rules by prefix and header, of which the last fits all.
fn config() -> Config {
    let mut text = "workload: {namespace: app, name: client, serviceAccount: client, canonicalName: client, \
                    canonicalRevision: latest}\nhosts:\n"
        .to_owned();
    for n in 0..HOSTS {
        let host = format!("s{n:03}.app.svc.cluster.local");
        writeln!(
            text,
            "- {{host: {host}, name: s{n:03}, namespace: app, domains: [s{n:03}, {host}], addresses: [10.1.0.{n}], \
             ports: [{{port: 80, name: main, protocol: http, http: t{n:03}}}]}}"
        )
        .expect("memory");
    }
    text.push_str("routes:\n");
    for n in 0..HOSTS {
        let to = format!("destinations: [{{host: s{n:03}.app.svc.cluster.local, port: 80}}]");
        writeln!(
            text,
            "- name: t{n:03}\n  origin: {{kind: VirtualService, namespace: app, name: r}}\n  rules:"
        )
        .expect("memory");
        for rule in 0..9 {
            writeln!(
                text,
                "  - matches: [{{path: {{prefix: /part{rule}/}}, headers: [{{name: x-user, value: {{exact: u{rule}}}}}]}}]\n    {to}"
            )
            .expect("memory");
        }
        writeln!(
            text,
            "  - {to}\n    requestHeaders: {{remove: [x-internal], set: [[x-from, '%DOWNSTREAM_REMOTE_ADDRESS%']], add: \
             [[x-seen, weft]]}}"
        )
        .expect("memory");
    }
    let bundle: wire::Bundle = serde_yaml::from_str(&text).expect("a bundle");
    Config::parse(bundle).expect("is valid")
}

fn head() -> RequestHead {
    let mut headers = Headers::with_capacity(8);
    for (name, value) in [
        ("Host", "s050.app"),
        ("User-Agent", "curl/8.5.0"),
        ("Accept", "*/*"),
        ("X-User", "u7"),
        ("X-Internal", "1"),
        ("X-Request-Id", "4f8f9d4e-6a52-4c52-9c9b-c18f34a47d2c"),
    ] {
        headers.push(
            Bytes::from_static(name.as_bytes()),
            Bytes::from_static(value.as_bytes()),
        );
    }
    RequestHead {
        version: Version::Http11,
        method: Bytes::from_static(b"GET"),
        scheme: Bytes::new(),
        authority: Bytes::from_static(b"s050.app.svc.cluster.local"),
        path: Bytes::from_static(b"/api/items?page=2"),
        headers,
        upgrade: false,
    }
}

fn downstream() -> Arc<Downstream> {
    Arc::new(Downstream {
        id: 1,
        worker: 0,
        direction: Direction::Outbound,
        remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)),
        local: SocketAddr::from(([10, 1, 0, 50], 80)),
        principal: None,
        local_principal: None,
        ended_by: None,
        server_name: None,
        tls: None,
        certificate_element: std::sync::OnceLock::new(),
    })
}

fn exchange(telemetry: &Arc<Telemetry>, config: &Config, head: &RequestHead) -> Exchange {
    let mut exchange = Exchange::new(telemetry.clone(), downstream(), Version::Http11);
    exchange.method = head.method.clone();
    exchange.path = head.path.clone();
    exchange.authority = head.authority.clone();
    exchange.source = Some(config.workload.clone());
    exchange.status = 200;
    exchange
}

fn find(c: &mut Criterion) {
    let config = config();
    let head = head();
    let domains = config.domains(80).expect("port 80");
    c.bench_function("find the rule, last of 10, 100 hosts", |b| {
        b.iter(|| {
            let domain = domains.find(black_box("s050.app.svc.cluster.local")).expect("known");
            let view = View {
                head: black_box(&head),
                scheme: b"http",
                port: None,
            };
            route::find(&domain.http, &view)
                .expect("the last fits all")
                .rule
                .timeout
        });
    });
}

fn edit(c: &mut Criterion) {
    let config = config();
    let head = head();
    let telemetry = Arc::new(Telemetry::default());
    let mut exchange = exchange(&telemetry, &config, &head);
    let domain = config
        .domains(80)
        .and_then(|domains| domains.find("s050"))
        .expect("known");
    let ops = &domain.http.rules.last().expect("ten").request_headers;
    let none = HeaderOps::default();
    c.bench_function("change 3 of 6 header fields", |b| {
        b.iter_batched(
            || head.clone(),
            |mut head| {
                let authority = route::change_request(&mut head, ops, &none, false, &exchange);
                (head, authority)
            },
            BatchSize::SmallInput,
        );
    });
    exchange.discard();
}

fn pick(c: &mut Criterion) {
    let mut group = c.benchmark_group("choose of 20 endpoints");
    let peers: Vec<Rc<Peer>> = (0..20)
        .map(|n| Peer::bare(SocketAddr::from(([10, 2, 0, n], 8080))))
        .collect();
    let hash = |maglev_table_size| {
        LoadBalancer::ConsistentHash(ConsistentHash {
            key: None,
            minimum_ring_size: None,
            maglev_table_size,
        })
    };
    for (name, load_balancer) in [
        ("least request", LoadBalancer::LeastRequest),
        ("round robin", LoadBalancer::RoundRobin),
        ("random", LoadBalancer::Random),
        ("ring hash", hash(None)),
        ("maglev", hash(Some(65_537))),
    ] {
        let policy = Policy {
            load_balancer,
            ..Policy::default()
        };
        let all = Group::new(peers.clone());
        let mut key = 0_u32;
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                key = key.wrapping_add(1);
                all.choose(&policy, Key::of(&key.to_le_bytes()), |_| true)
                    .expect("one of 20")
            });
        });
    }
}

fn record(c: &mut Criterion) {
    let config = config();
    let head = head();
    let telemetry = Arc::new(Telemetry::default());
    telemetry.configure(Some(&AccessLog {
        path: "/dev/null".to_owned(),
        encoding: LogEncoding::Json,
        format: None,
    }));
    // Until the file is open, lines go to standard output.
    telemetry.flush();
    c.bench_function("record a request in metrics and log", |b| {
        b.iter_batched(
            || exchange(&telemetry, &config, &head),
            |mut exchange| exchange.finish(),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(steps, find, edit, pick, record);
criterion_main!(steps);
