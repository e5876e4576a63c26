//! The `weft` command: a local mesh, and the control plane from a terminal. One file for each subcommand.

pub mod local;
