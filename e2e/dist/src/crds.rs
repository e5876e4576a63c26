//! The kinds' definitions: for kustomize as they are, for Helm as templates that outlive the release.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Name and text of each definition below `crds/yaml`.
pub(crate) fn read(root: &Path) -> Result<Vec<(String, String)>> {
    let folder = root.join("crds/yaml");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.context("read a folder's entry")?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        if !name.ends_with(".yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        found.push((name, text));
    }
    found.sort();
    ensure!(!found.is_empty(), "{} holds no definitions", folder.display());
    Ok(found)
}

/// A definition as a Helm template: upgraded with the chart, kept when the release goes (OPS-030).
pub(crate) fn template(text: &str) -> Result<String> {
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("  name: "))
        .context("a definition without metadata.name at the usual place")?;
    let mut out = format!("{{{{- if not (has \"{name}\" .Values.crds.exclude) }}}}\n");
    let mut kept = false;
    for line in text.lines() {
        writeln!(out, "{}", line.replace("{{", "{{ \"{{\" }}"))?;
        if line == "metadata:" && !kept {
            out.push_str("  annotations:\n    helm.sh/resource-policy: keep\n");
            kept = true;
        }
    }
    ensure!(kept, "definition {name} has no metadata");
    out.push_str("{{- end }}\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: OPS-030
    #[test]
    fn templates_are_kept_and_can_be_left_out() {
        let out = template("kind: X\nmetadata:\n  name: a.b\nspec:\n  d: '{{x}}'\n").expect("renders");
        assert!(
            out.starts_with("{{- if not (has \"a.b\" .Values.crds.exclude) }}\nkind: X\nmetadata:\n  annotations:\n")
        );
        assert!(out.contains("helm.sh/resource-policy: keep\n  name: a.b\n"));
        assert!(out.contains("d: '{{ \"{{\" }}x}}'"));
    }
}
