//! Normalisation of paths before they are matched and forwarded (SM-116, AUTHZ-068, AUTHZ-069).

use bytes::Bytes;
use weft_bundle::wire::PathNormalization;

use super::RequestHead;
use super::rescue::Failure;

/// The path has a form that is never forwarded: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPath;

/// Lets requests for a path through, and puts the path in its normal form.
///
/// # Errors
/// Whoever sends `CONNECT`, or asks of the server as a whole, asks for nothing that a rule could fit; a path that is never
/// forwarded is a bad request.
pub(super) fn admit(head: &mut RequestHead, mode: PathNormalization) -> Result<(), Failure> {
    if *head.method == *b"CONNECT" || *head.path == *b"*" {
        return Err(Failure::no_route());
    }
    let normal = normalize(&head.path, mode);
    head.path = normal.map_err(|BadPath| Failure::bad_request(400, "path_normalization_failed"))?;
    Ok(())
}

/// Normalises a path with its query; the query stays as it is.
///
/// # Errors
/// A NUL in percent-encoding, in every mode but `NONE`.
pub fn normalize(path: &Bytes, mode: PathNormalization) -> Result<Bytes, BadPath> {
    if mode == PathNormalization::None || path.first() != Some(&b'/') {
        return Ok(path.clone());
    }
    let end = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    let (only, query) = path.split_at(end);
    if !needs_work(only, mode) {
        return Ok(path.clone());
    }
    let mut decoded = decode(only, mode)?;
    if matches!(
        mode,
        PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes
    ) {
        decoded.dedup_by(|a, b| *a == b'/' && *b == b'/');
    }
    let mut out = remove_dots(&decoded);
    out.extend_from_slice(query);
    Ok(out.into())
}

/// Most paths have nothing to normalise and are passed on without a copy.
fn needs_work(path: &[u8], mode: PathNormalization) -> bool {
    let merges = mode != PathNormalization::Base;
    path.iter().any(|b| matches!(b, b'%' | b'\\')) || path.windows(2).any(|w| w == b"/." || (merges && w == b"//"))
}

/// Decodes what has no reserved meaning (RFC 3986, section 6.2.2.2); other escapes stay as they are (AUTHZ-066). A `%` that
/// begins no escape stays, and what follows it is not decoded into one: whoever decodes next would decode twice.
fn decode(path: &[u8], mode: PathNormalization) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    // Digits that the last bytes lack to be an escape.
    let mut lacking = 0;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let lacked = std::mem::take(&mut lacking);
        match first {
            b'\\' => out.push(b'/'),
            b'%' => {
                let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let digits = rest.get(..2).and_then(|d| Some((hex(d[0])?, hex(d[1])?)));
                let Some((high, low)) = digits else {
                    out.push(b'%');
                    lacking = 2;
                    continue;
                };
                let byte = high << 4 | low;
                let escape = &rest[..2];
                rest = &rest[2..];
                let slash = mode == PathNormalization::DecodeAndMergeSlashes && matches!(byte, b'/' | b'\\');
                if byte == 0 {
                    return Err(BadPath);
                } else if slash {
                    out.push(b'/');
                } else if is_unreserved(byte) && !(lacked > 0 && byte.is_ascii_hexdigit()) {
                    out.push(byte);
                } else {
                    out.push(b'%');
                    out.extend_from_slice(escape);
                }
            }
            other => {
                out.push(*other);
                if lacked == 2 && other.is_ascii_hexdigit() {
                    lacking = 1;
                }
            }
        }
    }
    Ok(out)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Removes dot segments (RFC 3986, section 5.2.4); more `..` than segments ends at `/`. Empty segments stay.
fn remove_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut parts = path[1..].split(|b| *b == b'/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            b"." if last => segments.push(b""),
            b"." => {}
            b".." => {
                segments.pop();
                if last {
                    segments.push(b"");
                }
            }
            part => segments.push(part),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(path: &str, mode: PathNormalization) -> String {
        let bytes = normalize(&Bytes::copy_from_slice(path.as_bytes()), mode).expect("legal");
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    // spec: SM-116, AUTHZ-066, AUTHZ-067, AUTHZ-068
    #[test]
    fn modes_differ_in_slashes_alone() {
        use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
        assert_eq!(run("/x/../admin", Base), "/admin");
        assert_eq!(run("/a%62%2fc%2F?q=../%61", Base), "/ab%2fc%2F?q=../%61");
        assert_eq!(run("//admin", Base), "//admin");
        assert_eq!(run("//admin", MergeSlashes), "/admin");
        assert_eq!(run("/%2Fadmin", DecodeAndMergeSlashes), "/admin");
        assert_eq!(run("/%2e%2e/a/./b/.", Base), "/a/b/");
        assert_eq!(run("/a\\b", Base), "/a/b");
        assert_eq!(run("/x/../admin", None), "/x/../admin");
    }

    // spec: AUTHZ-068, AUTHZ-112
    #[test]
    fn nothing_is_decoded_twice() {
        for mode in [PathNormalization::Base, PathNormalization::DecodeAndMergeSlashes] {
            assert_eq!(run("/a/%%32e%%32e/admin", mode), "/a/%%32e%%32e/admin");
            assert_eq!(run("/%%44c4/%4%41", mode), "/%%44c4/%4%41");
            assert_eq!(run("/%%67/%g%41/%%41%41/100%", mode), "/%g/%gA/%%41A/100%");
            assert_eq!(run("/%252e%252e", mode), "/%252e%252e");
        }
    }

    // spec: AUTHZ-069
    #[test]
    fn an_encoded_nul_is_refused_and_dots_end_at_the_root() {
        let path = Bytes::from_static(b"/a%00");
        assert_eq!(normalize(&path, PathNormalization::Base), Err(BadPath));
        assert_eq!(normalize(&path, PathNormalization::None), Ok(path));
        assert_eq!(run("/../..", PathNormalization::Base), "/");
    }

    proptest! {
        // spec: AUTHZ-112
        #[test]
        fn a_normal_path_stays_as_it_is(path in "/([0-9a-g%./\\\\]|%[0-9a-f]{2}){0,20}") {
            use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes};
            for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
                if let Ok(once) = normalize(&Bytes::from(path.clone()), mode) {
                    prop_assert_eq!(normalize(&once, mode), Ok(once.clone()));
                    prop_assert_eq!(once[0], b'/');
                }
            }
        }
    }
}
