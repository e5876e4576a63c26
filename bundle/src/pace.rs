//! Lets others run while a configuration is read. Reading needs milliseconds, and a request that comes meanwhile is to find
//! its processor free: the scheduler of Linux may let a thread that it chose run on for its whole slice, which is as long,
//! whatever its niceness (LIFE-042).

use std::cell::Cell;
use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// Gives the processor to whoever waits for it, if the thread had it for a while. Called between the steps of whatever can be
/// long; costs the look at a clock.
pub fn breathe() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let is_long = LAST.get().is_none_or(|last| now - last > STEP);
    if is_long {
        thread::yield_now();
        LAST.set(Some(Instant::now()));
    }
}

/// A reader of which each read is a step.
pub(crate) struct Breathing<R>(pub(crate) R);

impl<R: Read> Read for Breathing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        breathe();
        let most = buffer.len().min(CHUNK);
        self.0.read(&mut buffer[..most])
    }
}

/// SHA-256, in steps.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for chunk in bytes.chunks(CHUNK) {
        breathe();
        hash.update(chunk);
    }
    hash.finalize().into()
}

/// How long a thread has the processor to itself.
const STEP: Duration = Duration::from_micros(50);
/// What is hashed or copied in about that time.
const CHUNK: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_change_nothing() {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3 * CHUNK + 5).collect();
        assert_eq!(sha256(&bytes), <[u8; 32]>::from(Sha256::digest(&bytes)));
        assert_eq!(sha256(&[]), <[u8; 32]>::from(Sha256::digest([])));
        let mut read = Vec::new();
        let count = Breathing(bytes.as_slice()).read_to_end(&mut read);
        assert_eq!((count.ok(), read), (Some(bytes.len()), bytes));
    }
}
