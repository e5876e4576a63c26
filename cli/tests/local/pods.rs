//! Pods as a kubelet runs them: environment, volumes, probes, restarts, order.

use super::support::{Run, Way, pod};

const SETTINGS: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: app}\ndata: {color: \
                        green, size: '3'}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: token, namespace: \
                        app}\nstringData: {key: s3cret}\n";

// spec: LOC-012
#[test]
fn the_environment_is_the_manifests_and_not_the_machines() {
    let container = "{name: main, image: none, command: [sleep, '1000'], envFrom: [{prefix: CM_, configMapRef: {name: \
                     settings}}], env: [{name: PLAIN, value: one}, {name: JOINED, value: '$(PLAIN)-two'}, {name: NAME, \
                     valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: ADDRESS, valueFrom: {fieldRef: \
                     {fieldPath: status.podIP}}}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, \
                     {name: KEY, valueFrom: {secretKeyRef: {name: token, key: key}}}, {name: CPUS, valueFrom: \
                     {resourceFieldRef: {resource: limits.cpu}}}]}";
    let manifest = format!("{}{SETTINGS}", pod("env", container));
    let run = Run::start(Way::Namespaces, &[("pod.yaml", &manifest)], &[]).ready();
    let text = run.say("exec", &["env", "--", "env"]);
    let address = run.pods("app/env")[0]["address"].as_str().expect("address").to_owned();
    for line in [
        "PLAIN=one",
        "JOINED=one-two",
        "NAME=env",
        &format!("ADDRESS={address}"),
        "NODE=local",
        "KEY=s3cret",
        "CM_color=green",
        "CM_size=3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(
        !names.contains(&"CARGO_MANIFEST_DIR") && names.contains(&"PATH"),
        "{names:?}"
    );
}

// spec: LOC-004, LOC-013
#[test]
fn volumes_are_where_the_container_expects_them_and_nowhere_on_the_machine() {
    let container = "{name: main, image: none, command: [sleep, '1000'], volumeMounts: [{name: settings, mountPath: \
                     /etc/weft-test/settings}, {name: token, mountPath: /weft-test-root/token}, {name: work, mountPath: \
                     /var/lib/weft-test}, {name: info, mountPath: /etc/weft-test/info}, {name: one, mountPath: \
                     /etc/weft-test/one}]}\n  volumes: [{name: settings, configMap: {name: settings}}, {name: token, \
                     secret: {secretName: token}}, {name: work, emptyDir: {}}, {name: info, downwardAPI: {items: \
                     [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}, {name: one, projected: {sources: \
                     [{configMap: {name: settings, items: [{key: color, path: hue}]}}]}}]";
    let manifest = format!("{}{SETTINGS}", pod("vol", container));
    for way in [Way::Namespaces, Way::OneId] {
        let run = Run::start(way, &[("pod.yaml", &manifest)], &[]).ready();
        let cat = |path: &str| run.say("exec", &["vol", "--", "cat", path]);
        assert_eq!(cat("/etc/weft-test/settings/color"), "green");
        assert_eq!(cat("/weft-test-root/token/key"), "s3cret");
        assert!(
            cat("/etc/weft-test/info/labels")
                .lines()
                .any(|line| line == "app=\"vol\"")
        );
        assert_eq!(cat("/etc/weft-test/one/hue"), "green");
        let write = |path: &str| {
            let script = format!("echo text >{path}");
            run.exec("vol", &["sh", "-c", &script]).status.success()
        };
        assert!(write("/var/lib/weft-test/file"));
        assert_eq!(cat("/var/lib/weft-test/file"), "text\n");
        assert!(!write("/etc/weft-test/settings/color"), "read-only");
        for path in ["/etc/weft-test", "/weft-test-root", "/var/lib/weft-test"] {
            assert!(!std::path::Path::new(path).exists(), "{path} on the machine");
        }
        // The machine's own files are still there.
        assert!(!cat("/etc/passwd").is_empty());
        run.save("pod.yaml", &manifest.replace("green", "blue"));
        run.wait_for("the new content", || {
            (cat("/etc/weft-test/settings/color") == "blue").then_some(())
        });
    }
}

// spec: LOC-013
#[test]
fn loopback_mode_tells_where_volumes_are() {
    let container = "{name: main, image: none, command: [sleep, '1000'], volumeMounts: [{name: settings, mountPath: \
                     /etc/weft-test/settings}]}\n  volumes: [{name: settings, configMap: {name: settings}}]";
    let manifest = format!("{}{SETTINGS}", pod("vol", container));
    let run = Run::start(Way::Loopback, &[("pod.yaml", &manifest)], &[]).ready();
    let text = run.say("exec", &["vol", "--", "sh", "-c", "cat $WEFT_VOLUMES/settings/color"]);
    assert_eq!(text, "green");
    assert_eq!(run.log().matches("WEFT_VOLUMES").count(), 1, "{}", run.log());
}

// spec: LOC-014, LOC-023
#[test]
fn readiness_decides_on_endpoints() {
    let container = "{name: main, image: 'weft-app:dev', command: [weft-app, serve, --http, '8080'], ports: \
                     [{containerPort: 8080}], readinessProbe: {exec: {command: [test, -e, READY]}, periodSeconds: 1, \
                     failureThreshold: 1}}";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {selector: {app: \
                   web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: \
                   Service\nmetadata: {name: pods, namespace: app}\nspec: {clusterIP: None, selector: {app: web}, ports: \
                   [{name: http, port: 8080}]}\n";
    let client = pod("client", "{name: main, image: none, command: [sleep, '1000']}");
    let flag = tempfile::tempdir().expect("directory");
    let ready = flag.path().join("ready");
    let manifest = format!(
        "{}{service}",
        pod("web", &container.replace("READY", &ready.display().to_string()))
    );
    let run = Run::start(
        Way::Namespaces,
        &[
            ("pod.yaml", &manifest),
            ("client.yaml", &client),
            ("weft-local.yaml", "commands: {weft-app: [weft-app]}"),
        ],
        &[],
    );
    run.wait_for("the pod to run", || {
        let state = run.pods("app/web").first()?["state"].as_str()?.to_owned();
        state.starts_with("Running, not ready").then_some(())
    });
    run.wait_for("the client", || {
        (run.pods("app/client").first()?["ready"] == true).then_some(())
    });
    let status = |url: &str| run.get("client", url)["status"].clone();
    assert_eq!(status("http://web/"), 503);
    std::fs::write(&ready, "").expect("flag");
    run.wait_for("readiness", || (status("http://web/") == 200).then_some(()));
    assert_eq!(status("http://pods:8080/"), 200, "a headless service is its pods");
    std::fs::remove_file(&ready).expect("flag");
    run.wait_for("its loss", || (status("http://web/") == 503).then_some(()));
}

// spec: LOC-014
#[test]
fn what_exits_is_started_again_after_a_longer_and_longer_wait() {
    let container = "{name: main, image: none, command: [sh, -c, 'echo begun; exit 3']}";
    let run = Run::start(
        Way::Namespaces,
        &[("pod.yaml", &pod("crash", container))],
        &["--restart-backoff", "1"],
    );
    for wait in [1, 2, 4] {
        run.wait_for_line(&format!("container main: exited with 3; starts again in {wait} s"));
    }
    let begun = run.log().lines().filter(|line| *line == "app/crash main begun").count();
    assert!(begun >= 3, "{}", run.log());
    let state = run.wait_for("back-off", || {
        let state = run.pods("app/crash").first()?["state"].as_str()?.to_owned();
        state.starts_with("BackOff").then_some(state)
    });
    assert!(state.contains("exited with 3"), "{state}");
    let mut run = Run::start(
        Way::Namespaces,
        &[("pod.yaml", &pod("crash", container))],
        &["--restart-backoff", "0"],
    );
    assert_eq!(run.exit_code(), 64);
}

// spec: LOC-014
#[test]
fn liveness_and_startup_restart_what_does_not_answer() {
    let container = "{name: main, image: none, command: [sh, -c, 'echo begun; exec sleep 1000'], livenessProbe: {exec: \
                     {command: ['false']}, periodSeconds: 1, failureThreshold: 2}}";
    let run = Run::start(
        Way::Namespaces,
        &[("pod.yaml", &pod("dead", container))],
        &["--restart-backoff", "1"],
    );
    run.wait_for_line("liveness probe failed 2 times");
    run.wait_for("a second start", || {
        (run.log().matches("dead main begun").count() >= 2).then_some(())
    });
}

// spec: DLV-037, DLV-028, DLV-151
#[test]
fn endpoints_follow_the_pods_when_the_number_of_shards_is_changed() {
    let settings = |shards: u32| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: weft-injector, namespace: weft-system}}\ndata:\n  values: \
             '{{delivery: {{epShards: {shards}, tlsShards: 0}}}}'\n"
        )
    };
    let container = "{name: main, image: none, command: [sleep, '1000']}";
    let run = Run::start(
        Way::Namespaces,
        &[
            ("settings.yaml", &settings(1)),
            ("first.yaml", &pod("first", container)),
        ],
        &[],
    )
    .ready();
    let shards = |name: &str| {
        let volume = run.state().join(format!("pods/app_{name}/volumes/weft-config"));
        let files = weft_bundle::volume::read(&volume).expect("a volume").files;
        files
            .keys()
            .filter(|name| name.starts_with("ep-") && name.ends_with(".json"))
            .count()
    };
    let ready = |name: &str| {
        run.wait_for("readiness", || {
            (run.pods(&format!("app/{name}")).first()?["ready"] == true).then_some(())
        });
    };
    ready("first");
    assert_eq!(shards("first"), 1);
    // A pod that mounts more follows the one that mounts fewer.
    run.save("settings.yaml", &settings(3));
    run.wait_for_line("applied ConfigMap weft-system/weft-injector");
    run.save("second.yaml", &pod("second", container));
    run.wait_for("the second pod", || (!run.pods("app/second").is_empty()).then_some(()));
    ready("second");
    assert_eq!((shards("first"), shards("second")), (1, 1));
    run.remove("first.yaml");
    run.wait_for("the first one to be gone", || {
        run.pods("app/first").is_empty().then_some(())
    });
    run.wait_for("three shards", || (shards("second") == 3).then_some(()));
    run.wait_for("their activation", || {
        let log = run.say("logs", &["app/second", "-c", "weft-proxy"]);
        log.lines()
            .any(|line| line.contains("endpoints activated") && line.contains("shards=3"))
            .then_some(())
    });
    // And back again, with a new pod.
    run.save("settings.yaml", &settings(2));
    run.wait_for("the setting", || {
        (run.log().matches("applied ConfigMap weft-system/weft-injector").count() >= 2).then_some(())
    });
    run.save("third.yaml", &pod("third", container));
    run.wait_for("the third pod", || (!run.pods("app/third").is_empty()).then_some(()));
    ready("third");
    assert_eq!((shards("second"), shards("third")), (2, 2));
    run.save("settings.yaml", &settings(9));
    run.wait_for_line("delivery.epShards: 9 is out of range; must be 1 to 8");
}

// spec: LOC-010, LOC-016
#[test]
fn init_containers_run_in_order_behind_the_redirect_and_the_sidecar() {
    let order = tempfile::tempdir().expect("directory");
    let file = order.path().join("order").display().to_string();
    let manifest = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: app, labels: {{weft.dev/inject: enabled}}}}\n---\napiVersion: \
         apps/v1\nkind: StatefulSet\nmetadata: {{name: set, namespace: app}}\nspec:\n  replicas: 1\n  serviceName: set\n  \
         selector: {{matchLabels: {{app: set}}}}\n  template:\n    metadata: {{labels: {{app: set}}}}\n    spec:\n      \
         initContainers:\n      - {{name: first, image: none, command: [sh, -c, 'nft list ruleset >/dev/null 2>&1; echo \
         first >>{file}']}}\n      - {{name: second, image: none, command: [sh, -c, 'curl -sf \
         http://127.0.0.1:15021/healthz/ready && echo second >>{file}']}}\n      containers:\n      - {{name: main, image: \
         none, command: [sh, -c, 'echo main >>{file}; exec sleep 1000']}}\n"
    );
    let run = Run::start(Way::Namespaces, &[("set.yaml", &manifest)], &[]).ready();
    assert_eq!(run.pods("app/set-0").len(), 1, "an ordinal name");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    run.wait_for("the application", || read().contains("main").then_some(()));
    assert_eq!(read(), "first\nsecond\nmain\n");
}

// spec: LOC-015
#[test]
fn a_pod_that_goes_is_told_and_leaves_the_endpoints_at_once() {
    let log = tempfile::tempdir().expect("directory");
    let file = log.path().join("log").display().to_string();
    let container = format!(
        "{{name: main, image: none, command: [bash, -c, 'trap \"echo told >>{file}; sleep 5; echo gone >>{file}; exit 0\" \
         TERM; echo up >>{file}; while :; do sleep 0.1; done']}}"
    );
    let keeper = pod("keeper", "{name: main, image: none, command: [sleep, '1000']}");
    let run = Run::start(
        Way::Namespaces,
        &[("pod.yaml", &pod("web", &container)), ("keeper.yaml", &keeper)],
        &[],
    )
    .ready();
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    run.remove("pod.yaml");
    run.wait_for("SIGTERM", || read().contains("told").then_some(()));
    // The sidecar is still there while the application ends.
    let proxies = |run: &Run| run.processes().iter().filter(|p| p.contains("weft-proxy\0run")).count();
    let while_it_ends = proxies(&run);
    assert!(while_it_ends == 2 || read().contains("gone"), "{while_it_ends}");
    run.wait_for("the end", || read().contains("gone").then_some(()));
    run.wait_for("the end of its sidecar", || (proxies(&run) == 1).then_some(()));
    // The run hears of it a moment later.
    run.wait_for("the end of the pod", || run.pods("app/web").is_empty().then_some(()));
}

// spec: LOC-019
#[test]
fn what_no_process_can_have_keeps_a_pod_pending() {
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: host}\nspec: {hostNetwork: true, containers: [{name: c, image: \
                none, command: [sleep, '1000']}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: disk}\nspec: \
                {containers: [{name: c, image: none, command: [sleep, '1000']}], volumes: [{name: d, \
                persistentVolumeClaim: {claimName: x}}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: \
                fine}\nspec: {nodeSelector: {a: b}, imagePullSecrets: [{name: x}], securityContext: {runAsUser: 5}, \
                containers: [{name: c, image: none, command: [sleep, '1000'], resources: {limits: {cpu: 1}}}]}\n";
    let run = Run::start(Way::Namespaces, &[("pod.yaml", host)], &[]);
    assert!(
        run.wait_for_line("default/host is Pending")
            .contains("spec.hostNetwork")
    );
    assert!(
        run.wait_for_line("default/disk is Pending")
            .contains("spec.volumes[0].persistentVolumeClaim")
    );
    run.wait_for("the third", || {
        (run.pods("default/fine").first()?["ready"] == true).then_some(())
    });
    for field in ["resources", "scheduling", "imagePullSecrets", "securityContext"] {
        let lines = run
            .log()
            .lines()
            .filter(|l| l.starts_with(&format!("weft {field}")))
            .count();
        assert_eq!(lines, 1, "{field}: {}", run.log());
    }
}
