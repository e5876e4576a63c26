//! Hosts of ServiceEntries, and what a Sidecar keeps a workload from calling.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use super::support::{Run, Way, pod};

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
