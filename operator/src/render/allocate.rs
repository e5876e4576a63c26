//! Addresses for hosts that have none of their own, so that connections to them can be told apart (SE-032, SE-033).
//!
//! An address follows from namespace and host, and stays: what the status of an entry says is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use weft_bundle::pack::shard_of;
use weft_crds::ServiceEntry;
use weft_crds::service_entry::AllocatedAddress;
use weft_crds::validate::host::canonical;

/// Label that keeps an entry from getting addresses.
const OPT_OUT: &str = "networking.istio.io/enable-autoallocate-ip";

/// Addresses of each of the two ranges.
const COUNT: u16 = u16::MAX - 1;

/// What was allocated, by namespace and host.
#[derive(Debug, Default)]
pub(super) struct Allocated(BTreeMap<(String, String), u16>);

impl Allocated {
    /// Allocates for entries in the order of their age.
    pub(super) fn new(entries: &[Arc<ServiceEntry>]) -> Self {
        let mut out = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let wanting = || entries.iter().filter(|entry| is_wanted(entry));
        for entry in wanting() {
            for known in entry.status.iter().flat_map(|status| &status.addresses) {
                let id = (namespace(entry).to_owned(), canonical(&known.host));
                let is_host = entry.spec.hosts.iter().any(|host| canonical(host) == id.1);
                let Some(number) = number(&known.value).filter(|_| is_host && !out.contains_key(&id)) else {
                    continue;
                };
                if taken.insert(number) {
                    out.insert(id, number);
                }
            }
        }
        for entry in wanting() {
            let is_dynamic = entry.spec.resolution.as_deref() == Some("DYNAMIC_DNS");
            let hosts = entry.spec.hosts.iter().map(|host| canonical(host));
            for host in hosts.filter(|host| is_dynamic || !host.starts_with('*')) {
                let id = (namespace(entry).to_owned(), host);
                if out.contains_key(&id) || taken.len() >= usize::from(COUNT) {
                    continue;
                }
                let first = shard_of(&format!("{}/{}", id.0, id.1), usize::from(COUNT));
                let mut number = u16::try_from(first).expect("less than the count") + 1;
                while !taken.insert(number) {
                    number = number % COUNT + 1;
                }
                out.insert(id, number);
            }
        }
        Self(out)
    }

    /// The addresses of a host.
    pub(super) fn of(&self, namespace: &str, host: &str) -> Vec<IpAddr> {
        let id = (namespace.to_owned(), host.to_owned());
        self.0
            .get(&id)
            .map(|number| addresses(*number))
            .into_iter()
            .flatten()
            .collect()
    }

    /// What the status of an entry says (SE-020).
    pub(super) fn status(&self, entry: &ServiceEntry) -> Vec<AllocatedAddress> {
        if !is_wanted(entry) {
            return Vec::new();
        }
        let of = |host: &String| {
            let addresses = self.of(namespace(entry), &canonical(host)).into_iter();
            let allocated = addresses.map(|address| AllocatedAddress {
                value: address.to_string(),
                host: host.clone(),
            });
            allocated.collect::<Vec<_>>()
        };
        entry.spec.hosts.iter().flat_map(of).collect()
    }
}

fn is_wanted(entry: &ServiceEntry) -> bool {
    let labels = entry.metadata.labels.as_ref();
    let opts_out = labels
        .and_then(|l| l.get(OPT_OUT))
        .is_some_and(|value| value == "false");
    let resolution = entry.spec.resolution.as_deref().unwrap_or("NONE");
    !opts_out && resolution != "NONE" && entry.spec.addresses.is_empty()
}

fn namespace(entry: &ServiceEntry) -> &str {
    entry.metadata.namespace.as_deref().unwrap_or_default()
}

/// 240.240.0.0/16 and 2001:2::/48.
fn addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [
        Ipv4Addr::new(240, 240, high, low).into(),
        Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, number).into(),
    ]
}

fn number(text: &str) -> Option<u16> {
    let Ok(IpAddr::V4(address)) = text.parse() else {
        return None;
    };
    let [240, 240, high, low] = address.octets() else {
        return None;
    };
    Some(u16::from_be_bytes([high, low])).filter(|number| (1..=COUNT).contains(number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(namespace: &str, fields: &serde_json::Value) -> Arc<ServiceEntry> {
        let mut object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {"hosts": ["a.example"], "resolution": "DNS"},
        });
        json_patch::merge(&mut object, fields);
        Arc::new(serde_json::from_value(object).expect("entry"))
    }

    // spec: SE-032, SE-033
    #[test]
    fn each_host_has_an_address_of_its_own_that_follows_from_its_name() {
        let entries: Vec<_> = (0..300)
            .map(|n| entry("app", &json!({"spec": {"hosts": [format!("h{n}.example")]}})))
            .collect();
        let all = Allocated::new(&entries);
        let mut reversed = entries.clone();
        reversed.reverse();
        let again = Allocated::new(&reversed);
        let mut seen = BTreeSet::new();
        for n in 0..300 {
            let addresses = all.of("app", &format!("h{n}.example"));
            let v4 = addresses[0].to_string();
            assert!(
                v4.starts_with("240.240.") && addresses[1].to_string().starts_with("2001:2:"),
                "{addresses:?}"
            );
            assert!(seen.insert(v4), "{addresses:?} is there twice");
        }
        // Only those that met another one's address may differ by order.
        let moved =
            (0..300).filter(|n| all.of("app", &format!("h{n}.example")) != again.of("app", &format!("h{n}.example")));
        assert!(moved.count() < 10);
    }

    // spec: SE-032
    #[test]
    fn what_the_status_says_is_kept() {
        let status = |value: &str| json!({"status": {"addresses": [{"value": value, "host": "a.example"}]}});
        let entries = [entry("app", &status("240.240.7.7"))];
        let allocated = Allocated::new(&entries);
        assert_eq!(allocated.of("app", "a.example")[0].to_string(), "240.240.7.7");
        assert_eq!(allocated.status(&entries[0])[0].value, "240.240.7.7");
        // Two that say the same: the older one has it.
        let entries = [
            entry("app", &status("240.240.7.7")),
            entry("other", &status("240.240.7.7")),
        ];
        let allocated = Allocated::new(&entries);
        assert_ne!(allocated.of("other", "a.example"), allocated.of("app", "a.example"));
        // Addresses of others are none.
        let allocated = Allocated::new(&[entry("app", &status("10.0.0.1"))]);
        assert!(allocated.of("app", "a.example")[0].to_string().starts_with("240.240."));
    }

    // spec: SE-032
    #[test]
    fn entries_with_addresses_and_those_that_do_not_want_any_get_none() {
        for fields in [
            json!({"spec": {"resolution": "NONE"}}),
            json!({"spec": {"addresses": ["10.0.0.1"]}}),
            json!({"metadata": {"labels": {OPT_OUT: "false"}}}),
            json!({"spec": {"hosts": ["*.example"]}}),
        ] {
            let entries = [entry("app", &fields)];
            let host = &entries[0].spec.hosts[0];
            assert!(Allocated::new(&entries).of("app", host).is_empty(), "{fields}");
        }
    }
}
