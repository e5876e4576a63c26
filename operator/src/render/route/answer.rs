//! What a proxy answers by itself: redirects, direct responses, CORS (VS-077..VS-090, VS-143..VS-153).

use weft_bundle::wire::{Cors, DirectResponse, Redirect, RedirectPath, RedirectPort, StringMatch};
use weft_crds::virtual_service as api;

use super::condition::string_match;

pub(super) fn redirect(redirect: &api::HTTPRedirect) -> Redirect {
    let text = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
    let number = redirect
        .port
        .and_then(|p| u16::try_from(p).ok())
        .map(RedirectPort::Number);
    let derived = match redirect.derive_port.as_deref() {
        Some("FROM_REQUEST_PORT") => Some(RedirectPort::FromRequest),
        Some("FROM_PROTOCOL_DEFAULT") => Some(RedirectPort::FromProtocol),
        _ => None,
    };
    Redirect {
        code: redirect
            .redirect_code
            .and_then(|c| u16::try_from(c).ok())
            .filter(|c| *c != 0)
            .unwrap_or(301),
        scheme: text(&redirect.scheme),
        authority: text(&redirect.authority),
        port: number.or(derived),
        path: text(&redirect.uri)
            .map(RedirectPath::Full)
            .or_else(|| text(&redirect.prefix_rewrite).map(RedirectPath::Prefix)),
    }
}

pub(super) fn direct_response(direct: &api::HTTPDirectResponse) -> DirectResponse {
    let body = direct.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => Some(data_encoding::BASE64.encode(text.as_bytes())),
        (None, bytes) => bytes.clone(),
    });
    DirectResponse {
        status: u16::try_from(direct.status).unwrap_or(503),
        body: body.filter(|b| !b.is_empty()),
    }
}

pub(super) fn cors(cors: &api::CorsPolicy) -> Cors {
    let mut allow_origins: Vec<StringMatch> = cors.allow_origins.iter().filter_map(string_match).collect();
    if cors.allow_origins.is_empty() {
        allow_origins = cors.allow_origin.iter().cloned().map(StringMatch::Exact).collect();
    }
    Cors {
        allow_origins,
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age_seconds: cors.max_age.as_ref().and_then(|d| d.value()).map(|d| d.as_secs()),
        allow_credentials: cors.allow_credentials == Some(true),
        ignore_unmatched_preflights: cors.unmatched_preflights.as_deref() == Some("IGNORE"),
    }
}
