//! Validation of one object: every problem at once, each with the field, what is wrong and what would be accepted.

use std::fmt;

pub mod check;
pub mod host;
pub mod operators;
pub mod re2;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path, for example `spec.http[0].route[1].weight`.
    pub path: String,
    /// Value; empty where it is missing.
    pub value: String,
    /// What is wrong and what would be accepted.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            return write!(f, "{}: {}", self.path, self.message);
        }
        write!(f, "{}: {:?}: {}", self.path, self.value, self.message)
    }
}

/// Outcome of a validation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Why the object is refused; empty when it is not.
    pub errors: Vec<FieldError>,
    /// What is accepted and probably not meant.
    pub warnings: Vec<String>,
}

impl Report {
    /// Adds an error. Long values are cut.
    pub fn error(&mut self, path: &str, value: &str, message: &str) {
        let value: String = value.chars().take(MAX_VALUE).collect();
        self.errors.push(FieldError {
            path: path.to_owned(),
            value,
            message: message.to_owned(),
        });
    }

    /// Adds a warning.
    pub fn warn(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }

    /// All errors in one line, as admission prints them.
    #[must_use]
    pub fn message(&self) -> String {
        self.errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// An object that can be validated by itself.
pub trait Validate {
    /// Names all problems.
    fn validate(&self) -> Report;
}

const MAX_VALUE: usize = 120;
