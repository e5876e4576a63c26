use weft_bundle::wire::{self, Outlier};

use super::*;
use crate::lookup::Asker;

/// A destination as one worker has it: host `a` of cluster address 10.1.0.1, or its only subset.
struct Destination {
    clusters: Clusters,
    lookups: Arc<Lookups>,
    config: Arc<model::Config>,
    table: EndpointTable,
}

impl Destination {
    /// With fields of its own, and endpoints as a shard lists them.
    fn new(host: &str, policy: &str, endpoints: &[&str]) -> Self {
        let yaml = format!(
            "workload: {{namespace: app, name: c, serviceAccount: c, canonicalName: c, canonicalRevision: latest}}\nhosts:\n- \
             host: a\n  name: a\n  namespace: app\n  domains: [a]\n  addresses: [10.1.0.1]\n{host}  ports: [{{port: 80, name: \
             main, protocol: http, policy: {policy}}}]\n"
        );
        let bundle: wire::Bundle = serde_yaml::from_str(&yaml).expect("the test's bundle");
        let mut this = Self {
            clusters: Clusters::default(),
            lookups: Lookups::new(Asker::default()),
            config: Arc::new(model::Config::parse(bundle).expect("valid")),
            table: EndpointTable::default(),
        };
        this.list(endpoints);
        this
    }

    /// A newer list.
    fn list(&mut self, endpoints: &[&str]) {
        // Of the first set of ports, unless a row says another one.
        let ports = |row: &str| if row.contains("p: ") { "" } else { "p: 0, " };
        let rows: String = endpoints
            .iter()
            .map(|row| format!("  - {{{}{row}}}\n", ports(row)))
            .collect();
        let endpoints = if rows.is_empty() { " []\n" } else { "\n" };
        let yaml = format!(
            "ports: [{{main: 8080}}, {{other: 9090}}]\nlabels: [{{v: '1'}}]\nhosts:\n- host: a\n  endpoints:{endpoints}{rows}"
        );
        let shard: wire::Endpoints = serde_yaml::from_str(&yaml).expect("the test's endpoints");
        self.table = EndpointTable::new(&[shard], Some(&self.table));
    }

    fn state(&mut self) -> Rc<ClusterState> {
        // The subset, where there is one.
        let cluster = self
            .config
            .clusters
            .iter()
            .max_by_key(|cluster| cluster.subset.is_some());
        let cluster = cluster.expect("one host").clone();
        let (config, table, here) = (&self.config, &self.table, Here::default());
        self.clusters
            .get(config, &cluster, table, &self.lookups, &here, Arc::default)
    }

    fn peers(&mut self) -> Vec<Rc<Peer>> {
        self.state().with_peers(<[_]>::to_vec)
    }

    /// What is asked where nobody else is left: its address, and whether it takes mesh mTLS.
    fn fallback(&mut self) -> Option<(String, bool)> {
        let peer = self.state().fallback()?;
        Some((peer.address.to_string(), peer.takes_mesh_tls()))
    }
}

const TWO: [&str; 2] = ["a: 10.2.0.1, m: all", "a: 10.2.0.2, m: all"];

async fn advance(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

// spec: DLV-113
#[tokio::test(start_paused = true)]
async fn who_cannot_be_reached_is_left_alone_for_longer_each_time_and_never_for_more_than_two_minutes() {
    let peer = Peer::bare("10.2.0.1:80".parse().expect("address"));
    assert!(!peer.is_aside(Instant::now()));
    for seconds in [10, 20, 40, 80, 120, 120] {
        peer.set_aside();
        advance(seconds - 1).await;
        assert!(peer.is_aside(Instant::now()), "{seconds}");
        // Of requests that failed together each tells of it.
        peer.set_aside();
        advance(1).await;
        assert!(!peer.is_aside(Instant::now()), "{seconds}");
    }
    peer.is_reached();
    peer.set_aside();
    advance(10).await;
    assert!(!peer.is_aside(Instant::now()), "it begins anew");
}

// spec: SM-097
#[tokio::test(start_paused = true)]
async fn an_endpoint_without_the_port_of_that_name_serves_nobody_there() {
    let mut to = Destination::new("", "{}", &["a: 10.2.0.1, m: all", "a: 10.2.0.2, m: all, p: 1"]);
    let found: Vec<String> = to.peers().iter().map(|peer| peer.address.to_string()).collect();
    assert_eq!(found, ["10.2.0.1:8080"]);
}

// spec: DLV-113, DLV-119, LIFE-044
#[tokio::test(start_paused = true)]
async fn a_newer_list_forgets_failures_and_farewells_and_keeps_everything_else() {
    let mut to = Destination::new("", "{}", &TWO);
    let peers = to.peers();
    peers[0].set_aside();
    peers[1].leaves();
    let busy = peers[0].busy();
    assert!(to.state().pick(&[], Key::NONE).is_none(), "neither of them is asked");
    assert!(
        to.state().pick_aside(&[], Key::NONE).is_some(),
        "unless nothing else is left"
    );
    to.list(&[TWO[0], TWO[1], "a: 10.2.0.3, m: all"]);
    let newer = to.peers();
    assert!(Rc::ptr_eq(&newer[0], &peers[0]) && Rc::ptr_eq(&newer[1], &peers[1]));
    assert!(newer.iter().all(|peer| !peer.is_aside(Instant::now())));
    assert_eq!(newer[0].active.get(), 1);
    drop(busy);
    assert_eq!(newer[0].active.get(), 0);
    // Without a newer one a farewell holds for two minutes.
    newer[1].leaves();
    advance(119).await;
    assert!(newer[1].is_aside(Instant::now()));
    advance(1).await;
    assert!(!newer[1].is_aside(Instant::now()));
}

// spec: SM-091, SM-092, SM-100
#[tokio::test(start_paused = true)]
async fn who_drains_or_is_not_ready_is_not_chosen_even_if_nobody_else_is_left() {
    let mut to = Destination::new("", "{}", &["a: 10.2.0.1, h: draining", "a: 10.2.0.2, h: unready"]);
    let state = to.state();
    assert!(state.pick(&[], Key::NONE).is_none() && state.pick_aside(&[], Key::NONE).is_none());
}

// spec: DLV-115
#[tokio::test(start_paused = true)]
async fn the_cluster_address_is_asked_when_nobody_answers_or_the_list_was_empty_for_five_seconds() {
    let cluster_address = |mesh_tls| Some(("10.1.0.1:80".to_owned(), mesh_tls));
    let mut to = Destination::new("", "{}", &TWO);
    assert_eq!(to.fallback(), cluster_address(true));
    to.list(&[]);
    assert_eq!(to.fallback(), None);
    advance(4).await;
    assert_eq!(to.fallback(), None);
    advance(1).await;
    assert_eq!(to.fallback(), cluster_address(true), "as those who were there last");
    let plain = ["a: 10.2.0.1, m: none"];
    assert_eq!(Destination::new("", "{}", &plain).fallback(), cluster_address(false));
    let mixed = [TWO[0], "a: 10.2.0.2, m: none"];
    let mut to = Destination::new("", "{}", &mixed);
    assert_eq!(to.fallback(), None, "it may answer for either kind");
    to.list(&[]);
    advance(6).await;
    assert_eq!(to.fallback(), None);
}

// spec: DLV-115
#[tokio::test(start_paused = true)]
async fn the_cluster_address_is_not_asked_for_what_it_does_not_stand_for() {
    let shares = "{locality: {distribute: [{from: '*', to: {r: 100}}]}}";
    for (host, policy) in [
        ("  headless: true\n", "{}"),
        ("  nodeLocal: true\n", "{}"),
        ("  kind: entry\n", "{}"),
        ("  subsets: [{name: s, labels: {v: '1'}}]\n", "{}"),
        ("", shares),
    ] {
        let list = ["a: 10.2.0.1, m: all, l: 0", "a: 10.2.0.2, m: all, l: 0"];
        assert_eq!(Destination::new(host, policy, &list).fallback(), None, "{host}{policy}");
    }
}

// spec: DLV-115, DR-099
#[tokio::test(start_paused = true)]
async fn the_cluster_address_is_not_asked_because_endpoints_are_ejected() {
    let mut to = Destination::new("", "{outlier: {consecutive5xx: 1, maxEjectionPercent: 100}}", &TWO);
    let (state, peers) = (to.state(), to.peers());
    let policy = Outlier {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        ..Outlier::default()
    };
    assert!(outlier::report(&policy, &peers, &peers[0], Outcome::Status(500)));
    state.counters.ejections.note();
    assert_eq!(to.fallback(), None);
    // One that cannot be reached is another matter.
    peers[0].set_aside();
    peers[1].set_aside();
    assert!(to.fallback().is_some());
}
