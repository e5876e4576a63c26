//! What a pod says about its redirect (NET-133, NET-134): a pure function of the pod as the API server has it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{Container, Pod};
use weft_bundle::key::pod::{INIT_CONTAINER, PROXY_CONTAINER, VALIDATION_CONTAINER};
use weft_bundle::key::{InterceptionMode, STATUS_ANNOTATION, Template, pod as shape};
use weft_sidecar::arguments::switch;
use weft_sidecar::init::{Arguments, Cidrs, Mode, Ports};

/// What is to be done for a pod.
#[derive(Debug)]
pub enum Decision {
    /// Nothing, and why.
    Leave(&'static str),
    /// The redirect with these parameters.
    Redirect(Box<Arguments>),
}

/// What of a pod cannot be honoured: all of it, sorted (INJ-172).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid(Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Whether a pod gets a redirect, and which.
///
/// # Errors
/// [`Invalid`]: the pod must not start with what it says.
pub fn decide(pod: &Pod) -> Result<Decision, Invalid> {
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    if let Some(reason) = left_alone(pod, annotations, labels) {
        return Ok(Decision::Leave(reason));
    }
    let Some(proxy) = containers(pod).find(|container| container.name == PROXY_CONTAINER) else {
        return Ok(Decision::Leave("it has no container weft-proxy"));
    };
    let mut reader = Reader {
        annotations,
        proxy,
        problems: Vec::new(),
    };
    let Some(mode) = reader.mode() else {
        return Ok(Decision::Leave("its interception mode is NONE"));
    };
    let arguments = reader.arguments(pod, mode);
    reader.problems.sort();
    match reader.problems {
        problems if problems.is_empty() => Ok(Decision::Redirect(Box::new(arguments))),
        problems => Err(Invalid(problems)),
    }
}

fn left_alone(
    pod: &Pod,
    annotations: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> Option<&'static str> {
    // The injector has judged the keys by then, and without a redirect such a pod would wait for ever.
    let is_validated = pod.spec.as_ref().is_some_and(|spec| {
        let mut inits = spec.init_containers.iter().flatten();
        inits.any(|container| container.name == VALIDATION_CONTAINER)
    });
    let is_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let checks = [
        (is_host, "it is in the node's network"),
        (!annotations.contains_key(STATUS_ANNOTATION), "it was not injected"),
        (shape::template(annotations) == Template::Gateway, "it is a gateway"),
        (!is_validated && says_no(annotations, labels), "its inject key says no"),
        (
            containers(pod).any(|container| container.name == INIT_CONTAINER),
            "its weft-init sets the redirect",
        ),
    ];
    checks.into_iter().find_map(|(holds, reason)| holds.then_some(reason))
}

/// Whether the inject keys take the pod out, in the injector's order (INJ-010 ff.): the first label that is understood,
/// and without one the annotation.
fn says_no(annotations: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    const ISTIO: &str = "sidecar.istio.io/inject";
    let said = ["weft.dev/inject", ISTIO].iter().filter_map(|key| labels.get(*key));
    let mut understood = said.filter(|value| matches!(value.as_str(), "true" | "false"));
    understood
        .next()
        .or_else(|| annotations.get(ISTIO))
        .is_some_and(|value| value == "false")
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

/// Reads the pod, and remembers what of it cannot be honoured.
struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    proxy: &'a Container,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// `None` is NONE; what is no mode is a problem, and read as the default.
    fn mode(&mut self) -> Option<Mode> {
        let written = self.annotations.get(MODE);
        if written.is_none() && self.has_variable(MODE_VARIABLE) {
            // Where the injector wrote down what it had found in all other places.
            let mut mode = InterceptionMode::Redirect;
            let accepted = || "REDIRECT, TPROXY or NONE".to_owned();
            self.variable(MODE_VARIABLE, &mut mode, |text| shape::mode(text).ok_or_else(accepted));
            return mode_of(mode);
        }
        if let Some(text) = written.filter(|text| shape::mode(text.trim()).is_none()) {
            self.problems
                .push(format!("annotation {MODE}: {text:?}; must be REDIRECT, TPROXY or NONE"));
        }
        mode_of(shape::interception_mode(self.annotations, InterceptionMode::Redirect))
    }

    fn has_variable(&self, name: &str) -> bool {
        self.proxy.env.iter().flatten().any(|variable| variable.name == name)
    }

    fn arguments(&mut self, pod: &Pod, mode: Mode) -> Arguments {
        let mut out = Arguments {
            interception_mode: mode,
            ..Arguments::default()
        };
        self.annotation(
            "weft.dev/include-inbound-ports",
            &mut out.inbound_ports,
            Ports::from_str,
        );
        self.annotation(
            "weft.dev/exclude-inbound-ports",
            &mut out.exclude_inbound_ports,
            listed_ports,
        );
        self.annotation("weft.dev/include-outbound-ports", &mut out.outbound_ports, listed_ports);
        self.annotation(
            "weft.dev/exclude-outbound-ports",
            &mut out.exclude_outbound_ports,
            listed_ports,
        );
        self.annotation(
            "weft.dev/include-outbound-cidrs",
            &mut out.outbound_cidrs,
            Cidrs::from_str,
        );
        self.annotation(
            "weft.dev/exclude-outbound-cidrs",
            &mut out.exclude_outbound_cidrs,
            listed_ranges,
        );
        self.annotation("weft.dev/exclude-interfaces", &mut out.exclude_interfaces, interfaces);
        self.variable("WEFT_STATUS_PORT", &mut out.status_port, port);
        self.variable("WEFT_OUTBOUND_PORT", &mut out.outbound_port, port);
        self.variable("WEFT_INBOUND_PORT", &mut out.inbound_port, port);
        self.variable("WEFT_TPROXY_MARK", &mut out.tproxy_mark, number);
        self.variable("WEFT_TPROXY_TABLE", &mut out.tproxy_table, number);
        self.variable("INVALID_DROP", &mut out.drop_invalid, switch);
        self.variable("ISTIO_META_DNS_CAPTURE", &mut out.dns_capture, switch);
        // The pod's resolv.conf is not to be seen from here (NET-140).
        out.capture_all_dns = true;
        out.proxy_uid = self.id(pod, "runAsUser", out.proxy_uid);
        out.proxy_gid = self.id(pod, "runAsGroup", out.proxy_gid);
        // As superuser without TPROXY the proxy is told by its group alone (NET-046).
        if mode == Mode::Redirect && self.runs_as(pod, "runAsUser") == Some(0) {
            out.proxy_uid = 0;
        }
        out
    }

    /// An id of the proxy's; 0 stands for the default.
    fn id(&mut self, pod: &Pod, field: &str, default: u32) -> u32 {
        match self.runs_as(pod, field).map(u32::try_from) {
            None | Some(Ok(0)) => default,
            Some(Ok(id)) => id,
            Some(Err(_)) => {
                self.problems
                    .push(format!("container {PROXY_CONTAINER}: {field} is out of range"));
                default
            }
        }
    }

    /// The container's word, else the pod's.
    fn runs_as(&self, pod: &Pod, field: &str) -> Option<i64> {
        let own = self.proxy.security_context.as_ref();
        let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        if field == "runAsUser" {
            own.and_then(|c| c.run_as_user)
                .or_else(|| shared.and_then(|c| c.run_as_user))
        } else {
            own.and_then(|c| c.run_as_group)
                .or_else(|| shared.and_then(|c| c.run_as_group))
        }
    }

    fn annotation<T>(&mut self, key: &str, target: &mut T, parse: impl FnOnce(&str) -> Result<T, String>) {
        let Some(text) = self.annotations.get(key) else { return };
        match parse(text) {
            Ok(value) => *target = value,
            Err(problem) => self.problems.push(format!("annotation {key}: {problem}")),
        }
    }

    fn variable<T>(&mut self, name: &str, target: &mut T, parse: impl FnOnce(&str) -> Result<T, String>) {
        let all = self.proxy.env.iter().flatten();
        // The last of two counts, as for the container runtime.
        let Some(variable) = all.rev().find(|variable| variable.name == name) else {
            return;
        };
        // The API server drops an empty value.
        let value = variable.value.as_deref().unwrap_or_default();
        let parsed = if variable.value_from.is_some() {
            Err("must be a literal value: the plugin sees nothing else".to_owned())
        } else {
            parse(value).map_err(|accepted| format!("{value:?}; must be {accepted}"))
        };
        match parsed {
            Ok(value) => *target = value,
            Err(problem) => self
                .problems
                .push(format!("container {PROXY_CONTAINER}: variable {name}: {problem}")),
        }
    }
}

/// `None` is NONE.
fn mode_of(mode: InterceptionMode) -> Option<Mode> {
    match mode {
        InterceptionMode::None => None,
        InterceptionMode::Redirect => Some(Mode::Redirect),
        InterceptionMode::Tproxy => Some(Mode::Tproxy),
    }
}

fn listed_ports(text: &str) -> Result<Ports, String> {
    match text.parse()? {
        Ports::All => Err("\"*\" is no list; write ports such as 80,443".to_owned()),
        listed @ Ports::Listed(_) => Ok(listed),
    }
}

fn listed_ranges(text: &str) -> Result<Cidrs, String> {
    match text.parse()? {
        Cidrs::All => Err("\"*\" is no list; write ranges such as 10.0.0.0/8,fd00::/8".to_owned()),
        listed @ Cidrs::Listed(_) => Ok(listed),
    }
}

/// The names themselves are checked by whoever writes the rules.
fn interfaces(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let fits = name.len() <= 15 && !name.contains(['/', ' ']);
            fits.then(|| name.to_owned()).ok_or_else(|| {
                format!("{name:?} is no interface; write names of at most 15 characters without / and spaces")
            })
        })
        .collect()
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| "a number from 1 to 65535".to_owned())
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a whole number".to_owned())
}

const MODE: &str = "weft.dev/interception-mode";
const MODE_VARIABLE: &str = "WEFT_INTERCEPTION_MODE";

#[cfg(test)]
mod tests;
