//! The programs of iptables: where they are, which of the two variants is used (NET-103), and how they are run.

use std::ffi::OsString;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::super::nftables::ApplyError;
use super::{Family, has_rules};

/// Variants of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Writes into nftables.
    Nft,
    /// Writes into the kernel's older tables; needs `NET_RAW`.
    Legacy,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// One variant's programs.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) variant: Variant,
    directories: Vec<PathBuf>,
    lock: Option<PathBuf>,
}

/// Where programs are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Directories.
    pub(crate) directories: Vec<PathBuf>,
    /// File of the lock; `None`: where the program has it.
    pub(crate) lock: Option<PathBuf>,
}

impl Places {
    /// A directory alone, or those of `PATH` and the usual ones.
    pub(crate) fn new(directory: Option<&Path>, lock: Option<&Path>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = match directory {
            Some(directory) => vec![directory.to_owned()],
            None => std::env::split_paths(&path)
                .filter(|part| part.is_absolute())
                .chain(USUAL.map(PathBuf::from))
                .collect(),
        };
        // The root file system of the init container is read-only, the proxy's state is not.
        let state = Path::new(LOCK);
        let writable = state.parent().is_some_and(Path::is_dir).then(|| state.to_owned());
        Self {
            directories,
            lock: lock.map(ToOwned::to_owned).or(writable),
        }
    }

    /// The programs of a variant, if they are there.
    pub(crate) fn tool(&self, variant: Variant) -> Option<Tool> {
        let tool = Tool {
            variant,
            directories: self.directories.clone(),
            lock: self.lock.clone(),
        };
        tool.command(Family::V4, "restore").is_some().then_some(tool)
    }

    /// The variant to use: the one that is asked for; else the one that has rules here, first of all Weft's; else the
    /// one that can write a rule.
    ///
    /// # Errors
    /// None can be used.
    pub(crate) fn choose(&self, forced: Option<Variant>) -> Result<Tool, ApplyError> {
        let raw = has_net_raw();
        match forced {
            Some(Variant::Legacy) if !raw => return Err(ApplyError::NetRaw),
            Some(variant) => {
                let tool = self.require(variant)?;
                return tool.prove().map(|()| tool);
            }
            None => {}
        }
        let found = [Variant::Nft, Variant::Legacy].map(|variant| self.tool(variant));
        let legacy_unused = !raw && found[1].is_some();
        let usable: Vec<Tool> = found
            .into_iter()
            .flatten()
            .filter(|tool| tool.variant == Variant::Nft || raw)
            .collect();
        for own_only in [true, false] {
            if let Some(tool) = usable.iter().find(|tool| has_rules(tool, own_only)) {
                return Ok(tool.clone());
            }
        }
        let mut last = None;
        for tool in usable {
            match tool.prove() {
                Ok(()) => return Ok(tool),
                Err(e) => last = Some(e),
            }
        }
        Err(match last {
            _ if legacy_unused => ApplyError::NetRaw,
            Some(e) => e,
            None => self.missing(None),
        })
    }

    /// As [`Self::tool`], and an error where they are not.
    pub(crate) fn require(&self, variant: Variant) -> Result<Tool, ApplyError> {
        self.tool(variant).ok_or_else(|| self.missing(Some(variant)))
    }

    fn missing(&self, variant: Option<Variant>) -> ApplyError {
        let name = variant.map_or(
            "iptables-nft-restore or iptables-legacy-restore".to_owned(),
            |variant| format!("iptables-{variant}-restore"),
        );
        let places: Vec<String> = self.directories.iter().map(|d| d.display().to_string()).collect();
        ApplyError::NoTool {
            name,
            places: places.join(", "),
        }
    }
}

impl Tool {
    /// The families whose rules are written: without NAT for IPv6 in the kernel only IPv4, unless the pod has an address
    /// that would then be open (NET-121).
    pub(super) fn families(&self) -> Result<Vec<Family>, ApplyError> {
        match self.probe(Family::V6) {
            Ok(()) => Ok(Family::ALL.to_vec()),
            Err(e) if has_global_ipv6() => Err(e),
            Err(e) => {
                eprintln!("weft-proxy init: no redirect for IPv6, which this pod does not have: {e}");
                Ok(vec![Family::V4])
            }
        }
    }

    /// Shows that rules of the variant can be written here.
    fn prove(&self) -> Result<(), ApplyError> {
        self.probe(Family::V4)
    }

    /// Writes a rule that no packet comes to, and takes it away.
    fn probe(&self, family: Family) -> Result<(), ApplyError> {
        self.restore(family, PROBE, false)?;
        self.restore(family, UNPROBE, false)
    }

    /// What is there, in the form of `iptables-save`.
    pub(super) fn save(&self, family: Family) -> Result<String, ApplyError> {
        self.run(family, "save", &[], "")
    }

    /// Hands text to `iptables-restore`; `check`: it changes nothing.
    pub(super) fn restore(&self, family: Family, text: &str, check: bool) -> Result<(), ApplyError> {
        if text.is_empty() {
            return Ok(());
        }
        let mut arguments = vec!["--noflush"];
        if self.variant == Variant::Legacy {
            arguments.extend(["-w", LOCK_SECONDS]);
            // The other variant asks the kernel at its commit alone, and changes nothing when there is nothing to change.
            arguments.extend(check.then_some("--test"));
        }
        self.run(family, "restore", &arguments, text).map(drop)
    }

    fn run(&self, family: Family, verb: &str, arguments: &[&str], input: &str) -> Result<String, ApplyError> {
        let program = self.name(family, verb);
        let failed = |source| ApplyError::Tool {
            program: program.clone(),
            source,
        };
        let mut command = self
            .command(family, verb)
            .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        if let Some(lock) = &self.lock {
            command.env("XTABLES_LOCKFILE", lock);
        }
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // It reads all before it says more than a line; who has ended does not read, which its exit code tells.
        let mut stdin = child.stdin.take();
        let errors = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                let mut said = Vec::new();
                let _ = stderr.take(LONGEST_ERROR).read_to_end(&mut said);
                said
            })
        });
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(input.as_bytes());
        }
        drop(stdin);
        let output = child.wait_with_output().map_err(failed)?;
        let said = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&said);
        let lines = said.lines().map(str::trim).filter(|line| {
            let is_noise = line.is_empty() || line.starts_with('#') || line.starts_with("Try `");
            !is_noise
        });
        Err(ApplyError::Refused {
            program,
            said: lines.collect::<Vec<_>>().join("; "),
        })
    }

    pub(crate) fn name(&self, family: Family, verb: &str) -> String {
        let family = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{family}-{}-{verb}", self.variant)
    }

    /// By its own name, or as a part of the program that is all of them.
    fn command(&self, family: Family, verb: &str) -> Option<Command> {
        let name = self.name(family, verb);
        let whole = format!("xtables-{}-multi", self.variant);
        self.directories.iter().find_map(|directory| {
            let single = directory.join(&name);
            if single.is_file() {
                return Some(Command::new(single));
            }
            let multi = directory.join(&whole);
            multi.is_file().then(|| {
                let mut command = Command::new(multi);
                command.arg(OsString::from(name.replace(&format!("-{}", self.variant), "")));
                command
            })
        })
    }
}

/// Whether this process may open raw sockets.
pub(crate) fn has_net_raw() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & (1 << CAP_NET_RAW) != 0)
}

/// Whether an interface other than loopback has an IPv6 address of global scope.
fn has_global_ipv6() -> bool {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "1");
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    !off && addresses.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(3) == Some(&"00") && words.get(5) != Some(&"lo")
    })
}

const PROBE: &str = "*nat\n:WEFT_PROBE - [0:0]\n-A WEFT_PROBE -p tcp -m tcp --dport 15002 -j REDIRECT --to-ports \
                     15002\nCOMMIT\n";
const UNPROBE: &str = "*nat\n-F WEFT_PROBE\n-X WEFT_PROBE\nCOMMIT\n";
const USUAL: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// The volume of the proxy's state is mounted here where iptables-legacy is configured (INJ-054).
const LOCK: &str = "/var/lib/weft/xtables.lock";
const LOCK_SECONDS: &str = "30";
const LONGEST_ERROR: u64 = 16 * 1024;
/// include/uapi/linux/capability.h
const CAP_NET_RAW: u32 = 13;
