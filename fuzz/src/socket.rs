//! A socket with bytes in it, and a runtime to read them on.

use std::cell::OnceCell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// Longest input that a connection takes: far less than the buffer of its socket, which nobody reads meanwhile.
pub(crate) const MOST_BYTES: usize = 32 * 1024;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    static LISTENER: OnceCell<Rc<TcpListener>> = const { OnceCell::new() };
}

/// Runs something to its end on a runtime of this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A connection whose peer has sent these bytes and will send no more; the peer is kept.
pub(crate) async fn connection(bytes: &[u8]) -> (TcpStream, TcpStream) {
    let listener = LISTENER.with(|listener| listener.get_or_init(|| Rc::new(listen())).clone());
    let address = listener.local_addr().expect("an address");
    let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (mut peer, stream) = (peer.expect("connected"), accepted.expect("accepted").0);
    // Ports are few: a reset frees them at once.
    peer.set_zero_linger().expect("an option");
    peer.write_all(bytes).await.expect("sent");
    peer.shutdown().await.expect("half-closed");
    (stream, peer)
}

fn listen() -> TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("an option");
    TcpListener::from_std(listener).expect("a listener")
}
