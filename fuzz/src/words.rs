//! Parts of messages that are more than text.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE64;
use weft_bundle::wire::PathNormalization;
use weft_sidecar::http::grpc_web::Decoder;
use weft_sidecar::http::metadata::Peers;
use weft_sidecar::http::path::normalize;

/// Normal forms are normal, and no dot segment survives.
pub fn path_normalization(data: &[u8]) {
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
        let mut segments = once[..end].split(|b| *b == b'/');
        assert!(segments.all(|part| part != b"." && part != b".."), "{once:?}");
        assert_eq!(normalize(&once, mode).ok(), Some(once.clone()), "{mode:?} {path:?}");
    }
}

/// What a peer says of itself is read or not; its verified id wins, and it is the same when asked again.
pub fn peer_metadata(data: &[u8]) {
    let peers = Peers::default();
    let said = Bytes::copy_from_slice(data);
    let _ = peers.get(&said, None);
    let id: Arc<str> = "spiffe://cluster.local/ns/app/sa/echo".into();
    let first = peers.get(&said, Some(&id));
    if let Some(peer) = &first {
        assert_eq!(
            (peer.namespace.as_str(), peer.service_account.as_str()),
            ("app", "echo")
        );
    }
    assert_eq!(first, peers.get(&said, Some(&id)));
}

/// A text is read to its end or refused, wherever it is cut, and is what stands for what was read of it.
pub fn grpc_web_text(data: &[u8]) {
    let Some((&first, text)) = data.split_first() else {
        return;
    };
    let read = |cut: usize| {
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for part in text.chunks(cut) {
            out.append(&mut decoder.decode(part).ok()?);
        }
        decoder.is_complete().then_some(out)
    };
    let cut = usize::from(first % 16) + 1;
    let whole = read(text.len().max(1));
    assert_eq!(read(cut), whole, "{cut}");
    if let Some(bytes) = whole
        && !text[..text.len().saturating_sub(2)].contains(&b'=')
    {
        assert_eq!(BASE64.encode(&bytes).as_bytes(), text);
    }
}
