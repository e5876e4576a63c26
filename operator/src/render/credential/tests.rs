use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use weft_bundle::wire::{Certificate, OriginateTls, Serves, TlsSettings};

use super::*;
use crate::render::stage::{STAGE, bundle, rule};
use crate::render::{ObjectReport, Renderer};
use crate::world::read::{Read, object};
use crate::world::{Event, Kind, Object, Settings, Store};

const GATEWAY: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: edge}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ingress, namespace: edge}
spec: {template: {metadata: {labels: {istio: in, sidecar.istio.io/inject: 'true'}, annotations: {inject.istio.io/templates: gateway}}, spec: {containers: [{name: istio-proxy, image: auto}]}}}
";

/// An authority that signs and revokes.
fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).expect("root").pem();
    (pem, Issuer::new(params, key))
}

fn pair(name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    (params.self_signed(&key).expect("leaf").pem(), key.serialize_pem())
}

/// A Gateway `app/gw` whose servers end TLS as these settings say.
fn gateway(age: u32, name: &str, settings: &[&str]) -> String {
    let server = |(n, settings): (usize, &&str)| {
        format!(
            "{{port: {{number: 443, name: https-{n}, protocol: HTTPS}}, hosts: [h{n}.{name}.com], tls: {{{settings}}}}}"
        )
    };
    let servers: Vec<_> = settings.iter().enumerate().map(server).collect();
    let spec = format!("{{selector: {{istio: in}}, servers: [{}]}}", servers.join(", "));
    rule("app", name, age, &spec).replace("DestinationRule", "Gateway")
}

/// What a Secret holds; `None`: it is not there.
type Held<'a> = Option<&'a [(&'a str, &'a str)]>;

struct Stage {
    store: Store,
    renderer: Renderer,
    documents: String,
}

impl Stage {
    fn new(gateways: &str) -> Self {
        let this = Self {
            store: Store::new(Settings::default()),
            renderer: Renderer::new(),
            documents: format!("{STAGE}\n---\n{GATEWAY}{gateways}"),
        };
        this.with(Settings::default())
    }

    fn with(mut self, settings: Settings) -> Self {
        self.store = Store::new(settings);
        for document in self.documents.split("\n---\n").filter(|text| !text.trim().is_empty()) {
            let value: serde_json::Value = serde_yaml::from_str(document).expect("YAML");
            let Read::Object(object) = object(&value, "weft-system").expect("readable") else {
                panic!("of no use: {document}");
            };
            self.store.apply(Event::Apply(object));
        }
        self
    }

    /// A Secret; without files it is known not to be there.
    fn secret(&mut self, id: &str, files: Held<'_>) -> &mut Self {
        self.hold(Kind::Secret, id, files)
    }

    fn hold(&mut self, kind: Kind, id: &str, files: Held<'_>) -> &mut Self {
        let bytes = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        self.store.apply(Event::Apply(Object::Credential {
            reference: source(kind, id),
            content: files.map(|files| {
                Arc::new(Credential {
                    files: files.iter().map(bytes).collect(),
                })
            }),
        }));
        self
    }

    fn render(&mut self) -> Output {
        let output = self.renderer.render(&self.store.world());
        assert!(output.failures.is_empty(), "{:?}", output.failures);
        output
    }
}

/// An object `namespace/name`.
fn source(kind: Kind, id: &str) -> ObjectRef {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    ObjectRef {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn credentials(output: &Output) -> &RenderedCredentials {
    let mut all = output.credentials.iter();
    let (reference, rendered) = all.next().expect("of the gateway");
    assert!(all.next().is_none() && reference.namespace == "edge");
    rendered
}

/// Text of a file of the copy.
fn file(output: &Output, name: &str, ending: &str) -> Option<String> {
    let name = format!("{}.{ending}", credential_stem("edge", name));
    let mut shards = credentials(output).shards.iter();
    let bytes = shards.find_map(|shard| shard.get(&name))?;
    Some(String::from_utf8(bytes.clone()).expect("text"))
}

fn unresolved(output: &Output) -> Option<(&'static str, String)> {
    let of = |(reference, _): &(&ObjectRef, &ObjectReport)| reference.kind == Kind::Gateway;
    let (_, report) = output.reports.iter().find(of).expect("reported");
    assert_eq!(report.refused, None);
    report.unresolved.clone()
}

// spec: GW-040, GW-041, GW-114, DLV-150, DLV-152
#[test]
fn secrets_of_the_gateways_namespace_are_copied_under_names_of_their_own() {
    let ((one, one_key), (two, two_key)) = (pair("one"), pair("two"));
    let mut stage = Stage::new(&gateway(
        1,
        "gw",
        &[
            "mode: SIMPLE, credentialName: plain",
            "mode: SIMPLE, credentialName: 'kubernetes://both'",
            "mode: SIMPLE, credentialName: plain",
        ],
    ));
    let plain: &[(&str, &str)] = &[
        ("tls.crt", &one),
        ("tls.key", &one_key),
        ("tls.ocsp-staple", "s"),
        ("x", "y"),
    ];
    let both: &[(&str, &str)] = &[
        ("tls.crt", &one),
        ("tls.key", &one_key),
        ("cert", &two),
        ("key", &two_key),
    ];
    stage
        .secret("edge/plain", Some(plain))
        .secret("edge/both", Some(both))
        .secret("app/plain", Some(both))
        .secret("edge/other", Some(plain));
    let output = stage.render();
    let named = ["edge/both", "edge/plain"].map(|id| source(Kind::Secret, id));
    assert_eq!(output.named_credentials, BTreeSet::from(named));
    assert_eq!(unresolved(&output), None);
    assert_eq!(file(&output, "plain", "crt").as_ref(), Some(&one));
    assert_eq!(file(&output, "plain", "key").as_ref(), Some(&one_key));
    assert_eq!(file(&output, "plain", "ocsp").as_deref(), Some("s"));
    assert_eq!(file(&output, "both", "crt").as_ref(), Some(&two), "`cert` comes first");
    assert_eq!(file(&output, "both", "key").as_ref(), Some(&two_key));
    assert_eq!(file(&output, "plain", "ca"), None);
    let rendered = credentials(&output);
    assert_eq!(rendered.shards.len(), 1);
    assert_eq!(rendered.shards[0].len(), 6, "five files and the index: {rendered:?}");
    let index = String::from_utf8(rendered.shards[0][&credentials_index(0)].clone()).expect("text");
    let listed: Vec<_> = index.lines().collect();
    assert_eq!(
        listed,
        [credential_stem("edge", "plain"), credential_stem("edge", "both")]
    );
    // The configuration knows names alone, and what prints anything shows no key.
    let Serves::Tls(tls) = &bundle(&output, "edge/ingress").listeners[0].serves else {
        panic!("no TLS");
    };
    let settings = |n: usize| -> &TlsSettings { &tls.terminated[n].tls };
    let credential = |name: &str| [Certificate::Credential(credential_stem("edge", name))];
    assert_eq!(settings(0).certificates, credential("plain"));
    assert_eq!(settings(1).certificates, credential("both"));
    let line = one_key.lines().nth(1).expect("of a key");
    let printed = format!("{:?} {:?}", stage.store.world(), output);
    assert!(!printed.contains(line) && !printed.contains("PRIVATE KEY"));
    let bytes = format!("{:?}", one_key.as_bytes());
    assert!(!printed.contains(&bytes[1..60]));
    for config in output.configs.values() {
        for content in config.shards.iter().flat_map(|shard| shard.values()) {
            assert!(!String::from_utf8_lossy(content).contains("PRIVATE KEY"));
        }
    }
}

// spec: GW-042, BYD-066, DLV-153
#[test]
fn what_is_missing_or_malformed_is_left_out_and_told() {
    let (good, bad) = (pair("good"), pair("bad"));
    let mut stage = Stage::new(&gateway(
        1,
        "gw",
        &[
            "mode: SIMPLE, credentialName: good",
            "mode: SIMPLE, credentialName: bad",
        ],
    ));
    stage.secret("edge/good", Some(&[("cert", &good.0), ("key", &good.1)]));
    let output = stage.render();
    assert!(!credentials(&output).is_complete, "nothing is known of the other one");
    assert_eq!(unresolved(&output), None);
    let crossed: &[(&str, &str)] = &[("cert", &bad.0), ("key", &good.1)];
    let cases: [(Held<'_>, &str, &str); 6] = [
        (None, "SecretNotFound", "edge/bad"),
        (Some(&[]), "SecretInvalid", "neither tls.crt"),
        (
            Some(&[("tls.crt", &bad.0), ("key", &bad.1)]),
            "SecretInvalid",
            "neither tls.crt",
        ),
        (
            Some(&[("tls.crt", "x"), ("tls.key", &bad.1)]),
            "SecretInvalid",
            "no good tls.crt",
        ),
        (
            Some(&[("tls.crt", &bad.0), ("tls.key", "x")]),
            "SecretInvalid",
            "no good tls.key",
        ),
        (Some(crossed), "SecretInvalid", "not that of cert"),
    ];
    for (files, reason, word) in cases {
        let output = stage.secret("edge/bad", files).render();
        let (told, message) = unresolved(&output).expect("told");
        assert!(told == reason && message.contains(word), "{told} {message}");
        assert!(credentials(&output).is_complete);
        assert_eq!(file(&output, "good", "crt").as_ref(), Some(&good.0));
        assert_eq!((file(&output, "bad", "crt"), file(&output, "bad", "key")), (None, None));
        let index = &credentials(&output).shards[0][&credentials_index(0)];
        let index = String::from_utf8_lossy(index).into_owned();
        assert!(index.contains(&credential_stem("edge", "bad")), "so that proxies know");
    }
    let before = credentials(&stage.render()).revision.clone();
    let output = stage
        .secret("edge/bad", Some(&[("tls.crt", &bad.0), ("tls.key", &bad.1)]))
        .render();
    assert_eq!(unresolved(&output), None);
    assert_eq!(file(&output, "bad", "key").as_ref(), Some(&bad.1));
    assert_ne!(credentials(&output).revision, before);
}

// spec: GW-041, GW-044
#[test]
fn authorities_come_from_the_secret_or_from_the_one_beside_it() {
    let (own, key) = pair("own");
    let ((first, issuer), (second, _), (third, _)) = (authority(), authority(), authority());
    let now = rcgen::date_time_ymd(2026, 1, 1);
    let list = rcgen::CertificateRevocationListParams {
        this_update: now,
        next_update: rcgen::date_time_ymd(2046, 1, 1),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&issuer).expect("a list").pem().expect("PEM");
    let mut stage = Stage::new(&gateway(
        1,
        "gw",
        &[
            "mode: MUTUAL, credentialName: a",
            "mode: OPTIONAL_MUTUAL, credentialName: b, caCertCredentialName: c",
        ],
    ));
    let with = |more: &[(&'static str, String)]| -> Vec<(String, String)> {
        let pair = [("tls.crt", own.clone()), ("tls.key", key.clone())];
        pair.iter()
            .chain(more)
            .map(|(name, text)| ((*name).to_owned(), text.clone()))
            .collect()
    };
    let put = |stage: &mut Stage, id: &str, files: &[(String, String)]| {
        let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        stage.secret(id, Some(&files));
    };
    put(
        &mut stage,
        "edge/a",
        &with(&[("ca.crt", first.clone()), ("ca.crl", list.clone())]),
    );
    put(&mut stage, "edge/b", &with(&[("ca.crt", first.clone())]));
    put(&mut stage, "edge/c", &[("cacert".to_owned(), third.clone())]);
    stage.secret("edge/a-cacert", None);
    let output = stage.render();
    let named: Vec<_> = output.named_credentials.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(named, ["a", "a-cacert", "b", "c"]);
    assert_eq!(unresolved(&output), None);
    assert_eq!(file(&output, "a", "ca").as_ref(), Some(&first));
    assert_eq!(file(&output, "a", "crl").as_ref(), Some(&list));
    assert_eq!(
        (file(&output, "b", "ca"), file(&output, "c", "ca")),
        (None, Some(third))
    );
    put(&mut stage, "edge/a-cacert", &[("ca.crt".to_owned(), second.clone())]);
    let output = stage.render();
    assert_eq!(file(&output, "a", "ca").as_ref(), Some(&second), "the one beside it");
    assert_eq!(file(&output, "a", "crl"), None);
    put(&mut stage, "edge/c", &[("x".to_owned(), String::new())]);
    let (reason, message) = unresolved(&stage.render()).expect("told");
    assert!(reason == "SecretInvalid" && message.contains("edge/c"), "{message}");
}

// spec: DLV-155, DLV-152
#[test]
fn credentials_of_the_oldest_gateways_are_kept_where_not_all_fit() {
    let pairs = [pair("a"), pair("b"), pair("c")];
    let mut settings = Settings::default();
    // Room for one in each of two Secrets.
    settings.limits.shard = pairs
        .iter()
        .map(|(chain, key)| chain.len() + key.len() + 100)
        .max()
        .unwrap_or(0);
    settings.limits.credential_shards = 2;
    let names = ["a", "b", "c"].map(|name| format!("mode: SIMPLE, credentialName: {name}"));
    let gateways =
        gateway(1, "young", &[&names[0]]) + &gateway(3, "oldest", &[&names[1]]) + &gateway(2, "old", &[&names[2]]);
    let mut stage = Stage::new(&gateways).with(settings);
    for (name, (chain, key)) in ["a", "b", "c"].iter().zip(&pairs) {
        stage.secret(&format!("edge/{name}"), Some(&[("tls.crt", chain), ("tls.key", key)]));
    }
    let output = stage.render();
    let has = |name: &str| file(&output, name, "crt").is_some() && file(&output, name, "key").is_some();
    assert_eq!((has("a"), has("b"), has("c")), (false, true, true));
    assert_eq!(credentials(&output).shards.len(), 2);
    let told = |name: &str| {
        let of =
            |(reference, _): &(&ObjectRef, &ObjectReport)| reference.kind == Kind::Gateway && reference.name == name;
        let (_, report) = output.reports.iter().find(of).expect("reported");
        report.unresolved.as_ref().map(|(reason, _)| *reason)
    };
    assert_eq!(
        (told("young"), told("oldest"), told("old")),
        (Some("BundleTooLarge"), None, None)
    );
}

/// What the proxy of a workload does towards `echo` by a rule with TLS.
fn originates(output: &Output, workload: &str) -> OriginateTls {
    let bundle = bundle(output, workload);
    let echo = bundle.hosts.iter().find(|host| host.name == "echo").expect("seen");
    match &echo.ports[0].policy.tls {
        UpstreamTls::Originate(settings) => (**settings).clone(),
        other => panic!("{other:?}"),
    }
}

/// Files of the copy that the proxies of a workload mount.
fn copied(output: &Output, workload: &str) -> Option<Files> {
    let (namespace, name) = workload.split_once('/').expect("namespace/name");
    let of = |(reference, config): (&ConfigRef, &Arc<crate::render::RenderedConfig>)| {
        (reference.namespace == namespace && config.inputs.workload == name).then(|| reference.clone())
    };
    let reference = output.configs.iter().find_map(of).expect("rendered");
    let rendered = output.credentials.get(&reference)?;
    Some(rendered.shards.iter().flat_map(|shard| Files::clone(shard)).collect())
}

fn report<'o>(output: &'o Output, rule: &str) -> &'o ObjectReport {
    &output.reports[&source(Kind::DestinationRule, rule)]
}

fn tls_rule(name: &str, more: &str, tls: &str) -> String {
    rule(
        "app",
        name,
        1,
        &format!("{{host: echo{more}, trafficPolicy: {{tls: {{{tls}}}}}}}"),
    )
}

// spec: DR-114, BYD-061
#[test]
fn a_secret_of_a_rule_is_for_gateways_and_for_the_sidecars_that_the_rule_selects() {
    let ((leaf, key), (root, _)) = (pair("client"), authority());
    let held: &[(&str, &str)] = &[("tls.crt", &leaf), ("tls.key", &key), ("ca.crt", &root)];
    let mut stage = Stage::new(&tls_rule("r", "", "mode: MUTUAL, credentialName: bank"));
    stage
        .secret("edge/bank", Some(held))
        .secret("edge/bank-cacert", None)
        .secret("app/bank", Some(held))
        .secret("other/bank", Some(held));
    let output = stage.render();
    // Each gateway has that of its own namespace.
    let named = ["edge/bank", "edge/bank-cacert"].map(|id| source(Kind::Secret, id));
    assert_eq!(output.named_credentials, BTreeSet::from(named));
    let of_gateway = originates(&output, "edge/ingress");
    let credential = of_gateway.credential.expect("a credential");
    assert_eq!(credential.to_string(), "Secret edge/bank");
    assert!(credential.shows_certificate && credential.has_authorities && of_gateway.unavailable.is_none());
    let files = copied(&output, "edge/ingress").expect("a copy");
    let file = |ending: &str| files.get(&format!("{}.{ending}", credential.stem()));
    for (ending, text) in [("crt", &leaf), ("key", &key), ("ca", &root)] {
        assert_eq!(file(ending).map(Vec::as_slice), Some(text.as_bytes()), "{ending}");
    }
    // Sidecars have none, and neither TLS nor clear.
    for workload in ["app/client", "other/client"] {
        let settings = originates(&output, workload);
        assert!(settings.credential.is_none() && settings.unavailable.expect("why").contains("bank"));
        assert_eq!(copied(&output, workload), None);
    }
    let told = report(&output, "app/r");
    assert!(
        told.warnings.iter().any(|text| text.contains("workloadSelector")),
        "{told:?}"
    );
    assert_eq!(told.unresolved, None);

    let selector = ", workloadSelector: {matchLabels: {app: client}}";
    let mut stage = Stage::new(&tls_rule(
        "r",
        selector,
        "mode: MUTUAL, credentialName: 'kubernetes://bank'",
    ));
    stage.secret("app/bank", Some(held)).secret("app/bank-cacert", None);
    let output = stage.render();
    let settings = originates(&output, "app/client");
    assert_eq!(
        settings.credential.expect("a credential").to_string(),
        "Secret app/bank"
    );
    assert_eq!(
        copied(&output, "app/client").expect("a copy").len(),
        4,
        "three files and the index"
    );
    assert_eq!(copied(&output, "other/client"), None, "such a rule is private");
    assert_eq!(
        (&report(&output, "app/r").warnings, &report(&output, "app/r").unresolved),
        (&Vec::new(), &None)
    );
}

// spec: DR-114, DR-112
#[test]
fn a_config_map_gives_authorities_to_every_proxy_and_certificates_to_none() {
    let (root, _) = authority();
    let mut stage = Stage::new(&tls_rule(
        "r",
        "",
        "mode: SIMPLE, credentialName: 'configmap://app/roots'",
    ));
    stage.hold(Kind::ConfigMap, "app/roots", Some(&[("ca.crt", &root)]));
    let output = stage.render();
    assert_eq!(
        output.named_credentials,
        BTreeSet::from([source(Kind::ConfigMap, "app/roots")])
    );
    for workload in ["app/client", "other/client", "edge/ingress"] {
        let credential = originates(&output, workload).credential.expect("a credential");
        assert_eq!(credential.to_string(), "ConfigMap app/roots");
        assert!(!credential.shows_certificate && credential.has_authorities);
        let files = copied(&output, workload).expect("a copy");
        assert_eq!(
            files[&format!("{}.ca", credential.stem())],
            root.as_bytes(),
            "{workload}"
        );
    }
    let mutual = Stage::new(&tls_rule(
        "r",
        "",
        "mode: MUTUAL, credentialName: 'configmap://app/roots'",
    ))
    .render();
    for workload in ["app/client", "edge/ingress"] {
        let settings = originates(&mutual, workload);
        assert!(settings.unavailable.expect("why").contains("no key"), "{workload}");
    }
}

// spec: DR-114, DR-115, DLV-153
#[test]
fn what_a_rule_names_and_is_not_there_is_told_at_the_rule() {
    let (root, _) = authority();
    let selector = ", workloadSelector: {matchLabels: {app: client}}";
    let mut stage = Stage::new(&tls_rule("r", selector, "mode: SIMPLE, credentialName: bank"));
    assert_eq!(
        report(&stage.render(), "app/r").unresolved,
        None,
        "nothing is known yet"
    );
    stage.secret("app/bank", None).secret("app/bank-cacert", None);
    let output = stage.render();
    let (reason, message) = report(&output, "app/r").unresolved.clone().expect("told");
    assert!(reason == "SecretNotFound" && message.contains("app/bank") && message.contains("requests fail"));
    let files = copied(&output, "app/client").expect("a copy");
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["index-0"],
        "which says that it is not there"
    );
    stage.secret("app/bank", Some(&[("ca.crt", "x")]));
    let (reason, _) = report(&stage.render(), "app/r").unresolved.clone().expect("told");
    assert_eq!(reason, "SecretInvalid");
    stage.secret("app/bank-cacert", Some(&[("cacert", &root)]));
    let output = stage.render();
    assert_eq!(report(&output, "app/r").unresolved, None, "the one beside it is enough");
    assert_eq!(copied(&output, "app/client").expect("a copy").len(), 2);
}

// spec: DR-114, GW-041
#[test]
fn a_rule_chooses_no_authorities_for_the_clients_of_a_gateway() {
    let ((own, _), (beside, _), (leaf, key)) = (authority(), authority(), pair("shop"));
    let gateways = gateway(
        1,
        "g",
        &["mode: MUTUAL, credentialName: shop, caCertCredentialName: bank"],
    );
    let mut stage = Stage::new(&(gateways + &tls_rule("r", "", "mode: SIMPLE, credentialName: bank")));
    stage
        .secret("edge/shop", Some(&[("tls.crt", &leaf), ("tls.key", &key)]))
        .secret("edge/shop-cacert", None)
        .secret("edge/bank", Some(&[("ca.crt", &own)]))
        .secret("edge/bank-cacert", Some(&[("ca.crt", &beside)]));
    let output = stage.render();
    assert_eq!(file(&output, "bank", "ca").as_ref(), Some(&own));
    let credential = originates(&output, "edge/ingress").credential.expect("a credential");
    let files = copied(&output, "edge/ingress").expect("a copy");
    assert_eq!(files[&format!("{}.ca", credential.stem())], beside.as_bytes());
    // What one of them lacks is told to that one.
    stage.secret("edge/bank-cacert", Some(&[("ca.crt", "x")]));
    let output = stage.render();
    let (reason, _) = report(&output, "app/r").unresolved.clone().expect("told");
    assert_eq!((unresolved(&output), reason), (None, "SecretInvalid"));
}

// spec: DR-115, DLV-155
#[test]
fn credentials_of_other_namespaces_do_not_take_the_room_of_ones_own() {
    let (root, _) = authority();
    let mut settings = Settings::default();
    // Room for one.
    settings.limits.shard = root.len() + 100;
    let other = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: aa}}\n---\napiVersion: v1\nkind: Service\nmetadata: \
         {{name: aaa, namespace: aa}}\nspec: {{clusterIP: 10.9.9.9, ports: [{{name: http, port: 80}}]}}\n{}",
        rule(
            "aa",
            "theirs",
            3,
            "{host: aaa, trafficPolicy: {tls: {mode: SIMPLE, credentialName: 'configmap://aa/roots'}}}"
        )
    );
    let mine = tls_rule("mine", "", "mode: SIMPLE, credentialName: 'configmap://app/roots'");
    let mut stage = Stage::new(&(other + &mine)).with(settings);
    let held: Held<'_> = Some(&[("ca.crt", &root)]);
    stage
        .hold(Kind::ConfigMap, "aa/roots", held)
        .hold(Kind::ConfigMap, "app/roots", held);
    let output = stage.render();
    let files = copied(&output, "app/client").expect("a copy");
    let (of_mine, of_theirs) = (config_map_stem("app", "roots"), config_map_stem("aa", "roots"));
    assert!(files.contains_key(&format!("{of_mine}.ca")) && !files.contains_key(&format!("{of_theirs}.ca")));
    let index = String::from_utf8_lossy(&files[&credentials_index(0)]).into_owned();
    assert!(index.contains(&of_theirs), "so that proxies do not wait for it");
    let (reason, _) = report(&output, "aa/theirs").unresolved.clone().expect("told");
    assert_eq!(reason, "BundleTooLarge");
}

// spec: DR-115, DLV-155
#[test]
fn a_credential_that_is_too_large_is_left_out_and_told() {
    let (root, _) = authority();
    let padded = root.clone() + &"#".repeat(LARGEST);
    let mut stage = Stage::new(&tls_rule(
        "r",
        "",
        "mode: SIMPLE, credentialName: 'configmap://app/roots'",
    ));
    stage.hold(Kind::ConfigMap, "app/roots", Some(&[("ca.crt", &padded)]));
    let output = stage.render();
    assert_eq!(copied(&output, "app/client").expect("a copy").len(), 1, "the index");
    let (reason, message) = report(&output, "app/r").unresolved.clone().expect("told");
    assert!(
        reason == "SecretInvalid" && message.contains("of at most 262144"),
        "{message}"
    );
}

// spec: ID-130
#[test]
fn a_rule_names_no_secret_of_the_mesh_itself() {
    for name in ["weft.default", "kubernetes://weft-tls-x-0"] {
        let mut stage = Stage::new(&tls_rule("r", "", &format!("mode: MUTUAL, credentialName: '{name}'")));
        let settings = originates(&stage.render(), "edge/ingress");
        assert!(settings.unavailable.expect("why").contains("of the mesh itself"));
    }
}

/// Pods `edge/ingress-N`, with the number of Secrets that they mount.
fn ingress_pods(stage: &mut Stage, shards: &[&str]) {
    let output = stage.render();
    let of = |reference: &&ConfigRef| reference.namespace == "edge";
    let key = &output.configs.keys().find(of).expect("rendered").key;
    for (n, shards) in shards.iter().enumerate() {
        let status = format!("{{\"tlsShards\": {shards}}}");
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("ingress-5d8f-{n}"),
            "namespace": "edge", "labels": {"istio": "in", "sidecar.istio.io/inject": "true", "pod-template-hash": "5d8f"},
            "annotations": {"weft.dev/config-key": key, "weft.dev/status": status,
                "inject.istio.io/templates": "gateway"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "ingress-5d8f", "uid": "u",
                "controller": true}]},
            "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]}, "status": {"phase": "Running"}});
        let Read::Object(object) = object(&pod, "weft-system").expect("readable") else {
            panic!("of no use");
        };
        stage.store.apply(Event::Apply(object));
    }
    assert_eq!(stage.render().pods.len(), shards.len(), "they are users of the key");
}

// spec: DLV-151, DLV-032, BYD-061
#[test]
fn credentials_are_in_as_many_secrets_as_the_narrowest_pod_mounts() {
    let pairs = [pair("a"), pair("b"), pair("c")];
    let room = pairs.iter().map(|(chain, key)| chain.len() + key.len() + 100).max();
    let of = |shards: &[&str]| {
        let mut settings = Settings::default();
        // Room for one in each Secret.
        settings.limits.shard = room.expect("three");
        let names = ["a", "b", "c"].map(|name| format!("mode: SIMPLE, credentialName: {name}"));
        let gateways: String = names
            .iter()
            .enumerate()
            .map(|(n, tls)| gateway(3 - n as u32, &format!("g{n}"), &[tls]))
            .collect();
        let mut stage = Stage::new(&gateways).with(settings);
        for (name, (chain, key)) in ["a", "b", "c"].iter().zip(&pairs) {
            stage.secret(&format!("edge/{name}"), Some(&[("tls.crt", chain), ("tls.key", key)]));
        }
        ingress_pods(&mut stage, shards);
        stage.render()
    };
    let told = |output: &Output, name: &str| {
        let report = &output.reports[&source(Kind::Gateway, &format!("app/{name}"))];
        report.unresolved.clone()
    };
    for (pods, expected) in [
        (&["3"][..], 3),
        (&["4", "2"], 2),
        (&["8", "1"], 1),
        (&["9"], 3),
        (&["\"1\""], 3),
    ] {
        let output = of(pods);
        assert_eq!(credentials(&output).shards.len(), expected, "{pods:?}");
        let kept = (0..3)
            .map(|n| told(&output, &format!("g{n}")))
            .filter(Option::is_none)
            .count();
        assert_eq!(kept, expected, "{pods:?}");
    }
    // Without a volume there is nothing to write, and whoever names a Secret is told.
    let none = of(&["0", "0"]);
    assert!(none.credentials.is_empty());
    let (reason, why) = told(&none, "g1").expect("told");
    assert_eq!(reason, "NotMounted");
    for part in [
        "Secret edge/b",
        "the pods of edge/ingress",
        "delivery.tlsShards",
        "handshakes fail",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    // Those that have one are served.
    let some = of(&["0", "2"]);
    assert_eq!(credentials(&some).shards.len(), 2);
    let (reason, why) = told(&some, "g0").expect("told");
    assert!(
        reason == "NotMounted" && why.contains("some pods of edge/ingress"),
        "{why}"
    );
}
