//! See [`weft_fuzz::http1_response`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::http1_response(data));
