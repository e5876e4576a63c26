//! The operator itself: one task that owns all state, reads the watches' events, and settles once they pause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::runtime::events::{Event as Notice, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_bundle::key::{KeyInputs, config_name, endpoints_name, identity_name};

use crate::acknowledge::{self, Holdouts, Target};
use crate::authority::{Authorities, Step};
use crate::certificate;
use crate::deliver::{self, Content, IDENTITY_TYPE, Place, Plan, Present, Resource, Surplus, Unused, Writer};
use crate::identity::held::{self, Held};
use crate::identity::{Authority, SpiffeId, secret};
use crate::leaving::{Endpoints, Leaving};
use crate::metrics::Metrics;
use crate::render::{Output, Renderer};
use crate::source::{self, Event};
use crate::status;
use crate::succession::{Facts, Succession};
use crate::trust;
use crate::world::{self, Kind, Object, ObjectRef, Settings, Store};

/// What the rest of the process is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// All kinds are listed and rendered once.
    pub synced: bool,
    /// Why the operator is not ready though it is synced (DLV-085, ID-046).
    pub problem: Option<String>,
}

/// State of the operator.
pub struct Operator {
    settings: Arc<Settings>,
    client: Client,
    metrics: Arc<Metrics>,
    health: watch::Sender<Health>,
    leads: watch::Receiver<bool>,
    targets: watch::Sender<acknowledge::Targets>,
    conditions: status::Handle,
    store: Store,
    renderer: Renderer,
    output: Arc<Output>,
    writer: Writer,
    present: Present,
    manifests: BTreeMap<Place, KeyInputs>,
    authorities: Authorities,
    succession: Succession,
    leaving: Leaving,
    followed: watch::Receiver<acknowledge::Targets>,
    holdouts: watch::Receiver<Holdouts>,
    recorder: Recorder,
    mismatches: BTreeMap<acknowledge::PodId, String>,
    certificate: certificate::Keeper,
    held: BTreeMap<Place, (Content, Held)>,
    unused: Unused,
    anchor: Option<OwnerReference>,
    waiting: BTreeSet<&'static str>,
    credentials: source::NamedCredentials,
    tell: Option<mpsc::WeakSender<Event>>,
    is_dirty: bool,
    is_rendered: bool,
    pause: Duration,
}

/// What the operator talks to.
pub struct Wires {
    /// Health of the process.
    pub health: watch::Sender<Health>,
    /// Whether this replica leads.
    pub leads: watch::Receiver<bool>,
    /// What pods are to have.
    pub targets: watch::Sender<acknowledge::Targets>,
    /// Targets that `holdouts` is about.
    pub followed: watch::Receiver<acknowledge::Targets>,
    /// Pods that do not have what they are to have.
    pub holdouts: watch::Receiver<Holdouts>,
    /// Status of mesh objects.
    pub conditions: status::Handle,
}

impl Operator {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings, client: Client, metrics: Arc<Metrics>, wires: Wires) -> Self {
        let Wires {
            health,
            leads,
            targets,
            followed,
            holdouts,
            conditions,
        } = wires;
        let reporter = Reporter {
            controller: deliver::MANAGER.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            mismatches: BTreeMap::new(),
            succession: Succession::default(),
            leaving: Leaving::default(),
            followed,
            holdouts,
            certificate: certificate::Keeper::new(client.clone(), &settings),
            writer: Writer::new(client.clone()),
            store: Store::new(settings.clone()),
            settings: Arc::new(settings),
            client,
            metrics,
            health,
            leads,
            targets,
            conditions,
            renderer: Renderer::new(),
            output: Arc::default(),
            present: Present::new(),
            manifests: BTreeMap::new(),
            authorities: Authorities::default(),
            held: BTreeMap::new(),
            unused: Unused::default(),
            anchor: None,
            waiting: BTreeSet::new(),
            credentials: source::NamedCredentials::default(),
            tell: None,
            is_dirty: true,
            is_rendered: false,
            pause: FIRST_RETRY,
        }
    }

    /// Runs until the watches end, which they do not.
    pub async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(CHANNEL);
        self.waiting = source::start(&self.client, &self.settings, &tell).into_iter().collect();
        // Held weakly, so that the channel ends with the watches.
        self.tell = Some(tell.downgrade());
        drop(tell);
        let mut leads = self.leads.clone();
        let mut pending = Collected::default();
        let mut next = Instant::now() + RESYNC;
        loop {
            let due = pending.due.map_or(next, |due| due.min(next));
            tokio::select! {
                event = told.recv() => {
                    let Some(event) = event else { return };
                    let is_new = self.is_new_key(&event);
                    if self.take(event) {
                        pending.add(Instant::now(), is_new);
                    }
                    continue;
                }
                changed = leads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
            pending = Collected::default();
            next = Instant::now()
                + if self.waiting.is_empty() {
                    self.settle().await
                } else {
                    RESYNC
                };
        }
    }

    /// Whether an event brings a key that has no configuration yet: what has it waits for it.
    fn is_new_key(&self, event: &Event) -> bool {
        let Event::World(world::Event::Apply(object)) = event else {
            return false;
        };
        if let Object::Pod(pod) = object {
            let key = world::pod::config_key(pod);
            let reference = key.map(|key| crate::render::ConfigRef {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                key: key.to_owned(),
            });
            return reference.is_some_and(|reference| !self.output.configs.contains_key(&reference));
        }
        self.store.is_new_template(object)
    }

    /// Takes an event; whether it asks for settling.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::World(event) => {
                if !self.is_of_interest(&event) {
                    return false;
                }
                let changed = self.store.apply(event);
                self.is_dirty |= changed;
                changed
            }
            Event::ConfigMap((namespace, name), object) => {
                let place = Place {
                    resource: Resource::ConfigMap,
                    namespace,
                    name,
                };
                self.take_manifest(&place, object.as_deref());
                self.take_present(place, object.map(|o| Content::of_config_map(&o)))
            }
            Event::Secret((namespace, name), object) => {
                let place = Place {
                    resource: Resource::Secret,
                    namespace,
                    name,
                };
                self.take_present(place, object.map(|o| Content::of_secret(&o)))
            }
            Event::Authority(name, object) => {
                self.authorities.take(name, object);
                true
            }
            Event::Status(reference, observed) => {
                self.conditions.observe(reference, observed);
                false
            }
            Event::Anchor(uid) => {
                self.anchor = uid.map(|uid| anchor(&self.settings.revision, uid));
                true
            }
            Event::Webhooks => true,
            Event::Synced(name) => {
                tracing::debug!(kind = name, "listed");
                self.waiting.remove(name);
                self.waiting.is_empty()
            }
        }
    }

    /// Of an object that is watched no more something may still be on the way.
    fn is_of_interest(&self, event: &world::Event) -> bool {
        match event {
            world::Event::Apply(Object::Credential { reference, .. }) => self.credentials.has(reference),
            _ => true,
        }
    }

    /// Watches the Secrets and ConfigMaps that mesh objects name now.
    fn follow_credentials(&mut self) {
        let Some(tell) = self.tell.as_ref().and_then(mpsc::WeakSender::upgrade) else {
            return;
        };
        let named = &self.output.named_credentials;
        for reference in self.credentials.follow(&self.client, named, &tell) {
            self.store.apply(world::Event::Delete(reference));
        }
    }

    fn take_present(&mut self, place: Place, content: Option<Content>) -> bool {
        match content {
            Some(content) => self.present.insert(place, content.clone()) != Some(content),
            None => self.present.remove(&place).is_some(),
        }
    }

    /// A key is rendered again from its own manifest as long as pods use it (DLV-017).
    fn take_manifest(&mut self, place: &Place, map: Option<&ConfigMap>) {
        let inputs = map
            .and_then(|m| m.data.as_ref()?.get("manifest.json"))
            .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
            .and_then(|mut manifest| serde_json::from_value::<KeyInputs>(manifest.get_mut("inputs")?.take()).ok())
            .filter(|inputs| {
                inputs.revision == self.settings.revision
                    && inputs.namespace == place.namespace
                    && config_name(&inputs.key(), 0) == place.name
            });
        let Place { namespace, name, .. } = place.clone();
        if self.manifests.get(place) == inputs.as_ref() {
            return;
        }
        match inputs {
            Some(inputs) => {
                self.manifests.insert(place.clone(), inputs.clone());
                let object = Object::ConfigManifest {
                    namespace,
                    name,
                    inputs: Arc::new(inputs),
                };
                self.is_dirty |= self.store.apply(world::Event::Apply(object));
            }
            // While pods use the key, its inputs are remembered: an object deleted by hand comes back (DLV-081).
            None if self
                .output
                .pods
                .iter()
                .any(|((ns, _), pod)| *ns == namespace && config_name(&pod.key, 0) == name) => {}
            None => {
                self.manifests.remove(place);
                let reference = ObjectRef {
                    kind: Kind::ConfigManifest,
                    namespace,
                    name,
                };
                self.is_dirty |= self.store.apply(world::Event::Delete(reference));
            }
        }
    }

    /// Renders what changed and writes what differs; when to look again at the latest.
    async fn settle(&mut self) -> Duration {
        let world = self.store.world();
        if self.is_dirty {
            let begun = std::time::Instant::now();
            self.output = Arc::new(self.renderer.render(&world));
            self.is_dirty = false;
            self.is_rendered = true;
            self.follow_credentials();
            self.metrics.rendered(begun.elapsed(), &self.output);
            for failure in &self.output.failures {
                let key = failure.key.as_deref().unwrap_or("endpoints");
                tracing::warn!(
                    namespace = failure.namespace,
                    key,
                    problem = failure.message,
                    "not rendered; the last version stays"
                );
            }
        }
        let leads = *self.leads.borrow();
        self.metrics.leads(leads);
        if !leads {
            self.targets.send_if_modified(|t| !std::mem::take(t).is_empty());
            self.conditions.want(Arc::default(), false);
            self.tell_health(None);
            return RESYNC;
        }
        let trust_domain = world.trust_domain();
        let authority = match self.authorities.step(&trust_domain, SystemTime::now()) {
            Ok(Step::Use(authority)) => Some(authority),
            Ok(Step::Create(secret)) => {
                self.create_authority(*secret).await;
                None
            }
            Ok(Step::Wait) => None,
            Err(error) => {
                tracing::error!(%error, "no authority");
                None
            }
        };
        let problem = self
            .authorities
            .problem()
            .or(self.store.mesh_error())
            .map(str::to_owned);
        self.tell_health(problem);
        let Some(authority) = authority else { return FIRST_RETRY };
        let (authority, roots, waits) = self.succeed(&authority, &world);
        self.tell_mismatches(&world).await;
        let (mut wanted, renewal) = self.identities(&world, &authority, &roots);
        let endpoints = self.keep_leaving();
        wanted.extend(deliver::config_maps(
            &self.output,
            &endpoints,
            &roots,
            &self.settings.revision,
            self.anchor.as_ref(),
        ));
        let (credentials, undecided) =
            deliver::credentials(&self.output, &self.settings.revision, self.anchor.as_ref());
        wanted.extend(credentials);
        // What is on its way out takes no new objects.
        let is_ending = |name: &str| {
            world
                .namespaces
                .get(name)
                .is_none_or(|n| n.metadata.deletion_timestamp.is_some())
        };
        wanted.retain(|place, _| !is_ending(&place.namespace));
        let asked: BTreeSet<Place> = wanted.keys().cloned().chain(undecided).collect();
        let surplus = deliver::surplus(&wanted, &self.present, &self.settings.revision);
        let plan = Plan::new(wanted, &self.present);
        let mut is_written = true;
        if !plan.is_empty() {
            tracing::info!(first = plan.first.len(), then = plan.then.len(), "writing objects");
            is_written &= self.write(plan.first).await;
        }
        // Before the pods are told: they hold what is new until shards of the set before are gone (DLV-028).
        is_written &= self.delete_surplus(surplus).await;
        if !plan.then.is_empty() {
            is_written &= self.write(plan.then).await;
        }
        is_written &= self.certificate.settle(&mut self.present).await;
        self.collect(&asked).await;
        if is_written {
            self.pause = FIRST_RETRY;
            self.tell_targets(&endpoints, &roots);
            self.leaving.told();
            self.conditions.want(self.output.clone(), true);
        }
        if is_written {
            let look = match (self.leaving.waits(), waits) {
                (true, _) => LEAVING_LOOK,
                (_, true) => SUCCESSION_LOOK,
                _ => RESYNC,
            };
            renewal.min(look)
        } else {
            self.pause = (self.pause * 2).min(LONGEST_RETRY);
            self.pause
        }
    }

    async fn write(&mut self, writes: Vec<deliver::Write>) -> bool {
        let (written, failed) = self.writer.write(writes).await;
        for (place, content) in written {
            tracing::info!(object = %place, "written");
            self.metrics.written();
            self.present.insert(place, content);
        }
        for error in &failed {
            self.metrics.refused();
            tracing::warn!(error = %Chain(error), "not written");
        }
        // A conflict of names waits for whoever made the other object.
        failed
            .iter()
            .all(|e| matches!(e, deliver::WriteError::NameConflict { .. }))
    }

    /// Deletes shards that their sets have no more, once the rest of the set is what it is to be.
    async fn delete_surplus(&mut self, surplus: Vec<Surplus>) -> bool {
        let mut is_done = true;
        for shard in surplus {
            // What was not written is written again, and then this is done.
            if !shard.is_replaced(&self.present) {
                continue;
            }
            match self.writer.delete(&shard.place).await {
                Ok(()) => {
                    tracing::info!(object = %shard.place, "deleted: its set has fewer shards");
                    self.present.remove(&shard.place);
                }
                Err(error) => {
                    is_done = false;
                    tracing::warn!(error = %Chain(&error), "not deleted");
                }
            }
        }
        is_done
    }

    /// Deletes what nobody has asked for in a while.
    async fn collect(&mut self, asked: &BTreeSet<Place>) {
        let failures = &self.output.failures;
        let revision = &self.settings.revision;
        let is_wanted = |place: &Place| {
            let kept = failures
                .iter()
                .filter(|f| f.namespace == place.namespace)
                .any(|f| match &f.key {
                    Some(key) => is_shard(&config_name(key, 0), &place.name),
                    None => is_shard(&endpoints_name(revision, &f.namespace, 0), &place.name),
                });
            asked.contains(place) || kept
        };
        for place in self
            .unused
            .due(is_wanted, &self.present, revision, std::time::Instant::now())
        {
            match self.writer.delete(&place).await {
                Ok(()) => tracing::info!(object = %place, "deleted: unused"),
                Err(error) => tracing::warn!(error = %Chain(&error), "not deleted"),
            }
        }
    }

    /// Secrets of service accounts, and how long until the first of them is renewed.
    fn identities(
        &mut self,
        world: &world::World,
        authority: &Authority,
        roots: &str,
    ) -> (BTreeMap<Place, Content>, Duration) {
        let now = SystemTime::now();
        let trust_domain = world.trust_domain();
        let mut all = BTreeMap::new();
        let mut first = RESYNC;
        for identity in &self.output.identities {
            let account = (identity.namespace.clone(), identity.service_account.clone());
            let Some(uid) = world.accounts.get(&account).and_then(|a| a.metadata.uid.clone()) else {
                continue;
            };
            let id = SpiffeId {
                trust_domain: trust_domain.clone(),
                namespace: identity.namespace.clone(),
                service_account: identity.service_account.clone(),
            };
            let place = Place {
                resource: Resource::Secret,
                namespace: identity.namespace.clone(),
                name: identity_name(&identity.service_account),
            };
            let present = self
                .present
                .get(&place)
                .filter(|c| c.secret_type.as_deref() == Some(IDENTITY_TYPE));
            // Reading a certificate is dear: what was good stays good while it does not change.
            let held = present.and_then(|content| match self.held.get(&place) {
                Some((seen, held)) if seen == content => Some(*held),
                _ => Held::read(&content.files, &content.annotations, &id, authority, now),
            });
            let content = match (present, held.filter(|h| h.renew_at > now)) {
                (Some(content), Some(held)) => {
                    first = first.min(held.renew_at.duration_since(now).unwrap_or_default());
                    self.held.insert(place.clone(), (content.clone(), held));
                    let mut files = (*content.files).clone();
                    files.retain(|name, _| matches!(name.as_str(), "cert-chain.pem" | "key.pem"));
                    files.insert("root-cert.pem".into(), roots.as_bytes().to_vec());
                    let annotations = content
                        .annotations
                        .iter()
                        .filter(|(name, _)| name.starts_with("weft.dev/"));
                    (files, annotations.map(|(k, v)| (k.clone(), v.clone())).collect())
                }
                _ => match authority.issue(&id, &self.settings.identity, now) {
                    Ok(leaf) => {
                        self.metrics.issued();
                        let profile = &self.settings.identity;
                        let renewal = profile.renew_at(leaf.not_before, leaf.not_after, random());
                        (secret(&leaf, roots), held::annotations(&leaf, &id, renewal))
                    }
                    Err(error) => {
                        tracing::error!(%error, identity = %id, "no certificate");
                        continue;
                    }
                },
            };
            let (files, annotations) = content;
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "ServiceAccount".into(),
                name: identity.service_account.clone(),
                uid,
                ..OwnerReference::default()
            };
            let content = Content {
                files: Arc::new(files),
                labels: deliver::labels(&self.settings.revision),
                annotations,
                owners: vec![owner],
                secret_type: Some(IDENTITY_TYPE.to_owned()),
            };
            all.insert(place, content);
        }
        self.held.retain(|place, _| all.contains_key(place));
        (all, first)
    }

    /// Who signs now, and the trust bundle.
    fn succeed(&mut self, wanted: &Arc<Authority>, world: &world::World) -> (Arc<Authority>, String, bool) {
        let revision = &self.settings.revision;
        let identities = self
            .present
            .values()
            .filter(|content| content.secret_type.as_deref() == Some(IDENTITY_TYPE) && content.is_of(revision));
        let secrets: Vec<_> = identities.map(|content| &*content.files).collect();
        let facts = Facts {
            wanted,
            before: self.authorities.replaced(SystemTime::now()),
            secrets: &secrets,
            acknowledged: self.holdouts.borrow().is_empty() && *self.followed.borrow() == *self.targets.borrow(),
            ttl: self.settings.identity.ttl,
        };
        let choice = self.succession.choose(&facts, Instant::now());
        (choice.signer, trust::bundle(&choice.roots, &world.mesh), choice.waits)
    }

    /// Endpoints with the hosts that some proxy may still name.
    fn keep_leaving(&mut self) -> Endpoints {
        let (followed, targets) = (self.followed.borrow().clone(), self.targets.borrow().clone());
        let holdouts = self.holdouts.borrow().clone();
        let has_latest = |namespace: &str| acknowledge::has_latest(namespace, &followed, &targets, &holdouts);
        let limits = &self.settings.limits;
        self.leaving.keep(&self.output, limits, has_latest, Instant::now())
    }

    /// Tells of pods with a key that is none of theirs, once for each (DLV-017).
    async fn tell_mismatches(&mut self, world: &world::World) {
        let unexplained = &self.output.unexplained;
        self.mismatches.retain(|id, key| unexplained.get(id) == Some(key));
        for (id, key) in unexplained {
            let Some(pod) = world.pods.get(id).filter(|_| !self.mismatches.contains_key(id)) else {
                continue;
            };
            let note = format!(
                "annotation weft.dev/config-key is {key}, which is the key of no pod as it was created and of no workload: \
                 the pod gets no configuration; delete it, so that it is created anew"
            );
            let event = Notice {
                type_: EventType::Warning,
                reason: "KeyMismatch".to_owned(),
                note: Some(note),
                action: "Render".to_owned(),
                secondary: None,
            };
            match self.recorder.publish(&event, &pod.object_ref(&())).await {
                Ok(()) => drop(self.mismatches.insert(id.clone(), key.clone())),
                Err(error) => {
                    tracing::warn!(%error, namespace = id.0, pod = id.1, key, "event KeyMismatch not written")
                }
            }
        }
    }

    async fn create_authority(&self, secret: Secret) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        match api
            .create(
                &PostParams {
                    field_manager: Some(deliver::MANAGER.into()),
                    ..PostParams::default()
                },
                &secret,
            )
            .await
        {
            Ok(_) => tracing::info!(secret = source::SELF_SIGNED, "created the root of the mesh"),
            // Another replica was first; the watch brings its root.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => tracing::warn!(%error, secret = source::SELF_SIGNED, "not created"),
        }
    }

    /// What each running pod is to acknowledge.
    fn tell_targets(&self, endpoints: &Endpoints, roots: &str) {
        let mut trust = weft_bundle::pack::sha256(roots.as_bytes());
        trust.truncate(12);
        let pods = self.output.pods.iter().filter(|(_, p)| p.running && !p.terminating);
        let targets: acknowledge::Targets = pods
            .filter_map(|((namespace, name), pod)| {
                let reference = crate::render::ConfigRef {
                    namespace: namespace.clone(),
                    key: pod.key.clone(),
                };
                let target = Target {
                    address: std::net::SocketAddr::new(pod.address?, pod.status_port),
                    config: self.output.configs.get(&reference)?.revision.clone(),
                    endpoints: endpoints.get(namespace)?.revision.clone(),
                    trust: trust.clone(),
                    credentials: self.output.credentials.get(&reference).and_then(|credentials| {
                        let is_known = credentials.is_complete && pod.mounts.credentials != Some(0);
                        is_known.then(|| credentials.revision.clone())
                    }),
                };
                Some(((namespace.clone(), name.clone()), target))
            })
            .collect();
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            *known = targets;
            changed
        });
    }

    fn tell_health(&self, problem: Option<String>) {
        let health = Health {
            synced: self.is_rendered,
            problem,
        };
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            if changed {
                if let Some(problem) = &health.problem {
                    tracing::error!(problem, "not ready");
                }
                *known = health;
            }
            changed
        });
    }
}

/// Changes that are collected until they are settled together (DLV-070).
#[derive(Debug, Default)]
struct Collected {
    first: Option<Instant>,
    due: Option<Instant>,
}

impl Collected {
    /// One more; `at_once`: it does not wait for others.
    fn add(&mut self, now: Instant, at_once: bool) {
        let first = *self.first.get_or_insert(now);
        let due = if at_once {
            now
        } else {
            (now + QUIET).min(first + LONGEST_DELAY)
        };
        // What is due already stays so.
        self.due = Some(self.due.filter(|before| *before <= now).unwrap_or(due));
    }
}

/// The owner of everything rendered, so that it goes with the installation.
fn anchor(revision: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".into(),
        kind: "ClusterRole".into(),
        name: source::of_revision(source::ANCHOR, revision),
        uid,
        ..OwnerReference::default()
    }
}

/// Whether a name is that of the first shard, or of another one of the same set.
fn is_shard(first: &str, name: &str) -> bool {
    let stem = |name: &str| name.rsplit_once('-').map(|(stem, _)| stem.to_owned());
    stem(first) == stem(name)
}

/// -1 to 1, of nobody's choosing.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "53 of the bits are enough")]
    let unit = bits as f64 / u64::MAX as f64;
    unit * 2.0 - 1.0
}

/// An error with its causes.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

const CHANNEL: usize = 1024;
/// Changes that come together are rendered together.
const QUIET: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// How often it is looked at whether hosts that are gone may leave.
const LEAVING_LOOK: Duration = Duration::from_secs(2);
/// How often it is looked at whether a new authority may sign.
const SUCCESSION_LOOK: Duration = Duration::from_secs(15);
/// Everything is compared at least this often (DLV-086).
const RESYNC: Duration = Duration::from_secs(600);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;

    use super::*;

    fn operator() -> Operator {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        // Nobody is asked.
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let config = kube::Config::new(format!("http://{address}").parse().expect("a URI"));
        let client = Client::try_from(config).expect("a client");
        let metrics = Arc::new(Metrics::default());
        let targets = watch::Sender::new(acknowledge::Targets::new());
        let followed = (targets.subscribe(), targets.subscribe());
        let acknowledged = watch::channel(acknowledge::Acknowledged::new()).1;
        let (_, conditions) =
            status::Writer::new(client.clone(), metrics.clone(), "weft-system", acknowledged, followed);
        let wires = Wires {
            health: watch::Sender::new(Health::default()),
            leads: watch::channel(true).1,
            followed: targets.subscribe(),
            holdouts: watch::channel(Holdouts::new()).1,
            targets,
            conditions,
        };
        Operator::new(Settings::default(), client, metrics, wires)
    }

    // spec: DLV-070
    #[tokio::test]
    async fn a_key_without_configuration_waits_for_no_pause() {
        let mut operator = operator();
        let namespace = json!({"metadata": {"name": "shop", "labels": {"weft.dev/inject": "enabled"}}});
        let namespace = serde_json::from_value(namespace).expect("a namespace");
        operator
            .store
            .apply(world::Event::Apply(Object::Namespace(Arc::new(namespace))));
        let template = json!({"metadata": {"name": "cart", "namespace": "shop"}, "spec": {"selector": {}, "template":
            {"metadata": {"labels": {"app": "cart"}}, "spec": {"containers": [{"name": "app"}]}}}});
        let deployment = Object::Deployment(Arc::new(serde_json::from_value(template).expect("a deployment")));
        let event = Event::World(world::Event::Apply(deployment.clone()));
        assert!(operator.is_new_key(&event));
        operator.take(event);
        operator.output = Arc::new(operator.renderer.render(&operator.store.world()));
        let known = operator.output.configs.keys().next().expect("rendered").key.clone();
        let pod = |key: Option<&str>| {
            let annotations = key.map(|key| json!({"weft.dev/config-key": key}));
            let pod = json!({"metadata": {"name": "cart-1", "namespace": "shop", "annotations": annotations}});
            let pod = Object::Pod(Arc::new(serde_json::from_value(pod).expect("a pod")));
            Event::World(world::Event::Apply(pod))
        };
        assert!(operator.is_new_key(&pod(Some("cart-aaaaaaaaaa"))));
        for event in [
            pod(Some(&known)),
            pod(None),
            Event::World(world::Event::Apply(deployment)),
            Event::Webhooks,
        ] {
            assert!(!operator.is_new_key(&event), "{event:?}");
        }
    }

    // spec: DLV-070
    #[test]
    fn changes_are_collected_until_they_pause_and_never_for_long() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut collected = Collected::default();
        assert_eq!(collected.due, None);
        collected.add(at(0), false);
        assert_eq!(collected.due, Some(at(100)));
        collected.add(at(90), false);
        assert_eq!(collected.due, Some(at(190)), "a further one");
        for n in 2..40 {
            collected.add(at(n * 90), false);
        }
        assert_eq!(collected.due, Some(at(2000)), "the first one has waited long enough");
        let mut collected = Collected::default();
        collected.add(at(0), false);
        collected.add(at(50), true);
        assert_eq!(collected.due, Some(at(50)), "a key without any configuration");
        collected.add(at(60), false);
        assert_eq!(collected.due, Some(at(50)), "nothing holds it back any more");
    }
}
