//! `init`: the redirect of a pod's traffic to its proxy (spec: interception.md, sections B, C and H).
//!
//! The rules are a value first: [`rules`] is pure, and what it gives is printed, tested and written by one of two back
//! ends: nftables over netlink, which needs no tool beside this binary, or the programs of iptables for older kernels.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as _, FromArgMatches as _};

mod backend;
mod iptables;
mod layout;
pub mod names;
mod netlink;
mod nftables;
mod routing;
mod source;
mod transparent;
pub mod validate;

pub use backend::Backend;
pub use iptables::tool::Variant;
pub use names::Names;
pub use nftables::{ApplyError, Family, Nat, apply_nat, remove_table};

/// Parameters of the redirect.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Inbound ports that are captured: `*` for all, a list, or nothing
    #[arg(long, default_value = "*")]
    pub inbound_ports: Ports,
    /// Inbound ports that are not captured; looked at where all are
    #[arg(long, default_value = "")]
    pub exclude_inbound_ports: Ports,
    /// Destinations that are captured: `*` for all, a list of ranges, or nothing
    #[arg(long, default_value = "*")]
    pub outbound_cidrs: Cidrs,
    /// Destinations that are not captured
    #[arg(long, default_value = "")]
    pub exclude_outbound_cidrs: Cidrs,
    /// Ports that are captured whatever the destination
    #[arg(long, default_value = "")]
    pub outbound_ports: Ports,
    /// Ports of destinations that are not captured
    #[arg(long, default_value = "")]
    pub exclude_outbound_ports: Ports,
    /// Interfaces whose traffic is not captured
    #[arg(long, default_value = "", value_delimiter = ',')]
    pub exclude_interfaces: Vec<String>,
    /// Port of the proxy's status, which is not captured
    #[arg(long, default_value_t = 15020)]
    pub status_port: u16,
    /// User of the proxy
    #[arg(long, default_value_t = 1337)]
    pub proxy_uid: u32,
    /// Group of the proxy
    #[arg(long, default_value_t = 1337)]
    pub proxy_gid: u32,
    /// Mark of the proxy's connections, which then stands in place of its user and group
    #[arg(long)]
    pub proxy_mark: Option<u32>,
    /// Where outbound connections go
    #[arg(long, default_value_t = 15001)]
    pub outbound_port: u16,
    /// Where inbound connections go
    #[arg(long, default_value_t = 15006)]
    pub inbound_port: u16,
    /// How inbound connections come to the proxy: REDIRECT, or TPROXY, which keeps the client's address
    #[arg(long, value_enum, default_value = "REDIRECT")]
    pub interception_mode: Mode,
    /// Mark of inbound packets under TPROXY
    #[arg(long, env = "WEFT_TPROXY_MARK", default_value_t = transparent::MARK)]
    pub tproxy_mark: u32,
    /// Routing table of marked packets under TPROXY
    #[arg(long, env = "WEFT_TPROXY_TABLE", default_value_t = transparent::TABLE)]
    pub tproxy_table: u32,
    /// Drop packets that belong to no connection, in place of an answer that resets one
    #[arg(long, env = "INVALID_DROP", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, default_value_t = false)]
    pub drop_invalid: bool,
    /// What the rules are written by: auto, nftables or iptables
    #[arg(long, env = "WEFT_INTERCEPTION_BACKEND", value_enum, default_value = "auto")]
    pub backend: Backend,
    /// Variant of iptables: nft or legacy; unset: the one that has rules here already, else the one that works
    #[arg(long, env = "WEFT_IPTABLES_BINARY", value_enum)]
    pub iptables_binary: Option<Variant>,
    /// Directory of the programs of iptables; unset: those of PATH and the usual ones
    #[arg(long, env = "WEFT_IPTABLES_DIR")]
    pub iptables_dir: Option<PathBuf>,
    /// File of iptables-legacy's lock; unset: in the directory of the proxy's state if that is there
    #[arg(long, env = "XTABLES_LOCKFILE")]
    pub iptables_lock: Option<PathBuf>,
    /// Replace an earlier redirect that differs, where iptables has one; otherwise it is added to, with a warning
    #[arg(long, env = "WEFT_INTERCEPTION_RECONCILE", action = clap::ArgAction::Set, default_value_t = true)]
    pub reconcile: bool,
    /// Capture queries for names to the servers of the pod's resolver
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = crate::arguments::switch, default_value = "false")]
    pub dns_capture: bool,
    /// Capture queries for names to whatever server, where queries are captured
    #[arg(long, env = "CAPTURE_ALL_DNS", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = crate::arguments::switch, default_value = "false")]
    pub capture_all_dns: bool,
    /// Where captured queries for names go
    #[arg(long, default_value_t = names::PORT)]
    pub dns_port: u16,
    /// File that names the servers of the pod's resolver
    #[arg(long, default_value = crate::dns::RESOLV_CONF)]
    pub resolv_conf: PathBuf,
    /// Print the rules and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the parameters in effect and change nothing
    #[arg(long, conflicts_with = "dry_run")]
    pub print_config: bool,
    /// Remove all rules of Weft's
    #[arg(long, conflicts_with_all = ["dry_run", "print_config"])]
    pub cleanup: bool,
}

impl Default for Arguments {
    /// What `init` takes where neither its command line nor its environment say anything.
    fn default() -> Self {
        let command = Self::augment_args(clap::Command::new("init")).mut_args(|argument| argument.env(None::<&str>));
        let matches = command.get_matches_from(["init"]);
        Self::from_arg_matches(&matches).expect("every parameter has a default")
    }
}

/// How inbound connections come to the proxy; outbound ones are always redirected (NET-065).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Their destination is changed; the proxy asks the kernel for the original one.
    #[value(name = "REDIRECT")]
    Redirect,
    /// They keep both addresses, and the application sees the client's.
    #[value(name = "TPROXY")]
    Tproxy,
}

/// A list of ports, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// All.
    All,
    /// These.
    Listed(BTreeSet<u16>),
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        let port = |part: &str| {
            let number = part.parse::<u16>().ok().filter(|n| *n > 0);
            number.ok_or_else(|| format!("{part:?} is no port; write a list such as 80,443, or *"))
        };
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        Ok(Self::Listed(parts.map(port).collect::<Result<_, _>>()?))
    }
}

impl Ports {
    fn listed(&self) -> impl Iterator<Item = u16> {
        match self {
            Self::All => None,
            Self::Listed(ports) => Some(ports.iter().copied()),
        }
        .into_iter()
        .flatten()
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// First address.
    pub address: IpAddr,
    /// Length of the prefix.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A list of ranges, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cidrs {
    /// All.
    All,
    /// These.
    Listed(BTreeSet<Cidr>),
}

impl std::str::FromStr for Cidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        let range = |part: &str| {
            let parse = || {
                let (address, prefix) = part.split_once('/')?;
                let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
                let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
                let longest = if address.is_ipv4() { 32 } else { 128 };
                (prefix <= longest && !mapped).then_some(Cidr { address, prefix })
            };
            parse().ok_or_else(|| format!("{part:?} is no range; write a list such as 10.0.0.0/8,fd00::/8, or *"))
        };
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        Ok(Self::Listed(parts.map(range).collect::<Result<_, _>>()?))
    }
}

impl Cidrs {
    fn listed(&self) -> impl Iterator<Item = Cidr> {
        match self {
            Self::All => None,
            Self::Listed(ranges) => Some(ranges.iter().copied()),
        }
        .into_iter()
        .flatten()
    }
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Arrives on an interface.
    Input(String),
    /// Leaves by an interface.
    Output(String),
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Destination port, or any other.
    Port {
        /// The port.
        port: u16,
        /// Any other.
        other: bool,
    },
    /// Source port.
    SourcePort(u16),
    /// Source in a range.
    Source(Cidr),
    /// Destination in a range, or outside of it; the family is that of the range.
    Destination {
        /// The range.
        range: Cidr,
        /// Outside of it.
        other: bool,
    },
    /// Socket of the proxy, or of anybody else.
    Owner {
        /// How the proxy is told.
        owner: Owner,
        /// Anybody else.
        other: bool,
    },
    /// Mark of the packet, or any other.
    Mark {
        /// The mark.
        mark: u32,
        /// Any other.
        other: bool,
    },
    /// Mark of the packet's connection.
    ConnectionMark(u32),
    /// Packet of a connection that has seen both directions.
    Established,
    /// Packet that the kernel can give to no connection.
    Invalid,
}

/// How the proxy's sockets are told from the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// By user.
    Uid(u32),
    /// By primary group.
    Gid(u32),
    /// By mark (NET-112).
    Mark(u32),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves the packet alone.
    Leave,
    /// Redirects it to a local port.
    To(u16),
    /// Gives it to the listener of a port, addresses unchanged.
    Transparent(u16),
    /// Gives it to the socket that has its connection, addresses unchanged.
    Divert,
    /// Drops it.
    Drop,
    /// Marks it, and the next rule is looked at.
    Mark(u32),
    /// Marks its connection as it is marked itself, and the next rule is looked at.
    Save,
    /// Marks it as its connection is, and the next rule is looked at.
    Restore,
    /// Tracks its connection apart from those of other zones.
    Zone(u16),
}

/// A rule: all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// What is done.
    pub verdict: Verdict,
}

/// The rules for packets that arrive, and for those that leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Section B, in order.
    pub inbound: Vec<Rule>,
    /// Section C, in order.
    pub outbound: Vec<Rule>,
    /// Section F; without it captured inbound connections are redirected.
    pub transparent: Option<Transparent>,
    /// In front of everything that arrives (NET-110).
    pub dropping: Vec<Rule>,
    /// Zones of queries for names (NET-093); `None` where none are captured.
    pub zones: Option<Zones>,
    /// Where captured inbound connections go.
    pub inbound_port: u16,
    /// Where captured queries for names go; everything else that is captured is outbound.
    pub dns_port: u16,
}

/// Which connections are tracked apart from the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// Of packets that arrive.
    pub arriving: Vec<Rule>,
    /// Of packets that leave.
    pub leaving: Vec<Rule>,
}

/// What TPROXY needs beside the rules for packets that arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transparent {
    /// Mark of packets that are routed to this namespace whatever their address.
    pub mark: u32,
    /// Table of that route.
    pub table: u32,
    /// Looked at behind those for packets that arrive.
    pub saving: Vec<Rule>,
    /// Marks of packets that leave.
    pub marking: Vec<Rule>,
}

/// The rules that the parameters ask for, in the order in which they are looked at. `names` is what is captured of
/// queries for names.
#[must_use]
pub fn rules(arguments: &Arguments, names: &Names) -> Rules {
    Rules {
        inbound: inbound(arguments),
        outbound: outbound(arguments, names),
        dropping: if arguments.drop_invalid {
            vec![Rule {
                conditions: vec![Condition::Invalid],
                verdict: Verdict::Drop,
            }]
        } else {
            Vec::new()
        },
        transparent: (arguments.interception_mode == Mode::Tproxy).then(|| transparent::rules(arguments, names)),
        zones: names.zones(arguments),
        inbound_port: arguments.inbound_port,
        dns_port: arguments.dns_port,
    }
}

/// Section B: NET-020..NET-026; under TPROXY with what section F adds.
fn inbound(arguments: &Arguments) -> Vec<Rule> {
    let tcp = |port| vec![Condition::Tcp, Condition::Port { port, other: false }];
    let capture = |conditions| match arguments.interception_mode {
        Mode::Redirect => vec![to(conditions, arguments.inbound_port)],
        Mode::Tproxy => transparent::capture(&conditions, arguments.inbound_port),
    };
    let mut out = match arguments.interception_mode {
        Mode::Redirect => Vec::new(),
        Mode::Tproxy => transparent::exemptions(arguments.tproxy_mark),
    };
    for interface in arguments.exclude_interfaces.iter().filter(|i| !i.is_empty()) {
        out.push(leave(vec![Condition::Input(interface.clone())]));
    }
    out.push(leave(tcp(TUNNEL_PORT)));
    match &arguments.inbound_ports {
        Ports::All => {
            let own = [arguments.status_port, HEALTH_PORT, METRICS_PORT];
            let excluded: BTreeSet<u16> = arguments.exclude_inbound_ports.listed().chain(own).collect();
            out.extend(excluded.into_iter().map(|port| leave(tcp(port))));
            out.extend(capture(vec![Condition::Tcp]));
        }
        Ports::Listed(ports) => out.extend(ports.iter().flat_map(|port| capture(tcp(*port)))),
    }
    out
}

/// Section C: NET-040..NET-053.
fn outbound(arguments: &Arguments, names: &Names) -> Vec<Rule> {
    let lo = || Condition::Output("lo".to_owned());
    let port = |port| Condition::Port { port, other: false };
    let mut out = Vec::new();
    for interface in arguments.exclude_interfaces.iter().filter(|i| !i.is_empty()) {
        out.push(leave(vec![Condition::Output(interface.clone())]));
    }
    for number in arguments.exclude_outbound_ports.listed() {
        out.push(leave(vec![Condition::Tcp, port(number)]));
        out.push(leave(vec![Condition::Udp, port(number)]));
    }
    out.extend(PROXY_SOURCES.map(|source| leave(vec![lo(), Condition::Source(single(source))])));
    // Under TPROXY self-calls are marked instead (NET-082).
    let redirected = match arguments.interception_mode {
        Mode::Redirect => &LOOPBACK[..],
        Mode::Tproxy => &[],
    };
    for owner in owners(arguments) {
        let proxy = Condition::Owner { owner, other: false };
        for range in redirected.iter().copied().map(single) {
            let outside = Condition::Destination { range, other: true };
            let tunnel = Condition::Port {
                port: TUNNEL_PORT,
                other: true,
            };
            let mut self_call = vec![lo(), Condition::Tcp, tunnel];
            self_call.extend(names.other_port());
            self_call.extend([outside, proxy.clone()]);
            out.push(to(self_call, arguments.inbound_port));
        }
        // A server that the pod itself runs is captured, too.
        let mut own = vec![lo()];
        if let Some(other_port) = names.other_port() {
            own.extend([Condition::Tcp, other_port]);
        }
        own.push(Condition::Owner { owner, other: true });
        out.push(leave(own));
        out.push(leave(vec![proxy]));
    }
    out.extend(names.capture(arguments.dns_port));
    let within = |range| Condition::Destination { range, other: false };
    out.extend(LOOPBACK.map(|address| leave(vec![within(single(address))])));
    out.extend(
        arguments
            .exclude_outbound_cidrs
            .listed()
            .map(|range| leave(vec![within(range)])),
    );
    for number in arguments.outbound_ports.listed() {
        out.push(to(vec![Condition::Tcp, port(number)], arguments.outbound_port));
    }
    match &arguments.outbound_cidrs {
        Cidrs::All => out.push(to(vec![Condition::Tcp], arguments.outbound_port)),
        Cidrs::Listed(ranges) => {
            out.extend(
                ranges
                    .iter()
                    .map(|r| to(vec![Condition::Tcp, within(*r)], arguments.outbound_port)),
            );
        }
    }
    out
}

/// How the proxy is told from everybody else (NET-045, NET-046, NET-112).
fn owners(arguments: &Arguments) -> Vec<Owner> {
    match arguments.proxy_mark {
        Some(mark) => vec![Owner::Mark(mark)],
        // As superuser the proxy is told by its group alone: steps for its user would let its self-calls go.
        None if arguments.proxy_uid == 0 => vec![Owner::Gid(arguments.proxy_gid)],
        None => vec![Owner::Uid(arguments.proxy_uid), Owner::Gid(arguments.proxy_gid)],
    }
}

/// What the parameters may not say, or not together.
fn contradiction(arguments: &Arguments) -> Option<String> {
    if let Some(name) = arguments.exclude_interfaces.iter().find(|name| !is_interface(name)) {
        return Some(format!(
            "--exclude-interfaces: {name:?} is no interface; write a list of names of at most 15 characters such as \
             eth1,net1"
        ));
    }
    let (own, tproxy) = (arguments.proxy_mark, arguments.tproxy_mark);
    let ports = [arguments.outbound_port, arguments.inbound_port];
    if arguments.dns_capture && ports.contains(&arguments.dns_port) {
        return Some("--dns-port must differ from --outbound-port and --inbound-port".to_owned());
    }
    if own.is_some() && arguments.interception_mode == Mode::Tproxy {
        return Some("--proxy-mark cannot be used with --interception-mode TPROXY".to_owned());
    }
    if tproxy == 0 || tproxy == transparent::SELF_CALL {
        return Some(format!("--tproxy-mark must not be 0 or {}", transparent::SELF_CALL));
    }
    if matches!(arguments.tproxy_table, 0 | 253..=255) {
        return Some("--tproxy-table must not be 0 or one of the kernel's own, 253 to 255".to_owned());
    }
    let reserved = [0, transparent::SELF_CALL, tproxy];
    own.is_some_and(|mark| reserved.contains(&mark))
        .then(|| format!("--proxy-mark must not be 0, {tproxy} or {}", transparent::SELF_CALL))
}

/// Names that mean one interface to every back end; an empty one is skipped.
fn is_interface(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"/+*!\"'\\".contains(c);
    name.len() <= 15 && !name.starts_with('-') && name.chars().all(plain)
}

/// Why there is no redirect; the exit codes are those of NET-108.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// Parameters that mean nothing, or not together.
    #[error("{0}")]
    Parameter(String),
    /// The rules could not be written; nothing of them is left.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Sets the redirect in the network namespace of the calling thread, as `init` does for its pod, and gives its text. What
/// an earlier redirect of Weft's left is replaced.
///
/// # Errors
/// [`SetError`]; then nothing was added.
pub fn set_redirect(arguments: &Arguments) -> Result<String, SetError> {
    if let Some(problem) = contradiction(arguments) {
        return Err(SetError::Parameter(problem));
    }
    Ok(set(arguments, &rules(arguments, &Names::read(arguments)))?)
}

/// Whether the network namespace of the calling thread holds a redirect of Weft's, whoever wrote it.
///
/// # Errors
/// That of the kernel.
pub fn is_redirected(arguments: &Arguments) -> Result<bool, ApplyError> {
    backend::holds_rules(arguments)
}

/// Runs `init`. Exit codes are those of NET-108.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    if let Some(problem) = contradiction(arguments) {
        eprintln!("weft-proxy init: {problem}");
        return ExitCode::from(2);
    }
    if arguments.print_config {
        println!("{arguments:#?}");
        return ExitCode::SUCCESS;
    }
    let names = if arguments.cleanup {
        Names::default()
    } else {
        Names::read(arguments)
    };
    let rules = rules(arguments, &names);
    let result = if arguments.cleanup {
        remove(arguments)
    } else if arguments.dry_run {
        backend::choose(arguments).map(|chosen| print!("{}", backend::text(&rules, &chosen)))
    } else {
        eprintln!("weft-proxy init: {arguments:?}");
        set(arguments, &rules).map(|text| eprintln!("weft-proxy init: redirect in place\n{text}"))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft-proxy init: {e}");
            ExitCode::from(1)
        }
    }
}

/// All of it or nothing (NET-108): the rules are one transaction, and come last.
fn set(arguments: &Arguments, rules: &Rules) -> Result<String, ApplyError> {
    let chosen = backend::choose(arguments)?;
    backend::refuse_foreign(arguments, &chosen)?;
    source::add().map_err(|source| ApplyError::Kernel {
        what: "add the address ::6 to lo",
        source,
    })?;
    let routed = rules.transparent.as_ref().map_or(Ok(()), |transparent| {
        routing::add(transparent.mark, transparent.table).map_err(|source| ApplyError::Kernel {
            what: "route marked packets to this namespace",
            source,
        })
    });
    let applied = routed.and_then(|()| backend::apply(arguments, rules, &chosen));
    applied.inspect_err(|_| {
        // What is left of a failed attempt does no harm without the rules; the error of those is the one to tell.
        let _ = source::remove();
        if let Some(transparent) = &rules.transparent {
            let _ = routing::remove(transparent.mark, transparent.table);
        }
    })?;
    Ok(backend::text(rules, &chosen))
}

fn remove(arguments: &Arguments) -> Result<(), ApplyError> {
    backend::remove(arguments)?;
    routing::remove(arguments.tproxy_mark, arguments.tproxy_table).map_err(|source| ApplyError::Kernel {
        what: "remove the route of marked packets",
        source,
    })?;
    source::remove().map_err(|source| ApplyError::Kernel {
        what: "remove the address ::6 from lo",
        source,
    })
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inbound = if self.transparent.is_some() {
            transparent::RULES
        } else {
            TABLE
        };
        let mut chains = vec![
            (inbound, "weft-inbound", &self.inbound),
            (TABLE, "weft-output", &self.outbound),
        ];
        if !self.dropping.is_empty() {
            chains.insert(0, (transparent::RULES, "prerouting", &self.dropping));
        }
        if let Some(transparent) = &self.transparent {
            let Transparent {
                mark,
                table,
                saving,
                marking,
            } = transparent;
            writeln!(f, "fwmark {mark} lookup {table}; table {table} local default dev lo")?;
            chains.push((transparent::RULES, "prerouting", saving));
            chains.push((transparent::RULES, "weft-output", marking));
        }
        if let Some(Zones { arriving, leaving }) = &self.zones {
            chains.push((names::ZONES, "weft-inbound", arriving));
            chains.push((names::ZONES, "weft-output", leaving));
        }
        for (table, name, rules) in chains {
            writeln!(f, "table inet {table} chain {name}")?;
            for rule in rules {
                writeln!(f, "  {rule}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        match self.verdict {
            Verdict::Leave => f.write_str("return"),
            Verdict::To(port) => write!(f, "redirect to :{port}"),
            Verdict::Transparent(port) => write!(f, "tproxy to :{port}"),
            Verdict::Divert => f.write_str("divert"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Mark(mark) => write!(f, "meta mark set {mark}"),
            Verdict::Save => f.write_str("ct mark set meta mark"),
            Verdict::Restore => f.write_str("meta mark set ct mark"),
            Verdict::Zone(zone) => write!(f, "ct zone set {zone} return"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |other: &bool| if *other { "!= " } else { "" };
        let family = |range: &Cidr| if range.address.is_ipv4() { "ip" } else { "ip6" };
        match self {
            Self::Input(name) => write!(f, "iifname {name:?}"),
            Self::Output(name) => write!(f, "oifname {name:?}"),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::Udp => f.write_str("meta l4proto udp"),
            Self::Port { port, other } => write!(f, "th dport {}{port}", not(other)),
            Self::SourcePort(port) => write!(f, "th sport {port}"),
            Self::Source(range) => write!(f, "{} saddr {range}", family(range)),
            Self::Destination { range, other } => write!(f, "{} daddr {}{range}", family(range), not(other)),
            Self::Owner {
                owner: Owner::Uid(id),
                other,
            } => write!(f, "meta skuid {}{id}", not(other)),
            Self::Owner {
                owner: Owner::Gid(id),
                other,
            } => write!(f, "meta skgid {}{id}", not(other)),
            Self::Owner {
                owner: Owner::Mark(mark),
                other,
            } => write!(f, "meta mark {}{mark}", not(other)),
            Self::Mark { mark, other } => write!(f, "meta mark {}{mark}", not(other)),
            Self::ConnectionMark(mark) => write!(f, "ct mark {mark}"),
            Self::Established => f.write_str("ct state established,related"),
            Self::Invalid => f.write_str("ct state invalid"),
        }
    }
}

fn leave(conditions: Vec<Condition>) -> Rule {
    Rule {
        conditions,
        verdict: Verdict::Leave,
    }
}

fn to(conditions: Vec<Condition>, port: u16) -> Rule {
    Rule {
        conditions,
        verdict: Verdict::To(port),
    }
}

fn single(address: IpAddr) -> Cidr {
    Cidr {
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
    }
}

/// Table of the redirect (NET-101).
pub const TABLE: &str = "weft-nat";
/// All tables of the redirect.
const TABLES: [&str; 3] = [TABLE, transparent::RULES, names::ZONES];
const TUNNEL_PORT: u16 = 15008;
const HEALTH_PORT: u16 = 15021;
const METRICS_PORT: u16 = 15090;
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
];
/// Where the proxy's connections to its application come from (NET-029).
const PROXY_SOURCES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 6)),
    IpAddr::V6(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
];

#[cfg(test)]
mod tests;
