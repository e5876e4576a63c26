//! Where the rules stand (NET-101, NET-102): tables, the chains that the kernel calls, and those that they lead to. Both
//! back ends write this one layout.

use std::collections::BTreeSet;

use super::{Rule, Rules, TABLE, Verdict, Zones, names, transparent};

/// A table and its chains.
pub(super) struct Table<'a> {
    /// Name among the tables of nftables.
    pub(super) name: &'static str,
    /// Chains that the kernel calls.
    pub(super) chains: Vec<Chain<'a>>,
}

impl Table<'_> {
    /// Where the ways through the chains of this table end.
    pub(super) fn targets(&self, rules: &Rules) -> BTreeSet<Target> {
        let all = self.chains.iter().flat_map(Chain::rules);
        all.filter_map(|rule| Target::of(rules, rule.verdict)).collect()
    }
}

/// A chain that the kernel calls, and the one that it jumps to.
pub(super) struct Chain<'a> {
    pub(super) base: &'static Base,
    /// Rules in front of the jump.
    pub(super) ahead: &'a [Rule],
    /// Name and rules of the chain that is jumped to.
    pub(super) jump: Option<(&'static str, &'a [Rule])>,
    /// Rules behind the jump.
    pub(super) behind: &'a [Rule],
}

impl Chain<'_> {
    fn rules(&self) -> impl Iterator<Item = &Rule> {
        let jumped = self.jump.map_or(&[][..], |(_, rules)| rules);
        self.ahead.iter().chain(jumped).chain(self.behind)
    }
}

/// A chain that the kernel calls.
pub(super) struct Base {
    pub(super) name: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) kind: &'static str,
}

/// The tables of the rules; only those that hold some.
pub(super) fn layout(rules: &Rules) -> Vec<Table<'_>> {
    let jump = |base, name, rules| Chain {
        base,
        ahead: &[],
        jump: Some((name, rules)),
        behind: &[],
    };
    let outbound = jump(&NAT_OUTPUT, "weft-output", &rules.outbound[..]);
    let (mut nat, mut mangle) = (Vec::new(), Vec::new());
    match &rules.transparent {
        None => {
            nat.push(jump(&NAT_PREROUTING, "weft-inbound", &rules.inbound[..]));
            if !rules.dropping.is_empty() {
                mangle.push(Chain {
                    base: &MANGLE_PREROUTING,
                    ahead: &rules.dropping,
                    jump: None,
                    behind: &[],
                });
            }
        }
        Some(transparent) => {
            mangle.push(Chain {
                ahead: &rules.dropping,
                behind: &transparent.saving,
                ..jump(&MANGLE_PREROUTING, "weft-inbound", &rules.inbound[..])
            });
            mangle.push(jump(&MANGLE_OUTPUT, "weft-output", &transparent.marking[..]));
        }
    }
    nat.push(outbound);
    let raw = rules.zones.as_ref().map(|Zones { arriving, leaving }| {
        vec![
            jump(&RAW_PREROUTING, "weft-inbound", arriving),
            jump(&RAW_OUTPUT, "weft-output", leaving),
        ]
    });
    let raw = raw.unwrap_or_default();
    let tables =
        [(TABLE, nat), (transparent::RULES, mangle), (names::ZONES, raw)].map(|(name, chains)| Table { name, chains });
    tables.into_iter().filter(|table| !table.chains.is_empty()).collect()
}

/// Where the way of a packet through the redirect ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Outbound(u16),
    Inbound(u16),
    Names(u16),
    Transparent(u16),
    Divert,
    Drop,
}

impl Target {
    /// `None`: the rule itself says what is done.
    pub(super) fn of(rules: &Rules, verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::To(port) if port == rules.inbound_port => Some(Self::Inbound(port)),
            Verdict::To(port) if port == rules.dns_port => Some(Self::Names(port)),
            Verdict::To(port) => Some(Self::Outbound(port)),
            Verdict::Transparent(port) => Some(Self::Transparent(port)),
            Verdict::Divert => Some(Self::Divert),
            Verdict::Drop => Some(Self::Drop),
            Verdict::Leave | Verdict::Mark(_) | Verdict::Save | Verdict::Restore | Verdict::Zone(_) => None,
        }
    }

    pub(super) fn chain(self) -> &'static str {
        match self {
            Self::Outbound(_) => "weft-redirect",
            Self::Inbound(_) => "weft-in-redirect",
            Self::Names(_) => "weft-output-dns",
            Self::Transparent(_) => "weft-tproxy",
            Self::Divert => "weft-divert",
            Self::Drop => "weft-drop",
        }
    }
}

pub(super) const NAT_PREROUTING: Base = Base {
    name: "prerouting",
    hook: HOOK_PREROUTING,
    priority: PRIORITY_DSTNAT,
    kind: "nat",
};
pub(super) const NAT_OUTPUT: Base = Base {
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
/// In front of the tracking of connections.
const RAW_PREROUTING: Base = Base {
    name: "prerouting",
    hook: HOOK_PREROUTING,
    priority: PRIORITY_RAW,
    kind: "filter",
};
const RAW_OUTPUT: Base = Base {
    name: "output",
    hook: HOOK_OUTPUT,
    ..RAW_PREROUTING
};
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_RAW: i32 = -300;
