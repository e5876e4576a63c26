//! DNS capture: the real redirect and the real program, in a pod whose resolver asks the neighbour.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use support::net::{
    APPLICATION, Backend, Caller, FAR, NEIGHBOUR, NEIGHBOUR6, Neighbour, POD, POD6, PROXY, announce, in_pod, init_with,
    with_each_backend,
};
use support::process::{Process, Volumes, endpoint};
use support::{Authority, LIMIT, run, wait_for, workload};
use weft_bundle::pack::{EndpointInput, HostInput};
use weft_bundle::wire::MeshTls;

/// A name of the mesh.
const WEB: &str = "web.app.svc.cluster.local";
/// What the mesh says.
const MESH: &str = "10.96.0.7";
/// What the neighbour's server says of whatever name.
const SERVER: &str = "192.0.2.1";

/// Names that the neighbour's servers were asked for, in order.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn count(&self, name: &str) -> usize {
        let asked = self.0.lock().expect("no panic");
        asked.iter().filter(|asked| *asked == name).count()
    }
}

/// Servers on all addresses of the neighbour: they give each name one address, but know of the cluster's only [`WEB`].
/// Of names that begin with `long` the whole answer comes over TCP alone.
fn servers(neighbour: &Neighbour) -> Asked {
    let asked = Asked::default();
    let told = asked.clone();
    neighbour.run(move || {
        for address in [IpAddr::V4(NEIGHBOUR), FAR.into(), NEIGHBOUR6.into()] {
            let udp = UdpSocket::bind((address, 53)).expect("socket; run the tests as root");
            let tcp = TcpListener::bind((address, 53)).expect("listener");
            let (by_udp, by_tcp) = (told.clone(), told.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                loop {
                    let Ok((length, client)) = udp.recv_from(&mut buffer) else {
                        continue;
                    };
                    let _ = udp.send_to(&answer(&buffer[..length], &by_udp, true), client);
                }
            });
            std::thread::spawn(move || {
                for mut stream in tcp.incoming().flatten() {
                    if let Some(query) = receive(&mut stream) {
                        send(&mut stream, &answer(&query, &by_tcp, false));
                    }
                }
            });
        }
    });
    asked
}

fn answer(query: &[u8], asked: &Asked, cuts: bool) -> Vec<u8> {
    let query = Message::from_vec(query).expect("a query");
    let question = query.queries[0].clone();
    let name = question.name().to_ascii();
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    asked.0.lock().expect("no panic").push(name.clone());
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    if name.ends_with(".cluster.local") && name != WEB {
        answer.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        let data = RData::A(A(SERVER.parse().expect("address")));
        let records = if name.starts_with("long") { 60 } else { 1 };
        answer.add_answers((0..records).map(|_| Record::from_rdata(question.name().clone(), 60, data.clone())));
    }
    answer.add_query(question);
    let cut = cuts && name.starts_with("long");
    let answer = if cut { answer.truncate() } else { answer };
    answer.to_vec().expect("message")
}

fn receive(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("short").to_be_bytes();
    let _ = stream.write_all(&[&length[..], message].concat());
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let name = Name::from_ascii(format!("{name}.")).expect("name");
    query.add_query(Query::query(name, kind));
    query.to_vec().expect("query")
}

/// One query over UDP; `None`: no answer.
fn ask_from(source: SocketAddr, server: SocketAddr, message: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind(source).expect("socket");
    socket.set_read_timeout(Some(LIMIT)).expect("option");
    // Connected, so that an answer of any other address than the one asked is none.
    socket.connect(server).expect("connected");
    socket.send(message).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Message::from_vec(&buffer[..length]).ok()
}

fn ask(server: impl Into<IpAddr>, message: &[u8]) -> Option<Message> {
    let server = server.into();
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    ask_from((any, 0).into(), (server, 53).into(), message)
}

fn ask_tcp(server: impl Into<IpAddr>, message: &[u8]) -> Option<Message> {
    let mut stream = TcpStream::connect_timeout(&(server.into(), 53).into(), LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).expect("option");
    send(&mut stream, message);
    Message::from_vec(&receive(&mut stream)?).ok()
}

/// The addresses of an answer.
fn texts(answer: Option<Message>) -> Vec<String> {
    let answer = answer.expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let text = |record: &Record| match &record.data {
        RData::A(A(address)) => address.to_string(),
        RData::AAAA(AAAA(address)) => address.to_string(),
        other => panic!("{other:?}"),
    };
    answer.answers.iter().map(text).collect()
}

/// What a server says of a mesh name over UDP and over TCP.
fn said(server: impl Into<IpAddr> + Copy) -> [Vec<String>; 2] {
    let message = query(WEB, RecordType::A);
    [texts(ask(server, &message)), texts(ask_tcp(server, &message))]
}

/// Does something with sockets of another user's.
fn as_user<T: Send>(uid: u32, gid: u32, task: impl FnOnce() -> T + Send) -> T {
    // Of a thread, not of the process: the owner of the sockets that it opens.
    let task = || {
        nix::unistd::setfsgid(gid.into());
        nix::unistd::setfsuid(uid.into());
        task()
    };
    std::thread::scope(|scope| scope.spawn(task).join()).expect("no panic")
}

fn resolv_conf(text: &str) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), text).expect("written");
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).expect("permissions");
    file
}

fn nameservers() -> tempfile::NamedTempFile {
    resolv_conf(&format!(
        "search app.svc.cluster.local svc.cluster.local cluster.local\nnameserver {NEIGHBOUR}\nnameserver \
         {NEIGHBOUR6}\noptions ndots:5\n"
    ))
}

const CAPTURE: (&str, &str) = ("ISTIO_META_DNS_CAPTURE", "true");
const ALL: (&str, &str) = ("CAPTURE_ALL_DNS", "true");

/// As the injector tells both containers: by their environment.
fn redirect(file: &tempfile::NamedTempFile, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let path = file.path().to_str().expect("path");
    let (code, said) = init_with(&[&["--resolv-conf", path], arguments].concat(), environment);
    assert_eq!(code, 0, "{said}");
    said
}

fn proxy(volumes: &Volumes, file: &tempfile::NamedTempFile, environment: &[(&str, &str)]) -> Process {
    let addresses = format!("{POD},{POD6}");
    let path = file.path().to_str().expect("path");
    let flags = ["--pod-ips", &addresses, "--concurrency", "1", "--resolv-conf", path];
    let local = Ipv4Addr::LOCALHOST.into();
    Process::spawn(volumes, local, local, &flags, environment, Some((PROXY, PROXY)))
}

fn bundle() -> String {
    format!(
        "{}hosts:\n- {{host: {WEB}, name: web, namespace: app, addresses: [{MESH}], ports: [{{port: 80}}]}}\n",
        workload("app/echo")
    )
}

fn configured() -> Volumes {
    let volumes = Volumes::new(&Authority::new(), "app/echo");
    volumes.configure(&bundle());
    volumes.endpoints(&[]);
    volumes
}

// spec: NET-048, NET-090..NET-092, NET-100, NET-094, NET-045, NET-046
#[test]
fn queries_to_the_resolvers_servers_are_answered_by_the_proxy_and_no_others() {
    with_each_backend(|neighbour, _| {
        let asked = servers(neighbour);
        let file = nameservers();
        let from_mesh = [vec![MESH.to_owned()], vec![MESH.to_owned()]];
        let from_server = [vec![SERVER.to_owned()], vec![SERVER.to_owned()]];
        let volumes = configured();
        let _proxy = proxy(&volumes, &file, &[CAPTURE]).ready();
        // Off unless asked for.
        redirect(&file, &[], &[]);
        assert_eq!(said(NEIGHBOUR), from_server);
        redirect(&file, &[], &[CAPTURE]);
        assert_eq!(said(NEIGHBOUR), from_mesh);
        assert_eq!(said(NEIGHBOUR6), from_mesh);
        assert_eq!(said(FAR), from_server, "resolv.conf does not name it");
        let own = || as_user(PROXY, PROXY, || said(NEIGHBOUR));
        assert_eq!(own(), from_server, "the proxy's own queries");
        assert_eq!(as_user(APPLICATION, PROXY, || said(NEIGHBOUR)), from_server);
        assert_eq!(as_user(APPLICATION, APPLICATION, || said(NEIGHBOUR6)), from_mesh);
        // What the mesh does not know is the servers' to answer, and what it knows of the other family is nothing.
        assert_eq!(texts(ask(NEIGHBOUR, &query("example.com", RecordType::A))), [SERVER]);
        assert_eq!(
            texts(ask_tcp(NEIGHBOUR6, &query("example.com", RecordType::A))),
            [SERVER]
        );
        let before = asked.count(WEB);
        assert!(texts(ask(NEIGHBOUR, &query(WEB, RecordType::AAAA))).is_empty());
        assert_eq!(asked.count(WEB), before, "nobody else was asked");
        redirect(&file, &[], &[CAPTURE, ALL]);
        assert_eq!(said(FAR), from_mesh);
        assert_eq!(own(), from_server);
        redirect(&file, &["--exclude-outbound-ports", "53"], &[CAPTURE, ALL]);
        assert_eq!(said(NEIGHBOUR), from_server);
    });
}

// spec: NET-091
#[test]
fn without_a_server_capture_is_off_and_the_pod_starts() {
    in_pod(|neighbour| {
        servers(neighbour);
        let file = resolv_conf("search local\n");
        let volumes = configured();
        let _proxy = proxy(&volumes, &file, &[CAPTURE]).ready();
        let said_by_init = redirect(&file, &[], &[CAPTURE]);
        assert!(
            said_by_init.contains("warning") && said_by_init.contains("DNS capture is off"),
            "{said_by_init}"
        );
        assert_eq!(said(NEIGHBOUR)[0], [SERVER]);
        // Asked for all, names of the mesh are answered, and there is nobody to ask for others.
        redirect(&file, &[], &[CAPTURE, ALL]);
        assert_eq!(said(NEIGHBOUR)[0], [MESH]);
        let other = ask(NEIGHBOUR, &query("example.com", RecordType::A)).expect("an answer");
        assert_eq!(other.metadata.response_code, ResponseCode::ServFail);
    });
}

// spec: NET-093, NET-100, NET-101, NET-104, NET-109
#[test]
fn a_port_that_an_application_has_asked_from_can_be_the_proxys_next() {
    with_each_backend(|neighbour, backend| {
        servers(neighbour);
        let file = nameservers();
        let volumes = configured();
        let _proxy = proxy(&volumes, &file, &[CAPTURE]).ready();
        redirect(&file, &[], &[CAPTURE]);
        let message = query(WEB, RecordType::A);
        let (source, server) = (
            SocketAddr::new(POD.into(), 40_053),
            SocketAddr::new(NEIGHBOUR.into(), 53),
        );
        for _ in 0..3 {
            // The kernel still knows what it did with packets of the one when those of the other come.
            assert_eq!(texts(ask_from(source, server, &message)), [MESH]);
            assert_eq!(
                as_user(PROXY, PROXY, || texts(ask_from(source, server, &message))),
                [SERVER]
            );
        }
        // Again: the same rules, and once.
        let listed = || run("nft", "nftables", &["--stateless", "list", "ruleset"]);
        let before = listed();
        redirect(&file, &[], &[CAPTURE]);
        assert_eq!(listed(), before);
        if backend == Backend::Nftables {
            for part in [
                "table inet weft-raw",
                "hook prerouting priority raw",
                "hook output priority raw",
                "ct zone set 1",
                "ct zone set 2",
                "chain weft-output-dns",
            ] {
                assert!(before.contains(part), "{part}: {before}");
            }
        }
        assert_eq!(init_with(&["--cleanup"], &[]).0, 0);
        let rules = listed();
        assert!(!rules.to_lowercase().contains("weft"), "{rules}");
        assert_eq!(texts(ask_from(source, server, &message)), [SERVER]);
    });
}

// spec: NET-007, NET-094, NET-095, LIFE-001, LIFE-021
#[test]
fn the_resolver_serves_before_the_configuration_and_while_draining() {
    in_pod(|neighbour| {
        servers(neighbour);
        let file = nameservers();
        let volumes = Volumes::new(&Authority::new(), "app/echo");
        let process = proxy(&volumes, &file, &[CAPTURE]);
        redirect(&file, &[], &[CAPTURE]);
        wait_for("the resolver", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 15053)).is_ok()
        });
        assert!(!process.is_ready());
        let message = query(WEB, RecordType::A);
        assert_eq!(
            texts(ask(NEIGHBOUR, &message)),
            [SERVER],
            "there is no configuration yet"
        );
        volumes.configure(&bundle());
        volumes.endpoints(&[]);
        let process = process.ready();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            assert!(TcpStream::connect((address, 15053)).is_ok(), "{address}");
        }
        for address in [IpAddr::from(POD), POD6.into()] {
            assert!(TcpStream::connect((address, 15053)).is_err(), "{address}");
        }
        assert_eq!(texts(ask(NEIGHBOUR, &message)), [MESH]);
        // What a server cuts comes whole where the client takes it, and over TCP in any case.
        let long = query("long.example.com", RecordType::A);
        let cut = ask(NEIGHBOUR, &long).expect("an answer");
        assert!(cut.metadata.truncation);
        assert_eq!(texts(ask_tcp(NEIGHBOUR, &long)).len(), 60);
        let listeners = process.get(15000, "/listeners").text();
        assert!(listeners.contains("dns::127.0.0.1:15053"), "{listeners}");
        process.post(15000, "/drain_listeners");
        assert!(!process.is_ready());
        assert_eq!(texts(ask(NEIGHBOUR, &message)), [MESH]);
        assert_eq!(texts(ask(NEIGHBOUR, &query("example.com", RecordType::A))), [SERVER]);
        let metrics = process.get(15090, "/stats/prometheus").text();
        for counted in ["weft_dns_answered_total 2\n", "weft_dns_failed_total 0\n"] {
            assert!(metrics.contains(counted), "{counted}: {metrics}");
        }
    });
}

// spec: NET-091, NET-094
#[test]
fn a_program_resolves_short_names_through_its_own_resolver() {
    in_pod(|neighbour| {
        let asked = servers(neighbour);
        let file = nameservers();
        let switch = resolv_conf("passwd: files\ngroup: files\nhosts: dns\n");
        let volumes = configured();
        let _proxy = proxy(&volumes, &file, &[CAPTURE]).ready();
        redirect(&file, &[], &[CAPTURE]);
        // In a mount namespace of its own, with the pod's files.
        let resolve = |name: &str| {
            let script = format!(
                "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/nsswitch.conf && exec setpriv --reuid \
                 {APPLICATION} --regid {APPLICATION} --clear-groups getent ahostsv4 {name}",
                file.path().display(),
                switch.path().display()
            );
            let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output();
            let output = output.expect("unshare; install it: apt-get install util-linux");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let address = text.split_whitespace().next().map(ToOwned::to_owned);
            address.unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert_eq!(resolve("web"), MESH);
        assert_eq!(resolve("web.app"), MESH);
        assert_eq!(asked.count(WEB), 0, "the mesh knew");
        assert_eq!(resolve("www.example.com."), SERVER);
        assert_eq!(asked.count("www.example.com"), 1);
    });
}

// spec: SE-015, SE-022, SE-023, SE-031, SE-032, SE-033
#[test]
fn names_of_entries_without_addresses_lead_to_them_by_allocated_ones() {
    in_pod(|neighbour| {
        let asked = servers(neighbour);
        neighbour.run(|| {
            announce(9001, "a");
            announce(9002, "b");
            announce(5000, "dialled");
        });
        let file = nameservers();
        let volumes = Volumes::new(&Authority::new(), "app/echo");
        let entry = |name: &str, n: u16| {
            format!(
                "- {{host: {name}, name: {name}, namespace: app, kind: entry, domains: [{name}], allocated: [240.240.0.{n}, \
                 '2001:2::{n}'], ports: [{{port: 5000, name: main, protocol: tcp}}]}}\n"
            )
        };
        let hosts = entry("a.example", 1) + &entry("b.example", 2);
        volumes.configure(&format!("{}hosts:\n{hosts}", workload("app/echo")));
        let listed = [("a.example", 9001), ("b.example", 9002)].map(|(host, port)| HostInput {
            host: host.into(),
            accounts: Vec::new(),
            endpoints: vec![EndpointInput {
                tls: MeshTls::None,
                ..endpoint((NEIGHBOUR, port).into())
            }],
        });
        volumes.endpoints_of(&listed);
        let call = |address: &str| {
            let address: IpAddr = address.parse().expect("address");
            Caller::new(APPLICATION, APPLICATION).ask((address, 5000).into())
        };
        let captures = proxy(&volumes, &file, &[CAPTURE]).ready();
        redirect(&file, &[], &[CAPTURE]);
        for (name, n, says) in [("a.example", 1, "a"), ("B.example", 2, "b")] {
            for kind in [RecordType::A, RecordType::AAAA] {
                let found = texts(ask(NEIGHBOUR, &query(name, kind)));
                let expected = if kind == RecordType::A {
                    format!("240.240.0.{n}")
                } else {
                    format!("2001:2::{n}")
                };
                assert_eq!(found, [expected.as_str()]);
                assert_eq!(call(&expected), says);
            }
        }
        assert_eq!(asked.count("a.example"), 0, "the mesh knew");
        assert_eq!(call(&FAR.to_string()), "dialled", "none of theirs");
        drop(captures);
        // Where names are not answered by the mesh, nothing tells the two apart, and the first has the port.
        let _proxy = proxy(&volumes, &file, &[]).ready();
        assert_eq!(call(&FAR.to_string()), "a");
    });
}

// spec: NET-096
#[test]
fn a_server_in_the_pod_is_captured_when_the_resolver_names_it() {
    with_each_backend(|neighbour, _| {
        servers(neighbour);
        // It asks nobody: all it has to show is that the query came.
        let asked = Asked::default();
        let own = Ipv4Addr::new(127, 0, 0, 53);
        let (udp, told) = (UdpSocket::bind((own, 53)).expect("socket"), asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(&buffer[..length], &told, false), client);
            }
        });
        let volumes = configured();
        let file = resolv_conf(&format!("nameserver {own}\n"));
        let _proxy = proxy(&volumes, &file, &[CAPTURE]).ready();
        redirect(&file, &[], &[CAPTURE]);
        let message = query(WEB, RecordType::A);
        assert_eq!(texts(ask(own, &message)), [MESH]);
        assert_eq!(asked.count(WEB), 0);
        assert_eq!(texts(ask(own, &query("example.com", RecordType::A))), [SERVER]);
        assert_eq!(asked.count("example.com"), 1, "the proxy asked it");
        // Its own queries go elsewhere, and are not captured.
        assert_eq!(texts(ask(NEIGHBOUR, &message)), [SERVER]);
        redirect(&file, &[], &[CAPTURE, ALL]);
        assert_eq!(texts(ask(NEIGHBOUR, &message)), [MESH]);
    });
}

// spec: NET-094
#[test]
fn noise_and_a_flood_leave_the_resolver_at_work() {
    in_pod(|neighbour| {
        // A server that never answers, so that queries pile up.
        let quiet = Ipv4Addr::new(10, 97, 0, 200);
        let _silent = neighbour.run(move || {
            support::net::ip(&format!("address add {quiet}/32 dev lo"));
            UdpSocket::bind((quiet, 53)).expect("socket")
        });
        let file = resolv_conf(&format!("nameserver {quiet}\n"));
        let volumes = configured();
        let process = proxy(&volumes, &file, &[CAPTURE]).ready();
        redirect(&file, &[], &[CAPTURE]);
        let server = SocketAddr::new(quiet.into(), 53);
        let socket = UdpSocket::bind((POD, 0)).expect("socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("option");
        for n in 0..200u32 {
            let noise: Vec<u8> = (0..n * 20).map(|at| (at.wrapping_mul(n) >> 3) as u8).collect();
            let _ = socket.send_to(&noise, server);
        }
        // Beyond the bound the answer is that there is none, at once.
        let mut unknown = query("example.com", RecordType::A);
        let mut buffer = [0; 4096];
        let mut id = 0u16;
        let mut refused = None;
        wait_for("a refusal", || {
            for _ in 0..100 {
                id = id.wrapping_add(1);
                unknown[..2].copy_from_slice(&id.to_be_bytes());
                socket.send_to(&unknown, server).expect("sent");
            }
            let received = socket.recv_from(&mut buffer).ok();
            refused = received.and_then(|(length, _)| Message::from_vec(&buffer[..length]).ok());
            refused.is_some()
        });
        let refused = refused.expect("waited for");
        assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(texts(ask(server.ip(), &query(WEB, RecordType::A))), [MESH]);
        // Half a message over TCP, and a length that none has.
        for bytes in [&[0, 40, 1, 2][..], &[0xff, 0xff], &[0, 0]] {
            let mut stream = TcpStream::connect(server).expect("captured");
            stream.write_all(bytes).expect("sent");
        }
        assert_eq!(texts(ask_tcp(server.ip(), &query(WEB, RecordType::A))), [MESH]);
        let metrics = process.get(15090, "/stats/prometheus").text();
        assert!(metrics.contains("weft_task_panics_total 0\n"), "{metrics}");
    });
}

#[test]
fn a_port_that_somebody_holds_is_named_and_waited_for() {
    in_pod(|_| {
        let file = nameservers();
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 15053)).expect("listener");
        let volumes = configured();
        let process = proxy(&volumes, &file, &[CAPTURE]);
        wait_for("the port in the log", || {
            let log = process.log();
            log.contains("address in use") && log.contains("15053")
        });
        assert!(!process.is_ready());
        drop(holder);
        process.ready();
    });
}
