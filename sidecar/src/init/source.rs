//! The IPv6 address from which the proxy calls its application, on the loopback interface (NET-122). IPv4 needs none:
//! all of 127.0.0.0/8 is local.

use std::io;

use super::PROXY_SOURCES;
use super::netlink::{Message, route};

/// Adds the address; one that is there is no error, nor is a namespace without IPv6 (NET-121).
///
/// # Errors
/// That of the kernel.
pub(super) fn add() -> io::Result<()> {
    match change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists || lacks_ipv6(&e) => Ok(()),
        result => result,
    }
}

/// Removes the address; one that is not there is no error.
///
/// # Errors
/// That of the kernel.
pub(super) fn remove() -> io::Result<()> {
    match change(RTM_DELADDR, 0) {
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable || lacks_ipv6(&e) => Ok(()),
        result => result,
    }
}

fn change(kind: u16, flags: u16) -> io::Result<()> {
    let std::net::IpAddr::V6(address) = PROXY_SOURCES[1] else {
        return Ok(());
    };
    let lo = nix::net::if_::if_nametoindex("lo")?;
    // struct ifaddrmsg (linux/if_addr.h): family, prefix, flags, scope, index.
    let mut fixed = vec![AF_INET6, 128, IFA_F_NODAD, RT_SCOPE_HOST];
    fixed.extend(lo.to_ne_bytes());
    let mut message = Message::route(kind, flags, &fixed);
    message
        .put(IFA_LOCAL, &address.octets())
        .put(IFA_ADDRESS, &address.octets());
    route(message)
}

/// IPv6 is not there, or was turned off for the namespace.
pub(super) fn lacks_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EOPNOTSUPP};
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    match error.raw_os_error() {
        Some(EAFNOSUPPORT | EOPNOTSUPP) => true,
        Some(EACCES) => off,
        _ => false,
    }
}

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const AF_INET6: u8 = 10;
const IFA_F_NODAD: u8 = 0x02;
const RT_SCOPE_HOST: u8 = 254;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
