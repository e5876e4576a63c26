//! Calls over HTTP/2.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request};

/// What a client got: HTTP status, fields of the head, data, trailers.
pub struct Got {
    pub status: u16,
    pub head: HeaderMap,
    pub data: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

/// A call with these fields in its head, on a connection of its own.
pub fn call(front: SocketAddr, fields: &[(&str, &str)], body: &'static [u8]) -> Got {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::connect(front).await.expect("the proxy listens");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut client = client.ready().await.expect("open");
        let mut request = Request::post("http://echo/a.B/C");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("request");
        let (response, mut stream) = client.send_request(request, false).expect("sent");
        stream.send_data(Bytes::from_static(body), true).expect("sent");
        let (parts, mut body) = response.await.expect("an answer").into_parts();
        let mut data = Vec::new();
        while let Some(part) = body.data().await {
            let part = part.expect("data");
            let _ = body.flow_control().release_capacity(part.len());
            data.extend_from_slice(&part);
        }
        Got {
            status: parts.status.as_u16(),
            head: parts.headers,
            data,
            trailers: body.trailers().await.expect("trailers"),
        }
    })
}
