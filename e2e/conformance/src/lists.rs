//! What is known: differences that are meant, and scenarios that do not agree yet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::judge::Difference;
use crate::report::{Judged, REPORTED, State, Verdict};

/// A difference that is meant.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deliberate {
    pub(crate) scenario: String,
    /// Numbers of the requests; all of them when there is none.
    #[serde(default)]
    pub(crate) requests: Vec<usize>,
    /// Beginnings of the fields' names; all of them when there is none.
    #[serde(default)]
    pub(crate) fields: Vec<String>,
    /// Statement that says so.
    pub(crate) statement: String,
    pub(crate) why: String,
    /// It depends on the moment: which connections are open, for example.
    #[serde(default)]
    pub(crate) sometimes: bool,
}

impl Deliberate {
    /// Whether it is about a difference.
    pub(crate) fn covers(&self, scenario: &str, difference: &Difference) -> bool {
        let names_field = |field: &String| difference.field.starts_with(field.as_str());
        self.scenario == scenario
            && (self.requests.is_empty() || self.requests.contains(&difference.request))
            && (self.fields.is_empty() || self.fields.iter().any(names_field))
    }
}

/// Both lists.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) deliberate: Vec<Deliberate>,
    /// Reason by scenario.
    pub(crate) gaps: BTreeMap<String, String>,
}

impl Lists {
    pub(crate) fn read(deliberate: &Path, gaps: &Path) -> Result<Self> {
        Ok(Self {
            deliberate: read(deliberate)?,
            gaps: read(gaps)?,
        })
    }

    /// Writes the gaps of a run. Those of scenarios that did not run stay; reasons that people wrote stay.
    pub(crate) fn write_gaps(&self, path: &Path, verdict: &Verdict) -> Result<()> {
        let mut gaps = self.gaps.clone();
        let must_agree = |judged: &&Judged| !REPORTED.contains(&judged.area.as_str());
        for judged in verdict.judged.iter().filter(must_agree) {
            match &judged.state {
                State::Agrees | State::Deliberate => drop(gaps.remove(&judged.scenario)),
                State::Differs | State::Gap | State::NotRun(_) => {
                    gaps.entry(judged.scenario.clone()).or_insert_with(|| judged.reason());
                }
            }
        }
        let mut text = String::from(HEAD);
        for (scenario, reason) in &gaps {
            let _ = writeln!(text, "{scenario}: {}", serde_json::to_string(reason)?);
        }
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

fn read<T: serde::de::DeserializeOwned + Default>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let value: Option<T> =
        serde_yaml::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.without_snippet()))?;
    Ok(value.unwrap_or_default())
}

const HEAD: &str = "# Scenarios that do not agree yet, each with why. One that agrees must leave the list.\n";
