//! Heads: whatever is accepted is written in one form, which reads the same again, here and in hyper.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{block_on, hyper_reads};
use weft_sidecar::http::h1::{self, Framing, Upgrade};

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::from([data, b"\r\n\r\n"].concat());
    let _ = h1::parse_response(&bytes, data.first().is_some_and(|b| b & 1 == 1));
    let _ = h1::parse_trailers(&bytes);
    let _ = h1::parse_chunk_size(data);
    let Ok(first) = h1::parse_request(&bytes) else { return };
    assert!(h1::is_authority(&first.head.authority));
    if first.framing == Framing::Chunked || first.upgrade != Upgrade::None {
        return;
    }
    let written = h1::write_request(&first.head, false);
    // HTTP/1.0 without Host and other versions leave as HTTP/1.1, which the request path gives a Host.
    let Ok(second) = h1::parse_request(&written) else {
        assert!(first.head.authority.is_empty() || first.head.path.is_empty() || !first.head.headers.contains("host"));
        return;
    };
    assert_eq!(first.head.method, second.head.method);
    assert_eq!(first.head.path, second.head.path);
    assert_eq!(first.head.headers, second.head.headers);
    assert_eq!(first.framing, second.framing);
    if let Framing::None | Framing::Length(0) = first.framing {
        let (seen, _) = block_on(hyper_reads(&written));
        // hyper may refuse a target that is no URI; it must not see two requests, or another one.
        assert!(seen.len() <= 1, "{seen:?}");
        if let Some(seen) = seen.first() {
            assert_eq!(seen.method, first.head.method);
            assert!(seen.body.is_empty());
        }
    }
});
