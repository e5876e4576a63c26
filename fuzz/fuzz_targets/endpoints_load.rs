//! See [`weft_fuzz::endpoints_load`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::endpoints_load(data));
