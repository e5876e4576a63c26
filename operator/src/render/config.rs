//! The configuration of each key: what is its own, and the view that it shares.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weft_bundle::key::{KeyInputs, Template, canonical_name, canonical_revision};
use weft_bundle::pack::{self, Files, Limits};
use weft_bundle::wire::{self, Bundle, Inbound, Mesh, Workload};
use weft_crds::{AuthorizationPolicy, MeshConfig, PeerAuthentication, Sidecar};

use super::view::{Common, View, Views};
use super::{ConfigRef, Output, RenderFailure, RenderedConfig, Shared, authorization, inbound, route, scope};
use crate::world::World;

/// What was rendered, by key.
#[derive(Debug, Default)]
pub(super) struct Configs {
    seen: HashMap<ConfigRef, Seen>,
}

#[derive(Debug)]
struct Seen {
    inputs: Arc<KeyInputs>,
    sidecar: Option<Arc<Sidecar>>,
    common: Arc<Common>,
    policies: Arc<Vec<Arc<PeerAuthentication>>>,
    authorization: Arc<Vec<Arc<AuthorizationPolicy>>>,
    view: Arc<View>,
    own: Own,
    result: Result<Arc<RenderedConfig>, String>,
}

/// The parts of a bundle that are of its key alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    workload: Workload,
    mesh: Mesh,
    inbound: Inbound,
    authorization: Vec<wire::AuthorizationPolicy>,
}

impl Own {
    pub(super) fn bundle(&self, view: &View) -> Bundle {
        let Self {
            workload,
            mesh,
            inbound,
            authorization,
        } = self.clone();
        Bundle {
            workload,
            mesh,
            inbound,
            authorization,
            hosts: view.hosts.clone(),
            domains: view.domains.clone(),
            routes: view.routes.clone(),
            listeners: view.listeners.clone(),
        }
    }
}

impl Configs {
    /// The keys that were rendered last, each with its view; those too that could not be packed.
    pub(super) fn views(&self) -> impl Iterator<Item = (&Arc<KeyInputs>, &View)> {
        let mut all: Vec<_> = self.seen.iter().collect();
        all.sort_by_key(|(reference, _)| *reference);
        all.into_iter().map(|(_, seen)| (&seen.inputs, &*seen.view))
    }

    /// Renders the keys; what none of them is any more is forgotten.
    pub(super) fn render(
        &mut self,
        shared: &Shared<'_>,
        views: &mut Views,
        keys: BTreeMap<ConfigRef, Arc<KeyInputs>>,
        output: &mut Output,
    ) {
        self.seen.retain(|reference, _| keys.contains_key(reference));
        let of_mesh = mesh(shared.world);
        let policies = shared.sound.sources.peer_authentications;
        let access = shared.sound.sources.authorization_policies;
        for (reference, inputs) in keys {
            let view = views.of(shared, &inputs);
            let sidecar = scope::sidecar(shared, &inputs);
            let mesh = Mesh {
                outbound_policy: outbound_policy(sidecar, of_mesh.outbound_policy),
                ..of_mesh.clone()
            };
            let before = self.seen.remove(&reference);
            let is_own_same = |seen: &&Seen| {
                seen.inputs == inputs
                    && seen.sidecar.as_ref().map(Arc::as_ptr) == sidecar.map(Arc::as_ptr)
                    && seen.own.mesh == mesh
                    && Arc::ptr_eq(&seen.common, views.common())
                    && Arc::ptr_eq(&seen.policies, policies)
                    && Arc::ptr_eq(&seen.authorization, access)
            };
            let own = match before.as_ref().filter(is_own_same) {
                Some(seen) => seen.own.clone(),
                None => Own {
                    workload: workload(&inputs),
                    mesh: mesh.clone(),
                    // What a gateway's ports speak is said by its Gateways.
                    inbound: match inputs.template {
                        Template::Sidecar => inbound::inbound(shared, &inputs, sidecar.map(Arc::as_ref)),
                        Template::Gateway => Inbound::default(),
                    },
                    authorization: authorization::policies(shared, &inputs),
                },
            };
            let is_same = |seen: &Seen| {
                seen.inputs == inputs && seen.own == own && (Arc::ptr_eq(&seen.view, &view) || seen.view == view)
            };
            let result = match before {
                Some(seen) if is_same(&seen) => seen.result,
                _ => {
                    output.work.configs += 1;
                    pack(&own, &view, &inputs, &shared.world.settings.limits)
                }
            };
            match &result {
                Ok(rendered) => drop(output.configs.insert(reference.clone(), rendered.clone())),
                Err(message) => output.failures.push(RenderFailure {
                    namespace: reference.namespace.clone(),
                    key: Some(reference.key.clone()),
                    message: message.clone(),
                }),
            }
            let seen = Seen {
                inputs,
                sidecar: sidecar.cloned(),
                common: views.common().clone(),
                policies: policies.clone(),
                authorization: access.clone(),
                view,
                own,
                result,
            };
            self.seen.insert(reference, seen);
        }
    }
}

/// What this renders, the proxy must be able to load: the same code decides (DLV-025).
fn pack(own: &Own, view: &Arc<View>, inputs: &Arc<KeyInputs>, limits: &Limits) -> Result<Arc<RenderedConfig>, String> {
    let packed = pack::config(&own.bundle(view), inputs, limits).map_err(|e| e.to_string())?;
    let files: Files = packed.shards.iter().flat_map(Files::clone).collect();
    let loaded = weft_bundle::load::config(&files).map_err(|e| e.to_string())?;
    let loaded = loaded.ok_or("the manifest is missing")?;
    weft_bundle::model::Config::parse(loaded.bundle)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    Ok(Arc::new(RenderedConfig {
        own: own.clone(),
        view: view.clone(),
        inputs: inputs.clone(),
        revision: packed.revision,
        shards: packed.shards.into_iter().map(Arc::new).collect(),
    }))
}

fn workload(inputs: &KeyInputs) -> Workload {
    let label = |names: [&str; 2]| names.iter().find_map(|n| inputs.labels.get(*n)).cloned();
    Workload {
        namespace: inputs.namespace.clone(),
        name: inputs.workload.clone(),
        service_account: inputs.service_account.clone(),
        template: inputs.template,
        canonical_name: canonical_name(&inputs.labels, &inputs.workload),
        canonical_revision: canonical_revision(&inputs.labels),
        app: label(["app.kubernetes.io/name", "app"]),
        version: label(["app.kubernetes.io/version", "version"]),
    }
}

/// A Sidecar's block takes the place of the mesh's value, and without a mode refuses what is not known (SM-064, SM-065).
fn outbound_policy(sidecar: Option<&Arc<Sidecar>>, of_mesh: wire::OutboundPolicy) -> wire::OutboundPolicy {
    match sidecar.and_then(|sidecar| sidecar.spec.outbound_traffic_policy.as_ref()) {
        None => of_mesh,
        Some(policy) if policy.mode.as_deref() == Some("ALLOW_ANY") => wire::OutboundPolicy::AllowAny,
        Some(_) => wire::OutboundPolicy::RegistryOnly,
    }
}

fn mesh(world: &World) -> Mesh {
    let config = &world.mesh;
    let text = |value: Option<&Option<String>>| value.and_then(|v| v.as_deref()).unwrap_or_default().to_owned();
    let outbound = text(config.outbound_traffic_policy.as_ref().map(|p| &p.mode));
    let normalization = text(config.path_normalization.as_ref().map(|p| &p.normalization));
    let min_tls = text(config.mesh_mtls.as_ref().map(|m| &m.min_protocol_version));
    let port = config
        .proxy_http_port
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p > 0);
    Mesh {
        cluster_domain: world.settings.cluster_domain.clone(),
        trust_domain: world.trust_domain(),
        trust_domain_aliases: world.trust_domain_aliases(),
        skip_validate_trust_domain: world.settings.skip_validate_trust_domain,
        outbound_policy: match outbound.as_str() {
            "REGISTRY_ONLY" => wire::OutboundPolicy::RegistryOnly,
            _ => wire::OutboundPolicy::AllowAny,
        },
        connect_timeout_ms: config
            .connect_timeout
            .as_ref()
            .and_then(|d| d.millis())
            .unwrap_or(10_000),
        istio_compatibility: config.weft.compatibility.as_deref() == Some("istio"),
        detection_timeout_ms: config
            .protocol_detection_timeout
            .as_ref()
            .and_then(|d| d.millis())
            .unwrap_or(0),
        path_normalization: match normalization.as_str() {
            "NONE" => wire::PathNormalization::None,
            "MERGE_SLASHES" => wire::PathNormalization::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => wire::PathNormalization::DecodeAndMergeSlashes,
            _ => wire::PathNormalization::Base,
        },
        min_tls: if min_tls == "TLSV1_3" {
            wire::TlsVersion::V1_3
        } else {
            wire::TlsVersion::V1_2
        },
        access_log: config.access_log_file.as_ref().map(|path| wire::AccessLog {
            path: path.clone(),
            encoding: match config.access_log_encoding.as_deref() {
                Some("JSON") => wire::LogEncoding::Json,
                _ => wire::LogEncoding::Text,
            },
            format: config.access_log_format.clone().filter(|f| !f.is_empty()),
        }),
        retry: route::default_retry(config),
        vip_fallback: true,
        dns_refresh_ms: config
            .dns_refresh_rate
            .as_ref()
            .and_then(|d| d.millis())
            .unwrap_or(60_000),
        drain_ms: {
            let drain = config.default_config.as_ref().and_then(|c| c.drain_duration.as_ref());
            drain.and_then(|d| d.millis()).unwrap_or(45_000)
        },
        http_proxy_port: port.or(world.settings.http_proxy_port),
        endpoint_lookup: config.weft.socket_load_balancing,
        process: process(config),
    }
}

/// What proxies take at their start alone; defaults stay away (LIFE-050).
fn process(config: &MeshConfig) -> wire::Process {
    let small = |number: Option<i64>, default: Option<u16>| {
        let number = number.and_then(|number| u16::try_from(number).ok());
        number.filter(|number| Some(*number) != default)
    };
    let proxies = config.default_config.clone().unwrap_or_default();
    let dns = proxies.proxy_metadata.get("ISTIO_META_DNS_CAPTURE");
    wire::Process {
        outbound_port: small(config.proxy_listen_port, Some(15001)),
        inbound_port: small(config.proxy_inbound_listen_port, Some(15006)),
        admin_port: small(proxies.proxy_admin_port, Some(15000)),
        status_port: small(proxies.status_port, Some(15020)),
        concurrency: small(proxies.concurrency, None),
        interception_mode: proxies.interception_mode.filter(|mode| mode != "REDIRECT"),
        dns_capture: dns.and_then(|text| text.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::stage::{self, bundle, render};

    // spec: SM-029, SM-060, SM-114, SM-115, SM-116, LIFE-034
    #[test]
    fn a_mesh_that_says_nothing_has_the_defaults() {
        let of = |documents: &str| bundle(&render(documents), "app/client").mesh;
        let default = of("");
        assert_eq!(default.outbound_policy, wire::OutboundPolicy::AllowAny);
        assert_eq!(default.path_normalization, wire::PathNormalization::Base);
        assert_eq!((default.connect_timeout_ms, default.dns_refresh_ms), (10_000, 60_000));
        assert_eq!((default.detection_timeout_ms, default.drain_ms), (0, 45_000));
        assert_eq!(
            (default.http_proxy_port, default.process.clone()),
            (None, wire::Process::default())
        );
        assert!(!default.istio_compatibility && !default.endpoint_lookup && default.vip_fallback);
        let set = of(&stage::mesh(
            "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\npathNormalization: {normalization: MERGE_SLASHES}\nconnectTimeout: \
             3s\ndnsRefreshRate: 7s\nprotocolDetectionTimeout: 100ms\ndefaultConfig: {drainDuration: 9s}",
        ));
        assert_eq!(set.outbound_policy, wire::OutboundPolicy::RegistryOnly);
        assert_eq!(set.path_normalization, wire::PathNormalization::MergeSlashes);
        assert_eq!((set.connect_timeout_ms, set.dns_refresh_ms), (3_000, 7_000));
        assert_eq!((set.detection_timeout_ms, set.drain_ms), (100, 9_000));
        let empty = of(&stage::mesh("outboundTrafficPolicy: {}"));
        assert_eq!(empty.outbound_policy, wire::OutboundPolicy::AllowAny);
    }

    // spec: SM-109
    #[test]
    fn applications_are_reached_at_the_pods_address_unless_the_mesh_says_loopback() {
        let of = |text: &str| bundle(&render(&stage::mesh(text)), "app/client").inbound.destination;
        assert_eq!(of(""), wire::InboundDestination::Passthrough);
        assert_eq!(of("inboundTrafficPolicy: {}"), wire::InboundDestination::Passthrough);
        let mode = |mode: &str| of(&format!("inboundTrafficPolicy: {{mode: {mode}}}"));
        assert_eq!(mode("PASSTHROUGH"), wire::InboundDestination::Passthrough);
        assert_eq!(mode("LOCALHOST"), wire::InboundDestination::Localhost);
    }

    // spec: SM-117
    #[test]
    fn the_meshs_retries_replace_the_default_and_none_is_a_number_too() {
        let of = |text: &str| bundle(&render(&stage::mesh(text)), "app/client").mesh.retry;
        assert_eq!(of(""), wire::RetryPolicy::default());
        assert_eq!(wire::RetryPolicy::default().attempts, 2);
        let attempts = |n: u32| of(&format!("defaultHttpRetryPolicy: {{attempts: {n}}}")).attempts;
        assert_eq!((attempts(0), attempts(7)), (0, 7));
        let stated = of("defaultHttpRetryPolicy: {attempts: 3, retryOn: reset, perTryTimeout: 2s}");
        assert_eq!(
            (stated.on, stated.per_try_timeout_ms),
            (vec!["reset".to_owned()], Some(2_000))
        );
    }

    // spec: LIFE-050, NET-011
    #[test]
    fn what_a_process_takes_at_its_start_is_rendered_where_it_is_no_default() {
        let of = |text: &str| process(&MeshConfig::parse(text).expect("a mesh config"));
        assert_eq!(of(""), wire::Process::default());
        assert_eq!(
            of("proxyListenPort: 15001\ndefaultConfig: {interceptionMode: REDIRECT, statusPort: 15020}"),
            wire::Process::default()
        );
        assert_eq!(
            of(
                "proxyListenPort: 16001\nproxyInboundListenPort: 16006\ndefaultConfig: {concurrency: 0, statusPort: 16020, \
                 proxyAdminPort: 16000, interceptionMode: TPROXY, proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}"
            ),
            wire::Process {
                outbound_port: Some(16001),
                inbound_port: Some(16006),
                admin_port: Some(16000),
                status_port: Some(16020),
                concurrency: Some(0),
                interception_mode: Some("TPROXY".into()),
                dns_capture: Some(true),
            }
        );
    }
}
