//! The reconciler: watches the cluster, renders bundles, delivers them.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use weft_bundle::pack::{Limits, MAX_SHARDS};
use weft_operator::acknowledge::{Acknowledged, Bucket, Targets, Tracker};
use weft_operator::identity::Profile;
use weft_operator::lease::Contender;
use weft_operator::metrics::Metrics;
use weft_operator::run::{Health, Operator, Wires};
use weft_operator::world::Settings;
use weft_operator::{serve, source, status};

#[derive(Parser)]
#[command(name = "weft-operator", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconciles until SIGTERM.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Namespace of the control plane.
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system")]
    namespace: String,
    /// Revision that this operator renders for.
    #[arg(long, default_value = "default")]
    revision: String,
    /// Name of this replica in the Lease.
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// DNS suffix of the cluster.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// HTTP port of /metrics, /healthz and /readyz.
    #[arg(long, default_value_t = 15014)]
    metrics_port: u16,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Nudges of pods in a second, in the whole cluster; 0 turns them off.
    #[arg(long, default_value_t = 50)]
    nudge_qps: u32,
    /// Nudges at once.
    #[arg(long, default_value_t = 100)]
    nudge_burst: u32,
    /// Algorithm of the keys of workload certificates: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 or RSA-4096.
    #[arg(long, default_value = "ECDSA-P256")]
    identity_key_algorithm: String,
    /// Lifetime of workload certificates, 15m to 2160h.
    #[arg(long, default_value = "24h", value_parser = duration)]
    identity_workload_cert_ttl: Duration,
    /// Share of its lifetime after which a certificate is renewed, 0.1 to 0.9.
    #[arg(long, default_value_t = 0.5)]
    identity_renew_ratio: f64,
    /// Largest share of the lifetime that a renewal is moved by at random, 0 to 0.2.
    #[arg(long, default_value_t = 0.01)]
    identity_renew_jitter: f64,
    /// ConfigMaps that the endpoints of a namespace without pods are spread over, 1 to 8; else the pods say how many.
    #[arg(long, env = "WEFT_DELIVERY_EP_SHARDS", default_value_t = 2, value_parser = shards)]
    delivery_ep_shards: usize,
    /// Servers accept peers of every trust domain that the roots verify.
    #[arg(long)]
    identity_skip_validate_trust_domain: bool,
    /// Logs as JSON.
    #[arg(long)]
    log_json: bool,
}

/// As durations are written in manifests: `24h`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = weft_crds::duration::Duration::parse(text).value();
    parsed.ok_or_else(|| "must be a duration such as 24h or 90m".to_owned())
}

fn shards(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=MAX_SHARDS).contains(n));
    number.ok_or_else(|| format!("must be 1 to {MAX_SHARDS}"))
}

fn main() -> anyhow::Result<()> {
    let Arguments {
        command: Command::Run(run),
    } = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if run.log_json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
    // An error says that one is installed already, which is what is wanted.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run.run())
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        let identity = Profile::new(
            &self.identity_key_algorithm,
            self.identity_workload_cert_ttl,
            self.identity_renew_ratio,
            self.identity_renew_jitter,
        );
        let profile = identity.map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("settings: {}", all.join("; "))
        })?;
        let client = Client::try_default().await.context("find the API server")?;
        let metrics = Arc::new(Metrics::default());
        let (health, health_seen) = watch::channel(Health::default());
        let address = SocketAddr::new(self.bind, self.metrics_port);
        let address = serve::serve(address, metrics.clone(), health_seen)
            .await
            .with_context(|| format!("listen on {address}"))?;
        tracing::info!(%address, namespace = self.namespace, revision = self.revision, "running");
        let settings = Settings {
            namespace: self.namespace.clone(),
            revision: self.revision.clone(),
            cluster_domain: self.cluster_domain.clone(),
            identity: profile,
            skip_validate_trust_domain: self.identity_skip_validate_trust_domain,
            limits: Limits {
                endpoint_shards: self.delivery_ep_shards,
                ..Limits::default()
            },
            ..Settings::default()
        };
        let lease = source::of_revision("weft-operator", &self.revision);
        let identity = self
            .identity
            .clone()
            .unwrap_or_else(|| format!("process-{}", std::process::id()));
        let (leads, leads_seen) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let contender = Contender::new(client.clone(), &self.namespace, &lease, &identity);
        let contender = tokio::spawn(contender.run(leads, stopping));
        let (targets, targets_seen) = watch::channel(Targets::new());
        let (acknowledged, acknowledged_seen) = watch::channel(Acknowledged::new());
        let bucket = Bucket::new(self.nudge_qps, self.nudge_burst, tokio::time::Instant::now());
        let tracker = Tracker::new(client.clone(), metrics.clone(), bucket, acknowledged);
        let followed = (targets_seen.clone(), tracker.followed());
        let (tracked, holdouts) = (tracker.followed(), tracker.holdouts());
        tokio::spawn(tracker.run(targets_seen));
        let (writer, conditions) = status::Writer::new(
            client.clone(),
            metrics.clone(),
            &self.namespace,
            acknowledged_seen,
            followed,
        );
        tokio::spawn(writer.run());
        let mut leadership = leads_seen.clone();
        let wires = Wires {
            health,
            leads: leads_seen,
            targets,
            followed: tracked,
            holdouts,
            conditions,
        };
        let operator = tokio::spawn(Operator::new(settings, client, metrics, wires).run());
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = operator => anyhow::bail!("the reconciler ended: {ended:?}"),
            // Writes that are on their way end with the process, before another replica may lead (OPS-081).
            () = lost(&mut leadership) => anyhow::bail!("the Lease {lease} was lost"),
        }
        tracing::info!("stopping");
        // Whoever waits for the Lease has it at once.
        stop.send_replace(true);
        if tokio::time::timeout(RELEASE_LIMIT, contender).await.is_err() {
            tracing::warn!("the Lease was not released in time");
        }
        Ok(())
    }
}

/// Waits until this replica has led and leads no longer.
async fn lost(leads: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = leads.wait_for(|leads| *leads).await;
    let _ = leads.wait_for(|leads| !*leads).await;
}

const RELEASE_LIMIT: Duration = Duration::from_secs(5);
