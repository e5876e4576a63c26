//! The process log, on standard error: levels by scope that change at run time, no line that makes anybody wait
//! (LIFE-090..LIFE-094).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::subscriber::Interest;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

/// Levels by the name that users know, with the name of the filter.
const LEVELS: [(&str, &str); 8] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("error", "error"),
    ("critical", "error"),
    ("off", "off"),
];

/// Scopes with the targets that they stand for, and their level at start (LIFE-090, LIFE-092).
const SCOPES: [(&str, &str, &[&str]); 18] = [
    ("main", "info", &["weft_sidecar", "weft_proxy"]),
    ("config", "info", &["weft_sidecar::reload", "weft_bundle"]),
    ("identity", "info", &["identity"]),
    (
        "inbound",
        "warning",
        &["weft_sidecar::inbound", "weft_sidecar::http::inbound"],
    ),
    (
        "outbound",
        "warning",
        &["weft_sidecar::outbound", "weft_sidecar::http::outbound"],
    ),
    ("http", "warning", &["weft_sidecar::http"]),
    (
        "http2",
        "warning",
        &["weft_sidecar::http::h2", "weft_sidecar::http::server::streams", "h2"],
    ),
    ("tcp", "warning", &["weft_sidecar::tcp"]),
    ("tls", "warning", &["weft_sidecar::tls", "rustls"]),
    ("dns", "warning", &["weft_sidecar::dns"]),
    ("rbac", "warning", &["weft_sidecar::authorize"]),
    ("jwt", "warning", &["weft_sidecar::authenticate"]),
    (
        "upstream",
        "warning",
        &["weft_sidecar::connect", "weft_sidecar::http::forward"],
    ),
    ("pool", "warning", &["weft_sidecar::pool", "weft_sidecar::worker"]),
    ("health", "warning", &["weft_sidecar::probe"]),
    (
        "outlier",
        "warning",
        &["weft_sidecar::outlier", "weft_sidecar::cluster"],
    ),
    ("admin", "info", &["weft_sidecar::status"]),
    ("drain", "info", &["drain"]),
];

/// Identical messages of a second that are written (LIFE-094).
const MOST: u32 = 10;

/// Lines that wait for the writer; what does not fit is dropped and counted.
const QUEUE: usize = 1024;

/// Level of each scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels(BTreeMap<&'static str, &'static str>);

impl Default for Levels {
    fn default() -> Self {
        Self(SCOPES.iter().map(|(scope, level, _)| (*scope, *level)).collect())
    }
}

impl Levels {
    /// Reads `LEVEL` for all scopes, or `SCOPE:LEVEL,...`; empty: the defaults.
    ///
    /// # Errors
    /// What is no level or scope, with those that are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut levels = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once(':') {
                Some((scope, level)) => levels.set(scope, level)?,
                None => levels.set_all(part)?,
            }
        }
        Ok(levels)
    }

    fn set_all(&mut self, level: &str) -> Result<(), String> {
        let level = known(level)?;
        self.0.values_mut().for_each(|present| *present = level);
        Ok(())
    }

    fn set(&mut self, scope: &str, level: &str) -> Result<(), String> {
        let level = known(level)?;
        match self.0.get_mut(scope) {
            Some(present) => *present = level,
            None => {
                let names: Vec<&str> = SCOPES.iter().map(|(scope, ..)| *scope).collect();
                return Err(format!("{scope:?} is no scope: {}", names.join(", ")));
            }
        }
        Ok(())
    }

    fn filter(&self) -> EnvFilter {
        let mut directives = vec!["warn".to_owned()];
        for (scope, _, targets) in SCOPES {
            let level = self.0.get(scope).map_or("warn", |level| directive(level));
            directives.extend(targets.iter().map(|target| format!("{target}={level}")));
        }
        EnvFilter::new(directives.join(","))
    }
}

impl std::fmt::Display for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .iter()
            .try_for_each(|(scope, level)| writeln!(f, "{scope}: {level}"))
    }
}

fn known(level: &str) -> Result<&'static str, String> {
    let names = LEVELS.map(|(name, _)| name);
    let found = names.iter().find(|name| **name == level);
    found
        .copied()
        .ok_or_else(|| format!("{level:?} is no level: {}", names.join(", ")))
}

fn directive(level: &str) -> &'static str {
    LEVELS
        .iter()
        .find(|(name, _)| *name == level)
        .map_or("warn", |(_, directive)| directive)
}

/// Changes levels while the process runs (LIFE-069, LIFE-091).
pub struct LogControl {
    levels: Mutex<Levels>,
    start: Levels,
    apply: Box<Apply>,
}

type Apply = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogControl")
    }
}

impl LogControl {
    /// Does what a query asks: `level=L`, `paths=a:L,b:L`, `SCOPE=L`, `reset`; none of them: nothing. Gives all levels.
    ///
    /// # Errors
    /// What is no level or scope; nothing has changed then.
    pub fn change(&self, query: &str) -> Result<String, String> {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = levels.clone();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None if part == "reset" => wanted = self.start.clone(),
                Some(("reset", _)) => wanted = self.start.clone(),
                Some(("level", level)) => wanted.set_all(level)?,
                Some(("paths", list)) => {
                    for (scope, level) in list.split(',').filter_map(|pair| pair.split_once(':')) {
                        wanted.set(scope, level)?;
                    }
                }
                Some((scope, level)) => wanted.set(scope, level)?,
                None => wanted.set(part, "")?,
            }
        }
        if wanted != *levels {
            (self.apply)(wanted.filter())?;
            *levels = wanted;
        }
        Ok(levels.to_string())
    }
}

/// Starts the process log. A text that names no level leaves the defaults and is told.
#[must_use]
pub fn start(levels: &str, json: bool) -> LogControl {
    let (start, problem) = match Levels::parse(levels) {
        Ok(levels) => (levels, None),
        Err(problem) => (Levels::default(), Some(problem)),
    };
    let (filter, handle) = reload::Layer::new(start.filter());
    let writer = Writer::start();
    let lines = fmt::layer().with_writer(writer).with_ansi(false);
    let lines = if json {
        Layer::boxed(lines.json().flatten_event(true))
    } else {
        lines.boxed()
    };
    let limit = Limit {
        json,
        ..Limit::default()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter.and(limit)))
        .init();
    if let Some(problem) = problem {
        tracing::warn!(problem, "WEFT_LOG_LEVEL");
    }
    LogControl {
        levels: Mutex::new(start.clone()),
        start,
        apply: Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())),
    }
}

/// Waits until what was logged is written, for a second at most.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        let (tell, told) = sync_channel(1);
        if lines.try_send(Line::Flush(tell)).is_ok() {
            let _ = told.recv_timeout(Duration::from_secs(1));
        }
    }
}

/// Lines that were dropped.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Line {
    Text(Vec<u8>),
    Flush(SyncSender<()>),
}

static LINES: OnceLock<SyncSender<Line>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Hands lines to a thread of their own, so that a full pipe stops nobody.
#[derive(Debug, Clone, Copy)]
struct Writer;

impl Writer {
    fn start() -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("log".to_owned());
        if LINES.set(sender).is_ok() && thread.spawn(move || write_lines(&receiver)).is_err() {
            eprintln!("weft-proxy: no thread for the log");
        }
        Self
    }
}

fn write_lines(lines: &Receiver<Line>) {
    while let Ok(line) = lines.recv() {
        match line {
            // Nobody is left to be told of a log that cannot be written.
            Line::Text(text) => drop(io::stderr().write_all(&text)),
            Line::Flush(done) => drop(done.try_send(())),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if LINES
            .get()
            .is_none_or(|lines| lines.try_send(Line::Text(text.to_vec())).is_err())
        {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Writer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Lets at most [`MOST`] messages of one kind pass in a second and tells how many more there were.
#[derive(Default)]
struct Limit {
    json: bool,
    windows: Mutex<HashMap<Identifier, Window>>,
}

struct Window {
    since: Instant,
    seen: u32,
}

impl Limit {
    /// Whether a message may be written now, and how many were kept back in the second before.
    fn admit(&self, id: Identifier, now: Instant) -> (bool, u32) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(id).or_insert(Window { since: now, seen: 0 });
        let mut kept_back = 0;
        if now.duration_since(window.since) >= Duration::from_secs(1) {
            kept_back = window.seen.saturating_sub(MOST);
            *window = Window { since: now, seen: 0 };
        }
        window.seen += 1;
        (window.seen <= MOST, kept_back)
    }
}

/// A part of the filter, and no layer of its own: it then sees only what the levels let pass. A layer would also count what
/// they hold back, and would leave the state of the filter that it stands beside behind with each message that it refuses.
impl<S> Filter<S> for Limit {
    fn enabled(&self, _: &tracing::Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    /// Not `always`: the state of the filters is reset only after a pass that begins with `enabled`.
    fn callsite_enabled(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn event_enabled(&self, event: &tracing::Event<'_>, _: &Context<'_, S>) -> bool {
        let (admitted, kept_back) = self.admit(event.metadata().callsite(), Instant::now());
        if kept_back > 0 {
            let place = event.metadata().target();
            let message = format!("{kept_back} messages like the next one were not written");
            let line = if self.json {
                format!("{}\n", serde_json::json!({"target": place, "message": message}))
            } else {
                format!("{place}: {message}\n")
            };
            let _ = Writer.write(line.as_bytes());
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LIFE-090, LIFE-092, LIFE-091
    #[test]
    fn levels_are_set_for_all_or_by_scope_and_others_are_named() {
        let levels = Levels::parse("").expect("defaults");
        for (scope, level) in &levels.0 {
            let of_life = matches!(*scope, "main" | "config" | "identity" | "admin" | "drain");
            assert_eq!(*level, if of_life { "info" } else { "warning" }, "{scope}");
        }
        let levels = Levels::parse("debug").expect("a level");
        assert!(levels.0.values().all(|level| *level == "debug"));
        let levels = Levels::parse("error,rbac:trace").expect("both");
        assert_eq!((levels.0["rbac"], levels.0["jwt"]), ("trace", "error"));
        let scopes = [
            "main", "config", "identity", "inbound", "outbound", "http", "http2", "tcp", "tls", "dns", "rbac", "jwt",
            "upstream", "pool", "health", "outlier", "admin", "drain",
        ];
        assert_eq!(
            levels.0.keys().copied().collect::<std::collections::BTreeSet<_>>(),
            scopes.into()
        );
        for level in ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"] {
            Levels::parse(level).unwrap_or_else(|problem| panic!("{problem}"));
        }
        assert_eq!((directive("warn"), directive("critical")), ("warn", "error"));
        assert!(Levels::parse("loud").expect_err("no level").contains("critical"));
        assert!(Levels::parse("rest:debug").expect_err("no scope").contains("outlier"));
    }

    // spec: LIFE-094
    #[test]
    fn the_same_message_is_written_ten_times_a_second() {
        static HERE: tracing::callsite::DefaultCallsite = {
            use tracing::callsite::DefaultCallsite;
            static META: tracing::Metadata<'static> = tracing::metadata! {
                name: "test", target: "test", level: tracing::Level::INFO,
                fields: &["message"], callsite: &HERE, kind: tracing::metadata::Kind::EVENT
            };
            DefaultCallsite::new(&META)
        };
        let limit = Limit::default();
        let begin = Instant::now();
        let id = || Identifier(&HERE);
        let written = (0..25).filter(|_| limit.admit(id(), begin).0).count();
        assert_eq!(written, 10);
        assert_eq!(limit.admit(id(), begin + Duration::from_secs(1)), (true, 15));
        assert_eq!(limit.admit(id(), begin + Duration::from_secs(2)), (true, 0));
    }
}
