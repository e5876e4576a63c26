//! Processes of pods: how they start in their pod, and how they are ended.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use super::output::Output;
use super::pod::{Program, Sandbox};

/// The command that starts a program of the pod, through `weft local enter-container`.
///
/// # Errors
/// That this program cannot be found.
pub fn command_in(sandbox: &Sandbox, program: &Program) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["local", "enter-container"]);
    if let Some(etc) = &sandbox.etc {
        command.arg("--etc").arg(etc);
    }
    if program.net_admin {
        command.arg("--net-admin");
    }
    if sandbox.network.is_none() {
        command.arg("--die-with-parent");
    }
    if let Some(user) = program.user {
        command.arg("--user").arg(user.to_string());
    }
    for mount in &program.mounts {
        command.arg("--mount").arg(mount.argument());
    }
    command.arg("--").args(&program.command).env_clear();
    command.envs(program.environment.iter().map(|(k, v)| (k, v)));
    Ok(command)
}

/// Starts a command in the pod's network.
///
/// # Errors
/// Those of starting a process.
pub fn spawn_in(sandbox: &Sandbox, command: &mut Command) -> anyhow::Result<Child> {
    let Some(network) = &sandbox.network else {
        return Ok(command.spawn()?);
    };
    let runtime = tokio::runtime::Handle::current();
    let child = network.within(|| {
        let _entered = runtime.enter();
        command.spawn()
    })??;
    Ok(child)
}

pub(super) async fn terminate(child: &mut Child, deadline: Instant) {
    if let Some(pid) = pid_of(child) {
        let _ = kill(pid, Signal::SIGTERM);
    }
    if timeout_at(deadline, child.wait()).await.is_err() {
        kill_group(child);
        let _ = timeout(Duration::from_secs(5), child.wait()).await;
    }
}

/// Kills a process and what it started: each container is a session of its own.
pub(super) fn kill_group(child: &Child) {
    if let Some(pid) = pid_of(child) {
        let _ = killpg(pid, Signal::SIGKILL);
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw)
}

pub(super) async fn copy_lines(from: impl AsyncRead + Unpin, output: Output, prefix: String) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without an end is cut, so that a program cannot fill the memory of the run.
        let mut bounded = tokio::io::AsyncReadExt::take(&mut lines, MAX_LINE);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => output.log(&prefix, String::from_utf8_lossy(&line).trim_end_matches('\n')),
        }
    }
}

pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

const MAX_LINE: u64 = 64 << 10;
