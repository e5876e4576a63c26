//! The verdict of a run: a line for each difference, a tally per area, JUnit XML.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::judge::Difference;
use crate::lists::Lists;
use crate::run::Played;

/// What became of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Agrees,
    /// All its differences are meant.
    Deliberate,
    Differs,
    /// It differs, and is listed so.
    Gap,
    /// The stage lacks what it needs.
    NotRun(String),
}

/// A scenario with its verdict.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) area: String,
    pub(crate) scenario: String,
    pub(crate) state: State,
    /// What is neither as observed nor meant.
    pub(crate) differences: Vec<Difference>,
    pub(crate) seconds: f64,
}

impl Judged {
    /// A line for the list of gaps.
    pub(crate) fn reason(&self) -> String {
        if let State::NotRun(why) = &self.state {
            return why.clone();
        }
        let Some(first) = self.differences.first() else {
            return String::new();
        };
        let text = format!(
            "#{} {}: {} instead of {}",
            first.request, first.field, first.got, first.expected
        );
        text.chars().take(160).collect()
    }
}

/// All scenarios of a run, and what is wrong with the lists.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) judged: Vec<Judged>,
    gaps: BTreeMap<String, String>,
    stale: Vec<String>,
}

impl Verdict {
    /// Judges what was played by the lists.
    pub(crate) fn of(played: &[Played], lists: &Lists) -> Self {
        let mut used = vec![false; lists.deliberate.len()];
        let mut judged = Vec::new();
        let mut stale = Vec::new();
        for one in played {
            let mut differences = Vec::new();
            let mut is_deliberate = false;
            for difference in &one.differences {
                let covering = lists
                    .deliberate
                    .iter()
                    .position(|d| d.covers(&one.scenario, difference));
                match covering {
                    Some(at) => (used[at], is_deliberate) = (true, true),
                    None => differences.push(difference.clone()),
                }
            }
            let listed = lists.gaps.get(&one.scenario);
            let is_listed = listed.is_some();
            let is_chance = listed.is_some_and(|reason| reason.starts_with("sometimes"));
            let state = match (&one.not_run, differences.is_empty()) {
                (Some(why), _) => State::NotRun(why.clone()),
                (None, true) if is_deliberate => State::Deliberate,
                (None, true) => State::Agrees,
                (None, false) if is_listed => State::Gap,
                (None, false) => State::Differs,
            };
            if is_listed && !is_chance && matches!(state, State::Agrees | State::Deliberate) {
                stale.push(format!("{}: agrees; take it from the list of gaps", one.scenario));
            }
            judged.push(Judged {
                area: one.area.clone(),
                scenario: one.scenario.clone(),
                state,
                differences,
                seconds: one.seconds,
            });
        }
        for (deliberate, used) in lists.deliberate.iter().zip(used) {
            let ran = played
                .iter()
                .any(|p| p.scenario == deliberate.scenario && p.not_run.is_none());
            if ran && !used && !deliberate.sometimes {
                stale.push(format!(
                    "{}: listed as deliberate ({}: {}), but does not differ so",
                    deliberate.scenario, deliberate.statement, deliberate.why
                ));
            }
        }
        Self {
            judged,
            gaps: lists.gaps.clone(),
            stale,
        }
    }

    /// Whether every scenario that must agree does, and the lists are right.
    pub(crate) fn is_good(&self) -> bool {
        self.stale.is_empty() && !self.judged.iter().any(|j| is_failure(j, &self.gaps))
    }

    /// Prints differences and tally.
    pub(crate) fn print(&self) {
        for judged in &self.judged {
            let mark = if judged.state == State::Gap { " (known)" } else { "" };
            for difference in &judged.differences {
                println!("{}{mark} {}", judged.scenario, line(difference));
            }
            if let State::NotRun(why) = &judged.state {
                println!("{} not run: {why}", judged.scenario);
            }
        }
        for stale in &self.stale {
            println!("{stale}");
        }
        println!(
            "{:18} {:>6} {:>10} {:>6} {:>7} {:>7}",
            "area", "agree", "deliberate", "known", "differ", "not run"
        );
        let mut areas: Vec<&str> = self.judged.iter().map(|j| j.area.as_str()).collect();
        areas.dedup();
        let row = |name: &str, chosen: &dyn Fn(&Judged) -> bool| {
            let count = |state: fn(&State) -> bool| self.judged.iter().filter(|j| chosen(j) && state(&j.state)).count();
            println!(
                "{name:18} {:>6} {:>10} {:>6} {:>7} {:>7}",
                count(|s| *s == State::Agrees),
                count(|s| *s == State::Deliberate),
                count(|s| *s == State::Gap),
                count(|s| *s == State::Differs),
                count(|s| matches!(s, State::NotRun(_))),
            );
        };
        for area in areas {
            row(area, &|j| j.area == area);
        }
        row("all", &|_| true);
    }

    /// A suite for each area, a case for each scenario.
    pub(crate) fn junit(&self) -> String {
        let mut areas: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
        for judged in &self.judged {
            areas.entry(&judged.area).or_default().push(judged);
        }
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"conformance\">\n");
        for (area, all) in areas {
            let failures = all.iter().filter(|j| is_failure(j, &self.gaps)).count();
            let skipped = all.iter().filter(|j| is_skipped(j, &self.gaps)).count();
            let seconds: f64 = all.iter().map(|j| j.seconds).sum();
            let _ = writeln!(
                out,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" time=\"{seconds:.3}\">",
                escaped(area),
                all.len()
            );
            for judged in all {
                let _ = write!(
                    out,
                    "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
                    escaped(area),
                    escaped(&judged.scenario),
                    judged.seconds
                );
                let text = judged.differences.iter().map(line).collect::<Vec<_>>().join("\n");
                let reason = escaped(&judged.reason());
                let _ = if is_failure(judged, &self.gaps) {
                    writeln!(
                        out,
                        "><failure message=\"{reason}\">{}</failure></testcase>",
                        escaped(&text)
                    )
                } else if is_skipped(judged, &self.gaps) {
                    writeln!(out, "><skipped message=\"{reason}\"/></testcase>")
                } else {
                    writeln!(out, "/>")
                };
            }
            out.push_str("  </testsuite>\n");
        }
        out.push_str("</testsuites>\n");
        out
    }
}

fn is_failure(judged: &Judged, gaps: &BTreeMap<String, String>) -> bool {
    let is_open = match &judged.state {
        State::Differs => true,
        State::NotRun(_) => !gaps.contains_key(&judged.scenario),
        State::Agrees | State::Deliberate | State::Gap => false,
    };
    is_open && !REPORTED.contains(&judged.area.as_str())
}

fn is_skipped(judged: &Judged, gaps: &BTreeMap<String, String>) -> bool {
    !is_failure(judged, gaps) && !matches!(judged.state, State::Agrees | State::Deliberate)
}

/// Areas that are reported without failing.
pub(crate) const REPORTED: &[&str] = &["authn", "authorization", "ext-authz", "gateway", "service-entry"];

fn line(difference: &Difference) -> String {
    let Difference {
        request,
        field,
        expected,
        got,
    } = difference;
    format!("#{request} {field}: expected {expected}, got {got}")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(character),
            c if u32::from(c) < 32 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
