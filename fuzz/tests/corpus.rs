//! The kept inputs, replayed: finds that were mended, and what reached far into a parser.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use weft_fuzz::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        path.file_stem().expect("a name").to_string_lossy().into_owned()
    };
    entries.map(name).collect()
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
}

#[test]
fn the_kept_inputs_hold_what_their_targets_promise() {
    for (name, target) in TARGETS {
        let inputs = folder("corpus").join(name);
        let kept = names(&inputs);
        assert!(!kept.is_empty(), "{name} has no corpus");
        for input in kept {
            let path = inputs.join(&input);
            // Names the input where the target panics.
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        }
    }
}
