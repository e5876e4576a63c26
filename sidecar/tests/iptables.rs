//! The redirect through iptables: what `init` writes, leaves, replaces and takes away. What it captures is in capture.rs
//! and redirect.rs, with the tests of the other back end.

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::net::{NEIGHBOUR, announce, has_legacy, in_pod, init, init_with};
use support::{run, wait_for};

/// The variants that this kernel has.
fn variants() -> Vec<&'static str> {
    let mut out = vec!["nft"];
    in_pod(|_| out.extend(has_legacy().then_some("legacy")));
    out
}

fn with(variant: &str) -> [(&str, &str); 2] {
    [
        ("WEFT_INTERCEPTION_BACKEND", "iptables"),
        ("WEFT_IPTABLES_BINARY", variant),
    ]
}

/// What a variant says is there, of both families: chains that somebody added, and rules.
fn saved(variant: &str, counters: bool) -> String {
    let flags: &[&str] = if counters { &["-c"] } else { &[] };
    let both = ["iptables", "ip6tables"].map(|family| {
        let said = run(&format!("{family}-{variant}-save"), "iptables", flags);
        let told = said.lines().filter(|line| {
            line.contains("-A ") || (line.starts_with(':') && line.contains(" - ")) || line.starts_with('*')
        });
        told.collect::<Vec<_>>().join("\n")
    });
    both.join("\n")
}

/// Without the names of tables, which stay when they are empty.
fn rules(variant: &str) -> Vec<String> {
    let told = saved(variant, false);
    told.lines()
        .filter(|line| !line.starts_with('*'))
        .map(ToOwned::to_owned)
        .collect()
}

fn iptables(variant: &str, arguments: &str) {
    let split: Vec<&str> = arguments.split(' ').collect();
    let said = run(&format!("iptables-{variant}"), "iptables", &split);
    assert!(said.lines().all(|line| line.starts_with('#')), "{arguments}: {said}");
}

// spec: NET-102, NET-104, NET-105, NET-106, NET-109
#[test]
fn what_is_complete_stays_as_it_is_and_what_differs_is_replaced() {
    for variant in variants() {
        in_pod(|_| {
            iptables(variant, "-t nat -A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT");
            iptables(variant, "-t mangle -N SOMEONE");
            let before = rules(variant);
            let environment = with(variant);
            let set = |arguments: &[&str]| {
                let (code, said) = init_with(arguments, &environment);
                assert_eq!(code, 0, "{variant} {arguments:?}: {said}");
                said
            };
            let said = set(&[]);
            assert!(said.contains("-A OUTPUT -j WEFT_OUTPUT"), "the rules are told: {said}");
            let first = rules(variant);
            for part in [
                ":WEFT_INBOUND - [0:0]",
                ":WEFT_OUTPUT - [0:0]",
                ":WEFT_REDIRECT - [0:0]",
                ":WEFT_IN_REDIRECT - [0:0]",
                "-A PREROUTING -j WEFT_INBOUND",
                "-A WEFT_OUTPUT -p tcp -g WEFT_REDIRECT",
                "-A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
            ] {
                assert_eq!(
                    first.iter().filter(|line| *line == part).count(),
                    2,
                    "{part}: {first:#?}"
                );
            }
            let only_jumps = |lines: &[String]| {
                let of_kernel = lines
                    .iter()
                    .filter(|line| line.starts_with("-A ") && !line.starts_with("-A WEFT_") && !before.contains(line));
                of_kernel.into_iter().all(|line| line.contains(" WEFT_"))
            };
            assert!(only_jumps(&first), "{first:#?}");
            // Again: not even a counter changes.
            assert!(TcpStream::connect((NEIGHBOUR, 80)).is_err(), "nobody listens on 15001");
            let counted = saved(variant, true);
            assert!(counted.contains("[1:60] -A WEFT_REDIRECT -p tcp"), "{counted}");
            set(&[]);
            assert_eq!(saved(variant, true), counted);
            // Other parameters, and what an earlier version might have left.
            set(&[
                "--exclude-outbound-ports",
                "25",
                "--interception-mode",
                "TPROXY",
                "--drop-invalid",
            ]);
            let other = rules(variant);
            assert!(
                other.iter().any(|line| line.contains("--dport 25")) && only_jumps(&other),
                "{other:#?}"
            );
            iptables(variant, "-t raw -N WEFT_OLD");
            iptables(variant, "-t raw -A PREROUTING -j WEFT_OLD");
            iptables(variant, "-t nat -A OUTPUT -j WEFT_OUTPUT");
            let (code, said) = init_with(&["--reconcile", "false"], &environment);
            assert!(code == 0 && said.contains("interception.reconcile"), "{code} {said}");
            let kept = rules(variant);
            assert!(kept.contains(&":WEFT_OLD - [0:0]".to_owned()), "{kept:#?}");
            set(&[]);
            assert_eq!(rules(variant), first);
            let (code, said) = init_with(&["--dry-run", "--inbound-ports", "80"], &environment);
            assert!(
                code == 0 && said.contains(&format!("# ip6tables-{variant}-restore --noflush\n*nat\n")),
                "{said}"
            );
            assert_eq!(rules(variant), first);
            for _ in 0..2 {
                assert_eq!(init(&["--cleanup"]).0, 0);
                assert_eq!(rules(variant), before);
            }
        });
    }
}

// spec: NET-100, NET-104
#[test]
fn the_other_back_end_keeps_nothing() {
    for variant in variants() {
        in_pod(|_| {
            let tables = || run("nft", "nftables", &["list", "tables"]);
            let (code, said) = init(&["--drop-invalid"]);
            assert_eq!(code, 0, "{said}");
            assert!(tables().contains("weft-nat") && tables().contains("weft-mangle"));
            let (code, said) = init_with(&[], &with(variant));
            assert_eq!(code, 0, "{said}");
            assert!(!tables().contains("weft-") && rules(variant).join("\n").contains("WEFT_OUTPUT"));
            let (code, said) = init(&[]);
            assert_eq!(code, 0, "{said}");
            assert!(tables().contains("weft-nat"));
            assert!(!rules(variant).join("\n").contains("WEFT_"));
        });
    }
}

// spec: NET-103
#[test]
fn the_variant_that_has_rules_is_used() {
    let iptables_alone = [("WEFT_INTERCEPTION_BACKEND", "iptables")];
    let has = |variant: &str| rules(variant).join("\n").contains("WEFT_");
    in_pod(|_| {
        let (code, said) = init_with(&[], &iptables_alone);
        assert_eq!(code, 0, "{said}");
        assert!(has("nft"), "nobody has: the one that works");
    });
    for variant in variants() {
        in_pod(|_| {
            iptables(variant, "-t filter -A INPUT -p tcp -m tcp --dport 9 -j ACCEPT");
            let (code, said) = init_with(&[], &iptables_alone);
            assert_eq!(code, 0, "{said}");
            let others = variants().into_iter().filter(|other| *other != variant);
            assert!(has(variant) && others.into_iter().all(|other| !has(other)), "{said}");
        });
    }
    let (code, said) = init_with(
        &[],
        &[
            ("WEFT_INTERCEPTION_BACKEND", "iptables"),
            ("WEFT_IPTABLES_BINARY", "ebtables"),
        ],
    );
    assert!(code == 2 && said.contains("nft, legacy"), "{code} {said}");
}

// spec: NET-103, NET-130, INJ-054
#[test]
fn legacy_needs_net_raw_and_says_where_it_comes_from() {
    in_pod(|_| {
        let limited = |variant: &str, capabilities: &str| {
            let output = Command::new("setpriv")
                .args(["--bounding-set", capabilities, "--inh-caps", "-all"])
                .args([env!("CARGO_BIN_EXE_weft-proxy"), "init"])
                .envs(with(variant))
                .output()
                .expect("setpriv; install it: apt-get install util-linux");
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let (code, said) = limited("legacy", "-all,+net_admin");
        assert!(
            code == Some(1) && said.contains("NET_RAW") && said.contains("interception.iptablesBinary"),
            "{code:?} {said}"
        );
        let (code, said) = limited("nft", "-all,+net_admin");
        assert_eq!(code, Some(0), "{said}");
        if has_legacy() {
            let (code, said) = limited("legacy", "-all,+net_admin,+net_raw");
            assert_eq!(code, Some(0), "{said}");
        }
    });
}

fn begin(arguments: &[&str], environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
        .arg("init")
        .args(arguments)
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary of this crate")
}

// spec: NET-103
#[test]
fn legacy_waits_for_its_lock_in_the_file_that_is_named() {
    use std::os::unix::fs::MetadataExt;
    if !variants().contains(&"legacy") {
        return;
    }
    in_pod(|_| {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("lock");
        let file = std::fs::File::create(&path).expect("file");
        let inode = file.metadata().expect("metadata").ino();
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e);
        let lock = lock.expect("nobody else has it");
        let file = path.to_str().expect("text").to_owned();
        let environment = [&with("legacy")[..], &[("XTABLES_LOCKFILE", &file)]].concat();
        let mut child = begin(&[], &environment);
        wait_for("init at the lock", || {
            let locks = std::fs::read_to_string("/proc/locks").expect("locks");
            locks
                .lines()
                .any(|line| line.contains("->") && line.contains(&format!(":{inode} ")))
        });
        assert!(child.try_wait().expect("status").is_none());
        assert!(!rules("legacy").join("\n").contains("WEFT_"));
        drop(lock);
        let mut said = String::new();
        child
            .stderr
            .take()
            .expect("pipe")
            .read_to_string(&mut said)
            .expect("text");
        assert!(child.wait().expect("status").success(), "{said}");
        assert!(rules("legacy").join("\n").contains("WEFT_"));
    });
}

/// A directory with programs in place of those of iptables: a shell script in front of each, with `$1` as what it was
/// called with and `$real` as the program itself.
fn wrapped(variant: &str, family: &str, script: &str) -> tempfile::TempDir {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().expect("directory");
    for of in ["iptables", "ip6tables"] {
        for verb in ["save", "restore"] {
            let name = format!("{of}-{variant}-{verb}");
            let real = found(&name);
            let path = directory.path().join(&name);
            if of != family && family != "both" || verb != "restore" {
                symlink(real, path).expect("link");
                continue;
            }
            std::fs::write(&path, format!("#!/bin/sh\nreal={}\n{script}\n", real.display())).expect("file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        }
    }
    directory
}

fn found(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let mut places = places.into_iter().map(|place| place.join(name));
    places
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name}; install it: apt-get install iptables"))
}

fn from(directory: &Path) -> String {
    directory.to_str().expect("text").to_owned()
}

/// Refuses what holds the redirect itself; probes and removals pass.
const REFUSING: &str = "input=$(cat)\ncase \"$input\" in *'-A WEFT_OUTPUT -p tcp -j RETURN'*|*'-A WEFT_OUTPUT -p tcp -g'*) \
                        echo 'no such luck' >&2; exit 1;; esac\nprintf '%s\\n' \"$input\" | \"$real\" \"$@\"";

// spec: NET-108, NET-105, NET-121
#[test]
fn a_failure_leaves_what_was_there_before() {
    for variant in variants() {
        let refusing = wrapped(variant, "ip6tables", REFUSING);
        let refusing = from(refusing.path());
        let nothing = wrapped(variant, "ip6tables", "echo 'no NAT for IPv6' >&2; exit 3");
        let nothing = from(nothing.path());
        in_pod(|_| {
            let environment = with(variant);
            // The second family fails when the first has its rules already.
            let (code, said) = init_with(&["--iptables-dir", &refusing], &environment);
            assert!(code == 1 && said.contains("no such luck"), "{code} {said}");
            assert_eq!(rules(variant), Vec::<String>::new());
            assert!(!run("ip", "iproute2", &["-6", "address", "show", "dev", "lo"]).contains("::6/128"));
            // Where an earlier redirect was to be replaced it is back, and nothing guards it any more.
            let (code, said) = init_with(&["--outbound-cidrs", "10.0.0.0/8"], &environment);
            assert_eq!(code, 0, "{said}");
            let earlier = rules(variant);
            let (code, said) = init_with(&["--iptables-dir", &refusing], &environment);
            assert!(code == 1 && said.contains("no such luck"), "{code} {said}");
            assert_eq!(rules(variant), earlier);
            assert_eq!(init(&["--cleanup"]).0, 0);
            // A pod with an IPv6 address would be open without its rules; one without does not miss them.
            let (code, said) = init_with(&["--iptables-dir", &nothing], &environment);
            assert!(code == 1 && said.contains("no NAT for IPv6"), "{code} {said}");
            assert_eq!(rules(variant), Vec::<String>::new());
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("a setting of this namespace");
            let (code, said) = init_with(&["--iptables-dir", &nothing], &environment);
            assert_eq!(code, 0, "{said}");
            assert!(rules(variant).contains(&"-A OUTPUT -j WEFT_OUTPUT".to_owned()));
        });
    }
}

// spec: NET-105
#[test]
fn nothing_passes_while_rules_are_replaced() {
    for variant in variants() {
        // Slow, so that what is open between two steps would be seen.
        let slow = wrapped(variant, "both", "sleep 0.2\nexec \"$real\" \"$@\"");
        let slow = from(slow.path());
        in_pod(|neighbour| {
            neighbour.run(|| announce(80, "direct"));
            announce(15001, "outbound");
            let environment = with(variant);
            assert_eq!(init_with(&[], &environment).0, 0);
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let calls = scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !ended.load(Ordering::SeqCst) {
                        // What the guard drops is tried again by the kernel after a second.
                        let target = (NEIGHBOUR, 80).into();
                        let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_millis(50)) else {
                            continue;
                        };
                        let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                        let _ = std::io::Write::write_all(&mut stream, b"\n\n");
                        let mut said = String::new();
                        let _ = stream.read_to_string(&mut said);
                        seen.push(said);
                    }
                    seen
                });
                let replaced = ["--exclude-outbound-ports", "25", "--iptables-dir", &slow];
                let (code, said) = init_with(&replaced, &environment);
                ended.store(true, Ordering::SeqCst);
                assert_eq!(code, 0, "{said}");
                let seen = calls.join().expect("no panic");
                assert!(
                    !seen.is_empty() && !seen.iter().any(|said| said.contains("direct")),
                    "{seen:?}"
                );
            });
            let left = rules(variant);
            assert!(!left.iter().any(|line| line.contains("WEFT_DROP")), "{left:#?}");
        });
    }
}

// spec: NET-107
#[test]
fn a_redirect_of_another_mesh_is_found_in_either_variant() {
    for variant in variants() {
        for chain in ["ISTIO_OUTPUT", "PROXY_INIT_OUTPUT"] {
            in_pod(|_| {
                iptables(variant, &format!("-t nat -N {chain}"));
                for environment in [&with(variant)[..], &[("WEFT_INTERCEPTION_BACKEND", "auto")]] {
                    let (code, said) = init_with(&[], environment);
                    assert!(code == 1 && said.contains(chain), "{variant} {code} {said}");
                }
                assert!(!rules(variant).join("\n").contains("WEFT_"));
            });
        }
    }
}
