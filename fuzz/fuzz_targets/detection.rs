//! First bytes: a verdict, once given, is never another one when more bytes come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_sidecar::detect::{Among, Verdict, judge};

fuzz_target!(|data: &[u8]| {
    for among in [Among::Tls, Among::Http, Among::ClientTlsOrHttp] {
        let mut decided = Verdict::Undecided;
        for end in 0..=data.len().min(256) {
            let verdict = judge(&data[..end], among);
            if decided != Verdict::Undecided {
                assert_eq!(verdict, decided, "{end}");
            }
            decided = verdict;
        }
    }
});
