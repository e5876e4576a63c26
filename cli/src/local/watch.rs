//! Notices that manifests may have changed (LOC-030).

use std::collections::BTreeSet;
use std::path::PathBuf;

use inotify::{Inotify, WatchMask, Watches};
use tokio::sync::mpsc::UnboundedSender;

use super::run::Event;

/// Watches directories; files in them are replaced by editors as often as written.
#[derive(Debug)]
pub(super) struct Watch {
    watches: Watches,
    followed: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// That the system has no watch left for this user.
    pub(super) fn new(tell: UnboundedSender<Event>) -> anyhow::Result<Self> {
        let mut inotify = Inotify::init()?;
        let watches = inotify.watches();
        std::thread::Builder::new().name("files".to_owned()).spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
                if events.count() > 0 && tell.send(Event::Files).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            watches,
            followed: BTreeSet::new(),
        })
    }

    /// Watches these directories too. One that cannot be watched is tried again at the next change.
    pub(super) fn follow(&mut self, directories: &[PathBuf]) {
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE | WatchMask::ONLYDIR;
        for directory in directories {
            if !self.followed.contains(directory) && self.watches.add(directory, mask).is_ok() {
                self.followed.insert(directory.clone());
            }
        }
        self.followed.retain(|directory| directories.contains(directory));
    }
}
