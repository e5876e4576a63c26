//! Starts runs of `weft local up` and looks at them from outside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How a run's processes get their ids and networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Namespaces, with whatever this user may have: as root, the proxy has an id of its own.
    Namespaces,
    /// Namespaces, in a user namespace with one id: the proxy is told by its mark.
    OneId,
    /// Namespaces, for a user without any rights: root becomes one.
    Unprivileged,
    /// Loopback addresses.
    Loopback,
}

/// A run with its manifests, its state directory and what it prints.
pub(super) struct Run {
    child: Child,
    pub(super) dir: TempDir,
    pub(super) way: Way,
    programs: PathBuf,
    state: PathBuf,
}

impl Run {
    /// Starts the sample application.
    pub(super) fn sample(way: Way, arguments: &[&str]) -> Self {
        Self::sample_at(way, None, arguments)
    }

    /// Starts the sample application with a state directory that there may be already.
    pub(super) fn sample_at(way: Way, state: Option<PathBuf>, arguments: &[&str]) -> Self {
        let manifests = fs::read_dir(sample()).expect("samples/forecast");
        let files: Vec<_> = manifests.map(|entry| entry.expect("entry").path()).collect();
        let texts: Vec<(String, String)> = files
            .iter()
            .map(|path| (file_name(path), fs::read_to_string(path).expect("a manifest")))
            .collect();
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("manifests")).expect("directory");
        for (name, text) in &texts {
            fs::write(dir.path().join("manifests").join(name), text).expect("manifest");
        }
        Self::begin(dir, way, state, arguments)
    }

    /// Starts these manifests, without waiting.
    pub(super) fn start(way: Way, manifests: &[(&str, &str)], arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("manifests")).expect("directory");
        for (name, text) in manifests {
            fs::write(dir.path().join("manifests").join(name), text).expect("manifest");
        }
        Self::start_in(dir, way, arguments)
    }

    /// Starts what the directory's manifests say.
    pub(super) fn start_in(dir: TempDir, way: Way, arguments: &[&str]) -> Self {
        Self::begin(dir, way, None, arguments)
    }

    fn begin(dir: TempDir, way: Way, state: Option<PathBuf>, arguments: &[&str]) -> Self {
        let state = state.unwrap_or_else(|| dir.path().join("state"));
        let mut programs = programs();
        if way == Way::Unprivileged && is_root() {
            programs = dir.path().join("bin");
            copy_programs(&programs);
            give_to_nobody(dir.path());
        }
        let mut command = in_way(way, &programs);
        command.args(["local", "up", "--no-color", "--network"]);
        command.arg(if way == Way::Loopback { "loopback" } else { "namespaces" });
        command.arg("--state").arg(&state);
        command.arg("-f").arg(dir.path().join("manifests"));
        let log = File::create(dir.path().join("log")).expect("log");
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        let child = command.spawn().expect("start weft");
        Self {
            child,
            dir,
            way,
            programs,
            state,
        }
    }

    /// Process of `weft local up`.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// What it has printed so far.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("log")
    }

    /// Waits until all pods are ready.
    pub(super) fn ready(self) -> Self {
        self.wait_for_line("pods ready after");
        self
    }

    /// Waits for a line that holds the text.
    pub(super) fn wait_for_line(&self, text: &str) -> String {
        let find = |log: &str| log.lines().find(|line| line.contains(text)).map(str::to_owned);
        self.wait_for(&format!("a line with {text:?}"), || find(&self.log()))
    }

    /// The lines printed since the log had this length.
    pub(super) fn log_since(&self, length: usize) -> String {
        self.log()[length..].to_owned()
    }

    /// Waits for a condition of this run.
    pub(super) fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}; the log:\n{}",
                self.log()
            );
            pause();
        }
    }

    /// Writes a manifest as an editor does: beside it, then renamed.
    pub(super) fn save(&self, name: &str, text: &str) {
        let (draft, place) = (
            self.dir.path().join("draft"),
            self.dir.path().join("manifests").join(name),
        );
        fs::write(&draft, text).expect("draft");
        fs::rename(&draft, place).expect("rename");
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(name)).expect("remove");
    }

    /// `weft local COMMAND --state ... ARGUMENTS`, as the user of the run.
    pub(super) fn weft(&self, command: &str, arguments: &[&str]) -> Output {
        let way = if self.way == Way::Unprivileged {
            self.way
        } else {
            Way::Loopback
        };
        in_way(way, &self.programs)
            .args(["local", command, "--state"])
            .arg(self.state())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("run weft")
    }

    /// Standard output of a command that must succeed.
    pub(super) fn say(&self, command: &str, arguments: &[&str]) -> String {
        let output = self.weft(command, arguments);
        assert!(
            output.status.success(),
            "weft local {command} {arguments:?}: {output:?}; the log:\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a program in a pod.
    pub(super) fn exec(&self, pod: &str, program: &[&str]) -> Output {
        let arguments: Vec<&str> = [pod, "--"].iter().chain(program).copied().collect();
        self.weft("exec", &arguments)
    }

    /// Runs `weft-app` in a pod; what it printed.
    pub(super) fn app(&self, pod: &str, arguments: &[&str]) -> Value {
        let program = self.programs.join("weft-app").display().to_string();
        // Longer than any answer may take: a test that hangs tells nothing.
        let limited = ["timeout", "60", program.as_str()];
        let all: Vec<&str> = limited.iter().chain(arguments).copied().collect();
        let output = self.exec(pod, &all);
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output:?}; the log:\n{}", self.log()))
    }

    /// One request from a pod.
    pub(super) fn get(&self, pod: &str, url: &str) -> Value {
        self.app(pod, &["get", url])
    }

    /// Versions that answered a load of 500 requests, none of which may fail.
    pub(super) fn versions(&self, pod: &str) -> BTreeMap<String, u64> {
        let load = ["load", "--url", "http://forecast/", "--rate", "250", "--duration", "2"];
        let summary = self.app(pod, &load);
        assert_eq!(summary["failed"], 0, "{summary}");
        serde_json::from_value(summary["versions"].clone()).expect("versions")
    }

    /// Names of pods whose name begins with this.
    pub(super) fn pods(&self, prefix: &str) -> Vec<Value> {
        self.wait_for("the run's socket", || {
            self.state.join("control.sock").exists().then_some(())
        });
        let rows: Vec<Value> = serde_json::from_str(&self.say("ps", &["-o", "json"])).expect("JSON");
        let fits = |row: &Value| row["pod"].as_str().is_some_and(|pod| pod.starts_with(prefix));
        rows.into_iter().filter(|row| fits(row)).collect()
    }

    /// Sends a signal to `weft local up`.
    pub(super) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), pid.as_str()]).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for its end.
    pub(super) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "did not end; the log:\n{}", self.log());
            pause();
        }
    }

    /// Exit code of a run that ended by itself.
    pub(super) fn exit_code(&mut self) -> i32 {
        let status = self.ended();
        status
            .code()
            .unwrap_or_else(|| panic!("ended by signal {:?}", status.signal()))
    }

    /// Processes of this run, by the state directory or the programs in their command lines or environments.
    pub(super) fn processes(&self) -> Vec<String> {
        let mark = self.dir.path().to_str().expect("a temporary path").to_owned();
        let own = std::process::id();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let pid = entry.file_name().to_string_lossy().parse::<u32>();
            let Some(pid) = pid.ok().filter(|pid| *pid != own) else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let text = [read("cmdline"), read("environ"), read("mountinfo")].concat();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            // A process that has ended and was not waited for has neither.
            if text.contains(&mark) {
                found.push(format!("{pid}: {}", String::from_utf8_lossy(&read("cmdline"))));
            }
        }
        found
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Its children end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Path of the sample application.
pub(super) fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples/forecast")
}

/// A manifest of `samples/routes`.
pub(super) fn route(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../samples/routes")
        .join(name);
    fs::read_to_string(path).expect("samples/routes")
}

/// A pod `name` with this container, and a namespace with sidecars for it.
pub(super) fn pod(name: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: app, labels: {{weft.dev/inject: enabled}}}}\n---\napiVersion: \
         v1\nkind: Pod\nmetadata: {{name: {name}, namespace: app, labels: {{app: {name}}}}}\nspec:\n  containers:\n  - \
         {container}\n"
    )
}

/// A port of this machine that nobody listens on.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("address").port()
}

/// Sends a plain HTTP/1.1 request to a port of this machine; the whole answer, or why there is none.
pub(super) fn plain_get(port: u16) -> Result<String, String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let request = b"GET / HTTP/1.1\r\nhost: frontend\r\nconnection: close\r\n\r\n";
    stream.write_all(request).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    if answer.is_empty() {
        return Err("closed without an answer".to_owned());
    }
    Ok(answer)
}

pub(super) fn is_root() -> bool {
    nix::unistd::getuid().is_root()
}

pub(super) fn pause() {
    std::thread::park_timeout(Duration::from_millis(20));
}

/// `weft`, started so that it has the ids of the way.
pub(super) fn in_way(way: Way, programs: &Path) -> Command {
    let weft = programs.join("weft");
    let mut command = match way {
        Way::Namespaces | Way::Loopback => Command::new(&weft),
        Way::OneId => {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--"]).arg(&weft);
            command
        }
        Way::Unprivileged if is_root() => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            command.arg(&weft);
            command
        }
        Way::Unprivileged => Command::new(&weft),
    };
    // What the sample's programs are called, they are looked up by.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    command
}

/// The folder of the programs that `make local` builds.
pub(super) fn programs() -> PathBuf {
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let folder = weft.parent().expect("in a folder").to_owned();
    for name in ["weft-proxy", "weft-app"] {
        let path = folder.join(name);
        assert!(path.is_file(), "{} is missing: `make local` builds it", path.display());
    }
    folder
}

fn copy_programs(to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for name in ["weft", "weft-proxy", "weft-app"] {
        fs::copy(programs().join(name), to.join(name)).expect("copy a program");
    }
}

/// Everything in the directory, and the directory.
fn give_to_nobody(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("mode");
    let status = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(directory)
        .status();
    assert!(status.expect("chown").success());
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a file").to_string_lossy().into_owned()
}

/// For conditions that a loaded machine may take long to fulfil.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// A certificate for a host that signed itself, and its key, both as PEM.
pub(super) fn self_signed(host: &str) -> (String, String) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "1", "-subj", &format!("/CN={host}")])
        .args(["-addext", &format!("subjectAltName=DNS:{host}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "-", "-out", "-"])
        .output()
        .expect("openssl runs; install it: apt-get install openssl");
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    let begin = text.find("-----BEGIN CERT").expect("a certificate");
    (text[begin..].trim().to_owned(), text[..begin].trim().to_owned())
}

/// The manifest of a Secret or ConfigMap `namespace/name` with these texts by key.
pub(super) fn holder(kind: &str, id: &str, texts: &[(&str, &str)]) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace/name");
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let mut manifest =
        format!("\n---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{field}:\n");
    for (key, text) in texts {
        manifest += &format!("  {key}: |\n    {}\n", text.replace('\n', "\n    "));
    }
    manifest
}
