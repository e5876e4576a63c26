use super::*;

const BASE: &str = "\
workload:
  namespace: app
  name: client
  serviceAccount: client
  canonicalName: client
  canonicalRevision: latest
";

const HOSTS: &str = "\
hosts:
- host: a
  name: a
  namespace: app
  ports:
  - port: 80
- host: b
  name: b
  namespace: app
  ports: []
";

/// Digests of hosts and tables where the text is split, and whether it then says what it says as a whole.
fn split(text: &str) -> Option<(usize, usize)> {
    let split = yaml(text)?;
    let counts = (split.hosts.len(), split.routes.len());
    let read = Bundle {
        hosts: split
            .hosts
            .iter()
            .map(|host| host.read().expect("a host").into_owned())
            .collect(),
        routes: split
            .routes
            .iter()
            .map(|table| table.read().expect("a table").into_owned())
            .collect(),
        workload: split.workload,
        mesh: split.mesh,
        inbound: split.inbound,
        authorization: split.authorization,
        domains: split.domains,
        listeners: split.listeners,
    };
    assert_eq!(read, serde_yaml::from_str(text).expect("valid"));
    Some(counts)
}

// spec: DLV-022
#[test]
fn what_is_packed_is_split_whatever_users_write_into_it() {
    let values = [
        "x",
        "",
        "a\nhosts:\n- host: x\n",
        "\n\n- b",
        "trailing  \n\n",
        "\ttab",
        "# no\nroutes:\n",
        "'",
        "\"",
        "long word ".repeat(30).leak(),
    ];
    let sets: Vec<_> = values
        .iter()
        .map(|value| ("x-a".to_owned(), (*value).to_owned()))
        .collect();
    let mut bundle: Bundle = serde_yaml::from_str(&format!("{BASE}{HOSTS}")).expect("valid");
    let rule = "{destinations: [{host: a, port: 80}]}";
    for name in values {
        let mut rule: crate::wire::Rule = serde_yaml::from_str(rule).expect("valid");
        rule.request_headers.set.clone_from(&sets);
        rule.name = Some(name.to_owned());
        bundle.routes.push(RouteTable {
            name: name.to_owned(),
            origin: crate::wire::Origin {
                kind: name.to_owned(),
                namespace: name.to_owned(),
                name: name.to_owned(),
            },
            rules: vec![rule],
        });
    }
    let text = serde_yaml::to_string(&bundle).expect("text");
    assert_eq!(split(&text), Some((2, values.len())));
}

// spec: DLV-022
#[test]
fn text_of_another_form_is_not_split() {
    assert_eq!(split(BASE), Some((0, 0)));
    assert_eq!(split(&format!("{BASE}{HOSTS}")), Some((2, 0)));
    assert_eq!(split(&format!("{HOSTS}{BASE}")), Some((2, 0)));
    for other in [
        format!("{BASE}{HOSTS}# a comment\n"),
        format!("---\n{BASE}{HOSTS}"),
        format!("{BASE}{HOSTS}...\n"),
        format!("{BASE}\"hosts\": []\n"),
        format!("{BASE}hosts: [{{host: a, name: a, namespace: app, ports: []}}]\n"),
        format!("{BASE}hosts: []\n{HOSTS}"),
        format!("{BASE}{HOSTS}{HOSTS}"),
        format!("{BASE}hosts:\n"),
        format!("{BASE}{}", HOSTS.replace("\n-", "\n  -").replace("\n  ", "\n    ")),
        format!("{BASE}{}", HOSTS.replace("- host: a\n", "-\n  host: a\n")),
    ] {
        assert!(yaml(&other).is_none_or(|split| split.hosts.is_empty()), "{other}");
    }
    // What one item defines is not there for another: read as a whole.
    let shared = HOSTS
        .replace("namespace: app\n  ports:\n", "namespace: &n app\n  ports:\n")
        .replace("namespace: app", "namespace: *n");
    let split = yaml(&shared).is_none_or(|split| split.hosts[1].read().is_err());
    assert!(split);
}
