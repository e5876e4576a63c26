//! Admission: injects the sidecar and validates mesh resources.
//!
//! - [`config`]: the settings of injection, from ConfigMaps.
//! - [`decide`]: whether a pod gets a sidecar.
//! - [`entries`]: the same as selectors of the webhook configuration.
//! - [`inject`]: the pod with its sidecar, a pure function.
//! - [`manifest`]: documents with pod templates.
//! - [`validate`]: whether a mesh resource may be stored.
//! - [`admission`]: reviews in, reviews out.
//! - [`serve`]: the HTTPS server around that, with [`tls`], [`reload`], [`nodes`] and [`metrics`].

pub mod admission;
mod annotations;
pub mod config;
pub mod decide;
pub mod entries;
pub mod inject;
pub mod manifest;
pub mod metrics;
pub mod nodes;
mod patch;
mod pod;
mod quantity;
pub mod reload;
pub mod selector;
pub mod serve;
pub mod tls;
pub mod validate;

pub use self::annotations::Violation;
pub use self::config::{InjectConfig, InvalidConfig, NativeSidecar};
pub use self::decide::{Decision, Namespace, Skip, decide};
pub use self::inject::{Context, Injected, Refusal, Workload, inject, uninject};
