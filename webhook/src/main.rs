//! Admission: injects the sidecar and validates mesh resources.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::{Args, Parser, Subcommand};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weft_webhook::InjectConfig;
use weft_webhook::entries::{FailurePolicy, Service, configuration};
use weft_webhook::metrics::Metrics;
use weft_webhook::nodes::{self, Versions};
use weft_webhook::reload::{self, Directories, Loaded};
use weft_webhook::serve::{self, LAME_DUCK, Webhook};

#[derive(Parser)]
#[command(name = "weft-webhook", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves admission until SIGTERM.
    Run(Run),
    /// Prints the MutatingWebhookConfiguration that fits the settings.
    Configuration(Configuration),
}

#[derive(Args)]
struct Run {
    /// HTTPS port of /inject and /validate.
    #[arg(long, default_value_t = 15017)]
    port: u16,
    /// HTTP port of /metrics, /healthz and /readyz.
    #[arg(long, default_value_t = 15014)]
    metrics_port: u16,
    /// A second HTTP port of /healthz and /readyz; 0 opens none.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Directory with tls.crt, tls.key and ca.crt.
    #[arg(long, default_value = "/etc/weft/tls")]
    tls_dir: PathBuf,
    /// Directory with the ConfigMap weft-injector: config, values.
    #[arg(long, default_value = "/etc/weft/injector")]
    config_dir: PathBuf,
    /// Directory with the mesh config: mesh.
    #[arg(long, default_value = "/etc/weft/mesh")]
    mesh_dir: PathBuf,
    /// Namespace of the control plane.
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system")]
    namespace: String,
    /// Name of the Service under which the API server calls.
    #[arg(long, default_value = "weft-injector")]
    service: String,
    /// Log lines as JSON (LIFE-093).
    #[arg(long)]
    log_json: bool,
    /// Do not ask the cluster for the versions of its nodes; injection.nativeSidecar auto then means false.
    #[arg(long)]
    without_cluster: bool,
}

#[derive(Args)]
struct Configuration {
    /// File with the chart's values; none: the defaults.
    #[arg(long)]
    values: Option<PathBuf>,
    /// Namespace of the control plane.
    #[arg(long, default_value = "weft-system")]
    namespace: String,
    /// Name of the Service under which the API server calls.
    #[arg(long, default_value = "weft-injector")]
    service: String,
    /// Admit pods without a sidecar when no injector answers.
    #[arg(long)]
    ignore_failures: bool,
}

impl Configuration {
    fn print(&self) -> anyhow::Result<()> {
        let values = match &self.values {
            Some(file) => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
            None => String::new(),
        };
        // The image has no part in the selectors, so that values without one will do.
        let mut config = InjectConfig::parse(&values, "proxy: {image: weft-proxy}", "")?;
        self.namespace.clone_into(&mut config.control_plane_namespace);
        let service = Service {
            name: &self.service,
            namespace: &self.namespace,
        };
        let policy = if self.ignore_failures {
            FailurePolicy::Ignore
        } else {
            FailurePolicy::Fail
        };
        println!("{}", serde_yaml::to_string(&configuration(&config, service, policy))?);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run(run) => {
            log(run.log_json);
            run.serve().await
        }
        Command::Configuration(configuration) => configuration.print(),
    }
}

/// Logs to stderr; levels by `RUST_LOG`, colours on a terminal alone.
fn log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json { lines.json().init() } else { lines.init() }
}

impl Run {
    async fn serve(self) -> anyhow::Result<()> {
        // The Kubernetes client takes the process's default provider.
        let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        anyhow::ensure!(installed.is_ok(), "another TLS provider was installed first");
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let loaded = Arc::new(Loaded::new());
        let versions = Arc::new(ArcSwap::from_pointee(Versions::default()));
        let webhook = Webhook::new(
            Arc::clone(&loaded),
            Arc::clone(&versions),
            Arc::clone(&metrics),
            registry,
        );

        let health_stop = CancellationToken::new();
        let mut ports = vec![self.metrics_port];
        ports.extend((self.health_port != 0 && self.health_port != self.metrics_port).then_some(self.health_port));
        for port in ports {
            let listener = self.listen(port).await?;
            let stop = health_stop.clone().cancelled_owned();
            let health = serve::serve_health(Arc::clone(&webhook), listener, stop);
            tokio::spawn(async move {
                if let Err(error) = health.await {
                    tracing::error!(%error, port, "health and metrics are not served any more");
                }
            });
        }
        if !self.without_cluster {
            let client = kube::Client::try_default()
                .await
                .context("connect to the cluster; --without-cluster runs without")?;
            let (told, first) = oneshot::channel();
            tokio::spawn(nodes::follow(client, versions, told));
            webhook.await_nodes(first, NODES_LIMIT);
        }
        let directories = Directories {
            tls: self.tls_dir.clone(),
            config: self.config_dir.clone(),
            mesh: self.mesh_dir.clone(),
        };
        let server_name = format!("{}.{}.svc", self.service, self.namespace);
        tokio::spawn(reload::follow(
            directories,
            server_name,
            self.namespace.clone(),
            loaded,
            metrics,
        ));

        let listener = self.listen(self.port).await?;
        tracing::info!(
            port = self.port,
            version = env!("CARGO_PKG_VERSION"),
            "serving admission"
        );
        let stop = leave(Arc::clone(&webhook))?;
        serve::serve_admission(webhook, listener, stop)
            .await
            .context("serve admission")?;
        health_stop.cancel();
        Ok(())
    }

    /// Both address families on one socket; IPv4 alone where a node has no IPv6.
    async fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        let wanted = SocketAddr::new(self.bind, port);
        match TcpListener::bind(wanted).await {
            Err(error)
                if self.bind == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.raw_os_error() == Some(EAFNOSUPPORT) =>
            {
                let fallback = SocketAddr::from(([0, 0, 0, 0], port));
                TcpListener::bind(fallback)
                    .await
                    .with_context(|| format!("listen on {fallback}"))
            }
            bound => bound.with_context(|| format!("listen on {wanted}")),
        }
    }
}

/// A replica that cannot learn the nodes' versions serves without them after this time.
const NODES_LIMIT: Duration = Duration::from_secs(10);

/// Linux' code of "address family not supported".
const EAFNOSUPPORT: i32 = 97;

/// Resolves when SIGTERM or SIGINT came and the time after it has passed in which the replica still serves; a second
/// signal ends that time.
fn leave(webhook: Arc<Webhook>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        tracing::info!("leaving");
        webhook.leave();
        tokio::select! {
            () = tokio::time::sleep(LAME_DUCK) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
