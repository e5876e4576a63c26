//! TLS over a socket. rustls does the handshake and protects the records; what is read and written on the way passes
//! through buffers of the worker, so that an idle connection holds none.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::ops::DerefMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;
use std::future::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Plain bytes of a full record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;

/// What a record adds at most, in versions 1.2 and 1.3 with the suites that we offer: header, nonce, type and tag.
const RECORD_OVERHEAD: usize = 64;

/// At most this many plain bytes are protected at once, and not yet taken by the socket.
const MAX_WRITE: usize = 4 * RECORD;

/// At most this many bytes are read from a socket at once.
const MAX_READ: usize = 4 * (RECORD + RECORD_OVERHEAD);

/// Longest incomplete record or handshake message that is kept until the rest of it comes. rustls refuses longer ones
/// (65,535 bytes of handshake, 16 KiB and 256 bytes of others); what is beyond is a fault of ours.
const MAX_INCOMPLETE: usize = 2 * MAX_READ;

thread_local! {
    /// Buffers of a worker, used within one poll.
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

#[derive(Default)]
struct Buffers {
    /// What a socket gave.
    input: Vec<u8>,
    /// What goes to a socket.
    output: Vec<u8>,
    /// Plain bytes of several slices.
    gathered: Vec<u8>,
}

/// A session in either role.
enum Session {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// The role's own entry, which rustls has no common name for.
trait Role<Data>: DerefMut<Target = UnbufferedConnectionCommon<Data>> {
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Data>;
}

impl Role<ServerConnectionData> for UnbufferedServerConnection {
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(input)
    }
}

impl Role<ClientConnectionData> for UnbufferedClientConnection {
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(input)
    }
}

/// What is done once no more records are there to be read.
enum Then<'a> {
    /// Nothing.
    Wait,
    /// Plain bytes are protected.
    Write(&'a [u8]),
    /// The peer is told that no more will come.
    Close,
}

/// What came of a step.
#[derive(Default)]
struct Step {
    /// Bytes of the input that are dealt with.
    used: usize,
    /// The peer has said that no more will come.
    peer_closed: bool,
    /// What [`Then`] asked for was done.
    done: bool,
}

/// Reads records from `input`, hands their plain bytes to `plain`, and adds to `output` what is to be sent: answers of
/// the handshake, alerts, and what `then` asks for.
fn step<Data>(
    session: &mut impl Role<Data>,
    input: &mut [u8],
    output: &mut Vec<u8>,
    plain: &mut dyn FnMut(&[u8]),
    then: &Then<'_>,
) -> (Step, Result<(), rustls::Error>) {
    let mut step = Step::default();
    let mut failure = None;
    loop {
        let UnbufferedStatus { mut discard, state } = session.process(&mut input[step.used..]);
        let mut goes_on = true;
        match state {
            Err(error) => failure = Some(error),
            Ok(ConnectionState::ReadTraffic(mut records)) => {
                while let Some(record) = records.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            plain(record.payload);
                        }
                        Err(error) => failure = Some(error),
                    }
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let start = output.len();
                if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) {
                    output.resize(start + needed.required_size, 0);
                    // The size is what was asked for, so this succeeds.
                    let written = data.encode(&mut output[start..]).unwrap_or_default();
                    output.truncate(start + written);
                }
            }
            // It is in `output`, which is sent in order.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => step.peer_closed = true,
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                step.done = true;
                goes_on = false;
                let mut add = |length: usize, protect: &mut dyn FnMut(&mut [u8]) -> Result<usize, EncryptError>| {
                    let start = output.len();
                    output.resize(start + length, 0);
                    let written = match protect(&mut output[start..]) {
                        Err(EncryptError::InsufficientSize(needed)) => {
                            output.resize(start + needed.required_size, 0);
                            protect(&mut output[start..])
                        }
                        result => result,
                    };
                    step.done &= written.is_ok();
                    output.truncate(start + written.unwrap_or_default());
                };
                match then {
                    Then::Wait => {}
                    Then::Write(bytes) => {
                        let length = bytes.len() + (bytes.len() / RECORD + 1) * RECORD_OVERHEAD;
                        add(length, &mut |output| traffic.encrypt(bytes, output));
                    }
                    Then::Close => add(RECORD_OVERHEAD, &mut |output| traffic.queue_close_notify(output)),
                }
            }
            // More must come, or nothing more will.
            Ok(_) => goes_on = false,
        }
        step.used += discard;
        if failure.is_some() {
            // The alert that tells of the failure; the input must not be looked at again.
            goes_on = session.wants_write();
        }
        if !goes_on {
            return (step, failure.map_or(Ok(()), Err));
        }
    }
}

impl Session {
    fn step(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
        then: &Then<'_>,
    ) -> (Step, Result<(), rustls::Error>) {
        match self {
            Self::Server(session) => step(&mut **session, input, output, plain, then),
            Self::Client(session) => step(&mut **session, input, output, plain, then),
        }
    }

    fn state(&self) -> &CommonState {
        match self {
            Self::Server(session) => session,
            Self::Client(session) => session,
        }
    }
}

/// TLS over a socket, after its handshake. A read of 0 bytes is the peer's `close_notify`; an end of the connection
/// without one is `UnexpectedEof` (RFC 8446, section 6.1).
pub struct TlsStream {
    socket: TcpStream,
    session: Session,
    /// The beginning of a record whose rest has not come.
    input: BytesMut,
    /// Plain bytes that nobody has read yet.
    plain: BytesMut,
    /// Protected bytes that the socket has not taken yet.
    output: BytesMut,
    peer_closed: bool,
    closed: bool,
    failed: bool,
    /// Why it failed, until a reader was told who first got what came before.
    failure: Option<io::Error>,
}

impl TlsStream {
    /// Handshake of a server. `hello`: what the client has sent already.
    ///
    /// # Errors
    /// That of the socket; `UnexpectedEof` when the client leaves; `InvalidData` with a [`rustls::Error`] for a handshake
    /// that fails, after an alert was sent.
    pub async fn accept(config: Arc<ServerConfig>, socket: TcpStream, hello: BytesMut) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        Self::handshake(Session::Server(Box::new(session)), socket, &hello).await
    }

    /// Handshake of a client.
    ///
    /// # Errors
    /// See [`Self::accept`].
    pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, socket: TcpStream) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        Self::handshake(Session::Client(Box::new(session)), socket, &[]).await
    }

    async fn handshake(session: Session, socket: TcpStream, hello: &[u8]) -> io::Result<Self> {
        let mut stream = Self {
            socket,
            session,
            input: BytesMut::new(),
            plain: BytesMut::new(),
            output: BytesMut::new(),
            peer_closed: false,
            closed: false,
            failed: false,
            failure: None,
        };
        // Begins: the client's hello, or what is there of it already.
        poll_fn(|cx| {
            BUFFERS.with_borrow_mut(|Buffers { input, output, .. }| {
                input.clear();
                input.extend_from_slice(hello);
                Poll::Ready(stream.take_in(cx, (input, output), hello.len(), &mut |_| 0, &Then::Wait))
            })
        })
        .await?;
        loop {
            poll_fn(|cx| stream.poll_drain(cx)).await?;
            if !stream.session.state().is_handshaking() {
                return Ok(stream);
            }
            let count = poll_fn(|cx| stream.poll_receive(cx, MAX_READ, &mut |_| 0)).await?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer left during the handshake",
                ));
            }
        }
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// What the handshake agreed on.
    #[must_use]
    pub fn state(&self) -> &CommonState {
        self.session.state()
    }

    /// Reads once from the socket, at most `most` bytes, and deals with what came. Plain bytes go to `reader`, which says
    /// how many it took; the rest waits in `self.plain`. The result is how many bytes the socket gave.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        reader: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        BUFFERS.with_borrow_mut(|Buffers { input, output, .. }| {
            let kept = self.input.len();
            // What is kept counts, so that reads end where records do; only a long message of the handshake takes more.
            let length = if kept < most { most } else { kept + most };
            if input.len() < length {
                input.resize(length, 0);
            }
            let mut space = ReadBuf::new(&mut input[kept..length]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count > 0 {
                self.take_in(cx, (input, output), count, reader, &Then::Wait)?;
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Deals with what was kept and the `count` bytes that stand behind room for it in the first buffer, then with what
    /// is asked for, and sends. rustls counts on what was kept being there each time.
    fn take_in(
        &mut self,
        cx: &mut Context<'_>,
        (input, output): (&mut Vec<u8>, &mut Vec<u8>),
        count: usize,
        reader: &mut dyn FnMut(&[u8]) -> usize,
        then: &Then<'_>,
    ) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let length = self.input.len() + count;
        if input.len() < length {
            input.resize(length, 0);
        }
        input[..self.input.len()].copy_from_slice(&self.input);
        let unread = &mut self.plain;
        let mut plain = |bytes: &[u8]| {
            // In order: once something waits, all that follows waits behind it.
            let taken = if unread.is_empty() { reader(bytes) } else { 0 };
            unread.extend_from_slice(&bytes[taken..]);
        };
        output.clear();
        let (step, result) = self.session.step(&mut input[..length], output, &mut plain, then);
        self.peer_closed |= step.peer_closed;
        let left = &input[step.used..length];
        if left.is_empty() || self.peer_closed {
            // What follows close_notify is never looked at (RFC 8446, section 6.1).
            self.input = BytesMut::new();
        } else if count > 0 || step.used > 0 {
            // Without new bytes rustls changed nothing in place.
            self.input = BytesMut::from(left);
        }
        let is_too_long = self.input.len() > MAX_INCOMPLETE;
        self.failed |= result.is_err() || is_too_long;
        let sent = self.send(cx, output);
        // The reason counts, and not whether the peer could be told.
        result.map_err(invalid)?;
        if is_too_long {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS message is too long"));
        }
        sent?;
        if step.done || matches!(then, Then::Wait) {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    /// Sends what the socket takes now; the rest follows when it takes more, or tells of the error again.
    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        let mut result = Ok(());
        while self.output.is_empty() && sent < bytes.len() && result.is_ok() {
            match Pin::new(&mut self.socket).poll_write(cx, &bytes[sent..]) {
                Poll::Ready(Ok(0)) => result = Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => result = Err(error),
                Poll::Pending => break,
            }
        }
        self.output.extend_from_slice(&bytes[sent..]);
        result
    }

    /// Sends what is held back.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.output.split_to(count)),
            }
        }
        self.output = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.plain.is_empty() {
                let count = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain[..count]);
                drop(this.plain.split_to(count));
                if this.plain.is_empty() {
                    this.plain = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.peer_closed {
                return Poll::Ready(Ok(()));
            }
            if this.failed {
                let error = this.failure.take();
                return Poll::Ready(Err(error.unwrap_or_else(|| io::ErrorKind::InvalidData.into())));
            }
            let before = buf.filled().len();
            // As many whole records as the reader has room for, so that little waits, and one at least.
            let records = buf.remaining().div_ceil(RECORD).max(1);
            let most = (records * (RECORD + RECORD_OVERHEAD)).min(MAX_READ);
            let read = this.poll_receive(cx, most, &mut |bytes| {
                let count = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..count]);
                count
            });
            let arrived = buf.filled().len() > before;
            match ready!(read) {
                // What came before a failure is good; the failure follows.
                read if arrived => {
                    this.failure = read.err().filter(|_| this.failed);
                    return Poll::Ready(Ok(()));
                }
                Ok(0) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer closed the connection without close_notify",
                    )));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        let bytes = &bytes[..bytes.len().min(MAX_WRITE)];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        BUFFERS.with_borrow_mut(|Buffers { input, output, .. }| {
            this.take_in(cx, (input, output), 0, &mut |_| 0, &Then::Write(bytes))
        })?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        BUFFERS.with_borrow_mut(
            |Buffers {
                 input,
                 output,
                 gathered,
             }| {
                let mut filled = slices.iter().filter(|slice| !slice.is_empty());
                let (first, second) = (filled.next(), filled.next());
                let bytes: &[u8] = if second.is_none() {
                    first.map_or(&[], |slice| &slice[..slice.len().min(MAX_WRITE)])
                } else {
                    // One record costs less than several, and rustls takes them from one piece.
                    gathered.clear();
                    for slice in slices {
                        let room = MAX_WRITE - gathered.len();
                        gathered.extend_from_slice(&slice[..slice.len().min(room)]);
                    }
                    gathered
                };
                let count = bytes.len();
                if count > 0 {
                    this.take_in(cx, (input, output), 0, &mut |_| 0, &Then::Write(bytes))?;
                }
                Poll::Ready(Ok(count))
            },
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if !this.closed {
            this.closed = true;
            // One that failed has told the peer already.
            if !this.failed {
                BUFFERS.with_borrow_mut(|Buffers { input, output, .. }| {
                    this.take_in(cx, (input, output), 0, &mut |_| 0, &Then::Close)
                })?;
            }
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
