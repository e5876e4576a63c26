//! See [`weft_fuzz::peer_metadata`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::peer_metadata(data));
