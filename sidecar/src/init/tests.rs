use super::*;
use clap::Parser;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn parsed(arguments: &[&str]) -> Rules {
    let command = Command::try_parse_from(["init"].iter().chain(arguments)).expect("arguments");
    rules(&command.arguments, &Names::read(&command.arguments))
}

fn lines(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

fn text(arguments: &[&str]) -> (Vec<String>, Vec<String>) {
    let rules = parsed(arguments);
    (lines(&rules.inbound), lines(&rules.outbound))
}

/// A resolv.conf with an address of each family.
fn resolv_conf() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), "nameserver 10.96.0.10\nnameserver fd00::a\n").expect("written");
    file
}

// spec: NET-022, NET-023, NET-024, NET-042..NET-046, NET-049, NET-052, NET-058, NET-120
#[test]
fn the_default_redirect_in_order() {
    let (inbound, outbound) = text(&[]);
    assert_eq!(
        inbound,
        [
            "meta l4proto tcp th dport 15008 return",
            "meta l4proto tcp th dport 15020 return",
            "meta l4proto tcp th dport 15021 return",
            "meta l4proto tcp th dport 15090 return",
            "meta l4proto tcp redirect to :15006",
        ]
    );
    assert_eq!(
        outbound,
        [
            "oifname \"lo\" ip saddr 127.0.0.6/32 return",
            "oifname \"lo\" ip6 saddr ::6/128 return",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 ip daddr != 127.0.0.1/32 meta skuid 1337 redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 ip6 daddr != ::1/128 meta skuid 1337 redirect to :15006",
            "oifname \"lo\" meta skuid != 1337 return",
            "meta skuid 1337 return",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 ip daddr != 127.0.0.1/32 meta skgid 1337 redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 ip6 daddr != ::1/128 meta skgid 1337 redirect to :15006",
            "oifname \"lo\" meta skgid != 1337 return",
            "meta skgid 1337 return",
            "ip daddr 127.0.0.1/32 return",
            "ip6 daddr ::1/128 return",
            "meta l4proto tcp redirect to :15001",
        ]
    );
}

// spec: NET-020, NET-025..NET-027, NET-040, NET-041, NET-050, NET-051, NET-052, NET-053, NET-054, NET-056, INJ-171
#[test]
fn exclusions_stand_before_inclusions() {
    let (inbound, outbound) = text(&[
        "--inbound-ports",
        "80,8080",
        "--exclude-inbound-ports",
        "80",
        "--outbound-cidrs",
        "10.0.0.0/8",
        "--exclude-outbound-cidrs",
        "10.1.0.0/16",
        "--outbound-ports",
        "3306",
        "--exclude-outbound-ports",
        "3306",
        "--exclude-interfaces",
        "eth1",
    ]);
    assert_eq!(
        inbound,
        [
            "iifname \"eth1\" return",
            "meta l4proto tcp th dport 15008 return",
            "meta l4proto tcp th dport 80 redirect to :15006",
            "meta l4proto tcp th dport 8080 redirect to :15006",
        ]
    );
    let at = |line: &str| {
        outbound
            .iter()
            .position(|l| l == line)
            .unwrap_or_else(|| panic!("{line}: {outbound:#?}"))
    };
    let order = [
        "oifname \"eth1\" return",
        "meta l4proto tcp th dport 3306 return",
        "meta l4proto udp th dport 3306 return",
        "oifname \"lo\" ip saddr 127.0.0.6/32 return",
        "ip daddr 127.0.0.1/32 return",
        "ip daddr 10.1.0.0/16 return",
        "meta l4proto tcp th dport 3306 redirect to :15001",
        "meta l4proto tcp ip daddr 10.0.0.0/8 redirect to :15001",
    ];
    assert!(order.map(at).is_sorted(), "{outbound:#?}");
    let (inbound, outbound) = text(&["--inbound-ports", "", "--outbound-cidrs", ""]);
    assert!(
        !inbound
            .iter()
            .chain(&outbound)
            .any(|l| l.ends_with(":15001") || l == "meta l4proto tcp redirect to :15006")
    );
}

// spec: NET-023
#[test]
fn the_status_port_that_is_set_takes_the_place_of_the_default() {
    let (inbound, _) = text(&["--status-port", "16020"]);
    let left = |port: u16| inbound.contains(&format!("meta l4proto tcp th dport {port} return"));
    assert_eq!(
        [15020, 16020, 15021, 15090].map(left),
        [false, true, true, true],
        "{inbound:#?}"
    );
}

// spec: NET-112, LOC-026
#[test]
fn a_mark_stands_in_place_of_user_and_group() {
    let (_, outbound) = text(&["--proxy-mark", "1339"]);
    assert!(outbound.contains(&"meta mark 1339 return".to_owned()));
    assert!(!outbound.iter().any(|l| l.contains("skuid") || l.contains("skgid")));
}

// spec: NET-046
#[test]
fn as_superuser_the_proxy_is_told_by_its_group_alone() {
    let (_, outbound) = text(&["--proxy-uid", "0"]);
    assert!(outbound.iter().any(|l| l.contains("skgid")) && !outbound.iter().any(|l| l.contains("skuid")));
}

// spec: NET-065, NET-080..NET-082
#[test]
fn tproxy_marks_and_diverts_what_comes_and_redirects_what_leaves() {
    let rules = parsed(&["--interception-mode", "TPROXY", "--inbound-ports", "80"]);
    assert_eq!(
        lines(&rules.inbound),
        [
            "meta mark 1337 return",
            "iifname \"lo\" ip saddr 127.0.0.6/32 return",
            "iifname \"lo\" ip6 saddr ::6/128 return",
            "iifname \"lo\" meta mark != 1338 return",
            "meta l4proto tcp th dport 15008 return",
            "meta l4proto tcp th dport 80 ct state established,related divert",
            "meta l4proto tcp th dport 80 ip daddr != 127.0.0.1/32 tproxy to :15006",
            "meta l4proto tcp th dport 80 ip6 daddr != ::1/128 tproxy to :15006",
        ]
    );
    let transparent = rules.transparent.as_ref().expect("TPROXY");
    assert_eq!((transparent.mark, transparent.table), (1337, 133));
    assert_eq!(
        lines(&transparent.saving),
        ["meta l4proto tcp meta mark 1337 ct mark set meta mark"]
    );
    assert_eq!(
        lines(&transparent.marking),
        [
            "oifname \"lo\" meta l4proto tcp meta mark 1337 return",
            "oifname \"lo\" meta l4proto tcp ip daddr != 127.0.0.1/32 meta skuid 1337 meta mark set 1338",
            "oifname \"lo\" meta l4proto tcp ip6 daddr != ::1/128 meta skuid 1337 meta mark set 1338",
            "oifname \"lo\" meta l4proto tcp ip daddr != 127.0.0.1/32 meta skgid 1337 meta mark set 1338",
            "oifname \"lo\" meta l4proto tcp ip6 daddr != ::1/128 meta skgid 1337 meta mark set 1338",
            "meta l4proto tcp ct mark 1337 meta mark set ct mark",
        ]
    );
    let outbound = lines(&rules.outbound);
    assert_eq!(
        outbound.last().map(String::as_str),
        Some("meta l4proto tcp redirect to :15001")
    );
    assert!(!outbound.iter().any(|line| line.contains("15006")), "{outbound:#?}");
}

// spec: NET-043, NET-044, NET-048, NET-090, NET-091
#[test]
fn queries_to_the_resolvers_servers_are_captured_behind_the_proxys_own() {
    let file = resolv_conf();
    let path = file.path().to_str().expect("path");
    let (inbound, outbound) = text(&["--dns-capture", "--resolv-conf", path]);
    assert_eq!(inbound, text(&[]).0);
    assert_eq!(
        outbound,
        [
            "oifname \"lo\" ip saddr 127.0.0.6/32 return",
            "oifname \"lo\" ip6 saddr ::6/128 return",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 th dport != 53 ip daddr != 127.0.0.1/32 meta skuid 1337 \
             redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 th dport != 53 ip6 daddr != ::1/128 meta skuid 1337 \
             redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 53 meta skuid != 1337 return",
            "meta skuid 1337 return",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 th dport != 53 ip daddr != 127.0.0.1/32 meta skgid 1337 \
             redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 15008 th dport != 53 ip6 daddr != ::1/128 meta skgid 1337 \
             redirect to :15006",
            "oifname \"lo\" meta l4proto tcp th dport != 53 meta skgid != 1337 return",
            "meta skgid 1337 return",
            "meta l4proto tcp th dport 53 ip daddr 10.96.0.10/32 redirect to :15053",
            "meta l4proto tcp th dport 53 ip6 daddr fd00::a/128 redirect to :15053",
            "meta l4proto udp th dport 53 ip daddr 10.96.0.10/32 redirect to :15053",
            "meta l4proto udp th dport 53 ip6 daddr fd00::a/128 redirect to :15053",
            "ip daddr 127.0.0.1/32 return",
            "ip6 daddr ::1/128 return",
            "meta l4proto tcp redirect to :15001",
        ]
    );
    // Off unless asked for, and where port 53 is left alone altogether.
    for off in [
        &["--resolv-conf", path][..],
        &["--dns-capture", "false", "--resolv-conf", path],
        &["--capture-all-dns"],
        &["--dns-capture", "--resolv-conf", path, "--exclude-outbound-ports", "53"],
    ] {
        let rules = parsed(off);
        assert!(rules.zones.is_none(), "{off:?}");
        assert!(
            !lines(&rules.outbound).iter().any(|line| line.contains("15053")),
            "{off:?}"
        );
    }
}

// spec: NET-091
#[test]
fn a_resolver_without_servers_turns_capture_off_unless_all_is_captured() {
    let file = tempfile::NamedTempFile::new().expect("file");
    let path = file.path().to_str().expect("path");
    for path in [path, "/nonexistent/resolv.conf"] {
        let capture = ["--dns-capture", "--resolv-conf", path];
        assert_eq!(text(&capture), text(&[]), "{path}");
        let all = text(&[&capture[..], &["--capture-all-dns"]].concat()).1;
        assert!(
            all.contains(&"meta l4proto udp th dport 53 redirect to :15053".to_owned()),
            "{all:#?}"
        );
        assert!(
            all.contains(&"meta l4proto tcp th dport 53 redirect to :15053".to_owned()),
            "{all:#?}"
        );
    }
}

// spec: NET-093
#[test]
fn queries_have_zones_of_their_own() {
    let zones = |arguments: &[&str]| {
        let zones = parsed(arguments).zones.expect("zones");
        (lines(&zones.arriving), lines(&zones.leaving))
    };
    let (arriving, leaving) = zones(&["--dns-capture", "--capture-all-dns"]);
    assert_eq!(arriving, ["meta l4proto udp th sport 53 ct zone set 1 return"]);
    assert_eq!(
        leaving,
        [
            "meta l4proto udp th dport 53 meta skuid 1337 ct zone set 1 return",
            "meta l4proto udp th dport 53 meta skgid 1337 ct zone set 1 return",
            "meta l4proto udp th sport 15053 ct zone set 2 return",
            "meta l4proto udp th dport 53 ct zone set 2 return",
            "oifname \"lo\" meta l4proto udp th sport 53 ct zone set 1 return",
        ]
    );
    let file = resolv_conf();
    let path = file.path().to_str().expect("path");
    let (arriving, leaving) = zones(&["--dns-capture", "--resolv-conf", path, "--exclude-interfaces", "eth1"]);
    assert_eq!(
        arriving,
        [
            "iifname \"eth1\" return",
            "meta l4proto udp th sport 53 ip saddr 10.96.0.10/32 ct zone set 1 return",
            "meta l4proto udp th sport 53 ip6 saddr fd00::a/128 ct zone set 1 return",
        ]
    );
    assert!(leaving.contains(&"meta l4proto udp th dport 53 ip daddr 10.96.0.10/32 ct zone set 2 return".to_owned()));
    assert_eq!(leaving[0], "oifname \"eth1\" return");
    let printed = parsed(&["--dns-capture", "--capture-all-dns"]).to_string();
    assert!(printed.contains("table inet weft-raw chain weft-inbound"), "{printed}");
}

// spec: NET-043, NET-082
#[test]
fn under_tproxy_the_proxys_own_queries_are_no_self_calls() {
    let rules = parsed(&["--interception-mode", "TPROXY", "--dns-capture", "--capture-all-dns"]);
    let marking = lines(&rules.transparent.expect("TPROXY").marking);
    let marks: Vec<&String> = marking.iter().filter(|line| line.contains("set 1338")).collect();
    assert!(
        marks.len() == 4 && marks.iter().all(|line| line.contains("th dport != 53")),
        "{marking:#?}"
    );
}

// spec: NET-123
#[test]
fn bad_parameters_are_refused() {
    for bad in [
        ["--inbound-ports", "0"],
        ["--inbound-ports", "80-90"],
        ["--outbound-cidrs", "10.0.0.1"],
        ["--outbound-cidrs", "10.0.0.0/33"],
        ["--outbound-cidrs", "::ffff:10.0.0.0/104"],
    ] {
        assert!(Command::try_parse_from(["init"].iter().chain(&bad)).is_err(), "{bad:?}");
    }
}
