//! HTTP/2 connections of clients.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    HEAD_LIMIT, Handler, begin, grpc_status, note_coding, note_grpc, note_meter, note_response, while_granted,
};
use crate::exchange::{Downstream, Exchange, Flags};
use crate::http::body::{BodyError, Frame};
use crate::http::replay::{Messages, Meter};
use crate::http::rescue::{self, Audience, Failure};
use crate::http::{Body, h2 as http2};
use crate::overload::Pressure;
use crate::worker::Worker;

/// Serves an HTTP/2 connection: a task for each stream, as streams run side by side.
pub async fn http2(worker: Rc<Worker>, io: crate::io::Io, downstream: Arc<Downstream>, handler: Handler) {
    let handshake = http2::server_builder().handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) = timeout(HEAD_LIMIT, handshake).await else {
        return;
    };
    let mut leaving = pin!(handler.leaving(&worker));
    let mut announced = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => Some(accepted),
            // Then it ends with its last stream.
            () = &mut leaving, if !announced => None,
        };
        match accepted {
            None => {
                announced = true;
                connection.graceful_shutdown();
            }
            Some(None | Some(Err(_))) => return,
            Some(Some(Ok((request, respond)))) => {
                let worker = worker.clone();
                let (downstream, handler) = (downstream.clone(), handler.clone());
                tokio::task::spawn_local(async move {
                    exchange_http2(&worker, &downstream, &handler, request, respond).await;
                });
            }
        }
    }
}

async fn exchange_http2(
    worker: &Rc<Worker>,
    downstream: &Arc<Downstream>,
    handler: &Handler,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (parts, stream) = request.into_parts();
    let head = http2::from_request(&parts);
    let to_head = *head.method == *b"HEAD";
    let mut exchange = Box::new(begin(worker, downstream, &head, head.headers.wire_bytes()));
    let meter = Rc::new(Meter::default());
    let body = if stream.is_end_stream() {
        Body::Empty
    } else {
        Body::H2(Box::new(stream))
    };
    let response = if worker.shared.overload.pressure() == Pressure::Critical {
        let audience = handler.audience(downstream);
        Some(rescue::rescue(Failure::overflow(), &mut exchange, audience))
    } else if let Some(status) = http2::refusal(&parts, &head) {
        let failure = Failure::bad_request(status, "http2.invalid_request");
        Some(rescue::rescue(failure, &mut exchange, Audience::Outside))
    } else {
        let handled = handler.handle(worker, head, body, &meter, &mut exchange);
        let mut handled = pin!(handled);
        poll_fn(|cx| {
            if let Poll::Ready(response) = handled.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            respond.poll_reset(cx).map(|_| None)
        })
        .await
    };
    // Dropping the record notes that the client gave up.
    let Some(mut response) = response else { return };
    note_response(worker, &mut exchange, &response.head);
    let end = to_head || response.body.is_end();
    let Ok(mut stream) = respond.send_response(http2::to_response(&response.head), end) else {
        return;
    };
    let messages = Messages::default();
    let asked = exchange.asked.take();
    let answered = answer(&mut stream, &mut response.body, end, &messages, &mut exchange);
    let answered = while_granted(worker, downstream, handler, asked.as_ref(), answered).await;
    let is_whole = match answered {
        Ok(Answered::Whole) => true,
        Ok(Answered::Broken) => {
            stream.send_reset(h2::Reason::INTERNAL_ERROR);
            false
        }
        Ok(Answered::Left) => return,
        Err(denied) => {
            exchange.details = Some(denied);
            // What gRPC takes for a lack of permission.
            stream.send_reset(h2::Reason::INADEQUATE_SECURITY);
            false
        }
    };
    note_grpc(&mut exchange, &response.body, &messages);
    note_meter(&mut exchange, &meter);
    if is_whole && exchange.grpc && exchange.grpc_status.is_none() {
        exchange.grpc_status = Some(rescue::grpc_status(exchange.status));
    }
    exchange.finish();
}

/// How far a body was sent.
enum Answered {
    Whole,
    /// It broke off.
    Broken,
    /// The client has gone.
    Left,
}

async fn answer(
    stream: &mut h2::SendStream<Bytes>,
    body: &mut Body,
    end: bool,
    messages: &Messages,
    exchange: &mut Exchange,
) -> Answered {
    let mut done = end;
    while !done {
        let frame = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            body.poll_frame(cx).map(Some)
        })
        .await;
        match frame {
            None => return Answered::Left,
            Some(Ok(Some(Frame::Data(mut data)))) => {
                exchange.bytes_sent += data.len() as u64;
                if exchange.grpc {
                    messages.see(&data);
                }
                let sent = poll_fn(|cx| {
                    let sent = http2::poll_send(stream, &mut data, cx);
                    if sent.is_pending() {
                        if stream.poll_reset(cx).is_ready() {
                            return Poll::Ready(false);
                        }
                        body.poll_progress(cx);
                    }
                    sent
                })
                .await;
                if !sent {
                    return Answered::Left;
                }
            }
            Some(Ok(Some(Frame::Trailers(trailers)))) => {
                if exchange.grpc {
                    exchange.grpc_status = grpc_status(trailers.get("grpc-status")).or(exchange.grpc_status);
                }
                let _ = stream.send_trailers(http2::to_map(&crate::http::trailers::passable(&trailers)));
                done = true;
            }
            Some(Ok(None)) => {
                let _ = stream.send_data(Bytes::new(), true);
                done = true;
            }
            Some(Err(error)) => {
                note_coding(exchange, &error);
                exchange.flags |= match error {
                    BodyError::Timeout => Flags::UT,
                    BodyError::Coding(_) => Flags::NONE,
                    BodyError::Io(_) | BodyError::Malformed(_) | BodyError::Http2(_) => Flags::UC,
                };
                return Answered::Broken;
            }
        }
    }
    Answered::Whole
}
