//! Values of header fields with variables, and substitutions of rewrites.

use super::super::{Piece, Template};

/// Parses a header value with `%VARIABLES%`; `%%` is a percent sign.
pub(in crate::model) fn template(text: &str) -> Result<Template, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let (variable, after) = variable(rest)?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(std::mem::take(&mut literal)));
        }
        pieces.push(variable);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(Template { pieces })
}

/// Parses `NAME(argument):limit%` and gives what follows.
fn variable(text: &str) -> Result<(Piece, &str), String> {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .ok_or("has a `%` without its partner; a percent sign is written `%%`")?;
    let name = text[..end].to_owned();
    let mut rest = &text[end..];
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let close = inner.find(')').ok_or("has an open parenthesis")?;
        argument = Some(inner[..close].to_owned());
        rest = &inner[close + 1..];
    }
    let mut limit = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find('%').ok_or("has a `%` without its partner")?;
        limit = Some(digits[..end].parse().map_err(|_| "has a limit that is no number")?);
        rest = &digits[end..];
    }
    let rest = rest
        .strip_prefix('%')
        .ok_or("has a `%` without its partner; a percent sign is written `%%`")?;
    if name.is_empty() {
        return Err("has a variable without name".into());
    }
    Ok((Piece::Variable { name, argument, limit }, rest))
}

/// Translates `\0`..`\9` into the notation of the `regex` crate.
pub(super) fn replacement(substitution: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(substitution.len());
    let mut bytes = substitution.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(digit)) if digit.is_ascii_digit() => {
                out.extend_from_slice(&[b'$', b'{', *digit, b'}']);
                bytes.next();
            }
            (b'\\', Some(b'\\')) => {
                out.push(b'\\');
                bytes.next();
            }
            (b'$', _) => out.extend_from_slice(b"$$"),
            (byte, _) => out.push(byte),
        }
    }
    out
}
