//! One request to the proxy of this pod, for subcommands.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

/// What the proxy answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

/// Sends a request without body and waits for the answer, five seconds at most.
///
/// # Errors
/// That nobody answered.
pub fn request(address: SocketAddr, method: &str, path: &str) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let exchange = async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = hyper::Request::builder()
                .method(method)
                .uri(path)
                .header("host", address.to_string())
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            connection.abort();
            anyhow::Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await;
        answer
            .context("no answer within 5 s")?
            .with_context(|| format!("ask the proxy at {address}"))
    })
}
