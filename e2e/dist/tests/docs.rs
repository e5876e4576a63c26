//! What users are told, where saying more than is true would do harm.

use std::path::{Path, PathBuf};

fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let all = [root.join("docs"), root.join("crds/yaml")]
        .into_iter()
        .flat_map(|folder| {
            let entries = std::fs::read_dir(folder).expect("reads");
            entries.map(|entry| entry.expect("reads").path())
        });
    let texts = all.filter(|path| path.extension().is_some_and(|e| e == "md" || e == "yaml"));
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("reads");
        (path, text)
    };
    texts.chain([root.join("README.md")]).map(read).collect()
}

// spec: SM-066
#[test]
fn nobody_is_told_that_registry_only_keeps_a_program_in() {
    let mut says_so = false;
    for (path, text) in pages() {
        // A definition has no paragraphs.
        let end = if path.extension().is_some_and(|e| e == "md") {
            "\n\n"
        } else {
            "\n"
        };
        for paragraph in text.split(end).filter(|p| p.contains("REGISTRY_ONLY")) {
            let words = paragraph
                .to_lowercase()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            for claim in ["prevents", "secure", "isolat", "firewall", "blocks", "guarantee"] {
                assert!(!words.contains(claim), "{}: {claim}: {paragraph}", path.display());
            }
            says_so |=
                words.contains("is no barrier against one that wants to") && words.contains("go around its sidecar");
        }
    }
    assert!(says_so, "the page on REGISTRY_ONLY says what it is not");
}
