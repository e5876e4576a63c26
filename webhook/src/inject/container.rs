//! Weft's containers: `weft-proxy` and `weft-init`.

use serde_json::{Map, Value, json};
use weft_bundle::key::pod::{INIT_CONTAINER, PROXY_CONTAINER, VALIDATION_CONTAINER};
use weft_bundle::key::{InterceptionMode, Template};

use super::overlay::{self, Overlays};
use super::probes::Probers;
use super::{Plan, environment, volumes};
use crate::annotations::ports;
use crate::pod::at;

/// Uid and gid of the proxy (INJ-004).
pub(super) const PROXY_ID: u64 = 1337;

/// The sidecar, with the user's overlay merged over it.
pub(super) fn proxy(
    plan: &Plan<'_>,
    pod: &Value,
    overlays: &Overlays,
    probers: &Probers,
    scraped: Option<&str>,
    warnings: &mut Vec<String>,
) -> Value {
    let mode = match plan.template() {
        Template::Sidecar => "sidecar",
        Template::Gateway => "gateway",
    };
    let mut container = json!({
        "name": PROXY_CONTAINER,
        "image": image(plan),
        "args": ["run", mode],
        "env": environment::of_proxy(plan, pod, probers, scraped, warnings),
        "ports": [{ "name": "http-weft-prom", "containerPort": 15090, "protocol": "TCP" }],
        "resources": resources(plan),
        "securityContext": proxy_security(plan),
        "volumeMounts": volumes::proxy_mounts(plan),
    });
    let fields = container.as_object_mut().expect("written as an object above");
    set_pull_policy(fields, plan);
    if plan.native {
        fields.insert("restartPolicy".to_owned(), json!("Always"));
    }
    if let Some(lifecycle) = lifecycle(plan) {
        fields.insert("lifecycle".to_owned(), lifecycle);
    }
    if plan.overrides.status_port != 0 {
        fields.insert(
            "startupProbe".to_owned(),
            probe(json!({ "periodSeconds": 1, "failureThreshold": 600 })),
        );
        let readiness = &plan.overrides.readiness;
        let timing = json!({
            "initialDelaySeconds": readiness.initial_delay_seconds,
            "periodSeconds": readiness.period_seconds,
            "failureThreshold": readiness.failure_threshold,
        });
        fields.insert("readinessProbe".to_owned(), probe(timing));
    }
    if let Some(overlay) = overlays.find(PROXY_CONTAINER) {
        let template = container.clone();
        overlay::apply(&mut container, overlay);
        overlay::protect(&mut container, &template);
        if plan.overrides.interception == InterceptionMode::Tproxy {
            container["securityContext"]["runAsUser"] = json!(0);
        }
    }
    environment::settle(&mut container);
    container
}

/// The init container that sets the redirect, or checks the CNI plugin's; `None` where there is no redirect (INJ-055).
pub(super) fn redirect(plan: &Plan<'_>, overlays: &Overlays) -> Option<Value> {
    if !plan.redirects() {
        return None;
    }
    let tproxy = plan.overrides.interception == InterceptionMode::Tproxy;
    let own = overlay::proxy_user(overlays).filter(|_| !tproxy);
    let (name, args, security) = if plan.config.cni {
        let security = validation_security(plan, own.unwrap_or(PROXY_ID));
        (VALIDATION_CONTAINER, validation_arguments(plan), security)
    } else {
        // As superuser without TPROXY the proxy is told by its group alone (NET-046).
        let root = plan.overrides.bind_low_ports && !tproxy;
        let uid = own.unwrap_or(if root { 0 } else { PROXY_ID });
        (INIT_CONTAINER, init_arguments(plan, uid), init_security(plan))
    };
    let image = plan.config.init_image.as_deref().filter(|_| name == INIT_CONTAINER);
    let mut container = json!({
        "name": name,
        "image": image.unwrap_or(self::image(plan)),
        "args": args,
        "resources": resources(plan),
        "securityContext": security,
        "volumeMounts": volumes::redirect_mounts(plan),
    });
    let environment = environment::of_redirect(plan);
    let fields = container.as_object_mut().expect("written as an object above");
    set_pull_policy(fields, plan);
    if !environment.is_empty() {
        fields.insert("env".to_owned(), Value::Array(environment));
    }
    if let Some(overlay) = overlay::of_redirect(overlays, name) {
        overlay::apply(&mut container, overlay);
    }
    Some(container)
}

fn image<'a>(plan: &'a Plan<'_>) -> &'a str {
    plan.overrides.image.as_deref().unwrap_or(&plan.config.image)
}

fn set_pull_policy(fields: &mut Map<String, Value>, plan: &Plan<'_>) {
    if let Some(policy) = &plan.config.image_pull_policy {
        fields.insert("imagePullPolicy".to_owned(), json!(policy));
    }
}

/// Arguments of `weft-proxy init`: what is captured (INJ-153 to INJ-157), the ports (NET-011), who is exempt.
fn init_arguments(plan: &Plan<'_>, uid: u64) -> Vec<String> {
    let capture = &plan.overrides.capture;
    let status_port = if plan.overrides.status_port == 0 {
        15020
    } else {
        plan.overrides.status_port
    };
    let mut arguments = vec!["init".to_owned()];
    let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    flag("--inbound-ports", capture.include_inbound.text());
    flag(
        "--exclude-inbound-ports",
        ports::join(&capture.exclude_inbound_with(plan.overrides.status_port)),
    );
    flag("--outbound-cidrs", capture.include_cidrs.text());
    for (name, value) in [
        ("--exclude-outbound-cidrs", capture.exclude_cidrs.join(",")),
        ("--outbound-ports", ports::join(&capture.include_outbound)),
        ("--exclude-outbound-ports", ports::join(&capture.exclude_outbound)),
        ("--exclude-interfaces", capture.exclude_interfaces.join(",")),
    ] {
        if !value.is_empty() {
            flag(name, value);
        }
    }
    flag("--status-port", status_port.to_string());
    flag("--proxy-uid", uid.to_string());
    flag("--proxy-gid", PROXY_ID.to_string());
    flag("--outbound-port", plan.config.mesh.outbound_port.to_string());
    flag("--inbound-port", plan.config.mesh.inbound_port.to_string());
    if plan.overrides.interception == InterceptionMode::Tproxy {
        flag("--interception-mode", "TPROXY".to_owned());
    }
    let redirect = &plan.config.redirect;
    if redirect.backend != "auto" {
        flag("--backend", redirect.backend.clone());
    }
    if let Some(binary) = redirect
        .iptables_binary
        .as_ref()
        .filter(|_| redirect.backend != "nftables")
    {
        flag("--iptables-binary", binary.clone());
    }
    if !redirect.reconcile {
        flag("--reconcile", "false".to_owned());
    }
    arguments
}

/// Arguments of `weft-proxy validate`: what differs from its defaults (NET-011).
fn validation_arguments(plan: &Plan<'_>) -> Vec<String> {
    let mesh = &plan.config.mesh;
    let mut arguments = vec!["validate".to_owned()];
    for (flag, port, default) in [
        ("--outbound-port", mesh.outbound_port, 15001),
        ("--inbound-port", mesh.inbound_port, 15006),
    ] {
        if port != default {
            arguments.extend([flag.to_owned(), port.to_string()]);
        }
    }
    if plan.overrides.interception == InterceptionMode::Tproxy {
        arguments.extend(["--interception-mode".to_owned(), "TPROXY".to_owned()]);
    }
    arguments
}

/// INJ-061; INJ-062 for TPROXY and low ports.
fn proxy_security(plan: &Plan<'_>) -> Value {
    let tproxy = plan.overrides.interception == InterceptionMode::Tproxy && plan.template() == Template::Sidecar;
    let mut added = Vec::new();
    if tproxy {
        added.push("NET_ADMIN");
    }
    if plan.overrides.bind_low_ports {
        added.push("NET_BIND_SERVICE");
    }
    let root = !added.is_empty();
    security(if root { 0 } else { PROXY_ID }, PROXY_ID, &added)
}

/// INJ-054.
fn init_security(plan: &Plan<'_>) -> Value {
    let added: &[&str] = if plan.config.redirect.is_legacy() {
        &["NET_ADMIN", "NET_RAW"]
    } else {
        &["NET_ADMIN"]
    };
    security(0, 0, added)
}

/// INJ-056: the proxy's own user, as the redirect lets any other pass (NET-139). What comes by TPROXY only a socket with
/// the proxy's capability gets (INJ-062).
fn validation_security(plan: &Plan<'_>, uid: u64) -> Value {
    if plan.overrides.interception == InterceptionMode::Tproxy {
        return security(0, PROXY_ID, &["NET_ADMIN"]);
    }
    security(uid, PROXY_ID, &[])
}

fn security(user: u64, group: u64, added: &[&str]) -> Value {
    let mut capabilities = json!({ "drop": ["ALL"] });
    if !added.is_empty() {
        capabilities["add"] = json!(added);
    }
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": capabilities,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": group,
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// INJ-063, INJ-064, INJ-065, INJ-170.
fn resources(plan: &Plan<'_>) -> Value {
    let mut resources = match &plan.overrides.resources {
        Some(annotated) => annotated.clone(),
        // The sum of the containers' requests may not exceed the pod's own.
        None if plan.pod_level_resources => json!({}),
        None => plan.config.resources.clone(),
    };
    if plan.overrides.preserve_qos
        && let Some(Value::Object(limits)) = at(&resources, "limits").cloned()
    {
        resources["requests"] = Value::Object(limits);
    }
    resources
}

/// The proxy drains when the pod is deleted and outlives the application (LIFE-020); in the container form it may hold
/// the application back (INJ-110).
fn lifecycle(plan: &Plan<'_>) -> Option<Value> {
    if let Some(lifecycle) = &plan.config.lifecycle {
        return Some(lifecycle.clone());
    }
    if plan.native {
        return Some(json!({ "preStop": { "exec": { "command": ["weft-proxy", "drain"] } } }));
    }
    plan.holds_application()
        .then(|| json!({ "postStart": { "exec": { "command": ["weft-proxy", "wait"] } } }))
}

/// INJ-067.
fn probe(mut timing: Value) -> Value {
    timing["httpGet"] = json!({ "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" });
    timing["timeoutSeconds"] = json!(3);
    timing
}
