//! Service ports on 127.0.0.1 of this machine (LOC-024).

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use super::dns::Resolver;
use super::fabric::Reach;
use super::output::Output;
use super::up::Publish;

/// Listens for as long as the run lives. Connections go to the service as those of a pod without sidecar.
///
/// # Errors
/// That the port is taken.
pub(super) async fn listen(publish: Publish, resolver: Resolver, reach: Reach, output: &Output) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, publish.local));
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("publish {publish}: listen on {address}"))?;
    serve(listener, &publish, resolver, reach, output)
}

/// As [`listen`], at a free port where the one that is asked for cannot be had or is a privileged one.
///
/// # Errors
/// That there is none.
pub(super) async fn listen_somewhere(
    publish: Publish,
    resolver: Resolver,
    reach: Reach,
    output: &Output,
) -> anyhow::Result<()> {
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let wanted = if publish.local < FIRST_UNPRIVILEGED {
        0
    } else {
        publish.local
    };
    let listener = match at(wanted).await {
        Ok(listener) => listener,
        Err(_) => at(0)
            .await
            .with_context(|| format!("publish {publish}: listen on 127.0.0.1"))?,
    };
    serve(listener, &publish, resolver, reach, output)
}

fn serve(
    listener: TcpListener,
    publish: &Publish,
    resolver: Resolver,
    reach: Reach,
    output: &Output,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let scheme = if publish.port == 443 { "https" } else { "http" };
    output.note(&format!(
        "{}/{}:{} is at {scheme}://{address}",
        publish.namespace, publish.service, publish.port
    ));
    let host = format!("{}.{}.svc.cluster.local", publish.service, publish.namespace);
    let port = publish.port;
    tokio::spawn(async move {
        loop {
            let Ok((mut from, _)) = listener.accept().await else {
                continue;
            };
            let Some(target) = resolver.lookup(&host) else { continue };
            let reach = reach.clone();
            tokio::spawn(async move {
                if let Ok(mut to) = reach.dial(target, port).await {
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    Ok(())
}

/// Ports below are for whoever may bind them; nobody is asked to be root for a gateway.
const FIRST_UNPRIVILEGED: u16 = 1024;
