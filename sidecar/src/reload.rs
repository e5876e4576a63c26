//! Adopts what the volumes hold: configuration, endpoints, identity, each on its own, all or nothing, the last good
//! one staying until a better one is there (spec: delivery.md D and G, identity.md 11).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};
use weft_bundle::load::{self, LoadedEndpoints, Reason, Rejected, Stored};
use weft_bundle::model::{Cluster, Config, EndpointTable};
use weft_bundle::pace::breathe;
use weft_bundle::pack::{self, Files, MAX_SHARDS, TARGET_FILE};
use weft_bundle::volume;
use weft_bundle::wire::{EndpointsManifest, Manifest, Target};

use crate::io::is_shortage;
use crate::shared::{Shared, Snapshot};
use crate::tls::{Identity, MeshTrust};
use watches::{News, Watches};

mod watches;

/// Where the volumes are.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Configuration and endpoints.
    pub config: PathBuf,
    /// Identity.
    pub identity: PathBuf,
    /// Credentials that a gateway shows.
    pub credentials: PathBuf,
    /// Directory for the copy of the last good configuration; one that is not there disables it (LIFE-008).
    pub state: PathBuf,
    /// Key that a stored copy must have; empty: any (DLV-083).
    pub key: String,
}

/// State of delivery (DLV-090).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing was ever activated.
    #[default]
    Waiting,
    /// What the volume holds is in force.
    Active,
    /// The volume holds parts of different versions.
    Held,
    /// The volume holds something that is not used.
    Rejected,
    /// The volume is empty; the last one stays in force.
    Missing,
}

impl State {
    /// As `/config/status` writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Active => "Active",
            Self::Held => "Held",
            Self::Rejected => "Rejected",
            Self::Missing => "Missing",
        }
    }
}

/// What is in force, and what is not and why.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// State of the configuration.
    pub state: State,
    /// Since when, in seconds of the epoch.
    pub since: u64,
    /// Why the volume's content is not in force, in full.
    pub error: Option<String>,
    /// The same as a word and a position, without names (DLV-090).
    pub error_position: Option<String>,
    /// Revision of the configuration in force.
    pub config: Option<String>,
    /// Revision of the endpoints in force; `None` until they are complete (DLV-028).
    pub endpoints: Option<String>,
    /// What the operator last wrote (DLV-054).
    pub target: Option<Target>,
    /// Since when the revision in force is not the target.
    pub behind_since: Option<u64>,
    /// Key of the configuration.
    pub key: String,
    /// Which credentials there are (DLV-153); `None` without their volume.
    pub credentials: Option<String>,
    /// First 12 hex digits of the SHA-256 of the trust bundle in use.
    pub trust: Option<String>,
    /// Activations by part, for [`Report::served_since`].
    pub served_since: BTreeMap<&'static str, u64>,
}

/// Counters of delivery.
#[derive(Debug, Default)]
pub struct Counters {
    /// Activations of configurations.
    pub activated: AtomicU64,
    /// Refused configurations and endpoint shards, by reason.
    pub rejected: Mutex<BTreeMap<&'static str, u64>>,
    /// Identity reads by result (ID-112).
    pub identity: Mutex<BTreeMap<&'static str, u64>>,
}

/// Reads volumes and swaps what is in force.
#[derive(Debug)]
pub struct Reload {
    shared: Arc<Shared>,
    volumes: Volumes,
    report: Mutex<Report>,
    counters: Counters,
    inner: Mutex<Inner>,
    /// Files of the configuration in force, for dumps.
    files: Mutex<Option<Arc<Files>>>,
    events: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    config_target: Option<Option<PathBuf>>,
    identity_target: Option<Option<PathBuf>>,
    credentials_target: Option<Option<PathBuf>>,
    identity_files: Files,
    /// What the identity in force was made with.
    identity_trust: Option<MeshTrust>,
    shards: BTreeMap<usize, LoadedEndpoints>,
    /// Manifests of the endpoints in force, in order.
    endpoints: Vec<EndpointsManifest>,
    refused: Option<String>,
    /// Manifest of the configuration in force.
    manifest: Option<Manifest>,
    /// A configuration that waits for endpoints or credentials.
    held: Option<Held>,
    trust: Option<MeshTrust>,
    identity_retry: Option<(Instant, Duration)>,
    /// The volume could not be read now: it is looked at again at once (DLV-043).
    again: bool,
    ended_anchors: usize,
    /// Configurations that were replaced and may be in use.
    replaced: Vec<Arc<Snapshot>>,
    /// Who writes copies.
    copies: Option<mpsc::Sender<Files>>,
}

impl Inner {
    /// Frees replaced configurations that nobody uses any more: here, since whoever lets go of one last frees it, and a
    /// worker has requests waiting (LIFE-042, LIFE-052).
    fn free_replaced(&mut self) {
        self.replaced
            .retain(|snapshot| Arc::strong_count(snapshot) > 1 || Arc::strong_count(&snapshot.config) > 1);
    }
}

impl Reload {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, volumes: Volumes) -> Self {
        let report = Report {
            since: now(),
            ..Report::default()
        };
        Self {
            shared,
            volumes,
            report: Mutex::new(report),
            counters: Counters::default(),
            inner: Mutex::default(),
            files: Mutex::default(),
            events: AtomicBool::new(false),
        }
    }

    /// What is in force.
    #[must_use]
    pub fn report(&self) -> Report {
        self.lock_report().clone()
    }

    /// Files of the configuration in force.
    #[must_use]
    pub fn files(&self) -> Option<Arc<Files>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How changes are noticed: `inotify` or `poll` (DLV-045).
    #[must_use]
    pub fn watch_mode(&self) -> &'static str {
        if self.events.load(Ordering::Relaxed) {
            "inotify"
        } else {
            "poll"
        }
    }

    /// Whether configuration, endpoints and identity are all in force.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.shared.current.load().is_some()
            && self.lock_report().endpoints.is_some()
            && self.shared.identity.load().is_some()
    }

    /// Reads both volumes now, changed or not (LIFE-073, SIGHUP).
    pub fn read_all(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.config_target = None;
        inner.identity_target = None;
        inner.credentials_target = None;
        self.read(&mut inner);
    }

    /// Watches the volumes until the process ends: by inotify, and by looking at the link every minute; where there is
    /// no inotify, every two seconds (DLV-044, DLV-045).
    pub fn watch(self: &Arc<Self>) {
        // Of this thread alone, and of those that it starts.
        if let Err(e) = rustix::process::setpriority_process(None, NICE) {
            warn!(error = %e, "volumes are read at the priority of requests");
        }
        let (tell, told) = mpsc::channel();
        match Watches::start(self.directories()) {
            Ok(watches) => {
                self.events.store(true, Ordering::Relaxed);
                let (reload, tell) = (self.clone(), tell.clone());
                let follow = move || reload.follow(watches, &tell);
                if let Err(e) = std::thread::Builder::new().name("inotify".to_owned()).spawn(follow) {
                    self.events.store(false, Ordering::Relaxed);
                    warn!(error = %e, "no thread for inotify, volumes are looked at every 2 s");
                }
            }
            Err(e) => warn!(error = %e, "inotify is not available, volumes are looked at every 2 s"),
        }
        // Held for good, so that the channel never ends.
        let _tell = tell;
        loop {
            {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                self.read(&mut inner);
                self.tell_ended_anchors(&mut inner);
                self.shared.ports.try_again(&self.shared);
                inner.free_replaced();
            }
            let mut news = match told.recv_timeout(self.next_look()) {
                Ok(news) => settle(&told, news, SETTLE, SETTLE_LIMIT),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            news.extend(told.try_iter());
            if news.contains(&News::Lost) {
                // A directory that was made again may have a link of the same name.
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                inner.config_target = None;
                inner.identity_target = None;
                inner.credentials_target = None;
            }
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let mut all = vec![self.volumes.config.clone(), self.volumes.identity.clone()];
        if self.has_credentials() {
            all.push(self.volumes.credentials.clone());
        }
        all
    }

    /// Whether credentials can come: a pod may be without their volume (DLV-151).
    fn has_credentials(&self) -> bool {
        self.volumes.credentials.is_dir()
    }

    fn next_look(&self) -> Duration {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.again || inner.held.is_some() || inner.identity_retry.is_some() {
            return Duration::from_millis(100);
        }
        let is_calm = inner.replaced.is_empty() && !self.shared.ports.needs_looks();
        let look = if self.events.load(Ordering::Relaxed) && is_calm {
            LOOK
        } else {
            POLL
        };
        let identity = self.shared.identity.load();
        let left = identity
            .as_ref()
            .and_then(|identity| identity.next_anchor_end())
            .map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        // A moment later, so that it has ended then.
        left.map_or(look, |left| look.min(left + Duration::from_millis(10)))
    }

    /// Reads events until nobody listens; a watch that is lost is made again (DLV-044).
    fn follow(&self, mut watches: Watches, tell: &mpsc::Sender<News>) {
        loop {
            let news = watches.next();
            if news == News::Lost {
                self.events.store(false, Ordering::Relaxed);
                watches = loop {
                    match Watches::start(self.directories()) {
                        Ok(watches) => break watches,
                        // The directory may come back; the link is looked at meanwhile.
                        Err(_) => std::thread::park_timeout(POLL),
                    }
                };
                self.events.store(true, Ordering::Relaxed);
            }
            if tell.send(news).is_err() {
                return;
            }
        }
    }

    /// Anchors that end while they are in use are told of once (ID-060).
    fn tell_ended_anchors(&self, inner: &mut Inner) {
        let identity = self.shared.identity.load();
        let ended = identity.as_ref().map_or(0, |identity| identity.expired_anchors());
        if ended > inner.ended_anchors {
            warn!(target: "identity", anchors = ended, "trust anchors have expired and verify nobody any more");
        }
        inner.ended_anchors = ended;
    }

    fn read(&self, inner: &mut Inner) {
        inner.again = false;
        // First, so that what a new configuration names is there.
        self.read_credentials(inner);
        self.read_config(inner);
        self.read_identity(inner);
    }

    fn read_credentials(&self, inner: &mut Inner) {
        if !self.has_credentials() {
            return;
        }
        let dir = &self.volumes.credentials;
        let target = volume::target(dir).ok();
        // A plain directory has no link that tells a new set from the one before.
        let is_plain = target.as_ref().is_none_or(Option::is_none);
        if !is_plain && target == inner.credentials_target {
            return;
        }
        let read = volume::read(dir);
        inner.again |= is_unreadable_now(&read);
        let Ok(snapshot) = read else { return };
        inner.credentials_target = Some(snapshot.target);
        let revision = pack::credentials_revision(&snapshot.files);
        let changed = self.shared.credentials.take(snapshot.files);
        // Who asks is told of what is in use.
        self.lock_report().credentials = Some(revision);
        if changed && let Some(current) = self.shared.current.load_full() {
            self.shared.ports.take_credentials(&self.shared, &current.config);
            self.shared.credentials.forget(&current.config);
        }
    }

    fn read_config(&self, inner: &mut Inner) {
        let begun = Instant::now();
        let dir = &self.volumes.config;
        let target = volume::target(dir).ok();
        let is_new = target.is_none() || target != inner.config_target || target == Some(None);
        let held = inner.held.is_some();
        if !is_new && !held {
            return;
        }
        let read = volume::read(dir);
        if is_unreadable_now(&read) {
            inner.again = true;
            return;
        }
        let files = match read {
            Ok(snapshot) => {
                inner.config_target = Some(snapshot.target);
                snapshot.files
            }
            // Not there yet: looked at again.
            Err(_) => Files::new(),
        };
        let text = files
            .get(TARGET_FILE)
            .map(|b| String::from_utf8_lossy(b).into_owned())
            .unwrap_or_default();
        self.lock_report().target = Target::parse(&text);
        self.adopt_endpoints(inner, &files);
        let result = load::stored(&files).and_then(|stored| stored.map(|stored| self.parse(inner, stored)).transpose());
        match result {
            Ok(Some(None)) => {
                inner.held = None;
                self.set_state(State::Active, None);
            }
            Ok(Some(Some(parsed))) => self.adopt_config(inner, &files, parsed, begun),
            Ok(None) if self.shared.current.load().is_some() => self.set_state(State::Missing, None),
            Ok(None) => self.start_from_copy(inner),
            Err(rejected) => {
                let state = if rejected.reason == Reason::Incomplete {
                    State::Held
                } else {
                    State::Rejected
                };
                self.refuse(inner, &rejected, state);
                if self.shared.current.load().is_none() {
                    self.start_from_copy(inner);
                }
            }
        }
        self.compare_with_target();
    }

    /// Reads a configuration, unless it is the one in force.
    fn parse(&self, inner: &Inner, stored: Stored) -> Result<Option<Parsed>, Rejected> {
        if inner.manifest.as_ref() == Some(&stored.manifest) {
            return Ok(None);
        }
        if let Some(held) = inner
            .held
            .as_ref()
            .filter(|held| held.parsed.manifest == stored.manifest)
        {
            return Ok(Some(held.parsed.clone()));
        }
        let current = self.shared.current.load();
        let before = current.as_ref().map(|snapshot| &*snapshot.config);
        let config = Arc::new(stored.content()?.config(before)?);
        let manifest = stored.manifest;
        Ok(Some(Parsed { manifest, config }))
    }

    fn adopt_config(&self, inner: &mut Inner, files: &Files, parsed: Parsed, begun: Instant) {
        let active = self.shared.current.load_full();
        if active.as_ref().map(|snapshot| &snapshot.revision) == Some(&parsed.manifest.revision) {
            inner.held = None;
            self.set_state(State::Active, None);
            return;
        }
        // A host that endpoints do not name yet: they are on their way, for a while (DLV-101).
        let table = self.shared.endpoints.load();
        let before = active.as_ref().map(|snapshot| &*snapshot.config);
        let missing = parsed.config.hosts.iter().any(|h| table.host(&h.host).is_none());
        // The same of credentials: of those that are not there the volume says so.
        let waits = if missing {
            Some("waits for the endpoints of a new host")
        } else if self.has_credentials() && self.shared.credentials.lacks(&parsed.config, before) {
            Some("waits for a new credential")
        } else {
            None
        };
        if let Some(why) = waits.filter(|_| active.is_some()) {
            let now = Instant::now();
            let (since, first) = match &inner.held {
                Some(held) if held.parsed.manifest.revision == parsed.manifest.revision => (held.since, held.first),
                Some(held) => (now, held.first),
                None => (now, now),
            };
            // One that is replaced before its time is over passes on what is left: something is in force in the end.
            if since.elapsed() < HOLD && first.elapsed() < HOLD_IN_ALL {
                inner.held = Some(Held { parsed, since, first });
                self.set_state(State::Held, Some(why.into()));
                return;
            }
        }
        let Parsed { manifest, config } = parsed;
        let revision = manifest.revision.clone();
        inner.held = None;
        inner.refused = None;
        let trust = MeshTrust::of(&config.mesh);
        breathe();
        let counts = Counts::of(&config, before);
        let endpoints: usize = table.hosts().map(|host| host.endpoints.len()).sum();
        let listeners = self.shared.listeners().len() + config.listeners.len();
        let next = Arc::new(Snapshot {
            config: config.clone(),
            revision: revision.clone(),
        });
        breathe();
        let replaced = self.shared.ports.activate(&self.shared, next);
        breathe();
        inner.replaced.extend(replaced);
        self.shared.credentials.forget(&config);
        self.counters.activated.fetch_add(1, Ordering::Relaxed);
        info!(
            revision,
            listeners,
            hosts = counts.hosts,
            routes = config.routes(),
            clusters = counts.clusters,
            changed_clusters = counts.changed,
            endpoints,
            elapsed_us = begun.elapsed().as_micros() as u64,
            "configuration activated"
        );
        {
            let mut report = self.lock_report();
            report.config = Some(revision);
            report.key.clone_from(&manifest.key);
            report.served_since.insert("cfg", now());
        }
        inner.manifest = Some(manifest);
        self.set_state(State::Active, None);
        let own = files
            .iter()
            .filter(|(name, _)| !name.starts_with("ep-") && *name != TARGET_FILE);
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(
            own.map(|(name, bytes)| (name.clone(), bytes.clone())).collect(),
        ));
        if inner.trust.as_ref() != Some(&trust) {
            inner.trust = Some(trust);
            inner.identity_target = None;
        }
        self.store_copy(inner, files);
    }

    /// Each shard is judged by itself (DLV-027); one that vanishes keeps its last content, unless those that are there state
    /// a smaller number (DLV-028).
    fn adopt_endpoints(&self, inner: &mut Inner, files: &Files) {
        let mut stated = BTreeSet::new();
        for n in 0..MAX_SHARDS {
            // By the whole manifest: one without hosts has the same content whatever the number of shards is.
            let known = inner.shards.get(&n).map(|shard| &shard.manifest);
            let new = load::stored_endpoints(files, n).and_then(|stored| {
                let Some(stored) = stored else { return Ok(None) };
                let number = stored.manifest.shards as usize;
                let is_new = known != Some(&stored.manifest);
                let loaded = is_new.then(|| stored.read()).transpose()?;
                Ok(Some((number, loaded)))
            });
            match new {
                Ok(Some((number, loaded))) => {
                    stated.insert(number);
                    inner.shards.extend(loaded.map(|loaded| (n, loaded)));
                }
                Ok(None) => {}
                Err(rejected) => self.count_rejected(inner, &rejected),
            }
        }
        // Shards that name different numbers are held until they agree, because hosts move between them.
        let (Some(&count), 1) = (stated.first(), stated.len()) else {
            return;
        };
        let set = inner.shards.range(..count);
        let manifests: Vec<_> = set.map(|(_, shard)| shard.manifest.clone()).collect();
        let agree = manifests.iter().all(|manifest| manifest.shards as usize == count);
        if !agree || manifests.len() != count || manifests == inner.endpoints {
            return;
        }
        inner.shards.retain(|n, _| *n < count);
        let shards: Vec<_> = inner.shards.values().map(|s| s.endpoints.clone()).collect();
        let before = self.shared.endpoints.load_full();
        let table = EndpointTable::new(&shards, Some(&before));
        self.shared.endpoints.store(Arc::new(table));
        let revision = load::endpoints_revision(&manifests);
        inner.endpoints = manifests;
        info!(revision, shards = count, "endpoints activated");
        let mut report = self.lock_report();
        report.endpoints = Some(revision);
        report.served_since.insert("ep", now());
    }

    fn refuse(&self, inner: &mut Inner, rejected: &Rejected, state: State) {
        self.count_rejected(inner, rejected);
        let line = rejected.line.map(|l| format!(":{l}")).unwrap_or_default();
        self.lock_report().error_position = Some(format!("{} {}{line}", rejected.reason.as_str(), rejected.file));
        self.set_state(state, Some(rejected.to_string()));
    }

    /// Told and counted once for the same content.
    fn count_rejected(&self, inner: &mut Inner, rejected: &Rejected) {
        let text = rejected.to_string();
        if inner.refused.as_ref() == Some(&text) {
            return;
        }
        warn!(
            reason = rejected.reason.as_str(),
            error = text,
            "configuration refused, the last good one stays"
        );
        inner.refused = Some(text);
        let mut counts = self.counters.rejected.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(rejected.reason.as_str()).or_default() += 1;
    }

    fn read_identity(&self, inner: &mut Inner) {
        let dir = &self.volumes.identity;
        let target = volume::target(dir).ok();
        // A plain directory has no link that tells a new set from the one before.
        let is_plain = target.as_ref().is_none_or(Option::is_none);
        let is_new = !is_plain && target != inner.identity_target;
        let is_due = inner.identity_retry.is_some_and(|(at, _)| Instant::now() >= at);
        if is_new {
            // Another set is read at once and told of anew, whatever became of the one before.
            inner.identity_retry = None;
        } else if !is_due && (!is_plain || inner.identity_retry.is_some()) {
            return;
        }
        let read = volume::read(dir);
        inner.again |= is_unreadable_now(&read);
        let Ok(snapshot) = read else { return };
        let Some(trust) = inner.trust.clone() else { return };
        inner.identity_target = Some(snapshot.target);
        // The same files under another trust give another identity.
        let is_same = snapshot.files == inner.identity_files && inner.identity_trust.as_ref() == Some(&trust);
        if is_same && !is_due && self.shared.identity.load().is_some() {
            return;
        }
        let part = |name: &str| snapshot.files.get(name).map(Vec::as_slice).unwrap_or_default();
        let roots = part("root-cert.pem");
        match Identity::from_pem(part("cert-chain.pem"), part("key.pem"), roots, &trust) {
            Ok(identity) => {
                let present = self.shared.identity.load();
                let is_worse = !identity.is_valid() && present.as_ref().is_some_and(|p| p.is_valid());
                if is_worse {
                    self.count_identity("expired");
                    warn!(target: "identity", "the new certificate has expired already, the present one stays");
                    return;
                }
                info!(target: "identity", spiffe_id = %identity.spiffe_id, serial = identity.serial, "identity activated");
                self.shared.identity.store(Some(Arc::new(identity)));
                self.count_identity("ok");
                let mut report = self.lock_report();
                let mut hash = pack::sha256(roots);
                hash.truncate(12);
                if report.trust.as_ref() != Some(&hash) {
                    report.served_since.insert("trust", now());
                }
                report.trust = Some(hash);
                // A certificate is not newer because it is judged by other roots or names of the trust domain.
                if inner.identity_files.get("cert-chain.pem") != snapshot.files.get("cert-chain.pem") {
                    report.served_since.insert("cert", now());
                }
                inner.identity_files = snapshot.files;
                inner.identity_trust = Some(trust);
                inner.identity_retry = None;
            }
            Err(e) => {
                // Files that do not fit yet may be replaced in a moment: 100 ms, doubling to 10 s (ID-112).
                let wait = inner
                    .identity_retry
                    .map_or(Duration::from_millis(100), |(_, w)| (w * 2).min(RETRY_LIMIT));
                if inner.identity_retry.is_none() {
                    warn!(target: "identity", error = %e, "identity refused, the last good one stays");
                    self.count_identity(e.reason());
                }
                inner.identity_retry = Some((Instant::now() + wait, wait));
            }
        }
    }

    fn count_identity(&self, result: &'static str) {
        let mut counts = self.counters.identity.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(result).or_default() += 1;
    }

    /// Keeps what was delivered, for a container that starts again without it (DLV-082). Another thread writes it: a disk
    /// that is busy takes seconds, and the next configuration is not to wait for it.
    fn store_copy(&self, inner: &mut Inner, files: &Files) {
        let state = &self.volumes.state;
        // A set that came from the copy has no files to store.
        if files.is_empty() || !state.is_dir() {
            return;
        }
        if inner.copies.is_none() {
            let (tell, told) = mpsc::channel::<Files>();
            let state = state.clone();
            let copying = std::thread::Builder::new().name("copy".to_owned()).spawn(move || {
                while let Ok(files) = told.recv() {
                    // Only the last one is of use.
                    write_copy(&state, &told.try_iter().last().unwrap_or(files));
                }
            });
            inner.copies = copying.is_ok().then_some(tell);
        }
        match &inner.copies {
            // The thread lives as long as this sender.
            Some(tell) => drop(tell.send(files.clone())),
            None => write_copy(state, files),
        }
    }

    /// Starts with the copy of the last good configuration (DLV-082, DLV-083).
    fn start_from_copy(&self, inner: &mut Inner) {
        let kept = self.volumes.state.join("lkg");
        let Some(files) = read_copy(&kept) else { return };
        let Ok(Some(stored)) = load::stored(&files) else { return };
        if !self.volumes.key.is_empty() && stored.manifest.key != self.volumes.key {
            return;
        }
        let Ok(Some(parsed)) = self.parse(inner, stored) else {
            return;
        };
        info!(
            revision = parsed.manifest.revision,
            "the stored copy of the configuration is used"
        );
        self.adopt_endpoints(inner, &files);
        self.adopt_config(inner, &Files::new(), parsed, Instant::now());
    }

    fn compare_with_target(&self) {
        let mut report = self.lock_report();
        let behind = report.target.as_ref().is_some_and(|t| {
            report.config.as_ref() != Some(&t.config) || report.endpoints.as_ref() != Some(&t.endpoints)
        });
        report.behind_since = behind.then(|| report.behind_since.unwrap_or_else(now));
    }

    fn set_state(&self, state: State, error: Option<String>) {
        let mut report = self.lock_report();
        if report.state != state {
            report.since = now();
            report.state = state;
        }
        if error.is_none() {
            report.error_position = None;
        }
        report.error = error;
    }

    fn lock_report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A configuration that is not in force yet.
#[derive(Debug)]
struct Held {
    parsed: Parsed,
    /// Since when.
    since: Instant,
    /// Since when it or one that it replaced waits.
    first: Instant,
}

/// A configuration that can be put in force.
#[derive(Debug, Clone)]
struct Parsed {
    manifest: Manifest,
    config: Arc<Config>,
}

/// What an activation tells of itself (LIFE-095).
struct Counts {
    hosts: usize,
    clusters: usize,
    /// Destinations that are new, gone, or differ.
    changed: usize,
}

impl Counts {
    fn of(new: &Config, old: Option<&Config>) -> Self {
        let of_old = |place: usize, c: &Arc<Cluster>| {
            // What did not change is most often where it was.
            let there = old.and_then(|old| old.clusters.get(place));
            there
                .filter(|there| Arc::ptr_eq(there, c))
                .or_else(|| old?.cluster(&c.name))
        };
        let is_same = |c: &Cluster, old: &Cluster| c.policy == old.policy && c.protocol == old.protocol;
        let (mut kept, mut differ) = (0, 0);
        for (place, cluster) in new.clusters.iter().enumerate() {
            breathe();
            match of_old(place, cluster) {
                Some(old) => {
                    kept += 1;
                    differ += usize::from(!Arc::ptr_eq(old, cluster) && !is_same(cluster, old));
                }
                None => differ += 1,
            }
        }
        Self {
            hosts: new.hosts.len(),
            clusters: new.clusters.len(),
            changed: differ + old.map_or(0, |old| old.clusters.len()) - kept,
        }
    }
}

/// Swapped ten times in a row while it was read, or no descriptor is left for it: what is in force stays, and it is looked
/// at again after 100 ms (DLV-043).
fn is_unreadable_now(read: &io::Result<volume::Snapshot>) -> bool {
    read.as_ref()
        .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock || is_shortage(e))
}

fn write_copy(state: &Path, files: &Files) {
    let (fresh, kept) = (state.join("lkg.new"), state.join("lkg"));
    let write = || -> io::Result<()> {
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh)?;
        for (name, bytes) in files {
            let mut file = fs::File::create(fresh.join(name))?;
            io::Write::write_all(&mut file, bytes)?;
            file.sync_all()?;
        }
        let _ = fs::remove_dir_all(&kept);
        fs::rename(&fresh, &kept)
    };
    if let Err(e) = write() {
        warn!(error = %e, "the copy of the configuration could not be written");
    }
}

fn read_copy(dir: &Path) -> Option<Files> {
    volume::read(dir).ok().map(|s| s.files).filter(|f| !f.is_empty())
}

/// Seconds of the epoch.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Waits until plain directories are left alone, so that files written one by one are read once; whoever writes without a
/// pause is read all the same (DLV-046). A swap is whole, and not waited for.
fn settle(told: &mpsc::Receiver<News>, first: News, pause: Duration, limit: Duration) -> Vec<News> {
    let latest = Instant::now() + limit;
    let mut all = vec![first];
    while all.last() == Some(&News::Written) {
        let left = latest.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match told.recv_timeout(pause.min(left)) {
            Ok(News::Written) => {}
            Ok(news) => all.push(news),
            Err(_) => break,
        }
    }
    all
}

/// How long a plain directory must be left alone.
const SETTLE: Duration = Duration::from_millis(100);
/// How long it is waited for that at most.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// How often the links are looked at beside what inotify tells.
const LOOK: Duration = Duration::from_secs(60);
/// How often without inotify.
const POLL: Duration = Duration::from_secs(2);
const HOLD: Duration = Duration::from_secs(5);
/// How long configurations that replace one another are held.
const HOLD_IN_ALL: Duration = Duration::from_secs(15);
/// Niceness of reading: what is urgent is requests.
const NICE: i32 = 10;
const RETRY_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    // spec: DLV-046
    #[test]
    fn files_written_one_by_one_are_read_once_and_without_a_pause_in_the_end() {
        for (writes, at_least, at_most) in [(6, 1100, 2900), (u32::MAX, 3000, 30_000)] {
            let (tell, told) = mpsc::channel();
            let writer = std::thread::spawn(move || {
                for _ in 0..writes {
                    std::thread::park_timeout(Duration::from_millis(30));
                    if tell.send(News::Written).is_err() {
                        return;
                    }
                }
                // A writer that is done keeps the channel.
                std::thread::park_timeout(Duration::from_secs(30));
            });
            let begin = Instant::now();
            // Longer than the real ones, so that a busy machine changes nothing.
            let (pause, limit) = (Duration::from_secs(1), Duration::from_secs(3));
            assert_eq!(settle(&told, News::Written, pause, limit), [News::Written]);
            let took = begin.elapsed();
            let expected = Duration::from_millis(at_least)..Duration::from_millis(at_most);
            assert!(expected.contains(&took), "{took:?}");
            drop(told);
            writer.thread().unpark();
            writer.join().expect("written");
        }
    }

    // spec: DLV-041, DLV-046
    #[test]
    fn a_swap_is_read_at_once() {
        let (tell, told) = mpsc::channel();
        let begin = Instant::now();
        let pause = Duration::from_secs(30);
        assert_eq!(settle(&told, News::Swapped, pause, pause), [News::Swapped]);
        tell.send(News::Swapped).expect("told");
        let both = settle(&told, News::Written, pause, pause);
        assert_eq!(both, [News::Written, News::Swapped]);
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}
