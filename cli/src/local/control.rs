//! The socket of a run: `ps`, `exec`, `curl` and `logs` of other processes of the same user (LOC-041).
//!
//! One request per connection: a line of JSON, and for programs the caller's standard input, output and error as
//! descriptors, so that they talk to the caller's terminal directly. One line of JSON answers.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::fabric::Fabric;
use super::output::Output;
use super::pod::Program;
use super::process::{command_in, spawn_in};
use super::run::{Event, Run};

/// What is asked of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// The pods.
    Ps,
    /// The objects, those included that controllers would have written.
    Get,
    /// A program in a pod.
    Exec {
        /// Pod, or workload.
        pod: String,
        /// Container whose environment it gets; the first one.
        container: Option<String>,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// A program of this binary's, in a pod or in the bridge's namespace.
    Curl {
        /// Pod, or workload; none: a client without sidecar.
        from: Option<String>,
        /// Arguments of curl.
        arguments: Vec<String>,
    },
    /// That every sidecar has what the manifests say now.
    Wait,
    /// Lines of a pod.
    Logs {
        /// Pod, or workload.
        pod: String,
        /// One container.
        container: Option<String>,
        /// Further lines too.
        follow: bool,
    },
}

/// What a run answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// The pods.
    Rows(Vec<Row>),
    /// The objects.
    Objects(Vec<serde_json::Value>),
    /// A program ended.
    Exited(i32),
    /// The manifests are read, and sidecars were given time to take them.
    Settled {
        /// What is not as the manifests say, refused objects among them.
        notes: Vec<String>,
        /// Sidecars that have it.
        sidecars: usize,
        /// Sidecars that do not.
        waiting: usize,
    },
    /// It cannot be done.
    Refused(String),
}

/// A pod, for `ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `namespace/name`.
    pub pod: String,
    /// Whether it takes requests.
    pub ready: bool,
    /// State in words.
    pub state: String,
    /// Address.
    pub address: String,
    /// Whether it has a sidecar.
    pub sidecar: bool,
    /// Revision of its configuration.
    pub revision: Option<String>,
    /// Key of its configuration.
    pub key: Option<String>,
    /// Age.
    pub age_seconds: u64,
    /// Warnings of injection.
    pub warnings: Vec<String>,
}

/// A request with where to answer.
#[derive(Debug)]
pub struct Asked {
    request: Request,
    descriptors: Vec<OwnedFd>,
    stream: UnixStream,
}

impl Asked {
    /// Whether the files are to be read first.
    pub(super) fn is_about_files(&self) -> bool {
        matches!(self.request, Request::Wait)
    }
}

/// Path of the socket.
#[must_use]
pub fn socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Listens until the process ends.
///
/// # Errors
/// That the socket cannot be made.
pub(super) fn serve(state: &Path, tell: UnboundedSender<Event>, output: &Output) -> anyhow::Result<()> {
    let path = socket(state);
    let listener = UnixListener::bind(&path).with_context(|| format!("make {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let output = output.clone();
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            let output = output.clone();
            let read = move || match read_request(&stream) {
                Ok((Request::Logs { pod, container, follow }, _)) => {
                    print_logs(&stream, &output, &pod, container.as_deref(), follow)
                }
                Ok((request, descriptors)) => drop(tell.send(Event::Asked(Asked {
                    request,
                    descriptors,
                    stream,
                }))),
                Err(e) => reply(&stream, &Response::Refused(format!("{e:#}"))),
            };
            let _ = std::thread::Builder::new().name("asked".to_owned()).spawn(read);
        }
    })?;
    Ok(())
}

/// Answers a request; what takes time goes on in a task.
pub(super) fn answer(run: &Run, asked: Asked) {
    let Asked {
        request,
        descriptors,
        stream,
    } = asked;
    let refuse = |text: String| reply(&stream, &Response::Refused(text));
    match request {
        Request::Ps => reply(&stream, &Response::Rows(run.rows())),
        Request::Get => reply(&stream, &Response::Objects(run.objects())),
        Request::Wait => {
            let notes = run.notes().to_vec();
            let asked = super::acknowledge::ask(run.targets());
            run.reach().runtime.spawn(async move {
                let outcomes = asked.await;
                let sidecars = outcomes.iter().filter(|has| **has).count();
                let waiting = outcomes.len() - sidecars;
                reply(
                    &stream,
                    &Response::Settled {
                        notes,
                        sidecars,
                        waiting,
                    },
                );
            });
        }
        Request::Exec {
            pod,
            container,
            command,
        } => {
            let Some(sandbox) = run.find(&pod) else {
                return refuse(format!("no pod {pod:?} runs; `weft local ps` lists those that do"));
            };
            let program = match &container {
                Some(name) => sandbox.programs.get(name),
                None => {
                    let first = sandbox.pod.spec.as_ref().and_then(|s| s.containers.first());
                    first.and_then(|c| sandbox.programs.get(&c.name))
                }
            };
            let Some(program) = program else {
                let names: Vec<_> = sandbox.programs.keys().cloned().collect();
                return refuse(format!(
                    "pod {pod} has no container {container:?}; it has {}",
                    names.join(", ")
                ));
            };
            let program = Program {
                command,
                environment: program.environment.clone(),
                net_admin: false,
                user: program.user,
                mounts: program.mounts.clone(),
            };
            run_in(&sandbox, &program, descriptors, stream);
        }
        Request::Curl {
            from: Some(pod),
            arguments,
        } => {
            let Some(sandbox) = run.find(&pod) else {
                return refuse(format!("no pod {pod:?} runs; `weft local ps` lists those that do"));
            };
            // As the application's own requests go: through the proxy that it was told of, if any.
            let first = sandbox.pod.spec.as_ref().and_then(|s| s.containers.first());
            let application = first.and_then(|c| sandbox.programs.get(&c.name));
            let passed_on = |name: &str| ["PATH", "HOME", "http_proxy", "no_proxy"].contains(&name);
            let variables = application.iter().flat_map(|p| &p.environment);
            let program = Program {
                command: curl(arguments),
                environment: variables.filter(|(name, _)| passed_on(name)).cloned().collect(),
                net_admin: false,
                user: None,
                mounts: Vec::new(),
            };
            run_in(&sandbox, &program, descriptors, stream);
        }
        Request::Curl { from: None, arguments } => {
            // In the bridge's namespace: a client that is no pod, so without sidecar.
            let mut command = tokio::process::Command::new("curl");
            let arguments = resolve_names(run, arguments);
            command.args(&curl(arguments)[1..]);
            let started = attach(&mut command, descriptors).and_then(|()| match run.fabric() {
                Fabric::Loopback(_) => command.spawn(),
                Fabric::Namespaces(switch) => {
                    let runtime = tokio::runtime::Handle::current();
                    switch.namespace().within(|| {
                        let _entered = runtime.enter();
                        command.spawn()
                    })?
                }
            });
            finish(started.map_err(anyhow::Error::from), stream);
        }
        Request::Logs { .. } => refuse("answered by the socket's own thread".into()),
    }
}

/// Names of services for a client outside of all pods, whose resolver knows none.
fn resolve_names(run: &Run, arguments: Vec<String>) -> Vec<String> {
    let mut out = Vec::new();
    for argument in &arguments {
        let Some(rest) = argument.split_once("://").map(|(_, rest)| rest) else {
            continue;
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = authority.rsplit_once(':').map_or((authority, "80"), |(h, p)| (h, p));
        let full = [host.to_owned(), format!("{host}.svc.cluster.local")];
        let found = full.iter().find_map(|name| run.resolver().lookup(name));
        let target = found.and_then(|address| run.reach().target(address, port.parse().ok()?));
        if let Some((address, target)) = target {
            out.extend(["--connect-to".to_owned(), format!("{host}:{port}:{address}:{target}")]);
        }
    }
    out.extend(arguments);
    out
}

fn curl(arguments: Vec<String>) -> Vec<String> {
    let quiet = ["curl", "--silent", "--show-error", "--max-time", "30"].map(str::to_owned);
    quiet.into_iter().chain(arguments).collect()
}

fn run_in(sandbox: &super::pod::Sandbox, program: &Program, descriptors: Vec<OwnedFd>, stream: UnixStream) {
    let started = command_in(sandbox, program).and_then(|mut command| {
        attach(&mut command, descriptors)?;
        spawn_in(sandbox, &mut command)
    });
    finish(started, stream);
}

/// Gives the program the caller's descriptors.
fn attach(command: &mut tokio::process::Command, descriptors: Vec<OwnedFd>) -> std::io::Result<()> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().map(Stdio::from).unwrap_or_else(Stdio::null);
    command.stdin(next()).stdout(next()).stderr(next());
    Ok(())
}

fn finish(started: anyhow::Result<tokio::process::Child>, stream: UnixStream) {
    match started {
        Ok(mut child) => drop(tokio::spawn(async move {
            let code = child.wait().await.ok().and_then(|s| s.code()).unwrap_or(1);
            reply(&stream, &Response::Exited(code));
        })),
        Err(e) => reply(&stream, &Response::Refused(format!("{e:#}"))),
    }
}

fn print_logs(stream: &UnixStream, output: &Output, pod: &str, container: Option<&str>, follow: bool) {
    // Lines are kept by `namespace/pod container`; a workload's name stands for all its pods.
    let fits = |name: &str| {
        let (id, of) = name.split_once(' ').unwrap_or((name, ""));
        let own = id.split('/').nth(1).unwrap_or(id);
        (id == pod || own == pod || own.starts_with(&format!("{pod}-"))) && container.is_none_or(|c| c == of)
    };
    let mut live = output.follow();
    let write = |name: &str, line: &str| {
        let mut stream = stream;
        writeln!(stream, "{}", serde_json::json!([name, line])).is_ok()
    };
    for (name, line) in output.kept("").iter().filter(|(name, _)| fits(name)) {
        if !write(name, line) {
            return;
        }
    }
    if !follow {
        return;
    }
    loop {
        match live.blocking_recv() {
            Ok((name, line)) if fits(&name) => {
                if !write(&name, &line) {
                    return;
                }
            }
            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Reads a line of JSON and the descriptors that came with it.
fn read_request(stream: &UnixStream) -> anyhow::Result<(Request, Vec<OwnedFd>)> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([RawFd; 3]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                descriptors.extend(rights.into_iter().map(own));
            }
        }
        (message.bytes, descriptors)
    };
    let request = serde_json::from_slice(&buffer[..length]).context("no request that this version knows")?;
    Ok((request, descriptors))
}

#[expect(
    unsafe_code,
    reason = "the kernel made this descriptor for us when it delivered the message"
)]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) gave it to this process, and nothing else holds its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn reply(mut stream: &UnixStream, response: &Response) {
    if let Ok(mut line) = serde_json::to_vec(response) {
        line.push(b'\n');
        // Whoever asked may have gone.
        let _ = stream.write_all(&line);
    }
}

/// Asks a run; programs get this process's standard input, output and error.
///
/// # Errors
/// That no run is there.
pub fn ask(state: &Path, request: &Request) -> anyhow::Result<Response> {
    let stream = connect(state, request)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the run ended")?;
    Ok(serde_json::from_str(&line)?)
}

/// Prints lines of containers as they come.
///
/// # Errors
/// That no run is there.
pub fn logs(state: &Path, request: &Request) -> anyhow::Result<ExitCode> {
    let stream = connect(state, request)?;
    for line in BufReader::new(stream).lines() {
        let (name, line): (String, String) = serde_json::from_str(&line?)?;
        println!("{name} {line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(state: &Path, request: &Request) -> anyhow::Result<UnixStream> {
    let path = socket(state);
    let stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no run at {}; start one with `weft local up`, or name its directory with --state",
            state.display()
        )
    })?;
    let text = serde_json::to_vec(request)?;
    let own = [0, 1, 2];
    let rights = [ControlMessage::ScmRights(&own)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&text)],
        &rights,
        MsgFlags::empty(),
        None,
    )?;
    Ok(stream)
}

/// The pods as kubectl prints them.
#[must_use]
pub fn table(rows: &[Row], wide: bool) -> String {
    let mut lines = vec![
        vec!["POD", "READY", "STATE", "ADDRESS", "SIDECAR"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    if wide {
        lines[0].extend(["AGE".to_owned(), "KEY".to_owned()]);
    }
    for row in rows {
        let sidecar = match (&row.revision, row.sidecar) {
            (Some(revision), _) => revision.clone(),
            (None, true) => "waiting".to_owned(),
            (None, false) => "-".to_owned(),
        };
        let ready = if row.ready { "yes" } else { "no" };
        let mut line = vec![
            row.pod.clone(),
            ready.to_owned(),
            row.state.clone(),
            row.address.clone(),
            sidecar,
        ];
        if wide {
            line.extend([
                format!("{}s", row.age_seconds),
                row.key.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        lines.push(line);
    }
    align(&lines)
}

/// Lines of cells as columns.
pub(super) fn align<T: AsRef<[String]>>(lines: &[T]) -> String {
    let lines: Vec<&[String]> = lines.iter().map(AsRef::as_ref).collect();
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|n| lines.iter().map(|l| l[n].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOC-040
    #[test]
    fn the_table_is_aligned() {
        let row = |pod: &str, ready, revision: Option<&str>| Row {
            pod: pod.into(),
            ready,
            state: "Running".into(),
            address: "10.99.0.2".into(),
            sidecar: revision.is_some(),
            revision: revision.map(Into::into),
            key: None,
            age_seconds: 3,
            warnings: vec![],
        };
        let text = table(
            &[row("a/b", true, Some("0123456789ab")), row("a/longer", false, None)],
            false,
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("READY"), lines[1].find("yes"));
        assert_eq!(lines[2].find("no"), lines[0].find("READY"));
        assert!(lines[2].ends_with('-'));
    }
}
