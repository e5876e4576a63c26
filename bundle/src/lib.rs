//! The file contract between Weft's operator and its sidecar.
//!
//! What the operator renders, the sidecar can parse: both use this crate and nothing else to agree. It does no
//! networking, knows no Kubernetes client and depends on no other crate of Weft.
//!
//! - [`anchors`]: the trust bundle, each anchor with the trust domains that it verifies.
//! - [`key`]: which pods share one configuration, and the names of the objects that carry it.
//! - [`wire`]: the serde types of the files, as text that people read.
//! - [`model`]: the same, parsed and compiled: what a proxy runs.
//! - [`pack`]: from [`wire`] to the bytes of ConfigMaps, with checksums.
//! - [`pace`]: lets requests run while a configuration is read.
//! - [`pem`]: what is wrong with a certificate or a key, without a word of it.
//! - [`load`]: from bytes to [`model`], all or nothing.
//! - [`volume`]: reads one consistent set of files from a volume that a kubelet replaces while it is read.

pub mod anchors;
pub mod key;
pub mod load;
pub mod model;
pub mod pace;
pub mod pack;
pub mod pem;
pub mod volume;
pub mod wire;

mod item;
