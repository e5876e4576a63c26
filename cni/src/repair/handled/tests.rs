use super::*;
use serde_json::{Value, json};

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

/// Whether a pod is to be mended when it is seen.
fn is_due(handled: &mut Handled, pod: &Pod, now: Instant) -> bool {
    handled.see(pod.clone(), now);
    handled.due(now).is_some()
}

// spec: NET-136
#[test]
fn each_failure_is_dealt_with_once() {
    let (mut handled, now) = (Handled::new(Mode::Repair), Instant::now());
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let failed = pod(&ended(126, "c1"), &json!({}));
    assert!(
        !is_due(&mut handled, &pod(&json!({"running": {}}), &json!({})), now),
        "it may find the redirect yet"
    );
    assert!(is_due(&mut handled, &failed, now));
    handled.mended(&failed);
    for again in [
        &failed,
        &pod(&waiting, &ended(126, "c1")),
        &pod(&json!({"running": {}}), &ended(126, "c1")),
    ] {
        assert!(!is_due(&mut handled, again, now));
    }
    assert_eq!(handled.next(), None);
    let another = pod(&ended(126, "c2"), &ended(126, "c1"));
    assert!(is_due(&mut handled, &another, now), "it failed again");
    handled.mended(&another);
    assert!(!is_due(&mut handled, &pod(&ended(0, "c3"), &ended(126, "c2")), now));
    // An agent that began in between.
    let mut later = Handled::new(Mode::Repair);
    assert!(is_due(&mut later, &pod(&waiting, &ended(126, "c1")), now));
}

// spec: NET-136
#[test]
fn what_could_not_be_mended_is_tried_again_until_it_is_or_the_failure_is_over() {
    let (mut handled, begin) = (Handled::new(Mode::Repair), Instant::now());
    let mut failed = pod(&ended(126, "c1"), &json!({}));
    assert!(is_due(&mut handled, &failed, begin));
    let mut now = begin;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        // The same problem is told once.
        assert_eq!(handled.failed(&failed, "no process", now), now == begin);
        let next = now + Duration::from_secs(seconds);
        assert_eq!(handled.next(), Some(next));
        // What is seen in between changes nothing but what is known of the pod.
        failed.metadata.resource_version = Some(seconds.to_string());
        assert!(!is_due(&mut handled, &failed, next - Duration::from_millis(1)));
        assert_eq!(handled.due(next), Some(failed.clone()));
        now = next;
    }
    assert!(handled.failed(&failed, "another", now), "another problem is told");
    handled.mended(&failed);
    assert_eq!((handled.due(now + LAST_PAUSE), handled.next()), (None, None));
    // The next failure begins anew.
    let another = pod(&ended(126, "c2"), &ended(126, "c1"));
    assert!(is_due(&mut handled, &another, now));
    assert!(handled.failed(&another, "another", now));
    assert_eq!(handled.next(), Some(now + FIRST_PAUSE));
    // It found a redirect by itself.
    handled.see(pod(&ended(0, "c3"), &ended(126, "c2")), now);
    assert_eq!(handled.next(), None);
    // Pods that went while nobody watched.
    assert!(is_due(&mut handled, &pod(&ended(126, "c4"), &json!({})), now));
    handled.keep(&BTreeSet::from(["u".to_owned()]));
    assert!(handled.next().is_some());
    handled.keep(&BTreeSet::new());
    assert_eq!(handled.next(), None);
}

// spec: NET-136
#[test]
fn pods_that_fail_otherwise_or_are_on_their_way_out_are_left_alone() {
    let (mut handled, now) = (Handled::new(Mode::Repair), Instant::now());
    assert!(!is_due(&mut handled, &pod(&ended(1, "c1"), &json!({})), now));
    let failed = pod(&ended(126, "c1"), &json!({}));
    let mut leaving = failed.clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert!(!is_due(&mut handled, &leaving, now));
    let mut other = failed.clone();
    let statuses = other
        .status
        .as_mut()
        .expect("set")
        .init_container_statuses
        .as_mut()
        .expect("set");
    "weft-init".clone_into(&mut statuses[0].name);
    assert!(!is_due(&mut handled, &other, now));
    assert!(is_due(&mut handled, &failed, now));
    handled.mended(&failed);
    handled.forget(&failed);
    assert!(is_due(&mut handled, &failed, now));
}

// spec: NET-136
#[test]
fn a_pod_that_starts_no_container_again_can_be_deleted_or_labelled_yet() {
    let now = Instant::now();
    for (phase, mode, expected) in [
        ("Failed", Mode::Repair, false),
        ("Failed", Mode::Delete, true),
        ("Failed", Mode::Label, true),
        ("Pending", Mode::Delete, true),
        ("Running", Mode::Delete, false),
        ("Succeeded", Mode::Label, false),
    ] {
        let mut over = pod(&ended(126, "c1"), &json!({}));
        over.status.as_mut().expect("set").phase = Some(phase.to_owned());
        assert_eq!(
            is_due(&mut Handled::new(mode), &over, now),
            expected,
            "{phase} {mode:?}"
        );
    }
}
