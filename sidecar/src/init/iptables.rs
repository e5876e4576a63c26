//! The redirect through iptables (NET-102 to NET-105), for kernels that know no NAT in nftables' family inet.
//!
//! The same rules as those of nftables, in the same layout; written by `iptables-restore`, one call per family, each
//! table at once.

use super::layout::{Target, layout};
use super::nftables::{ApplyError, is_foreign};
use super::{Condition, Owner, Rule, Rules, Verdict};
use state::State;
pub(super) use state::is_own;
use tool::Tool;

mod state;
pub(super) mod tool;

/// Address family of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: std::net::IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// A table as `iptables-restore` reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    name: &'static str,
    /// Chains of Weft's.
    chains: Vec<String>,
    rules: Vec<Line>,
}

/// A rule: its chain, and what follows behind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    chain: String,
    rest: String,
}

/// The tables of a family.
pub(super) fn tables(rules: &Rules, family: Family) -> Vec<Table> {
    let mark = rules.transparent.as_ref().map_or(0, |transparent| transparent.mark);
    let mut out = Vec::new();
    for table in layout(rules) {
        let targets = table.targets(rules);
        let mut written = Table {
            name: table.name.strip_prefix("weft-").unwrap_or(table.name),
            chains: Vec::new(),
            rules: Vec::new(),
        };
        let of = |chain: &str, rule: &Rule| {
            let rest = text(rules, rule, family)?;
            let chain = chain.to_owned();
            Some(Line { chain, rest })
        };
        for chain in &table.chains {
            let base = spelled(chain.base.name);
            // Chains of the kernel's get nothing but jumps (NET-102).
            written
                .rules
                .extend(chain.ahead.iter().filter_map(|rule| of(&base, rule)));
            let Some((name, jumped)) = chain.jump else { continue };
            let name = spelled(name);
            let rest = format!("-j {name}");
            written.rules.push(Line { chain: base, rest });
            // Behind the jump nothing is looked at but what had its mark when it came, which the chain lets go first.
            let inner = chain.behind.iter().chain(jumped);
            written.rules.extend(inner.filter_map(|rule| of(&name, rule)));
            written.chains.push(name);
        }
        for target in targets {
            let chain = spelled(target.chain());
            let rests = match target {
                Target::Outbound(port) | Target::Inbound(port) => vec![format!("-p tcp -j REDIRECT --to-ports {port}")],
                Target::Names(port) => ["tcp", "udp"]
                    .map(|protocol| format!("-p {protocol} -j REDIRECT --to-ports {port}"))
                    .to_vec(),
                Target::Drop => vec!["-j DROP".to_owned()],
                Target::Divert => vec![format!("-j MARK --set-mark {mark}"), "-j ACCEPT".to_owned()],
                // Drops what nobody listens for.
                Target::Transparent(port) => {
                    vec![format!("-p tcp -j TPROXY --on-port {port} --tproxy-mark {mark}")]
                }
            };
            written.rules.extend(rests.into_iter().map(|rest| Line {
                chain: chain.clone(),
                rest,
            }));
            written.chains.push(chain);
        }
        out.push(written);
    }
    out
}

/// Text of the tables, to be added to what is there; chains of Weft's are emptied first.
pub(super) fn script(tables: &[Table]) -> String {
    let mut out = String::new();
    for table in tables {
        out.push_str(&format!("*{}\n", table.name));
        for chain in &table.chains {
            out.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for Line { chain, rest } in &table.rules {
            out.push_str(&format!("-A {chain} {rest}\n"));
        }
        out.push_str("COMMIT\n");
    }
    out
}

/// `None` for a rule about addresses of the other family.
fn text(rules: &Rules, rule: &Rule, family: Family) -> Option<String> {
    let protocol = if rule.conditions.contains(&Condition::Udp) {
        "udp"
    } else {
        "tcp"
    };
    // One match for all of them: a second one of the same kind is not told from the first when rules are compared.
    let others: Vec<String> = rule.conditions.iter().filter_map(other_port).collect();
    let mut words = Vec::new();
    for condition in &rule.conditions {
        if others.len() > 1 && other_port(condition).is_some() {
            let ports = format!("-m multiport ! --dports {}", others.join(","));
            if !words.contains(&ports) {
                words.push(ports);
            }
            continue;
        }
        let not = |other: &bool| if *other { "! " } else { "" };
        words.push(match condition {
            Condition::Input(name) => format!("-i {name}"),
            Condition::Output(name) => format!("-o {name}"),
            Condition::Tcp | Condition::Udp => format!("-p {protocol}"),
            Condition::Port { port, other } => format!("-m {protocol} {}--dport {port}", not(other)),
            Condition::SourcePort(port) => format!("-m {protocol} --sport {port}"),
            Condition::Source(range) if family.has(range.address) => format!("-s {range}"),
            Condition::Destination { range, other } if family.has(range.address) => format!("{}-d {range}", not(other)),
            Condition::Source(_) | Condition::Destination { .. } => return None,
            Condition::Owner { owner, other } => match owner {
                Owner::Uid(id) => format!("-m owner {}--uid-owner {id}", not(other)),
                Owner::Gid(id) => format!("-m owner {}--gid-owner {id}", not(other)),
                Owner::Mark(mark) => format!("-m mark {}--mark {mark}", not(other)),
            },
            Condition::Mark { mark, other } => format!("-m mark {}--mark {mark}", not(other)),
            Condition::ConnectionMark(mark) => format!("-m connmark --mark {mark}"),
            Condition::Established => "-m conntrack --ctstate ESTABLISHED,RELATED".to_owned(),
            Condition::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
        });
    }
    words.push(match (rule.verdict, Target::of(rules, rule.verdict)) {
        (_, Some(target)) => format!("-g {}", spelled(target.chain())),
        (Verdict::Mark(mark), None) => format!("-j MARK --set-mark {mark}"),
        (Verdict::Save, None) => "-j CONNMARK --save-mark".to_owned(),
        (Verdict::Restore, None) => "-j CONNMARK --restore-mark".to_owned(),
        // The first zone counts, whatever follows.
        (Verdict::Zone(zone), None) => format!("-j CT --zone {zone}"),
        (Verdict::Leave | Verdict::To(_) | Verdict::Transparent(_) | Verdict::Divert | Verdict::Drop, None) => {
            "-j RETURN".to_owned()
        }
    });
    Some(words.join(" "))
}

/// The port that a packet must not go to.
fn other_port(condition: &Condition) -> Option<String> {
    match condition {
        Condition::Port { port, other: true } => Some(port.to_string()),
        _ => None,
    }
}

/// The name of a chain as iptables has it.
fn spelled(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// Sets the redirect; leaves one that is complete alone (NET-104), replaces one that differs behind a guard that lets
/// nothing pass (NET-105).
///
/// # Errors
/// What was added is gone then, and what was there before is back.
pub(super) fn apply(rules: &Rules, tool: &Tool, reconcile: bool) -> Result<(), ApplyError> {
    let mut wanted = Vec::new();
    for family in tool.families()? {
        wanted.push((family, tables(rules, family), State::parse(&tool.save(family)?)));
    }
    let mut complete = true;
    for (family, tables, state) in &wanted {
        complete = complete && state.is_counted_as(tables) && tool.restore(*family, &checks(tables), true).is_ok();
    }
    if complete {
        return Ok(());
    }
    let residue = wanted.iter().any(|(.., state)| state.has_own());
    if residue && reconcile {
        return replace(tool, &wanted);
    }
    if residue {
        eprintln!(
            "weft-proxy init: chains of an earlier redirect differ and are left there; interception.reconcile: true \
             replaces them"
        );
    }
    let result = wanted.iter().try_for_each(|(family, tables, state)| {
        let missing = without_jumps_of(tables, state);
        tool.restore(*family, &script(&missing), false)
    });
    result.inspect_err(|_| {
        for (family, ..) in &wanted {
            let _ = remove(tool, *family);
        }
    })
}

/// A family, what it should have, and what it has.
type Wanted = (Family, Vec<Table>, State);

fn replace(tool: &Tool, wanted: &[Wanted]) -> Result<(), ApplyError> {
    for (family, ..) in wanted {
        tool.restore(*family, GUARD, false)?;
    }
    let result = wanted.iter().try_for_each(|(family, tables, state)| {
        tool.restore(*family, &state.without_guard().removal(), false)?;
        tool.restore(*family, &script(tables), false)
    });
    if result.is_err() {
        // Without the earlier rules the guards stay: nothing passes then, which is what half a redirect must do.
        for (family, _, state) in wanted {
            let now = State::parse(&tool.save(*family)?);
            tool.restore(*family, &now.without_guard().removal(), false)?;
            tool.restore(*family, &state.without_guard().restoration(), false)?;
        }
    }
    for (family, ..) in wanted {
        let now = State::parse(&tool.save(*family)?);
        tool.restore(*family, &now.guard().removal(), false)?;
    }
    result
}

/// Removes all of Weft's rules; succeeds when there are none (NET-109).
///
/// # Errors
/// That of the tool.
pub(super) fn remove(tool: &Tool, family: Family) -> Result<(), ApplyError> {
    let state = State::parse(&tool.save(family)?);
    if state.has_own() {
        tool.restore(family, &state.removal(), false)?;
    }
    Ok(())
}

/// Whether chains of Weft's are among those of a tool.
pub(super) fn has_rules(tool: &Tool, own_only: bool) -> bool {
    Family::ALL.iter().any(|family| {
        tool.save(*family).is_ok_and(|text| {
            let state = State::parse(&text);
            state.has_own() || (!own_only && state.has_rules())
        })
    })
}

/// The chain of another mesh's redirect among those of a tool (NET-107).
pub(super) fn foreign(tool: &Tool) -> Option<String> {
    let saved = Family::ALL.iter().filter_map(|family| tool.save(*family).ok());
    let mut states = saved.map(|text| State::parse(&text));
    states.find_map(|state| state.chains().find(|chain| is_foreign(chain)).map(ToOwned::to_owned))
}

/// Asks for each rule.
fn checks(tables: &[Table]) -> String {
    let bare: Vec<Table> = tables
        .iter()
        .map(|table| Table {
            chains: Vec::new(),
            ..table.clone()
        })
        .collect();
    script(&bare).replace("\n-A ", "\n-C ")
}

/// The tables without jumps that are there already: a jump that stands twice is one too many.
fn without_jumps_of(tables: &[Table], state: &State) -> Vec<Table> {
    let mut out = tables.to_vec();
    for table in &mut out {
        table
            .rules
            .retain(|line| is_own(&line.chain) || !state.has_line(table.name, line));
    }
    out
}

/// Drops everything while the redirect is replaced.
const GUARD: &str = "*raw\n:WEFT_DROP - [0:0]\n-A WEFT_DROP -j DROP\n-I PREROUTING 1 -j WEFT_DROP\n-I OUTPUT 1 -j \
                     WEFT_DROP\nCOMMIT\n";

#[cfg(test)]
mod tests;
