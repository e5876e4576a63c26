//! Whether a mesh resource may be stored (OPS-034). The rules themselves are the API types' own.

use serde_json::Value;
use weft_crds::{MeshConfig, ParseError, Report, Validate, parse_object};

use crate::pod::{at, str_at};

/// What is to be said about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not a kind of the mesh.
    Unknown,
    /// It may be stored.
    Valid {
        /// What its author should know.
        warnings: Vec<String>,
    },
    /// It may not.
    Invalid {
        /// One line per problem: the field's path, the value, what would be accepted.
        errors: Vec<String>,
        /// What its author should know besides.
        warnings: Vec<String>,
    },
}

/// Judges one object by itself: the kinds of the mesh, and the ConfigMap that holds the mesh config (OPS-023).
#[must_use]
pub fn validate(object: &Value) -> Verdict {
    if str_at(object, "kind") == Some("ConfigMap") {
        return mesh_config(object);
    }
    match parse_object(object, true) {
        Ok(parsed) => verdict(parsed.validate(), Vec::new()),
        Err(ParseError::OtherKind { .. }) => Verdict::Unknown,
        // The API server drops or refuses such fields by the client's wish (SM-125); none of them has an effect.
        Err(unknown @ ParseError::Unknown { .. }) => match parse_object(object, false) {
            Ok(parsed) => verdict(parsed.validate(), vec![unknown.to_string()]),
            Err(error) => invalid(&error, vec![unknown.to_string()]),
        },
        Err(error @ (ParseError::Version { .. } | ParseError::Field { .. })) => invalid(&error, Vec::new()),
    }
}

/// A ConfigMap of another name, or without the key, is somebody else's.
fn mesh_config(object: &Value) -> Verdict {
    let named = str_at(object, "metadata.name").is_some_and(|name| name == "weft" || name.starts_with("weft-"));
    let Some(mesh) = at(object, "data.mesh").and_then(Value::as_str).filter(|_| named) else {
        return Verdict::Unknown;
    };
    match MeshConfig::parse(mesh) {
        Ok(parsed) => {
            let mut report = parsed.validate();
            for error in &mut report.errors {
                error.path = format!("data.mesh: {}", error.path);
            }
            verdict(report, Vec::new())
        }
        Err(problem) => Verdict::Invalid {
            errors: vec![format!("data.mesh: {problem}")],
            warnings: Vec::new(),
        },
    }
}

fn verdict(report: Report, mut warnings: Vec<String>) -> Verdict {
    let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
    warnings.extend(report.warnings);
    if errors.is_empty() {
        Verdict::Valid { warnings }
    } else {
        Verdict::Invalid { errors, warnings }
    }
}

fn invalid(error: &ParseError, warnings: Vec<String>) -> Verdict {
    Verdict::Invalid {
        errors: vec![error.to_string()],
        warnings,
    }
}
