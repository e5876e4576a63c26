//! The entries of the MutatingWebhookConfiguration: sections B and C as selectors (INJ-006, INJ-033, INJ-040).
//!
//! The API server asks an injector about exactly the pods that [`decide`](crate::decide::decide) would inject with the
//! namespace's labels at hand: each pod matches one entry of one injector or none. A selector is a conjunction, so the
//! table becomes a list of alternatives that exclude each other.

use serde_json::{Value, json};

use crate::config::InjectConfig;
use crate::decide::EXCLUDED_NAMESPACES;
use crate::selector::{LabelSelector, Operator, Requirement};

/// One entry: a pod is sent to the injector when both selectors match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Over the namespace's labels.
    pub namespace: LabelSelector,
    /// Over the pod's labels.
    pub pod: LabelSelector,
}

impl Entry {
    /// `namespaceSelector` and `objectSelector` as they stand in the configuration.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "namespaceSelector": selector(&self.namespace), "objectSelector": selector(&self.pod) })
    }
}

/// The entries of an injector with these settings.
#[must_use]
pub fn entries(config: &InjectConfig) -> Vec<Entry> {
    let excluded = requirement(
        "kubernetes.io/metadata.name",
        Operator::NotIn,
        &excluded_namespaces(config),
    );
    let keys = Keys::new(config);
    let mut entries = Vec::new();
    for (mut namespace, pods) in keys.alternatives() {
        namespace.insert(0, excluded.clone());
        for pod in pods {
            entries.push(Entry {
                namespace: LabelSelector {
                    match_expressions: namespace.clone(),
                    ..LabelSelector::default()
                },
                pod,
            });
        }
    }
    entries
}

/// The Service through which the API server reaches an injector.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// Its name; also that of the configuration.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
}

/// What the API server does with a pod when no injector answers (INJ-201).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// The pod is refused, and its controller tries again.
    #[default]
    Fail,
    /// The pod starts without a sidecar.
    Ignore,
}

/// The whole MutatingWebhookConfiguration. The CA bundle is not in it: the operator patches it in (INJ-206).
#[must_use]
pub fn configuration(config: &InjectConfig, service: Service<'_>, failure_policy: FailurePolicy) -> Value {
    let failure_policy = match failure_policy {
        FailurePolicy::Fail => "Fail",
        FailurePolicy::Ignore => "Ignore",
    };
    let webhooks: Vec<_> = entries(config)
        .iter()
        .enumerate()
        .map(|(n, entry)| {
            let mut webhook = entry.to_json();
            webhook["name"] = json!(format!("pods-{n:02}.injector.weft.dev"));
            webhook["clientConfig"] = json!({
                "service": { "name": service.name, "namespace": service.namespace, "path": "/inject", "port": 443 },
            });
            webhook["rules"] = json!([{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }]);
            webhook["admissionReviewVersions"] = json!(["v1"]);
            webhook["failurePolicy"] = json!(failure_policy);
            webhook["matchPolicy"] = json!("Equivalent");
            webhook["reinvocationPolicy"] = json!("IfNeeded");
            webhook["sideEffects"] = json!("None");
            webhook["timeoutSeconds"] = json!(5);
            webhook
        })
        .collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": service.name, "labels": { "weft.dev/rev": config.revision } },
        "webhooks": webhooks,
    })
}

type Requirements = Vec<Requirement>;

/// What the settings make of the keys.
struct Keys<'a> {
    config: &'a InjectConfig,
    /// Revision and tags that lead here.
    served: Vec<String>,
    /// Pods that name no revision are this injector's.
    is_default: bool,
}

const WEFT: &str = "weft.dev/inject";
const WEFT_REV: &str = "weft.dev/rev";
const ISTIO_NAMESPACE: &str = "istio-injection";
const ISTIO_POD: &str = "sidecar.istio.io/inject";
const ISTIO_REV: &str = "istio.io/rev";

impl<'a> Keys<'a> {
    fn new(config: &'a InjectConfig) -> Self {
        let mut served = config.revision_tags.clone();
        served.push(config.revision.clone());
        served.sort();
        served.dedup();
        let is_default = config.serves("default");
        Self {
            config,
            served,
            is_default,
        }
    }

    /// Namespaces by what they say, with the pods of each that are injected here.
    fn alternatives(&self) -> Vec<(Requirements, Vec<LabelSelector>)> {
        let mut all = Vec::new();
        // The namespace says yes by Weft's key, which replaces Istio's.
        let yes = vec![requirement(WEFT, Operator::In, &["enabled", "true"])];
        self.selected(&yes, true, &mut all);
        // By Istio's: then Istio's revision key does not count, neither here nor on the pod (INJ-031).
        let unsaid = requirement(WEFT, Operator::NotIn, &["enabled", "true", "disabled", "false"]);
        if self.config.istio_labels {
            let yes = vec![unsaid.clone(), requirement(ISTIO_NAMESPACE, Operator::In, &["enabled"])];
            self.selected(&yes, false, &mut all);
        }
        // It says neither, and perhaps names a revision.
        let mut neutral = vec![unsaid];
        neutral.extend(self.config.istio_labels.then(|| absent(ISTIO_NAMESPACE)));
        for revision in self.named(true) {
            all.push((both(&neutral, &revision), self.not_refused(&[Vec::new()])));
        }
        let neutral = both(&neutral, &self.unnamed(true));
        all.push((neutral, self.pods_of_neutral_namespaces()));
        all
    }

    /// A namespace that says yes: with a revision of its own every pod, else the pod's revision decides.
    fn selected(&self, yes: &Requirements, istio: bool, all: &mut Vec<(Requirements, Vec<LabelSelector>)>) {
        for revision in self.named(istio) {
            all.push((both(yes, &revision), self.not_refused(&[Vec::new()])));
        }
        all.push((
            both(yes, &self.unnamed(istio)),
            self.not_refused(&self.pod_revisions(istio)),
        ));
    }

    /// Alternatives of "names a revision that is served here".
    fn named(&self, istio: bool) -> Vec<Requirements> {
        let mut named = vec![vec![requirement(WEFT_REV, Operator::In, &self.served)]];
        if istio && self.config.istio_labels {
            named.push(vec![
                absent(WEFT_REV),
                requirement(ISTIO_REV, Operator::In, &self.served),
            ]);
        }
        named
    }

    /// "Names no revision."
    fn unnamed(&self, istio: bool) -> Requirements {
        let mut unnamed = vec![absent(WEFT_REV)];
        unnamed.extend((istio && self.config.istio_labels).then(|| absent(ISTIO_REV)));
        unnamed
    }

    /// Alternatives of "the pod's revision leads here".
    fn pod_revisions(&self, istio: bool) -> Vec<Requirements> {
        let mut revisions = self.named(istio);
        revisions.extend(self.is_default.then(|| self.unnamed(istio)));
        revisions
    }

    /// Pods that do not say no, each with one of the further requirements.
    fn not_refused(&self, further: &[Requirements]) -> Vec<LabelSelector> {
        let mut unsaid = vec![requirement(WEFT, Operator::NotIn, &["true", "false"])];
        unsaid.extend(
            self.config
                .istio_labels
                .then(|| requirement(ISTIO_POD, Operator::NotIn, &["false"])),
        );
        self.join(&[vec![requirement(WEFT, Operator::In, &["true"])], unsaid], further)
    }

    /// Where the namespace says nothing, the pod must: yes, or a revision, or what the settings select.
    fn pods_of_neutral_namespaces(&self) -> Vec<LabelSelector> {
        let mut yes = vec![vec![requirement(WEFT, Operator::In, &["true"])]];
        let mut unsaid = vec![requirement(WEFT, Operator::NotIn, &["true", "false"])];
        if self.config.istio_labels {
            yes.push(both(&unsaid, &vec![requirement(ISTIO_POD, Operator::In, &["true"])]));
            unsaid.push(requirement(ISTIO_POD, Operator::NotIn, &["true", "false"]));
        }
        let mut pods = self.join(&yes, &self.pod_revisions(true));
        pods.extend(self.join(&[unsaid.clone()], &self.named(true)));
        if !self.is_default {
            return pods;
        }
        let unsaid = both(&unsaid, &self.unnamed(true));
        if self.config.enabled_by_default {
            pods.extend(self.join(&[unsaid], &[Vec::new()]));
            return pods;
        }
        for always in self
            .config
            .always_inject
            .iter()
            .filter(|selector| **selector != LabelSelector::default())
        {
            let match_expressions = both(&unsaid, &always.match_expressions);
            pods.push(LabelSelector {
                match_labels: always.match_labels.clone(),
                match_expressions,
            });
        }
        pods
    }

    fn join(&self, pods: &[Requirements], further: &[Requirements]) -> Vec<LabelSelector> {
        let all = pods
            .iter()
            .flat_map(|pod| further.iter().map(move |more| both(pod, more)));
        all.map(|match_expressions| LabelSelector {
            match_expressions,
            ..LabelSelector::default()
        })
        .collect()
    }
}

fn excluded_namespaces(config: &InjectConfig) -> Vec<String> {
    let mut excluded: Vec<_> = EXCLUDED_NAMESPACES.iter().map(|name| (*name).to_owned()).collect();
    excluded.push(config.control_plane_namespace.clone());
    excluded.extend(config.excluded_namespaces.iter().cloned());
    excluded.sort();
    excluded.dedup();
    excluded
}

fn requirement(key: &str, operator: Operator, values: &[impl AsRef<str>]) -> Requirement {
    let values = values.iter().map(|value| value.as_ref().to_owned()).collect();
    Requirement {
        key: key.to_owned(),
        operator,
        values,
    }
}

fn absent(key: &str) -> Requirement {
    requirement(key, Operator::DoesNotExist, &[] as &[&str])
}

fn both(left: &Requirements, right: &Requirements) -> Requirements {
    left.iter().chain(right).cloned().collect()
}

fn selector(selector: &LabelSelector) -> Value {
    let mut json = json!({});
    if !selector.match_labels.is_empty() {
        json["matchLabels"] = json!(selector.match_labels);
    }
    let expressions: Vec<_> = selector
        .match_expressions
        .iter()
        .map(|requirement| {
            let operator = match requirement.operator {
                Operator::In => "In",
                Operator::NotIn => "NotIn",
                Operator::Exists => "Exists",
                Operator::DoesNotExist => "DoesNotExist",
            };
            let mut expression = json!({ "key": requirement.key, "operator": operator });
            if !requirement.values.is_empty() {
                expression["values"] = json!(requirement.values);
            }
            expression
        })
        .collect();
    if !expressions.is_empty() {
        json["matchExpressions"] = json!(expressions);
    }
    json
}

#[cfg(test)]
mod tests;
