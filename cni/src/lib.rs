//! The CNI plugin that sets the redirect of pods from their node, and the agent that installs it.
//!
//! One program, two lives. The container runtime calls it for each sandbox ([`plugin`]): it asks the API server for the
//! pod ([`lookup`]), reads what the injector wrote on it ([`pod`]), and writes the rules of `weft-proxy init` into the
//! sandbox's network namespace ([`namespace`]). The DaemonSet runs it as [`agent`], which puts it into the runtime's
//! configuration ([`conflist`], [`install`]) and mends pods that began without it ([`repair`], [`sandbox`]).

#![forbid(unsafe_code)]

pub mod agent;
pub mod conflist;
pub mod install;
pub mod lookup;
pub mod namespace;
pub mod network;
pub mod plugin;
pub mod pod;
pub mod repair;
pub mod sandbox;

/// An error with what it came from, for those that do not say it themselves.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        next = cause.source();
    }
    out
}
