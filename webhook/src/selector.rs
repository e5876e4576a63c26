//! Label selectors (INJ-016).

use std::collections::BTreeMap;

use serde::Deserialize;

/// A selector over labels, as in `metav1.LabelSelector`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements, all of which must hold.
    #[serde(default)]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label's name.
    pub key: String,
    /// How its value relates to `values`.
    pub operator: Operator,
    /// Values for `In` and `NotIn`.
    #[serde(default)]
    pub values: Vec<String>,
}

/// Operators of requirements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether the labels fit. An empty selector fits nothing here (INJ-016).
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let empty = self.match_labels.is_empty() && self.match_expressions.is_empty();
        let by_labels = || {
            self.match_labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        };
        let by_expressions = || {
            self.match_expressions
                .iter()
                .all(|requirement| requirement.matches(labels))
        };
        !empty && by_labels() && by_expressions()
    }

    /// Whether an API server would accept it: `In` and `NotIn` need values, the others have none.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.match_expressions
            .iter()
            .all(|requirement| match requirement.operator {
                Operator::In | Operator::NotIn => !requirement.values.is_empty(),
                Operator::Exists | Operator::DoesNotExist => requirement.values.is_empty(),
            })
    }
}

impl Requirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let listed = || value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
