//! Which mesh objects are valid, and in which order they count (SM-126, SM-129, DLV-084).

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Resource;
use weft_crds::{
    AuthorizationPolicy, DestinationRule, Gateway, PeerAuthentication, ServiceEntry, Sidecar, Validate, VirtualService,
    WorkloadEntry,
};

use super::{ObjectReport, inbound};
use crate::world::{Kind, ObjectRef, World, age};

/// Mesh objects that are valid, in the order of age; the others are reported and left out.
#[derive(Debug)]
pub(super) struct Sound<'a> {
    pub(super) virtual_services: Vec<&'a VirtualService>,
    pub(super) destination_rules: Vec<&'a DestinationRule>,
    pub(super) gateways: Vec<&'a Gateway>,
    /// With whether it is valid: an invalid one counts as STRICT (AUTHN-007).
    pub(super) peer_authentications: Vec<(&'a PeerAuthentication, bool)>,
    pub(super) sources: Sources<'a>,
}

/// The same objects, as they are remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) virtual_services: &'a [Arc<VirtualService>],
    pub(super) destination_rules: &'a [Arc<DestinationRule>],
    pub(super) service_entries: &'a [Arc<ServiceEntry>],
    pub(super) workload_entries: &'a [Arc<WorkloadEntry>],
    pub(super) sidecars: &'a [Arc<Sidecar>],
    pub(super) gateways: &'a Arc<Vec<Arc<Gateway>>>,
    /// Replaced when one of the policies is another one.
    pub(super) peer_authentications: &'a Arc<Vec<Arc<PeerAuthentication>>>,
    /// All of them, since what is wrong with one must not make it grant more (AUTHZ-011). Replaced likewise.
    pub(super) authorization_policies: &'a Arc<Vec<Arc<AuthorizationPolicy>>>,
}

/// What validation said of each object.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    virtual_services: Judged<VirtualService>,
    destination_rules: Judged<DestinationRule>,
    peer_authentications: Judged<PeerAuthentication>,
    authorization_policies: Judged<AuthorizationPolicy>,
    gateways: Judged<Gateway>,
    service_entries: Judged<ServiceEntry>,
    workload_entries: Judged<WorkloadEntry>,
    sidecars: Judged<Sidecar>,
    sources: Lists,
}

#[derive(Debug, Default)]
struct Lists {
    virtual_services: Vec<Arc<VirtualService>>,
    destination_rules: Vec<Arc<DestinationRule>>,
    service_entries: Vec<Arc<ServiceEntry>>,
    workload_entries: Vec<Arc<WorkloadEntry>>,
    sidecars: Vec<Arc<Sidecar>>,
    gateways: Arc<Vec<Arc<Gateway>>>,
    peer_authentications: Arc<Vec<Arc<PeerAuthentication>>>,
    authorization_policies: Arc<Vec<Arc<AuthorizationPolicy>>>,
}

impl Verdicts {
    /// Validates what is new; how much that was.
    pub(super) fn judge(&mut self, world: &World) -> usize {
        let judged = self.virtual_services.judge(&world.virtual_services)
            + self.destination_rules.judge(&world.destination_rules)
            + self.peer_authentications.judge(&world.peer_authentications)
            + self.authorization_policies.judge(&world.authorization_policies)
            + self.gateways.judge(&world.gateways)
            + self.service_entries.judge(&world.service_entries)
            + self.workload_entries.judge(&world.workload_entries)
            + self.sidecars.judge(&world.sidecars);
        self.sources.virtual_services = self.virtual_services.by_age(true);
        self.sources.destination_rules = self.destination_rules.by_age(true);
        self.sources.service_entries = self.service_entries.by_age(true);
        self.sources.workload_entries = self.workload_entries.by_age(true);
        self.sources.sidecars = self.sidecars.by_age(true);
        let gateways = self.gateways.by_age(true);
        if !super::same(&self.sources.gateways, &gateways) {
            self.sources.gateways = Arc::new(gateways);
        }
        let policies = self.peer_authentications.by_age(false);
        if !super::same(&self.sources.peer_authentications, &policies) {
            self.sources.peer_authentications = Arc::new(policies);
        }
        let policies = self.authorization_policies.by_age(false);
        if !super::same(&self.sources.authorization_policies, &policies) {
            self.sources.authorization_policies = Arc::new(policies);
        }
        judged
    }

    pub(super) fn sound(&self) -> Sound<'_> {
        let Lists {
            virtual_services,
            destination_rules,
            service_entries,
            workload_entries,
            sidecars,
            gateways,
            peer_authentications,
            authorization_policies,
        } = &self.sources;
        let is_valid = |policy: &PeerAuthentication| {
            let id = id(policy.meta().namespace.as_deref(), policy.meta().name.as_deref());
            self.peer_authentications.by_id.get(&id).is_some_and(Verdict::is_valid)
        };
        let policies = peer_authentications.iter().map(|p| (p.as_ref(), is_valid(p)));
        Sound {
            virtual_services: virtual_services.iter().map(Arc::as_ref).collect(),
            destination_rules: destination_rules.iter().map(Arc::as_ref).collect(),
            gateways: gateways.iter().map(Arc::as_ref).collect(),
            peer_authentications: policies.collect(),
            sources: Sources {
                virtual_services,
                destination_rules,
                service_entries,
                workload_entries,
                sidecars,
                gateways,
                peer_authentications,
                authorization_policies,
            },
        }
    }

    pub(super) fn report(&self, world: &World, reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
        self.virtual_services.report(Kind::VirtualService, reports);
        self.destination_rules.report(Kind::DestinationRule, reports);
        self.peer_authentications.report(Kind::PeerAuthentication, reports);
        self.authorization_policies.report(Kind::AuthorizationPolicy, reports);
        self.gateways.report(Kind::Gateway, reports);
        self.service_entries.report(Kind::ServiceEntry, reports);
        self.workload_entries.report(Kind::WorkloadEntry, reports);
        self.sidecars.report(Kind::Sidecar, reports);
        for (reference, error) in &world.malformed {
            let refused = Some(("Invalid", error.clone()));
            let report = ObjectReport {
                refused,
                ..ObjectReport::default()
            };
            reports.insert(reference.clone(), report);
        }
        inbound::report_conflicts(world, &self.sound().peer_authentications, reports);
    }
}

/// The verdicts on one kind.
#[derive(Debug)]
struct Judged<K> {
    by_id: BTreeMap<(String, String), Verdict<K>>,
}

impl<K> Default for Judged<K> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct Verdict<K> {
    object: Arc<K>,
    age: (Option<String>, String, String),
    report: ObjectReport,
}

impl<K> Verdict<K> {
    fn is_valid(&self) -> bool {
        self.report.refused.is_none()
    }
}

impl<K: Validate + Resource> Judged<K> {
    fn judge(&mut self, objects: &BTreeMap<(String, String), Arc<K>>) -> usize {
        let mut judged = 0;
        self.by_id.retain(|id, _| objects.contains_key(id));
        for (id, object) in objects {
            if !self.by_id.get(id).is_some_and(|v| Arc::ptr_eq(&v.object, object)) {
                self.by_id.insert(id.clone(), Verdict::new(object));
                judged += 1;
            }
        }
        judged
    }

    fn by_age(&self, is_valid: bool) -> Vec<Arc<K>> {
        let mut list: Vec<_> = self.by_id.values().filter(|v| !is_valid || v.is_valid()).collect();
        list.sort_by(|a, b| a.age.cmp(&b.age));
        list.into_iter().map(|v| v.object.clone()).collect()
    }

    fn report(&self, kind: Kind, reports: &mut BTreeMap<ObjectRef, ObjectReport>) {
        for ((namespace, name), verdict) in &self.by_id {
            let reference = ObjectRef {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
            };
            reports.insert(reference, verdict.report.clone());
        }
    }
}

impl<K: Validate + Resource> Verdict<K> {
    fn new(object: &Arc<K>) -> Self {
        let validation = object.validate();
        let is_valid = validation.errors.is_empty();
        let report = ObjectReport {
            generation: object.meta().generation,
            refused: (!is_valid).then(|| ("Invalid", validation.message())),
            warnings: validation.warnings,
            ..ObjectReport::default()
        };
        Self {
            object: object.clone(),
            age: age(object.meta()),
            report,
        }
    }
}

fn id(namespace: Option<&str>, name: Option<&str>) -> (String, String) {
    (
        namespace.unwrap_or_default().to_owned(),
        name.unwrap_or_default().to_owned(),
    )
}
