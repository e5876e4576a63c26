//! What the benchmarks run beside the proxies: load, a server, bare relays, and the files that proxies read. Driven by
//! `bench/run`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

mod load;
mod material;
mod relay;
mod serve;

#[derive(Debug, Parser)]
#[command(about, disable_help_subcommand = true)]
enum Command {
    /// Answer HTTP/1.1 and HTTP/2: 128 bytes, or 1 MB at /1m
    Serve {
        /// Address for HTTP/1.1
        #[arg(long)]
        http1: SocketAddr,
        /// Address for HTTP/2 and gRPC, in clear
        #[arg(long)]
        http2: SocketAddr,
    },
    /// Send HTTP/1.1 requests on connections that stay open, and print what came of it as JSON
    Load(load::Arguments),
    /// Open TLS connections to a proxy of the mesh, send one request on each, and hold them until standard input ends
    Hold(load::Hold),
    /// Relay connections with as little as possible
    Relay(relay::Arguments),
    /// Write certificates of one authority: a directory for each account
    Identities {
        /// Where
        directory: PathBuf,
        /// NAMESPACE/NAME
        accounts: Vec<String>,
    },
    /// Publish a configuration as a kubelet does
    Publish {
        /// The volume
        directory: PathBuf,
        /// File with a bundle
        #[arg(long)]
        bundle: PathBuf,
        /// File with hosts and their endpoints
        #[arg(long)]
        endpoints: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    // There is one TLS stack; a second installation cannot happen before the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Command::parse() {
        Command::Serve { http1, http2 } => serve::run(http1, http2),
        Command::Load(arguments) => load::run(&arguments),
        Command::Hold(arguments) => load::hold(&arguments),
        Command::Relay(arguments) => relay::run(&arguments),
        Command::Identities { directory, accounts } => material::identities(&directory, &accounts),
        Command::Publish {
            directory,
            bundle,
            endpoints,
        } => material::publish(&directory, &bundle, &endpoints),
    }
}
