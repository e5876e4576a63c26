use super::*;
use serde_json::Value;
use tempfile::TempDir;

struct Node {
    _folder: TempDir,
    places: Places,
    wanted: Wanted,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let below = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("makes");
            path
        };
        let account = below("account");
        fs::write(account.join("ca.crt"), "authority").expect("writes");
        fs::write(account.join("token"), "first\n").expect("writes");
        let program = folder.path().join("program");
        fs::write(&program, "program").expect("writes");
        Self {
            places: Places {
                bin_dir: below("bin"),
                conf_dir: below("conf"),
                conf_name: None,
            },
            wanted: Wanted {
                program,
                settings: Settings {
                    kubeconfig: "/etc/cni/net.d/weft-cni.kubeconfig".into(),
                    namespace: "weft-system".to_owned(),
                    excluded_namespaces: vec!["kube-system".to_owned()],
                    backend: None,
                    iptables_binary: None,
                },
                server: "https://10.96.0.1:443".to_owned(),
                account,
            },
            _folder: folder,
        }
    }

    fn write(&self, name: &str) {
        fs::write(self.places.conf_dir.join(name), CONFLIST).expect("writes");
    }

    fn install(&self) -> bool {
        self.places.install(&self.wanted).expect("installs")
    }

    /// Whether a configuration ends in the plugin's entry.
    fn is_in(&self, name: &str) -> bool {
        let text = fs::read_to_string(self.places.conf_dir.join(name)).expect("reads");
        let object: Value = serde_json::from_str(&text).expect("is JSON");
        object["plugins"].as_array().expect("a list").last() == Some(&self.wanted.settings.entry())
    }

    fn names(&self) -> Vec<String> {
        let folders = [&self.places.bin_dir, &self.places.conf_dir];
        let entries = folders.map(|folder| fs::read_dir(folder).expect("reads"));
        let entries = entries
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("reads").file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("is there").mode() & 0o777
}

const CONFLIST: &str = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

// spec: NET-132
#[test]
fn all_of_it_is_put_in_place_and_nothing_is_written_twice() {
    let node = Node::new();
    node.write("10-pods.conflist");
    node.write("20-other.conflist");
    fs::set_permissions(
        node.places.conf_dir.join("10-pods.conflist"),
        fs::Permissions::from_mode(0o640),
    )
    .expect("sets");
    assert!(node.install());
    assert_eq!(
        node.names(),
        [
            "10-pods.conflist",
            "20-other.conflist",
            "weft-cni",
            "weft-cni.kubeconfig"
        ]
    );
    assert!(node.is_in("10-pods.conflist") && !node.is_in("20-other.conflist"));
    assert_eq!(fs::read(node.places.program()).expect("reads"), b"program");
    assert_eq!(mode(&node.places.program()), 0o755);
    assert_eq!(mode(&node.places.kubeconfig()), 0o600, "it holds a token");
    assert_eq!(mode(&node.places.conf_dir.join("10-pods.conflist")), 0o640, "as it was");
    assert!(!node.install());
}

// spec: NET-132
#[test]
fn the_kubeconfig_leads_to_the_api_server_with_the_token_of_now() {
    let node = Node::new();
    node.write("10-pods.conflist");
    node.install();
    let read =
        || -> Value { serde_json::from_slice(&fs::read(node.places.kubeconfig()).expect("reads")).expect("is JSON") };
    let config = read();
    assert_eq!(config["clusters"][0]["cluster"]["server"], "https://10.96.0.1:443");
    let authority = &config["clusters"][0]["cluster"]["certificate-authority-data"];
    assert_eq!(authority, &BASE64.encode(b"authority"));
    assert_eq!(config["users"][0]["user"]["token"], "first");
    fs::write(node.wanted.account.join("token"), "second").expect("writes");
    assert!(node.install());
    assert_eq!(read()["users"][0]["user"]["token"], "second");
    fs::set_permissions(node.places.kubeconfig(), fs::Permissions::from_mode(0o644)).expect("sets");
    assert!(node.install());
    assert_eq!(mode(&node.places.kubeconfig()), 0o600);
}

// spec: NET-132
#[test]
fn what_others_rewrite_or_take_away_is_put_back() {
    let node = Node::new();
    node.write("10-pods.conflist");
    node.install();
    node.write("10-pods.conflist");
    assert!(node.install() && node.is_in("10-pods.conflist"));
    fs::remove_file(node.places.program()).expect("removes");
    assert!(node.install() && node.places.program().exists());
    fs::write(node.places.program(), "another").expect("writes");
    assert!(node.install());
    assert_eq!(fs::read(node.places.program()).expect("reads"), b"program");
    fs::remove_file(node.places.kubeconfig()).expect("removes");
    assert!(node.install() && node.places.kubeconfig().exists());
    // One that the runtime takes from now on.
    node.write("05-new.conflist");
    assert!(node.install());
    assert!(node.is_in("05-new.conflist") && !node.is_in("10-pods.conflist"));
}

// spec: NET-132
#[test]
fn a_named_configuration_is_taken_in_place_of_the_first() {
    let mut node = Node::new();
    node.places.conf_name = Some("20-other.conflist".to_owned());
    node.write("10-pods.conflist");
    assert!(matches!(
        node.places.install(&node.wanted),
        Err(InstallError::File { .. })
    ));
    node.write("20-other.conflist");
    assert!(node.install());
    assert!(node.is_in("20-other.conflist") && !node.is_in("10-pods.conflist"));
}

// spec: NET-132
#[test]
fn without_a_list_there_is_no_entry_and_the_reason_is_told() {
    let node = Node::new();
    let refused = node.places.install(&node.wanted).expect_err("nothing is there");
    assert!(matches!(refused, InstallError::NoConfiguration(_)), "{refused}");
    fs::write(node.places.conf_dir.join("10-one.conf"), r#"{"type":"bridge"}"#).expect("writes");
    node.write("20-other.conflist");
    let refused = node
        .places
        .install(&node.wanted)
        .expect_err("the runtime takes what is no list");
    assert!(refused.to_string().contains("10-one.conf"), "{refused}");
    assert!(!node.is_in("20-other.conflist"));
    // Half of a file, which somebody is writing.
    fs::write(node.places.conf_dir.join("00-half.conflist"), r#"{"plugins":["#).expect("writes");
    let refused = node.places.install(&node.wanted).expect_err("is no JSON");
    assert!(refused.to_string().contains("00-half.conflist"), "{refused}");
}

// spec: NET-132
#[test]
fn a_version_that_the_plugin_refuses_is_told_and_the_configuration_stays_as_it_is() {
    let node = Node::new();
    let path = node.places.conf_dir.join("10-pods.conflist");
    for text in [
        CONFLIST.replace("0.4.0", "0.2.0"),
        CONFLIST.replace("cniVersion", "other"),
    ] {
        fs::write(&path, &text).expect("writes");
        let refused = node.places.install(&node.wanted).expect_err("the version is refused");
        let told = refused.to_string();
        assert!(
            told.contains("10-pods.conflist: cniVersion ") && told.contains("0.3.0"),
            "{told}"
        );
        assert_eq!(fs::read_to_string(&path).expect("reads"), text);
    }
    fs::write(&path, CONFLIST.replace("0.4.0", "0.3.0")).expect("writes");
    assert!(node.install() && node.is_in("10-pods.conflist"));
}

// spec: NET-132
#[test]
fn removal_gives_the_node_back_as_it_was() {
    let node = Node::new();
    node.write("10-pods.conflist");
    node.install();
    node.places.remove().expect("removes");
    assert_eq!(node.names(), ["10-pods.conflist"]);
    let text = fs::read_to_string(node.places.conf_dir.join("10-pods.conflist")).expect("reads");
    let (left, before): (Value, Value) = (
        serde_json::from_str(&text).expect("is JSON"),
        serde_json::from_str(CONFLIST).expect("is JSON"),
    );
    assert_eq!(left, before);
    node.places.remove().expect("nothing is there");
}
