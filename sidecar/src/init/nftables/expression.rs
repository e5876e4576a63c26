//! Expressions of nftables: what a rule asks of a packet, and what it does with it (include/uapi/linux/netfilter/
//! nf_tables.h).

use std::net::{IpAddr, Ipv4Addr};

use crate::init::netlink::Message;
use crate::init::{Cidr, Condition, Owner};

/// Where a packet goes next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Code {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    Goto(&'static str),
}

pub(super) fn counter(list: &mut Message) {
    expression(list, "counter", |_| {});
}

pub(super) fn verdict(list: &mut Message, code: Code) {
    let (code, chain) = match code {
        Code::Accept => (VERDICT_ACCEPT, None),
        Code::Drop => (VERDICT_DROP, None),
        Code::Return => (NFT_RETURN, None),
        Code::Jump(chain) => (NFT_JUMP, Some(chain)),
        Code::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    expression(list, "immediate", |m| {
        m.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .nest(NFTA_IMMEDIATE_DATA, |m| {
                m.nest(NFTA_DATA_VERDICT, |m| {
                    m.put(NFTA_VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        m.text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
    });
}

/// Changes the destination to a local port.
pub(super) fn redirect_to(list: &mut Message, port: u16) {
    load(list, &port.to_be_bytes(), NFT_REG_1);
    expression(list, "redir", |m| {
        m.number(NFTA_REDIR_REG_PROTO_MIN, NFT_REG_1);
    });
}

/// Gives the packet to who listens on a port, addresses unchanged. Where nobody does the rule ends here.
pub(super) fn give_to(list: &mut Message, port: u16) {
    load(list, &port.to_be_bytes(), NFT_REG_1);
    expression(list, "tproxy", |m| {
        m.number(NFTA_TPROXY_FAMILY, u32::from(NFPROTO_UNSPEC))
            .number(NFTA_TPROXY_REG_PORT, NFT_REG_1);
    });
}

/// Answers as a port where nobody listens.
pub(super) fn reset(list: &mut Message) {
    expression(list, "reject", |m| {
        m.number(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
    });
}

/// Marks the connection as the packet is marked.
pub(super) fn save_mark(list: &mut Message) {
    read(list, "meta", NFT_META_MARK);
    write(list, "ct", NFT_CT_MARK);
}

/// Marks the packet as its connection is marked.
pub(super) fn restore_mark(list: &mut Message) {
    read(list, "ct", NFT_CT_MARK);
    write(list, "meta", NFT_META_MARK);
}

/// Has the connection tracked in a zone of its own.
pub(super) fn set_zone(list: &mut Message, zone: u16) {
    load(list, &zone.to_ne_bytes(), NFT_REG_1);
    write(list, "ct", NFT_CT_ZONE);
}

/// The expressions of a condition.
pub(super) fn matching(list: &mut Message, condition: &Condition) {
    match condition {
        Condition::Input(name) => interface(list, NFT_META_IIFNAME, name),
        Condition::Output(name) => interface(list, NFT_META_OIFNAME, name),
        Condition::Tcp => meta(list, NFT_META_L4PROTO, &[6], false),
        Condition::Udp => meta(list, NFT_META_L4PROTO, &[17], false),
        Condition::Port { port, other } => {
            payload(list, NFT_PAYLOAD_TRANSPORT, 2, 2);
            compare(list, &port.to_be_bytes(), *other);
        }
        Condition::SourcePort(port) => {
            payload(list, NFT_PAYLOAD_TRANSPORT, 0, 2);
            compare(list, &port.to_be_bytes(), false);
        }
        Condition::Source(range) => address(list, *range, false, false),
        Condition::Destination { range, other } => address(list, *range, true, *other),
        Condition::Owner { owner, other } => match owner {
            Owner::Uid(id) => meta(list, NFT_META_SKUID, &id.to_ne_bytes(), *other),
            Owner::Gid(id) => meta(list, NFT_META_SKGID, &id.to_ne_bytes(), *other),
            Owner::Mark(mark) => meta(list, NFT_META_MARK, &mark.to_ne_bytes(), *other),
        },
        Condition::Mark { mark, other } => meta(list, NFT_META_MARK, &mark.to_ne_bytes(), *other),
        Condition::ConnectionMark(mark) => {
            read(list, "ct", NFT_CT_MARK);
            compare(list, &mark.to_ne_bytes(), false);
        }
        Condition::Established => state(list, CT_ESTABLISHED | CT_RELATED),
        Condition::Invalid => state(list, CT_INVALID),
    }
}

/// Any of some states of the connection.
fn state(list: &mut Message, any: u32) {
    read(list, "ct", NFT_CT_STATE);
    bits(list, &any.to_ne_bytes());
    compare(list, &0u32.to_ne_bytes(), true);
}

fn interface(list: &mut Message, key: u32, name: &str) {
    let mut value = name.as_bytes().to_vec();
    value.truncate(15);
    value.resize(16, 0);
    meta(list, key, &value, false);
}

/// An address in a range, or outside of it; of the other family it does not match either way.
fn address(list: &mut Message, range: Cidr, is_destination: bool, other: bool) {
    let (family, offset, bytes): (u8, u32, Vec<u8>) = match range.address {
        IpAddr::V4(v4) => (NFPROTO_IPV4, if is_destination { 16 } else { 12 }, v4.octets().to_vec()),
        IpAddr::V6(v6) => (NFPROTO_IPV6, if is_destination { 24 } else { 8 }, v6.octets().to_vec()),
    };
    meta(list, NFT_META_NFPROTO, &[family], false);
    payload(
        list,
        NFT_PAYLOAD_NETWORK,
        offset,
        u32::try_from(bytes.len()).unwrap_or(16),
    );
    let mask = mask(range.prefix, bytes.len());
    let network: Vec<u8> = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
    if mask.iter().any(|byte| *byte != 0xff) {
        bits(list, &mask);
    }
    compare(list, &network, other);
}

fn mask(prefix: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| match usize::from(prefix).saturating_sub(n * 8) {
            0 => 0,
            bits @ 1..=7 => !(0xff >> bits),
            _ => 0xff,
        })
        .collect()
}

fn meta(list: &mut Message, key: u32, value: &[u8], other: bool) {
    read(list, "meta", key);
    compare(list, value, other);
}

/// Reads a fact of the packet (`meta`) or of its connection (`ct`).
fn read(list: &mut Message, of: &str, key: u32) {
    let (register, kind) = if of == "ct" {
        (NFTA_CT_DREG, NFTA_CT_KEY)
    } else {
        (NFTA_META_DREG, NFTA_META_KEY)
    };
    expression(list, of, |m| {
        m.number(kind, key).number(register, NFT_REG_1);
    });
}

/// Writes what was read or loaded.
fn write(list: &mut Message, of: &str, key: u32) {
    let (register, kind) = if of == "ct" {
        (NFTA_CT_SREG, NFTA_CT_KEY)
    } else {
        (NFTA_META_SREG, NFTA_META_KEY)
    };
    expression(list, of, |m| {
        m.number(kind, key).number(register, NFT_REG_1);
    });
}

pub(super) fn set_mark(list: &mut Message, mark: u32) {
    load(list, &mark.to_ne_bytes(), NFT_REG_1);
    write(list, "meta", NFT_META_MARK);
}

/// Keeps the bits of a mask.
fn bits(list: &mut Message, mask: &[u8]) {
    expression(list, "bitwise", |m| {
        m.number(NFTA_BITWISE_SREG, NFT_REG_1)
            .number(NFTA_BITWISE_DREG, NFT_REG_1)
            .number(NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(16))
            .nest(NFTA_BITWISE_MASK, |m| {
                m.put(NFTA_DATA_VALUE, mask);
            })
            .nest(NFTA_BITWISE_XOR, |m| {
                m.put(NFTA_DATA_VALUE, &vec![0; mask.len()]);
            });
    });
}

fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |m| {
        m.number(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .number(NFTA_PAYLOAD_BASE, base)
            .number(NFTA_PAYLOAD_OFFSET, offset)
            .number(NFTA_PAYLOAD_LEN, length);
    });
}

fn compare(list: &mut Message, value: &[u8], other: bool) {
    expression(list, "cmp", |m| {
        m.number(NFTA_CMP_SREG, NFT_REG_1)
            .number(NFTA_CMP_OP, if other { NFT_CMP_NEQ } else { NFT_CMP_EQ })
            .nest(NFTA_CMP_DATA, |m| {
                m.put(NFTA_DATA_VALUE, value);
            });
    });
}

fn load(list: &mut Message, value: &[u8], register: u32) {
    expression(list, "immediate", |m| {
        m.number(NFTA_IMMEDIATE_DREG, register).nest(NFTA_IMMEDIATE_DATA, |m| {
            m.put(NFTA_DATA_VALUE, value);
        });
    });
}

/// One in `modulus`, at random.
pub(super) fn draw(list: &mut Message, modulus: u32) {
    expression(list, "numgen", |m| {
        m.number(NFTA_NG_DREG, NFT_REG_1)
            .number(NFTA_NG_MODULUS, modulus)
            .number(NFTA_NG_TYPE, NFT_NG_RANDOM);
    });
    compare(list, &0u32.to_ne_bytes(), false);
}

pub(super) fn destination_nat(list: &mut Message, address: Ipv4Addr, port: u16) {
    load(list, &address.octets(), NFT_REG_1);
    load(list, &port.to_be_bytes(), NFT_REG_2);
    expression(list, "nat", |m| {
        m.number(NFTA_NAT_TYPE, NFT_NAT_DNAT)
            .number(NFTA_NAT_FAMILY, u32::from(NFPROTO_IPV4))
            .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
            .number(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2);
    });
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(NFTA_LIST_ELEM, |m| {
        m.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
    });
}

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFTA_TPROXY_FAMILY: u16 = 1;
const NFTA_TPROXY_REG_PORT: u16 = 3;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NG_DREG: u16 = 1;
const NFTA_NG_MODULUS: u16 = 2;
const NFTA_NG_TYPE: u16 = 3;
const NFT_NG_RANDOM: u32 = 1;
const NFT_NAT_DNAT: u32 = 1;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_REG_2: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_RETURN: i32 = -5;
const NFT_GOTO: i32 = -4;
const NFT_JUMP: i32 = -3;
const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: i32 = 1;
const NFT_META_MARK: u32 = 3;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_SKUID: u32 = 10;
const NFT_META_SKGID: u32 = 11;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_MARK: u32 = 3;
const NFT_CT_ZONE: u32 = 17;
// Bits of NFT_CT_STATE (include/net/netfilter/nf_conntrack.h).
const CT_INVALID: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_PAYLOAD_NETWORK: u32 = 1;
const NFT_PAYLOAD_TRANSPORT: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_prefixes() {
        assert_eq!(mask(12, 4), [0xff, 0xf0, 0, 0]);
        assert_eq!(mask(32, 4), [0xff; 4]);
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(9, 4), [0xff, 0x80, 0, 0]);
    }
}
