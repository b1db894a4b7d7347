//! The largest import cycle of a crate: its biggest strongly connected component of more than one module.

use std::collections::{BTreeMap, BTreeSet};

use super::{Crate, Import, Module};

type Graph = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

/// The modules of the largest cycle, named; empty where there is none. Tests and generated files do not count, and neither does the
/// crate's root, which is a list of modules.
pub fn largest_cycle(krate: &Crate) -> Vec<String> {
    let graph = graph(krate);
    let reachable: BTreeMap<_, _> = graph.keys().map(|from| (from, reach(&graph, from))).collect();
    let component = |of: &Vec<String>| -> Vec<String> {
        reachable[of]
            .iter()
            .filter(|other| reachable.get(*other).is_some_and(|back| back.contains(of)))
            .map(|path| path.join("::"))
            .collect()
    };
    graph
        .keys()
        .map(component)
        .filter(|component| component.len() > 1)
        .max_by_key(Vec::len)
        .unwrap_or_default()
}

fn reach(graph: &Graph, from: &[String]) -> BTreeSet<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_vec()];
    while let Some(at) = open.pop() {
        for next in graph.get(&at).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

fn graph(krate: &Crate) -> Graph {
    let shipped: Vec<&Module> =
        krate.modules.iter().filter(|module| !module.test_only && !module.file.is_test()).collect();
    let known: BTreeSet<&[String]> = shipped.iter().map(|module| module.path.as_slice()).collect();
    let doors = doors(&shipped, &known);
    let mut graph = Graph::new();
    // A generated file may be imported; what it imports itself is between its own inner modules.
    for module in shipped.iter().filter(|module| !module.path.is_empty() && !module.file.is_generated()) {
        let targets = imports_of(module, &known)
            .into_iter()
            .filter_map(|import| target(module, &import, &known, &doors))
            .filter(|target| *target != module.path && !target.is_empty())
            .collect();
        graph.insert(module.path.clone(), targets);
    }
    graph
}

/// Paths from the root, from a parent, and those that begin with a child's name.
fn imports_of(module: &Module, known: &BTreeSet<&[String]>) -> Vec<Import> {
    let children: Vec<&str> = known
        .iter()
        .filter(|path| path.len() == module.path.len() + 1 && path.starts_with(&module.path))
        .filter_map(|path| path.last().map(String::as_str))
        .collect();
    let starts: Vec<&str> = ["crate", "super", "self"].into_iter().chain(children).collect();
    super::imports(&module.file.text.code_without_tests(), &starts)
}

/// Where `module`'s import leads as a path from the root, before it is cut down to a module.
fn absolute(module: &[String], import: &Import) -> Vec<String> {
    let supers = import.path.iter().take_while(|segment| *segment == "super").count();
    match import.path.first().map(String::as_str) {
        Some("crate") => import.path[1..].to_vec(),
        Some("self") => [module, &import.path[1..]].concat(),
        Some("super") => [&module[..module.len().saturating_sub(supers)], &import.path[supers..]].concat(),
        _ => [module, &import.path[..]].concat(),
    }
}

/// What front doors (`pub use`) lead to: the path through the door, and the path behind it.
fn doors(modules: &[&Module], known: &BTreeSet<&[String]>) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut doors = BTreeMap::new();
    for module in modules {
        for import in imports_of(module, known).into_iter().filter(|import| import.reexport) {
            let behind = absolute(&module.path, &import);
            if let Some(name) = behind.last() {
                doors.insert([module.path.clone(), vec![name.clone()]].concat(), behind);
            }
        }
    }
    doors
}

/// The module that an import reaches: the longest known prefix, through a front door where there is one.
fn target(
    module: &Module,
    import: &Import,
    known: &BTreeSet<&[String]>,
    doors: &BTreeMap<Vec<String>, Vec<String>>,
) -> Option<Vec<String>> {
    let mut path = absolute(&module.path, import);
    // A door may lead to a door; more than three in a row is no crate of ours.
    for _ in 0..3 {
        let door = (1..=path.len()).rev().find_map(|len| Some((len, doors.get(&path[..len])?)));
        match door {
            Some((len, behind)) if *behind != path[..len] => path = [behind, &path[len..]].concat(),
            _ => break,
        }
    }
    (0..=path.len())
        .rev()
        .map(|len| &path[..len])
        .find(|prefix| known.contains(prefix))
        .map(<[String]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{File, Text};

    fn krate(modules: &[(&str, &str)]) -> Crate {
        let modules = modules.iter().map(|(path, code)| Module {
            path: path.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect(),
            file: File { path: format!("{path}.rs").into(), text: Text::split(code) },
            test_only: false,
        });
        Crate { package: "p".into(), kind: "lib".into(), modules: modules.collect() }
    }

    #[test]
    fn a_child_that_uses_its_parent_is_a_cycle_if_the_parent_uses_it() {
        let found =
            largest_cycle(&krate(&[("", "mod a;"), ("a", "mod b; use b::B;"), ("a::b", "use super::A;")]));
        assert_eq!(found, ["a", "a::b"]);
        let found = largest_cycle(&krate(&[("", "mod a;"), ("a", "mod b; use b::B;"), ("a::b", "")]));
        assert!(found.is_empty());
    }

    #[test]
    fn a_front_door_leads_to_what_is_behind_it() {
        let found = largest_cycle(&krate(&[
            ("", "mod a; mod b; pub use a::A;"),
            ("a", "use crate::b::B;"),
            ("b", "use crate::A;"),
        ]));
        assert_eq!(found, ["a", "b"]);
    }
}
