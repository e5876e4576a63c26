//! `weft local test`: starts what manifests describe, calls it, and compares the answers with what files say
//! (LOC-043).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::{control, up};

mod answer;
mod report;

use self::answer::Answer;
use self::report::Outcome;

/// Arguments of `weft local test`.
#[derive(Debug, clap::Args)]
pub struct Test {
    #[command(flatten)]
    up: up::Up,
    /// Write the outcome as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Longest wait for all pods to be ready, in seconds
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Requests by version.
type Counts = BTreeMap<String, usize>;

/// A file `*.weft-test.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    checks: Vec<Check>,
}

/// Calls and what is expected of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Check {
    name: String,
    /// Pod or workload that calls; none: a client without a sidecar.
    from: Option<String>,
    url: String,
    #[serde(default = "get")]
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Number of calls.
    #[serde(default = "one")]
    requests: usize,
    expect: Expected,
}

/// What every answer must be like; `destinations` looks at all of them together.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// A part of the body.
    body: Option<String>,
    /// SPIFFE id that the server saw; its answer must tell it, as that of weft-app does.
    identity: Option<String>,
    /// Whether the call is refused: by 403, or by a connection that is closed without an answer.
    denied: Option<bool>,
    /// Share of each version: of the pods' label `version`.
    #[serde(default)]
    destinations: BTreeMap<String, f64>,
    /// By how much a share may differ.
    #[serde(default = "tolerance")]
    tolerance: f64,
}

fn get() -> String {
    "GET".to_owned()
}

fn one() -> usize {
    1
}

fn tolerance() -> f64 {
    0.1
}

impl Test {
    /// Runs the checks.
    ///
    /// # Errors
    /// What keeps the run from starting; a failed check is exit code 1.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let checks = match read(&self.up.paths) {
            Ok(checks) => checks,
            Err(problem) => {
                eprintln!("weft: {problem}");
                return Ok(ExitCode::from(super::UNREADABLE));
            }
        };
        let state = match &self.up.state {
            Some(state) => state.clone(),
            None => up::state_directory(None)?.with_file_name(format!("test-{}", std::process::id())),
        };
        let mut run = Running::start(&self.up, &state)?;
        if let Some(code) = run.wait_until_ready(Duration::from_secs(self.timeout))? {
            return Ok(code);
        }
        let outcomes: Vec<Outcome> = checks.iter().map(|check| run.check(check)).collect();
        for outcome in &outcomes {
            println!("{outcome}");
        }
        if let Some(file) = &self.junit {
            fs::write(file, report::junit(&outcomes)).with_context(|| format!("write {}", file.display()))?;
        }
        let failed = outcomes.iter().filter(|outcome| !outcome.problems.is_empty()).count();
        println!("{} checks, {failed} failed", outcomes.len());
        Ok(if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// The checks of all files beside the manifests.
fn read(paths: &[PathBuf]) -> Result<Vec<Check>, String> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, &mut files);
    }
    files.sort();
    files.dedup();
    let mut checks = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let suite: Suite =
            serde_yaml::from_str(&text).map_err(|e| format!("{}: {}", file.display(), e.without_snippet()))?;
        for check in suite.checks {
            let at = |field: &str| format!("{}: check {:?}: {field}", file.display(), check.name);
            if check.requests == 0 || check.requests > MOST_REQUESTS {
                return Err(at(&format!(
                    "requests: {}: must be 1 to {MOST_REQUESTS}",
                    check.requests
                )));
            }
            if !check.expect.destinations.is_empty() && check.from.is_none() {
                return Err(at(
                    "from is required where destinations are expected: its sidecar tells them",
                ));
            }
            checks.push(check);
        }
    }
    if checks.is_empty() {
        return Err("no checks: put a file *.weft-test.yaml beside the manifests".to_owned());
    }
    Ok(checks)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| collect(&entry.path(), files));
    } else if path.to_string_lossy().ends_with(".weft-test.yaml") {
        files.push(path.to_owned());
    }
}

/// `weft local up` beside this process; it ends with this value.
struct Running {
    child: Child,
    state: PathBuf,
}

impl Running {
    fn start(options: &up::Up, state: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["local", "up"])
            .args(up::arguments(options, options.network, state));
        if !options.quiet {
            command.arg("--quiet");
        }
        let child = command.stdin(Stdio::null()).spawn().context("start the run")?;
        Ok(Self {
            child,
            state: state.to_owned(),
        })
    }

    /// The exit code of a run that ended instead.
    fn wait_until_ready(&mut self, limit: Duration) -> anyhow::Result<Option<ExitCode>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                return Ok(Some(ExitCode::from(code)));
            }
            let rows = match control::ask(&self.state, &control::Request::Ps) {
                Ok(control::Response::Rows(rows)) => rows,
                _ => Vec::new(),
            };
            if !rows.is_empty() && rows.iter().all(|row| row.ready) {
                return Ok(None);
            }
            let waiting: Vec<_> = rows
                .iter()
                .filter(|r| !r.ready)
                .map(|r| format!("{}: {}", r.pod, r.state))
                .collect();
            anyhow::ensure!(
                Instant::now() < deadline,
                "not ready after {} s: {}",
                limit.as_secs(),
                waiting.join("; ")
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn weft(&self, command: &str, arguments: &[String]) -> anyhow::Result<std::process::Output> {
        let mut weft = Command::new(std::env::current_exe()?);
        weft.args(["local", command, "--state"])
            .arg(&self.state)
            .args(arguments);
        Ok(weft.stdin(Stdio::null()).output()?)
    }

    fn check(&self, check: &Check) -> Outcome {
        let begun = Instant::now();
        let problems = match self.problems(check) {
            Ok(problems) => problems,
            Err(e) => vec![format!("{e:#}")],
        };
        Outcome {
            name: check.name.clone(),
            revision: self.caller(check).and_then(|row| row.revision),
            problems,
            elapsed: begun.elapsed(),
        }
    }

    /// The pod that calls.
    fn caller(&self, check: &Check) -> Option<control::Row> {
        let from = check.from.as_ref()?;
        let Ok(control::Response::Rows(rows)) = control::ask(&self.state, &control::Request::Ps) else {
            return None;
        };
        let is_it = |row: &control::Row| {
            let name = row.pod.split_once('/').map_or(row.pod.as_str(), |(_, name)| name);
            row.pod == *from || name == from || name.starts_with(&format!("{from}-"))
        };
        rows.into_iter().find(is_it)
    }

    fn problems(&self, check: &Check) -> anyhow::Result<Vec<String>> {
        let mark = format!("weft-test-{}-{}", std::process::id(), report::slug(&check.name));
        let mut arguments = Vec::new();
        let caller = self.caller(check);
        if let Some(from) = &check.from {
            // One pod of a workload, whose sidecar is asked afterwards.
            let pod = caller.as_ref().map_or(from, |row| &row.pod);
            arguments.extend(["--from".to_owned(), pod.clone()]);
        }
        let counted = caller.filter(|_| !check.expect.destinations.is_empty());
        let before = counted.as_ref().map(|row| self.destinations(row)).transpose()?;
        for n in 0..check.requests {
            if n > 0 {
                arguments.push("--next".to_owned());
            }
            arguments.extend(["--silent", "--include", "--max-time", "10", "--request"].map(str::to_owned));
            arguments.push(check.method.clone());
            for (name, value) in &check.headers {
                arguments.extend(["--header".to_owned(), format!("{name}: {value}")]);
            }
            arguments.extend(["--header".to_owned(), format!("x-request-id: {mark}-{n}")]);
            // Tells answers apart, whatever their bodies hold.
            arguments.extend(["--write-out".to_owned(), format!("\n{mark}\n"), check.url.clone()]);
        }
        let output = self.weft("curl", &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers: Vec<Answer> = text
            .split(&format!("\n{mark}\n"))
            .take(check.requests)
            .map(Answer::parse)
            .collect();
        anyhow::ensure!(
            answers.len() == check.requests,
            "{} answers came: {said}",
            answers.len()
        );
        let mut problems: Vec<String> = Vec::new();
        for answer in &answers {
            for problem in answer.problems(&check.expect) {
                let text = if answer.status.is_none() && !said.is_empty() {
                    format!("{problem} ({said})")
                } else {
                    problem
                };
                if !problems.contains(&text) {
                    problems.push(text);
                }
            }
        }
        if let (Some(row), Some(before)) = (&counted, before) {
            problems.extend(self.shares(check, row, &before)?);
        }
        Ok(problems)
    }

    /// Where the requests went, by the metrics of the caller's sidecar.
    fn shares(&self, check: &Check, row: &control::Row, before: &Counts) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + METRICS_LIMIT;
        loop {
            let mut counts = self.destinations(row)?;
            for (version, count) in &mut counts {
                *count = count.saturating_sub(before.get(version).copied().unwrap_or(0));
            }
            counts.retain(|_, count| *count > 0);
            let total: usize = counts.values().sum();
            // A request is counted at its very end, which may be behind the answer.
            if total >= check.requests {
                return Ok(answer::share_problems(&counts, &check.expect));
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the sidecar of {} counted {total} of {} requests",
                row.pod,
                check.requests
            );
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn destinations(&self, row: &control::Row) -> anyhow::Result<Counts> {
        anyhow::ensure!(
            row.sidecar,
            "destinations are told by a sidecar, which {} has not",
            row.pod
        );
        let url = format!("http://{}:15090/stats/prometheus", row.address);
        let arguments = ["--from", &row.pod, "--noproxy", "*", "--fail", &url].map(str::to_owned);
        let output = self.weft("curl", &arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "ask the sidecar of {}: {said}", row.pod);
        Ok(answer::destinations(&String::from_utf8_lossy(&output.stdout)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _ = self.child.wait();
    }
}

const MOST_REQUESTS: usize = 500;
const METRICS_LIMIT: Duration = Duration::from_secs(10);
