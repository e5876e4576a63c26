//! The reconciler: watches the cluster, renders bundles, delivers them.

pub mod acknowledge;
pub mod authority;
pub mod certificate;
pub mod deliver;
pub mod identity;
pub mod lease;
pub mod leaving;
pub mod metrics;
pub mod render;
pub mod run;
pub mod serve;
pub mod source;
pub mod status;
pub mod succession;
pub mod trust;
pub mod world;
