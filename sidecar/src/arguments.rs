//! Arguments and environment of the proxy's subcommands (LIFE-006, LIFE-007, LIFE-097).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use crate::telemetry::budget;

/// The proxy beside each workload.
#[derive(Debug, clap::Parser)]
#[command(name = "weft-proxy", version, about, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, clap::Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value in the life of a process")]
pub enum Command {
    /// Serve traffic until told to stop
    Run(Run),
    /// Set up the redirect of the pod's traffic to the proxy
    Init(crate::init::Arguments),
    /// Show that the redirect is in place
    Validate(crate::init::validate::Arguments),
    /// Wait until the proxy is ready
    Wait(Wait),
    /// Ask peers to leave; the proxy goes on serving
    Drain(Local),
    /// Send a request to the proxy's admin port and print the answer
    Request(Request),
    /// Print the version
    Version,
}

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Run {
    /// Form of the proxy
    #[arg(value_enum, default_value = "sidecar")]
    pub form: Form,
    /// Volume with configuration and endpoints
    #[arg(long, default_value = "/etc/weft/config")]
    pub config_dir: PathBuf,
    /// Volume with the identity
    #[arg(long, default_value = "/var/run/secrets/weft.dev/tls")]
    pub identity_dir: PathBuf,
    /// Volume with credentials
    #[arg(long, default_value = "/var/run/secrets/weft.dev/credentials")]
    pub credentials_dir: PathBuf,
    /// Directory for copies of the last configuration
    #[arg(long, default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// Volume with the pod's labels and annotations
    #[arg(long, default_value = "/etc/weft/pod")]
    pub podinfo_dir: PathBuf,
    /// Address of the ports that others reach: inbound, status, health and metrics; all addresses of the pod unless set
    #[arg(long)]
    pub bind: Option<IpAddr>,
    /// Port that captures outbound connections
    #[arg(long, env = "WEFT_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// Port that captures inbound connections
    #[arg(long, env = "WEFT_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Admin port, on loopback
    #[arg(long, env = "WEFT_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
    /// Address of the admin port; loopback unless set
    #[arg(long)]
    pub admin_bind: Option<IpAddr>,
    /// Port of status, probes and merged metrics
    #[arg(long, env = "WEFT_STATUS_PORT", default_value_t = 15020)]
    pub status_port: u16,
    /// Port of readiness
    #[arg(long, default_value_t = 15021)]
    pub health_port: u16,
    /// Port of the proxy's metrics
    #[arg(long, default_value_t = 15090)]
    pub metrics_port: u16,
    /// How inbound connections come to the proxy; has to be what `init` was told
    #[arg(long, env = "WEFT_INTERCEPTION_MODE", value_enum, default_value = "REDIRECT")]
    pub interception_mode: Interception,
    /// Mark of connections to the application under TPROXY; has to be what `init` was told
    #[arg(long, env = "WEFT_TPROXY_MARK", default_value_t = 1337)]
    pub tproxy_mark: u32,
    /// Mark of the proxy's own connections, where the redirect tells them by mark
    #[arg(long)]
    pub proxy_mark: Option<u32>,
    /// A port of the pod that is not redirected: ADDRESS:PORT=TARGET:PORT; may be repeated. Without redirect
    #[arg(long, value_name = "ADDRESS:PORT=TARGET:PORT")]
    pub inbound: Vec<Explicit>,
    /// A listener whose connections count as dialled to the second address; may be repeated. Without redirect
    #[arg(long, value_name = "ADDRESS:PORT=DIALLED:PORT")]
    pub outbound: Vec<Fixed>,
    /// Address of the explicit HTTP proxy for the application. Without redirect
    #[arg(long)]
    pub http_proxy: Option<SocketAddr>,
    /// Answer the application's queries for names; has to be what `init` was told
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = switch, default_value = "false")]
    pub dns_capture: bool,
    /// Port of the resolver, on loopback
    #[arg(long, default_value_t = crate::init::names::PORT)]
    pub dns_port: u16,
    /// File that names the servers of the pod's resolver
    #[arg(long, default_value = crate::dns::RESOLV_CONF)]
    pub resolv_conf: PathBuf,
    /// Worker threads; 0: one for each CPU
    #[arg(long, env = "WEFT_CONCURRENCY")]
    pub concurrency: Option<usize>,
    /// Label sets that each metric has of its own; 500 in sidecars and 10000 in gateways unless set
    #[arg(long, env = "WEFT_MAX_SERIES_PER_METRIC")]
    pub max_series_per_metric: Option<NonZeroUsize>,
    /// Name of the pod
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Namespace of the pod
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub pod_namespace: String,
    /// Addresses of the pod, separated by commas
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pub pod_ips: Vec<IpAddr>,
    /// Node of the pod
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node_name: String,
    /// Id of the cluster
    #[arg(long, env = "WEFT_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Key of the configuration
    #[arg(long, env = "WEFT_CONFIG_KEY", default_value = "")]
    pub config_key: String,
    /// The pod's grace period, in seconds
    #[arg(long, env = "WEFT_TERMINATION_GRACE_SECONDS", default_value_t = 30)]
    pub grace_seconds: u64,
    /// Ports that the user's containers declare, as JSON
    #[arg(long, env = "WEFT_POD_PORTS", default_value = "")]
    pub pod_ports: String,
    /// Probes of the application, as JSON
    #[arg(long, env = "WEFT_KUBE_APP_PROBERS", default_value = "")]
    pub probes: String,
    /// Log level, or SCOPE:LEVEL separated by commas
    #[arg(long, env = "WEFT_LOG_LEVEL", default_value = "")]
    pub log_level: String,
    /// Form of the log: text or json
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "text")]
    pub log_format: String,
    /// Memory that the container may use, in bytes
    #[arg(long, env = "WEFT_MEMORY_LIMIT")]
    pub memory_limit: Option<u64>,
    /// How long the proxy outlives SIGTERM at most, in seconds; unset: the pod's grace period
    #[arg(long, env = "TERMINATION_DRAIN_DURATION_SECONDS")]
    pub termination_drain_seconds: Option<u64>,
    /// The kubelet would start this container again, as it does a native sidecar
    #[arg(long, env = "WEFT_NATIVE_SIDECAR", action = clap::ArgAction::Set, default_value_t = false)]
    pub native_sidecar: bool,
    /// End as soon as no connection is open after SIGTERM
    #[arg(long, env = "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", default_value_t = false)]
    pub exit_on_zero_connections: bool,
    /// Shortest drain before that, for example 5s
    #[arg(long, env = "MINIMUM_DRAIN_DURATION", default_value = "5s", value_parser = duration)]
    pub minimum_drain: std::time::Duration,
    /// Processes of CPU that the container may use
    #[arg(long, env = "WEFT_CPU_LIMIT")]
    pub cpu_limit: Option<usize>,
    /// Whether that limit was set
    #[arg(long, env = "WEFT_CPU_LIMIT_SET", default_value = "false")]
    pub cpu_limit_set: String,
}

/// The environment variable whose value an error is about.
#[must_use]
pub fn variable_of(error: &clap::Error) -> Option<String> {
    use clap::CommandFactory;
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let command = Arguments::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let variables = arguments.filter_map(|argument| {
        let long = argument.get_long()?;
        named
            .starts_with(&format!("--{long} "))
            .then(|| argument.get_env()?.to_str())
            .flatten()
    });
    let mut variables = variables.filter(|variable| std::env::var(variable).is_ok_and(|present| present == *value));
    variables.next().map(ToOwned::to_owned)
}

/// Variables of the injector that are read elsewhere, or are for people (INJ-068).
const FURTHER: [&str; 8] = [
    "WEFT_REVISION",
    "WEFT_MESH_ID",
    "WEFT_TRUST_DOMAIN",
    "WEFT_WORKLOAD_NAME",
    "WEFT_OWNER",
    "WEFT_APP_CONTAINERS",
    "WEFT_START_WITHOUT_CONFIG",
    "WEFT_PROMETHEUS_SCRAPE",
];

/// Variables that begin with `WEFT_` and mean nothing to the proxy (LIFE-007).
#[must_use]
pub fn unknown_variables() -> Vec<String> {
    use clap::CommandFactory;
    let command = Arguments::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let known: Vec<&str> = arguments.filter_map(|a| a.get_env()?.to_str()).chain(FURTHER).collect();
    let present = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    present
        .filter(|name| name.starts_with("WEFT_") && !known.contains(&name.as_str()))
        .collect()
}

/// A switch as the Go programs of other meshes read it; an empty text is off.
///
/// # Errors
/// What would be accepted.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// `90s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| "a duration such as 5s".to_owned())?;
    match &text[digits..] {
        "ms" => Ok(std::time::Duration::from_millis(number)),
        "s" => Ok(std::time::Duration::from_secs(number)),
        "m" => Ok(std::time::Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(std::time::Duration::from_secs(number.saturating_mul(3600))),
        _ => Err("a duration such as 5s".to_owned()),
    }
}

impl Run {
    /// Whether the pod's traffic is redirected to the proxy.
    #[must_use]
    pub fn is_redirected(&self) -> bool {
        self.form == Form::Sidecar && self.inbound.is_empty() && self.outbound.is_empty() && self.http_proxy.is_none()
    }

    /// Whether redirected connections to the pod keep their addresses (NET-080).
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        self.is_redirected() && self.interception_mode == Interception::Tproxy
    }

    /// Whether queries for names are redirected to the proxy (NET-090).
    #[must_use]
    pub fn captures_names(&self) -> bool {
        self.dns_capture && self.is_redirected() && self.interception_mode != Interception::None
    }

    /// Label sets that each metric has of its own (BYD-035).
    #[must_use]
    pub fn most_series(&self) -> NonZeroUsize {
        self.max_series_per_metric.unwrap_or(match self.form {
            Form::Sidecar => budget::OF_SIDECARS,
            Form::Gateway => budget::OF_GATEWAYS,
        })
    }

    /// Worker threads (LIFE-084).
    #[must_use]
    pub fn workers(&self) -> usize {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        match (self.concurrency, self.cpu_limit) {
            (Some(0), _) => available,
            (Some(number), _) => number,
            (None, Some(limit)) if self.cpu_limit_set == "true" => limit.max(1),
            (None, _) => available.min(2),
        }
    }
}

/// Forms of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Beside an application
    Sidecar,
    /// A gateway
    Gateway,
}

/// How connections come to the proxy (INJ-156).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Interception {
    /// Redirected
    #[value(name = "REDIRECT")]
    Redirect,
    /// Outbound ones redirected, inbound ones with their addresses unchanged
    #[value(name = "TPROXY")]
    Tproxy,
    /// By their own doing
    #[value(name = "NONE")]
    None,
}

/// A listener without redirect (LOC-060).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explicit {
    /// Where peers connect to.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub target: SocketAddr,
    /// Port of the pod whose rules hold.
    pub port: u16,
}

impl std::str::FromStr for Explicit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (listen, target) = text.split_once('=')?;
            // `@PORT` names the port of the pod where the listener had to take another one (LOC-062).
            let (target, port) = target.split_once('@').map_or((target, None), |(t, p)| (t, Some(p)));
            let listen: SocketAddr = listen.parse().ok()?;
            let port = port.map_or(Some(listen.port()), |p| p.parse().ok())?;
            Some(Self {
                listen,
                target: target.parse().ok()?,
                port,
            })
        };
        parse().ok_or_else(|| format!("{text} is not of the form ADDRESS:PORT=TARGET:PORT[@PORT]"))
    }
}

/// A listener for one destination, without redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// Where the application connects to.
    pub listen: SocketAddr,
    /// What counts as dialled.
    pub dialled: SocketAddr,
}

impl std::str::FromStr for Fixed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (listen, dialled) = text.split_once('=')?;
            Some(Self {
                listen: listen.parse().ok()?,
                dialled: dialled.parse().ok()?,
            })
        };
        parse().ok_or_else(|| format!("{text} is not of the form ADDRESS:PORT=DIALLED:PORT"))
    }
}

/// Where the running proxy is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct Local {
    /// Status port of the proxy
    #[arg(long, env = "WEFT_STATUS_PORT", default_value_t = 15020)]
    pub status_port: u16,
    /// Address of the proxy
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
}

/// Arguments of `wait`.
#[derive(Debug, Clone, clap::Args)]
pub struct Wait {
    /// Readiness port of the proxy
    #[arg(long, default_value_t = 15021)]
    pub health_port: u16,
    /// Address of the proxy
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub address: IpAddr,
    /// Longest wait, in seconds
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
}

/// Arguments of `request`.
#[derive(Debug, Clone, clap::Args)]
pub struct Request {
    /// GET or POST
    #[arg(value_parser = ["GET", "POST"])]
    pub method: String,
    /// Path with query
    pub path: String,
    /// Admin port of the proxy
    #[arg(long, env = "WEFT_ADMIN_PORT", default_value_t = 15000)]
    pub admin_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn run(arguments: &[&str]) -> Run {
        let all = ["weft-proxy", "run"].iter().chain(arguments);
        match Arguments::try_parse_from(all).expect("arguments").command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    // spec: BYD-035, CARD-002
    #[test]
    fn a_metric_has_as_many_label_sets_as_are_stated_else_as_the_form_needs() {
        let most = |arguments: &[&str]| run(arguments).most_series().get();
        assert_eq!((most(&[]), most(&["gateway"])), (500, 10_000));
        let stated = ["--max-series-per-metric", "7"];
        assert_eq!((most(&stated), most(&[&["gateway"], &stated[..]].concat())), (7, 7));
    }

    // spec: LIFE-084
    #[test]
    fn workers_follow_concurrency_else_the_limit_else_two_at_most() {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(run(&["--concurrency", "3"]).workers(), 3);
        assert_eq!(run(&["--concurrency", "0"]).workers(), available);
        let limited = ["--cpu-limit", "5", "--cpu-limit-set", "true"];
        assert_eq!(run(&limited).workers(), 5);
        assert_eq!(run(&[&limited[..], &["--concurrency", "3"]].concat()).workers(), 3);
        assert_eq!(run(&["--cpu-limit", "64"]).workers(), available.min(2));
        assert_eq!(run(&[]).workers(), available.min(2));
    }

    // spec: LIFE-006, LIFE-025, LIFE-026, LIFE-097, NET-001, NET-002, NET-003, NET-005, NET-006, NET-007, NET-008, NET-011
    #[test]
    fn what_nobody_sets_is_where_the_pod_has_it() {
        let run = run(&[]);
        let places = [
            &run.config_dir,
            &run.identity_dir,
            &run.credentials_dir,
            &run.state_dir,
            &run.podinfo_dir,
        ];
        let expected = [
            "/etc/weft/config",
            "/var/run/secrets/weft.dev/tls",
            "/var/run/secrets/weft.dev/credentials",
            "/var/lib/weft",
            "/etc/weft/pod",
        ];
        assert_eq!(places.map(|path| path.to_str().expect("text")), expected);
        let ports = [
            run.admin_port,
            run.outbound_port,
            run.inbound_port,
            run.status_port,
            run.health_port,
            run.dns_port,
            run.metrics_port,
        ];
        assert_eq!(ports, [15000, 15001, 15006, 15020, 15021, 15053, 15090]);
        assert_eq!((run.form, run.bind, run.admin_bind), (Form::Sidecar, None, None));
        assert!(run.is_redirected() && !run.is_transparent() && !run.native_sidecar);
        assert_eq!((run.grace_seconds, run.termination_drain_seconds), (30, None));
        assert!(!run.exit_on_zero_connections);
        assert_eq!(run.minimum_drain, std::time::Duration::from_secs(5));
    }

    // spec: NET-090, LOC-060
    #[test]
    fn names_are_captured_where_traffic_is_and_that_is_asked_for() {
        assert!(!run(&[]).captures_names());
        for on in [
            &["--dns-capture"][..],
            &["--dns-capture", "true"],
            &["--dns-capture", "1"],
        ] {
            assert!(run(on).captures_names(), "{on:?}");
        }
        assert!(!run(&["--dns-capture", "false"]).captures_names());
        assert!(!run(&["--dns-capture", "--interception-mode", "NONE"]).captures_names());
        assert!(!run(&["gateway", "--dns-capture"]).captures_names());
        assert!(!run(&["--dns-capture", "--http-proxy", "127.0.0.1:4000"]).captures_names());
        assert!(Arguments::try_parse_from(["weft-proxy", "run", "--dns-capture", "maybe"]).is_err());
    }

    // spec: LIFE-006, LIFE-097, LOC-060
    #[test]
    fn flags_are_parsed_and_unknown_ones_refused() {
        let run = run(&[
            "sidecar",
            "--inbound",
            "127.64.0.2:8080=127.0.0.1:3000",
            "--http-proxy",
            "127.0.0.1:4000",
        ]);
        assert!(!run.is_redirected());
        assert_eq!((run.inbound[0].target.port(), run.inbound[0].port), (3000, 8080));
        let moved: Explicit = "127.64.0.2:9999=127.0.0.1:3000@80".parse().expect("form");
        assert_eq!((moved.listen.port(), moved.port), (9999, 80));
        assert!(
            "127.0.0.1:1"
                .parse::<Explicit>()
                .expect_err("no target")
                .contains("TARGET:PORT")
        );
        let fixed = self::run(&["--outbound", "127.0.0.1:4000=10.1.0.1:80"]);
        assert!(!fixed.is_redirected());
        assert_eq!(fixed.outbound[0].dialled.to_string(), "10.1.0.1:80");
        assert!(
            "127.0.0.1:4000"
                .parse::<Fixed>()
                .expect_err("nothing dialled")
                .contains("DIALLED:PORT")
        );
        assert!(Arguments::try_parse_from(["weft-proxy", "run", "--nonsense"]).is_err());
    }
}
