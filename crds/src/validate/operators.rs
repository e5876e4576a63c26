//! Operators of access logs and header values: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):N%`, `%%` (LOG-016).

/// Checks a format or a header value.
///
/// # Errors
/// What is wrong, with the position of the `%` in characters, and what would be accepted.
pub fn check(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let position = text[..text.len() - rest.len() + at].chars().count() + 1;
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let unbalanced = || format!("has an unbalanced % at character {position}; write %% for a percent sign");
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, after) = rest.split_at(end.ok_or_else(unbalanced)?);
        rest = operand(after).ok_or_else(unbalanced)?;
        if !NAMES.contains(&name) && !name.strip_prefix("DOWNSTREAM_").is_some_and(is_of_connection) {
            return Err(format!(
                "has {name:?} at character {position}, which is no operator such as REQ(name), DOWNSTREAM_REMOTE_ADDRESS or START_TIME"
            ));
        }
    }
    Ok(())
}

/// What stands behind an operator: behind its argument, its length, and its closing `%`.
fn operand(text: &str) -> Option<&str> {
    let closed = |text: &'_ str| -> Option<usize> {
        let digits = text
            .strip_prefix(':')
            .map_or(0, |t| t.bytes().take_while(u8::is_ascii_digit).count() + 1);
        (digits != 1 && text[digits..].starts_with('%')).then_some(digits + 1)
    };
    if !text.starts_with('(') {
        return closed(text).map(|length| &text[length..]);
    }
    // Arguments may hold parentheses of their own: the end is where the operator is closed.
    let mut ends = text.match_indices(')').map(|(at, _)| at + 1);
    ends.find_map(|end| closed(&text[end..]).map(|length| &text[end + length..]))
}

/// `REMOTE_ADDRESS`, `DIRECT_LOCAL_PORT` and the like (LOG-024), behind `DOWNSTREAM_`.
fn is_of_connection(name: &str) -> bool {
    let name = name.strip_prefix("DIRECT_").unwrap_or(name);
    let name = name.strip_prefix("REMOTE_").or_else(|| name.strip_prefix("LOCAL_"));
    matches!(name, Some("ADDRESS" | "ADDRESS_WITHOUT_PORT" | "PORT"))
}

/// LOG-017..LOG-029, without those of [`is_of_connection`].
const NAMES: [&str; 116] = [
    "START_TIME",
    "START_TIME_LOCAL",
    "EMIT_TIME",
    "EMIT_TIME_LOCAL",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DURATION",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "ROUNDTRIP_DURATION",
    "COMMON_DURATION",
    "PROTOCOL",
    "UPSTREAM_PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "GRPC_STATUS",
    "GRPC_STATUS_NUMBER",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_LOCAL_CLOSE_REASON",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "LOCAL_REPLY_BODY",
    "CUSTOM_FLAGS",
    "REQ",
    "RESP",
    "TRAILER",
    "REQ_WITHOUT_QUERY",
    "QUERY_PARAM",
    "PATH",
    "UPSTREAM_HOST",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_CONNECTION_ID",
    "ROUTE_NAME",
    "REQUESTED_SERVER_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "FILTER_CHAIN_NAME",
    "HOSTNAME",
    "CONNECTION_ID",
    "STREAM_ID",
    "UNIQUE_ID",
    "TRACE_ID",
    "SPAN_ID",
    "ACCESS_LOG_TYPE",
    "ENVIRONMENT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_LOCAL_SUBJECT",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "DYNAMIC_METADATA",
    "METADATA",
    "CLUSTER_METADATA",
    "UPSTREAM_METADATA",
    "FILTER_STATE",
    "UPSTREAM_FILTER_STATE",
    "CEL",
    "TYPED_CEL",
    "COALESCE",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
];

#[cfg(test)]
mod tests {
    use super::check;

    // spec: VS-065, LOG-016, LOG-021, LOG-024, LOG-029
    #[test]
    fn operators_are_told_from_the_rest() {
        for good in [
            "",
            "100%%",
            "%REQ(x-y?:path):10%",
            "%START_TIME(%Y-%m-%d)%",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%",
            "%DOWNSTREAM_LOCAL_PORT%",
            "%CEL(has(request.code) && (1 > 0))%, %PROTOCOL%",
            "%DOWNSTREAM_PEER_FINGERPRINT_256%",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "%",
            "%%%",
            "%REQ(x",
            "%REQ(x)",
            "%REQ(x):%",
            "%REQ",
            "%NOPE%",
            "%%%DOWNSTREAM_PORT%",
            "%é%",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let error = check("é%% %NOPE%").expect_err("unknown");
        assert!(error.contains("\"NOPE\" at character 5"), "{error}");
    }
}
