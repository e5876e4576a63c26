//! Which of the kernel's two interfaces gets the rules (NET-100), and that the other one keeps none.

use std::path::Path;

use super::iptables::tool::{Places, Tool, Variant, has_net_raw};
use super::iptables::{self, Family};
use super::nftables::{self, ApplyError};
use super::{Arguments, Rules, TABLE, TABLES};

/// Who gets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// nftables where the kernel has NAT in its family inet (5.2 or newer), else iptables.
    Auto,
    /// nftables, over netlink.
    Nftables,
    /// iptables, by its programs.
    Iptables,
}

/// The back end of a run.
#[derive(Debug)]
pub(super) enum Chosen {
    Nftables,
    Iptables(Tool),
}

/// The back end that the parameters ask for, or the kernel.
///
/// # Errors
/// None can be used.
pub(super) fn choose(arguments: &Arguments) -> Result<Chosen, ApplyError> {
    decide(arguments.backend, nftables::probe, || {
        places(arguments).choose(arguments.iptables_binary)
    })
}

fn decide(
    backend: Backend,
    probe: impl FnOnce() -> std::io::Result<()>,
    tool: impl FnOnce() -> Result<Tool, ApplyError>,
) -> Result<Chosen, ApplyError> {
    match backend {
        Backend::Nftables => Ok(Chosen::Nftables),
        Backend::Iptables => tool().map(Chosen::Iptables),
        Backend::Auto => match probe() {
            Ok(()) => Ok(Chosen::Nftables),
            // Says nothing about the kernel: the same would happen to iptables.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(Chosen::Nftables),
            Err(nftables) => tool().map(Chosen::Iptables).map_err(|e| ApplyError::NoBackend {
                nftables,
                iptables: Box::new(e),
            }),
        },
    }
}

/// Where the programs of iptables are looked for.
fn places(arguments: &Arguments) -> Places {
    Places::new(arguments.iptables_dir.as_deref(), arguments.iptables_lock.as_deref())
}

/// Looks for the redirect of another mesh, whoever wrote it (NET-107).
///
/// # Errors
/// [`ApplyError::Foreign`] names it.
pub(super) fn refuse_foreign(arguments: &Arguments, chosen: &Chosen) -> Result<(), ApplyError> {
    match (nftables::refuse_foreign(), chosen) {
        // Then nothing of it is there.
        (Err(ApplyError::Kernel { .. }), Chosen::Iptables(_)) => {}
        (result, _) => result?,
    }
    match legacy(arguments).and_then(|tool| iptables::foreign(&tool)) {
        Some(chain) => Err(ApplyError::Foreign(format!("chain {chain}"))),
        None => Ok(()),
    }
}

/// Writes the rules, and takes those of the other back end away when they are in place.
///
/// # Errors
/// See [`ApplyError`].
pub(super) fn apply(arguments: &Arguments, rules: &Rules, chosen: &Chosen) -> Result<(), ApplyError> {
    match chosen {
        Chosen::Nftables => {
            let outdated = written_by_iptables(arguments)?;
            nftables::apply(rules)?;
            outdated.iter().try_for_each(remove_written)
        }
        Chosen::Iptables(tool) => {
            iptables::apply(rules, tool, arguments.reconcile)?;
            let mut others = written_by_iptables(arguments)?;
            others.retain(|other| other.variant != tool.variant);
            others.iter().try_for_each(remove_written)?;
            remove_tables()
        }
    }
}

/// Removes all rules of Weft's, whoever wrote them (NET-109).
///
/// # Errors
/// See [`ApplyError`].
pub(super) fn remove(arguments: &Arguments) -> Result<(), ApplyError> {
    remove_tables()?;
    written_by_iptables(arguments)?.iter().try_for_each(remove_written)
}

/// Whether rules of Weft's are there, whoever wrote them.
///
/// # Errors
/// See [`ApplyError`].
pub(super) fn holds_rules(arguments: &Arguments) -> Result<bool, ApplyError> {
    let by_nftables = nftables::tables().unwrap_or_default().iter().any(|name| name == TABLE);
    Ok(by_nftables || !written_by_iptables(arguments)?.is_empty())
}

/// The rules as they would be written.
pub(super) fn text(rules: &Rules, chosen: &Chosen) -> String {
    match chosen {
        Chosen::Nftables => rules.to_string(),
        Chosen::Iptables(tool) => Family::ALL
            .iter()
            .map(|family| {
                let program = tool.name(*family, "restore");
                format!(
                    "# {program} --noflush\n{}",
                    iptables::script(&iptables::tables(rules, *family))
                )
            })
            .collect(),
    }
}

fn remove_tables() -> Result<(), ApplyError> {
    // A kernel without nftables has none.
    let present = nftables::tables().unwrap_or_default();
    for table in TABLES {
        if present.iter().any(|name| name == table) {
            nftables::remove_table(table)?;
        }
    }
    Ok(())
}

fn remove_written(tool: &Tool) -> Result<(), ApplyError> {
    Family::ALL
        .iter()
        .try_for_each(|family| iptables::remove(tool, *family))
}

/// The variants of iptables that hold chains of Weft's.
///
/// # Errors
/// There are such chains and no program that could remove them.
fn written_by_iptables(arguments: &Arguments) -> Result<Vec<Tool>, ApplyError> {
    let mut out = Vec::new();
    if nftables::chains().is_ok_and(|chains| chains.iter().any(|chain| iptables::is_own(chain))) {
        out.push(places(arguments).require(Variant::Nft)?);
    }
    out.extend(legacy(arguments).filter(|tool| iptables::has_rules(tool, true)));
    Ok(out)
}

/// The older variant, where its tables are in use and can be read.
fn legacy(arguments: &Arguments) -> Option<Tool> {
    let used = ["ip", "ip6"].iter().any(|family| {
        let names = std::fs::read_to_string(Path::new("/proc/thread-self/net").join(format!("{family}_tables_names")));
        names.is_ok_and(|names| !names.trim().is_empty())
    });
    (used && has_net_raw()).then(|| places(arguments).tool(Variant::Legacy))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    fn no_tool() -> Result<Tool, ApplyError> {
        let nowhere = Places::new(Some(Path::new("/nonexistent")), None);
        nowhere.choose(None)
    }

    // spec: NET-100
    #[test]
    fn auto_is_nftables_where_the_kernel_has_it_else_iptables() {
        let kernel = |answer: Result<(), ErrorKind>| move || answer.map_err(Error::from);
        let never = || -> Result<Tool, ApplyError> { panic!("no program is looked for") };
        let auto = decide(Backend::Auto, kernel(Ok(())), never).expect("nftables");
        assert!(matches!(auto, Chosen::Nftables));
        let forced = decide(Backend::Nftables, kernel(Err(ErrorKind::NotFound)), never).expect("nftables");
        assert!(matches!(forced, Chosen::Nftables));
        let denied = decide(Backend::Auto, kernel(Err(ErrorKind::PermissionDenied)), never).expect("nftables");
        assert!(matches!(denied, Chosen::Nftables));
        // Without either the message names both, and what would help.
        let neither = decide(Backend::Auto, kernel(Err(ErrorKind::Unsupported)), no_tool).expect_err("no tool");
        let said = neither.to_string();
        for part in ["family inet", "iptables-nft-restore", "/nonexistent", "proxyInit.image"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let asked = decide(Backend::Iptables, kernel(Ok(())), no_tool).expect_err("no tool");
        assert!(matches!(asked, ApplyError::NoTool { .. }), "{asked}");
    }
}
