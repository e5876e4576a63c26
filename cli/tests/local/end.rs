//! However a run ends, nothing of it stays; runs beside each other do not meet.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::support::{Run, Way};

/// Nothing that belongs to the run is left: processes, and with them the namespaces, links, rules and mounts, which
/// are held by descriptors and processes of the run alone.
fn nothing_is_left(run: &Run) {
    run.wait_for("the end of all processes", || run.processes().is_empty().then_some(()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let own = run.dir.path().to_str().expect("path");
    assert!(!mounts.contains(own), "{mounts}");
    let links = fs::read_to_string("/proc/net/dev").expect("links");
    assert!(!links.contains("weft0"), "{links}");
}

fn ends_in_order(way: Way, signal: &str) {
    let mut run = Run::sample(way, &["--quiet"]).ready();
    let begun = Instant::now();
    run.signal(signal);
    assert_eq!(run.exit_code(), 0, "{}", run.log());
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "ten seconds are promised on a machine that is idle"
    );
    assert!(run.log().contains("stopping"), "{}", run.log());
    nothing_is_left(&run);
    assert!(!run.state().exists(), "the state directory is removed");
}

// spec: LOC-008, LOC-050
#[test]
fn an_interrupt_ends_everything() {
    ends_in_order(Way::Namespaces, "INT");
}

// spec: LOC-050
#[test]
fn termination_ends_everything_without_rights_too() {
    ends_in_order(Way::Unprivileged, "TERM");
}

// spec: LOC-050
#[test]
fn loopback_mode_ends_in_order() {
    ends_in_order(Way::Loopback, "INT");
}

fn is_killed(way: Way) {
    let mut run = Run::sample(way, &["--quiet"]).ready();
    run.signal("KILL");
    assert_eq!(run.ended().signal(), Some(9));
    nothing_is_left(&run);
    // What it left in the state directory, the next run takes over.
    assert!(run.state().exists());
    let next = Run::sample_at(way, Some(run.state()), &["--quiet"]).ready();
    assert_eq!(next.get("frontend", "http://forecast/")["status"], 200);
}

// spec: LOC-050
#[test]
fn a_killed_run_leaves_nothing() {
    is_killed(Way::Namespaces);
}

// spec: LOC-050
#[test]
fn a_killed_run_with_one_id_leaves_nothing() {
    is_killed(Way::OneId);
}

// spec: LOC-050
#[test]
fn a_killed_run_on_loopback_addresses_leaves_nothing() {
    is_killed(Way::Loopback);
}

// spec: LOC-050
#[test]
fn a_second_signal_kills_at_once() {
    let stubborn = super::support::pod(
        "stubborn",
        "{name: c, image: none, command: [bash, -c, 'trap \"\" TERM; while :; do sleep 1; done']}",
    );
    let mut run = Run::start(Way::Namespaces, &[("pod.yaml", &stubborn)], &["--quiet"]).ready();
    let begun = Instant::now();
    run.signal("INT");
    run.wait_for_line("stopping");
    run.signal("INT");
    assert_eq!(run.exit_code(), 0);
    let once = begun.elapsed();
    nothing_is_left(&run);
    let mut run = Run::start(Way::Namespaces, &[("pod.yaml", &stubborn)], &["--quiet"]).ready();
    let begun = Instant::now();
    run.signal("INT");
    assert_eq!(run.exit_code(), 0);
    let patient = begun.elapsed();
    assert!(
        patient > Duration::from_secs(5),
        "its grace period is waited for: {patient:?}"
    );
    assert!(once < patient, "{once:?} and {patient:?}");
}

// spec: LOC-008, LOC-051
#[test]
fn two_runs_do_not_meet() {
    let (one, other) = (
        Run::sample(Way::Namespaces, &["--quiet"]),
        Run::sample(Way::OneId, &["--quiet"]),
    );
    let (one, other) = (one.ready(), other.ready());
    let hash = |run: &Run| {
        let answer = run.get("frontend", "http://forecast/");
        assert_eq!(answer["status"], 200, "{answer}");
        answer["body"]["xfcc"].as_str().expect("identity").to_owned()
    };
    assert_ne!(hash(&one), hash(&other), "each has an authority of its own");
    // The second one of the same directory is refused, and the first goes on.
    let mut third = Run::sample_at(Way::Namespaces, Some(one.state()), &["--quiet"]);
    assert_eq!(third.exit_code(), 1);
    assert!(
        third.log().contains("in use by another run") && third.log().contains("--state"),
        "{}",
        third.log()
    );
    drop(other);
    hash(&one);
    let permissions = fs::metadata(one.state()).expect("state").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&permissions) & 0o777, 0o700);
}
