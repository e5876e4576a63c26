//! A real proxy that somebody wants to exhaust.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use super::process::{Process, Volumes};
use super::{Authority, Client, LIMIT, address, workload};

/// A proxy with one worker in front of an application.
pub struct Victim {
    pub proxy: Process,
    pub front: SocketAddr,
    /// Resident memory before the attack, in KiB.
    before: u64,
    _volumes: Volumes,
}

impl Victim {
    pub fn new(app: SocketAddr) -> Self {
        Self::with(app, &[])
    }

    /// With variables of its own.
    pub fn with(app: SocketAddr, environment: &[(&str, &str)]) -> Self {
        let volumes = Volumes::new(&Authority::new(), "app/echo");
        let port = app.port();
        volumes.configure(&format!(
            "{}inbound:\n  ports: [{{port: {port}, protocol: http}}]\n",
            workload("app/echo")
        ));
        volumes.endpoints(&[]);
        let address = address();
        let front = SocketAddr::new(address, port);
        let proxy = Process::start(
            &volumes,
            address,
            &["--inbound", &format!("{front}={app}"), "--concurrency", "1"],
            environment,
        );
        let proxy = proxy.ready();
        let this = Self {
            before: 0,
            proxy,
            front,
            _volumes: volumes,
        };
        for _ in 0..50 {
            assert_eq!(this.call(), Some(200));
        }
        Self {
            before: this.proxy.status("RssAnon"),
            ..this
        }
    }

    /// A request on a connection of its own.
    pub fn call(&self) -> Option<u16> {
        let stream = TcpStream::connect(self.front).ok()?;
        let mut client = Client::over(stream);
        client
            .stream
            .write_all(b"GET / HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")
            .ok()?;
        client.receive().map(|answer| answer.status())
    }

    /// Memory that came on top, in KiB.
    pub fn grown(&self) -> u64 {
        self.proxy.status("RssAnon").saturating_sub(self.before)
    }

    /// Everybody else is served, the proxy's own ports answer, and memory has a bound.
    pub fn stands(&self, most_kib: u64) {
        let begin = Instant::now();
        assert_eq!(self.call(), Some(200));
        self.answers();
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        let grown = self.grown();
        assert!(grown < most_kib, "{grown} KiB");
    }

    /// The proxy's own ports answer.
    pub fn answers(&self) {
        assert!(self.proxy.is_ready());
        assert_eq!(self.proxy.get(15000, "/server_info").status(), 200);
    }

    /// Connections of clients that it has.
    pub fn connections(&self) -> usize {
        let text = self.proxy.get(15000, "/stats?filter=downstream_connections").text();
        let number = text.rsplit(':').next().and_then(|number| number.trim().parse().ok());
        number.unwrap_or_else(|| panic!("a number in {text:?}"))
    }
}
