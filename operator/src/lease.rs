//! Leadership: one replica writes. The Lease is renewed by whoever holds it and taken over once it is stale.
//!
//! Clocks of replicas are not compared: a Lease is stale when this replica has seen it unchanged for its duration.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

/// Contends for one Lease.
pub struct Contender {
    api: Api<Lease>,
    name: String,
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
}

impl Contender {
    /// Contends as `identity`, which is unique among the replicas.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self {
            api,
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
            renewed: None,
        }
    }

    /// Tells through `leads` until `stop` turns true, then releases the Lease.
    pub async fn run(mut self, leads: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(RETRY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let attempt = tokio::time::timeout(RENEW_DEADLINE / 2, self.attempt()).await;
            match attempt {
                Ok(Ok(true)) => self.renewed = Some(Instant::now()),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "not renewed"),
                Err(_) => tracing::warn!(lease = self.name, "not renewed: timeout"),
            }
            // A leader that cannot renew stops before another one may start.
            let is_leader = self.renewed.is_some_and(|at| at.elapsed() < RENEW_DEADLINE);
            leads.send_if_modified(|known| {
                let changed = *known != is_leader;
                if changed {
                    tracing::info!(lease = self.name, identity = self.identity, is_leader, "leadership");
                }
                *known = is_leader;
                changed
            });
        }
        let was_leader = leads.send_replace(false);
        if was_leader && let Err(error) = self.release().await {
            tracing::warn!(%error, lease = self.name, "not released");
        }
    }

    /// Takes or renews the Lease; whether it is held.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
        let is_stale = self
            .seen
            .as_ref()
            .is_some_and(|(_, at)| at.elapsed() >= Duration::from_secs(seconds));
        if !holder.is_empty() && holder != self.identity && !is_stale {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await).map(drop)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let own = before.filter(|b| b.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.map_or(0, |b| b.lease_transitions.unwrap_or_default());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION),
            acquire_time: own.and_then(|o| o.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if own.is_some() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict means that another replica was faster.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

const DURATION: i32 = 15;
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
