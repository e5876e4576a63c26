//! Rules as nftables expressions, written in one transaction (include/uapi/linux/netfilter/nf_tables.h).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::netlink::{Message, attribute, dump, transact};
use super::{Cidr, Condition, Rule, Rules, TABLE, Verdict, transparent};
use expression::{
    Code, counter, destination_nat, draw, give_to, matching, redirect_to, reset, restore_mark, save_mark, set_mark,
    verdict,
};

mod expression;

/// Why the redirect could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another redirect is there (NET-107).
    #[error("{0} of another mesh is in this network namespace: two redirects cannot coexist")]
    Foreign(String),
    /// The kernel refused.
    #[error("{what}: {source}{}", hint(source))]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the capability NET_ADMIN is needed",
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => {
            "; a kernel with nftables NAT in family inet (5.2) is needed"
        }
        _ => "",
    }
}

/// Writes the rules of the redirect: tables added, flushed and refilled in one transaction (NET-104), so that nothing
/// of a failed attempt stays (NET-108), nor of another mode.
///
/// # Errors
/// See [`ApplyError`].
pub(super) fn apply(rules: &Rules) -> Result<(), ApplyError> {
    let mut batch = Batch::new(NFPROTO_INET);
    for table in [TABLE, transparent::RULES] {
        batch.table(NFT_MSG_NEWTABLE, table);
        batch.table(NFT_MSG_DELTABLE, table);
    }
    let jump = |base, name, rules| Chain {
        base,
        ahead: &[],
        jump: Some((name, rules)),
        behind: &[],
    };
    let outbound = jump(&NAT_OUTPUT, "weft-output", &rules.outbound[..]);
    match &rules.transparent {
        None => {
            let inbound = jump(&NAT_PREROUTING, "weft-inbound", &rules.inbound[..]);
            batch.fill(TABLE, rules, &[inbound, outbound]);
            let dropping = Chain {
                base: &MANGLE_PREROUTING,
                ahead: &rules.dropping,
                jump: None,
                behind: &[],
            };
            if !rules.dropping.is_empty() {
                batch.fill(transparent::RULES, rules, &[dropping]);
            }
        }
        Some(transparent) => {
            batch.fill(TABLE, rules, &[outbound]);
            let inbound = Chain {
                ahead: &rules.dropping,
                behind: &transparent.saving,
                ..jump(&MANGLE_PREROUTING, "weft-inbound", &rules.inbound[..])
            };
            let marking = jump(&MANGLE_OUTPUT, "weft-output", &transparent.marking[..]);
            batch.fill(transparent::RULES, rules, &[inbound, marking]);
        }
    }
    batch.send().map_err(|source| ApplyError::Kernel {
        what: "write the redirect",
        source,
    })
}

/// A chain that the kernel calls, and the one that it jumps to.
struct Chain<'a> {
    base: &'static Base,
    /// Rules in front of the jump.
    ahead: &'a [Rule],
    /// Name and rules of the chain that is jumped to.
    jump: Option<(&'static str, &'a [Rule])>,
    /// Rules behind the jump.
    behind: &'a [Rule],
}

impl Chain<'_> {
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        let jumped = self.jump.map_or(&[][..], |(_, rules)| rules);
        self.ahead.iter().chain(jumped).chain(self.behind)
    }
}

/// A chain that the kernel calls.
struct Base {
    name: &'static str,
    hook: u32,
    priority: i32,
    kind: &'static str,
}

const NAT_PREROUTING: Base = Base {
    name: "prerouting",
    hook: HOOK_PREROUTING,
    priority: PRIORITY_DSTNAT,
    kind: "nat",
};
const NAT_OUTPUT: Base = Base {
    name: "output",
    hook: HOOK_OUTPUT,
    ..NAT_PREROUTING
};
const MANGLE_PREROUTING: Base = Base {
    name: "prerouting",
    hook: HOOK_PREROUTING,
    priority: PRIORITY_MANGLE,
    kind: "filter",
};
/// Routes once more what got another mark.
const MANGLE_OUTPUT: Base = Base {
    name: "output",
    hook: HOOK_OUTPUT,
    priority: PRIORITY_MANGLE,
    kind: "route",
};

/// Looks for the redirect of another mesh: a table of its own, or chains in those of iptables (NET-107).
///
/// # Errors
/// [`ApplyError::Foreign`] names it.
pub(super) fn refuse_foreign() -> Result<(), ApplyError> {
    let kernel = |what| move |source| ApplyError::Kernel { what, source };
    let tables = names(NFT_MSG_GETTABLE, NFTA_TABLE_NAME).map_err(kernel("list tables"))?;
    let chains = names(NFT_MSG_GETCHAIN, NFTA_CHAIN_NAME).map_err(kernel("list chains"))?;
    let is_foreign = |name: &String| ["istio-", "ISTIO_", "PROXY_INIT_"].iter().any(|p| name.starts_with(p));
    let table = tables.into_iter().find(is_foreign).map(|name| format!("table {name}"));
    match table.or_else(|| chains.into_iter().find(is_foreign).map(|name| format!("chain {name}"))) {
        Some(name) => Err(ApplyError::Foreign(name)),
        None => Ok(()),
    }
}

/// Removes a table of family inet; succeeds when there is none (NET-109).
///
/// # Errors
/// That of the kernel.
pub fn remove_table(table: &str) -> Result<(), ApplyError> {
    let mut batch = Batch::new(NFPROTO_INET);
    // Added first, so that removing it cannot fail for want of it.
    batch.table(NFT_MSG_NEWTABLE, table);
    batch.table(NFT_MSG_DELTABLE, table);
    batch.send().map_err(|source| ApplyError::Kernel {
        what: "remove the table",
        source,
    })
}

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ip,
}

/// A translation of connections to a service: to one of its endpoints, evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat {
    /// Address of the service.
    pub address: Ipv4Addr,
    /// Port of the service.
    pub port: u16,
    /// Address and port of each endpoint; without any nothing is translated.
    pub endpoints: Vec<(Ipv4Addr, u16)>,
}

/// Replaces a table of translations, for connections that pass through this network namespace and for its own: what
/// a cluster's service proxy does, for local runs.
///
/// # Errors
/// That of the kernel; the earlier table stays then.
pub fn apply_nat(table: &str, family: Family, translations: &[Nat]) -> Result<(), ApplyError> {
    let Family::Ip = family;
    let mut batch = Batch::new(NFPROTO_IPV4);
    batch.fresh_table(table);
    batch.base_chain(table, &NAT_PREROUTING);
    batch.base_chain(table, &NAT_OUTPUT);
    for translation in translations {
        let count = u32::try_from(translation.endpoints.len()).unwrap_or(u32::MAX);
        for (n, (address, port)) in translation.endpoints.iter().enumerate() {
            for chain in ["prerouting", "output"] {
                batch.rule(table, chain, |list| {
                    let range = Cidr {
                        address: IpAddr::V4(translation.address),
                        prefix: 32,
                    };
                    let conditions = [
                        Condition::Tcp,
                        Condition::Port {
                            port: translation.port,
                            other: false,
                        },
                        Condition::Destination { range, other: false },
                    ];
                    conditions.iter().for_each(|condition| matching(list, condition));
                    // The n-th of those that are left gets its share of what came so far.
                    let left = count - u32::try_from(n).unwrap_or(0);
                    if left > 1 {
                        draw(list, left);
                    }
                    counter(list);
                    destination_nat(list, *address, *port);
                });
            }
        }
    }
    batch.send().map_err(|source| ApplyError::Kernel {
        what: "write translations of services",
        source,
    })
}

/// Names of the tables or chains in this network namespace.
fn names(kind: u16, attribute_of_name: u16) -> io::Result<Vec<String>> {
    let message = Message::new(nft(kind), NLM_F_DUMP, NFPROTO_UNSPEC, 0, 1);
    let names = dump(message)?.into_iter().filter_map(|body| {
        let name = attribute(&body, attribute_of_name)?;
        String::from_utf8(name.strip_suffix(&[0]).unwrap_or(name).to_vec()).ok()
    });
    Ok(names.collect())
}

/// Messages of one transaction.
struct Batch {
    family: u8,
    messages: Vec<Message>,
}

impl Batch {
    fn new(family: u8) -> Self {
        let begin = Message::new(NFNL_MSG_BATCH_BEGIN, 0, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, 0);
        Self {
            family,
            messages: vec![begin],
        }
    }

    fn message(&mut self, kind: u16, flags: u16) -> &mut Message {
        let sequence = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.messages
            .push(Message::new(nft(kind), flags | NLM_F_ACK, self.family, 0, sequence));
        self.messages.last_mut().expect("pushed above")
    }

    fn table(&mut self, kind: u16, name: &str) {
        let flags = if kind == NFT_MSG_NEWTABLE { NLM_F_CREATE } else { 0 };
        self.message(kind, flags).text(NFTA_TABLE_NAME, name);
    }

    fn fresh_table(&mut self, name: &str) {
        self.table(NFT_MSG_NEWTABLE, name);
        self.table(NFT_MSG_DELTABLE, name);
        self.table(NFT_MSG_NEWTABLE, name);
    }

    fn base_chain(&mut self, table: &str, base: &Base) {
        self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE)
            .text(NFTA_CHAIN_TABLE, table)
            .text(NFTA_CHAIN_NAME, base.name)
            .nest(NFTA_CHAIN_HOOK, |m| {
                m.number(NFTA_HOOK_HOOKNUM, base.hook)
                    .put(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
            })
            .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
            .text(NFTA_CHAIN_TYPE, base.kind);
    }

    /// Writes a table of the redirect: its chains, and those that they lead to.
    fn fill(&mut self, table: &str, rules: &Rules, chains: &[Chain<'_>]) {
        self.table(NFT_MSG_NEWTABLE, table);
        let targets: BTreeSet<Target> = chains
            .iter()
            .flat_map(Chain::rules)
            .filter_map(|rule| Target::of(rules, rule.verdict))
            .collect();
        for chain in chains {
            self.base_chain(table, chain.base);
            if let Some((name, _)) = chain.jump {
                self.chain(table, name);
            }
        }
        for target in &targets {
            self.chain(table, target.chain());
        }
        for target in &targets {
            self.target(table, rules, *target);
        }
        for chain in chains {
            for rule in chain.ahead {
                self.rule(table, chain.base.name, |list| redirect(list, rules, rule));
            }
            if let Some((name, jumped)) = chain.jump {
                self.rule(table, chain.base.name, |list| {
                    counter(list);
                    verdict(list, Code::Jump(name));
                });
                for rule in jumped {
                    self.rule(table, name, |list| redirect(list, rules, rule));
                }
            }
            for rule in chain.behind {
                self.rule(table, chain.base.name, |list| redirect(list, rules, rule));
            }
        }
    }

    /// The rules of a chain that ends the way of a packet through the redirect.
    fn target(&mut self, table: &str, rules: &Rules, target: Target) {
        let mark = rules.transparent.as_ref().map_or(0, |transparent| transparent.mark);
        self.rule(table, target.chain(), |list| {
            counter(list);
            match target {
                Target::Outbound(port) | Target::Inbound(port) => redirect_to(list, port),
                Target::Drop => verdict(list, Code::Drop),
                Target::Divert => {
                    set_mark(list, mark);
                    verdict(list, Code::Accept);
                }
                Target::Transparent(port) => {
                    give_to(list, port);
                    set_mark(list, mark);
                    verdict(list, Code::Accept);
                }
            }
        });
        if let Target::Transparent(_) = target {
            // Nobody listens: what would go on would reach the application past its proxy (NET-153).
            self.rule(table, target.chain(), |list| {
                counter(list);
                reset(list);
            });
        }
    }

    /// A chain that others jump to.
    fn chain(&mut self, table: &str, name: &str) {
        self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE)
            .text(NFTA_CHAIN_TABLE, table)
            .text(NFTA_CHAIN_NAME, name);
    }

    fn rule(&mut self, table: &str, chain: &str, fill: impl FnOnce(&mut Message)) {
        self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, fill);
    }

    fn send(mut self) -> io::Result<()> {
        let answers = self.messages.len() - 1;
        self.messages.push(Message::new(
            NFNL_MSG_BATCH_END,
            0,
            NFPROTO_UNSPEC,
            NFNL_SUBSYS_NFTABLES,
            0,
        ));
        transact(self.messages, answers)
    }
}

/// The expressions of a rule of the redirect.
fn redirect(list: &mut Message, rules: &Rules, rule: &Rule) {
    rule.conditions.iter().for_each(|condition| matching(list, condition));
    counter(list);
    match (rule.verdict, Target::of(rules, rule.verdict)) {
        (_, Some(target)) => verdict(list, Code::Goto(target.chain())),
        (Verdict::Mark(mark), None) => set_mark(list, mark),
        (Verdict::Save, None) => save_mark(list),
        (Verdict::Restore, None) => restore_mark(list),
        (Verdict::Leave | Verdict::To(_) | Verdict::Transparent(_) | Verdict::Divert | Verdict::Drop, None) => {
            verdict(list, Code::Return);
        }
    }
}

/// Where the way of a packet through the redirect ends (NET-101).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Outbound(u16),
    Inbound(u16),
    Transparent(u16),
    Divert,
    Drop,
}

impl Target {
    fn of(rules: &Rules, verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::To(port) if port == rules.inbound_port => Some(Self::Inbound(port)),
            Verdict::To(port) => Some(Self::Outbound(port)),
            Verdict::Transparent(port) => Some(Self::Transparent(port)),
            Verdict::Divert => Some(Self::Divert),
            Verdict::Drop => Some(Self::Drop),
            Verdict::Leave | Verdict::Mark(_) | Verdict::Save | Verdict::Restore => None,
        }
    }

    fn chain(self) -> &'static str {
        match self {
            Self::Outbound(_) => "weft-redirect",
            Self::Inbound(_) => "weft-in-redirect",
            Self::Transparent(_) => "weft-tproxy",
            Self::Divert => "weft-divert",
            Self::Drop => "weft-drop",
        }
    }
}

fn nft(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_MANGLE: i32 = -150;
const NF_ACCEPT: u32 = 1;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
