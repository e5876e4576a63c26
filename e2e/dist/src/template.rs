//! One text, two forms: a manifest of `config/source` becomes a plain manifest and a Helm template.
//!
//! The source is a manifest with the defaults in it, and marks in comments that name the values:
//!
//! | Mark | Plain | Template |
//! |---|---|---|
//! | `#@ if PATH` ... `#@ end` | the lines, if the default is true or not empty | `{{- if }}` |
//! | `#@ if-more-than-one PATH` | the lines, if the default is more than 1 | `{{- if gt }}` |
//! | `#@ if-is PATH VALUE` | the lines, if the default is this text | `{{- if eq }}` |
//! | `#@ base-only` | the file | nothing |
//! | `key: DEFAULT #= PATH` | the default, which must be the value's | the value |
//! | `key: "DEFAULT" #= quoted PATH` | the default, a number, as text | `quote` |
//! | `key: DEFAULT #= optional PATH` | nothing where the default is empty | `{{- with }}` |
//! | `key: A,B #= join PATH` | the default's elements with commas between them | `join` |
//! | `key: #= yaml PATH` | the default as YAML, nothing where it is empty | `toYaml` |
//! | `#= extend PATH` | more entries for the list or map in which it stands | `toYaml` |
//! | `key: \| #= text PATH` | the default as text | `toYaml` |
//! | `image: X:dev #= image X` | hub and tag in front and behind | the same |
//! | `image: X:dev #= proxy-image X` | the same, unless `proxy.image` is set | the same |
//! | `labels: #= labels NAME` | the standard labels | the same |
//!
//! In templates the control plane's namespace is the release's.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The form to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// For kustomize, with the default values.
    Plain,
    /// For Helm.
    Template,
}

/// Renders a source in a form; `None` when the file is not for it.
///
/// # Errors
/// Names the line, and what is wrong with its mark.
pub(crate) fn render(source: &str, values: &Value, form: Form) -> Result<Option<String>> {
    let mut out = String::new();
    // For each open `if`, whether its lines are written.
    let mut open: Vec<bool> = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let place = || format!("line {}: {line}", number + 1);
        if line == "#@ base-only" {
            if form == Form::Template {
                return Ok(None);
            }
            continue;
        }
        if let Some(mark) = line.strip_prefix("#@ ") {
            block(mark, values, form, &mut open, &mut out).with_context(place)?;
        } else if open.iter().all(|&written| written) {
            render_line(line, values, form, &mut out).with_context(place)?;
        }
    }
    ensure!(open.is_empty(), "a block has no `#@ end`");
    Ok(Some(out))
}

fn block(mark: &str, values: &Value, form: Form, open: &mut Vec<bool>, out: &mut String) -> Result<()> {
    let (condition, written) = match mark.split_once(' ') {
        None if mark == "end" => {
            ensure!(open.pop().is_some(), "`#@ end` without a block");
            if form == Form::Template {
                out.push_str("{{- end }}\n");
            }
            return Ok(());
        }
        Some(("if", path)) => (format!("if .Values.{path}"), !is_empty(default(values, path)?)),
        Some(("if-more-than-one", path)) => {
            let replicas = default(values, path)?.as_i64().context("is not a number")?;
            (format!("if gt (int .Values.{path}) 1"), replicas > 1)
        }
        Some(("if-is", rest)) => {
            let (path, value) = rest.split_once(' ').context("needs a path and a value")?;
            (
                format!("if eq .Values.{path} {value:?}"),
                default(values, path)? == value,
            )
        }
        _ => bail!("unknown mark"),
    };
    open.push(form == Form::Template || written);
    if form == Form::Template {
        let _ = writeln!(out, "{{{{- {condition} }}}}");
    }
    Ok(())
}

fn render_line(line: &str, values: &Value, form: Form, out: &mut String) -> Result<()> {
    let Some((before, mark)) = line.split_once("#= ") else {
        out.push_str(&match form {
            Form::Plain => line.to_owned(),
            Form::Template => line.replace(NAMESPACE, "{{ .Release.Namespace }}"),
        });
        out.push('\n');
        return Ok(());
    };
    let indent = before.len() - before.trim_start().len();
    let before = before.trim_end();
    let (word, path) = mark.trim().rsplit_once(' ').unwrap_or(("", mark.trim()));
    match word {
        "image" | "proxy-image" => {
            let key = before.split_once(':').context("needs a key")?.0;
            let plain = default_image(path, values)?;
            ensure!(before.ends_with(&format!(" {plain}")), "the default is {plain}");
            match form {
                Form::Plain => writeln!(out, "{before}")?,
                Form::Template if word == "image" => {
                    writeln!(
                        out,
                        "{key}: {{{{ include \"weft.image\" (dict \"name\" \"{path}\" \"root\" $) | quote }}}}"
                    )?;
                }
                Form::Template => {
                    let image = format!("include \"weft.image\" (dict \"name\" \"{path}\" \"root\" $)");
                    writeln!(out, "{key}: {{{{ .Values.proxy.image | default ({image}) | quote }}}}")?;
                }
            }
        }
        "labels" => {
            writeln!(out, "{before}")?;
            match form {
                Form::Plain => out.push_str(&indented(&labels(path, values)?, indent + 2)?),
                Form::Template => writeln!(
                    out,
                    "{{{{- include \"weft.labels\" (dict \"name\" \"{path}\" \"root\" $) | nindent {} }}}}",
                    indent + 2
                )?,
            }
        }
        "yaml" => {
            let default = default(values, path)?;
            match form {
                Form::Plain if is_empty(default) => {}
                Form::Plain => {
                    writeln!(out, "{before}")?;
                    out.push_str(&indented(default, indent + 2)?);
                }
                Form::Template => {
                    writeln!(out, "{{{{- with .Values.{path} }}}}\n{before}")?;
                    writeln!(out, "{{{{- toYaml . | nindent {} }}}}\n{{{{- end }}}}", indent + 2)?;
                }
            }
        }
        "extend" => match form {
            Form::Plain if is_empty(default(values, path)?) => {}
            Form::Plain => out.push_str(&indented(default(values, path)?, indent)?),
            Form::Template => {
                writeln!(
                    out,
                    "{{{{- with .Values.{path} }}}}\n{{{{- toYaml . | nindent {indent} }}}}\n{{{{- end }}}}"
                )?;
            }
        },
        "text" => {
            ensure!(before.ends_with(": |"), "needs `key: |`");
            writeln!(out, "{before}")?;
            match form {
                Form::Plain => out.push_str(&indented(default(values, path)?, indent + 2)?),
                Form::Template => {
                    let value = if path == "." {
                        ".Values".to_owned()
                    } else {
                        format!(".Values.{path}")
                    };
                    writeln!(out, "{{{{- toYaml {value} | nindent {} }}}}", indent + 2)?;
                }
            }
        }
        "optional" => {
            let (key, _) = before.split_once(':').context("needs a key")?;
            let default = default(values, path)?;
            same(before, default)?;
            match form {
                Form::Plain if is_empty(default) => {}
                Form::Plain => writeln!(out, "{before}")?,
                Form::Template => {
                    writeln!(
                        out,
                        "{{{{- with .Values.{path} }}}}\n{key}: {{{{ . | quote }}}}\n{{{{- end }}}}"
                    )?;
                }
            }
        }
        "join" => {
            let (key, _) = before.split_once(':').context("needs a key")?;
            let items = default(values, path)?.as_array().context("is not a list")?;
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            same(before, &Value::from(items.context("is not a list of texts")?.join(",")))?;
            match form {
                Form::Plain => writeln!(out, "{before}")?,
                Form::Template => writeln!(out, "{key}: {{{{ join \",\" .Values.{path} | quote }}}}")?,
            }
        }
        "quoted" => {
            let (key, _) = before.split_once(':').context("needs a key")?;
            same(before, &Value::from(default(values, path)?.to_string()))?;
            match form {
                Form::Plain => writeln!(out, "{before}")?,
                Form::Template => writeln!(out, "{key}: {{{{ .Values.{path} | quote }}}}")?,
            }
        }
        "" => {
            let (key, _) = before.split_once(':').context("needs a key")?;
            same(before, default(values, path)?)?;
            match form {
                Form::Plain => writeln!(out, "{before}")?,
                Form::Template => writeln!(out, "{key}: {{{{ .Values.{path} }}}}")?,
            }
        }
        _ => bail!("unknown mark {word:?}"),
    }
    Ok(())
}

/// Checks that the line's value is the default of `values.yaml`.
fn same(before: &str, default: &Value) -> Result<()> {
    let (_, written) = before.split_once(": ").context("needs a value")?;
    let written: Value = serde_yaml::from_str(written).context("is not YAML")?;
    ensure!(written == *default, "the default in values.yaml is {default}");
    Ok(())
}

/// The value at a path; `.` is all of them.
fn default<'a>(values: &'a Value, path: &str) -> Result<&'a Value> {
    if path == "." {
        return Ok(values);
    }
    let pointer = format!("/{}", path.replace('.', "/"));
    values
        .pointer(&pointer)
        .with_context(|| format!("values.yaml has no {path}"))
}

/// What Helm takes for false.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// The image with this name, by the default values.
pub(crate) fn default_image(name: &str, values: &Value) -> Result<String> {
    let (hub, tag) = (default(values, "global.hub")?, default(values, "global.tag")?);
    let hub = hub
        .as_str()
        .filter(|hub| !hub.is_empty())
        .map(|hub| format!("{hub}/"))
        .unwrap_or_default();
    Ok(format!(
        "{hub}{name}:{}",
        tag.as_str().context("global.tag is not text")?
    ))
}

/// The labels of every object.
pub(crate) fn labels(name: &str, values: &Value) -> Result<Value> {
    let tag = default(values, "global.tag")?.clone();
    Ok(serde_json::json!({
        "app.kubernetes.io/component": name,
        "app.kubernetes.io/instance": "weft",
        "app.kubernetes.io/managed-by": "kustomize",
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/part-of": "weft",
        "app.kubernetes.io/version": tag,
        "weft.dev/rev": "default",
    }))
}

/// YAML in block form, each line indented.
pub(crate) fn indented(value: &Value, indent: usize) -> Result<String> {
    let text = serde_yaml::to_string(&sorted(value)).context("write YAML")?;
    let pad = " ".repeat(indent);
    Ok(text.trim_end().lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{pad}{line}");
        out
    }))
}

/// With the keys of maps in order, as Helm's `toYaml` writes them.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            keys.into_iter()
                .map(|key| (key.clone(), sorted(&fields[key])))
                .collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

pub(crate) const NAMESPACE: &str = "weft-system";

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Value {
        serde_json::json!({
            "global": {"hub": "", "tag": "dev"},
            "a": {"replicas": 2, "none": [], "list": [{"b": 1, "a": "x"}], "empty": "", "word": "w", "off": false, "names": ["x", "y"]},
        })
    }

    fn both(source: &str) -> (String, String) {
        let form = |form| render(source, &values(), form).expect("renders").expect("is for it");
        (form(Form::Plain), form(Form::Template))
    }

    #[test]
    fn a_scalar_is_its_default_or_its_value() {
        let (plain, template) = both("replicas: 2 #= a.replicas\n");
        assert_eq!(plain, "replicas: 2\n");
        assert_eq!(template, "replicas: {{ .Values.a.replicas }}\n");
    }

    #[test]
    fn a_number_that_has_to_be_text_is_quoted() {
        let (plain, template) = both("value: \"2\" #= quoted a.replicas\n");
        assert_eq!(plain, "value: \"2\"\n");
        assert_eq!(template, "value: {{ .Values.a.replicas | quote }}\n");
        let error = render("value: 2 #= quoted a.replicas\n", &values(), Form::Plain).expect_err("a number");
        assert!(format!("{error:#}").contains("the default in values.yaml is"));
    }

    #[test]
    fn a_default_that_values_do_not_have_is_refused() {
        let error = render("replicas: 3 #= a.replicas\n", &values(), Form::Plain).expect_err("differs");
        assert!(format!("{error:#}").contains("the default in values.yaml is 2"));
        let error = render("replicas: 3 #= a.b\n", &values(), Form::Template).expect_err("absent");
        assert!(format!("{error:#}").contains("no a.b"));
    }

    #[test]
    fn what_is_empty_leaves_no_key() {
        let (plain, template) =
            both("  none: #= yaml a.none\n  e: \"\" #= optional a.empty\n  w: w #= optional a.word\n");
        assert_eq!(plain, "  w: w\n");
        assert!(template.contains("{{- with .Values.a.none }}\n  none:\n{{- toYaml . | nindent 4 }}\n{{- end }}\n"));
        assert!(template.contains("{{- with .Values.a.word }}\n  w: {{ . | quote }}\n{{- end }}\n"));
    }

    #[test]
    fn blocks_follow_the_defaults_when_plain() {
        let source = "#@ if a.off\nx: 1\n#@ end\n#@ if-more-than-one a.replicas\ny: 1\n#@ end\n";
        let (plain, template) = both(source);
        assert_eq!(plain, "y: 1\n");
        assert_eq!(
            template,
            "{{- if .Values.a.off }}\nx: 1\n{{- end }}\n{{- if gt (int .Values.a.replicas) 1 }}\ny: 1\n{{- end }}\n"
        );
        assert!(render("#@ if a.off\n", &values(), Form::Plain).is_err());
        let (plain, template) = both("#@ if-is a.word w\nx: 1\n#@ end\n#@ if-is a.word other\ny: 1\n#@ end\n");
        assert_eq!(plain, "x: 1\n");
        let other = "{{- if eq .Values.a.word \"other\" }}\ny: 1\n{{- end }}\n";
        assert_eq!(
            template,
            format!("{{{{- if eq .Values.a.word \"w\" }}}}\nx: 1\n{{{{- end }}}}\n{other}")
        );
    }

    #[test]
    fn a_list_is_joined() {
        let (plain, template) = both("v: x,y #= join a.names\n");
        assert_eq!(plain, "v: x,y\n");
        assert_eq!(template, "v: {{ join \",\" .Values.a.names | quote }}\n");
        assert!(render("v: x #= join a.names\n", &values(), Form::Plain).is_err());
    }

    // spec: OPS-008
    #[test]
    fn the_namespace_is_the_release_s() {
        assert_eq!(
            both("namespace: weft-system\n").1,
            "namespace: {{ .Release.Namespace }}\n"
        );
        assert!(
            render("#@ base-only\nx: 1\n", &values(), Form::Template)
                .expect("renders")
                .is_none()
        );
    }
}
