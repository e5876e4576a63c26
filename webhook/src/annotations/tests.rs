use super::*;

fn parse(pairs: &[(&str, &str)]) -> (Result<Overrides, Vec<String>>, Vec<String>) {
    let annotations = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let mut warnings = Vec::new();
    let parsed = Overrides::parse(&annotations, &InjectConfig::new("i"), &mut warnings);
    (
        parsed.map_err(|violations| violations.iter().map(ToString::to_string).collect()),
        warnings,
    )
}

fn accepted(pairs: &[(&str, &str)]) -> Overrides {
    parse(pairs).0.expect("accepted")
}

// spec: INJ-150, INJ-151, INJ-153, INJ-154, INJ-155, INJ-156, INJ-157, INJ-159, INJ-161, INJ-163, INJ-164, INJ-165, INJ-187
#[test]
fn what_cannot_be_honoured_refuses_the_pod() {
    let rows = [
        ("weft.dev/proxy-cpu", "lots"),
        ("sidecar.istio.io/proxyMemoryLimit", "-1"),
        ("weft.dev/proxy-image", ""),
        ("weft.dev/proxy-image", "a b"),
        ("weft.dev/exclude-inbound-ports", "0"),
        ("weft.dev/include-inbound-ports", "80-90"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "*"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "65536"),
        ("weft.dev/exclude-outbound-ports", "http"),
        ("weft.dev/include-outbound-ports", "+80"),
        ("weft.dev/exclude-outbound-cidrs", "*"),
        ("weft.dev/exclude-outbound-cidrs", "10.0.0.1"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "fd00::/129"),
        ("weft.dev/interception-mode", "redirect"),
        ("weft.dev/exclude-interfaces", "a-name-that-is-too-long"),
        ("weft.dev/exclude-interfaces", "eth/0"),
        ("weft.dev/log-level", "loud"),
        ("weft.dev/readiness-period-seconds", "0"),
        ("readiness.status.sidecar.istio.io/failureThreshold", "-1"),
        ("weft.dev/status-port", "99999"),
        ("weft.dev/status-port", "15001"),
        ("proxy.istio.io/config", "a: ["),
        ("proxy.istio.io/config", "concurrency: -1"),
        ("proxy.istio.io/config", "drainDuration: 1.5s"),
        ("proxy.istio.io/config", "drainDuration: 0s"),
        ("proxy.istio.io/config", "proxyMetadata: {A: 1}"),
        ("weft.dev/user-volume", "[]"),
        ("sidecar.istio.io/userVolumeMount", "{\"a\": 1}"),
        ("inject.istio.io/templates", "grpc-agent"),
        ("prometheus.istio.io/scrape-targets", "15090:/metrics"),
        ("prometheus.istio.io/scrape-targets", ":/metrics"),
    ];
    for (key, value) in rows {
        let violations = parse(&[(key, value)]).0.expect_err(&format!("{key}={value}"));
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(
            violations[0].starts_with(&format!("annotation {key}: ")),
            "{violations:?}"
        );
    }
}

// spec: INJ-172
#[test]
fn all_violations_come_at_once_sorted_by_key() {
    let violations = parse(&[
        ("weft.dev/status-port", "x"),
        ("sidecar.istio.io/proxyCPU", "x"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "x"),
    ])
    .0
    .unwrap_err();
    let keys: Vec<_> = violations.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        keys,
        [
            "annotation sidecar.istio.io/proxyCPU",
            "annotation traffic.sidecar.istio.io/excludeInboundPorts",
            "annotation weft.dev/status-port",
        ]
    );
}

// spec: INJ-127
#[test]
fn control_characters_refuse_the_pod() {
    for (key, value) in [
        ("weft.dev/proxy-image", "a\nb"),
        ("weft.dev/log-level", "info\u{7}"),
        ("weft.dev/rewrite-probes", "true\n"),
        ("proxy.istio.io/config", "concurrency: 1\u{0}"),
    ] {
        let violations = parse(&[(key, value)]).0.unwrap_err();
        assert!(violations[0].contains("control character"), "{violations:?}");
    }
    let block = "concurrency: 2\nholdApplicationUntilProxyStarts: true\n";
    assert_eq!(
        accepted(&[("proxy.istio.io/config", block)])
            .proxy_config
            .hold_application,
        Some(true)
    );
}

// spec: INJ-169, INJ-155
#[test]
fn lists_are_trimmed_and_without_repetition() {
    let overrides = accepted(&[
        ("weft.dev/exclude-outbound-ports", " 80, ,443 ,80,"),
        (
            "weft.dev/include-outbound-cidrs",
            "10.96.0.1/24, fd00::1/64,10.96.0.0/24",
        ),
        ("weft.dev/include-inbound-ports", ""),
    ]);
    assert_eq!(overrides.capture.exclude_outbound, [80, 443]);
    assert_eq!(overrides.capture.include_cidrs.text(), "10.96.0.0/24,fd00::/64");
    assert_eq!(overrides.capture.include_inbound.text(), "");
}

// spec: INJ-171, INJ-140
#[test]
fn the_proxys_own_ports_are_never_captured() {
    let of = |pairs: &[(&str, &str)]| {
        let overrides = accepted(pairs);
        overrides.capture.exclude_inbound_with(overrides.status_port)
    };
    assert_eq!(of(&[]), [15020, 15021, 15090]);
    assert_eq!(
        of(&[("weft.dev/exclude-inbound-ports", "8080,15021")]),
        [8080, 15021, 15020, 15090]
    );
    assert_eq!(of(&[("weft.dev/status-port", "9000")]), [9000, 15021, 15090]);
    assert_eq!(of(&[("status.sidecar.istio.io/port", "0")]), [15020, 15021, 15090]);
}

// spec: INJ-170
#[test]
fn one_resource_annotation_drops_the_defaults() {
    let overrides = accepted(&[("sidecar.istio.io/proxyCPU", "100m")]);
    assert_eq!(
        overrides.resources,
        Some(serde_json::json!({"requests": {"cpu": "100m"}}))
    );
    assert_eq!(accepted(&[]).resources, None);
    let violations = parse(&[("weft.dev/proxy-cpu", "2"), ("weft.dev/proxy-cpu-limit", "1999m")])
        .0
        .unwrap_err();
    assert_eq!(
        violations,
        ["annotation weft.dev/proxy-cpu: 2 is above the limit; must be at most 1999m"]
    );
}

// spec: INJ-150, INJ-153
#[test]
fn a_weft_key_wins_over_the_istio_key() {
    let overrides = accepted(&[
        ("weft.dev/exclude-inbound-ports", "1"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "2"),
        ("weft.dev/proxy-cpu", "1"),
        ("sidecar.istio.io/proxyCPU", "2"),
    ]);
    assert_eq!(overrides.capture.exclude_inbound, [1]);
    assert_eq!(overrides.resources.unwrap()["requests"]["cpu"], "1");
}

// spec: INJ-152, INJ-162, INJ-164, INJ-166, INJ-167, INJ-168
#[test]
fn what_has_no_effect_is_named() {
    let (parsed, warnings) = parse(&[
        ("sidecar.istio.io/proxyImage", "other"),
        ("readiness.status.sidecar.istio.io/applicationPorts", "80"),
        ("sidecar.istio.io/rewriteAppHTTPProbers", "maybe"),
        ("sidecar.istio.io/bootstrapOverride", "x"),
        ("weft.dev/unheard-of", "x"),
        ("new.istio.io/unheard-of", "x"),
        ("proxy.istio.io/config", "discoveryAddress: x"),
        ("example.com/mine", "x"),
        ("sidecar.istio.io/logLevel", "debug"),
    ]);
    let overrides = parsed.expect("accepted");
    assert!(overrides.rewrite_probes);
    assert_eq!(overrides.log_level.as_deref(), Some("debug"));
    for key in [
        "sidecar.istio.io/proxyImage",
        "readiness.status.sidecar.istio.io/applicationPorts",
        "sidecar.istio.io/rewriteAppHTTPProbers",
        "sidecar.istio.io/bootstrapOverride",
        "weft.dev/unheard-of",
        "new.istio.io/unheard-of",
        "proxy.istio.io/config",
    ] {
        let named = warnings
            .iter()
            .filter(|warning| warning.starts_with(&format!("annotation {key}: ")))
            .count();
        assert_eq!(named, 1, "{key} in {warnings:?}");
    }
    assert_eq!(warnings.len(), 7, "{warnings:?}");
}

// spec: INJ-175
#[test]
fn an_annotation_replaces_the_meshs_default() {
    let mut config = InjectConfig::new("i");
    config.capture.exclude_cidrs = "10.0.0.0/8".to_owned();
    config.capture.include_inbound_ports = "80".to_owned();
    let of = |pairs: &[(&str, &str)]| {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Overrides::parse(&annotations, &config, &mut Vec::new())
            .unwrap()
            .capture
    };
    assert_eq!(of(&[]).exclude_cidrs, ["10.0.0.0/8"]);
    assert_eq!(of(&[]).include_inbound.text(), "80");
    assert_eq!(
        of(&[("weft.dev/exclude-outbound-cidrs", "192.168.0.0/16")]).exclude_cidrs,
        ["192.168.0.0/16"]
    );
    assert!(of(&[("weft.dev/exclude-outbound-cidrs", "")]).exclude_cidrs.is_empty());
}
