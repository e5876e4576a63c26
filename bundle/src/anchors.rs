//! The trust bundle, file `root-cert.pem`: PEM certificates, each with the trust domains whose peers it verifies
//! (ID-144).
//!
//! A line `# trust domains: a.example b.example` in front of a block names them, so that anchor and binding are one
//! file and change in one swap; whoever knows PEM alone reads past it. `@mesh` stands for the mesh's own trust domain
//! with its aliases and is what a block without a line has; `*` stands for every domain that the mesh accepts.

use std::collections::BTreeSet;
use std::fmt::Write;

/// The mesh's own trust domain and its aliases. No trust domain holds an `@` (ID-003).
pub const MESH: &str = "@mesh";
/// Every domain that the mesh accepts.
pub const ANY: &str = "*";

/// A certificate and whom it verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Trust domains, [`MESH`] and [`ANY`].
    pub domains: BTreeSet<String>,
    /// One block of PEM, with its last line feed.
    pub pem: String,
}

/// Reads a trust bundle. What is between the blocks and no binding is passed over, as is a block without an end.
#[must_use]
pub fn parse(text: &str) -> Vec<Anchor> {
    let mut anchors = Vec::new();
    let mut domains = BTreeSet::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        let line = line.trim_end();
        if line == BEGIN {
            block = Some(String::new());
        }
        if let Some(pem) = &mut block {
            pem.push_str(line);
            pem.push('\n');
        } else if let Some(names) = line.strip_prefix(BINDING) {
            domains = names.split_whitespace().map(str::to_owned).collect();
        }
        if line == END
            && let Some(pem) = block.take()
        {
            let mut domains = std::mem::take(&mut domains);
            if domains.is_empty() {
                domains.insert(MESH.to_owned());
            }
            anchors.push(Anchor { domains, pem });
        }
    }
    anchors
}

/// Writes a trust bundle: [`parse`] gives the same anchors back.
#[must_use]
pub fn write(anchors: &[Anchor]) -> String {
    let mut text = String::new();
    for Anchor { domains, pem } in anchors {
        if domains.iter().ne([MESH]) {
            let names: Vec<&str> = domains.iter().map(String::as_str).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{BINDING} {}", names.join(" "));
        }
        text.push_str(pem);
    }
    text
}

const BINDING: &str = "# trust domains:";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(domains: &[&str], content: &str) -> Anchor {
        Anchor {
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            pem: format!("{BEGIN}\n{content}\n{END}\n"),
        }
    }

    #[test]
    fn a_binding_is_of_the_block_behind_it_alone() {
        let anchors = [
            anchor(&[MESH], "AAAA"),
            anchor(&["a.example", "b.example"], "BBBB"),
            anchor(&[MESH], "CCCC"),
            anchor(&[ANY, MESH], "DDDD"),
        ];
        let text = write(&anchors);
        assert_eq!(parse(&text), anchors);
        assert!(text.starts_with(BEGIN), "the plain form stays plain: {text}");
        let foreign = format!("subject=CN = x\r\n{}", text.replace('\n', "\r\n"));
        assert_eq!(parse(&foreign), anchors, "other text and line ends change nothing");
        assert_eq!(parse(&format!("{BEGIN}\nAAAA\n")), [], "a block without an end");
    }
}
