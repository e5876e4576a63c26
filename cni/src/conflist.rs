//! The runtime's network configurations: which one is in force, and how the plugin gets into it and out of it (NET-132).

use serde_json::Value;

use crate::network::NAME;
use crate::plugin::VERSIONS;

/// Why a network configuration cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// It is no JSON; perhaps somebody is writing it right now.
    #[error("is not JSON: {0}")]
    Unreadable(String),
    /// It holds no list of plugins.
    #[error("has no list `plugins`, behind which the plugin could be chained")]
    NoList,
    /// With an entry in it the runtime would call the plugin in a version that it refuses, for each pod of the node.
    #[error("cniVersion {0}; must be one of {list}, else the plugin would let no pod begin", list = VERSIONS.join(", "))]
    Version(Value),
}

/// The file that the runtime takes: the first by name of those that hold network configurations.
#[must_use]
pub fn first<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().filter(|name| is_configuration(name)).min()
}

/// Whether the runtime would read a file of this name.
#[must_use]
pub fn is_configuration(name: &str) -> bool {
    [".conflist", ".conf", ".json"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// The configuration with the plugin's entry at its end, or without one; `None` when that is what it is already.
///
/// # Errors
/// [`ConflistError`].
pub fn edit(text: &str, entry: Option<&Value>) -> Result<Option<String>, ConflistError> {
    let mut object: Value = serde_json::from_str(text).map_err(|e| ConflistError::Unreadable(e.to_string()))?;
    let version = object.get("cniVersion").cloned().unwrap_or_default();
    let Some(plugins) = object.get_mut("plugins").and_then(Value::as_array_mut) else {
        // What is no list has no entry either.
        return if entry.is_some() {
            Err(ConflistError::NoList)
        } else {
            Ok(None)
        };
    };
    let before = plugins.clone();
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(NAME));
    if plugins.is_empty() && entry.is_some() {
        return Err(ConflistError::NoList);
    }
    if entry.is_some() && !version.as_str().is_some_and(|version| VERSIONS.contains(&version)) {
        return Err(ConflistError::Version(version));
    }
    plugins.extend(entry.cloned());
    if *plugins == before {
        return Ok(None);
    }
    let text = serde_json::to_string_pretty(&object).expect("what was read as JSON can be written as JSON");
    Ok(Some(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CONFLIST: &str = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","zeta":1,"alpha":[2]}]}"#;

    fn entry() -> Value {
        json!({"type": NAME, "kubeconfig": "/etc/cni/net.d/weft-cni.kubeconfig", "namespace": "weft-system"})
    }

    fn types(text: &str) -> Vec<String> {
        let object: Value = serde_json::from_str(text).expect("is JSON");
        let plugins = object["plugins"].as_array().expect("a list");
        plugins
            .iter()
            .map(|plugin| plugin["type"].as_str().expect("text").to_owned())
            .collect()
    }

    // spec: NET-132
    #[test]
    fn the_entry_goes_to_the_end_once_and_everything_else_stays() {
        let edited = edit(CONFLIST, Some(&entry())).expect("a list").expect("changed");
        assert_eq!(types(&edited), ["bridge", NAME]);
        let mut expected: Value = serde_json::from_str(CONFLIST).expect("is JSON");
        expected["plugins"].as_array_mut().expect("a list").push(entry());
        assert_eq!(serde_json::from_str::<Value>(&edited).expect("is JSON"), expected);
        // Whoever reads it finds the fields in the order in which they were.
        assert!(edited.find("zeta").expect("kept") < edited.find("alpha").expect("kept"));
        assert_eq!(edit(&edited, Some(&entry())), Ok(None));
    }

    // spec: NET-132
    #[test]
    fn an_entry_that_is_outdated_or_in_front_of_another_is_replaced() {
        let mut other = entry();
        other["namespace"] = json!("elsewhere");
        let outdated = edit(CONFLIST, Some(&other)).expect("a list").expect("changed");
        let edited = edit(&outdated, Some(&entry())).expect("a list").expect("changed");
        assert!(types(&edited) == ["bridge", NAME] && !edited.contains("elsewhere"));
        let appended = CONFLIST.replace("]}]", &format!("]}},{},{{\"type\":\"portmap\"}}]", entry()));
        let edited = edit(&appended, Some(&entry())).expect("a list").expect("changed");
        assert_eq!(types(&edited), ["bridge", "portmap", NAME]);
    }

    // spec: NET-132
    #[test]
    fn taking_the_entry_out_gives_the_configuration_back() {
        let edited = edit(CONFLIST, Some(&entry())).expect("a list").expect("changed");
        let back = edit(&edited, None).expect("a list").expect("changed");
        assert_eq!(
            serde_json::from_str::<Value>(&back).expect("is JSON"),
            serde_json::from_str::<Value>(CONFLIST).expect("is JSON")
        );
        assert_eq!(edit(&back, None), Ok(None));
    }

    #[test]
    fn what_is_no_list_of_plugins_is_refused() {
        for text in [r#"{"type":"bridge"}"#, r#"{"plugins":[]}"#, r#"{"plugins":{}}"#, "[]"] {
            assert_eq!(edit(text, Some(&entry())), Err(ConflistError::NoList), "{text}");
        }
        assert!(matches!(edit("{", Some(&entry())), Err(ConflistError::Unreadable(_))));
        assert_eq!(edit(r#"{"type":"bridge"}"#, None), Ok(None));
    }

    // spec: NET-132
    #[test]
    fn a_version_that_the_plugin_refuses_gets_no_entry_and_loses_one() {
        let chained = edit(CONFLIST, Some(&entry())).expect("a list").expect("changed");
        for version in ["null", "\"\"", "\"0.2.0\"", "\"2.0.0\"", "1"] {
            for text in [CONFLIST, &chained] {
                let text = text.replacen("\"0.4.0\"", version, 1);
                let refused = edit(&text, Some(&entry())).expect_err("is refused").to_string();
                assert!(
                    refused.starts_with(&format!("cniVersion {version}; must be one of 0.3.0, ")),
                    "{refused}"
                );
            }
            let back = edit(&chained.replacen("\"0.4.0\"", version, 1), None).expect("a list");
            assert_eq!(types(&back.expect("changed")), ["bridge"]);
        }
        let untold = r#"{"name":"pods","plugins":[{"type":"bridge"}]}"#;
        assert_eq!(edit(untold, Some(&entry())), Err(ConflistError::Version(Value::Null)));
        for version in VERSIONS {
            let edited = edit(&CONFLIST.replacen("0.4.0", version, 1), Some(&entry())).expect("is accepted");
            assert_eq!(types(&edited.expect("changed")), ["bridge", NAME], "{version}");
        }
    }

    // spec: NET-132
    #[test]
    fn the_first_by_name_is_the_one_that_the_runtime_takes() {
        let names = [
            "20-b.conflist",
            "weft-cni.kubeconfig",
            "10-a.conflist",
            ".10-a.conflist.tmp",
            "00-readme",
        ];
        assert_eq!(first(names), Some("10-a.conflist"));
        assert_eq!(first(["05-one.conf", "10-a.conflist"]), Some("05-one.conf"));
        assert_eq!(first(["notes.txt"]), None);
    }
}
