//! Proxies in this process, on loopback addresses, with real sockets and real TLS.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, missing_docs, reason = "shared by test binaries")]
#![allow(clippy::missing_panics_doc, reason = "helpers of tests panic where a test fails")]

pub mod grpc;
pub mod net;
pub mod process;
pub mod rules;
pub mod victim;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use weft_bundle::model::{Config, EndpointTable};
use weft_bundle::wire;
use weft_sidecar::shared::{DrainPhase, Listener, Role, Settings, Shared, Snapshot};
use weft_sidecar::telemetry::Telemetry;
use weft_sidecar::tls::{Identity, MeshTrust};
use weft_sidecar::worker::{self, Workers};

/// Serves each connection to an address in a task, on a thread of its own; where it listens.
pub fn serving<F>(ip: IpAddr, serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((ip, 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    listener.set_nonblocking(true).expect("option");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                tokio::spawn(serve(stream));
            }
        });
    });
    bound
}

/// Limit of every wait.
pub const LIMIT: Duration = Duration::from_secs(10);

/// An address of 127/8 that no other test of this process uses.
pub fn address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | process[2], process[3], NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// A signing authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A root with something of its own.
    pub fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = authority();
        change(&mut params);
        let pem = params.self_signed(&key).expect("root").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// An intermediate.
    pub fn subordinate(&self, name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = authority();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = params.signed_by(&key, &self.issuer).expect("intermediate").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn pem_pair(&self, id: &str) -> (String, String) {
        self.sign(&leaf(id))
    }

    /// A certificate and its key.
    pub fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        (
            params.signed_by(&key, &self.issuer).expect("leaf").pem(),
            key.serialize_pem(),
        )
    }

    /// A list of revoked certificates with one, by its serial number.
    pub fn revoke(&self, serial: u64) -> String {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let revoked = rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2046, 1, 1),
            crl_number: rcgen::SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }

    pub fn identity(&self, account: &str) -> Identity {
        identity(&self.sign(&leaf(&spiffe_id(account))), &self.pem)
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
}

/// The leaf of a workload.
pub fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params
}

/// The id of an account `namespace/name`.
pub fn spiffe_id(account: &str) -> String {
    let (namespace, name) = account.split_once('/').expect("namespace/name");
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// An identity of trust domain `cluster.local`.
pub fn identity((chain, key): &(String, String), roots: &str) -> Identity {
    let trust = MeshTrust {
        domains: vec!["cluster.local".into()],
        ..MeshTrust::default()
    };
    Identity::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes(), &trust).expect("valid")
}

/// A running proxy.
pub struct Proxy {
    pub shared: Arc<Shared>,
    pub addresses: Vec<SocketAddr>,
    workers: Option<Workers>,
}

impl Proxy {
    /// Starts one worker with a configuration, endpoints and an identity.
    pub fn start(
        listeners: Vec<(SocketAddr, Role)>,
        bundle: &str,
        endpoints: &str,
        identity: Option<Identity>,
    ) -> Self {
        Self::with(listeners, bundle, endpoints, identity, Settings::default())
    }

    /// As [`Self::start`], with further settings.
    pub fn with(
        listeners: Vec<(SocketAddr, Role)>,
        bundle: &str,
        endpoints: &str,
        identity: Option<Identity>,
        settings: Settings,
    ) -> Self {
        let settings = Settings {
            listeners: listeners
                .into_iter()
                .map(|(address, role)| Listener { address, role })
                .collect(),
            ..settings
        };
        let shared = Arc::new(Shared::new(settings, Arc::new(Telemetry::default())));
        let proxy = |workers: Workers| Self {
            shared: shared.clone(),
            addresses: workers.addresses.clone(),
            workers: Some(workers),
        };
        shared.identity.store(identity.map(Arc::new));
        let this = proxy(worker::start(&shared).expect("listeners"));
        this.configure(bundle);
        this.endpoints(endpoints);
        this
    }

    /// Activates a configuration.
    pub fn configure(&self, bundle: &str) {
        let wire: wire::Bundle = serde_yaml::from_str(bundle).expect("the test's bundle");
        let config = Config::parse(wire).expect("valid");
        let next = Arc::new(Snapshot {
            config: Arc::new(config),
            revision: "test".into(),
        });
        self.shared.ports.activate(&self.shared, next);
    }

    /// Activates endpoints.
    pub fn endpoints(&self, endpoints: &str) {
        let wire: wire::Endpoints = serde_yaml::from_str(endpoints).expect("the test's endpoints");
        let table = EndpointTable::new(&[wire], Some(&self.shared.endpoints.load()));
        self.shared.endpoints.store(Arc::new(table));
    }

    /// Waits until the metrics have a request or connection that ended with these response flags.
    pub fn wait_for_flags(&self, flags: &str) {
        let label = format!("response_flags=\"{flags}\"");
        wait_for(&label, || self.shared.telemetry.prometheus().contains(&label));
    }

    pub fn drain(&self, phase: DrainPhase) {
        self.shared.drain.send_replace(phase);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.drain(DrainPhase::Closing);
        if let Some(workers) = self.workers.take() {
            let ended = workers.join();
            if !std::thread::panicking() {
                ended.expect("workers end in order");
            }
        }
    }
}

/// Head of a bundle for an account `namespace/name`.
pub fn workload(account: &str) -> String {
    let (namespace, name) = account.split_once('/').expect("namespace/name");
    format!(
        "workload: {{namespace: {namespace}, name: {name}, serviceAccount: {name}, canonicalName: {name}, \
         canonicalRevision: latest}}\n"
    )
}

/// Bundle of a client that knows host `echo` on port 80 of cluster address 10.1.0.1.
pub fn client_bundle(protocol: &str, rest: &str) -> String {
    format!(
        "{}{}",
        workload("app/client"),
        CLIENT_HOST.replace("PROTOCOL", protocol).replace("REST", rest)
    )
}

const CLIENT_HOST: &str = "
hosts:
- host: echo.app.svc.cluster.local
  name: echo
  namespace: app
  domains: [10.1.0.1, echo, echo.app, echo.app.svc, echo.app.svc.cluster.local]
  addresses: [10.1.0.1]
  ports:
  - {port: 80, name: main, protocol: PROTOCOL}
REST
";

/// The cluster address of `echo`.
pub fn virtual_address() -> SocketAddr {
    "10.1.0.1:80".parse().expect("address")
}

/// One endpoint shard for `echo` with account `app/echo`.
pub fn echo_endpoints(endpoints: &[(SocketAddr, bool)]) -> String {
    let mut ports = String::new();
    let mut list = String::new();
    for (i, (address, mesh)) in endpoints.iter().enumerate() {
        ports.push_str(&format!("- {{main: {}}}\n", address.port()));
        let mesh = if *mesh { "all" } else { "none" };
        list.push_str(&format!("  - {{a: {}, p: {i}, m: {mesh}}}\n", address.ip()));
    }
    let head = "hosts:\n- host: echo.app.svc.cluster.local\n  accounts: [app/echo]\n  endpoints:";
    if endpoints.is_empty() {
        return format!("{head} []\n");
    }
    format!("ports:\n{ports}{head}\n{list}")
}

/// A client and a server proxy in front of an application.
pub struct Pair {
    pub client: Proxy,
    pub server: Proxy,
    pub authority: Authority,
    /// Where an application dials `echo`.
    pub front: SocketAddr,
}

impl Pair {
    pub fn start(protocol: &str, app: SocketAddr) -> Self {
        Self::with(protocol, "PERMISSIVE", app, "")
    }

    pub fn with(protocol: &str, mode: &str, app: SocketAddr, rest: &str) -> Self {
        let authority = Authority::new();
        let port = app.port();
        let bundle = format!(
            "{}inbound:\n  mtls: {mode}\n  ports:\n  - {{port: {port}, protocol: {protocol}, host: \
             echo.app.svc.cluster.local}}\n",
            workload("app/echo")
        );
        let server = Proxy::start(
            vec![(SocketAddr::new(address(), 0), Role::Explicit { target: app, port })],
            &bundle,
            "hosts: []",
            Some(authority.identity("app/echo")),
        );
        let bundle = client_bundle(protocol, rest);
        let client = caller(&bundle, (server.addresses[0], true), authority.identity("app/client"));
        let front = client.addresses[0];
        Self {
            client,
            server,
            authority,
            front,
        }
    }
}

/// A client proxy for `echo`, which has one endpoint; with or without sidecar.
pub fn caller(bundle: &str, endpoint: (SocketAddr, bool), identity: Identity) -> Proxy {
    let destination = virtual_address();
    Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })],
        bundle,
        &echo_endpoints(&[endpoint]),
        Some(identity),
    )
}

/// What an application got.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Request line and fields, as received.
    pub head: String,
    pub body: Vec<u8>,
    /// Number of the connection.
    pub connection: usize,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<String> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    }
}

/// What an application does with a request.
pub type Handler = Arc<dyn Fn(&Seen, &mut TcpStream) -> bool + Send + Sync>;

/// An HTTP/1.1 application: a thread for each connection.
pub struct App {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
}

impl App {
    /// Answers each request with its head as body.
    pub fn echo() -> Self {
        Self::answering(|seen| {
            format!(
                "HTTP/1.1 200 Fine\r\nContent-Length: {}\r\nX-App: yes\r\n\r\n{}",
                seen.head.len(),
                seen.head
            )
        })
    }

    pub fn answering(answer: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Self {
        Self::new(Arc::new(move |seen, stream| {
            stream.write_all(answer(seen).as_bytes()).is_ok()
        }))
    }

    /// As [`Self::answering`], on an address of the test's choice.
    pub fn answering_at(address: SocketAddr, answer: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Self {
        let handler: Handler = Arc::new(move |seen, stream| stream.write_all(answer(seen).as_bytes()).is_ok());
        Self::listening(TcpListener::bind(address).expect("listener"), handler)
    }

    /// `handler` gives false to close the connection.
    pub fn new(handler: Handler) -> Self {
        Self::listening(TcpListener::bind((address(), 0)).expect("listener"), handler)
    }

    /// An echo application on an address that `prepare` sets up.
    pub fn bound(address: (IpAddr, u16), prepare: impl FnOnce()) -> Self {
        prepare();
        let handler: Handler = Arc::new(|_, stream| {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .is_ok()
        });
        Self::listening(TcpListener::bind(address).expect("listener"), handler)
    }

    /// Addresses of the clients so far.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.clients.lock().expect("no panic").clone()
    }

    fn listening(listener: TcpListener, handler: Handler) -> Self {
        let this = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
            connections: Arc::default(),
            clients: Arc::default(),
        };
        let (seen, connections, clients) = (this.seen.clone(), this.connections.clone(), this.clients.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                clients.lock().expect("no panic").extend(stream.peer_addr());
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, number, &handler, &seen));
            }
        });
        this
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().expect("no panic").last().cloned().unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }
}

fn serve(mut stream: TcpStream, connection: usize, handler: &Handler, seen: &Mutex<Vec<Seen>>) {
    let mut buffer = Vec::new();
    loop {
        let Some(head) = read_head(&mut stream, &mut buffer) else {
            return;
        };
        let mut request = Seen {
            head,
            connection,
            ..Seen::default()
        };
        if request.field("expect").is_some() && stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
            return;
        }
        request.body = if request.field("transfer-encoding").is_some() {
            let Some(body) = read_chunked(&mut stream, &mut buffer) else {
                return;
            };
            body
        } else {
            let length = request
                .field("content-length")
                .map_or(0, |l| l.parse().expect("a number"));
            if !fill(&mut stream, &mut buffer, length) {
                return;
            }
            buffer.drain(..length).collect()
        };
        seen.lock().expect("no panic").push(request.clone());
        if !handler(&request, &mut stream) {
            return;
        }
    }
}

pub fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = buffer.drain(..end + 4).collect::<Vec<u8>>();
            return Some(String::from_utf8_lossy(&head[..end]).into_owned());
        }
        if !more(stream, buffer) {
            return None;
        }
    }
}

fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 16384];
    match stream.read(&mut chunk) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            buffer.extend_from_slice(&chunk[..count]);
            true
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> bool {
    while buffer.len() < length {
        if !more(stream, buffer) {
            return false;
        }
    }
    true
}

fn read_chunked(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            match buffer.windows(2).position(|w| w == b"\r\n") {
                Some(end) => break end,
                None if !more(stream, buffer) => return None,
                None => {}
            }
        };
        let line: Vec<u8> = buffer.drain(..end + 2).collect();
        let size = usize::from_str_radix(std::str::from_utf8(&line[..end]).ok()?, 16).ok()?;
        if !fill(stream, buffer, size + 2) {
            return None;
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
        if size == 0 {
            return Some(body);
        }
    }
}

/// An HTTP/1.1 client on one connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer as received.
#[derive(Debug, Clone)]
pub struct Answer {
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<String> {
        Seen {
            head: self.head.clone(),
            ..Seen::default()
        }
        .field(name)
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the proxy listens"))
    }

    /// A client on an open connection.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).expect("timeout");
        stream.set_nodelay(true).expect("option");
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).expect("sent");
    }

    /// `None` when the connection ends before an answer.
    pub fn receive(&mut self) -> Option<Answer> {
        let head = read_head(&mut self.stream, &mut self.buffer)?;
        let mut answer = Answer { head, body: Vec::new() };
        if (100..200).contains(&answer.status()) || matches!(answer.status(), 204 | 304) {
            return Some(answer);
        }
        if answer.field("transfer-encoding").is_some() {
            answer.body = read_chunked(&mut self.stream, &mut self.buffer)?;
        } else if let Some(length) = answer.field("content-length") {
            let length = length.parse().expect("a number");
            if !fill(&mut self.stream, &mut self.buffer, length) {
                return None;
            }
            answer.body = self.buffer.drain(..length).collect();
        } else {
            while more(&mut self.stream, &mut self.buffer) {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Some(answer)
    }

    pub fn get(&mut self, path: &str, fields: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: echo\r\n{fields}\r\n"));
        self.receive().expect("an answer")
    }

    /// Whether the peer has ended the connection, in order or by a reset; not one that is open and silent.
    pub fn is_closed(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                count == 0
            }
            Err(e) => !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).get(path, "")
}

/// Waits until a condition holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        // Not a spin: what is waited for needs the processor, too.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Waits until a number has reached `goal`, for as long as it goes on growing.
pub fn wait_for_count(what: &str, goal: usize, mut count: impl FnMut() -> usize) {
    let (mut best, mut since) = (0, Instant::now());
    loop {
        let now = count();
        if now >= goal {
            return;
        }
        if now > best {
            (best, since) = (now, Instant::now());
        }
        assert!(
            since.elapsed() < LIMIT,
            "{what}: {best} of {goal}, none within {LIMIT:?}"
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits for a time, where what is to be seen is that nothing happens in it, or a state of the system is sampled.
pub fn pause(lasts: Duration) {
    let begin = Instant::now();
    while let Some(left) = lasts.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Runs a program of the machine.
pub fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; install it: apt-get install {package}"));
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Client {
    /// What was received and not looked at.
    pub fn buffered(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Waits for more.
    pub fn read_more(&mut self) -> bool {
        more(&mut self.stream, &mut self.buffer)
    }
}
