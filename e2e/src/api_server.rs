//! The API server, taken away and brought back: on the test cluster alone.

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::sample::repository;

/// That of the test cluster.
pub struct ApiServer(());

impl ApiServer {
    /// `None` on a cluster of somebody else, whose API server is not ours to stop.
    #[must_use]
    pub fn of_test_cluster() -> Option<Self> {
        (std::env::var("CLUSTER").as_deref() != Ok("current")).then_some(Self(()))
    }

    /// Does something while it is away, and brings it back whatever comes of it.
    ///
    /// # Errors
    /// What became of the work, or that it does not come back.
    pub async fn away<T>(&self, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        run("stop").await?;
        let result = work().await;
        run("start").await?;
        result
    }
}

async fn run(what: &str) -> Result<()> {
    let program = repository().join("e2e/cluster/api");
    let status = Command::new(&program).arg(what).status().await;
    let status = status.with_context(|| format!("run {}", program.display()))?;
    ensure!(status.success(), "{} {what}: {status}", program.display());
    Ok(())
}
