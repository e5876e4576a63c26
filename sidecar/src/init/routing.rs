//! The route that delivers marked packets to this namespace whatever their address (NET-080), for both families.

use std::io;

use super::netlink::{Message, route};
use super::source::lacks_ipv6;

/// Adds rule and route; those that are there are no error, nor is a namespace without IPv6 (NET-121).
///
/// # Errors
/// That of the kernel.
pub(super) fn add(mark: u32, table: u32) -> io::Result<()> {
    for family in [AF_INET, AF_INET6] {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        for message in [
            rule(RTM_NEWRULE, flags, family, mark, table),
            local(RTM_NEWROUTE, flags, family, table)?,
        ] {
            match route(message) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists || (family == AF_INET6 && lacks_ipv6(&e)) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

/// Removes rule and route; those that are not there are no error.
///
/// # Errors
/// That of the kernel.
pub(super) fn remove(mark: u32, table: u32) -> io::Result<()> {
    for family in [AF_INET, AF_INET6] {
        for message in [
            rule(RTM_DELRULE, 0, family, mark, table),
            local(RTM_DELROUTE, 0, family, table)?,
        ] {
            match route(message) {
                Err(e) if is_absent(&e) || (family == AF_INET6 && lacks_ipv6(&e)) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    use nix::libc::{ENOENT, ESRCH};
    matches!(error.raw_os_error(), Some(ENOENT | ESRCH))
}

/// `fwmark MARK lookup TABLE`.
fn rule(kind: u16, flags: u16, family: u8, mark: u32, table: u32) -> Message {
    // struct fib_rule_hdr (linux/fib_rules.h): family, lengths of destination and source, tos, table, two reserved,
    // action, flags.
    let mut fixed = vec![family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL];
    fixed.extend(0u32.to_ne_bytes());
    let mut message = Message::route(kind, flags, &fixed);
    message
        .put(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
        .put(FRA_FWMARK, &mark.to_ne_bytes())
        .put(FRA_TABLE, &table.to_ne_bytes());
    message
}

/// `local default dev lo table TABLE`.
fn local(kind: u16, flags: u16, family: u8, table: u32) -> io::Result<Message> {
    let lo = nix::net::if_::if_nametoindex("lo")?;
    // struct rtmsg (linux/rtnetlink.h): family, lengths of destination and source, tos, table, protocol, scope, type,
    // flags.
    let mut fixed = vec![
        family,
        0,
        0,
        0,
        RT_TABLE_UNSPEC,
        RTPROT_STATIC,
        RT_SCOPE_HOST,
        RTN_LOCAL,
    ];
    fixed.extend(0u32.to_ne_bytes());
    let mut message = Message::route(kind, flags, &fixed);
    message
        .put(RTA_TABLE, &table.to_ne_bytes())
        .put(RTA_OIF, &lo.to_ne_bytes());
    Ok(message)
}

/// In front of the main table; left to the kernel it would be another one each time.
const PRIORITY: u32 = 32_765;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RT_TABLE_UNSPEC: u8 = 0;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
