//! Network namespaces: a pod's sandbox.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

type Task = Box<dyn FnOnce() + Send>;

/// A network namespace with a way out, held by a thread in it.
pub(crate) struct Space {
    /// Its file.
    pub(crate) path: PathBuf,
    tasks: mpsc::Sender<Task>,
}

impl Space {
    /// A new one.
    pub(crate) fn new() -> Self {
        let (tasks, todo) = mpsc::channel::<Task>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("a network namespace; run the tests as root");
            for arguments in [
                "link set lo up",
                "link add eth0 type veth peer name eth1",
                "link set eth0 up",
                "link set eth1 up",
                "address add 10.99.0.2/24 dev eth0",
                "route add default dev eth0",
            ] {
                assert_eq!(run("ip", arguments), "", "ip {arguments}");
            }
            let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            tell.send(PathBuf::from(own)).expect("the test waits");
            todo.into_iter().for_each(|task| task());
        });
        Self {
            path: told.recv().expect("a namespace"),
            tasks,
        }
    }

    /// Runs something in it.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.tasks
            .send(Box::new(move || drop(tell.send(task()))))
            .expect("the thread lives");
        told.recv().expect("the task did not panic")
    }

    /// Its rules.
    pub(crate) fn rules(&self) -> String {
        self.run(|| run("nft", "--stateless list ruleset"))
    }
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; install iproute2 and nftables"));
    [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat()
}
