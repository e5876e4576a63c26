//! The agent: a port by which a test has the pod send requests and asks what it has seen.
//!
//! `POST /send` takes a job and answers with a list of reports; `GET /hits` lists the requests that the server has seen
//! since the last such call. Header `x-relay: HOST:PORT` has the agent there answer instead, so that one agent reaches
//! the others.

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;

use super::http1::write_response;
use crate::answer::{self, App, Response};
use crate::client::{Call, Dial, Target, http1x};
use crate::http1::{BodyReader, RequestHead, read_request};
use crate::job::Job;
use crate::stream::Buffered;

/// Serves a connection until its client closes it.
pub(super) async fn serve(mut conn: Buffered, app: &App) -> Result<()> {
    while let Some(head) = read_request(&mut conn).await? {
        let (body, length) = BodyReader::new(head.framing()?).collect(&mut conn, BODY_LIMIT).await?;
        let response = if length > BODY_LIMIT as u64 {
            answer::text(413, &format!("a job of at most {BODY_LIMIT} bytes is accepted\n"))
        } else {
            respond(&head, body, app)
                .await
                .unwrap_or_else(|error| answer::text(400, &format!("{error:#}\n")))
        };
        let last = !head.keeps_alive();
        write_response(&mut conn, response, &head.method, head.minor, last).await?;
        if last {
            break;
        }
    }
    Ok(conn.shutdown().await?)
}

async fn respond(head: &RequestHead, body: Vec<u8>, app: &App) -> Result<Response> {
    if let Some(other) = head.headers.first("x-relay") {
        return relay(other, head, body).await;
    }
    match (head.method.as_str(), head.target.as_str()) {
        ("POST", "/send") => {
            let job: Job = serde_json::from_slice(&body).context("the body is no job")?;
            let mut reports = Vec::new();
            job.run(|report| reports.push(report)).await?;
            Ok(answer::document(&reports))
        }
        ("GET", "/hits") => Ok(app.take_hits()),
        (method, target) => Ok(answer::text(
            404,
            &format!("{method} {target} is not known; POST /send and GET /hits are\n"),
        )),
    }
}

async fn relay(other: &str, head: &RequestHead, body: Vec<u8>) -> Result<Response> {
    let target: Target = format!("http://{other}{}", head.target).parse()?;
    let mut dial = Dial::new(target);
    dial.proxy = None;
    let call = Call {
        method: head.method.clone(),
        path: head.target.clone(),
        body,
        minor: 1,
        ..Call::default()
    };
    let mut conn = dial
        .open()
        .await
        .with_context(|| format!("reach the agent at {other}"))?;
    let reply = http1x::exchange(&mut conn, &dial, &call).await;
    let reply = reply.with_context(|| format!("ask the agent at {other}"))?;
    Ok(Response {
        status: reply.status,
        body: answer::Body::Bytes(reply.body),
        ..Response::default()
    })
}

const BODY_LIMIT: usize = 8 * 1024 * 1024;
