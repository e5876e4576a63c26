//! What scenarios leave to be filled in: addresses, numbers of letters, names of the run.

use std::sync::LazyLock;

use anyhow::{Result, bail};
use regex::{Captures, Regex};
use serde_json::Value;

use crate::stage::Places;

/// Fills in the addresses of a manifest, everywhere in it.
pub(crate) fn manifest(value: &mut Value, places: &Places) -> Result<()> {
    match value {
        Value::String(text) => *text = addresses(text, places)?,
        Value::Array(list) => {
            for item in list {
                manifest(item, places)?;
            }
        }
        Value::Object(map) => {
            for (_, item) in map.iter_mut() {
                manifest(item, places)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// `$(ip:namespace/app[/version])`, `$(svc:namespace/name)`, and the address that the external server was recorded at.
pub(crate) fn addresses(text: &str, places: &Places) -> Result<String> {
    let mut unknown = None;
    let out = PLACE.replace_all(text, |found: &Captures<'_>| {
        let address = match &found[1] {
            "ip" => places.pod_address(&found[2]),
            _ => places.service_address(&found[2]),
        };
        address.unwrap_or_else(|| {
            unknown = Some(found[0].to_owned());
            String::new()
        })
    });
    if let Some(unknown) = unknown {
        bail!("{unknown} is nothing of the stage");
    }
    if let Some(token) = TOKEN.find(&out) {
        bail!("{} needs tokens, which are not signed yet", token.as_str());
    }
    Ok(out
        .replace(RECORDED_PODS, places.range())
        .replace("$(host)", places.external())
        .replace(RECORDED_EXTERNAL, places.external()))
}

/// `{b*N}` is N times the letter, `{headers*N}` so many header lines, `{run}` differs from run to run.
pub(crate) fn repeated(text: &str, run: &str) -> String {
    let lines = HEADERS.replace_all(text, |found: &Captures<'_>| {
        let count: usize = found[1].parse().unwrap_or_default();
        (0..count).map(|n| format!("x-h{n}: 1\r\n")).collect::<String>()
    });
    let letters = LETTERS.replace_all(&lines, |found: &Captures<'_>| {
        found[1].repeat(found[2].parse().unwrap_or_default())
    });
    letters.replace("{run}", run)
}

static PLACE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\$\((ip|svc):([^)]*)\)").expect("a pattern"));
static TOKEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\$\{(token|jwks)\.[^}]*\}").expect("a pattern"));
static HEADERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{headers\*(\d{1,6})\}").expect("a pattern"));
static LETTERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\{([a-z])\*(\d{1,6})\}").expect("a pattern"));
/// Where the external server was when the scenarios were recorded.
const RECORDED_EXTERNAL: &str = "10.244.0.1";
/// Where its pods were.
const RECORDED_PODS: &str = "10.244.0.0/24";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_lines_are_repeated() {
        assert_eq!(repeated("a{b*3}c{run}", "7"), "abbbc7");
        assert_eq!(repeated("{headers*2}", ""), "x-h0: 1\r\nx-h1: 1\r\n");
        assert_eq!(repeated("{n}{*}", ""), "{n}{*}");
    }
}
