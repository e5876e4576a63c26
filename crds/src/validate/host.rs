//! Names of hosts in mesh resources (SM-053..SM-058).

use std::net::IpAddr;

/// Why a text is no host name; `None` when it is one (SM-058). `*` alone counts as a name here.
#[must_use]
pub fn problem(host: &str) -> Option<&'static str> {
    if host.is_empty() {
        return Some("is required");
    }
    if host.parse::<IpAddr>().is_ok() || host == "*" {
        return None;
    }
    if host.len() > 255 {
        return Some("must have at most 255 characters");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // `*.x`, `*foo.x` and `*-foo.x` are the wildcards.
    let plain = match name.strip_prefix('*') {
        Some(rest) => rest.strip_prefix('.').unwrap_or_else(|| rest.trim_start_matches('-')),
        None => name,
    };
    if plain.contains('*') {
        return Some("may have `*` as its first character alone");
    }
    if plain.contains(':') || plain.contains('/') {
        return Some("must be a host name without scheme, port and path");
    }
    let mut labels = plain.split('.');
    if labels.clone().any(|label| !is_label(label)) {
        return Some("must be a DNS name: labels of a-z, 0-9 and `-`, at most 63 characters each, joined by dots");
    }
    let last = labels.next_back().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Some("must not end in a label of digits alone");
    }
    None
}

/// A DNS-1123 label; upper case is accepted, because names of hosts ignore case.
#[must_use]
pub fn is_label(label: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !label.is_empty() && label.len() <= 63 && label.bytes().all(ok) && !label.starts_with('-') && !label.ends_with('-')
}

/// A host as it is compared with others: lower case, without a final dot.
#[must_use]
pub fn canonical(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The full name that a host of a resource means: one without a dot is completed with the resource's namespace
/// (SM-053..SM-055). It is [`canonical`].
#[must_use]
pub fn expand(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let host = canonical(host);
    if host.contains('.') || host.contains('*') || host.parse::<IpAddr>().is_ok() {
        return host;
    }
    format!("{host}.{namespace}.svc.{cluster_domain}")
}

/// Whether a pattern covers a host: equal, `*`, or the suffix behind its `*` (SM-057).
#[must_use]
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == host,
        Some("") => true,
        Some(suffix) => {
            let host = host.strip_prefix('*').unwrap_or(host);
            host.len() >= suffix.len()
                && host.ends_with(suffix)
                && (host.len() > suffix.len() || host != pattern)
                && (host.len() > suffix.len() || pattern.starts_with("**") || is_same_wildcard(pattern, host))
        }
    }
}

/// `*.x` covers the wildcard `*.x` itself, and not the name `x`.
fn is_same_wildcard(pattern: &str, rest: &str) -> bool {
    pattern.strip_prefix('*') == Some(rest) && rest.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec: SM-058
    #[test]
    fn names_and_wildcards_are_told_from_the_rest() {
        for good in [
            "a", "a.b.c", "a.b.", "*.x.com", "*foo.x", "*-foo.x", "*", "10.1.2.3", "::1", "A.b",
        ] {
            assert_eq!(problem(good), None, "{good}");
        }
        // 255 characters, and one more.
        let most = [&"a".repeat(63)[..]; 4].join(".");
        assert_eq!((most.len(), problem(&most)), (255, None));
        let (long, longer) = ("a".repeat(64), format!("{most}."));
        for bad in [
            "",
            "a.*.com",
            "foo*.com",
            "http://x",
            "x:80",
            "a..b",
            "-a",
            "1.2.3.400",
            &long,
            &longer,
            "a.1",
            "a.b.99",
            "a.*",
            "**.x",
            "a_b",
        ] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }

    // spec: SM-053, SM-054, SM-055
    #[test]
    fn a_name_without_a_dot_is_completed() {
        assert_eq!(
            expand("reviews", "prod", "cluster.local"),
            "reviews.prod.svc.cluster.local"
        );
        assert_eq!(expand("reviews.prod", "x", "cluster.local"), "reviews.prod");
        assert_eq!(expand("*", "x", "cluster.local"), "*");
        for kept in ["10.0.0.1", "fd00::1", "*.x", "*-x", "a.b.svc.cluster.local"] {
            assert_eq!(expand(kept, "x", "cluster.local"), kept);
        }
        assert_eq!(expand("Reviews", "prod", "example.org"), "reviews.prod.svc.example.org");
        assert_eq!(expand("reviews.prod.", "x", "cluster.local"), "reviews.prod");
    }

    // spec: SM-057
    #[test]
    fn wildcards_cover_what_ends_like_them() {
        assert!(covers("*", "anything"));
        assert!(covers("*.x", "a.x") && covers("*.x", "a.b.x") && covers("*.x", "*.b.x") && covers("*.x", "*.x"));
        assert!(!covers("*.x", "x") && !covers("*.x", "ax") && !covers("a.x", "*.x"));
        assert!(covers("*foo.x", "barfoo.x") && !covers("*foo.x", "foo.x"));
        assert!(covers("a.x", "a.x"));
    }
}
