//! Gateways on this machine: reached from pods, and published where their Service is a load balancer's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use super::support::{Run, Way, holder, self_signed};

const GATEWAY: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: edge}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ingress, namespace: edge}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  template:
    metadata:
      labels: {istio: ingressgateway, weft.dev/inject: "true"}
      annotations: {inject.istio.io/templates: gateway}
    spec: {containers: [{name: istio-proxy, image: auto}]}
---
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: edge}
spec:
  type: LoadBalancer
  selector: {istio: ingressgateway}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*.example.com"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: direct, namespace: edge}
spec:
  hosts: [shop.example.com]
  gateways: [gw]
  http:
  - directResponse: {status: 200, body: {string: open}}
"#;

/// Where the run says that a Service is.
fn published(run: &Run, what: &str) -> Option<SocketAddr> {
    let log = run.log();
    let line = log.lines().find(|line| line.contains(what))?;
    line.rsplit_once("://")?.1.trim().parse().ok()
}

/// Status line and body of a GET.
fn ask(address: SocketAddr, host: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

// spec: LOC-024, GW-013, GW-024, GW-081, INJ-187
#[test]
fn a_gateway_is_published_and_serves_what_its_manifests_say() {
    for way in [Way::Namespaces, Way::Unprivileged, Way::Loopback] {
        let run = Run::start(way, &[("gateway.yaml", GATEWAY)], &[]).ready();
        let address = run.wait_for("the address", || published(&run, "edge/ingress:80 is at http://"));
        assert!(address.ip().is_loopback());
        let answer = |host: &str| ask(address, host).unwrap_or_default();
        run.wait_for("the gateway", || {
            answer("shop.example.com").starts_with("HTTP/1.1 200 ").then_some(())
        });
        assert!(answer("shop.example.com").ends_with("open"), "{way:?}");
        assert!(answer("other.example.com").starts_with("HTTP/1.1 404 "), "{way:?}");
        // A change of the manifests is a change of its ports.
        run.save("gateway.yaml", &GATEWAY.replace("number: 80", "number: 81"));
        run.wait_for("the port to be closed", || {
            answer("shop.example.com").is_empty().then_some(())
        });
    }
}

/// A Gateway with two HTTPS servers on one port, each with a Secret of its own.
const HTTPS: &str = r#"
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure, namespace: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: shop, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: SIMPLE, credentialName: shop}
  - port: {number: 443, name: bank, protocol: HTTPS}
    hosts: [bank.example.com]
    tls: {mode: SIMPLE, credentialName: bank}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure, namespace: edge}
spec:
  hosts: [shop.example.com, bank.example.com]
  gateways: [secure]
  http:
  - directResponse: {status: 200, body: {string: secure}}
"#;

/// A Secret with a certificate for a name, made anew.
fn secret(name: &str) -> String {
    let (certificate, key) = self_signed(&format!("{name}.example.com"));
    holder(
        "Secret",
        &format!("edge/{name}"),
        &[("tls.crt", &certificate), ("tls.key", &key)],
    )
}

// spec: GW-042, GW-043, BYD-066, DLV-153
#[test]
fn of_two_https_servers_on_one_port_one_without_its_secret_does_not_hold_back_the_other() {
    for way in [Way::Namespaces, Way::Loopback] {
        let gateway = GATEWAY.replace(
            "targetPort: 8080}",
            "targetPort: 8080}, {name: https, port: 443, targetPort: 8443}",
        );
        let both = gateway + HTTPS;
        let (shop, bank) = (secret("shop"), secret("bank"));
        let run = Run::start(way, &[("gateway.yaml", &(both.clone() + &shop))], &[]).ready();
        let address = run.wait_for("the address", || published(&run, "edge/ingress:443 is at https://"));
        let ask = |name: &str| {
            let (host, port) = (format!("{name}.example.com"), address.port());
            let resolve = format!("{host}:{port}:{}", address.ip());
            let url = format!("https://{host}:{port}/");
            let said = Command::new("curl")
                .args([
                    "-sSk",
                    "--max-time",
                    "5",
                    "--resolve",
                    &resolve,
                    "-w",
                    " %{http_code} %{certs}",
                    &url,
                ])
                .output()
                .expect("curl runs; install it: apt-get install curl");
            String::from_utf8_lossy(&said.stdout).into_owned()
        };
        let serves = |name: &str| ask(name).starts_with("secure 200");
        run.wait_for("the one", || serves("shop").then_some(()));
        assert!(!serves("bank"), "{way:?}");
        run.wait_for("the word about it", || {
            let log = run.log();
            (log.contains("SecretNotFound") && log.contains("edge/bank")).then_some(())
        });
        run.save("gateway.yaml", &(both.clone() + &shop + &bank));
        run.wait_for("the other", || serves("bank").then_some(()));
        // A new certificate, and one that is gone.
        let before = ask("shop");
        run.save("gateway.yaml", &(both.clone() + &secret("shop") + &bank));
        run.wait_for("the new certificate", || {
            let now = ask("shop");
            (now.starts_with("secure 200") && now != before).then_some(())
        });
        run.save("gateway.yaml", &(both.clone() + &bank));
        run.wait_for("its end", || (!serves("shop")).then_some(()));
        assert!(serves("bank"), "{way:?}");
        assert!(!run.log().contains("PRIVATE KEY"));
    }
}
