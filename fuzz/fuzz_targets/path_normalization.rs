//! See [`weft_fuzz::path_normalization`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::path_normalization(data));
