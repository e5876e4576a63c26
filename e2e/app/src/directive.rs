//! What a request asks the server to do: header `x-ctl`, or query parameter `ctl`.

use std::time::Duration;

use crate::http1::Headers;

/// Directives of one request. The default answers 200 at once with what was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// `status=N`
    pub(crate) status: Option<u16>,
    /// `delay=MS`, before the answer
    pub(crate) delay: Duration,
    /// `size=N`: a body of so many bytes instead of JSON
    pub(crate) size: Option<u64>,
    /// `chunked=1`: no length is announced
    pub(crate) chunked: bool,
    /// `rh=Name:Value`, repeatable: response headers
    pub(crate) headers: Vec<(String, String)>,
    /// `trailer=Name:Value`, repeatable
    pub(crate) trailers: Vec<(String, String)>,
    /// `grpc=N`: an answer of trailers only, with this grpc-status
    pub(crate) grpc: Option<u32>,
    /// `close=HOW`: no answer, or half of one
    pub(crate) close: Option<Close>,
    /// `fail=N;key=K;failmode=HOW`
    pub(crate) fail: Option<Fail>,
    /// `key=K`: attempts are counted by it
    pub(crate) key: Option<String>,
}

/// How a connection or stream ends without a whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// Closes before answering.
    Fin,
    /// TCP reset, or `RST_STREAM` with `INTERNAL_ERROR`.
    Reset,
    /// Closes in the middle of the body.
    Mid,
    /// Answers nothing until the peer gives up.
    Hang,
    /// `RST_STREAM` with `REFUSED_STREAM`; with HTTP/1, as `close`.
    Refused,
}

/// The first attempts with a key fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fail {
    pub(crate) attempts: u64,
    pub(crate) mode: FailMode,
}

/// How an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailMode {
    Status(u16),
    Close(Close),
}

impl Directives {
    /// Reads the directives of a request, those of the header first.
    ///
    /// # Errors
    /// A sentence that names the directive and what it takes.
    pub(crate) fn of(headers: &Headers, target: &str) -> Result<Self, String> {
        let mut text = headers.first("x-ctl").unwrap_or_default().to_owned();
        if let Some(query) = target.split_once('?').map(|(_, query)| query) {
            for value in query.split('&').filter_map(|pair| pair.strip_prefix("ctl=")) {
                text.push(';');
                text.push_str(&percent_decoded(value));
            }
        }
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        let (mut attempts, mut mode) = (None, FailMode::Status(503));
        for directive in text.split(';').map(str::trim).filter(|d| !d.is_empty()) {
            let (name, value) = directive
                .split_once('=')
                .ok_or_else(|| format!("directive {directive:?} is not NAME=VALUE"))?;
            match name {
                "status" => out.status = Some(status(value)?),
                "delay" => out.delay = Duration::from_millis(number(name, value, DELAY_LIMIT_MS)?),
                "size" => out.size = Some(number(name, value, SIZE_LIMIT_BYTES)?),
                "chunked" => out.chunked = value != "0",
                "rh" => out.headers.push(field(name, value)?),
                "trailer" => out.trailers.push(field(name, value)?),
                "grpc" => out.grpc = Some(number(name, value, 999)? as u32),
                "close" => out.close = Some(close(value)?),
                "fail" => attempts = Some(number(name, value, u64::MAX)?),
                "key" => out.key = Some(value.to_owned()),
                "failmode" => {
                    mode = match close(value) {
                        Ok(close) => FailMode::Close(close),
                        Err(_) => FailMode::Status(status(value)?),
                    }
                }
                _ => return Err(format!("directive {name:?} is unknown")),
            }
        }
        if let Some(attempts) = attempts {
            if out.key.is_none() {
                return Err("directive fail needs key=K".to_owned());
            }
            out.fail = Some(Fail { attempts, mode });
        }
        Ok(out)
    }
}

fn number(name: &str, value: &str, limit: u64) -> Result<u64, String> {
    let number = value.parse::<u64>().ok().filter(|n| *n <= limit);
    number.ok_or_else(|| format!("directive {name}={value}: a number from 0 to {limit} is accepted"))
}

fn status(value: &str) -> Result<u16, String> {
    let status = value.parse::<u16>().ok().filter(|n| (200..=999).contains(n));
    status.ok_or_else(|| format!("status {value:?}: a number from 200 to 999 is accepted"))
}

fn field(name: &str, value: &str) -> Result<(String, String), String> {
    let pair = value
        .split_once(':')
        .map(|(n, v)| (n.trim().to_owned(), v.trim_start().to_owned()));
    let valid = |(n, v): &(String, String)| {
        http::HeaderName::from_bytes(n.as_bytes()).is_ok() && http::HeaderValue::from_str(v).is_ok()
    };
    pair.filter(valid)
        .ok_or_else(|| format!("directive {name}={value}: Name:Value is accepted"))
}

fn close(value: &str) -> Result<Close, String> {
    Ok(match value {
        "close" => Close::Fin,
        "reset" => Close::Reset,
        "mid" => Close::Mid,
        "hang" => Close::Hang,
        "refused" => Close::Refused,
        _ => {
            return Err(format!(
                "close={value}: close, reset, mid, hang and refused are accepted"
            ));
        }
    })
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(match (escaped, bytes[at]) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, byte) => byte,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

const DELAY_LIMIT_MS: u64 = 600_000;
const SIZE_LIMIT_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ctl: &str) -> Result<Directives, String> {
        Directives::of(&Headers(vec![("X-CTL".to_owned(), ctl.to_owned())]), "/")
    }

    #[test]
    fn header_and_query_add_up() {
        let headers = Headers(vec![("x-ctl".to_owned(), "status=299".to_owned())]);
        let both = Directives::of(&headers, "/p?a=b&ctl=delay=10%3bsize=7&c").expect("valid");
        assert_eq!(both.status, Some(299));
        assert_eq!(both.delay, Duration::from_millis(10));
        assert_eq!(both.size, Some(7));
    }

    #[test]
    fn response_headers_keep_their_colons_and_case() {
        let directives = of("rh=Location:http://a.example/;rh=X-CaMel:1").expect("valid");
        let expected = [("Location", "http://a.example/"), ("X-CaMel", "1")];
        assert_eq!(directives.headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn failures_have_a_key_and_a_mode() {
        let fail = |text| of(text).expect("valid").fail.expect("fails");
        assert_eq!(
            fail("fail=1;key=a"),
            Fail {
                attempts: 1,
                mode: FailMode::Status(503)
            }
        );
        assert_eq!(fail("fail=2;key=a;failmode=500").mode, FailMode::Status(500));
        assert_eq!(fail("failmode=reset;fail=2;key=a").mode, FailMode::Close(Close::Reset));
        assert!(of("fail=1").expect_err("no key").contains("key=K"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for bad in [
            "status=99",
            "status=x",
            "delay=-1",
            "rh=novalue",
            "close=maybe",
            "wat=1",
            "bare",
            "rh=a b:c",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(of("close=maybe").expect_err("unknown").contains("close=maybe"));
    }

    #[test]
    fn percent_escapes_that_are_none_stay() {
        assert_eq!(percent_decoded("a%zz%4+b%41"), "a%zz%4 bA");
    }
}
