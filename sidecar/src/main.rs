//! The proxy beside each workload, and `init`, which sets up its redirect.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use weft_sidecar::arguments::{Arguments, Command, Wait};
use weft_sidecar::{ask, init, log, run};

fn main() -> ExitCode {
    // There is one TLS stack; a second installation cannot happen before the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(problem) => {
            if let Some(variable) = weft_sidecar::arguments::variable_of(&problem) {
                eprintln!("weft-proxy: environment variable {variable}:");
            }
            problem.exit();
        }
    };
    let result = match arguments.command {
        Command::Run(arguments) => {
            let control = log::start(&arguments.log_level, arguments.log_format == "json");
            let result = run::run(&arguments, control);
            log::flush();
            result
        }
        Command::Init(arguments) => return init::run(&arguments),
        Command::Validate(arguments) => return init::validate::run(&arguments),
        Command::Wait(arguments) => wait(&arguments),
        Command::Drain(local) => {
            ask::request((local.address, local.status_port).into(), "POST", "/drain").map(|_| ExitCode::SUCCESS)
        }
        Command::Request(request) => ask::request(
            ([127, 0, 0, 1], request.admin_port).into(),
            &request.method,
            &request.path,
        )
        .map(|answer| {
            print!("{}", answer.body);
            if answer.status < 400 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }),
        Command::Version => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("weft-proxy: {e:#}");
        ExitCode::FAILURE
    })
}

/// Polls readiness every 500 ms (INJ-110).
fn wait(arguments: &Wait) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    loop {
        let problem = match ask::request(
            (arguments.address, arguments.health_port).into(),
            "GET",
            "/healthz/ready",
        ) {
            Ok(answer) if answer.status == 200 => return Ok(ExitCode::SUCCESS),
            Ok(answer) => answer.body,
            Err(e) => format!("{e:#}"),
        };
        if Instant::now() >= deadline {
            anyhow::bail!("not ready after {} s: {}", arguments.timeout, problem.trim());
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
}
