//! Client proxies whose host `echo` has rules, and applications that tell who they are.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weft_sidecar::shared::Role;

use super::{App, Proxy, address, client_bundle, echo_endpoints, virtual_address};

pub const ECHO: &str = "echo.app.svc.cluster.local";

pub fn dialling(destination: SocketAddr) -> Vec<(SocketAddr, Role)> {
    vec![(SocketAddr::new(address(), 0), Role::Fixed { destination })]
}

/// A bundle whose host `echo` has a route table with these rules, and subsets v1 and v2.
pub fn bundle(rules: &str) -> String {
    bundle_with(
        "{name: v1, labels: {version: v1}}",
        "{name: v2, labels: {version: v2}}",
        rules,
    )
}

/// As [`bundle`], with policies of the subsets.
pub fn bundle_with_policies(v1: &str, v2: &str, rules: &str) -> String {
    let subset =
        |name: &str, policy: &str| format!("{{name: {name}, labels: {{version: {name}}}, policies: {{80: {policy}}}}}");
    bundle_with(&subset("v1", v1), &subset("v2", v2), rules)
}

fn bundle_with(v1: &str, v2: &str, rules: &str) -> String {
    let rest = format!(
        "  subsets:\n  - {v1}\n  - {v2}\nroutes:\n- name: t\n  origin: {{kind: VirtualService, namespace: app, name: \
         rules}}\n  rules:\n{rules}"
    );
    client_bundle("http", &rest).replace("protocol: http}", "protocol: http, http: t}")
}

pub fn start(bundle: &str, endpoints: &str) -> Proxy {
    Proxy::start(dialling(virtual_address()), bundle, endpoints, None)
}

/// A client proxy with a [`bundle`] of these rules.
pub fn client(rules: &str, endpoints: &str) -> Proxy {
    start(&bundle(rules), endpoints)
}

/// A rule that goes to all of `echo`.
pub fn to_echo(rest: &str) -> String {
    format!("  - destinations: [{{host: {ECHO}, port: 80}}]\n{rest}")
}

/// A rule that goes to a subset.
pub fn to_subset(subset: &str, rest: &str) -> String {
    format!("  - destinations: [{{host: {ECHO}, port: 80, subset: {subset}}}]\n{rest}")
}

pub fn one(app: &App) -> String {
    echo_endpoints(&[(app.address, false)])
}

/// Endpoints of `echo`, each an address with further fields, as in a shard.
pub fn endpoints(list: &[(SocketAddr, &str)], more: &str) -> String {
    if list.is_empty() {
        return echo_endpoints(&[]);
    }
    let mut out = String::from("ports:\n");
    list.iter()
        .for_each(|(a, _)| out.push_str(&format!("- {{main: {}}}\n", a.port())));
    out.push_str(&format!(
        "{more}hosts:\n- host: {ECHO}\n  accounts: [app/echo]\n  endpoints:\n"
    ));
    for (i, (address, fields)) in list.iter().enumerate() {
        out.push_str(&format!("  - {{a: {}, p: {i}{fields}}}\n", address.ip()));
    }
    out
}

/// Endpoints of `echo`: so many of version v1, the others of version v2.
pub fn versions(v1: &[SocketAddr], v2: &[SocketAddr]) -> String {
    let of_v1 = v1.iter().map(|address| (*address, ", l: 0"));
    let of_v2 = v2.iter().map(|address| (*address, ", l: 1"));
    let all: Vec<_> = of_v1.chain(of_v2).collect();
    endpoints(&all, "labels: [{version: v1}, {version: v2}]\n")
}

pub fn two_versions(v1: &App, v2: &App) -> String {
    versions(&[v1.address], &[v2.address])
}

/// Answers with its name.
pub fn named(name: &'static str) -> App {
    App::answering(move |_| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// An answer without body.
pub fn status(code: u16) -> String {
    format!("HTTP/1.1 {code} So\r\nContent-Length: 0\r\n\r\n")
}

/// Answers with a failure a number of times, then with 200; an empty failure closes the connection.
pub fn failing(times: usize, failure: impl Into<String>) -> App {
    let failure = failure.into();
    let count = AtomicUsize::new(0);
    App::new(Arc::new(move |_, stream| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let text = if number < times {
            &failure
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        };
        stream.write_all(text.as_bytes()).is_ok() && !text.is_empty()
    }))
}

/// Answers nothing until its client is gone.
pub fn silent() -> App {
    App::new(Arc::new(|_, stream| {
        let mut byte = [0];
        let _ = stream.read(&mut byte);
        false
    }))
}

/// Greets each connection with its name and nothing else, and takes what is sent to it.
pub fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
                // Closed with bytes unread it would be reset, and the greeting lost.
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    bound
}

/// All that a connection says.
pub fn greeting(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// What a TLS client sends first.
pub fn client_hello(server_name: &str) -> Vec<u8> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(server_name.to_owned()).expect("name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a ClientHello");
    bytes
}
