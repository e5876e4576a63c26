//! What Weft promises, on a cluster where it is installed, while nothing is taken away from it: one file per promise.
//! Each test has a namespace of its own, so they run at the same time.

mod authentication;
mod authorization;
mod credentials;
mod identity;
mod injection;
mod propagation;
mod refusal;
mod split;
mod steady;
