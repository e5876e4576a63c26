//! One exchange over HTTP/2, gRPC among them.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderName, HeaderValue, Request};

use super::{Call, Dial, Failure, Reply, Scheme};
use crate::http1::Headers;
use crate::serve::http2::{pairs, send_all, unframed};
use crate::stream::Buffered;

/// A connection whose streams are requests.
#[derive(Clone)]
pub(crate) struct Connection(SendRequest<Bytes>);

impl Connection {
    /// Starts HTTP/2 with prior knowledge; a task of its own drives the connection until all handles are gone.
    pub(crate) async fn open(dial: &Dial) -> Result<Self, Failure> {
        Self::start(dial.open().await?).await
    }

    /// The same on a connection that is open already.
    pub(crate) async fn start(conn: Buffered) -> Result<Self, Failure> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 21)
            .max_header_list_size(1 << 20)
            .handshake::<_, Bytes>(conn)
            .await
            .map_err(|source| Failure::Http2 { source })?;
        // The streams see the connection's failure as theirs.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(send))
    }

    /// Sends a request and reads the whole response.
    pub(crate) async fn exchange(&self, dial: &Dial, call: &Call) -> Result<Reply, Failure> {
        let http2 = |source| Failure::Http2 { source };
        let grpc = dial.target.scheme == Scheme::Grpc;
        let request = request(dial, call, grpc)?;
        let body = if grpc { framed(&call.body) } else { call.body.clone() };
        let mut send = self.0.clone().ready().await.map_err(http2)?;
        let (response, mut stream) = send.send_request(request, body.is_empty()).map_err(http2)?;
        if !body.is_empty() {
            // A server may answer before it has read: its answer counts, not the body that it did not want.
            if send_all(&mut stream, &body).await.is_ok() {
                let _ = stream.send_data(Bytes::new(), true);
            }
        }
        let (head, mut receive) = response.await.map_err(http2)?.into_parts();
        let mut reply = Reply {
            version: "HTTP/2",
            status: head.status.as_u16(),
            headers: Headers(pairs(&head.headers)),
            transfer: "none",
            reusable: true,
            ..Reply::default()
        };
        while let Some(piece) = receive.data().await {
            match piece {
                Ok(piece) => {
                    // The window is the connection's: a connection that has failed says so at the next piece.
                    let _ = receive.flow_control().release_capacity(piece.len());
                    reply.body.extend_from_slice(&piece);
                }
                Err(source) => {
                    reply.broken = Some(http2(source));
                    return Ok(reply);
                }
            }
        }
        match receive.trailers().await {
            Ok(trailers) => reply.trailers = trailers.map(|map| Headers(pairs(&map))).unwrap_or_default(),
            Err(source) => reply.broken = Some(http2(source)),
        }
        if grpc {
            reply.body = unframed(&reply.body).0;
        }
        Ok(reply)
    }
}

fn request(dial: &Dial, call: &Call, grpc: bool) -> Result<Request<()>, Failure> {
    let invalid = |error: String| Failure::Send {
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, error),
    };
    let authority = call
        .host
        .as_deref()
        .filter(|host| !host.is_empty())
        .unwrap_or(&dial.target.authority);
    let uri = format!("{}://{authority}{}", dial.target.scheme.of_uri(), call.path);
    let mut request = Request::builder()
        .method(if grpc && call.method == "GET" {
            "POST"
        } else {
            call.method.as_str()
        })
        .uri(uri)
        .version(http::Version::HTTP_2)
        .body(())
        .map_err(|error| invalid(error.to_string()))?;
    let headers = request.headers_mut();
    if grpc {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
    }
    for (name, value) in &call.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid(format!("header name {name:?}")))?;
        let value = HeaderValue::from_str(value).map_err(|_| invalid(format!("value of header {name}")))?;
        headers.append(name, value);
    }
    Ok(request)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}
