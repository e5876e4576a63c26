//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Asks until there is an answer.
///
/// # Errors
/// That there was none within the limit, with the last error.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            return match seen {
                Some(error) => Err(error).with_context(|| format!("not within {limit:?}: {what}")),
                None => bail!("not within {limit:?}: {what}"),
            };
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const PAUSE: Duration = Duration::from_millis(100);
