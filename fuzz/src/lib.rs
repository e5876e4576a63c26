//! What the fuzz targets run: each function takes any bytes and panics where a promise about them does not hold.
//!
//! The programs in `fuzz_targets/` hand them to libFuzzer (`make fuzz`), and `tests/corpus.rs` replays the kept inputs
//! with every run of the tests.

mod configuration;
mod first_bytes;
mod http1;
mod oracle;
mod socket;
mod words;

pub use configuration::{bundle_load, endpoints_load};
pub use first_bytes::{client_hello, detection};
pub use http1::{http1_head, http1_requests, http1_response};
pub use words::{grpc_web_text, path_normalization, peer_metadata};

/// What a target runs.
pub type Target = fn(&[u8]);

/// Every target by the name of its program and of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("bundle_load", bundle_load),
    ("client_hello", client_hello),
    ("detection", detection),
    ("endpoints_load", endpoints_load),
    ("grpc_web_text", grpc_web_text),
    ("http1_head", http1_head),
    ("http1_requests", http1_requests),
    ("http1_response", http1_response),
    ("path_normalization", path_normalization),
    ("peer_metadata", peer_metadata),
];
