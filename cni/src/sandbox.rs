//! Sandboxes that run: their network namespaces, found among the processes of the node.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use weft_sidecar::init::{self, Arguments, SetError};

use crate::namespace::{Namespace, NamespaceError};

/// Why nothing could be done in the sandbox of a pod.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The list of processes cannot be read.
    #[error("list the processes of the node")]
    Processes(#[source] io::Error),
    /// None of them is the pod's.
    #[error("no process of the node belongs to pod {0}; the agent needs hostPID: true to see them")]
    None(String),
    /// It is there, but not to be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// It has none of the pod's addresses.
    #[error("{} has none of the pod's addresses: it is not the pod's", .0.display())]
    Foreign(PathBuf),
    /// The redirect could not be set.
    #[error("set the redirect")]
    Set(#[from] SetError),
}

/// Sets the redirect in the sandbox of the pod with this uid and these addresses. `processes` is `/proc` of the node.
///
/// # Errors
/// [`SandboxError`]; then no rule was touched.
pub fn redirect(processes: &Path, uid: &str, addresses: &[IpAddr], arguments: &Arguments) -> Result<(), SandboxError> {
    let process = oldest(processes, uid).map_err(SandboxError::Processes)?;
    let path = process
        .ok_or_else(|| SandboxError::None(uid.to_owned()))?
        .join("ns/net");
    let space = Namespace::open_among(processes, &path)?;
    if !space.has_one_of(addresses)? {
        return Err(SandboxError::Foreign(path));
    }
    space.run(|| init::set_redirect(arguments))??;
    Ok(())
}

/// The pod's process that began first: its sandbox's, which no container can be older than.
fn oldest(processes: &Path, uid: &str) -> io::Result<Option<PathBuf>> {
    let mut found: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(processes)? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        // Processes end while they are looked at.
        let Some(cgroup) = is_process
            .then(|| std::fs::read_to_string(path.join("cgroup")).ok())
            .flatten()
        else {
            continue;
        };
        if !is_of(&cgroup, uid) {
            continue;
        }
        let Some(begin) = std::fs::read_to_string(path.join("stat"))
            .ok()
            .and_then(|stat| begin(&stat))
        else {
            continue;
        };
        if found.as_ref().is_none_or(|(earliest, _)| begin < *earliest) {
            found = Some((begin, path));
        }
    }
    Ok(found.map(|(_, path)| path))
}

/// Both of the kubelet's drivers name a pod's cgroup by its uid; systemd's writes `_` for `-`.
fn is_of(cgroup: &str, uid: &str) -> bool {
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    cgroup.lines().flat_map(|line| line.split('/')).any(|part| {
        let part = part.trim_end_matches(".slice");
        names
            .iter()
            .any(|name| part == name || part.ends_with(&format!("-{name}")))
    })
}

/// When a process began, in clock ticks: the 22nd field, counted behind the name, which may hold anything.
fn begin(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    // spec: NET-136
    #[test]
    fn a_pod_is_known_by_the_cgroup_of_either_driver() {
        let underscored = UID.replace('-', "_");
        for cgroup in [
            format!("0::/kubepods/burstable/pod{UID}/0123456789ab\n"),
            format!("0::/../../pod{UID}/0123456789ab\n"),
            format!("12:cpu:/other\n11:memory:/kubepods/besteffort/pod{UID}/0123456789ab\n"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-0.scope\n"
            ),
        ] {
            assert!(is_of(&cgroup, UID), "{cgroup}");
        }
        for cgroup in [
            "0::/\n".to_owned(),
            format!("0::/kubepods/burstable/pod{UID}0/a\n"),
            format!("0::/user/{UID}\n"),
        ] {
            assert!(!is_of(&cgroup, UID), "{cgroup}");
        }
    }

    // spec: NET-136
    #[test]
    fn the_oldest_process_is_the_sandbox() {
        let processes = tempfile::tempdir().expect("a directory");
        let process = |pid: u32, begin: u32, cgroup: &str| {
            let path = processes.path().join(pid.to_string());
            std::fs::create_dir(&path).expect("writes");
            std::fs::write(path.join("cgroup"), cgroup).expect("writes");
            let stat = format!("{pid} (a ) b) S{} {begin} 0 0\n", " 1".repeat(18));
            std::fs::write(path.join("stat"), stat).expect("writes");
        };
        let own = format!("0::/kubepods/pod{UID}/c\n");
        process(1, 1, "0::/init\n");
        process(30, 90, &own);
        process(400, 70, &own);
        process(5, 20, "0::/kubepods/podother/c\n");
        let oldest = super::oldest(processes.path(), UID).expect("reads").expect("found");
        assert!(oldest.ends_with("400"), "{}", oldest.display());
        let absent = redirect(processes.path(), "absent", &[], &Arguments::default());
        assert!(matches!(absent, Err(SandboxError::None(_))));
    }
}
