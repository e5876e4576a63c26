//! Builds what is distributed: kustomize bases and Helm charts from one source, and image archives.

mod config;
mod crds;
mod image;
mod injector;
mod template;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Builds what is distributed.
#[derive(Debug, Parser)]
#[command(name = "weft-dist")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write config/base, config/crds, config/overlays/cni and config/charts from config/source, crds/yaml and the injector's selectors
    Config(ConfigArgs),
    /// Write the archive of one image, for `docker load`, `ctr images import` and their like
    Image(image::ImageArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The checkout
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Config(args) => config::write(&args.root),
        Command::Image(args) => image::write(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-dist: {error:#}");
            ExitCode::FAILURE
        }
    }
}
