use super::*;
use crate::init::Arguments;
use clap::Parser;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn written(arguments: &[&str], family: Family) -> String {
    let command = Command::try_parse_from(["init"].iter().chain(arguments)).expect("arguments");
    let names = crate::init::Names::read(&command.arguments);
    script(&tables(&crate::init::rules(&command.arguments, &names), family))
}

// spec: NET-102, NET-120
#[test]
fn the_default_redirect_of_a_family() {
    assert_eq!(
        written(&[], Family::V6),
        "*nat\n:WEFT_INBOUND - [0:0]\n:WEFT_OUTPUT - [0:0]\n:WEFT_REDIRECT - [0:0]\n:WEFT_IN_REDIRECT - [0:0]\n\
         -A PREROUTING -j WEFT_INBOUND\n\
         -A WEFT_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\n\
         -A WEFT_INBOUND -p tcp -m tcp --dport 15020 -j RETURN\n\
         -A WEFT_INBOUND -p tcp -m tcp --dport 15021 -j RETURN\n\
         -A WEFT_INBOUND -p tcp -m tcp --dport 15090 -j RETURN\n\
         -A WEFT_INBOUND -p tcp -g WEFT_IN_REDIRECT\n\
         -A OUTPUT -j WEFT_OUTPUT\n\
         -A WEFT_OUTPUT -o lo -s ::6/128 -j RETURN\n\
         -A WEFT_OUTPUT -o lo -p tcp -m tcp ! --dport 15008 ! -d ::1/128 -m owner --uid-owner 1337 -g WEFT_IN_REDIRECT\n\
         -A WEFT_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN\n\
         -A WEFT_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
         -A WEFT_OUTPUT -o lo -p tcp -m tcp ! --dport 15008 ! -d ::1/128 -m owner --gid-owner 1337 -g WEFT_IN_REDIRECT\n\
         -A WEFT_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN\n\
         -A WEFT_OUTPUT -m owner --gid-owner 1337 -j RETURN\n\
         -A WEFT_OUTPUT -d ::1/128 -j RETURN\n\
         -A WEFT_OUTPUT -p tcp -g WEFT_REDIRECT\n\
         -A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
         -A WEFT_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
         COMMIT\n"
    );
}

// spec: NET-102, NET-080, NET-081, NET-110
#[test]
fn chains_of_the_kernel_get_jumps_alone() {
    let text = written(&["--interception-mode", "TPROXY", "--drop-invalid"], Family::V4);
    let of_kernel: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("-A ") && !line.starts_with("-A WEFT_"))
        .collect();
    assert_eq!(
        of_kernel,
        [
            "-A OUTPUT -j WEFT_OUTPUT",
            "-A PREROUTING -m conntrack --ctstate INVALID -g WEFT_DROP",
            "-A PREROUTING -j WEFT_INBOUND",
            "-A OUTPUT -j WEFT_OUTPUT",
        ]
    );
    for rule in [
        "-A WEFT_TPROXY -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337",
        "-A WEFT_DIVERT -j MARK --set-mark 1337",
        "-A WEFT_INBOUND -p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
        "-A WEFT_OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
    ] {
        assert!(text.lines().any(|line| line == rule), "{rule}: {text}");
    }
    assert!(!text.contains("::"), "{text}");
}

// spec: NET-048, NET-093, NET-102
#[test]
fn dns_capture_and_its_zones() {
    let text = written(&["--dns-capture", "--capture-all-dns"], Family::V4);
    let (nat, raw) = text.split_once("*raw\n").expect("two tables");
    for rule in [
        "-A WEFT_OUTPUT -o lo -p tcp -m multiport ! --dports 15008,53 ! -d 127.0.0.1/32 -m owner --uid-owner 1337 -g \
         WEFT_IN_REDIRECT",
        "-A WEFT_OUTPUT -o lo -p tcp -m tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN",
        "-A WEFT_OUTPUT -p tcp -m tcp --dport 53 -g WEFT_OUTPUT_DNS",
        "-A WEFT_OUTPUT -p udp -m udp --dport 53 -g WEFT_OUTPUT_DNS",
        "-A WEFT_OUTPUT_DNS -p tcp -j REDIRECT --to-ports 15053",
        "-A WEFT_OUTPUT_DNS -p udp -j REDIRECT --to-ports 15053",
    ] {
        assert!(nat.lines().any(|line| line == rule), "{rule}: {nat}");
    }
    assert_eq!(
        raw,
        ":WEFT_INBOUND - [0:0]\n:WEFT_OUTPUT - [0:0]\n\
         -A PREROUTING -j WEFT_INBOUND\n\
         -A WEFT_INBOUND -p udp -m udp --sport 53 -j CT --zone 1\n\
         -A OUTPUT -j WEFT_OUTPUT\n\
         -A WEFT_OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1\n\
         -A WEFT_OUTPUT -p udp -m udp --dport 53 -m owner --gid-owner 1337 -j CT --zone 1\n\
         -A WEFT_OUTPUT -p udp -m udp --sport 15053 -j CT --zone 2\n\
         -A WEFT_OUTPUT -p udp -m udp --dport 53 -j CT --zone 2\n\
         -A WEFT_OUTPUT -o lo -p udp -m udp --sport 53 -j CT --zone 1\n\
         COMMIT\n"
    );
}

const SAVED: &str = "# said by the program\n*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [3:180]\n:DOCKER - [0:0]\n\
                     :WEFT_OUTPUT - [0:0]\n:WEFT_REDIRECT - [0:0]\n-A OUTPUT -j DOCKER\n-A OUTPUT -j WEFT_OUTPUT\n\
                     -A WEFT_OUTPUT -p tcp -g WEFT_REDIRECT\n-A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";

// spec: NET-104, NET-105, NET-106
#[test]
fn what_is_there_is_told_from_what_is_wanted_and_from_what_others_have() {
    let state = State::parse(SAVED);
    assert!(state.has_own() && state.has_rules());
    assert_eq!(
        state.removal(),
        "*nat\n-D OUTPUT -j WEFT_OUTPUT\n-F WEFT_OUTPUT\n-F WEFT_REDIRECT\n-X WEFT_OUTPUT\n-X WEFT_REDIRECT\nCOMMIT\n"
    );
    assert_eq!(
        state.restoration(),
        "*nat\n:WEFT_OUTPUT - [0:0]\n:WEFT_REDIRECT - [0:0]\n-A OUTPUT -j WEFT_OUTPUT\n-A WEFT_OUTPUT -p tcp -g \
         WEFT_REDIRECT\n-A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
    );
    let line = |chain: &str, rest: &str| Line {
        chain: chain.to_owned(),
        rest: rest.to_owned(),
    };
    let wanted = vec![Table {
        name: "nat",
        chains: vec!["WEFT_OUTPUT".to_owned(), "WEFT_REDIRECT".to_owned()],
        rules: vec![
            line("OUTPUT", "-j WEFT_OUTPUT"),
            line("WEFT_OUTPUT", "-p tcp -g WEFT_REDIRECT"),
            line("WEFT_REDIRECT", "-p tcp -j REDIRECT --to-ports 15001"),
        ],
    }];
    assert!(state.is_counted_as(&wanted));
    for differing in [
        SAVED.replace("-A OUTPUT -j WEFT_OUTPUT\n", ""),
        SAVED.replace(
            "-A OUTPUT -j WEFT_OUTPUT\n",
            "-A OUTPUT -j WEFT_OUTPUT\n-A OUTPUT -j WEFT_OUTPUT\n",
        ),
        SAVED.replace(
            "-A OUTPUT -j WEFT_OUTPUT\n",
            "-A OUTPUT -j WEFT_OUTPUT\n-A PREROUTING -j WEFT_OUTPUT\n",
        ),
        SAVED.replace(":DOCKER", ":WEFT_OLD - [0:0]\n:DOCKER"),
        format!("{SAVED}*raw\n:WEFT_DROP - [0:0]\nCOMMIT\n"),
        SAVED.replace(
            "-A WEFT_OUTPUT -p tcp",
            "-A WEFT_OUTPUT -p udp -j RETURN\n-A WEFT_OUTPUT -p tcp",
        ),
        String::new(),
    ] {
        assert!(!State::parse(&differing).is_counted_as(&wanted), "{differing}");
    }
    let others = SAVED.replace("-A OUTPUT -j DOCKER\n", "-A OUTPUT -j DOCKER\n-A DOCKER -j RETURN\n");
    assert!(
        State::parse(&others).is_counted_as(&wanted),
        "rules of others do not count"
    );
    assert!(!State::parse("*nat\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\nCOMMIT\n").has_own());
}
