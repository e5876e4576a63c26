//! Policies of access, compiled, and the decision (AUTHZ-013..AUTHZ-018).
//!
//! Rules are lists of conditions on one attribute each. A decision walks them once, without regular expressions, so that
//! it is bounded by the number of values and the length of what they are compared with (AUTHZ-102).

use std::net::IpAddr;
use std::sync::Arc;

use super::route;
use crate::wire;

/// The policies of a workload.
#[derive(Debug, Default)]
pub struct Authorization {
    pub(super) custom: Box<[Refusing]>,
    /// In the order of their ids (AUTHZ-024).
    pub(super) deny: Box<[Refusing]>,
    pub(super) allow: Box<[Policy]>,
    pub(super) audit: Box<[Policy]>,
    /// What a request is refused for that no ALLOW policy fits.
    pub(super) nothing_allows: Option<Arc<Denial>>,
}

/// A rule that refuses what fits it.
#[derive(Debug)]
pub(super) struct Refusing {
    pub(super) rule: Rule,
    pub(super) denial: Arc<Denial>,
}

/// A policy that grants or marks.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) rules: Box<[Rule]>,
    /// It grants: what cannot be told of a connection of TCP is not fulfilled (AUTHZ-079).
    pub(super) grants: bool,
}

/// Why a request or a connection is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    /// `response_code_details` (AUTHZ-024).
    pub details: Arc<str>,
    /// The policy; `None` where it is the lack of one.
    pub origin: Option<Arc<wire::Origin>>,
}

/// What access was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Granted {
    /// An AUDIT policy fits (AUTHZ-021).
    pub audited: bool,
}

#[derive(Debug)]
pub(super) struct Rule {
    /// One of them must fit, unless there is none.
    pub(super) from: Box<[Box<[Condition]>]>,
    /// One of them must fit, unless there is none.
    pub(super) to: Box<[Box<[Condition]>]>,
    /// All must hold.
    pub(super) when: Box<[Condition]>,
    /// A condition is on HTTP.
    pub(super) asks_http: bool,
    /// Nothing fits it.
    pub(super) never: bool,
}

#[derive(Debug)]
pub(super) struct Condition {
    pub(super) attribute: Attribute,
    pub(super) values: Box<[Value]>,
    pub(super) not_values: Box<[Value]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    ServerName,
    Host,
    Method,
    Path,
    /// Lower case.
    Header(Box<str>),
    /// Of a token. None is verified yet, so that these are absent.
    Token,
    /// Of a filter that never fills it.
    Metadata,
}

impl Attribute {
    /// It is known of requests alone (AUTHZ-078).
    pub(super) fn is_http(&self) -> bool {
        matches!(
            self,
            Self::Host | Self::Method | Self::Path | Self::Header(_) | Self::Token
        )
    }
}

#[derive(Debug)]
pub(super) enum Value {
    Text(Form),
    /// Text between `*`, each of which stands for a run of any characters.
    Glob(Box<[Box<[u8]>]>),
    Path(Template),
    Range(wire::Subnet),
    Port(u16),
    /// A host: its form, and whether the value names a port.
    Host(Form, bool),
    /// `<namespace>/<account>`.
    Account(Box<str>, Box<str>),
}

/// The forms of a value (AUTHZ-030).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    /// Present; and not empty, unless `true`.
    Present(bool),
}

impl Form {
    fn fits(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(value) => **value == *text,
            Self::Prefix(value) => text.starts_with(value),
            Self::Suffix(value) => text.ends_with(value),
            Self::Present(may_be_empty) => *may_be_empty || !text.is_empty(),
        }
    }

    fn fits_any_case(&self, text: &[u8]) -> bool {
        let same = |part: Option<&[u8]>, value: &[u8]| part.is_some_and(|part| part.eq_ignore_ascii_case(value));
        match self {
            Self::Exact(value) => same(Some(text), value),
            Self::Prefix(value) => same(text.get(..value.len()), value),
            Self::Suffix(value) => same(text.len().checked_sub(value.len()).map(|at| &text[at..]), value),
            Self::Present(may_be_empty) => *may_be_empty || !text.is_empty(),
        }
    }
}

/// A path with `{*}` and `{**}` (AUTHZ-048).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Text before each `{*}`, and before what [`Self::rest`] is.
    pub(super) literals: Box<[Box<[u8]>]>,
    /// Text behind `{**}`; `None` where the last literal ends the path.
    pub(super) rest: Option<Box<[u8]>>,
}

impl Template {
    fn fits(&self, path: &[u8]) -> bool {
        let mut left = path;
        for (n, literal) in self.literals.iter().enumerate() {
            if n > 0 {
                // `{*}`: a segment, which is not empty.
                let end = left.iter().position(|b| *b == b'/').unwrap_or(left.len());
                if end == 0 {
                    return false;
                }
                left = &left[end..];
            }
            let Some(tail) = left.strip_prefix(&**literal) else {
                return false;
            };
            left = tail;
        }
        match &self.rest {
            None => left.is_empty(),
            Some(suffix) => left.ends_with(suffix),
        }
    }
}

/// Text of which `parts` are what stands between its `*`.
fn fits_glob(parts: &[Box<[u8]>], text: &[u8]) -> bool {
    let Some((first, parts)) = parts.split_first() else {
        return false;
    };
    let Some((last, middle)) = parts.split_last() else {
        return **first == *text;
    };
    let Some(mut left) = text.strip_prefix(&**first) else {
        return false;
    };
    for part in middle {
        if part.is_empty() {
            continue;
        }
        match left.windows(part.len()).position(|window| *window == **part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// Who calls, and where: what is known of every connection.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'c> {
    /// SPIFFE id that mutual TLS verified.
    pub principal: Option<&'c str>,
    /// Mutual TLS verified the caller, whatever its certificate says (AUTHZ-118).
    pub is_verified: bool,
    /// Where packets come from.
    pub address: IpAddr,
    /// Where the connection went, before any redirection.
    pub destination: IpAddr,
    /// Port of the workload, or of the gateway's listener.
    pub port: u16,
    /// Name that TLS asked for.
    pub server_name: Option<&'c str>,
}

/// What a request asks for, as far as policies may ask.
pub trait Request {
    /// Method.
    fn method(&self) -> &[u8];
    /// Path without query, after normalisation.
    fn path(&self) -> &[u8];
    /// Authority as sent, and without the port that was dialled (BYD-064).
    fn authority(&self) -> (&[u8], &[u8]);
    /// Whether a field of this name, in lower case, has a value that fits.
    fn header(&self, name: &str, fits: &mut dyn FnMut(&[u8]) -> bool) -> bool;
    /// Where the request came from, if proxies before tell; else the peer (AUTHZ-059, AUTHZ-060).
    fn remote(&self, peer: IpAddr) -> IpAddr;
}

/// A caller and a request, with one of the paths that a decision is made with (BYD-063).
struct View<'v, R: ?Sized> {
    caller: Caller<'v>,
    request: Option<&'v R>,
    /// In place of the request's own.
    path: Option<&'v [u8]>,
}

impl Authorization {
    /// Some condition is on the name that TLS asks for: who decides has to know it.
    #[must_use]
    pub fn asks_server_name(&self) -> bool {
        let refusing = self.custom.iter().chain(&self.deny).map(|refusing| &refusing.rule);
        let others = self.allow.iter().chain(&self.audit).flat_map(|policy| &policy.rules);
        refusing.chain(others).any(|rule| {
            let entries = rule.from.iter().chain(&rule.to).flatten();
            let mut all = entries.chain(&rule.when);
            all.any(|condition| condition.attribute == Attribute::ServerName)
        })
    }

    /// Decides on a request (AUTHZ-013). `both_paths`: it is judged with repeated slashes and with merged ones (BYD-063).
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge<R: Request + ?Sized>(
        &self,
        caller: Caller<'_>,
        request: &R,
        both_paths: bool,
    ) -> Result<Granted, Arc<Denial>> {
        let path = request.path();
        if both_paths && path.windows(2).any(|pair| pair == b"//") {
            let mut merged = path.to_vec();
            merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
            let views = [path, &merged].map(|path| View {
                caller,
                request: Some(request),
                path: Some(path),
            });
            return self.decide(&views);
        }
        self.decide(&[View {
            caller,
            request: Some(request),
            path: None,
        }])
    }

    /// Decides on a connection of TCP (AUTHZ-078..AUTHZ-083).
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge_tcp(&self, caller: Caller<'_>) -> Result<Granted, Arc<Denial>> {
        self.decide(&[View::<dyn Request> {
            caller,
            request: None,
            path: None,
        }])
    }

    fn decide<R: Request + ?Sized>(&self, views: &[View<'_, R>]) -> Result<Granted, Arc<Denial>> {
        let refused = self.custom.iter().chain(&self.deny);
        for refusing in refused {
            if views.iter().any(|view| refusing.rule.fits(view, false)) {
                return Err(refusing.denial.clone());
            }
        }
        if let Some(denial) = &self.nothing_allows {
            let grants = |policy: &Policy| views.iter().all(|view| policy.fits(view));
            if !self.allow.iter().any(grants) {
                return Err(denial.clone());
            }
        }
        let audited = self
            .audit
            .iter()
            .any(|policy| views.iter().any(|view| policy.fits(view)));
        Ok(Granted { audited })
    }
}

impl Policy {
    fn fits<R: Request + ?Sized>(&self, view: &View<'_, R>) -> bool {
        self.rules.iter().any(|rule| rule.fits(view, self.grants))
    }
}

impl Rule {
    /// Of a connection of TCP, what only a request has is unknown: a rule that grants then does not fit, one that refuses
    /// is judged without (AUTHZ-079, AUTHZ-080).
    fn fits<R: Request + ?Sized>(&self, view: &View<'_, R>, grants: bool) -> bool {
        if self.never || (grants && self.asks_http && view.request.is_none()) {
            return false;
        }
        let fits = |entries: &[Box<[Condition]>]| {
            entries.is_empty() || entries.iter().any(|all| all.iter().all(|c| c.holds(view)))
        };
        fits(&self.from) && fits(&self.to) && self.when.iter().all(|condition| condition.holds(view))
    }
}

impl Condition {
    fn holds<R: Request + ?Sized>(&self, view: &View<'_, R>) -> bool {
        if view.request.is_none() && self.attribute.is_http() {
            return true;
        }
        (self.values.is_empty() || self.fits(&self.values, view)) && !self.fits(&self.not_values, view)
    }

    /// Whether one of the values fits; none fits what is absent (AUTHZ-033).
    fn fits<R: Request + ?Sized>(&self, values: &[Value], view: &View<'_, R>) -> bool {
        if values.is_empty() {
            return false;
        }
        let caller = &view.caller;
        let text = |text: Option<&[u8]>| text.is_some_and(|text| values.iter().any(|value| value.fits_text(text)));
        let address = |address: IpAddr| values.iter().any(|value| value.fits_address(address));
        let identity = || caller.principal.and_then(|id| id.strip_prefix("spiffe://"));
        let account = || identity().and_then(account);
        match (&self.attribute, view.request) {
            (Attribute::Principal, _) => {
                let any = |value: &Value| matches!(value, Value::Text(Form::Present(_)));
                text(identity().map(str::as_bytes)) || (caller.is_verified && values.iter().any(any))
            }
            (Attribute::Namespace, _) => text(account().map(|(_, namespace, _)| namespace.as_bytes())),
            (Attribute::TrustDomain, _) => text(identity().and_then(|id| id.split('/').next()).map(str::as_bytes)),
            (Attribute::ServiceAccount, _) => account().is_some_and(|(_, namespace, name)| {
                let is_it = |value: &Value| matches!(value, Value::Account(n, a) if **n == *namespace && **a == *name);
                values.iter().any(is_it)
            }),
            (Attribute::SourceIp, _) => address(caller.address),
            (Attribute::RemoteIp, None) => address(caller.address),
            (Attribute::RemoteIp, Some(request)) => address(request.remote(caller.address)),
            (Attribute::DestinationIp, _) => address(caller.destination),
            (Attribute::DestinationPort, _) => values
                .iter()
                .any(|value| matches!(value, Value::Port(port) if *port == caller.port)),
            (Attribute::ServerName, _) => text(caller.server_name.map(str::as_bytes)),
            (Attribute::Method, Some(request)) => text(Some(request.method())),
            (Attribute::Path, Some(request)) => text(Some(view.path.unwrap_or_else(|| request.path()))),
            (Attribute::Header(name), Some(request)) => {
                request.header(name, &mut |value| values.iter().any(|wanted| wanted.fits_text(value)))
            }
            (Attribute::Host, Some(request)) => {
                let (as_sent, bare) = request.authority();
                let fits = |value: &Value| match value {
                    Value::Host(form, names_port) => {
                        form.fits_any_case(bare) || (*names_port && form.fits_any_case(as_sent))
                    }
                    _ => false,
                };
                values.iter().any(fits)
            }
            (Attribute::Token | Attribute::Metadata, _) | (_, None) => false,
        }
    }
}

impl Value {
    fn fits_text(&self, text: &[u8]) -> bool {
        match self {
            Self::Text(form) => form.fits(text),
            Self::Glob(parts) => fits_glob(parts, text),
            Self::Path(template) => template.fits(text),
            Self::Range(_) | Self::Port(_) | Self::Host(..) | Self::Account(..) => false,
        }
    }

    fn fits_address(&self, address: IpAddr) -> bool {
        matches!(self, Self::Range(range) if route::in_any(std::slice::from_ref(range), address.to_canonical()))
    }
}

/// Trust domain, namespace and service account of an identity without its scheme; nothing but these five parts
/// (AUTHZ-042).
fn account(identity: &str) -> Option<(&str, &str, &str)> {
    let mut parts = identity.split('/');
    let domain = parts.next()?;
    let ("ns", namespace, "sa", account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?) else {
        return None;
    };
    parts.next().is_none().then_some((domain, namespace, account))
}

#[cfg(test)]
mod tests;
