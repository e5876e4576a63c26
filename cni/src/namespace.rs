//! Network namespaces other than this process's own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

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
    /// It is this process's own: the node's, whose rules are nobody's to touch.
    #[error("{path} is the node's own network namespace")]
    Own {
        /// Its file.
        path: String,
    },
    /// It could not be entered.
    #[error("enter the network namespace")]
    Enter(#[source] io::Error),
}

impl Namespace {
    /// Opens the namespace that a file stands for; this process's own is refused.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] or [`NamespaceError::Own`].
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
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
        let (_, own) = open(Path::new(OWN))?;
        if identity == own {
            return Err(NamespaceError::Own { path: named(path) });
        }
        Ok(Self(file))
    }

    /// Whether the namespace has one of these addresses: it is nobody else's then.
    ///
    /// # Errors
    /// [`NamespaceError::Enter`].
    pub fn has_one_of(&self, addresses: &[IpAddr]) -> Result<bool, NamespaceError> {
        // Only a local address can be bound.
        self.run(|| addresses.iter().any(|address| UdpSocket::bind((*address, 0)).is_ok()))
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

const OWN: &str = "/proc/self/ns/net";
