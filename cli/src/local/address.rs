//! Addresses of a run: pods in turn, services by their name so that they are stable over restarts (LOC-021, LOC-023).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub base: Ipv4Addr,
    /// Length of the prefix, 8..=28.
    pub prefix: u8,
}

impl Range {
    /// Number of addresses.
    #[must_use]
    pub fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address at an offset.
    #[must_use]
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(offset % self.size()))
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(u32::from(self.base)) < self.size()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text} is no range of IPv4 addresses; write it like 10.99.0.0/16, /8 to /28");
        let (address, prefix) = text.split_once('/').ok_or_else(expected)?;
        let address: Ipv4Addr = address.parse().map_err(|_| expected())?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|p| (8..=28).contains(p))
            .ok_or_else(expected)?;
        let base = Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix)));
        Ok(Self { base, prefix })
    }
}

/// Gives out addresses of pods: the next free one, so that a new pod does not take over the address of one that
/// others may still be dialling.
#[derive(Debug)]
pub struct Pods {
    range: Range,
    next: u32,
    taken: BTreeSet<u32>,
}

impl Pods {
    /// Addresses of `range` from its second usable one on: the first is the gateway's.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self {
            range,
            next: 2,
            taken: BTreeSet::new(),
        }
    }

    /// The gateway.
    #[must_use]
    pub fn gateway(range: Range) -> Ipv4Addr {
        range.at(1)
    }

    /// A free address; `None` when all are taken.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let last = self.range.size() - 1;
        for _ in 2..last {
            let offset = self.next;
            self.next = if offset + 1 >= last { 2 } else { offset + 1 };
            if self.taken.insert(offset) {
                return Some(self.range.at(offset));
            }
        }
        None
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.taken
            .remove(&u32::from(address).wrapping_sub(u32::from(self.range.base)));
    }
}

/// Gives out addresses of services by a hash of namespace and name.
#[derive(Debug)]
pub struct Services {
    range: Range,
    given: BTreeMap<(String, String), Ipv4Addr>,
}

impl Services {
    /// Addresses of `range`.
    #[must_use]
    pub fn new(range: Range) -> Self {
        Self {
            range,
            given: BTreeMap::new(),
        }
    }

    /// The address of a service, the same for as long as the run lasts and, unless two names collide, for ever.
    pub fn of(&mut self, namespace: &str, name: &str) -> Option<Ipv4Addr> {
        let id = (namespace.to_owned(), name.to_owned());
        if let Some(address) = self.given.get(&id) {
            return Some(*address);
        }
        let hash = Sha256::digest(format!("{namespace}/{name}"));
        let start = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let usable = self.range.size() - 2;
        let free = (0..usable)
            .map(|step| self.range.at(1 + start.wrapping_add(step) % usable))
            .find(|address| !self.given.values().any(|given| given == address))?;
        self.given.insert(id, free);
        Some(free)
    }

    /// Forgets a service.
    pub fn release(&mut self, namespace: &str, name: &str) {
        self.given.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().expect("range")
    }

    // spec: LOC-021
    #[test]
    fn pods_get_the_next_free_address_and_the_gateway_stays_free() {
        let mut pods = Pods::new(range("10.99.0.0/28"));
        let all: Vec<_> = std::iter::from_fn(|| pods.take()).collect();
        assert_eq!(all.len(), 13);
        assert!(!all.contains(&Pods::gateway(range("10.99.0.0/28"))));
        pods.release(all[3]);
        assert_eq!(pods.take(), Some(all[3]));
        assert_eq!(pods.take(), None);
    }

    // spec: LOC-023
    #[test]
    fn services_keep_their_address() {
        let give = || Services::new(range("10.98.0.0/16")).of("sample", "forecast");
        assert_eq!(give(), give());
        let mut small = Services::new(range("10.98.0.0/28"));
        let all: BTreeSet<_> = (0..14).filter_map(|n| small.of("a", &n.to_string())).collect();
        assert_eq!(all.len(), 14);
        assert!(all.iter().all(|a| range("10.98.0.0/28").contains(*a)));
        assert_eq!(small.of("a", "one more"), None);
    }

    #[test]
    fn a_range_is_parsed_or_refused_with_an_example() {
        assert_eq!(
            range("10.99.7.9/16"),
            Range {
                base: Ipv4Addr::new(10, 99, 0, 0),
                prefix: 16
            }
        );
        for bad in ["10.99.0.0", "10.99.0.0/31", "x/8", "::/64"] {
            assert!(Range::from_str(bad).expect_err(bad).contains("10.99.0.0/16"));
        }
    }
}
