//! Names and phrases of HTTP/1 across an HTTP/2 hop between two proxies of the mesh (BYD-020).
//!
//! HTTP/2 knows lower-case names alone and no reason phrase. The sender lists the names as they were, in order, in a field
//! of the hop, which the receiver takes out again. A list that does not fit the fields changes nothing but their order.

use bytes::Bytes;

use super::{Field, Headers};

/// The field of the hop with the names.
const NAMES: &str = "x-weft-names";

/// The field of the hop with the reason phrase.
const PHRASE: &str = "x-weft-phrase";

/// Lists the names of the fields.
pub(super) fn note(headers: &mut Headers) {
    let names: Vec<&[u8]> = headers.iter().map(|field| &field.name[..]).collect();
    let list = names.join(&b","[..]);
    headers.push(NAMES, list);
}

/// As [`note`], with a reason phrase.
pub(super) fn note_response(headers: &mut Headers, reason: &Bytes) {
    note(headers);
    headers.push(PHRASE, reason.clone());
}

/// Removes the fields of the hop; true when there was a list.
pub(super) fn remove(headers: &mut Headers) -> bool {
    headers.remove(PHRASE);
    headers.remove(NAMES).is_some()
}

/// Gives the fields the names and the order that they had; true when there was a list.
pub(super) fn restore(headers: &mut Headers) -> bool {
    let Some(list) = headers.remove(NAMES) else {
        return false;
    };
    let mut left: Vec<Option<Field>> = headers.iter().cloned().map(Some).collect();
    let mut ordered = Headers::with_capacity(left.len() + 8);
    for name in list.split(|b| *b == b',') {
        let found = left.iter_mut().find(|field| {
            field
                .as_ref()
                .is_some_and(|field| field.name.eq_ignore_ascii_case(name))
        });
        if let Some(field) = found.and_then(Option::take) {
            ordered.push_field(Field {
                name: list.slice_ref(name),
                value: field.value,
            });
        }
    }
    left.into_iter().flatten().for_each(|field| ordered.push_field(field));
    *headers = ordered;
    true
}

/// As [`restore`]; gives the reason phrase.
pub(super) fn restore_response(headers: &mut Headers) -> Option<Bytes> {
    let phrase = headers.remove(PHRASE);
    if restore(headers) { phrase } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> Headers {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(*name, *value));
        headers
    }

    // spec: BYD-020
    #[test]
    fn names_and_order_come_back_and_additions_stay_last() {
        let sent = headers(&[("Host", "a"), ("X-One", "1"), ("b", "2"), ("X-One", "3")]);
        let mut hop = sent.clone();
        note(&mut hop);
        let list = hop.get(NAMES).expect("noted").clone();
        let mut received = headers(&[
            ("host", "a"),
            ("x-one", "1"),
            ("x-one", "3"),
            ("b", "2"),
            ("added", "4"),
        ]);
        received.push(NAMES, list);
        assert!(restore(&mut received));
        let mut expected = sent;
        expected.push("added", "4");
        assert_eq!(received, expected);
    }

    // spec: BYD-020
    #[test]
    fn what_others_put_into_the_fields_of_the_hop_is_removed() {
        let mut received = headers(&[("a", "1"), (NAMES, "A"), (PHRASE, "Mine"), ("b", "2")]);
        assert!(remove(&mut received));
        assert_eq!(received, headers(&[("a", "1"), ("b", "2")]));
        assert!(!remove(&mut received));
    }

    // spec: BYD-020
    #[test]
    fn a_list_that_does_not_fit_invents_nothing() {
        let mut received = headers(&[("a", "1"), (NAMES, "Host,A,A,Cookie")]);
        assert!(restore(&mut received));
        assert_eq!(received, headers(&[("A", "1")]));
    }
}
