//! Network namespaces without a name: each is held by a file descriptor alone, so that nothing stays when the process
//! that holds it ends, however it ends (LOC-050).

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::address::Range;
use anyhow::Context;
use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    /// Makes a namespace whose loopback link is up.
    ///
    /// # Errors
    /// Those of `unshare(2)`: `EPERM` without the right to make one, `ENOSPC` above `user.max_net_namespaces`.
    pub fn create() -> anyhow::Result<Self> {
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = on_thread(make)?.context("make a network namespace")?;
        let namespace = Self(Arc::new(file));
        namespace.netlink(|handle| async move {
            let index = index_of(&handle, "lo").await?;
            handle
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await?;
            Ok(())
        })?;
        Ok(namespace)
    }

    /// Runs `work` on a thread that is in the namespace; sockets that it opens and processes that it starts stay
    /// there.
    ///
    /// # Errors
    /// Those of `setns(2)`, or that no thread could be started.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&*self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?
    }

    /// Starts a single-threaded tokio runtime whose thread is in the namespace for good: tasks spawned on it dial and
    /// listen there. It ends with the process.
    ///
    /// # Errors
    /// That the thread or the runtime could not be started.
    pub fn runtime(&self, name: &str) -> anyhow::Result<tokio::runtime::Handle> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let namespace = self.0.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let start = || -> io::Result<tokio::runtime::Runtime> {
                setns(&*namespace, CloneFlags::CLONE_NEWNET)?;
                tokio::runtime::Builder::new_current_thread().enable_all().build()
            };
            match start() {
                Ok(runtime) => {
                    let _ = tell.send(Ok(runtime.handle().clone()));
                    runtime.block_on(std::future::pending::<()>());
                }
                Err(e) => drop(tell.send(Err(e))),
            }
        })?;
        Ok(told.recv().context("the runtime's thread ended")??)
    }

    /// Talks rtnetlink in the namespace.
    fn netlink<F>(&self, work: impl FnOnce(Handle) -> F + Send) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                let connection = tokio::spawn(connection);
                let result = work(handle).await;
                connection.abort();
                result
            })
        })?
    }
}

/// The namespace that all pods of a run are connected to: a bridge, and routing between its ports. It has no link to
/// the machine's own network (LOC-021).
#[derive(Debug, Clone)]
pub struct Switch {
    namespace: Namespace,
    gateway: Ipv4Addr,
}

impl Switch {
    /// Makes it. Pods reach each other through `gateway`, an address of their range of `prefix` bits.
    ///
    /// # Errors
    /// Which step the kernel refused.
    pub fn create(gateway: Ipv4Addr, prefix: u8, services: (Ipv4Addr, u8)) -> anyhow::Result<Self> {
        let namespace = Namespace::create()?;
        namespace.netlink(move |handle| async move {
            handle
                .link()
                .add(LinkBridge::new(BRIDGE).up().build())
                .execute()
                .await
                .context("add the bridge")?;
            let index = index_of(&handle, BRIDGE).await?;
            handle
                .address()
                .add(index, gateway.into(), prefix)
                .execute()
                .await
                .context("give the bridge its address")?;
            // What no rule translates ends here at once instead of being resolved on the bridge (LOC-028). That is for
            // what pods send: the run's own connections are routed before they are translated, so they need a route.
            let unreachable = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(services.0, services.1)
                .kind(RouteType::Unreachable)
                .table_id(PODS_TABLE)
                .build();
            handle
                .route()
                .add(unreachable)
                .execute()
                .await
                .context("make unused service addresses unreachable")?;
            let own = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(services.0, services.1)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build();
            handle
                .route()
                .add(own)
                .execute()
                .await
                .context("add the route to services")?;
            let rule = handle
                .rule()
                .add()
                .v4()
                .input_interface(BRIDGE.to_owned())
                .table_id(PODS_TABLE);
            rule.action(RuleAction::ToTable)
                .execute()
                .await
                .context("add the rule for what pods send")?;
            Ok(())
        })?;
        namespace.within(|| -> anyhow::Result<()> {
            set_sysctl("net/ipv4/ip_forward", "1")?;
            // Traffic between two ports leaves by the link that it came from; nobody is to be told a shorter way,
            // because replies must come back through the translation.
            set_sysctl("net/ipv4/conf/all/send_redirects", "0")?;
            set_sysctl(&format!("net/ipv4/conf/{BRIDGE}/send_redirects"), "0")
        })??;
        Ok(Self { namespace, gateway })
    }

    /// The bridge's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Loses what is sent to addresses of a range, except for those that get a route of their own.
    ///
    /// # Errors
    /// That the kernel refused the route.
    pub fn silence(&self, range: Range) -> anyhow::Result<()> {
        self.namespace.netlink(move |handle| async move {
            let lost = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(range.base, range.prefix)
                .kind(RouteType::BlackHole)
                .build();
            let added = handle.route().add(lost).execute().await;
            added.with_context(|| format!("lose what is sent to {range}"))
        })
    }

    /// Leads to a pod whose address is outside of the pods' range.
    ///
    /// # Errors
    /// That the kernel refused the route.
    pub fn route(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.namespace.netlink(move |handle| async move {
            let link = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .output_interface(index_of(&handle, BRIDGE).await?)
                .scope(RouteScope::Link)
                .build();
            // A pod that is started again finds the route of its predecessor.
            let added = handle.route().add(link).replace().execute().await;
            added.with_context(|| format!("add the route to {address}"))
        })
    }

    /// Makes a namespace for a pod and connects it: address `address` on `eth0`, everything else by the gateway.
    /// It is disconnected when the last process and descriptor of the namespace is gone.
    ///
    /// # Errors
    /// Which step the kernel refused.
    pub fn attach(&self, address: Ipv4Addr) -> anyhow::Result<Namespace> {
        let pod = Namespace::create()?;
        let name = format!("p{:08x}", u32::from(address));
        let peer = pod.0.as_raw_fd();
        self.namespace.netlink(move |handle| async move {
            let veth = LinkVeth::new(&name, PEER).build();
            handle
                .link()
                .add(veth)
                .execute()
                .await
                .context("add a link for the pod")?;
            let index = index_of(&handle, PEER).await?;
            let far = LinkUnspec::new_with_index(index).setns_by_fd(peer).build();
            handle
                .link()
                .set(far)
                .execute()
                .await
                .context("move the link into the pod")?;
            let bridge = index_of(&handle, BRIDGE).await?;
            let near = LinkUnspec::new_with_index(index_of(&handle, &name).await?)
                .controller(bridge)
                .up()
                .build();
            handle
                .link()
                .set(near)
                .execute()
                .await
                .context("attach the link to the bridge")?;
            Ok(())
        })?;
        let gateway = self.gateway;
        pod.netlink(move |handle| async move {
            let index = index_of(&handle, PEER).await?;
            let eth0 = LinkUnspec::new_with_index(index).name("eth0").up().build();
            handle.link().set(eth0).execute().await.context("bring eth0 up")?;
            handle
                .address()
                .add(index, address.into(), 32)
                .execute()
                .await
                .context("give the pod its address")?;
            // One address only, so that neighbours are reached through the gateway, which translates services.
            let link = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(gateway, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build();
            handle
                .route()
                .add(link)
                .execute()
                .await
                .context("add the route to the gateway")?;
            let default = RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(index)
                .build();
            handle
                .route()
                .add(default)
                .execute()
                .await
                .context("add the default route")?;
            Ok(())
        })?;
        // Applications have no capabilities and may bind any port (LOC-027).
        pod.within(|| set_sysctl("net/ipv4/ip_unprivileged_port_start", "0"))??;
        Ok(pod)
    }
}

async fn index_of(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.with_context(|| format!("look up link {name}"))?;
    Ok(link.with_context(|| format!("link {name} is gone"))?.header.index)
}

fn set_sysctl(name: &str, value: &str) -> anyhow::Result<()> {
    // The files below /proc/sys/net are those of the namespace of the thread that opens them.
    std::fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("set {}", name.replace('/', ".")))
}

/// Runs `work` on a thread of its own and waits for it: the caller's namespaces stay as they are.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("namespace".to_owned())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .map_err(|_| io::Error::other("a namespace thread panicked"))
    })
}

const BRIDGE: &str = "weft0";
/// Routing table for what arrives from pods, looked at before the main one.
const PODS_TABLE: u32 = 98;
const PEER: &str = "weft-peer";
