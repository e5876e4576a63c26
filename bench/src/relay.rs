//! Relays that do nothing else: what opaque TCP is measured against.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use tokio::io::{AsyncRead, AsyncWrite, Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::material;

/// What a pipe holds by default, and what one splice moves at most.
const PIPE_BYTES: usize = 64 * 1024;

/// A TLS record's content.
const BUFFER_BYTES: usize = 16 * 1024;

/// Arguments of `relay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How
    #[arg(value_enum)]
    kind: Kind,
    /// Where clients connect to
    #[arg(long)]
    listen: SocketAddr,
    /// Where their bytes go
    #[arg(long)]
    target: SocketAddr,
    /// Directory with the identity, for TLS
    #[arg(long)]
    identity: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// splice(2), in the kernel
    Splice,
    /// From plaintext to TLS, through buffers
    TlsClient,
    /// From TLS to plaintext, through buffers
    TlsServer,
}

/// Relays until the process is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, accept(arguments))
}

async fn accept(arguments: &Arguments) -> anyhow::Result<()> {
    let identity = || arguments.identity.as_deref().context("TLS needs --identity");
    let (mut connector, mut acceptor) = (None, None);
    match arguments.kind {
        Kind::Splice => {}
        Kind::TlsClient => connector = Some(TlsConnector::from(Arc::new(material::client(identity()?)?))),
        Kind::TlsServer => acceptor = Some(TlsAcceptor::from(Arc::new(material::server(identity()?)?))),
    }
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("listen on {}", arguments.listen))?;
    let target = arguments.target;
    loop {
        let (client, _) = listener.accept().await?;
        let (connector, acceptor) = (connector.clone(), acceptor.clone());
        tokio::task::spawn_local(async move {
            let relayed = async {
                client.set_nodelay(true)?;
                let server = TcpStream::connect(target).await?;
                server.set_nodelay(true)?;
                match (connector, acceptor) {
                    (Some(connector), _) => {
                        let name = material::NAME.try_into().expect("a name");
                        copy(client, connector.connect(name, server).await?).await
                    }
                    (None, Some(acceptor)) => copy(acceptor.accept(client).await?, server).await,
                    (None, None) => splice_both(&client, &server).await,
                }
            };
            if let Err(error) = relayed.await {
                eprintln!("relay to {target}: {error}");
            }
        });
    }
}

async fn copy(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<()> {
    copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES)
        .await
        .map(|_| ())
}

async fn splice_both(client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    tokio::try_join!(splice_one(client, server), splice_one(server, client)).map(|_| ())
}

async fn splice_one(source: &TcpStream, sink: &TcpStream) -> std::io::Result<()> {
    let (output, input) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    loop {
        let mut held = source
            .async_io(Interest::READABLE, || move_bytes(source, &input, PIPE_BYTES))
            .await?;
        if held == 0 {
            let _ = nix::sys::socket::shutdown(sink.as_raw_fd(), nix::sys::socket::Shutdown::Write);
            return Ok(());
        }
        while held > 0 {
            held -= sink
                .async_io(Interest::WRITABLE, || move_bytes(&output, sink, held))
                .await?;
        }
    }
}

fn move_bytes(from: &impl AsFd, to: &impl AsFd, most: usize) -> std::io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(from, None, to, None, most, flags).map_err(Errno::into)
}
