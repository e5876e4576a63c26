//! Conditions on requests, compiled.

use regex::bytes::Regex;

/// A comparison with bytes.
#[derive(Debug, Clone)]
pub enum Text {
    /// Equal.
    Exact(Box<[u8]>),
    /// Begins with.
    Prefix(Box<[u8]>),
    /// Fits as a whole; anchored when it was compiled.
    Regex(Regex),
}

impl Text {
    /// Whether a value fits.
    #[must_use]
    pub fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => **text == *value,
            Self::Prefix(text) => value.starts_with(text),
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    /// As [`Self::fits`], ignoring the case of ASCII letters; expressions stay as written (VS-031).
    #[must_use]
    pub fn fits_any_case(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.eq_ignore_ascii_case(value),
            Self::Prefix(text) => value
                .get(..text.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(text)),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Conditions that must all hold (VS-021).
#[derive(Debug, Clone, Default)]
pub struct Match {
    /// Name for the access log, combined with the rule's (VS-025).
    pub log_name: Option<std::sync::Arc<str>>,
    /// Path without query.
    pub path: Option<PathTest>,
    /// `http` or `https`.
    pub scheme: Option<Text>,
    /// Method.
    pub method: Option<Text>,
    /// Authority.
    pub authority: Option<AuthorityTest>,
    /// Header fields.
    pub headers: Vec<HeaderTest>,
    /// Query parameters.
    pub query: Vec<QueryTest>,
}

/// A condition on the path.
#[derive(Debug, Clone)]
pub struct PathTest {
    /// Comparison.
    pub text: Text,
    /// Exact and prefix ignore case.
    pub any_case: bool,
}

impl PathTest {
    /// Whether a path without query fits.
    #[must_use]
    pub fn fits(&self, path: &[u8]) -> bool {
        if self.any_case {
            self.text.fits_any_case(path)
        } else {
            self.text.fits(path)
        }
    }

    /// Length of the part of the path that a rewrite replaces: the prefix, or all of it (VS-068, VS-069).
    #[must_use]
    pub fn matched(&self, path: &[u8]) -> usize {
        match &self.text {
            Text::Prefix(text) => text.len().min(path.len()),
            Text::Exact(_) | Text::Regex(_) => path.len(),
        }
    }
}

/// A condition on the authority. A port that equals the one dialled is left out, unless the value names one (BYD-064).
#[derive(Debug, Clone)]
pub struct AuthorityTest {
    /// Comparison.
    pub text: Text,
    /// The value itself names a port.
    pub names_port: bool,
}

impl AuthorityTest {
    /// Whether an authority fits. `as_sent` may have a port, `without_dialled` lacks it where it equals the dialled.
    #[must_use]
    pub fn fits(&self, as_sent: &[u8], without_dialled: &[u8]) -> bool {
        self.text.fits(without_dialled) || (self.names_port && self.text.fits(as_sent))
    }
}

/// The field that a condition reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderName {
    /// A header field, lower case.
    Field(Box<str>),
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`, `host`.
    Authority,
    /// `:path`, with its query.
    Path,
}

/// A condition on a header field.
#[derive(Debug, Clone)]
pub struct HeaderTest {
    /// Field.
    pub name: HeaderName,
    /// Comparison; `None`: present.
    pub value: Option<Text>,
    /// The condition must not hold.
    pub invert: bool,
}

impl HeaderTest {
    /// Whether the condition holds for the field's values (VS-035..VS-038).
    #[must_use]
    pub fn holds<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut values = values.peekable();
        let fits = match &self.value {
            None => values.peek().is_some(),
            // An absent field is compared as an empty value by an inverted condition (VS-038).
            Some(text) if self.invert && values.peek().is_none() => text.fits(b""),
            Some(text) => values.any(|value| text.fits(value)),
        };
        fits != self.invert
    }
}

/// A condition on a query parameter.
#[derive(Debug, Clone)]
pub struct QueryTest {
    /// Name.
    pub name: Box<[u8]>,
    /// Comparison; `None`: present.
    pub value: Option<Text>,
}

impl QueryTest {
    /// Whether the condition holds for a query, as sent, without `?` (VS-039).
    #[must_use]
    pub fn holds(&self, query: Option<&[u8]>) -> bool {
        let first = query.and_then(|query| first_value(query, &self.name));
        match (&self.value, first) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(text), Some(value)) => text.fits(value),
        }
    }
}

/// First value of a parameter of a query, as sent; empty where it has no `=`.
#[must_use]
pub fn first_value<'q>(query: &'q [u8], name: &[u8]) -> Option<&'q [u8]> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = match pair.iter().position(|b| *b == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        (key == name).then_some(value)
    })
}
