//! What several targets need: a socket with bytes in it, and another reader of HTTP as oracle.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// A request as its reader understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// Method.
    pub method: Vec<u8>,
    /// Target.
    pub target: Vec<u8>,
    /// Whole body.
    pub body: Vec<u8>,
}

/// Runs something to its end on a runtime of this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A connection whose peer has sent these bytes and will send no more; the peer is kept.
pub async fn connection(bytes: &[u8]) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut peer, stream) = (peer.expect("connected"), accepted.expect("accepted").0);
    // Ports are few: a reset frees them at once.
    peer.set_zero_linger().expect("an option");
    // Fuzzed inputs are far smaller than the socket's buffer.
    peer.write_all(bytes).await.expect("sent");
    peer.shutdown().await.expect("half-closed");
    (stream, peer)
}

/// What hyper understands of a byte stream: requests whose bodies were whole, and whether it ended in order.
pub async fn hyper_reads(bytes: &[u8]) -> (Vec<Understood>, bool) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (client, server) = tokio::io::duplex(1 << 20);
    let (mut from, mut to) = tokio::io::split(client);
    let into = seen.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let into = into.clone();
        async move {
            let (parts, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let understood = Understood {
                    method: parts.method.as_str().as_bytes().to_vec(),
                    target: parts.uri.to_string().into_bytes(),
                    body: body.to_bytes().to_vec(),
                };
                into.lock().expect("no panic").push(understood);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_headers(200)
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let write = async {
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
    };
    let drain = async {
        let mut sink = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut sink).await;
    };
    let (served, (), ()) = tokio::join!(connection, write, drain);
    let seen = seen.lock().expect("no panic").clone();
    (seen, served.is_ok())
}
