//! The resolver of a run: names of services and pods as a cluster's DNS gives them, and no others (LOC-023).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// What names stand for. Names are lower case, without a final dot.
pub type Names = BTreeMap<String, Answer>;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses; empty for a headless service without endpoints.
    Addresses(Vec<Ipv4Addr>),
    /// Another name (`type: ExternalName`).
    Alias(String),
}

/// The table that all resolvers of a run answer from.
#[derive(Debug, Clone)]
pub struct Resolver {
    names: Arc<RwLock<Arc<Names>>>,
    domain: String,
}

impl Resolver {
    /// Knows no name yet; is the authority for `domain`, for example `cluster.local`.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self {
            names: Arc::default(),
            domain: domain.to_owned(),
        }
    }

    /// Replaces the table.
    pub fn replace(&self, names: Names) {
        *self.names.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(names);
    }

    /// Serves a pod: `udp` and `tcp` are its sockets, opened in its namespace.
    ///
    /// # Errors
    /// That the sockets cannot be used by this runtime.
    pub fn serve(&self, udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<Serving> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let resolver = self.clone();
        let task = tokio::spawn(async move {
            tokio::join!(resolver.serve_udp(&udp), resolver.serve_tcp(&tcp));
        });
        Ok(Serving(task.abort_handle()))
    }

    async fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4096];
        loop {
            // An error here tells of an earlier answer that its asker no longer wanted.
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            if let Some(answer) = self.answer(&buffer[..length], UDP_LIMIT) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }

    async fn serve_tcp(&self, listener: &TcpListener) {
        let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = limit.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let resolver = self.clone();
            tokio::spawn(async move {
                let _ = timeout(Duration::from_secs(10), resolver.serve_connection(stream)).await;
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await?;
            let Some(answer) = self.answer(&query, usize::from(u16::MAX)) else {
                return Ok(());
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            stream.write_u16(length).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// The answer to a query; `None` for what is no query.
    fn answer(&self, query: &[u8], limit: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query || query.metadata.op_code != OpCode::Query {
            return None;
        }
        let question = query.queries.first()?.clone();
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative = true;
        answer.add_query(question.clone());
        if question.query_class() != DNSClass::IN {
            answer.metadata.response_code = ResponseCode::Refused;
            return answer.to_vec().ok();
        }
        let names = self
            .names
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let mut owner = question.name().clone();
        let mut code = ResponseCode::NoError;
        for _ in 0..MAX_ALIASES {
            let text = owner.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            match names.get(&text) {
                Some(Answer::Alias(target)) => {
                    let target = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))).ok()?;
                    answer.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
                    owner = target;
                    continue;
                }
                Some(Answer::Addresses(addresses)) => {
                    if matches!(question.query_type(), RecordType::A | RecordType::ANY) {
                        for address in addresses {
                            answer.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(*address))));
                        }
                    }
                }
                // Nothing is asked outside of the run: an unknown name is an unknown name.
                None if answer.answers.is_empty() || text.ends_with(&self.domain) => code = ResponseCode::NXDomain,
                None => {}
            }
            break;
        }
        answer.metadata.response_code = code;
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= limit {
            Some(bytes)
        } else {
            answer.truncate().to_vec().ok()
        }
    }

    /// Address of a name for the run's own use.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Ipv4Addr> {
        let names = self
            .names
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match names.get(&name)? {
            Answer::Addresses(addresses) => addresses.first().copied(),
            Answer::Alias(target) => match names.get(target)? {
                Answer::Addresses(addresses) => addresses.first().copied(),
                Answer::Alias(_) => None,
            },
        }
    }
}

/// A pod is served for as long as this value lives; its sockets would keep the pod's network alive.
#[derive(Debug)]
pub struct Serving(tokio::task::AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The files that make programs of a pod ask this resolver and no other.
#[must_use]
pub fn pod_files(namespace: &str, domain: &str, pod: &str, address: IpAddr) -> [(&'static str, String); 3] {
    [
        (
            "resolv.conf",
            format!(
                "search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {}\noptions ndots:5\n",
                SERVER.ip()
            ),
        ),
        (
            "hosts",
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{pod}\n"),
        ),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
    ]
}

/// Where each pod finds it: an address that stays on the loopback link, where an application's packets are never
/// captured (NET-044).
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 53), 53);

const TTL: u32 = 5;
const UDP_LIMIT: usize = 512;
const MAX_ALIASES: usize = 8;
const MAX_CONNECTIONS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    fn resolver() -> Resolver {
        let resolver = Resolver::new("cluster.local");
        let many = (0..100).map(|n| Ipv4Addr::new(10, 99, 1, n)).collect();
        resolver.replace(Names::from([
            (
                "web.a.svc.cluster.local".into(),
                Answer::Addresses(vec![Ipv4Addr::new(10, 98, 0, 7)]),
            ),
            (
                "alias.a.svc.cluster.local".into(),
                Answer::Alias("web.a.svc.cluster.local".into()),
            ),
            ("ext.a.svc.cluster.local".into(), Answer::Alias("example.com".into())),
            ("many.a.svc.cluster.local".into(), Answer::Addresses(many)),
        ]));
        resolver
    }

    fn ask(name: &str, kind: RecordType, limit: usize) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        let bytes = query.to_vec().expect("query");
        Message::from_vec(&resolver().answer(&bytes, limit).expect("answer")).expect("message")
    }

    // spec: LOC-023
    #[test]
    fn services_aliases_and_unknown_names() {
        let web = ask("WEB.a.svc.cluster.local.", RecordType::A, 512);
        assert_eq!(web.metadata.id, 7);
        assert_eq!(web.answers[0].data, RData::A(A(Ipv4Addr::new(10, 98, 0, 7))));
        let none = ask("web.a.svc.cluster.local.", RecordType::AAAA, 512);
        assert_eq!(
            (none.metadata.response_code, none.answers.len()),
            (ResponseCode::NoError, 0)
        );
        assert_eq!(ask("alias.a.svc.cluster.local.", RecordType::A, 512).answers.len(), 2);
        let external = ask("ext.a.svc.cluster.local.", RecordType::A, 512);
        assert_eq!(
            (external.metadata.response_code, external.answers.len()),
            (ResponseCode::NoError, 1)
        );
        for unknown in ["other.a.svc.cluster.local.", "example.com."] {
            assert_eq!(
                ask(unknown, RecordType::A, 512).metadata.response_code,
                ResponseCode::NXDomain,
                "{unknown}"
            );
        }
    }

    #[test]
    fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
        assert!(ask("many.a.svc.cluster.local.", RecordType::A, 512).metadata.truncation);
        assert_eq!(
            ask("many.a.svc.cluster.local.", RecordType::A, 65_535).answers.len(),
            100
        );
    }

    #[test]
    fn noise_gets_no_answer() {
        assert_eq!(resolver().answer(b"noise", 512), None);
        assert_eq!(resolver().answer(&[], 512), None);
    }
}
