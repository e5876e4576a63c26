//! Paths: normal forms are normal, and no dot segment survives.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weft_bundle::wire::PathNormalization;
use weft_sidecar::http::path::normalize;

fuzz_target!(|data: &[u8]| {
    let path = Bytes::from([b"/", data].concat());
    if path.iter().any(|b| *b <= 0x20 || *b >= 0x7f) {
        return;
    }
    for mode in [
        PathNormalization::None,
        PathNormalization::Base,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ] {
        let Ok(once) = normalize(&path, mode) else { continue };
        if mode == PathNormalization::None {
            assert_eq!(once, path);
            continue;
        }
        let end = once.iter().position(|b| *b == b'?').unwrap_or(once.len());
        assert!(once[..end].split(|b| *b == b'/').all(|part| part != b"." && part != b".."), "{once:?}");
        if mode == PathNormalization::Base {
            assert_eq!(normalize(&once, mode).ok(), Some(once.clone()), "{path:?}");
        }
    }
});
