//! Header lists, compared without what tells of the proxy's product alone.

use crate::pattern;

/// Names and values in order.
pub(crate) type Headers = Vec<(String, String)>;

/// What differs between two lists, as `name: value` with `-` for what is missing and `+` for what is too much; nothing
/// when they agree. Names count without their case, order within a name alone: what a proxy adds comes at another place
/// here, and the case is the client's (BYD-020).
pub(crate) fn difference(
    recorded: &Headers,
    found: &Headers,
    address: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let mut left: Vec<(String, &str)> = own(found);
    let mut out = Vec::new();
    for (name, value) in own(recorded) {
        let same = |(n, v): &(String, &str)| *n == name && pattern::matches(value, v, address);
        match left.iter().position(same) {
            Some(at) => drop(left.remove(at)),
            None => out.push(format!("-{name}: {value}")),
        }
    }
    out.extend(left.iter().map(|(name, value)| format!("+{name}: {value}")));
    (!out.is_empty()).then(|| out.join(", "))
}

fn own(headers: &Headers) -> Vec<(String, &str)> {
    let lower = headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v.as_str()));
    lower.filter(|(name, _)| !is_of_product(name)).collect()
}

fn is_of_product(name: &str) -> bool {
    name.starts_with("x-envoy-") || name.starts_with("x-weft-") || name == "server"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn missing_and_surplus_headers_show() {
        let none = |_: &str| None;
        let recorded = list(&[("host", "a"), ("x-a", "1"), ("x-envoy-attempt-count", "1")]);
        assert_eq!(
            difference(&recorded, &list(&[("X-A", "1"), ("Host", "a")]), &none),
            None
        );
        let found = list(&[("host", "a"), ("x-b", "2")]);
        assert_eq!(
            difference(&recorded, &found, &none).as_deref(),
            Some("-x-a: 1, +x-b: 2")
        );
        let twice = list(&[("x-a", "1"), ("x-a", "1")]);
        assert_eq!(
            difference(&list(&[("x-a", "1")]), &twice, &none).as_deref(),
            Some("+x-a: 1")
        );
    }
}
