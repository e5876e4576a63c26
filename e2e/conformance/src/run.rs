//! Plays scenarios on as many stages as asked for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::agent::{self, Agents, Seen};
use crate::case::{Area, Request, Scenario};
use crate::judge::{Difference, Judge};
use crate::mesh::Mesh;
use crate::outcome::Outcome;
use crate::stage::Places;
use crate::{cluster, credential, expand, local};

/// How scenarios are played.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Directory of the mesh's programs.
    pub(crate) programs: PathBuf,
    pub(crate) stages: Stages,
    pub(crate) slack_ms: u64,
    pub(crate) verbose: bool,
}

/// Where scenarios are played.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stages {
    /// On so many meshes of local mode at a time.
    Local(u8),
    /// On the cluster that KUBECONFIG names.
    Cluster,
}

/// A scenario that was played.
#[derive(Debug, Clone)]
pub(crate) struct Played {
    pub(crate) area: String,
    pub(crate) scenario: String,
    pub(crate) differences: Vec<Difference>,
    /// Why it could not be played.
    pub(crate) not_run: Option<String>,
    pub(crate) seconds: f64,
}

type Queue = Mutex<VecDeque<(usize, String, Scenario)>>;

/// Plays all scenarios; the results are in the order of the files.
pub(crate) async fn all(areas: Vec<Area>, settings: Settings) -> Result<Vec<Played>> {
    let begun = Instant::now();
    let mut queue = VecDeque::new();
    for area in areas {
        for scenario in area.scenarios {
            queue.push_back((queue.len(), area.name.clone(), scenario));
        }
    }
    let stages = match settings.stages {
        Stages::Local(stages) => usize::from(stages).min(queue.len()),
        Stages::Cluster => 1,
    };
    let queue: Queue = Mutex::new(queue);
    let logs = settings.programs.join("conformance-logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let plays = (0..stages).map(|number| {
        let (queue, settings) = (&queue, &settings);
        let log = logs.join(format!("stage-{number}.log"));
        async move { play_from(queue, settings, &log).await }
    });
    let mut played: Vec<_> = futures::future::try_join_all(plays)
        .await?
        .into_iter()
        .flatten()
        .collect();
    played.sort_by_key(|(order, _)| *order);
    eprintln!(
        "{} scenarios in {:.0} s; logs in {}",
        played.len(),
        begun.elapsed().as_secs_f64(),
        logs.display()
    );
    Ok(played.into_iter().map(|(_, one)| one).collect())
}

async fn play_from(queue: &Queue, settings: &Settings, log: &Path) -> Result<Vec<(usize, Played)>> {
    let mut mesh = match settings.stages {
        Stages::Local(_) => Mesh::Local(local::Mesh::start(&settings.programs, log).await?),
        Stages::Cluster => Mesh::Cluster(cluster::Mesh::start().await?),
    };
    let mut played = Vec::new();
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((order, area, scenario)) = next else { break };
        let begun = Instant::now();
        let outcome = timeout(SCENARIO_LIMIT, play(&mut mesh, &scenario, settings)).await;
        let (differences, not_run) = match outcome {
            Ok(Ok(differences)) => (differences, None),
            Ok(Err(error)) => (Vec::new(), Some(format!("{error:#}"))),
            Err(_) => (Vec::new(), Some(format!("it did not end within {SCENARIO_LIMIT:?}"))),
        };
        played.push((
            order,
            Played {
                area,
                scenario: scenario.id,
                differences,
                not_run,
                seconds: begun.elapsed().as_secs_f64(),
            },
        ));
    }
    mesh.stop().await?;
    Ok(played)
}

/// Plays one scenario: its objects in force, its requests one after the other.
async fn play(mesh: &mut Mesh, scenario: &Scenario, settings: &Settings) -> Result<Vec<Difference>> {
    let mut objects = scenario.manifests.clone();
    for object in &mut objects {
        expand::manifest(object, mesh.places())?;
        credential::fill(object)?;
    }
    let applied = mesh.replace(&objects).await?;
    let mut differences = admission(scenario, &applied.refused);
    let judge = Judge::new(scenario, mesh.places(), settings.slack_ms);
    let run = unique();
    for (at, request) in scenario.requests.iter().enumerate() {
        let outcome = send(mesh, request, &run).await?;
        let found = judge.request(at + 1, request, &outcome);
        if settings.verbose {
            let verdict = if found.is_empty() { "agrees" } else { "differs" };
            println!(
                "{} #{} {} {} {verdict}: {}",
                scenario.id,
                at + 1,
                request.from,
                request.to,
                outcome.summary()
            );
        }
        differences.extend(found);
    }
    if settings.verbose {
        println!("{}: {}", scenario.id, scenario.about);
        for (object, reason) in &applied.refused {
            println!("{}: {object} is refused: {reason}", scenario.id);
        }
    }
    Ok(differences)
}

/// Objects that were refused and should not be, or the other way round.
fn admission(scenario: &Scenario, refused: &std::collections::BTreeMap<String, String>) -> Vec<Difference> {
    let mut out = Vec::new();
    for manifest in &scenario.manifests {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let object = format!("{}/{}", text("/kind"), text("/metadata/name"));
        let is_expected = scenario.admission.contains_key(&object);
        let reason = refused.get(&object);
        if is_expected != reason.is_some() {
            let word = |is_refused: bool| if is_refused { "refused" } else { "accepted" };
            out.push(Difference {
                request: 0,
                field: format!("admission of {object}"),
                expected: word(is_expected).to_owned(),
                got: reason.map_or_else(|| word(false).to_owned(), |why| format!("refused: {why}")),
            });
        }
    }
    out
}

async fn send(mesh: &Mesh, request: &Request, run: &str) -> Result<Outcome> {
    let client = mesh.places().client(&request.from);
    let client = client.with_context(|| format!("the stage has no client {:?}", request.from))?;
    let job = job(request, mesh.places(), run)?;
    if let Some(seconds) = request.wait {
        sleep(Duration::from_secs_f64(seconds)).await;
    }
    let wants_hits = request.observed.get("backend_hits").is_some() || request.observed.get("hit_detail").is_some();
    if wants_hits {
        hits(mesh.agents(), mesh.places()).await?;
    }
    let count = request.count.unwrap_or(1);
    let each = Duration::from_millis(request.timeout_ms.unwrap_or(TIMEOUT_MS) + request.gap_ms + WATCH_MS);
    let limit = each * u32::try_from(count).unwrap_or(u32::MAX) + Duration::from_secs(30);
    let reports = mesh.agents().send(&client, &job, limit).await?;
    let scheme = request.to.split(':').next().unwrap_or_default();
    let mut outcome = Outcome::of(scheme, reports, mesh.places());
    if wants_hits {
        outcome.hits = settled_hits(mesh, expected_hits(&request.observed)).await?;
    }
    Ok(outcome)
}

fn expected_hits(observed: &Value) -> u64 {
    let counts = observed.get("backend_hits").and_then(Value::as_object);
    counts
        .into_iter()
        .flatten()
        .filter_map(|(_, count)| count.as_u64())
        .sum()
}

/// Hits arrive after the answer where they are mirrors: as many as are expected are waited for, and a little longer
/// for those that are too many.
async fn settled_hits(mesh: &Mesh, expected: u64) -> Result<Vec<(String, Seen)>> {
    let deadline = Instant::now() + HITS_LIMIT;
    let mut all = Vec::new();
    loop {
        all.extend(hits(mesh.agents(), mesh.places()).await?);
        if all.len() as u64 >= expected || Instant::now() > deadline {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    sleep(HITS_QUIET).await;
    all.extend(hits(mesh.agents(), mesh.places()).await?);
    Ok(all)
}

async fn hits(agents: &Agents, places: &Places) -> Result<Vec<(String, Seen)>> {
    let mut all = Vec::new();
    for address in places.servers() {
        let seen = agents.hits(&address).await?;
        all.extend(
            seen.into_iter()
                .map(|hit| (places.word_of(&hit.pod, &hit.version), hit)),
        );
    }
    Ok(all)
}

/// The request as its client's agent takes it.
fn job(request: &Request, places: &Places, run: &str) -> Result<Value> {
    let text = |text: &str| anyhow::Ok(expand::repeated(&expand::addresses(text, places)?, run));
    let mut headers = Vec::new();
    for (name, value) in &request.headers {
        headers.push(json!([name, text(value)?]));
    }
    let has = |name: &str| request.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    // As the recording client did.
    if request.method.as_deref() == Some("OPTIONS") && !has("content-length") && request.target.is_none() {
        headers.push(json!(["Content-Length", "0"]));
    }
    let body = match (&request.body, request.body_size) {
        (Some(body), _) => text(body)?,
        (None, Some(size)) => agent::filled(size),
        (None, None) => String::new(),
    };
    let mut job = json!({
        "url": text(&request.to)?,
        "method": request.method.as_deref().unwrap_or("GET"),
        "headers": headers,
        "body": body,
        "chunked": request.chunked,
        "http10": request.version.as_deref().is_some_and(|v| v.ends_with("1.0")),
        "first": 0,
        "count": request.count.unwrap_or(1),
        "parallel": request.parallel.unwrap_or(1),
        "reuse": request.reuse,
        "gap_ms": request.gap_ms,
        "timeout_ms": request.timeout_ms.unwrap_or(TIMEOUT_MS),
        "alpn": request.alpn,
    });
    for (name, value) in [
        ("host", &request.host),
        ("connect", &request.connect),
        ("target", &request.target),
        ("after", &request.after),
        ("sni", &request.sni),
    ] {
        if let Some(value) = value {
            job[name] = text(value)?.into();
        }
    }
    if let Some(raw) = &request.raw {
        job["raw"] = agent::bytes(&text(raw)?);
    }
    if request.observed.get("closed_after_answer").is_some() {
        job["watch_ms"] = WATCH_MS.into();
    }
    if let Some(word) = &request.client_cert {
        job["identity"] = json!(credential::client(word)?);
    }
    if let Some(via) = &request.via {
        let address = places.service_address(GATEWAY);
        let address = address.with_context(|| format!("the stage has no {via} yet"))?;
        let port = request.via_port.or_else(|| opaque_port(&request.to));
        let is_tls = ["https:", "h2:"].iter().any(|scheme| request.to.starts_with(scheme));
        let is_tls = is_tls || request.to.contains(":443/");
        let port = port.unwrap_or(if is_tls { 443 } else { 80 });
        job["connect"] = format!("{address}:{port}").into();
    }
    Ok(job)
}

/// The port in the URL of something that is not HTTP.
fn opaque_port(url: &str) -> Option<u16> {
    let (scheme, rest) = url.split_once("://")?;
    if !["tcp", "banner", "tls"].contains(&scheme) {
        return None;
    }
    rest.split('/').next()?.rsplit_once(':')?.1.parse().ok()
}

/// A word that no other run of a scenario has.
fn unique() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}", now.as_nanos())
}

const GATEWAY: &str = "istio-ingress/ingress";
const SCENARIO_LIMIT: Duration = Duration::from_secs(120);
const TIMEOUT_MS: u64 = 20_000;
/// How long a connection is watched for its end.
const WATCH_MS: u64 = 250;
const HITS_LIMIT: Duration = Duration::from_secs(2);
const HITS_QUIET: Duration = Duration::from_millis(60);
