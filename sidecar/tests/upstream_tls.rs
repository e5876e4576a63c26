//! TLS that the proxy originates for a DestinationRule, against real TLS servers.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::process::{Process, Volumes};
use support::{
    Answer, App, Authority, Client, LIMIT, Proxy, address, client_bundle, echo_endpoints, get, virtual_address,
    wait_for, workload,
};
use weft_bundle::key::credentials_index;
use weft_bundle::pack::{Files, credentials_revision};
use weft_bundle::wire::{CredentialKind, UpstreamCredential};
use weft_sidecar::shared::Role;

/// An authority outside of the mesh, with its files.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: tempfile::TempDir,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("root").pem();
        let this = Self {
            issuer: Issuer::new(params, key),
            pem,
            dir: tempfile::tempdir().expect("directory"),
        };
        fs::write(this.path("ca"), &this.pem).expect("written");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn issue(&self, names: &[SanType], serial: u64) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.subject_alt_names = names.to_vec();
        params.serial_number = Some(SerialNumber::from(serial));
        (
            params.signed_by(&key, &self.issuer).expect("leaf").pem(),
            key.serialize_pem(),
        )
    }

    /// Writes a client certificate to `client.crt` and `client.key`.
    fn client(&self, name: &str) {
        let (certificate, key) = self.issue(&[dns(name)], 7);
        fs::write(self.path("client.crt"), certificate).expect("written");
        fs::write(self.path("client.key"), key).expect("written");
    }

    fn revoke(&self, serial: u64) {
        fs::write(self.path("crl"), self.revocations(serial)).expect("written");
    }

    /// A list that revokes one certificate.
    fn revocations(&self, serial: u64) -> String {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2046, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("list").pem().expect("PEM")
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// What a server saw of one connection.
#[derive(Debug, Clone, Default)]
struct Hello {
    sni: Option<String>,
    alpn: Option<String>,
    client: bool,
    version: Option<rustls::ProtocolVersion>,
    suite: Option<rustls::CipherSuite>,
    group: Option<rustls::NamedGroup>,
    head: String,
}

/// A TLS server that answers each connection's first request and closes it.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Hello>>>,
}

impl Server {
    fn new(ca: &Ca, names: &[SanType]) -> Self {
        Self::with(ca, names, rustls::DEFAULT_VERSIONS)
    }

    fn with(ca: &Ca, names: &[SanType], versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        let (leaf, key) = ca.issue(names, 42);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).expect("PEM"))
            .expect("anchor");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("verifier");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(leaf.as_bytes()).expect("PEM")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
            )
            .expect("server");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind((address(), 0)).expect("listener");
        let this = Self {
            address: listener.local_addr().expect("address"),
            seen: Arc::default(),
        };
        let seen = this.seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, seen) = (config.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, config, &seen));
            }
        });
        this
    }

    fn last(&self) -> Hello {
        self.seen.lock().expect("no panic").last().cloned().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, seen: &Mutex<Vec<Hello>>) {
    let connection = ServerConnection::new(config).expect("connection");
    let mut tls = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match tls.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
    let hello = Hello {
        sni: tls.conn.server_name().map(str::to_owned),
        alpn: text(tls.conn.alpn_protocol()),
        client: tls.conn.peer_certificates().is_some(),
        version: tls.conn.protocol_version(),
        suite: tls.conn.negotiated_cipher_suite().map(|suite| suite.suite()),
        group: tls.conn.negotiated_key_exchange_group().map(|group| group.name()),
        head: String::from_utf8_lossy(&head).into_owned(),
    };
    seen.lock().expect("no panic").push(hello);
    let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    tls.conn.send_close_notify();
    let _ = tls.flush();
}

fn proxy(protocol: &str, originate: &str, server: SocketAddr) -> Proxy {
    let port = format!("protocol: {protocol}}}");
    let policy = format!("protocol: {protocol}, policy: {{tls: {{originate: {originate}}}}}}}");
    let destination = virtual_address();
    Proxy::start(
        vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })],
        &client_bundle(protocol, "mesh: {vipFallback: false}\n").replace(&port, &policy),
        &echo_endpoints(&[(server, false)]),
        None,
    )
}

fn ask(proxy: &Proxy, host: &str) -> Answer {
    let mut client = Client::connect(proxy.addresses[0]);
    client.send(&format!("GET /p HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.receive().expect("an answer")
}

// spec: DR-108, DR-111, DR-113, DR-117, DR-118, DR-120, DR-121, BYD-060
#[test]
fn plaintext_of_the_application_leaves_in_tls_with_the_name_of_the_request() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("echo.app")]);
    let simple = format!("{{ca: {}}}", ca.file("ca"));
    let proxy = proxy("http", &simple, server.address);
    assert_eq!(ask(&proxy, "echo.app:80").status(), 200);
    let seen = server.last();
    assert_eq!(seen.sni.as_deref(), Some("echo.app"));
    assert_eq!(seen.alpn.as_deref(), Some("http/1.1"));
    assert!(
        seen.head.starts_with("GET /p HTTP/1.1\r\nHost: echo.app:80\r\n"),
        "{}",
        seen.head
    );
    assert_eq!(seen.version, Some(rustls::ProtocolVersion::TLSv1_3));
    assert!(!seen.client);
    // Another name of the same service is none of the certificate.
    let answer = ask(&proxy, "echo");
    assert_eq!(answer.status(), 503);
    assert_eq!(server.count(), 1);
    // Without `ca` the system's anchors decide, which know nothing of this one.
    let system = self::proxy("http", "{}", server.address);
    assert_eq!(ask(&system, "echo.app").status(), 503);
    // HTTP/2 upstream is offered as such.
    let upgraded = format!(
        "{{ca: {}}}}}, httpVersion: http2, tcpKeepalive: {{probes: 1",
        ca.file("ca")
    );
    let proxy = self::proxy("http", &upgraded, server.address);
    let _ = ask(&proxy, "echo.app");
    assert_eq!(server.last().alpn.as_deref(), Some("h2"));
    let server = Server::with(&ca, &[dns("echo.app")], &[&rustls::version::TLS12]);
    let narrowed = format!(
        "{{ca: {}, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]}}",
        ca.file("ca")
    );
    assert_eq!(
        ask(&self::proxy("http", &narrowed, server.address), "echo.app").status(),
        200
    );
    let seen = server.last();
    assert_eq!(seen.version, Some(rustls::ProtocolVersion::TLSv1_2));
    assert_eq!(
        seen.suite,
        Some(rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)
    );
    let narrowed = format!("{{ca: {}, curves: [P-384]}}", ca.file("ca"));
    let answer = ask(&self::proxy("http", &narrowed, server.address), "echo.app");
    assert_eq!(answer.status(), 200);
    assert_eq!(server.last().group, Some(rustls::NamedGroup::secp384r1));
}

// spec: DR-124, SE-006, SE-027
#[test]
fn a_host_outside_that_is_called_in_plaintext_is_reached_in_tls_on_its_target_port() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("api.example")]);
    // As the operator renders port 80 with `targetPort` and a rule with mode SIMPLE; the name to look up is an address, so
    // that no resolver is asked.
    let bundle = format!(
        "{}hosts:\n- {{host: api.example, name: api.example, namespace: app, kind: entry, domains: [api.example], discovery: \
         {{dns: {{targets: [{{name: {}, ports: {{http: {}}}}}]}}}}, ports: [{{port: 80, name: http, protocol: http, policy: \
         {{tls: {{originate: {{ca: {}}}}}}}}}]}}\n",
        workload("app/client"),
        server.address.ip(),
        server.address.port(),
        ca.file("ca")
    );
    let destination = virtual_address();
    let listeners = vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })];
    let proxy = Proxy::start(listeners, &bundle, "hosts: []\n", None);
    assert_eq!(ask(&proxy, "api.example").status(), 200);
    let seen = server.last();
    assert_eq!(seen.sni.as_deref(), Some("api.example"));
    assert!(
        seen.head.starts_with("GET /p HTTP/1.1\r\nHost: api.example\r\n"),
        "{}",
        seen.head
    );
}

// spec: DR-116, DR-117, DR-118, DR-119, BYD-060
#[test]
fn a_name_is_verified_unless_nothing_is() {
    let ca = Ca::new();
    let ip: IpAddr = "10.9.8.7".parse().expect("address");
    let uri = SanType::URI("spiffe://x/y".try_into().expect("ASCII"));
    let server = Server::new(&ca, &[dns("right.example"), uri, SanType::IpAddress(ip)]);
    let status = |more: &str| {
        let originate = format!("{{ca: {}{more}}}", ca.file("ca"));
        ask(&proxy("http", &originate, server.address), "echo").status()
    };
    assert_eq!(status(""), 503, "the Host");
    assert_eq!(status(", sni: right.example"), 200, "the SNI in place of the Host");
    assert_eq!(server.last().sni.as_deref(), Some("right.example"));
    assert_eq!(status(", sni: wrong.example"), 503);
    for (names, verified) in [
        ("right.example", true),
        ("spiffe://x/y", true),
        ("10.9.8.7", true),
        ("RIGHT", false),
        ("*.example", false),
        ("sub.right.example", false),
        ("example", false),
        ("wrong.example, spiffe://x/y", true),
    ] {
        let wanted = if verified { 200 } else { 503 };
        assert_eq!(
            status(&format!(
                ", sni: wrong.example, subjectAltNames: ['{}']",
                names.replace(", ", "', '")
            )),
            wanted,
            "{names}"
        );
    }
    assert_eq!(status(", sni: wrong.example, chainAlone: true"), 200, "as upstream");
    assert_eq!(status(", chainAlone: true"), 503, "the Host is verified there too");
    let nothing = proxy("http", "{insecureSkipVerify: true}", server.address);
    assert_eq!(ask(&nothing, "echo").status(), 200);
    // An authority that is not the one that was named.
    let other = Ca::new();
    let originate = format!("{{ca: {}, sni: right.example}}", other.file("ca"));
    assert_eq!(ask(&proxy("http", &originate, server.address), "echo").status(), 503);
}

// spec: DR-108, DR-112, DR-115, DR-122
#[test]
fn a_client_certificate_is_read_anew_when_its_files_change() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("echo")]);
    let mutual = format!(
        "{{ca: {}, certificate: {}, key: {}}}",
        ca.file("ca"),
        ca.file("client.crt"),
        ca.file("client.key")
    );
    let proxy = proxy("http", &mutual, server.address);
    let answer = ask(&proxy, "echo");
    assert_eq!(answer.status(), 503, "the files are missing");
    let reason = answer.field("x-weft-reason").unwrap_or_default();
    assert!(reason.contains("client.crt"), "{reason}");
    assert!(!answer.text().contains("client.crt"), "{}", answer.text());
    assert_eq!(server.count(), 0);
    ca.client("one");
    assert_eq!(ask(&proxy, "echo").status(), 200);
    assert!(server.last().client);
    // Broken files fail again, and a new pair is used without restart.
    fs::write(ca.path("client.key"), "no key").expect("written");
    assert_eq!(ask(&proxy, "echo").status(), 503);
    ca.client("two");
    assert_eq!(ask(&proxy, "echo").status(), 200);
    assert_eq!(server.count(), 2);
}

// spec: DR-113
#[test]
fn a_revoked_certificate_is_refused() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("echo")]);
    ca.revoke(1);
    let originate = format!("{{ca: {}, crl: {}}}", ca.file("ca"), ca.file("crl"));
    let proxy = proxy("http", &originate, server.address);
    assert_eq!(ask(&proxy, "echo").status(), 200, "another one is revoked");
    ca.revoke(42);
    support::pause(Duration::from_millis(10));
    let file = fs::File::options().append(true).open(ca.path("crl")).expect("list");
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(5))
        .expect("time");
    assert_eq!(ask(&proxy, "echo").status(), 503);
}

// spec: BYD-061, DR-114, DR-115
#[test]
fn what_cannot_be_provided_never_goes_out_in_clear() {
    let app = App::echo();
    for protocol in ["http", "auto"] {
        let proxy = proxy(
            protocol,
            "{unavailable: 'credentialName cred of DestinationRule app/d is missing'}",
            app.address,
        );
        let answer = get(proxy.addresses[0], "/");
        assert_eq!(answer.status(), 503);
        assert!(!answer.text().contains("app/d"), "{}", answer.text());
        let reason = answer.field("x-weft-reason").unwrap_or_default();
        assert!(reason.contains("app/d"), "{reason}");
    }
    let opaque = proxy("tcp", "{unavailable: 'nothing there'}", app.address);
    let mut stream = TcpStream::connect(opaque.addresses[0]).expect("connected");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    assert!(received.is_empty());
    assert_eq!(app.count(), 0);
}

// spec: DR-117, DR-118, DR-120, BYD-060
#[test]
fn opaque_bytes_get_tls_without_name_and_protocol_verified_by_the_host() {
    let ca = Ca::new();
    let send = |originate: &str, server: &Server| {
        let proxy = proxy("tcp", originate, server.address);
        let mut stream = TcpStream::connect(proxy.addresses[0]).expect("connected");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        let _ = stream.write_all(b"GET /tcp HTTP/1.1\r\n\r\n");
        let mut received = String::new();
        let _ = stream.read_to_string(&mut received);
        received
    };
    let simple = format!("{{ca: {}}}", ca.file("ca"));
    let server = Server::new(&ca, &[dns("echo.app.svc.cluster.local")]);
    assert!(send(&simple, &server).starts_with("HTTP/1.1 200"));
    let seen = server.last();
    assert_eq!((seen.sni, seen.alpn), (None, None));
    assert!(seen.head.starts_with("GET /tcp"), "{}", seen.head);
    let other = Server::new(&ca, &[dns("other.example")]);
    assert_eq!(send(&simple, &other), "");
    let named = format!("{{ca: {}, sni: other.example}}", ca.file("ca"));
    assert!(send(&named, &other).starts_with("HTTP/1.1 200"));
    assert_eq!(other.last().sni.as_deref(), Some("other.example"));
}

// spec: BYD-060
#[test]
fn opaque_bytes_for_a_wildcard_host_need_a_name_that_was_configured() {
    let ca = Ca::new();
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let target = listener.local_addr().expect("address");
    let got = Arc::new(Mutex::new(Vec::new()));
    let seen = got.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 64];
            let count = stream.read(&mut buffer).unwrap_or(0);
            seen.lock().expect("no panic").push(count);
        }
    });
    let send = |more: &str| {
        let policy = format!(
            "protocol: tcp, policy: {{tls: {{originate: {{ca: {}{more}}}}}}}}}",
            ca.file("ca")
        );
        let bundle = client_bundle("tcp", "mesh: {vipFallback: false}\n").replace("protocol: tcp}", &policy);
        let wild = |text: &str| text.replace("host: echo.app.svc.cluster.local", "host: '*.example'");
        let destination = virtual_address();
        let listeners = vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })];
        let proxy = Proxy::start(
            listeners,
            &wild(&bundle),
            &wild(&echo_endpoints(&[(target, false)])),
            None,
        );
        let mut stream = TcpStream::connect(proxy.addresses[0]).expect("connected");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        let _ = stream.write_all(b"hello");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
        std::mem::take(&mut *got.lock().expect("no panic"))
    };
    let nothing = send("");
    assert!(nothing.iter().all(|count| *count == 0), "{nothing:?}");
    for named in [", sni: a.example", ", subjectAltNames: [a.example]"] {
        let hello = send(named);
        assert!(hello.iter().any(|count| *count > 0), "{named}: {hello:?}");
    }
}

// spec: BYD-022
#[test]
fn tls_of_the_application_is_not_wrapped_a_second_time() {
    let ca = Ca::new();
    // Sends back each byte, whatever it is.
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let echo = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut stream, &mut writer);
            });
        }
    });
    let proxy = proxy("tcp", &format!("{{ca: {}}}", ca.file("ca")), echo);
    let sent = support::rules::client_hello("echo.app.svc.cluster.local");
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.addresses[0]).expect("connected");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        stream.write_all(&sent).expect("sent");
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).expect("as it was sent");
        assert_eq!(back, sent);
    }
}

/// A sidecar as a process, whose application asks an explicit HTTP proxy for `echo`: its certificates for a server come
/// from the volume of credentials.
struct Sidecar {
    volumes: Volumes,
    proxy: Process,
    front: SocketAddr,
    stem: String,
}

impl Sidecar {
    /// `of`: an [`UpstreamCredential`] in YAML.
    fn start(of: &str, server: SocketAddr) -> Self {
        let credential: UpstreamCredential = serde_yaml::from_str(of).expect("a credential");
        let policy = format!("protocol: http, policy: {{tls: {{originate: {{sni: echo.app, credential: {of}}}}}}}}}");
        let volumes = Volumes::new(&Authority::new(), "app/client");
        volumes.configure(&client_bundle("http", "mesh: {vipFallback: false}\n").replace("protocol: http}", &policy));
        volumes.endpoints(&[server]);
        let own = address();
        let front = SocketAddr::new(own, 4000);
        let proxy = Process::start(&volumes, own, &["--http-proxy", &front.to_string()], &[]).ready();
        Self {
            stem: credential.stem(),
            volumes,
            proxy,
            front,
        }
    }

    /// Publishes the parts of the credential that there are, by ending, and waits until the proxy has read them.
    fn publish(&self, parts: &[(&str, &str)]) {
        let files: Vec<_> = parts
            .iter()
            .map(|(ending, text)| (format!("{}.{ending}", self.stem), (*text).to_owned()))
            .collect();
        self.volumes.credentials(&[&self.stem], &files);
        let index = (credentials_index(0), self.stem.clone().into_bytes());
        let of_parts = files.into_iter().map(|(name, text)| (name, text.into_bytes()));
        self.wait_for(&of_parts.chain([index]).collect());
    }

    fn wait_for(&self, files: &Files) {
        let revision = credentials_revision(files);
        wait_for("the credentials", || {
            self.proxy.get(15020, "/config/status").text().contains(&revision)
        });
    }

    fn ask(&self) -> Answer {
        let mut client = Client::connect(self.front);
        client.send("GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n");
        client.receive().expect("an answer")
    }

    /// The request fails with flag UF, for a reason that names the object.
    fn fails(&self, of: &str) {
        let lines = || self.proxy.access_log().lines().map(str::to_owned).collect::<Vec<_>>();
        let before = lines().len();
        let answer = self.ask();
        let reason = answer.field("x-weft-reason").unwrap_or_default().replace('_', " ");
        assert!(answer.status() == 503 && reason.contains(of), "{reason}");
        let body = answer.text();
        assert!(body.contains("TLS to the destination") && !body.contains(of), "{body}");
        // Lines of requests before it may come after `before` was counted.
        let object = of.replace(' ', "_");
        let is_its = |line: &String| line.contains(" 503 UF ") && line.contains(&object);
        wait_for("its line", || lines().iter().skip(before).any(is_its));
    }
}

// spec: DR-112, DR-113, DR-114, DR-115, BYD-061, DLV-150, DLV-153
#[test]
fn a_secret_gives_certificate_and_authorities_as_soon_as_it_is_there_and_no_longer() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::new(&ca, &[dns("echo.app")]);
    let of = "{kind: secret, namespace: app, name: bank, showsCertificate: true, hasAuthorities: true}";
    let sidecar = Sidecar::start(of, server.address);
    // Nothing is known of it yet, then that it is not there, then a part of it.
    sidecar.fails("Secret app/bank");
    sidecar.publish(&[]);
    sidecar.fails("Secret app/bank");
    let (leaf, key) = ca.issue(&[dns("client")], 7);
    sidecar.publish(&[("crt", &leaf), ("key", &key)]);
    sidecar.fails("Secret app/bank");
    assert_eq!(server.count(), 0);
    let whole = [("crt", &*leaf), ("key", &*key), ("ca", &*ca.pem)];
    sidecar.publish(&whole);
    assert_eq!(sidecar.ask().status(), 200);
    assert!(server.last().client);
    // What is renewed is taken: here, what does not fit the server any more.
    sidecar.publish(&[("crt", &leaf), ("key", &key), ("ca", &other.pem)]);
    assert_eq!(sidecar.ask().status(), 503);
    let revoked = ca.revocations(42);
    sidecar.publish(&[&whole[..], &[("crl", &*revoked)]].concat());
    assert_eq!(sidecar.ask().status(), 503, "the server's certificate is revoked");
    sidecar.publish(&whole);
    assert_eq!(sidecar.ask().status(), 200);
    // A Secret that was deleted by hand takes nothing with it; a credential that left does.
    sidecar.volumes.no_credentials();
    sidecar.wait_for(&Files::new());
    assert_eq!(sidecar.ask().status(), 200);
    sidecar.publish(&[]);
    sidecar.fails("Secret app/bank");
    let log = sidecar.proxy.log();
    let line = key.lines().nth(1).expect("a line of the key");
    for page in ["/config_dump", "/server_info", "/config/status", "/certs"] {
        assert!(!sidecar.proxy.get(15000, page).text().contains(line), "{page}");
    }
    assert!(!log.contains(line), "{log}");
}

// spec: DR-113, DR-114, DR-115
#[test]
fn a_config_map_gives_authorities_and_no_certificate() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("echo.app")]);
    let of = "{kind: configMap, namespace: app, name: bank, hasAuthorities: true}";
    let sidecar = Sidecar::start(of, server.address);
    let secret = UpstreamCredential {
        kind: CredentialKind::Secret,
        ..serde_yaml::from_str(of).expect("a credential")
    };
    assert_ne!(sidecar.stem, secret.stem(), "a Secret of its name is another object");
    sidecar.fails("ConfigMap app/bank");
    sidecar.publish(&[("ca", &ca.pem)]);
    assert_eq!(sidecar.ask().status(), 200);
    assert!(!server.last().client);
}

// spec: DLV-101, DR-114
#[test]
fn a_configuration_that_names_a_new_credential_waits_for_it() {
    let ca = Ca::new();
    let server = Server::new(&ca, &[dns("echo.app")]);
    let of = "{kind: secret, namespace: app, name: one, hasAuthorities: true}";
    let mut sidecar = Sidecar::start(of, server.address);
    sidecar.publish(&[("ca", &ca.pem)]);
    assert_eq!(sidecar.ask().status(), 200);
    let next = of.replace("one", "two");
    let policy = format!("protocol: http, policy: {{tls: {{originate: {{sni: echo.app, credential: {next}}}}}}}}}");
    let bundle = client_bundle("http", "mesh: {vipFallback: false}\n").replace("protocol: http}", &policy);
    let revision = sidecar.volumes.configure(&bundle);
    wait_for("the hold", || {
        sidecar.proxy.get(15020, "/config/status").text().contains("\"Held\"")
    });
    assert_eq!(sidecar.ask().status(), 200);
    let credential: UpstreamCredential = serde_yaml::from_str(&next).expect("a credential");
    sidecar.stem = credential.stem();
    sidecar.publish(&[("ca", &ca.pem)]);
    sidecar.proxy.wait_for_config(&revision);
    assert_eq!(sidecar.ask().status(), 200);
}
