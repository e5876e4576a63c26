//! Network namespaces other than this process's own.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

/// A network namespace, which stays as long as this is held.
#[derive(Debug)]
pub struct Namespace(File);

/// Why nothing could be done in a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It is not there.
    #[error("open network namespace {path}")]
    Open {
        /// Its file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is this process's own, or that of the node's first process: the node's, whose rules are nobody's to touch.
    #[error("{path} is the node's own network namespace")]
    Own {
        /// Its file.
        path: String,
    },
    /// It could not be entered.
    #[error("enter the network namespace")]
    Enter(#[source] io::Error),
    /// Its interfaces are not to be seen.
    #[error("list the addresses of the network namespace")]
    Addresses(#[source] io::Error),
}

impl Namespace {
    /// Opens the namespace that a file stands for; this process's own is refused.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] or [`NamespaceError::Own`].
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let (file, identity) = open(path)?;
        apart(path, identity, open(Path::new(OWN))?.1)?;
        Ok(Self(file))
    }

    /// The same, where the node is seen by its processes as well: the node's is refused, too.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] or [`NamespaceError::Own`].
    pub fn open_among(processes: &Path, path: &Path) -> Result<Self, NamespaceError> {
        let (file, identity) = open(path)?;
        apart(path, identity, open(Path::new(OWN))?.1)?;
        apart(path, identity, of_node(processes)?)?;
        Ok(Self(file))
    }

    /// Whether the namespace has one of these addresses: it is nobody else's then.
    ///
    /// # Errors
    /// [`NamespaceError::Enter`] or [`NamespaceError::Addresses`].
    pub fn has_one_of(&self, addresses: &[IpAddr]) -> Result<bool, NamespaceError> {
        // With `ip_nonlocal_bind` others can be bound, too, so the interfaces are asked.
        let own = self.run(own_addresses)?;
        let own = own.map_err(|errno| NamespaceError::Addresses(errno.into()))?;
        Ok(addresses.iter().any(|address| own.contains(address)))
    }

    /// Runs something in the namespace, on a thread of its own, as a namespace is a matter of threads.
    ///
    /// # Errors
    /// [`NamespaceError::Enter`].
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        std::thread::scope(|scope| {
            let outcome = scope
                .spawn(|| setns(&self.0, CloneFlags::CLONE_NEWNET).map(|()| task()))
                .join();
            match outcome {
                Ok(entered) => entered.map_err(|errno| NamespaceError::Enter(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// What tells one namespace from another.
type Identity = (u64, u64);

fn open(path: &Path) -> Result<(File, Identity), NamespaceError> {
    let failed = |source| NamespaceError::Open {
        path: path.display().to_string(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    Ok((file, (found.dev(), found.ino())))
}

fn apart(path: &Path, one: Identity, other: Identity) -> Result<(), NamespaceError> {
    if one == other {
        let path = path.display().to_string();
        return Err(NamespaceError::Own { path });
    }
    Ok(())
}

/// The node's namespace: that of its first process. One that lets nobody look tells nothing, and the kernel's own threads
/// are in the same.
fn of_node(processes: &Path) -> Result<Identity, NamespaceError> {
    let of = |process: &str| open(&processes.join(process).join("ns/net")).map(|(_, identity)| identity);
    let is_kernel = || std::fs::read_to_string(processes.join("2/comm")).is_ok_and(|name| name.trim() == "kthreadd");
    of("1").or_else(|error| if is_kernel() { of("2") } else { Err(error) })
}

fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let found = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(found.collect())
}

const OWN: &str = "/proc/self/ns/net";
