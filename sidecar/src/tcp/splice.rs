//! Bytes from one socket to another without a copy: through a pipe, which holds the kernel's pages.
//!
//! A connection has a pipe only while bytes are in it. Pipes count against a limit of the user, and most connections
//! wait most of the time.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds by default.
const PIPE_BYTES: usize = 64 * 1024;

/// Empty pipes that a worker keeps.
const SPARE_PIPES: usize = 16;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe of this process alone.
pub(super) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// Those of the kernel, which limits descriptors.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(spare);
        }
        let (output, input) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        Ok(Self { output, input, held: 0 })
    }

    /// Keeps the pipe for the next connection; one with bytes in it is closed.
    pub(super) fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if self.held == 0 && spare.len() < SPARE_PIPES {
                spare.push(self);
            }
        });
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes bytes from a socket into the empty pipe; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, source: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(source.poll_read_ready(cx))?;
            match source.try_io(Interest::READABLE, || transfer(source, &self.input, PIPE_BYTES)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                filled => {
                    self.held += *filled.as_ref().unwrap_or(&0);
                    return Poll::Ready(filled);
                }
            }
        }
    }

    /// Moves what is in the pipe to a socket.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(sink.poll_write_ready(cx))?;
            match sink.try_io(Interest::WRITABLE, || transfer(&self.output, sink, self.held)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                drained => {
                    self.held -= *drained.as_ref().unwrap_or(&0);
                    return Poll::Ready(drained);
                }
            }
        }
    }
}

fn transfer(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    splice(from, None, to, None, most, flags).map_err(Errno::into)
}
