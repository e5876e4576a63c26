//! Endpoints: any content behind right checksums loads or is refused, and what loads makes a table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_bundle::load;
use weft_bundle::model::EndpointTable;
use weft_bundle::pack::{Files, endpoint_files, sha256};
use weft_bundle::wire::{EndpointsManifest, SCHEMA};

fuzz_target!(|data: &[u8]| {
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
});
