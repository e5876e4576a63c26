//! What happened to one request or connection: filled in step by step, recorded exactly once.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::{Duration, Instant};
use weft_bundle::model::{Cluster, TlsServer};
use weft_bundle::wire::PeerWorkload;

use crate::authorize::Since;
use crate::http::{Headers, RequestHead, Version};
use crate::telemetry::Telemetry;

/// Which side of a call the proxy is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Client side: reporter `source`.
    Outbound,
    /// Server side: reporter `destination`.
    Inbound,
}

/// Response flags (FLAG-001), a set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

macro_rules! flags {
    ($($position:literal $name:ident $short:literal $long:literal;)*) => {
        impl Flags {
            $(
                #[doc = concat!("`", $short, "`: ", $long, ".")]
                pub const $name: Self = Self(1 << $position);
            )*
        }
        /// Flag, short name, long name, in the order of FLAG-004.
        const NAMES: &[(Flags, &str, &str)] = &[$((Flags::$name, $short, $long)),*];
    };
}

flags! {
    0 LH "LH" "FailedLocalHealthCheck";
    1 UH "UH" "NoHealthyUpstream";
    2 UT "UT" "UpstreamRequestTimeout";
    3 LR "LR" "LocalReset";
    4 UR "UR" "UpstreamRemoteReset";
    5 UF "UF" "UpstreamConnectionFailure";
    6 UC "UC" "UpstreamConnectionTermination";
    7 UO "UO" "UpstreamOverflow";
    8 NR "NR" "NoRouteFound";
    9 DI "DI" "DelayInjected";
    10 FI "FI" "FaultInjected";
    11 RL "RL" "RateLimited";
    12 UAEX "UAEX" "UnauthorizedExternalService";
    13 RLSE "RLSE" "RateLimitServiceError";
    14 DC "DC" "DownstreamConnectionTermination";
    15 URX "URX" "UpstreamRetryLimitExceeded";
    16 SI "SI" "StreamIdleTimeout";
    17 IH "IH" "InvalidEnvoyRequestHeaders";
    18 DPE "DPE" "DownstreamProtocolError";
    19 UMSDR "UMSDR" "UpstreamMaxStreamDurationReached";
    20 DT "DT" "DurationTimeout";
    21 UPE "UPE" "UpstreamProtocolError";
    22 NC "NC" "NoClusterFound";
    23 OM "OM" "OverloadManagerTerminated";
    24 DF "DF" "DnsResolutionFailed";
    25 DO "DO" "DropOverload";
    26 DR "DR" "DownstreamRemoteReset";
}

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as bits, for CEL's `response.flags`.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Long names joined by `,`; `-` for none.
    #[must_use]
    pub fn long(self) -> String {
        let names: Vec<_> = NAMES
            .iter()
            .filter(|(f, ..)| self.contains(*f))
            .map(|(_, _, l)| *l)
            .collect();
        if names.is_empty() { "-".into() } else { names.join(",") }
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Short names joined by `,` in the order of FLAG-004; `-` for none.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (_, short, _) in NAMES.iter().filter(|(flag, ..)| self.contains(*flag)) {
            if !first {
                f.write_str(",")?;
            }
            first = false;
            f.write_str(short)?;
        }
        if first { f.write_str("-") } else { Ok(()) }
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Name of a destination in logs and metrics (LOG-023).
#[derive(Debug, Clone, Default)]
pub enum Target {
    /// Not chosen.
    #[default]
    None,
    /// A destination of the configuration.
    Cluster(Arc<Cluster>),
    /// The application: `inbound|<port>||`, with the host of its oldest Service (MET-032).
    Inbound {
        /// Port of the pod.
        port: u16,
        /// Host of the Service.
        host: Option<Arc<str>>,
    },
    /// `PassthroughCluster`.
    Passthrough,
    /// `BlackHoleCluster`.
    BlackHole,
    /// `InboundPassthroughCluster`: a port of the pod that no Service leads to.
    InboundPassthrough {
        /// Port of the pod.
        port: u16,
    },
    /// A destination that does not exist, by its name.
    Unknown(Arc<str>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("-"),
            Self::Cluster(cluster) => f.write_str(&cluster.name),
            Self::Inbound { port, .. } => write!(f, "inbound|{port}||"),
            Self::Passthrough => f.write_str("PassthroughCluster"),
            Self::BlackHole => f.write_str("BlackHoleCluster"),
            Self::InboundPassthrough { .. } => f.write_str("InboundPassthroughCluster"),
            Self::Unknown(name) => f.write_str(name),
        }
    }
}

/// Facts of a downstream connection, shared by its requests.
#[derive(Debug, Clone)]
pub struct Downstream {
    /// Number of the connection in this process.
    pub id: u64,
    /// Worker that serves it.
    pub worker: usize,
    /// Side.
    pub direction: Direction,
    /// The client.
    pub remote: SocketAddr,
    /// What the client dialled.
    pub local: SocketAddr,
    /// The client's SPIFFE id, verified by mTLS.
    pub principal: Option<Arc<str>>,
    /// The proxy's own SPIFFE id on this connection.
    pub local_principal: Option<Arc<str>>,
    /// The server of a gateway at which TLS ended.
    pub ended_by: Option<Arc<TlsServer>>,
    /// SNI.
    pub server_name: Option<Arc<str>>,
    /// Facts of the client's certificate and of the TLS session.
    pub tls: Option<Arc<crate::tls::PeerTls>>,
    /// What the application is told of the certificate (ID-121), once a request asked for it.
    pub certificate_element: OnceLock<Option<Bytes>>,
}

/// Facts of the upstream connection.
#[derive(Debug, Clone, Default)]
pub struct Upstream {
    /// The destination.
    pub target: Target,
    /// Address connected to.
    pub host: Option<SocketAddr>,
    /// Own address of that connection.
    pub local: Option<SocketAddr>,
    /// Number of that connection in this process.
    pub connection_id: u64,
    /// The server's SPIFFE id, verified by mTLS.
    pub principal: Option<Arc<str>>,
    /// Facts of the server's certificate and of the TLS session.
    pub tls: Option<Arc<crate::tls::PeerTls>>,
    /// Why its transport failed.
    pub failure: Option<Arc<str>>,
}

/// One HTTP request and its answer. [`Telemetry::record`] sees it once: at [`Exchange::finish`], else on drop.
pub struct Exchange {
    telemetry: Arc<Telemetry>,
    recorded: bool,
    /// The connection that it came on.
    pub downstream: Arc<Downstream>,
    /// Where it went.
    pub upstream: Upstream,
    /// First byte received.
    pub start: Instant,
    /// The same, by the clock.
    pub start_time: SystemTime,
    /// Points in time after [`Exchange::start`].
    pub times: Times,
    /// Protocol of the request.
    pub protocol: Version,
    /// Protocol towards the server.
    pub upstream_protocol: Option<Version>,
    /// Method.
    pub method: Bytes,
    /// Path with query, as received.
    pub path: Bytes,
    /// Authority, as received.
    pub authority: Bytes,
    /// Request header fields as received, when [`Telemetry::keeps_headers`]; else empty but for those below.
    pub request_headers: Headers,
    /// `user-agent`.
    pub user_agent: Option<Bytes>,
    /// `x-request-id`, as received or made.
    pub request_id: Option<Bytes>,
    /// `x-forwarded-for`.
    pub forwarded_for: Option<Bytes>,
    /// The path as sent upstream, where it was rewritten.
    pub sent_path: Option<Bytes>,
    /// Response header fields as sent, when [`Telemetry::keeps_headers`].
    pub response_headers: Headers,
    /// Request is gRPC (MET-026).
    pub grpc: bool,
    /// `grpc-status` of header or trailer.
    pub grpc_status: Option<u16>,
    /// gRPC messages of the request.
    pub request_messages: u64,
    /// gRPC messages of the response.
    pub response_messages: u64,
    /// Status sent; 0: none.
    pub status: u16,
    /// Flags.
    pub flags: Flags,
    /// `response_code_details`.
    pub details: Option<Details>,
    /// Body bytes received.
    pub bytes_received: u64,
    /// Body bytes sent.
    pub bytes_sent: u64,
    /// Bytes of the request's head.
    pub request_header_bytes: u64,
    /// Bytes of the response's head.
    pub response_header_bytes: u64,
    /// Tries.
    pub attempts: u32,
    /// Name of the route (VS-025).
    pub route: Option<Arc<str>>,
    /// A policy asked for a mark in the log (AUTHZ-021).
    pub audited: bool,
    /// The client's connection ends with the answer, where it has no other requests on it.
    pub closes: bool,
    /// The request and when it was allowed, for decisions on what goes on after its answer has begun (BYD-002).
    pub asked: Option<(RequestHead, Since)>,
    /// The client's workload, where known.
    pub source: Option<Arc<PeerWorkload>>,
    /// The server's workload, where known.
    pub destination: Option<Arc<PeerWorkload>>,
}

/// Points in time after the start of an [`Exchange`]; zero: not reached.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Last byte of the request received.
    pub request_end: Duration,
    /// Upstream connection in hand.
    pub pool_ready: Duration,
    /// Last byte of the request sent.
    pub request_sent: Duration,
    /// First byte of the response received.
    pub response_begin: Duration,
    /// Last byte of the response sent.
    pub response_end: Duration,
}

/// `response_code_details` (FLAG-003).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Details {
    /// One of the fixed words.
    Word(&'static str),
    /// One that names a reason of the moment.
    Text(Arc<str>),
    /// A policy refused it: with the policy's name (AUTHZ-024).
    Denied(Arc<str>),
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Text(text) | Self::Denied(text) => f.write_str(text),
        }
    }
}

impl Details {
    /// What a caller may be told, who is not to know the names of policies (BYD-030).
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Denied(text) if !text.ends_with("[none]") => text.split('[').next().unwrap_or_default().to_owned(),
            other => other.to_string(),
        }
    }
}

impl Exchange {
    /// Begins with the first byte of a request.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, downstream: Arc<Downstream>, protocol: Version) -> Self {
        Self {
            telemetry,
            recorded: false,
            downstream,
            upstream: Upstream::default(),
            start: Instant::now(),
            start_time: SystemTime::now(),
            times: Times::default(),
            protocol,
            upstream_protocol: None,
            method: Bytes::new(),
            path: Bytes::new(),
            authority: Bytes::new(),
            request_headers: Headers::default(),
            user_agent: None,
            request_id: None,
            forwarded_for: None,
            sent_path: None,
            response_headers: Headers::default(),
            grpc: false,
            grpc_status: None,
            request_messages: 0,
            response_messages: 0,
            status: 0,
            flags: Flags::NONE,
            details: None,
            bytes_received: 0,
            bytes_sent: 0,
            request_header_bytes: 0,
            response_header_bytes: 0,
            attempts: 0,
            route: None,
            audited: false,
            closes: false,
            asked: None,
            source: None,
            destination: None,
        }
    }

    /// Side of the call.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.downstream.direction
    }

    /// Duration until the response's end, or until now.
    #[must_use]
    pub fn duration(&self) -> Duration {
        if self.times.response_end.is_zero() {
            self.start.elapsed()
        } else {
            self.times.response_end
        }
    }

    /// Records nothing of it: copies of requests are no traffic of their own on this side (MET-033).
    pub fn discard(&mut self) {
        self.recorded = true;
    }

    /// Records a request whose response was sent to its end, or whose failure was noted in flags.
    pub fn finish(&mut self) {
        if !self.recorded {
            self.recorded = true;
            if self.times.response_end.is_zero() {
                self.times.response_end = self.start.elapsed();
            }
            let telemetry = self.telemetry.clone();
            telemetry.record(self);
        }
    }
}

/// What is dropped before its end was given up by the client (MET-014).
impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.recorded {
            self.flags |= Flags::DC;
            self.details
                .get_or_insert(Details::Word("downstream_remote_disconnect"));
            self.finish();
        }
    }
}

/// One opaque connection. [`Telemetry::record_tcp`] sees it once, when it ends.
pub struct Session {
    telemetry: Arc<Telemetry>,
    recorded: bool,
    /// The connection.
    pub downstream: Arc<Downstream>,
    /// Where it went.
    pub upstream: Upstream,
    /// Accepted.
    pub start: Instant,
    /// The same, by the clock.
    pub start_time: SystemTime,
    /// Flags (FLAG-005).
    pub flags: Flags,
    /// `response_code_details`, for refusals.
    pub details: Option<Details>,
    /// `connection_termination_details`.
    pub termination: Option<Details>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// The client's workload, where known.
    pub source: Option<Arc<PeerWorkload>>,
    /// The server's workload, where known.
    pub destination: Option<Arc<PeerWorkload>>,
    /// [`Telemetry::opened_tcp`] was called.
    opened: bool,
}

impl Session {
    /// Begins with the connection.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, downstream: Arc<Downstream>) -> Self {
        Self {
            telemetry,
            recorded: false,
            downstream,
            upstream: Upstream::default(),
            start: Instant::now(),
            start_time: SystemTime::now(),
            flags: Flags::NONE,
            details: None,
            termination: None,
            bytes_received: 0,
            bytes_sent: 0,
            route: None,
            source: None,
            destination: None,
            opened: false,
        }
    }

    /// Reports the connection as opened, once its peers are known (MET-005).
    pub fn opened(&mut self) {
        if !self.opened {
            self.opened = true;
            let telemetry = self.telemetry.clone();
            telemetry.opened_tcp(self);
        }
    }

    /// Hands the connection to HTTP: it is no session.
    pub fn discard(&mut self) {
        self.recorded = true;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.recorded {
            self.recorded = true;
            self.opened();
            let telemetry = self.telemetry.clone();
            telemetry.record_tcp(self);
        }
    }
}
