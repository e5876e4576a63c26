//! The access log: one line for each request or connection at its end, written by a thread of its own, so that a
//! slow reader never delays a request (spec: telemetry.md, LOG).
//!
//! A worker renders its line into a buffer of its own. The thread collects the buffers a moment after the first line,
//! so that many lines cost one wake-up and one write.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use weft_bundle::wire::{AccessLog, LogEncoding};

use crate::exchange::{Details, Exchange, Flags, Session};

mod format;

use format::{Format, Record};

/// Takes lines from workers.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Lines>,
    settings: ArcSwap<Settings>,
    sampled: AtomicU64,
}

#[derive(Debug)]
struct Settings {
    mode: Mode,
    format: Format,
    keeps_headers: bool,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    All,
    None,
    /// Every error, and one of a hundred of the rest (BYD-034).
    Sampled,
}

impl Settings {
    fn new(log: Option<&AccessLog>) -> Self {
        let (mode, format) = match log {
            None => (Mode::Sampled, Format::text(None)),
            Some(log) => {
                let mode = if log.path.is_empty() { Mode::None } else { Mode::All };
                let format = log.format.as_deref();
                match log.encoding {
                    LogEncoding::Text => (mode, Format::text(format)),
                    LogEncoding::Json => (mode, Format::json(format)),
                }
            }
        };
        let keeps_headers = mode != Mode::None && format.keeps_headers();
        Self {
            mode,
            format,
            keeps_headers,
        }
    }
}

impl Log {
    /// Starts the writing thread, for a number of workers; it ends with the log.
    #[must_use]
    pub fn start(workers: usize) -> Self {
        let lines = Arc::new(Lines {
            buffers: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            orders: Mutex::default(),
            given: Condvar::new(),
            done: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let written = lines.clone();
        if let Err(e) = thread.spawn(move || written.write()) {
            tracing::error!(error = %e, "no thread for the access log, lines are dropped");
        }
        Self {
            lines,
            settings: ArcSwap::from_pointee(Settings::new(None)),
            sampled: AtomicU64::new(0),
        }
    }

    /// Takes the settings of a configuration; `None` is the sampled default (BYD-034).
    pub fn configure(&self, log: Option<&AccessLog>) {
        self.settings.store(Arc::new(Settings::new(log)));
        let path = log.map(|log| log.path.clone());
        self.lines.order(|orders| orders.open = Some(path));
    }

    /// Whether a format names header fields that an exchange does not keep by itself.
    #[must_use]
    pub fn keeps_headers(&self) -> bool {
        self.settings.load().keeps_headers
    }

    /// Lines that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lines.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was logged is written, a second at most.
    pub fn flush(&self) {
        self.lines.flush(Duration::from_secs(1));
    }

    pub(super) fn request(&self, exchange: &Exchange) {
        self.write(
            exchange.downstream.worker,
            // Who was refused stands in the log, as often as that happens.
            exchange.status >= 500 || exchange.flags != Flags::NONE || is_denied(exchange.details.as_ref()),
            &Record::Request(exchange),
        );
    }

    pub(super) fn session(&self, session: &Session) {
        self.write(
            session.downstream.worker,
            session.flags != Flags::NONE || is_denied(session.termination.as_ref()),
            &Record::Session(session),
        );
    }

    fn write(&self, worker: usize, is_error: bool, record: &Record<'_>) {
        let settings = self.settings.load();
        let mut rate = None;
        match settings.mode {
            Mode::None => return,
            Mode::All => {}
            Mode::Sampled if is_error => {}
            Mode::Sampled => {
                if !self.sampled.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE) {
                    return;
                }
                rate = Some(SAMPLE);
            }
        }
        self.lines.append(worker, |buffer| {
            settings.format.render(record, buffer);
            if let (Some(rate), Some(b'\n')) = (rate, buffer.last()) {
                // The rate stands in the record, so that counts can be told from a sample (BYD-034).
                buffer.pop();
                let _ = writeln!(buffer, " sample=1/{rate}");
            }
        });
    }
}

fn is_denied(details: Option<&Details>) -> bool {
    matches!(details, Some(Details::Denied(_)))
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.order(|orders| orders.stop = true);
    }
}

/// Lines on their way from workers to the writing thread.
#[derive(Debug)]
struct Lines {
    /// One for each worker, so that none waits for another.
    buffers: Vec<Mutex<Vec<u8>>>,
    orders: Mutex<Orders>,
    /// There is an order.
    given: Condvar,
    /// All lines that were there are written.
    done: Condvar,
    dropped: AtomicU64,
}

/// What the writing thread is to do.
#[derive(Debug, Default)]
struct Orders {
    /// Lines wait.
    write: bool,
    /// Do not wait for more of them.
    now: bool,
    /// Go on in another file.
    open: Option<Option<String>>,
    stop: bool,
    /// Rounds of writing that have ended.
    rounds: u64,
}

impl Lines {
    fn append(&self, worker: usize, render: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = lock(&self.buffers[worker % self.buffers.len()]);
        let before = buffer.len();
        if before >= MOST_BYTES {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        render(&mut buffer);
        let after = buffer.len();
        drop(buffer);
        if before < FLUSH_AT && after >= FLUSH_AT {
            self.order(|orders| (orders.write, orders.now) = (true, true));
        } else if before == 0 {
            self.order(|orders| orders.write = true);
        }
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut lock(&self.orders));
        self.given.notify_one();
    }

    fn flush(&self, limit: Duration) {
        let mut orders = lock(&self.orders);
        (orders.write, orders.now) = (true, true);
        // The round under way may have passed a buffer already.
        let wanted = orders.rounds + 2;
        self.given.notify_one();
        let waiting = |orders: &mut Orders| {
            let waits = orders.rounds < wanted && !orders.stop;
            if waits && !orders.write {
                (orders.write, orders.now) = (true, true);
                self.given.notify_one();
            }
            waits
        };
        drop(
            self.done
                .wait_timeout_while(orders, limit, waiting)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Writes lines until told to stop.
    fn write(&self) {
        let mut out: Box<dyn Write> = Box::new(io::stdout());
        let mut spare = Vec::new();
        loop {
            let (open, stop) = self.next();
            for buffer in &self.buffers {
                std::mem::swap(&mut spare, &mut *lock(buffer));
                if !spare.is_empty() {
                    // A closed reader is not the mesh's fault; lines are lost then.
                    let _ = out.write_all(&spare).and_then(|()| out.flush());
                }
                spare.clear();
                spare.shrink_to(2 * FLUSH_AT);
            }
            if let Some(path) = open {
                out = open_log(path.as_deref());
            }
            lock(&self.orders).rounds += 1;
            self.done.notify_all();
            if stop {
                return;
            }
        }
    }

    /// Waits for something to do, and then a moment for more of it.
    fn next(&self) -> (Option<Option<String>>, bool) {
        let urgent = |orders: &Orders| orders.now || orders.stop || orders.open.is_some();
        let idle = |orders: &mut Orders| !orders.write && !urgent(orders);
        let orders = self
            .given
            .wait_while(lock(&self.orders), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut orders, _) = self
            .given
            .wait_timeout_while(orders, FLUSH_AFTER, |orders| !urgent(orders))
            .unwrap_or_else(PoisonError::into_inner);
        (orders.write, orders.now) = (false, false);
        (orders.open.take(), orders.stop)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_log(path: Option<&str>) -> Box<dyn Write> {
    match path {
        None | Some("/dev/stdout" | "") => Box::new(io::stdout()),
        Some("/dev/stderr") => Box::new(io::stderr()),
        Some(path) => match File::options().append(true).create(true).open(path) {
            Ok(file) => Box::new(file),
            Err(e) => {
                tracing::warn!(path, error = %e, "the access log cannot be opened, standard output takes its place");
                Box::new(io::stdout())
            }
        },
    }
}

/// One in so many requests without error is logged by default.
const SAMPLE: u64 = 100;

/// Length of a buffer that is written at once (LOG-009).
const FLUSH_AT: usize = 64 << 10;

/// Age of a line that is written, at the latest.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

/// What a worker holds while the log is not read; further lines are dropped (LOG-009).
const MOST_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(workers: usize) -> Lines {
        Lines {
            buffers: (0..workers).map(|_| Mutex::default()).collect(),
            orders: Mutex::default(),
            given: Condvar::new(),
            done: Condvar::new(),
            dropped: AtomicU64::new(0),
        }
    }

    // spec: LOG-009
    #[test]
    fn lines_that_nobody_takes_are_dropped_and_counted() {
        let lines = lines(2);
        for _ in 0..10 {
            lines.append(0, |buffer| buffer.resize(buffer.len() + MOST_BYTES / 4, b'x'));
        }
        lines.append(1, |buffer| buffer.push(b'x'));
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 6);
        assert_eq!(
            (lock(&lines.buffers[0]).len(), lock(&lines.buffers[1]).len()),
            (MOST_BYTES, 1)
        );
        let orders = lock(&lines.orders);
        assert!(orders.write && orders.now);
    }

    // spec: LOG-009
    #[test]
    fn lines_are_in_the_file_after_a_flush_and_after_a_change_of_file() {
        let folder = tempfile::tempdir().expect("folder");
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let log = |path: &std::path::Path| AccessLog {
            path: path.to_string_lossy().into_owned(),
            encoding: LogEncoding::Text,
            format: None,
        };
        let line =
            |all: &Log, text: &'static str| all.lines.append(0, |buffer| buffer.extend_from_slice(text.as_bytes()));
        let all = Log::start(1);
        all.configure(Some(&log(&first)));
        all.flush();
        line(&all, "one\n");
        line(&all, "two\n");
        all.configure(Some(&log(&second)));
        all.flush();
        line(&all, "three\n");
        all.flush();
        let read = |path| std::fs::read_to_string(path).expect("written");
        assert_eq!((read(first), read(second)), ("one\ntwo\n".into(), "three\n".into()));
    }
}
