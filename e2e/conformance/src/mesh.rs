//! The mesh that a stage stands in: one of local mode, or that of a cluster.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use crate::agent::Agents;
use crate::stage::Places;
use crate::{cluster, local};

/// A running mesh with the stage in it.
#[derive(Debug)]
pub(crate) enum Mesh {
    Local(local::Mesh),
    Cluster(cluster::Mesh),
}

/// What became of the objects of a scenario.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// `Kind/name` of refused objects, with the reason.
    pub(crate) refused: BTreeMap<String, String>,
}

impl Mesh {
    /// Puts objects in the place of the last scenario's and waits until every proxy has what follows from them.
    pub(crate) async fn replace(&mut self, objects: &[Value]) -> Result<Applied> {
        match self {
            Self::Local(mesh) => mesh.replace(objects).await,
            Self::Cluster(mesh) => mesh.replace(objects).await,
        }
    }

    pub(crate) fn agents(&self) -> &Agents {
        match self {
            Self::Local(mesh) => &mesh.agents,
            Self::Cluster(mesh) => &mesh.agents,
        }
    }

    pub(crate) fn places(&self) -> &Places {
        match self {
            Self::Local(mesh) => &mesh.places,
            Self::Cluster(mesh) => &mesh.places,
        }
    }

    /// Ends the mesh in order, or takes the stage away from the cluster.
    pub(crate) async fn stop(self) -> Result<()> {
        match self {
            Self::Local(mesh) => mesh.stop().await,
            Self::Cluster(mesh) => mesh.stop().await,
        }
    }
}
