//! The parts of [`PodShape`](super::PodShape) that are read from a pod's annotations and containers. A value that the
//! webhook would refuse counts as unset here: no such pod exists.

use std::collections::BTreeMap;

use super::{InterceptionMode, Template};

/// Name of the sidecar's container (INJ-002).
pub const PROXY_CONTAINER: &str = "weft-proxy";
/// Name of the init container that sets the redirect (INJ-003).
pub const INIT_CONTAINER: &str = "weft-init";
/// Name of the init container that checks the CNI plugin's redirect (INJ-003).
pub const VALIDATION_CONTAINER: &str = "weft-validation";

/// Whether a container is the user's own: neither Weft's nor an overlay over Weft's (INJ-180). Only the ports of the
/// user's containers count, those of `spec.containers` and of `spec.initContainers`.
#[must_use]
pub fn is_user_container(name: &str, image: &str) -> bool {
    let overlay = name == "istio-proxy" && image == "auto";
    !overlay && ![PROXY_CONTAINER, INIT_CONTAINER, VALIDATION_CONTAINER].contains(&name)
}

/// Sidecar or gateway, from the pod's annotations (INJ-187).
#[must_use]
pub fn template(annotations: &BTreeMap<String, String>) -> Template {
    match first(annotations, &["weft.dev/templates", "inject.istio.io/templates"]) {
        Some("gateway") => Template::Gateway,
        _ => Template::Sidecar,
    }
}

/// How the pod's traffic reaches the proxy (INJ-156, INJ-164); `default` is the mesh config's word.
#[must_use]
pub fn interception_mode(annotations: &BTreeMap<String, String>, default: InterceptionMode) -> InterceptionMode {
    first(
        annotations,
        &["weft.dev/interception-mode", "sidecar.istio.io/interceptionMode"],
    )
    .and_then(mode)
    .or_else(|| {
        let config = annotations.get("proxy.istio.io/config")?;
        let config: serde_json::Value = serde_yaml::from_str(config).ok()?;
        mode(config.get("interceptionMode")?.as_str()?)
    })
    .unwrap_or(default)
}

/// The modes by name; nothing else, and no lower case.
#[must_use]
pub fn mode(name: &str) -> Option<InterceptionMode> {
    match name {
        "REDIRECT" => Some(InterceptionMode::Redirect),
        "TPROXY" => Some(InterceptionMode::Tproxy),
        "NONE" => Some(InterceptionMode::None),
        _ => None,
    }
}

fn first<'a>(annotations: &'a BTreeMap<String, String>, keys: &[&str]) -> Option<&'a str> {
    keys.iter()
        .find_map(|key| annotations.get(*key))
        .map(|value| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    // spec: INJ-156, INJ-164
    #[test]
    fn the_weft_key_wins_over_the_istio_key_over_the_proxy_config() {
        let config = ("proxy.istio.io/config", "interceptionMode: NONE");
        let istio = ("sidecar.istio.io/interceptionMode", "TPROXY");
        let weft = ("weft.dev/interception-mode", "REDIRECT");
        let of = |pairs: &[(&str, &str)]| interception_mode(&annotations(pairs), InterceptionMode::Redirect);
        assert_eq!(of(&[]), InterceptionMode::Redirect);
        assert_eq!(of(&[config]), InterceptionMode::None);
        assert_eq!(of(&[config, istio]), InterceptionMode::Tproxy);
        assert_eq!(of(&[config, istio, weft]), InterceptionMode::Redirect);
    }

    // spec: INJ-180, INJ-187
    #[test]
    fn overlays_are_no_user_containers() {
        assert!(is_user_container("app", "app:1") && is_user_container("istio-proxy", "other:1"));
        assert!(!is_user_container("weft-proxy", "auto") && !is_user_container("istio-proxy", "auto"));
        assert_eq!(
            template(&annotations(&[("inject.istio.io/templates", "gateway")])),
            Template::Gateway
        );
        assert_eq!(template(&annotations(&[])), Template::Sidecar);
    }
}
