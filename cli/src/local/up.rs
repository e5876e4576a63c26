//! `weft local up`: from the user's terminal into the namespaces of the run.
//!
//! Two processes: this one stays in the terminal's namespaces, holds the lock and passes signals on; its child is the
//! run, the first process of a process namespace of its own where the kernel allows that, so that the kernel ends
//! everything with it, however it ends (LOC-050).

use std::fmt;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::address::Range;
use super::namespace::Switch;
use super::user;

/// Arguments of `weft local up`.
#[derive(Debug, Clone, clap::Args)]
pub struct Up {
    /// File or directory of manifests, read recursively; may be repeated
    #[arg(short = 'f', long = "filename", default_value = ".")]
    pub paths: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,
    /// How pods are connected
    #[arg(long, value_enum, default_value_t = Network::Auto)]
    pub network: Network,
    /// Addresses of pods in namespaces mode
    #[arg(long, default_value = "10.99.0.0/16")]
    pub pod_cidr: Range,
    /// Addresses of services in namespaces mode
    #[arg(long, default_value = "10.98.0.0/16")]
    pub service_cidr: Range,
    /// Range of pods that stand for servers outside of the cluster (annotation local.weft.dev/outside-address); what is
    /// sent to an address of it that no pod has is lost without an answer, as in a wide network
    #[arg(long)]
    pub outside_cidr: Option<Range>,
    /// Make a service reachable from this machine: NAMESPACE/SERVICE:PORT=LOCALPORT; may be repeated
    #[arg(long, value_name = "NS/SVC:PORT=LOCALPORT")]
    pub publish: Vec<Publish>,
    /// Trust domain, instead of the mesh config's
    #[arg(long)]
    pub trust_domain: Option<String>,
    /// State directory [default: weft/local/default below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Leave the state directory when the run ends
    #[arg(long)]
    pub keep: bool,
    /// First wait, in seconds, before a container that ended is started again
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub restart_backoff: u64,
    /// Print no lines of containers
    #[arg(short, long)]
    pub quiet: bool,
    /// No colours
    #[arg(long)]
    pub no_color: bool,
}

/// How pods are connected (LOC-020).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// Namespaces where the kernel lets this user make them, else loopback
    Auto,
    /// A network namespace for each pod, with transparent interception
    Namespaces,
    /// Addresses of 127.64.0.0/10; sidecars serve as explicit proxies
    Loopback,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Namespaces => "namespaces",
            Self::Loopback => "loopback",
        })
    }
}

/// A service port that listens on 127.0.0.1 (LOC-024).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Namespace.
    pub namespace: String,
    /// Service.
    pub service: String,
    /// Service port.
    pub port: u16,
    /// Port of 127.0.0.1.
    pub local: u16,
}

impl std::str::FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (from, local) = text.split_once('=')?;
            let (service, port) = from.rsplit_once(':')?;
            let (namespace, service) = service.split_once('/')?;
            if namespace.is_empty() || service.is_empty() {
                return None;
            }
            Some(Self {
                namespace: namespace.to_owned(),
                service: service.to_owned(),
                port: port.parse().ok()?,
                local: local.parse().ok()?,
            })
        };
        parse().ok_or_else(|| format!("{text} is not of the form NAMESPACE/SERVICE:PORT=LOCALPORT"))
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}={}", self.namespace, self.service, self.port, self.local)
    }
}

/// Runs until SIGINT or SIGTERM. Must be called before any thread is started: namespaces are made for a process.
///
/// # Errors
/// What keeps the run from starting.
pub fn up(options: &Up) -> anyhow::Result<ExitCode> {
    let state = state_directory(options.state.as_deref())?;
    let lock = claim(&state)?;
    let trial = match options.network {
        Network::Loopback => Err("asked for by --network loopback".to_owned()),
        Network::Auto | Network::Namespaces => try_namespaces(),
    };
    let network = match (options.network, trial) {
        (_, Ok(())) => Network::Namespaces,
        (Network::Namespaces, Err(why)) => anyhow::bail!("--network namespaces is not possible: {why}"),
        (Network::Auto | Network::Loopback, Err(why)) => {
            eprintln!("weft network: loopback ({why})");
            Network::Loopback
        }
    };
    if network == Network::Namespaces {
        eprintln!("weft network: namespaces");
        user::enter_namespace()?;
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("make process and mount namespaces")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("keep mounts to the run")?;
    }
    clear(&state)?;
    // The proxy may have an id of its own and must read what the run writes; the state directory itself is closed.
    umask(Mode::from_bits_truncate(0o022));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["local", "run"]).args(arguments(options, network, &state));
    // Signals of the terminal come here, and are passed on: the run must not see them twice.
    command.process_group(0).stdin(Stdio::piped());
    let mut child = command.spawn().context("start the run")?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    // Held until the end: the run ends when this pipe does, even if this process is killed.
    let _alive = child.stdin.take();
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
        signal_hook::consts::SIGCHLD,
    ])?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        for signal in signals.wait() {
            if signal != signal_hook::consts::SIGCHLD {
                let _ = kill(pid, Signal::try_from(signal)?);
            }
        }
    };
    if !options.keep {
        fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
    }
    drop(lock);
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The directory of the run.
///
/// # Errors
/// That neither `$XDG_STATE_HOME` nor `$HOME` is set.
pub fn state_directory(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|p| !p.is_empty())
        .map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")));
    Ok(base
        .context("set $XDG_STATE_HOME or $HOME, or name a directory with --state")?
        .join("weft/local/default"))
}

/// Makes the directory the user's alone and locks it (LOC-008).
fn claim(state: &Path) -> anyhow::Result<Flock<File>> {
    fs::create_dir_all(state).with_context(|| format!("make {}", state.display()))?;
    fs::set_permissions(state, Permissions::from_mode(0o700))?;
    let path = state.with_extension("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| e)
        .with_context(|| {
            format!(
                "{} is in use by another run; give this one a directory of its own with --state",
                state.display()
            )
        })?;
    Ok(lock)
}

/// Clears what a killed run left. In the run's user namespace: some of it may belong to the proxy's id.
fn clear(state: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        }
        .with_context(|| format!("clear {}", path.display()))?;
    }
    Ok(())
}

/// Tries what a run needs, in a process that ends afterwards (LOC-029).
fn try_namespaces() -> Result<(), String> {
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command
        .args(["local", "try-namespaces"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if text.is_empty() {
        format!("the trial {}", output.status)
    } else {
        text
    })
}

/// What `weft local try-namespaces` does: a user namespace, a network namespace with a link, a redirect rule.
///
/// # Errors
/// The step, its error, and the setting that forbids it where that is known.
pub fn trial() -> anyhow::Result<()> {
    let namespaces = |flags| unshare(flags).map_err(anyhow::Error::from);
    user::enter_namespace()
        .and_then(|()| namespaces(CloneFlags::CLONE_NEWNS).context("make a mount namespace"))
        .map_err(|e| anyhow::anyhow!("{e:#}{}", known_reason()))?;
    let range: Range = "10.99.0.0/16".parse().map_err(anyhow::Error::msg)?;
    let switch = Switch::create(range.at(1), range.prefix, (range.at(2), 32))?;
    let pod = switch.attach(range.at(3))?;
    let proxy = proxy_program()?;
    let mut command = Command::new(&proxy);
    command
        .args(["init", "--proxy-mark", super::PROXY_MARK])
        .stdin(Stdio::null());
    let output = pod
        .within(|| command.output())?
        .with_context(|| format!("run {}", proxy.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "set a redirect rule: {}", text.trim());
    // Last, because a process that did this can start no more threads.
    namespaces(CloneFlags::CLONE_NEWPID).context("make a process namespace")
}

/// The settings that keep ordinary users from making namespaces.
fn known_reason() -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).map(|t| t.trim().to_owned());
    let settings = [
        ("user/max_user_namespaces", "0", "a number above 0"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let found = settings
        .iter()
        .find(|(name, forbids, _)| read(name).is_ok_and(|value| value == *forbids));
    found.map_or_else(String::new, |(name, value, allows)| {
        format!(" ({} is {value}; {allows} allows it)", name.replace('/', "."))
    })
}

/// The options as arguments of `weft local run`.
pub(super) fn arguments(options: &Up, network: Network, state: &Path) -> Vec<std::ffi::OsString> {
    let mut out: Vec<std::ffi::OsString> = Vec::new();
    let mut add = |name: &str, value: &std::ffi::OsStr| {
        let mut argument = std::ffi::OsString::from(format!("{name}="));
        argument.push(value);
        out.push(argument);
    };
    for path in &options.paths {
        add("--filename", path.as_os_str());
    }
    add("--namespace", options.namespace.as_ref());
    add("--network", network.to_string().as_ref());
    add("--pod-cidr", options.pod_cidr.to_string().as_ref());
    add("--service-cidr", options.service_cidr.to_string().as_ref());
    if let Some(range) = &options.outside_cidr {
        add("--outside-cidr", range.to_string().as_ref());
    }
    for publish in &options.publish {
        add("--publish", publish.to_string().as_ref());
    }
    if let Some(domain) = &options.trust_domain {
        add("--trust-domain", domain.as_ref());
    }
    add("--state", state.as_os_str());
    add("--restart-backoff", options.restart_backoff.to_string().as_ref());
    for (name, is_set) in [("--quiet", options.quiet), ("--no-color", options.no_color)] {
        if is_set {
            out.push(name.into());
        }
    }
    out
}

/// Ties the run to the process that started it, which holds the other end of standard input.
///
/// # Errors
/// That it is gone already.
pub fn end_with_parent(stop: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("tie the run to its parent")?;
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        // Nothing is ever written: reading ends when the parent does.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop();
    })?;
    Ok(())
}

/// The proxy's program: beside this one, or in `PATH`.
///
/// # Errors
/// That it is in neither place.
pub fn proxy_program() -> anyhow::Result<PathBuf> {
    sibling_program("weft-proxy")
}

/// A program of the project beside this one, or in `PATH`.
///
/// # Errors
/// That it is in neither place.
pub fn sibling_program(name: &str) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    let found = super::container::find_in_path(name);
    found.with_context(|| format!("{name} is neither beside weft nor in PATH; build it with `make build`"))
}

/// Longest orderly end of a run (LOC-050).
pub const END_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOC-024
    #[test]
    fn publish_is_parsed_or_refused_with_its_form() {
        let publish: Publish = "sample/frontend:80=8080".parse().expect("publish");
        assert_eq!(publish.to_string(), "sample/frontend:80=8080");
        for bad in ["frontend:80=8080", "a/b:80", "a/b:x=1", "/b:1=1"] {
            assert!(bad.parse::<Publish>().expect_err(bad).contains("NAMESPACE/SERVICE"));
        }
    }
}
