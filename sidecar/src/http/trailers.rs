//! Trailers that may be passed on (RFC 9110, section 6.5.1): none that frames, routes, authenticates or describes the
//! body, so that a receiver that merges them with the head learns nothing that the proxy did not judge.

use super::Headers;

/// Names that have no place in trailers.
const REFUSED: [&str; 31] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];

/// The trailers without those that are not passed on.
pub(super) fn passable(trailers: &Headers) -> Headers {
    let mut kept = trailers.clone();
    kept.retain(|field| {
        let ours = field
            .name
            .get(..7)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"x-weft-"));
        !ours
            && !REFUSED
                .iter()
                .any(|name| field.name.eq_ignore_ascii_case(name.as_bytes()))
    });
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: BYD-070
    #[test]
    fn what_a_receiver_might_act_on_stays_behind() {
        let mut trailers = Headers::default();
        for name in [
            "X-Sum",
            "Content-Length",
            "transfer-encoding",
            "HOST",
            "X-Weft-Draining",
            "Authorization",
            "Grpc-Status",
        ] {
            trailers.push(name, "1");
        }
        let kept: Vec<_> = passable(&trailers).iter().map(|field| field.name.clone()).collect();
        assert_eq!(kept, ["X-Sum", "Grpc-Status"]);
    }
}
