//! The proxy beside each workload, and init, which sets up its redirect.
//!
//! The request path, one module per step: [`worker`] accepts, [`listen`] finds the original destination, [`detect`] tells
//! protocols apart, [`tls`] verifies peers, [`http`] and [`tcp`] route, pick, forward and record in [`exchange`].

pub mod announce;
pub mod arguments;
pub mod ask;
pub mod authorize;
pub mod balance;
pub mod clock;
pub mod cluster;
pub mod connect;
pub mod detect;
pub mod dns;
pub mod exchange;
pub mod gateway;
pub mod http;
pub mod inbound;
pub mod init;
pub mod io;
pub mod listen;
pub mod locality;
pub mod log;
pub mod lookup;
pub mod outbound;
pub mod outlier;
pub mod overload;
pub mod pool;
pub mod probe;
pub mod reload;
pub mod restart;
pub mod run;
pub mod shared;
pub mod status;
pub mod tcp;
pub mod tcp_info;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod worker;
