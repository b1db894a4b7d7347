//! The walls between crates, as cargo resolves them: what may never be reached, by whom.
//!
//! `cargo tree -p` is asked, not `cargo metadata`: the latter unites the features of the whole workspace, and so shows
//! a package dependencies that it has only beside others.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::violation::Violation;
use crate::repo;

/// A package and what it must never reach, directly or not.
struct Wall {
    package: &'static str,
    folder: &'static str,
    never: &'static [&'static str],
}

const ASYNC: &[&str] = &["tokio", "prost", "tonic"];
const OURS: &[&str] =
    &["adit-proto", "adit-core", "adit-objects", "adit-agent", "adit", "adit-ca", "adit-cni", "adit-tests"];

const WALLS: [Wall; 8] = [
    Wall { package: "adit-core", folder: "agent/core", never: ASYNC },
    Wall { package: "adit-objects", folder: "agent/objects", never: ASYNC },
    Wall { package: "adit-cni", folder: "cni-plugin", never: ASYNC },
    Wall { package: "adit-proto", folder: "proto", never: ASYNC },
    Wall { package: "adit-ca", folder: "ca", never: &["adit-agent"] },
    Wall { package: "adit-cni", folder: "cni-plugin", never: &["adit-agent", "adit-core", "adit-objects"] },
    Wall { package: "adit", folder: "agent/cli", never: &["adit-agent"] },
    Wall { package: "xtask", folder: "xtask", never: OURS },
];

/// All that adit-proto may depend on.
const PROTO_MAY: [&str; 3] = ["serde", "serde_json", "thiserror"];

/// Checks every wall, and that no package has a dependency on both providers of cryptography.
pub fn check(_root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for wall in WALLS {
        let manifest = Path::new(wall.folder).join("Cargo.toml");
        let reached = dependencies(wall.package, None)?;
        for never in wall.never.iter().filter(|never| reached.contains(**never)) {
            found.push(Violation::new(
                &manifest,
                0,
                format!("{} must never depend on {never}", wall.package),
            ));
        }
    }
    for direct in dependencies("adit-proto", Some(1))? {
        if !PROTO_MAY.contains(&direct.as_str()) {
            let what = format!("adit-proto may depend on {} only, not on {direct}", PROTO_MAY.join(", "));
            found.push(Violation::new(Path::new("proto/Cargo.toml"), 0, what));
        }
    }
    Ok(found)
}

/// The names of what `package` depends on, to `depth`; its tests' own dependencies excepted.
fn dependencies(package: &str, depth: Option<u8>) -> Result<BTreeSet<String>> {
    let mut cargo = repo::cargo();
    cargo.args([
        "tree",
        "--offline",
        "-p",
        package,
        "-e",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    if let Some(depth) = depth {
        cargo.args(["--depth", &depth.to_string()]);
    }
    let names = repo::output(&mut cargo)?;
    Ok(names
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && *name != package)
        .map(str::to_owned)
        .collect())
}
