//! The `weft` command.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Weft, a service mesh for Kubernetes
#[derive(Debug, Parser)]
#[command(name = "weft", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A mesh on this machine, without a cluster
    #[command(subcommand)]
    Local(weft_cli::local::Local),
}

/// Wrong usage (OPS-111).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let matches = match Arguments::command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            // Nothing more can be done when the terminal is gone.
            let _ = e.print();
            return if e.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(e) => e.exit(),
    };
    let result = match arguments.command {
        Command::Local(local) => local.run(),
    };
    result.unwrap_or_else(|e| {
        eprintln!("weft: {e:#}");
        ExitCode::FAILURE
    })
}
