//! The mesh's TLS on the wire, seen by OpenSSL.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use support::process::{Process, Volumes, endpoint};
use support::{App, Authority, Client, Pair, caller, client_bundle, get, identity, leaf, run, spiffe_id, wait_for};
use weft_bundle::pack::HostInput;
use weft_bundle::wire::MeshTls;
use weft_sidecar::tls::{Identity, MeshTrust};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(authority: &Authority, ids: &str) -> Self {
        Self::of(authority, &authority.pem_pair(ids))
    }

    fn of(authority: &Authority, (leaf, key): &(String, String)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in [("leaf.pem", leaf), ("key.pem", key), ("root.pem", &authority.pem)] {
            let mut file = std::fs::File::create(folder.path().join(name)).expect("file");
            file.write_all(text.as_bytes()).expect("written");
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }
}

/// What OpenSSL says of a connection. It stays until the server closes, or sends nothing and leaves.
fn s_client(address: SocketAddr, more: &[&str]) -> String {
    let address = address.to_string();
    let mut arguments = vec!["s_client", "-connect", &address];
    arguments.extend(more);
    run("openssl", "openssl", &arguments)
}

/// OpenSSL as a server.
struct TlsServer {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl TlsServer {
    fn start(files: &Files, more: &[&str]) -> Self {
        let listener = TcpListener::bind((support::address(), 0)).expect("listener");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                &address.to_string(),
                "-cert",
                &files.path("leaf.pem"),
            ])
            .args(["-key", &files.path("key.pem")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl; install it: apt-get install openssl");
        let said = Arc::new(Mutex::new(String::new()));
        let (errors, into) = (child.stderr.take().expect("piped"), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                into.lock().expect("no panic").push_str(&format!("{line}\n"));
            }
        });
        wait_for("the TLS server", || TcpStream::connect(address).is_ok());
        Self { child, address, said }
    }

    fn said(&self) -> String {
        self.said.lock().expect("no panic").clone()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn after(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

fn before(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

// spec: ID-081
#[test]
fn a_client_without_certificate_is_told_that_one_is_required() {
    let pair = Pair::with("http", "STRICT", App::echo().address, "");
    let said = s_client(pair.server.addresses[0], &["-alpn", "istio-http/1.1", "-ign_eof"]);
    assert!(said.contains("alert certificate required"), "{said}");
    let said = s_client(pair.server.addresses[0], &["-alpn", "istio-http/1.1", "-tls1_2"]);
    assert!(
        said.contains("handshake failure") || said.contains("certificate required"),
        "{said}"
    );
}

// spec: ID-075, ID-076, ID-089, ID-121
#[test]
fn alpn_selects_what_both_know_and_nothing_else_without_alert() {
    let pair = Pair::with("http", "STRICT", App::echo().address, "");
    let files = Files::new(&pair.authority, "spiffe://cluster.local/ns/app/sa/peer");
    let (leaf, key) = (files.path("leaf.pem"), files.path("key.pem"));
    let with = |alpn: &str| s_client(pair.server.addresses[0], &["-cert", &leaf, "-key", &key, "-alpn", alpn]);
    assert!(with("istio-http/1.1,istio,http/1.1").contains("ALPN protocol: http/1.1"));
    assert!(with("istio-h2,istio,h2").contains("ALPN protocol: h2"));
    let none = with("istio-peer-exchange,istio");
    assert!(none.contains("No ALPN negotiated") && !none.contains("alert"), "{none}");
    assert!(!none.contains("Session Ticket"), "{none}");
}

// spec: ID-083, ID-084
#[test]
fn ids_of_another_form_or_domain_are_refused() {
    let app = App::echo();
    let pair = Pair::with("http", "STRICT", app.address, "");
    for (id, alert) in [
        ("spiffe://cluster.local.evil/ns/app/sa/peer", "unknown ca"),
        ("https://cluster.local/ns/app/sa/peer", "bad certificate"),
    ] {
        let files = Files::new(&pair.authority, id);
        let (leaf, key) = (files.path("leaf.pem"), files.path("key.pem"));
        let said = s_client(
            pair.server.addresses[0],
            &["-cert", &leaf, "-key", &key, "-alpn", "istio-http/1.1", "-ign_eof"],
        );
        assert!(said.contains(alert), "{id}: {said}");
    }
    assert_eq!(app.count(), 0);
}

// spec: ID-069, ID-134
#[test]
fn versions_below_the_floor_are_refused() {
    let pair = Pair::with("http", "STRICT", App::echo().address, "");
    let said = s_client(
        pair.server.addresses[0],
        &["-alpn", "istio-http/1.1", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
    );
    assert!(
        said.contains("Cipher is (NONE)") && !said.contains("written 0 bytes"),
        "{said}"
    );
}

// spec: ID-102, ID-101, ID-105
#[test]
fn other_tls_is_closed_on_http_ports_and_passed_on_elsewhere() {
    let pair = Pair::start("http", App::echo().address);
    let said = s_client(pair.server.addresses[0], &["-alpn", "http/1.1"]);
    assert!(!said.contains("BEGIN CERTIFICATE"), "{said}");

    // An application that speaks TLS itself, behind an automatic port.
    let other = Authority::new();
    let application = TlsServer::start(&Files::new(&other, "https://own.example"), &["-quiet"]);
    let pair = Pair::start("auto", application.address);
    for front in [pair.server.addresses[0], pair.front] {
        let said = s_client(front, &["-showcerts"]);
        assert!(said.contains("BEGIN CERTIFICATE"), "{front}: {said}");
    }
}

// spec: ID-106
#[test]
fn an_application_with_tls_of_its_own_serves_meshed_and_unmeshed_clients() {
    let other = Authority::new();
    let files = Files::new(&other, "https://own.example");
    // As a web server: it answers requests inside of its TLS.
    let application = TlsServer::start(&files, &["-www"]);
    for protocol in ["tls", "auto"] {
        let pair = Pair::start(protocol, application.address);
        for (who, front) in [("unmeshed", pair.server.addresses[0]), ("meshed", pair.front)] {
            let url = format!("https://echo.app:{}/", front.port());
            let resolve = format!("echo.app:{}:{}", front.port(), front.ip());
            let limits = ["--noproxy", "*", "--max-time", "20"];
            let said = run(
                "curl",
                "curl",
                &[&["-sS", "-k", "--resolve", &resolve, &url], &limits[..]].concat(),
            );
            assert!(said.contains("s_server"), "{protocol}, {who}: {said}");
        }
    }
}

// spec: ID-100
#[test]
fn one_name_of_the_mesh_in_the_alpn_list_makes_it_mesh_tls() {
    let application = TlsServer::start(&Files::new(&Authority::new(), "https://own.example"), &["-quiet"]);
    let pair = Pair::start("auto", application.address);
    let files = Files::new(&pair.authority, "spiffe://cluster.local/ns/app/sa/peer");
    let (leaf, key) = (files.path("leaf.pem"), files.path("key.pem"));
    for (alpn, is_mesh) in [
        ("istio-http/1.0", true),
        ("istio-http/1.1", true),
        ("istio-h2", true),
        ("istio-peer-exchange", true),
        ("istio", true),
        ("h2,http/1.1,other,istio", true),
        ("h2,http/1.1", false),
        ("istio-http/1.2,istio2,Istio", false),
        ("", false),
    ] {
        let mut more = vec!["-cert", &leaf, "-key", &key, "-showcerts"];
        if !alpn.is_empty() {
            more.extend(["-alpn", alpn]);
        }
        let said = s_client(pair.server.addresses[0], &more);
        assert!(said.contains("BEGIN CERTIFICATE"), "{alpn}: {said}");
        // The mesh's server asks for a certificate, the application does not.
        assert_eq!(asks(&said), is_mesh, "{alpn}: {said}");
    }
    // A record type or version that is none of TLS: the application gets the bytes.
    let listener = TcpListener::bind((support::address(), 0)).expect("listener");
    let pair = Pair::start("auto", listener.local_addr().expect("address"));
    for bytes in [b"\x17\x03\x01\x00\x05hello", b"\x16\x02\x01\x00\x05hello"] {
        let mut client = TcpStream::connect(pair.server.addresses[0]).expect("the proxy listens");
        client.write_all(bytes).expect("sent");
        let (mut application, _) = listener.accept().expect("a connection");
        let mut got = [0; 10];
        application.read_exact(&mut got).expect("the same bytes");
        assert_eq!(&got, bytes);
    }
}

/// Whether a server asked for a certificate, by what OpenSSL tells of the connection.
fn asks(said: &str) -> bool {
    said.contains("Requested Signature Algorithms")
}

// spec: ID-082, ID-086
#[test]
fn chain_time_usage_and_depth_of_a_client_are_verified() {
    let app = App::echo();
    let pair = Pair::with("http", "STRICT", app.address, "");
    let root = &pair.authority;
    let status = |(leaf, key): (String, String), chain: &str| {
        let identity = identity(&(leaf + chain, key), &root.pem);
        let bundle = client_bundle("http", "mesh: {vipFallback: false}\n");
        let client = caller(&bundle, (pair.server.addresses[0], true), identity);
        get(client.addresses[0], "/").status()
    };
    let params = || leaf(&spiffe_id("app/client"));
    assert_eq!(status(root.sign(&params()), ""), 200);
    assert_eq!(status(Authority::new().sign(&params()), ""), 503, "another root");
    let mut early = params();
    early.not_before = after(3600).into();
    assert_eq!(status(root.sign(&early), ""), 503, "not valid yet");
    let mut server_only = params();
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert_eq!(status(root.sign(&server_only), ""), 503, "not for clients");
    // Leaf, intermediates, root.
    for (intermediates, expected) in [(1, 200), (6, 200), (7, 200), (8, 200), (10, 503)] {
        let mut chain = String::new();
        let mut signer = Authority::new();
        for n in 0..intermediates {
            let above = if n == 0 { root } else { &signer };
            let next = above.subordinate(&format!("intermediate {n}"));
            chain.insert_str(0, &next.pem);
            signer = next;
        }
        assert_eq!(
            status(signer.sign(&params()), &chain),
            expected,
            "{intermediates} intermediates"
        );
        if intermediates > 6 {
            // One of the upper certificates is missing, or the whole hangs on another root.
            let cut = chain.match_indices("-----BEGIN").last().expect("one").0;
            assert_eq!(
                status(signer.sign(&params()), &chain[..cut]),
                503,
                "without the upper one"
            );
        }
    }
    let foreign = Authority::new();
    let mut signer = foreign.subordinate("foreign 0");
    let mut chain = signer.pem.clone();
    for n in 1..8 {
        signer = signer.subordinate(&format!("foreign {n}"));
        chain.insert_str(0, &signer.pem);
    }
    assert_eq!(
        status(signer.sign(&params()), &chain),
        503,
        "a deep chain to another root"
    );
}

// spec: ID-085
#[test]
fn an_expired_leaf_of_either_side_ends_new_handshakes_and_no_connection() {
    let pair = Pair::with("http", "STRICT", App::echo().address, "");
    let mut expired = leaf(&spiffe_id("app/peer"));
    (expired.not_before, expired.not_after) = (before(7200).into(), before(3600).into());
    let files = Files::of(&pair.authority, &pair.authority.sign(&expired));
    let (certificate, key) = (files.path("leaf.pem"), files.path("key.pem"));
    let said = s_client(
        pair.server.addresses[0],
        &[
            "-cert",
            &certificate,
            "-key",
            &key,
            "-alpn",
            "istio-http/1.1",
            "-ign_eof",
        ],
    );
    assert!(said.contains("alert certificate expired"), "{said}");

    let mut expired = leaf(&spiffe_id("app/echo"));
    (expired.not_before, expired.not_after) = (before(7200).into(), before(3600).into());
    let server = TlsServer::start(&Files::of(&pair.authority, &pair.authority.sign(&expired)), &["-quiet"]);
    let bundle = client_bundle("http", "mesh: {vipFallback: false}\n");
    let client = caller(&bundle, (server.address, true), pair.authority.identity("app/client"));
    assert_eq!(get(client.addresses[0], "/").status(), 503);
    wait_for("the alert", || server.said().contains("alert certificate expired"));

    // A leaf that ends while its connection is open.
    let pair = Pair::with("tcp", "STRICT", App::echo().address, "");
    let mut short = leaf(&spiffe_id("app/client"));
    let end = after(10);
    short.not_after = end.into();
    let identity = identity(&pair.authority.sign(&short), &pair.authority.pem);
    let bundle = client_bundle("tcp", "mesh: {vipFallback: false}\n");
    let client = caller(&bundle, (pair.server.addresses[0], true), identity);
    let mut open = Client::connect(client.addresses[0]);
    assert_eq!(open.get("/", "").status(), 200);
    support::pause(end.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(1));
    assert_eq!(open.get("/", "").status(), 200, "an established connection");
    let mut late = Client::connect(client.addresses[0]);
    // It may be closed before or behind the first byte.
    let _ = late.stream.write_all(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n");
    assert!(late.receive().is_none(), "a new one");
}

// spec: ID-144, ID-084, ID-086
#[test]
fn an_anchor_verifies_peers_of_its_own_trust_domains_alone() {
    let pair = Pair::with("http", "STRICT", App::echo().address, "");
    let (own, partner, legacy) = (&pair.authority, Authority::new(), Authority::new());
    let roots = format!(
        "{}# trust domains: partner.example\n{}# trust domains: *\n{}",
        own.pem, partner.pem, legacy.pem
    );
    let serve = |any_domain: bool| {
        let (leaf, key) = own.pem_pair(&spiffe_id("app/echo"));
        let trust = MeshTrust {
            domains: vec!["cluster.local".into(), "alias.example".into()],
            any_domain,
            ..MeshTrust::default()
        };
        let identity = Identity::from_pem(leaf.as_bytes(), key.as_bytes(), roots.as_bytes(), &trust);
        pair.server
            .shared
            .identity
            .store(Some(Arc::new(identity.expect("valid"))));
    };
    let expect = |signer: &Authority, domain: &str, is_accepted: bool| {
        let files = Files::new(signer, &format!("spiffe://{domain}/ns/x/sa/y"));
        let (leaf, key) = (files.path("leaf.pem"), files.path("key.pem"));
        let said = s_client(
            pair.server.addresses[0],
            &["-cert", &leaf, "-key", &key, "-alpn", "istio-http/1.1", "-tls1_2"],
        );
        assert_eq!(!said.contains("alert"), is_accepted, "{domain}: {said}");
        assert!(is_accepted || said.contains("alert unknown ca"), "{domain}: {said}");
    };
    serve(false);
    for (signer, domain, is_accepted) in [
        (own, "cluster.local", true),
        (own, "alias.example", true),
        (own, "partner.example", false),
        (&partner, "partner.example", true),
        (&partner, "cluster.local", false),
        (&partner, "alias.example", false),
        (&legacy, "cluster.local", true),
        (&legacy, "partner.example", true),
        (&legacy, "other.example", false),
    ] {
        expect(signer, domain, is_accepted);
    }
    serve(true);
    expect(own, "other.example", true);
    expect(own, "partner.example", true);
    expect(&partner, "cluster.local", false);
    expect(&partner, "other.example", false);
}

// spec: ID-095, ID-145, ID-146, DR-108
#[test]
fn mesh_tls_that_a_rule_insists_on_fails_where_there_is_no_sidecar() {
    let plain = App::echo();
    let pair = Pair::start("http", plain.address);
    let call = |tls: &str, endpoint: (SocketAddr, bool)| {
        let policy = format!("protocol: http, policy: {{tls: {tls}}}}}");
        let bundle = client_bundle("http", "mesh: {vipFallback: false}\n").replace("protocol: http}", &policy);
        let client = caller(&bundle, endpoint, pair.authority.identity("app/client"));
        let answer = get(client.addresses[0], "/");
        // A request is counted at its end, after the client has its answer.
        let metrics = || client.shared.telemetry.prometheus();
        support::wait_for("the request in the metrics", || {
            metrics().contains("istio_requests_total{")
        });
        (answer.status(), metrics())
    };
    let meshed = (pair.server.addresses[0], true);
    assert_eq!(call("auto", meshed).0, 200);
    assert!(plain.last().field("x-forwarded-client-cert").is_some());
    // What the API says of an endpoint is believed: this one has a sidecar, and is said to have none.
    assert_eq!(call("auto", (meshed.0, false)).0, 200);
    assert!(plain.last().field("x-forwarded-client-cert").is_none(), "in clear");
    assert_eq!(call("disable", meshed).0, 200);
    assert!(plain.last().field("x-forwarded-client-cert").is_none(), "in clear");
    // Insisting is a rule's part, whatever the API says.
    assert_eq!(call("{mesh: {}}", (meshed.0, false)).0, 200);
    assert!(plain.last().field("x-forwarded-client-cert").is_some());
    // As most servers, it answers what is no HTTP with 400.
    let unmeshed = TcpListener::bind((support::address(), 0)).expect("listener");
    let address = unmeshed.local_addr().expect("address");
    let got = Arc::new(Mutex::new(Vec::new()));
    let seen = got.clone();
    std::thread::spawn(move || {
        for mut stream in unmeshed.incoming().flatten() {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).unwrap_or(0);
            seen.lock().expect("no panic").push(bytes[..count.min(3)].to_vec());
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let (status, metrics) = call("{mesh: {}}", (address, false));
    assert_eq!(status, 503);
    let got = got.lock().expect("no panic").clone();
    assert!(
        !got.is_empty() && got.iter().all(|bytes| bytes.starts_with(b"\x16\x03")),
        "no request in clear: {got:?}"
    );
    assert!(metrics.contains("response_flags=\"UF"), "{metrics}");
}

/// A server's pod whose proxy is the program.
struct Pod {
    volumes: Volumes,
    authority: Authority,
    inbound: SocketAddr,
    flag: String,
}

impl Pod {
    fn new(app: &App, mode: &str) -> Self {
        let authority = Authority::new();
        let inbound = SocketAddr::new(support::address(), 4000);
        let volumes = Volumes::new(&authority, "app/echo");
        let port = app.address.port();
        volumes.configure(&format!(
            "{}inbound:\n  mtls: {mode}\n  ports:\n  - {{port: {port}, protocol: http}}\n",
            support::workload("app/echo")
        ));
        volumes.endpoints_of(&[]);
        Self {
            volumes,
            authority,
            inbound,
            flag: format!("{inbound}={}", app.address),
        }
    }

    fn start(&self) -> Process {
        Process::start(&self.volumes, self.inbound.ip(), &["--inbound", &self.flag], &[])
    }

    /// Status of a call by a peer with this leaf.
    fn call(&self, pair: &(String, String)) -> u16 {
        let bundle = client_bundle("http", "mesh: {vipFallback: false}\n");
        let client = caller(&bundle, (self.inbound, true), identity(pair, &self.authority.pem));
        get(client.addresses[0], "/").status()
    }

    /// Serial number of the leaf that the proxy shows.
    fn serial(&self) -> String {
        let files = Files::new(&self.authority, &spiffe_id("app/peer"));
        let (leaf, key) = (files.path("leaf.pem"), files.path("key.pem"));
        let said = s_client(
            self.inbound,
            &["-cert", &leaf, "-key", &key, "-alpn", "istio-http/1.1", "-showcerts"],
        );
        let begin = said
            .find("-----BEGIN")
            .unwrap_or_else(|| panic!("no certificate: {said}"));
        said[begin..].lines().nth(1).unwrap_or_default().to_owned()
    }
}

// spec: ID-060
#[test]
fn an_anchor_that_expires_verifies_nobody_any_more() {
    let pod = Pod::new(&App::echo(), "STRICT");
    let end = after(12);
    let short = Authority::with(|root| root.not_after = end.into());
    let past = Authority::with(|root| {
        (root.not_before, root.not_after) = (before(7200).into(), before(3600).into());
    });
    let (chain, key) = pod.authority.pem_pair(&spiffe_id("app/echo"));
    let roots = format!("{}{}{}", pod.authority.pem, short.pem, past.pem);
    pod.volumes.identify_with(&chain, &key, &roots);
    let proxy = pod.start().ready();
    let id = spiffe_id("app/client");
    assert_eq!(pod.call(&past.pem_pair(&id)), 503, "it had expired before");
    assert_eq!(pod.call(&short.pem_pair(&id)), 200);
    let expired = || {
        let metrics = proxy.get(15020, "/stats/prometheus").text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("weft_trust_anchor_expired "));
        line.map(str::to_owned)
    };
    assert_eq!(expired().as_deref(), Some("weft_trust_anchor_expired 1"));
    wait_for("the warning at load", || {
        proxy.log().contains("trust anchors have expired")
    });
    support::pause(end.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(1));
    assert_eq!(pod.call(&short.pem_pair(&id)), 503, "it has expired since");
    assert_eq!(pod.call(&pod.authority.pem_pair(&id)), 200, "the others go on");
    assert_eq!(expired().as_deref(), Some("weft_trust_anchor_expired 2"));
    wait_for("the warning", || {
        proxy.log().matches("trust anchors have expired").count() == 2
    });
}

// spec: ID-006, ID-084
#[test]
fn a_trust_domain_that_the_mesh_takes_up_is_accepted_without_another_certificate() {
    let app = App::echo();
    let pod = Pod::new(&app, "STRICT");
    let _proxy = pod.start().ready();
    let peer = pod.authority.pem_pair("spiffe://alias.example/ns/app/sa/client");
    assert_eq!(pod.call(&peer), 503);
    pod.volumes.configure(&format!(
        "{}mesh: {{trustDomainAliases: [alias.example]}}\ninbound:\n  mtls: STRICT\n  ports:\n  - {{port: {}, protocol: http}}\n",
        support::workload("app/echo"),
        app.address.port()
    ));
    wait_for("the alias", || pod.call(&peer) == 200);
}

// spec: ID-143
#[test]
fn anchors_come_from_the_identity_and_from_nowhere_else() {
    let pod = Pod::new(&App::echo(), "STRICT");
    let forger = Authority::new();
    // As a forged ConfigMap would be, if one were mounted among the configuration.
    for name in ["root-cert.pem", "ca.crt", "ca-certificates.crt"] {
        pod.volumes.spoil(name, forger.pem.as_bytes());
    }
    let proxy = pod.start().ready();
    let id = spiffe_id("app/client");
    assert_eq!(pod.call(&pod.authority.pem_pair(&id)), 200);
    assert_eq!(pod.call(&forger.pem_pair(&id)), 503);
    pod.volumes.identify(&forger, "app/echo");
    wait_for("the new anchors", || {
        let metrics = proxy.get(15020, "/stats/prometheus").text();
        metrics.contains("weft_cert_reload_total{result=\"ok\"} 2")
    });
    assert_eq!(pod.call(&pod.authority.pem_pair(&id)), 503);
}

// spec: ID-115, ID-111, DLV-042, LIFE-048
#[test]
fn a_renewed_leaf_is_shown_in_both_roles_and_connections_keep_the_one_they_have() {
    let app = App::echo();
    let pod = Pod::new(&app, "STRICT");
    let server = pod.start().ready();
    // A client's pod that calls it.
    let volumes = Volumes::new(&pod.authority, "app/client");
    volumes.configure(&client_bundle("http", "mesh: {vipFallback: false}\n"));
    let mut meshed = endpoint(pod.inbound);
    meshed.tls = MeshTls::All;
    volumes.endpoints_of(&[HostInput {
        host: "echo.app.svc.cluster.local".into(),
        accounts: vec!["app/echo".into()],
        endpoints: vec![meshed],
    }]);
    let front = SocketAddr::new(support::address(), 4001);
    let outbound = format!("{front}={}", support::virtual_address());
    let client = Process::start(
        &volumes,
        front.ip(),
        &["--outbound", &outbound, "--concurrency", "1"],
        &[],
    )
    .ready();
    let caller_of = |answer: &support::Answer| {
        let text = answer.text();
        let line = text
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("x-forwarded-client-cert"));
        line.and_then(|line| line.split("Hash=").nth(1)?.split(';').next().map(str::to_owned))
    };
    let mut first = Client::connect(front);
    let old = caller_of(&first.get("/", "")).expect("mesh mTLS");
    let shown = pod.serial();

    // Several renewals, each of which is noticed: a watch on a file would be dead after the first.
    for n in 2..5 {
        volumes.identify(&pod.authority, "app/client");
        pod.volumes.identify(&pod.authority, "app/echo");
        for of in [&client, &server] {
            let wanted = format!("weft_cert_reload_total{{result=\"ok\"}} {n}");
            wait_for("the renewal", || {
                of.get(15020, "/stats/prometheus").text().contains(&wanted)
            });
        }
    }
    assert_ne!(pod.serial(), shown, "new handshakes of the server");
    let connections = app.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        caller_of(&first.get("/", "")).as_deref(),
        Some(&*old),
        "the pooled connection goes on"
    );
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), connections);
    // While that one is in use, another one is opened.
    let mut busy = Client::connect(front);
    busy.send("POST /slow HTTP/1.1\r\nHost: echo\r\nContent-Length: 5\r\n\r\n12");
    let mut second = Client::connect(front);
    wait_for("a connection with the new leaf", || {
        let found = caller_of(&second.get("/", ""));
        found.is_some_and(|hash| hash != old)
    });
    busy.send("345");
    assert_eq!(busy.receive().map(|answer| answer.status()), Some(200));
}

// spec: ID-118, LIFE-010, ID-145
#[test]
fn without_an_identity_nothing_is_ready_and_nothing_goes_out_in_clear() {
    let app = App::echo();
    let pod = Pod::new(&app, "PERMISSIVE");
    pod.volumes.unidentify();
    let proxy = pod.start();
    let ready = |proxy: &Process| proxy.ask("GET", 15021, "/healthz/ready");
    wait_for("the reason", || {
        ready(&proxy).is_some_and(|answer| answer.status() == 503 && answer.text().contains("no identity"))
    });
    assert!(
        TcpStream::connect(pod.inbound).is_err(),
        "no listener before there is an identity"
    );
    // A set whose key is that of another leaf is none.
    let (leaf, _) = pod.authority.pem_pair(&spiffe_id("app/echo"));
    let (_, key) = pod.authority.pem_pair(&spiffe_id("app/echo"));
    pod.volumes.identify_with(&leaf, &key, &pod.authority.pem);
    wait_for("the refusal", || {
        let metrics = proxy.get(15020, "/stats/prometheus").text();
        metrics.contains("weft_cert_reload_total{result=\"mismatch\"} 1")
    });
    assert_eq!(ready(&proxy).map(|answer| answer.status()), Some(503));
    assert!(TcpStream::connect(pod.inbound).is_err());
    pod.volumes.identify(&pod.authority, "app/echo");
    let _proxy = proxy.ready();
    assert_eq!(pod.call(&pod.authority.pem_pair(&spiffe_id("app/client"))), 200);
    assert!(app.last().field("x-forwarded-client-cert").is_some());
    assert_eq!(app.count(), 1);
}
