//! base64 as it arrives: cut anywhere, in pieces that are padded each on their own.

use data_encoding::BASE64;

/// What is wrong with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no base64")]
pub struct Invalid;

/// Decodes a text piece by piece; holds at most three characters of it.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a group of four.
    held: Vec<u8>,
}

impl Decoder {
    /// The bytes that the next characters make complete.
    ///
    /// # Errors
    /// [`Invalid`], after which nothing more of the text can be read.
    pub fn decode(&mut self, mut text: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut out = Vec::new();
        if !self.held.is_empty() {
            let missing = (GROUP - self.held.len()).min(text.len());
            self.held.extend_from_slice(&text[..missing]);
            text = &text[missing..];
            if self.held.len() < GROUP {
                return Ok(out);
            }
            out = BASE64.decode(&self.held).map_err(|_| Invalid)?;
            self.held.clear();
        }
        let (groups, rest) = text.split_at(text.len() - text.len() % GROUP);
        // This takes pieces that are padded each on their own.
        let mut decoded = BASE64.decode(groups).map_err(|_| Invalid)?;
        self.held.extend_from_slice(rest);
        if out.is_empty() {
            return Ok(decoded);
        }
        out.append(&mut decoded);
        Ok(out)
    }

    /// Whether the text may end here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.held.is_empty()
    }
}

/// Characters that stand for up to three bytes.
const GROUP: usize = 4;
