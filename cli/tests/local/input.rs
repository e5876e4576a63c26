//! Exit codes and messages for what cannot be used.

use std::fs;

use super::support::{PATIENCE, Run, Way, in_way, programs};

fn weft(arguments: &[&str]) -> (i32, String) {
    let mut command = in_way(Way::Loopback, &programs());
    let output = command.args(arguments).output().expect("weft");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("a code"), text)
}

// spec: LOC-053
#[test]
fn wrong_usage_is_64_and_names_the_flag() {
    let (code, text) = weft(&["local", "up", "--nonsense"]);
    assert!(code == 64 && text.contains("--nonsense"), "{code}: {text}");
    let (code, text) = weft(&["local", "up", "--pod-cidr", "10.0.0.0"]);
    assert!(code == 64 && text.contains("10.99.0.0/16"), "{code}: {text}");
    let (code, text) = weft(&["local", "up", "--publish", "frontend:80"]);
    assert!(
        code == 64 && text.contains("NAMESPACE/SERVICE:PORT=LOCALPORT"),
        "{code}: {text}"
    );
    assert_eq!(weft(&["local", "up", "--help"]).0, 0);
}

// spec: LOC-053
#[test]
fn without_a_run_the_message_says_what_to_do() {
    let dir = tempfile::tempdir().expect("directory");
    let state = dir.path().join("none").display().to_string();
    let (code, text) = weft(&["local", "ps", "--state", &state]);
    assert!(code == 1 && text.contains("weft local up"), "{code}: {text}");
}

// spec: LOC-001, LOC-053
#[test]
fn manifests_that_cannot_be_read_or_start_nothing_are_65() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    for (text, told) in [
        (service, "nothing can start"),
        ("a: [", "pod.yaml:1"),
        ("", "nothing can start"),
        ("kind: Pod\nmetadata: {name: a}\n", "apiVersion is required"),
    ] {
        let mut run = Run::start(Way::Namespaces, &[("pod.yaml", text)], &[]);
        assert_eq!(run.exit_code(), 65, "{text:?}: {}", run.log());
        assert!(run.log().contains(told), "{text:?}: {}", run.log());
        assert!(run.processes().is_empty());
    }
    let mut run = Run::start(
        Way::Namespaces,
        &[("pod.yaml", service)],
        &["-f", "/nonexistent/manifests"],
    );
    assert_eq!(run.exit_code(), 65);
    assert!(run.log().contains("/nonexistent/manifests"), "{}", run.log());
}

// spec: LOC-006, LOC-017
#[test]
fn kinds_without_a_use_are_one_line_and_unknown_ones_a_warning_each() {
    let text = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: a}\nrules: []\n---\napiVersion: \
                policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: b}\n---\napiVersion: x.example/v1\nkind: \
                Gizmo\nmetadata: {name: c}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: plain}\nspec: {containers: \
                [{name: c, image: none, command: [sleep, '1000']}]}\n";
    let run = Run::start(Way::Namespaces, &[("all.yaml", text)], &["-n", "elsewhere"]).ready();
    let log = run.log();
    assert_eq!(
        log.matches("not used by local mode: 1 PodDisruptionBudget, 1 Role")
            .count(),
        1,
        "{log}"
    );
    let warning = run.wait_for_line("Gizmo");
    assert!(
        warning.contains("manifests/all.yaml:10") && warning.contains("warning"),
        "{warning}"
    );
    // No Namespace object, so no label, so no sidecar; and the namespace of the command line.
    let pods = run.pods("elsewhere/plain");
    assert_eq!((pods.len(), &pods[0]["sidecar"]), (1, &false.into()));
}

// spec: LOC-001
#[test]
fn folders_are_read_recursively_and_paths_may_be_repeated() {
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: none, command: \
             [sleep, '1000']}}]}}\n"
        )
    };
    let dir = tempfile::tempdir().expect("directory");
    let manifests = dir.path().join("manifests");
    fs::create_dir_all(manifests.join("sub")).expect("directory");
    fs::write(manifests.join("a.yaml"), format!("{}---\n{}", pod("one"), pod("two"))).expect("file");
    fs::write(manifests.join("sub/b.yml"), pod("three")).expect("file");
    let json = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "four"},
        "spec": {"containers": [{"name": "c", "image": "none", "command": ["sleep", "1000"]}]}});
    fs::write(manifests.join("sub/c.json"), json.to_string()).expect("file");
    let file = dir.path().join("five.yaml");
    fs::write(&file, pod("five")).expect("file");
    let path = file.display().to_string();
    let run = Run::start_in(dir, Way::Namespaces, &["-f", &path]).ready();
    let names: Vec<_> = run
        .pods("default/")
        .iter()
        .map(|p| p["pod"].as_str().expect("name").to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "default/five",
            "default/four",
            "default/one",
            "default/three",
            "default/two"
        ]
    );
}

// spec: LOC-011
#[test]
fn a_pod_without_a_program_waits_and_says_how_it_gets_one() {
    let pod = super::support::pod(
        "lost",
        "{name: main, image: 'registry.example/team/lost:1.2', args: ['1000']}",
    );
    let run = Run::start(Way::Namespaces, &[("pod.yaml", &pod)], &[]);
    let told = run.wait_for_line("is Pending");
    for part in [
        "registry.example/team/lost:1.2",
        "commands: {lost: [program, argument]}",
        "weft-local.yaml",
        "local.weft.dev/command.main",
        "the container's own command",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(
        run.pods("app/lost")[0]["state"]
            .as_str()
            .expect("state")
            .starts_with("Pending")
    );
    run.save("weft-local.yaml", "commands:\n  lost: [sleep]\n");
    run.wait_for_line("1 pods ready after");
    assert!(PATIENCE.as_secs() > 0);
}

// spec: LOC-020, LOC-029, LOC-053
#[test]
fn where_namespaces_are_forbidden_the_reason_is_told() {
    // No rights, and no user namespace below this one.
    let forbid =
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\"";
    let dir = tempfile::tempdir().expect("directory");
    fs::write(
        dir.path().join("pod.yaml"),
        super::support::pod("p", "{name: c, image: none, command: [sleep, '1000']}"),
    )
    .expect("manifest");
    let up = |network: &str| {
        let weft = programs().join("weft");
        let mut command = std::process::Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--",
            "sh",
            "-c",
            forbid,
            "sh",
            "timeout",
            "-s",
            "INT",
            "5",
        ]);
        command
            .arg(weft)
            .args(["local", "up", "--no-color", "--network", network, "--state"]);
        command.arg(dir.path().join("state")).arg("-f").arg(dir.path());
        let output = command.output().expect("unshare");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let reason = "make a user namespace";
    let setting = "user.max_user_namespaces is 0; a number above 0 allows it";
    let (code, text) = up("namespaces");
    assert!(
        code == Some(1) && text.contains(reason) && text.contains(setting),
        "{code:?}: {text}"
    );
    let (_, text) = up("auto");
    let first = text.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("weft network: loopback (") && first.contains(reason) && first.contains(setting),
        "{text}"
    );
}
