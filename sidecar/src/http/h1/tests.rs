use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Runs a connection whose peer sends the pieces one after the other, each in a segment of its own.
fn with_pieces<T>(pieces: &[&[u8]], run: impl AsyncFnOnce(&mut Conn) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let mut peer = TcpStream::connect(listener.local_addr().expect("address"))
            .await
            .expect("connected");
        peer.set_nodelay(true).expect("option");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut conn = Conn::new(Io::from(stream));
        let write = async {
            for piece in pieces {
                peer.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
            peer.shutdown().await.expect("half-closed");
        };
        tokio::join!(write, run(&mut conn)).1
    })
}

/// What a body is, or why it breaks; and whether the connection reads another request after it.
fn read_body(sent: &[u8]) -> (Result<Vec<u8>, String>, bool) {
    with_pieces(&[sent], async |conn| {
        let first = std::future::poll_fn(|cx| conn.poll_request(cx)).await;
        assert!(matches!(first, Ok(Some(_))), "{first:?}");
        let mut body = Vec::new();
        let body = loop {
            match std::future::poll_fn(|cx| conn.poll_body(cx)).await {
                Ok(Some(Frame::Data(data))) => body.extend_from_slice(&data),
                Ok(Some(Frame::Trailers(_))) => {}
                Ok(None) => break Ok(body),
                Err(e) => break Err(e.to_string()),
            }
        };
        let next = std::future::poll_fn(|cx| conn.poll_request(cx)).await;
        (body, matches!(next, Ok(Some(_))))
    })
}

/// All messages of a connection: method and path of each request, with its body.
async fn read_all(conn: &mut Conn) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    while let Ok(Some(request)) = std::future::poll_fn(|cx| conn.poll_request(cx)).await {
        let line = [&request.head.method[..], b" ", &request.head.path].concat();
        let mut body = Vec::new();
        while let Ok(Some(frame)) = std::future::poll_fn(|cx| conn.poll_body(cx)).await {
            if let Frame::Data(data) = frame {
                body.extend_from_slice(&data);
            }
        }
        found.push((String::from_utf8_lossy(&line).into_owned(), body));
    }
    found
}

const STREAM: &[u8] = b"\r\nPOST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\nHost: x\n\n\
    POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n\
    GET /d HTTP/1.1\r\nHost: x\r\n\r\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    // spec: SM-135, SM-138, SM-141
    #[test]
    fn segments_do_not_change_messages(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..12)) {
        cuts.extend([0, STREAM.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &STREAM[w[0]..w[1]]).filter(|p| !p.is_empty()).collect();
        let found = with_pieces(&pieces, read_all);
        let expected = [("POST /a", &b"hello"[..]), ("GET /b", b""), ("POST /c", b"abc0123456789"), ("GET /d", b"")];
        prop_assert_eq!(found.len(), expected.len());
        for ((line, body), (wanted, content)) in found.iter().zip(expected) {
            prop_assert_eq!(line, wanted);
            prop_assert_eq!(body, content);
        }
    }

    // spec: AUTHZ-113
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from([&bytes[..], b"\r\n\r\n"].concat());
        let _ = parse::request(&bytes);
        let _ = parse::response(&bytes, false);
        let _ = parse::trailers(&bytes);
        let _ = parse::chunk_size(&bytes);
    }

    // spec: BYD-020, SM-139
    #[test]
    fn what_is_read_is_written_unchanged(
        fields in proptest::collection::vec(("[A-Za-z0-9!#$%&'*+.^_|~-]{1,12}", "[!-~]([ -~]{0,20}[!-~])?"), 0..20),
    ) {
        let special = ["host", "connection", "upgrade", "te", "keep-alive", "proxy-connection", "http2-settings",
            "content-length", "transfer-encoding", "expect"];
        let fields: Vec<_> = fields
            .into_iter()
            .filter(|(name, _)| !special.contains(&name.to_ascii_lowercase().as_str()))
            .collect();
        let mut text = String::from("GET /p?q HTTP/1.1\r\nHoSt: a\r\n");
        for (name, value) in &fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let request = parse::request(&Bytes::from(text.clone())).expect("legal");
        let mut out = BytesMut::new();
        encode::request(&mut out, &request.head, false);
        prop_assert_eq!(String::from_utf8_lossy(&out), text);
    }

    // spec: AUTHZ-113
    #[test]
    fn chunk_sizes_are_read_as_they_are_written(size in 1usize..1 << 50) {
        let mut buffer = [0; 18];
        let line = encode::chunk_head(&mut buffer, size);
        prop_assert_eq!(parse::chunk_size(&line[..line.len() - 2]), Some(size as u64));
    }
}

// spec: BYD-020
#[test]
fn a_phrase_keeps_its_bytes_whatever_they_are() {
    for phrase in [&b"Gut \xfc"[..], b"All  Fine", b""] {
        let text = [b"HTTP/1.1 200 ", phrase, b"\r\nA: \xfc b\r\n\r\n"].concat();
        let head = parse::response(&Bytes::from(text.clone()), false).expect("legal").head;
        assert_eq!(head.reason, phrase);
        assert_eq!(head.headers.get("a").map(|value| &value[..]), Some(&b"\xfc b"[..]));
    }
}

// spec: AUTHZ-113
#[test]
fn chunk_sizes_that_parsers_disagree_on_are_refused() {
    for line in [
        "",
        "x",
        "+1",
        "-1",
        "0x10",
        " 1",
        "1 2",
        "10000000000000000",
        "1\x0b",
        "1;a\r",
    ] {
        assert_eq!(parse::chunk_size(line.as_bytes()), None, "{line:?}");
    }
    assert_eq!(parse::chunk_size(b"1f ; a=b"), Some(31));
}

// spec: AUTHZ-113
#[test]
fn lines_of_the_chunked_coding_end_in_crlf_alone() {
    let read = |body: &str| {
        let next = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
        read_body(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}{next}").as_bytes())
    };
    assert_eq!(read("3;a\r\nabc\r\n0\r\nT: 1\r\n\r\n"), (Ok(b"abc".to_vec()), true));
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3;a\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\nT: 1\n\r\n",
        "3\r\nabc\r\n0\r\nT: 1\r\n\n",
    ] {
        let (read, next) = read(body);
        assert!(read.is_err() && !next, "{body:?}: {read:?}, {next}");
    }
}

// spec: SM-141, AUTHZ-113
#[test]
fn cr_alone_is_no_empty_line_before_a_request() {
    for (before, found) in [("", 1), ("\r\n\n\r\n", 1), ("\r", 0), ("\r\r\n", 0), ("\n\r", 0)] {
        let sent = format!("{before}GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(with_pieces(&[sent.as_bytes()], read_all).len(), found, "{before:?}");
    }
}

// spec: AUTHZ-116, AUTHZ-069, AUTHZ-115
#[test]
fn targets_are_reduced_to_authority_and_path() {
    let read = |line: &str| parse::request(&Bytes::from(format!("{line}\r\nHost: h\r\n\r\n"))).map(|r| r.head);
    let head = read("GET http://a.b:81/x?y HTTP/1.1").expect("absolute");
    assert_eq!((&head.authority[..], &head.path[..]), (&b"a.b:81"[..], &b"/x?y"[..]));
    assert_eq!(head.headers.get("host").map(|v| &v[..]), Some(&b"a.b:81"[..]));
    assert_eq!(&read("GET http://a?y HTTP/1.1").expect("no path").path[..], b"/?y");
    assert_eq!(&read("GET /a#b HTTP/1.1").expect("fragment").path[..], b"/a");
    assert_eq!(&read("OPTIONS * HTTP/1.1").expect("asterisk").path[..], b"*");
    for line in [
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET http:///a HTTP/1.1",
    ] {
        assert!(read(line).is_err(), "{line:?}");
    }
}

// spec: SM-138
#[test]
fn responses_without_body_are_known_by_their_status() {
    let framing = |head: &str, to_head| {
        parse::response(&Bytes::from(format!("{head}\r\n\r\n")), to_head).map(|response| response.framing)
    };
    assert!(matches!(
        framing("HTTP/1.1 204 x\r\nContent-Length: 5", false),
        Ok(Framing::None)
    ));
    assert!(matches!(
        framing("HTTP/1.1 200 x\r\nContent-Length: 5", true),
        Ok(Framing::None)
    ));
    assert!(matches!(
        framing("HTTP/1.1 200 x\r\nContent-Length: 5", false),
        Ok(Framing::Length(5))
    ));
    assert!(matches!(framing("HTTP/1.1 200", false), Ok(Framing::UntilClose)));
    for head in [
        "HTTP/1.1 200 x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "HTTP/1.0 200 x\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 099 x",
        "HTTP/1.1 000 x",
    ] {
        assert!(framing(head, false).is_err(), "{head:?}");
    }
}
