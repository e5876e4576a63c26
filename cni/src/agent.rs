//! The DaemonSet's process: keeps the plugin installed on its node, and mends pods that began without it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::install::{KUBECONFIG, Places, Wanted};
use crate::network::Settings;
use crate::repair::{Controller, Mode};

/// Where the plugin's files are.
#[derive(Debug, Clone, clap::Args)]
pub struct Directories {
    /// The node's directory of CNI plugins, as it is mounted here
    #[arg(long, default_value = "/host/bin")]
    pub bin_dir: PathBuf,
    /// The node's directory of network configurations, as it is mounted here
    #[arg(long, default_value = "/host/conf")]
    pub conf_dir: PathBuf,
    /// The network configuration to be chained in; unset: the first by name, which is the one that runtimes take
    #[arg(long, env = "WEFT_CNI_CONF_NAME")]
    pub conf_name: Option<String>,
}

impl Directories {
    /// The same, for whoever writes there.
    #[must_use]
    pub fn places(&self) -> Places {
        Places {
            bin_dir: self.bin_dir.clone(),
            conf_dir: self.conf_dir.clone(),
            conf_name: self.conf_name.clone().filter(|name| !name.is_empty()),
        }
    }
}

/// Parameters of the agent.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where the plugin's files are.
    #[command(flatten)]
    pub directories: Directories,
    /// The path of the directory of network configurations on the node
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub node_conf_dir: PathBuf,
    /// Namespace of the control plane, whose pods are left alone
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// Other namespaces whose pods are left alone
    #[arg(
        long,
        env = "WEFT_CNI_EXCLUDED_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub excluded_namespaces: Vec<String>,
    /// This node
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The DaemonSet of this agent: where it is gone, the plugin is removed at the end
    #[arg(long, default_value = "weft-cni")]
    pub daemon_set: String,
    /// For how many seconds after SIGTERM the DaemonSet is asked for; less than the pod's grace period
    #[arg(long, default_value_t = 25)]
    pub leave_limit: u64,
    /// What becomes of pods that began before the plugin was ready
    #[arg(long, env = "WEFT_CNI_REPAIR_MODE", value_enum, default_value = "repair")]
    pub repair_mode: Mode,
    /// What the rules are written by: auto, nftables or iptables
    #[arg(long, env = "WEFT_CNI_BACKEND", default_value = "auto", value_parser = ["auto", "nftables", "iptables"])]
    pub backend: String,
    /// Variant of iptables: nft or legacy; empty: the one that is in use
    #[arg(long, env = "WEFT_CNI_IPTABLES_BINARY", default_value = "", value_parser = ["", "nft", "legacy"])]
    pub iptables_binary: String,
    /// Address of the API server; unset: that of the cluster's Service
    #[arg(long)]
    pub server: Option<String>,
    /// Directory with token and CA of the service account
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub account_dir: PathBuf,
    /// Where /healthz and /readyz are served
    #[arg(long, default_value = "[::]:15014")]
    pub listen: SocketAddr,
}

impl Arguments {
    fn settings(&self) -> Settings {
        let is_set = |text: &String| !text.is_empty();
        Settings {
            kubeconfig: self.node_conf_dir.join(KUBECONFIG),
            namespace: self.namespace.clone(),
            excluded_namespaces: self
                .excluded_namespaces
                .iter()
                .filter(|name| is_set(name))
                .cloned()
                .collect(),
            backend: Some(self.backend.clone()).filter(|name| name != "auto"),
            iptables_binary: Some(self.iptables_binary.clone()).filter(is_set),
        }
    }

    fn wanted(&self) -> Result<Wanted> {
        let server = match &self.server {
            Some(server) => server.clone(),
            None => service_address()?,
        };
        Ok(Wanted {
            program: std::env::current_exe().context("find the own program")?,
            settings: self.settings(),
            server,
            account: self.account_dir.clone(),
        })
    }
}

/// Runs until SIGTERM; then removes the plugin, unless another agent will follow on this node.
///
/// # Errors
/// What keeps the agent from starting. What keeps the plugin from being installed is shown by its readiness, as it may pass.
pub async fn run(arguments: &Arguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let client = Client::try_default().await.context("find the API server")?;
    let (places, wanted) = (arguments.directories.places(), arguments.wanted()?);
    let (installed, is_installed) = watch::channel(Err("not installed yet".to_owned()));
    let (synced, is_synced) = watch::channel(arguments.repair_mode == Mode::Off);
    serve(arguments.listen, is_installed, is_synced).await?;
    let changed = Arc::new(Notify::new());
    // A kubelet renews a token by a rename in its directory.
    for directory in [&places.bin_dir, &places.conf_dir, &arguments.account_dir] {
        follow(directory, Arc::clone(&changed))?;
    }
    let (stop, stopped) = watch::channel(());
    let keeping = tokio::spawn(keep(places.clone(), wanted.clone(), changed, installed, stopped));
    let mending = (arguments.repair_mode != Mode::Off).then(|| {
        let controller = Controller {
            client: client.clone(),
            node: arguments.node.clone(),
            mode: arguments.repair_mode,
            settings: wanted.settings.clone(),
            synced,
        };
        tokio::spawn(controller.run())
    });
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let limit = Instant::now() + Duration::from_secs(arguments.leave_limit.min(MOST));
    // Nobody may put back what is removed now, so what is being installed is waited for.
    drop(stop);
    keeping.await.context("end the installation")?;
    if let Some(mending) = mending {
        mending.abort();
    }
    match leaving(&client, &arguments.namespace, &arguments.daemon_set, limit).await {
        Leaving::Restart(reason) => tracing::info!(reason, "the plugin stays"),
        Leaving::Uninstall(reason) => {
            tracing::info!(reason, "the plugin is removed");
            places.remove().context("remove the plugin")?;
        }
    }
    Ok(())
}

/// Installs, and again whenever something changes; a slow timer finds what no event told. Ends with the
/// sender of `stopped`, and never in the middle of an installation.
async fn keep(
    places: Places,
    wanted: Wanted,
    changed: Arc<Notify>,
    installed: watch::Sender<Result<(), String>>,
    mut stopped: watch::Receiver<()>,
) {
    loop {
        let (target, source) = (places.clone(), wanted.clone());
        let outcome = tokio::task::spawn_blocking(move || target.install(&source)).await;
        let outcome = match outcome {
            Ok(Ok(written)) => {
                if written {
                    tracing::info!("the plugin was installed, or put back where somebody had changed it");
                }
                Ok(())
            }
            Ok(Err(error)) => Err(format!("{:#}", anyhow::Error::from(error))),
            Err(error) => Err(error.to_string()),
        };
        if let Err(problem) = &outcome
            && *installed.borrow() != outcome
        {
            tracing::warn!(problem, "the plugin is not installed");
        }
        installed.send_modify(|shown| *shown = outcome);
        let pause = async {
            drop(tokio::time::timeout(INTERVAL, changed.notified()).await);
            // Whoever rewrites a file does it in steps.
            tokio::time::sleep(SETTLING).await;
        };
        tokio::select! {
            _ = stopped.changed() => return,
            () = pause => {}
        }
    }
}

/// Tells of changes in a directory, from a thread: inotify blocks.
fn follow(directory: &Path, changed: Arc<Notify>) -> Result<()> {
    let context = || format!("watch {}", directory.display());
    let mut inotify = Inotify::init().with_context(context)?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::ATTRIB
        | WatchMask::ONLYDIR;
    inotify.watches().add(directory, mask).with_context(context)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // Without events the timer of `keep` is left.
        while inotify.read_events_blocking(&mut buffer).is_ok() {
            changed.notify_one();
        }
    });
    Ok(())
}

/// What the end of the agent means for the plugin.
#[derive(Debug, PartialEq, Eq)]
enum Leaving {
    /// Another agent follows: without the plugin pods would begin without a redirect in between.
    Restart(&'static str),
    /// None does: with the plugin no pod would begin any more.
    Uninstall(&'static str),
}

/// Asks for the DaemonSet. Where its rights or its account are gone, the installation is on its way out, and the plugin,
/// which uses the same account, could not work: it is removed then, too. A wrong removal is mended by the next agent; a
/// plugin that stays behind lets no pod begin. So an API server that does not tell is asked again, until `limit`.
async fn leaving(client: &Client, namespace: &str, name: &str, limit: Instant) -> Leaving {
    let all: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let mut pause = FIRST_PAUSE;
    loop {
        let patience = limit.min(Instant::now() + PATIENCE);
        match tokio::time::timeout_at(patience, all.get_metadata_opt(name)).await {
            Ok(Ok(None)) => return Leaving::Uninstall("the DaemonSet is gone"),
            Ok(Ok(Some(found))) if found.metadata.deletion_timestamp.is_some() => {
                return Leaving::Uninstall("the DaemonSet is being deleted");
            }
            Ok(Ok(Some(_))) => return Leaving::Restart("the DaemonSet is there"),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                return Leaving::Uninstall("the agent's account or its rights are gone");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        if Instant::now() + pause >= limit {
            return Leaving::Restart("the API server does not tell whether the DaemonSet is there");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PATIENCE);
    }
}

async fn serve(
    address: SocketAddr,
    installed: watch::Receiver<Result<(), String>>,
    synced: watch::Receiver<bool>,
) -> Result<()> {
    let listener = listen(address, TcpListener::bind).await?;
    let ready = move || {
        let (installed, synced) = (installed.borrow().clone(), *synced.borrow());
        async move {
            match installed {
                Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
                Ok(()) if !synced => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the pods of the node are not known yet\n".to_owned(),
                ),
                Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the port of readiness closed");
        }
    });
    Ok(())
}

/// Both address families on one socket; IPv4 alone where a node has no IPv6.
async fn listen<T>(address: SocketAddr, bind: impl AsyncFn(SocketAddr) -> io::Result<T>) -> Result<T> {
    match bind(address).await {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.raw_os_error() == Some(EAFNOSUPPORT) =>
        {
            let fallback = SocketAddr::from(([0, 0, 0, 0], address.port()));
            bind(fallback).await.with_context(|| format!("listen on {fallback}"))
        }
        bound => bound.with_context(|| format!("listen on {address}")),
    }
}

/// The API server's Service: the node reaches it as pods do.
fn service_address() -> Result<String> {
    let read = |name: &str| std::env::var(name).with_context(|| format!("variable {name} is not set; give --server"));
    let (host, port) = (read("KUBERNETES_SERVICE_HOST")?, read("KUBERNETES_SERVICE_PORT")?);
    Ok(if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    })
}

const INTERVAL: Duration = Duration::from_secs(60);
const SETTLING: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Seconds of `--leave-limit`: a time that can be added to any other.
const MOST: u64 = 3600;
/// Linux' code of "address family not supported".
const EAFNOSUPPORT: i32 = nix::errno::Errno::EAFNOSUPPORT as i32;

#[cfg(test)]
mod tests {
    use super::*;

    // spec: NET-132
    #[tokio::test]
    async fn a_node_without_ipv6_is_served_by_ipv4() {
        let without = async |address: SocketAddr| match address {
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(EAFNOSUPPORT)),
            SocketAddr::V4(_) => Ok(address),
        };
        let any = "[::]:15014".parse().expect("an address");
        assert_eq!(
            listen(any, without).await.expect("listens"),
            "0.0.0.0:15014".parse().expect("an address")
        );
        // One that was asked for is not exchanged, and other reasons do not go away.
        assert!(
            listen("[::1]:15014".parse().expect("an address"), without)
                .await
                .is_err()
        );
        let taken = async |_: SocketAddr| Err::<(), _>(io::Error::from(io::ErrorKind::AddrInUse));
        let told = listen(any, taken).await.expect_err("is taken").to_string();
        assert_eq!(told, "listen on [::]:15014");
    }
}
