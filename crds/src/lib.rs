//! The API types that Weft serves, and their validation.
//!
//! One file for each kind. Types follow the upstream messages by name and spelling; what an enum field holds stays
//! text, so that an object with a value that this version does not know can still be read, named and reported
//! instead of stopping a watch. Validation is a function of one object: [`validate`].

pub mod authorization_policy;
pub mod destination_rule;
pub mod duration;
pub mod gateway;
pub mod mesh;
pub mod mesh_config;
pub mod object;
pub mod peer_authentication;
pub mod schema;
pub mod service_entry;
pub mod sidecar;
pub mod status;
pub mod validate;
pub mod virtual_service;
pub mod workload_entry;

pub use authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
pub use destination_rule::{DestinationRule, DestinationRuleSpec};
pub use duration::Duration;
pub use gateway::{Gateway, GatewaySpec};
pub use mesh::{Mesh, MeshSpec, MeshStatus, PodCounts};
pub use mesh_config::MeshConfig;
pub use object::{MeshObject, ParseError, parse_object};
pub use peer_authentication::{PeerAuthentication, PeerAuthenticationSpec};
pub use service_entry::{ServiceEntry, ServiceEntrySpec};
pub use sidecar::{Sidecar, SidecarSpec};
pub use status::Status;
pub use validate::{FieldError, Report, Validate};
pub use virtual_service::{VirtualService, VirtualServiceSpec};
pub use workload_entry::{WorkloadEntry, WorkloadEntrySpec};
