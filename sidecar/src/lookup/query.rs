//! Questions to the name servers of the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

/// Limit of one question to one server.
const LIMIT: Duration = Duration::from_secs(2);

/// How often all servers are asked.
const ROUNDS: usize = 2;

/// Longest answer over UDP; longer ones are truncated by servers, and asked for over TCP.
const DATAGRAM_BYTES: usize = 4096;

/// Records of one answer that are looked at.
const MOST_RECORDS: usize = 512;

/// Names of the hosts file are looked at again after this long.
const HOSTS_LAST: Duration = Duration::from_secs(5);

/// Asks name servers.
#[derive(Debug, Clone)]
pub struct Asker {
    /// File that names the servers.
    pub servers: PathBuf,
    /// File with names that no server is asked for.
    pub hosts: PathBuf,
    /// Mark of the proxy's own sockets.
    pub mark: Option<u32>,
    /// Addresses of version 6 are wanted, too.
    pub ipv6: bool,
    /// Port of the servers.
    pub port: u16,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Addresses in the order of the answer; never empty.
    pub addresses: Vec<IpAddr>,
    /// How long it holds.
    pub lasts: Duration,
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// It cannot be written in a question.
    #[error("{0:?} is no name")]
    Name(String),
    /// The file of servers names none.
    #[error("{0} names no server")]
    NoServer(String),
    /// The name is not there, or has no address.
    #[error("the name servers answer that there is no address ({0})")]
    None(ResponseCode),
    /// No server gave an answer.
    #[error("ask {server}")]
    Io {
        /// The server that was asked last.
        server: SocketAddr,
        /// Why there is none.
        source: io::Error,
    },
}

impl Default for Asker {
    fn default() -> Self {
        Self {
            servers: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            mark: None,
            ipv6: false,
            port: 53,
        }
    }
}

impl Asker {
    /// Asks for the addresses of a full name.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub async fn ask(&self, name: &str) -> Result<Answer, LookupError> {
        let hosts = tokio::fs::read_to_string(&self.hosts).await.unwrap_or_default();
        let addresses = listed(&hosts, name);
        if !addresses.is_empty() {
            return Ok(Answer {
                addresses,
                lasts: HOSTS_LAST,
            });
        }
        let text = tokio::fs::read_to_string(&self.servers).await.unwrap_or_default();
        let (servers, search) = servers(&text, self.port);
        if servers.is_empty() {
            return Err(LookupError::NoServer(self.servers.display().to_string()));
        }
        // A name of one label means nothing by itself: it is completed as the pod's programs complete it.
        let names: Vec<String> = if name.contains('.') {
            vec![format!("{name}.")]
        } else {
            let completed = search
                .iter()
                .map(|suffix| format!("{name}.{}.", suffix.trim_end_matches('.')));
            completed.chain([format!("{name}.")]).collect()
        };
        let mut last = LookupError::Name(name.to_owned());
        for name in names {
            match self.both(&name, &servers).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Addresses of version 4, and of version 6 where they are wanted or there are no others.
    async fn both(&self, name: &str, servers: &[SocketAddr]) -> Result<Answer, LookupError> {
        let four = self.of_type(name, RecordType::A, servers).await;
        if !self.ipv6 && four.is_ok() {
            return four;
        }
        let six = self.of_type(name, RecordType::AAAA, servers).await;
        match (four, six) {
            (Ok(mut four), Ok(six)) => {
                four.addresses.extend(six.addresses);
                four.lasts = four.lasts.min(six.lasts);
                Ok(four)
            }
            (Ok(answer), Err(_)) | (Err(_), Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) => Err(error),
        }
    }

    async fn of_type(&self, name: &str, kind: RecordType, servers: &[SocketAddr]) -> Result<Answer, LookupError> {
        let full = Name::from_ascii(name).map_err(|_| LookupError::Name(name.to_owned()))?;
        let mut last = None;
        for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
            let mut question = Message::query();
            question.metadata.id = fastrand::u16(..);
            question.metadata.recursion_desired = true;
            question.add_query(Query::query(full.clone(), kind));
            let outcome = match question.to_vec() {
                Ok(bytes) => timeout(LIMIT, self.exchange(*server, &question, &bytes))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                Err(_) => return Err(LookupError::Name(name.to_owned())),
            };
            match outcome {
                Ok(answer) => match answer.metadata.response_code {
                    ResponseCode::NoError => return addresses(&answer).ok_or(LookupError::None(ResponseCode::NoError)),
                    ResponseCode::NXDomain => return Err(LookupError::None(ResponseCode::NXDomain)),
                    // Another server may know better.
                    code => last = Some(LookupError::None(code)),
                },
                Err(source) => {
                    last = Some(LookupError::Io {
                        server: *server,
                        source,
                    })
                }
            }
        }
        Err(last.unwrap_or_else(|| LookupError::Name(name.to_owned())))
    }

    /// Over UDP, and over TCP where that is cut off.
    async fn exchange(&self, server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
        let own: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own).await?;
        if let Some(mark) = self.mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        // Connected: datagrams of others are not seen.
        socket.connect(server).await?;
        socket.send(bytes).await?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match Message::from_vec(&buffer[..length]) {
                Ok(answer) if !fits(question, &answer) => {}
                Ok(answer) if !answer.metadata.truncation => return Ok(answer),
                // Cut off, in the middle of a record or not.
                Ok(_) => return self.over_tcp(server, question, bytes).await,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }

    async fn over_tcp(&self, server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
        let socket = if server.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        if let Some(mark) = self.mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        let mut stream = socket.connect(server).await?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
        let length = stream.read_u16().await?;
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await?;
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let answer = Message::from_vec(&buffer).map_err(|error| invalid(error.to_string()))?;
        if fits(question, &answer) {
            Ok(answer)
        } else {
            Err(invalid("the answer is to another question".to_owned()))
        }
    }
}

/// Whether an answer is one to a question.
fn fits(question: &Message, answer: &Message) -> bool {
    let is_same = |(asked, told): (&Query, &Query)| {
        asked.query_type() == told.query_type() && asked.name().to_lowercase() == told.name().to_lowercase()
    };
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && question.queries.len() == answer.queries.len()
        && question.queries.iter().zip(&answer.queries).all(is_same)
}

/// Addresses of an answer, aliases followed by the server.
fn addresses(answer: &Message) -> Option<Answer> {
    let mut addresses = Vec::new();
    let mut lasts = u32::MAX;
    for record in answer.answers.iter().take(MOST_RECORDS) {
        let address: IpAddr = match &record.data {
            RData::A(address) => address.0.into(),
            RData::AAAA(address) => address.0.into(),
            RData::CNAME(_) => {
                lasts = lasts.min(record.ttl);
                continue;
            }
            _ => continue,
        };
        lasts = lasts.min(record.ttl);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    (!addresses.is_empty()).then(|| Answer {
        addresses,
        lasts: Duration::from_secs(lasts.into()),
    })
}

/// Addresses that a hosts file gives a name.
fn listed(text: &str, name: &str) -> Vec<IpAddr> {
    let of = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    text.lines().filter_map(of).collect()
}

/// Servers and search list of a `resolv.conf`.
fn servers(text: &str, port: u16) -> (Vec<SocketAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut search = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                servers.extend(address.map(|address| SocketAddr::new(address, port)));
            }
            Some("search") => search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    // As resolvers of systems do.
    servers.truncate(3);
    (servers, search)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_pod_are_read() {
        let (known, search) = servers(
            "search a.svc.x svc.x\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n",
            53,
        );
        assert_eq!(
            known,
            ["10.0.0.1:53".parse().expect("v4"), "[fd00::1]:53".parse().expect("v6")]
        );
        assert_eq!(search, ["a.svc.x", "svc.x"]);
        let hosts = "127.0.0.1 localhost\n# 10.0.0.9 a.example\n10.0.0.1\tb.example A.example # c.example\n";
        assert_eq!(
            listed(hosts, "a.example"),
            ["10.0.0.1".parse::<IpAddr>().expect("address")]
        );
        assert!(listed(hosts, "c.example").is_empty());
    }
}
