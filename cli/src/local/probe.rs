//! Probes, as the kubelet makes them (LOC-014): HTTP, TCP, gRPC; `exec` is the pod's to run.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

/// Makes one check of the pod at `address`, where other ports may stand in for its own; must run where the pod can be
/// reached.
///
/// # Errors
/// Why the check failed, for people.
pub async fn check(
    probe: &Probe,
    container: &Container,
    address: IpAddr,
    ports: &BTreeMap<u16, u16>,
) -> Result<(), String> {
    let replaced = |port: u16| ports.get(&port).copied().unwrap_or(port);
    let limit = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1));
    let attempt = async {
        if let Some(get) = &probe.http_get {
            let port = replaced(port_number(&get.port, container)?);
            let host = get.host.as_deref().filter(|h| !h.is_empty());
            let target = match host {
                Some(host) => host.parse().map_err(|_| format!("httpGet.host {host} is no address"))?,
                None => address,
            };
            let headers = get
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.as_str(), h.value.as_str()));
            let headers: Vec<_> = headers.collect();
            return http_get(
                SocketAddr::new(target, port),
                get.path.as_deref().unwrap_or("/"),
                &headers,
            )
            .await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let target = SocketAddr::new(address, replaced(port_number(&tcp.port, container)?));
            return TcpStream::connect(target)
                .await
                .map(drop)
                .map_err(|e| format!("connect to {target}: {e}"));
        }
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("grpc.port {} is no port", grpc.port))?;
            return grpc_check(
                SocketAddr::new(address, replaced(port)),
                grpc.service.as_deref().unwrap_or_default(),
            )
            .await;
        }
        Err("the probe has no httpGet, tcpSocket, grpc or exec".to_owned())
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

/// The port that a probe means.
fn port_number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.ok_or_else(|| format!("port {port:?} is no port of container {}", container.name))?;
    u16::try_from(number).map_err(|_| format!("{number} is no port"))
}

/// One GET; statuses from 200 to 399 are success.
async fn http_get(target: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<(), String> {
    let (status, _) = get(target, path, headers).await?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("{target}{path} answered {status}"))
    }
}

/// One GET with its status and at most 64 KiB of its body.
///
/// # Errors
/// Why there was no answer.
pub async fn get(target: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<(u16, Bytes), String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|e| format!("connect to {target}: {e}"))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let mut request = hyper::Request::get(if path.is_empty() { "/" } else { path });
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", target.to_string());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok((status, body.to_bytes()))
    };
    let answer = answer.await;
    connection.abort();
    answer
}

/// `grpc.health.v1.Health/Check` over plaintext HTTP/2: success is the answer `SERVING`.
async fn grpc_check(target: SocketAddr, service: &str) -> Result<(), String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|e| format!("connect to {target}: {e}"))?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let call = async {
        let mut client = client.ready().await.map_err(|e| e.to_string())?;
        let request = http::Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| e.to_string())?;
        let (response, mut send) = client.send_request(request, false).map_err(|e| e.to_string())?;
        send.send_data(health_request(service)?, true)
            .map_err(|e| e.to_string())?;
        let mut body = response.await.map_err(|e| e.to_string())?.into_body();
        let mut message = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(|e| e.to_string())?;
            let _ = body.flow_control().release_capacity(data.len());
            message.extend_from_slice(&data);
            if message.len() > MAX_BODY {
                return Err("the answer is too long".to_owned());
            }
        }
        // A frame of five bytes, then field 1 (status), varint 1 (SERVING).
        match message.get(5..) {
            Some([0x08, 0x01, ..]) => Ok(()),
            _ => Err(format!("{target} does not answer SERVING")),
        }
    };
    let result = call.await;
    connection.abort();
    result
}

/// The message `HealthCheckRequest{service}` in a gRPC frame.
fn health_request(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len()).ok().filter(|n| *n < 0x80);
    let length = length.ok_or("grpc.service is longer than 127 bytes")?;
    let mut message = Vec::new();
    if length > 0 {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).map_err(|e| e.to_string())?];
    frame.extend(message);
    Ok(frame.into())
}

const MAX_BODY: usize = 64 << 10;
