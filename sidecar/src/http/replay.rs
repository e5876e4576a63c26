//! A request's body that can be sent again while it is still held (VS-120), and the time limit of a route.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Headers;
use super::body::{Body, BodyError, Frame};

/// Longest body that is held for another try.
pub const REPLAY_BYTES: usize = 1024 * 1024;

/// What is counted of a body while it passes.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes.
    pub bytes: Cell<u64>,
    /// Bytes that were received beyond those, where a coding was taken off.
    pub coding: Cell<u64>,
    /// The end was seen.
    pub ended: Cell<bool>,
    /// When the end was seen.
    pub ended_at: Cell<Option<Instant>>,
    /// gRPC messages, when they are counted.
    pub messages: Messages,
    /// A copy for mirrors, while it is small enough (VS-136).
    pub copy: RefCell<Option<Vec<Bytes>>>,
}

impl Meter {
    fn see(&self, data: &Bytes) {
        self.bytes.set(self.bytes.get() + data.len() as u64);
        let mut copy = self.copy.borrow_mut();
        if let Some(pieces) = &mut *copy {
            if self.bytes.get() > REPLAY_BYTES as u64 {
                *copy = None;
            } else {
                pieces.push(data.clone());
            }
        }
    }
}

/// Counts gRPC messages in a byte stream: five bytes of prefix, then the message.
#[derive(Debug, Default)]
pub struct Messages {
    count: Cell<u64>,
    /// Bytes of the current message that are still to come.
    left: Cell<u64>,
    /// Bytes of the prefix that were seen, and its length so far.
    prefix: Cell<(u8, u32)>,
}

impl Messages {
    /// Messages that began.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// Looks at the next bytes.
    pub fn see(&self, mut data: &[u8]) {
        while !data.is_empty() {
            let left = self.left.get();
            if left > 0 {
                let skip = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                self.left.set(left - skip as u64);
                data = &data[skip..];
                continue;
            }
            let (seen, length) = self.prefix.get();
            let length = if seen == 0 { 0 } else { length << 8 | u32::from(data[0]) };
            data = &data[1..];
            if seen == 4 {
                self.count.set(self.count.get() + 1);
                self.left.set(u64::from(length));
                self.prefix.set((0, 0));
            } else {
                self.prefix.set((seen + 1, length));
            }
        }
    }
}

/// A request's body.
pub struct Replay {
    inner: Option<Box<Inner>>,
    home: Option<Home>,
}

/// Where a body goes when a try is given up with it (VS-115).
pub type Home = Rc<Cell<Option<Box<Inner>>>>;

/// What a [`Replay`] holds.
pub struct Inner {
    source: Body,
    meter: Rc<Meter>,
    grpc: bool,
    /// Frames that were read, while they are held.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Next of the held frames.
    next: usize,
    /// Trailers that were read, and whether this try has passed them on.
    trailers: Option<Headers>,
    trailed: bool,
    /// More was read than is held: no other try.
    lost: bool,
    keep: bool,
    empty: bool,
}

impl Replay {
    /// Takes over a body. `keep`: another try may come.
    #[must_use]
    pub fn new(source: Body, meter: Rc<Meter>, grpc: bool, keep: bool) -> Self {
        let empty = source.is_end();
        if empty {
            meter.ended.set(true);
        }
        let inner = Inner {
            source,
            meter,
            grpc,
            held: Vec::new(),
            held_bytes: 0,
            next: 0,
            trailers: None,
            trailed: false,
            lost: false,
            keep,
            empty,
        };
        Self {
            inner: Some(Box::new(inner)),
            home: None,
        }
    }

    /// From now on the body comes back to `home` when this value is dropped.
    pub fn lend(&mut self, home: &Home) {
        self.home = Some(home.clone());
    }

    /// The body that came back to `home`.
    #[must_use]
    pub fn recover(home: &Home) -> Option<Self> {
        let inner = home.take()?;
        Some(Self {
            inner: Some(inner),
            home: None,
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.set(self.inner.take());
        }
    }
}

impl std::ops::Deref for Replay {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        self.inner.as_ref().expect("taken on drop alone")
    }
}

impl std::ops::DerefMut for Replay {
    fn deref_mut(&mut self) -> &mut Inner {
        self.inner.as_mut().expect("taken on drop alone")
    }
}

impl Inner {
    /// There is no body at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Everything was read and passed on.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.empty || (self.meter.ended.get() && self.next >= self.held.len())
    }

    /// Whether it can begin anew.
    #[must_use]
    pub fn can_rewind(&self) -> bool {
        self.empty || (self.keep && !self.lost)
    }

    /// Begins anew; false when that is no longer possible.
    pub fn rewind(&mut self) -> bool {
        if self.lost || !self.keep {
            return self.empty;
        }
        self.next = 0;
        self.trailed = false;
        true
    }

    /// Holds nothing any more.
    pub fn release(&mut self) {
        self.keep = false;
        if self.next >= self.held.len() {
            self.held.clear();
            self.next = 0;
        }
    }

    /// Lets the client send.
    pub fn send_continue(&self) {
        self.source.send_continue();
    }

    /// Next frame.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, BodyError>> {
        if self.empty {
            return Poll::Ready(Ok(None));
        }
        if let Some(frame) = self.held.get(self.next) {
            self.next += 1;
            return Poll::Ready(Ok(Some(Frame::Data(frame.clone()))));
        }
        if let Some(trailers) = self.trailers.as_ref().filter(|_| !self.trailed) {
            self.trailed = true;
            return Poll::Ready(Ok(Some(Frame::Trailers(trailers.clone()))));
        }
        if self.meter.ended.get() {
            return Poll::Ready(Ok(None));
        }
        let frame = std::task::ready!(self.source.poll_frame(cx));
        match &frame {
            Ok(Some(Frame::Data(data))) => {
                self.meter.see(data);
                if self.grpc {
                    self.meter.messages.see(data);
                }
                if self.keep && !self.lost {
                    if self.held_bytes + data.len() <= REPLAY_BYTES {
                        self.held_bytes += data.len();
                        self.held.push(data.clone());
                        self.next += 1;
                    } else {
                        self.lost = true;
                        self.held = Vec::new();
                        self.next = 0;
                    }
                }
                if self.source.is_end() {
                    self.end();
                }
            }
            Ok(None) => self.end(),
            Ok(Some(Frame::Trailers(trailers))) => {
                self.trailers = Some(trailers.clone());
                self.trailed = true;
            }
            Err(_) => {}
        }
        Poll::Ready(frame)
    }

    fn end(&self) {
        if !self.meter.ended.replace(true) {
            self.meter.ended_at.set(Some(Instant::now()));
        }
    }
}

/// Limit of a route: it begins when the request was received as a whole (VS-093).
pub struct Limit {
    lasts: Duration,
    meter: Rc<Meter>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    /// A limit for the request that `meter` counts.
    #[must_use]
    pub fn new(lasts: Duration, meter: Rc<Meter>) -> Self {
        Self {
            lasts,
            meter,
            sleep: None,
        }
    }

    /// Ready when the time is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sleep.is_none() && self.meter.ended.get() {
            let begin = self.meter.ended_at.get().unwrap_or_else(Instant::now);
            self.sleep = Some(Box::pin(sleep_until(begin + self.lasts)));
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
