//! What the regular expressions of proxies offer beyond RE2, or read in another way than RE2 does (SM-123).

use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassSetBinaryOp, ClassSetItem, Flag, Flags, FlagsItemKind, GroupKind, HexLiteralKind,
    LiteralKind, RepetitionKind, RepetitionRange, Visitor,
};

/// Why an expression is none of RE2, or would mean something else there; `None` where it means the same, and for text
/// that is no expression at all.
#[must_use]
pub fn problem(expression: &str) -> Option<&'static str> {
    let ast = ast::parse::Parser::new().parse(expression).ok()?;
    ast::visit(&ast, Difference).err()
}

/// Stops at the first difference.
struct Difference;

impl Visitor for Difference {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(set) => flags(set),
                GroupKind::CaptureIndex(_) | GroupKind::CaptureName { .. } => Ok(()),
            },
            Ast::Repetition(repetition) => match &repetition.op.kind {
                RepetitionKind::Range(range) if most(range) > 1000 => Err("may repeat at most 1000 times"),
                _ => Ok(()),
            },
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("may have \\b and \\B alone for the boundary of a word"),
            },
            Ast::Literal(one) => literal(&one.kind),
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ClassSetItem::Bracketed(_) => Err("has a class inside of a class; write the inner bracket as \\["),
            ClassSetItem::Literal(one) => literal(&one.kind),
            ClassSetItem::Range(range) => literal(&range.start.kind).and(literal(&range.end.kind)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err("has &&, -- or ~~ inside of a class, which RE2 takes as characters; list the characters once")
    }
}

fn flags(flags: &Flags) -> Result<(), &'static str> {
    let is_other = |item: &FlagsItemKind| {
        matches!(
            item,
            FlagsItemKind::Flag(Flag::IgnoreWhitespace | Flag::CRLF | Flag::Unicode)
        )
    };
    if flags.items.iter().any(|item| is_other(&item.kind)) {
        return Err("may have the flags i, m, s and U alone");
    }
    Ok(())
}

fn literal(kind: &LiteralKind) -> Result<(), &'static str> {
    match kind {
        LiteralKind::HexFixed(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong)
        | LiteralKind::HexBrace(HexLiteralKind::UnicodeShort | HexLiteralKind::UnicodeLong) => {
            Err("must write characters by number as \\x{...}")
        }
        _ => Ok(()),
    }
}

fn most(range: &RepetitionRange) -> u32 {
    match *range {
        RepetitionRange::Exactly(n) | RepetitionRange::AtLeast(n) | RepetitionRange::Bounded(_, n) => n,
    }
}

#[cfg(test)]
mod tests {
    use super::problem;

    // spec: SM-123
    #[test]
    fn what_re2_lacks_or_reads_otherwise_is_named() {
        for good in [
            "a",
            "(?i)a(?s:.)*?",
            "(?P<n>a)|(?<m>b)",
            "[[:alpha:]\\d_.-]{2,1000}\\b$",
            "\\x{e9}\\pL",
            "[&-]",
        ] {
            assert_eq!(problem(good), None, "{good}");
        }
        for bad in [
            "(?x)a b",
            "(?-u:a)",
            "(?R)a",
            "a{1001}",
            "a{2,2000}",
            "\\<a",
            "\\b{start}a",
            "[a&&b]",
            "[a--b]",
            "[a[b]]",
            "\\u0041",
            "[\\U00000041]",
        ] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }
}
