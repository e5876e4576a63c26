//! Commands beside a running `up`.

use serde_json::Value;

use super::support::{Run, Way};

// spec: LOC-018, LOC-024, LOC-040, LOC-041
#[test]
fn ps_exec_curl_logs_and_get_answer_from_the_run() {
    let run = Run::sample(Way::Namespaces, &[]).ready();
    let table = run.say("ps", &[]);
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(
        table.starts_with("POD") && table.contains("SIDECAR") && !table.contains("KEY"),
        "{table}"
    );
    let wide = run.say("ps", &["-o", "wide"]);
    assert!(
        wide.lines().next().expect("head").contains("AGE") && wide.contains("KEY"),
        "{wide}"
    );
    let json: Vec<Value> = serde_json::from_str(&run.say("ps", &["-o", "json"])).expect("JSON");
    assert!(json.len() == 6 && json[0]["address"].is_string(), "{json:?}");
    let yaml = run.say("ps", &["-o", "yaml"]);
    assert!(yaml.contains("- pod: ") && yaml.contains("revision: "), "{yaml}");

    // Exit codes and both outputs are the program's.
    let output = run.exec("frontend", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let unknown = run.exec("nobody", &["true"]);
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        unknown.status.code() == Some(1) && text.contains("weft local ps"),
        "{text}"
    );
    let container = run.weft("exec", &["frontend", "-c", "nothing", "--", "true"]);
    assert!(
        String::from_utf8_lossy(&container.stderr).contains("weft-proxy"),
        "names those that there are"
    );

    // From a pod through its sidecar, and as a client without one.
    let meshed: Value =
        serde_json::from_str(&run.say("curl", &["--from", "frontend", "http://forecast/"])).expect("JSON");
    assert_eq!(meshed["caller"], "spiffe://cluster.local/ns/sample/sa/frontend");
    let plain: Value = serde_json::from_str(&run.say("curl", &["http://forecast.sample/"])).expect("JSON");
    assert_eq!(
        (&plain["caller"], &plain["host"]),
        (&Value::Null, &"forecast.sample".into())
    );

    let pod = run.pods("sample/frontend")[0]["pod"].as_str().expect("name").to_owned();
    let name = pod.split_once('/').expect("namespace").1.to_owned();
    let lines = run.say("logs", &[&name, "-c", "weft-proxy"]);
    assert!(lines.lines().count() > 0 && lines.contains("ready"), "{lines}");
    let prefix = format!("{pod} weft-proxy ");
    assert!(
        run.log().lines().any(|line| line.starts_with(&prefix)),
        "followed by up as well"
    );

    let services = run.say("get", &["services"]);
    assert!(
        services.contains("frontend") && services.contains("10.98."),
        "{services}"
    );
    let service: Value =
        serde_json::from_str(&run.say("get", &["svc", "forecast", "-n", "sample", "-o", "json"])).expect("JSON");
    assert_eq!(service["kind"], "Service");
    // Native form: the sidecar is an init container that lasts.
    let pod: Value = serde_json::from_str(&run.say("get", &["pod", &name, "-o", "json"])).expect("JSON");
    let init = pod["spec"]["initContainers"].as_array().expect("init containers");
    let names: Vec<_> = init
        .iter()
        .map(|c| (c["name"].as_str(), c["restartPolicy"].as_str()))
        .collect();
    assert_eq!(names, [(Some("weft-init"), None), (Some("weft-proxy"), Some("Always"))]);
    assert_eq!(run.weft("get", &["services", "nothing"]).status.code(), Some(1));
}

// spec: LOC-040
#[test]
fn quiet_prints_no_lines_of_containers() {
    let run = Run::sample(Way::Namespaces, &["--quiet"]).ready();
    let log = run.log();
    assert!(log.lines().all(|line| line.starts_with("weft ")), "{log}");
    assert!(!log.contains('\u{1b}'), "no colours");
    assert!(log.contains("is ready, 1 of 6"), "progress: {log}");
}
