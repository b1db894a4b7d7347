//! The images of a cluster, as OCI archives in target/images.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::oci::{Entry, Image};
use crate::{cluster, repo};

/// Where archives are put.
pub fn folder() -> Result<PathBuf> {
    let folder = repo::target().join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The image of a pod's sandbox; returns its archive.
pub fn pause() -> Result<PathBuf> {
    let program = cluster::folder_of("pause")?.join("pause");
    let image = Image {
        name: "localhost/pause:1".into(),
        entrypoint: vec!["/pause".into()],
        user: "65535:65535".into(),
        root: [(PathBuf::from("pause"), Entry::File { from: program, mode: 0o755 })].into(),
        ..Image::default()
    };
    let file = folder()?.join("pause.tar");
    image.write(&file)?;
    Ok(file)
}
