//! What the tests of the mesh in a cluster begin with.

use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::has_real_root;
use adit_tests::slot::{self, Slot};
use anyhow::Result;

/// A cluster of two nodes, as a rule with Adit in it, and the machine for itself.
pub(crate) struct Bed {
    // In this order: the machine is given back once the cluster is gone.
    pub(crate) cluster: Cluster,
    _alone: Slot,
}

impl Bed {
    /// Makes it; nothing without real root, which is reported as not run.
    pub(crate) fn make() -> Result<Option<Self>> {
        let made = Self::bare(Families::V4)?;
        made.map(|bed| bed.cluster.install_mesh().map(|()| bed)).transpose()
    }

    /// The same without Adit, whose images are there.
    pub(crate) fn bare(families: Families) -> Result<Option<Self>> {
        if !has_real_root("nodes run containers") {
            return Ok(None);
        }
        let alone = slot::exclusive();
        let cluster = Cluster::start(Settings { nodes: 2, families })?;
        cluster.load_images()?;
        cluster.load_mesh_images()?;
        Ok(Some(Self { cluster, _alone: alone }))
    }
}
