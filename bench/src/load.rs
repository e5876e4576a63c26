//! Load over HTTP/1.1: a thread for each connection, one request at a time, as fast as it goes or at a fixed rate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustls::ClientConnection;
use rustls_pki_types::ServerName;

use crate::material;

/// Connections that answer nothing for so long have failed.
const LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to
    #[arg(long)]
    address: SocketAddr,
    /// Connections
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// How long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Requests per second over all connections; absent: as many as get answered
    #[arg(long)]
    rate: Option<f64>,
    /// Path of the requests
    #[arg(long, default_value = "/")]
    path: String,
    /// Host of the requests
    #[arg(long, default_value = "echo")]
    host: String,
}

/// What came of it. Latencies are in microseconds.
#[derive(Debug, serde::Serialize)]
struct Outcome {
    requests: usize,
    failures: usize,
    seconds: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Sends requests and prints the outcome.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let request = request(&arguments.path, &arguments.host);
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(arguments.seconds);
    let pause = arguments
        .rate
        .map(|rate| Duration::from_secs_f64(f64::from(arguments.connections) / rate));
    let threads: Vec<_> = (0..arguments.connections)
        .map(|number| {
            // Connections take turns, so that a rate is even.
            let first = pause.map(|pause| (begin + pause * number / arguments.connections, pause));
            let (request, address) = (request.clone(), arguments.address);
            std::thread::spawn(move || one_connection(address, &request, end, first))
        })
        .collect();
    let mut latencies = Vec::new();
    let mut failures = 0;
    for thread in threads {
        match thread.join().expect("no panic") {
            (mut seen, Ok(())) => latencies.append(&mut seen),
            (mut seen, Err(error)) => {
                eprintln!("{}: {error}", arguments.address);
                latencies.append(&mut seen);
                failures += 1;
            }
        }
    }
    latencies.sort_unstable();
    let outcome = Outcome {
        requests: latencies.len(),
        failures,
        seconds: begin.elapsed().as_secs_f64(),
        p50: quantile(&latencies, 0.5),
        p90: quantile(&latencies, 0.9),
        p99: quantile(&latencies, 0.99),
        max: quantile(&latencies, 1.0),
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn request(path: &str, host: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weft-bench\r\nAccept: */*\r\n\r\n").into_bytes()
}

/// Nanoseconds that a share of the requests needed at most, in microseconds.
fn quantile(sorted: &[u32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the length"
    )]
    let at = (last as f64 * share).round() as usize;
    f64::from(sorted[at]) / 1000.0
}

/// Latencies in nanoseconds, and what ended the connection before its time.
fn one_connection(
    address: SocketAddr,
    request: &[u8],
    end: Instant,
    pace: Option<(Instant, Duration)>,
) -> (Vec<u32>, io::Result<()>) {
    let mut latencies = Vec::with_capacity(1 << 16);
    let result = send_until(address, request, end, pace, &mut latencies);
    (latencies, result)
}

fn send_until(
    address: SocketAddr,
    request: &[u8],
    end: Instant,
    mut pace: Option<(Instant, Duration)>,
    latencies: &mut Vec<u32>,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        if let Some((next, pause)) = &mut pace {
            wait_until(*next);
            *next += *pause;
        }
        let sent = Instant::now();
        if sent >= end {
            return Ok(());
        }
        stream.write_all(request)?;
        receive(&mut stream, &mut buffer)?;
        latencies.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
}

fn wait_until(at: Instant) {
    while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Reads one answer with status 200 and a length.
fn receive(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
        let Some(end) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") else {
            continue;
        };
        if !buffer.starts_with(b"HTTP/1.1 200 ") {
            return Err(bad("the answer is not 200"));
        }
        let head = buffer[..end + 2].to_ascii_lowercase();
        let at = memchr::memmem::find(&head, b"\r\ncontent-length: ").ok_or_else(|| bad("no Content-Length"))?;
        let digits = head[at + 18..].split(|b| *b == b'\r').next().unwrap_or_default();
        let length: usize = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| bad("Content-Length is no number"))?;
        let mut left = (end + 4 + length)
            .checked_sub(filled)
            .ok_or_else(|| bad("more than the answer"))?;
        while left > 0 {
            let most = left.min(buffer.len());
            match stream.read(&mut buffer[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left -= count,
            }
        }
        return Ok(());
    }
}

/// Arguments of `hold`.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    /// Where to
    #[arg(long)]
    address: SocketAddr,
    /// Connections
    #[arg(long, default_value_t = 1000)]
    connections: u32,
    /// Directory with the client's identity
    #[arg(long)]
    identity: PathBuf,
    /// Protocol to offer
    #[arg(long, default_value = "istio-http/1.1")]
    alpn: String,
}

/// Opens connections, uses each once, says `ready`, and holds them.
pub(crate) fn hold(arguments: &Hold) -> anyhow::Result<()> {
    let mut config = material::client(&arguments.identity)?;
    config.alpn_protocols = vec![arguments.alpn.clone().into_bytes()];
    let config = Arc::new(config);
    let request = request("/", "echo");
    let mut buffer = vec![0; 64 * 1024];
    let mut held = Vec::new();
    for number in 0..arguments.connections {
        let mut socket = TcpStream::connect(arguments.address).with_context(|| format!("connection {number}"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut tls = ClientConnection::new(config.clone(), ServerName::try_from(material::NAME)?)?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        stream.write_all(&request).context("handshake or request")?;
        receive(&mut stream, &mut buffer).context("answer")?;
        held.push((tls, socket));
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    ensure!(held.len() == arguments.connections as usize, "connections were lost");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end_and_no_further() {
        let mut buffer = [0; 64];
        let read = |bytes: &[u8], buffer: &mut [u8]| receive(&mut &*bytes, buffer);
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 70\r\n\r\n".iter().copied();
        let whole: Vec<u8> = whole.chain(std::iter::repeat_n(b'x', 70)).collect();
        assert!(read(&whole, &mut buffer).is_ok());
        assert!(read(&whole[..whole.len() - 1], &mut buffer).is_err());
        assert!(read(b"HTTP/1.1 503 Bad\r\nContent-Length: 0\r\n\r\n", &mut buffer).is_err());
        assert!(read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", &mut buffer).is_err());
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let seen: Vec<u32> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!((quantile(&seen, 0.0), quantile(&seen, 1.0)), (1.0, 100.0));
        assert_eq!(quantile(&seen, 0.99), 99.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
