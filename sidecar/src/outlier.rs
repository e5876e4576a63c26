//! Passive outlier detection (DR-090 ff.).
//!
//! Which worker an error came to is chance, so all of them count together. The counters are atomic: workers that meet
//! here do not wait for each other.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_bundle::wire::Outlier;

use crate::cluster::Peer;

/// Longest ejection, unless the base is longer (DR-096).
const LONGEST: Duration = Duration::from_secs(300);

/// How a try ended, as outlier detection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// A TCP connection was established.
    Connected,
    /// No response: connect failure, reset, timeout.
    Failed,
}

/// The endpoints of one destination, as all workers together see them.
#[derive(Debug, Default)]
pub struct Ejections {
    /// Some endpoint may be ejected.
    any: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The newest that any worker has taken over.
    newest: AsOf,
    by_address: HashMap<SocketAddr, Arc<Ejection>>,
}

/// Serial numbers of what a worker goes by. Another one may be ahead of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AsOf {
    /// Of the configuration.
    pub config: u64,
    /// Of the endpoint table.
    pub table: u64,
}

impl Ejections {
    /// The states of a list of endpoints; those of others are forgotten (DR-103), unless another worker knows a newer
    /// table. Asked for when a worker takes over a list, not by requests.
    pub fn follow(&self, as_of: AsOf, addresses: &[SocketAddr]) -> Vec<Arc<Ejection>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.newest.config = known.newest.config.max(as_of.config);
        if as_of.table > known.newest.table {
            known.newest.table = as_of.table;
            let listed: HashSet<_> = addresses.iter().collect();
            known.by_address.retain(|address, _| listed.contains(address));
        }
        let of = |address: &SocketAddr| known.by_address.entry(*address).or_default().clone();
        addresses.iter().map(of).collect()
    }

    /// Outlier detection is off: what was counted is forgotten, unless another worker knows a newer configuration.
    pub fn forget(&self, as_of: AsOf) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if as_of.config > known.newest.config {
            known.newest.config = as_of.config;
            known.by_address.clear();
        }
    }

    /// Whether some endpoint may be ejected.
    #[must_use]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Some endpoint was ejected.
    pub fn note(&self) {
        self.any.store(true, Ordering::SeqCst);
    }

    /// Looks whether some endpoint still is ejected: of those that any worker knows, for the one that asks may not have
    /// used the destination for long. Asked for now and then, not by requests.
    pub fn look(&self, now: Instant) {
        // Cleared first: one that another worker ejects meanwhile is seen below, or noted by it afterwards.
        if !self.any.swap(false, Ordering::SeqCst) {
            return;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_address.values().any(|ejection| ejection.is_ejected(now)) {
            self.note();
        }
    }
}

/// State of one endpoint. Times are in microseconds since it began.
#[derive(Debug)]
pub struct Ejection {
    begin: Instant,
    errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// End of the last ejection; 0: there was none.
    until: AtomicU64,
    /// Successive ejections.
    times: AtomicU32,
    /// When their number goes down; 0: it is none.
    decays_at: AtomicU64,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            begin: Instant::now(),
            errors: AtomicU32::default(),
            gateway_errors: AtomicU32::default(),
            local_failures: AtomicU32::default(),
            until: AtomicU64::default(),
            times: AtomicU32::default(),
            decays_at: AtomicU64::default(),
        }
    }
}

impl Ejection {
    /// Whether the endpoint is out.
    #[must_use]
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.at(now) < self.until.load(Ordering::SeqCst)
    }

    fn at(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.begin))
    }

    /// Counts an outcome; true when a threshold was reached.
    fn count(&self, policy: &Outlier, outcome: Outcome) -> bool {
        let split = policy.consecutive_local_origin_failures;
        let (error, gateway, local) = match outcome {
            Outcome::Connected => (false, false, false),
            Outcome::Failed => (split.is_none(), split.is_none(), split.is_some()),
            Outcome::Status(status) if policy.error_codes.is_empty() => {
                ((500..600).contains(&status), matches!(status, 502..=504), false)
            }
            Outcome::Status(status) => {
                let listed = policy.error_codes.contains(&status);
                (listed, listed, false)
            }
        };
        let local_failures = step(&self.local_failures, local);
        if local {
            return local_failures >= split.unwrap_or(5).max(1);
        }
        let errors = step(&self.errors, error);
        let gateway_errors = step(&self.gateway_errors, gateway);
        (policy.consecutive_5xx > 0 && errors >= policy.consecutive_5xx)
            || (policy.consecutive_gateway_errors > 0 && gateway_errors >= policy.consecutive_gateway_errors)
    }

    /// Ejects the endpoint if `is_allowed` then; false too when another worker did it in the same moment.
    fn eject(&self, policy: &Outlier, now: Instant, is_allowed: impl FnOnce() -> bool) -> bool {
        let before = self.until.load(Ordering::SeqCst);
        let now = self.at(now);
        if now < before {
            return false;
        }
        let times = self.times.load(Ordering::Relaxed).saturating_add(1);
        let base = Duration::from_millis(policy.base_ejection_time_ms);
        // Returns are looked for at the end of each interval (DR-095).
        let interval = Duration::from_millis(policy.interval_ms.max(1));
        let lasts = base.saturating_mul(times).min(LONGEST.max(base));
        let periods = micros(lasts).div_ceil(micros(interval));
        let until = now.saturating_add(periods.saturating_mul(micros(interval))).max(1);
        let replace = |from, to| {
            self.until
                .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        if !replace(before, until) {
            return false;
        }
        if !is_allowed() {
            replace(until, before);
            return false;
        }
        self.times.store(times, Ordering::Relaxed);
        self.decays_at
            .store(until.saturating_add(micros(interval)), Ordering::Relaxed);
        for counter in [&self.errors, &self.gateway_errors, &self.local_failures] {
            counter.store(0, Ordering::Relaxed);
        }
        true
    }

    /// Lets the count of earlier ejections decay (DR-095). Each worker asks; one of them does it.
    pub fn tick(&self, policy: &Outlier, now: Instant) {
        let due = self.decays_at.load(Ordering::Relaxed);
        let at = self.at(now);
        if due == 0 || at < due || self.is_ejected(now) {
            return;
        }
        let times = self.times.load(Ordering::Relaxed).saturating_sub(1);
        let interval = micros(Duration::from_millis(policy.interval_ms));
        let next = if times > 0 { at.saturating_add(interval) } else { 0 };
        let taken = self
            .decays_at
            .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_ok() {
            self.times.store(times, Ordering::Relaxed);
        }
    }
}

/// Counts one more, or begins anew; a counter that is at its beginning is not written to.
fn step(counter: &AtomicU32, is_bad: bool) -> u32 {
    if is_bad {
        return counter.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    }
    if counter.load(Ordering::Relaxed) > 0 {
        counter.store(0, Ordering::Relaxed);
    }
    0
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Notes how a try ended; true when it ejected the endpoint.
pub fn report(policy: &Outlier, peers: &[Rc<Peer>], peer: &Peer, outcome: Outcome) -> bool {
    let Some(ejection) = peer.ejection() else { return false };
    if !ejection.count(policy, outcome) {
        return false;
    }
    let now = Instant::now();
    if ejection.is_ejected(now) {
        return false;
    }
    // DR-097: with fewer than ten endpoints and the default of 10 percent nothing is ever ejected.
    let is_allowed = |more: u64| {
        let ejected = peers.iter().filter(|p| p.is_ejected(now)).count() as u64;
        (ejected + more) * 100 <= u64::from(policy.max_ejection_percent) * peers.len() as u64
    };
    // Asked again once it is out, when other workers may have ejected others.
    is_allowed(1) && ejection.eject(policy, now, || is_allowed(0))
}

/// Whether so few endpoints are healthy that all are used (DR-099).
#[must_use]
pub fn panics(policy: &Outlier, peers: &[Rc<Peer>], now: Instant) -> bool {
    if policy.min_health_percent == 0 || peers.is_empty() {
        return false;
    }
    let healthy = peers.iter().filter(|p| !p.is_ejected(now)).count() as u64;
    healthy * 100 < u64::from(policy.min_health_percent) * peers.len() as u64
}

#[cfg(test)]
mod tests;
