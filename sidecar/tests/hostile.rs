//! Peers that want to exhaust the proxy: what they cost is bounded, everybody else is served, and it recovers.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::victim::Victim;
use support::{App, LIMIT, wait_for};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A field as HPACK literal without indexing; names and values shorter than 127 bytes.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn get(path: &str) -> Vec<u8> {
    [
        literal(":method", "GET"),
        literal(":scheme", "http"),
        literal(":path", path),
        literal(":authority", "echo"),
    ]
    .concat()
}

/// An HTTP/2 client that writes frames as it likes.
struct Raw(TcpStream);

impl Raw {
    fn open(front: SocketAddr, settings: &[u8]) -> Self {
        Self::over(TcpStream::connect(front).expect("the proxy listens"), settings)
    }

    /// A client whose kernel takes no more than a few KiB that it does not read.
    fn narrow(front: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(front), Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("option");
        socket.connect(&front.into()).expect("the proxy listens");
        Self::over(socket.into(), &[])
    }

    fn over(mut stream: TcpStream, settings: &[u8]) -> Self {
        stream.set_read_timeout(Some(LIMIT)).expect("option");
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("option");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).expect("sent");
        Self(stream)
    }

    /// Sends the same frames again and again, until the proxy takes no more or so many bytes are sent.
    fn flood(&mut self, frames: &[u8], most_bytes: usize) {
        let batch = frames.repeat(16_384 / frames.len());
        for _ in 0..most_bytes / batch.len() {
            if self.0.write_all(&batch).is_err() {
                return;
            }
        }
    }

    /// Whether the proxy ends the connection, by GOAWAY or otherwise.
    fn is_ended(&mut self) -> bool {
        let mut buffer = [0; 65536];
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            match self.0.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
            }
        }
        false
    }
}

// spec: LIFE-089
#[test]
fn rapid_resets_end_the_connection() {
    let app = App::echo();
    let victim = Victim::new(app.address);
    let before = app.count();
    let mut raw = Raw::open(victim.front, &[]);
    let mut stopped = false;
    for batch in 0..500u32 {
        let mut bytes = Vec::new();
        for i in 0..100 {
            let stream = (batch * 100 + i) * 2 + 1;
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get("/")));
            bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        if raw.0.write_all(&bytes).is_err() {
            stopped = true;
            break;
        }
    }
    assert!(stopped || raw.is_ended(), "50,000 streams were opened and reset");
    victim.stands(32 << 10);
    assert!(
        app.count() - before < 5000,
        "{} requests reached the application",
        app.count() - before
    );
}

// spec: LIFE-089, SM-135
#[test]
fn endless_header_blocks_end_the_connection() {
    let app = App::echo();
    let victim = Victim::new(app.address);
    let mut raw = Raw::open(victim.front, &[]);
    raw.0
        .write_all(&frame(HEADERS, END_STREAM, 1, &get("/")))
        .expect("sent");
    let piece = frame(
        CONTINUATION,
        0,
        1,
        &(0..100)
            .flat_map(|i| literal(&format!("x-{i}"), &"a".repeat(100)))
            .collect::<Vec<_>>(),
    );
    let stopped = (0..20_000).any(|_| raw.0.write_all(&piece).is_err());
    assert!(stopped || raw.is_ended());
    victim.stands(16 << 10);
}

// spec: LIFE-089, SM-135
#[test]
fn references_to_one_large_field_do_not_multiply() {
    let app = App::echo();
    let victim = Victim::new(app.address);
    let mut raw = Raw::open(victim.front, &[]);
    // A field of 4,000 bytes that enters the dynamic table, and 16,000 references to it.
    let mut block = get("/");
    block.extend([0x40, 6]);
    block.extend(b"x-bomb");
    block.extend([0x7f, 0xa1, 0x1e]);
    block.extend(vec![b'b'; 4000]);
    block.extend(vec![0x80 | 62; 12_000]);
    for stream in 0..50u32 {
        if raw
            .0
            .write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream * 2 + 1, &block))
            .is_err()
        {
            break;
        }
    }
    support::pause(Duration::from_millis(500));
    victim.stands(16 << 10);
    assert!(
        !app.seen
            .lock()
            .expect("no panic")
            .iter()
            .any(|seen| seen.field("x-bomb").is_some())
    );
}

/// Frames that their receiver must acknowledge.
fn acknowledged() -> [Vec<u8>; 3] {
    let window = |bytes: u32| [&[0, 4][..], &bytes.to_be_bytes()].concat();
    [
        frame(SETTINGS, 0, 0, &[]),
        frame(PING, 0, 0, &[7; 8]),
        // Each changes the windows of all streams.
        [
            frame(SETTINGS, 0, 0, &window(1)),
            frame(SETTINGS, 0, 0, &window(65_535)),
        ]
        .concat(),
    ]
}

// spec: LIFE-089
#[test]
fn acknowledgements_that_nobody_reads_are_not_queued() {
    let app = App::echo();
    let victim = Victim::new(app.address);
    for frames in acknowledged() {
        let mut raw = Raw::narrow(victim.front);
        raw.flood(&frames, 64 << 20);
        victim.stands(16 << 10);
        // Nor does it turn in a circle.
        wait_for("rest", || {
            let begun = victim.proxy.cpu();
            support::pause(Duration::from_millis(300));
            victim.proxy.cpu() - begun < Duration::from_millis(60)
        });
    }
}

// spec: LIFE-089
#[test]
fn a_flood_that_is_read_holds_nobody_up() {
    let app = large_app();
    let victim = Victim::new(app.address);
    for frames in acknowledged() {
        let mut raw = Raw::open(victim.front, &[]);
        for stream in 0..100u32 {
            let head = frame(HEADERS, END_STREAM | END_HEADERS, stream * 2 + 1, &get("/hang"));
            raw.0.write_all(&head).expect("sent");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (mut reader, told) = (raw.0.try_clone().expect("clone"), stop.clone());
        let read = std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !told.load(Ordering::SeqCst) && reader.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        let (told, begun) = (stop.clone(), Arc::new(AtomicBool::new(false)));
        let tell = begun.clone();
        let write = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                raw.flood(&frames, 1 << 18);
                tell.store(true, Ordering::SeqCst);
            }
            let _ = raw.0.shutdown(std::net::Shutdown::Both);
        });
        wait_for("the flood", || begun.load(Ordering::SeqCst));
        for _ in 0..20 {
            victim.stands(24 << 10);
        }
        stop.store(true, Ordering::SeqCst);
        write.join().expect("no panic");
        read.join().expect("no panic");
    }
}

/// Answers `/large` with 8 MiB, `/hang` not at all.
fn large_app() -> App {
    App::new(Arc::new(|seen, stream| {
        if seen.head.contains("/hang") {
            let mut byte = [0];
            let _ = stream.read(&mut byte);
            return false;
        }
        let length = if seen.head.contains("/large") { 8 << 20 } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).is_ok() && stream.write_all(&vec![b'x'; length]).is_ok()
    }))
}

// spec: LIFE-089
#[test]
fn windows_that_never_open_hold_little() {
    let app = large_app();
    let victim = Victim::new(app.address);
    // SETTINGS_INITIAL_WINDOW_SIZE 0.
    let mut raw = Raw::open(victim.front, &[0, 4, 0, 0, 0, 0]);
    for stream in 0..100u32 {
        raw.0
            .write_all(&frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                stream * 2 + 1,
                &get("/large"),
            ))
            .expect("sent");
    }
    wait_for("the requests", || {
        app.seen
            .lock()
            .expect("no panic")
            .iter()
            .filter(|s| s.head.contains("/large"))
            .count()
            == 100
    });
    support::pause(Duration::from_millis(500));
    // 100 answers of 8 MiB.
    victim.stands(48 << 10);
    drop(raw);
    wait_for("the end of the streams", || {
        victim
            .proxy
            .get(15000, "/stats?filter=downstream_connections")
            .text()
            .contains(": 0")
    });
    victim.stands(48 << 10);
}

// spec: BYD-035
#[test]
fn label_sets_beyond_the_budget_are_counted_together() {
    let app = App::answering(|seen| {
        let status = seen.head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        let status = status.parse().unwrap_or(200u16);
        format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n")
    });
    let victim = Victim::new(app.address);
    let mut client = support::Client::over(TcpStream::connect(victim.front).expect("the proxy listens"));
    let mut sent = 50;
    for kind in ["text/plain", "application/grpc"] {
        for status in 205..600 {
            if status != 304 {
                client.get(&format!("/{status}"), &format!("Content-Type: {kind}\r\n"));
                sent += 1;
            }
        }
    }
    let counts = || -> Vec<(bool, u64)> {
        let text = victim.proxy.get(15090, "/stats/prometheus").text();
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let count = |line: &str| {
            let number = line.rsplit(' ').next().and_then(|number| number.parse().ok());
            (
                line.contains("destination_service=\"other\""),
                number.expect("a number"),
            )
        };
        lines.map(count).collect()
    };
    wait_for("all requests", || {
        counts().iter().map(|(_, count)| count).sum::<u64>() == sent
    });
    let own = counts().iter().filter(|(is_other, _)| !is_other).count();
    assert_eq!(own, 500);
    let others: u64 = counts()
        .iter()
        .filter(|(is_other, _)| *is_other)
        .map(|(_, count)| count)
        .sum();
    assert!(others > 200, "{others}");
}

fn size2<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
    size_of::<F>()
}

fn size3<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

fn size4<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

// spec: LIFE-083
#[test]
fn a_connection_is_a_small_future() {
    use weft_sidecar::http::server;
    use weft_sidecar::{inbound, outbound};
    let sizes = [
        ("outbound", size2(outbound::serve), 4096),
        ("inbound", size3(inbound::serve), 4096),
        ("HTTP/1", size4(server::http1), 9216),
        ("HTTP/2", size4(server::http2), 8192),
    ];
    println!("{sizes:?}");
    for (name, size, most) in sizes {
        assert!(size <= most, "{name}: {size} bytes");
    }
}
