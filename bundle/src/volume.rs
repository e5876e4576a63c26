//! A volume as the kubelet keeps it: reads one consistent set of files while it is being replaced, and publishes one.
//!
//! The kubelet fills `..<timestamp>.<random>`, points `..data_tmp` to it and renames that over `..data`: the rename is
//! the only commit point (DLV-040). Local mode and tests publish the same way (LOC-004).

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::pace::Breathing;
use crate::pack::{Files, MAX_CONTENT};

/// Name of the link that the kubelet swaps.
pub const DATA_LINK: &str = "..data";

/// One consistent set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// What `..data` points to; `None` for a plain directory (DLV-046).
    pub target: Option<PathBuf>,
    /// Bytes by file name.
    pub files: Files,
}

/// What `..data` points to, without reading any file: changes whenever the content does.
///
/// # Errors
/// Those of `readlink`; a directory without the link is `Ok(None)`.
pub fn target(dir: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(dir.join(DATA_LINK)) {
        Ok(target) => Ok(Some(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && dir.is_dir() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads all files of the volume as one set: starts over when the volume is swapped meanwhile (DLV-043).
///
/// # Errors
/// The last [`io::Error`]; [`io::ErrorKind::WouldBlock`] when it was swapped ten times in a row, which asks to be
/// tried again after 100 ms; [`io::ErrorKind::InvalidData`] when the files exceed 64 MiB together.
pub fn read(dir: &Path) -> io::Result<Snapshot> {
    for _ in 0..ATTEMPTS {
        let before = target(dir)?;
        let root = before
            .as_ref()
            .map_or_else(|| dir.to_owned(), |target| dir.join(target));
        match read_files(&root) {
            Ok(files) if target(dir)? == before => return Ok(Snapshot { target: before, files }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::WouldBlock,
        format!("{} was replaced while it was read", dir.display()),
    ))
}

/// Replaces the volume's content by one rename, as the kubelet does.
///
/// # Errors
/// Those of the file system; the earlier content stays then.
pub fn publish(dir: &Path, files: &Files) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let before = target(dir)?;
    let fresh = fresh_directory(dir)?;
    for (name, bytes) in files {
        fs::write(fresh.join(name), bytes)?;
    }
    let link = dir.join("..data_tmp");
    match fs::remove_file(&link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let name = fresh.file_name().expect("made by joining a name");
    std::os::unix::fs::symlink(name, &link)?;
    fs::rename(&link, dir.join(DATA_LINK))?;
    sync_links(dir, files)?;
    if let Some(before) = before {
        fs::remove_dir_all(dir.join(before))?;
    }
    Ok(())
}

/// Creates `..<n>` with the first number that is free. A number is never used twice while the volume lives, so that
/// a change of content is always a change of the link.
fn fresh_directory(dir: &Path) -> io::Result<PathBuf> {
    let last = target(dir)?
        .and_then(|t| t.to_str()?.strip_prefix("..")?.parse::<u64>().ok())
        .unwrap_or(0);
    for n in last + 1.. {
        let path = dir.join(format!("..{n}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Left by a publisher that was killed before its rename.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    unreachable!("the range has no end")
}

/// Makes the links for people: `<name>` → `..data/<name>` for each file, and no others.
fn sync_links(dir: &Path, files: &Files) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name
            .to_str()
            .is_some_and(|n| n.starts_with("..") || files.contains_key(n));
        if !is_ours {
            fs::remove_file(entry.path())?;
        }
    }
    for name in files.keys() {
        match std::os::unix::fs::symlink(Path::new(DATA_LINK).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn read_files(root: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    let mut left = MAX_CONTENT as u64;
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let Some(name) = path
            .file_name()
            .and_then(|n| n.to_str())
            .filter(|n| !n.starts_with(".."))
        else {
            continue;
        };
        if !path.metadata()?.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        Breathing(fs::File::open(&path)?)
            .take(left + 1)
            .read_to_end(&mut bytes)?;
        let too_large = || {
            let message = format!("the files of {} exceed {MAX_CONTENT} bytes", root.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        };
        left = left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

const ATTEMPTS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs
            .iter()
            .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
            .collect()
    }

    // spec: DLV-040, DLV-043, LOC-004
    #[test]
    fn what_is_published_is_read_and_leftovers_go() {
        let dir = tempfile::tempdir().expect("temporary directory");
        publish(dir.path(), &files(&[("a", "1"), ("b", "2")])).expect("first");
        let first = read(dir.path()).expect("read");
        assert_eq!(first.files, files(&[("a", "1"), ("b", "2")]));
        publish(dir.path(), &files(&[("b", "3")])).expect("second");
        let second = read(dir.path()).expect("read");
        assert_eq!(second.files, files(&[("b", "3")]));
        assert_ne!(first.target, second.target);
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .expect("list")
            .map(|e| e.expect("entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "b"]);
        assert_eq!(fs::read(dir.path().join("b")).expect("through the link"), b"3");
    }

    // spec: DLV-043
    #[test]
    fn a_reader_sees_one_set_while_it_is_replaced() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let set = |n: usize| {
            let text = n.to_string();
            files(&[("a", &text), ("b", &text), ("c", &text)])
        };
        publish(dir.path(), &set(0)).expect("first");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (1..300).for_each(|n| publish(dir.path(), &set(n)).expect("publish")));
            let mut seen = 0;
            while !writer.is_finished() || seen == 0 {
                match read(dir.path()) {
                    Ok(snapshot) => {
                        assert_eq!(snapshot.files["a"], snapshot.files["b"]);
                        assert_eq!(snapshot.files["a"], snapshot.files["c"]);
                        seen += 1;
                    }
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{e}"),
                }
            }
        });
    }

    // spec: DLV-046
    #[test]
    fn a_plain_directory_is_read_too() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("a"), "1").expect("write");
        assert_eq!(
            read(dir.path()).expect("read"),
            Snapshot {
                target: None,
                files: files(&[("a", "1")])
            }
        );
        assert!(read(&dir.path().join("absent")).is_err());
    }
}
