//! Who the processes of a run are: a user namespace for a user without rights of its own, and whether the proxy can
//! have an id that the application has not (LOC-026).

use std::fs;
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, User, getgid, getuid};

use super::container::find_in_path;

/// User and group of the proxy, as in a cluster (INJ-004).
pub(super) const PROXY_ID: u32 = 1337;

/// Makes a user namespace in which this user is root; who may make the other namespaces needs none. Where the system
/// gives this user subordinate ids, the namespace has them, too.
///
/// # Errors
/// That the kernel does not allow it.
pub(super) fn enter_namespace() -> anyhow::Result<()> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false) {
        return Ok(());
    }
    let (uid, gid) = (getuid(), getgid());
    let helper = Subordinate::of(uid)
        .map(|_| map_from_outside())
        .transpose()
        .unwrap_or(None);
    unshare(CloneFlags::CLONE_NEWUSER).context("make a user namespace")?;
    if let Some(mut helper) = helper {
        // Its end of file says that the namespace is there.
        drop(helper.stdin.take());
        if helper.wait().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    let write = |name: &str, text: String| {
        fs::write(format!("/proc/self/{name}"), text).with_context(|| format!("write /proc/self/{name}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))
}

/// Whether this process's user namespace has the proxy's ids.
#[must_use]
pub(super) fn has_proxy_id() -> bool {
    let maps = ["uid_map", "gid_map"].map(|name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default());
    maps.iter().all(|map| contains(map, PROXY_ID))
}

/// Lines of first id inside, first id outside, number.
fn contains(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => id.checked_sub(first).is_some_and(|offset| offset < count),
            _ => false,
        }
    })
}

/// Arguments of `weft local map-ids`, run outside of the namespace that gets the ids.
#[derive(Debug, clap::Args)]
pub struct MapIds {
    /// Process in the namespace
    pid: u32,
}

impl MapIds {
    /// Waits for the end of standard input, then gives the process's namespace its ids.
    ///
    /// # Errors
    /// That the system has none for this user, or that its programs refuse.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let (uid, gid) = (getuid(), getgid());
        let Subordinate { uids, gids } = Subordinate::of(uid).context("no subordinate ids")?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        for (program, own, (first, count)) in [("newuidmap", uid.as_raw(), uids), ("newgidmap", gid.as_raw(), gids)] {
            let numbers = [self.pid, 0, own, 1, 1, first, count].map(|n| n.to_string());
            let output = Command::new(program).args(numbers).output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(output.status.success(), "{program}: {}", text.trim());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn map_from_outside() -> anyhow::Result<std::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["local", "map-ids", &std::process::id().to_string()]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command.spawn()?)
}

/// Ids that the system lends a user: first and number.
#[derive(Debug, PartialEq, Eq)]
struct Subordinate {
    uids: (u32, u32),
    gids: (u32, u32),
}

impl Subordinate {
    fn of(uid: Uid) -> Option<Self> {
        for program in ["newuidmap", "newgidmap"] {
            find_in_path(program)?;
        }
        let name = User::from_uid(uid)
            .ok()
            .flatten()
            .map(|user| user.name)
            .unwrap_or_default();
        let read = |file: &str| range(&fs::read_to_string(file).ok()?, &name, uid.as_raw());
        Some(Self {
            uids: read("/etc/subuid")?,
            gids: read("/etc/subgid")?,
        })
    }
}

/// `NAME-OR-ID:FIRST:NUMBER`; only one that reaches up to the proxy's id is of use.
fn range(text: &str, name: &str, id: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        if owner != name && owner.parse() != Ok(id) {
            return None;
        }
        let (first, count) = (parts.next()?.parse().ok()?, parts.next()?.parse::<u32>().ok()?);
        (count >= PROXY_ID).then_some((first, count.min(65_535)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOC-026
    #[test]
    fn a_map_with_one_id_has_none_for_the_proxy() {
        assert!(contains("         0          0 4294967295\n", PROXY_ID));
        assert!(contains("0 1000 1\n1 100000 65535\n", PROXY_ID));
        assert!(!contains("0 1000 1\n", PROXY_ID));
        assert!(!contains("", PROXY_ID));
    }

    // spec: LOC-026
    #[test]
    fn subordinate_ids_are_read_by_name_and_by_number() {
        let text = "other:100000:65536\nme:200000:65536\n1001:300000:100\n";
        assert_eq!(range(text, "me", 1000), Some((200_000, 65_535)));
        assert_eq!(range(text, "nobody", 1001), None, "too few to reach the proxy's id");
        assert_eq!(range(text, "nobody", 1002), None);
    }
}
