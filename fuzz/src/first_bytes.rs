//! The first bytes of a connection.

use bytes::BytesMut;
use weft_sidecar::detect::{self, Among, Verdict, judge};
use weft_sidecar::io::Io;

use crate::socket::{MOST_BYTES, block_on, connection};

/// A verdict, once given, is never another one when more bytes come.
pub fn detection(data: &[u8]) {
    for among in [Among::Tls, Among::Http, Among::ClientTlsOrHttp] {
        let mut decided = Verdict::Undecided;
        for end in 0..=data.len().min(256) {
            let verdict = judge(&data[..end], among);
            if decided != Verdict::Undecided {
                assert_eq!(verdict, decided, "{end}");
            }
            decided = verdict;
        }
    }
}

/// A ClientHello is read or refused, and nothing of what was read is lost.
pub fn client_hello(data: &[u8]) {
    if data.len() > MOST_BYTES {
        return;
    }
    block_on(async {
        let (stream, _peer) = connection(data).await;
        let mut io = Io::from(stream);
        let mut buffer = BytesMut::new();
        if let Ok(hello) = detect::hello(&mut io, &mut buffer).await
            && let Some(name) = hello.server_name
        {
            assert!(!name.is_empty() && name == name.to_ascii_lowercase());
        }
        assert!(data.starts_with(&buffer));
    });
}
