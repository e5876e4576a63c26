//! hyper, as another reader of HTTP/1.

use std::cell::RefCell;
use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// More fields than the proxy takes.
const MOST_FIELDS: usize = 200;

/// Room for every input, so that neither side waits for the other.
const PIPE_BYTES: usize = 1 << 20;

/// Names, in lower case, with their values.
pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// A message as its reader understood it, to its very end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Understood {
    /// Method of a request, status of a response.
    pub(crate) start: String,
    /// Authority of an absolute target and path of a request.
    pub(crate) target: (String, String),
    pub(crate) fields: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
}

/// The requests that hyper understands, and why it read no further, if not because they ended.
pub(crate) async fn requests(bytes: &[u8]) -> (Vec<Understood>, Option<String>) {
    let seen = RefCell::new(Vec::new());
    let (mut client, server) = tokio::io::duplex(PIPE_BYTES);
    let service = service_fn(async |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        if let Some((body, trailers)) = whole(body).await {
            let authority = parts.uri.authority().map(ToString::to_string);
            let path = parts.uri.path_and_query().map(ToString::to_string);
            seen.borrow_mut().push(Understood {
                start: parts.method.to_string(),
                target: (authority.unwrap_or_default(), path.unwrap_or_default()),
                fields: fields(&parts.headers),
                body,
                trailers,
            });
        }
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .max_headers(MOST_FIELDS)
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let peer = async {
        send(&mut client, bytes).await;
        // Its answers.
        let _ = client.read_to_end(&mut Vec::new()).await;
    };
    let (served, ()) = tokio::join!(connection, peer);
    let seen = seen.borrow().clone();
    (seen, served.err().map(|e| e.to_string()))
}

/// The response that hyper understands as the answer to GET, or to HEAD.
pub(crate) async fn response(bytes: &[u8], to_head: bool) -> Result<Understood, String> {
    let (client, mut server) = tokio::io::duplex(PIPE_BYTES);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(MOST_FIELDS)
        .handshake(TokioIo::new(client))
        .await
        .map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(if to_head { "HEAD" } else { "GET" })
        .header("host", "a")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let peer = async {
        // What comes before the request answers nothing.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match server.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        send(&mut server, bytes).await;
    };
    let answer = async {
        let (parts, body) = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?
            .into_parts();
        let (body, trailers) = whole(body).await.ok_or("the body breaks")?;
        Ok(Understood {
            start: parts.status.as_str().to_owned(),
            target: Default::default(),
            fields: fields(&parts.headers),
            body,
            trailers,
        })
    };
    let (answer, _, ()) = tokio::join!(answer, connection.with_upgrades(), peer);
    answer
}

async fn send(to: &mut DuplexStream, bytes: &[u8]) {
    // The reader may have gone.
    let _ = to.write_all(bytes).await;
    let _ = to.shutdown().await;
}

/// Body and trailers, unless they break off.
async fn whole(body: Incoming) -> Option<(Vec<u8>, Fields)> {
    let body = body.collect().await.ok()?;
    let trailers = body.trailers().map(fields).unwrap_or_default();
    Some((body.to_bytes().to_vec(), trailers))
}

fn fields(map: &HeaderMap) -> Fields {
    let field = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().to_owned(), value.as_bytes().to_vec())
    };
    map.iter().map(field).collect()
}
