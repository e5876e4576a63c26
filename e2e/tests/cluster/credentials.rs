//! Certificates that rules name.

use std::time::Duration;

use anyhow::{Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use weft_e2e::sample::{namespace, pod, ready, remove_namespace};
use weft_e2e::{Cluster, Sample, until};

// spec: DR-114, DR-115, BYD-061, DLV-150, DLV-151
#[tokio::test]
#[ignore = "needs a cluster: make e2e"]
async fn a_rule_takes_its_certificates_from_secrets_and_config_maps() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let sample = Sample::deploy(&cluster, "credentials").await?;
    let outside = namespace(&cluster, "bank", false).await?;
    let host = format!("bank.{outside}.svc.cluster.local");
    let authority = Authority::new()?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": server(&outside, &authority.signs(&host)?)});
    cluster.apply(&list.to_string()).await?;
    ready(&cluster, &outside, "bank").await?;
    let url = format!("http://{host}/");
    let becomes = async |what: &str, status: u16| {
        until(what, Duration::from_secs(120), async || {
            Ok((sample.get(&[&url]).await?["status"] == status).then_some(()))
        })
        .await
    };
    let rule = async |selector: Option<Value>, credential: &str| {
        let rule = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": "bank", "namespace": sample.namespace},
            "spec": {
                "host": host,
                "workloadSelector": selector,
                "trafficPolicy": {"tls": {"mode": "SIMPLE", "credentialName": credential, "sni": host}},
            },
        });
        cluster.apply(&rule.to_string()).await
    };
    let selected = Some(json!({"matchLabels": {"app": "frontend"}}));
    // Plain HTTP on a port of TLS is no answer at all, so that 200 tells that the sidecar speaks TLS.
    let answer = sample.get(&[&url]).await?;
    ensure!(answer["status"] != 200, "{answer}");

    rule(selected, "bank").await?;
    let says = async |text: &str| {
        until(text, Duration::from_secs(60), async || {
            let arguments = ["-n", &sample.namespace, "get", "destinationrule", "bank", "-o", "yaml"];
            Ok(cluster.kubectl(&arguments).await?.contains(text).then_some(()))
        })
        .await
    };
    says("SecretNotFound").await?;
    let holder = |kind: &str, authority: &Authority| {
        json!({
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"name": "bank", "namespace": sample.namespace},
            (if kind == "Secret" { "stringData" } else { "data" }): {"ca.crt": authority.pem()},
        })
    };
    // What is followed counts for new connections, so that a refusal comes before there is one.
    let stranger = Authority::new()?;
    let untrusted = async |what: &str| {
        until(what, Duration::from_secs(120), async || {
            let answer = sample.get(&[&url]).await?;
            Ok((answer["status"] == 503 && answer.to_string().contains("TLS_error")).then_some(()))
        })
        .await
    };
    cluster.apply(&holder("Secret", &stranger).to_string()).await?;
    untrusted("the server is not of the Secret's authority").await?;
    cluster.apply(&holder("Secret", &authority).to_string()).await?;
    becomes("the Secret's authority is trusted", 200).await?;

    // A ConfigMap is for sidecars that no selector names.
    cluster.apply(&holder("ConfigMap", &stranger).to_string()).await?;
    rule(None, &format!("configmap://{}/bank", sample.namespace)).await?;
    untrusted("the server is not of the ConfigMap's authority").await?;
    cluster.apply(&holder("ConfigMap", &authority).to_string()).await?;
    becomes("the ConfigMap's authority is trusted", 200).await?;
    rule(None, "bank").await?;
    becomes("a Secret is not for every sidecar", 503).await?;
    says("workloadSelector").await?;

    sample.remove().await?;
    remove_namespace(&cluster, &outside).await
}

/// A pod that serves HTTP in TLS alone, behind port 80 of a Service.
fn server(namespace: &str, (chain, key): &(String, String)) -> Vec<Value> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bank", "namespace": namespace},
        "stringData": {"tls.crt": chain, "tls.key": key},
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "bank", "namespace": namespace},
        "spec": {"selector": {"app": "bank"}, "ports": [{"name": "http", "port": 80, "targetPort": 8443}]},
    });
    let mut pod = pod(namespace, "bank");
    let files = ["--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key"];
    let command: Vec<&str> = ["weft-app", "serve", "--https", "8443"]
        .into_iter()
        .chain(files)
        .collect();
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([{"name": "tls", "secret": {"secretName": "bank"}}]);
    spec["containers"][0]["command"] = json!(command);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]);
    vec![secret, service, pod]
}

/// Who signs a server's certificate.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key of a host.
    fn signs(&self, host: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &self.0)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}
