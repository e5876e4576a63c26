//! A mesh of local mode: started for a stage, told of a scenario's objects by files, asked for its addresses.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::agent::{Agents, PORT};
use crate::mesh::Applied;
use crate::stage::{self, Places, Pod};

/// A running mesh with the stage in it.
#[derive(Debug)]
pub(crate) struct Mesh {
    programs: PathBuf,
    directory: TempDir,
    child: Child,
    pub(crate) agents: Agents,
    pub(crate) places: Places,
}

/// A pod as `weft local ps` lists it.
#[derive(Debug, Deserialize)]
struct Row {
    pod: String,
    address: String,
}

impl Mesh {
    /// Starts a mesh and waits until every pod of the stage takes requests.
    pub(crate) async fn start(programs: &Path, log: &Path) -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory for a mesh")?;
        let manifests = directory.path().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        std::fs::write(manifests.join("weft-local.yaml"), "commands:\n  weft-app: [weft-app]\n")?;
        let mut objects = stage::objects();
        objects.push(stage::external_beside());
        // The order of names is the order of age: the stage was there before any scenario.
        std::fs::write(manifests.join("0-stage.json"), list(&objects))?;
        let state = directory.path().join("state");
        std::fs::create_dir_all(&state)?;
        let port = free_port()?;
        let log_file = std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
        let mut command = Command::new(programs.join("weft"));
        command
            .args([
                "local",
                "up",
                "--no-color",
                "--network",
                "namespaces",
                "--outside-cidr",
                stage::OUTSIDE,
            ])
            .arg("--filename")
            .arg(&manifests)
            .arg("--state")
            .arg(&state)
            .arg("--publish")
            .arg(format!("plain/{}:{PORT}={port}", stage::GATE))
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", programs.join("weft").display()))?;
        let notes = child.stderr.take().context("standard error of the mesh")?;
        ready(notes, log).await?;
        let mut mesh = Self {
            programs: programs.to_owned(),
            directory,
            child,
            agents: Agents {
                gate: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            },
            places: Places::default(),
        };
        mesh.places = mesh.look_around().await?;
        Ok(mesh)
    }

    /// Where pods and services are.
    async fn look_around(&self) -> Result<Places> {
        let rows = self.weft(&["ps", "--output", "json"]).await?;
        let rows: Vec<Row> = serde_json::from_str(&rows).context("list of pods")?;
        let pods = rows.into_iter().filter_map(|row| {
            let (namespace, name) = row.pod.split_once('/')?;
            Some(Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                address: row.address,
            })
        });
        let mut services = BTreeMap::new();
        for (namespace, name) in stage::addressed() {
            let address = self.resolve(&format!("{name}.{namespace}.svc.cluster.local")).await?;
            services.insert(format!("{namespace}/{name}"), address);
        }
        Ok(Places::beside(pods.collect(), services))
    }

    /// Asks the resolver of a pod without sidecar.
    async fn resolve(&self, name: &str) -> Result<String> {
        let out = self
            .weft(&["exec", "client-plain", "--", "getent", "ahostsv4", name])
            .await?;
        let address = out.split_whitespace().next();
        Ok(address.with_context(|| format!("{name} has no address"))?.to_owned())
    }

    /// Puts objects in the place of the last scenario's and waits until every sidecar has them.
    pub(crate) async fn replace(&self, objects: &[Value]) -> Result<Applied> {
        // An object that is refused keeps its last form: those of the scenario before must be gone.
        self.apply(&[]).await?;
        self.apply(objects).await
    }

    async fn apply(&self, objects: &[Value]) -> Result<Applied> {
        let path = self.directory.path().join("manifests/scenario.json");
        if objects.is_empty() {
            // An empty file might be a save that is not complete, and would change nothing.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("remove the last scenario's objects");
                }
                _ => {}
            }
        } else {
            // One rename, so that the mesh never sees half of it.
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, list(objects)).context("write the scenario's objects")?;
            std::fs::rename(&fresh, &path).context("write the scenario's objects")?;
        }
        let output = self.command(&["wait"]).output().await.context("run weft")?;
        let notes = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("the mesh did not take the objects: {}", notes.trim());
        }
        Ok(Applied {
            refused: refusals(&notes),
        })
    }

    async fn weft(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().await.context("run weft")?;
        if !output.status.success() {
            bail!(
                "weft local {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("weft"));
        let (first, rest) = arguments.split_first().unwrap_or((&"ps", &[]));
        command
            .args(["local", first, "--state"])
            .arg(self.directory.path().join("state"))
            .args(rest)
            .stdin(Stdio::null());
        command
    }

    /// Ends the mesh in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(id) = self.child.id() {
            let _ = kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM);
        }
        timeout(STOP_LIMIT, self.child.wait())
            .await
            .context("the mesh did not end")??;
        Ok(())
    }
}

/// Follows what a mesh says to a file; returns once it says that all pods are ready.
async fn ready(notes: tokio::process::ChildStderr, log: &Path) -> Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let path = log.with_extension("notes");
    let mut file = std::fs::File::create(&path)?;
    tokio::spawn(async move {
        let mut tell = Some(tell);
        let mut lines = BufReader::new(notes).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains("pods ready after")
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(());
            }
            // Notes that cannot be kept are lost; the run goes on.
            let _ = writeln!(file, "{line}");
        }
    });
    match timeout(START_LIMIT, told).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => bail!("the mesh ended at its start; {} says why", path.display()),
        Err(_) => bail!(
            "the stage is not ready after {START_LIMIT:?}; {} says more",
            path.display()
        ),
    }
}

/// Refused objects among the notes of a mesh: `PLACE: KIND "NAME" is refused: REASON`.
fn refusals(notes: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for line in notes.lines() {
        let Some((before, reason)) = line.split_once("\" is refused: ") else {
            continue;
        };
        let Some((kind, name)) = before.rsplit_once(" \"") else {
            continue;
        };
        let kind = kind.rsplit(' ').next().unwrap_or(kind);
        out.insert(format!("{kind}/{name}"), reason.to_owned());
    }
    out
}

fn list(objects: &[Value]) -> String {
    let documents = objects.iter().map(|object| format!("{object:#}\n"));
    documents.collect::<Vec<_>>().join("---\n")
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_found_among_notes() {
        let notes = "/m/scenario.json:3: VirtualService \"t\" is refused: spec.hosts: bad\nnot used: 1 Role\n";
        let found = refusals(notes);
        assert_eq!(found["VirtualService/t"], "spec.hosts: bad");
        assert_eq!(found.len(), 1);
    }
}
