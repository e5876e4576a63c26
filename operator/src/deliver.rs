//! Delivery: what rendering wants as ConfigMaps and Secrets, and the writes that make it so.
//!
//! Deciding is pure: [`Plan`] compares what is wanted with what the watches have shown. Only differences are written,
//! by server-side apply (DLV-002, DLV-009), and endpoints before the configuration that refers to them (DLV-101).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use weft_bundle::key::{MANAGED_LABEL, REVISION_LABEL, config_name, credentials_name, endpoints_name};
use weft_bundle::pack::{Files, MAX_SHARDS};

use crate::leaving::Endpoints;
use crate::render::Output;

/// Field manager of everything that is rendered (DLV-009).
pub const MANAGER: &str = "weft-operator";
/// Type of the Secrets with identities (ID-022).
pub const IDENTITY_TYPE: &str = "weft.dev/key-and-cert";
/// Type of the Secrets with credentials (DLV-150).
pub const CREDENTIALS_TYPE: &str = "weft.dev/credentials";
/// ConfigMap with the trust bundle in each meshed namespace (DLV-005).
pub const ROOTS_NAME: &str = "weft-ca-root-cert";
/// Key of the trust bundle in it.
pub const ROOTS_FILE: &str = "root-cert.pem";
/// How long an object stays that nothing refers to.
pub const UNUSED: Duration = Duration::from_secs(600);

/// Which kind an object is of. The order is that of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

/// A rendered object by kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Kind.
    pub resource: Resource,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}/{}", self.resource, self.namespace, self.name)
    }
}

/// What an object holds, as far as the operator decides it.
#[derive(Clone, PartialEq)]
pub struct Content {
    /// Bytes by key.
    pub files: Arc<Files>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    pub owners: Vec<OwnerReference>,
    /// Type of a Secret.
    pub secret_type: Option<String>,
}

// Without the bytes: some are keys.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("files", &self.files.keys())
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl Content {
    /// What a ConfigMap holds.
    #[must_use]
    pub fn of_config_map(map: &ConfigMap) -> Self {
        let text = map
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
        Self::new(&map.metadata, text.chain(binary).collect(), None)
    }

    /// What a Secret holds.
    #[must_use]
    pub fn of_secret(secret: &Secret) -> Self {
        let files = secret
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.0.clone()))
            .collect();
        Self::new(&secret.metadata, files, secret.type_.clone())
    }

    fn new(metadata: &ObjectMeta, files: Files, secret_type: Option<String>) -> Self {
        Self {
            files: Arc::new(files),
            labels: metadata.labels.clone().unwrap_or_default(),
            annotations: metadata.annotations.clone().unwrap_or_default(),
            owners: metadata.owner_references.clone().unwrap_or_default(),
            secret_type,
        }
    }

    /// Whether this is what is wanted. Labels, annotations and owners of others are theirs.
    fn satisfies(&self, wanted: &Self) -> bool {
        let has = |all: &BTreeMap<String, String>, some: &BTreeMap<String, String>| {
            some.iter().all(|(k, v)| all.get(k) == Some(v))
        };
        self.files == wanted.files
            && self.secret_type == wanted.secret_type
            && has(&self.labels, &wanted.labels)
            && has(&self.annotations, &wanted.annotations)
            && wanted.owners.iter().all(|owner| self.owners.contains(owner))
    }

    /// Whether the given revision wrote it (DLV-007).
    #[must_use]
    pub fn is_of(&self, revision: &str) -> bool {
        self.labels.get(REVISION_LABEL).is_some_and(|r| r == revision)
    }
}

/// Labels of everything that is rendered (DLV-007).
#[must_use]
pub fn labels(revision: &str) -> BTreeMap<String, String> {
    [
        (MANAGED_LABEL, "true"),
        (REVISION_LABEL, revision),
        ("app.kubernetes.io/managed-by", MANAGER),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into()
}

/// What is there, by place.
pub type Present = BTreeMap<Place, Content>;

/// The ConfigMaps that a rendering asks for, with the endpoints that go with it.
#[must_use]
pub fn config_maps(
    output: &Output,
    endpoints: &Endpoints,
    roots: &str,
    revision: &str,
    anchor: Option<&OwnerReference>,
) -> BTreeMap<Place, Content> {
    let labels = labels(revision);
    let content = |files: &Arc<Files>| Content {
        files: files.clone(),
        labels: labels.clone(),
        annotations: BTreeMap::new(),
        owners: anchor.cloned().into_iter().collect(),
        secret_type: None,
    };
    let place = |namespace: &str, name| Place {
        resource: Resource::ConfigMap,
        namespace: namespace.to_owned(),
        name,
    };
    let mut all = BTreeMap::new();
    for (reference, rendered) in &output.configs {
        for (n, files) in rendered.shards.iter().enumerate() {
            all.insert(
                place(&reference.namespace, config_name(&reference.key, n)),
                content(files),
            );
        }
    }
    for (namespace, rendered) in endpoints {
        for (n, files) in rendered.shards.iter().enumerate() {
            all.insert(place(namespace, endpoints_name(revision, namespace, n)), content(files));
        }
    }
    let roots = Arc::new(Files::from([(ROOTS_FILE.to_owned(), roots.as_bytes().to_vec())]));
    for namespace in &output.meshed_namespaces {
        all.insert(place(namespace, ROOTS_NAME.to_owned()), content(&roots));
    }
    all
}

/// The Secrets with credentials that a rendering asks for; and those that stay as they are, because it is not known yet
/// what one of their sources holds.
#[must_use]
pub fn credentials(
    output: &Output,
    revision: &str,
    anchor: Option<&OwnerReference>,
) -> (BTreeMap<Place, Content>, BTreeSet<Place>) {
    let mut all = BTreeMap::new();
    let mut undecided = BTreeSet::new();
    for (reference, rendered) in &output.credentials {
        for (n, files) in rendered.shards.iter().enumerate() {
            let place = Place {
                resource: Resource::Secret,
                namespace: reference.namespace.clone(),
                name: credentials_name(&reference.key, n),
            };
            if !rendered.is_complete {
                undecided.insert(place);
                continue;
            }
            let content = Content {
                files: files.clone(),
                labels: labels(revision),
                annotations: BTreeMap::new(),
                owners: anchor.cloned().into_iter().collect(),
                secret_type: Some(CREDENTIALS_TYPE.to_owned()),
            };
            all.insert(place, content);
        }
    }
    (all, undecided)
}

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Where.
    pub place: Place,
    /// What.
    pub content: Content,
    /// What the object holds now, where it is known.
    pub before: Option<Content>,
}

/// The writes that lead from what is there to what is wanted, in stages that follow each other.
#[derive(Debug, Default)]
pub struct Plan {
    /// Everything that configuration refers to.
    pub first: Vec<Write>,
    /// Configuration (DLV-101).
    pub then: Vec<Write>,
}

impl Plan {
    /// Compares.
    #[must_use]
    pub fn new(wanted: BTreeMap<Place, Content>, present: &Present) -> Self {
        let mut plan = Self::default();
        for (place, content) in wanted {
            let before = present.get(&place);
            if before.is_some_and(|b| b.satisfies(&content)) {
                continue;
            }
            let is_config = place.resource == Resource::ConfigMap && place.name.starts_with("weft-cfg-");
            let stage = if is_config { &mut plan.then } else { &mut plan.first };
            let before = before.cloned();
            stage.push(Write { place, content, before });
        }
        plan
    }

    /// Nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.then.is_empty()
    }
}

/// A shard that its set has no more.
#[derive(Debug)]
pub struct Surplus {
    /// Where it is.
    pub place: Place,
    /// The shards that the set has now.
    set: Vec<(Place, Content)>,
}

impl Surplus {
    /// Whether the set is written without it.
    #[must_use]
    pub fn is_replaced(&self, present: &Present) -> bool {
        let is_there = |(place, wanted): &(Place, Content)| present.get(place).is_some_and(|c| c.satisfies(wanted));
        self.set.iter().all(is_there)
    }
}

/// Shards of endpoints and credentials beyond those that their sets have now. They go at once: proxies hold endpoints until
/// all shards name one number (DLV-028), and what a credential was before would hide what it is.
#[must_use]
pub fn surplus(wanted: &BTreeMap<Place, Content>, present: &Present, revision: &str) -> Vec<Surplus> {
    let mut all = Vec::new();
    for (place, content) in present {
        let is_spread = match place.resource {
            Resource::ConfigMap => place.name.starts_with("weft-ep-"),
            Resource::Secret => content.secret_type.as_deref() == Some(CREDENTIALS_TYPE),
        };
        if !is_spread || !content.is_of(revision) || wanted.contains_key(place) {
            continue;
        }
        let Some((stem, _)) = place.name.rsplit_once('-') else {
            continue;
        };
        let shard = |n: usize| {
            let name = format!("{stem}-{n}");
            let (place, content) = wanted.get_key_value(&Place { name, ..place.clone() })?;
            Some((place.clone(), content.clone()))
        };
        let set: Vec<_> = (0..MAX_SHARDS).map_while(shard).collect();
        // What nothing is wanted of stays for a while (see `Unused`).
        if !set.is_empty() {
            let place = place.clone();
            all.push(Surplus { place, set });
        }
    }
    all
}

/// Objects of the own revision that nothing asks for, and since when.
#[derive(Debug, Default)]
pub struct Unused {
    since: BTreeMap<Place, Instant>,
}

impl Unused {
    /// What has been unused for [`UNUSED`].
    pub fn due(
        &mut self,
        is_wanted: impl Fn(&Place) -> bool,
        present: &Present,
        revision: &str,
        now: Instant,
    ) -> Vec<Place> {
        let unused = |place: &Place, content: &Content| {
            content.is_of(revision) && is_rendered(place, content) && !is_wanted(place)
        };
        self.since
            .retain(|place, _| present.get(place).is_some_and(|c| unused(place, c)));
        for (place, content) in present {
            if unused(place, content) {
                self.since.entry(place.clone()).or_insert(now);
            }
        }
        let is_due = |(_, since): &(&Place, &Instant)| now.saturating_duration_since(**since) >= UNUSED;
        self.since
            .iter()
            .filter(is_due)
            .map(|(place, _)| place.clone())
            .collect()
    }
}

/// What this module renders; anything else with the label is left alone.
fn is_rendered(place: &Place, content: &Content) -> bool {
    match place.resource {
        Resource::Secret => matches!(content.secret_type.as_deref(), Some(IDENTITY_TYPE | CREDENTIALS_TYPE)),
        Resource::ConfigMap => {
            place.name == ROOTS_NAME || place.name.starts_with("weft-cfg-") || place.name.starts_with("weft-ep-")
        }
    }
}

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else's object has the name (DLV-008, ID-031).
    #[error("{place}: an object of this name is not Weft's; rename or delete it")]
    NameConflict {
        /// The object.
        place: Place,
    },
    /// The API server refused.
    #[error("write {place}")]
    Api {
        /// The object.
        place: Place,
        /// Cause.
        source: Box<kube::Error>,
    },
}

/// Writes to the API server.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl Writer {
    /// Writes through the client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Writes all of one stage; what was written as it is now, and what went wrong.
    pub async fn write(&self, writes: Vec<Write>) -> (Vec<(Place, Content)>, Vec<WriteError>) {
        let mut results =
            futures::stream::iter(writes.into_iter().map(|w| self.write_one(w))).buffer_unordered(CONCURRENCY);
        let (mut written, mut failed) = (Vec::new(), Vec::new());
        while let Some(result) = results.next().await {
            match result {
                Ok(one) => written.push(one),
                Err(error) => failed.push(error),
            }
        }
        (written, failed)
    }

    async fn write_one(&self, write: Write) -> Result<(Place, Content), WriteError> {
        let place = write.place.clone();
        let result = match place.resource {
            Resource::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &place.namespace);
                apply(&api, &write, config_map(&write))
                    .await
                    .map(|map| Content::of_config_map(&map))
            }
            Resource::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &place.namespace);
                apply(&api, &write, secret(&write))
                    .await
                    .map(|secret| Content::of_secret(&secret))
            }
        };
        match result {
            Ok(content) => Ok((place, content)),
            Err(Refused::NotOurs) => Err(WriteError::NameConflict { place }),
            Err(Refused::Api(source)) => Err(WriteError::Api {
                place,
                source: Box::new(source),
            }),
        }
    }

    /// Deletes an object; that it is gone already is fine.
    ///
    /// # Errors
    /// What the API server said.
    pub async fn delete(&self, place: &Place) -> Result<(), WriteError> {
        let parameters = DeleteParams::default();
        let result = match place.resource {
            Resource::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &place.namespace);
                api.delete(&place.name, &parameters).await.map(drop)
            }
            Resource::Secret => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &place.namespace);
                api.delete(&place.name, &parameters).await.map(drop)
            }
        };
        match result {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(WriteError::Api {
                place: place.clone(),
                source: Box::new(source),
            }),
            Ok(()) => Ok(()),
        }
    }
}

enum Refused {
    NotOurs,
    Api(kube::Error),
}

impl From<kube::Error> for Refused {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

async fn apply<K>(api: &Api<K>, write: &Write, object: K) -> Result<K, Refused>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let name = write.place.name.as_str();
    let parameters = PatchParams::apply(MANAGER).force();
    match &write.before {
        // The watch shows objects with the label alone: one without it must not be taken over (DLV-008).
        None => {
            if let Some(found) = api.get_metadata_opt(name).await? {
                let is_managed = found
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|l| l.get(MANAGED_LABEL))
                    .is_some_and(|v| v == "true");
                if !is_managed {
                    return Err(Refused::NotOurs);
                }
            }
        }
        // Server-side apply leaves keys that somebody else added (ID-030).
        Some(before) => {
            let extra: Vec<&String> = before
                .files
                .keys()
                .filter(|k| !write.content.files.contains_key(*k))
                .collect();
            if !extra.is_empty() {
                let nulls: BTreeMap<&String, Option<()>> = extra.into_iter().map(|key| (key, None)).collect();
                let mut patch = json!({"data": nulls});
                if write.place.resource == Resource::ConfigMap {
                    patch["binaryData"] = json!(nulls);
                }
                let merge = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                api.patch(name, &merge, &Patch::Merge(patch)).await?;
            }
        }
    }
    match api.patch(name, &parameters, &Patch::Apply(&object)).await {
        // The type of a Secret and an object marked immutable cannot be changed: it is made anew.
        Err(kube::Error::Api(status)) if status.code == 422 && write.before.is_some() => {
            let found = api.get_metadata(name).await?;
            let same = Preconditions {
                uid: found.metadata.uid,
                resource_version: None,
            };
            api.delete(name, &DeleteParams::default().preconditions(same)).await?;
            Ok(api.patch(name, &parameters, &Patch::Apply(&object)).await?)
        }
        other => Ok(other?),
    }
}

fn metadata(write: &Write) -> ObjectMeta {
    let Content {
        labels,
        annotations,
        owners,
        ..
    } = &write.content;
    ObjectMeta {
        name: Some(write.place.name.clone()),
        namespace: Some(write.place.namespace.clone()),
        labels: Some(labels.clone()),
        annotations: (!annotations.is_empty()).then(|| annotations.clone()),
        owner_references: (!owners.is_empty()).then(|| owners.clone()),
        ..ObjectMeta::default()
    }
}

fn config_map(write: &Write) -> ConfigMap {
    let (mut text, mut binary) = (BTreeMap::new(), BTreeMap::new());
    for (name, bytes) in write.content.files.iter() {
        match String::from_utf8(bytes.clone()) {
            Ok(value) if !is_binary(name) => drop(text.insert(name.clone(), value)),
            _ => drop(binary.insert(name.clone(), ByteString(bytes.clone()))),
        }
    }
    ConfigMap {
        metadata: metadata(write),
        data: Some(text),
        binary_data: (!binary.is_empty()).then_some(binary),
        immutable: None,
    }
}

fn secret(write: &Write) -> Secret {
    Secret {
        metadata: metadata(write),
        data: Some(
            write
                .content
                .files
                .iter()
                .map(|(k, v)| (k.clone(), ByteString(v.clone())))
                .collect(),
        ),
        type_: write.content.secret_type.clone(),
        ..Secret::default()
    }
}

fn is_binary(name: &str) -> bool {
    name.ends_with(".zst")
}

const CONCURRENCY: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        Place {
            resource: Resource::ConfigMap,
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn content(text: &str) -> Content {
        Content {
            files: Arc::new([("file".to_owned(), text.as_bytes().to_vec())].into()),
            labels: labels("default"),
            annotations: BTreeMap::new(),
            owners: Vec::new(),
            secret_type: None,
        }
    }

    // spec: DLV-002, DLV-101
    #[test]
    fn only_differences_are_written_and_configuration_comes_last() {
        let names = ["weft-cfg-a-0", "weft-cfg-b-0", "weft-ep-default-x-0"];
        let wanted: BTreeMap<_, _> = names.map(|name| (place(name), content("new"))).into();
        let mut equal = content("new");
        equal.labels.insert("theirs".into(), "kept".into());
        let present = Present::from([(place(names[0]), equal), (place(names[2]), content("old"))]);
        let plan = Plan::new(wanted.clone(), &present);
        let places = |writes: &[Write]| writes.iter().map(|w| w.place.name.clone()).collect::<Vec<_>>();
        assert_eq!(places(&plan.first), [names[2]]);
        assert_eq!(places(&plan.then), [names[1]]);
        assert!(Plan::new(wanted.clone(), &wanted).is_empty());
    }

    // spec: DLV-037, DLV-028, DLV-151
    #[test]
    fn shards_beyond_those_of_their_set_go_once_the_others_are_written() {
        let mut key = content("k");
        key.secret_type = Some(CREDENTIALS_TYPE.to_owned());
        let secret = |n: usize| Place {
            resource: Resource::Secret,
            ..place(&format!("weft-tls-a-{n}"))
        };
        let mut foreign = content("old");
        foreign.labels = labels("canary");
        let present = Present::from([
            (place("weft-ep-default-x-0"), content("of two")),
            (place("weft-ep-default-x-1"), content("of two")),
            (place("weft-ep-canary-x-1"), foreign),
            (place("weft-ep-default-y-0"), content("unused")),
            (place("weft-cfg-a-1"), content("kept for a while")),
            (secret(0), key.clone()),
            (secret(1), key.clone()),
        ]);
        let wanted = BTreeMap::from([
            (place("weft-ep-default-x-0"), content("of one")),
            (place("weft-ep-canary-x-0"), content("of one")),
            (place("weft-cfg-a-0"), content("new")),
            (secret(0), key),
        ]);
        let found = surplus(&wanted, &present, "default");
        let places: Vec<_> = found.iter().map(|shard| shard.place.clone()).collect();
        assert_eq!(places, [secret(1), place("weft-ep-default-x-1")]);
        assert!(found[0].is_replaced(&present));
        assert!(!found[1].is_replaced(&present), "the first says two yet");
        let mut written = present.clone();
        written.extend(wanted.clone());
        assert!(found[1].is_replaced(&written));
        assert!(surplus(&present, &present, "default").is_empty());
        assert!(surplus(&BTreeMap::new(), &present, "default").is_empty());
    }

    // spec: ID-132
    #[test]
    fn contents_are_never_printed() {
        let secret = content("-----BEGIN PRIVATE KEY-----");
        let write = Write {
            place: place("weft.default"),
            before: Some(secret.clone()),
            content: secret,
        };
        let plan = Plan::new([(write.place.clone(), write.content.clone())].into(), &Present::new());
        for text in [format!("{write:?}"), format!("{plan:?}")] {
            assert!(text.contains("weft.default") && !text.contains("PRIVATE"), "{text}");
            assert!(!text.contains("45, 45, 45"), "nor as numbers: {text}");
        }
    }

    // spec: DLV-086, ID-030
    #[test]
    fn another_byte_key_or_label_is_a_difference() {
        let wanted = content("new");
        let mut extra = wanted.clone();
        Arc::make_mut(&mut extra.files).insert("more".into(), Vec::new());
        let mut unlabelled = wanted.clone();
        unlabelled.labels.remove(REVISION_LABEL);
        assert!(wanted.satisfies(&wanted));
        for other in [content("old"), extra, unlabelled] {
            assert!(!other.satisfies(&wanted));
        }
    }

    // spec: DLV-131
    #[test]
    fn what_nobody_asks_for_goes_after_ten_minutes_and_what_others_made_never() {
        let (mut unused, now) = (Unused::default(), Instant::now());
        let mut foreign = content("x");
        foreign.labels.insert(REVISION_LABEL.into(), "canary".into());
        let present = Present::from([
            (place("weft-cfg-old-0"), content("x")),
            (place("weft-cfg-used-0"), content("x")),
            (place("weft-cfg-theirs-0"), foreign),
            (place("something"), content("x")),
        ]);
        let is_wanted = |p: &Place| p.name == "weft-cfg-used-0";
        assert!(unused.due(is_wanted, &present, "default", now).is_empty());
        assert!(unused.due(is_wanted, &present, "default", now + UNUSED / 2).is_empty());
        assert_eq!(
            unused.due(is_wanted, &present, "default", now + UNUSED),
            [place("weft-cfg-old-0")]
        );
        // Wanted in between, it starts again.
        assert!(unused.due(|_| true, &present, "default", now + UNUSED).is_empty());
        assert!(
            unused
                .due(is_wanted, &present, "default", now + UNUSED + UNUSED / 2)
                .is_empty()
        );
    }
}
