//! The stream against rustls' own buffered one, over real sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ClientConnection, ContentType, ProtocolVersion, RootCertStore, SupportedCipherSuite};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

/// No test needs as long.
const LIMIT: Duration = Duration::from_secs(20);

const NAME: &str = "peer.example";

fn configs(version: &'static rustls::SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = KeyPair::generate().expect("key");
    let leaf = CertificateParams::new(vec![NAME.to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("leaf");
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS 8");
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private)
        .expect("certificate");
    // What a client reads is what a test writes.
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(leaf.der().clone()).expect("root");
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(server), Arc::new(client))
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("name")
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(work)
}

/// Runs a server of ours against a client in a thread; both must come to an end.
fn serve<T>(
    server: impl AsyncFnOnce(io::Result<TlsStream>) -> T,
    version: &'static rustls::SupportedProtocolVersion,
    client: impl FnOnce(ClientConnection, std::net::TcpStream) + Send + 'static,
) -> T {
    let (server_config, client_config) = configs(version);
    block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let peer = thread::spawn(move || {
            let socket = std::net::TcpStream::connect(address).expect("connect");
            socket.set_read_timeout(Some(LIMIT)).expect("limit");
            socket.set_write_timeout(Some(LIMIT)).expect("limit");
            client(ClientConnection::new(client_config, name()).expect("client"), socket);
        });
        let (socket, _) = listener.accept().await.expect("accept");
        let found = timeout(LIMIT, async {
            server(TlsStream::accept(server_config, socket, BytesMut::new()).await).await
        })
        .await
        .expect("the server comes to an end");
        peer.join().expect("the client comes to an end");
        found
    })
}

/// What the client's session has to say to the socket, as bytes.
fn records(session: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes).expect("memory takes it");
    }
    bytes
}

fn shake_hands(session: &mut ClientConnection, socket: &mut std::net::TcpStream) {
    while session.is_handshaking() {
        session.complete_io(socket).expect("handshake");
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

// spec: ID-069
#[test]
fn both_versions_carry_bytes_both_ways_and_end_in_order() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let sent = pattern(300_000);
        let expected = sent.clone();
        let received = serve(
            async |stream| {
                let mut stream = stream.expect("handshake");
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.expect("in order");
                stream.write_all(&received).await.expect("write");
                stream.shutdown().await.expect("close");
                received
            },
            version,
            move |mut session, mut socket| {
                shake_hands(&mut session, &mut socket);
                let mut stream = rustls::Stream::new(&mut session, &mut socket);
                stream.write_all(&sent).expect("write");
                stream.flush().expect("flush");
                session.send_close_notify();
                socket.write_all(&records(&mut session)).expect("close");
                let mut back = Vec::new();
                rustls::Stream::new(&mut session, &mut socket)
                    .read_to_end(&mut back)
                    .expect("close_notify comes before the end");
                assert!(back == sent, "{} bytes came back", back.len());
            },
        );
        assert!(received == expected, "{} bytes arrived", received.len());
    }
}

// spec: ID-090
#[test]
fn a_client_of_ours_meets_a_server_of_ours_that_has_a_part_of_its_hello() {
    /// Of the hello, which comes in records of half as many bytes, and is longer.
    const AHEAD: usize = 128;
    let (server, client) = configs(&rustls::version::TLS13);
    let mut client = Arc::unwrap_or_clone(client);
    client.max_fragment_size = Some(AHEAD / 2);
    block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let serving = async {
            let (mut socket, _) = listener.accept().await.expect("accept");
            let mut hello = BytesMut::zeroed(AHEAD);
            socket.read_exact(&mut hello).await.expect("hello");
            let mut stream = TlsStream::accept(server, socket, hello).await.expect("server");
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.expect("read");
            let parts = [IoSlice::new(b"po"), IoSlice::new(b""), IoSlice::new(b"ng")];
            let count = poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &parts)).await;
            assert_eq!(count.expect("write"), 4);
            stream.shutdown().await.expect("close");
            word
        };
        let asking = async {
            let socket = TcpStream::connect(address).await.expect("connect");
            let mut stream = TlsStream::connect(Arc::new(client), name(), socket)
                .await
                .expect("client");
            assert!(stream.state().peer_certificates().is_some());
            stream.write_all(b"ping").await.expect("write");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("read");
            answer
        };
        let (word, answer) = timeout(LIMIT, async { tokio::join!(serving, asking) })
            .await
            .expect("end");
        assert_eq!((&word, &*answer), (b"ping", "pong"));
    });
}

#[test]
fn records_that_come_byte_by_byte_are_whole_records() {
    let received = serve(
        async |stream| {
            let mut stream = stream.expect("handshake");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.expect("in order");
            received
        },
        &rustls::version::TLS13,
        |mut session, mut socket| {
            socket.set_nodelay(true).expect("nodelay");
            while session.is_handshaking() {
                for byte in records(&mut session) {
                    socket.write_all(&[byte]).expect("write");
                }
                session.read_tls(&mut socket).expect("read");
                session.process_new_packets().expect("records");
            }
            session.writer().write_all(b"in pieces").expect("memory");
            session.send_close_notify();
            for byte in records(&mut session) {
                socket.write_all(&[byte]).expect("write");
            }
        },
    );
    assert_eq!(received, b"in pieces");
}

#[test]
fn an_end_without_close_notify_is_not_an_end_in_order() {
    let error = serve(
        async |stream| {
            let mut received = Vec::new();
            let error = stream.expect("handshake").read_to_end(&mut received).await;
            (received, error.expect_err("cut").kind())
        },
        &rustls::version::TLS13,
        |mut session, mut socket| {
            shake_hands(&mut session, &mut socket);
            session.writer().write_all(b"half").expect("memory");
            socket.write_all(&records(&mut session)).expect("write");
            socket.shutdown(Shutdown::Both).expect("cut");
        },
    );
    assert_eq!(error, (b"half".to_vec(), io::ErrorKind::UnexpectedEof));
}

#[test]
fn a_peer_that_leaves_during_the_handshake_is_an_end() {
    let error = serve(
        async |stream| stream.err().expect("no handshake").kind(),
        &rustls::version::TLS13,
        |mut session, mut socket| {
            let hello = records(&mut session);
            socket.write_all(&hello[..hello.len() / 2]).expect("write");
        },
    );
    assert_eq!(error, io::ErrorKind::UnexpectedEof);
}

#[test]
fn what_the_socket_does_not_take_is_held_back_within_bounds() {
    let (full, is_full) = std::sync::mpsc::channel();
    let received = serve(
        async |stream| {
            let mut stream = stream.expect("handshake");
            let bytes = pattern(1 << 20);
            let mut sent = 0;
            // As much as goes without the reader.
            loop {
                let write =
                    poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_write(cx, &bytes[sent % bytes.len()..])));
                match write.await {
                    Poll::Ready(count) => sent += count.expect("write"),
                    Poll::Pending => break,
                }
            }
            let held = stream.output.len();
            assert!(held > 0 && held <= MAX_WRITE + 8 * RECORD_OVERHEAD, "{held}");
            full.send(()).expect("the client waits");
            stream.flush().await.expect("flush");
            stream.shutdown().await.expect("close");
            sent
        },
        &rustls::version::TLS13,
        move |mut session, mut socket| {
            shake_hands(&mut session, &mut socket);
            is_full.recv_timeout(LIMIT).expect("the socket is full at some time");
            let mut back = Vec::new();
            rustls::Stream::new(&mut session, &mut socket)
                .read_to_end(&mut back)
                .expect("all of it");
            let bytes = pattern(1 << 20);
            assert!(
                back.iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == bytes[at % bytes.len()])
            );
        },
    );
    assert!(received > MAX_WRITE, "{received}");
}

/// Protects messages as the client's session would.
struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Forger {
    fn of(session: ClientConnection) -> Self {
        let SupportedCipherSuite::Tls13(suite) = session.negotiated_cipher_suite().expect("suite") else {
            panic!("TLS 1.3 was asked for");
        };
        let secrets = session.dangerous_extract_secrets().expect("secrets");
        let (sequence, secrets) = secrets.tx;
        let rustls::ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            panic!("the suite that is preferred");
        };
        Self {
            encrypter: suite.aead_alg.encrypter(key, iv),
            sequence,
        }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(payload),
        };
        let record = self.encrypter.encrypt(message, self.sequence).expect("encrypt");
        self.sequence += 1;
        record.encode()
    }
}

// RFC 8446, section 4.6.3; between the halves of a message only its other half may come, and the peer may write.
#[test]
fn a_message_in_two_records_may_be_written_between() {
    let word = serve(
        async |stream| {
            let mut stream = stream.expect("handshake");
            let mut word = [0; 2];
            stream.read_exact(&mut word).await.expect("before");
            // The first half of the message is there now.
            let early = timeout(Duration::from_millis(200), stream.read_u8()).await;
            assert!(early.is_err(), "half a message is nothing to read: {early:?}");
            assert!(!stream.input.is_empty());
            stream.write_all(b"go").await.expect("write");
            stream.flush().await.expect("flush");
            let error = stream.read_u8().await.expect_err("under the old key").kind();
            let write = stream.write_all(b"late").await.map_err(|e| e.kind());
            assert_eq!(write, Err(io::ErrorKind::BrokenPipe));
            stream.shutdown().await.expect("after a failure too");
            (word, error)
        },
        &rustls::version::TLS13,
        |mut session, mut socket| {
            shake_hands(&mut session, &mut socket);
            let mut forger = Forger::of(session);
            // key_update(update_not_requested)
            let bytes = [
                forger.record(ContentType::ApplicationData, b"hi"),
                forger.record(ContentType::Handshake, &[24, 0, 0]),
            ];
            socket.write_all(&bytes.concat()).expect("write");
            let mut some = [0; 24];
            socket.read_exact(&mut some).expect("a record in between");
            socket
                .write_all(&forger.record(ContentType::Handshake, &[1, 0]))
                .expect("write");
            // The key has changed, so this is noise.
            socket
                .write_all(&forger.record(ContentType::ApplicationData, b"!"))
                .expect("write");
            let _ = socket.read_to_end(&mut Vec::new());
        },
    );
    assert_eq!(word, (*b"hi", io::ErrorKind::InvalidData));
}

#[test]
fn keys_that_the_peer_renews_are_followed() {
    serve(
        async |stream| {
            let mut stream = stream.expect("handshake");
            for round in 0..4_u32 {
                assert_eq!(stream.read_u32().await.expect("read"), round);
                stream.write_u32(round).await.expect("write");
                stream.flush().await.expect("flush");
            }
        },
        &rustls::version::TLS13,
        |mut session, mut socket| {
            shake_hands(&mut session, &mut socket);
            for round in 0..4_u32 {
                let mut stream = rustls::Stream::new(&mut session, &mut socket);
                stream.write_all(&round.to_be_bytes()).expect("write");
                let mut back = [0; 4];
                stream.read_exact(&mut back).expect("read");
                assert_eq!(u32::from_be_bytes(back), round);
                session.refresh_traffic_keys().expect("renew");
            }
        },
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    // Whatever arrives: no panic, and nothing is read that was not sent.
    #[test]
    fn damaged_records_fail_and_what_came_before_is_good(
        at in 0usize..40_000,
        xor in 1u8..,
        cuts in proptest::collection::vec(1usize..9_000, 1..6),
        during_handshake: bool,
    ) {
        // Records of the data, and that of close_notify: how long each is, and how much the ones before it hold.
        const RECORDS: [(usize, usize); 3] = [(16_406, 0), (13_638, 16_384), (24, 30_000)];
        let sent = pattern(30_000);
        let expected = sent.clone();
        let mut offset = at % RECORDS.iter().map(|(length, _)| length).sum::<usize>();
        let mut before = 0;
        for (length, held) in RECORDS {
            before = held;
            if offset < length {
                break;
            }
            offset -= length;
        }
        let (received, error) = serve(
            async |stream| {
                let mut received = Vec::new();
                match stream {
                    Err(error) => (received, Some(error)),
                    Ok(mut stream) => {
                        stream.write_all(b"go").await.expect("write");
                        stream.flush().await.expect("flush");
                        let error = stream.read_to_end(&mut received).await.err();
                        let _ = stream.write_all(b"after").await;
                        let _ = stream.shutdown().await;
                        (received, error)
                    }
                }
            },
            &rustls::version::TLS13,
            move |mut session, mut socket| {
                let mut write = |mut bytes: Vec<u8>, damaged: bool| {
                    if damaged {
                        let at = at % bytes.len();
                        bytes[at] ^= xor;
                    }
                    let mut rest = &bytes[..];
                    for cut in cuts.iter().cycle() {
                        let (now, later) = rest.split_at(rest.len().min(*cut));
                        // The server may have gone.
                        let _ = socket.write_all(now);
                        rest = later;
                        if rest.is_empty() {
                            break;
                        }
                    }
                    socket.try_clone().expect("socket")
                };
                let mut socket = write(records(&mut session), during_handshake);
                if during_handshake {
                    // A length that grew makes the server wait for what never comes.
                    let _ = socket.shutdown(Shutdown::Write);
                    return;
                }
                while session.is_handshaking() {
                    if session.wants_write() {
                        socket = write(records(&mut session), false);
                    }
                    if !matches!(session.read_tls(&mut socket), Ok(1..)) || session.process_new_packets().is_err() {
                        let _ = socket.shutdown(Shutdown::Write);
                        return;
                    }
                }
                // The handshake has ended on both sides, so that it does not fail for what follows.
                let mut word = [0; 2];
                let read = rustls::Stream::new(&mut session, &mut socket).read_exact(&mut word);
                read.expect("the server goes first");
                session.set_buffer_limit(None);
                session.writer().write_all(&sent).expect("memory");
                session.send_close_notify();
                let socket = write(records(&mut session), true);
                let _ = socket.shutdown(Shutdown::Write);
            },
        );
        // Not all of a header is protected.
        if during_handshake || offset >= 5 {
            prop_assert!(error.is_some());
        }
        if !during_handshake && offset >= 5 {
            prop_assert_eq!(received.len(), before);
        }
        prop_assert!(expected.starts_with(&received), "{} bytes", received.len());
    }
}
