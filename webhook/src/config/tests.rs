use super::*;

// spec: INJ-212, INJ-060, INJ-175
#[test]
fn values_have_the_charts_layout_and_config_is_merged_over_them() {
    let values = "
global: {hub: registry.example/mesh, tag: 1.0, imagePullSecrets: [first, {name: second}], logAsJson: true}
revision: ''
injection: {nativeSidecar: true, neverInjectSelector: [{matchLabels: {a: b}}, {matchExpressions: [{key: k, operator: In}]}]}
proxy: {excludeIPRanges: 10.0.0.0/8, includeInboundPorts: '80, 81'}
delivery: {cfgShards: 3}
operator: {replicas: 2}
";
    let config = InjectConfig::parse("delivery: {cfgShards: 4}", values, "trustDomain: example.org").unwrap();
    assert_eq!(config.image, "registry.example/mesh/weft-proxy:1.0");
    assert_eq!(config.image_pull_secrets, ["first", "second"]);
    assert_eq!((config.cfg_shards, config.ep_shards, config.tls_shards), (4, 2, None));
    assert_eq!(config.native_sidecar, NativeSidecar::Always);
    assert_eq!(
        config.never_inject.len(),
        1,
        "the unparsable selector is left out, the other stays"
    );
    assert_eq!(config.capture.exclude_cidrs, "10.0.0.0/8");
    assert_eq!(config.mesh.trust_domain, "example.org");
    assert_eq!(config.revision, "default");
    assert!(config.serves("default") && !config.serves("canary"));
}

// spec: INJ-212, INJ-175, DLV-031, NET-011, NET-100, NET-103
#[test]
fn every_problem_of_a_bad_version_is_reported() {
    let values = "
proxy: {image: registry.example/weft-proxy:1, includeIPRanges: 10.0.0.1, excludeInboundPorts: '80-90'}
delivery: {cfgShards: 9}
telemetry: {maxSeriesPerMetric: 0}
global: {imagePullPolicy: Sometimes}
injection: {nativeSidecar: maybe}
interception: {iptablesBinary: tables, backend: ebpf}
proxyInit: {image: 'two words'}
";
    let error = InjectConfig::parse(
        "",
        values,
        "proxyListenPort: 15006\ndefaultConfig: {interceptionMode: redirect}",
    )
    .unwrap_err();
    for expected in [
        "proxy.includeIPRanges: \"10.0.0.1\"",
        "proxy.excludeInboundPorts: \"80-90\"",
        "delivery.cfgShards: 9",
        "telemetry.maxSeriesPerMetric: 0",
        "global.imagePullPolicy: \"Sometimes\"",
        "injection.nativeSidecar: \"maybe\"",
        "interception.iptablesBinary: \"tables\"",
        "interception.backend: \"ebpf\"",
        "proxyInit.image: \"two words\"",
        "mesh.proxyInboundListenPort: \"15006\"",
        "mesh.defaultConfig.interceptionMode: \"redirect\"",
    ] {
        assert!(
            error.problems.iter().any(|problem| problem.starts_with(expected)),
            "{expected} in {error}"
        );
    }
    assert!(
        InjectConfig::parse("", "", "")
            .unwrap_err()
            .to_string()
            .contains("global.hub")
    );
    assert!(
        InjectConfig::parse("a: [", "proxy: {image: i}", "")
            .unwrap_err()
            .to_string()
            .starts_with("config: ")
    );
    let wrong_type = InjectConfig::parse("", "proxy: {image: i}", "enablePrometheusMerge: 3").unwrap_err();
    assert!(wrong_type.to_string().starts_with("mesh: "), "{wrong_type}");
    assert!(InjectConfig::parse("- a", "proxy: {image: i}", "").is_err());
}
