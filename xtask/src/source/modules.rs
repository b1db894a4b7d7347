//! The module tree of each crate of ours, by its `mod` declarations, from the roots that cargo names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::file::File;
use super::lexer::words_after;
use crate::repo;

/// A crate: one target of a package.
#[derive(Clone, Debug)]
pub struct Crate {
    /// The package's name.
    pub package: String,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// Every module that has a file of its own; the root first.
    pub modules: Vec<Module>,
}

/// A module with a file of its own.
#[derive(Clone, Debug)]
pub struct Module {
    /// Segments below the crate's root; empty for the root.
    pub path: Vec<String>,
    /// Its file.
    pub file: File,
    /// Whether it is compiled for tests only.
    pub test_only: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

/// Every crate of the workspace.
pub fn crates(root: &Path) -> Result<Vec<Crate>> {
    let json =
        repo::output(repo::cargo().args(["metadata", "--no-deps", "--offline", "--format-version", "1"]))?;
    let metadata: Metadata =
        serde_json::from_str(&json).context("cargo metadata printed what is not its JSON")?;
    let mut found = Vec::new();
    for package in metadata.packages {
        for target in package.targets {
            let path = target.src_path.strip_prefix(root).context("a target outside the checkout")?;
            let kind = target.kind.first().cloned().unwrap_or_default();
            let mut modules = Vec::new();
            let test_only = kind == "test";
            let entry = Module { path: Vec::new(), file: File::read(root, path)?, test_only };
            // The root's modules lie beside it, another file's in the folder of its own name.
            let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
            collect(root, entry, &folder, &mut modules)?;
            found.push(Crate { package: package.name.clone(), kind, modules });
        }
    }
    Ok(found)
}

fn collect(root: &Path, module: Module, folder: &Path, modules: &mut Vec<Module>) -> Result<()> {
    let shipped = module.file.text.code_without_tests();
    let declared = declarations(&module.file.text.code, &module.file.text.whole);
    let (path, test_only) = (module.path.clone(), module.test_only);
    let beside = module.file.path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    modules.push(module);
    for declaration in declared {
        let Declaration { at, name, file } = declaration;
        let candidates = match file {
            Some(named) => vec![beside.join(named)],
            None => vec![folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")],
        };
        let Some(found) = candidates.into_iter().find(|path| root.join(path).is_file()) else {
            continue; // rustc says it better
        };
        let test_only = test_only || shipped[at..].starts_with(' ');
        let child = Module {
            path: [path.clone(), vec![name.clone()]].concat(),
            file: File::read(root, &found)?,
            test_only,
        };
        collect(root, child, &folder.join(&name), modules)?;
    }
    Ok(())
}

/// A `mod name;`.
struct Declaration {
    at: usize,
    name: String,
    /// The file that a `#[path = "…"]` names, from the folder of the declaring file.
    file: Option<String>,
}

fn declarations(code: &str, whole: &str) -> Vec<Declaration> {
    words_after(code, "mod")
        .into_iter()
        .filter(|(at, name)| {
            let after = code[*at..].trim_start_matches("mod").trim_start();
            after.trim_start_matches("r#")[name.len()..].starts_with(';')
        })
        .map(|(at, name)| {
            // Its attributes begin where the item before it ends.
            let begin = code[..at].rfind([';', '}']).map_or(0, |end| end + 1);
            let attribute = whole[begin..at].split_once("#[path = \"");
            let file = attribute.and_then(|(_, rest)| rest.split('"').next());
            Declaration { at, name, file: file.map(str::to_owned) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Text;

    #[test]
    fn a_module_is_found_by_its_name_raw_or_not_and_by_its_path() {
        let text = Text::split(
            "mod a;\n#[path = \"b/gen.rs\"]\n#[expect(x, reason = \"y\")]\nmod r#gen;\nmod c { }\n",
        );
        let found: Vec<(String, Option<String>)> =
            declarations(&text.code, &text.whole).into_iter().map(|found| (found.name, found.file)).collect();
        assert_eq!(found, [("a".to_owned(), None), ("gen".to_owned(), Some("b/gen.rs".to_owned()))]);
    }
}
