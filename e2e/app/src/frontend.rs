//! The frontend of the sample: its answers contain its upstream's.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::answer::Seen;
use crate::client::{Call, Dial, Failure, Reply, Target, http1x};
use crate::serve::ServeArgs;
use crate::stream::Buffered;

/// A server that calls an upstream for each request.
#[derive(Debug, Args)]
pub(crate) struct FrontendArgs {
    /// URL that is called for each request; the request's path is appended
    #[arg(long, value_name = "URL")]
    upstream: Target,
    /// Milliseconds until the upstream's answer must be complete
    #[arg(long, default_value_t = 15_000, value_name = "MS")]
    upstream_timeout: u64,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

/// Calls the upstream, over connections that it keeps.
pub(crate) struct Frontend {
    dial: Dial,
    limit: Duration,
    idle: Mutex<Vec<Buffered>>,
}

impl std::fmt::Debug for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frontend")
            .field("upstream", &self.dial.target)
            .finish_non_exhaustive()
    }
}

/// The JSON of a frontend's answer.
#[derive(Debug, Serialize)]
pub(crate) struct FrontendAnswer<'a> {
    #[serde(flatten)]
    seen: &'a Seen,
    upstream: UpstreamAnswer,
}

/// What the upstream answered, or why it did not.
#[derive(Debug, Serialize)]
struct UpstreamAnswer {
    url: String,
    milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// The upstream's JSON, or its text where it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Frontend {
    pub(crate) fn new(args: &FrontendArgs) -> Self {
        Self {
            dial: Dial::new(args.upstream.clone()),
            limit: Duration::from_millis(args.upstream_timeout),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Answers for the upstream, with its status: 502 when there is no answer.
    pub(crate) async fn answer<'a>(&self, seen: &'a Seen) -> (u16, FrontendAnswer<'a>) {
        let call = self.call_for(seen);
        let url = format!("http://{}{}", self.dial.target.authority, call.path);
        let start = Instant::now();
        let outcome = timeout(self.limit, self.exchange(&call))
            .await
            .unwrap_or(Err(Failure::Timeout));
        let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
        let empty = UpstreamAnswer {
            url,
            milliseconds,
            status: None,
            answer: None,
            error: None,
        };
        match outcome {
            Ok(Reply {
                broken: Some(failure), ..
            })
            | Err(failure) => {
                let error = format!("{}: {:#}", failure.kind(), anyhow::Error::new(failure));
                (
                    502,
                    FrontendAnswer {
                        seen,
                        upstream: UpstreamAnswer {
                            error: Some(error),
                            ..empty
                        },
                    },
                )
            }
            Ok(reply) => {
                let answer = serde_json::from_slice(&reply.body)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&reply.body).into_owned()));
                let status = Some(reply.status);
                (
                    reply.status,
                    FrontendAnswer {
                        seen,
                        upstream: UpstreamAnswer {
                            status,
                            answer: Some(answer),
                            ..empty
                        },
                    },
                )
            }
        }
    }

    fn call_for(&self, seen: &Seen) -> Call {
        let mut headers: Vec<(String, String)> = seen
            .headers
            .0
            .iter()
            .filter(|(name, _)| FORWARDED.iter().any(|forwarded| name.eq_ignore_ascii_case(forwarded)))
            .cloned()
            .collect();
        if let Some(directives) = seen.headers.first("x-upstream-ctl") {
            headers.push(("x-ctl".to_owned(), directives.to_owned()));
        }
        let base = self.dial.target.path.trim_end_matches('/');
        let bodiless = seen.body_len == 0;
        Call {
            method: if bodiless {
                seen.method.clone()
            } else {
                "POST".to_owned()
            },
            path: format!("{base}{}", seen.path),
            headers,
            body: seen.body.clone().into_bytes(),
            minor: 1,
            ..Call::default()
        }
    }

    async fn exchange(&self, call: &Call) -> Result<Reply, Failure> {
        let repeatable = matches!(call.method.as_str(), "GET" | "HEAD" | "OPTIONS");
        if let Some(mut conn) = self.take_idle() {
            match http1x::exchange(&mut conn, &self.dial, call).await {
                Ok(reply) => return Ok(self.keep(conn, reply)),
                // A server may close an idle connection while the request is on its way (RFC 9112, section 9.3.1).
                Err(failure) if repeatable && matches!(failure.kind().as_str(), "eof" | "reset") => {}
                Err(failure) => return Err(failure),
            }
        }
        let mut conn = self.dial.open().await?;
        let reply = http1x::exchange(&mut conn, &self.dial, call).await?;
        Ok(self.keep(conn, reply))
    }

    fn take_idle(&self) -> Option<Buffered> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|conn| !conn.stream.is_stale())
    }

    fn keep(&self, conn: Buffered, reply: Reply) -> Reply {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if reply.reusable && conn.buffer.is_empty() && idle.len() < IDLE_LIMIT {
            idle.push(conn);
        }
        reply
    }
}

/// What ties the two calls together: the user, and the trace.
const FORWARDED: [&str; 12] = [
    "end-user",
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "authorization",
    "content-type",
];
const IDLE_LIMIT: usize = 256;
