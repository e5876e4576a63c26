//! What `iptables-save` says is there.

use super::{Line, Table};

/// Tables with their chains and rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct State {
    tables: Vec<Saved>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Saved {
    name: String,
    chains: Vec<String>,
    rules: Vec<Line>,
}

impl Saved {
    fn own_chains(&self) -> impl Iterator<Item = &String> {
        self.chains.iter().filter(|chain| is_own(chain))
    }

    /// Rules in chains of others that lead to Weft's.
    fn jumps(&self) -> impl Iterator<Item = &Line> {
        self.rules
            .iter()
            .filter(|line| !is_own(&line.chain) && line.target().is_some_and(is_own))
    }

    fn has_own(&self) -> bool {
        self.own_chains().next().is_some() || self.jumps().next().is_some()
    }

    fn count(&self, chain: &str) -> usize {
        let lines = self.rules.iter().filter(|line| line.chain == chain);
        lines
            .filter(|line| is_own(chain) || line.target().is_some_and(is_own))
            .count()
    }
}

impl Line {
    /// The chain that it leads to.
    fn target(&self) -> Option<&str> {
        let mut words = self.rest.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g"));
        words.nth(1)
    }
}

impl State {
    /// Lines that are none of tables, chains and rules are skipped.
    pub(super) fn parse(text: &str) -> Self {
        let mut tables: Vec<Saved> = Vec::new();
        for line in text.lines().map(str::trim_end) {
            if let Some(name) = line.strip_prefix('*') {
                tables.push(Saved {
                    name: name.to_owned(),
                    chains: Vec::new(),
                    rules: Vec::new(),
                });
                continue;
            }
            let Some(table) = tables.last_mut() else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                table.chains.extend(chain.split(' ').next().map(ToOwned::to_owned));
            } else if let Some((chain, rest)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
                table.rules.push(Line {
                    chain: chain.to_owned(),
                    rest: rest.to_owned(),
                });
            }
        }
        Self { tables }
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &str> {
        self.tables
            .iter()
            .flat_map(|table| table.chains.iter().map(String::as_str))
    }

    pub(super) fn has_rules(&self) -> bool {
        self.tables.iter().any(|table| !table.rules.is_empty())
    }

    pub(super) fn has_own(&self) -> bool {
        self.tables.iter().any(Saved::has_own)
    }

    pub(super) fn has_line(&self, table: &str, line: &Line) -> bool {
        self.tables
            .iter()
            .any(|saved| saved.name == table && saved.rules.contains(line))
    }

    /// Whether exactly the chains of `tables` are there, with as many rules in each, and as many jumps to them.
    pub(super) fn is_counted_as(&self, tables: &[Table]) -> bool {
        let of = |name: &str| tables.iter().find(|table| table.name == name);
        let others_empty = self
            .tables
            .iter()
            .all(|saved| of(&saved.name).is_some() || !saved.has_own());
        others_empty
            && tables.iter().all(|table| {
                let Some(saved) = self.tables.iter().find(|saved| saved.name == table.name) else {
                    return table.rules.is_empty();
                };
                let as_many = |chain: &String| {
                    let wanted = table.rules.iter().filter(|line| line.chain == *chain).count();
                    saved.count(chain) == wanted
                };
                let mut chains: Vec<&String> = saved.chains.iter().collect();
                chains.extend(table.rules.iter().map(|line| &line.chain));
                saved.own_chains().all(|chain| table.chains.contains(chain))
                    && table.chains.iter().all(|chain| saved.chains.contains(chain))
                    && chains.into_iter().all(as_many)
            })
    }

    /// What takes all of Weft's away.
    pub(super) fn removal(&self) -> String {
        let mut out = String::new();
        for table in self.tables.iter().filter(|table| table.has_own()) {
            out.push_str(&format!("*{}\n", table.name));
            for Line { chain, rest } in table.jumps() {
                out.push_str(&format!("-D {chain} {rest}\n"));
            }
            for command in ["-F", "-X"] {
                for chain in table.own_chains() {
                    out.push_str(&format!("{command} {chain}\n"));
                }
            }
            out.push_str("COMMIT\n");
        }
        out
    }

    /// What brings all of Weft's back as it was.
    pub(super) fn restoration(&self) -> String {
        let mut out = String::new();
        for table in self.tables.iter().filter(|table| table.has_own()) {
            out.push_str(&format!("*{}\n", table.name));
            for chain in table.own_chains() {
                out.push_str(&format!(":{chain} - [0:0]\n"));
            }
            let inner = table.rules.iter().filter(|line| is_own(&line.chain));
            for Line { chain, rest } in table.jumps().chain(inner) {
                out.push_str(&format!("-A {chain} {rest}\n"));
            }
            out.push_str("COMMIT\n");
        }
        out
    }

    /// The chain that drops everything while rules are replaced, and what leads to it.
    pub(super) fn guard(&self) -> Self {
        self.filtered(true)
    }

    /// Everything but that.
    pub(super) fn without_guard(&self) -> Self {
        self.filtered(false)
    }

    fn filtered(&self, guard: bool) -> Self {
        let mut tables = self.tables.clone();
        for table in &mut tables {
            let is_raw = table.name == "raw";
            let is_guard = |name: &str| is_raw && name == "WEFT_DROP";
            table.chains.retain(|chain| is_guard(chain) == guard);
            table
                .rules
                .retain(|line| (is_guard(&line.chain) || line.target().is_some_and(is_guard)) == guard);
        }
        Self { tables }
    }
}

/// Chains of Weft's are told by their names.
pub(in crate::init) fn is_own(chain: &str) -> bool {
    chain.starts_with("WEFT_")
}
