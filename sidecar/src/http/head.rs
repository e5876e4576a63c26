//! Heads of requests and responses. Names keep their case, fields their order (BYD-020).

use bytes::Bytes;

/// HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As logs show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A header field as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Name, in the case of the sender.
    pub name: Bytes,
    /// Value without surrounding white space.
    pub value: Bytes,
}

/// Header fields in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<Field>);

impl Headers {
    /// Room for a number of fields.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All fields.
    pub fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.0.iter()
    }

    /// First value of a name, whatever its case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.all(name).next()
    }

    /// Whether a name is present.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Values of a name, whatever its case.
    pub fn all<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h Bytes> {
        self.0
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| &field.value)
    }

    /// Appends a field.
    pub fn push(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push(Field {
            name: name.into(),
            value: value.into(),
        });
    }

    /// Puts a field before all others.
    pub fn push_front(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        let field = Field {
            name: name.into(),
            value: value.into(),
        };
        self.0.insert(0, field);
    }

    /// Replaces all fields of a name by one, in the place of the first, else at the end.
    pub fn set(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter().position(|field| field.name.eq_ignore_ascii_case(&name)) {
            None => self.0.push(Field { name, value }),
            Some(first) => {
                let mut position = 0;
                self.0.retain(|field| {
                    let keep = position <= first || !field.name.eq_ignore_ascii_case(&name);
                    position += 1;
                    keep
                });
                self.0[first].value = value;
            }
        }
    }

    /// Removes all fields of a name; gives the first one's value.
    pub fn remove(&mut self, name: &str) -> Option<Bytes> {
        let value = self.get(name)?.clone();
        self.0.retain(|field| !field.name.eq_ignore_ascii_case(name.as_bytes()));
        Some(value)
    }

    /// Removes all fields of a name; gives their values joined by commas.
    pub fn remove_all(&mut self, name: &str) -> Option<Bytes> {
        let mut joined: Option<Bytes> = None;
        self.0.retain(|field| {
            let goes = field.name.eq_ignore_ascii_case(name.as_bytes());
            if goes {
                joined = Some(match &joined {
                    None => field.value.clone(),
                    Some(before) => [&before[..], b",", &field.value[..]].concat().into(),
                });
            }
            !goes
        });
        joined
    }

    /// Keeps the fields for which `keep` holds.
    pub fn retain(&mut self, keep: impl FnMut(&Field) -> bool) {
        self.0.retain(keep);
    }

    /// Bytes of the fields as HTTP/1.1 writes them.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.0
            .iter()
            .map(|field| field.name.len() + field.value.len() + 4)
            .sum()
    }

    /// Whether a comma-separated field holds a token, whatever its case.
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            value
                .split(|b| *b == b',')
                .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }
}

impl<'h> IntoIterator for &'h Headers {
    type Item = &'h Field;
    type IntoIter = std::slice::Iter<'h, Field>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Head of a request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Version on the connection that it came on.
    pub version: Version,
    /// Method.
    pub method: Bytes,
    /// Scheme that HTTP/2 names; empty over HTTP/1.
    pub scheme: Bytes,
    /// `Host` or `:authority`; empty when there is none.
    pub authority: Bytes,
    /// Path with query, or `*`.
    pub path: Bytes,
    /// Header fields. Over HTTP/1 `Host` is one of them.
    pub headers: Headers,
    /// An HTTP upgrade that is passed on (SM-035).
    pub upgrade: bool,
}

impl RequestHead {
    /// Path without query.
    #[must_use]
    pub fn path_only(&self) -> &[u8] {
        let end = self.path.iter().position(|b| *b == b'?').unwrap_or(self.path.len());
        &self.path[..end]
    }

    /// Query without `?`.
    #[must_use]
    pub fn query(&self) -> Option<&[u8]> {
        let at = self.path.iter().position(|b| *b == b'?')?;
        Some(&self.path[at + 1..])
    }

    /// Whether it is a gRPC request (MET-026).
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.headers.get("content-type").is_some_and(|value| {
            value
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'+' || rest[0] == b';')
        })
    }
}

/// Head of a response.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Version on the connection that it came on.
    pub version: Version,
    /// Status.
    pub status: u16,
    /// Reason phrase as received; empty over HTTP/2.
    pub reason: Bytes,
    /// Header fields.
    pub headers: Headers,
}

impl ResponseHead {
    /// A response of the proxy itself.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self {
            version: Version::Http11,
            status,
            reason: Bytes::new(),
            headers: Headers::default(),
        }
    }
}

impl Headers {
    /// Appends a field.
    pub fn push_field(&mut self, field: Field) {
        self.0.push(field);
    }
}
