//! The layer table inside adit-agent: a module imports only from the rows below its own, and what the table lists.

use std::path::Path;

use anyhow::Result;

use super::violation::Violation;
use crate::source::{self, Import, Module};

/// A module's row, and which modules it may import besides itself.
struct Layer {
    module: &'static str,
    row: u8,
    /// Modules of higher rows than 0 that it may import, and of its own row where the table makes an exception.
    may_import: &'static [&'static str],
    /// Whether it may import row 0.
    row_0: bool,
}

const fn layer(module: &'static str, row: u8, may_import: &'static [&'static str], row_0: bool) -> Layer {
    Layer { module, row, may_import, row_0 }
}

/// The table of ARCHITECTURE.md. `config` is an exception by shape: it composes every component's `Config`, and only
/// `main` and `app` import it.
const LAYERS: [Layer; 19] = [
    layer("main", 6, &["app", "config"], true),
    layer(
        "app",
        5,
        &["config", "admin", "health", "pods", "dataplane", "identity", "cluster", "redirect", "node"],
        true,
    ),
    layer(
        "config",
        5,
        &["admin", "health", "pods", "dataplane", "identity", "cluster", "redirect", "node"],
        true,
    ),
    layer("admin", 4, &["pods", "dataplane", "identity", "cluster", "redirect", "node"], true),
    layer("health", 4, &["pods", "dataplane", "identity", "cluster", "redirect", "node"], true),
    layer("pods", 3, &["dataplane", "redirect", "node", "identity", "cluster"], true),
    layer("dataplane", 2, &["identity", "node"], true),
    layer("identity", 1, &[], true),
    layer("cluster", 1, &[], true),
    layer("redirect", 1, &[], true),
    layer("node", 1, &[], true),
    layer("clock", 0, &[], false),
    layer("shutdown", 0, &[], false),
    layer("view", 0, &[], false),
    layer("netns", 0, &[], false),
    layer("sockets", 0, &["netns"], false),
    layer("telemetry", 0, &["clock", "shutdown", "units"], false),
    // How configuration writes durations and sizes: below all others.
    layer("units", 0, &[], false),
    layer("lib", 0, &[], false),
];

const CRATE: &str = "adit_agent";

/// Checks every import between modules of adit-agent, tests excepted.
pub fn check(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for agent in
        source::crates(root)?.iter().filter(|krate| krate.package == "adit-agent" && krate.kind != "test")
    {
        for module in agent.modules.iter().filter(|module| !module.test_only && !module.file.is_generated()) {
            found.extend(check_module(module, if agent.kind == "bin" { "main" } else { "lib" }));
        }
    }
    Ok(found)
}

fn check_module(module: &Module, root_name: &str) -> Vec<Violation> {
    let own = module.path.first().map_or(root_name, String::as_str);
    let Some(layer) = LAYERS.iter().find(|layer| layer.module == own) else {
        return vec![Violation::new(
            &module.file.path,
            0,
            format!("module {own} has no row in the layer table"),
        )];
    };
    if own == "lib" {
        return Vec::new(); // a list of modules
    }
    let code = module.file.text.code_without_tests();
    source::imports(&code, &["crate", "super", CRATE])
        .into_iter()
        .filter_map(|import| Some((top_module(&module.path, &import)?, import.line)))
        .filter_map(|(other, line)| {
            let why = refusal(layer, &other)?;
            Some(Violation::new(&module.file.path, line, why))
        })
        .collect()
}

/// The top module that `import` reaches from the module at `path`; `None` where it stays inside its own.
fn top_module(path: &[String], import: &Import) -> Option<String> {
    let supers = import.path.iter().take_while(|segment| *segment == "super").count();
    let top = match supers {
        0 => import.path.get(1)?,
        _ if supers == path.len() => import.path.get(supers)?,
        _ => path.first()?,
    };
    // A type at the crate's root begins with a capital; a module does not.
    let is_module = top.starts_with(|c: char| c.is_lowercase());
    (is_module && path.first() != Some(top)).then(|| top.clone())
}

/// Why `layer` may not import `other`; `None` if it may.
fn refusal(layer: &Layer, other: &str) -> Option<String> {
    let Some(target) = LAYERS.iter().find(|layer| layer.module == other) else {
        return Some(format!("{other} has no row in the layer table"));
    };
    let allowed = layer.may_import.contains(&other) || (layer.row_0 && target.row == 0);
    (!allowed).then(|| {
        format!(
            "{} (row {}) may not import {other} (row {}); the layer table is in ARCHITECTURE.md",
            layer.module, layer.row, target.row
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(path: &[&str], code: &str) -> Vec<String> {
        let path: Vec<String> = path.iter().map(|segment| (*segment).to_owned()).collect();
        let text = source::Text::split(code);
        let file = source::File { path: "x.rs".into(), text };
        check_module(&Module { path, file, test_only: false }, "lib").into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn a_lower_row_never_imports_a_higher_one() {
        assert_eq!(refusals(&["identity"], "use crate::dataplane::Handles;").len(), 1);
        assert_eq!(refusals(&["dataplane", "pool"], "use crate::identity::CertSource;").len(), 0);
    }

    #[test]
    fn no_row_imports_sideways_but_where_listed() {
        assert_eq!(refusals(&["identity"], "use crate::cluster::Announcer;").len(), 1);
        assert_eq!(refusals(&["netns"], "use crate::sockets::dial;").len(), 1);
        assert_eq!(refusals(&["sockets"], "use crate::netns::Netns;").len(), 0);
    }

    #[test]
    fn super_and_paths_in_expressions_are_imports_too() {
        assert_eq!(refusals(&["identity", "tls"], "fn a() { super::super::pods::b() }").len(), 1);
        assert_eq!(refusals(&["identity", "tls"], "use super::cert::Chain;").len(), 0);
        assert_eq!(refusals(&["identity"], "fn a() { crate::pods::b() }").len(), 1);
    }

    #[test]
    fn tests_may_import_anything() {
        assert_eq!(refusals(&["identity"], "#[cfg(test)]\nmod tests { use crate::pods::Pods; }").len(), 0);
    }

    #[test]
    fn a_module_without_a_row_is_named() {
        assert_eq!(refusals(&["util"], ""), ["module util has no row in the layer table"]);
    }
}
