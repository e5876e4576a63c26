//! What the kernel knows of a connection.

use std::os::fd::AsRawFd;

use nix::libc;
use tokio::net::TcpStream;

/// Bytes that the peer has acknowledged since the connection began; `None` where the kernel does not tell.
#[must_use]
pub fn bytes_acked(stream: &TcpStream) -> Option<u64> {
    /// Position of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h): 8 one-byte fields, 24 of four, 2 of eight.
    const OFFSET: usize = 8 + 24 * 4 + 2 * 8;
    let mut info = [0u8; 256];
    let mut length = libc::socklen_t::try_from(info.len()).ok()?;
    #[expect(unsafe_code, reason = "no safe wrapper knows the extended fields of TCP_INFO")]
    // SAFETY: the kernel writes at most `length` bytes into `info`, which lives through the call, and sets `length`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let written = usize::try_from(length).ok()?;
    if result != 0 || written < OFFSET + 8 {
        return None;
    }
    let bytes = info.get(OFFSET..OFFSET + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}
