//! The program as a node has it: called by a runtime for real network namespaces, and as the agent that installs it. An
//! HTTPS server of the tests' own stands for the API server, so that it can fail.

#[path = "node/agent.rs"]
mod agent;
#[path = "node/api.rs"]
mod api;
#[path = "node/plugin.rs"]
mod plugin;
#[path = "node/space.rs"]
mod space;
