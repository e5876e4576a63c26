//! The real program, with volumes as a kubelet keeps them.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use weft_bundle::key::{InterceptionMode, KeyInputs, Template};
use weft_bundle::pack::{self, EndpointInput, Files, HostInput, Limits};
use weft_bundle::{volume, wire};

use super::{Answer, Authority, Client, LIMIT, wait_for};

/// The volumes of a pod.
pub struct Volumes {
    folder: tempfile::TempDir,
    config: Mutex<Files>,
}

impl Volumes {
    /// An identity for an account `namespace/name`, and no configuration yet.
    pub fn new(authority: &Authority, account: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let this = Self {
            folder: tempfile::tempdir().expect("folder"),
            config: Mutex::default(),
        };
        // The proxy may run as another user.
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(this.folder.path(), open.clone()).expect("permissions");
        for part in ["config", "identity", "credentials", "state"] {
            std::fs::create_dir(this.path(part)).expect("folder");
            std::fs::set_permissions(this.path(part), open.clone()).expect("permissions");
        }
        this.identify(authority, account);
        this
    }

    /// Replaces the identity.
    pub fn identify(&self, authority: &Authority, account: &str) {
        let (leaf, key) = authority.pem_pair(&super::spiffe_id(account));
        self.identify_with(&leaf, &key, &authority.pem);
    }

    pub fn identify_with(&self, leaf: &str, key: &str, roots: &str) {
        let files = [("cert-chain.pem", leaf), ("key.pem", key), ("root-cert.pem", roots)];
        let files = files.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
        volume::publish(&self.path("identity"), &Files::from(files)).expect("published");
    }

    /// Publishes a configuration; gives its revision.
    pub fn configure(&self, bundle: &str) -> String {
        self.configure_within(bundle, &Limits::default())
    }

    /// As [`Self::configure`], packed as the limits say.
    pub fn configure_within(&self, bundle: &str, limits: &Limits) -> String {
        let wire: wire::Bundle = serde_yaml::from_str(bundle).expect("the test's bundle");
        let packed = pack::config(&wire, &inputs(), limits).expect("packed");
        self.replace(|name| !name.starts_with("ep-"), packed.shards);
        packed.revision
    }

    /// Publishes endpoints of `echo.app.svc.cluster.local`; gives their revision.
    pub fn endpoints(&self, endpoints: &[SocketAddr]) -> String {
        let hosts = [HostInput {
            host: "echo.app.svc.cluster.local".into(),
            accounts: vec!["app/echo".into()],
            endpoints: endpoints.iter().map(|address| endpoint(*address)).collect(),
        }];
        self.endpoints_of(&hosts)
    }

    pub fn endpoints_of(&self, hosts: &[HostInput]) -> String {
        let packed = pack::endpoints(hosts, &Default::default(), &Limits::default()).expect("packed");
        self.replace(|name| name.starts_with("ep-"), packed.shards);
        packed.revision
    }

    /// What the operator asks for (DLV-054).
    pub fn target(&self, text: &str) {
        self.spoil(pack::TARGET_FILE, text.as_bytes());
    }

    /// Replaces the credentials: files by name, and the stems that the volume says something of.
    pub fn credentials(&self, listed: &[&str], files: &[(String, String)]) {
        let index = weft_bundle::key::credentials_index(0);
        let mut all = Files::from([(index, listed.join("\n").into_bytes())]);
        all.extend(
            files
                .iter()
                .map(|(name, text)| (name.clone(), text.clone().into_bytes())),
        );
        volume::publish(&self.path("credentials"), &all).expect("published");
    }

    /// A volume of credentials whose Secrets are gone.
    pub fn no_credentials(&self) {
        volume::publish(&self.path("credentials"), &Files::new()).expect("published");
    }

    /// An identity volume without any file.
    pub fn unidentify(&self) {
        volume::publish(&self.path("identity"), &Files::new()).expect("published");
    }

    /// Puts bytes in place of a file of the configuration.
    pub fn spoil(&self, file: &str, bytes: &[u8]) {
        self.replace(
            |name| name == file,
            vec![Files::from([(file.to_owned(), bytes.to_vec())])],
        );
    }

    /// Takes a file out of the configuration.
    pub fn remove(&self, file: &str) {
        self.replace(|name| name == file, Vec::new());
    }

    /// Empties the configuration volume.
    pub fn clear(&self) {
        self.replace(|_| true, Vec::new());
    }

    fn replace(&self, old: impl Fn(&str) -> bool, new: Vec<Files>) {
        let mut files = self.config.lock().expect("no panic");
        files.retain(|name, _| !old(name));
        new.into_iter().for_each(|part| files.extend(part));
        volume::publish(&self.path("config"), &files).expect("published");
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.path().join(part)
    }

    /// Flags of `run` that name the volumes.
    pub fn flags(&self) -> Vec<String> {
        ["config", "identity", "credentials", "state"]
            .iter()
            .flat_map(|part| [format!("--{part}-dir"), self.path(part).to_string_lossy().into_owned()])
            .collect()
    }
}

fn inputs() -> KeyInputs {
    KeyInputs {
        annotations: Default::default(),
        interception: InterceptionMode::Redirect,
        labels: Default::default(),
        namespace: "app".into(),
        ports: Vec::new(),
        revision: "default".into(),
        service_account: "echo".into(),
        template: Template::Sidecar,
        workload: "echo".into(),
    }
}

pub fn endpoint(address: SocketAddr) -> EndpointInput {
    EndpointInput {
        address: address.ip(),
        ports: [("main".to_owned(), address.port())].into(),
        labels: Default::default(),
        workload: None,
        locality: None,
        node: None,
        weight: 1,
        health: wire::Health::default(),
        tls: wire::MeshTls::default(),
    }
}

/// A running proxy.
pub struct Process {
    pub child: Child,
    /// Address of its own ports.
    pub address: IpAddr,
    /// Address of the admin port.
    pub admin: IpAddr,
    log: Arc<Mutex<Vec<String>>>,
    access: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts the program on an address of its own, without redirect.
    pub fn start(volumes: &Volumes, address: IpAddr, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let text = address.to_string();
        let mut all: Vec<&str> = vec!["--bind", &text, "--admin-bind", &text];
        all.extend(flags);
        Self::spawn(volumes, address, address, &all, environment, None)
    }

    /// Starts the program with flags of its own, as a user and group.
    pub fn spawn(
        volumes: &Volumes,
        address: IpAddr,
        admin: IpAddr,
        flags: &[&str],
        environment: &[(&str, &str)],
        user: Option<(u32, u32)>,
    ) -> Self {
        use std::os::unix::process::CommandExt;
        let (_open, program) = for_anybody();
        let mut command = Command::new(program);
        command
            .arg("run")
            .args(volumes.flags())
            .args(flags)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some((user, group)) = user {
            command.uid(user).gid(group);
        }
        let mut child = command.spawn().expect("the binary of this crate");
        let log = collect(child.stderr.take().expect("piped"));
        let access = collect(child.stdout.take().expect("piped"));
        Self {
            child,
            address,
            admin,
            log,
            access,
        }
    }

    /// One request to a port of the proxy's own; `None` while nobody listens.
    pub fn ask(&self, method: &str, port: u16, path: &str) -> Option<Answer> {
        let host = if port == 15000 { self.admin } else { self.address };
        ask(SocketAddr::new(host, port), method, path, "")
    }

    pub fn get(&self, port: u16, path: &str) -> Answer {
        self.ask("GET", port, path)
            .unwrap_or_else(|| panic!("no answer on {port} to {path}: {}", self.log()))
    }

    pub fn post(&self, port: u16, path: &str) -> Answer {
        self.ask("POST", port, path)
            .unwrap_or_else(|| panic!("no answer on {port} to {path}: {}", self.log()))
    }

    pub fn is_ready(&self) -> bool {
        self.ask("GET", 15021, "/healthz/ready")
            .is_some_and(|answer| answer.status() == 200)
    }

    /// Waits until it is ready.
    pub fn ready(self) -> Self {
        wait_for("readiness", || self.is_ready());
        self
    }

    /// Waits until a revision of the configuration is in force.
    pub fn wait_for_config(&self, revision: &str) {
        wait_for("the configuration", || {
            self.get(15020, "/config/status")
                .text()
                .contains(&format!("\"cfg\": \"{revision}\""))
        });
    }

    /// Waits until a revision of the endpoints is in force.
    pub fn wait_for_endpoints(&self, revision: &str) {
        wait_for("the endpoints", || {
            self.get(15020, "/config/status")
                .text()
                .contains(&format!("\"ep\": \"{revision}\""))
        });
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("an id"));
        nix::sys::signal::kill(id, signal).expect("the process lives");
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(begin.elapsed() < LIMIT * 2, "the process does not end: {}", self.log());
            super::pause(std::time::Duration::from_millis(5));
        }
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// The process log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic").join("\n")
    }

    /// The access log so far.
    pub fn access_log(&self) -> String {
        self.access.lock().expect("no panic").join("\n")
    }

    /// A number of /proc/PID/status in KiB, or count of /proc/PID/NAME.
    pub fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process lives");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{field} in {text}"))
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("the process lives")
            .count()
    }

    /// CPU time used so far by the threads whose name begins so.
    pub fn cpu_of(&self, threads: &str) -> std::time::Duration {
        let tasks = format!("/proc/{}/task", self.child.id());
        let of = |task: std::fs::DirEntry| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let used: Option<u64> = read("schedstat").split(' ').next().and_then(|n| n.parse().ok());
            used.filter(|_| read("comm").starts_with(threads))
        };
        let tasks = std::fs::read_dir(tasks).expect("the process lives").flatten();
        std::time::Duration::from_nanos(tasks.filter_map(of).sum())
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> std::time::Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process lives");
        let rest = text.rsplit_once(") ").expect("a name").1;
        let field = |n: usize| {
            rest.split(' ')
                .nth(n)
                .and_then(|t| t.parse::<u64>().ok())
                .expect("a number")
        };
        // utime and stime, in hundredths of a second.
        std::time::Duration::from_millis((field(11) + field(12)) * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary of this crate.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_weft-proxy"))
}

/// The program, started by another one that changes what its process may do. Ends with this.
pub struct Wrapped(std::process::Child);

impl Wrapped {
    /// `wrapper` is given the program and its flags as further arguments.
    pub fn start(wrapper: &[&str], volumes: &Volumes, address: IpAddr, flags: &[&str]) -> Self {
        let text = address.to_string();
        let (first, rest) = wrapper.split_first().expect("a program");
        let child = Command::new(first)
            .args(rest)
            .arg(program())
            .arg("run")
            .args(volumes.flags())
            .args(["--bind", &text, "--admin-bind", &text])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect(first))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary by a path that every user can execute, wherever the checkout is; holds for as long as the file is open.
pub fn for_anybody() -> (std::fs::File, PathBuf) {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(program()).expect("the binary of this crate");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

/// One request with further fields; `None` when nobody listens.
pub fn ask(address: SocketAddr, method: &str, path: &str, fields: &str) -> Option<Answer> {
    let stream = std::net::TcpStream::connect(address).ok()?;
    let mut client = Client::over(stream);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n{fields}\r\n"
    );
    std::io::Write::write_all(&mut client.stream, request.as_bytes()).ok()?;
    client.receive()
}

fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let into = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("no panic").push(line);
        }
    });
    lines
}
