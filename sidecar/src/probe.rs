//! Checks of the application on behalf of the kubelet, and the scrape of its metrics (INJ-130..INJ-142, PROM-001 ff.).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::{TcpSocket, TcpStream};

/// Probes by the path under which the kubelet asks for them.
#[derive(Debug, Default)]
pub struct Probes {
    by_path: BTreeMap<String, Handler>,
    /// The pod's address.
    address: Option<IpAddr>,
    /// Checks come from 127.0.0.6, which the redirect leaves alone (INJ-134).
    from_proxy: bool,
    mark: Option<u32>,
    scrape: Option<Scrape>,
    /// Scrapes that gave nothing.
    scrape_errors: AtomicU64,
}

/// One original handler (INJ-132).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handler {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpCheck>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Clone, Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Deserialize)]
struct TcpCheck {
    port: u16,
}

#[derive(Debug, Clone, Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: String,
}

/// Where the application's own metrics are (INJ-092).
#[derive(Debug, Clone, Deserialize)]
struct Scrape {
    #[serde(default)]
    scrape: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    port: String,
}

/// Metrics of the application.
#[derive(Debug)]
pub enum Scraped {
    /// In text.
    Text(String),
    /// In OpenMetrics.
    OpenMetrics {
        /// Its content type.
        kind: HeaderValue,
        /// The document, which ends with its `# EOF`.
        body: String,
    },
}

impl Scraped {
    /// What can be merged of an answer.
    fn new(answer: Answer) -> Option<Self> {
        // What is too long is left out as a whole: its end would be cut within a line.
        if answer.status != 200 || answer.body.len() > MAX_SCRAPE {
            return None;
        }
        let body = String::from_utf8_lossy(&answer.body);
        let kind = answer.kind.unwrap_or_else(|| HeaderValue::from_static("text/plain"));
        let name = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        match name.trim().to_ascii_lowercase().as_str() {
            "application/openmetrics-text" => {
                // Without its end it is not whole, and whoever reads it would refuse all of it.
                let end = body
                    .strip_prefix("# EOF")
                    .map_or_else(|| body.find("\n# EOF").map(|at| at + 1), |_| Some(0))?;
                let body = format!("{}# EOF\n", &body[..end]);
                Some(Self::OpenMetrics { kind, body })
            }
            // Nothing can be put in front of it.
            "application/vnd.google.protobuf" => None,
            _ => Some(Self::Text(body.into_owned())),
        }
    }
}

/// What the application answered.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    kind: Option<HeaderValue>,
    body: Bytes,
}

impl Probes {
    /// From the JSON that injection wrote; a text that is none has no probes.
    #[must_use]
    pub fn new(json: &str, scrape: &str, address: Option<IpAddr>, from_proxy: bool, mark: Option<u32>) -> Self {
        let by_path = if json.is_empty() {
            BTreeMap::new()
        } else {
            serde_json::from_str(json).unwrap_or_else(|e| {
                tracing::warn!(error = %e, "WEFT_KUBE_APP_PROBERS cannot be read; probes of the application fail");
                BTreeMap::new()
            })
        };
        let scrape = serde_json::from_str(scrape).ok();
        Self {
            by_path,
            address,
            from_proxy,
            mark,
            scrape,
            scrape_errors: AtomicU64::new(0),
        }
    }

    /// Makes the check that a path stands for; status and body for the kubelet. `is_local`: the application is reached
    /// on localhost, not on the pod's address (SM-109).
    pub async fn check(&self, path: &str, headers: &HeaderMap, is_local: bool) -> (u16, Bytes) {
        let Some(handler) = self.by_path.get(path) else {
            return (400, Bytes::from(format!("no probe has the path {path}\n")));
        };
        // A little less than the kubelet waits, so that it gets an answer (INJ-137).
        let limit = Duration::from_millis(handler.timeout_seconds.unwrap_or(1).max(1) * 1000 - 50);
        let check = async {
            if let Some(get) = &handler.http_get {
                let answer = self.fetch(get, headers, MAX_BODY, is_local).await?;
                return Ok((answer.status, answer.body));
            }
            let port = handler
                .tcp_socket
                .as_ref()
                .map(|t| t.port)
                .or(handler.grpc.as_ref().map(|g| g.port));
            let port = port.ok_or_else(|| "the probe has no handler".to_owned())?;
            let stream = self.connect(port, is_local).await.map_err(|e| e.to_string())?;
            match &handler.grpc {
                Some(grpc) => self.grpc(stream, &grpc.service).await.map(|()| (200, Bytes::new())),
                None => Ok((200, Bytes::new())),
            }
        };
        match tokio::time::timeout(limit, check).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(problem)) => (500, Bytes::from(format!("{problem}\n"))),
            Err(_) => (500, Bytes::from_static(b"the application did not answer in time\n")),
        }
    }

    /// The application's metrics; `None` where it has none, or where the scrape failed: that is counted, and fails
    /// nothing (PROM-008, LIFE-080).
    pub async fn scrape(&self, limit: Duration, accept: Option<HeaderValue>) -> Option<Scraped> {
        // One annotation of the pod is enough, whichever it is (PROM-005); `false` keeps the pod out of merging.
        let scrape = self.scrape.as_ref().filter(|s| s.scrape != "false")?;
        let port = scrape.port.parse().unwrap_or(80);
        let path = if scrape.path.is_empty() {
            "/metrics"
        } else {
            &scrape.path
        };
        let get = HttpGet {
            port,
            path: path.to_owned(),
            scheme: String::new(),
            http_headers: Vec::new(),
        };
        let headers: HeaderMap = accept.map(|accept| (ACCEPT, accept)).into_iter().collect();
        let fetched = self.fetch(&get, &headers, MAX_SCRAPE + 1, false);
        let scraped = match tokio::time::timeout(limit, fetched).await {
            Ok(Ok(answer)) => Scraped::new(answer),
            _ => None,
        };
        if scraped.is_none() {
            self.scrape_errors.fetch_add(1, Ordering::Relaxed);
        }
        scraped
    }

    /// Series of scrapes that failed, in text; empty where all went well.
    #[must_use]
    pub fn scrape_failures(&self) -> String {
        match self.scrape_errors.load(Ordering::Relaxed) {
            0 => String::new(),
            errors => format!(
                "# TYPE weft_scrape_errors_total counter\nweft_scrape_errors_total{{target=\"app\"}} {errors}\n\
                 # TYPE istio_agent_scrape_failures_total counter\n\
                 istio_agent_scrape_failures_total{{type=\"application\"}} {errors}\n"
            ),
        }
    }

    /// One request. Of the caller's headers only two go on; the rest comes from the pod spec (INJ-142).
    async fn fetch(&self, get: &HttpGet, headers: &HeaderMap, most: usize, is_local: bool) -> Result<Answer, String> {
        if get.scheme.eq_ignore_ascii_case("https") {
            self.tls_handshake(get.port, is_local).await?;
            return Ok(Answer {
                status: 200,
                ..Answer::default()
            });
        }
        let stream = self.connect(get.port, is_local).await.map_err(|e| e.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
        let connection = tokio::spawn(connection);
        let path = if get.path.starts_with('/') {
            get.path.clone()
        } else {
            format!("/{}", get.path)
        };
        let mut request = hyper::Request::get(path)
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let own = request.headers_mut();
        for name in [USER_AGENT, ACCEPT] {
            if let Some(value) = headers.get(&name) {
                own.insert(name, value.clone());
            }
        }
        let address = self.target(get.port, is_local).to_string();
        own.insert(HOST, HeaderValue::from_str(&address).map_err(|e| e.to_string())?);
        own.insert("connection", HeaderValue::from_static("close"));
        for header in &get.http_headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|e| e.to_string())?;
            own.insert(name, HeaderValue::from_str(&header.value).map_err(|e| e.to_string())?);
        }
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            Ok(Answer {
                status: response.status().as_u16(),
                kind: response.headers().get(CONTENT_TYPE).cloned(),
                body: beginning(response.into_body(), most).await,
            })
        };
        let answer = answer.await;
        connection.abort();
        answer
    }

    /// An HTTPS probe: the application speaks TLS; a connection that it accepts is as much as is asked here.
    async fn tls_handshake(&self, port: u16, is_local: bool) -> Result<(), String> {
        self.connect(port, is_local).await.map(drop).map_err(|e| e.to_string())
    }

    async fn grpc(&self, stream: TcpStream, service: &str) -> Result<(), String> {
        let (client, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
        let connection = tokio::spawn(connection);
        let call = async {
            let mut client = client.ready().await.map_err(|e| e.to_string())?;
            let request = http::Request::post("http://localhost/grpc.health.v1.Health/Check")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .map_err(|e| e.to_string())?;
            let (response, mut send) = client.send_request(request, false).map_err(|e| e.to_string())?;
            send.send_data(health_request(service)?, true)
                .map_err(|e| e.to_string())?;
            let mut body = response.await.map_err(|e| e.to_string())?.into_body();
            let mut message = Vec::new();
            while let Some(data) = body.data().await {
                let data = data.map_err(|e| e.to_string())?;
                let _ = body.flow_control().release_capacity(data.len());
                message.extend_from_slice(&data);
                if message.len() > MAX_BODY {
                    break;
                }
            }
            // Five bytes of frame, then field 1, varint 1: SERVING.
            match message.get(5..) {
                Some([0x08, 0x01, ..]) => Ok(()),
                _ => Err("the application does not answer SERVING".to_owned()),
            }
        };
        let result = call.await;
        connection.abort();
        result
    }

    fn target(&self, port: u16, is_local: bool) -> SocketAddr {
        let address = match self.address {
            Some(IpAddr::V6(_)) if is_local => Ipv6Addr::LOCALHOST.into(),
            Some(address) if !is_local => address,
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        SocketAddr::new(address, port)
    }

    async fn connect(&self, port: u16, is_local: bool) -> std::io::Result<TcpStream> {
        let target = self.target(port, is_local);
        let socket = if target.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(mark) = self.mark {
            socket2::SockRef::from(&socket).set_mark(mark)?;
        }
        if self.from_proxy {
            let source = match target.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 6]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6]),
            };
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(target).await
    }
}

/// At most so many bytes of a body; what comes behind them is left, with the connection.
async fn beginning(mut body: Incoming, most: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data[..data.len().min(most - bytes.len())]);
        }
        if bytes.len() == most {
            break;
        }
    }
    bytes.freeze()
}

fn health_request(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len()).ok().filter(|n| *n < 0x80);
    let length = length.ok_or("the name of the service is longer than 127 bytes")?;
    let mut message = Vec::new();
    if length > 0 {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).map_err(|e| e.to_string())?];
    frame.extend(message);
    Ok(frame.into())
}

const MAX_BODY: usize = 10 << 10;
const MAX_SCRAPE: usize = 10 << 20;
