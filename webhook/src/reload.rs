//! Follows mounted directories and takes what is new and valid (INJ-204, INJ-212).
//!
//! A directory's `..data` link is compared every second: that costs one `readlink`, works on every runtime, and is far
//! below the minute that a kubelet takes to bring a change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::pki_types::UnixTime;
use weft_bundle::volume;

use crate::config::InjectConfig;
use crate::metrics::Metrics;
use crate::tls::{Certificate, Serving};

const INTERVAL: Duration = Duration::from_secs(1);

/// Where the webhook's files are mounted.
#[derive(Debug, Clone)]
pub struct Directories {
    /// `tls.crt`, `tls.key`, `ca.crt`.
    pub tls: PathBuf,
    /// `config`, `values`: ConfigMap `weft-injector`.
    pub config: PathBuf,
    /// `mesh`: ConfigMap `weft`.
    pub mesh: PathBuf,
}

/// What the files say, as last read and found valid.
#[derive(Debug)]
pub struct Loaded {
    /// The serving certificate.
    pub certificate: Arc<Serving>,
    /// The settings; `None` until a first valid version was read.
    pub config: ArcSwapOption<InjectConfig>,
}

impl Loaded {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            certificate: Arc::new(Serving::default()),
            config: ArcSwapOption::empty(),
        }
    }
}

impl Default for Loaded {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads the directories, and again whenever they change. Never returns.
///
/// `server_name` is the name under which the API server calls, `<service>.<namespace>.svc`; `namespace` is the control
/// plane's.
pub async fn follow(
    directories: Directories,
    server_name: String,
    namespace: String,
    loaded: Arc<Loaded>,
    metrics: Arc<Metrics>,
) {
    let mut tls = Watched::new(directories.tls.clone());
    let mut config = Watched::new(directories.config.clone());
    let mut mesh = Watched::new(directories.mesh.clone());
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if tls.changed() {
            match Certificate::load(&directories.tls, &server_name, UnixTime::now()) {
                Ok(certificate) => {
                    tracing::info!(not_after = certificate.not_after, "serving certificate loaded");
                    metrics.certificate(certificate.not_after);
                    loaded.certificate.set(certificate);
                    tls.taken();
                }
                Err(error) => {
                    tls.report("serving certificate not loaded", &error);
                }
            }
        }
        let (config_changed, mesh_changed) = (config.changed(), mesh.changed());
        if config_changed || mesh_changed {
            match settings(&directories, &namespace) {
                Ok(settings) => {
                    tracing::info!(revision = settings.revision, image = settings.image, "settings loaded");
                    loaded.config.store(Some(Arc::new(settings)));
                    config.taken();
                    mesh.taken();
                }
                Err(error) => {
                    // A version is counted once, however often it is looked at while it is there.
                    if config.report("settings not taken, the earlier ones stay", &error) {
                        metrics.config_rejected();
                    }
                }
            }
        }
    }
}

/// Why a version of the settings was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A directory cannot be read.
    #[error("read {dir}: {source}")]
    Read {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no text.
    #[error("{0}: must be UTF-8 text")]
    NotText(&'static str),
    /// The values are wrong.
    #[error(transparent)]
    Invalid(#[from] crate::config::InvalidConfig),
}

/// Reads both directories as they are now. A missing mesh config means its defaults.
///
/// # Errors
/// [`SettingsError`] names the directory, the file or the value.
pub fn settings(directories: &Directories, namespace: &str) -> Result<InjectConfig, SettingsError> {
    let read = |dir: &Path| {
        volume::read(dir).map_err(|source| SettingsError::Read {
            dir: dir.to_owned(),
            source,
        })
    };
    let files = read(&directories.config)?.files;
    let mesh = match read(&directories.mesh) {
        Ok(snapshot) => snapshot.files,
        Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Default::default(),
        Err(error) => return Err(error),
    };
    let text = |files: &weft_bundle::pack::Files, name: &'static str| {
        let bytes = files.get(name).cloned().unwrap_or_default();
        String::from_utf8(bytes.to_vec()).map_err(|_| SettingsError::NotText(name))
    };
    let mut settings = InjectConfig::parse(
        &text(&files, "config")?,
        &text(&files, "values")?,
        &text(&mesh, "mesh")?,
    )?;
    if !namespace.is_empty() {
        namespace.clone_into(&mut settings.control_plane_namespace);
    }
    Ok(settings)
}

/// One directory: whether it holds something that was not taken yet.
#[derive(Debug)]
struct Watched {
    dir: PathBuf,
    seen: Option<Seen>,
    taken: bool,
    reported: Option<(Option<Seen>, String)>,
}

/// What tells one content from the next: the link's target, or for a plain directory the newest change of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Link(PathBuf),
    Plain(Vec<(std::ffi::OsString, u64, Option<std::time::SystemTime>)>),
}

impl Watched {
    fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            seen: None,
            taken: false,
            reported: None,
        }
    }

    /// Whether there is something to read: a new content, or one that could not be taken so far.
    fn changed(&mut self) -> bool {
        let now = look(&self.dir);
        if now != self.seen {
            self.seen = now;
            self.taken = false;
        }
        !self.taken
    }

    fn taken(&mut self) {
        self.taken = true;
        self.reported = None;
    }

    /// Logs a failure once per content and message; says whether it did.
    fn report(&mut self, message: &'static str, error: &dyn std::error::Error) -> bool {
        let report = Some((self.seen.clone(), error.to_string()));
        if self.reported == report {
            return false;
        }
        tracing::warn!(dir = %self.dir.display(), %error, "{message}");
        self.reported = report;
        true
    }
}

fn look(dir: &Path) -> Option<Seen> {
    if let Some(target) = volume::target(dir).ok()? {
        return Some(Seen::Link(target));
    }
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.file_name(), metadata.len(), metadata.modified().ok()))
        })
        .collect();
    files.sort();
    Some(Seen::Plain(files))
}
