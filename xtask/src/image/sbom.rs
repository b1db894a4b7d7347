//! What is in an image, as an SPDX 2.3 document: Debian packages with their versions and hashes, and the crates that are
//! compiled into our programs with those that Cargo.lock has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::debian::{Package, hex};
use crate::repo;

/// A crate that is compiled in.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Crate {
    name: String,
    version: String,
    /// Of its archive, in hex; none for those of this checkout.
    sha256: Option<String>,
}

/// What is compiled into these packages of the workspace.
pub(super) fn crates(of: &[&str]) -> Result<BTreeSet<Crate>> {
    let lock = fs::read_to_string(repo::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let hashes = hashes(&lock);
    let mut cargo = repo::cargo();
    cargo.args(["tree", "--locked", "-e", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    cargo.args(of.iter().flat_map(|package| ["-p", package]));
    let said = repo::output(&mut cargo)?;
    let found = said.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        let version = rest.split(' ').next()?;
        let sha256 = hashes.get(&(name, version)).map(|hash| (*hash).to_owned());
        Some(Crate { name: name.to_owned(), version: version.to_owned(), sha256 })
    });
    Ok(found.collect())
}

/// `(name, version)` to the hash, of each `[[package]]` that has one.
fn hashes(lock: &str) -> BTreeMap<(&str, &str), &str> {
    lock.split("[[package]]")
        .filter_map(|package| {
            let field = |key: &str| package.split_once(key)?.1.split('"').next();
            Some(((field("\nname = \"")?, field("\nversion = \"")?), field("\nchecksum = \"")?))
        })
        .collect()
}

/// The document. `created` is in RFC 3339.
pub(super) fn document(
    title: &str,
    version: &str,
    created: &str,
    packages: &[Package],
    crates: &BTreeSet<Crate>,
) -> Value {
    let debian = packages.iter().map(|package| {
        let purl = format!(
            "pkg:deb/debian/{}@{}?arch={}",
            package.name,
            escaped(&package.version),
            package.architecture
        );
        part(
            &format!("deb-{}", package.name),
            (&package.name, &package.version),
            Some(&package.sha256),
            &purl,
        )
    });
    let rust = crates.iter().map(|of| {
        let purl = format!("pkg:cargo/{}@{}", of.name, escaped(&of.version));
        let id = format!("cargo-{}-{}", of.name, of.version);
        part(&id, (&of.name, &of.version), of.sha256.as_deref(), &purl)
    });
    let mut parts: Vec<Value> = debian.chain(rust).collect();
    let contents = hex(Value::Array(parts.clone()).to_string().as_bytes());
    let whole = "SPDXRef-image";
    let relation = |from: &str, kind: &str, to: &Value| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to });
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", &whole.into())];
    relations.extend(parts.iter().map(|part| relation(whole, "CONTAINS", &part["SPDXID"])));
    let mut image = part("image", (title, version), None, &format!("pkg:oci/{title}@{}", escaped(version)));
    image["licenseDeclared"] = "Apache-2.0".into();
    parts.insert(0, image);
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{title}-{version}"),
        "documentNamespace": format!("https://adit.dev/spdx/{title}-{version}-{}", &contents[..16]),
        "creationInfo": { "created": created, "creators": ["Tool: cargo xtask image"] },
        "packages": parts, "relationships": relations,
    })
}

fn part(id: &str, (name, version): (&str, &str), sha256: Option<&str>, purl: &str) -> Value {
    // Letters, digits, `.` and `-` only.
    let id: String =
        id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let mut part = json!({
        "SPDXID": format!("SPDXRef-{id}"), "name": name, "versionInfo": version,
        "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
        "externalRefs": [{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl }],
    });
    if let Some(sha256) = sha256 {
        part["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    }
    part
}

/// As a version is written in a package URL.
fn escaped(version: &str) -> String {
    version.replace('+', "%2B").replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"adit\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"h2\"\n\
                    version = \"0.4.20\"\nsource = \"registry\"\nchecksum = \"ab12\"\n";
        assert_eq!(hashes(lock), BTreeMap::from([(("h2", "0.4.20"), "ab12")]));
    }

    #[test]
    fn a_document_names_each_part_with_its_hash_and_says_that_the_image_contains_it() {
        let package = Package {
            name: "libc6".into(),
            version: "2:1+deb12u1".into(),
            architecture: "amd64".into(),
            sha256: "cd34".into(),
            control: String::new(),
            folder: "/".into(),
        };
        let rust = Crate { name: "h2".into(), version: "0.4.20".into(), sha256: Some("ab12".into()) };
        let said = document("adit-ca", "1", "2026-01-01T00:00:00Z", &[package], &[rust].into());
        let text = said.to_string();
        for part in [
            "\"pkg:deb/debian/libc6@2%3A1%2Bdeb12u1?arch=amd64\"",
            "\"checksumValue\":\"cd34\"",
            "\"checksumValue\":\"ab12\"",
            "\"SPDXRef-cargo-h2-0.4.20\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(said["packages"].as_array().unwrap().len(), 3);
        assert_eq!(said["relationships"].as_array().unwrap().len(), 3);
    }
}
