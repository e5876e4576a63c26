//! The PROXY header, which tells a server who its client is (DR-128).

use std::net::{IpAddr, SocketAddr};

use weft_bundle::wire::ProxyProtocol;

/// What opens every PROXY header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A client to announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    /// Form of the header.
    pub version: ProxyProtocol,
    /// The client.
    pub client: SocketAddr,
    /// What it dialled.
    pub dialled: SocketAddr,
}

impl Announce {
    /// The header.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let Self {
            version,
            client,
            dialled,
        } = self;
        match version {
            ProxyProtocol::V1 => {
                let family = match (client, dialled) {
                    (SocketAddr::V4(_), SocketAddr::V4(_)) => "TCP4",
                    (SocketAddr::V6(_), SocketAddr::V6(_)) => "TCP6",
                    _ => return b"PROXY UNKNOWN\r\n".to_vec(),
                };
                let text = format!(
                    "PROXY {family} {} {} {} {}\r\n",
                    client.ip(),
                    dialled.ip(),
                    client.port(),
                    dialled.port()
                );
                text.into_bytes()
            }
            ProxyProtocol::V2 => {
                let mut addresses = Vec::new();
                let family = match (client.ip(), dialled.ip()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        addresses.extend([from.octets(), to.octets()].concat());
                        0x11
                    }
                    (IpAddr::V6(from), IpAddr::V6(to)) => {
                        addresses.extend([from.octets(), to.octets()].concat());
                        0x21
                    }
                    _ => 0,
                };
                if family != 0 {
                    addresses.extend([client.port().to_be_bytes(), dialled.port().to_be_bytes()].concat());
                }
                // Version 2, command PROXY; no family leaves the addresses out.
                let mut header = SIGNATURE.to_vec();
                header.extend([0x21, family, 0, u8::try_from(addresses.len()).unwrap_or(0)]);
                header.extend(addresses);
                header
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyProtocol, client: &str, dialled: &str) -> Vec<u8> {
        let announce = Announce {
            version,
            client: client.parse().expect("address"),
            dialled: dialled.parse().expect("address"),
        };
        announce.header()
    }

    // spec: DR-128
    #[test]
    fn both_versions_name_both_addresses() {
        let v1 = header(ProxyProtocol::V1, "10.0.0.1:4000", "10.1.0.1:80");
        assert_eq!(v1, b"PROXY TCP4 10.0.0.1 10.1.0.1 4000 80\r\n");
        let v1 = header(ProxyProtocol::V1, "[fd00::1]:4000", "[fd00::2]:80");
        assert_eq!(v1, b"PROXY TCP6 fd00::1 fd00::2 4000 80\r\n");
        let v2 = header(ProxyProtocol::V2, "10.0.0.1:4000", "10.1.0.1:80");
        assert_eq!(v2[..12], SIGNATURE);
        assert_eq!(v2[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(v2[16..], [10, 0, 0, 1, 10, 1, 0, 1, 0x0f, 0xa0, 0, 80]);
        assert_eq!(header(ProxyProtocol::V2, "[fd00::1]:1", "[fd00::2]:2").len(), 16 + 36);
    }
}
