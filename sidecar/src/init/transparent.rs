//! TPROXY: inbound connections keep both addresses on their way to the proxy and to the application (NET-080..NET-082).
//!
//! Two marks tell the packets apart. [`MARK`] is on those that a route delivers here whatever their address: of clients,
//! of the proxy towards its application, and of the application towards the client's address, which it takes for the
//! proxy's. [`SELF_CALL`] is on the proxy's own calls to its pod, so that they do not pass for the application's.

use super::{Arguments, Condition, LOOPBACK, Names, PROXY_SOURCES, Rule, Transparent, Verdict, leave, owners, single};

/// In front of section B. The proxy's connections to its application are behind the capture already, and what the pod's
/// own processes say to each other is not captured.
pub(super) fn exemptions(mark: u32) -> Vec<Rule> {
    let lo = || Condition::Input("lo".to_owned());
    let mut out = vec![leave(vec![Condition::Mark { mark, other: false }])];
    out.extend(PROXY_SOURCES.map(|source| leave(vec![lo(), Condition::Source(single(source))])));
    let own = Condition::Mark {
        mark: SELF_CALL,
        other: true,
    };
    out.push(leave(vec![lo(), own]));
    out
}

/// Captures what fits the conditions, of both families.
pub(super) fn capture(conditions: &[Condition], port: u16) -> Vec<Rule> {
    let with = |condition, verdict| {
        let mut conditions = conditions.to_vec();
        conditions.push(condition);
        Rule { conditions, verdict }
    };
    let mut out = vec![with(Condition::Established, Verdict::Divert)];
    out.extend(LOOPBACK.map(|address| {
        let range = single(address);
        with(
            Condition::Destination { range, other: true },
            Verdict::Transparent(port),
        )
    }));
    out
}

/// What stands beside section B and C.
pub(super) fn rules(arguments: &Arguments, names: &Names) -> Transparent {
    let mark = arguments.tproxy_mark;
    let lo = || Condition::Output("lo".to_owned());
    let marked = Condition::Mark { mark, other: false };
    let mut marking = vec![leave(vec![lo(), Condition::Tcp, marked.clone()])];
    for owner in owners(arguments) {
        marking.extend(LOOPBACK.map(|address| {
            let mut conditions = vec![lo(), Condition::Tcp];
            conditions.extend(names.other_port());
            conditions.push(Condition::Destination {
                range: single(address),
                other: true,
            });
            conditions.push(Condition::Owner { owner, other: false });
            Rule {
                conditions,
                verdict: Verdict::Mark(SELF_CALL),
            }
        }));
    }
    marking.push(Rule {
        conditions: vec![Condition::Tcp, Condition::ConnectionMark(mark)],
        verdict: Verdict::Restore,
    });
    Transparent {
        mark,
        table: arguments.tproxy_table,
        saving: vec![Rule {
            conditions: vec![Condition::Tcp, marked],
            verdict: Verdict::Save,
        }],
        marking,
    }
}

/// Table of the rules (NET-101).
pub(super) const RULES: &str = "weft-mangle";
/// Mark of packets that are routed to this namespace.
pub(super) const MARK: u32 = 1337;
/// Mark of the proxy's calls to its own pod.
pub(super) const SELF_CALL: u32 = 1338;
/// Routing table of [`MARK`].
pub(super) const TABLE: u32 = 133;
