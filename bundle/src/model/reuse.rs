//! What one configuration takes over from the one before it.

use std::cell::OnceCell;
use std::collections::HashMap;

use crate::item::Digest;

/// What was made of one item of a bundle.
#[derive(Debug, Clone)]
pub(super) struct Part<T> {
    /// Of the item's text, where it is known.
    pub(super) digest: Option<Digest>,
    pub(super) made: T,
}

/// Finds parts of an earlier configuration by the text of their items.
pub(super) struct Known<'p, T> {
    parts: &'p [Part<T>],
    /// Where the next one is, if nothing changed.
    next: usize,
    places: OnceCell<HashMap<Digest, usize>>,
}

impl<'p, T> Known<'p, T> {
    pub(super) fn new(parts: &'p [Part<T>]) -> Self {
        Self {
            parts,
            next: 0,
            places: OnceCell::new(),
        }
    }

    /// The place of the part that was made of this text. Quick in the order of the earlier configuration.
    pub(super) fn find(&mut self, digest: Option<Digest>) -> Option<usize> {
        let digest = digest?;
        let is_next = self
            .parts
            .get(self.next)
            .is_some_and(|part| part.digest == Some(digest));
        let place = if is_next {
            self.next
        } else {
            let places = self.places.get_or_init(|| {
                let parts = self.parts.iter().enumerate();
                parts.filter_map(|(place, part)| Some((part.digest?, place))).collect()
            });
            *places.get(&digest)?
        };
        self.next = place + 1;
        Some(place)
    }
}

#[cfg(test)]
mod tests;
