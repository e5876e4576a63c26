//! What the admin port tells of the proxy (LIFE-062..LIFE-066). Nothing of it is a secret (LIFE-082).

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::{Response, StatusCode};
use regex::Regex;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use weft_bundle::load;
use weft_bundle::model::{Cluster, EndpointTable};
use weft_bundle::pack::Files;
use weft_bundle::wire::Health;

use super::{Content, Status, WORKER_ANSWER, json_text, seconds, text, value_of};
use crate::overload;
use crate::shared::{Role, Snapshot};
use crate::worker::EndpointState;

/// Sections of `/config_dump`.
const SECTIONS: [&str; 6] = ["bootstrap", "listeners", "routes", "clusters", "endpoints", "secrets"];

impl Status {
    /// What is in force; certificates without keys (LIFE-062, ID-132).
    pub(super) fn config_dump(&self, query: &str) -> Response<Content> {
        let named = value_of(query, "section").unwrap_or_default();
        let wanted: Vec<&str> = named.split(',').filter(|name| !name.is_empty()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !SECTIONS.contains(name)) {
            let problem = format!("{unknown:?} is no section: {}\n", SECTIONS.join(", "));
            return text(StatusCode::BAD_REQUEST, &problem);
        }
        let has = |name: &str| wanted.is_empty() || wanted.contains(&name);
        let report = self.reload.report();
        let snapshot = self.shared.current.load_full();
        let table = self.shared.endpoints.load_full();
        let head = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "revisions": {"cfg": report.config, "ep": report.endpoints},
            "state": report.state.as_str(),
            "error": report.error,
        });
        if value_of(query, "format") == Some("summary") {
            let count = |of: fn(&Snapshot) -> usize| snapshot.as_deref().map_or(0, of);
            let endpoints: usize = table.hosts().map(|host| host.endpoints.len()).sum();
            return json_text(&json!({
                "summary": head,
                "listeners": self.listener_rows().len(),
                "hosts": count(|s| s.config.hosts.len()),
                "clusters": count(|s| s.config.clusters.len()),
                "endpoints": endpoints,
                "secrets": u8::from(self.shared.identity.load().is_some()),
            }));
        }
        let bootstrap = has("bootstrap").then(|| self.bootstrap());
        let listeners = has("listeners").then(|| self.listener_rows());
        let secrets = has("secrets").then(|| self.certificates());
        let routes = has("routes").then(|| self.reload.files()).flatten();
        let clusters = has("clusters").then(|| snapshot.clone()).flatten();
        let table = has("endpoints").then_some(table);
        let mut response = json_text(&Value::Null);
        *response.body_mut() = Content::stream(move |out| {
            // Written while it is walked through, so that a large dump needs no memory of its own.
            let dump = Dump {
                head,
                bootstrap,
                listeners,
                routes: routes.as_deref().and_then(routes_of),
                clusters: clusters
                    .as_deref()
                    .map(|s| Each(Cell::new(Some(s.config.clusters.iter().map(cluster_row))))),
                endpoints: table.as_deref().map(|t| Each(Cell::new(Some(endpoint_rows(t))))),
                secrets,
            };
            serde_json::to_writer_pretty(out, &dump).map_err(std::io::Error::other)
        });
        response
    }

    /// Settings and facts that do not change while the process runs.
    fn bootstrap(&self) -> Value {
        let settings = &self.shared.settings;
        let snapshot = self.shared.current.load();
        json!({
            "workers": settings.workers,
            "memoryLimit": self.shared.overload.limit(),
            "pod": {"name": settings.pod.name, "namespace": settings.pod.namespace, "address": settings.pod.address},
            "addresses": settings.addresses,
            "locality": settings.here.locality,
            "workload": snapshot.as_ref().map(|s| &s.config.owner),
            "mesh": snapshot.as_ref().map(|s| &s.config.mesh),
        })
    }

    fn listener_rows(&self) -> Vec<Value> {
        let open = self
            .workers
            .get()
            .map(|workers| workers.addresses.as_slice())
            .unwrap_or_default();
        let listeners = self.shared.listeners();
        let listeners = listeners.iter().zip(open);
        let rows = listeners.map(|(listener, address)| {
            let name = match listener.role {
                Role::Outbound => "virtualOutbound",
                Role::Inbound => "virtualInbound",
                Role::HttpProxy => "httpProxy",
                Role::Explicit { .. } => "explicitInbound",
                Role::Fixed { .. } => "fixed",
            };
            json!({"name": name, "address": address.to_string()})
        });
        let names = self.shared.settings.dns.iter();
        let names = names.map(|address| json!({"name": "dns", "address": address.to_string()}));
        let ports = &self.shared.ports;
        let of_gateway = ports.states().into_iter().filter_map(|(number, problem)| {
            let address = ports.address(number)?.to_string();
            Some(match problem {
                None => json!({"name": "gateway", "address": address}),
                Some(errno) => json!({"name": "gateway", "address": address, "notProgrammed": errno}),
            })
        });
        rows.chain(names).chain(of_gateway).collect()
    }

    pub(super) fn listeners(&self, query: &str) -> Response<Content> {
        let rows = self.listener_rows();
        if value_of(query, "format") == Some("json") {
            return json_text(&json!(rows));
        }
        let line = |row: &Value| {
            let part = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            format!("{}::{}\n", part("name"), part("address"))
        };
        text(StatusCode::OK, &rows.iter().map(line).collect::<String>())
    }

    /// Certificates in use, without keys.
    pub(super) fn certificates(&self) -> Value {
        let identity = self.shared.identity.load();
        let Some(identity) = identity.as_ref() else {
            return json!([]);
        };
        let anchors: Vec<u64> = identity.anchors_not_after.iter().map(|at| seconds(*at)).collect();
        json!([{
            "spiffeId": &*identity.spiffe_id,
            "serial": identity.serial,
            "notBefore": seconds(identity.not_before),
            "notAfter": seconds(identity.not_after),
            "trustAnchorsNotAfter": anchors,
        }])
    }

    pub(super) fn memory(&self) -> Value {
        json!({
            "residentBytes": overload::resident(),
            "limitBytes": self.shared.overload.limit(),
            "pressure": format!("{:?}", self.shared.overload.pressure()),
        })
    }

    /// Hosts and their endpoints, with what the workers know of them (LIFE-065).
    pub(super) async fn clusters(&self, query: &str) -> Response<Content> {
        let snapshot = self.shared.current.load_full();
        let table = self.shared.endpoints.load_full();
        let known = match self.workers.get() {
            Some(workers) => workers.endpoints(WORKER_ANSWER).await,
            None => HashMap::new(),
        };
        let mut rows = Vec::new();
        for cluster in snapshot.iter().flat_map(|s| &s.config.clusters) {
            for (address, health, weight) in members(cluster, &table) {
                let state = known.get(&(cluster.name.clone(), address)).copied().unwrap_or_default();
                rows.push((cluster.name.clone(), address, health, weight, state));
            }
        }
        if value_of(query, "format") == Some("json") {
            let rows: Vec<Value> = rows
                .iter()
                .map(|(cluster, address, health, weight, state)| {
                    json!({"cluster": &**cluster, "address": address.to_string(), "health": health, "weight": weight,
                        "activeRequests": state.busy, "idleConnections": state.idle, "http2Connections": state.http2,
                        "ejected": state.ejected})
                })
                .collect();
            return json_text(&json!(rows));
        }
        let line = |(cluster, address, health, weight, state): &(Arc<str>, SocketAddr, Health, u32, EndpointState)| {
            format!(
                "{cluster}::{address}::health={health:?}::weight={weight}::rq_active={}::cx_idle={}::cx_http2={}::ejected={}\n",
                state.busy, state.idle, state.http2, state.ejected
            )
        };
        text(StatusCode::OK, &rows.iter().map(line).collect::<String>())
    }

    /// Series as `name: value` (LIFE-064).
    pub(super) fn stats(&self, query: &str) -> Response<Content> {
        let filter = match value_of(query, "filter")
            .map(|filter| Regex::new(&decoded(filter)))
            .transpose()
        {
            Ok(filter) => filter,
            Err(problem) => return text(StatusCode::BAD_REQUEST, &format!("filter: {problem}\n")),
        };
        let used = super::asks(query, "usedonly");
        let all = self.metrics();
        let rows = all
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '));
        let rows: Vec<(&str, &str)> = rows
            .filter(|(name, value)| filter.as_ref().is_none_or(|f| f.is_match(name)) && (!used || *value != "0"))
            .collect();
        if value_of(query, "format") == Some("json") {
            let rows: Vec<Value> = rows
                .iter()
                .map(|(name, value)| json!({"name": name, "value": value.parse::<f64>().unwrap_or_default()}))
                .collect();
            return json_text(&json!({"stats": rows}));
        }
        let lines: String = rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        text(StatusCode::OK, &lines)
    }
}

#[derive(Serialize)]
struct Dump<C: Serialize, E: Serialize> {
    #[serde(flatten)]
    head: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listeners: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clusters: Option<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<E>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<Value>,
}

/// A list that is made while it is written.
struct Each<I>(Cell<Option<I>>);

impl<I: Iterator<Item: Serialize>> Serialize for Each<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}

fn cluster_row(cluster: &Arc<Cluster>) -> Value {
    json!({"name": &*cluster.name, "host": &*cluster.host.host, "port": cluster.port, "policy": *cluster.policy})
}

fn endpoint_rows(table: &EndpointTable) -> impl Iterator<Item = Value> {
    table.hosts().map(|host| {
        let addresses: Vec<String> = host.endpoints.iter().map(|e| e.address.to_string()).collect();
        json!({"host": &*host.host, "addresses": addresses})
    })
}

/// Hosts with their ports and route tables, as they were delivered.
fn routes_of(files: &Files) -> Option<Value> {
    let loaded = load::config(files).ok()??;
    let bundle = loaded.bundle;
    serde_json::to_value(
        json!({"hosts": bundle.hosts, "domains": bundle.domains, "tables": bundle.routes, "inbound": bundle.inbound}),
    )
    .ok()
}

/// Addresses of a destination by its endpoints.
fn members(cluster: &Cluster, table: &EndpointTable) -> Vec<(SocketAddr, Health, u32)> {
    let Some(host) = table.host(&cluster.host.host) else {
        return Vec::new();
    };
    let members = host.endpoints.iter().filter_map(|endpoint| {
        let fits = cluster.labels.iter().all(|(k, v)| endpoint.labels.get(k) == Some(v));
        let port = endpoint.ports.get(&*cluster.port_name).filter(|_| fits)?;
        Some((
            SocketAddr::new(endpoint.address, *port),
            endpoint.health,
            endpoint.weight,
        ))
    });
    members.collect()
}

/// Percent-encoding undone.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
