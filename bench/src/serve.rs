//! The application behind the proxies. A thread for each HTTP/1.1 connection: two system calls a request, and what the
//! scheduler costs is not the proxy's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};

/// Length of the usual answer.
const SMALL: usize = 128;

/// Length of the answer to `/1m`.
const LARGE: usize = 1_000_000;

/// Serves until the process is ended.
pub(crate) fn run(http1: SocketAddr, http2: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(http1).with_context(|| format!("listen on {http1}"))?;
    std::thread::spawn(move || serve_http1(&listener));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve_http2(http2))
}

fn serve_http1(listener: &TcpListener) {
    let answer = |length: usize| {
        let mut bytes =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        bytes.resize(bytes.len() + length, b'x');
        bytes
    };
    let (small, large) = (&*answer(SMALL).leak(), &*answer(LARGE).leak());
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer_http1(stream, small, large));
    }
}

/// Requests have no body, and a client does not send the next one before it has the answer.
fn answer_http1(mut stream: TcpStream, small: &[u8], large: &[u8]) {
    // Without it the connection works, only slower.
    let _ = stream.set_nodelay(true);
    let mut head = [0; 8192];
    let mut length = 0;
    loop {
        match stream.read(&mut head[length..]) {
            Ok(0) | Err(_) => return,
            Ok(count) => length += count,
        }
        if !head[..length].ends_with(b"\r\n\r\n") {
            continue;
        }
        let answer = if head.starts_with(b"GET /1m ") { large } else { small };
        length = 0;
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

async fn serve_http2(address: SocketAddr) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    // A client that has gone needs no answer.
                    let _ = answer_http2(request, respond).await;
                });
            }
        });
    }
}

async fn answer_http2(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let is_grpc = head
        .headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc {
        let response = Response::builder().header("content-type", "text/plain");
        let mut stream = respond.send_response(response.body(()).expect("valid"), false)?;
        return stream.send_data(Bytes::from_static(&[b'x'; SMALL]), true);
    }
    let response = Response::builder().header("content-type", "application/grpc");
    let mut stream = respond.send_response(response.body(()).expect("valid"), false)?;
    // One message: not compressed, its length, its bytes.
    let mut message = vec![0, 0, 0, 0, u8::try_from(SMALL).expect("one byte")];
    message.resize(message.len() + SMALL, b'x');
    stream.send_data(message.into(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
