//! What Weft promises while a part of it, or of Kubernetes, is away: one file per promise. These tests take things away
//! from the whole cluster, so they run one after the other.

mod api_server_away;
mod nudging_off;
mod operator_away;
mod operator_killed;
