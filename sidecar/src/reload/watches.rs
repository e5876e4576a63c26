//! What the kernel tells of the volumes.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use weft_bundle::volume;

/// What inotify told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// A volume was swapped.
    Swapped,
    /// A file of a plain directory was written or removed.
    Written,
    /// A watch is dead, or events were dropped.
    Lost,
}

/// Watches on the directories of the volumes, never on files: a watch on a file is dead after the first swap
/// (DLV-042).
pub(super) struct Watches {
    inotify: Inotify,
    directories: Vec<(WatchDescriptor, PathBuf)>,
    buffer: Vec<u8>,
}

impl Watches {
    pub(super) fn start(directories: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::MOVED_TO
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let add = |path: PathBuf| Ok((inotify.watches().add(&path, mask)?, path));
        Ok(Self {
            directories: directories.into_iter().map(add).collect::<io::Result<_>>()?,
            inotify,
            buffer: vec![0; 4096],
        })
    }

    /// Waits for something that matters.
    pub(super) fn next(&mut self) -> News {
        loop {
            let Ok(events) = self.inotify.read_events_blocking(&mut self.buffer) else {
                return News::Lost;
            };
            let mut found = None;
            for event in events {
                if event.mask.intersects(LOST) {
                    return News::Lost;
                }
                let directory = self.directories.iter().find(|(watch, _)| *watch == event.wd);
                let news = directory.and_then(|(_, path)| meaning(path, event.name, event.mask));
                if found != Some(News::Swapped) {
                    found = news.or(found);
                }
            }
            if let Some(news) = found {
                return news;
            }
        }
    }
}

/// The commit of a swap is the rename of the link, nothing before and nothing behind it (DLV-041). A plain directory
/// has no link: there every file counts (DLV-046).
fn meaning(directory: &Path, name: Option<&OsStr>, mask: EventMask) -> Option<News> {
    if name == Some(OsStr::new(volume::DATA_LINK)) {
        return mask.contains(EventMask::MOVED_TO).then_some(News::Swapped);
    }
    let is_plain = !directory.join(volume::DATA_LINK).is_symlink();
    is_plain.then_some(News::Written)
}

const LOST: EventMask = EventMask::IGNORED
    .union(EventMask::Q_OVERFLOW)
    .union(EventMask::DELETE_SELF)
    .union(EventMask::MOVE_SELF)
    .union(EventMask::UNMOUNT);

#[cfg(test)]
mod tests {
    use weft_bundle::pack::Files;

    use super::*;

    fn publish(dir: &Path, name: &str) {
        let files = Files::from([(name.to_owned(), b"1".to_vec())]);
        volume::publish(dir, &files).expect("published");
    }

    // spec: DLV-040, DLV-041
    #[test]
    fn of_all_events_of_a_swap_the_rename_of_the_link_alone_counts() {
        let folder = tempfile::tempdir().expect("folder");
        publish(folder.path(), "one");
        let mut inotify = Inotify::init().expect("inotify");
        inotify
            .watches()
            .add(folder.path(), WatchMask::ALL_EVENTS)
            .expect("watched");
        publish(folder.path(), "two");
        let mut buffer = vec![0; 1 << 16];
        let events = inotify.read_events(&mut buffer).expect("events");
        let events: Vec<(Option<String>, EventMask)> = events
            .map(|event| (event.name.map(|name| name.to_string_lossy().into_owned()), event.mask))
            .collect();
        let find = |name: &str, mask: EventMask| {
            let is_it = |(of, what): &(Option<String>, EventMask)| of.as_deref() == Some(name) && what.contains(mask);
            events
                .iter()
                .position(is_it)
                .unwrap_or_else(|| panic!("{name} {mask:?}: {events:?}"))
        };
        let order = [
            find("..2", EventMask::CREATE | EventMask::ISDIR),
            find("..data_tmp", EventMask::CREATE),
            find("..data_tmp", EventMask::MOVED_FROM),
            find("..data", EventMask::MOVED_TO),
            find("one", EventMask::DELETE),
            find("two", EventMask::CREATE),
            find("..1", EventMask::DELETE | EventMask::ISDIR),
        ];
        assert!(order.is_sorted(), "as the kubelet does it: {events:?}");
        let is_away = |(name, mask): &(Option<String>, EventMask)| {
            name.as_deref() == Some("..data") && mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM)
        };
        assert!(!events.iter().any(is_away), "there is always a set: {events:?}");
        let counts = |(name, mask): &(Option<String>, EventMask)| {
            meaning(folder.path(), name.as_deref().map(OsStr::new), *mask).is_some()
        };
        let counted: Vec<_> = events.iter().filter(|event| counts(event)).collect();
        assert_eq!(counted, [&(Some("..data".to_owned()), EventMask::MOVED_TO)]);
    }
}
