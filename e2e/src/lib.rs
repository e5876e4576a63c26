//! What the tests on a cluster share: the cluster itself, Weft's control plane in it, the sample in a namespace of a
//! test's own, and a steady load.
//!
//! Tests need a cluster with Weft installed (`install` alone needs one without) and images that its nodes have;
//! `e2e/run` sees to both. They do what users do: `kubectl apply`, and a look at what comes back.

#![forbid(unsafe_code)]

pub mod api_server;
pub mod cluster;
pub mod control_plane;
pub mod load;
pub mod propagation;
pub mod proxy;
pub mod sample;
pub mod wait;

pub use api_server::ApiServer;
pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use load::{Load, Report};
pub use sample::Sample;
pub use wait::until;
