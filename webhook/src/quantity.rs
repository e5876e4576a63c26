//! Kubernetes quantities (`500m`, `1.5Gi`, `1e3`), compared exactly.

/// A quantity in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

impl Quantity {
    /// Parses by the grammar of `k8s.io/apimachinery` resource.Quantity; `None` is what that refuses, and values of
    /// more than 2^96 billionths, which no node has.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 24 {
            return None;
        }
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let (base, exponent): (i128, i32) = match suffix {
            "" => (10, 0),
            "n" => (10, -9),
            "u" => (10, -6),
            "m" => (10, -3),
            "k" => (10, 3),
            "M" => (10, 6),
            "G" => (10, 9),
            "T" => (10, 12),
            "P" => (10, 15),
            "E" => (10, 18),
            "Ki" => (1024, 1),
            "Mi" => (1024, 2),
            "Gi" => (1024, 3),
            "Ti" => (1024, 4),
            "Pi" => (1024, 5),
            "Ei" => (1024, 6),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let exponent: i32 = exponent.parse().ok()?;
                if !(-18..=18).contains(&exponent) {
                    return None;
                }
                (10, exponent)
            }
        };
        // digits / 10^len(fraction) * base^exponent, in billionths: multiply first, then divide.
        let decimal = 9 - i32::try_from(fraction.len()).ok()? + if base == 10 { exponent } else { 0 };
        let binary = if base == 1024 {
            1024_i128.checked_pow(u32::try_from(exponent).ok()?)?
        } else {
            1
        };
        let scaled = digits.checked_mul(binary)?;
        let value = if decimal >= 0 {
            scaled.checked_mul(10_i128.checked_pow(decimal.unsigned_abs())?)?
        } else {
            scaled / 10_i128.checked_pow(decimal.unsigned_abs())?
        };
        (value < 1 << 96).then_some(Self(if negative { -value } else { value }))
    }

    /// Whether it is below zero.
    pub(crate) fn is_negative(self) -> bool {
        self.0 < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_scale() {
        let same = [
            ("1", "1000m"),
            ("1Ki", "1024"),
            ("1.5Gi", "1536Mi"),
            ("1e3", "1k"),
            ("0.5", "500m"),
            (".5", "5e-1"),
        ];
        for (left, right) in same {
            assert_eq!(
                Quantity::parse(left).unwrap(),
                Quantity::parse(right).unwrap(),
                "{left} {right}"
            );
        }
        assert!(Quantity::parse("2").unwrap() > Quantity::parse("1999m").unwrap());
        assert!(Quantity::parse("-1").unwrap().is_negative());
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "-", ".", "1.2.3", "1 ", "one", "1kk", "1mi", "1e", "1e99", "0x10", "1e1e1", "９",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }
}
