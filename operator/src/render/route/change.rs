//! Changes of requests and responses on their way (VS-060..VS-076).

use std::collections::BTreeMap;

use weft_bundle::wire::{HeaderOps, PathRewrite, Rewrite};
use weft_crds::virtual_service as api;

pub(super) fn operations(operations: Option<&api::HeaderOperations>) -> HeaderOps {
    let Some(operations) = operations else {
        return HeaderOps::default();
    };
    let pairs = |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    HeaderOps {
        remove: operations.remove.clone(),
        set: pairs(&operations.set),
        add: pairs(&operations.add),
    }
}

pub(super) fn rewrite(rewrite: &api::HTTPRewrite) -> Rewrite {
    let regex = rewrite.uri_regex_rewrite.as_ref().map(|r| PathRewrite::Regex {
        pattern: r.matches.clone(),
        substitution: r.rewrite.clone(),
    });
    Rewrite {
        authority: rewrite.authority.clone().filter(|a| !a.is_empty()),
        path: rewrite
            .uri
            .clone()
            .filter(|u| !u.is_empty())
            .map(PathRewrite::Matched)
            .or(regex),
    }
}

/// Changes of a request's and of its response's fields.
pub(super) fn headers(headers: Option<&api::Headers>) -> (HeaderOps, HeaderOps) {
    let request = headers.and_then(|h| h.request.as_ref());
    let response = headers.and_then(|h| h.response.as_ref());
    (operations(request), operations(response))
}
