//! Local mode as its users see it: the real `weft`, real sidecars in namespaces or on loopback addresses, the sample
//! application.

#[path = "local/change.rs"]
mod change;
#[path = "local/check.rs"]
mod check;
#[path = "local/end.rs"]
mod end;
#[path = "local/gateway.rs"]
mod gateway;
#[path = "local/input.rs"]
mod input;
#[path = "local/mesh.rs"]
mod mesh;
#[path = "local/pods.rs"]
mod pods;
#[path = "local/render.rs"]
mod render;
#[path = "local/seeing.rs"]
mod seeing;
#[path = "local/support.rs"]
mod support;
