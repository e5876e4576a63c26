//! Network namespaces: a pod, and a neighbour on the same wire.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use super::run;

/// Address of the pod.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// IPv6 address of the pod.
pub const POD6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2);
/// Address of the neighbour.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);
/// A second address of the neighbour, outside of the pod's subnet.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 1);
/// IPv6 address of the neighbour.
pub const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 3);
/// User and group of the proxy.
pub const PROXY: u32 = 1337;
/// User and group of an application.
pub const APPLICATION: u32 = 1000;

type Task = Box<dyn FnOnce() + Send>;

/// A machine beside the pod: a thread in a network namespace of its own.
pub struct Neighbour {
    tasks: mpsc::Sender<Task>,
}

impl Neighbour {
    /// Runs something in the neighbour's namespace; threads that it starts stay there.
    pub fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let task = Box::new(move || drop(tell.send(task())));
        self.tasks.send(task).expect("the neighbour lives");
        told.recv().expect("the neighbour did not panic")
    }
}

/// Runs a test in a thread that has left for a network namespace of its own; threads that it starts are there, too.
pub fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                leave();
                test();
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// As [`in_namespace`], with a wire to a neighbour, addresses of both families and a default route to it.
pub fn in_pod(test: impl FnOnce(&Neighbour) + Send) {
    in_namespace(|| {
        let (tasks, todo) = mpsc::channel::<Task>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            leave();
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            tell.send(path).expect("the test waits");
            todo.into_iter().for_each(|task| task());
        });
        let path = told.recv().expect("a namespace");
        ip("link add eth0 type veth peer name eth1");
        ip(&format!("link set eth1 netns {path}"));
        ip("link set eth0 up");
        ip(&format!("address add {POD}/24 dev eth0"));
        ip(&format!("address add {POD6}/64 dev eth0 nodad"));
        let neighbour = Neighbour { tasks };
        neighbour.run(|| {
            ip("link set eth1 up");
            ip(&format!("address add {NEIGHBOUR}/24 dev eth1"));
            ip(&format!("address add {NEIGHBOUR6}/64 dev eth1 nodad"));
            ip(&format!("address add {FAR}/32 dev lo"));
        });
        ip(&format!("route add default via {NEIGHBOUR}"));
        ip(&format!("route add default via {NEIGHBOUR6}"));
        test(&neighbour);
    });
}

/// What writes the rules of the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Nftables,
    /// By a variant of iptables: nft or legacy.
    Iptables(&'static str),
}

thread_local! {
    static BACKEND: std::cell::Cell<Backend> = const { std::cell::Cell::new(Backend::Nftables) };
}

/// As [`in_pod`], once for each back end of the redirect that this kernel has; [`init`] uses it.
pub fn with_each_backend(test: impl Fn(&Neighbour, Backend) + Sync) {
    for backend in [Backend::Nftables, Backend::Iptables("nft"), Backend::Iptables("legacy")] {
        in_pod(|neighbour| {
            if backend == Backend::Iptables("legacy") && !has_legacy() {
                return;
            }
            BACKEND.set(backend);
            // Shown where the test fails.
            println!("back end: {backend:?}");
            test(neighbour, backend);
        });
    }
}

/// The older tables of iptables are an option of the kernel's.
pub fn has_legacy() -> bool {
    let said = run("iptables-legacy", "iptables", &["-t", "nat", "-S"]);
    let has = said.contains("-P OUTPUT ACCEPT");
    if !has {
        println!("without iptables-legacy: {said}");
    }
    has
}

fn leave() {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run the tests as root");
    ip("link set lo up");
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let split: Vec<&str> = arguments.split(' ').collect();
    let said = run("ip", "iproute2", &split);
    assert!(said.is_empty(), "ip {arguments}: {said}");
}

/// Runs `init` of the proxy; exit code and what it said.
pub fn init(arguments: &[&str]) -> (i32, String) {
    init_with(arguments, &[])
}

/// As [`init`], with variables of the environment.
pub fn init_with(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let backend = match BACKEND.get() {
        Backend::Nftables => vec![("WEFT_INTERCEPTION_BACKEND", "auto")],
        Backend::Iptables(variant) => {
            vec![
                ("WEFT_INTERCEPTION_BACKEND", "iptables"),
                ("WEFT_IPTABLES_BINARY", variant),
            ]
        }
    };
    let output = Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
        .arg("init")
        .args(arguments)
        .envs(backend)
        .envs(environment.iter().copied())
        .output()
        .expect("the binary of this crate");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Accepts on a port of all addresses in this namespace. Each client is told where its connection arrived: `name`, and
/// the address that it had dialled if the connection was redirected.
pub fn announce(port: u16, name: &'static str) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let original = original(&stream).map_or(String::new(), |address| format!(" {address}"));
            let mut request = BufReader::new(stream.try_clone().expect("clone")).lines();
            while request.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
            let _ = stream.write_all(format!("{name}{original}").as_bytes());
        }
    });
}

fn original(stream: &std::net::TcpStream) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    let is_v4 = stream.peer_addr().ok()?.ip().to_canonical().is_ipv4();
    let original = if is_v4 {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let original = canonical(original.ok()?.as_socket()?);
    // The kernel tells it of every connection that it tracks.
    (original != canonical(stream.local_addr().ok()?)).then_some(original)
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Source address, if not the kernel's choice.
    pub source: Option<IpAddr>,
}

impl Caller {
    pub fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, source: None }
    }

    /// What the one who accepts the connection says; a refused connection is `refused`.
    pub fn ask(self, target: SocketAddr) -> String {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("curl");
        command.args(["-sS", "--http0.9", "--max-time", "10", "--noproxy", "*"]);
        if let Some(source) = self.source {
            command.args(["--interface", &source.to_string()]);
        }
        let output = command
            .arg(format!("http://{target}/"))
            .current_dir("/")
            .stdin(Stdio::null())
            .uid(self.uid)
            .gid(self.gid)
            .output()
            .expect("curl; install it: apt-get install curl");
        match output.status.code() {
            Some(0) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Some(7) => "refused".to_owned(),
            _ => String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
