//! Reads annotations by key and alias, and collects what is wrong with them.

use std::collections::BTreeMap;
use std::fmt;

/// One annotation that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The key as the pod has it.
    pub key: String,
    /// The value, and what would be accepted.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "annotation {}: {}", self.key, self.problem)
    }
}

/// A Weft key wins over the Istio keys of the same row; of those the first wins.
pub(super) struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    violations: Vec<Violation>,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self {
            annotations,
            violations: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// All violations in one answer, sorted by key (INJ-172).
    pub(super) fn finish(mut self) -> Result<(), Vec<Violation>> {
        self.violations.sort();
        self.violations.dedup();
        if self.violations.is_empty() {
            Ok(())
        } else {
            Err(self.violations)
        }
    }

    /// The key that counts, if the pod has any of the row.
    pub(super) fn key(&self, weft: &str, istio: &[&str]) -> Option<String> {
        self.find(weft, istio).map(|(key, _)| key.to_owned())
    }

    pub(super) fn violation(&mut self, key: &str, problem: &str) {
        self.violations.push(Violation {
            key: key.to_owned(),
            problem: problem.to_owned(),
        });
    }

    /// A value of one line: no control character is in it (INJ-127).
    pub(super) fn parsed<T>(
        &mut self,
        weft: &str,
        istio: &[&str],
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.read(weft, istio, |_| false, parse)
    }

    /// A value that is a document (YAML or JSON), where line ends and tabs are layout.
    pub(super) fn text<T>(
        &mut self,
        weft: &str,
        istio: &[&str],
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.read(weft, istio, |c| matches!(c, '\n' | '\r' | '\t'), parse)
    }

    /// `true` or `false`; anything else is a warning and counts as unset (INJ-166).
    pub(super) fn flag(&mut self, weft: &str, istio: &[&str]) -> Option<bool> {
        let (key, value) = self.find(weft, istio)?;
        match value {
            "true" => Some(true),
            "false" => Some(false),
            _ if value.contains(char::is_control) => {
                self.violation(key, CONTROL);
                None
            }
            _ => {
                self.warnings
                    .push(format!("annotation {key}: {value:?} ignored; must be true or false"));
                None
            }
        }
    }

    fn find(&self, weft: &str, istio: &[&str]) -> Option<(&'a str, &'a str)> {
        std::iter::once(&weft)
            .chain(istio)
            .find_map(|key| self.annotations.get_key_value(*key))
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn read<T>(
        &mut self,
        weft: &str,
        istio: &[&str],
        layout: impl Fn(char) -> bool,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (key, value) = self.find(weft, istio)?;
        if value.contains(|c: char| c.is_control() && !layout(c)) {
            self.violation(key, CONTROL);
            return None;
        }
        match parse(value) {
            Ok(parsed) => Some(parsed),
            Err(problem) => {
                self.violation(key, &problem);
                None
            }
        }
    }
}

const CONTROL: &str = "contains a control character; must be plain text";
