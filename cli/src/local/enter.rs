//! The last step before a container's program: `weft local enter-container`, run by `weft local up` in the pod's
//! network namespace, gives up what the program must not have and becomes it.
//!
//! It is a program of its own because what happens between `fork` and `exec` of a process with threads must not
//! allocate; here it may.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::fcntl::AtFlags;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::{prctl, signal::Signal};
use nix::unistd::{Gid, Uid};

use super::mount::{self, Mount};

/// Arguments of `weft local enter-container`.
#[derive(Debug, clap::Args)]
pub struct Enter {
    /// Directory with `resolv.conf`, `hosts` and `nsswitch.conf` that stand in for the machine's (LOC-023)
    #[arg(long)]
    etc: Option<PathBuf>,
    /// Keep the capability to administer the network: for the redirect alone
    #[arg(long)]
    net_admin: bool,
    /// End with the process that started this one; without a process namespace nothing else would see to it
    #[arg(long)]
    die_with_parent: bool,
    /// A volume: ro|rw:SOURCE=TARGET; may be repeated
    #[arg(long = "mount")]
    mounts: Vec<Mount>,
    /// User and group that the program gets
    #[arg(long)]
    user: Option<u32>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Enter {
    /// Becomes the program. Returns only when that fails.
    ///
    /// # Errors
    /// Which step failed.
    pub fn run(self) -> anyhow::Result<std::convert::Infallible> {
        if self.die_with_parent {
            prctl::set_pdeathsig(Signal::SIGKILL).context("tie this process to its parent")?;
        }
        if self.etc.is_some() || !self.mounts.is_empty() {
            unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("keep mounts to this process")?;
        }
        let (program, arguments) = self.command.split_first().context("no program")?;
        // Opened before anything is given up: its folder need not be open to the program's user.
        let opened = self.user.map(|_| open_program(program)).transpose()?;
        if let Some(etc) = &self.etc {
            mount::place(&self.mounts, &etc.with_file_name("root"))?;
            replace_resolver_files(etc)?;
        }
        // A session of its own: signals of the terminal reach the run, which ends its pods in order.
        nix::unistd::setsid().context("start a session")?;
        let keep = if self.net_admin {
            vec![Capability::CAP_NET_ADMIN]
        } else {
            vec![]
        };
        drop_bounding(&keep)?;
        if let Some(user) = self.user {
            nix::unistd::setgroups(&[]).context("leave all groups")?;
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
            nix::unistd::setresgid(gid, gid, gid).with_context(|| format!("become group {user}"))?;
            nix::unistd::setresuid(uid, uid, uid).with_context(|| format!("become user {user}"))?;
        }
        drop_capabilities(&keep)?;
        prctl::set_no_new_privs().context("give up gaining privileges")?;
        if let Some(file) = opened {
            return Err(execute(&file, &self.command)).with_context(|| format!("run {program}"));
        }
        Err(Command::new(program).args(arguments).exec()).with_context(|| format!("run {program}"))
    }
}

fn open_program(program: &str) -> anyhow::Result<File> {
    let path = if program.contains('/') {
        PathBuf::from(program)
    } else {
        super::container::find_in_path(program).with_context(|| format!("{program} is not in PATH"))?
    };
    File::open(&path).with_context(|| format!("open {}", path.display()))
}

/// Becomes an opened program. Returns only when that fails.
fn execute(file: &File, command: &[String]) -> anyhow::Error {
    let text = |text: Vec<u8>| CString::new(text).context("a NUL in an argument or variable");
    let attempt = || -> anyhow::Result<std::convert::Infallible> {
        let arguments = command.iter().map(|a| text(a.clone().into_bytes()));
        let arguments = arguments.collect::<anyhow::Result<Vec<_>>>()?;
        let variables = std::env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name.into_encoded_bytes())
        });
        let variables = variables.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(nix::unistd::execveat(
            file,
            c"",
            &arguments,
            &variables,
            AtFlags::AT_EMPTY_PATH,
        )?)
    };
    match attempt() {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

/// Binds the pod's files over the machine's.
fn replace_resolver_files(etc: &Path) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    for name in ["resolv.conf", "hosts", "nsswitch.conf"] {
        // The machine's file may be a link into a directory of its resolver.
        let Ok(target) = Path::new("/etc").join(name).canonicalize() else {
            continue;
        };
        mount(Some(&etc.join(name)), &target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("put the pod's {name} over {}", target.display()))?;
    }
    Ok(())
}

/// While it can still be done: what no program that is run from here on may gain.
fn drop_bounding(keep: &[Capability]) -> anyhow::Result<()> {
    if caps::read(None, CapSet::Permitted)?.is_empty() {
        return Ok(());
    }
    caps::clear(None, CapSet::Ambient).context("clear ambient capabilities")?;
    for capability in caps::all() {
        // A capability that this kernel does not know is not there to be dropped.
        if !keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).with_context(|| format!("give up {capability}"))?;
        }
    }
    Ok(())
}

fn drop_capabilities(keep: &[Capability]) -> anyhow::Result<()> {
    let keep_set = keep.iter().copied().collect();
    if caps::read(None, CapSet::Permitted)?.is_empty() {
        return Ok(());
    }
    // Inheritable too: a program that is run without being the superuser gets what is in this set.
    caps::set(None, CapSet::Inheritable, &keep_set).context("set inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &keep_set).context("set effective capabilities")?;
    caps::set(None, CapSet::Permitted, &keep_set).context("set permitted capabilities")
}
