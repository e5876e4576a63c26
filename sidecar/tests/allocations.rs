//! What a request costs the allocator. The client and the application of these tests allocate nothing, so that every
//! allocation of the process while requests pass is the proxy's.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use support::rules::dialling;
use support::{Pair, Proxy, address, client_bundle, echo_endpoints, virtual_address};
use weft_bundle::wire::{AccessLog, LogEncoding};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written otherwise; it only passes on what it was asked"
)]
// SAFETY: each call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests that are counted.
const REQUESTS: usize = 1000;
const ROUNDS: usize = 5;

const REQUEST: &[u8] = b"GET /api/items?page=2 HTTP/1.1\r\nHost: echo\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";

/// An application on one connection after the other.
fn app() -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).expect("listener");
    let here = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 8192];
            while let Ok(1..) = stream.read(&mut buffer) {
                if stream.write_all(ANSWER).is_err() {
                    break;
                }
            }
        }
    });
    here
}

/// Allocations for each request on a connection that has carried some before, rounded to the nearest number. What timers
/// and the like allocate meanwhile only adds, so the least of several rounds counts.
fn for_each_request(front: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(front).expect("the proxy listens");
    stream.set_nodelay(true).expect("option");
    stream.set_read_timeout(Some(support::LIMIT)).expect("timeout");
    let mut buffer = [0; 8192];
    let mut send = |number: usize| {
        for _ in 0..number {
            stream.write_all(REQUEST).expect("sent");
            let mut length = 0;
            while !buffer[..length].ends_with(b"hello") {
                let count = stream.read(&mut buffer[length..]).expect("an answer");
                assert!(
                    count > 0,
                    "closed after {:?}",
                    String::from_utf8_lossy(&buffer[..length])
                );
                length += count;
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200 "));
        }
    };
    send(500);
    let mut least = usize::MAX;
    for _ in 0..ROUNDS {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        send(REQUESTS);
        least = least.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    (least + REQUESTS / 2) / REQUESTS
}

fn log_to_nowhere(proxy: &Proxy) {
    proxy.shared.telemetry.configure(Some(&AccessLog {
        path: "/dev/null".into(),
        encoding: LogEncoding::Json,
        format: None,
    }));
}

/// The server of a pair, with policies that look at what they can.
fn guarded(port: u16) -> String {
    format!(
        "{}inbound: {{mtls: STRICT, ports: [{{port: {port}, protocol: http}}]}}\nauthorization:\n\
         - {{namespace: app, name: no, action: DENY, rules: [{{when: [{{key: 'request.headers[x]', values: [y]}}, {{key: \
         remote.ip, values: [9.9.9.9]}}]}}]}}\n\
         - {{namespace: app, name: yes, rules: [{{from: [[{{key: source.principal, values: [cluster.local/ns/app/sa/*]}}]], \
         to: [[{{key: request.path, values: ['/api/{{*}}']}}, {{key: request.host, values: ['e*']}}]]}}]}}\n",
        support::workload("app/echo")
    )
}

/// One test, because the others' allocations would count.
#[test]
fn a_request_allocates_no_more_than_it_did() {
    let front = {
        let app = app();
        let proxy = Proxy::start(
            dialling(virtual_address()),
            &client_bundle("http", ""),
            &echo_endpoints(&[(app, false)]),
            None,
        );
        log_to_nowhere(&proxy);
        proxy
    };
    let one_hop = for_each_request(front.addresses[0]);
    drop(front);

    let application = app();
    let pair = Pair::start("http", application);
    pair.server.configure(&guarded(application.port()));
    log_to_nowhere(&pair.client);
    log_to_nowhere(&pair.server);
    let both = for_each_request(pair.front);
    println!("allocations for each request: one hop {one_hop}, pair {both}");
    assert!(
        one_hop <= ONE_HOP,
        "{one_hop} allocations for each request, {ONE_HOP} are allowed"
    );
    assert!(both <= PAIR, "{both} allocations for each request, {PAIR} are allowed");
}

/// HTTP/1.1, from a client in clear to an application without sidecar, logged as JSON.
const ONE_HOP: usize = 13;

/// The same through two proxies, which speak mutual TLS with each other.
const PAIR: usize = 27;
