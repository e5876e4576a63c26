//! Items of the long lists of a bundle. One that was the same in an earlier configuration is known by its text before it
//! is read, so that what was made of it need not be made again.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

/// SHA-256 of an item's text. Users write what is in it, so that a hash which they can make collide would let one of them
/// keep another's rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

/// A host or a route table of a bundle.
#[derive(Debug)]
pub(crate) enum Item<'t, T> {
    /// As it was read.
    Value(T),
    /// As it is written, in JSON.
    Text { text: &'t str, digest: Digest },
}

/// An item that is not of the expected form. Where it is wrong, only the text as a whole tells.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl<'t, T: Clone + DeserializeOwned> Item<'t, T> {
    /// An item that is read when it is asked for.
    pub(crate) fn json(text: &'t str) -> Self {
        let digest = Digest::of(text);
        Self::Text { text, digest }
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
            Self::Text { text, .. } => serde_json::from_str(text).map(Cow::Owned).map_err(|_| Unreadable),
        }
    }
}
