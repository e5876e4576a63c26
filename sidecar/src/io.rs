//! Byte streams: a socket, bare or inside TLS, with the bytes that were read ahead of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use weft_bundle::wire;

use crate::tls::TlsStream;

/// A byte stream.
pub struct Io {
    prefix: Bytes,
    transport: Transport,
}

enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self {
            prefix: Bytes::new(),
            transport: Transport::Tcp(stream),
        }
    }
}

impl From<TlsStream> for Io {
    fn from(stream: TlsStream) -> Self {
        Self {
            prefix: Bytes::new(),
            transport: Transport::Tls(Box::new(stream)),
        }
    }
}

impl Io {
    /// Puts bytes that were read ahead back in front.
    #[must_use]
    pub fn with_prefix(mut self, prefix: Bytes) -> Self {
        self.prepend(prefix);
        self
    }

    /// As [`Self::with_prefix`], in place.
    pub fn prepend(&mut self, prefix: Bytes) {
        self.prefix = if self.prefix.is_empty() {
            prefix
        } else {
            let mut joined = BytesMut::from(&prefix[..]);
            joined.extend_from_slice(&self.prefix);
            joined.freeze()
        };
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match &self.transport {
            Transport::Tcp(stream) => stream,
            Transport::Tls(stream) => stream.socket(),
        }
    }

    /// The socket, where its bytes are the stream's: no TLS, and nothing was read ahead.
    #[must_use]
    pub fn plain(&self) -> Option<&TcpStream> {
        match &self.transport {
            Transport::Tcp(stream) if self.prefix.is_empty() => Some(stream),
            _ => None,
        }
    }

    /// The socket and what was read ahead of it; `None` for TLS.
    #[must_use]
    pub fn into_plain(self) -> Option<(TcpStream, Bytes)> {
        match self.transport {
            Transport::Tcp(stream) => Some((stream, self.prefix)),
            Transport::Tls(_) => None,
        }
    }

    /// Whether bytes are protected by TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        !matches!(self.transport, Transport::Tcp(_))
    }

    /// Reads once into `buf`, which grows by at most 16 KiB; 0 is the end.
    pub fn poll_read_into(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        self.poll_read_up_to(cx, buf, 16 * 1024)
    }

    /// Reads once into `buf`, which grows by at most `room` bytes; 0 is the end.
    pub fn poll_read_up_to(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        if buf.capacity() - buf.len() < 1024 {
            buf.reserve(room);
        }
        pin!(self.read_buf(buf)).poll(cx)
    }

    /// Writes once.
    pub fn poll_write_once(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    /// Aborts the connection: the peer sees a reset where the kernel allows it.
    pub fn reset(&self) {
        // Failure leaves an orderly close, which the peer copes with.
        let _ = SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let length = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..length]);
            self.prefix.advance(length);
            if self.prefix.is_empty() {
                // Even empty it would keep the whole buffer that it was cut from.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// How a connection is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dial {
    /// Mark that the redirect lets pass (NET-081, NET-112).
    pub mark: Option<u32>,
    /// Where the connection comes from.
    pub source: Source,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// The kernel's choice.
    #[default]
    Any,
    /// 127.0.0.6 or ::6 (NET-029).
    Proxy,
    /// The client's address (NET-081), and a port, or one above it.
    Client(SocketAddr),
}

/// Opens a TCP connection.
///
/// # Errors
/// That of the kernel.
pub async fn dial(address: SocketAddr, how: Dial) -> io::Result<TcpStream> {
    match how.source {
        Source::Client(client) if can_stand_for(client.ip(), address.ip()) => {
            stand_for(client, address, how.mark).await
        }
        Source::Any => connect(open(address, how.mark)?, address).await,
        Source::Proxy | Source::Client(_) => {
            let socket = open(address, how.mark)?;
            let source: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
                SocketAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
            };
            // Otherwise the port is reserved at bind, and 28 000 connections to all applications are the limit.
            let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
            socket.bind(&SocketAddr::new(source, 0).into())?;
            connect(socket, address).await
        }
    }
}

fn open(address: SocketAddr, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

async fn connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether packets of a client can arrive at an address of this namespace: of its family, neither on loopback alone.
fn can_stand_for(client: IpAddr, address: IpAddr) -> bool {
    let link_local = matches!(client, IpAddr::V6(v6) if v6.is_unicast_link_local());
    client.is_ipv4() == address.is_ipv4() && !client.is_loopback() && !address.is_loopback() && !link_local
}

/// Connects in a client's name. A port that cannot be used, because somebody listens there or because it has a connection
/// to the same address already, gives way to the next one.
async fn stand_for(mut client: SocketAddr, address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let mut tries = 0;
    loop {
        let socket = open(address, mark)?;
        transparent(&socket, client.is_ipv4())?;
        // Connections to different ports of the application may share one.
        socket.set_reuse_address(true)?;
        let connected = match socket.bind(&client.into()) {
            Ok(()) => connect(socket, address).await,
            Err(e) => Err(e),
        };
        match connected {
            Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                tries += 1;
                if tries == CLIENT_PORT_TRIES {
                    return Err(e);
                }
                let next = client.port() + 1;
                client.set_port(if CLIENT_PORTS.contains(&next) {
                    next
                } else {
                    CLIENT_PORTS.start
                });
            }
            result => return result,
        }
    }
}

/// Lets a socket use addresses that are not this namespace's; needs NET_ADMIN (NET-083).
pub(crate) fn transparent(socket: &Socket, is_v4: bool) -> io::Result<()> {
    if is_v4 {
        socket.set_ip_transparent_v4(true)
    } else {
        socket.set_ip_transparent_v6(true)
    }
}

/// Ports of connections in a client's name: above the proxy's own, below those that Linux and most other systems choose
/// for clients.
pub const CLIENT_PORTS: std::ops::Range<u16> = 16_384..32_768;

/// How many ports are tried.
const CLIENT_PORT_TRIES: u32 = 64;

/// Turns keepalive on (DR-076).
pub fn keepalive(stream: &TcpStream, wanted: &wire::TcpKeepalive) {
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = wanted.time_seconds {
        keepalive = keepalive.with_time(Duration::from_secs(time));
    }
    if let Some(interval) = wanted.interval_seconds {
        keepalive = keepalive.with_interval(Duration::from_secs(interval));
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    // A connection without keepalive still serves.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The address that a redirected client dialled; `None` when the connection was not redirected (NET-061, NET-062).
#[must_use]
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let peer_is_v4 = match stream.peer_addr().ok()? {
        SocketAddr::V4(_) => true,
        // A mapped peer of a dual-stack listener is an IPv4 connection to the kernel's tables.
        SocketAddr::V6(peer) => peer.ip().to_ipv4_mapped().is_some(),
    };
    let original = if peer_is_v4 {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    original.ok()?.as_socket().map(canonical)
}

/// Whether this process or its node ran out of descriptors or memory: waiting helps, another address does not.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// An IPv4-mapped address as the IPv4 address that it is.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether this process may use addresses that are not its own (NET-083).
///
/// # Errors
/// That of the kernel.
pub fn try_transparent() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    transparent(&socket, true)
}

/// 127.0.0.1, and ::1 where IPv6 is there (NET-001, NET-002).
#[must_use]
pub fn loopbacks() -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    if has_ipv6() {
        addresses.push(Ipv6Addr::LOCALHOST.into());
    }
    addresses
}

/// Whether this namespace has IPv6.
#[must_use]
pub fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Opens a listening socket that several workers can share. `any`: for connections to whatever address, with TPROXY.
///
/// # Errors
/// That of the kernel; `AddrInUse` names no port, the caller does.
pub fn listen(address: SocketAddr, any: bool) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(bind(address, any)?)
}

/// The same before there is a runtime for it.
///
/// # Errors
/// See [`listen`].
pub fn bind(address: SocketAddr, any: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if any {
        transparent(&socket, address.is_ipv4())?;
    }
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}
