//! Saving a manifest changes the traffic; what cannot be used changes nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;

use super::support::{Run, Way, route};

/// Within five standard deviations of a share.
fn assert_share(found: u64, of: u64, share: f64) {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (found, of) = (found as f64, of as f64);
    let deviation = (of * share * (1.0 - share)).sqrt();
    assert!(
        (found - of * share).abs() <= 5.0 * deviation,
        "{found} of {of} is not a share of {share}"
    );
}

// spec: LOC-030
#[test]
fn a_saved_route_is_in_force_in_all_sidecars_and_the_run_says_when() {
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    let versions = run.versions("frontend");
    assert_share(versions["v1"], versions.values().sum(), 0.6);
    run.save("subsets.yaml", &route("subsets.yaml"));
    run.wait_for_line("applied DestinationRule sample/forecast");
    run.wait_for_line("in force in 6 sidecars after");
    let begun = run.log().len();
    run.save("route.yaml", &route("split-90-10.yaml"));
    let told = run.wait_for("the acknowledgement", || {
        let log = run.log_since(begun);
        log.contains("in force in").then_some(log)
    });
    assert!(told.contains("weft applied VirtualService sample/forecast"), "{told}");
    assert!(
        told.contains("weft rendered") && told.contains("sample/Deployment/frontend"),
        "{told}"
    );
    let versions = run.versions("frontend");
    assert_share(versions["v1"], versions.values().sum(), 0.9);
    let begun = run.log().len();
    run.save("route.yaml", &route("split-0-100.yaml"));
    let told = run.wait_for("the acknowledgement", || {
        let log = run.log_since(begun);
        log.lines().find(|line| line.contains("in force in")).map(str::to_owned)
    });
    // 200 ms are promised on a machine of which this run has the use; here others work, too.
    let milliseconds: u64 = told
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("milliseconds");
    assert!(milliseconds < 5_000, "{told}");
    eprintln!("{told}");
    assert_eq!(run.versions("frontend").keys().collect::<Vec<_>>(), ["v2"]);
    run.remove("route.yaml");
    run.wait_for_line("deleted VirtualService sample/forecast");
    let log = run.log().len();
    run.wait_for("the acknowledgement", || {
        (log > 0 && run.versions("frontend").contains_key("v1")).then_some(())
    });
}

// spec: LOC-005, LOC-030, LOC-031
#[test]
fn what_is_invalid_or_half_written_changes_nothing() {
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    run.save("subsets.yaml", &route("subsets.yaml"));
    run.save("route.yaml", &route("split-0-100.yaml"));
    run.wait_for("the route", || {
        (!run.versions("frontend").contains_key("v1")).then_some(())
    });
    let only_v2 = || assert_eq!(run.versions("frontend").keys().collect::<Vec<_>>(), ["v2"]);

    run.save("route.yaml", &route("invalid.yaml"));
    let refused = run.wait_for_line("is refused");
    assert!(
        refused.contains("manifests/route.yaml:") && refused.contains("spec.http[0].route[1].weight"),
        "{refused}"
    );
    only_v2();

    // Half of a file: cut in the middle of a word that something follows.
    let whole = route("split-90-10.yaml");
    let half = &whole[..whole.find("weight").expect("weight") + 8];
    let path = run.dir.path().join("manifests/route.yaml");
    let broken = half.replace("weight:", "weight: [");
    fs::write(&path, &broken).expect("write");
    run.wait_for_line("manifests/route.yaml:");
    run.wait_for("the problem", || {
        let last = run.log();
        last.lines()
            .filter(|line| line.contains("route.yaml:"))
            .nth(1)
            .map(str::to_owned)
    });
    only_v2();

    // Cut, and open for writing: nothing of it counts before it is complete.
    let mut file = OpenOptions::new().write(true).truncate(true).open(&path).expect("open");
    run.save(
        "other.yaml",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: other, namespace: sample}\n",
    );
    run.wait_for_line("applied ServiceAccount sample/other");
    run.wait_for_line("route.yaml: holds no object");
    assert!(!run.log().contains("deleted"), "{}", run.log());
    only_v2();
    file.write_all(whole.as_bytes()).expect("write");
    drop(file);
    run.wait_for("the whole file", || {
        run.versions("frontend").contains_key("v1").then_some(())
    });

    // What editors leave behind.
    let before = run.log().len();
    for name in ["route.yaml~", ".route.yaml.swp", "#route.yaml#"] {
        fs::write(run.dir.path().join("manifests").join(name), "kind: [").expect("write");
    }
    run.save(
        "last.yaml",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: last, namespace: sample}\n",
    );
    run.wait_for_line("applied ServiceAccount sample/last");
    let told = run.log_since(before);
    assert!(told.lines().all(|line| !line.contains("route.yaml")), "{told}");
}

// spec: LOC-001, LOC-010, LOC-030
#[test]
fn a_workload_that_is_scaled_or_removed_is_so_at_once() {
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    let manifest = fs::read_to_string(super::support::sample().join("forecast.yaml")).expect("manifest");
    run.save("forecast.yaml", &manifest.replacen("replicas: 3", "replicas: 1", 1));
    run.wait_for("one pod of v1", || {
        (run.pods("sample/forecast-v1").len() == 1).then_some(())
    });
    // On a busy machine a proxy may have set the last one aside for a moment.
    run.wait_for("more of v2 than of v1", || {
        let versions = run.versions("frontend");
        (versions.get("v2") > versions.get("v1") && versions.contains_key("v1")).then_some(())
    });
    run.remove("frontend.yaml");
    run.wait_for_line("deleted Deployment sample/frontend");
    run.wait_for("its end", || run.pods("sample/frontend").is_empty().then_some(()));
}
