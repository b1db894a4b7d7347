//! Writes OCI image archives: reproducible, one layer, without a registry or an engine.
//!
//! An archive is an image layout (OCI image specification 1.1, image-layout.md) in a tar file, with the `manifest.json`
//! that `docker load` looks for beside it; containerd, docker and skopeo read it. Same content, same bytes: entries are
//! sorted, and all of them are root's and of the epoch.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An image to be written.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Its name with a tag: `localhost/pause:1`.
    pub name: String,
    /// What is started.
    pub entrypoint: Vec<String>,
    /// `UID:GID`, or empty for root.
    pub user: String,
    /// When it was made, in RFC 3339; empty for not said.
    pub created: String,
    /// How hard its layer is compressed, 0 (not at all) to 9.
    pub compression: u32,
    /// Labels (OCI image specification, annotations.md).
    pub labels: BTreeMap<String, String>,
    /// Its root file system, by path without a leading slash.
    pub root: BTreeMap<PathBuf, Entry>,
}

/// One entry of a root file system.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A file that is read when the image is written.
    File {
        /// From where.
        from: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file with these bytes.
    Bytes {
        /// What is in it.
        bytes: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link(PathBuf),
    /// A folder.
    Folder {
        /// Its permissions.
        mode: u32,
    },
}

/// `PATH` in a container.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A blob, and by what it is referred to.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

impl Image {
    /// Writes the archive to `file`, by rename; returns the manifest's digest.
    pub fn write(&self, file: &Path) -> Result<String> {
        let layer = self.layer()?;
        let diff = digest(&layer);
        let layer = Blob::new(compressed(&layer, self.compression)?);
        let config = Blob::json(&self.config(&diff));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG), "layers": [layer.descriptor(LAYER)],
        }));
        let (_, tag) = self.name.rsplit_once(':').with_context(|| format!("{} has no tag", self.name))?;
        let mut descriptor = manifest.descriptor(MANIFEST);
        descriptor["annotations"] =
            json!({ "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag });
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
        });
        let docker = json!([{ "Config": config.path(), "RepoTags": [self.name], "Layers": [layer.path()] }]);
        let fresh = file.with_extension(format!("{}.fresh", std::process::id()));
        let written = File::create(&fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
        let mut archive = Builder::new(written);
        append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut archive, "index.json", index.to_string().as_bytes())?;
        append(&mut archive, "manifest.json", docker.to_string().as_bytes())?;
        for blob in [&config, &manifest, &layer] {
            append(&mut archive, &blob.path(), &blob.bytes)?;
        }
        archive.into_inner().and_then(|mut file| file.flush()).context("cannot finish the archive")?;
        fs::rename(&fresh, file).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(format!("sha256:{}", manifest.digest))
    }

    /// OCI image specification, config.md.
    fn config(&self, diff: &str) -> Value {
        let mut config = json!({ "Env": [PATH], "Entrypoint": self.entrypoint });
        if !self.user.is_empty() {
            config["User"] = self.user.as_str().into();
        }
        if !self.labels.is_empty() {
            config["Labels"] = json!(self.labels);
        }
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut image = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
        });
        if !self.created.is_empty() {
            image["created"] = self.created.as_str().into();
        }
        image
    }

    /// The root file system as a tar file; folders that only paths name are made, before what is in them.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut root: BTreeMap<&Path, Option<&Entry>> = BTreeMap::new();
        for (path, entry) in &self.root {
            for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
                root.entry(parent).or_insert(None);
            }
            root.insert(path, Some(entry));
        }
        let mut layer = Builder::new(Vec::new());
        for (path, entry) in root {
            add(&mut layer, path, entry)
                .with_context(|| format!("cannot put {} into the layer", path.display()))?;
        }
        layer.into_inner().context("cannot finish the layer")
    }
}

fn add(layer: &mut Builder<Vec<u8>>, path: &Path, entry: Option<&Entry>) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    let bytes = match entry {
        None => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            Vec::new()
        }
        Some(Entry::Folder { mode }) => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            Vec::new()
        }
        Some(Entry::Link(to)) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            return layer.append_link(&mut header, path, to).context("a link");
        }
        Some(Entry::File { from, mode }) => {
            header.set_mode(*mode);
            fs::read(from).with_context(|| format!("cannot read {}", from.display()))?
        }
        Some(Entry::Bytes { bytes, mode }) => {
            header.set_mode(*mode);
            bytes.clone()
        }
    };
    header.set_size(u64::try_from(bytes.len()).context("a file's length")?);
    layer.append_data(&mut header, path, bytes.as_slice()).context("a file")
}

fn append(archive: &mut Builder<File>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_mode(0o644);
    header.set_size(u64::try_from(bytes.len()).context("a blob's length")?);
    archive.append_data(&mut header, path, bytes).with_context(|| format!("cannot write {path}"))
}

/// Without a name and a time in its header.
fn compressed(bytes: &[u8], level: u32) -> Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(level));
    gzip.write_all(bytes).and_then(|()| gzip.finish()).context("cannot compress the layer")
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let root = [
            (PathBuf::from("usr/bin/app"), Entry::Bytes { bytes: b"#!app".to_vec(), mode: 0o755 }),
            (PathBuf::from("bin"), Entry::Link("usr/bin".into())),
            (PathBuf::from("tmp"), Entry::Folder { mode: 0o1777 }),
        ];
        Image {
            name: "localhost/app:1".into(),
            entrypoint: vec!["/bin/app".into()],
            user: "65532:65532".into(),
            created: "2026-01-01T00:00:00Z".into(),
            compression: 9,
            labels: [("org.opencontainers.image.version".to_owned(), "1".to_owned())].into(),
            root: root.into(),
        }
    }

    #[test]
    fn the_same_content_is_the_same_archive() {
        let folder = std::env::temp_dir().join(format!("adit-oci-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let files = ["one", "two"].map(|name| folder.join(name));
        let digests = files.clone().map(|file| image().write(&file).unwrap());
        assert_eq!(digests[0], digests[1]);
        let [one, two] = files.map(|file| fs::read(file).unwrap());
        assert!(one == two);
        let mut other = image();
        other.labels.clear();
        assert_ne!(other.write(&folder.join("three")).unwrap(), digests[0]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_layer_has_the_folders_before_what_is_in_them_and_all_of_it_is_roots() {
        let layer = image().layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, 0));
            found.push(format!("{:o} {}", header.mode().unwrap(), entry.path().unwrap().display()));
        }
        assert_eq!(found, ["777 bin", "1777 tmp", "755 usr", "755 usr/bin", "755 usr/bin/app"]);
    }
}
