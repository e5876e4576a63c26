//! Configurations: any bytes load or are refused with a reason; whatever is accepted survives being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_bundle::load;
use weft_bundle::model::Config;
use weft_bundle::pack::{Files, MANIFEST_FILE};
use weft_bundle::wire::{Bundle, Target};

fuzz_target!(|data: &[u8]| {
    let files = Files::from([(MANIFEST_FILE.to_owned(), data.to_vec())]);
    if let Err(rejected) = load::config(&files) {
        assert!(!rejected.message.is_empty());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Target::parse(text);
    let Ok(bundle) = serde_yaml::from_str::<Bundle>(text) else { return };
    let again = serde_json::to_vec(&bundle).expect("a bundle is written");
    let again: Bundle = serde_json::from_slice(&again).expect("what was written is read");
    assert_eq!(bundle, again);
    if let Err(problems) = Config::parse(bundle) {
        assert!(problems.iter().all(|problem| !problem.path.is_empty() && !problem.message.is_empty()));
    }
});
