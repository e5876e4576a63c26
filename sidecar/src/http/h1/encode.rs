//! Heads to bytes.

use bytes::{BufMut, BytesMut};

use super::Close;
use crate::http::{Headers, RequestHead, ResponseHead, Version};

pub(super) fn request(out: &mut BytesMut, head: &RequestHead, chunked: bool) {
    out.reserve(head.method.len() + head.path.len() + head.headers.wire_bytes() + 64);
    out.put_slice(&head.method);
    out.put_u8(b' ');
    out.put_slice(&head.path);
    out.put_slice(b" HTTP/1.1\r\n");
    fields(out, &head.headers);
    if chunked && !head.headers.contains("transfer-encoding") {
        out.put_slice(b"transfer-encoding: chunked\r\n");
    }
    if head.upgrade && !head.headers.contains("connection") {
        out.put_slice(b"connection: Upgrade\r\n");
    }
    out.put_slice(b"\r\n");
}

pub(super) fn response(out: &mut BytesMut, head: &ResponseHead, version: Version, chunked: bool, close: Close) {
    out.put_slice(if version == Version::Http10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    let status = head.status.clamp(100, 999);
    for divisor in [100, 10, 1] {
        let digit = u8::try_from(status / divisor % 10).unwrap_or(0);
        out.put_u8(b'0' + digit);
    }
    out.put_u8(b' ');
    if head.reason.is_empty() {
        // What came from HTTP/1 without a phrase keeps none; only HTTP/2 and local answers have the standard one.
        if head.version == Version::Http2 {
            out.put_slice(reason(head.status).as_bytes());
        }
    } else {
        out.put_slice(&head.reason);
    }
    out.put_slice(b"\r\n");
    fields(out, &head.headers);
    if chunked && !head.headers.contains("transfer-encoding") {
        out.put_slice(b"transfer-encoding: chunked\r\n");
    }
    match close {
        Close::Stay => {}
        Close::KeepAlive => out.put_slice(b"connection: keep-alive\r\n"),
        Close::Close => out.put_slice(b"connection: close\r\n"),
    }
    out.put_slice(b"\r\n");
}

pub(super) fn fields(out: &mut BytesMut, headers: &Headers) {
    for field in headers {
        out.put_slice(&field.name);
        out.put_slice(b": ");
        out.put_slice(&field.value);
        out.put_slice(b"\r\n");
    }
}

/// `<hex size>\r\n`.
pub(super) fn chunk_head(buffer: &mut [u8; 18], size: usize) -> &[u8] {
    let mut at = 16;
    buffer[16..].copy_from_slice(b"\r\n");
    let mut left = size;
    loop {
        at -= 1;
        buffer[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
        if left == 0 || at == 0 {
            return &buffer[at..];
        }
    }
}

/// Standard reason phrase of a status.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}
