use super::*;
use serde_json::Value;

fn pod(state: &Value, last: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "a", "uid": "u"},
        "status": {"phase": "Pending", "initContainerStatuses": [
            {"name": "weft-validation", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": state, "lastState": last},
        ]},
    }))
    .expect("a pod")
}

fn ended(code: i32, id: &str) -> Value {
    json!({"terminated": {"exitCode": code, "containerID": id}})
}

// spec: NET-136
#[test]
fn each_failure_is_dealt_with_once() {
    let mut handled = Handled::default();
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    assert!(
        !handled.is_due(&pod(&json!({"running": {}}), &json!({}))),
        "it may find the redirect yet"
    );
    assert!(handled.is_due(&pod(&ended(126, "c1"), &json!({}))));
    assert!(!handled.is_due(&pod(&ended(126, "c1"), &json!({}))));
    assert!(!handled.is_due(&pod(&waiting, &ended(126, "c1"))));
    assert!(!handled.is_due(&pod(&json!({"running": {}}), &ended(126, "c1"))));
    assert!(
        handled.is_due(&pod(&ended(126, "c2"), &ended(126, "c1"))),
        "it failed again"
    );
    assert!(!handled.is_due(&pod(&ended(0, "c3"), &ended(126, "c2"))));
    // An agent that began in between.
    assert!(Handled::default().is_due(&pod(&waiting, &ended(126, "c1"))));
}

// spec: NET-136
#[test]
fn pods_that_fail_otherwise_or_are_on_their_way_out_are_left_alone() {
    let mut handled = Handled::default();
    assert!(!handled.is_due(&pod(&ended(1, "c1"), &json!({}))));
    let failed = pod(&ended(126, "c1"), &json!({}));
    let mut leaving = failed.clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert!(!handled.is_due(&leaving));
    let mut over = failed.clone();
    over.status.as_mut().expect("set").phase = Some("Failed".to_owned());
    assert!(!handled.is_due(&over));
    let mut other = failed.clone();
    let statuses = other
        .status
        .as_mut()
        .expect("set")
        .init_container_statuses
        .as_mut()
        .expect("set");
    "weft-init".clone_into(&mut statuses[0].name);
    assert!(!handled.is_due(&other));
    assert!(handled.is_due(&failed));
    handled.forget(&failed);
    assert!(handled.is_due(&failed));
}
