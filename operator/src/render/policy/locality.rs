//! Which endpoints a client prefers by where they are (DR-055 ff., SM-103 ff.).

use std::collections::BTreeMap;

use weft_bundle::model::is_derived;
use weft_bundle::wire::{Distribute, Failover, Locality, SharedLabel, ZoneAware};
use weft_crds::destination_rule::{
    LoadBalancerSettings, LocalityFailover, LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting,
};

use super::Client;
use crate::render::Shared;
use crate::render::service::{Distribution, Registered};

/// What is in force: of the rule, else of the service, else of the mesh (DR-067, SM-106).
pub(super) fn locality(
    shared: &Shared<'_>,
    service: &Registered<'_>,
    client: Client<'_>,
    settings: Option<&LoadBalancerSettings>,
    has_outlier: bool,
) -> Option<Locality> {
    if let Some(zones) = settings.and_then(|s| s.zone_aware_lb_setting.as_ref()) {
        return by_zones(zones, client);
    }
    if let Some(setting) = settings.and_then(|s| s.locality_lb_setting.as_ref()) {
        return of(setting, client, has_outlier);
    }
    if let Some(distribution) = service.distribution {
        return Some(by_distribution(distribution));
    }
    if let Some(zones) = &shared.world.mesh.zone_aware_lb_setting {
        return by_zones(zones, client);
    }
    match &shared.world.mesh.locality_lb_setting {
        Some(setting) => of(setting, client, has_outlier),
        None => of(&LocalityLoadBalancerSetting::default(), client, has_outlier),
    }
}

fn of(setting: &LocalityLoadBalancerSetting, client: Client<'_>, has_outlier: bool) -> Option<Locality> {
    if setting.enabled == Some(false) {
        return None;
    }
    if !setting.distribute.is_empty() {
        let entry = |entry: &weft_crds::destination_rule::LocalityDistribute| Distribute {
            from: entry.from.clone(),
            to: entry
                .to
                .iter()
                .filter_map(|(to, percent)| Some((to.clone(), u32::try_from(*percent).ok()?)))
                .collect(),
        };
        return Some(Locality::Distribute(setting.distribute.iter().map(entry).collect()));
    }
    // Nothing says which endpoints are well (DR-057).
    if !has_outlier {
        return None;
    }
    let labels: Vec<SharedLabel> = setting
        .failover_priority
        .iter()
        .map(|entry| label(entry, client))
        .collect();
    let by_locality = labels.is_empty() || !setting.failover.is_empty();
    Some(Locality::Failover(Failover {
        regions: by_locality.then(|| regions(&setting.failover)),
        labels,
        zones: None,
    }))
}

/// The client's region comes first, and within it its zone takes what is its share (DR-068).
fn by_zones(setting: &ZoneAwareLoadBalancerSetting, client: Client<'_>) -> Option<Locality> {
    if setting.enabled == Some(false) {
        return None;
    }
    let mut labels = vec![own(REGION)];
    labels.extend(setting.failover_priority.iter().map(|entry| label(entry, client)));
    let least = setting.min_cluster_size.and_then(|size| u32::try_from(size).ok());
    Some(Locality::Failover(Failover {
        labels,
        regions: Some(regions(&setting.failover)),
        zones: Some(ZoneAware {
            min_cluster_size: least.unwrap_or(MIN_CLUSTER_SIZE),
        }),
    }))
}

/// Of several entries for a region the first counts (DR-059).
fn regions(failover: &[LocalityFailover]) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for entry in failover {
        out.entry(entry.from.clone()).or_insert_with(|| entry.to.clone());
    }
    out
}

/// `key` or `key=value` (DR-061). Where a pod runs is not known here, its labels are.
fn label(entry: &str, client: Client<'_>) -> SharedLabel {
    match entry.split_once('=') {
        Some((key, value)) => SharedLabel::Equal(key.to_owned(), value.to_owned()),
        None if is_derived(entry) => own(entry),
        None => match client.labels.and_then(|labels| labels.get(entry)) {
            Some(value) => SharedLabel::Equal(entry.to_owned(), value.clone()),
            None => SharedLabel::Missing(entry.to_owned()),
        },
    }
}

fn own(label: &str) -> SharedLabel {
    SharedLabel::Own(label.to_owned())
}

/// Order of a service's traffic distribution (SM-104).
fn by_distribution(distribution: Distribution) -> Locality {
    let labels: &[&str] = match distribution {
        Distribution::SameZone => &["topology.istio.io/network", REGION, ZONE],
        Distribution::SameNode => &[
            "topology.istio.io/network",
            REGION,
            ZONE,
            "topology.istio.io/subzone",
            "kubernetes.io/hostname",
        ],
    };
    Locality::Failover(Failover {
        labels: labels.iter().map(|name| own(name)).collect(),
        regions: None,
        zones: None,
    })
}

/// Fewest endpoints of a region for which zones count (DR-068).
const MIN_CLUSTER_SIZE: u32 = 6;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
