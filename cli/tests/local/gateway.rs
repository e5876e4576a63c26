//! Gateways on this machine: reached from pods, and published where their Service is a load balancer's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::support::{Run, Way};

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
fn published(run: &Run) -> Option<SocketAddr> {
    let log = run.log();
    let line = log
        .lines()
        .find(|line| line.contains("edge/ingress:80 is at http://"))?;
    line.rsplit_once("http://")?.1.trim().parse().ok()
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
        let address = run.wait_for("the address", || published(&run));
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
