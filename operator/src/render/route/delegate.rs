//! Entries whose rules stand in another VirtualService (VS-154 ff.).

use std::borrow::Cow;
use std::collections::BTreeMap;

use weft_crds::VirtualService;
use weft_crds::virtual_service as api;

use super::super::Shared;
use super::super::service::visibility;
use super::namespace_of;
use super::precedence::{export_to, gateway_id};

/// A route with the namespace that its short names are completed with (VS-182).
pub(super) struct Routed<'a> {
    pub(super) namespace: &'a str,
    pub(super) route: Cow<'a, api::HTTPRoute>,
}

/// An entry of a VirtualService and what stands in its place: itself, or the rules of its delegate, which may be none.
pub(super) struct Entry<'a> {
    pub(super) root: &'a api::HTTPRoute,
    pub(super) routes: Vec<Routed<'a>>,
}

/// The entries of a VirtualService, in order (VS-156).
pub(super) fn entries<'a>(shared: &Shared<'a>, root: &'a VirtualService) -> Vec<Entry<'a>> {
    let entry = |route: &'a api::HTTPRoute| {
        let routes = match &route.delegate {
            None => vec![Routed {
                namespace: namespace_of(root),
                route: Cow::Borrowed(route),
            }],
            Some(delegate) => {
                let target = find(shared, root, delegate).ok();
                let own = target.into_iter().flat_map(|target| {
                    // A short name of a Gateway means one of the namespace where it is written.
                    let root = with_full_gateways(route, namespace_of(root));
                    let of = move |own| delegated(&root, &with_full_gateways(own, namespace_of(target)));
                    target.spec.http.iter().filter_map(of).map(|route| Routed {
                        namespace: namespace_of(target),
                        route: Cow::Owned(route),
                    })
                });
                own.collect()
            }
        };
        Entry { root: route, routes }
    };
    root.spec.http.iter().map(entry).collect()
}

/// The same conditions, with the full names of Gateways.
fn with_full_gateways(route: &api::HTTPRoute, namespace: &str) -> api::HTTPRoute {
    let mut route = route.clone();
    let names = route.matches.iter_mut().flat_map(|m| &mut m.gateways);
    for name in names {
        if let Some(id) = gateway_id(name, namespace) {
            *name = id;
        }
    }
    route
}

/// The VirtualService that an entry delegates to, or why there is none (VS-155).
pub(super) fn find<'a>(
    shared: &Shared<'a>,
    root: &VirtualService,
    delegate: &api::Delegate,
) -> Result<&'a VirtualService, String> {
    let own = namespace_of(root);
    let namespace = delegate.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(own);
    let name = delegate.name.as_str();
    let is_named = |v: &&&VirtualService| v.metadata.name.as_deref() == Some(name) && namespace_of(v) == namespace;
    let found = shared.sound.virtual_services.iter().find(is_named);
    let found = *found.ok_or_else(|| format!("delegate {namespace}/{name} is not there, or not valid"))?;
    if !found.spec.hosts.is_empty() {
        return Err(format!(
            "delegate {namespace}/{name} has hosts of its own, so it is none"
        ));
    }
    let is_visible = visibility(export_to(shared, found), namespace).is_none_or(|to| to.contains(own));
    if !is_visible {
        return Err(format!(
            "delegate {namespace}/{name} is not exported to namespace {own}"
        ));
    }
    Ok(found)
}

/// A delegate's route within the entry that delegates to it; `None` when their conditions contradict each other.
fn delegated(root: &api::HTTPRoute, own: &api::HTTPRoute) -> Option<api::HTTPRoute> {
    let matches = if own.matches.is_empty() {
        root.matches.clone()
    } else if root.matches.is_empty() {
        own.matches.clone()
    } else {
        let joined = own
            .matches
            .iter()
            .flat_map(|o| root.matches.iter().filter_map(|r| join(r, o)));
        let joined: Vec<_> = joined.collect();
        if joined.is_empty() {
            return None;
        }
        joined
    };
    let name = match (&root.name, &own.name) {
        (Some(root), Some(own)) => Some(format!("{root}-{own}")),
        (one, other) => one.clone().or_else(|| other.clone()),
    };
    let mut out = own.clone();
    out.matches = matches;
    out.name = name;
    out.rewrite = own.rewrite.clone().or_else(|| root.rewrite.clone());
    out.direct_response = own.direct_response.clone().or_else(|| root.direct_response.clone());
    out.timeout = own.timeout.clone().or_else(|| root.timeout.clone());
    out.retries = own.retries.clone().or_else(|| root.retries.clone());
    out.fault = own.fault.clone().or_else(|| root.fault.clone());
    out.mirror = own.mirror.clone().or_else(|| root.mirror.clone());
    out.mirror_percent = own.mirror_percent.or(root.mirror_percent);
    out.mirror_percentage = own.mirror_percentage.or(root.mirror_percentage);
    if own.mirrors.is_empty() {
        out.mirrors = root.mirrors.clone();
    }
    out.cors_policy = own.cors_policy.clone().or_else(|| root.cors_policy.clone());
    out.headers = own.headers.clone().or_else(|| root.headers.clone());
    Some(out)
}

/// Both conditions at once; `None` when they conflict (VS-157, VS-158).
fn join(root: &api::HTTPMatchRequest, own: &api::HTTPMatchRequest) -> Option<api::HTTPMatchRequest> {
    let text = |root: &Option<api::StringMatch>, own: &Option<api::StringMatch>| match (root, own) {
        (Some(root), Some(own)) => narrower(root, own).then(|| Some(own.clone())),
        (root, own) => Some(own.clone().or_else(|| root.clone())),
    };
    let map = |root: &BTreeMap<String, api::StringMatch>, own: &BTreeMap<String, api::StringMatch>| {
        let mut out = root.clone();
        for (name, condition) in own {
            if root.get(name).is_some_and(|root| !narrower(root, condition)) {
                return None;
            }
            out.insert(name.clone(), condition.clone());
        }
        Some(out)
    };
    let mut labels = root.source_labels.clone();
    for (name, value) in &own.source_labels {
        if labels
            .insert(name.clone(), value.clone())
            .is_some_and(|before| before != *value)
        {
            return None;
        }
    }
    let both = |root: Option<i64>, own: Option<i64>| match (root, own) {
        (Some(root), Some(own)) if root != own => None,
        (root, own) => Some(own.or(root)),
    };
    if root.source_namespace.is_some() && root.source_namespace != own.source_namespace {
        return None;
    }
    if root.ignore_uri_case.unwrap_or(false) != own.ignore_uri_case.unwrap_or(false) {
        return None;
    }
    let gateways = match (root.gateways.is_empty(), own.gateways.is_empty()) {
        (false, false) if !own.gateways.iter().all(|g| root.gateways.contains(g)) => return None,
        (_, false) => own.gateways.clone(),
        (_, true) => root.gateways.clone(),
    };
    let name = match (&root.name, &own.name) {
        (Some(root), Some(own)) => Some(format!("{root}-{own}")),
        (one, other) => one.clone().or_else(|| other.clone()),
    };
    Some(api::HTTPMatchRequest {
        name,
        uri: text(&root.uri, &own.uri)?,
        scheme: text(&root.scheme, &own.scheme)?,
        method: text(&root.method, &own.method)?,
        authority: text(&root.authority, &own.authority)?,
        headers: map(&root.headers, &own.headers)?,
        without_headers: map(&root.without_headers, &own.without_headers)?,
        query_params: map(&root.query_params, &own.query_params)?,
        ignore_uri_case: own.ignore_uri_case,
        port: both(root.port, own.port)?,
        source_labels: labels,
        source_namespace: own.source_namespace.clone(),
        gateways,
        stat_prefix: own.stat_prefix.clone().or_else(|| root.stat_prefix.clone()),
    })
}

/// Whether a delegate's condition lies within that of its root.
fn narrower(root: &api::StringMatch, own: &api::StringMatch) -> bool {
    match (root, own) {
        (api::StringMatch { exact: Some(root), .. }, api::StringMatch { exact: Some(own), .. }) => root == own,
        (
            api::StringMatch { prefix: Some(root), .. },
            api::StringMatch { prefix: Some(own), .. } | api::StringMatch { exact: Some(own), .. },
        ) => own.starts_with(root),
        _ => false,
    }
}
