//! From an admitted pod to its processes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use tokio::sync::mpsc;
use weft_bundle::key::Template;
use weft_operator::world::Settings;

use super::running::Running;
use super::{Event, Run};
use crate::local::container::{self, Facts, Pending};
use crate::local::fabric::Fabric;
use crate::local::mount::Mount;
use crate::local::namespace::Switch;
use crate::local::pod::{self, Program, Sandbox};
use crate::local::{PROXY_MARK, dns, loopback, up, user};

impl Run {
    pub(super) fn start(&mut self, id: &str, facts: &Facts) {
        let Some(running) = self.pods.get(id) else { return };
        if matches!(running.pending, Some(Pending::Unsupported { .. })) {
            return;
        }
        let own = if running.key.is_some() {
            self.give_to_proxy(running)
        } else {
            Ok(())
        };
        let made = own.and_then(|()| self.sandbox(id, running, facts));
        let Some(running) = self.pods.get_mut(id) else { return };
        match made {
            Ok(sandbox) => {
                running.pending = None;
                let tell = self.tell.clone();
                let (phases, mut told) = mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some((id, phase)) = told.recv().await {
                        if tell.send(Event::Phase(id, phase)).is_err() {
                            return;
                        }
                    }
                });
                let sandbox = Arc::new(sandbox);
                running.handle = Some(pod::start(sandbox.clone(), self.output.clone(), phases));
                running.sandbox = Some(sandbox);
            }
            Err(e) => {
                let pending = e.downcast_ref::<Pending>().cloned();
                if pending.is_none() || running.pending != pending {
                    self.output.note(&format!("pod {id} is Pending: {e:#}"));
                }
                running.pending = pending;
            }
        }
    }

    fn sandbox(&self, id: &str, running: &Running, facts: &Facts) -> anyhow::Result<Sandbox> {
        let spec = running.pod.spec.clone().unwrap_or_default();
        let mut programs = BTreeMap::new();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let mut program = self.program(container, running, facts)?;
            if let Some(first) = program.command.first_mut().filter(|p| !p.contains('/'))
                // Programs of the project stand beside this one, which need not be in PATH.
                && let Ok(path) = up::sibling_program(first)
            {
                *first = path.to_string_lossy().into_owned();
            }
            programs.insert(container.name.clone(), program);
        }
        let mut sandbox = Sandbox {
            pod: running.pod.clone(),
            id: id.to_owned(),
            address: IpAddr::V4(running.address),
            probed: None,
            network: None,
            names: None,
            etc: None,
            reach: self.reach.runtime.clone(),
            programs,
            restart_backoff: Duration::from_secs(self.options.restart_backoff),
            grace_limit: up::END_LIMIT - Duration::from_secs(2),
        };
        match &self.fabric {
            Fabric::Loopback(_) if running.key.is_none() => {
                // Without a sidecar nothing listens on the pod's address.
                let probed = running.ports.iter().map(|p| (p.declared, p.local)).collect();
                sandbox.probed = Some(probed);
            }
            Fabric::Loopback(_) => {}
            Fabric::Namespaces(switch) => self.connect(switch, running, &mut sandbox)?,
        }
        Ok(sandbox)
    }

    /// The pod's own network, with a resolver that knows the run's names and no others (LOC-023).
    fn connect(&self, switch: &Switch, running: &Running, sandbox: &mut Sandbox) -> anyhow::Result<()> {
        let network = switch.attach(running.address)?;
        if running.outside.is_some() {
            switch.route(running.address)?;
        }
        let etc = running.directory.join("etc");
        std::fs::create_dir_all(&etc)?;
        std::fs::create_dir_all(running.directory.join("root"))?;
        let domain = Settings::default().cluster_domain;
        let files = dns::pod_files(
            &running.plan.namespace,
            &domain,
            &running.plan.name,
            running.address.into(),
        );
        for (name, text) in files {
            std::fs::write(etc.join(name), text)?;
        }
        let (udp, tcp) = network.within(|| {
            anyhow::Ok((
                std::net::UdpSocket::bind(dns::SERVER)?,
                std::net::TcpListener::bind(dns::SERVER)?,
            ))
        })??;
        sandbox.names = Some(self.resolver.serve(udp, tcp).context("serve names in the pod")?);
        sandbox.network = Some(network);
        sandbox.etc = Some(etc);
        Ok(())
    }

    fn program(&self, container: &Container, running: &Running, facts: &Facts) -> anyhow::Result<Program> {
        let mut environment = container::environment(container, facts, &self.contents)?;
        let (is_proxy, is_init) = (container.name == "weft-proxy", container.name == "weft-init");
        let mut command = if is_proxy || is_init {
            // Not by image: whichever the manifests name, the proxy beside this program is the one that fits it.
            let program = up::proxy_program()?.to_string_lossy().into_owned();
            let arguments = container.args.clone().unwrap_or_default();
            std::iter::once(program).chain(arguments).collect()
        } else {
            container::command(container, &running.pod, &self.commands)?
        };
        let mut program = Program {
            command: Vec::new(),
            environment: Vec::new(),
            net_admin: false,
            user: None,
            mounts: Vec::new(),
        };
        match &self.fabric {
            Fabric::Namespaces(_) => {
                program.mounts = mounts(container, running);
                if is_proxy || is_init {
                    // By an id of its own where there is one, else by a mark, which takes a capability (LOC-026).
                    if self.has_proxy_id {
                        program.user = is_proxy.then_some(user::PROXY_ID);
                    } else {
                        command.extend(["--proxy-mark".to_owned(), PROXY_MARK.to_owned()]);
                    }
                    program.net_admin = is_init || !self.has_proxy_id;
                }
            }
            Fabric::Loopback(_) if is_proxy => {
                for (flag, volume) in PROXY_VOLUMES {
                    let directory = running.volume(volume);
                    command.extend([(*flag).to_owned(), directory.to_string_lossy().into_owned()]);
                }
                command.extend(match running.template() {
                    Template::Sidecar => loopback::sidecar_arguments(running.address, &running.ports),
                    Template::Gateway => loopback::gateway_arguments(running.address),
                });
                loopback::rewrite_ports(&mut environment, &running.ports);
            }
            Fabric::Loopback(_) => {
                let sidecar = running.key.as_ref().map(|_| running.address);
                let mut told = loopback::environment(container, &running.ports, sidecar);
                if container.volume_mounts.iter().flatten().next().is_some() {
                    let volumes = running.directory.join("volumes");
                    told.push(("WEFT_VOLUMES".to_owned(), volumes.to_string_lossy().into_owned()));
                }
                told.retain(|(name, _)| !environment.iter().any(|(own, _)| own == name));
                environment.extend(told);
            }
        }
        program.command = command;
        program.environment = environment;
        Ok(program)
    }

    /// Gives the proxy what it must be able to write to.
    fn give_to_proxy(&self, running: &Running) -> anyhow::Result<()> {
        if self.has_proxy_id && matches!(self.fabric, Fabric::Namespaces(_)) {
            let id = Some(user::PROXY_ID);
            let directory = running.volume("weft-state");
            std::os::unix::fs::chown(&directory, id, id).with_context(|| format!("chown {}", directory.display()))?;
        }
        Ok(())
    }
}

/// The container's volumes, outer ones first (LOC-013).
fn mounts(container: &Container, running: &Running) -> Vec<Mount> {
    let volumes = running.pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let is_empty_dir = |name: &str| {
        let found = volumes.into_iter().flatten().find(|v| v.name == name);
        found.is_some_and(|v| v.empty_dir.is_some())
    };
    let mount = |mount: &VolumeMount| {
        let volume = running.volume(&mount.name);
        Mount {
            source: mount.sub_path.as_ref().map_or(volume.clone(), |path| volume.join(path)),
            target: mount.mount_path.clone().into(),
            // The kubelet writes to the others, and nobody else.
            read_only: mount.read_only == Some(true) || !is_empty_dir(&mount.name),
        }
    };
    let mut out: Vec<Mount> = container.volume_mounts.iter().flatten().map(mount).collect();
    out.sort_by(|a, b| a.target.cmp(&b.target));
    out
}

/// Where the proxy finds its volumes when they cannot be mounted (LIFE-097).
const PROXY_VOLUMES: &[(&str, &str)] = &[
    ("--config-dir", "weft-config"),
    ("--identity-dir", "weft-identity"),
    ("--credentials-dir", "weft-credentials"),
    ("--state-dir", "weft-state"),
    ("--podinfo-dir", "weft-podinfo"),
];
