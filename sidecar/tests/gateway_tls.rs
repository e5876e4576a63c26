//! Gateways at which TLS ends: certificates from files and from credentials, chosen by server name; clients that are
//! verified.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rcgen::{CertificateParams, DnType, KeyUsagePurpose, SerialNumber};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::process::{Process, Volumes};
use support::rules::{ECHO, client_hello, greeter};
use support::{App, Authority, LIMIT, address, leaf, run, spiffe_id, wait_for, workload};

/// Files with certificates for names.
struct Certificates {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let this = Self {
            folder: tempfile::tempdir().expect("folder"),
            authority: Authority::with(|params| {
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            }),
        };
        std::fs::write(this.path("ca.crt"), &this.authority.pem).expect("written");
        this
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).to_string_lossy().into_owned()
    }

    /// A certificate for DNS names, and its key.
    fn pair(&self, dns: &[&str]) -> (String, String) {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        // OpenSSL takes what bears its issuer's name for the issuer.
        params.distinguished_name.push(DnType::CommonName, dns[0]);
        self.authority.sign(&params)
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn write(&self, name: &str, dns: &[&str]) {
        let (chain, key) = self.pair(dns);
        std::fs::write(self.path(&format!("{name}.crt")), chain).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), key).expect("written");
    }

    /// A server of a listener of TLS with the certificate of a name, further settings and what it serves.
    fn server(&self, sni: &str, name: &str, settings: &str, inside: &str) -> String {
        let file = |kind: &str| self.text(&format!("{name}.{kind}"));
        format!(
            "{{sni: [{sni}], tls: {{certificates: [{{files: {{chain: {}, key: {}}}}}]{settings}}}, {inside}}}",
            file("crt"),
            file("key")
        )
    }

    /// A client that trusts the authority, with a certificate or without.
    fn client_with(
        &self,
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
        own: Option<&(String, String)>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("PEM"))
            .expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::from_pem_slice(chain.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(vec![chain], key).expect("a pair")
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn client(&self) -> Arc<ClientConfig> {
        self.client_with(&["http/1.1"], &BOTH, None)
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

/// Status of a GET, and what came with it; 0 for a connection that was closed.
fn ask(tls: &mut Tls, host: &str) -> (u16, String) {
    let request =
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Client-Cert: forged\r\nConnection: close\r\n\r\n");
    let mut text = String::new();
    // In TLS 1.3 a server may refuse the client's certificate after the client is done.
    if tls.write_all(request.as_bytes()).is_ok() {
        let _ = tls.read_to_string(&mut text);
    }
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), text)
}

/// The certificate that a server shows.
fn shown(tls: &Tls) -> Vec<u8> {
    tls.conn.peer_certificates().expect("shown")[0].to_vec()
}

/// A gateway with these servers on port 8443.
struct Gateway {
    ip: IpAddr,
    volumes: Volumes,
    proxy: Process,
}

impl Gateway {
    fn start(app: SocketAddr, servers: &[String]) -> Self {
        Self::of_mesh(&Authority::new(), app, servers)
    }

    fn of_mesh(mesh: &Authority, app: SocketAddr, servers: &[String]) -> Self {
        let volumes = Volumes::new(mesh, "istio-ingress/ingress");
        volumes.endpoints(&[app]);
        volumes.configure(&bundle(servers));
        volumes.no_credentials();
        let ip = address();
        let proxy = Process::start(&volumes, ip, &["gateway"], &[]).ready();
        Self { ip, volumes, proxy }
    }

    fn at(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8443)
    }

    /// Whether a host is served to a client that asks for it by name.
    fn serves(&self, client: &Arc<ClientConfig>, name: &str) -> bool {
        let tls = connect(self.at(), client.clone(), name);
        tls.is_ok_and(|mut tls| ask(&mut tls, name).0 == 200)
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
const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
/// Names of the files of two credentials.
const ONE: &str = "1111111111111111";
const TWO: &str = "2222222222222222";

fn only(name: &str) -> String {
    format!("http: [{{domains: [{name}], http: all}}]")
}

/// A server with a credential.
fn with_credential(sni: &str, stem: &str, settings: &str) -> String {
    format!("{{sni: [{sni}], tls: {{certificates: [{{credential: '{stem}'}}]{settings}}}, {HTTP}}}")
}

/// The files of a credential.
fn credential(stem: &str, (chain, key): &(String, String)) -> Vec<(String, String)> {
    vec![
        (format!("{stem}.crt"), chain.clone()),
        (format!("{stem}.key"), key.clone()),
    ]
}

// spec: GW-031, GW-036, GW-056, GW-057, GW-058, GW-072, GW-111
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
    for (name, host, status) in [
        ("a.com", "a.com", 200),
        ("A.com", "a.com:443", 200),
        ("x.b.com", "x.b.com", 200),
        // The rules of the other server are not for who chose this one.
        ("a.com", "x.b.com", 404),
        ("x.b.com", "a.com", 404),
    ] {
        let mut tls = connect(gateway.at(), files.client(), name).expect("a certificate of the name");
        assert_eq!(ask(&mut tls, host).0, status, "{name} {host}");
    }
    assert_eq!(app.last().field("x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(app.last().field("x-forwarded-client-cert"), None);
    for nobody in ["b.com", "c.com", "127.0.0.1"] {
        assert!(connect(gateway.at(), files.client(), nobody).is_err(), "{nobody}");
    }
    // A request in clear is no handshake.
    let mut plain = TcpStream::connect(gateway.at()).expect("listens");
    plain.set_read_timeout(Some(LIMIT)).expect("option");
    plain.write_all(b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert_eq!(answer, b"");
}

// spec: GW-056
#[test]
fn a_server_for_all_names_serves_clients_that_tell_none() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("any", &["any.com", "127.0.0.1"]);
    let gateway = Gateway::start(app.address, &[files.server("'*'", "any", "", HTTP)]);
    let mut tls = connect(gateway.at(), files.client(), "127.0.0.1").expect("served");
    assert_eq!(ask(&mut tls, "any.com").0, 200);
    assert!(gateway.serves(&files.client(), "any.com"));
}

// spec: GW-036
#[test]
fn files_that_are_missing_hold_back_their_own_server_alone_until_they_are_there() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    let servers = [
        files.server("a.com", "a", "", HTTP),
        files.server("b.com", "b", "", HTTP),
    ];
    let gateway = Gateway::start(app.address, &servers);
    let client = files.client();
    let serves = |name: &str| gateway.serves(&client, name);
    assert!(serves("a.com") && !serves("b.com"));
    assert!(
        gateway.proxy.log().contains("cannot be used"),
        "{}",
        gateway.proxy.log()
    );
    // Of two files one may come before the other.
    files.write("c", &["b.com"]);
    std::fs::copy(files.path("c.crt"), files.path("b.crt")).expect("copied");
    std::fs::copy(files.path("a.key"), files.path("b.key")).expect("copied");
    wait_for("the mismatch", || {
        gateway.proxy.log().contains("not that of the certificate")
    });
    assert!(serves("a.com") && !serves("b.com"));
    std::fs::copy(files.path("c.key"), files.path("b.key")).expect("copied");
    wait_for("the certificate", || serves("b.com"));
    // A broken one does not take the place of a good one; one that is gone is not shown.
    std::fs::write(files.path("b.crt"), "nonsense").expect("written");
    wait_for("the broken certificate", || {
        gateway.proxy.log().contains("holds no certificate")
    });
    assert!(serves("b.com"));
    std::fs::remove_file(files.path("b.crt")).expect("removed");
    wait_for("its end", || !serves("b.com"));
    assert!(serves("a.com"));
    assert!(!gateway.proxy.log().contains("PRIVATE KEY"), "no key in a log");
}

// spec: GW-042, GW-043, BYD-066, DLV-153
#[test]
fn a_credential_that_is_missing_holds_back_its_own_server_alone_until_it_is_there() {
    let (app, files) = (App::echo(), Certificates::new());
    let servers = [with_credential("a.com", ONE, ""), with_credential("b.com", TWO, "")];
    let gateway = Gateway::start(app.address, &servers);
    let client = files.client();
    let serves = |name: &str| gateway.serves(&client, name);
    assert!(!serves("a.com") && !serves("b.com"));
    let a = credential(ONE, &files.pair(&["a.com"]));
    gateway.volumes.credentials(&[ONE, TWO], &a);
    wait_for("one server", || serves("a.com"));
    assert!(!serves("b.com"));
    let mut open = connect(gateway.at(), client.clone(), "a.com").expect("served");
    let b = credential(TWO, &files.pair(&["b.com"]));
    gateway
        .volumes
        .credentials(&[ONE, TWO], &[a.clone(), b.clone()].concat());
    wait_for("the other server", || serves("b.com"));
    // A new one is shown to new clients, and who is connected stays.
    let renewed = credential(ONE, &files.pair(&["a.com"]));
    gateway
        .volumes
        .credentials(&[ONE, TWO], &[renewed.clone(), b.clone()].concat());
    let before = shown(&open);
    wait_for("the new certificate", || {
        connect(gateway.at(), client.clone(), "a.com").is_ok_and(|tls| shown(&tls) != before)
    });
    assert_eq!(ask(&mut open, "a.com").0, 200);
    // Secrets that vanish as a whole take nothing with them; one credential that leaves does.
    gateway.volumes.no_credentials();
    let empty = weft_bundle::pack::credentials_revision(&weft_bundle::pack::Files::new());
    wait_for("the empty volume", || {
        gateway.proxy.get(15020, "/config/status").text().contains(&empty)
    });
    assert!(serves("a.com") && serves("b.com"));
    gateway.volumes.credentials(&[ONE, TWO], &renewed);
    wait_for("its end", || !serves("b.com"));
    assert!(serves("a.com"));
    let log = gateway.proxy.log();
    let key = &b[1].1.lines().nth(1).expect("a line of the key").to_owned();
    for page in ["/config_dump", "/server_info", "/config/status", "/certs"] {
        let text = gateway.proxy.get(15000, page).text();
        assert!(!text.contains(key) && !text.contains("PRIVATE KEY"), "{page}");
    }
    assert!(!log.contains(key) && !log.contains("PRIVATE KEY"), "{log}");
}

// spec: GW-043, GW-080
#[test]
fn a_configuration_that_names_another_credential_breaks_no_handshake() {
    let (app, files) = (App::echo(), Certificates::new());
    let gateway = Gateway::start(app.address, &[with_credential("a.com", ONE, "")]);
    let client = files.client();
    let (one, two) = (files.pair(&["a.com"]), files.pair(&["a.com"]));
    gateway.volumes.credentials(&[ONE], &credential(ONE, &one));
    wait_for("the server", || gateway.serves(&client, "a.com"));
    let before = shown(&connect(gateway.at(), client.clone(), "a.com").expect("served"));
    // The credential of the next configuration comes first, without that of the present one.
    gateway.volumes.credentials(&[TWO], &credential(TWO, &two));
    let revision = weft_bundle::pack::credentials_revision(
        &[
            (weft_bundle::key::credentials_index(0), TWO.as_bytes().to_vec()),
            (format!("{TWO}.crt"), two.0.clone().into_bytes()),
        ]
        .into_iter()
        .collect::<weft_bundle::pack::Files>(),
    );
    wait_for("the volume", || {
        gateway.proxy.get(15020, "/config/status").text().contains(&revision)
    });
    let tls = connect(gateway.at(), client.clone(), "a.com").expect("served as before");
    assert_eq!(shown(&tls), before);
    let revision = gateway.volumes.configure(&bundle(&[with_credential("a.com", TWO, "")]));
    gateway.proxy.wait_for_config(&revision);
    let tls = connect(gateway.at(), client.clone(), "a.com").expect("served");
    assert_ne!(shown(&tls), before);
    // The other way round the configuration waits.
    let revision = gateway.volumes.configure(&bundle(&[with_credential("a.com", ONE, "")]));
    wait_for("the wait", || {
        gateway.proxy.get(15020, "/config/status").text().contains("\"Held\"")
    });
    assert!(gateway.serves(&client, "a.com"));
    gateway.volumes.credentials(&[ONE], &credential(ONE, &one));
    gateway.proxy.wait_for_config(&revision);
    assert!(gateway.serves(&client, "a.com"));
}

// spec: GW-049, GW-050, GW-054, GW-116
#[test]
fn versions_suites_and_protocols_are_those_of_the_server() {
    let (app, files) = (App::echo(), Certificates::new());
    for name in ["a", "b", "c", "d"] {
        files.write(name, &[&format!("{name}.com")]);
    }
    let servers = [
        files.server("a.com", "a", "", HTTP),
        files.server("b.com", "b", ", min: '1.3'", HTTP),
        files.server("c.com", "c", ", max: '1.2'", HTTP),
        files.server("d.com", "d", ", ciphers: [ECDHE-ECDSA-CHACHA20-POLY1305]", HTTP),
    ];
    let gateway = Gateway::start(app.address, &servers);
    let version = |name: &str, versions: &[&'static rustls::SupportedProtocolVersion]| {
        let tls = connect(gateway.at(), files.client_with(&["http/1.1"], versions, None), name).ok()?;
        tls.conn.protocol_version()
    };
    let (v12, v13) = (rustls::ProtocolVersion::TLSv1_2, rustls::ProtocolVersion::TLSv1_3);
    assert_eq!(version("a.com", &BOTH), Some(v13));
    assert_eq!(version("a.com", &BOTH[1..]), Some(v12));
    assert_eq!(
        (version("b.com", &BOTH), version("b.com", &BOTH[1..])),
        (Some(v13), None)
    );
    assert_eq!(
        (version("c.com", &BOTH), version("c.com", &BOTH[..1])),
        (Some(v12), None)
    );
    let suite = |name: &str| {
        let tls = connect(gateway.at(), files.client_with(&[], &BOTH[1..], None), name).expect("served");
        tls.conn.negotiated_cipher_suite().expect("chosen").suite()
    };
    assert_eq!(
        suite("d.com"),
        rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    );
    assert_ne!(suite("a.com"), suite("d.com"));
    let protocol = |offered: &[&str]| {
        let mut tls = connect(gateway.at(), files.client_with(offered, &BOTH, None), "a.com").expect("served");
        let chosen = tls
            .conn
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        let status = if chosen.as_deref() == Some("h2") {
            200
        } else {
            ask(&mut tls, "a.com").0
        };
        (chosen, status)
    };
    let own = |name: &str| Some(name.to_owned());
    assert_eq!(protocol(&["h2", "http/1.1"]), (own("h2"), 200));
    assert_eq!(protocol(&["http/1.1"]), (own("http/1.1"), 200));
    // Nothing in common, or nothing asked for: the first bytes tell.
    assert_eq!(protocol(&["other"]), (None, 200));
    assert_eq!(protocol(&[]), (None, 200));
}

// spec: GW-031, GW-054
#[test]
fn curl_and_openssl_are_served() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    let gateway = Gateway::start(app.address, &[files.server("a.com", "a", "", HTTP)]);
    let ca = files.text("ca.crt");
    let resolve = format!("a.com:8443:{}", gateway.ip);
    for (version, word) in [
        ("--http1.1", "1.1 200 https://a.com"),
        ("--http2", "2 200 https://a.com"),
    ] {
        let format = "%{http_version} %{http_code} %{scheme}://a.com";
        let arguments = [
            "-sS",
            version,
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
            "-o",
            "/dev/null",
            "-w",
            format,
            "https://a.com:8443/",
        ];
        let said = run("curl", "curl", &arguments);
        assert!(said.to_lowercase().contains(word), "{said}");
    }
    let at = gateway.at().to_string();
    let more = [
        "s_client",
        "-connect",
        &at,
        "-servername",
        "a.com",
        "-CAfile",
        &ca,
        "-alpn",
        "h2",
    ];
    let said = run("openssl", "openssl", &more);
    assert!(said.contains("Verify return code: 0"), "{said}");
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    // Who comes back is known again.
    let session = files.text("session");
    let first = [&more[..7], &["-sess_out", &session, "-tls1_2"]].concat();
    run("openssl", "openssl", &first);
    let again = [&more[..7], &["-sess_in", &session, "-tls1_2"]].concat();
    let said = run("openssl", "openssl", &again);
    assert!(said.contains("Reused, TLSv1.2"), "{said}");
}

// spec: GW-069
#[test]
fn what_is_inside_of_tls_may_be_anything() {
    let files = Certificates::new();
    files.write("a", &["a.com"]);
    let inside = format!("tcp: [{{host: {ECHO}, port: 80}}]");
    let gateway = Gateway::start(greeter("hello"), &[files.server("a.com", "a", "", &inside)]);
    let mut tls = connect(gateway.at(), files.client(), "a.com").expect("served");
    let mut text = [0; 5];
    tls.read_exact(&mut text).expect("a greeting");
    assert_eq!(&text, b"hello");
    // Another configuration takes the certificate away.
    let revision = gateway
        .volumes
        .configure(&bundle(&[files.server("b.com", "a", "", &inside)]));
    gateway.proxy.wait_for_config(&revision);
    assert!(connect(gateway.at(), files.client(), "a.com").is_err());
}

// spec: GW-031, GW-032, GW-037, GW-047, GW-074, ID-123
#[test]
fn clients_show_certificates_that_are_verified() {
    let (app, files, other) = (App::echo(), Certificates::new(), Authority::new());
    files.write("a", &["a.com", "b.com", "c.com"]);
    let clients = format!(", clients: {{authorities: {{file: {}}}", files.text("ca.crt"));
    let servers = [
        files.server("a.com", "a", &format!("{clients}}}"), HTTP),
        files.server("b.com", "a", &format!("{clients}, optional: true}}"), HTTP),
        files.server(
            "c.com",
            "a",
            &format!("{clients}, names: [one.client, spiffe://x/y]}}"),
            HTTP,
        ),
    ];
    let gateway = Gateway::start(app.address, &servers);
    let params = CertificateParams::new(vec!["one.client".to_owned()]).expect("parameters");
    let (one, stranger) = (files.authority.sign(&params), other.sign(&params));
    let two = files.pair(&["two.client"]);
    for (name, own, is_served) in [
        ("a.com", None, false),
        ("a.com", Some(&one), true),
        ("a.com", Some(&two), true),
        ("a.com", Some(&stranger), false),
        ("b.com", None, true),
        ("b.com", Some(&one), true),
        ("b.com", Some(&stranger), false),
        ("c.com", None, false),
        ("c.com", Some(&two), false),
        ("c.com", Some(&one), true),
    ] {
        for versions in [&BOTH[..1], &BOTH[1..]] {
            let client = files.client_with(&["http/1.1"], versions, own);
            assert_eq!(gateway.serves(&client, name), is_served, "{name} {}", own.is_some());
            if is_served {
                let told = app.last().field("x-forwarded-client-cert");
                assert_eq!(told.is_some(), own.is_some(), "{told:?}");
            }
        }
    }
    let told = app
        .last()
        .field("x-forwarded-client-cert")
        .expect("the last one showed one");
    let rest = told.strip_prefix("Hash=").expect("the hash first");
    let (hash, rest) = rest
        .split_once(";Cert=\"-----BEGIN%20CERTIFICATE-----%0A")
        .expect("the certificate");
    assert_eq!(hash.len(), 64);
    let (text, rest) = rest.split_once("-----END%20CERTIFICATE-----%0A\";").expect("its end");
    let pem = one
        .0
        .lines()
        .filter(|line| !line.starts_with("---"))
        .collect::<String>();
    let shown = text
        .replace("%0A", "")
        .replace("%2B", "+")
        .replace("%2F", "/")
        .replace("%3D", "=");
    assert_eq!(shown, pem);
    assert!(
        rest.starts_with("Subject=\"CN=") && rest.ends_with(";DNS=one.client"),
        "{rest}"
    );
}

/// A server for `a.com` whose clients may show certificates of the same authority.
fn optional_clients(files: &Certificates) -> String {
    files.write("a", &["a.com"]);
    let authorities = files.text("ca.crt");
    let clients = format!(", clients: {{authorities: {{file: {authorities}}}, optional: true}}");
    files.server("a.com", "a", &clients, HTTP)
}

// spec: AUTHZ-118, AUTHZ-035
#[test]
fn policies_see_the_identity_in_a_certificate_that_was_verified() {
    let (app, files) = (App::echo(), Certificates::new());
    let servers = [optional_clients(&files)];
    let gateway = Gateway::start(app.address, &servers);
    let revision = gateway.volumes.configure(&format!(
        "{}authorization:\n- {{namespace: istio-ingress, name: p, rules: [{{from: [[{{key: source.principal, values: \
         [partner/ns/a/sa/b]}}]]}}, {{from: [[{{key: source.namespace, values: [other]}}]]}}]}}\n",
        bundle(&servers)
    ));
    gateway.proxy.wait_for_config(&revision);
    let of = |id: &str| files.authority.sign(&leaf(id));
    let (partner, other, stranger) = (
        of("spiffe://partner/ns/a/sa/b"),
        of("spiffe://partner/ns/other/sa/x"),
        of("spiffe://partner/ns/a/sa/bb"),
    );
    for (own, is_served) in [
        (None, false),
        (Some(&partner), true),
        (Some(&other), true),
        (Some(&stranger), false),
    ] {
        let client = files.client_with(&["http/1.1"], &BOTH, own);
        assert_eq!(gateway.serves(&client, "a.com"), is_served);
    }
}

// spec: AUTHZ-118, AUTHZ-032
#[test]
fn any_certificate_that_was_verified_is_a_principal() {
    let (app, files) = (App::echo(), Certificates::new());
    let servers = [optional_clients(&files)];
    let gateway = Gateway::start(app.address, &servers);
    let named = files.pair(&["one.client"]);
    for (action, without, with) in [("ALLOW", false, true), ("DENY", true, false)] {
        let revision = gateway.volumes.configure(&format!(
            "{}authorization:\n- {{namespace: istio-ingress, name: p, action: {action}, rules: [{{from: [[{{key: \
             source.principal, values: ['*']}}]]}}]}}\n",
            bundle(&servers)
        ));
        gateway.proxy.wait_for_config(&revision);
        let serves = |own| gateway.serves(&files.client_with(&["http/1.1"], &BOTH, own), "a.com");
        assert_eq!((serves(None), serves(Some(&named))), (without, with), "{action}");
    }
}

// spec: GW-031, AUTHZ-118
#[test]
fn a_connection_without_certificate_reaches_no_server_that_asks_for_one_by_now() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com", "b.com"]);
    let clients = format!(", clients: {{authorities: {{file: {}}}}}", files.text("ca.crt"));
    let simple = [files.server("'*'", "a", "", HTTP)];
    let gateway = Gateway::start(app.address, &simple);
    let mut open = connect(gateway.at(), files.client(), "a.com").expect("served");
    let mut ask = |path: &str| {
        open.write_all(format!("GET {path} HTTP/1.1\r\nHost: a.com\r\n\r\n").as_bytes())
            .expect("sent");
        let mut buffer = [0; 4096];
        let count = open.read(&mut buffer).expect("an answer");
        String::from_utf8_lossy(&buffer[..count.min(12)]).into_owned()
    };
    assert_eq!(ask("/"), "HTTP/1.1 200");
    let other = files.server("b.com", "a", &clients, HTTP);
    let revision = gateway.volumes.configure(&bundle(&[simple[0].clone(), other]));
    gateway.proxy.wait_for_config(&revision);
    assert_eq!(ask("/"), "HTTP/1.1 200");
    let mutual = files.server("a.com", "a", &clients, HTTP);
    let revision = gateway.volumes.configure(&bundle(&[simple[0].clone(), mutual]));
    gateway.proxy.wait_for_config(&revision);
    assert_eq!(ask("/"), "HTTP/1.1 421");
}

// spec: GW-041, GW-046
#[test]
fn clients_are_verified_with_what_a_credential_holds() {
    let (app, files) = (App::echo(), Certificates::new());
    let settings = format!(", clients: {{authorities: {{credential: '{ONE}'}}}}");
    let gateway = Gateway::start(app.address, &[with_credential("a.com", ONE, &settings)]);
    let mut params = CertificateParams::new(vec!["one.client".to_owned()]).expect("parameters");
    params.serial_number = Some(SerialNumber::from(7u64));
    let (one, two) = (files.authority.sign(&params), files.pair(&["two.client"]));
    let (one, two) = (
        files.client_with(&[], &BOTH, Some(&one)),
        files.client_with(&[], &BOTH, Some(&two)),
    );
    let pair = credential(ONE, &files.pair(&["a.com"]));
    gateway.volumes.credentials(&[ONE], &pair);
    wait_for("the problem", || {
        gateway.proxy.log().contains(&format!("{ONE}.ca is not in"))
    });
    assert!(!gateway.serves(&one, "a.com"), "without authorities nobody is let in");
    let authorities = vec![(format!("{ONE}.ca"), files.authority.pem.clone())];
    let all = [pair, authorities].concat();
    gateway.volumes.credentials(&[ONE], &all);
    wait_for("the authorities", || gateway.serves(&one, "a.com"));
    assert!(gateway.serves(&two, "a.com"));
    let revoked = files.authority.revoke(7);
    gateway
        .volumes
        .credentials(&[ONE], &[all, vec![(format!("{ONE}.crl"), revoked)]].concat());
    wait_for("the list", || !gateway.serves(&one, "a.com"));
    assert!(gateway.serves(&two, "a.com"));
}

// spec: GW-035, GW-047
#[test]
fn clients_of_the_mesh_are_verified_as_in_the_mesh() {
    let (app, mesh) = (App::echo(), Authority::new());
    let server = |sni: &str, names: &str| {
        format!("{{sni: [{sni}], tls: {{certificates: [workload], clients: {{authorities: mesh{names}}}}}, {HTTP}}}")
    };
    let names = format!(", names: ['{}']", spiffe_id("app/client"));
    let gateway = Gateway::of_mesh(&mesh, app.address, &[server("a.com", ""), server("b.com", &names)]);
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("ca"), &mesh.pem).expect("written");
    for account in ["app/client", "app/other"] {
        let (chain, key) = mesh.sign(&leaf(&spiffe_id(account)));
        let file = account.replace('/', "-");
        std::fs::write(path(&format!("{file}.crt")), chain).expect("written");
        std::fs::write(path(&format!("{file}.key")), key).expect("written");
    }
    // The certificate of a workload has no name that curl could compare.
    let ask = |name: &str, account: Option<&str>| {
        let (resolve, url) = (format!("{name}:8443:{}", gateway.ip), format!("https://{name}:8443/"));
        let mut arguments = vec!["-sS", "-k", "--resolve", &resolve, "-w", " %{http_code}", &url];
        let files = account.map(|account| (path(&format!("{account}.crt")), path(&format!("{account}.key"))));
        if let Some((chain, key)) = &files {
            arguments.extend(["--cert", chain, "--key", key]);
        }
        run("curl", "curl", &arguments).ends_with("200")
    };
    assert!(ask("a.com", Some("app-client")) && ask("a.com", Some("app-other")) && !ask("a.com", None));
    assert!(ask("b.com", Some("app-client")) && !ask("b.com", Some("app-other")));
}

// spec: GW-031
#[test]
fn a_hello_in_pieces_is_read_and_what_is_none_is_refused() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    let gateway = Gateway::start(app.address, &[files.server("a.com", "a", "", HTTP)]);
    let hello = client_hello("a.com");
    let mut stream = TcpStream::connect(gateway.at()).expect("listens");
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    stream.set_nodelay(true).expect("option");
    for byte in &hello {
        stream.write_all(&[*byte]).expect("sent");
    }
    let mut first = [0; 3];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(first, [22, 3, 3], "a handshake record");
    for broken in [
        &hello[..hello.len() / 2],
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\xff\xff",
    ] {
        let mut stream = TcpStream::connect(gateway.at()).expect("listens");
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        stream.write_all(broken).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("closed");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer[0] == 21, "nothing, or an alert: {answer:?}");
    }
    assert!(gateway.serves(&files.client(), "a.com"));
}

// spec: GW-055
#[test]
fn a_handshake_that_does_not_end_is_closed() {
    let (app, files) = (App::echo(), Certificates::new());
    files.write("a", &["a.com"]);
    let gateway = Gateway::start(app.address, &[files.server("a.com", "a", "", HTTP)]);
    let hello = client_hello("a.com");
    // One that stops within its hello, and one that does not answer the server's.
    let streams = [&hello[..hello.len() / 2], &hello].map(|part| {
        let mut stream = TcpStream::connect(gateway.at()).expect("listens");
        stream.set_read_timeout(Some(3 * LIMIT)).expect("option");
        stream.write_all(part).expect("sent");
        stream
    });
    let begun = Instant::now();
    for mut stream in streams {
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).map_err(|error| error.kind());
        assert_ne!(end.err(), Some(ErrorKind::WouldBlock), "still open");
    }
    let lasted = begun.elapsed().as_secs();
    assert!((14..25).contains(&lasted), "closed after {lasted} s");
}
