//! Groups of endpoints in the order in which a client prefers them (DR-055 ff.).

use std::collections::BTreeMap;
use std::rc::Rc;

use weft_bundle::model::{Endpoint, derived};
use weft_bundle::wire::{Failover, Locality, Policy, SharedLabel, ZoneAware};

use crate::balance::{Group, Key};
use crate::cluster::Peer;

/// A group carries this many percent of its healthy share before others help (DR-066).
const OVERPROVISIONING: u64 = 140;

/// Where the proxy runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Here {
    /// `region/zone/subzone`; empty when it is not known.
    pub locality: String,
    /// Node; empty when it is not known.
    pub node: String,
}

impl Here {
    /// Reads a pod's labels, written as the downward API does: a line `key="value"` for each.
    #[must_use]
    pub fn of_pod(labels: &str, node: &str) -> Self {
        let label = |name: &str| {
            let value = labels
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            // Values of labels have no characters that would be escaped.
            Some(value.trim_matches('"')).filter(|value| !value.is_empty())
        };
        let written = label("topology.istio.io/locality").or_else(|| label("istio-locality"));
        let locality = match written {
            Some(own) if own.contains('/') => own.to_owned(),
            Some(own) => own.replace('.', "/"),
            None => match (
                label("topology.kubernetes.io/region"),
                label("topology.kubernetes.io/zone"),
            ) {
                (Some(region), Some(zone)) => format!("{region}/{zone}"),
                _ => String::new(),
            },
        };
        Self {
            locality,
            node: node.to_owned(),
        }
    }

    fn label(&self, name: &str) -> Option<&str> {
        let known = |text| Some(text).filter(|text: &&str| !text.is_empty());
        derived(name, known(self.locality.as_str()), known(self.node.as_str()))
    }
}

/// The endpoints of a destination, grouped for one client.
pub struct Groups {
    list: Vec<Group>,
    /// Shares of the groups, where the client spreads its requests over them (DR-063); empty: in order.
    shares: Vec<u64>,
    /// Zones of the first group, where they count (DR-068).
    zones: Option<Zones>,
}

impl Groups {
    /// Groups endpoints: those of the list with the peers that stand for them. `proxies`: of the own workload, by zone.
    #[must_use]
    pub fn new(
        policy: &Policy,
        here: &Here,
        members: &[(Rc<Peer>, &Endpoint)],
        proxies: &BTreeMap<String, u32>,
    ) -> Self {
        let all = || members.iter().map(|(peer, _)| peer.clone()).collect();
        let one = |peers| Self {
            list: vec![Group::new(peers)],
            shares: Vec::new(),
            zones: None,
        };
        match &policy.locality {
            None => one(all()),
            Some(Locality::Failover(failover)) => {
                let ranked = members
                    .iter()
                    .map(|(peer, endpoint)| (rank(failover, here, endpoint), peer, *endpoint));
                let mut ranked: Vec<_> = ranked.collect();
                ranked.sort_by_key(|(rank, ..)| *rank);
                let groups = || ranked.chunk_by(|a, b| a.0 == b.0);
                let list: Vec<Group> = groups()
                    .map(|group| Group::new(group.iter().map(|(_, peer, _)| (*peer).clone()).collect()))
                    .collect();
                let first = groups().next().unwrap_or_default();
                let zones = failover.zones.as_ref().and_then(|setting| {
                    let first: Vec<_> = first.iter().map(|(_, peer, endpoint)| (*peer, *endpoint)).collect();
                    Zones::new(setting, here, &first, proxies)
                });
                Self {
                    list,
                    shares: Vec::new(),
                    zones,
                }
            }
            Some(Locality::Distribute(entries)) => {
                let Some(entry) = entries.iter().find(|entry| fits(&entry.from, &here.locality)) else {
                    return one(all());
                };
                let in_locality = |wanted: &str| {
                    let of = members
                        .iter()
                        .filter(|(_, endpoint)| fits(wanted, endpoint.locality.as_deref().unwrap_or_default()));
                    of.map(|(peer, _)| peer.clone()).collect::<Vec<_>>()
                };
                Self {
                    list: entry.to.keys().map(|to| Group::new(in_locality(to))).collect(),
                    shares: entry.to.values().map(|percent| u64::from(*percent)).collect(),
                    zones: None,
                }
            }
        }
    }

    /// Chooses an endpoint that `usable` admits, in the group that its turn or health calls for, else in the others.
    /// `steps`: so many groups further on, where groups are priorities (VS-118).
    pub fn choose(
        &self,
        policy: &Policy,
        key: Key,
        steps: usize,
        healthy: impl Fn(&Peer) -> bool,
        usable: impl Fn(&Peer) -> bool,
    ) -> Option<Rc<Peer>> {
        let choose = |index: usize| {
            let zones = self.zones.as_ref().filter(|_| index == 0);
            let zone = zones.and_then(|zones| zones.turn(key, &healthy));
            zone.and_then(|zone| zone.choose(policy, key, &usable))
                .or_else(|| self.list.get(index)?.choose(policy, key, &usable))
        };
        if self.list.len() == 1 {
            return choose(0);
        }
        let steps = if self.shares.is_empty() { steps } else { 0 };
        let first = (self.first(key, &healthy) + steps) % self.list.len().max(1);
        let mut order = std::iter::once(first).chain((0..self.list.len()).filter(|index| *index != first));
        order.find_map(choose)
    }

    /// The group for one request, by what each can carry.
    fn first(&self, key: Key, healthy: impl Fn(&Peer) -> bool) -> usize {
        let availability: Vec<u64> = self
            .list
            .iter()
            .map(|group| {
                let total = group.peers().len() as u64;
                let well = group.peers().iter().filter(|peer| healthy(peer)).count() as u64;
                (well * OVERPROVISIONING).checked_div(total).unwrap_or(0).min(100)
            })
            .collect();
        let loads: Vec<u64> = if self.shares.is_empty() {
            let able = availability.iter().sum::<u64>().min(100);
            let mut left = 100;
            let load = |available: &u64| {
                let load = (available * 100).checked_div(able).unwrap_or(0).min(left);
                left -= load;
                load
            };
            availability.iter().map(load).collect()
        } else {
            availability
                .iter()
                .zip(&self.shares)
                .map(|(a, share)| a * share)
                .collect()
        };
        let total: u64 = loads.iter().sum();
        if total == 0 {
            return 0;
        }
        let mut left = key.below(total);
        loads
            .iter()
            .position(|load| {
                let hit = left < *load;
                left = left.saturating_sub(*load);
                hit
            })
            .unwrap_or(0)
    }
}

/// The endpoints of the client's region by zone (DR-068).
struct Zones {
    /// The client's own zone first.
    list: Vec<Zone>,
    /// Proxies of the own workload in the region.
    proxies: u64,
}

struct Zone {
    group: Group,
    /// Proxies of the own workload in the zone.
    proxies: u64,
}

impl Zones {
    /// `None` where zones do not count (DR-069), or nobody knows how many clients each has.
    fn new(
        setting: &ZoneAware,
        here: &Here,
        members: &[(&Rc<Peer>, &Endpoint)],
        proxies: &BTreeMap<String, u32>,
    ) -> Option<Self> {
        let (own_region, own_zone) = zone(&here.locality);
        let in_region = proxies.iter().filter(|(place, _)| zone(place).0 == own_region);
        let total: u64 = in_region.map(|(_, count)| u64::from(*count)).sum();
        if own_zone.is_empty() || total == 0 || members.len() < usize::try_from(setting.min_cluster_size).ok()? {
            return None;
        }
        let mut by_zone: BTreeMap<(bool, &str), Vec<Rc<Peer>>> = BTreeMap::new();
        for (peer, endpoint) in members {
            let (region, zone) = zone(endpoint.locality.as_deref().unwrap_or_default());
            let is_other = (region, zone) != (own_region, own_zone);
            by_zone.entry((is_other, zone)).or_default().push((*peer).clone());
        }
        let is_own = by_zone.keys().next().is_some_and(|(is_other, _)| !is_other);
        if !is_own || by_zone.len() < 2 {
            return None;
        }
        let list = by_zone.into_iter().map(|((_, name), peers)| Zone {
            group: Group::new(peers),
            proxies: proxies
                .get(&format!("{own_region}/{name}"))
                .map_or(0, |count| u64::from(*count)),
        });
        Some(Self {
            list: list.collect(),
            proxies: total,
        })
    }

    /// The zone for one request: the own one, as far as its share of the endpoints covers its share of the clients; the
    /// rest goes where it is the other way round.
    fn turn(&self, key: Key, healthy: impl Fn(&Peer) -> bool) -> Option<&Group> {
        let well = |zone: &Zone| zone.group.peers().iter().filter(|peer| healthy(peer)).count() as u64;
        let well: Vec<u64> = self.list.iter().map(well).collect();
        let all: u64 = well.iter().sum();
        // Shares with the same denominator: what the endpoints of a zone can take, and what its clients bring.
        let takes = |index: usize| well.get(index).copied().unwrap_or_default() * self.proxies;
        let brings = |index: usize| self.list.get(index).map_or(0, |zone| zone.proxies) * all;
        if takes(0) == 0 {
            return None;
        }
        let own = self.list.first().map(|zone| &zone.group);
        if takes(0) >= brings(0) || key.below(brings(0)) < takes(0) {
            return own;
        }
        let spare: Vec<u64> = (1..self.list.len())
            .map(|index| takes(index).saturating_sub(brings(index)))
            .collect();
        let total: u64 = spare.iter().sum();
        if total == 0 {
            return own;
        }
        let mut left = key.below(total);
        let position = spare.iter().position(|spare| {
            let hit = left < *spare;
            left = left.saturating_sub(*spare);
            hit
        });
        self.list.get(position? + 1).map(|zone| &zone.group)
    }
}

/// Region and zone of a locality.
fn zone(locality: &str) -> (&str, &str) {
    let mut parts = locality.split('/');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Position of an endpoint in the order: by labels, within that by locality (DR-061, DR-062).
fn rank(failover: &Failover, here: &Here, endpoint: &Endpoint) -> usize {
    let shared = failover.labels.iter().take_while(|label| match label {
        SharedLabel::Equal(name, value) => endpoint.label(name) == Some(value),
        SharedLabel::Missing(name) => endpoint.label(name).is_none(),
        SharedLabel::Own(name) => endpoint.label(name) == here.label(name),
    });
    let by_labels = failover.labels.len() - shared.count();
    let by_locality = match &failover.regions {
        Some(regions) if !here.locality.is_empty() => {
            let other = endpoint.locality.as_deref().unwrap_or_default();
            let region = |locality: &str| locality.split('/').next().unwrap_or_default().to_owned();
            match distance(&here.locality, other) {
                3 => match regions.get(&region(&here.locality)) {
                    Some(to) if *to != region(other) => 4,
                    _ => 3,
                },
                // Zones are for the balancer (DR-068).
                _ if failover.zones.is_some() => 0,
                near => near,
            }
        }
        _ => 0,
    };
    by_labels * 5 + by_locality
}

/// 0: same region, zone and subzone; 1: same zone; 2: same region; 3: another one (DR-058).
fn distance(own: &str, other: &str) -> usize {
    let mut own = own.split('/').chain(std::iter::repeat(""));
    let mut other = other.split('/').chain(std::iter::repeat(""));
    for away in [3, 2, 1] {
        if own.next() != other.next() {
            return away;
        }
    }
    0
}

/// Whether a locality is one of those that are meant: part by part, a `*` standing for all that is left (DR-063).
fn fits(wanted: &str, locality: &str) -> bool {
    let mut parts = locality.split('/');
    for wanted in wanted.split('/') {
        let part = parts.next().unwrap_or_default();
        if let Some(prefix) = wanted.strip_suffix('*') {
            return part.starts_with(prefix);
        }
        if wanted != part {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
