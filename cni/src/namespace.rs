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
        Self::open_apart(path, &[Path::new(OWN)])
    }

    /// The same, where the node is seen by its processes as well: the namespace of the first of them is refused, too.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] or [`NamespaceError::Own`].
    pub fn open_among(processes: &Path, path: &Path) -> Result<Self, NamespaceError> {
        Self::open_apart(path, &[Path::new(OWN), &processes.join("1/ns/net")])
    }

    fn open_apart(path: &Path, refused: &[&Path]) -> Result<Self, NamespaceError> {
        let named = |path: &Path| path.display().to_string();
        let open = |path: &Path| {
            let source = |source| NamespaceError::Open {
                path: named(path),
                source,
            };
            let file = File::open(path).map_err(source)?;
            let identity = file.metadata().map(|found| (found.dev(), found.ino()));
            Ok((file, identity.map_err(source)?))
        };
        let (file, identity) = open(path)?;
        for refused in refused {
            if open(refused)?.1 == identity {
                return Err(NamespaceError::Own { path: named(path) });
            }
        }
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

fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let found = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(found.collect())
}

const OWN: &str = "/proc/self/ns/net";
