//! The objects of a run: what the manifests say, as far as it could be read and was admitted (LOC-005, LOC-031).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use weft_webhook::validate::{Verdict, validate};

use super::manifest::{Contents, Document, Place, Problem};

/// An object by kind, namespace (empty where there is none) and name.
pub type Id = (String, String, String);

/// An object in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The object, with its namespace.
    pub value: Value,
    /// Where it stands.
    pub place: Place,
}

/// What a reading of the manifests changed.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// New or different objects.
    pub applied: Vec<Id>,
    /// Objects that are gone.
    pub deleted: Vec<Id>,
    /// What is to be told, each once for as long as it stays the same.
    pub told: Vec<String>,
}

impl Changes {
    /// Nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.deleted.is_empty()
    }
}

/// The objects in force, and what keeps others out.
#[derive(Debug, Default)]
pub struct Desired {
    /// In force.
    pub objects: BTreeMap<Id, Object>,
    /// Documents of each file as it was last read without a problem.
    files: BTreeMap<PathBuf, Vec<Document>>,
    told: Vec<String>,
    namespace: String,
}

impl Desired {
    /// Objects that name no namespace go to `namespace` (LOC-017).
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..Self::default()
        }
    }

    /// Whether a file that held objects is not there.
    #[must_use]
    pub fn misses(&self, contents: &Contents) -> bool {
        let held = self.files.iter().filter(|(_, documents)| !documents.is_empty());
        held.map(|(path, _)| path).any(|path| !contents.contains_key(path))
    }

    /// Takes what was read. A file with a problem keeps its last content; an object that is refused keeps its last
    /// admitted form.
    pub fn update(&mut self, contents: Contents) -> Changes {
        let mut notes = Vec::new();
        let mut files = BTreeMap::new();
        for (path, content) in contents {
            match content {
                // Who saves cuts the file first and writes then.
                Ok(documents) if documents.is_empty() && self.files.get(&path).is_some_and(|d| !d.is_empty()) => {
                    notes.push(format!(
                        "{}: holds no object; what it held stays in force until the file is removed or has some",
                        path.display()
                    ));
                    files.extend(self.files.remove_entry(&path));
                }
                Ok(documents) => drop(files.insert(path, documents)),
                Err(problem) => {
                    notes.push(format!("{problem}"));
                    if let Some(before) = self.files.remove(&path) {
                        files.insert(path, before);
                    }
                }
            }
        }
        self.files = files;
        let mut ignored: BTreeMap<String, usize> = BTreeMap::new();
        let mut wanted: BTreeMap<Id, Object> = BTreeMap::new();
        for document in self.files.values().flatten() {
            match self.admit(document, &mut ignored) {
                Ok(Some((id, object, warnings))) => {
                    notes.extend(warnings);
                    if let Some(earlier) = wanted.get(&id) {
                        notes.push(format!(
                            "{}: {} {} stands at {} already; this one counts",
                            object.place, id.0, id.2, earlier.place
                        ));
                    }
                    wanted.insert(id, object);
                }
                Ok(None) => {}
                Err(Refused(refused)) => {
                    let (id, problem) = *refused;
                    notes.push(problem.to_string());
                    if let Some(before) = self.objects.get(&id) {
                        wanted.insert(id, before.clone());
                    }
                }
            }
        }
        if !ignored.is_empty() {
            let kinds: Vec<_> = ignored.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            notes.push(format!("not used by local mode: {}", kinds.join(", ")));
        }
        let gone = self.objects.keys().filter(|id| !wanted.contains_key(*id));
        let differs = |id: &Id, object: &Object| self.objects.get(id).is_none_or(|before| before.value != object.value);
        let fresh = wanted.iter().filter(|(id, object)| differs(id, object));
        let changes = Changes {
            deleted: gone.cloned().collect(),
            applied: fresh.map(|(id, _)| id.clone()).collect(),
            told: notes.iter().filter(|note| !self.told.contains(note)).cloned().collect(),
        };
        self.objects = wanted;
        self.told = notes;
        changes
    }

    /// What stands against objects now: refusals, warnings, files that cannot be read.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.told
    }

    /// Admission, with the text that the API server would print (LOC-005).
    fn admit(&self, document: &Document, ignored: &mut BTreeMap<String, usize>) -> Result<Option<Admitted>, Refused> {
        let mut value = document.value.clone();
        let text = |value: &Value, pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (kind, name) = (text(&value, "/kind"), text(&value, "/metadata/name"));
        if NOT_USED.contains(&kind.as_str()) {
            *ignored.entry(kind).or_default() += 1;
            return Ok(None);
        }
        let namespace = if NOT_NAMESPACED.contains(&kind.as_str()) {
            String::new()
        } else {
            let own = text(&value, "/metadata/namespace");
            let namespace = if own.is_empty() { self.namespace.clone() } else { own };
            value["metadata"]["namespace"] = namespace.clone().into();
            namespace
        };
        let id: Id = (kind.clone(), namespace, name.clone());
        let place = document.place.clone();
        let (errors, warnings) = match validate(&value) {
            Verdict::Unknown => (Vec::new(), Vec::new()),
            Verdict::Valid { warnings } => (Vec::new(), warnings),
            Verdict::Invalid { errors, warnings } => (errors, warnings),
        };
        if !errors.is_empty() {
            let message = format!("{kind} {name:?} is refused: {}", errors.join("; "));
            return Err(Refused(Box::new((id, Problem { place, message }))));
        }
        let is_mesh_kind = weft_crds::object::KINDS.iter().any(|(_, known, _)| *known == kind);
        if !is_mesh_kind && !KNOWN.contains(&kind.as_str()) {
            let note = format!("{place}: warning: kind {kind} is not known and not used");
            return Ok(Some((id, Object { value, place }, vec![note])));
        }
        let warnings = warnings
            .into_iter()
            .map(|w| format!("{place}: warning: {kind} {name:?}: {w}"))
            .collect();
        Ok(Some((id, Object { value, place }, warnings)))
    }
}

/// An object with its name and what is to be said of it.
type Admitted = (Id, Object, Vec<String>);

/// What is refused, and why.
struct Refused(Box<(Id, Problem)>);

const NOT_NAMESPACED: &[&str] = &[
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
];

/// Kinds without a use here (LOC-006).
const NOT_USED: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "CronJob",
    "CustomResourceDefinition",
    "HorizontalPodAutoscaler",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PriorityClass",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// Kinds of Kubernetes that are used, beside those of the mesh.
const KNOWN: &[&str] = &[
    "ConfigMap",
    "DaemonSet",
    "Deployment",
    "Job",
    "Namespace",
    "Node",
    "Pod",
    "ReplicaSet",
    "Secret",
    "Service",
    "ServiceAccount",
    "StatefulSet",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::local::manifest::parse;

    fn read(files: &[(&str, &str)]) -> Contents {
        files
            .iter()
            .map(|(name, text)| (PathBuf::from(name), parse(Path::new(name), text)))
            .collect()
    }

    const GOOD: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: {hosts: [a], http: [{route: [{destination: {host: a}}]}]}\n";

    // spec: LOC-005, LOC-017, LOC-031
    #[test]
    fn what_is_refused_or_broken_keeps_its_last_good_form() {
        let mut desired = Desired::new("here");
        let id: Id = ("VirtualService".into(), "here".into(), "v".into());
        assert_eq!(
            desired.update(read(&[("a.yaml", GOOD)])).applied,
            std::slice::from_ref(&id)
        );
        let bad = GOOD.replace("http: [{", "http: [{timeout: 0s, ");
        let changes = desired.update(read(&[("a.yaml", &bad)]));
        assert!(changes.is_empty());
        assert!(
            changes.told[0].starts_with("a.yaml:1: VirtualService \"v\" is refused: spec.http[0].timeout"),
            "{:?}",
            changes.told
        );
        assert!(desired.update(read(&[("a.yaml", &bad)])).told.is_empty(), "told once");
        let changes = desired.update(read(&[("a.yaml", "a: [")]));
        assert!(changes.is_empty() && changes.told.len() == 1);
        assert!(desired.objects.contains_key(&id));
        assert!(!desired.misses(&read(&[("a.yaml", "")])) && desired.misses(&read(&[])));
        assert!(
            desired.update(read(&[("a.yaml", "")])).is_empty(),
            "cut before it is written"
        );
        assert_eq!(desired.update(read(&[])).deleted, [id]);
    }

    // spec: LOC-006
    #[test]
    fn kinds_without_a_use_are_listed_in_one_line() {
        let text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: s}\n---\napiVersion: x/v1\nkind: Other\nmetadata: {name: o}\n";
        let changes = Desired::new("d").update(read(&[("a.yaml", text)]));
        assert_eq!(changes.told.len(), 2, "{:?}", changes.told);
        assert!(changes.told[0].contains("a.yaml:9") && changes.told[0].contains("Other"));
        assert_eq!(changes.told[1], "not used by local mode: 2 Role");
    }
}
