//! `weft-cni`: called by a container runtime it is a CNI plugin, and with a command the DaemonSet's agent.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use weft_cni::{agent, plugin};

#[derive(Parser)]
#[command(name = "weft-cni", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keeps the plugin installed on this node, until SIGTERM
    Agent(Box<AgentArguments>),
    /// Removes the plugin from this node, where an agent could not
    Uninstall(agent::Directories),
}

#[derive(clap::Args)]
struct AgentArguments {
    #[command(flatten)]
    agent: agent::Arguments,
    /// Log as JSON
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    // There is one TLS stack; a second installation cannot happen before the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if std::env::var_os("CNI_COMMAND").is_some() {
        return call();
    }
    let outcome = match Arguments::parse().command {
        Command::Agent(arguments) => {
            log(arguments.log_json);
            run(&arguments.agent)
        }
        Command::Uninstall(directories) => directories.places().remove().context("remove the plugin"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One call of the runtime: what is answered goes to standard output, errors too.
fn call() -> ExitCode {
    let mut input = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut input) {
        eprintln!("weft-cni: read standard input: {error}");
        return ExitCode::FAILURE;
    }
    // Variables that are no text are none of CNI's.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = match runtime {
        Ok(runtime) => runtime.block_on(plugin::answer(&environment, &input)),
        Err(error) => {
            eprintln!("weft-cni: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match answer {
        Ok(said) => {
            said.iter().for_each(|said| println!("{said}"));
            ExitCode::SUCCESS
        }
        Err((version, failure)) => {
            println!("{}", failure.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &agent::Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.context("start")?.block_on(agent::run(arguments))
}

fn log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}
