//! Retries and injected faults (VS-099..VS-135).

use weft_bundle::wire::{Abort, Action, Delay, Fault, RetryPolicy};
use weft_crds::MeshConfig;
use weft_crds::virtual_service as api;

use super::Client;

/// The policy of rules that state none (VS-099).
pub(in crate::render) fn default_retry(mesh: &MeshConfig) -> RetryPolicy {
    mesh.default_http_retry_policy.as_ref().map(retry).unwrap_or_default()
}

impl Client<'_> {
    /// The policy of one rule; `None`: that of the mesh. A single destination by consistent hashing is asked again,
    /// unless something says otherwise (VS-117).
    pub(super) fn retries(&self, route: &api::HTTPRoute, action: &Action) -> Option<RetryPolicy> {
        let mesh = &self.shared.world.mesh;
        let stated = route.retries.as_ref();
        let policy = stated.map(retry);
        let effective = stated.or(mesh.default_http_retry_policy.as_ref());
        if effective.is_some_and(|r| r.retry_ignore_previous_hosts.is_some()) || !self.is_hashed(action) {
            return policy;
        }
        Some(RetryPolicy {
            avoid_tried: false,
            ..policy.unwrap_or_else(|| default_retry(mesh))
        })
    }

    fn is_hashed(&self, action: &Action) -> bool {
        let Action::Destinations(destinations) = action else {
            return false;
        };
        match destinations.as_slice() {
            [only] => self
                .hashed
                .contains(&(only.host.clone(), only.port, only.subset.clone())),
            _ => false,
        }
    }
}

/// Retries (VS-099 ff.); numbers among the conditions are statuses (VS-111).
fn retry(retry: &api::HTTPRetry) -> RetryPolicy {
    let defaults = RetryPolicy::default();
    let attempts = retry.attempts.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let mut statuses = Vec::new();
    let mut on: Vec<String> = Vec::new();
    for token in retry
        .retry_on
        .iter()
        .flat_map(|on| on.split(','))
        .filter(|t| !t.is_empty())
    {
        match token.parse::<u16>() {
            Ok(status) => statuses.push(status),
            Err(_) => on.push(token.to_owned()),
        }
    }
    if !statuses.is_empty() && !on.iter().any(|o| o == "retriable-status-codes") {
        on.push("retriable-status-codes".into());
    }
    if on.is_empty() {
        on = defaults.on;
    }
    RetryPolicy {
        attempts,
        on,
        statuses,
        per_try_timeout_ms: retry.per_try_timeout.as_ref().and_then(|d| d.millis()),
        backoff_ms: retry
            .backoff
            .as_ref()
            .and_then(|d| d.millis())
            .unwrap_or(defaults.backoff_ms),
        avoid_tried: retry.retry_ignore_previous_hosts.unwrap_or(true),
        next_locality: retry.retry_remote_localities == Some(true),
    }
}

/// Shares that are left out are none (VS-128).
pub(super) fn fault(fault: &api::HTTPFaultInjection) -> Fault {
    let share = |percent: Option<api::Percent>| percent.map_or(0, |p| millionths(p.value));
    let delay = fault.delay.as_ref().and_then(|d| {
        let deprecated = d
            .percent
            .and_then(|p| u32::try_from(p).ok())
            .map_or(0, |p| p.min(100) * 10_000);
        let share_ppm = if d.percentage.is_some() {
            share(d.percentage)
        } else {
            deprecated
        };
        Some(Delay {
            fixed_ms: d.fixed_delay.as_ref()?.millis()?,
            share_ppm,
        })
    });
    let abort = fault.abort.as_ref().and_then(|a| {
        let status = a.http_status.and_then(|s| u16::try_from(s).ok());
        let grpc = a
            .grpc_status
            .as_ref()
            .and_then(|name| api::GRPC_STATUSES.iter().position(|n| n == name));
        let grpc_status = grpc.and_then(|n| u16::try_from(n).ok());
        (status.is_some() || grpc_status.is_some()).then(|| Abort {
            status,
            grpc_status,
            share_ppm: share(a.percentage),
        })
    });
    Fault {
        delay: delay.filter(|d| d.share_ppm > 0),
        abort: abort.filter(|a| a.share_ppm > 0),
    }
}

/// Percent to millionths.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=1,000,000 before"
)]
pub(super) fn millionths(percent: f64) -> u32 {
    (percent * 10_000.0).round().clamp(0.0, f64::from(MILLION)) as u32
}

pub(super) const MILLION: u32 = 1_000_000;
