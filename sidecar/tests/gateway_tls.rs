//! Gateways at which TLS ends: certificates from files, chosen by server name.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use support::process::{Process, Volumes};
use support::rules::ECHO;
use support::{App, Authority, LIMIT, address, wait_for, workload};

/// Files with certificates for names, each with the name of its first.
struct Certificates {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("folder"),
            authority: Authority::new(),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn write(&self, name: &str, dns: &[&str]) {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let (chain, key) = self.authority.sign(&CertificateParams::new(names).expect("parameters"));
        std::fs::write(self.path(&format!("{name}.crt")), chain).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), key).expect("written");
    }

    /// A server of a listener of TLS, with further settings and what it serves.
    fn server(&self, sni: &str, name: &str, settings: &str, serves: &str) -> String {
        let file = |kind: &str| self.path(&format!("{name}.{kind}")).to_string_lossy().into_owned();
        format!(
            "{{sni: [{sni}], tls: {{certificate: {{files: {{chain: {}, key: {}}}}}{settings}}}, {serves}}}",
            file("crt"),
            file("key")
        )
    }

    /// A client that trusts the authority.
    fn client(&self, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("PEM"))
            .expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection whose handshake is done.
fn connect(at: SocketAddr, config: Arc<ClientConfig>, name: &str) -> std::io::Result<Tls> {
    let stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut tls = StreamOwned::new(ClientConnection::new(config, name).expect("client"), stream);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    Ok(tls)
}

/// Status of a GET, and what came with it.
fn ask(tls: &mut Tls, host: &str) -> (u16, String) {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    let _ = tls.read_to_string(&mut text);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), text)
}

/// A gateway with these servers on port 8443.
struct Gateway {
    ip: IpAddr,
    volumes: Volumes,
    proxy: Process,
}

impl Gateway {
    fn start(app: SocketAddr, servers: &[String]) -> Self {
        let volumes = Volumes::new(&Authority::new(), "istio-ingress/ingress");
        volumes.endpoints(&[app]);
        volumes.configure(&bundle(servers));
        let ip = address();
        let proxy = Process::start(&volumes, ip, &["gateway"], &[]).ready();
        Self { ip, volumes, proxy }
    }

    fn at(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8443)
    }
}

fn bundle(servers: &[String]) -> String {
    format!(
        "{}hosts:\n- host: {ECHO}\n  name: echo\n  namespace: app\n  ports:\n  - {{port: 80, name: main, protocol: \
         http}}\nroutes:\n- name: all\n  origin: {{kind: VirtualService, namespace: app, name: all}}\n  rules:\n  - \
         destinations: [{{host: {ECHO}, port: 80}}]\nlisteners:\n- port: 8443\n  tls:\n    terminated:\n    - {}\n",
        workload("istio-ingress/ingress"),
        servers.join("\n    - ")
    )
}

const HTTP: &str = "http: [{domains: ['*'], http: all}]";

fn only(name: &str) -> String {
    format!("http: [{{domains: [{name}], http: all}}]")
}

const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

// spec: GW-031, GW-036, GW-057, GW-058, GW-072
#[test]
fn the_server_name_chooses_certificate_and_rules() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    files.write("wild", &["x.b.com", "*.b.com"]);
    let servers = [
        files.server("a.com", "a", "", &only("a.com")),
        files.server("'*.b.com'", "wild", "", &only("'*.b.com'")),
    ];
    let gateway = Gateway::start(app.address, &servers);
    let client = files.client(&["http/1.1"], &BOTH);
    for (name, host, status) in [
        ("a.com", "a.com", 200),
        ("A.com", "a.com:443", 200),
        ("x.b.com", "x.b.com", 200),
        // The rules of the other server are not for who chose this one.
        ("a.com", "x.b.com", 404),
        ("x.b.com", "a.com", 404),
    ] {
        let mut tls = connect(gateway.at(), client.clone(), name).expect("a certificate of the name");
        assert_eq!(ask(&mut tls, host).0, status, "{name} {host}");
    }
    assert_eq!(app.last().field("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(app.last().field("x-forwarded-client-cert"), None);
    for nobody in ["b.com", "c.com", "127.0.0.1"] {
        assert!(connect(gateway.at(), client.clone(), nobody).is_err(), "{nobody}");
    }
}

// spec: GW-042, GW-043, BYD-066
#[test]
fn a_certificate_that_is_missing_holds_back_its_own_server_alone_until_it_is_there() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    let servers = [files.server("a.com", "a", "", HTTP), files.server("b.com", "b", "", HTTP)];
    let gateway = Gateway::start(app.address, &servers);
    let client = files.client(&["http/1.1"], &BOTH);
    let serves = |name: &str| {
        let tls = connect(gateway.at(), client.clone(), name);
        tls.is_ok_and(|mut tls| ask(&mut tls, name).0 == 200)
    };
    assert!(serves("a.com") && !serves("b.com"));
    assert!(gateway.proxy.log().contains("cannot be used"), "{}", gateway.proxy.log());
    // Of two files one may come before the other.
    files.write("c", &["b.com"]);
    std::fs::copy(files.path("c.crt"), files.path("b.crt")).expect("copied");
    std::fs::copy(files.path("a.key"), files.path("b.key")).expect("copied");
    wait_for("the mismatch", || gateway.proxy.log().contains("not that of the certificate"));
    assert!(serves("a.com") && !serves("b.com"));
    let mut open = connect(gateway.at(), client.clone(), "a.com").expect("served");
    std::fs::copy(files.path("c.key"), files.path("b.key")).expect("copied");
    wait_for("the certificate", || serves("b.com"));
    // A new one is shown to new clients, and who is connected stays.
    let leaf = |tls: &Tls| tls.conn.peer_certificates().expect("shown")[0].to_vec();
    let before = leaf(&open);
    files.write("a", &["a.com"]);
    wait_for("the new certificate", || {
        connect(gateway.at(), client.clone(), "a.com").is_ok_and(|tls| leaf(&tls) != before)
    });
    assert_eq!(ask(&mut open, "a.com").0, 200);
    // A broken one does not take the place of a good one; one that is gone is not shown.
    std::fs::write(files.path("b.crt"), "nonsense").expect("written");
    wait_for("the broken certificate", || gateway.proxy.log().contains("holds no certificate"));
    assert!(serves("b.com"));
    std::fs::remove_file(files.path("b.crt")).expect("removed");
    wait_for("its end", || !serves("b.com"));
    assert!(serves("a.com"));
    assert!(!gateway.proxy.log().contains("PRIVATE KEY"), "no key in a log");
}

// spec: GW-049, GW-054, GW-116
#[test]
fn versions_and_protocols_are_those_of_the_server() {
    let (app, files) = (App::echo(), Certificates::new());
    for name in ["a", "b", "c"] {
        files.write(name, &[&format!("{name}.com")]);
    }
    let servers = [
        files.server("a.com", "a", "", HTTP),
        files.server("b.com", "b", ", min: '1.3'", HTTP),
        files.server("c.com", "c", ", max: '1.2'", HTTP),
    ];
    let gateway = Gateway::start(app.address, &servers);
    let version = |name: &str, versions: &[&'static rustls::SupportedProtocolVersion]| {
        let tls = connect(gateway.at(), files.client(&["http/1.1"], versions), name).ok()?;
        tls.conn.protocol_version()
    };
    let (v12, v13) = (rustls::ProtocolVersion::TLSv1_2, rustls::ProtocolVersion::TLSv1_3);
    assert_eq!(version("a.com", &BOTH), Some(v13));
    assert_eq!(version("a.com", &BOTH[1..]), Some(v12));
    assert_eq!((version("b.com", &BOTH), version("b.com", &BOTH[1..])), (Some(v13), None));
    assert_eq!((version("c.com", &BOTH), version("c.com", &BOTH[..1])), (Some(v12), None));
    let protocol = |offered: &[&str]| {
        let mut tls = connect(gateway.at(), files.client(offered, &BOTH), "a.com").expect("served");
        let chosen = tls.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        (chosen.clone(), if chosen.as_deref() == Some("h2") { 200 } else { ask(&mut tls, "a.com").0 })
    };
    let own = |name: &str| Some(name.to_owned());
    assert_eq!(protocol(&["h2", "http/1.1"]), (own("h2"), 200));
    assert_eq!(protocol(&["http/1.1"]), (own("http/1.1"), 200));
    // Nothing in common, or nothing asked for: the first bytes tell.
    assert_eq!(protocol(&["other"]), (None, 200));
    assert_eq!(protocol(&[]), (None, 200));
}

// spec: GW-069
#[test]
fn what_is_inside_of_tls_may_be_anything() {
    let files = Certificates::new();
    files.write("a", &["a.com"]);
    let greeter = support::rules::greeter("hello");
    let serves = format!("tcp: [{{host: {ECHO}, port: 80}}]");
    let gateway = Gateway::start(greeter, &[files.server("a.com", "a", "", &serves)]);
    let mut tls = connect(gateway.at(), files.client(&[], &BOTH), "a.com").expect("served");
    let mut text = String::new();
    let _ = tls.read_to_string(&mut text);
    assert_eq!(text, "hello");
    // Another configuration takes the certificate away.
    let revision = gateway.volumes.configure(&bundle(&[files.server("b.com", "a", "", &serves)]));
    gateway.proxy.wait_for_config(&revision);
    assert!(connect(gateway.at(), files.client(&[], &BOTH), "a.com").is_err());
}
