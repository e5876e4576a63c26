//! The JSON patch between two pods (INJ-124).

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value};

use crate::pod::name;

/// What leads from `left` to `right`. Lists of named things keep the elements that both have, so that a container
/// that is put in front of another is one addition.
pub(crate) fn diff(left: &Value, right: &Value) -> Patch {
    let mut operations = Vec::new();
    values(left, right, &mut PointerBuf::new(), &mut operations);
    Patch(operations)
}

fn values(left: &Value, right: &Value, at: &mut PointerBuf, operations: &mut Vec<PatchOperation>) {
    match (left, right) {
        _ if left == right => {}
        (Value::Object(left), Value::Object(right)) => objects(left, right, at, operations),
        (Value::Array(left), Value::Array(right)) if lists(left, right, at, operations) => {}
        _ => operations.push(PatchOperation::Replace(ReplaceOperation {
            path: at.clone(),
            value: right.clone(),
        })),
    }
}

fn objects(
    left: &Map<String, Value>,
    right: &Map<String, Value>,
    at: &mut PointerBuf,
    operations: &mut Vec<PatchOperation>,
) {
    for key in left.keys().filter(|key| !right.contains_key(*key)) {
        at.push_back(key);
        operations.push(PatchOperation::Remove(RemoveOperation { path: at.clone() }));
        at.pop_back();
    }
    for (key, value) in right {
        at.push_back(key);
        match left.get(key) {
            Some(old) => values(old, value, at, operations),
            None => operations.push(PatchOperation::Add(AddOperation {
                path: at.clone(),
                value: value.clone(),
            })),
        }
        at.pop_back();
    }
}

/// Compares lists by the elements' names. `false` when names do not tell the elements apart, or their order changed.
fn lists(left: &[Value], right: &[Value], at: &mut PointerBuf, operations: &mut Vec<PatchOperation>) -> bool {
    let (Some(old), Some(new)) = (names(left), names(right)) else {
        return false;
    };
    let kept: Vec<_> = old.iter().filter(|name| new.contains(name)).collect();
    if !kept.iter().copied().eq(new.iter().filter(|name| old.contains(name))) {
        return false;
    }
    for index in (0..old.len()).rev().filter(|index| !new.contains(&old[*index])) {
        at.push_back(index);
        operations.push(PatchOperation::Remove(RemoveOperation { path: at.clone() }));
        at.pop_back();
    }
    for (index, value) in right.iter().enumerate() {
        at.push_back(index);
        match left.iter().find(|element| name(element) == new[index]) {
            Some(element) => values(element, value, at, operations),
            None => operations.push(PatchOperation::Add(AddOperation {
                path: at.clone(),
                value: value.clone(),
            })),
        }
        at.pop_back();
    }
    true
}

fn names(list: &[Value]) -> Option<Vec<&str>> {
    let names: Vec<_> = list.iter().map(name).collect();
    let distinct = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    (distinct && !names.contains(&"")).then_some(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(left: &Value, patch: &Patch) -> Value {
        let mut value = left.clone();
        json_patch::patch(&mut value, patch).expect("fits what it was made from");
        value
    }

    // spec: INJ-124
    #[test]
    fn keys_are_escaped_and_missing_parents_made() {
        let left = json!({"spec": {}});
        let right = json!({"metadata": {"annotations": {"weft.dev/a~b": "1"}}, "spec": {}});
        let patch = diff(&left, &right);
        assert_eq!(apply(&left, &patch), right);
        let patch = diff(&json!({"m": {}}), &json!({"m": {"weft.dev/a~b": "1"}}));
        assert_eq!(serde_json::to_value(&patch).unwrap()[0]["path"], "/m/weft.dev~1a~0b");
    }

    #[test]
    fn a_container_in_front_is_one_addition() {
        let left = json!([{"name": "b", "x": 1.50}, {"name": "c"}]);
        let right = json!([{"name": "a"}, {"name": "b", "x": 1.50}, {"name": "c", "y": 2}]);
        let patch = diff(&left, &right);
        assert_eq!(patch.0.len(), 2, "{patch:?}");
        assert_eq!(apply(&left, &patch), right);
    }

    #[test]
    fn reordered_unnamed_and_repeated_elements_are_replaced() {
        for (left, right) in [
            (
                json!([{"name": "a"}, {"name": "b"}]),
                json!([{"name": "b"}, {"name": "a"}]),
            ),
            (json!([1, 2]), json!([2, 3, 1])),
            (json!([{"name": "a"}, {"name": "a"}]), json!([{"name": "a"}])),
            (json!([{"name": "a"}]), json!([])),
            (json!({"a": [1]}), json!([])),
        ] {
            assert_eq!(apply(&left, &diff(&left, &right)), right);
        }
    }
}
