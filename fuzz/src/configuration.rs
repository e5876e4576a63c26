//! Files of the control plane, which a proxy believes no more than it must.

use weft_bundle::load;
use weft_bundle::model::{Config, EndpointTable};
use weft_bundle::pack::{Files, MANIFEST_FILE, endpoint_files, sha256};
use weft_bundle::wire::{Bundle, EndpointsManifest, SCHEMA, Target};

/// Any bytes load or are refused with a reason; whatever is accepted survives being written again.
pub fn bundle_load(data: &[u8]) {
    let files = Files::from([(MANIFEST_FILE.to_owned(), data.to_vec())]);
    if let Err(rejected) = load::config(&files) {
        assert!(!rejected.message.is_empty());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Target::parse(text);
    let Ok(bundle) = serde_yaml::from_str::<Bundle>(text) else {
        return;
    };
    let again = serde_json::to_vec(&bundle).expect("a bundle is written");
    let again: Bundle = serde_json::from_slice(&again).expect("what was written is read");
    assert_eq!(bundle, again);
    if let Err(problems) = Config::parse(bundle) {
        assert!(
            problems
                .iter()
                .all(|problem| !problem.path.is_empty() && !problem.message.is_empty())
        );
    }
}

/// Any content behind right checksums loads or is refused, and what loads makes a table.
pub fn endpoints_load(data: &[u8]) {
    let (manifest_file, content_file) = endpoint_files(0);
    // As frame, and as content of a frame.
    let frame = zstd::bulk::compress(data, 1).expect("compressed");
    for frame in [data.to_vec(), frame] {
        let manifest = EndpointsManifest {
            schema: SCHEMA,
            requires: Vec::new(),
            shards: 1,
            length: frame.len() as u64,
            sha256: sha256(&frame),
            content_sha256: sha256(data),
        };
        let manifest = serde_json::to_vec(&manifest).expect("written");
        let files = Files::from([(manifest_file.clone(), manifest), (content_file.clone(), frame)]);
        if let Ok(Some(loaded)) = load::endpoints(&files, 0) {
            let table = EndpointTable::new(&[loaded.endpoints], None);
            let _ = table.hosts().map(|host| host.endpoints.len()).sum::<usize>();
        }
    }
    let files = Files::from([(manifest_file, data.to_vec())]);
    let _ = load::endpoints(&files, 0);
}
