//! The outcome of checks, for people and for pipelines.

use std::fmt::{self, Write};
use std::time::Duration;

/// What became of a check.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) revision: Option<String>,
    /// None: it passed.
    pub(super) problems: Vec<String>,
    pub(super) elapsed: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.problems.is_empty() { "ok  " } else { "FAIL" };
        write!(f, "{word} {}", self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, " [{revision}]")?;
        }
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n     {problem}"))
    }
}

/// JUnit XML.
pub(super) fn junit(outcomes: &[Outcome]) -> String {
    let failed = outcomes.iter().filter(|o| !o.problems.is_empty()).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    // Writing to text cannot fail.
    let _ = writeln!(
        out,
        "<testsuite name=\"weft local test\" tests=\"{}\" failures=\"{failed}\">",
        outcomes.len()
    );
    for outcome in outcomes {
        let (name, seconds) = (escape(&outcome.name), outcome.elapsed.as_secs_f64());
        let _ = write!(out, "  <testcase name=\"{name}\" time=\"{seconds:.3}\">");
        if !outcome.problems.is_empty() {
            let text = escape(&outcome.problems.join("; "));
            let _ = write!(out, "<failure message=\"{text}\"/>");
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

/// A name as a part of a request id.
pub(super) fn slug(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && !matches!(c, '\t' | '\n') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: LOC-043
    #[test]
    fn a_failure_is_told_in_xml_whatever_it_holds() {
        let outcome = |problems: &[&str]| Outcome {
            name: "a <b>".into(),
            revision: Some("0123".into()),
            problems: problems.iter().map(|p| (*p).to_owned()).collect(),
            elapsed: Duration::from_millis(1500),
        };
        let text = junit(&[outcome(&[]), outcome(&["expected \"x\"\u{1}"])]);
        assert!(
            text.contains("tests=\"2\" failures=\"1\"") && text.contains("time=\"1.500\""),
            "{text}"
        );
        assert!(
            text.contains("a &lt;b&gt;") && text.contains("&quot;x&quot;\u{fffd}"),
            "{text}"
        );
        assert_eq!(outcome(&[]).to_string(), "ok   a <b> [0123]");
    }
}
