//! The servers of the pod's resolver (resolv.conf(5)).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// Where the resolver's settings are.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Addresses of the servers that a file names, in its order.
///
/// # Errors
/// That the file cannot be read.
pub fn servers(path: &Path) -> io::Result<Vec<SocketAddr>> {
    Ok(parse(&std::fs::read_to_string(path)?))
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // What is no address names no server for libraries either.
        let Some(server) = words.next().and_then(server) else {
            continue;
        };
        if !out.contains(&server) {
            out.push(server);
        }
    }
    out.truncate(MOST);
    out
}

/// An address; a link-local one may name its interface.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope = interface
        .parse()
        .or_else(|_| nix::net::if_::if_nametoindex(interface))
        .ok()?;
    Some(SocketAddrV6::new(address, PORT, 0, scope).into())
}

const PORT: u16 = 53;

/// Servers that are used; libraries use the first three.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: NET-091, NET-096
    #[test]
    fn nameservers_of_a_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nsearch app.svc.cluster.local\nnameserver 10.96.0.10\nnameserver\t127.0.0.1 # cache\n\
                    nameserver fd00::a\nnameserver fe80::1%1\nnameserver 10.96.0.10\nnameserver nonsense\nnameserver\n\
                    options ndots:5\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["10.96.0.10:53", "127.0.0.1:53", "[fd00::a]:53", "[fe80::1%1]:53"]
        );
        assert_eq!(parse("search local\n"), []);
    }
}
