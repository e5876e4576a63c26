//! `weft local`: the mesh of a directory of manifests on one machine, without a cluster and without root.

use std::path::PathBuf;
use std::process::ExitCode;

mod acknowledge;
pub mod address;
mod check;
mod commands;
pub mod container;
pub mod control;
pub mod desired;
pub mod dns;
pub mod enter;
mod fabric;
mod get;
mod loopback;
pub mod manifest;
pub mod mount;
pub mod namespace;
pub mod output;
pub mod outside;
pub mod pod;
pub mod probe;
pub mod process;
mod publish;
mod run;
pub mod service;
pub mod up;
mod user;
mod watch;
pub mod workload;

/// Name of the one node.
pub const NODE: &str = "local";

/// Packet mark that tells the proxy's connections from the application's where all processes have one id (LOC-026).
pub const PROXY_MARK: &str = "1339";

/// Manifests that cannot be read, or from which nothing can start (LOC-053).
const UNREADABLE: u8 = 65;

/// Subcommands of `weft local`.
#[derive(Debug, clap::Subcommand)]
pub enum Local {
    /// Run the manifests of a directory until Ctrl-C
    Up(up::Up),
    /// List the pods of a run
    Ps(Ps),
    /// List objects of a run
    Get(get::Get),
    /// Run a program in a pod
    Exec(Exec),
    /// Send a request with curl, from a pod or from outside of the mesh
    Curl(Curl),
    /// Print lines of a pod
    Logs(Logs),
    /// Wait until every sidecar has what the manifests say now
    Wait(Wait),
    /// Run the manifests, and check what *.weft-test.yaml beside them expects
    Test(check::Test),
    /// What `up` starts
    #[command(hide = true)]
    Run(up::Up),
    /// Try what a run in namespaces needs
    #[command(hide = true)]
    TryNamespaces,
    /// Give the ids of a run to its user namespace
    #[command(hide = true)]
    MapIds(user::MapIds),
    /// The last step before a container's program
    #[command(hide = true)]
    EnterContainer(enter::Enter),
}

/// Arguments of `weft local ps`.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// Form of the list
    #[arg(short, long, value_enum)]
    output: Option<Form>,
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
}

/// Forms of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// More columns
    Wide,
}

/// Arguments of `weft local exec`.
#[derive(Debug, clap::Args)]
pub struct Exec {
    /// Pod or workload
    pod: String,
    /// Container whose environment the program gets
    #[arg(short, long)]
    container: Option<String>,
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
    /// Program and arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Arguments of `weft local curl`.
#[derive(Debug, clap::Args)]
pub struct Curl {
    /// Pod or workload that sends it; none: a client without sidecar
    #[arg(long)]
    from: Option<String>,
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
    /// Arguments of curl
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// Arguments of `weft local logs`.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Pod or workload
    pod: String,
    /// One container
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with further lines
    #[arg(short, long)]
    follow: bool,
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
}

/// Arguments of `weft local wait`.
#[derive(Debug, clap::Args)]
pub struct Wait {
    /// State directory of the run
    #[arg(long)]
    state: Option<PathBuf>,
}

impl Local {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What keeps it from doing what was asked, and what to do next.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up(options) => up::up(&options),
            Self::Run(options) => run::run(options),
            Self::TryNamespaces => up::trial().map(|()| ExitCode::SUCCESS),
            Self::MapIds(map) => map.run(),
            Self::EnterContainer(enter) => match enter.run()? {},
            Self::Ps(ps) => {
                let state = up::state_directory(ps.state.as_deref())?;
                match control::ask(&state, &control::Request::Ps)? {
                    control::Response::Rows(rows) => {
                        match ps.output {
                            Some(Form::Json) => println!("{}", serde_json::to_string_pretty(&rows)?),
                            Some(Form::Yaml) => print!("{}", serde_yaml::to_string(&rows)?),
                            Some(Form::Wide) => print!("{}", control::table(&rows, true)),
                            None => print!("{}", control::table(&rows, false)),
                        }
                        Ok(ExitCode::SUCCESS)
                    }
                    other => outcome(other),
                }
            }
            Self::Test(test) => test.run(),
            Self::Get(get) => get.run(),
            Self::Exec(Exec {
                pod,
                container,
                state,
                command,
            }) => {
                let request = control::Request::Exec {
                    pod,
                    container,
                    command,
                };
                outcome(control::ask(&up::state_directory(state.as_deref())?, &request)?)
            }
            Self::Curl(Curl { from, state, arguments }) => {
                let request = control::Request::Curl { from, arguments };
                outcome(control::ask(&up::state_directory(state.as_deref())?, &request)?)
            }
            Self::Wait(Wait { state }) => {
                match control::ask(&up::state_directory(state.as_deref())?, &control::Request::Wait)? {
                    control::Response::Settled {
                        notes,
                        sidecars,
                        waiting,
                    } => {
                        notes.iter().for_each(|note| eprintln!("{note}"));
                        println!("in force in {sidecars} sidecars");
                        anyhow::ensure!(waiting == 0, "{waiting} sidecars have not taken it");
                        Ok(ExitCode::SUCCESS)
                    }
                    other => outcome(other),
                }
            }
            Self::Logs(Logs {
                pod,
                container,
                follow,
                state,
            }) => {
                let request = control::Request::Logs { pod, container, follow };
                control::logs(&up::state_directory(state.as_deref())?, &request)
            }
        }
    }
}

fn outcome(response: control::Response) -> anyhow::Result<ExitCode> {
    match response {
        control::Response::Exited(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        control::Response::Refused(why) => anyhow::bail!(why),
        control::Response::Rows(_) | control::Response::Objects(_) | control::Response::Settled { .. } => {
            anyhow::bail!("the run is of another version; restart it")
        }
    }
}
