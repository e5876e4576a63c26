//! Runs recorded scenarios against the mesh and compares what happens with what was observed.

mod agent;
mod case;
mod cluster;
mod credential;
mod expand;
mod headers;
mod judge;
mod lists;
mod local;
mod mesh;
mod outcome;
mod pattern;
mod report;
mod run;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

/// What to run, and where the lists of known differences are.
#[derive(Debug, Parser)]
#[command(name = "weft-conformance", version)]
struct Arguments {
    /// Folder of scenarios, a file for each area
    #[arg(long)]
    cases: PathBuf,
    /// Differences that are meant, each with the statement that says so
    #[arg(long)]
    deliberate: PathBuf,
    /// Scenarios that are known to disagree
    #[arg(long)]
    gaps: PathBuf,
    /// The one scenario to run
    #[arg(long)]
    only: Option<String>,
    /// Areas to run, separated by commas
    #[arg(long, value_delimiter = ',')]
    area: Vec<String>,
    /// Meshes at a time
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    stages: u8,
    /// Play on the cluster that KUBECONFIG names, which has Weft, instead of on meshes of local mode
    #[arg(long)]
    cluster: bool,
    /// Directory with the programs weft, weft-proxy and weft-app; that of this program by default
    #[arg(long)]
    programs: Option<PathBuf>,
    /// JUnit XML to write
    #[arg(long)]
    junit: Option<PathBuf>,
    /// Milliseconds that this machine may add to a time
    #[arg(long, default_value_t = 500)]
    slack_ms: u64,
    /// Print what every request gave
    #[arg(long)]
    verbose: bool,
    /// Rewrite the list of gaps from this run: new ones with their first difference as reason
    #[arg(long)]
    write_gaps: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let run = conformance(Arguments::parse());
    // The meshes end with what holds them, so an end from outside must come through here.
    let outcome = tokio::select! {
        outcome = run => outcome,
        () = asked_to_end() => Err(anyhow::anyhow!("ended by a signal")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("weft-conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn conformance(arguments: Arguments) -> Result<bool> {
    let mut areas = case::read(&arguments.cases)?;
    areas.retain(|area| arguments.area.is_empty() || arguments.area.contains(&area.name));
    if let Some(only) = &arguments.only {
        for area in &mut areas {
            area.scenarios.retain(|scenario| scenario.id == *only);
        }
        areas.retain(|area| !area.scenarios.is_empty());
        anyhow::ensure!(!areas.is_empty(), "no scenario is called {only:?}");
    }
    anyhow::ensure!(
        !areas.is_empty(),
        "no scenario in {} is of area {}",
        arguments.cases.display(),
        arguments.area.join(", ")
    );
    let lists = lists::Lists::read(&arguments.deliberate, &arguments.gaps)?;
    let programs = match &arguments.programs {
        Some(directory) => directory.clone(),
        None => {
            let own = std::env::current_exe().context("find this program")?;
            own.parent().map(PathBuf::from).unwrap_or_default()
        }
    };
    let settings = run::Settings {
        programs,
        stages: if arguments.cluster {
            run::Stages::Cluster
        } else {
            run::Stages::Local(arguments.stages)
        },
        slack_ms: arguments.slack_ms,
        verbose: arguments.verbose,
    };
    let results = run::all(areas, settings).await?;
    let verdict = report::Verdict::of(&results, &lists);
    verdict.print();
    if let Some(path) = &arguments.junit {
        std::fs::write(path, verdict.junit()).with_context(|| format!("write {}", path.display()))?;
    }
    if arguments.write_gaps {
        lists.write_gaps(&arguments.gaps, &verdict)?;
    }
    Ok(verdict.is_good())
}
