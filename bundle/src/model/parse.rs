//! From [`crate::wire`] to [`super`]: every problem is reported, with its path.
//!
//! What a host is made of depends on its text alone, a route table also on the retries that rules without their own have,
//! and on what its destinations are; a port also on its table. Whatever of these is as it was in the configuration before
//! is taken over from there. It was valid then, so that problems are of what is new, and of what does not fit together.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reuse::{Known, Part};
use super::{
    Cluster, Config, Destinations, Directory, Domain, Host, Invalid, Places, Refused, Retry, RouteTable, Table,
};
use crate::item::{Item, Unread};
use crate::pace::breathe;
use crate::wire;

mod authorization;
mod gateway;
mod hosts;
mod rules;
mod template;

#[cfg(test)]
pub(super) use template::template;

type Routes<'t> = HashMap<&'t str, &'t Arc<RouteTable>>;

pub(super) fn config(bundle: Unread<'_>, before: Option<&Config>) -> Result<Config, Refused> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let mut parser = Parser {
        before,
        problems: Vec::new(),
        hosts: Vec::new(),
        clusters: Vec::new(),
        index: Arc::default(),
        parts: Vec::new(),
        has_same_hosts: false,
        policy: None,
        left_out: Vec::new(),
    };
    let sources = parser.hosts(&bundle.hosts)?;
    let default_retry = parser.retry("mesh.retry", &bundle.mesh.retry);
    let has_same_retry = before.is_some_and(|before| before.mesh.retry == bundle.mesh.retry);
    let tables = parser.tables(&bundle.routes, &default_retry, has_same_retry)?;
    let routes: Routes<'_> = tables
        .iter()
        .map(|part| (&*part.made.table.name, &part.made.table))
        .collect();
    if routes.len() != tables.len() {
        parser.problem("routes", "", "names of route tables are not unique");
    }
    let mut leads = parser.ports(&sources, &routes, &default_retry, has_same_retry);
    for (i, extra) in bundle.domains.iter().enumerate() {
        match routes.get(&*extra.http) {
            Some(table) => leads.push(Domain::made_up((*table).clone())),
            None => parser.problem(format!("domains[{i}].http"), &extra.http, "names no route table"),
        }
    }
    let listeners = parser.listeners(&bundle.listeners, &routes);
    let inbound = parser.inbound(&bundle.inbound);
    let authorization = parser.authorization(&bundle.authorization);
    if !parser.problems.is_empty() {
        return Err(Refused::Invalid(parser.problems));
    }
    let same_hosts = before.filter(|_| parser.has_same_hosts);
    let directory = match same_hosts.filter(|before| before.extras == bundle.domains) {
        Some(before) => before.directory.clone(),
        None => Arc::new(Directory::new(&leads, &bundle.domains)),
    };
    Ok(Config {
        serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        workload: peer(&bundle.workload, before),
        owner: bundle.workload,
        mesh: bundle.mesh,
        inbound,
        authorization,
        hosts: parser.hosts,
        slots: parser.clusters.iter().map(|cluster| cluster.id + 1).max().unwrap_or(0),
        clusters: parser.clusters,
        index: parser.index,
        leads,
        directory,
        listeners,
        parts: parser.parts,
        tables,
        extras: bundle.domains,
    })
}

/// The workload as telemetry tells of it; metrics find it by its address.
fn peer(owner: &wire::Workload, before: Option<&Config>) -> Arc<wire::PeerWorkload> {
    let workload = wire::PeerWorkload {
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
        service_account: owner.service_account.clone(),
        canonical_name: owner.canonical_name.clone(),
        canonical_revision: owner.canonical_revision.clone(),
        app: owner.app.clone(),
        version: owner.version.clone(),
    };
    let same = before.filter(|before| *before.workload == workload);
    same.map_or_else(|| Arc::new(workload), |before| before.workload.clone())
}

struct Parser<'b> {
    before: Option<&'b Config>,
    problems: Vec<Invalid>,
    hosts: Vec<Arc<Host>>,
    clusters: Vec<Arc<Cluster>>,
    /// Places of clusters by name.
    index: Arc<HashMap<Arc<str>, u32>>,
    parts: Vec<Part<Places>>,
    /// All hosts are those of before, in the same order.
    has_same_hosts: bool,
    /// The last one that is not of before: most are equal.
    policy: Option<Arc<wire::Policy>>,
    /// Names of mirrors of the table at hand that no host has.
    left_out: Vec<Box<str>>,
}

impl Parser<'_> {
    fn problem(&mut self, path: impl Into<String>, value: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Invalid {
            path: path.into(),
            value: value.into(),
            message: message.into(),
        });
    }

    /// Compiles tables, apart from those that are what they were.
    fn tables(
        &mut self,
        items: &[Item<'_, wire::RouteTable>],
        default_retry: &Retry,
        has_same_retry: bool,
    ) -> Result<Vec<Part<Table>>, Refused> {
        let earlier = self.before.filter(|_| has_same_retry).map_or(&[][..], |b| &b.tables);
        let mut known = Known::new(earlier);
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            breathe();
            let digest = item.digest();
            let kept = known.find(digest).map(|place| &earlier[place]);
            if let Some(kept) = kept.filter(|kept| self.holds(&kept.made)) {
                tables.push(kept.clone());
                continue;
            }
            let table = Arc::new(self.table(&*item.read()?, default_retry));
            let left_out = std::mem::take(&mut self.left_out).into();
            let made = Table { table, left_out };
            tables.push(Part { digest, made });
        }
        Ok(tables)
    }

    /// Whether the destinations of a table of before are the same now.
    fn holds(&self, made: &Table) -> bool {
        self.has_same_hosts
            || (made.table.rules.iter().all(|rule| self.holds_for(rule))
                && made.left_out.iter().all(|name| self.by_name(name).is_none()))
    }

    /// Whether destinations of before are the same now.
    fn are_same(&self, destinations: &Destinations) -> bool {
        let is_same = |found: Option<&Arc<Cluster>>, before: Option<&Arc<Cluster>>| match (found, before) {
            (Some(found), Some(before)) => Arc::ptr_eq(found, before),
            (None, None) => true,
            _ => false,
        };
        let mut all = destinations.list.iter();
        self.has_same_hosts || all.all(|d| is_same(self.by_name(&d.name), d.cluster.as_ref()))
    }

    fn by_name(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(*self.index.get(name)? as usize)
    }
}

/// What a host is made of.
#[expect(clippy::large_enum_variant, reason = "at a start all are of the large one")]
enum Source<'i> {
    /// Of what it was made in the configuration before, at this place.
    Kept(usize),
    New(Cow<'i, wire::Host>),
}

impl Source<'_> {
    fn kept(&self) -> Option<usize> {
        match self {
            Self::Kept(place) => Some(*place),
            Self::New(_) => None,
        }
    }
}

/// Name of a cluster (LOG-023).
fn cluster_name(host: &str, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}
