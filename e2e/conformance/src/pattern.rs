//! Values that differ from run to run, as the recordings write them: `<uuid>`, `<ip of client>` and the like.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Whether a value is what was recorded. `address` gives the address that a word like `client` stands for.
pub(crate) fn matches(recorded: &str, value: &str, address: &dyn Fn(&str) -> Option<String>) -> bool {
    if !recorded.contains('<') && !recorded.contains(RUN) {
        return recorded == value;
    }
    let recorded = &recorded.replace(RUN, "<run>");
    let mut pattern = String::from("^(?s:");
    let mut at = 0;
    for found in WORD.captures_iter(recorded) {
        let whole = found.get(0).expect("the match itself");
        pattern.push_str(&regex::escape(&recorded[at..whole.start()]));
        pattern.push_str(&of_word(&found, address));
        at = whole.end();
    }
    pattern.push_str(&regex::escape(&recorded[at..]));
    pattern.push_str(")$");
    regex::RegexBuilder::new(&pattern)
        .size_limit(1 << 26)
        .build()
        .is_ok_and(|pattern| pattern.is_match(value))
}

fn of_word(found: &Captures<'_>, address: &dyn Fn(&str) -> Option<String>) -> String {
    let word = &found[1];
    if let Some(standard) = STANDARD.captures(word) {
        let identity = |id: &str| {
            let (namespace, account) = id.split_once('/').unwrap_or((id, ""));
            regex::escape(&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"))
        };
        return format!(
            "By={};Hash=[0-9a-f]{{64}};Subject=\"\";URI={}",
            identity(&standard[1]),
            identity(&standard[2])
        );
    }
    if let Some(long) = LONG.captures(word) {
        // Of a certificate that was made for the recording.
        if long[2].starts_with("Hash=") {
            return "Hash=[0-9a-f]{64};Cert=\"-----BEGIN%20CERTIFICATE-----.*".to_owned();
        }
        // The lengths of answers that hold names of pods differ; the beginning and the size in thousands do not.
        return format!("{}.*", regex::escape(&long[2]));
    }
    let known = match word {
        "uuid" => Some("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}".to_owned()),
        "run" => Some("[0-9a-f]+".to_owned()),
        "hash" => Some("[0-9a-f]{64}".to_owned()),
        "16 hex digits" => Some("[0-9a-f]{16}".to_owned()),
        "ms" => Some("[0-9]+".to_owned()),
        "host" => address("external").map(|a| regex::escape(&a)),
        "service ip" => Some("[0-9.]+".to_owned()),
        _ => word.strip_prefix("ip of ").and_then(address).map(|a| regex::escape(&a)),
    };
    known.unwrap_or_else(|| regex::escape(&found[0]))
}

/// What differs from run to run in a request.
const RUN: &str = "{run}";
static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new("<([^<>]*)>").expect("a pattern"));
static STANDARD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^standard: by (\S+), from (\S+)$").expect("a pattern"));
static LONG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(\d+) characters, starts with (.*)$").expect("a pattern"));

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(recorded: &str, value: &str) -> bool {
        matches(recorded, value, &|word| {
            (word == "client").then(|| "10.0.0.7".to_owned())
        })
    }

    #[test]
    fn words_stand_for_what_differs() {
        assert!(fits("plain", "plain") && !fits("plain", "plain "));
        assert!(fits("<ip of client>, x", "10.0.0.7, x") && !fits("<ip of client>", "10.0.0.8"));
        assert!(fits("<uuid>", "01234567-89ab-cdef-0123-456789abcdef") && !fits("<uuid>", "x"));
        assert!(fits("a{run}", "a18ec") && !fits("a{run}", "a"));
        assert!(fits("<unknown>", "<unknown>"));
        let element = format!(
            "By=spiffe://cluster.local/ns/app/sa/echo;Hash={};Subject=\"\";URI=spiffe://cluster.local/ns/app/sa/client",
            "0f".repeat(32)
        );
        assert!(fits("<standard: by app/echo, from app/client>", &element));
        assert!(!fits("<standard: by app/echo, from app/other>", &element));
        assert!(fits("<6000 characters, starts with xx>", &"x".repeat(6000)));
    }
}
