//! See [`weft_fuzz::client_hello`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::client_hello(data));
