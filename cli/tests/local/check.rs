//! `weft local test`.

use std::fs;

use super::support::{Way, in_way, programs, route, sample};

// spec: LOC-043
#[test]
fn checks_beside_manifests_pass_or_fail_by_name() {
    let dir = tempfile::tempdir().expect("directory");
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).expect("directory");
    for entry in fs::read_dir(sample()).expect("samples/forecast") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), manifests.join(entry.file_name())).expect("copy");
    }
    let junit = dir.path().join("junit.xml");
    let test = |network: &str| {
        let output = in_way(Way::Loopback, &programs())
            .args(["local", "test", "--network", network, "--state"])
            .arg(dir.path().join("state"))
            .arg("-f")
            .arg(&manifests)
            .arg("--junit")
            .arg(&junit)
            .output()
            .expect("weft");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (
            output.status.code(),
            text,
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    for network in ["namespaces", "loopback"] {
        let (code, text, errors) = test(network);
        assert_eq!(code, Some(0), "{network}: {text}{errors}");
        assert!(
            text.contains("ok   frontend reaches forecast") && text.contains("3 checks, 0 failed"),
            "{text}"
        );
    }
    // A route that changes the shares, and a rule that refuses the caller without a sidecar.
    for name in ["subsets.yaml", "split-0-100.yaml", "strict.yaml"] {
        fs::write(manifests.join(name), route(name)).expect("route");
    }
    let (code, text, errors) = test("namespaces");
    assert_eq!(code, Some(1), "{text}{errors}");
    assert!(text.contains("ok   frontend reaches forecast"), "{text}");
    assert!(
        text.contains("FAIL without rules") && text.contains("for v1, got 0.00"),
        "{text}"
    );
    assert!(
        text.contains("FAIL a caller without a sidecar") && text.contains("2 failed"),
        "{text}"
    );
    let xml = fs::read_to_string(&junit).expect("JUnit");
    assert!(xml.contains("tests=\"3\" failures=\"2\""), "{xml}");
    fs::write(
        manifests.join("bad.weft-test.yaml"),
        "checks: [{name: a, url: 'http://a', expekt: {}}]\n",
    )
    .expect("file");
    let (code, _, errors) = test("namespaces");
    assert!(
        code == Some(65) && errors.contains("bad.weft-test.yaml") && errors.contains("expekt"),
        "{errors}"
    );
}
