//! What the redirect captures: real packets of a pod with both address families, by user, group, port and range.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;

use support::net::{
    APPLICATION, Backend, Caller, FAR, NEIGHBOUR, NEIGHBOUR6, Neighbour, POD, POD6, PROXY, announce, in_pod, init,
    with_each_backend,
};
use support::run;

const APP: fn() -> Caller = || Caller::new(APPLICATION, APPLICATION);

fn redirect(arguments: &[&str]) {
    let (code, said) = init(arguments);
    assert_eq!(code, 0, "init {arguments:?}: {said}");
}

/// Listeners of a pod and its neighbour that say where a connection arrived.
fn stage(neighbour: &Neighbour) {
    announce(15001, "outbound");
    announce(15006, "inbound");
    for port in [8080, 8081, 9999, 15008, 15020, 15021, 15090] {
        announce(port, "direct");
    }
    neighbour.run(|| [80, 81, 3306, 9000].map(|port| announce(port, "direct")));
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn expect(rows: &[(Caller, SocketAddr, &str)]) {
    for (caller, target, expected) in rows {
        let expected = if *expected == "direct" || *expected == "refused" {
            (*expected).to_owned()
        } else {
            format!("{expected} {target}")
        };
        assert_eq!(caller.ask(*target), expected, "{caller:?} to {target}");
    }
}

fn expect_inbound(neighbour: &Neighbour, rows: &[(SocketAddr, &str)]) {
    let rows: Vec<(Caller, SocketAddr, &'static str)> = rows
        .iter()
        .map(|(target, expected)| {
            (
                APP(),
                *target,
                if *expected == "inbound" { "inbound" } else { "direct" },
            )
        })
        .collect();
    neighbour.run(move || expect(&rows));
}

// spec: NET-100, NET-022..NET-024, NET-028, NET-042..NET-046, NET-049, NET-052, NET-060, NET-061, NET-071, NET-074, NET-120,
// spec: NET-122, NET-150, SM-051
#[test]
fn each_row_of_the_default_redirect_catches_what_it_names_and_nothing_beside() {
    with_each_backend(|neighbour, _| {
        stage(neighbour);
        redirect(&[]);
        let own = |port| at(POD, port);
        let own6 = |port| at(POD6, port);
        let group = Caller::new(APPLICATION, PROXY);
        let proxy = Caller::new(PROXY, PROXY);
        let from = |source: IpAddr| Caller {
            source: Some(source),
            ..proxy
        };
        expect(&[
            (APP(), at(NEIGHBOUR, 80), "outbound"),
            (APP(), at(FAR, 81), "outbound"),
            (APP(), at(NEIGHBOUR6, 80), "outbound"),
            (APP(), own(8080), "direct"),
            (APP(), own6(8080), "direct"),
            (APP(), at(Ipv4Addr::LOCALHOST, 8080), "direct"),
            (APP(), at(Ipv6Addr::LOCALHOST, 8080), "direct"),
        ]);
        for caller in [proxy, group, Caller::new(PROXY, APPLICATION)] {
            // A process of the proxy's user in another group is told by its user alone, and the other way round.
            expect(&[
                (caller, at(NEIGHBOUR, 80), "direct"),
                (caller, at(NEIGHBOUR6, 80), "direct"),
            ]);
        }
        expect(&[
            (proxy, own(8080), "inbound"),
            (proxy, own6(8080), "inbound"),
            (proxy, own(15008), "direct"),
            (proxy, at(Ipv4Addr::LOCALHOST, 8080), "direct"),
            (proxy, at(Ipv6Addr::LOCALHOST, 8080), "direct"),
            (from(Ipv4Addr::new(127, 0, 0, 6).into()), own(8080), "direct"),
            (from(Ipv4Addr::new(127, 0, 0, 7).into()), own(8080), "inbound"),
            (from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()), own6(8080), "direct"),
        ]);
        expect_inbound(
            neighbour,
            &[
                (own(8080), "inbound"),
                (own(9999), "inbound"),
                (own6(8080), "inbound"),
                (own(15008), "direct"),
                (own(15020), "direct"),
                (own(15021), "direct"),
                (own(15090), "direct"),
                (own6(15021), "direct"),
            ],
        );
    });
}

// spec: NET-020, NET-025..NET-027, NET-040, NET-041, NET-050, NET-051, NET-053, NET-054, NET-056, NET-059, NET-100,
// spec: NET-105, NET-123, NET-150
#[test]
fn parameters_change_what_is_captured() {
    with_each_backend(|neighbour, _| {
        stage(neighbour);
        let own = |port| at(POD, port);
        redirect(&[
            "--inbound-ports",
            "8080",
            "--exclude-inbound-ports",
            "8080",
            "--outbound-cidrs",
            "10.97.0.0/16,fd99::/64",
        ]);
        expect_inbound(neighbour, &[(own(8080), "inbound"), (own(8081), "direct")]);
        expect(&[
            (APP(), at(FAR, 80), "outbound"),
            (APP(), at(NEIGHBOUR6, 80), "outbound"),
            (APP(), at(NEIGHBOUR, 80), "direct"),
        ]);
        redirect(&[
            "--exclude-inbound-ports",
            "8081",
            "--exclude-outbound-cidrs",
            "10.97.0.1/32",
        ]);
        expect_inbound(neighbour, &[(own(8080), "inbound"), (own(8081), "direct")]);
        expect(&[(APP(), at(FAR, 80), "direct"), (APP(), at(NEIGHBOUR, 80), "outbound")]);
        redirect(&[
            "--inbound-ports",
            "",
            "--outbound-cidrs",
            "",
            "--outbound-ports",
            "9000,3306",
            "--exclude-outbound-ports",
            "3306",
        ]);
        expect_inbound(neighbour, &[(own(8080), "direct")]);
        expect(&[
            (APP(), at(NEIGHBOUR, 9000), "outbound"),
            (APP(), at(NEIGHBOUR, 3306), "direct"),
            (APP(), at(NEIGHBOUR, 80), "direct"),
        ]);
        redirect(&["--exclude-interfaces", "eth0"]);
        expect_inbound(neighbour, &[(own(8080), "direct")]);
        expect(&[(APP(), at(NEIGHBOUR, 80), "direct")]);
    });
}

// spec: NET-058, SM-022
#[test]
fn datagrams_are_left_alone() {
    with_each_backend(|neighbour, _| {
        redirect(&[]);
        neighbour.run(|| {
            let socket = UdpSocket::bind((NEIGHBOUR, 5000)).expect("socket");
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                let (_, from) = socket.recv_from(&mut buffer).expect("received");
                socket.send_to(b"pong", from).expect("sent");
            });
        });
        let socket = UdpSocket::bind((POD, 0)).expect("socket");
        socket.set_read_timeout(Some(support::LIMIT)).expect("option");
        socket.send_to(b"ping", (NEIGHBOUR, 5000)).expect("sent");
        let mut buffer = [0; 16];
        let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!((&buffer[..length], from.ip()), (&b"pong"[..], NEIGHBOUR.into()));
        // And inbound: nobody stands between.
        let inside = UdpSocket::bind((POD, 6000)).expect("socket");
        inside.set_read_timeout(Some(support::LIMIT)).expect("option");
        neighbour.run(|| {
            UdpSocket::bind((NEIGHBOUR, 0))
                .expect("socket")
                .send_to(b"in", (POD, 6000))
                .expect("sent")
        });
        let (length, from) = inside.recv_from(&mut buffer).expect("received");
        assert_eq!((&buffer[..length], from.ip()), (&b"in"[..], NEIGHBOUR.into()));
    });
}

// spec: NET-152, NET-153, LIFE-003
#[test]
fn without_a_proxy_captured_connections_are_refused_from_the_first_packet_on() {
    with_each_backend(|neighbour, _| {
        neighbour.run(|| announce(80, "direct"));
        announce(8080, "direct");
        expect(&[(APP(), at(NEIGHBOUR, 80), "direct")]);
        redirect(&[]);
        expect(&[
            (APP(), at(NEIGHBOUR, 80), "refused"),
            (APP(), at(NEIGHBOUR6, 80), "refused"),
        ]);
        neighbour.run(|| expect(&[(APP(), at(POD, 8080), "refused"), (APP(), at(POD6, 8080), "refused")]));
    });
}

/// The rules without their counters.
fn listed() -> String {
    let said = run("nft", "nftables", &["list", "ruleset"]);
    let without = said.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let at = words.iter().position(|word| *word == "packets");
        match at {
            Some(at) => [&words[..at], &words[at + 4..]].concat().join(" "),
            None => line.to_owned(),
        }
    });
    without.collect::<Vec<_>>().join("\n")
}

// spec: NET-104, NET-111, NET-106, NET-109, NET-122
#[test]
fn init_again_leaves_one_set_of_rules_and_cleanup_none() {
    in_pod(|_| {
        run("nft", "nftables", &["add", "table", "inet", "someone"]);
        let empty = listed();
        let begin = std::time::Instant::now();
        let (code, said) = init(&["--exclude-outbound-ports", "25"]);
        assert_eq!(code, 0, "{said}");
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(1),
            "{:?}",
            begin.elapsed()
        );
        assert!(
            said.contains("exclude_outbound_ports") && said.contains("redirect to :15001"),
            "parameters and rules: {said}"
        );
        let first = listed();
        assert!(first.contains("weft-nat") && first.contains("someone"), "{first}");
        assert_eq!(init(&["--exclude-outbound-ports", "25"]).0, 0);
        assert_eq!(listed(), first);
        let (code, said) = init(&["--dry-run"]);
        assert!(code == 0 && said.contains("redirect to :15006"), "{said}");
        assert_eq!(listed(), first);
        for _ in 0..2 {
            assert_eq!(init(&["--cleanup"]).0, 0);
            assert_eq!(listed(), empty);
        }
        let addresses = run("ip", "iproute2", &["-6", "address", "show", "dev", "lo"]);
        assert!(!addresses.contains("::6/128"), "{addresses}");
    });
}

// spec: NET-080, NET-101, NET-104, NET-109
#[test]
fn tproxy_brings_its_route_and_cleanup_takes_it_away() {
    in_pod(|_| {
        let routing = || {
            let show = |arguments: &[&str]| run("ip", "iproute2", arguments);
            [
                show(&["rule"]),
                show(&["-6", "rule"]),
                show(&["route", "show", "table", "all"]),
                show(&["-6", "route", "show", "table", "all"]),
            ]
        };
        let (empty, before) = (listed(), routing());
        let arguments = ["--interception-mode", "TPROXY"];
        assert_eq!(init(&arguments).0, 0);
        let (rules, routes) = (listed(), routing());
        for part in [
            "table inet weft-mangle",
            "chain weft-tproxy",
            "chain weft-divert",
            "tproxy to :15006",
            "type route hook output priority mangle",
        ] {
            assert!(rules.contains(part), "{part}: {rules}");
        }
        assert!(!rules.contains("weft-in-redirect"), "only what holds rules: {rules}");
        for family in [&routes[..2], &routes[2..]] {
            assert!(
                family.iter().all(|text| text.contains("fwmark 0x539 lookup 133")
                    || (text.contains("local default dev lo table 133"))),
                "{family:?}"
            );
        }
        assert_eq!(init(&arguments).0, 0);
        assert_eq!((listed(), routing()), (rules, routes));
        // The other mode leaves nothing of this one among the rules.
        assert_eq!(init(&[]).0, 0);
        assert!(!listed().contains("weft-mangle"));
        assert_eq!(
            init(&[
                "--interception-mode",
                "TPROXY",
                "--tproxy-mark",
                "7",
                "--tproxy-table",
                "77"
            ])
            .0,
            0
        );
        assert!(routing()[0].contains("fwmark 0x7 lookup 77"));
        assert_eq!(init(&["--cleanup", "--tproxy-mark", "7", "--tproxy-table", "77"]).0, 0);
        for _ in 0..2 {
            assert_eq!(init(&["--cleanup"]).0, 0);
            assert_eq!((listed(), routing()), (empty.clone(), before.clone()));
        }
        let (code, said) = init(&["--print-config", "--inbound-port", "16006"]);
        assert!(code == 0 && said.contains("inbound_port: 16006"), "{said}");
        assert_eq!(listed(), empty);
    });
}

// spec: NET-107, NET-108
#[test]
fn a_redirect_of_another_mesh_is_an_error_that_changes_nothing() {
    for table in ["istio-proxy-nat", "ISTIO_X"] {
        in_pod(|_| {
            run("nft", "nftables", &["add", "table", "inet", table]);
            let before = listed();
            let (code, said) = init(&[]);
            assert!(
                code == 1 && said.contains(table) && said.contains("two redirects"),
                "{code} {said}"
            );
            assert_eq!(listed(), before);
        });
    }
    for chain in ["ISTIO_OUTPUT", "PROXY_INIT_REDIRECT"] {
        in_pod(|_| {
            run("iptables-nft", "iptables", &["-t", "nat", "-N", chain]);
            let before = listed();
            let (code, said) = init(&[]);
            assert!(code == 1 && said.contains(chain), "{code} {said}");
            assert_eq!(listed(), before);
        });
    }
}

// spec: NET-108, NET-112, INJ-150
#[test]
fn bad_parameters_end_with_2_and_name_what_would_be_accepted() {
    for (arguments, hint) in [
        (&["--inbound-ports", "x"][..], "write a list such as 80,443"),
        (&["--outbound-cidrs", "10.0.0.0/40"], "write a list such as 10.0.0.0/8"),
        (&["--proxy-mark", "1337"], "--proxy-mark"),
        (&["--proxy-mark", "1338"], "--proxy-mark"),
        (&["--proxy-mark", "7", "--interception-mode", "TPROXY"], "--proxy-mark"),
        (&["--proxy-mark", "7", "--tproxy-mark", "7"], "--proxy-mark"),
        (&["--tproxy-mark", "1338"], "--tproxy-mark"),
        (&["--tproxy-table", "255"], "--tproxy-table"),
        (&["--interception-mode", "tproxy"], "REDIRECT, TPROXY"),
    ] {
        let (code, said) = init(arguments);
        assert!(code == 2 && said.contains(hint), "{arguments:?}: {code} {said}");
    }
}

// spec: NET-130, NET-108, NET-101
#[test]
fn net_admin_alone_suffices_and_its_absence_is_named() {
    in_pod(|_| {
        let with = |capabilities: &str| {
            let output = Command::new("setpriv")
                .args(["--bounding-set", capabilities, "--inh-caps", "-all"])
                .args([env!("CARGO_BIN_EXE_weft-proxy"), "init"])
                .output()
                .expect("setpriv; install it: apt-get install util-linux");
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let (code, said) = with("-all");
        assert!(code == Some(1) && said.contains("NET_ADMIN"), "{code:?} {said}");
        assert!(!listed().contains("weft"), "nothing is left of a failed attempt");
        let (code, said) = with("-all,+net_admin");
        assert_eq!(code, Some(0), "{said}");
        let listed = listed();
        for part in [
            "table inet weft-nat",
            "chain weft-inbound",
            "chain weft-output",
            "chain weft-redirect",
            "chain weft-in-redirect",
            "jump weft-inbound",
            "goto weft-redirect",
        ] {
            assert!(listed.contains(part), "{part}: {listed}");
        }
        assert!(
            !listed.contains("weft-mangle") && !listed.contains("weft-tproxy"),
            "only what holds rules: {listed}"
        );
    });
}

// spec: NET-110
#[test]
fn packets_of_no_connection_are_dropped_where_that_is_asked_for() {
    for mode in ["REDIRECT", "TPROXY"] {
        with_each_backend(|neighbour, backend| {
            let dropped = || match backend {
                Backend::Nftables => {
                    let said = run("nft", "nftables", &["list", "ruleset"]);
                    let rule = said
                        .lines()
                        .find(|line| line.contains("packets") && line.ends_with("drop"))?;
                    let mut words = rule.split_whitespace().skip_while(|word| *word != "packets").skip(1);
                    words.next().and_then(|count| count.parse::<u64>().ok())
                }
                Backend::Iptables(variant) => {
                    let said = run(&format!("iptables-{variant}-save"), "iptables", &["-c"]);
                    let rule = said.lines().find(|line| line.ends_with("-A WEFT_DROP -j DROP"))?;
                    rule.trim_start_matches('[').split(':').next()?.parse().ok()
                }
            };
            // The second half of a handshake that nobody began.
            let stray = |neighbour: &Neighbour| neighbour.run(|| send_segment(NEIGHBOUR, POD, 8080, SYN | ACK));
            redirect(&["--interception-mode", mode]);
            stray(neighbour);
            assert_eq!(dropped(), None, "by default nothing is");
            let invalid = [("INVALID_DROP", "true")];
            assert_eq!(support::net::init_with(&["--interception-mode", mode], &invalid).0, 0);
            assert_eq!(dropped(), Some(0), "{}", listed());
            stray(neighbour);
            support::wait_for("the packet", || dropped() == Some(1));
            // What begins a connection is none of them.
            announce(15021, "direct");
            expect_inbound(neighbour, &[(at(POD, 15021), "direct")]);
            assert_eq!(dropped(), Some(1));
        });
    }
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Sends one TCP segment without a connection.
fn send_segment(from: Ipv4Addr, to: Ipv4Addr, port: u16, flags: u8) {
    use socket2::{Domain, Protocol, Socket, Type};
    let mut segment = Vec::new();
    segment.extend(40_000u16.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend(1u32.to_be_bytes());
    segment.extend(1u32.to_be_bytes());
    segment.extend([5 << 4, flags]);
    segment.extend(1024u16.to_be_bytes());
    segment.extend([0; 4]);
    // RFC 9293, section 3.1: over addresses, protocol, length and segment.
    let mut summed = [from.octets(), to.octets()].concat();
    summed.extend([0, 6]);
    summed.extend(u16::try_from(segment.len()).expect("short").to_be_bytes());
    summed.extend(&segment);
    let sum: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("socket; run the tests as root");
    socket.send_to(&segment, &at(to, 0).into()).expect("sent");
}

// spec: NET-121
#[test]
fn a_pod_without_ipv6_gets_its_redirect_all_the_same() {
    with_each_backend(|neighbour, _| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("a setting of this namespace");
        stage(neighbour);
        redirect(&[]);
        expect(&[(APP(), at(NEIGHBOUR, 80), "outbound")]);
    });
}

// spec: NET-139, NET-010, LIFE-006
#[test]
fn the_self_test_tells_a_redirect_from_none() {
    use std::os::unix::process::CommandExt;
    with_each_backend(|_, _| {
        let validate = || {
            let (_open, program) = support::process::for_anybody();
            let output = Command::new(program)
                .arg("validate")
                .env_clear()
                .uid(PROXY)
                .gid(PROXY)
                .output()
                .expect("the binary of this crate");
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let (code, said) = validate();
        assert!(code == Some(126) && said.contains("127.0.0.6:15002"), "{code:?} {said}");
        redirect(&[]);
        assert_eq!(validate().0, Some(0));
        // Of one family is not enough.
        for line in [
            "add table ip6 stop",
            "add chain ip6 stop output { type filter hook output priority -300; }",
            "add rule ip6 stop output tcp dport 15002 reject",
        ] {
            run("nft", "nftables", &[line]);
        }
        let (code, said) = validate();
        assert!(code == Some(126) && said.contains("[::6]:15002"), "{code:?} {said}");
    });
}

// spec: NET-139
#[test]
fn the_self_test_waits_for_a_redirect_that_comes_late() {
    use std::os::unix::process::CommandExt;
    with_each_backend(|_, _| {
        let (_open, program) = support::process::for_anybody();
        let mut validate = Command::new(program)
            .arg("validate")
            .env_clear()
            .uid(PROXY)
            .gid(PROXY)
            .spawn()
            .expect("the binary of this crate");
        support::pause(std::time::Duration::from_millis(1500));
        redirect(&[]);
        assert_eq!(validate.wait().expect("status").code(), Some(0));
    });
}

// spec: NET-139, NET-064, NET-080
#[test]
fn under_tproxy_the_self_test_runs_with_the_proxy_s_capability() {
    use std::os::unix::process::CommandExt;
    with_each_backend(|_, _| {
        let validate = || {
            let arguments = ["validate", "--interception-mode", "TPROXY"];
            let mut program = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
            let output = program
                .args(arguments)
                .env_clear()
                .gid(PROXY)
                .output()
                .expect("the binary of this crate");
            output.status.code()
        };
        assert_eq!(validate(), Some(126));
        redirect(&["--interception-mode", "TPROXY"]);
        assert_eq!(validate(), Some(0));
    });
}
