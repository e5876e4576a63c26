//! Reads the bodies of reviews, a bounded number at a time (INJ-209).

use std::ops::Deref;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::plain;
use crate::admission;

/// Bodies up to 8 MiB are accepted: an object of an API server is below 2 MiB, a review holds two.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// What most reviews are far below.
const SMALL_BODY: usize = 128 * 1024;
/// Reviews in memory at a time. Anybody in the cluster can reach the port, so that these bound its memory: parsed, a
/// body takes a few times its size.
const MAX_SMALL: usize = 128;
/// Reviews above [`SMALL_BODY`], or of unknown size.
const MAX_LARGE: usize = 4;
/// Waiting and reading take no longer: the API server itself gives up after 5 s (INJ-200).
const TIMEOUT: Duration = Duration::from_secs(5);

/// Room for the reviews that are being answered.
#[derive(Debug)]
pub(super) struct Bodies {
    small: Semaphore,
    large: Semaphore,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            small: Semaphore::new(MAX_SMALL),
            large: Semaphore::new(MAX_LARGE),
        }
    }
}

/// A review, and the room that it takes.
#[derive(Debug)]
pub(super) struct Review<'a> {
    value: Value,
    _room: SemaphorePermit<'a>,
}

impl Deref for Review<'_> {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.value
    }
}

impl Bodies {
    /// Reads the review of a request, or answers it: wrong method and empty body 400, wrong media type 415, no JSON
    /// 400, too large 413, too slow 408.
    pub(super) async fn review(&self, request: Request) -> Result<Review<'_>, Box<Response>> {
        let length = announced(&request)?;
        let (room, limit) = match length {
            Some(length) if length <= SMALL_BODY => (&self.small, SMALL_BODY),
            _ => (&self.large, MAX_BODY),
        };
        let read = async {
            let room = room.acquire().await;
            (room, Limited::new(request.into_body(), limit).collect().await)
        };
        let Ok((Ok(room), body)) = tokio::time::timeout(TIMEOUT, read).await else {
            return refuse(StatusCode::REQUEST_TIMEOUT, "the body took longer than 5 s");
        };
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 8 MiB");
            }
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &format!("the body ended early: {error}")),
        };
        if body.is_empty() {
            return refuse(StatusCode::BAD_REQUEST, "the body is empty");
        }
        match admission::parse(&body) {
            Ok(value) => Ok(Review { value, _room: room }),
            Err(bad) => refuse(StatusCode::BAD_REQUEST, &bad.to_string()),
        }
    }
}

/// Checks the head of a request, and returns the length that it announces.
fn announced(request: &Request) -> Result<Option<usize>, Box<Response>> {
    if request.method() != Method::POST {
        return refuse(StatusCode::BAD_REQUEST, "admission reviews are sent by POST");
    }
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    let media = header(header::CONTENT_TYPE).unwrap_or_default();
    if media.split(';').next().map(str::trim) != Some("application/json") {
        return refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/json",
        );
    }
    let length = header(header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 8 MiB");
    }
    Ok(length)
}

fn refuse<T>(status: StatusCode, message: &str) -> Result<T, Box<Response>> {
    Err(Box::new(plain(status, message.to_owned())))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::stream;

    use super::*;

    fn post(body: Body, length: Option<usize>) -> Request {
        let mut request = Request::post("/inject").header("content-type", "application/json");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        request.body(body).unwrap()
    }

    fn silent() -> Body {
        Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>())
    }

    // spec: INJ-209
    #[tokio::test(start_paused = true)]
    async fn slow_bodies_take_their_own_room_alone_and_not_for_ever() {
        let bodies = Bodies::default();
        let slow: Vec<_> = (0..=MAX_LARGE).map(|_| bodies.review(post(silent(), None))).collect();
        let small = bodies.review(post(Body::from("{}"), Some(2)));
        let (slow, small) = futures::join!(futures::future::join_all(slow), small);
        assert!(small.is_ok(), "{small:?}");
        for refused in slow {
            assert_eq!(refused.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
        }
        assert!(bodies.review(post(Body::from("{}"), None)).await.is_ok());
    }

    // spec: INJ-209
    #[tokio::test]
    async fn what_is_larger_than_announced_or_allowed_is_refused() {
        let bodies = Bodies::default();
        let large = || Body::from(vec![b' '; MAX_BODY + 1]);
        for length in [None, Some(1), Some(MAX_BODY + 1)] {
            let refused = bodies.review(post(large(), length)).await.unwrap_err();
            assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE, "{length:?}");
        }
        let text = format!("\"{}\"", "x".repeat(MAX_BODY - 2));
        assert!(bodies.review(post(Body::from(text), Some(MAX_BODY))).await.is_ok());
    }
}
