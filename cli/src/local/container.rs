//! What a container of a pod becomes on this machine: a program, its arguments, its environment, its files
//! (LOC-011..LOC-013).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EnvVar, KeyToPath, Pod, Volume};
use weft_bundle::pack::Files;

/// ConfigMaps and Secrets of a run, the rendered ones included: contents by kind, namespace and name.
pub type Contents = BTreeMap<(ContentKind, String, String), Files>;

/// What holds a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContentKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// What the downward API and the environment need to know of a pod.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The pod after admission.
    pub pod: Pod,
    /// Its address.
    pub address: IpAddr,
    /// Name of the node.
    pub node: String,
    /// Address of the node.
    pub host_address: IpAddr,
}

/// Why a pod cannot run yet. Told once, and looked at again at every change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Pending {
    /// No program stands for the image (LOC-011).
    #[error(
        "image {image} of container {container} is no program of this machine; say which one is, in one of three \
         ways: `commands: {{{short}: [program, argument]}}` in weft-local.yaml beside the manifests, the pod \
         annotation local.weft.dev/command.{container}, or the container's own command"
    )]
    NoProgram {
        /// Container.
        container: String,
        /// Image.
        image: String,
        /// Image without tag, digest and registry.
        short: String,
    },
    /// A ConfigMap, Secret or key that is not optional is not there.
    #[error("{kind} {name} that {what} needs is not there")]
    Missing {
        /// `ConfigMap`, `Secret` or a key of one.
        kind: String,
        /// Name.
        name: String,
        /// Container or volume.
        what: String,
    },
    /// Something that no process here can have (LOC-019).
    #[error("{field} is not available to a process of this machine; remove it, or run the pod in a cluster")]
    Unsupported {
        /// Field path.
        field: String,
    },
}

/// Programs that stand for images: `commands` of `weft-local.yaml`, by image name without tag or digest.
pub type Commands = BTreeMap<String, Vec<String>>;

/// The command line of a container (LOC-011).
///
/// # Errors
/// [`Pending::NoProgram`].
pub fn command(container: &Container, pod: &Pod, commands: &Commands) -> Result<Vec<String>, Pending> {
    let image = container.image.clone().unwrap_or_default();
    let short = image_name(&image);
    let own: Vec<String> = container.command.clone().unwrap_or_default();
    let arguments: Vec<String> = container.args.clone().unwrap_or_default();
    let by_image = commands
        .get(&image)
        .or_else(|| commands.get(without_tag(&image)))
        .or_else(|| commands.get(&short));
    if let Some(program) = by_image {
        // The command stands for the image's entry point; the container may add to it or replace it by name.
        let replaces = own
            .first()
            .is_some_and(|first| program.first().is_none_or(|p| !same_program(p, first)));
        let rest = if own.is_empty() || replaces {
            own
        } else {
            own[1..].to_vec()
        };
        return Ok(program.iter().cloned().chain(rest).chain(arguments).collect());
    }
    let annotation = format!("local.weft.dev/command.{}", container.name);
    if let Some(line) = pod.metadata.annotations.as_ref().and_then(|a| a.get(&annotation))
        && let Some(words) = shell_words(line).filter(|words| !words.is_empty())
    {
        return Ok(words);
    }
    let is_program = |name: &str| {
        let path = Path::new(name);
        if path.is_absolute() {
            path.is_file()
        } else {
            find_in_path(name).is_some()
        }
    };
    if own.first().is_some_and(|first| is_program(first)) {
        return Ok(own.into_iter().chain(arguments).collect());
    }
    Err(Pending::NoProgram {
        container: container.name.clone(),
        image,
        short,
    })
}

/// The environment of a container, in order (LOC-012).
///
/// # Errors
/// [`Pending::Missing`].
pub fn environment(
    container: &Container,
    facts: &Facts,
    contents: &Contents,
) -> Result<Vec<(String, String)>, Pending> {
    let mut out: Vec<(String, String)> = Vec::new();
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            out.push(((*name).to_owned(), value));
        }
    }
    let namespace = facts.pod.metadata.namespace.clone().unwrap_or_default();
    let missing = |kind: &str, name: &str| Pending::Missing {
        kind: kind.to_owned(),
        name: name.to_owned(),
        what: format!("container {}", container.name),
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        let (kind, label, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(r), _) => (ContentKind::ConfigMap, "ConfigMap", r.name.clone(), r.optional),
            (_, Some(r)) => (ContentKind::Secret, "Secret", r.name.clone(), r.optional),
            _ => continue,
        };
        match contents.get(&(kind, namespace.clone(), name.clone())) {
            Some(files) => {
                for (key, value) in files {
                    set(
                        &mut out,
                        format!("{prefix}{key}"),
                        String::from_utf8_lossy(value).into_owned(),
                    );
                }
            }
            None if optional == Some(true) => {}
            None => return Err(missing(label, &name)),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(variable, container, facts, contents, &out, &missing)? {
            set(&mut out, variable.name.clone(), value);
        }
    }
    Ok(out)
}

fn value_of(
    variable: &EnvVar,
    container: &Container,
    facts: &Facts,
    contents: &Contents,
    before: &[(String, String)],
    missing: &dyn Fn(&str, &str) -> Pending,
) -> Result<Option<String>, Pending> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), before)));
    };
    let namespace = facts.pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return Ok(Some(field_value(&field.field_path, facts)));
    }
    if let Some(resource) = &from.resource_field_ref {
        return Ok(Some(resource_value(&resource.resource, container)));
    }
    let (kind, label, name, key, optional) = match (&from.config_map_key_ref, &from.secret_key_ref) {
        (Some(r), _) => (
            ContentKind::ConfigMap,
            "ConfigMap key",
            r.name.clone(),
            r.key.clone(),
            r.optional,
        ),
        (_, Some(r)) => (
            ContentKind::Secret,
            "Secret key",
            r.name.clone(),
            r.key.clone(),
            r.optional,
        ),
        _ => return Ok(None),
    };
    match contents
        .get(&(kind, namespace, name.clone()))
        .and_then(|files| files.get(&key))
    {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(missing(label, &format!("{name}/{key}"))),
    }
}

/// The files of a volume; `None` for one that starts empty.
///
/// # Errors
/// [`Pending::Missing`] for a source that is not optional, [`Pending::Unsupported`] for a kind of volume that is the
/// cluster's alone.
pub fn volume(volume: &Volume, facts: &Facts, contents: &Contents) -> Result<Option<Files>, Pending> {
    let namespace = facts.pod.metadata.namespace.clone().unwrap_or_default();
    let what = || format!("volume {}", volume.name);
    let mut files = Files::new();
    let mut take =
        |kind, label: &str, name: &str, items: &Option<Vec<KeyToPath>>, optional: Option<bool>| match contents.get(&(
            kind,
            namespace.clone(),
            name.to_owned(),
        )) {
            Some(source) => {
                for (key, bytes) in source {
                    let path = match items {
                        Some(items) => items.iter().find(|i| i.key == *key).map(|i| i.path.clone()),
                        None => Some(key.clone()),
                    };
                    if let Some(path) = path {
                        files.insert(path, bytes.clone());
                    }
                }
                Ok(())
            }
            None if optional == Some(true) => Ok(()),
            None => Err(Pending::Missing {
                kind: label.to_owned(),
                name: name.to_owned(),
                what: what(),
            }),
        };
    if volume.empty_dir.is_some() {
        return Ok(None);
    }
    if let Some(source) = &volume.config_map {
        take(
            ContentKind::ConfigMap,
            "ConfigMap",
            &source.name,
            &source.items,
            source.optional,
        )?;
        return Ok(Some(files));
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        take(ContentKind::Secret, "Secret", &name, &source.items, source.optional)?;
        return Ok(Some(files));
    }
    if let Some(source) = &volume.downward_api {
        for item in source.items.iter().flatten() {
            let value = item
                .field_ref
                .as_ref()
                .map(|f| field_value(&f.field_path, facts))
                .unwrap_or_default();
            files.insert(item.path.clone(), value.into_bytes());
        }
        return Ok(Some(files));
    }
    if let Some(projected) = &volume.projected {
        let mut downward = Files::new();
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                take(ContentKind::ConfigMap, "ConfigMap", &map.name, &map.items, map.optional)?;
            }
            if let Some(secret) = &source.secret {
                take(
                    ContentKind::Secret,
                    "Secret",
                    &secret.name,
                    &secret.items,
                    secret.optional,
                )?;
            }
            for item in source.downward_api.iter().flat_map(|d| d.items.iter().flatten()) {
                let value = item
                    .field_ref
                    .as_ref()
                    .map(|f| field_value(&f.field_path, facts))
                    .unwrap_or_default();
                downward.insert(item.path.clone(), value.into_bytes());
            }
        }
        files.extend(downward);
        return Ok(Some(files));
    }
    Err(Pending::Unsupported {
        field: format!("spec.volumes[{}]", volume.name),
    })
}

/// What a pod asks for and no process here can have (LOC-019).
///
/// # Errors
/// [`Pending::Unsupported`] with the first such field.
pub fn check_supported(pod: &Pod) -> Result<(), Pending> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let fields = [
        ("hostNetwork", spec.host_network),
        ("hostPID", spec.host_pid),
        ("hostIPC", spec.host_ipc),
    ];
    if let Some((field, _)) = fields.iter().find(|(_, value)| *value == Some(true)) {
        return Err(Pending::Unsupported {
            field: format!("spec.{field}"),
        });
    }
    for (n, container) in spec.containers.iter().enumerate() {
        if container.volume_devices.iter().flatten().next().is_some() {
            return Err(Pending::Unsupported {
                field: format!("spec.containers[{n}].volumeDevices"),
            });
        }
    }
    for (n, volume) in spec.volumes.iter().flatten().enumerate() {
        let field = match volume {
            Volume { host_path: Some(_), .. } => "hostPath",
            Volume {
                persistent_volume_claim: Some(_),
                ..
            } => "persistentVolumeClaim",
            _ => continue,
        };
        return Err(Pending::Unsupported {
            field: format!("spec.volumes[{n}].{field}"),
        });
    }
    Ok(())
}

/// Fields of a pod that have no meaning for processes of this machine, told once in a run (LOC-019).
#[must_use]
pub fn ignored_fields(pod: &serde_json::Value) -> Vec<&'static str> {
    let spec = &pod["spec"];
    let containers: Vec<_> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .collect();
    let of_pod = |field: &str| !spec[field].is_null();
    let of_container = |field: &str| containers.iter().any(|c| !c[field].is_null());
    let is_scheduled = SCHEDULING.iter().any(|field| of_pod(field));
    let found = [
        ("resources", of_pod("resources") || of_container("resources")),
        (
            "scheduling (nodeSelector, affinity, tolerations, priority, topology spread)",
            is_scheduled,
        ),
        ("imagePullSecrets", of_pod("imagePullSecrets")),
        (
            "securityContext",
            of_pod("securityContext") || of_container("securityContext"),
        ),
    ];
    found.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
}

const SCHEDULING: &[&str] = &[
    "nodeSelector",
    "affinity",
    "tolerations",
    "priorityClassName",
    "topologySpreadConstraints",
    "nodeName",
    "schedulerName",
];

/// Value of a downward-API field.
fn field_value(path: &str, facts: &Facts) -> String {
    let metadata = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let entries = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<_> = map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        lines.join("\n")
    };
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default()
    };
    match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => entries(&metadata.labels),
        "metadata.annotations" => entries(&metadata.annotations),
        "spec.nodeName" => facts.node.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.podIP" | "status.podIPs" => facts.address.to_string(),
        "status.hostIP" | "status.hostIPs" => facts.host_address.to_string(),
        other => {
            let key = |prefix: &str| other.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
            if let Some(key) = key("metadata.labels['") {
                entry(&metadata.labels, key)
            } else if let Some(key) = key("metadata.annotations['") {
                entry(&metadata.annotations, key)
            } else {
                String::new()
            }
        }
    }
}

/// A limit in whole units; without one, what the machine has.
fn resource_value(resource: &str, container: &Container) -> String {
    let (list, name) = resource.split_once('.').unwrap_or(("limits", resource));
    let resources = container.resources.as_ref();
    let quantities = if list == "requests" {
        resources.and_then(|r| r.requests.as_ref())
    } else {
        resources.and_then(|r| r.limits.as_ref())
    };
    if let Some(value) = quantities.and_then(|q| q.get(name)).and_then(|q| whole_units(&q.0)) {
        return value.to_string();
    }
    match name {
        "cpu" => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
        "memory" => machine_memory().to_string(),
        _ => "0".to_owned(),
    }
}

/// A Kubernetes quantity rounded up to whole units.
fn whole_units(quantity: &str) -> Option<u64> {
    let digits = quantity
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(quantity.len());
    let number: f64 = quantity[..digits].parse().ok()?;
    let scale = match &quantity[digits..] {
        "" => 1.0,
        "m" => 0.001,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let value = (number * scale).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float saturates, and has no sign here"
    )]
    value.is_finite().then_some(value as u64)
}

fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.split_whitespace().next());
    kib.and_then(|k| k.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// `$(NAME)` becomes the value of a variable that stands before; `$$` is a dollar sign.
fn expand(text: &str, before: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix("$(").and_then(|r| r.split_once(')'));
        let found = reference.and_then(|(name, after)| Some((before.iter().rev().find(|(n, _)| n == name)?, after)));
        match found {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn set(list: &mut Vec<(String, String)>, name: String, value: String) {
    list.retain(|(n, _)| *n != name);
    list.push((name, value));
}

fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let slash = image.rfind('/').map_or(0, |at| at + 1);
    image[slash..].find(':').map_or(image, |at| &image[..slash + at])
}

/// Image name without registry path, tag and digest.
#[must_use]
pub fn image_name(image: &str) -> String {
    without_tag(image).rsplit('/').next().unwrap_or_default().to_owned()
}

fn same_program(one: &str, other: &str) -> bool {
    Path::new(one).file_name() == Path::new(other).file_name()
}

/// The file that a bare program name stands for.
#[must_use]
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Splits a line into words at spaces; quotes keep them together, a backslash keeps the next character. `None` when
/// a quote is not closed.
fn shell_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(characters.next()?),
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        c if c == quote => break,
                        '\\' if quote == '"' => word.push(characters.next()?),
                        c => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Variables of the machine that containers see (LOC-012).
const PASSED_ON: &[&str] = &["PATH", "HOME", "LANG", "TERM"];

#[cfg(test)]
mod tests;
