//! `validate`: shows that the redirect of the pod is in place, by a connection that only it can bring back (NET-139).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Mode;

/// Parameters of the test.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where outbound connections go
    #[arg(long, env = "WEFT_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Where inbound connections go
    #[arg(long, env = "WEFT_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// How inbound connections come to the proxy; TPROXY needs the capability NET_ADMIN here as there
    #[arg(long, value_enum, default_value = "REDIRECT")]
    pub interception_mode: Mode,
}

/// Tries for five seconds, once a second. Exit code 126: the redirect is not there.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let begin = Instant::now();
    loop {
        match attempt(arguments) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(e) if begin.elapsed() >= LIMIT => {
                eprintln!("weft-proxy validate: the redirect is not in place: {e}");
                return ExitCode::from(126);
            }
            Err(_) => std::thread::park_timeout(PAUSE),
        }
    }
}

fn attempt(arguments: &Arguments) -> io::Result<()> {
    probe(
        arguments,
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 6).into(),
    )?;
    let source = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
    // Without the address there is no IPv6 here (NET-122).
    if std::net::UdpSocket::bind((source, 0)).is_ok() {
        probe(arguments, Ipv6Addr::LOCALHOST.into(), source.into())?;
    }
    Ok(())
}

/// A connection from `from` to a port of `to` where nobody listens must arrive at one of the capture ports.
fn probe(arguments: &Arguments, from: IpAddr, to: IpAddr) -> io::Result<()> {
    let ports = [arguments.outbound_port, arguments.inbound_port];
    let is_transparent = arguments.interception_mode == Mode::Tproxy;
    let any: IpAddr = if from.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let listen = |port: &u16| -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(SocketAddr::new(any, *port)),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if any.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if is_transparent {
            crate::io::transparent(&socket, any.is_ipv4())?;
        }
        socket.bind(&SocketAddr::new(any, *port).into())?;
        socket.listen(8)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    let listeners = ports.iter().map(listen).collect::<io::Result<Vec<_>>>()?;
    let client = Socket::new(
        Domain::for_address(SocketAddr::new(from, 0)),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    client.bind(&SocketAddr::new(from, 0).into())?;
    let target = SocketAddr::new(to, TEST_PORT);
    client
        .connect_timeout(&target.into(), PAUSE)
        .map_err(|e| io::Error::new(e.kind(), format!("connect to {target}: {e}")))?;
    let local = client.local_addr()?.as_socket();
    let begin = Instant::now();
    while begin.elapsed() < PAUSE {
        for listener in &listeners {
            let Ok((stream, peer)) = listener.accept() else {
                continue;
            };
            let socket = SockRef::from(&stream);
            let original = if is_transparent {
                // The address is the original one (NET-064).
                socket.local_addr()
            } else if from.is_ipv4() {
                socket.original_dst_v4()
            } else {
                socket.original_dst_v6()
            };
            let port = original?.as_socket().map(|address| address.port());
            if Some(peer) == local && port == Some(TEST_PORT) {
                return Ok(());
            }
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("a connection to {target} did not arrive at {ports:?}"),
    ))
}

/// A port where nothing listens (NET-010).
const TEST_PORT: u16 = 15002;
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
