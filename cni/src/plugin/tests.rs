use super::*;

async fn answer_to(environment: &[(&str, &str)], input: &Value) -> Result<Option<Value>, (String, Failure)> {
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    answer(&environment, input.to_string().as_bytes()).await
}

fn network() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": NAME, "kubeconfig": "/nonexistent/kubeconfig",
        "namespace": "weft-system", "excludedNamespaces": ["kube-system"],
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]},
    })
}

async fn code_of(environment: &[(&str, &str)], input: &Value) -> u32 {
    answer_to(environment, input).await.expect_err("fails").1.code
}

#[tokio::test]
async fn versions_are_told_whatever_the_input() {
    let said = answer_to(&[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": "1.1.0"})).await;
    let said = said.expect("answers").expect("says");
    assert_eq!(said["supportedVersions"], json!(VERSIONS));
    assert_eq!(said["cniVersion"], "1.1.0");
    let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
    assert!(answer(&environment, b"").await.is_ok());
}

#[tokio::test]
async fn calls_that_are_none_of_cni_are_refused_with_its_codes() {
    assert_eq!(
        code_of(&[("CNI_COMMAND", "REMOVE")], &network()).await,
        INVALID_ENVIRONMENT
    );
    let mut other = network();
    other["cniVersion"] = json!("0.2.0");
    assert_eq!(code_of(&[("CNI_COMMAND", "ADD")], &other).await, INCOMPATIBLE);
    let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), "ADD".to_owned())]);
    let (version, failure) = answer(&environment, b"{").await.expect_err("fails");
    assert_eq!((version.as_str(), failure.code), ("0.3.1", UNREADABLE));
    let mut alone = network();
    alone.as_object_mut().expect("an object").remove("prevResult");
    assert_eq!(code_of(&[("CNI_COMMAND", "ADD")], &alone).await, INVALID_CONFIGURATION);
    for (field, value) in [
        ("kubeconfig", json!("relative")),
        ("kubeconfig", Value::Null),
        ("namespace", json!("")),
    ] {
        let mut broken = network();
        broken[field] = value;
        let (_, failure) = answer_to(&[("CNI_COMMAND", "ADD")], &broken).await.expect_err("fails");
        assert_eq!(failure.code, INVALID_CONFIGURATION, "{field}");
    }
    for version in ["0.3.0", "0.3.1"] {
        let mut early = network();
        early["cniVersion"] = json!(version);
        assert_eq!(code_of(&[("CNI_COMMAND", "CHECK")], &early).await, INCOMPATIBLE);
    }
    assert_eq!(code_of(&[("CNI_COMMAND", "STATUS")], &network()).await, UNAVAILABLE);
}

// spec: NET-133, NET-135
#[tokio::test]
async fn pods_of_excluded_namespaces_and_what_is_no_pod_pass_without_the_api_server() {
    for arguments in [
        "",
        "IgnoreUnknown=1",
        "K8S_POD_NAMESPACE=shop",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
        "K8S_POD_NAMESPACE=weft-system;K8S_POD_NAME=weft-cni-x7k2p;K8S_POD_UID=u",
    ] {
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_ARGS", arguments),
            ("CNI_NETNS", "/nonexistent"),
        ];
        let said = answer_to(&environment, &network()).await.expect("passes");
        assert_eq!(said, Some(network()["prevResult"].clone()), "{arguments}");
    }
    let shop = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart";
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_ARGS", shop),
        ("CNI_NETNS", "/nonexistent"),
    ];
    assert_eq!(code_of(&environment, &network()).await, TRY_AGAIN);
}

#[tokio::test]
async fn what_is_left_behind_by_a_pod_goes_with_its_namespace() {
    for command in ["DEL", "GC"] {
        for version in [
            json!("1.0.0"),
            json!("0.3.0"),
            json!("0.2.0"),
            json!("9.0.0"),
            Value::Null,
        ] {
            let mut network = network();
            network["cniVersion"] = version.clone();
            let said = answer_to(&[("CNI_COMMAND", command)], &network).await;
            assert_eq!(said, Ok(None), "{command} {version}");
        }
        let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), command.to_owned())]);
        assert_eq!(answer(&environment, b"{").await, Ok(None), "{command}");
    }
}

#[test]
fn a_failure_is_told_in_one_line() {
    let told = Failure::new(INVALID_POD, "the pod cannot be redirected", "annotation a: b").to_json("0.4.0");
    assert_eq!(
        told,
        json!({
            "cniVersion": "0.4.0", "code": 100, "details": "annotation a: b",
            "msg": "weft-cni: the pod cannot be redirected: annotation a: b",
        })
    );
}
