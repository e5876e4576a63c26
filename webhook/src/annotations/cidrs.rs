//! Lists of address ranges (INJ-155).

use std::net::IpAddr;

/// `*`, or a list that may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selected {
    /// Every address.
    All,
    /// These ranges.
    Only(Vec<String>),
}

impl Selected {
    /// Parses `*` or a comma list of CIDRs; empty text selects none.
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
            Self::Only(ranges) => ranges.join(","),
        }
    }
}

/// Parses a comma list of CIDRs, IPv4 and IPv6 mixed. Bits behind the prefix length are cleared.
pub(crate) fn list(text: &str) -> Result<Vec<String>, String> {
    let mut ranges = Vec::new();
    for element in super::elements(text) {
        let range = network(element)
            .ok_or_else(|| format!("{element:?} is not a CIDR; must be address/length, for example 10.96.0.0/12"))?;
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

fn network(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u32 = length.parse().ok().filter(|_| digits)?;
    let network = match address.parse::<IpAddr>().ok()? {
        IpAddr::V4(address) => {
            let keep = 32_u32.checked_sub(length)?;
            let mask = u32::MAX.checked_shl(keep).unwrap_or(0);
            IpAddr::from((u32::from(address) & mask).to_be_bytes())
        }
        IpAddr::V6(address) => {
            let keep = 128_u32.checked_sub(length)?;
            let mask = u128::MAX.checked_shl(keep).unwrap_or(0);
            IpAddr::from((u128::from(address) & mask).to_be_bytes())
        }
    };
    Some(format!("{network}/{length}"))
}
