//! Streams of requests: what is accounted for, written as it is forwarded, is exactly what hyper reads.
#![no_main]

use std::future::poll_fn;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{Understood, block_on, connection, hyper_reads};
use weft_sidecar::http::body::Frame;
use weft_sidecar::http::h1::{self, Conn, Framing};
use weft_sidecar::io::Io;

fuzz_target!(|data: &[u8]| {
    if data.len() > 16 * 1024 {
        return;
    }
    block_on(async {
        let (stream, _peer) = connection(data).await;
        let mut conn = Conn::new(Io::from(stream));
        let mut accounted = Vec::new();
        let mut forwarded = Vec::new();
        while let Ok(Some(request)) = poll_fn(|cx| conn.poll_request(cx)).await {
            let mut body = Vec::new();
            let whole = loop {
                match poll_fn(|cx| conn.poll_body(cx)).await {
                    Ok(Some(Frame::Data(data))) => body.extend_from_slice(&data),
                    Ok(Some(Frame::Trailers(_))) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            if !whole {
                break;
            }
            let has_host = !request.head.authority.is_empty() && request.head.headers.contains("host");
            if !has_host || request.head.upgrade || request.awaits_continue || *request.head.method == *b"CONNECT" {
                break;
            }
            let chunked = request.framing == Framing::Chunked;
            forwarded.extend_from_slice(&h1::write_request(&request.head, chunked));
            if chunked {
                if !body.is_empty() {
                    forwarded.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
                    forwarded.extend_from_slice(&body);
                    forwarded.extend_from_slice(b"\r\n");
                }
                forwarded.extend_from_slice(b"0\r\n\r\n");
            } else {
                forwarded.extend_from_slice(&body);
            }
            accounted.push(Understood {
                method: request.head.method.to_vec(),
                target: request.head.path.to_vec(),
                body,
            });
        }
        let (seen, _) = hyper_reads(&Bytes::from(forwarded)).await;
        assert!(seen.len() <= accounted.len(), "{seen:?} {accounted:?}");
        for (seen, accounted) in seen.iter().zip(&accounted) {
            assert_eq!(seen.method, accounted.method);
            assert_eq!(seen.body, accounted.body);
        }
    });
});
