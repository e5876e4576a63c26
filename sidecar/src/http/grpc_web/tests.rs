use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::http::body::{BodyError, Frame};
use crate::http::{Headers, ResponseHead};

// spec: SM-026
#[test]
fn media_types_of_grpc_web_are_told_from_others() {
    for (value, coding, format) in [
        ("application/grpc-web", Coding::Binary, ""),
        ("application/grpc-web+proto", Coding::Binary, "+proto"),
        ("Application/gRPC-Web+json; charset=utf-8", Coding::Binary, "+json"),
        ("application/grpc-web-text", Coding::Text, ""),
        ("application/grpc-web-TEXT+proto", Coding::Text, "+proto"),
        ("application/grpc-web-text-base64", Coding::Text, ""),
        (" application/grpc-web-text ;q=1", Coding::Text, ""),
    ] {
        assert_eq!(
            media_type(value.as_bytes()),
            Some((coding, format.as_bytes())),
            "{value}"
        );
    }
    for value in [
        "",
        "application/grpc",
        "application/grpc+proto",
        "application/grpc-webx",
        "application/grpc-web-texts",
        "application/grpc-we",
        "text/plain",
    ] {
        assert_eq!(media_type(value.as_bytes()), None, "{value}");
    }
}

fn call(sends: Coding, wants: Coding, format: &'static str) -> Call {
    let format = Bytes::from_static(format.as_bytes());
    Call { sends, wants, format }
}

// spec: SM-026
#[test]
fn only_responses_of_grpc_become_others() {
    let of = |call: &Call, content_type: &str| {
        let mut head = ResponseHead::new(200);
        head.headers.push("content-type", content_type.to_owned());
        head.headers.push("content-length", "3");
        let body = Body::Full(Bytes::from_static(b"abc"));
        let response = call.response(Response { head, body });
        let text = |name| {
            let value = response.head.headers.get(name)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        (text("content-type").expect("one"), text("content-length"))
    };
    let binary = call(Coding::Text, Coding::Binary, "");
    let text = call(Coding::Binary, Coding::Text, "+json");
    let becomes = |call, from, to: &str| assert_eq!(of(call, from), (to.to_owned(), None), "{from}");
    becomes(&binary, "application/grpc", "application/grpc-web+proto");
    becomes(&binary, "application/grpc+thrift", "application/grpc-web+thrift");
    becomes(&binary, "application/grpc; x=y", "application/grpc-web+proto");
    becomes(&text, "application/grpc", "application/grpc-web-text+json");
    becomes(&text, "application/grpc+proto;x", "application/grpc-web-text+proto");
    for other in ["text/html", "application/grpc-status", "application/grpc-web+proto"] {
        assert_eq!(of(&text, other), (other.to_owned(), Some("3".into())));
    }
}

fn next(body: &mut Encoded) -> Option<Bytes> {
    let mut cx = Context::from_waker(Waker::noop());
    match body.poll_frame(&mut cx) {
        Poll::Ready(Ok(Some(Frame::Data(data)))) => Some(data),
        Poll::Ready(Ok(None)) => None,
        other => panic!("{other:?}"),
    }
}

// spec: SM-026
#[test]
fn each_piece_of_a_text_stands_for_itself() {
    let mut body = Encoded::new(Body::Full(Bytes::from_static(b"\0\0\0\0\x01x")), true);
    assert_eq!(next(&mut body).as_deref(), Some(&b"AAAAAAF4"[..]));
    assert_eq!((next(&mut body), body.messages()), (None, 1));
    assert!(body.is_end());
}

// spec: SM-026
#[test]
fn trailers_become_lines_with_names_in_lower_case() {
    let mut trailers = Headers::default();
    trailers.push("Grpc-Status", "5");
    trailers.push("grpc-message", "not%20there");
    trailers.push("x-bin", "AAE=");
    // What nobody may act on does not pass in this form either (BYD-070).
    trailers.push("Set-Cookie", "a=b");
    let frame = response::frame(&crate::http::trailers::passable(&trailers)).expect("short");
    let lines = b"grpc-status:5\r\ngrpc-message:not%20there\r\nx-bin:AAE=\r\n";
    assert_eq!(frame[..5], [0x80, 0, 0, 0, u8::try_from(lines.len()).expect("short")]);
    assert_eq!(frame[5..], lines[..]);
}

fn read(text: &'static [u8]) -> (Result<Vec<u8>, BodyError>, Rc<Meter>) {
    let meter = Rc::new(Meter::default());
    let mut body = Decoded::new(Body::Full(Bytes::from_static(text)), meter.clone());
    let mut out = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let result = loop {
        let mut frame = std::pin::pin!(poll_fn(|cx| body.poll_frame(cx)));
        match frame.as_mut().poll(&mut cx) {
            Poll::Ready(Ok(Some(Frame::Data(data)))) => out.extend_from_slice(&data),
            Poll::Ready(Ok(None)) => break Ok(out),
            Poll::Ready(Err(error)) => break Err(error),
            other => panic!("{other:?}"),
        }
    };
    // What was said once is said again.
    assert_eq!(result.is_err(), matches!(body.poll_frame(&mut cx), Poll::Ready(Err(_))));
    (result, meter)
}

// spec: SM-026
#[test]
fn a_text_that_breaks_off_or_is_none_is_an_error() {
    let (read_all, meter) = read(b"AAAAAAF4");
    assert_eq!(read_all.expect("base64"), b"\0\0\0\0\x01x");
    assert_eq!(meter.coding.get(), 2);
    for text in [&b"AAAAAAF"[..], b"A", b"AAAA AAA", b"AA=A", b"====", b"AAA-", b"AA\r\n"] {
        let error = read(text).0.expect_err("no base64");
        assert!(matches!(error, BodyError::Coding(BAD_TEXT)), "{text:?}");
    }
}

proptest! {
    // spec: SM-026
    #[test]
    fn a_text_is_the_same_wherever_it_is_cut(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        cut in 1..9usize,
    ) {
        let text: String = pieces.iter().map(|piece| data_encoding::BASE64.encode(piece)).collect();
        let mut decoder = Decoder::default();
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(cut) {
            out.append(&mut decoder.decode(part).expect("base64"));
        }
        prop_assert!(decoder.is_complete());
        prop_assert_eq!(out, pieces.concat());
    }
}
