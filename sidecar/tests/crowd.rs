//! Thousands of clients that read or write slowly, in front of an application that stops answering: memory is bounded,
//! the proxy's own ports answer, and when they are gone it is as before.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use support::victim::Victim;
use support::{Client, address, pause, serving, wait_for, wait_for_count};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// Most clients.
const CROWD: usize = 10_000;

/// Body of `/large`, of which slow readers read nothing: more than the proxy and the kernel hold for one client.
const LARGE_BYTES: usize = 512 * 1024;

/// Body that slow writers promise; they send one byte of it.
const SLOW_BYTES: usize = 100;

/// An application that answers `/` at once, begins `/large` at once, and keeps everything else until told.
struct Backend {
    address: SocketAddr,
    /// Requests that it got.
    begun: Arc<AtomicUsize>,
    answering: watch::Sender<bool>,
}

impl Backend {
    fn start() -> Self {
        let (answering, told) = watch::channel(false);
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        Self {
            address: serving(address(), move |stream| answer(stream, counter.clone(), told.clone())),
            begun,
            answering,
        }
    }
}

async fn answer(mut stream: tokio::net::TcpStream, begun: Arc<AtomicUsize>, mut told: watch::Receiver<bool>) {
    let mut received = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if !matches!(stream.read_buf(&mut received).await, Ok(1..)) {
                return;
            }
        };
        begun.fetch_add(1, Ordering::SeqCst);
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        received.drain(..end);
        let body = if head.starts_with("POST ") { SLOW_BYTES } else { 0 };
        while received.len() < body {
            if !matches!(stream.read_buf(&mut received).await, Ok(1..)) {
                return;
            }
        }
        received.drain(..body);
        let length = if head.contains("/large ") { LARGE_BYTES } else { 0 };
        if head.contains("/held ") && told.wait_for(|told| *told).await.is_err() {
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(&vec![b'x'; length]).await.is_err() {
            return;
        }
    }
}

/// What a client of the crowd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reader,
    Writer,
    Waiting,
}

impl Kind {
    fn of(number: usize) -> Self {
        match number % 5 {
            0 => Self::Reader,
            1 | 2 => Self::Writer,
            _ => Self::Waiting,
        }
    }

    /// What it sends, and then no more.
    fn begin(self) -> String {
        match self {
            Self::Reader => "GET /large HTTP/1.1\r\nHost: echo\r\n\r\n".into(),
            Self::Writer => format!("POST /held HTTP/1.1\r\nHost: echo\r\nContent-Length: {SLOW_BYTES}\r\n\r\nx"),
            Self::Waiting => "GET /held HTTP/1.1\r\nHost: echo\r\n\r\n".into(),
        }
    }
}

/// A client; its kernel takes no more than a few KiB that it does not read.
fn join(front: SocketAddr, kind: Kind) -> TcpStream {
    let socket = Socket::new(Domain::for_address(front), Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("option");
    socket.connect(&front.into()).expect("the proxy listens");
    let mut stream = TcpStream::from(socket);
    stream.write_all(kind.begin().as_bytes()).expect("sent");
    stream
}

/// What the client was still to do; the answer is complete.
fn finish(stream: TcpStream, kind: Kind) {
    let mut client = Client::over(stream);
    if kind == Kind::Writer {
        client.send(&"x".repeat(SLOW_BYTES - 1));
    }
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status(), 200, "{kind:?}");
    let length = if kind == Kind::Reader { LARGE_BYTES } else { 0 };
    assert_eq!(answer.body.len(), length, "{kind:?}");
}

/// As many clients as there are descriptors for: each has one here and one of the proxy, and so has the application.
fn crowd() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the soft limit is raised");
    // The proxy refuses what is beyond 95 %.
    let descriptors = usize::try_from(most).unwrap_or(usize::MAX) / 100 * 90;
    (descriptors / 2).saturating_sub(200).min(CROWD)
}

/// Descriptors of this process are enough for one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

// spec: LIFE-083, LIFE-089, LIFE-015
#[test]
fn a_crowd_of_slow_clients_costs_little_and_is_served_when_the_application_recovers() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = Backend::start();
    let victim = Victim::new(backend.address);
    let count = crowd();
    let before = backend.begun.load(Ordering::SeqCst);
    let mut clients: Vec<(TcpStream, Kind)> = (0..count)
        .map(|number| (join(victim.front, Kind::of(number)), Kind::of(number)))
        .collect();
    wait_for_count("requests", count, || backend.begun.load(Ordering::SeqCst) - before);
    println!("{count} clients: {} KiB", victim.grown());
    victim.stands(count as u64 * 64);
    // Some leave as they are.
    let mut number = 0;
    clients.retain(|_| {
        number += 1;
        number % 3 > 0
    });
    let stay = clients.len();
    wait_for_count("leave", count - stay, || count - victim.connections().min(count));
    victim.stands(count as u64 * 64);
    // The others get what they asked for as soon as the application is itself again.
    backend.answering.send(true).expect("the application waits");
    for (stream, kind) in clients {
        finish(stream, kind);
    }
    wait_for_count("end", count, || count - victim.connections().min(count));
    victim.stands(count as u64 * 64);
}

// spec: LIFE-083
#[test]
fn readers_that_bring_it_to_its_limit_are_refused_until_others_have_left() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = Backend::start();
    // Few enough that the crowd brings it there: each costs more.
    let most_kib = (crowd() as u64 * 16).min(64 << 10);
    let usual = {
        let victim = Victim::new(backend.address);
        victim.proxy.status("VmRSS")
    };
    let limit = (usual + most_kib) * 1024;
    let victim = Victim::with(backend.address, &[("WEFT_MEMORY_LIMIT", &limit.to_string())]);
    let mut clients = Vec::new();
    for number in 0..crowd() {
        clients.push(join(victim.front, Kind::Reader));
        if number % 50 == 0 {
            // It looks at its memory every second.
            pause(Duration::from_millis(50));
            if victim.call() == Some(503) {
                break;
            }
        }
    }
    println!("{} clients, {} KiB", clients.len(), victim.grown());
    wait_for("a refusal", || victim.call() == Some(503));
    victim.answers();
    assert!(victim.grown() < 2 * most_kib + (64 << 10), "{} KiB", victim.grown());
    // Whoever was admitted is served.
    finish(clients.swap_remove(0), Kind::Reader);
    drop(clients);
    wait_for("recovery", || victim.call() == Some(200));
}
