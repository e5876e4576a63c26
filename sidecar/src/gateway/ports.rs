//! The ports that a gateway has open. They follow the configuration: what it names is opened before it is in force, what
//! it no longer names is closed, and the connections of that drain (LIFE-049).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::sleep;
use weft_bundle::model::Config;

use super::Credentials;
use crate::io::bind;
use crate::shared::{Shared, Snapshot};
use crate::worker::Worker;

/// A port that is open, or was and has connections that drain.
#[derive(Debug)]
pub struct OpenPort {
    /// Number.
    pub number: u16,
    /// A socket for each worker, until that one takes it.
    sockets: Vec<Mutex<Option<TcpListener>>>,
    /// The last configuration that named the port, once there is one that does not.
    last: ArcSwapOption<Snapshot>,
    stage: watch::Sender<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Nobody is accepted any more.
    Closed {
        /// How long what was accepted may go on.
        drain: Duration,
    },
    /// That time is over.
    Over,
}

impl OpenPort {
    /// Opens it for all workers.
    fn open(address: SocketAddr, workers: usize) -> io::Result<Arc<Self>> {
        let sockets = (0..workers).map(|_| Ok(Mutex::new(Some(bind(address, false)?))));
        Ok(Arc::new(Self {
            number: address.port(),
            sockets: sockets.collect::<io::Result<_>>()?,
            last: ArcSwapOption::empty(),
            stage: watch::Sender::new(Stage::Open),
        }))
    }

    /// The socket of a worker; `None` when it has taken it already.
    pub(crate) fn take(&self, worker: usize) -> Option<TcpListener> {
        let socket = self.sockets.get(worker)?;
        socket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The configuration that holds for what arrived here: the one in force, and after that names the port no more, the
    /// last one that did.
    pub(crate) fn snapshot(&self, worker: &Worker) -> Option<Arc<Snapshot>> {
        self.last.load_full().or_else(|| worker.snapshot())
    }

    /// Whether clients are to leave.
    pub(crate) fn is_closed(&self) -> bool {
        *self.stage.borrow() != Stage::Open
    }

    /// Waits until nobody is to be accepted any more.
    pub(crate) async fn closed(&self) {
        // The sender is a part of this value.
        let _ = self.stage.subscribe().wait_for(|stage| *stage != Stage::Open).await;
    }

    /// Waits until what was accepted must have ended.
    pub(crate) async fn over(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| *stage == Stage::Over).await;
    }

    /// Lets what was accepted go on for as long as it may, and ends it then. Any worker does it for all.
    pub(crate) async fn drain(&self) {
        let stage = *self.stage.borrow();
        if let Stage::Closed { drain } = stage {
            sleep(drain).await;
            self.stage
                .send_if_modified(|stage| std::mem::replace(stage, Stage::Over) != Stage::Over);
        }
    }

    fn close(&self, drain: Duration) {
        self.stage.send_replace(Stage::Closed { drain });
        // A worker that has not come to it yet has nobody's connections.
        for socket in &self.sockets {
            socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

/// All ports of a process; a sidecar has none.
#[derive(Debug)]
pub struct Ports {
    /// Where a gateway opens them.
    address: Option<IpAddr>,
    workers: usize,
    /// What servers at which TLS ends show.
    pub credentials: Credentials,
    /// Ports that cannot be opened, with what the kernel said.
    failed: Mutex<BTreeMap<u16, io::Error>>,
    open: watch::Sender<BTreeMap<u16, Arc<OpenPort>>>,
}

impl Ports {
    /// None is open yet.
    #[must_use]
    pub fn new(address: Option<IpAddr>, workers: usize) -> Self {
        Self {
            address,
            workers: workers.max(1),
            credentials: Credentials::default(),
            failed: Mutex::default(),
            open: watch::Sender::new(BTreeMap::new()),
        }
    }

    /// Puts a configuration in force, its ports open before and those that it does not name closed after; gives the one
    /// before. The caller is the only one who does.
    pub fn activate(&self, shared: &Shared, next: Arc<Snapshot>) -> Option<Arc<Snapshot>> {
        self.take_credentials(shared, &next.config);
        let mut open = self.open.borrow().clone();
        let wanted = |number: &u16| next.config.listeners.contains_key(number);
        self.lock_failed().retain(|number, _| wanted(number));
        self.open_missing(&mut open, &next);
        let closed: Vec<_> = open.values().filter(|port| !wanted(&port.number)).cloned().collect();
        open.retain(|number, _| wanted(number));
        let drain = Duration::from_millis(next.config.mesh.drain_ms);
        for port in &closed {
            port.last.store(shared.current.load_full());
        }
        let before = shared.current.swap(Some(next));
        self.open.send_replace(open);
        for port in closed {
            port.close(drain);
            tracing::info!(
                port = port.number,
                drain_s = drain.as_secs(),
                "port of the gateway closed"
            );
        }
        before
    }

    /// Makes ready what servers of a configuration show.
    pub fn take_credentials(&self, shared: &Shared, config: &Config) {
        if self.address.is_some() {
            self.credentials.make(config, &shared.credentials.files());
        }
    }

    /// Opens what could not be opened when its configuration came, and takes files of certificates that have changed.
    pub fn try_again(&self, shared: &Shared) {
        let Some(snapshot) = shared.current.load_full() else {
            return;
        };
        if self.credentials.has_files() {
            self.credentials.make(&snapshot.config, &shared.credentials.files());
        }
        if self.has_failed() {
            let mut open = self.open.borrow().clone();
            self.open_missing(&mut open, &snapshot);
            self.open.send_replace(open);
        }
    }

    /// Whether there is something to look at every now and then.
    #[must_use]
    pub fn needs_looks(&self) -> bool {
        self.has_failed() || self.credentials.has_files()
    }

    fn has_failed(&self) -> bool {
        !self.lock_failed().is_empty()
    }

    /// State of each port: the name of the error that keeps it closed, `None` where it is open.
    #[must_use]
    pub fn states(&self) -> BTreeMap<u16, Option<String>> {
        let open = self
            .open
            .borrow()
            .keys()
            .map(|number| (*number, None))
            .collect::<Vec<_>>();
        let failed = self.lock_failed();
        let failed = failed.iter().map(|(number, error)| (*number, Some(errno(error))));
        open.into_iter().chain(failed).collect()
    }

    /// Where a port is open or should be.
    #[must_use]
    pub fn address(&self, number: u16) -> Option<SocketAddr> {
        self.address.map(|address| SocketAddr::new(address, number))
    }

    /// Tells of ports as they are opened.
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<u16, Arc<OpenPort>>> {
        self.open.subscribe()
    }

    fn open_missing(&self, open: &mut BTreeMap<u16, Arc<OpenPort>>, snapshot: &Snapshot) {
        let mut failed = self.lock_failed();
        for number in snapshot.config.listeners.keys() {
            let Some(address) = self.address(*number).filter(|_| !open.contains_key(number)) else {
                continue;
            };
            match OpenPort::open(address, self.workers) {
                Ok(port) => {
                    failed.remove(number);
                    open.insert(*number, port);
                    tracing::info!(port = number, "port of the gateway opened");
                }
                Err(error) => {
                    if failed.get(number).is_none_or(|before| before.kind() != error.kind()) {
                        tracing::warn!(%address, %error, "port of the gateway cannot be opened: NotProgrammed");
                    }
                    failed.insert(*number, error);
                }
            }
        }
    }

    fn lock_failed(&self) -> MutexGuard<'_, BTreeMap<u16, io::Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `EADDRINUSE` and the like.
fn errno(error: &io::Error) -> String {
    let number = error.raw_os_error();
    number.map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}
