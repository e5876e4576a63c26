//! Rules as nftables expressions, written in one transaction (include/uapi/linux/netfilter/nf_tables.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::layout::{Base, NAT_OUTPUT, NAT_PREROUTING, Table, Target, layout};
use super::netlink::{Message, attribute, dump, transact};
use super::{Cidr, Condition, Rule, Rules, TABLES, Verdict};
use expression::{
    Code, counter, destination_nat, draw, give_to, matching, redirect_to, reset, restore_mark, save_mark, set_mark,
    set_zone, verdict,
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
    /// No program of iptables is there.
    #[error(
        "{name} is not in {places}; give weft-init an image that has it (proxyInit.image), or its directory with \
         --iptables-dir"
    )]
    NoTool {
        /// What was looked for.
        name: String,
        /// Where.
        places: String,
    },
    /// iptables-legacy opens a raw socket.
    #[error(
        "iptables-legacy needs the capability NET_RAW, which weft-init has where interception.iptablesBinary is legacy"
    )]
    NetRaw,
    /// A program of iptables could not be run.
    #[error("run {program}: {source}")]
    Tool {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program of iptables refused.
    #[error("{program}: {said}")]
    Refused {
        /// Its name.
        program: String,
        /// What it said.
        said: String,
    },
    /// Neither back end can be used.
    #[error(
        "the kernel does not accept NAT chains of nftables in family inet ({nftables}), and iptables cannot be used: \
         {iptables}"
    )]
    NoBackend {
        /// What the kernel said.
        nftables: io::Error,
        /// Why not iptables.
        iptables: Box<ApplyError>,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the capability NET_ADMIN is needed",
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => {
            "; a kernel with nftables NAT in family inet (5.2), and for DNS capture with zones of connection tracking, is \
             needed"
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
    for table in TABLES {
        batch.table(NFT_MSG_NEWTABLE, table);
        batch.table(NFT_MSG_DELTABLE, table);
    }
    for table in layout(rules) {
        batch.fill(rules, &table);
    }
    batch.send().map_err(|source| ApplyError::Kernel {
        what: "write the redirect",
        source,
    })
}

/// Looks for the redirect of another mesh: a table of its own, or chains in those of iptables (NET-107).
///
/// # Errors
/// [`ApplyError::Foreign`] names it.
pub(super) fn refuse_foreign() -> Result<(), ApplyError> {
    let kernel = |what| move |source| ApplyError::Kernel { what, source };
    let tables = tables().map_err(kernel("list tables"))?;
    let chains = chains().map_err(kernel("list chains"))?;
    let is_foreign = |name: &String| is_foreign(name);
    let table = tables.into_iter().find(is_foreign).map(|name| format!("table {name}"));
    match table.or_else(|| chains.into_iter().find(is_foreign).map(|name| format!("chain {name}"))) {
        Some(name) => Err(ApplyError::Foreign(name)),
        None => Ok(()),
    }
}

/// Names of tables or chains that belong to the redirect of another mesh.
pub(super) fn is_foreign(name: &str) -> bool {
    ["istio-", "ISTIO_", "PROXY_INIT_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Names of all tables.
///
/// # Errors
/// That of the kernel.
pub(super) fn tables() -> io::Result<Vec<String>> {
    names(NFT_MSG_GETTABLE, NFTA_TABLE_NAME)
}

/// Names of all chains.
///
/// # Errors
/// That of the kernel.
pub(super) fn chains() -> io::Result<Vec<String>> {
    names(NFT_MSG_GETCHAIN, NFTA_CHAIN_NAME)
}

/// Whether the kernel accepts a chain for NAT in family inet; the transaction takes away what it adds.
///
/// # Errors
/// That of the kernel.
pub(super) fn probe() -> io::Result<()> {
    let mut batch = Batch::new(NFPROTO_INET);
    batch.table(NFT_MSG_NEWTABLE, PROBE);
    batch.base_chain(PROBE, &NAT_OUTPUT);
    batch.table(NFT_MSG_DELTABLE, PROBE);
    batch.send()
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
    fn fill(&mut self, rules: &Rules, filled: &Table<'_>) {
        let table = filled.name;
        self.table(NFT_MSG_NEWTABLE, table);
        let targets = filled.targets(rules);
        for chain in &filled.chains {
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
        for chain in &filled.chains {
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
                Target::Outbound(port) | Target::Inbound(port) | Target::Names(port) => redirect_to(list, port),
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
        (Verdict::Zone(zone), None) => {
            set_zone(list, zone);
            verdict(list, Code::Return);
        }
        (Verdict::Leave | Verdict::To(_) | Verdict::Transparent(_) | Verdict::Divert | Verdict::Drop, None) => {
            verdict(list, Code::Return);
        }
    }
}

fn nft(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

const PROBE: &str = "weft-probe";
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
