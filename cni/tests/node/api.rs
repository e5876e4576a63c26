//! What stands for the API server.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Code and object that a request is answered with.
pub(crate) type Answer = (u16, Value);

/// An HTTPS server on loopback.
pub(crate) struct Api {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its authority's certificate.
    pub(crate) authority: String,
    shared: Arc<Shared>,
}

type Handler = Box<dyn FnMut(&str) -> Answer + Send>;

struct Shared {
    answer: Mutex<Handler>,
    requests: Mutex<Vec<String>>,
}

impl Api {
    /// Answers by the path of the request.
    pub(crate) fn new(answer: impl FnMut(&str) -> Answer + Send + 'static) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let key = || KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(parameters, key()).expect("an authority");
        let own = key();
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&own, &authority).expect("a certificate");
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(
            config
                .with_single_cert(vec![leaf.der().clone()], private)
                .expect("a key that fits"),
        );
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            answer: Mutex::new(Box::new(answer)),
            requests: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (config, serving) = (Arc::clone(&config), Arc::clone(&serving));
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(config).expect("a server");
                    // A client that leaves early is none of the tests' business.
                    let _ = serve(StreamOwned::new(connection, stream?), &serving);
                    Ok::<(), std::io::Error>(())
                });
            }
        });
        Self {
            address,
            authority: authority.pem(),
            shared,
        }
    }

    /// Answers otherwise from now on.
    pub(crate) fn answer(&self, answer: impl FnMut(&str) -> Answer + Send + 'static) {
        *self.shared.answer.lock().expect("no test panicked here") = Box::new(answer);
    }

    /// What was asked for: method, path, the bearer token, and what was sent along, with spaces between them.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no test panicked here").clone()
    }

    /// The URL.
    pub(crate) fn server(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Writes a kubeconfig that leads here.
    pub(crate) fn write_kubeconfig(&self, path: &Path) {
        let authority = data_encoding::BASE64.encode(self.authority.as_bytes());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": self.server(), "certificate-authority-data": authority}}],
            "users": [{"name": "a", "user": {"token": "secret"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        std::fs::write(path, config.to_string()).expect("writes");
    }
}

/// What the API server says where it does not give an object.
pub(crate) fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code,
    });
    (code, status)
}

fn serve(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>, shared: &Shared) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line: Vec<&str> = head.lines().next().unwrap_or_default().split(' ').collect();
    let path = line.get(1).copied().unwrap_or_default();
    let token = head
        .lines()
        .find_map(|line| line.strip_prefix("authorization: Bearer "))
        .unwrap_or_default();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut sent = vec![0; length.and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut sent)?;
    let request = format!("{} {path} {token} {}", line[0], String::from_utf8_lossy(&sent));
    shared
        .requests
        .lock()
        .expect("no test panicked here")
        .push(request.trim_end().to_owned());
    let (code, object) = (shared.answer.lock().expect("no test panicked here"))(path);
    let body = object.to_string();
    write!(
        stream,
        "HTTP/1.1 {code} Answer\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}
