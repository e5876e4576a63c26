//! Lists of ports (INJ-153, INJ-154, INJ-169).

/// `*`, or a list that may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selected {
    /// Every port.
    All,
    /// These ports.
    Only(Vec<u16>),
}

impl Selected {
    /// Parses `*` or a comma list of ports; empty text selects none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::All);
        }
        list(text).map(Self::Only)
    }

    /// The same in the syntax of the annotation, normalised.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::All => "*".to_owned(),
            Self::Only(ports) => join(ports),
        }
    }
}

/// Parses a comma list of ports: blanks are trimmed, empty elements skipped, duplicates kept once.
pub(crate) fn list(text: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for element in super::elements(text) {
        let port =
            parse(element).ok_or_else(|| format!("{element:?} is not a port; must be a number from 1 to 65535"))?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

/// Parses one port, 1 to 65535, digits alone.
pub(crate) fn parse(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

/// A comma list.
pub(crate) fn join(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}
