//! The sample application: echo server, caller and load generator of samples and tests.

mod answer;
mod client;
mod directive;
mod frontend;
mod get;
mod http1;
mod job;
mod load;
mod serve;
mod stream;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Echo server, frontend, load generator and caller in one program.
#[derive(Debug, Parser)]
#[command(name = "weft-app", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer requests with what they looked like on arrival
    Serve(serve::ServeArgs),
    /// Answer requests with what an upstream answered
    Frontend(frontend::FrontendArgs),
    /// Send requests at a steady rate and report what came back
    Load(load::LoadArgs),
    /// Send one request, or a few, and print what came back
    Get(get::GetArgs),
    /// Ask process 1 to end, as the kubelet does: for containers whose image has no `kill`
    End {
        /// At once, by SIGQUIT: the process dies without a farewell
        #[arg(long)]
        now: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::serve(args, None).await.map(|()| ExitCode::SUCCESS),
        Command::Frontend(args) => {
            let upstream = frontend::Frontend::new(&args);
            serve::serve(args.serve, Some(upstream))
                .await
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Load(args) => load::load(args).await.map(|()| ExitCode::SUCCESS),
        Command::Get(args) => get::get(args).await,
        Command::End { now } => end(now).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("weft-app: {error:#}");
        ExitCode::FAILURE
    })
}

fn end(now: bool) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    let signal = if now { Signal::SIGQUIT } else { Signal::SIGTERM };
    kill(nix::unistd::Pid::from_raw(1), signal).with_context(|| format!("send {signal} to process 1"))
}
