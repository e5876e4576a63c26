//! Choice of an endpoint (DR-033 ff.).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use weft_bundle::wire::{ConsistentHash, LoadBalancer, Policy, Warmup};

use crate::cluster::Peer;

/// Most tries to draw an endpoint that may be used before all are looked at.
const DRAWS: usize = 5;

/// Default size of a hash ring (DR-047).
const RING_SIZE: u64 = 1024;

/// What a share of 1 counts, so that a warming endpoint's is not rounded to nothing.
const WHOLE: u64 = 1000;

/// Key of consistent hashing: the hash of the value that the policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub Option<u64>);

impl Key {
    /// No key: a random endpoint (DR-042).
    pub const NONE: Self = Self(None);

    /// Hash of a value; every proxy computes the same (DR-041).
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        Self(Some(hash(value)))
    }

    /// A number below `limit`: random, or for a key always the same.
    #[must_use]
    pub fn below(self, limit: u64) -> u64 {
        match self.0 {
            // Other bits than those that find the place on a ring.
            Some(key) => mix(key.rotate_left(32)) % limit,
            None => fastrand::u64(..limit),
        }
    }
}

/// Endpoints among which a load balancer chooses. Made anew when the list changes.
pub struct Group {
    peers: Vec<Rc<Peer>>,
    /// Weights differ.
    uneven: bool,
    /// When the newest one was learned.
    newest: Option<Instant>,
    turn: Cell<usize>,
    /// Credit of each endpoint for weighted turns.
    credit: RefCell<Vec<i64>>,
    ring: RefCell<Ring>,
}

#[derive(Default)]
struct Ring {
    size: u64,
    maglev: bool,
    /// Ring hash: position and endpoint, sorted. Maglev: the table in place.
    points: Vec<(u64, u32)>,
}

impl Group {
    /// Endpoints in the order of their list.
    #[must_use]
    pub fn new(peers: Vec<Rc<Peer>>) -> Self {
        Self {
            uneven: peers.windows(2).any(|pair| pair[0].weight() != pair[1].weight()),
            newest: peers.iter().map(|peer| peer.learned).max(),
            turn: Cell::new(0),
            credit: RefCell::default(),
            ring: RefCell::default(),
            peers,
        }
    }

    /// Its endpoints.
    #[must_use]
    pub fn peers(&self) -> &[Rc<Peer>] {
        &self.peers
    }

    /// Chooses among the endpoints that `usable` admits; `None` when it admits none.
    pub fn choose(&self, policy: &Policy, key: Key, usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
        if self.peers.is_empty() {
            return None;
        }
        let warming = policy.warmup.as_ref().and_then(|warmup| self.warming(warmup));
        let uneven = self.uneven || warming.is_some();
        let share = |peer: &Peer| {
            let whole = u64::from(peer.weight()) * WHOLE;
            warming.map_or(whole, |(warmup, now)| warmed(whole, warmup, now - peer.learned))
        };
        let share: Option<&dyn Fn(&Peer) -> u64> = if uneven { Some(&share) } else { None };
        match &policy.load_balancer {
            LoadBalancer::LeastRequest => match share {
                None => least_request(&self.peers, usable),
                // Turns in proportion to the weight that its requests leave an endpoint.
                Some(share) => {
                    self.in_weighted_turn(&|peer| (share(peer) / u64::from(peer.active.get() + 1)).max(1), usable)
                }
            },
            LoadBalancer::RoundRobin => match share {
                None => self.in_turn(usable),
                Some(share) => self.in_weighted_turn(share, usable),
            },
            LoadBalancer::Random | LoadBalancer::Passthrough => draw(&self.peers, share, &usable),
            LoadBalancer::ConsistentHash(hash) => match key.0 {
                Some(key) => self.hashed(hash, key, usable),
                None => draw(&self.peers, share, &usable),
            },
        }
    }

    /// The time, while some endpoint is new and others are not: those that are equally new share alike (DR-054).
    fn warming<'w>(&self, warmup: &'w Warmup) -> Option<(&'w Warmup, Instant)> {
        let now = Instant::now();
        let newest = self.newest?;
        (now < newest + Duration::from_millis(warmup.duration_ms)).then_some((warmup, now))
    }

    fn in_turn(&self, usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
        let peers = &self.peers;
        // Begins anywhere, so that the first requests of many workers do not meet at one endpoint.
        let start = match self.turn.get() {
            0 => fastrand::usize(1..=peers.len()),
            turn => turn,
        };
        for step in 0..peers.len() {
            let turn = start.wrapping_add(step);
            let peer = &peers[turn % peers.len()];
            if usable(peer) {
                self.turn.set(turn.wrapping_add(1).max(1));
                return Some(peer.clone());
            }
        }
        None
    }

    /// Smooth weighted turns: each gains its share, the richest is taken and pays what all gained.
    fn in_weighted_turn(&self, share: &dyn Fn(&Peer) -> u64, usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
        let mut credit = self.credit.borrow_mut();
        credit.resize(self.peers.len(), 0);
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (index, peer) in self.peers.iter().enumerate().filter(|(_, peer)| usable(peer)) {
            let gain = i64::try_from(share(peer)).unwrap_or(i64::MAX >> 32);
            credit[index] += gain;
            total += gain;
            if best.is_none_or(|best| credit[index] > credit[best]) {
                best = Some(index);
            }
        }
        let best = best?;
        credit[best] -= total;
        Some(self.peers[best].clone())
    }

    fn hashed(&self, policy: &ConsistentHash, key: u64, usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
        let mut ring = self.ring.borrow_mut();
        let maglev = policy.maglev_table_size.is_some();
        let size = policy
            .maglev_table_size
            .or(policy.minimum_ring_size)
            .unwrap_or(RING_SIZE)
            .clamp(1, 5_000_011);
        if ring.points.is_empty() || ring.size != size || ring.maglev != maglev {
            ring.points = if maglev {
                maglev_table(&self.peers, size)
            } else {
                ring_points(&self.peers, size)
            };
            (ring.size, ring.maglev) = (size, maglev);
        }
        let points = &ring.points;
        let start = if maglev {
            usize::try_from(key % points.len() as u64).unwrap_or(0)
        } else {
            points.partition_point(|(position, _)| *position < key)
        };
        // An endpoint that is out passes its keys on to the next one (DR-049).
        (0..points.len()).find_map(|step| {
            let (_, index) = points[(start + step) % points.len()];
            let peer = self.peers.get(index as usize)?;
            usable(peer).then(|| peer.clone())
        })
    }
}

/// Share of an endpoint that has been known for a time (DR-051).
fn warmed(whole: u64, warmup: &Warmup, known: Duration) -> u64 {
    let progress = known.as_secs_f64() / Duration::from_millis(warmup.duration_ms).as_secs_f64();
    if progress >= 1.0 {
        return whole;
    }
    let exponent = 1000.0 / f64::from(warmup.aggression_milli);
    let share = progress.powf(exponent).max(f64::from(warmup.minimum_ppm) / 1_000_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and the whole, which is small"
    )]
    let share = (whole as f64 * share).ceil() as u64;
    share.clamp(1, whole)
}

/// Two at random, the less busy wins (DR-035).
fn least_request(peers: &[Rc<Peer>], usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
    if let [only] = peers {
        return usable(only).then(|| only.clone());
    }
    let first = draw(peers, None, &usable)?;
    let second = draw(peers, None, |peer| usable(peer) && !std::ptr::eq(peer, &*first));
    match second {
        Some(second) if second.active.get() < first.active.get() => Some(second),
        _ => Some(first),
    }
}

/// One at random in proportion to its share; without shares all alike.
fn draw(peers: &[Rc<Peer>], share: Option<&dyn Fn(&Peer) -> u64>, usable: impl Fn(&Peer) -> bool) -> Option<Rc<Peer>> {
    if share.is_none() {
        for _ in 0..DRAWS {
            let peer = &peers[fastrand::usize(..peers.len())];
            if usable(peer) {
                return Some(peer.clone());
            }
        }
    }
    let of = |peer: &Peer| share.map_or(1, |share| share(peer));
    let total: u64 = peers.iter().filter(|p| usable(p)).map(|p| of(p)).sum();
    if total == 0 {
        return None;
    }
    let mut left = fastrand::u64(..total);
    peers.iter().filter(|p| usable(p)).find_map(|peer| {
        let share = of(peer);
        if left < share {
            return Some(peer.clone());
        }
        left -= share;
        None
    })
}

fn ring_points(peers: &[Rc<Peer>], size: u64) -> Vec<(u64, u32)> {
    let total: u64 = peers.iter().map(|peer| u64::from(peer.weight())).sum::<u64>().max(1);
    let mut points = Vec::new();
    for (index, peer) in (0u32..).zip(peers) {
        let count = (size * u64::from(peer.weight())).div_ceil(total).max(1);
        for i in 0..count {
            points.push((hash(format!("{}_{i}", peer.address).as_bytes()), index));
        }
    }
    points.sort_unstable();
    points
}

/// The table of Maglev: endpoints take free places in turn, each in its own order.
fn maglev_table(peers: &[Rc<Peer>], size: u64) -> Vec<(u64, u32)> {
    if peers.is_empty() {
        return Vec::new();
    }
    let length = usize::try_from(size).unwrap_or(1);
    let mut table = vec![(0, u32::MAX); length];
    let orders: Vec<(u64, u64)> = peers
        .iter()
        .map(|peer| {
            let text = peer.address.to_string();
            let skip = if size > 1 {
                hash(format!("{text}#").as_bytes()) % (size - 1) + 1
            } else {
                1
            };
            (hash(text.as_bytes()) % size, skip)
        })
        .collect();
    let mut next = vec![0u64; peers.len()];
    let mut filled = 0;
    while filled < length {
        for (index, (offset, skip)) in (0u32..).zip(&orders) {
            let turn = &mut next[index as usize];
            // A size that is no prime can make an order miss places; then any free one is taken.
            let place = (0..size).find_map(|_| {
                let place = usize::try_from((offset + *turn * skip) % size).unwrap_or(0);
                *turn += 1;
                (table[place].1 == u32::MAX).then_some(place)
            });
            let place = place.or_else(|| table.iter().position(|(_, taken)| *taken == u32::MAX));
            let Some(place) = place else { break };
            table[place].1 = index;
            filled += 1;
            if filled == length {
                break;
            }
        }
    }
    table
}

/// FNV-1a with a final mix: fixed, so that all proxies agree.
fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(state)
}

fn mix(mut state: u64) -> u64 {
    state ^= state >> 33;
    state = state.wrapping_mul(0xff51_afd7_ed55_8ccd);
    state ^= state >> 33;
    state = state.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ state >> 33
}

#[cfg(test)]
mod tests;
