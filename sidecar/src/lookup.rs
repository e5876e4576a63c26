//! Names that the proxy looks up itself: endpoints of hosts with resolution DNS (SE-027, SE-028, BYD-041).
//!
//! A name is looked up when it is first used, once for all workers, and again when its answer expires for as long as it
//! is used. An idle proxy asks nothing. After a failure the last good answer stays.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use weft_bundle::model::{Endpoint, Host, HostEndpoints};
use weft_bundle::wire::{Discovery, Dns, DnsTarget, Health};

mod query;

pub use query::{Answer, Asker, LookupError};

/// How long a first use waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers are kept for at least this long, so that a zero in a record is no query for each request.
const SHORTEST: Duration = Duration::from_secs(1);

/// And at most this long.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Pause after the first failure; it doubles up to the mesh's rate for failures.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// All names in use.
#[derive(Debug)]
pub struct Lookups {
    asker: Asker,
    names: Mutex<HashMap<Arc<str>, Name>>,
    hosts: Mutex<HashMap<Arc<str>, Made>>,
}

/// What is known of a name.
#[derive(Debug)]
struct Name {
    answer: Option<Arc<Answered>>,
    /// Somebody looks it up, and tells of each end.
    running: Option<watch::Receiver<u64>>,
    /// Used since it was looked up last.
    used: bool,
    failures: u32,
    /// Not asked again before, because it failed.
    not_before: Option<Instant>,
}

/// A good answer.
#[derive(Debug)]
struct Answered {
    addresses: Vec<IpAddr>,
    until: Instant,
}

/// Endpoints that were made of answers, so that equal ones are the same value.
#[derive(Debug)]
struct Made {
    dns: Dns,
    accounts: Vec<String>,
    addresses: Vec<Vec<IpAddr>>,
    endpoints: Arc<HostEndpoints>,
}

impl Lookups {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(asker: Asker) -> Arc<Self> {
        Arc::new(Self {
            asker,
            names: Mutex::default(),
            hosts: Mutex::default(),
        })
    }

    /// Sees to it that the names of a host were looked up; returns at once where they are known. `rate`: longest pause
    /// after failures.
    pub async fn ready(self: &Arc<Self>, host: &Host, rate: Duration) {
        let Discovery::Dns(dns) = &host.discovery else { return };
        let waiting: Vec<_> = dns
            .targets
            .iter()
            .filter_map(|target| self.note(&target.name, rate))
            .collect();
        if waiting.is_empty() {
            return;
        }
        // A name that does not answer in time counts as one that failed; its answer is used when it comes.
        let _ = timeout(PATIENCE, async {
            for mut running in waiting {
                let _ = running.changed().await;
            }
        })
        .await;
    }

    /// Notes a use. What to wait for, where there is no valid answer.
    fn note(self: &Arc<Self>, name: &str, rate: Duration) -> Option<watch::Receiver<u64>> {
        if name.parse::<IpAddr>().is_ok() {
            return None;
        }
        let now = Instant::now();
        let mut names = lock(&self.names);
        if !names.contains_key(name) {
            let unknown = Name {
                answer: None,
                running: None,
                used: false,
                failures: 0,
                not_before: None,
            };
            names.insert(name.into(), unknown);
        }
        let known = names.get_mut(name)?;
        known.used = true;
        if known.answer.as_ref().is_some_and(|answer| now < answer.until) || known.not_before.is_some_and(|at| now < at)
        {
            return None;
        }
        if let Some(running) = &known.running {
            // What is known is used while it is looked up anew, and one that failed before goes on without.
            let mut running = running.clone();
            running.mark_unchanged();
            return (known.answer.is_none() && known.failures == 0).then_some(running);
        }
        let (tell, running) = watch::channel(0);
        known.running = Some(running.clone());
        tokio::spawn(keep(Arc::downgrade(self), name.into(), rate, tell));
        Some(running)
    }

    /// The endpoints of a host as far as its names are known; `None`: it has no names.
    #[must_use]
    pub fn endpoints(&self, host: &Host, listed: Option<&Arc<HostEndpoints>>) -> Option<Arc<HostEndpoints>> {
        let Discovery::Dns(dns) = &host.discovery else {
            return None;
        };
        let addresses: Vec<Vec<IpAddr>> = {
            let names = lock(&self.names);
            let of = |target: &DnsTarget| match target.name.parse() {
                Ok(address) => vec![address],
                Err(_) => {
                    let answer = names.get(&*target.name).and_then(|name| name.answer.as_ref());
                    let all = answer.map(|answer| answer.addresses.clone()).unwrap_or_default();
                    let most = if dns.first_alone { 1 } else { all.len() };
                    all.into_iter().take(most).collect()
                }
            };
            dns.targets.iter().map(of).collect()
        };
        let accounts = listed.map(|listed| listed.accounts.clone()).unwrap_or_default();
        let mut hosts = lock(&self.hosts);
        if let Some(made) = hosts.get(&host.host)
            && made.dns == *dns
            && made.accounts == accounts
            && made.addresses == addresses
        {
            return Some(made.endpoints.clone());
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (target, addresses) in dns.targets.iter().zip(&addresses) {
            let ports = Arc::new(target.ports.clone());
            let labels = Arc::new(target.labels.clone());
            let locality: Option<Arc<str>> = target.locality.as_deref().map(Arc::from);
            endpoints.extend(addresses.iter().map(|address| Endpoint {
                address: *address,
                ports: ports.clone(),
                labels: labels.clone(),
                workload: None,
                locality: locality.clone(),
                node: None,
                weight: target.weight.max(1),
                health: Health::Ready,
                tls: target.tls.clone(),
            }));
        }
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let made = Made {
            dns: dns.clone(),
            accounts: accounts.clone(),
            addresses,
            endpoints: Arc::new(HostEndpoints {
                host: host.host.clone(),
                accounts,
                endpoints,
            }),
        };
        let endpoints = made.endpoints.clone();
        hosts.insert(host.host.clone(), made);
        Some(endpoints)
    }

    /// Forgets hosts that a configuration no longer names; their names go when they are no longer used.
    pub fn retain(&self, hosts: &[Arc<Host>]) {
        let mut made = lock(&self.hosts);
        // Most configurations have none, and a thousand other hosts.
        if made.is_empty() {
            return;
        }
        let known: HashSet<&str> = hosts.iter().map(|host| &*host.host).collect();
        made.retain(|host, _| known.contains(&**host));
    }
}

/// Looks a name up, and again for as long as it is used.
async fn keep(lookups: Weak<Lookups>, name: Arc<str>, rate: Duration, tell: watch::Sender<u64>) {
    loop {
        let Some(all) = lookups.upgrade() else { return };
        let found = all.asker.ask(&name).await;
        let next = {
            let mut names = lock(&all.names);
            let Some(known) = names.get_mut(&*name) else { return };
            let now = Instant::now();
            let next = match found {
                Ok(Answer { addresses, lasts }) => {
                    let until = now + lasts.clamp(SHORTEST, LONGEST);
                    known.answer = Some(Arc::new(Answered { addresses, until }));
                    (known.failures, known.not_before) = (0, None);
                    until
                }
                Err(error) => {
                    let pause = FIRST_PAUSE
                        .saturating_mul(1 << known.failures.min(16))
                        .min(rate.max(FIRST_PAUSE));
                    tracing::warn!(name = &*name, %error, "name not looked up");
                    known.failures = known.failures.saturating_add(1);
                    known.not_before = Some(now + pause);
                    now + pause
                }
            };
            known.used = false;
            next
        };
        tell.send_modify(|ends| *ends += 1);
        drop(all);
        sleep_until(next).await;
        let Some(all) = lookups.upgrade() else { return };
        let mut names = lock(&all.names);
        let Some(known) = names.get_mut(&*name) else { return };
        if !known.used {
            // Nobody asked for it since: the next to use it looks it up.
            known.running = None;
            if known.answer.is_none() {
                names.remove(&*name);
            }
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
