//! HTTP: heads and bodies of our own, codecs below them, the request path above.

pub(crate) mod answer;
pub mod body;
mod casing;
pub mod client;
pub mod direct;
pub mod forward;
mod gateway;
pub mod grpc_web;
pub mod h1;
pub mod h2;
mod head;
pub mod inbound;
pub mod metadata;
pub mod outbound;
pub mod path;
pub mod replay;
pub mod rescue;
pub mod route;
pub mod server;
mod trailers;

pub use body::Body;
pub use head::{Field, Headers, RequestHead, ResponseHead, Version};
