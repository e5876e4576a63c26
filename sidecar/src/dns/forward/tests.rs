use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::TcpListener;

use super::*;

fn query() -> Vec<u8> {
    let mut query = Message::new(9, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("example.com.").expect("name");
    query.add_query(Query::query(name, RecordType::A));
    query.to_vec().expect("query")
}

/// A response with a number of records.
fn response(query: &[u8], records: u8) -> Message {
    let query = Message::from_vec(query).expect("query");
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_queries(query.queries.clone());
    let name = query.queries[0].name();
    answer.add_answers((0..records).map(|n| {
        let data = RData::A(A([192, 0, 2, n].into()));
        Record::from_rdata(name.clone(), 60, data)
    }));
    answer
}

fn refusing(query: &[u8]) -> Vec<u8> {
    let mut answer = response(query, 0);
    answer.metadata.response_code = ResponseCode::Refused;
    answer.to_vec().expect("message")
}

fn whole(query: &[u8], records: u8) -> Vec<u8> {
    response(query, records).to_vec().expect("message")
}

fn cut(query: &[u8]) -> Vec<u8> {
    response(query, 0).truncate().to_vec().expect("message")
}

struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

type Connection = fn(&[u8]) -> Vec<u8>;

/// A server; it answers with the datagrams of one function, and over TCP with the message of the other, if any.
async fn server(datagrams: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static, connection: Option<Connection>) -> Server {
    // Both on one port: another process may hold that of the other protocol.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).await.expect("socket");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("address")).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().expect("address");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.expect("received");
            count.fetch_add(1, Ordering::SeqCst);
            for answer in datagrams(&buffer[..length]) {
                udp.send_to(&answer, client).await.expect("sent");
            }
        }
    });
    let Some(connection) = connection else {
        return Server { address, asked };
    };
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepted");
            let length = stream.read_u16().await.expect("a length");
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await.expect("a query");
            let answer = connection(&query);
            stream
                .write_u16(u16::try_from(answer.len()).expect("short"))
                .await
                .expect("sent");
            stream.write_all(&answer).await.expect("sent");
        }
    });
    Server { address, asked }
}

/// A server that says nothing.
async fn silent() -> Server {
    server(|_| Vec::new(), None).await
}

fn forwarder(servers: &[&Server], limit: Duration) -> Forwarder {
    Forwarder {
        servers: servers.iter().map(|server| server.address).collect(),
        mark: None,
        limit,
    }
}

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

async fn ask(forwarder: &Forwarder, transport: Transport, limit: usize) -> Message {
    let answer = forwarder.ask(&query(), transport, limit).await.expect("an answer");
    Message::from_vec(&answer).expect("message")
}

// spec: NET-094
#[tokio::test]
async fn an_answer_comes_back_as_the_server_gave_it() {
    let server = server(|query| vec![whole(query, 3)], Some(|query| whole(query, 200))).await;
    let forwarder = forwarder(&[&server], LONG);
    let answer = forwarder.ask(&query(), Transport::Udp, 512).await.expect("an answer");
    assert_eq!(answer, whole(&query(), 3));
    let answer = forwarder
        .ask(&query(), Transport::Tcp, 65_535)
        .await
        .expect("an answer");
    assert_eq!(answer, whole(&query(), 200));
}

// spec: NET-094
#[tokio::test]
async fn what_a_server_cut_is_fetched_over_tcp() {
    let server = server(|query| vec![cut(query)], Some(|query| whole(query, 20))).await;
    let forwarder = forwarder(&[&server], LONG);
    assert_eq!(ask(&forwarder, Transport::Udp, 512).await.answers.len(), 20);
    // What the client cannot take either is for it to ask over TCP.
    let answer = ask(&forwarder, Transport::Udp, 100).await;
    assert!(answer.metadata.truncation && answer.answers.is_empty());
}

// spec: NET-094
#[tokio::test]
async fn a_server_that_is_not_there_over_tcp_leaves_what_it_cut() {
    let udp = UdpSocket::bind(("127.0.0.1", 0)).await.expect("socket");
    let address = udp.local_addr().expect("address");
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, client) = udp.recv_from(&mut buffer).await.expect("received");
        udp.send_to(&cut(&buffer[..length]), client).await.expect("sent");
    });
    let forwarder = Forwarder::new(vec![address], None);
    assert!(ask(&forwarder, Transport::Udp, 512).await.metadata.truncation);
}

#[tokio::test]
async fn a_server_that_ignores_what_the_client_takes_is_cut_here() {
    let server = server(|query| vec![whole(query, 200)], None).await;
    let answer = ask(&forwarder(&[&server], LONG), Transport::Udp, 512).await;
    assert!(answer.metadata.truncation && answer.answers.is_empty());
}

#[tokio::test]
async fn datagrams_that_answer_something_else_are_passed_over() {
    let server = server(
        |query| {
            let mut other_id = whole(query, 1);
            other_id[1] ^= 1;
            let mut no_response = whole(query, 1);
            no_response[2] &= !RESPONSE;
            let mut other_name = whole(query, 1);
            other_name[HEADER + 1] = b'f';
            vec![
                b"noise".to_vec(),
                Vec::new(),
                other_id,
                no_response,
                other_name,
                whole(query, 2),
            ]
        },
        None,
    )
    .await;
    assert_eq!(
        ask(&forwarder(&[&server], LONG), Transport::Udp, 512)
            .await
            .answers
            .len(),
        2
    );
}

// spec: NET-094
#[tokio::test]
async fn the_next_server_is_asked_when_one_is_silent_gone_or_refuses() {
    let good = server(|query| vec![whole(query, 1)], None).await;
    let refuses = server(|query| vec![refusing(query)], None).await;
    let quiet = silent().await;
    assert_eq!(
        ask(&forwarder(&[&quiet, &good], SHORT), Transport::Udp, 512)
            .await
            .answers
            .len(),
        1
    );
    assert_eq!(quiet.asked.load(Ordering::SeqCst), 1);
    assert_eq!(
        ask(&forwarder(&[&refuses, &good], LONG), Transport::Udp, 512)
            .await
            .answers
            .len(),
        1
    );
    // Nobody is there any more.
    let gone = UdpSocket::bind(("127.0.0.1", 0)).await.expect("socket");
    let address = gone.local_addr().expect("address");
    drop(gone);
    let gone = Server {
        address,
        asked: Arc::default(),
    };
    assert_eq!(
        ask(&forwarder(&[&gone, &good], LONG), Transport::Udp, 512)
            .await
            .answers
            .len(),
        1
    );
    // The first answer counts; the second server is not asked without need.
    let before = good.asked.load(Ordering::SeqCst);
    let first = server(|query| vec![whole(query, 5)], None).await;
    assert_eq!(
        ask(&forwarder(&[&first, &good], LONG), Transport::Udp, 512)
            .await
            .answers
            .len(),
        5
    );
    assert_eq!(good.asked.load(Ordering::SeqCst), before);
    // Where all refuse the client learns that.
    let answer = ask(&forwarder(&[&refuses, &refuses], LONG), Transport::Udp, 512).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

// spec: NET-094
#[tokio::test]
async fn after_the_limit_nobody_is_waited_for() {
    assert_eq!(Forwarder::new(Vec::new(), None).limit, Duration::from_secs(5));
    let quiet = silent().await;
    let begin = Instant::now();
    let outcome = forwarder(&[&quiet], SHORT).ask(&query(), Transport::Udp, 512).await;
    assert!(matches!(outcome, Err(ForwardError::Timeout { .. })), "{outcome:?}");
    assert!(begin.elapsed() >= SHORT);
    let outcome = forwarder(&[], LONG).ask(&query(), Transport::Udp, 512).await;
    assert!(matches!(outcome, Err(ForwardError::NoServer)), "{outcome:?}");
}

#[tokio::test]
async fn a_connection_that_does_not_keep_to_its_length_is_no_answer() {
    let server = server(|query| vec![cut(query)], Some(|_| b"short".to_vec())).await;
    let forwarder = forwarder(&[&server], LONG);
    assert!(forwarder.ask(&query(), Transport::Tcp, 65_535).await.is_err());
    assert!(ask(&forwarder, Transport::Udp, 512).await.metadata.truncation);
}

#[test]
fn questions_end_where_their_name_and_type_do() {
    let query = query();
    assert_eq!(question_end(&query), Some(query.len()));
    assert_eq!(question_end(&query[..query.len() - 1]), None);
    assert_eq!(question_end(b""), None);
    let mut looping = query.clone();
    looping[HEADER] = 0xc0;
    assert_eq!(question_end(&looping), None);
    let mut long = query[..HEADER].to_vec();
    long.extend([63; 600]);
    assert_eq!(question_end(&long), None);
}
