//! Hosts of ServiceEntries, and what a Sidecar keeps a workload from calling.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::support::{Run, Way, holder, pod, self_signed};

/// A server of this machine that is in no mesh; it answers with the Host that it was asked for.
fn outside() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever hangs up early hears nothing.
            let _ = answer(stream);
        }
    });
    port
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut host = String::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("host")
        {
            value.trim().clone_into(&mut host);
        }
    }
    let length = host.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{host}"
    )
}

fn manifest(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: outside, namespace: app}}\nspec: {spec}\n"
    )
}

// spec: SE-026, SE-034, SE-035, SE-039, SE-070, SE-083, SE-084, SM-061, SM-065
#[test]
fn a_host_of_an_entry_is_called_and_under_registry_only_no_other() {
    let port = outside();
    let client = pod("client", "{name: main, image: none, command: [sleep, '1000']}");
    let run = Run::start(Way::Loopback, &[("client.yaml", &client)], &[]).ready();
    let get = |host: &str| run.get("client", &format!("http://{host}/"));
    let becomes = |host: &str, status: u16| {
        run.wait_for(&format!("{status} from {host}"), || {
            (get(host)["status"] == status).then_some(())
        });
    };
    // Names that no resolver knows (RFC 6761): only the mesh can lead anywhere.
    let (api, other) = ("api.invalid", "other.invalid");
    assert_eq!(
        (get(api)["status"].clone(), get(other)["status"].clone()),
        (503.into(), 503.into())
    );

    run.save("sidecar.yaml", &manifest("Sidecar", "{outboundTrafficPolicy: {}}"));
    becomes(api, 502);
    becomes(other, 502);

    let entry = format!(
        "{{hosts: [{api}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: [{{address: \
         127.0.0.1, ports: {{http: {port}}}}}]}}"
    );
    run.save("entry.yaml", &manifest("ServiceEntry", &entry));
    becomes(api, 200);
    assert_eq!(get(api)["body"], api);
    assert_eq!(get(other)["status"], 502);

    run.remove("sidecar.yaml");
    becomes(other, 503);
    assert_eq!(get(api)["status"], 200);

    run.remove("entry.yaml");
    becomes(api, 503);
}

/// A TLS server of this machine that wants a certificate, and tells in its answer which one it got.
struct Outside {
    server: Child,
    port: u16,
}

impl Outside {
    fn start(dir: &Path, own: &(String, String), clients: &str) -> Self {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let mut server = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-www",
                "-Verify",
                "1",
                "-verify_return_error",
                "-cert",
            ])
            .arg(file("own.crt", &own.0))
            .arg("-key")
            .arg(file("own.key", &own.1))
            .arg("-CAfile")
            .arg(file("clients.crt", clients))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs; install it: apt-get install openssl");
        let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
        let said = lines.find_map(|line| line.ok()?.strip_prefix("ACCEPT ").map(str::to_owned));
        let port = said.as_deref().and_then(|said| said.rsplit_once(':')?.1.parse().ok());
        // What it says of each connection has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            server,
            port: port.expect("its port"),
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

// spec: DR-114, DR-115, BYD-061, DLV-153
#[test]
fn a_rule_takes_its_certificates_from_secrets_and_config_maps() {
    let (own, client) = (self_signed("api.invalid"), self_signed("client.invalid"));
    let dir = tempfile::tempdir().expect("directory");
    let outside = Outside::start(dir.path(), &own, &client.0);
    let entry = format!(
        "{{hosts: [api.invalid], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, endpoints: \
         [{{address: 127.0.0.1, ports: {{http: {}}}}}]}}",
        outside.port
    );
    let rule = |more: &str, tls: &str| {
        let spec = format!("{{host: api.invalid{more}, trafficPolicy: {{tls: {{{tls}, sni: api.invalid}}}}}}");
        manifest("DestinationRule", &spec)
    };
    let selected = ", workloadSelector: {matchLabels: {app: client}}";
    let sleeper = pod("client", "{name: main, image: none, command: [sleep, '1000']}");
    let run = Run::start(
        Way::Loopback,
        &[
            ("client.yaml", &sleeper),
            ("entry.yaml", &manifest("ServiceEntry", &entry)),
            ("rule.yaml", &rule("", "mode: MUTUAL, credentialName: bank")),
        ],
        &[],
    )
    .ready();
    let get = || run.get("client", "http://api.invalid/");
    // Answers of `-www` tell of the certificate that came.
    let is_served = || {
        let answer = get();
        answer["status"] == 200 && answer["body"].to_string().contains("client.invalid")
    };
    // The name of the object is in the reason, whatever is missing.
    run.wait_for("the refusal", || (get()["status"] == 503).then_some(()));
    run.wait_for("the word about it", || {
        run.log().contains("workloadSelector").then_some(())
    });
    run.save("rule.yaml", &rule(selected, "mode: MUTUAL, credentialName: bank"));
    run.wait_for("the word about the Secret", || {
        let log = run.log();
        (log.contains("SecretNotFound") && log.contains("app/bank")).then_some(())
    });
    assert_eq!(get()["status"], 503);
    let whole = [("tls.crt", &*client.0), ("tls.key", &*client.1), ("ca.crt", &*own.0)];
    run.save("bank.yaml", &holder("Secret", "app/bank", &whole));
    run.wait_for("an answer", || is_served().then_some(()));
    // The authorities may come by themselves, and everything is followed.
    let stranger = self_signed("api.invalid");
    run.save(
        "bank.yaml",
        &holder("Secret", "app/bank", &[whole[0], whole[1], ("ca.crt", &*stranger.0)]),
    );
    run.wait_for("a refusal of the server", || (get()["status"] == 503).then_some(()));
    run.save(
        "roots.yaml",
        &holder("Secret", "app/bank-cacert", &[("ca.crt", &*own.0)]),
    );
    run.wait_for("an answer", || is_served().then_some(()));
    run.remove("bank.yaml");
    run.wait_for("the end", || (get()["status"] == 503).then_some(()));
    // A ConfigMap is for everybody: this server takes nobody without a certificate, but has been verified.
    run.save(
        "rule.yaml",
        &rule("", "mode: SIMPLE, credentialName: 'configmap://app/bank'"),
    );
    run.save("roots.yaml", &holder("ConfigMap", "app/bank", &[("ca.crt", &*own.0)]));
    run.wait_for("the server's own refusal", || {
        let answer = get().to_string();
        (answer.contains("503") && !answer.contains("not available") && !answer.contains("UnknownIssuer")).then_some(())
    });
    assert!(!run.log().contains("PRIVATE KEY"));
}

// spec: SE-077, SE-070, SM-068, SM-075
#[test]
fn what_is_not_imported_is_reached_as_dialled_without_an_identity() {
    let namespace = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{weft.dev/inject: enabled}}}}\n---\n"
        )
    };
    let server = namespace("far")
        + "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: far, labels: {app: web}}\nspec: {containers: [{name: \
           main, image: 'weft-app:dev', command: [weft-app, serve, --http, '8080'], ports: [{containerPort: 8080}]}]}\n\
           ---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: far}\nspec: {selector: {app: web}, ports: \
           [{name: http, port: 80, targetPort: 8080}]}\n";
    let run = Run::start(
        Way::Namespaces,
        &[
            (
                "client.yaml",
                &pod("client", "{name: main, image: none, command: [sleep, '1000']}"),
            ),
            ("server.yaml", &server),
            ("weft-local.yaml", "commands: {weft-app: [weft-app]}"),
        ],
        &[],
    )
    .ready();
    let get = || run.get("client", "http://web.far/");
    let has_identity = || {
        let answer = get();
        assert_eq!(answer["status"], 200, "{answer}");
        answer["body"]["caller"] == "spiffe://cluster.local/ns/app/sa/default"
    };
    assert!(has_identity());

    run.save("sidecar.yaml", &manifest("Sidecar", "{egress: [{hosts: ['./*']}]}"));
    run.wait_for("pass-through", || (!has_identity()).then_some(()));
    assert_eq!(get()["body"]["caller"], serde_json::Value::Null);
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: \
                  far}\nspec: {mtls: {mode: STRICT}}\n";
    run.save("strict.yaml", strict);
    // Nothing else is HTTP on that port, so the connection passes through as it is, and is reset.
    run.wait_for("a refusal", || (get()["status"] != 200).then_some(()));

    // What a namespace does not export is as unknown as what is not imported.
    run.remove("strict.yaml");
    run.remove("sidecar.yaml");
    run.wait_for("the identity", || {
        (get()["body"]["caller"] == "spiffe://cluster.local/ns/app/sa/default").then_some(())
    });
    let hidden = server.replace(
        "{name: web, namespace: far}\nspec: {selector",
        "{name: web, namespace: far, annotations: {networking.istio.io/exportTo: .}}\nspec: {selector",
    );
    assert_ne!(hidden, server);
    run.save("server.yaml", &hidden);
    run.wait_for("pass-through", || (!has_identity()).then_some(()));
}
