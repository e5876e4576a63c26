use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use weft_bundle::wire::{HostKind, MeshTls};

use super::*;

/// A name server that answers with these addresses, or that there is no such name.
struct Server {
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Option<Vec<[u8; 4]>>>>,
    address: SocketAddr,
}

impl Server {
    async fn start(answer: Option<Vec<[u8; 4]>>, lasts: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(Mutex::new(answer));
        let (counter, answers) = (asked.clone(), answer.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).expect("a question");
                let question = query.queries[0].clone();
                let mut response = Message::response(query.metadata.id, OpCode::Query);
                response.add_query(question.clone());
                let found = lock(&answers).clone();
                if question.query_type() == RecordType::A {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                match found {
                    Some(addresses) if question.query_type() == RecordType::A => {
                        for [a, b, c, d] in addresses {
                            let data = RData::A(A::new(a, b, c, d));
                            response.add_answer(Record::from_rdata(question.name().clone(), lasts, data));
                        }
                    }
                    Some(_) => {}
                    None => response.metadata.response_code = ResponseCode::NXDomain,
                }
                socket
                    .send_to(&response.to_vec().expect("bytes"), client)
                    .await
                    .expect("sent");
            }
        });
        Self { asked, answer, address }
    }

    fn lookups(&self, directory: &tempfile::TempDir) -> Arc<Lookups> {
        let servers = directory.path().join("resolv.conf");
        std::fs::write(&servers, format!("nameserver {}\n", self.address.ip())).expect("written");
        Lookups::new(Asker {
            servers,
            hosts: directory.path().join("hosts"),
            port: self.address.port(),
            ..Asker::default()
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn host(first_alone: bool, names: &[&str]) -> Host {
    let target = |name: &&str| DnsTarget {
        name: (*name).to_owned(),
        ports: BTreeMap::from([("http".to_owned(), 80)]),
        labels: BTreeMap::new(),
        locality: None,
        weight: 1,
        tls: MeshTls::None,
    };
    Host {
        host: "a.example".into(),
        name: "a.example".into(),
        namespace: "app".into(),
        addresses: Vec::new(),
        allocated: Vec::new(),
        headless: false,
        node_local: false,
        kind: HostKind::Entry,
        discovery: Discovery::Dns(Dns {
            first_alone,
            targets: names.iter().map(target).collect(),
        }),
        identities: Vec::new(),
        domains: Vec::new(),
        subnets: Vec::new(),
    }
}

fn found(lookups: &Lookups, host: &Host) -> Vec<String> {
    let endpoints = lookups.endpoints(host, None).expect("a host with names");
    endpoints.endpoints.iter().map(|e| e.address.to_string()).collect()
}

const RATE: Duration = Duration::from_secs(60);

// spec: SE-027, BYD-041
#[tokio::test]
async fn a_name_is_looked_up_once_when_it_is_used_and_all_its_addresses_are_endpoints() {
    let directory = tempfile::tempdir().expect("directory");
    let server = Server::start(Some(vec![[10, 0, 0, 1], [10, 0, 0, 2]]), 300).await;
    let lookups = server.lookups(&directory);
    let host = host(false, &["a.example", "10.0.0.9"]);
    // Known and not used: nobody asks.
    assert_eq!(found(&lookups, &host), ["10.0.0.9"]);
    assert_eq!(server.asked(), 0);
    let both = (lookups.ready(&host, RATE), lookups.ready(&host, RATE));
    tokio::join!(both.0, both.1);
    assert_eq!(found(&lookups, &host), ["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
    lookups.ready(&host, RATE).await;
    assert_eq!(server.asked(), 1);
    // Equal answers are one value, so that nothing is built anew.
    let again = (lookups.endpoints(&host, None), lookups.endpoints(&host, None));
    assert!(Arc::ptr_eq(&again.0.expect("some"), &again.1.expect("some")));
}

// spec: BYD-041, SM-115
#[tokio::test]
async fn after_failures_pauses_double_up_to_the_rate_and_a_name_without_use_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let (fails, capped, lasts) = tokio::join!(
        Server::start(None, 1),
        Server::start(None, 1),
        Server::start(Some(vec![[10, 0, 0, 1]]), 1)
    );
    let host = host(false, &["a.example"]);
    let all = [(&fails, RATE), (&capped, Duration::from_secs(2)), (&lasts, RATE)]
        .map(|(server, rate)| (server, server.lookups(&directory), rate));
    // How often one look-up asks.
    let mut once = [0; 3];
    for ((server, lookups, rate), once) in all.iter().zip(&mut once) {
        lookups.ready(&host, *rate).await;
        *once = server.asked();
    }
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(6300) {
        for (_, lookups, rate) in &all[..2] {
            lookups.ready(&host, *rate).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked: Vec<_> = all
        .iter()
        .zip(once)
        .map(|((server, ..), once)| server.asked() / once)
        .collect();
    // After 1, 3 (and 7) seconds; after 1, 3, 5; and the answer that nobody wants any more expired five times.
    assert_eq!(asked, [3, 4, 1]);
}

// spec: SE-028
#[tokio::test]
async fn of_the_first_address_alone_the_others_are_none() {
    let directory = tempfile::tempdir().expect("directory");
    let server = Server::start(Some(vec![[10, 0, 0, 7], [10, 0, 0, 2]]), 300).await;
    let lookups = server.lookups(&directory);
    let host = host(true, &["a.example"]);
    lookups.ready(&host, RATE).await;
    assert_eq!(found(&lookups, &host), ["10.0.0.7"]);
}

// spec: SE-027, SE-030
#[tokio::test]
async fn after_a_failure_the_last_answer_stays_and_a_name_that_never_was_has_none() {
    let directory = tempfile::tempdir().expect("directory");
    let server = Server::start(None, 1).await;
    let lookups = server.lookups(&directory);
    let host = host(false, &["a.example"]);
    lookups.ready(&host, RATE).await;
    assert!(found(&lookups, &host).is_empty());
    let asked = server.asked();
    // Not again at once.
    lookups.ready(&host, RATE).await;
    assert_eq!(server.asked(), asked);
    *lock(&server.answer) = Some(vec![[10, 0, 0, 1]]);
    until(|| async {
        lookups.ready(&host, RATE).await;
        found(&lookups, &host) == ["10.0.0.1"]
    })
    .await;
    // It expires after a second, is asked for again, and is not there any more.
    *lock(&server.answer) = None;
    let asked = server.asked();
    until(|| async {
        lookups.ready(&host, RATE).await;
        server.asked() > asked
    })
    .await;
    lookups.ready(&host, RATE).await;
    assert_eq!(found(&lookups, &host), ["10.0.0.1"]);
}

// spec: SE-027
#[tokio::test]
async fn a_new_answer_takes_the_place_of_one_that_expired() {
    let directory = tempfile::tempdir().expect("directory");
    let server = Server::start(Some(vec![[10, 0, 0, 1]]), 0).await;
    let lookups = server.lookups(&directory);
    let host = host(false, &["a.example"]);
    lookups.ready(&host, RATE).await;
    assert_eq!(found(&lookups, &host), ["10.0.0.1"]);
    *lock(&server.answer) = Some(vec![[10, 0, 0, 3]]);
    until(|| async {
        lookups.ready(&host, RATE).await;
        found(&lookups, &host) == ["10.0.0.3"]
    })
    .await;
}

// spec: SE-027
#[tokio::test]
async fn names_of_the_hosts_file_are_asked_of_nobody() {
    let directory = tempfile::tempdir().expect("directory");
    let server = Server::start(None, 1).await;
    let lookups = server.lookups(&directory);
    std::fs::write(directory.path().join("hosts"), "10.0.0.5 a.example\n").expect("written");
    let host = host(false, &["a.example"]);
    lookups.ready(&host, RATE).await;
    assert_eq!(found(&lookups, &host), ["10.0.0.5"]);
    assert_eq!(server.asked(), 0);
}

/// Waits for a condition.
async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
