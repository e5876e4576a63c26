//! ClientHello: read or refused, never a panic, and nothing of what was read is lost.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use weft_fuzz::{block_on, connection};
use weft_sidecar::detect;
use weft_sidecar::io::Io;

fuzz_target!(|data: &[u8]| {
    if data.len() > 32 * 1024 {
        return;
    }
    block_on(async {
        let (stream, _peer) = connection(data).await;
        let mut io = Io::from(stream);
        let mut buffer = BytesMut::new();
        if let Ok(hello) = detect::hello(&mut io, &mut buffer).await {
            assert!(buffer.ends_with(&hello.rest));
            if let Some(name) = hello.server_name {
                assert!(!name.is_empty() && name == name.to_ascii_lowercase());
            }
        }
        assert!(data.starts_with(&buffer));
    });
});
