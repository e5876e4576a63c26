//! A directory of manifests: files in, objects with their place in the text out (LOC-001, LOC-031).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where an object stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// File, as it was named or found.
    pub file: PathBuf,
    /// First line of the document, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One object of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it stands.
    pub place: Place,
    /// The object.
    pub value: Value,
}

/// What is wrong with a file. Its earlier content stays in force (LOC-031).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and what would be accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// What was read of each file: its documents, or its first problem.
pub type Contents = BTreeMap<PathBuf, Result<Vec<Document>, Problem>>;

/// Reads files, and directories recursively: `*.yaml`, `*.yml`, `*.json`, without hidden and temporary ones.
///
/// # Errors
/// A path that is not there or cannot be listed; a file that does not parse is a [`Problem`] in the result.
pub fn read(paths: &[PathBuf]) -> Result<Contents, Problem> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, true, &mut files)?;
    }
    files.sort();
    files.dedup();
    Ok(files
        .into_iter()
        .map(|file| (file.clone(), parse_file(&file)))
        .collect())
}

/// The directories in which a change may concern the manifests.
#[must_use]
pub fn directories(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut left: Vec<PathBuf> = Vec::new();
    for path in paths {
        if path.is_dir() {
            left.push(path.clone());
        } else if let Some(parent) = path.parent() {
            out.push(if parent.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                parent.to_owned()
            });
        }
    }
    while let Some(dir) = left.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        left.extend(entries.map(|e| e.path()).filter(|p| p.is_dir() && !is_hidden(p)));
        out.push(dir);
    }
    out.sort();
    out.dedup();
    out
}

fn collect(path: &Path, named: bool, files: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let problem = |e: std::io::Error| Problem {
        place: Place {
            file: path.to_owned(),
            line: 1,
        },
        message: format!("cannot be read: {e}"),
    };
    let is_dir = fs::metadata(path).map_err(problem)?.is_dir();
    if !is_dir {
        if named || is_manifest(path) {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(problem)? {
        let entry = entry.map_err(problem)?.path();
        if is_hidden(&entry) {
            continue;
        }
        // A file that vanished since it was listed is simply not there.
        match collect(&entry, false, files) {
            Err(_) if !entry.exists() => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .and_then(|n| n.to_str())
        .is_none_or(|name| name.starts_with('.') && name != "." && name != "..")
}

/// Editors save through names that end in `~` or hold `#`; the settings of local mode are no manifest.
fn is_manifest(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        return false;
    };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let is_temporary = name.ends_with('~') || name.starts_with('#') || name.ends_with(".weft-test.yaml");
    matches!(extension, "yaml" | "yml" | "json") && !is_temporary && !NOT_MANIFESTS.contains(&name)
}

fn parse_file(file: &Path) -> Result<Vec<Document>, Problem> {
    let problem = |line, message| Problem {
        place: Place {
            file: file.to_owned(),
            line,
        },
        message,
    };
    let size = fs::metadata(file).map_or(0, |m| m.len());
    if size > MAX_FILE {
        return Err(problem(1, format!("has {size} bytes; a manifest may have {MAX_FILE}")));
    }
    let text = fs::read_to_string(file).map_err(|e| problem(1, format!("cannot be read: {e}")))?;
    parse(file, &text)
}

/// Parses the documents of a text.
///
/// # Errors
/// The first document that does not parse.
pub fn parse(file: &Path, text: &str) -> Result<Vec<Document>, Problem> {
    let mut documents = Vec::new();
    for (first, part) in split(text) {
        let place = |line| Place {
            file: file.to_owned(),
            line,
        };
        let value: Option<Value> = serde_yaml::from_str(&part).map_err(|e| {
            let line = e.location().and_then(|l| usize::try_from(l.line()).ok()).unwrap_or(1);
            Problem {
                place: place(first + line - 1),
                message: e.without_snippet().to_string(),
            }
        })?;
        // The line that people look for is that of the object, not of the comment above it.
        let blank = part
            .lines()
            .take_while(|l| l.trim().is_empty() || l.starts_with('#'))
            .count();
        match value {
            None | Some(Value::Null) => {}
            Some(value @ Value::Object(_)) => push(
                Document {
                    place: place(first + blank),
                    value,
                },
                &mut documents,
            )?,
            Some(other) => {
                let message =
                    format!("is no Kubernetes object: expected a mapping with apiVersion and kind, found {other}");
                return Err(Problem {
                    place: place(first + blank),
                    message,
                });
            }
        }
    }
    Ok(documents)
}

/// Takes lists apart.
fn push(document: Document, out: &mut Vec<Document>) -> Result<(), Problem> {
    let place = document.place.clone();
    let missing = |field: &str| Problem {
        place: place.clone(),
        message: format!("{field} is required: a Kubernetes object has apiVersion, kind and metadata.name"),
    };
    let kind = document
        .value
        .get("kind")
        .and_then(Value::as_str)
        .ok_or_else(|| missing("kind"))?;
    if kind == "List" {
        let items = document
            .value
            .get("items")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for value in items {
            push(
                Document {
                    place: place.clone(),
                    value,
                },
                out,
            )?;
        }
        return Ok(());
    }
    document
        .value
        .get("apiVersion")
        .and_then(Value::as_str)
        .ok_or_else(|| missing("apiVersion"))?;
    document
        .value
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .ok_or_else(|| missing("metadata.name"))?;
    out.push(document);
    Ok(())
}

/// Splits a text at its document markers; each part with the number of its first line.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(1, String::new())];
    for (n, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            parts.push((n + 2, String::new()));
            continue;
        }
        let (_, part) = parts.last_mut().expect("begins with one part");
        part.push_str(line);
        part.push('\n');
    }
    parts
}

const NOT_MANIFESTS: &[&str] = &["weft-local.yaml", "kustomization.yaml", "kustomization.yml"];
const MAX_FILE: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "# comment\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: b}}\n";

    // spec: LOC-001
    #[test]
    fn documents_know_their_line_and_lists_are_taken_apart() {
        let documents = parse(Path::new("x.yaml"), TWO).expect("parse");
        let found: Vec<_> = documents
            .iter()
            .map(|d| (d.place.line, d.value["kind"].as_str()))
            .collect();
        assert_eq!(found, [(2, Some("Namespace")), (7, Some("Service"))]);
    }

    // spec: LOC-031
    #[test]
    fn a_broken_document_is_a_problem_with_its_line() {
        let problem = parse(
            Path::new("x.yaml"),
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nb: [1\n",
        )
        .expect_err("broken");
        assert!(problem.place.line >= 5, "{problem}");
        let problem = parse(Path::new("x.yaml"), "apiVersion: v1\nmetadata: {name: a}\n").expect_err("no kind");
        assert!(problem.message.contains("kind is required"), "{problem}");
        let problem = parse(Path::new("x.yaml"), "just text\n").expect_err("no mapping");
        assert!(problem.message.contains("expected a mapping"), "{problem}");
    }

    // spec: LOC-001, LOC-031
    #[test]
    fn directories_are_read_without_hidden_and_temporary_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("inside")).expect("directory");
            fs::write(path, "{apiVersion: v1, kind: Namespace, metadata: {name: a}}").expect("file");
        };
        for name in [
            "a.yaml",
            "sub/b.yml",
            "sub/c.json",
            ".hidden.yaml",
            "a.yaml~",
            "#a.yaml",
            "weft-local.yaml",
            "x.txt",
        ] {
            write(name);
        }
        let contents = read(&[dir.path().to_owned()]).expect("read");
        let names: Vec<_> = contents
            .keys()
            .map(|p| p.strip_prefix(dir.path()).expect("inside").to_owned())
            .collect();
        assert_eq!(
            names,
            [PathBuf::from("a.yaml"), "sub/b.yml".into(), "sub/c.json".into()]
        );
        assert!(read(&[dir.path().join("absent")]).is_err());
        assert_eq!(directories(&[dir.path().to_owned()]).len(), 2);
    }
}
