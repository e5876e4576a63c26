//! Requests to send, as data: what `get` and the agent share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Call, ClientTls, Dial, Failure, Reply, Scheme, Target, http1x, http2, trust};
use crate::http1::Headers;
use crate::stream::{Buffered, Stream};

/// One request, or several alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    #[serde(deserialize_with = "target")]
    pub(crate) url: Target,
    #[serde(default = "get")]
    pub(crate) method: String,
    /// In this order and case.
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    /// Another Host or :authority; `-` sends no Host.
    pub(crate) host: Option<String>,
    /// Body, gRPC message, or line.
    #[serde(default)]
    pub(crate) body: String,
    /// HTTP/1.0.
    #[serde(default)]
    pub(crate) http10: bool,
    #[serde(default)]
    pub(crate) chunked: bool,
    /// The request target as sent, instead of the URL's path.
    pub(crate) target: Option<String>,
    /// HOST:PORT dialled instead of the URL's.
    pub(crate) connect: Option<String>,
    /// Bytes sent as they are instead of a request; base64 in JSON.
    #[serde(default, deserialize_with = "bytes")]
    pub(crate) raw: Option<Vec<u8>>,
    /// Sent once the connection has become another protocol's.
    pub(crate) after: Option<String>,
    pub(crate) sni: Option<String>,
    #[serde(default)]
    pub(crate) alpn: Vec<String>,
    /// Certificates to trust, PEM; without them any certificate is accepted.
    pub(crate) ca: Option<String>,
    /// Client certificate chain and private key, PEM.
    pub(crate) identity: Option<(String, String)>,
    /// Until an answer must be complete.
    #[serde(default = "timeout_ms")]
    pub(crate) timeout_ms: u64,
    /// Number of the first request.
    #[serde(default = "one")]
    pub(crate) first: u64,
    #[serde(default = "one")]
    pub(crate) count: u64,
    /// So many at a time, each on a connection of its own.
    #[serde(default = "one")]
    pub(crate) parallel: u64,
    /// Between requests.
    #[serde(default)]
    pub(crate) gap_ms: u64,
    /// One connection for all requests.
    #[serde(default)]
    pub(crate) reuse: bool,
    /// So long the connection is watched for its end after an answer.
    #[serde(default)]
    pub(crate) watch_ms: u64,
}

/// What came back, for one request.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interim: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Headers>,
    /// As JSON where it is JSON, else as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_len: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trailers: Option<Headers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transfer: Option<&'static str>,
    /// What came after the connection had become another protocol's.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// Whether the server closed the connection after the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed: Option<bool>,
    /// Refused, reset, eof, timeout and the like; with a status when the body broke off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_certificate: Option<ServerCertificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpn: Option<String>,
    ms: f64,
}

/// Who the server said it is.
#[derive(Debug, Clone, Serialize)]
struct ServerCertificate {
    subject: String,
    names: Vec<String>,
}

/// The connection between requests.
enum Held {
    None,
    Http1(Buffered),
    Http2(http2::Connection),
}

impl Job {
    /// Sends all requests and hands on each report as it is made.
    ///
    /// # Errors
    /// Certificates or keys that are none.
    pub(crate) async fn run(self, mut tell: impl FnMut(Report)) -> Result<()> {
        let dial = self.dial()?;
        let (report, mut reports) = mpsc::channel(64);
        let job = Arc::new((self, dial, AtomicU64::new(0)));
        for _ in 0..job.0.parallel.clamp(1, PARALLEL_LIMIT) {
            let (job, report) = (job.clone(), report.clone());
            tokio::spawn(async move { job.0.run_some(&job.1, &job.2, report).await });
        }
        drop(report);
        while let Some(report) = reports.recv().await {
            tell(report);
        }
        Ok(())
    }

    /// Sends requests, one after the other, until all numbers are taken.
    async fn run_some(&self, dial: &Dial, next: &AtomicU64, tell: mpsc::Sender<Report>) {
        let mut held = Held::None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            if number > 0 && self.gap_ms > 0 {
                sleep(Duration::from_millis(self.gap_ms)).await;
            }
            if tell
                .send(self.once(dial, self.first + number, &mut held).await)
                .await
                .is_err()
            {
                return;
            }
        }
    }

    async fn once(&self, dial: &Dial, number: u64, held: &mut Held) -> Report {
        let call = self.call(number);
        let start = Instant::now();
        let mut report = Report::default();
        let limit = Duration::from_millis(self.timeout_ms);
        let outcome = timeout(limit, self.exchange(dial, &call, held, &mut report)).await;
        report.ms = start.elapsed().as_secs_f64() * 1000.0;
        if let Err(failure) = outcome.unwrap_or(Err(Failure::Timeout)) {
            report.error = Some(failure.kind());
            report.detail = Some(format!("{:#}", anyhow::Error::new(failure)));
            *held = Held::None;
        }
        if let (Held::Http1(conn), true) = (&mut *held, report.status.is_some()) {
            self.look_on(conn, &mut report).await;
        }
        if !self.reuse || report.closed == Some(true) || self.is_over(&report) {
            *held = Held::None;
        }
        report
    }

    /// What happens on the connection after the answer.
    async fn look_on(&self, conn: &mut Buffered, report: &mut Report) {
        let upgraded = report.status == Some(101) || (self.method == "CONNECT" && report.status == Some(200));
        if let (Some(after), true) = (&self.after, upgraded) {
            let mut received = std::mem::take(&mut conn.buffer);
            if http1x::send_bytes(conn, after.as_bytes()).await.is_ok() {
                let deadline = Instant::now() + AFTER_UPGRADE;
                while received.len() < after.len() {
                    match tokio::time::timeout_at(deadline, conn.fill()).await {
                        Ok(Ok(n)) if n > 0 => received.extend_from_slice(&std::mem::take(&mut conn.buffer)),
                        _ => break,
                    }
                }
            }
            report.after = Some(String::from_utf8_lossy(&received).into_owned());
        }
        if self.watch_ms > 0 {
            let ended = async {
                loop {
                    match conn.fill().await {
                        Ok(n) if n > 0 => conn.buffer.clear(),
                        _ => return,
                    }
                }
            };
            let limit = Duration::from_millis(self.watch_ms);
            report.closed = Some(timeout(limit, ended).await.is_ok());
        }
    }

    fn is_over(&self, report: &Report) -> bool {
        report.status == Some(101) || report.error.is_some()
    }

    fn dial(&self) -> Result<Dial> {
        let mut dial = Dial::new(self.url.clone());
        if self.connect.is_some() {
            dial.connect.clone_from(&self.connect);
            dial.proxy = None;
        }
        if self.url.scheme.is_tls() {
            let alpn = match (self.alpn.is_empty(), self.url.scheme) {
                (false, _) => self.alpn.clone(),
                (true, Scheme::H2) => vec!["h2".to_owned()],
                (true, Scheme::Https) => vec!["http/1.1".to_owned()],
                (true, _) => Vec::new(),
            };
            dial.tls = Some(ClientTls {
                config: trust::config(self.ca.as_deref(), self.identity.as_ref(), &alpn)?,
                server_name: self.sni.clone(),
            });
        }
        Ok(dial)
    }

    /// The request with this number, which stands for `{n}` in path and header values.
    fn call(&self, number: u64) -> Call {
        let numbered = |text: &str| text.replace("{n}", &number.to_string());
        let host = self
            .host
            .as_deref()
            .map(|host| if host == "-" { String::new() } else { host.to_owned() });
        Call {
            method: self.method.clone(),
            path: numbered(self.target.as_ref().unwrap_or(&self.url.path)),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), numbered(value)))
                .collect(),
            host,
            body: self.body.clone().into_bytes(),
            chunked: self.chunked,
            minor: u8::from(!self.http10),
        }
    }

    async fn exchange(&self, dial: &Dial, call: &Call, held: &mut Held, report: &mut Report) -> Result<(), Failure> {
        match self.url.scheme {
            Scheme::Tcp | Scheme::Banner | Scheme::Tls => {
                let mut conn = dial.open().await?;
                report.about_tls(&conn.stream);
                return self.lines(&mut conn, report).await;
            }
            Scheme::H2c | Scheme::Grpc | Scheme::H2 => {
                if matches!(held, Held::None) {
                    let conn = dial.open().await?;
                    report.about_tls(&conn.stream);
                    *held = Held::Http2(http2::Connection::start(conn).await?);
                }
            }
            Scheme::Http | Scheme::Https => {
                if matches!(held, Held::None) {
                    let conn = dial.open().await?;
                    report.about_tls(&conn.stream);
                    *held = Held::Http1(conn);
                }
            }
        }
        let reply = match held {
            Held::Http1(conn) => match &self.raw {
                Some(raw) => {
                    http1x::send_bytes(conn, raw).await?;
                    http1x::receive(conn, &call.method).await?
                }
                None => http1x::exchange(conn, dial, call).await?,
            },
            Held::Http2(connection) => connection.exchange(dial, call).await?,
            Held::None => unreachable!("opened above"),
        };
        let reusable = reply.reusable;
        report.take(reply);
        if !reusable && self.watch_ms == 0 && self.after.is_none() {
            *held = Held::None;
        }
        Ok(())
    }

    async fn lines(&self, conn: &mut Buffered, report: &mut Report) -> Result<(), Failure> {
        let mut received = Vec::new();
        if self.url.scheme == Scheme::Banner {
            received.extend(line(conn).await?);
        }
        let sent = match &self.raw {
            Some(raw) => raw.clone(),
            None if self.body.is_empty() => Vec::new(),
            None => format!("{}\n", self.body).into_bytes(),
        };
        if !sent.is_empty() {
            http1x::send_bytes(conn, &sent).await?;
            received.extend(line(conn).await?);
        }
        // What the server still says after this side's end is not of interest.
        let _ = conn.shutdown().await;
        report.body_len = Some(received.len());
        report.body = Some(Value::String(String::from_utf8_lossy(&received).into_owned()));
        Ok(())
    }
}

impl Report {
    fn take(&mut self, reply: Reply) {
        self.status = Some(reply.status);
        self.version = Some(reply.version);
        self.interim = reply.interim;
        self.headers = Some(reply.headers);
        self.body_len = Some(reply.body.len());
        self.body = Some(
            serde_json::from_slice(&reply.body)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&reply.body).into_owned())),
        );
        self.trailers = Some(reply.trailers).filter(|trailers| !trailers.0.is_empty());
        self.transfer = Some(reply.transfer);
        self.error = reply.broken.map(|failure| failure.kind());
    }

    fn about_tls(&mut self, stream: &Stream) {
        let Stream::Tls(tls) = stream else { return };
        let (_, session) = tls.get_ref();
        self.alpn = session
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        self.server_certificate = leaf.and_then(|der| {
            let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
            let names = certificate.subject_alternative_name().ok().flatten();
            Some(ServerCertificate {
                subject: certificate.subject().to_string(),
                names: names
                    .map(|n| n.value.general_names.iter().map(ToString::to_string).collect())
                    .unwrap_or_default(),
            })
        });
    }
}

/// Reads until the end of a line.
async fn line(conn: &mut Buffered) -> Result<Vec<u8>, Failure> {
    let receive = |source| Failure::Receive { source };
    loop {
        if let Some(end) = conn.buffer.iter().position(|&byte| byte == b'\n') {
            return Ok(conn.buffer.split_to(end + 1).to_vec());
        }
        if conn.buffer.len() > LINE_LIMIT {
            return Err(receive(crate::http1::Error::TooLarge {
                what: "line",
                limit: LINE_LIMIT,
            }));
        }
        if conn.fill().await.map_err(|error| receive(error.into()))? == 0 {
            return Err(receive(crate::http1::Error::Eof));
        }
    }
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|error| serde::de::Error::custom(format!("{error:#}")))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let decoded = data_encoding::BASE64.decode(text.as_bytes());
    decoded
        .map(Some)
        .map_err(|error| serde::de::Error::custom(format!("raw is not base64: {error}")))
}

fn get() -> String {
    "GET".to_owned()
}

fn one() -> u64 {
    1
}

fn timeout_ms() -> u64 {
    20_000
}

const LINE_LIMIT: usize = 1024 * 1024;
const PARALLEL_LIMIT: u64 = 1000;
/// How long an upgraded connection may take to answer.
const AFTER_UPGRADE: Duration = Duration::from_secs(3);
