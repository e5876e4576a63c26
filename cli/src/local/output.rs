//! What a run prints: logs of containers behind their names, and notes of its own (LOC-040).

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};

/// Prints lines, and keeps the last ones of each container for `weft local logs`.
#[derive(Debug, Clone)]
pub struct Output(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    color: bool,
    quiet: bool,
    kept: Mutex<BTreeMap<String, VecDeque<String>>>,
    live: tokio::sync::broadcast::Sender<(String, String)>,
}

impl Output {
    /// Colours only on a terminal, and not with `NO_COLOR` (OPS-112).
    #[must_use]
    pub fn new(quiet: bool, no_color: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let color = std::io::stdout().is_terminal() && !no_color && std::env::var_os("NO_COLOR").is_none() && !dumb;
        let (live, _) = tokio::sync::broadcast::channel(1024);
        Self(Arc::new(Inner {
            color,
            quiet,
            kept: Mutex::default(),
            live,
        }))
    }

    /// A line of a container.
    pub fn log(&self, prefix: &str, line: &str) {
        {
            let mut kept = self.0.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let lines = kept.entry(prefix.to_owned()).or_default();
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back(line.to_owned());
        }
        let _ = self.0.live.send((prefix.to_owned(), line.to_owned()));
        if self.0.quiet {
            return;
        }
        let mut out = std::io::stdout().lock();
        // A closed terminal is no reason to stop the mesh.
        let _ = if self.0.color {
            let sum: usize = prefix.bytes().map(usize::from).sum();
            writeln!(out, "\x1b[{}m{prefix}\x1b[0m {line}", COLORS[sum % COLORS.len()])
        } else {
            writeln!(out, "{prefix} {line}")
        };
    }

    /// A line of the run itself.
    pub fn note(&self, line: &str) {
        let mut err = std::io::stderr().lock();
        let _ = if self.0.color {
            writeln!(err, "\x1b[1mweft\x1b[0m {line}")
        } else {
            writeln!(err, "weft {line}")
        };
    }

    /// The lines kept of containers whose `namespace/pod container` begins with `prefix`.
    #[must_use]
    pub fn kept(&self, prefix: &str) -> Vec<(String, String)> {
        let kept = self.0.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let of = kept.iter().filter(|(name, _)| name.starts_with(prefix));
        of.flat_map(|(name, lines)| lines.iter().map(|l| (name.clone(), l.clone())))
            .collect()
    }

    /// Lines from now on.
    #[must_use]
    pub fn follow(&self) -> tokio::sync::broadcast::Receiver<(String, String)> {
        self.0.live.subscribe()
    }
}

const COLORS: &[u8] = &[31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96];
const KEPT_LINES: usize = 1000;
