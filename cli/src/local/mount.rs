//! Volumes at the paths where containers expect them, in a mount namespace of the container's own (LOC-013).
//!
//! A path that the machine does not have must not be made on the machine. So the nearest directory above it that
//! exists is covered by one in memory that shows the same entries, and the missing part is made there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

/// A volume, or a part of one, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Directory or file of this machine.
    pub source: PathBuf,
    /// Path in the container.
    pub target: PathBuf,
    /// Nothing can be written there.
    pub read_only: bool,
}

impl Mount {
    /// As an argument of `enter-container`.
    #[must_use]
    pub fn argument(&self) -> OsString {
        let mut out = OsString::from(if self.read_only { "ro:" } else { "rw:" });
        out.push(&self.source);
        out.push("=");
        out.push(&self.target);
        out
    }
}

impl std::str::FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (mode, rest) = text.split_once(':')?;
            let (source, target) = rest.rsplit_once('=')?;
            Some(Self {
                source: source.into(),
                target: target.into(),
                read_only: mode == "ro",
            })
        };
        parse().ok_or_else(|| format!("{text} is not of the form ro|rw:SOURCE=TARGET"))
    }
}

/// Puts all volumes in place. The process must be in a mount namespace of its own; `root`, an empty directory, becomes
/// its root where a path right below the root is missing.
///
/// # Errors
/// Which mount failed.
pub fn place(mounts: &[Mount], root: &Path) -> anyhow::Result<()> {
    // Opened first: a mount may cover where a later source is.
    let open = |mount: &Mount| {
        let file = open_path(&mount.source).with_context(|| format!("open {}", mount.source.display()))?;
        anyhow::Ok((file, mount.clone()))
    };
    let opened: Vec<_> = mounts.iter().map(open).collect::<anyhow::Result<_>>()?;
    let mut places = Places {
        root,
        own: BTreeSet::new(),
    };
    for (source, wanted) in opened {
        let from = descriptor_path(&source);
        let is_directory = fs::metadata(&from)?.is_dir();
        let at = || format!("mount a volume at {}", wanted.target.display());
        let target = places.make(&wanted.target, is_directory).with_context(at)?;
        bind(&from, &target).with_context(at)?;
        if wanted.read_only {
            make_read_only(&target).with_context(at)?;
        }
    }
    Ok(())
}

/// The directories that were made here, so that they can be written to.
#[derive(Debug)]
struct Places<'a> {
    root: &'a Path,
    own: BTreeSet<PathBuf>,
}

impl Places<'_> {
    /// Makes a mount point; its path without links.
    fn make(&mut self, path: &Path, is_directory: bool) -> anyhow::Result<PathBuf> {
        let mut existing = path.to_owned();
        let mut missing = Vec::new();
        while fs::metadata(&existing).is_err() {
            missing.push(existing.file_name().context("no absolute path")?.to_owned());
            existing.pop();
        }
        let mut place = existing.canonicalize()?;
        if missing.is_empty() {
            return Ok(place);
        }
        if !self.own.contains(&place) {
            mirror(&place, self.root).with_context(|| format!("cover {}", place.display()))?;
            self.own.insert(place.clone());
        }
        while let Some(name) = missing.pop() {
            place.push(name);
            if missing.is_empty() && !is_directory {
                File::create(&place)?;
            } else {
                fs::create_dir(&place)?;
                self.own.insert(place.clone());
            }
        }
        Ok(place)
    }
}

/// Covers a directory by one in memory with the same entries.
fn mirror(directory: &Path, root: &Path) -> anyhow::Result<()> {
    let below = open_path(directory)?;
    let is_root = directory == Path::new("/");
    // What covers the root covers nothing for a process that is there already: it has to move.
    let fresh = if is_root { root } else { directory };
    let entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    mount(
        Some("tmpfs"),
        fresh,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755"),
    )
    .context("mount a tmpfs")?;
    for entry in entries {
        let to = fresh.join(entry.file_name());
        let from = descriptor_path(&below).join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
        } else {
            File::create(&to)?;
        }
        // An entry that cannot be shown, or vanished meanwhile, is empty here.
        let _ = bind(&from, &to);
    }
    if is_root {
        nix::unistd::chroot(fresh).context("change the root")?;
        nix::unistd::chdir("/")?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
}

/// A mount keeps the restrictions that it has: only who is root of the machine may lift them.
fn make_read_only(target: &Path) -> anyhow::Result<()> {
    let kept = statvfs(target)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (is, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if kept.contains(is) {
            flags |= flag;
        }
    }
    let none: Option<&str> = None;
    mount(none, target, none, flags, none).context("make it read-only")
}

/// A descriptor that stands for a path and reads nothing.
fn open_path(path: &Path) -> std::io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_survives_as_an_argument() {
        let mount = Mount {
            source: "/a=b/c".into(),
            target: "/etc/x".into(),
            read_only: true,
        };
        let text = mount.argument().into_string().expect("text");
        assert_eq!(text.parse(), Ok(mount));
        assert!("x".parse::<Mount>().is_err());
    }
}
