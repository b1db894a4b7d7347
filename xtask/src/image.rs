//! Images as OCI archives, without an engine, a registry or a base image: our programs, and of Debian's packages what
//! they need.
//!
//! `cargo xtask image` makes those of a release. Same packages, same commit, same toolchain: same digest; versions and hashes
//! of all that is in an image stand in its label `dev.adit.packages` and in its SPDX document.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::oci::{Entry, Image};
use crate::programs::What;
use crate::{cluster, packages, programs, repo};

mod contents;
mod debian;
mod root;
mod sbom;

use contents::Contents;

/// The release, in an image's tag and labels.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Where the source is said to be.
const SOURCE: &str = "https://adit.dev";

/// Where archives are put unless told otherwise.
pub fn folder() -> Result<PathBuf> {
    made(repo::target().join("images"))
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

/// How the programs of images are built.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Profile {
    /// As they are shipped.
    Release,
    /// As tests run them, and with an image of applications for tests.
    It,
}

/// `cargo xtask image`: builds the programs, and writes their images into `out`.
pub fn make(profile: Profile, out: Option<&Path>) -> Result<()> {
    packages::ensure(&packages::IMAGE)?;
    if profile == Profile::It {
        programs::build(What::Programs)?;
        return for_tests(out).map(drop);
    }
    let out = made(out.map_or_else(folder, |out| Ok(out.to_owned()))?)?;
    let programs = build_shipped()?;
    let stamp = Stamp::read(9)?;
    for contents in [contents::agent(&programs)?, contents::ca(&programs)?] {
        write(contents, &stamp, &out)?;
    }
    Ok(())
}

fn made(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The images of a mesh in a test cluster, of programs that are built in the profile `it`: those of a release, and one with
/// applications. In `out`, or target/images/it. Returns the archives.
pub fn for_tests(out: Option<&Path>) -> Result<Vec<PathBuf>> {
    packages::ensure(&packages::IMAGE)?;
    let out = out.map_or_else(|| Ok(folder()?.join("it")), |out| Ok::<_, anyhow::Error>(out.to_owned()))?;
    let programs = made(out.join("programs"))?;
    for program in ["adit-agent", "adit-ca", "adit-cni", "app"] {
        // Line numbers are ten times what is loaded into every node.
        let (from, to) = (repo::programs().join(program), programs.join(program));
        repo::run(Command::new("strip").arg("--strip-debug").arg("-o").args([&to, &from]))?;
    }
    // They are unpacked on this machine at once.
    let stamp = Stamp::read(0)?;
    [contents::agent(&programs)?, contents::ca(&programs)?, contents::apps(&programs)?]
        .into_iter()
        .map(|contents| write(contents, &stamp, &out))
        .collect()
}

/// Builds what is shipped for an image: no path of this machine is in it. Returns the folder.
fn build_shipped() -> Result<PathBuf> {
    // A folder of its own: the flags would have what `cargo xtask bench` measures built anew each time.
    let target = repo::target().join("image");
    let mut cargo = repo::cargo();
    cargo.args(["build", "--locked", "--profile", What::Shipped.profile()]);
    cargo.args(["-p", "adit-agent", "-p", "adit-ca", "-p", "adit-cni", "--bins"]);
    cargo.arg("--target-dir").arg(&target);
    let mut hidden = vec![(repo::root().to_owned(), "/adit")];
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    if let Some(home) = home {
        let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten();
        hidden.extend(registries.filter_map(|entry| Some((entry.ok()?.path(), "/crates"))));
    }
    let of = |flag: &str| {
        hidden.iter().map(|(from, to)| format!("{flag}={}={to}", from.display())).collect::<Vec<_>>()
    };
    cargo.env("CARGO_ENCODED_RUSTFLAGS", of("--remap-path-prefix").join("\u{1f}"));
    cargo.env("CFLAGS", of("-ffile-prefix-map").join(" "));
    // C compilers take `__DATE__` and `__TIME__` from it. Always the same, as what is built already is not built anew.
    cargo.env("SOURCE_DATE_EPOCH", "0");
    println!("building what is shipped …");
    let started = Instant::now();
    repo::run(&mut cargo)?;
    println!("built in {:.1} s", started.elapsed().as_secs_f64());
    Ok(target.join(What::Shipped.profile()))
}

/// When, of what and how an image is made.
struct Stamp {
    /// RFC 3339: `SOURCE_DATE_EPOCH`, else the commit's date, else the epoch.
    created: String,
    /// The commit; `-dirty` where files differ from it.
    revision: String,
    /// How hard it is compressed, 0 to 9.
    compression: u32,
}

impl Stamp {
    fn read(compression: u32) -> Result<Self> {
        let git = |args: &[&str]| {
            let said = Command::new("git").args(args).current_dir(repo::root()).output().ok()?;
            let said = String::from_utf8(said.stdout).ok().filter(|_| said.status.success())?;
            Some(said.trim().to_owned())
        };
        let seconds = env::var("SOURCE_DATE_EPOCH").ok().or_else(|| git(&["log", "-1", "--format=%ct"]));
        let seconds: u64 = match seconds {
            None => 0,
            Some(seconds) => seconds.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {seconds:?}"))?,
        };
        let created = repo::output(Command::new("date").args([
            "-u",
            "-d",
            &format!("@{seconds}"),
            "+%Y-%m-%dT%H:%M:%SZ",
        ]))?;
        let is_dirty = git(&["status", "--porcelain"]).is_some_and(|said| !said.is_empty());
        let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
        let revision = if is_dirty { format!("{commit}-dirty") } else { commit };
        Ok(Self { created: created.trim().to_owned(), revision, compression })
    }
}

fn write(contents: Contents, stamp: &Stamp, out: &Path) -> Result<PathBuf> {
    let Contents { title, description, program, user, root, crates, len_max } = contents;
    let (mut root, used) = root.finish()?;
    let document = sbom::document(title, VERSION, &stamp.created, &used, &crates);
    let bytes = format!("{document:#}\n").into_bytes();
    root.insert(format!("usr/share/sbom/{title}.spdx.json").into(), Entry::Bytes { bytes, mode: 0o644 });
    let listed: Vec<String> = used
        .iter()
        .map(|package| format!("{}={} sha256:{}", package.name, package.version, package.sha256))
        .collect();
    let labels = [
        ("org.opencontainers.image.title", title.to_owned()),
        ("org.opencontainers.image.description", description.to_owned()),
        ("org.opencontainers.image.source", SOURCE.to_owned()),
        ("org.opencontainers.image.version", VERSION.to_owned()),
        ("org.opencontainers.image.revision", stamp.revision.clone()),
        ("org.opencontainers.image.created", stamp.created.clone()),
        ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
        ("dev.adit.packages", listed.join("; ")),
    ];
    let image = Image {
        name: format!("localhost/{title}:{VERSION}"),
        entrypoint: vec![program.to_owned()],
        user: user.to_owned(),
        created: stamp.created.clone(),
        compression: stamp.compression,
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
        root,
    };
    let file = out.join(format!("{title}.tar"));
    let digest = image.write(&file)?;
    let len = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?.len();
    println!("{}: {} {digest}, {:.1} MB", file.display(), image.name, megabytes(len));
    // One that is not compressed never leaves this machine.
    if stamp.compression > 0 && len > len_max {
        bail!("{title} is {:.1} MB, and may have {:.1} at most", megabytes(len), megabytes(len_max));
    }
    Ok(file)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn megabytes(len: u64) -> f64 {
    len as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::root::Root;
    use super::*;

    fn contents(len_max: u64) -> Contents {
        let mut root = Root::of(Vec::new());
        root.put("etc/hello", Entry::Bytes { bytes: b"hello".to_vec(), mode: 0o644 });
        Contents {
            title: "hello",
            description: "Says hello",
            program: "/bin/hello",
            user: "1:1",
            root,
            crates: BTreeSet::new(),
            len_max,
        }
    }

    #[test]
    fn an_image_is_the_same_each_time_and_one_that_is_too_large_is_an_error() {
        let out = env::temp_dir().join(format!("adit-image-{}", std::process::id()));
        let stamp = Stamp { created: "2026-01-01T00:00:00Z".into(), revision: "abc".into(), compression: 0 };
        let made = ["one", "two"].map(|folder| {
            let out = out.join(folder);
            fs::create_dir_all(&out).unwrap();
            fs::read(write(contents(1_000_000), &stamp, &out).unwrap()).unwrap()
        });
        assert!(made[0] == made[1]);
        let text = String::from_utf8_lossy(&made[0]);
        for label in ["source", "version", "revision", "licenses", "title"] {
            assert!(text.contains(&format!("\"org.opencontainers.image.{label}\":")), "{label}");
        }
        let said = write(contents(100), &Stamp { compression: 9, ..stamp }, &out).unwrap_err().to_string();
        assert!(said.starts_with("hello is 0.0 MB"), "{said}");
        fs::remove_dir_all(&out).unwrap();
    }

    #[test]
    fn a_commits_date_is_said_in_utc() {
        let stamp = Stamp::read(0).unwrap();
        assert!(stamp.created.ends_with('Z') && stamp.created.len() == 20, "{}", stamp.created);
    }
}
