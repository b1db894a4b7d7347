//! Debian packages, fetched and unpacked without being installed.
//!
//! What apt knows of on this machine is taken: version and SHA-256 of each package are what its signed lists say, and a
//! file that differs is refused. Fetched and unpacked once, below target/images/debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::folder;
use crate::repo;

/// A package, unpacked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Package {
    /// Its name.
    pub(super) name: String,
    /// Its version, as Debian writes it.
    pub(super) version: String,
    /// For which machines.
    pub(super) architecture: String,
    /// SHA-256 of the package, in hex.
    pub(super) sha256: String,
    /// What the package says of itself.
    pub(super) control: String,
    /// Where it is unpacked.
    pub(super) folder: PathBuf,
}

/// What apt says of a package's file.
#[derive(Debug, Eq, PartialEq)]
struct Announced {
    file: String,
    sha256: String,
}

/// These packages, and every one with libraries that they need, directly or not.
pub(super) fn fetch(names: &[&str]) -> Result<Vec<Package>> {
    let folder = folder()?.join("debian");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let closure = match closure(names) {
        Ok(closure) => closure,
        // A machine whose lists of packages were never fetched, or removed to save room.
        Err(_) => {
            repo::run(apt_get(&folder).args(["update", "-q"]))?;
            closure(names)?
        }
    };
    // Elsewhere: of a file that is there already it says nothing.
    let said = repo::output(apt_get(Path::new("/")).args(["--print-uris", "download"]).args(&closure))?;
    let announced: Vec<Announced> = said.lines().filter_map(Announced::parse).collect();
    ensure!(announced.len() == closure.len(), "apt knows only {} of {closure:?}", announced.len());
    let missing: Vec<&String> = closure
        .iter()
        .filter(|name| !announced.iter().any(|file| file.is_of(name) && file.is_there(&folder)))
        .collect();
    if !missing.is_empty() {
        println!("fetching {} Debian packages …", missing.len());
        repo::run(apt_get(&folder).args(["download", "-q"]).args(missing))?;
    }
    let packages = announced.iter().map(|file| file.unpacked(&folder));
    let mut packages: Vec<Package> = packages.collect::<Result<_>>()?;
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(packages)
}

fn apt_get(folder: &Path) -> Command {
    let mut command = Command::new("apt-get");
    // Otherwise it complains that its own user cannot write here.
    command.args(["-o", "APT::Sandbox::User=root"]).current_dir(folder);
    command
}

/// The names themselves, and those of libraries among all that they depend on.
fn closure(names: &[&str]) -> Result<Vec<String>> {
    let mut apt = Command::new("apt-cache");
    apt.args(["depends", "--recurse"]);
    apt.args(
        ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"]
            .map(|not| format!("--no-{not}")),
    );
    let said = repo::output(apt.args(names))?;
    let mut closure: Vec<String> =
        said.lines().filter(|line| names.contains(line) || is_library(line)).map(str::to_owned).collect();
    for name in names {
        ensure!(closure.iter().any(|known| known == name), "apt knows no package {name}");
    }
    closure.sort();
    closure.dedup();
    Ok(closure)
}

/// By its name. The licence of GCC's library lies in the package of GCC's version.
fn is_library(package: &str) -> bool {
    (package.starts_with("lib") && !package.contains("perl"))
        || package == "zlib1g"
        || (package.starts_with("gcc-") && package.ends_with("-base"))
}

impl Announced {
    /// `'URL' FILE BYTES SHA256:HEX`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ').skip(1);
        let (file, sha256) = (words.next()?, words.nth(1)?.strip_prefix("SHA256:")?);
        let is_plain = file.ends_with(".deb") && !file.contains('/');
        is_plain.then(|| Self { file: file.to_owned(), sha256: sha256.to_owned() })
    }

    fn is_of(&self, package: &str) -> bool {
        self.file.split('_').next() == Some(package)
    }

    fn is_there(&self, folder: &Path) -> bool {
        fs::read(folder.join(&self.file)).is_ok_and(|bytes| hex(&bytes) == self.sha256)
    }

    fn unpacked(&self, all: &Path) -> Result<Package> {
        let file = all.join(&self.file);
        ensure!(self.is_there(all), "{} is not what apt's lists say", file.display());
        let folder = all.join(&self.sha256);
        if !folder.is_dir() {
            // Under another name first: one that was interrupted must not look whole.
            let fresh = all.join(format!(".{}.{}", self.sha256, std::process::id()));
            repo::run(Command::new("dpkg-deb").arg("-x").args([&file, &fresh]))?;
            match fs::rename(&fresh, &folder) {
                Err(_) if folder.is_dir() => fs::remove_dir_all(&fresh).context("cannot tidy up")?,
                renamed => renamed.with_context(|| format!("cannot make {}", folder.display()))?,
            }
        }
        let control = repo::output(Command::new("dpkg-deb").arg("-f").arg(&file))?;
        let of = |field: &str| -> Result<String> {
            let line = control.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
            line.map(str::to_owned).with_context(|| format!("{} says no {field}", file.display()))
        };
        Ok(Package {
            name: of("Package")?,
            version: of("Version")?,
            architecture: of("Architecture")?,
            sha256: self.sha256.clone(),
            control: control.clone(),
            folder,
        })
    }
}

/// SHA-256 in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Package {
    /// Its licences' text: its own file, or that of the package whose folder of documents it shares.
    pub(super) fn copyright(&self, all: &[Self]) -> Result<Vec<u8>> {
        let documents = |of: &Self, name: &str| of.folder.join("usr/share/doc").join(name);
        let own = documents(self, &self.name);
        let file = match fs::read_link(&own) {
            Err(_) => own.join("copyright"),
            Ok(shared) => {
                let name = shared.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                match all.iter().find(|package| package.name == name) {
                    Some(package) => documents(package, name).join("copyright"),
                    None => bail!("the licence of {} is in {name}, which was not fetched", self.name),
                }
            }
        };
        fs::read(&file)
            .with_context(|| format!("cannot read the licence of {}: {}", self.name, file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_announces_is_read_and_what_else_it_prints_is_not() {
        let line = "'http://deb.debian.org/pool/b/busybox-static_1%3a1.35.0-4%2bb1_amd64.deb' \
                    busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:3d3f";
        let file = "busybox-static_1%3a1.35.0-4+b1_amd64.deb".to_owned();
        let announced = Announced::parse(line).unwrap();
        assert_eq!(announced, Announced { file, sha256: "3d3f".into() });
        assert!(announced.is_of("busybox-static") && !announced.is_of("busybox"));
        for other in ["Reading package lists...", "'u' x.deb 1 MD5Sum:aa", "'u' ../x.deb 1 SHA256:aa", ""] {
            assert_eq!(Announced::parse(other), None, "{other}");
        }
    }

    #[test]
    fn libraries_are_told_by_their_names() {
        for (package, is) in [
            ("libc6", true),
            ("zlib1g", true),
            ("gcc-12-base", true),
            ("gcc-12", false),
            ("libperl5.36", false),
            ("netbase", false),
        ] {
            assert_eq!(is_library(package), is, "{package}");
        }
    }
}
