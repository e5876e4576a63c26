//! HTTP/1: what the codec accepts, hyper reads in the same way, as it came and as it is forwarded.

use std::future::poll_fn;

use bytes::Bytes;
use weft_sidecar::http::body::Frame;
use weft_sidecar::http::h1::{self, Conn, Framing, Upgrade};
use weft_sidecar::http::{Headers, Version};
use weft_sidecar::io::Io;

use crate::oracle::{self, Fields, Understood};
use crate::socket::{MOST_BYTES, block_on, connection};

/// Fields that belong to a hop, so that the codec may take them out or rewrite them.
const HOP: [&str; 4] = ["connection", "upgrade", "te", "host"];

/// Heads: whatever is accepted is written in one form, which reads the same again, here and in hyper.
pub fn http1_head(data: &[u8]) {
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
    // What came without Host gets one on the request path, and CONNECT another target.
    if !first.head.headers.contains("host") || first.head.path.is_empty() {
        return;
    }
    let second = h1::parse_request(&written).expect("what was accepted is accepted again");
    assert_eq!(first.head.method, second.head.method);
    assert_eq!(first.head.path, second.head.path);
    assert_eq!(first.head.headers, second.head.headers);
    assert_eq!(first.framing, second.framing);
    if let Framing::None | Framing::Length(0) = first.framing {
        let (seen, error) = block_on(oracle::requests(&written));
        let Some(seen) = agreed(&[text(&first.head.method)], &seen, error.as_deref(), &written).pop() else {
            return;
        };
        assert!(
            seen.body.is_empty() && seen.target.1.as_bytes() == first.head.path,
            "{seen:?}"
        );
    }
}

/// Streams of requests: hyper reads them in the same way, as they came and as they are forwarded.
pub fn http1_requests(data: &[u8]) {
    if data.len() > MOST_BYTES {
        return;
    }
    block_on(async {
        let (mut accounted, forwarded, forwardable) = read_requests(data).await;
        let (seen, error) = oracle::requests(data).await;
        compare(&accounted, &seen, error.as_deref(), data);
        let (seen, error) = oracle::requests(&forwarded).await;
        assert!(seen.len() <= accounted.len(), "{seen:?}\n{accounted:?}");
        // Trailers are for who asks for them, and a target leaves in origin form.
        for ours in &mut accounted {
            ours.trailers.clear();
            ours.target.0.clear();
        }
        accounted.truncate(forwardable);
        compare(&accounted, &seen, error.as_deref(), &forwarded);
    });
}

/// Responses: hyper reads them in the same way.
pub fn http1_response(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    if data.len() > MOST_BYTES {
        return;
    }
    let to_head = first & 1 == 1;
    block_on(async {
        let Some(ours) = read_response(data, to_head).await else {
            return;
        };
        match oracle::response(data, to_head).await {
            Ok(theirs) => same(&ours, &theirs),
            Err(e) => panic!("hyper: {e}\n{ours:?}"),
        }
    });
}

/// What the codec makes of a stream of requests, until it would close the connection; what is forwarded of it, and how
/// many of them that are.
async fn read_requests(data: &[u8]) -> (Vec<Understood>, Bytes, usize) {
    let (stream, _peer) = connection(data).await;
    let mut conn = Conn::new(Io::from(stream));
    let mut accounted = Vec::new();
    let mut forwarded = Vec::new();
    let mut forwardable = 0;
    while let Ok(Some(request)) = poll_fn(|cx| conn.poll_request(cx)).await {
        let Some((body, trailers)) = read_body(&mut conn).await else {
            let next = poll_fn(|cx| conn.poll_request(cx)).await;
            assert!(
                !matches!(next, Ok(Some(_))),
                "a request after a body that broke: {next:?}"
            );
            break;
        };
        let head = &request.head;
        let authority = if request.absolute || *head.method == *b"CONNECT" {
            text(&head.authority)
        } else {
            String::new()
        };
        accounted.push(Understood {
            start: text(&head.method),
            target: (authority, text(&head.path)),
            fields: lower(&head.headers),
            body: body.clone(),
            trailers,
        });
        // The request path gives a Host to what came without, and has answers of its own for the others.
        let ends = head.upgrade || *head.method == *b"CONNECT" || request.upgrade != Upgrade::None;
        if ends || head.authority.is_empty() {
            break;
        }
        forwardable += 1;
        write(
            &mut forwarded,
            &request.head,
            request.framing == Framing::Chunked,
            &body,
        );
        if !request.keep_alive || request.head.version == Version::Http10 {
            break;
        }
    }
    (accounted, forwarded.into(), forwardable)
}

fn write(out: &mut Vec<u8>, head: &weft_sidecar::http::RequestHead, chunked: bool, body: &[u8]) {
    out.extend_from_slice(&h1::write_request(head, chunked));
    if !chunked {
        out.extend_from_slice(body);
        return;
    }
    if !body.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// What the codec makes of the first final response; `None` when it refuses it.
async fn read_response(data: &[u8], to_head: bool) -> Option<Understood> {
    let (stream, _peer) = connection(data).await;
    let mut conn = Conn::new(Io::from(stream));
    loop {
        let response = poll_fn(|cx| conn.poll_response(cx, to_head)).await.ok()?;
        if response.head.status < 200 && response.head.status != 101 {
            continue;
        }
        let (body, trailers) = read_body(&mut conn).await?;
        return Some(Understood {
            start: response.head.status.to_string(),
            target: Default::default(),
            fields: lower(&response.head.headers),
            body,
            trailers,
        });
    }
}

/// Body and trailers, unless they break off.
async fn read_body(conn: &mut Conn) -> Option<(Vec<u8>, Fields)> {
    let mut body = Vec::new();
    let mut trailers = Fields::new();
    loop {
        match poll_fn(|cx| conn.poll_body(cx)).await {
            Ok(Some(Frame::Data(data))) => {
                assert!(!data.is_empty());
                body.extend_from_slice(&data);
            }
            Ok(Some(Frame::Trailers(found))) => trailers = lower(&found),
            Ok(None) => return Some((body, trailers)),
            Err(_) => return None,
        }
    }
}

/// What hyper read is what was accounted for; it may stop sooner where the proxy is more lenient on purpose.
fn compare(accounted: &[Understood], seen: &[Understood], error: Option<&str>, sent: &[u8]) {
    let starts: Vec<String> = accounted.iter().map(|ours| ours.start.clone()).collect();
    let agreed = agreed(&starts, seen, error, sent);
    for (ours, theirs) in accounted.iter().zip(&agreed) {
        same(ours, theirs);
        assert_eq!(ours.target, theirs.target);
    }
}

/// The messages that both read, where the other one had a reason to stop.
fn agreed(ours: &[String], theirs: &[Understood], error: Option<&str>, sent: &[u8]) -> Vec<Understood> {
    if theirs.len() < ours.len() {
        // Targets that are no URI by RFC 3986 pass, and so do several spaces in a request line (SM-141).
        let lenient = match error {
            Some("invalid URI") => true,
            Some("invalid HTTP version parsed") => sent.windows(2).any(|w| w == b"  "),
            _ => false,
        };
        assert!(lenient, "hyper reads {} of {ours:?}: {error:?}", theirs.len());
    }
    theirs[..theirs.len().min(ours.len())].to_vec()
}

/// Two readers agree on a message.
fn same(ours: &Understood, theirs: &Understood) {
    assert_eq!(ours.start, theirs.start);
    assert_eq!(ours.body, theirs.body);
    assert!(invents_nothing(&ours.fields, &theirs.fields), "{ours:?}\n{theirs:?}");
    assert_eq!(sorted(&ours.trailers), sorted(&theirs.trailers));
}

/// Every field of ours that the hop did not change is a field of theirs.
fn invents_nothing(ours: &Fields, theirs: &Fields) -> bool {
    let count = |fields: &Fields, field| fields.iter().filter(|other| *other == field).count();
    let mut kept = ours.iter().filter(|(name, _)| !HOP.contains(&name.as_str()));
    kept.all(|field| count(ours, field) <= count(theirs, field))
}

fn sorted(fields: &Fields) -> Fields {
    let mut fields = fields.clone();
    fields.sort();
    fields
}

fn lower(headers: &Headers) -> Fields {
    let field = |field: &weft_sidecar::http::Field| (text(&field.name).to_ascii_lowercase(), field.value.to_vec());
    headers.iter().map(field).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
