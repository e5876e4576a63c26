//! Hosts that are gone, and stay in the endpoints until no proxy's configuration names them any more (DLV-102).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_bundle::pack::{self, HostInput, Limits};

use crate::render::{Output, RenderedEndpoints};

/// What was delivered to each namespace.
#[derive(Debug, Default)]
pub struct Leaving {
    namespaces: BTreeMap<String, Delivered>,
}

/// Endpoints by namespace.
pub type Endpoints = BTreeMap<String, Arc<RenderedEndpoints>>;

#[derive(Debug)]
struct Delivered {
    rendered: Arc<RenderedEndpoints>,
    /// Hosts that rendering has left out, and since when.
    gone: BTreeMap<String, (Arc<HostInput>, Instant)>,
    /// Pods were told since a host was left out.
    told: bool,
    /// Both together.
    packed: Arc<RenderedEndpoints>,
}

impl Leaving {
    /// Endpoints to deliver. `has_latest`: all pods of a namespace have the configuration that was delivered last.
    pub fn keep(
        &mut self,
        output: &Output,
        limits: &Limits,
        has_latest: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Endpoints {
        self.namespaces
            .retain(|namespace, _| output.endpoints.contains_key(namespace));
        let mut all = Endpoints::new();
        for (namespace, rendered) in &output.endpoints {
            let packed = match self.namespaces.get_mut(namespace) {
                None => {
                    let delivered = Delivered {
                        rendered: rendered.clone(),
                        gone: BTreeMap::new(),
                        told: false,
                        packed: rendered.clone(),
                    };
                    self.namespaces.insert(namespace.clone(), delivered);
                    rendered.clone()
                }
                Some(delivered) => delivered.next(rendered, limits, || has_latest(namespace), now),
            };
            all.insert(namespace.clone(), packed);
        }
        all
    }

    /// What was kept is written, and the pods are to have the configuration that goes with it.
    pub fn told(&mut self) {
        self.namespaces.values_mut().for_each(|delivered| delivered.told = true);
    }

    /// Whether some host waits for acknowledgements.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.namespaces.values().any(|delivered| !delivered.gone.is_empty())
    }
}

impl Delivered {
    fn next(
        &mut self,
        rendered: &Arc<RenderedEndpoints>,
        limits: &Limits,
        has_latest: impl Fn() -> bool,
        now: Instant,
    ) -> Arc<RenderedEndpoints> {
        let before = self.gone.len();
        // What was gone when the pods were told last, and they have it now: nobody names it.
        if before > 0 && self.told && has_latest() {
            self.gone.clear();
        }
        self.gone
            .retain(|_, (_, since)| now.saturating_duration_since(*since) < LONGEST);
        let mut changed = self.gone.len() != before;
        if !Arc::ptr_eq(&self.rendered, rendered) {
            changed = true;
            let there: BTreeSet<&str> = rendered.hosts.iter().map(|host| host.host.as_str()).collect();
            self.gone.retain(|host, _| !there.contains(host.as_str()));
            let left = self
                .rendered
                .hosts
                .iter()
                .filter(|host| !there.contains(host.host.as_str()));
            let before = self.gone.len();
            self.gone
                .extend(left.map(|host| (host.host.clone(), (host.clone(), now))));
            self.told &= self.gone.len() == before;
            self.rendered = rendered.clone();
        }
        if changed {
            self.packed = self.pack(limits);
        }
        self.packed.clone()
    }

    fn pack(&self, limits: &Limits) -> Arc<RenderedEndpoints> {
        if self.gone.is_empty() {
            return self.rendered.clone();
        }
        let gone = self.gone.values().map(|(host, _)| host);
        let hosts: Vec<Arc<HostInput>> = self.rendered.hosts.iter().chain(gone).cloned().collect();
        let limits = Limits {
            // As many as all pods of the namespace mount (DLV-037).
            endpoint_shards: self.rendered.shards.len(),
            ..*limits
        };
        match pack::endpoints(hosts.iter().map(Arc::as_ref), &self.rendered.places, &limits) {
            Ok(packed) => Arc::new(RenderedEndpoints {
                revision: packed.revision,
                shards: packed.shards.into_iter().map(Arc::new).collect(),
                hosts,
                places: self.rendered.places.clone(),
            }),
            // Together they do not fit: those that are there come first.
            Err(_) => self.rendered.clone(),
        }
    }
}

/// A host is not kept longer than that for pods that go on with something else.
const LONGEST: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn output(hosts: &[&str]) -> Output {
        let hosts: Vec<Arc<HostInput>> = hosts
            .iter()
            .map(|host| {
                Arc::new(HostInput {
                    host: (*host).to_owned(),
                    accounts: Vec::new(),
                    endpoints: Vec::new(),
                })
            })
            .collect();
        let places = pack::Places::default();
        let packed = pack::endpoints(hosts.iter().map(Arc::as_ref), &places, &Limits::default()).expect("packed");
        let rendered = RenderedEndpoints {
            revision: packed.revision,
            shards: packed.shards.into_iter().map(Arc::new).collect(),
            hosts,
            places,
        };
        Output {
            endpoints: [("shop".to_owned(), Arc::new(rendered))].into(),
            ..Output::default()
        }
    }

    fn hosts(endpoints: &Endpoints) -> Vec<&str> {
        let all = endpoints["shop"].hosts.iter().map(|host| host.host.as_str());
        all.collect()
    }

    // spec: DLV-102
    #[test]
    fn a_removed_host_leaves_the_endpoints_after_every_pod_has_the_configuration_without_it() {
        let limits = Limits::default();
        let mut now = Instant::now();
        let mut leaving = Leaving::default();
        let both = output(&["a", "b"]);
        assert_eq!(hosts(&leaving.keep(&both, &limits, |_| true, now)), ["a", "b"]);
        let one = output(&["a"]);
        // The pods have all that they were told so far, which still names it.
        let kept = leaving.keep(&one, &limits, |_| true, now);
        assert_eq!(hosts(&kept), ["a", "b"]);
        assert_eq!(
            kept["shop"].revision, both.endpoints["shop"].revision,
            "nothing is written for it"
        );
        let kept = leaving.keep(&one, &limits, |_| true, now);
        assert_eq!(
            hosts(&kept),
            ["a", "b"],
            "the configuration without it is not written yet"
        );
        leaving.told();
        now += Duration::from_secs(100);
        assert_eq!(
            hosts(&leaving.keep(&one, &limits, |_| false, now)),
            ["a", "b"],
            "not acknowledged"
        );
        assert!(leaving.waits());
        let last = leaving.keep(&one, &limits, |_| true, now);
        assert_eq!(last["shop"].revision, one.endpoints["shop"].revision);
        assert!(!leaving.waits());
        // One that comes back is there as it is, and a pod that never follows holds nothing for ever.
        leaving.keep(&both, &limits, |_| false, now);
        leaving.keep(&one, &limits, |_| false, now);
        assert_eq!(
            leaving.keep(&both, &limits, |_| false, now)["shop"].revision,
            both.endpoints["shop"].revision
        );
        assert!(!leaving.waits());
        leaving.keep(&one, &limits, |_| false, now);
        now += LONGEST;
        assert_eq!(hosts(&leaving.keep(&one, &limits, |_| false, now)), ["a"]);
    }
}
