//! Who may reach the workload, or come through the gateway (AUTHZ-013, PA-002): what policies are told of connections and
//! requests, and connections and streams that a new configuration refuses (BYD-002).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;
use weft_bundle::model::{Caller, Config, Denial, Granted, Request};
use weft_bundle::wire::{MtlsMode, PathNormalization};

use crate::exchange::{Details, Downstream, Session};
use crate::http::RequestHead;
use crate::http::route::split_port;
use crate::worker::Worker;

/// What a request asks for.
pub struct Asked<'r> {
    /// The request, as it is forwarded.
    pub head: &'r RequestHead,
    /// Ports that its client may have dialled to come here (BYD-064).
    pub dialled: Dialled<'r>,
    /// The last address of `X-Forwarded-For` is where it came from (AUTHZ-059); at a gateway it is the peer (AUTHZ-060).
    pub believes_proxies: bool,
}

/// Ports that lead to where a request arrived.
#[derive(Debug, Clone, Copy)]
pub struct Dialled<'p> {
    /// The port itself.
    pub port: u16,
    /// Ports of Services.
    pub services: &'p [u16],
}

impl Request for Asked<'_> {
    fn method(&self) -> &[u8] {
        &self.head.method
    }

    fn path(&self) -> &[u8] {
        self.head.path_only()
    }

    fn authority(&self) -> (&[u8], &[u8]) {
        let as_sent = &self.head.authority[..];
        let Dialled { port, services } = self.dialled;
        match split_port(as_sent) {
            (_, Some(found)) if found != port && !services.contains(&found) => (as_sent, as_sent),
            (name, _) => (as_sent, name),
        }
    }

    fn header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.head.headers.all(name).any(|value| fits(value))
    }

    fn remote(&self, peer: IpAddr) -> IpAddr {
        if !self.believes_proxies {
            return peer;
        }
        let last = self.head.headers.all("x-forwarded-for").last();
        let last = last.and_then(|value| value.rsplit(|b| *b == b',').next());
        last.and_then(address).unwrap_or(peer)
    }
}

/// An address of `X-Forwarded-For`: IPv6 may be in brackets, and a port may follow (AUTHZ-092).
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// What policies are told of a connection. `port`: of the workload, or of the gateway's listener (AUTHZ-045).
#[must_use]
pub fn caller(downstream: &Downstream, port: u16) -> Caller<'_> {
    Caller {
        principal: downstream.principal.as_deref().or_else(|| shown(downstream)),
        is_verified: downstream.tls.is_some(),
        address: downstream.remote.ip(),
        destination: downstream.local.ip(),
        port,
        server_name: downstream.server_name.as_deref(),
    }
}

/// The identity in a certificate that a gateway's server verified by authorities of its own (AUTHZ-118). Of several names
/// none counts.
fn shown(downstream: &Downstream) -> Option<&str> {
    let tls = downstream.tls.as_ref().filter(|_| downstream.ended_by.is_some())?;
    match &tls.facts().uris[..] {
        [uri] => Some(uri),
        _ => None,
    }
}

/// Decides on a connection of TCP to a gateway.
///
/// # Errors
/// The policy that refuses it, or that none allows it.
pub fn gateway_tcp(config: &Config, downstream: &Downstream, port: u16) -> Result<(), Arc<Denial>> {
    config.authorization.judge_tcp(caller(downstream, port)).map(drop)
}

/// Notes what a connection of TCP is refused for, if it is (AUTHZ-023).
#[must_use]
pub fn admits(judged: Result<(), Arc<Denial>>, record: &mut Session) -> bool {
    match judged {
        Ok(()) => true,
        Err(denial) => {
            record.termination = Some(Details::Denied(denial.details.clone()));
            false
        }
    }
}

/// Decides on a request.
///
/// # Errors
/// The policy that refuses it, or that none allows it.
pub fn request(config: &Config, downstream: &Downstream, asked: &Asked<'_>) -> Result<Granted, Arc<Denial>> {
    // Other ways to normalise merge slashes themselves, or leave paths alone on purpose.
    let both_paths = config.mesh.path_normalization == PathNormalization::Base && !config.mesh.istio_compatibility;
    let caller = caller(downstream, asked.dialled.port);
    config.authorization.judge(caller, asked, both_paths)
}

/// Decides on a request to a port of the workload.
///
/// # Errors
/// As [`request`].
pub fn inbound(
    config: &Config,
    downstream: &Downstream,
    port: u16,
    head: &RequestHead,
) -> Result<Granted, Arc<Denial>> {
    let known = config.inbound.port(port);
    let asked = Asked {
        head,
        dialled: Dialled {
            port,
            services: known.map_or(&[], |known| &known.service_ports),
        },
        believes_proxies: true,
    };
    request(config, downstream, &asked)
}

/// Decides on what goes on at a port of the workload (AUTHZ-027, BYD-002). `head`: its request; `None`: bytes of TCP.
///
/// # Errors
/// What refuses it now.
pub fn stands(
    config: &Config,
    downstream: &Downstream,
    port: u16,
    head: Option<&RequestHead>,
) -> Result<(), Arc<Denial>> {
    if downstream.principal.is_none() && config.inbound.mode(port) == MtlsMode::Strict {
        return Err(Arc::new(Denial {
            details: "strict_mtls_required".into(),
            origin: None,
        }));
    }
    match head {
        Some(head) => inbound(config, downstream, port, head).map(drop),
        None => config.authorization.judge_tcp(caller(downstream, port)).map(drop),
    }
}

/// Tells those who wait on a worker that the configuration is another one.
#[derive(Debug, Default)]
pub struct Changes {
    count: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

/// How many changes there were: a decision is good until there is one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(u64);

impl Changes {
    /// To be asked for before the configuration is that a decision is made by.
    #[must_use]
    pub fn now(&self) -> Since {
        Since(self.count.get())
    }

    /// Wakes everybody.
    pub fn announce(&self) {
        self.count.set(self.count.get().wrapping_add(1));
        for (_, waker) in self.waiting.borrow().iter() {
            waker.wake_by_ref();
        }
    }
}

/// One who waits.
struct Vigil<'c> {
    changes: &'c Changes,
    seen: Since,
    place: Option<usize>,
}

impl Vigil<'_> {
    /// Ready once for each change.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let now = self.changes.now();
        if std::mem::replace(&mut self.seen, now) != now {
            return Poll::Ready(());
        }
        let mut waiting = self.changes.waiting.borrow_mut();
        match self.place {
            Some(place) if waiting[place].will_wake(cx.waker()) => {}
            Some(place) => waiting[place] = cx.waker().clone(),
            None => self.place = Some(waiting.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Vigil<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.changes.waiting.borrow_mut().remove(place);
        }
    }
}

/// Waits for the end of something that was allowed, as long as each configuration that is newer allows it (BYD-002).
///
/// # Errors
/// Why it may not go on. It is dropped then, log and metric tell.
pub async fn while_granted<F: Future>(
    worker: &Worker,
    since: Since,
    what: F,
    judge: impl Fn(&Config) -> Result<(), Arc<Denial>>,
) -> Result<F::Output, Arc<Denial>> {
    let mut what = pin!(what);
    let mut vigil = Vigil {
        changes: &worker.changes,
        seen: since,
        place: None,
    };
    let end = poll_fn(|cx| {
        if let Poll::Ready(output) = what.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        while vigil.poll(cx).is_ready() {
            let judged = worker.snapshot().map_or(Ok(()), |snapshot| judge(&snapshot.config));
            if let Err(denial) = judged {
                return Poll::Ready(Err(denial));
            }
        }
        Poll::Pending
    });
    let end = end.await;
    if let Err(denial) = &end {
        worker.shared.telemetry.cut_off(denial);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: AUTHZ-092
    #[test]
    fn addresses_of_proxies_have_several_forms() {
        let of = |text: &str| address(text.as_bytes()).map(|address| address.to_string());
        assert_eq!(of(" 1.2.3.4 ").as_deref(), Some("1.2.3.4"));
        assert_eq!(of("1.2.3.4:99").as_deref(), Some("1.2.3.4"));
        assert_eq!(of("::1").as_deref(), Some("::1"));
        assert_eq!(of("[::1]").as_deref(), Some("::1"));
        assert_eq!(of("[::1]:99").as_deref(), Some("::1"));
        for no in ["unknown", "", "[1", "1.2.3.4.5"] {
            assert_eq!(of(no), None, "{no}");
        }
    }
}
