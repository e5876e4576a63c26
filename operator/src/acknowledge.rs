//! Acknowledgement and nudges: which pods use what was written for them, and a push for those that do not yet.
//!
//! A pod's proxy is asked over HTTP (DLV-090); the kubelet is woken by an annotation of the pod (DLV-051). What is
//! known is memory of the leader alone: after a restart every pod is asked again (DLV-095).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_bundle::key::TARGET_REV_ANNOTATION;

use crate::metrics::Metrics;

/// What a pod is to use, and where its proxy answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Status port of the proxy.
    pub address: SocketAddr,
    /// Revision of the configuration.
    pub config: String,
    /// Revision of the endpoints.
    pub endpoints: String,
    /// First 12 hex digits of the SHA-256 of the trust bundle (DLV-104).
    pub trust: String,
    /// Of a gateway that names credentials, their revision (DLV-153).
    pub credentials: Option<String>,
}

/// Namespace and name of a pod.
pub type PodId = (String, String);
/// What pods are to use.
pub type Targets = BTreeMap<PodId, Target>;
/// Whether pods use it.
pub type Acknowledged = BTreeMap<PodId, bool>;
/// Pods that say they do not use it, or have not had the time to answer (DLV-093).
pub type Holdouts = BTreeSet<PodId>;

/// Budget of the nudges of the whole cluster (DLV-055).
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// `None` when the rate is 0: nudging is off.
    #[must_use]
    pub fn new(rate: u32, burst: u32, now: Instant) -> Option<Self> {
        let (rate, burst) = (f64::from(rate), f64::from(burst.max(1)));
        (rate > 0.0).then_some(Self {
            rate,
            burst,
            tokens: burst,
            at: now,
        })
    }

    /// Takes one, or says how long until there is one.
    ///
    /// # Errors
    /// The time to wait.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }
}

/// Whether all pods of a namespace have what they were told of last.
#[must_use]
pub fn has_latest(namespace: &str, followed: &Targets, targets: &Targets, holdouts: &Holdouts) -> bool {
    followed == targets && !holdouts.iter().any(|(of, _)| of == namespace)
}

/// What is known of one pod.
#[derive(Debug)]
struct Tracked {
    target: Target,
    acknowledged: bool,
    nudges: usize,
    misses: usize,
    next: Step,
    due: Instant,
    busy: bool,
    /// When its target changed; `None` when it was found so.
    since: Option<Instant>,
    /// When it got this target.
    at: Instant,
    /// It did not answer when it was asked last.
    silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nudge,
    Poll,
}

impl Tracked {
    fn new(target: Target, next: Step, due: Instant) -> Self {
        Self {
            target,
            acknowledged: false,
            nudges: 0,
            misses: 0,
            next,
            due,
            busy: false,
            since: None,
            at: due,
            silent: false,
        }
    }
}

/// Follows all pods.
pub struct Tracker {
    client: Client,
    metrics: Arc<Metrics>,
    bucket: Option<Bucket>,
    polls: Option<Bucket>,
    pods: BTreeMap<PodId, Tracked>,
    sequence: u64,
    tell: watch::Sender<Acknowledged>,
    followed: watch::Sender<Targets>,
    holdouts: watch::Sender<Holdouts>,
}

enum Done {
    Polled(PodId, Target, Result<bool, String>),
    Nudged(PodId, Target, Result<(), kube::Error>),
}

impl Tracker {
    /// Tells what is acknowledged through `tell`.
    #[must_use]
    pub fn new(
        client: Client,
        metrics: Arc<Metrics>,
        bucket: Option<Bucket>,
        tell: watch::Sender<Acknowledged>,
    ) -> Self {
        // A value that differs from those of an earlier process (DLV-052).
        let sequence = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs();
        Self {
            client,
            metrics,
            bucket,
            polls: Bucket::new(POLLS_PER_SECOND, 1, Instant::now()),
            pods: BTreeMap::new(),
            sequence,
            tell,
            followed: watch::Sender::default(),
            holdouts: watch::Sender::default(),
        }
    }

    /// Pods that do not use the targets that are followed, as far as they answer.
    #[must_use]
    pub fn holdouts(&self) -> watch::Receiver<Holdouts> {
        self.holdouts.subscribe()
    }

    /// The targets that what is told is about: it says nothing yet of newer ones.
    #[must_use]
    pub fn followed(&self) -> watch::Receiver<Targets> {
        self.followed.subscribe()
    }

    /// Runs until nobody sets targets.
    pub async fn run(mut self, mut targets: watch::Receiver<Targets>) {
        let mut tasks: JoinSet<Done> = JoinSet::new();
        loop {
            let mut taken = None;
            let due = self.start(&mut tasks, Instant::now());
            tokio::select! {
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let targets = targets.borrow_and_update().clone();
                    self.take(targets.clone(), Instant::now());
                    taken = Some(targets);
                }
                Some(done) = tasks.join_next() => match done {
                    Ok(done) => self.done(done, Instant::now()),
                    Err(error) => tracing::error!(%error, "a poll ended early"),
                },
                () = tokio::time::sleep_until(due) => {}
            }
            self.publish();
            if let Some(targets) = taken {
                self.followed.send_replace(targets);
            }
        }
    }

    fn take(&mut self, targets: Targets, now: Instant) {
        self.pods.retain(|id, _| targets.contains_key(id));
        for (id, target) in targets {
            match self.pods.get_mut(&id) {
                Some(tracked) if tracked.target == target => {}
                // Its objects were written just now: the nudge comes first, the question after it.
                Some(tracked) => {
                    *tracked = Tracked {
                        since: Some(now),
                        ..Tracked::new(target, Step::Nudge, now)
                    }
                }
                None => drop(self.pods.insert(id, Tracked::new(target, Step::Poll, now))),
            }
        }
    }

    /// Starts what is due; when something is due next.
    fn start(&mut self, tasks: &mut JoinSet<Done>, now: Instant) -> Instant {
        let mut next = now + REPOLL;
        for (id, tracked) in &mut self.pods {
            if tracked.busy {
                continue;
            }
            if tracked.due > now {
                next = next.min(tracked.due);
                continue;
            }
            if tasks.len() >= CONCURRENCY {
                // A task that ends comes here again.
                break;
            }
            if let Some(bucket) = self.bucket.as_mut().filter(|_| tracked.next == Step::Nudge) {
                match bucket.take(now) {
                    Ok(()) => {
                        tracked.busy = true;
                        tracked.nudges += 1;
                        self.sequence += 1;
                        let client = self.client.clone();
                        tasks.spawn(nudge(client, id.clone(), tracked.target.clone(), self.sequence));
                    }
                    Err(wait) => {
                        tracked.due = now + wait;
                        next = next.min(tracked.due);
                    }
                }
                continue;
            }
            if let Some(Err(wait)) = self.polls.as_mut().map(|polls| polls.take(now)) {
                tracked.due = now + wait;
                next = next.min(tracked.due);
                continue;
            }
            tracked.busy = true;
            tasks.spawn(poll(id.clone(), tracked.target.clone()));
        }
        next
    }

    fn done(&mut self, done: Done, now: Instant) {
        let (Done::Polled(id, target, _) | Done::Nudged(id, target, _)) = &done;
        let Some(tracked) = self.pods.get_mut(id).filter(|t| t.target == *target) else {
            return;
        };
        tracked.busy = false;
        match done {
            Done::Nudged((namespace, pod), _, result) => {
                // The kubelet gets longer each time (DLV-053).
                tracked.next = Step::Poll;
                tracked.due = now + AFTER_NUDGE[(tracked.nudges.saturating_sub(1)).min(AFTER_NUDGE.len() - 1)];
                match result {
                    Ok(()) => self.metrics.nudged(true),
                    Err(error) => {
                        self.metrics.nudged(false);
                        // A pod that is gone, or was changed meanwhile, needs no more (DLV-058).
                        if matches!(&error, kube::Error::Api(s) if matches!(s.code, 404 | 409)) {
                            tracked.nudges = NUDGES;
                        } else {
                            tracing::warn!(namespace, pod, %error, "not nudged");
                        }
                    }
                }
            }
            Done::Polled((namespace, pod), _, result) => {
                if let Err(problem) = &result {
                    tracing::debug!(namespace, pod, problem, "no answer from the proxy");
                }
                let is_acknowledged = result == Ok(true);
                if is_acknowledged && let Some(since) = tracked.since.take() {
                    self.metrics.propagated(now.saturating_duration_since(since));
                }
                tracked.acknowledged = is_acknowledged || (tracked.acknowledged && result.is_err());
                tracked.silent = result.is_err();
                tracked.next = Step::Poll;
                if is_acknowledged {
                    tracked.misses = 0;
                    tracked.due = now + REPOLL;
                } else if self.bucket.is_some() && tracked.nudges < NUDGES && result.is_ok() {
                    // A proxy that does not answer is not helped by a nudge.
                    tracked.next = Step::Nudge;
                    tracked.due = now;
                } else {
                    tracked.due = now + AFTER_POLL[tracked.misses.min(AFTER_POLL.len() - 1)];
                    tracked.misses += 1;
                }
            }
        }
    }

    fn publish(&self) {
        let at = Instant::now();
        let is_given_up = |t: &Tracked| t.silent && at.saturating_duration_since(t.at) >= ASSUMED;
        let holdouts = self.pods.iter().filter(|(_, t)| !t.acknowledged && !is_given_up(t));
        let holdouts: Holdouts = holdouts.map(|(id, _)| id.clone()).collect();
        self.holdouts.send_if_modified(|known| {
            let changed = *known != holdouts;
            *known = holdouts;
            changed
        });
        let now: Acknowledged = self.pods.iter().map(|(id, t)| (id.clone(), t.acknowledged)).collect();
        self.tell.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

/// A merge patch of metadata alone, through the status: it restarts nothing and needs no right to change pods.
async fn nudge(client: Client, id: PodId, target: Target, sequence: u64) -> Done {
    let api: Api<Pod> = Api::namespaced(client, &id.0);
    let value = format!("{},{},{sequence}", target.config, target.endpoints);
    let patch = json!({"metadata": {"annotations": {TARGET_REV_ANNOTATION: value}}});
    let parameters = PatchParams {
        field_manager: Some(NUDGE_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let result = api
        .patch_status(&id.1, &parameters, &Patch::Merge(patch))
        .await
        .map(drop);
    Done::Nudged(id, target, result)
}

async fn poll(id: PodId, target: Target) -> Done {
    let result = match tokio::time::timeout(TIMEOUT, ask(target.address)).await {
        Ok(Ok(answer)) => Ok(answer.has(&target)),
        Ok(Err(problem)) => Err(problem),
        Err(_) => Err("timeout".to_owned()),
    };
    Done::Polled(id, target, result)
}

#[derive(Debug, Default, Deserialize)]
struct Answer {
    #[serde(default)]
    active: Active,
    trust: Option<String>,
    credentials: Option<String>,
}

impl Answer {
    fn has(&self, target: &Target) -> bool {
        self.active.cfg.as_deref() == Some(&target.config)
            && self.active.ep.as_deref() == Some(&target.endpoints)
            // One that does not tell is not held to it.
            && self.trust.as_ref().is_none_or(|trust| *trust == target.trust)
            && target.credentials.as_ref().is_none_or(|wanted| {
                self.credentials.as_ref().is_none_or(|credentials| credentials == wanted)
            })
    }
}

#[derive(Debug, Default, Deserialize)]
struct Active {
    cfg: Option<String>,
    ep: Option<String>,
}

async fn ask(address: SocketAddr) -> Result<Answer, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|e| text(&e))?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| text(&e))?;
    let exchange = async move {
        let request = Request::get("/config/status").header(hyper::header::HOST, address.to_string());
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| text(&e))?;
        let response = send.send_request(request).await.map_err(|e| text(&e))?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status()));
        }
        // Whoever answers on the port of a pod is not trusted with memory.
        let body = Limited::new(response.into_body(), LONGEST_ANSWER)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|e| text(&e))
    };
    tokio::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    let mut is_open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            ended = &mut connection, if is_open => {
                is_open = false;
                if let Err(error) = ended {
                    tracing::trace!(%error, "connection ended");
                }
            }
        }
    }
}

const NUDGE_MANAGER: &str = "weft-nudge";
/// The first, and after 1, 2 and 4 s (DLV-053).
const NUDGES: usize = 4;
const AFTER_NUDGE: [Duration; NUDGES] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// DLV-091.
const AFTER_POLL: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(30),
];
/// After that time a pod that does not answer is taken to have what was written (DLV-093).
const ASSUMED: Duration = Duration::from_secs(120);
const REPOLL: Duration = Duration::from_secs(600);
const TIMEOUT: Duration = Duration::from_secs(2);
const CONCURRENCY: usize = 32;
/// Pods that are asked in one second (DLV-091).
const POLLS_PER_SECOND: u32 = 100;
const LONGEST_ANSWER: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn id(name: &str) -> PodId {
        ("shop".to_owned(), name.to_owned())
    }

    fn target(address: SocketAddr) -> Target {
        Target {
            address,
            config: "cfg1".to_owned(),
            endpoints: "ep1".to_owned(),
            trust: "7".repeat(12),
            credentials: None,
        }
    }

    fn tracker(pods: Targets, now: Instant) -> Tracker {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        // Nobody is asked.
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a URI"));
        let client = Client::try_from(config).expect("a client");
        let nudges = Bucket::new(50, 100, now);
        let mut tracker = Tracker::new(client, Arc::default(), nudges, watch::Sender::default());
        tracker.take(pods, now);
        tracker
    }

    // spec: DLV-091, DLV-053
    #[tokio::test(start_paused = true)]
    async fn a_pod_is_nudged_four_times_and_asked_ever_more_rarely_until_it_has_it() {
        let now = Instant::now();
        let target = target(SocketAddr::from(([127, 0, 0, 1], 1)));
        let mut tracker = tracker(Targets::from([(id("a"), target.clone())]), now);
        let newer = Target {
            config: "cfg2".to_owned(),
            ..target
        };
        tracker.take(Targets::from([(id("a"), newer.clone())]), now);
        let next = |tracker: &Tracker| {
            let tracked = &tracker.pods[&id("a")];
            (tracked.next, tracked.due - now)
        };
        let polled = |has: bool| Done::Polled(id("a"), newer.clone(), Ok(has));
        let millis = Duration::from_millis;
        assert_eq!(next(&tracker), (Step::Nudge, millis(0)));
        for wait in [500, 1000, 2000, 4000] {
            tracker.pods.get_mut(&id("a")).expect("tracked").nudges += 1;
            tracker.done(Done::Nudged(id("a"), newer.clone(), Ok(())), now);
            assert_eq!(next(&tracker), (Step::Poll, millis(wait)));
            if wait < 4000 {
                tracker.done(polled(false), now);
                assert_eq!(next(&tracker), (Step::Nudge, millis(0)));
            }
        }
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            tracker.done(polled(false), now);
            assert_eq!(next(&tracker), (Step::Poll, millis(seconds * 1000)));
        }
        tracker.done(polled(true), now);
        assert_eq!(
            next(&tracker),
            (Step::Poll, millis(600_000)),
            "and now and then afterwards"
        );
    }

    // spec: DLV-091
    #[tokio::test(start_paused = true)]
    async fn at_most_a_hundred_pods_are_asked_in_a_second() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let pods = (0..300).map(|n| (id(&n.to_string()), target(address))).collect();
        let begin = Instant::now();
        let mut tracker = tracker(pods, begin);
        let mut asked = 0;
        // As if each of them answered at once, so that it is not their number at one time that limits.
        while begin.elapsed() < Duration::from_secs(2) {
            let mut tasks = JoinSet::new();
            let due = tracker.start(&mut tasks, Instant::now());
            asked += tasks.len();
            tasks.abort_all();
            tokio::time::sleep_until(due.max(Instant::now() + Duration::from_millis(1))).await;
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!((180..=230).contains(&asked), "{asked} in {seconds} s");
    }

    // spec: DLV-091
    #[tokio::test(start_paused = true)]
    async fn a_pod_that_does_not_answer_is_waited_for_two_seconds() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let begin = Instant::now();
        let done = poll(id("a"), target(silent.local_addr().expect("an address"))).await;
        assert!(matches!(done, Done::Polled(_, _, Err(problem)) if problem == "timeout"));
        assert_eq!(begin.elapsed().as_secs(), 2);
    }

    // spec: DLV-102
    #[test]
    fn a_namespace_has_the_latest_when_all_its_pods_were_asked_of_it_and_none_holds_out() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let told = Targets::from([(id("a"), target(address))]);
        let none = Holdouts::new();
        assert!(has_latest("shop", &told, &told, &none));
        assert!(!has_latest("shop", &Targets::new(), &told, &none), "not asked yet");
        let held = Holdouts::from([id("a")]);
        assert!(!has_latest("shop", &told, &told, &held));
        assert!(has_latest("other", &told, &told, &held));
    }

    // spec: DLV-055
    #[test]
    fn the_budget_is_a_burst_and_then_a_rate() {
        let now = Instant::now();
        assert!(Bucket::new(0, 100, now).is_none(), "off");
        let mut bucket = Bucket::new(50, 100, now).expect("on");
        assert!((0..100).all(|_| bucket.take(now).is_ok()));
        let wait = bucket.take(now).expect_err("spent");
        assert_eq!(wait.as_millis(), 20);
        assert!(bucket.take(now + wait).is_ok());
        assert!(bucket.take(now + wait).is_err());
    }
}
