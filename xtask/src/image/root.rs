//! A root file system out of Debian packages and of our own programs, with the shared libraries that these need and
//! nothing else: no shell, no package manager.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian::Package;
use crate::oci::Entry;
use crate::repo;

/// A root file system in the making.
pub(super) struct Root {
    packages: Vec<Package>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Of which packages something is in it, by position.
    used: BTreeSet<usize>,
    /// Programs and libraries whose own libraries are not looked for yet.
    unlinked: Vec<PathBuf>,
}

/// Where Debian's older folders lead; in the packages themselves they are folders still.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

impl Root {
    /// With nothing in it yet.
    pub(super) fn of(packages: Vec<Package>) -> Self {
        let mut root =
            Self { packages, entries: BTreeMap::new(), used: BTreeSet::new(), unlinked: Vec::new() };
        for name in MERGED {
            root.entries.insert(name.into(), Entry::Link(Path::new("usr").join(name)));
            root.entries.insert(Path::new("usr").join(name), Entry::Folder { mode: 0o755 });
        }
        root
    }

    /// Puts in what nobody packaged.
    pub(super) fn put(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.into(), entry);
    }

    /// Puts in a program of ours, and asks for its libraries.
    pub(super) fn program(&mut self, path: &str, from: &Path) {
        self.unlinked.push(from.to_owned());
        self.put(path, Entry::File { from: from.to_owned(), mode: 0o755 });
    }

    /// Takes what `wanted` says of a package, by path without a leading slash; an error if that is nothing.
    pub(super) fn take(&mut self, package: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let at = self.packages.iter().position(|known| known.name == package);
        let at = at.with_context(|| format!("package {package} was not fetched"))?;
        let folder = self.packages[at].folder.clone();
        let paths: Vec<PathBuf> =
            files(&folder)?.into_iter().filter(|path| wanted(&merged(path).to_string_lossy())).collect();
        if paths.is_empty() {
            bail!("package {package} has nothing of what is wanted of it");
        }
        for path in paths {
            self.take_file(at, &path)?;
        }
        Ok(())
    }

    fn take_file(&mut self, package: usize, path: &Path) -> Result<()> {
        self.used.insert(package);
        let from = self.packages[package].folder.join(path);
        let meta = fs::symlink_metadata(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let entry = if meta.is_symlink() {
            Entry::Link(fs::read_link(&from).with_context(|| format!("cannot read {}", from.display()))?)
        } else {
            self.unlinked.push(from.clone());
            Entry::File { from, mode: meta.permissions().mode() & 0o755 }
        };
        self.entries.insert(merged(path), entry);
        Ok(())
    }

    /// Adds every shared library that is needed, until none is missing; then the licences of all that was taken.
    pub(super) fn finish(mut self) -> Result<(BTreeMap<PathBuf, Entry>, Vec<Package>)> {
        let libraries = self.libraries()?;
        let mut found = BTreeSet::new();
        while !self.unlinked.is_empty() {
            for name in needed(&std::mem::take(&mut self.unlinked))? {
                if !found.insert(name.clone()) {
                    continue;
                }
                let places = libraries.get(&name);
                for (package, path) in
                    places.with_context(|| format!("no package that was fetched has {name}"))?
                {
                    self.take_library(*package, path)?;
                }
            }
        }
        let used: Vec<Package> = self.used.iter().map(|at| self.packages[*at].clone()).collect();
        for package in &used {
            let bytes = package.copyright(&self.packages)?;
            let licence = format!("usr/share/doc/{}/copyright", package.name);
            self.put(&licence, Entry::Bytes { bytes, mode: 0o644 });
            // Where scanners look in images that have no dpkg.
            let status = format!("var/lib/dpkg/status.d/{}", package.name);
            self.put(&status, Entry::Bytes { bytes: package.control.clone().into_bytes(), mode: 0o644 });
        }
        Ok((self.entries, used))
    }

    /// A library under the name that it is asked for by, and the file that the name leads to.
    fn take_library(&mut self, package: usize, path: &Path) -> Result<()> {
        self.take_file(package, path)?;
        let from = self.packages[package].folder.join(path);
        let Ok(to) = fs::read_link(&from) else { return Ok(()) };
        // Absolute, or beside it.
        let to = match to.strip_prefix("/") {
            Ok(to) => to.to_owned(),
            Err(_) => normal(&path.parent().unwrap_or_else(|| Path::new("")).join(to)),
        };
        self.take_library(package, &to)
    }

    /// Every file of the packages that the dynamic linker would find, by name.
    fn libraries(&self) -> Result<BTreeMap<String, Vec<(usize, PathBuf)>>> {
        let mut all: BTreeMap<String, Vec<(usize, PathBuf)>> = BTreeMap::new();
        for (at, package) in self.packages.iter().enumerate() {
            for path in files(&package.folder)? {
                let folder = path.parent().map(merged).unwrap_or_default();
                let is_searched = ["usr/lib", "usr/lib64"].iter().any(|top| folder == Path::new(top))
                    || (folder.parent() == Some(Path::new("usr/lib"))
                        && folder.to_string_lossy().contains("-linux-"));
                if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| is_searched) {
                    all.entry(name.to_owned()).or_default().push((at, path));
                }
            }
        }
        Ok(all)
    }
}

/// Everything in a folder but folders, by path below it.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let here = folder.join(&below);
        for entry in fs::read_dir(&here).with_context(|| format!("cannot list {}", here.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", here.display()))?;
            let kind = entry.file_type().context("cannot tell a file's type")?;
            let path = below.join(entry.file_name());
            if kind.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

/// Where a package's file is in the image.
fn merged(path: &Path) -> PathBuf {
    if MERGED.iter().any(|name| path.starts_with(name)) {
        Path::new("usr").join(path)
    } else {
        path.to_owned()
    }
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, component| {
        if component == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(component);
        }
        normal
    })
}

/// The shared libraries that these files name, and the dynamic linker; what is no program or library names none.
fn needed(files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let are_elf = |path: &&PathBuf| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"));
    let files: Vec<&PathBuf> = files.iter().filter(are_elf).collect();
    if files.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut readelf = Command::new("readelf");
    let said = repo::output(readelf.args(["-d", "-l", "-W"]).args(files).env("LC_ALL", "C"))?;
    Ok(said.lines().filter_map(needed_in).map(str::to_owned).collect())
}

/// The one that a line of readelf's names.
fn needed_in(line: &str) -> Option<&str> {
    if let Some((_, rest)) = line.split_once("Shared library: [") {
        return rest.split(']').next();
    }
    let (_, path) = line.split_once("program interpreter: ")?;
    path.split(']').next()?.rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_dynamic_linker_are_read_off_what_readelf_says() {
        let says = |line| needed_in(line);
        assert_eq!(says(" 0x01 (NEEDED)             Shared library: [libmnl.so.0]"), Some("libmnl.so.0"));
        assert_eq!(
            says("      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]"),
            Some("ld-linux-x86-64.so.2")
        );
        assert_eq!(says(" 0x0e (SONAME)             Library soname: [libxtables.so.12]"), None);
    }

    #[test]
    fn what_packages_have_in_the_older_folders_is_put_below_usr() {
        for (path, to) in [
            ("lib/x/libc.so.6", "usr/lib/x/libc.so.6"),
            ("usr/sbin/nginx", "usr/sbin/nginx"),
            ("etc/a", "etc/a"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(to));
        }
        assert_eq!(normal(Path::new("usr/lib/x/../y/z")), Path::new("usr/lib/y/z"));
    }
}
