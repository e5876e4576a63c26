//! Items of the long lists of a bundle. One that was the same in an earlier configuration is known by its text before it
//! is read, so that what was made of it need not be made again.

use std::borrow::Cow;

use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::value::RawValue;

use crate::pace;
use crate::wire::{Bundle, Host, RouteTable};

/// SHA-256 of an item's text. Users write what is in it, so that a hash which they can make collide would let one of them
/// keep another's rules in force. An item of JSON begins with a brace and one of YAML with a dash: none is read as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

/// A host or a route table of a bundle.
#[derive(Debug)]
pub(crate) enum Item<'t, T> {
    /// As it was read.
    Value(T),
    /// As it is written.
    Text {
        text: &'t str,
        digest: Digest,
        read: fn(&str) -> Result<T, Unreadable>,
    },
}

/// A bundle whose long lists are not read.
pub(crate) type Unread<'t> = Bundle<Item<'t, Host>, Item<'t, RouteTable>>;

/// An item that is not of the expected form. Where it is wrong, only the text as a whole tells.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl<'t, T: Clone> Item<'t, T> {
    fn new(text: &'t str, read: fn(&str) -> Result<T, Unreadable>) -> Self {
        let digest = Digest(pace::sha256(text.as_bytes()));
        Self::Text { text, digest, read }
    }

    /// Tells the item from every other text; `None` where the text is not known.
    pub(crate) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Value(_) => None,
            Self::Text { digest, .. } => Some(*digest),
        }
    }

    /// The item.
    pub(crate) fn read(&self) -> Result<Cow<'_, T>, Unreadable> {
        match self {
            Self::Value(value) => Ok(Cow::Borrowed(value)),
            Self::Text { text, read, .. } => read(text).map(Cow::Owned),
        }
    }
}

/// A bundle in JSON; `None` where it is not of the expected form.
pub(crate) fn json(bytes: &[u8]) -> Option<Unread<'_>> {
    fn read<T: DeserializeOwned>(text: &str) -> Result<T, Unreadable> {
        serde_json::from_str(text).map_err(|_| Unreadable)
    }
    let bundle: Bundle<Text<'_>, Text<'_>> = serde_json::from_slice(bytes).ok()?;
    Some(bundle.map(
        |host| Item::new(host.0.get(), read),
        |table| Item::new(table.0.get(), read),
    ))
}

/// An item that is passed over, which is a step.
struct Text<'t>(&'t RawValue);

impl<'t> Deserialize<'t> for Text<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        pace::breathe();
        Deserialize::deserialize(deserializer).map(Self)
    }
}

/// A bundle in YAML as it is packed: the dashes of the long lists and all keys beside them are the only things that begin a
/// line. `None` where it is of another form, valid or not.
pub(crate) fn yaml(text: &str) -> Option<Unread<'_>> {
    fn read<T: DeserializeOwned>(text: &str) -> Result<T, Unreadable> {
        serde_yaml::from_str(text)
            .map(|[item]: [T; 1]| item)
            .map_err(|_| Unreadable)
    }
    let mut rest = String::new();
    let mut lists = [("hosts:\n", None), ("routes:\n", None)];
    let mut lines = Lines { text, at: 0 };
    while let Some(line) = lines.next() {
        let list = lists.iter_mut().find(|(key, _)| *key == line);
        match (list, line.as_bytes()[0]) {
            (Some((_, items)), _) if items.is_none() => *items = Some(lines.items()?),
            // The key of a list in another form.
            (None, _) if line.starts_with("hosts") || line.starts_with("routes") => return None,
            (None, b' ' | b'\n' | b'a'..=b'z') => rest.push_str(line),
            (None, _) if line.starts_with("- ") => rest.push_str(line),
            _ => return None,
        }
    }
    let rest: Bundle = serde_yaml::from_str(&rest).ok()?;
    let [(_, hosts), (_, routes)] = lists;
    let Bundle {
        workload,
        mesh,
        inbound,
        authorization,
        domains,
        listeners,
        ..
    } = rest;
    Some(Bundle {
        workload,
        mesh,
        inbound,
        authorization,
        hosts: hosts.into_iter().flatten().map(|host| Item::new(host, read)).collect(),
        domains,
        routes: routes
            .into_iter()
            .flatten()
            .map(|table| Item::new(table, read))
            .collect(),
        listeners,
    })
}

struct Lines<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lines<'t> {
    /// The next line, with its end.
    fn peek(&self) -> Option<&'t str> {
        let rest = &self.text[self.at..];
        rest.split_inclusive('\n').next()
    }

    fn next(&mut self) -> Option<&'t str> {
        let line = self.peek()?;
        self.at += line.len();
        Some(line)
    }

    /// The items of a list, up to the next key.
    fn items(&mut self) -> Option<Vec<&'t str>> {
        let mut items = Vec::new();
        let mut begin = self.at;
        while let Some(line) = self.peek() {
            let is_first = self.at == begin;
            match line.as_bytes()[0] {
                b'-' if line.starts_with("- ") => {
                    if !is_first {
                        items.push(&self.text[begin..self.at]);
                        begin = self.at;
                    }
                }
                b' ' | b'\n' if !is_first => {}
                b'a'..=b'z' => break,
                _ => return None,
            }
            self.at += line.len();
        }
        let last = &self.text[begin..self.at];
        items.push(last);
        (!last.is_empty()).then_some(items)
    }
}

#[cfg(test)]
mod tests;
