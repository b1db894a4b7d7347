//! Where the programs of a cluster lie: `cargo xtask cluster` and `cargo xtask test` find or build them, and say so in the
//! environment.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The variable with one folder for each set of programs, `SET=FOLDER` joined by `:`.
const VARIABLE: &str = "ADIT_CLUSTER_PROGRAMS";

/// The variable with the OCI archives that nodes are given, joined by `:`.
const IMAGES: &str = "ADIT_CLUSTER_IMAGES";

/// The variable with those of a mesh, and of applications for its tests.
const MESH_IMAGES: &str = "ADIT_CLUSTER_MESH_IMAGES";

/// The folders of a cluster's programs.
#[derive(Clone, Debug)]
pub struct Programs {
    images: Vec<PathBuf>,
    mesh_images: Vec<PathBuf>,
    kubernetes: PathBuf,
    etcd: PathBuf,
    containerd: PathBuf,
    plugins: PathBuf,
    runc: PathBuf,
    coredns: PathBuf,
    pause: PathBuf,
}

impl Programs {
    /// Those that the environment names.
    pub fn find() -> Result<Self> {
        let said = env::var(VARIABLE).with_context(|| {
            format!(
                "{VARIABLE} is not set: a cluster is started by `cargo xtask cluster` or `cargo xtask test`"
            )
        })?;
        let images = |variable| env::split_paths(&env::var_os(variable).unwrap_or_default()).collect();
        Ok(Self { images: images(IMAGES), mesh_images: images(MESH_IMAGES), ..Self::parse(&said)? })
    }

    fn parse(said: &str) -> Result<Self> {
        let of = |set: &str| -> Result<PathBuf> {
            let found =
                said.split(':').filter_map(|word| word.split_once('=')).find(|(name, _)| *name == set);
            let (_, folder) = found.with_context(|| format!("{VARIABLE} names no {set}: {said}"))?;
            ensure!(folder.starts_with('/'), "{VARIABLE} names {set} by no absolute path: {folder}");
            Ok(PathBuf::from(folder))
        };
        Ok(Self {
            images: Vec::new(),
            mesh_images: Vec::new(),
            kubernetes: of("kubernetes")?,
            etcd: of("etcd")?,
            containerd: of("containerd")?,
            plugins: of("plugins")?,
            runc: of("runc")?,
            coredns: of("coredns")?,
            pause: of("pause")?,
        })
    }

    /// The archives of images.
    pub fn images(&self) -> &[PathBuf] {
        &self.images
    }

    /// The archives of a mesh's images.
    pub fn mesh_images(&self) -> Result<&[PathBuf]> {
        ensure!(
            !self.mesh_images.is_empty(),
            "{MESH_IMAGES} is not set: `cargo xtask` makes a mesh's images"
        );
        Ok(&self.mesh_images)
    }

    /// A program of Kubernetes itself.
    pub fn kubernetes(&self, program: &str) -> PathBuf {
        self.kubernetes.join(program)
    }

    /// `etcd`.
    pub fn etcd(&self) -> PathBuf {
        self.etcd.join("etcd")
    }

    /// A program of containerd's.
    pub fn containerd(&self, program: &str) -> PathBuf {
        self.containerd.join(program)
    }

    /// The folder of containerd's programs: it looks for its shim on the PATH.
    pub fn containerd_folder(&self) -> &Path {
        &self.containerd
    }

    /// The folder of the CNI plugins.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }

    /// `runc`.
    pub fn runc(&self) -> PathBuf {
        self.runc.join("runc")
    }

    /// `coredns`.
    pub fn coredns(&self) -> PathBuf {
        self.coredns.join("coredns")
    }

    /// `pause`.
    pub fn pause(&self) -> PathBuf {
        self.pause.join("pause")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_has_its_folder_and_a_missing_one_is_named() {
        let all = "kubernetes=/k:etcd=/e:containerd=/c:plugins=/p:runc=/r:coredns=/d:pause=/z";
        let programs = Programs::parse(all).unwrap();
        assert_eq!(programs.kubernetes("kubelet"), Path::new("/k/kubelet"));
        assert_eq!(programs.runc(), Path::new("/r/runc"));
        let said = Programs::parse(&all.replace("runc=/r:", "")).unwrap_err().to_string();
        assert!(said.contains("names no runc"), "{said}");
        let said = Programs::parse(&all.replace("runc=/r", "runc=r")).unwrap_err().to_string();
        assert!(said.contains("no absolute path: r"), "{said}");
    }
}
